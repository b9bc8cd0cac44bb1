"""Commands from MQTT: accepted into the store or refused, and answered.

`Admission.take` runs inside the transaction of its batch: the PUBACK of a command leaves after the commit, so a command
is either in the store or comes again. What a gateway has to do for it is an `Order`, carried out after the commit as
well.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from .. import __version__
from ..config.settings import Settings
from ..contract import commands, numbers, payloads
from ..contract.commands import Code, Command, CommandError
from ..contract.segments import segment
from ..contract.topics import CommandTopic, Topics
from ..goip import events
from ..goip.line import Line
from ..goip.server import SmsServer
from ..mqtt.link import Incoming
from ..store.database import CommandRow, Store
from . import operations
from .batch import Batch, Order

REMEMBERED_S = 24 * 3600.0
"An id keeps its first result this long (docs/contract.md §4.6)."
REDELIVERY_S = 600.0
"A redelivered command without an id counts as the same this long."
EMPTIED_S = 60.0
"An empty payload on a topic we emptied ourselves is no command for this long."
MAX_LISTED = 100
"Messages named in a result."
MAX_USSD_WAITING = 5
MAX_REQUESTS = 20
MAX_REPEATS = 20
"Repeats of one command that are answered when it is."
MAX_REPEATS_BYTES = 4 << 20
"Of all of them: where they want their result."
REPEAT_BYTES = 200
"What each takes besides."
MAX_EMPTIED = 1000
ENDING = 5
"Digits at the end of a number that are in all of its spellings: prefixes differ, of 7 digits at most two."
SELFTEST_BUSY = "the line sends SMS, has some to send, or pauses; or one of the two lines is being tested"
SELFTEST_VERDICTS = {
    "safe": "Safe: a repeated SEND is answered from memory, and sends nothing.",
    "unsafe": "Unsafe: the gateway sends an SMS again when SEND is repeated.",
    "inconclusive": "Inconclusive: nothing was proved, and what was known before stays.",
}

_NOT_YET = (commands.Cancel, commands.Pause, commands.Resume, commands.BridgeInbox)


class Answers:
    """Publishes results, and keeps those of accepted commands for their repeats."""

    def __init__(self, store: Store, topics: Topics, server: SmsServer) -> None:
        self._store = store
        self._topics = topics
        self._server = server
        self._waiting: dict[int, dict[tuple[str | None, bytes | None], None]] = {}
        "Repeats that came before their command was answered: where they want their result."
        self._waiting_bytes = 0

    def give(self, batch: Batch, command: CommandRow, code: Code, message: str, data: dict[str, Any]) -> None:
        """Answer an accepted command, and those of its repeats that wait."""
        if code != "ok" and command.target != "bridge":  # those of the bridge say it themselves
            why = "" if code == "gateway_refused" else f": {message}"  # its words may hold a number or a text
            what = f"{command.target}: command {commands.command_path(command.path)} failed: {code}"
            batch.say(logging.INFO, f"{what}{why}", what)
        outcome = {"code": code, "message": message, "data": data, "warnings": orjson.loads(command.warnings)}
        self._store.set_result(command.n, payloads.encode(outcome))
        self._publish(batch, command, outcome, command.response_topic, command.correlation, duplicate=False)
        for response_topic, correlation in self._waiting.get(command.n, ()):
            self._publish(batch, command, outcome, response_topic, correlation, duplicate=True)
        batch.answered.append(command.n)

    def repeat(self, batch: Batch, command: CommandRow, response_topic: str | None, correlation: bytes | None) -> None:
        """Answer a repeat with the first result, as soon as there is one."""
        if command.result is None:
            batch.waiting.append((command.n, response_topic, correlation))
        else:
            self._publish(batch, command, orjson.loads(command.result), response_topic, correlation, duplicate=True)

    def give_once(
        self, batch: Batch, command: CommandRow, code: Code, message: str, data: dict[str, Any], warnings: list[str]
    ) -> None:
        """Answer a command that is not remembered: one refused, or a dry run."""
        outcome = {"code": code, "message": message, "data": data, "warnings": warnings}
        self._publish(batch, command, outcome, command.response_topic, command.correlation, duplicate=False)

    def committed(self, batch: Batch) -> None:
        """The answers are on disk; and so are the repeats, in the command they repeat."""
        for n in batch.answered:
            self._waiting_bytes -= sum(_size(*repeat) for repeat in self._waiting.pop(n, ()))
        for n, response_topic, correlation in batch.waiting:
            repeats, size = self._waiting.setdefault(n, {}), _size(response_topic, correlation)
            if (response_topic, correlation) in repeats:
                continue  # one answer serves all that want it in the same place
            if len(repeats) < MAX_REPEATS and self._waiting_bytes + size <= MAX_REPEATS_BYTES:
                self._waiting_bytes += size
                repeats[response_topic, correlation] = None

    def answered(self, batch: Batch, command: CommandRow, answer: events.RequestAnswered) -> None:
        """A gateway answered a control command."""
        if not answer.ok:
            self.give(batch, command, "gateway_refused", f"The gateway refused: {answer.text or 'no reason'}", {})
            return
        said = "The gateway answered." if command.path.endswith("/get") else "The gateway confirmed it."
        self.give(batch, command, "ok", said, operations.data(command.path, answer))

    def timed_out(self, batch: Batch, command: CommandRow) -> None:
        """A gateway did not answer a control command."""
        self.give(
            batch, command, "gateway_timeout", "The gateway did not answer. It may have done it all the same.", {}
        )

    def selftest(self, batch: Batch, command: CommandRow, verdict: str, report: dict[str, Any]) -> None:
        """A self-test is over."""
        self.give(batch, command, "ok", SELFTEST_VERDICTS[verdict], report)

    def ussd(self, batch: Batch, command: CommandRow, event: events.UssdEvent) -> None:
        """A USSD dialogue took a step."""
        data = {"text": event.text, "exit": event.exit}
        if event.text_raw is not None:
            data["text_raw"] = event.text_raw
        match event.event_type:
            case "reply":
                ended = "The dialogue was ended." if event.exit else "The network replied."
                self.give(batch, command, "ok", ended, data)
            case "error":
                self.give(batch, command, "gateway_refused", f"The gateway refused: {event.text or 'no reason'}", data)
            case _:
                message = "No reply from the network in time. The code may have been carried out all the same."
                self.give(batch, command, "gateway_timeout", message, {})

    def _publish(
        self,
        batch: Batch,
        command: CommandRow,
        outcome: dict[str, Any],
        response_topic: str | None,
        correlation: bytes | None,
        *,
        duplicate: bool,
    ) -> None:
        path = commands.command_path(command.path)
        code = outcome["code"]
        topic = self._topics.result(command.target, path)
        model = commands.LINE_COMMANDS.get(path)
        once = model is not None and model.once
        for where in dict.fromkeys((topic, response_topic)):
            if where is None:
                continue
            result = payloads.Result(
                id=command.id,
                boot=batch.run.boot,
                seq=batch.next_seq(where, foreign=where != topic or not self._exists(command, path)),
                command=path,
                status="ok" if code == "ok" else "error",
                code=code,
                retryable=commands.retryable(code, once=once),
                message=outcome["message"],
                data=outcome["data"],
                duplicate=duplicate,
                warnings=outcome["warnings"],
            )
            batch.put(where, payloads.Result, payloads.encode(result), correlation if where == response_topic else None)

    def _exists(self, command: CommandRow, path: str) -> bool:
        """Whether there is such a command and such a target. Others have result topics as well: of anybody's choice."""
        if command.n:
            return True  # it was accepted, though its line may be gone by now
        if command.target == "bridge":
            return path in commands.BRIDGE_COMMANDS
        return path in commands.LINE_COMMANDS and self._server.line(command.target) is not None


class Admission:
    """Decides on every command."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        topics: Topics,
        server: SmsServer,
        answers: Answers,
        summaries: Callable[[], list[payloads.LineSummary]],
    ) -> None:
        self.settings = settings
        self._store = store
        self._topics = topics
        self._server = server
        self._answers = answers
        self._summaries = summaries
        self._emptied: dict[int, float] = {}
        "When a topic was emptied, by the hash of the topic, which may be long."

    def take(self, message: Incoming, batch: Batch) -> None:
        """Accept or refuse one command; either way it may be acknowledged once the batch is committed."""
        batch.acknowledge.append(message)
        topic = self._topics.parse_command(message.topic)
        if topic is None or self._is_our_own_emptying(message, batch.at):
            return
        prefix = self.settings.homeassistant.prefix
        response_topic = message.response_topic
        warnings = []
        own = self._topics.result(topic.target, commands.command_path(topic.path))
        permitted = response_topic == own or self._topics.response_topic_permitted(response_topic or "", prefix)
        if response_topic is not None and not permitted:
            response_topic = None
            warnings.append("response_topic_refused")
        try:
            self._accept(message, topic, response_topic, warnings, batch)
        except CommandError as error:
            self._log_refusal(batch, topic, error)
            id = commands.read_id(topic.path, message.payload)
            row = self._row(message, topic, id, "", response_topic, batch)
            self._answers.give_once(batch, row, error.code, error.message, {}, warnings)

    def _log_refusal(self, batch: Batch, topic: CommandTopic, error: CommandError) -> None:
        """Names that the caller made up may hold a number or a text: those of lines, commands and keys."""
        on_bridge = topic.target == "bridge"
        who = topic.target if on_bridge or topic.target in self.settings.lines else "a line that is not configured"
        known = commands.BRIDGE_COMMANDS if on_bridge else commands.LINE_COMMANDS
        path = commands.command_path(topic.path)
        what = f"command {path}" if path in known else "a command"
        why = f": {_without_values(error.message)}" if error.code != "unknown_line" else ""
        batch.say(logging.INFO, f"{who}: {what} refused: {error.code}{why}", (who, what, error.code, error.message))

    def give_up(self, message: Incoming, batch: Batch) -> None:
        """Answer a command that made us fail, without looking at it more closely."""
        batch.acknowledge.append(message)
        if topic := self._topics.parse_command(message.topic):
            row = self._row(message, topic, None, "", None, batch)
            self._answers.give_once(batch, row, "internal", "a fault in the bridge; its log says more", {}, [])

    def _is_our_own_emptying(self, message: Incoming, at: float) -> bool:
        """Emptying a retained command is itself a publish to a command topic (docs/contract.md §4.7)."""
        if message.payload:
            return False
        return message.retain or at - self._emptied.get(hash(message.topic), 0) < EMPTIED_S

    def _accept(
        self, message: Incoming, topic: CommandTopic, response_topic: str | None, warnings: list[str], batch: Batch
    ) -> None:
        if message.retain:
            self._refuse_retained(message, topic, batch)
        on_bridge = topic.target == "bridge"
        if not on_bridge and topic.target not in self.settings.lines and not _is_pool(topic.target):
            hint = commands.did_you_mean(topic.target, self.settings.lines)
            raise CommandError("unknown_line", f"there is no line {topic.target} in the configuration{hint}")
        command = commands.parse(topic.path, message.payload, target="bridge" if on_bridge else "line")
        warnings.extend(command.warnings)
        payload = commands.canonical(topic.path, message.payload)
        if earlier := self._earlier(message, command, payload, batch.at):
            self._answers.repeat(batch, earlier, response_topic, message.correlation)
            return
        if command.expires_at is not None and command.expires_at.timestamp() <= batch.wall:
            raise CommandError("expired", "expires_at: is over")
        if self._store.low:
            raise CommandError("storage", "the disk of the bridge is full; its log says more")
        if _is_pool(topic.target) or isinstance(command, _NOT_YET):
            raise CommandError("not_supported", "this version does not have this command yet")
        id = command.id
        row = self._row(message, topic, id, payload, response_topic, batch, named="id_unusable" not in warnings)
        if on_bridge:
            self._bridge_command(row, command, warnings, batch)
        elif isinstance(command, commands.Sms):
            self._sms(row, command, warnings, batch)
        elif isinstance(command, commands.Refresh):
            batch.refresh.add(topic.target)
            self._answers.give(batch, self._remember(row, warnings), "ok", "The retained state is published again.", {})
        elif isinstance(command, commands.SelfTest):
            self._selftest(row, command, warnings, batch)
        else:
            self._control(row, command, warnings, batch)

    @staticmethod
    def _row(
        message: Incoming,
        topic: CommandTopic,
        id: str | None,
        payload: str,
        response_topic: str | None,
        batch: Batch,
        *,
        named: bool = True,
    ) -> CommandRow:
        """The command as the store will have it, but for its number. Without an id, textual correlation data names its
        result, unless it tried to have an id and failed (docs/contract.md §4.1).
        """
        return CommandRow(
            n=0,
            topic=message.topic,
            id=id or (_textual(message.correlation) if named else None) or batch.run.new_id(),
            payload=payload,
            minted=id is None,
            target=topic.target,
            path=topic.path,
            response_topic=response_topic,
            correlation=message.correlation,
            warnings="",
            at=batch.at,
            result=None,
        )

    def _refuse_retained(self, message: Incoming, topic: CommandTopic, batch: Batch) -> None:
        batch.emptied.append(message.topic)
        self._emptied.pop(hash(message.topic), None)
        self._emptied[hash(message.topic)] = batch.at
        if len(self._emptied) > MAX_EMPTIED:
            del self._emptied[next(iter(self._emptied))]
        batch.fact(
            self._topics.bridge("event"),
            payloads.BridgeEvent,
            event_type="retained_command",
            message="A retained command was refused and removed: it would run again at every start. Publish commands "
            "without the retain flag.",
            line=topic.target if topic.target in self.settings.lines else None,
            topic=message.topic,
        )
        raise CommandError("retained_command", "a command must not be retained; it was not carried out and was removed")

    def _earlier(self, message: Incoming, command: Command, payload: str, at: float) -> CommandRow | None:
        """The accepted command that this one repeats (docs/contract.md §4.6)."""
        if command.id is not None:
            earlier = self._store.command_by_id(message.topic, command.id, at - REMEMBERED_S)
            if earlier is not None and earlier.payload != payload:
                raise CommandError("invalid_payload", "id: was used for another payload in the last 24 hours")
            return earlier
        if message.dup:
            return self._store.command_by_payload(message.topic, payload, at - REDELIVERY_S)
        return None

    def _remember(self, row: CommandRow, warnings: list[str]) -> CommandRow:
        """Accept: from here on the command is ours."""
        n = self._store.add_command(
            topic=row.topic,
            id=row.id,
            payload=row.payload,
            minted=row.minted,
            target=row.target,
            path=row.path,
            response_topic=row.response_topic,
            correlation=row.correlation,
            warnings=warnings,
            at=row.at,
        )
        accepted = self._store.command(n)
        assert accepted is not None
        return accepted

    # -- by kind

    def _sms(self, row: CommandRow, command: commands.Sms, warnings: list[str], batch: Batch) -> None:
        if command.send_at is not None:
            raise CommandError("not_supported", "send_at: this version can't send later")
        recipients = self._looked_up(command, row.target, warnings)
        line = self._line(row.target)
        if not line.usable or line.disabled:
            warnings.append("line_offline")
        data = self._segments(recipients) | {"job": None, "msgs": []}
        if command.dry_run:
            # Not remembered: the command proper may follow with the same id.
            self._answers.give_once(batch, row, "ok", "A dry run: nothing was queued.", data, warnings)
            return
        accepted = self._remember(row, warnings)
        count = len(recipients)
        job = batch.run.new_id() if count > 1 else None
        if job is not None:
            self._store.add_job(job, row.id, row.target, count, batch.wall)
            batch.jobs.add(job)
        listed = [self._queue(accepted, command, recipient, job, batch) for recipient in recipients]
        data |= {"job": job, "msgs": listed[:MAX_LISTED]}
        batch.feed.add(row.target)
        which = f"job {job}" if job is not None else listed[0]["msg"]
        waits = "; the line is offline, so it waits" if "line_offline" in warnings else ""
        batch.say(logging.INFO, f"{row.target}: queued {count} SMS, {which}{waits}")
        self._answers.give(batch, accepted, "ok", f"Queued {count} SMS.", data)

    def _looked_up(self, command: commands.Sms, target: str, warnings: list[str]) -> list[commands.Recipient]:
        """Every SMS to be sent, with numbers in place of the names of contacts and groups; each phone once."""
        found: dict[commands.Recipient, None] = {}
        named = 0
        for recipient in command.recipients:
            members = self._numbers(recipient, command)
            named += len(members)
            found.update((commands.Recipient(number, recipient.text), None) for number in members)
            if len(found) > commands.MAX_RECIPIENTS:
                message = f"more than {commands.MAX_RECIPIENTS} recipients, with the members of groups"
                raise CommandError("too_large", f"{command.place(recipient)}: {message}")
        recipients = _each_phone_once(list(found), self.settings.lines[target].country)
        if len(recipients) < named and "duplicate_recipient" not in warnings:
            warnings.append("duplicate_recipient")
        return recipients

    def _numbers(self, recipient: commands.Recipient, command: commands.Sms) -> list[str]:
        contacts, groups = self.settings.contacts, self.settings.groups
        name = recipient.to.removeprefix("@")
        if name == recipient.to:
            return [name]
        if name not in contacts and name not in groups:
            message = "there is no contact or group of this name in the configuration"
            if numbers.reads_as_several(f"@{name}"):
                message += "; several recipients are a list, one entry for each"
            elif strange := numbers.strange_character(name):
                message += f"; it has {strange}"
            raise CommandError("invalid_payload", f"{command.place(recipient)}: {message}")
        return [contacts[member] for member in groups.get(name, [name])]

    def _queue(
        self, row: CommandRow, command: commands.Sms, recipient: commands.Recipient, job: str | None, batch: Batch
    ) -> dict[str, str]:
        msg = batch.run.new_id()
        limits = [batch.at + command.ttl_s] if command.ttl_s is not None else []
        if command.expires_at is not None:
            limits.append(command.expires_at.timestamp() - batch.wall + batch.at)
        self._store.add_sms(
            msg=msg,
            cmd=row.id,
            job=job,
            line=row.target,
            number=recipient.to,
            text=recipient.text,
            priority=command.priority,
            guarantee=command.guarantee,
            src=command.src,
            created=batch.at,
            expires=min(limits) if limits else None,
            state="queued",
            changed=batch.at,
        )
        batch.fact(
            self._topics.line(row.target, "delivery"),
            payloads.Delivery,
            event_type="queued",
            msg=msg,
            cmd=row.id,
            job=job,
            to=recipient.to,
        )
        return {"msg": msg, "to": recipient.to}

    @staticmethod
    def _segments(recipients: list[commands.Recipient]) -> dict[str, Any]:
        """Parts and alphabet: of the text, or of the longest of several texts."""
        every = [segment(text) for text in {recipient.text for recipient in recipients}]
        longest = max(every, key=lambda one: one.parts)
        return {"parts": longest.parts, "encoding": longest.encoding}

    def _control(self, row: CommandRow, command: Command, warnings: list[str], batch: Batch) -> None:
        line = self._line(row.target)
        if not line.usable:
            raise CommandError("line_offline", f"line {row.target} is offline")
        if isinstance(command, commands.Ussd) and line.disabled:
            raise CommandError("line_disabled", f"the module of line {row.target} is switched off")
        same = [order for order in batch.orders if order.target == row.target]
        if isinstance(command, commands.Ussd):
            waiting = line.ussd_dialogues + sum(isinstance(order.command, commands.Ussd) for order in same)
            if waiting > MAX_USSD_WAITING:
                raise CommandError("busy", f"{MAX_USSD_WAITING} USSD codes wait already")
        elif line.requests + len(same) >= MAX_REQUESTS:
            raise CommandError("busy", f"{MAX_REQUESTS} commands are under way already")
        batch.orders.append(Order(self._remember(row, warnings).n, row.target, command))

    def _selftest(self, row: CommandRow, command: commands.SelfTest, warnings: list[str], batch: Batch) -> None:
        if command.to not in self.settings.lines:
            raise CommandError("unknown_line", f"to: there is no line {command.to} in the configuration")
        if command.to == row.target:
            raise CommandError("invalid_payload", "to: should be another line")
        line, receiver = self._line(row.target), self._line(command.to)
        for one in (line, receiver):
            if not one.usable:
                raise CommandError("line_offline", f"line {one.name} is offline")
            if one.disabled:
                raise CommandError("line_disabled", f"the module of line {one.name} is switched off")
            if one.fields.get("gsm_status") == "LOGOUT":
                raise CommandError("line_offline", f"the SIM of line {one.name} has no network")
        if receiver_number(command, receiver) is None:
            message = f"number: is required, because the gateway does not know the number of line {receiver.name}"
            raise CommandError("invalid_payload", message)
        if not line.ready or receiver.tester is not None or self._store.queued(line.name, 1):
            raise CommandError("busy", SELFTEST_BUSY)
        batch.orders.append(Order(self._remember(row, warnings).n, row.target, command))

    def _bridge_command(self, row: CommandRow, command: Command, warnings: list[str], batch: Batch) -> None:
        accepted = self._remember(row, warnings)
        match command:
            case commands.BridgePing():
                data = {"version": __version__, "uptime_s": int(batch.at - batch.run.since)}
                self._answers.give(batch, accepted, "ok", "The bridge is there.", data)
            case commands.BridgeRefresh():
                batch.refresh.add("*")
                self._answers.give(batch, accepted, "ok", "All retained state is published again.", {})
            case commands.BridgeLines():
                self._answers.give(batch, accepted, "ok", "All lines.", {"lines": self._summaries()})
            case _:
                batch.orders.append(Order(accepted.n, row.target, command))

    def _line(self, name: str) -> Line:
        line = self._server.line(name)
        assert line is not None, "the settings and the server have the same lines"
        return line


def _each_phone_once(recipients: list[commands.Recipient], country: str | None) -> list[commands.Recipient]:
    """Without those that are another spelling of the same phone, with the same text: the first one is used."""
    # Two spellings of a phone end alike. To read a number costs 0.1 ms, and most end like no other one.
    endings = Counter((recipient.to[-ENDING:], recipient.text) for recipient in recipients)
    found: dict[tuple[str, str], commands.Recipient] = {}
    for recipient in recipients:
        number, text = recipient.to, recipient.text
        alone = endings[number[-ENDING:], text] == 1
        found.setdefault((number if alone else numbers.phone(number, country), text), recipient)
    return list(found.values())


def receiver_number(command: commands.SelfTest, receiver: Line) -> str | None:
    """The number that a self-test sends to; None when nobody knows one."""
    try:
        return command.number or numbers.normalise(receiver.number or "")
    except ValueError:
        return None


def _without_values(message: str) -> str:
    """What a refusal says, without the keys that it quotes and what may be a phone number."""
    return re.sub(r"[0-9]{5,}+(?! bytes| recipients)", "…", re.sub(r'"(?:[^"\\]|\\.)*"', '"…"', message))


def _is_pool(target: str) -> bool:
    return target == "any" or target.startswith("pool/")


def _size(response_topic: str | None, correlation: bytes | None) -> int:
    return REPEAT_BYTES + len(response_topic or "") + len(correlation or b"")


def _textual(correlation: bytes | None) -> str | None:
    """Correlation data that can name a result: UTF-8, 1 to 64 printable characters."""
    try:
        text = (correlation or b"").decode()
    except UnicodeDecodeError:
        return None
    return text if 1 <= len(text) <= 64 and text.isprintable() else None
