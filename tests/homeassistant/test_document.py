"""Every YAML block of docs/homeassistant.md, loaded by whom it is for; and its table of entities."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import expected
import pytest
import yaml
from conftest import CONTACTS, Home
from homeassistant.core import Event, EventStateChangedData, HomeAssistant
from homeassistant.setup import async_setup_component
from homeassistant.util.yaml import load_yaml, parse_yaml
from world import PYTHON, REPOSITORY, World, until

PAGE = (REPOSITORY / "docs/homeassistant.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
BRIDGE_KEYS = {"instance", "lines", "contacts", "groups", "homeassistant"}
FOR_BRIDGE = [block for block in BLOCKS if set(yaml.safe_load(block)) <= BRIDGE_KEYS]
FOR_HOME_ASSISTANT = [block for block in BLOCKS if block not in FOR_BRIDGE]


def test_the_page_has_blocks_for_both() -> None:
    assert len(FOR_BRIDGE) >= 3
    assert len(FOR_HOME_ASSISTANT) >= 7


@pytest.mark.parametrize("block", FOR_BRIDGE)
def test_the_bridge_takes_its_blocks(block: str, tmp_path: Path) -> None:
    """Together with the contacts and lines that the first one has."""
    config = yaml.safe_load(FOR_BRIDGE[0]) | yaml.safe_load(block)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [PYTHON, "-m", "bridge", "config", "check", "--config", "config.yaml"],
        cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


async def load(home: Home, block: str) -> list[str]:
    """Set up what a block has; the entity ids of its automations."""
    config = parse_yaml(block.replace("THE_ID_OF_THE_DEVICE", home.device("goip_home_goip1").id))
    assert isinstance(config, dict)
    await async_setup_component(home.hass, "persistent_notification", {})
    for domain in config:
        assert await async_setup_component(home.hass, domain, config)
    await home.hass.async_block_till_done()
    aliases = [automation["alias"] for automation in config.get("automation", [])]
    return [f"automation.{alias.lower().replace(' ', '_')}" for alias in aliases]


@pytest.mark.parametrize("block", [block for block in FOR_HOME_ASSISTANT if "automation" in block])
async def test_home_assistant_takes_its_automations(home: Home, block: str) -> None:
    automations = await load(home, block)
    assert automations
    for automation in automations:
        assert home.state(automation) == "on"
    for entity_id in re.findall(r"\b[a-z_]+\.goip_home_\w+", block):
        assert home.state(entity_id) is not None, entity_id


def test_the_other_blocks_are_the_recorder_s() -> None:
    others = [yaml.safe_load(block) for block in FOR_HOME_ASSISTANT if "automation" not in block]
    assert [set(block) for block in others] == [{"recorder"}]
    assert set(others[0]["recorder"]["exclude"]) == {"entity_globs"}


def block_with(words: str) -> str:
    (found,) = [block for block in BLOCKS if words in block]
    return found


def notifications(hass: HomeAssistant) -> list[tuple[str, str]]:
    from homeassistant.components.persistent_notification import _async_get_or_create_notifications

    found: dict[str, Any] = _async_get_or_create_notifications(hass)
    return [(notification["title"], notification["message"]) for notification in found.values()]


async def test_an_sms_is_answered_as_the_page_says(home: Home, world: World) -> None:
    await load(home, block_with("Answer every SMS"))
    world.sms("goip1", CONTACTS["anna"], 'a "quoted" {{ 1 }} text')
    wanted = ("goip1", CONTACTS["anna"], 'Thank you for "a "quoted" {{ 1 }} text"')
    await until(lambda: wanted in world.submitted(), "the answer")


@pytest.mark.parametrize("alias", ["Show SMS of Anna", "Show every SMS"])
async def test_an_sms_is_shown_as_the_page_says(home: Home, world: World, alias: str) -> None:
    await load(home, block_with(alias))
    await until(
        lambda: world.sms("goip1", CONTACTS["anna"], "show {{ 1 }}") or notifications(home.hass), "the SMS is shown"
    )
    title, message = notifications(home.hass)[0]
    assert title.endswith(CONTACTS["anna"])
    assert message == "show {{ 1 }}"


async def test_with_all_examples_together_every_sms_comes_once(home: Home, world: World) -> None:
    """To each automation and to the entity: a broker sends what matches two subscriptions twice."""
    blocks = [parse_yaml(block.replace("THE_ID_OF_THE_DEVICE", home.device("goip_home_goip1").id)) for block in BLOCKS]
    package = load_yaml(str(REPOSITORY / "examples/homeassistant/package.yaml"))
    parts = [block["automation"] for block in [*blocks, package] if isinstance(block, dict) and "automation" in block]
    automations = [automation for part in parts for automation in part]
    assert len(automations) >= 6
    await async_setup_component(home.hass, "persistent_notification", {})
    assert await async_setup_component(home.hass, "automation", {"automation": automations})
    triggered, told = Counter[str](), Counter[str]()
    home.hass.bus.async_listen("automation_triggered", lambda event: triggered.update([event.data["name"]]))

    def count(event: Event[EventStateChangedData]) -> None:
        state = event.data["new_state"]
        if (
            event.data["entity_id"] == "event.goip_home_goip1_sms_in"
            and state is not None
            and "text" in state.attributes
        ):
            told.update([state.attributes["text"]])

    home.hass.bus.async_listen("state_changed", count)
    reading = {"Answer every SMS", "Show SMS of Anna", "Show every SMS"}
    for number, text in enumerate(("first", "second", "third"), 1):  # one that came twice would be there by the next
        world.sms("goip1", CONTACTS["anna"], text)
        await until(
            lambda n=number: all(triggered[name] >= n for name in reading) and told[text] >= 1,  # noqa: B023
            f"all have heard of the {text} SMS, not only {triggered}",
        )
    assert {name: triggered[name] for name in reading} == dict.fromkeys(reading, 3)
    assert told == {"first": 1, "second": 1, "third": 1}


async def test_a_failure_is_told_as_the_page_says(home: Home, world: World) -> None:
    await load(home, block_with("Tell of SMS that failed"))
    world.gateway("fail goip1 38")
    await home.call("notify.send_message", "notify.goip_home_goip1_notify_anna", message="fails")
    await until(lambda: notifications(home.hass), "the failure is told")
    title, message = notifications(home.hass)[0]
    assert title == f"SMS to {CONTACTS['anna']}: failed"
    assert message


def test_the_table_of_a_line_has_every_entity() -> None:
    section = PAGE.partition("## 2. What appears")[2].partition("**A gateway**")[0]
    named = {}
    for row in re.findall(r"^\| (.*?) \| (.*?) \|", section, re.MULTILINE)[1:]:
        for key, off in re.findall(r"`(\w+)`( \(off\))?", row[0]):
            named[key] = "off" if off or "(all off)" in row[0] else "on"
    wanted = {row.unique_id[2:]: "on" if row.enabled else "off" for row in expected.rows("x", expected.LINE)}
    wanted = {key: state for key, state in wanted.items() if not key.startswith("notify_")}
    assert named == wanted | {"trg_sms_received": "on", "trg_call_ringing": "on"}
