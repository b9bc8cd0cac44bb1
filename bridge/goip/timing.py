"""Every timer of the GoIP side in one place, each with its reason."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Tunable times, all in seconds."""

    offline: float = 95.0
    "Silence after which a line is offline: three missed keepalives of 30 s (docs/protocol.md §3)."
    resend: float = 5.0
    "Wait before an unanswered MSG, PASSWORD, SEND or control command is repeated (§4.2, §8)."
    wait: float = 90.0
    "How long an accepted SMS (WAIT) may stay without its outcome; the box forgets a session after 90 s (§4.2)."
    idle: float = 90.0
    "A box forgets a session about which it hears nothing for so long (§4.2)."
    grace: float = 10.0
    """How long a box has to say the outcome of an SMS by itself: before it is asked after a restart, and before it is
    believed that it did not take a SEND (§4.3). An SMS takes 2 to 5 s, and as much is left for the way."""
    ussd: float = 120.0
    "How long a USSD reply may take; networks are slow and a repeat may cost money (§9)."
    evidence: float = 900.0
    "How long late answers of an ended session are still matched to their SMS (§4.3)."
    backoff: float = 30.0
    "Pause after a refused session, doubling up to `backoff_max` (§12.4)."
    backoff_max: float = 300.0
    full: float = 5.0
    """Pause before a box that refused a session is tried with one more than it has, while somebody waits. It costs two
    datagrams; and where an earlier run left sessions, it is what is lost once the box has forgotten them (§4.2)."""
    done: float = 2.5
    "Wait for the confirmation of DONE before it is repeated once and the line is free again (§4.4)."
    cells: float = 30.0
    "Wait for the CELLS event after get_cells_list was answered."
    hangup: float = 5.0
    "An IDLE line ends its call when no HANGUP came within this time."
    repeats: float = 900.0
    "How long a repeated event of the box is recognised; the box itself repeats for about 12 s (§6.3)."
    selftest_repeat: float = 2.0
    "Between the two SENDs that a self-test repeats while the SMS waits: it takes 2 to 5 s (§4.2)."
    selftest_known: float = 80.0
    "Silence after which a session must still be known, for it is forgotten after 90 s (§4.2)."
    selftest_forgotten: float = 100.0
    "Silence after which a session must be forgotten: as far from 90 s as `selftest_known`."
    selftest_watch: float = 60.0
    "How long a self-test waits for copies of its SMS after the last SEND; networks deliver within seconds."
    session_transmissions: int = 4
    "Transmissions of MSG, PASSWORD and SEND in all, as the vendor's server does (§4.2)."
    request_transmissions: int = 3
    "Transmissions of a control command in all: every 5 s, twice repeated (§8)."
