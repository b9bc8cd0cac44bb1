"""Each flow of examples/node-red, imported as it is, in a real Node-RED: an SMS there and back."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from flow_world import World, all_flows

from harness import watching

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.broker("binary")]
ANNA = "+4915112345678"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World(tmp_path_factory.mktemp("world"), node_modules) as running:
        await running.red.deploy(all_flows())
        await running.subscribed("goip/+/sms/in")
        yield running


# -- in Node-RED ----------------------------------------------------------------------------------------------------


async def test_an_sms_reaches_the_branch_of_its_sender(world: World) -> None:
    world.type(f'sms goip1 {ANNA} "Open the gate"')
    world.type(f'sms goip2 {ANNA} "opening hours?"')
    world.type('sms goip1 +4930123456 "From Berlin"')
    world.type('sms goip1 Bank "Your code is 1234"')
    for branch, line, sender, text in (
        ("Anna: open", "goip1", ANNA, "Open the gate"),
        ("Anna: another text", "goip2", ANNA, "opening hours?"),
        ("From Germany", "goip1", "+4930123456", "From Berlin"),
        ("From anybody else", "goip1", "Bank", "Your code is 1234"),
    ):
        message = await world.red.until("GoIP receive", branch)
        assert (message["line"], message["sender"], message["payload"]) == (line, sender, text)
    assert len([shown for shown in world.red.shown if shown.tab == "GoIP receive"]) == 4


async def test_a_fact_that_is_told_again_is_taken_once(world: World) -> None:
    async with watching(world.broker, "goip/goip1/sms/in") as watcher:
        world.type('sms goip1 Repeated "only once"')
        fact = await watcher.until("goip/goip1/sms/in", lambda seen: seen.json["from"] == "Repeated")
        await watcher.publish("goip/goip1/sms/in", fact.payload)
        await watcher.publish("goip/goip1/sms/in", fact.json | {"id": "another", "text": "the next"})
    texts = [(await world.red.until("GoIP receive", "From anybody else", from_repeated, n))["payload"] for n in (1, 2)]
    assert texts == ["only once", "the next"]


def from_repeated(message: dict[str, Any]) -> bool:
    return bool(message["sender"] == "Repeated")


async def test_an_sms_is_sent_and_its_result_and_delivery_arrive(world: World) -> None:
    await world.red.press("GoIP send", "Send an SMS")
    result = await world.red.until("GoIP send", "Result: the bridge has it")
    assert (result["code"], result["duplicate"]) == ("ok", False)
    delivered = await world.red.until("GoIP send", "Delivered")
    assert (delivered["cmd"], delivered["to"]) == (result["id"], ANNA)
    steps = [fact["event_type"] for fact in world.red.on("GoIP send", "On its way: queued, sending, sent")]
    assert steps == ["queued", "sending", "sent"]

    await world.red.press("GoIP send", "The same again")
    again = await world.red.until("GoIP send", "Result: the bridge has it", count=2)
    assert (again["id"], again["duplicate"]) == (result["id"], True)
    assert await world.sent("Hello from Node-RED") == [("goip1", ANNA)]


async def test_a_refused_command_says_why(world: World) -> None:
    await world.red.deploy(all_flows(), {"GoIP send": {"TO": "Anna"}})
    await world.red.press("GoIP send", "Send an SMS")
    result = await world.red.until("GoIP send", "Result: refused")
    assert (result["code"], result["message"].partition(":")[0]) == ("invalid_payload", "to")


async def test_ten_rows_go_out_once_each_with_progress_and_a_report(world: World) -> None:
    await world.red.deploy(all_flows(), {"GoIP bulk": {"LINE": "goip2"}})
    await world.red.press("GoIP bulk", "Send to all rows")
    await world.red.press("GoIP bulk", "Send to all rows")
    results = [await world.red.until("GoIP bulk", "Result: all rows queued", count=count) for count in (1, 2)]
    assert [result["duplicate"] for result in results] == [False, True]
    end = await world.red.until("GoIP bulk", "Progress", lambda job: job["state"] == "done" and job["delivered"] == 10)
    assert (end["done"], end["total"], end["percent"]) == (10, 10, 100)
    done = [progress["done"] for progress in world.red.on("GoIP bulk", "Progress")]
    assert done == sorted(done)
    assert done[0] < 10

    sent = [one for one in world.radio() if "meeting" in one["text"]]
    assert Counter(one["to"] for one in sent) == {f"+4915112345{n}": 1 for n in range(670, 680)}
    assert {one["to"]: one["text"] for one in sent}["+4915112345671"] == "Hello Ben, the meeting is on Friday at 10."

    await world.red.press("GoIP bulk", "Report")
    head, *rows = (await world.red.until("GoIP bulk", "Report as CSV")).split()
    assert head == "number,outcome,at,error"
    assert sorted(row.split(",")[:2] for row in rows) == [[f"+4915112345{n}", "delivered"] for n in range(670, 680)]


async def test_the_balance_is_read_from_the_reply(world: World) -> None:
    await world.red.press("GoIP balance", "Every morning at 8")
    low = await world.red.until("GoIP balance", "Balance is low")
    assert low == {"line": "goip1", "balance": 4.2, "text": "Balance 4.20 EUR, valid until 31.12."}
    await world.red.deploy(all_flows(), {"GoIP balance": {"LOW": "4"}})
    await world.red.press("GoIP balance", "Every morning at 8")
    assert (await world.red.until("GoIP balance", "Balance"))["balance"] == 4.2
    await world.red.deploy(all_flows(), {"GoIP balance": {"CODE": "*101#"}})
    await world.red.press("GoIP balance", "Every morning at 8")
    assert "Tariff" in await world.red.until("GoIP balance", "A reply without a number")
    await world.red.deploy(all_flows(), {"GoIP balance": {"CODE": "*198#"}})
    await world.red.press("GoIP balance", "Every morning at 8")
    assert (await world.red.until("GoIP balance", "No answer"))["code"] == "gateway_refused"


async def test_the_subflow_gives_result_and_delivery(world: World) -> None:
    await world.red.press("GoIP send SMS", "Send an SMS")
    assert (await world.red.until("GoIP send SMS", "Result"))["code"] == "ok"
    fact = await world.red.until("GoIP send SMS", "Delivery", lambda fact: fact["event_type"] == "delivered")
    assert fact["to"] == ANNA
    assert await world.sent("Hello from the subflow") == [("goip1", ANNA)]


# -- the alarm ------------------------------------------------------------------------------------------------------


class Alarm:
    """The alarm flow with these settings, and what it did about one alarm."""

    count = 0

    def __init__(self, world: World, **settings: str) -> None:
        Alarm.count += 1
        self.world, self.settings = world, settings
        self.text = f"ALARM {Alarm.count}"

    async def press(self) -> None:
        nodes = all_flows()
        (button,) = (node for node in nodes if node["type"] == "inject" and node["name"] == "Alarm")
        button["payload"] = self.text
        await self.world.red.deploy(nodes, {"GoIP alarm": self.settings})
        await self.world.red.press("GoIP alarm", "Alarm")

    async def told(self, node: str) -> Any:
        return await self.world.red.until("GoIP alarm", node, lambda payload: payload["text"] == self.text)

    async def delivered_by_the_second_line(self) -> None:
        alarm = (await self.told("Falling back"))["alarm"]
        delivery = "Second line: delivery"
        await self.world.red.until(
            "GoIP alarm", delivery, lambda fact: (fact["cmd"], fact["event_type"]) == (f"{alarm}-2", "delivered")
        )


async def test_an_alarm_goes_out_on_the_first_line_alone(world: World) -> None:
    alarm = Alarm(world)
    await alarm.press()
    assert (await alarm.told("Sent on the first line"))["why"] == "sent"
    assert await world.sent(alarm.text) == [("goip1", ANNA)]


async def test_an_alarm_goes_to_the_second_line_at_once_when_the_first_is_offline(world: World) -> None:
    alarm = Alarm(world, FIRST="goip3", WAIT_S="2")
    await alarm.press()
    assert (await alarm.told("Falling back"))["why"] == "line_offline"
    await alarm.delivered_by_the_second_line()
    assert await world.sent(alarm.text) == [("goip2", ANNA)]


async def test_an_alarm_goes_to_the_second_line_when_the_first_fails(world: World) -> None:
    world.type("fail goip1 28")
    alarm = Alarm(world)
    await alarm.press()
    assert (await alarm.told("Falling back"))["why"] == "failed"
    await alarm.delivered_by_the_second_line()
    assert await world.sent(alarm.text) == [("goip1", ANNA), ("goip2", ANNA)]
    assert [one["result"] for one in world.radio(text=alarm.text)] == ["error", "ok"]


@pytest.mark.parametrize(("choice", "lines"), [("send", ["goip1", "goip2"]), ("stop", ["goip1"])])
async def test_an_alarm_that_may_have_gone_out_is_the_users_choice(world: World, choice: str, lines: list[str]) -> None:
    world.type("fail goip1 38")  # a cause after which the SMS may still have gone out
    alarm = Alarm(world, IF_UNKNOWN=choice, WAIT_S="2")
    await alarm.press()
    assert (await alarm.told("May have been sent"))["why"] == "failed"
    if choice == "send":
        await alarm.delivered_by_the_second_line()
    else:  # the next alarm is through, with a result of its own: nothing of this one waits any more
        following = Alarm(world)
        await following.press()
        await following.told("Sent on the first line")
    assert [line for line, _ in await world.sent(alarm.text)] == lines


async def test_an_alarm_that_waits_too_long_expires_and_goes_to_the_second_line(world: World) -> None:
    alarm = Alarm(world, WAIT_S="2")
    async with watching(world.broker, "goip/goip1/state") as watcher:
        world.type("logout goip1")
        await watcher.until("goip/goip1/state", lambda seen: seen.json["gsm"]["registered"] is False)
        await alarm.press()
        assert (await alarm.told("Falling back"))["why"] in ("expired", "line_offline")
        await alarm.delivered_by_the_second_line()
        world.type("login goip1")
        await watcher.until("goip/goip1/state", lambda seen: seen.json["gsm"]["registered"] is True, count=2)
        following = {"to": ANNA, "text": f"after {alarm.text}"}  # behind it, if it were still queued
        await watcher.publish("goip/goip1/cmd/sms", following)
    await world.sent(following["text"])
    assert await world.sent(alarm.text) == [("goip2", ANNA)]


# -- when something is down -----------------------------------------------------------------------------------------


async def test_a_command_without_a_broker_is_published_again_and_sent_once(world: World) -> None:
    nodes = all_flows()
    for node in nodes:
        if node["type"] == "inject" and node["name"] == "Send an SMS":
            node["payload"] = "without a broker"
        if node["type"] == "delay" and node["name"] == "10 s later":
            node["timeout"] = "2"
    await world.red.deploy(nodes)
    world.mosquitto.kill()
    await world.red.logged("Disconnected from broker", since="Starting flows")
    for tab in ("GoIP send", "GoIP send SMS"):
        await world.red.press(tab, "Send an SMS")
    world.mosquitto.start()
    await world.red.until("GoIP send", "Delivered", lambda fact: fact["to"] == ANNA, count=2)
    assert await world.sent("without a broker") == [("goip1", ANNA)] * 2


async def test_an_sms_that_comes_while_node_red_is_down_is_not_lost(world: World) -> None:
    nodes = all_flows()
    for node in nodes:
        if node["type"] == "debug":
            node["console"] = True  # nobody listens to the sidebar so early
    await world.red.deploy(nodes)
    await world.red.stop()
    async with watching(world.broker, "goip/goip1/sms/in") as watcher:
        world.type('sms goip1 Late "while you were away"')
        await watcher.until("goip/goip1/sms/in", lambda seen: seen.json["from"] == "Late")
    await world.red.start()
    await world.red.logged("payload: 'while you were away'")
    assert "[error]" not in world.red.log
