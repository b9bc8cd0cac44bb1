"""Rate limits for wrong passwords of a line: a password is the only key of a line, and many are six digits.

Who guesses faster is not heard for the line, whether a password is right or not, so that no guess beyond the limit can
be the right one. The line itself is heard at the addresses it has, whatever others do.
"""

from collections import OrderedDict

SOURCE_PER_S, SOURCE_BURST = 2.0, 10.0
"Wrong passwords that are listened to, from one host: a box with a wrong password sends one every few seconds."
LINE_PER_S, LINE_BURST = 20.0, 100.0
"And from all hosts together, since a source can be forged: a million passwords take 14 hours."
MAX_SOURCES = 100
"Hosts remembered for one line; those that were heard last."


class _Bucket:
    """Tokens that come in by time, up to a number."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, float("-inf")

    def left(self, now: float) -> float:
        """How many there are."""
        if now > self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
        return self._left

    def take(self, now: float) -> None:
        """One less."""
        self._left = self.left(now) - 1.0


class Guesses:
    """Wrong passwords for one line."""

    __slots__ = ("_all", "_sources", "_unheard")

    def __init__(self) -> None:
        self._all = _Bucket(LINE_PER_S, LINE_BURST)
        self._sources: OrderedDict[str, _Bucket] = OrderedDict()
        self._unheard = 0

    def too_many(self, host: str, now: float) -> bool:
        """Whether nobody at this host is heard now."""
        source = self._sources.get(host)
        return self._all.left(now) < 1.0 or (source is not None and source.left(now) < 1.0)

    def wrong(self, host: str, now: float) -> bool:
        """Count a wrong password; true when it was the last one that is listened to."""
        source = self._sources.pop(host, None) or _Bucket(SOURCE_PER_S, SOURCE_BURST)
        self._sources[host] = source
        if len(self._sources) > MAX_SOURCES:
            self._sources.popitem(last=False)
        source.take(now)
        self._all.take(now)
        return self.too_many(host, now)

    def not_heard(self) -> None:
        """Count a datagram that was not listened to."""
        self._unheard += 1

    def take_unheard(self) -> int:
        """How many were not listened to since this was last asked."""
        unheard, self._unheard = self._unheard, 0
        return unheard
