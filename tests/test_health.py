"""`goip-bridge health` asks the bridge, tells the truth, and disturbs nothing; and no tool takes the bridge's place."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt import publish
from test_send import cli, environment, faults

from bridge.contract.topics import Topics
from bridge.process.health import HealthSocket, socket_path
from bridge.process.health import trouble as trouble_of
from broker_fixture import Broker
from brokers import SERVER_NAME, Mosquitto, amqtt_broker, free_port, make_certificates
from harness import BridgeProcess, as_broker, bridge_config, free_udp_port, raw_line, running, watching

pytestmark = pytest.mark.broker("binary")
WELL: dict[str, Any] = {"loop": {"ok": True, "reason": "fine"}}
LONG = "a-folder-with-a-long-name-" * 3


async def health(folder: Path, *arguments: str) -> tuple[int | None, str]:
    """The exit code, and what is said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", "health", *arguments,
        cwd=folder, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert b"Traceback" not in out
    return process.returncode, out.decode()


async def trouble(folder: Path, *arguments: str) -> str:
    """Why it is not healthy: one line."""
    code, said = await health(folder, "--timeout", "0.5", *arguments)
    assert code == 1, said
    assert said.startswith("goip-bridge: not healthy: ")
    assert said.count("\n") == 1
    return said.removeprefix("goip-bridge: not healthy: ").strip()


@contextlib.asynccontextmanager
async def installed(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[BridgeProcess, Mosquitto, Broker]]:
    """A bridge that works, with a broker of its own."""
    folder = tmp_path / "broker"
    folder.mkdir()
    with Mosquitto(folder) as mosquitto:
        broker = as_broker(mosquitto)
        async with running(tmp_path, bridge_config(broker, "goip", **more)) as bridge:
            assert await health(tmp_path, "--timeout", "30") == (0, "")
            yield bridge, mosquitto, broker


# -- the truth, in every case ----------------------------------------------------------------------------------------


async def test_it_is_0_when_the_bridge_works_and_says_why_when_not(tmp_path: Path) -> None:
    async with installed(tmp_path) as (bridge, mosquitto, broker):
        async with watching(broker, "goip/#") as watcher:
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
        assert stat.S_IMODE((tmp_path / "bridge.db-health").stat().st_mode) == 0o600
        assert await health(tmp_path, "--url", "mqtt://192.0.2.1") == (0, "")  # of older versions

        mosquitto.kill()
        await bridge.logged("connection ended")
        assert "not connected to the broker" in await trouble(tmp_path)
        mosquitto.start()
        assert await health(tmp_path, "--timeout", "30") == (0, "")

        os.kill(bridge.worker_pid, signal.SIGSTOP)
        assert "does not answer" in await trouble(tmp_path)
        os.kill(bridge.worker_pid, signal.SIGCONT)
        assert await health(tmp_path) == (0, "")
    assert "no bridge runs" in await trouble(tmp_path)
    assert not (tmp_path / "bridge.db-health").exists()


async def test_what_a_killed_bridge_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    async with installed(tmp_path) as (bridge, _mosquitto, _broker):
        bridge.kill_worker()
        assert await health(tmp_path, "--timeout", "30") == (0, "")
        await bridge.kill()
        assert (tmp_path / "bridge.db-health").exists()
        assert "it has ended, or is being started" in await trouble(tmp_path)
        await bridge.start()
        assert await health(tmp_path, "--timeout", "30") == (0, "")


async def test_a_second_bridge_on_the_store_takes_no_socket_away(tmp_path: Path) -> None:
    async with installed(tmp_path) as (bridge, _mosquitto, _broker):
        second = dict(os.environ) | {"GOIP_UDP__LISTEN": f"127.0.0.1:{free_udp_port()}"}
        other = await asyncio.create_subprocess_exec(
            *bridge.command, cwd=tmp_path, env=second, stderr=asyncio.subprocess.PIPE
        )
        _, said = await other.communicate()
        assert other.returncode == 1
        assert bridge.process is not None
        assert f"process {bridge.process.pid} (goip-bridge run) uses it: stop that one" in said.decode()
        assert await health(tmp_path) == (0, "")


async def test_a_bridge_that_stands_by_is_healthy(tmp_path: Path) -> None:
    async with installed(tmp_path) as (_bridge, _mosquitto, broker):
        second = tmp_path / "second"
        second.mkdir()
        async with running(second, bridge_config(broker, "goip", instance="second")) as standby:
            await standby.logged("is on standby")
            assert await health(second, "--timeout", "30") == (0, "")
        assert await health(tmp_path) == (0, "")


async def test_a_store_that_cannot_be_written_is_not_healthy(tmp_path: Path) -> None:
    """The store on a small disk of its own would be the real thing; the limit on a file's size fails as that does."""
    import resource

    folder = tmp_path / "broker"
    folder.mkdir()
    with Mosquitto(folder) as mosquitto:
        config = bridge_config(as_broker(mosquitto), "goip", http={"listen": "127.0.0.1:0"})
        async with running(tmp_path, config) as bridge:
            assert await health(tmp_path, "--timeout", "30") == (0, "")
            resource.prlimit(bridge.worker_pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            with raw_line(bridge.udp_port) as line:
                line.send(line.event("RECEIVE", "srcnum:+491;msg:" + "x" * 3000))
                await bridge.logged("cannot write")
                assert "the store cannot be written" in await trouble(tmp_path)
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(bridge.worker_pid, resource.RLIMIT_FSIZE, unlimited)
            assert await health(tmp_path, "--timeout", "30") == (0, "")


# -- where the socket is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["s.db", f"{LONG}/s.db", f"{LONG}/{LONG}.db", "s" * 240], ids=len)
def test_the_socket_is_found_from_any_folder_and_under_any_path(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses of Unix sockets end at 107 bytes."""
    deep = tmp_path / LONG / LONG
    deep.mkdir(parents=True)
    (deep / store).parent.mkdir(exist_ok=True)
    monkeypatch.chdir(deep)
    listening = HealthSocket(socket_path(Path(store)), lambda: WELL)
    listening.start()
    try:
        for folder, path in ((deep, store), (tmp_path, deep / store), (deep.parent, f"{LONG}/{store}")):
            (folder / "config.yaml").write_text(f"store: {{path: {json.dumps(str(path))}}}\n")
            result = cli(folder, "health")
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    finally:
        listening.close()
    assert [path.name for path in (deep / store).parent.iterdir() if "health" in path.name] == []
    assert "no bridge runs" in faults(cli(deep, "health", "--timeout", "0"))[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_told_that_he_may_not_ask(tmp_path: Path) -> None:
    listening = HealthSocket(socket_path(tmp_path / "s.db"), lambda: WELL)
    listening.start()
    code = (
        "import os, sys; from pathlib import Path; from bridge.process.health import trouble\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(trouble(Path(sys.argv[1]), 1.0))"
    )
    home = Path(*tmp_path.parts[: tmp_path.parts.index("tmp") + 2]) if "tmp" in tmp_path.parts else tmp_path
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(home):
            folder.chmod(folder.stat().st_mode | 0o011)
    try:
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "s.db")],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    finally:
        listening.close()
    assert "only the user that runs the bridge, and root, may ask" in result.stdout, result.stderr


def test_who_connects_and_says_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    listening = HealthSocket(socket_path(tmp_path / "s.db"), lambda: WELL)
    listening.start()
    (tmp_path / "config.yaml").write_text("store: {path: s.db}\n")
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(str(tmp_path / "s.db-health"))
        assert cli(tmp_path, "health").returncode == 0
    listening.close()


def test_a_look_that_met_a_change_is_no_last_one(tmp_path: Path) -> None:
    looks = iter([RuntimeError("dictionary changed size during iteration"), WELL])

    def checks() -> dict[str, Any]:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    store = tmp_path / "s.db"
    listening = HealthSocket(socket_path(store), checks)
    listening.start()
    try:
        assert trouble_of(store, 1.0) is not None
        assert trouble_of(store, 1.0) is None
    finally:
        listening.close()


def test_a_folder_that_takes_no_socket_stops_no_bridge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listening = HealthSocket(tmp_path / "not there" / "s.db-health", lambda: WELL)
    listening.start()
    listening.close()
    assert len([record for record in caplog.records if "health can't ask" in record.getMessage()]) <= 1


def test_what_is_no_bridge_is_not_healthy(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("store: {path: s.db}\n")
    for answer in (b"", b"hello", b"[]", b'{"a": 1}'):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s.db-health"))
            listener.listen()
            process = subprocess.Popen(
                [sys.executable, "-m", "bridge", "health", "--timeout", "0"],
                cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            connection, _ = listener.accept()
            connection.sendall(answer)
            connection.close()
            _, said = process.communicate(timeout=30)
        (tmp_path / "s.db-health").unlink()
        assert process.returncode == 1
        assert said.count("\n") == 1


def test_a_configuration_that_is_none_is_2(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("linse: {}\n")
    result = cli(tmp_path, "health")
    assert (result.returncode, len(faults(result))) == (2, 1)


def test_it_needs_neither_a_broker_nor_what_speaks_to_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"mqtt: {{url: 'mqtt://127.0.0.1:{free_port()}'}}\nstore: {{path: s.db}}\n")
    listening = HealthSocket(socket_path(tmp_path / "s.db"), lambda: WELL)
    listening.start()
    code = (
        "import sys\nfrom bridge.__main__ import main\ncode = main(['health'])\n"
        "print(code, sorted({'paho', 'aiomqtt', 'aiohttp', 'rich', 'bridge.app.bridge'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30
    )
    listening.close()
    assert result.stdout == "0 []\n", result.stderr


# -- a broker that takes the user name for the client id -------------------------------------------------------------

USERS = {"bridge": "b", "admin": "a"}


@contextlib.contextmanager
def username_broker(folder: Path) -> Any:
    folder.mkdir()
    broker = Mosquitto(folder, passwords=USERS, persistence=True)
    with (folder / "mosquitto.conf").open("a") as file:
        file.write("use_username_as_clientid true\n")  # an option of the listener above it
    with broker as mosquitto:
        yield as_broker(mosquitto, USERS)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_health_costs_no_command_and_no_connection(tmp_path: Path, version: str) -> None:
    """Stop the bridge, publish a command, ask, start: it is carried out. And a bridge that is asked stays connected."""
    with username_broker(tmp_path / "broker") as broker:
        config = bridge_config(broker, "goip", mqtt={"version": version})
        async with running(tmp_path, config) as bridge, watching(broker, "goip/#") as watcher:
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
            await bridge.stop()
            await watcher.publish("goip/bridge/cmd/ping", {"id": "while away"})
            assert "no bridge runs" in await trouble(tmp_path)
            await bridge.start()
            await watcher.until("goip/bridge/result/ping", lambda seen: seen.json["id"] == "while away")
            connected = bridge.log.count("connected to")
            for _ in range(3):
                assert await health(tmp_path, "--timeout", "30") == (0, "")
            await watcher.publish("goip/bridge/cmd/ping", {"id": "after"})
            await watcher.until("goip/bridge/result/ping", lambda seen: seen.json["id"] == "after")
            assert bridge.log.count("connected to") == connected


TOOLS = (
    ("monitor", "--once"),
    ("send", "--line", "goip1", "--to", "+49151", "hi"),
    ("doctor", "--timeout", "1"),
    ("selftest", "--from", "goip1", "--to", "goip2", "--yes"),
)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool[0])
async def test_no_tool_takes_the_commands_that_wait_for_the_bridge(
    tmp_path: Path, tool: tuple[str, ...], version: str
) -> None:
    with username_broker(tmp_path / "broker") as broker:
        config = bridge_config(broker, "goip", mqtt={"version": version})
        async with running(tmp_path, config) as bridge, watching(broker, "goip/#") as watcher:
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
            await bridge.stop()
            for n in range(30):
                await watcher.publish("goip/bridge/cmd/ping", {"id": f"waits {n}"})
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bridge", *tool,
                cwd=tmp_path, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            out, _ = await process.communicate()
            assert process.returncode == 1, out
            assert b"takes the user name for the client id" in out
            await bridge.start()
            await watcher.until("goip/bridge/result/ping", count=30)
            answered = {seen.json["id"] for seen in watcher.on("goip/bridge/result/ping")}
            assert answered == {f"waits {n}" for n in range(30)}


async def test_a_tool_with_a_user_of_its_own_works_there(tmp_path: Path) -> None:
    with username_broker(tmp_path / "broker") as broker:
        async with running(tmp_path, bridge_config(broker, "goip")) as bridge:
            assert await health(tmp_path, "--timeout", "30") == (0, "")
            result = await asyncio.to_thread(
                cli, tmp_path, "monitor", "--once", "--url", f"mqtt://admin:a@{broker.host}:{broker.port}"
            )
            assert (result.returncode, result.stderr) == (0, "")
            assert bridge.log.count("connected to") == 1


# -- every way to a broker, by a tool --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "ws", "mqtts"])
def test_the_command_line_knows_every_way_to_a_broker(tmp_path: Path, kind: str) -> None:
    certificates = make_certificates(tmp_path)
    with Mosquitto(tmp_path, tls=certificates, unix=True, websockets=True) as broker:
        publish.single("goip/bridge/availability", "online", 1, True, hostname=broker.host, port=broker.port)
        mqtt = {
            "unix": {"url": f"unix://{broker.unix_path}"},
            "ws": {"url": f"ws://127.0.0.1:{broker.websockets_port}/mqtt"},
            "mqtts": {
                "url": f"mqtts://127.0.0.1:{broker.tls_port}",
                "server_name": SERVER_NAME,
                "ca_file": str(certificates.ca),
                "cert_file": str(certificates.client_cert),
                "key_file": str(certificates.client_key),
            },
        }[kind]
        (tmp_path / "config.yaml").write_text(json.dumps({"mqtt": mqtt}))
        result = cli(tmp_path, "monitor", "--once")
        assert (result.returncode, result.stderr) == (0, "")
        if kind == "mqtts":
            (tmp_path / "config.yaml").write_text(json.dumps({"mqtt": {"url": mqtt["url"]}}))
            result = cli(tmp_path, "monitor", "--once")
            assert result.returncode == 1
            assert "check mqtt.ca_file and mqtt.server_name" in faults(result)[0]


async def test_the_command_line_falls_back_to_mqtt_3_where_the_broker_knows_no_5(tmp_path: Path) -> None:
    async with amqtt_broker() as port:
        async with aiomqtt.Client("127.0.0.1", port) as client:
            await client.publish(Topics("goip").bridge("availability"), "online", qos=1, retain=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bridge", "monitor", "--once", "--url", f"mqtt://127.0.0.1:{port}",
            cwd=tmp_path, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=environment(),
        )  # fmt: skip
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
