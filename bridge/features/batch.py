"""What one batch of input brings about besides its rows: collected inside a transaction, carried out after it.

A batch whose transaction fails is thrown away as a whole, so nothing here may have an effect of its own before that.
"""

import itertools
import secrets
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from ..contract.commands import Command
from ..contract.payloads import KINDS, encode, timestamp
from ..mqtt.link import Incoming
from ..store.database import OutboxEntry, OutboxRow

MAX_FOREIGN = 1000
"Topics that others chose and whose messages are counted."


class Run:
    """One run of the bridge: what makes ids unique and gaps visible."""

    def __init__(self, started: float, since: float) -> None:
        self.started = started
        "Unix time, as it is told."
        self.since = since
        "The same by `bridge.system.clock.SteadyTime`."
        self.boot = f"{int(started):08x}{secrets.token_hex(2)}"
        self.seq: dict[str, int] = {}
        "The last sequence number of each topic of the bridge."
        self._foreign: dict[int, int] = {}
        "The same of the topics that others chose, by their hash: such a topic may be long. The last used comes last."
        self._forgotten = 0
        "No number of a forgotten topic was larger: one that comes again goes on from here."
        self._ids = itertools.count(1)

    def new_id(self) -> str:
        """Unique among all runs."""
        return f"{self.boot}-{next(self._ids)}"

    def last_seq(self, topic: str, *, foreign: bool) -> int:
        """The last sequence number of a topic, 0 for none; `foreign` if somebody else chose the topic."""
        known = self.seq.get(topic) or self._foreign.get(hash(topic))
        return known or (self._forgotten if foreign else 0)

    def count(self, used: dict[str, int], foreign: set[str]) -> None:
        """These sequence numbers were used; of the topics those in `foreign` are counted as long as there is room."""
        for topic, number in used.items():
            self._foreign.pop(hash(topic), None)
            if topic in foreign and topic not in self.seq:
                self._foreign[hash(topic)] = number
            else:
                self.seq[topic] = number
        while len(self._foreign) > MAX_FOREIGN:
            self._forgotten = max(self._forgotten, self._foreign.pop(next(iter(self._foreign))))


@dataclass(frozen=True, slots=True)
class Order:
    """An accepted command that a gateway, or the application, has to carry out."""

    n: int
    "Its number in the store."
    target: str
    command: Command


@dataclass(slots=True)
class Batch:
    """The consequences of one batch of input."""

    run: Run
    at: float
    "When all of it happened, for the store: by `bridge.system.clock.SteadyTime`."
    wall: float
    "And as it is told: Unix time."
    outbox: list[OutboxEntry] = field(default_factory=list)
    rows: list[OutboxRow] = field(default_factory=list)
    "The outbox entries with their numbers, once they are written."
    copies: list[OutboxRow] = field(default_factory=list)
    "The same of those that are for Home Assistant alone."
    sendids_reserved: int | None = None
    "Sendids below this may be used, once the batch is on disk."
    alive: float | None = None
    "Monotonic time of the sign of life in it."
    repeats: list[tuple[bytes, str, float]] = field(default_factory=list)
    traffic: dict[str, dict[str, int]] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    feed: set[str] = field(default_factory=set)
    "Lines that may have something to send, and the time for it."
    settled: list[tuple[str, int]] = field(default_factory=list)
    "Line and number of SMS whose outcome the line still waits for, or that it would send again, and need not."
    changed: set[str] = field(default_factory=set)
    "Lines whose state changed."
    lines_changed: bool = False
    "Where a line is, or whether it is there."
    availability: dict[str, bool] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    "Jobs whose counts changed."
    sms_last: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    "Sender and text of the last inbound SMS, by line."
    emptied: list[str] = field(default_factory=list)
    "Retained commands to be removed from the broker."
    acknowledge: list[Incoming] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    "Commands that got their result."
    waiting: list[tuple[int, str | None, bytes | None]] = field(default_factory=list)
    "Repeats of commands that have no result yet: number, Response Topic, correlation data."
    refresh: set[str] = field(default_factory=set)
    "Lines whose retained state is to be published again; `*` is all."
    log: list[tuple[int, str, Hashable]] = field(default_factory=list)
    "Level and text of what is to be logged, and a key where there may be many: of one key one is logged in a while."
    _seq: dict[str, int] = field(default_factory=dict)
    _foreign: set[str] = field(default_factory=set)
    "Of the topics in `_seq` those that others chose."

    def fact(self, topic: str, payload_class: type, /, **fields: Any) -> None:
        """Publish a fact."""
        payload = payload_class(
            id=self.run.new_id(), at=timestamp(self.wall), boot=self.run.boot, seq=self.next_seq(topic), **fields
        )
        self.put(topic, payload_class, encode(payload))

    def event(self, topic: str, payload_class: type, event_type: str, fields: dict[str, Any]) -> None:
        """Publish a fact whose fields depend on its type."""
        payload = payload_class(
            id=self.run.new_id(),
            at=timestamp(self.wall),
            boot=self.run.boot,
            seq=self.next_seq(topic),
            event_type=event_type,
        )
        body = encode(payload)
        self.put(topic, payload_class, body[:-1] + b"," + encode(fields)[1:] if fields else body)

    def put(self, topic: str, payload_class: type, body: bytes, correlation: bytes | None = None) -> None:
        """Append a message to the outbox."""
        kind = KINDS[payload_class]
        self.outbox.append((topic, kind.schema, kind.expiry_s, body, correlation, self.at))

    def say(self, level: int, text: str, limited: Hashable = None) -> None:
        """Log once the batch is on disk; never a number, a text or a password. `limited` as in `log`."""
        self.log.append((level, text, limited))

    def count(self, line: str, what: str) -> None:
        """Add one to a line's traffic."""
        counts = self.traffic.setdefault(line, {})
        counts[what] = counts.get(what, 0) + 1

    def next_seq(self, topic: str, *, foreign: bool = False) -> int:
        """The next sequence number of a topic; `foreign` if somebody else chose it, so that there may be many."""
        number = (self._seq.get(topic) or self.run.last_seq(topic, foreign=foreign)) + 1
        self._seq[topic] = number
        if foreign:
            self._foreign.add(topic)
        else:
            self._foreign.discard(topic)
        return number

    def committed(self) -> None:
        """The transaction is on disk: the sequence numbers are used."""
        self.run.count(self._seq, self._foreign)
