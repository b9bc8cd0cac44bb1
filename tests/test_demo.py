"""`goip-bridge demo`: the story is told with either broker, and what did not happen is not claimed."""

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from bridge.cli.demo import Demo, Message, Screen
from brokers import find_mosquitto

LIMIT_S = 60
WITHOUT_MOSQUITTO = (
    "import sys, bridge.process.embedded_broker; bridge.process.embedded_broker.find_mosquitto = lambda: None; "
    "from bridge.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


def start(*arguments: str, folder: Path, code: str | None = None) -> subprocess.Popen[str]:
    """The demo, with its temporary files in `folder`."""
    program = ["-m", "bridge"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *program, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "80", "PYTHONUNBUFFERED": "1"},
    )


@pytest.fixture(scope="module")
def performances(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, Path]]:
    """Exit code, output, errors and folder of the demo with each broker; played at the same time."""
    started = {}
    if find_mosquitto() is not None:
        folder = tmp_path_factory.mktemp("five")
        started["mosquitto"] = (start(folder=folder), folder)
    folder = tmp_path_factory.mktemp("three")
    started["amqtt"] = (start("--lines", "1", folder=folder, code=WITHOUT_MOSQUITTO), folder)
    ended = {}
    for name, (process, folder) in started.items():
        out, err = process.communicate(timeout=LIMIT_S)
        ended[name] = (process.returncode, out, err, folder)
    return ended


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.broker("binary")), "amqtt"])
def performance(request: pytest.FixtureRequest, performances: dict[str, tuple[int, str, str, Path]]):
    return performances[request.param]


def test_the_whole_story_happens(performance):
    code, out, err, _ = performance
    assert (code, err) == (0, "")
    assert "All of it happened" in out
    assert "1 sent, 1 delivered, 1 received" in out


def test_it_shows_the_life_of_an_sms_in_order(performance):
    steps = re.findall(r'<id>|delivery +\{"event_type":"(\w+)"', performance[1])
    assert [step for step in steps if step] == ["queued", "sending", "sent", "delivered"]


def test_it_shows_both_directions_calls_and_ussd(performance):
    text = re.sub(r"\s+", " ", performance[1])
    assert "> goip/goip1/cmd/sms" in text
    assert "Is the gate open? ☕" in text
    for step in ("ringing", "answered", "ended"):
        assert f'{{"event_type":"{step}"' in text
    assert '"text":"Balance 4.20 EUR, valid until 31.12."' in text
    assert text.count("< goip/bridge/availability offline") == 1


def test_it_fits_80_columns_but_for_what_is_to_be_copied(performance):
    long = [line for line in performance[1].splitlines() if len(line) > 80 and "mosquitto_" not in line]
    assert long == []


def test_it_tells_the_url_and_leaves_nothing_behind(performance):
    _, out, _, folder = performance
    assert re.search(r"mqtt://127\.0\.0\.1:\d+", out)
    assert list(folder.glob("goip-demo-*")) == []


def test_it_says_so_when_there_is_only_mqtt_3(performances):
    assert "only MQTT 3.1.1" in re.sub(r"\s+", " ", performances["amqtt"][1])


def test_a_gateway_that_is_refused_is_a_failure():
    out = io.StringIO()
    demo = Demo(Screen(Console(file=out, width=200)), lines=1, password="wrong", step_s=0.5)
    assert asyncio.run(demo.run()) == 1
    missing = out.getvalue().splitlines()[-1]
    assert missing.startswith("MISSING (waited 0.5 s on goip/goip1/availability")
    assert "SMS sent and delivered" in missing
    assert "bridge online" not in missing


def test_a_taken_port_is_one_readable_line(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        process = start("--udp-port", str(taken.getsockname()[1]), folder=tmp_path)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert re.fullmatch(r"goip-bridge: cannot listen on udp .*; choose another --udp-port\n", err)


def test_too_few_seconds_are_told(tmp_path):
    process = start("--seconds", "1.5", folder=tmp_path)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (1, "")
    assert "MISSING (1.5 s were not enough)" in out


def test_ctrl_c_ends_it_in_order(tmp_path):
    process = start(folder=tmp_path)
    assert process.stdout is not None
    out = ""
    for line in process.stdout:
        out += line
        if "goip/goip1/availability online" in line:
            process.send_signal(signal.SIGINT)
            break
    rest, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (1, "")
    assert "goip/bridge/availability offline" in rest
    assert "MISSING (interrupted)" in rest
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_goes_on_has_its_status_page(tmp_path):
    process = start("--keep", folder=tmp_path)
    assert process.stdout is not None
    page = b""
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                with urllib.request.urlopen(found.group(), timeout=LIMIT_S) as answer:
                    page = answer.read()
                break
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert b"<title>" in page


def test_of_a_state_only_what_changed_is_shown():
    out = io.StringIO()
    screen = Screen(Console(file=out, width=200))
    screen.message(Message("goip/goip1/state", '{"signal":{"csq":9},"call":{"state":"idle"},"ts":"1"}', 0.0))
    screen.message(Message("goip/goip1/state", '{"signal":{"csq":9},"call":{"state":"ringing"},"ts":"2"}', 1.0))
    first, second = out.getvalue().splitlines()
    assert first.endswith('{"signal":{"csq":9}, "call":{"state":"idle"}}')
    assert second.endswith('changed: {"call":{"state":"ringing"}}')


# -- the dispatcher, which the demo is the first to meet


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bridge", *arguments], capture_output=True, text=True, timeout=LIMIT_S)


def test_an_unknown_command_gets_a_suggestion():
    result = cli("dmeo")
    assert result.returncode == 2
    assert result.stderr.endswith("there is no command 'dmeo'; did you mean demo?\n")


def test_every_command_has_help():
    commands = re.findall(r"^    (\w+) ", cli("--help").stdout, re.MULTILINE)
    assert {"run", "demo", "send", "monitor", "doctor", "health", "config", "selftest", "sim", "schema"} == set(
        commands
    )


@pytest.mark.parametrize("command", ["demo", "send", "monitor", "doctor", "health"])
def test_help_of_a_command_lists_its_options(command):
    result = cli(command, "--help")
    assert result.returncode == 0
    assert f"usage: goip-bridge {command}" in result.stdout


def test_help_imports_none_of_the_commands():
    code = (
        "import sys\nfrom bridge.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'rich', 'pydantic', 'paho', 'aiomqtt', 'bridge.app.bridge'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S)
    assert result.stdout.endswith("[]\n")
