"""Two real bridges on one base topic, while they, the broker and the connections between them fail on purpose.

    python -m reliability.chaos_two_bridges --faults 60

    gateways (bridge/sim) - goip-bridge run, twice - a TCP proxy for each that can freeze either way - Mosquitto

Faults from a seed: kill -9, SIGSTOP, frozen connections and a stopped broker, for 3 to 70 s each, overlapping. What is
checked is what docs/reliability.md promises of two bridges, by the radio log of the simulated modems and what the two
stores say: see `reliability.two_bridges`, which does the same in a virtual world and far more often.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator
from brokers import Mosquitto, find_mosquitto
from harness import BridgeProcess, children, free_udp_port
from reliability.client import Client

NAMES = ("first", "second")
LINES = 2
TIMING = {"offline_s": 12, "resend_s": 0.5, "wait_s": 15, "evidence_s": 30, "backoff_s": 0.5, "restored_hold_s": 0}
"Of the bridges, scaled down like the gateways'."
PATIENCE_S = 6.0
"After which a user who has no result repeats the command, with the same id."
HEAL_S = 150.0
"After the last fault: until one bridge serves, and who repeats has a result."


class TcpProxy:
    """Between one bridge and the broker. A direction that is frozen takes nothing more, and loses nothing."""

    def __init__(self, broker: tuple[str, int]) -> None:
        self._broker = broker
        self.port = 0
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._frozen = Counter[str]()
        for gate in self._open.values():
            gate.set()

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def freeze(self, directions: tuple[str, ...], seconds: float) -> None:
        for direction in directions:
            self._frozen[direction] += 1
            self._open[direction].clear()
        await asyncio.sleep(seconds)
        for direction in directions:
            self._frozen[direction] -= 1
            if not self._frozen[direction]:
                self._open[direction].set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._open["up"].wait()
            their_reader, their_writer = await asyncio.open_connection(*self._broker)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._carry(reader, their_writer, self._open["up"]), self._carry(their_reader, writer, self._open["down"])
        )

    @staticmethod
    async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        await gate.wait()
        with contextlib.suppress(OSError):
            writer.close()


class Pair:
    """One run, in a folder of its own."""

    def __init__(self, seed: int, folder: Path, *, faults: int, pace: float, rate: float, longest: float) -> None:
        self.rng = random.Random(seed)
        self._faults, self._pace, self._rate, self._longest = faults, pace, rate, longest
        (folder / "broker").mkdir()
        self.broker = Mosquitto(folder / "broker", persistence=True)
        self.folders = [folder / name for name in NAMES]
        self.bridges: list[BridgeProcess] = []
        self.proxies = [TcpProxy((self.broker.host, self.broker.port)) for _ in NAMES]
        self.simulators: list[Simulator] = []
        self.published: Counter[str] = Counter()
        self.again: set[str] = set()
        self.results: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._broker_stopped = False
        self._paused: set[int] = set()

    async def run(self) -> list[str]:
        """Everything; the violations."""
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            faults = asyncio.create_task(self._break_things())
            users: set[asyncio.Task[None]] = set()
            number = 0
            while not faults.done():
                await asyncio.sleep(self.rng.expovariate(self._rate))
                for _ in range(self.rng.choice((1, 1, 1, 1, 1, 30))):  # also more than the broker sends ahead
                    number += 1
                    users.add(asyncio.create_task(self._use(number)))
            await faults
            healed = time.monotonic()
            await asyncio.wait(users, timeout=HEAL_S)
            self.counts["seconds until all was well"] = round(time.monotonic() - healed)
            await asyncio.sleep(2 * TIMING["wait_s"])
            for user in users:
                user.cancel()
            for bridge in self.bridges:
                await bridge.stop()
        return self._violations()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        await asyncio.to_thread(self.broker.start)
        stack.callback(self.broker.kill)
        address = (self.broker.host, self.broker.port)
        self.producer = Client(address, "producer")
        watcher = Client(address, "watcher", self._heard, ("goip/+/result/sms",))
        for client in (self.producer, watcher):
            stack.callback(asyncio.create_task(client.run()).cancel)
            await client.ready.wait()
        for name, folder, proxy in zip(NAMES, self.folders, self.proxies, strict=True):
            folder.mkdir()
            await stack.enter_async_context(proxy)
            port = free_udp_port()
            bridge = BridgeProcess(
                folder,
                {
                    "base_topic": "goip",
                    "instance": name,
                    "mqtt": {"url": f"mqtt://127.0.0.1:{proxy.port}"},
                    "udp": {"listen": f"127.0.0.1:{port}"},
                    "store": {"path": "bridge.db"},
                    "timing": TIMING,
                    "homeassistant": {"discovery": False},
                    "lines": {f"line{n}": {"password": f"p{n}", "repeat_safety": "safe"} for n in range(1, LINES + 1)},
                },
            )
            self.bridges.append(bridge)
            await bridge.start()
            stack.push_async_callback(self._end, bridge)
            line = LineOptions(
                id="line%d", password="p%d", keepalive=2.0, resend=2.0, session_idle=30.0, time_scale=20.0,
                radio_errors=0.0,
            )  # fmt: skip
            options = SimOptions(server=("127.0.0.1", port), lines=LINES, channels=4, line=line, seed=1)
            simulator = await stack.enter_async_context(Simulator(options))
            self.simulators.append(simulator)
            await simulator.wait_registered(45.0)

    async def _end(self, bridge: BridgeProcess) -> None:
        if bridge.process is not None and bridge.process.returncode is None:
            await bridge.kill()

    def _heard(self, _topic: str, payload: bytes, _retain: bool) -> None:
        body = json.loads(payload)
        self.results[body["id"]] = body["code"]

    async def _use(self, number: int) -> None:
        """One user, one command: once, or until there is a result."""
        to, line, kind = f"49{number:08}", f"line{self.rng.randint(1, LINES)}", self.rng.random()
        topic, payload = f"goip/{line}/cmd/sms", json.dumps({"id": to, "to": to, "text": f"text {number}"}).encode()
        if kind < 0.2:
            topic, payload = f"goip/{line}/cmd/sms/{to}", f"text {number}".encode()
        if kind >= 0.6:
            self.again.add(to)
        while to not in self.results:
            await self.producer.ready.wait()
            self.published[to] += 1
            await self.producer.publish(topic, payload)
            if to not in self.again:
                return
            await asyncio.sleep(PATIENCE_S)

    async def _break_things(self) -> None:
        going: list[asyncio.Task[None]] = []
        for _ in range(self._faults):
            await asyncio.sleep(self.rng.expovariate(1 / self._pace))
            seconds = 3.0 * (self._longest / 3.0) ** self.rng.random()
            going.append(asyncio.create_task(self._fault(self.rng.randrange(len(NAMES)), seconds)))
        await asyncio.gather(*going)

    async def _fault(self, which: int, seconds: float) -> None:
        kind = self.rng.choice(("kill", "pause", "up", "down", "both", "broker"))
        bridge, proxy = self.bridges[which], self.proxies[which]
        match kind:
            case "kill" if which not in self._paused:
                self._paused.add(which)
                await bridge.kill()
                await asyncio.sleep(self.rng.choice((0.0, seconds)))
                await bridge.start()
                self._paused.discard(which)
            case "pause" if which not in self._paused:
                assert bridge.process is not None
                self._paused.add(which)
                pids = [bridge.process.pid, *children(bridge.process.pid)]
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(seconds)
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                self._paused.discard(which)
            case "broker" if not self._broker_stopped:
                self._broker_stopped = True
                await asyncio.to_thread(self.broker.terminate)
                await asyncio.sleep(seconds)
                await asyncio.to_thread(self.broker.start)
                self._broker_stopped = False
            case _:
                kind = kind if kind in ("up", "down") else "both"
                await proxy.freeze(("up", "down") if kind == "both" else (kind,), seconds)
        self.counts[kind] += 1

    def _violations(self) -> list[str]:
        found = []
        aired: dict[str, list[str]] = {}
        accepted: dict[str, list[str]] = {}
        for name, folder, simulator in zip(NAMES, self.folders, self.simulators, strict=True):
            for record in simulator.radio:
                if record["what"] == "submit" and record["result"] == "ok":
                    aired.setdefault(str(record["to"]).lstrip("+"), []).append(name)
            with sqlite3.connect(folder / "bridge.db") as store:
                for (number,) in store.execute("SELECT number FROM sms"):
                    accepted.setdefault(number.lstrip("+"), []).append(name)
        for to, times in self.published.items():
            by, air = accepted.get(to, []), aired.get(to, [])
            self.counts["commands"] += 1
            self.counts["on air"] += len(air)
            self.counts["repeated by their user"] += times > 1
            self.counts["carried out by nobody"] += not by
            if len(by) > 1 or len(air) > 1:
                if times == 1 or len(set(by)) < 2 or len(air) > 2:
                    found.append(f"{to}, published {times} times, accepted by {by}, on air by {air}")
                else:
                    self.counts["repeated and accepted by both"] += 1
            if to in self.again and not by:
                found.append(f"{to}, published {times} times, was accepted by nobody")
        return found


def run(
    seed: int, *, faults: int, pace: float = 6.0, rate: float = 1.0, longest: float = 70.0
) -> tuple[list[str], Pair]:
    """One run and its verdict; the logs stay where something was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="two-bridges-"))
    pair = Pair(seed, folder, faults=faults, pace=pace, rate=rate, longest=longest)
    violations = asyncio.run(pair.run())
    for name, bridge in zip(NAMES, pair.bridges, strict=True):
        (folder / f"{name}.log").write_text(bridge.log)
    if violations:
        print(f"logs and stores: {folder}")
    return violations, pair


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="chaos_two_bridges", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=20, help="how many (20)")
    parser.add_argument("--pace", type=float, default=6.0, help="seconds between two of them, on average (6)")
    parser.add_argument("--rate", type=float, default=1.0, help="commands a second, bursts not counted (1)")
    parser.add_argument("--longest", type=float, default=70.0, help="seconds that a fault lasts at most (70)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if find_mosquitto() is None:
        print("this needs Mosquitto: apt install mosquitto", file=sys.stderr)
        return 2
    violations, pair = run(
        options.seed, faults=options.faults, pace=options.pace, rate=options.rate, longest=options.longest
    )
    for name, count in pair.counts.items():
        print(f"{count:8} {name}")
    for violation in violations:
        print(f"VIOLATION {violation}")
    print(f"{'FAILED' if violations else 'well'}: again with --seed {options.seed}")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
