"""A world of its own for one bridge: a clock that jumps, a network, a broker and a disk that fail on purpose.

Everything here stands where the bridge meets the outside: its clock, its store, its UDP socket and its MQTT link. What
the bridge does at one of these places is an *effect*. Between two effects nothing of it can be seen from outside and
nothing is kept, so a crash before each effect and after it is a crash at every step there is.
"""

import asyncio
import random
import selectors
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.goip.events import Address
from bridge.mqtt.link import Incoming, Publication
from bridge.store.database import Store
from bridge.system.clock import Clock

EPOCH = 1_800_000_000.0
"Unix time at which every virtual world begins."


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in which waiting takes no time: its clock jumps to the next timer."""

    def __init__(self) -> None:
        self.virtual = 1000.0
        super().__init__(_NoWaiting(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.virtual


class _NoWaiting(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits for something that never comes")
        self._loop.virtual += max(timeout, 0.0)
        return []


class VirtualClock(Clock):
    """The bridge's clocks; `step` is what somebody set the wall clock wrong by."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.step = 0.0
        self._boots = 0
        self._began = 0.0

    def restart(self) -> None:
        """The machine starts again."""
        self._boots += 1
        self._began = self._loop.virtual

    def monotonic(self) -> float:
        return self._loop.virtual

    def time(self) -> float:
        return EPOCH + self._loop.virtual + self.step

    def boottime(self) -> float:
        return self._loop.virtual - self._began

    @property
    def boot_id(self) -> str:
        return f"virtual-{self._boots}"


class Crash(BaseException):
    """kill -9, at this very place. No `except Exception` of the bridge may see it."""


class Life:
    """One run of the bridge, from its start to its end. Every effect asks it for leave."""

    def __init__(self, number: int, crash_at: int | None = None) -> None:
        self.number = number
        self.dead = False
        self.effects = 0
        self.crash_at = crash_at
        "The number of the effect that is never completed."
        self.trace: list[str] = []
        self.stop = asyncio.Event()
        "Set by whoever wants it to end in good order."
        self.on_crash: Callable[[], None] = lambda: None

    def effect(self, name: str) -> None:
        """One more effect is about to happen; or the process dies here."""
        self.alive()
        self.effects += 1
        self.trace.append(name)
        if self.crash_at is not None and self.effects >= self.crash_at:
            self.crash()

    def alive(self) -> None:
        """The dead do nothing."""
        if self.dead:
            raise Crash

    def crash(self) -> None:
        """Die here."""
        self.kill()
        raise Crash

    def kill(self) -> None:
        """Die, from outside."""
        if not self.dead:
            self.dead = True
            self.on_crash()


class Disk:
    """Whether commits work now."""

    def __init__(self) -> None:
        self.failing = False
        self.failures = 0


class VirtualStore(Store):
    """The real store on a real file; a crash loses what was not committed, a failing disk refuses the commit."""

    def __init__(self, path: Path, life: Life, disk: Disk) -> None:
        self._life = life
        self._disk = disk
        super().__init__(path)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._life.effect("commit")
        with super().transaction():
            yield
            self._life.alive()
            if self._disk.failing:
                self._disk.failures += 1
                raise sqlite3.OperationalError("disk I/O error")
        self._life.effect("committed")


class Host:
    """The machine's UDP socket. It outlives the bridge while somebody holds it."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[bytes, Address]] = deque()
        self.held = True
        self.inherited = False
        "Somebody had this socket before."
        self.number = 0
        "Counts the sockets: another one begins when the old one was not held."
        self.on_arrival: Callable[[], None] | None = None

    def arrive(self, data: bytes, address: Address) -> bool:
        """A datagram comes; false when nobody has the socket."""
        if not self.held:
            return False
        self.waiting.append((data, address))
        if self.on_arrival is not None:
            self.on_arrival()
        return True


class VirtualUdp:
    """The bridge's end of that socket, as `bridge.system.udp.UdpSocket`."""

    def __init__(
        self,
        host: Host,
        life: Life,
        received: Callable[[list[tuple[bytes, Address]]], None],
        sent: Callable[[bytes, Address], None],
        read: Callable[[list[tuple[bytes, Address]]], None],
    ) -> None:
        self.address = ("192.0.2.1", 44444)
        self.inherited, host.inherited = host.inherited, True
        self.identity = f"socket-{host.number}"
        self.sent = self.send_failures = self.kernel_drops = 0
        self._host, self._life = host, life
        self._received, self._sent, self._read = received, sent, read
        self._scheduled = False

    def start(self) -> None:
        self._host.on_arrival = self._wake
        if self._host.waiting:
            self._wake()

    def close(self) -> None:
        if self._host.on_arrival == self._wake:
            self._host.on_arrival = None

    def send(self, datagram: bytes, address: Address) -> None:
        self._life.effect("send " + datagram.split(b" ", 1)[0].decode(errors="replace"))
        self._sent(datagram, address)
        self.sent += 1
        self._life.effect("sent")

    def drain(self) -> list[tuple[bytes, Address]]:
        self._life.alive()
        waiting = self._host.waiting
        batch = [waiting.popleft() for _ in range(min(len(waiting), 256))]
        if batch:
            self._read(batch)
            self._life.effect("read")
        return batch

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._on_readable)

    def _on_readable(self) -> None:
        self._scheduled = False
        if self._life.dead:
            return
        if batch := self.drain():
            self._received(batch)
        if self._host.waiting:
            self._wake()


class Broker:
    """A broker with one persistent session, the bridge's, and one subscriber that sees everything."""

    def __init__(self, seen: Callable[[Publication], None]) -> None:
        self.up = True
        self.seen = seen
        self._session: dict[int, Incoming] = {}
        self._mids = iter(range(1, 1 << 62))
        self.link: VirtualLink | None = None

    def publish(self, topic: str, payload: bytes) -> bool:
        """A producer publishes with QoS 1; true when the broker acknowledged it."""
        if not self.up:
            return False
        mid = next(self._mids)
        self._session[mid] = Incoming(topic, payload, False, False, None, None, mid, 0)
        if self.link is not None:
            self.link.deliver([mid])
        return True

    def take(self, mids: list[int], connection: int) -> list[Incoming]:
        """What is to be delivered; the next delivery of it is a duplicate."""
        taken = []
        for mid in mids:
            if message := self._session.get(mid):
                taken.append(replace(message, connection=connection))
                self._session[mid] = replace(message, dup=True)
        return taken

    def unacknowledged(self) -> list[int]:
        return list(self._session)

    def acknowledged(self, mid: int) -> None:
        self._session.pop(mid, None)

    def crash(self, *, lossy: bool) -> None:
        """kill -9 of the broker; without persistence it forgets what it had."""
        self.up = False
        if lossy:
            self._session.clear()
        if self.link is not None:
            self.link.drop("broken pipe")


class VirtualLink:
    """As `MqttLink`: connects, again and again, and loses what was on its way when a connection ends."""

    WINDOW = 100
    LATENCY = 0.001
    "Seconds, one way."
    retains = True
    mute_s = 0.0

    def __init__(self, broker: Broker, life: Life, handler: Any, rng: random.Random) -> None:
        self._broker, self._life, self._handler, self._rng = broker, life, handler, rng
        self._connection = 0
        self._connected = False
        self._in_flight = 0
        self._last = 0.0
        self._tokens = iter(range(1, 1 << 62))
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def room(self) -> int:
        return self.WINDOW - self._in_flight if self._connected else 0

    async def run(self) -> None:
        while not self._stopping.is_set():
            if self._broker.up:
                await self._one_connection()
            else:
                await asyncio.sleep(self._rng.uniform(0.1, 1.0))

    async def _one_connection(self) -> None:
        await asyncio.sleep(2 * self.LATENCY)
        if not self._broker.up or self._life.dead:
            return
        self._connection += 1
        self._connected, self._in_flight = True, 0
        self._ended.clear()
        self._broker.link = self
        self._handler.connected(session_present=self._connection > 1, version="5")
        self.deliver(self._broker.unacknowledged())
        await self._ended.wait()
        self._handler.disconnected("the broker is gone")

    def drop(self, _reason: str) -> None:
        """The connection breaks."""
        self._connected = False
        if self._broker.link is self:
            self._broker.link = None
        self._ended.set()

    def publish(self, publication: Publication) -> int | None:
        if not self.room:
            return None
        self._life.effect("publish")
        token = next(self._tokens)
        self._in_flight += 1
        self._later(self._arrived, token, publication)
        return token

    def _arrived(self, token: int, publication: Publication) -> None:
        self._broker.seen(publication)
        self._later(self._acknowledged, token)

    def _acknowledged(self, token: int) -> None:
        self._in_flight -= 1
        if not self._life.dead:
            self._handler.published([(token, 0)])

    def probe(self) -> None:
        sent_at = asyncio.get_running_loop().time()
        self._later(lambda: self._later(self._answered, sent_at))

    def _answered(self, sent_at: float) -> None:
        if not self._life.dead:
            self._handler.proved(sent_at)

    def deliver(self, mids: list[int]) -> None:
        """Commands for the bridge."""
        if mids:
            self._later(self._delivered, mids)

    def _delivered(self, mids: list[int]) -> None:
        if not self._life.dead and (messages := self._broker.take(mids, self._connection)):
            self._handler.received(messages)

    def acknowledge(self, message: Incoming) -> None:
        if not self._connected or message.connection != self._connection:
            return
        self._life.effect("acknowledge")
        self._later(self._broker.acknowledged, message.mid)

    def listen(self, *, on: bool) -> None:
        raise AssertionError("there is no other bridge")

    def subscribe_again(self) -> None:
        pass

    def pause(self, *, on: bool) -> None:
        pass

    async def disconnect(self, *, clean: bool = True) -> None:
        self._stopping.set()
        self.drop("by us")

    def _later(self, action: Callable[..., None], *arguments: Any) -> None:
        """After the latency, if the connection still stands then: TCP keeps the order, and loses the end."""
        connection, loop = self._connection, asyncio.get_running_loop()
        # Timers of the same moment run in any order, so no two are.
        self._last = max(self._last + 1e-7, loop.time() + self.LATENCY)

        def run() -> None:
            if self._connected and self._connection == connection:
                action(*arguments)

        loop.call_at(self._last, run)
