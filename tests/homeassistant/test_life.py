"""What changes over time: names, lines, deleted devices, restarts of all three, and a broker that forgets."""

import json
import socket
from typing import Any

import pytest
from conftest import CONTACTS, Complaints, Home, Make, connect, settled
from homeassistant.core import HomeAssistant
from homeassistant.helpers import entity_registry as er
from homeassistant.setup import async_setup_component
from pytest_homeassistant_custom_component.common import async_test_home_assistant
from world import World, until

LINE1, LINE2 = "goip_home_goip1", "goip_home_goip2"
SIGNAL = f"sensor.{LINE1}_signal"
CLEANUP = "No device components to cleanup for goip_home_"
"""What Home Assistant says to itself when a device goes: it empties the topic once more for each entity that was
disabled or deleted."""


async def started(hass: HomeAssistant, world: World, *, birth: bool = False) -> Home:
    home = await connect(hass, world.broker.port, birth=birth)
    await settled(home, world)
    return home


def is_number(state: str | None) -> bool:
    return state is not None and state.lstrip("-").isdecimal()


# -- configuration --------------------------------------------------------------------------------------------------


async def test_a_new_name_changes_the_device_and_no_entity_id(hass: HomeAssistant, make: Make) -> None:
    world = make()
    home = await started(hass, world)
    before = {entity.unique_id: entity.entity_id for entity in home.entities().values()}
    for name in ("Gate", 'Gate "große" {{ 6 * 7 }} 🚪'):
        world.config["lines"]["goip1"]["name"] = name
        world.reload()
        await until(lambda name=name: home.device(LINE1).name == name, f"the device is called {name}")
    assert {entity.unique_id: entity.entity_id for entity in home.entities().values()} == before
    assert is_number(home.state(SIGNAL))


async def test_a_removed_line_leaves_nothing_behind(hass: HomeAssistant, make: Make, complaints: Complaints) -> None:
    complaints.excused.append(CLEANUP)
    world = make()
    home = await started(hass, world)
    del world.config["lines"]["goip2"]
    world.reload()
    await until(lambda: LINE2 not in home.devices(), "the device is gone")
    assert not [unique_id for unique_id in home.entities() if unique_id.startswith(LINE2)]
    await until(
        lambda: not [topic for topic in world.mqtt.retained if "goip2" in topic], "nothing retained speaks of the line"
    )
    await hass.async_block_till_done()
    assert not [state.entity_id for state in hass.states.async_all() if "goip2" in state.entity_id]
    await home.becomes(SIGNAL, is_number)


async def test_a_new_line_and_a_new_contact_appear(hass: HomeAssistant, make: Make) -> None:
    world = make()
    home = await started(hass, world)
    world.config["lines"]["goip3"] = {"password": "password3", "gateway": "rack1"}
    world.config["contacts"] = CONTACTS | {"zoe": "+4915112345601"}
    world.reload()
    await home.becomes("sensor.goip_home_goip3_signal", is_number)
    await home.becomes("sensor.goip_home_gateway_rack1_lines_online", "1")
    await home.becomes(f"notify.{LINE1}_notify_zoe", "unknown")
    await home.call("notify.send_message", f"notify.{LINE1}_notify_zoe", message="welcome")
    await until(lambda: ("goip1", "+4915112345601", "welcome") in world.submitted(), "the SMS is on the air")


async def test_overrides_change_and_remove_entities(hass: HomeAssistant, make: Make) -> None:
    world = make(
        homeassistant={
            "overrides": {
                "signal": {"name": "Reception {{ 1 }}", "icon": "mdi:antenna"},
                "signal_pct": {"enabled_by_default": True},
                "imei": None,
                "trg_call_ringing": None,
                "operator": {"entity_category": None},
            }
        }
    )
    home = await started(hass, world)
    assert home.attribute(SIGNAL, "friendly_name") == "goip1 Reception {{ 1 }}"
    assert home.attribute(SIGNAL, "icon") == "mdi:antenna"
    await home.becomes(f"sensor.{LINE1}_signal_pct", is_number)
    assert f"{LINE1}_imei" not in home.entities()
    assert f"{LINE1}_iccid" in home.entities()
    assert home.entities()[f"{LINE1}_operator"].entity_category is None


@pytest.mark.parametrize("how", ["reload", "restart"])
async def test_what_the_configuration_takes_away_goes(hass: HomeAssistant, make: Make, how: str) -> None:
    world = make()
    home = await started(hass, world)
    assert is_number(home.state(SIGNAL))
    world.config["homeassistant"] = {"overrides": {"signal": None, "trg_call_ringing": None}}
    world.config["contacts"] = {name: number for name, number in CONTACTS.items() if name != "ben"}
    gone = {f"{LINE1}_signal", f"{LINE2}_signal", f"{LINE1}_notify_ben", f"{LINE2}_notify_ben"}
    before = set(home.entities())
    if how == "reload":
        world.reload()
    else:
        world.stop_bridge()
        world.start_bridge()
    await until(lambda: set(home.entities()) == before - gone, "only those entities are gone")
    assert home.state(SIGNAL) is None


async def test_discovery_can_be_switched_off_again(hass: HomeAssistant, make: Make, complaints: Complaints) -> None:
    complaints.excused.append(CLEANUP)
    world = make()
    home = await started(hass, world)
    world.config["homeassistant"] = {"discovery": False}
    world.stop_bridge()
    world.start_bridge()
    await until(lambda: not world.mqtt.configs(), "no device is announced")
    await until(lambda: not home.devices(), "no device is left")


async def test_odd_names_work(hass: HomeAssistant, make: Make) -> None:
    contacts = {
        'He said "hi" {{ 6 * 7 }}': "+4915112345601",
        "Änne 🚪": "+4915112345602",
        "anna": "+4915112345603",
        "Anna": "+4915112345604",
        "notify": "+4915112345605",
        "🚪": "+4915112345606",
        "{% raw %}": "+4915112345607",
        "it's \\ back": "+4915112345608",
    }
    world = make(
        instance="Main-1",
        contacts=contacts,
        groups={"all of {them}": list(contacts)},
        lines={
            "Signal": {"goip_id": "goip1", "password": "password1", "gateway": "Rack-1"},
            "state": {"goip_id": "goip2", "password": "password2", "name": "Signal strength"},
            "a-b": {"goip_id": "goip3", "password": "password3", "name": 'Ga"te {{ 1 }} 🚪'},
            "config": {"goip_id": "goip4", "password": "password4", "name": 'Ga"te {{ 1 }} 🚪'},
        },
    )
    home = await started(hass, world)
    assert {device.name for device in home.devices().values()} >= {"Signal", "Signal strength", 'Ga"te {{ 1 }} 🚪'}
    assert len(home.devices()) == 6
    for line in ("signal", "state", "a_b", "config"):
        await home.becomes(f"sensor.goip_main_1_{line}_signal", is_number)
    notifiers = {
        entity.original_name: entity.entity_id
        for entity in home.entities().values()
        if entity.domain == "notify" and entity.unique_id.startswith("goip_main_1_a_b_")
    }
    assert set(notifiers) == {*contacts, "all of {them}"}
    assert notifiers["notify"] == "notify.goip_main_1_a_b_notify_notify"
    for name, number in contacts.items():
        await home.call("notify.send_message", notifiers[name], message=f"to {name}")
        await until(lambda sms=("goip3", number, f"to {name}"): sms in world.submitted(), f"an SMS to {name}")
    await home.call("notify.send_message", notifiers["all of {them}"], message="to all")
    wanted = {("goip3", number, "to all") for number in contacts.values()}
    await until(lambda: wanted <= set(world.submitted()), "an SMS to each of the group")


# -- deletion -------------------------------------------------------------------------------------------------------


async def test_a_device_deleted_by_the_user_stays_away_until_asked_for(
    hass: HomeAssistant, make: Make, hass_ws_client: Any, complaints: Complaints
) -> None:
    complaints.excused.append(CLEANUP)
    world = make()
    home = await started(hass, world)
    topic = f"homeassistant/device/{LINE1}/config"
    assert await async_setup_component(hass, "config", {})
    browser = await hass_ws_client(hass)
    assert (await browser.remove_device(home.device(LINE1).id, home.entry.entry_id))["success"]
    await until(lambda: LINE1 not in home.devices() and topic not in world.mqtt.retained, "the device is deleted")

    # Neither a birth nor a reload brings it back, though both publish the other line again.
    said = len(world.mqtt.on(f"homeassistant/device/{LINE2}/config"))
    world.config["lines"]["goip2"]["name"] = "Two"
    world.reload()
    world.mqtt.publish("homeassistant/status", "online")
    await until(lambda: len(world.mqtt.on(f"homeassistant/device/{LINE2}/config")) > said, "the other line is said")
    await until(lambda: home.device(LINE2).name == "Two", "the other line is renamed")
    assert topic not in world.mqtt.retained
    assert LINE1 not in home.devices()

    world.mqtt.publish("goip/bridge/cmd/refresh", {})
    await home.becomes(SIGNAL, is_number)

    assert (await browser.remove_device(home.device(LINE1).id, home.entry.entry_id))["success"]
    await until(lambda: LINE1 not in home.devices() and topic not in world.mqtt.retained, "the device is deleted again")
    world.stop_bridge()
    world.start_bridge()
    await home.becomes(SIGNAL, is_number)


async def test_deleting_one_entity_takes_all_until_a_refresh(
    hass: HomeAssistant, make: Make, complaints: Complaints
) -> None:
    complaints.excused.append(CLEANUP)
    world = make()
    home = await started(hass, world)
    before = set(home.entities())
    er.async_get(hass).async_remove(f"button.{LINE1}_refresh")
    await until(lambda: LINE1 not in home.devices(), "Home Assistant dropped the whole device")
    world.mqtt.publish("goip/goip1/cmd/refresh", {})
    await until(lambda: set(home.entities()) == before, "all entities are back")
    await home.becomes(SIGNAL, is_number)


async def test_orphans_of_ours_go_and_what_others_announced_stays(
    hass: HomeAssistant, make: Make, complaints: Complaints
) -> None:
    complaints.excused.append(CLEANUP)
    foreign = {
        "homeassistant/device/lamp/config": _device("lamp", "zigbee", "https://example.org"),
        "homeassistant/device/goip_home_lamp/config": _device("goip_home_lamp", "zigbee", "https://example.org"),
        "homeassistant/sensor/oldlamp/power/config": {
            "state_topic": "lamp",
            "unique_id": "old_lamp_power",
            "name": "Old",
        },
    }
    orphan = "homeassistant/device/goip_home_goip9/config"
    other_base = "homeassistant/device/goip_home_far_goip1/config"

    world = make()
    await until(lambda: LINE1 in world.mqtt.configs(), "the line is announced")
    ours = json.dumps(world.mqtt.configs()[LINE1])
    theirs = ours.replace(LINE1, "goip_home_far_goip1").replace("goip/", "far/").replace("#goip", "#far")
    world.stop_bridge()
    for topic, document in foreign.items():
        world.mqtt.publish(topic, document, retain=True)
    world.mqtt.publish(orphan, ours.replace(LINE1, "goip_home_goip9"), retain=True)
    world.mqtt.publish(other_base, theirs, retain=True)
    home = await connect(hass, world.broker.port)
    await until(lambda: "goip_home_goip9" in home.devices(), "the orphan's device is there")

    world.start_bridge()
    await until(lambda: orphan not in world.mqtt.retained, "the orphan is gone")
    await until(lambda: "goip_home_goip9" not in home.devices(), "its device is gone")
    for topic, document in foreign.items():
        assert json.loads(world.mqtt.retained[topic]) == document
    assert world.mqtt.retained[other_base] == theirs.encode()
    await home.becomes(SIGNAL, is_number)


def _device(identifier: str, origin: str, url: str) -> dict[str, Any]:
    power = {"platform": "sensor", "unique_id": f"{identifier}_power", "state_topic": "lamp", "name": "Power"}
    return {
        "device": {"identifiers": [identifier], "name": identifier},
        "origin": {"name": origin, "support_url": url},
        "components": {"power": power},
    }


# -- restarts -------------------------------------------------------------------------------------------------------


async def test_after_home_assistant_restarts_everything_is_back(hass: HomeAssistant, make: Make) -> None:
    world = make()
    home = await started(hass, world, birth=True)
    before = {entity.unique_id: entity.entity_id for entity in home.entities().values()}
    topics = [f"homeassistant/device/{name}/config" for name in ("goip_home_bridge", LINE1, LINE2)]
    announced = [len(world.mqtt.on(topic)) for topic in topics]
    births = len(world.mqtt.on("homeassistant/status"))

    await hass.config_entries.async_unload(home.entry.entry_id)
    assert home.state(SIGNAL) == "unavailable"
    await hass.config_entries.async_setup(home.entry.entry_id)
    await settled(home, world)
    await home.becomes(SIGNAL, is_number)
    assert {entity.unique_id: entity.entity_id for entity in home.entities().values()} == before

    await until(lambda: b"online" in world.mqtt.on("homeassistant/status")[births:], "its birth")
    await until(
        lambda: all(len(world.mqtt.on(topic)) > count for topic, count in zip(topics, announced, strict=True)),
        "the bridge answered the birth",
    )


async def test_a_broker_that_forgot_everything_is_told_again(
    hass: HomeAssistant, make: Make, complaints: Complaints
) -> None:
    complaints.excused += ["Disconnected from MQTT server", "The connection was lost"]
    world = make()
    home = await started(hass, world)
    before = set(home.entities())
    await until(
        lambda: all("serial_number" in world.mqtt.configs()[line]["device"] for line in (LINE1, LINE2)),
        "what the lines told of their hardware is announced",
    )
    configs = world.mqtt.configs()
    world.broker.kill()
    await home.becomes(SIGNAL, "unavailable")
    world.mqtt.retained.clear()
    world.broker.start()
    await until(lambda: world.mqtt.configs() == configs, "all devices are announced again")
    await home.becomes(SIGNAL, is_number)
    assert set(home.entities()) == before
    await settled(home, world)


async def test_offline_lines_and_an_offline_bridge_are_told_apart(hass: HomeAssistant, make: Make) -> None:
    world = make()
    home = await started(hass, world)
    notify = f"notify.{LINE1}_notify_anna"
    world.stop_simulator()
    await home.becomes(f"binary_sensor.{LINE1}_online", "off")
    await home.becomes(SIGNAL, "unavailable")
    assert home.state(notify) != "unavailable"  # the bridge queues
    await home.call("notify.send_message", notify, message="later")
    world.start_simulator()
    await home.becomes(SIGNAL, is_number)
    await until(lambda: ("goip1", CONTACTS["anna"], "later") in world.submitted(), "the SMS that waited")

    world.stop_bridge()
    for entity in (f"binary_sensor.{LINE1}_online", SIGNAL, notify, "sensor.goip_home_bridge_version"):
        await home.becomes(entity, "unavailable")
    assert home.state("binary_sensor.goip_home_bridge_connected") == "off"
    world.start_bridge()
    await home.becomes("binary_sensor.goip_home_bridge_connected", "on")
    await home.becomes(SIGNAL, is_number)


async def test_the_restart_button_restarts_the_bridge(hass: HomeAssistant, make: Make) -> None:
    world = make()
    home = await started(hass, world)
    before = world.mqtt.json("goip/bridge/info")["started_at"]
    await home.call("button.press", "button.goip_home_bridge_restart")
    await until(lambda: world.mqtt.json("goip/bridge/info")["started_at"] != before, "another run of the bridge")
    await home.becomes(SIGNAL, is_number)
    await settled(home, world)


# -- what comes while Home Assistant is away -------------------------------------------------------------------------

ANNA = CONTACTS["anna"]


class Diary:
    """What Home Assistant's automations and its event entity make of SMS: one by the device trigger, one by topic."""

    def __init__(self, hass: HomeAssistant) -> None:
        self.by: dict[str, list[str]] = {"device": [], "topic": []}
        self.hass = hass
        hass.bus.async_listen("sms_seen", lambda event: self.by[event.data["by"]].append(event.data["text"]))

    async def open(self, home: Home) -> None:
        """With the exact topic of the page, beside the entity that is subscribed to it as well."""
        device = {
            "domain": "mqtt",
            "device_id": home.device(LINE1).id,
            "type": "sms_received",
            "subtype": "SMS received",
        }
        triggers: dict[str, dict[str, Any]] = {
            "device": {"trigger": "device"} | device,
            "topic": {"trigger": "mqtt", "topic": "goip/goip1/homeassistant/sms/in"},
        }
        action = {"text": "{{ trigger.payload_json.text }}"}
        automations = [
            {
                "alias": by,
                "mode": "queued",
                "max": 50,
                "triggers": [trigger],
                "actions": [{"event": "sms_seen", "event_data": action | {"by": by}}],
            }
            for by, trigger in triggers.items()
        ]
        assert await async_setup_component(self.hass, "automation", {"automation": automations})
        await self.hass.async_block_till_done()

    async def has(self, *texts: str) -> None:
        """Each of them once, in this order."""
        wanted = {"device": list(texts), "topic": list(texts)}
        await until(lambda: all(len(told) >= len(texts) for told in self.by.values()), f"{wanted}, not {self.by}", 120)
        assert self.by == wanted


def published(world: World, text: str) -> bool:
    """An SMS came, and everybody else has heard it."""
    return any(text.encode() in payload for payload in world.mqtt.on("goip/goip1/sms/in"))


async def sms(world: World, *texts: str) -> None:
    for text in texts:
        world.sms("goip1", ANNA, text)
        await until(lambda text=text: published(world, text), f"the SMS {text}")


async def knows_that_it_is_there(world: World, times: int = 1) -> None:
    await until(lambda: world.log.count("Home Assistant is there") >= times, "the bridge knows that it is there", 90)


async def stop(home: Home) -> None:
    """The end of its process: it leaves its connection to the kernel, and the broker tells its will."""
    client = home.hass.data["mqtt"].client
    await home.hass.async_stop(force=True)
    client._mqttc.socket().shutdown(socket.SHUT_RDWR)
    await until(lambda: not client.connected, "it is disconnected")


async def test_sms_that_come_while_home_assistant_restarts_are_told_once(
    hass: HomeAssistant, make: Make, complaints: Complaints
) -> None:
    complaints.excused += ["Disconnected from MQTT server", "Error returned from MQTT server"]
    world = make()
    home = await started(hass, world, birth=True)
    diary = Diary(hass)
    await diary.open(home)
    await knows_that_it_is_there(world)
    await sms(world, "before")
    await diary.has("before")

    await stop(home)
    await until(lambda: "Home Assistant is away" in world.log, "the bridge knows that it is away")
    await sms(world, "while it is away", "and another one")
    world.stop_bridge()
    world.start_bridge()
    await sms(world, "after a restart of the bridge")
    async with async_test_home_assistant() as another:
        another.config.config_dir = hass.config.config_dir
        home, diary = await started(another, world, birth=True), Diary(another)
        await diary.open(home)
        missed = ("while it is away", "and another one", "after a restart of the bridge")
        await diary.has(*missed)
        assert home.attribute(f"event.{LINE1}_sms_in", "text") == missed[-1]
        await sms(world, "at once")
        await diary.has(*missed, "at once")
        await stop(home)
    texts = [json.loads(fact)["text"] for fact in world.mqtt.on("goip/goip1/sms/in")]
    assert texts == ["before", *missed, "at once"], "nobody else waits for it, or hears anything twice"


@pytest.mark.parametrize("persistence", [False, True])
async def test_sms_that_come_while_the_broker_restarts_are_told_once(
    hass: HomeAssistant, make: Make, complaints: Complaints, persistence: bool
) -> None:
    complaints.excused += ["Disconnected from MQTT server", "The connection was lost", "Failed to connect to MQTT"]
    world = make(persistence=persistence)
    home = await started(hass, world, birth=True)
    diary = Diary(hass)
    await diary.open(home)
    await knows_that_it_is_there(world)
    world.broker.terminate()
    await home.becomes(SIGNAL, "unavailable")
    world.sms("goip1", ANNA, "without a broker")
    await until(lambda: received(world, "without a broker"), "the bridge has it")
    world.broker.start()
    world.sms("goip1", ANNA, "before Home Assistant is back")
    await until(lambda: received(world, "before Home Assistant is back"), "the bridge has this one too")
    assert home.state(SIGNAL) == "unavailable", "it takes 10 s to connect again"
    assert not diary.by["topic"]
    await diary.has("without a broker", "before Home Assistant is back")
    await sms(world, "at once")
    await diary.has("without a broker", "before Home Assistant is back", "at once")


def received(world: World, text: str) -> bool:
    return any(record["text"] == text for record in world.radio("received"))


async def test_sms_that_come_while_the_bridge_restarts_are_told_once(hass: HomeAssistant, make: Make) -> None:
    """Nobody says then that Home Assistant is there: it is taken to be there after a minute."""
    world = make()
    home = await started(hass, world, birth=True)
    diary = Diary(hass)
    await diary.open(home)
    await knows_that_it_is_there(world)
    world.stop_bridge()
    world.sms("goip1", ANNA, "without a bridge")
    world.start_bridge()
    await until(lambda: published(world, "without a bridge"), "the gateway offers it again")
    await sms(world, "after the restart")
    facts = [json.loads(fact)["text"] for fact in world.mqtt.on("goip/goip1/sms/in")]
    assert sorted(facts) == ["after the restart", "without a bridge"], "in whatever order the gateway offers them"
    await diary.has(*facts)


async def test_sms_that_come_while_the_integration_is_reloaded_are_told_once(hass: HomeAssistant, make: Make) -> None:
    """It says no goodbye then; the broker says that nobody is subscribed. The device trigger does not count: since its
    reload Home Assistant fires it twice, whatever comes.
    """
    world = make()
    home = await started(hass, world, birth=True)
    diary = Diary(hass)
    await diary.open(home)
    await knows_that_it_is_there(world)
    world.mqtt.look_away()
    await hass.config_entries.async_unload(home.entry.entry_id)
    assert "Home Assistant is away" not in world.log
    await sms(world, "while it is reloaded")
    await hass.config_entries.async_setup(home.entry.entry_id)
    await settled(home, world)
    await until(lambda: diary.by["topic"], "the SMS", 90)
    await sms(world, "at once")
    await until(lambda: diary.by["topic"][1:], "the SMS", 90)
    assert diary.by["topic"] == ["while it is reloaded", "at once"]
