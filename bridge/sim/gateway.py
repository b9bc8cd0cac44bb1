"""A simulated box: some lines that share a power plug (docs/protocol.md §1)."""

from __future__ import annotations

from collections.abc import Sequence

from .line import SimulatedLine
from .options import LineOptions
from .world import World


class SimulatedGateway:
    """The lines of one box, in the order of its SIM slots."""

    def __init__(self, options: Sequence[LineOptions], world: World) -> None:
        self._world = world
        self.lines = [SimulatedLine(each, channel, self, world) for channel, each in enumerate(options)]

    def reboot(self, now: float) -> None:
        """Every line falls silent and comes back with count 1."""
        for line in self.lines:
            line.power_off(now)
            boot_time = line.options.boot_time / line.options.time_scale
            self._world.at(now + boot_time, line.power_on)

    def switch_modules(self, digits: str, now: float) -> None:
        """module_ctl: one digit for each slot, 1 on, 0 off, 2 as it is (docs/protocol.md §8)."""
        for line, digit in zip(self.lines, digits, strict=False):
            if digit != "2":
                line.control.switch_module(digit == "1", now)
