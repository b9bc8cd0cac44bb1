"""A bad network between gateways and host, in user space: works where no kernel module for it is to be had.

Every client gets an upstream socket of its own, so that the host sees one source port per line. All chance comes from
one seeded generator. `ChaosProxy.reached` and `.left` say what arrived at the host's socket and what came out of it:
the checker's knowledge of the network (`checker.History`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Address = tuple[str, int]
Direction = Literal["up", "down"]
"Towards the host, towards the gateways."
_BURST = 256
_ID = re.compile(rb";id:([^;]*);")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What happens to each datagram of one direction. Shares are probabilities; times are seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    "Share that is held back for `held`, so that later ones overtake it."
    held: tuple[float, float] = (0.05, 0.5)
    delay: tuple[float, float] = (0.0, 0.0)
    "Evenly spread."
    tail: float = 0.0
    "Mean of a further, exponential delay: most are fast, few are very late."
    corrupt: float = 0.0
    "Share of which one byte is changed."
    truncate: float = 0.0
    "Share of which the end is missing."
    rate: float | None = None
    "Datagrams per second; what is more is dropped, after a burst of a tenth of a second's worth."


@dataclass(frozen=True, slots=True)
class Seen:
    """A datagram at the host's socket."""

    at: float
    "Unix time."
    line: str
    "The line it is from or for, once that has said its id; else its address."
    data: bytes


@dataclass(slots=True)
class _Client:
    address: Address
    upstream: socket.socket
    line: str


@dataclass(slots=True)
class _Bucket:
    tokens: float = math.inf
    filled: float = field(default_factory=time.monotonic)


class ChaosProxy:
    """Gateways send to `address`; the host is `server`. An async context manager, or `start` and `stop`."""

    def __init__(self, server: Address, seed: int | None = None, network: Network | None = None) -> None:
        self.server = server
        self.networks: dict[Direction, Network] = {"up": network or Network(), "down": network or Network()}
        self.reached: list[Seen] = []
        "What arrived at the host's socket, and found it open."
        self.left: list[Seen] = []
        "What the host sent, whether it arrives or not."
        self.counts: Counter[str] = Counter()
        "By fate: lost, duplicated, reordered, corrupted, truncated, over_rate, blacked_out, refused, delivered."
        self.tap: Callable[[Direction, bytes], None] = lambda direction, data: None
        "Called with each datagram that arrived at the host's socket or came out of it, in that moment."
        self._rng = random.Random(seed)
        self._clients: dict[Address, _Client] = {}
        self._buckets: dict[Direction, _Bucket] = {"up": _Bucket(), "down": _Bucket()}
        self._dark: set[Direction] = set()
        self._front: socket.socket | None = None

    # --- life ---

    @property
    def address(self) -> Address:
        assert self._front is not None, "started"
        host, port = self._front.getsockname()
        return str(host), int(port)

    async def start(self) -> None:
        self._front = _udp_socket()
        self._front.bind(("127.0.0.1", 0))
        asyncio.get_running_loop().add_reader(self._front, self._from_gateways)

    async def stop(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in [*(client.upstream for client in self._clients.values()), *filter(None, [self._front])]:
            loop.remove_reader(sock)
            sock.close()
        self._clients.clear()
        self._front = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- the script ---

    def become(self, network: Network, *directions: Direction) -> None:
        """Be like this from now on, in both directions or the named ones."""
        for direction in directions or ("up", "down"):
            self.networks[direction] = network

    @contextlib.contextmanager
    def blackout(self, *directions: Direction) -> Iterator[None]:
        """Let nothing through while it lasts."""
        self._dark |= set(directions or ("up", "down"))
        try:
            yield
        finally:
            self._dark -= set(directions or ("up", "down"))

    # --- the way of a datagram ---

    def _from_gateways(self) -> None:
        assert self._front is not None
        for data, source in _drain(self._front):
            client = self._clients.get(source) or self._admit(source)
            if match := _ID.search(data[:200]):
                client.line = match[1].decode(errors="replace")
            for delay, copy in self._carry("up", data):
                self._after(delay, self._deliver_up, client, copy)

    def _from_host(self, client: _Client) -> None:
        for data, _ in _drain(client.upstream):
            self.left.append(Seen(time.time(), client.line, data))
            self.tap("down", data)
            for delay, copy in self._carry("down", data):
                self._after(delay, self._deliver_down, client, copy)

    def _admit(self, source: Address) -> _Client:
        upstream = _udp_socket()
        upstream.connect(self.server)
        client = self._clients[source] = _Client(source, upstream, f"{source[0]}:{source[1]}")
        asyncio.get_running_loop().add_reader(upstream, self._from_host, client)
        return client

    def _carry(self, direction: Direction, data: bytes) -> list[tuple[float, bytes]]:
        """The copies that arrive, and after how long."""
        network, chance, counts = self.networks[direction], self._rng.random, self.counts
        if direction in self._dark:
            counts["blacked_out"] += 1
            return []
        if network.rate is not None and not self._within(self._buckets[direction], network.rate):
            counts["over_rate"] += 1
            return []
        if chance() < network.loss:
            counts["lost"] += 1
            return []
        copies = 1
        if chance() < network.duplicate:
            counts["duplicated"] += 1
            copies = 2
        return [(self._delay(network), self._damage(network, data)) for _ in range(copies)]

    def _delay(self, network: Network) -> float:
        delay = self._rng.uniform(*network.delay)
        if network.tail:
            delay += self._rng.expovariate(1 / network.tail)
        if self._rng.random() < network.reorder:
            self.counts["reordered"] += 1
            delay += self._rng.uniform(*network.held)
        return delay

    def _damage(self, network: Network, data: bytes) -> bytes:
        if data and self._rng.random() < network.corrupt:
            self.counts["corrupted"] += 1
            place = self._rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ self._rng.randrange(1, 256)]) + data[place + 1 :]
        if data and self._rng.random() < network.truncate:
            self.counts["truncated"] += 1
            data = data[: self._rng.randrange(len(data))]
        return data

    @staticmethod
    def _within(bucket: _Bucket, rate: float) -> bool:
        now = time.monotonic()
        bucket.tokens = min(max(1.0, rate / 10), bucket.tokens + (now - bucket.filled) * rate)
        bucket.filled = now
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def _after(self, delay: float, deliver: object, client: _Client, data: bytes) -> None:
        if delay > 0:
            asyncio.get_running_loop().call_later(delay, deliver, client, data)  # type: ignore[arg-type]
        else:
            deliver(client, data)  # type: ignore[operator]

    def _deliver_up(self, client: _Client, data: bytes) -> None:
        if self._front is None:
            return
        at = time.time()
        try:
            client.upstream.send(data)
        except OSError:  # an earlier one was refused; this one was not sent
            with contextlib.suppress(OSError):
                client.upstream.send(data)
        # On the loopback the answer of a closed port is there at once.
        if client.upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.counts["refused"] += 1
            return
        self.counts["delivered"] += 1
        self.reached.append(Seen(at, client.line, data))
        self.tap("up", data)

    def _deliver_down(self, client: _Client, data: bytes) -> None:
        if self._front is not None:
            with contextlib.suppress(OSError):
                self._front.sendto(data, client.address)


def _udp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return sock


def _drain(sock: socket.socket) -> Iterator[tuple[bytes, Address]]:
    for _ in range(_BURST):
        try:
            yield sock.recvfrom(65535)
        except BlockingIOError:
            return
        except OSError:  # a closed port at the other end
            continue
