"""Ten thousand lines: memory, drops, and what their keepalives cost at rest."""

import asyncio
import json
import time
from typing import Any

import paho.mqtt.client as paho

from benchmarks.harness import PASSWORD, Client, Table, WrongResultError, bridge, broker, folder, line_names
from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator

LINES = 10_000
STARTS_PER_S = 2000.0
REST_S = 65.0
"Two keepalives of each line, and `bridge/health` once."


def run() -> Table:
    return asyncio.run(_run())


async def _run() -> Table:
    table = Table(f"{LINES:,} simulated lines, a keepalive of each every 30 s")
    health: dict[str, Any] = {}
    with folder() as place, broker(place) as broker_port:
        began = time.monotonic()
        with bridge(place, line_names(LINES), broker_port) as process:
            table.add("start of the bridge", f"{time.monotonic() - began:.1f} s", "configuration read, connected")
            table.add("RSS, no line heard yet", f"{process.rss_mb():.0f} MB")
            client = Client(broker_port, "watch")
            client.on_message = lambda message: health.update(_health(message))
            await client.connect()
            await client.subscribe("bench/bridge/health")
            options = SimOptions(
                server=("127.0.0.1", process.udp_port),
                lines=LINES,
                line=LineOptions(id="line%d", password=PASSWORD),
                starts_per_second=STARTS_PER_S,
                keep_radio=False,
            )
            began, cpu = time.monotonic(), process.cpu()
            async with Simulator(options) as simulator:
                await simulator.wait_registered(120)
                table.add("all registered", f"{time.monotonic() - began:.1f} s", f"they start at {STARTS_PER_S:,.0f}/s")
                table.add("CPU until then", f"{process.cpu() - cpu:.1f} s")
                await asyncio.sleep(10)  # the states of all lines are published
                table.add("RSS, all online", f"{process.rss_mb():.0f} MB", "target: under 300 MB")
                began, cpu = time.monotonic(), process.cpu()
                await asyncio.sleep(REST_S)
                share = (process.cpu() - cpu) / (time.monotonic() - began)
                table.add("CPU at rest", f"{share:.1%}", "of one core")
                table.add("RSS after that", f"{process.rss_mb():.0f} MB")
            drops = process.kernel_drops()
            client.close()
    table.add("kernel drops", f"{drops}", "target: 0")
    table.add("longest stall of the loop", f"{health['loop_lag_ms']:.0f} ms", "in the last minute")
    if drops or health["udp"]["dropped"] or health["lines"]["online"] != LINES:
        raise WrongResultError(f"kernel drops {drops}; {health}")
    return table


def _health(message: paho.MQTTMessage) -> dict[str, Any]:
    health: dict[str, Any] = json.loads(message.payload)
    return health
