"""No command ends with a traceback because of its surroundings: streams that are closed, full, broken or not UTF-8,
files and folders that cannot be used.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_disk import small_disk
from test_send import environment

from bridge.store.database import Store
from harness import BridgeProcess, bridge_config, raw_line, running

COMMANDS = [
    "config show", "config check", "config schema", "schema", "schema sms_in", "doctor --timeout 0.1", "monitor --once",
    "health --timeout 0.1", "send --line goip1 --to 1 x", "selftest --from goip1 --to goip2 --yes", "sim --seconds 0.1",
    "run --help", "--help", "--version", "mispelt",
]  # fmt: skip
SIGPIPE = 128 + signal.SIGPIPE
"How `sim` ends when its reader goes away."
NAME = "Київ ☕"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration with a broker that is not there."""
    config = {"mqtt": {"url": "mqtt://127.0.0.1:1"}, "lines": {"goip1": {"password": "password1", "name": NAME}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return tmp_path


def run(
    folder: Path, command: str, redirection: str = "", before: str = "", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """By the shell, as users redirect it; the exit code is the command's own."""
    variables = {"PYTHONUNBUFFERED": ""} | variables
    script = f"{before} {sys.executable} -m bridge {command} {redirection}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder, env=environment() | variables, capture_output=True, timeout=30, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def said_plainly(result: subprocess.CompletedProcess[bytes]) -> bool:
    """Neither a traceback, nor what the interpreter says when it can't write at its end."""
    said = result.stdout + result.stderr
    plain = not any(word in said for word in (b"Traceback", b"Exception ignored", b"fault of goip-bridge"))
    return plain and result.returncode in (0, 1, 2, SIGPIPE)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_traceback_whatever_is_behind_the_streams(folder: Path, command: str) -> None:
    usual = run(folder, command)
    assert said_plainly(usual)
    for redirection in ("0>&- >&- 2>&-", "2>/dev/full"):
        result = run(folder, command, redirection)
        assert said_plainly(result), (redirection, result)
        assert result.returncode == usual.returncode, (redirection, result)
    for redirection in (">&-", "2>&1 | true", ">/dev/full"):
        result = run(folder, command, redirection)
        assert said_plainly(result), (redirection, result)


def test_output_that_cannot_be_written_is_said_and_is_a_failure(folder: Path) -> None:
    for unbuffered in ("", "1"):
        result = run(folder, "config show", ">/dev/full", PYTHONUNBUFFERED=unbuffered)
        assert result.returncode == 1
        assert result.stderr == b"goip-bridge: cannot write the output: No space left on device\n"


ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("variables", [ASCII, LATIN, PLAIN_C], ids=["ascii", "latin-1", "C"])
def test_a_stream_that_is_not_utf_8_gets_the_same_values_escaped(folder: Path, variables: dict[str, str]) -> None:
    assert yaml.safe_load(run(folder, "config show", **variables).stdout)["lines"]["goip1"]["name"] == NAME
    for command in ("config schema", "schema sms_in"):
        result = run(folder, command, **variables)
        assert json.loads(result.stdout) == json.loads(run(folder, command).stdout)
    result = run(folder, "schema asyncapi", **variables)
    assert yaml.safe_load(result.stdout) == yaml.safe_load(run(folder, "schema asyncapi").stdout)
    for command in ("doctor --timeout 0.1", f"send --line '{NAME}' --to 1 x", f"'{NAME}'", f"config '{NAME}'"):
        assert said_plainly(run(folder, command, **variables)), command


def test_a_terminal_whose_words_are_not_utf_8_ends_nothing(folder: Path) -> None:
    """The simulator reads commands; a question of `selftest` may be answered in any encoding."""
    for command in ("sim --seconds 5", "selftest --from goip1 --to goip2"):
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "bridge", *command.split()],
            cwd=folder, env=environment(), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(theirs)
        assert process.stdout is not None
        said = process.stdout.readline()
        os.write(ours, b"\xff\xfe\nquit\n")
        said += process.communicate(timeout=30)[0]
        os.close(ours)
        assert b"Traceback" not in said, said
        assert process.returncode in (0, 1)


# -- what is there besides the streams -------------------------------------------------------------------------------

WITHOUT_POWERS = "setpriv --inh-caps=-all --bounding-set=-all "
"root may read everything, unless it gives that up."
LONG = "x" * 300


@pytest.mark.parametrize("store", ["folder", "file/bridge.db", LONG, "secret/bridge.db", "unreadable.db", "text.db"])
def test_a_store_that_cannot_be_is_said_in_one_line(folder: Path, store: str) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may read everything")
    for name in ("folder", "secret"):
        (folder / name).mkdir()
    for name in ("file", "unreadable.db", "text.db"):
        (folder / name).write_text("no database, but the words of somebody else\n" * 100)
    (folder / "secret").chmod(0)
    (folder / "unreadable.db").chmod(0)
    config = {"mqtt": {"url": "mqtt://127.0.0.1:1"}, "udp": {"listen": "127.0.0.1:0"}, "store": {"path": store}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    prefix = WITHOUT_POWERS if os.geteuid() == 0 else ""
    for command in ("run", "run --no-supervisor", "doctor --timeout 0.1", "health --timeout 0.1"):
        script = f"{prefix}{sys.executable} -m bridge {command}"
        result = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment(), capture_output=True, timeout=30, check=False
        )
        assert said_plainly(result), result
        assert result.returncode == 1
        if command.startswith("run"):
            errors = [line for line in result.stderr.splitlines() if b"ERROR" in line]
            assert len(errors) == 1, result


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    for command in ("config check", "doctor --timeout 0.1", "health --timeout 0.1", "run --no-supervisor"):
        gone = tmp_path / "gone"
        gone.mkdir()
        result = run(gone, command, before="rmdir ../gone;")
        assert said_plainly(result), (command, result)


def test_a_demo_without_room_for_its_files_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path, "size=64k") as disk:
        result = run(tmp_path, "demo --seconds 1", TMPDIR=str(disk))
    assert said_plainly(result), result
    assert result.returncode == 1
    assert re.search(b"^goip-bridge: .*(No space left on device|disk is full)", result.stderr, re.MULTILINE), result


@pytest.mark.parametrize("value", ["nan", "-1", "1e300", "soon"])
def test_a_time_that_is_none_is_refused(folder: Path, value: str) -> None:
    for command in ("health", "doctor", "send --line goip1 --to 1 x"):
        result = run(folder, f"{command} --timeout {value}")
        assert result.returncode == 2
        assert f"argument --timeout: '{value}' is not a number of seconds".encode() in result.stderr, result


async def test_a_bridge_without_standard_streams_serves_and_starts_again(tmp_path: Path) -> None:
    """Their numbers would be those of its sockets and of its store."""
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:1"})
    usual = shlex.join(BridgeProcess(tmp_path, config).command)
    command = ("bash", "-c", f"exec {usual} 0>&- >&- 2>&-")
    async with running(tmp_path, config, command=command) as bridge:
        with raw_line(bridge.udp_port) as line:
            await line.register()
            first = bridge.kill_worker()
            await line.register()
        open_files = {os.readlink(f"/proc/{bridge.worker_pid}/fd/{fd}") for fd in (0, 1, 2)}
        assert bridge.worker_pid != first
        assert await bridge.stop() == 0
    assert open_files == {"/dev/null"}
    with contextlib.closing(Store(tmp_path / "bridge.db")) as store:
        assert not store.restored
