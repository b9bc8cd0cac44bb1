"""What the protocol core tells its owner: facts that must be durable before any answer leaves.

`line` is the line's name in the configuration. Times are the owner's business: an event happened when it was taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class LineOnline:
    """A line was heard for the first time, or again."""

    line: str
    address: Address


@dataclass(frozen=True, slots=True)
class LineOffline:
    """A line was not heard for `Timing.offline` seconds."""

    line: str
    address: Address | None
    "Where it was, if it ever was heard."


@dataclass(frozen=True, slots=True)
class LineMoved:
    """Where a line is and how far its keepalives counted; worth keeping over a restart."""

    line: str
    address: Address
    count: int
    reboots: int
    previous: Address | None = None
    "Where it was before, if it was somewhere else."
    contested: bool = False
    "It came back from `previous` without having left: two speak for the line there and here."


@dataclass(frozen=True, slots=True)
class KeepaliveIgnored:
    """A keepalive with the right password came from elsewhere than the line is, and was not believed: it may be the
    replay of an old one, or another sender. It was answered all the same."""

    line: str
    address: Address
    count: int
    believed: Address
    "Where the line is."
    believed_count: int
    "How far the keepalives from there counted."
    silence: float
    "Once nothing comes from there for so many seconds more, the other address is believed."
    contested: bool
    "Its count is larger, but the place of the line was claimed a moment ago, and went back."


@dataclass(frozen=True, slots=True)
class LineChanged:
    """Something a line's state shows has changed."""

    line: str


@dataclass(frozen=True, slots=True)
class LineReady:
    """The line can take a bulk session."""

    line: str


@dataclass(frozen=True, slots=True)
class GatewayRebooted:
    """The keepalive count started again (§3)."""

    line: str
    address: Address
    reboots: int
    up: float = 0.0
    "Seconds since the restart, at least."


@dataclass(frozen=True, slots=True)
class Unauthenticated:
    """A datagram that got no answer: an id that is not configured, a wrong password or a forbidden network."""

    id: str
    "The id as claimed by the sender."
    line: str | None
    "The configured line of that id."
    address: Address
    reason: str
    "`unknown`, `password` or `network`; `guessing` after which nobody there is heard for the line, for a while."
    count: int = 1
    "This one, and those for the line that were not listened to before it."


@dataclass(frozen=True, slots=True)
class Seen:
    """A new event of the box: the key by which its repeats are known."""

    line: str
    key: bytes


@dataclass(frozen=True, slots=True)
class SmsReceived:
    """An inbound SMS."""

    line: str
    recvid: int
    srcnum: str
    text: str
    raw: bytes | None
    "The bytes of the text, when they had to be sanitised."
    smscnum: str | None
    senttime: str | None


@dataclass(frozen=True, slots=True)
class SmsSending:
    """A SEND is about to leave: the journal entry. From here on the SMS may be on the air."""

    line: str
    msg: int
    sendid: int
    telid: int


@dataclass(frozen=True, slots=True)
class SmsSent:
    """The gateway says the network took the SMS."""

    line: str
    msg: int
    sms_no: int | None


@dataclass(frozen=True, slots=True)
class SmsFailed:
    """The gateway says the SMS was not sent. `code` is None when there is only a text."""

    line: str
    msg: int
    code: int | None
    text: str
    submitted: bool = True
    "Its SEND had left: without a code nobody can say whether it went out."
    repeated: bool = False
    "It left more than once, on firmware that may have sent the SMS for each: one of them may have gone out."
    of: tuple[int, int] | None = None
    "The sendid and telid of the submission that failed: another one may be under way by now."


@dataclass(frozen=True, slots=True)
class SmsUnknown:
    """An SMS that left and whose outcome can't be known now. `evidence`: `silence` or `session_lost`."""

    line: str
    msg: int
    evidence: str


@dataclass(frozen=True, slots=True)
class SmsRequeued:
    """Certainly not sent, for a reason that may pass."""

    line: str
    msg: int
    reason: str


@dataclass(frozen=True, slots=True)
class SmsExpired:
    """Its time was over before its first SEND."""

    line: str
    msg: int


@dataclass(frozen=True, slots=True)
class SmsReport:
    """A delivery report (§5)."""

    line: str
    sms_no: int | None
    state: int | None
    number: str


@dataclass(frozen=True, slots=True)
class CallEvent:
    """A step of a call: `ringing dialing answered ended recorded`."""

    line: str
    event_type: str
    number: str | None = None
    direction: str | None = None
    duration_s: float | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class UssdEvent:
    """USSD text, error or timeout; `token` and `code` are None when the network began."""

    line: str
    event_type: str
    token: int | None
    code: str | None
    text: str | None
    exit: bool = False
    late: bool = False
    "The answer came after the command had been given up."
    text_raw: str | None = None
    "What the box said, where it left the text undecoded (§1.1)."


@dataclass(frozen=True, slots=True)
class LineEvent:
    """Any other event of the box: `remain expiry cells bcch cellinfo cgatt` or an unknown kind."""

    line: str
    event_type: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestAnswered:
    """A control command was answered. `ok` is the gateway's verdict, `text` its words."""

    line: str
    token: int
    ok: bool
    text: str
    fields: Mapping[str, str] | None = None
    cells: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class RequestTimedOut:
    """A control command was not answered."""

    line: str
    token: int


@dataclass(frozen=True, slots=True)
class RepeatUnsafe:
    """The gateway was seen to send an SMS again for a repeated SEND (§4.3)."""

    line: str
    identity: str
    "Of the hardware, as `Line.identity`."


@dataclass(frozen=True, slots=True)
class SelfTestStep:
    """A step of a self-test: `open send repeat answer copy pause watch`; published as `selftest`."""

    line: str
    token: int
    at: float
    "Seconds since it began."
    round: int
    "Which of its two SMS."
    step: str
    text: str
    "What was done, or what the gateway answered, without numbers and ids."
    within: float | None
    "Seconds until the next step, where that is known."


@dataclass(frozen=True, slots=True)
class SelfTestEnded:
    """A self-test is over: `safe`, `unsafe` or `inconclusive`."""

    line: str
    token: int
    verdict: str
    identity: str
    "Of the hardware, as `Line.identity`."
    dense: bool
    "The second SMS had the next sms_no (§4.6)."
    report: Mapping[str, object]
    "All that was seen, without phone numbers and names of lines."


Event = (
    LineOnline | LineOffline | LineMoved | KeepaliveIgnored | LineChanged | LineReady | GatewayRebooted | RepeatUnsafe
    | Unauthenticated | Seen | SmsReceived | SmsSending | SmsSent | SmsFailed | SmsUnknown | SmsRequeued | SmsExpired
    | SmsReport | CallEvent | UssdEvent | LineEvent | RequestAnswered | RequestTimedOut | SelfTestStep | SelfTestEnded
)  # fmt: skip
