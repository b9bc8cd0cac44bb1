"""What examples/homeassistant/ has, loaded into Home Assistant as a user would, and used over the air."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONTACTS, Home, connect, settled
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
from homeassistant.util.yaml import load_yaml
from pytest_homeassistant_custom_component.common import MockConfigEntry
from world import REPOSITORY, World, until

EXAMPLES = REPOSITORY / "examples/homeassistant"
ANNA, BEN = CONTACTS["anna"], CONTACTS["ben"]
STRANGER = "+4915112349999"
BUILT_IN = """
    area button calendar conditional entities entity entity-filter gauge glance grid heading history-graph
    horizontal-stack iframe logbook map markdown picture picture-elements picture-entity picture-glance sensor statistic
    statistics-graph tile todo-list vertical-stack
"""
"The cards of Home Assistant's own frontend."


async def use_blueprint(home: Home, config_folder: Path, name: str, inputs: dict[str, Any]) -> None:
    """Put the file where an import puts it, and make an automation of it."""
    folder = config_folder / "blueprints/automation/goip"
    folder.mkdir(parents=True)
    shutil.copy(EXAMPLES / f"blueprints/{name}.yaml", folder)
    automation = {
        "id": name, "alias": name, "use_blueprint": {"path": f"goip/{name}.yaml", "input": inputs}
    }  # fmt: skip
    assert await async_setup_component(home.hass, "automation", {"automation": [automation]})
    await home.hass.async_block_till_done()
    assert home.state(f"automation.{name}") == "on"


def heard(hass: HomeAssistant, event: str) -> list[dict[str, Any]]:
    """The data of every such event from now on."""
    found: list[dict[str, Any]] = []
    hass.bus.async_listen(event, lambda fired: found.append(dict(fired.data)))
    return found


# -- commands by SMS ------------------------------------------------------------------------------------------------


@pytest.fixture
async def commands(hass: HomeAssistant, home: Home, config_folder: Path) -> list[dict[str, Any]]:
    """The first blueprint at work on goip2; what its actions did."""
    assert await async_setup_component(hass, "input_text", {"input_text": {"memory": {"max": 255}}})
    done = heard(hass, "done")
    await use_blueprint(
        home,
        config_folder,
        "sms_command",
        {
            "line": home.device("goip_home_goip2").id,
            "senders": [ANNA],
            "pin": "4711",
            "memory": "input_text.memory",
            "command_1": "Open gate",
            "actions_1": [
                {"event": "done", "event_data": {"what": "gate", "by": "from {{ trigger.payload_json['from'] }}"}}
            ],
            "reply_1": 'The "gate" is {{ states("input_text.memory") | length > 0 and "open" }} 🚪',
            "command_2": "light",
            "actions_2": [{"event": "done", "event_data": {"what": "light"}}],
            "reply_2": "",
            "refused": [
                {"event": "done", "event_data": {"what": "refused", "by": "from {{ trigger.payload_json['from'] }}"}}
            ],
        },
    )
    return done


def answers(world: World, number: str) -> list[str]:
    return [text for line, to, text in world.submitted() if line == "goip2" and to == number]


async def test_a_command_acts_and_answers(world: World, commands: list[dict[str, Any]]) -> None:
    before = len(answers(world, ANNA))
    world.sms("goip2", ANNA, " 4711  OPEN  gate ")
    await until(lambda: commands == [{"what": "gate", "by": f"from {ANNA}"}], "the action ran")
    await until(lambda: answers(world, ANNA)[before:] == ['The "gate" is open 🚪'], "the answer is on the air")
    world.sms("goip2", ANNA, "4711 light")
    await until(lambda: commands[1:] == [{"what": "light"}], "the second action ran")
    world.sms("goip2", ANNA, "4711 what")
    await until(lambda: answers(world, ANNA)[before + 1 :] == ["Commands: Open gate, light"], "help")
    assert len(commands) == 2


async def test_a_wrong_pin_and_a_wrong_sender_do_nothing_but_tell(world: World, commands: list[dict[str, Any]]) -> None:
    before = len(world.submitted())
    world.sms("goip2", ANNA, "4712 open gate")
    await until(lambda: commands == [{"what": "refused", "by": f"from {ANNA}"}], "the wrong PIN is told")
    world.sms("goip2", STRANGER, "hello")
    world.sms("goip2", STRANGER, "4711 open gate")
    await until(lambda: commands[1:] == [{"what": "refused", "by": f"from {STRANGER}"}], "the wrong sender is told")
    world.sms("goip2", ANNA, "4711 light")
    await until(lambda: commands[2:] == [{"what": "light"}], "a good one still works")
    assert len(world.submitted()) == before


async def test_a_command_that_is_told_twice_acts_once(home: Home, world: World, commands: list[dict[str, Any]]) -> None:
    seen = len(world.mqtt.on("goip/goip2/homeassistant/sms/in"))
    world.sms("goip2", ANNA, "4711 open gate")
    await until(lambda: len(commands) == 1, "the action ran")
    fact = world.mqtt.on("goip/goip2/homeassistant/sms/in")[seen]
    world.mqtt.publish("goip/goip2/homeassistant/sms/in", fact)
    late = fact.replace(b'"at":"20', b'"at":"19').replace(b'"id":"', b'"id":"late-')
    world.mqtt.publish("goip/goip2/homeassistant/sms/in", late)
    world.sms("goip2", ANNA, "4711 light")
    await until(lambda: commands[1:] == [{"what": "light"}], "the next one, and neither the repeat nor the late one")


# -- alarm ----------------------------------------------------------------------------------------------------------


async def alarm(home: Home, config_folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """The second blueprint at work on goip3, asking Anna, then Ben; what came of it."""
    done = heard(home.hass, "done")
    inputs = {
        "alarm": [{"trigger": "event", "event_type": "fire"}],
        "text": 'Water in the "cellar" {{ trigger.event.data.depth }} cm 🚿. Answer OK.',
        "people": [ANNA, BEN],
        "wait": 1,
        "rounds": 1,
        "line": home.device("goip_home_goip3").id,
        "sms_in": "event.goip_home_goip3_sms_in",
        "delivery": "event.goip_home_goip3_delivery",
        "answered": [{"event": "done", "event_data": {"by": "from {{ reply['from'] }}", "text": "{{ reply.text }}"}}],
        "nobody": [{"event": "done", "event_data": {"by": "nobody"}}],
    }
    await use_blueprint(home, config_folder, "alarm_sms", inputs | changes)
    return done


def alarms(world: World) -> list[str]:
    """Who was sent an alarm."""
    return [to for line, to, text in world.submitted() if line == "goip3" and text.startswith("Water")]


async def test_an_answer_ends_the_alarm(home: Home, world: World, config_folder: Path) -> None:
    done = await alarm(home, config_folder)
    before = len(alarms(world))
    home.hass.bus.async_fire("fire", {"depth": 3})
    await until(lambda: alarms(world)[before:] == [ANNA], "Anna is told")
    assert world.submitted()[-1][2] == 'Water in the "cellar" 3 cm 🚿. Answer OK.'
    world.sms("goip3", ANNA, "what?")
    world.sms("goip3", STRANGER, "OK")
    world.sms("goip3", ANNA, " ok, I go")
    await until(lambda: done == [{"by": f"from {ANNA}", "text": "ok, I go"}], "her answer ends it")
    await until(lambda: home.attribute("automation.alarm_sms", "current") == 0, "the automation is done")
    assert alarms(world)[before:] == [ANNA]


async def test_without_an_answer_the_next_is_asked_and_in_the_end_nobody(
    home: Home, world: World, config_folder: Path
) -> None:
    done = await alarm(home, config_folder, wait=0.05)
    before = len(alarms(world))
    home.hass.bus.async_fire("fire", {"depth": 4})
    await until(lambda: alarms(world)[before:] == [ANNA, BEN], "both are told")
    await until(lambda: done == [{"by": "nobody"}], "nobody answers")


async def test_a_failed_alarm_goes_to_the_next_at_once(home: Home, world: World, config_folder: Path) -> None:
    done = await alarm(home, config_folder)
    before = len(alarms(world))
    world.gateway("fail goip3 1")
    home.hass.bus.async_fire("fire", {"depth": 5})
    await until(lambda: alarms(world)[before:] == [ANNA, BEN], "the second is told", limit_s=20)  # not after a minute
    world.sms("goip3", BEN, "OK")
    await until(lambda: done == [{"by": f"from {BEN}", "text": "OK"}], "his answer ends it")


# -- package --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def package(hass: HomeAssistant, world: World) -> Home:
    """Home Assistant with examples/homeassistant/package.yaml, each part given to its integration."""
    config = load_yaml(str(EXAMPLES / "package.yaml"))
    assert set(config) == {"notify", "input_text", "automation", "script"}
    assert await async_setup_component(hass, "notify", config)  # before MQTT brings it along
    home = await connect(hass, world.broker.port)
    await settled(home, world)
    for domain in ("persistent_notification", *config):
        assert await async_setup_component(hass, domain, config)
    await until(lambda: hass.services.has_service("notify", "sms_family"), "the group is there")
    assert home.state("automation.tell_of_refused_sms") == "on"
    assert home.state("input_text.sms_command_memory") is not None

    def told() -> object:
        world.mqtt.publish("goip/goip1/cmd/sms", {})
        return home.attribute("automation.tell_of_refused_sms", "last_triggered")

    await until(told, "Home Assistant is subscribed to results and tells of a refused command")
    return home


async def test_the_notify_group_sends_to_each(package: Home, world: World) -> None:
    text = 'to the "group" {{ 1 }}'
    await package.call("notify.sms_family", message=text)
    await until(lambda: {("goip1", ANNA, text), ("goip1", BEN, text)} <= set(world.submitted()), "both SMS")


async def test_a_group_made_in_the_settings_sends_to_each(home: Home, world: World) -> None:
    entities = ["notify.goip_home_goip1_notify_anna", "notify.goip_home_goip1_notify_ben"]
    options = {"name": "Family", "group_type": "notify", "entities": entities, "hide_members": False}
    entry = MockConfigEntry(domain="group", title="Family", options=options)
    entry.add_to_hass(home.hass)
    assert await home.hass.config_entries.async_setup(entry.entry_id)
    await home.becomes("notify.family", "unknown")
    await home.call("notify.send_message", "notify.family", message="helper group")
    wanted = {("goip1", ANNA, "helper group"), ("goip1", BEN, "helper group")}
    await until(lambda: wanted <= set(world.submitted()), "both SMS")


@pytest.mark.parametrize(
    ("data", "state", "message"),
    [
        ({"to": ANNA, "text": 'from a "script"\n{{ 1 }}'}, "sent", ""),
        ({"to": ["@anna"], "text": "to a contact", "line": "goip2"}, "sent", ""),
        ({"to": "x", "text": "nobody"}, "invalid_payload", "to"),
        ({"to": "@nobody", "text": "nobody"}, "invalid_payload", "no contact"),
    ],
)
async def test_the_script_says_what_became_of_the_sms(
    package: Home, world: World, data: dict[str, Any], state: str, message: str
) -> None:
    answer = await package.hass.services.async_call("script", "send_sms", data, blocking=True, return_response=True)
    assert isinstance(answer, dict)
    assert answer["state"] == state
    assert message in answer["message"]
    if state == "sent":
        assert (data.get("line", "goip1"), ANNA, data["text"]) in world.submitted()


async def test_the_script_tells_of_a_failure(package: Home, world: World) -> None:
    world.gateway("fail goip1 38")
    answer = await package.hass.services.async_call(
        "script", "send_sms", {"to": ANNA, "text": "fails"}, blocking=True, return_response=True
    )
    assert isinstance(answer, dict)
    assert answer["state"] == "failed"
    assert answer["message"]


# -- dashboard ------------------------------------------------------------------------------------------------------


async def test_the_dashboard_loads_and_every_entity_in_it_exists(
    hass: HomeAssistant, home: Home, config_folder: Path, hass_ws_client: Any
) -> None:
    shutil.copy(EXAMPLES / "dashboard.yaml", config_folder)
    options = {"mode": "yaml", "title": "SMS", "filename": "dashboard.yaml", "show_in_sidebar": True}
    assert await async_setup_component(hass, "lovelace", {"lovelace": {"dashboards": {"sms-dashboard": options}}})
    browser = await hass_ws_client(hass)
    await browser.send_json_auto_id({"type": "lovelace/config", "url_path": "sms-dashboard"})
    answer = await browser.receive_json()
    assert answer["success"], answer
    config = answer["result"]
    assert config == yaml.safe_load((EXAMPLES / "dashboard.yaml").read_text())

    cards = [card for view in config["views"] for section in view["sections"] for card in section["cards"]]
    cards += [card["card"] for card in cards if "card" in card]
    assert {card["type"] for card in cards} <= set(BUILT_IN.split())
    named = set(_entity_ids(config))
    assert len(named) > 20
    there = {entity.entity_id for entity in home.entities().values() if entity.disabled_by is None}
    assert named <= there, named - there


def _entity_ids(config: object) -> Any:
    """Every entity id in a structure, templates included."""
    if isinstance(config, dict):
        for value in config.values():
            yield from _entity_ids(value)
    elif isinstance(config, list):
        for value in config:
            yield from _entity_ids(value)
    elif isinstance(config, str):
        yield from re.findall(r"\b[a-z_]+\.goip_\w+", config)
