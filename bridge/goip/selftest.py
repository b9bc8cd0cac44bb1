"""A self-test of a line's firmware: is a repeated SEND a query, or does it send again (docs/protocol.md §4.3)?

The line sends an SMS to another line of the same server, and repeats its SEND where some firmware sends twice: while
the SMS waits, after it was sent, and when the box must have forgotten the session. The other line counts the copies.
Like a bulk session it occupies its line, and is sans-IO: messages and time in; events and datagrams are appended.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any

from . import events, wire
from .session import Outcomes, Refusal, refusal_of
from .timing import Timing

ROUNDS = 2
"Round 1 repeats SEND around the outcome; round 2 has the next sms_no, and looks how long a session is remembered."
WAITING_REPEATS = 2
QUERIES = 2
"Transmissions of a SEND that gets no answer."
SMS_NOS = 256
"A sms_no that is the TP-Message-Reference counts to 255 (3GPP 23.040 §9.2.3.6)."


class Stage(enum.Enum):
    """What was sent, and what is awaited."""

    OPENING = "MSG sent"
    AUTHENTICATING = "PASSWORD sent"
    SUBMITTED = "SEND sent"
    WAITING = "SEND accepted: repeated while the SMS waits"
    SENT = "SEND repeated after OK: OK again"
    RESTING = "silence, in which the session must stay known"
    KNOWN = "SEND repeated after that: OK again"
    SLEEPING = "silence, in which the session must be forgotten"
    FORGOTTEN = "SEND repeated after that: ERROR SENDID"
    WATCHING = "counting copies"
    CLOSING = "DONE sent"
    CLOSED = "over"


class SelfTest:
    """One self-test. `safe` firmware did everything as it must; one SMS that left twice is `unsafe`, at once.

    Whatever else is not as it must be makes it `inconclusive`: nothing was proved, one way or the other.
    """

    def __init__(
        self,
        *,
        line: str,
        token: int,
        number: str,
        password: str,
        identity: str,
        take_sendid: Callable[[], int],
        timing: Timing,
        events: list[events.Event],
        datagrams: list[bytes],
    ) -> None:
        self.line = line
        self.token = token
        self.number = number
        "Of the line that receives."
        self.identity = identity
        "Of the hardware that is tested."
        self.sendids: Sequence[int] = ()
        self.deadline: float | None = None
        self.heard = float("-inf")  # a restart of the box, whenever it was, spoils it
        self.taken = self.authenticated = False
        self.priority = 9  # nothing makes it shorter
        self.refusal = Refusal.NONE
        self.outcomes = Outcomes(line)
        "No SMS of the owner is in it; `doubled` is the verdict `unsafe`."
        self.repeated = True
        self._password = password
        self._take_sendid = take_sendid
        self._timing = timing
        self._events = events
        self._datagrams = datagrams
        self._stage = Stage.OPENING
        self._texts: list[str] = []
        "By round; the telid is the number of the round, too."
        self._copies: list[int] = []
        "Whether the first outcome of a telid was OK or ERROR."
        self._reasons: list[str] = []
        "Why nothing is proved."
        self._evidence: list[str] = []
        "Why it is unsafe."
        self._passed = False
        self._steps: list[dict[str, Any]] = []
        self._began = self._sent_at = 0.0
        self._datagram = b""
        self._transmissions = 0
        self._waits = self._waiting_repeats = 0

    # -- what the line asks

    @property
    def over(self) -> bool:
        """Nothing more will come of it but late answers."""
        return self._stage is Stage.CLOSED

    @property
    def pending(self) -> set[int]:
        """No SMS of the owner."""
        return set()

    @property
    def verdict(self) -> str:
        """`safe`, `unsafe` or `inconclusive`, once it is over."""
        if self.outcomes.doubled:
            return "unsafe"
        return "safe" if self._passed and not self._reasons else "inconclusive"

    @property
    def dense(self) -> bool | None:
        """Whether the second SMS had the next sms_no; None when one of them had none."""
        first, second = (self.outcomes.sms_nos.get(telid) for telid in range(1, ROUNDS + 1))
        return None if first is None or second is None else (second - first) % SMS_NOS == 1

    # -- input

    def begin(self, now: float) -> None:
        """Open the first session."""
        self._began = now
        self._open(now)

    def receive(self, message: wire.Message, now: float) -> None:
        """Take one message that carries one of our sendids."""
        self._note(message, now)
        if message.sendid != self.sendids[-1]:  # type: ignore[union-attr]  # every message but keepalives and events
            return
        telid = len(self.sendids)
        if getattr(message, "telid", telid) != telid:
            return
        match self._stage, message:
            case Stage.OPENING, wire.PasswordPrompt():
                self.taken = True
                datagram = wire.encode_password(self.sendids[-1], self._password)
                self._transmit(datagram, Stage.AUTHENTICATING, now)
            case Stage.AUTHENTICATING, wire.PasswordPrompt():
                if self._transmissions < self._timing.session_transmissions:
                    self._transmit_again(now)
            case Stage.AUTHENTICATING, wire.SendPrompt():
                self.authenticated = True
                self._transmit(wire.encode_send(self.sendids[-1], telid, self.number), Stage.SUBMITTED, now)
                self._tell("send", f"SMS {telid}: SEND", now)
            case Stage.OPENING | Stage.AUTHENTICATING, wire.Error(text=text):
                self._refused(text, now)
            case Stage.SUBMITTED, wire.SubmitWait():
                self._stage, self.deadline = Stage.WAITING, now + self._timing.wait
                if telid == 1:
                    self._repeat_waiting(now)
            case Stage.WAITING, wire.SubmitWait():
                self._waits += 1
            case Stage.SUBMITTED | Stage.WAITING, wire.SubmitOk():
                self._sent(now)
            case Stage.SUBMITTED | Stage.WAITING, wire.SubmitError(code=code):
                self._doubt(f"the SMS was not sent: errorstatus {code}", now)
            case Stage.SUBMITTED | Stage.WAITING, wire.Error(text=text) if _of_session(text, telid):
                self._doubt(f"the SMS was not sent: {text}", now)
            case Stage.SENT, wire.SubmitOk():
                self._watch(now)
            case Stage.KNOWN, wire.SubmitOk():
                self._rest(Stage.SLEEPING, self._timing.selftest_forgotten, now)
            case Stage.FORGOTTEN, wire.Error(text="SENDID"):
                self._passed = True
                self._watch(now)
            case Stage.SENT | Stage.KNOWN | Stage.FORGOTTEN, (
                wire.SubmitWait() | wire.SubmitOk() | wire.SubmitError() | wire.Error()
            ):
                awaited = "ERROR SENDID" if self._stage is Stage.FORGOTTEN else "OK"
                self._doubt(f"SEND repeated {self._when()}: answered {_words(message)}, not {awaited}", now)
            case Stage.CLOSING, wire.Done() | wire.Error(text="SENDID"):
                self._closed(now)
            case _:
                pass  # a duplicate, or a late answer of a stage that is over

    def witness(self, text: str, now: float) -> None:
        """The other line received an SMS."""
        for index, ours in enumerate(self._texts):
            if ours not in text:
                continue
            self._copies[index] += 1
            self._tell("copy", f"SMS {index + 1}: copy {self._copies[index]} arrived", now)
            if self._copies[index] > 1:
                self._unsafe(f"SMS {index + 1} arrived more than once", now)
            elif self._stage is Stage.WATCHING:  # a slow network: give a second copy as much of a chance
                self.deadline = max(self.deadline or now, now + self._timing.selftest_watch / 2)

    def handle_timer(self, now: float) -> None:
        """Act on the deadline, if it has passed."""
        if self.deadline is None or now < self.deadline:
            return
        match self._stage:
            case Stage.OPENING | Stage.AUTHENTICATING:
                if self._transmissions < self._timing.session_transmissions:
                    self._transmit_again(now)
                else:
                    self.refusal = Refusal.SILENT
                    self.give_up(f"no answer to {'MSG' if self._stage is Stage.OPENING else 'PASSWORD'}", now)
            case Stage.WAITING:
                if len(self.sendids) == 1 and self._waiting_repeats < WAITING_REPEATS:
                    self._repeat_waiting(now)
                else:
                    self._doubt(f"no outcome within {self._timing.wait:g} s", now)
            case Stage.RESTING:
                self._ask(Stage.KNOWN, now)
            case Stage.SLEEPING:
                self._ask(Stage.FORGOTTEN, now)
            case Stage.SUBMITTED | Stage.SENT | Stage.KNOWN | Stage.FORGOTTEN:
                if self._transmissions < QUERIES:
                    self._transmit_again(now)
                    self._tell("repeat", "SEND again: no answer yet", now)
                else:
                    self._doubt("no answer to SEND", now)
            case Stage.WATCHING:
                if self._copies[-1] == 0:
                    self._reasons.append("the SMS did not reach the receiving line")
                self._close(now)
            case Stage.CLOSING:  # repeated once: an unclosed session blocks a slot of the box for 90 s (§4.4)
                self._datagrams.append(self._datagram)
                self._closed(now)
            case Stage.CLOSED:
                self.deadline = None

    def give_up(self, reason: str, now: float) -> None:
        """Something happened to one of the lines that makes the rest worthless."""
        self._reasons.append(reason)
        if self._stage not in (Stage.CLOSING, Stage.CLOSED):
            self._close(now)

    def abandon(self, now: float) -> None:
        """It ends here, without a word to the box."""
        self._reasons.append("cut off: the gateway or the bridge restarted, or the line was removed")
        self._end(now)

    # -- steps

    def _open(self, now: float) -> None:
        sendid = self._take_sendid()
        self.sendids = (*self.sendids, sendid)
        self._texts.append(f"goip-bridge self-test {sendid}")  # a sendid is never used again
        self._copies.append(0)
        self._transmit(wire.encode_msg(sendid, self._texts[-1]), Stage.OPENING, now)
        self._tell("open", f"SMS {len(self.sendids)}: MSG", now)

    def _refused(self, text: str, now: float) -> None:
        if text == "PASSWORD" and self._stage is Stage.OPENING:
            return  # nothing was asked for yet: not an answer to us
        self.refusal = refusal_of(text)
        self.give_up(f"the gateway refused the session: {text}", now)

    def _repeat_waiting(self, now: float) -> None:
        """The first repeat follows the first WAIT at once, when the SMS certainly waits."""
        self._waiting_repeats += 1
        self._transmit_again(now)
        more = self._waiting_repeats < WAITING_REPEATS
        self.deadline = now + (self._timing.selftest_repeat if more else self._timing.wait)
        self._tell("repeat", f"SMS 1: SEND again, {self._waiting_repeats} of {WAITING_REPEATS} while it waits", now)

    def _sent(self, now: float) -> None:
        if len(self.sendids) > 1:
            self._rest(Stage.RESTING, self._timing.selftest_known, now)
        elif self._waits:
            self._ask(Stage.SENT, now)
        else:
            self._doubt("no repeated SEND was answered with WAIT: the SMS went out too soon", now)

    def _rest(self, stage: Stage, seconds: float, now: float) -> None:
        """Say nothing to the box: a session is forgotten when nothing was heard of it for so long (§4.2)."""
        self._stage, self.deadline = stage, self._sent_at + seconds
        purpose = "still know" if stage is Stage.RESTING else "have forgotten"
        left = max(0.0, self.deadline - now)
        self._tell("pause", f"silence; after {seconds:g} s the gateway must {purpose} the session", now, left)

    def _ask(self, stage: Stage, now: float) -> None:
        when = self._when(stage)
        self._transmit(self._datagram, stage, now)
        self._tell("repeat", f"SMS {len(self.sendids)}: SEND again, {when}", now)

    def _when(self, stage: Stage | None = None) -> str:
        match stage or self._stage:
            case Stage.SENT:
                return "after it was sent"
            case Stage.KNOWN:
                return f"after {self._timing.selftest_known:g} s of silence"
            case _:
                return f"after {self._timing.selftest_forgotten:g} s of silence"

    def _doubt(self, reason: str, now: float) -> None:
        """Nothing can be proved any more, but that it is unsafe."""
        self._reasons.append(reason)
        self._watch(now)

    def _watch(self, now: float) -> None:
        self._stage = Stage.WATCHING
        self.deadline = self._sent_at + self._timing.selftest_watch
        left = max(0.0, self.deadline - now)
        self._tell("watch", f"waiting {left:.0f} s for copies on the receiving line", now, left)

    def _note(self, message: wire.Message, now: float) -> None:
        """Every answer that says something of an SMS, also a late one, and what it proves."""
        if isinstance(message, wire.SubmitWait | wire.SubmitOk | wire.SubmitError | wire.Error):
            self._tell("answer", _words(message), now)
        if isinstance(message, wire.SubmitOk | wire.SubmitError):
            telid = message.telid
            if message.sendid not in self.sendids or self.sendids.index(message.sendid) + 1 != telid:
                return
            before = self.outcomes.doubled
            self.outcomes.settle(message, self._events)
            if self.outcomes.doubled != before:
                self._unsafe(f"SMS {telid} had {self.outcomes.doubled}", now)

    def _unsafe(self, evidence: str, now: float) -> None:
        """It left twice: repeating it once more would only cost more."""
        self.outcomes.doubled = self.outcomes.doubled or evidence
        if evidence not in self._evidence:
            self._evidence.append(evidence)
        if self._stage not in (Stage.CLOSING, Stage.CLOSED):
            self._close(now)

    def _close(self, now: float) -> None:
        self._transmit(wire.encode_done(self.sendids[-1]), Stage.CLOSING, now)
        self.deadline = now + self._timing.done

    def _closed(self, now: float) -> None:
        if len(self.sendids) < ROUNDS and not self._reasons and not self.outcomes.doubled:
            self._open(now)
        else:
            self._end(now)

    def _end(self, now: float) -> None:
        if self._stage is Stage.CLOSED:
            return
        self._stage, self.deadline = Stage.CLOSED, None
        timing, verdict = self._timing, self.verdict
        report = {
            "verdict": verdict,
            "reasons": self._evidence if verdict == "unsafe" else self._reasons,
            "copies": self._copies,
            "sms_nos": [self.outcomes.sms_nos.get(telid) for telid in range(1, len(self.sendids) + 1)],
            "dense": self.dense,
            "took_s": round(now - self._began, 1),
            "timing": {
                "repeat_s": timing.selftest_repeat,
                "known_s": timing.selftest_known,
                "forgotten_s": timing.selftest_forgotten,
                "watch_s": timing.selftest_watch,
            },
            "steps": self._steps,
        }
        self._events.append(
            events.SelfTestEnded(self.line, self.token, verdict, self.identity, bool(self.dense), report)
        )

    def _transmit(self, datagram: bytes, stage: Stage, now: float) -> None:
        self._stage, self._datagram, self._transmissions = stage, datagram, 0
        self._transmit_again(now)

    def _transmit_again(self, now: float) -> None:
        self._transmissions += 1
        self._datagrams.append(self._datagram)
        self._sent_at = now
        self.deadline = now + self._timing.resend

    def _tell(self, step: str, text: str, now: float, within: float | None = None) -> None:
        at = round(now - self._began, 1)
        self._steps.append({"at_s": at, "round": len(self.sendids), "step": step, "text": text})
        self._events.append(events.SelfTestStep(self.line, self.token, at, len(self.sendids), step, text, within))


def _of_session(text: str, telid: int) -> bool:
    """Whether an ERROR is about our session or SMS: others may be late answers of the handshake."""
    return text in ("SENDID", "GSM_LOGOUT") or text.split()[:1] == [str(telid)]


def _words(message: wire.Message) -> str:
    """An answer without its ids."""
    match message:
        case wire.SubmitWait():
            return "WAIT"
        case wire.SubmitOk(sms_no=None):
            return "OK"
        case wire.SubmitOk(sms_no=sms_no):
            return f"OK {sms_no}"
        case wire.SubmitError(code=code):
            return f"ERROR errorstatus:{code}"
        case wire.Error(text=text):
            return f"ERROR {text}"
    return type(message).__name__
