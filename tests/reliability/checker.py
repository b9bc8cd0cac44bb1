"""Decides whether a history of bridge, gateways and subscribers keeps the invariants of docs/reliability.md.

Independent of the bridge: it imports nothing of it, and reads only what others saw of it. Who makes a history:
`chaos.py` (real processes) and the deterministic simulation. All times are unix seconds of one clock.

The data model, `History`:

`radio`     The simulator's radio log, oldest first: dicts with `at`, `line`, `what`. Read are `submit` (`to`, `text`,
            `sms_no`, `result` ok/error: the moment in which the modem gave an SMS to its network), `received` (`from`,
            `text`, `recvid`: an SMS for the host), `received_outcome` (`result` acked, given_up, lost_by_restart),
            `report` (`to`, `sms_no`, `state`) and `report_outcome`.
`messages`  What subscribers got, in the order of arrival: `Message`. They must have been subscribed to everything below
            the base topic all the time, with a session that the broker keeps. Duplicates are fine.
`commands`  What producers did: `Command`, one for each logical command, however often it was published. A producer with
            an `id` repeats until it sees a result; results are read from `messages`.
`reached`   The datagrams that reached the host's socket: `Reached`, in the order of arrival. None when nobody knows:
            then only SMS that the gateway saw acknowledged count as having reached the host.
`left`      The datagrams that the host sent to the gateways: `Left`. May be empty: then I10 looks at the radio.
`faults`    What was done to the system: `Fault`.
`lines`     What the lines are: `Line`.
`secrets`   Passwords, which must be nowhere; `logs`: texts of logs in which they must not be either.

An *SMS* X is one recipient of one accepted command. S(X) is how often the modem gave it to the network. SMS with the
same line, number and text can't be told apart on the radio, so they are counted together: a group.

Facts that were published while a broker lost its state (`Fault.kind` = broker_kill_lossy) may never reach a subscriber,
although the broker acknowledged them. They leave a gap in `seq`. Such a gap is tolerated, and counted, when a loss of
state lies between the arrivals of its neighbours; everything that is missing must be covered by such gaps.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cached_property
from typing import Any

Record = dict[str, Any]
Group = tuple[str, str, str]
"Line, number, text."

FINAL = frozenset(("sent", "delivered", "undelivered", "failed", "expired", "cancelled", "unknown"))
"Outcomes. `sent` and `unknown` may become better known."
SUBMITTED = frozenset(("sent", "delivered", "undelivered"))
FOLLOWS = {
    "": {"queued"},
    "queued": {"queued", "sending", "failed", "expired", "cancelled", "sent", "delivered", "undelivered"},
    "sending": {"sending", "queued", "sent", "delivered", "undelivered", "failed", "unknown", "expired"},
    "unknown": {"sent", "delivered", "undelivered", "failed", "queued", "sending"},
    "sent": {"delivered", "undelivered"},
}
"What may follow an event_type of `delivery` (docs/contract.md §2); nothing follows the others."

NOT_CHECKED = {
    "I9": "limits: rates and quotas are not part of this version; a wrong count shows in no outside log",
    "I11": "authority: needs datagrams from strangers; the tests of the hostile network",
    "I12": "bounded memory: needs the processes' sizes; the flood and soak tests",
}
"Invariants that these logs cannot decide, and where they are checked instead."


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An MQTT message as a subscriber got it."""

    at: float
    topic: str
    payload: bytes | dict[str, Any]
    "Bytes as they came, or the parsed object."
    retain: bool = False


@dataclass(slots=True, kw_only=True)
class Command:
    """What one producer wanted once."""

    topic: str
    payload: bytes
    id: str | None = None
    "The command's id; None for those without (raw text from Home Assistant)."
    published: list[float] = field(default_factory=list)
    "When it was published, each time."
    acknowledged: bool = False
    "The broker acknowledged it at least once (PUBACK)."
    given_up: bool = False
    "The producer stopped before it saw a result."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A datagram that reached the host's socket."""

    at: float
    line: str
    data: bytes
    survived: bool = True
    """Whether it outlived the kills: False when the socket died with it unread, or the process that read it may have
    been killed before it could commit. A gateway's repeat counts instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A datagram that the host sent to a gateway."""

    at: float
    line: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that was done to the system."""

    kind: str
    """worker_kill, host_kill (with its socket), broker_kill, broker_kill_lossy (its state is gone), gateway_reboot,
    blackout (no datagram passes), outage (nobody holds the socket) …"""
    at: float
    until: float
    "When what was stopped worked again; for a broker, when the subscribers were subscribed again."
    line: str | None = None
    "The line that it is about; None is all."


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a line is."""

    id: str
    qualified: bool
    "The firmware recognises repeated SENDs, and the bridge was told so."
    network_duplicates: bool = False
    "The network doubles datagrams: on an unqualified line nobody can prevent that SMS are doubled by it."


@dataclass(slots=True, kw_only=True)
class History:
    """Everything that is known of a run; see the module."""

    radio: list[Record]
    messages: list[Message]
    commands: list[Command]
    lines: dict[str, Line]
    reached: list[Reached] | None = None
    left: list[Left] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    base: str = "goip"
    ended: float = 0.0
    "When the run was over, and everybody had had time to finish."
    session_idle_s: float = 90.0
    "Silence after which a gateway forgets a session: the only excuse for `unknown` on a qualified line."
    settle_s: float = 300.0
    "Every SMS has an outcome this long after the last fault (I13) …"
    stuck_s: float = 100.0
    "… and no line with a backlog makes no progress for longer than this."
    wrong_clock: bool = False
    "The bridge's wall clock was set wrong: the times in its facts tell nothing."
    expiry_slack_s: float = 1.0
    "How late a first SEND may be seen after its expiry: clocks and the way to the log."
    unknown_allowed: int | None = None
    "How many SMS may stay `unknown`; None is any number that is excused."


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """An invariant that does not hold."""

    invariant: str
    "I1 to I15."
    message: str
    evidence: Any = None

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}" + (f" {self.evidence!r}" if self.evidence is not None else "")


@dataclass(slots=True, kw_only=True)
class Counts:
    """What happened, in figures."""

    commands: int = 0
    accepted: int = 0
    "SMS (recipients of accepted commands)."
    submitted: int = 0
    "SMS that the network took."
    sent: int = 0
    "SMS whose last word is sent, delivered or undelivered."
    delivered: int = 0
    failed: int = 0
    expired: int = 0
    unknown: int = 0
    "SMS whose last word is unknown."
    doubted: int = 0
    "SMS that were unknown at any time."
    outbound_lost: int = 0
    "Accepted SMS without an outcome."
    outbound_doubled: int = 0
    "SMS that the network took more than once, though it must not be."
    outbound_doubled_by_network: int = 0
    "The same, on unqualified lines behind a network that doubles datagrams."
    false: int = 0
    "Outcomes that the radio log refutes."
    keyless_lost: int = 0
    "Commands without id that were lost in the kill of a broker: their producers don't repeat them."
    keyless_doubled: int = 0
    "Commands without id that were accepted once more after a kill."
    inbound_offered: int = 0
    "SMS that gateways tried to hand over."
    inbound_reached: int = 0
    "Those of which a datagram reached the host, and survived there."
    inbound_acknowledged: int = 0
    inbound_published: int = 0
    "Different SMS that subscribers got."
    inbound_lost: int = 0
    "Reached the host, and were not published."
    inbound_doubled: int = 0
    "Published with more than one id."
    republished: int = 0
    "Messages that came again, with the same id: allowed."
    facts_lost_by_broker: int = 0
    "Gaps that a broker made that lost its state."

    def as_dict(self) -> dict[str, int]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(slots=True, kw_only=True)
class Report:
    """The verdict."""

    violations: list[Violation]
    counts: Counts

    @property
    def broken(self) -> list[str]:
        """The invariants that do not hold, in order."""
        return sorted({violation.invariant for violation in self.violations}, key=lambda name: int(name[1:]))


def check(history: History) -> Report:
    """All invariants that can be decided from outside."""
    view = View(history)
    violations = [violation for checker in CHECKERS.values() for violation in checker(view)]
    return Report(violations=violations, counts=view.counts)


# --- the history, sorted ---


@dataclass(slots=True)
class Fact:
    """A fact or result, once, however often it came."""

    at: float
    "Arrival of the first copy."
    topic: str
    boot: str
    seq: int
    payload: dict[str, Any]
    order: int = 0
    "Position in the order in which the bridge stored them: by boot, then by seq."

    @property
    def happened(self) -> float:
        """When it happened, as the fact says; results don't say."""
        return _unix(self.payload["at"]) if "at" in self.payload else self.at


@dataclass(slots=True)
class Wanted:
    """One recipient of one command."""

    command: Command
    line: str
    to: str
    text: str
    priority: int
    guarantee: str
    ttl_s: float | None
    expires_at: float | None

    @property
    def group(self) -> Group:
        return self.line, self.to, self.text


@dataclass(slots=True)
class Sms:
    """One SMS of the bridge, by its `msg`."""

    msg: str
    cmd: str
    line: str
    to: str
    wanted: Wanted | None = None
    "What it is for; None while only its result or its facts are known."
    facts: list[Fact] = field(default_factory=list)

    @property
    def states(self) -> list[str]:
        return [str(fact.payload.get("event_type")) for fact in self.facts]

    @property
    def last(self) -> str:
        return self.states[-1] if self.facts else ""


class View:
    """The history, indexed; and the counts, which the checkers fill in."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.counts = Counts()
        self.base = history.base.rstrip("/") + "/"
        self.by_topic: dict[str, list[Fact]] = defaultdict(list)
        "Facts and results, in the order in which they were stored."
        self.contradictions: list[tuple[dict[str, Any], dict[str, Any]]] = []
        "Copies that are not the same."
        self.retained_facts: list[Message] = []
        self.tolerated: Counter[str] = Counter()
        "Facts that a broker lost, by topic."
        self.gaps: list[tuple[str, str, int, int]] = []
        "Missing numbers nobody excuses: topic, boot, first, last."
        self._sort_messages()
        self._find_gaps()
        self.wanted = [wanted for command in history.commands for wanted in _recipients(command, self.base)]
        self.results: dict[tuple[str, str], list[Fact]] = defaultdict(list)
        "By line and command id; a result on a response topic is the same one again."
        for topic, facts in self.by_topic.items():
            match = re.fullmatch(re.escape(self.base) + r"([^/]+)/result/sms", topic)
            for fact in facts if match else []:
                self.results[match[1], str(fact.payload.get("id"))].append(fact)  # type: ignore[index]
        self.sms: dict[str, Sms] = {}
        self.orphans: list[Fact] = []
        "Delivery reports that matched nothing."
        self._collect_sms()
        self.counts.commands = len(history.commands)
        self.counts.accepted = len(self.sms)

    @staticmethod
    def line_of(topic: str, base: str, rest: str) -> str | None:
        """The line of a topic `<base><line>/<rest>`."""
        if topic.startswith(base) and topic.endswith("/" + rest):
            line = topic[len(base) : -len(rest) - 1]
            return line if "/" not in line else None
        return None

    @cached_property
    def submits(self) -> dict[Group, list[Record]]:
        """What the network took, by group."""
        groups: dict[Group, list[Record]] = defaultdict(list)
        for record in self.history.radio:
            if record["what"] == "submit" and record["result"] == "ok":
                groups[record["line"], str(record["to"]), str(record["text"])].append(record)
        self.counts.submitted = sum(map(len, groups.values()))
        return groups

    @cached_property
    def sends_left(self) -> Counter[tuple[str, int, int]]:
        """How often each SEND left the host, by line, sendid and telid."""
        sends: Counter[tuple[str, int, int]] = Counter()
        for left in self.history.left:
            words = left.data.split()
            if len(words) >= 3 and words[0] == b"SEND":
                sends[left.line, int(words[1]), int(words[2])] += 1
        return sends

    @cached_property
    def groups(self) -> dict[Group, list[Sms]]:
        """The SMS of each group."""
        groups: dict[Group, list[Sms]] = defaultdict(list)
        for sms in self.sms.values():
            if sms.wanted is not None:
                groups[sms.wanted.group].append(sms)
        return groups

    @property
    def last_fault(self) -> float:
        return max((fault.until for fault in self.history.faults), default=0.0)

    def facts(self, rest: str) -> Iterator[tuple[str, Fact]]:
        """The facts of all lines on `<base>/<line>/<rest>`, with their line."""
        for topic, facts in self.by_topic.items():
            line = self.line_of(topic, self.base, rest)
            if line is not None:
                yield from ((line, fact) for fact in facts)

    def excused(self, topic: str, count: int) -> bool:
        """Use up `count` of the facts that a broker lost on this topic; False when there are not as many."""
        if self.tolerated[topic] < count:
            return False
        self.tolerated[topic] -= count
        return True

    def loss_between(self, begin: float, end: float) -> bool:
        """Whether a broker lost its state between two arrivals."""
        return any(
            fault.kind == "broker_kill_lossy" and fault.at - 1.0 <= end and fault.until + 1.0 >= begin
            for fault in self.history.faults
        )

    def _sort_messages(self) -> None:
        first: dict[tuple[str, str, int], Fact] = {}
        boots: dict[str, int] = {}
        copies: list[tuple[str, str, int, dict[str, Any]]] = []
        for message in self.history.messages:
            payload = _object(message.payload)
            if payload is None or "seq" not in payload or "boot" not in payload:
                continue
            if message.retain:
                self.retained_facts.append(message)
            boot, seq = str(payload["boot"]), int(payload["seq"])
            if "/homeassistant/" in message.topic:
                copies.append((message.topic.replace("/homeassistant/", "/"), boot, seq, payload))
                continue
            boots.setdefault(boot, len(boots))
            known = first.get((message.topic, boot, seq))
            if known is None:
                first[message.topic, boot, seq] = Fact(message.at, message.topic, boot, seq, payload)
                continue
            self.counts.republished += 1
            if _without_ts(known.payload) != _without_ts(payload):
                self.contradictions.append((known.payload, payload))
        for topic, boot, seq, payload in copies:  # for Home Assistant; those that it did not come for are dropped
            known = first.get((topic, boot, seq))
            if known is not None and _without_ts(known.payload) != _without_ts(payload):
                self.contradictions.append((known.payload, payload))
        for fact in sorted(first.values(), key=lambda fact: (boots[fact.boot], fact.seq)):
            fact.order = boots[fact.boot] << 40 | fact.seq
            self.by_topic[fact.topic].append(fact)

    def _find_gaps(self) -> None:
        for topic, facts in self.by_topic.items():
            by_boot: dict[str, list[Fact]] = defaultdict(list)
            for fact in facts:
                by_boot[fact.boot].append(fact)
            for boot, of_boot in by_boot.items():
                before, arrived = 0, 0.0
                for fact in of_boot:
                    missing = fact.seq - before - 1
                    if missing and self.loss_between(arrived, fact.at):
                        self.tolerated[topic] += missing
                        self.counts.facts_lost_by_broker += missing
                    elif missing:
                        self.gaps.append((topic, boot, before + 1, fact.seq - 1))
                    before, arrived = fact.seq, fact.at

    def _collect_sms(self) -> None:
        """From results and from `delivery`: either may be first, or miss."""
        for (line, cmd), results in self.results.items():
            for fact in results:
                for each in (fact.payload.get("data") or {}).get("msgs") or ():
                    msg = str(each["msg"])
                    self.sms.setdefault(msg, Sms(msg, cmd, line, str(each["to"])))
        for line, fact in self.facts("delivery"):
            payload = fact.payload
            if payload.get("msg") is None:
                self.orphans.append(fact)
                continue
            msg = str(payload["msg"])
            sms = self.sms.setdefault(msg, Sms(msg, str(payload.get("cmd")), line, str(payload.get("to"))))
            sms.facts.append(fact)
        keyed = {(wanted.line, wanted.command.id, wanted.to): wanted for wanted in self.wanted if wanted.command.id}
        keyless: dict[tuple[str, str], list[Wanted]] = defaultdict(list)
        for wanted in self.wanted:
            if not wanted.command.id:
                keyless[wanted.line, wanted.to].append(wanted)
        for sms in self.sms.values():
            sms.wanted = keyed.get((sms.line, sms.cmd, sms.to))
            if sms.wanted is None and (candidates := keyless.get((sms.line, sms.to))):
                # Producers without ids use numbers of their own, one text for each.
                sms.wanted = candidates[0]


# --- the invariants ---


def durable_accept(view: View) -> Iterator[Violation]:
    """I1: what was told as accepted is there for good: its facts come, and no later answer says otherwise."""
    for (line, cmd), results in view.results.items():
        for result in results:
            if result.payload.get("status") != "ok" or (result.payload.get("data") or {}).get("msgs") is None:
                continue
            for each in result.payload["data"]["msgs"]:
                if not view.sms[str(each["msg"])].facts and not view.excused(f"{view.base}{line}/delivery", 1):
                    yield Violation(
                        invariant="I1", message="accepted, and nothing was heard of it again", evidence=(cmd, each)
                    )


def conservation(view: View) -> Iterator[Violation]:
    """I2: every accepted SMS has exactly one outcome in the end, and comes from a command."""
    for sms in view.sms.values():
        if sms.last in FINAL or not sms.facts:  # without facts: I1
            _count_outcome(view, sms)
            view.counts.outbound_lost += not sms.facts
        elif not view.excused(f"{view.base}{sms.line}/delivery", 1):
            view.counts.outbound_lost += 1
            yield Violation(
                invariant="I2",
                message="accepted, and still without an outcome",
                evidence=(sms.msg, sms.cmd, sms.states),
            )
        if sms.wanted is None:
            yield Violation(invariant="I2", message="an SMS that nobody asked for", evidence=(sms.msg, sms.cmd, sms.to))
    for wanted in view.wanted:
        if wanted.command.id is not None and not wanted.command.given_up:
            answered = view.results.get((wanted.line, wanted.command.id))
            topic = f"{view.base}{wanted.line}/result/sms"
            if not answered and not view.excused(topic, 1):
                yield Violation(invariant="I2", message="a command without a result", evidence=wanted.command.id)
    yield from _keyless(view)


def no_double_submit(view: View) -> Iterator[Violation]:
    """I3: the network takes every SMS at most once, but for those of at_least_once."""
    limit: Counter[Group] = Counter()
    free: set[Group] = set()
    for wanted in view.wanted:
        if wanted.guarantee == "at_least_once":
            free.add(wanted.group)
        if wanted.command.id is not None:
            limit[wanted.group] += 1
    for sms in view.sms.values():
        if sms.wanted is not None and sms.wanted.command.id is None:
            limit[sms.wanted.group] += 1
    for group, records in view.submits.items():
        excess = len(records) - limit[group]
        if excess <= 0 or group in free:
            continue
        line = view.history.lines.get(group[0])
        if limit[group] and line is not None and line.network_duplicates and not line.qualified:
            view.counts.outbound_doubled_by_network += excess
            continue
        view.counts.outbound_doubled += excess
        what = "submitted more than once" if limit[group] else "submitted, and nobody asked for it"
        yield Violation(invariant="I3", message=what, evidence=(group, [record["at"] for record in records]))


def no_lie(view: View) -> Iterator[Violation]:
    """I4: what is told of an SMS is what the radio log has."""
    reports = Counter(
        (record["line"], str(record["to"]))
        for record in view.history.radio
        if record["what"] == "report" and record.get("state", 0) == 0
    )
    told_delivered: Counter[tuple[str, str]] = Counter()
    refused = _refused(view)
    for group in view.groups.keys() | view.submits.keys():
        of_group = view.groups.get(group, [])
        submitted = len(view.submits.get(group, ()))
        told = [sms.msg for sms in of_group if SUBMITTED & set(sms.states)]
        possible = [sms.msg for sms in of_group if sms.last not in ("failed", "expired", "cancelled")]
        possible += [sms.msg for sms in of_group if sms.last == "failed" and _ambiguous(sms)]
        submits = enumerate(view.submits.get(group, ()))
        numbers = {
            (record.get("sendid", n), record.get("telid")) for n, record in submits
        }  # one that went out twice is one
        submitted_by_us = min(len(numbers), submitted - _doubled_by_network(view, group))
        if len(told) > submitted:
            view.counts.false += len(told) - submitted
            yield Violation(
                invariant="I4", message=f"told as sent {len(told)}, submitted {submitted} times", evidence=(group, told)
            )
        if of_group and min(submitted_by_us, len(of_group)) > len(possible):
            view.counts.false += min(submitted_by_us, len(of_group)) - len(possible)
            states = [(sms.msg, sms.states) for sms in of_group]
            yield Violation(invariant="I4", message="told as not sent, and was submitted", evidence=(group, states))
        if submitted and group in refused and not of_group:
            view.counts.false += 1
            yield Violation(invariant="I4", message="the command was refused, and was carried out", evidence=group)
        for sms in of_group:
            told_delivered[sms.line, sms.to] += "delivered" in sms.states
    for (line, to), count in told_delivered.items():
        if count > reports[line, to]:
            view.counts.false += count - reports[line, to]
            yield Violation(
                invariant="I4", message=f"told as delivered {count}, reported {reports[line, to]}", evidence=(line, to)
            )


def bounded_doubt(view: View) -> Iterator[Violation]:
    """I5: `unknown` has a reason; on a qualified line only the loss of the gateway's session is one. A delivery report
    that can only be its ends it.

    An SMS of at_most_once is never asked for again, so it may be in doubt on any line.
    """
    for sms in view.sms.values():
        doubts = [fact for fact in sms.facts if fact.payload.get("event_type") == "unknown"]
        view.counts.doubted += bool(doubts)
        for fact in doubts:
            if fact.payload.get("evidence") is None:
                yield Violation(invariant="I5", message="unknown without evidence", evidence=(sms.msg, fact.payload))
            line = view.history.lines.get(sms.line)
            repeated = sms.wanted is None or sms.wanted.guarantee != "at_most_once"
            if line is not None and line.qualified and repeated and not _session_lost(view, sms, fact.happened):
                yield Violation(
                    invariant="I5",
                    message="unknown on a qualified line whose session was not lost",
                    evidence=(sms.msg, sms.line, fact.payload.get("evidence"), fact.payload.get("at")),
                )
    to_number = Counter((sms.line, sms.to) for sms in view.sms.values())
    reported = {(view.line_of(fact.topic, view.base, "delivery"), str(fact.payload.get("to"))) for fact in view.orphans}
    for sms in view.sms.values():
        if sms.last == "unknown" and (sms.line, sms.to) in reported and to_number[sms.line, sms.to] == 1:
            yield Violation(
                invariant="I5", message="unknown, though its delivery report came", evidence=(sms.msg, sms.line, sms.to)
            )
    allowed = view.history.unknown_allowed
    if allowed is not None and view.counts.unknown > allowed:
        yield Violation(invariant="I5", message=f"{view.counts.unknown} unknown, {allowed} allowed")


def inbound(view: View) -> Iterator[Violation]:
    """I6: every SMS that reached the host is published with one id, as it was; equal texts are different SMS."""
    offered: dict[_Inbound, list[Record]] = defaultdict(list)
    acked: Counter[_Inbound] = Counter()
    for record in view.history.radio:
        if record["what"] in ("received", "received_outcome"):
            key = record["line"], int(record["recvid"]), str(record["from"]), str(record["text"])
            if record["what"] == "received":
                offered[key].append(record)
            else:
                acked[key] += record["result"] == "acked"
    reached, altered, seen = _reached(view.history)
    published: dict[_Inbound, set[str]] = defaultdict(set)
    for line, fact in view.facts("sms/in"):
        payload = fact.payload
        if payload.get("replay"):
            continue
        key = line, int(payload["recvid"]), str(payload.get("from_raw") or ""), str(payload["text"])
        published[key].add(str(payload["id"]))
    counts = view.counts
    counts.inbound_offered = sum(map(len, offered.values()))
    counts.inbound_acknowledged = sum(acked.values())
    counts.inbound_published = sum(map(len, published.values()))
    for key, records in offered.items():
        ids = published.get(key, set())
        # Only after a reboot can one key be several SMS (recvid begins again): then as many reached as were acked.
        arrived = max(acked[key], 1 if key in reached else 0) if key not in altered else int(key in reached)
        counts.inbound_reached += arrived
        missing = arrived - len(ids)
        if missing > 0 and not view.excused(f"{view.base}{key[0]}/sms/in", missing):
            counts.inbound_lost += missing
            how = "acknowledged" if acked[key] else "reached the host"
            yield Violation(invariant="I6", message=f"{how}, and was not published", evidence=(key, records[0]["at"]))
        if len(ids) > len(records):
            counts.inbound_doubled += len(ids) - len(records)
            yield Violation(invariant="I6", message="one SMS, published with several ids", evidence=(key, sorted(ids)))
    for key in published.keys() - offered.keys() - seen:
        yield Violation(invariant="I6", message="published, and no gateway said it", evidence=key)
    for message in view.retained_facts:
        yield Violation(invariant="I6", message="a fact that is retained", evidence=message.topic)


def monotone(view: View) -> Iterator[Violation]:
    """I7: states only move up; nothing follows a final one; no acknowledged delivery report disappears."""
    for sms in view.sms.values():
        before = ""
        for index, fact in enumerate(sms.facts):
            state = str(fact.payload.get("event_type"))
            allowed = FOLLOWS.get(before, set())
            if before == "unknown" and sms.wanted is not None and sms.wanted.guarantee == "at_most_once":
                allowed = allowed - {"queued", "sending"}
            previous = sms.facts[index - 1] if index else None
            begin = previous.at if previous is not None else 0.0
            if state not in allowed and not view.loss_between(begin, fact.at):
                yield Violation(
                    invariant="I7", message=f"{state!r} after {before!r}", evidence=(sms.msg, sms.cmd, sms.states)
                )
            before = state
    ids: dict[tuple[str, str], int] = {}
    for _, fact in view.facts("delivery"):
        key = fact.topic, str(fact.payload.get("id"))
        if ids.setdefault(key, fact.order) != fact.order:
            yield Violation(invariant="I7", message="two facts with one id", evidence=key)
    yield from _reports_kept(view)


def order(view: View) -> Iterator[Violation]:
    """I8: first in, first out for each line and priority; no gap in `seq`; copies are equal."""
    for topic, boot, first, last in view.gaps:
        yield Violation(invariant="I8", message="a gap in seq", evidence=(topic, boot, first, last))
    for one, other in view.contradictions:
        yield Violation(invariant="I8", message="same boot and seq, other content", evidence=(one, other))
    accepted: dict[tuple[str, int], list[tuple[int, Group, str]]] = defaultdict(list)
    for group, of_group in view.groups.items():
        # Where one may have been submitted again, or several look alike, the radio log can't say which is which.
        if len(of_group) != 1 or len(view.submits.get(group, ())) != 1:
            continue
        sms = of_group[0]
        if sms.wanted is None or not sms.facts or "unknown" in sms.states or sms.states[0] != "queued":
            continue
        if any(int(fact.payload.get("attempt") or 0) > 1 for fact in sms.facts):
            continue
        accepted[sms.line, sms.wanted.priority].append((sms.facts[0].order, group, sms.msg))
    for (line, priority), entries in accepted.items():
        entries.sort()
        latest, of_latest = 0.0, ""
        for _, group, msg in entries:
            at = float(view.submits[group][0]["at"])
            if at < latest:
                yield Violation(
                    invariant="I8",
                    message=f"submitted before {of_latest}, and accepted after it",
                    evidence=(line, priority, msg),
                )
            else:
                latest, of_latest = at, msg


def expiry(view: View) -> Iterator[Violation]:
    """I10: nothing is first sent after its time, and nothing expires before it."""
    first: dict[tuple[str, str, str], float] = {}
    for left in view.history.left:
        if match := re.match(r"SEND (\d+) (\d+) ", left.data.decode(errors="replace")):
            first.setdefault((left.line, match[1], match[2]), left.at)
    slack = view.history.expiry_slack_s
    for group, of_group in view.groups.items():
        wanted = of_group[0].wanted
        if len(of_group) != 1 or wanted is None:
            continue
        sms = of_group[0]
        limits = [wanted.expires_at] if wanted.expires_at is not None else []
        if wanted.ttl_s is not None and wanted.command.published and sms.last == "expired":
            earliest = min([*limits, wanted.command.published[0] + wanted.ttl_s])
            if sms.facts[-1].at < earliest - slack:
                early = round(earliest - sms.facts[-1].at, 3)
                yield Violation(
                    invariant="I10", message=f"expired {early} s before its time", evidence=(group, earliest)
                )
        if group not in view.submits:
            continue
        if wanted.ttl_s is not None and sms.facts:
            accepted = sms.facts[0].at if view.history.wrong_clock else sms.facts[0].happened
            limits.append(accepted + wanted.ttl_s)
        submit = view.submits[group][0]
        when = first.get((group[0], str(submit.get("sendid")), str(submit.get("telid"))), float(submit["at"]))
        if limits and when > min(limits) + slack:
            late = round(when - min(limits), 3)
            yield Violation(invariant="I10", message=f"sent {late} s after its expiry", evidence=(group, when))


def liveness(view: View) -> Iterator[Violation]:
    """I13: after the last fault the backlog drains, and no line stands still."""
    history, healed = view.history, view.last_fault
    by_line: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for sms in view.sms.values():
        if not sms.facts:
            continue
        end = next((fact.happened for fact in sms.facts if fact.payload.get("event_type") in FINAL), None)
        begin = max(sms.facts[0].happened, healed)
        if end is not None and end > begin + history.settle_s:
            yield Violation(
                invariant="I13", message=f"its outcome took {end - begin:.0f} s", evidence=(sms.msg, sms.states)
            )
        by_line[sms.line].append((sms.facts[0].happened, +1))
        if end is not None:
            by_line[sms.line].append((end, -1))
    for line, fact in view.facts("delivery"):
        by_line[line].append((fact.happened, 0))
    for line, changes in by_line.items():
        backlog, since = 0, healed
        for at, change in [*sorted(changes), (history.ended, 0)]:
            if backlog > 0 and at - max(since, healed) > history.stuck_s:
                yield Violation(
                    invariant="I13",
                    message=f"no progress for {at - since:.0f} s",
                    evidence=(line, f"backlog {backlog}"),
                )
            backlog, since = backlog + change, max(since, at)


def secrecy(view: View) -> Iterator[Violation]:
    """I14: no password in a topic, a payload or a log."""
    secrets = [secret for secret in view.history.secrets if secret]
    if not secrets:
        return
    pattern = re.compile("|".join(map(re.escape, secrets)))
    for message in view.history.messages:
        if isinstance(message.payload, bytes):
            text = message.payload.decode(errors="replace")
        else:
            text = json.dumps(message.payload, ensure_ascii=False)
        if pattern.search(message.topic) or pattern.search(text):
            yield Violation(invariant="I14", message="a password in a message", evidence=message.topic)
    for name, text in view.history.logs.items():
        for line in text.splitlines():
            if pattern.search(line):
                yield Violation(invariant="I14", message="a password in a log", evidence=(name, line[:200]))


def idempotent(view: View) -> Iterator[Violation]:
    """I15: the same command again is the same SMS and the same answer."""
    payloads: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    for command in view.history.commands:
        if command.id is not None:
            payloads[command.topic, command.id].add(command.payload)
    by_command: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for sms in view.sms.values():
        by_command[sms.line, sms.cmd, sms.to].add(sms.msg)
    for key, msgs in by_command.items():
        if len(msgs) > 1:
            yield Violation(invariant="I15", message="one command, several SMS", evidence=(key, sorted(msgs)))
    for (line, cmd), results in view.results.items():
        several = len(payloads.get((f"{view.base}{line}/cmd/sms", cmd), ())) > 1
        answers = [fact.payload for fact in results if fact.payload.get("status") == "ok"]
        if any(answer.get("data") != answers[0].get("data") for answer in answers):
            yield Violation(invariant="I15", message="one command, different answers", evidence=(line, cmd, answers))
        accepted = False
        for fact in results:  # accepted is accepted: the same again is not refused later
            accepted = accepted or fact.payload.get("status") == "ok"
            if accepted and fact.payload.get("status") == "error" and not several:
                yield Violation(
                    invariant="I15",
                    message="accepted, and refused later",
                    evidence=(line, cmd, fact.payload.get("code")),
                )


CHECKERS: dict[str, Callable[[View], Iterable[Violation]]] = {
    "I1": durable_accept,
    "I2": conservation,
    "I3": no_double_submit,
    "I4": no_lie,
    "I5": bounded_doubt,
    "I6": inbound,
    "I7": monotone,
    "I8": order,
    "I10": expiry,
    "I13": liveness,
    "I14": secrecy,
    "I15": idempotent,
}


# --- parts of the above ---


def _count_outcome(view: View, sms: Sms) -> None:
    counts = view.counts
    counts.sent += sms.last in SUBMITTED
    counts.delivered += sms.last == "delivered"
    counts.failed += sms.last == "failed"
    counts.expired += sms.last == "expired"
    counts.unknown += sms.last == "unknown"


def _keyless(view: View) -> Iterator[Violation]:
    """Commands without an id: accepted once each, but for what a killed broker loses or delivers again."""
    wanted: dict[Group, list[Wanted]] = defaultdict(list)
    for each in view.wanted:
        if each.command.id is None:
            wanted[each.group].append(each)
    for group, of_group in wanted.items():
        accepted = len(view.groups.get(group, ()))
        published = sum(len(each.command.published) or 1 for each in of_group)
        promised = sum(each.command.acknowledged for each in of_group)
        begin = min((at for each in of_group for at in each.command.published), default=0.0)
        near = [
            fault
            for fault in view.history.faults
            if fault.at <= begin + _KEYLESS_S and _subscribed_again(view, fault) >= begin
        ]
        killed = any(fault.kind.startswith("broker") for fault in near)
        if accepted < promised:
            view.counts.keyless_lost += promised - accepted
            if not killed:
                yield Violation(invariant="I2", message="a command without id was lost", evidence=group)
        if accepted > published:
            view.counts.keyless_doubled += accepted - published
            if not near:
                yield Violation(invariant="I15", message="a command without id was carried out twice", evidence=group)


def _subscribed_again(view: View, fault: Fault) -> float:
    """The end of a fault for commands. A broker without its state drops them, and acknowledges them, until the bridge
    has subscribed again and says `online` (docs/contract.md §2)."""
    if fault.kind != "broker_kill_lossy":
        return fault.until
    topic = f"{view.base}bridge/availability"
    online = (
        message.at for message in view.history.messages if message.topic == topic and message.payload == b"online"
    )
    return next((at for at in online if at >= fault.at), float("inf"))


def _refused(view: View) -> set[Group]:
    """The groups in which every command was refused."""
    refused: set[Group] = set()
    others: set[Group] = set()
    for wanted in view.wanted:
        results = view.results.get((wanted.line, wanted.command.id or ""), [])
        failed = bool(results) and all(fact.payload.get("status") == "error" for fact in results)
        (refused if failed else others).add(wanted.group)
    return refused - others


def _ambiguous(sms: Sms) -> bool:
    error = sms.facts[-1].payload.get("error")
    return bool(error and error.get("ambiguous"))


def _doubled_by_network(view: View, group: Group) -> int:
    """How many SMS of a group the network took because of SENDs that we did not send: their first copy may have failed,
    and nobody can know of the second. Only where the firmware does not recognise copies, and there are some.
    """
    line = view.history.lines.get(group[0])
    if line is None or line.qualified or not line.network_duplicates:
        return 0
    tried = Counter(
        (int(record["sendid"]), int(record["telid"]))
        for record in view.history.radio
        if record["what"] == "submit" and (record["line"], str(record["to"]), str(record["text"])) == group
    )
    return sum(max(0, count - view.sends_left[group[0], *key]) for key, count in tried.items())


def _session_lost(view: View, sms: Sms, at: float) -> bool:
    """Whether the gateway must have forgotten the session: a reboot, or nobody heard each other for long enough."""
    begin = next((fact.happened for fact in sms.facts if fact.payload.get("event_type") == "sending"), at)
    idle = view.history.session_idle_s
    for fault in view.history.faults:
        if fault.line not in (None, sms.line) or fault.at > at or fault.until < begin - 1.0:
            continue
        if fault.kind in ("gateway_reboot", "restored"):
            return True
        if fault.kind in ("outage", "blackout", "host_kill", "worker_kill") and fault.until - fault.at >= idle:
            return True
    return False


def _reports_kept(view: View) -> Iterator[Violation]:
    """An acknowledged delivery report settles its SMS, or is published as one that matches nothing."""
    acked: Counter[tuple[str, str]] = Counter()
    for record in view.history.radio:
        if (
            record["what"] == "report_outcome"
            and record["result"] == "acked"
            and record.get("state", 0) in (0, *_FAILED)
        ):
            acked[record["line"], str(record["to"])] += 1
    told: Counter[tuple[str, str]] = Counter()
    for sms in view.sms.values():
        told[sms.line, sms.to] += sms.last not in ("sent", "unknown", "sending", "queued", "")
    for fact in view.orphans:
        told[view.line_of(fact.topic, view.base, "delivery") or "", str(fact.payload.get("to"))] += 1
    # Of an SMS that the box sent twice the second report may look like one of an older SMS with that sms_no.
    doubled: Counter[tuple[str, str]] = Counter()
    for (line, to, _), records in view.submits.items():
        if not view.history.lines[line].qualified:
            doubled[line, to] += len(records) - len({(record["sendid"], record["telid"]) for record in records})
    for key, count in acked.items():
        missing = count - told[key] - doubled[key]
        if missing > 0 and not view.excused(f"{view.base}{key[0]}/delivery", missing):
            yield Violation(invariant="I7", message="an acknowledged delivery report disappeared", evidence=key)


_KEYLESS_S = 10.0
"A command without id is carried out within this time, or was lost."
_FAILED = range(64, 128)
"TP-Status of reports that are final; those between 1 and 63 settle nothing (docs/protocol.md §5)."

NAMES = {3: "Bank;24", 6: ";id:nobody"}
"What some who send SMS call themselves, by the last digit of their number in a run."
_Inbound = tuple[str, int, str, str]
"Line, recvid, sender, text."
_RECEIVE = re.compile(
    rb"RECEIVE:(-?\d+);id:([^;]*);password:[^;]*;srcnum:(.*?)(?:;smscnum:[^;]*;senttime:[^;]*)?;msg:(.*)", re.S
)


def _reached(history: History) -> tuple[set[_Inbound], set[_Inbound], set[_Inbound]]:
    """The inbound SMS that reached the host and survived; those of which it also got a damaged copy, which it may have
    acknowledged; and all it can have read."""
    reached: set[_Inbound] = set()
    by_recvid: dict[tuple[str, int], set[_Inbound]] = defaultdict(set)
    for datagram in history.reached or ():
        match = _RECEIVE.fullmatch(datagram.data) if datagram.data.startswith(b"RECEIVE:") else None
        if match is None:
            continue
        sender, text = match[3].decode(errors="replace"), match[4].decode(errors="replace")
        key = datagram.line, int(match[1]), sender, text
        by_recvid[datagram.line, key[1]].add(key)
        if datagram.survived:
            reached.add(key)
    several = {key for keys in by_recvid.values() if len(keys) > 1 for key in keys}
    return reached, several, set().union(*by_recvid.values())


def _recipients(command: Command, base: str) -> Iterator[Wanted]:
    """What a command to send SMS asks for; of other commands nothing."""
    match = re.fullmatch(re.escape(base) + r"([^/]+)/cmd/sms(?:/([^/]+))?", command.topic)
    if match is None:
        return
    line, number = match[1], match[2]
    if number is not None:
        to = "+" + number[2:] if number.startswith("00") else number
        text = command.payload.decode(errors="replace")
        yield Wanted(command, line, to, text, 5, "effectively_once", None, None)
        return
    body = _object(command.payload)
    if body is None:
        return
    to = body.get("to")
    pairs = [(each["to"], each["text"]) for each in body.get("messages") or ()]
    pairs += [(each, body.get("text", "")) for each in ([to] if isinstance(to, str) else to or [])]
    for each, text in dict.fromkeys(pairs):
        yield Wanted(
            command,
            line,
            each,
            text,
            int(body.get("priority", 5)),
            str(body.get("guarantee", "effectively_once")),
            body.get("ttl_s"),
            _unix(body["expires_at"]) if body.get("expires_at") else None,
        )


def _object(payload: bytes | dict[str, Any]) -> dict[str, Any] | None:
    if isinstance(payload, dict):
        return payload
    try:
        loaded = json.loads(payload)
    except ValueError:
        return None
    return loaded if isinstance(loaded, dict) else None


def _without_ts(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key != "ts"}


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
