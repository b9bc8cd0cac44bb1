"""A disk that is full, read-only, broken, or loses power: at every single write of a short run.

What was acknowledged, to a gateway or to the broker, is on disk before; what was not is whole or was never there; and
when the disk works again the bridge goes on, with nothing lost and nothing double.
"""

import contextlib
import itertools
import json
import logging
import os
import random
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.goip.server import LineMemory
from bridge.mqtt.link import Incoming, Publication
from bridge.store.database import MIGRATIONS, Store, StoreError, StoreUnusable
from bridge.store.reserve import BALLAST_BYTES, Ballast
from bridge.system.clock import Clock
from broker_fixture import Broker
from harness import BridgeProcess, RawLine, bridge_config, raw_line, running, sweep, watching
from reliability import faulty_disk
from reliability.faulty_disk import FULL, IOERR_WRITE, READONLY, Disk

needs_disk = pytest.mark.skipif(faulty_disk.unavailable() is not None, reason=str(faulty_disk.unavailable()))


# -- the store ------------------------------------------------------------------------------------------------

Step = Callable[[Store], object]


def _outbox(store: Store, count: int, size: int) -> None:
    store.add_outbox([("goip/l/sms/in", "sms_in", 60, b"%04d" % n + bytes(size), None, 5.0) for n in range(count)])


def _sms(store: Store, n: int, **columns: Any) -> None:
    store.add_sms(
        msg=f"m{n}", cmd="c", job="j", line="l", number=str(n), text="text" * 20, priority=5,
        guarantee="effectively_once", created=1.0, state="queued", changed=1.0, **columns,
    )  # fmt: skip


def _command(store: Store) -> None:
    store.add_command(
        topic="goip/l/cmd/sms", id="c", payload="{}", minted=False, target="l", path="sms", response_topic=None,
        correlation=b"\0", warnings=[], at=1.0,
    )  # fmt: skip
    store.add_job("j", "c", "l", 3, 1.0)
    for n in range(3):
        _sms(store, n)


def _line(store: Store) -> None:
    store.save_line("l", LineMemory(address=("10.0.0.1", 1), count=1, reboots=0, fields={"signal": "20"}))
    store.move_line("k", LineMemory(address=("10.0.0.2", 1), count=1, reboots=0))


def _received(store: Store) -> None:
    store.add_repeats([(bytes([n]) * 12, "l", float(n)) for n in range(20)])
    store.count("l", "2026-01-01", {"received": 20})
    _outbox(store, 5, 300)


def _journal(store: Store) -> None:
    store.update_sms(1, state="sending", sendid=7, telid=1, changed=2.0)
    store.put("sendids_reserved", 1000)


def _sent(store: Store) -> None:
    store.update_sms(1, state="sent", sms_no=0, changed=3.0)
    store.add_report("l", 0, 0, "1", 3.0)
    store.set_result(1, b"{}")


def _published(store: Store) -> None:
    store.delete_outbox(range(1, 6))
    store.delete_report(1)


def _pruned(store: Store) -> None:
    for n in store.old_repeats(10.0, 100):
        store.delete_repeat(n)
    store.fold_traffic("l", "2026-01-01")
    for n in store.sms_of_job("j", 2):
        store.delete_sms(n)


STEPS: list[Step] = [
    lambda store: store.put("instance", "i"),
    _line,
    _received,
    _command,
    _journal,
    lambda store: _outbox(store, 8, 3000),  # larger than the cache: written before it is committed
    _sent,
    _published,
    lambda store: store.delete_outbox(range(6, 10)),
    _pruned,
    lambda store: store.end_jobs(["j"], 9.0),
]


def open_store(path: Path, checkpoint: int = 12) -> Store:
    """A store where a short run has what otherwise only a long one has: checkpoints, and a cache that overflows."""
    store = Store(path)
    store._db.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
    store._db.execute("PRAGMA cache_size = 10")
    return store


def content(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    db = store._db
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def make(store: Store, step: Step) -> None:
    """One transaction."""
    with store.transaction():
        step(store)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new store."""
    path = tmp_path_factory.mktemp("template") / "bridge.db"
    Store(path).close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[tuple[Any, ...]]]]:
    """What is in the store after none, one, … and all of the steps."""
    with contextlib.closing(open_store(tmp_path_factory.mktemp("expected") / "bridge.db")) as store:
        contents = [content(store)]
        for step in STEPS:
            make(store, step)
            contents.append(content(store))
    return contents


@contextlib.contextmanager
def placed(directory: Path, template: bytes) -> Iterator[Path]:
    """A copy of the new store, in a folder of its own that does not stay."""
    place = directory / "disk"
    place.mkdir()
    (place / "bridge.db").write_bytes(template)
    yield place / "bridge.db"
    shutil.rmtree(place)


def read_back(disk: Disk, path: Path, chance: random.Random | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """After a power failure."""
    disk.power_on(chance)
    with contextlib.closing(Store(path)) as store:
        return content(store)


@needs_disk
@pytest.mark.parametrize(
    ("code", "sticky"),
    [(IOERR_WRITE, False), (FULL, True), (READONLY, True)],
    ids=["io_error_once", "full_until_healed", "read_only_until_healed"],
)
def test_a_transaction_whose_write_fails_was_never_there_and_the_store_goes_on(
    tmp_path: Path, template: bytes, expected: list[Any], code: int, sticky: bool
) -> None:
    for n in range(1, 1000):
        crash: tuple[dict[str, bytes], list[Any]] | None = None
        with placed(tmp_path, template) as path, Disk() as disk:
            with contextlib.closing(open_store(path)) as store:
                disk.fail(n, code, sticky=sticky)
                for done, step in enumerate(STEPS):
                    try:
                        make(store, step)
                    except StoreError:
                        assert content(store) == expected[done]
                        whole = expected[done : done + 2] if disk.last_failed == "sync" else [expected[done]]
                        crash = {file.name: file.read_bytes() for file in path.parent.iterdir()}, whole
                        if sticky:
                            with pytest.raises(StoreError):
                                make(store, step)
                        disk.heal()
                        make(store, step)
                    assert content(store) == expected[done + 1]
                disk.heal()
                disk.cut_power()
            assert read_back(disk, path) == expected[-1]
        if crash is not None:
            assert _after_a_crash(tmp_path, crash[0]) in crash[1]
        if not disk.failed:
            assert n > 100, "the run was shorter than meant"
            return
    pytest.fail("the run does not end")


def _after_a_crash(directory: Path, files: dict[str, bytes]) -> dict[str, list[tuple[Any, ...]]]:
    """What is in the store if the process ended right after the failure: it may be whole if only the sync failed."""
    place = directory / "crashed"
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    with contextlib.closing(Store(place / "bridge.db")) as store:
        found = content(store)
    shutil.rmtree(place)
    return found


@needs_disk
@pytest.mark.parametrize("seed", [None, 1], ids=["nothing_unsynced", "torn"])
def test_what_was_committed_is_there_after_a_power_failure_at_any_write(
    tmp_path: Path, template: bytes, expected: list[Any], seed: int | None
) -> None:
    for n in range(1, 1000):
        with placed(tmp_path, template) as path, Disk() as disk:
            committed = 0
            with contextlib.closing(open_store(path)) as store:
                disk.fail(n)
                with contextlib.suppress(StoreError):
                    for step in STEPS:
                        make(store, step)
                        committed += 1
                        if disk.off:
                            break
                disk.cut_power()
            found = read_back(disk, path, None if seed is None else random.Random(f"{seed} {n}"))
            whole = [committed] if seed is None else [committed, min(committed + 1, len(STEPS))]
            assert found in [expected[count] for count in whole]
            with contextlib.closing(open_store(path)) as store:
                for step in STEPS[expected.index(found) :]:
                    make(store, step)
                assert content(store) == expected[-1]
            if not disk.failed:
                return
    pytest.fail("the run does not end")


@needs_disk
@pytest.mark.parametrize("code", [None, IOERR_WRITE, FULL], ids=["power", "io_error", "full"])
def test_a_store_whose_making_failed_at_any_write_is_made_the_next_time(
    tmp_path: Path, expected: list[Any], code: int | None
) -> None:
    for n in range(1, 1000):
        with placed(tmp_path, b"") as path, Disk() as disk:
            path.unlink()
            disk.fail(n, code, sticky=True)
            with contextlib.suppress(StoreUnusable):
                Store(path).close()
            if code is None:
                disk.cut_power()
                disk.power_on(random.Random(n))
            disk.heal()
            with contextlib.closing(open_store(path)) as store:
                assert store._db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
                make(store, STEPS[0])
                assert content(store) == expected[1]
            if not disk.failed:
                return
    pytest.fail("it does not end")


@needs_disk
def test_this_disk_loses_what_is_not_synced(tmp_path: Path, template: bytes, expected: list[Any]) -> None:
    """Else the tests above would show nothing."""
    with placed(tmp_path, template) as path, Disk() as disk:
        with contextlib.closing(open_store(path)) as store:
            store._db.execute("PRAGMA synchronous = OFF")
            make(store, STEPS[0])
            disk.cut_power()
        assert read_back(disk, path) == expected[0]


# -- the bridge -----------------------------------------------------------------------------------------------

ADDRESS = ("10.0.0.1", 10991)
COMMANDS = [b'{"id":"one","to":"11","text":"x"}', b'{"to":["21","22"],"text":"y"}']
NUMBERS = ["11", "21", "22"]
SETTINGS = Settings(lines={"l": {"password": "p"}})
TOPIC = "goip/l/cmd/sms"


class FakeClock(Clock):
    """Time goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000 + self.now

    def boottime(self) -> float:
        return self.now

    @property
    def boot_id(self) -> str:
        return "test"


class World:
    """A gateway with one line, a broker, and between them a bridge that can lose its power.

    All three live on one thread. What the bridge says after the power failed is not heard.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self.disk = disk
        self.path = path
        self.clock = FakeClock()
        # the gateway
        self.count = 0
        self.radio: list[str] = []
        "Numbers that the network got an SMS for."
        self.sends: set[str] = set()
        "Numbers of which a SEND left the bridge."
        self.events = {b"RECEIVE %d" % n: b"srcnum:1;msg:same text" for n in (901, 902)}
        "What the gateway has to tell."
        self.told: set[bytes] = set()
        "What it told this run of the bridge: once, for what reached the bridge must not be lost."
        self.acknowledged: set[bytes] = set()
        self.outcomes: dict[tuple[bytes, bytes], int] = {}
        "The sms_no by sendid and telid."
        self.answers: list[bytes] = []
        # the broker
        self.commands = list(COMMANDS)
        "Not acknowledged."
        self.given: list[bytes] = []
        "Commands given to the bridge on this connection; others of `redelivered` on an earlier one."
        self.redelivered: set[bytes] = set()
        self.facts: dict[str, dict[str, Any]] = {}
        "What was published, by id."
        self.results: list[dict[str, Any]] = []
        self.confirmed: set[str] = set()
        "Ids of which the bridge got the PUBACK."
        self.in_flight: dict[int, bytes] = {}
        self.tokens = 0
        # the bridge, as its `udp` and its `link`
        self.connected = self.retains = True
        self.mute_s = 0.0
        self.probed = False
        self.room = 1000
        self.sent = self.send_failures = self.kernel_drops = 0
        self.identity, self.inherited = "a socket", False
        self.runs = 0
        self.store: Store | None = None
        self.bridge: Bridge | None = None

    # the bridge's side

    def send(self, datagram: bytes, _address: object) -> None:
        """What the bridge sends to the gateway, which answers in the next round."""
        if self.disk.off:
            return
        words = datagram.split()
        match words[0]:
            case b"RECEIVE" | b"DELIVER":
                self.acknowledged.add(b" ".join(words[:2]))
            case b"MSG":
                self.answers.append(b"PASSWORD %b\n" % words[1])
            case b"PASSWORD":
                self.answers.append(b"SEND %b\n" % words[1])
            case b"SEND":
                self.sends.add(words[3].decode())
                self._submit(words[1], words[2], words[3].decode())
            case b"DONE":
                self.answers.append(datagram)

    def _submit(self, sendid: bytes, telid: bytes, number: str) -> None:
        if (sendid, telid) not in self.outcomes:
            self.radio.append(number)
            sms_no = self.outcomes[sendid, telid] = len(self.radio)
            self.events[b"DELIVER %d" % sms_no] = f"sms_no:{sms_no};state:0;num:{number}".encode()
        self.answers.append(b"WAIT %b %b\n" % (sendid, telid))
        self.answers.append(b"OK %b %b %d\n" % (sendid, telid, self.outcomes[sendid, telid]))

    def publish(self, publication: Publication) -> int | None:
        if self.disk.off:
            return None
        self.tokens += 1
        self.in_flight[self.tokens] = publication.payload
        if not publication.retain:
            payload = json.loads(publication.payload)
            if publication.schema == "result":
                self.results.append(payload)
            else:
                self.facts[payload["id"]] = payload
        return self.tokens

    def acknowledge(self, message: Incoming) -> None:
        if not self.disk.off and message.payload in self.commands:
            self.commands.remove(message.payload)

    def probe(self) -> None:
        self.probed = True

    def pause(self, *, on: bool) -> None:
        pass

    # the life of the bridge

    def start(self) -> None:
        """Until the start works: a supervisor starts it again."""
        while self.bridge is None:
            try:
                self.store = open_store(self.path, checkpoint=40)
                self.bridge = Bridge(SETTINGS, self.store, lambda: SETTINGS, self.clock)
            except (StoreError, StoreUnusable):
                self.stop()
                if self.disk.off:
                    return
                self.disk.heal()
        self.bridge.udp = self.bridge.link = self.bridge.publisher.link = self  # type: ignore[assignment]
        self.in_flight.clear()
        self.redelivered |= set(self.given)
        self.given.clear()
        self.answers.clear()
        self.runs += 1
        self.told.clear()  # all of it again: of the last acknowledgements nobody knows whether they arrived
        self.bridge._go_on()
        self.bridge.connected(session_present=True, version="5")
        self.bridge.pump()

    def stop(self) -> None:
        if self.store is not None:
            self.store.close()
        self.store = self.bridge = None

    def round(self) -> None:
        """Everybody says what there is to say; then a second passes, or half a minute when nothing happens."""
        bridge = self.bridge
        assert bridge is not None
        before = self.promises()
        self.count += 1
        datagrams = [b"req:%d;id:l;pass:p;signal:20;gsm_status:LOGIN;" % self.count, *self.answers]
        self.answers.clear()
        untold = [head for head in self.events if head not in self.told]
        for head in untold if self.runs > 1 else untold[:1]:
            datagrams.append(head.replace(b" ", b":") + b";id:l;password:p;" + self.events[head])
            self.told.add(head)
        bridge.datagrams_received([(data, ADDRESS) for data in datagrams])
        if fresh := [payload for payload in self.commands if payload not in self.given][:1]:
            self.given += fresh
            bridge.received(
                [Incoming(TOPIC, one, False, one in self.redelivered, None, None, self.count, 1) for one in fresh]
            )
        if self.probed and not self.disk.off:
            self.probed = False
            bridge.proved(self.clock.monotonic())
        taken, self.in_flight = self.in_flight, {}
        for payload in taken.values():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self.confirmed.add(json.loads(payload)["id"])
        bridge.published([(token, 0) for token in taken])
        self.clock.now += 30.0 if not untold and before == self.promises() else 1.0
        bridge._second()
        bridge._on_timer()

    def promises(self) -> tuple[set[bytes], set[str], int]:
        """What the bridge said that must be on disk."""
        return set(self.acknowledged), set(self.sends), len(self.commands)

    def check_kept(self, store: Store) -> None:
        """All that was promised is in a store that was found after a power failure."""
        told = [json.loads(row.body) for row in store.outbox(0, 1000) if not row.copy_of]
        kept = {fact["id"] for fact in told} | self.confirmed
        assert self.facts.keys() <= kept, "published, and not on disk"
        received = {fact["recvid"] for fact in [*told, *self.facts.values()] if "recvid" in fact}
        assert {int(head[8:]) for head in self.acknowledged if head.startswith(b"RECEIVE")} <= received
        accepted = {json.loads(payload)["text"] for payload in COMMANDS if payload not in self.commands}
        rows = content(store)["sms"]
        assert accepted <= {store.sms(row[0]).text for row in rows}  # type: ignore[union-attr]
        journal = {sms.number for row in rows if (sms := store.sms(row[0])) is not None and sms.state != "queued"}
        assert self.sends <= journal, "a SEND left without its journal entry"

    def waiting(self) -> list[object]:
        """What is not done yet, anywhere."""
        if self.store is None or self.bridge is None or self.count < 3:
            return ["everything"]
        unsaid = self.events.keys() - (self.acknowledged & self.told)
        states = [self.store.queue_counts(), self.store.outbox_size()[0], unsaid, self.commands, self.bridge._stalled]
        return [state for state in states if state]

    def check_end(self, doubt: bool) -> None:
        """Nothing is lost and nothing is double; with doubt, an SMS may be `unknown`."""
        assert self.store is not None
        heard = [fact["recvid"] for fact in self.facts.values() if "recvid" in fact]
        assert sorted(heard) == [901, 902], "inbound SMS: each is published, under one id"
        states = {row.number: row.state for n in range(1, 10) if (row := self.store.sms(n)) is not None}
        assert sorted(states) == NUMBERS
        for number, state in states.items():
            if doubt and state == "unknown":
                assert self.radio.count(number) <= 1
            else:
                assert (state, self.radio.count(number)) == ("delivered", 1)
        told = [(fact["msg"], fact["event_type"]) for fact in self.facts.values() if "msg" in fact]
        assert len(told) == len(set(told)), "every step of an SMS is told under one id"
        assert {result["code"] for result in self.results} == {"ok"}
        assert "store_restored" not in {fact["event_type"] for fact in self.facts.values()}


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand disks fail."""
    caplog.set_level(logging.CRITICAL, "bridge")


@contextlib.contextmanager
def world_on(disk: Disk, path: Path) -> Iterator[World]:
    world = World(disk, path)
    try:
        yield world
    finally:
        world.stop()


@needs_disk
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(
    ("code", "sticky"), [(IOERR_WRITE, False), (FULL, True)], ids=["io_error_once", "full_until_healed"]
)
async def test_a_failed_write_makes_the_bridge_promise_nothing_until_the_disk_works(
    tmp_path: Path, template: bytes, code: int, sticky: bool
) -> None:
    stalls = 0
    for n in range(1, 2000):
        with placed(tmp_path, template) as path, Disk() as disk, world_on(disk, path) as world:
            disk.fail(n, code, sticky=sticky)
            world.start()
            while waiting := world.waiting():
                assert world.count < 50, f"{n}: {waiting} for ever"
                assert world.bridge is not None
                if world.bridge._stalled:
                    stalls += 1
                    before = world.promises()
                    world.round()
                    assert world.promises() == before
                    disk.heal()
                    world.bridge._try_again()
                world.round()
            world.check_end(doubt=False)
        if not disk.failed:
            assert stalls > 100
            return
    pytest.fail("the run does not end")


@needs_disk
@pytest.mark.usefixtures("_quiet")
async def test_what_the_bridge_promised_is_kept_after_a_power_failure_at_any_write(
    tmp_path: Path, template: bytes
) -> None:
    for n in range(1, 2000):
        with placed(tmp_path, template) as path, Disk() as disk, world_on(disk, path) as world:
            disk.fail(n)
            world.start()
            while world.bridge is not None and world.waiting() and not disk.off:
                world.round()
            world.stop()
            disk.cut_power()
            disk.power_on(random.Random(n) if n % 2 else None)
            with contextlib.closing(Store(path)) as store:
                world.check_kept(store)
            world.start()
            while waiting := world.waiting():
                assert world.count < 50, f"{n}: {waiting} for ever"
                world.round()
            world.check_end(doubt=True)
        if not disk.failed:
            return
    pytest.fail("the run does not end")


# -- damage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store in use."""
    path = tmp_path_factory.mktemp("filled") / "bridge.db"
    with contextlib.closing(Store(path)) as store, store.transaction():
        for step in STEPS[:6]:
            step(store)
        for n in range(10, 200):
            _sms(store, n)
    return path.read_bytes()


@pytest.mark.parametrize("length", [16, 4096], ids=["the_head_of_a_page", "a_whole_page"])
def test_a_store_with_a_damaged_page_is_refused_with_advice(tmp_path: Path, filled: bytes, length: int) -> None:
    path = tmp_path / "bridge.db"
    for begin in range(0, len(filled), 4096):
        path.write_bytes(filled[:begin] + b"\xaa" * length + filled[begin + length :])
        with pytest.raises(StoreUnusable, match=r"bridge\.db: .*; it is .*damaged: .*restore a backup"):
            Store(path)
        (tmp_path / "bridge.db-epoch").unlink(missing_ok=True)


def test_an_epoch_file_that_cannot_be_written_makes_no_store_look_restored(tmp_path: Path) -> None:
    """Nor one that was not written yet when the process died."""
    path = tmp_path / "bridge.db"
    for writes_it in (False, True):
        with contextlib.closing(Store(path)) as store:
            assert not store.restored
            make(store, lambda store: store.advance_epoch())
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            try:
                if writes_it:
                    store.witness_epoch()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with contextlib.closing(Store(path)) as store:
        assert not store.restored


# -- space held for a full disk --------------------------------------------------------------------------------


class Disks:
    """How much room there is, as `os.statvfs` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 100 * BALLAST_BYTES
        monkeypatch.setattr("bridge.store.reserve._free", lambda _path: self.free)


def test_the_ballast_is_given_up_once_and_made_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, path = Disks(monkeypatch), tmp_path / "bridge.db-ballast"
    with contextlib.closing(Store(tmp_path / "bridge.db", ballast=True)) as store:
        assert path.stat().st_blocks * 512 >= BALLAST_BYTES
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        disk.free = 0
        with pytest.raises(StoreError, match="full"), store.transaction():
            store.put("a", "x" * 100_000)
        assert store.low
        assert path.stat().st_size == 0
        store._db.execute("PRAGMA max_page_count = 1000000")
        disk.free = 2 * BALLAST_BYTES - 1  # the space it was itself, and not as much again
        make(store, lambda store: store.put("a", "x" * 100_000))
        assert store.low
    with contextlib.closing(Store(tmp_path / "bridge.db", ballast=True)) as store:
        assert store.low, "a restart changes nothing"
        disk.free = 2 * BALLAST_BYTES
        make(store, lambda store: store.put("a", 1))
        assert not store.low
        assert path.stat().st_blocks * 512 >= BALLAST_BYTES


def test_a_store_can_be_opened_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, "size=24m") as disk:
        Store(disk / "bridge.db", ballast=True).close()
        fill(disk)
        with contextlib.closing(Store(disk / "bridge.db", ballast=True)) as store:
            make(store, lambda store: store.put("a", 1))
            assert store.low


def test_without_room_for_ballast_there_is_none_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disks(monkeypatch).free = BALLAST_BYTES
    with contextlib.closing(Store(tmp_path / "bridge.db", ballast=True)) as store:
        assert not store.low
    assert not (tmp_path / "bridge.db-ballast").exists()


def test_ballast_that_cannot_be_made_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    ballast = Ballast(tmp_path / "ballast")
    ballast.take()
    assert not ballast.spent
    assert not (tmp_path / "ballast").exists()
    assert "Operation not supported" in caplog.text


async def test_while_the_disk_is_full_commands_are_refused_and_sms_taken(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "bridge.db", ballast=True)) as store:
        bridge = Bridge(SETTINGS, store, lambda: SETTINGS)
        bridge.received([Incoming(TOPIC, COMMANDS[0], False, False, None, None, 1, 1)])
        assert store._ballast is not None
        store._ballast.spent = True
        store._ballast.take = lambda: None  # type: ignore[method-assign]
        bridge.received([Incoming(TOPIC, payload, False, False, None, None, 1, 1) for payload in COMMANDS])
        bridge.datagrams_received([(b"RECEIVE:7;id:l;password:p;srcnum:1;msg:x", ADDRESS)])
        told = [json.loads(row.body) for row in store.outbox(0, 100) if not row.copy_of]
    results = [(fact["code"], fact["retryable"], fact["duplicate"]) for fact in told if "code" in fact]
    assert results == [("ok", False, False), ("ok", False, True), ("storage", True, False)]
    assert [fact["recvid"] for fact in told if "recvid" in fact] == [7]


# -- the bridge as a process, on real disks --------------------------------------------------------------------

_numbers = itertools.count(1)


@contextlib.contextmanager
def small_disk(directory: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory."""
    place = directory / f"disk{next(_numbers)}"
    place.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True, check=False
    )
    if mounting.returncode:
        why = mounting.stderr.partition("\n")[0].rpartition(": ")[2]  # without the path, which is another one each time
        pytest.skip(f"file systems can't be mounted here: {why}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Somebody else needs all the space."""
    with contextlib.suppress(OSError), (disk / "other").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return disk / "other"


def offline_config(store: Path) -> dict[str, Any]:
    """A bridge without a broker."""
    return bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:1"}, store={"path": str(store)})


async def deliver(line: RawLine, text: str) -> None:
    """An inbound SMS, repeated as boxes do until it is acknowledged."""
    datagram = line.event("RECEIVE", f"srcnum:1;msg:{text}")
    for _ in range(4):
        with contextlib.suppress(TimeoutError):
            answer = await line.ask(datagram, 3.0)
            while not answer.startswith(b"RECEIVE %d " % line.recvid):  # an earlier one, acknowledged twice
                answer = await line.receive(3.0)
            return
    raise AssertionError("the box would have given up")


@pytest.fixture
async def _swept(broker: Broker) -> AsyncIterator[None]:
    yield
    await sweep(broker)


@contextlib.asynccontextmanager
async def connected(broker: Broker, directory: Path, store: Path) -> AsyncIterator[tuple[Any, BridgeProcess, RawLine]]:
    id = f"d{os.getpid()}-{next(_numbers)}"
    config = bridge_config(broker, "goip", {id: {"password": "password1"}}, store={"path": str(store)})
    config["instance"] = id
    async with watching(broker, f"goip/{id}/#") as watcher, running(directory, config) as bridge:
        with raw_line(bridge.udp_port, id) as line:
            await line.register()
            yield watcher, bridge, line


@pytest.mark.usefixtures("_swept")
async def test_on_a_full_disk_inbound_sms_are_taken_and_commands_refused_until_there_is_room(
    broker: Broker, tmp_path: Path
) -> None:
    with small_disk(tmp_path, "size=24m") as disk:
        ballast = disk / "bridge.db-ballast"
        async with connected(broker, tmp_path, disk / "bridge.db") as (watcher, bridge, line):
            await deliver(line, "before")
            assert ballast.stat().st_size == BALLAST_BYTES
            other = fill(disk)
            texts = [f"during {n}" for n in range(30)]
            for text in texts:
                await deliver(line, text)
            assert "is given up" in bridge.log
            topic = f"goip/{line.id}/cmd/sms"
            await watcher.publish(topic, {"id": "refused", "to": "1", "text": "x"})
            refused = await watcher.until(f"goip/{line.id}/result/sms", lambda seen: seen.json["id"] == "refused")
            assert (refused.json["code"], refused.json["retryable"]) == ("storage", True)
            await bridge.kill()
            await bridge.start()
            await line.register()
            await deliver(line, "after a restart")
            assert bridge.log.count("is given up") == 1
            other.unlink()
            await deliver(line, "with room")
            await bridge.logged("has room again")
            assert ballast.stat().st_size == BALLAST_BYTES
            await watcher.publish(topic, {"id": "taken", "to": "1", "text": "x"})
            taken = await watcher.until(f"goip/{line.id}/result/sms", lambda seen: seen.json["id"] == "taken")
            assert taken.json["code"] == "ok"
            expected = ["before", *texts, "after a restart", "with room"]
            await watcher.until(f"goip/{line.id}/sms/in", lambda seen: seen.json["text"] == "with room")
            ids = {seen.json["id"]: seen.json["text"] for seen in watcher.on(f"goip/{line.id}/sms/in")}
            assert sorted(ids.values()) == sorted(expected)
            assert "was restored" not in bridge.log


@pytest.mark.usefixtures("_swept")
async def test_a_start_on_a_full_disk_keeps_the_lines_and_goes_on_when_there_is_room(
    broker: Broker, tmp_path: Path
) -> None:
    """The disk is too small for a reserve, so nothing can be written at all."""
    with small_disk(tmp_path, "size=4m") as disk:
        async with connected(broker, tmp_path, disk / "bridge.db") as (watcher, bridge, line):
            await deliver(line, "before")
            await bridge.kill()
            url = bridge.config["mqtt"]["url"]
            bridge.config["mqtt"]["url"] = "mqtt://127.0.0.1:1"
            await bridge.start()
            await line.register()
            await deliver(line, "without a broker")
            await bridge.kill()
            bridge.config["mqtt"]["url"] = url
            other = fill(disk)
            await bridge.start()
            await bridge.logged("Nothing is acknowledged until it can be written")
            await line.register()
            await watcher.until(f"goip/{line.id}/sms/in", lambda seen: seen.json["text"] == "without a broker")
            line.send(line.event("RECEIVE", "srcnum:1;msg:on a full disk"))
            topic = f"goip/{line.id}/cmd/sms"
            await watcher.publish(topic, {"id": "waits", "to": "1", "text": "x"})
            await line.register()  # so both had their time
            assert line.nothing_waits()
            other.unlink()
            await bridge.logged("can be written again: going on")
            result = await watcher.until(f"goip/{line.id}/result/sms", lambda seen: seen.json["id"] == "waits")
            assert result.json["code"] == "ok"
            await watcher.until(f"goip/{line.id}/sms/in", lambda seen: seen.json["text"] == "on a full disk")
            asked = [await line.receive(), await line.receive()]
            assert sorted(word.split()[0] for word in asked) == [b"MSG", b"RECEIVE"]
            assert len({seen.json["id"] for seen in watcher.on(f"goip/{line.id}/sms/in")}) == 3
            assert bridge.log.count("ERROR") == 1
            assert "Traceback" not in bridge.log


async def test_a_new_store_on_a_full_disk_ends_the_start_with_one_message(tmp_path: Path) -> None:
    with small_disk(tmp_path, "size=4m") as disk:
        fill(disk)
        await _refused(tmp_path, disk / "bridge.db", "free space on its disk")


@pytest.mark.broker("binary")
async def test_a_start_on_a_full_disk_has_its_embedded_broker(tmp_path: Path) -> None:
    with small_disk(tmp_path, "size=4m") as disk:
        config = bridge_config(None, "goip", store={"path": str(disk / "bridge.db")})
        async with running(tmp_path, config) as bridge:
            await bridge.logged("connected to mqtt://127.0.0.1")
            assert await bridge.stop() == 0
            fill(disk)
            await bridge.start()
            await bridge.logged("Nothing is acknowledged until it can be written")
            with raw_line(bridge.udp_port) as line:
                await line.register()
            assert bridge.log.count("embedded broker (mosquitto)") == 2


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
async def test_a_store_on_a_read_only_disk_ends_the_start_with_one_message(tmp_path: Path, existing: bool) -> None:
    with small_disk(tmp_path, "size=24m") as disk:
        if existing:
            Store(disk / "bridge.db").close()
        make_read_only(disk)
        await _refused(tmp_path, disk / "bridge.db", "can be written")


async def test_a_damaged_store_ends_the_start_with_one_message(tmp_path: Path, filled: bytes) -> None:
    path = tmp_path / "bridge.db"
    middle = len(filled) // 2
    path.write_bytes(filled[:middle] + b"\xaa" * 8192 + filled[middle + 8192 :])
    await _refused(tmp_path, path, "restore a backup")


async def _refused(directory: Path, path: Path, advice: str) -> None:
    """The start ends with 1 and one line that says which file and what to do."""
    bridge = BridgeProcess(directory, offline_config(path))
    await bridge.start()
    assert await bridge.ended() == 1, bridge.log
    errors = [line for line in bridge.log.splitlines() if str(path) in line]
    assert len(errors) == 1, bridge.log
    assert advice in errors[0]
    assert "Traceback" not in bridge.log


async def test_the_torn_end_of_a_log_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    async with running(tmp_path, offline_config(path)) as bridge:
        with raw_line(bridge.udp_port) as line:
            await line.register()
            datagram = line.event("RECEIVE", "srcnum:1;msg:kept")
            first = await line.ask(datagram)
            await bridge.kill()
            wal = tmp_path / "bridge.db-wal"
            content = wal.read_bytes()
            wal.write_bytes(content + content[32 : 32 + 2 * 4120 + 1000])  # a transaction that was being written
            await bridge.start()
            await line.register()
            assert await line.ask(datagram) == first
        assert await bridge.stop() == 0
        assert "ERROR" not in bridge.log
    with contextlib.closing(sqlite3.connect(path)) as db:
        bodies = [
            json.loads(body)
            for (body,) in db.execute("SELECT body FROM outbox WHERE schema = 'sms_in' AND copy_of = 0")
        ]
    assert [body["text"] for body in bodies] == ["kept"]
