"""`goip-bridge monitor`: the lines, their queues and their traffic, live in the terminal.

`Board` is what is known: messages in, rows out, no connection. It shows what the bridge publishes and asks for nothing.
"""

import argparse
import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge import client as mqtt
from bridge import terminal
from bridge.client import Client, ClientError
from bridge.settings import Settings
from bridge.topics import Topics

BIRTH_S = 3.0
QUIET_S = 0.3
"After this long without another retained message we have seen them all."
REFRESH_S = 0.25
FACTS = 8
WIDE = 110
"From this many columns on everything fits."
FACT_PATHS = ("sms/in", "delivery", "call", "ussd", "event")
STATE_PATHS = ("availability", "state", "stats", "sms/last")
# What a delivery fact changes in the counts that the bridge publishes once a minute: (queued, active), and today's.
QUEUE_STEPS = {"queued": (1, 0), "sending": (-1, 1), "expired": (-1, 0), "cancelled": (-1, 0)}
TODAY_STEPS = {
    "sent": "sent", "delivered": "delivered", "failed": "failed", "undelivered": "failed", "unknown": "unknown",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge monitor`."""
    parser.description = "Watch the lines, their queues and their traffic. Ctrl-C ends it."
    mqtt.add_arguments(parser)
    parser.add_argument("--once", action="store_true", help="print what is true now, and end")


def main(args: argparse.Namespace) -> int:
    """Watch until Ctrl-C; with --once 0 when a bridge was found."""
    return mqtt.run(args, lambda settings: watch(settings, terminal.console(), once=args.once))


async def watch(settings: Settings, console: Console, *, once: bool) -> int:
    """Connect, and show what comes."""
    topics = Topics(settings.base_topic)
    async with mqtt.connect(settings, "monitor") as client:
        board = Board(topics, client.url)
        reader = _Reader(client, board)
        reading = asyncio.create_task(reader.read())
        try:
            await _subscribe(client, topics)
            await reader.until_known(reading)
            if once:
                console.print(board.render(console.width, None))
            elif console.is_terminal:
                await _live(console, board, reading)
            else:
                await _log(console, board, reading)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    return 0


async def _subscribe(client: Client, topics: Topics) -> None:
    filters = [topics.bridge(path) for path in ("info", "health", "lines", "event")]
    filters += [topics.line("+", path) for path in (*STATE_PATHS, *FACT_PATHS)]
    refused = await client.listen(*filters, qos=0)
    # Last, so that its retained message comes behind the others.
    refused += await client.listen(topics.bridge("availability"), qos=0)
    if refused:
        raise ClientError(f"the broker does not let us read {', '.join(refused)}: allow it in its ACL")


async def _live(console: Console, board: "Board", reading: asyncio.Task[None]) -> None:
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while not reading.done():
            live.update(board.render(console.width, console.height), refresh=True)
            await asyncio.wait([reading], timeout=REFRESH_S)
    reading.result()


async def _log(console: Console, board: "Board", reading: asyncio.Task[None]) -> None:
    """Not a terminal: what is true now, then each fact as a line."""
    console.print(board.render(console.width, None))
    board.on_fact = lambda text: console.print(text, soft_wrap=True)
    await reading


class _Reader:
    """Feeds the board."""

    def __init__(self, client: Client, board: "Board") -> None:
        self._client = client
        self._board = board
        self._heard = asyncio.Event()

    async def read(self) -> None:
        async for message in self._client.messages:
            self._board.take(str(message.topic), bytes(message.payload), retained=message.retain)
            self._heard.set()

    async def until_known(self, reading: asyncio.Task[None]) -> None:
        """Until the retained state is here. ClientError when there is no bridge."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BIRTH_S):
                while self._board.online is None and not reading.done():
                    self._heard.clear()
                    await self._heard.wait()
        if reading.done():
            reading.result()
        if self._board.online is None:
            topic = self._board.topics.bridge("availability")
            raise ClientError(f"no bridge is known at {self._client.url}: nothing on {topic}; is base_topic right?")
        with contextlib.suppress(TimeoutError):
            while True:
                self._heard.clear()
                async with asyncio.timeout(QUIET_S):
                    await self._heard.wait()


@dataclass(slots=True)
class Line:
    """What is known of a line."""

    id: str
    name: str = ""
    online: bool | None = None
    state: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    steps: Counter[str] = field(default_factory=Counter)
    "What the facts since the last stats add to them."

    def today(self, name: str) -> int:
        """A counter of today."""
        return int(self.stats.get("today", {}).get(name, 0)) + self.steps[name]

    def queue(self, name: str) -> int:
        """`queued` or `active`."""
        return max(0, int(self.stats.get("queue", {}).get(name, 0)) + self.steps[name])


class Board:
    """Everything that was heard."""

    def __init__(self, topics: Topics, url: str) -> None:
        self.topics = topics
        self.online: str | None = None
        "What `bridge/availability` says."
        self.on_fact: Callable[[Text], None] | None = None
        self._url = url
        self._lines: dict[str, Line] = {}
        self._bridge: dict[str, dict[str, Any]] = {"info": {}, "health": {}}
        self._facts: deque[Text] = deque(maxlen=FACTS)

    # -- in

    def take(self, topic: str, payload: bytes, *, retained: bool = False) -> None:
        """A message from the broker."""
        target, _, path = terminal.clean(topic).removeprefix(f"{self.topics.base}/").partition("/")
        if path == "availability":
            self._take_availability(target, mqtt.read_text(payload))
            return
        fields = mqtt.read(payload)
        if payload and not fields:
            return
        if target == "bridge":
            self._take_bridge(path, fields)
        elif path in STATE_PATHS:
            self._take_state(self._line(target), path, fields)
        elif path in FACT_PATHS and fields and not retained:
            self._take_fact(self._line(target), path, fields)

    def _take_availability(self, target: str, said: str) -> None:
        if target == "bridge":
            self.online = said
        elif said:
            self._line(target).online = said == "online"

    def _take_bridge(self, path: str, fields: dict[str, Any]) -> None:
        if path == "lines":
            known = {one["id"]: one for one in fields.get("lines", [])}
            self._lines = {id: self._line(id) for id in known}  # in the bridge's order, without those that are gone
            for id, one in known.items():
                line = self._lines[id]
                line.name = one["name"] or ""
                if line.online is None:  # a line never heard has no availability for a while
                    line.online = one["online"]
        elif path == "event":
            self._add_fact("bridge", path, fields)
        else:
            self._bridge[path] = fields

    def _take_state(self, line: Line, path: str, fields: dict[str, Any]) -> None:
        if path == "stats":
            line.stats = fields
            line.steps.clear()
        elif path == "state":
            line.state = fields
        else:
            line.last = fields

    def _take_fact(self, line: Line, path: str, fields: dict[str, Any]) -> None:
        event_type = str(fields.get("event_type"))
        if path == "sms/in":
            line.steps["received"] += 1
        elif path == "delivery":
            if event_type in TODAY_STEPS:
                line.steps[TODAY_STEPS[event_type]] += 1
            # A report comes when the SMS is no longer active; what is queued again was active.
            queued, active = QUEUE_STEPS.get(event_type, (0, 0 if fields.get("evidence") == "report" else -1))
            line.steps["queued"] += queued
            line.steps["active"] += active - (event_type == "queued" and bool(fields.get("attempt")))
        self._add_fact(line.id, path, fields)

    def _add_fact(self, target: str, path: str, fields: dict[str, Any]) -> None:
        event_type = str(fields.get("event_type"))
        style = "red" if event_type in ("failed", "undelivered", "unknown", "line_offline") else "bold"
        text = Text(f"{_clock(fields.get('at'))} {target:8} {path:8} ")
        text.append(event_type, style=style)
        told = ("line", "from", "to", "number", "code", "text", "message", "cause")
        details = [str(fields[key]) for key in told if fields.get(key) is not None]
        if fields.get("error"):
            details.append(str(fields["error"].get("text")))
        text.append(f" {' · '.join(details)}")
        self._facts.append(text)
        if self.on_fact is not None:
            self.on_fact(text)

    def _line(self, id: str) -> Line:
        return self._lines.setdefault(id, Line(id))

    # -- out

    def render(self, width: int, height: int | None) -> Group:
        """The whole board; the lines that don't fit into `height` are only counted."""
        facts = list(self._facts)
        room = len(self._lines) if height is None else max(1, height - 7 - FACTS)
        lines = list(self._lines.values())
        parts: list[Table | Text] = [*self._head(), self._table(lines[:room], wide=width >= WIDE)]
        if not lines:
            parts.append(Text("no lines are configured", style="yellow"))
        if len(lines) > room:
            parts.append(Text(f"… and {len(lines) - room} more lines", style="dim"))
        if facts:
            parts.append(Text())
        for fact in facts:
            fact = fact.copy()
            fact.truncate(width, overflow="ellipsis")
            parts.append(fact)
        return Group(*parts)

    def _head(self) -> list[Text]:
        info, health = self._bridge["info"], self._bridge["health"]
        first = Text(f"{self.topics.base} at {self._url}: bridge ")
        first.append(self.online or "unknown", style="bold green" if self.online == "online" else "bold red")
        first.append(f", version {info.get('version', '?')}")
        if not health:
            return [first]
        outbox, udp = health["outbox"], health["udp"]
        online = sum(bool(line.online) for line in self._lines.values())
        second = Text(
            f"up {_duration(health['uptime_s'])} · {online}/{len(self._lines)} lines online · "
            f"outbox {outbox['count']} · UDP {udp['received']} in, {udp['sent']} out"
        )
        for bad in ("malformed", "unauthorized", "dropped"):
            if udp[bad]:
                second.append(f", {udp[bad]} {bad}", style="yellow")
        return [first, second, Text("sent, dlvrd (delivered), fail, rcvd (received): today, UTC", style="dim")]

    def _table(self, lines: list[Line], *, wide: bool) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold underline")
        for title, columns in COLUMNS.items():
            if wide or columns.narrow:
                table.add_column(title, justify=columns.justify, no_wrap=True, max_width=columns.width)
        for line in lines:
            table.add_row(*(column.cell(line) for column in COLUMNS.values() if wide or column.narrow))
        return table


# -- columns


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table."""

    cell: Callable[[Line], Text]
    width: int
    narrow: bool = True
    "Whether it is there on 80 columns too."
    justify: Any = "left"


def _online(line: Line) -> Text:
    problems = line.state.get("problems", [])
    if line.online is None:
        return Text("?", "yellow")
    if not line.online:
        return Text("offline", "red")
    return Text(problems[0], "yellow") if problems else Text("online", "green")


def _signal(line: Line) -> Text:
    percent = line.state.get("signal", {}).get("percent")
    if percent is None:
        return Text("-")
    return Text(f"{percent} %", "green" if percent >= 50 else "yellow" if percent >= 25 else "red")


def _call(line: Line) -> Text:
    call = line.state.get("call", {})
    state = call.get("state")
    return Text("-" if state in (None, "idle") else f"{state} {call.get('number') or ''}".strip())


def _queue(line: Line) -> Text:
    queued, active = line.queue("queued"), line.queue("active")
    return Text(f"{queued}+{active}" if active else str(queued), "bold" if queued or active else "")


def _last(line: Line) -> Text:
    if not line.last:
        return Text("-")
    return Text(f"{_clock(line.last.get('at'))} {line.last.get('from') or ''}".strip())


def _today(name: str) -> Callable[[Line], Text]:
    return lambda line: Text(str(line.today(name)), "red" if name == "failed" and line.today(name) else "")


COLUMNS = {
    "line": Column(lambda line: Text(line.id), 16),
    "name": Column(lambda line: Text(line.name or "-"), 16, narrow=False),
    "state": Column(_online, 12),
    "signal": Column(_signal, 6, justify="right"),
    "operator": Column(lambda line: Text(line.state.get("gsm", {}).get("operator") or "-"), 14, narrow=False),
    "call": Column(_call, 12),
    "queue": Column(_queue, 6, justify="right"),
    "sent": Column(_today("sent"), 5, justify="right"),
    "dlvrd": Column(_today("delivered"), 5, justify="right"),
    "fail": Column(_today("failed"), 5, justify="right"),
    "rcvd": Column(_today("received"), 5, justify="right"),
    "last SMS": Column(_last, 22, narrow=False),
}
"""The counters are those of today."""


def _clock(at: Any) -> str:
    """The local time of day."""
    try:
        return datetime.fromisoformat(str(at)).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return "--:--:--"


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
