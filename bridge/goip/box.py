"""The sessions of one box: how many it takes at once, and whose turn the next one is (docs/protocol.md §4.2).

The document says that five may be open, and not whether on a line or on the whole box. So every line begins one when it
likes until the box refuses one. From then on it is known how many it takes, and its lines wait for each other: whoever
ends a session hands it on. What was learnt is tried again every `Timing.full` seconds while somebody waits, for it may
be wrong: sessions that nobody ended are forgotten after 90 s, and several boxes may share a host.
"""

import math
from dataclasses import dataclass
from heapq import nsmallest
from typing import Generic, Protocol, TypeVar

from .session import BulkSession, Session
from .timing import Timing

MOST_NUMBERS = 10
"Numbers in one session: the box remembers the outcome of the last ten (§4.2)."
FEW_NUMBERS = 3
"""The same while others wait: 6 to 15 s. One after the other they would wait less, but each session costs three round
trips, which must not take more than a tenth of the time even where a round trip takes 0.3 s."""
URGENT = 9
"The highest priority: nothing comes before it."
AGEING_S = 10.0
"Seconds of waiting that count as much as one more priority, up to the one below `URGENT`: so everybody has a turn."


@dataclass(slots=True)
class _Wait:
    """Somebody waits for a session."""

    priority: int
    since: float
    refused_at: float = -math.inf
    held_until: float = -math.inf
    "It was refused where it had its turn, so others come first for a moment."


@dataclass(slots=True)
class _Open:
    """A session that was begun, and is not over."""

    taken: bool = False
    "The box has opened it."
    wait: _Wait | None = None
    "How long the line had waited: should it be refused, it goes on with that."


class Sender(Protocol):
    """A line, as far as its box has to know it."""

    session: Session | None

    @property
    def ready(self) -> bool:
        """It would begin a session at once."""

    def shorten(self, most: int, now: float) -> None:
        """Have a session end after this many numbers more."""


L = TypeVar("L", bound=Sender)


class Box(Generic[L]):
    """What is known of one box. `SmsServer` has one for each `gateway` of the configuration, or for each host."""

    def __init__(self, timing: Timing) -> None:
        self.limit = math.inf
        "Sessions that it takes at once, as far as it showed."
        self.scheduled: float | None = None
        "The server's: when its deadline heap will look at this box."
        self._timing = timing
        self._open: dict[L, _Open] = {}
        self._taken = 0
        "How many of them the box has opened."
        self._waits: dict[L, _Wait] = {}
        self._retry_at = -math.inf
        "When one session more than `limit` may be tried."
        self._timer: float | None = None

    @property
    def idle(self) -> bool:
        """Nobody has a session, or waits for one."""
        return not self._open and not self._waits

    def turn(self, line: L, priority: int, now: float) -> int:
        """How many numbers a session of this line may have now; 0 where it has to wait for its turn."""
        if self.limit == math.inf:
            return MOST_NUMBERS
        wait = self._waits.get(line)
        news = wait is None or priority > wait.priority
        if wait is None:
            wait = self._waits[line] = _Wait(priority, now)
        wait.priority = priority
        if self._is_next(line, now):
            return FEW_NUMBERS if len(self._waits) > 1 else MOST_NUMBERS
        if news:
            self._make_room(priority, now)
        return 0

    def next(self, now: float) -> list[L]:
        """Those whose turn it is."""
        if not self._waits or not (room := self._room(now)):
            return []
        ready = [line for line in self._waits if line.ready]
        return nsmallest(room, ready, key=lambda line: self._order(self._waits[line], now))

    def leave(self, line: L) -> None:
        """The line has nothing to send."""
        self._waits.pop(line, None)

    def begun(self, line: L, now: float) -> None:
        """MSG is about to leave."""
        if len(self._open) >= self.limit:
            self._retry_at = now + self._timing.full
            self._timer = self._retry_at if len(self._waits) > 1 else None
        self._open[line] = _Open(wait=self._waits.pop(line, None))

    def taken(self, line: L, now: float) -> None:
        """The box has opened the session."""
        entry = self._open[line]
        if entry.taken:
            return
        entry.taken, entry.wait = True, None
        self._taken += 1
        if self._taken > self.limit:
            self.limit = self._taken
            self._retry_at = now  # perhaps it takes still more

    def ended(self, line: L) -> None:
        """The session is over."""
        self._taken -= self._open.pop(line).taken

    def refused(self, line: L, priority: int, now: float) -> None:
        """The box takes no more: it has as many as it likes. The line goes on waiting."""
        wait = self._open[line].wait or _Wait(priority, now)
        self.ended(line)
        wait.refused_at, again = now, now + self._timing.full
        believed = True
        if self._taken < self.limit < math.inf:
            # It took more before. Perhaps there are several boxes, and one is full: then others have their turn.
            # Where they are refused as well, somebody unknown has a session.
            believed = all(now < other.held_until for other in self._waits.values())
            wait.held_until = again
        self._waits[line] = wait
        if believed:
            self.limit = self._taken
        self._retry_at = self._timer = again

    def deadline(self) -> float | None:
        """When `handle_timer` has something to do."""
        return self._timer

    def handle_timer(self, now: float) -> None:
        """What was learnt is tried again: there is room for one."""
        if self._timer is not None and now >= self._timer:
            self._timer = None

    # -- whose turn it is

    def _room(self, now: float) -> int:
        if len(self._open) < self.limit:
            return int(min(self.limit - len(self._open), len(self._waits)))
        # Where nobody has a session, none will end: each line may try, for it may be one of another box.
        any_may = not self._open and any(now >= wait.refused_at + self._timing.full for wait in self._waits.values())
        return 1 if any_may or now >= self._retry_at else 0

    def _is_next(self, line: L, now: float) -> bool:
        room, order = self._room(now), self._order(self._waits[line], now)
        for other, wait in self._waits.items():
            if room <= 0:
                break
            room -= other is not line and other.ready and self._order(wait, now) < order
        return room > 0

    def _order(self, wait: _Wait, now: float) -> tuple[float, float, float]:
        """The smallest is the next: the highest priority, and then the longest wait."""
        aged = wait.priority + (now - wait.since) / AGEING_S
        priority = URGENT if wait.priority >= URGENT else min(aged, URGENT - 1)
        if len(self._open) >= self.limit:  # whether it takes one more is tried with each of them
            return wait.refused_at, -priority, wait.since
        return wait.held_until if now < wait.held_until else 0.0, -priority, wait.since

    def _make_room(self, priority: int, now: float) -> None:
        """Somebody begins to wait: one session that is less urgent ends after the number it is at.

        The others end soon, but for those that are more urgent.
        """
        sessions = [(line, line.session) for line in self._open if isinstance(line.session, BulkSession)]
        less = [(session.priority, n) for n, (_, session) in enumerate(sessions) if session.pending]
        lowest, n = min(less, default=(URGENT, 0))
        if lowest < priority:
            sessions[n][0].shorten(0, now)
        for line, session in sessions:
            if session.priority <= priority:
                line.shorten(FEW_NUMBERS, now)
