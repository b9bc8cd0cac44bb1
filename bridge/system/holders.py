"""Who has what this program wants: the process that holds a port or has locked a file, to be named in an error.

A courtesy: where it can't be found out, as of another user's process or in another container, nothing is said. Linux
only.
"""

import contextlib
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_FLOCK = "hhqqi4x"
"struct flock of Linux on 64 bits: type, whence, start, length, pid."
_ANY = frozenset(("0" * 8, "0" * 32, ""))
"Addresses in /proc/net that stand for all; and of a host whose address is not known here."


def of_port(protocol: str, host: str, port: int) -> str:
    """`process 1234 (goip-bridge run)`, or empty; `protocol` is `udp` or `tcp`."""
    inodes = set(_sockets(protocol, host, port))
    return _named([pid for pid in _processes() if not inodes.isdisjoint(_open_sockets(pid))]) if inodes else ""


def of_lock(path: Path) -> str:
    """The same for a file that another process has locked as SQLite does."""
    with contextlib.suppress(OSError, struct.error):
        file = os.open(path, os.O_RDWR)  # we have no lock of our own here, which closing it would release
        try:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        finally:
            os.close(file)
        if kind != fcntl.F_UNLCK and pid > 0:
            return _named([pid])
    return ""


def _named(pids: list[int]) -> str:
    """Of a bridge the supervisor: it would start its worker again."""
    for pid in pids:
        words = _words(pid)
        if "--worker-fd" in words and _parent(pid):
            pid, words = _parent(pid), words[: words.index("--worker-fd")]
        return f"process {pid} ({_title(words)})" if words else f"process {pid}"
    return ""


def _title(words: list[str]) -> str:
    """A command line for people: without the interpreter of a bridge, and without values that may be secret."""
    for start, end in (("-m", "bridge"), ("", "goip-bridge")):
        for place, word in enumerate(words):
            if os.path.basename(word) == end and (not start or words[place - 1] == start):
                return " ".join(["goip-bridge", *words[place + 1 : place + 2]])
    return os.path.basename(words[0])


def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    return []


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _processes() -> list[int]:
    with contextlib.suppress(OSError):
        return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return []


def _open_sockets(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    yield target.removeprefix("socket:[").removesuffix("]")


def _sockets(protocol: str, host: str, port: int) -> Iterator[str]:
    """Inodes of the sockets on this port that are in the way of this address."""
    wanted = _hexadecimal(host)
    for name in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", name).read_text().splitlines()[1:]:
                columns = line.split()
                address, _, number = columns[1].partition(":")
                listens = protocol == "udp" or columns[3] == "0A"
                if int(number, 16) == port and listens and (address == wanted or _ANY & {address, wanted}):
                    yield columns[9]


def _hexadecimal(host: str) -> str:
    """An address as /proc/net has it: in words of the machine's own byte order."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            packed = socket.inet_pton(family, host)
            return "".join(f"{int.from_bytes(packed[i : i + 4], sys.byteorder):08X}" for i in range(0, len(packed), 4))
    return ""
