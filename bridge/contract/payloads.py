"""Every JSON payload the bridge publishes: one class for each file in schemas/.

Frozen dataclasses, written by orjson; the strings under the fields are the descriptions in the schemas. `ts` is not
among the fields of a class because it is added when the payload is published, not when it is made.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import orjson
from pydantic import WithJsonSchema

from .commands import Code

DAY = 86400

Time = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
        }
    ),
]
"As `timestamp` writes it: RFC 3339, UTC, milliseconds."
DeliveryType = Literal[
    "queued", "sending", "sent", "delivered", "undelivered", "failed", "unknown", "expired", "cancelled"
]
BridgeEventType = Literal[
    "line_online",
    "line_offline",
    "line_unknown",
    "line_unauthorized",
    "line_moved",
    "gateway_reboot",
    "outage_gap",
    "store_restored",
    "work_left",
    "repeat_unsafe",
    "takeover",
    "retained_command",
    "publish_refused",
    "no_subscriber",
    "subscription_refused",
]
Problem = Literal["gsm_logout", "module_disabled", "password_refused", "paused", "tripped"]


@lru_cache(maxsize=8)
def timestamp(at: float) -> str:
    """RFC 3339 in UTC with milliseconds, of unix seconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:23] + "Z"


def encode(payload: object) -> bytes:
    """A payload as JSON, without `ts`."""
    # `from` is a Python keyword. A quoted key can't be mistaken: inside a string JSON escapes the quotes.
    return orjson.dumps(payload, option=orjson.OPT_NON_STR_KEYS).replace(b'"from_":', b'"from":')


def stamped(body: bytes, at: float) -> bytes:
    """The payload as it is published: with `ts`."""
    return b'%b,"ts":"%b"}' % (body[:-1], timestamp(at).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Why an SMS did not go out, as far as it is known."""

    code: int | None
    "The gateway's errorstatus, or the TP-Status of an undelivered SMS; null when it gave words only."
    text: str
    "The gateway's words, or ours."
    cause: str | None = None
    "What the code means, as a word of docs/causes.md; null without a code."
    meaning: str | None = None
    "The same for people; null without a code."
    retryable: bool
    "Sending it again later may work."
    ambiguous: bool
    "The SMS may have gone out all the same: do not resend without thinking."


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What every fact has. A fact is published at least once; `id` is the same each time."""

    v: Literal[1] = 1
    "Version of the payloads."
    id: str
    "Unique; repeats of the same fact have the same id."
    at: Time
    "When it happened: RFC 3339, UTC."
    boot: str
    "One run of the bridge."
    seq: int
    "Counts the messages of this topic within one boot, from 1; a gap means a lost message."


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsIn(Fact):
    """An SMS was received. Topic `<base>/<id>/sms/in`."""

    event_type: Literal["received"] = "received"
    "Always `received`."
    from_: str | None
    "The sender in E.164 where it can be, else as the gateway gave it; null when there is none."
    from_raw: str | None
    "The sender exactly as the gateway gave it: an international or national number, a short code or a name."
    text: str
    "The text; unreadable bytes are replaced by U+FFFD."
    chars: int
    "Length of the text in Unicode code points."
    recvid: int
    "The gateway's number of this message; counts down and may be negative."
    smsc: str | None
    "The service centre's number, where the firmware tells."
    senttime: str | None
    "When the network took the SMS, verbatim; the format is the firmware's."
    raw_hex: str | None = None
    "The bytes of the text in hexadecimal, only when they could not be represented exactly."
    replay: bool = False
    "Published again on request, not new."


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(Fact):
    """A step in the life of one recipient's SMS. Topic `<base>/<id>/delivery`."""

    event_type: DeliveryType
    "What happened; nothing follows delivered, undelivered, failed, expired and cancelled."
    msg: str | None
    "Our id of this recipient's SMS; null for a delivery report that matches nothing."
    cmd: str | None
    "The id of the command that asked for it."
    job: str | None
    "The job, for a command with two or more recipients."
    to: str | None
    "The number as sent to the gateway."
    sms_no: int | None = None
    "The gateway's number for the sent SMS; small, per line, reused."
    attempt: int = 0
    "How often it was submitted to a gateway, this time included."
    error: Error | None = None
    "Why, for failed, undelivered, and queued again."
    evidence: (
        Literal["ok", "errorstatus", "report", "silence", "session_lost", "restart", "odometer", "restored"] | None
    ) = None
    "How we know."


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Fact):
    """A step of a call. Topic `<base>/<id>/call`."""

    event_type: Literal["ringing", "dialing", "answered", "ended", "recorded"]
    "The step; `recorded` is the gateway's own record of a call."
    number: str | None
    "The other side; null when it is not known."
    direction: Literal["in", "out"] | None
    "`in` is a call to the SIM; null when it is not known."
    duration_s: float | None = None
    "Seconds from answer to end, for `ended`; 0 when it was not answered."
    cause: str | None = None
    "The gateway's words, for `ended`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Ussd(Fact):
    """A USSD reply, error or time-out. Topic `<base>/<id>/ussd`."""

    event_type: Literal["reply", "error", "timeout"]
    "`timeout` is no answer in time; the code may have been carried out all the same."
    code: str | None
    "The code that was sent; null when the network began."
    text: str | None
    "What the network or the gateway said; null when it ended the dialogue without a text."
    text_raw: str | None = None
    "What the gateway gave, where it left the text as hexadecimal digits and `text` was decoded from them; else null."
    cmd: str | None
    "The id of the command; null when the network began."


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Fact):
    """Any other event of a line. Topic `<base>/<id>/event`. Which fields are there depends on `event_type`."""

    event_type: str
    "remain, expiry, cells, bcch, cellinfo, cgatt, selftest, or the gateway's own word in lower case."


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeEvent(Fact):
    """Something the operator should know. Topic `<base>/bridge/event`."""

    event_type: BridgeEventType
    "What happened."
    message: str
    "What it means and what to do."
    line: str | None = None
    "The line, as claimed by the sender where it is not known."
    gateway: str | None = None
    "The line's gateway, as configured."
    address: str | None = None
    "ip:port of the sender."
    count: int | None = None
    "How many of these happened since the last such fact, this one included."
    topic: str | None = None
    "The topic of the publish or command it is about."
    reason_code: int | None = None
    "The MQTT reason code."
    from_: Time | None = None
    "Beginning of the gap."
    to: Time | None = None
    "End of the gap, or of the time for which work is left."


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer to a command. Topic `<base>/<id>/result/<command path>`, and the Response Topic if there was one."""

    v: Literal[1] = 1
    id: str
    "The command's id."
    boot: str
    "One run of the bridge."
    seq: int
    "Counts the messages of this topic within one boot, from 1."
    command: str
    "The command path, such as sms or number/get; empty where the topic ended at cmd."
    status: Literal["ok", "error"]
    "`ok` exactly when `code` is."
    code: Code
    "Why, for programs; a closed list."
    retryable: bool
    "The same command may work later."
    message: str
    "For people; names the failing place, such as to[1]."
    data: dict[str, Any] = field(default_factory=dict)
    """What the command gives back: `job` (or null), `msgs`, `parts` and `encoding` for `sms`; `value` for most that end
    in `get`; `enable` for call forwarding and waiting, and `number` and `timeout_s` for `call_forward/get`; `cells` for
    `cells/get`; `text` and `exit` for `ussd`, and `text_raw` where the text had to be decoded; `verdict` (`safe`,
    `unsafe`, `inconclusive`) and the whole report for
    `selftest`. Empty when it was refused."""
    duplicate: bool = False
    "This is the answer of an earlier command with the same id."
    warnings: list[str] = field(default_factory=list)
    "Words such as line_offline, duplicate_recipient or text_is_json."


# -- states: retained, the latest wins ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Signal strength; null where unknown."""

    csq: int | None = None
    "0 to 31."
    dbm: int | None = None
    "2·csq-113."
    percent: int | None = None
    "csq/31, rounded."


@dataclass(frozen=True, slots=True, kw_only=True)
class Gsm:
    """The mobile network."""

    status: Literal["login", "logout", "unknown"] = "unknown"
    "The gateway's word."
    registered: bool | None = None
    "The same as true or false; null when unknown."
    operator: str | None = None
    """As the gateway gives it; often a code of letters, such as POL. Where it gives the name in hexadecimal digits,
    they are decoded, and `raw` has them as `pro`."""
    cell: str | None = None
    "As the gateway gives it, such as `LAC:7E5,CELL ID:5E5B`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Voip:
    """The gateway's registration with its SIP or H.323 server."""

    status: str | None = None
    "The gateway's word, in lower case."
    registered: bool | None = None
    "The same as true or false; null when unknown."


@dataclass(frozen=True, slots=True, kw_only=True)
class CallState:
    """The channel's call."""

    state: Literal["idle", "ringing", "dialing", "alerting", "active", "busy"] | None = None
    "Null until the line is heard."
    number: str | None = None
    "The other side."
    direction: Literal["in", "out"] | None = None
    "`in` is a call to the SIM."
    since: Time | None = None
    "When `state` began."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sim:
    """The SIM card."""

    number: str | None = None
    "Its phone number, where the gateway knows it (`number/set`)."
    imsi: str | None = None
    "Identity of the subscriber."
    iccid: str | None = None
    "Number of the card."


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """The radio module."""

    imei: str | None = None
    "Its serial number, 15 digits."


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of outgoing call time, in minutes."""

    exp_time_min: int | None = None
    "Minutes allowed in all; known once they were set or asked for (`exp_time/set`, `exp_time/get`, `info/get`)."
    remain_time_min: int | None = None
    "Minutes left; null when unknown or unlimited."
    unlimited: bool | None = None
    "There is no limit; null when unknown."


@dataclass(frozen=True, slots=True, kw_only=True)
class LineState:
    """What is true of a line now. Topic `<base>/<id>/state`."""

    v: Literal[1] = 1
    signal: Signal
    gsm: Gsm
    voip: Voip
    call: CallState
    sim: Sim
    module: Module
    limits: Limits
    enabled: bool | None
    "The module is switched on; null when unknown."
    address: str | None
    "ip:port the line was heard at last."
    last_seen: Time | None
    "When the line was heard last; alone it re-publishes the state at most every 5 minutes."
    problems: list[Problem]
    "What keeps the line from working."
    raw: dict[str, str]
    "Keepalive fields that have no place above, verbatim."


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """SMS that are not finished."""

    queued: int = 0
    "Waiting for their turn."
    active: int = 0
    "Handed to the gateway, outcome not known yet."


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Counted SMS."""

    sent: int = 0
    "Taken by the network."
    delivered: int = 0
    "Reported as delivered."
    failed: int = 0
    "Failed and undelivered."
    unknown: int = 0
    "Left, and nobody knows what became of them."
    received: int = 0
    "Inbound."


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStats:
    """A line's queue and traffic. Topic `<base>/<id>/stats`."""

    v: Literal[1] = 1
    queue: QueueCounts
    total: Traffic
    "Since the store was made."
    today: Traffic
    "Since midnight UTC."


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsLast:
    """The last inbound SMS. Topic `<base>/<id>/sms/last`."""

    v: Literal[1] = 1
    at: Time
    "When it was received: RFC 3339, UTC."
    from_: str | None
    "Masked: the last three digits of a number."
    chars: int
    "Length of the text in Unicode code points."
    text: str | None = None
    "Only with `retain_text: true`."


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttInfo:
    """The connection to the broker."""

    version: str | None
    "5 or 3.1.1."
    session_present: bool
    "The broker had kept our session."


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeInfo:
    """What this bridge is. Topic `<base>/bridge/info`."""

    v: Literal[1] = 1
    version: str
    "Version of the program."
    api: int
    "Version of the topics and payloads."
    instance: str
    "Name of this bridge."
    started_at: Time
    "When this run began: RFC 3339, UTC."
    serving_since: Time | None
    "Since when this bridge is the one that serves the base topic; null while it asks whether another one does."
    served_since: Time | None
    "While it asks: since when it served before."
    lines: int
    "Configured lines."
    mqtt: MqttInfo
    features: list[str]
    "What this version can do."
    config: dict[str, Any]
    "The configuration in force, without secrets."


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpHealth:
    """Datagrams since the start."""

    received: int
    sent: int
    malformed: int
    "That are not of this protocol."
    unauthorized: int
    "With an unknown id, a wrong password or from a wrong address."
    dropped: int
    "By the kernel because we were too slow, or by us while the store could not be written."


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttHealth:
    """The connection to the broker since the start."""

    connected: bool
    published: int
    "Messages handed to the broker."
    acked: int
    "Messages the broker took."
    refused: int
    "Messages the broker refused; they are tried again."
    reconnects: int
    mute_s: float
    "Seconds, while connected, in which the broker acknowledged nothing of what waits for it; also over reconnections."


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxHealth:
    """Facts and results that the broker has not acknowledged."""

    count: int
    oldest_s: float | None
    "Age of the oldest; null when there is none."


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCounts:
    """Lines heard, of those configured."""

    online: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeHealth:
    """How the bridge is, every 60 s. Topic `<base>/bridge/health`."""

    v: Literal[1] = 1
    uptime_s: int
    "Seconds since the start."
    rss_mb: float
    "Memory in use, in MiB."
    loop_lag_ms: float
    "The longest time in the last minute that the program could not react."
    udp: UdpHealth
    mqtt: MqttHealth
    outbox: OutboxHealth
    queue: QueueCounts
    lines: LineCounts
    store_low: bool = False
    "The disk is full: commands are refused until there is room, what gateways say is still stored."


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSummary:
    """One line in `bridge/lines`."""

    id: str
    "The line's name in its topics."
    name: str | None
    "The name for people, as configured."
    gateway: str | None
    "The gateway, as configured."
    online: bool
    address: str | None
    "ip:port the line was heard at last."


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLines:
    """All configured lines. Topic `<base>/bridge/lines`."""

    v: Literal[1] = 1
    lines: list[LineSummary]
    "Every configured line."


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCounts:
    """Recipients of a job by state."""

    queued: int = 0
    sending: int = 0
    sent: int = 0
    delivered: int = 0
    undelivered: int = 0
    failed: int = 0
    unknown: int = 0
    expired: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Progress of a command with two or more recipients. Topic `<base>/job/<job>`."""

    v: Literal[1] = 1
    job: str
    "The job's id, as in `delivery`."
    cmd: str
    "The id of the command that asked for it."
    line: str
    "The line it was given to."
    state: Literal["running", "paused", "done", "cancelled"]
    "`done` when none is queued or sending any more."
    total: int
    "Recipients."
    counts: JobCounts
    rate_per_min: float | None
    "SMS handed over per minute since the start."
    eta_s: int | None
    "Seconds until the last one is handed over, at this rate."
    started_at: Time
    "When the command was accepted: RFC 3339, UTC."
    ended_at: Time | None
    "When the last one was handed over, or given up; null while it goes on."


@dataclass(frozen=True, slots=True)
class Kind:
    """A fact or result as the outbox knows it."""

    schema: str
    "File in schemas/, without .json; the MQTT 5 user property `schema`."
    expiry_s: int
    "MQTT 5 message expiry."


KINDS: dict[type, Kind] = {
    SmsIn: Kind("sms_in", 7 * DAY),
    Delivery: Kind("delivery", 7 * DAY),
    Call: Kind("call", 600),
    Ussd: Kind("ussd", 3600),
    Event: Kind("event", DAY),
    BridgeEvent: Kind("bridge_event", DAY),
    Result: Kind("result", 3600),
}
STATES: dict[type, Kind] = {
    LineState: Kind("state", 0),
    LineStats: Kind("stats", DAY),
    SmsLast: Kind("sms_last", 7 * DAY),
    BridgeInfo: Kind("bridge_info", 0),
    BridgeHealth: Kind("bridge_health", 180),
    BridgeLines: Kind("bridge_lines", 0),
    Job: Kind("job", 7 * DAY),
}
