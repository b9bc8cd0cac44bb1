"""The embedded broker, for real: processes, sockets, and an independent MQTT client."""

import asyncio
import logging
import os
import re
import select
import signal
import socket
import sys
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.config.settings import BrokerUrl
from bridge.process import embedded_broker as module
from bridge.process.embedded_broker import BrokerError, EmbeddedBroker

needs_mosquitto = pytest.mark.broker("binary")


@pytest.fixture
def no_mosquitto(monkeypatch):
    monkeypatch.setattr(module, "find_mosquitto", lambda: None)


@pytest.fixture(params=[pytest.param("mosquitto", marks=needs_mosquitto), "amqtt"])
def kind(request):
    if request.param == "amqtt":
        pytest.importorskip("amqtt")
        request.getfixturevalue("no_mosquitto")
    return request.param


@pytest.fixture
async def broker():
    """A broker that is gone after the test, however that ends."""
    embedded = EmbeddedBroker()
    yield embedded
    await embedded.stop()


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def client(url: str, **options) -> aiomqtt.Client:
    address = BrokerUrl.parse(url)
    options.setdefault("protocol", aiomqtt.ProtocolVersion.V311)
    return aiomqtt.Client(address.host, address.port, **options)


def keeping(url: str) -> aiomqtt.Client:
    """A client whose session the broker keeps."""
    return client(url, identifier="keeper", clean_session=False)


async def next_message(connected: aiomqtt.Client) -> aiomqtt.Message:
    async with asyncio.timeout(10):
        return await anext(aiter(connected.messages))


def wait_for_end(pidfd: int) -> None:
    """Returns when that process is gone."""
    assert select.select([pidfd], [], [], 10)[0], "still alive"


def listening_addresses(table: str, port: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which somebody listens on that port."""
    rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}


# Both -----------------------------------------------------------------------------------------------------------------


async def test_a_message_makes_the_round_trip(kind, broker, tmp_path):
    url = await broker.start(tmp_path, 0)
    async with client(url) as one:
        await one.subscribe("goip/#", qos=1)
        await one.publish("goip/a/sms/in", "päck", qos=1)
        message = await next_message(one)
    assert (str(message.topic), message.payload.decode(), message.qos, message.retain) == (
        "goip/a/sms/in",
        "päck",
        1,
        False,
    )


async def test_a_retained_message_reaches_a_later_subscriber(kind, broker, tmp_path):
    url = await broker.start(tmp_path, 0)
    async with client(url) as one:
        await one.publish("goip/bridge/availability", "online", qos=1, retain=True)
    async with client(url) as two:
        await two.subscribe("goip/#", qos=1)
        message = await next_message(two)
    assert (message.payload, message.retain) == (b"online", True)


async def test_a_persistent_session_gets_what_came_while_it_was_away(kind, broker, tmp_path):
    url = await broker.start(tmp_path, 0)
    async with keeping(url) as one:
        await one.subscribe("goip/+/cmd/#", qos=1)
    async with client(url) as two:
        await two.publish("goip/a/cmd/refresh", "{}", qos=1)
    async with keeping(url) as one:
        assert str((await next_message(one)).topic) == "goip/a/cmd/refresh"


async def test_a_taken_port_is_replaced_by_the_next_free_one(kind, broker, tmp_path, taken, caplog):
    url = await broker.start(tmp_path, taken)
    chosen = BrokerUrl.parse(url).port
    assert taken < chosen < taken + module.PORTS_TRIED
    assert f"port {taken} is taken (by another broker? then set mqtt.url); using {chosen}" in caplog.text


async def test_it_listens_on_loopback_only(kind, broker, tmp_path):
    port = BrokerUrl.parse(await broker.start(tmp_path, 0)).port
    assert listening_addresses("/proc/net/tcp", port) == {"0100007F"}
    assert listening_addresses("/proc/net/tcp6", port) == set()


async def test_after_stop_nobody_listens_and_stopping_again_is_harmless(kind, broker, tmp_path):
    port = BrokerUrl.parse(await broker.start(tmp_path, 0)).port
    await broker.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await broker.stop()


# mosquitto ------------------------------------------------------------------------------------------------------------


@needs_mosquitto
async def test_mosquitto_speaks_mqtt_5(broker, tmp_path):
    url = await broker.start(tmp_path, 0)
    async with client(url, protocol=aiomqtt.ProtocolVersion.V5) as one:
        await one.subscribe("a", qos=1)
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/json"
        await one.publish("a", "{}", qos=1, properties=properties)
        assert (await next_message(one)).properties.ContentType == "application/json"


@needs_mosquitto
async def test_a_restart_keeps_retained_messages_and_sessions(broker, tmp_path):
    folder = tmp_path / "data folder"  # blanks and all
    url = await broker.start(folder, 0)
    async with keeping(url) as one:
        await one.subscribe("goip/+/cmd/#", qos=1)
    async with client(url) as two:
        await two.publish("goip/bridge/info", "{}", qos=1, retain=True)
        await two.publish("goip/a/cmd/refresh", "{}", qos=1)
    await broker.stop()

    url = await broker.start(folder, 0)
    async with keeping(url) as one:
        assert str((await next_message(one)).topic) == "goip/a/cmd/refresh"
    async with client(url) as two:
        await two.subscribe("goip/bridge/info", qos=1)
        assert (await next_message(two)).retain


@needs_mosquitto
async def test_a_killed_child_is_started_again_on_the_same_port(broker, tmp_path, caplog):
    url = await broker.start(tmp_path, 0)
    first = broker.pid
    async with client(url) as one:
        os.kill(first, signal.SIGKILL)
        with pytest.raises(aiomqtt.MqttError):
            await next_message(one)
    async with asyncio.timeout(20):
        await module._until_it_answers(BrokerUrl.parse(url).port)
    async with client(url) as two:
        await two.publish("a", "b", qos=1)
    assert broker.pid != first
    assert "the embedded broker ended with -9; starting it again in 0.5 s" in caplog.text


@needs_mosquitto
async def test_the_child_ends_with_us_and_the_next_start_waits_for_it(broker, tmp_path):
    script = """if True:
        import asyncio, pathlib, sys
        from bridge.process.embedded_broker import EmbeddedBroker
        async def run():
            broker = EmbeddedBroker()
            print(await broker.start(pathlib.Path(sys.argv[1]), 0), broker.pid, flush=True)
            await asyncio.Event().wait()
        asyncio.run(run())
        """
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    url, pid = (await other.stdout.readline()).decode().split()
    pidfd = os.pidfd_open(int(pid))
    try:
        async with client(url) as one:
            await one.publish("kept", "yes", qos=1, retain=True)
        other.kill()
        await other.wait()
        assert (
            await broker.start(tmp_path, BrokerUrl.parse(url).port) == url
        )  # nothing waited here for the child to end
        async with client(url) as two:
            await two.subscribe("kept", qos=1)
            assert (await next_message(two)).payload == b"yes"
        wait_for_end(pidfd)
    finally:
        os.close(pidfd)


@needs_mosquitto
async def test_two_brokers_do_not_share_a_folder(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STOP_S", 0.2)
    await broker.start(tmp_path, 0)
    with pytest.raises(BrokerError, match=r"another embedded broker uses .*; stop that one first"):
        await EmbeddedBroker().start(tmp_path, 0)


@needs_mosquitto
async def test_the_log_of_mosquitto_is_ours(broker, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="bridge.process.embedded_broker")
    await broker.start(tmp_path, 0)
    await broker.stop()
    assert any(record.getMessage().startswith("mosquitto: mosquitto version") for record in caplog.records)


async def test_a_mosquitto_that_does_not_start_says_why(broker, tmp_path, monkeypatch):
    failing = tmp_path / "mosquitto-that-fails"
    failing.write_text("#!/bin/sh\necho 'Error: no luck today' >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(module, "find_mosquitto", lambda: str(failing))
    with pytest.raises(BrokerError, match="mosquitto ended with 3: Error: no luck today"):
        await broker.start(tmp_path, 0)
    assert broker.pid is None


async def test_a_folder_that_cannot_be_made_is_said(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_mosquitto", lambda: "/bin/true")
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match=r"cannot start /bin/true in .*: Not a directory"):
        await broker.start(tmp_path / "file", 0)


@needs_mosquitto
def test_mosquitto_is_found_where_debian_puts_it(monkeypatch):
    where = module.find_mosquitto()
    if not where.startswith(("/usr/sbin/", "/usr/local/sbin/")):
        pytest.skip("installed elsewhere")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert module.find_mosquitto() == where


@needs_mosquitto
async def test_one_that_hangs_when_it_is_started_again_is_replaced(broker, tmp_path, monkeypatch):
    """The second of three is there, and never listens."""
    script = tmp_path / "mosquitto"
    script.write_text(
        f"#!/bin/sh\necho >> {tmp_path}/starts\n"
        f"if [ $(wc -l < {tmp_path}/starts) = 2 ]; then exec sleep 600; fi\n"
        f'exec {module.find_mosquitto()} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(module, "find_mosquitto", lambda: str(script))
    monkeypatch.setattr(module, "READY_S", 2.0)
    url = await broker.start(tmp_path / "data", 0)
    first = broker.pid
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(30):
        while (tmp_path / "starts").read_text().count("\n") < 3:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
        await module._until_it_answers(BrokerUrl.parse(url).port)
    assert broker.pid != first


# amqtt ----------------------------------------------------------------------------------------------------------------


async def test_amqtt_is_announced_in_one_warning_and_makes_no_noise(no_mosquitto, broker, tmp_path, caplog, capfd):
    pytest.importorskip("amqtt")
    caplog.set_level(logging.DEBUG)
    url = await broker.start(tmp_path, 0)
    async with client(url) as one:
        await one.publish("a", "b", qos=1)
    await broker.stop()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "MQTT 3.1.1" in warnings[0]
    assert not [record for record in caplog.records if record.name.partition(".")[0] in ("amqtt", "transitions")]
    assert capfd.readouterr() == ("", "")


async def test_without_any_broker_the_error_says_how_to_install_one(no_mosquitto, broker, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(BrokerError) as raised:
        await broker.start(tmp_path, 0)
    assert "apt-get install mosquitto" in str(raised.value)
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    wanted = re.search(r'embedded = \["amqtt>=[\d.]+,(<[\d.]+)"', project)
    assert wanted is not None
    assert f"pip install 'amqtt{wanted[1]}'" in str(raised.value)  # from the registry: the bridge itself is not there


async def test_when_all_ports_are_taken_that_is_said(kind, broker, tmp_path, taken, monkeypatch):
    monkeypatch.setattr(module, "PORTS_TRIED", 1)
    with pytest.raises(BrokerError, match=f"ports {taken} to {taken} on 127.0.0.1 are all taken"):
        await broker.start(tmp_path, taken)


FIRST_WORDS = {
    "nothing": b"",
    "half_a_packet": b"\x10",
    "an_endless_length": b"\x10\xff\xff\xff\xff\xff",
    "another_protocol": b"GET / HTTP/1.1\r\n\r\n",
    "a_ping": b"\xc0\x00",
    "mqtt_3_1": b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x0a\x00\x00",
    "no_utf_8": b"\x10\x10\x00\x04MQTT\x04\x02\x00\x0a\x00\x04\xff\xff\xff\xff",
    "a_bad_will": b"\x10\x0c\x00\x04MQTT\x04\x06\x00\x0a\x00\x00",
    "a_second_connect": module._CONNECT * 2,
    "a_bad_publish": module._CONNECT + b"\x33\x04\x00\x10ab",
    "a_bad_subscription": module._CONNECT + b"\x82\x05\x00\x00\x00\x00\x07",
    "an_unknown_packet": module._CONNECT + b"\xf7\x00",
    "a_subscription": module._CONNECT + b"\x82\x06\x00\x01\x00\x01#\x01",
    "mqtt_5": b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x00",
}


@pytest.mark.parametrize("words", FIRST_WORDS.values(), ids=FIRST_WORDS)
@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
def test_no_client_makes_amqtt_log_a_traceback(no_mosquitto, tmp_path, caplog, capfd, words, leaves):
    """Neither while it runs, nor when the program ends with that client connected."""
    pytest.importorskip("amqtt")
    caplog.set_level(logging.INFO)

    async def live() -> None:
        embedded = EmbeddedBroker()
        url = await embedded.start(tmp_path, 0)
        address = BrokerUrl.parse(url)
        with socket.create_connection((address.host, address.port)) as hostile:
            hostile.sendall(words)
            async with client(url) as good:  # the broker has had time for both
                await good.publish("a", "b" * 100_000, qos=1)
                await good.publish("a", "c", qos=1)
            if leaves:
                hostile.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # with a reset
                hostile.close()
                async with client(url) as good:
                    await good.publish("a", "d", qos=1)
            await embedded.stop()

    asyncio.run(live())
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    assert capfd.readouterr() == ("", "")


async def test_a_client_that_asks_amqtt_for_mqtt_5_is_answered_and_the_log_says_why(
    no_mosquitto, broker, tmp_path, caplog
):
    pytest.importorskip("amqtt")
    url = await broker.start(tmp_path, 0)
    for _ in range(2):
        with pytest.raises(aiomqtt.MqttError, match="Unsupported protocol version"):
            async with client(url, protocol=aiomqtt.ProtocolVersion.V5):
                pass
    said = [record.getMessage() for record in caplog.records if "MQTT 5" in record.getMessage()]
    assert len(said) == 1, "a client that comes again is no news"
    assert "set the client to 3.1.1, or install mosquitto" in said[0]
