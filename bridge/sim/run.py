"""The simulator on real UDP sockets: the thin shell around the lines, for tests, the demo and the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from .errors import SimulatorError
from .gateway import SimulatedGateway
from .handle import LineHandle
from .line import Registration, SimulatedLine
from .network import Faults, Network
from .options import LineOptions, has_number
from .sockets import allow_files, local_address, open_socket, resolve
from .traffic import Traffic, TrafficOptions
from .world import Address, Datagram, Record, World

_udp_log = logging.getLogger("bridge.sim.udp")
_radio_log = logging.getLogger("bridge.sim.radio")

_BURST = 64
"Datagrams read from one socket before the others get their turn."


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    """A number of like lines in boxes, and the network to their server."""

    server: tuple[str, int] = ("127.0.0.1", 44444)
    lines: int = 1
    channels: int = 8
    "Lines of one box; those start again together."
    line: LineOptions = field(default_factory=LineOptions)
    "The pattern of all lines; `%d` in id and password is the line's number."
    faults: Faults = field(default_factory=Faults)
    traffic: TrafficOptions = field(default_factory=TrafficOptions)
    port_base: int | None = None
    "Line n listens on port_base + n, as 10990 + n on a real box; None lets the system choose."
    port_required: bool = True
    "A port that is taken is an error; else the line gets a free one."
    starts_per_second: float = 1000.0
    "Lines start one after another, so that ten thousand keepalives do not come in one burst for ever after."
    seed: int | None = None
    "Same seed, same dice; None is different each time."
    radio_log: Path | None = None
    keep_radio: bool = True
    "Whether `Simulator.radio` collects the records; switch it off for long runs."


class Simulator:
    """Simulated boxes, running inside the caller's event loop.

    `start`, `wait_registered`, then inject with `line(id)` and look at `radio`; `stop` at the end. Also an async
    context manager.
    """

    def __init__(self, options: SimOptions) -> None:
        if options.lines > 1 and not has_number(options.line.id):
            raise SimulatorError(f"{options.lines} lines need %d in their id, {options.line.id!r} has none")
        self.options = options
        self.radio: list[Record] = []
        "What the modems did, oldest first; the records of the radio log."
        self.counts: Counter[str] = Counter()
        "Records by `what` and outcome (`received_acked`, `submit_error` …), and datagrams `in` and `out`."
        self._rng = random.Random(options.seed)
        self.world = World(self._rng)
        self.network = Network(options.faults, self._rng)
        settings = [options.line.numbered(number) for number in range(1, options.lines + 1)]
        boxes = range(0, options.lines, options.channels)
        self.gateways = [SimulatedGateway(settings[first : first + options.channels], self.world) for first in boxes]
        self._lines = {line.id: line for gateway in self.gateways for line in gateway.lines}
        self.moved: dict[str, int] = {}
        "Lines that have another port than they should, which was taken."
        self._sockets: dict[str, socket.socket] = {}
        self._server: Address = options.server
        self._log: TextIO | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._clock_start = 0.0
        self._changed = asyncio.Event()
        self._running = False
        self._failure: Exception | None = None

    # --- life ---

    async def start(self) -> None:
        """Open the sockets and power the boxes on. SimulatorError when that cannot be."""
        loop = asyncio.get_running_loop()
        # Monotonic, but reads as unix time: what the radio log and the boxes' clocks need.
        self._clock_start = time.time() - loop.time()
        self._server = await resolve(self.options.server)
        allow_files(len(self._lines))
        try:
            if self.options.radio_log is not None:
                self._log = _open_log(self.options.radio_log)
            self._open_sockets(loop)
        except SimulatorError:
            self._close()
            raise
        self._running = True
        now = self.now()
        for position, line in enumerate(self._lines.values()):
            self.world.at(now + position / self.options.starts_per_second, line.power_on)
        Traffic(self.options.traffic, self.gateways, self.world).start(now)
        self._step(lambda _: None)

    async def stop(self) -> None:
        """Close everything; the radio log is complete."""
        if self._running:
            self._running = False
            self._drain(self.now())
        self._close()

    async def __aenter__(self) -> Simulator:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def now(self) -> float:
        """The simulation's time: monotonic, in unix seconds."""
        return self._clock_start + asyncio.get_running_loop().time()

    # --- for the caller ---

    @property
    def ports(self) -> list[int]:
        """The UDP ports of the lines, in their order, while it runs."""
        return [int(sock.getsockname()[1]) for sock in self._sockets.values()]

    @property
    def line_ids(self) -> list[str]:
        return list(self._lines)

    def line(self, id: str) -> LineHandle:
        """The line with this id, to let things happen to it."""
        return LineHandle(self, self._lines[id])

    def registrations(self) -> Counter[str]:
        """How many lines are in which state towards the server; `refused` with the status."""
        return Counter(
            f"{line.registration} with status {line.status}"
            if line.registration is Registration.REFUSED
            else str(line.registration)
            for line in self._lines.values()
        )

    async def wait_registered(self, within: float = 10.0) -> None:
        """Until the server has accepted every line; TimeoutError says what it made of them."""
        try:
            await self.wait_for(lambda: len(self.world.registered) == len(self._lines), within)
        except TimeoutError:
            states = ", ".join(f"{count} {state}" for state, count in self.registrations().items())
            raise TimeoutError(f"not all lines registered within {within} s: {states}") from None

    async def wait_radio(self, what: str, count: int = 1, within: float = 10.0, **fields: object) -> list[Record]:
        """Until `count` radio records have this `what` and these values; those records."""
        matching: list[Record] = []
        seen = 0

        def enough() -> bool:
            nonlocal seen
            for record in self.radio[seen:]:
                if record["what"] == what and all(record.get(key) == value for key, value in fields.items()):
                    matching.append(record)
            seen = len(self.radio)
            return len(matching) >= count

        try:
            await self.wait_for(enough, within)
        except TimeoutError:
            found = f"{len(matching)} of {count}"
            raise TimeoutError(f"{found} records {what!r} {fields or ''} within {within} s") from None
        return matching

    async def wait_for(self, condition: Callable[[], bool], within: float | None = None) -> None:
        """Until `condition` holds, looked at whenever something happened. Raises what made the simulator fail."""
        async with asyncio.timeout(within):
            while True:
                if self._failure is not None:
                    raise self._failure
                if condition():
                    return
                self._changed.clear()
                await self._changed.wait()

    def inject(self, action: Callable[[float], None]) -> None:
        """Do something to the simulation now, and send what comes of it."""
        if not self._running:
            raise SimulatorError("the simulator is not running")
        self._step(action)
        if self._failure is not None:
            raise self._failure

    # --- the loop ---

    def _step(self, action: Callable[[float], None]) -> None:
        """Every input ends here: what is due first, then the input, then what came of both goes out."""
        now = self.now()
        try:
            self.world.run_due(now)
            action(now)
            self.world.run_due(now)
            self._drain(now)
        except Exception as error:
            # asyncio would only log it and go on with half a simulation.
            self._failure = error
            self._close()
        self._changed.set()

    def _drain(self, now: float) -> None:
        for record in self.world.take_records():
            self._write(record)
        for datagram in self.world.take_datagrams():
            self._depart(datagram, now)
        self._rearm()

    def _rearm(self) -> None:
        deadline = self.world.deadline()
        if deadline is None or not self._running:
            return
        when = deadline - self._clock_start
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._step(lambda _: None)

    def _on_readable(self, line: SimulatedLine, sock: socket.socket) -> None:
        self._step(lambda now: self._read(line, sock, now))

    def _read(self, line: SimulatedLine, sock: socket.socket, now: float) -> None:
        for _ in range(_BURST):
            try:
                data, source = sock.recvfrom(65535)
            except (BlockingIOError, ConnectionError):
                return
            self.counts["in"] += 1
            self._trace("<", line.id, data)
            self._arrive(line, data, source, now)

    def _arrive(self, line: SimulatedLine, data: bytes, source: Address, now: float) -> None:
        if not self.options.faults.any():
            line.receive_datagram(data, source, now)
            return
        for delay, copy in self.network.carry(data):
            self.world.at(now + delay, lambda when, copy=copy: line.receive_datagram(copy, source, when))  # type: ignore[misc]

    def _depart(self, datagram: Datagram, now: float) -> None:
        if not self.options.faults.any():
            self._send(datagram)
            return
        for delay, _ in self.network.carry(datagram.data):
            if delay:
                self.world.at(now + delay, lambda _: self._send(datagram))
            else:
                self._send(datagram)

    def _send(self, datagram: Datagram) -> None:
        sock = self._sockets.get(datagram.line)
        if sock is None:
            return
        self.counts["out"] += 1
        self._trace(">", datagram.line, datagram.data)
        # A full buffer or a missing route loses a datagram, as networks do; the protocol repeats.
        with contextlib.suppress(OSError):
            sock.sendto(datagram.data, datagram.to or self._server)

    def _count(self, record: Record) -> None:
        what = str(record["what"])
        self.counts[what] += 1
        if what.endswith("_outcome"):
            self.counts[f"{what.removesuffix('_outcome')}_{record['result']}"] += 1
        elif record.get("result") == "error":
            self.counts[f"{what}_error"] += 1

    def _trace(self, direction: str, line: str, data: bytes) -> None:
        if _udp_log.isEnabledFor(logging.DEBUG):
            password = self._lines[line].options.password.encode()
            _udp_log.debug("%s %s %s", direction, line, data.replace(password, b"***") if password else data)

    def _write(self, record: Record) -> None:
        _radio_log.debug("%s", record)
        self._count(record)
        if self.options.keep_radio:
            self.radio.append(record)
        if self._log is not None:
            try:
                self._log.write(json.dumps(record, ensure_ascii=False) + "\n")
                self._log.flush()
            except OSError as error:
                raise SimulatorError(f"cannot write the radio log: {error.strerror}") from error

    # --- sockets ---

    def _open_sockets(self, loop: asyncio.AbstractEventLoop) -> None:
        local = local_address(self._server)
        for number, line in enumerate(self._lines.values(), start=1):
            port = 0 if self.options.port_base is None else self.options.port_base + number
            sock = self._sockets[line.id] = self._open(line.id, local, port)
            if port not in (0, sock.getsockname()[1]):
                self.moved[line.id] = port
            loop.add_reader(sock, self._on_readable, line, sock)

    def _open(self, line: str, local: str, port: int) -> socket.socket:
        try:
            return open_socket(line, local, port)
        except SimulatorError:
            if self.options.port_required:
                raise
        return open_socket(line, local, 0)

    def _close(self) -> None:
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        for sock in self._sockets.values():
            loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk was reported when it was written to
                self._log.close()
            self._log = None


async def run_simulator(
    options: SimOptions, *, seconds: float | None = None, stop: asyncio.Event | None = None
) -> Simulator:
    """Run until `seconds` are over or `stop` is set; the stopped simulator, for its counts."""
    simulator = Simulator(options)
    async with simulator:
        with contextlib.suppress(TimeoutError):
            if stop is None:
                await simulator.wait_for(lambda: False, seconds)
            else:
                await asyncio.wait_for(stop.wait(), seconds)
    return simulator


def _open_log(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise SimulatorError(f"cannot write the radio log {path}: {error.strerror}") from error
