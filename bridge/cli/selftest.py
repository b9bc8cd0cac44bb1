"""`goip-bridge selftest`: what a line's firmware makes of repeated SENDs, found out with two lines of one's own.

The bridge does the work (`bridge.goip.selftest`); this asks, gives the command over MQTT, shows the steps and writes
the report.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..config.settings import Settings
from ..contract.topics import Topics
from ..system import terminal
from . import client as mqtt
from .client import Client, ClientError
from .send import BIRTH_S, RESULT_S, WRONG

SILENCE_S = 120.0
"Steps come closer together, unless one says when the next is due: a gateway has 90 s for its answer."
PATIENCE_S = 30.0
MEANING = {
    "safe": "A repeated SEND is a question on this line, and sends nothing. With repeat_safety: auto the bridge now "
    "asks again when an answer is missing, also after a restart: fewer SMS end as unknown. This holds as long as the "
    "line's module stays the same.",
    "unsafe": "This line sends an SMS again when SEND is repeated. The bridge now repeats nothing on it where that can "
    "be helped; SMS whose answer gets lost are unknown. Set repeat_safety: unsafe for all lines with this firmware.",
    "inconclusive": "Nothing was proved, one way or the other, and what was known of the line before stays. See to the "
    "reasons and run it again.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge selftest`."""
    parser.description = "Find out whether a line's firmware sends an SMS again when SEND is repeated."
    parser.epilog = "Exit status: 0 safe or unsafe; 1 inconclusive, or it could not be done; 2 wrong usage, or refused."
    mqtt.add_arguments(parser)
    parser.add_argument("--from", dest="sender", type=_line, required=True, metavar="L1", help="the line to be tested")
    parser.add_argument("--to", type=_line, required=True, metavar="L2", help="the line that receives the SMS")
    parser.add_argument("--number", metavar="N", help="phone number of L2, where its gateway does not know it")
    parser.add_argument("--yes", action="store_true", help="do not ask before it costs something")
    parser.add_argument("--report", type=Path, metavar="FILE", help="default: goip-selftest-<time>.md")


def main(args: argparse.Namespace) -> int:
    """Ask, test, and say what came of it."""
    if args.sender == args.to:
        terminal.complain("--to: should be another line than --from")
        return 2
    path = args.report or Path(f"goip-selftest-{datetime.now(UTC):%Y%m%d-%H%M%S}.md")
    folder = path.parent
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        terminal.complain(f"{path}: cannot be written; choose another file with --report")
        return 2
    if (code := _ask(args)) is not None:
        return code
    try:
        return mqtt.run(args, lambda settings: _SelfTest(settings, args, path).run())
    except KeyboardInterrupt:
        terminal.say("", error=True)  # behind the ^C
        terminal.complain("the self-test goes on in the bridge, if it had begun: its log will have the verdict")
        raise


def _ask(args: argparse.Namespace) -> int | None:
    """Whether the user wants to pay for it: None, or the exit code."""
    terminal.say(
        f"This sends 2 SMS from {args.sender} to {args.to}. Up to 6 are charged if the firmware sends repeated ones\n"
        f"again. It takes about 6 minutes, in which other SMS of {args.sender} wait.",
        lines=True,
    )
    sys.stdout.flush()
    if args.yes:
        return None
    if not sys.stdin.isatty():
        terminal.complain("nobody can be asked here: say --yes if you agree; nothing was sent")
        return 2
    try:
        answer = input("Go on? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        return None
    terminal.complain("nothing was sent")
    return 1


class _SelfTest:
    """One run of the command."""

    def __init__(self, settings: Settings, args: argparse.Namespace, path: Path) -> None:
        self._settings = settings
        self._args = args
        self._path = path
        self._console = terminal.console()
        self._id = f"selftest-{secrets.token_hex(8)}"
        self._bridge = mqtt.Presence()
        self._shown: set[str] = set()
        topics = Topics(settings.base_topic)
        self._birth = topics.bridge("availability")
        self._command = topics.command(args.sender, "selftest")
        self._events = topics.line(args.sender, "event")
        self._results = topics.result(args.sender, "selftest")

    async def run(self) -> int:
        """The exit code."""
        async with mqtt.connect(self._settings, "selftest") as client:
            if refused := await client.listen(self._birth, self._events, self._results):
                raise ClientError(f"the broker does not let us read {', '.join(refused)}: allow it in its ACL")
            await self._require_bridge(client)
            await self._publish(client)
            result = await self._follow(client)
        return self._conclude(result)

    async def _require_bridge(self, client: Client) -> None:
        """A command to a bridge that is away would be carried out when nobody expects it."""
        while (heard := await self._next(client, BIRTH_S)) is not None:
            topic, payload, retained = heard
            if topic == self._birth:
                self._bridge.hear(payload, retained=retained)
                if self._bridge.said != "online":
                    raise ClientError(
                        f"the bridge takes no commands: {self._birth} says {self._bridge.said}. Is it running? "
                        "goip-bridge doctor finds out"
                    )
                return
        raise ClientError(f"no bridge is known at {client.url}: {self._birth} says nothing; is base_topic right?")

    async def _publish(self, client: Client) -> None:
        command = {"id": self._id, "to": self._args.to}
        if self._args.number is not None:
            command["number"] = self._args.number
        properties = mqtt.properties(MessageExpiryInterval=RESULT_S) if client.version == "5" else None
        code = await client.send(self._command, json.dumps(command), properties=properties)
        if code == mqtt.NO_SUBSCRIBER:
            raise ClientError(f"nobody listens to {self._command}: is the bridge running, with this base_topic?")
        if code >= mqtt.REFUSED:
            raise ClientError(f"the broker does not let us publish to {self._command} (code {code}): check its ACL")

    async def _follow(self, client: Client) -> dict[str, Any]:
        """Show the steps; the result."""
        limit = float(RESULT_S)
        while (heard := await self._next(client, limit)) is not None:
            topic, payload, retained = heard
            if topic == self._birth:
                if (warning := self._bridge.hear(payload, retained=retained)) is not None:
                    terminal.complain(f"warning: {warning}")
                continue
            fields = mqtt.read(payload)
            if topic == self._results and fields.get("id") == self._id:
                found: dict[str, Any] = fields
                return found
            step = fields.get("event_type") == "selftest" and fields.get("cmd") == self._id
            if step and fields["id"] not in self._shown:  # facts come at least once
                self._shown.add(fields["id"])
                self._show(fields)
                limit = (fields["within_s"] or SILENCE_S) + PATIENCE_S
        raise ClientError(f"the bridge said nothing for {limit:.0f} s (command {self._id})")

    async def _next(self, client: Client, within: float) -> tuple[str, bytes, bool] | None:
        """The next message, and whether it was retained; None when the time is over."""
        try:
            async with asyncio.timeout(within):
                message = await anext(aiter(client.messages))
        except TimeoutError:
            return None
        return str(message.topic), bytes(message.payload), message.retain

    # -- the terminal

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)

    def _show(self, step: dict[str, Any]) -> None:
        who = "the gateway answers " if step["step"] == "answer" else ""
        self._say(f"{step['at_s']:6.1f} s  {step['round']}/2  {who}{step['text']}")

    def _conclude(self, result: dict[str, Any]) -> int:
        if result["status"] != "ok":
            terminal.complain(f"{result['message']} ({result['code']})")
            return 2 if result["code"] in WRONG else 1
        data = result["data"]
        verdict = data["verdict"]
        self._say(f"\n{result['message']}")
        for reason in data["reasons"]:
            self._say(f"  - {reason}")
        self._say(MEANING[verdict])
        try:
            self._path.write_text(report(data, datetime.now(UTC)), encoding="utf-8")
        except OSError as error:
            terminal.complain(f"{self._path}: {error.strerror}; the report is lost")
            return 1
        self._say(f"\nThe report is in {self._path}. It names no numbers, lines or passwords, and can be published.")
        return 1 if verdict == "inconclusive" else 0


def report(data: dict[str, Any], at: datetime) -> str:
    """The report as Markdown, for people and, in its JSON block, for comparing many."""
    gateway, date = data["gateway"], f"{at:%Y-%m-%dT%H:%M:%SZ}"
    copies = " and ".join(map(str, data["copies"]))
    lines = [
        f"# goip-bridge self-test: {data['verdict']}",
        "",
        MEANING[data["verdict"]],
        "",
        *(f"- {reason}" for reason in data["reasons"]),
        *([""] if data["reasons"] else []),
        "| what | |",
        "|---|---|",
        "| model and firmware of the gateway | (please fill in: its web page tells) |",
        f"| type of its module (first 8 digits of the IMEI) | {gateway['imei_tac'] or 'not told'} |",
        f"| operator | {_cell(gateway['operator'] or 'not told')} |",
        f"| fields of its keepalives | {_cell(' '.join(gateway['keepalive_fields']))} |",
        f"| copies of SMS 1 and 2 that arrived | {copies} |",
        f"| sms_no of SMS 1 and 2 | {' and '.join('none' if one is None else str(one) for one in data['sms_nos'])} |",
        f"| sms_no counts every SMS of the line | {_yes(data['dense'])} |",
        f"| bridge | {data['bridge']} |",
        f"| date | {at:%Y-%m-%d %H:%M} UTC |",
        "",
        "| s | SMS | step | |",
        "|---|---|---|---|",
        *(f"| {one['at_s']:.1f} | {one['round']} | {one['step']} | {_cell(one['text'])} |" for one in data["steps"]),
        "",
        "```json",
        "{",
        ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {**data, "date": date}.items()),
        "}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Words of a gateway, fit for a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _line(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]{1,32}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a line's id")
    return text
