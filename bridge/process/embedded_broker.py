"""The embedded broker, for when no `mqtt.url` is configured: mosquitto as a child, or amqtt in this process.

It listens on loopback only and lets everyone in who gets there. The service and the demo start it and connect to its
url like to any other broker; nothing else in the program knows about it.
"""

import asyncio
import ctypes
import fcntl
import functools
import logging
import math
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amqtt.broker import Broker

log = logging.getLogger(__name__)

DEFAULT_PORT = 1883
LOOPBACK = "127.0.0.1"
PORTS_TRIED = 100
READY_S = 10.0
"How long a broker may take to load its persistence and answer."
STOP_S = 10.0
"How long it may take to save its persistence; also how long we wait for that of a bridge that was killed."
STEADY_S = 60.0
"After this long without dying, the next restart comes without delay again."
SESSION_S = 86400
"How long amqtt keeps the session of a client that went away."

NO_BROKER = (
    "there is no broker: set mqtt.url, or install one for goip-bridge to start: "
    "apt-get install mosquitto, or pip install 'amqtt<0.13' where goip-bridge is installed"
)

# MQTT 3.1.1, clean session, empty client id; every broker we start accepts it.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00"
_CONNACK = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"
_FIVE = b"\x00\x04MQTT\x05"
"How a CONNECT of MQTT 5 goes on behind its length."
_FIVE_REFUSED = b"\x20\x03\x00\x84\x00"
"CONNACK of MQTT 5: unsupported protocol version."
REFUSAL_LOGGED_S = 60.0
"A client that is refused and comes again is logged once in this time."


class BrokerError(Exception):
    """The embedded broker can't be started; the text says why and what to do."""


FOLDER = "goip-broker"
"Beside the store: the broker's configuration and what it keeps."


class EmbeddedBroker:
    """A broker of our own: mosquitto (MQTT 5) where it is installed, otherwise amqtt (MQTT 3.1.1)."""

    def __init__(self) -> None:
        self._backend: _Mosquitto | _Amqtt | None = None

    async def start(self, data_dir: Path, port: int = DEFAULT_PORT) -> str:
        """The url of a broker that accepts connections; what it has to keep is below `data_dir`.

        A taken port is replaced by the next free one; 0 takes any. BrokerError when there is no broker to start, or
        when it does not start.
        """
        binary = find_mosquitto()
        self._backend = _Amqtt() if binary is None else _Mosquitto(binary, data_dir / FOLDER)
        try:
            url = f"mqtt://{LOOPBACK}:{await self._backend.start(port)}"
        except BaseException:
            await self.stop()
            raise
        log.info("embedded broker (%s): %s", "amqtt" if binary is None else "mosquitto", url)
        return url

    async def stop(self) -> None:
        """The broker has saved what it keeps and is gone; harmless when it never started."""
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.stop()

    @property
    def pid(self) -> int | None:
        """The process id of mosquitto; None for amqtt or when stopped."""
        return self._backend.pid if isinstance(self._backend, _Mosquitto) else None


def find_mosquitto() -> str | None:
    """The mosquitto binary; Debian puts it into sbin, which is not on every user's PATH."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


class _Mosquitto:
    """mosquitto as a child that is started again when it dies, and dies with us."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._port = 0
        self._lock: int | None = None
        self._process: Process | None = None
        self._log_reader: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=3)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self, port: int) -> int:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._take_lock()
            self._port = _free_port(port)
            self._configure()
            await self._spawn()
        except OSError as error:
            raise BrokerError(f"cannot start {self._binary} in {self._folder}: {error.strerror}") from None
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded broker")
        return self._port

    async def stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if self._process is not None:
            await _end(self._process)
        if self._log_reader is not None:
            await self._log_reader
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _take_lock(self) -> None:
        """One broker per folder, at a time.

        The child inherits the lock, so that it lasts until the broker of a bridge that was killed has saved its state:
        only then is the state complete, and the port free again.
        """
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = asyncio.get_running_loop().time() + STOP_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise BrokerError(f"another embedded broker uses {self._folder}; stop that one first") from None
                await asyncio.sleep(0.05)

    def _configure(self) -> None:
        """Write mosquitto.conf, unless it says the same already: on a full disk it could only be lost."""
        file, wanted = self._folder / "mosquitto.conf", self._configuration().encode()
        if not file.exists() or file.read_bytes() != wanted:
            file.write_bytes(wanted)

    def _configuration(self) -> str:
        lines = [
            f"listener {self._port} {LOOPBACK}",
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {self._folder.resolve()}/",
            "persistence_file mosquitto.db",
            "autosave_interval 60",
            "max_queued_messages 100000",  # the default of 1000 drops facts for a consumer that is away for a day
            "max_inflight_messages 100",  # the default of 20 slows the bridge down
            "log_dest stderr",
            "log_timestamp false",
        ]
        if os.geteuid() == 0:
            # Else it becomes the user mosquitto, who may not write here; that change would also undo PR_SET_PDEATHSIG.
            lines.append("user root")
        return "\n".join(lines) + "\n"

    async def _spawn(self) -> None:
        """A child that accepts connections; BrokerError with its last words when it ends before."""
        assert self._lock is not None
        self._last_lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            self._binary, "-c", str(self._folder / "mosquitto.conf"),
            stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
            pass_fds=(self._lock,),
            start_new_session=True,  # Ctrl-C is for us; the broker has to outlive our last `offline`
            preexec_fn=_die_with_parent(),
        )  # fmt: skip
        assert self._process.stderr is not None
        self._log_reader = asyncio.create_task(self._forward_log(self._process.stderr))
        ended = asyncio.create_task(self._process.wait())
        ready = asyncio.create_task(_until_it_answers(self._port))
        try:
            await asyncio.wait([ended, ready], timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await self._log_reader
                raise BrokerError(f"mosquitto ended with {ended.result()}: {' | '.join(self._last_lines)}")
            if not ready.done():
                raise BrokerError(f"mosquitto does not answer on port {self._port} within {READY_S:g} s")
        finally:
            ended.cancel()
            ready.cancel()

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pauses = _pauses()
        while True:
            assert self._process is not None
            started = loop.time()
            code = await self._process.wait()
            if loop.time() - started > STEADY_S:
                pauses = _pauses()
            pause = next(pauses)
            log.error("the embedded broker ended with %s; starting it again in %g s", code, pause)
            await asyncio.sleep(pause)
            try:
                await self._spawn()
            except (OSError, BrokerError) as error:
                log.error("the embedded broker does not start: %s", error)
                await _end(self._process)  # it may be there, and not answer
            else:
                log.warning("the embedded broker is back on port %d", self._port)

    async def _forward_log(self, stderr: asyncio.StreamReader) -> None:
        async for raw in stderr:
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            level = {"Error": logging.ERROR, "Warning": logging.WARNING}.get(line.partition(":")[0], logging.DEBUG)
            if "should not be run as root" in line:
                level = logging.DEBUG  # it runs as whoever runs us, on loopback only
            log.log(level, "mosquitto: %s", line)


class _Amqtt:
    """amqtt in this process: nothing survives it, and there is no MQTT 5."""

    def __init__(self) -> None:
        self._broker: Broker | None = None
        self._connections: set[asyncio.Task[None] | None] = set()
        self._refusal_logged = -math.inf

    async def start(self, port: int) -> int:
        try:
            from amqtt.broker import Broker
            from amqtt.contexts import BrokerConfig, ListenerConfig
            from amqtt.errors import BrokerError as AmqttError
        except ImportError:
            raise BrokerError(NO_BROKER) from None
        for noisy in ("amqtt", "transitions"):  # they log every packet, and tracebacks for what we report ourselves
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        log.warning("mosquitto is not installed; using amqtt, which speaks only MQTT 3.1.1 and keeps nothing on disk")
        chosen = _free_port(port)
        config = BrokerConfig(
            listeners={"default": ListenerConfig(bind=f"{LOOPBACK}:{chosen}")},
            # AnonymousAuthPlugin lets everyone in as well, but drops the sessions of those without a user name.
            plugins={"amqtt.plugins.base.BaseAuthPlugin": {}},
            session_expiry_interval=SESSION_S,
        )
        broker = Broker(config)
        broker.stream_connected = functools.partial(self._attend, broker)
        try:
            await broker.start()
        except AmqttError as error:
            raise BrokerError(f"amqtt does not start on port {chosen}: {error}") from None
        self._broker = broker
        try:
            async with asyncio.timeout(READY_S):
                await _until_it_answers(chosen)
        except TimeoutError:
            raise BrokerError(f"amqtt does not answer on port {chosen} within {READY_S:g} s") from None
        return chosen

    async def stop(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            await broker.shutdown()
        connections = [task for task in self._connections if task is not None]
        for task in connections:  # amqtt has closed those of its clients, and not those that have said nothing yet
            task.cancel()
        await asyncio.gather(*connections)

    async def _attend(
        self, broker: "Broker", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """One connection to its end. What goes wrong in it concerns its client alone; asyncio would log a traceback, in
        Python 3.11 also when it is cancelled.
        """
        from amqtt.adapters import StreamWriterAdapter

        task = asyncio.current_task()
        self._connections.add(task)
        try:
            head = await _first_bytes(reader)
            if head.endswith(_FIVE):
                self._refuse_five(writer)
            else:
                await broker.external_connected(_Ahead(head, reader), StreamWriterAdapter(writer), listener_name)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass
        except Exception as error:
            log.debug("amqtt failed over what a client sent: %s", type(error).__name__)
        finally:
            self._connections.discard(task)
            writer.close()

    def _refuse_five(self, writer: asyncio.StreamWriter) -> None:
        """amqtt would leave the client without an answer."""
        writer.write(_FIVE_REFUSED)
        now = asyncio.get_running_loop().time()
        if now - self._refusal_logged >= REFUSAL_LOGGED_S:
            self._refusal_logged = now
            log.warning(
                "a client asked for MQTT 5 and was refused, since amqtt speaks only MQTT 3.1.1: set the client to "
                "3.1.1, or install mosquitto and restart the bridge"
            )


class _Ahead:
    """What amqtt reads from: first the bytes that were looked at, then the others."""

    def __init__(self, head: bytes, reader: asyncio.StreamReader) -> None:
        self._head = head
        self._reader = reader

    async def read(self, count: int) -> bytes:
        ahead, self._head = self._head[:count], self._head[count:]
        return ahead + await self._reader.readexactly(count - len(ahead))

    def feed_eof(self) -> None:
        self._reader.feed_eof()


async def _first_bytes(reader: asyncio.StreamReader) -> bytes:
    """Of a CONNECT, up to the version of MQTT; of any other packet its kind and length."""
    head = await reader.readexactly(2)
    while head[-1] & 0x80 and len(head) < 5:
        head += await reader.readexactly(1)
    return head + await reader.readexactly(len(_FIVE)) if head[0] == _CONNECT[0] else head


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()  # it saves its state
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        log.error("the embedded broker does not end; killing it")
        process.kill()
        await process.wait()


async def _until_it_answers(port: int) -> None:
    """Returns once a client would be accepted, which a listening socket alone does not tell."""
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            if await _accepts_a_client(port):
                return
        await asyncio.sleep(0.05)


async def _accepts_a_client(port: int) -> bool:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(_CONNECT)
        answer = await reader.readexactly(len(_CONNACK))
        writer.write(_DISCONNECT)
        return answer == _CONNACK
    finally:
        writer.close()


def _free_port(wanted: int) -> int:
    """The wanted port on loopback, or the next one that is free."""
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the brokers do: TIME_WAIT is not "taken"
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            free: int = probe.getsockname()[1]
        if wanted not in (0, free):
            log.warning("port %d is taken (by another broker? then set mqtt.url); using %d", wanted, free)
        return free
    raise BrokerError(f"ports {wanted} to {wanted + PORTS_TRIED - 1} on {LOOPBACK} are all taken; free one of them")


def _pauses() -> Iterator[float]:
    pause = 0.5
    while True:
        yield pause
        pause = min(pause * 2, 60.0)


def _die_with_parent() -> Callable[[], None] | None:
    """What the child does before it becomes the broker, so that none outlives a bridge that was killed.

    The kernel ties this to the thread that starts the child: the one of the event loop.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # here, since between fork and exec as little as possible may happen
    parent = os.getpid()
    pr_set_pdeathsig = 1

    def prepare() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)  # not SIGKILL: it shall save its state
        if os.getppid() != parent:  # killed before the call above
            os._exit(1)

    return prepare
