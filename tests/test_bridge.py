"""The bridge as a process, between a raw UDP gateway and a real broker."""

import contextlib
import itertools
import json
import os
import re
import resource
import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker_fixture import Broker
from brokers import free_port
from harness import (
    BridgeProcess,
    RawLine,
    Watcher,
    bridge_config,
    raw_line,
    response_properties,
    running,
    sweep,
    watching,
)
from schema_check import validate_published

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
async def _swept(broker: Broker) -> AsyncIterator[None]:
    yield
    await sweep(broker)


class Setup:
    """A bridge, one raw line of it, and an administrator's eyes on everything."""

    def __init__(self, bridge: BridgeProcess, line: RawLine, watcher: Watcher) -> None:
        self.bridge = bridge
        self.line = line
        self.watcher = watcher
        self.id = line.id

    def topic(self, path: str) -> str:
        return f"goip/{self.id}/{path}"

    async def command(self, path: str, payload: object = b"", **options: Any) -> dict[str, Any]:
        """Publish a command; its result."""
        topic = self.topic(f"result/{path.split('/')[0] if path.startswith('sms/') else path}")
        before = len(self.watcher.on(topic))
        await self.watcher.publish(self.topic(f"cmd/{path}"), payload, **options)
        return (await self.watcher.until(topic, count=before + 1)).json


def new_config(broker: Broker | None, **more: Any) -> tuple[str, dict[str, Any]]:
    """A line of a name of its own: retained messages of other tests are still on the broker."""
    id = f"t{next(_numbers)}"
    config = bridge_config(broker, "goip", {id: {"password": "password1"}}, **more)
    config["instance"] = f"i-{os.getpid()}-{id}"
    return id, config


@pytest.fixture
async def setup(broker: Broker, tmp_path: Path) -> AsyncIterator[Setup]:
    async with set_up(broker, tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def set_up(broker: Broker, directory: Path, **more: Any) -> AsyncIterator[Setup]:
    id, config = new_config(broker, **more)
    async with (
        watching(broker, "goip/#") as watcher,
        running(directory, config) as bridge,
    ):
        with raw_line(bridge.udp_port, id) as line:
            await line.register()
            await watcher.until(f"goip/{id}/availability", lambda seen: seen.payload == b"online")
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
            yield Setup(bridge, line, watcher)


# -- the two walks of docs/architecture.md ------------------------------------------------------------------


async def test_walk_inbound_sms(setup: Setup) -> None:
    text = "just; a test: x\nline2 ✓ ;id:other;msg:y"
    datagram = setup.line.event("RECEIVE", f"srcnum:+8613500000667;msg:{text}")
    answer = await setup.line.ask(datagram)
    assert answer == f"RECEIVE {setup.line.recvid} OK\n".encode()
    fact = (await setup.watcher.until(setup.topic("sms/in"))).json
    assert fact["text"] == text
    assert fact["chars"] == len(text)
    assert (fact["from"], fact["from_raw"], fact["recvid"]) == ("+8613500000667",) * 2 + (setup.line.recvid,)
    assert fact["event_type"] == "received"
    assert fact["raw_hex"] is None


async def test_walk_outbound_sms(setup: Setup) -> None:
    result = await setup.command("sms", {"id": "walk", "to": "+49 151-1", "text": "hello мир"})
    assert (result["id"], result["status"], result["data"]["encoding"]) == ("walk", "ok", "ucs2")
    line = setup.line
    verb, sendid, length, text = (await line.receive()).split(b" ", 3)
    assert (verb, length, text) == (b"MSG", b"12", "hello мир\n".encode())
    assert await line.ask(b"PASSWORD %b\n" % sendid) == b"PASSWORD %b password1\n" % sendid
    submit = await line.ask(b"SEND %b\n" % sendid)
    assert submit == b"SEND %b 1 +491511\n" % sendid
    line.send(b"WAIT %b 1\n" % sendid)
    line.send(b"OK %b 1 0\n" % sendid)
    assert await line.receive() == b"DONE %b\n" % sendid
    line.send(b"DONE %b\n" % sendid)
    assert (await line.ask(line.event("DELIVER", "sms_no:0;state:0;num:491511"))).startswith(b"DELIVER ")
    await setup.watcher.until(setup.topic("delivery"), count=4)
    facts = [seen.json for seen in setup.watcher.on(setup.topic("delivery"))]
    assert [fact["event_type"] for fact in facts] == ["queued", "sending", "sent", "delivered"]
    assert {fact["msg"] for fact in facts} == {result["data"]["msgs"][0]["msg"]}
    assert [fact["seq"] for fact in facts] == [1, 2, 3, 4]
    assert [fact["evidence"] for fact in facts] == [None, None, "ok", "report"]
    assert {fact["cmd"] for fact in facts} == {"walk"}


# -- inbound ------------------------------------------------------------------------------------------------


async def test_a_repeat_is_acknowledged_again_and_published_once(setup: Setup) -> None:
    datagram = setup.line.event("RECEIVE", "srcnum:1;msg:one")
    first = await setup.line.ask(datagram)
    assert await setup.line.ask(datagram) == first
    await setup.line.ask(setup.line.event("RECEIVE", "srcnum:1;msg:one"))
    await setup.watcher.until(setup.topic("sms/in"), count=2)
    recvids = [seen.json["recvid"] for seen in setup.watcher.on(setup.topic("sms/in"))]
    assert recvids == [setup.line.recvid + 1, setup.line.recvid]


async def test_a_repeat_after_kill_9_is_published_once(broker: Broker, tmp_path: Path) -> None:
    async with set_up(broker, tmp_path) as setup:
        datagram = setup.line.event("RECEIVE", "srcnum:1;msg:before the crash")
        await setup.line.ask(datagram)
        await setup.bridge.kill()
        await setup.bridge.start()
        await setup.line.register()
        await setup.line.ask(datagram)
        await setup.line.ask(setup.line.event("RECEIVE", "srcnum:1;msg:after"))
        await setup.watcher.until(setup.topic("sms/in"), lambda seen: seen.json["text"] == "after")
        ids = {seen.json["id"] for seen in setup.watcher.on(setup.topic("sms/in"))}
        assert len(ids) == 2


async def test_a_broken_text_is_published_with_its_bytes(setup: Setup) -> None:
    raw = b"caf\xe9 \0 \xed\xa0\x80"
    await setup.line.ask(setup.line.event("RECEIVE", b"srcnum:My Bank;msg:" + raw))
    fact = (await setup.watcher.until(setup.topic("sms/in"))).json
    assert bytes.fromhex(fact["raw_hex"]) == raw
    assert fact["text"].startswith("caf\ufffd \ufffd ")
    assert fact["from"] == "My Bank"


async def test_other_events_are_acknowledged_and_published(setup: Setup) -> None:
    line = setup.line
    assert await line.ask(line.event("STATE", "gsm_remain_state:INCOMING:+123")) == b"STATE %d OK" % line.recvid
    assert await line.ask(line.event("CELLS", "lists:689,638,")) == b"CELLS %d OK\n" % line.recvid
    assert await line.ask(line.event("NUM_ICCID", "iccid:1;x:y")) == b"NUM_ICCID %d OK" % line.recvid
    assert await line.ask(line.event("HANGUP", "num:,cause:User busy")) == b"HANGUP %d OK\n" % line.recvid
    ended = (await setup.watcher.until(setup.topic("call"), lambda seen: seen.json["event_type"] == "ended")).json
    assert (ended["number"], ended["direction"], ended["cause"]) == ("+123", "in", "User busy")
    cells = (await setup.watcher.until(setup.topic("event"), lambda seen: seen.json["event_type"] == "cells")).json
    assert cells["cells"] == [689, 638]
    other = (await setup.watcher.until(setup.topic("event"), lambda seen: seen.json["event_type"] == "num_iccid")).json
    assert (other["kind"], other["fields"]) == ("NUM_ICCID", {"iccid": "1", "x": "y"})
    assert "password1" not in json.dumps(other)


async def test_a_sender_with_a_semicolon_is_published_whole(setup: Setup) -> None:
    sms = setup.line.event("RECEIVE", "srcnum:Bank;24;smscnum:+49171;msg:Your code is; 1234")
    assert await setup.line.ask(sms) == b"RECEIVE %d OK\n" % setup.line.recvid
    fact = (await setup.watcher.until(setup.topic("sms/in"))).json
    assert (fact["from"], fact["from_raw"], fact["text"]) == ("Bank;24", "Bank;24", "Your code is; 1234")
    assert fact["smsc"] == "+49171"


@pytest.mark.parametrize(
    ("kind", "rest"), [("DELIVER", "sms_no:3;state:DELIVRD;num:+491"), ("REMAIN", "gsm_remain_time:1 h")]
)
async def test_what_cannot_be_read_is_acknowledged_and_published_as_it_came(setup: Setup, kind: str, rest: str) -> None:
    assert (await setup.line.ask(setup.line.event(kind, rest))).split() == [
        kind.encode(), b"%d" % setup.line.recvid, b"OK"
    ]  # fmt: skip
    seen = await setup.watcher.until(setup.topic("event"), lambda seen: "raw" in seen.json)
    fact = validate_published("event", seen.payload)
    assert (fact["event_type"], fact["kind"]) == (kind.lower(), kind)
    assert fact["raw"] == f"{kind}:{setup.line.recvid};id:{setup.line.id};{rest}"
    assert fact["fields"] == dict(piece.split(":") for piece in rest.split(";"))


async def test_strangers_get_silence_and_are_told_once(setup: Setup) -> None:
    with (
        raw_line(setup.bridge.udp_port, "stranger", "x") as stranger,
        raw_line(setup.bridge.udp_port, setup.id, "wrong") as liar,
    ):
        for _ in range(3):
            stranger.send("req:1;id:stranger;pass:x;")
            liar.send(f"RECEIVE:5;id:{setup.id};password:wrong;srcnum:1;msg:x")
        unknown = await setup.watcher.until(
            "goip/bridge/event",
            lambda seen: seen.json["event_type"] == "line_unknown" and seen.json["line"] == "stranger",
        )
        wrong = await setup.watcher.until(
            "goip/bridge/event",
            lambda seen: seen.json["event_type"] == "line_unauthorized" and seen.json["line"] == setup.id,
        )
        assert "lines:" in unknown.json["message"]
        assert f"lines.{setup.id}.password" in wrong.json["message"]
        await setup.line.register()  # everything before it has been handled
        assert stranger.nothing_waits()
        assert liar.nothing_waits()
        told = [seen for seen in setup.watcher.on("goip/bridge/event") if seen.json["line"] in ("stranger", setup.id)]
        kinds = sorted(seen.json["event_type"] for seen in told)
        assert kinds == ["line_online", "line_unauthorized", "line_unknown"]
        for notice in (unknown, wrong):
            assert f"WARNING {notice.json['address']}: {notice.json['message']}\n" in setup.bridge.log
        assert "not authenticated" not in setup.bridge.log


async def test_garbage_is_counted_and_logged_once_for_each_reason(setup: Setup) -> None:
    for garbage in (b"", b"\0" * 100, b"req:", b"\xff\xfe", b"RECEIVE:x;id:a", b"A" * 60000):
        setup.line.send(garbage)
    await setup.line.register()
    await setup.bridge.logged("WARNING dropped")
    reasons = re.findall("WARNING dropped .* bytes from [^ ]+: (.*)", setup.bridge.log)
    assert len(reasons) > 1
    assert len(set(reasons)) == len(reasons)
    assert "Traceback" not in setup.bridge.log


# -- commands -----------------------------------------------------------------------------------------------


async def test_a_control_command_brings_the_gateways_answer(setup: Setup) -> None:
    await setup.watcher.publish(setup.topic("cmd/exp_time/get"), {"id": "e1"})
    verb, sendid, password = (await setup.line.receive()).split(b" ")
    assert (verb, password) == (b"get_exp_time", b"password1")
    setup.line.send(b"get_exp_time %b 37" % sendid)
    result = (await setup.watcher.until(setup.topic("result/exp_time/get"))).json
    assert (result["id"], result["command"], result["data"]) == ("e1", "exp_time/get", {"value": 37})


async def test_what_the_gateway_confirmed_is_in_the_state_without_being_asked_for(setup: Setup) -> None:
    orders: list[tuple[str, dict[str, Any]]] = [
        ("exp_time/set", {"value": 90}),
        ("remain_time/reset", {}),
        ("number/set", {"value": "+49 1511"}),
        ("imei/set", {"value": "490154203237518"}),
        ("module/set", {"enable": False}),
    ]
    for path, payload in orders:
        await setup.watcher.publish(setup.topic(f"cmd/{path}"), payload)
        verb, sendid, *value, _password = (await setup.line.receive()).split(b" ")
        setup.line.send(b" ".join((verb, sendid, *value, b"ok") if verb != b"module_ctl_i" else (verb, sendid, b"ok")))
        assert (await setup.watcher.until(setup.topic(f"result/{path}"))).json["code"] == "ok"
    state = (await setup.watcher.until(setup.topic("state"), lambda seen: seen.json["enabled"] is False)).json
    assert state["limits"] == {"exp_time_min": 90, "remain_time_min": 90, "unlimited": False}
    assert (state["sim"]["number"], state["module"]["imei"]) == ("+491511", "490154203237518")


async def test_a_refusal_has_the_gateways_words(setup: Setup) -> None:
    await setup.watcher.publish(setup.topic("cmd/number/set"), {"value": "+49 151"})
    datagram = await setup.line.receive()
    sendid = datagram.split(b" ")[1]
    assert datagram == b"set_gsm_num %b +49151 password1" % sendid
    setup.line.send(b"ERROR %b +49151 bad value" % sendid)
    result = (await setup.watcher.until(setup.topic("result/number/set"))).json
    assert result["code"] == "gateway_refused"
    assert "bad value" in result["message"]


async def test_an_offline_line_answers_at_once_but_queues_sms(broker: Broker, tmp_path: Path) -> None:
    id, config = new_config(broker)
    async with watching(broker, f"goip/{id}/#", "goip/bridge/availability") as watcher, running(tmp_path, config):
        await watcher.until("goip/bridge/availability", lambda seen: not seen.retain and seen.payload == b"online")
        await watcher.publish(f"goip/{id}/cmd/module/reboot")
        assert (await watcher.until(f"goip/{id}/result/module/reboot")).json["code"] == "line_offline"
        await watcher.publish(f"goip/{id}/cmd/sms/0049151", "raw text")
        result = (await watcher.until(f"goip/{id}/result/sms")).json
        assert (result["code"], result["warnings"]) == ("ok", ["line_offline"])
        fact = (await watcher.until(f"goip/{id}/delivery")).json
        assert (fact["event_type"], fact["to"]) == ("queued", "+49151")


async def test_bad_commands_are_refused_with_place(setup: Setup) -> None:
    assert (await setup.command("sms", b"{"))["code"] == "invalid_json"
    bad = await setup.command("sms", {"id": "x", "to": ["+49151", "no"], "text": "a"})
    assert (bad["id"], bad["code"]) == ("x", "invalid_payload")
    assert "to[1]" in bad["message"]
    assert (await setup.command("sms", {"to": "1", "text": "x" * 3001}))["code"] == "too_large"
    assert (await setup.command("nonsense"))["code"] == "unknown_command"
    assert (await setup.command("sms", {"to": "@anna", "text": "x"}))["code"] == "invalid_payload"
    assert (await setup.command("ussd", {"code": "*100#", "expires_at": 5}))["code"] == "expired"
    await setup.line.register()
    assert setup.line.nothing_waits()
    assert not setup.watcher.on(setup.topic("delivery"))


async def test_the_same_id_returns_the_first_result(setup: Setup) -> None:
    first = await setup.command("sms", {"id": "same", "to": "1", "text": "a"})
    again = await setup.command("sms", b'{ "text":"a", "to":"1", "id":"same" }')
    assert not first["duplicate"]
    assert again["duplicate"]
    assert again["data"] == first["data"]
    other = await setup.command("sms", {"id": "same", "to": "1", "text": "b"})
    assert other["code"] == "invalid_payload"
    assert len([s for s in setup.watcher.on(setup.topic("delivery")) if s.json["event_type"] == "queued"]) == 1


@pytest.mark.broker("mqtt5")
async def test_response_topic_and_correlation_data_are_honoured(setup: Setup) -> None:
    properties = response_properties("goip/reply/me", b"\x00\xffraw")
    await setup.command("refresh", properties=properties)
    reply = await setup.watcher.until("goip/reply/me")
    assert bytes.fromhex(reply.properties["CorrelationData"]) == b"\x00\xffraw"
    assert reply.json["code"] == "ok"
    named = await setup.command("refresh", properties=response_properties("goip/reply/me", b"my-name"))
    assert named["id"] == "my-name"
    forbidden = await setup.command("refresh", properties=response_properties(setup.topic("cmd/module/reboot")))
    assert forbidden["warnings"] == ["response_topic_refused"]


@pytest.mark.broker("mqtt5")
async def test_payloads_carry_their_properties(setup: Setup) -> None:
    await setup.line.ask(setup.line.event("RECEIVE", "srcnum:1;msg:x"))
    fact = await setup.watcher.until(setup.topic("sms/in"))
    assert fact.properties["ContentType"] == "application/json"
    assert fact.properties["PayloadFormatIndicator"] == 1
    assert dict(map(tuple, fact.properties["UserProperty"])) == {"schema": "sms_in"}
    assert fact.properties["MessageExpiryInterval"] == 7 * 86400
    availability = await setup.watcher.until(setup.topic("availability"))
    assert availability.properties["ContentType"] == "text/plain"


@pytest.mark.broker("mqtt5")
async def test_a_retained_command_is_refused_and_removed(setup: Setup) -> None:
    await setup.watcher.publish(setup.topic("cmd/sms"), {"to": "1", "text": "x"}, retain=True)
    assert (await setup.watcher.until(setup.topic("result/sms"))).json["code"] == "retained_command"
    await setup.watcher.until(setup.topic("cmd/sms"), lambda seen: seen.payload == b"")
    event = await setup.watcher.until("goip/bridge/event", lambda seen: seen.json["topic"] == setup.topic("cmd/sms"))
    assert event.json["event_type"] == "retained_command"
    assert not setup.watcher.on(setup.topic("delivery"))


async def test_ussd_waits_for_its_turn_and_is_never_repeated(setup: Setup) -> None:
    await setup.watcher.publish(setup.topic("cmd/ussd"), {"id": "a", "code": "*100#"})
    await setup.watcher.publish(setup.topic("cmd/ussd"), {"id": "b", "code": "*101#", "timeout_s": 1})
    first = await setup.line.receive()
    sendid = first.split(b" ")[1]
    assert first == b"USSD %b password1 *100#" % sendid
    setup.line.send(b"USSD %b Balance 4.20\n1 Top up" % sendid)
    second = await setup.line.receive()
    assert second.endswith(b" *101#")
    assert int(second.split(b" ")[1]) > int(sendid)
    results = setup.topic("result/ussd")
    answered = (await setup.watcher.until(results, lambda seen: seen.json["id"] == "a")).json
    assert answered["data"] == {"text": "Balance 4.20\n1 Top up", "exit": False}
    silent = (await setup.watcher.until(results, lambda seen: seen.json["id"] == "b")).json
    assert (silent["code"], silent["retryable"]) == ("gateway_timeout", False)
    assert setup.line.nothing_waits()


# -- a broker or a disk that is not there --------------------------------------------------------------------


async def test_without_a_broker_sms_are_stored_and_delivered_later(tmp_path: Path, broker: Broker) -> None:
    id, config = new_config(broker)
    real = config["mqtt"]["url"]
    config["mqtt"]["url"] = f"mqtt://127.0.0.1:{free_port()}"
    async with running(tmp_path, config) as bridge, watching(broker, f"goip/{id}/#") as watcher:
        with raw_line(bridge.udp_port, id) as line:
            await line.register()
            for number in range(5):
                await line.ask(line.event("RECEIVE", f"srcnum:1;msg:{number}"))
            assert await bridge.stop() == 0
            bridge.config["mqtt"]["url"] = real
            await bridge.start()
            await watcher.until(f"goip/{id}/sms/in", count=5)
            facts = [seen.json for seen in watcher.on(f"goip/{id}/sms/in")]
            assert [fact["text"] for fact in facts] == list("01234")
            assert [fact["seq"] for fact in facts] == [1, 2, 3, 4, 5]


async def test_a_store_that_cannot_be_written_acknowledges_nothing_until_it_can(setup: Setup) -> None:
    line = setup.line
    await line.ask(line.event("RECEIVE", "srcnum:1;msg:before"))
    pid = setup.bridge.worker_pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    datagram = line.event("RECEIVE", "srcnum:1;msg:during")
    line.send(datagram)
    await setup.watcher.publish(setup.topic("cmd/sms"), {"id": "full", "to": "1", "text": "x"})
    await line.register()  # keepalives are still answered
    assert line.nothing_waits()
    assert len(setup.watcher.on(setup.topic("sms/in"))) <= 1
    assert not setup.watcher.on(setup.topic("result/sms"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    line.send(datagram)
    acknowledgements = [await line.receive()]
    assert acknowledgements[0].startswith(b"RECEIVE ")
    await setup.watcher.until(setup.topic("sms/in"), lambda seen: seen.json["text"] == "during")
    assert (await setup.watcher.until(setup.topic("result/sms"))).json["id"] == "full"
    await setup.bridge.logged("cannot write")
    await setup.bridge.logged("can be written again")
    assert len({seen.json["id"] for seen in setup.watcher.on(setup.topic("sms/in"))}) == 2


# -- restarts, reloads ---------------------------------------------------------------------------------------


async def test_a_long_absence_is_said(broker: Broker, tmp_path: Path) -> None:
    async with set_up(broker, tmp_path) as setup:
        assert await setup.bridge.stop() == 0
        with contextlib.closing(sqlite3.connect(tmp_path / "bridge.db")) as store, store:
            store.execute("UPDATE meta SET value = value - 3600 WHERE key = 'alive'")
        await setup.bridge.start()
        gap = (
            await setup.watcher.until("goip/bridge/event", lambda seen: seen.json["event_type"] == "outage_gap")
        ).json
        lasted = datetime.fromisoformat(gap["to"]) - datetime.fromisoformat(gap["from"])
        assert 3600 <= lasted.total_seconds() < 3700


async def test_an_sms_on_its_way_at_a_crash_is_unknown_and_settled_by_its_late_answer(
    broker: Broker, tmp_path: Path
) -> None:
    async with set_up(broker, tmp_path, timing={"wait_s": 2}) as setup:
        sendid = await submit(setup, "crash")
        await setup.bridge.kill()
        await setup.bridge.start()
        deliveries = setup.topic("delivery")
        unknown = await setup.watcher.until(deliveries, lambda seen: seen.json["event_type"] == "unknown")
        assert unknown.json["evidence"] == "restart"
        await setup.line.register()
        setup.line.send(b"OK %b 1 7" % sendid)
        sent = await setup.watcher.until(deliveries, lambda seen: seen.json["event_type"] == "sent")
        assert (sent.json["msg"], sent.json["sms_no"]) == (unknown.json["msg"], 7)


async def test_what_was_given_back_and_went_out_all_the_same_is_not_sent_again_after_a_crash(
    broker: Broker, tmp_path: Path
) -> None:
    async with set_up(broker, tmp_path, timing={"resend_s": 0.5}) as setup:
        line, deliveries = setup.line, setup.topic("delivery")
        sendid = await submit(setup, "denied")
        assert await line.ask(b"ERROR %b SENDID" % sendid) == b"DONE %b\n" % sendid
        again = await setup.watcher.until(deliveries, lambda seen: seen.json["event_type"] == "queued", count=2)
        await setup.bridge.kill()
        await setup.bridge.start()
        while not (msg := await line.receive()).startswith(b"MSG "):
            pass  # DONE, once more
        new = msg.split()[1]
        line.send(b"OK %b 1 7" % sendid)
        while (said := await line.receive()) != b"DONE %b\n" % new:
            assert said == msg, "a repeated MSG, but no SEND"
        sent = await setup.watcher.until(deliveries, lambda seen: seen.json["event_type"] == "sent")
        assert (sent.json["msg"], sent.json["sms_no"]) == (again.json["msg"], 7)


async def test_an_answer_after_a_crash_leaves_no_doubt(broker: Broker, tmp_path: Path) -> None:
    async with set_up(broker, tmp_path) as setup:
        sendid = await submit(setup, "crash")
        await setup.bridge.kill()
        await setup.bridge.start()
        await setup.line.register()
        setup.line.send(b"OK %b 1 7" % sendid)
        await setup.watcher.until(setup.topic("delivery"), lambda seen: seen.json["event_type"] == "sent")
        # What was not yet acknowledged at the crash is published again, with the same id.
        told = {seen.json["id"]: seen.json["event_type"] for seen in setup.watcher.on(setup.topic("delivery"))}
        assert list(told.values()) == ["queued", "sending", "sent"]


async def test_after_a_crash_a_safe_line_is_asked_and_an_unproved_one_is_not(broker: Broker, tmp_path: Path) -> None:
    async with set_up(broker, tmp_path, timing={"resend_s": 0.5}) as setup:
        config = setup.bridge.config
        for safety in ("unsafe", "safe"):
            config["lines"][setup.id]["repeat_safety"] = safety
            (setup.bridge.directory / "config.yaml").write_text(yaml.safe_dump(config))
            await setup.watcher.publish("goip/bridge/cmd/reload", {"id": f"{safety}-{setup.id}"})
            await setup.watcher.until("goip/bridge/result/reload", lambda seen, id=safety: id in seen.json["id"])
            sendid = await submit(setup, safety)
            setup.line.send(b"WAIT %b 1\n" % sendid)
            await setup.line.register()  # answered after the WAIT was taken
            await setup.bridge.kill()
            await setup.bridge.start()
            if safety == "unsafe":
                await setup.line.register()
                setup.line.send(b"OK %b 1 7" % sendid)
                assert await setup.line.receive() == b"DONE %b\n" % sendid, "and not another SEND"
            else:
                assert await setup.line.receive() == b"SEND %b 1 49151\n" % sendid
                assert await setup.line.ask(b"OK %b 1 8" % sendid) == b"DONE %b\n" % sendid
                setup.line.send(b"DONE %b\n" % sendid)
        await setup.watcher.until(setup.topic("delivery"), lambda seen: seen.json["sms_no"] == 8)
        told = {seen.json["event_type"] for seen in setup.watcher.on(setup.topic("delivery"))}
        assert told == {"queued", "sending", "sent"}


async def test_a_restored_store_is_doubted_and_holds_its_lines(broker: Broker, tmp_path: Path) -> None:
    id, config = new_config(broker, timing={"restored_hold_s": 3.0})
    names = ("bridge.db", "bridge.db-wal")
    async with watching(broker, "goip/#") as watcher, running(tmp_path, config) as bridge:
        with raw_line(bridge.udp_port, id) as line:
            setup = Setup(bridge, line, watcher)
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
            assert (await setup.command("sms", {"to": "49151", "text": "alarm"}))["warnings"] == ["line_offline"]
            await bridge.stop()
            backup = {name: path.read_bytes() for name in names if (path := tmp_path / name).exists()}
            await bridge.start()
            await line.register()
            sendid = (await line.receive()).split(b" ")[1]
            await line.ask(b"PASSWORD %b" % sendid)
            await line.ask(b"SEND %b" % sendid)
            assert await line.ask(b"OK %b 1 7" % sendid) == b"DONE %b\n" % sendid
            line.send(b"DONE %b\n" % sendid)
            await watcher.until(setup.topic("delivery"), lambda seen: seen.json["event_type"] == "sent")
            await bridge.stop()

            for name in names:  # yesterday's backup is put back
                (tmp_path / name).unlink(missing_ok=True)
            for name, content in backup.items():
                (tmp_path / name).write_bytes(content)
            await bridge.start()
            await line.register()
            doubt = await watcher.until(setup.topic("delivery"), lambda seen: seen.json["event_type"] == "unknown")
            assert (doubt.json["to"], doubt.json["evidence"]) == ("49151", "restored")
            await watcher.until("goip/bridge/event", lambda seen: seen.json["event_type"] == "store_restored")
            await setup.command("sms", {"to": "49152", "text": "new"})
            held = time.monotonic()
            assert (await line.receive()).endswith(b" 3 new\n"), "the old one is not sent again"
            assert time.monotonic() - held > 0.5
            assert line.nothing_waits()
            await bridge.stop()
            await bridge.start()
            await bridge.logged("listening")
            assert bridge.log.count("was restored") == 1, "from now on it is the newest one"


async def submit(setup: Setup, text: str) -> bytes:
    """Have one SMS submitted, up to its SEND; the sendid."""
    await setup.command("sms", {"to": "49151", "text": text})
    sendid = (await setup.line.receive()).split(b" ")[1]
    await setup.line.ask(b"PASSWORD %b" % sendid)
    assert await setup.line.ask(b"SEND %b" % sendid) == b"SEND %b 1 49151\n" % sendid
    return sendid


async def test_reload_adds_and_removes_lines(setup: Setup) -> None:
    added = f"{setup.id}-more"
    config = setup.bridge.config
    config["lines"] = {added: {"password": "password1"}}
    (setup.bridge.directory / "config.yaml").write_text(yaml.safe_dump(config))
    await setup.watcher.publish("goip/bridge/cmd/reload", {"id": f"reload-{setup.id}"})
    await setup.watcher.until(
        "goip/bridge/result/reload", lambda seen: seen.json["id"] == f"reload-{setup.id}" and seen.json["code"] == "ok"
    )
    await setup.watcher.until(setup.topic("state"), lambda seen: seen.payload == b"")
    await setup.watcher.until(setup.topic("availability"), lambda seen: seen.payload == b"")
    with raw_line(setup.bridge.udp_port, added) as line:
        await line.register()
    await setup.watcher.until(f"goip/{added}/availability", lambda seen: seen.payload == b"online")


async def test_a_reload_of_a_bad_file_changes_nothing(setup: Setup) -> None:
    (setup.bridge.directory / "config.yaml").write_text("lines: {x: {}}")
    await setup.watcher.publish("goip/bridge/cmd/reload", {"id": f"bad-{setup.id}"})
    result = await setup.watcher.until("goip/bridge/result/reload", lambda seen: seen.json["id"] == f"bad-{setup.id}")
    assert result.json["status"] == "error"
    assert "lines.x" in result.json["message"]
    await setup.line.register()


# -- the process --------------------------------------------------------------------------------------------


async def test_sigterm_says_offline_and_exits_0(broker: Broker, tmp_path: Path) -> None:
    async with set_up(broker, tmp_path) as setup:
        online = len(setup.watcher.on("goip/bridge/availability"))
        assert await setup.bridge.stop() == 0
        last = await setup.watcher.until("goip/bridge/availability", count=online + 1)
        assert last.payload == b"offline"


async def test_a_port_in_use_is_one_line_and_exit_1(setup: Setup, tmp_path: Path) -> None:
    _, config = new_config(
        None, mqtt={"url": "mqtt://127.0.0.1:9"}, udp={"listen": setup.bridge.config["udp"]["listen"]}
    )
    (tmp_path / "second").mkdir()
    second = BridgeProcess(tmp_path / "second", config)
    await second.start()
    assert await second.ended() == 1
    assert "cannot listen on udp" in second.log
    assert "Traceback" not in second.log


async def test_two_bridges_cannot_share_a_store(setup: Setup) -> None:
    _, config = new_config(None, mqtt={"url": "mqtt://127.0.0.1:9"})
    config["store"]["path"] = str(setup.bridge.directory / "bridge.db")
    other = setup.bridge.directory / "other"
    other.mkdir()
    second = BridgeProcess(other, config)
    await second.start()
    assert await second.ended() == 1
    assert "bridge.db" in second.log
    assert "Traceback" not in second.log


async def test_a_bad_configuration_is_one_line_for_each_fault_and_exit_2(tmp_path: Path) -> None:
    _, config = new_config(None, timing={"wait_s": "soon"})
    config["lines"]["job"] = {"pasword": "x"}
    bridge = BridgeProcess(tmp_path, config)
    await bridge.start()
    assert await bridge.ended() == 2
    lines = bridge.log.splitlines()
    assert any("timing.wait_s" in line for line in lines)
    assert any("pasword" in line and "password" in line for line in lines)
    assert all(line.startswith("config.yaml:") for line in lines)


async def test_passwords_are_never_logged_or_published(broker: Broker, tmp_path: Path) -> None:
    id, config = new_config(broker)
    config["lines"][id]["password"] = "hunter2-secret"
    async with watching(broker, "goip/#") as watcher, running(tmp_path, config) as bridge:
        with raw_line(bridge.udp_port, id, "hunter2-secret") as line:
            await line.register()
            line.send(line.event("WEIRD", "pass:hunter2-secret;a:b"))
            await watcher.until(f"goip/{id}/event")
            await watcher.publish(f"goip/{id}/cmd/number/get")
            await line.receive()
            await watcher.until(f"goip/{id}/state")
        assert all(b"hunter2" not in seen.payload for seen in watcher.seen)
    assert "hunter2" not in bridge.log


async def test_an_ipv4_gateway_is_itself_on_an_ipv6_socket(broker: Broker, tmp_path: Path) -> None:
    """`listen` may change from one family to the other: nobody moved, and answers reach the gateway."""
    async with set_up(broker, tmp_path) as setup:
        here = "{}:{}".format(*setup.line.socket.getsockname())
        setup.bridge.config["udp"] = {"listen": f"[::]:{setup.bridge.udp_port}"}
        await setup.bridge.stop()
        await setup.bridge.start()
        await setup.line.register()
        text = setup.line.event("RECEIVE", "srcnum:+4915112345678;msg:hi", 1_700_000_001)
        assert (await setup.line.ask(text)).startswith(b"RECEIVE 1700000001 OK")
        lines = await setup.watcher.until(
            "goip/bridge/lines", lambda seen: f'"address":"{here}"' in seen.payload.decode()
        )
        assert b"ffff" not in lines.payload
        await setup.watcher.until(setup.topic("sms/in"))
        assert [seen.json for seen in setup.watcher.on(setup.topic("state")) if seen.json["address"] != here] == []
        events = [
            seen.json["event_type"] for seen in setup.watcher.on("goip/bridge/event") if setup.id in str(seen.json)
        ]
        assert "line_moved" not in events


async def test_a_command_topic_without_a_command_is_answered(setup: Setup) -> None:
    for topic in (setup.topic("cmd"), setup.topic("cmd/")):
        before = len(setup.watcher.on(setup.topic("result")))
        await setup.watcher.publish(topic, {"id": "door-1", "to": "+49", "text": "hi"})
        result = (await setup.watcher.until(setup.topic("result"), count=before + 1)).json
        assert (result["id"], result["code"], result["command"]) == ("door-1", "unknown_command", "")
        assert result["message"] == "the topic ends at cmd and names no command; add one, such as cmd/sms"
    await setup.watcher.publish("goip/bridge/cmd", b"")
    result = (await setup.watcher.until("goip/bridge/result")).json
    assert "add one, such as cmd/ping" in result["message"]


async def test_what_people_write_is_understood_or_hinted_at(setup: Setup) -> None:
    result = await setup.command("sms", {"number": "+491511", "message": "hi"})
    assert "number: unknown field; did you mean to?" in result["message"]
    assert "message: unknown field; did you mean text?" in result["message"]
    result = await setup.command("sms/00491511", {"to": "+491511", "text": "hi"})
    assert (result["code"], result["warnings"]) == ("ok", ["text_is_json"])
    await setup.line.receive()  # MSG
    await setup.watcher.publish(setup.topic("cmd/ussd"), b"*100#\n")
    while not (datagram := await setup.line.receive()).startswith(b"USSD "):
        pass
    assert datagram.endswith(b" password1 *100#")
    upper = setup.id.upper()
    await setup.watcher.publish(f"goip/{upper}/cmd/refresh")
    result = (await setup.watcher.until(f"goip/{upper}/result/refresh")).json
    assert result["message"] == f"there is no line {upper} in the configuration; did you mean {setup.id}?"
