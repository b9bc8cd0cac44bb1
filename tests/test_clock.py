"""Time that goes on evenly while somebody sets the wall clock, and what that means for SMS that expire."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.contract.payloads import timestamp
from bridge.mqtt.link import Incoming
from bridge.store.database import Store
from bridge.system.clock import BELIEVED_S, Clock, SteadyTime

HOUR, DAY = 3600.0, 86400.0
START = 1_800_000_000.0


class Machine(Clock):
    """Its clocks. It was started 5 hours before a test begins."""

    def __init__(self) -> None:
        self.boot = "first"
        self.up = 5 * HOUR
        self.asleep = 0.0
        self.wall = START

    def monotonic(self) -> float:
        return self.up - self.asleep

    def time(self) -> float:
        return self.wall

    def boottime(self) -> float:
        return self.up

    @property
    def boot_id(self) -> str:
        return self.boot

    def wait(self, seconds: float) -> None:
        self.up += seconds
        self.wall += seconds

    def sleep(self, seconds: float) -> None:
        self.asleep += seconds
        self.wait(seconds)

    def restart(self, off: float, *, battery: bool = True) -> None:
        """Without a battery its wall clock stood still while it was off."""
        self.boot += "'"
        self.up = 20.0
        self.wall += off + 20.0 if battery else 0.0


@pytest.fixture
def machine() -> Machine:
    return Machine()


def watch(steady: SteadyTime, machine: Machine, seconds: float) -> None:
    for _ in range(int(seconds)):
        machine.wait(1.0)
        steady.look()


# -- the clock alone


def test_it_begins_as_unix_time_and_goes_on_evenly(machine: Machine) -> None:
    steady = SteadyTime(machine, None, 0)
    assert steady.time() == START
    machine.wait(100.0)
    machine.wall -= DAY
    assert steady.time() == START + 100.0
    machine.sleep(50.0)
    assert steady.time() == START + 150.0


@pytest.mark.parametrize("step", [DAY, -HOUR])
def test_a_process_that_starts_after_the_clock_was_set_goes_on_all_the_same(machine: Machine, step: float) -> None:
    saved = SteadyTime(machine, None, 7).saved()
    machine.wait(30.0)
    machine.wall += step
    again = SteadyTime(machine, saved, 99)
    assert again.time() == START + 30.0
    assert not again.look() or again.pending == pytest.approx(step)


def test_after_a_start_of_the_machine_the_wall_clock_tells_how_long_it_was_off(machine: Machine) -> None:
    saved = SteadyTime(machine, None, 7).saved()
    machine.restart(2 * HOUR)
    steady = SteadyTime(machine, saved, 7)
    assert (steady.time(), steady.off, steady.pending) == (START, 2 * HOUR + 20.0, 2 * HOUR + 20.0)
    watch(steady, machine, BELIEVED_S + 10)
    assert (steady.believed, steady.pending) == (2 * HOUR + 20.0, 0.0)
    assert SteadyTime(machine, steady.saved(), 7).off == 0.0, "only the bridge was started again"


def test_what_is_not_believed_yet_is_known_to_the_next_run_as_well(machine: Machine) -> None:
    saved = SteadyTime(machine, None, 7).saved()
    machine.restart(2 * HOUR)
    first = SteadyTime(machine, saved, 7)
    watch(first, machine, 5)
    second = SteadyTime(machine, first.saved(), 9)
    assert (second.pending, second.off, second.upto) == (2 * HOUR + 20.0, 0.0, 7)
    watch(second, machine, BELIEVED_S + 10)
    assert second.believed == 2 * HOUR + 20.0


def test_a_wrong_clock_stays_wrong_by_as_much_over_a_start_of_the_machine(machine: Machine) -> None:
    steady = SteadyTime(machine, None, 0)
    machine.wall -= HOUR
    watch(steady, machine, BELIEVED_S + 10)
    saved = steady.saved()
    machine.restart(60.0)
    assert SteadyTime(machine, saved, 0).off == pytest.approx(80.0)


def test_it_never_goes_back(machine: Machine) -> None:
    steady = SteadyTime(machine, None, 0)
    machine.wait(1000.0)
    saved, before = steady.saved(), steady.time()
    machine.restart(0.0, battery=False)
    machine.wall -= HOUR
    after = SteadyTime(machine, saved, 0)
    assert (after.time(), after.off) == (before, 0.0)


def test_a_step_forward_is_believed_when_it_stands(machine: Machine) -> None:
    steady = SteadyTime(machine, None, 0)
    watch(steady, machine, 10)
    machine.wall += HOUR
    watch(steady, machine, BELIEVED_S - 5)
    assert (steady.pending, steady.believed) == (pytest.approx(HOUR), 0.0)
    watch(steady, machine, 10)
    assert (steady.pending, steady.believed) == (0.0, pytest.approx(HOUR))
    watch(steady, machine, 1000)
    assert steady.believed == pytest.approx(HOUR), "once"


def test_a_step_that_is_taken_back_was_none(machine: Machine) -> None:
    steady = SteadyTime(machine, None, 0)
    machine.wall += DAY
    watch(steady, machine, BELIEVED_S - 5)
    machine.wall -= DAY
    assert (steady.look(), steady.pending) == (True, 0.0)
    watch(steady, machine, 2 * BELIEVED_S)
    assert steady.believed == 0.0


def test_another_step_has_to_stand_anew(machine: Machine) -> None:
    steady = SteadyTime(machine, None, 0)
    machine.wall += DAY
    watch(steady, machine, BELIEVED_S - 5)
    machine.wall += HOUR - DAY
    watch(steady, machine, BELIEVED_S - 5)
    assert (steady.pending, steady.believed) == (pytest.approx(HOUR), 0.0)
    watch(steady, machine, 10)
    assert steady.believed == pytest.approx(HOUR)


def test_a_step_back_and_small_ones_mean_nothing(machine: Machine) -> None:
    steady = SteadyTime(machine, None, 0)
    for step in (-HOUR, 1.0, -1.5):
        machine.wall += step
        watch(steady, machine, BELIEVED_S + 10)
        assert (steady.pending, steady.believed) == (0.0, 0.0)


def test_the_machine_tells_its_starts_apart() -> None:
    clock = Clock()
    assert clock.boot_id == Clock().boot_id
    assert clock.boottime() >= clock.monotonic() - 1.0


# -- SMS that expire

SETTINGS = Settings(lines={"l": {"password": "p"}})
GATEWAY = ("127.0.0.1", 4000)


class Life:
    """A bridge on a machine. Its gateway registers only when a test says so."""

    def __init__(self, machine: Machine, path: Path) -> None:
        self.machine = machine
        self.path = path
        self.count = 10
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
        self.bridge = Bridge(SETTINGS, self.store, lambda: SETTINGS, self.machine)
        self.bridge._go_on()
        self.bridge.pump()

    def kill(self) -> None:
        self.bridge._commit([], lambda _batch: None)
        self.store.close()

    def queue(self, id: str, ttl_s: float) -> None:
        payload = json.dumps({"id": id, "to": "49" + str(len(id)), "text": id, "ttl_s": ttl_s}).encode()
        self.bridge.received([Incoming("goip/l/cmd/sms", payload, False, False, None, None, 1, 1)])

    def register(self) -> list[str]:
        """The gateway is there; what it is asked to send."""
        self.count += 1
        self.bridge.datagrams_received([(f"req:{self.count};id:l;pass:p;signal:20;".encode(), GATEWAY)])
        return [data.decode() for data, _ in self.bridge.server.take_datagrams() if data.startswith(b"MSG")]

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.machine.wait(1.0)
            self.bridge._second()

    def states(self) -> dict[str, str]:
        return {row.cmd: row.state for row in self.store._sms("1 = 1")}


@pytest.fixture
async def life(machine: Machine, tmp_path: Path) -> AsyncIterator[Life]:
    begun = Life(machine, tmp_path / "bridge.db")
    yield begun
    begun.store.close()


async def test_a_clock_set_wrong_for_a_while_expires_nothing(life: Life) -> None:
    life.queue("a", ttl_s=HOUR)
    life.machine.wall += DAY
    life.wait(BELIEVED_S - 5)
    assert life.states() == {"a": "queued"}
    assert life.register() == [], "should the clock be right it is too late"
    life.machine.wall -= DAY
    life.bridge._second()
    assert [data[:3] for data, _ in life.bridge.server.take_datagrams() if data.startswith(b"MSG")] == [b"MSG"]


async def test_a_clock_that_stays_set_expires_what_is_too_old_by_it(life: Life) -> None:
    life.queue("short", ttl_s=HOUR)
    life.queue("long", ttl_s=3 * DAY)
    life.machine.wall += DAY
    life.wait(BELIEVED_S + 10)
    assert life.states() == {"short": "expired", "long": "queued"}
    assert len(life.register()) == 1


async def test_a_step_back_keeps_nothing_alive(life: Life) -> None:
    life.queue("a", ttl_s=60)
    life.machine.wall -= DAY
    life.wait(70)
    assert life.states() == {"a": "expired"}


async def test_a_restart_after_the_clock_was_set_expires_nothing(life: Life) -> None:
    life.queue("a", ttl_s=HOUR)
    life.kill()
    life.machine.wall += DAY
    life.machine.wait(2.0)
    life.start()
    life.wait(5)
    assert life.states() == {"a": "queued"}
    # A command that comes again is known, whatever the clock says.
    life.queue("a", ttl_s=HOUR)
    assert len(life.states()) == 1


async def test_what_waited_while_the_machine_was_off_expires(life: Life) -> None:
    life.queue("a", ttl_s=HOUR)
    life.kill()
    life.machine.restart(2 * HOUR)
    life.start()
    life.wait(2)
    assert life.register() == []
    life.wait(BELIEVED_S)
    assert life.states() == {"a": "expired"}


async def test_what_is_too_old_waits_also_when_the_bridge_is_killed_soon_after_the_start_of_the_machine(
    life: Life,
) -> None:
    life.queue("a", ttl_s=HOUR)
    life.register()
    life.kill()
    life.machine.restart(2 * HOUR)
    life.start()
    life.wait(2)
    life.kill()
    life.start()
    assert life.register() == []
    life.wait(BELIEVED_S + 10)
    assert life.states() == {"a": "expired"}


async def test_a_machine_that_starts_in_the_wrong_century_expires_nothing(life: Life) -> None:
    life.queue("a", ttl_s=HOUR)
    life.kill()
    life.machine.restart(1e9)
    life.start()
    life.wait(30)
    life.machine.wall -= 1e9
    life.wait(2)
    assert life.states() == {"a": "queued"}
    assert len(life.register()) == 1


async def test_an_absence_of_the_machine_is_told_with_its_length(life: Life) -> None:
    life.kill()
    life.machine.restart(2 * HOUR)
    life.start()
    facts = [json.loads(row.body) for row in life.store.outbox(0, 100) if row.topic == "goip/bridge/event"]
    (gap,) = [fact for fact in facts if fact["event_type"] == "outage_gap"]
    assert (timestamp(START), timestamp(life.machine.wall)) == (gap["from"], gap["to"])


async def test_that_the_machine_was_off_is_told_also_where_no_clock_says_how_long(life: Life) -> None:
    life.kill()
    life.machine.restart(2 * HOUR, battery=False)
    life.start()
    rows = [row for row in life.store.outbox(0, 100) if row.topic == "goip/bridge/event"]
    assert [json.loads(row.body)["event_type"] for row in rows].count("outage_gap") == 1
    life.kill()
    life.start()
    assert [row for row in life.store.outbox(0, 100) if row.topic == "goip/bridge/event"] == rows, "once"


async def test_a_machine_without_a_battery_learns_the_time_from_the_network(life: Life) -> None:
    life.queue("before", ttl_s=HOUR)
    life.kill()
    life.machine.restart(2 * HOUR, battery=False)
    life.start()
    life.queue("after", ttl_s=HOUR)
    life.wait(30)
    life.machine.wall += 2 * HOUR
    life.wait(2)
    assert len(life.register()) == 1, "what came since it started knows its time"
    life.wait(BELIEVED_S)
    assert life.states()["before"] == "expired"


@contextlib.contextmanager
def slow_disk(life: Life, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    """Every commit takes so long."""
    transaction = life.store.transaction

    @contextlib.contextmanager
    def slow() -> Iterator[None]:
        with transaction():
            yield
            life.machine.wait(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(life.store, "transaction", slow)
        yield


async def test_a_send_that_waited_for_a_slow_disk_leaves_once(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.queue("a", ttl_s=HOUR)
    sendid = life.register()[0].split()[1]
    life.bridge.datagrams_received([(f"PASSWORD {sendid}\n".encode(), GATEWAY)])
    life.bridge.server.take_datagrams()
    with slow_disk(life, monkeypatch, 7.0):
        life.bridge.datagrams_received([(f"SEND {sendid}\n".encode(), GATEWAY)])
    life.bridge.server.handle_timer(life.machine.monotonic())
    life.bridge.pump()
    assert [data[:4] for data, _ in life.bridge.server.take_datagrams()] == [b"SEND"]


async def test_a_send_whose_time_was_over_when_the_disk_had_it_does_not_leave(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.queue("a", ttl_s=60)
    sendid = life.register()[0].split()[1]
    life.bridge.datagrams_received([(f"PASSWORD {sendid}\n".encode(), GATEWAY)])
    life.bridge.server.take_datagrams()
    with slow_disk(life, monkeypatch, 61.0):
        life.bridge.datagrams_received([(f"SEND {sendid}\n".encode(), GATEWAY)])
    assert [data[:4] for data, _ in life.bridge.server.take_datagrams()] == [b"DONE"]
    life.wait(1)
    assert life.states() == {"a": "expired"}


async def test_a_machine_that_sleeps_gets_older(life: Life) -> None:
    life.queue("a", ttl_s=HOUR)
    life.machine.sleep(2 * HOUR)
    life.bridge._second()
    assert life.states() == {"a": "expired"}


async def test_numbers_of_an_open_session_expire_while_the_machine_sleeps(life: Life) -> None:
    payload = json.dumps({"id": "job", "to": ["491", "492"], "text": "x", "ttl_s": HOUR}).encode()
    life.bridge.received([Incoming("goip/l/cmd/sms", payload, False, False, None, None, 1, 1)])
    opened = life.register()
    sendid = opened[0].split()[1]
    life.machine.sleep(2 * HOUR)
    life.bridge._second()
    life.bridge.datagrams_received([(f"PASSWORD {sendid}\n".encode(), GATEWAY), (f"SEND {sendid}\n".encode(), GATEWAY)])
    sent = [data for data, _ in life.bridge.server.take_datagrams() if data.startswith(b"SEND")]
    assert sent == []
    assert set(life.states().values()) == {"expired"}


async def test_expires_at_means_the_wall_clock_of_its_sender(life: Life) -> None:
    life.machine.wall -= HOUR
    life.wait(BELIEVED_S + 10)
    payload = json.dumps({"id": "a", "to": "491", "text": "x", "expires_at": life.machine.wall + 60}).encode()
    life.bridge.received([Incoming("goip/l/cmd/sms", payload, False, False, None, None, 1, 1)])
    life.wait(50)
    assert life.states() == {"a": "queued"}
    life.wait(15)
    assert life.states() == {"a": "expired"}


async def test_a_restart_while_a_step_is_in_doubt_sends_nothing_that_may_be_too_old(life: Life) -> None:
    life.queue("a", ttl_s=HOUR)
    life.machine.wall += DAY
    life.wait(30)
    assert life.register() == []
    life.kill()
    life.machine.wait(2.0)
    life.start()
    assert life.register() == []


async def test_a_step_is_believed_once_also_when_the_bridge_dies_then(life: Life) -> None:
    life.queue("a", ttl_s=36 * HOUR)
    life.machine.wall += DAY
    while life.bridge.steady.pending or life.bridge.clock.boottime() < 5 * HOUR + 10:
        life.wait(1)
    life.store.close()
    life.machine.wait(2.0)
    life.start()
    life.wait(BELIEVED_S + 20)
    assert life.states() == {"a": "queued"}


async def test_a_step_costs_nothing_where_no_sms_waits(life: Life) -> None:
    life.store._db.execute("INSERT INTO sqlite_sequence VALUES ('sms', 1000000000)")  # those are long pruned
    life.machine.wall += DAY
    life.wait(1)
    while life.bridge.steady.pending or life.bridge.steady.believed:
        life.wait(1)
    life.wait(1)
    assert not life.bridge._hastening
