"""Our SMS server against the simulated boxes, over a network that loses, repeats, delays and reorders.

No sockets and no waiting: hours pass in seconds. What the simulated modems wrote down is the truth that the server's
events are held against. Every run is decided by its seed, which a failure prints.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bridge.goip import events
from bridge.goip.server import LineConfig, SmsServer
from bridge.goip.session import Recipient
from bridge.goip.timing import Timing
from bridge.sim.gateway import SimulatedGateway
from bridge.sim.network import Faults, Network
from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.world import Record, World

START = 1_700_000_000.0
SERVER = ("192.0.2.1", 44444)
HOST = "192.0.2.10"

CLEAN = Faults()
LAN = Faults(loss=0.01, duplicate=0.001, delay=(0.0, 0.05))
BAD = Faults(loss=0.1, duplicate=0.05, reorder=0.1, delay=(0.0, 0.5))
TERRIBLE = Faults(loss=0.3, duplicate=0.05, reorder=0.2, delay=(0.0, 1.0))


class Field:
    """One box, one server, the network between them, and an owner who keeps the queue and the journal."""

    def __init__(
        self, seed: int, faults: Faults, *, profile: str = "spec", lines: int = 8, repeat: bool = True, **options: Any
    ) -> None:
        self.rng = random.Random(seed)
        self.network = Network(faults, random.Random(seed + 1))
        self.world = World(random.Random(seed + 2))
        each = replace(LineOptions(profile=PROFILES[profile], reports=0.0, password="pw%d"), **options)
        self.gateway = SimulatedGateway([each.numbered(n) for n in range(1, lines + 1)], self.world)
        configs = [LineConfig(name=line.id, goip_id=line.id, password=line.options.password) for line in self.boxes]
        self.server = SmsServer(configs, Timing(), next_sendid=int(START) + 2**20, now=START)
        self.now = START
        self.repeat = repeat
        self._on_its_way: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.radio: list[Record] = []
        self.events: list[events.Event] = []
        self.arrived: set[tuple[str, bytes]] = set()
        "RECEIVE datagrams that reached the server, by line."
        self.queued: dict[str, list[int]] = {line.id: [] for line in self.boxes}
        self.state: dict[int, str] = {}
        self.number: dict[int, str] = {}
        for line in self.boxes:
            line.power_on(START + self.rng.random())

    @property
    def boxes(self) -> Any:
        return self.gateway.lines

    # -- the owner

    def queue_sms(self, line: str, count: int) -> None:
        for _ in range(count):
            msg = len(self.state) + 1
            self.state[msg], self.number[msg] = "queued", f"+49{msg:08d}"
            self.queued[line].append(msg)

    def _feed(self, line: str) -> None:
        known = self.server.line(line)
        if known is not None and known.ready and self.queued[line]:
            batch = self.queued[line][: self.rng.randint(1, 5)]
            recipients = [Recipient(msg, self.number[msg], self.repeat) for msg in batch]
            self.server.send_sms(line, "hello", recipients, self.now)

    def _take(self, event: events.Event) -> None:
        match event:
            case events.SmsSending(msg=msg, line=line):
                assert self.state[msg] == "queued"
                self.state[msg] = "sending"
                self.queued[line].remove(msg)
            case events.SmsSent(msg=msg):
                assert self.state[msg] in ("sending", "unknown")
                self.state[msg] = "sent"
            case events.SmsFailed(msg=msg):
                assert self.state[msg] in ("sending", "unknown")
                self.state[msg] = "failed"
            case events.SmsUnknown(msg=msg):
                assert self.state[msg] == "sending"
                self.state[msg] = "unknown"
            case events.SmsRequeued(msg=msg, line=line):
                if self.state[msg] == "sending":
                    self.queued[line].insert(0, msg)
                self.state[msg] = "queued"

    # -- time and the network

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._on_its_way, (when, next(self._order), action))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Time passes, and everything takes its course."""
        end = self.now + seconds
        while not until():
            self._pump()
            heads = [self.world.deadline(), self.server.deadline(), self._on_its_way and self._on_its_way[0][0]]
            self.now = max(self.now, min((head for head in heads if head), default=end))
            if self.now >= end:
                self.now = end
                return
            self.world.run_due(self.now)
            while self._on_its_way and self._on_its_way[0][0] <= self.now:
                heapq.heappop(self._on_its_way)[2]()
            self.server.handle_timer(self.now)

    def _pump(self) -> None:
        while taken := self.server.take_events():
            self.events += taken
            for event in taken:
                self._take(event)
            for line in {event.line for event in taken if isinstance(event, events.LineReady)}:
                self._feed(line)
        for data, address in self.server.take_datagrams():
            line = self.boxes[address[1] - 10991]
            for delay, copy in self.network.carry(data):
                self.at(self.now + delay, lambda line=line, copy=copy: self._at_box(line, copy))
        for datagram in self.world.take_datagrams():
            line = next(line for line in self.boxes if line.id == datagram.line)
            for delay, copy in self.network.carry(datagram.data):
                self.at(self.now + delay, lambda line=line, copy=copy: self._at_server(line, copy))
        self.radio += self.world.take_records()

    def _at_box(self, line: Any, data: bytes) -> None:
        line.receive_datagram(data, SERVER, self.now)

    def _at_server(self, line: Any, data: bytes) -> None:
        if data.startswith(b"RECEIVE"):
            self.arrived.add((line.id, data))
        self.server.receive_datagram(data, (HOST, 10991 + line.channel), self.now)

    def finish(self) -> None:
        """Until every SMS has its outcome, and late answers have had their time."""
        for line in self.queued:
            self._feed(line)
        self.run(48 * 3600, lambda: not any(state in ("queued", "sending") for state in self.state.values()))
        self.run(600)

    # -- what is true

    @property
    def submissions(self) -> Counter[str]:
        """How often the modems really sent, by number."""
        return Counter(str(r["to"]) for r in self.radio if r["what"] == "submit" and r["result"] == "ok")

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def check_outcomes(field: Field, *, twice: bool = False) -> None:
    submitted = field.submissions
    for msg, state in field.state.items():
        count = submitted[field.number[msg]]
        assert state in ("sent", "failed", "unknown"), f"SMS {msg} has no end: {state}"
        assert twice or count <= 1, f"SMS {msg} was sent {count} times"
        assert state != "sent" or count >= 1, f"SMS {msg} is said to be sent, and never was"
        assert state != "failed" or count == 0, f"SMS {msg} is said to have failed, and was sent"


@pytest.fixture(params=range(3))
def seed(request: pytest.FixtureRequest) -> int:
    print(f"seed {request.param}")
    return int(request.param)


@pytest.mark.parametrize("faults", [CLEAN, LAN, BAD, TERRIBLE], ids=["clean", "lan", "bad", "terrible"])
def test_no_sms_is_sent_twice_and_no_outcome_is_a_lie(seed, faults):
    field = Field(seed, faults, radio_errors=0.05)
    for line in field.queued:
        field.queue_sms(line, 60)
    field.finish()
    check_outcomes(field)


@pytest.mark.parametrize(("faults", "share"), [(CLEAN, 0.0), (LAN, 0.02), (BAD, 0.15)], ids=["clean", "lan", "bad"])
def test_doubt_is_bounded_by_what_the_network_loses(seed, faults, share):
    field = Field(seed, faults)
    for line in field.queued:
        field.queue_sms(line, 100)
    field.finish()
    unknown = sum(state == "unknown" for state in field.state.values())
    assert unknown <= share * len(field.state)
    assert Counter(field.state.values())["failed"] == 0


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_no_firmware_sends_twice_while_nothing_is_lost(profile, seed):
    field = Field(seed, Faults(delay=(0.0, 0.5)), profile=profile, radio_errors=0.05)
    for line in field.queued:
        field.queue_sms(line, 30)
    field.finish()
    check_outcomes(field)
    assert "unknown" not in field.state.values()


@pytest.mark.parametrize("profile", ["repeat_unsafe_wait", "repeat_unsafe_always", "small_memory"])
def test_at_most_once_is_never_sent_twice_by_any_firmware(profile, seed):
    field = Field(seed, replace(BAD, duplicate=0.0), profile=profile, repeat=False)
    for line in field.queued:
        field.queue_sms(line, 40)
    field.finish()
    check_outcomes(field)


def test_outcomes_are_true_on_firmware_that_repeats(seed):
    field = Field(seed, BAD, profile="repeat_unsafe_always")
    for line in field.queued:
        field.queue_sms(line, 40)
    field.finish()
    check_outcomes(field, twice=True)


@pytest.mark.parametrize("faults", [LAN, BAD], ids=["lan", "bad"])
def test_reboots_make_doubt_but_neither_lies_nor_second_copies(seed, faults):
    field = Field(seed, faults)
    for line in field.queued:
        field.queue_sms(line, 60)
    for n in range(5):
        field.at(START + 40 + 97 * n + 20 * field.rng.random(), lambda: field.gateway.reboot(field.now))
    field.finish()
    check_outcomes(field)
    assert field.told(events.GatewayRebooted)


def test_lost_networks_make_neither_lies_nor_second_copies(seed):
    field = Field(seed, BAD)
    for line in field.queued:
        field.queue_sms(line, 40)
    for box in field.boxes:
        for n in range(4):
            when = START + 30 + 80 * n + 40 * field.rng.random()
            field.at(when, lambda box=box: box.logout(field.now))
            field.at(when + 20, lambda box=box: box.login(field.now))
    field.finish()
    check_outcomes(field)


# -- inbound


def receive_many(field: Field, texts: Callable[[int], str], count: int = 400, every: float = 2.0) -> None:
    for n in range(count):
        box = field.rng.choice(field.boxes)
        field.at(START + 10 + every * n, lambda box=box, n=n: box.receive_sms("+4912345", texts(n), field.now))
    field.run(count * every + 60)


def reported(field: Field) -> Counter[tuple[str, str]]:
    return Counter((event.line, event.text) for event in field.told(events.SmsReceived))


def arrived(field: Field) -> Counter[tuple[str, str]]:
    return Counter((line, data.partition(b";msg:")[2].decode()) for line, data in field.arrived)


@pytest.mark.parametrize("faults", [CLEAN, LAN, BAD, TERRIBLE], ids=["clean", "lan", "bad", "terrible"])
def test_every_sms_that_arrives_is_reported_once(seed, faults):
    field = Field(seed, faults)
    receive_many(field, lambda n: f"text {n}; with: all\nkinds {n}")
    assert reported(field) == arrived(field)
    assert len(reported(field)) > 380


def test_equal_texts_are_all_reported(seed):
    field = Field(seed, BAD, lines=2)
    receive_many(field, lambda n: "ok")
    assert reported(field) == arrived(field)


@pytest.mark.parametrize("profile", ["spec", "flaky_ntp"])
def test_every_sms_that_arrives_is_reported_once_over_reboots(profile, seed):
    field = Field(seed, BAD, profile=profile, lines=3)
    for n in range(6):
        field.at(START + 50 + 120 * n, lambda: field.gateway.reboot(field.now))
    receive_many(field, lambda n: f"text {n}")
    assert reported(field) == arrived(field)


def test_boxes_hear_their_acknowledgements(seed):
    field = Field(seed, LAN)
    receive_many(field, lambda n: f"text {n}")
    results = Counter(str(record["result"]) for record in field.radio if record["what"] == "received_outcome")
    assert set(results) == {"acked"}


# -- calls and USSD


@pytest.mark.parametrize("faults", [CLEAN, BAD], ids=["clean", "bad"])
def test_calls_begin_and_end_once(seed, faults):
    field = Field(seed, faults, lines=4)
    for n in range(60):
        for box in field.boxes:
            call = field.rng.choice((box.calls.incoming, box.calls.outgoing))
            answered, seconds = field.rng.random() < 0.6, field.rng.uniform(1, 20)
            field.at(
                START + 10 + 60 * n,
                lambda call=call, n=n, answered=answered, seconds=seconds: call(
                    f"+49{n:05d}", field.now, answered=answered, seconds=seconds
                ),
            )
    field.run(60 * 61)
    made = Counter((str(r["line"]), str(r["number"])) for r in field.radio if r["what"] == "call")
    for kinds in (("ringing", "dialing"), ("ended",)):
        facts = [e for e in field.told(events.CallEvent) if e.event_type in kinds]
        told = Counter((e.line, e.number) for e in facts if e.number is not None)
        assert told <= made, "a call that nobody made"
        assert len(facts) <= made.total()
        # The begin of a call shorter than the box's repeats can come after its end, and is then not told.
        assert told.total() >= made.total() * (1.0 if faults == CLEAN else 0.97)


@pytest.mark.parametrize("profile", ["spec", "older_ussd_repeats"])
def test_ussd_leaves_once_and_its_reply_comes_at_most_once(seed, profile):
    field = Field(seed, TERRIBLE, profile=profile, lines=4)
    field.run(40)
    for box in field.boxes:
        for n in range(20):
            if field.server.line(box.id).usable:
                field.server.ussd(box.id, n, "*100#", 30.0, field.now)
    field.run(20 * 31)
    asked = [(str(r["line"]), int(r["sendid"])) for r in field.radio if r["what"] == "ussd"]
    assert set(Counter(asked).values()) == {1}
    for box in field.boxes:
        ids = [sendid for line, sendid in asked if line == box.id]
        assert ids == sorted(ids), "ours keep growing: some boxes answer a smaller one with an old text"
    told = Counter((e.line, e.token) for e in field.told(events.UssdEvent) if not e.late)
    assert set(told.values()) == {1}
    replies = {e.text for e in field.told(events.UssdEvent) if e.event_type == "reply"}
    assert replies == {"Balance 4.20 EUR, valid until 31.12."}


def test_same_seed_is_the_same_run(seed):
    runs = []
    for _ in range(2):
        field = Field(seed, BAD)
        for line in field.queued:
            field.queue_sms(line, 10)
        field.finish()
        runs.append((field.state, field.events, field.radio))
    assert runs[0] == runs[1]
