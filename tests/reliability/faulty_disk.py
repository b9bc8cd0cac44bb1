"""A disk that fails where a test wants it to: an SQLite VFS in front of the real one.

The files are real; the VFS stands between SQLite and them, and serves the unchanged `Store` because it is registered as
the default. It does two things:

- it counts every change (write, truncate, sync, delete) and fails the n-th, once or until it is healed;
- it keeps what is durable apart from what is only written. A sync makes durable what was written to that file. When the
  power fails, the files are set back to what is durable and, if asked, a random choice of the 512-byte sectors that
  were written since: torn pages, and writes that reach the disk in any order.

It is as bad as real ones: half of a write that fails is in the file; what a failed sync was for is never written by a
later one (in Linux the pages count as clean); names that are new or gone are durable only when the directory is synced,
which the real VFS does with the first sync of a new journal or WAL. Only a sync that succeeded is believed.

There are no threads here: one connection at a time, on the thread of the test.
"""

import contextlib
import ctypes
import importlib
import random
import sqlite3
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

OK = 0
IOERR_READ, IOERR_WRITE, IOERR_FSYNC, IOERR_TRUNCATE, IOERR_DELETE = (10 | n << 8 for n in (1, 3, 4, 6, 10))
READONLY, FULL, NOTFOUND, CANTOPEN = 8, 13, 12, 14
_OF_KIND = {"write": IOERR_WRITE, "sync": IOERR_FSYNC, "truncate": IOERR_TRUNCATE, "delete": IOERR_DELETE}
_CREATE, _JOURNALS = 0x4, 0x800 | 0x4000 | 0x80000
SECTOR = 512
_HEADER = 16
"Bytes of a file of ours before the real VFS's own, aligned for it."

# -- sqlite3.h -----------------------------------------------------------------------------------------------

_int, _i64, _ptr = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


def _method(*arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(_int, *arguments)


class _IoMethods(ctypes.Structure):
    """Version 1: without shared memory. WAL works all the same, as the store takes its lock before it."""

    _fields_ = (
        ("iVersion", _int),
        ("xClose", _method(_ptr)),
        ("xRead", _method(_ptr, _ptr, _int, _i64)),
        ("xWrite", _method(_ptr, _ptr, _int, _i64)),
        ("xTruncate", _method(_ptr, _i64)),
        ("xSync", _method(_ptr, _int)),
        ("xFileSize", _method(_ptr, _ptr)),
        ("xLock", _method(_ptr, _int)),
        ("xUnlock", _method(_ptr, _int)),
        ("xCheckReservedLock", _method(_ptr, _ptr)),
        ("xFileControl", _method(_ptr, _int, _ptr)),
        ("xSectorSize", _method(_ptr)),
        ("xDeviceCharacteristics", _method(_ptr)),
    )


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("iVersion", _int),
        ("szOsFile", _int),
        ("mxPathname", _int),
        ("pNext", _ptr),
        ("zName", ctypes.c_char_p),
        ("pAppData", _ptr),
        ("xOpen", _method(_ptr, _ptr, _ptr, _int, _ptr)),
        ("xDelete", _method(_ptr, _ptr, _int)),
        *((name, _ptr) for name in ("xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose")),
        *((name, _ptr) for name in ("xRandomness", "xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64")),
        *((name, _ptr) for name in ("xSetSystemCall", "xGetSystemCall", "xNextSystemCall")),
    )


def _library() -> ctypes.CDLL:
    """The SQLite that the module `sqlite3` uses: looked up from it, so that it is no second copy of the library."""
    library = ctypes.CDLL(getattr(importlib.import_module("_sqlite3"), "__file__", None))
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
    library.sqlite3_vfs_register.argtypes = [ctypes.POINTER(_Vfs), _int]
    library.sqlite3_vfs_unregister.argtypes = [ctypes.POINTER(_Vfs)]
    library.sqlite3_sourceid.restype = ctypes.c_char_p
    return library


def unavailable() -> str | None:
    """Why there can be no such disk here; None when it works. It does where `sqlite3` is linked dynamically."""
    try:
        library = _library()
    except (OSError, AttributeError) as error:
        return f"SQLite's functions can't be reached: {error}"
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        (version,) = db.execute("SELECT sqlite_source_id()").fetchone()
    if library.sqlite3_sourceid().decode() != version:
        return "the SQLite that can be reached is not the one that Python uses"
    with Disk(default=False) as disk:
        try:
            sqlite3.connect(f"file:/nowhere/at-all?vfs={Disk.NAME.decode()}", uri=True).close()
        except sqlite3.OperationalError as error:
            return None if disk.opened else f"a VFS of ours is not used: {error}"
    return "a VFS of ours is not used"


# -- the disk ------------------------------------------------------------------------------------------------


@dataclass
class _File:
    """One file as the disk has it. Its present content is in the real file."""

    durable: bytearray
    named: bool
    "Its directory entry is durable."
    new_journal: bool = False
    "Its first sync is also one of the directory."
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    "Not synced, oldest first: (offset, what was written), or (size, None) for a truncation."

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.durable, offset, data)
        self.pending.clear()

    def after_power_failure(self, survives: Callable[[], bool]) -> bytearray:
        """The content when of the pending sectors only those are there that survive."""
        image = bytearray(self.durable)
        for offset, data in self.pending:
            for start in range(0, 1 if data is None else len(data), SECTOR):
                if survives():
                    _apply(image, offset + start, None if data is None else data[start : start + SECTOR])
        return image


def _apply(image: bytearray, offset: int, data: bytes | None) -> None:
    """A write, or a truncation."""
    if data is None:
        del image[offset:]
    else:
        image.extend(bytes(max(0, offset - len(image))))
        image[offset : offset + len(data)] = data


_STILL_OPEN: list["Disk"] = []
"Disks of tests that failed and left a file open: SQLite may still call them."


class Disk:
    """While it is entered, SQLite works on this disk."""

    NAME = b"faulty"

    def __init__(self, *, default: bool = True) -> None:
        self.changes = 0
        "Writes, truncations, syncs and deletions so far, those that failed included."
        self.syncs = 0
        self.opened = 0
        self.failed = 0
        "Changes that were made to fail."
        self.last_failed = ""
        "What the last of them was: write, truncate, sync or delete."
        self.off = False
        "The power failed: nothing that happens now counts."
        self._at = 0
        self._code = OK
        self._sticky = False
        self._default = default
        self._library = _library()
        self._real = self._library.sqlite3_vfs_find(None)
        self._files: dict[str, _File] = {}
        self._open: dict[int, _File] = {}
        "By the address of SQLite's handle."
        self._behind: dict[int, _IoMethods] = {}
        "The methods of the real file behind a handle."
        self._deleted: dict[str, bytearray] = {}
        "Files whose deletion is not durable, with what was."
        self._broken: list[str] = []
        "Faults of this class, which would otherwise look like faults of the disk."
        self._methods = _IoMethods(1, *(self._callback(name) for name, _ in _IoMethods._fields_[1:]))  # type: ignore[misc]
        self._vfs = _Vfs()
        ctypes.memmove(ctypes.byref(self._vfs), self._real, ctypes.sizeof(_Vfs))
        self._vfs.szOsFile = _HEADER + self._real.contents.szOsFile
        self._vfs.zName = self.NAME
        self._vfs.xOpen = self._callback("xOpen", _Vfs)
        self._vfs.xDelete = self._callback("xDelete", _Vfs)

    def __enter__(self) -> Self:
        self._library.sqlite3_vfs_register(ctypes.byref(self._vfs), int(self._default))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))
        self._library.sqlite3_vfs_register(self._real, 1)
        if self._open:
            _STILL_OPEN.append(self)
        assert not self._broken, self._broken[0]

    # -- what a test wants

    def fail(self, after: int, code: int | None = None, *, sticky: bool = False) -> None:
        """Fail the change that comes after so many more, with this code if it is a write; sticky: all later ones, too.

        Without a code the power fails there: the change is under way, and nothing after it happens.
        """
        self._at, self._code, self._sticky = self.changes + after, OK if code is None else code, sticky

    def heal(self) -> None:
        """Nothing fails any more."""
        self._at = 0

    def cut_power(self) -> None:
        """From now on nothing reaches the disk."""
        self.off = True

    def power_on(self, chance: random.Random | None = None) -> None:
        """The disk as it is found after the power failed; everything that had it open must be closed.

        What was not synced is gone; with `chance`, any choice of it is there all the same.
        """
        assert not self._open, "a file is open"
        survives = (lambda: chance.random() < 0.5) if chance is not None else (lambda: False)
        for name in sorted(self._files.keys() | self._deleted.keys()):
            file = self._files.get(name)
            Path(name).unlink(missing_ok=True)
            if file is not None and (file.named or survives()):
                Path(name).write_bytes(file.after_power_failure(survives))
            elif name in self._deleted and not survives():
                Path(name).write_bytes(self._deleted[name])
        self._files.clear()
        self._deleted.clear()
        self.off = False
        self.heal()

    # -- faults

    def _change(self, kind: str) -> int:
        """Count a change; OK, or the code it fails with."""
        if self.off:
            return _OF_KIND[kind]
        self.changes += 1
        if not self._at or self.changes < self._at or (self.changes > self._at and not self._sticky):
            return OK
        self.failed += 1
        self.last_failed = kind
        if self._code == OK:
            self.off = True
        return self._code if self._code != OK and kind == "write" else _OF_KIND[kind]

    # -- the VFS's methods; `handle` is the address of SQLite's file

    def _callback(self, name: str, struct: type[ctypes.Structure] = _IoMethods) -> Any:
        """A method as C calls it. Those that have no Python method here go straight to the real file's."""
        method = getattr(self, f"_{name}", None)

        def call(handle: int, *arguments: int) -> int:
            try:
                if method is not None:
                    return int(method(handle, *arguments))
                return self._really(handle, name, *arguments)
            except BaseException:
                self._broken.append(traceback.format_exc())
                return IOERR_READ

        return dict(struct._fields_)[name](call)  # type: ignore[arg-type, misc]

    def _really(self, handle: int, name: str, *arguments: Any) -> int:
        """Call a method of the real file behind a handle."""
        return int(getattr(self._behind[handle], name)(handle + _HEADER, *arguments))

    def _xOpen(self, _vfs: int, name: int | None, handle: int, flags: int, out: int | None) -> int:  # noqa: N802
        self.opened += 1
        _ptr.from_address(handle).value = None
        path = ctypes.string_at(name or 0).decode()  # the store has no temporary files, which have no name
        is_new = not Path(path).exists()
        if self.off and is_new and flags & _CREATE:
            return CANTOPEN
        code = int(self._real.contents.xOpen(self._real, name, handle + _HEADER, flags, out))
        if code == OK:
            if path not in self._files:
                content = bytearray(Path(path).read_bytes())
                self._files[path] = _File(content, not is_new, is_new and bool(flags & _JOURNALS))
            self._open[handle] = self._files[path]
            self._behind[handle] = _IoMethods.from_address(_ptr.from_address(handle + _HEADER).value or 0)
            _ptr.from_address(handle).value = ctypes.addressof(self._methods)
        return code

    def _xDelete(self, _vfs: int, name: int, sync: int) -> int:  # noqa: N802
        path = ctypes.string_at(name).decode()
        if not Path(path).exists():
            return int(self._real.contents.xDelete(self._real, name, 0))
        if code := self._change("delete"):
            return code
        file = self._files.pop(path, None) or _File(bytearray(Path(path).read_bytes()), True)
        if file.named:
            self._deleted[path] = file.durable
        if sync:
            self._sync_directory()
        return int(self._real.contents.xDelete(self._real, name, 0))

    def _xClose(self, handle: int) -> int:  # noqa: N802
        del self._open[handle]
        return self._really(handle, "xClose")

    def _xWrite(self, handle: int, data: int, size: int, offset: int) -> int:  # noqa: N802
        if self.off:
            return IOERR_WRITE
        code = self._change("write")
        if code != OK and not self.off:
            size = 0 if code == READONLY else size // 2 // SECTOR * SECTOR
        if size:
            self._open[handle].pending.append((offset, ctypes.string_at(data, size)))
            code = code or self._really(handle, "xWrite", data, size, offset)
        return code

    def _xTruncate(self, handle: int, size: int) -> int:  # noqa: N802
        if code := self._change("truncate"):
            return code
        self._open[handle].pending.append((size, None))
        return self._really(handle, "xTruncate", size)

    def _xSync(self, handle: int, _flags: int) -> int:  # noqa: N802
        file = self._open[handle]
        code = self._change("sync")
        if code == OK:
            self.syncs += 1
            file.sync()
            if file.new_journal:
                file.new_journal = False
                self._sync_directory()
        elif not self.off:
            file.pending.clear()
        return code

    def _sync_directory(self) -> None:
        """All files are in one."""
        self._deleted.clear()
        for file in self._files.values():
            file.named = True

    def _xFileControl(self, _handle: int, _operation: int, _argument: int | None) -> int:  # noqa: N802
        return NOTFOUND
