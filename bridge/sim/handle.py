"""A line of a running simulator, for tests and people who want something to happen to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .line import Registration, SimulatedLine
from .world import Datagram

if TYPE_CHECKING:
    from .run import Simulator


class LineHandle:
    """One line of a running simulator: what can happen to it, at once."""

    def __init__(self, simulator: Simulator, line: SimulatedLine) -> None:
        self._simulator = simulator
        self._line = line

    @property
    def id(self) -> str:
        return self._line.id

    @property
    def registration(self) -> Registration:
        """What the server made of the line."""
        return self._line.registration

    @property
    def call_state(self) -> str:
        """IDLE, INCOMING:…, DIALING:…, ALERTING:… or CONNECTED:…"""
        return self._line.calls.state

    def receive_sms(self, from_: str, text: str) -> None:
        """Somebody sends an SMS to this line's SIM."""
        self._simulator.inject(lambda now: self._line.receive_sms(from_, text, now))

    def incoming_call(self, number: str, *, answered: bool = True, seconds: float = 30.0) -> None:
        """Somebody calls this line; ignored while it is busy or logged out."""
        self._simulator.inject(
            lambda now: _ignore(self._line.calls.incoming(number, now, answered=answered, seconds=seconds))
        )

    def outgoing_call(self, number: str, *, answered: bool = True, seconds: float = 30.0) -> None:
        """Somebody on the VoIP side calls through this line; ignored while it is busy or logged out."""
        self._simulator.inject(
            lambda now: _ignore(self._line.calls.outgoing(number, now, answered=answered, seconds=seconds))
        )

    def hang_up(self, cause: str = "Normal call clearing") -> None:
        self._simulator.inject(lambda now: self._line.calls.hang_up(cause, now))

    def ussd_push(self, text: str) -> None:
        """The network sends a USSD text nobody asked for."""
        self._simulator.inject(lambda now: self._line.ussd_push(text, now))

    def event(self, kind: str, fields: str) -> None:
        """Any event, also one no document knows: `event("NUM_ICCID", "iccid:8949")`."""
        self._simulator.inject(lambda now: _ignore(self._line.events.send(kind, fields, now)))

    def raw(self, data: bytes) -> None:
        """Any bytes, from this line's port to the server."""
        self._simulator.inject(lambda _: self._line.world.send(Datagram(self._line.id, data, None)))

    def fail_next(self, code: int) -> None:
        """Let the network refuse the next SMS with this errorstatus."""
        self._simulator.inject(lambda _: self._line.sms.fail_next(code))

    def logout(self) -> None:
        """The SIM loses its network."""
        self._simulator.inject(self._line.logout)

    def login(self) -> None:
        """The SIM finds its network again."""
        self._simulator.inject(self._line.login)

    def reboot(self) -> None:
        """The line's whole box loses power and starts again."""
        self._simulator.inject(self._line.gateway.reboot)

    def power_off(self) -> None:
        """Only this line stops; nothing comes from it any more."""
        self._simulator.inject(self._line.power_off)

    def power_on(self) -> None:
        self._simulator.inject(self._line.power_on)


def _ignore(_: object) -> None:
    """For results nobody wants."""
