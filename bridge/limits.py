"""How often something that a stranger can cause may be told."""

from collections import OrderedDict

PERIOD_S = 600.0
MAX_KEYS = 1000


class FactLimiter:
    """One fact per key and period, `total` of all keys together; counts what it holds back."""

    def __init__(self, total: int = 30, period: float = PERIOD_S) -> None:
        self._total = total
        self._period = period
        self._keys: OrderedDict[tuple[str, ...], tuple[float, int]] = OrderedDict()
        self._passed: list[float] = []

    def admit(self, key: tuple[str, ...], now: float) -> int | None:
        """How many happened since the last one told, this one included; None when this one is not to be told."""
        told, held = self._keys.pop(key, (-self._period, 0))
        self._passed = [at for at in self._passed if now - at < self._period]
        if now - told >= self._period and len(self._passed) < self._total:
            self._passed.append(now)
            self._keys[key] = (now, 0)
            return held + 1
        self._keys[key] = (told, held + 1)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        return None


class LogLimiter:
    """True once per key and period, with a bounded memory."""

    def __init__(self, period: float = 60.0) -> None:
        self._period = period
        self._keys: OrderedDict[object, float] = OrderedDict()

    def admit(self, key: object, now: float) -> bool:
        """Whether to log this one."""
        if now - self._keys.get(key, -self._period) < self._period:
            return False
        self._keys[key] = now
        self._keys.move_to_end(key)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        return True
