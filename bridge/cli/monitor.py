"""`goip-bridge monitor`: the lines, their queues and their traffic, live in the terminal.

`Board` is what is known: messages in, rows out, no connection. It shows what the bridge publishes and asks for nothing.
"""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
import time
import tty
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..config.settings import Settings
from ..contract.topics import Topics
from ..system import terminal
from . import client as mqtt
from .client import Client, ClientError

BIRTH_S = 3.0
QUIET_S = 0.3
"After this long without another retained message we have seen them all."
REFRESH_S = 0.25
FACTS = 8
SEEN = 1000
"Facts whose ids are remembered: they come at least once."
STALE_S = 180.0
"The bridge publishes its health every 60 s."
WIDE = 110
"From this many columns on everything fits."
FACT_PATHS = ("sms/in", "delivery", "call", "ussd", "event")
STATE_PATHS = ("availability", "state", "stats", "sms/last")
# What a delivery fact changes in the counts that the bridge publishes once a minute: (queued, active), and today's.
QUEUE_STEPS = {"queued": (1, 0), "sending": (-1, 1), "expired": (-1, 0), "cancelled": (-1, 0)}
TODAY_STEPS = {
    "sent": "sent", "delivered": "delivered", "failed": "failed", "undelivered": "failed", "unknown": "unknown",
}  # fmt: skip
KEYS = {
    "\x1b[A": "up", "\x1bOA": "up", "k": "up", "\x1b[B": "down", "\x1bOB": "down", "j": "down",
    "\x1b[5~": "page up", "\x1b[6~": "page down", " ": "page down",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home", "g": "home",
    "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end", "G": "end", "q": "quit",
}  # fmt: skip
"What terminals send for a key, as xterm and the Linux console have it."
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|.", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge monitor`."""
    parser.description = (
        "Watch the lines, their queues and their traffic. Arrows, PgUp, PgDn, Home and End scroll; q or Ctrl-C ends it."
    )
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
                console.print(board.render(console.width, None, time.time()))
            elif console.is_terminal:
                await _live(console, board, reading)
            else:
                await _log(console, board, reading)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    return 0


async def _subscribe(client: Client, topics: Topics) -> None:
    filters = [topics.bridge(path) for path in ("info", "health", "lines")]
    # With a line's events come those of the bridge: brokers deliver twice what two filters match.
    filters += [topics.line("+", path) for path in (*STATE_PATHS, *FACT_PATHS)]
    refused = await client.listen(*filters, qos=0)
    # Last, so that its retained message comes behind the others.
    refused += await client.listen(topics.bridge("availability"), qos=0)
    if refused:
        raise ClientError(f"the broker does not let us read {', '.join(refused)}: allow it in its ACL")


async def _live(console: Console, board: "Board", reading: asyncio.Task[None]) -> None:
    loop, changed, ended = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def press(key: str) -> None:
        if key == "quit":
            ended.set()
        else:
            board.scroll(key)
        changed.set()

    for number in (signal.SIGTERM, signal.SIGHUP):  # or the terminal stays as it is meanwhile
        loop.add_signal_handler(number, press, "quit")
    with Live(console=console, auto_refresh=False, screen=True) as live, _keys(press):
        while not reading.done() and not ended.is_set():
            live.update(board.render(console.width, console.height, time.time()), refresh=True)
            changed.clear()
            pressed = asyncio.create_task(changed.wait())
            await asyncio.wait([reading, pressed], timeout=REFRESH_S, return_when=asyncio.FIRST_COMPLETED)
            pressed.cancel()
    if reading.done():
        reading.result()


@contextlib.contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Each key that means something is handed over when it is pressed, and not shown; Ctrl-C is still Ctrl-C."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    loop, terminal_in = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        text = os.read(terminal_in, 1024).decode(errors="replace")
        for key in _KEY.findall(text):
            if key in KEYS:
                press(KEYS[key])

    def take() -> None:
        tty.setcbreak(terminal_in)

    before = termios.tcgetattr(terminal_in)
    take()
    loop.add_signal_handler(signal.SIGCONT, take)  # the shell had it meanwhile
    loop.add_reader(terminal_in, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal_in)
        termios.tcsetattr(terminal_in, termios.TCSADRAIN, before)


async def _log(console: Console, board: "Board", reading: asyncio.Task[None]) -> None:
    """Not a terminal: what is true now, then each fact as a line."""
    console.print(board.render(console.width, None, time.time()))
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

    @property
    def unwell(self) -> bool:
        """Whether it is known to be offline, or to have a problem."""
        return self.online is False or (self.online is True and bool(self.state.get("problems")))


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
        self._seen: deque[Any] = deque(maxlen=SEEN)
        self._top = 0
        "The first line that is shown, where not all fit."
        self._page = 1

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
        if path in FACT_PATHS:
            if fields and not retained and self._is_new(fields.get("id")):
                self._take_fact(target, path, fields)
        elif target == "bridge":
            self._take_bridge(path, fields)
        elif path in STATE_PATHS:
            self._take_state(self._line(target), path, fields)

    def _is_new(self, id: Any) -> bool:
        if id is not None and id in self._seen:
            return False
        self._seen.append(id)
        return True

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

    def _take_fact(self, target: str, path: str, fields: dict[str, Any]) -> None:
        if target != "bridge":
            self._count(self._line(target), path, fields)
        self._add_fact(target, path, fields)

    def _count(self, line: Line, path: str, fields: dict[str, Any]) -> None:
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

    def _add_fact(self, target: str, path: str, fields: dict[str, Any]) -> None:
        event_type = str(fields.get("event_type"))
        style = "red" if event_type in ("failed", "undelivered", "unknown", "line_offline") else "bold"
        text = Text(f"{_clock(fields.get('at'))} {target:8} {path:8} ")
        text.append(event_type, style=style)
        told = ("line", "from", "to", "number", "code", "text", "message", "cause")
        details = [str(fields[key]) for key in told if fields.get(key) is not None]
        if fields.get("error"):
            details.append(mqtt.reason(fields["error"]))
        text.append(f" {' · '.join(details)}")
        self._facts.append(text)
        if self.on_fact is not None:
            self.on_fact(text)

    def _line(self, id: str) -> Line:
        return self._lines.setdefault(id, Line(id))

    # -- out

    def scroll(self, key: str) -> None:
        """`up`, `down`, `page up`, `page down`, `home`, `end`: what `render` shows next, where not all lines fit."""
        last = max(0, len(self._lines) - self._page)
        steps = {"up": -1, "down": 1, "page up": -self._page, "page down": self._page, "home": -last, "end": last}
        self._top = max(0, min(self._top + steps[key], last))

    def render(self, width: int, height: int | None, now: float) -> Group:
        """The whole board; of lines that don't all fit into `height` those that need a look come first, and the rest is
        there to be scrolled to. `now` is Unix time.
        """
        head, lines = self._head(now), list(self._lines.values())
        if self.online != "online":  # what is retained of them is from before
            lines = [replace(line, online=None) for line in lines]
        facts = list(self._facts)
        if height is not None:
            facts = facts[max(0, len(facts) - max(0, height - len(head) - 6)) :]
        rest = len(head) + 1 + (1 + len(facts) if facts else 0)
        parts: list[Table | Text] = [*head]
        if height is None or len(lines) <= height - rest:
            parts.append(self._table(lines, wide=width >= WIDE))
        else:
            parts += self._some(lines, max(1, height - rest - 1), wide=width >= WIDE)
        if not lines:
            parts.append(Text("no lines are configured", style="yellow"))
        if facts:
            parts.append(Text())
        for fact in facts:
            fact = fact.copy()
            fact.truncate(width, overflow="ellipsis")
            parts.append(fact)
        return Group(*parts)

    def _some(self, lines: list[Line], room: int, *, wide: bool) -> list[Table | Text]:
        """A page of the lines, and what is not in it."""
        self._page = room
        first = self._top = max(0, min(self._top, len(lines) - room))
        ordered = sorted(lines, key=lambda line: not line.unwell)
        footer = f"lines {first + 1} to {first + room} of {len(lines)}"
        if unwell := sum(line.unwell for line in lines):
            footer += f", those that are not well ({unwell}) first"
        return [
            self._table(ordered[first : first + room], wide=wide),
            Text(f"{footer}; arrows, PgUp, PgDn; q ends", style="dim", no_wrap=True, overflow="ellipsis"),
        ]

    def _head(self, now: float) -> list[Text]:
        info, health = self._bridge["info"], self._bridge["health"]
        first = Text(f"{self.topics.base} at {self._url}: bridge ")
        first.append(self.online or "unknown", style="bold green" if self.online == "online" else "bold red")
        first.append(f", version {info.get('version', '?')}")
        if not health:
            return [first]
        since, at = _unix(info.get("started_at")), _unix(health.get("ts"))
        age = None if at is None else max(0, int(now - at))
        second = Text()
        if self.online != "online":
            second.append("the lines are shown as it left them", style="yellow")
        else:
            up = health["uptime_s"] if since is None else int(now - since)
            online = sum(bool(line.online) for line in self._lines.values())
            second.append(f"up {_duration(max(0, up))} · {online}/{len(self._lines)} lines online")
        outbox, udp = health["outbox"], health["udp"]
        second.append(f" · outbox {outbox['count']} · UDP {udp['received']} in, {udp['sent']} out")
        for bad in ("malformed", "unauthorized", "dropped"):
            if udp[bad]:
                second.append(f", {udp[bad]} {bad}", style="yellow")
        if age is not None:
            second.append(f" ({_duration(age)} ago)", style="bold red" if age > STALE_S else "dim")
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


def _unix(at: Any) -> float | None:
    """Unix time."""
    try:
        return datetime.fromisoformat(str(at)).timestamp()
    except ValueError:
        return None


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
