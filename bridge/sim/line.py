"""One SIM line of a simulated box: an independent UDP client with an id of its own (docs/protocol.md §1).

Bytes and time in; bytes and log records out, through the World it lives in. The line itself does keepalives, events
and the registration; sessions, USSD, calls and settings each have a module.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from . import wire
from .calls import Calls
from .control import Control
from .events import Events
from .options import LineOptions
from .sms import SmsSender
from .text import split_text
from .ussd import Ussd
from .world import Action, Address, Datagram, Record, World

if TYPE_CHECKING:
    from .gateway import SimulatedGateway

_SILENCES = 3
"Keepalives without answer after which the box shows itself as not logged in."
_CHATTER = 300.0
"Seconds between BCCH events (docs/protocol.md §7.8: every few minutes)."


class Registration(StrEnum):
    """What the server made of the line, as the box can tell."""

    OFF = "switched off"
    WAITING = "not answered yet"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    WRONG_WORD = "answered with req instead of reg"
    NO_ANSWER = "no answer"


class SimulatedLine:
    """One line. `power_on` starts it; every other method may be called at any time."""

    def __init__(self, options: LineOptions, channel: int, gateway: SimulatedGateway, world: World) -> None:
        self.options = options
        self.channel = channel
        "Position in the box, from 0; a digit of module_ctl."
        self.gateway = gateway
        self.world = world
        self.boot = 0
        "Changes at each start and stop; what was planned under another value no longer happens."
        self.powered = False
        self.logged_in = False
        "Whether the SIM is on its network."
        self.registration = Registration.OFF
        self.status: int | None = None
        "The number in the last keepalive answer."
        self.undecodable = 0
        "Datagrams that meant nothing to the box."
        self.control = Control(self)
        if options.phone:
            world.give_number(options.phone, self.receive_sms)
        self._undelivered: list[tuple[str, str, str, float]] = []
        "Inbound SMS the network keeps while the line is off: sender, text, centre, time."
        self._reset(0.0)

    @property
    def id(self) -> str:
        return self.options.id

    def _reset(self, now: float) -> None:
        """Forget what a box does not keep over a restart."""
        self.count = 0
        self._unanswered = 0
        self._idle_since = now
        start = self.options.profile.recvid_start
        self.events = Events(self, int(now + self.options.clock_offset) if start is None else start)
        self.sms = SmsSender(self)
        self.ussd = Ussd(self)
        self.calls = Calls(self)

    # --- power and network ---

    def power_on(self, now: float) -> None:
        """Start the line: count from 1, recvid from the clock, no sessions."""
        if self.powered:
            return
        self.boot += 1
        self._reset(now)
        self.powered = True
        self.registration = Registration.WAITING
        if self.control.module_on:
            self.login(now)
        self._keepalive(now)
        if self.options.chatter:
            self._chatter(now)

    def power_off(self, now: float) -> None:
        """Cut the power: everything open or queued is gone."""
        self.events.abandon(now)
        self.boot += 1
        self.powered = self.logged_in = False
        self._set_registration(Registration.OFF)

    def login(self, now: float) -> None:
        """The SIM finds its network; SMS that waited there arrive."""
        if not self.powered or self.logged_in:
            return
        self.logged_in = True
        if self.options.chatter:
            self.events.send("CELLINFO", f"info:{self.control.cell_info}", now)
            self.events.send("CGATT", "cgatt:1", now)
        waiting, self._undelivered = self._undelivered, []
        for from_, text, centre, sent in waiting:
            self._deliver(from_, text, centre, sent, now)

    def logout(self, now: float) -> None:
        """The SIM loses its network: calls end, queued SMS fail."""
        if not self.logged_in:
            return
        self.logged_in = False
        self.calls.hang_up("Out of service", now)
        self.sms.network_lost(now)

    def restart_module(self, now: float) -> None:
        """Only the modem starts again; the box, its sessions and its counters stay."""
        self.logout(now)
        self.later(self.options.boot_time / self.options.time_scale / 2, self.login, now)

    # --- what happens on the mobile network ---

    def receive_sms(self, from_: str, text: str, now: float, *, centre: str = "+491710760000") -> None:
        """Somebody sends an SMS to this SIM. It waits in the network while the line is off."""
        if self.logged_in:
            self._deliver(from_, text, centre, now, now)
        else:
            self._undelivered.append((from_, text, centre, now))

    def _deliver(self, from_: str, text: str, centre: str, sent: float, now: float) -> None:
        for part in split_text(text) if self.options.split_long else [text]:
            fields = f"srcnum:{from_}"
            if self.options.newer_receive:
                clock = datetime.fromtimestamp(sent + self.options.clock_offset, UTC)
                fields += f";smscnum:{centre};senttime:{clock:%Y-%m-%d %H:%M:%S}"
            record: Record = {"what": "received", "from": from_, "text": part}
            self.events.send("RECEIVE", f"{fields};msg:{part}", now, record)

    def ussd_push(self, text: str, now: float) -> None:
        """The network sends a USSD text nobody asked for (docs/protocol.md §7.10)."""
        self.record(now, "ussd_push", text=text)
        self.events.send("USSN", f"msg:{text}", now)

    def neighbours(self, now: float) -> None:
        """BCCH: the neighbour cells, as a box reports them every few minutes outside of calls."""
        self.events.send("BCCH", f"bcch:{self.control.cells}", now)

    def _chatter(self, now: float) -> None:
        if self.logged_in and self.calls.state == "IDLE" and self.count > 1:
            self.neighbours(now)
        self.later(_CHATTER, self._chatter, now)

    # --- from the server ---

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Something arrived at this line's port."""
        if not self.powered:
            return
        try:
            message = wire.decode(data)
        except wire.WireError as error:
            self.undecodable += 1
            if error.sendid is not None:
                self.reply(source, f"ERROR {error.sendid} {error}\n", now)
            return
        self._handle(message, source, now)

    def _handle(self, message: wire.Message, source: Address, now: float) -> None:
        match message:
            case wire.KeepaliveAck():
                self._keepalive_answered(message)
            case wire.EventAck():
                self.events.acknowledged(message, now)
            case wire.OpenSession():
                self.sms.open(message, source, now)
            case wire.Authenticate():
                self.sms.authenticate(message, source, now)
            case wire.Submit():
                self.sms.submit(message, source, now)
            case wire.Done():
                self.sms.done(message, source, now)
            case wire.OneShot():
                self.sms.one_shot(message, source, now)
            case wire.UssdRequest():
                self.ussd.request(message, source, now)
            case wire.UssdExit():
                self.ussd.exit(message, source, now)
            case wire.CallForward():
                self.control.call_forward(message, source, now)
            case wire.CallWaiting():
                self.control.call_waiting(message, source, now)
            case wire.Dial():
                self.control.dial(message, source, now)
            case wire.Command():
                self.control.command(message, source, now)
            case wire.Hello():
                pass  # no description of an answer exists

    # --- keepalive ---

    def _keepalive(self, now: float) -> None:
        """Sent for ever, answered or not; each with the next count (docs/protocol.md §3)."""
        never_answered = self.registration is Registration.WAITING and self._unanswered
        if never_answered or self._unanswered >= _SILENCES:
            self._set_registration(Registration.NO_ANSWER)
        self.count += 1
        self._unanswered += 1
        self.emit(self.keepalive_text(now))
        self.later(self.options.keepalive, self._keepalive, now)

    def keepalive_text(self, now: float) -> str:
        """The line's whole state, with the fields of the captured boxes."""
        control, number = self.control, self.options.number
        if self.calls.state != "IDLE":
            self._idle_since = now
        login = "LOGIN" if self.logged_in else "LOGOUT"
        signal = self.world.rng.randint(14, 28) if self.logged_in else 99
        return (
            f"req:{self.count};id:{self.id};pass:{self.options.password};num:{control.gsm_num};signal:{signal};"
            f"gsm_status:{login};voip_status:LOGIN;voip_state:{self.calls.state};remain_time:{control.remain_time};"
            f"imei:{control.imei};imsi:26006{number:010d};iccid:89480{number:015d};pro:SIMULATED GSM;"
            f"idle:{int((now - self._idle_since) / 60)};disable_status:{0 if control.module_on else 1};"
            f"SMS_LOGIN:{'Y' if self.registration is Registration.ACCEPTED else 'N'};SMB_LOGIN:;"
            f"CELLINFO:{control.cell_info if self.logged_in else ''};CGATT:{'Y' if self.logged_in else 'N'};"
        )

    def _keepalive_answered(self, ack: wire.KeepaliveAck) -> None:
        if ack.count > self.count:
            return  # an answer to something this line has not said since it started
        self._unanswered = 0
        self.status = ack.status
        if ack.word == "req":
            self._set_registration(Registration.WRONG_WORD)
        elif ack.status in self.options.profile.login_status:
            self._set_registration(Registration.ACCEPTED)
        else:
            self._set_registration(Registration.REFUSED)

    def _set_registration(self, registration: Registration) -> None:
        self.registration = registration
        if registration is Registration.ACCEPTED:
            self.world.registered.add(self.id)
        else:
            self.world.registered.discard(self.id)

    # --- for the line's parts ---

    def emit(self, text: str) -> None:
        """Send to the server the box is configured with."""
        self.world.send(Datagram(self.id, text.encode("utf-8", "surrogateescape"), None))

    def reply(self, source: Address, text: str, now: float) -> None:
        """Answer to where a request came from, after the profile's delay."""
        datagram = Datagram(self.id, text.encode("utf-8", "surrogateescape"), source)
        delay = self.options.profile.answer_delay
        if delay:
            self.later(delay, lambda _: self.world.send(datagram), now)
        else:
            self.world.send(datagram)

    def later(self, delay: float, action: Action, now: float) -> None:
        """Run `action` after `delay`, unless the line was switched off in between."""
        boot = self.boot

        def run(when: float) -> None:
            if self.boot == boot:
                action(when)

        self.world.at(now + delay, run)

    def network_delay(self, seconds: tuple[float, float]) -> float:
        """A time the mobile network takes."""
        return self.world.rng.uniform(*seconds) / self.options.time_scale

    def record(self, now: float, what: str, **fields: str | int | float | bool | None) -> None:
        """Write down what the modem really did."""
        self.world.record({"at": round(now, 3), "line": self.id, "what": what, **fields})
