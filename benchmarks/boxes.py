"""Both kinds of box with all lines busy: SMS a minute against what their sessions can carry, and the urgent ones."""

import asyncio
import json
from pathlib import Path
from typing import Literal

from benchmarks.harness import PASSWORD, Client, Table, WrongResultError, bridge, broker, folder, line_names
from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator

LINES = 16
SESSIONS = 5
RADIO_S = 3.5
"What an SMS takes, and how many times faster all of it is here: what the sessions cost besides weighs as much more."
FASTER = 5.0
WARM_S, MEASURED_S = 2.0, 14.0
JOB = 40
LEAST = 0.9
MOST_S = 30.0
"How long an SMS with priority 9 may wait, by the clock of the boxes."


def run() -> Table:
    return asyncio.run(_run())


async def _run() -> Table:
    table = Table(f"{LINES} busy lines of one box, {RADIO_S} s of radio for an SMS, {FASTER:.0f} times as fast")
    kinds: tuple[tuple[Literal["line", "box"], int], ...] = (("line", LINES), ("box", SESSIONS))
    for kind, slots in kinds:
        with folder() as place:
            await _measure(table, place, kind, slots)
    return table


async def _measure(table: Table, place: Path, kind: Literal["line", "box"], slots: int) -> None:
    names = line_names(LINES)
    wait = (RADIO_S, RADIO_S)
    line = LineOptions(
        id="line%d", password=PASSWORD, wait=wait, time_scale=FASTER, reports=0, sessions=SESSIONS, sessions_per=kind
    )
    with broker(place) as broker_port, bridge(place, names, broker_port) as process:
        client = Client(broker_port, "caller")
        await client.connect()
        options = SimOptions(server=("127.0.0.1", process.udp_port), lines=LINES, channels=LINES, line=line)
        async with Simulator(options) as simulator:
            await simulator.wait_registered(30)
            for number, name in enumerate(names):
                client.publish(
                    f"bench/{name}/cmd/sms", _command(f"job-{name}", [_number(number, n) for n in range(JOB)])
                )
            await asyncio.sleep(WARM_S)
            begun, cpu = simulator.now(), process.cpu()
            await asyncio.sleep(MEASURED_S / 2)
            urgent = simulator.now()
            for number, name in enumerate(names):
                client.publish(f"bench/{name}/cmd/sms", _command(f"urgent-{name}", [_number(number, 999)], 9))
            await asyncio.sleep(MEASURED_S / 2)
            ended, cpu = simulator.now(), process.cpu() - cpu
            submits = [record for record in simulator.radio if record["what"] == "submit"]
        client.close()
    sent = [float(str(record["at"])) for record in submits if begun <= float(str(record["at"])) < ended]
    waits = [float(str(record["at"])) - urgent for record in submits if str(record["to"]).endswith("999")]
    carry = slots * (ended - begun) / RADIO_S * FASTER
    a_minute = len(sent) / (ended - begun) * 60 / FASTER
    share, longest = len(sent) / carry, max(waits, default=0.0) * FASTER
    table.add(f"five sessions on each {kind}", f"{a_minute:.0f}/min", f"{share:.2f} of what {slots} can carry")
    table.add("  longest wait with priority 9", f"{longest:.1f} s", f"one on each line at once; at most {MOST_S:.0f} s")
    table.add("  CPU", f"{cpu / len(sent) * 1e6:.0f} µs", "for each SMS")
    if share < LEAST or len(waits) != LINES or longest > MOST_S:
        raise WrongResultError(f"{kind}: {share:.2f} of what can be carried, {len(waits)} urgent SMS, {longest:.1f} s")


def _command(id: str, numbers: list[str], priority: int = 5) -> bytes:
    return json.dumps({"id": id, "to": numbers, "text": "A short one", "priority": priority}).encode()


def _number(line: int, n: int) -> str:
    return f"+49151{line:04d}{n:04d}"
