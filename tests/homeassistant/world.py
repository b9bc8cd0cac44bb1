"""What Home Assistant is tested against, all of it real: mosquitto with the repository's access rules, the bridge as
its users run it, the simulated gateway, and an MQTT client that watches.

Home Assistant needs another Python than the bridge, so the bridge and the simulator are processes of the project's own
environment. Everything here is for synchronous fixtures; the tests wait with `until`, which lets Home Assistant run.
"""

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import paho.mqtt.client as paho
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tests"))

import outputs  # noqa: E402
from brokers import Mosquitto  # noqa: E402

PYTHON = os.environ.get("GOIP_TEST_PYTHON", str(REPOSITORY / ".venv/bin/python"))
"The interpreter of the environment in which the bridge is installed."
LIMIT_S = float(os.environ.get("GOIP_TEST_LIMIT_S", "40"))
"How long anything may take before a test gives up on it."
LINES = 8
T = TypeVar("T")
PASSWORDS = {role: f"{role}-secret" for role in ("bridge", "admin", "homeassistant")}


async def until(check: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """What `check` gives once it is true; meanwhile Home Assistant runs."""
    deadline = time.monotonic() + limit_s
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {limit_s:.0f} s still not: {what}")
        await asyncio.sleep(0.02)
    return found


def until_now(check: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """The same where no event loop runs."""
    deadline = time.monotonic() + limit_s
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {limit_s:.0f} s still not: {what}")
        time.sleep(0.02)
    return found


class Watcher:
    """An MQTT client with all rights that remembers every message, retained ones by topic as well."""

    def __init__(self, port: int) -> None:
        self.retained: dict[str, bytes] = {}
        "What a newcomer would be given now, as far as it was seen."
        self.seen: list[tuple[str, bytes]] = []
        "Every message, oldest first."
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.username_pw_set("admin", PASSWORDS["admin"])
        self._client.on_connect = self._connected
        self._client.on_message = self._received
        self._client.reconnect_delay_set(1, 1)
        self._subscribed = threading.Event()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def _connected(self, *_: object) -> None:
        options = paho.SubscribeOptions(qos=1, retainAsPublished=True)
        self._client.subscribe([("#", options)])
        self._subscribed.set()

    def _received(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        if message.retain and message.payload:
            self.retained[message.topic] = message.payload
        elif message.retain:
            self.retained.pop(message.topic, None)
        self.seen.append((message.topic, message.payload))

    def look_away(self) -> None:
        """From what is for Home Assistant alone: with somebody subscribed to everything nothing is ever unheard."""
        filters = ("homeassistant/#", "goip/+/sms/#", "goip/+/availability", "goip/bridge/info")
        self._client.subscribe([(each, paho.SubscribeOptions(qos=1, retainAsPublished=True)) for each in filters])
        self._client.unsubscribe("#")
        self.publish("goip/looked/away")  # answered behind both

    def on(self, topic: str) -> list[bytes]:
        """The payloads seen on a topic."""
        return [payload for seen, payload in list(self.seen) if seen == topic]

    def json(self, topic: str) -> dict[str, Any]:
        """A retained payload."""
        loaded = json.loads(self.retained[topic])
        assert isinstance(loaded, dict)
        return loaded

    def configs(self) -> dict[str, dict[str, Any]]:
        """The discovery topics of devices, by their middle part."""
        return {
            topic.split("/")[2]: json.loads(payload)
            for topic, payload in list(self.retained.items())
            if topic.startswith("homeassistant/device/") and topic.endswith("/config")
        }

    def publish(self, topic: str, payload: object = b"", *, retain: bool = False) -> None:
        """With QoS 1, and returns when the broker has it; anything but bytes and text as JSON."""
        body = payload if isinstance(payload, bytes | str) else json.dumps(payload)
        self._client.publish(topic, body, qos=1, retain=retain).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class World:
    """One broker, one bridge, one gateway with eight lines `goip1` … `goip8`."""

    def __init__(self, directory: Path, *, persistence: bool = False, **config: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        acl = (REPOSITORY / "mosquitto/acl").read_text() + "\nuser admin\ntopic readwrite #\n"
        self.broker = Mosquitto(directory, passwords=PASSWORDS, acl=acl, persistence=persistence)
        self.config: dict[str, Any] = {
            "instance": "home",
            "mqtt": {
                "url": f"mqtt://127.0.0.1:{self.broker.port}",
                "username": "bridge",
                "password": PASSWORDS["bridge"],
            },
            "udp": {"listen": f"127.0.0.1:{_free_udp_port()}"},
            "store": {"path": "bridge.db"},
            "lines": {f"goip{number}": {"password": f"password{number}"} for number in range(1, LINES + 1)},
            "timing": {"offline_s": 6, "resend_s": 0.5, "ussd_s": 3},
        } | config
        self._bridge: subprocess.Popen[bytes] | None = None
        self._simulator: subprocess.Popen[bytes] | None = None
        self._terminal = -1
        self._watcher: Watcher | None = None

    @property
    def mqtt(self) -> Watcher:
        assert self._watcher is not None
        return self._watcher

    @property
    def log(self) -> str:
        """What the bridge wrote, of all its runs."""
        return (self.directory / "bridge.log").read_text()

    def __enter__(self) -> Self:
        try:
            self.broker.start()
            self._watcher = Watcher(self.broker.port)
            self.start_simulator()
            self.start_bridge()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_bridge()
        self.stop_simulator()
        if self._watcher is not None:
            self._watcher.close()
        self.broker.kill()

    # --- the bridge ---

    def start_bridge(self) -> None:
        """Returns when every line of the simulator is online."""
        self.write_config()
        with (self.directory / "bridge.log").open("ab") as log:
            self._bridge = subprocess.Popen(
                [PYTHON, "-m", "bridge", "run", "--config", "config.yaml"],
                cwd=self.directory, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
        running = self._bridge
        outputs.show("bridge", lambda: running.returncode is None, lambda: self.log)

        def ready() -> bool:
            assert running.poll() is None, self.log[-4000:]
            states = [self.mqtt.retained.get(f"goip/{line}/availability") for line in self.simulated_lines()]
            return self.mqtt.retained.get("goip/bridge/availability") == b"online" and set(states) == {b"online"}

        until_now(ready, "the bridge and all its lines are online")

    def simulated_lines(self) -> list[str]:
        """The configured lines that the simulator has too."""
        ids = {f"goip{number}" for number in range(1, LINES + 1)}
        return [line for line, settings in self.config["lines"].items() if settings.get("goip_id", line) in ids]

    def write_config(self) -> None:
        (self.directory / "config.yaml").write_text(yaml.safe_dump(self.config, allow_unicode=True))

    def reload(self) -> None:
        """Write the configuration and send SIGHUP."""
        assert self._bridge is not None
        self.write_config()
        self._bridge.send_signal(signal.SIGHUP)

    def stop_bridge(self) -> None:
        if self._bridge is not None:
            self._bridge.terminate()
            try:
                self._bridge.wait(15)
            except subprocess.TimeoutExpired:
                self._bridge.kill()
                self._bridge.wait()
            self._bridge = None

    # --- the gateway ---

    def start_simulator(self) -> None:
        self._terminal, theirs = pty.openpty()  # it takes commands from a terminal only
        path = self.directory / "simulator.log"
        with path.open("ab") as log:
            self._simulator = simulator = subprocess.Popen(
                [
                    PYTHON, "-m", "bridge", "sim", "--server", self.config["udp"]["listen"], "--port-base", "0",
                    "--lines", str(LINES),
                    "--keepalive", "1", "--time-scale", "10", "--wait", "0.2-0.5", "--seed", "7",
                    "--radio-log", "radio.jsonl",
                ],
                cwd=self.directory, stdin=theirs, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
        outputs.show("simulator", lambda: simulator.returncode is None, path.read_text)
        os.close(theirs)

    def stop_simulator(self) -> None:
        if self._simulator is not None:
            self._simulator.kill()
            self._simulator.wait()
            self._simulator = None
            os.close(self._terminal)

    def gateway(self, command: str) -> None:
        """A command of the simulator's terminal, such as `sms goip1 +4915112345678 "the text"`."""
        os.write(self._terminal, command.encode() + b"\n")

    def sms(self, line: str, sender: str, text: str) -> None:
        """Somebody sends an SMS to a line."""
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        self.gateway(f'sms {line} {sender} "{quoted}"')

    def radio(self, what: str | None = None) -> list[dict[str, Any]]:
        """What the modems really did."""
        path = self.directory / "radio.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if what in (None, record["what"])]

    def submitted(self) -> list[tuple[str, str, str]]:
        """Line, number and text of every SMS that went to the mobile network."""
        return [(record["line"], record["to"], record["text"]) for record in self.radio("submit")]


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(directory: Path, **config: Any) -> Iterator[World]:
    """A world; its bridge's log is shown when the test fails."""
    with World(directory, **config) as world:
        try:
            yield world
        except BaseException:
            print(world.log[-4000:])
            raise
