"""Control commands and USSD: one order, one answer (docs/protocol.md §8, §9).

`Operation` says what goes on the wire and how often it may; `Request` is one that is under way.
"""

from dataclasses import dataclass, field

from . import wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One control command. Everything the wire needs but the sendid and the password."""

    verb: str
    arguments: tuple[str, ...] = ()
    password_first: bool = False
    "USSD, USSDEXIT, CF and CW carry the password right after the sendid."
    once: bool = False
    "Leaves as exactly one datagram: a repeat could run it twice (USSD, reboots, resets)."
    done: bool = False
    "The server ends the exchange with DONE (CF and CW)."
    cells: bool = False
    "The answer proper is the CELLS event that follows."
    disable: bool = False
    "Disables the module: whether it did shows only in the next keepalive (§8)."


@dataclass(slots=True)
class Request:
    """A control command on its way, until it is answered or given up."""

    token: int | None
    "The owner's key; None for one that the core itself made."
    operation: Operation
    sendid: int
    datagram: bytes
    deadline: float
    transmissions: int = 1
    cells: bool = field(default=False)
    "Answered with ok, and now waiting for CELLS."


@dataclass(slots=True)
class UssdDialogue:
    """A USSD code waiting for its turn or its reply."""

    token: int
    code: str
    timeout: float
    sendid: int = 0
    deadline: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a message means for a request."""

    ok: bool
    text: str
    fields: dict[str, str] | None = None


_BARE = ("CF", "CW", "GSM")
_ASKED = {"get_gsm_num": "num", "get_exp_time": "exp_time", "get_remain_time": "remain_time", "get_imei": "imei"}
_SET = {"set_gsm_num": "num", "set_exp_time": "exp_time", "set_imei": "imei"}
"By verb: the value that it asks for, or sets."


def interpret(operation: Operation, message: wire.Message) -> Answer | None:
    """The verdict of a message that carries the request's sendid; None when it is no answer to this operation."""
    match message:
        case wire.Error(text=text):
            return Answer(False, text)
        case wire.SubmitError(telid=telid, code=code):  # the same shape, when a set_* value is a number
            return Answer(False, f"{telid} errorstatus:{code}")
        case wire.GsmValues(fields=fields) if operation.verb == "GSM":
            return Answer(True, "", dict(fields))
        case wire.Reply(verb="USSDEXIT" | "USSDERROR" as verb, text=text) if operation.verb == "USSDEXIT":
            return Answer(verb == "USSDEXIT", text)
        case wire.Reply(verb=verb, text=text) if verb == operation.verb:
            return Answer(operation.verb.startswith(("get_gsm", "get_exp", "get_rem", "get_imei", "get_out", "CURCELL"))
                          or _says_ok(text), text)  # fmt: skip
        case wire.Reply(verb=verb, text=text) if operation.verb in _BARE and verb.startswith(operation.verb):
            return Answer(not verb.endswith("ERROR"), text)
    return None


def _says_ok(text: str) -> bool:
    words = text.split()
    return bool(words) and words[-1].lstrip("$").lower() == "ok"


def values(operation: Operation, answer: Answer) -> dict[str, str]:
    """What an answer that is ok says of the line: by the names of a keepalive's fields (§3), and `exp_time`.

    A value that was set is known where the gateway repeats it, or says no more than ok; else it is empty.
    """
    verb, arguments = operation.verb, operation.arguments
    if answer.fields is not None:
        told = {name: answer.fields[key] for key, name in _ASKED.items() if key in answer.fields}
        return told | {name: answer.fields[name] for name in ("imei",) if name in answer.fields}
    if verb in _ASKED:
        return {_ASKED[verb]: answer.text}
    if verb in _SET:
        confirmed = answer.text.split()[:-1] in ([], [*arguments])
        return {_SET[verb]: arguments[0] if confirmed else ""}
    if verb == "module_ctl_i":
        return {"disable_status": "0" if arguments == ("1",) else "1"}
    return {}
