"""Commands: how many SMS are accepted, and how fast they are handed to gateways."""

import asyncio
import json
import time
from typing import Any

import paho.mqtt.client as paho

from benchmarks.harness import (
    PASSWORD,
    TEXT,
    BridgeProcess,
    Client,
    Table,
    WrongResultError,
    bridge,
    broker,
    folder,
    line_names,
    rate,
)
from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator

LINES = 32
SINGLE = 5000
BULK = 1000
BULKS = 10


def run() -> Table:
    return asyncio.run(_run())


async def _run() -> Table:
    table = Table(f"Outbound SMS, {LINES} lines")
    names = line_names(LINES)
    with folder() as place, broker(place) as broker_port, bridge(place, names, broker_port) as process:
        caller = await _Caller.connect(broker_port)
        singles = [(names[n % LINES], _command(n, [_number(n)])) for n in range(SINGLE)]
        await _accept(table, process, caller, f"{SINGLE:,} commands of one number, accepted", singles, 1)
        bulks = [(names[n], _command(SINGLE + n, [_number(i) for i in range(BULK)])) for n in range(BULKS)]
        await _accept(table, process, caller, f"{BULKS} commands of {BULK:,} numbers, accepted", bulks, BULK)
        await _hand_over(table, process, caller)
        caller.client.close()
    return table


async def _accept(
    table: Table, process: BridgeProcess, caller: "_Caller", name: str, commands: list[tuple[str, bytes]], numbers: int
) -> None:
    """From the publish to the result; the lines are offline, so that nothing else happens."""
    caller.results.clear()
    began, cpu = time.monotonic(), process.cpu()
    await caller.client.publish_all((f"bench/{line}/cmd/sms", command) for line, command in commands)
    await caller.client.until(lambda: len(caller.results) >= len(commands))
    seconds, cpu = time.monotonic() - began, process.cpu() - cpu
    count = len(commands) * numbers
    table.add(name, rate(count, seconds), f"{cpu / count * 1e6:.0f} µs of CPU for each number")
    wrong = [result for result in caller.results.values() if result["code"] != "ok"]
    if wrong or len(caller.results) != len(commands):
        raise WrongResultError(f"{len(caller.results)} results of {len(commands)} commands; {wrong[:1]}")


async def _hand_over(table: Table, process: BridgeProcess, caller: "_Caller") -> None:
    """All of them, through gateways whose network takes no time."""
    total = SINGLE + BULK * BULKS
    options = SimOptions(
        server=("127.0.0.1", process.udp_port),
        lines=LINES,
        line=LineOptions(id="line%d", password=PASSWORD, wait=(0, 0), reports=0),
    )
    began, cpu = time.monotonic(), process.cpu()
    async with Simulator(options) as simulator:
        await caller.client.until(lambda: len(caller.sent) >= total, within=300)
        seconds, cpu = time.monotonic() - began, process.cpu() - cpu
        submitted = len([record for record in simulator.radio if record["what"] == "submit"])
    table.add("handed to the gateways", rate(total, seconds), f"{cpu / total * 1e6:.0f} µs of CPU for each number")
    if submitted != total or len(caller.sent) != total:
        raise WrongResultError(f"{submitted} SMS submitted and {len(caller.sent)} reported as sent, not {total}")


class _Caller:
    """Sends commands; keeps their results and what became of the SMS."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.results: dict[str, dict[str, Any]] = {}
        self.sent: set[str] = set()
        client.on_message = self._message

    @classmethod
    async def connect(cls, broker_port: int) -> "_Caller":
        client = Client(broker_port, "caller")
        await client.connect()
        for topic in ("bench/+/result/sms", "bench/+/delivery"):
            await client.subscribe(topic)
        return cls(client)

    def _message(self, message: paho.MQTTMessage) -> None:
        payload = json.loads(message.payload)
        if message.topic.endswith("result/sms"):
            self.results[payload["id"]] = payload
        elif payload["event_type"] == "sent":
            self.sent.add(payload["msg"])


def _command(n: int, numbers: list[str]) -> bytes:
    return json.dumps({"id": f"command-{n}", "to": numbers, "text": TEXT}).encode()


def _number(n: int) -> str:
    return f"+4915{n:09d}"
