"""The codec: tables both ways, and whatever else a socket may hand us."""

import re
from dataclasses import asdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.goip import wire
from bridge.sim import wire as box

MESSAGES = (
    wire.Keepalive, wire.Event, wire.PasswordPrompt, wire.SendPrompt, wire.SubmitWait, wire.SubmitOk,
    wire.SubmitError, wire.Done, wire.Error, wire.Reply, wire.GsmValues,
)  # fmt: skip

VERBS = (
    b"req:1", b"GSM:1", b"RECEIVE:-5", b"DELIVER:1", b"STATE:1", b"RECORD:1", b"HANGUP:0", b"CELLS:1", b"BCCH:1",
    b"CGATT:1", b"USSN:1", b"AT:1", b"REMAIN:1", b"EXPIRY:1", b"NEW_KIND:1", b"PASSWORD 1", b"SEND 1", b"WAIT 1 1",
    b"OK 1 1 0", b"ERROR 1 1 errorstatus:1", b"ERROR 1", b"DONE 1", b"USSD 1 x", b"CFOK 1", b"GSMERROR 1 x",
)  # fmt: skip
PIECES = (b";", b":", b" ", b"\n", b"\r\n", b"\0", b"\xff", b"-", b"0", b"9" * 19, b"id:goip1", b"password:pw1",
          b"pass:pw1", b";msg:", b";MSG:", b";receive:", b"num:,cause:x", b"lists:1,,2,", b"gsm_remain_state:INCOMING:",
          "٣".encode(), b"sms_no:", b"errorstatus:")  # fmt: skip


def decode(datagram: str) -> wire.Message:
    return wire.decode(datagram.encode())


def outcome(data: bytes) -> wire.Message | wire.WireError:
    try:
        return wire.decode(data)
    except wire.WireError as error:
        return error


# -- anything at all


@given(st.binary(max_size=300))
def test_random_bytes_are_a_message_or_a_wire_error(data):
    assert isinstance(outcome(data), (*MESSAGES, wire.WireError))


@given(st.sampled_from(VERBS), st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=12))
def test_mangled_messages_are_a_message_or_a_wire_error(start, pieces):
    assert isinstance(outcome(start + b"".join(pieces)), (*MESSAGES, wire.WireError))


@given(st.sampled_from(VERBS), st.lists(st.sampled_from(PIECES), max_size=6))
def test_what_is_dropped_is_not_quoted(start, pieces):
    found = outcome(start + b";id:goip1;password:s3cret" + b"".join(pieces))
    assert not isinstance(found, wire.WireError) or "s3cret" not in str(found)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\n",
        b" ",
        b"\xff\xfe",
        b"\0" * 65507,
        b"A" * 65507,
        b";" * 65507,
        b"req:",
        b"req:;id:goip1;pass:pw1;",
        b"req:1",
        b"req:1;pass:pw1;",
        b"req:-1;id:goip1;pass:pw1;",
        b"req:1e3;id:goip1;pass:pw1;",
        "req:٣;id:goip1;pass:pw1;".encode(),
        "req:²;id:goip1;pass:pw1;".encode(),
        b"req:" + b"9" * 19 + b";id:goip1;pass:pw1;",
        b"req:1;id:goip1;pass:pw1;" + b"x" * 4096,
        b"RECEIVE",
        b"RECEIVE:",
        b"RECEIVE:;id:goip1;password:pw1;srcnum:1;msg:x",
        b"RECEIVE:1;password:pw1;srcnum:1;msg:x",
        b"RECEIVE:--1;id:goip1;password:pw1;srcnum:1;msg:x",
        b"RECEIVE:+1;id:goip1;password:pw1;srcnum:1;msg:x",
        b"RECEIVE:1_0;id:goip1;password:pw1;srcnum:1;msg:x",
        "STATE:١;id:goip1;password:pw1;gsm_remain_state:IDLE".encode(),
        b"RECEIVE:1;msg:;id:goip1;password:pw1",
        b"reg:1;status:200;",
        b"GSM:;imei:1",
        b"PASSWORD",
        b"PASSWORD ",
        b"PASSWORD x",
        b"PASSWORD -1",
        "PASSWORD ٣".encode(),
        b"password 1",
        b"OK 1",
        b"OK 1 x",
        b"WAIT 1",
        b"USSD",
        b"USSD x text",
        b"HELLO 8\n",
        b"START 1 host 1",
        b"goip",
        b"SEND 1" + b" " * 16384,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_this_is_no_message(data):
    with pytest.raises(wire.WireError):
        wire.decode(data)


# -- keepalives


def test_keepalive_keeps_unknown_fields_as_they_are():
    assert decode("req:1;id:a;pass:p;NEW_Field:x:y,z;").fields == {"NEW_Field": "x:y,z"}


def test_keepalive_knows_its_fields_in_any_case_and_order():
    message = decode("req:1;GSM_STATUS:LOGIN;PASS:p;Id:a;Cellinfo:LAC:1,CELL ID:2;")
    assert message == wire.Keepalive(1, "a", "p", {"gsm_status": "LOGIN", "cellinfo": "LAC:1,CELL ID:2"})


@pytest.mark.parametrize("key", ["pass", "password", "PASSWORD"])
def test_keepalive_takes_both_names_of_the_password(key):
    assert decode(f"req:1;id:a;{key}:p;").password == "p"


@pytest.mark.parametrize("end", ["", ";", ";\n", ";\r\n\0", ";  "])
def test_keepalive_may_end_as_it_likes(end):
    assert decode(f"req:1;id:a;pass:p;CGATT:Y{end}").fields == {"CGATT": "Y"}


def test_keepalive_without_a_password_has_an_empty_one():
    assert decode("req:1;id:a;").password == ""


# -- events


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@example(";msg:")
@example(";id:goip2;password:other;msg:")
@example("RECEIVE:1;id:goip1;password:pw1;srcnum:1;msg:x")
@example("a;b:c\nd\r\ne\n")
@example("  leading and trailing  ")
@example("")
def test_text_of_an_sms_is_taken_whole(text):
    message = wire.decode(b"RECEIVE:1;id:goip1;password:pw1;srcnum:+49;msg:" + text.encode() + b"\n")
    assert (message.id, message.password, message.srcnum) == ("goip1", "pw1", "+49")
    assert (message.text, message.raw, message.damaged) == (text, text.encode(), False)


def test_at_most_one_newline_is_taken_from_the_end_of_a_text():
    assert decode("RECEIVE:1;id:a;password:p;srcnum:1;msg:x\n\n").text == "x\n"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"caf\xe9", "caf\N{REPLACEMENT CHARACTER}"),
        (b"a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        (b"\xed\xa0\xbd", "\N{REPLACEMENT CHARACTER}" * 3),  # a lone surrogate
        (b"\xf0\x9f\x98", "\N{REPLACEMENT CHARACTER}"),  # an emoji cut in the middle
    ],
)
def test_damaged_text_is_sanitised_and_its_bytes_kept(raw, text):
    message = wire.decode(b"RECEIVE:1;id:goip1;password:pw1;srcnum:+49;msg:" + raw)
    assert (message.text, message.raw, message.damaged) == (text, raw, True)


@given(st.binary(max_size=60))
def test_any_text_can_be_written_as_json(raw):
    message = wire.decode(b"RECEIVE:1;id:goip1;password:pw1;srcnum:+49;msg:" + raw)
    message.text.encode()
    assert "\0" not in message.text


def test_damaged_sender_is_sanitised():
    message = wire.decode(b"RECEIVE:1;id:goip1;password:pw1;srcnum:My\0B\xe4nk;msg:x")
    assert message.srcnum == "My\N{REPLACEMENT CHARACTER}B\N{REPLACEMENT CHARACTER}nk"


# What the box says in front of a name and behind it, and the names that strangers give themselves.
FRAMES = (
    ("id:goip1;password:pw1;", ""),
    ("id:goip1;pass:pw1;", ""),
    ("id:goip1;pass:pw1;", ";smscnum:+49171;senttime:2024-01-02 03:04:05"),
    ("id:goip1;password:pw1;", ";senttime:2024-01-02 03:04:05;smscnum:+49171"),
    ("", ";id:goip1;password:pw1"),
    ("", ";pass:pw1;smscnum:+49171;id:goip1"),
    ("password:pw1;", ";id:goip1;senttime:t;smscnum:+49171"),
)
NAMES = (
    "Bank;24",
    ";",
    ";;x:;",
    "A;B;C:D",
    "\u0130;24",
    "Bank ;24",
    "x;smscnum",
    ";sms_no:1",
    "a:b",
    "x;MSG",
    "Bank;ID",
)
FORGED = (
    ";id:goip2",
    ";ID:goip2;x",
    ";password:x",
    ";pass:x;y",
    ";id:goip2;password:x",
    ";smscnum:1",
    ";senttime:1;x",
    ";smscnum:1;password:x",
    ";senttime:1;id:goip2;pass:x",
    ";smscnum:1;srcnum:x",
)


@pytest.mark.parametrize("frame", FRAMES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_sender_with_semicolons_is_taken_whole(frame, name):
    front, behind = frame
    message = decode(f"RECEIVE:1;{front}srcnum:{name}{behind};msg:Your code; is:1234;msg:x")
    assert (message.id, message.password, message.srcnum) == ("goip1", "pw1", name)
    assert message.text == "Your code; is:1234;msg:x"
    assert message.smscnum == ("+49171" if "smscnum" in behind else None)


@pytest.mark.parametrize("frame", FRAMES, ids=str)
@pytest.mark.parametrize("name", FORGED)
def test_a_sender_that_looks_like_a_field_changes_no_field(frame, name):
    front, behind = frame
    message = decode(f"RECEIVE:1;{front}srcnum:{name}{behind};msg:x")
    assert (message.id, message.password, message.text) == ("goip1", "pw1", "x")
    for key, told in (("smscnum", message.smscnum), ("senttime", message.senttime)):
        if key in behind:
            assert f";{key}:{told}" in behind
    if {"id", "password", "smscnum", "senttime"} <= set(re.findall("[a-z]+", front + behind)):
        assert message.srcnum == name


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_a_password_with_a_blank_behind_it_is_another_one(frame):
    front, behind = frame
    padded = [part.replace("pw1", "pw1 ") for part in (front, behind)]
    assert decode(f"RECEIVE:1;{padded[0]}srcnum:+49{padded[1]};srcnum:1;msg:x").password == "pw1 "


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), st.sampled_from(FRAMES))
def test_no_sender_changes_who_the_gateway_is(name, frame):
    front, behind = frame
    message = outcome(f"RECEIVE:1;{front}srcnum:{name}{behind};msg:x".encode())
    assert (message.id, message.password) == ("goip1", "pw1")
    assert ";msg:" in name.lower() or message.text == "x"


@pytest.mark.parametrize(
    ("kind", "rest", "expected"),
    [
        (
            "DELIVER",
            "sms_no:3;state:0;num:A;state:64;sms_no:4",
            {"sms_no": 3, "state": 0, "num": "A;state:64;sms_no:4"},
        ),
        ("DELIVER", "num:A;state:64;B;sms_no:3;state:0", {"sms_no": 3, "state": 0, "num": "A;state:64;B"}),
        ("DELIVER", "sms_no:3;num:A;B;state:0", {"sms_no": 3, "state": 0, "num": "A;B"}),
        ("STATE", "gsm_remain_state:INCOMING:A;id:x;B", {"state": "INCOMING", "number": "A;id:x;B"}),
        ("RECORD", "dir:1;num:A;dir:2", {"dir": 1, "num": "A;dir:2"}),
        ("RECORD", "num:A;dir:2;B;dir:1", {"dir": 1, "num": "A;dir:2;B"}),
        ("CELLINFO", 'info:"LAC:7E5;CELL ID:5E5B"', {"info": "LAC:7E5;CELL ID:5E5B"}),
        ("USSN", "msg:1;id:x;password:y;msg:z", {"text": "1;id:x;password:y;msg:z"}),
        ("STATE", "gsm_remain_state:DIALING:1;\r\n", {"state": "DIALING", "number": "1"}),
        ("HANGUP", "num:A;B;", {"num": "A;B", "cause": ""}),
        ("HANGUP", "num:A;msg:B;password:x,cause:User busy", {"num": "A;msg:B;password:x", "cause": "User busy"}),
    ],
)
def test_free_text_of_any_kind_is_taken_whole_and_changes_no_field(kind, rest, expected):
    message = decode(f"{kind}:1;id:a;password:p;{rest}")
    assert {"id": "a", "password": "p", **expected}.items() <= asdict(message).items()


@pytest.mark.parametrize(
    "name", ["A;B", "A;id:b", "A;pass:x;signal:0;y", "A;password:x", "A;disable_status:1", "voip_state:x"]
)
@pytest.mark.parametrize("key", ["pass", "password"])
@pytest.mark.parametrize("free", ["pro", "voip_state"])
def test_no_name_of_a_network_or_caller_changes_another_field_of_a_keepalive(name, key, free):
    front, behind = f"req:1;id:a;{key}:p;num:;signal:20;gsm_status:LOGIN;", "idle:11;disable_status:0;CGATT:Y;"
    message = decode(f"{front}{free}:{name};{behind}")
    assert (message.id, message.password) == ("a", "p")
    expected = {"num": "", "signal": "20", "gsm_status": "LOGIN", "idle": "11", "disable_status": "0", "CGATT": "Y"}
    assert expected.items() <= message.fields.items()
    assert message.fields[free] == (name.partition(";disable")[0])


def test_what_a_caller_says_between_two_texts_of_a_keepalive_changes_nothing_either():
    data = "req:1;id:a;pass:p;signal:20;voip_state:INCOMING:x;pro:y;disable_status:1;signal:0;remain_time:-1;imei:7;"
    message = decode(data + "pro:POL;signal:1;imei:8;idle:11;disable_status:0;CGATT:Y;")
    assert message.fields == {
        "signal": "20", "voip_state": "INCOMING:x", "remain_time": "-1", "imei": "7",
        "pro": "POL;signal:1;imei:8", "idle": "11", "disable_status": "0", "CGATT": "Y",
    }  # fmt: skip


def test_receive_of_newer_firmware_tells_centre_and_time():
    message = decode("RECEIVE:1;id:a;password:p;srcnum:1;smscnum:+49171;senttime:2024-01-02 03:04:05;msg:x")
    assert (message.smscnum, message.senttime) == ("+49171", "2024-01-02 03:04:05")


def test_receive_without_a_text_is_an_empty_sms():
    assert decode("RECEIVE:1;id:a;password:p;srcnum:1").text == ""


@pytest.mark.parametrize("keys", ["ID:a;PASSWORD:p;SRCNUM:1;MSG:X", "id:a;Pass:p;SrcNum:1;Msg:X"])
def test_keys_of_an_event_are_known_in_any_case(keys):
    message = decode(f"RECEIVE:1;{keys}")
    assert (message.id, message.password, message.srcnum, message.text) == ("a", "p", "1", "X")


def test_receive_has_no_largest_size():
    data = b"RECEIVE:1;id:a;password:p;srcnum:1;msg:" + b"x" * 65_000
    assert len(wire.decode(data).text) == 65_000


@pytest.mark.parametrize("recvid", [1_700_000_000, 1, 0, -1, -2_147_483_648])
def test_recvid_may_be_any_integer(recvid):
    assert decode(f"STATE:{recvid};id:a;password:p;gsm_remain_state:IDLE").recvid == recvid


@pytest.mark.parametrize(
    ("field", "num", "cause"),
    [
        ("num:,cause:Normal call clearing", "", "Normal call clearing"),
        ("num:+49,cause:User busy", "+49", "User busy"),
        ('num:,cause:"Out of service', "", "Out of service"),
        ("num:", "", ""),
        ("num:+49;cause:User busy", "+49", "User busy"),
        ("num:,cause:a,cause:b", ",cause:a", "b"),  # the caller chose the first, the box the last
        ("num:Ali;ce;x:1,cause:User busy", "Ali;ce;x:1", "User busy"),
        ("num:Ali;ce;cause:User busy", "Ali;ce", "User busy"),
        ("cause:User busy;num:Ali;cause:x", "Ali;cause:x", "User busy"),
    ],
)
def test_hangup_is_split_at_its_comma(field, num, cause):
    message = decode(f"HANGUP:1;id:a;password:p;{field}")
    assert (message.num, message.cause) == (num, cause)


@pytest.mark.parametrize(
    ("lists", "cells"), [("1,2,3,", (1, 2, 3)), ("", ()), (",,", ()), ("1,x,-2", (1, -2)), (" 7 , 8", (7, 8))]
)
def test_cells_are_integers(lists, cells):
    assert decode(f"CELLS:1;id:a;password:p;lists:{lists}").cells == cells
    assert decode(f"BCCH:1;id:a;password:p;bcch:{lists}").bcch == cells


@pytest.mark.parametrize(("value", "attached"), [("1", True), ("0", False), ("Y", True), ("n", False), ("", None)])
def test_cgatt_is_a_truth_value(value, attached):
    assert decode(f"CGATT:1;id:a;password:p;cgatt:{value}").attached is attached


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("-1", -1), ("", None), ("(null)", None), ("9" * 19, None)])
def test_unset_numbers_are_none(value, number):
    assert decode(f"REMAIN:1;id:a;password:p;gsm_remain_time:{value}").minutes == number
    assert decode(f"DELIVER:1;id:a;password:p;sms_no:{value};state:{value}").state == number


@pytest.mark.parametrize("unset", ["", "(null)", "<NULL>"])
def test_unset_words_are_empty(unset):
    head = ":1;id:a;password:p;"
    message = decode(f"RECEIVE{head}srcnum:{unset};smscnum:{unset};senttime:{unset};msg:{unset}")
    assert (message.srcnum, message.smscnum, message.senttime, message.text) == ("", None, None, unset)
    assert decode(f"DELIVER{head}sms_no:1;state:0;num:{unset}").num == ""
    assert decode(f"STATE{head}gsm_remain_state:INCOMING:{unset}").number == ""
    assert decode(f"RECORD{head}dir:1;num:{unset}").num == ""
    assert decode(f"CELLINFO{head}info:{unset}").info == ""
    hangup = decode(f"HANGUP{head}num:{unset},cause:{unset}")
    assert (hangup.num, hangup.cause) == ("", "")


@pytest.mark.parametrize("answer", ["set_num 5 +49123 ok", "netselect 5 2", "DIAL 5 ok", "ATALIVE 5 OK\n"])
def test_answers_to_what_only_other_servers_ask_are_answers(answer):
    verb, _, text = answer.strip().partition(" 5 ")
    assert decode(answer) == wire.Reply(verb, 5, text)


@pytest.mark.parametrize(("one", "other"), [("pass", "password"), ("password", "pass")])
def test_nothing_in_an_unknown_event_changes_who_the_gateway_is(one, other):
    message = decode(f"NEW:7;id:a;{one}:p;text:hi;id:b;{other}:x;{one}:y")
    assert (message.id, message.password) == ("a", "p")


@pytest.mark.parametrize("kind", ["NUM_ICCID", "need_recharge", "X1"])
def test_unknown_kind_keeps_its_spelling_and_its_fields(kind):
    message = decode(f"{kind}:7;id:a;password:p;Key:v:w;flag")
    assert message == wire.OtherEvent(kind, 7, "a", "p", {"Key": "v:w"}, f"{kind}:7;id:a;Key:v:w;flag")


@pytest.mark.parametrize("key", ["password", "pass", "PASSWORD", " Pass"])
def test_unknown_kind_does_not_show_the_password(key):
    message = decode(f"NEW:7;id:a;{key}:s3cret;x:1;msg:free; text")
    assert "s3cret" not in message.raw + str(message.fields)
    assert message.fields["msg"] == "free; text"


# -- sessions and replies


@pytest.mark.parametrize("end", ["", "\n", " \n", "\r\n", "\0", "\n\0\0"])
def test_session_messages_may_end_as_they_like(end):
    assert decode(f"DONE 11{end}") == wire.Done(11)
    assert decode(f"OK 11 1 160{end}") == wire.SubmitOk(11, 1, 160)
    assert decode(f"ERROR 11 PASSWORD{end}") == wire.Error(11, "PASSWORD")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 errorstatus:38", wire.SubmitError(5, 1, 38)),
        ("1 ERRORSTATUS:-1", wire.Error(5, "1 ERRORSTATUS:-1")),
        ("1 errorstatus:", wire.Error(5, "1 errorstatus:")),
        ("1 errorstatus:x", wire.Error(5, "1 errorstatus:x")),
        ("١ errorstatus:٣", wire.Error(5, "١ errorstatus:٣")),
        ("13800138001 bad value", wire.Error(5, "13800138001 bad value")),
        ("", wire.Error(5, "")),
    ],
)
def test_errors_are_told_apart_by_their_form(text, message):
    assert decode(f"ERROR 5 {text}") == message


def test_reply_may_hold_blanks_and_newlines():
    assert decode("USSD 5 Balance 4.20\n1 Top up\n2 Exit\n") == wire.Reply("USSD", 5, "Balance 4.20\n1 Top up\n2 Exit")


# -- our side


texts = st.text(st.characters(codec="utf-8"), max_size=80)
tokens = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
sendids = st.integers(1, 2**31 - 1)


@given(sendids, texts)
def test_text_reaches_the_box_as_it_is(sendid, text):
    assert box.decode(wire.encode_msg(sendid, text)) == box.OpenSession(sendid, text)


@given(sendids, tokens)
def test_password_reaches_the_box_as_it_is(sendid, password):
    assert box.decode(wire.encode_password(sendid, password)) == box.Authenticate(sendid, password)


@given(sendids, st.integers(1, 2**31 - 1), st.from_regex(r"\+?[0-9*#]{1,32}", fullmatch=True))
def test_number_reaches_the_box_as_it_is(sendid, telid, number):
    assert box.decode(wire.encode_send(sendid, telid, number)) == box.Submit(sendid, telid, number)


@given(st.from_regex(r"[A-Z][A-Z_]{0,12}", fullmatch=True), st.integers(-(2**31), 2**63))
def test_acknowledgement_names_the_event(kind, recvid):
    words = wire.encode_ack(kind, recvid).split()
    assert words == [kind.encode(), str(recvid).encode(), b"OK"]


@given(st.tuples(sendids, texts), st.tuples(sendids, texts))
def test_two_openings_are_the_same_datagram_only_if_they_are_the_same(one, other):
    assert (wire.encode_msg(*one) == wire.encode_msg(*other)) == (one == other)


commands = st.tuples(
    st.sampled_from(("get_gsm_num", "set_gsm_num", "CF", "USSD", "module_ctl")), sendids, st.lists(tokens, max_size=3)
)


@given(commands, commands)
def test_two_commands_are_the_same_datagram_only_if_they_are_the_same(one, other):
    def encode(command):
        verb, sendid, arguments = command
        return wire.encode_command(verb, sendid, tuple(arguments), "pw1", password_first=False)

    assert (encode(one) == encode(other)) == (one == other)


@given(tokens, st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30))
def test_ussd_code_reaches_the_box_as_it_is(password, code):
    data = wire.encode_command("USSD", 7, (code,), password, password_first=True)
    assert box.decode(data) == box.UssdRequest(7, password, code)
