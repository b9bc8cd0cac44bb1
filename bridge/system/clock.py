"""What tells the application the time: the clocks of the machine, and one that nobody sets."""

import json
import time
from pathlib import Path
from typing import TypedDict

SMALL_S = 2.0
"A change of the wall clock up to this is no step."
BELIEVED_S = 600.0
"So long a step has to stand before anything expires because of it."
YOUNG_S = 3600.0
"A machine without a battery for its clock learns the time within this, from the network."


class Clock:
    """The real clocks; a simulation gives the application its own. asyncio's timers run on the monotonic one."""

    def monotonic(self) -> float:
        """Seconds that never jump: for timers. They stand still while the machine sleeps."""
        return time.monotonic()

    def time(self) -> float:
        """Unix time, which an administrator or NTP may set: for what is told."""
        return time.time()

    def boottime(self) -> float:
        """Seconds since the machine was started, those that it slept among them."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    @property
    def boot_id(self) -> str:
        """What tells this start of the machine from all others; empty where nothing does."""
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""


class _Saved(TypedDict):
    boot: str
    offset: float
    drift: float
    at: float
    first: int


class SteadyTime:
    """Time that goes on evenly, also over restarts, whatever the wall clock is set to: what the store keeps is measured
    with it, so that no wrong clock makes the bridge forget what it did, or take something for too old.

    It began as Unix time, and stands still while the machine is off. Only the wall clock tells how long that was, and
    it may be wrong: without a battery until the network has mended it, in a virtual machine that was paused, or by
    mistake. So a step forward, of which a start of the machine is one, is taken for time that passed when it stands for
    `BELIEVED_S`: it brings nearer when SMS expire (`believed`), and nothing else. Until then those that would be over
    by it wait (`pending`).
    """

    def __init__(self, clock: Clock, saved: str | None, last_sms: int) -> None:
        """Go on from what `saved` said in an earlier run; `last_sms` is the number of the newest SMS of the store."""
        self._clock = clock
        boot, up, wall = clock.boot_id, clock.boottime(), clock.time()
        self._state: _Saved = {"boot": boot, "offset": wall - up, "drift": 0.0, "at": wall, "first": last_sms}
        self.pending = 0.0
        "Seconds by which the wall clock went forward a while ago; 0 when it did not, or not far."
        self.believed = 0.0
        "Seconds that passed uncounted. To be set to 0 when the SMS were told."
        self._step = 0.0
        self._since = up
        self.restarted = False
        "The machine was started again since the last run of the bridge; its clocks may not know how long it was off."
        if saved is not None:
            old: _Saved = json.loads(saved)
            if boot and old["boot"] == boot and old["offset"] + up >= old["at"] - SMALL_S:
                self._state = old
            else:
                self.restarted = bool(boot)
                self._state |= {"offset": old["at"] - up, "drift": old["drift"]}
                self._step = wall - old["at"] - old["drift"]
                self.pending = max(0.0, self._step)
        self.off = self.pending
        "How long the machine was off before this start of the bridge, as far as the wall clock knows; else 0."
        self.look()  # a step may stand since before: what waits because of it goes on waiting

    def time(self) -> float:
        """Now."""
        return self._state["offset"] + self._clock.boottime()

    @property
    def upto(self) -> int:
        """The last SMS that `pending` and `believed` are about: in the first hour of a machine none that came since its
        start, as they lost no time.
        """
        young = self._since < YOUNG_S and (self.pending or self.believed)
        return self._state["first"] if young else 2**62

    def saved(self) -> str:
        """For the next run."""
        return json.dumps(self._state | {"at": self.time()})

    def look(self) -> bool:
        """Compare with the wall clock, every second or so; true when `pending` changed."""
        before, up = self.pending, self._clock.boottime()
        step = self._clock.time() - self.time() - self._state["drift"]
        if abs(step) <= SMALL_S:
            self._step = self.pending = 0.0
        elif abs(step - self._step) > SMALL_S:
            self._step, self._since = step, up
            self.pending = max(0.0, step)
        elif up - self._since >= BELIEVED_S:
            self._state["drift"] += step
            self.believed += max(0.0, step)
            self._step = self.pending = 0.0
        return self.pending != before
