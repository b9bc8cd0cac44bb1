"""Where the time of an inbound SMS goes."""

import json

from benchmarks import inbound, timed
from benchmarks.harness import Table, bridge, broker, filesystem, folder, line_names


def run() -> Table:
    names = line_names(inbound.LINES)
    with folder() as place, broker(place) as broker_port:
        with bridge(place, names, broker_port, program=("benchmarks.timed", "run")) as process:
            collected, _, _ = inbound.measure(process, broker_port, names)
        inbound.check(collected, names, process)
        spent: dict[str, float] = json.loads((place / "timed.json").read_text())
        where = filesystem(place)
    commits, disk = spent.pop("commits"), spent.pop(timed.DISK)
    total = sum(spent.values())
    table = Table("Cost of one inbound SMS, µs of CPU (stopwatches included)")
    order = [*timed.STEPS]
    order[4:5] = [timed.JSON, timed.STATEMENTS, timed.COMMIT]
    for name in (*order, timed.REST):
        table.add(name, f"{spent[name] / inbound.TOTAL * 1e6:.1f}", f"{spent[name] / total:4.0%}")
    table.add("all", f"{total / inbound.TOTAL * 1e6:.1f}")
    table.add(timed.DISK, f"{disk / inbound.TOTAL * 1e6:.1f}", f"wall time on {where}, or for the processor")
    table.add("SMS per commit", f"{inbound.TOTAL / commits:.0f}", f"{commits:,.0f} commits")
    return table
