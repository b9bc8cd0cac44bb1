"""The UDP socket: drained in batches, so that one commit serves many datagrams."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from bridge.goip.events import Address

log = logging.getLogger(__name__)

BATCH = 256
"Datagrams taken in one wake-up, so that other work gets its turn."
RECEIVE_BUFFER = 8 << 20
"Bytes asked of the kernel: room for a second of the worst load while we commit."
MAX_DATAGRAM = 65_535


class UdpSocket:
    """One socket for everything: boxes behind NAT accept answers from nowhere else (docs/protocol.md §1)."""

    def __init__(self, host: str, port: int, received: Callable[[list[tuple[bytes, Address]]], None]) -> None:
        """Bind. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            _set_receive_buffer(self._socket)
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self.address: Address = self._socket.getsockname()[:2]
        self.sent = 0
        self.send_failures = 0
        self._received = received
        self._dropped_before = self._read_drops() or 0

    def start(self) -> None:
        """Take datagrams from now on."""
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._on_readable)

    def close(self) -> None:
        """Stop."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def send(self, datagram: bytes, address: Address) -> None:
        """Send, or count that the kernel would not: the protocol repeats what is lost."""
        try:
            self._socket.sendto(datagram, address)
            self.sent += 1
        except OSError as error:
            self.send_failures += 1
            log.debug("cannot send to %s:%d: %s", address[0], address[1], error)

    @property
    def kernel_drops(self) -> int:
        """Datagrams the kernel threw away because we were too slow, since the start."""
        drops = self._read_drops()
        return 0 if drops is None else drops - self._dropped_before

    def drain(self) -> list[tuple[bytes, Address]]:
        """What has arrived, up to one batch."""
        batch: list[tuple[bytes, Address]] = []
        receive = self._socket.recvfrom
        try:
            while len(batch) < BATCH:
                data, address = receive(MAX_DATAGRAM)
                batch.append((data, address[:2]))
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
        inode = str(os.fstat(self._socket.fileno()).st_ino)
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
