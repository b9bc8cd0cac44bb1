"""A bad network between box and server: which copies of a datagram arrive, and when. Pure; the caller sends."""

from __future__ import annotations

import random
from dataclasses import dataclass

_OVERTAKEN = (0.05, 0.5)
"Seconds a reordered datagram is held back: long enough for the next ones to overtake it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Shares are probabilities from 0 to 1, applied to each datagram in either direction."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)
    "Seconds, evenly spread; a wide range reorders by itself."

    def any(self) -> bool:
        """Whether datagrams are touched at all."""
        return self != Faults()


class Network:
    """Decides the fate of each datagram, the same way for the same seed."""

    def __init__(self, faults: Faults, rng: random.Random) -> None:
        self._faults = faults
        self._rng = rng
        self.lost = 0
        self.duplicated = 0

    def carry(self, data: bytes) -> list[tuple[float, bytes]]:
        """The copies that arrive, each with its delay in seconds; none when the datagram is lost."""
        if self._rng.random() < self._faults.loss:
            self.lost += 1
            return []
        copies = 1
        if self._rng.random() < self._faults.duplicate:
            self.duplicated += 1
            copies = 2
        return [(self._delay(), data) for _ in range(copies)]

    def _delay(self) -> float:
        delay = self._rng.uniform(*self._faults.delay)
        if self._rng.random() < self._faults.reorder:
            delay += self._rng.uniform(*_OVERTAKEN)
        return delay
