"""`goip-bridge send`: an SMS over MQTT, followed from the command to the delivery report.

`Order` is what is known of one command and decides when it is done: messages and time in, no connection. The rest
connects it to the broker and to the terminal.
"""

import argparse
import asyncio
import json
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config.settings import Settings
from ..contract.topics import Topics
from ..system import terminal
from . import client as mqtt
from .client import Client, ClientError

FINAL = ("delivered", "undelivered", "failed", "expired", "cancelled")
GOOD = ("sent", "delivered")
GUARANTEES = ("effectively_once", "at_most_once", "at_least_once")
WRONG = frozenset({
    "invalid_json", "invalid_payload", "unknown_command", "unknown_line", "no_route", "forbidden_number", "too_large",
    "not_supported",
})  # fmt: skip
"Codes of refusals that only another command line can cure."
RESULT_S = 15
"How long the bridge may take to accept the command; then the broker forgets it (MQTT 5)."
BIRTH_S = 3.0
"How long the broker may take to tell us whether the bridge is online."
TIMEOUT_S, REPORTS_S = 300.0, 60.0
LISTED = 100
"Messages that a result names; of larger jobs the job's state has the number."
WORDS = {
    "queued": "queued in the bridge",
    "sending": "handed to the gateway",
    "sent": "sent: the network has it",
    "delivered": "delivered: the phone has it",
    "undelivered": "not delivered: the network gave it up",
    "failed": "failed",
    "unknown": "unknown: it may have gone out; do not send it again without thinking",
    "expired": "expired before it could be sent",
    "cancelled": "cancelled",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge send`."""
    parser.description = "Send an SMS over MQTT and follow it to the end."
    parser.epilog = (
        "Exit status: 0 all sent or delivered; 1 something failed, is unknown or takes too long; 2 wrong usage, or the "
        "command was refused."
    )
    mqtt.add_arguments(parser)
    parser.add_argument("--line", type=_line, required=True, metavar="L", help="a line's id")
    parser.add_argument("--to", type=_recipients, required=True, metavar="N[,N…]", help="numbers, @contact, @group")
    parser.add_argument("text", metavar="TEXT", help="the text; - reads it from standard input")
    parser.add_argument("--priority", type=int, choices=range(10), metavar="P", help="0 to 9, higher first (default 5)")
    parser.add_argument("--ttl", type=int, metavar="S", help="give up what is still queued after S seconds")
    parser.add_argument("--guarantee", choices=GUARANTEES, help="when nobody can know whether an SMS went out")
    parser.add_argument("--dry-run", action="store_true", help="let the bridge check it, and send nothing")
    parser.add_argument("--no-wait", action="store_true", help="end when the bridge has stored it")
    parser.add_argument(
        "--timeout",
        type=terminal.seconds,
        default=TIMEOUT_S,
        metavar="S",
        help="end after S seconds without news (300)",
    )
    parser.add_argument(
        "--reports",
        type=terminal.seconds,
        default=REPORTS_S,
        metavar="S",
        help="wait S seconds for a delivery report (60)",
    )


def main(args: argparse.Namespace) -> int:
    """Send, follow, and say how it went."""
    try:
        text = _text(args.text)
    except ValueError as error:
        terminal.complain(str(error))
        return 2
    return mqtt.run(args, lambda settings: _Send(settings, args, text).run())


@dataclass(slots=True)
class Sms:
    """The SMS to one recipient, as far as it is known."""

    to: str
    state: str
    since: float
    error: dict[str, Any] | None = None
    told: tuple[str, int] = ("", 0)
    "Boot and number of the fact this is from."

    def text(self) -> str:
        """For people."""
        words = WORDS.get(self.state, self.state)
        if not self.error:
            return words
        ambiguous = "; it may have gone out all the same" if self.error.get("ambiguous") else ""
        return f"{words}: {mqtt.reason(self.error)}{ambiguous}"


@dataclass(slots=True)
class Order:
    """One command and what became of its SMS. Times are monotonic."""

    id: str
    reports_s: float
    timeout_s: float
    news: float
    "When something was heard last."
    result: dict[str, Any] | None = None
    total: int | None = None
    "How many SMS it is; None until that is known."
    sms: dict[str, Sms] = field(default_factory=dict)

    def take_result(self, payload: dict[str, Any], now: float) -> bool:
        """A result; whether it is ours and new."""
        if payload.get("id") != self.id or self.result is not None:
            return False
        self.result, self.news = payload, now
        data = payload.get("data", {})
        msgs = data.get("msgs", [])
        for one in msgs:
            self.sms.setdefault(one["msg"], Sms(one["to"], "queued", now))
        if len(msgs) < LISTED:
            self.total = len(msgs)
        return True

    def take_delivery(self, payload: dict[str, Any], now: float) -> Sms | None:
        """A delivery fact; the SMS it is about, if that is ours."""
        if payload.get("cmd") != self.id or payload.get("msg") is None:
            return None
        before = self.sms.get(payload["msg"])
        boot, seq = told = payload["boot"], payload["seq"]
        if before is not None and before.told[0] == boot and seq <= before.told[1]:
            return None  # facts come at least once, so an older one may come again
        self.news = now
        to, state = str(payload.get("to")), str(payload["event_type"])
        self.sms[payload["msg"]] = sms = Sms(to, state, now, payload.get("error"), told)
        return sms

    def take_job(self, payload: dict[str, Any], now: float) -> None:
        """The state of a job: how many SMS there are."""
        if payload.get("cmd") == self.id:
            self.total, self.news = payload["total"], now

    @property
    def job(self) -> str | None:
        """The job, where there is more than one recipient."""
        return self.result["data"].get("job") if self.result else None

    def deadline(self, now: float) -> float | None:
        """When to look again without news; None when all is known that will be known."""
        if self.total is None or len(self.sms) < self.total:
            return self.news + self.timeout_s
        ends = [self._end(sms) for sms in self.sms.values() if sms.state not in FINAL]
        waiting = [end for end in ends if end > now]
        return min(waiting, default=None)

    def _end(self, sms: Sms) -> float:
        """Until when we wait for the next step of an SMS."""
        return sms.since + self.reports_s if sms.state in ("sent", "unknown") else self.news + self.timeout_s

    def done_count(self) -> int:
        """SMS of which at least the network's answer is known."""
        return sum(sms.state in (*FINAL, "sent") for sms in self.sms.values())


class _Send:
    """One run of the command."""

    def __init__(self, settings: Settings, args: argparse.Namespace, text: str) -> None:
        self._settings = settings
        self._args = args
        self._text = text
        self._topics = Topics(settings.base_topic)
        self._console = terminal.console()
        self._order = Order(f"send-{secrets.token_hex(8)}", args.reports, args.timeout, time.monotonic())
        self._began = time.monotonic()
        self._bridge = mqtt.Presence()
        self._changed = asyncio.Event()
        self._progress: Progress | None = None

    async def run(self) -> int:
        """The exit code."""
        topics, line = self._topics, self._args.line
        self._result_topic = topics.result(line, "sms")
        self._birth_topic = topics.bridge("availability")
        async with mqtt.connect(self._settings, "send") as client:
            # Before the command: else its first facts would be missed.
            wanted = (topics.line("+", "delivery"), self._result_topic, self._birth_topic)
            if refused := await client.listen(*wanted):
                raise ClientError(f"the broker does not let us read {', '.join(refused)}: allow it in its ACL")
            reading = asyncio.create_task(self._read(client))
            try:
                await self._wait(reading, lambda: self._bridge.said is not None, BIRTH_S)
                self._require_bridge(client)
                await self._publish(client)
                await self._wait(reading, lambda: self._order.result is not None, RESULT_S)
                code = self._accepted(client)
                if code is None:
                    code = await self._follow(client, reading)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        return code

    # -- the command

    def _command(self) -> dict[str, Any]:
        args = self._args
        to = args.to[0] if len(args.to) == 1 else args.to
        options = {"priority": args.priority, "ttl_s": args.ttl, "guarantee": args.guarantee}
        command = {"id": self._order.id, "to": to, "text": self._text, "src": "cli"}
        command |= {key: value for key, value in options.items() if value is not None}
        return command | ({"dry_run": True} if args.dry_run else {})

    async def _publish(self, client: Client) -> None:
        topic = self._topics.command(self._args.line, "sms")
        properties = None
        if client.version == "5":
            # The result topic is asked for by name, so that no other topic needs a permission.
            properties = mqtt.properties(
                ResponseTopic=self._result_topic,
                CorrelationData=self._order.id.encode(),
                ContentType="application/json",
                PayloadFormatIndicator=1,
                MessageExpiryInterval=RESULT_S,
            )
        code = await client.send(topic, json.dumps(self._command(), ensure_ascii=False), properties=properties)
        if code == mqtt.NO_SUBSCRIBER:
            raise ClientError(f"nobody listens to {topic}: is the bridge running, with this base_topic?")
        if code >= mqtt.REFUSED:
            raise ClientError(f"the broker does not let us publish to {topic} (reason code {code}): check its ACL")

    def _require_bridge(self, client: Client) -> None:
        """Publishing to a bridge that is away would send the SMS at some later time, when nobody expects it."""
        if self._bridge.said is None:
            raise ClientError(
                f"no bridge is known at {client.url}: {self._birth_topic} says nothing; is base_topic right?"
            )
        if self._bridge.said != "online":
            raise ClientError(
                f"the bridge takes no commands: {self._birth_topic} says {self._bridge.said}; nothing was sent. "
                "Is it running? goip-bridge doctor finds out"
            )

    def _accepted(self, client: Client) -> int | None:
        """What the bridge said to the command; None when it is to be followed."""
        result = self._order.result
        if result is None:
            late = "" if client.version == "5" else "; it may still be sent"
            raise ClientError(f"the bridge did not answer within {RESULT_S} s{late} (command {self._order.id})")
        for warning in result["warnings"]:
            terminal.complain(f"warning: {self._warning(warning)}")
        if result["status"] != "ok":
            terminal.complain(f"refused: {result['message']} ({result['code']})")
            return 2 if result["code"] in WRONG else 1
        if self._args.dry_run or self._args.no_wait:
            parts, encoding = result["data"]["parts"], result["data"]["encoding"]
            self._console.print(f"{result['message']} {parts} part{'s' if parts > 1 else ''} each, {encoding}.")
            return 0
        return None

    def _warning(self, word: str) -> str:
        known = {
            "line_offline": f"line {self._args.line} is offline: the SMS waits until it is back",
            "line_disabled": f"line {self._args.line} is switched off: the SMS waits until it is on",
            "duplicate_recipient": "a phone is there twice, perhaps in another spelling; it gets one SMS",
        }
        return known.get(word, word)

    # -- what comes back

    async def _read(self, client: Client) -> None:
        async for message in client.messages:
            self._take(str(message.topic), bytes(message.payload), time.monotonic(), retained=message.retain)

    def _take(self, topic: str, payload: bytes, now: float, *, retained: bool) -> None:
        self._changed.set()
        if topic == self._birth_topic:
            if (warning := self._bridge.hear(payload, retained=retained)) is not None:
                terminal.complain(f"warning: {warning}")
            return
        if not (fields := mqtt.read(payload)):
            return
        if topic == self._result_topic:
            self._order.take_result(fields, now)
        elif topic == self._topics.job(self._order.job or ""):
            self._order.take_job(fields, now)
        elif (sms := self._order.take_delivery(fields, now)) is not None:
            self._show(sms, now)

    async def _wait(self, reading: asyncio.Task[None], condition: Callable[[], bool], within: float) -> None:
        """Until the condition holds or the time is over. Raises when the connection is lost."""
        deadline = time.monotonic() + within
        while not condition() and (left := deadline - time.monotonic()) > 0:
            await self._wait_for_more(reading, left)

    async def _wait_for_more(self, reading: asyncio.Task[None], within: float) -> None:
        """Until something more was heard, or the time is over."""
        self._changed.clear()
        changed = asyncio.create_task(self._changed.wait())
        await asyncio.wait((changed, reading), timeout=within, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        if reading.done():
            reading.result()

    async def _follow(self, client: Client, reading: asyncio.Task[None]) -> int:
        order = self._order
        if order.job is not None:
            await client.listen(self._topics.job(order.job))
        with self._bar() as progress:
            bar = progress.add_task("sending", total=order.total)
            while (deadline := order.deadline(time.monotonic())) is not None:
                if (left := deadline - time.monotonic()) <= 0:
                    break
                await self._wait_for_more(reading, left)
                progress.update(bar, completed=order.done_count(), total=order.total)
        return self._conclude()

    # -- the terminal

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal or self._one,
        )

    @property
    def _one(self) -> bool:
        return len(self._args.to) == 1 and not self._args.to[0].startswith("@")

    def _show(self, sms: Sms, now: float) -> None:
        """Each step of a single SMS."""
        if self._one and not self._args.no_wait:
            self._console.print(f"{now - self._began:6.1f} s  {sms.to}  {sms.text()}", soft_wrap=True, markup=False)

    def _conclude(self) -> int:
        order = self._order
        failures = [sms for sms in order.sms.values() if sms.state not in GOOD]
        for sms in failures:
            waiting = "; it stays in the bridge's queue" if sms.state in ("queued", "sending") else ""
            terminal.complain(f"{sms.to}: {sms.text()}{waiting}")
        missing = (order.total or 0) - len(order.sms)
        if missing > 0 or order.total is None:
            terminal.complain("the bridge did not tell of every SMS")
        states = Counter(sms.state for sms in order.sms.values())
        counted = ", ".join(f"{count} {_counted(state)}" for state, count in states.items())
        self._console.print(f"{len(order.sms)} SMS: {counted} ({time.monotonic() - self._began:.1f} s)")
        return 1 if failures or missing > 0 or order.total is None else 0


def _counted(state: str) -> str:
    return "sent, without a report" if state == "sent" else state


def _text(argument: str) -> str:
    """The text to send. ValueError says what is wrong with it."""
    if argument != "-":
        text = argument
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise ValueError("the text on standard input is not UTF-8") from None
    if not text:
        raise ValueError("the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text is not UTF-8") from None
    return text


def _line(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]{1,32}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a line's id, as in lines: of the configuration")
    return text


def _recipients(text: str) -> list[str]:
    recipients = [part.strip() for part in text.split(",")]
    if not all(recipients) or any(re.search(r"[;\n]", recipient) for recipient in recipients):
        raise argparse.ArgumentTypeError("write numbers separated by commas: +4915112345678,+4915187654321")
    return recipients
