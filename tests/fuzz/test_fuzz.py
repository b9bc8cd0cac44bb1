"""The corpus and a short search; `make fuzz` searches longer."""

import contextlib
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.mqtt.link import Incoming
from bridge.store.database import Store
from fuzz import engine, targets

MAX_CORPUS_BYTES = 200_000
PIECES = [
    b";",
    b";a:b",
    b"a",
    b"\xff",
    b"\xffa",
    b"1,",
    b",",
    b" ",
    b":",
    b"\n",
    b"\0",
    b";recei",
    b"[",
    b'"a":0,',
    b"9",
]
MANY = [b'{"to":[%b],"text":"x"}', b'{"messages":[%b]}', b'{"ack":[%b]}', b'{"value":{%b}}', b'{"x":%b}', b"%b"]


@pytest.mark.parametrize("target", engine.TARGETS.values(), ids=lambda target: target.name)
def test_everything_ever_found_is_well(target: engine.Target) -> None:
    corpus = sorted(engine.corpus_folder(target.name).iterdir())
    assert corpus
    for path in corpus:
        try:
            engine.check(target, path.read_bytes())
        except Exception as error:
            error.add_note(f"cd tests && python -m fuzz --target {target.name} --replay {path}")
            raise


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in engine.CORPUS.rglob("*")) < MAX_CORPUS_BYTES


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(
    "head",
    [b"", b"req:1;", b"FOO:1;id:goip1;password:pw1", b"RECEIVE:1;msg:", b"CELLS:1;lists:", b"USSD 1 ", b"GSM:1;"],
)
def test_a_datagram_of_any_size_costs_little_time_and_memory(head: bytes, piece: bytes) -> None:
    datagram = (head + piece * targets.MAX_DATAGRAM)[: targets.MAX_DATAGRAM]
    engine.check(engine.TARGETS["datagrams"], datagram)
    bench = targets.busy_bench()
    assert peak_memory(lambda: bench.server.receive_datagram(datagram, targets.ELSEWHERE, bench.now)) < 40 * len(
        datagram
    )


@pytest.mark.parametrize("around", MANY)
@pytest.mark.parametrize(
    "item", [b"0,", b'"+49151",', b'{"to":"1"},', b"{},", b"[", b"NaN,", b'"a":0,', b'"\\ud800",', b"9"]
)
def test_a_payload_of_any_size_costs_little_time_and_memory(around: bytes, item: bytes) -> None:
    longest = engine.TARGETS["payloads"].longest // 16
    payload = around % (item * (longest // len(item))).rstrip(b",")
    path, _, target = {b'{"ack"': ("inbox", "", "bridge"), b'{"valu': ("modules/set", "", "line")}.get(
        around[:6], ("sms", "", "line")
    )
    data = f"{target}/{path}\n".encode() + payload
    engine.check(engine.TARGETS["payloads"], data)
    assert peak_memory(lambda: targets.take_payload(data)) < 200 * len(data)


def peak_memory(work) -> int:
    """Bytes that were in use at most while it worked."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(engine.TARGETS["datagrams"].words) | st.binary(max_size=8), max_size=12))
def test_any_datagrams(pieces: list[bytes]) -> None:
    targets.decode_datagram(b"".join(pieces))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["+491511", "1\n"])
FIELDS = st.sampled_from(
    ["id", "to", "text", "messages", "priority", "ttl_s", "send_at", "expires_at", "dry_run", "src", "value", "code",
     "reason", "enable", "number", "timeout_s", "since", "limit", "ack", "job", "msg", "cmd", "guarantee"]
)  # fmt: skip
BODIES = st.dictionaries(
    FIELDS | st.text(max_size=3),
    SCALARS | st.lists(SCALARS, max_size=3) | st.lists(st.dictionaries(FIELDS, SCALARS, max_size=3), max_size=3),
    max_size=3,
)


def commands_of_the_corpus() -> list[tuple[bytes, dict[str, object]]]:
    found = []
    for data in engine.load("payloads"):
        topic, _, payload = data.partition(b"\n")
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(body := json.loads(payload), dict):
                found.append((topic, body))
    return found


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(commands_of_the_corpus()), BODIES, st.binary(max_size=20))
def test_any_payloads(known: tuple[bytes, dict[str, object]], changes: dict[str, object], noise: bytes) -> None:
    topic, body = known
    targets.payload_input(topic + b"\n" + json.dumps(body | changes).encode())
    targets.payload_input(topic + b"\n" + noise)


async def test_every_payload_is_answered_and_none_is_a_fault(tmp_path: Path) -> None:
    """The corpus once more, as far as the store: what is a command gets one result, whatever is in it."""
    configuration = Settings(lines={"l0": {"password": "p"}})
    store = Store(tmp_path / "bridge.db")
    bridge = Bridge(configuration, store, lambda: configuration)
    bridge.datagrams_received([(b"req:1;id:l0;pass:p;", ("127.0.0.1", 4000))])
    messages = []
    for number, data in enumerate(engine.load("payloads")):
        topic, _, payload = data.partition(b"\n")
        target, _, path = topic.decode(errors="replace").partition("/")
        name = f"goip/{'bridge' if target == 'bridge' else 'l0'}/cmd/{path}"
        messages.append(Incoming(name, payload, False, False, None, None, number + 1, 1))
    bridge.received(messages)
    topics = bridge.topics
    commands = [message for message in messages if topics.parse_command(message.topic) is not None]
    results = [json.loads(row.body) for row in store.outbox(0, 10_000) if row.schema == "result"]
    waiting = len(list(store.open_commands()))
    assert len(results) + waiting == len(commands) > 100
    assert not [result for result in results if result["code"] == "internal"]
    store.close()


def test_the_search_is_led_by_coverage() -> None:
    """Three steps, each of which shows only after the one before: chance alone would need days."""

    def maze(data: bytes, _: object) -> None:
        if data[:1] != b"\x11":
            return
        if data[1:2] != b"\x77":
            return
        assert data[2:3] != b"\x99", "found"

    target = engine.Target("maze", lambda: None, maze, (__file__,), (b"x",), 100, maze, (1.0, 1.0))
    runs = [engine.Run(target, seed=1, corpus=[b"...."]) for _ in range(2)]
    for run in runs:
        run.go(60.0, lambda _: None)
        assert run.crash is not None
        assert run.crash[0].startswith(b"\x11\x77\x99")
    assert runs[0].executions == runs[1].executions


def test_a_fault_is_written_down_and_can_be_replayed(tmp_path: Path, monkeypatch, capsys) -> None:
    from fuzz import __main__ as program

    def broken(data: bytes, _: object) -> None:
        assert b"\x00" not in data

    target = engine.Target("payloads", lambda: None, broken, (__file__,), (b"\x00",), 100, broken, (1.0, 1.0))
    monkeypatch.setitem(engine.TARGETS, "payloads", target)
    assert program.fuzz("payloads", 60.0, 1, tmp_path, keep=False) == 1
    (crash,) = tmp_path.iterdir()
    assert f"--target payloads --replay {crash}" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        program.replay(["payloads"], crash)
