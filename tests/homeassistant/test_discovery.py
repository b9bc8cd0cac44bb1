"""What appears in Home Assistant by itself, and that each entity shows and does what it says."""

import json
import re
from typing import Any

import expected
import pytest
from conftest import CONTACTS, Home
from homeassistant.components import automation, device_automation
from homeassistant.core import HomeAssistant
from homeassistant.helpers import entity_registry as er
from homeassistant.setup import async_setup_component
from world import World, until

ANNA = CONTACTS["anna"]
ODD = 'He said "it\'s" \\ open 🚪\nline {{ 6 * 7 }} {% raw %}\tü'
"A text with everything that JSON and templates might trip over."


async def test_the_entities_are_exactly_these(home: Home, world: World) -> None:
    there = sorted(
        expected.Row(
            unique_id=entity.unique_id,
            entity_id=entity.entity_id,
            platform=entity.domain,
            category=None if entity.entity_category is None else entity.entity_category.value,
            enabled=entity.disabled_by is None,
        )
        for entity in home.entities().values()
    )
    wanted = [*expected.rows("goip_home_bridge", expected.BRIDGE)]
    wanted += expected.rows("goip_home_gateway_rack1", expected.GATEWAY)
    for number in range(1, 9):
        wanted += expected.rows(f"goip_home_goip{number}", expected.LINE)
    assert there == sorted(wanted)


async def test_the_devices_hang_together(home: Home) -> None:
    devices = home.devices()
    lines = [f"goip_home_goip{number}" for number in range(1, 9)]
    assert set(devices) == {"goip_home_bridge", "goip_home_gateway_rack1", *lines}
    names = {identifier: device.name for identifier, device in devices.items()}
    assert names["goip_home_goip1"] == "goip1"
    assert names["goip_home_goip2"] == "Gate SIM"
    assert devices["goip_home_bridge"].via_device_id is None
    assert devices["goip_home_gateway_rack1"].via_device_id == devices["goip_home_bridge"].id
    for line in lines:
        assert devices[line].via_device_id == devices["goip_home_gateway_rack1"].id
        assert devices[line].manufacturer == "DBL"
        assert devices[line].serial_number == f"86000002000000{line[-1]}"
        assert devices[line].configuration_url == "http://127.0.0.1"
    assert devices["goip_home_gateway_rack1"].configuration_url == "http://127.0.0.1"
    assert re.fullmatch(r"\d+\.\d+\.\d+", devices["goip_home_bridge"].sw_version or "")


async def test_names_do_not_repeat_the_device(home: Home) -> None:
    by_id = {device.id: device.name or "" for device in home.devices().values()}
    for entity in home.entities().values():
        assert entity.original_name
        assert not entity.original_name.startswith(by_id[entity.device_id or ""]), entity.entity_id


async def test_the_device_triggers_of_a_line(home: Home) -> None:
    found = await device_automation.async_get_device_automations(
        home.hass, device_automation.DeviceAutomationType.TRIGGER, [home.device("goip_home_goip1").id]
    )
    mqtt = [trigger for triggers in found.values() for trigger in triggers if trigger["domain"] == "mqtt"]
    assert {(trigger["type"], trigger["subtype"]) for trigger in mqtt} == expected.TRIGGERS


# -- states ---------------------------------------------------------------------------------------------------------


async def test_states_are_what_the_gateway_says(home: Home, world: World) -> None:
    def says(*path: str) -> Any:
        value: Any = world.mqtt.json("goip/goip1/state")
        for key in path:
            value = value[key]
        return value

    await until(
        lambda: home.state("sensor.goip_home_goip1_signal") == str(says("signal", "dbm")), "the signal is the gateway's"
    )
    assert -85 <= int(home.state("sensor.goip_home_goip1_signal") or 0) <= -57  # CSQ 14 to 28 in the simulator
    unit = home.attribute("sensor.goip_home_goip1_signal", "unit_of_measurement")
    assert (unit, home.attribute("sensor.goip_home_goip1_signal", "device_class")) == ("dBm", "signal_strength")
    assert home.state("sensor.goip_home_goip1_gsm") == "Registered"
    assert home.state("binary_sensor.goip_home_goip1_registered") == "on"
    assert home.state("binary_sensor.goip_home_goip1_online") == "on"
    assert home.state("sensor.goip_home_goip1_call_state") == "Idle"
    assert home.state("binary_sensor.goip_home_goip1_in_call") == "off"
    assert home.state("binary_sensor.goip_home_goip1_problem") == "off"
    assert home.attribute("binary_sensor.goip_home_goip1_problem", "problems") == []
    assert home.state("switch.goip_home_goip1_module") == "on"
    assert home.state("sensor.goip_home_goip1_operator") == "SIMULATED GSM"
    assert home.state("sensor.goip_home_goip1_queue") == "0"
    assert home.state("sensor.goip_home_gateway_rack1_lines_online") == "8"
    assert home.state("binary_sensor.goip_home_bridge_connected") == "on"
    assert home.state("sensor.goip_home_bridge_version") == world.mqtt.json("goip/bridge/info")["version"]
    started = world.mqtt.json("goip/bridge/info")["started_at"]
    assert (home.state("sensor.goip_home_bridge_uptime") or "")[:19] == started[:19]
    assert home.state("sensor.goip_home_bridge_outbox") == "0"
    assert home.state("sensor.goip_home_bridge_reconnects") == "0"


async def test_what_is_off_works_once_it_is_enabled(home: Home, world: World) -> None:
    registry = er.async_get(home.hass)
    for entity in home.entities().values():
        if entity.disabled_by is not None and entity.unique_id.startswith("goip_home_goip1_"):
            registry.async_update_entity(entity.entity_id, disabled_by=None)
    await home.hass.config_entries.async_reload(home.entry.entry_id)
    await home.becomes("sensor.goip_home_goip1_imei", "860000020000001")
    assert home.state("sensor.goip_home_goip1_iccid") == "89480000000000000001"
    assert home.state("sensor.goip_home_goip1_cell") == world.mqtt.json("goip/goip1/state")["gsm"]["cell"]
    await until(
        lambda: (
            home.state("sensor.goip_home_goip1_signal_pct")
            == str(world.mqtt.json("goip/goip1/state")["signal"]["percent"])
        ),
        "the percentage is the gateway's",
    )
    await home.becomes("sensor.goip_home_goip1_received", lambda state: state is not None and state.isdecimal())
    await home.becomes("sensor.goip_home_goip1_delivered", lambda state: state is not None and state.isdecimal())
    assert home.state("sensor.goip_home_goip1_talk_left") == "unknown"  # unlimited
    assert home.state("sensor.goip_home_goip1_number") == "unknown"
    assert home.state("binary_sensor.goip_home_goip1_voip") == "on"
    assert (home.state("sensor.goip_home_goip1_last_seen") or "").startswith("20")

    await home.call("number.set_value", "number.goip_home_goip1_call_interval", value=7)
    await until(lambda: _settings(world, "call_interval/set", 7), "the gateway has the pause")
    await home.call("number.set_value", "number.goip_home_goip1_exp_time", value=90)
    await until(lambda: _settings(world, "exp_time/set", 90), "the gateway has the limit")
    world.mqtt.publish("goip/goip1/cmd/info/get", {})
    await home.becomes("number.goip_home_goip1_exp_time", "90")
    await home.becomes("sensor.goip_home_goip1_talk_left", "90")
    await home.call("number.set_value", "number.goip_home_goip1_exp_time", value=0)
    await until(lambda: _settings(world, "exp_time/set", 0), "the limit is gone")


def _settings(world: World, path: str, value: int) -> bool:
    """Whether goip1 has confirmed a setting."""
    asked = [json.loads(payload) for payload in world.mqtt.on(f"goip/goip1/cmd/{path}")]
    answers = [json.loads(payload) for payload in world.mqtt.on(f"goip/goip1/result/{path}")]
    return bool(asked) and asked[-1]["value"] == value and len(answers) == len(asked) and answers[-1]["status"] == "ok"


# -- SMS ------------------------------------------------------------------------------------------------------------


async def test_notify_sends_an_sms(home: Home, world: World) -> None:
    await home.call("notify.send_message", "notify.goip_home_goip1_notify_anna", message=ODD)
    await until(lambda: ("goip1", ANNA, ODD) in world.submitted(), "the SMS is on the air")
    await home.becomes("event.goip_home_goip1_delivery", lambda state: state not in (None, "unknown", "unavailable"))
    await until(
        lambda: home.attribute("event.goip_home_goip1_delivery", "event_type") == "delivered", "its report is there"
    )
    assert home.attribute("event.goip_home_goip1_delivery", "to") == ANNA


async def test_a_group_and_a_contact_called_notify_are_notify_entities_too(home: Home, world: World) -> None:
    text = "to all of them"
    await home.call("notify.send_message", "notify.goip_home_goip3_notify_family", message=text)
    await home.call("notify.send_message", "notify.goip_home_goip3_notify_notify", message=text)
    wanted = {("goip3", number, text) for number in CONTACTS.values()}
    await until(lambda: wanted <= set(world.submitted()), "three SMS are on the air")


async def test_an_inbound_sms_is_an_event_with_its_text(home: Home, world: World) -> None:
    text = ODD.replace("\n", " ").replace("\t", " ")
    world.sms("goip4", ANNA, text)
    await home.becomes("event.goip_home_goip4_sms_in", lambda state: state not in (None, "unknown"))
    attributes = home.hass.states.get("event.goip_home_goip4_sms_in").attributes
    assert attributes["event_type"] == "received"
    assert (attributes["from"], attributes["text"], attributes["chars"]) == (ANNA, text, len(text))
    assert attributes["id"]
    last = await home.becomes("sensor.goip_home_goip4_last_sms_at", lambda state: state not in (None, "unknown"))
    assert (last or "")[:19] == attributes["at"][:19]
    masked = home.attribute("sensor.goip_home_goip4_last_sms_at", "from")
    assert masked.endswith(ANNA[-3:])
    assert ANNA[:-3] not in masked
    assert home.attribute("sensor.goip_home_goip4_last_sms_at", "text") is None


async def test_long_texts_fit_into_the_event(home: Home, world: World) -> None:
    text = "long " * 200
    world.sms("goip4", ANNA, text.strip())
    await until(lambda: home.attribute("event.goip_home_goip4_sms_in", "chars") == 999, "the long SMS is there")
    assert home.attribute("event.goip_home_goip4_sms_in", "text") == text.strip()


async def test_an_sms_and_a_call_fire_the_device_triggers(hass: HomeAssistant, home: Home, world: World) -> None:
    device = home.device("goip_home_goip5").id
    fired: list[str] = []
    hass.bus.async_listen("sms_seen", lambda event: fired.append(event.data["what"]))
    assert await async_setup_component(
        hass,
        automation.DOMAIN,
        {
            automation.DOMAIN: [
                {
                    "alias": kind,
                    "triggers": {
                        "trigger": "device",
                        "domain": "mqtt",
                        "device_id": device,
                        "type": kind,
                        "subtype": subtype,
                    },
                    "actions": {"event": "sms_seen", "event_data": {"what": f"{kind} {{{{ {value} }}}}"}},
                }
                for kind, subtype, value in (
                    ("sms_received", "SMS received", "trigger.payload_json.text"),
                    ("call_ringing", "Call ringing", "trigger.payload_json.number"),
                )
            ]
        },
    )
    await hass.async_block_till_done()
    world.sms("goip5", ANNA, "wake up")
    world.gateway(f"call goip5 {ANNA} 20")
    await until(lambda: {"sms_received wake up", f"call_ringing {ANNA}"} <= set(fired), "both triggers fired")


# -- actions --------------------------------------------------------------------------------------------------------


async def test_a_call_is_shown_and_dropped(home: Home, world: World) -> None:
    world.gateway(f"call goip6 {ANNA} 300")
    await home.becomes("binary_sensor.goip_home_goip6_in_call", "on")
    await until(
        lambda: home.attribute("event.goip_home_goip6_call", "event_type") in ("ringing", "answered"), "a call event"
    )
    assert home.attribute("event.goip_home_goip6_call", "number") == ANNA
    await home.call("button.press", "button.goip_home_goip6_call_drop")
    await until(lambda: [r for r in world.radio("call_end") if r["line"] == "goip6"], "the call ended at the gateway")
    await home.becomes("binary_sensor.goip_home_goip6_in_call", "off")
    await home.becomes("sensor.goip_home_goip6_call_state", "Idle")


async def test_the_module_switches_off_and_on(home: Home, world: World) -> None:
    await home.call("switch.turn_off", "switch.goip_home_goip7_module")
    await home.becomes("switch.goip_home_goip7_module", "off")
    await home.becomes("sensor.goip_home_goip7_gsm", "Not registered")
    await home.becomes("binary_sensor.goip_home_goip7_registered", "off")
    await home.becomes("binary_sensor.goip_home_goip7_problem", "on")
    await until(
        lambda: "module_disabled" in home.attribute("binary_sensor.goip_home_goip7_problem", "problems"), "the reason"
    )
    assert home.state("sensor.goip_home_goip7_signal") == "unknown"
    assert set(home.hass.states.get("binary_sensor.goip_home_goip7_problem").attributes) == {
        "problems",
        "command_topic",
        "device_class",
        "friendly_name",
    }
    await home.call("switch.turn_on", "switch.goip_home_goip7_module")
    await home.becomes("switch.goip_home_goip7_module", "on")
    await home.becomes("binary_sensor.goip_home_goip7_problem", "off")


async def test_restarting_module_and_box_reaches_the_gateway(home: Home, world: World) -> None:
    await home.call("button.press", "button.goip_home_goip8_module_reboot")
    await until(lambda: [r for r in world.radio("module_reboot") if r["line"] == "goip8"], "the module restarts")
    await home.call("button.press", "button.goip_home_gateway_rack1_reboot")
    await until(lambda: world.radio("box_reboot"), "the box restarts")

    def came_back() -> bool:
        facts = [json.loads(payload) for payload in world.mqtt.on("goip/bridge/event")]
        return len({fact["line"] for fact in facts if fact["event_type"] == "gateway_reboot"}) == 8

    await until(came_back, "every line says that its box restarted")
    await until(
        lambda: home.attribute("event.goip_home_bridge_event", "event_type") == "gateway_reboot", "Home Assistant knows"
    )
    for number in range(1, 9):
        await home.becomes(f"binary_sensor.goip_home_goip{number}_registered", "on")


async def test_a_ussd_code_is_asked_and_answered(home: Home, world: World) -> None:
    await home.call("text.set_value", "text.goip_home_goip1_ussd_code", value="*100#")
    await home.becomes("event.goip_home_goip1_ussd", lambda state: state not in (None, "unknown"))
    attributes = home.hass.states.get("event.goip_home_goip1_ussd").attributes
    assert (attributes["event_type"], attributes["code"]) == ("reply", "*100#")
    assert "Balance 4.20 EUR" in attributes["text"]
    with pytest.raises(ValueError, match="pattern"):
        await home.call("text.set_value", "text.goip_home_goip1_ussd_code", value="hello")


async def test_refresh_publishes_the_states_again(home: Home, world: World) -> None:
    before = len(world.mqtt.on("goip/goip1/stats"))
    await home.call("button.press", "button.goip_home_goip1_refresh")
    await until(lambda: len(world.mqtt.on("goip/goip1/stats")) > before, "the states came again")
