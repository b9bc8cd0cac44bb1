"""What cannot be read of an event is acknowledged and told as it came; what can be read is told as ever."""

from typing import Any

import pytest
from goip_bench import Bench

from bridge.goip.events import CallEvent, Event, LineEvent, SmsReceived, SmsReport, UssdEvent

RECEIVED: dict[str, Any] = {"raw": None, "smscnum": None, "senttime": None}


def call(event_type: str, number: str | None = None, direction: str | None = None, **more: Any) -> CallEvent:
    return CallEvent("goip1", event_type, number, direction, **more)


def report(sms_no: int | None, state: int | None, number: str) -> SmsReport:
    return SmsReport("goip1", sms_no, state, number)


def received(srcnum: str, text: str) -> SmsReceived:
    return SmsReceived("goip1", 1, srcnum, text, **RECEIVED)


def ussd(text: str) -> UssdEvent:
    return UssdEvent("goip1", "reply", None, None, text)


# Kind, its fields, and what is told of them besides how they came.
UNREAD: list[tuple[str, str, list[Event] | dict[str, Any]]] = [
    ("DELIVER", "sms_no:3;state:DELIVRD;num:+491", [report(3, None, "+491")]),
    ("DELIVER", "sms_no:3;state:;num:+491", [report(3, None, "+491")]),
    ("DELIVER", "sms_no:3;state:(null);num:+491", [report(3, None, "+491")]),
    ("DELIVER", "sms_no:3;num:+491", [report(3, None, "+491")]),
    ("DELIVER", "sms_no:3;state:0x40;num:+491", [report(3, None, "+491")]),
    ("DELIVER", "sms_no:3;state:-1;num:+491", [report(3, -1, "+491")]),
    ("DELIVER", "sms_no:3;state:256;num:+491", [report(3, 256, "+491")]),
    ("DELIVER", "sms_no:3a;state:0;num:+491", [report(None, 0, "+491")]),
    ("DELIVER", f"sms_no:{10**18};state:0;num:+491", [report(None, 0, "+491")]),
    ("STATE", "gsm_remain_state:NEW_STATE:+491", []),
    ("STATE", "gsm_remain_state:", []),
    ("STATE", "state:IDLE", []),
    ("RECORD", "dir:3;num:+491", [call("recorded", "+491")]),
    ("RECORD", "dir:in;num:+491", [call("recorded", "+491")]),
    ("RECORD", "num:+491", [call("recorded", "+491")]),
    ("EXPIRY", "exp:1.5", {"exp": None}),
    ("EXPIRY", "seconds:90", {"exp": None}),
    ("REMAIN", "gsm_remain_time:one hour", {"remain_time_min": None, "unlimited": None}),
    ("REMAIN", "remain:5", {"remain_time_min": None, "unlimited": None}),
    ("HANGUP", "cause:User busy", [call("ended", None, None, cause="User busy")]),
    ("CELLS", "lists:1,x,2,", {"cells": [1, 2]}),
    ("CELLS", "cells:1,2", {"cells": []}),
    ("CELLS", "lists:" + "7," * 200, {"cells": [7] * 128}),
    ("BCCH", "bcch:1;2", {"bcch": [1]}),
    ("BCCH", "bcch:1;2,x", {"bcch": [1]}),
    ("BCCH", "bcch:0x10", {"bcch": []}),
    ("BCCH", "list:1", {"bcch": []}),
    ("CELLINFO", "cell:LAC:1", {"info": ""}),
    ("CGATT", "cgatt:attached", {"cgatt": None}),
    ("CGATT", "state:1", {"cgatt": None}),
    ("USSN", "text:Balance", [ussd("")]),
    ("RECEIVE", "srcnum:+491", [received("+491", "")]),
    ("RECEIVE", "from:+491;msg:hello, world", [received("", "hello, world")]),
]
READ: list[tuple[str, str, list[Event] | dict[str, Any]]] = [
    ("DELIVER", "sms_no:3;state:0;num:+491", [report(3, 0, "+491")]),
    ("DELIVER", "sms_no:3;state:48;num:+491", [report(3, 48, "+491")]),
    ("DELIVER", "sms_no:;state:64;num:", [report(None, 64, "")]),
    ("DELIVER", "state:64", [report(None, 64, "")]),
    ("STATE", "gsm_remain_state:incoming:+491", [call("ringing", "+491", "in")]),
    ("STATE", "gsm_remain_state:IDEL", []),
    ("RECORD", "dir:1;num:+491", [call("recorded", "+491", "in")]),
    ("RECORD", "dir:;num:", [call("recorded")]),
    ("EXPIRY", "exp:(null)", {"exp": None}),
    ("EXPIRY", "exp:90", {"exp": 90}),
    ("REMAIN", "gsm_remain_time:-1", {"remain_time_min": None, "unlimited": True}),
    ("REMAIN", "gsm_remain_time:", {"remain_time_min": None, "unlimited": None}),
    ("HANGUP", "num:,cause:User busy", [call("ended", None, None, cause="User busy")]),
    ("CELLS", "lists:1, -2,,", {"cells": [1, -2]}),
    ("CELLS", "lists:", {"cells": []}),
    ("BCCH", "bcch:1,2,", {"bcch": [1, 2]}),
    ("CELLINFO", "info:LAC:1", {"info": "LAC:1"}),
    ("CGATT", "cgatt:n", {"cgatt": False}),
    ("USSN", "msg:", [ussd("")]),
    ("RECEIVE", "srcnum:;msg:", [received("", "")]),
]


def acknowledgement(kind: str) -> str:
    return f"{kind} 1 OK" + (
        "\n" if kind in ("RECEIVE", "DELIVER", "CELLS", "CELLINFO", "BCCH", "CGATT", "HANGUP") else ""
    )


@pytest.mark.parametrize(("kind", "rest", "told"), UNREAD, ids=[f"{kind} {rest[:24]}" for kind, rest, _ in UNREAD])
def test_what_cannot_be_read_is_acknowledged_and_told_as_it_came(bench: Bench, kind: str, rest: str, told: Any) -> None:
    assert bench.event(kind, rest, recvid=1) == [acknowledgement(kind)]
    *others, last = bench.events()
    assert isinstance(last, LineEvent)
    assert last.event_type == kind.lower()
    assert {key: last.fields[key] for key in ("kind", "raw")} == {"kind": kind, "raw": f"{kind}:1;id:goip1;{rest}"}
    fields = last.fields["fields"]
    assert isinstance(fields, dict)
    assert [f"{key}:{value}" for key, value in fields.items()] == [piece for piece in rest.split(";") if ":" in piece]
    assert "pw1" not in str(last)
    form = {key: value for key, value in last.fields.items() if key not in ("kind", "fields", "raw")}
    assert (form or others) == told


@pytest.mark.parametrize(("kind", "rest", "told"), READ, ids=[f"{kind} {rest[:24]}" for kind, rest, _ in READ])
def test_what_can_be_read_is_told_as_ever(bench: Bench, kind: str, rest: str, told: Any) -> None:
    assert bench.event(kind, rest, recvid=1) == [acknowledgement(kind)]
    happened = bench.events()
    assert happened == ([LineEvent("goip1", kind.lower(), told)] if isinstance(told, dict) else told)


def test_a_repeat_of_what_cannot_be_read_is_told_once(bench: Bench) -> None:
    for _ in range(3):
        assert bench.event("DELIVER", "sms_no:3;state:x;num:+491", recvid=1) == ["DELIVER 1 OK\n"]
    assert len(bench.told(LineEvent)) == 1
