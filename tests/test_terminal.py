"""What comes from outside reaches no terminal and no log as anything but text."""

import asyncio
import io
import json
import logging
import os
import pty
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import publish
from test_send import cli, environment

from bridge.cli.monitor import Board
from bridge.contract.topics import Topics
from bridge.system.terminal import LogFormatter, clean, cleaned, console, say
from brokers import Mosquitto
from harness import as_broker, bridge_config, raw_line, running, watching

needs_mosquitto = pytest.mark.broker("binary")
SOURCES = sorted((Path(__file__).parent.parent / "bridge").rglob("*.py"))

OBEYED = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n\r"]
OBEYED += list("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ud800\udfff")
TITLE, CLIPBOARD, C1_TITLE = "\x1b]0;owned\x07", "\x1b]52;c;b3duZWQ=\x1b\\", "\x9d0;owned\x9c"
ATTACK = f"{TITLE}{CLIPBOARD}{C1_TITLE}\x1b[2J\x9b2J\u202egnp\u2066\u2028ok\x0bok\x85ok\rok"
HARMFUL = re.compile("\x1b\\][05]|\x1b\\[2J\x9b|[\x07\x0b\x80-\x9f\u202e\u2066\u2028]|\r(?!\n|\x1b)")
"rich has sequences of its own on a terminal; none of these is among them."


@pytest.mark.parametrize("char", OBEYED, ids=lambda char: f"U+{ord(char):04X}")
def test_nothing_that_a_terminal_obeys_stays(char: str) -> None:
    assert clean(f"a{char}b") == clean(f"a{char}b", lines=True) == "a\N{REPLACEMENT CHARACTER}b"


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="".join(OBEYED))))
def test_everything_else_stays(text: str) -> None:
    assert clean(text) == text


def test_one_line_stays_one_line() -> None:
    assert clean("a\nb\tc\r\nd") == "a b c  d"
    assert clean("a\n\tb\rc", lines=True) == "a\n\tb\N{REPLACEMENT CHARACTER}c"


def test_every_text_of_a_payload_is_cleaned_keys_included() -> None:
    assert cleaned({"a\x1b": ["\x9b", {"b": "\n"}], "n": 1}) == {"a\ufffd": ["\ufffd", {"b": " "}], "n": 1}


def test_a_log_record_is_one_line_and_a_traceback_forges_none() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("said %s", f"{ATTACK}\nERROR forged")
    try:
        raise ValueError(f"{ATTACK}\nERROR forged")
    except ValueError:
        logger.exception("failed")
    assert HARMFUL.search(out.getvalue()) is None
    assert [line for line in out.getvalue().splitlines() if not line.startswith("  ")] == [
        line for line in out.getvalue().splitlines() if line.startswith(("WARNING said", "ERROR failed"))
    ]


def test_the_console_cleans_whatever_is_printed_and_takes_nothing_for_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console().print(f"[link=http://x]{ATTACK}[/link] :smile:", soft_wrap=True)
    say(ATTACK)
    out = capsys.readouterr().out
    assert HARMFUL.search(out) is None
    assert "[link=http://x]" in out
    assert ":smile:" in out


def test_no_other_module_writes_to_the_terminal_or_makes_a_log_format() -> None:
    writes = re.compile(r"\bprint\(|sys\.std(out|err)\.write|[^n]Console\(|basicConfig\((?!.*handlers=)|\bFormatter\(")
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCES
        if path.name != "terminal.py"
        for line in path.read_text().splitlines()
        if writes.search(line.replace("console.print(", ""))
    ]
    assert found == []


def test_the_board_keeps_to_its_width_whatever_a_phone_sends() -> None:
    board = Board(Topics("goip"), "mqtt://broker")
    board.take("goip/bridge/lines", b'{"lines": [{"id": "goip1", "name": "a\\u001b[2J", "online": true}]}')
    board.take("goip/bridge/availability", b"on\x1bline")
    fact = {"event_type": "received", "from": ATTACK, "text": f"{ATTACK}\n" * 9}
    board.take("goip/goip1/sms/in", json.dumps(fact).encode())
    board.take("goip/goip1/sms/in", b'{"event_type": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001)
    out = io.StringIO()
    screen = console()
    screen.file = out
    screen.print(board.render(80, None, 0.0), width=80)
    assert HARMFUL.search(out.getvalue()) is None
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "owned" in out.getvalue()


# -- as users run it -------------------------------------------------------------------------------------------------


async def watch(folder: Path, url: str, *, tty: bool) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader]:
    """A monitor, and what it writes."""
    ours, theirs = pty.openpty() if tty else os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", "monitor", "--url", url,
        cwd=folder, env=environment() | {"TERM": "xterm", "COLUMNS": "250"},
        stdin=asyncio.subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0)
    )
    return process, reader


async def read_until(reader: asyncio.StreamReader, word: bytes) -> str:
    seen = b""
    async with asyncio.timeout(30):
        while word not in seen:
            chunk = await reader.read(65536)
            assert chunk, seen
            seen += chunk
    return seen.decode()


@needs_mosquitto
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "terminal"])
async def test_an_sms_writes_nothing_but_text_to_whoever_watches(tmp_path: Path, tty: bool) -> None:
    with Mosquitto(tmp_path) as mosquitto:
        broker = as_broker(mosquitto)
        async with running(tmp_path, bridge_config(broker, "goip")) as bridge:
            with raw_line(bridge.udp_port) as line:
                await line.register()
                process, reader = await watch(tmp_path, broker.url, tty=tty)
                try:
                    shown = await read_until(reader, b"goip1")
                    await line.ask(line.event("RECEIVE", f"srcnum:Bank;msg:{ATTACK} the end"))
                    shown += await read_until(reader, b"the end")
                finally:
                    process.terminate()
                    await process.wait()
    assert HARMFUL.search(shown.replace("\r\n", "\n")) is None, shown


@needs_mosquitto
async def test_words_of_a_gateway_reach_the_terminal_of_send_as_text(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto:
        config = bridge_config(as_broker(mosquitto), "goip")
        async with running(tmp_path, config) as bridge:
            with raw_line(bridge.udp_port) as line:
                await line.register()
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "bridge", "send", "--line", "goip1", "--to", "+49151", "--timeout", "2", "hi",
                    cwd=tmp_path, env=environment(),
                    stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
                opened = await line.receive()
                line.send(f"ERROR {opened.split()[1].decode()} {ATTACK}\n1 SMS: 1 delivered")
                out, _ = await process.communicate()
    assert process.returncode == 1
    text = out.decode()
    assert HARMFUL.search(text) is None, text
    assert "gnp" in text
    assert not re.search("^1 SMS: 1 delivered", text, re.MULTILINE)


@needs_mosquitto
def test_what_others_publish_reaches_the_doctor_as_text(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        where = {"hostname": broker.host, "port": broker.port}
        info = {"version": f"1{ATTACK}", "instance": f"x\nok      forged: {ATTACK}", "mqtt": {"version": "5"}}
        publish.single("goip/bridge/info", json.dumps(info), 1, True, **where)
        publish.single("goip/bridge/availability", "online", 1, True, **where)
        publish.single("goip/x'; rm -rf ~; '\u202e/cmd/sms", "{}", 1, True, **where)
        result = cli(tmp_path, "doctor", "--timeout", "1", "--url", f"mqtt://127.0.0.1:{broker.port}")
    assert HARMFUL.search(result.stdout + result.stderr) is None
    assert not re.search("^ok +forged", result.stdout, re.MULTILINE)
    assert "-t 'goip/x'\\''; rm -rf ~; '\\''\ufffd/cmd/sms'" in result.stdout


def test_faults_of_the_configuration_are_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text('lines: {"a\\e[2J": {password: x}}\ncontacts: {"b\\x9b": "1"}\n')
    for arguments in (("config", "check"), ("run",), ("doctor",), ("monitor",)):
        result = cli(tmp_path, *arguments)
        assert result.returncode == 2
        assert HARMFUL.search(result.stdout + result.stderr) is None
        assert "lines." in result.stdout + result.stderr


@needs_mosquitto
async def test_the_log_of_the_service_has_one_line_for_each_record(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as mosquitto:
        broker = as_broker(mosquitto)
        async with running(tmp_path, bridge_config(broker, "goip")) as bridge, watching(broker, "goip/#") as watcher:
            await watcher.until("goip/bridge/availability")
            (tmp_path / "config.yaml").write_text('"a\\e]0;owned\\a\\nFORGED": 1\n')
            await watcher.publish("goip/bridge/cmd/reload", "{}")
            await watcher.until("goip/bridge/result/reload")
            await bridge.logged("not reloaded")
    assert HARMFUL.search(bridge.log) is None
    assert not re.search("^FORGED", bridge.log, re.MULTILINE)
