"""`goip-bridge send` against a real bridge, broker and simulator; and what an `Order` makes of the facts it hears.

`Installation` is all of them together, for the tests of the other commands too.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from paho.mqtt import client as mqtt
from paho.mqtt import publish
from paho.mqtt.enums import CallbackAPIVersion

import outputs
from bridge.cli.client import Presence, connect
from bridge.cli.send import Order
from bridge.config.settings import Settings
from broker_fixture import Broker, StartBroker, embedded
from brokers import Mosquitto, free_port
from harness import watching

LIMIT_S = 30


def cli(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """One command, in a folder with its config.yaml."""
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, env=environment(), **options,
    )  # fmt: skip


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GOIP_")} | {"COLUMNS": "80"}


def mqtt_settings(broker: Broker) -> dict[str, str]:
    """`mqtt` of the configuration; the embedded broker leaves a client that asks for MQTT 5 without an answer."""
    return {"url": broker.url} | ({"version": "3.1.1"} if broker.kind == "embedded" else {})


class Installation:
    """The bridge and a simulated box, with `config.yaml` in `folder`; `goip3` is not in the box."""

    def __init__(self, folder: Path, broker: Broker, *, lines: int = 3, simulated: int = 2) -> None:
        self.folder = folder
        self.broker = broker
        self.udp_port = free_udp_port()
        self.simulated = simulated
        passwords = {f"goip{number}": {"password": f"password{number}"} for number in range(1, lines + 1)}
        self.write_config(
            mqtt=mqtt_settings(broker),
            udp={"listen": f"127.0.0.1:{self.udp_port}"},
            lines=passwords,
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def write_config(self, **config: Any) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        try:
            self._start("run")
            assert cli(self.folder, "health", "--timeout", "15").returncode == 0
            server = f"127.0.0.1:{self.udp_port}"
            simulated = ("--lines", str(self.simulated), "--wait", "0.1", "--time-scale", "20")
            self._start(
                "sim", "--server", server, "--port-base", "0", *simulated
            )  # only now: a lost keepalive is repeated after 30 s
            for number in range(1, self.simulated + 1):
                self.await_message(f"goip/goip{number}/availability", lambda word: word == b"online")
                self.await_message(f"goip/goip{number}/state")
            self.await_message("goip/bridge/lines", self._has_all_online)  # a second behind
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(LIMIT_S)

    def cli(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return cli(self.folder, *arguments, **options)

    def _has_all_online(self, payload: bytes) -> bool:
        return sum(line["online"] for line in json.loads(payload)["lines"]) == self.simulated

    def await_message(self, topic: str, is_it: Callable[[bytes], bool] = lambda _: True) -> None:
        """Until the topic has a message, or such a one."""
        came = threading.Event()

        def take(_client: object, _userdata: object, message: mqtt.MQTTMessage) -> None:
            if message.topic == topic and is_it(message.payload):  # amqtt sends other topics as well
                came.set()

        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.on_message = take
        client.on_connect = lambda client, *_: client.subscribe(topic)
        client.connect(self.broker.host, self.broker.port)
        client.loop_start()
        try:
            assert came.wait(LIMIT_S), f"not what was waited for on {topic} in {LIMIT_S} s"
        finally:
            client.disconnect()
            client.loop_stop()

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "bridge", *arguments]
        path = self.folder / f"{arguments[0]}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )
        outputs.show(" ".join(arguments), lambda: process.returncode is None, path.read_text)
        self._processes.append(process)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, start_broker: StartBroker) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    with start_broker(folder) as broker, Installation(folder, broker) as running:
        yield running


def faults(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on stderr, each of which has to be a readable message."""
    lines = result.stderr.splitlines()
    assert all(line.startswith("goip-bridge: ") for line in lines), result.stderr
    return [line.removeprefix("goip-bridge: ") for line in lines]


# -- with everything in place


def test_one_sms_is_followed_to_its_report(installation):
    result = installation.cli("send", "--line", "goip1", "--to", "+4915112345678", "Grüße")
    assert (result.returncode, result.stderr) == (0, "")
    steps = re.findall(r"s  \+4915112345678  (\w+)", result.stdout)
    assert steps == ["queued", "handed", "sent", "delivered"]
    assert "1 SMS: 1 delivered" in result.stdout


def test_several_recipients_are_counted(installation):
    result = installation.cli("send", "--line", "goip2", "--to", "+491511, +491512,+491513", "many")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("3 SMS: 3 delivered")


def test_more_recipients_than_a_result_lists(installation):
    numbers = ",".join(f"+49151{number:07d}" for number in range(105))
    result = installation.cli("send", "--line", "goip2", "--to", numbers, "--reports", "0", "many")
    assert result.returncode == 0
    assert result.stdout.startswith("105 SMS: ")


def test_a_failure_is_named_and_is_exit_code_1(installation):
    result = installation.cli("send", "--line", "goip1", "--to", "+491511,1", "too short a number")
    assert result.returncode == 1
    assert len(faults(result)) == 1
    assert faults(result)[0] == "1: failed: 38, network out of order; it may have gone out all the same"
    assert "1 delivered" in result.stdout
    assert "1 failed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--line", "goip1", "--to", "+49151,abc", "hi"], "refused: to[1]: "),
        (["--line", "nobody", "--to", "+49151", "hi"], "refused: there is no line nobody"),
        (["--line", "goip1", "--to", "+49151", "x" * 3001], "refused: text: "),
        (["--line", "goip1", "--to", "+49151", ""], "the text is empty"),
    ],
)
def test_a_refused_command_is_exit_code_2(installation, arguments, fault):
    result = installation.cli("send", *arguments)
    assert result.returncode == 2
    assert faults(result)[0].startswith(fault)
    assert len(faults(result)) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--line", "a/b", "--to", "1", "x"], ["--line", "pool/a", "--to", "1", "x"],
        ["--line", "a", "--to", "1,,2", "x"], ["--line", "a", "--to", "1;2", "x"], [],
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(tmp_path, arguments):
    result = cli(tmp_path, "send", *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_dry_run_sends_nothing(installation):
    result = installation.cli("send", "--line", "goip1", "--to", "+49151", "--dry-run", "x" * 200)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "A dry run: nothing was queued. 2 parts each, gsm7.\n"


def test_no_wait_ends_when_the_bridge_has_it_and_text_comes_from_stdin(installation):
    result = installation.cli("send", "--line", "goip1", "--to", "+49151", "--no-wait", "-", input="von stdin\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "Queued 1 SMS. 1 part each, gsm7.\n"


def test_an_offline_line_is_told_and_not_waited_for_forever(installation):
    result = installation.cli("send", "--line", "goip3", "--to", "+49151", "--timeout", "0.5", "hi")
    assert result.returncode == 1
    warning, fault = faults(result)
    assert warning == "warning: line goip3 is offline: the SMS waits until it is back"
    assert fault == "+49151: queued in the bridge; it stays in the bridge's queue"


def test_another_base_topic_has_no_bridge(installation):
    environ = environment() | {"GOIP_BASE_TOPIC": "other", "GOIP_MQTT__URL": installation.broker.url}
    result = subprocess.run(
        [sys.executable, "-m", "bridge", "send", "--line", "goip1", "--to", "1", "x"],
        cwd=installation.folder.parent, capture_output=True, text=True, timeout=LIMIT_S, env=environ,
    )  # fmt: skip
    assert result.returncode == 1
    assert re.fullmatch(r"no bridge is known at .*: other/bridge/availability says nothing; .*", faults(result)[0])


# -- with something missing


def test_an_unreachable_broker_is_one_line(tmp_path):
    url = f"mqtt://127.0.0.1:{free_port()}"
    result = cli(tmp_path, "send", "--url", url, "--line", "goip1", "--to", "1", "x")
    assert result.returncode == 1
    assert re.fullmatch(rf"{url}: cannot connect: .*; is the broker running, and mqtt.url right\?", faults(result)[0])
    assert len(faults(result)) == 1


@pytest.mark.broker("binary")
def test_a_bridge_that_is_away_gets_no_command(tmp_path):
    with Mosquitto(tmp_path) as broker:
        publish.single("goip/bridge/availability", "offline", 1, True, hostname=broker.host, port=broker.port)
        url = f"mqtt://127.0.0.1:{broker.port}"
        result = cli(tmp_path, "send", "--url", url, "--line", "goip1", "--to", "1", "x")
        assert result.returncode == 1
        said = "the bridge takes no commands: goip/bridge/availability says offline; nothing was sent. "
        assert faults(result) == [said + "Is it running? goip-bridge doctor finds out"]
        publish.single("goip/bridge/availability", "online", 1, True, hostname=broker.host, port=broker.port)
        result = cli(tmp_path, "send", "--url", url, "--line", "goip1", "--to", "1", "x")
        assert result.returncode == 1
        assert faults(result)[0].startswith("nobody listens to goip/goip1/cmd/sms")


ACL = "user admin\ntopic readwrite #\nuser reader\ntopic read goip/#\n"
PASSWORDS = {"admin": "a", "reader": "secret-of-reader"}


@pytest.mark.broker("binary")
def test_a_user_who_may_not_send_is_told_so(tmp_path):
    with Mosquitto(tmp_path, passwords=PASSWORDS, acl=ACL) as broker:
        login = {"username": "admin", "password": "a"}
        publish.single(
            "goip/bridge/availability", "online", 1, True, port=broker.port, hostname=broker.host, auth=login
        )
        url = f"mqtt://reader:secret-of-reader@127.0.0.1:{broker.port}"
        result = cli(tmp_path, "send", "--url", url, "--line", "goip1", "--to", "1", "x")
        assert result.returncode == 1
        assert faults(result) == [
            "the broker does not let us publish to goip/goip1/cmd/sms (reason code 135): check its ACL"
        ]
        wrong = cli(tmp_path, "send", "--url", url.replace("secret-of", "not"), "--line", "goip1", "--to", "1", "x")
        assert wrong.returncode == 1
        assert "check mqtt.username and mqtt.password" in faults(wrong)[0]
        assert "not-reader" not in wrong.stderr


def test_a_url_that_is_none_is_a_usage_fault_without_its_password(tmp_path):
    result = cli(tmp_path, "send", "--url", "http://user:geheim@host", "--line", "goip1", "--to", "1", "x")
    assert result.returncode == 2
    assert faults(result)[0].startswith("--url: must start with mqtt://")
    assert "geheim" not in result.stderr


# -- Order: time and facts in, a deadline out


def order(*recipients: str, reports_s: float = 60.0) -> Order:
    made = Order("c", reports_s=reports_s, timeout_s=300.0, news=0.0)
    msgs = [{"msg": f"m{number}", "to": to} for number, to in enumerate(recipients)]
    assert made.take_result({"id": "c", "data": {"job": None, "msgs": msgs}}, 0.0)
    return made


def fact(event_type: str, seq: int, msg: str = "m0", cmd: str = "c") -> dict[str, Any]:
    return {"cmd": cmd, "msg": msg, "event_type": event_type, "to": "1", "boot": "b", "seq": seq}


def test_a_sent_sms_waits_for_its_report_and_no_longer():
    one = order("1")
    one.take_delivery(fact("sent", 1), 10.0)
    assert one.deadline(10.0) == 70.0
    assert one.deadline(70.0) is None
    assert one.sms["m0"].state == "sent"


def test_a_delivered_sms_is_the_end():
    one = order("1")
    one.take_delivery(fact("sent", 1), 1.0)
    one.take_delivery(fact("delivered", 2), 2.0)
    assert one.deadline(2.0) is None


def test_unknown_may_still_become_sent():
    one = order("1")
    one.take_delivery(fact("unknown", 1), 1.0)
    assert one.deadline(1.0) == 61.0
    one.take_delivery(fact("sent", 2), 5.0)
    assert one.sms["m0"].state == "sent"


def test_a_fact_that_comes_again_does_not_turn_back_the_state():
    one = order("1")
    one.take_delivery(fact("sent", 1), 1.0)
    one.take_delivery(fact("delivered", 2), 2.0)
    assert one.take_delivery(fact("sent", 1), 3.0) is None
    assert one.sms["m0"].state == "delivered"


def test_facts_of_other_commands_are_not_ours():
    one = order("1")
    assert one.take_delivery(fact("failed", 1, cmd="other"), 1.0) is None
    assert one.take_delivery(fact("failed", 1, msg="m0", cmd="c") | {"msg": None}, 1.0) is None
    assert not one.take_result({"id": "other", "data": {}}, 1.0)
    assert one.sms["m0"].state == "queued"


def test_every_news_gives_the_others_more_time():
    two = order("1", "2")
    assert two.deadline(0.0) == 300.0
    two.take_delivery(fact("delivered", 1), 100.0)
    assert two.deadline(100.0) == 400.0


# -- what of it is news


def test_only_a_word_that_changed_or_was_just_published_is_news():
    bridge = Presence()
    assert bridge.hear(b"online", retained=True) is None
    assert bridge.hear(b"online", retained=True) is None, "a broker delivered it twice"
    assert bridge.hear(b"online", retained=False) == "the bridge was restarted"
    assert bridge.hear(b"offline", retained=False) == "the bridge went offline; waiting for it"
    assert bridge.hear(b"online", retained=False) == "the bridge is online again"
    assert bridge.hear(b"offline", retained=True) == "the bridge went offline; waiting for it"
    assert bridge.said == "offline"


@pytest.mark.broker
async def test_only_what_was_asked_for_is_heard(tmp_path):
    """amqtt sends whoever connects what is retained on topics that others have subscribed to."""
    with embedded(tmp_path) as broker:
        settings = Settings(mqtt={"url": broker.url, "version": "3.1.1"})
        async with watching(broker, "#") as other:
            for topic in ("mine", "theirs"):
                await other.publish(topic, "said", retain=True)
                await other.until(topic)
            async with connect(settings, "test") as client:
                await client.listen("mine", "end")
                await other.publish("end")
                heard = []
                async with asyncio.timeout(LIMIT_S):
                    async for message in client.messages:
                        heard.append(str(message.topic))
                        if heard[-1] == "end":
                            break
    assert set(heard) == {"mine", "end"}, "the first may come twice: as the client connects, and when it subscribes"
