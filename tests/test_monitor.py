"""`goip-bridge monitor`: what it shows of what it hears, on 80 columns too."""

import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from test_send import LIMIT_S, Installation, cli, environment, faults

from bridge.cli.monitor import FACTS, Board
from bridge.contract.topics import Topics
from broker_fixture import StartBroker
from brokers import free_port

STATS = {"queue": {"queued": 4, "active": 1}, "today": {"sent": 7, "delivered": 5, "failed": 1, "received": 2}}
HEALTH = {
    "ts": "2026-01-01T00:02:00Z", "uptime_s": 119, "outbox": {"count": 3},
    "udp": {"received": 7, "sent": 5, "malformed": 0, "unauthorized": 0, "dropped": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, start_broker: StartBroker) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    with start_broker(folder) as broker, Installation(folder, broker) as running:
        yield running


def test_once_prints_every_line_within_80_columns(installation):
    result = installation.cli("monitor", "--once")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "bridge online" in lines[0]
    rows = {line.split()[0]: line.split()[1] for line in lines if line.startswith("goip") and " at " not in line}
    assert rows == {"goip1": "online", "goip2": "online", "goip3": "offline"}


def test_on_a_terminal_keys_scroll_and_q_leaves_it_as_it_was(installation):
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 80, 0, 0))
        before = termios.tcgetattr(theirs)
        screen = Screen(ours)
        process = subprocess.Popen(
            [sys.executable, "-m", "bridge", "monitor"], cwd=installation.folder, stdin=theirs, stdout=theirs,
            env={name: value for name, value in environment().items() if name != "COLUMNS"} | {"TERM": "xterm"},
        )  # fmt: skip
        screen.until("lines 1 to 1 of 3, those that are not well (1) first", "goip3", "offline")
        os.write(ours, b"\x1b[B")
        screen.until("lines 2 to 2 of 3", "goip1", "online")
        os.write(ours, b"?\x1b[F")
        screen.until("lines 3 to 3 of 3", "goip2")
        assert not termios.tcgetattr(theirs)[3] & termios.ECHO
        os.write(ours, b"q")
        screen.until("\x1b[?1049l")  # the alternate screen is left
        assert process.wait(LIMIT_S) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


class Screen:
    """What a program writes to its terminal."""

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self._written = ""

    def until(self, *texts: str) -> None:
        """Until all of these were written since the last call."""
        deadline = time.monotonic() + LIMIT_S
        while not all(text in self._written for text in texts):
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{texts} did not come: {self._written[-3000:]!r}"
            self._written += os.read(self._ours, 65536).decode(errors="replace")
        self._written = ""


def test_without_a_bridge_it_says_so(tmp_path, start_broker):
    with start_broker(tmp_path) as broker:
        result = cli(tmp_path, "monitor", "--once", "--url", broker.url)
    assert result.returncode == 1
    assert "no bridge is known at" in faults(result)[0]


def test_without_a_broker_it_is_one_line(tmp_path):
    result = cli(tmp_path, "monitor", "--url", f"mqtt://127.0.0.1:{free_port()}")
    assert result.returncode == 1
    assert len(faults(result)) == 1


# -- Board: messages in, text out


def board(*lines: str) -> Board:
    made = Board(Topics("house/goip"), "mqtt://broker")
    said = [{"id": id, "name": None, "gateway": None, "online": True, "address": None} for id in lines]
    tell(made, "bridge/lines", {"lines": said})
    made.take("house/goip/bridge/availability", b"online")
    return made


def tell(made: Board, path: str, payload: dict[str, Any], *, retained: bool = False) -> None:
    made.take(f"house/goip/{path}", json.dumps(payload).encode(), retained=retained)


def shown(made: Board, width: int = 80, height: int | None = None, now: float = 0.0) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(made.render(width, height, now))
    return out.getvalue().splitlines()


def row(made: Board, id: str) -> list[str]:
    return next(line.split() for line in shown(made) if line.startswith(id))


def test_facts_count_on_until_the_next_stats():
    made = board("goip1")
    tell(made, "goip1/stats", STATS)
    assert row(made, "goip1")[-5:] == ["4+1", "7", "5", "1", "2"]
    tell(made, "goip1/delivery", {"event_type": "queued", "attempt": 0})
    tell(made, "goip1/delivery", {"event_type": "sending", "attempt": 1})
    assert row(made, "goip1")[-5] == "4+2"
    tell(made, "goip1/delivery", {"event_type": "sent", "attempt": 1, "evidence": "ok"})
    tell(made, "goip1/delivery", {"event_type": "delivered", "attempt": 1, "evidence": "report"})
    tell(made, "goip1/sms/in", {"event_type": "received", "from": "+49", "text": "hi"})
    assert row(made, "goip1")[-5:] == ["4+1", "8", "6", "1", "3"]
    tell(made, "goip1/stats", STATS)
    assert row(made, "goip1")[-5:] == ["4+1", "7", "5", "1", "2"]


def test_a_call_a_problem_and_an_unknown_signal_are_shown():
    made = board("goip1")
    made.take("house/goip/goip1/availability", b"online")
    call = {"state": "ringing", "number": "123"}
    tell(made, "goip1/state", {"signal": {"percent": None}, "call": call, "problems": ["gsm_logout"]})
    assert row(made, "goip1")[1:5] == ["gsm_logout", "-", "ringing", "123"]


def test_retained_facts_of_others_and_junk_do_not_matter():
    made = board("goip1")
    tell(made, "goip1/delivery", {"event_type": "sent"}, retained=True)
    for payload in (b"", b"\xff", b"[]", b"7"):
        made.take("house/goip/goip1/state", payload)
        made.take("house/goip/goip1/sms/in", payload)
    assert row(made, "goip1")[-5:] == ["0", "0", "0", "0", "0"]


def numbered(made: Board, **options: Any) -> list[str]:
    return [line.split()[0] for line in shown(made, **options) if line.startswith("goip") and " at " not in line]


def test_more_lines_than_fit_are_scrolled():
    made = board(*(f"goip{number}" for number in range(100)))
    text = shown(made, height=24)
    assert len(text) <= 24
    assert text[-1] == "lines 1 to 21 of 100; arrows, PgUp, PgDn; q ends"
    pages = [numbered(made, height=24)]
    for key, first in [
        ("down", 1), ("page down", 22), ("up", 21), ("page up", 0), ("page up", 0), ("page down", 21), ("end", 79),
        ("down", 79), ("home", 0),
    ]:  # fmt: skip
        made.scroll(key)
        pages.append(numbered(made, height=24))
        assert pages[-1] == [f"goip{number}" for number in range(first, first + 21)], key
    assert {id for page in pages for id in page} >= {f"goip{number}" for number in range(43)}
    assert numbered(made) == [f"goip{number}" for number in range(100)]


def test_lines_that_are_not_well_are_not_hidden_behind_those_that_are():
    made = board(*(f"goip{number}" for number in range(100)))
    made.take("house/goip/goip90/availability", b"offline")
    tell(made, "goip80/state", {"problems": ["gsm_logout"]})
    assert numbered(made, height=24)[:3] == ["goip80", "goip90", "goip0"]
    assert "lines 1 to 21 of 100, those that are not well (2) first;" in shown(made, height=24)[-1]
    assert numbered(made)[:2] == ["goip0", "goip1"]  # where all fit, each has its place


@pytest.mark.parametrize("height", range(1, 40))
def test_nothing_is_higher_than_the_terminal(height):
    made = board(*(f"goip{number}" for number in range(30)))
    tell(made, "bridge/health", HEALTH)
    for number in range(FACTS):
        tell(made, "goip1/sms/in", {"event_type": "received", "id": f"f{number}"})
    text = shown(made, height=height)
    assert len(text) <= max(height, 6)  # the head, the titles, one line, and that there are more
    assert numbered(made, height=height)


def test_a_fact_that_comes_again_is_shown_and_counted_once():
    made = board("goip1")
    for _ in range(2):
        tell(made, "goip1/sms/in", {"event_type": "received", "id": "f1", "from": "+49", "text": "hi"})
        tell(made, "bridge/event", {"event_type": "line_unknown", "id": "f2", "line": "x"})
    assert row(made, "goip1")[-1] == "1"
    text = "\n".join(shown(made))
    assert (text.count("sms/in"), text.count("line_unknown")) == (1, 1)
    tell(made, "bridge/event", {"event_type": "line_unknown", "id": "f3"}, retained=True)  # somebody else's
    assert "\n".join(shown(made)).count("line_unknown") == 1


def test_the_time_in_the_head_goes_on_and_the_age_of_the_counters_is_told():
    made = board("goip1")
    made.take("house/goip/goip1/availability", b"online")
    tell(made, "bridge/info", {"version": "1", "started_at": "2026-01-01T00:00:00Z"})
    tell(made, "bridge/health", HEALTH)
    began = 1767225600.0
    assert shown(made, now=began + 125)[1] == "up 2 min · 1/1 lines online · outbox 3 · UDP 7 in, 5 out (5 s ago)"
    assert shown(made, now=began + 3720)[1].startswith("up 1 h 2 min · ")
    assert shown(made, now=began + 3720)[1].endswith("(1 h 0 min ago)")
    assert shown(made, now=began - 100)[1].startswith("up 0 s")  # another clock


def test_lines_of_a_bridge_that_is_away_are_not_shown_as_online():
    made = board("goip1", "goip2")
    tell(made, "bridge/health", HEALTH)
    made.take("house/goip/goip1/availability", b"online")
    made.take("house/goip/goip2/availability", b"offline")
    assert (row(made, "goip1")[1], row(made, "goip2")[1]) == ("online", "offline")
    made.take("house/goip/bridge/availability", b"offline")
    assert (row(made, "goip1")[1], row(made, "goip2")[1]) == ("?", "?")
    assert "bridge offline" in shown(made)[0]
    assert shown(made, height=5)[-1].startswith("lines 1 to 1 of 2; ")  # which of them is well is not known
    assert shown(made)[1].startswith("the lines are shown as it left them · outbox 3")
    made.take("house/goip/bridge/availability", b"online")
    assert row(made, "goip1")[1] == "online"


def test_facts_keep_to_their_number_and_to_the_width():
    made = board("goip1")
    for number in range(2 * FACTS):
        tell(made, "goip1/sms/in", {"event_type": "received", "from": "+49", "text": f"text {number} " + "x" * 200})
    text = shown(made)
    assert max(map(len, text)) <= 80
    assert sum("received" in line and "sms/in" in line for line in text) == FACTS
    assert f"text {2 * FACTS - 1}" in text[-1]


def test_a_line_that_is_gone_disappears():
    made = board("goip1", "goip2")
    tell(made, "bridge/lines", {"lines": [{"id": "goip2", "name": "Gate"}]})
    assert [line.split()[0] for line in shown(made) if line.startswith("goip")] == ["goip2"]
