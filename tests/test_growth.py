"""Nothing costs more because the store has grown: every statement, every look, every turn of the loop.

No time is measured here, but what SQLite does: its plans, and the steps of its virtual machine.
"""

import ast
import contextlib
import inspect
import itertools
import json
import re
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import DOUBTED_AT_ONCE, HASTENED_AT_ONCE, Bridge
from bridge.config.settings import Settings
from bridge.contract.numbers import normalise
from bridge.contract.payloads import timestamp
from bridge.features.chores import ROWS
from bridge.features.ledger import REPORT_CHOICES, REPORT_HOLD_S, last_digits
from bridge.goip import events
from bridge.goip.line import Proof
from bridge.goip.server import LineMemory
from bridge.homeassistant.documents import documents
from bridge.retained.discovery import DEVICES_AT_ONCE
from bridge.retained.topics import STATES_AT_ONCE
from bridge.store import database as store
from bridge.store.database import MIGRATIONS, Store
from bridge.system.clock import BELIEVED_S, Clock

DAY = 86400.0
ROOT = Path(__file__).resolve().parents[1]
BOUNDED = {"meta", "line", "proof", "traffic", "line_tally", "sqlite_sequence"}
"Tables that don't grow with time or with SMS: they have some rows for each line."


class Machine(Clock):
    """Clocks that go on when a test says so."""

    def __init__(self) -> None:
        self.now = 100_000.0  # not just started: its wall clock may be believed
        self.step = 0.0
        "What the wall clock was set wrong by."

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now + self.step

    def boottime(self) -> float:
        return self.now

    @property
    def boot_id(self) -> str:
        return "machine"


# -- the statements


class Recorder:
    """Stands before the connection, and notes every statement with the lines of the store it came from."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.statements: dict[str, int] = {}
        "By text: how many parameters."
        self.lines: set[int] = set()

    def execute(self, statement: str, arguments: Any = ()) -> sqlite3.Cursor:
        self._note(statement, len(arguments))
        return self.db.execute(statement, arguments)

    def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
        rows = list(rows)
        self._note(statement, len(rows[0]))
        return self.db.executemany(statement, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)

    def _note(self, statement: str, parameters: int) -> None:
        self.statements[statement] = parameters
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename == store.__file__:
                self.lines.add(frame.f_lineno)
            frame = frame.f_back  # type: ignore[assignment]


_SMS: dict[str, Any] = {
    "msg": "m", "cmd": "c", "job": None, "line": "l", "number": "+4915112345678", "text": "x", "priority": 5,
    "guarantee": "at_least_once", "src": None, "created": 1.0, "expires": 2.0, "state": "queued", "changed": 1.0,
}  # fmt: skip
_COMMAND: dict[str, Any] = {
    "topic": "t", "id": "i", "payload": "{}", "minted": False, "target": "l", "path": "sms", "response_topic": None,
    "correlation": None, "warnings": [], "at": 1.0,
}  # fmt: skip
_MEMORY = LineMemory(address=("10.0.0.1", 1), count=1, reboots=0)

CALLS: dict[str, Callable[[Store], object]] = {
    "advance_epoch": lambda s: s.advance_epoch(),
    "witness_epoch": lambda s: s.witness_epoch(),
    "get": lambda s: s.get("k"),
    "put": lambda s: s.put("k", 1),
    "save_line": lambda s: s.save_line("l", _MEMORY),
    "move_line": lambda s: s.move_line("l", _MEMORY),
    "set_online": lambda s: s.set_online("l", online=True),
    "save_proof": lambda s: s.save_proof("l", Proof(safe=True, identity="i"), 1.0),
    "proofs": lambda s: list(s.proofs()),
    "delete_lines": lambda s: s.delete_lines(["other"]),
    "lines": lambda s: list(s.lines()),
    "add_repeats": lambda s: s.add_repeats([(b"k", "l", 1.0)]),
    "repeats": lambda s: list(s.repeats(0.0)),
    "old_repeats": lambda s: s.old_repeats(2.0, 1),
    "delete_repeat": lambda s: s.delete_repeat(1),
    "add_outbox": lambda s: s.add_outbox([("t", "s", 1, b"{}", None, 1.0)]),
    "outbox": lambda s: s.outbox(0, 1),
    "outbox_size": lambda s: s.outbox_size(),
    "outbox_copies": lambda s: s.outbox_copies(),
    "delete_outbox": lambda s: s.delete_outbox([1]),
    "add_command": lambda s: s.add_command(**_COMMAND),
    "command": lambda s: s.command(1),
    "command_by_id": lambda s: s.command_by_id("t", "i", 0.0),
    "command_by_payload": lambda s: s.command_by_payload("t", "{}", 0.0),
    "open_commands": lambda s: list(s.open_commands()),
    "set_result": lambda s: s.set_result(1, b"{}"),
    "old_commands": lambda s: s.old_commands(2.0, 1),
    "delete_command": lambda s: s.delete_command(2),
    "add_job": lambda s: s.add_job("j", "c", "l", 1, 1.0),
    "add_sms": lambda s: [s.add_sms(**_SMS), s.add_sms(**_SMS | {"msg": "n", "job": "j"})],
    "sms": lambda s: s.sms(1),
    "update_sms": lambda s: s.update_sms(2, state="sending", changed=1.0),
    "queued": lambda s: [s.queued("l", 1), s.queued("l", 1, (1.0, 1))],
    "queued_lines": lambda s: s.queued_lines(),
    "expired": lambda s: s.expired((0.0, 0), 2.0, 1),
    "hasten": lambda s: s.hasten(1.0, 0, 1),
    "first_sms": lambda s: s.first_sms(),
    "last_sms": lambda s: s.last_sms(),
    "sending": lambda s: list(s.sending()),
    "unknown": lambda s: s.unknown("l", 0.0, 1),
    "given_back": lambda s: s.given_back("l", 0.0, 1),
    "doubtful": lambda s: s.doubtful((0.0, 0), 2.0, 1),
    "submitted_before": lambda s: s.submitted_before("l", 2, 1, 1),
    "submitted_last": lambda s: s.submitted_last("l", 1),
    "submitted_to": lambda s: list(s.submitted_to("l", "2345678", 0.0, 1)),
    "has_submitted": lambda s: [s.has_submitted("l", 1), s.has_submitted("l", 1, 3)],
    "has_submitted_again": lambda s: s.has_submitted_again("l", 0.0),
    "by_sms_no": lambda s: s.by_sms_no("l", 1, "2345678", 0.0, 1),
    "old_sms": lambda s: s.old_sms(2.0, 1),
    "sms_of_job": lambda s: s.sms_of_job("j", 1),
    "delete_sms": lambda s: s.delete_sms(9),
    "queue_counts": lambda s: s.queue_counts(),
    "job": lambda s: s.job("j"),
    "job_counts": lambda s: s.job_counts("j"),
    "end_jobs": lambda s: s.end_jobs(["j"], 2.0),
    "reopen_job": lambda s: s.reopen_job("j"),
    "jobs": lambda s: s.jobs("", 1),
    "old_job": lambda s: s.old_job(3.0),
    "delete_job": lambda s: s.delete_job("k"),
    "add_report": lambda s: s.add_report("l", 1, 0, "1", 1.0),
    "reports": lambda s: s.reports("l", 1, 1),
    "old_reports": lambda s: s.old_reports(2.0, 1),
    "delete_report": lambda s: s.delete_report(1),
    "count": lambda s: s.count("l", "2026-01-01", {"sent": 1}),
    "traffic": lambda s: [s.traffic(), s.traffic("2026-01-01")],
    "old_traffic": lambda s: s.old_traffic("2026-01-02", 1),
    "fold_traffic": lambda s: s.fold_traffic("l", "2026-01-01"),
}
"Everything that the store can do, once."
AT_THE_START = {"_open", "is_foreign"}
"Looks at the whole file, and brings it up to date; before anything is served."


def _sites() -> Iterator[int]:
    """The lines of the store on which a statement begins its way to SQLite."""
    tree = ast.parse(Path(store.__file__).read_text())
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        if function.name in AT_THE_START | {"transaction", "_rollback"}:
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", "")
            if name.startswith("execute") or name in ("_sms", "_numbers", "_command", "_count_outbox"):
                yield call.lineno


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorder]:
    """Everything that the store can do was done."""
    with contextlib.closing(Store(tmp_path / "bridge.db")) as opened:
        recorder = Recorder(opened._db)
        opened._db = recorder  # type: ignore[assignment]
        with opened.transaction():
            for call in CALLS.values():
                call(opened)
        yield recorder


def test_every_statement_is_asked_for_its_plan(recorded: Recorder) -> None:
    public = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")}
    assert public - {"close", "transaction"} == set(CALLS)
    missed = set(_sites()) - recorded.lines
    assert not missed, f"lines of bridge/store/database.py whose statements were not run: {sorted(missed)}"
    elsewhere = [
        path.name
        for path in (ROOT / "bridge").rglob("*.py")
        if path.name not in ("database.py", "doctor.py")
        and re.search(r"\.execute(many|script)?\(|sqlite3\.connect", path.read_text())
    ]
    assert not elsewhere, "only the store speaks SQL, and doctor, which looks at it while no bridge runs"


def test_no_statement_walks_or_sorts_what_grows(recorded: Recorder) -> None:
    tables = {row[0] for row in recorded.db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")} - BOUNDED
    faults = []
    for statement, parameters in recorded.statements.items():
        if statement.startswith(("BEGIN", "COMMIT", "ROLLBACK")):
            continue
        plan = [row[-1] for row in recorded.db.execute(f"EXPLAIN QUERY PLAN {statement}", (None,) * parameters)]
        about = {word for step in plan for word in step.split()} & tables
        walks = any(step.startswith("SCAN ") and step.split()[1] in tables for step in plan)
        sorts = bool(about) and any("TEMP B-TREE" in step for step in plan)
        if walks or sorts:
            faults.append(f"{statement}\n    {plan}")
    assert not faults, "\n".join(faults)


def test_the_triggers_find_their_rows_by_key(recorded: Recorder) -> None:
    for table, key in (("line_tally", "line"), ("job_tally", "job")):
        statement = f"UPDATE {table} SET count = count - 1 WHERE {key} = 'x' AND state = 'y'"
        ((*_, plan),) = recorded.db.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        assert plan == f"SEARCH {table} USING PRIMARY KEY ({key}=? AND state=?)"


# -- turns of the loop


SETTINGS = Settings(lines={"l": {"password": "p"}}, homeassistant={"discovery": False})
NUMBER = "+4915112345678"


class Life:
    """A bridge on a store that has grown; its turns are made by the test."""

    def __init__(self, path: Path, settings: Settings = SETTINGS) -> None:
        self.path = path / "bridge.db"
        self.settings = settings
        self.machine = Machine()
        self.bridge: Bridge
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
        self.bridge = Bridge(self.settings, self.store, lambda: self.settings, self.machine)
        self.bridge._go_on()
        self.bridge.pump()

    def restart(self) -> None:
        """kill -9, and another run."""
        self.store.close()
        self.start()
        self.bridge._to_do = dict.fromkeys(self.bridge._work_of)

    @property
    def at(self) -> float:
        return self.bridge.steady.time()

    def turns(self, most: int = 10_000) -> Iterator[None]:
        """A second goes by, and a minute; every turn of the loop until there is nothing more to do."""
        self.machine.now += 1.0
        self.bridge._minute()
        self.bridge._second()
        yield
        while self.bridge._to_do and most:
            most -= 1
            self.bridge._work_on()
            yield

    def sms(self, count: int, **columns: Any) -> None:
        """SMS that were sent a while ago, or whatever the columns say; those that are callable are asked for each."""
        defaults = {
            "cmd": "c", "line": "l", "number": NUMBER, "text": "x", "priority": 5, "guarantee": "effectively_once",
            "created": 0.0, "state": "sent", "attempt": 1, "telid": 1, "changed": self.at - 60.0,
        }  # fmt: skip
        first = self.store.last_sms() + 1
        with self.store.transaction():
            for n in range(first, first + count):
                made = {"msg": f"m{n}", "sendid": n, **defaults, **columns}
                self.store.add_sms(**{key: value(n) if callable(value) else value for key, value in made.items()})

    def rows(self, table: str) -> int:
        count: int = self.store._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count

    def facts(self, schema: str) -> list[dict[str, Any]]:
        return [json.loads(row.body) for row in self.store.outbox(0, 100_000) if row.schema == schema]

    def steps(self, work: Callable[[], object]) -> int:
        """How many tens of steps SQLite's machine makes for it."""
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        self.store._db.set_progress_handler(step, 10)
        work()
        self.store._db.set_progress_handler(None, 0)
        return count


@pytest.fixture
async def life(tmp_path: Path) -> AsyncIterator[Life]:
    begun = Life(tmp_path)
    yield begun
    begun.store.close()


def whole(life: Life) -> None:
    """Everything that is to be done now."""
    for _ in life.turns():
        pass


async def test_looking_at_a_store_that_has_grown_costs_no_more(life: Life) -> None:
    mixed = {
        "state": lambda n: ("sent", "delivered", "unknown", "failed", "queued")[n % 5],
        "line": lambda n: "l" if n % 5 != 4 else "away", "sms_no": lambda n: n % 256,
        "number": lambda n: f"+4915{n % 500:09}", "expires": lambda n: life.at + DAY,
        "guarantee": "at_least_once", "attempt": 5,
    }  # fmt: skip
    found = []
    for count in (500, 10_000):
        life.sms(count, **mixed)
        life.machine.now += life.settings.timing.evidence_s  # so those that are unknown stay so
        for _ in range(3):
            whole(life)
        found.append(life.steps(lambda: whole(life)))
    assert found[1] <= found[0] * 1.5 + 5, "tens of steps: with 500 SMS, and with 10,500"
    assert found[0] < 100


@pytest.mark.parametrize("numbers", [1, 50])
async def test_reports_that_match_nothing_are_let_go_in_pieces_each_once(life: Life, numbers: int) -> None:
    life.sms(2000, number=lambda n: f"+4915{n % numbers:09}", sms_no=lambda n: n % 100)
    with life.store.transaction():
        for n in range(1000):
            life.store.add_report("l", 200, 0, f"+4915{n % numbers:09}", life.at)
    life.machine.now += REPORT_HOLD_S
    told = []
    for _ in life.turns():
        told.append(len(life.facts("delivery")))
        assert told[-1] - (told[-2] if len(told) > 1 else 0) <= ROWS
    assert told[-1] == 1000
    assert life.rows("report") == 0
    assert [fact["msg"] for fact in life.facts("delivery")] == [None] * 1000
    life.restart()
    whole(life)
    assert len(life.facts("delivery")) == 1000


@pytest.mark.parametrize("sms_no", [None, 7])
async def test_a_report_costs_no_more_among_many_sms(life: Life, sms_no: int | None) -> None:
    """All to one number, which is the worst: one report of the outbox's own number, one of nobody's."""

    def reports() -> None:
        for number in (NUMBER, "+4917099999999", ""):
            datagram = f"DELIVER:{next(recvids)};id:l;password:p;sms_no:99;state:0;num:{number}"
            life.bridge.datagrams_received([(datagram.encode(), ("127.0.0.1", 4000))])
        life.machine.now += REPORT_HOLD_S + 1
        whole(life)

    recvids = iter(range(1, 100))
    life.sms(REPORT_CHOICES, sms_no=sms_no)
    reports()
    before = life.steps(reports)
    life.sms(10 * REPORT_CHOICES, sms_no=sms_no)
    reports()
    after = life.steps(reports)
    assert after <= before * 1.2 + 20, f"tens of steps: {before} before, {after} after"


async def test_what_is_old_is_forgotten_in_pieces_also_after_a_kill(life: Life) -> None:
    old = life.at - 8 * DAY
    life.sms(1000, changed=old)
    life.sms(300, changed=old, job="j")
    life.sms(10, changed=old, state="queued", attempt=0, sendid=None, line="away")
    life.sms(5)
    with life.store.transaction():
        life.store.add_job("j", "c", "l", 300, old)
        life.store.end_jobs(["j"], old)
        life.store.add_repeats([(bytes([n % 256]) * 12, "l", old) for n in range(500)])
        for n in range(50):
            life.store.add_command(
                topic="t", id=f"i{n}", payload="{}", minted=False, target="l", path="sms", response_topic=None,
                correlation=None, warnings=[], at=old,
            )  # fmt: skip
            life.store.set_result(n + 1, b"{}")
    tables = ("sms", "repeat", "command", "job")
    before = [life.rows(table) for table in tables]
    for turn, _ in enumerate(life.turns()):
        after = [life.rows(table) for table in tables]
        assert sum(before) - sum(after) <= ROWS, "one piece in a turn"
        before = after
        if turn == 7:
            life.restart()
        assert life.rows("job") == 1 or not life.store.sms_of_job("j", 1), "the job goes last"
    assert [life.rows(table) for table in tables] == [15, 0, 0, 0]
    assert life.rows("job_tally") == 0


async def test_a_line_that_is_removed_has_its_queue_failed_in_pieces_also_after_a_kill(life: Life) -> None:
    life.sms(1000, line="gone", state="queued", attempt=0, sendid=None)
    told = 0
    for turn, _ in enumerate(life.turns()):
        assert len(life.facts("delivery")) - told <= ROWS
        told = len(life.facts("delivery"))
        if turn == 3:
            life.restart()
    whole(life)
    assert [fact["event_type"] for fact in life.facts("delivery")] == ["failed"] * 1000


async def test_what_expires_at_once_is_told_in_pieces(life: Life) -> None:
    life.sms(1000, state="queued", attempt=0, sendid=None, expires=life.at)
    told = 0
    for _ in life.turns():
        assert len(life.facts("delivery")) - told <= ROWS
        told = len(life.facts("delivery"))
    assert [fact["event_type"] for fact in life.facts("delivery")] == ["expired"] * 1000


async def test_a_restored_store_is_doubted_also_when_it_is_killed_in_between(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db")) as opened, opened.transaction():
        opened.advance_epoch()
    life = Life(tmp_path)
    life.sms(3 * DOUBTED_AT_ONCE, state="queued", attempt=0, sendid=None)
    life.store.close()
    (tmp_path / "bridge.db-epoch").unlink()
    commits = []

    class Dying(Store):
        """Killed at its third transaction that doubts."""

        @contextlib.contextmanager
        def transaction(self) -> Iterator[None]:
            with super().transaction():
                yield
                commits.append(1)
                if len(commits) == 3:
                    raise SystemExit("killed")

    with contextlib.closing(Dying(life.path)) as dying, pytest.raises(SystemExit):
        Bridge(SETTINGS, dying, lambda: SETTINGS, life.machine)
    life.start()
    assert [fact["event_type"] for fact in life.facts("delivery")] == ["unknown"] * 3 * DOUBTED_AT_ONCE
    (told,) = [fact for fact in life.facts("bridge_event") if fact["event_type"] == "store_restored"]
    assert f"{3 * DOUBTED_AT_ONCE} SMS" in told["message"]
    life.restart()
    assert len(life.facts("bridge_event")) == 1
    life.store.close()


async def test_time_that_passed_uncounted_hastens_each_sms_once_also_after_a_kill(life: Life) -> None:
    """The clock is set forward and stands: some at a time get older, and a kill in between gets none older twice."""
    count = 3 * HASTENED_AT_ONCE
    life.sms(count, line="away", state="queued", attempt=0, sendid=None, expires=life.at + 10 * DAY)
    expires = life.at + 10 * DAY
    life.machine.step = DAY
    for _ in range(int(BELIEVED_S) + 5):
        life.machine.now += 1.0
        life.bridge._mind_the_clock()
    assert life.bridge._hastening
    life.bridge._work_on()
    life.bridge._hasten(ROWS)
    assert life.bridge._hastening, "not all at once"
    life.restart()
    whole(life)
    assert not life.bridge._hastening
    found = {round(row[0] - expires) for row in life.store._db.execute("SELECT expires FROM sms")}
    assert found == {-round(DAY)}


async def test_a_start_with_many_lines_and_jobs_gives_everybody_a_turn(tmp_path: Path) -> None:
    names = [f"l{n}" for n in range(300)]
    life = Life(tmp_path, Settings(lines={name: {"password": "p"} for name in names}))
    with life.store.transaction():
        for n in range(500):
            life.store.add_job(f"j{n}", "c", "l0", 2, life.at)
    life.restart()
    published: list[int] = []
    for _ in life.turns():
        published.append(sum(topic.startswith("goip/job/") for topic in life.bridge.publisher._states))
    assert published[-1] == 500
    assert max(b - a for a, b in itertools.pairwise([0, *published])) <= STATES_AT_ONCE
    life.bridge.board.all_lines_changed()
    while life.bridge.board.publish_states():
        pass
    life.store.close()


async def test_a_reload_with_many_lines_makes_their_devices_in_pieces(tmp_path: Path) -> None:
    def lines(count: int, name: str) -> Settings:
        return Settings(lines={f"l{n}": {"password": "p", "name": f"{name} {n}"} for n in range(count)})

    life = Life(tmp_path, lines(200, "Line"))
    discovery = life.bridge.discovery
    assert len(discovery._wanted) == 201
    life.settings = lines(300, "Gate")
    assert life.bridge.reload()[0] == "ok"
    left = [301]
    for _ in life.turns():
        left.append(len(discovery._unmade))
    assert left[-1] == 0
    assert max(before - after for before, after in itertools.pairwise(left)) <= DEVICES_AT_ONCE
    made = documents(life.bridge.instance, life.settings, life.bridge.topics)
    assert sorted(discovery._wanted.values()) == sorted(made.values())
    life.store.close()


# -- totals, and jobs that go on


async def test_totals_never_fall_when_days_are_forgotten(life: Life) -> None:
    with life.store.transaction():
        for day in range(1000):
            life.store.count("l", timestamp(life.machine.time() - day * DAY)[:10], {"sent": 1, "received": 2})
        life.store.count("k", "2020-01-01", {"failed": 3})
    life.restart()
    total = life.bridge.board.traffic.total("l")
    assert (total.sent, total.received) == (1000, 2000)
    for turn, _ in enumerate(life.turns()):
        assert life.store.traffic()["l"]["sent"] == 1000, "in every transaction"
        if turn == 3:
            life.restart()
    assert life.rows("traffic") <= 2 * 9
    life.restart()
    assert life.bridge.board.traffic.total("l") == total
    assert life.bridge.board.traffic.total("k").failed == 3
    assert life.bridge.board.traffic.today("l").sent == 1


async def test_a_job_whose_sms_are_queued_again_has_not_ended(life: Life) -> None:
    def job() -> tuple[str, bool]:
        for _ in range(2):
            whole(life)
        told = json.loads(life.bridge.publisher._states["goip/job/j"].body)
        return told["state"], told["ended_at"] is not None

    with life.store.transaction():
        life.store.add_job("j", "c", "l", 2, life.at)
    life.sms(1, job="j")
    life.sms(1, job="j", state="unknown", guarantee="at_least_once")
    life.bridge.board.jobs_changed(["j"])
    assert job() == ("done", True)
    life.machine.now += life.settings.timing.evidence_s
    assert job() == ("running", False)
    life.restart()
    assert job() == ("running", False)
    (n,) = [row.n for row in life.store.queued("l", 10)]
    life.bridge.server.events.append(events.SmsSending("l", n, life.bridge.server.new_sendid(), 1))
    life.bridge.server.events.append(events.SmsSent("l", n, 1))
    life.bridge.pump()
    assert job() == ("done", True)


# -- stores of earlier versions


def test_an_older_store_is_brought_up_to_date_with_what_was_counted_by_looking(tmp_path: Path) -> None:
    """Rows whose job is forgotten, a job that ended and whose SMS wait again, and the outbox."""
    path = tmp_path / "bridge.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        for script in MIGRATIONS[:3]:
            db.executescript(script)
        db.execute("PRAGMA user_version = 3")
        sms = "INSERT INTO sms (msg, cmd, job, line, number, text, priority, guarantee, created, state, changed) "
        rows = [("j", "queued"), ("j", "sent"), ("k", "sent"), ("forgotten", "sent"), (None, "sending")]
        for n, (job, state) in enumerate(rows):
            values = (f"m{n}", job, "+49*151#2345678", state)
            db.execute(f"{sms} VALUES (?, 'c', ?, 'l', ?, 'x', 5, 'at_most_once', 0, ?, 0)", values)
        db.executemany("INSERT INTO job VALUES (?, 'c', 'l', 2, 1.0, 2.0)", [("j",), ("k",)])
        db.executemany(
            "INSERT INTO outbox (topic, schema, expiry_s, body, at) VALUES ('t', 's', 1, x'', ?)", [(5,), (6,)]
        )
        db.commit()
    with contextlib.closing(Store(path)) as opened:
        assert opened.queue_counts() == {"l": (1, 1)}
        assert opened.job_counts("j") == {"queued": 1, "sent": 1}
        assert [opened.job(job)[4] for job in "jk"] == [None, 2.0]  # type: ignore[index]
        assert opened.old_sms(1.0, 10) == [4], "it belongs to no job any more"
        assert opened.outbox_size() == (2, 5.0)
        assert {row.digits for row in opened._sms("1 = 1")} == {last_digits("+49*151#2345678")} == {"2345678"}


@pytest.mark.parametrize("number", ["+4915112345678", "12345", "1234567", "*100#", "+1*2#34567890", "0049 171"])
def test_the_store_and_the_ledger_agree_on_the_last_digits(life: Life, number: str) -> None:
    life.sms(1, number=normalise(number))
    assert life.store.sms(1).digits == last_digits(normalise(number)) == last_digits(number)  # type: ignore[union-attr]
