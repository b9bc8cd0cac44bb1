"""The 32 pitfalls of docs/protocol.md §13, by their numbers: mistakes that other programs made."""

import re
import sys
from pathlib import Path

import pytest
from goip_bench import ELSEWHERE, HOME, SENDID, Bench

from bridge.contract import numbers
from bridge.goip import events, wire
from bridge.sim import wire as box

NOT_HERE = {
    4: "storing before acknowledging is the owner's part; that the event comes before the datagram is tested here too",
    28: "numbers are checked where commands come in, `bridge.contract.numbers`; tested here as well",
    29: "the core has no receive loop and waits for nothing: tests/test_layers.py",
    32: "the core does not know that it was away; `outage_gap` is the service's",
}
"Where a pitfall lies outside of the core, or partly so."


def test_every_pitfall_is_accounted_for():
    tested = {
        int(found[1]) for name in dir(sys.modules[__name__]) if (found := re.match(r"test_pitfall_(\d\d)_", name))
    }
    assert tested | set(NOT_HERE) == set(range(1, 33))


def test_pitfall_01_length_in_characters():
    assert wire.encode_msg(7, "hello мир") == "MSG 7 12 hello мир\n".encode()
    assert box.decode(wire.encode_msg(7, "😀 ok\n")) == box.OpenSession(7, "😀 ok\n")


@pytest.mark.parametrize("text", ["just; a test: x", "a;msg:b", ";id:x;password:y", "1:2:3", "line\nline\r\n;"])
def test_pitfall_02_splitting_msg_on_semicolon_or_colon(bench, text):
    bench.event("RECEIVE", f"srcnum:+49;msg:{text}")
    assert bench.told(events.SmsReceived)[0].text == text.removesuffix("\n")


def test_pitfall_03_lower_casing_the_packet(bench):
    bench.event("RECEIVE", "srcnum:MyBank;msg:Your Code: ABC")
    bench.keepalive("pro:My Operator;CELLINFO:LAC:7E5,CELL ID:5E5B;")
    (told,) = bench.told(events.SmsReceived)
    assert (told.srcnum, told.text) == ("MyBank", "Your Code: ABC")
    assert bench.line.fields == {"pro": "My Operator", "cellinfo": "LAC:7E5,CELL ID:5E5B"}


def test_pitfall_04_acking_before_storing(bench):
    bench.server.receive_datagram(b"RECEIVE:5;id:goip1;password:pw1;srcnum:1;msg:x", HOME, bench.now)
    stored = bench.server.take_events()
    assert any(isinstance(event, events.SmsReceived) for event in stored)
    assert bench.server.take_datagrams() == [(b"RECEIVE 5 OK\n", HOME)]


def test_pitfall_05_not_acking_duplicates_or_a_wrong_ack_word(bench):
    for _ in range(3):
        assert bench.event("RECEIVE", "srcnum:1;msg:x", recvid=5) == ["RECEIVE 5 OK\n"]
    assert len(bench.told(events.SmsReceived)) == 1


def test_pitfall_06_dedupe_without_age(bench):
    bench.event("RECEIVE", "srcnum:1;msg:x", recvid=441)
    bench.advance(bench.server.timing.repeats + 1)
    bench.event("RECEIVE", "srcnum:1;msg:x", recvid=441)
    assert len(bench.told(events.SmsReceived)) == 2


def test_pitfall_06_dedupe_without_body(bench):
    bench.event("RECEIVE", "srcnum:1;msg:x", recvid=441)
    bench.event("RECEIVE", "srcnum:1;msg:y", recvid=441)
    assert [event.text for event in bench.told(events.SmsReceived)] == ["x", "y"]


def test_pitfall_07_expecting_positive_or_rising_recvids(bench):
    for recvid in (1_700_000_000, 441, 1, 0, -1, -500):
        assert bench.event("RECEIVE", "srcnum:1;msg:x", recvid=recvid) == [f"RECEIVE {recvid} OK\n"]
    assert len(bench.told(events.SmsReceived)) == 6


def test_pitfall_08_repeating_send_during_wait(bench):
    bench.submit()
    bench.tell(f"WAIT {SENDID} 1\n")
    assert bench.advance(89) == []


def test_pitfall_08_repeating_send_on_every_wait(bench):
    bench.submit()
    for _ in range(30):
        assert bench.tell(f"WAIT {SENDID} 1\n") == []
        assert bench.advance(1) == []


def test_pitfall_09_timing_out_during_wait_and_calling_it_failed(bench):
    bench.submit()
    bench.tell(f"WAIT {SENDID} 1\n")
    bench.advance(89)
    assert [event for event in bench.events() if not isinstance(event, events.LineOffline)] == []
    bench.keepalive()
    bench.advance(2)
    assert bench.told(events.SmsUnknown) == [events.SmsUnknown("goip1", 1, "silence")]


def test_pitfall_10_no_repeat_of_msg_and_password(bench):
    assert bench.send_sms() == [f"MSG {SENDID} 5 hello\n"]
    assert bench.advance(5) == [f"MSG {SENDID} 5 hello\n"]
    assert bench.tell(f"PASSWORD {SENDID}\n") == [f"PASSWORD {SENDID} pw1\n"]
    assert bench.advance(5) == [f"PASSWORD {SENDID} pw1\n"]


def test_pitfall_11_two_sends_share_a_sendid(bench):
    sent = [*bench.ussd("*1#"), *bench.request("get_imei"), *bench.request("get_imei"), *bench.send_sms()]
    ids = [int(datagram.split()[1]) for datagram in sent]
    assert ids == sorted(set(ids))


def test_pitfall_11_restarting_sendid_at_1():
    first = Bench()
    first.request("get_imei")
    again = Bench()
    again.server.next_sendid = first.server.next_sendid  # what the store keeps
    assert again.ussd("*100#") == [f"USSD {SENDID + 1} pw1 *100#"]


def test_pitfall_12_trailing_newline_on_ussd_and_commands(bench):
    sent = [*bench.ussd("*100#"), *bench.request("set_gsm_num", "+49"), *bench.request("GSM")]
    assert not any(datagram.endswith(("\n", "\r", " ")) for datagram in sent)


def test_pitfall_13_literal_backslash_n(bench):
    sent = bench.send_sms() + bench.tell(f"PASSWORD {SENDID}\n", f"SEND {SENDID}\n")
    sent += bench.event("RECEIVE", "srcnum:1;msg:x")
    assert len(sent) == 4
    assert all(datagram.endswith("\n") and "\\" not in datagram for datagram in sent)


def test_pitfall_14_sending_to_a_configured_port(bench):
    bench.keepalive(source=("198.51.100.7", 9991))
    bench.send_sms()
    assert bench.destinations == [("198.51.100.7", 9991)]


@pytest.mark.parametrize(
    "fields",
    [
        "",
        "signal:;",
        "signal:x;remain_time:(null);disable_status:;",
        "NEW_FIELD:1;another;x:y:z;",
        "CGATT:Y;SMB_LOGIN:;num:;imei:<NULL>;idle:-1;",
    ],
)
def test_pitfall_15_strict_keepalive_regex(bench, fields):
    assert bench.keepalive(fields) == [f"reg:{bench.count};status:200;"]


def test_pitfall_16_req_instead_of_reg_and_other_statuses(bench):
    assert bench.keepalive() == ["reg:2;status:200;"]


def test_pitfall_17_sms_no_0_is_a_number(bench):
    bench.submit()
    bench.tell(f"OK {SENDID} 1 0\n")
    bench.event("DELIVER", "sms_no:0;state:0;num:+491")
    told = bench.events()
    assert events.SmsSent("goip1", 1, 0) in told
    assert events.SmsReport("goip1", 0, 0, "+491") in told


def test_pitfall_18_delivery_report_before_ok(bench):
    bench.submit()
    assert bench.event("DELIVER", "sms_no:7;state:0;num:+491", recvid=5) == ["DELIVER 5 OK\n"]
    bench.tell(f"OK {SENDID} 1 7\n")
    told = [type(event) for event in bench.events()]
    assert told.index(events.SmsReport) < told.index(events.SmsSent)  # the owner holds the report


@pytest.mark.parametrize("state", [0, 1, 32, 63, 64, 127])
def test_pitfall_18_temporary_states_are_passed_on_unjudged(bench, state):
    bench.event("DELIVER", f"sms_no:7;state:{state};num:+491")
    assert bench.events() == [events.SmsReport("goip1", 7, state, "+491")]


def test_pitfall_19_hangup_split_on_semicolon(bench):
    bench.event("HANGUP", "num:,cause:Normal call clearing")
    (told,) = bench.told(events.CallEvent)
    assert (told.number, told.cause) == (None, "Normal call clearing")


def test_pitfall_20_gsm_reply_or_at_acked_as_an_event(bench):
    bench.request("GSM")
    assert bench.tell(f"GSM:{SENDID};get_gsm_num:(null);get_exp_time:0") == []
    assert bench.event("AT", "count:1;receive:OK") == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("PASSWORD", wire.Error),
        ("SENDID", wire.Error),
        ("GSM_LOGOUT", wire.Error),
        ("too_many_sends_in_server", wire.Error),
        ("13800138001 bad value", wire.Error),
        ("1 errorstatus:38", wire.SubmitError),
    ],
)
def test_pitfall_21_error_by_token_count(error, kind):
    assert type(wire.decode(f"ERROR 17 {error}\n".encode())) is kind


def test_pitfall_22_prefix_matching_of_ids(bench):
    bench.submit()
    for wrong in (SENDID // 10, SENDID * 10, SENDID + 1):
        bench.tell(f"OK {wrong} 1 7\n", f"ERROR {wrong} 1 errorstatus:1\n", f"WAIT {wrong} 1\n")
    bench.tell(f"OK {SENDID} 11 7\n")
    assert bench.events() == []


def test_pitfall_23_module_ctl_i_disable_is_0_or_2(bench):
    bench.keepalive("disable_status:0;")
    bench.request("module_ctl_i", "0", disable=True)
    bench.tell(f"module_ctl_i {SENDID} ok")
    assert bench.keepalive("disable_status:0;")[1:] == [f"module_ctl_i {SENDID + 1} 2 pw1"]


@pytest.mark.parametrize(
    "error",
    ["ERROR {} PASSWORD", "ERROR {} GSM_LOGOUT", "ERROR {} SENDID", None],
)
def test_pitfall_24_leaving_sessions_open(bench, error):
    bench.send_sms()
    sent = bench.tell(f"PASSWORD {SENDID}\n")
    sent += bench.tell(error.format(SENDID)) if error else bench.advance(20)
    assert sent[-1] == f"DONE {SENDID}\n"
    assert bench.advance(10) == [f"DONE {SENDID}\n"]
    assert not bench.line.ready, "retries are spaced"


def test_pitfall_25_session_closed_by_the_box_in_the_middle(bench):
    bench.submit("+491", "+492")
    bench.tell(f"OK {SENDID} 1 7\n")
    bench.events()
    assert bench.tell(f"ERROR {SENDID} SENDID\n") == []
    assert bench.advance(10) == [f"DONE {SENDID}\n"]
    assert bench.told(events.SmsRequeued) == [events.SmsRequeued("goip1", 2, "SENDID")]


def test_pitfall_26_trusting_the_source(bench):
    assert bench.tell("req:9;id:goip1;pass:wrong;", source=ELSEWHERE) == []
    bench.send_sms()
    assert bench.destinations == [HOME]
    assert bench.tell(f"PASSWORD {SENDID}\n", source=ELSEWHERE) == []


def test_pitfall_27_learning_the_password_from_the_keepalive(bench):
    assert bench.tell("req:9;id:goip1;pass:x\nSEND 1 1 +49;") == []
    bench.send_sms()
    assert bench.tell(f"PASSWORD {SENDID}\n") == [f"PASSWORD {SENDID} pw1\n"]


@pytest.mark.parametrize("number", ["1\nDONE 5", "+49\r1", "1 2 +3x", "", "+", "(null)", "1;2"])
def test_pitfall_28_recipient_with_a_blank_or_newline(number):
    with pytest.raises(ValueError, match="number"):
        numbers.normalise(number)


def test_pitfall_30_one_socket_per_command(bench):
    bench.submit()
    bench.advance(100)
    bench.keepalive()
    bench.events()
    bench.tell(f"OK {SENDID} 1 7\n")  # as all goes through one door, a late answer still finds it
    assert bench.told(events.SmsSent) == [events.SmsSent("goip1", 1, 7)]


@pytest.mark.parametrize("kind", ["CELLS", "EXPIRY", "REMAIN", "NUM_ICCID", "need_recharge", "ANYTHING"])
def test_pitfall_31_silence_for_unknown_event_kinds(bench, kind):
    (ack,) = bench.event(kind, "x:1", recvid=5)
    assert ack.strip() == f"{kind} 5 OK"
    assert len(bench.events()) == 1


def test_tests_named_in_the_table_exist():
    here = Path(__file__).parents[2]
    for reason in NOT_HERE.values():
        for path in re.findall(r"tests/\S+\.py", reason):
            assert (here / path).exists()
