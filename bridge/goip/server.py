"""The SMS server as a protocol core: datagrams and time in, events and datagrams out.

`SmsServer` is the only door. The owner commits `take_events()` durably before it sends `take_datagrams()`; that order
is what makes an acknowledgement a promise. No clock, no socket, no thread.
"""

import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from . import control, events, wire
from .box import Box
from .events import Address
from .guesses import Guesses
from .line import Line, Proof, Submitted
from .session import BulkSession, Outcomes, Recipient
from .timing import Timing

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class LineConfig:
    """What the core must know of a line beforehand."""

    name: str
    goip_id: str
    "The id the box registers with."
    password: str
    allow_from: tuple[Network, ...] = ()
    "Networks the line may come from; empty: any."
    gateway: str | None = None
    "The box it is a line of; None: that of its host."
    repeat_safe: bool | None = None
    "Whether the firmware answers a repeated SEND with the outcome, and never sends again; None: what is proved."


@dataclass(frozen=True, slots=True, kw_only=True)
class LineMemory:
    """What is worth remembering of a line over a restart."""

    address: Address
    count: int
    reboots: int
    online: bool = True
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Counters:
    """Datagrams since the start."""

    received: int = 0
    malformed: int = 0
    unauthorized: int = 0
    unmatched: int = 0
    "Answers to nothing we asked, or from elsewhere than the line."


@dataclass(slots=True)
class _Ended:
    """A session that is over while some of its outcomes may still come."""

    outcomes: Outcomes
    until: float
    left_open: bool = False
    "An earlier run began it, and did not end it with DONE."


@dataclass(slots=True)
class _Registered:
    """A configured line and its key."""

    line: Line
    password: bytes
    networks: tuple[Network, ...]
    allowed_host: str | None = None
    "The host that was found in `networks` last; checking costs more than comparing."
    guesses: Guesses = field(default_factory=Guesses)

    def is_at(self, address: Address) -> bool:
        """Whether the line is known to be there: then wrong passwords from there limit nothing."""
        return address in (self.line.address, self.line.previous_address, self.line.home)

    def hears(self, address: Address, now: float) -> bool:
        """Whether a password from there is looked at."""
        return self.is_at(address) or not self.guesses.too_many(address[0], now)

    def allows(self, host: str) -> bool:
        if not self.networks or host == self.allowed_host:
            return True
        address = ipaddress.ip_address(host.partition("%")[0])
        if address.version == 6 and address.ipv4_mapped:
            address = address.ipv4_mapped
        if any(address.version == network.version and address in network for network in self.networks):
            self.allowed_host = host
            return True
        return False


_NOBODY = b"\0"
NOT_AUTHENTICATED = "not authenticated"
"Why a datagram was dropped of which an `Unauthenticated` event says more, unless it was not even listened to."


class SmsServer:
    """All lines of all gateways. Implements `bridge.goip.line.Output`."""

    def __init__(self, lines: Iterable[LineConfig], timing: Timing, *, next_sendid: int, now: float) -> None:
        self.timing = timing
        self.events: list[events.Event] = []
        self.datagrams: list[tuple[bytes, Address]] = []
        self.counters = Counters()
        self.next_sendid = next_sendid
        self.deaf = now, now
        "When nobody read the socket last: from, until. What comes soon after may have waited, and is older then."
        self._held_until = float("-inf")
        self._by_goip_id: dict[str, _Registered] = {}
        self._by_name: dict[str, _Registered] = {}
        self._answers: dict[int, Line] = {}
        self._ended: dict[int, _Ended] = {}
        self._boxes: dict[tuple[str, str], Box[Line]] = {}
        self._heap: list[tuple[float, int, Line | Box[Line]]] = []
        self._heap_order = 0
        self.configure(lines, now)

    def configure(self, lines: Iterable[LineConfig], now: float) -> None:
        """Take over the configured lines; those that stay keep their state, those that are gone are forgotten."""
        before, self._by_name, self._by_goip_id = self._by_name, {}, {}
        for config in lines:
            known = before.pop(config.name, None)
            if known is not None and known.line.goip_id == config.goip_id:
                line = known.line
                line.password = config.password
            else:
                line = Line(config.name, config.goip_id, config.password, self, heard=now)
                if known is not None:  # another line of the same name
                    known.line.retire(now)
            line.declared_safe, line.gateway = config.repeat_safe, config.gateway
            registered = _Registered(line, config.password.encode(), config.allow_from)
            if known is not None:
                registered.guesses = known.guesses
            self._by_name[config.name] = self._by_goip_id[config.goip_id] = registered
            if line.address is not None and not registered.allows(line.address[0]):
                line.forget_address(now)
            if line.previous_address is not None and not registered.allows(line.previous_address[0]):
                line.previous_address = None
            line.heed_safety(now)
            if line.held_until < self._held_until and now < self._held_until:
                line.hold(self._held_until)
            self.schedule(line)
        for registered in before.values():
            registered.line.retire(now)
        present = {id(registered.line) for registered in self._by_name.values()}
        self._answers = {sendid: line for sendid, line in self._answers.items() if id(line) in present}

    # -- input

    def receive_datagram(self, data: bytes, address: Address, now: float) -> str | None:
        """Take one datagram. Returns why it was dropped, or None; never raises for anything a sender can do."""
        self.counters.received += 1
        try:
            message = wire.decode(data)
        except wire.WireError as error:
            self.counters.malformed += 1
            return str(error)
        match message:
            case wire.Keepalive():
                return self._keepalive(message, len(data), address, now)
            case wire.Event():
                return self._event(message, data, address, now)
            case _:
                return self._answer(message, address, now)

    def handle_timer(self, now: float) -> None:
        """Act on everything that is due at `now`."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, _, line = heappop(heap)
            if line.scheduled != when:
                continue  # rescheduled since
            line.scheduled = None
            if isinstance(line, Box):
                line.handle_timer(now)
                self.call_next(line, now)
                continue
            registered = self._by_name.get(line.name)
            if registered is None or registered.line is not line:
                continue  # no longer configured
            line.handle_timer(now)
            self.schedule(line)

    def turn(self, name: str, priority: int, now: float) -> int:
        """How many SMS of this priority, the highest that waits for the line, may be sent in a session now.

        0 where the line is busy, or has to wait for other lines of its box: `LineReady` tells when to ask again.
        """
        return self._by_name[name].line.turn(priority, now)

    def leave(self, name: str, now: float) -> None:
        """Nothing waits for the line: it takes no turn."""
        self._by_name[name].line.leave(now)

    def send_sms(
        self, name: str, text: str, recipients: Sequence[Recipient], now: float, priority: int = BulkSession.PRIORITY
    ) -> None:
        """Begin a bulk session on a line that is `ready`, and whose `turn` it is."""
        line = self._by_name[name].line
        line.send_sms(text, recipients, now, priority)
        self.schedule(line)

    def request(
        self, name: str, token: int | None, operation: control.Operation, now: float, timeout: float | None = None
    ) -> None:
        """Send a control command; answered by `RequestAnswered` or `RequestTimedOut`."""
        line = self._by_name[name].line
        line.request(token, operation, now, timeout)
        self.schedule(line)

    def ussd(self, name: str, token: int, code: str, timeout: float, now: float) -> None:
        """Send or queue a USSD code; answered by `UssdEvent`."""
        line = self._by_name[name].line
        line.ussd(token, code, timeout, now)
        self.schedule(line)

    def selftest(self, name: str, token: int, receiver: str, number: str, now: float) -> bool:
        """Begin a self-test of a line with an SMS to another one; false when they can't now. Ends with `SelfTestEnded`.

        `number` is that of the receiving line.
        """
        line, other = self._by_name[name].line, self._by_name[receiver].line
        if not line.ready or not other.usable or other.tester is not None:
            return False
        line.begin_selftest(token, other, number, now)
        self.schedule(line)
        return True

    def release_sms(self, name: str, msg: int, now: float) -> None:
        """A delivery report told what became of an SMS: the line goes on, and does not submit it any more."""
        if registered := self._by_name.get(name):
            registered.line.release_sms(msg, now)
            self.schedule(registered.line)

    def wind_down(self, now: float) -> None:
        """Submit nothing more, on any line; what is submitted still gets its outcome. Before the owner stops."""
        for registered in self._by_name.values():
            registered.line.wind_down(now)
            self.schedule(registered.line)

    @property
    def awaits_outcomes(self) -> bool:
        """An SMS is submitted whose outcome its session waits for."""
        return any(isinstance(line.session, BulkSession) and line.session.awaits_outcome for line in self.lines)

    # -- what survives a restart

    def restore_line(self, name: str, memory: LineMemory) -> None:
        """Use an address from before the restart until the line is heard."""
        if registered := self._by_name.get(name):
            line = registered.line
            if registered.allows(memory.address[0]):
                line.address, line.count = memory.address, memory.count
            line.reboots, line.fields = memory.reboots, memory.fields
            line.online_before = memory.online

    def restore_repeat(self, name: str, key: bytes, now: float) -> None:
        """Remember an event of before the restart, so that its repeats are known."""
        if registered := self._by_name.get(name):
            registered.line.remember(key, now)

    def restore_proof(self, name: str, proof: Proof) -> None:
        """Take over what is known of a line's firmware."""
        if registered := self._by_name.get(name):
            registered.line.proof = proof

    def restore_session(self, name: str, submitted: Submitted, now: float) -> None:
        """Keep matching late answers to an SMS of before the restart."""
        outcomes = Outcomes(name, {submitted.telid: submitted.recipient})
        line = self.line(name)
        if submitted.recipient.repeat and line is not None and not line.repeat_safe:
            outcomes.repeated.add(submitted.telid)  # perhaps: that was not written down
        self.linger(submitted.sendid, outcomes, now)
        if ended := self._ended.get(submitted.sendid):
            ended.left_open = True

    def resume_session(self, name: str, submitted: Submitted, now: float) -> bool:
        """Ask for the outcome of an SMS of before the restart; false where that could send it again."""
        registered = self._by_name.get(name)
        if registered is None or not registered.line.resume(submitted, now):
            return False
        self._ended.pop(submitted.sendid, None)
        self.schedule(registered.line)
        return True

    def hold(self, until: float) -> None:
        """Send no SMS on any line before `until`."""
        self._held_until = until
        for registered in self._by_name.values():
            registered.line.hold(until)
            self.schedule(registered.line)

    def slept(self, seconds: float) -> None:
        """The machine slept: what counts in the world went on, and the timers did not."""
        for registered in self._by_name.values():
            registered.line.slept(seconds)

    def held_up(self, unsent: set[bytes], now: float) -> set[bytes]:
        """These datagrams waited for their commit, and leave only now, but for those that are returned: what waits for
        their answers waits from now on, and what is too late by now is not submitted.
        """
        kept_back = set()
        for registered in self._by_name.values():
            if (datagram := registered.line.held_up(unsent, now)) is not None:
                kept_back.add(datagram)
            self.schedule(registered.line)
        self.datagrams[:] = [entry for entry in self.datagrams if entry[0] not in kept_back]
        return kept_back

    # -- output

    def deadline(self) -> float | None:
        """When `handle_timer` must be called, at the latest."""
        return self._heap[0][0] if self._heap else None

    def take_events(self) -> list[events.Event]:
        """What happened since the last call."""
        taken = self.events[:]
        self.events.clear()  # not a new list: sessions hold this one
        return taken

    def take_datagrams(self) -> list[tuple[bytes, Address]]:
        """What is to be sent, once the events taken before are durable."""
        taken = self.datagrams[:]
        self.datagrams.clear()
        return taken

    def line(self, name: str) -> Line | None:
        """A configured line, for reading."""
        registered = self._by_name.get(name)
        return registered.line if registered else None

    @property
    def lines(self) -> Iterable[Line]:
        """All configured lines, for reading."""
        return (registered.line for registered in self._by_name.values())

    # -- for the lines (`Output`)

    def new_sendid(self) -> int:
        """A number never used before for anything we start (§2.1)."""
        sendid, self.next_sendid = self.next_sendid, self.next_sendid + 1
        return sendid

    def await_answer(self, sendid: int, line: Line) -> None:
        """Route answers with this sendid to the line."""
        self._answers[sendid] = line
        if len(self._answers) > 16 * len(self._by_name) + 1024:
            self._forget_answered()

    def linger(self, sendid: int, outcomes: Outcomes, now: float) -> None:
        """Keep matching late answers of an ended session for `Timing.evidence` seconds (§4.3)."""
        while self._ended and next(iter(self._ended.values())).until <= now:
            del self._ended[next(iter(self._ended))]
        self._ended[sendid] = _Ended(outcomes, now + self.timing.evidence)
        if registered := self._by_name.get(outcomes.line):
            self._answers[sendid] = registered.line

    def box_of(self, line: Line) -> Box[Line]:
        """The box of a line that has an address."""
        assert line.address is not None
        key = ("gateway", line.gateway) if line.gateway is not None else ("host", line.address[0])
        box = self._boxes.get(key)
        if box is None:
            if len(self._boxes) > len(self._by_name):  # lines have moved: what is idle can be learnt again
                self._boxes = {key: box for key, box in self._boxes.items() if not box.idle}
            box = self._boxes[key] = Box(self.timing)
        return box

    def call_next(self, box: Box[Line], now: float) -> None:
        """Tell those whose turn it is."""
        self.events.extend(events.LineReady(line.name) for line in box.next(now))
        self.schedule(box)

    def listened(self, since: float, now: float) -> float:
        """For how many seconds since then a datagram was taken as soon as it came."""
        begin, end = self.deaf
        return now - since - max(0.0, end - max(begin, since))

    # -- one datagram

    def _keepalive(self, message: wire.Keepalive, size: int, address: Address, now: float) -> str | None:
        registered = self._authenticate(message.id, message.password, address, now)
        if registered is None:
            return NOT_AUTHENTICATED
        self._reply(wire.encode_registered(message.count), size, address)
        registered.line.receive_keepalive(message, address, now)
        self.schedule(registered.line)
        return None

    def _event(self, message: wire.Event, data: bytes, address: Address, now: float) -> str | None:
        registered = self._authenticate(message.id, message.password, address, now)
        if registered is None:
            return NOT_AUTHENTICATED
        if registered.line.receive_event(message, data, address, now):
            self._reply(wire.encode_ack(message.kind, message.recvid), len(data), address)
        self.schedule(registered.line)
        return None

    def _answer(self, message: wire.Message, address: Address, now: float) -> str | None:
        sendid: int = message.sendid  # type: ignore[union-attr]  # every message but keepalives and events has one
        line = self._answers.get(sendid)
        if line is None or not self._may_answer(line, message, address):
            self.counters.unmatched += 1
            return "answers nothing that was asked" if line is None else "an answer from elsewhere"
        line.notice_port(address, now)
        if ended := self._ended.get(sendid):
            if isinstance(message, wire.SubmitOk | wire.SubmitError):
                self._late_outcome(ended, message, line, now)
        else:
            line.receive_answer(sendid, message, now)
            self.schedule(line)
        return None

    def _may_answer(self, line: Line, message: wire.Message, address: Address) -> bool:
        """Whether an answer comes from the line: from its address, or from a new port of its host.

        NAT gives a box another port at any time, of which only its next keepalive tells. What was asked for by sendid
        and telid is known from there as well; what would only make us go on, and speak, is not (docs/reliability.md).
        """
        known = (line.address, line.previous_address)
        if address in known:
            return True
        if address[0] not in [place[0] for place in known if place is not None]:
            return False
        sendid: int = message.sendid  # type: ignore[union-attr]  # as in `_answer`
        if ended := self._ended.get(sendid):
            return getattr(message, "telid", None) in ended.outcomes.open
        return line.awaits_word(message)

    def _late_outcome(self, ended: _Ended, message: wire.SubmitOk | wire.SubmitError, line: Line, now: float) -> None:
        recipient = ended.outcomes.open.get(message.telid)
        settled = ended.outcomes.settle(message, self.events)
        if recipient is not None and line.submitted != recipient.msg:  # else its next submission has its own outcome
            line.release_sms(recipient.msg, now)  # it may be queued again, and in a session that has just begun
            self.schedule(line)
        if ended.outcomes.doubled:
            line.learn_unsafe()
        if settled and ended.left_open and line.address is not None:
            ended.left_open = False
            self.datagrams.append((wire.encode_done(message.sendid), line.address))  # frees a slot of the box (§4.2)

    def _authenticate(self, goip_id: str, password: str, address: Address, now: float) -> _Registered | None:
        registered = self._by_goip_id.get(goip_id)
        # An unknown id costs the same comparison as a known one.
        expected = registered.password if registered else _NOBODY
        good = hmac.compare_digest(password.encode(errors="replace"), expected)
        if registered is None:
            reason = "unknown"
        elif not registered.hears(address, now):
            self.counters.unauthorized += 1
            registered.guesses.not_heard()
            return None
        elif not good:
            too_many = not registered.is_at(address) and registered.guesses.wrong(address[0], now)
            reason = "guessing" if too_many else "password"
        elif not registered.allows(address[0]):
            reason = "network"
        else:
            return registered
        self.counters.unauthorized += 1
        line = registered.line.name if registered else None
        unheard = registered.guesses.take_unheard() if registered else 0
        self.events.append(events.Unauthenticated(goip_id, line, address, reason, 1 + unheard))
        return None

    def _reply(self, reply: bytes, request_size: int, address: Address) -> None:
        if len(reply) <= request_size:  # never an amplifier, whatever the request was
            self.datagrams.append((reply, address))

    def is_from_a_line(self, data: bytes, address: Address, now: float) -> bool:
        """Whether a datagram would be listened to; a look that changes nothing but how many more passwords are."""
        try:
            message = wire.decode(data)
        except wire.WireError:
            return False
        if isinstance(message, wire.Keepalive | wire.Event):
            registered = self._by_goip_id.get(message.id)
            if registered is None or not registered.hears(address, now):
                return False
            if hmac.compare_digest(message.password.encode(errors="replace"), registered.password):
                return registered.allows(address[0])
            if not registered.is_at(address):
                registered.guesses.wrong(address[0], now)
            return False
        line = self._answers.get(message.sendid)
        return line is not None and self._may_answer(line, message, address)

    # -- timers

    def schedule(self, line: Line | Box[Line]) -> None:
        """See to it that `handle_timer` looks at the line, or the box, when it wants to be looked at."""
        deadline = line.deadline()
        if deadline is None or (line.scheduled is not None and line.scheduled <= deadline):
            return
        line.scheduled = deadline
        self._heap_order += 1
        heappush(self._heap, (deadline, self._heap_order, line))

    def _forget_answered(self) -> None:
        self._answers = {
            sendid: line for sendid, line in self._answers.items() if sendid in self._ended or line.awaits(sendid)
        }
