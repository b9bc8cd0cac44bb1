"""What waits for the broker: the outbox of facts and results, and the retained states.

The outbox is the SQLite table; this holds the part of it that is next, and what is in flight. Facts keep their order;
a state that changes again before it was sent is sent once. Nothing is dropped before its PUBACK: after a lost
connection everything unacknowledged is sent again, with the same id.

A copy of a fact for Home Assistant goes the same way, but only while Home Assistant is there; else it waits in the
store, and for `COPY_S` at most.

Some brokers refuse by closing the connection: on MQTT 3.1.1 all of them what is too large, some what their ACL forbids.
`Suspicion` finds such a publication, and it is held, so that it does not close every connection before the others are
through. Others close for reasons of their own, however often: then every connection carries on where the last one was
cut off.
"""

import enum
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeGuard

from ..contract.payloads import STATES, encode, stamped
from ..contract.topics import Topics
from ..store.database import OutboxRow, Store
from .link import MqttLink, Publication, UnsendableError

IN_MEMORY = 2000
"Messages of the outbox held in memory; the others stay in the store until their turn."
NO_SUBSCRIBER = 0x10
REFUSED = 0x80
PACKET_TOO_LARGE = 0x95
DOCUMENTS_IN_FLIGHT = 4
"They are large: what comes behind them must not wait long."
DOCUMENTS_TURN = 16
"And so often one of them goes before facts and states that never end."
PARK_S = (60.0, 3600.0)
"A refused publication is tried again after the first, doubling to the second."
HELD_S = (60.0, 86400.0)
"The same for what made the broker close the connection: an attempt costs all others their connection."
CUTS = 2
"""So many connections in a row that the broker closed before everything was through: it closes for reasons of its own,
and states that it has just taken no longer go before the rest."""
LASTING, LASTING_S = 100, 60.0
"A connection on which the broker has acknowledged so many publications, or that is so old, is not cut short."
MOST_EXTRA_ENDS = 8
COPY_S = 3600.0
"So long a copy waits for Home Assistant, or shorter when its fact expires earlier."
MOST_COPIES = 1000
"Of each kind of fact; the oldest go first."
ALONE_S = 30.0
"So long others wait for the acknowledgement of what is sent alone: a broker may never say anything."


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
Key = int | str


def _key(item: Item) -> Key:
    return item.n if isinstance(item, OutboxRow) else item.topic


@dataclass(slots=True)
class Parked:
    """A publication the broker refused."""

    item: Item
    retry_at: float


class Verdict(enum.Enum):
    """What the end of a connection says about the only publication in flight."""

    SUSPECT = "it may have been this one: it is tried again when everything else is through"
    GUILTY = "the broker closes the connection when this is published"


@dataclass(slots=True)
class _Trial:
    """What speaks against a publication: it was alone in flight when the broker closed."""

    ends: int
    "So many connections."
    position: int
    "The earliest place among the publications of a connection at which that happened."
    survived: int = 0
    "The most publications that the broker took on one connection since then."


class Suspicion:
    """Which publication makes the broker close the connection, if any does.

    Brokers acknowledge in order, so it should be the first of those in flight. That one is sent alone on the next
    connection, before the others; an acknowledgement clears it. When it was cleared and the connection ends all the
    same, acknowledgements are lost on their way: then all that were in flight are sent alone. If it ends that
    connection, it is tried again when everything else is through. It is guilty when it ends that one too, and the
    broker took others meanwhile in the place where it had closed over this one: else it may close at every tenth
    publication, at every first, or at any moment. Each suspect that was cleared shows that the broker does so, and that
    one end more has to be seen.
    """

    def __init__(self) -> None:
        self.alone: set[Key] = set()
        "What is sent with nothing else in flight."
        self.first: Key | None = None
        "What is sent before everything else."
        self._doubtful: set[Key] = set()
        "In flight when a connection ended, and not acknowledged since."
        self._trials: dict[Key, _Trial] = {}
        self._cleared = 0
        self._taken = 0
        "Publications that the broker acknowledged on this connection."

    def connected(self) -> None:
        """A new connection."""
        self._taken = 0

    def ended(self, in_flight: list[Key]) -> Verdict | None:
        """The broker closed the connection; the verdict is about the only publication in flight."""
        if not in_flight:
            return None
        key = in_flight[0]
        if len(in_flight) > 1 or (key != self.first and key not in self._trials):
            self.alone = {*self._doubtful, *in_flight} if self._doubtful else {key}
            self.first = key
            self._doubtful.update(in_flight)
            return None
        self._forget(key)
        trial = self._trials.setdefault(key, _Trial(0, self._taken + 1))
        trial.ends += 1
        if trial.ends >= 2 + min(self._cleared, MOST_EXTRA_ENDS) and trial.survived >= trial.position:
            del self._trials[key]
            self._cleared = 0
            return Verdict.GUILTY
        trial.position = min(trial.position, self._taken + 1)
        return Verdict.SUSPECT

    def acknowledged(self, key: Key) -> None:
        """The broker bears this one, and has not closed the connection yet."""
        self._taken += 1
        if key in self._trials or key == self.first:
            self._cleared += 1
        self.acquit(key)
        for trial in self._trials.values():
            trial.survived = max(trial.survived, self._taken)

    def acquit(self, key: Key) -> None:
        """Suspect this one no more."""
        self._trials.pop(key, None)
        self._forget(key)

    def relieve(self) -> None:
        """All is well: what the broker did is past."""
        if not self._trials and not self._doubtful:
            self._cleared = 0

    def _forget(self, key: Key) -> None:
        self.alone.discard(key)
        self._doubtful.discard(key)
        if self.first == key:
            self.first = None


class Publisher:
    """Fills the link's window. `now` is monotonic, `clock` gives unix time."""

    def __init__(self, store: Store, clock: Callable[[], float], topics: Topics) -> None:
        self.published = 0
        self.acked = 0
        self.refused = 0
        self._rows, self._oldest = store.outbox_size()
        "Messages in the outbox, copies among them; and since when the first of the last run waits."
        self._copies: dict[str, dict[int, float]] = {}
        "Copies for Home Assistant in the outbox, by kind and number: until when each of them counts."
        self._copies_from: int | None = None
        "The first copy that waits in the store for Home Assistant."
        self._unheard: dict[int, OutboxRow] = {}
        "By number: facts to which nobody was subscribed, while it is not known whether Home Assistant got its copy."
        self.at_home = False
        "Home Assistant is there, and takes its copies."
        for n, schema, expiry_s, at in store.outbox_copies():
            self._note_copy(n, schema, expiry_s, at)
        self.link: MqttLink | None = None
        self._store = store
        self._clock = clock
        self._base = f"{topics.base}/"
        self._birth = RetainedState(topics.bridge("availability"), b"online", None, None)
        self._born = False
        self._hearing: bool | None = True
        "Whether commands reach us; None while that is not known."
        self._leaving = False
        self._only: Collection[str] | None = None
        "The retained topics that may be published; None is all."
        self._facts: deque[OutboxRow] = deque()
        self._loaded = 0
        "Everything up to this number of the outbox is in memory or done."
        self._more = self._rows > 0
        self._states: dict[str, RetainedState] = {}
        self._to_send: dict[str, None] = {}
        self._documents: dict[str, None] = {}
        "Documents to be sent."
        self.accepted: set[str] = set()
        "Topics of documents that the broker took in this run."
        self._documents_in_flight = 0
        self._in_flight: dict[int, Item] = {}
        self._parked: dict[Key, Parked] = {}
        self._delays: dict[Key, float] = {}
        self._suspicion = Suspicion()
        self._alone_until = 0.0
        "Until then nothing is sent beside what is in flight; 0 when that is not to be alone."
        self._held: dict[str, Item] = {}
        "By topic, what may make the broker close the connection; the next to be tried first."
        self._accused: set[str] = set()
        "Of these topics, those where it does. The others are tried as soon as there is nothing else to do."
        self._untried: set[str] = set()
        "Of the accused, those that were not tried again since."
        self._left_out: int | None = None
        "The first fact of the outbox that is neither in memory nor done: it is like one that is held, or was refused."
        self._left_out_until = 0.0
        "When what is left out is read again, at the latest."
        self._try_from = 0.0
        self._try_delay = 0.0
        self._done: list[int] = []
        self._turn = 0
        self.progressed = False
        "The connection brought something through that the next one need not repeat."
        self._cuts = 0
        "Connections in a row that the broker closed before everything was through."
        self._acked_here = 0
        "Publications that were acknowledged on this connection."
        self._settled: set[str] = set()
        "States that the broker took on these connections."
        self._later_at: float | None = None
        self._later: dict[str, None] = {}
        "Of these, what is to be said again when the connection lasts."

    # -- what is to be published

    def add(self, rows: list[OutboxRow]) -> None:
        """New messages of the outbox, now durable."""
        self._rows += len(rows)
        for row in rows:
            if row.copy_of:
                self._note_copy(row.n, row.schema, row.expiry_s, row.at)
        if self._more or len(self._facts) + len(rows) > IN_MEMORY:
            self._more = True
            return
        self._facts.extend(rows)
        self._loaded = rows[-1].n

    def _note_copy(self, n: int, schema: str, expiry_s: int, at: float) -> None:
        self._copies.setdefault(schema, {})[n] = at + min(expiry_s, COPY_S)

    def set_at_home(self, there: bool) -> int:
        """Whether Home Assistant is there. Returns how many copies have waited for it."""
        if there == self.at_home:
            return 0
        self.at_home = there
        if not there or self._copies_from is None:
            return 0
        self._read_again(self._copies_from)
        self._copies_from = None
        return sum(map(len, self._copies.values()))

    def drop_copies(self, at: float) -> int:
        """Wait no longer with copies whose time is over, and with the oldest of too many; returns how many these are.
        `at` is by `bridge.system.clock.SteadyTime`.
        """
        dropped = []
        for copies in self._copies.values():
            for n, until in list(itertools.islice(copies.items(), MOST_COPIES)):
                if until >= at and len(copies) <= MOST_COPIES:
                    break
                del copies[n]
                dropped.append(n)
        self._done += dropped
        return len(dropped)

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
        self._later.pop(topic, None)
        self._parked.pop(topic, None)
        self._delays.pop(topic, None)

    def said(self, topic: str) -> bytes | None:
        """What a retained topic says, or is about to say; None when nothing, and no removal is under way either."""
        state = self._states.get(topic)
        return None if state is None else state.body

    def is_refused(self, topic: str) -> bool:
        """The broker refused what a retained topic says."""
        return topic in self._parked or topic in self._accused

    # -- the link's events

    def connected(self) -> None:
        """Everything not acknowledged, and every state, is to be sent on this connection."""
        self._born = False
        self.progressed, self._acked_here = False, 0
        self._suspicion.connected()
        self._take_in()
        self._unpark(list(self._parked))
        if self._cuts < CUTS:
            self._settled.clear()
        self._later_at = None
        self._later = {topic: None for topic in self._states if topic in self._settled and topic not in self._to_send}
        self._to_send.update((t, None) for t in self._states if t.startswith(self._base) and t not in self._later)

    def disconnected(self, now: float, *, closed: bool = True) -> Item | None:
        """What was in flight is to be sent again, but not the publication over which the broker closes connections;
        that one is returned. `closed`: the broker ended this one.
        """
        self._cuts = self._cuts + 1 if closed and not self._is_through else 0
        items = list(self._in_flight.values())
        self._in_flight.clear()
        self._documents_in_flight = 0
        closer = None
        if closed and len(items) == 1 and items[0].topic in self._accused and self._is_held(items[0]):
            closer = items.pop()
        elif closed and (verdict := self._suspicion.ended([_key(item) for item in items])) is not None:
            suspect = items.pop()
            if verdict is Verdict.GUILTY:
                closer = suspect
            else:
                self._defer(suspect)
        else:
            self._try_held(now)  # when that was a restart, the broker may have another configuration
        if closer is not None:
            self._hold(closer, now)
        items = [item for item in items if self._held.get(item.topic) is not item]
        self._facts.extendleft(sorted((item for item in items if isinstance(item, OutboxRow)), key=lambda row: -row.n))
        self._queue_first(self._states[item.topic] for item in items if item.topic in self._states)
        return closer

    def acknowledged(self, acks: list[tuple[int, int]], now: float) -> list[tuple[Item, int]]:
        """Take PUBACKs; returns the publications of which somebody should hear, with their reason codes."""
        notable: list[tuple[Item, int]] = []
        for token, code in acks:
            item = self._in_flight.pop(token, None)
            if item is None:
                continue
            self._suspicion.acknowledged(_key(item))
            self._bears(item)
            self._acked_here += 1
            if self._acked_here == LASTING:
                self._say_later()
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
                unheard = self._is_unheard(item) if code == NO_SUBSCRIBER else None
                if item.copy_of and code == NO_SUBSCRIBER:
                    self._wait_for_home(item)  # it has not said yet that it is away
                else:
                    self.progressed = True
                    self._finish(item)
                if self._delays.pop(item.n, None) is not None and not self._parked_facts:
                    self._take_in()  # nothing is refused any more
                if unheard is not None:
                    notable.append((unheard, code))
                continue
            self._settle(item)
            self._delays.pop(item.topic, None)
            self._parked.pop(item.topic, None)  # an earlier value was refused
            if not item.body and self._states.get(item.topic) is item and item.topic not in self._to_send:
                del self._states[item.topic]
        if self._cuts and self._is_through:
            self._cuts = 0
            self._suspicion.relieve()
        return notable

    def _is_unheard(self, row: OutboxRow) -> OutboxRow | None:
        """What nobody heard, when nobody is subscribed to this; a fact and its copy for Home Assistant are one."""
        if row.copy_of:
            return self._unheard.pop(row.copy_of, None)
        if row.schema in ("result", "bridge_event"):
            return None
        if not self.at_home or not self._copies.get(row.schema):
            return row
        self._unheard[row.n] = row
        if len(self._unheard) > IN_MEMORY:
            del self._unheard[next(iter(self._unheard))]
        return None

    def _say_later(self) -> None:
        """The connection lasts."""
        self._to_send.update(self._later)
        self._later = {}

    def _settle(self, state: RetainedState) -> None:
        """The broker has what a topic says now. After so many connections that were cut short it is not asked again."""
        if self._states.get(state.topic) is state and state.topic not in self._settled:
            self._settled.add(state.topic)
            self.progressed = self.progressed or self._cuts >= CUTS - 1

    def retry_parked(self, now: float | None = None) -> None:
        """Try refused publications again: those that are due, or all."""
        if now is None:
            self._try_held(0.0)
        if self._left_out is not None and (now is None or now >= self._left_out_until):
            self._take_in()
        self._unpark([key for key, parked in self._parked.items() if now is None or now >= parked.retry_at])

    def _unpark(self, keys: list[Key]) -> None:
        rows = []
        for key in keys:
            item = self._parked.pop(key).item
            if isinstance(item, OutboxRow):
                rows.append(item)
            elif item is self._birth:
                self._born = False
            elif item.topic in self._states:
                self._queue(self._states[item.topic])
        if rows:
            self._facts = deque(sorted([*rows, *self._facts], key=lambda row: row.n))

    def say_only(self, topics: Collection[str] | None) -> None:
        """Of the retained topics publish only these; None is all. Facts and results are published anyway."""
        self._only = topics

    def say_again(self, topic: str) -> None:
        """Publish a state again, before other states."""
        if topic in self._states:
            self._queue_first([self._states[topic]])

    def waits(self, topic: str) -> bool:
        """What a retained topic says is still to be published, or acknowledged."""
        return self._is_to_send(topic) or any(item.topic == topic for item in self._in_flight.values())

    def say_all_again(self, *, but: str) -> None:
        """Somebody else may have said something on any of our retained topics but one, `online` included."""
        waits = self._is_to_send(but)
        self.refresh(self._base)
        if not waits:
            self._to_send.pop(but, None)
        self._born = False

    def say_online_again(self) -> None:
        """Somebody else said that the bridge is offline."""
        if self._birth.body == b"online":
            self._born = False

    def set_hearing(self, hearing: bool | None) -> None:
        """Whether commands reach us: then `online` is said, else `offline`, and neither while that is not known."""
        self._hearing = hearing
        if hearing is not None and not self._leaving:
            self._say_birth(b"online" if hearing else b"offline")

    def say_goodbye(self) -> None:
        """From now on the bridge is offline; said after all states, as the birth message was, and without documents."""
        self._documents.clear()
        self._leaving = True
        self._born = False
        self._say_birth(b"offline")

    def _say_birth(self, word: bytes) -> None:
        if self._birth.body != word:
            self._let_go(self._birth.topic)
            self._parked.pop(self._birth.topic, None)
            self._birth = RetainedState(self._birth.topic, word, None, None)
            self._born = False

    # -- towards the link

    def drain(self, now: float) -> list[tuple[Item, int]]:
        """Publish while the window has room; returns what can't be sent at all, with the reason code it would get."""
        link = self.link
        unsendable: list[tuple[Item, int]] = []
        if link is None or not link.connected:
            return unsendable
        if self._later and self._later_at is None:
            self._later_at = now + LASTING_S
        elif self._later_at is not None and now >= self._later_at:
            self._later_at = None
            self._say_later()
        wall = self._clock()
        room = link.room
        while room > 0 and (item := self._next(now)) is not None:
            try:
                token = link.publish(self._publication(item, wall))
            except UnsendableError:
                self._suspicion.acquit(_key(item))
                self._bears(item)
                if self._is_courtesy(item):
                    self._finish(item)
                else:
                    self._park(item, now)
                    unsendable.append((item, PACKET_TOO_LARGE))
                continue
            if token is None:
                self._put_back(item)
                break
            room -= 1
            self.published += 1
            self._in_flight[token] = item
            alone = _key(item) in self._suspicion.alone or self._is_held(item)
            self._alone_until = now + ALONE_S if alone else 0.0
            if isinstance(item, RetainedState):
                self._documents_in_flight += item.document
        return unsendable

    def take_done(self) -> list[int]:
        """Numbers of the outbox that the broker has; to be deleted."""
        done, self._done = self._done, []
        self._rows -= len(done)
        return done

    def not_deleted(self, numbers: list[int]) -> None:
        """Deleting failed: later, then."""
        self._done.extend(numbers)
        self._rows += len(numbers)

    @property
    def waiting(self) -> int:
        """Messages that wait for the broker; copies for Home Assistant don't count."""
        return self._rows - sum(map(len, self._copies.values()))

    @property
    def done_count(self) -> int:
        """How many are to be deleted."""
        return len(self._done)

    @property
    def oldest(self) -> float | None:
        """Unix time of the oldest message that the broker does not have."""
        items = [*self._in_flight.values(), *(parked.item for parked in self._parked.values()), *self._held.values()]
        items += itertools.islice((row for row in self._facts if not row.copy_of), 1)
        rows = [item for item in items if isinstance(item, OutboxRow) and not item.copy_of]
        return min((row.at for row in rows), default=self._oldest if self._more else None)

    @property
    def has_documents(self) -> bool:
        """Documents wait, or are on their way."""
        return bool(self._documents or self._documents_in_flight)

    @property
    def said_goodbye(self) -> bool:
        """The broker has acknowledged the farewell."""
        return self._leaving and self._said_birth

    @property
    def said_online(self) -> bool:
        """The broker has acknowledged `online` on this connection."""
        return self._birth.body == b"online" and self._said_birth

    @property
    def _is_through(self) -> bool:
        """All has been said; but what the broker closes connections over."""
        return self.idle and not self._later and self._held.keys() <= self._accused

    @property
    def _is_unborn(self) -> bool:
        """The birth message is to be said, and it is known how."""
        return not self._born and (self._hearing is not None or self._leaving)

    @property
    def _said_birth(self) -> bool:
        topic = self._birth.topic
        in_flight = tuple(self._in_flight.values())  # at once: the health socket's thread looks as well
        waits = topic in self._parked or topic in self._held or self._birth in in_flight
        return self._born and not waits

    @property
    def idle(self) -> bool:
        """Nothing is in flight and nothing waits that could be sent now."""
        states = self._only is None and (self._to_send or self._is_unborn)
        return not (states or self._in_flight or self._facts or self._more)

    def _queue(self, state: RetainedState) -> None:
        self._later.pop(state.topic, None)
        self._settled.discard(state.topic)
        mine, other = (self._documents, self._to_send) if state.document else (self._to_send, self._documents)
        mine[state.topic] = None
        other.pop(state.topic, None)

    def _queue_first(self, states: Iterable[RetainedState]) -> None:
        """In the order in which they were sent: else each connection could end over another one."""
        again = list(states)
        self._to_send = {state.topic: None for state in again if not state.document} | self._to_send
        self._documents = {state.topic: None for state in again if state.document} | self._documents

    def _next(self, now: float) -> Item | None:
        """What is to be sent now."""
        if self._in_flight and self._alone_until:
            if now < self._alone_until:
                return None
            self._suspicion.alone.clear()
        while (item := self._choose()) is not None:
            if self._waits_for_home(item):
                self._wait_for_home(item)
            elif not self._is_held(item):
                break
            elif isinstance(item, OutboxRow):
                self._leave_out(item)
        if item is None:
            return self._next_held(now)
        if self._in_flight and _key(item) in self._suspicion.alone:
            self._put_back(item)
            return None
        return item

    def _choose(self) -> Item | None:
        """States and then the birth message; after that mostly facts, as an alarm must not wait for 10,000 states. What
        is left goes to documents.
        """
        if self._only is not None:
            state = self._choose_state(self._only) or self._choose_suspect(self._only)
            return state or (self._facts.popleft() if self._has_facts() else None)
        if (suspect := self._choose_suspect(None)) is not None:
            return suspect
        self._turn += 1
        if self._born and self._turn % DOCUMENTS_TURN == 0 and (document := self._next_document()) is not None:
            return document
        ours = self._turn % 4 == 0 or not self._has_facts()  # the turn of states, if facts don't wait for all of them
        ours = ours or not (self._born or self._cuts >= CUTS)
        if self._to_send and ours:
            topic = next(iter(self._to_send))
            del self._to_send[topic]
            return self._states[topic]
        if self._is_unborn and ours:
            states = any(isinstance(item, RetainedState) for item in self._in_flight.values())
            if states or (self._in_flight and self._leaving):
                return None  # `online` only when every retained state is in place, and `offline` is our last word
            self._born = True
            return self._birth
        return self._facts.popleft() if self._has_facts() else self._next_document()

    def _choose_suspect(self, only: Collection[str] | None) -> Item | None:
        """What is to be tried before everything else, as far as it may be said; the birth message has its own place."""
        key = self._suspicion.first
        if isinstance(key, int):
            row = next((row for row in self._facts if row.n == key), None) if self._has_facts() else None
            if row is not None:
                self._facts.remove(row)
            elif not self._in_flight:
                self._suspicion.first = None  # it is left out, or refused
            return row
        if key in self._states and (only is None or key in only) and self._is_to_send(key):
            return self._take_state(key)
        return None

    def _is_to_send(self, topic: str) -> bool:
        return topic in self._to_send or topic in self._documents or topic in self._later

    def _take_state(self, topic: str) -> RetainedState:
        for waiting in (self._to_send, self._documents, self._later):
            waiting.pop(topic, None)
        return self._states[topic]

    def _choose_state(self, topics: Iterable[str]) -> RetainedState | None:
        for topic in topics:
            if topic in self._to_send or topic in self._later:
                return self._take_state(topic)
        return None

    def _next_document(self) -> RetainedState | None:
        if not self._documents or self._documents_in_flight >= DOCUMENTS_IN_FLIGHT:
            return None
        if any(isinstance(item, RetainedState) and item.document for item in self._held.values()):
            return None  # what is wrong with one is wrong with all
        topic = next(iter(self._documents))
        del self._documents[topic]
        return self._states[topic]

    def _has_facts(self) -> bool:
        while not self._facts and self._more:
            page = self._store.outbox(self._loaded, IN_MEMORY)
            self._more = len(page) == IN_MEMORY
            taken = self._taken
            self._facts.extend(row for row in page if row.n not in taken)
            if page:
                self._loaded = page[-1].n
        return bool(self._facts)

    @property
    def _taken(self) -> set[int]:
        """What is elsewhere, should a page be read once more."""
        items = [*self._in_flight.values(), *self._held.values(), *(parked.item for parked in self._parked.values())]
        return {*self._done, *(item.n for item in items if isinstance(item, OutboxRow))}

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

    def _waits_for_home(self, item: Item) -> TypeGuard[OutboxRow]:
        """A copy while Home Assistant is away, or one that was dropped."""
        if not isinstance(item, OutboxRow) or not item.copy_of:
            return False
        return not self.at_home or item.n not in self._copies[item.schema]

    def _wait_for_home(self, copy: OutboxRow) -> None:
        """It stays in the store, unless it was dropped."""
        if copy.n in self._copies[copy.schema]:
            self._copies_from = copy.n if self._copies_from is None else min(self._copies_from, copy.n)

    def _finish(self, row: OutboxRow) -> None:
        """It is to be deleted; a copy that was dropped meanwhile is deleted already."""
        if row.copy_of:
            self._unheard.pop(row.copy_of, None)
            if self._copies[row.schema].pop(row.n, None) is None:
                return
        self._done.append(row.n)

    def _put_back(self, item: Item) -> None:
        if isinstance(item, OutboxRow):
            self._facts.appendleft(item)
        elif item is self._birth:
            self._born = False
        else:
            self._queue_first([item])

    @property
    def _parked_facts(self) -> int:
        return sum(isinstance(key, int) for key in self._parked)

    def _park(self, item: Item, now: float) -> None:
        key = item.n if isinstance(item, OutboxRow) else item.topic
        if isinstance(item, OutboxRow) and len(self._parked) >= IN_MEMORY:
            self.refused += 1
            self._delays.pop(key, None)
            self._leave_out(item)
            self._left_out_until = now + PARK_S[1]
            return
        if isinstance(item, RetainedState) and not item.body and len(self._parked) >= IN_MEMORY:
            self.forget(item.topic)  # whoever may publish commands could retain any number, each on a topic of its own
            return
        delay = min(self._delays.get(key, PARK_S[0] / 2) * 2, PARK_S[1])
        self._delays[key] = delay
        self.refused += 1
        self._parked[key] = Parked(item, now + delay)

    # -- what makes the broker close the connection

    def _defer(self, item: Item) -> None:
        """It ended a connection alone, and may be innocent: once more, when everything else is through."""
        earlier = self._held.pop(item.topic, None)
        self._let_go(item.topic)
        self._held[item.topic] = item
        if isinstance(earlier, OutboxRow) and earlier is not item:
            self._leave_out(earlier)

    def _hold(self, item: Item, now: float) -> None:
        """Send it no more, but alone and seldom; and nothing that is like it (`_is_held`)."""
        self.refused += 1
        earlier = self._held.pop(item.topic, None)
        if self._is_courtesy(item):
            self._let_go(item.topic)
            self._finish(item)
            return
        first, longest = HELD_S
        if item.topic in self._accused and earlier is not None and _key(earlier) == _key(item):
            self._held[item.topic] = item  # behind the others
            self._untried.discard(item.topic)
            if not self._untried:
                self._try_delay = min(2 * max(first, self._try_delay), longest)
        else:
            self._held = {item.topic: item, **self._held}
            self._accused.add(item.topic)
            self._untried.add(item.topic)
            if isinstance(earlier, OutboxRow) and earlier is not item:
                self._leave_out(earlier)
        self._try_from = now + (first if self._untried else self._try_delay)

    def _is_held(self, item: Item) -> bool:
        """It, or one on the same topic that is not much smaller, may make the broker close the connection."""
        held = self._held.get(item.topic) if self._held else None
        return held is not None and 2 * len(item.body) >= len(held.body)

    def _leave_out(self, row: OutboxRow) -> None:
        """There may be many: they stay in the store."""
        self._left_out = row.n if self._left_out is None else min(self._left_out, row.n)

    def _take_in(self) -> None:
        """Read again what was left out."""
        if self._left_out is not None:
            self._read_again(self._left_out)
            self._left_out = None

    def _read_again(self, first: int) -> None:
        """Everything of the outbox from this number on that is not elsewhere."""
        self._facts = deque(row for row in self._facts if row.n < first)
        self._loaded = min(self._loaded, first - 1)
        self._more = True

    def _let_go(self, topic: str) -> None:
        self._held.pop(topic, None)
        self._accused.discard(topic)
        self._untried.discard(topic)

    def _try_held(self, since: float) -> None:
        self._try_from, self._try_delay = min(self._try_from, since), 0.0

    def _next_held(self, now: float) -> Item | None:
        """One of them, when there is nothing else to do: the connection may not outlive it."""
        ready = self._born or self._only is not None or self._hearing is None
        if not self._held or self._leaving or self._in_flight or not ready:
            return None
        accused = sorted(self._held, key=self._accused.__contains__)  # the others before them
        for topic in accused:
            item = self._held[topic]
            if topic in self._accused and now < self._try_from:
                continue
            if self._only is not None and isinstance(item, RetainedState) and topic not in self._only:
                continue
            if self._waits_for_home(item):
                continue
            if isinstance(item, OutboxRow) or topic == self._birth.topic:
                return item
            if (state := self._states.get(topic)) is not None:
                self._take_state(topic)
                self._held[topic] = state
                return state
            self._let_go(topic)
        return None

    def _bears(self, item: Item) -> None:
        """The broker does not close the connection over this one."""
        if not self._is_held(item):
            return
        self._let_go(item.topic)
        if isinstance(item, RetainedState):
            if self._states.get(item.topic, item) is not item:
                self._queue(self._states[item.topic])
        else:
            self._take_in()
