"""`make chaos`: the bridge end to end with real processes, while it and its broker are killed.

    gateways (bridge/sim) - chaos proxies - goip-bridge run - Mosquitto - observer and producers

All chance comes from the seed: traffic, network and the times of the kills. What the operating system makes of them
does not, so a seed makes a failure likely again, not certain; hence the history of a failed run is kept.

Two kinds of lines: `safe*` are qualified (`repeat_safety: safe`, firmware that keeps to the document) behind a bad
network; `auto*` are not, their firmware sends again when SEND is repeated, and their network is clean. Times of the
protocol are scaled down together: boxes repeat after 2 s instead of 3 s, the radio is 20 times faster.

Kills of the bridge are aimed: at the moment in which it acknowledges an SMS, sends SEND, hears OK and so on, as the
proxies and the observer see it. A broker is killed at once, or freezes first, and the bridge may die while it does.

With persistence off a killed broker forgets sessions and messages. The bridge then connects through a Unix socket that
appears when the observer has subscribed again, so that the observer misses nothing by being late. What the broker
acknowledged and lost nevertheless shows as a gap in `seq`, and is counted (`checker`).
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.run import SimOptions, Simulator
from brokers import Mosquitto, find_mosquitto
from harness import BridgeProcess, children, free_udp_port
from reliability import checker
from reliability.checker import FINAL, Command, Counts, Fault, History, Line, Message, Reached, Report
from reliability.client import Client
from reliability.proxy import ChaosProxy, Direction, Network, Seen

BASE = "goip"
TIMING = {"offline_s": 12, "resend_s": 0.5, "wait_s": 15, "evidence_s": 30, "backoff_s": 0.5, "restored_hold_s": 0}
"Of the bridge, scaled down like the gateways'."
SESSION_IDLE_S = 30.0
BAD = Network(loss=0.1, duplicate=0.03, reorder=0.05, held=(0.01, 0.2), delay=(0.0, 0.01))
READ_S = 0.5
"A datagram that was at the socket so long before a sign of life had been read and committed then."
BACK_S = 45.0
"How long anything killed may take until it works again."
PATIENCE_S = 2.0
"After which a producer without a result repeats its command."
_BROKER = """
max_inflight_messages 0
max_queued_messages 0
autosave_interval 20
"""
"""Nothing waits in the broker's memory while the observer is there: what it acknowledges to the bridge, it has sent to
the observer. So the state need not be saved at every change, which would make it as slow as the disk."""
MOMENTS = ("any", "offered", "acknowledged", "SEND", "WAIT", "OK", "published", "result", "raw")
"""In which the bridge is killed: at any time; an SMS is at its socket; it has acknowledged one; SEND has left; WAIT or
OK is at its socket; a fact or a result is at the observer; the broker has taken a command without id."""
LATE = ("I1", "I2", "I6", "I7")
"Invariants that may become true while the backlog drains."


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run."""

    seed: int
    seconds: float = 60.0
    "In which the traffic is offered; the run takes longer when the kills do."
    outbound: int = 250
    inbound: int = 1000
    kills: int = 15
    broker_share: float = 0.35
    "Of the kills; the others are the bridge's. Half of them come after the broker was frozen."
    moment: str | None = None
    "Of `MOMENTS`, in which the bridge is killed; None leaves it to the dice."
    keyless: float = 0.08
    "Share of the commands that have no id, and are published once."
    lines: int = 12
    "Half of them qualified."
    profile: str = "repeat_unsafe_wait"
    "Firmware of those that are not."
    network: Network = BAD
    "Between the qualified lines and the bridge."
    persistence: bool = True
    "Of the broker."
    reports: float = 0.8
    "Share of SMS with a delivery report."
    reboots: int = 0
    "Gateways that lose power."
    blackouts: int = 0
    "Times of 1 to 3 s in which no datagram passes."
    drain_s: float = 120.0
    "How long everything may take to come to an end when the faults are over."


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    options: Options
    report: Report
    kills: Counter[str]
    seconds: float
    "All of it, `drained` included: from the last fault until everything had come to an end."
    drained: float
    network: Counter[str]
    kernel_drops: int
    directory: Path


class StuckError(Exception):
    """Something that was killed did not come back."""


class _Broker(Mosquitto):
    def freeze(self) -> None:
        """It reads and says nothing, until it is killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)


class _Group:
    """Lines of one kind: their gateways, and the network to the bridge."""

    def __init__(self, name: str, count: int, password: str, *, options: Options, port: int, directory: Path) -> None:
        self.qualified = name == "safe"
        self.ids = [f"{name}{number}" for number in range(1, count + 1)]
        self.passwords = [password.replace("%d", str(number)) for number in range(1, count + 1)]
        self.proxy = ChaosProxy(("127.0.0.1", port), options.seed, options.network if self.qualified else Network())
        self.directory = directory
        self._line = LineOptions(
            id=f"{name}%d",
            password=password,
            profile=PROFILES["spec" if self.qualified else options.profile],
            keepalive=2.0,
            resend=2.0,
            session_idle=SESSION_IDLE_S,
            time_scale=20.0,
            wait=(2.0, 16.0),
            reports=options.reports,
        )
        self._seed = options.seed
        self.simulator: Simulator

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        await stack.enter_async_context(self.proxy)
        options = SimOptions(
            server=self.proxy.address,
            lines=len(self.ids),
            channels=4,
            line=self._line,
            seed=self._seed,
            radio_log=self.directory / f"radio-{self.ids[0][:-1]}.jsonl",
        )
        self.simulator = await stack.enter_async_context(Simulator(options))

    @property
    def quiet(self) -> bool:
        """Nothing of what the gateways said waits for an acknowledgement any more."""
        counts = self.simulator.counts
        return counts["received"] == counts["received_outcome"] and counts["report"] == counts["report_outcome"]


class Chaos:
    """One run, in a folder of its own."""

    def __init__(self, options: Options, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self._rng = random.Random(f"{options.seed} {options.persistence}")
        self.port = free_udp_port()
        mark = f"hush{self._rng.randrange(16**6):06x}"
        half = max(1, options.lines // 2)
        self.groups = [
            _Group(name, count, f"{mark}{name}%d", options=options, port=self.port, directory=directory)
            for name, count in (("safe", half), ("auto", max(1, options.lines - half)))
        ]
        self.ids = {id: group for group in self.groups for id in group.ids}
        self.phase = "starting"
        self.kills: Counter[str] = Counter()
        self.messages: list[Message] = []
        self.commands: list[Command] = []
        self.results: dict[str, str] = {}
        "By command: the code of its last result."
        self.states: dict[str, str] = {}
        "By SMS: its last event_type."
        self.received = 0
        self.kernel_drops: dict[str, int] = {}
        self._workers_killed = 0
        "Of the supervisor that runs now."
        self._faults: list[Fault] = []
        self._aim: tuple[str, Callable[[], None]] | None = None
        "The moment that is waited for, and what is done in it."
        self._deaths: list[float] = []
        "Around the kills of processes that hold or read the socket."
        self._started = time.monotonic()
        self._gate = directory / "gate.sock"
        broker = directory / "broker"
        broker.mkdir()
        self.broker = _Broker(broker, _BROKER, persistence=options.persistence, unix=not options.persistence)
        self.bridge = BridgeProcess(directory, self._config())
        address = (self.broker.host, self.broker.port)
        self.watcher = Client(address, "chaos-watcher", self._heard, (f"{BASE}/#",))
        self.producer = Client(address, "chaos-producer")

    # --- the run ---

    async def run(self) -> Outcome:
        """From an empty folder to the verdict. StuckError when something did not come back."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack)
                self.phase = "traffic and kills"
                producers: set[asyncio.Task[None]] = set()
                await _all(self._offer_inbound(), self._produce(producers), self._kill(), *self._other_faults())
                self.phase = "draining"
                healed = time.monotonic()
                for group in self.groups:
                    group.proxy.become(Network())
                await self._drain()
                drained = time.monotonic() - healed
                for task in producers:
                    task.cancel()
                await self.bridge.stop()
            self.phase = "checking"
            history = self.history()
            outcome = Outcome(
                options=self.options,
                report=checker.check(history),
                kills=self.kills,
                seconds=time.monotonic() - self._started,
                drained=drained,
                network=sum((group.proxy.counts for group in self.groups), Counter()),
                kernel_drops=sum(self.kernel_drops.values()),
                directory=self.directory,
            )
        finally:
            (self.directory / "bridge.log").write_bytes(self.bridge.output)
        if outcome.report.violations:
            self._keep(history, outcome.report)
        return outcome

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        await asyncio.to_thread(self.broker.start)
        stack.callback(self.broker.kill)
        for work in (self.watcher.run(), self.producer.run(), self._watch_drops()):
            stack.callback(asyncio.create_task(work).cancel)
        await self._until(self.watcher.ready.is_set, "the broker")
        self._open_gate()
        stack.push_async_callback(self._end_bridge)
        await self.bridge.start()
        for group in self.groups:
            group.proxy.tap = self._passed
            await group.start(stack)
        for group in self.groups:
            await group.simulator.wait_registered(BACK_S)

    async def _end_bridge(self) -> None:
        process = self.bridge.process
        if process is not None and process.returncode is None:
            await self.bridge.kill()

    def _config(self) -> dict[str, Any]:
        url = f"mqtt://{self.broker.host}:{self.broker.port}" if self.options.persistence else f"unix://{self._gate}"
        lines = {
            id: {"password": password, "repeat_safety": "safe" if group.qualified else "auto"}
            for group in self.groups
            for id, password in zip(group.ids, group.passwords, strict=True)
        }
        return {
            "base_topic": BASE,
            "instance": "chaos",
            "mqtt": {"url": url, "version": "5"},
            "udp": {"listen": f"127.0.0.1:{self.port}"},
            "store": {"path": "bridge.db"},
            "timing": TIMING,
            "lines": lines,
        }

    def _heard(self, topic: str, payload: bytes, retain: bool) -> None:
        self.messages.append(Message(at=time.time(), topic=topic, payload=payload, retain=retain))
        if topic.endswith("/sms/in"):
            self._now("published")
            self.received += 1
        elif topic.endswith("/result/sms"):
            self._now("result")
            body = json.loads(payload)
            self.results[body["id"]] = "retry" if body["retryable"] else body["code"]
        elif topic.endswith("/delivery"):
            body = json.loads(payload)
            if body["msg"] is not None:
                self.states[body["msg"]] = body["event_type"]

    def _passed(self, direction: Direction, data: bytes) -> None:
        """A datagram left the bridge, or is at its socket."""
        word = data[:9].decode(errors="replace").partition(" ")[0].partition(":")[0]
        if direction == "down":
            self._now({"RECEIVE": "acknowledged", "SEND": "SEND"}.get(word, ""))
        else:
            self._now({"RECEIVE": "offered", "WAIT": "WAIT", "OK": "OK"}.get(word, ""))

    def _now(self, moment: str) -> None:
        """Do what was to be done in this moment."""
        if self._aim is not None and self._aim[0] == moment:
            act, self._aim = self._aim[1], None
            act()

    # --- traffic ---

    def _times(self, count: int) -> list[float]:
        return sorted(self._rng.uniform(0, self.options.seconds) for _ in range(count))

    async def _offer_inbound(self) -> None:
        """People write to the SIMs: different texts, and now and then the same one twice."""
        start = time.monotonic()
        rng = random.Random(self._rng.random())
        line, sender, text = "", "", ""
        for number, due in enumerate(self._times(self.options.inbound)):
            if number == 0 or rng.random() > 0.05:
                line, sender = rng.choice(list(self.ids)), f"+4915{rng.randrange(10**8):08d}"
                sender = checker.NAMES.get(number % 10, sender)
                text = f"in {number}; {rng.choice(('Hallo!', 'Grüße ✓', 'a;b:c', 'x' * 200))}"
            await asyncio.sleep(start + due - time.monotonic())
            self.ids[line].simulator.line(line).receive_sms(sender, text)

    async def _produce(self, tasks: set[asyncio.Task[None]]) -> None:
        """Programs send SMS, and repeat each command until they know what became of it."""
        start = time.monotonic()
        rng = random.Random(self._rng.random())
        commands = list(self._orders(rng))
        for command, due in zip(commands, self._times(len(commands)), strict=True):
            await asyncio.sleep(start + due - time.monotonic())
            self.commands.append(command)
            tasks.add(asyncio.create_task(self._see_through(command)))

    def _orders(self, rng: random.Random) -> Iterator[Command]:
        """Commands for as many SMS as asked for."""
        left = self.options.outbound
        number = 49 * 10**9
        body: dict[str, Any] = {}
        line = ""
        while left > 0:
            number += 10
            if rng.random() < self.options.keyless:
                topic, text = f"{BASE}/{rng.choice(list(self.ids))}/cmd/sms/{number}", f"raw {number}"
                yield Command(topic=topic, payload=text.encode())
                left -= 1
                continue
            dice = rng.random()
            if dice < 0.05 and body and isinstance(body["to"], str):
                body = body | {"id": f"c{number}"}  # the same words to the same number, meant twice
            else:
                count = min(left, rng.randint(2, 4)) if dice < 0.12 else 1
                to = [str(number + each) for each in range(count)]
                line = rng.choice(list(self.ids))
                body = {"id": f"c{number}", "to": to if count > 1 else to[0], "text": f"out {number}: Grüße"}
                body |= _choice(rng, {"guarantee": "at_most_once"}, 0.05) | _choice(rng, {"priority": 8}, 0.15)
                body |= _choice(rng, {"ttl_s": 3}, 0.02)
                if len(body) == 3:
                    body |= _choice(rng, {"guarantee": "at_least_once"}, 0.02)
            left -= len(body["to"]) if isinstance(body["to"], list) else 1
            yield Command(topic=f"{BASE}/{line}/cmd/sms", payload=json.dumps(body).encode(), id=body["id"])

    async def _see_through(self, command: Command) -> None:
        """Publish until there is a result; without an id, once."""
        while command.id is None or self.results.get(command.id, "retry") == "retry":
            await self.producer.ready.wait()
            command.published.append(time.time())
            acknowledged = await self.producer.publish(command.topic, command.payload)
            command.acknowledged = command.acknowledged or acknowledged
            if command.id is None:
                # At the bridge it is now, too: to be read, or to be committed.
                asyncio.get_running_loop().call_later(self._rng.uniform(0.0, 0.002), self._now, "raw")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while self.results.get(command.id, "retry") == "retry":  # noqa: ASYNC110 - thousands of them
                        await asyncio.sleep(0.05)

    # --- faults ---

    async def _kill(self) -> None:
        """kill -9, evenly spread, at times that nobody can foresee."""
        start = time.monotonic()
        rng = random.Random(self._rng.random())
        pace = self.options.seconds / max(1, self.options.kills)
        for number, what in enumerate(_kinds(rng, self.options)):
            # Late ones follow at once, but the bridge gets a moment to be killed in.
            due = start + (number + rng.random()) * pace
            await asyncio.sleep(max(due - time.monotonic(), rng.uniform(0.0, 0.5)))
            if what == "broker":
                await self._kill_broker(rng, frozen=rng.random() < 0.5)
            else:
                await self._kill_bridge(rng, worker_only=what == "worker")

    async def _kill_broker(self, rng: random.Random, *, frozen: bool) -> None:
        """One that freezes keeps what comes in its buffers, and takes it to its grave."""
        at = time.time()
        if frozen:
            self.broker.freeze()
            if rng.random() < 0.5:
                await self._kill_bridge(rng, worker_only=rng.random() < 0.5)
            else:
                await asyncio.sleep(rng.uniform(0.2, 1.0))
        self._gate.unlink(missing_ok=True)
        self.broker.kill()
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        await asyncio.to_thread(self.broker.start)
        await self._until(lambda: self.watcher.ready.is_set() and self.producer.ready.is_set(), "the broker")
        kind = "broker_kill" if self.options.persistence else "broker_kill_lossy"
        self._faults.append(Fault(kind=kind, at=at, until=time.time()))
        self._open_gate()
        self.kills[kind] += 1

    def _open_gate(self) -> None:
        if self.broker.unix_path is not None:
            self._gate.symlink_to(self.broker.unix_path)

    async def _kill_bridge(self, rng: random.Random, *, worker_only: bool) -> None:
        """Its worker alone, where it has one, or the process that holds the socket."""
        process = self.bridge.process
        assert process is not None
        if process.returncode is not None:
            raise StuckError(f"the bridge ended by itself with {process.returncode}")
        workers = children(process.pid)
        # The supervisor waits longer each time; a new one does not.
        kind = "worker_kill" if worker_only and workers and self._workers_killed < 3 else "host_kill"
        self._workers_killed = self._workers_killed + 1 if kind == "worker_kill" else 0
        at = await self._strike(workers if kind == "worker_kill" else [process.pid], rng)
        if kind == "worker_kill":
            await self._until(lambda: not any(map(_alive, workers)), "the end of the worker")
            self._deaths.append(time.time())
        else:
            await self.bridge.ended()  # until all who write to its log have ended: its worker as well
            self._deaths.append(time.time())
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            await self.bridge.start()
        dead = time.time()
        await self._until(lambda: any(_since(group.proxy.left, dead) for group in self.groups), "the bridge")
        self._faults.append(Fault(kind=kind, at=at, until=time.time()))
        self.kills[kind] += 1

    async def _strike(self, pids: list[int], rng: random.Random) -> float:
        """kill -9 in a moment of which the dice decide the kind; when that was."""
        moment = self.options.moment or rng.choice(MOMENTS)
        struck: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        def kill() -> None:
            at = time.time()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._deaths.append(at)
            if not struck.done():
                struck.set_result(at)

        if moment != "any":
            self._aim = (moment, kill)
            await asyncio.wait((struck,), timeout=2.0)
        if not struck.done():
            self._aim = None
            kill()
        return await struck

    def _other_faults(self) -> Iterable[Coroutine[Any, Any, None]]:
        for _ in range(self.options.reboots):
            group = self._rng.choice(self.groups)
            yield self._reboot(self._rng.choice(range(len(group.simulator.gateways))), group, self._times(1)[0])
        for _ in range(self.options.blackouts):
            yield self._blackout(self._times(1)[0], self._rng.uniform(1.0, 3.0))

    async def _reboot(self, number: int, group: _Group, due: float) -> None:
        await asyncio.sleep(due)
        gateway = group.simulator.gateways[number]
        at = time.time()
        group.simulator.inject(gateway.reboot)
        await self._until(lambda: all(line.powered for line in gateway.lines), "a gateway")
        until = time.time()
        self._faults += [Fault(kind="gateway_reboot", at=at, until=until, line=line.id) for line in gateway.lines]
        self.kills["gateway_reboot"] += 1

    async def _blackout(self, due: float, seconds: float) -> None:
        await asyncio.sleep(due)
        at = time.time()
        with self.groups[0].proxy.blackout():
            await asyncio.sleep(seconds)
        self._faults += [Fault(kind="blackout", at=at, until=time.time(), line=id) for id in self.groups[0].ids]
        self.kills["blackout"] += 1

    async def _watch_drops(self) -> None:
        """Datagrams that the kernel had no room for: it says so as long as the socket is there."""
        while True:
            await asyncio.sleep(0.5)
            self.kernel_drops |= _drops(self.port)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + BACK_S
        while not condition():
            if time.monotonic() > deadline:
                log = self.bridge.output[-3000:].decode(errors="replace")
                raise StuckError(f"{what} did not come within {BACK_S:.0f} s; the bridge's log ends with\n{log}")
            await asyncio.sleep(0.01)

    # --- the end ---

    async def _drain(self) -> None:
        """Until everything has come to an end and the checker finds nothing missing, or the time is over."""
        deadline = time.monotonic() + self.options.drain_s
        while time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            answered = all(self.results.get(command.id, "retry") != "retry" for command in self.commands if command.id)
            ended = all(state in FINAL for state in self.states.values())
            if answered and ended and all(group.quiet for group in self.groups):
                broken = checker.check(self.history()).broken
                if not set(broken) & set(LATE):
                    return

    def history(self) -> History:
        """What is known up to now."""
        radio = [record for group in self.groups for record in group.simulator.radio]
        left = sorted((seen for group in self.groups for seen in group.proxy.left), key=lambda seen: seen.at)
        reached = sorted((seen for group in self.groups for seen in group.proxy.reached), key=lambda seen: seen.at)
        survived = _survivors(reached, [seen.at for seen in left], sorted(self._deaths))
        return History(
            radio=sorted(radio, key=lambda record: record["at"]),
            messages=list(self.messages),
            commands=self.commands,
            reached=[
                Reached(at=seen.at, line=seen.line, data=seen.data, survived=lives)
                for seen, lives in zip(reached, survived, strict=True)
            ],
            left=[checker.Left(at=seen.at, line=seen.line, data=seen.data) for seen in left],
            faults=sorted(self._faults, key=lambda fault: fault.at),
            lines={id: Line(id=id, qualified=group.qualified) for id, group in self.ids.items()},
            secrets=[password for group in self.groups for password in group.passwords],
            logs={"bridge.log": self.bridge.output.decode(errors="replace"), "mosquitto.log": self.broker.log},
            base=BASE,
            ended=time.time(),
            session_idle_s=SESSION_IDLE_S,
            settle_s=self.options.drain_s,
            stuck_s=100.0,
        )

    def _keep(self, history: History, report: Report) -> None:
        """Write down what happened, for people."""
        _write_lines(self.directory / "radio.jsonl", history.radio)
        _write_lines(self.directory / "messages.jsonl", map(dataclasses.asdict, history.messages))
        _write_lines(self.directory / "commands.jsonl", map(dataclasses.asdict, history.commands))
        _write_lines(self.directory / "reached.jsonl", map(dataclasses.asdict, history.reached or ()))
        _write_lines(self.directory / "left.jsonl", map(dataclasses.asdict, history.left))
        _write_lines(self.directory / "faults.jsonl", map(dataclasses.asdict, history.faults))
        (self.directory / "violations.txt").write_text("".join(f"{each}\n" for each in report.violations))


def _kinds(rng: random.Random, options: Options) -> list[str]:
    """What is killed, in a random order, but never the broker three times running: a bridge whose connection ends
    thrice soon after CONNACK takes that for another client with its name, and waits (docs/contract.md §5)."""
    brokers = round(options.kills * options.broker_share)
    bridges = options.kills - brokers
    kinds = ["broker"] * brokers + ["worker"] * (bridges - bridges // 2) + ["host"] * (bridges // 2)
    rng.shuffle(kinds)
    for place in range(2, len(kinds)):
        if kinds[place - 2 : place + 1] == ["broker"] * 3:
            others = [other for other in range(place + 1, len(kinds)) if kinds[other] != "broker"]
            if others:
                kinds[place], kinds[others[0]] = kinds[others[0]], kinds[place]
    return kinds


def _survivors(reached: list[Seen], left: list[float], deaths: list[float]) -> Iterator[bool]:
    """For each datagram: whether the bridge showed a sign of life long enough after it, and before the next death."""
    for seen in reached:
        place = bisect.bisect_left(deaths, seen.at)
        death = deaths[place] if place < len(deaths) else float("inf")
        sign = bisect.bisect_left(left, seen.at + READ_S)
        yield sign < len(left) and left[sign] < death


def _since(seen: list[Seen], at: float) -> bool:
    return bool(seen) and seen[-1].at > at


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _drops(port: int) -> dict[str, int]:
    """Datagrams that found no room in the sockets of a UDP port, by inode."""
    sockets = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return {fields[9]: int(fields[-1]) for fields in sockets if fields[1].endswith(f":{port:04X}")}


def _choice(rng: random.Random, what: dict[str, Any], share: float) -> dict[str, Any]:
    return what if rng.random() < share else {}


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    """All of it, or the first exception."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w") as file:
        for record in records:
            file.write(json.dumps(record, default=lambda data: data.decode(errors="replace")) + "\n")


# --- the command ---


def table(outcomes: list[Outcome]) -> str:
    """The figures of all runs, one column each."""
    titles = [f"persistence {'on' if outcome.options.persistence else 'off'}" for outcome in outcomes]
    rows: list[tuple[str, list[str]]] = []

    def row(name: str, value: Callable[[Outcome], object]) -> None:
        values = [value(outcome) for outcome in outcomes]
        total = sum(values) if all(isinstance(each, int) for each in values) else ""  # type: ignore[arg-type]
        rows.append((name, [str(each) for each in [*values, total]]))

    def count(name: str, of: Callable[[Counts], int]) -> None:
        row(name, lambda outcome: of(outcome.report.counts))

    row("kills of the bridge's worker", lambda outcome: outcome.kills["worker_kill"])
    row("kills of the bridge, socket and all", lambda outcome: outcome.kills["host_kill"])
    row(
        "kills of the broker",
        lambda outcome: outcome.kills["broker_kill"] + outcome.kills["broker_kill_lossy"],
    )
    row("gateway reboots", lambda outcome: outcome.kills["gateway_reboot"])
    row("blackouts", lambda outcome: outcome.kills["blackout"])
    count("inbound SMS offered", lambda counts: counts.inbound_offered)
    count("  reached the host", lambda counts: counts.inbound_reached)
    count("  published", lambda counts: counts.inbound_published)
    count("  LOST", lambda counts: counts.inbound_lost)
    count("  DOUBLED", lambda counts: counts.inbound_doubled)
    count("outbound SMS accepted", lambda counts: counts.accepted)
    count("  submitted", lambda counts: counts.submitted)
    count("  sent", lambda counts: counts.sent)
    count("  LOST", lambda counts: counts.outbound_lost)
    count("  DOUBLED", lambda counts: counts.outbound_doubled)
    count("  FALSE outcomes", lambda counts: counts.false)
    count("  failed", lambda counts: counts.failed)
    count("  expired", lambda counts: counts.expired)
    count("  unknown in the end", lambda counts: counts.unknown)
    count("  unknown at some time", lambda counts: counts.doubted)
    count("commands without id, lost by the broker", lambda counts: counts.keyless_lost)
    count("commands without id, twice after a kill", lambda counts: counts.keyless_doubled)
    count("messages that came again, same id", lambda counts: counts.republished)
    count("facts lost with the broker's state", lambda counts: counts.facts_lost_by_broker)
    row("datagrams lost", lambda outcome: outcome.network["lost"])
    row("datagrams doubled", lambda outcome: outcome.network["duplicated"])
    row("datagrams dropped by the kernel", lambda outcome: outcome.kernel_drops)
    row("seconds", lambda outcome: round(outcome.seconds))
    row("  of them, until all had come to an end", lambda outcome: f"{outcome.drained:.1f}")
    row("SMS per second", lambda outcome: f"{_rate(outcome):.1f}")
    row("VIOLATIONS", lambda outcome: len(outcome.report.violations))
    columns = [*titles, "total"]
    lines = [" " * 42 + "".join(f"{title:>18}" for title in columns)]
    lines += [f"{name:<42}" + "".join(f"{value:>18}" for value in values) for name, values in rows]
    return "\n".join(lines)


def _rate(outcome: Outcome) -> float:
    counts = outcome.report.counts
    return (counts.inbound_offered + counts.submitted) / outcome.seconds


def main(arguments: list[str] | None = None) -> int:
    """0 when every invariant held, 1 when one did not or something got stuck, 2 when there is no Mosquitto."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if find_mosquitto() is None:
        print("chaos needs Mosquitto: apt install mosquitto", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without ending bridge and broker
    seed = args.seed if args.seed is not None else random.randrange(10**6)
    parts = [True, False] if args.persistence == "both" else [args.persistence == "on"]
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {seed}, in {folder}", flush=True)
    outcomes: list[Outcome] = []
    kept = args.keep
    for persistence in parts:
        directory = folder / f"persistence-{'on' if persistence else 'off'}"
        directory.mkdir()
        options = _options(args, seed, persistence=persistence, share=1 / len(parts))
        try:
            outcomes.append(asyncio.run(_with_progress(Chaos(options, directory))))
        except StuckError as error:
            print(f"\nSTUCK: {error}", file=sys.stderr)
            kept = True
            break
        if args.first and outcomes[-1].report.violations:
            break
    if outcomes:
        print(f"\nseed {seed}\n\n{table(outcomes)}\n")
    for outcome in outcomes:
        for violation in outcome.report.violations[:50]:
            print(f"VIOLATION {violation}"[:1000])
        kept = kept or bool(outcome.report.violations)
    bad = len(outcomes) < len(parts) or any(outcome.report.violations for outcome in outcomes)
    if kept:
        print(f"logs and histories: {folder}")
    else:
        shutil.rmtree(folder)
    print(f"{'FAILED' if bad else 'well'}: again with --seed {seed}")
    return int(bad)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make chaos ARGS=…", description="Real processes, kill -9, a bad network, and an independent checker."
    )
    add = parser.add_argument
    add("--seed", type=int, help="repeat the dice of an earlier run (default: another one each time)")
    add("--seconds", type=float, default=120.0, help="in which the traffic is offered (default 120)")
    add("--outbound", type=int, default=500, help="SMS to send (default 500)")
    add("--inbound", type=int, default=2000, help="SMS to receive (default 2000)")
    add("--kills", type=int, default=30, help="kill -9 of bridge and broker together (default 30)")
    add("--broker-share", type=float, default=0.35, help="of the broker in the kills (default 0.35)")
    add("--moment", choices=MOMENTS, help="in which the bridge is killed (default: each now and then)")
    add("--keyless", type=float, default=0.08, help="share of commands without id (default 0.08)")
    add("--reports", type=float, default=0.8, help="share of SMS with a delivery report (default 0.8)")
    add("--reboots", type=int, default=2, help="gateways that lose power (default 2)")
    add("--blackouts", type=int, default=2, help="times without network, 1 to 3 s (default 2)")
    add("--lines", type=int, default=12, help="SIM lines; every second one is qualified (default 12)")
    add("--profile", choices=PROFILES, default="repeat_unsafe_wait", help="firmware of the unqualified lines")
    add("--loss", type=float, default=BAD.loss, help="share of datagrams lost, qualified lines (default 0.1)")
    add("--duplicate", type=float, default=BAD.duplicate, help="share doubled (default 0.03)")
    add("--reorder", type=float, default=BAD.reorder, help="share overtaken (default 0.05)")
    add("--persistence", choices=("on", "off", "both"), default="both", help="of the broker (default both, in turn)")
    add("--drain", type=float, default=120.0, help="seconds until everything has come to an end (default 120)")
    add("--first", action="store_true", help="end with the first run that is not well")
    add("--keep", action="store_true", help="keep the logs of a good run, too")
    return parser


def _options(args: argparse.Namespace, seed: int, *, persistence: bool, share: float) -> Options:
    return Options(
        seed=seed,
        seconds=args.seconds * share,
        outbound=round(args.outbound * share),
        inbound=round(args.inbound * share),
        kills=round(args.kills * share),
        broker_share=args.broker_share,
        moment=args.moment,
        keyless=args.keyless,
        reports=args.reports,
        lines=args.lines,
        profile=args.profile,
        network=dataclasses.replace(BAD, loss=args.loss, duplicate=args.duplicate, reorder=args.reorder),
        persistence=persistence,
        reboots=round(args.reboots * share),
        blackouts=round(args.blackouts * share),
        drain_s=args.drain,
    )


async def _with_progress(chaos: Chaos) -> Outcome:
    progress = asyncio.create_task(_say(chaos))
    try:
        return await chaos.run()
    finally:
        progress.cancel()


async def _say(chaos: Chaos) -> None:
    """One line that moves on a terminal; elsewhere one every ten seconds."""
    live = sys.stdout.isatty()
    start = time.monotonic()
    while True:
        await asyncio.sleep(1.0 if live else 10.0)
        ended = sum(state in FINAL for state in chaos.states.values())
        text = (
            f"{time.monotonic() - start:5.0f} s  {chaos.phase}: {sum(chaos.kills.values())} faults, "
            f"{chaos.received} of {chaos.options.inbound} received, {ended} of {chaos.options.outbound} sent"
        )
        print(f"\r{text}\x1b[K" if live else text, end="" if live else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
