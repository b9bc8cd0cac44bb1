"""The contract as files: JSON Schemas of every payload, command and the configuration, and an AsyncAPI document.

All of `schemas/` is generated from the models and the tables below; nothing there is edited by hand. Only the command
line calls this, the service never does.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from ..config.schema import config_schema
from ..config.settings import Settings
from ..contract import causes, payloads
from ..contract.commands import BRIDGE_COMMANDS, LINE_COMMANDS, Command
from ..contract.payloads import KINDS, STATES, BridgeEvent, Delivery, Kind, Result, encode, stamped
from ..contract.topics import Topics
from ..features.admission import SELFTEST_VERDICTS
from ..system.terminal import say, takes_unicode

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
CONTRACT = "1.0.0"
"Version of topics and payloads; its first number is `api` in `bridge/info`."
PUBLISHED: dict[type, Kind] = KINDS | STATES


# -- events of a line ------------------------------------------------------------------------------------------------
# What `event` has besides the fields of every fact: as `bridge.goip.line` makes it, by `event_type`.


@dataclass
class Remain:
    """Outgoing minutes left, told after a call."""

    remain_time_min: int | None
    "Null when unknown or unlimited."
    unlimited: bool | None
    "There is no limit."


@dataclass
class Expiry:
    """Length of the call that ended, as the gateway counted it."""

    exp: int | None
    "Seconds; 0 for an outgoing call that nobody answered. The unit is known from the vendor's server only."


@dataclass
class Cells:
    """Cells in sight."""

    cells: list[int]
    "Their ids."


@dataclass
class Bcch:
    """Neighbour channels, every few minutes."""

    bcch: list[int]
    "Their numbers."


@dataclass
class CellInfo:
    """The line registered on a cell."""

    info: str
    "As the gateway gives it, such as `LAC:7E5,CELL ID:5E5B`."


@dataclass
class Cgatt:
    """The line attached to the packet service, or detached."""

    cgatt: bool | None
    "Attached; null when the gateway's word is not known."


@dataclass
class SelfTest:
    """A step of the line's self-test."""

    cmd: str | None
    "The id of the command."
    round: int
    "Which of its two SMS."
    step: Literal["open", "send", "repeat", "answer", "copy", "pause", "watch"]
    """`open` a session, `send` the SMS, `repeat` its SEND, `answer` of the gateway, `copy` of the SMS received by the
    other line; `pause` and `watch` wait."""
    at_s: float
    "Seconds since it began."
    text: str
    "What was done, or the gateway's answer without its ids."
    within_s: float | None
    "Seconds until the next step at the latest, where that is known."


@dataclass
class OtherEvent:
    """Any other kind, as it came."""

    kind: str
    "The gateway's word; `event_type` is the same in lower case."
    fields: dict[str, str]
    "Its fields, verbatim."
    raw: str
    "The whole datagram without the password."


EVENTS: dict[str, type] = {
    "remain": Remain,
    "expiry": Expiry,
    "cells": Cells,
    "bcch": Bcch,
    "cellinfo": CellInfo,
    "cgatt": Cgatt,
    "selftest": SelfTest,
}


# -- examples --------------------------------------------------------------------------------------------------------

_RUN = "6a1b25a0c3f1"
_AT = 1780166784.512
_TIME = payloads.timestamp(_AT)
_STARTED = payloads.timestamp(0x6A1B25A0)
_FACT: Json = {"id": f"{_RUN}-17", "at": _TIME, "boot": _RUN, "seq": 3}
_RESULT: Json = {"boot": _RUN, "seq": 3, "retryable": False, "status": "ok", "code": "ok"}
_REFUSED: Json = _RESULT | {"status": "error"}
_ANNA = "+4915112345678"
_CELL = "LAC:7E5,CELL ID:5E5B"
_SELFTEST: Json = {
    "format": 1,
    "bridge": "0.1.0",
    "gateway": {"imei_tac": "49015420", "operator": "POL", "keepalive_fields": ["num", "signal", "gsm_status", "imei"]},
    "verdict": "safe",
    "reasons": [],
    "copies": [1, 1],
    "sms_nos": [17, 18],
    "dense": True,
    "took_s": 312.4,
    "timing": {"repeat_s": 2.0, "known_s": 80.0, "forgotten_s": 100.0, "watch_s": 60.0},
    "steps": [{"at_s": 0.0, "round": 1, "step": "open", "text": "SMS 1: MSG"}],
}
_CONFIG: Json = {
    "instance": "home",
    "mqtt": {"url": "mqtt://localhost:1883", "username": "bridge", "password": "broker-password"},
    "lines": {
        "goip1": {"password": "password1"},
        "goip2": {"password": "password2", "name": "Gate SIM", "gateway": "rack1", "country": "DE"},
    },
    "contacts": {"anna": _ANNA},
}


def _delivery(event_type: payloads.DeliveryType, **changes: Any) -> Delivery:
    usual: Json = {"msg": f"{_RUN}-12", "cmd": "alarm-7", "job": None, "to": _ANNA, "attempt": 1}
    return Delivery(**_FACT, event_type=event_type, **usual | changes)


def _error(code: int | None, text: str, cause: causes.Cause | None = None, *, passing: bool = False) -> payloads.Error:
    word, meaning, ambiguous, passing = cause or (None, None, False, passing)
    return payloads.Error(code=code, text=text, cause=word, meaning=meaning, retryable=passing, ambiguous=ambiguous)


def _failed(code: int) -> payloads.Error:
    return _error(code, f"errorstatus:{code}", causes.of_errorstatus(code))


def _undelivered(status: int) -> payloads.Error:
    return _error(status, f"TP-Status {status}", causes.of_report(status))


def _event(event_type: str, **fields: Any) -> Json:
    return asdict(payloads.Event(**_FACT, event_type=event_type)) | fields


def _bridge_event(event_type: payloads.BridgeEventType, message: str, **fields: Any) -> BridgeEvent:
    return BridgeEvent(**_FACT, event_type=event_type, message=message, **fields)


def _line_states() -> Iterator[payloads.LineState]:
    yield payloads.LineState(
        signal=payloads.Signal(csq=29, dbm=-55, percent=94),
        gsm=payloads.Gsm(status="login", registered=True, operator="POL", cell=_CELL),
        voip=payloads.Voip(status="logout", registered=False),
        call=payloads.CallState(state="ringing", number=_ANNA, direction="in", since=_TIME),
        sim=payloads.Sim(number=None, imsi="260060172000001", iccid="89480611000720000001"),
        module=payloads.Module(imei="490154203237518"),
        limits=payloads.Limits(unlimited=True),
        enabled=True,
        address="192.168.1.20:10991",
        last_seen=_TIME,
        problems=[],
        raw={"idle": "11", "sms_login": "N", "smb_login": "", "cgatt": "Y"},
    )
    yield payloads.LineState(
        signal=payloads.Signal(),
        gsm=payloads.Gsm(status="logout", registered=False),
        voip=payloads.Voip(),
        call=payloads.CallState(state="idle"),
        sim=payloads.Sim(),
        module=payloads.Module(),
        limits=payloads.Limits(exp_time_min=600, remain_time_min=42, unlimited=False),
        enabled=False,
        address="192.168.1.20:10992",
        last_seen=_TIME,
        problems=["gsm_logout", "module_disabled"],
        raw={},
    )


def _results() -> Iterator[Result]:
    queued: Json = {"job": None, "msgs": [{"msg": f"{_RUN}-12", "to": _ANNA}], "parts": 1, "encoding": "gsm7"}
    done: Json = _RESULT | {"message": "The gateway confirmed it."}
    info: Json = {
        "number": _ANNA,
        "exp_time_min": None,
        "remain_time_min": None,
        "gsm_state": "IDLE",
        "imei": "490154203237518",
        "call_interval_s": 0,
        "module_down": False,
    }
    yield Result(**_RESULT, id="alarm-7", command="sms", message="Queued 1 SMS.", data=queued)
    late: Json = {"message": "Queued 1 SMS.", "data": queued, "duplicate": True, "warnings": ["line_offline"]}
    yield Result(**_RESULT, id="alarm-7", command="sms", **late)
    forward = {"enable": True, "number": _ANNA, "timeout_s": 20}
    yield Result(**done, id="door-42", command="number/get", data={"value": _ANNA})
    yield Result(**done, id="door-43", command="remain_time/get", data={"value": None, "unlimited": True})
    yield Result(**done, id="door-44", command="number/set")
    yield Result(**done, id="door-45", command="info/get", data=info)
    yield Result(**done, id="door-46", command="call_forward/get", data=forward)
    yield Result(**done, id="door-47", command="cells/get", data={"cells": [23, 78, 456]})
    yield Result(**_RESULT, id="check-1", command="selftest", message=SELFTEST_VERDICTS["safe"], data=_SELFTEST)
    ussd = {"text": "Balance: 12.50 EUR", "exit": False}
    yield Result(**_RESULT, id=f"{_RUN}-21", command="ussd", message="The network replied.", data=ussd)
    bad: Json = {"code": "invalid_payload", "message": "to[1]: is not a phone number"}
    yield Result(**_REFUSED | bad, id="alarm-8", command="sms")
    offline: Json = {"code": "line_offline", "retryable": True, "message": "line goip1 is offline"}
    yield Result(**_REFUSED | offline, id="door-48", command="module/reboot")


def _examples() -> dict[type, tuple[object, ...]]:
    """At least one for each `event_type` and shape. The models make them, so they hold what is really published."""
    return {
        payloads.SmsIn: (
            payloads.SmsIn(
                **_FACT, from_=_ANNA, from_raw="015112345678", text="On my way 🚗", chars=11, recvid=1780166784,
                smsc="+491710760000", senttime="26/05/30 20:46:20",
            ),
            payloads.SmsIn(
                **_FACT, from_="Bank", from_raw="Bank", text="Code \ufffd1234", chars=10, recvid=-12, smsc=None,
                senttime=None, raw_hex="436f646520ff31323334",
            ),
            payloads.SmsIn(
                **_FACT, from_=None, from_raw=None, text="", chars=0, recvid=-13, smsc=None, senttime=None, replay=True
            ),
        ),
        Delivery: (
            _delivery("queued", attempt=0),
            _delivery("sending", job=f"{_RUN}-11"),
            _delivery("sent", sms_no=4, evidence="ok"),
            _delivery("delivered", sms_no=4, evidence="report"),
            _delivery("undelivered", sms_no=4, error=_undelivered(70), evidence="report"),
            _delivery("failed", error=_failed(28), evidence="errorstatus"),
            _delivery("failed", error=_failed(38)),
            _delivery("unknown", evidence="silence"),
            _delivery("queued", error=_error(None, "GSM_LOGOUT", passing=True)),
            _delivery("expired", attempt=0),
            _delivery("cancelled", attempt=0),
            _delivery("delivered", msg=None, cmd=None, sms_no=9, attempt=0, evidence="report"),
        ),
        payloads.Call: (
            payloads.Call(**_FACT, event_type="ringing", number=_ANNA, direction="in"),
            payloads.Call(**_FACT, event_type="dialing", number=_ANNA, direction="out"),
            payloads.Call(**_FACT, event_type="answered", number=_ANNA, direction="in"),
            payloads.Call(
                **_FACT, event_type="ended", number=_ANNA, direction="in", duration_s=73.4, cause="Normal call clearing"
            ),
            payloads.Call(**_FACT, event_type="ended", number=None, direction=None),
            payloads.Call(**_FACT, event_type="recorded", number=_ANNA, direction="out"),
        ),
        payloads.Ussd: (
            payloads.Ussd(**_FACT, event_type="reply", code="*100#", text="Balance: 12.50 EUR", cmd="balance-1"),
            payloads.Ussd(**_FACT, event_type="reply", code=None, text="Your bundle ends tomorrow.", cmd=None),
            payloads.Ussd(
                **_FACT, event_type="reply", code="*102#", text="1 €", text_raw="0031002020AC", cmd="balance-4"
            ),
            payloads.Ussd(**_FACT, event_type="error", code="*100#", text="USSD send failed!", cmd="balance-2"),
            payloads.Ussd(**_FACT, event_type="timeout", code="*100#", text=None, cmd="balance-3"),
        ),
        payloads.Event: (
            _event("remain", remain_time_min=42, unlimited=False),
            _event("remain", remain_time_min=None, unlimited=True),
            _event("expiry", exp=0),
            _event("expiry", exp=73),
            _event("cells", cells=[23, 78, 456]),
            _event("bcch", bcch=[23, 78]),
            _event("cellinfo", info=_CELL),
            _event("cgatt", cgatt=True),
            _event("selftest", cmd="check-1", round=1, step="answer", at_s=4.2, text="OK 17", within_s=None),
            _event(
                "selftest", cmd="check-1", round=1, step="watch", at_s=4.3,
                text="waiting 60 s for copies on the receiving line", within_s=60.0,
            ),
            _event(
                "num_iccid", kind="NUM_ICCID", fields={"iccid": "89480611000720000001"},
                raw="NUM_ICCID:1780166784;id:goip1;iccid:89480611000720000001",
            ),
        ),
        BridgeEvent: (
            _bridge_event("line_online", "The line is registered.", line="goip2", gateway="rack1"),
            _bridge_event("line_offline", "Nothing heard of the line for 95 s. Check its power.", line="goip1"),
            _bridge_event(
                "line_unknown", "A gateway registers with the id 'goip9', which is not configured.",
                line="goip9", address="192.168.1.20:10999", count=4,
            ),
            _bridge_event(
                "line_unauthorized", "Wrong password for line goip1.", line="goip1", address="192.0.2.7:3", count=1
            ),
            _bridge_event(
                "line_moved", "Line goip1 was at 192.168.1.20 and registers from 192.168.1.66 now.", line="goip1",
                gateway="rack1", address="192.168.1.66:5060", count=1,
            ),
            _bridge_event(
                "gateway_reboot", "The gateway restarted.", line="goip1", gateway="rack1", address="192.168.1.20:10991"
            ),
            _bridge_event("outage_gap", "Nothing was taken meanwhile.", from_=_STARTED, to=_TIME),
            _bridge_event("store_restored", "The store was restored from a backup. 2 SMS in it are unknown."),
            _bridge_event("work_left", "The bridge was killed twice while it handled old SMS.", count=2, to=_TIME),
            _bridge_event("repeat_unsafe", "The gateway sent one SMS twice.", line="goip1", gateway="rack1"),
            _bridge_event("takeover", "Another client connects as goip-bridge-home."),
            _bridge_event("retained_command", "Was refused and removed.", line="goip1", topic="goip/goip1/cmd/sms"),
            _bridge_event(
                "publish_refused", "The broker refused this publish. It is tried again.", topic="goip/goip1/sms/in",
                reason_code=135, count=1,
            ),
            _bridge_event(
                "no_subscriber", "Nobody is subscribed to this topic.", topic="goip/goip1/sms/in", reason_code=16,
                count=2,
            ),
            _bridge_event(
                "subscription_refused", "The broker refused this subscription. It is tried again.",
                topic="goip/+/cmd/#", reason_code=135, count=1,
            ),
        ),
        Result: tuple(_results()),
        payloads.LineState: tuple(_line_states()),
        payloads.LineStats: (
            payloads.LineStats(
                queue=payloads.QueueCounts(queued=3, active=1),
                total=payloads.Traffic(sent=120, delivered=117, failed=2, unknown=1, received=54),
                today=payloads.Traffic(sent=4, delivered=4),
            ),
        ),
        payloads.SmsLast: (
            payloads.SmsLast(at=_TIME, from_="***********678", chars=11),
            payloads.SmsLast(at=_TIME, from_=None, chars=5, text="Hello"),
        ),
        payloads.BridgeInfo: (
            payloads.BridgeInfo(
                version="0.1.0", api=1, instance="home", started_at=_STARTED, serving_since=_STARTED, served_since=None,
                lines=2,
                mqtt=payloads.MqttInfo(version="5", session_present=True), features=["sms", "delivery", "ussd"],
                config=Settings.model_validate(_CONFIG).public_dict(),
            ),
        ),
        payloads.BridgeHealth: (
            payloads.BridgeHealth(
                uptime_s=1184, rss_mb=48.2, loop_lag_ms=1.3,
                udp=payloads.UdpHealth(received=812, sent=809, malformed=0, unauthorized=3, dropped=0),
                mqtt=payloads.MqttHealth(connected=True, published=96, acked=95, refused=0, reconnects=0, mute_s=0.0),
                outbox=payloads.OutboxHealth(count=1, oldest_s=0.2),
                queue=payloads.QueueCounts(queued=3, active=1),
                lines=payloads.LineCounts(online=1, total=2),
            ),
        ),
        payloads.BridgeLines: (
            payloads.BridgeLines(
                lines=[
                    payloads.LineSummary(
                        id="goip1", name=None, gateway=None, online=True, address="192.168.1.20:10991"
                    ),
                    payloads.LineSummary(id="goip2", name="Gate SIM", gateway="rack1", online=False, address=None),
                ]
            ),
        ),
        payloads.Job: (
            payloads.Job(
                job=f"{_RUN}-11", cmd="alarm-7", line="goip1", state="running", total=40,
                counts=payloads.JobCounts(queued=28, sending=1, sent=11), rate_per_min=8.4, eta_s=207,
                started_at=_STARTED, ended_at=None,
            ),
            payloads.Job(
                job=f"{_RUN}-11", cmd="alarm-7", line="goip1", state="done", total=40,
                counts=payloads.JobCounts(delivered=39, failed=1), rate_per_min=8.1, eta_s=0,
                started_at=_STARTED, ended_at=_TIME,
            ),
        ),
    }  # fmt: skip


# -- JSON Schemas ----------------------------------------------------------------------------------------------------


class _Generator(GenerateJsonSchema):
    """Without the titles made from field names, which say nothing new."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _PublishedGenerator(_Generator):
    """Every field is always published, so a default would mislead."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Json:
        return self.generate_inner(schema["schema"])


def schemas() -> dict[str, Json]:
    """Every JSON Schema, by name."""
    examples = _examples()
    found = {kind.schema: _published(model, kind.schema, examples[model]) for model, kind in PUBLISHED.items()}
    for model in LINE_COMMANDS.values():
        found[command_name(model)] = _command(model)
    for model in BRIDGE_COMMANDS.values():
        found[command_name(model, bridge=True)] = _command(model, bridge=True)
    found["config"] = _document("config", config_schema() | {"title": "Configuration", "examples": [_CONFIG]})
    return dict(sorted(found.items()))


def command_name(model: type[Command], *, bridge: bool = False) -> str:
    """The name of a command's schema: `cmd_number_set`, `bridge_cmd_ping`."""
    return f"{'bridge_' if bridge else ''}cmd_{model.path.replace('/', '_')}"


def _command(model: type[Command], *, bridge: bool = False) -> Json:
    schema = model.model_json_schema(schema_generator=_Generator)
    extra = model.model_config.get("json_schema_extra")
    assert isinstance(extra, dict)
    # Pydantic sorts the keys inside the examples; people read `to` before `text`.
    return _document(command_name(model, bridge=bridge), schema | {"examples": extra["examples"]})


def _published(model: type, name: str, examples: tuple[object, ...]) -> Json:
    # Open: the contract changes by addition, so a consumer that validates must not break on a new field.
    schema = _of_dataclass(model)
    if model is payloads.Event:
        schema["oneOf"], schema["$defs"] = _event_shapes()
    common = _of_dataclass(payloads.Fact)["properties"]
    schema["properties"]["ts"] = common["at"] | {"description": "When it was published; each repeat has its own."}
    schema["required"].append("ts")
    for key, value in schema["properties"].items():
        if key in common:  # pydantic takes descriptions from the class itself, not from those it inherits from
            value.setdefault("description", common[key]["description"])
    return _document(name, schema | {"examples": [json.loads(stamped(encode(one), _AT + 0.004)) for one in examples]})


def _of_dataclass(model: type) -> Json:
    """The schema of what orjson makes of a dataclass."""
    config = ConfigDict(use_attribute_docstrings=True, json_schema_serialization_defaults_required=True)
    # Pydantic takes no configuration for a dataclass that is not its own; that of a list reaches the items.
    adapter: TypeAdapter[Any] = TypeAdapter(list[model], config=config)  # type: ignore[valid-type]
    schema = adapter.json_schema(mode="serialization", schema_generator=_PublishedGenerator)
    definitions: Json = schema.pop("$defs", {})
    reference = schema["items"].get("$ref", "")
    found: Json = definitions.pop(reference.rpartition("/")[2], schema["items"])
    found["properties"] = {key.rstrip("_"): value for key, value in found["properties"].items()}  # `from_`
    found["required"] = list(found["properties"])
    return found | ({"$defs": definitions} if definitions else {})


def _event_shapes() -> tuple[list[Json], Json]:
    """The alternatives of `event`, and what they refer to."""
    definitions: Json = {}
    for event_type, model in EVENTS.items():
        shape = definitions[model.__name__] = _event_shape(model, {"const": event_type})
        if model is not SelfTest:  # of the bridge itself
            shape["properties"] |= _of_dataclass(OtherEvent)["properties"]  # only where a field could not be read
    definitions[OtherEvent.__name__] = _event_shape(OtherEvent, {"not": {"enum": list(EVENTS)}})
    return [{"$ref": f"#/$defs/{name}"} for name in definitions], definitions


def _event_shape(model: type, event_type: Json) -> Json:
    shape = _of_dataclass(model)
    shape["properties"] = {"event_type": event_type} | shape["properties"]
    shape["required"] = list(shape["properties"])
    return shape


def _document(name: str, schema: Json) -> Json:
    """The schema as a file: what people look for first comes first."""
    first = {"$schema": DIALECT, "$id": f"{name}.json", "title": schema["title"], "description": schema["description"]}
    last = {key: schema[key] for key in ("examples", "$defs") if key in schema}
    return first | {key: value for key, value in schema.items() if key not in first | last} | last


# -- the AsyncAPI document -------------------------------------------------------------------------------------------

TOPICS = Topics("goip")
LINE = "{line}"
POOL = "pool/{pool}"
BINDING = {"bindingVersion": "0.2.0"}
SENT: dict[str, tuple[str, type | None]] = {
    "bridge_availability": (TOPICS.bridge("availability"), None),
    "bridge_info": (TOPICS.bridge("info"), payloads.BridgeInfo),
    "bridge_health": (TOPICS.bridge("health"), payloads.BridgeHealth),
    "bridge_lines": (TOPICS.bridge("lines"), payloads.BridgeLines),
    "bridge_event": (TOPICS.bridge("event"), BridgeEvent),
    "line_availability": (TOPICS.line(LINE, "availability"), None),
    "line_state": (TOPICS.line(LINE, "state"), payloads.LineState),
    "line_stats": (TOPICS.line(LINE, "stats"), payloads.LineStats),
    "line_sms_in": (TOPICS.line(LINE, "sms/in"), payloads.SmsIn),
    "line_sms_last": (TOPICS.line(LINE, "sms/last"), payloads.SmsLast),
    "line_delivery": (TOPICS.line(LINE, "delivery"), Delivery),
    "line_call": (TOPICS.line(LINE, "call"), payloads.Call),
    "line_ussd": (TOPICS.line(LINE, "ussd"), payloads.Ussd),
    "line_event": (TOPICS.line(LINE, "event"), payloads.Event),
    "homeassistant_sms_in": (TOPICS.for_home_assistant(TOPICS.line(LINE, "sms/in")), payloads.SmsIn),
    "homeassistant_delivery": (TOPICS.for_home_assistant(TOPICS.line(LINE, "delivery")), Delivery),
    "homeassistant_call": (TOPICS.for_home_assistant(TOPICS.line(LINE, "call")), payloads.Call),
    "homeassistant_ussd": (TOPICS.for_home_assistant(TOPICS.line(LINE, "ussd")), payloads.Ussd),
    "homeassistant_event": (TOPICS.for_home_assistant(TOPICS.bridge("event")), BridgeEvent),
    "job": (TOPICS.job("{job}"), payloads.Job),
    "line_result": (TOPICS.result(LINE, "{command}"), Result),
    "pool_result": (TOPICS.result(POOL, "{command}"), Result),
    "bridge_result": (TOPICS.result("bridge", "{bridge_command}"), Result),
    "response": ("", Result),
}
"Channel to topic and payload; None is the plain text of availability. The topic of `response` is the caller's choice."

_PARAMETERS: Json = {
    "line": {
        "description": "The line's name in the configuration. In a command also `any`: the bridge picks a line, and "
        "the result is on `goip/any/result/…`.",
        "examples": ["goip1", "any"],
    },
    "pool": {"description": "A configured pool; the bridge picks one of its lines.", "examples": ["alarms"]},
    "job": {"description": "The job's id, as in `delivery`.", "examples": [f"{_RUN}-11"]},
    "to": {
        "description": "Digits, without `+`; a leading `00` becomes `+`. Or the name of a contact or group.",
        "examples": ["004915112345678", "anna"],
    },
    "command": {"description": "The command path.", "enum": list(LINE_COMMANDS)},
    "bridge_command": {"description": "The command path.", "enum": list(BRIDGE_COMMANDS)},
}
_INFO = """\
GoIP GSM gateways on MQTT: SMS, delivery reports, calls, USSD and line states.

`goip` is the base topic and can be configured. Facts and results are QoS 1 and never retained; states are QoS 1 and
retained, and an empty payload there says that the line or job is gone. Below `homeassistant/` are the same facts once
more, for Home Assistant alone: no other program should subscribe there. On MQTT 5 every JSON payload carries the user
property `schema` with the name of its file. MQTT 3.1.1 carries the same payloads. `send` is what the bridge publishes,
`receive` what it is subscribed to."""
_RESPONSE = """\
The MQTT 5 Response Topic of a command. The result goes there as well as to its own topic, with the correlation data
byte for byte. Never below `$` or the discovery prefix, nor where the bridge has commands, facts and states."""


def asyncapi() -> Json:
    """The AsyncAPI 3.0 document of all topics."""
    channels: Json = {}
    operations: Json = {}
    for name, (address, model) in SENT.items():
        _add_sent(name, address, model, channels, operations)
    for bridge, models in ((False, LINE_COMMANDS), (True, BRIDGE_COMMANDS)):
        for model in models.values():
            name = command_name(model, bridge=bridge)
            address = TOPICS.command("bridge" if bridge else LINE, model.path)
            _add_received(name, address, [name], "bridge_result" if bridge else "line_result", channels, operations)
    for target, name in ((LINE, "line"), (POOL, "pool")):
        address = TOPICS.command(target, "sms/{to}")
        _add_received(f"{name}_cmd_sms_to", address, ["sms_text"], f"{name}_result", channels, operations)
    every = [command_name(model) for model in LINE_COMMANDS.values()]
    _add_received("pool_cmd", TOPICS.command(POOL, "{command}"), every, "pool_result", channels, operations)
    document = {
        "asyncapi": "3.0.0",
        "info": {"title": "goip-mqtt-bridge", "version": CONTRACT, "description": _INFO, "license": {"name": "MIT"}},
        "defaultContentType": "application/json",
        "servers": {"broker": _server()},
        "channels": channels,
        "operations": operations,
        "components": {"messages": dict(_messages()), "parameters": _PARAMETERS},
    }
    found: Json = json.loads(json.dumps(document))  # copies of what is in there twice, or YAML would make aliases
    return found


def _server() -> Json:
    will = {"topic": TOPICS.bridge("availability"), "qos": 1, "message": "offline", "retain": True}
    session = {"clientId": "goip-bridge-home", "cleanSession": False, "sessionExpiryInterval": 3600, "lastWill": will}
    return {
        "host": "localhost:1883",
        "protocol": "mqtt",
        "protocolVersion": "5",
        "description": "Any MQTT broker. The client id is `goip-bridge-<instance>`; the will is delayed by 10 s.",
        "bindings": {"mqtt": session | BINDING},
    }


def _add_sent(name: str, address: str, model: type | None, channels: Json, operations: Json) -> None:
    kind = PUBLISHED[model] if model else None
    delivery: Json = {"qos": 1, "retain": model is None or model in STATES}
    if kind is not None and kind.expiry_s:
        delivery["messageExpiryInterval"] = kind.expiry_s
    channels[name] = _channel(address, [kind.schema if kind else "availability"])
    if not address:
        channels[name] |= {"address": None, "description": _RESPONSE}
    operations[f"send_{name}"] = {
        "action": "send",
        "channel": {"$ref": f"#/channels/{name}"},
        "tags": [{"name": "state" if delivery["retain"] else "result" if model is Result else "fact"}],
        "bindings": {"mqtt": delivery | BINDING},
    }


def _add_received(name: str, address: str, messages: list[str], result: str, channels: Json, operations: Json) -> None:
    channels[name] = _channel(address, messages)
    operations[f"receive_{name}"] = {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "tags": [{"name": "command"}],
        "bindings": {"mqtt": {"qos": 1, "retain": False} | BINDING},
        "reply": {
            "channel": {"$ref": f"#/channels/{result}"},
            "messages": [{"$ref": f"#/channels/{result}/messages/result"}],
        },
    }


def _channel(address: str, messages: list[str]) -> Json:
    channel: Json = {
        "address": address,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }
    names = [name for name in _PARAMETERS if f"{{{name}}}" in address]
    if names:
        channel["parameters"] = {name: {"$ref": f"#/components/parameters/{name}"} for name in names}
    return channel


def _messages() -> Iterator[tuple[str, Json]]:
    text: Json = {"type": "string", "enum": ["online", "offline"]}
    yield "availability", _message("availability", "Whether it is there.", text, content_type="text/plain")
    for model, kind in PUBLISHED.items():
        message = _message(kind.schema, _summary(model), {"$ref": f"./{kind.schema}.json"})
        message["headers"] = {
            "type": "object",
            "description": "The user properties of MQTT 5.",
            "properties": {"schema": {"const": kind.schema}},
        }
        if model is Result:
            message["correlationId"] = _CORRELATION
            message["bindings"]["mqtt"]["correlationData"] = {"type": "string", "description": "That of the command."}
        yield kind.schema, message
    for bridge, models in ((False, LINE_COMMANDS), (True, BRIDGE_COMMANDS)):
        for command in models.values():
            name = command_name(command, bridge=bridge)
            yield name, _command_message(name, command)
    text = {"type": "string", "minLength": 1, "description": "The text: up to 3000 bytes of UTF-8."}
    yield "sms_text", _asking(_message("sms_text", "Send this text as an SMS.", text, content_type="text/plain"))


_CORRELATION = {
    "description": "The command's `id` is that of its result. Without one, printable MQTT 5 correlation data names the "
    "result, or else the bridge does.",
    "location": "$message.payload#/id",
}


def _command_message(name: str, model: type[Command]) -> Json:
    message = _message(name, _summary(model), {"$ref": f"./{name}.json"})
    schema = model.model_json_schema()
    if "required" not in schema and "oneOf" not in schema:
        message["description"] = "An empty payload and the text `PRESS` mean `{}`."
    message["correlationId"] = _CORRELATION
    return _asking(message)


def _asking(message: Json) -> Json:
    """The message with what MQTT 5 has for requests."""
    message["bindings"]["mqtt"] |= {
        "responseTopic": {"type": "string", "description": "Where the result is to be sent as well."},
        "correlationData": {"type": "string", "description": "Comes back there byte for byte."},
    }
    return message


def _message(name: str, summary: str, payload: Json, content_type: str = "application/json") -> Json:
    return {
        "name": name,
        "summary": summary,
        "contentType": content_type,
        "payload": payload,
        "bindings": {"mqtt": {"payloadFormatIndicator": 1, "contentType": content_type} | BINDING},
    }


def _summary(model: type) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


# -- files and the command line --------------------------------------------------------------------------------------

_HEADER = "# Generated by `goip-bridge schema` from the models in bridge/; not edited by hand.\n"


class _Yaml(yaml.SafeDumper):
    """Long texts as blocks, and quotes around what YAML 1.2 would take for a number, such as 0049."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "|" if "\n" in data else "'" if data.isdecimal() else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Yaml.add_representer(str, _Yaml.represent_str)


@functools.cache
def files(*, escaped: bool = False) -> dict[str, str]:
    """The contents of `schemas/`, by file name; the same in ASCII where it is `escaped`."""
    found = {
        f"{name}.json": json.dumps(schema, indent=2, ensure_ascii=escaped) + "\n" for name, schema in schemas().items()
    }
    found["asyncapi.yaml"] = _HEADER + yaml.dump(
        asyncapi(), Dumper=_Yaml, sort_keys=False, allow_unicode=not escaped, width=120
    )
    return dict(sorted(found.items()))


def write(folder: Path) -> None:
    """Make the folder hold exactly these files, and whatever in it is not ours."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = files()
    for name, text in expected.items():
        (folder / name).write_text(text, encoding="utf-8")
    for path in _stale(folder, expected):
        path.unlink()


def check(folder: Path) -> list[str]:
    """What is wrong in the folder, one line for each file."""
    expected = files()
    faults = []
    for name, text in expected.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{path}: is missing")
        elif path.read_bytes() != text.encode():
            faults.append(f"{path}: is not what the models say")
    return faults + [f"{path}: belongs to no model any more" for path in _stale(folder, expected)]


def _stale(folder: Path, expected: dict[str, str]) -> list[Path]:
    """Schemas that were generated here once: only those have their own name as `$id`."""
    return [path for path in sorted(folder.glob("*.json")) if path.name not in expected and _is_ours(path)]


def _is_ours(path: Path) -> bool:
    try:
        schema = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(schema, dict) and schema.get("$schema") == DIALECT and schema.get("$id") == path.name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `goip-bridge schema`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("name", nargs="?", metavar="NAME", help="print this schema; without a name: list them")
    what.add_argument("--write", type=Path, metavar="DIR", help="write all of them into a folder")
    what.add_argument("--check", type=Path, metavar="DIR", help="name the files in a folder that are out of step")


def main(args: argparse.Namespace) -> int:
    """List, print, write or check; 1 when the check finds something or a file can't be used, 2 for an unknown name."""
    try:
        if args.write is not None:
            write(args.write)
            return 0
        if args.check is not None:
            found = check(args.check)
            return _report([*found, f"to mend: goip-bridge schema --write {args.check}"] if found else [])
    except OSError as error:
        return _report([f"{error.filename}: {error.strerror}"])
    named = {name.rpartition(".")[0]: text for name, text in files(escaped=not takes_unicode()).items()}
    if args.name is None:
        say("\n".join(named), lines=True)
    elif args.name in named:
        say(named[args.name].removesuffix("\n"), lines=True)
    else:
        close = get_close_matches(args.name, named, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; without a name they are listed"
        _report([f"there is no schema {args.name}{hint}"])
        return 2
    return 0


def _report(faults: list[str]) -> int:
    for fault in faults:
        say(fault, error=True)
    return 1 if faults else 0
