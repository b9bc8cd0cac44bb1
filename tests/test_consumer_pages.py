"""docs/mosquitto-tools.md, docs/openhab.md, docs/iobroker.md and commands of other pages, tried as they are written.

The commands are run, and topics and paths are looked up in what a running bridge really publishes; the users are those
of mosquitto/acl, with the passwords of the pages. docs/node-red.md has tests of its own (tests/node-red/).
"""

import contextlib
import itertools
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import yaml
from paho.mqtt.enums import CallbackAPIVersion

import outputs
from bridge.config.settings import Settings
from bridge.contract.topics import Topics
from bridge.homeassistant.documents import documents
from broker_fixture import REPOSITORY, ROLES, free_port
from brokers import Mosquitto
from harness import LIMIT_S, free_udp_port

pytestmark = pytest.mark.broker("binary")
TOOLS, OPENHAB, IOBROKER = (
    (REPOSITORY / f"docs/{name}.md").read_text() for name in ("mosquitto-tools", "openhab", "iobroker")
)
needs_clients = pytest.mark.skipif(
    not all(map(shutil.which, ("mosquitto_rr", "jq", "bash", "timeout"))),
    reason="mosquitto_rr or jq is not installed: apt install mosquitto-clients jq",
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


class World:
    """Broker, bridge and two simulated lines that get SMS and calls all the time; goip3 is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passwords = {role: f"change-me-{role}" for role in ROLES}
        acl = (REPOSITORY / "mosquitto/acl").read_text()
        self.broker = Mosquitto(folder, passwords=self.passwords, acl=acl)
        self.http_port = free_port()
        self.latest: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._news = threading.Condition()

    def __enter__(self) -> "World":
        self.broker.start()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.username_pw_set("admin", self.passwords["admin"])
        self.client.on_message = self._received
        self.client.on_connect = lambda client, *_: client.subscribe("goip/#", qos=1)
        self.client.connect(self.broker.host, self.broker.port)
        self.client.loop_start()
        try:
            port = free_udp_port()
            config = {
                "mqtt": {"url": f"mqtt://127.0.0.1:{self.broker.port}", "username": "bridge"},
                "udp": {"listen": f"127.0.0.1:{port}"},
                "lines": {f"goip{number}": {"password": f"password{number}"} for number in (1, 2, 3)},
                "contacts": {"anna": "+4915112345679"},
                "http": {"listen": f"127.0.0.1:{self.http_port}", "send": True},
            }
            config["mqtt"]["password"] = self.passwords["bridge"]
            (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
            self._start("run")
            self.until("goip/bridge/availability", "online")
            radio = ("--wait", "0.2", "--time-scale", "5", "--radio-log", "radio.jsonl")
            busy = ("--sms-every", "1", "--call-every", "2", "--keepalive", "1")
            self._start("sim", "--server", f"127.0.0.1:{port}", "--port-base", "0", "--lines", "2", *radio, *busy)
            for line in ("goip1", "goip2"):
                self.until(f"goip/{line}/availability", "online")
            for topic in ("goip/goip1/state", "goip/goip1/stats", "goip/goip1/sms/in"):
                self.until(topic)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(LIMIT_S)
        self.client.disconnect()
        self.client.loop_stop()
        self.broker.kill()

    def _start(self, *arguments: str) -> None:
        path = self.folder / f"{arguments[0]}.log"
        with path.open("wb") as log:
            command = [sys.executable, "-m", "bridge", *arguments]
            process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        outputs.show(" ".join(arguments), lambda: process.returncode is None, path.read_text)
        self._processes.append(process)

    def _received(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        with self._news:
            self.latest[message.topic] = message.payload.decode()
            self._news.notify_all()

    def until(self, topic: str, payload: str | None = None) -> str:
        """What was published there last, once there is something, or this."""
        with self._news:
            came = self._news.wait_for(
                lambda: topic in self.latest and payload in (None, self.latest[topic]), timeout=LIMIT_S
            )
            assert came, f"nothing on {topic}"
            return self.latest[topic]

    def fact(self, topic: str, key: str, value: str) -> dict[str, Any]:
        """The next JSON on a topic where a key has this value."""
        deadline = time.monotonic() + LIMIT_S
        with self._news:
            while (found := json.loads(self.latest.get(topic, "{}"))).get(key) != value:
                assert self._news.wait(deadline - time.monotonic()), f"no {key}={value} on {topic}"
        assert isinstance(found, dict)
        return found

    def sent(self, text: str) -> list[str]:
        """The lines that really sent this text."""
        records = [json.loads(line) for line in (self.folder / "radio.jsonl").read_text().splitlines()]
        return [one["line"] for one in records if one["what"] == "submit" and one["text"] == text]

    # -- commands of a page

    def environment(self, role: str) -> dict[str, str]:
        """The option files of docs/mosquitto-tools.md for a user, with the port of this broker."""
        options = blocks(TOOLS, "text")[0]
        assert "-u sender" in options
        home = self.folder / role
        if not home.exists():  # written once: others may be reading
            (home / ".config").mkdir(parents=True)
            text = options.replace("sender", role).replace("localhost", self.broker.host) + f"-p {self.broker.port}\n"
            for tool in ("mosquitto_sub", "mosquitto_pub", "mosquitto_rr"):
                (home / ".config" / tool).write_text(text)
        environment = {name: value for name, value in os.environ.items() if name != "XDG_CONFIG_HOME"}
        return environment | {"HOME": str(home)}

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """SMS that go out, and events of the bridge, again and again."""
        stop = threading.Event()

        def stir() -> None:
            while not stop.wait(0.3):
                self.client.publish("goip/goip2/cmd/sms", '{"to": "+4915112345678", "text": "busy"}', qos=1)
                self.client.publish("goip/goip2/cmd/refresh", "{}", qos=1, retain=True)  # refused, and told

        thread = threading.Thread(target=stir)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as running:
        yield running


# -- docs/mosquitto-tools.md ----------------------------------------------------------------------------------------

COMMANDS = [line for block in blocks(TOOLS, "sh") for line in block.splitlines() if line.strip()]
WATCHING = [line for line in COMMANDS if "mosquitto_sub" in line and not re.search(r" -W \d| -C \d", line)]
ASKING = [line for line in COMMANDS if line not in WATCHING]


def role_of(command: str) -> str:
    return "admin" if "'goip/#'" in command or "reply/admin" in command else "sender"


def test_the_page_has_its_commands() -> None:
    assert len(WATCHING) >= 7
    assert len(ASKING) >= 13
    assert all(shlex.split(line, comments=True) for line in COMMANDS)


@needs_clients
def test_everything_that_watches_shows_something(world: World) -> None:
    """All of them at the same time; each until its first line."""
    with world.busy():
        running = [
            subprocess.Popen(
                ["bash", "-c", command], env=world.environment(role_of(command)), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, start_new_session=True,
            )
            for command in WATCHING
        ]  # fmt: skip
        try:
            for command, process in zip(WATCHING, running, strict=True):
                assert process.stdout is not None
                ready, _, _ = select.select([process.stdout], [], [], LIMIT_S)
                line = process.stdout.readline().decode() if ready else ""
                fault = process.stderr.read() if process.stderr and process.poll() is not None else ""
                assert line.strip(), f"nothing shown by: {command} {fault!r}"
                assert "null" not in line or "{" in line, (command, line)
        finally:
            for process in running:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@needs_clients
@pytest.mark.parametrize("command", ASKING, ids=range(len(ASKING)))
def test_a_command_of_the_page_works(world: World, command: str) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=world.environment(role_of(command)), capture_output=True,
        text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode in ((0, 27) if "--retained-only" in command else (0,)), done.stderr
    if "mosquitto_pub" not in command:
        assert done.stdout.strip() not in ("", "null"), command
        assert '"status":"error"' not in done.stdout
    if "jq .duplicate" in command:
        assert done.stdout.strip() == "true"


@needs_clients
def test_what_the_page_sends_is_sent_once(world: World) -> None:
    """After the commands above: the repeated one once, the dry run not at all."""
    deadline = time.monotonic() + LIMIT_S
    while not world.sent("Hello again"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert world.sent("Hello") == ["goip1"]
    assert world.sent("Hello, both") == []


def alarm(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    (script,) = blocks(TOOLS, "bash")
    return subprocess.run(
        ["bash", "-c", script.replace("ttl_s: 600", "ttl_s: 2"), "goip-alarm", *arguments],
        env=world.environment("sender"), capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip


@needs_clients
def test_the_alarm_script_sends_once_and_says_what_became_of_it(world: World) -> None:
    done = alarm(world, "goip1", "+4915112345678", 'Water in the "cellar"')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert world.sent('Water in the "cellar"') == ["goip1"]


@needs_clients
@pytest.mark.parametrize(
    ("line", "number", "status", "told"),
    [
        ("goip1", "nobody", 1, "refused: invalid_payload to:"),
        ("goip3", "+4915112345678", 1, "expired"),  # offline until its ttl_s is over
        ("goip1", "1", 2, "ambiguous"),  # the simulated network refuses it, with a cause that leaves a doubt
    ],
)
def test_the_alarm_script_says_what_went_wrong(world: World, line: str, number: str, status: int, told: str) -> None:
    done = alarm(world, line, number, "does not work")
    assert (done.returncode, done.stderr[: len(told)]) == (status, told)


# -- commands of other pages: README.md, docs/homeassistant.md, docs/grafana.md --------------------------------------

PROGRAMS = (
    "mosquitto_pub ",
    "mosquitto_rr ",
    "mosquitto_sub ",
    "curl ",
    "goip-bridge send ",
    "goip-bridge config check",
)
OTHERS = [
    line
    for name in ("README.md", "docs/homeassistant.md", "docs/grafana.md")
    for block in blocks((REPOSITORY / name).read_text(), "sh")
    for line in block.splitlines()
    if line.startswith(PROGRAMS)
]


def test_other_pages_have_their_commands() -> None:
    assert {program for program in PROGRAMS for line in OTHERS if line.startswith(program)} == set(PROGRAMS)


@needs_clients
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", OTHERS, ids=range(len(OTHERS)))
def test_a_command_of_another_page_works(world: World, command: str) -> None:
    """As it is written, but for passwords, ports, the user's own response topic and where the program is."""
    line = command.replace("goip-bridge ", f"{sys.executable} -m bridge ", 1) if command.startswith("goip") else command
    line = line.replace("-P secret", f"-P {world.passwords['homeassistant']}").replace("reply/me", "reply/admin/me")
    line = line.replace("127.0.0.1:8080", f"127.0.0.1:{world.http_port}").replace("curl ", "curl -sS --fail ", 1)
    line += " -C 1" if line.startswith("mosquitto_sub") else " -W 40" if line.startswith("mosquitto_rr") else ""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=world.folder, env=world.environment("admin"), capture_output=True,
        text=True, timeout=2 * LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    if not line.startswith("mosquitto_pub"):
        assert done.stdout.strip()
    if line.startswith("mosquitto_rr") or "/send" in line:
        assert json.loads(done.stdout)["status"] == "ok", done.stdout


# -- docs/openhab.md ------------------------------------------------------------------------------------------------


def at(payload: str, path: str) -> Any:
    """`$.a.b` of a payload; the pages have no other paths."""
    found = json.loads(payload)
    for key in re.fullmatch(r"\$((?:\.\w+)+)", path)[1].lstrip(".").split("."):  # type: ignore[index]
        assert key in found, f"{path} is not in {payload}"
        found = found[key]
    return found


def things() -> dict[str, dict[str, str]]:
    """The options of every channel, by its UID; those of the thing itself under its own."""
    found = {}
    thing = ""
    for line in blocks(OPENHAB, "java")[0].splitlines():
        options = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if match := re.match(r"(?:Thing|Bridge) (\S+)", line):
            thing = match[1]
            found[thing] = options
        elif match := re.match(r" +Type (\w+) +: (\w+)", line):
            found[f"{thing}:{match[2]}"] = options | {"type": match[1]}
    return found


def send_an_sms(world: World, id: str) -> None:
    world.client.publish("goip/goip1/cmd/sms", json.dumps({"id": id, "to": "+4915112345678", "text": id}), qos=1)
    world.fact("goip/goip1/delivery", "cmd", id)


def test_every_channel_of_openhab_finds_its_value(world: World) -> None:
    send_an_sms(world, "for openhab")
    kinds: dict[str, type | tuple[type, ...]] = {"number": (int, float), "string": str, "switch": bool}
    checked = 0
    for uid, options in things().items():
        if topic := options.get("availabilityTopic"):
            assert world.until(topic) == options["payloadAvailable"]
            assert options["payloadNotAvailable"] == "offline"
        if topic := options.get("stateTopic"):
            payload = world.until(topic)
            pattern = options.get("transformationPattern")
            value = at(payload, pattern.removeprefix("JSONPATH:")) if pattern else payload
            assert isinstance(value, kinds[options["type"]]), (uid, value)
            checked += 1
    assert checked >= 12


def test_every_item_of_openhab_has_a_channel() -> None:
    linked = re.findall(r'channel="([^"]+)"', blocks(OPENHAB, "java")[1])
    assert sorted(linked) == sorted(uid for uid, options in things().items() if "type" in options)


def test_the_rules_of_openhab_read_what_is_there_and_send_what_is_taken(world: World) -> None:
    send_an_sms(world, "for the rules")
    rules, action = blocks(OPENHAB, "java")[2:]
    items = dict(re.findall(r'^\w+ (\w+) .*channel="([^"]+)"', blocks(OPENHAB, "java")[1], re.MULTILINE))
    read = 0
    for rule in rules.split("\nrule ")[1:]:
        item = re.search(r"Item (\w+) received update", rule)
        for path in re.findall(r'transform\("JSONPATH", "([^"]+)"', rule):
            assert item is not None
            at(world.until(things()[items[item[1]]]["stateTopic"]), path)
            read += 1
    assert read >= 7

    (command,) = re.findall(r"GoIP1_Send.sendCommand\((.*)\)", rules)
    payload = command.replace("' + id + '", "openhab-1").strip("'")
    world.client.publish(things()[items["GoIP1_Send"]]["commandTopic"], payload, qos=1)
    assert world.fact("goip/goip1/result/sms", "id", "openhab-1")["status"] == "ok"

    (topic, text) = re.findall(r'publishMQTT\("([^"]+)", "([^"]+)"', action)[0]
    world.client.publish(topic, text, qos=1)
    assert world.fact("goip/goip1/delivery", "to", "+4915112345678")


# -- docs/iobroker.md -----------------------------------------------------------------------------------------------


def test_every_state_of_iobroker_is_there(world: World) -> None:
    (subscribed,) = re.findall(r"^\| Subscriptions \| `([^`]+)`", IOBROKER, re.MULTILINE)
    (split,) = re.findall(r"^\| Split JSON into states for topics \| `([^`]+)`", IOBROKER, re.MULTILINE)
    assert set(split.split(",")) < set(subscribed.split(","))
    states = re.findall(r"^\| `mqtt-client\.0\.([\w.]+)`", IOBROKER, re.MULTILINE)
    assert len(states) >= 7
    for state in states:
        levels = state.split(".")
        (topic, rest) = next(
            ("/".join(levels[:n]), levels[n:])
            for n in range(2, len(levels) + 1)
            if any(mqtt.topic_matches_sub(wanted, "/".join(levels[:n])) for wanted in subscribed.split(","))
        )
        payload = world.until(topic)
        if rest:
            assert any(mqtt.topic_matches_sub(wanted, topic) for wanted in split.split(","))
            assert at(payload, ".".join(["$", *rest])) is not None, state


def test_the_script_of_iobroker_names_topics_that_are_there(world: World) -> None:
    send_an_sms(world, "for iobroker")
    (script,) = blocks(IOBROKER, "js")
    topics = re.findall(r"mqttState\('\w+', `\$\{BASE\}/\$\{LINE\}/([\w/]+)`, '(in|out)'\)", script)
    assert len(topics) == 4
    for topic, direction in topics:
        if direction == "in":
            payload = json.loads(world.until(f"goip/goip1/{topic}"))
            name = {"sms/in": "sms", "result/sms": "result", "delivery": "fact"}[topic]
            assert set(re.findall(rf"\b{name}\.(\w+)", script)) <= set(payload)
        else:
            assert topic == "cmd/sms"


# -- subscriptions of one client ------------------------------------------------------------------------------------
# A broker may send a message once for each subscription of a client that matches it.


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both filters."""
    levels = list(itertools.zip_longest(one.split("/"), other.split("/")))
    for first, second in levels:
        if "#" in (first, second):
            return True
        if first != second and ("+" not in (first, second) or None in (first, second)):
            return False
    return True


def home_assistant() -> set[str]:
    """What its entities, and the automations of its page and examples, are subscribed to."""
    settings = Settings.model_validate({"lines": {f"goip{n}": {"password": "p", "gateway": "g"} for n in (1, 2)}})
    found = set()
    for document in documents("home", settings, Topics("goip")).values():
        device = json.loads(document)
        for part in [*device["components"].values(), *device.get("availability", [])]:
            found |= {part[key] for key in ("state_topic", "json_attributes_topic", "topic") if key in part}
    examples = [*(REPOSITORY / "examples/homeassistant").rglob("*.yaml"), REPOSITORY / "docs/homeassistant.md"]
    for text in (path.read_text() for path in examples):
        for topic in re.findall(r"- trigger: mqtt\n(?: +#.*\n| +id:.*\n)* +topic: (.*)", text):
            found.add(re.sub(r"""["'{}~ ]""", "", topic.replace(" ~ line ~ ", "goip1")))
    return found


def node_red() -> set[str]:
    """All flows together: they share one broker node, and so one client."""
    found = set()
    for path in (REPOSITORY / "examples/node-red").glob("*.json"):
        nodes = json.loads(path.read_text())
        values = {one["name"]: one["value"] for node in nodes for one in node.get("env", []) if "/" in one["value"]}
        for node in nodes:
            if node["type"] == "mqtt in":
                topic = values[node["topic"].strip("${}")]
                found.add(topic.replace("${BASE}", "goip").replace("${LINE}", "goip1"))
    return {topic.replace("job/+", "job/6a1b25a0c3f1-11") for topic in found}  # no job is called `delivery`


def iobroker() -> set[str]:
    (subscribed,) = re.findall(r"^\| Subscriptions \| `([^`]+)`", IOBROKER, re.MULTILINE)
    topics = re.findall(r"mqttState\('\w+', `\$\{BASE\}/\$\{LINE\}/([\w/]+)`, 'in'\)", IOBROKER)
    return {*subscribed.split(","), *(f"goip/goip1/{topic}" for topic in topics)}


def openhab() -> set[str]:
    return {
        options[key] for options in things().values() for key in ("stateTopic", "availabilityTopic") if key in options
    }


CLIENTS = {client.__name__: client for client in (home_assistant, node_red, iobroker, openhab)}
CLIENTS |= {
    f"mosquitto_sub {n}": (lambda command=command: set(re.findall(r"-t '?(goip[^' ]*)", command)))
    for n, command in enumerate(line for line in COMMANDS if "mosquitto_sub" in line)
}


@pytest.mark.parametrize("client", CLIENTS)
def test_no_example_makes_a_client_hear_everything_twice(client: str) -> None:
    filters = sorted(CLIENTS[client]())
    assert len(filters) >= (1 if "mosquitto" in client else 3)
    pairs = [(one, other) for one, other in itertools.combinations(filters, 2) if overlap(one, other)]
    assert not pairs


def test_overlapping_filters_are_found() -> None:
    assert overlap("goip/+/sms/in", "goip/goip1/sms/in")
    assert overlap("goip/#", "goip/goip1/sms/in")
    assert overlap("goip/goip1/#", "goip/+/state")
    assert not overlap("goip/+/sms/in", "goip/goip1/homeassistant/sms/in")
    assert not overlap("goip/+/state", "goip/goip1/stats")
    assert not overlap("goip/+", "goip/goip1/state")
