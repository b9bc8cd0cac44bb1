"""The bridge as users run it, seen from both sides: a raw UDP gateway and an independent MQTT client."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import yaml
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import outputs
from bridge.system.clock import Clock
from broker_fixture import Broker
from brokers import Mosquitto

LIMIT_S = 45.0
"How long anything may take before a test gives up on it."


class StoppedClock(Clock):
    """Stands still but for the test, which sets `now`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Seen:
    """One MQTT message as a subscriber got it."""

    topic: str
    payload: bytes
    retain: bool
    properties: dict[str, Any]

    @property
    def json(self) -> dict[str, Any]:
        loaded = json.loads(self.payload)
        assert isinstance(loaded, dict)
        return loaded


class Watcher:
    """Subscribes, remembers everything, and waits for what a test expects."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self.client = client
        self.seen: list[Seen] = []
        self._news = asyncio.Condition()

    async def collect(self) -> None:
        """Until cancelled, or until the broker dies."""
        with contextlib.suppress(aiomqtt.MqttError):
            await self._collect()

    async def _collect(self) -> None:
        async for message in self.client.messages:
            properties = message.properties.json() if message.properties is not None else {}
            async with self._news:
                payload = message.payload if isinstance(message.payload, bytes) else b""
                self.seen.append(Seen(str(message.topic), payload, bool(message.retain), properties))
                self._news.notify_all()

    def on(self, topic: str) -> list[Seen]:
        """What arrived on topics that match (`+` is one level)."""
        pattern = re.compile(re.escape(topic).replace(r"\+", "[^/]+").replace("+", "[^/]+"))
        return [message for message in self.seen if pattern.fullmatch(message.topic)]

    async def until(self, topic: str, check: Callable[[Seen], object] = lambda _: True, count: int = 1) -> Seen:
        """The `count`-th message on the topic that passes the check; fails after `LIMIT_S`."""

        def found() -> list[Seen]:
            return [message for message in self.on(topic) if check(message)]

        async with self._news:
            try:
                async with asyncio.timeout(LIMIT_S):
                    await self._news.wait_for(lambda: len(found()) >= count)
            except TimeoutError:
                got = "\n".join(f"{message.topic} {message.payload[:300]!r}" for message in self.seen[-40:])
                raise AssertionError(
                    f"{count} message(s) on {topic} expected, {len(found())} came; all:\n{got}"
                ) from None
        return found()[count - 1]

    async def publish(self, topic: str, payload: object = b"", **options: Any) -> None:
        """Publish with QoS 1; anything but bytes and text as JSON."""
        if not isinstance(payload, bytes | str):
            payload = json.dumps(payload)
        await self.client.publish(topic, payload, qos=1, **options)


@contextlib.asynccontextmanager
async def watching(broker: Broker, *topics: str, role: str = "admin", version: str = "5") -> AsyncIterator[Watcher]:
    """A watcher of some topics."""
    protocol = aiomqtt.ProtocolVersion.V5 if version == "5" else aiomqtt.ProtocolVersion.V311
    if broker.kind == "embedded":
        protocol = aiomqtt.ProtocolVersion.V311
    async with aiomqtt.Client(**broker.login(role), protocol=protocol) as client:
        watcher = Watcher(client)
        for topic in topics:
            await client.subscribe(topic, qos=1)
        task = asyncio.create_task(watcher.collect())
        try:
            yield watcher
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@contextlib.asynccontextmanager
async def own_broker(directory: Path, **options: Any) -> AsyncIterator[Mosquitto]:
    """A mosquitto of the test's own; the options are those of `Mosquitto`."""
    directory.mkdir()  # noqa: ASYNC240
    broker = Mosquitto(directory, **options)
    broker.start()
    try:
        yield broker
    finally:
        broker.terminate()


def as_broker(broker: Mosquitto, passwords: dict[str, str] | None = None) -> Broker:
    """How the bridge and watchers reach it."""
    return Broker(kind="mosquitto", host=broker.host, port=broker.port, passwords=passwords or {})


async def sweep(broker: Broker) -> None:
    """Remove everything retained below goip/ and homeassistant/, for the tests that come after."""
    for root, role in (("goip", "admin"), ("homeassistant", "homeassistant")):
        marker = f"{root}/swept/{os.urandom(4).hex()}"
        async with watching(broker, f"{root}/#", role=role) as watcher:
            await watcher.publish(marker, "end")  # retained messages come before it
            await watcher.until(marker)
            for topic in {message.topic for message in watcher.seen if message.retain}:
                await watcher.publish(topic, "", retain=True)


def response_properties(topic: str, correlation: bytes | None = None) -> Properties:
    """The MQTT 5 properties of a request."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = topic
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


class RawLine:
    """One line of a gateway, datagram by datagram. Nothing is answered by itself."""

    def __init__(self, port: int, id: str = "goip1", password: str = "password1", host: str = "127.0.0.1") -> None:
        self.id = id
        self.password = password
        self.server = ("127.0.0.1", port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 0))
        self.socket.setblocking(False)
        self.count = 0
        self.recvid = 1_700_000_000

    def send(self, datagram: bytes | str) -> None:
        self.socket.sendto(datagram.encode() if isinstance(datagram, str) else datagram, self.server)

    async def receive(self, seconds: float = LIMIT_S) -> bytes:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(self.socket, 65535), seconds)

    async def ask(self, datagram: bytes | str, seconds: float = LIMIT_S) -> bytes:
        self.send(datagram)
        return await self.receive(seconds)

    async def register(self, **fields: str) -> None:
        """A keepalive and its answer, repeated until the bridge is there."""
        deadline = time.monotonic() + LIMIT_S
        earlier: set[bytes] = set()
        while time.monotonic() < deadline:
            self.count += 1
            rest = "".join(
                f"{key}:{value};" for key, value in ({"gsm_status": "LOGIN", "signal": "20"} | fields).items()
            )
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer = await self.ask(f"req:{self.count};id:{self.id};pass:{self.password};{rest}", 0.5)
                while answer in earlier:  # it waited in the socket for a bridge that started slowly
                    answer = await self.receive(0.5)
                assert answer == f"reg:{self.count};status:200;".encode(), answer
                return
            earlier.add(f"reg:{self.count};status:200;".encode())
        raise AssertionError("the bridge does not answer keepalives")

    def event(self, kind: str, rest: str | bytes, recvid: int | None = None) -> bytes:
        """An event datagram with a recvid of its own, counting down."""
        if recvid is None:
            self.recvid -= 1
            recvid = self.recvid
        head = f"{kind}:{recvid};id:{self.id};password:{self.password};".encode()
        return head + (rest.encode() if isinstance(rest, str) else rest)

    def nothing_waits(self) -> bool:
        try:
            self.socket.recv(65535)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self.socket.close()


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(status.parent.name))
    return found


@dataclass
class BridgeProcess:
    """`goip-bridge run` as a process of its own: the supervisor, with the bridge itself as its child."""

    directory: Path
    config: dict[str, Any]
    process: asyncio.subprocess.Process | None = None
    environment: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = (sys.executable, "-m", "bridge", "run", "--config", "config.yaml")
    output: bytearray = field(default_factory=bytearray)
    "What it wrote, of all its runs: through a pipe, so that a full disk does not hide it."
    _reader: asyncio.Task[None] | None = None
    _written: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def udp_port(self) -> int:
        return int(self.config["udp"]["listen"].rpartition(":")[2])

    @property
    def base(self) -> str:
        return str(self.config["base_topic"])

    @property
    def log(self) -> str:
        return self.output.decode()

    def __post_init__(self) -> None:
        outputs.show(
            f"{' '.join(self.command[1:4])} in {self.directory}",
            lambda: self.process is None or self.process.returncode is None,
            lambda: self.output.decode(errors="replace"),
        )

    async def start(self) -> None:
        (self.directory / "config.yaml").write_text(yaml.safe_dump(self.config))
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            cwd=self.directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=os.environ | self.environment,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self.process.stdout))

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        while chunk := await stream.read(65536):
            self.output += chunk
            self._written.set()

    async def logged(self, text: str) -> None:
        """Wait until the log has a text."""
        async with asyncio.timeout(LIMIT_S):
            while text not in self.log:
                self._written.clear()
                await self._written.wait()

    async def ended(self) -> int:
        """The exit code, once it has ended and everything it wrote is in `log`."""
        assert self.process is not None
        assert self._reader is not None
        code = await asyncio.wait_for(self.process.wait(), LIMIT_S)
        await self._reader
        return code

    async def kill(self) -> None:
        """kill -9 of the supervisor, which takes the worker along: nobody holds the socket then."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.ended()

    @property
    def worker_pid(self) -> int:
        """The bridge itself."""
        assert self.process is not None
        (child,) = children(self.process.pid)
        return child

    def kill_worker(self) -> int:
        """kill -9 of the bridge itself; the supervisor starts another one. The pid that was killed."""
        pid = self.worker_pid
        os.kill(pid, signal.SIGKILL)
        return pid

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()


def bridge_config(broker: Broker | None, base: str, lines: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A configuration for the test broker; `more` is laid over it, section by section."""
    config: dict[str, Any] = {
        "base_topic": base,
        "instance": base.replace("/", "-"),
        "udp": {"listen": f"127.0.0.1:{free_udp_port()}"},
        "store": {"path": "bridge.db"},
        "lines": lines if lines is not None else {"goip1": {"password": "password1"}},
    }
    if broker is not None:
        config["mqtt"] = {"url": broker.url}
        if broker.kind == "embedded":  # amqtt leaves a client that asks for MQTT 5 without an answer
            config["mqtt"]["version"] = "3.1.1"
        if broker.passwords:
            config["mqtt"] |= {"username": "bridge", "password": broker.passwords["bridge"]}
    for section, value in more.items():
        config[section] = config.get(section, {}) | value if isinstance(value, dict) else value
    return config


@contextlib.asynccontextmanager
async def running(directory: Path, config: dict[str, Any], **options: Any) -> AsyncIterator[BridgeProcess]:
    """A started bridge. The options are fields of BridgeProcess."""
    bridge = BridgeProcess(directory, config, **options)
    await bridge.start()
    try:
        yield bridge
    finally:
        with contextlib.suppress(TimeoutError, ProcessLookupError):
            await bridge.stop()
        if bridge.process is not None and bridge.process.returncode is None:
            await bridge.kill()


@contextlib.contextmanager
def raw_line(port: int, id: str = "goip1", password: str = "password1", host: str = "127.0.0.1") -> Iterator[RawLine]:
    line = RawLine(port, id, password, host)
    try:
        yield line
    finally:
        line.close()
