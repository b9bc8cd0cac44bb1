"""The wire format: datagrams to typed messages, and our answers and orders to datagrams.

Decodes what a gateway sends, encodes what an SMS server sends. Pure functions; the only error is
`WireError`. Section numbers refer to docs/protocol.md.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class WireError(Exception):
    """A datagram that is not a message of the protocol. `args[0]` says why, without its contents."""


UNSET = ("", "(null)", "<NULL>")
"How boxes spell a value that is not set (§1.1)."


def value(text: str | None) -> str | None:
    """A value as the box gives it; None for one that is not set (§1.1)."""
    return None if text is None or text.strip() in UNSET else text


CALL_STATES = {
    "IDLE": "idle",
    "IDEL": "idle",  # the document's own spelling in its list of values (§7.13)
    "INCOMING": "ringing",
    "DIALING": "dialing",
    "ALERTING": "alerting",
    "CONNECTED": "active",
    "ACTIVE": "active",
    "BUSY": "busy",
}
"What the words of STATE mean (§7.13)."

# -- messages from the gateway -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keepalive:
    """`req:` (§3). The field names known to us are lower case, unknown ones verbatim."""

    count: int
    id: str
    password: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """A message the box repeats until it is acknowledged (§5 to §7)."""

    kind: str
    "As the box spells it: the acknowledgement has to repeat it."
    recvid: int
    id: str
    password: str


@dataclass(frozen=True, slots=True)
class Receive(Event):
    """An inbound SMS (§6)."""

    srcnum: str
    text: str
    raw: bytes
    "The bytes of the msg field."
    damaged: bool
    "The bytes were not clean UTF-8, or held a NUL: `text` is sanitised."
    smscnum: str | None
    senttime: str | None


@dataclass(frozen=True, slots=True)
class Deliver(Event):
    """A delivery report (§5)."""

    sms_no: int | None
    state: int | None
    num: str


@dataclass(frozen=True, slots=True)
class State(Event):
    """The channel's call state changed (§7.13)."""

    state: str
    number: str


@dataclass(frozen=True, slots=True)
class Record(Event):
    """A call began (§7.2)."""

    dir: int | None
    num: str


@dataclass(frozen=True, slots=True)
class Expiry(Event):
    """Seconds of the call that ended; 0 for an outgoing one that nobody answered (§7.3)."""

    exp: int | None


@dataclass(frozen=True, slots=True)
class Remain(Event):
    """Outgoing minutes left, -1 unlimited (§7.4)."""

    minutes: int | None


@dataclass(frozen=True, slots=True)
class Hangup(Event):
    """A call ended (§7.5)."""

    num: str
    cause: str


@dataclass(frozen=True, slots=True)
class Cells(Event):
    """Neighbour cells (§7.6)."""

    cells: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CellInfo(Event):
    """The cell registered on (§7.7)."""

    info: str


@dataclass(frozen=True, slots=True)
class Bcch(Event):
    """Neighbour channels (§7.8)."""

    bcch: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cgatt(Event):
    """Packet service attached (§7.9)."""

    attached: bool | None


@dataclass(frozen=True, slots=True)
class Ussn(Event):
    """USSD text pushed by the network (§7.10)."""

    text: str


@dataclass(frozen=True, slots=True)
class OtherEvent(Event):
    """A kind this program does not know (§7.12): acknowledged and published as it is."""

    fields: Mapping[str, str]
    raw: str
    "The datagram without the password."


@dataclass(frozen=True, slots=True)
class AtTrace(Event):
    """A line of the AT tunnel (§7.11); never acknowledged."""

    text: str


@dataclass(frozen=True, slots=True)
class PasswordPrompt:
    """`PASSWORD sendid`: the session is open (§4.1, 2a)."""

    sendid: int


@dataclass(frozen=True, slots=True)
class SendPrompt:
    """`SEND sendid`: authenticated (§4.1, 4a)."""

    sendid: int


@dataclass(frozen=True, slots=True)
class SubmitWait:
    """`WAIT sendid telid`: accepted, queued or being sent (§4.1, 6a)."""

    sendid: int
    telid: int


@dataclass(frozen=True, slots=True)
class SubmitOk:
    """`OK sendid telid [sms_no]`: sent to the network (§4.1, 6b)."""

    sendid: int
    telid: int
    sms_no: int | None


@dataclass(frozen=True, slots=True)
class SubmitError:
    """`ERROR sendid telid errorstatus:n`: this number was not sent (§4.1, 6c)."""

    sendid: int
    telid: int
    code: int


@dataclass(frozen=True, slots=True)
class Done:
    """`DONE sendid`: end of a session confirmed (§4.1, 9)."""

    sendid: int


@dataclass(frozen=True, slots=True)
class Error:
    """Any other `ERROR sendid …`: of a session or of a command (§2, rule 5)."""

    sendid: int
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a control command or USSD: `verb sendid …` (§8, §9)."""

    verb: str
    sendid: int
    text: str


@dataclass(frozen=True, slots=True)
class GsmValues:
    """The answer to `GSM` (§8); it looks like an event and must not be acknowledged as one."""

    sendid: int
    fields: Mapping[str, str]


Message = (
    Keepalive
    | Event
    | PasswordPrompt
    | SendPrompt
    | SubmitWait
    | SubmitOk
    | SubmitError
    | Done
    | Error
    | Reply
    | GsmValues
)

# -- decoding ----------------------------------------------------------------------------------------

MAX_KEEPALIVE = 4096
"Bytes of a keepalive; real ones have about 300."
MAX_MESSAGE = 16384
"Bytes of an answer; events are never dropped for their size."
MAX_FIELDS = 128
"""Fields before the text of an SMS, and items of a list; real datagrams have about 20. Passwords are compared after the
fields are taken apart, and 65,507 bytes of `;` cost anybody's 27 ms."""

_KEEPALIVE_KEYS = {
    key: key
    for key in (
        "id", "pass", "password", "num", "signal", "gsm_status", "voip_status", "voip_state", "remain_time",
        "imei", "imsi", "iccid", "pro", "idle", "disable_status",
        "SMS_LOGIN", "SMB_LOGIN", "CGATT",
    )
} | {"CELLINFO": "cellinfo", "cellinfo": "cellinfo"}  # fmt: skip
_SECRETS = frozenset(("pass", "password"))
"Both names of the password (§1.1)."
_ATTACHED = {"0": False, "N": False, "1": True, "Y": True}
_KEEPALIVE_FREE = frozenset(("pro", "voip_state"))
"Fields of a keepalive whose text a network or a caller chose."
_BEHIND_TEXTS = frozenset(("idle", "disable_status", "SMS_LOGIN", "SMB_LOGIN", "cellinfo", "CGATT"))
"Fields behind both of these (§3): between them only a caller can have said one."
_FREE_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "RECEIVE": ("srcnum", ("smscnum", "senttime")),
    "DELIVER": ("num", ("sms_no", "state")),
    "STATE": ("gsm_remain_state", ()),
    "RECORD": ("num", ("dir",)),
    "HANGUP": ("num", ("cause",)),
    "CELLINFO": ("info", ()),
}
"By kind: the field whose text somebody else chose, and the fields that may come behind it."

_REPLY_VERBS = frozenset(
    (
        "get_gsm_num", "set_gsm_num", "get_exp_time", "set_exp_time", "get_remain_time", "reset_remain_time",
        "get_gsm_state", "svr_drop_call", "svr_reboot_module", "svr_reboot_dev", "get_imei", "set_imei",
        "get_out_call_interval", "set_out_call_interval", "module_ctl_i", "module_ctl", "set_base_cell",
        "get_cells_list", "CURCELL", "GSMERROR", "CFOK", "CFERROR", "CFSTATE", "CWOK", "CWERROR", "CWSTATE",
        "USSD", "USSDERROR", "USSDEXIT", "ATSTART", "ATSTOP", "ATALIVE", "ATCMD", "set_num", "netselect", "DIAL",
    )
)  # fmt: skip
_SESSION_VERBS = frozenset(("PASSWORD", "SEND", "WAIT", "OK", "ERROR", "DONE"))
_KIND = re.compile(rb"[A-Za-z][A-Za-z0-9_]{0,31}:")
_ERRORSTATUS = re.compile(r"(\d{1,10}) errorstatus:\s*(\d{1,10})", re.ASCII | re.IGNORECASE)


def decode(data: bytes) -> Message:
    """Decode one datagram of a gateway. Raises `WireError`, and nothing else, for anything that is not a message."""
    if data.startswith(b"req:"):
        return _decode_keepalive(data)
    if data.startswith(b"GSM:"):
        return _decode_gsm(data)
    if match := _KIND.match(data):
        return _decode_event(data, match.end())
    return _decode_words(data)


def _decode_keepalive(data: bytes) -> Keepalive:
    if len(data) > MAX_KEEPALIVE:
        raise WireError("keepalive too long")
    head, *pieces = _pieces(data)
    fields = _keepalive_fields(pieces)
    password = fields.pop("pass", None)
    other = fields.pop("password", None)
    try:
        id = fields.pop("id")
    except KeyError:
        raise WireError("keepalive without id") from None
    return Keepalive(_count(head[4:]), id, password if password is not None else other or "", fields)


def _keepalive_fields(pieces: list[str]) -> dict[str, str]:
    """The fields by name. A text that others chose may hold what looks like another field: it changes none of those in
    front of it, and those behind it are said again, by the box, behind what it holds.
    """
    fields: dict[str, str] = {}
    text = ""
    "The last field whose text others chose."
    inside = False
    settled: frozenset[str] = frozenset()
    for piece in pieces:
        key, colon, value = piece.partition(":")
        name = _KEEPALIVE_KEYS.get(key) or _KEEPALIVE_KEYS.get(key.lower(), key)
        if name in settled if colon else (inside and piece.strip()):
            fields[text] += f";{piece}"
        elif colon:
            inside = name in _KEEPALIVE_FREE
            if inside:
                text = name
                fields.pop(text, None)  # said by the box only now, behind another text
                settled |= fields.keys() - _BEHIND_TEXTS if settled else fields.keys()
                settled |= _SECRETS if fields.keys() & _SECRETS else frozenset()
            fields[name] = value
    return fields


def _decode_gsm(data: bytes) -> GsmValues:
    if len(data) > MAX_MESSAGE:
        raise WireError("message too long")
    head, *pieces = _pieces(data)
    return GsmValues(_sendid(head[4:]), _fields(pieces))


class _Parts(NamedTuple):
    """An event taken apart."""

    kind: str
    recvid: int
    pieces: list[str]
    "`key:value`, as they came; free text is one of them."
    fields: dict[str, str]
    free: bytes | None
    "The text at the end."


def _decode_event(data: bytes, start: int) -> Event:
    parts = _take_apart(data, start)
    fields = parts.fields
    id = fields.get("id")
    if id is None:
        raise WireError(f"{parts.kind} without id")
    password = next((value for key, value in fields.items() if key in _SECRETS), "")  # the first, as of all fields
    common = (parts.kind, parts.recvid, id, password)
    known = _build_known(parts.kind.upper(), common, fields.get, parts.free)
    return known or _build_other(common, parts.pieces, parts.free)


def _take_apart(data: bytes, start: int) -> _Parts:
    kind = data[: start - 1].decode("ascii")
    known = kind.upper()
    header, free = data, None
    # The free text comes last and may hold anything, so it is cut off before the rest is split (§2, rule 3).
    if known not in _FREE_FIELDS or known == "RECEIVE":
        header, free = _cut_free_text(data, b";receive:" if known == "AT" else b";msg:")
    name, behind = _FREE_FIELDS.get(known, ("", ()))
    if name:
        if free is None:
            header = header.rstrip(_PADDING).removesuffix(b";")  # the end of the last field, not of a name
        head, pieces, fields = _split_around(header, name, behind)
    else:
        head, *pieces = _pieces(header)
        fields = _fields(pieces)
    return _Parts(kind, _recvid(head[start:]), pieces, fields, free)


def _split_around(header: bytes, name: str, behind: tuple[str, ...]) -> tuple[str, list[str], dict[str, str]]:
    """Head, pieces and fields of an event with a field whose text somebody else chose (§2, rule 3): a caller, or who
    sent an SMS. It ends where the first field begins that the box puts behind it, and not at a `;`.

    Fields in front of it are safe from what it holds. Of those behind it each counts where it is said last, which is
    the box's own word: so nobody changes the id, the password or another field by the name that he gives himself.
    """
    header = header.rstrip(_PADDING)
    folded = header.lower()
    at = folded.find(f";{name}:".encode())
    if at < 0:
        head, *pieces = _split(header)
        return head, pieces, _fields(pieces)
    head, *pieces = _split(header[:at])
    fields = _fields(pieces)
    begin = at + len(name) + 2
    # What is not said in front of it may come behind it, and nothing else.
    groups = [{"id"}, _SECRETS, *({key} for key in behind)]
    awaited = [keys for keys in groups if not keys & fields.keys()]
    last = (max(folded.rfind(f";{key}:".encode(), begin) for key in keys) for keys in awaited)
    end = min((place for place in last if place >= 0), default=len(header))
    text, rest = _decoded(header[begin:end]), _split(header[end + 1 :]) if end < len(header) else []
    for key, colon, value in (piece.partition(":") for piece in rest):
        key = key.strip().lower()
        if colon and any(key in keys for keys in awaited):
            fields["password" if key in _SECRETS else key] = value
    fields[name] = text
    return head, [*pieces, f"{name}:{text}", *rest], fields


def _build_known(
    kind: str, common: tuple[str, int, str, str], get: Callable[..., Any], free: bytes | None
) -> Event | None:
    match kind:
        case "RECEIVE":
            raw = b"" if free is None else free.removesuffix(b"\n")
            text, damaged = sanitise(raw)
            smscnum, senttime = value(get("smscnum")), value(get("senttime"))
            return Receive(*common, value(get("srcnum")) or "", text, raw, damaged, smscnum, senttime)
        case "DELIVER":
            return Deliver(*common, integer(get("sms_no")), integer(get("state")), value(get("num")) or "")
        case "STATE":
            state, _, number = get("gsm_remain_state", "").partition(":")
            return State(*common, state.strip().upper(), value(number) or "")
        case "RECORD":
            return Record(*common, integer(get("dir")), value(get("num")) or "")
        case "EXPIRY":
            return Expiry(*common, integer(get("exp")))
        case "REMAIN":
            return Remain(*common, integer(get("gsm_remain_time")))
        case "HANGUP":  # `num:$n,cause:$text`: a comma, in one field (§7.5)
            num, comma, cause = get("num", "").rpartition(",cause:")  # the last one: a caller's name may hold another
            if not comma:
                num, cause = cause, get("cause", "")
            return Hangup(*common, value(num) or "", value(cause.strip(' "')) or "")
        case "CELLS":
            return Cells(*common, _integers(get("lists")))
        case "BCCH":
            return Bcch(*common, _integers(get("bcch")))
        case "CELLINFO":
            return CellInfo(*common, value(get("info", "").strip('"')) or "")
        case "CGATT":
            return Cgatt(*common, _ATTACHED.get(get("cgatt", "").upper()))
        case "USSN":
            return Ussn(*common, sanitise(free or b"")[0])
        case "AT":
            return AtTrace(*common, sanitise(free or b"")[0])
    return None


def _build_other(common: tuple[str, int, str, str], pieces: list[str], free: bytes | None) -> OtherEvent:
    if free is not None:
        pieces = [*pieces, "msg:" + sanitise(free)[0]]
    pieces = [piece for piece in pieces if piece.partition(":")[0].strip().lower() not in _SECRETS]
    pairs = [piece.partition(":") for piece in pieces]
    fields = {key: value for key, colon, value in pairs if colon and key.strip().lower() != "id"}
    return OtherEvent(*common, fields, ";".join((f"{common[0]}:{common[1]}", *pieces)))


def unread(message: Event, data: bytes) -> OtherEvent | None:
    """What a datagram of a known kind says where `message`, which was decoded from it, can't say all of it: a field has
    a value that it can't have, the one that matters is missing, or a piece belongs to no field. None where everything
    was read.
    """
    readable = _READABLE.get(message.kind.upper())
    if readable is None:
        return None
    parts = _take_apart(data, len(message.kind) + 1)
    fields = parts.fields if parts.free is None else parts.fields | {"msg": ""}
    whole = all(":" in piece or not piece.strip() for piece in parts.pieces)
    if whole and all(can_read(fields.get(key)) for key, can_read in readable.items()):
        return None
    return _build_other((message.kind, message.recvid, message.id, message.password), parts.pieces, parts.free)


def _is_there(text: str | None) -> bool:
    return text is not None


def _is_number(text: str | None) -> bool:
    return text is not None and (text.strip() in UNSET or integer(text) is not None)


def _is_list(text: str | None) -> bool:
    items = () if text is None else text.split(",", MAX_FIELDS)
    return 0 < len(items) <= MAX_FIELDS and all(not item.strip() or integer(item) is not None for item in items)


def _is_status(text: str | None) -> bool:
    """A TP-Status is one octet (3GPP 23.040 §9.2.3.15)."""
    number = integer(text)
    return number is not None and 0 <= number < 256


_READABLE: dict[str, dict[str, Callable[[str | None], bool]]] = {
    "RECEIVE": {"srcnum": _is_there, "msg": _is_there},
    "DELIVER": {"sms_no": lambda text: text is None or _is_number(text), "state": _is_status},
    "STATE": {"gsm_remain_state": lambda text: (text or "").partition(":")[0].strip().upper() in CALL_STATES},
    "RECORD": {"dir": lambda text: _is_number(text) and integer(text) in (1, 2, None)},
    "EXPIRY": {"exp": _is_number},
    "REMAIN": {"gsm_remain_time": _is_number},
    "HANGUP": {"num": _is_there},
    "CELLS": {"lists": _is_list},
    "CELLINFO": {"info": _is_there},
    "BCCH": {"bcch": _is_list},
    "CGATT": {"cgatt": lambda text: text is not None and (text.strip() in UNSET or text.upper() in _ATTACHED)},
    "USSN": {"msg": _is_there},
}
"By kind: the fields that `_build_known` reads as more than text, or without which it has nothing to say."


def _decode_words(data: bytes) -> Message:
    if len(data) > MAX_MESSAGE:
        raise WireError("message too long")
    verb, _, rest = _text(data).partition(" ")
    number, _, text = rest.partition(" ")
    if verb in _REPLY_VERBS:
        return Reply(verb, _sendid(number), text)
    if verb not in _SESSION_VERBS:
        raise WireError("unknown verb")
    sendid = _sendid(number)
    words = text.split(maxsplit=2)
    match verb:
        case "ERROR":
            if match := _ERRORSTATUS.fullmatch(text):
                return SubmitError(sendid, int(match[1]), int(match[2]))
            return Error(sendid, text)
        case "WAIT" if words:
            return SubmitWait(sendid, _sendid(words[0]))
        case "OK" if words:
            return SubmitOk(sendid, _sendid(words[0]), _sms_no(words[1]) if len(words) > 1 else None)
        case "PASSWORD":
            return PasswordPrompt(sendid)
        case "SEND":
            return SendPrompt(sendid)
        case "DONE":
            return Done(sendid)
    raise WireError(f"{verb} without telid")


def sanitise(raw: bytes) -> tuple[str, bool]:
    """Text that JSON can carry, and whether the bytes had to be changed for it (invalid UTF-8 or NUL)."""
    try:
        text = raw.decode()
        damaged = False
    except UnicodeDecodeError:
        text = raw.decode(errors="replace")
        damaged = True
    if "\0" in text:
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}"), True
    return text, damaged


_PADDING = b"\r\n\0 "
"What boxes put behind a message (§1.1)."


def _text(data: bytes) -> str:
    return _decoded(data.rstrip(_PADDING))


def _decoded(data: bytes) -> str:
    return data.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _pieces(data: bytes) -> list[str]:
    return _split(data.rstrip(_PADDING))


def _split(data: bytes) -> list[str]:
    pieces = _decoded(data).split(";", MAX_FIELDS)
    if len(pieces) > MAX_FIELDS:
        raise WireError("too many fields")
    return pieces


def _cut_free_text(data: bytes, key: bytes) -> tuple[bytes, bytes | None]:
    at = data.find(key)
    if at < 0:
        at = data.lower().find(key)
    return (data, None) if at < 0 else (data[:at], data[at + len(key) :])


def _fields(pieces: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for piece in pieces:
        key, colon, value = piece.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value)
    return fields


def integer(text: str | None) -> int | None:
    """A signed decimal of at most 18 digits, else None."""
    if text is None:
        return None
    text = text.strip()
    digits = text.removeprefix("-")
    if len(digits) <= 18 and digits.isascii() and digits.isdecimal():
        return int(text)
    return None


def _integers(text: str | None) -> tuple[int, ...]:
    return tuple(n for n in map(integer, (text or "").split(",", MAX_FIELDS)[:MAX_FIELDS]) if n is not None)


def _sms_no(text: str) -> int | None:
    number = integer(text)
    return None if number is None or number < 0 else number


def _count(text: str) -> int:
    number = integer(text)
    if number is None or number < 0:
        raise WireError("keepalive without count")
    return number


def _recvid(text: str) -> int:
    number = integer(text)
    if number is None:
        raise WireError("event without recvid")
    return number


def _sendid(text: str) -> int:
    number = integer(text)
    if number is None or number < 0:
        raise WireError("message without sendid")
    return number


# -- encoding ----------------------------------------------------------------------------------------

_ACK_WITH_NEWLINE = frozenset(("RECEIVE", "DELIVER", "CELLS", "CELLINFO", "BCCH", "CGATT", "HANGUP"))


def encode_registered(count: int) -> bytes:
    """The answer to a keepalive (§3)."""
    return b"reg:%d;status:200;" % count


def encode_ack(kind: str, recvid: int) -> bytes:
    """The acknowledgement of an event, with or without the newline as the document has it (§1.1)."""
    return f"{kind} {recvid} OK{chr(10) if kind.upper() in _ACK_WITH_NEWLINE else ''}".encode()


def encode_msg(sendid: int, text: str) -> bytes:
    """Open a bulk session; the length counts bytes of UTF-8 (§4.1, 1)."""
    body = text.encode()
    return b"MSG %d %d %b\n" % (sendid, len(body), body)


def encode_password(sendid: int, password: str) -> bytes:
    """Authenticate a bulk session (§4.1, 3)."""
    return f"PASSWORD {sendid} {password}\n".encode()


def encode_send(sendid: int, telid: int, number: str) -> bytes:
    """Submit one number (§4.1, 5)."""
    return f"SEND {sendid} {telid} {number}\n".encode()


def encode_done(sendid: int) -> bytes:
    """End a session (§4.1, 8)."""
    return b"DONE %d\n" % sendid


def encode_command(verb: str, sendid: int, arguments: tuple[str, ...], password: str, *, password_first: bool) -> bytes:
    """A control command: no newline, the password last (§8) or, for USSD, CF and CW, right after the sendid (§9)."""
    words = (password, *arguments) if password_first else (*arguments, password)
    return " ".join((verb, str(sendid), *words)).encode()
