"""What the measurements share: a broker and a bridge as child processes, their costs, and the table."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as paho
import yaml
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridge.mqtt.link import WINDOW
from bridge.process.embedded_broker import find_mosquitto

CORES = sorted(os.sched_getaffinity(0))
BRIDGE_CORE, LOAD_CORE = CORES[0], CORES[-1]
TEXT = "Your code is 493021. It is valid for ten minutes; never tell it to anybody, not even to us. Ünïcode too."
"The text of the SMS: a usual length."
PASSWORD = "password1"


class WrongResultError(Exception):
    """What was measured did not do its work."""


@dataclass
class Table:
    """Figures, and what they are compared with."""

    title: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: str, remark: str = "") -> None:
        self.rows.append((name, value, remark))

    def show(self) -> None:
        print(f"\n{self.title}")
        widths = [max(len(row[column]) for row in self.rows) for column in range(2)]
        for name, value, remark in self.rows:
            print(f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {remark}".rstrip())
        for note in self.notes:
            print(f"  {note}")
        sys.stdout.flush()


def rate(count: float, seconds: float) -> str:
    return f"{count / seconds:,.0f}/s"


def line_names(count: int) -> list[str]:
    return [f"line{number}" for number in range(1, count + 1)]


# -- the processes -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder on a real disk: /tmp is memory on many systems. `BENCH_DIR` chooses another."""
    with tempfile.TemporaryDirectory(prefix="goip-bench-", dir=os.environ.get("BENCH_DIR", "/var/tmp")) as name:
        yield Path(name)


def filesystem(path: Path) -> str:
    """The type of the file system a path is on."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [(len(place), kind) for place, kind in mounts if path.is_relative_to(place)]
    return max(found)[1] if found else "unknown"


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def child(command: Sequence[str], core: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core, ended by SIGTERM. Raises WrongResultError when it did not end well."""
    pin = lambda: os.sched_setaffinity(0, {core})  # noqa: E731
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=pin)
    try:
        yield process
    finally:
        process.terminate()
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    if code:
        raise WrongResultError(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-2000:]}")


def wait_until(condition: Callable[[], bool], what: str, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise WrongResultError(f"not within {within:.0f} s: {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def broker(place: Path) -> Iterator[int]:
    """Mosquitto with its defaults, but room for a subscriber that is slower than we; gives its port."""
    binary = find_mosquitto()
    if binary is None:
        raise SystemExit("the benchmarks need the mosquitto binary")
    port = free_port(socket.SOCK_STREAM)
    settings = place / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 1000000\n")
    with child([binary, "-c", str(settings)], LOAD_CORE, place / "mosquitto.log"):

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_until(answers, "mosquitto listens")
        yield port


@dataclass(frozen=True)
class BridgeProcess:
    """A running bridge, seen from outside."""

    pid: int
    udp_port: int
    store: Path

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def kernel_drops(self) -> int:
        """Datagrams thrown away because its socket was full."""
        for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[1].endswith(f":{self.udp_port:04X}"):
                return int(columns[12])
        raise WrongResultError("the bridge has no UDP socket")


@contextlib.contextmanager
def bridge(
    place: Path, lines: Iterable[str], broker_port: int, *, program: Sequence[str] = ("bridge", "run")
) -> Iterator[BridgeProcess]:
    """The bridge on its core, connected. All lines have the same password."""
    udp_port = free_port(socket.SOCK_DGRAM)
    store = place / "bridge.db"
    settings = {
        "base_topic": "bench",
        "mqtt": {"url": f"mqtt://127.0.0.1:{broker_port}"},
        "udp": {"listen": f"127.0.0.1:{udp_port}"},
        "store": {"path": str(store)},
        "homeassistant": {"discovery": False},
        "lines": {name: {"password": PASSWORD} for name in lines},
    }
    config, log = place / "config.yaml", place / "bridge.log"
    config.write_text(yaml.safe_dump(settings))
    with child(
        [sys.executable, "-m", *program, "--no-supervisor", "--config", str(config)], BRIDGE_CORE, log
    ) as process:

        def connected() -> bool:
            if process.poll() is not None:
                raise WrongResultError(log.read_text())
            return "connected to" in log.read_text()

        wait_until(connected, "the bridge is connected to the broker")
        yield BridgeProcess(process.pid, udp_port, store)


# -- MQTT ----------------------------------------------------------------------------------------------------------


class Client:
    """A bare paho client driven by asyncio: what a publisher costs that does nothing else."""

    def __init__(self, port: int, client_id: str) -> None:
        self.acked = 0
        self.window = 0
        self.on_message: Callable[[paho.MQTTMessage], None] = lambda message: None
        self._progress = asyncio.Event()
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._paho = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
        self._paho.max_inflight_messages_set(0)
        self._paho.on_connect = self._connected
        self._paho.on_publish = self._published
        self._paho.on_subscribe = lambda *_: self._progress.set()
        self._paho.on_message = lambda _client, _data, message: self._message(message)
        self._paho.on_socket_register_write = self._want_write

    async def connect(self) -> None:
        self._paho.connect("127.0.0.1", self._port, keepalive=600)
        sock = self._paho.socket()
        assert sock is not None
        self._loop.add_reader(sock, self._paho.loop_read)
        await self.until(lambda: self.window > 0)

    async def subscribe(self, topic: str) -> None:
        self._progress.clear()
        self._paho.subscribe(topic, 1)
        await self._progress.wait()

    def publish(self, topic: str, payload: bytes) -> None:
        self._paho.publish(topic, payload, 1)

    async def publish_all(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish with the broker's window, until all are acknowledged."""
        sent = self.acked
        for topic, payload in messages:
            while sent - self.acked >= self.window:
                await self.next()
            self.publish(topic, payload)
            sent += 1
        await self.until(lambda: self.acked == sent)

    async def next(self) -> None:
        """Until something has happened."""
        self._progress.clear()
        await self._progress.wait()

    async def until(self, condition: Callable[[], bool], within: float = 120.0) -> None:
        async with asyncio.timeout(within):
            while not condition():
                await self.next()

    def close(self) -> None:
        sock = self._paho.socket()
        if sock is not None:
            self._loop.remove_reader(sock)
        self._paho.disconnect()

    def _want_write(self, *_: object) -> None:
        self._loop.call_soon(self._paho.loop_write)

    def _connected(self, _c: object, _u: object, _f: object, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            raise WrongResultError(f"the broker refused: {reason}")
        self.window = min(WINDOW, getattr(properties, "ReceiveMaximum", 65535))
        self._progress.set()

    def _published(self, *_: object) -> None:
        self.acked += 1
        self._progress.set()

    def _message(self, message: paho.MQTTMessage) -> None:
        self.on_message(message)
        self._progress.set()
