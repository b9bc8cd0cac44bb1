"""Commands as they arrive on MQTT: bytes in, one typed command out, or a `CommandError` (contract §§ 3-4).

Pure: no clock, no settings, no store. Whether a line exists, a contact is known, a command has expired or was here
before is for the caller. Every command of the contract has its model, the ones nothing implements yet included.

The models are the source of `schemas/cmd_*.json` and `schemas/bridge_cmd_*.json`: what stands below a field is its
description there.
"""

import json
import math
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from .numbers import NOT_A_NUMBER, normalise, reads_as_number, reads_as_several

MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_TEXT_BYTES = 3000  # docs/protocol.md § 1: what a gateway takes
MAX_RECIPIENTS = 10_000
MAX_CHANNELS = 64  # the largest gateway has 32
MAX_KEYS = 100  # of one object; a payload of 1 MiB holds a hundred thousand, each of which would be a fault to describe

Code = Literal[
    "ok", "invalid_json", "invalid_payload", "unknown_command", "unknown_line", "line_offline", "line_disabled",
    "no_route", "forbidden_number", "quota_exceeded", "rate_limited", "too_large", "expired", "retained_command",
    "gateway_timeout", "gateway_refused", "busy", "not_supported", "storage", "shutting_down", "internal",
]  # fmt: skip
CODES: tuple[Code, ...] = get_args(Code)

# The same command may succeed later without anybody changing anything. After `gateway_timeout` it may also have been
# carried out: see `retryable`.
_PASSING: frozenset[Code] = frozenset(
    {"line_offline", "quota_exceeded", "rate_limited", "gateway_timeout", "busy", "storage", "shutting_down"}
)

Target = Literal["line", "bridge"]


def retryable(code: Code, *, once: bool = False) -> bool:
    """Whether a caller may simply send the command again; `once` is that of the command (contract § 4.8)."""
    return code in _PASSING and not (once and code == "gateway_timeout")


class CommandError(Exception):
    """A command that is refused. Its message names places, never numbers, texts or other values."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


# --- The types of fields -------------------------------------------------------------------------------------------


def _fault(message: str, *at: str | int, code: Code = "invalid_payload") -> PydanticCustomError:
    """What a validator raises; `at` is the rest of the path, from the value that is validated."""
    return PydanticCustomError(code, message, {"at": at})


_NUL_OR_SURROGATE = re.compile(r"[\0\ud800-\udfff]")
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _is_label(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 64 and value.isprintable()


def _label(value: object) -> object:
    if not _is_label(value):
        raise _fault("should be 1 to 64 printable characters")
    return value


def _text(text: str) -> str:
    if not text:
        raise _fault("is empty")
    if broken := _NUL_OR_SURROGATE.search(text):  # can be neither sent nor published
        raise _fault(f"{'NUL' if broken.group() == chr(0) else 'lone surrogate'} at character {broken.start()}")
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise _fault(f"is longer than {MAX_TEXT_BYTES} bytes of UTF-8", code="too_large")
    return text


def _number(value: object) -> str:
    """A phone number as it goes on the wire.

    Templates of Home Assistant and Node-RED turn a number without `+` into an integer: it is taken below 10^15, where
    no client has rounded it.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15:
        return str(value)
    if not isinstance(value, str):
        raise _fault("should be a phone number, as a string")
    try:
        return normalise(value)
    except ValueError as error:
        raise _fault(f"is {error}") from None


_NAME = re.compile(r"[^/+#\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,64}")


def _is_name(name: str) -> bool:
    """What the settings allow as the name of a contact or group. Digits alone are a number in `cmd/sms/<to>`."""
    return bool(_NAME.fullmatch(name)) and name == name.strip() and name[0] not in "$@" and not name.isdecimal()


def _recipient(value: object, *, several: str = "write a message for each") -> str:
    if isinstance(value, str) and value.startswith("@"):
        if not _is_name(value[1:]):
            raise _fault("is not the name of a contact or group")
        return value
    if isinstance(value, str) and reads_as_several(value):
        raise _fault(f"holds several recipients; {several}")
    try:
        return _number(value)
    except PydanticCustomError as fault:
        reads_as_name = isinstance(value, str) and _is_name(value) and value[0].isalpha()
        if fault.message() == f"is {NOT_A_NUMBER}" and reads_as_name:
            raise _fault(f"{fault.message()}; write @ in front of the name of a contact or group") from None
        raise


def _recipients(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return (_recipient(value, several='write a list, as in ["+4915112345678", "@family"]'),)
    if not value:
        raise _fault("is empty")
    _check_count(value)
    recipients = []
    for index, item in enumerate(value):
        try:
            recipients.append(_recipient(item, several="write each as an entry of its own"))
        except PydanticCustomError as fault:
            raise _fault(fault.message(), index) from None
    return tuple(recipients)


def _messages(value: object) -> object:
    if not isinstance(value, list):
        return value
    if not value:
        raise _fault("is empty")
    _check_count(value)
    return tuple(value)


def _check_count(recipients: list[object]) -> None:
    """Before anything is looked at one by one: a payload of 1 MiB holds half a million zeros."""
    if len(recipients) > MAX_RECIPIENTS:
        raise _fault(f"has more than {MAX_RECIPIENTS} recipients", code="too_large")


_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _instant(value: object) -> datetime:
    """RFC 3339 or unix seconds, in UTC. Milliseconds are out of range, so a slip there is no year 50000."""
    try:
        if isinstance(value, str) and _RFC3339.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise _fault("should be an RFC 3339 time with offset, or unix seconds")


def _imei(value: str) -> str:
    if not re.fullmatch(r"[0-9]{15}", value):
        raise _fault("should be 15 digits")
    doubled = (2 * int(digit) if index % 2 else int(digit) for index, digit in enumerate(value))
    if sum(digit // 10 + digit % 10 for digit in doubled) % 10:
        raise _fault("is not an IMEI: the check digit (Luhn) is wrong")
    return value


def _channels(value: object) -> str:
    """The digits of `module_ctl` (docs/protocol.md § 8): 1 on, 0 off, 2 as it is; the first is channel 1."""
    if isinstance(value, dict):
        return _channel_digits(value)
    if not isinstance(value, str) or not re.fullmatch(rf"[0-2]{{1,{MAX_CHANNELS}}}", value):
        raise _fault('should be digits 0 to 2, one per channel, or an object such as {"1": true}')
    return value


def _channel_digits(switches: Mapping[str, object]) -> str:
    digits: dict[int, str] = {}
    for channel, enable in switches.items():
        if not re.fullmatch(r"[1-9][0-9]?", channel) or int(channel) > MAX_CHANNELS:
            raise _fault(f"should be a channel, 1 to {MAX_CHANNELS}", channel)
        if not isinstance(enable, bool):
            raise _fault("should be true or false", channel)
        digits[int(channel)] = "1" if enable else "0"
    if not digits:
        raise _fault("names no channel")
    return "".join(digits.get(channel, "2") for channel in range(1, max(digits) + 1))


_NUMBER_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0, "exclusiveMaximum": 10**15}]
}
_TO_SCHEMA: dict[str, Any] = {
    "anyOf": [
        *_NUMBER_SCHEMA["anyOf"],
        {"type": "array", "minItems": 1, "maxItems": MAX_RECIPIENTS, "items": _NUMBER_SCHEMA},
    ]
}
_TIME_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}]}
_CHANNELS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": f"^[0-2]{{1,{MAX_CHANNELS}}}$"},
        {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[1-9][0-9]?$"},
            "additionalProperties": {"type": "boolean"},
        },
    ]
}

_USSD_CODE = r"^[0-9*#+]{1,182}$"

Label = Annotated[str, BeforeValidator(_label), Field(json_schema_extra={"minLength": 1, "maxLength": 64})]
Text = Annotated[str, AfterValidator(_text), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_TEXT_BYTES})]
Number = Annotated[str, BeforeValidator(_number), WithJsonSchema(_NUMBER_SCHEMA)]
ToOne = Annotated[str, BeforeValidator(_recipient), WithJsonSchema(_NUMBER_SCHEMA)]
ToMany = Annotated[tuple[str, ...], BeforeValidator(_recipients), WithJsonSchema(_TO_SCHEMA)]
Instant = Annotated[datetime, BeforeValidator(_instant), WithJsonSchema(_TIME_SCHEMA)]
Imei = Annotated[str, AfterValidator(_imei), Field(json_schema_extra={"pattern": "^[0-9]{15}$"})]
Channels = Annotated[str, BeforeValidator(_channels), WithJsonSchema(_CHANNELS_SCHEMA)]


# --- The commands, in the order of contract § 3 --------------------------------------------------------------------


def _examples(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Command(_Strict):
    """What every command has."""

    model_config = _examples({}, {"id": "door-42"}, {"id": "door-43", "expires_at": "2030-01-01T12:00:00Z"})

    path: ClassVar[str]
    "The command path, as in the result."
    once: ClassVar[bool] = False
    "Must not run twice: leaves as exactly one datagram (contract § 4.8)."

    id: Label | None = None
    "Names this command in its result and makes it idempotent for 24 hours: 1 to 64 printable characters."
    expires_at: Instant | None = None
    "Not to be carried out after this time, an SMS not to be sent: RFC 3339 with offset, or unix seconds."

    _warnings: list[str] = PrivateAttr(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """For the result: what was accepted, but is probably not what the caller meant."""
        return list(self._warnings)


@dataclass(frozen=True, slots=True)
class Recipient:
    """One SMS to be sent."""

    to: str
    "The number as it goes on the wire, or `@name`, for the caller to look up."
    text: str


class Message(_Strict):
    """One SMS among several that differ in their text."""

    to: ToOne
    "A phone number, or `@` and the name of a contact or group."
    text: Text
    "The text: up to 3000 bytes of UTF-8."


Messages = Annotated[
    tuple[Message, ...],
    BeforeValidator(_messages),
    Field(json_schema_extra={"minItems": 1, "maxItems": MAX_RECIPIENTS}),
]


class Sms(Command):
    """Send an SMS to one or many: either `to` and `text`, or `messages`.

    The result says that it is durably queued; what becomes of it arrives on `delivery`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["to", "text"]}, {"required": ["messages"]}],
            "examples": [
                {"to": "+4915112345678", "text": "The gate is open."},
                {"id": "alarm-7", "to": ["+4915112345678", "@family"], "text": "Water in the cellar!", "priority": 9},
                {"to": "@anna", "text": "Good morning", "send_at": "2030-01-01T07:00:00+01:00", "ttl_s": 3600},
                {"messages": [{"to": "+4915112345678", "text": "Hi Anna"}, {"to": "+4915187654321", "text": "Hi Ben"}]},
            ],
        }
    )
    path: ClassVar[str] = "sms"

    to: ToMany | None = None
    """A phone number, `@` and the name of a contact or group, or a list of them. Spaces and `-./()` are removed.
    An integer is taken as its digits."""
    text: Text | None = None
    "The text: up to 3000 bytes of UTF-8."
    messages: Messages | None = None
    "Instead of `to` and `text`: one text for each."
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    "0 to 9; a higher one is sent first."
    send_at: Instant | None = None
    "Not to be sent before this time: RFC 3339 with offset, or unix seconds."
    ttl_s: Annotated[int, Field(ge=1, le=365 * 86_400)] | None = None
    "Seconds after which what is still queued is given up as `expired`."
    guarantee: Literal["effectively_once", "at_most_once", "at_least_once"] = "effectively_once"
    "What to do when nobody can know whether an SMS went out."
    dry_run: bool = False
    "Check and answer, but send nothing."
    src: Label | None = None
    "Who sends this: a name of the caller's choice."

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.messages is not None:
            if self.to is not None or self.text is not None:
                raise _fault("cannot be combined with to and text", "messages")
        elif self.to is None:
            raise _fault("is required", "to")
        elif self.text is None:
            raise _fault("is required", "text")
        if len(self.recipients) < len(self._addressed()):
            self._warnings.append("duplicate_recipient")
        return self

    @cached_property
    def recipients(self) -> tuple[Recipient, ...]:
        """Every SMS to be sent, in the order given; the same number with the same text is one."""
        return tuple(dict.fromkeys(self._addressed()))

    def place(self, recipient: Recipient) -> str:
        """Where the payload names this recipient: `to`, `to[1]` or `messages[0].to`."""
        index = self._addressed().index(recipient)
        if self.messages is not None:
            return f"messages[{index}].to"
        return f"to[{index}]" if len(self.to or ()) > 1 else "to"

    def _addressed(self) -> list[Recipient]:
        if self.messages is not None:
            return [Recipient(message.to, message.text) for message in self.messages]
        return [Recipient(to, self.text or "") for to in self.to or ()]


class _JobControl(Command):
    model_config = _examples({}, {"job": "j-12"}, {"msg": "m-3401"}, {"cmd": "alarm-7"})

    job: Label | None = None
    "All of this job."
    msg: Label | None = None
    "This one SMS."
    cmd: Label | None = None
    "All that the command with this id asked for."

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        named = [name for name in ("job", "msg", "cmd") if getattr(self, name) is not None]
        if len(named) > 1:
            raise _fault(f"cannot be combined with {named[0]}", named[1])
        return self


class Cancel(_JobControl):
    """Cancel what is still queued: a job, one SMS, what one command asked for, or everything on the line."""

    path: ClassVar[str] = "cancel"


class Pause(_JobControl):
    """Hold back what is queued: a job, one SMS, what one command asked for, or everything on the line."""

    path: ClassVar[str] = "pause"


class Resume(_JobControl):
    """Go on after a pause, or after the line stopped by itself."""

    path: ClassVar[str] = "resume"


class Ussd(Command):
    """Send a USSD code, or the answer to a USSD menu, and wait for the reply."""

    model_config = _examples({"code": "*100#"}, {"code": "1", "timeout_s": 30})
    path: ClassVar[str] = "ussd"
    once: ClassVar[bool] = True

    code: Annotated[str, Field(pattern=_USSD_CODE)]
    "Digits, `*`, `#` and `+`; an answer in a menu is a code as well."
    timeout_s: Annotated[int, Field(ge=1, le=600)] = 120
    "Seconds to wait for the network's reply."


class UssdExit(Command):
    """End the open USSD dialogue."""

    path: ClassVar[str] = "ussd/exit"


class NumberGet(Command):
    """Ask for the SIM's phone number."""

    path: ClassVar[str] = "number/get"


class NumberSet(Command):
    """Store the SIM's phone number on the gateway."""

    model_config = _examples({"value": "+4915112345678"})
    path: ClassVar[str] = "number/set"

    value: Number
    "A phone number. Spaces and `-./()` are removed. An integer is taken as its digits."


class ExpTimeGet(Command):
    """Ask for the minutes the line may call in all."""

    path: ClassVar[str] = "exp_time/get"


class ExpTimeSet(Command):
    """Limit the minutes the line may call in all."""

    model_config = _examples({"value": 600}, {"value": 0})
    path: ClassVar[str] = "exp_time/set"

    value: Annotated[int, Field(ge=0, le=999_999_999)]
    "Minutes; 0 is no limit."


class RemainTimeGet(Command):
    """Ask for the minutes that are left."""

    path: ClassVar[str] = "remain_time/get"


class RemainTimeReset(Command):
    """Put the minutes that are left back to the limit."""

    path: ClassVar[str] = "remain_time/reset"
    once: ClassVar[bool] = True


class GsmStateGet(Command):
    """Ask for the state of the line's call, in the gateway's words."""

    path: ClassVar[str] = "gsm_state/get"


class InfoGet(Command):
    """Ask for all of a line's values at once."""

    path: ClassVar[str] = "info/get"


class CallDrop(Command):
    """Hang up the current call."""

    path: ClassVar[str] = "call/drop"


class ModuleReboot(Command):
    """Restart the line's GSM module."""

    path: ClassVar[str] = "module/reboot"
    once: ClassVar[bool] = True


class ModuleEnable(Command):
    """Switch the line's GSM module on."""

    path: ClassVar[str] = "module/enable"


class ModuleDisable(Command):
    """Switch the line's GSM module off."""

    path: ClassVar[str] = "module/disable"


class ModuleSet(Command):
    """Switch the line's GSM module on or off: `module/enable` and `module/disable` on one topic, as a switch needs."""

    model_config = _examples({"enable": True}, {"enable": False})
    path: ClassVar[str] = "module/set"

    enable: bool
    "On or off."


class ModulesSet(Command):
    """Switch the GSM modules of the whole gateway on and off."""

    model_config = _examples({"value": "10120121"}, {"value": {"1": True, "4": False}})
    path: ClassVar[str] = "modules/set"

    value: Channels
    """One digit per channel, from channel 1: `1` on, `0` off, `2` as it is. Or an object from channel to true or false;
    channels that are not named stay as they are."""

    @property
    def digits(self) -> str:
        """The value as it goes on the wire, whichever way it was given."""
        return self.value


class GatewayReboot(Command):
    """Restart the whole gateway; all its lines go offline for a while."""

    path: ClassVar[str] = "gateway/reboot"
    once: ClassVar[bool] = True


Reason = Literal["unconditional", "busy", "no_reply", "not_reachable", "all", "conditional"]


class CallForwardGet(Command):
    """Ask whether calls are forwarded, and where to."""

    model_config = _examples({}, {"reason": "busy"})
    path: ClassVar[str] = "call_forward/get"

    reason: Reason = "unconditional"
    "Which forwarding to ask for."


class CallForwardSet(Command):
    """Switch call forwarding on or off."""

    model_config = _examples(
        {"reason": "no_reply", "enable": True, "number": "+4915112345678", "timeout_s": 20},
        {"reason": "all", "enable": False},
    )
    path: ClassVar[str] = "call_forward/set"

    reason: Reason
    "Which calls: `all` is every one of the four, `conditional` all but `unconditional`."
    enable: bool
    "Forward, or no longer."
    number: Number | None = None
    "Where to; required with `enable: true`. An integer is taken as its digits."
    timeout_s: Annotated[int, Field(ge=0, le=120)] | None = None
    "Seconds a call rings before it is forwarded, for `no_reply`; networks know 5 to 30 in steps of 5."

    @model_validator(mode="after")
    def _number_to_forward_to(self) -> Self:
        if self.enable and self.number is None:
            raise _fault("is required with enable: true", "number")
        return self


class CallWaitingGet(Command):
    """Ask whether call waiting is on."""

    path: ClassVar[str] = "call_waiting/get"


class CallWaitingSet(Command):
    """Switch call waiting on or off."""

    model_config = _examples({"enable": True}, {"enable": False})
    path: ClassVar[str] = "call_waiting/set"

    enable: bool
    "On or off."


class ImeiGet(Command):
    """Ask for the GSM module's IMEI."""

    path: ClassVar[str] = "imei/get"


class ImeiSet(Command):
    """Change the GSM module's IMEI; illegal in many countries."""

    model_config = _examples({"value": "490154203237518"})
    path: ClassVar[str] = "imei/set"

    value: Imei
    "15 digits, the last of them the check digit."


class CallIntervalGet(Command):
    """Ask for the pause between outgoing calls."""

    path: ClassVar[str] = "call_interval/get"


class CallIntervalSet(Command):
    """Set the pause between outgoing calls."""

    model_config = _examples({"value": 10})
    path: ClassVar[str] = "call_interval/set"

    value: Annotated[int, Field(ge=0, le=86_400)]
    "Seconds."


class CellsGet(Command):
    """Ask for the cells in sight."""

    path: ClassVar[str] = "cells/get"


class CellGet(Command):
    """Ask for the current cell."""

    path: ClassVar[str] = "cell/get"


class CellSet(Command):
    """Pin the line to a cell."""

    model_config = _examples({"value": "7E5"})
    path: ClassVar[str] = "cell/set"

    value: Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]
    "The cell in the gateway's words, as in `cells/get`: ASCII without blanks."


class SelfTest(Command):
    """Find out whether the line's firmware sends an SMS again when SEND is repeated, with 2 SMS to another line.

    It takes about six minutes, in which other SMS of the line wait. Up to 6 SMS are charged where the firmware sends
    repeated ones again.
    """

    model_config = _examples({"to": "goip2"}, {"id": "check-1", "to": "goip2", "number": "+4915112345678"})
    path: ClassVar[str] = "selftest"
    once: ClassVar[bool] = True

    to: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
    "The line that receives the SMS: another one of this bridge."
    number: Number | None = None
    "Its phone number; not needed where its gateway knows that (`sim.number` in its state). An integer is its digits."


class Refresh(Command):
    """Publish the line's retained state again."""

    path: ClassVar[str] = "refresh"


class BridgePing(Command):
    """Ask whether the bridge is there."""

    path: ClassVar[str] = "ping"


class BridgeRefresh(Command):
    """Publish all retained state again."""

    path: ClassVar[str] = "refresh"


class BridgeLines(Command):
    """Ask for the lines."""

    path: ClassVar[str] = "lines"


class BridgeInbox(Command):
    """Ask for received SMS, for those who were away when they were published."""

    model_config = _examples({}, {"since": "2030-01-01T00:00:00Z", "limit": 20}, {"ack": ["f-17", "f-18"]})
    path: ClassVar[str] = "inbox"

    since: Instant | None = None
    "Only what was received after this time: RFC 3339 with offset, or unix seconds."
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    "At most so many, oldest first."
    ack: Annotated[list[Label], Field(max_length=1000)] | None = None
    "Ids of received SMS that are done with and need not be given again."


class BridgeReload(Command):
    """Read the configuration again."""

    path: ClassVar[str] = "reload"


class BridgeRestart(Command):
    """Stop the bridge in good order and start it again; possible where a supervisor or systemd starts it."""

    path: ClassVar[str] = "restart"
    once: ClassVar[bool] = True


_LINE: tuple[type[Command], ...] = (
    Sms, Cancel, Pause, Resume, Ussd, UssdExit, NumberGet, NumberSet, ExpTimeGet, ExpTimeSet, RemainTimeGet,
    RemainTimeReset, GsmStateGet, InfoGet, CallDrop, ModuleReboot, ModuleEnable, ModuleDisable, ModuleSet,
    ModulesSet, GatewayReboot, CallForwardGet, CallForwardSet, CallWaitingGet, CallWaitingSet, ImeiGet, ImeiSet,
    CallIntervalGet, CallIntervalSet, CellsGet, CellGet, CellSet, SelfTest, Refresh,
)  # fmt: skip
_BRIDGE: tuple[type[Command], ...] = (BridgePing, BridgeRefresh, BridgeLines, BridgeInbox, BridgeReload, BridgeRestart)

LINE_COMMANDS: dict[str, type[Command]] = {model.path: model for model in _LINE}
BRIDGE_COMMANDS: dict[str, type[Command]] = {model.path: model for model in _BRIDGE}


# --- From bytes to a command ---------------------------------------------------------------------------------------


def parse(path: str, payload: bytes, *, target: Target) -> Command:
    """The command in a message to `cmd/<path>` of a line (also `any` and pools) or of the bridge.

    Raises CommandError and nothing else. Without a usable `id` the command's is None; the caller mints one.
    """
    if target == "line" and _is_raw(path):
        text = _raw_text(payload)
        command = _validated(Sms, {"to": _topic_recipient(path), "text": text})
        if _is_json_object(text):
            command._warnings.append("text_is_json")
        return command
    commands = LINE_COMMANDS if target == "line" else BRIDGE_COMMANDS
    model = commands.get(path)
    if model is None:
        raise CommandError("unknown_command", _unknown_command(path, commands, target))
    try:
        body = _body(path, payload)
    except CommandError as error:
        raise CommandError(error.code, error.message + _form_hint(model, payload)) from None
    return _validated(model, body)


def _unknown_command(path: str, commands: Mapping[str, object], target: Target) -> str:
    if not path:
        return f"the topic ends at cmd and names no command; add one, such as cmd/{next(iter(commands))}"
    meant = [one for one in _MEANT_COMMANDS.get(path.lower(), ()) if one in commands]
    if meant:
        return f"unknown command; did you mean {' or '.join(meant)}?"
    if path in _NOT_OFFERED:
        return f"unknown command{_NOT_OFFERED[path]}"
    if target == "line" and path in BRIDGE_COMMANDS:
        return f"unknown command of a line; {path} is one of the bridge itself, bridge/cmd/{path}"
    if target == "bridge" and path in LINE_COMMANDS:
        return f"unknown command of the bridge; {path} is one of a line, <line>/cmd/{path}"
    return f"unknown command{did_you_mean(path, commands)}"


def _form_hint(model: type[Command], payload: bytes) -> str:
    """What the payload should look like, where it is not even the beginning of an object."""
    if payload.removeprefix(BOM_UTF8).lstrip().startswith(b"{"):
        return ""
    extra = model.model_config.get("json_schema_extra")
    example = extra["examples"][0] if isinstance(extra, dict) else {}  # type: ignore[index]
    return f"; write it like {json.dumps(example)}" if example else "; it may be empty"


_NOT_OFFERED = {"call/dial": "; the bridge places no calls: voice goes through the gateway's SIP account"}
"What a gateway could do and the bridge does not, by the path that people try."


def command_path(path: str) -> str:
    """The command path of the result: that of `sms/<to>` is `sms`."""
    return "sms" if _is_raw(path) else path


def canonical(path: str, payload: bytes) -> str:
    """Equal for payloads that say the same: the order of keys, white space and escapes don't count (contract § 4.6).

    Raises CommandError where the payload cannot be read.
    """
    if _is_raw(path):
        return json.dumps(_raw_text(payload))
    try:
        return json.dumps(_body(path, payload), sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise _too_deep() from None


def read_id(path: str, payload: bytes) -> str | None:
    """The usable id in a payload, if there is one: names the result of a command that is refused. Also where something
    else in the payload is what made it be refused, such as a number that is too large or a key that occurs twice.
    """
    if _is_raw(path) or len(payload) > MAX_PAYLOAD_BYTES:
        return None
    try:
        ids = json.loads(payload.decode("utf-8-sig"), object_pairs_hook=_ids, parse_int=_NoId, parse_float=_NoId)
    except (ValueError, RecursionError):
        return None
    return ids[0] if isinstance(ids, _Ids) and len(ids) == 1 and _is_label(ids[0]) else None


class _NoId:
    """A number, of whatever size."""

    def __init__(self, _literal: str) -> None:
        pass


class _Ids(list[Any]):
    """What an object has as its `id`; nobody knows which counts where there are several."""


def _ids(pairs: list[tuple[str, object]]) -> _Ids:
    return _Ids(value for key, value in pairs if key == "id")


def _is_raw(path: str) -> bool:
    return path.startswith("sms/") and path.count("/") == 1


def _topic_recipient(path: str) -> str:
    """`<to>` of `sms/<to>`. A topic level holds no `+`, so `00` stands for it; what is no number is a name."""
    to = path.removeprefix("sms/")
    number = "+" + to[2:] if to.startswith("00") else to
    if reads_as_number(number):
        try:
            return normalise(number)
        except ValueError as error:
            raise CommandError("invalid_payload", f"to: is {error}") from None
    if not _is_name(to):
        raise CommandError("invalid_payload", "to: the topic names no phone number, contact or group")
    return f"@{to}"


def _raw_text(payload: bytes) -> str:
    _check_size(payload)
    try:
        return payload.removeprefix(BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise CommandError("invalid_payload", f"text: not UTF-8 at byte {error.start}") from None


def _is_json_object(text: str) -> bool:
    """Whether somebody wrote a command where the payload is the text itself."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise CommandError("too_large", f"the payload is larger than {MAX_PAYLOAD_BYTES} bytes")


def _body(path: str, payload: bytes) -> dict[str, Any]:
    """The JSON object of a payload. An empty one and Home Assistant's `PRESS` say as much as `{}`, and on `ussd` a code
    alone as much as an object with it.
    """
    _check_size(payload)
    payload = payload.removeprefix(BOM_UTF8)
    plain = payload.strip()
    if plain in (b"", b"PRESS"):
        return {}
    if path == Ussd.path and _PLAIN_CODE.fullmatch(plain):
        return {"code": plain.decode()}
    body = _read_json(payload)
    if not isinstance(body, dict):
        raise CommandError("invalid_payload", "the payload should be a JSON object")
    return body


_PLAIN_CODE = re.compile(_USSD_CODE.encode())


class _LiteralError(Exception):
    """A literal Python reads and JSON does not have, or that nobody else can read."""

    def __init__(self, literal: str, reason: str) -> None:
        self.literal = literal
        self.reason = reason


# A string (so that what looks like a literal inside is passed over), or a literal.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^\s\[\]{},:"]+')


def _read_json(payload: bytes) -> object:
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise CommandError("invalid_json", f"not UTF-8 at byte {error.start}") from None
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        raise _invalid_json(error) from None
    except _LiteralError as bad:
        at = next((token.start() for token in _TOKEN.finditer(text) if token.group().startswith(bad.literal)), 0)
        raise _invalid_json(json.JSONDecodeError(bad.reason, text, at)) from None
    except RecursionError:
        raise _too_deep() from None


def _invalid_json(error: json.JSONDecodeError) -> CommandError:
    return CommandError("invalid_json", f"line {error.lineno} column {error.colno}: {error.msg}")


def _too_deep() -> CommandError:
    return CommandError("invalid_json", "nested too deep")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Python would keep the last of two equal keys, others keep the first: nobody may guess."""
    members = dict(pairs)
    if len(pairs) > MAX_KEYS:
        raise CommandError("too_large", f"an object has more than {MAX_KEYS} keys")
    if len(members) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise CommandError("invalid_json", f"the key {_quoted(repeated)} occurs twice")
    for key in members:
        if _NUL_OR_SURROGATE.search(key):
            raise CommandError("invalid_json", f"NUL or lone surrogate in the key {_quoted(key)}")
    return members


def _integer(literal: str) -> int:
    """Up to 64 bits: what any other reader of the same JSON understands alike."""
    if len(literal) > 20 or not -(2**63) <= int(literal) < 2**63:
        raise _LiteralError(literal, "integer beyond 64 bits")
    return int(literal)


def _float(literal: str) -> float | int:
    """`5.0` is the integer 5, as JSON Schema has it."""
    number = float(literal)
    if math.isinf(number):
        raise _LiteralError(literal, "number out of range")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _constant(literal: str) -> NoReturn:
    raise _LiteralError(literal, "not JSON")


def _validated(model: type[Command], body: dict[str, Any]) -> Command:
    given = body.get("id")
    unusable = given is not None and not _is_label(given)
    if isinstance(given, str) and (broken := _NO_TEXT.search(given)):  # nobody means that, and a repeat would run twice
        what = {"\0": "NUL"}.get(broken.group(), "lone surrogate" if broken.group() > "\ud7ff" else "control character")
        place = f"id: {what} at character {broken.start()}"
        raise CommandError("invalid_payload", f"{place}; it should be 1 to 64 printable characters")
    if unusable:  # refuses nothing by itself (contract § 4.1)
        body = {**body, "id": None}
    try:
        command = model.model_validate(body)
    except ValidationError as error:
        raise _refusal(error, model) from None
    if unusable:
        command._warnings.append("id_unusable")
    return command


def _refusal(error: ValidationError, model: type[Command]) -> CommandError:
    """The first faults; misspelt fields lead, for they often explain the others."""
    faults = error.errors(include_url=False, include_input=False)
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    code: Code = "too_large" if faults[0]["type"] == "too_large" else "invalid_payload"
    return CommandError(code, "; ".join(_described(fault, model) for fault in faults[:3]))


def _described(fault: ErrorDetails, model: type[Command]) -> str:
    place = _place((*fault["loc"], *fault.get("ctx", {}).get("at", ())))
    if fault["type"] == "extra_forbidden":
        fields = Message.model_fields if len(fault["loc"]) > 1 else model.model_fields
        word = str(fault["loc"][-1])
        meant = next((one for one in _MEANT.get(re.sub("[_ -]", "", word.lower()), ()) if one in fields), None)
        return f"{place}: unknown field" + (f"; did you mean {meant}?" if meant else did_you_mean(word, fields))
    return f"{place}: {_MESSAGES.get(fault['type'], fault['msg'].removeprefix('Input '))}"


# Other people's words, without `_` and `-`, for our fields: the first that the command has is meant.
_TEXT = ("text",)
_NUMBER = ("to", "number", "value")
_MEANT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("message", "msg", "body", "content", "sms", "txt"), _TEXT),
    **dict.fromkeys(("number", "numbers", "phone", "phonenumber", "recipient", "recipients", "receiver"), _NUMBER),
    **dict.fromkeys(("destination", "dest", "target", "mobile", "msisdn", "tel", "contact", "group"), _NUMBER),
    **dict.fromkeys(("ussd", "command", "cmd", "request", "text"), ("code",)),
    **dict.fromkeys(("on", "enabled", "active", "state", "value"), ("enable",)),
    **dict.fromkeys(("minutes", "seconds", "limit", "imei", "cell"), ("value",)),
    **dict.fromkeys(("timeout", "ttl", "expires", "expiry"), ("timeout_s", "ttl_s", "expires_at")),
    **dict.fromkeys(("line", "receiverline"), ("to",)),
}
# And for our commands.
_MEANT_COMMANDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("send", "sms/send", "send_sms", "sendsms", "message", "text"), ("sms",)),
    **dict.fromkeys(("reboot", "reset", "restart"), ("module/reboot", "gateway/reboot", "restart")),
    **dict.fromkeys(("status", "state", "signal", "info"), ("info/get", "gsm_state/get", "lines")),
    **dict.fromkeys(("hangup", "drop", "call/hangup", "call/end"), ("call/drop",)),
    **dict.fromkeys(("enable", "disable"), ("module/enable", "module/disable")),
    **dict.fromkeys(("balance", "code"), ("ussd",)),
    **dict.fromkeys(("cell", "cells"), ("cells/get", "cell/get")),
    **dict.fromkeys(("test", "self_test"), ("selftest",)),
}

# Where pydantic's own words would not help the sender of a payload.
_MESSAGES = {
    "missing": "is required",
    "model_type": "should be an object",
    "tuple_type": "should be a list",
    "string_pattern_mismatch": "holds a character it may not hold, or has the wrong length",
}


def _place(location: tuple[str | int, ...]) -> str:
    """`to[1]`, `messages[0].text`, `value.1`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" for step in location)
    return "".join(steps).removeprefix(".")


def _shown(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_]{1,40}", key) else _quoted(key)


def _quoted(key: str) -> str:
    """A caller's key, fit for a log line: short, and ASCII."""
    return json.dumps(key if len(key) <= 40 else f"{key[:40]}…")


def did_you_mean(word: str, known: Mapping[str, object]) -> str:
    """What of the known was probably meant, to be put behind a message; empty when nothing is near."""
    word = word[:80]
    close = [one for one in known if one.lower() == word.lower()] or get_close_matches(word, known, n=2)
    return f"; did you mean {' or '.join(sorted(close))}?" if close else ""
