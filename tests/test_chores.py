"""Regular work in pieces, and what becomes of it when the program died of it."""

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.features.chores import HUNG_S, LEFT_S, MOST_DEATHS, ROWS, Deaths
from bridge.features.ledger import REPORT_HOLD_S, Ledger
from bridge.store.database import Store
from bridge.system.clock import Clock
from broker_fixture import Broker
from harness import BridgeProcess, bridge_config, raw_line, running, sweep, watching

pytestmark = pytest.mark.filterwarnings("error")
AT = 1_800_000_000.0
REPORTS = "delivery reports that match nothing"


class Machine(Clock):
    """Clocks that go on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return AT + self.now

    def boottime(self) -> float:
        return self.now

    @property
    def boot_id(self) -> str:
        return "machine"


class Killed(BaseException):
    """kill -9, at this very place."""


# -- the note


def die_of(path: Path, machine: Machine, name: str = "x", after: float = 60.0) -> Deaths:
    """A run that is killed while it does something; and the next one, which starts so long after that was begun."""
    deaths = Deaths(path, machine, machine.time())
    with contextlib.suppress(Killed), deaths.doing(name):
        raise Killed
    machine.now += after
    return Deaths(path, machine, machine.time())


def test_the_first_death_is_forgiven_and_the_second_is_not(tmp_path: Path) -> None:
    path, machine = tmp_path / "work", Machine()
    assert die_of(path, machine).rows("x", machine.time()) == ROWS
    deaths = die_of(path, machine)
    assert [(left.name, left.deaths) for left in deaths.left(machine.time())] == [("x", MOST_DEATHS)]
    assert (deaths.rows("x", machine.time()), deaths.rows("y", machine.time())) == (0, ROWS)


def test_after_an_hour_it_is_taken_in_the_smallest_pieces_and_forgiven_when_it_is_done(tmp_path: Path) -> None:
    path, machine = tmp_path / "work", Machine()
    die_of(path, machine)
    deaths = die_of(path, machine)
    machine.now += LEFT_S
    assert deaths.rows("x", machine.time()) == 1
    assert Deaths(path, machine, machine.time()).rows("x", machine.time()) == 1, "also in a run that began since"
    deaths = die_of(path, machine)
    assert deaths.rows("x", machine.time()) == 0, "it did it again"
    machine.now += LEFT_S
    deaths.done("x")
    assert deaths.rows("x", machine.time()) == ROWS
    assert Deaths(path, machine, machine.time()).rows("x", machine.time()) == ROWS


def test_what_was_done_in_between_does_not_count(tmp_path: Path) -> None:
    path, machine = tmp_path / "work", Machine()
    for _ in range(3):
        deaths = die_of(path, machine)
        with deaths.doing("x"):
            pass
        deaths.done("x")
    assert not deaths.left(machine.time())


def test_who_is_killed_soon_after_it_began_was_not_hanging(tmp_path: Path) -> None:
    path, machine = tmp_path / "work", Machine()
    for _ in range(5):
        deaths = die_of(path, machine, after=HUNG_S - 0.1)
    assert not deaths.left(machine.time())


def test_a_power_failure_is_no_fault_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, machine = tmp_path / "work", Machine()
    die_of(path, machine)
    with contextlib.suppress(Killed), Deaths(path, machine, AT).doing("x"):
        raise Killed
    machine.now += 60
    monkeypatch.setattr(Machine, "boot_id", "another start")
    assert not Deaths(path, machine, machine.time()).left(machine.time())


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\0", b"{", b'{"doing": "x"}', b'"x"'])
def test_a_note_that_says_nothing_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "work").write_bytes(content)
    deaths = Deaths(tmp_path / "work", Machine(), AT)
    assert deaths.rows("x", AT) == ROWS
    with deaths.doing("x"):
        assert json.loads((tmp_path / "work").read_text())["doing"] == "x"
    assert json.loads((tmp_path / "work").read_text())["doing"] is None


def test_where_no_note_can_be_written_everything_else_goes_on(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("somebody's")
    (tmp_path / "work").symlink_to(tmp_path / "elsewhere")
    deaths = Deaths(tmp_path / "work", Machine(), AT)
    with deaths.doing("x"):
        pass
    assert (tmp_path / "elsewhere").read_text() == "somebody's"


def test_a_note_outlives_kill_9(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path\n"
        "from bridge.features.chores import Deaths; from bridge.system.clock import Clock\n"
        "with Deaths(Path(sys.argv[1]), Clock(), 0.0).doing('x'):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    clock = Clock()
    for _ in range(MOST_DEATHS):
        ended = subprocess.run([sys.executable, "-c", program, tmp_path / "work"], check=False)
        assert ended.returncode == -signal.SIGKILL
        note = json.loads((tmp_path / "work").read_text())
        assert note["doing"] == "x"
        (tmp_path / "work").write_text(json.dumps(note | {"since": clock.boottime() - 60}))  # it hung for a minute
    assert [left.name for left in Deaths(tmp_path / "work", clock, 0.0).left(0.0)] == ["x"]
    assert (tmp_path / "work").stat().st_mode & 0o777 == 0o600


# -- the bridge


SETTINGS = Settings(lines={"l": {"password": "p"}})


class Life:
    """Runs of a bridge on one store, on a machine."""

    def __init__(self, path: Path) -> None:
        self.machine = Machine()
        self.path = path / "bridge.db"
        self.bridge: Bridge
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
        self.bridge = Bridge(SETTINGS, self.store, lambda: SETTINGS, self.machine)
        self.bridge._go_on()
        self.bridge.pump()

    def kill(self) -> None:
        self.store.close()

    def seconds(self, count: float) -> None:
        """So many seconds go by, and all turns of the loop in them."""
        for _ in range(int(count)):
            self.machine.now += 1.0
            self.bridge._second()
            while self.bridge._to_do and not self.bridge._stalled:
                self.bridge._work_on()

    def facts(self, schema: str) -> list[dict[str, Any]]:
        return [
            json.loads(row.body) for row in self.store.outbox(0, 10_000) if row.schema == schema and not row.copy_of
        ]

    def report(self, count: int = 1) -> None:
        """Delivery reports that match nothing."""
        with self.store.transaction():
            for n in range(count):
                self.store.add_report("l", n, 0, f"+49{n:09}", self.bridge.steady.time())


@pytest.fixture
async def life(tmp_path: Path) -> AsyncIterator[Life]:
    begun = Life(tmp_path)
    yield begun
    begun.kill()


def die_while_letting_go(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it handles a held report, and started again after a minute."""

    def hang(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_only_possible", hang)
        with pytest.raises(Killed):
            life.seconds(REPORT_HOLD_S + 2)
    life.kill()
    life.machine.now += 60
    life.start()


async def test_what_killed_twice_is_left_for_an_hour_and_the_rest_goes_on(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.report(3)
    die_while_letting_go(life, monkeypatch)
    assert not life.facts("bridge_event") or life.facts("bridge_event")[-1]["event_type"] == "outage_gap"
    die_while_letting_go(life, monkeypatch)
    told = [fact for fact in life.facts("bridge_event") if fact["event_type"] == "work_left"]
    assert [(fact["count"], REPORTS in fact["message"]) for fact in told] == [(MOST_DEATHS, True)]
    life.store.add_sms(
        msg="m", cmd="c", line="l", number="1", text="x", priority=5, guarantee="at_most_once", created=0.0,
        state="queued", changed=0.0, expires=life.bridge.steady.time(),
    )  # fmt: skip
    life.seconds(30)
    assert [fact["event_type"] for fact in life.facts("delivery")] == ["expired"], "other work goes on"
    life.seconds(LEFT_S)
    assert sorted(fact["event_type"] for fact in life.facts("delivery")) == ["delivered"] * 3 + ["expired"]
    assert life.bridge._deaths.rows(REPORTS, life.bridge.steady.time()) == ROWS, "it is forgiven"


async def test_after_an_hour_one_row_is_handled_at_a_time(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.report(5)
    die_while_letting_go(life, monkeypatch)
    die_while_letting_go(life, monkeypatch)
    life.machine.now += LEFT_S
    before = len(life.facts("delivery"))
    life.bridge._second()
    assert len(life.facts("delivery")) == before + 1


async def test_a_store_that_cannot_be_written_is_no_death(life: Life) -> None:
    life.report()
    life.seconds(REPORT_HOLD_S - 2)
    life.store._db.execute("PRAGMA query_only = ON")
    life.seconds(20)
    assert life.bridge._stalled
    assert json.loads(life.path.with_name("bridge.db-work").read_text())["doing"] is None
    life.store._db.execute("PRAGMA query_only = OFF")
    life.bridge._try_again()
    life.seconds(1)
    assert len(life.facts("delivery")) == 1


async def test_an_idle_bridge_commits_only_its_sign_of_life(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.seconds(60)
    commits = 0
    whole = Store.transaction

    @contextlib.contextmanager
    def counted(store: Store) -> Any:
        nonlocal commits
        commits += 1
        with whole(store):
            yield

    monkeypatch.setattr(Store, "transaction", counted)
    life.seconds(60)
    assert commits == 6, "one in ten seconds"


# -- with real processes

HANGING = """
import sys
from bridge import __main__
from bridge.process import keeper, supervisor
from bridge.features.ledger import Ledger
keeper.Supervised.alive_s = 0.1
if "--worker-fd" in sys.argv:
    def hang(*_):
        while True:
            pass
    Ledger._only_possible = hang
    sys.exit(__main__.main())
supervisor.set_up_logging()
sys.exit(supervisor.Supervisor([sys.executable, *sys.orig_argv[1:]], hang_s=6).run())
"""
"A bridge that hangs over every delivery report that matches nothing."


async def test_a_kill_loop_ends_with_the_third_worker(broker: Broker, tmp_path: Path) -> None:
    command = (sys.executable, "-c", HANGING, *BridgeProcess.command[3:])
    async with (
        watching(broker, "goip/#") as watcher,
        running(tmp_path, bridge_config(broker, "goip"), command=command) as bridge,
    ):
        with raw_line(bridge.udp_port) as line:
            await line.register()
            await line.ask(line.event("DELIVER", "sms_no:7;state:0;num:+4915112345678"))
            left = await watcher.until("goip/bridge/event", lambda seen: seen.json["event_type"] == "work_left")
            assert REPORTS in left.json["message"]
            await line.register()
        await bridge.stop()
        await sweep(broker)
        assert bridge.log.count("the bridge hangs") == MOST_DEATHS
    with contextlib.closing(sqlite3.connect(tmp_path / "bridge.db")) as db:
        assert db.execute("SELECT sms_no FROM report").fetchall() == [(7,)], "it is left, and not lost"
