"""A bridge that was started in a terminal, and the terminal is closed: real processes on a real pty."""

import asyncio
import contextlib
import os
import pty
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from bridge.system import terminal
from broker_fixture import free_port
from harness import LIMIT_S, free_udp_port

Hanging = tuple[terminal.ControllingTerminal, Callable[[], None], list[float]]
"A terminal that is watched, what closes it, and the time."
RUN = f"{sys.executable} -m bridge run"


class Session:
    """A shell on a pty of its own, whose words are typed."""

    def __init__(self, directory: Path, shell: list[str]) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.port = free_udp_port()
        config = {
            "mqtt": {"url": f"mqtt://127.0.0.1:{free_port()}"},
            "udp": {"listen": f"127.0.0.1:{self.port}"},
            "lines": {"l1": {"password": "p"}},
        }
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            os.execvp(shell[0], shell)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode() + b"\n")

    def close(self) -> None:
        """As a window is closed."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
            os.waitpid(self.pid, 0)

    def logged(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def bridges(self) -> list[int]:
        """The processes that were started in this directory and are no shell: supervisor and worker."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if (entry / "cwd").readlink() == self.directory and b"bridge" in words:
                    found.append(int(entry.name))
        return sorted(found)


async def until(condition: Callable[[], object], seconds: float = LIMIT_S) -> None:
    """Wait for what shows only outside, in /proc or in a file."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def session(directory: Path, *shell: str) -> Iterator[Session]:
    made = Session(directory.resolve(), list(shell))
    try:
        yield made
    except BaseException:
        print(made.logged())
        raise
    finally:
        made.close()
        for pid in made.bridges():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@pytest.mark.parametrize("option", ["", " --no-supervisor"])
@pytest.mark.parametrize("place", ["leader", "foreground", "background"])
async def test_a_bridge_whose_terminal_is_closed_stops_in_good_order(tmp_path: Path, place: str, option: str) -> None:
    command = f"{RUN}{option} > log 2>&1"
    shell = {
        "leader": ("/bin/sh", "-c", f"exec {command}"),
        "foreground": ("/bin/sh", "-c", f"{command}; true"),
        "background": ("bash", "--norc", "-i"),
    }[place]
    with session(tmp_path, *shell) as it:
        if place == "background":
            it.type(f"{command} &")
        await until(lambda: "listening" in it.logged() and "cannot connect" in it.logged())
        assert len(it.bridges()) == (1 if option else 2)
        it.close()
        await until(lambda: not it.bridges())
        assert "the terminal was closed: stopping" in it.logged()
        assert it.logged().rstrip().endswith("stopped")
        assert "Traceback" not in it.logged()


@pytest.mark.parametrize("option", ["", " --no-supervisor"])
async def test_sighup_reloads_while_the_terminal_is_there(tmp_path: Path, option: str) -> None:
    with session(tmp_path, "/bin/sh", "-c", f"exec {RUN}{option} > log 2>&1") as it:
        await until(lambda: "cannot connect" in it.logged())
        for count in (1, 2):
            os.kill(it.pid, signal.SIGHUP)
            await until(lambda count=count: it.logged().count("configuration reloaded") == count)
        assert "stopping" not in it.logged()


@pytest.mark.parametrize("start", ["nohup {}", "setsid {}"])
async def test_what_is_to_outlive_its_terminal_does_and_still_reloads(tmp_path: Path, start: str) -> None:
    with session(tmp_path, "bash", "--norc", "-i") as it:
        it.type(f"{start.format(RUN)} > log 2>&1 < /dev/null &")
        await until(lambda: "cannot connect" in it.logged())
        it.close()
        before = it.logged().count("configuration reloaded")  # nohup: the hangup itself may have reloaded
        os.kill(it.bridges()[0], signal.SIGHUP)
        await until(lambda: it.logged().count("configuration reloaded") > before)
        assert "stopping" not in it.logged()
        os.kill(it.bridges()[0], signal.SIGTERM)
        await until(lambda: not it.bridges())


# -- what a SIGHUP means, on a pty and with a clock that the test sets ---------------------------------------------


@pytest.fixture
def hanging(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Hanging]:
    master, slave = os.openpty()
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    watched = terminal.ControllingTerminal()
    watched._file = slave  # the tests' own process has another terminal, or none
    monkeypatch.setattr(watched, "_is_gone", lambda file: _hung_up(file))
    closed = False

    def close() -> None:
        nonlocal closed
        closed = True
        os.close(master)

    yield watched, close, now
    if not closed:
        os.close(master)
    if watched.watched:
        os.close(slave)


def _hung_up(file: int) -> bool:
    """As for a controlling terminal: that of others can't be asked for its process group."""
    try:
        os.ttyname(file)
        return not os.isatty(file)
    except OSError:
        return True


def test_a_sighup_just_before_the_terminal_goes_counts(
    hanging: Hanging,
) -> None:
    watched, close, now = hanging
    assert not watched.hung_up()
    close()
    now[0] += watched.LOOK_S
    assert watched.look()


def test_a_terminal_that_goes_without_a_word_is_no_reason_to_stop(
    hanging: Hanging,
) -> None:
    watched, close, now = hanging
    assert not watched.look()
    close()
    for _ in range(3):
        now[0] += watched.LOOK_S
        assert not watched.look()
    assert not watched.watched
    assert not watched.hung_up(), "it reloads"


def test_a_sighup_of_long_ago_was_a_reload(
    hanging: Hanging,
) -> None:
    watched, close, now = hanging
    assert not watched.hung_up()
    now[0] += 60.0
    close()
    assert not watched.look()
