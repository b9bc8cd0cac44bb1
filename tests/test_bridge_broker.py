"""The bridge and a broker that dies, refuses, is old, or has another client with our id."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Container
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import yaml

from broker_fixture import Broker
from brokers import Mosquitto, free_port
from harness import (
    LIMIT_S,
    BridgeProcess,
    RawLine,
    Watcher,
    as_broker,
    bridge_config,
    own_broker,
    raw_line,
    running,
    watching,
)

pytestmark = pytest.mark.broker("binary")


@contextlib.asynccontextmanager
async def bridged(
    directory: Path, broker: Broker, **more: Any
) -> AsyncIterator[tuple[BridgeProcess, RawLine, Watcher]]:
    """A bridge with one registered line, watched by `admin`."""
    config = bridge_config(broker, "goip", **more)
    async with watching(broker, "goip/#") as watcher, running(directory, config) as bridge:
        with raw_line(bridge.udp_port) as line:
            await line.register()
            await watcher.until("goip/goip1/availability", lambda seen: seen.payload == b"online")
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
            yield bridge, line, watcher


@pytest.mark.parametrize("persistence", [True, False])
async def test_nothing_is_lost_when_the_broker_is_killed(tmp_path: Path, persistence: bool) -> None:
    async with own_broker(tmp_path / "broker", persistence=persistence) as broker:
        ids: set[str] = set()
        async with bridged(tmp_path, as_broker(broker)) as (_bridge, line, watcher):
            for number in range(20):
                await line.ask(line.event("RECEIVE", f"srcnum:1;msg:{number}"))
            await watcher.until("goip/goip1/sms/in", count=20)
            broker.kill()
            for number in range(20, 40):
                await line.ask(line.event("RECEIVE", f"srcnum:1;msg:{number}"))
            broker.start()
            async with watching(as_broker(broker), "goip/#") as later:
                await later.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
                await later.until("goip/goip1/state")  # retained state is back, also where the broker forgot it
                await line.ask(line.event("RECEIVE", "srcnum:1;msg:40"))
                await later.until("goip/goip1/sms/in", lambda seen: seen.json["text"] == "40")
                for seen in [*watcher.on("goip/goip1/sms/in"), *later.on("goip/goip1/sms/in")]:
                    ids.add(seen.json["id"])
                texts = {seen.json["text"] for seen in later.on("goip/goip1/sms/in")}
                assert texts >= {str(number) for number in range(20, 41)}
        assert len(ids) == 41


async def test_a_command_published_while_the_bridge_is_down_is_executed_once(tmp_path: Path) -> None:
    async with (
        own_broker(tmp_path / "broker") as broker,
        bridged(tmp_path, as_broker(broker)) as (bridge, line, watcher),
    ):
        await bridge.kill()
        await watcher.publish("goip/goip1/cmd/sms", {"id": "away", "to": "49151", "text": "x"})
        await bridge.start()
        result = await watcher.until("goip/goip1/result/sms")
        assert (result.json["id"], result.json["code"]) == ("away", "ok")
        assert (await line.receive()).startswith(b"MSG ")


async def test_a_keyless_command_that_is_redelivered_is_executed_once(tmp_path: Path) -> None:
    """Killed right after the publish: before the commit, after it, or after the PUBACK, as chance has it."""
    async with (
        own_broker(tmp_path / "broker") as broker,
        bridged(tmp_path, as_broker(broker)) as (bridge, _line, watcher),
    ):
        for number in range(10):
            await watcher.publish("goip/goip1/cmd/sms/49151", f"text {number}")
            await bridge.kill()
            await bridge.start()
            await watcher.until(
                "goip/goip1/delivery", lambda seen: seen.json["event_type"] == "queued", count=number + 1
            )
        await watcher.publish("goip/goip1/cmd/refresh", {"id": "end"})
        await watcher.until("goip/goip1/result/refresh")
        queued = [seen.json for seen in watcher.on("goip/goip1/delivery") if seen.json["event_type"] == "queued"]
        first = {fact["id"]: fact for fact in queued if fact["error"] is None}
        assert len({fact["msg"] for fact in first.values()}) == 10


async def test_a_refused_publish_is_told_and_kept_while_others_flow(tmp_path: Path) -> None:
    passwords = {"bridge": "b", "admin": "a"}
    readable = "user admin\ntopic readwrite #\nuser bridge\ntopic readwrite goip/#\ntopic readwrite homeassistant/#\n"
    denied = readable + "topic deny goip/+/call\n"
    async with own_broker(tmp_path / "broker", passwords=passwords, acl=denied) as broker:
        known = as_broker(broker, passwords)
        async with bridged(tmp_path, known) as (_bridge, line, watcher):
            await line.ask(line.event("STATE", "gsm_remain_state:INCOMING:123"))
            await line.ask(line.event("RECEIVE", "srcnum:1;msg:flows"))
            await watcher.until("goip/goip1/sms/in")
            told = await watcher.until("goip/bridge/event", lambda seen: seen.json["event_type"] == "publish_refused")
            assert (told.json["topic"], told.json["reason_code"]) == ("goip/goip1/call", 0x87)
            broker.terminate()
            (broker.directory / "acl").write_text(readable)
            broker.start()
            async with watching(known, "goip/#") as later:
                call = await later.until("goip/goip1/call")
                assert (call.json["event_type"], call.json["seq"]) == ("ringing", 1)


# -- a broker that refuses by closing the connection


ROOMY = "max_inflight_messages 100\nmax_queued_messages 5000"
QUIET = {"mqtt": {"version": "3.1.1"}, "homeassistant": {"discovery": False}}


def texts(watcher: Watcher) -> list[str]:
    """Of the SMS that arrived, the long ones by their length."""
    seen = [seen.json["text"] for seen in watcher.on("goip/goip1/sms/in")]
    return [text if len(text) < 100 else str(len(text)) for text in seen]


async def test_an_sms_that_is_too_large_for_an_old_broker_is_told_and_kept_while_others_flow(tmp_path: Path) -> None:
    """Mosquitto closes the connection: on MQTT 3.1.1 it can't say how much it takes."""
    limit = "max_packet_size 9000"
    async with (
        own_broker(tmp_path / "broker", config=f"{limit}\n{ROOMY}") as broker,
        bridged(tmp_path, as_broker(broker), **QUIET) as (bridge, line, watcher),
    ):
        for number in range(20):
            text = "x" * 20_000 if number in (5, 6) else str(number)
            await line.ask(line.event("RECEIVE", f"srcnum:1;msg:{text}"))
        told = await watcher.until("goip/bridge/event", lambda seen: seen.json["event_type"] == "publish_refused")
        assert (told.json["topic"], told.json["reason_code"]) == ("goip/goip1/sms/in", None)
        assert "packets of more than 20" in told.json["message"]
        await line.ask(line.event("RECEIVE", "srcnum:1;msg:last"))
        await watcher.until("goip/goip1/sms/in", lambda seen: seen.json["text"] == "last")
        ordinary = [*(str(number) for number in range(20) if number not in (5, 6)), "last"]
        assert list(dict.fromkeys(texts(watcher))) == ordinary
        assert bridge.log.count("connected to mqtt") <= 8
        broker.terminate()
        configuration = broker.directory / "mosquitto.conf"
        configuration.write_text(configuration.read_text().replace(limit, "max_packet_size 90000"))
        broker.start()
        async with watching(as_broker(broker), "goip/#") as later:
            await later.until("goip/goip1/sms/in", count=2)
            assert texts(later) == ["20000", "20000"]
            assert [seen.json["seq"] for seen in later.on("goip/goip1/sms/in")] == [6, 7]
        assert len([seen for seen in watcher.on("goip/bridge/event") if "publish_refused" in str(seen.json)]) == 1
        assert "another client" not in bridge.log
        assert await bridge.stop() == 0


async def test_documents_that_are_too_large_keep_nothing_from_flowing(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker", config=f"max_packet_size 3000\n{ROOMY}") as broker:
        more = {"mqtt": {"version": "3.1.1"}}
        async with bridged(tmp_path, as_broker(broker), **more) as (bridge, line, watcher):
            told = await watcher.until("goip/bridge/event", lambda seen: seen.json["event_type"] == "publish_refused")
            assert told.json["topic"].startswith("homeassistant/device/")
            assert "homeassistant.discovery: false" in told.json["message"]
            await line.ask(line.event("RECEIVE", "srcnum:1;msg:flows"))
            await watcher.until("goip/goip1/sms/in")
            assert bridge.log.count("connected to mqtt") <= 8
            assert "another client" not in bridge.log


@pytest.mark.parametrize("hasty", [False, True])
async def test_topics_for_which_the_broker_closes_the_connection_are_told_and_others_flow(
    tmp_path: Path, hasty: bool
) -> None:
    topics = ["goip/goip1/call"] if hasty else ["goip/goip1/call", "goip/goip1/state"]
    forbidden = set(topics)
    async with own_broker(tmp_path / "broker", config=ROOMY) as broker, closing(broker, forbidden, hasty) as closer:
        config = bridge_config(closer, "goip", **QUIET)
        async with watching(as_broker(broker), "goip/#") as watcher, running(tmp_path, config) as bridge:
            with raw_line(bridge.udp_port) as line:
                await line.register()
                for number in range(10):
                    await line.ask(line.event("STATE", "gsm_remain_state:INCOMING:123"))
                    await line.ask(line.event("STATE", "gsm_remain_state:IDLE"))
                    await line.ask(line.event("RECEIVE", f"srcnum:1;msg:{number}"))
                await watcher.until("goip/goip1/sms/in", lambda seen: seen.json["text"] == "9")
                await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
                for topic in topics:
                    await watcher.until(
                        "goip/bridge/event",
                        lambda seen, topic=topic: (
                            (seen.json["event_type"], seen.json["topic"]) == ("publish_refused", topic)
                        ),
                    )
                assert list(dict.fromkeys(texts(watcher))) == [str(number) for number in range(10)]
                assert bridge.log.count("connected to mqtt") <= (8 if hasty else 12)
                assert "another client" not in bridge.log
                forbidden.clear()
                await watcher.publish("goip/bridge/cmd/reload")
                await watcher.until("goip/goip1/state")
                await watcher.until("goip/goip1/call", count=10)
                numbers = [seen.json["seq"] for seen in watcher.on("goip/goip1/call")]
                assert numbers == sorted(numbers)


@contextlib.asynccontextmanager
async def closing(broker: Mosquitto, forbidden: Container[str], hasty: bool) -> AsyncIterator[Broker]:
    """A way to the broker that closes at a PUBLISH to a forbidden topic, as some brokers do themselves. When `hasty`,
    the PUBACKs of those before it are lost.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner = await asyncio.open_connection(broker.host, broker.port)
        answers = asyncio.create_task(forward(inner_reader, writer))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                kind, packet, body = await read_packet(reader)
                if kind == 3 and body[2 : 2 + int.from_bytes(body[:2])].decode() in forbidden:
                    break
                inner.write(packet)
                await inner.drain()
        inner.write_eof()
        if not hasty:
            await answers
        answers.cancel()
        inner.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Broker(kind="mosquitto", host="127.0.0.1", port=server.sockets[0].getsockname()[1])


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Its type, all of it, and what follows the length."""
    head = await reader.readexactly(2)
    while head[-1] >= 0x80:
        head += await reader.readexactly(1)
    body = await reader.readexactly(sum((byte & 0x7F) << 7 * n for n, byte in enumerate(head[1:])))
    return head[0] >> 4, head + body, body


# -- a broker that does not let us hear, or can't do what we need


DYNSEC = next(iter(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so")), None)


def refusing(directory: Path, *filters: str) -> str:
    """The configuration of a broker that refuses these subscriptions to everybody, and has an `admin`."""
    assert DYNSEC is not None
    file = directory / "dynsec.json"
    subprocess.run(["mosquitto_ctrl", "dynsec", "init", str(file), "admin", "pw"], check=True, capture_output=True)
    rights = json.loads(file.read_text())
    acls = [{"acltype": "subscribePattern", "topic": each, "priority": 10, "allow": False} for each in filters]
    rights["roles"].append({"rolename": "all", "acls": acls})
    rights["groups"] = [{"groupname": "all", "roles": [{"rolename": "all"}]}]
    rights["anonymousGroup"] = "all"
    rights["defaultACLAccess"] = dict.fromkeys(
        ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), True
    )
    file.write_text(json.dumps(rights))
    file.chmod(0o600)
    return f"per_listener_settings false\nplugin {DYNSEC}\nplugin_opt_config_file {file}"


async def permit(broker: Mosquitto, topic_filter: str) -> None:
    """Take that back, while it runs."""
    login = ["-h", broker.host, "-p", str(broker.port), "-u", "admin", "-P", "pw"]
    removal = ["dynsec", "removeRoleACL", "all", "subscribePattern", topic_filter]
    await asyncio.to_thread(subprocess.run, ["mosquitto_ctrl", *login, *removal], check=True, capture_output=True)


async def checks(port: int, ok: bool) -> dict[str, Any]:
    """What /readyz says, once it is `ok` or not."""

    def ask() -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))

    async with asyncio.timeout(LIMIT_S):
        while True:
            found = await asyncio.to_thread(ask)
            if found["ok"] is ok:
                return {name: check["reason"] for name, check in found["checks"].items() if check["ok"] is ok}
            await asyncio.sleep(0.05)


@pytest.mark.skipif(DYNSEC is None, reason="mosquitto's dynamic security plugin is not installed")
@pytest.mark.parametrize(("version", "code"), [("5", 0x87), ("3.1.1", 0x80)])
async def test_without_the_subscription_to_commands_the_bridge_is_not_online_and_facts_flow(
    tmp_path: Path, version: str, code: int
) -> None:
    commands, http = "goip/+/cmd/#", free_port()
    (tmp_path / "rights").mkdir()
    config = refusing(tmp_path / "rights", commands)
    async with own_broker(tmp_path / "broker", config=config) as broker:
        more = {"mqtt": {"version": version}, "http": {"listen": f"127.0.0.1:{http}"}}
        async with (
            watching(as_broker(broker), "goip/#") as watcher,
            running(tmp_path, bridge_config(as_broker(broker), "goip", **more)) as bridge,
        ):
            with raw_line(bridge.udp_port) as line:
                await line.register()
                await line.ask(line.event("RECEIVE", "srcnum:1;msg:deaf, not dumb"))
                await watcher.until("goip/goip1/sms/in")
                told = await watcher.until(
                    "goip/bridge/event", lambda seen: seen.json["event_type"] == "subscription_refused"
                )
                assert (told.json["topic"], told.json["reason_code"]) == (commands, code)
                await watcher.until("goip/goip1/state")
                await watcher.until("goip/bridge/availability")
                assert {seen.payload for seen in watcher.on("goip/bridge/availability")} == {b"offline"}
                why = await checks(http, ok=False)
                assert list(why) == ["mqtt"]
                assert commands in why["mqtt"]
                await permit(broker, commands)  # it disconnects everybody then
                async with watching(as_broker(broker), "goip/#") as later:
                    await later.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
                    await checks(http, ok=True)
                    await later.publish("goip/goip1/cmd/sms", {"id": "1", "to": "1", "text": "x"})
                    await later.until("goip/goip1/result/sms", lambda seen: seen.json["code"] == "ok")


@pytest.mark.skipif(DYNSEC is None, reason="mosquitto's dynamic security plugin is not installed")
async def test_the_doctor_tells_a_bridge_that_hears_no_commands_from_one_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "rights").mkdir()
    config = refusing(tmp_path / "rights", "goip/+/cmd/#")
    async with own_broker(tmp_path / "broker", config=config) as broker:
        elsewhere = bridge_config(as_broker(broker), "goip")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "config.yaml").write_text(yaml.safe_dump(elsewhere))
        async with (
            watching(as_broker(broker), "goip/#") as watcher,
            running(tmp_path, bridge_config(as_broker(broker), "goip")) as bridge,
        ):
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"offline")
            await watcher.until("goip/bridge/health")
            (found,) = await doctor_on_the_bridge(tmp_path)
            assert found.startswith(
                "runs on this machine, but goip/bridge/availability says offline: the broker refused the "
                "subscription to goip/+/cmd/# (0x87), so no command is heard: allow it in its ACL"
            )
            (found,) = await doctor_on_the_bridge(tmp_path / "elsewhere")
            assert re.match(
                r"goip/bridge/availability says offline, though its health is \d+ s old: it was stopped just now, or "
                r"the broker refuses its subscription to commands\. .* goip/\+/cmd/# ",
                found,
            )
            await bridge.stop()
            assert "runs on this machine" not in (await doctor_on_the_bridge(tmp_path))[0]


async def doctor_on_the_bridge(folder: Path) -> list[str]:
    """The problems that `goip-bridge doctor` has with the bridge itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", "doctor", cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return re.findall(r"^problem bridge: (.*)$", output.decode(), re.MULTILINE)


@pytest.mark.skipif(DYNSEC is None, reason="mosquitto's dynamic security plugin is not installed")
async def test_a_refused_subscription_that_commands_do_not_need_is_told_and_no_more(tmp_path: Path) -> None:
    refused = {"goip/pool/+/cmd/#", "homeassistant/status", "goip/bridge/info"}
    (tmp_path / "rights").mkdir()
    config = refusing(tmp_path / "rights", *refused)
    async with (
        own_broker(tmp_path / "broker", config=config) as broker,
        bridged(tmp_path, as_broker(broker)) as (_bridge, _line, watcher),  # it is online
    ):
        for topic in refused:
            await watcher.until(
                "goip/bridge/event",
                lambda seen, topic=topic: (
                    (seen.json["event_type"], seen.json["topic"]) == ("subscription_refused", topic)
                ),
            )
        await watcher.publish("goip/goip1/cmd/sms", {"id": "1", "to": "1", "text": "x"})
        await watcher.until("goip/goip1/result/sms", lambda seen: seen.json["code"] == "ok")


async def test_a_broker_without_retained_messages_is_worked_with(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as broker:
        allow_less(broker, "retain_available false")
        async with bridged(tmp_path, as_broker(broker)) as (bridge, line, watcher):
            await line.ask(line.event("RECEIVE", "srcnum:1;msg:x"))
            await watcher.until("goip/goip1/sms/in")
            await watcher.publish("goip/goip1/cmd/sms", {"id": "1", "to": "1", "text": "x"})
            await watcher.until("goip/goip1/result/sms", lambda seen: seen.json["code"] == "ok")
            assert bridge.log.count("retain_available true") == 1
            assert await bridge.stop() == 0
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"offline")


async def test_without_retained_messages_a_command_published_while_the_bridge_is_down_is_executed(
    tmp_path: Path,
) -> None:
    """Nobody can tell whether another bridge served meanwhile; but none was ever heard of."""
    async with own_broker(tmp_path / "broker") as broker:
        allow_less(broker, "retain_available false")
        async with bridged(tmp_path, as_broker(broker)) as (bridge, _line, watcher):
            assert await bridge.stop() == 0
            await watcher.publish("goip/goip1/cmd/sms", {"id": "away", "to": "49151", "text": "x"})
            await bridge.start()
            result = await watcher.until("goip/goip1/result/sms")
            assert (result.json["id"], result.json["code"]) == ("away", "ok")


async def test_without_retained_messages_too_one_of_two_bridges_serves(tmp_path: Path) -> None:
    """The second hears nothing of the first when it comes; so it waits for an answer."""
    async with own_broker(tmp_path / "broker") as broker:
        allow_less(broker, "retain_available false")
        async with bridged(tmp_path, as_broker(broker)) as (_bridge, _line, watcher):
            (tmp_path / "second").mkdir()
            config = bridge_config(as_broker(broker), "goip") | {"instance": "second"}
            async with running(tmp_path / "second", config) as second:
                await second.logged("This one is on standby")
                serve = [seen.json["instance"] for seen in watcher.on("goip/bridge/info") if seen.json["serving_since"]]
                assert set(serve) == {"goip"}


@pytest.mark.parametrize(
    ("version", "less"), [("5", "max_qos 0"), ("3.1.1", "max_qos 0"), ("3.1.1", "retain_available false")]
)
async def test_a_broker_that_allows_too_little_is_told_what_it_has_to_allow(
    tmp_path: Path, version: str, less: str
) -> None:
    http = free_port()
    async with own_broker(tmp_path / "broker") as broker:
        allow_less(broker, less)
        more = {"mqtt": {"version": version}, "http": {"listen": f"127.0.0.1:{http}"}}
        async with running(tmp_path, bridge_config(as_broker(broker), "goip", **more)) as bridge:
            await bridge.logged("max_qos 1")
            why = await checks(http, ok=False)
            assert "max_qos 1" in why["mqtt"]
            assert version == "5" or "retain_available true" in why["mqtt"]


def allow_less(broker: Mosquitto, setting: str) -> None:
    """These belong to the last listener of the configuration."""
    broker.terminate()
    with (broker.directory / "mosquitto.conf").open("a") as configuration:
        configuration.write(f"{setting}\n")
    broker.start()


# -- a broker that closes for reasons of its own


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_broker_that_closes_at_every_tenth_publish_gets_everything_and_nothing_is_accused(
    tmp_path: Path, version: str
) -> None:
    count = 100
    async with own_broker(tmp_path / "broker", config=ROOMY) as broker, counting(broker, 10) as (way, connections):
        config = bridge_config(way, "goip", mqtt={"version": version}, homeassistant={"discovery": False})
        async with watching(as_broker(broker), "goip/#") as watcher, running(tmp_path, config) as bridge:
            with raw_line(bridge.udp_port) as line:
                await line.register()
                for number in range(count):
                    await line.ask(line.event("RECEIVE", f"srcnum:1;msg:{number}"))
                await watcher.until("goip/goip1/sms/in", lambda seen: seen.json["text"] == str(count - 1))
                assert list(dict.fromkeys(texts(watcher))) == [str(number) for number in range(count)]
                assert len(connections) <= 5 + count / 3, "nine publications each: of these so many facts"
                await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
                told = {seen.json["event_type"] for seen in watcher.on("goip/bridge/event")}
                assert told <= {"line_online"}
                assert "another client" not in bridge.log


@contextlib.asynccontextmanager
async def counting(broker: Mosquitto, every: int) -> AsyncIterator[tuple[Broker, list[int]]]:
    """A way to the broker that closes at so many PUBLISHes, whatever they are; and how many each connection had."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(connections)
        connections.append(0)
        inner_reader, inner = await asyncio.open_connection(broker.host, broker.port)
        answers = asyncio.create_task(forward(inner_reader, writer))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                kind, packet, _ = await read_packet(reader)
                connections[number] += kind == 3
                if connections[number] == every:
                    break
                inner.write(packet)
                await inner.drain()
        inner.write_eof()
        await answers
        inner.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Broker(kind="mosquitto", host="127.0.0.1", port=server.sockets[0].getsockname()[1]), connections


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def test_what_exceeds_the_limit_of_a_broker_that_says_it_is_never_sent(tmp_path: Path) -> None:
    """MQTT 5: Maximum Packet Size. And a Receive Maximum of 1."""
    config = "max_packet_size 9000\nmax_inflight_messages 1"
    async with (
        own_broker(tmp_path / "broker", config=config) as broker,
        bridged(tmp_path, as_broker(broker)) as (bridge, line, watcher),
    ):
        for number in range(10):
            await line.ask(line.event("RECEIVE", f"srcnum:1;msg:{'x' * 20_000 if number == 5 else number}"))
        told = await watcher.until("goip/bridge/event", lambda seen: seen.json["topic"] == "goip/goip1/sms/in")
        assert (told.json["event_type"], told.json["reason_code"]) == ("publish_refused", 0x95)
        await watcher.until("goip/goip1/sms/in", count=9)
        assert texts(watcher) == [str(number) for number in range(10) if number != 5]
        assert await bridge.stop() == 0
        assert "connection ended" not in bridge.log


async def test_nobody_listening_is_told(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as broker:
        known = as_broker(broker)
        async with (
            watching(known, "goip/bridge/#") as watcher,
            running(tmp_path, bridge_config(known, "goip")) as bridge,
        ):
            with raw_line(bridge.udp_port) as line:
                await line.register()
                await line.ask(line.event("RECEIVE", "srcnum:1;msg:unheard"))
            told = await watcher.until("goip/bridge/event", lambda seen: seen.json["event_type"] == "no_subscriber")
            assert (told.json["topic"], told.json["reason_code"], told.json["count"]) == ("goip/goip1/sms/in", 0x10, 1)


async def test_mqtt_3_1_1_carries_the_same_payloads(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as broker:
        more = {"mqtt": {"version": "3.1.1"}}
        async with bridged(tmp_path, as_broker(broker), **more) as (_bridge, line, watcher):
            await line.ask(line.event("RECEIVE", "srcnum:1;msg:old"))
            fact = await watcher.until("goip/goip1/sms/in")
            assert fact.json["text"] == "old"
            assert "UserProperty" not in fact.properties
            await watcher.publish("goip/goip1/cmd/sms", {"id": "1", "to": "1", "text": "x"})
            assert (await watcher.until("goip/goip1/result/sms")).json["code"] == "ok"
            info = await watcher.until("goip/bridge/info", lambda seen: seen.json["mqtt"]["version"] is not None)
            assert info.json["mqtt"]["version"] == "3.1.1"


async def test_a_retained_command_from_before_is_refused_on_3_1_1_too(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as broker:
        known = as_broker(broker)
        async with watching(known, "goip/#", version="3.1.1") as watcher:
            await watcher.publish("goip/goip1/cmd/module/reboot", "", retain=True)
            await watcher.publish("goip/goip1/cmd/module/reboot", "PRESS", retain=True)
            async with running(tmp_path, bridge_config(known, "goip", mqtt={"version": "3.1.1"})) as bridge:
                with raw_line(bridge.udp_port) as line:
                    await line.register()
                    result = await watcher.until("goip/goip1/result/module/reboot")
                    assert result.json["code"] == "retained_command"
                    await watcher.until("goip/goip1/cmd/module/reboot", lambda seen: seen.payload == b"")
                    await watcher.publish("goip/goip1/cmd/refresh", {"id": "end"})
                    await watcher.until("goip/goip1/result/refresh")
                    assert len(watcher.on("goip/goip1/result/module/reboot")) == 1
                    assert line.nothing_waits()


async def test_a_second_client_with_our_id_is_told_and_sms_are_kept(tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as broker:
        more = {"mqtt": {"client_id": "same"}}
        async with bridged(tmp_path, as_broker(broker), **more) as (bridge, line, watcher):
            for taken in range(1, 4):  # this broker does not say it: three short connections are the sign
                connections = bridge.log.count("connected to mqtt")
                async with aiomqtt.Client(broker.host, broker.port, identifier="same"):
                    pass
                if taken < 3:
                    await watcher.until(
                        "goip/bridge/availability", lambda seen: seen.payload == b"online", count=connections + 1
                    )
            await line.ask(line.event("RECEIVE", "srcnum:1;msg:kept"))
            await bridge.logged("another client seems to connect with client id same")


async def test_without_a_url_an_embedded_broker_is_started(tmp_path: Path) -> None:
    config = bridge_config(None, "goip")
    async with running(tmp_path, config) as bridge:
        with raw_line(bridge.udp_port) as line:
            await line.register()
            await bridge.logged("embedded broker (mosquitto): mqtt://")
            url = bridge.log.split("embedded broker (mosquitto): mqtt://")[1].split()[0]
            host, _, port = url.partition(":")
            embedded = Broker(kind="mosquitto", host=host, port=int(port))
            async with watching(embedded, "goip/#") as watcher:
                await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
                await line.ask(line.event("RECEIVE", "srcnum:1;msg:x"))
                await watcher.until("goip/goip1/sms/in")
    assert sys.platform != "linux" or bridge.log.count("Traceback") == 0
