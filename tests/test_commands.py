"""Every command of the contract, what is refused and with which words, and that nothing else ever comes out."""

import json
from datetime import UTC, datetime

import jsonschema
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.contract import commands
from bridge.contract import commands as module
from bridge.contract.commands import (
    BRIDGE_COMMANDS,
    CODES,
    LINE_COMMANDS,
    Command,
    CommandError,
    Recipient,
    Sms,
    canonical,
    command_path,
    parse,
    read_id,
    retryable,
)

MODELS = [("line", model) for model in LINE_COMMANDS.values()] + [
    ("bridge", model) for model in BRIDGE_COMMANDS.values()
]
PATHS = st.sampled_from(
    [*LINE_COMMANDS, *BRIDGE_COMMANDS, "sms/00491511", "sms/anna", "sms/", "sms/1/2", "nothing", ""]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({field for _, model in MODELS for field in model.model_fields})


def encode(payload: object) -> bytes:
    return payload if isinstance(payload, bytes) else json.dumps(payload).encode()


def parse_line(path: str, payload: object) -> Command:
    return parse(path, encode(payload), target="line")


def refusal(path: str, payload: object, target: commands.Target = "line") -> tuple[str, str]:
    with pytest.raises(CommandError) as caught:
        parse(path, encode(payload), target=target)
    return caught.value.code, caught.value.message


def sms(payload: object) -> Sms:
    command = parse_line("sms", payload)
    assert isinstance(command, Sms)
    return command


# --- The table of commands (contract § 3) ---


@pytest.mark.parametrize(
    ("path", "payload", "fields"),
    [
        ("sms", {"to": "+4915112345678", "text": "hi"}, {"to": ("+4915112345678",), "text": "hi", "priority": 5}),
        ("sms", {"to": "@anna", "text": "hi", "guarantee": "at_most_once"}, {"guarantee": "at_most_once"}),
        ("sms", {"to": "1", "text": "hi", "dry_run": True, "src": "ha"}, {"dry_run": True, "src": "ha"}),
        ("cancel", {"job": "j1"}, {"job": "j1", "msg": None, "cmd": None}),
        ("cancel", b"", {"job": None, "msg": None, "cmd": None}),
        ("pause", {"msg": "m1"}, {"msg": "m1"}),
        ("resume", {"cmd": "c1"}, {"cmd": "c1"}),
        ("ussd", {"code": "*100#"}, {"code": "*100#", "timeout_s": 120}),
        ("ussd", {"code": "1", "timeout_s": 600}, {"code": "1", "timeout_s": 600}),
        ("ussd", {"code": "+09*#" + "9" * 177}, {"code": "+09*#" + "9" * 177}),
        ("ussd/exit", b"", {}),
        ("number/get", b"", {}),
        ("number/set", {"value": "+49 (151) 123-456"}, {"value": "+49151123456"}),
        ("number/set", {"value": 49151}, {"value": "49151"}),
        ("exp_time/get", b"", {}),
        ("exp_time/set", {"value": 600}, {"value": 600}),
        ("remain_time/get", b"", {}),
        ("remain_time/reset", b"", {}),
        ("gsm_state/get", b"", {}),
        ("info/get", b"", {}),
        ("call/drop", b"", {}),
        ("module/reboot", b"", {}),
        ("module/enable", b"", {}),
        ("module/disable", b"", {}),
        ("modules/set", {"value": "10120121"}, {"value": "10120121", "digits": "10120121"}),
        ("modules/set", {"value": {"1": True, "4": False}}, {"digits": "1220"}),
        ("modules/set", {"value": {"10": True, "9": False}}, {"digits": "2222222201"}),
        ("modules/set", {"value": {"64": True}}, {"digits": "2" * 63 + "1"}),
        ("gateway/reboot", b"", {}),
        ("call_forward/get", b"", {"reason": "unconditional"}),
        ("call_forward/get", {"reason": "busy"}, {"reason": "busy"}),
        (
            "call_forward/set",
            {"reason": "no_reply", "enable": True, "number": "0151/12", "timeout_s": 20},
            {"reason": "no_reply", "enable": True, "number": "015112", "timeout_s": 20},
        ),
        ("call_forward/set", {"reason": "all", "enable": False}, {"number": None, "timeout_s": None}),
        ("call_forward/set", {"reason": "all", "enable": False, "timeout_s": 0}, {"timeout_s": 0}),
        ("call_waiting/get", b"", {}),
        ("call_waiting/set", {"enable": False}, {"enable": False}),
        ("imei/get", b"", {}),
        ("imei/set", {"value": "490154203237518"}, {"value": "490154203237518"}),
        ("imei/set", {"value": "356938035643809"}, {"value": "356938035643809"}),
        ("call_interval/get", b"", {}),
        ("call_interval/set", {"value": 0}, {"value": 0}),
        ("cells/get", b"", {}),
        ("cell/get", b"", {}),
        ("cell/set", {"value": "7E5"}, {"value": "7E5"}),
        ("cell/set", {"value": "0"}, {"value": "0"}),
        ("selftest", {"to": "goip2"}, {"to": "goip2", "number": None}),
        ("selftest", {"to": "goip2", "number": "+49 151 1"}, {"to": "goip2", "number": "+491511"}),
        ("refresh", b"", {}),
    ],
)
def test_line_commands(path, payload, fields):
    command = parse_line(path, payload)
    assert type(command) is LINE_COMMANDS[path]
    assert {name: getattr(command, name) for name in fields} == fields
    assert command.warnings == []


@pytest.mark.parametrize(
    ("path", "payload", "fields"),
    [
        ("ping", b"", {}),
        ("refresh", b"", {}),
        ("lines", b"", {}),
        ("reload", b"", {}),
        ("inbox", b"", {"since": None, "limit": 100, "ack": None}),
        ("inbox", {"since": 1893456000, "limit": 1}, {"since": datetime(2030, 1, 1, tzinfo=UTC), "limit": 1}),
        ("inbox", {"ack": ["f1", "f2"]}, {"ack": ["f1", "f2"]}),
    ],
)
def test_bridge_commands(path, payload, fields):
    command = parse(path, encode(payload), target="bridge")
    assert type(command) is BRIDGE_COMMANDS[path]
    assert {name: getattr(command, name) for name in fields} == fields


def test_the_tables_are_complete():
    assert " ".join(sorted(LINE_COMMANDS)) == (
        "call/drop call_forward/get call_forward/set call_interval/get call_interval/set call_waiting/get "
        "call_waiting/set cancel cell/get cell/set cells/get exp_time/get exp_time/set gateway/reboot gsm_state/get "
        "imei/get imei/set info/get module/disable module/enable module/reboot module/set modules/set number/get "
        "number/set pause refresh remain_time/get remain_time/reset resume selftest sms ussd ussd/exit"
    )
    assert " ".join(sorted(BRIDGE_COMMANDS)) == "inbox lines ping refresh reload restart"


def test_what_must_not_run_twice():
    once = {path for path, model in (LINE_COMMANDS | BRIDGE_COMMANDS).items() if model.once}
    assert once == {"ussd", "module/reboot", "gateway/reboot", "remain_time/reset", "selftest", "restart"}


@pytest.mark.parametrize(("target", "model"), MODELS)
@pytest.mark.parametrize("payload", [b"", b" \n", b"{}", b"PRESS", b"PRESS\n", b'{"id":"a","expires_at":1893456000}'])
def test_commands_without_required_arguments_need_no_payload(target, model, payload):
    if model is Sms or any(field.is_required() for field in model.model_fields.values()):
        assert refusal(model.path, payload, target)[0] == "invalid_payload"
    else:
        assert type(parse(model.path, payload, target=target)) is model


@pytest.mark.parametrize(("target", "model"), MODELS)
def test_examples_are_valid_for_the_schema_and_the_parser(target, model):
    schema = model.model_json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert schema["examples"]
    for payload in schema["examples"]:
        validator.validate(payload)
        parse(model.path, encode(payload), target=target)


@pytest.mark.parametrize(("target", "model"), MODELS)
def test_everything_in_the_schema_is_described(target, model):
    schema = model.model_json_schema()
    assert schema["description"]
    for place in [schema, *schema.get("$defs", {}).values()]:
        assert [name for name, field in place["properties"].items() if "description" not in field] == []


@pytest.mark.parametrize(
    ("model", "payload"),
    [
        (Sms, {}),
        (Sms, {"to": "1"}),
        (Sms, {"to": "1", "text": ""}),
        (Sms, {"to": [], "text": "a"}),
        (Sms, {"to": "1", "txt": "a", "text": "a"}),
        (Sms, {"messages": []}),
        (Sms, {"to": "1", "text": "a", "messages": [{"to": "1", "text": "a"}]}),
        (Sms, {"to": "1", "text": "a", "id": ""}),
        (commands.ModulesSet, {"value": {}}),
        (commands.ModulesSet, {"value": "3"}),
        (commands.ImeiSet, {"value": "1"}),
        (commands.NumberSet, {"value": -1}),
    ],
)
def test_the_schema_refuses_what_the_parser_warns_of_or_refuses(model, payload):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(payload, model.model_json_schema())


def test_a_command_does_not_change():
    command = sms({"to": "1", "text": "a"})
    with pytest.raises(ValidationError):
        command.text = "b"
    with pytest.raises(AttributeError):
        command.recipients[0].text = "b"


# --- Refusals: the code, and the words that name the place ---


LUHN = "value: is not an IMEI: the check digit (Luhn) is wrong"
REASONS = "reason: should be 'unconditional', 'busy', 'no_reply', 'not_reachable', 'all' or 'conditional'"
SMS_EXAMPLE = '{"to": "+4915112345678", "text": "The gate is open."}'
USSD = "code: holds a character it may not hold, or has the wrong length"
CELL = "value: holds a character it may not hold, or has the wrong length"
STRANGE = "to: is not a phone number: it has"
LRE = "U+202A (LEFT-TO-RIGHT EMBEDDING)"
NBSP = "U+00A0 (NO-BREAK SPACE)"
LIST = 'holds several recipients; write a list, as in ["+4915112345678", "@family"]'
ZERO = "is ambiguous: nobody can know whether its (0) is to be dialled; write it without (0), and with +"
MANY = "is not a phone number: it has too many digits, as if it were several; write each by itself"
DECIMALS = "is a number with decimals, which are no part of a phone number; write its digits as a string"
TIME = "should be an RFC 3339 time with offset, or unix seconds"


@pytest.mark.parametrize(
    ("path", "payload", "message"),
    [
        ("sms", {}, "to: is required"),
        ("sms", {"to": "1"}, "text: is required"),
        ("sms", {"text": "hi"}, "to: is required"),
        ("sms", {"to": None, "text": "hi"}, "to: is required"),
        ("sms", {"to": "1", "text": ""}, "text: is empty"),
        ("sms", {"to": "1", "text": 5}, "text: should be a valid string"),
        ("sms", {"to": "1", "text": "a\0"}, "text: NUL at character 1"),
        ("sms", {"to": "1", "text": "ab\ud800"}, "text: lone surrogate at character 2"),
        ("sms", {"to": "", "text": "hi"}, "to: is not a phone number"),
        ("sms", {"to": "+49 151 x", "text": "hi"}, "to: is not a phone number"),
        ("sms", {"to": "+*#", "text": "hi"}, "to: is not a phone number"),
        ("sms", {"to": "1" * 33, "text": "hi"}, "to: is not a phone number"),
        ("sms", {"to": "1\n", "text": "hi"}, f"{STRANGE} U+000A at character 1; write it without"),
        ("sms", {"to": "\u202a+491\u202c", "text": "hi"}, f"{STRANGE} {LRE} at character 0; write it without"),
        ("sms", {"to": "+49\xa01", "text": "hi"}, f"{STRANGE} {NBSP} at character 3; write it without"),
        (
            "sms",
            {"to": "anna", "text": "hi"},
            "to: is not a phone number; write @ in front of the name of a contact or group",
        ),
        ("sms", {"to": "+491; +492", "text": "hi"}, f"to: {LIST}"),
        ("sms", {"to": "+491,@ben,", "text": "hi"}, f"to: {LIST}"),
        ("sms", {"to": "+491\n+492", "text": "hi"}, f"to: {LIST}"),
        (
            "sms",
            {"to": ["1", "2,3"], "text": "hi"},
            "to[1]: holds several recipients; write each as an entry of its own",
        ),
        ("sms", {"to": "+49 (0)151 1", "text": "hi"}, f"to: {ZERO}"),
        ("sms", {"to": "0151 12345678 0151 87654321", "text": "hi"}, f"to: {MANY}"),
        ("sms", {"to": "4915112345678.0", "text": "hi"}, f"to: {DECIMALS}"),
        ("sms/49(0)151", b"hi", f"to: {ZERO}"),
        ("number/set", {"value": "1;2"}, "value: is not a phone number but several; write each by itself"),
        ("sms", {"to": True, "text": "hi"}, "to: should be a phone number, as a string"),
        ("sms", {"to": -1, "text": "hi"}, "to: should be a phone number, as a string"),
        ("sms", {"to": 10**15, "text": "hi"}, "to: should be a phone number, as a string"),
        ("sms", {"to": 1.5, "text": "hi"}, "to: should be a phone number, as a string"),
        ("sms", {"to": {}, "text": "hi"}, "to: should be a phone number, as a string"),
        ("sms", {"to": [], "text": "hi"}, "to: is empty"),
        ("sms", {"to": ["1", "2x"], "text": "hi"}, "to[1]: is not a phone number"),
        ("sms", {"to": ["1", ["2"]], "text": "hi"}, "to[1]: should be a phone number, as a string"),
        ("sms", {"to": "@", "text": "hi"}, "to: is not the name of a contact or group"),
        ("sms", {"to": ["@12"], "text": "hi"}, "to[0]: is not the name of a contact or group"),
        ("sms", {"to": "@" + "x" * 65, "text": "hi"}, "to: is not the name of a contact or group"),
        ("sms", {"to": "@ x", "text": "hi"}, "to: is not the name of a contact or group"),
        ("sms", {"to": "@@x", "text": "hi"}, "to: is not the name of a contact or group"),
        ("sms", {"to": "@a/b", "text": "hi"}, "to: is not the name of a contact or group"),
        ("sms", {"to": "1", "txt": "hi"}, "txt: unknown field; did you mean text?"),
        ("sms", {"to": "1", "text": "hi", "warnings": []}, "warnings: unknown field"),
        ("sms", {"to": "1", "text": "hi", "a\nb": 1}, 'a\\nb": unknown field'),
        ("sms", {"to": "1", "text": "hi", "k" * 41: 1}, "k" * 40 + '\\u2026": unknown field'),
        ("sms", {"messages": []}, "messages: is empty"),
        ("sms", {"messages": {}}, "messages: should be a list"),
        ("sms", {"messages": ["hi"]}, "messages[0]: should be an object"),
        ("sms", {"messages": [{"to": "1", "text": "hi"}, {"to": "1", "text": ""}]}, "messages[1].text: is empty"),
        ("sms", {"messages": [{"to": "2x", "text": "hi"}]}, "messages[0].to: is not a phone number"),
        (
            "sms",
            {"messages": [{"to": "1;2", "text": "a"}]},
            "messages[0].to: holds several recipients; write a message for each",
        ),
        ("sms", {"messages": [{"to": ["1"], "text": "hi"}]}, "messages[0].to: should be a phone number, as a string"),
        ("sms", {"messages": [{"to": "1", "text": "\ud800"}]}, "messages[0].text: lone surrogate at character 0"),
        ("sms", {"messages": [{"to": "1", "text": "a", "tx": 1}]}, "messages[0].tx: unknown field; did you mean text?"),
        ("sms", {"messages": [{"to": "1", "text": "a"}], "text": "b"}, "messages: cannot be combined with to and text"),
        ("sms", {"messages": [{"to": "1", "text": "a"}], "to": "1"}, "messages: cannot be combined with to and text"),
        ("sms", {"to": "1", "text": "a", "priority": 10}, "priority: should be less than or equal to 9"),
        ("sms", {"to": "1", "text": "a", "priority": -1}, "priority: should be greater than or equal to 0"),
        ("sms", {"to": "1", "text": "a", "priority": "5"}, "priority: should be a valid integer"),
        ("sms", {"to": "1", "text": "a", "priority": True}, "priority: should be a valid integer"),
        ("sms", {"to": "1", "text": "a", "ttl_s": 0}, "ttl_s: should be greater than or equal to 1"),
        ("sms", {"to": "1", "text": "a", "ttl_s": 31_536_001}, "ttl_s: should be less than or equal to 31536000"),
        ("sms", {"to": "1", "text": "a", "dry_run": 1}, "dry_run: should be a valid boolean"),
        ("sms", {"to": "1", "text": "a", "src": "\t"}, "src: should be 1 to 64 printable characters"),
        ("sms", {"to": "1", "text": "a", "send_at": "tomorrow"}, f"send_at: {TIME}"),
        ("sms/1", b"", "text: is empty"),
        ("sms/1", b"a\0", "text: NUL at character 1"),
        ("sms/1", b"a\xff", "text: not UTF-8 at byte 1"),
        ("sms/", b"hi", "to: the topic names no phone number, contact or group"),
        ("sms/00", b"hi", "to: the topic names no phone number, contact or group"),
        ("sms/" + "1" * 33, b"hi", "to: the topic names no phone number, contact or group"),
        ("cancel", {"job": "a", "msg": "b"}, "msg: cannot be combined with job"),
        ("cancel", {"job": ""}, "job: should be 1 to 64 printable characters"),
        ("cancel", {"job": 5}, "job: should be 1 to 64 printable characters"),
        ("ussd", {}, "code: is required"),
        ("ussd", {"code": ""}, USSD),
        ("ussd", {"code": "*100# 1"}, USSD),
        ("ussd", {"code": "*100#\n"}, USSD),
        ("ussd", {"code": "١"}, USSD),
        ("ussd", {"code": "1" * 183}, USSD),
        ("ussd", {"code": 1}, "code: should be a valid string"),
        ("ussd", {"cod": "1"}, "cod: unknown field; did you mean code?; code: is required"),
        ("ussd", {"code": "1", "timeout_s": 601}, "timeout_s: should be less than or equal to 600"),
        ("number/get", {"value": 1}, "value: unknown field"),
        ("number/set", {"value": "@anna"}, "value: is not a phone number"),
        ("exp_time/set", {"value": "5"}, "value: should be a valid integer"),
        ("exp_time/set", {"value": -1}, "value: should be greater than or equal to 0"),
        ("exp_time/set", {"value": 1_000_000_000}, "value: should be less than or equal to 999999999"),
        ("call_interval/set", {"value": 86_401}, "value: should be less than or equal to 86400"),
        ("modules/set", {"value": {}}, "value: names no channel"),
        ("modules/set", {"value": {"1": 1}}, "value.1: should be true or false"),
        ("modules/set", {"value": {"0": True}}, "value.0: should be a channel, 1 to 64"),
        ("modules/set", {"value": {"01": True}}, "value.01: should be a channel, 1 to 64"),
        ("modules/set", {"value": {"65": True}}, "value.65: should be a channel, 1 to 64"),
        ("call_forward/set", {"reason": "busy", "enable": True}, "number: is required with enable: true"),
        (
            "call_forward/set",
            {"reason": "all", "enable": False, "timeout_s": 121},
            "timeout_s: should be less than or equal to 120",
        ),
        ("call_forward/set", {"reason": "bus", "enable": False}, REASONS),
        ("call_forward/set", {"reason": "busy", "enable": 1}, "enable: should be a valid boolean"),
        ("call_waiting/set", {}, "enable: is required"),
        ("imei/set", {"value": "490154203237517"}, LUHN),
        ("imei/set", {"value": "49015420323751"}, "value: should be 15 digits"),
        ("imei/set", {"value": 490154203237518}, "value: should be a valid string"),
        ("cell/set", {"value": "7" * 65}, CELL),
        ("cell/set", {"value": "7E5 1"}, CELL),
        ("cell/set", {"value": "7E5\n"}, CELL),
        ("refresh", {"expires_at": "2030-01-01T00:00:00"}, f"expires_at: {TIME}"),
        ("refresh", [], "the payload should be a JSON object; it may be empty"),
        ("refresh", b'"PRESS"', "the payload should be a JSON object; it may be empty"),
        ("refresh", b"null", "the payload should be a JSON object; it may be empty"),
    ],
)
def test_invalid_payloads_name_the_place(path, payload, message):
    code, words = refusal(path, payload)
    assert code == "invalid_payload"
    assert words.removeprefix('"') == message


@pytest.mark.parametrize("value", ["", "3", "1" * 65, 10120121, None, ["1"]])
def test_modules_are_digits_or_switches(value):
    assert refusal("modules/set", {"value": value}) == (
        "invalid_payload",
        'value: should be digits 0 to 2, one per channel, or an object such as {"1": true}',
    )


def test_refusals_repeat_neither_numbers_nor_texts():
    secret = "0151 4711x"
    for payload in [{"to": secret, "text": "a"}, {"to": [secret], "text": "a"}, {"to": "1", "text": secret + "\0"}]:
        assert "4711" not in refusal("sms", payload)[1]
    assert "4711" not in refusal("sms/01514711/x", b"hi")[1]
    assert "4711" not in refusal("ussd", {"code": "4711 "})[1]


def test_misspelt_fields_lead_and_only_three_faults_are_told():
    _, message = refusal("ussd", {"timeout_s": 0, "a1": 1, "b1": 1, "kode": 1})
    assert message == "a1: unknown field; b1: unknown field; kode: unknown field; did you mean code?"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"to": "1", "text": "a" * 3001}, "text: is longer than 3000 bytes of UTF-8"),
        ({"to": "1", "text": "ü" * 1501}, "text: is longer than 3000 bytes of UTF-8"),
        ({"messages": [{"to": "1", "text": "a" * 3001}]}, "messages[0].text: is longer than 3000 bytes of UTF-8"),
        ({"to": ["1"] * 10_001, "text": "a"}, "to: has more than 10000 recipients"),
        ({"messages": [0] * 10_001}, "messages: has more than 10000 recipients"),
        (b'{"to":["' + b"1" * 1024 * 1024 + b'"]}', "the payload is larger than 1048576 bytes"),
    ],
)
def test_too_large(payload, message):
    assert refusal("sms", payload) == ("too_large", message)


def test_raw_texts_have_the_same_limits():
    assert refusal("sms/1", b"a" * 3001)[0] == "too_large"
    assert refusal("sms/1", b"a" * (1024 * 1024 + 1)) == ("too_large", "the payload is larger than 1048576 bytes")


def test_the_largest_command_is_accepted():
    numbers = [str(number) for number in range(10_000)]
    assert len(sms({"to": numbers, "text": "ü" * 1500}).recipients) == 10_000
    assert len(sms({"messages": [{"to": number, "text": "a"} for number in numbers]}).recipients) == 10_000


@pytest.mark.parametrize(
    ("path", "target", "message"),
    [
        ("smss", "line", "unknown command; did you mean sms?"),
        ("number", "line", "unknown command; did you mean number/get or number/set?"),
        ("sms/1/2", "line", "unknown command; did you mean sms?"),
        (
            "call/dial",
            "line",
            "unknown command; the bridge places no calls: voice goes through the gateway's SIP account",
        ),
        ("ping", "line", "unknown command of a line; ping is one of the bridge itself, bridge/cmd/ping"),
        ("sms", "bridge", "unknown command of the bridge; sms is one of a line, <line>/cmd/sms"),
        ("sms/1", "bridge", "unknown command"),
        ("send", "line", "unknown command; did you mean sms?"),
        ("restart", "line", "unknown command; did you mean module/reboot or gateway/reboot?"),
        ("reboot", "bridge", "unknown command; did you mean restart?"),
        ("Status", "line", "unknown command; did you mean info/get or gsm_state/get?"),
        ("status", "bridge", "unknown command; did you mean lines?"),
        ("SMS", "line", "unknown command; did you mean sms?"),
        ("relaod", "bridge", "unknown command; did you mean reload?"),
        ("", "line", "the topic ends at cmd and names no command; add one, such as cmd/sms"),
        ("", "bridge", "the topic ends at cmd and names no command; add one, such as cmd/ping"),
        ("x" * 60_000, "line", "unknown command"),
    ],
)
def test_unknown_commands(path, target, message):
    assert refusal(path, b"{}", target) == ("unknown_command", message)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"hello", f"line 1 column 1: Expecting value; write it like {SMS_EXAMPLE}"),
        (b'{"to": "1",\n "text": hi}', "line 2 column 10: Expecting value"),
        (b'{"to": "1"} x', "line 1 column 13: Extra data"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'{"text":"\xc3"}', "not UTF-8 at byte 9"),
        (b'{"to":"\xed\xa0\x80"}', "not UTF-8 at byte 7"),
        (b'{"a": "NaN", "b": NaN}', "line 1 column 19: not JSON"),
        (b'{"b": -Infinity}', "line 1 column 7: not JSON"),
        (b'{"b": 1e999}', "line 1 column 7: number out of range"),
        (b'{"a": "\\"9223372036854775808",\n"b": 9223372036854775808}', "line 2 column 6: integer beyond 64 bits"),
        (b'{"b": -9223372036854775809}', "line 1 column 7: integer beyond 64 bits"),
        (b'{"b": ' + b"1" * 5000 + b"}", "line 1 column 7: integer beyond 64 bits"),
        (b'{"b": 99999999999999999999x}', "line 1 column 7: integer beyond 64 bits"),
        (b'{"to": "1", "to": "2"}', 'the key "to" occurs twice'),
        (b'{"messages": [{"a": 1, "b": 2, "\\u0062": 3}]}', 'the key "b" occurs twice'),
        (b'{"\\ud800": 1}', 'NUL or lone surrogate in the key "\\ud800"'),
        (b"[" * 1024 * 1024, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
    ],
)
def test_invalid_json_says_where(payload, message):
    code, words = refusal("sms", payload)
    assert code == "invalid_json"
    assert words.startswith(message)


@pytest.mark.parametrize(
    ("path", "field", "meant"),
    [
        *(("sms", word, "to") for word in ("number", "phone", "recipient", "phoneNumber", "phone_number", "target")),
        *(("sms", word, "text") for word in ("message", "Message", "body", "msg", "content")),
        ("ussd", "ussd", "code"),
        ("ussd", "text", "code"),
        ("number/set", "number", "value"),
        ("call_forward/set", "phone", "number"),
        ("module/set", "on", "enable"),
        ("exp_time/set", "minutes", "value"),
        ("ussd", "timeout", "timeout_s"),
        ("sms", "ttl", "ttl_s"),
    ],
)
def test_the_words_of_others_for_our_fields_are_known(path, field, meant):
    code, message = refusal(path, {field: "x"})
    assert code == "invalid_payload"
    assert message.startswith(f"{field}: unknown field; did you mean {meant}?")


def test_the_words_of_others_are_known_in_messages_as_well():
    message = refusal("sms", {"messages": [{"number": "1", "message": "x"}]})[1]
    assert "messages[0].number: unknown field; did you mean to?" in message
    assert "messages[0].message: unknown field; did you mean text?" in message


def test_the_words_of_others_lead_to_fields_and_commands_that_exist():
    fields = {name for model in (*LINE_COMMANDS.values(), *BRIDGE_COMMANDS.values()) for name in model.model_fields}
    assert {meant for candidates in module._MEANT.values() for meant in candidates} <= fields
    paths = {*LINE_COMMANDS, *BRIDGE_COMMANDS}
    assert {meant for candidates in module._MEANT_COMMANDS.values() for meant in candidates} <= paths


@pytest.mark.parametrize("payload", [b"*100#", b" *100#\n", b"\xef\xbb\xbf*100#", b'{"code": "*100#"}'])
def test_a_ussd_code_may_be_the_payload(payload):
    assert parse_line("ussd", payload) == parse_line("ussd", {"code": "*100#"})
    assert canonical("ussd", payload) == canonical("ussd", b'{"code":"*100#"}')


def test_an_answer_in_a_ussd_menu_may_be_the_payload():
    assert parse_line("ussd", b"1").code == "1"
    assert parse_line("ussd", b"007").code == "007"  # no JSON
    for payload in (b"hello", b"*100# 1", b"1.5", b"-1", b"1" * 183, "١".encode()):
        code, message = refusal("ussd", payload)
        assert code in ("invalid_json", "invalid_payload")
        assert message.endswith('; write it like {"code": "*100#"}')


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_a_payload(mark):
    assert parse_line("sms/1", mark + b"hi").text == "hi"
    assert parse_line("sms", mark + b'{"to": "1", "text": "hi"}').text == "hi"
    assert canonical("sms/1", mark + b"hi") == canonical("sms/1", b"hi")
    assert read_id("refresh", mark + b'{"id": "a"}') == "a"
    assert parse_line("refresh", mark).id is None
    assert parse_line("sms/1", "a\ufeffb".encode()).text == "a\ufeffb"  # there it is a character


@pytest.mark.parametrize(
    ("text", "warned"),
    [('{"to": "+49", "text": "hi"}', True), (' {"text":"hi"}', True), ("{}", True)]
    + [(text, False) for text in ("hi", '{"text"', "[1]", '"hi"', "{hi}", "{" * 3000)],
)
def test_json_where_the_payload_is_the_text_is_sent_with_a_warning(text, warned):
    command = parse_line("sms/1", text.encode())
    assert command.text == text
    assert command.warnings == (["text_is_json"] if warned else [])


def test_integers_up_to_64_bits_are_json():
    assert refusal("exp_time/set", {"value": 2**63 - 1})[0] == "invalid_payload"
    assert refusal("exp_time/set", {"value": -(2**63)})[0] == "invalid_payload"


# --- What is accepted in more than one form ---


@pytest.mark.parametrize(
    ("given_to", "sent_to"),
    [
        ("+49 (151) 12-34.5/6", ["+49151123456"]),
        ("004915112", ["004915112"]),
        (4915112345678, ["4915112345678"]),
        (10**15 - 1, ["999999999999999"]),
        (0, ["0"]),
        (["1", 2, "@anna", "@Büro (Nacht)"], ["1", "2", "@anna", "@Büro (Nacht)"]),
        ("*100#", ["*100#"]),
        ("@a", ["@a"]),
        ("@" + "x" * 64, ["@" + "x" * 64]),
    ],
)
def test_recipients(given_to, sent_to):
    assert sms({"to": given_to, "text": "hi"}).recipients == tuple(Recipient(to, "hi") for to in sent_to)


@pytest.mark.parametrize(
    ("level", "sent_to"),
    [
        ("00491511", "+491511"),
        ("01511", "01511"),
        ("0", "0"),
        ("0049-15 11", "+491511"),
        ("anna", "@anna"),
        ("00agent", "@00agent"),
        ("Büro (Nacht)", "@Büro (Nacht)"),
    ],
)
def test_raw_texts_go_to_the_recipient_in_the_topic(level, sent_to):
    command = parse_line(f"sms/{level}", b' {"not": json} \n')
    assert isinstance(command, Sms)
    assert command.recipients == (Recipient(sent_to, ' {"not": json} \n'),)
    assert (command.path, command.id) == ("sms", None)


def test_press_is_a_text_where_texts_are_raw():
    command = parse_line("sms/1", b"PRESS")
    assert isinstance(command, Sms)
    assert command.text == "PRESS"


def test_the_same_number_with_the_same_text_is_sent_once():
    command = sms({"to": ["+49 1", "2", "+491"], "text": "hi"})
    assert command.recipients == (Recipient("+491", "hi"), Recipient("2", "hi"))
    assert command.warnings == ["duplicate_recipient"]


def test_the_same_number_with_another_text_is_another_sms():
    messages = [{"to": "1", "text": "a"}, {"to": 1, "text": "b"}, {"to": "1", "text": "a"}]
    command = sms({"messages": messages})
    assert command.recipients == (Recipient("1", "a"), Recipient("1", "b"))
    assert command.warnings == ["duplicate_recipient"]
    assert sms({"messages": messages[:2]}).warnings == []


@pytest.mark.parametrize("usable", ["a", "x" * 64, "door 42", "Tür"])
def test_usable_ids(usable):
    payload = encode({"id": usable})
    command = parse("refresh", payload, target="line")
    assert (command.id, command.warnings) == (usable, [])
    assert read_id("refresh", payload) == usable


@pytest.mark.parametrize(
    ("id", "what"),
    [
        ("\0", "NUL at character 0"),
        ("alarm-\0007", "NUL at character 6"),
        ("a\nb", "control character at character 1"),
        ("a\x7f", "control character at character 1"),
        ("a\x85", "control character at character 1"),
        ("x" * 70 + "\x1b", "control character at character 70"),
        ("a\ud800", "lone surrogate at character 1"),
    ],
)
@pytest.mark.parametrize("path", ["refresh", "sms", "ussd"])
def test_an_id_that_is_no_text_refuses_the_command_and_names_the_place(id, what, path):
    """It was carried out under another id: each repeat, with the id that should prevent it, once more."""
    with pytest.raises(CommandError) as refused:
        parse(path, encode({"id": id, "to": "1", "text": "a", "code": "*1#"}), target="line")
    assert refused.value.code == "invalid_payload"
    assert refused.value.message == f"id: {what}; it should be 1 to 64 printable characters"


@pytest.mark.parametrize("unusable", ["", "x" * 65, "a\u00a0b", 5, True, [], {}])
def test_an_unusable_id_refuses_nothing_and_warns(unusable):
    payload = encode({"id": unusable})
    command = parse("refresh", payload, target="line")
    assert (command.id, command.warnings) == (None, ["id_unusable"])
    assert read_id("refresh", payload) is None


def test_no_id_is_no_unusable_id():
    for payload in (b"", b"{}", b'{"id":null}'):
        command = parse("refresh", payload, target="line")
        assert (command.id, command.warnings) == (None, [])
        assert read_id("refresh", payload) is None


def test_both_warnings_are_given():
    assert sorted(sms({"id": "", "to": ["1", "1"], "text": "a"}).warnings) == ["duplicate_recipient", "id_unusable"]


def test_the_id_of_a_refused_command_can_be_read():
    assert read_id("sms", b'{"id":"a","to":"x"}') == "a"
    assert read_id("nothing", b'{"id":"a"}') == "a"
    assert read_id("sms/1", b'{"id":"a"}') is None  # that is the text
    assert read_id("sms", b'{"id":"a"') is None


@pytest.mark.parametrize(
    "rest",
    [
        b"9223372036854775808", b"-" + b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b'{"a":1,"a":2}', b'{"\\u0000":1}',
        b"{%b}" % b",".join(b'"%d":1' % n for n in range(2000)), b'"\\ud800"', b'{"id":"another"}',
    ],
)  # fmt: skip
def test_the_id_of_a_command_that_is_refused_for_what_stands_beside_it_can_be_read(rest):
    payload = b'{"id":"a","x":%b}' % rest
    with pytest.raises(CommandError):
        parse("sms", payload, target="line")
    assert read_id("sms", payload) == "a"
    assert read_id("sms", b"\xef\xbb\xbf" + payload) == "a", "with a byte order mark"
    assert read_id("sms", payload.replace(b'"x"', b'"id"')) is None, "which of the two counts?"


def test_what_is_no_object_or_cannot_be_read_has_no_id():
    for payload in (b'["a"]', b'[{"id":"a"}]', b'"id"', b"[" * 100_000, b"\xff", b'{"x":{"id":"a"}}', b'{"id":1}'):
        assert read_id("sms", payload) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2030-01-01T00:00:00Z", datetime(2030, 1, 1, tzinfo=UTC)),
        ("1999-09-29T09:59:39-09:59", datetime(1999, 9, 29, 19, 58, 39, tzinfo=UTC)),
        ("2030-01-01t02:00:00.250+02:00", datetime(2030, 1, 1, 0, 0, 0, 250_000, tzinfo=UTC)),
        ("2030-01-01 00:00:00.1234567z", datetime(2030, 1, 1, 0, 0, 0, 123_456, tzinfo=UTC)),
        (1893456000, datetime(2030, 1, 1, tzinfo=UTC)),
        (1893456000.5, datetime(2030, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (None, None),
    ],
)
def test_times(value, expected):
    command = parse_line("refresh", {"expires_at": value})
    assert command.expires_at == expected
    assert expected is None or command.expires_at.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1893456000",
        "2030-01-01",
        "2030-01-01T00:00Z",
        "2030-02-30T00:00:00Z",
        "2030-01-01T00:00:00+99:00",
        "0001-01-01T00:00:00+10:00",
        "9999-12-31T23:59:59-10:00",
        "20300101T000000Z",
        -1,
        1893456000000,  # milliseconds
        1e300,
        True,
        [],
    ],
)
def test_what_is_no_time(value):
    assert refusal("refresh", {"expires_at": value}) == ("invalid_payload", f"expires_at: {TIME}")


# --- Codes ---


def test_the_codes_are_those_of_the_contract():
    assert " ".join(CODES) == (
        "ok invalid_json invalid_payload unknown_command unknown_line line_offline line_disabled no_route "
        "forbidden_number quota_exceeded rate_limited too_large expired retained_command gateway_timeout "
        "gateway_refused busy not_supported storage shutting_down internal"
    )


def test_retryable_is_what_may_succeed_unchanged():
    assert [code for code in CODES if retryable(code)] == [
        "line_offline",
        "quota_exceeded",
        "rate_limited",
        "gateway_timeout",
        "busy",
        "storage",
        "shutting_down",
    ]


def test_nobody_is_told_to_repeat_what_must_not_run_twice():
    assert retryable("busy", once=True)
    assert not retryable("gateway_timeout", once=True)


def test_command_path_of_the_result():
    assert [command_path(path) for path in ("sms", "sms/00491", "number/get", "sms/1/2")] == [
        "sms",
        "sms",
        "number/get",
        "sms/1/2",
    ]


# --- Idempotency: payloads compared as parsed JSON (contract § 4.6) ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"to":"1","text":"a"}', b'{ "text": "\\u0061",\n "to": "1" }'),
        (b'{"value": 5}', b'{"value": 5.0}'),
        (b"", b"{}"),
        (b"PRESS", b"{ }"),
        ('{"text":"ü"}'.encode(), b'{"text":"\\u00fc"}'),
    ],
)
def test_payloads_that_say_the_same_are_equal(one, other):
    assert canonical("sms", one) == canonical("sms", other)


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        ("sms", b'{"to":"1"}', b'{"to":"2"}'),
        ("sms", b'{"to":"1"}', b'{"to":1}'),
        ("sms", b'{"to":["1","2"]}', b'{"to":["2","1"]}'),
        ("sms", b'{"a":true}', b'{"a":1}'),
        ("sms", b'{"a":null}', b"{}"),
        ("sms/1", b"{}", b"{ }"),
        ("sms/1", b"", b"PRESS"),
    ],
)
def test_payloads_that_differ_are_different(path, one, other):
    assert canonical(path, one) != canonical(path, other)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_canonical_is_a_fixed_point_and_ignores_the_order_of_keys(body):
    try:
        key = canonical("sms", encode(body))
    except CommandError:  # NaN, infinities, large integers, surrogates in keys
        assume(False)
    assert canonical("sms", key.encode()) == key
    assert canonical("sms", encode(dict(reversed(body.items())))) == key


# --- Nothing but a command or a CommandError ---


def check_outcome(path: str, payload: bytes, target: commands.Target) -> None:
    outcome = parsed_or_refused(path, payload, target)
    if isinstance(outcome, CommandError):
        assert outcome.code in {"invalid_json", "invalid_payload", "unknown_command", "too_large"}
        assert 0 < len(outcome.message) < 1000
        assert outcome.message.isprintable()
    else:
        assert outcome.path == command_path(path)
        assert canonical(path, payload).isascii()
        assert read_id(path, payload) == outcome.id


def parsed_or_refused(path: str, payload: bytes, target: commands.Target) -> Command | CommandError:
    try:
        return parse(path, payload, target=target)
    except CommandError as error:
        return error


@given(PATHS | st.text(), st.binary(), st.sampled_from(["line", "bridge"]))
@example("sms", b'{"\xc2\xa0": 1e400}', "line")
def test_random_bytes(path, payload, target):
    check_outcome(path, payload, target)


@given(PATHS, JSON, st.sampled_from(["line", "bridge"]))
def test_random_json(path, payload, target):
    check_outcome(path, encode(payload), target)


@given(PATHS, st.dictionaries(st.sampled_from([*FIELDS, "txt"]), JSON), st.sampled_from(["line", "bridge"]))
def test_random_values_in_known_fields(path, payload, target):
    check_outcome(path, encode(payload), target)


@given(st.sampled_from(MODELS), st.data())
def test_mutated_examples(target_and_model, data):
    target, model = target_and_model
    payload = encode(data.draw(st.sampled_from(model.model_json_schema()["examples"])))
    at = data.draw(st.integers(0, len(payload)))
    inserted = data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"[", b"\\ud800", b"\\u0000", b"9" * 30]))
    check_outcome(model.path, payload[:at] + inserted + payload[at + data.draw(st.integers(0, 3)) :], target)


@given(st.sampled_from(MODELS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_the_schema_accepts_what_the_parser_accepts(target_and_model, body):
    target, model = target_and_model
    try:
        command = parse(model.path, encode(body), target=target)
    except CommandError:
        return
    if "id_unusable" not in command.warnings and None not in body.values():
        jsonschema.validate(body, model.model_json_schema())
