"""One line of a gateway: where it is, what it said, and what is under way on it.

Called by `SmsServer` only, with messages that passed authentication.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from . import control, events, wire
from .box import Box
from .events import Address
from .selftest import SelfTest
from .session import BulkSession, Outcomes, Recipient, Refusal, Session
from .timing import Timing
from .undecoded import decoded

MAX_SUSPECTS = 100
MAX_REPEATS = 10_000
"Remembered events of a line; far more than a box can send while it still repeats."
KEEPALIVE = 25.0
"Seconds between two keepalives, at least; boxes say 30 (§3)."
REPEATING = 15.0
"Seconds within which a box repeats an event, with some for the network: every 3 s, three times (§6)."
CONTESTED = 600.0
"Seconds for which a line whose place was claimed by another sender stays where it is, as long as it is heard there."


class Output(Protocol):
    """What a line needs of its server."""

    timing: Timing
    events: list[events.Event]
    datagrams: list[tuple[bytes, Address]]

    def new_sendid(self) -> int: ...
    def await_answer(self, sendid: int, line: "Line") -> None: ...
    def linger(self, sendid: int, outcomes: Outcomes, now: float) -> None: ...
    def schedule(self, line: "Line") -> None: ...
    def listened(self, since: float, now: float) -> float: ...
    def box_of(self, line: "Line") -> "Box[Line]": ...
    def call_next(self, box: "Box[Line]", now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen of a line's firmware, by a self-test or by accident (§4.3)."""

    safe: bool
    "A repeated SEND is a query, and a SEND in a forgotten session is refused."
    identity: str
    "Of the hardware it was seen on: the proof does not hold for another one."
    dense: bool = False
    "Each SMS of the line takes the next sms_no (§4.6)."


@dataclass(frozen=True, slots=True)
class Submitted:
    """A number that an earlier run submitted, or was about to, without learning the outcome."""

    sendid: int
    telid: int
    recipient: Recipient
    at: float
    "When it was written down, just before its SEND."
    heard: float
    "When the box was certainly asked about it last: it forgets a session that it hears nothing of."


@dataclass(slots=True)
class Call:
    """The channel's call as last told."""

    state: str = "idle"
    number: str | None = None
    direction: str | None = None
    since: float | None = None
    "When `state` began."
    answered_at: float | None = None
    ongoing: bool = False
    "A call began and its end was not told yet."
    begun: bool = False
    "Its `ringing` or `dialing` was told."


@dataclass(slots=True, eq=False)
class Line:
    """State of one line. Attributes are for reading; `SmsServer` alone calls the methods."""

    name: str
    goip_id: str
    password: str
    out: Output
    address: Address | None = None
    previous_address: Address | None = None
    "Where it was before it moved, until `settled`: answers from there still count."
    home: Address | None = None
    "Where it is known to live: its last address that lasted for `Timing.offline`, or its first one."
    home_count: int = 0
    "The count it had when it left home."
    settled: float = 0.0
    "When a line that moved is at home where it is."
    strayed: bool = False
    "It answered from a new port of its host: nothing is begun before a keepalive says where it is."
    contested_until: float = float("-inf")
    "Another sender claimed the line's place, with its password: until then no other address is believed."
    count: int | None = None
    "The keepalive count believed last."
    smaller_count: int | None = None
    "A smaller count, seen once: a second one makes it a reboot (§2.1)."
    reboots: int = 0
    heard: float = 0.0
    "When the line was last heard at its address, or when we began to listen."
    ever_heard: bool = False
    declared_safe: bool | None = None
    "What the configuration says of repeated SENDs; None leaves it to the proof."
    proof: Proof | None = None
    online: bool | None = None
    "None until it is heard, or silent for `Timing.offline` after the start."
    online_before: bool = False
    "Whether it was online when the last run ended."
    fields: dict[str, str] = field(default_factory=dict)
    """The last keepalive, by lower-case name where the field is known, and what the gateway answered since: the newest
    word counts."""
    told: dict[str, str] = field(default_factory=dict)
    """What the gateway answered of fields that its keepalives don't have: to be shown. Nobody would say that it has
    changed, so nothing else depends on it."""
    call: Call = field(default_factory=Call)
    exp_time: int | None = None
    remain_time: int | None = None
    "Outgoing minutes left; -1 is unlimited."
    gateway: str | None = None
    "The box, where the configuration names it."
    box: "Box[Line] | None" = None
    "Where its session counts, or its last one, or where it waits for one."
    session: Session | None = None
    tester: "Line | None" = None
    "The line whose self-test sends its SMS to this one."
    password_refused: bool = False
    blocked_until: float | None = None
    held_until: float = float("-inf")
    "No SMS leaves before, whatever happens (docs/contract.md §5, a restored store)."
    scheduled: float | None = None
    "The server's: when its deadline heap will look at this line."
    _backoff: float = 0.0
    _seen: dict[bytes, float] = field(default_factory=dict)
    _requests: dict[int, control.Request] = field(default_factory=dict)
    _ussd: control.UssdDialogue | None = None
    _ussd_waiting: deque[control.UssdDialogue] = field(default_factory=deque)
    _ussd_late: dict[int, tuple[float, control.UssdDialogue]] = field(default_factory=dict)
    _hangup_deadline: float | None = None
    _hangup_ignored_until: float = 0.0
    "A call that IDLE ended is not ended again by its late HANGUP."
    _call_step: tuple[int, float] | None = None
    "The recvid of the newest STATE or HANGUP, and when it came: older ones were overtaken (§7.13)."
    _suspects: list[tuple[wire.Event, bytes, Address]] = field(default_factory=list)
    "Events that are known, and yet too late to be repeats: the box may have rebooted, and count its recvids again."
    _check_disabled: bool = False
    _outgoing: list[bytes] = field(default_factory=list)
    _earlier: deque[Submitted] = field(default_factory=deque)
    "To be asked about, one after the other, before anything new is sent."
    _receiver: "Line | None" = None
    "The line to which the self-test of this one sends its SMS."

    # -- what the owner asks

    @property
    def usable(self) -> bool:
        """An order could reach the line: its address is known and it is not offline."""
        return self.address is not None and self.online is not False

    @property
    def ready(self) -> bool:
        """The line can take a bulk session now."""
        free = self.session is None and self.blocked_until is None
        return self.usable and not self.disabled and free and not self.strayed

    @property
    def identity(self) -> str:
        """What tells the hardware, and with it the firmware: the type allocation code of the IMEI (3GPP 23.003)."""
        return (wire.value(self.fields.get("imei")) or "")[:8]

    @property
    def known(self) -> Proof | None:
        """What was proved of the present hardware. That it sends twice holds until another one is seen."""
        proof, identity = self.proof, self.identity
        if proof is None or (proof.identity != identity and (proof.safe or (proof.identity and identity))):
            return None
        return proof

    @property
    def repeat_safe(self) -> bool:
        """A repeated SEND is a query of its outcome on this firmware, also after WAIT (§4.3)."""
        if self.known is not None and not self.known.safe:
            return False  # it was seen to send twice, whatever the configuration says
        return self.known is not None if self.declared_safe is None else self.declared_safe

    @property
    def number(self) -> str | None:
        """The SIM's phone number, where the gateway knows it."""
        number = wire.value(self.fields.get("num", self.told.get("num")))
        return None if number is None else number.strip()

    @property
    def disabled(self) -> bool:
        """The module is switched off (§3, disable_status)."""
        return self.fields.get("disable_status") == "1"

    @property
    def requests(self) -> int:
        """Control commands under way."""
        return len(self._requests)

    @property
    def ussd_dialogues(self) -> int:
        """USSD codes under way or waiting for their turn."""
        return (self._ussd is not None) + len(self._ussd_waiting)

    def turn(self, priority: int, now: float) -> int:
        """How many numbers of this priority a bulk session may have now; 0 where the line is not ready, or has to wait.

        A session that is less urgent then ends after the number it is at.
        """
        if isinstance(self.session, BulkSession) and self.session.priority < priority:
            self.shorten(0, now)
        return self._move_to_box().turn(self, priority, now) if self.ready else 0

    def leave(self, now: float) -> None:
        """There is nothing to send: others need not wait for this line to take its turn."""
        if self.box is not None:
            self.box.leave(self)
            self.out.call_next(self.box, now)

    def shorten(self, most: int, now: float) -> None:
        """Let a bulk session end after so many numbers."""
        if isinstance(self.session, BulkSession):
            self.session.shorten(most, now)
            self._after_session(now)
            self.out.schedule(self)

    def _move_to_box(self) -> "Box[Line]":
        box = self.out.box_of(self)
        if self.box is not None and self.box is not box:
            self.box.leave(self)
        self.box = box
        return box

    def send_sms(
        self, text: str, recipients: Sequence[Recipient], now: float, priority: int = BulkSession.PRIORITY
    ) -> None:
        """Begin a bulk session. The line must be `ready`."""
        self._new_session(self.out.new_sendid(), now, priority).open(text, recipients, now)
        self._flush()

    def _new_session(self, sendid: int, now: float, priority: int) -> BulkSession:
        assert self.session is None
        self.session = session = BulkSession(
            line=self.name,
            sendid=sendid,
            password=self.password,
            safe=self.repeat_safe,
            priority=priority,
            timing=self.out.timing,
            events=self.out.events,
            datagrams=self._outgoing,
        )
        self._move_to_box().begun(self, now)
        self.out.await_answer(sendid, self)
        return session

    def begin_selftest(self, token: int, receiver: "Line", number: str, now: float) -> None:
        """Find out how the firmware takes repeated SENDs. The line must be `ready`; `receiver` has this number."""
        self._receiver, receiver.tester = receiver, self
        self.session = test = SelfTest(
            line=self.name,
            token=token,
            number=number,
            password=self.password,
            identity=self.identity,
            take_sendid=self._take_sendid,
            timing=self.out.timing,
            events=self.out.events,
            datagrams=self._outgoing,
        )
        self._move_to_box().begun(self, now)
        test.begin(now)
        self._flush()

    def _take_sendid(self) -> int:
        sendid = self.out.new_sendid()
        self.out.await_answer(sendid, self)
        return sendid

    def hold(self, until: float) -> None:
        """Send no SMS before `until`."""
        self.held_until = self.blocked_until = until

    def resume(self, submitted: Submitted, now: float) -> bool:
        """Ask the box what became of an SMS of an earlier run; false when it can't be asked.

        Only where a repeated SEND is a query, and while the box still has the session.
        """
        timing = self.out.timing
        if not self.repeat_safe or not self.usable or now >= submitted.heard + timing.idle - 5:
            return False
        expires = submitted.recipient.expires
        if expires is not None and max(now, submitted.at + timing.grace) >= expires:
            return False  # should its SEND not have left, the question would be the first one
        self._earlier.append(submitted)
        self._next_earlier(now)
        return True

    def _next_earlier(self, now: float) -> None:
        if self.session is None and self._earlier:
            submitted = self._earlier.popleft()
            session = self._new_session(submitted.sendid, now, BulkSession.PRIORITY)
            session.resume(submitted.telid, submitted.recipient, submitted.at, submitted.heard, now)
            self._after_session(now)

    def slept(self, seconds: float) -> None:
        """So much time passed that no timer knows of."""
        if isinstance(self.session, BulkSession):
            self.session.slept(seconds)

    def held_up(self, unsent: set[bytes], now: float) -> bytes | None:
        """What is in `unsent` leaves only now; returns what must not leave any more."""
        if not isinstance(self.session, BulkSession) or self.session.datagram not in unsent:
            return None
        kept_back = self.session.held_up(now)
        self._after_session(now)
        return kept_back

    @property
    def asked(self) -> set[int]:
        """The SMS of earlier runs that the box is asked about, or will be."""
        asked = {submitted.recipient.msg for submitted in self._earlier}
        if self.session is not None:
            asked |= {recipient.msg for recipient in self.session.outcomes.open.values()}
        return asked

    def request(
        self, token: int | None, operation: control.Operation, now: float, timeout: float | None = None
    ) -> None:
        """Send a control command."""
        sendid = self.out.new_sendid()
        datagram = wire.encode_command(
            operation.verb, sendid, operation.arguments, self.password, password_first=operation.password_first
        )
        if operation.verb.startswith("module_ctl"):
            self._check_disabled = False  # an older order must not undo this one
        timing = self.out.timing
        wait = timeout or (timing.resend * timing.request_transmissions if operation.once else timing.resend)
        self._requests[sendid] = control.Request(token, operation, sendid, datagram, now + wait)
        self.out.await_answer(sendid, self)
        self._outgoing.append(datagram)
        self._flush()

    def ussd(self, token: int, code: str, timeout: float, now: float) -> None:
        """Send a USSD code, or line it up behind the one under way."""
        self._ussd_waiting.append(control.UssdDialogue(token, code, timeout))
        self._next_ussd(now)

    # -- what the gateway says

    def receive_keepalive(self, message: wire.Keepalive, address: Address, now: float) -> None:
        """Take an authenticated keepalive (§3); one that is not believed changes nothing."""
        if self.previous_address is not None and now >= self.settled:
            self.home, self.previous_address = self.address, None
        continues = address == self.address and self.count is not None and message.count > self.count
        if not continues and not self._believe(message.count, address, now):
            return
        if self.strayed:
            self.strayed = False
            self._become_ready()
        self._suspects.clear()  # it did not reboot: they were repeats, or replayed
        self.count = message.count
        self.smaller_count = None
        self.heard = now
        if message.fields != self.fields:
            self._take_fields(dict(message.fields), now)
        if (voip_state := self.fields.get("voip_state", "IDLE")) != "IDLE" or self.call.state != "idle":
            self._check_call_state(voip_state, now)
        if self._check_disabled and "disable_status" in message.fields:
            self._check_disabled = False
            if not self.disabled:  # this firmware follows the English document: 2 disables (§8)
                self.request(None, control.Operation(verb="module_ctl_i", arguments=("2",)), now)
        self._come_online(address)

    def _come_online(self, address: Address) -> None:
        if not self.online:
            self.online = self.ever_heard = True
            self.out.events.append(events.LineOnline(self.name, address))
            self._become_ready()

    def _believe(self, count: int, address: Address, now: float) -> bool:
        """Whether to follow a keepalive that does not simply continue the last one; moves and reboots happen here."""
        contested = rebooted = False
        if self.address is not None and self.count is not None:
            silent = now >= self.heard + self.out.timing.offline
            if address != self.address and not silent:
                contested = self._never_left(count, address)
                if not contested and (count <= self.count or now < self.contested_until):
                    if count > self.count:
                        self.contested_until = now + CONTESTED  # it goes on claiming
                    self._ignore(count, address, now)
                    return False  # the replay of an old keepalive, or another sender
            elif count <= self.count:
                if count == self.count:
                    return False  # a copy
                if count > 3 and not silent and (self.smaller_count is None or count <= self.smaller_count):
                    self.smaller_count = count
                    return False
                rebooted = True
                self._rebooted(address, count, now)
        previous = self.address if address != self.address else None
        if address != self.address:
            self._move(address, now, contested=contested, rebooted=rebooted)
        self.out.events.append(events.LineMoved(self.name, address, count, self.reboots, previous, contested))
        return True

    def _ignore(self, count: int, address: Address, now: float) -> None:
        assert self.address is not None
        assert self.count is not None
        silence = self.heard + self.out.timing.offline - now
        contested = count > self.count
        self.out.events.append(
            events.KeepaliveIgnored(self.name, address, count, self.address, self.count, silence, contested)
        )

    def _never_left(self, count: int, address: Address) -> bool:
        """Whether the box goes on where it was before a move, and the move was somebody else's.

        One box has one count. From home, where it had `home_count`, a box that moved has no news but a larger one.
        """
        return address == self.home and self.count is not None and self.home_count < count <= self.count

    def _move(self, address: Address, now: float, *, contested: bool, rebooted: bool) -> None:
        offline = self.out.timing.offline
        if self.home is None:
            self.home = self.address or address
        if contested:
            self.previous_address = None  # whoever is there, it is not this box
            self.contested_until = now + CONTESTED
        elif self.address is None or rebooted:
            self.home, self.previous_address = address, None  # nothing is under way from before
            self.contested_until = float("-inf")
        else:
            if self.address == self.home:
                self.home_count, self.settled = self.count or 0, now + offline
            # Of several moves in a row, the box is where it was at first, or where it is now.
            self.previous_address = self.address if address == self.home else self.home
            self.contested_until = float("-inf")
        self.address = address
        self.out.events.append(events.LineChanged(self.name))

    def _rebooted(self, address: Address, count: int, now: float) -> None:
        self.reboots += 1
        self._call_step = None
        up = max(0, count - 1) * KEEPALIVE
        self.out.events.append(events.GatewayRebooted(self.name, address, self.reboots, up))
        for message, data, came_from in self._suspects:
            if came_from[0] == address[0]:  # where it is now: with the reboot it may have moved; else it was a replay
                self._take_event(message, data, now)
        self._tell_tester("restarted", now)
        if self.session is not None and self.session.heard <= now - up:  # else the box knows it since the reboot
            self.session.abandon(now)
            self._after_session(now)

    def _take_fields(self, fields: dict[str, str], now: float) -> None:
        before, was_disabled, identity = self.fields, self.disabled, self.identity
        self.fields = fields
        for name in self.told.keys() & fields.keys():
            del self.told[name]
        if self.identity != identity:
            self.heed_safety(now)
            self._spoil_selftest("the module of the sending line was changed", now)
        if before.get("gsm_status") == "LOGIN" != fields.get("gsm_status"):
            self._tell_tester("lost its network", now)  # SMS may wait there
        self.out.events.append(events.LineChanged(self.name))
        if was_disabled and not self.disabled:
            self._become_ready()
        if fields.get("gsm_status") == "LOGIN" != before.get("gsm_status") and self.blocked_until is not None:
            self.blocked_until = max(now, self.held_until)  # what the line was refused for has probably passed
        if (minutes := wire.integer(fields.get("remain_time"))) is not None:
            self.remain_time = minutes

    def receive_event(self, message: wire.Event, data: bytes, address: Address, now: float) -> bool:
        """Take an authenticated event; true when it is to be acknowledged, which a repeat is again."""
        if address == self.address:
            self.heard = now
            self._come_online(address)
        if isinstance(message, wire.AtTrace):
            return False
        seen = self._seen.get(_key(data, self.reboots))
        if seen is not None and self.out.listened(seen, now) >= REPEATING:
            # No box repeats so long. Where the clock is not set, recvids begin again after a reboot (§2.1), of which
            # the next keepalive tells; unacknowledged, the box repeats the event until then.
            if self.address is None:
                del self._seen[_key(data, self.reboots)]  # no keepalive to compare with: better twice than never
            elif now - seen < self.out.timing.repeats:
                if len(self._suspects) < MAX_SUSPECTS:
                    self._suspects.append((message, data, address))
                return False
        before = self._seen.get(_key(data, self.reboots - 1)) if self.reboots else None
        if before is not None and self.out.listened(before, now) < REPEATING:
            return True  # first sent between the reboot and the keepalive that told us of it
        self._take_event(message, data, now)
        return True

    def _take_event(self, message: wire.Event, data: bytes, now: float) -> None:
        """Take an event, if it is new."""
        key = _key(data, self.reboots)
        if self.remember(key, now):
            self.out.events.append(events.Seen(self.name, key))
            self._dispatch(message, wire.unread(message, data), now)

    def remember(self, key: bytes, now: float) -> bool:
        """Note an event's key; false when it is already known (§6.3)."""
        seen = self._seen
        if now - seen.get(key, -1e9) < self.out.timing.repeats:
            return False
        while seen:
            oldest = next(iter(seen))
            if len(seen) < MAX_REPEATS and now - seen[oldest] < self.out.timing.repeats:
                break
            del seen[oldest]
        seen[key] = now
        return True

    def _dispatch(self, message: wire.Event, unread: wire.OtherEvent | None, now: float) -> None:
        """Tell what the event says; where not all of it could be read, also what it looked like."""
        out, name = self.out.events, self.name
        came = {} if unread is None else _as_it_came(unread)
        match message:
            case wire.Receive():
                self._witness(message.text, now)
                raw = message.raw if message.damaged else None
                out.append(
                    events.SmsReceived(
                        name, message.recvid, message.srcnum, message.text, raw, message.smscnum, message.senttime
                    )
                )
            case wire.Deliver():
                number = message.num.partition(";")[0]  # whatever a newer firmware may put behind it is no digit of it
                out.append(events.SmsReport(name, message.sms_no, message.state, number))
            case wire.State():
                if self._overtaken(message.recvid, now):
                    self._late_call_state(message.state, message.number, now)
                else:
                    self._call_state(message.state, message.number, now)
            case wire.Record():
                direction = {1: "in", 2: "out"}.get(message.dir or 0)
                if self.call.ongoing and self.call.direction is None:
                    self.call.direction = direction
                out.append(events.CallEvent(name, "recorded", message.num or None, direction))
            case wire.Hangup():
                if self._overtaken(message.recvid, now) and self.call.state != "idle":
                    pass  # a newer call has begun, and ended this one
                elif self.call.ongoing or now >= self._hangup_ignored_until:
                    self._end_call(message.num or None, message.cause or None, now)
            case wire.Ussn():
                text, text_raw = _readable(message.text)
                out.append(events.UssdEvent(name, "reply", None, None, text, text_raw=text_raw))
            case wire.Remain():
                self.remain_time = message.minutes
                unlimited = None if message.minutes is None else message.minutes < 0
                minutes = None if unlimited else message.minutes
                out.append(
                    events.LineEvent(name, "remain", {"remain_time_min": minutes, "unlimited": unlimited} | came)
                )
                out.append(events.LineChanged(name))
            case wire.Expiry():
                out.append(events.LineEvent(name, "expiry", {"exp": message.exp} | came))
            case wire.Cells():
                out.append(events.LineEvent(name, "cells", {"cells": list(message.cells)} | came))
                self._cells(message.cells)
            case wire.Bcch():
                out.append(events.LineEvent(name, "bcch", {"bcch": list(message.bcch)} | came))
            case wire.CellInfo():
                out.append(events.LineEvent(name, "cellinfo", {"info": message.info} | came))
            case wire.Cgatt():
                out.append(events.LineEvent(name, "cgatt", {"cgatt": message.attached} | came))
            case wire.OtherEvent():
                out.append(events.LineEvent(name, message.kind.lower(), _as_it_came(message)))
        if unread is not None and not isinstance(message, _LINE_EVENTS):
            out.append(events.LineEvent(name, message.kind.lower(), came))

    def receive_answer(self, sendid: int, message: wire.Message, now: float) -> None:
        """Take a message that answers something of ours."""
        if self.session is not None and sendid in self.session.sendids:
            self.session.receive(message, now)
            self._after_session(now)
        elif request := self._requests.get(sendid):
            self._answered(request, message, now)
        elif self._ussd is not None and sendid == self._ussd.sendid:
            self._ussd_answered(self._ussd, message, now, late=False)
        elif (late := self._ussd_late.pop(sendid, None)) and now < late[0]:
            self._ussd_answered(late[1], message, now, late=True)

    def awaits_word(self, message: wire.Message) -> bool:
        """Whether a message is the word on something under way here: a number that was submitted, a command, a USSD
        code; and not just a step towards it.
        """
        sendid: int = message.sendid  # type: ignore[union-attr]  # every message but keepalives and events has one
        if self.session is not None and sendid in self.session.sendids:
            return getattr(message, "telid", None) in self.session.outcomes.open
        return self.awaits(sendid)

    def notice_port(self, address: Address, now: float) -> None:
        """An answer came from there. Where that is a new port of the line's host, what we send may no longer arrive:
        an SMS that is submitted now would be in doubt.
        """
        if address in (self.address, self.previous_address) or self.strayed:
            return
        self.strayed = True
        if isinstance(self.session, BulkSession):
            self.session.wind_down(now)
            self._after_session(now)

    def awaits(self, sendid: int) -> bool:
        """Whether an answer with this sendid still means something."""
        return (
            (self.session is not None and sendid in self.session.sendids)
            or sendid in self._requests
            or (self._ussd is not None and sendid == self._ussd.sendid)
            or sendid in self._ussd_late
        )

    # -- time

    def deadline(self) -> float | None:
        """When `handle_timer` has something to do."""
        candidates = [] if self.online is False else [self.heard + self.out.timing.offline]
        if self.session is not None and self.session.deadline is not None:
            candidates.append(self.session.deadline)
        if self.blocked_until is not None:
            candidates.append(self.blocked_until)
        if self._hangup_deadline is not None:
            candidates.append(self._hangup_deadline)
        if self._ussd is not None:
            candidates.append(self._ussd.deadline)
        if self._requests:
            candidates.extend(request.deadline for request in self._requests.values())
        return min(candidates, default=None)

    def handle_timer(self, now: float) -> None:
        """Act on everything that is due."""
        if self.session is not None:
            self.session.handle_timer(now)
            self._after_session(now)
        for request in [r for r in self._requests.values() if now >= r.deadline]:
            self._request_due(request, now)
        if self._ussd is not None and now >= self._ussd.deadline:
            self._ussd_timed_out(self._ussd, now)
        if self._hangup_deadline is not None and now >= self._hangup_deadline:
            self._hangup_ignored_until = now + 12 * self.out.timing.hangup
            self._end_call(None, None, now)
        if self.online is not False and now >= self.heard + self.out.timing.offline:
            self.online = False
            self.out.events.append(events.LineOffline(self.name, self.address))
            self._spoil_selftest("the sending line went offline", now)
            self._tell_tester("went offline", now)
        if self.blocked_until is not None and now >= self.blocked_until:
            self.blocked_until = None
            self._become_ready()

    def release_sms(self, msg: int, now: float) -> None:
        """It is known from elsewhere what became of an SMS, which may be under way here, or about to be submitted."""
        self._earlier = deque(submitted for submitted in self._earlier if submitted.recipient.msg != msg)
        if isinstance(self.session, BulkSession):
            self.session.release_sms(msg, now)
            self._after_session(now)

    @property
    def submitted(self) -> int | None:
        """The SMS whose outcome the line waits for."""
        return self.session.submitted if isinstance(self.session, BulkSession) else None

    def wind_down(self, now: float) -> None:
        """Let a bulk session end early, with what is submitted; a self-test at once."""
        if isinstance(self.session, BulkSession):
            self.session.wind_down(now)
            self._after_session(now)
        else:
            self._cut_off(now)

    def retire(self, now: float, reason: str = "was removed from the configuration") -> None:
        """The line is no longer configured: what is under way on it ends here."""
        self._cut_off(now)
        self._tell_tester(reason, now)
        self.leave(now)
        self._earlier.clear()
        self._flush()
        for request in self._requests.values():
            if request.token is not None:
                self.out.events.append(events.RequestTimedOut(self.name, request.token))
        self._requests.clear()
        for dialogue in (*([self._ussd] if self._ussd else ()), *self._ussd_waiting):
            self.out.events.append(events.UssdEvent(self.name, "timeout", dialogue.token, dialogue.code, None))
        self._ussd = None
        self._ussd_waiting.clear()

    def forget_address(self, now: float) -> None:
        """The line must not be where it is (any more): no more orders go there, and the next keepalive says where."""
        self.retire(now, "may no longer come from its address")
        self.address = self.previous_address = self.home = self.count = self.online = None
        self.heard, self.contested_until, self.strayed = now, float("-inf"), False
        self.out.events.append(events.LineChanged(self.name))

    # -- bulk sessions

    def _after_session(self, now: float) -> None:
        """Move the session's datagrams out, and put it aside when it is over."""
        self._flush()
        session = self.session
        if session is None:
            return
        assert self.box is not None
        if session.taken:
            self.box.taken(self, now)
        if session.authenticated:
            self._set_password_refused(False)
        if session.outcomes.doubled:
            self.learn_unsafe()
            self.heed_safety(now)
        if not session.over:
            self.out.call_next(self.box, now)
            return
        self.session = None
        if session.refusal is Refusal.FULL:
            self.box.refused(self, session.priority, now)
        else:
            self.box.ended(self)
        if session.outcomes.open or session.repeated:
            for sendid in session.sendids:
                self.out.linger(sendid, session.outcomes, now)
        if isinstance(session, SelfTest):
            self._selftest_over(session)
        self._set_password_refused(self.password_refused or session.refusal is Refusal.PASSWORD)
        if session.refusal in (Refusal.REFUSED, Refusal.STRANGE, Refusal.SILENT, Refusal.PASSWORD):
            timing = self.out.timing
            # A line that is heard and does not answer has a bad network, not a reason that takes longer to pass.
            again = self._backoff * 2 if session.refusal in (Refusal.REFUSED, Refusal.PASSWORD) else 0.0
            self._backoff = min(again or timing.backoff, timing.backoff_max)
            self.blocked_until = now + self._backoff
        else:
            self._backoff = 0.0
        self._next_earlier(now)
        if session.refusal is not Refusal.FULL:  # else it waits for its turn
            self._become_ready()
        self.out.call_next(self.box, now)

    # -- self-tests

    def _witness(self, text: str, now: float) -> None:
        """An inbound SMS may be that of another line's self-test."""
        if (tester := self.tester) is not None and isinstance(tester.session, SelfTest):
            tester.session.witness(text, now)
            tester._after_session(now)
            self.out.schedule(tester)

    def _tell_tester(self, what: str, now: float) -> None:
        """Copies of the SMS may be lost with that, or come too late to be counted."""
        if self.tester is not None:
            self.tester._spoil_selftest(f"the receiving line {what}", now)

    def _spoil_selftest(self, reason: str, now: float) -> None:
        if isinstance(self.session, SelfTest):
            self.session.give_up(reason, now)
            self._after_session(now)
            self.out.schedule(self)

    def _selftest_over(self, test: SelfTest) -> None:
        if self._receiver is not None:
            self._receiver.tester = None
            self._receiver = None
        if test.verdict == "safe":
            self.proof = Proof(safe=True, identity=test.identity, dense=bool(test.dense))

    def learn_unsafe(self) -> None:
        """One SMS left twice: from now on SEND is not repeated on this firmware where that can be helped."""
        if self.known is None or self.known.safe:
            identity = self.identity or (self.proof.identity if self.proof is not None else "")
            self.proof = Proof(safe=False, identity=identity)
            self.out.events.append(events.RepeatUnsafe(self.name, identity))

    def heed_safety(self, now: float) -> None:
        """What is configured or known of the firmware has changed: what must not be repeated is only listened for."""
        if self.repeat_safe:
            return
        if isinstance(self.session, BulkSession) and self.session.safe:
            self.session.only_listen(now)
        while self._earlier:
            submitted = self._earlier.popleft()
            self.out.linger(submitted.sendid, Outcomes(self.name, {submitted.telid: submitted.recipient}), now)

    # -- small things

    def _cut_off(self, now: float) -> None:
        """End what occupies the line, without waiting for the box."""
        session, self.session = self.session, None
        if session is None:
            return
        session.abandon(now)
        self._outgoing.append(wire.encode_done(session.sendids[-1]))
        self._flush()
        if self.box is not None:
            self.box.ended(self)
            self.out.call_next(self.box, now)
        if isinstance(session, SelfTest):
            self._selftest_over(session)

    def _set_password_refused(self, refused: bool) -> None:
        if refused is not self.password_refused:
            self.password_refused = refused
            self.out.events.append(events.LineChanged(self.name))

    def _become_ready(self) -> None:
        if self.ready:
            self.out.events.append(events.LineReady(self.name))

    def _flush(self) -> None:
        if self._outgoing:
            assert self.address is not None
            self.out.datagrams.extend((datagram, self.address) for datagram in self._outgoing)
            self._outgoing.clear()

    # -- control commands

    def _answered(self, request: control.Request, message: wire.Message, now: float) -> None:
        answer = control.interpret(request.operation, message)
        if answer is None or request.cells:
            return
        if request.operation.done:
            self._outgoing.append(wire.encode_done(request.sendid))
            self._flush()
        if request.operation.cells and answer.ok:
            request.cells = True
            request.deadline = now + self.out.timing.cells
            return
        del self._requests[request.sendid]
        if request.operation.disable and not answer.ok and request.operation.arguments == ("0",):
            self.request(request.token, replace(request.operation, arguments=("2",)), now)  # the other edition's (§8)
            return
        self._check_disabled = self._check_disabled or (request.operation.disable and answer.ok)
        if answer.ok:
            self._learn(request.operation.verb, control.values(request.operation, answer), now)
        if request.token is not None:
            self.out.events.append(
                events.RequestAnswered(self.name, request.token, answer.ok, answer.text, answer.fields)
            )

    def _learn(self, verb: str, values: dict[str, str], now: float) -> None:
        """Take over what an answer says of the line: values that were asked for, or that the gateway confirmed."""
        fields = dict(self.fields)
        if "exp_time" in values:
            self.exp_time = wire.integer(values.pop("exp_time"))
        if verb in ("set_exp_time", "reset_remain_time"):
            # A reset puts what is left back to the limit (§8). What another limit does to it is documented nowhere: it
            # is unknown then. The next keepalive counts, also if it says the same as the last one.
            unlimited = self.exp_time == 0
            self.remain_time = -1 if unlimited else self.exp_time if verb == "reset_remain_time" else None
            fields.pop("remain_time", None)
        elif "remain_time" in values:
            self.remain_time = wire.integer(values["remain_time"])
        for name, value in values.items():
            (fields if name in fields else self.told)[name] = value
        self._take_fields(fields, now)

    def _cells(self, cells: tuple[int, ...]) -> None:
        for request in [r for r in self._requests.values() if r.operation.cells]:
            del self._requests[request.sendid]
            if request.token is not None:
                self.out.events.append(events.RequestAnswered(self.name, request.token, True, "", cells=cells))

    def _request_due(self, request: control.Request, now: float) -> None:
        timing = self.out.timing
        if request.operation.once or request.cells or request.transmissions >= timing.request_transmissions:
            del self._requests[request.sendid]
            if request.token is not None:
                self.out.events.append(events.RequestTimedOut(self.name, request.token))
            return
        request.transmissions += 1
        request.deadline = now + timing.resend
        self._outgoing.append(request.datagram)
        self._flush()

    # -- USSD

    def _next_ussd(self, now: float) -> None:
        if self._ussd is not None or not self._ussd_waiting:
            return
        dialogue = self._ussd = self._ussd_waiting.popleft()
        dialogue.sendid = self.out.new_sendid()
        dialogue.deadline = now + dialogue.timeout
        self.out.await_answer(dialogue.sendid, self)
        self._outgoing.append(
            wire.encode_command("USSD", dialogue.sendid, (dialogue.code,), self.password, password_first=True)
        )
        self._flush()

    def _ussd_answered(self, dialogue: control.UssdDialogue, message: wire.Message, now: float, *, late: bool) -> None:
        event_type: str
        words: str | None
        match message:
            case wire.Reply(verb="USSD", text=text) if text.strip() == "USSD send failed!":  # an error in disguise (§9)
                event_type, words, exit = "error", text, False
            case wire.Reply(verb="USSD", text=text):
                event_type, words, exit = "reply", text, False
            case wire.Reply(verb="USSDEXIT"):
                event_type, words, exit = "reply", None, True
            case wire.Reply(verb="USSDERROR", text=text) | wire.Error(text=text):
                event_type, words, exit = "error", text, False
            case _:
                return
        words, raw = _readable(words)
        self.out.events.append(
            events.UssdEvent(self.name, event_type, dialogue.token, dialogue.code, words, exit, late, raw)
        )
        if not late:
            self._ussd = None
            self._next_ussd(now)

    def _ussd_timed_out(self, dialogue: control.UssdDialogue, now: float) -> None:
        self.out.events.append(events.UssdEvent(self.name, "timeout", dialogue.token, dialogue.code, None))
        self._ussd_late = {s: late for s, late in self._ussd_late.items() if now < late[0]}
        self._ussd_late[dialogue.sendid] = (now + self.out.timing.evidence, dialogue)
        self._ussd = None
        self._next_ussd(now)

    # -- calls (§7.13)

    def _call_state(self, wire_state: str, number: str, now: float) -> None:
        state = wire.CALL_STATES.get(wire_state)
        call = self.call
        if state is None or (state == call.state and (not number or number == call.number)):
            return
        if state == "idle":
            if call.ongoing:
                self._hangup_deadline = now + self.out.timing.hangup
        elif state in ("ringing", "dialing"):
            if call.ongoing:
                self._end_call(None, None, now)
            direction = "in" if state == "ringing" else "out"
            call = self.call = Call(number=number or None, direction=direction, ongoing=True, begun=True)
            self.out.events.append(events.CallEvent(self.name, state, call.number, direction))
        elif state == "active":
            call.ongoing = True
            call.number = number or call.number
            if call.answered_at is None:
                call.answered_at = now
                self.out.events.append(events.CallEvent(self.name, "answered", call.number, call.direction))
        else:
            call.number = number or call.number
            if state == "alerting":
                call.ongoing, call.direction = True, call.direction or "out"
        call.state, call.since = state, now
        if state != "idle":
            self._hangup_deadline = None
        self.out.events.append(events.LineChanged(self.name))

    def _check_call_state(self, voip_state: str, now: float) -> None:
        """Take the state from a keepalive, in case an event was lost; but what an event just said is newer."""
        if "voip_state" in self.fields and (self._call_step is None or now >= self._call_step[1] + REPEATING):
            state, _, number = voip_state.partition(":")
            self._call_state(state.strip().upper(), wire.value(number) or "", now)

    def _overtaken(self, recvid: int, now: float) -> bool:
        """Whether a newer step of the calls came first: recvids count down, and a lost one is repeated (§2.1)."""
        if self._call_step is not None and recvid > self._call_step[0] and now < self._call_step[1] + REPEATING:
            return True
        self._call_step = recvid, now
        return False

    def _late_call_state(self, wire_state: str, number: str, now: float) -> None:
        """A step of the ongoing call that was overtaken by a later one: told if it is news, no change of state."""
        state, call = wire.CALL_STATES.get(wire_state), self.call
        if not call.ongoing:
            return
        call.number = call.number or number or None
        if state in ("ringing", "dialing") and not call.begun:
            call.begun, call.direction = True, "in" if state == "ringing" else "out"
            self.out.events.append(events.CallEvent(self.name, state, call.number, call.direction))
        elif state == "active" and call.answered_at is None:
            call.answered_at = call.since if call.state == "idle" else now
            self.out.events.append(events.CallEvent(self.name, "answered", call.number, call.direction))

    def _end_call(self, number: str | None, cause: str | None, now: float) -> None:
        call, self.call = self.call, Call(since=now)
        self._hangup_deadline = None
        if call.answered_at is not None:
            end = call.since if call.state == "idle" and call.since is not None else now
            duration: float | None = round(end - call.answered_at, 1)
        else:
            duration = 0.0 if call.ongoing else None
        self.out.events.append(
            events.CallEvent(self.name, "ended", number or call.number, call.direction, duration, cause)
        )
        self.out.events.append(events.LineChanged(self.name))


_LINE_EVENTS = (wire.Remain, wire.Expiry, wire.Cells, wire.Bcch, wire.CellInfo, wire.Cgatt)
"Told as `LineEvent`s of their own form, which then have the raw fields as well."


def _as_it_came(event: wire.OtherEvent) -> dict[str, object]:
    return {"kind": event.kind, "fields": dict(event.fields), "raw": event.raw}


def _readable(text: str | None) -> tuple[str | None, str | None]:
    """A text of the network, and what the box said where that had to be decoded."""
    found = decoded(text) if text is not None else None
    return (text, None) if found is None else (found, text)


def _key(data: bytes, reboots: int) -> bytes:
    return hashlib.blake2b(data, digest_size=12, salt=max(reboots, 0).to_bytes(8, "big")).digest()
