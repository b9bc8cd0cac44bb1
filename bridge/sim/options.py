"""What one simulated line is set to."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from .profiles import PROFILES, Profile

_NUMBER = re.compile(r"%(?:0[1-9])?d")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineOptions:
    """Times are seconds; those of the mobile network are divided by `time_scale`."""

    id: str = "goip%d"
    "`%d` is the line's number, from 1."
    password: str = "password%d"
    number: int = 1
    "Makes IMEI, IMSI and ICCID unique."
    phone: str = ""
    "The SIM's phone number, with `%d` as in `id`; without one it is what `set_gsm_num` says."
    profile: Profile = PROFILES["spec"]

    keepalive: float = 30.0
    "Between two keepalives (docs/protocol.md §3)."
    resend: float = 3.0
    "Until an event without acknowledgement is sent again (docs/protocol.md §6)."
    repeats: int = 3
    "How often it is sent again before the box gives up."
    session_idle: float = 90.0
    "Until the box forgets a session it hears nothing about (docs/protocol.md §4.2)."
    sessions: int = 5
    "How many sessions may be open at once (docs/protocol.md §4.2)."
    sessions_per: Literal["box", "line"] = "box"
    "Of what: the document does not say."

    time_scale: float = 1.0
    "10 makes the mobile network ten times faster: SMS, reports, USSD, calls, booting."
    wait: tuple[float, float] | None = None
    "The radio's time for one SMS part; None is the profile's."
    sms_delay: tuple[float, float] = (1.0, 4.0)
    "From sending an SMS to its arrival, where that is a line of the same simulator."
    report_delay: tuple[float, float] = (3.0, 10.0)
    ussd_delay: tuple[float, float] = (1.0, 4.0)
    ring: tuple[float, float] = (2.0, 5.0)
    "From the first ring to the answer."
    command_delay: tuple[float, float] = (1.0, 3.0)
    "Commands that ask the network: CF, CW, get_cells_list."
    boot_time: float = 20.0
    "From power-up to the first keepalive."

    reports: float = 1.0
    "Share of sent SMS that get a delivery report."
    report_state: int = 0
    "The report's TP-Status; 0 is delivered (docs/protocol.md §5)."
    radio_errors: float = 0.0
    "Share of SMS the network refuses."
    radio_error_code: int = 1
    "errorstatus of those; 1 is the usual one (docs/protocol.md §4.5)."

    newer_receive: bool = False
    "RECEIVE with smscnum and senttime (docs/protocol.md §6)."
    split_long: bool = False
    "A long inbound text arrives as one RECEIVE for each part (docs/protocol.md §6.1)."
    chatter: bool = False
    "Cell and packet-service events by themselves, as a real box sends them (docs/protocol.md §7)."
    clock_offset: float = 0.0
    "How far the box's clock is off; it seeds recvid and is printed in senttime."

    def numbered(self, number: int) -> LineOptions:
        """The options of one line out of many: `%d` and `%03d` in id, password and phone become its number."""
        id, password, phone = (_fill_in(pattern, number) for pattern in (self.id, self.password, self.phone))
        return replace(self, id=id, password=password, phone=phone, number=number)


def has_number(pattern: str) -> bool:
    """Whether `%d` or the like is in the pattern."""
    return _NUMBER.search(pattern) is not None


def _fill_in(pattern: str, number: int) -> str:
    # Not the % operator: any other % in a password is meant as it is.
    return _NUMBER.sub(lambda match: match[0] % number, pattern)
