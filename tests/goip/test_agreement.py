"""The two codecs agree on every kind of message: what one side says, the other one understands as it was meant.

They share no code, so each is read here through the other's core: a simulated box on a bench, and our server on one.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from goip_bench import HOME, Bench
from hypothesis import given
from hypothesis import strategies as st
from test_corpus import CORPUS

from bridge.contract import commands
from bridge.features import operations
from bridge.goip import control, events, wire
from bridge.goip.control import Operation
from bridge.sim import wire as box
from bridge.sim.gateway import SimulatedGateway
from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.world import World

START = 1_700_000_000.0
SERVER = ("192.0.2.1", 44444)
SLOWEST = 60.0
"Seconds in which every profile has answered anything."


class Box:
    """A simulated line; whatever it sends is bytes in a list."""

    def __init__(self, profile: str = "spec", **options: Any) -> None:
        settings = replace(LineOptions(profile=PROFILES[profile], password="pw1"), **options)
        self.world = World(random.Random(1))
        self.line = SimulatedGateway([settings.numbered(1)], self.world).lines[0]
        self.now = START
        self.line.power_on(START)

    def sent(self, seconds: float = 0.0) -> list[bytes]:
        """Time passes; what the box has sent since this was last asked."""
        self.now += seconds
        self.world.run_due(self.now)
        return [datagram.data for datagram in self.world.take_datagrams()]

    def answers(self, data: bytes) -> list[bytes]:
        """What it says to a server, without what it says by itself."""
        self.sent()
        self.line.receive_datagram(data, SERVER, self.now)
        return [sent for sent in self.sent(SLOWEST) if not sent.startswith((b"req:", b"CELLS:", b"STATE:", b"AT:"))]


# -- what we ask


def every_operation() -> Iterator[Operation]:
    for path, model in commands.LINE_COMMANDS.items():
        for example in model.model_config.get("json_schema_extra", {}).get("examples", [{}]):  # type: ignore[union-attr]
            try:
                yield operations.operation(model.model_validate(example))
            except KeyError:
                assert path in {"sms", "ussd", "cancel", "pause", "resume", "selftest", "refresh"}


OPERATIONS = list(dict.fromkeys(every_operation()))


@pytest.mark.parametrize(
    ("operation", "profile"), list(product(OPERATIONS, PROFILES)), ids=lambda value: getattr(value, "verb", value)
)
def test_every_answer_to_a_command_is_a_verdict(operation: Operation, profile: str) -> None:
    for password, logged_in in product(("pw1", "wrong"), (True, False)):
        simulated = Box(profile)
        if not logged_in:
            simulated.line.logout(simulated.now)
        order = wire.encode_command(
            operation.verb, 17, operation.arguments, password, password_first=operation.password_first
        )
        (answer,) = simulated.answers(order)
        message = wire.decode(answer)
        assert message.sendid == 17  # type: ignore[union-attr]  # an answer has one
        verdict = control.interpret(operation, message)
        assert verdict is not None, answer
        assert not verdict.ok or password == "pw1"


@given(
    reason=st.sampled_from(range(6)),
    number=st.from_regex(r"\+?[0-9]{3,15}", fullmatch=True),
    seconds=st.integers(0, 120),
    profile=st.sampled_from(sorted(PROFILES)),
)
def test_a_call_forward_comes_back_as_it_was_set(reason: int, number: str, seconds: int, profile: str) -> None:
    simulated = Box(profile)
    names = ("unconditional", "busy", "no_reply", "not_reachable", "all", "conditional")
    command = {"reason": names[reason], "enable": True, "number": number, "timeout_s": seconds}
    ask = commands.CallForwardGet.model_validate({"reason": names[reason]})
    found = []
    for each in (ask, commands.CallForwardSet.model_validate(command), ask):
        operation = operations.operation(each)
        order = wire.encode_command("CF", 17, operation.arguments, "pw1", password_first=True)
        (answer,) = simulated.answers(order)
        verdict = control.interpret(operation, wire.decode(answer))
        assert verdict is not None
        found.append(operations.data(each.path, events.RequestAnswered("goip1", 1, verdict.ok, verdict.text)))
    timeout = seconds if reason == 2 and seconds else None
    assert found[0] == {"enable": False, "number": None, "timeout_s": None}
    assert found[2] == {"enable": True, "number": number, "timeout_s": timeout}


# -- what other servers ask

FROM_SERVERS = [entry["wire"].encode() for entry in CORPUS if entry["direction"] == "server->goip"]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_answer_to_another_server_is_a_message(profile: str) -> None:
    answered = set()
    for data in FROM_SERVERS:
        for answer in Box(profile, password="password1").answers(data):
            wire.decode(answer)
            answered.add(data.split(b" ", 1)[0])
    asked = {data.split(b" ", 1)[0] for data in FROM_SERVERS if b" " in data}
    acknowledgements = {b"RECEIVE", b"DELIVER", b"STATE", b"RECORD", b"REMAIN", b"EXPIRY", b"HANGUP", b"CELLINFO"}
    assert answered == asked - acknowledgements - {b"CGATT", b"BCCH", b"USSN", b"HELLO"}


# -- what a box says by itself

FROM_BOXES = [
    entry["wire"] for entry in CORPUS if entry["direction"] == "goip->server" and ":" in entry["wire"].split(" ")[0]
]
words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40).filter(
    lambda text: ";msg:" not in text.lower() and text.strip() not in wire.UNSET
)


@given(text=st.text(max_size=300), sender=words, newer=st.booleans())
def test_an_sms_is_what_was_sent(text: str, sender: str, newer: bool) -> None:
    simulated = Box(newer_receive=newer)
    simulated.sent()
    if newer:  # behind the sender, so the sender can't hold their names
        sender = sender.replace(";", ",")
    simulated.line.receive_sms(sender, text, simulated.now)
    (data,) = simulated.sent()
    message = wire.decode(data)
    assert isinstance(message, wire.Receive)
    assert wire.unread(message, data) is None
    body = text.removesuffix("\n").replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert (message.srcnum.strip(), message.text) == (sender.strip(), body)
    assert (message.smscnum, message.senttime) == (("+491710760000", "2023-11-14 22:13:20") if newer else (None, None))


@pytest.mark.parametrize("profile", PROFILES)
def test_whatever_a_box_says_is_understood_whole_and_the_answer_by_the_box(profile: str) -> None:
    """A day in the life of a line: each datagram is read to the last field, and each answer ends its repeats."""
    simulated = Box(profile, chatter=True, id="goip1")
    bench = Bench(online=False)
    seen = set()
    line = simulated.line
    happenings = [
        lambda now: line.receive_sms("+49123", "hello; all: of\nit", now),
        lambda now: line.ussd_push("Your bundle ends; soon", now),
        lambda now: line.calls.incoming("+49123", now, seconds=20),
        lambda now: line.calls.outgoing("+49123", now, seconds=20),
        lambda now: line.calls.outgoing("+49123", now, answered=False, seconds=20),
        line.neighbours,
        lambda now: line.events.send("CELLS", f"lists:{line.control.cells}", now),
        lambda now: line.events.send("DELIVER", "sms_no:3;state:0;num:+49123", now),
        line.logout,
        line.login,
    ]
    for happening in happenings:
        happening(simulated.now)
        for _ in range(60):
            for data in simulated.sent(1.0):
                message = wire.decode(data)
                seen.add(data.partition(b":")[0].decode())
                assert not isinstance(message, wire.Event) or wire.unread(message, data) is None, data
                for answer in bench.tell(data):
                    line.receive_datagram(answer.encode(), SERVER, simulated.now)
            bench.advance(1.0)
        assert not len(line.events), "every event was acknowledged"
    assert line.logged_in
    assert line.registration == "accepted"
    assert seen == {
        "req", "RECEIVE", "USSN", "STATE", "RECORD", "EXPIRY", "HANGUP", "REMAIN", "BCCH", "CELLS", "DELIVER",
        "CELLINFO", "CGATT",
    }  # fmt: skip


@given(captured=st.sampled_from(FROM_BOXES), number=st.integers(-(10**9), 10**9))
def test_our_answer_to_what_real_boxes_say_is_the_one_that_they_wait_for(captured: str, number: int) -> None:
    kind, _, rest = captured.partition(":")
    fields = rest.partition(";")[2]
    message = wire.decode(captured.encode())
    if not isinstance(message, wire.Event | wire.Keepalive):
        return
    number = abs(number) if kind == "req" else number
    bench = Bench(goip_id=message.id, password=message.password)
    sent = bench.tell(f"{kind}:{number};{fields}", source=HOME)
    answers = [box.decode(answer.encode()) for answer in sent]
    if kind == "req":
        assert answers == [box.KeepaliveAck(number, 200)]
    else:
        assert answers == ([] if kind == "AT" else [box.EventAck(kind, number, "OK")])
