"""`goip-bridge doctor`: looks at everything a bridge needs and says what is wrong, and what to do about it.

The doctor takes the same configuration as the bridge and may run beside it: it takes no lock of the store, and what it
publishes (a ping, and a probe on the bridge's own result topic) changes nothing.
"""

import argparse
import asyncio
import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import aiomqtt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..config import settings as configuration
from ..config.settings import ConfigError, Settings
from ..contract.topics import Topics
from ..process.embedded_broker import NO_BROKER, find_mosquitto
from ..process.health import ask, socket_path
from ..store.database import MIGRATIONS, is_foreign
from ..system import holders, terminal
from ..system.udp import RECEIVE_BUFFER
from . import client as mqtt
from .client import Client

Level = Literal["ok", "note", "problem"]
STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
ANSWER_S = 3.0
"How long the broker and the bridge may take to answer a probe."
QUIET_S = 0.3
"After this long without another retained message we have seen them all."
FREE_BYTES = 100 << 20
HEALTH_S = 60.0
"The bridge publishes its health this often."
STALE_S = 180.0
CLOCK_S = 5.0
SAFE_DIGITS = 12
"A password of digits alone is short below this."
NAMED = 8
"Lines that one finding names."
RELEASED = 1_767_225_600.0
"2026-01-01: no clock that is set is behind this."
# SQLite's own lock bytes (sqlite.org/fileformat2.html#the_lock_byte_page): readers share this range, and a bridge,
# whose locking mode is exclusive, holds all of it.
LOCK_START, LOCK_LENGTH = 0x4000_0002, 510
LINE_PROBLEMS = {
    "gsm_logout": "the SIM is not on its network: check SIM card, PIN, antenna and reception",
    "module_disabled": "its module is switched off: publish to cmd/module/enable",
    "password_refused": "the gateway refused the line's password: make lines.<id>.password that of its web page",
    "paused": "it is paused: publish to cmd/resume",
    "tripped": "sending was stopped after many failures in a row: check the SIM, then publish to cmd/resume",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    "The configuration key or the part of the system."
    text: str
    advice: str = ""


@dataclass(slots=True)
class Report:
    """All findings, in the order they were made."""

    findings: list[Finding] = field(default_factory=list)

    def ok(self, what: str, text: str) -> None:
        """Nothing to do."""
        self.findings.append(Finding("ok", what, text))

    def note(self, what: str, text: str, advice: str = "") -> None:
        """Worth knowing; no problem by itself."""
        self.findings.append(Finding("note", what, text, advice))

    def problem(self, what: str, text: str, advice: str) -> None:
        """Something is wrong."""
        self.findings.append(Finding("problem", what, text, advice))

    @property
    def problems(self) -> int:
        """How many problems there are."""
        return sum(finding.level == "problem" for finding in self.findings)


# -- the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge doctor`."""
    parser.description = "Find what is wrong, and say what to do."
    parser.epilog = "Exit status: 0 no problem, 1 problems, 2 the configuration is not valid."
    mqtt.add_arguments(parser)
    parser.add_argument(
        "--timeout",
        type=terminal.seconds,
        default=ANSWER_S,
        metavar="S",
        help=f"how long each answer may take ({ANSWER_S:g})",
    )


def main(args: argparse.Namespace) -> int:
    """Examine and report."""
    console = terminal.console()
    report = Report()
    try:
        settings = mqtt.load(args)
    except ConfigError as error:
        for fault in error.faults:
            report.problem("configuration", fault, "")
        show(report, console)
        return 2
    examine_host(settings, report, configuration.file_named(args.config, os.environ))
    asyncio.run(examine_broker(settings, report, args.timeout))
    show(report, console)
    return 1 if report.problems else 0


def show(report: Report, console: Console) -> None:
    """A line for each finding; on a terminal long ones are indented below."""
    rows = [
        (
            Text(one.level, STYLES[one.level]),
            terminal.clean(one.what),
            Text(terminal.clean(f"{one.text}. {one.advice}" if one.advice else one.text)),
        )
        for one in report.findings
    ]
    if console.is_terminal:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(max_width=16, overflow="fold")
        table.add_column(overflow="fold")
        for level, what, text in rows:
            table.add_row(level, what, text)
        console.print(table)
    else:
        for level, what, text in rows:
            console.print(Text(f"{level.plain:8}{what}: ") + text, soft_wrap=True)
    count = report.problems
    summary = "no problem" if count == 0 else f"{count} problem{'s' if count > 1 else ''}"
    console.print(Text(summary, "bold red" if count else "bold green"))


# -- this machine


def examine_host(settings: Settings, report: Report, file: str) -> None:
    """What needs no broker; `file` names the configuration."""
    count = len(settings.lines)
    report.ok("configuration", f"{file}: {count} line{'' if count == 1 else 's'}, base topic {settings.base_topic}")
    for note in settings.notes(os.environ):
        what, _, text = note.partition(": ")
        report.note(what, text)
    _examine_passwords(settings, report)
    running = _examine_store(settings.store.path, report)
    _examine_udp(settings, report, running=running)
    _examine_http(settings, report, running=running)
    _examine_buffer(report)
    if settings.mqtt.url is None:
        _examine_embedded(report)
    if time.time() < RELEASED:
        report.problem("clock", "this machine's clock is not set", "Set it, or switch NTP on: timedatectl set-ntp true")


def _examine_passwords(settings: Settings, report: Report) -> None:
    """A password of a few digits is found by trying, however few a second are listened to (goip/guesses.py)."""
    passwords = {id: line.password.get_secret_value() for id, line in settings.lines.items()}
    weak = [id for id, password in passwords.items() if password.isdecimal() and len(password) < SAFE_DIGITS]
    if weak:
        named = ", ".join(weak[:NAMED]) + (f" and {len(weak) - NAMED} more" if len(weak) > NAMED else "")
        what = f"lines.{weak[0]}.password" if len(weak) == 1 else "passwords"
        advice = "Set longer ones with letters, here and on the gateways' web pages, and allow_from"
        report.note(what, f"only a few digits, which can be guessed: {named}", advice)


def _examine_store(path: Path, report: Report) -> bool:
    """Look at the store; whether a running bridge holds it."""
    try:
        return _examine_store_folder(path, report)
    except OSError as error:
        report.problem(
            "store.path", f"{error.filename or path}: {error.strerror}", "Give it to the user that runs the bridge"
        )
    return False


def _examine_store_folder(path: Path, report: Report) -> bool:
    what = "store.path"
    folder = path.absolute().parent
    if not folder.is_dir():
        report.note(what, f"the folder {folder} does not exist yet", "The bridge makes it, if it may")
        return False
    if not os.access(folder, os.W_OK):
        report.problem(what, f"{folder} is not writable for this user", "SQLite needs to write beside its file as well")
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        report.problem(what, f"only {free >> 20} MB are free in {folder}", "Without space the bridge takes nothing in")
    if not path.exists():
        report.ok(what, f"{path} does not exist yet; the bridge makes it")
    elif _is_held(path):
        report.ok(what, f"{path} is in use by a running bridge")
        return True
    else:
        _examine_store_file(path, report)
    return False


def _is_held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, LOCK_LENGTH, LOCK_START)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return True
            raise
    return False


def _examine_store_file(path: Path, report: Report) -> None:
    what = "store.path"
    if not os.access(path, os.W_OK):
        report.problem(what, f"{path} is not writable for this user", "Give it to the user that runs the bridge")
        return
    if (wal := path.with_name(f"{path.name}-wal")).exists() and wal.stat().st_size:
        report.note(what, f"no bridge holds {path}, and the last one did not close it", "The next one repairs it")
        return
    try:
        # `immutable`: leaves no files behind, which could belong to the wrong user.
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as db:
            damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            foreign = is_foreign(db)
    except sqlite3.Error as error:
        report.problem(what, f"{path} is not a store: {error}", "Restore a backup, or move it away to begin anew")
        return
    if damage != "ok":
        report.problem(what, f"{path} is damaged: {damage}", "Restore a backup, or move it away to begin anew")
    elif foreign:
        report.problem(what, f"{path} is the database of another program", "Name another file")
    elif version > len(MIGRATIONS):
        report.problem(what, f"{path} was made by a newer version of this program", "Upgrade goip-bridge")
    else:
        report.ok(what, f"{path} is sound; no bridge has it open")


def _examine_udp(settings: Settings, report: Report, *, running: bool) -> None:
    what, udp = "udp.listen", settings.udp
    if configuration.is_loopback(udp.host):
        report.note(what, f"{udp.host} is reached only from this machine", "For real boxes listen on 0.0.0.0")
    family = socket.AF_INET6 if ":" in udp.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((udp.host, udp.port))
    except socket.gaierror:
        report.problem(what, f"{udp.host} is not an address", "Use 0.0.0.0 for all addresses of this machine")
    except OSError as error:
        if error.errno == errno.EADDRINUSE and running:
            report.ok(what, f"UDP {udp.listen} is in use, as it should be while the bridge runs")
        elif error.errno == errno.EADDRINUSE:
            advice = f"Stop it, or choose another port: ss -ulpn | grep {udp.port}; a goip-bridge that is starting "
            advice += "again holds it too: look into its log"
            holder = holders.of_port("udp", udp.host, udp.port) or "another program"
            report.problem(what, f"UDP {udp.listen} is in use by {holder}", advice)
        else:
            advice = "Use 0.0.0.0 for all addresses of this machine, and a port above 1023"
            report.problem(what, f"cannot listen on UDP {udp.listen}: {error.strerror}", advice)
    else:
        if running:
            advice = "Was udp.listen changed? It takes effect when the bridge is restarted"
            report.problem(what, f"a bridge runs, but not on UDP {udp.listen}", advice)
        else:
            report.ok(what, f"UDP {udp.listen} is free")


def _examine_http(settings: Settings, report: Report, *, running: bool) -> None:
    what, http = "http.listen", settings.http
    if http.host is None or http.port is None:
        return
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    try:
        socket.create_server((http.host, http.port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and running:
            report.ok(what, f"TCP {http.listen} is in use, as it should be while the bridge runs")
        elif error.errno == errno.EADDRINUSE:
            advice = f"Stop it, or choose another port: ss -tlpn | grep {http.port}"
            holder = holders.of_port("tcp", http.host, http.port) or "another program"
            report.problem(what, f"TCP {http.listen} is in use by {holder}", advice)
        else:
            advice = "Use 127.0.0.1, or 0.0.0.0 for all addresses of this machine, and a port above 1023"
            report.problem(what, f"cannot listen on TCP {http.listen}", advice)
    else:
        if running:
            report.note(what, f"a bridge runs, but not on TCP {http.listen}", "It takes effect after a restart")
        else:
            report.ok(what, f"TCP {http.listen} is free")


def _examine_buffer(report: Report) -> None:
    try:
        limit = int(Path("/proc/sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return
    if limit < RECEIVE_BUFFER:
        report.note(
            "net.core.rmem_max",
            f"the kernel allows UDP buffers of {limit >> 10} kB",
            "A bridge that does not run as root may lose bursts of hundreds of lines; raise it: "
            f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}",
        )


def _examine_embedded(report: Report) -> None:
    if (binary := find_mosquitto()) is not None:
        report.ok("mqtt.url", f"not set: the bridge starts its own broker, {binary}")
    elif importlib.util.find_spec("amqtt") is not None:
        advice = "It speaks only MQTT 3.1.1 and keeps nothing on disk; better: apt-get install mosquitto"
        report.note("mqtt.url", "not set, and mosquitto is not installed: the bridge starts amqtt", advice)
    else:
        report.problem("mqtt.url", "not set", NO_BROKER[:1].upper() + NO_BROKER[1:])


# -- the broker and the bridge


async def examine_broker(settings: Settings, report: Report, answer_s: float = ANSWER_S) -> None:
    """What the broker says, lets us do, and knows of the bridge."""
    _, url = mqtt.address(settings)
    try:
        async with mqtt.connect(settings, "doctor") as client:
            user = f" as {settings.mqtt.username}" if settings.mqtt.username else ", without a user name"
            report.ok("mqtt", f"{client.url}: connected{user}, MQTT {client.version}")
            if client.version != "5" and settings.mqtt.version == "auto":
                advice = "Without it nobody hears of refused publishes; mosquitto has it since 1.6"
                report.note("mqtt.version", "the broker does not speak MQTT 5", advice)
            await _Examination(settings, report, client, answer_s).run()
    except mqtt.ConnectError as error:
        text, _, advice = str(error).partition("; ")
        report.problem("mqtt", text, (advice[:1].upper() + advice[1:]) or "Look into the broker's log")
    except aiomqtt.MqttError as error:
        report.problem("mqtt", f"{url}: the connection was lost: {error}", "Look into the broker's log")


class _Examination:
    """What can be asked over one connection."""

    def __init__(self, settings: Settings, report: Report, client: Client, answer_s: float) -> None:
        self._settings = settings
        self._report = report
        self._client = client
        self._answer_s = answer_s
        self._topics = Topics(settings.base_topic)
        self._id = f"doctor-{secrets.token_hex(4)}"
        self._states: dict[str, bytes] = {}
        "The last payload of each topic."
        self._retained_commands: set[str] = set()
        self._seen: asyncio.Event = asyncio.Event()
        self._refused: list[str] = []

    async def run(self) -> None:
        reading = asyncio.create_task(self._read())
        try:
            await self._subscribe()
            birth = self._topics.bridge("availability")
            await self._until(lambda: birth in self._states)
            await self._until_quiet()
            online = self._states.get(birth) == b"online"
            await self._examine_rights(online=online)
            if online:
                self._examine_bridge()
            else:
                await self._examine_absence()
            self._examine_commands()
            if online:
                self._examine_lines()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    # -- hearing

    async def _read(self) -> None:
        async for message in self._client.messages:
            topic = str(message.topic)
            if self._topics.parse_command(topic) is not None:
                if message.retain and message.payload:
                    self._retained_commands.add(topic)
                elif not message.retain:
                    self._states[topic] = bytes(message.payload)
            else:
                self._states[topic] = bytes(message.payload)
            self._seen.set()

    async def _until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._answer_s):
                while not condition():
                    self._seen.clear()
                    await self._seen.wait()
        return condition()

    async def _until_quiet(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                self._seen.clear()
                async with asyncio.timeout(QUIET_S):
                    await self._seen.wait()

    async def _subscribe(self) -> None:
        topics = self._topics
        outward = [topics.bridge(path) for path in ("availability", "info", "health", "lines", "result/#")]
        outward += [topics.line("+", path) for path in ("availability", "state")]
        filters = [*topics.filters(), *outward]
        self._refused = await self._client.listen(*filters)
        if self._refused:
            advice = "Allow it in the broker's ACL; mosquitto/acl of this project is an example"
            self._report.problem("subscribe", f"the broker refuses {', '.join(self._refused)}", advice)

    # -- rights

    async def _examine_rights(self, *, online: bool) -> None:
        before = self._report.problems
        ping = self._topics.command("bridge", "ping")
        if not await self._may_publish(ping, {"id": self._id}):
            return
        if not await self._until(lambda: ping in self._states) and not self._refused:
            advice = f"Allow the bridge to read {self._topics.filters()[0]}"
            self._report.problem("subscribe", f"what is published to {ping} does not reach us", advice)
        result = self._topics.result("bridge", "ping")
        if online:
            answered = await self._until(lambda: self._fields(result).get("id") == self._id)
            self._examine_answer(self._fields(result) if answered else None)
        probe = self._topics.result("bridge", "doctor")
        if await self._may_publish(probe, {"id": self._id}) and not await self._until(lambda: probe in self._states):
            advice = f"Allow it to write and read {self._settings.base_topic}/#"
            self._report.problem("publish", f"what is published to {probe} does not arrive", advice)
        discovery = self._settings.homeassistant
        if discovery.discovery:
            await self._may_publish(f"{discovery.prefix}/device/goip-bridge-doctor/config", None, retain=True)
        if self._report.problems == before:
            self._report.ok("acl", "may publish and subscribe what the bridge needs")

    async def _may_publish(self, topic: str, payload: dict[str, str] | None, *, retain: bool = False) -> bool:
        """Whether the broker took it; MQTT 3.1.1 brokers do not say."""
        properties = mqtt.properties(MessageExpiryInterval=10) if self._client.version == "5" else None
        body = b"" if payload is None else json.dumps(payload)
        code = await self._client.send(topic, body, retain=retain, properties=properties)
        if code >= mqtt.REFUSED:
            advice = "Allow it in the broker's ACL; mosquitto/acl of this project is an example"
            self._report.problem("publish", f"the broker refuses {topic} (reason code {code})", advice)
            return False
        return True

    def _examine_answer(self, result: dict[str, Any] | None) -> None:
        if result is None:
            advice = "It is online, so look into its log, and whether its user may read commands and write results"
            self._report.problem("bridge", f"does not answer a ping within {self._answer_s:g} s", advice)
            return
        with contextlib.suppress(ValueError, KeyError):
            ahead = datetime.fromisoformat(result["ts"]).timestamp() - time.time()
            if abs(ahead) > CLOCK_S:
                text = (
                    f"the bridge's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of this machine"
                )
                self._report.problem("clock", text, "Synchronise both by NTP: timedatectl set-ntp true")
            else:
                self._report.ok("clock", "the bridge's and this machine's agree")

    # -- what the bridge says

    async def _examine_absence(self) -> None:
        """Why the broker has no `online` of the bridge: it may run all the same."""
        topic, report = self._topics.bridge("availability"), self._report
        said = self._states.get(topic)
        what = f"nothing is on {topic}" if said is None else f"{topic} says {mqtt.read_text(said)}"
        reasons = await asyncio.to_thread(_own_reasons, self._settings.store.path, self._answer_s)
        age = self._health_age()
        if reasons is not None:
            advice = "Its log says more. Is it another broker, or another base_topic?" if not reasons else ""
            report.problem("bridge", f"runs on this machine, but {what}{reasons and f': {reasons}'}", advice)
        elif said is None:
            advice = "Start it: goip-bridge run. If it runs: is base_topic the same, and may this user read it?"
            report.problem("bridge", f"never seen at this broker: {what}", advice)
        elif age is not None and age < HEALTH_S:
            advice = (
                f"If it runs, allow it to subscribe to {self._topics.filters()[0]} in the broker's ACL. If not, start "
            )
            advice += "it: goip-bridge run. On its machine goip-bridge health tells which"
            text = f"{what}, though its health is {age:.0f} s old: it was stopped just now, or the broker refuses its "
            report.problem("bridge", f"{text}subscription to commands", advice)
        else:
            advice = "Start it: goip-bridge run, and look at what it logs"
            report.problem("bridge", f"not running: {what}", advice)

    def _health_age(self) -> float | None:
        """Seconds since the bridge published its health."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return time.time() - datetime.fromisoformat(self._fields(self._topics.bridge("health"))["ts"]).timestamp()
        return None

    def _examine_bridge(self) -> None:
        report = self._report
        info = self._fields(self._topics.bridge("info"))
        version = info.get("version")
        spoken = info.get("mqtt", {}).get("version")
        report.ok("bridge", f"online: version {version}, MQTT {spoken}, instance {info.get('instance')}")
        if version != __version__:
            advice = "Restart it to use the new one"
            report.note("bridge", f"version {version} is running, {__version__} is installed here", advice)
        self._examine_health(self._fields(self._topics.bridge("health")))

    def _examine_health(self, health: dict[str, Any]) -> None:
        report = self._report
        if not health:
            return
        if (age := self._health_age()) is not None and age > STALE_S:
            advice = "It may hang: look into its log, then restart it"
            report.problem("bridge", f"its health is {age:.0f} s old; it is published every {HEALTH_S:.0f} s", advice)
        if health["mqtt"]["refused"]:
            advice = "Look at bridge/event for the topics, and allow them in the broker's ACL"
            report.problem("bridge", f"the broker refused {health['mqtt']['refused']} of its publishes", advice)
        if (health["outbox"]["oldest_s"] or 0) > 60:
            text = (
                f"{health['outbox']['count']} messages wait for the broker, since {health['outbox']['oldest_s']:.0f} s"
            )
            report.problem("bridge", text, "Is the broker overloaded, or refuses it them? Look into both logs")
        if health["udp"]["unauthorized"]:
            advice = "A box has another id or password than lines: says; bridge/event names it"
            report.note("bridge", f"{health['udp']['unauthorized']} datagrams were not authorised", advice)
        if health["udp"]["dropped"]:
            advice = f"Raise the limit: sysctl -w net.core.rmem_max={RECEIVE_BUFFER}, and restart the bridge"
            report.problem("bridge", f"{health['udp']['dropped']} datagrams were dropped", advice)

    def _examine_commands(self) -> None:
        for topic in sorted(self._retained_commands):
            advice = (
                f"Whoever publishes it must not set the retain flag. Remove it: mosquitto_pub -r -n -t {_quoted(topic)}"
            )
            self._report.problem("retained command", f"{topic}: it is refused at every start of the bridge", advice)

    def _examine_lines(self) -> None:
        listed = self._fields(self._topics.bridge("lines")).get("lines", [])
        summaries = {line["id"]: line for line in listed}
        good = 0
        for id in self._settings.lines:
            if id not in summaries:
                advice = "Let it read its configuration again: systemctl reload, or publish to bridge/cmd/reload"
                self._report.problem(f"line {id}", "is configured, but the running bridge does not know it", advice)
            elif self._examine_line(id, summaries[id]):
                good += 1
        if good:
            self._report.ok("lines", f"{good} of {len(self._settings.lines)} online and well")

    def _examine_line(self, id: str, summary: dict[str, Any]) -> bool:
        """Whether all is well with it."""
        what, report = f"line {id}", self._report
        if not summary["online"]:
            if summary["address"] is None:
                report.problem(what, "never heard of", self._web_page(id))
            else:
                text = f"offline; last heard at {summary['address']}"
                report.problem(what, text, "Is the box on, and can it reach this machine? Try to ping it")
            return False
        problems = self._fields(self._topics.line(id, "state")).get("problems", [])
        for problem in problems:
            report.problem(what, problem, LINE_PROBLEMS.get(problem, "See the documentation"))
        return not problems

    def _web_page(self, id: str) -> str:
        """What to fill in on the web page of the box."""
        udp = self._settings.udp
        anywhere = udp.host in ("0.0.0.0", "::") or configuration.is_loopback(udp.host)
        host = _own_address() if anywhere else udp.host
        goip_id = self._settings.lines[id].goip_id or id
        return (
            "On the web page of the GoIP box (Configurations, SMS), fill in: SMS Server enabled, "
            f"SMS Server IP {host}, SMS Server Port {udp.port}, SMS Client ID {goip_id}, and "
            f"the password of lines.{id}. Then let UDP through the firewall"
        )

    def _fields(self, topic: str) -> dict[str, Any]:
        return mqtt.read(self._states.get(topic, b""))


def _own_reasons(store: Path, within_s: float) -> str | None:
    """What the bridge with this store says that it can't do, empty when nothing; None when none runs here that we may
    ask.
    """
    try:
        checks = ask(socket_path(store), within_s)
    except (OSError, ValueError):
        return None
    return "; ".join(str(check["reason"]) for check in checks.values() if not check["ok"])


def _quoted(topic: str) -> str:
    """As a shell takes it: whoever may publish names the topic, and somebody may paste it."""
    return "'" + topic.replace("'", "'\\''") + "'"


def _own_address() -> str:
    """The address others reach this machine at, most likely."""
    if Path("/.dockerenv").exists():
        return "(that of the machine that runs the container, and the port published there)"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "(this machine's address)"
        return str(probe.getsockname()[0])
