"""The store knows what is retained at the broker before it is there, so that it can be removed after any crash."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import ANNOUNCED, NAMED_LINES, Bridge
from bridge.config.settings import Settings
from bridge.mqtt.link import Incoming, Publication
from bridge.retained.discovery import DEVICES_AT_ONCE, MAX_ORPHANS
from bridge.store.database import Store
from harness import StoppedClock

ONE = {"l0": {"password": "p"}}
TWO = ONE | {"l1": {"password": "p"}}


class Link:
    """A link that looks into the store at every publication, as the next run will after a crash."""

    connected, room, retains, mute_s = True, 1000, True, 0.0

    def __init__(self, store: Store) -> None:
        self.store = store
        self.published: list[Publication] = []
        self.probed = False
        self.early: list[str] = []
        "Retained topics that the store did not know when they were published."

    def publish(self, publication: Publication) -> int:
        self.published.append(publication)
        topic = publication.topic
        announced = json.loads(self.store.get(ANNOUNCED) or "[]")
        lines = [*json.loads(self.store.get(NAMED_LINES) or "[]"), "bridge"]
        known = topic in announced if topic.startswith("homeassistant/") else topic.split("/")[1] in lines
        if publication.retain and publication.payload and not known:
            self.early.append(topic)
        return len(self.published) - 1

    def acknowledge(self, _message: Incoming) -> None:
        pass

    def probe(self) -> None:
        self.probed = True

    def subscribe_again(self) -> None:
        pass

    def pause(self, *, on: bool) -> None:
        pass


class World:
    """A bridge at a broker that acknowledges everything."""

    def __init__(self, store: Store, lines: dict[str, Any]) -> None:
        self.store, self.lines, self.clock = store, lines, StoppedClock()
        self.bridge = Bridge(self.settings(), store, self.settings, self.clock)
        self.link = Link(store)
        self.acknowledged = 0
        self.bridge.link = self.bridge.publisher.link = self.link  # type: ignore[assignment]
        self.bridge._go_on()
        self.bridge.pump()
        self.bridge.connected(session_present=False, version="5")
        self.settle()

    def settings(self) -> Settings:
        return Settings(instance="home", lines=self.lines)

    def settle(self) -> None:
        while self.acknowledged < len(self.link.published) or self.link.probed:
            if self.link.probed:
                self.link.probed = False
                self.bridge.proved(self.clock.now)
            tokens = range(self.acknowledged, len(self.link.published))
            self.acknowledged = tokens.stop
            self.bridge.published([(token, 0) for token in tokens])

    def seconds(self, count: int) -> None:
        for _ in range(count):
            self.clock.now += 1.0
            self.bridge._second()
            self.settle()

    def command(self, topic: str) -> Incoming:
        return Incoming(f"goip/{topic}", b"", False, False, None, None, 1, 1)

    def topics(self) -> set[str]:
        return {publication.topic for publication in self.link.published if publication.retain}


DEVICE, STATS = "homeassistant/device/goip_home_l1/config", "goip/l1/stats"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "bridge.db")
    yield opened
    opened.close()


async def test_a_device_of_the_first_moment_is_known_before(store: Store) -> None:
    world = World(store, TWO)
    world.seconds(2)
    assert {DEVICE, STATS} <= world.topics()
    assert world.link.early == []


async def test_what_the_first_sms_brings_about_is_known_before(store: Store) -> None:
    """It may come before the bridge is connected, and the disk may fail in between."""
    bridge = Bridge(Settings(lines=ONE), store, lambda: Settings(lines=ONE), StoppedClock())
    bridge.datagrams_received([(b"RECEIVE:1;id:l0;password:p;srcnum:1;msg:x", ("127.0.0.1", 4000))])
    assert json.loads(store.get(NAMED_LINES)) == ["l0"]


@pytest.mark.parametrize("and_then", ["bridge/cmd/refresh", "l1/cmd/refresh", None])
async def test_a_line_that_a_reload_adds_is_known_before_its_topics_are_there(
    store: Store, and_then: str | None
) -> None:
    world = World(store, ONE)
    world.seconds(10)
    world.lines = TWO
    world.bridge.received([world.command("bridge/cmd/reload")])
    if and_then is not None:
        world.bridge.received([world.command(and_then)])
    world.settle()
    world.bridge._minute()
    world.settle()
    world.seconds(10)
    assert {DEVICE, STATS} <= world.topics()
    assert world.link.early == []


async def test_while_the_store_cannot_be_written_nothing_is_announced_that_it_does_not_know(store: Store) -> None:
    world = World(store, ONE)
    world.seconds(10)
    world.lines = TWO
    store._db.execute("PRAGMA query_only = ON")
    world.bridge.reload_on_signal()
    for _ in range(10):
        world.seconds(6)
        world.bridge._minute()
        world.settle()
    assert world.bridge.stalled
    assert not {DEVICE, STATS} & world.topics()
    store._db.execute("PRAGMA query_only = OFF")
    world.bridge._try_again()
    world.seconds(10)
    assert {DEVICE, STATS} <= world.topics()
    assert world.link.early == []


async def test_a_device_that_a_user_deleted_and_wants_back_is_known_before(store: Store) -> None:
    world = World(store, TWO)
    world.seconds(10)
    world.bridge.received([Incoming(DEVICE, b"", False, False, None, None, 1, 1)])
    world.seconds(2)
    assert DEVICE not in json.loads(store.get(ANNOUNCED))
    count = len(world.link.published)
    world.bridge.received([world.command("l1/cmd/refresh")])
    world.settle()
    world.seconds(10)
    assert DEVICE in {publication.topic for publication in world.link.published[count:]}
    assert world.link.early == []


async def test_documents_that_others_publish_in_our_name_take_bounded_room(store: Store) -> None:
    world = World(store, ONE)
    world.seconds(10)
    orphan = b'{"origin":{"name":"goip-mqtt-bridge"},"availability":[{"topic":"goip/bridge/availability"}]}'
    before = len(world.bridge.publisher._states)
    for first in range(0, 5 * MAX_ORPHANS, 500):
        topics = [f"homeassistant/device/goip_home_x{n}/config" for n in range(first, first + 500)]
        world.bridge.received([Incoming(topic, orphan, False, False, None, None, 0, 1) for topic in topics])
        assert len(world.bridge.discovery._due) <= MAX_ORPHANS
        world.seconds(1)
    world.seconds(30)  # some in each turn
    assert sum(not publication.payload for publication in world.link.published) > MAX_ORPHANS, "they are removed"
    world.seconds(30)
    discovery = world.bridge.discovery
    assert len(discovery._last) == len(discovery._wanted) == 2
    assert discovery._announced == set(discovery._wanted)
    assert len(world.bridge.publisher._states) == before
    endless = "homeassistant/device/goip_home_" + "x" * 60_000 + "/config"
    world.bridge.received([Incoming(endless, orphan, False, False, None, None, 0, 1)])
    assert endless not in discovery._due


async def test_devices_that_wait_for_the_broker_keep_nobody_busy(store: Store) -> None:
    """It goes while they are being published: what is left has its turn when it is back."""
    lines = {f"l{n}": {"password": "p"} for n in range(3 * DEVICES_AT_ONCE)}
    world = World(store, lines)
    world.clock.now += 1.0
    world.bridge._announce(DEVICES_AT_ONCE)
    assert world.bridge.discovery.is_due
    world.link.connected = False
    assert not world.bridge._announce(DEVICES_AT_ONCE), "or it would be looked at a hundred times a second"
    world.link.connected = True
    world.bridge.connected(session_present=True, version="5")
    world.settle()
    for _ in lines:
        world.seconds(1)
    assert {f"homeassistant/device/goip_home_{line}/config" for line in lines} <= world.topics()
