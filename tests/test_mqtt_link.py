"""The MQTT link against real brokers, and against scripted ones where a real one can't be made to misbehave."""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.mqtt import link as mqtt
from bridge.mqtt.link import BATCH_BYTES, EARLY, WINDOW, Incoming, LinkConfig, MqttLink, Publication, UnsendableError
from brokers import SERVER_NAME, Mosquitto, amqtt_broker, free_port, make_certificates

pytestmark = pytest.mark.broker("binary")

both_versions = pytest.mark.parametrize("version", ["5", "3.1.1"])
COMMANDS = "goip/+/cmd/#"
WILL = Publication("goip/bridge/availability", b"offline", retain=True, content_type="text/plain")
PATIENCE_S = 20.0
ROOMY = "max_inflight_messages 100\nmax_queued_messages 5000"  # the first is the broker's receive maximum


class Recorder:
    """A handler that keeps everything, for tests to wait on."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sessions: list[bool] = []
        self.batches: list[list[Incoming]] = []
        self.acks: dict[int, int] = {}
        self.reasons: list[str] = []
        self.proofs: list[float] = []
        self.closed: list[bool] = []
        self.codes: list[dict[str, int | None]] = []
        self.progress = False
        self.takeovers = 0
        self.on_published: Callable[[], None] = lambda: None
        self.on_received: Callable[[list[Incoming]], None] = lambda messages: None
        self._changed = asyncio.Event()

    @property
    def messages(self) -> list[Incoming]:
        return [message for batch in self.batches for message in batch]

    def connected(self, *, session_present: bool, version: str) -> None:
        self.sessions.append(session_present)
        self._note(f"connected {version}")

    def subscribed(self, codes: Mapping[str, int | None]) -> None:
        self.codes.append(dict(codes))
        self._changed.set()

    def disconnected(self, reason: str, *, closed: bool) -> bool:
        self.reasons.append(reason)
        self.closed.append(closed)
        self._note("disconnected")
        return self.progress

    def received(self, messages: list[Incoming]) -> None:
        self.batches.append(messages)
        self.on_received(messages)
        self._note("received")

    def published(self, acks: list[tuple[int, int]]) -> None:
        self.acks.update(acks)
        self.on_published()
        self._note("published")

    def proved(self, sent_at: float) -> None:
        self.proofs.append(sent_at)
        self._changed.set()

    def takeover(self) -> None:
        self.takeovers += 1
        self._note("takeover")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_connected(self, times: int = 1) -> None:
        await self.until(lambda: len(self.sessions) >= times)

    async def reason_code(self, token: int | None) -> int:
        assert token is not None
        await self.until(lambda: token in self.acks)
        return self.acks[token]

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()


class Links:
    """Starts links and ends them with the test."""

    def __init__(self) -> None:
        self._tasks: dict[MqttLink, asyncio.Task[None]] = {}

    def start(self, broker: Mosquitto | int, **config: Any) -> tuple[MqttLink, Recorder]:
        where = {"port": broker} if isinstance(broker, int) else {"port": broker.port}
        defaults = LinkConfig(
            host="127.0.0.1",
            client_id="goip-bridge-test",
            subscriptions=(COMMANDS,),
            backoff_s=(0.05, 0.2),
            stable_s=0.0,  # no lost connection is suspected to be a takeover
        )
        recorder = Recorder()
        link = MqttLink(replace(defaults, **(where | config)), recorder)
        self._tasks[link] = asyncio.create_task(link.run())
        return link, recorder

    async def result(self, link: MqttLink) -> None:
        await asyncio.wait_for(self._tasks[link], PATIENCE_S)

    async def cancel(self, link: MqttLink) -> None:
        self._tasks[link].cancel()
        await asyncio.wait((self._tasks[link],))

    async def close(self) -> None:
        for link in self._tasks:
            await self.cancel(link)


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    links = Links()
    yield links
    await links.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, ROOMY) as mosquitto:
        yield mosquitto


@contextlib.asynccontextmanager
async def client(port: int, *filters: str, version: str = "5", **options: Any) -> AsyncIterator[aiomqtt.Client]:
    """An independent client, subscribed when it is yielded."""
    protocol = aiomqtt.ProtocolVersion.V5 if version == "5" else aiomqtt.ProtocolVersion.V311
    async with aiomqtt.Client("127.0.0.1", port, protocol=protocol, **options) as other:
        for topic_filter in filters:
            await other.subscribe(topic_filter, qos=1)
        yield other


async def next_message(other: aiomqtt.Client) -> aiomqtt.Message:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(aiter(other.messages))


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while text not in caplog.text:  # noqa: ASYNC110 - a log has no event to wait for
            await asyncio.sleep(0.01)


def sever(link: MqttLink) -> None:
    """Cut the connection under the link, as a network would."""
    assert link._connection is not None
    with socket.socket(fileno=socket.dup(link._connection._fd)) as wire:
        wire.shutdown(socket.SHUT_RDWR)


# -- publishing


async def test_a_publication_arrives_with_exactly_its_properties(broker: Mosquitto, links: Links) -> None:
    link, handler = links.start(broker)
    await handler.until_connected()
    async with client(broker.port, "goip/#") as other:
        full = Publication("goip/a/delivery", b'{"v":1}', expiry_s=600, schema="delivery", correlation=b"\x00\xff")
        tokens = [link.publish(full), link.publish(Publication("goip/a/state", b"{}")), link.publish(WILL)]
        first, second, third = [await next_message(other) for _ in tokens]
    assert (str(first.topic), first.payload, first.qos, first.retain) == ("goip/a/delivery", b'{"v":1}', 1, False)
    assert first.properties is not None
    assert first.properties.json() == {
        "PayloadFormatIndicator": 1,
        "MessageExpiryInterval": 600,
        "ContentType": "application/json",
        "CorrelationData": "00ff",
        "UserProperty": [("schema", "delivery")],
    }
    assert second.properties is not None
    assert second.properties.json() == {"PayloadFormatIndicator": 1, "ContentType": "application/json"}
    assert third.properties is not None
    assert third.properties.json() == {"PayloadFormatIndicator": 1, "ContentType": "text/plain"}
    assert [await handler.reason_code(token) for token in tokens] == [0, 0, 0]


@both_versions
async def test_a_retained_publication_is_retained(broker: Mosquitto, links: Links, version: str) -> None:
    link, handler = links.start(broker, version=version)
    await handler.until_connected()
    await handler.reason_code(link.publish(Publication("goip/a/state", b"{}", retain=True)))
    await handler.reason_code(link.publish(Publication("goip/a/event", b"{}")))
    async with client(broker.port, "goip/#", version=version) as other:
        message = await next_message(other)
    assert (str(message.topic), message.payload, message.retain) == ("goip/a/state", b"{}", True)


async def test_reason_codes_tell_denied_and_unheard(tmp_path: Path, links: Links) -> None:
    with Mosquitto(tmp_path, acl="topic readwrite goip/#\n") as broker:
        link, handler = links.start(broker)
        await handler.until_connected()
        assert await handler.reason_code(link.publish(Publication("other/topic", b"{}"))) == 135
        assert await handler.reason_code(link.publish(Publication("goip/a/event", b"{}"))) == 16


async def test_mqtt_3_has_no_reason_codes(tmp_path: Path, links: Links) -> None:
    with Mosquitto(tmp_path, acl="topic readwrite goip/#\n") as broker:
        link, handler = links.start(broker, version="3.1.1")
        await handler.until_connected()
        assert await handler.reason_code(link.publish(Publication("other/topic", b"{}"))) == 0


@both_versions
async def test_a_burst_of_publications_keeps_to_the_window(broker: Mosquitto, links: Links, version: str) -> None:
    link, handler = links.start(broker, version=version, window=50)
    await handler.until_connected()
    tokens: list[int] = []

    def fill() -> None:
        while len(tokens) < 2000 and link.room:
            token = link.publish(Publication("goip/a/delivery", b"%d" % len(tokens)))
            assert token is not None
            tokens.append(token)

    async with client(broker.port, "goip/a/delivery", version=version) as other:
        assert link.room == 50
        fill()
        assert (len(tokens), link.room) == (50, 0)
        assert link.publish(Publication("goip/a/delivery", b"")) is None
        handler.on_published = fill
        await handler.until(lambda: len(handler.acks) == 2000)
        assert [int((await next_message(other)).payload) for _ in range(2000)] == list(range(2000))
    assert set(handler.acks) == set(tokens)
    assert handler.calls.count("published") < 2000
    assert link.room == 50


async def test_the_brokers_receive_maximum_limits_the_window(tmp_path: Path, links: Links) -> None:
    with Mosquitto(tmp_path, "max_inflight_messages 3") as broker:
        link, handler = links.start(broker)
        await handler.until_connected()
        assert [link.publish(WILL) is None for _ in range(4)] == [False, False, False, True]


async def test_what_the_broker_cannot_take_is_refused_here(tmp_path: Path, links: Links) -> None:
    with Mosquitto(tmp_path, f"max_packet_size 2000\n{ROOMY}") as broker:
        link, handler = links.start(broker)
        await handler.until_connected()
        with pytest.raises(UnsendableError, match="2000"):
            link.publish(Publication("goip/a/event", b"x" * 2000))
        with pytest.raises(UnsendableError):
            link.publish(Publication("goip/#", b"{}"))
        with pytest.raises(UnsendableError):
            link.publish(Publication("goip/\ud800", b"{}"))
        largest = Publication("goip/a/event", b"x" * (2000 - 12 - 9 - 22))
        assert await handler.reason_code(link.publish(largest)) == 16
        assert handler.calls.count("disconnected") == 0
        assert link.room == WINDOW


async def test_nothing_is_published_before_the_connection(broker: Mosquitto, links: Links) -> None:
    link, handler = links.start(broker)
    assert (link.connected, link.room, link.version) == (False, 0, None)
    assert link.publish(WILL) is None
    await handler.until_connected()
    assert (link.connected, link.room, link.version) == (True, WINDOW, "5")


# -- commands


@both_versions
async def test_an_unacknowledged_command_comes_back(broker: Mosquitto, links: Links, version: str) -> None:
    link, handler = links.start(broker, version=version)
    await handler.until_connected()
    async with client(broker.port) as other:
        await other.publish("goip/a/cmd/one", b"1", qos=1)
        await other.publish("goip/a/cmd/two", b"2", qos=1)
        await handler.until(lambda: len(handler.messages) == 2)
        one, two = handler.messages
        assert (one.topic, one.payload, one.dup, one.retain) == ("goip/a/cmd/one", b"1", False, False)
        link.acknowledge(one)
        await other.publish("goip/a/cmd/three", b"3")  # QoS 0: nothing to acknowledge, it just has to be harmless
        await handler.until(lambda: len(handler.messages) == 3)
        link.acknowledge(handler.messages[2])
        await handler.reason_code(link.publish(WILL))  # so the broker has read the acknowledgement before it
        sever(link)
        await handler.until_connected(2)
        await handler.until(lambda: len(handler.messages) == 4)
        again = handler.messages[3]
        assert (again.topic, again.payload, again.dup) == ("goip/a/cmd/two", b"2", True)
        assert handler.sessions == [False, True]
        link.acknowledge(two)  # too late: it came on the connection before
        await handler.reason_code(link.publish(WILL))
        sever(link)
        await handler.until(lambda: len(handler.messages) == 5)
        link.acknowledge(handler.messages[4])
        await handler.reason_code(link.publish(WILL))
        sever(link)
        await handler.until_connected(4)
        await other.publish("goip/a/cmd/four", b"4", qos=1)
        await handler.until(lambda: len(handler.messages) == 6)
        assert handler.messages[5].topic == "goip/a/cmd/four"


@both_versions
async def test_a_burst_of_commands_comes_in_batches(broker: Mosquitto, links: Links, version: str) -> None:
    link, handler = links.start(broker, version=version)
    await handler.until_connected()

    def acknowledge(messages: list[Incoming]) -> None:
        for message in messages:
            link.acknowledge(message)

    handler.on_received = acknowledge
    async with client(broker.port, max_concurrent_outgoing_calls=500) as other:
        await asyncio.gather(*(other.publish("goip/a/cmd/sms", b"%d" % n, qos=1) for n in range(500)))
    await handler.until(lambda: len(handler.messages) == 500)
    assert sorted(int(message.payload) for message in handler.messages) == list(range(500))
    assert len(handler.batches) < 500


async def test_the_broker_waits_for_acknowledgements(broker: Mosquitto, links: Links) -> None:
    link, handler = links.start(broker, receive_maximum=5)
    await handler.until_connected()
    async with client(broker.port) as other:
        for number in range(8):
            await other.publish("goip/a/cmd/sms", b"%d" % number, qos=1)
        await other.publish("goip/a/cmd/marker", b"")  # QoS 0 overtakes what is held back
        await handler.until(lambda: handler.messages[-1:] != [] and handler.messages[-1].topic == "goip/a/cmd/marker")
        assert [message.payload for message in handler.messages] == [b"0", b"1", b"2", b"3", b"4", b""]
        link.acknowledge(handler.messages[0])
        await handler.until(lambda: len(handler.messages) == 7)
        assert handler.messages[6].payload == b"5"


async def test_mqtt_5_shows_request_properties_and_retained_commands(broker: Mosquitto, links: Links) -> None:
    async with client(broker.port) as other:
        await other.publish("goip/a/cmd/old", b"0", qos=1, retain=True)
        link, handler = links.start(broker)
        await handler.until(lambda: len(handler.messages) == 1)
        request = Properties(PacketTypes.PUBLISH)
        request.ResponseTopic, request.CorrelationData = "reply/here", b"\xff\x00"
        await other.publish("goip/a/cmd/live", b"1", qos=1, retain=True, properties=request)
        await handler.until(lambda: len(handler.messages) == 2)
        old, live = handler.messages
        assert (old.topic, old.retain, old.response_topic, old.correlation) == ("goip/a/cmd/old", True, None, None)
        assert (live.topic, live.retain) == ("goip/a/cmd/live", True)  # retain as published
        assert (live.response_topic, live.correlation) == ("reply/here", b"\xff\x00")
        for message in (old, live):
            link.acknowledge(message)
        await handler.reason_code(link.publish(WILL))
        sever(link)
        await handler.until_connected(2)  # retain handling 1: an old subscription brings no retained messages again
        await other.publish("goip/a/cmd/next", b"2", qos=1)
        await handler.until(lambda: len(handler.messages) == 3)
        assert handler.messages[2].topic == "goip/a/cmd/next"


async def test_commands_that_waited_come_after_connected(links: Links) -> None:
    waiting = [b"\x32\x11\x00\x0cgoip/a/cmd/x" + struct.pack("!H", mid) + b"!" for mid in range(1, 1001)]
    async with scripted(lambda attempt: CONNACK_311 + b"".join(waiting)) as fake:
        _, handler = links.start(fake.port, version="3.1.1")
        await handler.until(lambda: len(handler.messages) == 1000)
        assert handler.calls[0] == "connected 3.1.1"
        assert [message.mid for message in handler.messages] == list(range(1, 1001))


async def test_our_own_publications_do_not_come_back_on_mqtt_5(broker: Mosquitto, links: Links) -> None:
    link, handler = links.start(broker)
    await handler.until_connected()
    await handler.reason_code(link.publish(Publication("goip/a/cmd/sms", b"ours")))
    async with client(broker.port) as other:
        await other.publish("goip/a/cmd/sms", b"theirs", qos=1)
    await handler.until(lambda: len(handler.messages) == 1)
    assert handler.messages[0].payload == b"theirs"


async def test_nothing_is_taken_that_came_on_a_connection_which_has_ended(links: Links) -> None:
    """While we stand still the broker delivers a command, gives us up and closes: another bridge has it by now."""
    go, gone = threading.Event(), threading.Event()

    def serve(server: socket.socket) -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(65536)  # CONNECT
            peer.sendall(CONNACK_5)
            peer.recv(65536)  # SUBSCRIBE
            peer.sendall(b"\x90\x04\x00\x01\x00\x01")
            go.wait(PATIENCE_S)
            for flags in (0x32, 0x30):
                topic, mid = b"\x00\x0cgoip/a/cmd/x", b"\x00\x07" if flags & 6 else b""
                body = topic + mid + b"\x00!"
                peer.sendall(bytes((flags, len(body))) + body)
        gone.set()

    def stand_still() -> None:
        go.set()
        assert gone.wait(PATIENCE_S)

    with socket.create_server(("127.0.0.1", 0)) as server:
        asyncio.get_running_loop().run_in_executor(None, serve, server)
        _, handler = links.start(server.getsockname()[1])
        await handler.until_connected()
        stand_still()
        await handler.until(lambda: "disconnected" in handler.calls)
    assert handler.messages == []


@both_versions
async def test_a_probe_is_answered_by_a_broker_that_is_there(broker: Mosquitto, links: Links, version: str) -> None:
    link, handler = links.start(broker, version=version)
    link.probe()
    await handler.until_connected()
    before = asyncio.get_running_loop().time()
    link.probe()
    link.probe()  # one is on its way
    await handler.until(lambda: bool(handler.proofs))
    after = asyncio.get_running_loop().time()
    assert before <= handler.proofs[0] <= after
    await handler.reason_code(link.publish(Publication("goip/a/state", b"{}")))
    await handler.until(lambda: len(handler.proofs) == 2)
    assert handler.proofs[1] >= after, "an acknowledged publication proves as much"


async def test_a_connection_that_stands_still_proves_nothing(links: Links) -> None:
    async with scripted(lambda attempt: CONNACK_5, pong=False, puback=False) as fake:
        link, handler = links.start(fake.port)
        await handler.until_connected()
        link.publish(WILL)
        link.probe()
        await fake.until(lambda: fake.pings == 1 and fake.publishes == 1)
        assert handler.proofs == []


@pytest.mark.parametrize("call", ["connected", "received", "published"])
async def test_an_exception_of_the_handler_ends_run(
    broker: Mosquitto, links: Links, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Recorder, call, fail)
    link, handler = links.start(broker)
    if call != "connected":
        await handler.until_connected()
        link.publish(WILL)
        async with client(broker.port) as other:
            await other.publish("goip/a/cmd/sms", b"")
    with pytest.raises(ZeroDivisionError):
        await links.result(link)
    assert not link.connected


# -- the life of connections


@both_versions
async def test_it_connects_again_after_the_broker_was_killed(tmp_path: Path, links: Links, version: str) -> None:
    with Mosquitto(tmp_path, ROOMY) as broker:
        link, handler = links.start(broker, version=version)
        await handler.until_connected()
        token = link.publish(WILL)
        await handler.reason_code(token)
        broker.kill()
        await handler.until(lambda: "disconnected" in handler.calls)
        assert (link.connected, link.room, link.publish(WILL)) == (False, 0, None)
        broker.start()
        await handler.until_connected(2)
        fresh = link.publish(WILL)
        assert fresh != token  # also when both are the first of their connection
        assert await handler.reason_code(fresh) in (0, 16)
        assert handler.sessions == [False, False]
        assert link.room == WINDOW


@both_versions
async def test_what_was_in_flight_is_forgotten(links: Links, version: str) -> None:
    def accept(attempt: int) -> bytes:
        return CONNACK_5 if version == "5" else CONNACK_311

    async with scripted(accept, puback=False) as fake:
        link, handler = links.start(fake.port, version=version)
        await handler.until_connected()
        assert link.publish(WILL) is not None
        assert link.room == WINDOW - 1
        await fake.until(lambda: fake.publishes == 1)
        sever(link)
        await handler.until_connected(2)
        assert link.room == WINDOW
        assert link.publish(WILL) is not None
        await fake.until(lambda: fake.publishes == 2)  # had the old one been sent again, there would be three
        await links.cancel(link)
        await fake.until(lambda: fake.open == 0)
        assert fake.publishes == 2
        assert handler.acks == {}


@both_versions
async def test_the_will_follows_a_lost_connection_only(broker: Mosquitto, links: Links, version: str) -> None:
    config = {"version": version, "will": WILL, "will_delay_s": 0}
    async with client(broker.port, WILL.topic, "marker") as other:
        link, handler = links.start(broker, **config)
        await handler.until_connected()
        await link.disconnect()
        await links.result(link)
        assert handler.calls[-1] == "disconnected"
        await other.publish("marker", b"", qos=1)
        assert str((await next_message(other)).topic) == "marker"  # a will would have come before
        link, handler = links.start(broker, **config)
        await handler.until_connected()
        await links.cancel(link)
        will = await next_message(other)
    assert (str(will.topic), will.payload, will.qos) == (WILL.topic, b"offline", 1)
    assert will.properties is not None
    expected = {"PayloadFormatIndicator": 1, "ContentType": "text/plain"} if version == "5" else {}
    assert will.properties.json() == expected
    async with client(broker.port, WILL.topic) as late:
        assert (await next_message(late)).retain


async def test_the_will_is_delayed_and_cancelled_by_coming_back(broker: Mosquitto, links: Links) -> None:
    async with client(broker.port, WILL.topic, "marker") as other:
        link, handler = links.start(broker, will=WILL, will_delay_s=1)
        await handler.until_connected()
        sever(link)
        await handler.until_connected(2)
        await links.cancel(link)
        await other.publish("marker", b"", qos=1)
        assert str((await next_message(other)).topic) == "marker"
        assert (await next_message(other)).payload == b"offline"


async def test_a_disconnect_sends_what_was_published_and_survives_incoming_traffic(
    broker: Mosquitto, links: Links
) -> None:
    async with client(broker.port, "goip/#", "marker") as other:
        for _ in range(10):
            link, handler = links.start(broker, will=WILL, will_delay_s=0, receive_maximum=1000)
            await handler.until_connected()
            flood = [other.publish("goip/a/cmd/sms", b"x" * 5000) for _ in range(20)]
            for number in range(50):
                link.publish(Publication("goip/a/delivery", b"%d" % number))
            await asyncio.gather(link.disconnect(), *flood)
            await links.result(link)
            await other.publish("marker", b"", qos=1)
            seen = []
            while (message := await next_message(other)).topic.value != "marker":
                seen.append(message)
            assert not [message for message in seen if message.topic.value == WILL.topic]
            assert len([message for message in seen if message.topic.value == "goip/a/delivery"]) == 50


async def test_a_disconnect_does_not_wait_for_a_broker_that_says_nothing(links: Links) -> None:
    async with scripted(lambda attempt: b"") as fake:
        link, handler = links.start(fake.port)
        await fake.until(lambda: fake.open == 1)
        async with asyncio.timeout(1):
            await link.disconnect()
            await links.result(link)
        assert handler.calls == []


async def test_a_disconnect_does_not_wait_for_a_connection(links: Links) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await reader.read()
        left.set()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        tls = {"scheme": "mqtts", "connect_timeout_s": 2.0, "keepalive_s": 2}  # the last is paho 2.1's timeout
        link, _ = links.start(port, **tls)
        await asyncio.wait_for(arrived.wait(), PATIENCE_S)
        async with asyncio.timeout(1):
            await link.disconnect()
            await links.result(link)
        await asyncio.wait_for(left.wait(), PATIENCE_S)  # nor is what was begun forgotten


async def test_a_dead_connection_is_found(links: Links) -> None:
    async with scripted(lambda attempt: CONNACK_5, pong=False) as fake:
        link, handler = links.start(fake.port, keepalive_s=1)
        await handler.until(lambda: "disconnected" in handler.calls)
        assert "Keep alive" in handler.reasons[0]
        await links.cancel(link)


async def test_a_server_keepalive_of_none_is_not_taken(links: Links) -> None:
    async with scripted(lambda attempt: connack_5(b"\x13\x00\x00"), pong=False) as fake:
        _, handler = links.start(fake.port, keepalive_s=1)
        await handler.until(lambda: "disconnected" in handler.calls)


async def test_pings_keep_an_idle_connection(links: Links) -> None:
    async with scripted(lambda attempt: CONNACK_5) as fake:
        _, handler = links.start(fake.port, keepalive_s=1)
        await fake.until(lambda: fake.pings == 3)
        assert handler.calls == ["connected 5"]


# -- takeover


async def test_a_second_client_with_our_id_is_a_takeover(broker: Mosquitto, links: Links) -> None:
    link, handler = links.start(broker, stable_s=10.0, takeover_s=(0.3, 0.6))
    for times in (1, 2, 3):
        await handler.until_connected(times)
        assert handler.takeovers == 0
        async with client(broker.port, identifier="goip-bridge-test"):
            await handler.until(lambda times=times: handler.calls.count("disconnected") == times)
    await handler.until_connected(4)
    assert handler.takeovers == 1
    assert handler.calls[-3:] == ["disconnected", "takeover", "connected 5"]
    assert link.connected


@pytest.mark.parametrize("packet", [b"\xe0\x01\x8e", b"\xe0\x02\x8e\x00", b"\xe0\x06\x8e\x04\x1f\x00\x01!"])
async def test_the_reason_taken_over_is_believed_at_once_and_the_wait_doubles(links: Links, packet: bytes) -> None:
    async with scripted(lambda attempt: CONNACK_5, after_suback=packet, hang_up=True) as fake:
        _, handler = links.start(fake.port, stable_s=10.0, takeover_s=(0.2, 0.5))
        await handler.until(lambda: handler.takeovers == 4)
    gaps = [later - earlier for earlier, later in zip(fake.times, fake.times[1:], strict=False)]
    assert [gap >= wait for gap, wait in zip(gaps, (0.19, 0.39, 0.49), strict=True)] == [True, True, True]
    assert gaps[2] < 0.8  # where doubling once more would have got


async def test_a_long_lived_connection_is_not_counted_as_taken_over(links: Links) -> None:
    async with scripted(lambda attempt: CONNACK_5) as fake:
        link, handler = links.start(fake.port)
        for times in range(1, 6):
            await handler.until_connected(times)
            sever(link)
        await handler.until_connected(6)
        assert handler.takeovers == 0


# -- refusals, and the version of the protocol


async def test_a_wrong_password_is_one_warning(tmp_path: Path, links: Links, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Mosquitto(tmp_path, passwords={"bridge": "right-secret"}) as broker:
        wrong, handler = links.start(broker, username="bridge", password="wrong-secret", backoff_s=(0.0, 0.0))
        right, other = links.start(broker, username="bridge", password="right-secret", client_id="other")
        await other.until_connected()
        while broker.log.count("not authorised") < 4:
            await other.reason_code(right.publish(WILL))
        await links.cancel(wrong)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "mqtt.password" in warnings[0]
    assert handler.calls == []
    assert "secret" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
    assert "secret" not in repr(LinkConfig(host="h", client_id="c", username="u", password="secret"))


async def test_an_absent_broker_is_one_warning(tmp_path: Path, links: Links, caplog: pytest.LogCaptureFixture) -> None:
    broker = Mosquitto(tmp_path)
    _, handler = links.start(broker, backoff_s=(0.02, 0.02))
    await logged(caplog, "refused")
    broker.start()
    try:
        await handler.until_connected()
    finally:
        broker.kill()
    assert len([record for record in caplog.records if "Connection refused" in record.getMessage()]) == 1


async def test_an_absent_broker_is_said_again_after_a_while_with_what_to_check(
    links: Links, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "REPEAT_WARNING_S", 0.3)
    links.start(free_port(), backoff_s=(0.01, 0.05))

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    async with asyncio.timeout(10):
        while len(told()) < 3:  # noqa: ASYNC110 - a log has no event to wait for
            await asyncio.sleep(0.01)
    assert all(line.endswith("is a broker running there? check mqtt.url") for line in told())


async def test_a_refused_subscription_is_an_error_and_still_a_connection(
    links: Links, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(lambda attempt: CONNACK_5, granted=[1, 0x87]) as fake:
        link, handler = links.start(fake.port, subscriptions=("goip/+/cmd/#", "goip/pool/+/cmd/#"))
        await handler.until(lambda: handler.codes != [])
        assert link.connected
        assert handler.codes == [{"goip/+/cmd/#": 1, "goip/pool/+/cmd/#": 0x87}]
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "goip/pool/+/cmd/#" in error
    assert "ACL" in error


@both_versions
async def test_what_was_refused_is_asked_for_again_and_nothing_else(links: Links, version: str) -> None:
    def grant(filters: list[str]) -> list[int]:
        return [0x80 if each == COMMANDS and fake.subscribed.count(each) < 3 else 0 for each in filters]

    connack = CONNACK_5 if version == "5" else CONNACK_311
    async with scripted(lambda attempt: connack, grant=grant) as fake:
        _, handler = links.start(fake.port, version=version, replayed=("other",), resubscribe_s=(0.01, 0.02))
        await handler.until(lambda: handler.codes[-1:] == [{COMMANDS: 0, "other": 0}])
        assert fake.subscribed == [COMMANDS, "other", COMMANDS, COMMANDS]
        refused, asked = {COMMANDS: 0x80, "other": 0}, {COMMANDS: None, "other": 0}
        assert handler.codes == [refused, asked, refused, asked, {COMMANDS: 0, "other": 0}]
        assert handler.calls == [f"connected {version}"]


async def test_an_answer_with_too_few_codes_is_a_refusal(links: Links) -> None:
    async with scripted(lambda attempt: CONNACK_5, granted=[1]) as fake:
        _, handler = links.start(fake.port, replayed=("other",))
        await handler.until(lambda: handler.codes != [])
        assert handler.codes == [{COMMANDS: 1, "other": 0x80}]


async def test_what_is_given_up_is_neither_awaited_nor_asked_for_again(links: Links) -> None:
    async with scripted(lambda attempt: CONNACK_5, granted=[0x87], unsuback=b"\x87") as fake:
        link, handler = links.start(fake.port, resubscribe_s=(0.01, 0.02))
        await handler.until(lambda: handler.codes != [])
        link.listen(on=False)
        assert handler.codes[-1] == {}
        link.subscribe_again()
        await handler.reason_code(link.publish(WILL))
        assert handler.codes[-1] == {}


# -- a broker that does not answer


async def test_a_mute_broker_is_said_and_left(links: Links, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(lambda attempt: CONNACK_5, puback=False) as fake:
        link, handler = links.start(fake.port, mute_s=0.1, keepalive_s=10)
        await handler.until_connected()
        assert (link.mute_s, link.is_mute) == (0.0, False)
        link.publish(WILL)
        await handler.until(lambda: "disconnected" in handler.calls)
        assert handler.closed == [False]
        assert link.is_mute
        assert link.mute_s >= 0.1
        assert "acknowledged nothing" in link.trouble
        await handler.until_connected(2)
        assert link.is_mute, "it has still acknowledged nothing"
        fake._puback = True
        await handler.reason_code(link.publish(WILL))
        assert (link.mute_s, link.is_mute) == (0.0, False)
    assert "acknowledged nothing" in caplog.text
    assert handler.takeovers == 0


async def test_a_broker_that_answers_some_is_not_mute(links: Links) -> None:
    """One PUBACK comes for every second PUBLISH, much sooner than in `mute_s`."""
    async with scripted(lambda attempt: CONNACK_5, puback=2) as fake:
        link, handler = links.start(fake.port, mute_s=5.0)
        await handler.until_connected()
        for number in range(20):
            token = link.publish(WILL)
            if number % 2:
                await handler.reason_code(token)
        assert 0 < link.room < WINDOW
        assert not link.is_mute
        assert handler.calls.count("disconnected") == 0


async def test_a_mute_broker_is_no_busy_loop(links: Links) -> None:
    """The waits between connections grow, although each of these lasted."""
    async with scripted(lambda attempt: CONNACK_5, puback=False) as fake:
        link, handler = links.start(fake.port, mute_s=0.0, stable_s=0.0, backoff_s=(0.1, 30.0))
        for times in range(1, 4):
            await handler.until_connected(times)
            link.publish(WILL)
            await handler.until(lambda times=times: handler.calls.count("disconnected") == times)
        assert link._attempts == 3
        assert fake.publishes == 3


# -- what ends a connection


@both_versions
@pytest.mark.parametrize("how", ["reset", "unanswered", "closed"])
async def test_only_a_quick_close_that_is_about_nothing_else_is_a_sign_of_a_takeover(
    links: Links, how: str, version: str
) -> None:
    connack = CONNACK_5 if version == "5" else CONNACK_311
    async with scripted(lambda attempt: connack, puback=False) as fake:
        link, handler = links.start(
            fake.port, version=version, stable_s=60.0, takeover_s=(0.05, 0.05), backoff_s=(0, 0)
        )
        for times in range(1, 5):
            await handler.until_connected(times)
            if how == "unanswered":
                link.publish(WILL)
                await fake.until(lambda times=times: fake.publishes == times)
            fake.hang_up(reset=how == "reset")
            await handler.until(lambda times=times: handler.calls.count("disconnected") == times)
        await handler.until_connected(5)
        assert handler.takeovers == (2 if how == "closed" else 0)
        assert handler.closed == [True] * 4, "all of these may be an answer to a publication"


async def test_what_dies_of_silence_is_neither_a_close_nor_a_takeover(links: Links) -> None:
    async with scripted(lambda attempt: CONNACK_5, pong=False) as fake:
        _, handler = links.start(fake.port, keepalive_s=1, stable_s=60.0)
        await handler.until(lambda: handler.calls.count("disconnected") == 3)
        assert (handler.takeovers, handler.closed) == (0, [False] * 3)


@pytest.mark.parametrize("progress", [True, False])
async def test_connections_that_bring_something_through_follow_each_other(links: Links, progress: bool) -> None:
    async with scripted(lambda attempt: CONNACK_5, puback=False) as fake:
        link, handler = links.start(fake.port, stable_s=60.0, backoff_s=(0.0, 0.0))
        handler.progress = progress
        for times in range(1, 6):
            await handler.until_connected(times)
            link.publish(WILL)
            await fake.until(lambda times=times: fake.publishes == times)
            fake.hang_up()
            await handler.until(lambda times=times: handler.calls.count("disconnected") == times)
        assert link._attempts == (1 if progress else 5), "the wait before the next doubles with each"


async def test_what_the_broker_said_before_it_broke_the_connection_counts(links: Links) -> None:
    """It acknowledges and closes while we write: the PUBACK waits in the socket when writing fails."""
    async with scripted(lambda attempt: CONNACK_5) as fake:
        link, handler = links.start(fake.port)
        await handler.until_connected()
        assert link._connection is not None
        link._connection.pause(on=True)  # so that it can't be read before
        token = link.publish(Publication("goip/a/event", b"1"))
        await fake.until(lambda: fake.publishes == 1)
        fake.hang_up(reset=True)
        await fake.until(lambda: fake.open == 0)
        link.publish(Publication("goip/a/event", b"2"))
        await handler.until(lambda: "disconnected" in handler.calls)
        assert handler.acks == {token: 0}
        assert handler.calls[:3] == ["connected 5", "published", "disconnected"]


# -- what the broker can't do


async def test_a_broker_without_retained_messages_is_worked_with(
    links: Links, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(attempt: int) -> bytes:
        return connack_5(b"\x25\x00") if attempt > 1 else b"\x20\x03\x00\x9a\x00"

    async with scripted(answer) as fake:
        link, handler = links.start(fake.port, will=WILL, backoff_s=(30.0, 30.0))
        await handler.until_connected()
        assert [flags & 0x24 for flags in fake.connect_flags] == [0x24, 0x04], "will; retained at first"
        assert not link.retains
        await handler.reason_code(link.publish(WILL))
        assert fake.kinds[-1] == 0x32, "QoS 1, not retained"
    assert len([record for record in caplog.records if "retain_available" in record.getMessage()]) == 1


@pytest.mark.parametrize("where", ["refused", "accepted"])
async def test_a_broker_without_qos_1_is_told_what_it_has_to_allow(
    links: Links, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    refusal = b"\x20\x05\x00\x9b\x02\x24\x00"
    async with scripted(lambda attempt: refusal if where == "refused" else connack_5(b"\x24\x00")) as fake:
        link, handler = links.start(fake.port, will=WILL)
        await logged(caplog, "max_qos 1")
        await fake.until(lambda: len(fake.versions) == 3)
        assert "QoS 1" in link.trouble
        assert handler.calls == []


async def test_an_old_broker_that_closes_at_our_will_is_told_what_it_has_to_allow(
    links: Links, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: int) -> bytes | None:
        return None if fake.connect_flags[-1] & 0x04 else CONNACK_311

    async with scripted(answer) as fake:
        _, handler = links.start(fake.port, version="3.1.1", will=WILL)
        await logged(caplog, "retain_available true")
        await fake.until(lambda: len(fake.versions) == 6)
        wills = [bool(flags & 0x04) for flags in fake.connect_flags]
        assert wills[:6] == [True, False, True, True, True, True], "asked once"
        assert handler.calls == []


# -- too much at once


async def test_a_paused_link_reads_little_and_stays_alive(links: Links) -> None:
    """More waits in the socket than is read meanwhile, PINGRESPs and PUBACKs behind it."""
    body = b"\x00\x0cgoip/a/cmd/x" + b"\x00" + b"!" * 100_000
    command = b"\x30" + bytes([len(body) & 0x7F | 0x80, len(body) >> 7 & 0x7F | 0x80, len(body) >> 14]) + body
    async with scripted(lambda attempt: CONNACK_5) as fake:
        link, handler = links.start(fake.port, keepalive_s=1, mute_s=1.0)
        await handler.until_connected()
        link.pause(on=True)
        token = link.publish(WILL)
        await fake.until(lambda: fake.publishes == 1)
        count = 1000
        sending = asyncio.create_task(fake.send(command * count))
        await fake.until(lambda: fake.pings == 5)
        assert len(handler.messages) < count / 2
        assert handler.calls.count("disconnected") == 0
        link.pause(on=False)
        await handler.until(lambda: len(handler.messages) == count)
        await sending
        assert await handler.reason_code(token) == 0
        assert handler.calls.count("disconnected") == 0


async def test_one_wake_up_brings_a_bounded_amount(links: Links) -> None:
    body = b"\x00\x0cgoip/a/cmd/x" + b"\x00" + b"!" * 16_000
    command = b"\x30" + bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) + body
    async with scripted(lambda attempt: CONNACK_5) as fake:
        _, handler = links.start(fake.port)
        await handler.until_connected()
        await fake.send(command * 500)
        await handler.until(lambda: len(handler.messages) == 500)
    assert max(sum(len(message.payload) for message in batch) for batch in handler.batches) <= BATCH_BYTES + 16_000


@both_versions
async def test_of_what_comes_before_the_subscriptions_are_answered_a_bounded_amount_is_kept(
    links: Links, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    connack, properties = (CONNACK_5, b"\x00") if version == "5" else (CONNACK_311, b"")
    body = b"\x00\x0cgoip/a/cmd/x" + properties + b"!"
    flood = (b"\x30" + bytes([len(body)]) + body) * (2 * EARLY)
    body = b"\x00\x0cgoip/a/cmd/x\x00\x01" + properties + b"!"
    last = b"\x32" + bytes([len(body)]) + body
    async with scripted(lambda attempt: connack + flood + last) as fake:
        _, handler = links.start(fake.port, version=version)
        await handler.until(lambda: bool(handler.messages) and handler.messages[-1].mid == 1)
    assert len(handler.messages) == EARLY + 1
    assert f"{EARLY} messages with QoS 0" in caplog.text


async def test_a_broker_without_mqtt_5_is_spoken_to_in_3(links: Links, caplog: pytest.LogCaptureFixture) -> None:
    async with amqtt_broker() as port:
        link, handler = links.start(port, connect_timeout_s=0.5)
        await handler.until_connected()
        assert link.version == "3.1.1"
        async with client(port, "goip/a/state", version="3.1.1") as other:
            assert await handler.reason_code(link.publish(Publication("goip/a/state", b"{}", expiry_s=5))) == 0
            assert (await next_message(other)).payload == b"{}"
            await other.publish("goip/a/cmd/sms", b"1", qos=1)
            await handler.until(lambda: len(handler.messages) == 1)
            link.acknowledge(handler.messages[0])
        sever(link)
        await handler.until_connected(2)
        assert link.version == "3.1.1"
        await links.cancel(link)
    assert len([record for record in caplog.records if "3.1.1" in record.getMessage()]) == 1


@pytest.mark.parametrize("refusal", [b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01"])
async def test_a_refused_version_falls_back_for_good(links: Links, refusal: bytes) -> None:
    async with scripted(lambda attempt: refusal if attempt == 1 else CONNACK_311) as fake:
        link, handler = links.start(fake.port, backoff_s=(30.0, 30.0))
        await handler.until_connected()
        assert fake.versions == [5, 4]
        assert link.version == "3.1.1"


async def test_a_closed_connection_falls_back_when_it_happens_again(links: Links) -> None:
    async with scripted(lambda attempt: None if fake.versions[-1] == 5 else CONNACK_311) as fake:
        link, handler = links.start(fake.port)
        await handler.until_connected()
        sever(link)
        await handler.until_connected(2)
        assert fake.versions == [5, 4, 5, 4, 4]


async def test_a_broker_that_was_only_starting_is_not_fallen_back_from(links: Links) -> None:
    async with scripted(lambda attempt: [None, CONNACK_311, CONNACK_5][attempt - 1]) as fake:
        link, handler = links.start(fake.port)
        await handler.until_connected()
        assert fake.versions == [5, 4, 5]
        assert link.version == "5"


async def test_a_broker_known_to_speak_5_is_not_suspected(links: Links) -> None:
    async with scripted(lambda attempt: None if attempt == 2 else CONNACK_5) as fake:
        link, handler = links.start(fake.port)
        await handler.until_connected()
        sever(link)
        await handler.until_connected(2)
        assert fake.versions == [5, 5, 5]


async def test_a_configured_version_is_kept(links: Links) -> None:
    async with scripted(lambda attempt: b"\x20\x03\x00\x84\x00") as fake:
        links.start(fake.port, version="5", backoff_s=(0.0, 0.0))
        await fake.until(lambda: len(fake.versions) == 3)
        assert set(fake.versions) == {5}


# -- transports


async def test_tls_with_a_client_certificate(tmp_path: Path, links: Links, caplog: pytest.LogCaptureFixture) -> None:
    certificates = make_certificates(tmp_path)
    with Mosquitto(tmp_path, tls=certificates) as broker:
        ours = {"cert_file": str(certificates.client_cert), "key_file": str(certificates.client_key)}
        tls = {"scheme": "mqtts", "port": broker.tls_port, "ca_file": str(certificates.ca)}
        link, handler = links.start(broker, **tls, **ours, server_name=SERVER_NAME)
        await handler.until_connected()
        async with client(broker.port, "goip/a/state") as other:
            link.publish(Publication("goip/a/state", b"x" * 200_000))
            assert len((await next_message(other)).payload) == 200_000
            for number in range(50):
                await other.publish("goip/a/cmd/sms", b"%d" % number * 5000, qos=1)
        await handler.until(lambda: len(handler.messages) == 50)

        async def warned(text: str, **config: Any) -> None:
            caplog.clear()
            stranger, nothing = links.start(broker, client_id="stranger", **(tls | config))
            await logged(caplog, text)
            await links.cancel(stranger)
            assert nothing.calls == []

        await warned("mqtt.server_name", **ours)
        await warned("alert certificate required", server_name=SERVER_NAME)
        await warned("mqtt.ca_file", **ours, server_name=SERVER_NAME, ca_file=None)
        await warned("nowhere.pem", **ours, server_name=SERVER_NAME, ca_file="nowhere.pem")


async def test_nothing_stays_in_the_tls_buffer(tmp_path: Path, links: Links) -> None:
    certificates = make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    command = b"\x30\x0f\x00\x0cgoip/a/cmd/x\x00"  # in one record with the SUBACK: the selector sees it only once
    async with scripted(lambda attempt: CONNACK_5, after_suback=command, tls=context) as fake:
        tls = {"scheme": "mqtts", "ca_file": str(certificates.ca), "server_name": SERVER_NAME}
        _, handler = links.start(fake.port, **tls)
        async with asyncio.timeout(0.9):  # the ticks of loop_misc must not be what finds it
            await handler.until(lambda: len(handler.messages) == 1)
        assert handler.messages[0].topic == "goip/a/cmd/x"
        assert handler.calls == ["connected 5", "received"]


async def test_a_unix_socket(tmp_path: Path, links: Links) -> None:
    with Mosquitto(tmp_path, unix=True) as broker:
        link, handler = links.start(broker, scheme="unix", host=str(broker.unix_path), port=None)
        await handler.until_connected()
        async with client(broker.port, "goip/a/state") as other:
            link.publish(Publication("goip/a/state", b"{}"))
            assert (await next_message(other)).payload == b"{}"


@both_versions
async def test_websockets(tmp_path: Path, links: Links, version: str) -> None:
    with Mosquitto(tmp_path, websockets=True) as broker:
        link, handler = links.start(broker, scheme="ws", port=broker.websockets_port, version=version)
        await handler.until_connected()
        async with client(broker.port, "goip/a/state") as other:
            link.publish(Publication("goip/a/state", b"{}"))
            assert (await next_message(other)).payload == b"{}"
            await other.publish("goip/a/cmd/sms", b"1" * 70_000, qos=1)
            await handler.until(lambda: len(handler.messages) == 1)
            assert handler.messages[0].payload == b"1" * 70_000
        await link.disconnect()
        await links.result(link)


async def test_a_websocket_that_takes_packets_in_parts_loses_none(tmp_path: Path, links: Links) -> None:
    with Mosquitto(tmp_path, websockets=True) as broker:
        link, handler = links.start(broker, scheme="ws", port=broker.websockets_port)
        await handler.until_connected()
        assert link._connection is not None
        with socket.socket(fileno=socket.dup(link._connection._fd)) as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        async with client(broker.port, "goip/a/state") as other:
            tokens = [link.publish(Publication("goip/a/state", b"%d" % n * 150_000)) for n in range(10)]
            assert [(await next_message(other)).payload[:1] for _ in tokens] == [b"%d" % n for n in range(10)]
            assert [await handler.reason_code(token) for token in tokens] == [0] * 10


# -- a broker that does what it is told


CONNACK_311 = b"\x20\x02\x00\x00"


def connack_5(properties: bytes = b"") -> bytes:
    return b"\x20" + bytes([3 + len(properties), 0, 0, len(properties)]) + properties


CONNACK_5 = connack_5()


class Scripted:
    """Answers CONNECT as told, and everything else as a broker would unless told otherwise."""

    def __init__(self, connack: Callable[[int], bytes | None], **behaviour: Any) -> None:
        self.port = 0
        self.versions: list[int] = []
        self.times: list[float] = []
        self.publishes = self.pings = self.open = 0
        self._connack = connack
        granted: list[int] = behaviour.get("granted", [1])
        self._grant: Callable[[list[str]], list[int]] = behaviour.get("grant", lambda _: granted)
        self._unsuback: bytes = behaviour.get("unsuback", b"\x00")
        self.subscribed: list[str] = []
        self.connect_flags: list[int] = []
        self.kinds: list[int] = []
        self._writer: asyncio.StreamWriter | None = None
        self._after_suback: bytes = behaviour.get("after_suback", b"")
        self._hang_up: bool = behaviour.get("hang_up", False)
        self._puback: int = behaviour.get("puback", True)
        "Of so many publishes the last is acknowledged; none with 0."
        self._pong: bool = behaviour.get("pong", True)
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection; with a reset, as a system does when there is more to read."""
        assert self._writer is not None
        if reset:
            wire = self._writer.get_extra_info("socket")
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort() if reset else self._writer.close()

    async def send(self, data: bytes) -> None:
        """Something that nobody asked for."""
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._writer = writer
        self._changed.set()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (answer := self._answer(*await _packet(reader))) is not None:
                writer.write(answer)
                if self._hang_up and answer.endswith(self._after_suback) and self._after_suback:
                    break
        writer.close()
        self.open -= 1
        self._changed.set()

    def _answer(self, kind: int, body: bytes) -> bytes | None:
        self._changed.set()
        self.kinds.append(kind)
        version = self.versions[-1] if self.versions else 0
        match kind >> 4:
            case 1:
                self.versions.append(body[6])
                self.connect_flags.append(body[7])
                self.times.append(asyncio.get_running_loop().time())
                return self._connack(len(self.versions))
            case 3:
                self.publishes += 1
                mid = body[2 + int.from_bytes(body[:2]) :][:2]
                return b"\x40\x02" + mid if self._puback and self.publishes % self._puback == 0 else b""
            case 8:
                properties = b"\x00" if version == 5 else b""
                filters = _filters(body[2 + len(properties) :])
                self.subscribed += filters
                payload = body[:2] + properties + bytes(self._grant(filters))
                return b"\x90" + bytes([len(payload)]) + payload + self._after_suback
            case 10:
                payload = body[:2] + (b"\x00" + self._unsuback if version == 5 else b"")
                return b"\xb0" + bytes([len(payload)]) + payload
            case 12:
                self.pings += 1
                return b"\xd0\x00" if self._pong else b""
            case 14:
                return None
        return b""


def _filters(body: bytes) -> list[str]:
    """Those of a SUBSCRIBE, without their options."""
    found = []
    while body:
        size = int.from_bytes(body[:2])
        found.append(body[2 : 2 + size].decode())
        body = body[3 + size :]
    return found


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    (kind,) = struct.unpack("B", await reader.readexactly(1))
    length = shift = 0
    while True:
        (byte,) = await reader.readexactly(1)
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return kind, await reader.readexactly(length)


@contextlib.asynccontextmanager
async def scripted(
    connack: Callable[[int], bytes | None], tls: ssl.SSLContext | None = None, **behaviour: Any
) -> AsyncIterator[Scripted]:
    fake = Scripted(connack, **behaviour)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0, ssl=tls)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
