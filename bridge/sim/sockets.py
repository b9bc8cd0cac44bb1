"""Sockets, addresses and limits of the machine the simulator runs on."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket

from .errors import SimulatorError
from .world import Address

_SPARE_FILES = 64
"File descriptors for everything but the lines' sockets."


async def resolve(server: tuple[str, int]) -> Address:
    host, port = server
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise SimulatorError(f"cannot find the server {host!r}: {error.strerror or error}") from error
    address = found[0][4]
    return str(address[0]), int(address[1])


def local_address(server: Address) -> str:
    """The address from which the server is reached: strangers on other networks cannot answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(server)
        except OSError as error:
            raise SimulatorError(f"no way to the server {server[0]}: {os.strerror(error.errno or 0)}") from error
        return str(probe.getsockname()[0])


def allow_files(sockets: int) -> None:
    """Raise the limit of open files as far as an ordinary user may."""
    needed = sockets + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SimulatorError(
            f"{sockets} lines need {needed} open files, but only {hard} are allowed here: "
            f"raise the limit (ulimit -Hn, LimitNOFILE=) or simulate at most {max(hard - _SPARE_FILES, 0)} lines"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def open_socket(line: str, local: str, port: int) -> socket.socket:
    """A UDP socket of a line's own; port 0 lets the system choose."""
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        raise SimulatorError(f"no socket for {line}: {os.strerror(error.errno or 0)}") from error
    sock.setblocking(False)
    try:
        sock.bind((local, port))
    except (OSError, OverflowError) as error:
        sock.close()
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        hint = "; choose another port base" if number == errno.EADDRINUSE else ""
        raise SimulatorError(f"cannot use UDP port {port} for {line}: {os.strerror(number or 0)}{hint}") from error
    return sock
