"""Home Assistant with its own MQTT integration, connected over TCP to a real broker (see world.py)."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_socket
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers import entity_registry as er
from pytest_homeassistant_custom_component.common import MockConfigEntry
from world import PASSWORDS, World, running, until, until_now

from outputs import pytest_runtest_logstart, pytest_runtest_makereport

__all__ = ["pytest_runtest_logstart", "pytest_runtest_makereport"]  # the output of processes where a test fails

CONTACTS = {"anna": "+4915112345678", "ben": "+4915112345679", "notify": "+4915112345670"}
GROUPS = {"family": ["anna", "ben"]}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The world that most tests share; they leave it as they found it."""
    pytest_socket.enable_socket()
    directory = tmp_path_factory.mktemp("world")
    lines = {
        f"goip{number}": {"password": f"password{number}", "gateway": "rack1"}
        | ({"name": "Gate SIM"} if number == 2 else {})
        for number in range(1, 9)
    }
    with running(directory, lines=lines, contacts=CONTACTS, groups=GROUPS) as shared:
        shared.mqtt.publish("homeassistant/status", "online")  # for all those that say no birth
        until_now(lambda: "Home Assistant is there" in shared.log, "the bridge knows that Home Assistant is there")
        yield shared


@pytest.fixture(autouse=True)
def _network(socket_enabled: None) -> None:
    """Loopback only: the plugin sees to that."""


@pytest.fixture
def expected_lingering_timers() -> bool:
    """The MQTT client's own timers are cut off at the end of a test."""
    return True


class Complaints(logging.Handler):
    """Every warning and error of Home Assistant."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.excused = [
            "async_forward_entry_setups for integration mqtt",  # its own, where it starts with a device announced
            "Unable to remove unknown dispatcher",  # its own, when it stops after a device with triggers was removed
        ]
        "Parts of messages that are no complaint about the bridge; a test adds what it brings about on purpose."

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("homeassistant."):
            self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def left(self) -> list[str]:
        return [line for line in self.lines if not any(part in line for part in self.excused)]


@pytest.fixture(autouse=True)
def complaints() -> Iterator[Complaints]:
    """A test fails when Home Assistant complained of anything while it ran."""
    handler = Complaints()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    assert not handler.left(), "\n".join(handler.left())


@dataclass
class Home:
    """A running Home Assistant, and short words for what the tests ask it."""

    hass: HomeAssistant
    entry: MockConfigEntry
    events: list[Any] = field(default_factory=list)

    def state(self, entity_id: str) -> str | None:
        """None where there is no such state, as of a disabled entity."""
        state = self.hass.states.get(entity_id)
        return None if state is None else state.state

    def attribute(self, entity_id: str, name: str) -> Any:
        state = self.hass.states.get(entity_id)
        return None if state is None else state.attributes.get(name)

    async def becomes(self, entity_id: str, value: str | Callable[[str | None], object]) -> str | None:
        """Wait until a state has this value, or passes the check."""
        check = value if callable(value) else lambda state: state == value
        try:
            await until(lambda: check(self.state(entity_id)), f"{entity_id} is {value}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.hass.states.get(entity_id)}") from None
        return self.state(entity_id)

    async def call(self, action: str, entity_id: str | list[str] | None = None, **data: Any) -> None:
        """Carry out an action and wait for it."""
        domain, _, service = action.partition(".")
        target = None if entity_id is None else {"entity_id": entity_id}
        await self.hass.services.async_call(domain, service, data, target=target, blocking=True)

    def entities(self) -> dict[str, er.RegistryEntry]:
        """All entities of MQTT by unique id, disabled ones as well."""
        found = er.async_entries_for_config_entry(er.async_get(self.hass), self.entry.entry_id)
        return {entity.unique_id: entity for entity in found}

    def devices(self) -> dict[str, dr.DeviceEntry]:
        """All devices of MQTT by their identifier."""
        found = dr.async_entries_for_config_entry(dr.async_get(self.hass), self.entry.entry_id)
        return {next(iter(device.identifiers))[1]: device for device in found}

    def device(self, identifier: str) -> dr.DeviceEntry:
        return self.devices()[identifier]


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Start a world of a test's own, with two lines unless it says otherwise. It outlives Home Assistant."""
    pytest_socket.enable_socket()
    lines = {f"goip{number}": {"password": f"password{number}"} for number in (1, 2)}
    with contextlib.ExitStack() as stack:

        def start(**config: Any) -> World:
            wanted = {"lines": lines, "contacts": CONTACTS} | config
            return stack.enter_context(running(tmp_path / "world", **wanted))

        yield start


@pytest.fixture(autouse=True)
def config_folder(make: Make, hass: HomeAssistant, tmp_path: Path) -> Path:
    """Home Assistant's own folder, empty but for its configuration. (`make` first, so that it is undone last.)"""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "configuration.yaml").write_text("")
    hass.config.config_dir = str(folder)
    return folder


async def connect(hass: HomeAssistant, port: int, *, birth: bool = False) -> Home:
    """Set up the MQTT integration as its dialogue would, with the access rights of Home Assistant.

    It says its birth five seconds after the last device came, and then its will in the end: on request only, since it
    would fall into the end of a test, and the shared world would lose its Home Assistant.
    """
    entry = MockConfigEntry(
        domain="mqtt",
        title="broker",
        version=2,
        minor_version=1,
        data={
            "broker": "127.0.0.1",
            "port": port,
            "protocol": "5",
            "username": "homeassistant",
            "password": PASSWORDS["homeassistant"],
        },
        options={} if birth else {"birth_message": {}, "will_message": {}},
    )
    entry.add_to_hass(hass)
    assert await hass.config_entries.async_setup(entry.entry_id)
    assert entry.state is ConfigEntryState.LOADED
    return Home(hass, entry)


async def settled(home: Home, world: World) -> None:
    """Wait until every announced component is there and available: a command to another one is lost."""

    def announced() -> set[str]:
        return {
            component["unique_id"]
            for config in world.mqtt.configs().values()
            for component in config["components"].values()
            if "unique_id" in component
        }

    def unavailable() -> list[str]:
        return [
            entity.entity_id for entity in home.entities().values() if home.state(entity.entity_id) == "unavailable"
        ]

    await until(lambda: announced() and announced() == set(home.entities()), "the entities are those announced")
    await until(lambda: not unavailable(), f"all are available, but not {unavailable()[:5]}")


@pytest.fixture
async def home(hass: HomeAssistant, world: World) -> Home:
    """Home Assistant, connected to the shared world, with all its devices there."""
    connected = await connect(hass, world.broker.port)
    await settled(connected, world)
    return connected
