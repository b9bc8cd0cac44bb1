"""What strangers may cost: facts, log lines, and the time their datagrams take."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable

from ..goip.events import Address

PERIOD_S = 600.0
MAX_KEYS = 1000

STRANGERS_PER_S = 30_000.0
SOURCE_PER_S = 20_000.0
"""Refused datagrams that are looked at: in all, and from one host. One costs about 8 µs, so this is a quarter of a
core; a large one counts for one more in each `BYTES_PER_TOKEN`."""
BYTES_PER_TOKEN = 1000
BURST_S = 0.2
"What is saved up is spent at once, and what the kernel can hold meanwhile is not much more."
KNOWN_FOR_S = 0.1
"Under such a flood, the addresses of the lines are looked up this often."


class Limiter:
    """One per key and period, `total` of all keys together; counts what it holds back."""

    def __init__(self, total: int = 30, period: float = PERIOD_S) -> None:
        self._total = total
        self._period = period
        self._keys: OrderedDict[int, tuple[float, int]] = OrderedDict()
        "By their hash: there may be long words in a key."
        self._passed: deque[float] = deque()

    def admit(self, key: Hashable, now: float) -> int | None:
        """How many happened since the last one told, this one included; None when this one is not to be told."""
        place = hash(key)
        told, held = self._keys.pop(place, (-self._period, 0))
        while self._passed and now - self._passed[0] >= self._period:
            self._passed.popleft()
        tell = now - told >= self._period and len(self._passed) < self._total
        if tell:
            self._passed.append(now)
        self._keys[place] = (now, 0) if tell else (told, held + 1)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        return held + 1 if tell else None


class Tokens:
    """A bucket of tokens: `rate` of them come in a second, and it holds those of `BURST_S`."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: float, now: float = 0.0) -> None:
        self._rate = rate
        self._left = rate * BURST_S
        self._at = now

    def left(self, now: float) -> bool:
        """Whether there is something in it."""
        if now > self._at:
            self._left = min(self._rate * BURST_S, self._left + (now - self._at) * self._rate)
            self._at = now
        return self._left > 0

    def spend(self, tokens: float) -> None:
        """Take out; the last ones may be owed."""
        self._left -= tokens


class Gate:
    """Which datagrams are worth a look, before any is parsed.

    Only what turns out to be nothing, or nobody's, is charged: to its host, and to all together. Until that is used up
    everybody is heard, so a line may come from anywhere. After that only lines at the address they have are heard, and
    those always, whatever others send in their name.
    """

    def __init__(self, known: Callable[[], Iterable[Address | None]]) -> None:
        self.dropped = 0
        self._addresses = known
        self._known: frozenset[Address | None] = frozenset()
        self._known_until = float("-inf")
        self._all = Tokens(STRANGERS_PER_S)
        self._sources: OrderedDict[str, Tokens] = OrderedDict()

    def admits(self, address: Address, now: float) -> bool:
        """Whether to look at a datagram from there."""
        source = self._sources.get(address[0])
        if self._all.left(now) and (source is None or source.left(now)):
            return True
        if now >= self._known_until:
            self._known, self._known_until = frozenset(self._addresses()), now + KNOWN_FOR_S
        if address in self._known:
            return True
        self.dropped += 1
        return False

    def refused(self, address: Address, size: int, now: float) -> None:
        """What came from there was nothing, or nobody's."""
        host = address[0]
        source = self._sources.get(host)
        if source is None:
            source = self._sources[host] = Tokens(SOURCE_PER_S, now)
            if len(self._sources) > MAX_KEYS:
                self._sources.popitem(last=False)
        cost = 1 + size / BYTES_PER_TOKEN
        source.spend(cost)
        self._all.spend(cost)
