"""What happens by itself on simulated lines: people write and call, boxes lose power."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .gateway import SimulatedGateway
from .line import SimulatedLine
from .world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficOptions:
    """Mean seconds between two occurrences, for each line or box; 0 is never. Real seconds, whatever the time scale."""

    sms_every: float = 0.0
    call_every: float = 0.0
    reboot_every: float = 0.0


class Traffic:
    """Plans the next occurrence after each, at irregular intervals."""

    def __init__(self, options: TrafficOptions, gateways: Sequence[SimulatedGateway], world: World) -> None:
        self._options = options
        self._gateways = gateways
        self._world = world
        self._written = 0

    def start(self, now: float) -> None:
        for gateway in self._gateways:
            self._again(self._options.reboot_every, gateway.reboot, now)
            for line in gateway.lines:
                self._again(self._options.sms_every, self._sms(line), now)
                self._again(self._options.call_every, self._call(line), now)

    def _again(self, every: float, action: Callable[[float], None], now: float) -> None:
        if every <= 0:
            return

        def run(when: float) -> None:
            action(when)
            self._again(every, action, when)

        self._world.at(now + self._world.rng.uniform(0, 2 * every), run)

    def _sms(self, line: SimulatedLine) -> Callable[[float], None]:
        def write(now: float) -> None:
            self._written += 1
            line.receive_sms(self._number(), f"Simulated SMS {self._written}; to: {line.id}", now)

        return write

    def _call(self, line: SimulatedLine) -> Callable[[float], None]:
        def call(now: float) -> None:
            rng = self._world.rng
            begin = rng.choice((line.calls.incoming, line.calls.outgoing))
            begin(self._number(), now, answered=rng.random() < 0.7, seconds=rng.uniform(5, 90))

        return call

    def _number(self) -> str:
        return f"+49151{self._world.rng.randrange(10**7):07d}"
