"""Whose turn it is: lines of one box that share its sessions, against a model of a box that counts them (§4.2)."""

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from bridge.goip import events
from bridge.goip.box import AGEING_S, FEW_NUMBERS
from bridge.goip.line import Line
from bridge.goip.server import LineConfig, SmsServer
from bridge.goip.session import Recipient
from bridge.goip.timing import Timing

START = 1000.0
RADIO_S = 3.5
"What the radio takes for one SMS."
FORGETS_S = 90.0


@dataclass
class Rack:
    """A server, and boxes of so many lines that take so many sessions each; time jumps from event to event."""

    lines: int = 16
    per_box: int = 16
    sessions: int = 5
    gateways: bool = False
    "The configuration tells which lines are of one box."
    hosts: int = 1
    now: float = START
    done: list[tuple[float, str, int]] = field(default_factory=list)
    "What went out: when, on which line, with which priority."
    refusals: list[float] = field(default_factory=list)
    opened: list[tuple[float, str]] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    "Lines without keepalives."

    def __post_init__(self) -> None:
        self.names = [f"line{n}" for n in range(self.lines)]
        configs = [
            LineConfig(
                name=name, goip_id=name, password="p", gateway=f"rack{self.box(name)}" if self.gateways else None
            )
            for name in self.names
        ]
        self.server = SmsServer(configs, Timing(), next_sendid=1, now=self.now)
        self.queues: dict[str, list[tuple[int, int]]] = {name: [] for name in self.names}
        "Priority and number of what waits; those in a session as well."
        self.slots: dict[int, tuple[str, float]] = {}
        "Open sessions by sendid: the line, and when the box heard of it last."
        self.agenda: deque[tuple[float, str, str]] = deque()
        self.sms: dict[int, tuple[str, int]] = {}
        self.count = 0
        for name in self.names:
            self.keepalive(name)
        self.pump()

    def line(self, name: str) -> Line:
        line = self.server.line(name)
        assert line is not None
        return line

    def box(self, name: str) -> int:
        return int(name[4:]) // self.per_box

    def address(self, name: str) -> tuple[str, int]:
        return f"192.0.2.{self.box(name) % self.hosts}", 10991 + int(name[4:])

    def keepalive(self, name: str) -> None:
        self.count += 1
        self.server.receive_datagram(f"req:{self.count};id:{name};pass:p;".encode(), self.address(name), self.now)

    def queue(self, name: str, count: int = 1, priority: int = 5) -> None:
        for _ in range(count):
            n = len(self.sms) + 1
            self.sms[n] = name, priority
            self.queues[name].append((-priority, n))
        self.queues[name].sort()
        self.feed(name)
        self.pump()

    def feed(self, name: str) -> None:
        """As the application does."""
        queue = self.queues[name]
        if not queue:
            self.server.leave(name, self.now)
            return
        priority = -queue[0][0]
        if most := self.server.turn(name, priority, self.now):
            same = [n for negative, n in queue if -negative == priority][:most]
            recipients = [Recipient(n, f"+49{n}") for n in same]
            self.server.send_sms(name, "x", recipients, self.now, priority)

    def pump(self) -> None:
        while True:
            taken = self.server.take_events()
            for event in taken:
                if isinstance(event, events.LineReady):
                    self.feed(event.line)
                elif isinstance(event, events.SmsSent):
                    line, priority = self.sms[event.msg]
                    self.queues[line].remove((-priority, event.msg))
                    self.done.append((self.now, line, priority))
            sent = self.server.take_datagrams()
            for data, address in sent:
                self.box_hears(data.decode().split(), f"line{address[1] - 10991}")
            if not taken and not sent:
                return

    def box_hears(self, words: list[str], name: str) -> None:
        sendid = int(words[1]) if words[0] in ("MSG", "PASSWORD", "SEND", "DONE") else 0
        if sendid in self.slots:
            self.slots[sendid] = name, self.now
        if words[0] == "MSG":
            self.slots = {key: slot for key, slot in self.slots.items() if self.now - slot[1] < FORGETS_S}
            if sum(self.box(line) == self.box(name) for line, _ in self.slots.values()) >= self.sessions:
                self.refusals.append(self.now)
                self.say(f"ERROR {sendid} too_many_sends_in_server", name)
            else:
                self.slots[sendid] = name, self.now
                self.opened.append((self.now, name))
                self.say(f"PASSWORD {sendid}", name)
        elif words[0] == "PASSWORD":
            self.say(f"SEND {sendid}", name)
        elif words[0] == "SEND":
            self.agenda.append((self.now + RADIO_S, f"OK {sendid} {words[2]} 7", name))
        elif words[0] == "DONE":
            self.slots.pop(sendid, None)
            self.say(f"DONE {sendid}", name)

    def say(self, text: str, name: str) -> None:
        self.server.receive_datagram(text.encode(), self.address(name), self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = self.server.deadline()
            when = min(due if due is not None else end, self.agenda[0][0] if self.agenda else end)
            if when >= end:
                break
            self.now = max(self.now, when)
            if self.agenda and self.agenda[0][0] <= self.now:
                _, text, name = self.agenda.popleft()
                self.say(text, name)
            else:
                self.server.handle_timer(self.now)
            for name in self.names:
                if self.now - self.line(name).heard > 30 and name not in self.silent:
                    self.keepalive(name)
            self.pump()
        self.now = end

    def waited(self, name: str, since: float) -> float:
        """Until the first SMS of a line was out."""
        return next(at for at, line, _ in self.done if line == name and at > since) - since - RADIO_S


def test_a_box_that_refuses_nothing_is_never_asked_to_wait():
    rack = Rack(sessions=99)
    for name in rack.names:
        rack.queue(name, 10)
    rack.run(RADIO_S * 10 + 1)
    assert len(rack.done) == 160


def test_all_slots_are_used_all_the_time():
    rack = Rack()
    for name in rack.names:
        rack.queue(name, 40)
    rack.run(350)
    assert len(rack.done) >= 0.98 * 5 * 350 / RADIO_S


def test_idle_lines_have_their_turn_beside_jobs():
    rack = Rack()
    for name in rack.names[:5]:
        rack.queue(name, 300)
    rack.run(20)
    began = rack.now
    for name in rack.names[5:]:
        rack.queue(name, 1, priority=9)
    rack.run(60)
    waits = [rack.waited(name, began) for name in rack.names[5:]]
    assert max(waits) < 15, waits


def test_an_urgent_sms_ends_the_session_of_its_own_line():
    rack = Rack(sessions=99)
    rack.queue("line0", 10)
    rack.run(1)
    rack.queue("line0", 1, priority=9)
    rack.run(2 * RADIO_S)
    assert [priority for _, _, priority in rack.done] == [5, 9]
    rack.run(100)
    assert len(rack.done) == 11, "and the others follow"


def test_the_next_session_is_that_of_the_longest_wait():
    rack = Rack()
    for name in rack.names:
        rack.queue(name, 60)
    rack.run(400)
    rounds = math.ceil(16 / 5)
    for name in rack.names:
        begun = [at for at, line in rack.opened if line == name and at > START + 60]
        assert max(later - at for at, later in pairwise(begun)) <= rounds * FEW_NUMBERS * RADIO_S + 0.1


def test_the_least_urgent_has_its_turn_as_well():
    rack = Rack()
    for name in rack.names[:12]:
        rack.queue(name, 300, priority=7)
    rack.run(10)
    began = rack.now
    rack.queue("line12", 1, priority=0)
    rack.run(200)
    assert rack.waited("line12", began) < 9 * AGEING_S + 3 * FEW_NUMBERS * RADIO_S


def test_lines_that_have_nothing_to_send_or_are_offline_hold_nobody_up():
    rack = Rack()
    for name in rack.names[:8]:
        rack.queue(name, 30)
    rack.queues["line5"].clear()  # expired, for one
    rack.line("line6").online = False
    rack.silent.add("line6")
    rack.run(100)
    assert {name for at, name in rack.opened if at > START + 20} == {f"line{n}" for n in (0, 1, 2, 3, 4, 7)}
    assert len(rack.done) >= 0.97 * 5 * 100 / RADIO_S


def test_sessions_that_nobody_ended_cost_a_short_pause_that_does_not_grow():
    """As after kill -9 of a bridge with five sessions on each box."""
    rack = Rack()
    rack.slots = {-n: ("line0", START) for n in range(1, 6)}
    for name in rack.names:
        rack.queue(name, 5)
    rack.run(FORGETS_S)
    assert not rack.done
    tries = sorted(set(rack.refusals))
    assert {later - at for at, later in pairwise(tries)} == {Timing().full}
    assert len(rack.refusals) == 16 * len(tries), "each line may be the one that it takes"
    rack.run(Timing().full + RADIO_S + 0.1)
    assert len({name for _, name, _ in rack.done}) == 5, "all five are used as soon as one is free"


def test_a_session_whose_end_was_lost_costs_its_place_and_no_more():
    rack = Rack()
    for name in rack.names:
        rack.queue(name, 60)
    rack.run(30)
    rack.slots[-1] = "line0", rack.now  # somebody else's, for 90 s
    before = len(rack.done)
    rack.run(90)
    assert len(rack.done) - before >= 0.95 * 4 * 90 / RADIO_S
    before = len(rack.done)
    rack.run(90)
    assert len(rack.done) - before >= 0.95 * 5 * 90 / RADIO_S


@pytest.mark.parametrize(("gateways", "share"), [(True, 0.97), (False, 0.8)])
def test_several_boxes_behind_one_host(gateways, share):
    """Where the configuration names them each is used as one; else what is learnt of one gives way to the others."""
    rack = Rack(lines=24, per_box=8, gateways=gateways)
    for name in rack.names:
        rack.queue(name, 60)
    rack.run(300)
    assert len(rack.done) >= share * 15 * 300 / RADIO_S


def test_an_urgent_line_of_a_full_box_does_not_hold_up_the_others_of_its_host():
    rack = Rack(lines=16, per_box=8, sessions=2)
    rack.slots = {-n: ("line0", START + 10 * n) for n in range(1, 3)}  # of the first box, for a while
    for name in rack.names:
        rack.queue(name, 20, priority=9 if name == "line0" else 5)
    rack.run(60)
    assert len([name for _, name, _ in rack.done if rack.box(name) == 1]) >= 0.6 * 2 * 60 / RADIO_S


def test_boxes_of_their_own_hosts_have_their_own_places():
    rack = Rack(lines=16, per_box=8, hosts=2)
    for name in rack.names:
        rack.queue(name, 60)
    rack.run(300)
    assert len(rack.done) >= 0.97 * 10 * 300 / RADIO_S


def test_a_line_that_is_removed_while_it_waits_leaves():
    rack = Rack()
    for name in rack.names:
        rack.queue(name, 30)
    rack.server.configure(
        [LineConfig(name=name, goip_id=name, password="p") for name in rack.names if name != "line9"], rack.now
    )
    rack.names.remove("line9")
    rack.pump()
    rack.run(120)
    assert len(rack.done) >= 0.95 * 5 * 120 / RADIO_S
