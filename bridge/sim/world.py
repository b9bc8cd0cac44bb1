"""What all simulated lines share: the agenda, chance, the way out, and the radio log.

`now` is a monotonic time that reads as unix seconds. Nothing here waits: whoever drives the simulation calls
`run_due(now)`, then takes the datagrams and records that came of it, and returns at `deadline()`.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

Address = tuple[str, int]
Record = dict[str, str | int | float | bool | None]
"One thing the modem did on its network: always with `at`, `line` and `what`."
Action = Callable[[float], None]
Delivery = Callable[[str, str, float], None]
"Takes an SMS, from and text, at a time."


@dataclass(frozen=True, slots=True)
class Datagram:
    """Something a line sends."""

    line: str
    data: bytes
    to: Address | None
    "Where a request came from; None is the server the box is configured with."


class World:
    """One agenda for all lines, so that ten thousand of them need one timer."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.registered: set[str] = set()
        "Ids of the lines whose last keepalive answer was a login."
        self._phones: dict[str, Delivery] = {}
        "What takes an SMS to one of the lines, by the digits of its number."
        self._agenda: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        self._datagrams: list[Datagram] = []
        self._records: list[Record] = []

    def at(self, when: float, action: Action) -> None:
        """Run `action` at `when`."""
        heapq.heappush(self._agenda, (when, next(self._order), action))

    def give_number(self, number: str, phone: Delivery, before: str = "") -> None:
        """A line can be reached under this number now, and no longer under the one before."""
        if self.phone(before) == phone:
            del self._phones[_digits(before)]
        if digits := _digits(number):
            self._phones[digits] = phone

    def phone(self, number: str) -> Delivery | None:
        """The line with this number; None for everybody else, whose SMS nobody sees."""
        return self._phones.get(_digits(number))

    def deadline(self) -> float | None:
        """When `run_due` has something to do next."""
        return self._agenda[0][0] if self._agenda else None

    def run_due(self, now: float) -> None:
        """Run what is due by `now`, each at the moment it was planned for: a late call shifts nothing."""
        while self._agenda and self._agenda[0][0] <= now:
            when, _, action = heapq.heappop(self._agenda)
            action(when)

    def send(self, datagram: Datagram) -> None:
        self._datagrams.append(datagram)

    def record(self, record: Record) -> None:
        self._records.append(record)

    def take_datagrams(self) -> list[Datagram]:
        """What the lines sent since the last call."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def take_records(self) -> list[Record]:
        """What the modems did since the last call."""
        records, self._records = self._records, []
        return records


def _digits(number: str) -> str:
    """A number without what is written around it: `+49…` and `0049…` are the same."""
    return "".join(char for char in number if char.isdigit()).removeprefix("00")
