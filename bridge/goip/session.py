"""One bulk SMS session with a line: MSG, PASSWORD, SEND … DONE (docs/protocol.md §4).

Sans-IO: messages and time in; events and datagrams are appended to the two lists it was given.
A session never lies about a number: once its SEND has left, the number ends as sent, failed or unknown, and goes
back to the queue only on proof that the box did nothing with it (§4.3).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from . import events, wire
from .timing import Timing

MAX_WAITS = 10
"How many times `Timing.wait` an SMS may stay accepted and undecided."


class Phase(enum.Enum):
    """What was sent, and what is awaited."""

    OPENING = "MSG sent"
    AUTHENTICATING = "PASSWORD sent"
    SUBMITTED = "SEND sent"
    WAITING = "SEND accepted"
    DENIED = "SEND denied, and perhaps taken all the same"
    CLOSING = "DONE sent"
    CLOSED = "over"


@dataclass(frozen=True, slots=True)
class Recipient:
    """One number of a session."""

    msg: int
    "The owner's key of this SMS."
    number: str
    repeat: bool = True
    "Whether an unanswered SEND may be repeated; false for at-most-once."
    expires: float | None = None
    "When it is too late for the first SEND."


class Refusal(enum.Enum):
    """Why a session ended early, for the line to decide on its pause."""

    NONE = "ended as it should"
    REFUSED = "refused for a reason that may pass"
    FULL = "the box has as many sessions as it takes"
    STRANGE = "the box does not know what it was just told"
    SILENT = "no answer"
    PASSWORD = "password refused"
    LOST = "the box does not know the session"


TOO_MANY = "too_many_sends_in_server"
_REFUSALS = {"PASSWORD": Refusal.PASSWORD, TOO_MANY: Refusal.FULL, "SENDID": Refusal.STRANGE}


def refusal_of(text: str) -> Refusal:
    """What an ERROR means that refuses a session."""
    return _REFUSALS.get(text, Refusal.REFUSED)


@dataclass(slots=True)
class Outcomes:
    """What is awaited of a session, and what it brought: also when the session itself is over."""

    line: str
    open: dict[int, Recipient] = field(default_factory=dict)
    "Numbers submitted whose outcome is not known yet, by telid: late answers are matched with it."
    sms_nos: dict[int, int] = field(default_factory=dict)
    "What the box called the SMS it sent, by telid."
    kinds: dict[int, type] = field(default_factory=dict)
    "Whether it said OK or ERROR first, by telid."
    repeated: set[int] = field(default_factory=set)
    "The telids whose SEND left again, on firmware that may send twice: an error may be that of the second SMS."
    doubled: str = ""
    "How it showed that the box submitted one SMS twice (§4.6); empty when it did not."

    def settle(self, message: wire.SubmitOk | wire.SubmitError, out: list[events.Event]) -> bool:
        """Match an outcome with its number; false for one that is not awaited (a repeated push, §4.1)."""
        recipient = self.open.pop(message.telid, None)
        if self.kinds.setdefault(message.telid, type(message)) is not type(message):
            self.doubled = "two outcomes: OK and ERROR"
        elif isinstance(message, wire.SubmitOk) and message.sms_no is not None:
            first = self.sms_nos.setdefault(message.telid, message.sms_no)
            if first != message.sms_no:
                self.doubled = "two sms_nos"
        match message:
            case _ if recipient is None:
                return False
            case wire.SubmitOk(sms_no=sms_no):
                out.append(events.SmsSent(self.line, recipient.msg, sms_no))
            case wire.SubmitError(code=code):
                repeated = message.telid in self.repeated
                of = (message.sendid, message.telid)
                text = f"errorstatus:{code}"
                out.append(events.SmsFailed(self.line, recipient.msg, code, text, repeated=repeated, of=of))
        return True


class Session(Protocol):
    """What occupies a line: a bulk session or a self-test."""

    sendids: Sequence[int]
    "Whose answers it takes."
    heard: float
    "When the box showed last that it knows it."
    deadline: float | None
    taken: bool
    "The box has opened it."
    authenticated: bool
    refusal: Refusal
    outcomes: Outcomes
    repeated: bool
    priority: int

    @property
    def over(self) -> bool: ...
    @property
    def pending(self) -> set[int]: ...
    def receive(self, message: wire.Message, now: float) -> None: ...
    def handle_timer(self, now: float) -> None: ...
    def abandon(self, now: float) -> None: ...


class BulkSession:
    """One text to one or more numbers of one line. Begins with `open`, or with `resume` after a restart."""

    PRIORITY = 5
    "Where nothing else is said."

    def __init__(
        self,
        *,
        line: str,
        sendid: int,
        password: str,
        safe: bool = False,
        priority: int = PRIORITY,
        timing: Timing,
        events: list[events.Event],
        datagrams: list[bytes],
    ) -> None:
        self.line = line
        self.sendid = sendid
        self.sendids: Sequence[int] = (sendid,)
        self.phase = Phase.OPENING
        self.refusal = Refusal.NONE
        self.taken = self.authenticated = False
        self.priority = priority
        self.outcomes = Outcomes(line)
        self._password = password
        self._pending: list[Recipient] = []
        self.safe = safe
        "Silence after WAIT may be broken by a query: the firmware never sends twice for one telid (§4.3)."
        self._silent_since = self._submitted_at = 0.0
        self._telid = 0
        self._denial = ""
        "In `DENIED`: what the box said."
        self._not_taken = False
        "In `DENIED`: that was the one answer to the one SEND, so nothing was sent if it is true (§4.3)."
        self._timing = timing
        self._events = events
        self._datagrams = datagrams
        self.repeated = False
        "Something of this session left more than once, so answers of an earlier phase may still come."
        self._datagram = b""
        self._transmissions = 0
        self._transmitted_at = 0.0
        self.deadline: float | None = None
        self.heard = float("-inf")

    def open(self, text: str, recipients: Sequence[Recipient], now: float) -> None:
        """Send one text to these numbers."""
        self._pending.extend(recipients)
        self._transmit(wire.encode_msg(self.sendid, text), Phase.OPENING, now)

    def resume(self, telid: int, recipient: Recipient, at: float, heard: float, now: float) -> None:
        """Go on with a number that an earlier run submitted, or was about to, at `at`: listen, then ask.

        Only for firmware where a repeated SEND is a query: should the first one not have arrived, this is the first.
        Never MSG with an old sendid: that would make a new session, in which SEND sends (docs/reliability.md).
        """
        self.taken = self.authenticated = True
        self.heard = heard
        self._telid, self.outcomes.open[telid] = telid, recipient
        self._submitted_at = self._silent_since = now
        self.repeated = True  # nobody knows what left before
        self._datagram = wire.encode_send(self.sendid, telid, recipient.number)
        self.phase = Phase.WAITING
        self.deadline = max(now, at + self._timing.grace)

    def receive(self, message: wire.Message, now: float) -> None:
        """Take one message that carries this session's sendid."""
        if not isinstance(message, wire.Error):
            self.heard = now
        match self.phase, message:
            case Phase.OPENING, wire.PasswordPrompt():
                self.taken = True
                self._transmit(wire.encode_password(self.sendid, self._password), Phase.AUTHENTICATING, now)
            case Phase.AUTHENTICATING, wire.PasswordPrompt():
                # Our PASSWORD was lost, or this answers a repeated MSG: the box waits for it (§4.4).
                if self._transmissions < self._timing.session_transmissions:
                    self._repeat(now)
            case Phase.AUTHENTICATING, wire.SendPrompt():
                self.authenticated = True
                self._submit_next(now)
            case Phase.OPENING | Phase.AUTHENTICATING, wire.Error(text=text):
                self._refused(text, now)
            case Phase.SUBMITTED | Phase.WAITING | Phase.DENIED, wire.SubmitWait(telid=telid) if telid == self._telid:
                self.phase = Phase.WAITING
                self._silent_since = now
                # A box may say WAIT for ever; the line must not wait with it.
                end = self._submitted_at + MAX_WAITS * self._timing.wait
                self.deadline = min(end, now + (self._timing.resend if self.safe else self._timing.wait))
            case _, wire.SubmitOk(telid=telid) | wire.SubmitError(telid=telid) if self.outcomes.settle(
                message, self._events
            ):
                self._settled(telid, now)
            case Phase.SUBMITTED | Phase.WAITING | Phase.DENIED, wire.Error(text=text):
                self._error_after_submit(text, now)
            case Phase.CLOSING, wire.Done() | wire.Error(text="SENDID"):
                self._close()
            case _:
                pass  # a duplicate, or a late answer of a phase that is over

    @property
    def over(self) -> bool:
        """Nothing more will come of it but late answers."""
        return self.phase is Phase.CLOSED

    @property
    def pending(self) -> set[int]:
        """The SMS whose turn is still to come."""
        return {recipient.msg for recipient in self._pending}

    def handle_timer(self, now: float) -> None:
        """Act on the deadline, if it has passed."""
        if self.deadline is None or now < self.deadline:
            return
        match self.phase:
            case Phase.OPENING | Phase.AUTHENTICATING:
                if self._transmissions < self._timing.session_transmissions:
                    self._repeat(now)
                else:
                    self._give_back(f"no answer to {self._verb()}", Refusal.SILENT, now)
            case Phase.SUBMITTED | Phase.WAITING if self._may_repeat_send(now):
                self._repeat(now)
                if not self._may_repeat_send(now):
                    self.deadline = max(now, self._silent_since + self._timing.wait)
            case Phase.SUBMITTED | Phase.WAITING:
                self._unknown("silence", now)
            case Phase.DENIED:
                self._believe_denial(now)
            case Phase.CLOSING:  # repeated once: an unclosed session blocks a slot of the box for 90 s (§4.4)
                self._datagrams.append(self._datagram)
                self._close()
            case Phase.CLOSED:
                self.deadline = None

    @property
    def awaits_outcome(self) -> bool:
        """A number is submitted, and the box has not said what became of it."""
        return self.phase in (Phase.SUBMITTED, Phase.WAITING, Phase.DENIED)

    @property
    def submitted(self) -> int | None:
        """The SMS that `awaits_outcome` is about."""
        recipient = self.outcomes.open.get(self._telid) if self.awaits_outcome else None
        return recipient.msg if recipient is not None else None

    def release_sms(self, msg: int, now: float) -> None:
        """It is known from elsewhere what became of an SMS: it is not submitted, and no longer waited for."""
        before = len(self._pending)
        self._pending[:] = [recipient for recipient in self._pending if recipient.msg != msg]
        if self.submitted == msg:
            del self.outcomes.open[self._telid]
            self._settled(self._telid, now)
        elif before and not self._pending and self.phase in (Phase.OPENING, Phase.AUTHENTICATING):
            self._done(now)

    def wind_down(self, now: float) -> None:
        """Submit no more numbers: they stay in the owner's queue. One that is submitted still gets its outcome."""
        self.shorten(0, now)

    def shorten(self, most: int, now: float) -> None:
        """Submit so many numbers at most, with those that were; the others stay in the owner's queue."""
        del self._pending[max(0, most - self._telid) :]
        if not self._pending and self.phase in (Phase.OPENING, Phase.AUTHENTICATING):
            self._done(now)

    @property
    def datagram(self) -> bytes:
        """What was sent last."""
        return self._datagram

    def slept(self, seconds: float) -> None:
        """So much time passed that no timer knows of: numbers that wait for their turn expire all the same."""
        self._pending[:] = [
            recipient if recipient.expires is None else replace(recipient, expires=recipient.expires - seconds)
            for recipient in self._pending
        ]

    def held_up(self, now: float) -> bytes | None:
        """What was to leave last leaves only now: its answer is awaited from now on. Returns it where it must not leave
        any more: a number whose time was over meanwhile.
        """
        late = now - self._transmitted_at
        self._transmitted_at = now
        if self.deadline is not None:
            self.deadline += late
        if self.phase is not Phase.SUBMITTED or self._transmissions > 1:
            return None
        recipient = self.outcomes.open[self._telid]
        if recipient.expires is None or now < recipient.expires:
            self._submitted_at = self._silent_since = now
            return None
        kept_back = self._datagram
        del self.outcomes.open[self._telid]
        self._events.append(events.SmsRequeued(self.line, recipient.msg, "its time was over before SEND could leave"))
        self._submit_next(now)
        return kept_back

    def only_listen(self, now: float) -> None:
        """Ask no more: the firmware may send again."""
        self.safe = False
        if self.phase is Phase.WAITING:
            self.deadline = max(now, self._silent_since + self._timing.wait)

    def abandon(self, now: float) -> None:
        """The box rebooted: it knows nothing of this session any more."""
        if self.phase is Phase.DENIED and self._not_taken:
            self._events.append(events.SmsRequeued(self.line, self.outcomes.open[self._telid].msg, self._denial))
        elif self.awaits_outcome:
            self._events.append(events.SmsUnknown(self.line, self.outcomes.open[self._telid].msg, "session_lost"))
        self._pending.clear()  # nothing happened to them: they are still in the owner's queue
        self.refusal = Refusal.LOST
        self._close()

    # -- steps

    def _submit_next(self, now: float) -> None:
        while self._pending and self._pending[0].expires is not None and self._pending[0].expires <= now:
            self._events.append(events.SmsExpired(self.line, self._pending.pop(0).msg))
        if not self._pending:
            self._done(now)
            return
        recipient = self._pending.pop(0)
        self._telid += 1
        self.outcomes.open[self._telid] = recipient
        self._submitted_at = self._silent_since = now
        # The event is committed before the datagram leaves: the journal (§4.3).
        self._events.append(events.SmsSending(self.line, recipient.msg, self.sendid, self._telid))
        self._transmit(wire.encode_send(self.sendid, self._telid, recipient.number), Phase.SUBMITTED, now)
        if not self._may_repeat_send(now):
            self.deadline = now + self._timing.wait

    def _may_repeat_send(self, now: float) -> bool:
        recipient = self.outcomes.open[self._telid]
        if self._transmissions == 0 and recipient.expires is not None and recipient.expires <= now:
            return False  # resumed, and held up since: the question could be its first SEND
        if self.safe:  # a query: it also keeps the session alive
            end = self._submitted_at + MAX_WAITS * self._timing.wait
            return now < min(end, self._silent_since + self._timing.wait)
        few = self._transmissions < self._timing.session_transmissions
        return self.phase is Phase.SUBMITTED and few and recipient.repeat

    def _settled(self, telid: int, now: float) -> None:
        if telid == self._telid and self.awaits_outcome:
            if self.safe and self._transmissions > 1 and now < self._transmitted_at + self._timing.resend:
                # A question may still be on its way. Behind the next number, a box that remembers only the last one
                # would send for it; in a session that is over nothing does.
                self._pending.clear()  # nothing happened to them: they are still in the owner's queue
            self._submit_next(now)

    def _refused(self, text: str, now: float) -> None:
        if text == "PASSWORD":
            if self.phase is Phase.OPENING:
                return  # nothing was asked for yet: not an answer to us
            for recipient in self._pending:
                self._events.append(
                    events.SmsFailed(self.line, recipient.msg, None, "password refused", submitted=False)
                )
            self._pending.clear()
            self.refusal = Refusal.PASSWORD
            self._done(now)  # the box waits for another PASSWORD or for DONE
            return
        if text == TOO_MANY:
            self._pending.clear()  # nothing happened to them: they wait for their turn, as before
        self._give_back(text, refusal_of(text), now)

    def _error_after_submit(self, text: str, now: float) -> None:
        words = text.split()
        if words and words[0] == str(self._telid):  # ERROR sendid telid <words>: this number's own error, uncoded
            msg, reason = self.outcomes.open.pop(self._telid).msg, text.partition(" ")[2]
            of = (self.sendid, self._telid)
            self._events.append(events.SmsFailed(self.line, msg, None, reason, of=of))
            self._settled(self._telid, now)
        elif text not in ("SENDID", "GSM_LOGOUT") or self.phase is Phase.DENIED:
            pass  # too_many_sends_in_server, PASSWORD: late answers of the phases before
        elif (not_taken := self.phase is Phase.SUBMITTED and not self.repeated) or text == "SENDID":
            # One answer alone is not believed: another may have been overtaken by it, or it is wrong.
            self.phase, self._denial, self._not_taken = Phase.DENIED, text, not_taken
            self.deadline = now + self._timing.grace

    def _believe_denial(self, now: float) -> None:
        """Nothing contradicted it."""
        if not self._not_taken:
            self.refusal = Refusal.LOST
            self._unknown("session_lost", now)
            return
        # The box did not take it (§4.3). The number stays open: an OK that comes all the same stops the next attempt.
        self._pending.insert(0, self.outcomes.open[self._telid])
        self._give_back(self._denial, refusal_of(self._denial), now)

    def _unknown(self, evidence: str, now: float) -> None:
        self._events.append(events.SmsUnknown(self.line, self.outcomes.open[self._telid].msg, evidence))
        self._pending.clear()  # nothing happened to them: they are still in the owner's queue
        self._done(now)

    def _give_back(self, reason: str, refusal: Refusal, now: float) -> None:
        for recipient in self._pending:
            self._events.append(events.SmsRequeued(self.line, recipient.msg, reason))
        self._pending.clear()
        self.refusal = refusal
        if self.phase is Phase.OPENING and refusal is not Refusal.SILENT and not self.repeated:
            self._close()  # the box opened nothing, so there is nothing to end (§12.4)
        else:
            self._done(now)

    def _done(self, now: float) -> None:
        self._transmit(wire.encode_done(self.sendid), Phase.CLOSING, now)
        self.deadline = now + self._timing.done

    def _close(self) -> None:
        self.phase = Phase.CLOSED
        self.deadline = None

    def _transmit(self, datagram: bytes, phase: Phase, now: float) -> None:
        self.phase = phase
        self._datagram = datagram
        self._transmissions = 1
        self._transmitted_at = now
        self._datagrams.append(datagram)
        self.deadline = now + self._timing.resend

    def _repeat(self, now: float) -> None:
        self.repeated = True
        if self.phase in (Phase.SUBMITTED, Phase.WAITING) and not self.safe:
            self.outcomes.repeated.add(self._telid)
        self._transmissions += 1
        self._transmitted_at = now
        self._datagrams.append(self._datagram)
        self.deadline = now + self._timing.resend

    def _verb(self) -> str:
        return "MSG" if self.phase is Phase.OPENING else "PASSWORD"
