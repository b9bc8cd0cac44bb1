"""A small MQTT 3.1.1 client for observers: it reads what a dying broker has sent to the last byte.

Clients made for everyday use close the connection when an acknowledgement can't be written any more, and what the
broker had sent before it died stays unread. Here that would look like a loss of the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable

_RETRY_S = 0.02
_ANSWER_S = 5.0


class Client:
    """Connected, subscribed and reading, again and again, while `run` runs."""

    def __init__(
        self,
        address: tuple[str, int],
        name: str,
        heard: Callable[[str, bytes, bool], None] = lambda topic, payload, retain: None,
        topics: tuple[str, ...] = (),
    ) -> None:
        self.address = address
        self.name = name
        self.topics = topics
        self.ready = asyncio.Event()
        "Connected, and subscribed."
        self._heard = heard
        self._socket: socket.socket | None = None
        self._ended: asyncio.Future[None] | None = None
        self._buffer = bytearray()
        self._mids = itertools.cycle(range(1, 65536))
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        "Publications without PUBACK so far."

    async def run(self) -> None:
        """Until cancelled. The session outlives its connections."""
        loop = asyncio.get_running_loop()
        while True:
            sock = socket.socket()
            sock.setblocking(False)
            self._ended = loop.create_future()
            try:
                await loop.sock_connect(sock, self.address)
                self._socket = sock
                loop.add_reader(sock, self._read, sock)
                self._write(_connect(self.name))
                await self._live()
            except OSError:
                pass
            finally:
                self._drop(sock)
            await asyncio.sleep(_RETRY_S)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """QoS 1. True with the PUBACK; False when the connection ended first: it may have arrived or not."""
        if not self.ready.is_set():
            return False
        mid = next(self._mids)
        future = self._waiting[mid] = asyncio.get_running_loop().create_future()
        body = _text(topic) + mid.to_bytes(2, "big") + payload
        self._write(bytes([0x32 | retain]) + _length(len(body)) + body)
        return await future

    async def _live(self) -> None:
        assert self._ended is not None
        # A broker that dies between accepting and answering says nothing.
        answered = asyncio.create_task(self.ready.wait())
        await asyncio.wait((answered, self._ended), timeout=_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        answered.cancel()
        if self.ready.is_set():
            await self._ended

    def _drop(self, sock: socket.socket) -> None:
        self.ready.clear()
        self._socket = None
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()
        self._buffer.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_result(False)
        self._waiting.clear()

    def _read(self, sock: socket.socket) -> None:
        try:
            while chunk := sock.recv(1 << 16):
                self._buffer += chunk
                self._packets()
        except BlockingIOError:
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_reader(sock)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _packets(self) -> None:
        while (packet := _take(self._buffer)) is not None:
            head, body = packet
            match head >> 4:
                case 2 if body[1] == 0 and self.topics:  # CONNACK
                    filters = b"".join(_text(topic) + b"\x01" for topic in self.topics)
                    self._write(b"\x82" + _length(2 + len(filters)) + b"\x00\x01" + filters)
                case 2 if body[1] == 0:
                    self.ready.set()
                case 9:  # SUBACK
                    self.ready.set()
                case 4:  # PUBACK
                    future = self._waiting.pop(int.from_bytes(body[:2], "big"), None)
                    if future is not None and not future.done():
                        future.set_result(True)
                case 3:  # PUBLISH
                    self._publish(head, bytes(body))

    def _publish(self, head: int, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:end].decode()
        if head & 0x06:
            self._heard(topic, body[end + 2 :], bool(head & 1))
            self._write(b"\x40\x02" + body[end : end + 2])
        else:
            self._heard(topic, body[end:], bool(head & 1))

    def _write(self, data: bytes) -> None:
        # Small, and read by a broker that is fast or dead: never a full buffer, and never worth an error.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(data)


def _connect(name: str) -> bytes:
    body = _text("MQTT") + b"\x04\x00\x00\x00" + _text(name)  # 3.1.1, a lasting session, no keepalive
    return b"\x10" + _length(len(body)) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _length(number: int) -> bytes:
    out = bytearray()
    while True:
        number, digit = number >> 7, number & 0x7F
        out.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(out)


def _take(buffer: bytearray) -> tuple[int, bytes] | None:
    """The next whole packet, removed from the buffer."""
    size, shift, place = 0, 0, 1
    while True:
        if place >= len(buffer):
            return None
        digit = buffer[place]
        size |= (digit & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if not digit & 0x80:
            break
    if len(buffer) < place + size:
        return None
    packet = buffer[0], bytes(buffer[place : place + size])
    del buffer[: place + size]
    return packet
