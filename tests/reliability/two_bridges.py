"""Two whole bridges on one base topic and one broker, in a virtual world, with faults from a seed.

    python -m reliability.two_bridges --seconds 60       different seeds
    python -m reliability.two_bridges --seed 17          one run again, exactly as it was

Each bridge has a store, gateways and an event loop of its own, so that one of them can stand still, as a process that
is stopped or a machine that is paused does, while the world goes on: what comes meanwhile waits in its sockets. The
broker keeps order, as one that runs in one process does. Each direction of each bridge's connection can freeze by
itself: nothing is lost or closed, and everything comes later.

What is checked is what docs/reliability.md promises of two bridges: a command that was published once is carried out by
one of them at most, whatever happens; one that its user repeats is carried out twice only when both accepted it; and a
bridge accepts a command only while its word on who serves is the one that the broker acknowledged last.
"""

import argparse
import asyncio
import asyncio.events
import contextlib
import heapq
import json
import logging
import random
import selectors
import sqlite3
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge.app.bridge import Bridge
from bridge.app.election import Role
from bridge.config.settings import BrokerUrl, Settings
from bridge.mqtt.link import Incoming, Publication
from bridge.sim.gateway import SimulatedGateway
from bridge.sim.options import LineOptions
from bridge.sim.world import World
from bridge.system.clock import Clock
from reliability.simulation import _fix_chance, _memory
from reliability.virtual import EPOCH, Crash, Disk, Host, Life, VirtualStore, VirtualUdp

NAMES = ("first", "second")
LINES = 2
REPEAT_S = 20.0
"How often a user repeats, with the same id, a command that nobody answered."
LATENCY = 0.001
KEEPALIVE_S = 30.0
BROKER_PATIENCE_S = 45.0
WILL_DELAY_S = 10.0
INFLIGHT = 20
"Commands that the broker sends ahead of their PUBACKs."
READ = 256
"Packets that a bridge reads at once."
HEAL_S = 300.0
"After the last fault: until then one bridge serves, and every user who repeats has a result."


class Schedule:
    """What happens in the world, in order of time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    @property
    def next(self) -> float:
        return self._heap[0][0] if self._heap else float("inf")

    def run_next(self) -> None:
        self.now, _, action = heapq.heappop(self._heap)
        action()


class _Nothing(selectors.SelectSelector):
    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class ProcessLoop(asyncio.SelectorEventLoop):
    """The event loop of one process; it runs only when it is told to."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        super().__init__(_Nothing())
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._schedule.now

    @property
    def due(self) -> float:
        """When it has something to do."""
        if self._ready:  # type: ignore[attr-defined]
            return self._schedule.now
        scheduled = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(scheduled)._scheduled = False
        return float(scheduled[0]._when) if scheduled else float("inf")

    def turn(self) -> None:
        self.within(self._run_once)  # type: ignore[attr-defined]

    def end(self) -> None:
        """What still waits is told so, and finds that it is dead."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        for _ in range(5):
            self.turn()
        self.close()

    def within(self, action: Callable[[], object]) -> None:
        """Do something as a callback of this loop does."""
        asyncio.events._set_running_loop(self)
        try:
            action()
        finally:
            asyncio.events._set_running_loop(None)


class WorldClock(Clock):
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def monotonic(self) -> float:
        return self._schedule.now

    def time(self) -> float:
        return EPOCH + self._schedule.now

    def boottime(self) -> float:
        return self._schedule.now

    @property
    def boot_id(self) -> str:
        return "virtual"


class Direction:
    """One way of a path: keeps the order, and may freeze."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._frozen_until = 0.0
        self._scheduled = False

    def freeze(self, seconds: float) -> None:
        self._frozen_until = max(self._frozen_until, self._schedule.now + seconds)

    def send(self, arrive: Callable[[], None]) -> None:
        self._queue.append((self._schedule.now + LATENCY, arrive))
        self._arrange()

    def _arrange(self) -> None:
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._schedule.at(max(self._queue[0][0], self._frozen_until), self._run)

    def _run(self) -> None:
        self._scheduled = False
        while self._queue and self._queue[0][0] <= self._schedule.now and self._frozen_until <= self._schedule.now:
            self._queue.popleft()[1]()
        self._arrange()


class NetworkPath:
    """Between one bridge and the broker."""

    def __init__(self, schedule: Schedule) -> None:
        self.up, self.down = Direction(schedule), Direction(schedule)


@dataclass(eq=False)
class Session:
    """What the broker keeps for a client id."""

    name: str
    commands: bool = False
    "It is subscribed to commands."
    in_flight: dict[int, Incoming] = field(default_factory=dict)
    queue: deque[Incoming] = field(default_factory=deque)
    connection: "Connection | None" = None
    will_at: float | None = None


class Connection:
    """The broker's end of one connection."""

    def __init__(self, broker: "Broker", session: Session, link: "Link", number: int, path: NetworkPath) -> None:
        self.broker, self.session, self.link, self.number, self.path = broker, session, link, number, path
        self.heard = broker.schedule.now
        self.open = True

    def send(self, *packet: Any) -> None:
        if self.open:
            self.path.down.send(lambda: self.link.arrive(self.number, packet))

    def close(self, *, will: bool) -> None:
        if not self.open:
            return
        self.send("eof")
        self.open = False
        if self.session.connection is self:
            self.session.connection = None
            self.session.will_at = self.broker.schedule.now + WILL_DELAY_S if will else None


class Broker:
    """Sessions, retained messages and wills, and the order of one process."""

    def __init__(self, schedule: Schedule, seen: Callable[[str, bytes], None]) -> None:
        self.schedule = schedule
        self.up = True
        self.seen = seen
        self.retained: dict[str, bytes] = {}
        self.sessions: dict[str, Session] = {}
        self._mids = iter(range(1, 1 << 62))

    def tick(self) -> None:
        now = self.schedule.now
        for session in self.sessions.values():
            connection = session.connection
            if connection is not None and now - connection.heard > BROKER_PATIENCE_S:
                connection.close(will=True)
            if session.will_at is not None and now >= session.will_at and self.up:
                session.will_at = None
                self.route("goip/bridge/availability", b"offline", retain=True, sender=session)

    def connect(self, name: str, link: "Link", number: int, path: NetworkPath) -> None:
        session = self.sessions.get(name)
        present = session is not None
        session = self.sessions.setdefault(name, Session(name))
        if session.connection is not None:
            session.connection.close(will=False)
        session.will_at = None
        session.connection = connection = Connection(self, session, link, number, path)
        connection.send("connack", connection, present)
        for mid, message in session.in_flight.items():
            session.in_flight[mid] = again = replace(message, dup=True)
            connection.send("publish", again)
        self._fill(session)

    def take(self, connection: Connection, packet: tuple[Any, ...]) -> None:
        """A packet from a client."""
        if not connection.open:
            return
        connection.heard = self.schedule.now
        session = connection.session
        match packet:
            case ("subscribe", replayed):
                session.commands = True
                connection.send("suback")
                for topic in replayed:
                    if topic in self.retained:
                        connection.send("publish", Incoming(topic, self.retained[topic], True, False, None, None, 0, 0))
            case ("listen", on):
                session.commands = on
            case ("publish", token, publication):
                self.route(publication.topic, publication.payload, retain=publication.retain, sender=session)
                connection.send("puback", token)
            case ("puback", mid):
                session.in_flight.pop(mid, None)
                self._fill(session)
            case ("pingreq",):
                connection.send("pingresp")
            case ("disconnect",):
                connection.close(will=False)
            case ("fin",):
                connection.close(will=True)

    def route(self, topic: str, payload: bytes, *, retain: bool, sender: Session | None = None) -> None:
        if retain:
            self.retained[topic] = payload
        self.seen(topic, payload)
        for session in self.sessions.values():
            if session is sender:
                continue
            if "/cmd/" in topic:
                if session.commands:
                    session.queue.append(Incoming(topic, payload, False, False, None, None, next(self._mids), 0))
                    self._fill(session)
            elif topic.startswith("goip/bridge/") and session.connection is not None:
                session.connection.send("publish", Incoming(topic, payload, False, False, None, None, 0, 0))

    def _fill(self, session: Session) -> None:
        while session.connection is not None and session.queue and len(session.in_flight) < INFLIGHT:
            message = session.queue.popleft()
            session.in_flight[message.mid] = message
            session.connection.send("publish", message)

    def stop(self, seconds: float) -> None:
        self.up = False
        for session in self.sessions.values():
            if session.connection is not None:
                session.connection.close(will=False)
        self.schedule.after(seconds, lambda: setattr(self, "up", True))


class Link:
    """As `bridge.mqtt.link.MqttLink`, with packets in place of bytes."""

    WINDOW = 100
    retains = True
    mute_s = 0.0

    def __init__(self, machine: "Machine", life: Life, handler: Any) -> None:
        self._machine, self._life, self._handler = machine, life, handler
        self._broker, self._loop, self._rng = machine.broker, machine.loop, machine.rng
        self._number = 0
        self._peer: Connection | None = None
        self._ready = False
        self._in_flight = 0
        self._socket: deque[tuple[int, tuple[Any, ...]]] = deque()
        self._ended = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tokens = iter(range(1, 1 << 62))
        self._sent: dict[int, float] = {}
        self._pings: deque[float] = deque()
        self._sent_last = self._received_last = 0.0
        self._reading = False
        self._reads = random.Random(machine.rng.random())
        self._open = False
        "The socket of this connection is not closed."

    @property
    def connected(self) -> bool:
        return self._ready

    @property
    def room(self) -> int:
        return self.WINDOW - self._in_flight if self._ready else 0

    async def run(self) -> None:
        attempts = 0
        while not self._stopping.is_set():
            began = self._loop.time()
            await self._one_connection()
            attempts = 0 if self._loop.time() - began > 10 else attempts + 1
            wait = self._rng.uniform(0, min(60.0, 2.0 ** min(attempts, 10)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def _one_connection(self) -> None:
        self._number += 1
        number, path = self._number, self._machine.path
        self._in_flight, self._open = 0, True
        self._sent.clear()
        self._pings.clear()
        self._ended.clear()
        self._sent_last = self._received_last = self._loop.time()

        def arrives() -> None:
            if self._broker.up and self._number == number and not self._life.dead:
                self._broker.connect(self._machine.name, self, number, path)
            else:
                path.down.send(lambda: self.arrive(number, ("eof",)))

        path.up.send(arrives)
        deadline = self._loop.time() + 20.0
        while not self._ended.is_set():
            try:
                await asyncio.wait_for(self._ended.wait(), 1.0)
            except TimeoutError:
                self._misc(deadline)
        was_ready, self._ready = self._ready, False
        self._drop()
        if was_ready:
            self._handler.disconnected("the broker is gone")

    def _misc(self, deadline: float) -> None:
        now = self._loop.time()
        if not self._ready:
            if now >= deadline:
                self._ended.set()
        elif self._pings and now - self._pings[0] >= KEEPALIVE_S:
            self._ended.set()
        elif not self._pings and (now - self._sent_last >= KEEPALIVE_S or now - self._received_last >= KEEPALIVE_S):
            self.probe()

    def _drop(self) -> None:
        """Close the socket: what was not read is lost, and the broker hears of it when the path lets it."""
        self._ready = self._open = False
        peer, self._peer = self._peer, None
        if peer is not None:
            self._machine.path.up.send(lambda: self._broker.take(peer, ("fin",)))
        self._socket.clear()

    def arrive(self, number: int, packet: tuple[Any, ...]) -> None:
        """Into the socket's buffer."""
        if number == self._number and self._open and not self._life.dead:
            self._socket.append((number, packet))
            if not self._reading:
                self._reading = True
                self._loop.call_soon(self._on_readable)

    def _on_readable(self) -> None:
        self._reading = False
        if self._life.dead:
            return
        received: list[Incoming] = []
        acks: list[tuple[int, int]] = []
        proofs: list[float] = []
        ended = False
        connected: bool | None = None
        # What a frozen path lets go comes in pieces, and a read may end before any packet.
        for _ in range(min(self._reads.choice((1, 1, 3, READ)), len(self._socket))):
            number, packet = self._socket.popleft()
            if number != self._number:
                continue
            self._received_last = self._loop.time()
            match packet:
                case ("connack", peer, present):
                    self._peer, self._present = peer, present
                    self._subscribed_at = self._loop.time()
                    self._held: list[Incoming] = []
                    self._send("subscribe", [f"goip/bridge/{name}" for name in ("availability", "info", "health")])
                case ("suback",):
                    connected = self._present
                case ("publish", message):
                    message = replace(message, connection=self._number)
                    (received if self._ready or connected is not None else self._held).append(message)
                case ("puback", token):
                    self._in_flight -= 1
                    acks.append((token, 0))
                    proofs.append(self._sent.pop(token))
                case ("pingresp",):
                    proofs.append(self._pings.popleft())
                case ("eof",):
                    ended = True
        if self._socket and not ended:
            self._reading = True
            self._loop.call_soon(self._on_readable)
        if connected is not None and not ended:
            self._ready = True
            self._handler.connected(session_present=connected, version="5")
            received = self._held + received
        if ended:
            self._ready, received = False, []
        number = self._number
        if received and self._ready:
            self._handler.received(received)
        if acks:
            self._handler.published(acks)
        if proofs and self._ready and number == self._number:
            self._handler.proved(max(proofs))
        if ended:
            self._ready = bool(self._peer) and self._machine.was_connected(self)
            self._ended.set()

    def _send(self, *packet: Any) -> None:
        peer = self._peer
        assert peer is not None
        self._sent_last = self._loop.time()
        self._machine.path.up.send(lambda: self._broker.take(peer, packet))

    def publish(self, publication: Publication) -> int | None:
        if not self.room:
            return None
        self._life.effect("publish")
        token = next(self._tokens)
        self._in_flight += 1
        self._sent[token] = self._loop.time()
        self._send("publish", token, publication)
        return token

    def acknowledge(self, message: Incoming) -> None:
        if self._ready and message.mid and message.connection == self._number:
            self._life.effect("acknowledge")
            self._send("puback", message.mid)

    def probe(self) -> None:
        if self._ready and not self._pings:
            self._pings.append(self._loop.time())
            self._send("pingreq")

    def subscribe_again(self) -> None:
        pass

    def pause(self, *, on: bool) -> None:
        pass

    def listen(self, *, on: bool) -> None:
        if self._ready:
            self._send("listen", on)

    async def disconnect(self, *, clean: bool = True) -> None:
        self._stopping.set()
        if clean and self._ready:
            self._send("disconnect")
        self._ended.set()


class Machine:
    """One bridge: its store, its gateways, its path to the broker, and the process that runs now."""

    def __init__(self, run: "Run", name: str, folder: Path) -> None:
        self.run, self.name = run, name
        self.schedule, self.broker, self.rng = run.schedule, run.broker, run.rng
        self.store_path = folder / f"{name}.db"
        self.path = NetworkPath(self.schedule)
        self.clock = WorldClock(self.schedule)
        self.lives: list[Life] = []
        self.loop = ProcessLoop(self.schedule)
        self.paused_until = 0.0
        self.host = Host()
        self.world = World(random.Random(self.rng.random()))
        pattern = LineOptions(id="line%d", password="secret-%d", radio_errors=0.0, boot_time=1.0)
        self.box = SimulatedGateway([pattern.numbered(n + 1) for n in range(LINES)], self.world)
        self.lines = {line.id: line for line in self.box.lines}
        self.addresses = {line.id: ("10.0.0.1", 10990 + line.channel) for line in self.box.lines}
        self.by_address = {address: self.lines[id] for id, address in self.addresses.items()}
        self.settings = Settings(
            instance=name,
            lines={
                line.id: {"password": line.options.password, "repeat_safety": "safe"} for line in self.lines.values()
            },
        )
        self._world_due = float("inf")
        self.bridge: Bridge | None = None

    def was_connected(self, link: Link) -> bool:
        return self.bridge is not None and self.bridge.link is link

    # -- gateways

    def step(self, action: Callable[[float], None] = lambda _: None) -> None:
        now = EPOCH + self.schedule.now
        self.world.run_due(now)
        action(now)
        self.world.run_due(now)
        for record in self.world.take_records():
            if record["what"] == "submit" and record["result"] == "ok":
                self.run.on_air(self.name, record)
        for datagram in self.world.take_datagrams():
            address = self.addresses[datagram.line]
            self.schedule.after(LATENCY, lambda data=datagram.data, address=address: self._arrive(data, address))
        due = self.world.deadline()
        if due is not None and due - EPOCH < self._world_due:
            self._world_due = due - EPOCH
            self.schedule.at(self._world_due, self._on_world)

    def _on_world(self) -> None:
        self._world_due = float("inf")
        self.step()

    def _arrive(self, data: bytes, address: tuple[str, int]) -> None:
        self.loop.within(lambda: self.host.arrive(data, address))

    def _deliver(self, data: bytes, address: tuple[str, int]) -> None:
        line = self.by_address[address]
        self.schedule.after(
            LATENCY, lambda: self.step(lambda now: line.receive_datagram(data, ("192.0.2.1", 44444), now))
        )

    # -- the process

    def begin(self) -> None:
        machine, life = self, Life(len(self.lives))
        self.lives.append(life)
        life.on_crash = lambda: self.schedule.after(0.0, lambda: self._bury(life))
        self.loop = loop = ProcessLoop(self.schedule)
        loop.set_exception_handler(self._on_exception)

        class VirtualBridge(Bridge):
            def _open_udp(self, *_: Any) -> Any:
                return VirtualUdp(
                    machine.host, life, self._guarded(self.datagrams_received), machine._deliver, lambda _: None
                )

            def _open_link(self, _broker: BrokerUrl) -> Any:
                return Link(machine, life, self)

        class WatchedStore(VirtualStore):
            def add_command(self, **columns: Any) -> int:
                machine.run.accepted(machine.name, columns["topic"])
                return super().add_command(**columns)

        try:
            store = WatchedStore(self.store_path, life, Disk())
            bridge = VirtualBridge(self.settings, store, lambda: self.settings, self.clock)
        except Crash:
            return
        life.store, self.bridge = store, bridge  # type: ignore[attr-defined]
        self._watch(bridge)
        loop.within(lambda: loop.create_task(self._live(life, bridge)))

    def _watch(self, bridge: Bridge) -> None:
        """Whose word on who serves the broker acknowledged last."""
        acknowledged = bridge.election.acknowledged

        def noted(now: float) -> bool:
            begins = acknowledged(now)
            if begins:
                self.run.last_word = self.name
            return begins

        bridge.election.acknowledged = noted  # type: ignore[method-assign]

    async def _live(self, life: Life, bridge: Bridge) -> None:
        try:
            await bridge.run(life.stop, BrokerUrl.parse("mqtt://virtual"))
            life.kill()
        except (Crash, asyncio.CancelledError):
            pass
        except BaseException as error:
            if not life.dead:
                self.run.fail(error)

    def _on_exception(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, Crash | asyncio.CancelledError) and not self.lives[-1].dead:
            self.run.fail(error)

    def _bury(self, life: Life) -> None:
        link = self.bridge.link if self.bridge is not None else None
        if isinstance(link, Link):
            link._drop()
        self.host.on_arrival = None
        self.bridge = None
        self.loop.end()  # nothing of the dead runs on
        self.loop = ProcessLoop(self.schedule)
        store = getattr(life, "store", None)
        if store is not None:
            store.close()
        self.schedule.after(self.rng.uniform(0.5, 3.0) + self.run.absence(), self.begin)

    @property
    def due(self) -> float:
        return max(self.loop.due, self.paused_until)


class Run:
    """One run, from a seed."""

    def __init__(
        self, seed: int, folder: Path, *, commands: int = 100, faults: int = 10, correlated: bool = False
    ) -> None:
        """`correlated`: one bridge is cut off just when the other one starts again, and people send just then."""
        self.rng = random.Random(f"two bridges {seed}")
        self.last_word = ""
        self._correlated = correlated
        self.schedule = Schedule()
        self.broker = Broker(self.schedule, self._seen)
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.published: Counter[str] = Counter()
        self.airings: dict[str, list[str]] = {}
        self.results: set[str] = set()
        self.failure: BaseException | None = None
        self._long_absence = 0.0
        self.machines = [Machine(self, name, folder) for name in NAMES]
        self._commands, self._faults = commands, faults
        self._cut_offs = 0
        self.trace: list[str] = []

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error

    def say(self, text: str) -> None:
        self.trace.append(f"{self.schedule.now:9.3f} {text}")

    def absence(self) -> float:
        seconds, self._long_absence = self._long_absence, 0.0
        return seconds

    def accepted(self, name: str, topic: str) -> None:
        if name != self.last_word:
            self.violations.append(f"{name} accepted a command on {topic} although {self.last_word} had the last word")
            self.say(self.violations[-1])

    def on_air(self, name: str, record: Any) -> None:
        self.airings.setdefault(record["to"], []).append(name)
        self.say(f"{name} on air {record['to']}")

    def _seen(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/result/sms"):
            body = json.loads(payload)
            self.results.add(body["id"])
            self.say(f"result {body['id']} {body['code']} {body['boot']}")
        elif topic == "goip/bridge/info":
            body = json.loads(payload)
            self.say(f"{body['instance']} says it serves since {body['serving_since']}, {body['served_since']}")

    # -- what people do

    def _produce(self, topic: str, payload: bytes, number: str, id: str, *, again: bool) -> None:
        if id in self.results:
            return
        if self.broker.up:
            self.published[number] += 1
            self.say(f"command {id} to {number}")
            self.broker.route(topic, payload, retain=False)
        if again or not self.broker.up:
            self.schedule.after(REPEAT_S, lambda: self._produce(topic, payload, number, id, again=again))

    def _plan(self) -> float:
        rng = self.rng
        seconds = max(self._commands * 4.0, self._faults * 45.0)
        for n in range(self._commands):
            number, line = f"+4900{n:06}", f"line{rng.randint(1, LINES)}"
            kind = rng.random()
            id = f"c{n}"
            topic, payload = f"goip/{line}/cmd/sms", json.dumps({"id": id, "to": number, "text": f"text {n}"}).encode()
            if kind < 0.2:
                topic, payload = f"goip/{line}/cmd/sms/00{number[1:]}", f"text {n}".encode()
            # Some come in bursts, and more than the broker sends ahead.
            when = rng.uniform(10, seconds) if rng.random() < 0.6 else 10 + seconds * rng.randint(1, 4) / 5
            again = kind >= 0.6
            self.schedule.after(
                when,
                lambda topic=topic, payload=payload, number=number, id=id, again=again: self._produce(
                    topic, payload, number, id, again=again
                ),
            )
        for _ in range(self._faults):
            self.schedule.after(rng.uniform(15, seconds), self._cut_off if self._correlated else self._fault)
        return seconds

    def _cut_off(self) -> None:
        """The bridge that serves is cut off, one way or both; the other one starts again."""
        rng = self.rng
        one, other = self.machines if rng.random() < 0.5 else reversed(self.machines)
        seconds = 3.0 * (70.0 / 3.0) ** rng.random()
        ways = rng.choice((("up",), ("down",), ("up", "down")))
        self.counts["cut off, and the other one starts again"] += 1
        self.say(f"fault: {one.name} cut off {ways} {seconds:.1f} s, {other.name} starts again")
        for way in ways:
            self.schedule.after(rng.uniform(0.0, 4.0), lambda way=way: getattr(one.path, way).freeze(seconds))
        other.lives[-1].kill()
        for _ in range(10):
            self._cut_offs += 1
            number, line = f"+4911{self._cut_offs:06}", f"line{rng.randint(1, LINES)}"
            id, again = f"d{self._cut_offs}", rng.random() < 0.5
            payload = json.dumps({"id": id, "to": number, "text": f"text {id}"}).encode()
            self.schedule.after(
                rng.uniform(0.0, 12.0),
                lambda topic=f"goip/{line}/cmd/sms", payload=payload, number=number, id=id, again=again: self._produce(
                    topic, payload, number, id, again=again
                ),
            )

    def _fault(self) -> None:
        rng = self.rng
        machine = rng.choice(self.machines)
        seconds = 3.0 * (70.0 / 3.0) ** rng.random()
        kind = rng.choice(("kill", "kill at an effect", "pause", "up", "down", "both", "broker"))
        self.counts[kind] += 1
        self.say(f"fault: {kind} {machine.name} {seconds:.1f} s")
        life = machine.lives[-1]
        match kind:
            case "kill":
                self._long_absence = rng.choice((0.0, seconds))
                life.kill()
            case "kill at an effect":
                life.crash_at = life.crash_at or life.effects + rng.randint(1, 20)
            case "pause":
                machine.paused_until = max(machine.paused_until, self.schedule.now + seconds)
            case "up":
                machine.path.up.freeze(seconds)
            case "down":
                machine.path.down.freeze(seconds)
            case "both":
                machine.path.up.freeze(seconds)
                machine.path.down.freeze(seconds)
            case "broker" if self.broker.up:
                self.broker.stop(seconds)

    def _tick(self) -> None:
        self.broker.tick()
        self.schedule.after(1.0, self._tick)

    # -- the run

    def run(self) -> None:
        _fix_chance(self.rng)
        seconds = self._plan()
        self._tick()
        for n, machine in enumerate(self.machines):
            for line in machine.lines.values():
                machine.world.at(EPOCH + self.schedule.now, line.power_on)
            machine.step()
            self.schedule.after(n * self.rng.choice((0.0, 0.001, 5.0)), machine.begin)
        self._until(self.schedule.now + seconds + 75.0)
        self._until(self.schedule.now + HEAL_S)
        self._check()

    def _until(self, end: float) -> None:
        schedule, machines = self.schedule, self.machines
        while self.failure is None:
            due = [machine.due for machine in machines]
            soonest = min(schedule.next, *due)
            if soonest > end:
                break
            if schedule.next <= min(due):
                schedule.run_next()
                continue
            machine = machines[due.index(min(due))]
            schedule.now = max(schedule.now, min(due))
            machine.loop.turn()
        schedule.now = max(schedule.now, end)
        if self.failure is not None:
            raise self.failure

    def _check(self) -> None:
        serving = [
            machine.name
            for machine in self.machines
            if machine.bridge is not None and machine.bridge.election.role is Role.SERVING
        ]
        if len(serving) != 1:
            self.violations.append(f"in the end {serving or 'nobody'} serve")
        said = self.broker.retained.get("goip/bridge/availability", b"").decode()
        if said != "online":
            self.violations.append(f"in the end the bridge is {said!r}")
        for machine in self.machines:
            if machine.name not in serving:
                continue
            assert machine.bridge is not None
            for line in machine.bridge.server.lines:
                true = {True: "online", False: "offline"}.get(line.online)  # type: ignore[arg-type]
                told = self.broker.retained.get(f"goip/{line.name}/availability", b"").decode()
                if true is not None and told != true:
                    self.violations.append(f"in the end {line.name} is {true}, and told to be {told!r}")
        accepted: dict[str, list[str]] = {}
        for machine in self.machines:
            for life in machine.lives:
                life.dead = True
            machine.loop.end()
            store = getattr(machine.lives[-1], "store", None)
            if store is not None:
                store.close()
            with sqlite3.connect(machine.store_path) as db:
                for (number,) in db.execute("SELECT number FROM sms"):
                    accepted.setdefault(number, []).append(machine.name)
        for number, times in self.published.items():
            by, aired = accepted.get(number, []), self.airings.get(number, [])
            self.counts["commands"] += 1
            self.counts["repeated by their user"] += times > 1
            self.counts["carried out by nobody"] += not by
            self.counts["on air"] += len(aired)
            if len(by) > 1 or len(aired) > 1:
                if times == 1 or len(set(by)) < 2:
                    self.violations.append(f"{number}, published {times} times, accepted by {by}, on air by {aired}")
                else:
                    self.counts["repeated and accepted by both"] += 1
            if times > 1 and not by:
                self.violations.append(f"{number}, published {times} times, was accepted by nobody")


def simulate(seed: int, *, correlated: bool = False) -> Run:
    """One run and its verdict."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        run = Run(seed, Path(folder), commands=30 if correlated else 100, correlated=correlated)
        run.run()
    return run


def runs(seed: int, seconds: float, wanted: int | None) -> Iterator[tuple[int, Run | Exception]]:
    """Seeds, one after the other, until the time is over or so many faults were there."""
    begin, faults = time.monotonic(), 0
    while (faults < wanted) if wanted is not None else (time.monotonic() - begin < seconds):
        try:
            one: Run | Exception = simulate(seed, correlated=seed % 2 == 0)
        except Exception as error:
            one = error
        yield seed, one
        faults += 10
        seed += 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="two_bridges", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on with new seeds (60)")
    parser.add_argument("--faults", type=int, help="go on until there were so many faults, instead")
    parser.add_argument("--seed", type=int, help="only this one, with its trace when it fails")
    parser.add_argument("--trace", action="store_true", help="print what happened, also when it went well")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first seed (1)")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    if options.seed is not None:
        run = simulate(options.seed, correlated=options.seed % 2 == 0)
        if run.violations or options.trace:
            print("\n".join(run.trace))
        print("\n".join(run.violations) or "no violation")
        print(dict(run.counts))
        return 1 if run.violations else 0
    totals: Counter[str] = Counter()
    failed = 0
    for seed, run in runs(options.first, options.seconds, options.faults):
        if isinstance(run, Exception):
            failed += 1
            print(f"FAILED --seed {seed}: {run!r}")
        else:
            totals.update(run.counts)
            failed += bool(run.violations)
            for violation in run.violations[:3]:
                print(f"FAILED --seed {seed}: {violation}")
        totals["runs"] += 1
        if failed >= 10:
            break
    for name, count in totals.items():
        print(f"{count:8} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
