"""Keepalives: how many one core answers, and where the time goes."""

import time

from benchmarks.gateways import Gateways, keepalive
from benchmarks.harness import PASSWORD, Table, WrongResultError, bridge, broker, folder, line_names, rate
from bridge.goip import wire
from bridge.goip.server import LineConfig, SmsServer
from bridge.goip.timing import Timing

LINES = 128
TOTAL = 100_000
ROUNDS = 3


def run() -> Table:
    table = Table(f"Keepalives, {LINES} lines, real UDP over loopback (target 25,000/s on one core)")
    decode, core = _core_only()
    names = line_names(LINES)
    results: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with folder() as place, broker(place) as broker_port, bridge(place, names, broker_port) as process:
        gateways = Gateways(names, process.udp_port)
        gateways.keepalives(LINES * 20)
        for _ in range(ROUNDS):
            for changing, found in results.items():
                before = process.cpu()
                seconds = gateways.keepalives(TOTAL, changing=changing)
                found.append((seconds, process.cpu() - before))
        gateways.close()
        drops = process.kernel_drops()
    table.add("decode only", rate(TOTAL, decode), f"{decode / TOTAL * 1e6:.1f} µs each")
    table.add("core only, no socket", rate(TOTAL, core), f"{core / TOTAL * 1e6:.1f} µs each")
    for changing, found in results.items():
        seconds, cpu = min(found)
        name = "bridge, signal changes each time" if changing else "bridge, nothing new in them"
        costs = f"{cpu / TOTAL * 1e6:.1f} µs of CPU each, so {rate(TOTAL, cpu)} with a core of its own"
        table.add(name, rate(TOTAL, seconds), costs)
    table.add("kernel drops", str(drops))
    return table


def _core_only() -> tuple[float, float]:
    """Seconds of CPU for decoding them all, and for all the protocol core does."""
    names = line_names(LINES)
    now = time.monotonic()
    server = SmsServer(
        [LineConfig(name=name, goip_id=name, password=PASSWORD) for name in names], Timing(), next_sendid=1, now=now
    )
    datagrams = [
        (keepalive(name, count), ("127.0.0.1", 10000 + i))
        for count in range(1, TOTAL // LINES + 2)
        for i, name in enumerate(names)
    ][:TOTAL]
    answers, decode, core = 0, 0.0, 0.0
    for first in range(0, TOTAL, LINES):
        batch = datagrams[first : first + LINES]
        began = time.thread_time()
        for data, _ in batch:
            wire.decode(data)
        middle = time.thread_time()
        for data, address in batch:
            server.receive_datagram(data, address, now)
        server.take_events()
        answers += len(server.take_datagrams())
        decode += middle - began
        core += time.thread_time() - middle
    if answers != TOTAL:
        raise WrongResultError(f"{answers} of {TOTAL} keepalives were answered")
    return decode, core
