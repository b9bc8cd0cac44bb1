"""A small coverage-guided fuzzer: it keeps what takes the program along a way not seen before.

No dependency and no instrumentation but `sys.settrace`, so a few thousand executions a second. The same seed, corpus
and number of executions give the same run.
"""

import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import bridge.contract.commands
import bridge.contract.numbers
import bridge.goip.line
import bridge.goip.server
import bridge.goip.session
import bridge.goip.wire
from fuzz import targets

CORPUS = Path(__file__).parent / "corpus"
MAX_INPUT = 4096
"Bytes of an input that is kept; longer ones are tried (`blown_up`), for the time they take."


@dataclass(frozen=True)
class Target:
    name: str
    prepare: Callable[[], Any]
    "Makes what `run` gets as its second argument; not traced."
    run: Callable[[bytes, Any], None]
    modules: tuple[str, ...]
    "Files whose lines count."
    words: tuple[bytes, ...]
    longest: int
    "Bytes that the real thing lets through."
    work: Callable[[bytes, Any], None]
    "What the bridge does, without the checks of `run`: it is timed."
    slow: tuple[float, float]
    "What takes longer is a finding: seconds of CPU for any input, and for each MB of it; some ten times what is usual."


def _file(module: Any) -> str:
    return str(module.__file__)


_WORDS = (
    b"req:", b"RECEIVE:", b"DELIVER:", b"STATE:", b"RECORD:", b"EXPIRY:", b"REMAIN:", b"HANGUP:", b"CELLS:",
    b"CELLINFO:", b"BCCH:", b"CGATT:", b"USSN:", b"AT:", b"GSM:", b"FOO:", b"PASSWORD ", b"SEND ", b"WAIT ", b"OK ",
    b"ERROR ", b"DONE ", b"USSD ", b"USSDERROR ", b"USSDEXIT ", b"get_gsm_num ", b"CFOK ", b"GSMERROR ",
    b";id:goip1", b";password:pw1", b";pass:pw1", b";msg:", b";MSG:", b";receive:", b";srcnum:", b";num:", b",cause:",
    b";state:0", b";sms_no:5", b";gsm_remain_state:", b"INCOMING", b"ACTIVE", b"IDLE", b"CONNECTED", b"ALERTING",
    b";gsm_status:LOGIN", b";voip_state:ACTIVE", b";disable_status:1", b";disable_status:0", b" errorstatus:38",
    b" errorstatus:", b"SENDID", b"GSM_LOGOUT", b"too_many_sends_in_server", b"USSD send failed!", b";remain_time:-1",
    b";dir:1", b";dir:2", b";lists:1,2", b";cgatt:1", b";", b":", b",", b" ", b"\n", b"\r", b"\0", b"\xff", b"\xc3",
    b"\xed\xa0\x80", "\N{ARABIC-INDIC DIGIT THREE}".encode(), "\N{LATIN SMALL LETTER SHARP S}".encode(),
    "\N{SUPERSCRIPT TWO}".encode(), b"-1", b"0", b"1", b"(null)", b"9" * 18, b"9" * 19, b"+49151", targets.SEPARATOR,
)  # fmt: skip
_JSON = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"false", b"NaN", b"Infinity", b"-", b"1e999",
    b"1e5", b"5.0", b"0.1", b"-0", b"9223372036854775807", b"9223372036854775808", b"1" * 30, b"\\ud800", b"\\u0000",
    b"\\udc00\\ud800", b"\xff", b"\xef\xbb\xbf", b" ", b"\n", b'"id"', b'"to"', b'"text"', b'"messages"', b'"priority"',
    b'"ttl_s"', b'"send_at"', b'"expires_at"', b'"guarantee"', b'"at_most_once"', b'"dry_run"', b'"src"', b'"value"',
    b'"code"', b'"*100#"', b'"timeout_s"', b'"reason"', b'"busy"', b'"enable"', b'"number"', b'"+4915112345678"',
    b'"@anna"', b'"job"', b'"msg"', b'"cmd"', b'"since"', b'"limit"', b'"ack"', b'"2030-01-01T00:00:00Z"',
    b'"490154203237518"', b'"10120121"', b'{"1":true}', b"PRESS", b"[" * 500, b'{"a":' * 500,
)  # fmt: skip

TARGETS = {
    "datagrams": Target(
        "datagrams",
        targets.busy_bench,
        targets.decode_datagram,
        tuple(map(_file, (bridge.goip.wire, bridge.goip.server, bridge.goip.line, bridge.goip.session))),
        _WORDS,
        targets.MAX_DATAGRAM,
        targets.take_from_stranger,
        (0.003, 0.06),
    ),
    "payloads": Target(
        "payloads",
        lambda: None,
        lambda data, _: targets.payload_input(data),
        tuple(map(_file, (bridge.contract.commands, bridge.contract.numbers))),
        _JSON,
        bridge.contract.commands.MAX_PAYLOAD_BYTES,
        lambda data, _: targets.take_payload(data),
        (0.02, 5.0),
    ),
}


class SlowError(Exception):
    """An input took more time than its size explains."""


# -- one execution -------------------------------------------------------------------------------------------------


class Tracer:
    """Steps from line to line in some files, as numbers."""

    def __init__(self, files: Iterable[str]) -> None:
        self.steps: set[int] = set()
        self._last = 0
        self._local = {file: self._tracer_of(place * 10_000) for place, file in enumerate(files, 1)}

    def _tracer_of(self, offset: int) -> Callable[[FrameType, str, object], Any]:
        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            if event == "line":
                here = offset + frame.f_lineno
                self.steps.add(self._last << 20 | here)
                self._last = here
            return trace

        return trace

    def _enter(self, frame: FrameType, _event: str, _argument: object) -> Any:
        return self._local.get(frame.f_code.co_filename)

    def run(self, target: Target, data: bytes) -> set[int]:
        """The steps of one execution; raises what the target raises."""
        self.steps, self._last = set(), 0
        prepared = target.prepare()
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            target.run(data, prepared)
        finally:
            sys.settrace(before)
        return self.steps


def check(target: Target, data: bytes) -> None:
    """Everything there is to check of one input."""
    target.run(data, target.prepare())
    check_time(target, data)


def check_time(target: Target, data: bytes) -> None:
    """Untraced; the best of a few, for the machine may be busy."""
    allowed = target.slow[0] + target.slow[1] * len(data) / 1e6
    for _ in range(5):
        prepared = target.prepare()
        began = time.thread_time()
        target.work(data, prepared)
        took = time.thread_time() - began
        if took <= allowed:
            return
    raise SlowError(f"{took:.2f} s for {len(data)} bytes")


# -- mutation ------------------------------------------------------------------------------------------------------


def mutated(rng: random.Random, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """One entry of the corpus, changed in a few places."""
    data = bytearray(rng.choice(corpus))
    if data.startswith((b"line/", b"bridge/")) and rng.random() < 0.3:
        return _json_mutated(rng, bytes(data), corpus)
    for _ in range(1 << rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(rng.expovariate(0.2)))
        match rng.randrange(9):
            case 0:
                data[at:at] = rng.choice(words)
            case 1:
                data[at:end] = rng.choice(words)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end] * rng.randrange(1, 5)
            case 4 if data:
                data[at % len(data)] = rng.randrange(256)
            case 5 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 6:  # splice
                other = rng.choice(corpus)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case 7:
                _change_number(rng, data)
            case 8:
                other = rng.choice(corpus)
                begin = rng.randrange(len(other) + 1)
                data[at:at] = other[begin : begin + 20]
    return bytes(data[:MAX_INPUT])


def _change_number(rng: random.Random, data: bytearray) -> None:
    digits = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
    if not digits:
        return
    at = end = rng.choice(digits)
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    numbers = [0, 1, 2, 3, 63, 64, 255, 256, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 10**18, -1, rng.randrange(100)]
    data[at:end] = b"%d" % rng.choice(numbers)


def _json_mutated(rng: random.Random, data: bytes, corpus: list[bytes]) -> bytes:
    """The payload changed as a tree: a value replaced, a member added or taken away."""
    topic, _, payload = data.partition(b"\n")
    try:
        tree = json.loads(payload)
        other = json.loads(rng.choice(corpus).partition(b"\n")[2])
    except (ValueError, RecursionError):
        return data + rng.choice(_JSON)
    if not isinstance(tree, dict) or not isinstance(other, dict):
        return topic + b"\n" + json.dumps({"to": tree, "text": other}).encode()
    values: list[Any] = [None, True, 0, -1, 5.0, 1e15, "", "x", "@a", "+4915112345678", "0151", [], {}]
    values += [json.loads(payload), other, *other.values()]
    for _ in range(rng.randrange(1, 4)):
        keys = list(tree) + list(other)
        key = rng.choice(keys) if keys else "to"
        match rng.randrange(3):
            case 0:
                tree[key] = rng.choice(values)
            case 1:
                tree.pop(key, None)
            case 2:
                tree[key] = [tree.get(key), *rng.choices(values, k=rng.randrange(3))]
    return topic + b"\n" + json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")


def blown_up(rng: random.Random, data: bytes, longest: int) -> bytes:
    """As long as it may be, by repeating a piece: finds what takes more than linear time."""
    at = rng.randrange(len(data) + 1)
    piece = data[at : at + 1 + int(rng.expovariate(0.5))] or b";"
    return data[:at] + piece * ((longest - len(data)) // len(piece)) + data[at:]


# -- the run -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One fuzzing run."""

    target: Target
    seed: int
    corpus: list[bytes]
    found: list[bytes] = field(default_factory=list)
    "Inputs that went a new way, made small."
    crash: tuple[bytes, BaseException] | None = None
    executions: int = 0
    seen: set[int] = field(default_factory=set)

    def go(self, seconds: float, tell: Callable[[str], None]) -> None:
        rng = random.Random(self.seed)
        tracer = Tracer(self.target.modules)
        began = told = time.monotonic()
        try:
            for data in self.corpus:
                self.seen |= self._execute(tracer, data)
            known = len(self.seen)
            tell(f"{self.target.name}: {len(self.corpus)} corpus entries make {known} steps; seed {self.seed}")
            while (now := time.monotonic()) - began < seconds:
                data = mutated(rng, self.corpus, self.target.words)
                if rng.random() < 0.01:
                    self._check_time(blown_up(rng, rng.choice(self.corpus), self.target.longest))
                if new := self._execute(tracer, data) - self.seen:
                    data = self._smaller(tracer, data, new)
                    self.seen |= self._execute(tracer, data) | new
                    self.corpus.append(data)
                    self.found.append(data)
                    self._check_time(data)
                if now - told >= 10:
                    told = now
                    rate = self.executions / (now - began)
                    tell(f"{now - began:5.0f} s: {rate:,.0f}/s, {len(self.seen)} steps, {len(self.found)} new inputs")
        except _CrashError as crash:
            self.crash = crash.data, crash.error
        rate = self.executions / (time.monotonic() - began)
        tell(
            f"{self.target.name}: {self.executions} executions, {rate:,.0f}/s; {len(self.seen)} steps "
            f"({len(self.found)} new inputs)"
        )

    def _execute(self, tracer: Tracer, data: bytes) -> set[int]:
        self.executions += 1
        try:
            return tracer.run(self.target, data)
        except Exception as error:
            raise _CrashError(data, error) from error

    def _check_time(self, data: bytes) -> None:
        self.executions += 1
        try:
            check_time(self.target, data)
        except Exception as error:
            raise _CrashError(data, error) from error

    def _smaller(self, tracer: Tracer, data: bytes, new: set[int]) -> bytes:
        """Without the pieces that the new steps don't need."""
        size = max(1, len(data) // 2)
        tries = 200
        while size and tries:
            at = 0
            while at < len(data) and tries:
                tries -= 1
                shorter = data[:at] + data[at + size :]
                if new <= self._execute(tracer, shorter):
                    data = shorter
                else:
                    at += size
            size //= 2
        return data


class _CrashError(Exception):
    def __init__(self, data: bytes, error: BaseException) -> None:
        super().__init__(str(error))
        self.data = data
        self.error = error


def corpus_folder(target: str) -> Path:
    return CORPUS / target


def load(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(corpus_folder(target).iterdir())]


def save(target: str, inputs: Iterable[bytes]) -> int:
    """Add to the corpus; gives how many were new."""
    count = 0
    for data in inputs:
        path = corpus_folder(target) / hashlib.sha256(data).hexdigest()[:16]
        if not path.exists():
            path.write_bytes(data)
            count += 1
    return count
