"""What is fuzzed: plain functions that take bytes and raise whatever is a fault of ours.

An input for `decode_datagram` is one datagram or several, with `SEPARATOR` between them. One for `command_payload` is a
command's path, a newline and the payload; as the argument of `payload_input`.
"""

import contextlib
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "goip"))

from goip_bench import ELSEWHERE, SENDID, Bench

from bridge.contract import commands
from bridge.contract.segments import segment
from bridge.features import operations
from bridge.goip import events, wire

SEPARATOR = b"\x1e\n"
MAX_DATAGRAM = 65_507
MAX_DATAGRAMS = 20
PASSWORD = b"pw1"
MAX_MESSAGE_CHARS = 1000

# -- datagrams -----------------------------------------------------------------------------------------------------


def busy_bench() -> Bench:
    """A line with everything under way: a session that waits for an outcome, a command, a USSD code."""
    bench = Bench()
    bench.submit("+491", "+492")
    bench.request("get_gsm_num")
    bench.ussd("*100#")
    bench.event("STATE", "gsm_remain_state:DIALING:+493")
    bench.events()
    return bench


def decode_datagram(data: bytes, bench: Bench | None = None) -> None:
    """All the bridge does with datagrams, short of the disk: the codec; the server, from strangers and from a line."""
    bench = bench or busy_bench()
    for datagram in data.split(SEPARATOR)[:MAX_DATAGRAMS]:
        datagram = datagram[:MAX_DATAGRAM]
        check_codec(datagram)
        from_stranger(bench, datagram)
        for genuine in as_if_genuine(datagram):
            from_line(bench, genuine)
    bench.advance(600)
    events_are_publishable(bench.events())


def take_from_stranger(data: bytes, bench: Bench) -> None:
    """What anybody can make the bridge do with one datagram."""
    bench.server.receive_datagram(data, ELSEWHERE, bench.now)


def check_codec(datagram: bytes) -> None:
    """It is a message or a WireError, can be written as JSON, and means the same when it is written again."""
    message = decoded(datagram)
    if isinstance(message, wire.WireError):
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]* ?[a-z ]{2,60}", str(message)), f"quotes the datagram: {message}"
        return
    for text in strings(asdict(message)):
        assert "\0" not in text
        text.encode()  # no lone surrogates
    if isinstance(message, wire.OtherEvent):
        fields = message.raw.partition(";msg:")[0].split(";")[1:]
        keys = {field.partition(":")[0].strip().lower() for field in fields}
        assert not keys & {"password", "pass"}, "the password of the line would be published"
    if isinstance(message, wire.Event):
        assert len(wire.encode_ack(message.kind, message.recvid)) <= len(datagram) + len(" OK\n")
    again = encode(message)
    if len(again) <= wire.MAX_KEEPALIVE and again.count(b";") < wire.MAX_FIELDS:
        assert comparable(wire.decode(again)) == comparable(message), again


def decoded(datagram: bytes) -> wire.Message | wire.WireError:
    try:
        return wire.decode(datagram)
    except wire.WireError as error:
        return error


def from_stranger(bench: Bench, datagram: bytes) -> None:
    """Without the password and from elsewhere: not a byte in answer, and nothing but the fact that it came."""
    if PASSWORD in datagram:
        return
    sent = bench.tell(datagram, source=ELSEWHERE)
    assert sent == []
    assert all(isinstance(event, events.Unauthenticated) for event in bench.log)
    bench.log.clear()


def from_line(bench: Bench, datagram: bytes) -> None:
    """From the line's address: what is answered is an acknowledgement that is not larger, or the line's next order."""
    answers = bench.tell(datagram)
    assert len(answers) <= 4, answers
    if datagram.startswith(b"req:") or re.match(rb"[A-Za-z][A-Za-z0-9_]{0,31}:", datagram):
        for answer in answers:
            assert len(answer.encode()) <= len(datagram) or not answer.endswith((" OK", " OK\n", "status:200;"))
    events_are_publishable(bench.events())


def as_if_genuine(datagram: bytes) -> list[bytes]:
    """The datagram as the line would send it: with its id and password, or as the answer to each thing under way."""
    if datagram.startswith(b"req:"):
        return [datagram.rstrip(b"\r\n\0 ") + b";id:goip1;pass:pw1;"]
    head, _, rest = datagram.partition(b";")
    if re.match(rb"[A-Za-z][A-Za-z0-9_]{0,31}:", head) and not head.startswith(b"GSM:"):
        return [head + b";id:goip1;password:pw1;" + rest]
    verb, _, rest = datagram.partition(b":" if datagram.startswith(b"GSM:") else b" ")
    _, space, rest = rest.partition(b";" if verb == b"GSM" else b" ")
    between = b":" if verb == b"GSM" else b" "
    return [verb + between + b"%d" % sendid + space + rest for sendid in range(SENDID, SENDID + 3)]


def encode(message: wire.Message) -> bytes:
    """The plainest datagram with this meaning: what a box would send that has no quirks."""
    match message:
        case wire.Keepalive(count=count, id=id, password=password, fields=fields):
            return joined(f"req:{count}", {"id": id, "pass": password} | dict(fields))
        case wire.GsmValues(sendid=sendid, fields=fields):
            return joined(f"GSM:{sendid}", fields)
        case wire.Event():
            return encode_event(message)
        case wire.SubmitOk(sendid=sendid, telid=telid, sms_no=sms_no):
            return f"OK {sendid} {telid}{'' if sms_no is None else f' {sms_no}'}".encode()
        case wire.SubmitWait(sendid=sendid, telid=telid):
            return f"WAIT {sendid} {telid}".encode()
        case wire.SubmitError(sendid=sendid, telid=telid, code=code):
            return f"ERROR {sendid} {telid} errorstatus:{code}".encode()
        case wire.Error(sendid=sendid, text=text):
            return f"ERROR {sendid} {text}".encode()
        case wire.Reply(verb=verb, sendid=sendid, text=text):
            return f"{verb} {sendid} {text}".encode()
        case wire.PasswordPrompt(sendid=sendid):
            return f"PASSWORD {sendid}".encode()
        case wire.SendPrompt(sendid=sendid):
            return f"SEND {sendid}".encode()
        case wire.Done(sendid=sendid):
            return f"DONE {sendid}".encode()
    raise AssertionError(f"a message without a form: {message}")


def encode_event(message: wire.Event) -> bytes:
    fields: dict[str, object] = {"id": message.id, "password": message.password}
    free = b""
    match message:
        case wire.Receive(srcnum=srcnum, raw=raw, smscnum=smscnum, senttime=senttime):
            fields |= {"srcnum": srcnum, "smscnum": smscnum, "senttime": senttime}
            # Without a `;` before `;msg:`, which would be of the name.
            return joined(f"{message.kind}:{message.recvid}", fields).removesuffix(b";") + b";msg:" + raw + b"\n"
        case wire.Deliver(sms_no=sms_no, state=state, num=num):
            fields |= {"sms_no": sms_no, "state": state, "num": num}
        case wire.State(state=state, number=number):
            fields["gsm_remain_state"] = f"{state}:{number}"
        case wire.Record(dir=dir, num=num):
            fields |= {"dir": dir, "num": num}
        case wire.Expiry(exp=exp):
            fields["exp"] = exp
        case wire.Remain(minutes=minutes):
            fields["gsm_remain_time"] = minutes
        case wire.Hangup(num=num, cause=cause):
            fields["num"] = f"{num},cause:{cause}"
        case wire.Cells(cells=numbers):
            fields["lists"] = ",".join(map(str, numbers))
        case wire.Bcch(bcch=numbers):
            fields["bcch"] = ",".join(map(str, numbers))
        case wire.CellInfo(info=info):
            fields["info"] = info
        case wire.Cgatt(attached=attached):
            fields["cgatt"] = {True: "1", False: "0", None: None}[attached]
        case wire.Ussn(text=text):
            free = b";msg:" + text.encode()
        case wire.AtTrace(text=text):
            free = b";receive:" + text.encode()
        case wire.OtherEvent(fields=others):
            fields |= {key: value for key, value in others.items() if key != "msg"}
            free = b";msg:" + others["msg"].encode() if "msg" in others else b""
    return joined(f"{message.kind}:{message.recvid}", fields) + free


def joined(head: str, fields: Any) -> bytes:
    """With a `;` at the end, which keeps blanks in front of it."""
    return "".join([f"{head};", *(f"{key}:{value};" for key, value in fields.items() if value is not None)]).encode()


def comparable(message: wire.Message) -> dict[str, Any]:
    """Everything but `raw` of an unknown event, which keeps the order and the blanks of its datagram, and how damaged
    a text was. Blanks in front of the text of an SMS belong to no field."""
    fields = asdict(message) | {"": type(message).__name__}
    if isinstance(message, wire.Receive):
        fields |= {key: (fields[key] or "").rstrip("\r\n ") for key in ("srcnum", "smscnum", "senttime")}
    if isinstance(message, wire.OtherEvent):
        del fields["raw"]
    return fields


def events_are_publishable(happened: list[events.Event]) -> None:
    for event in happened:
        for text in strings(asdict(event)):
            assert "\0" not in text
            text.encode()


def strings(value: object) -> list[str]:
    """Every text in a structure."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for pair in value.items() for item in pair for text in strings(item)]
        case list() | tuple():
            return [text for item in value for text in strings(item)]
    return []


# -- payloads ------------------------------------------------------------------------------------------------------


def payload_input(data: bytes) -> None:
    """One input of the driver: `line/sms`, `line/sms/00491511` or `bridge/ping`, a newline, the payload."""
    topic, _, payload = data.partition(b"\n")
    target, _, path = topic.decode(errors="replace").partition("/")
    command_payload(path, payload, "bridge" if target == "bridge" else "line")


def take_payload(data: bytes) -> None:
    """What admission does with a payload: reads it, and then its canonical form or the id for the refusal."""
    topic, _, payload = data.partition(b"\n")
    target, _, path = topic.decode(errors="replace").partition("/")
    try:
        commands.parse(path, payload, target="bridge" if target == "bridge" else "line")
        commands.canonical(path, payload)
    except commands.CommandError:
        commands.read_id(path, payload)


def command_payload(path: str, payload: bytes, target: commands.Target = "line") -> None:
    """A command or a CommandError; a command is unambiguous, has a stable canonical form, and can be carried out."""
    commands.read_id(path, payload)
    command = parsed(path, payload, target)
    if isinstance(command, commands.CommandError):
        assert command.code in commands.CODES
        assert 0 < len(command.message) <= MAX_MESSAGE_CHARS, len(command.message)
        assert command.message.isprintable(), command.message
        with contextlib.suppress(commands.CommandError):
            commands.canonical(path, payload)
        return
    assert commands.command_path(path) == command.path
    canonical = commands.canonical(path, payload)
    canonical.encode()
    if path == command.path:
        assert commands.canonical(path, canonical.encode()) == canonical
        again = commands.parse(path, canonical.encode(), target=target)
        assert again == command
        assert again.warnings == command.warnings
        # None for an id that can't be used; the others are told apart by it.
        assert command.id is None or commands.read_id(path, payload) == command.id
    if isinstance(command, commands.Sms):
        check_sms(command)
    elif target == "line" and not isinstance(command, commands.Ussd):
        check_operation(command)


def parsed(path: str, payload: bytes, target: commands.Target) -> commands.Command | commands.CommandError:
    try:
        return commands.parse(path, payload, target=target)
    except commands.CommandError as error:
        return error


def check_sms(command: commands.Sms) -> None:
    """Nothing in a number or a text can end a datagram early or begin another."""
    assert 1 <= len(command.recipients) <= commands.MAX_RECIPIENTS
    for recipient in command.recipients[:100]:
        assert re.fullmatch(r"\+?[0-9*#]{1,32}|@[^\x00-\x1f/+#]{1,64}", recipient.to), recipient.to
        assert 1 <= len(recipient.text.encode()) <= commands.MAX_TEXT_BYTES
        assert "\0" not in recipient.text
        assert segment(recipient.text).parts >= 1


def check_operation(command: commands.Command) -> None:
    """What it makes the gateway do is one datagram of words."""
    try:
        operation = operations.operation(command)
    except KeyError:
        return  # nothing for a gateway
    datagram = wire.encode_command(
        operation.verb, 1, operation.arguments, "pw1", password_first=operation.password_first
    )
    assert len(datagram.split(b" ")) == 3 + len(operation.arguments)
    assert re.fullmatch(rb"[!-~ ]+", datagram)
