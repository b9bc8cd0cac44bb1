"""`goip-bridge demo`: a broker, the bridge and a simulated gateway in one command, telling a short story.

Nothing here is a mock: the bridge, its store, the broker and the UDP datagrams are those of `goip-bridge run` and
`goip-bridge sim`; only the times of the mobile network are shorter. What is told is checked: each chapter waits for
the messages it promises, and the exit code says whether they came. All files are temporary.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..app.bridge import Bridge, PortUnusable
from ..config.settings import Settings
from ..contract.topics import Topics
from ..goip.events import Address
from ..process.embedded_broker import BrokerError, EmbeddedBroker
from ..process.worker import make_listener
from ..sim.errors import SimulatorError
from ..sim.options import LineOptions
from ..sim.run import SimOptions, Simulator
from ..store.database import Store, StoreUnusable
from ..system import terminal
from . import client as mqtt

STEP_S = 20.0
"How long the story waits for what it has announced."
PAUSE_S = 0.6
"Between two chapters, for what still trickles in and for the reader."
TRAFFIC_S = 6.0
"Between two things that happen by themselves once the story is told."
ENVELOPE = ("v", "ts", "id", "at", "boot", "seq", "msg", "from_raw")
"Fields that tell a newcomer nothing."
SHOWN_LINES = 4
"Lines of a payload that are shown of a fact, a result or a command; of a state one."
PAYLOAD_COLUMN = 32
TEXT_COLUMNS = 100
"Longer lines are hard to read."
STATES = ("availability", "state", "stats", "info", "health", "lines", "last", "config")
FRIEND, CALLER = "+4915112345678", "+4930901820"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge demo`."""
    parser.description = "The bridge, a broker and a simulated GoIP gateway: shows what happens on MQTT, and why."
    parser.add_argument("--lines", type=_count, default=2, metavar="N", help="simulated SIM cards (default 2)")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        help="end after S seconds; after the story there is more traffic (default: end with the story)",
    )
    parser.add_argument("--keep", action="store_true", help="go on after the story, until Ctrl-C")
    parser.add_argument("--udp-port", type=_port, default=0, metavar="P", help="of the bridge (default: any free one)")
    parser.add_argument("--full", action="store_true", help="show whole payloads, not only what differs")


def main(args: argparse.Namespace) -> int:
    """Tell the story: 0 when all of it happened, 1 when something is missing."""
    screen = Screen(terminal.console(), full=args.full)
    logging.basicConfig(level=logging.WARNING, handlers=[_LogLines(screen)], force=True)
    logging.getLogger("bridge.process.embedded_broker").setLevel(
        logging.ERROR
    )  # which broker it is, the introduction tells
    demo = Demo(screen, lines=args.lines, udp_port=args.udp_port, seconds=args.seconds, keep=args.keep)
    try:
        return asyncio.run(demo.run())
    except (BrokerError, SimulatorError, StoreUnusable, mqtt.ClientError) as error:
        terminal.complain(str(error))
    return 1


class Missing(Exception):  # noqa: N818 - the story's end, not a fault of the program
    """Something that was announced did not happen; says what."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the demo's own MQTT client got it."""

    topic: str
    text: str
    at: float
    "Seconds since the demo began."

    @property
    def fields(self) -> dict[str, Any]:
        """The payload's fields; none for plain text."""
        try:
            value = json.loads(self.text)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(slots=True)
class Journal:
    """Everything that was published, and the chance to wait for more."""

    messages: list[Message] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, message: Message) -> None:
        """Note a message, and wake who waits."""
        self.messages.append(message)
        self._more.set()

    async def wait(self, wanted: Callable[[Message], bool], within: float) -> Message:
        """The first message that is wanted, past or to come. TimeoutError."""
        looked_at = 0
        async with asyncio.timeout(within):
            while True:
                for message in self.messages[looked_at:]:
                    if wanted(message):
                        return message
                looked_at = len(self.messages)
                self._more.clear()
                await self._more.wait()

    def count(self, topic: str, event_type: str) -> int:
        """How many facts of this kind there were; `topic` is what follows the line."""
        return sum(
            message.fields.get("event_type") == event_type
            for message in self.messages
            if message.topic.endswith(f"/{topic}")
        )


class Screen:
    """What the user sees; readable with and without colours, from 60 columns on."""

    def __init__(self, console: Console, *, full: bool = False) -> None:
        self.console = console
        self.full = full
        self._json = JSONHighlighter()
        self._states: dict[str, dict[str, Any]] = {}
        "The last payload of each state: of the next one, only what differs is shown."

    def say(self, *paragraphs: str) -> None:
        """Narration."""
        width = min(self.console.width, TEXT_COLUMNS)
        for paragraph in paragraphs:
            self.console.print(Text(paragraph, style="bold"), width=width)

    def advise(self, command: str) -> None:
        """Something to type; never broken into lines by us, so that it can be copied."""
        self.console.print(Text(f"  {command}", style="yellow"), soft_wrap=True)

    def chapter(self, title: str, *paragraphs: str) -> None:
        """A heading, and what to look at."""
        self.console.print()
        self.console.print(Rule(Text(title, style="bold cyan"), align="left", style="cyan"))
        self.say(*paragraphs)

    def message(self, message: Message) -> None:
        """One line for a state, up to three for what happened."""
        command, state = "/cmd/" in message.topic, _is_state(message.topic)
        head = Text().append(f"{message.at:5.1f} ", style="dim")
        style = "bold yellow" if command else "blue" if state else "bold green"
        head.append(f"{'>' if command else '<'} {message.topic} ", style=style)
        head.pad_right(max(0, PAYLOAD_COLUMN - head.cell_len))
        room = max(self.console.width - head.cell_len, 20)
        lines = self._payload(message).wrap(self.console, room)
        shown = len(lines) if self.full else 1 if state else SHOWN_LINES
        for number, line in enumerate(lines[:shown], start=1):
            line.rstrip()
            if number == shown < len(lines):
                line.truncate(room - 1)
                line.append("…")
            self.console.print((head if number == 1 else Text(" " * head.cell_len)) + line, soft_wrap=True)

    def _payload(self, message: Message) -> Text:
        fields = message.fields
        if not fields:
            return Text(message.text or "(emptied)", style="bold")
        before = self._states.get(message.topic, {})
        if _is_state(message.topic):
            self._states[message.topic] = fields
        if not self.full and "/cmd/" not in message.topic:
            changed = {key: value for key, value in fields.items() if before.get(key) != value}
            fields = _telling({key: value for key, value in changed.items() if key not in ENVELOPE})
        text = Text(json.dumps(fields, ensure_ascii=False, separators=(", ", ":")))
        self._json.highlight(text)
        text.highlight_regex(r'(?<="event_type":)"\w+"', "bold green")
        if before and not self.full:
            text = Text().append("changed: ", style="dim") + text
        return text


class Demo:
    """One performance. `password` and `step_s` are for tests: what if the gateway is refused?"""

    def __init__(
        self,
        screen: Screen,
        *,
        lines: int = 2,
        udp_port: int = 0,
        seconds: float | None = None,
        keep: bool = False,
        password: str = "password%d",
        step_s: float = STEP_S,
    ) -> None:
        self.screen = screen
        self.journal = Journal()
        self._seconds, self._keep = seconds, keep
        self._udp_port = udp_port
        self._step_s = step_s
        self._began = time.monotonic()
        self._pattern = LineOptions(
            password=password,
            wait=(1.2, 2.0),
            report_delay=(1.5, 2.5),
            ussd_delay=(0.8, 1.5),
            ring=(1.2, 1.8),
        )
        self._ids = [self._pattern.numbered(number).id for number in range(1, lines + 1)]
        self._topics = Topics("goip")
        self._broken = asyncio.Event()
        "The bridge ended by itself."
        self._reason = ""
        "Why the story ended before its time."
        self._chapters: dict[str, str | None] = {}
        "What happened so far, by chapter; None for one that has not ended."

    async def run(self) -> int:
        """From the first message to the last; the exit code."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            temporary = tempfile.TemporaryDirectory(prefix="goip-demo-")
        except OSError as error:
            raise mqtt.ClientError(f"cannot make temporary files: {error}") from None
        with temporary as folder:
            broker = EmbeddedBroker()
            try:
                url = await broker.start(Path(folder), 0)
                await self._perform(stop, self._settings(url, Path(folder), five=broker.pid is not None))
            finally:
                await broker.stop()
        return self._summary()

    def _settings(self, url: str, folder: Path, *, five: bool) -> Settings:
        lines = {id: {"password": f"password{number}"} for number, id in enumerate(self._ids, start=1)}
        return Settings.model_validate(
            {
                "instance": "demo",
                "mqtt": {"url": url, "version": "5" if five else "3.1.1"},
                "udp": {"listen": f"127.0.0.1:{self._udp_port}"},
                "store": {"path": folder / "demo.db"},
                "http": {"listen": "127.0.0.1:0", "send": True} if self._goes_on else {},
                "lines": lines,
            }
        )

    async def _perform(self, stop: asyncio.Event, settings: Settings) -> None:
        async with mqtt.connect(settings, "demo") as client:
            await client.listen("#")
            self._introduction(client)
            story = asyncio.create_task(self._story(client, settings))
            watching = asyncio.create_task(self._watch(client))
            others = [watching, asyncio.create_task(stop.wait()), asyncio.create_task(self._broken.wait())]
            try:
                await asyncio.wait([story, *others], timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
                if not any(task.done() for task in (story, *others)):
                    self._reason = f"{self._seconds:g} s were not enough"
                elif stop.is_set():
                    self._reason = "interrupted"
                elif watching.done():
                    self._reason = "the broker closed the connection"
                story.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await story  # stops the gateway and the bridge; their last messages are still shown
            finally:
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)

    async def _watch(self, client: mqtt.Client) -> None:
        async for received in client.messages:
            topic, payload = terminal.clean(str(received.topic)), mqtt.read_text(received.payload)
            message = Message(topic, payload, time.monotonic() - self._began)
            self.screen.message(message)
            self.journal.add(message)

    @property
    def _goes_on(self) -> bool:
        """There is time to look around when the story is told."""
        return self._keep or self._seconds is not None

    @contextlib.asynccontextmanager
    async def _bridge(self, settings: Settings) -> AsyncIterator[Bridge]:
        """The bridge as `goip-bridge run` has it, until the end of the block."""
        address = settings.mqtt.address
        assert address is not None
        stop = asyncio.Event()
        with contextlib.closing(Store(settings.store.path)) as store:
            bridge = Bridge(settings, store, lambda: settings)
            bridge.make_listener = make_listener
            running = asyncio.create_task(bridge.run(stop, address))
            running.add_done_callback(lambda task: None if stop.is_set() else self._bridge_broke(task))
            try:
                await asyncio.wait([running], timeout=0)  # its first step binds the port
                if not running.done():
                    yield bridge
            finally:
                if not running.done():
                    self.screen.chapter("The end: the bridge says goodbye, then the broker stops")
                stop.set()
                await asyncio.wait([running])
            try:
                running.result()
            except PortUnusable as error:
                reason = f"{error}; choose another --udp-port"
                raise mqtt.ClientError(reason) from None

    def _bridge_broke(self, running: asyncio.Task[None]) -> None:
        self._reason = f"the bridge ended: {running.exception()!r}"
        self._broken.set()

    # -- the story

    async def _story(self, client: mqtt.Client, settings: Settings) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                bridge = await self._bridge_connects(stack, settings)
                assert bridge.udp is not None
                gateway = await self._gateway_registers(stack, bridge.udp.address)
                await self._sms_goes_out(client)
                await self._sms_comes_in(gateway)
                await self._somebody_calls(gateway)
                await self._balance(client)
                await self._go_on(client, gateway, bridge)
        except Missing as missing:
            self._reason = str(missing)

    def _introduction(self, client: mqtt.Client) -> None:
        count = len(self._ids)
        self.screen.say(
            f"Here are a broker, the bridge, and a simulated GoIP box with {count} SIM card{'s' if count > 1 else ''}. "
            "All of it runs on this machine, and no SMS leaves it."
        )
        name = "mosquitto, MQTT 5" if client.version == "5" else "amqtt, only MQTT 3.1.1: mosquitto is not installed"
        self.screen.say(f"The broker is {client.url} ({name}). To listen from another terminal:")
        self.screen.advise(f"mosquitto_sub {self._where(client)} -v -t 'goip/#'")
        shown = "the whole payload" if self.screen.full else "payload (shortened; --full shows all)"
        self.screen.say(f"One line is one MQTT message: second, > to or < from the bridge, topic, {shown}.")

    @staticmethod
    def _where(client: mqtt.Client) -> str:
        host, port = client.url.removeprefix("mqtt://").rsplit(":", 1)
        return f"-h {host} -p {port}"

    @contextlib.asynccontextmanager
    async def _chapter(self, name: str, title: str, *lines: str) -> AsyncIterator[None]:
        await asyncio.sleep(PAUSE_S)
        self._chapters[name] = None
        self.screen.chapter(f"{len(self._chapters)}. {title}", *lines)
        began = time.monotonic()
        yield
        self._chapters[name] = f"{time.monotonic() - began:.1f} s"

    async def _expect(self, what: str, topic: str, test: Callable[[Message], bool] = bool, **fields: object) -> Message:
        def wanted(message: Message) -> bool:
            return message.topic == topic and _has(message.fields, fields) and test(message)

        try:
            return await self.journal.wait(wanted, self._step_s)
        except TimeoutError:
            raise Missing(f"waited {self._step_s:g} s on {topic} for {what}") from None

    async def _bridge_connects(self, stack: contextlib.AsyncExitStack, settings: Settings) -> Bridge:
        async with self._chapter(
            "bridge online",
            "The bridge connects",
            "It publishes its state retained, so that whoever subscribes later gets it at once, and devices for Home "
            'Assistant. "online" comes last: from then on it takes commands.',
        ):
            bridge = await stack.enter_async_context(self._bridge(settings))
            await self._online('"online"', self._topics.bridge("availability"))
            return bridge

    async def _gateway_registers(self, stack: contextlib.AsyncExitStack, server: Address) -> Simulator:
        async with self._chapter(
            "gateway registered",
            "The GoIP box registers",
            "Each SIM card is a line with an id and a password, and sends a keepalive by UDP. What it tells of itself "
            "(network, signal, calls) becomes <id>/state.",
        ):
            options = SimOptions(server=server, lines=len(self._ids), line=self._pattern)
            gateway = await stack.enter_async_context(Simulator(options))
            for id in self._ids:
                await self._online('"online"', self._topics.line(id, "availability"))
                await self._expect("a state", self._topics.line(id, "state"))
            return gateway

    async def _online(self, what: str, topic: str) -> None:
        await self._expect(what, topic, lambda message: message.text == "online")

    async def _sms_goes_out(self, client: mqtt.Client) -> None:
        line = self._ids[0]
        async with self._chapter(
            "SMS sent and delivered",
            "An SMS goes out",
            f"Any MQTT client can send one: publish a command to {self._topics.command(line, 'sms')}. "
            "The result says that it is stored safely. Then delivery tells its life: queued, sending, sent (the "
            "network has it), delivered (the phone has it).",
        ):
            command = {"id": f"demo-{secrets.token_hex(2)}", "to": FRIEND, "text": "Hello from MQTT!"}
            await self._command(client, line, "sms", command)
            for step in ("queued", "sending", "sent", "delivered"):
                topic = self._topics.line(line, "delivery")
                await self._expect(f'"{step}"', topic, cmd=command["id"], event_type=step)

    async def _sms_comes_in(self, gateway: Simulator) -> None:
        line = self._ids[-1]
        async with self._chapter(
            "SMS received",
            "An SMS comes in",
            f"Somebody writes to the SIM card of {line}. The bridge has it on disk before it tells the box so, and "
            "keeps it until the broker confirms: none is lost.",
        ):
            text = "Is the gate open? ☕"
            gateway.line(line).receive_sms(FRIEND, text)
            await self._expect("the SMS", self._topics.line(line, "sms/in"), text=text)

    async def _somebody_calls(self, gateway: Simulator) -> None:
        line = self._ids[0]
        async with self._chapter("call", "Somebody calls", f"{line} rings, is answered, and hangs up."):
            gateway.line(line).incoming_call(CALLER, seconds=1.5)
            for step in ("ringing", "answered", "ended"):
                await self._expect(f'"{step}"', self._topics.line(line, "call"), event_type=step)

    async def _balance(self, client: mqtt.Client) -> None:
        line = self._ids[-1]
        async with self._chapter(
            "USSD balance",
            "How much is left on the card?",
            "A USSD code, as one would dial it. The network's reply is the command's result, and a fact on <id>/ussd.",
        ):
            command = {"id": f"demo-{secrets.token_hex(2)}", "code": "*100#"}
            await self._command(client, line, "ussd", command)
            await self._expect("the USSD reply", self._topics.line(line, "ussd"), cmd=command["id"], event_type="reply")

    async def _command(self, client: mqtt.Client, line: str, path: str, command: dict[str, str]) -> None:
        """Publish, and wait for the result: ok, or what the bridge says."""
        await client.send(self._topics.command(line, path), json.dumps(command, ensure_ascii=False))
        result = await self._expect("the result", self._topics.result(line, path), id=command["id"])
        if result.fields["status"] != "ok":
            raise Missing(f"the command {path} was refused: {result.fields['message']}")

    async def _go_on(self, client: mqtt.Client, gateway: Simulator, bridge: Bridge) -> None:
        await asyncio.sleep(PAUSE_S)
        if not self._goes_on:
            return
        until = f"until second {self._seconds:g}" if self._seconds is not None else "until Ctrl-C"
        self.screen.chapter(f"The story is told; it goes on {until}", "Send an SMS yourself, from another terminal:")
        example = json.dumps({"to": FRIEND, "text": "Hi!"})
        topic = self._topics.command(self._ids[0], "sms")
        self.screen.advise(f"mosquitto_pub {self._where(client)} -t {topic} -m '{example}'")
        if bridge.http_address is not None:
            self.screen.say("Or on the status page:")
            self.screen.advise("http://{}:{}/".format(*bridge.http_address))
        for number in itertools.count(1):
            await asyncio.sleep(TRAFFIC_S)
            line = gateway.line(random.choice(self._ids))
            if number % 3:
                line.receive_sms(f"+49151{random.randrange(10**8):08d}", f"Simulated SMS {number}")
            else:
                line.incoming_call(CALLER, answered=number % 2 == 0, seconds=3)

    # -- the end

    @property
    def _untold(self) -> list[str]:
        all_of_it = ("bridge online", "gateway registered", "SMS sent and delivered", "SMS received", "call")
        return [name for name in (*all_of_it, "USSD balance") if self._chapters.get(name) is None]

    def _summary(self) -> int:
        console, count = self.screen.console, self.journal.count
        self.screen.chapter("Summary")
        topics = Counter(_pattern(message.topic, self._ids) for message in self.journal.messages)
        rows = [f"{number:4d}  {topic}" for topic, number in sorted(topics.items())]
        half = (len(rows) + 1) // 2
        table = Table.grid(padding=(0, 4))
        for left, right in itertools.zip_longest(rows[:half], rows[half:], fillvalue=""):
            table.add_row(Text(left), Text(right))
        console.print(table)
        sent, delivered = count("delivery", "sent"), count("delivery", "delivered")
        self.screen.say(
            f"SMS: {sent} sent, {delivered} delivered, {count('sms/in', 'received')} received. "
            f"{len(self.journal.messages)} MQTT messages in {time.monotonic() - self._began:.0f} s."
        )
        if self._untold:
            reason = f" ({self._reason})" if self._reason else ""
            console.print(Text(f"MISSING{reason}: {', '.join(self._untold)}", style="bold red"))
            return 1
        console.print(Text("All of it happened: " + ", ".join(self._chapters) + ".", style="bold green"))
        program = "goip-bridge" if shutil.which("goip-bridge") else os.path.relpath(f"{sys.prefix}/bin/goip-bridge")
        console.print(Text(f"Next: name your own lines in config.yaml, then {program} run. {program} doctor helps."))
        return 0


class _LogLines(logging.Handler):
    """Warnings of the bridge, between the messages."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.console.print(
            Text(f"{record.levelname.lower()}: {terminal.clean(record.getMessage())}", style="magenta")
        )


def _has(fields: dict[str, Any], wanted: dict[str, object]) -> bool:
    return all(fields.get(key) == value for key, value in wanted.items())


def _is_state(topic: str) -> bool:
    return topic.rpartition("/")[2] in STATES or "/job/" in topic


def _telling(value: Any) -> Any:
    """Without null, false and what is empty: all that is as it mostly is."""
    if not isinstance(value, dict):
        return value
    kept = {key: _telling(one) for key, one in value.items()}
    return {key: one for key, one in kept.items() if one is not None and one is not False and one not in ({}, [])}


def _pattern(topic: str, ids: list[str]) -> str:
    """The topic with `<id>` for a line's id, and `<device>` for one of Home Assistant's."""
    if topic.startswith("homeassistant/device/"):
        return "homeassistant/device/<device>/config"
    return "/".join("<id>" if level in ids else level for level in topic.split("/"))


def _count(text: str) -> int:
    if re.fullmatch(r"[1-9][0-9]{0,2}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 999")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _port(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) is None or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return int(text)
