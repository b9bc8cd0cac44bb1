"""Discovery topics, as subscribers of a real broker see them; `make test-homeassistant` has Home Assistant itself."""

import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config.settings import Settings
from bridge.contract.topics import Topics
from bridge.homeassistant.documents import Hardware, documents, notify_keys
from bridge.mqtt.link import Publication
from bridge.mqtt.publisher import Publisher
from bridge.retained.discovery import APART_S, BIRTH_S, HOME_S, OLD_WILL_S, SETTLE_S, Discovery
from bridge.retained.topics import STATS_S
from bridge.store.database import Store
from broker_fixture import Broker
from brokers import Mosquitto
from harness import (
    BridgeProcess,
    StoppedClock,
    Watcher,
    as_broker,
    bridge_config,
    own_broker,
    raw_line,
    running,
    watching,
)

pytestmark = pytest.mark.broker("binary")

DEVICES = "homeassistant/device/+/config"
LINES = {"goip1": {"password": "p1", "gateway": "rack1", "name": "Gate SIM"}, "Goip-2": {"password": "p2"}}
OBJECT_IDS = ["goip_home_bridge", "goip_home_gateway_rack1", "goip_home_goip_2", "goip_home_goip1"]
"In the order of the file that `running` writes."


def topic(name: str) -> str:
    return f"homeassistant/device/goip_home_{name}/config"


def config(broker: Broker, lines: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return bridge_config(broker, "goip", LINES if lines is None else lines, **more) | {"instance": "home"}


def devices(watcher: Watcher) -> list[str]:
    """The object ids of all devices that were published, in that order."""
    return [seen.topic.split("/")[2] for seen in watcher.on(DEVICES) if seen.payload]


async def online(watcher: Watcher, count: int = 1) -> None:
    await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online", count=count)


@contextlib.asynccontextmanager
async def setup(
    tmp_path: Path, lines: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[tuple[Mosquitto, BridgeProcess, Watcher]]:
    """A broker without persistence, a bridge, and somebody who listens as Home Assistant does."""
    async with own_broker(tmp_path / "broker") as mosquitto:
        broker = as_broker(mosquitto)
        settings = config(broker, lines, **more)
        async with watching(broker, DEVICES, "goip/#") as watcher, running(tmp_path, settings) as bridge:
            await online(watcher)
            await watcher.until(topic("goip1"))  # the last
            yield mosquitto, bridge, watcher


async def reload(bridge: BridgeProcess, watcher: Watcher, changed: dict[str, Any]) -> None:
    (bridge.directory / "config.yaml").write_text(yaml.safe_dump(changed))
    count = len(watcher.on("goip/bridge/result/reload"))
    await watcher.publish("goip/bridge/cmd/reload")
    assert (await watcher.until("goip/bridge/result/reload", count=count + 1)).json["code"] == "ok"


async def test_devices_come_after_everything_that_is_more_urgent(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, _, watcher):
        assert devices(watcher) == OBJECT_IDS
        order = [seen.topic for seen in watcher.seen]
        assert order.index("goip/bridge/availability") < order.index(topic("bridge"))
        for seen in watcher.on(DEVICES):
            assert set(seen.json) <= {"device", "origin", "components", "availability", "availability_mode"}
            assert seen.properties.get("ContentType") == "application/json"
            for component in seen.json["components"].values():
                assert ("unique_id" in component) == (component["platform"] != "device_automation")
                assert component["qos"] == 1


async def test_every_topic_of_a_device_is_one_of_the_bridge(tmp_path: Path) -> None:
    """What an entity reads is published, and what it writes is a command that the bridge knows."""
    async with setup(tmp_path, contacts={"anna": "+4915112345678"}) as (_, bridge, watcher):
        with raw_line(bridge.udp_port, "goip1", "p1") as line:
            await line.register(disable_status="0")
            await watcher.until("goip/goip1/state")
            await line.ask(line.event("RECEIVE", "srcnum:1;msg:x"))
            await watcher.until("goip/goip1/sms/last")
            await watcher.until("goip/goip1/sms/in")
            await watcher.publish(STATUS, "online")
            await watcher.until(COPY)
        said = {seen.topic for seen in watcher.seen}
        facts = {f"goip/goip1/homeassistant/{path}" for path in ("delivery", "call", "ussd")}
        commands = set()
        for seen in watcher.on(DEVICES):
            if "goip_2" in seen.topic:
                continue
            for component in seen.json["components"].values():
                for key in ("state_topic", "json_attributes_topic", "topic"):
                    assert component.get(key, "goip/bridge/info") in said | facts | {"goip/bridge/homeassistant/event"}
                commands.add(component.get("command_topic"))
        for command in commands - {None, "goip/bridge/cmd/restart"}:
            await watcher.publish(command, '{"nonsense": 1}')
            path = command.split("/", 3)
            result = await watcher.until(f"goip/{path[1]}/result/{path[3]}")
            assert result.json["code"] == "invalid_payload", command


async def test_what_a_user_deleted_stays_away_until_it_is_asked_for(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        await watcher.client.publish(topic("goip1"), b"", qos=0, retain=True)
        await bridge.logged("goip_home_goip1/config was deleted")
        before = len(devices(watcher))
        await watcher.publish("homeassistant/status", "online")  # Home Assistant restarts
        await watcher.until(topic("goip_2"), count=2)
        assert devices(watcher)[before:] == OBJECT_IDS[:3]
        await watcher.publish("goip/goip1/cmd/refresh")
        await watcher.client.publish(topic("goip1"), b"", qos=0, retain=True)  # one more of the many from the deletion
        await watcher.until(topic("goip1"), lambda seen: seen.payload != b"", count=2)


async def test_a_deleted_device_is_back_after_a_restart(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        await watcher.client.publish(topic("goip1"), b"", qos=0, retain=True)
        await bridge.logged("goip_home_goip1/config was deleted")
        count = len([name for name in devices(watcher) if name == "goip_home_goip1"])
        await watcher.publish("goip/bridge/cmd/restart")
        assert (await watcher.until("goip/bridge/result/restart")).json["code"] == "ok"
        await watcher.until(topic("goip1"), lambda seen: seen.payload != b"", count=count + 1)
        assert "starting the bridge again, as asked" in bridge.log


async def test_home_assistants_birth_is_answered_with_everything(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, _, watcher):
        states = len(watcher.on("goip/bridge/info"))
        before = len(devices(watcher))
        began = time.monotonic()
        await watcher.publish("homeassistant/status", "online")
        await watcher.until("goip/bridge/info", count=states + 1)
        assert devices(watcher)[before:] == OBJECT_IDS, "before the states"
        assert time.monotonic() - began >= 1.0, "not at once"


# -- whether Home Assistant is there --------------------------------------------------------------------------------

SMS, COPY, STATUS = "goip/goip1/sms/in", "goip/goip1/homeassistant/sms/in", "homeassistant/status"


def texts(watcher: Watcher, where: str) -> list[str]:
    return [seen.json["text"] for seen in watcher.on(where)]


async def receive(bridge: BridgeProcess, *texts: str) -> None:
    """SMS that come to goip1, and are acknowledged."""
    with raw_line(bridge.udp_port, "goip1", "p1") as line:
        line.count, line.recvid = int(time.time()), int(time.time() * 1000) % 10**9
        await line.register()
        for text in texts:
            answer = await line.ask(line.event("RECEIVE", f"srcnum:+4915112345678;msg:{text}"))
            assert answer.endswith(b"OK\n"), answer


async def test_what_comes_while_home_assistant_is_away_is_told_once_when_it_is_back(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        await watcher.publish(STATUS, "online")
        await bridge.logged("Home Assistant is there")
        await receive(bridge, "one")
        await watcher.until(COPY)
        await watcher.publish(STATUS, "offline")
        await bridge.logged("Home Assistant is away")
        await receive(bridge, "two", "three")
        await watcher.until(SMS, count=3)
        await bridge.kill()
        await bridge.start()
        await online(watcher, 2)
        await receive(bridge, "four")
        await watcher.until(SMS, lambda seen: seen.json["text"] == "four")
        assert texts(watcher, COPY) == ["one"], "it is not there"
        await watcher.publish(STATUS, "online")
        await watcher.until(COPY, count=4)
        await receive(bridge, "five")
        await watcher.until(COPY, count=5)
        assert texts(watcher, COPY) == ["one", "two", "three", "four", "five"]
        facts, copies = {seen.json["id"]: seen.json for seen in watcher.on(SMS)}, watcher.on(COPY)
        for copy in copies:
            assert copy.json | {"ts": ""} == facts[copy.json["id"]] | {"ts": ""}
        assert all(not seen.retain for seen in copies)
        assert {dict(seen.properties["UserProperty"])["schema"] for seen in copies} == {"sms_in"}


async def test_after_its_birth_home_assistant_gets_its_devices_first(tmp_path: Path) -> None:
    """They may be new to it, as to a broker that lost everything."""
    async with setup(tmp_path) as (_, bridge, watcher):
        await receive(bridge, "one")
        await watcher.until(SMS)
        count = len(watcher.seen)
        await watcher.publish(STATUS, "online")
        await watcher.until(COPY)
        after = [seen.topic for seen in watcher.seen[count:]]
        for object_id in OBJECT_IDS:
            assert after.index(f"homeassistant/device/{object_id}/config") < after.index(COPY)


async def test_what_home_assistant_gets_is_not_told_as_unheard(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as mosquitto:
        broker = as_broker(mosquitto)
        async with watching(broker, COPY, "goip/bridge/#") as watcher, running(tmp_path, config(broker)) as bridge:
            await online(watcher)
            await watcher.publish(STATUS, "online")
            await bridge.logged("Home Assistant is there")
            await receive(bridge, "one")
            await watcher.until(COPY)
            with raw_line(bridge.udp_port, "goip1", "p1") as line:
                line.count, line.recvid = int(time.time()), 5
                await line.register()
                await line.ask(line.event("REMAIN", "remain:7"))  # has no copy
            await watcher.until("goip/bridge/event", lambda seen: seen.json["topic"] == "goip/goip1/event")
            assert SMS not in [seen.json["topic"] for seen in watcher.on("goip/bridge/event")]


async def test_without_discovery_there_are_no_copies(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as mosquitto:
        broker = as_broker(mosquitto)
        settings = config(broker, homeassistant={"discovery": False})
        async with watching(broker, "goip/#") as watcher, running(tmp_path, settings) as bridge:
            await online(watcher)
            await receive(bridge, "one")
            await watcher.until(SMS)
            await bridge.stop()
            with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
                assert store.outbox_copies() == []


class Link:
    """A broker that takes everything."""

    connected, room = True, 100

    def __init__(self) -> None:
        self.sent = 0

    def publish(self, _publication: Publication) -> int:
        self.sent += 1
        return self.sent


class Watch:
    """Discovery with a clock that the test sets; everything that it publishes is acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.link = StoppedClock(), Link()
        self.store = Store(folder / "bridge.db")
        self.publisher = Publisher(self.store, self.clock.time, Topics("goip"))
        self.publisher.link = self.link  # type: ignore[assignment]
        settings = Settings.model_validate({"lines": {"a": {"password": "p", "gateway": "g"}}})
        self.known = {"a": Hardware(None, None)}
        self.discovery = Discovery(
            "home", settings, Topics("goip"), self.publisher, self.clock, [], self.known.__getitem__
        )
        self.discovery.known = set(self.discovery.announced())
        self.connect()

    def connect(self) -> None:
        self.discovery.connected()
        self.publisher.connected()

    def hears(self, word: bytes, *, retain: bool = False) -> None:
        self.discovery.heard(STATUS, word, retain=retain)

    def there_after(self, seconds: float, most: float = 10_000.0) -> float | None:
        """Wait so long at least; in how many seconds it is there, or None."""
        began = self.clock.now
        while self.clock.now - began < most:
            sent = self.link.sent
            self.discovery.tick()
            self.publisher.drain(self.clock.now)
            self.publisher.acknowledged([(token + 1, 0) for token in range(sent, self.link.sent)], self.clock.now)
            if self.publisher.at_home and self.clock.now - began >= seconds:
                return self.clock.now - began
            self.clock.now += 1.0
        return None


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    made.store.close()


def test_home_assistant_is_away_until_its_birth_or_a_minute(watch: Watch) -> None:
    assert watch.there_after(0) == HOME_S, "it may have been there all the time"
    watch.hears(b"offline")
    assert not watch.publisher.at_home
    assert watch.there_after(0) is None
    watch.hears(b"online")
    waited = watch.there_after(0)
    assert waited is not None
    assert BIRTH_S[0] + SETTLE_S <= waited <= BIRTH_S[1] + SETTLE_S + APART_S
    watch.connect()
    assert not watch.publisher.at_home
    assert watch.there_after(0) == HOME_S


def test_a_birth_that_was_retained_is_from_before_and_a_will_is_not(watch: Watch) -> None:
    watch.hears(b"online", retain=True)
    assert watch.there_after(0) == HOME_S
    watch.connect()
    watch.hears(b"offline", retain=True)
    assert watch.there_after(0) is None


def test_a_birth_while_it_is_there_takes_nothing_away(watch: Watch) -> None:
    watch.there_after(0)
    watch.hears(b"online")
    assert watch.publisher.at_home
    assert watch.there_after(20) == 20


def test_the_will_of_an_earlier_run_does_not_send_home_assistant_away_for_good(watch: Watch) -> None:
    """After a power failure the broker tells it 90 s late, when the next one is there already."""
    watch.hears(b"online")
    watch.there_after(0)
    watch.clock.now += 60
    watch.hears(b"offline")
    assert watch.there_after(0) == HOME_S
    watch.clock.now += OLD_WILL_S
    watch.hears(b"offline")
    assert watch.there_after(0) is None


def test_a_birth_from_before_the_connection_does_not_count(watch: Watch) -> None:
    watch.hears(b"online")
    watch.connect()
    assert watch.there_after(0) == HOME_S


def test_devices_that_the_broker_does_not_take_keep_nothing_for_long(watch: Watch) -> None:
    watch.hears(b"offline")
    watch.publisher.say_only(())  # as on standby
    watch.hears(b"online")
    assert watch.there_after(0) == HOME_S


def made_by(watch: Watch, name: str) -> dict[str, Any]:
    device = json.loads(watch.publisher.said(topic(name)) or b"{}")["device"]
    assert isinstance(device, dict)
    return device


def test_what_a_line_tells_of_its_hardware_is_in_its_device(watch: Watch) -> None:
    watch.there_after(0)
    assert not {"configuration_url", "serial_number"} & set(made_by(watch, "a"))
    watch.known["a"] = Hardware("192.0.2.7", None)
    watch.discovery.look_at(["a", "unknown"][:1])
    watch.there_after(20)
    for name in ("a", "gateway_g"):
        assert made_by(watch, name)["configuration_url"] == "http://192.0.2.7"
    watch.known["a"] = Hardware("2001:db8::7", "860000020000001")
    watch.discovery.look_at(["a"])
    watch.known["a"] = Hardware(None, None)  # a keepalive may leave it out
    watch.discovery.look_at(["a"])
    watch.there_after(20)
    device = made_by(watch, "a")
    assert (device["configuration_url"], device["serial_number"]) == ("http://[2001:db8::7]", "860000020000001")
    sent = watch.link.sent
    watch.discovery.look_at(["a"])
    watch.there_after(20)
    assert watch.link.sent == sent, "nothing new"


async def test_hardware_is_known_from_before_a_restart(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        with raw_line(bridge.udp_port, "goip1", "p1") as line:
            await line.register(imei="860000020000009")
        await watcher.until(topic("goip1"), lambda seen: "serial_number" in seen.json["device"])
        await bridge.stop()
        count = len(watcher.on(topic("goip1")))
        await bridge.start()
        again = await watcher.until(topic("goip1"), count=count + 1)
        assert again.json["device"]["serial_number"] == "860000020000009"
        assert again.json["device"]["configuration_url"] == "http://127.0.0.1"


async def test_counters_are_published_when_they_change_and_seldom(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        for number in range(1, 4):
            await receive(bridge, f"{number}a", f"{number}b")
            await watcher.until("goip/goip1/stats", lambda seen, n=number: seen.json["total"]["received"] == 2 * n)
        times = [seen.json["ts"] for seen in watcher.on("goip/goip1/stats") if seen.json["total"]["received"]]
        moments = [datetime.fromisoformat(time).timestamp() for time in times]
        assert all(later - earlier > STATS_S - 0.5 for earlier, later in itertools.pairwise(moments)), times


async def test_a_device_that_is_too_large_names_the_brokers_limit(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker", config="max_packet_size 12000") as mosquitto:
        broker = as_broker(mosquitto)
        async with watching(broker, "goip/#") as watcher, running(tmp_path, config(broker)):
            told = await watcher.until(
                "goip/bridge/event", lambda seen: (seen.json["topic"] or "").startswith("homeassistant/")
            )
            assert told.json["event_type"] == "publish_refused"
            assert "takes packets of up to 12000 bytes, and this has " in told.json["message"]
            assert "max_packet_size" in told.json["message"]
            assert "homeassistant.overrides" in told.json["message"]


async def test_a_broker_that_lost_everything_gets_it_again(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as mosquitto:
        broker = as_broker(mosquitto)
        async with running(tmp_path, config(broker)):
            async with watching(broker, DEVICES, "goip/#") as watcher:
                await online(watcher)
            mosquitto.kill()
            mosquitto.start()
            async with watching(broker, DEVICES, "goip/#") as watcher:
                await online(watcher)
                for object_id in OBJECT_IDS:
                    await watcher.until(f"homeassistant/device/{object_id}/config")


async def test_a_line_that_is_removed_takes_its_device_along_and_then_its_topics(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        with raw_line(bridge.udp_port, "goip1", "p1") as line:
            await line.register()
            await watcher.until("goip/goip1/state")
        await reload(bridge, watcher, bridge.config | {"lines": {"Goip-2": LINES["Goip-2"]}})
        await watcher.until("goip/goip1/state", lambda seen: seen.payload == b"")
        removed = [seen.topic for seen in watcher.seen if seen.payload == b"" and "/cmd/" not in seen.topic]
        assert set(removed[:2]) == {topic("goip1"), topic("gateway_rack1")}
        assert set(removed[2:]) >= {"goip/goip1/state", "goip/goip1/availability"}
        # An empty payload for a device that it does not know makes Home Assistant warn.
        assert removed.count(topic("goip1")) == 1


async def test_what_was_removed_while_the_bridge_was_down_is_cleaned_up(tmp_path: Path) -> None:
    async with setup(tmp_path) as (mosquitto, bridge, watcher):
        with raw_line(bridge.udp_port, "goip1", "p1") as line:
            await line.register()
            await watcher.until("goip/goip1/state")
        await bridge.stop()
        bridge.config["lines"] = {"Goip-2": LINES["Goip-2"]}
        strangers = {
            topic("goip7"): {
                "origin": {"name": "goip-mqtt-bridge"},
                "availability": [{"topic": "x/bridge/availability"}],
            },
            topic("goip8"): {"origin": {"name": "somebody"}, "availability": [{"topic": "goip/bridge/availability"}]},
            "homeassistant/device/zigbee/config": {"origin": {"name": "Zigbee2MQTT"}},
            topic("goip9"): "not an object",
        }
        orphan = {"origin": {"name": "goip-mqtt-bridge"}, "availability": [{"topic": "goip/bridge/availability"}]}
        for where, what in (strangers | {topic("long_gone"): orphan}).items():
            await watcher.publish(where, json.dumps(what, separators=(",", ":")), retain=True)
        await bridge.start()
        await online(watcher, 2)
        for gone in ("goip1", "gateway_rack1", "long_gone"):
            await watcher.until(topic(gone), lambda seen: seen.payload == b"")
        await watcher.until("goip/goip1/availability", lambda seen: seen.payload == b"")
        async with watching(as_broker(mosquitto), DEVICES) as late:
            await late.until(topic("goip_2"))
            kept = {seen.topic for seen in late.seen}
            for where in strangers:
                await late.until(where)
        assert not kept & {topic("goip1"), topic("gateway_rack1"), topic("long_gone")}


async def test_a_line_that_was_never_heard_leaves_nothing_behind(tmp_path: Path) -> None:
    async with setup(tmp_path) as (mosquitto, bridge, watcher):
        await watcher.until("goip/goip1/stats")
        await bridge.stop()
        bridge.config["lines"] = {"Goip-2": LINES["Goip-2"]}
        await bridge.start()
        await watcher.until("goip/goip1/stats", lambda seen: seen.payload == b"")
        await bridge.stop()
        async with watching(as_broker(mosquitto), DEVICES, "goip/#") as late:
            await late.until(topic("goip_2"))
            assert not [seen.topic for seen in late.seen if "goip1" in seen.topic]


async def test_after_kill_9_devices_are_known_to_be_there(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        await bridge.kill()  # within the first second
        bridge.config["homeassistant"] = {"discovery": False}
        await bridge.start()
        for object_id in OBJECT_IDS:
            await watcher.until(f"homeassistant/device/{object_id}/config", lambda seen: seen.payload == b"")


async def test_switched_off_the_devices_go(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, bridge, watcher):
        await bridge.stop()
        bridge.config["homeassistant"] = {"discovery": False}
        await bridge.start()
        await online(watcher, 2)
        for object_id in OBJECT_IDS:
            await watcher.until(f"homeassistant/device/{object_id}/config", lambda seen: seen.payload == b"")
        count = len(watcher.on(DEVICES))
        await bridge.stop()
        await bridge.start()
        await online(watcher, 3)
        assert len(watcher.on(DEVICES)) == count, "removed once is enough"


async def test_changes_come_apart(tmp_path: Path) -> None:
    """Home Assistant drops most of a device that is published twice within a moment."""
    async with setup(tmp_path) as (_, bridge, watcher):
        began = time.monotonic()
        for name in ("One", "Two", "Three"):
            await reload(
                bridge, watcher, bridge.config | {"lines": LINES | {"Goip-2": {"password": "p2", "name": name}}}
            )
        last = await watcher.until(topic("goip_2"), lambda seen: seen.json["device"]["name"] == "Three")
        assert len(watcher.on(topic("goip_2"))) == 2
        assert time.monotonic() - began >= APART_S - 2, "not before the time was over"
        assert last.json["device"]["identifiers"] == ["goip_home_goip_2"]
        assert len(watcher.on(topic("goip1"))) == 1, "nothing of this one changed"


def components(payload: bytes) -> dict[str, Any]:
    found = json.loads(payload)["components"]
    assert isinstance(found, dict)
    return found


async def test_an_entity_that_is_no_longer_wanted_is_removed_and_then_left_out(tmp_path: Path) -> None:
    """Home Assistant keeps what is merely left out."""
    async with setup(tmp_path, contacts={"anna": "+491", "ben": "+492"}) as (_, bridge, watcher):
        fewer = {"contacts": {"anna": "+491"}, "homeassistant": {"overrides": {"imei": None}}}
        await reload(bridge, watcher, bridge.config | fewer)
        removing = components((await watcher.until(topic("goip1"), count=2)).payload)
        assert (removing["notify_ben"], removing["imei"]) == ({"platform": "notify"}, {"platform": "sensor"})
        assert len(removing["notify_anna"]) > 5
        after = components((await watcher.until(topic("goip1"), count=3)).payload)
        assert not {"notify_ben", "imei"} & set(after)
        assert set(removing) - set(after) == {"notify_ben", "imei"}


async def test_an_entity_that_was_taken_out_while_the_bridge_was_down_is_removed_too(tmp_path: Path) -> None:
    async with setup(tmp_path, contacts={"anna": "+491", "ben": "+492"}) as (_, bridge, watcher):
        await bridge.stop()
        bridge.config["contacts"] = {"anna": "+491"}
        await bridge.start()
        published = [components((await watcher.until(topic("goip1"), count=n)).payload) for n in (1, 2, 3, 4)]
        assert [document.get("notify_ben", {}).get("platform") for document in published] == [
            "notify", None, "notify", None,
        ]  # fmt: skip
        assert published[2]["notify_ben"] == {"platform": "notify"}


@pytest.mark.parametrize("half", [b'{"device": {}', None], ids=["broken", "half of it"])
async def test_a_device_that_somebody_overwrites_is_mended(tmp_path: Path, half: bytes | None) -> None:
    async with setup(tmp_path) as (_, _, watcher):
        whole = watcher.on(topic("goip_2"))[-1]
        if half is None:
            two = dict(list(whole.json["components"].items())[:2])
            half = json.dumps(whole.json | {"components": two}, separators=(",", ":")).encode()
        await watcher.client.publish(topic("goip_2"), half, qos=1, retain=True)
        await watcher.until(topic("goip_2"), lambda seen: seen.payload == whole.payload, count=2)


async def test_other_programs_take_no_room_from_commands_that_wait(tmp_path: Path) -> None:
    """A broker keeps some 1000 messages for a client that is away."""
    async with setup(tmp_path) as (_, bridge, watcher):
        await bridge.stop()
        for number in range(1100):
            await watcher.publish(f"homeassistant/device/other{number}/config", '{"device":{}}', retain=True)
        await watcher.publish("goip/goip1/cmd/sms", {"to": "+4915112345678", "text": "alarm"})
        await bridge.start()
        assert (await watcher.until("goip/goip1/result/sms")).json["code"] == "ok"


async def test_births_that_never_end_are_answered(tmp_path: Path) -> None:
    async with setup(tmp_path) as (_, _, watcher):
        count = len(watcher.on(topic("goip1")))
        until = time.monotonic() + 30
        while len(watcher.on(topic("goip1"))) == count:
            assert time.monotonic() < until
            await watcher.publish("homeassistant/status", "online")
            await watcher.publish("goip/bridge/cmd/ping")  # one round trip is the pace
            await watcher.until("goip/bridge/result/ping", count=len(watcher.on("goip/bridge/result/ping")) + 1)


async def test_a_line_that_is_removed_while_the_broker_is_away_leaves_nothing_behind(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker", persistence=True) as mosquitto:
        broker = as_broker(mosquitto)
        async with running(tmp_path, config(broker)) as bridge:
            async with watching(broker, "goip/#") as watcher:
                with raw_line(bridge.udp_port, "goip1", "p1") as line:
                    await line.register()
                    await watcher.until("goip/goip1/state")
            mosquitto.terminate()
            await bridge.stop()
            bridge.config["lines"] = {"Goip-2": LINES["Goip-2"]}
            await bridge.start()
            await bridge.logged("cannot connect")
            await bridge.stop()  # it had no chance to say anything
            mosquitto.start()
            await bridge.start()
            async with watching(broker, DEVICES, "goip/#") as watcher:
                await watcher.until("goip/goip1/state", lambda seen: seen.payload == b"")
                await watcher.until("goip/goip1/availability", lambda seen: seen.payload == b"")
            async with watching(broker, DEVICES, "goip/#") as late:
                await late.until(topic("goip_2"))
                assert not [seen.topic for seen in late.seen if "goip1" in seen.topic]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_our_own_removal_that_comes_back_is_no_deletion_by_a_user(tmp_path: Path, version: str) -> None:
    """MQTT 3.1.1 has no no-local: the bridge hears what it publishes."""
    async with setup(tmp_path, mqtt={"version": version}) as (_, bridge, watcher):
        await reload(bridge, watcher, bridge.config | {"lines": {"goip1": LINES["goip1"]}})
        await watcher.until(topic("goip_2"), lambda seen: seen.payload == b"")
        await reload(bridge, watcher, bridge.config)
        await watcher.until(topic("goip_2"), lambda seen: seen.payload != b"", count=2)
        assert "was deleted" not in bridge.log


# -- the documents themselves ---------------------------------------------------------------------------------------


def made(**settings: Any) -> dict[str, dict[str, Any]]:
    configured = Settings.model_validate({"lines": {"a": {"password": "p"}}} | settings)
    return {id: json.loads(text) for id, text in documents("x", configured, Topics("goip")).items()}


def test_notify_entities_have_keys_of_letters_and_digits_and_no_two_alike() -> None:
    keys = notify_keys(["anna", "Anna", "Anna!", "мама", "🚪", "notify", "A b", "a_b"])
    assert keys["anna"] == "notify_anna"
    assert keys["notify"] == "notify_notify"
    assert keys["a_b"] == "notify_a_b"
    assert len(set(keys.values())) == len(keys)
    assert all(key.replace("_", "").isalnum() and key.isascii() and key == key.lower() for key in keys.values())
    assert notify_keys(["Anna"])["Anna"] == "notify_anna"


@pytest.mark.parametrize("name", ["anna", 'Zoë "Z" \\ {{ 1 }} {% x %} 🚪', "notify"])
def test_a_notify_template_is_json_with_the_name_whatever_it_holds(name: str) -> None:
    (component,) = [
        c for c in made(contacts={name: "+491"})["goip_x_a"]["components"].values() if c["platform"] == "notify"
    ]
    template = component["command_template"]
    before, placeholder, after = template.partition("{{ value | tojson }}")
    assert placeholder
    assert "{{" not in before + after
    assert "{%" not in template
    assert "{#" not in template
    assert json.loads(before + '"hi"' + after) == {"to": [f"@{name}"], "text": "hi"}


def test_overrides_change_and_remove_entities_of_every_device() -> None:
    overrides = {
        "signal_pct": {"enabled_by_default": True, "icon": None},
        "imei": None,
        "notify_anna": {"name": "SMS to Anna"},
        "restart": None,
    }
    found = made(contacts={"anna": "+491"}, homeassistant={"overrides": overrides})
    line, bridge = found["goip_x_a"]["components"], found["goip_x_bridge"]["components"]
    assert line["signal_pct"]["enabled_by_default"] is True
    assert "icon" not in line["signal_pct"]
    assert "imei" not in line
    assert "restart" not in bridge
    assert line["notify_anna"]["name"] == "SMS to Anna"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"lines": {"a-b": {"password": "p"}, "a_b": {"password": "p"}}}, "line a_b and line a-b would be one device"),
        ({"lines": {"gateway_r": {"password": "p", "gateway": "r"}}}, "line gateway_r and gateway r would be one"),
        ({"homeassistant": {"overrides": {"signl": None}}}, "there is no entity of this key; did you mean signal"),
        ({"homeassistant": {"overrides": {"signal": {"unique_id": "x"}}}}, "unique_id can't be changed"),
        ({"homeassistant": {"overrides": {"exp_time": {"max": 10**20}}}}, "can't be written as JSON"),
        ({"homeassistant": {"overrides": {"signal": {"name": "\ud83d"}}}}, "can't be written as JSON"),
    ],
)
def test_what_home_assistant_could_not_tell_apart_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Settings.model_validate(settings)
    if "lines" in settings:
        Settings.model_validate(settings | {"homeassistant": {"discovery": False}})


def test_an_address_book_does_not_become_entities() -> None:
    contacts = {f"c{n}": f"+49{n:09d}" for n in range(1000)}
    configured = Settings.model_validate(
        {"lines": {"a": {"password": "p"}}, "contacts": contacts, "groups": {"all": list(contacts)}}
    )
    assert any("the first 100 of 1001 groups and contacts" in note for note in configured.notes())
    keys = made(contacts=contacts, groups={"all": ["c1"]})["goip_x_a"]["components"]
    notify = [key for key in keys if key.startswith("notify_")]
    assert (len(notify), notify[0]) == (100, "notify_all")


def test_two_lines_with_one_name_are_two_devices() -> None:
    found = made(lines={"a": {"password": "p", "name": "Gate"}, "b": {"password": "p", "name": "Gate"}})
    ids = [
        component["unique_id"]
        for document in found.values()
        for component in document["components"].values()
        if "unique_id" in component
    ]
    assert len(ids) == len(set(ids))
