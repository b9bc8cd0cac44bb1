"""The UDP socket: drained in batches, so that one commit serves many datagrams."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ..goip.events import Address

log = logging.getLogger(__name__)

BATCH = 256
"Datagrams taken in one wake-up, so that other work gets its turn."
RECEIVE_BUFFER = 8 << 20
"Bytes asked of the kernel: room for a second of the worst load while we commit."
MAX_DATAGRAM = 65_535
MAPPED = "::ffff:"
"What the kernel writes before an IPv4 address on an IPv6 socket."


def plain(address: Address) -> Address:
    """The address as people write it, and as an IPv4 socket has it: without the kernel's `::ffff:`."""
    host, port = address
    return host.removeprefix(MAPPED), port


class UdpSocket:
    """One socket for everything: boxes behind NAT accept answers from nowhere else (docs/protocol.md §1)."""

    def __init__(
        self, sock: socket.socket, received: Callable[[list[tuple[bytes, Address]]], None], *, inherited: bool = False
    ) -> None:
        """Take over a bound socket; `inherited` if others had it before us, and datagrams may wait in it."""
        sock.setblocking(False)
        self.socket = sock
        self.address: Address = plain(sock.getsockname()[:2])
        self.inherited = inherited
        self.sent = 0
        self.send_failures = 0
        self._received = received
        self._mapped = sock.family == socket.AF_INET6

    @classmethod
    def bind(cls, host: str, port: int, received: Callable[[list[tuple[bytes, Address]]], None]) -> Self:
        """A socket of our own. Raises OSError."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            _set_receive_buffer(sock)
            sock.bind((host, port))
        except OSError:
            sock.close()
            raise
        return cls(sock, received)

    def listens_on(self, host: str, port: int) -> bool:
        """Whether this is the address of the socket; port 0 is any."""
        try:
            wanted = socket.getaddrinfo(host, port, self.socket.family, socket.SOCK_DGRAM)[0][4]
        except OSError:  # of the other family, or the name server is away
            return False
        return plain((str(wanted[0]), port))[0] == self.address[0] and port in (0, self.address[1])

    def start(self) -> None:
        """Take datagrams from now on."""
        asyncio.get_running_loop().add_reader(self.socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Stop."""
        asyncio.get_running_loop().remove_reader(self.socket.fileno())
        self.socket.close()

    def send(self, datagram: bytes, address: Address) -> None:
        """Send, or count that the kernel would not: the protocol repeats what is lost."""
        host, port = address
        if self._mapped and ":" not in host:
            host = MAPPED + host
        try:
            self.socket.sendto(datagram, (host, port))
            self.sent += 1
        except OSError as error:
            self.send_failures += 1
            log.debug("cannot send to %s:%d: %s", address[0], address[1], error)

    @property
    def kernel_drops(self) -> int:
        """Datagrams the kernel threw away since the socket was made: we were too slow, or away for too long."""
        return self._read_drops() or 0

    @property
    def identity(self) -> str:
        """What tells this socket from all others, also from those of before the machine was started."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = ""
        return f"{boot}:{os.fstat(self.socket.fileno()).st_ino}"

    def drain(self) -> list[tuple[bytes, Address]]:
        """What has arrived, up to one batch."""
        batch: list[tuple[bytes, Address]] = []
        receive = self.socket.recvfrom
        try:
            while len(batch) < BATCH:
                data, address = receive(MAX_DATAGRAM)
                batch.append((data, plain(address[:2]) if self._mapped else address[:2]))
        except BlockingIOError:
            pass
        except OSError as error:  # an ICMP error of an earlier answer; the next read goes on
            log.debug("receiving: %s", error)
        return batch

    def _on_readable(self) -> None:
        if batch := self.drain():
            self._received(batch)

    def _read_drops(self) -> int | None:
        """The last column of /proc/net/udp; None where there is none."""
        inode = str(os.fstat(self.socket.fileno()).st_ino)
        for name in ("udp", "udp6"):
            try:
                lines = Path("/proc/net", name).read_text().splitlines()[1:]
            except OSError:
                return None
            for line in lines:
                columns = line.split()
                if len(columns) > 12 and columns[9] == inode:
                    return int(columns[12])
        return None


def _set_receive_buffer(sock: socket.socket) -> None:
    force = getattr(socket, "SO_RCVBUFFORCE", 33)  # beyond net.core.rmem_max, where we may
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, RECEIVE_BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
