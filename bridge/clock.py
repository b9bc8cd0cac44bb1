"""What tells the application the time."""

import time


class Clock:
    """The real clocks; a simulation gives the application its own. asyncio's timers run on the monotonic one."""

    def monotonic(self) -> float:
        """Seconds that never jump: for timers."""
        return time.monotonic()

    def time(self) -> float:
        """Unix time, which an administrator or NTP may set: for what is told or kept."""
        return time.time()
