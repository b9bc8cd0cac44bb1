"""`goip-bridge monitor`: what it shows of what it hears, on 80 columns too."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from test_send import Installation, cli, faults

from bridge.monitor import FACTS, Board
from bridge.topics import Topics
from brokers import Mosquitto, find_mosquitto, free_port

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
STATS = {"queue": {"queued": 4, "active": 1}, "today": {"sent": 7, "delivered": 5, "failed": 1, "received": 2}}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("installation")) as running:
        yield running


@needs_mosquitto
def test_once_prints_every_line_within_80_columns(installation):
    result = installation.cli("monitor", "--once")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "bridge online" in lines[0]
    rows = {line.split()[0]: line.split()[1] for line in lines if line.startswith("goip") and " at " not in line}
    assert rows == {"goip1": "online", "goip2": "online", "goip3": "offline"}


@needs_mosquitto
def test_without_a_bridge_it_says_so(tmp_path):
    with Mosquitto(tmp_path) as broker:
        result = cli(tmp_path, "monitor", "--once", "--url", f"mqtt://127.0.0.1:{broker.port}")
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


def shown(made: Board, width: int = 80, height: int | None = None) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(made.render(width, height))
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


def test_more_lines_than_fit_are_counted():
    made = board(*(f"goip{number}" for number in range(100)))
    text = shown(made, height=24)
    assert len(text) <= 24
    assert text[-1].endswith("more lines")


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
