"""Regular work in pieces, and what of it an earlier run died of.

Nothing that the program does by itself may keep the event loop for longer the more there is to do: whoever has much to
do is asked again and again, for a few rows each time, and in between datagrams and commands get their turn.

Should a piece hang all the same, or fail, the next run of the program would do the same, and so on for ever. So its
name is written down before it begins: not in the store, which would cost a sync, but in a file beside it. What a
process wrote to a file outlives it without a sync; only a power failure loses it, and that is no fault of the work. No
other process is needed for that, so it works with a supervisor, without one, and under systemd.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..system.clock import Clock
from .batch import Batch

ROWS = 100
"Rows that one piece handles."
PIECE_S = 0.02
"And no more of them once so much time has passed: disks and machines differ."
PAUSE_S = 0.01
"Between two pieces, for everybody else."
HUNG_S = 5.0
"A piece that began so long before the next start of the program was hanging, or failed again and again."
MOST_DEATHS = 2
"A chore of which the program died so often in a row is left."
LEFT_S = 3600.0
"For so long."
_SIZE = 4096
"Bytes of the file; what it says is shorter."


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to be looked for again and again, and to be done in the store where it is found."""

    name: str
    "For people, as the object of a sentence."
    find: Callable[[float, float, int], Sequence[Any]]
    "What is to be done now: steady time, monotonic time, and how many at most. A look that writes nothing."
    do: Callable[[Batch, Any], None]
    "Do one of these, inside a transaction."


class Left(NamedTuple):
    """A chore that is left alone for a while."""

    name: str
    deaths: int
    "How often the program died of it."
    until: float
    "By `bridge.system.clock.SteadyTime`."


class Deaths:
    """Which chore is under way, and of which the program died: a file that outlives us.

    Where the file can't be written nothing is known of earlier runs, and everything else goes on.
    """

    def __init__(self, path: Path, clock: Clock, at: float) -> None:
        """Read what the last run left; `at` is steady time."""
        self._path = path
        self._clock = clock
        self._boot = clock.boot_id
        before = _read(path)
        self._counts: dict[str, tuple[int, float]] = {
            str(name): (int(count), float(until)) for name, (count, until) in before.get("deaths", {}).items()
        }
        "By chore: how often in a row, and until when it is left."
        doing, since = before.get("doing"), float(before.get("since", 0.0))
        if doing is not None and before.get("boot") == self._boot and clock.boottime() - since >= HUNG_S:
            count = self._counts.get(doing, (0, 0.0))[0] + 1
            self._counts[doing] = count, at + LEFT_S if count >= MOST_DEATHS else 0.0
        if doing is not None:
            self._write(None)

    def left(self, at: float) -> list[Left]:
        """The chores that are left alone now."""
        return [Left(name, count, until) for name, (count, until) in self._counts.items() if until > at]

    def rows(self, name: str, at: float) -> int:
        """How many rows of a chore may be handled at once: none while it is left, and one when it killed before."""
        if name not in self._counts:
            return ROWS
        count, until = self._counts[name]
        return 0 if until > at else ROWS if count < MOST_DEATHS else 1

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Note that a chore is under way. What raises stays noted: it is about to end the program."""
        self._write(name)
        yield
        self._write(None)

    def done(self, name: str) -> None:
        """Nothing of a chore is left to be done: it killed nobody this time."""
        if self._counts.pop(name, None) is not None:
            self._write(None)

    def _write(self, doing: str | None) -> None:
        """In place, and always as long: on a full disk it works as well, and a kill leaves no half of it."""
        now = {"doing": doing, "boot": self._boot, "since": self._clock.boottime(), "deaths": self._counts}
        with contextlib.suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(file, json.dumps(now).encode().ljust(_SIZE) + b"\n", 0)
            finally:
                os.close(file)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
