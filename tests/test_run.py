"""The life of a bridge in its process: what it opens it closes, and whatever fails in it ends it."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import Bridge, PortUnusable
from bridge.config.settings import BrokerUrl, Settings
from bridge.http import listener as http
from bridge.mqtt.link import Incoming
from bridge.process import embedded_broker as module
from bridge.process import worker
from bridge.process.keeper import Systemd
from bridge.store.database import Store, StoreError
from broker_fixture import Broker
from harness import LIMIT_S, as_broker, bridge_config, free_udp_port, own_broker, watching

NOBODY = BrokerUrl.parse("mqtt://127.0.0.1:1")


class FaultOfOursError(Exception):
    """What no code expects."""


def fail(*_: object, **__: object) -> None:
    raise FaultOfOursError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "bridge.db")
    yield opened
    opened.close()


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def make(store: Store, **more: Any) -> Bridge:
    settings = Settings(
        **{"lines": {"l0": {"password": "p"}}, "udp": {"listen": f"127.0.0.1:{free_udp_port()}"}} | more
    )
    return Bridge(settings, store, lambda: settings)


def bind_again(bridge: Bridge, http_port: int | None = None) -> None:
    """What was listened on is free."""
    udp = bridge.settings.udp
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((udp.host, udp.port))
    if http_port is not None:
        socket.create_server(("127.0.0.1", http_port)).close()


# -- what is opened is closed


async def test_a_taken_http_port_leaves_the_udp_socket_closed(store: Store, taken: int) -> None:
    bridge = make(store, http={"listen": f"127.0.0.1:{taken}"})
    with pytest.raises(PortUnusable, match="cannot listen on tcp"):
        await bridge.run(asyncio.Event(), NOBODY)
    assert bridge.udp is not None
    assert bridge.udp.socket.fileno() == -1
    bind_again(bridge)


async def test_a_listener_that_cannot_begin_leaves_nothing_open(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "PAGE", tmp_path)  # a folder: it is there, and cannot be read
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bridge = make(store, http={"listen": f"127.0.0.1:{port}"})
    bridge.make_listener = http.HttpListener
    with pytest.raises(IsADirectoryError):
        await bridge.run(asyncio.Event(), NOBODY)
    bind_again(bridge, port)


async def test_a_fault_at_the_start_leaves_no_task_and_no_socket(store: Store) -> None:
    bridge = make(store)
    others = asyncio.all_tasks()
    with pytest.raises(FaultOfOursError):
        await bridge.run(asyncio.Event(), NOBODY, serving=fail)
    assert asyncio.all_tasks() == others
    bind_again(bridge)


# -- what fails ends it


async def test_a_callback_that_fails_before_the_service_begins_ends_it(store: Store) -> None:
    """SIGHUP may come as soon as there is a bridge."""
    bridge = make(store)
    bridge._guarded(fail)()
    async with asyncio.timeout(10):
        with pytest.raises(FaultOfOursError):
            await bridge.run(asyncio.Event(), NOBODY)
    bind_again(bridge)


async def test_a_callback_that_fails_while_it_stops_is_no_clean_end(store: Store) -> None:
    bridge = make(store)
    stop = asyncio.Event()
    hear = bridge._hear_outcomes

    async def hear_and_fail() -> None:
        await hear()
        bridge._guarded(fail)()

    bridge._hear_outcomes = hear_and_fail  # type: ignore[method-assign]
    with pytest.raises(FaultOfOursError):
        await bridge.run(stop, NOBODY, serving=lambda _: stop.set())


@pytest.mark.broker("binary")
async def test_a_task_that_fails_while_it_stops_is_no_clean_end(tmp_path: Path, store: Store) -> None:
    """The link's task ends with its last call of the bridge."""
    async with own_broker(tmp_path / "broker") as mosquitto, watching(as_broker(mosquitto), "goip/#") as watcher:
        settings = Settings(**bridge_config(as_broker(mosquitto), "goip"))
        bridge = Bridge(settings, store, lambda: settings)
        url, stop = BrokerUrl.parse(as_broker(mosquitto).url), asyncio.Event()
        running = asyncio.create_task(bridge.run(stop, url))
        await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
        bridge.disconnected = fail  # type: ignore[method-assign, assignment]
        stop.set()
        with pytest.raises(FaultOfOursError):
            await running


async def test_of_two_faults_the_first_is_raised_and_the_other_logged(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = make(store)
    bridge._guarded(fail)()
    bridge._guarded(lambda: 1 / 0)()
    with pytest.raises(FaultOfOursError):
        await bridge.run(asyncio.Event(), NOBODY)
    assert "ZeroDivisionError" in caplog.text


async def test_what_waited_for_the_disk_is_written_when_it_works_again_while_the_bridge_stops(store: Store) -> None:
    """An outcome that came last: the gateway does not say it again."""
    bridge = make(store)
    loop, stop, stalled = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    hear, stall = bridge._hear_outcomes, bridge._stall

    async def hear_and_mend_the_disk() -> None:
        await hear()
        assert bridge.stalled
        store._db.execute("PRAGMA query_only = OFF")

    def stall_and_say_so(error: StoreError) -> None:
        stall(error)
        stalled.set()

    bridge._hear_outcomes = hear_and_mend_the_disk  # type: ignore[method-assign]
    bridge._stall = stall_and_say_so  # type: ignore[method-assign]
    running = asyncio.create_task(bridge.run(stop, NOBODY))
    await asyncio.sleep(0)
    assert bridge.udp is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as box:
        box.connect(bridge.udp.address)
        box.setblocking(False)

        async def say(*datagrams: bytes) -> list[bytes]:
            """The last thing that the bridge answers to each."""
            answers = []
            for datagram in datagrams:
                box.send(datagram)
                answers.append(await loop.sock_recv(box, 9999))
            return answers

        async with asyncio.timeout(LIMIT_S):
            await say(b"req:1;id:l0;pass:p;")
            bridge.received([Incoming("goip/l0/cmd/sms/0049151", b"x", False, False, None, None, 0, -1)])
            sendid = (await loop.sock_recv(box, 9999)).split()[1]
            _, submitted = await say(b"PASSWORD " + sendid, b"SEND " + sendid)
            assert submitted.startswith(b"SEND ")
            telid = submitted.split()[2]
            store._db.execute("PRAGMA query_only = ON")
            box.send(b"OK %b %b 7" % (sendid, telid))
            await stalled.wait()
            box.send(b"RECEIVE:1;id:l0;password:p;srcnum:1;msg:held")
            await say(b"req:2;id:l0;pass:p;")  # the only thing that is answered
            stop.set()
            await running
            told = b""
            while not told.startswith(b"RECEIVE 1 OK"):
                told = await loop.sock_recv(box, 9999)
    assert [row.state for row in store._sms("1")] == ["sent"]
    assert "sms_in" in [row.schema for row in store.outbox(0, 100)]


async def test_no_timer_outlives_the_service(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It would find the store closed."""
    bridge = make(store)
    bridge.datagrams_received([(b"req:1;id:l0;pass:p;", ("127.0.0.1", 1))])
    stop = asyncio.Event()

    def break_the_disk(_: object) -> None:
        store._db.execute("PRAGMA query_only = ON")
        bridge.datagrams_received([(b"RECEIVE:1;id:l0;password:p;srcnum:1;msg:x", ("127.0.0.1", 1))])
        bridge._publish_states_soon()
        stop.set()

    await bridge.run(stop, NOBODY, serving=break_the_disk)
    timers = (bridge._retry, bridge._timer, bridge._states_timer)
    assert [timer for timer in timers if timer is not None and not timer.cancelled()] == []


# -- the embedded broker


@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.broker("binary")), "amqtt"])
async def test_a_reload_that_changes_nothing_says_so_whatever_broker_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """amqtt gets MQTT 3.1.1 whatever is configured: that is nothing that a reload changed."""
    if kind == "amqtt":
        pytest.importorskip("amqtt")
        monkeypatch.setattr(module, "find_mosquitto", lambda: None)
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Told(module.EmbeddedBroker):
        async def start(self, *arguments: Any) -> str:
            url.set_result(await super().start(*arguments))
            return url.result()

    monkeypatch.setattr(worker, "EmbeddedBroker", Told)

    def load() -> Settings:
        return Settings(udp={"listen": "127.0.0.1:0"}, store={"path": tmp_path / "bridge.db"})

    running = asyncio.create_task(worker.serve(load(), load, Systemd({})))
    address = BrokerUrl.parse(await url)
    broker = Broker(kind="embedded", host=address.host, port=address.port)
    async with asyncio.timeout(LIMIT_S), watching(broker, "goip/#") as watcher:
        await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
        await watcher.publish("goip/bridge/cmd/reload")
        said = (await watcher.until("goip/bridge/result/reload")).json
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0
    assert said["message"] == "Reloaded: 0 lines."
