"""The bridge with stopwatches: `python -m benchmarks.timed run --config FILE` writes `timed.json` beside FILE.

Every step is timed without the steps inside it, in CPU time: a neighbour on the same core does not count. Only the
commit waits, for the disk, and its wall time is kept too.
"""

import functools
import json
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge import __main__ as program
from bridge.app import bridge as app
from bridge.features import batch, ledger
from bridge.goip import server, wire
from bridge.mqtt import link as mqtt
from bridge.mqtt import publisher
from bridge.system import udp

RECEIVE, DECODE, CORE, LEDGER = "UDP receive", "decode", "protocol core", "ledger"
JSON, STATEMENTS, COMMIT, DISK = "JSON and timestamps", "SQLite statements", "SQLite commit", "waiting for the disk"
ANSWER, EFFECT, PUMP, QUEUE = "UDP answer", "effects of the batch", "rest of the pump", "publisher"
PUBLISH, PAHO, REST = "MQTT publish (paho)", "MQTT write and PUBACK (paho)", "event loop and all else"

STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    RECEIVE: ((udp.UdpSocket, "drain"),),
    DECODE: ((wire, "decode"),),
    CORE: ((server.SmsServer, "receive_datagram"), (server.SmsServer, "take_events")),
    LEDGER: ((ledger.Ledger, "record"),),
    JSON: (
        (batch, "encode"), (batch, "timestamp"), (publisher, "encode"), (publisher, "stamped"),
    ),
    ANSWER: ((udp.UdpSocket, "send"),),
    EFFECT: ((app.Bridge, "_take_effect"),),
    PUMP: ((app.Bridge, "datagrams_received"), (app.Bridge, "published"), (app.Bridge, "_second")),
    QUEUE: ((publisher.Publisher, "drain"), (publisher.Publisher, "acknowledged")),
    PUBLISH: ((mqtt.MqttLink, "publish"),),
    PAHO: ((mqtt._Connection, "_on_readable"), (mqtt._Connection, "_on_writable")),
}  # fmt: skip

spent: dict[str, float] = defaultdict(float)
_inside = [0.0]
"For each step under way: the time of the steps inside it."


def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which adds its own time to a step's."""
    clock = time.thread_time

    @functools.wraps(work)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        _inside.append(0.0)
        try:
            return work(*args, **kwargs)
        finally:
            took = clock() - began
            spent[name] += took - _inside.pop()
            _inside[-1] += took

    return call


class _Connection(sqlite3.Connection):
    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        cursor: sqlite3.Cursor
        if sql != "COMMIT":
            cursor = _statement(self, sql, *args)
            return cursor
        wall, cpu = time.perf_counter(), spent[COMMIT]
        cursor = _commit(self, sql)
        spent[DISK] += time.perf_counter() - wall - (spent[COMMIT] - cpu)
        spent["commits"] += 1
        return cursor

    def executemany(self, sql: str, rows: Any, /) -> sqlite3.Cursor:
        cursor: sqlite3.Cursor = _statements(self, sql, rows)
        return cursor


def _serving(start: Callable[[udp.UdpSocket], None]) -> Callable[[udp.UdpSocket], None]:
    """Forget what the start of the program cost."""

    def call(self: udp.UdpSocket) -> None:
        spent.clear()
        spent[REST] = -time.process_time()
        start(self)

    return call


_statement = timed(STATEMENTS, sqlite3.Connection.execute)
_statements = timed(STATEMENTS, sqlite3.Connection.executemany)
_commit = timed(COMMIT, sqlite3.Connection.execute)


def main() -> int:
    for name, places in STEPS.items():
        for owner, attribute in places:
            setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    setattr(udp.UdpSocket, "start", _serving(udp.UdpSocket.start))  # noqa: B010
    setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=_Connection))  # noqa: B010
    code = program.main()
    known = sum(spent[name] for name in (*STEPS, STATEMENTS, COMMIT))
    spent[REST] += time.process_time() - known
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    (config.parent / "timed.json").write_text(json.dumps(spent))
    return code


if __name__ == "__main__":
    sys.exit(main())
