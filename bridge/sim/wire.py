"""The box's own codec: what a server's datagrams mean to a GoIP box (docs/protocol.md §2).

Decoding only; the box's few answers are written where they are sent. Nothing is shared with the server's codec.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MAX_TEXT_BYTES = 3000
"Longest SMS text in one MSG (docs/protocol.md §1)."

_TRAILING = "\r\n\0 "
"What servers leave at the end of a session message (docs/protocol.md §1.1)."


class WireError(ValueError):
    """A datagram that means nothing to a box. `sendid` is set where the box knows whom to answer."""

    def __init__(self, reason: str, sendid: int | None = None) -> None:
        super().__init__(reason)
        self.sendid = sendid


@dataclass(frozen=True, slots=True)
class KeepaliveAck:
    """`reg:$count;status:$status;` (docs/protocol.md §3)."""

    count: int
    status: int
    word: Literal["reg", "req"] = "reg"
    "Some servers answer with the wrong word `req`; the box then never shows itself as logged in."


@dataclass(frozen=True, slots=True)
class EventAck:
    """`KIND $recvid OK`, a refusal, or `DISABLE` (docs/protocol.md §5 to §7)."""

    kind: str
    recvid: int
    result: Literal["OK", "ERROR", "DISABLE"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """`MSG $sendid $length $text` (docs/protocol.md §4.1)."""

    sendid: int
    text: str


@dataclass(frozen=True, slots=True)
class Authenticate:
    """`PASSWORD $sendid $password`."""

    sendid: int
    password: str


@dataclass(frozen=True, slots=True)
class Submit:
    """`SEND $sendid $telid $number`: one recipient, or a question about one."""

    sendid: int
    telid: int
    number: str


@dataclass(frozen=True, slots=True)
class Done:
    """`DONE $sendid`: end of a session, or of a USSD, CF or CW exchange."""

    sendid: int


@dataclass(frozen=True, slots=True)
class Hello:
    """`HELLO $sendid`: a dead branch of the vendor's server (docs/protocol.md §4.1)."""

    sendid: int


@dataclass(frozen=True, slots=True)
class OneShot:
    """`SMS $sendid $telid $password $number $text` (docs/protocol.md §4.8)."""

    sendid: int
    telid: int
    password: str
    number: str
    text: str


@dataclass(frozen=True, slots=True)
class UssdRequest:
    """`USSD $sendid $password $code`; a trailing newline would belong to the code (docs/protocol.md §9)."""

    sendid: int
    password: str
    code: str


@dataclass(frozen=True, slots=True)
class UssdExit:
    """`USSDEXIT $sendid $password`."""

    sendid: int
    password: str


@dataclass(frozen=True, slots=True)
class CallForward:
    """`CF $sendid $password $reason $mode $number $ftime` (docs/protocol.md §8)."""

    sendid: int
    password: str
    reason: int
    mode: int
    number: str
    ftime: str


@dataclass(frozen=True, slots=True)
class CallWaiting:
    """`CW $sendid $password $mode`."""

    sendid: int
    password: str
    mode: int


@dataclass(frozen=True, slots=True)
class Dial:
    """`DIAL $sendid $password $number $seconds`: call a number through this line (docs/protocol.md §8)."""

    sendid: int
    password: str
    number: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Command:
    """`verb $sendid [value] $password`: the other commands of docs/protocol.md §8 and the AT tunnel of §10.

    So is netselect, although its password stands before its value.
    """

    verb: str
    sendid: int
    value: str
    "Empty for verbs without a value."
    password: str


Message = (
    KeepaliveAck
    | EventAck
    | OpenSession
    | Authenticate
    | Submit
    | Done
    | Hello
    | OneShot
    | UssdRequest
    | UssdExit
    | CallForward
    | CallWaiting
    | Dial
    | Command
)

QUESTIONS = frozenset(
    (
        *("get_gsm_num", "get_exp_time", "get_remain_time", "reset_remain_time", "get_gsm_state", "get_imei"),
        *("svr_drop_call", "svr_reboot_module", "svr_reboot_dev", "get_out_call_interval", "get_cells_list"),
        *("CURCELL", "GSM", "ATSTART", "ATALIVE", "ATSTOP"),
    )
)
"Verbs of the form `verb $sendid $password`."

SETTINGS = frozenset(
    (
        *("set_gsm_num", "set_num", "set_exp_time", "set_imei", "set_out_call_interval", "set_base_cell"),
        *("module_ctl_i", "module_ctl", "ATCMD"),
    )
)
"Verbs of the form `verb $sendid $value $password`."

_ERROR_WITHOUT_WORD = frozenset({"STATE", "RECORD", "REMAIN"})
"Events whose refusal is `KIND $recvid $errmsg`, without the word ERROR (docs/protocol.md §7)."


def decode(data: bytes) -> Message:
    """What the datagram asks of the box; WireError when it means nothing."""
    word = re.match(rb"[A-Za-z][A-Za-z0-9_]*", data)
    if word is None:
        raise WireError("does not begin with a word")
    verb = word.group().decode("ascii")
    separator = data[word.end() : word.end() + 1]
    if verb in ("reg", "req") and separator == b":":
        return _keepalive_ack(data)
    if separator != b" ":
        raise WireError(f"{verb} without a number")
    if verb == "MSG":
        return _open_session(data)
    rest = data[word.end() + 1 :].decode("utf-8", "replace")
    decoder = _DECODERS.get(verb)
    if decoder is not None:
        return decoder(rest)
    if verb in QUESTIONS or verb in SETTINGS:
        return _control(verb, rest)
    return _event_ack(verb, rest)


def _keepalive_ack(data: bytes) -> KeepaliveAck:
    # Newer servers append fields such as v:1 (docs/protocol.md §3): only the first two matter.
    match = re.match(rb"(reg|req):(\d{1,18});status:(-?\d{1,9})(?:;|\s*$)", data)
    if match is None:
        raise WireError("not an answer to a keepalive")
    word: Literal["reg", "req"] = "reg" if match[1] == b"reg" else "req"
    return KeepaliveAck(int(match[2]), int(match[3]), word)


def _open_session(data: bytes) -> OpenSession:
    header = re.match(rb"MSG (\d{1,18}) (\d{1,9}) ", data)
    if header is None:
        raise WireError("MSG without number and length")
    sendid, length = int(header[1]), int(header[2])
    if length > MAX_TEXT_BYTES:
        raise WireError("text too long", sendid)
    # The length counts bytes and delimits the text. A wrong one cuts it, even inside a character, as on a box.
    text = data[header.end() : header.end() + length]
    return OpenSession(sendid, text.decode("utf-8", "replace"))


def _authenticate(rest: str) -> Authenticate:
    sendid, password = _split(rest.rstrip(_TRAILING), 2)
    return Authenticate(_number(sendid), password)


def _submit(rest: str) -> Submit:
    sendid, telid, number = _split(rest.rstrip(_TRAILING), 3)
    return Submit(_number(sendid), _number(telid), number)


def _done(rest: str) -> Done:
    return Done(_number(rest.rstrip(_TRAILING)))


def _hello(rest: str) -> Hello:
    return Hello(_number(rest.rstrip(_TRAILING)))


def _one_shot(rest: str) -> OneShot:
    sendid, telid, password, number, text = _split(rest, 5)
    return OneShot(_number(sendid), _number(telid), password, number, text)


def _ussd(rest: str) -> UssdRequest:
    sendid, password, code = _split(rest, 3)
    return UssdRequest(_number(sendid), password, code)


def _ussd_exit(rest: str) -> UssdExit:
    sendid, password = _split(rest, 2)
    return UssdExit(_number(sendid), password)


def _call_forward(rest: str) -> CallForward:
    _split(rest, 4)
    # A query or a disable needs neither number nor time, and some servers leave them out.
    sendid, password, reason, mode, number, ftime = (*rest.split(" ", 5), "", "")[:6]
    return CallForward(_number(sendid), password, _number(reason), _number(mode), number, ftime)


def _call_waiting(rest: str) -> CallWaiting:
    sendid, password, mode = _split(rest, 3)
    return CallWaiting(_number(sendid), password, _number(mode))


def _dial(rest: str) -> Dial:
    sendid, password, number, seconds = _split(rest, 4)
    return Dial(_number(sendid), password, number, _number(seconds))


def _net_select(rest: str) -> Command:
    _split(rest, 2)
    # The vendor's page says -1 to ask; without a value it is a question as well.
    sendid, password, value = (*rest.split(" ", 2), "")[:3]
    return Command("netselect", _number(sendid), value, password)


def _at_alive(rest: str) -> Command:
    # The vendor's page ends it with a newline, and no other command (docs/protocol.md §10).
    return _control("ATALIVE", rest.rstrip(_TRAILING))


def _control(verb: str, rest: str) -> Command:
    sendid, values = _split(rest, 2)
    number = _number(sendid)
    if verb in QUESTIONS:
        return Command(verb, number, "", values)
    # The password comes last; an AT command may contain spaces, a password may not.
    value, space, password = values.rpartition(" ")
    if not space:
        raise WireError("value or password missing", number)
    return Command(verb, number, value, password)


def _event_ack(kind: str, rest: str) -> EventAck:
    recvid, _, answer = rest.rstrip(_TRAILING).partition(" ")
    number = _number(recvid)
    word, _, text = answer.partition(" ")
    if word in ("OK", "DISABLE") and not text:
        return EventAck(kind, number, "OK" if word == "OK" else "DISABLE")
    if word == "ERROR":
        return EventAck(kind, number, "ERROR", text)
    if kind in _ERROR_WITHOUT_WORD and answer:
        return EventAck(kind, number, "ERROR", answer)
    raise WireError(f"{kind} is neither a command nor an acknowledgement")


_DECODERS: dict[str, Callable[[str], Message]] = {
    "PASSWORD": _authenticate,
    "SEND": _submit,
    "DONE": _done,
    "HELLO": _hello,
    "SMS": _one_shot,
    "USSD": _ussd,
    "USSDEXIT": _ussd_exit,
    "CF": _call_forward,
    "CW": _call_waiting,
    "DIAL": _dial,
    "netselect": _net_select,
    "ATALIVE": _at_alive,
}


def _split(rest: str, count: int) -> list[str]:
    """Exactly `count` fields; the last one may contain spaces (docs/protocol.md §2, rule 4)."""
    fields = rest.split(" ", count - 1)
    if len(fields) < count:
        raise WireError("fields missing", int(fields[0]) if re.fullmatch(r"\d{1,18}", fields[0]) else None)
    return fields


def _number(field: str) -> int:
    # ASCII digits only: int() would also take "１", "+1" and "1_0".
    if re.fullmatch(r"-?[0-9]{1,18}", field) is None:
        raise WireError("a number was expected")
    return int(field)
