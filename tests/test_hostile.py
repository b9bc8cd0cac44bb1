"""A hostile network around a real bridge: floods, guesses, replays and bombs, and lines that go on as if nothing were.

`HOSTILE_SECONDS` and `HOSTILE_RATE` make the flood longer and faster.
"""

import asyncio
import contextlib
import enum
import json
import os
import random
import re
import socket
import sqlite3
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.features.limits import BURST_S, KNOWN_FOR_S, SOURCE_PER_S, STRANGERS_PER_S, Gate, Limiter
from bridge.features.line_moves import Moves
from bridge.features.unauthorized import LOGGED_A_MINUTE, OF_A_LINE, Strangers
from bridge.goip import events
from bridge.goip.server import LineConfig, SmsServer
from bridge.goip.session import Recipient
from bridge.goip.timing import Timing
from bridge.store.database import Store
from bridge.system.udp import _set_receive_buffer
from broker_fixture import Broker
from brokers import Mosquitto
from flood import Attack, Outcome
from harness import (
    LIMIT_S,
    BridgeProcess,
    RawLine,
    Watcher,
    bridge_config,
    children,
    raw_line,
    running,
    watching,
)

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "5"))
RATE = float(os.environ.get("HOSTILE_RATE", "10500"))
"Of strangers, datagrams a second; the goal is 10,000."
REPLAYS_PER_S = 500.0
LINES = 50
RSS_GROWTH_MB = 3.0
"""Between warm-up and the end of the flood, which is 33,000 datagrams: 100 bytes kept of each would be more."""
ROOM = 4 << 20
VERBOSE = (sys.executable, "-m", "bridge", "run", "--config", "config.yaml", "-v")
CAPTURES = Path(__file__).parent / "goip/corpus/captures.jsonl"


def secret(name: str) -> str:
    """A password that nothing else looks like."""
    return f"Xk4-{name}-q9Zt"


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """One that lets everything through, and is not the worse for it to other tests."""
    folder = tmp_path / "broker"
    folder.mkdir()
    with Mosquitto(folder, "max_queued_messages 100000\nmax_inflight_messages 100") as mosquitto:
        yield Broker(kind="mosquitto", host=mosquitto.host, port=mosquitto.port)


def receive_buffer() -> int:
    """What the kernel gives the bridge for datagrams that wait."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _set_receive_buffer(sock)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


# -- what a process costs ------------------------------------------------------------------------------------------


def bridge_pids(bridge: BridgeProcess) -> list[int]:
    assert bridge.process is not None
    return [bridge.process.pid, *children(bridge.process.pid)]


def rss_mb(bridge: BridgeProcess) -> float:
    page = os.sysconf("SC_PAGE_SIZE")
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in bridge_pids(bridge)]
    return sum(pages) * page / 2**20


def cpu_s(bridge: BridgeProcess) -> float:
    ticks = 0
    for pid in bridge_pids(bridge):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def kernel_drops(bridge: BridgeProcess) -> int:
    rows = [row.split() for row in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return sum(int(row[12]) for row in rows if row[1].endswith(f":{bridge.udp_port:04X}"))


def secrets_told(bridge: BridgeProcess, watcher: Watcher, secrets: Iterable[str]) -> list[str]:
    """Where a password can be read that must be nowhere but in the configuration."""
    places = {"the log": bytes(bridge.output)}
    places |= {path.name: path.read_bytes() for path in bridge.directory.glob("bridge.db*")}
    places |= {f"a payload on {seen.topic}": seen.payload for seen in watcher.seen}
    return [f"{word} in {place}" for place, content in places.items() for word in secrets if word.encode() in content]


# -- the flood -----------------------------------------------------------------------------------------------------


class Box:
    """A line that sends what a box sends, once each, and counts what is not answered."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.password = secret(name)
        self.unanswered: Counter[bytes] = Counter()
        self.sent = 0
        self.texts: list[str] = []
        self.captured: list[bytes] = []
        "What somebody on the way has read."
        self.unexpected: list[bytes] = []
        self._count = 0
        self._recvid = 1_800_000_000
        self._to = ("127.0.0.1", port)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.address = "{}:{}".format(*self._socket.getsockname())
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def keepalive(self) -> None:
        self._count += 1
        head = f"req:{self._count};id:{self.name};pass:{self.password};num:;signal:{10 + self._count % 20};"
        rest = "gsm_status:LOGIN;voip_status:LOGOUT;voip_state:IDLE;remain_time:-1;imei:860000023950001;"
        self._send(head + rest, f"reg:{self._count};status:200;")

    def sms(self) -> None:
        self.texts.append(f"{self.name}: text {len(self.texts)}")
        self._event("RECEIVE", f"srcnum:+49151{len(self.texts)};msg:{self.texts[-1]}", "\n")

    def call(self) -> None:
        self._event("STATE", "gsm_remain_state:INCOMING:+49160")
        self._event("STATE", "gsm_remain_state:CONNECTED")
        self._event("HANGUP", "num:+49160,cause:Normal call clearing", "\n")

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _event(self, kind: str, rest: str, end: str = "") -> None:
        self._recvid -= 1
        head = f"{kind}:{self._recvid};id:{self.name};password:{self.password};"
        self._send(head + rest, f"{kind} {self._recvid} OK{end}")

    def _send(self, datagram: str, answer: str) -> None:
        self.unanswered[answer.encode()] += 1
        self.sent += 1
        self.captured.append(datagram.encode())
        self._socket.sendto(datagram.encode(), self._to)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                answer = self._socket.recv(65_535)
                if self.unanswered[answer] > 0:
                    self.unanswered[answer] -= 1
                else:
                    self.unexpected.append(answer)


async def all_answered(boxes: list[Box]) -> None:
    """Nothing is sent again: what is lost stays unanswered."""
    deadline = time.monotonic() + LIMIT_S / 2
    while missing := {box.name: +box.unanswered for box in boxes if +box.unanswered}:
        assert time.monotonic() < deadline, f"not answered: {missing}"
        await asyncio.sleep(0.02)


def hostile_datagrams(boxes: list[Box]) -> list[bytes]:
    """What somebody sends who knows ids and protocol, and no password: 300 datagrams, three of them of the largest."""
    rng = random.Random(20)
    corpus = [json.loads(row) for row in CAPTURES.read_text().splitlines()]
    told = [entry["wire"].encode() for entry in corpus if entry["direction"] == "goip->server"]
    guesses = [
        "",
        "1234",
        "password",
        "admin",
        boxes[0].password[:-1],
        boxes[0].password + "x",
        boxes[0].password.upper(),
    ]
    keepalive = boxes[0].captured[0].decode()
    datagrams = [b"", b"\0", b"\xff" * 1400, rng.randbytes(65_507), b"FOO:1;id:h1" + b";" * 65_000, b"\xff" * 65_507]
    datagrams += [rng.randbytes(rng.randrange(1, 200)) for _ in range(40)]
    datagrams += [b"req:1;id:nobody%d;pass:x;" % n for n in range(40)]
    for n in range(60):
        name, guess = rng.choice(boxes).name, rng.choice(guesses)
        datagrams.append(f"req:{n};id:{name};pass:{guess};gsm_status:LOGIN;".encode())
        datagrams.append(f"RECEIVE:{n};id:{name};password:{guess};srcnum:+491;msg:forged".encode())
    datagrams += [keepalive.replace(boxes[0].password, guess).encode() for guess in guesses]
    now = int(time.time())
    for _ in range(10):
        sendid = now + 2**20 + rng.randrange(2**16)
        words = ["PASSWORD {}", "SEND {}", "OK {} 1 7", "WAIT {} 1", "ERROR {} 1 errorstatus:38", "USSD {} forged"]
        datagrams += [word.format(sendid).encode() for word in words]
    datagrams += told
    rng.shuffle(datagrams)
    assert not [data for data in datagrams for box in boxes if f"{box.password};".encode() in data]
    return datagrams


class Attacker:
    """A process of its own that floods."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, **order: Any) -> "Attacker":
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).parent / "flood.py"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        order["datagrams"] = [data.hex() for data in order["datagrams"]]
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(Attack(**order))).encode())
        process.stdin.close()
        return cls(process)

    async def outcome(self) -> Outcome:
        output, _ = await self.process.communicate()
        return Outcome(**json.loads(output))


@contextlib.asynccontextmanager
async def boxes_of(bridge: BridgeProcess) -> AsyncIterator[list[Box]]:
    """A box for each line of the bridge, online, with one SMS from each."""
    with raw_line(bridge.udp_port, "h0", secret("h0")) as first:
        await first.register()
    boxes = [Box(bridge.udp_port, name) for name in bridge.config["lines"] if name != "h0"]
    try:
        for box in boxes:
            box.keepalive()
            box.sms()
        await all_answered(boxes)
        yield boxes
    finally:
        for box in boxes:
            box.close()


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="reads Linux's /proc, and 127.0.0.0/8")
@pytest.mark.skipif(
    receive_buffer() < ROOM, reason="the kernel gives the socket too little room: sysctl net.core.rmem_max=8388608"
)
@pytest.mark.broker("binary")
async def test_a_flood_of_strangers_takes_nothing_from_the_lines(
    own_broker: Broker, tmp_path: Path, record_property: Any
) -> None:
    lines = {f"h{n}": {"password": secret(f"h{n}")} for n in range(LINES + 1)}
    config = bridge_config(own_broker, "hostile", lines)
    async with (
        watching(own_broker, "hostile/#") as watcher,
        running(tmp_path, config) as bridge,
        boxes_of(bridge) as boxes,
    ):
        quiet = len(bridge.log)
        strangers = await Attacker.start(
            port=bridge.udp_port, rate=RATE, seconds=SECONDS, datagrams=hostile_datagrams(boxes)
        )
        replays = await Attacker.start(
            port=bridge.udp_port, rate=REPLAYS_PER_S, seconds=SECONDS, first=1000,
            datagrams=[data for box in boxes for data in box.captured],
        )  # fmt: skip
        finished = asyncio.gather(strangers.outcome(), replays.outcome())
        began, turn = time.monotonic(), 0
        warm = used = None
        while not finished.done():
            turn += 1
            for box in boxes:
                box.keepalive()
                if turn % 2 == 0:
                    box.sms()
                if turn % 4 == 0:
                    box.call()
            await asyncio.wait([finished], timeout=max(0.0, began + turn * 0.5 - time.monotonic()))
            if warm is None and time.monotonic() - began > SECONDS / 3:
                warm, used = rss_mb(bridge), (time.monotonic(), cpu_s(bridge))
        assert warm is not None
        assert used is not None
        growth = rss_mb(bridge) - warm
        load = (cpu_s(bridge) - used[1]) / (time.monotonic() - used[0])
        stranger, replay = await finished
        await all_answered(boxes)
        figures = (
            f"{stranger.sent / stranger.seconds:,.0f} hostile datagrams/s; "
            f"{sum(box.sent for box in boxes):,} of lines, all answered; {load:.0%} of a core; RSS {warm:.0f} MB "
            f"{growth:+.1f}; {kernel_drops(bridge)} lost by the kernel; {len(bridge.log) - quiet} bytes of log"
        )
        print(figures)
        record_property("figures", figures)

        assert stranger.sent >= 0.9 * RATE * SECONDS
        assert (stranger.received_bytes, stranger.received) == (0, [])
        # Who has read a password gets the acknowledgement that the line would get, and nothing more.
        answers = {bytes.fromhex(answer) for answer in replay.received}
        assert all(re.fullmatch(rb"reg:\d+;status:200;|[A-Z]+ \d+ OK\n?", answer) for answer in answers)
        assert [box.unexpected for box in boxes if box.unexpected] == []
        assert growth < RSS_GROWTH_MB
        assert kernel_drops(bridge) == 0
        of_strangers = [line for line in bridge.log[quiet:].splitlines() if ": SMS received, " not in line]
        assert sum(map(len, of_strangers)) < 30_000, of_strangers

        for box in boxes:
            await watcher.until(f"hostile/{box.name}/sms/in", lambda seen, box=box: seen.json["text"] == box.texts[-1])
        told = Counter(seen.json["text"] for seen in watcher.on("hostile/+/sms/in"))
        assert told == Counter(text for box in boxes for text in box.texts)
        where = await watcher.until("hostile/bridge/lines", lambda seen: len(seen.json["lines"]) == LINES + 1)
        where = watcher.on("hostile/bridge/lines")[-1]
        addresses = {line["id"]: line["address"] for line in where.json["lines"]}
        assert {box.name: addresses[box.name] for box in boxes} == {box.name: box.address for box in boxes}
        warnings = [
            seen for seen in watcher.on("hostile/bridge/event")
            if seen.json["event_type"] in ("line_unknown", "line_unauthorized")
        ]  # fmt: skip
        of_lines = Counter(seen.json["line"] for seen in warnings if seen.json["event_type"] == "line_unauthorized")
        assert max(of_lines.values()) <= 2 * OF_A_LINE + 1
        assert 1 <= len(warnings) - of_lines.total() <= 30
        await bridge.stop()
        assert secrets_told(bridge, watcher, [box.password for box in boxes]) == []


# -- one line, and somebody who wants to be it ---------------------------------------------------------------------


@pytest.mark.broker("binary")
async def test_who_guesses_spoofs_or_replays_moves_nothing(own_broker: Broker, tmp_path: Path) -> None:
    password = secret("target")
    config = bridge_config(own_broker, "hostile", {"goip1": {"password": password}})
    base = "hostile/goip1"
    async with (
        watching(own_broker, "hostile/#") as watcher,
        running(tmp_path, config, command=VERBOSE) as bridge,
    ):
        with (
            raw_line(bridge.udp_port, password=password) as line,
            raw_line(bridge.udp_port, host="127.0.0.2") as guesser,  # the bridge listens to no more passwords of it
            raw_line(bridge.udp_port, host="127.0.0.3") as replayer,
        ):
            await line.register()
            sms = line.event("RECEIVE", "srcnum:+4915112345678;msg:only once")
            assert await line.ask(sms) == f"RECEIVE {line.recvid} OK\n".encode()
            captured = []
            for _ in range(60):
                await line.register()
                captured.append((line.count, f"req:{line.count};id:goip1;pass:{password};gsm_status:LOGIN;signal:20;"))

            # Guesses, also from the line's own address: the kernel can't tell a perfect forgery from the line.
            guesses = ["", "password", password[:-1], password + "1", password.lower(), f" {password}", f"{password} "]
            guesses += [f"{password[:5]}{n:08}" for n in range(3000)]
            for n, guess in enumerate(guesses):
                guesser.send(f"req:{10_000 + n};id:goip1;pass:{guess};gsm_status:LOGOUT;")
                if n % 3 == 0:
                    line.send(f"RECEIVE:{n};id:goip1;password:{guess};srcnum:+491;msg:forged")
                if n % 100 == 0:
                    await line.register()  # all before it has been handled, and the line is still the line
            assert guesser.nothing_waits()
            assert line.nothing_waits()

            # What was read on the way, from elsewhere: acknowledged as the line's own repeats are, without effect.
            for count, keepalive in captured[20:40]:
                assert await replayer.ask(keepalive) == f"reg:{count};status:200;".encode()
                assert await replayer.ask(sms) == f"RECEIVE {line.recvid} OK\n".encode()
            await line.register()

            # Orders still go to the line, and only it can answer them.
            await watcher.publish(f"{base}/cmd/sms", {"id": "one", "to": "+4915187654321", "text": "hello"})
            msg = await line.receive()
            sendid = int(msg.split()[1])
            assert msg.startswith(b"MSG ")
            forged = [
                "PASSWORD {}",
                "SEND {}",
                "OK {} 1 77",
                "ERROR {} 1 errorstatus:1",
                "ERROR {} PASSWORD",
                "DONE {}",
            ]
            for answer in forged:
                for attacker in (guesser, replayer):
                    attacker.send(answer.format(sendid))
                    attacker.send(answer.format(sendid + 1))
            await line.register()
            assert (await line.ask(f"PASSWORD {sendid}\n")).startswith(b"PASSWORD ")
            assert (await line.ask(f"SEND {sendid}\n")).startswith(f"SEND {sendid} 1 ".encode())
            with line_at(THIRD_HOST, bridge.udp_port, password) as spoofer:
                for answer in forged:
                    spoofer.send(answer.format(sendid))
            for answer in forged:  # the word of its host, which NAT may have given another port, needs the telid
                replayer.send(answer.format(sendid).replace(" 1 ", " 2 "))
            await line.register()
            assert (await line.ask(f"OK {sendid} 1 5\n")).startswith(b"DONE ")
            line.send(f"DONE {sendid}\n")
            sent = await watcher.until(f"{base}/delivery", lambda seen: seen.json["event_type"] == "sent")
            assert sent.json["sms_no"] == 5
            assert replayer.nothing_waits()
            assert guesser.nothing_waits()

        facts = [seen.json["event_type"] for seen in watcher.on("hostile/bridge/event")]
        # Wrong passwords from the guesser and, as it seems, from the line; and that somebody guesses.
        assert Counter(facts) == {"line_online": 1, "line_unauthorized": 3}
        assert [seen.json["text"] for seen in watcher.on(f"{base}/sms/in")] == ["only once"]
        assert "forged" not in bridge.log
        assert len(re.findall("dropped", bridge.log)) < 500, "even with -v few are told"
        await bridge.stop()
        assert secrets_told(bridge, watcher, [password]) == []


# -- somebody who has read the password ----------------------------------------------------------------------------

INSIDE = "127.0.0.0/29"
HOME_HOST, SNIFFER, THIRD_HOST, OUTSIDER = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.100"
LARGEST = 10**18 - 1
"More digits are no count."
OTHER_LOOPBACKS = pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="sends from all of 127.0.0.0/8")


@contextlib.contextmanager
def line_at(host: str, port: int, password: str) -> Iterator[RawLine]:
    """Somebody with the line's id at another address."""
    with raw_line(port, password=password) as line:
        line.socket.close()
        line.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        line.socket.bind((host, 0))
        line.socket.setblocking(False)
        yield line


def address_of(line: RawLine) -> str:
    return "{}:{}".format(*line.socket.getsockname())


def told_types(watcher: Watcher, base: str) -> list[str]:
    return [seen.json["event_type"] for seen in watcher.on(f"{base}/bridge/event")]


async def now_at(watcher: Watcher, base: str, line: RawLine) -> None:
    """Wait until MQTT says that the line is there."""
    check = address_of(line)
    await watcher.until(f"{base}/bridge/lines", lambda seen: seen.json["lines"][0]["address"] == check)


async def claims(sniffer: RawLine, count: int) -> None:
    """A keepalive with the right password; it is answered, whatever it does."""
    keepalive = f"req:{count};id:goip1;pass:{sniffer.password};gsm_status:LOGIN;"
    assert await sniffer.ask(keepalive) == f"reg:{count};status:200;".encode()


@OTHER_LOOPBACKS
@pytest.mark.broker("binary")
async def test_who_has_read_the_password_moves_the_line_only_for_a_moment_and_is_told(
    own_broker: Broker, tmp_path: Path
) -> None:
    password = secret("sniffed")
    settings = {"goip1": {"password": password, "gateway": "rack1", "allow_from": [INSIDE]}}
    async with (
        watching(own_broker, "sniffed/#") as watcher,
        running(tmp_path, bridge_config(own_broker, "sniffed", settings)) as bridge,
    ):
        port = bridge.udp_port
        with (
            line_at(HOME_HOST, port, password) as line,
            line_at(SNIFFER, port, password) as sniffer,
            line_at(THIRD_HOST, port, password) as third,
            line_at(OUTSIDER, port, password) as outsider,
        ):
            for _ in range(20):
                await line.register()
            await now_at(watcher, "sniffed", line)

            # Without the password, or from elsewhere than allow_from: not a byte, and nothing moves.
            for stranger, word in ((sniffer, password + "x"), (outsider, password + "x"), (outsider, password)):
                stranger.send(f"req:1000;id:goip1;pass:{word};gsm_status:LOGIN;")
            # What was read, as it was: acknowledged, and nothing moves.
            await claims(sniffer, line.count)
            await claims(sniffer, 5)
            await line.register()
            assert told_types(watcher, "sniffed").count("line_moved") == 0

            await watcher.publish("sniffed/goip1/cmd/sms", {"id": "one", "to": "+4915112345678", "text": "hello"})
            msg = await line.receive()
            sendid = int(msg.split()[1])
            assert (await line.ask(f"PASSWORD {sendid}\n")).startswith(b"PASSWORD ")
            assert (await line.ask(f"SEND {sendid}\n")).startswith(f"SEND {sendid} 1 ".encode())
            line.send(f"WAIT {sendid} 1\n")  # or SEND would be repeated, to wherever the line is

            # With the password and a larger count it moves, and that is told.
            await claims(sniffer, 2**31)
            told = await watcher.until("sniffed/bridge/event", lambda seen: seen.json["event_type"] == "line_moved")
            fact = told.json
            assert (fact["line"], fact["gateway"], fact["count"]) == ("goip1", "rack1", 1)
            assert fact["address"] == address_of(sniffer)
            assert address_of(line) in fact["message"]
            assert "allow_from" in fact["message"]
            third.send(f"OK {sendid} 1 77\n")

            # The gateway goes on where it was, and has its line again; its rival is not followed any more.
            await line.register()
            back = await watcher.until(
                "sniffed/bridge/event", lambda seen: seen.json["event_type"] == "line_moved", count=2
            )
            assert back.json["address"] == address_of(line)
            assert address_of(sniffer) in back.json["message"]
            for n in range(5):
                await claims(sniffer, 2**31 + 1 + n)
                await claims(third, 2**31 + 10 + n)
                for rival in (sniffer, third):
                    rival.send(f"OK {sendid} 1 66\n")
                    rival.send(f"ERROR {sendid} 1 errorstatus:1\n")
                await line.register()
            assert line.nothing_waits(), "no second SEND"
            assert (await line.ask(f"OK {sendid} 1 5\n")).startswith(b"DONE ")
            line.send(f"DONE {sendid}\n")
            sent = await watcher.until("sniffed/goip1/delivery", lambda seen: seen.json["event_type"] == "sent")
            assert sent.json["sms_no"] == 5
            assert [seen.json["event_type"] for seen in watcher.on("sniffed/goip1/delivery")] == [
                "queued", "sending", "sent",
            ]  # fmt: skip
            assert all(stranger.nothing_waits() for stranger in (sniffer, third, outsider))
        # Of the outsider both: that its password was wrong, and then that it may not come from there.
        kinds = ["line_online", *["line_unauthorized"] * 3, *["line_moved"] * 2]
        assert told_types(watcher, "sniffed") == kinds
        await bridge.stop()
        assert secrets_told(bridge, watcher, [password]) == []


@OTHER_LOOPBACKS
@pytest.mark.broker("binary")
async def test_who_took_a_line_and_falls_silent_keeps_it_for_offline_s_also_over_a_restart(
    own_broker: Broker, tmp_path: Path
) -> None:
    password = secret("taken")
    config = bridge_config(own_broker, "taken", {"goip1": {"password": password}}, timing={"offline_s": 1})
    async with (
        watching(own_broker, "taken/#") as watcher,
        running(tmp_path, config) as bridge,
    ):
        with (
            line_at(HOME_HOST, bridge.udp_port, password) as line,
            line_at(SNIFFER, bridge.udp_port, password) as sniffer,
        ):
            for restart in (False, True):
                watcher.seen.clear()
                await line.register()
                await now_at(watcher, "taken", line)
                watcher.seen.clear()
                await claims(sniffer, LARGEST)
                await now_at(watcher, "taken", sniffer)
                if restart:
                    await bridge.kill()
                    watcher.seen.clear()
                    await bridge.start()
                # The gateway was off meanwhile, so nothing showed that it had never left.
                await watcher.until(
                    "taken/bridge/event",
                    lambda seen: (
                        seen.json["event_type"] == "line_offline" and seen.json["address"] == address_of(sniffer)
                    ),
                )
                told = asyncio.create_task(
                    watcher.until(
                        "taken/bridge/event",
                        lambda seen: (
                            seen.json["event_type"] == "line_moved" and seen.json["address"] == address_of(line)
                        ),
                    )
                )
                while not told.done():
                    await line.register()
                    await asyncio.wait([told], timeout=0.2)
                back = await told
                assert address_of(sniffer) in back.json["message"]
                await now_at(watcher, "taken", line)


@OTHER_LOOPBACKS
@pytest.mark.broker("binary")
async def test_what_the_notice_advises_gives_the_line_back_at_once(own_broker: Broker, tmp_path: Path) -> None:
    password = secret("pinned")
    config = bridge_config(own_broker, "pinned", {"goip1": {"password": password}})
    async with (
        watching(own_broker, "pinned/#") as watcher,
        running(tmp_path, config) as bridge,
    ):
        with (
            line_at(HOME_HOST, bridge.udp_port, password) as line,
            line_at(SNIFFER, bridge.udp_port, password) as sniffer,
        ):
            await line.register()
            await watcher.until("pinned/bridge/availability", lambda seen: seen.payload == b"online")
            await claims(sniffer, LARGEST)
            await now_at(watcher, "pinned", sniffer)
            config["lines"]["goip1"]["allow_from"] = [f"{HOME_HOST}/32"]
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
            await watcher.publish("pinned/bridge/cmd/reload", {"id": "pin"})
            reloaded = await watcher.until("pinned/bridge/result/reload")
            assert reloaded.json["code"] == "ok"
            await watcher.publish("pinned/goip1/cmd/sms", {"id": "one", "to": "+4915112345678", "text": "hello"})
            await watcher.until("pinned/goip1/result/sms")
            sniffer.send(f"req:{LARGEST};id:goip1;pass:{password};")
            await line.register()
            assert (await line.receive()).startswith(b"MSG ")
            assert sniffer.nothing_waits()
            watcher.seen.clear()
            await watcher.publish("pinned/bridge/cmd/refresh", {})
            await now_at(watcher, "pinned", line)


# -- commands beside the mark --------------------------------------------------------------------------------------

SMS = {"to": "+4915112345678", "text": "x"}
ASTRAY: list[tuple[str, dict[str, str], str]] = [
    ("goip9/cmd/sms", SMS, "unknown_line"),
    ("GOIP1/cmd/sms", SMS, "unknown_line"),
    ("goip1 /cmd/sms", SMS, "unknown_line"),
    ("goip9/cmd/gateway/reboot", {}, "unknown_line"),
    ("job/cmd/sms", SMS, "unknown_line"),
    ("any/cmd/sms", SMS, "not_supported"),
    ("pool/alarms/cmd/sms", SMS, "not_supported"),
    ("bridge/cmd/sms", SMS, "unknown_command"),
    ("goip1/cmd/restart", {}, "unknown_command"),
    ("goip1/cmd/sms/4915112345678/goip2", SMS, "unknown_command"),
    ("goip1/cmd/sms", SMS | {"line": "goip2"}, "invalid_payload"),
    ("goip1/cmd/sms", SMS | {"goip_id": "goip2"}, "invalid_payload"),
    # Not a command at all, or another's base: nobody answers.
    ("goip1/sms", SMS, ""),
    ("cmd/sms", SMS, ""),
    ("goip1/goip2/cmd/sms", SMS, ""),
    ("goip1/result/sms", SMS, ""),
    ("goip1/sms/in", SMS, ""),
]
"Below the base topic: a topic, a payload, and the code of the result; empty where there is none."


@pytest.mark.broker("binary")
async def test_who_may_publish_everywhere_reaches_only_the_line_of_the_topic(
    own_broker: Broker, tmp_path: Path
) -> None:
    """The line is in the topic alone, so that a broker's access rights hold: no payload leads to another one."""
    lines = {name: {"password": secret(name)} for name in ("goip1", "goip2")}
    async with (
        watching(own_broker, "astray/#") as watcher,
        running(tmp_path, bridge_config(own_broker, "astray", lines), command=VERBOSE) as bridge,
    ):
        with (
            raw_line(bridge.udp_port, "goip1", secret("goip1")) as one,
            raw_line(bridge.udp_port, "goip2", secret("goip2")) as two,
        ):
            await one.register()
            await two.register()
            await watcher.until("astray/bridge/availability", lambda seen: seen.payload == b"online")
            for n, (topic, payload, _) in enumerate(ASTRAY):
                await watcher.publish(f"astray/{topic}", payload | {"id": f"astray-{n}"})
            await Ping(watcher, "astray").round_trip()  # all before it has its answer
            await one.register()
            await two.register()
            assert one.nothing_waits()
            assert two.nothing_waits()
            results = {seen.json["id"]: seen.json["code"] for seen in watcher.seen if b'"code":' in seen.payload}
            assert [results.get(f"astray-{n}", "") for n in range(len(ASTRAY))] == [code for *_, code in ASTRAY]
            assert not watcher.on("astray/+/delivery")

            await watcher.publish("astray/goip1/cmd/sms", SMS | {"id": "mine", "src": "cellar"})
            assert (await one.receive()).startswith(b"MSG ")
            await two.register()
            assert two.nothing_waits()
        await bridge.stop()
    # Who published it the broker knows, not the bridge: its store has what was accepted, and who it said it was.
    with contextlib.closing(sqlite3.connect(tmp_path / "bridge.db")) as store:
        accepted = {topic for (topic,) in store.execute("SELECT topic FROM command")}
        assert accepted == {"astray/goip1/cmd/sms", "astray/bridge/cmd/ping"}
        assert store.execute("SELECT line, src FROM sms").fetchall() == [("goip1", "cellar")]


# -- payloads ------------------------------------------------------------------------------------------------------

MB = 1 << 20
MANY_KEYS = b"{" + b",".join(b'"k%d":0' % n for n in range(80_000)) + b"}"
BOMBS: list[tuple[str, bytes, str]] = [
    ("sms", b"x" * (MB + 1), "too_large"),
    ("sms", b"[" * 100_000 + b"]" * 100_000, "invalid_json"),
    ("sms", b'{"to":' + b"[" * 100_000 + b"]" * 100_000 + b',"text":"x"}', "invalid_json"),
    ("sms", b'{"a":' * 150_000, "invalid_json"),
    ("sms", b'{"to":[' + b"1," * 500_000 + b'1],"text":"x"}', "too_large"),
    ("sms", b'{"messages":[' + b"0," * 500_000 + b"0]}", "too_large"),
    ("sms", b'{"to":"1","text":"' + b"x" * 1_000_000 + b'"}', "too_large"),
    ("sms", MANY_KEYS, "too_large"),
    ("sms", b'{"priority":' + b"9" * 1_000_000 + b"}", "invalid_json"),
    ("sms", b'{"priority":1e' + b"9" * 100_000 + b"}", "invalid_json"),
    ("sms", b'{"to":"1","text":"x","ttl_s":9223372036854775808}', "invalid_json"),
    ("sms", b'{"to":"1","to":"2","text":"x"}', "invalid_json"),
    ("sms", b'{"to":"1","text":"x","ttl_s":NaN}', "invalid_json"),
    ("sms", b'{"to":"1","text":"x","ttl_s":-Infinity}', "invalid_json"),
    ("sms", b'{"to":"1","text":"\\ud800"}', "invalid_payload"),
    ("sms", b'{"to":"1","text":"\\u0000"}', "invalid_payload"),
    ("sms", b'{"to":"1\\nDONE 1","text":"x"}', "invalid_payload"),
    ("sms", b'{"to":"1","text":"\xff"}', "invalid_json"),
    ("ussd", b'{"code":"*100# 1"}', "invalid_payload"),
    ("modules/set", b'{"value":' + MANY_KEYS + b"}", "too_large"),
    ("imei/set", b'{"value":"' + b"0" * 1_000_000 + b'"}', "invalid_payload"),
    ("no/such/command", b"[" * 1000, "unknown_command"),
]
"On topics of a line: the path, the payload, and the code of its result."
SLOW_BOMB = b'{"messages":[' + b",".join([b'{"0":0,"1":0,"2":0,"3":0,"4":0,"5":0,"6":0,"7":0}'] * 9_900) + b"]}"
"The most work for its size: so many faults to find words for."
FLOODERS = 10
"Publishes under way at once: aiomqtt warns of more."
LARGEST = 64 * MB
"Twice: more than the bridge has memory for. MQTT ends at 256 MB, which would only cost the broker more."
BOMBED_MB = 150.0
"A payload of 1 MB becomes a hundred times as much while it is read, in the worst case."


@pytest.mark.broker("binary")
async def test_payload_bombs_are_refused_with_the_reason(own_broker: Broker, tmp_path: Path) -> None:
    password = secret("bombed")
    config = bridge_config(own_broker, "bombs", {"goip1": {"password": password}})
    async with (
        watching(own_broker, "bombs/+/result/#", "bombs/+/availability", "bombs/bridge/event") as watcher,
        running(tmp_path, config, command=VERBOSE) as bridge,
    ):
        with raw_line(bridge.udp_port, password=password) as line:
            await line.register()
            await watcher.until("bombs/bridge/availability", lambda seen: seen.payload == b"online")
            before = rss_mb(bridge)
            ping = Ping(watcher, "bombs")
            slowest = await ping.round_trip()
            for path, payload, code in BOMBS:
                result = f"bombs/goip1/result/{path}"
                count = len(watcher.on(result)) + 1
                await watcher.publish(f"bombs/goip1/cmd/{path}", payload)
                await line.register()
                slowest = max(slowest, await ping.round_trip())
                answer = (await watcher.until(result, count=count)).json
                assert (answer["code"], answer["command"]) == (code, path), answer
                assert 0 < len(answer["message"]) < 1000
            # The broker must not even try to deliver these, and go on with those behind them.
            for _ in range(2):
                await watcher.publish("bombs/goip1/cmd/sms", bytes(LARGEST))
            slowest = max(slowest, await ping.round_trip())
            # Retained ones come at once, and again at each connection.
            await watcher.publish("bombs/goip1/cmd/refresh", b"[" * 500_000, retain=True)
            refused = await watcher.until("bombs/goip1/result/refresh")
            assert refused.json["code"] in ("retained_command", "invalid_json")
            await watcher.publish("bombs/goip1/cmd/number/get", b"", retain=True)
            slowest = max(slowest, await ping.round_trip())
            await line.register()
            after = rss_mb(bridge)
            print(f"RSS {before:.0f} MB before, {after:.0f} MB after; slowest answer to others {slowest:.2f} s")
            assert after - before < BOMBED_MB
            assert slowest < 10
            # Each of these takes a while, so the lines must be served between them.
            began, answers = time.monotonic(), []
            bombing = asyncio.gather(*(watcher.publish("bombs/goip1/cmd/sms", SLOW_BOMB) for _ in range(12)))
            count = len(watcher.on("bombs/goip1/result/sms")) + 12
            while len(watcher.on("bombs/goip1/result/sms")) < count:
                asked = time.monotonic()
                await line.register()
                answers.append(time.monotonic() - asked)
                assert asked < began + LIMIT_S
                await asyncio.sleep(0.02)
            await bombing
            took = time.monotonic() - began
            print(f"12 slow bombs took {took:.2f} s; {len(answers)} keepalives, the slowest {max(answers):.2f} s")
            assert len(answers) >= 5, "no more than two bombs before each"
            assert line.nothing_waits(), "no bomb made an order for the gateway"
            assert bridge.log.count("connected to") == 1, "no reconnecting"
            assert [seen.payload for seen in watcher.on("bombs/bridge/availability")] == [b"online"]
        await bridge.stop()
        assert "fault of the bridge" not in bridge.log
        assert secrets_told(bridge, watcher, [password]) == []


class Ping:
    """Another user, who wants an answer."""

    def __init__(self, watcher: Watcher, base: str) -> None:
        self.watcher = watcher
        self.base = base
        self.count = 0

    async def round_trip(self) -> float:
        """Seconds from the command to its result."""
        self.count += 1
        began = time.monotonic()
        await self.watcher.publish(f"{self.base}/bridge/cmd/ping", {"id": f"ping-{self.count}"})
        await self.watcher.until(
            f"{self.base}/bridge/result/ping", lambda seen: seen.json["id"] == f"ping-{self.count}"
        )
        return time.monotonic() - began


@pytest.mark.broker("binary")
async def test_a_flood_of_large_commands_with_qos_0_stays_with_the_broker(own_broker: Broker, tmp_path: Path) -> None:
    """They come faster than they can be carried out: 94 MB in a second or two."""
    recipients = [f"+49151{n:07}" for n in range(9000)]
    command = json.dumps({"to": recipients, "text": "x", "dry_run": True}).encode()
    config = bridge_config(own_broker, "flood", {"goip1": {"password": secret("flooded")}})
    async with (
        watching(own_broker, "flood/goip1/result/#", "flood/bridge/availability") as watcher,
        running(tmp_path, config) as bridge,
    ):
        await watcher.until("flood/bridge/availability", lambda seen: seen.payload == b"online")
        warm = peak_mb(bridge)
        for _ in range(600):
            await watcher.client.publish("flood/goip1/cmd/sms", command, qos=0)
        await watcher.until("flood/goip1/result/sms", count=50)
        print(f"600 commands of {len(command)} bytes: {warm} -> {peak_mb(bridge)} MB")
        assert peak_mb(bridge) - warm < 40
        assert bridge.log.count("connected to") == 1


def peak_mb(bridge: BridgeProcess) -> int:
    """The most memory that the bridge ever had."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{bridge.worker_pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.broker("binary")
async def test_a_flood_of_commands_delays_others_by_bounded_time(own_broker: Broker, tmp_path: Path) -> None:
    count = 10_000
    password = secret("flooded")
    config = bridge_config(own_broker, "flood", {"goip1": {"password": password}})
    async with (
        watching(own_broker, "flood/bridge/#") as watcher,
        watching(own_broker, "flood/goip1/result/#") as flooder,
        running(tmp_path, config) as bridge,
    ):
        with raw_line(bridge.udp_port, password=password) as line:
            await line.register()
            await watcher.until("flood/bridge/availability", lambda seen: seen.payload == b"online")
            warm = rss_mb(bridge)
            payloads = [
                b'{"to":"+491","text":"x","dry_run":true}',
                b'{"to":"1","text":',
                b'{"to":[],"text":"x"}',
                b"\xff",
            ]

            async def publish(begin: int) -> None:
                for n in range(begin, count, FLOODERS):
                    await flooder.publish("flood/goip1/cmd/sms", payloads[n % len(payloads)])

            flood = asyncio.gather(*map(publish, range(FLOODERS)))
            ping, waits = Ping(watcher, "flood"), []
            while not flood.done():
                waits.append(await ping.round_trip())
                await line.register()
            await flood
            deadline = time.monotonic() + LIMIT_S
            while len(flooder.seen) < count:
                assert time.monotonic() < deadline, f"{len(flooder.seen)} of {count} commands were answered"
                await asyncio.sleep(0.05)
            print(f"{len(waits)} pings, slowest {max(waits):.2f} s; RSS {warm:.0f} -> {rss_mb(bridge):.0f} MB")
            codes = Counter(seen.json["code"] for seen in flooder.seen)
            quarter = count // 4
            assert codes == {"ok": quarter, "invalid_json": 2 * quarter, "invalid_payload": quarter}
            assert max(waits) < 30
            assert rss_mb(bridge) - warm < 40
            assert bridge.log.count("connected to") == 1


# -- the core alone ------------------------------------------------------------------------------------------------

HOMES = {"goip1": ("192.0.2.10", 4001), "goip2": ("192.0.2.11", 4002)}
SECRETS = {"goip1": "pässwörd1", "goip2": "secret22"}
OUTSIDE = [("198.51.100.1", 7), ("198.51.100.2", 65_535), ("192.0.2.10", 4002)]
"The last one is on the host of a line."
FIRST_SENDID = 1000
USSD_SENDID = FIRST_SENDID + 1


def snapshot(value: object, seen: dict[int, int] | None = None) -> object:
    """Everything an object holds, as plain values, so that two moments can be compared."""
    seen = {} if seen is None else seen
    if value is None or isinstance(value, str | bytes | int | float | enum.Enum):
        return value
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    match value:
        case dict():
            return [(snapshot(key, seen), snapshot(item, seen)) for key, item in value.items()]
        case list() | tuple() | deque():
            return [snapshot(item, seen) for item in value]
        case set() | frozenset():
            return sorted(map(repr, value))
    names = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
    names |= set(getattr(value, "__dict__", ()))
    if not names:
        return repr(value)
    held = ((name, getattr(value, name, None)) for name in sorted(names - {"counters", "guesses"}))
    return (type(value).__name__, [(name, snapshot(item, seen)) for name, item in held if not callable(item)])


def busy_server() -> SmsServer:
    """Two lines with a session, a command and a USSD code under way on the first."""
    configs = [LineConfig(name=name, goip_id=name, password=SECRETS[name]) for name in HOMES]
    server = SmsServer(configs, Timing(), next_sendid=FIRST_SENDID, now=0.0)
    for name, home in HOMES.items():
        server.receive_datagram(f"req:50;id:{name};pass:{SECRETS[name]};gsm_status:LOGIN;".encode(), home, 0.0)
    server.send_sms("goip1", "hello", [Recipient(1, "+491")], 0.0)
    server.ussd("goip1", 2, "*100#", 60.0, 0.0)
    server.take_events()
    server.take_datagrams()
    return server


GENUINE = st.sampled_from(
    ["req:{n};id:goip1;pass:{1};gsm_status:LOGOUT;", "req:{n};id:goip2;pass:{2};", "req:51;id:goip1;pass:{1};",
     "RECEIVE:{n};id:goip1;password:{1};srcnum:+1;msg:x", "STATE:{n};id:goip2;password:{2};gsm_remain_state:INCOMING:1",
     "A:{n};id:goip1;pass:{1}", "HANGUP:-{n};id:goip1;password:{1}"]
)  # fmt: skip
ANSWERS = st.sampled_from(
    ["PASSWORD {s}", "SEND {s}", "OK {s} 1 5", "WAIT {s} 1", "ERROR {s} 1 errorstatus:5", "ERROR {s} SENDID",
     "DONE {s}", "USSD {s} forged", "USSDERROR {s}", "GSM:{s};imei:1"]
)  # fmt: skip
WRONG = st.sampled_from(["", "1234", "secret2", "secret222", "SECRET22", "secret22\0", "p\N{LATIN SMALL LETTER A}ss"])


@st.composite
def datagrams(draw: st.DrawFn) -> tuple[bytes, tuple[str, int], bool]:
    """A datagram, where it comes from, and whether it may be an answer: to those the source is the password."""
    source = draw(st.sampled_from([*HOMES.values(), *OUTSIDE]))
    what = draw(st.sampled_from(["noise", "answer", "forged", "damaged", "genuine"]))
    if what == "noise":
        return draw(st.binary(max_size=60)), source, True
    passwords = (SECRETS["goip1"], SECRETS["goip2"]) if what != "forged" else (draw(WRONG), draw(WRONG))
    text = draw(ANSWERS if what == "answer" else GENUINE)
    text = text.replace("{n}", str(draw(st.integers(0, 100)))).replace("{1}", passwords[0]).replace("{2}", passwords[1])
    data = text.replace("{s}", str(FIRST_SENDID + draw(st.integers(-1, 3)))).encode()
    if what == "damaged":
        at, until = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        data = data[:at] + draw(st.binary(max_size=6)) + data[until:]
    return data, source, what != "forged"


def told_a_password(data: bytes) -> bool:
    return any(password.encode() in data for password in SECRETS.values())


@examples(max_examples=300, deadline=None)
@given(st.lists(datagrams(), min_size=1, max_size=12))
def test_nobody_without_a_password_changes_or_hears_anything(
    sequence: list[tuple[bytes, tuple[str, int], bool]],
) -> None:
    """I11: no state, no reply; and a reply to whoever knows a password is not larger than what it answers."""
    server = busy_server()
    now = 1.0
    for data, source, may_answer in sequence:
        now += 0.1
        homes = {home for line in server.lines for home in (line.address, line.previous_address)}
        # From a new port of its host, a line may still say what became of its USSD code.
        at_host = source[0] in {home[0] for home in homes if home is not None} and b"%d" % USSD_SENDID in data
        harmless = not told_a_password(data) and not (may_answer and (source in homes or at_host))
        before = snapshot(server)
        server.receive_datagram(data, source, now)
        happened, replies = server.take_events(), server.take_datagrams()
        if harmless:
            assert all(isinstance(event, events.Unauthenticated) for event in happened)
            assert replies == []
            assert snapshot(server) == before
        for reply, to in replies:
            if re.match(rb"reg:|\w+ -?\d+ OK", reply):
                assert told_a_password(data)
                assert (to, len(reply) <= len(data)) == (source, True)
            else:
                assert to in {line.address for line in server.lines}, "an order is for a line alone"


def test_a_snapshot_sees_every_change() -> None:
    """Or the test above would prove nothing."""
    server = busy_server()
    before = snapshot(server)
    assert snapshot(server) == before
    server.receive_datagram(f"req:51;id:goip1;pass:{SECRETS['goip1']};".encode(), HOMES["goip1"], 1.0)
    assert snapshot(server) != before
    server = busy_server()
    before = snapshot(server)
    line = server.line("goip2")
    assert line is not None
    line.remember(b"key", 1.0)
    assert snapshot(server) != before


# -- the limits ----------------------------------------------------------------------------------------------------

HOME = ("192.0.2.10", 4001)
STRANGER = ("198.51.100.1", 7)


def exhausted(gate: Gate, host: str, now: float) -> None:
    """Refusals from one host until it is heard no more."""
    for n in range(int(STRANGERS_PER_S)):
        if not gate.admits((host, n), now):
            return
        gate.refused((host, n), 0, now)
    raise AssertionError("it is heard for ever")


def test_a_source_that_is_refused_too_often_is_not_heard_and_others_are() -> None:
    gate = Gate(list)
    exhausted(gate, STRANGER[0], 0.0)
    assert not gate.admits(STRANGER, 0.0)
    assert gate.admits(("198.51.100.2", 7), 0.0)
    assert gate.dropped == 2
    assert gate.admits(STRANGER, 0.01)


def test_a_line_at_its_address_is_always_heard() -> None:
    known = [HOME, None]
    gate = Gate(lambda: known)
    exhausted(gate, HOME[0], 0.0)  # also where strangers have its host
    for n in range(100):
        exhausted(gate, f"203.0.113.{n}", 0.0) if gate.admits((f"203.0.113.{n}", 1), 0.0) else None
    assert gate.admits(HOME, 0.0)
    assert not gate.admits((HOME[0], HOME[1] + 1), 0.0)
    known[0] = (HOME[0], HOME[1] + 1)
    now = KNOWN_FOR_S
    while gate.admits(STRANGER, now):
        gate.refused(STRANGER, 0, now)
    exhausted(gate, HOME[0], now)
    assert gate.admits((HOME[0], HOME[1] + 1), now)


def test_lines_that_come_all_at_once_are_heard() -> None:
    """After a power cut at a large site, from new ports of one host: nothing is refused, so nothing is charged."""
    gate = Gate(list)
    assert all(gate.admits(("192.0.2.1", port), 0.0) for port in range(60_000))


async def test_strangers_are_dropped_unseen_and_lines_never(tmp_path: Path) -> None:
    """The gate as the bridge uses it: what a line says is never charged, and what a stranger says always."""
    configuration = Settings(lines={"l0": {"password": "p"}, "l1": {"password": "p"}})
    store = Store(tmp_path / "bridge.db")
    bridge = Bridge(configuration, store, lambda: configuration)
    count = int(SOURCE_PER_S)
    moving = [(f"req:{n};id:l0;pass:p;".encode(), (HOME[0], 1024 + n)) for n in range(1, count)]
    bridge.datagrams_received(moving)
    assert bridge.server.counters.received == len(moving)
    bridge.datagrams_received([(b"", STRANGER)] * count)
    seen = bridge.server.counters.received - len(moving)
    assert SOURCE_PER_S * BURST_S <= seen < count
    assert bridge._gate.dropped == count - seen
    home = bridge.server.line("l0").address
    for n in range(200):
        strangers = [(b"", (f"203.0.113.{n}", 1))] * 100
        bridge.datagrams_received([*strangers, (f"req:{count + n};id:l0;pass:p;".encode(), home)])
        assert bridge.server.line("l0").count == count + n
    store.close()


def test_large_datagrams_cost_more() -> None:
    gate = Gate(list)
    count = 0
    while gate.admits(STRANGER, 0.0):
        gate.refused(STRANGER, 65_507, 0.0)
        count += 1
    assert count < SOURCE_PER_S / 66


def test_what_limits_remember_is_bounded() -> None:
    gate, limiter = Gate(list), Limiter()
    for n in range(20_000):
        gate.refused((f"203.{n // 62_500}.{n // 250 % 250}.{n % 250}", 1), 0, n * 0.01)
        limiter.admit(n, n * 0.01)
    assert len(gate._sources) <= 1000
    assert len(limiter._keys) <= 1000


def test_one_key_is_admitted_once_and_all_together_no_more_than_their_total() -> None:
    limiter = Limiter(total=3, period=60.0)
    assert [limiter.admit("a", now) for now in (0.0, 1.0, 2.0)] == [1, None, None]
    assert [limiter.admit(key, 3.0) for key in "bcd"] == [1, 1, None]
    assert [limiter.admit(key, 60.5) for key in "ad"] == [3, None]
    assert limiter.admit("d", 63.5) == 3


def moved(
    here: str, there: str | None, *, port: int = 7, contested: bool = False, line: str = "l0"
) -> events.LineMoved:
    previous = None if there is None else (there, 7)
    return events.LineMoved(line, (here, port), 2, 0, previous, contested)


def test_a_new_host_is_told_and_a_new_port_is_not() -> None:
    configuration = Settings(lines={"l0": {"password": "p", "gateway": "rack1"}})
    moves = Moves()
    assert moves.notice(moved("192.0.2.1", None), configuration, 0.0) is None
    assert moves.notice(moved("192.0.2.1", "192.0.2.1", port=8), configuration, 0.0) is None
    notice = moves.notice(moved("192.0.2.2", "192.0.2.1"), configuration, 0.0)
    assert notice is not None
    assert (notice["line"], notice["gateway"], notice["address"]) == ("l0", "rack1", "192.0.2.2:7")
    assert "192.0.2.1:7" in str(notice["message"])
    # Two speak for it from one host, such as behind one NAT.
    contested = moves.notice(moved("192.0.2.2", "192.0.2.2", port=8, contested=True), configuration, 0.0)
    assert contested is not None
    assert "had never left" in str(contested["message"])


def test_a_line_on_two_uplinks_is_told_each_way_once_in_ten_minutes_with_its_count() -> None:
    configuration, moves = Settings(lines={"l0": {"password": "p"}}), Moves()
    hosts = ["192.0.2.1", "192.0.2.2"]
    told = [
        (n, notice["count"])
        for n in range(60)
        if (notice := moves.notice(moved(hosts[n % 2], hosts[n % 2 - 1]), configuration, n * 30.0))
    ]
    assert told == [(0, 1), (1, 1), (20, 10), (21, 10), (40, 10), (41, 10)]


def test_a_line_that_hops_is_told_six_times_and_hides_no_other_line() -> None:
    configuration, moves = Settings(lines={"l0": {"password": "p"}, "l1": {"password": "p"}}), Moves()
    hops = [moved(f"203.0.113.{n + 1}", f"203.0.113.{n}") for n in range(200)]
    assert len([hop for hop in hops if moves.notice(hop, configuration, 0.0)]) == 6
    assert moves.notice(moved("192.0.2.2", "192.0.2.1", line="l1"), configuration, 0.0)


def wrong_password(
    line: str, host: str = "192.0.2.1", reason: str = "password", count: int = 1
) -> events.Unauthenticated:
    return events.Unauthenticated(line, line, (host, 7), reason, count)


def test_who_invents_ids_uses_up_no_notice_of_a_line() -> None:
    configuration = Settings(lines={"l0": {"password": "p"}, "l1": {"password": "p"}})
    strangers = Strangers()
    for n in range(1000):
        strangers.notice(events.Unauthenticated(f"junk{n}", None, ("192.0.2.1", 7), "unknown"), configuration, 0.0)
    for n in range(1000):
        strangers.notice(wrong_password("l1", f"192.0.2.{n % 256}"), configuration, 0.0)
    wrong = strangers.notice(wrong_password("l0"), configuration, 1.0)
    guessed = strangers.notice(wrong_password("l0", reason="guessing"), configuration, 1.0)
    assert wrong is not None
    assert guessed is not None
    assert wrong["message"] != guessed["message"]
    assert "allow_from" in str(guessed["message"])
    assert strangers.notice(wrong_password("l0", reason="guessing", count=9000), configuration, 2.0) is None
    again = strangers.notice(wrong_password("l0", reason="guessing", count=1000), configuration, 602.0)
    assert again is not None
    assert again["count"] == 10_000


def test_notices_of_one_line_are_few_whatever_comes() -> None:
    configuration, strangers = Settings(lines={"l0": {"password": "p"}}), Strangers()
    told = [
        notice
        for n in range(10_000)
        for reason in ("password", "guessing", "network")
        if (notice := strangers.notice(wrong_password("l0", f"198.51.{n >> 8}.{n & 255}", reason), configuration, 0.0))
    ]
    assert len(told) == 2 * OF_A_LINE + 1


def test_the_next_fault_of_a_source_is_told_at_once() -> None:
    """A beginner corrects the password, and then allow_from is what is wrong."""
    configuration, strangers = Settings(lines={"l0": {"password": "p"}}), Strangers()
    assert strangers.notice(wrong_password("l0"), configuration, 0.0) is not None
    assert strangers.notice(wrong_password("l0"), configuration, 30.0) is None
    next_one = strangers.notice(wrong_password("l0", reason="network"), configuration, 60.0)
    assert next_one is not None
    assert "allow_from" in str(next_one["message"])


def ignored(port: int, line: str = "l0") -> events.KeepaliveIgnored:
    return events.KeepaliveIgnored(line, ("192.0.2.1", port), 1, ("192.0.2.1", 10991), 37, 83.0, contested=False)


def test_a_keepalive_that_is_not_believed_is_logged_with_the_reason_and_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moves = Moves()
    for n in range(100):
        moves.log_ignored(ignored(50_000), n)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("line l0: a keepalive from 192.0.2.1:50000, with its password, is not believed: the line is")
    assert "its count, 1, is not beyond 37" in said
    assert "for 83 s more" in said
    for port in range(1000):
        moves.log_ignored(ignored(port), 100.0)
    moves.log_ignored(ignored(1, "l1"), 100.0)
    assert len(caplog.records) <= 7, "few of one line, and no other line pays for it"
    assert "line l1" in caplog.text
    for n in range(1000):
        moves.log_ignored(ignored(1, f"m{n}"), 100.0)
    assert len(caplog.records) <= 31


def unknown(id: str, host: str = "192.0.2.1") -> events.Unauthenticated:
    return events.Unauthenticated(id, None, (host, 7), "unknown")


def test_what_is_told_of_strangers_is_logged_once_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    configuration, strangers = Settings(lines={"l0": {"password": "secret"}}), Strangers()
    for event in (unknown("a1"), unknown("b2"), wrong_password("l0"), wrong_password("l0"), unknown("b2")):
        strangers.notice(event, configuration, 0.0)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in lines] == ["192.0.2.1"] * 3
    assert "'a1'" in lines[0]
    assert "'b2'" in lines[1], "a second stranger behind one host is told as well"
    assert "lines.l0.password" in lines[2]
    assert "secret" not in caplog.text


def test_an_attack_on_a_thousand_lines_is_told_for_each_and_leaves_the_log_short(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"l{n}" for n in range(1000)]
    configuration, strangers = Settings(lines={name: {"password": "p"} for name in names}), Strangers()
    assert all(strangers.notice(wrong_password(name), configuration, 0.0) for name in names)
    assert len(caplog.records) == LOGGED_A_MINUTE
    assert strangers.notice(wrong_password("l7", reason="network"), configuration, 61.0)
    assert len(caplog.records) == LOGGED_A_MINUTE + 1


def test_an_id_that_is_a_phone_number_is_masked_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    notice = Strangers().notice(unknown("+380501234567"), Settings(lines={"l0": {"password": "p"}}), 0.0)
    assert notice is not None
    assert "+380501234567" in str(notice["message"])
    assert "1234567" not in caplog.text
    assert "567" in caplog.text


@pytest.mark.parametrize(
    ("claimed", "meant"),
    [
        ("H01", "h01"), ("h-01", "h01"), ("goip01", "goip1"), ("gopi1", "goip1"), ("380501234567", "kiev"),
        ("h02", None), ("goip11", None), ("goip", None), ("box1", None), ("", None), ("1" * 64, None),
    ],
)  # fmt: skip
def test_an_unknown_id_is_compared_with_those_of_the_configuration(claimed: str, meant: str | None) -> None:
    lines = {name: {"password": "p"} for name in ("h01", "goip1", "goip2", "h03")}
    lines["kiev"] = {"password": "p", "goip_id": "+380501234567"}
    notice = Strangers().notice(unknown(claimed), Settings(lines=lines), 0.0)
    assert notice is not None
    said = re.findall(r"Did you mean line (\w+)\?", str(notice["message"]))
    assert said == ([meant] if meant else [])
