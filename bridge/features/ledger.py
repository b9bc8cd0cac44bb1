"""What the gateways say, as rows and facts: the journal of every SMS, and every fact for MQTT.

`Ledger.record` runs inside the transaction of its batch. It decides nothing about datagrams: the core has done that.
"""

import itertools
import logging
import re
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from typing import Any

from .. import __version__
from ..config.settings import Settings
from ..contract import causes, numbers, payloads
from ..contract.segments import segment
from ..contract.topics import Topics
from ..goip import events, wire
from ..goip.events import Address
from ..goip.line import Line, Proof
from ..goip.selftest import SelfTest
from ..goip.server import LineMemory, SmsServer
from ..goip.session import TOO_MANY
from ..store.database import SmsRow, Store
from .admission import Answers
from .batch import Batch
from .chores import Chore

REPORT_HOLD_S = 10.0
"A delivery report that matches nothing waits this long for its OK."
REPORT_WINDOW_S = 8 * 3600.0
"A gateway's sms_no is small and comes again: older SMS are not matched (docs/protocol.md §4.6)."
REPORT_CHOICES = 256
"""SMS to one number that are looked at for one report: so many have every value of a sms_no that counts to 255. Where
there are more in `REPORT_WINDOW_S`, an uncertain report can't be told to be of one of them."""
SAME_REPORTS = 100
"Held reports that one SMS settles; should there be more of the same, they are told as reports that match nothing."

ODOMETER_DELAY_S = 65.0
"After two more keepalives a reboot, after which sms_no may begin again, would have been noticed (§3)."
ODOMETER_WRAPS = 256
"A sms_no that is the TP-Message-Reference counts to 255 (3GPP 23.040 §9.2.3.6)."

MAX_ATTEMPTS = 5
"Submissions of an SMS that is to be sent again while its outcome is unknown."
DOUBTFUL_PAGES = 20
"At a start there may be many that were sent too often, or are too old: so many pages of them are passed over at once."

_FOLLOWS: dict[str, frozenset[str]] = {
    # One that was given back may have been sent all the same, as a late answer or a report tells.
    "queued": frozenset(
        ("sending", "failed", "expired", "cancelled", "queued", "unknown", "sent", "delivered", "undelivered")
    ),
    "sending": frozenset(("sent", "delivered", "undelivered", "failed", "unknown", "queued")),
    "sent": frozenset(("delivered", "undelivered")),
    "unknown": frozenset(("sent", "delivered", "undelivered", "failed", "queued")),
}
"What may follow a state of an SMS; nothing follows the others."
_TRAFFIC = {
    "sent": "sent",
    "delivered": "delivered",
    "undelivered": "failed",
    "failed": "failed",
    "unknown": "unknown",
}

_QUOTABLE = re.compile(
    rf"GSM_LOGOUT|SENDID|PASSWORD|{TOO_MANY}|no answer to [A-Z]+|its time was over before SEND could leave"
)
"Reasons that the log may quote: what else a gateway says may hold a number or a text."


def address_text(address: Address) -> str:
    """`ip:port`, with brackets around IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


log = logging.getLogger(__name__)

DOUBTED = "doubted"
"In the store: how many SMS were doubted since it was put back, while that is going on."
RESTORED_AT = "restored_at"
"In the store: when that was done."
HeldReport = tuple[int, str, int | None, int, str]
"Number, line, sms_no, state, number that the SMS went to."


class Ledger:
    """Writes down what happened on the lines."""

    def __init__(
        self, store: Store, settings: Settings, topics: Topics, answers: Answers, server: SmsServer, now: float
    ) -> None:
        self.settings = settings
        self._store = store
        self._topics = topics
        self._answers = answers
        self._server = server
        self._first_sendid = server.next_sendid
        "SMS with smaller sendids were submitted by an earlier run: they have no session here."
        self._started = now
        self._odometer_due: deque[tuple[float, SmsRow]] = deque()
        "SMS that were sent after a doubtful one, and when their sms_nos can be compared."
        self._left_over: dict[str, set[int]] = {}
        "By line: SMS that were on their way when the last run ended, until they are found to be so no more."
        for row in store.sending():
            if self._is_of_earlier_runs(row):
                self._left_over.setdefault(row.line, set()).add(row.n)
        self._passed_over = (0.0, 0)
        "Up to this time and number nothing `unknown` is to be sent again: it is too old, or was sent too often."
        self._lines_changed = True
        "Lines may have been removed whose SMS are still queued."
        self.chores = (
            Chore("SMS that expire", self._expired, self._expire),
            Chore("delivery reports that match nothing", self._old_reports, self._let_go),
            Chore("SMS of earlier runs", self._orphans, self._lost),
            Chore("counters of gateways", self._readings, self._read_next_odometer),
            Chore("SMS that are sent again", self._doubtful, self._send_again),
            Chore("SMS of removed lines", self._of_removed_lines, self._line_removed),
        )
        """What only time decides. Should a commit fail, the reading of a counter is lost, and the SMS stay unknown:
        never the other way round."""

    def record(self, happened: Iterable[events.Event], batch: Batch, now: float) -> None:
        """Write down a batch of events. `now` is monotonic."""
        for event in happened:
            _HANDLERS[type(event)](self, event, batch, now)

    # -- lines

    def _line_online(self, event: events.LineOnline, batch: Batch, _now: float) -> None:
        self._set_online(batch, event.line, online=True)
        line = self._server.line(event.line)
        if line is not None and line.count is not None:  # its fields tell the hardware, and with it what is proved
            memory = LineMemory(address=event.address, count=line.count, reboots=line.reboots, fields=line.fields)
            self._store.save_line(event.line, memory)
        self._line_event(
            batch, event.line, "line_online", "The line is registered.", address=address_text(event.address)
        )

    def _line_offline(self, event: events.LineOffline, batch: Batch, _now: float) -> None:
        self._set_online(batch, event.line, online=False)
        silence = self.settings.timing.offline_s
        message = f"Nothing heard of the line for {silence:.0f} s. Check the gateway's power, network and SMS settings."
        address = address_text(event.address) if event.address is not None else None
        self._line_event(batch, event.line, "line_offline", message, address=address)

    def _set_online(self, batch: Batch, line: str, *, online: bool) -> None:
        self._store.set_online(line, online=online)
        batch.availability[line] = online
        batch.changed.add(line)
        batch.lines_changed = True

    def _line_moved(self, event: events.LineMoved, batch: Batch, _now: float) -> None:
        batch.changed.add(event.line)
        memory = LineMemory(address=event.address, count=event.count, reboots=event.reboots)
        self._store.move_line(event.line, memory)
        batch.lines_changed = True

    def _line_changed(self, event: events.LineChanged, batch: Batch, _now: float) -> None:
        batch.changed.add(event.line)

    def _line_ready(self, event: events.LineReady, batch: Batch, _now: float) -> None:
        batch.feed.add(event.line)

    def _gateway_rebooted(self, event: events.GatewayRebooted, batch: Batch, _now: float) -> None:
        log.info("line %s: the gateway restarted", event.line)
        message = "The gateway's keepalive count began again: it restarted. What was under way on it may be unknown."
        self._line_event(batch, event.line, "gateway_reboot", message, address=address_text(event.address))
        for row in self._of_earlier_runs(event.line):
            # One that the box is asked about is ended by the core, if it must be.
            if row.n not in self._asked(row.line) and row.changed <= batch.at - event.up:
                self._move(batch, row, "unknown", {}, evidence="session_lost")

    def _repeat_unsafe(self, event: events.RepeatUnsafe, batch: Batch, _now: float) -> None:
        self._store.save_proof(event.line, Proof(safe=False, identity=event.identity), batch.at)
        message = (
            "The gateway sent one SMS twice when SEND was repeated. From now on nothing is repeated on this line where "
            "that can be helped; set repeat_safety: unsafe for lines of the same firmware."
        )
        log.warning("line %s: %s", event.line, message)
        self._line_event(batch, event.line, "repeat_unsafe", message)

    def _selftest_step(self, event: events.SelfTestStep, batch: Batch, _now: float) -> None:
        command = self._store.command(event.token)
        fields = {
            "cmd": command.id if command else None,
            "round": event.round,
            "step": event.step,
            "at_s": event.at,
            "text": event.text,
            "within_s": event.within,
        }
        batch.event(self._topics.line(event.line, "event"), payloads.Event, "selftest", fields)
        line = self._server.line(event.line)
        if line is not None and isinstance(line.session, SelfTest):
            trace = f"{self._server.next_sendid} {batch.at} {line.session.number}"
            self._store.put(f"selftest {event.line}", trace)

    def _selftest_trace(self, line: str) -> tuple[int, float, str] | None:
        """The last self-test of a line, whose SMS have no rows: sendids before which they are, when, and to whom."""
        if (trace := self._store.get(f"selftest {line}")) is None:
            return None
        sendid, at, number = str(trace).split(" ", 2)
        return int(sendid), float(at), number

    def _selftest_ended(self, event: events.SelfTestEnded, batch: Batch, _now: float) -> None:
        if event.verdict == "safe":  # `unsafe` was told as RepeatUnsafe
            self._store.save_proof(event.line, Proof(True, event.identity, event.dense), batch.at)
        log.info("line %s: the self-test ended: %s", event.line, event.verdict)
        if command := self._store.command(event.token):
            line = self._server.line(event.line)
            hardware = {
                "imei_tac": event.identity or None,
                "operator": wire.value(line.fields.get("pro")) if line is not None else None,
                "keepalive_fields": list(line.fields) if line is not None else [],
            }
            report = {"format": 1, "bridge": __version__, "gateway": hardware} | dict(event.report)
            self._answers.selftest(batch, command, event.verdict, report)

    def _seen(self, event: events.Seen, batch: Batch, _now: float) -> None:
        batch.repeats.append((event.key, event.line, batch.at))

    def _line_event(
        self, batch: Batch, line: str | None, event_type: str, message: str, claimed: str | None = None, **fields: Any
    ) -> None:
        settings = self.settings.lines.get(line) if line else None
        batch.fact(
            self._topics.bridge("event"),
            payloads.BridgeEvent,
            event_type=event_type,
            message=message,
            line=line or claimed,
            gateway=settings.gateway if settings else None,
            **fields,
        )

    # -- inbound SMS, calls, other events

    def _sms_received(self, event: events.SmsReceived, batch: Batch, _now: float) -> None:
        settings = self.settings.lines.get(event.line)
        raw_number = wire.value(event.srcnum)
        number = raw_number
        if raw_number is not None:
            number = numbers.to_e164(raw_number, settings.country if settings else None) or raw_number
        batch.fact(
            self._topics.line(event.line, "sms/in"),
            payloads.SmsIn,
            from_=number,
            from_raw=raw_number,
            text=event.text,
            chars=len(event.text),
            recvid=event.recvid,
            smsc=event.smscnum or None,
            senttime=event.senttime or None,
            raw_hex=event.raw.hex() if event.raw is not None else None,
        )
        batch.sms_last[event.line] = (number, event.text)
        batch.say(logging.INFO, f"{event.line}: SMS received, {len(event.text)} characters")
        batch.count(event.line, "received")

    def _call(self, event: events.CallEvent, batch: Batch, _now: float) -> None:
        batch.fact(
            self._topics.line(event.line, "call"),
            payloads.Call,
            event_type=event.event_type,
            number=event.number,
            direction=event.direction,
            duration_s=event.duration_s,
            cause=event.cause,
        )

    def _line_fact(self, event: events.LineEvent, batch: Batch, _now: float) -> None:
        batch.event(self._topics.line(event.line, "event"), payloads.Event, event.event_type, dict(event.fields))

    def _ussd(self, event: events.UssdEvent, batch: Batch, _now: float) -> None:
        command = self._store.command(event.token) if event.token is not None else None
        batch.fact(
            self._topics.line(event.line, "ussd"),
            payloads.Ussd,
            event_type=event.event_type,
            code=event.code,
            text=event.text,
            text_raw=event.text_raw,
            cmd=command.id if command else None,
        )
        if command is not None and not event.late:
            self._answers.ussd(batch, command, event)

    def _answered(self, event: events.RequestAnswered, batch: Batch, _now: float) -> None:
        if command := self._store.command(event.token):
            self._answers.answered(batch, command, event)

    def _timed_out(self, event: events.RequestTimedOut, batch: Batch, _now: float) -> None:
        if command := self._store.command(event.token):
            self._answers.timed_out(batch, command)

    # -- outbound SMS

    def _sms_sending(self, event: events.SmsSending, batch: Batch, _now: float) -> None:
        row = self._store.sms(event.msg)
        assert row is not None, "an SMS in a session has a row"
        line = self._server.line(event.line)
        changes = {
            "sendid": event.sendid,
            "telid": event.telid,
            "attempt": row.attempt + 1,
            "reboots": line.reboots if line is not None else None,
        }
        moved = self._move(batch, row, "sending", changes)
        assert moved, f"a SEND must not leave without its journal entry, and this SMS is {row.state}"

    def _sms_sent(self, event: events.SmsSent, batch: Batch, now: float) -> None:
        row = self._store.sms(event.msg)
        if row is None or not self._move(batch, row, "sent", {"sms_no": event.sms_no}, evidence="ok"):
            return
        if event.sms_no is not None:
            sent = row._replace(state="sent", sms_no=event.sms_no)
            self._settle_held_reports(batch, sent)
            if self._counts_densely(row.line) and self._store.unknown(row.line, batch.at - REPORT_WINDOW_S, 1):
                self._odometer_due.append((now + ODOMETER_DELAY_S, sent))

    def _sms_failed(self, event: events.SmsFailed, batch: Batch, _now: float) -> None:
        row = self._store.sms(event.msg)
        if row is not None and event.of is not None and event.of != (row.sendid, row.telid):
            return  # of an earlier submission: it says nothing of the one under way
        cause = causes.of_errorstatus(event.code) if event.code is not None else None
        ambiguous = event.submitted and (cause is None or cause.ambiguous or event.repeated)
        ambiguous = ambiguous or (row is not None and bool(row.doubted))
        error = payloads.Error(
            code=event.code,
            text=event.text,
            cause=cause.word if cause is not None else None,
            meaning=cause.meaning if cause is not None else None,
            retryable=cause is None or cause.passing,
            ambiguous=ambiguous,
        )
        evidence = "errorstatus" if event.submitted else None
        ours = event.text if not event.submitted else None
        self._move_number(batch, event.msg, "failed", error=error, evidence=evidence, quoted=ours)

    def _sms_unknown(self, event: events.SmsUnknown, batch: Batch, _now: float) -> None:
        self._move_number(batch, event.msg, "unknown", evidence=event.evidence)

    def _sms_requeued(self, event: events.SmsRequeued, batch: Batch, _now: float) -> None:
        error = payloads.Error(code=None, text=event.reason, retryable=True, ambiguous=False)
        ours = event.reason if _QUOTABLE.fullmatch(event.reason) else None
        self._move_number(batch, event.msg, "queued", error=error, quoted=ours)

    def _sms_expired(self, event: events.SmsExpired, batch: Batch, _now: float) -> None:
        if row := self._store.sms(event.msg):
            self._expire(batch, row)

    def _move_number(self, batch: Batch, n: int, state: str, **fields: Any) -> None:
        if row := self._store.sms(n):
            self._move(batch, row, state, {}, **fields)

    def _move(
        self,
        batch: Batch,
        row: SmsRow,
        state: str,
        changes: dict[str, Any],
        *,
        error: payloads.Error | None = None,
        evidence: str | None = None,
        quoted: str | None = "",
    ) -> bool:
        """Take an SMS to another state and say so; false when that may not follow its present one. `quoted` is what the
        log may quote of an error without a code: None for nothing, empty for its text.
        """
        if state not in _FOLLOWS.get(row.state, ()):
            return False
        self._store.update_sms(row.n, state=state, changed=batch.at, **changes)
        row = row._replace(state=state, **changes)
        self.delivery(batch, row, error=error, evidence=evidence)
        if counter := _TRAFFIC.get(state):
            batch.count(row.line, counter)
        if state in ("failed", "queued"):
            batch.feed.add(row.line)
        if state == "queued" and row.job is not None:
            self._store.reopen_job(row.job)
        self._say(batch, row, error, evidence, quoted)
        return True

    @staticmethod
    def _say(batch: Batch, row: SmsRow, error: payloads.Error | None, evidence: str | None, quoted: str | None) -> None:
        """One line of the log for each outcome, without number and text."""
        why = f" (evidence: {evidence})" if row.state == "unknown" else ""
        if error is not None:
            if error.code is not None:
                why = f": {error.code}, {error.meaning}"
            elif quoted is not None:
                why = f": {quoted or error.text}"
            else:
                why = ", with words of the gateway: they are in error.text of its fact"
            why += "; it may have gone out all the same" if error.ambiguous else ""
        if row.state == "sending":
            batch.say(logging.DEBUG, f"{row.line}: SMS {row.msg} is handed to the gateway")
        elif row.state == "queued":  # on a line without network again and again
            batch.say(logging.INFO, f"{row.line}: SMS {row.msg} is queued again{why}", (row.line, why))
        else:
            batch.say(logging.INFO, f"{row.line}: SMS {row.msg} {row.state}{why}")

    def delivery(
        self, batch: Batch, row: SmsRow, *, error: payloads.Error | None = None, evidence: str | None = None
    ) -> None:
        """Publish the present state of an SMS."""
        batch.fact(
            self._topics.line(row.line, "delivery"),
            payloads.Delivery,
            event_type=row.state,
            msg=row.msg,
            cmd=row.cmd,
            job=row.job,
            to=row.number,
            sms_no=row.sms_no,
            attempt=row.attempt,
            error=error,
            evidence=evidence,
        )
        if row.job is not None:
            batch.jobs.add(row.job)

    # -- delivery reports (docs/protocol.md §5)

    def _sms_report(self, event: events.SmsReport, batch: Batch, _now: float) -> None:
        if event.state is None or not (event.state == 0 or event.state >= 64):
            return  # 1-31: done, but nobody knows how; 32-63: the network is still trying
        if self._is_of_selftest(event):
            return
        if event.sms_no is not None:
            settled = False
            for row in self._numbered(event.line, event.sms_no, last_digits(event.number), batch.at):
                if self._reported(batch, row, event.state):
                    return
                settled = True
            if settled and not self._awaits_report(event.line, last_digits(event.number), batch.at):
                return  # the report of another part, or a second one
        if self._settles_what_is_under_way(event, batch):
            return
        self._store.add_report(event.line, event.sms_no, event.state, event.number, batch.at)

    def _settles_what_is_under_way(self, event: events.SmsReport, batch: Batch) -> bool:
        """A report that can only be of the SMS whose outcome the line waits for: its OK was lost, or is late.

        A long SMS is not settled by the report of its first part while the others are still being sent.
        """
        assert event.state is not None
        line = self._server.line(event.line)
        n = line.submitted if line is not None else None
        row = self._store.sms(n) if n is not None else None
        if row is None or row.state != "sending" or not same_number(row.number, event.number):
            return False
        only = self._only_possible(event.line, event.sms_no, event.number, batch.at)
        if only is None or only.n != row.n or segment(row.text).parts > 1:
            return False
        batch.settled.append((row.line, row.n))
        self._move(batch, row, "sent", {"sms_no": event.sms_no}, evidence="report")
        return self._reported(batch, row._replace(state="sent", sms_no=event.sms_no), event.state)

    def _is_of_selftest(self, event: events.SmsReport) -> bool:
        """The SMS of a self-test are none of ours: their reports must not settle another one to the same number."""
        line = self._server.line(event.line)
        session = line.session if line is not None else None
        return isinstance(session, SelfTest) and same_number(session.number, event.number)

    def _numbered(self, line: str, sms_no: int, digits: str, at: float) -> list[SmsRow]:
        """The SMS that a report can be of by its sms_no and number, the newest first."""
        since = at - REPORT_WINDOW_S
        if digits:
            return self._store.by_sms_no(line, sms_no, digits, since, REPORT_CHOICES)
        last = self._store.submitted_last(line, REPORT_CHOICES)
        return [row for row in last if row.sms_no == sms_no and row.changed >= since]

    def _awaits_report(self, line: str, digits: str, at: float) -> bool:
        """Whether an SMS to this number has no sms_no: the one of the report may be its own, and have come again."""
        since = at - REPORT_WINDOW_S
        if digits:
            rows = list(self._store.submitted_to(line, digits, since, REPORT_CHOICES))
        else:
            rows = [row for row in self._store.submitted_last(line, REPORT_CHOICES) if row.changed >= since]
        awaiting = any(row.sms_no is None and row.state in ("sending", "sent", "unknown") for row in rows)
        return awaiting or len(rows) == REPORT_CHOICES  # one of the others may await it

    def _settle_held_reports(self, batch: Batch, row: SmsRow) -> None:
        assert row.sms_no is not None
        for n, state, number in self._store.reports(row.line, row.sms_no, SAME_REPORTS):
            if same_number(row.number, number):
                self._store.delete_report(n)
                self._reported(batch, row, state)

    def _reported(self, batch: Batch, row: SmsRow, state: int, sms_no: int | None = None) -> bool:
        changes = {} if sms_no is None else {"sms_no": sms_no}
        delivered = "delivered" if state == 0 else "undelivered"
        moved = self._move(batch, row, delivered, changes, error=_report_error(state), evidence="report")
        if moved and row.state in ("sending", "queued"):
            batch.settled.append((row.line, row.n))
        return moved

    def lines_changed(self) -> None:
        """Other lines are configured than before."""
        self._lines_changed = True
        self._passed_over = (0.0, 0)  # SMS of lines that are back are sent again after all

    def _of_removed_lines(self, _at: float, _now: float, limit: int) -> list[SmsRow]:
        """What is queued for lines that are no longer configured: nobody will send it."""
        if not self._lines_changed:
            return []
        for line in self._store.queued_lines():
            if line not in self.settings.lines and (rows := self._store.queued(line, limit)):
                return rows
        self._lines_changed = False
        return []

    def _line_removed(self, batch: Batch, row: SmsRow) -> None:
        if row.doubted:  # it may have gone out before
            self._move(batch, row, "unknown", {}, evidence="silence")
            return
        error = payloads.Error(
            code=None, text="the line was removed from the configuration", retryable=False, ambiguous=False
        )
        self._move(batch, row, "failed", {}, error=error)

    # -- a restored store

    def doubt(self, batch: Batch, limit: int) -> int:
        """The store was put back: what it says is to be sent may have been sent since it was saved. Some of it at a
        time; returns how many were doubted, 0 when no more are left.
        """
        rows = list(itertools.islice(self._store.sending(), limit))
        for line in self._store.queued_lines():
            if len(rows) < limit:
                rows += self._store.queued(line, limit - len(rows))
        for row in rows:
            self._move(batch, row, "unknown", {"reboots": None}, evidence="restored")
        self._store.put(DOUBTED, (self._store.get(DOUBTED) or 0) + len(rows))
        return len(rows)

    def doubted(self, batch: Batch) -> None:
        """Tell of it, once all are doubted."""
        count = self._store.get(DOUBTED) or 0
        self._store.put(DOUBTED, 0)
        self._store.put(RESTORED_AT, batch.at)
        log.error(
            "%s was restored, or its -epoch file is missing: the %d SMS waiting in it may have been sent since it was "
            "saved, so they are unknown and not sent again. No SMS leaves for %.0f s.",
            self._store.path,
            count,
            self.settings.timing.restored_hold_s,
        )
        batch.fact(
            self._topics.bridge("event"),
            payloads.BridgeEvent,
            event_type="store_restored",
            message="The store is not the newest one: it was restored from a backup, or came from elsewhere. "
            f"{count} SMS that waited in it may have been sent since; they are unknown and were not sent again.",
        )

    # -- the odometer: what the sms_nos before and after a doubtful SMS say of it (docs/reliability.md)

    def _counts_densely(self, name: str) -> bool:
        line = self._server.line(name)
        return line is not None and line.known is not None and line.known.dense

    def _read_odometer(self, batch: Batch, after: SmsRow) -> None:
        """Settle the doubtful SMS just before this one: each SMS of the line takes the next sms_no."""
        line = self._server.line(after.line)
        if line is None or not line.online or not self._counts_densely(after.line):
            return
        assert after.sendid is not None
        assert after.telid is not None
        doubtful: list[SmsRow] = []
        before: SmsRow | None = None
        for row in self._store.submitted_before(after.line, after.sendid, after.telid, ODOMETER_WRAPS):
            if row.state != "unknown":
                before = row
                break
            doubtful.append(row)
        if before is None or before.sms_no is None or after.sms_no is None:
            return
        if not 0 < len(doubtful) < ODOMETER_WRAPS - 1:
            return
        trace = self._selftest_trace(after.line)
        if trace is not None and (before.sendid or 0) < trace[0] <= (after.sendid or 0):
            return  # its SMS were counted as well
        if self._store.has_submitted_again(after.line, before.changed):
            return  # one that was submitted before may have been between them then
        rows = (before, *doubtful, after)
        since = max(batch.at - REPORT_WINDOW_S, self._store.get(RESTORED_AT) or 0.0)
        if any(row.changed <= since for row in rows):
            return  # of long ago; or others may have been sent before the store was put back
        if any(row.reboots != line.reboots or segment(row.text).parts > 1 for row in rows):
            return  # it may have counted anew, or otherwise
        went = (after.sms_no - before.sms_no) % ODOMETER_WRAPS - 1
        if went == len(doubtful) and not self._box_sent_between(line, before, after):
            for row in doubtful:
                self._move(batch, row, "sent", {}, evidence="odometer")
        elif went == 0:
            for row in doubtful:
                self._not_sent(batch, row)

    def _box_sent_between(self, line: Line, before: SmsRow, after: SmsRow) -> bool:
        """Whether other lines of the box sent something: should they all share one count, they moved it."""
        host = line.address[0] if line.address is not None else None
        others = [
            other.name
            for other in self._server.lines
            if other is not line and other.address and other.address[0] == host
        ]
        first, last = before.sendid or 0, after.sendid or 0
        return any(self._store.has_submitted(name, first, last) for name in others)

    def _not_sent(self, batch: Batch, row: SmsRow) -> None:
        again = row.guarantee != "at_most_once"
        text = "the gateway's count of sent SMS shows that it was not sent" + ("; sent again" if again else "")
        error = payloads.Error(code=None, text=text, retryable=True, ambiguous=False)
        self._move(batch, row, "queued" if again else "failed", {}, error=error, evidence="odometer")

    # -- what only time decides: the chores

    def _expire(self, batch: Batch, row: SmsRow) -> None:
        """Its time is over; one that may have gone out before is as unknown as it was."""
        if row.doubted:
            self._move(batch, row, "unknown", {}, evidence="silence")
        else:
            self._move(batch, row, "expired", {})

    def _is_of_earlier_runs(self, row: SmsRow) -> bool:
        return row.state == "sending" and (row.sendid or 0) < self._first_sendid

    def _of_earlier_runs(self, line: str) -> list[SmsRow]:
        """SMS of a line that were on their way when the program ended, and are so still."""
        left = self._left_over.get(line, set())
        rows = [row for n in sorted(left) if (row := self._store.sms(n)) is not None and self._is_of_earlier_runs(row)]
        left.intersection_update(row.n for row in rows)
        return rows

    def _orphans(self, _at: float, now: float, limit: int) -> list[SmsRow]:
        """Those whose box has forgotten their session by now, and that it is not being asked about."""
        found: list[SmsRow] = []
        if now < self._started + self.settings.timing.wait_s:
            return found
        for line in list(self._left_over):
            asked = self._asked(line)
            if self._left_over[line] <= set(asked):
                if not self._left_over[line]:
                    del self._left_over[line]
                continue
            found += [row for row in self._of_earlier_runs(line) if row.n not in asked]
            if len(found) >= limit:
                break
        return found

    def _lost(self, batch: Batch, row: SmsRow) -> None:
        self._move(batch, row, "unknown", {}, evidence="restart")

    def _asked(self, name: str) -> Collection[int]:
        line = self._server.line(name)
        return line.asked if line is not None else ()

    def _expired(self, at: float, _now: float, limit: int) -> list[SmsRow]:
        """Queued SMS whose time is over, but for those in an open session: it expires them itself, or sends them."""
        after = (float("-inf"), 0)
        while rows := self._store.expired(after, at, limit):
            if found := [row for row in rows if row.n not in self._in_session(row.line)]:
                return found
            after = rows[-1].expires or 0.0, rows[-1].n
        return []

    def _in_session(self, name: str) -> Container[int]:
        line = self._server.line(name)
        return line.session.pending if line is not None and line.session is not None else ()

    def _readings(self, _at: float, now: float, _limit: int) -> list[SmsRow]:
        return [self._odometer_due[0][1]] if self._odometer_due and now >= self._odometer_due[0][0] else []

    def _read_next_odometer(self, batch: Batch, after: SmsRow) -> None:
        self._odometer_due.popleft()
        self._read_odometer(batch, after)

    def _doubtful(self, at: float, _now: float, limit: int) -> list[SmsRow]:
        """SMS that are unknown for so long that they are sent again. Those that never will be are passed over for good:
        they only get older.
        """
        long_ago = at - self.settings.timing.evidence_s
        for _ in range(DOUBTFUL_PAGES):
            rows = self._store.doubtful(self._passed_over, long_ago, limit)
            found = [row for row in rows if self._may_be_sent_again(row, at)]
            if not rows:
                self._passed_over = max(self._passed_over, (long_ago, 2**62))
            if found or not rows:
                return found
            self._passed_over = rows[-1].changed, rows[-1].n
        return []

    def _may_be_sent_again(self, row: SmsRow, at: float) -> bool:
        """Those of lines that are no longer configured stay unknown: nobody would send them."""
        in_time = row.expires is None or row.expires > at
        return row.attempt < MAX_ATTEMPTS and in_time and row.line in self.settings.lines

    def _send_again(self, batch: Batch, row: SmsRow) -> None:
        reason = "outcome unknown; sent again, as at_least_once asks: it may arrive twice"
        error = payloads.Error(code=None, text=reason, retryable=True, ambiguous=True)
        self._move(batch, row, "queued", {"doubted": 1}, error=error)

    def _old_reports(self, at: float, _now: float, limit: int) -> Sequence[HeldReport]:
        return self._store.old_reports(at - REPORT_HOLD_S, limit)

    def _let_go(self, batch: Batch, report: HeldReport) -> None:
        n, line, sms_no, state, number = report
        self._store.delete_report(n)
        if (row := self._only_possible(line, sms_no, number, batch.at)) is not None:
            self._reported(batch, row, state, sms_no)
            return
        batch.fact(
            self._topics.line(line, "delivery"),
            payloads.Delivery,
            event_type="delivered" if state == 0 else "undelivered",
            msg=None,
            cmd=None,
            job=None,
            to=number or None,
            sms_no=sms_no,
            error=_report_error(state),
            evidence="report",
        )

    def _only_possible(self, line: str, sms_no: int | None, number: str, at: float) -> SmsRow | None:
        """The SMS that a report with a strange sms_no is of, if it can be of no other."""
        trace = self._selftest_trace(line)
        digits = last_digits(number)
        if not digits or (trace is not None and at - trace[1] < REPORT_WINDOW_S and same_number(trace[2], number)):
            return None
        if sms_no is not None and self._store.by_sms_no(line, sms_no, digits, 0.0, 1):
            return None  # an old one of this number
        known = self._server.line(line)
        safe = known is not None and known.repeat_safe
        only: SmsRow | None = None
        rows = self._store.submitted_to(line, digits, at - REPORT_WINDOW_S, REPORT_CHOICES)
        for count, row in enumerate(rows, 1):
            if count == REPORT_CHOICES:
                return None
            # Else each of them may have gone out twice, with two sms_nos.
            if _could_be_reported(row) or (not safe and row.guarantee != "at_most_once"):
                if only is not None:
                    return None
                only = row
        # Also one that was queued again, as the gateway said that it had not taken it.
        open_ones = ("sending", "sent", "unknown", "queued")
        if only is None or only.state not in open_ones or not _could_be_reported(only):
            return None
        return only


_HANDLERS: dict[type, Callable[[Ledger, Any, Batch, float], None]] = {
    events.LineOnline: Ledger._line_online,
    events.LineOffline: Ledger._line_offline,
    events.LineMoved: Ledger._line_moved,
    events.LineChanged: Ledger._line_changed,
    events.LineReady: Ledger._line_ready,
    events.GatewayRebooted: Ledger._gateway_rebooted,
    events.RepeatUnsafe: Ledger._repeat_unsafe,
    events.SelfTestStep: Ledger._selftest_step,
    events.SelfTestEnded: Ledger._selftest_ended,
    events.Seen: Ledger._seen,
    events.SmsReceived: Ledger._sms_received,
    events.SmsSending: Ledger._sms_sending,
    events.SmsSent: Ledger._sms_sent,
    events.SmsFailed: Ledger._sms_failed,
    events.SmsUnknown: Ledger._sms_unknown,
    events.SmsRequeued: Ledger._sms_requeued,
    events.SmsExpired: Ledger._sms_expired,
    events.SmsReport: Ledger._sms_report,
    events.CallEvent: Ledger._call,
    events.UssdEvent: Ledger._ussd,
    events.LineEvent: Ledger._line_fact,
    events.RequestAnswered: Ledger._answered,
    events.RequestTimedOut: Ledger._timed_out,
}


def _could_be_reported(row: SmsRow) -> bool:
    """Whether a report could belong to it although their sms_nos don't say so."""
    if row.state in ("sending", "unknown", "failed"):  # one that failed may have gone out all the same (§4.5)
        return True
    return row.sms_no is None or segment(row.text).parts > 1  # other parts may have other numbers


def last_digits(number: str) -> str:
    """By what numbers are compared, since they are spelled with and without their country; as `SmsRow.digits`. What a
    gateway puts behind a `;` is no part of a number.
    """
    return re.sub(r"\D", "", number.partition(";")[0])[-7:]


def same_number(one: str, other: str) -> bool:
    """Whether two spellings may be the same number: their last digits agree, or one is missing (§5)."""
    return last_digits(other) in ("", last_digits(one))


def _report_error(state: int) -> payloads.Error | None:
    """Why, for the TP-Status of a report."""
    if state == 0:
        return None
    cause = causes.of_report(state)
    return payloads.Error(
        code=state,
        text=f"TP-Status {state}",
        cause=cause.word,
        meaning=cause.meaning,
        retryable=cause.passing,
        ambiguous=False,
    )
