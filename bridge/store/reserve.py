"""Space on the disk that is held for bad times: what gateways say can still be stored when the disk is full.

The file stands beside the store. It is given up when the disk is full, and made again when there is room; in between
the store takes no commands (`bridge.features.admission`), so that the space is left to inbound SMS and to the outcomes
of SMS.
"""

import contextlib
import logging
import os
import stat
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
        with contextlib.suppress(OSError):
            os.close(open_private(path, os.O_RDWR))  # mends the mode of an older one
        self.spent = path.is_file() and not path.is_symlink() and path.stat().st_size == 0
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
            file = open_private(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                os.posix_fallocate(file, 0, BALLAST_BYTES)
            finally:
                os.close(file)
        except OSError as error:
            log.warning("%s: no space can be held for when the disk is full: %s", self._path, error.strerror)
            with contextlib.suppress(OSError):
                _empty(self._path) if self.spent else self._path.unlink()
            return
        if self.spent:
            self.spent = False
            log.warning("%s: the disk has room again: commands are accepted", self._path.parent.absolute())

    def give_up(self) -> None:
        """The disk is full."""
        if self.spent or not self._path.exists():
            return
        with contextlib.suppress(OSError):
            _empty(self._path)
            self.spent = True
            log.error(
                "%s: the disk is full. The space held for this, %d MiB, is given up: what gateways say is still "
                "stored, commands are refused. Free some space.",
                self._path.parent.absolute(),
                BALLAST_BYTES >> 20,
            )


def open_private(path: Path, flags: int) -> int:
    """A file of ours beside the store, for its owner alone, also where an older one was for all. A symbolic link there
    is not followed, nor anything opened that may make us wait. Raises OSError.
    """
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # another user's: as it was
        if stat.S_IMODE(os.fstat(file).st_mode) & 0o077:
            os.fchmod(file, 0o600)
    return file


def _empty(path: Path) -> None:
    os.close(open_private(path, os.O_WRONLY | os.O_TRUNC))


def _held(path: Path) -> int:
    """Bytes of the disk that a file has, which are fewer than its size if it was copied with holes."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _free(path: Path) -> int:
    """Bytes free on the disk of a file."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize
