"""A store that has grown: what it costs, and how long keepalives wait for their answers meanwhile."""

import contextlib
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateways import keepalive
from benchmarks.harness import BridgeProcess, Table, WrongResultError, bridge, broker, folder, line_names
from bridge.store.database import MIGRATIONS

ROWS = int(os.environ.get("BENCH_ROWS", "1000000"))
LINES = 32
"The first half sends keepalives; what is queued is for the other half, which is never heard."
WINDOW_S = 20.0
EVERY_S = 0.05
"Between two keepalives."
REPORTS, SENT = 2500, 5760
DAY = 86400.0
SCHEMA = 3
"Of the store that is made: the program brings it up to date."


@dataclass(frozen=True)
class Case:
    """What is in the store."""

    name: str
    rows: int = ROWS
    queued: int = 0
    age_s: float = 6 * DAY
    "How long ago the oldest changed; all since then, evenly."
    youngest_s: float = 0.0
    reports: int = 0
    numbers: int = 5000
    "To how many numbers they went."
    waits: str = ""
    "A statement that gives how many rows are still to be handled."


CASES = (
    Case("SMS that ended"),
    Case("of which 100,000 wait for lines that are away", queued=100_000),
    Case(
        "all of them to be forgotten", age_s=10 * DAY, youngest_s=8 * DAY, waits="SELECT count(*) FROM sms"
    ),
    Case(
        f"{SENT} SMS of 8 h to 50 numbers, {REPORTS} reports that fit none",
        rows=SENT, age_s=8 * 3600.0, numbers=50, reports=REPORTS, waits="SELECT count(*) FROM report",
    ),
    Case(
        "the same, all to one number",
        rows=SENT, age_s=8 * 3600.0, numbers=1, reports=REPORTS, waits="SELECT count(*) FROM report",
    ),
)  # fmt: skip


def run() -> Table:
    table = Table(
        f"A store that has grown: {ROWS:,} SMS, {LINES // 2} lines with {1 / EVERY_S:.0f} keepalives a second"
    )
    for case in CASES:
        with folder() as place, broker(place) as port:
            _fill(place / "bridge.db", case)
            began = time.monotonic()
            with bridge(place, line_names(LINES), port) as process:
                started = time.monotonic() - began
                with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as box:
                    cpu, longest, largest, seconds = _watch(process, box)
            left = _count(place / "bridge.db", case.waits) if case.waits else 0
            table.add(case.name, f"{longest * 1e3:.0f} ms", "the longest wait for the answer to a keepalive")
            after = f", {left:,} left after {seconds:.0f} s" if case.waits else ""
            table.add(
                "", f"{cpu / seconds:.1%}", f"of a core; start {started:.1f} s, WAL {largest / 2**20:.0f} MB{after}"
            )
    return table


def _fill(path: Path, case: Case) -> None:
    now = time.time()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        for script in MIGRATIONS[:SCHEMA]:
            db.executescript(script)
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO sms (msg, cmd, job, line, number, text, priority, guarantee, created, state, attempt, sendid, "
            "telid, sms_no, changed) VALUES (?, ?, NULL, ?, ?, ?, 5, 'effectively_once', ?, ?, ?, ?, ?, ?, ?)",
            _sms(case, now),
        )
        numbers = (
            (n % 256, f"+4930{n:07}") if case.numbers > 1 else (None, "+49301000000") for n in range(case.reports)
        )
        db.executemany(
            "INSERT INTO report (line, sms_no, state, number, at) VALUES (?, ?, 0, ?, ?)",
            ((f"line{LINES}", sms_no, number, now - 5) for sms_no, number in numbers),
        )
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _sms(case: Case, now: float) -> Iterator[tuple[object, ...]]:
    text = "Your code is 493021. It is valid for ten minutes; never tell it to anybody."
    for n in range(case.rows):
        changed = now - case.youngest_s - (case.age_s - case.youngest_s) * (1 - n / case.rows)
        # Reports are about one line; else all lines have the same share.
        line = f"line{LINES if case.reports else LINES // 2 + 1 + n % (LINES // 2)}"
        number, queued = f"+4930{1000000 + n % case.numbers}", n >= case.rows - case.queued
        if queued:
            yield f"m{n}", f"c{n}", line, number, text, changed, "queued", 0, None, None, None, changed
        else:
            sms_no = None if case.numbers == 1 else n % 256
            yield f"m{n}", f"c{n}", line, number, text, changed, "sent", 1, n + 1, 1, sms_no, changed


def _watch(process: BridgeProcess, box: socket.socket) -> tuple[float, float, int, float]:
    """CPU time, the longest wait for an answer, the largest WAL, and the seconds of all that."""
    box.connect(("127.0.0.1", process.udp_port))
    box.settimeout(30)
    wal = process.store.with_name("bridge.db-wal")
    names = line_names(LINES // 2)
    longest, largest, count, before = 0.0, 0, 0, process.cpu()
    began = time.monotonic()
    while (passed := time.monotonic() - began) < WINDOW_S:
        count += 1
        asked = time.monotonic()
        box.send(keepalive(names[count % len(names)], count))
        try:
            box.recv(2048)
        except TimeoutError:
            raise WrongResultError("a keepalive was not answered within 30 s") from None
        longest = max(longest, time.monotonic() - asked)
        with contextlib.suppress(OSError):
            largest = max(largest, wal.stat().st_size)
        time.sleep(max(0.0, count * EVERY_S - passed))
    return process.cpu() - before, longest, largest, time.monotonic() - began


def _count(path: Path, statement: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        count: int = db.execute(statement).fetchone()[0]
        return count
