"""Inbound SMS, from the datagram to the broker's acknowledgement, against a bare publisher of the same messages."""

import asyncio
import json
import multiprocessing
import os
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.gateways import Gateways
from benchmarks.harness import (
    BRIDGE_CORE,
    LOAD_CORE,
    BridgeProcess,
    Client,
    Table,
    WrongResultError,
    bridge,
    broker,
    filesystem,
    folder,
    line_names,
    rate,
)

LINES = 32
OUTSTANDING = 8
"Unacknowledged SMS of one line. A box has one; more lines, or more of each, are the same to the bridge."
TOTAL = 20_000
ROUNDS = 3
CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class Collected:
    """What a subscriber got, and when it had the last of it."""

    messages: list[tuple[str, bytes]]
    at: float


def run() -> Table:
    names = line_names(LINES)
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with folder() as place, broker(place) as broker_port:
        for _ in range(ROUNDS):
            with bridge(place, names, broker_port) as process:
                collected, seconds, cpu = measure(process, broker_port, names)
            check(collected, names, process)
            ours.append((seconds, cpu))
            theirs.append(_bare(broker_port, collected.messages))
            process.store.unlink()
        where = filesystem(place)
    size = len(collected.messages[0][1])
    ratio = statistics.median(bare[0] / bridge[0] for bridge, bare in zip(ours, theirs, strict=True))
    table = Table(f"Inbound SMS, datagram to PUBACK, durable on {where}, {LINES} lines × {OUTSTANDING} outstanding")
    table.add("bridge", rate(TOTAL, min(ours)[0]), f"best of {ROUNDS}; target 2,500/s")
    table.add("bare publisher", rate(TOTAL, min(theirs)[0]), f"best; paho on asyncio, QoS 1, {size} bytes")
    table.add("ratio", f"{ratio:.2f}", "median; target 0.50")
    for name, runs in (("CPU of the bridge", ours), ("CPU of the publisher", theirs)):
        cpu = min(cpu for _, cpu in runs)
        table.add(name, f"{cpu / TOTAL * 1e6:.0f} µs", f"each, so {rate(TOTAL, cpu)} with a core of its own")
    return table


def measure(process: BridgeProcess, broker_port: int, names: list[str]) -> tuple[Collected, float, float]:
    """One run; with its seconds, and those of the bridge's CPU time."""
    gateways = Gateways(names, process.udp_port)
    with _subscriber(broker_port, "bench/+/sms/in", TOTAL) as subscriber:
        gateways.keepalives(len(names) * 2)
        time.sleep(0.5)
        cpu, began = process.cpu(), time.monotonic()
        gateways.receives(TOTAL, OUTSTANDING)
        collected: Collected = subscriber.recv()
    gateways.close()
    return collected, collected.at - began, process.cpu() - cpu


def check(collected: Collected, names: list[str], process: BridgeProcess) -> None:
    """Every SMS exactly once, and none left behind; the bridge has ended."""
    recvids = Counter(json.loads(payload)["recvid"] for _, payload in collected.messages)
    if len(recvids) != TOTAL or len(collected.messages) != TOTAL:
        raise WrongResultError(f"{len(collected.messages)} publications of {len(recvids)} SMS, not {TOTAL} of each")
    if {topic for topic, _ in collected.messages} != {f"bench/{name}/sms/in" for name in names}:
        raise WrongResultError("not the topics of the lines")
    with closing(sqlite3.connect(process.store)) as db:
        (left,) = db.execute("SELECT count(*) FROM outbox WHERE topic LIKE '%/sms/in'").fetchone()
    if left:
        raise WrongResultError(f"{left} acknowledged messages are still in the outbox")


def _bare(broker_port: int, messages: list[tuple[str, bytes]]) -> tuple[float, float]:
    """The same messages from a publisher that does nothing else; its seconds, and those of its CPU time."""
    with _subscriber(broker_port, "bench/+/sms/in", TOTAL) as subscriber:
        ours, theirs = CONTEXT.Pipe()
        publisher = CONTEXT.Process(target=_publish, args=(theirs, broker_port, messages))
        publisher.start()
        seconds, cpu = ours.recv()
        publisher.join()
        collected: Collected = subscriber.recv()
    if len(collected.messages) != len(messages):
        raise WrongResultError("the bare publisher lost messages")
    return seconds, cpu


def _publish(pipe: Connection, broker_port: int, messages: list[tuple[str, bytes]]) -> None:
    os.sched_setaffinity(0, {BRIDGE_CORE})

    async def publish() -> None:
        client = Client(broker_port, "bare")
        await client.connect()
        began, cpu = time.monotonic(), time.process_time()
        await client.publish_all(messages)
        pipe.send((time.monotonic() - began, time.process_time() - cpu))
        client.close()

    asyncio.run(publish())


@contextmanager
def _subscriber(broker_port: int, topic: str, total: int) -> Iterator[Connection]:
    """A process that is subscribed, and sends what it `Collected` when it has so many, and half a second more."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_collect, args=(theirs, broker_port, topic, total))
    process.start()
    ours.recv()
    try:
        yield ours
    finally:
        process.join(10)
        process.kill()


def _collect(pipe: Connection, broker_port: int, topic: str, total: int) -> None:
    os.sched_setaffinity(0, {LOAD_CORE})
    messages: list[tuple[str, bytes]] = []

    async def collect() -> float:
        client = Client(broker_port, "collector")
        client.on_message = lambda message: messages.append((message.topic, bytes(message.payload)))
        await client.connect()
        await client.subscribe(topic)
        pipe.send("subscribed")
        await client.until(lambda: len(messages) >= total)
        at = time.monotonic()
        await asyncio.sleep(0.5)  # anything published twice comes now
        client.close()
        return at

    at = asyncio.run(collect())
    pipe.send(Collected(messages, at))
