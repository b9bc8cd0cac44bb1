"""Firmware profiles: the ways in which GoIP boxes differ, as far as documents and users report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How one firmware behaves. The defaults are the vendor's document."""

    name: str
    summary: str
    repeat_submits: Literal["never", "waiting", "always"] = "never"
    "When a repeated SEND of one telid makes the modem send the SMS again (docs/protocol.md §4.3)."
    answers_sms_no: bool = True
    "Whether OK carries the number that ties a delivery report to the SMS (docs/protocol.md §4.6)."
    telids_remembered: int = 10
    "How many outcomes a session keeps (docs/protocol.md §4.2)."
    login_status: frozenset[int] = frozenset({0, 200})
    "The keepalive answers taken as a login (docs/protocol.md §3)."
    disable_values: frozenset[str] = frozenset({"0", "2"})
    "The values of module_ctl_i that switch a module off; the editions disagree (docs/protocol.md §8)."
    wait: tuple[float, float] = (2.0, 5.0)
    "Seconds the radio takes for one SMS part."
    answer_delay: float = 0.0
    "Seconds before the box answers anything."
    recvid_start: int | None = None
    "First recvid after each start; None is the unix time, as on a box whose clock is set (docs/protocol.md §2.1)."
    older_ussd_repeats: bool = False
    """Whether a USSD code with a sendid below the last one is answered from memory, as the Chinese edition has it. The
    vendor's own server draws its sendids at random (docs/protocol.md §9)."""
    unset: str = "(null)"
    "What stands for a value that is not set (docs/protocol.md §1.1)."
    double_record: bool = False
    "Whether an answered call is announced by two RECORDs (docs/protocol.md §7.2)."


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="spec", summary="the vendor's document to the letter"),
        Profile(
            name="repeat_unsafe_wait",
            summary="a SEND repeated after WAIT sends the SMS again; after OK it is a status query",
            repeat_submits="waiting",
        ),
        Profile(
            name="repeat_unsafe_always",
            summary="every SEND sends the SMS, repeated or not",
            repeat_submits="always",
        ),
        Profile(name="no_sms_no", summary="older firmware: OK without sms_no", answers_sms_no=False),
        Profile(
            name="small_memory",
            summary="remembers one telid instead of ten; a repeat of an older one sends again",
            telids_remembered=1,
        ),
        Profile(
            name="status0",
            summary="older editions: status 0 is a login, as 200 is, and only 0 switches a module off",
            disable_values=frozenset({"0"}),
        ),
        Profile(
            name="status200",
            summary="the English edition of 2015: only status 200 is a login, and only 2 switches a module off",
            login_status=frozenset({200}),
            disable_values=frozenset({"2"}),
        ),
        Profile(
            name="older_ussd_repeats",
            summary="the Chinese edition: USSD with a smaller sendid than the last is answered from memory",
            older_ussd_repeats=True,
        ),
        Profile(name="unset_null", summary="a value that is not set is <NULL>, not (null)", unset="<NULL>"),
        Profile(
            name="slow",
            summary="a bad cell and a busy box: 15 to 40 s an SMS, 2.5 s before any answer",
            wait=(15.0, 40.0),
            answer_delay=2.5,
        ),
        Profile(
            name="flaky_ntp",
            summary="clock never set: small recvids through 0 to negative, the same ones after each reboot",
            recvid_start=12,
            double_record=True,
        ),
    )
}
