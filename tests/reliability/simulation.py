"""The whole bridge in a virtual world, with faults from a seed, judged by the independent checker.

    python -m reliability.simulation --seconds 60          different seeds, all scenarios
    python -m reliability.simulation --scenario lossy --seed 17      one run again, exactly as it was
    python -m reliability.simulation --crashes             a crash at every step of a short run

One process, one seeded clock: the application itself (`bridge.app.bridge.Bridge`, its store on a real SQLite file), the
simulated gateways of `bridge.sim`, and between them the network, broker and disk of `virtual.py`. Of the bridge's
own counters nothing is read.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from bridge.app import bridge as app
from bridge.app.bridge import Bridge
from bridge.config.settings import BrokerUrl, Settings
from bridge.features import batch
from bridge.goip.events import Address
from bridge.mqtt.link import Publication
from bridge.sim.gateway import SimulatedGateway
from bridge.sim.line import SimulatedLine
from bridge.sim.network import Faults, Network
from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.world import Record, World
from bridge.store.database import StoreError
from reliability import checker
from reliability.virtual import (
    EPOCH,
    Broker,
    Crash,
    Disk,
    Host,
    Life,
    VirtualClock,
    VirtualLink,
    VirtualLoop,
    VirtualStore,
    VirtualUdp,
)

REPEAT_S = 20.0
"How often a producer repeats a command that nobody answered."
NOWHERE = BrokerUrl.parse("mqtt://virtual")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a run is like. Shares are probabilities from 0 to 1, times are seconds."""

    name: str
    profile: str = "spec"
    qualified: bool = True
    "The bridge is told that the firmware recognises repeated SENDs."
    faults: Faults = field(default_factory=Faults)
    lines: int = 2
    sms: int = 40
    inbound: int = 30
    kills: float = 0.0
    "Share of sends during which the bridge is killed: before the SEND leaves, at one of the next effects, or later."
    down: tuple[float, float] = (1.0, 3.0)
    "How long the bridge is dead."
    held: float = 1.0
    "Share of kills that the UDP socket survives."
    broker_kills: int = 0
    broker_down: tuple[float, float] = (0.5, 20.0)
    broker_lossy: bool = False
    stalls: int = 0
    "How often the disk refuses to be written for a while."
    reboots: int = 0
    "How often a gateway loses its power."
    blackouts: int = 0
    "How often no datagram passes for a while."
    radio_errors: float = 0.02
    guarantees: tuple[str, ...] = ("effectively_once",)
    keyless: float = 0.05
    ttl: tuple[float, float] | None = None
    "Seconds after which an SMS is too old to be sent."
    logouts: int = 0
    "How often a SIM loses its network for a while."
    ussd: int = 0
    "USSD codes, each of which must not be dialled twice."
    clock_steps: tuple[float, ...] = ()
    "What the wall clock is set wrong by, one after the other."
    per_box: int = 1
    "Lines of one box: they share its power, its host and its five sessions."
    sessions_per: Literal["box", "line"] = "box"
    "What has five sessions."
    one_host: bool = False
    "All boxes are behind one NAT, and the configuration does not say which lines are of one box."
    jobs: int = 0
    "Each line begins with a job of so many numbers."
    urgent: float = 0.0
    "Share of commands with priority 9."
    urgent_s: float | None = None
    "No line has an SMS with priority 9 waiting, and none on its way, for longer."
    numbers: int | None = None
    "SMS go to so many different numbers, over and over; None is a new one for each."
    report_delay: tuple[float, float] = (3.0, 10.0)
    reports: float = 1.0
    "Share of sent SMS that get a delivery report."
    quick_kills: float = 0.0
    "Share of lives that end within their first effects, from the second one on."
    stops: int = 0
    "How often the bridge is asked to stop, and started again; every other time it is killed meanwhile."
    power_cuts: int = 0
    "How often the machine, and with it the bridge, its socket and a gateway, loses its power."
    reloads: int = 0
    "How often a line is taken out of the configuration and put back."
    nat: float = 0.0
    "Share of keepalives that come from a new port, and with them all that follows."
    nat_sudden: float = 0.0
    "Share of outcomes of SMS that are the first to come from a new port; nothing reaches the box at the old one."
    lies: float = 0.0
    "Share of answers in sessions that are wrong, overtaken or late, until half of the run is over."
    unknown: int | None = None
    "How many SMS may stay unknown."
    stuck_s: float = 100.0
    "No line with a backlog stands still for longer, once the last fault is over (I13)."
    waived: tuple[str, ...] = ()
    "Invariants that do not hold here; the scenario says why."


LAN = Faults(delay=(0.0005, 0.003))
ROUGH = Faults(loss=0.30, duplicate=0.05, reorder=0.05, delay=(0.005, 0.2))

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="clean", faults=LAN),
        Scenario(name="rough", faults=ROUGH, kills=0.10),
        Scenario(name="rough_all", faults=ROUGH, kills=0.10, broker_kills=3, stalls=2),
        Scenario(name="lossy5", faults=Faults(loss=0.05, duplicate=0.01, delay=(0.0, 0.05)), kills=0.5),
        Scenario(name="quiet_wait", profile="repeat_unsafe_wait", qualified=False, faults=LAN, kills=0.10),
        Scenario(name="quiet_always", profile="repeat_unsafe_always", qualified=False, faults=LAN, kills=0.10),
        Scenario(name="quiet_spec", qualified=False, faults=LAN, kills=0.10, keyless=0.0),
        Scenario(name="quiet_rough", profile="repeat_unsafe_wait", qualified=False, faults=ROUGH, kills=0.05),
        Scenario(name="no_sms_no", profile="no_sms_no", faults=ROUGH, kills=0.10),
        Scenario(name="small_memory", profile="small_memory", faults=ROUGH, kills=0.10),
        Scenario(name="slow", profile="slow", faults=Faults(loss=0.1, delay=(0.0, 0.3)), kills=0.10, sms=16),
        Scenario(name="flaky_ntp", profile="flaky_ntp", faults=ROUGH, kills=0.10, reboots=1),
        Scenario(
            name="storm", faults=ROUGH, kills=0.10, held=0.5, broker_kills=4, broker_lossy=True, stalls=3, reboots=2,
            blackouts=2, keyless=0.0, guarantees=("effectively_once", "at_most_once", "at_least_once"),
        ),
        Scenario(name="long_outages", faults=Faults(loss=0.01, delay=(0.0, 0.05)), kills=0.10, down=(100.0, 200.0)),
        Scenario(name="hours", faults=LAN, kills=0.05, down=(3600.0, 7200.0), held=0.0, sms=20),
        Scenario(name="broker", faults=LAN, broker_kills=6, kills=0.05),
        Scenario(name="broker_hours", faults=LAN, broker_kills=1, broker_down=(3600.0, 7200.0), kills=0.05),
        Scenario(name="late", faults=Faults(loss=0.02, duplicate=0.1, reorder=0.1, delay=(0.0, 5.0)), kills=0.10),
        Scenario(name="logouts", faults=LAN, kills=0.10, logouts=6, radio_errors=0.3),
        # An SMS whose time is over is not asked about after a crash: the question could be its first SEND.
        Scenario(
            name="ttl", faults=ROUGH, kills=0.3, down=(1.0, 60.0), ttl=(5.0, 120.0), keyless=0.0, waived=("I5",)
        ),
        Scenario(name="ussd", faults=Faults(loss=0.1, delay=(0.0, 0.05)), kills=0.2, ussd=30, sms=10),
        # All lines are busy with jobs, and their box takes five sessions, or five for each line.
        Scenario(
            name="full_box", faults=LAN, lines=16, per_box=16, sms=80, inbound=0, jobs=15, urgent=0.4, urgent_s=15.0,
        ),
        Scenario(
            name="full_lines", faults=LAN, lines=16, per_box=16, sessions_per="line", sms=80, inbound=0, jobs=15,
            urgent=0.4, urgent_s=15.0,
        ),
        Scenario(name="full_nat", faults=LAN, lines=18, per_box=6, one_host=True, sms=80, inbound=0, jobs=15),
        Scenario(
            name="full_kills", qualified=False, faults=Faults(loss=0.02, delay=(0.0, 0.05)), lines=16, per_box=16,
            sms=80, inbound=0, jobs=10, kills=0.02,
        ),
        Scenario(name="boxes", faults=LAN, lines=16, per_box=8, sms=120, kills=0.1, reboots=1),
        Scenario(
            name="one_number", profile="repeat_unsafe_wait", qualified=False, faults=ROUGH, kills=0.3, numbers=2,
            report_delay=(0.0, 0.05), reboots=3, keyless=0.0,
        ),
        Scenario(name="one_number_no_sms_no", profile="no_sms_no", faults=LAN, kills=0.1, numbers=3, reboots=3),
        # One outage of 85 s after another: the bridge asks when it can, and the box may have forgotten by then.
        Scenario(
            name="again", faults=LAN, kills=0.1, held=0.0, down=(15.0, 60.0), quick_kills=0.6, sms=10, waived=("I5",)
        ),
        Scenario(name="stops", profile="repeat_unsafe_always", qualified=False, faults=LAN, kills=0.05, stops=20),
        Scenario(name="power", profile="flaky_ntp", faults=LAN, down=(25.0, 300.0), power_cuts=6, inbound=60),
        # What the clock says to be too old waits for ten minutes, and is then told as expired.
        Scenario(
            name="power_ttl", faults=LAN, down=(25.0, 300.0), power_cuts=6, kills=0.1, ttl=(5.0, 600.0), keyless=0.0,
            waived=("I5", "I13"),
        ),
        Scenario(name="nat", profile="flaky_ntp", faults=LAN, kills=0.1, reboots=1, nat=0.3, waived=("I5", "I13")),
        # The box has another port whenever it says what became of an SMS: what was sent is never in doubt for that.
        Scenario(name="nat_sudden", qualified=False, faults=LAN, nat_sudden=0.2, reports=0.0, unknown=0, stuck_s=60.0),
        Scenario(name="quiet_disk", profile="repeat_unsafe_wait", qualified=False, faults=LAN, stalls=20),
        Scenario(
            name="ttl_disk", faults=LAN, stalls=15, ttl=(5.0, 60.0), keyless=0.0, kills=0.1, down=(1.0, 20.0),
            waived=("I5",),
        ),
        # A line that is taken out is not asked what became of its SMS.
        Scenario(name="reloads", faults=LAN, reloads=8, stalls=10, kills=0.05, keyless=0.0, waived=("I5",)),
        # Reports come seconds after an OK that was lost: no line waits for it until the box has forgotten the session.
        Scenario(
            name="lost_oks", qualified=False, faults=Faults(loss=0.05, delay=(0.0, 0.05)),
            lines=16, sms=160, inbound=0, radio_errors=0.0, stuck_s=45.0,
        ),
        # What it says is wrong, and the truth comes after it, or late: nothing is sent twice or told wrongly for that.
        Scenario(name="liar", qualified=False, faults=LAN, sms=80, lies=0.5, reports=0.3, stuck_s=95.0),
        Scenario(name="disk", faults=Faults(loss=0.05, delay=(0.0, 0.05)), stalls=6, kills=0.05),
        Scenario(name="clocks", faults=LAN, kills=0.1, clock_steps=(86400.0, -3600.0, -86400.0), keyless=0.0),
        Scenario(
            name="clocks_ttl", faults=LAN, kills=0.1, clock_steps=(86400.0, -3600.0, -86400.0), ttl=(5.0, 120.0),
            keyless=0.0, waived=("I5",),
        ),
    )
}  # fmt: skip


class Simulation:
    """One run."""

    def __init__(
        self, scenario: Scenario, seed: int, folder: Path, crashes: tuple[int, ...] = (), *, arrives: bool | None = None
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        self.rng = random.Random(f"{scenario.name}/{seed}")
        self.loop = VirtualLoop()
        self.clock = VirtualClock(self.loop)
        self.store_path = folder / "bridge.db"
        self.crashes = list(crashes)
        "For each life in turn, the effect at which it dies."
        self.arrives = arrives
        "What the dead had written to its broker still arrives, or not; None leaves it to chance."
        self.lives: list[Life] = []
        self.disk = Disk()
        self.host = Host()
        self.broker = Broker(self._seen)
        self.network = Network(scenario.faults, self.rng)
        self.world = World(self.rng)
        self.radio: list[Record] = []
        self.messages: list[checker.Message] = []
        self.commands: list[checker.Command] = []
        self.reached: list[checker.Reached] = []
        self.left: list[checker.Left] = []
        self.faults: list[checker.Fault] = []
        self.results: set[str] = set()
        "Ids of commands that were answered."
        self.open_sms: dict[str, str] = {}
        "Last state of every SMS, by msg."
        self.expected = 0
        self.sends = 0
        self.failure: BaseException | None = None
        self._blackout = False
        self._powered = True
        self._dead_ports: set[Address] = set()
        self.lies = 0
        self._lies_until = 0.0
        self._unread: list[int] = []
        "Indexes in `reached` of what waits in the socket, and of what was read and not yet answered."
        self._read: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._bury: list[asyncio.Task[None]] = []
        self._finished = asyncio.Event()
        self._killing = bool(scenario.kills)
        self._open_faults = 0
        self._make_gateways()

    # -- the world

    def _make_gateways(self) -> None:
        scenario = self.scenario
        profile = PROFILES[scenario.profile]
        pattern = LineOptions(
            id="line%d", password="secret-%d", profile=profile, radio_errors=scenario.radio_errors, boot_time=20.0,
            radio_error_code=28, report_delay=scenario.report_delay, reports=scenario.reports,
            sessions_per=scenario.sessions_per,
        )  # fmt: skip
        options = [pattern.numbered(number) for number in range(1, scenario.lines + 1)]
        size = scenario.per_box
        self.gateways = [SimulatedGateway(options[n : n + size], self.world) for n in range(0, len(options), size)]
        self.lines: dict[str, SimulatedLine] = {line.id: line for box in self.gateways for line in box.lines}
        self.addresses = {
            line.id: (f"10.0.0.{n}", 10990 + line.channel)
            if not scenario.one_host
            else ("10.0.0.1", 10990 + 100 * n + line.channel)
            for n, box in enumerate(self.gateways, 1)
            for line in box.lines
        }
        self.by_address = {address: self.lines[id] for id, address in self.addresses.items()}
        self.settings = Settings(
            instance="virtual",
            lines={
                line.id: {
                    "password": line.options.password,
                    "repeat_safety": "safe" if scenario.qualified else "auto",
                }
                for line in self.lines.values()
            },
        )

    def now(self) -> float:
        """Unix time of the world; the bridge's own clock may be wrong."""
        return EPOCH + self.loop.virtual

    def step(self, action: Callable[[float], None] = lambda _: None) -> None:
        """Let something happen in the gateways, and carry what they send."""
        now = self.now()
        self.world.run_due(now)
        action(now)
        self.world.run_due(now)
        self.radio += self.world.take_records()
        for datagram in self.world.take_datagrams():
            self._to_host(datagram.line, datagram.data)
        deadline = self.world.deadline()
        if deadline is not None and (self._timer is None or self._timer.when() > deadline - EPOCH):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(deadline - EPOCH, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.step()

    def _to_host(self, line: str, data: bytes) -> None:
        lying = self.loop.virtual < self._lies_until and self.rng.random() < self.scenario.lies
        for delay, said in _lie(data, self.rng) if lying else ((0.0, data),):
            self.lies += lying and said != data
            if delay:
                self.loop.call_later(delay, self._travel, line, said)
            else:
                self._travel(line, said)

    def _travel(self, line: str, data: bytes) -> None:
        if self.scenario.nat and data.startswith(b"req:") and self.rng.random() < self.scenario.nat:
            self._new_port(line)
        if self.scenario.nat_sudden and data.startswith(b"OK ") and self.rng.random() < self.scenario.nat_sudden:
            self._dead_ports.add(self.addresses[line])
            self._new_port(line)
        for delay, copy in self.network.carry(data):
            if not self._blackout:
                self.loop.call_later(delay, self._arrive, line, copy)

    def _new_port(self, line: str) -> None:
        self.addresses[line] = address = (self.addresses[line][0], 20000 + len(self.by_address))
        self.by_address[address] = self.lines[line]

    def _arrive(self, line: str, data: bytes) -> None:
        if self.host.arrive(data, self.addresses[line]):
            self._unread.append(len(self.reached))
            self.reached.append(checker.Reached(at=self.now(), line=line, data=data))

    def _was_read(self, batch: list[tuple[bytes, Address]]) -> None:
        self._read += self._unread[: len(batch)]
        del self._unread[: len(batch)]

    def _sent(self, data: bytes, address: Address) -> None:
        """The bridge sends a datagram: what it read before is settled, as far as anybody can see."""
        line = self.by_address[address]
        self._read = [index for index in self._read if not _answers(data, self.reached[index], line.id)]
        self.left.append(checker.Left(at=self.now(), line=line.id, data=data))
        for delay, copy in self.network.carry(data):
            if not self._blackout and address not in self._dead_ports:
                self.loop.call_later(delay, self._deliver, line, copy)

    def _deliver(self, line: SimulatedLine, data: bytes) -> None:
        self.step(lambda now: line.receive_datagram(data, ("192.0.2.1", 44444), now))

    def _seen(self, publication: Publication) -> None:
        self.messages.append(
            checker.Message(
                at=self.now(), topic=publication.topic, payload=publication.payload, retain=publication.retain
            )
        )
        if publication.topic.endswith("/result/ussd"):
            self.results.add(json.loads(publication.payload)["id"])
        elif publication.topic.endswith("/result/sms"):
            body = json.loads(publication.payload)
            self.results.add(body["id"])
            for each in (body.get("data") or {}).get("msgs") or ():
                self.open_sms.setdefault(each["msg"], "accepted")
        elif publication.topic.endswith("/delivery"):
            body = json.loads(publication.payload)
            if body["msg"] is not None:
                self.open_sms[body["msg"]] = body["event_type"]

    # -- the bridge, alive and dead

    def begin_life(self) -> None:
        number = len(self.lives)
        life = Life(number, self.crashes[number] if number < len(self.crashes) else None)
        self.lives.append(life)
        life.on_crash = lambda: self.loop.call_soon(self._after_crash, life)
        self.host.held = True
        simulation = self

        class VirtualBridge(Bridge):
            """The bridge, at home in this world."""

            def _open_udp(self, *_: Any) -> Any:
                return VirtualUdp(
                    simulation.host, life, self._guarded(self.datagrams_received), simulation._leaving(life),
                    simulation._was_read,
                )  # fmt: skip

            def _open_link(self, _broker: BrokerUrl) -> Any:
                return VirtualLink(simulation.broker, life, self, simulation.rng)

        if number and not self.crashes and self.rng.random() < self.scenario.quick_kills:
            life.crash_at = self.rng.randint(1, 40)
        try:
            life.store = VirtualStore(self.store_path, life, self.disk)
            bridge = VirtualBridge(self.settings, life.store, lambda: self.settings, self.clock)
        except Crash:
            return
        except StoreError:  # the program ends with an error, and its supervisor starts it again
            life.kill()
            return
        life.bridge = bridge
        life.task = self.loop.create_task(self._live(life, bridge))

    async def _live(self, life: Life, bridge: Bridge) -> None:
        try:
            await bridge.run(life.stop, NOWHERE)
            life.kill()  # it ended: that it was asked to makes no difference to the world
        except (Crash, asyncio.CancelledError):
            pass
        except BaseException as error:
            if not life.dead:
                self.fail(error)

    def _leaving(self, life: Life) -> Callable[[bytes, Address], None]:
        """With every new SEND, the dice are thrown for a kill."""

        def sent(data: bytes, address: Address) -> None:
            if data.startswith((b"SEND ", b"USSD ")) and data not in self._known_sends:
                self._known_sends.add(data)
                self.sends += data.startswith(b"SEND ")
                if self._killing and self.rng.random() < self.scenario.kills and life.crash_at is None:
                    how = self.rng.random()
                    if how < 0.2:
                        life.crash()  # journalled, and never sent
                    elif how < 0.5:
                        life.crash_at = life.effects + self.rng.randint(1, 8)
                    else:
                        self.loop.call_later(self.rng.uniform(0.0, 8.0), life.kill)
            self._sent(data, address)

        return sent

    def _after_crash(self, life: Life) -> None:
        """Clear away the dead, and begin again after a while."""
        link = self.broker.link
        if link is not None:
            arrives = self.rng.random() < 0.5 if self.arrives is None else self.arrives
            self.loop.call_later(0.0015 if arrives else 0.0, link.drop, "reset")
        held = self.rng.random() < self.scenario.held and self._powered
        self._powered = True
        lost = self._read + ([] if held else self._unread)
        for index in lost:
            self.reached[index] = replace(self.reached[index], survived=False)
        self._read = []
        self.host.on_arrival = None
        if not held:
            self._unread = []
            self.host.waiting.clear()
            self.host.held = self.host.inherited = False
            self.host.number += 1
        task = getattr(life, "task", None)
        if task is not None:
            task.cancel()
        down = self.rng.uniform(*self.scenario.down)
        now = self.now()
        self.faults.append(checker.Fault(kind="worker_kill" if held else "host_kill", at=now, until=now + down))
        self.loop.call_later(0.002, self._close_store, life)
        self.loop.call_later(down, self.begin_life)

    def _close_store(self, life: Life) -> None:
        store = getattr(life, "store", None)
        if store is not None:
            store.close()

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._finished.set()

    def _on_exception(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Crash | asyncio.CancelledError) or error is None:
            return
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            return  # what the dead left running finds its store gone
        self.fail(error)

    # -- what people do

    def _plan(self) -> float:
        """Who sends what, and when; which faults come. Returns how long all that takes."""
        scenario, rng = self.scenario, self.rng
        seconds = 10.0 + max(scenario.sms / scenario.lines * 4.5, 60.0)
        lines = list(self.lines)
        left = scenario.sms
        number = 0
        for line in lines if scenario.jobs else ():
            numbers = [f"+49{rng.randrange(10**9, 10**10)}" for _ in range(scenario.jobs)]
            body: dict[str, Any] = {"id": f"job-{line}", "to": numbers, "text": "a job"}
            self._order(f"goip/{line}/cmd/sms", body, rng.uniform(1.0, 5.0))
        while left > 0:
            count = min(left, rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 3, 5)))
            left -= count
            number += 1
            line = rng.choice(lines)
            numbers = [f"+49{rng.randrange(10**9, 10**10)}" for _ in range(count)]
            keyless = count == 1 and rng.random() < scenario.keyless
            if scenario.numbers is not None and not keyless:
                numbers = [f"+491511234560{n}" for n in rng.sample(range(max(count, scenario.numbers)), count)]
            text = rng.choice((f"alarm {number}", f"alarm {number}", "the same text", f"привет {number}"))
            if keyless:
                topic = f"goip/{line}/cmd/sms/00{numbers[0][1:]}"
                command = checker.Command(topic=topic, payload=text.encode())
            else:
                body = {"id": f"c{number}", "to": numbers if count > 1 else numbers[0], "text": text}
                body["guarantee"] = rng.choice(scenario.guarantees)
                if scenario.ttl is not None:
                    body["ttl_s"] = round(rng.uniform(*scenario.ttl))
                if rng.random() < 0.2:
                    body["priority"] = rng.choice((0, 9))
                if scenario.urgent and rng.random() < scenario.urgent:
                    body["priority"] = 9
                command = checker.Command(
                    topic=f"goip/{line}/cmd/sms", payload=json.dumps(body).encode(), id=f"c{number}"
                )
            self.expected += count
            self.commands.append(command)
            self.loop.call_at(1000.0 + rng.uniform(1.0, seconds * 0.8), self._produce, command)
        if scenario.lies:
            self._lies_until = 1000.0 + seconds / 2
            until = EPOCH + self._lies_until
            self.faults.append(checker.Fault(kind="lies", at=self.now(), until=until))
        for n in range(scenario.ussd):
            body = {"id": f"u{n}", "code": f"*{n}#"}
            line = rng.choice(lines)
            command = checker.Command(topic=f"goip/{line}/cmd/ussd", payload=json.dumps(body).encode(), id=f"u{n}")
            self.commands.append(command)
            self.loop.call_at(1000.0 + rng.uniform(1.0, seconds), self._produce, command)
        for n in range(scenario.inbound):
            line = rng.choice(lines)
            text = rng.choice((f"hello {n}", "ON", "ON", ""))
            sender = rng.choice(("+491701234567", f"+4917{n:08d}"))
            sender = checker.NAMES.get(n % 10, sender)
            when = 1000.0 + rng.uniform(25.0, seconds)
            self.loop.call_at(when, self.step, _receiving(self.lines[line], sender, text))
        for _ in range(scenario.broker_kills):
            self.loop.call_at(1000.0 + rng.uniform(5.0, seconds), self._kill_broker)
        for _ in range(scenario.logouts):
            self.loop.call_at(1000.0 + rng.uniform(5.0, seconds), self._log_out)
        for _ in range(scenario.stalls):
            self.loop.call_at(1000.0 + rng.uniform(5.0, seconds), self._stall)
        for _ in range(scenario.reboots):
            self.loop.call_at(1000.0 + rng.uniform(30.0, seconds), self._reboot)
        for _ in range(scenario.power_cuts):
            self.loop.call_at(1000.0 + rng.uniform(30.0, seconds), self._cut_power)
        for n in range(scenario.stops):
            self.loop.call_at(1000.0 + rng.uniform(5.0, seconds), self._stop, n % 2 == 1)
        for _ in range(scenario.reloads):
            self.loop.call_at(1000.0 + rng.uniform(5.0, seconds), self._take_out_and_put_back)
        for _ in range(scenario.blackouts):
            self.loop.call_at(1000.0 + rng.uniform(30.0, seconds), self._black_out)
        for n, shift in enumerate(scenario.clock_steps, 1):
            at = 1000.0 + seconds * n / (len(scenario.clock_steps) + 1)
            self.loop.call_at(at, self._step_clock, shift)
        return seconds

    def _order(self, topic: str, body: dict[str, Any], after: float) -> None:
        command = checker.Command(topic=topic, payload=json.dumps(body).encode(), id=body["id"])
        self.expected += len(body["to"])
        self.commands.append(command)
        self.loop.call_at(1000.0 + after, self._produce, command)

    def _produce(self, command: checker.Command) -> None:
        """A producer without an id publishes once; one with an id repeats until there is a result."""
        if command.id is not None and command.id in self.results:
            return
        taken = self.broker.publish(command.topic, command.payload)
        if taken:
            command.published.append(self.now())
            command.acknowledged = True
        if command.id is not None:
            self.loop.call_later(REPEAT_S, self._produce, command)
        elif not taken:
            self.loop.call_later(1.0, self._produce, command)

    def _kill_broker(self) -> None:
        if not self.broker.up:
            return
        self.broker.crash(lossy=self.scenario.broker_lossy)
        seconds = self.rng.uniform(*self.scenario.broker_down)
        self.faults.append(checker.Fault(kind="broker_kill", at=self.now(), until=self.now() + seconds))
        self.loop.call_later(seconds, lambda: setattr(self.broker, "up", True))

    def _stall(self) -> None:
        if self.disk.failing:
            return
        self.disk.failing = True
        seconds = self.rng.uniform(0.1, 15.0)
        self.faults.append(checker.Fault(kind="disk", at=self.now(), until=self.now() + seconds))
        self.loop.call_later(seconds, lambda: setattr(self.disk, "failing", False))

    def _log_out(self) -> None:
        line = self.rng.choice(list(self.lines.values()))
        seconds = self.rng.uniform(5.0, 60.0)
        now = self.now()
        self.faults.append(checker.Fault(kind="logout", at=now, until=now + seconds, line=line.id))
        self.step(line.logout)
        self.loop.call_later(seconds, lambda: self.step(line.login))

    def _reboot(self) -> None:
        box = self.rng.choice(self.gateways)
        now = self.now()
        self.faults += [
            checker.Fault(kind="gateway_reboot", at=now, until=now + 60.0, line=line.id) for line in box.lines
        ]
        self.step(box.reboot)

    def _cut_power(self) -> None:
        self._powered = False
        self.clock.restart()
        self.lives[-1].kill()
        self._reboot()

    def _stop(self, impatient: bool) -> None:
        life = self.lives[-1]
        life.stop.set()
        if impatient and not life.dead and life.crash_at is None:
            life.crash_at = life.effects + self.rng.randint(1, 30)

    def _take_out_and_put_back(self) -> None:
        """By two reloads, one after the other."""
        line, whole = self.rng.choice(list(self.lines)), self.settings
        life = self.lives[-1]
        if life.dead or not hasattr(life, "bridge"):
            return
        self.settings = whole.model_copy(update={"lines": {id: each for id, each in whole.lines.items() if id != line}})
        try:
            life.bridge.reload_on_signal()
        finally:  # it may be the end of this life
            self.settings = whole
        life.bridge.reload_on_signal()

    def _black_out(self) -> None:
        if self._blackout:
            return
        self._blackout = True
        seconds = self.rng.choice((5.0, 30.0, 120.0))
        self.faults.append(checker.Fault(kind="blackout", at=self.now(), until=self.now() + seconds))
        self.loop.call_later(seconds, lambda: setattr(self, "_blackout", False))

    def _step_clock(self, shift: float) -> None:
        self.clock.step += shift

    # -- the run

    def run(self) -> checker.History:
        """Everything, until all is quiet; raises what the bridge raised."""
        self._known_sends: set[bytes] = set()
        self.loop.set_exception_handler(self._on_exception)
        _fix_chance(self.rng)
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._run())
        finally:
            for life in self.lives:
                if not life.dead:
                    life.dead = True
                    self._close_store(life)
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            asyncio.set_event_loop(None)
            self.loop.close()
        if self.failure is not None:
            raise self.failure
        return self._history()

    async def _run(self) -> None:
        seconds = self._plan()
        for position, line in enumerate(self.lines.values()):
            self.world.at(self.now() + position * 0.1, line.power_on)
        self.step()
        self.begin_life()
        limit = self.loop.virtual + seconds + 6200.0 + 200.0 * self.scenario.sms + 20.0 * self.scenario.down[1]
        await self._wait(seconds)
        self._patient_until = self.loop.virtual + 5 * 1000.0
        while not self._quiet() and self.loop.virtual < limit and self.failure is None:
            await self._wait(5.0)
        await self._wait(60.0)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._finished.wait()
        except TimeoutError:
            pass

    def _quiet(self) -> bool:
        if not self.broker.up or self.disk.failing:
            return False
        asked = {command.id for command in self.commands if command.id is not None}
        done = asked <= self.results and len(self.open_sms) >= self.expected
        final = checker.FINAL
        if "at_least_once" in self.scenario.guarantees and self.loop.virtual < self._patient_until:
            final = final - {"unknown"}  # it will be sent again, perhaps
        return done and all(state in final for state in self.open_sms.values())

    def _history(self) -> checker.History:
        scenario = self.scenario
        rough = scenario.faults.loss > 0.1
        return checker.History(
            radio=self.radio,
            messages=self.messages,
            commands=self.commands,
            lines={
                id: checker.Line(id=id, qualified=scenario.qualified, network_duplicates=scenario.faults.duplicate > 0)
                for id in self.lines
            },
            reached=self.reached,
            left=self.left,
            faults=self.faults,
            secrets=[line.options.password for line in self.lines.values()],
            ended=self.now(),
            wrong_clock=bool(scenario.clock_steps),
            # While the network stays bad, or the bridge's clock is wrong, only the limit of the whole run counts.
            settle_s=1e9
            if scenario.clock_steps or rough
            else 300.0 + 45.0 * (scenario.sms / scenario.lines + scenario.jobs),
            unknown_allowed=scenario.unknown,
            stuck_s=1e9 if scenario.clock_steps or rough else scenario.stuck_s,
        )

    def fingerprint(self) -> str:
        """The same for the same seed: what left the bridge, in its order."""
        digest = hashlib.blake2b(digest_size=8)
        for left in self.left:
            digest.update(f"{left.at:.6f} {left.line} ".encode() + left.data)
        for message in self.messages:
            digest.update(f"{message.at:.6f} {message.topic}".encode())
        return digest.hexdigest()


def _answers(data: bytes, reached: checker.Reached, line: str) -> bool:
    """Whether a datagram acknowledges one that reached us."""
    if reached.line != line or not reached.data.startswith((b"RECEIVE:", b"DELIVER:")):
        return reached.line == line
    kind, _, rest = reached.data.partition(b":")
    return data.startswith(kind + b" " + rest.partition(b";")[0])


def _lie(data: bytes, rng: random.Random) -> list[tuple[float, bytes]]:
    """What a box says instead of this answer, each after so many seconds; the truth comes, but not first, or late."""
    words = data.split()
    verb, session = words[0], words[1] if len(words) > 1 else b""
    if verb == b"PASSWORD":  # false busy
        return [(0.0, b"ERROR %b too_many_sends_in_server\n" % session)]
    if verb == b"WAIT":
        denial = rng.choice((b"SENDID", b"GSM_LOGOUT"))
        return [(0.0, b"ERROR %b %b\n" % (session, denial)), (rng.uniform(0.1, 4.0), data)]
    if verb == b"OK":
        other = b"OK %b %d 7\n" % (session, int(words[2]) + rng.choice((-1, 1)))
        return rng.choice(
            (
                [(0.0, b"ERROR %b SENDID\n" % session), (0.4, data)],
                [(0.0, other), (1.0, data)],
                [(rng.uniform(5.0, 120.0), data)],
                [(rng.uniform(30.0, 85.0), data)],
            )
        )
    if verb == b"DONE":
        return [(0.0, b"ERROR %b SENDID\n" % session)]
    return [(0.0, data)]


def _receiving(line: SimulatedLine, sender: str, text: str) -> Callable[[float], None]:
    return lambda now: line.receive_sms(sender, text, now)


class _Chance:
    """In the place of `secrets` and `random`: numbers from the seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.uniform = rng.uniform

    def token_hex(self, count: int) -> str:
        return self._rng.randbytes(count).hex()

    def randrange(self, *limits: int) -> int:
        return self._rng.randrange(*limits)


def _fix_chance(rng: random.Random) -> None:
    chance = _Chance(random.Random(rng.random()))
    app.secrets = app.random = batch.secrets = chance  # type: ignore[attr-defined, assignment]


# -- many runs


def simulate(
    scenario: Scenario, seed: int, crashes: tuple[int, ...] = (), *, arrives: bool | None = None
) -> tuple[checker.Report, Simulation]:
    """One run and its verdict."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        simulation = Simulation(scenario, seed, Path(folder), crashes, arrives=arrives)
        history = simulation.run()
    report = checker.check(history)
    report.violations += dialled_once(history)
    report.violations += outages_told(history)
    if scenario.urgent_s is not None:
        report.violations += urgent_in_time(history, scenario.urgent_s)
    report.violations = [each for each in report.violations if each.invariant not in scenario.waived]
    return report, simulation


def dialled_once(history: checker.History) -> Iterator[checker.Violation]:
    """A USSD code may recharge a SIM: whatever happens, it is dialled once at most."""
    dialled = Counter((record["line"], record["code"]) for record in history.radio if record["what"] == "ussd")
    for (line, code), count in dialled.items():
        if count > 1:
            yield checker.Violation(invariant="I3", message=f"{code} was dialled {count} times", evidence=line)


def urgent_in_time(history: checker.History, seconds: float) -> Iterator[checker.Violation]:
    """I13: an SMS with priority 9 does not wait long for those of its line or box that are less urgent."""
    by_line: dict[str, list[tuple[float, float, float, str]]] = {}
    for sms in checker.View(history).sms.values():
        if sms.wanted is not None and sms.wanted.priority == 9:
            times = {str(fact.payload["event_type"]): fact.happened for fact in reversed(sms.facts)}
            end = min((times[state] for state in checker.FINAL if state in times), default=history.ended)
            times_of = times["queued"], times.get("sending", history.ended), end, sms.msg
            by_line.setdefault(sms.line, []).append(times_of)
    for line, entries in by_line.items():
        free = 0.0  # when the one before it on this line was over
        for queued, sending, end, msg in sorted(entries, key=lambda entry: entry[1]):
            if sending - max(queued, free) > seconds:
                late = sending - max(queued, free)
                yield checker.Violation(
                    invariant="I13", message=f"an SMS with priority 9 waited {late:.0f} s", evidence=(line, msg)
                )
            free = max(free, end)


def outages_told(history: checker.History) -> Iterator[checker.Violation]:
    """What gateways say while nobody has the socket is lost, and nobody can know what it was: that is told."""
    told = [
        (datetime.fromisoformat(body["from"]).timestamp(), datetime.fromisoformat(body["to"]).timestamp())
        for message in history.messages
        if message.topic == "goip/bridge/event" and b'"outage_gap"' in message.payload
        for body in [json.loads(message.payload)]
    ]
    for fault in history.faults:
        if fault.kind != "host_kill" or fault.until - fault.at < 13.0 or fault.until > history.ended - 60.0:
            continue
        middle = (fault.at + fault.until) / 2
        if not any(begin <= middle <= end for begin, end in told):
            yield checker.Violation(
                invariant="I6", message="an outage that was not told", evidence=(fault.at, fault.until)
            )


def _memory() -> str | None:
    """A disk that costs nothing: a crash of a process does not lose what it wrote."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


SHORT = Scenario(name="short", lines=1, sms=3, inbound=2, keyless=0.34, radio_errors=0.0, faults=LAN)
"The run for crashes at every step: a single SMS, a job and an inbound SMS."


def every_crash(
    scenario: Scenario, seed: int, *, arrives: bool | None = None
) -> Iterator[tuple[tuple[int, ...], checker.Report]]:
    """A run for each effect of the first life, in which the process dies just there."""
    _, whole = simulate(scenario, seed)
    for step in range(1, whole.lives[0].effects + 1):
        report, _ = simulate(scenario, seed, (step,), arrives=arrives)
        yield (step,), report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="simulate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on with new seeds (60)")
    parser.add_argument("--sends", type=int, help="go on until so many SMS were sent, instead")
    parser.add_argument("--seed", type=int, help="the first seed, or the only one with --scenario")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), action="append", help="only these")
    parser.add_argument("--crashes", action="store_true", help="crash at every step of a short run")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    chosen = [SCENARIOS[name] for name in options.scenario or SCENARIOS]
    if options.crashes:
        return _crashes(options.seed or 1)
    if options.seed is not None and options.scenario and options.sends is None:
        return _replay(chosen[0], options.seed)
    seed = options.seed if options.seed is not None else 1
    return _explore(chosen, seed, options.seconds, options.sends)


def _replay(scenario: Scenario, seed: int) -> int:
    report, simulation = simulate(scenario, seed)
    print(json.dumps(report.counts.as_dict(), indent=2))
    print(f"{len(simulation.lives)} lives, {simulation.sends} SENDs, fingerprint {simulation.fingerprint()}")
    for violation in report.violations:
        print(violation)
    return 1 if report.violations else 0


def _explore(scenarios: list[Scenario], seed: int, seconds: float, sends: int | None) -> int:
    totals = {scenario.name: Counter[str]() for scenario in scenarios}
    begin = shown = time.monotonic()
    failed = 0

    def enough() -> bool:
        if sends is not None:
            return all(total["sends"] >= sends for total in totals.values())
        return time.monotonic() - begin >= seconds

    while not enough() and failed < 10:
        for scenario in scenarios:
            if sends is not None and totals[scenario.name]["sends"] >= sends:
                continue
            try:
                report, simulation = simulate(scenario, seed)
            except Exception as error:
                failed += 1
                print(f"\nFAILED --scenario {scenario.name} --seed {seed}: {error!r}")
                continue
            total = totals[scenario.name]
            total.update(report.counts.as_dict())
            total.update(
                runs=1, kills=len(simulation.lives) - 1, sends=simulation.sends, violations=len(report.violations)
            )
            if report.violations:
                failed += 1
                print(f"\nFAILED --scenario {scenario.name} --seed {seed}")
                for violation in report.violations[:5]:
                    print(f"  {violation}")
        seed += 1
        if sys.stderr.isatty() and time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"\rseed {seed}, {sum(total['sends'] for total in totals.values())} sends", end="", file=sys.stderr)
    _table(totals)
    print(f"seeds up to {seed - 1}, {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


def _table(totals: dict[str, Counter[str]]) -> None:
    columns = (
        "runs", "sends", "kills", "accepted", "sent", "failed", "unknown", "doubted", "outbound_lost",
        "outbound_doubled", "outbound_doubled_by_network", "false",
        "inbound_reached", "inbound_lost", "inbound_doubled",
    )  # fmt: skip
    heads = ("runs", "SENDs", "kills", "SMS", "sent", "failed", "unknown", "doubted", "lost", "double", "by net",
             "false", "in", "in lost", "in double")  # fmt: skip
    print()
    print(f"{'scenario':14}" + "".join(f"{head:>9}" for head in heads))
    for name, total in totals.items():
        print(f"{name:14}" + "".join(f"{total[column]:>9}" for column in columns))


def _crashes(seed: int) -> int:
    failed = 0
    for qualified in (True, False):
        scenario = replace(SHORT, qualified=qualified, profile="spec" if qualified else "repeat_unsafe_wait")
        runs = 0
        for steps, report in every_crash(scenario, seed, arrives=not qualified):
            runs += 1
            for violation in report.violations:
                failed += 1
                print(f"crash at {steps}, {scenario.profile}: {violation}")
        print(f"{scenario.profile}: a crash at each of {runs} steps")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
