"""Space on the disk that is held for bad times: what gateways say can still be stored when the disk is full.

The file stands beside the store. It is given up when the disk is full, and made again when there is room; in between
the store takes no commands (`bridge.intake`), so that the space is left to inbound SMS and to the outcomes of SMS.
"""

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

BALLAST_BYTES = 8 << 20
"4 MiB for SQLite's WAL, and 4 MiB for some thousand SMS that wait for the broker."
LEAST_BYTES = 1 << 20
"With less room at the start the store might not open."


class Ballast:
    """One file; `take` makes it. Empty, it says over a restart as well that the disk was full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.spent = path.exists() and path.stat().st_size == 0
        "The space was given up, and there is still too little room to hold it again."
        self._said = False
        if _free(path) < LEAST_BYTES:
            self.give_up()

    def take(self) -> None:
        """Hold the space, where as much again stays free."""
        if _held(self._path) >= BALLAST_BYTES:
            return
        if _free(self._path) < 2 * BALLAST_BYTES:
            if not self.spent and not self._said:
                self._said = True
                log.warning(
                    "%s: less than %d MiB are free, so no space is held for when the disk is full: then nothing "
                    "could be stored",
                    self._path.parent.absolute(),
                    2 * BALLAST_BYTES >> 20,
                )
            return
        try:
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError as error:
            log.warning("%s: no space can be held for when the disk is full: %s", self._path, error.strerror)
            with contextlib.suppress(OSError):
                os.truncate(self._path, 0) if self.spent else self._path.unlink()
            return
        if self.spent:
            self.spent = False
            log.warning("%s: the disk has room again: commands are accepted", self._path.parent.absolute())

    def give_up(self) -> None:
        """The disk is full."""
        if self.spent or not self._path.exists():
            return
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)
            self.spent = True
            log.error(
                "%s: the disk is full. The space held for this, %d MiB, is given up: what gateways say is still "
                "stored, commands are refused. Free some space.",
                self._path.parent.absolute(),
                BALLAST_BYTES >> 20,
            )


def _held(path: Path) -> int:
    """Bytes of the disk that a file has, which are fewer than its size if it was copied with holes."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _free(path: Path) -> int:
    """Bytes free on the disk of a file."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize
