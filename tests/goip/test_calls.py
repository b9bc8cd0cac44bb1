"""Calls (docs/protocol.md §7.13): what STATE, RECORD, HANGUP and the keepalive make of them."""

import pytest
from goip_bench import Bench

from bridge.goip.events import CallEvent, LineEvent


def call(event_type: str, number=None, direction=None, duration_s=None, cause=None) -> CallEvent:
    return CallEvent("goip1", event_type, number, direction, duration_s, cause)


def state(bench: Bench, value: str, **options) -> None:
    bench.event("STATE", f"gsm_remain_state:{value}", **options)


def calls(bench: Bench) -> list[CallEvent]:
    return bench.told(CallEvent)


@pytest.mark.parametrize(
    ("wire", "state_"),
    [
        ("IDLE", "idle"),
        ("IDEL", "idle"),
        ("INCOMING:+491", "ringing"),
        ("DIALING:+491", "dialing"),
        ("ALERTING:+491", "alerting"),
        ("CONNECTED:+491", "active"),
        ("ACTIVE", "active"),
        ("BUSY", "busy"),
        ("incoming:+491", "ringing"),
        ("NEW_STATE", "idle"),
    ],
)
def test_state_of_the_call(bench, wire, state_):
    state(bench, wire)
    assert bench.line.call.state == state_


def test_incoming_call(bench):
    state(bench, "INCOMING:+491")
    bench.event("RECORD", "dir:1;num:+491")
    bench.advance(4)
    state(bench, "CONNECTED:+491")
    bench.advance(30)
    bench.event("EXPIRY", "exp:0")
    state(bench, "IDLE")
    bench.event("HANGUP", "num:,cause:Normal call clearing")
    assert calls(bench) == [
        call("ringing", "+491", "in"),
        call("recorded", "+491", "in"),
        call("answered", "+491", "in"),
        call("ended", "+491", "in", 30.0, "Normal call clearing"),
    ]


def test_outgoing_call(bench):
    state(bench, "DIALING:+491")
    bench.event("RECORD", "dir:2;num:+491")
    state(bench, "ALERTING:+491")
    bench.advance(4)
    state(bench, "CONNECTED:+491")
    bench.advance(12.5)
    state(bench, "IDLE")
    bench.event("HANGUP", "num:,cause:Normal call clearing")
    assert calls(bench) == [
        call("dialing", "+491", "out"),
        call("recorded", "+491", "out"),
        call("answered", "+491", "out"),
        call("ended", "+491", "out", 12.5, "Normal call clearing"),
    ]


def test_unanswered_call_lasts_no_time(bench):
    state(bench, "INCOMING:+491")
    bench.advance(20)
    state(bench, "IDLE")
    bench.event("HANGUP", "num:,cause:User busy")
    assert calls(bench)[-1] == call("ended", "+491", "in", 0.0, "User busy")


def test_call_is_answered_once(bench):
    for value in ("INCOMING:+491", "ACTIVE", "CONNECTED:+491", "ACTIVE"):
        state(bench, value)
    assert [event.event_type for event in calls(bench)] == ["ringing", "answered"]


def test_two_records_are_two_facts(bench):  # a box without a clock sends two (§7.2)
    bench.event("RECORD", "dir:1;num:+491")
    bench.event("RECORD", "dir:1;num:+491")
    assert calls(bench) == [call("recorded", "+491", "in")] * 2


def test_call_without_a_number(bench):
    state(bench, "INCOMING")
    assert calls(bench) == [call("ringing", None, "in")]


@pytest.mark.parametrize("unset", ["(null)", "<NULL>"])
def test_unset_number_does_not_replace_the_one_of_the_call(bench, unset):
    state(bench, "INCOMING:+491")
    state(bench, f"CONNECTED:{unset}")
    bench.event("RECORD", f"dir:1;num:{unset}")
    bench.keepalive(f"voip_state:CONNECTED:{unset};gsm_status:LOGIN;")
    assert bench.line.call.number == "+491"
    bench.event("HANGUP", f"num:{unset},cause:{unset}")
    assert calls(bench) == [
        call("ringing", "+491", "in"),
        call("answered", "+491", "in"),
        call("recorded", None, "in"),
        call("ended", "+491", "in", 0.0),
    ]


def test_record_tells_the_direction_of_a_call_whose_begin_was_missed(bench):
    state(bench, "ACTIVE")
    bench.event("RECORD", "dir:2;num:+491")
    bench.event("HANGUP", "num:,cause:x")
    assert calls(bench)[-1].direction == "out"


def test_idle_ends_a_call_whose_hangup_does_not_come(bench):
    state(bench, "INCOMING:+491")
    state(bench, "CONNECTED:+491")
    bench.advance(10)
    state(bench, "IDLE")
    bench.advance(4.9)
    assert "ended" not in [event.event_type for event in calls(bench)]
    bench.advance(0.2)
    assert calls(bench) == [call("ended", "+491", "in", 10.0)]


def test_hangup_that_comes_after_that_is_not_a_second_end(bench):
    state(bench, "INCOMING:+491")
    state(bench, "IDLE")
    bench.advance(6)
    calls(bench)
    bench.event("HANGUP", "num:,cause:Normal call clearing")
    assert calls(bench) == []


def test_hangup_alone_is_told(bench):
    bench.event("HANGUP", "num:+491,cause:Out of service")
    assert calls(bench) == [call("ended", "+491", None, None, "Out of service")]


def test_idle_line_ends_nothing(bench):
    state(bench, "IDLE")
    bench.advance(10)
    assert calls(bench) == []


def test_idle_after_hangup_ends_nothing_more(bench):
    state(bench, "INCOMING:+491")
    bench.event("HANGUP", "num:,cause:x")
    state(bench, "IDLE")
    bench.advance(10)
    assert [event.event_type for event in calls(bench)] == ["ringing", "ended"]


def test_next_call_ends_one_whose_end_was_missed(bench):
    state(bench, "INCOMING:+491")
    state(bench, "INCOMING:+492")
    assert calls(bench) == [
        call("ringing", "+491", "in"),
        call("ended", "+491", "in", 0.0),
        call("ringing", "+492", "in"),
    ]


def test_hangup_of_the_last_call_does_not_end_the_next_one(bench):
    first = bench.recvid - 1
    state(bench, "INCOMING:+491", recvid=first)
    state(bench, "IDLE", recvid=first - 1)
    state(bench, "INCOMING:+492", recvid=first - 3)
    calls(bench)
    bench.event("HANGUP", "num:,cause:User busy", recvid=first - 2)  # repeated by the box, as the first one was lost
    assert calls(bench) == []
    assert bench.line.call.state == "ringing"


def test_hangup_that_overtook_nothing_of_a_new_call_ends_the_old_one(bench):
    state(bench, "INCOMING:+491", recvid=20)
    state(bench, "IDLE", recvid=18)
    bench.event("HANGUP", "num:,cause:User busy", recvid=19)
    assert calls(bench)[-1] == call("ended", "+491", "in", 0.0, "User busy")


def test_begin_that_comes_late_is_told_and_ends_nothing(bench):
    state(bench, "ALERTING:+491", recvid=18)
    bench.event("RECORD", "dir:2;num:+491", recvid=19)
    state(bench, "DIALING:+491", recvid=20)
    assert calls(bench) == [call("recorded", "+491", "out"), call("dialing", "+491", "out")]
    assert bench.line.call.state == "alerting"


def test_answer_that_comes_after_idle_is_told_and_changes_no_state(bench):
    state(bench, "INCOMING:+491", recvid=20)
    state(bench, "IDLE", recvid=18)
    bench.advance(3)
    state(bench, "CONNECTED:+491", recvid=19)
    bench.event("HANGUP", "num:,cause:x", recvid=17)
    assert [event.event_type for event in calls(bench)] == ["ringing", "answered", "ended"]
    assert bench.line.call.state == "idle"


def test_step_that_comes_after_the_end_begins_no_call(bench):
    state(bench, "INCOMING:+491", recvid=20)
    bench.event("HANGUP", "num:,cause:x", recvid=17)
    calls(bench)
    state(bench, "CONNECTED:+491", recvid=19)
    state(bench, "INCOMING:+491", recvid=21)
    assert calls(bench) == []
    assert not bench.line.call.ongoing


def test_larger_recvid_long_after_is_no_late_step(bench):  # the box began to count anew, and we did not notice
    state(bench, "INCOMING:+491", recvid=5)
    bench.event("HANGUP", "num:,cause:x", recvid=4)
    calls(bench)
    bench.advance(60)
    state(bench, "INCOMING:+492", recvid=12)
    assert calls(bench) == [call("ringing", "+492", "in")]


def test_larger_recvid_after_a_reboot_is_no_late_step(bench):
    bench.keepalive(count=7)
    state(bench, "INCOMING:+491", recvid=5)
    bench.event("HANGUP", "num:,cause:x", recvid=4)
    bench.keepalive(count=1)
    calls(bench)
    state(bench, "INCOMING:+492", recvid=12)
    assert calls(bench) == [call("ringing", "+492", "in")]


def test_negative_recvids_count_down_too(bench):
    state(bench, "INCOMING:+491", recvid=1)
    state(bench, "CONNECTED:+491", recvid=-1)
    bench.event("HANGUP", "num:,cause:x", recvid=-3)
    assert [event.event_type for event in calls(bench)] == ["ringing", "answered", "ended"]


@pytest.mark.parametrize(("field", "state_"), [("INCOMING:+491", "ringing"), ("CONNECTED:+491", "active")])
def test_keepalive_tells_of_a_call_whose_state_was_missed(bench, field, state_):
    bench.keepalive(f"voip_state:{field};")
    assert (bench.line.call.state, bench.line.call.number) == (state_, "+491")


def test_keepalive_that_says_idle_ends_a_call(bench):
    state(bench, "INCOMING:+491")
    bench.advance(20)
    bench.keepalive("voip_state:IDLE;")
    bench.advance(5.1)
    assert calls(bench)[-1] == call("ended", "+491", "in", 0.0)


def test_keepalive_that_says_nothing_new_ends_a_call_too(bench):
    bench.keepalive("voip_state:IDLE;")
    state(bench, "INCOMING:+491")
    bench.advance(20)
    bench.keepalive("voip_state:IDLE;")
    bench.advance(5.1)
    assert calls(bench)[-1] == call("ended", "+491", "in", 0.0)


@pytest.mark.parametrize("field", ["CONNECTED:+491", "INCOMING:+491"])
def test_keepalive_that_was_overtaken_by_the_end_begins_no_call(bench, field):
    state(bench, "INCOMING:+491")
    bench.event("HANGUP", "num:,cause:x")
    calls(bench)
    bench.keepalive(f"voip_state:{field};")
    assert calls(bench) == []


def test_keepalive_without_a_state_changes_no_call(bench):
    state(bench, "INCOMING:+491")
    bench.advance(20)
    bench.keepalive("signal:7;")
    bench.advance(6)
    assert bench.line.call.state == "ringing"


def test_repeated_state_is_told_once(bench):
    state(bench, "INCOMING:+491", recvid=20)
    state(bench, "INCOMING:+491", recvid=20)
    state(bench, "INCOMING:+491", recvid=19)
    assert calls(bench) == [call("ringing", "+491", "in")]


def test_unknown_direction_is_none(bench):
    bench.event("RECORD", "dir:3;num:")
    assert calls(bench) == [call("recorded")]


def test_length_of_the_call_is_passed_on(bench):
    bench.event("EXPIRY", "exp:2")
    assert bench.told(LineEvent) == [LineEvent("goip1", "expiry", {"exp": 2})]


@pytest.mark.parametrize(
    ("minutes", "told", "unlimited"), [("37", 37, False), ("-1", None, True), ("(null)", None, None)]
)
def test_remaining_minutes_are_told(bench, minutes, told, unlimited):
    bench.event("REMAIN", f"gsm_remain_time:{minutes}")
    assert bench.told(LineEvent) == [LineEvent("goip1", "remain", {"remain_time_min": told, "unlimited": unlimited})]
