"""What the log says at INFO of SMS, commands and lines: enough to follow them; no number, no text, no password."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge.contract import commands
from bridge.features.admission import _without_values
from harness import BridgeProcess, RawLine, Watcher, as_broker, bridge_config, own_broker, raw_line, running, watching

NUMBER, OTHER = "4915112345678", "4915199999999"
TEXT = "Confidential-Words"


class Rig:
    """A bridge with one line, and everything that it says."""

    def __init__(self, bridge: BridgeProcess, line: RawLine, watcher: Watcher) -> None:
        self.bridge, self.line, self.watcher = bridge, line, watcher

    async def send(self, **more: Any) -> str:
        """Have an SMS accepted; the id of its SMS."""
        count = len(self.watcher.on("log/l1/result/sms")) + 1
        await self.watcher.publish("log/l1/cmd/sms", {"to": f"+{NUMBER}", "text": TEXT} | more)
        result = (await self.watcher.until("log/l1/result/sms", count=count)).json
        return str(result["data"]["msgs"][0]["msg"])

    async def submit(self) -> int:
        """Up to the SEND of the SMS that was accepted; the sendid."""
        sendid = int((await self.line.receive()).split()[1])
        await self.line.ask(f"PASSWORD {sendid}\n")
        assert (await self.line.ask(f"SEND {sendid}\n")).startswith(b"SEND ")
        return sendid

    async def end(self, sendid: int) -> None:
        assert await self.line.receive() == f"DONE {sendid}\n".encode()
        self.line.send(f"DONE {sendid}\n")

    def told_of(self, msg: str) -> list[str]:
        """What the log said of one SMS, without times."""
        return re.findall(rf"^\S+ \S+ (.*\b{re.escape(msg)}\b.*)$", self.bridge.log, re.MULTILINE)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    lines = {"l1": {"password": "password1"}, "l2": {"password": "password2"}}
    async with (
        own_broker(tmp_path / "broker") as mosquitto,
        watching(as_broker(mosquitto), "log/#") as watcher,
        running(tmp_path, bridge_config(as_broker(mosquitto), "log", lines)) as bridge,
    ):
        with raw_line(bridge.udp_port, "l1") as line:
            await line.register()
            await watcher.until("log/bridge/availability", lambda seen: seen.payload == b"online")
            yield Rig(bridge, line, watcher)
        await bridge.stop()
        for secret in (NUMBER, OTHER, NUMBER[2:], TEXT, "password1", "password2"):
            assert secret not in bridge.log


@pytest.mark.broker("binary")
async def test_an_sms_is_followed_from_the_command_to_the_report(rig: Rig) -> None:
    msg = await rig.send()
    sendid = await rig.submit()
    rig.line.send(f"OK {sendid} 1 7\n")
    await rig.end(sendid)
    await rig.line.ask(rig.line.event("DELIVER", f"sms_no:7;state:0;num:{NUMBER}"))
    await rig.bridge.logged(f"SMS {msg} delivered")
    assert rig.told_of(msg) == [
        f"INFO    l1: queued 1 SMS, {msg}", f"INFO    l1: SMS {msg} sent", f"INFO    l1: SMS {msg} delivered"
    ]  # fmt: skip
    await rig.line.ask(rig.line.event("RECEIVE", f"srcnum:+{OTHER};msg:{TEXT}"))
    await rig.bridge.logged(f"INFO    l1: SMS received, {len(TEXT)} characters")


@pytest.mark.broker("binary")
async def test_a_failure_is_told_with_its_cause_in_words(rig: Rig) -> None:
    msg = await rig.send()
    sendid = await rig.submit()
    rig.line.send(f"ERROR {sendid} 1 errorstatus:38\n")
    await rig.end(sendid)
    await rig.bridge.logged(f"l1: SMS {msg} failed: 38, network out of order; it may have gone out all the same\n")
    fact = (await rig.watcher.until("log/l1/delivery", lambda seen: seen.json["event_type"] == "failed")).json
    assert (fact["error"]["cause"], fact["error"]["meaning"]) == ("network_out_of_order", "network out of order")


@pytest.mark.broker("binary")
async def test_words_of_a_gateway_are_not_in_the_log(rig: Rig) -> None:
    msg = await rig.send()
    sendid = await rig.submit()
    rig.line.send(f"ERROR {sendid} 1 {TEXT} to {NUMBER} not sent\n")
    await rig.end(sendid)
    fact = (await rig.watcher.until("log/l1/delivery", lambda seen: seen.json["event_type"] == "failed")).json
    assert fact["error"]["text"] == f"{TEXT} to {NUMBER} not sent"
    await rig.bridge.logged(f"l1: SMS {msg} failed, with words of the gateway: they are in error.text of its fact")
    again = await rig.send(to=f"+{OTHER}")
    sendid = int((await rig.line.receive()).split()[1])
    rig.line.send(f"ERROR {sendid} {TEXT} {NUMBER}\n")
    await rig.bridge.logged(f"l1: SMS {again} is queued again, with words of the gateway")


@pytest.mark.broker("binary")
async def test_an_sms_that_is_given_back_is_told_with_the_gateways_word(rig: Rig) -> None:
    msg = await rig.send()
    sendid = int((await rig.line.receive()).split()[1])
    rig.line.send(f"ERROR {sendid} GSM_LOGOUT\n")
    await rig.bridge.logged(f"l1: SMS {msg} is queued again: GSM_LOGOUT\n")


@pytest.mark.broker("binary")
async def test_a_command_that_waits_for_an_offline_line_and_a_job_are_told(rig: Rig) -> None:
    await rig.watcher.publish("log/l2/cmd/sms", {"to": [NUMBER, OTHER], "text": TEXT})
    result = (await rig.watcher.until("log/l2/result/sms")).json
    job = result["data"]["job"]
    await rig.bridge.logged(f"INFO    l2: queued 2 SMS, job {job}; the line is offline, so it waits\n")


@pytest.mark.broker("binary")
async def test_a_refused_command_is_told_without_what_the_caller_made_up(rig: Rig) -> None:
    refused = {
        "l1/cmd/sms": "{no json",
        f"{NUMBER}/cmd/sms": {"to": NUMBER, "text": TEXT},
        f"l1/cmd/{TEXT}": "",
        f"l1/cmd/sms/{NUMBER}": "",
        "l1/cmd/ussd": {"code": f"{NUMBER} {TEXT}", TEXT + " " + NUMBER: 1},
        "l1/cmd/number/set": {"value": "+49", NUMBER: NUMBER},
        "l2/cmd/info/get": "",
        "bridge/cmd/ping": {f"to {NUMBER}": 1},
    }
    for topic, payload in refused.items():
        await rig.watcher.publish(f"log/{topic}", payload)
    for line in (
        "INFO    l1: command sms refused: invalid_json: line 1 column 2: ",
        "INFO    a line that is not configured: command sms refused: unknown_line\n",
        "INFO    l1: a command refused: unknown_command: unknown command",
        "INFO    l1: command sms refused: invalid_payload: text: ",
        "INFO    l1: command ussd refused: invalid_payload: ",
        "INFO    l1: command number/set refused: invalid_payload: ",
        "INFO    l2: command info/get refused: line_offline: line l2 is offline\n",
        "INFO    bridge: command ping refused: invalid_payload: ",
    ):
        await rig.bridge.logged(line)


@pytest.mark.broker("binary")
async def test_a_flood_of_refused_commands_is_a_few_lines(rig: Rig) -> None:
    for n in range(300):
        await rig.watcher.client.publish("log/l1/cmd/sms", f"{{{n} no json", qos=1)
        await rig.watcher.client.publish("log/l1/cmd/ussd", f'{{"x{n}": 1}}', qos=1)
    await rig.watcher.until("log/l1/result/ussd", count=300)
    assert rig.bridge.log.count("command sms refused") == 1
    assert rig.bridge.log.count(" refused: ") <= 60


@pytest.mark.broker("binary")
async def test_what_a_gateway_refuses_is_told_without_its_words(rig: Rig) -> None:
    await rig.watcher.publish("log/l1/cmd/exp_time/set", {"value": 5})
    sendid = (await rig.line.receive()).split()[1].decode()
    rig.line.send(f"ERROR {sendid} {TEXT} {NUMBER}\n")
    await rig.bridge.logged("INFO    l1: command exp_time/set failed: gateway_refused\n")


@pytest.mark.broker("binary")
async def test_waiting_to_become_active_and_stopping_are_told(tmp_path: Path) -> None:
    other = {"instance": "other", "started_at": "2026-01-01T00:00:00.000Z", "serving_since": "2026-01-01T00:00:00.000Z"}
    async with own_broker(tmp_path / "broker") as mosquitto:
        broker = as_broker(mosquitto)
        async with watching(broker) as watcher:
            await watcher.publish("log/bridge/info", other, retain=True)
        async with running(tmp_path, bridge_config(broker, "log")) as bridge:
            await bridge.logged(
                "INFO    waiting to become active on log: another bridge was there before, and has 5 s to"
            )
            await bridge.logged("this bridge serves log now\n")
            await bridge.stop()
            assert bridge.log.index("stopping\n") < bridge.log.index("stopped\n")


@pytest.mark.broker("binary")
async def test_a_bridge_that_is_alone_says_once_that_it_serves(rig: Rig) -> None:
    assert rig.bridge.log.count("INFO    this bridge serves log now\n") == 1
    assert "waiting to become active" not in rig.bridge.log


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        ("to[1]: is not a phone number", "to[1]: is not a phone number"),
        ("line 1 column 2: Expecting value", "line 1 column 2: Expecting value"),
        (f"the payload is larger than {commands.MAX_PAYLOAD_BYTES} bytes", None),
        (f"to: more than {commands.MAX_RECIPIENTS} recipients, with the members of groups", None),
        (f"{NUMBER}: unknown field", "…: unknown field"),
        ('the key "say \\"hi\\" to anna" occurs twice', 'the key "…" occurs twice'),
        ('"a b": unknown field; value."c d": unknown field', '"…": unknown field; value."…": unknown field'),
    ],
)
def test_a_refusal_keeps_its_places_and_loses_its_values(message: str, logged: str | None) -> None:
    assert _without_values(message) == (logged or message)
