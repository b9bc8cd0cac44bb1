"""What waits for the broker: the outbox of facts and results, and the retained states.

The outbox is the SQLite table; this holds the part of it that is next, and what is in flight. Facts keep their order;
a state that changes again before it was sent is sent once. Nothing is dropped before its PUBACK: after a lost
connection everything unacknowledged is sent again, with the same id.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

from bridge.mqtt import MqttLink, Publication, UnsendableError
from bridge.payloads import STATES, encode, stamped
from bridge.store import OutboxRow, Store
from bridge.topics import Topics

IN_MEMORY = 2000
"Messages of the outbox held in memory; the others stay in the store until their turn."
NO_SUBSCRIBER = 0x10
REFUSED = 0x80
PACKET_TOO_LARGE = 0x95
DOCUMENTS_IN_FLIGHT = 4
"They are large: what comes behind them must not wait long."
DOCUMENTS_TURN = 16
"And so often one of them goes before facts and states that never end."
DOCUMENTS_HELD_S = (600.0, 86400.0)
"A broker that closes the connection twice in a row over documents gets none for the first, doubling to the second."
PARK_S = (60.0, 3600.0)
"A refused publication is tried again after the first, doubling to the second."


@dataclass(slots=True)
class RetainedState:
    """What a retained topic says now."""

    topic: str
    body: bytes
    schema: str | None
    "None for the plain words online and offline."
    expiry_s: int | None
    document: bool = False
    "JSON of another program's making, and large: no `ts` is put on, and it waits for everything else."


Item = OutboxRow | RetainedState


@dataclass(slots=True)
class Parked:
    """A publication the broker refused."""

    item: Item
    retry_at: float


class Publisher:
    """Fills the link's window. `now` is monotonic, `clock` gives unix time."""

    def __init__(self, store: Store, clock: Callable[[], float], topics: Topics) -> None:
        self.published = 0
        self.acked = 0
        self.refused = 0
        self.waiting, self._oldest = store.outbox_size()
        "Messages in the outbox; and since when the first of the last run waits."
        self.link: MqttLink | None = None
        self._store = store
        self._clock = clock
        self._base = f"{topics.base}/"
        self._birth = RetainedState(topics.bridge("availability"), b"online", None, None)
        self._born = False
        self._facts: deque[OutboxRow] = deque()
        self._loaded = 0
        "Everything up to this number of the outbox is in memory or done."
        self._more = self.waiting > 0
        self._states: dict[str, RetainedState] = {}
        self._to_send: dict[str, None] = {}
        self._documents: dict[str, None] = {}
        "Documents to be sent."
        self.accepted: set[str] = set()
        "Topics of documents that the broker took in this run."
        self._documents_in_flight = 0
        self._documents_closed = 0
        "Connections in a row that ended with a document in flight."
        self._documents_from = 0.0
        "No document is sent before this time."
        self._in_flight: dict[int, Item] = {}
        self._parked: dict[int | str, Parked] = {}
        self._delays: dict[int | str, float] = {}
        self._done: list[int] = []
        self._turn = 0

    # -- what is to be published

    def add(self, rows: list[OutboxRow]) -> None:
        """New messages of the outbox, now durable."""
        self.waiting += len(rows)
        if self._more or len(self._facts) + len(rows) > IN_MEMORY:
            self._more = True
            return
        self._facts.extend(rows)
        self._loaded = rows[-1].n

    def set_payload(self, topic: str, payload: object) -> None:
        """Publish a state payload, retained, if it is new."""
        kind = STATES[type(payload)]
        self.set_state(RetainedState(topic, encode(payload), kind.schema, kind.expiry_s or None))

    def set_availability(self, topic: str, online: bool) -> None:
        """Publish `online` or `offline`, retained, if it is new."""
        self.set_state(RetainedState(topic, b"online" if online else b"offline", None, None))

    def set_state(self, state: RetainedState) -> None:
        """Publish a retained state, if it is new."""
        known = self._states.get(state.topic)
        if known is None or known.body != state.body:
            self._states[state.topic] = state
            if not state.body:
                self._parked.pop(state.topic, None)  # what was refused is no longer wanted
            if state.topic not in self._parked:
                self._queue(state)

    def remove(self, topic: str) -> None:
        """Remove a retained message from the broker."""
        self.set_state(RetainedState(topic, b"", None, None))

    def refresh(self, prefix: str) -> None:
        """Publish again every state below a topic."""
        self._to_send.update((topic, None) for topic in self._states if topic.startswith(prefix))

    def forget(self, topic: str) -> None:
        """Say nothing more of a topic, and leave the broker what it has."""
        self._states.pop(topic, None)
        self._to_send.pop(topic, None)
        self._documents.pop(topic, None)
        self._parked.pop(topic, None)

    def said(self, topic: str) -> bytes | None:
        """What a retained topic says, or is about to say; None when nothing, and no removal is under way either."""
        state = self._states.get(topic)
        return None if state is None else state.body

    def is_refused(self, topic: str) -> bool:
        """The broker refused what a retained topic says."""
        return topic in self._parked

    # -- the link's events

    def connected(self) -> None:
        """Everything not acknowledged, and every state, is to be sent on this connection."""
        self._born = False
        self.retry_parked()
        self.refresh(self._base)

    def disconnected(self, now: float) -> bool:
        """What was in flight is to be sent again; true when the broker seems not to bear documents, and gets none."""
        rows = sorted((item for item in self._in_flight.values() if isinstance(item, OutboxRow)), key=lambda row: row.n)
        self._facts.extendleft(reversed(rows))
        for item in self._in_flight.values():
            if isinstance(item, RetainedState) and item.topic in self._states:
                self._queue(self._states[item.topic])
        self._in_flight.clear()
        self._documents_closed = self._documents_closed + 1 if self._documents_in_flight else 0
        self._documents_in_flight = 0
        if self._documents_closed < 2:
            return False
        first, longest = DOCUMENTS_HELD_S
        self._documents_from = now + min(longest, first * 2.0 ** (self._documents_closed - 2))
        return True

    def acknowledged(self, acks: list[tuple[int, int]], now: float) -> list[tuple[Item, int]]:
        """Take PUBACKs; returns the publications of which somebody should hear, with their reason codes."""
        notable: list[tuple[Item, int]] = []
        for token, code in acks:
            item = self._in_flight.pop(token, None)
            if item is None:
                continue
            if isinstance(item, RetainedState):
                self._documents_in_flight -= item.document
            if code >= REFUSED and not self._is_courtesy(item):
                if isinstance(item, OutboxRow) or item is self._birth or item.topic in self._states:
                    self._park(item, now)
                notable.append((item, code))
                continue
            self.acked += 1
            if isinstance(item, RetainedState) and item.document:
                self.accepted.add(item.topic)
            if isinstance(item, OutboxRow):
                self._done.append(item.n)
                self._delays.pop(item.n, None)
                if code == NO_SUBSCRIBER and item.schema not in ("result", "bridge_event"):
                    notable.append((item, code))
                continue
            self._delays.pop(item.topic, None)
            self._parked.pop(item.topic, None)  # an earlier value was refused
            if not item.body and self._states.get(item.topic) is item and item.topic not in self._to_send:
                del self._states[item.topic]
        return notable

    def retry_parked(self, now: float | None = None) -> None:
        """Try refused publications again: those that are due, or all."""
        due = [key for key, parked in self._parked.items() if now is None or now >= parked.retry_at]
        rows = []
        for key in due:
            item = self._parked.pop(key).item
            if isinstance(item, OutboxRow):
                rows.append(item)
            elif item is self._birth:
                self._born = False
            elif item.topic in self._states:
                self._queue(self._states[item.topic])
        if rows:
            self._facts = deque(sorted([*rows, *self._facts], key=lambda row: row.n))

    def say_online_again(self) -> None:
        """Somebody else said that the bridge is offline."""
        self._born = False

    def say_goodbye(self) -> None:
        """From now on the bridge is offline; said after all states, as the birth message was, and without documents."""
        self._documents.clear()
        self._birth = RetainedState(self._birth.topic, b"offline", None, None)
        self._born = False

    # -- towards the link

    def drain(self, now: float) -> list[tuple[Item, int]]:
        """Publish while the window has room; returns what can't be sent at all, with the reason code it would get."""
        link = self.link
        unsendable: list[tuple[Item, int]] = []
        if link is None or not link.connected:
            return unsendable
        wall = self._clock()
        room = link.room
        while room > 0 and (item := self._next(now)) is not None:
            room -= 1
            try:
                token = link.publish(self._publication(item, wall))
            except UnsendableError:
                if self._is_courtesy(item):
                    self._done.append(item.n)
                else:
                    self._park(item, now)
                    unsendable.append((item, PACKET_TOO_LARGE))
                continue
            if token is None:
                self._put_back(item)
                break
            self.published += 1
            self._in_flight[token] = item
            if isinstance(item, RetainedState):
                self._documents_in_flight += item.document
        return unsendable

    def take_done(self) -> list[int]:
        """Numbers of the outbox that the broker has; to be deleted."""
        done, self._done = self._done, []
        self.waiting -= len(done)
        return done

    def not_deleted(self, numbers: list[int]) -> None:
        """Deleting failed: later, then."""
        self._done.extend(numbers)
        self.waiting += len(numbers)

    @property
    def done_count(self) -> int:
        """How many are to be deleted."""
        return len(self._done)

    @property
    def oldest(self) -> float | None:
        """Unix time of the oldest message that the broker does not have."""
        rows = [item for item in self._in_flight.values() if isinstance(item, OutboxRow)]
        rows += [parked.item for parked in self._parked.values() if isinstance(parked.item, OutboxRow)]
        if self._facts:
            rows.append(self._facts[0])
        return min((row.at for row in rows), default=self._oldest if self._more else None)

    @property
    def has_documents(self) -> bool:
        """Documents wait, or are on their way."""
        return bool(self._documents or self._documents_in_flight)

    @property
    def said_goodbye(self) -> bool:
        """The broker has acknowledged the last birth message, which was a farewell."""
        return self._born and self._birth not in self._in_flight.values()

    @property
    def idle(self) -> bool:
        """Nothing is in flight and nothing waits that could be sent now."""
        return self._born and not self._in_flight and not self._to_send and not self._facts and not self._more

    def _queue(self, state: RetainedState) -> None:
        mine, other = (self._documents, self._to_send) if state.document else (self._to_send, self._documents)
        mine[state.topic] = None
        other.pop(state.topic, None)

    def _next(self, now: float) -> Item | None:
        """States and then the birth message; after that mostly facts, as an alarm must not wait for 10,000 states. What
        is left goes to documents.
        """
        self._turn += 1
        if self._born and self._turn % DOCUMENTS_TURN == 0 and (document := self._next_document(now)) is not None:
            return document
        if self._to_send and (not self._born or self._turn % 4 == 0 or not self._has_facts()):
            topic = next(iter(self._to_send))
            del self._to_send[topic]
            return self._states[topic]
        if not self._born:
            if self._in_flight:
                return None  # `online` only when every retained state is in place
            self._born = True
            return self._birth
        return self._facts.popleft() if self._has_facts() else self._next_document(now)

    def _next_document(self, now: float) -> RetainedState | None:
        if not self._documents or self._documents_in_flight >= DOCUMENTS_IN_FLIGHT or now < self._documents_from:
            return None
        topic = next(iter(self._documents))
        del self._documents[topic]
        return self._states[topic]

    def _has_facts(self) -> bool:
        if not self._facts and self._more and self._parked_facts < IN_MEMORY:
            page = self._store.outbox(self._loaded, IN_MEMORY)
            self._more = len(page) == IN_MEMORY
            self._facts.extend(page)
            if page:
                self._loaded = page[-1].n
        return bool(self._facts)

    def _publication(self, item: Item, wall: float) -> Publication:
        match item:
            case OutboxRow():
                return Publication(
                    item.topic,
                    stamped(item.body, wall),
                    expiry_s=item.expiry_s,
                    schema=item.schema,
                    correlation=item.correlation,
                )
            case RetainedState(document=True):
                return Publication(item.topic, item.body, retain=True)
            case RetainedState(schema=None):
                return Publication(item.topic, item.body, retain=True, content_type="text/plain")
            case RetainedState():
                body = stamped(item.body, wall)
                return Publication(item.topic, body, retain=True, expiry_s=item.expiry_s, schema=item.schema)

    def _is_courtesy(self, item: Item) -> TypeGuard[OutboxRow]:
        """A result on a caller's Response Topic: it is on our own result topic as well, so it need not be kept."""
        if not isinstance(item, OutboxRow) or item.schema != "result":
            return False
        return not (item.topic.startswith(self._base) and "/result/" in item.topic)

    def _put_back(self, item: Item) -> None:
        if isinstance(item, OutboxRow):
            self._facts.appendleft(item)
        elif item is self._birth:
            self._born = False
        else:
            self._queue(item)

    @property
    def _parked_facts(self) -> int:
        return sum(isinstance(key, int) for key in self._parked)

    def _park(self, item: Item, now: float) -> None:
        key = item.n if isinstance(item, OutboxRow) else item.topic
        delay = min(self._delays.get(key, PARK_S[0] / 2) * 2, PARK_S[1])
        self._delays[key] = delay
        self.refused += 1
        self._parked[key] = Parked(item, now + delay)
