"""Calls through a line, as the events they cause (docs/protocol.md §7.13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .world import Action

if TYPE_CHECKING:
    from .line import SimulatedLine

_INCOMING, _OUTGOING = 1, 2
"The `dir` of RECORD (docs/protocol.md §7.2)."


class Calls:
    """At most one call. `state` is what STATE, the keepalive and get_gsm_state say."""

    def __init__(self, line: SimulatedLine) -> None:
        self._line = line
        self.state = "IDLE"
        self._serial = 0
        "Changes with each call: the steps planned for an older one no longer happen."
        self._direction = _INCOMING
        self._number = ""
        self._answered_at: float | None = None

    def incoming(self, number: str, now: float, *, answered: bool = True, seconds: float = 30.0) -> bool:
        """Somebody calls. Unanswered, it rings for `seconds`. False when the line is busy or off."""
        if not self._begin(_INCOMING, number, f"INCOMING:{number}", now):
            return False
        self._ring(answered, seconds, now)
        return True

    def outgoing(self, number: str, now: float, *, answered: bool = True, seconds: float = 30.0) -> bool:
        """The box dials for somebody on its VoIP side. Unanswered, it rings for `seconds`."""
        if not self._begin(_OUTGOING, number, f"DIALING:{number}", now):
            return False
        alerting = self._line.network_delay(self._line.options.ring) / 2
        self._step(alerting, lambda when: self._alerting(answered, seconds, when), now)
        return True

    def hang_up(self, cause: str, now: float) -> None:
        """End the call, if there is one: EXPIRY if it was answered or ours, IDLE, HANGUP, and REMAIN if it was ours."""
        if self.state == "IDLE":
            return
        self._serial += 1
        seconds = 0.0 if self._answered_at is None else now - self._answered_at
        events = self._line.events
        if self._answered_at is not None or self._direction == _OUTGOING:
            events.send("EXPIRY", f"exp:{int(seconds)}", now)
        self._set_state("IDLE", now)
        events.send("HANGUP", f"num:,cause:{cause}", now)
        if self._direction == _OUTGOING:
            self._line.control.spend(seconds)
            events.send("REMAIN", f"gsm_remain_time:{self._line.control.remain_time}", now)
        self._line.record(now, "call_end", number=self._number, cause=cause, seconds=round(seconds, 1))

    def _begin(self, direction: int, number: str, state: str, now: float) -> bool:
        if self.state != "IDLE" or not self._line.logged_in:
            return False
        self._serial += 1
        self._direction, self._number, self._answered_at = direction, number, None
        self._line.record(now, "call", direction="incoming" if direction == _INCOMING else "outgoing", number=number)
        self._set_state(state, now)
        self._announce(now)
        return True

    def _alerting(self, answered: bool, seconds: float, now: float) -> None:
        self._set_state(f"ALERTING:{self._number}", now)
        self._ring(answered, seconds, now)

    def _ring(self, answered: bool, seconds: float, now: float) -> None:
        if answered:
            ring = self._line.network_delay(self._line.options.ring)
            self._step(ring, lambda when: self._connected(seconds, when), now)
        else:
            self._step(self._scaled(seconds), lambda when: self.hang_up("User busy", when), now)

    def _connected(self, seconds: float, now: float) -> None:
        self._answered_at = now
        self._set_state(f"CONNECTED:{self._number}", now)
        if self._line.options.profile.double_record:
            self._announce(now)
        self._step(self._scaled(seconds), lambda when: self.hang_up("Normal call clearing", when), now)

    def _announce(self, now: float) -> None:
        self._line.events.send("RECORD", f"dir:{self._direction};num:{self._number}", now)

    def _set_state(self, state: str, now: float) -> None:
        self.state = state
        self._line.events.send("STATE", f"gsm_remain_state:{state}", now)

    def _scaled(self, seconds: float) -> float:
        return seconds / self._line.options.time_scale

    def _step(self, delay: float, action: Action, now: float) -> None:
        serial = self._serial

        def run(when: float) -> None:
            if self._serial == serial:
                action(when)

        self._line.later(delay, run, now)
