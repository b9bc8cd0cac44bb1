"""USSD as the box does it, and a small network service to talk to (docs/protocol.md §9).

*100#  a balance            *101#  a menu: 1, then 1 or 2; or 2
*102#  a balance as undecoded UCS-2 hex digits
*104#  a balance as undecoded octets of the GSM alphabet
*103#  the network ends the dialogue without a text
*197#  «USSD send failed!»  *198#  USSDERROR
*199#  never answers
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import wire
from .world import Address

if TYPE_CHECKING:
    from .line import SimulatedLine


@dataclass(frozen=True, slots=True)
class _Page:
    """What the network says, and where each answer leads."""

    text: str | None
    verb: str = "USSD"
    choices: dict[str, _Page] = field(default_factory=dict)


_SERVICES: dict[str, _Page] = {
    "*100#": _Page("Balance 4.20 EUR, valid until 31.12."),
    "*101#": _Page(
        "1 Top up\n2 Tariff",
        choices={
            "1": _Page(
                "Top up by\n1 5.00 EUR\n2 10.00 EUR", choices={"1": _Page("5.00 added"), "2": _Page("10.00 added")}
            ),
            "2": _Page("Your tariff: Simulated; 0.09/SMS"),
        },
    ),
    "*102#": _Page("Balance 4.20 €".encode("utf-16-be").hex().upper()),
    "*104#": _Page("42616C616E636520342E3230201B65"),
    "*103#": _Page("", verb="USSDEXIT"),
    "*197#": _Page("USSD send failed!"),
    "*198#": _Page("network error", verb="USSDERROR"),
    "*199#": _Page(None),
}
_UNKNOWN = _Page("Unknown service code")
_BAD_CODE = _Page("bad code", verb="USSDERROR")


class Ussd:
    """The line's one dialogue, and its memory of the last sendid."""

    def __init__(self, line: SimulatedLine) -> None:
        self._line = line
        self._last: int | None = None
        self._answer: _Page | None = None
        "What the last sendid was answered; None while the network is busy with it."
        self._choices: dict[str, _Page] = {}

    def request(self, message: wire.UssdRequest, source: Address, now: float) -> None:
        """A code, or an answer in an open menu."""
        if message.password != self._line.options.password:
            self._line.reply(source, f"USSDERROR {message.sendid} PASSWORD", now)
        elif self._is_repeat(message.sendid):
            self._reply(message.sendid, self._answer, source, now)
        elif not self._line.logged_in:
            self._line.reply(source, f"USSDERROR {message.sendid} GSM_LOGOUT", now)
        else:
            self._ask_network(message, source, now)

    def _is_repeat(self, sendid: int) -> bool:
        """Answered from memory, and never sent to the network again."""
        if self._last is None:
            return False
        return sendid == self._last or (sendid < self._last and self._line.options.profile.older_ussd_repeats)

    def exit(self, message: wire.UssdExit, source: Address, now: float) -> None:
        if message.password != self._line.options.password:
            self._line.reply(source, f"USSDERROR {message.sendid} PASSWORD", now)
            return
        self._choices = {}
        self._line.reply(source, f"USSDEXIT {message.sendid}", now)

    def _ask_network(self, message: wire.UssdRequest, source: Address, now: float) -> None:
        self._last, self._answer = message.sendid, None
        self._line.record(now, "ussd", sendid=message.sendid, code=message.code)
        page = self._choices.get(message.code) or _SERVICES.get(message.code, _UNKNOWN)
        if not message.code.isprintable():
            page = _BAD_CODE  # mostly a newline a server appended (docs/protocol.md §1.1)
        self._choices = {}
        delay = self._line.network_delay(self._line.options.ussd_delay)
        self._line.later(delay, lambda when: self._answered(message.sendid, page, source, when), now)

    def _answered(self, sendid: int, page: _Page, source: Address, now: float) -> None:
        if sendid != self._last or page.text is None:
            return
        self._answer, self._choices = page, page.choices
        self._reply(sendid, page, source, now)

    def _reply(self, sendid: int, page: _Page | None, source: Address, now: float) -> None:
        if page is not None:
            self._line.reply(source, f"{page.verb} {sendid} {page.text}".rstrip(), now)
