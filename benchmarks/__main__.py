"""`python -m benchmarks [name …]`."""

import argparse
import os
import sys

from benchmarks import boxes, breakdown, growth, inbound, keepalives, lines, outbound
from benchmarks.harness import CORES, LOAD_CORE, WrongResultError

ALL = {
    "keepalives": keepalives.run,
    "inbound": inbound.run,
    "lines": lines.run,
    "outbound": outbound.run,
    "boxes": boxes.run,
    "breakdown": breakdown.run,
    "growth": growth.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the bridge.")
    parser.add_argument("names", nargs="*", choices=[*ALL, []], metavar="name", help=f"{', '.join(ALL)}; default: all")
    names = parser.parse_args().names or list(ALL)
    if len(CORES) < 2:
        print("Only one core: the load takes from the bridge what it measures.")
    os.sched_setaffinity(0, {LOAD_CORE})
    failed = False
    for name in names:
        try:
            ALL[name]().show()
        except WrongResultError as error:
            failed = True
            print(f"\n{name}: WRONG: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
