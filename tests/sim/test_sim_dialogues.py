"""USSD and calls of a simulated line, against docs/protocol.md §9 and §7.13."""

import pytest


@pytest.fixture
def box(bench):
    return bench(ussd_delay=(2, 2), ring=(2, 2))


def ask(box, sendid, code):
    assert box.tell(f"USSD {sendid} password1 {code}") == []
    return box.advance(2)


# --- USSD ---


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("*100#", ["USSD 5 Balance 4.20 EUR, valid until 31.12."]),
        ("*101#", ["USSD 5 1 Top up\n2 Tariff"]),
        ("*102#", ["USSD 5 00420061006C0061006E0063006500200034002E00320030002020AC"]),
        ("*103#", ["USSDEXIT 5"]),
        ("*197#", ["USSD 5 USSD send failed!"]),
        ("*198#", ["USSDERROR 5 network error"]),
        ("*199#", []),
        ("*999#", ["USSD 5 Unknown service code"]),
        ("*100#\n", ["USSDERROR 5 bad code"]),
    ],
)
def test_service_code(box, code, answer):
    assert ask(box, 5, code) == answer
    assert [(record["sendid"], record["code"]) for record in box.records("ussd")] == [(5, code)]


def test_menu_over_three_levels_with_new_sendids(box):
    assert ask(box, 5, "*101#") == ["USSD 5 1 Top up\n2 Tariff"]
    assert ask(box, 6, "1") == ["USSD 6 Top up by\n1 5.00 EUR\n2 10.00 EUR"]
    assert ask(box, 7, "2") == ["USSD 7 10.00 added"]
    assert ask(box, 8, "2") == ["USSD 8 Unknown service code"]


def test_exit_closes_the_menu(box):
    ask(box, 5, "*101#")
    assert box.tell("USSDEXIT 6 wrong") == ["USSDERROR 6 PASSWORD"]
    assert box.tell("USSDEXIT 6 password1") == ["USSDEXIT 6"]
    assert ask(box, 7, "1") == ["USSD 7 Unknown service code"]


@pytest.mark.parametrize("profile", ["spec", "older_ussd_repeats"])
def test_equal_sendid_is_answered_from_memory(bench, profile):
    box = bench(profile=profile, ussd_delay=(2, 2))
    ask(box, 5, "*100#")
    assert box.tell("USSD 5 password1 *101#") == ["USSD 5 Balance 4.20 EUR, valid until 31.12."]
    assert len(box.records("ussd")) == 1


def test_smaller_sendid_goes_to_the_network(box):
    for sendid in (1380808269, 957673032):  # a server that draws them at random
        assert ask(box, sendid, "*100#") == [f"USSD {sendid} Balance 4.20 EUR, valid until 31.12."]
    assert len(box.records("ussd")) == 2


def test_smaller_sendid_is_answered_from_memory_by_the_chinese_edition(bench):
    box = bench(profile="older_ussd_repeats", ussd_delay=(2, 2))
    ask(box, 5, "*100#")
    assert box.tell("USSD 4 password1 *101#") == ["USSD 4 Balance 4.20 EUR, valid until 31.12."]
    assert len(box.records("ussd")) == 1


def test_repeat_while_the_network_works_is_silent_and_not_sent_again(box):
    box.tell("USSD 5 password1 *100#")
    assert box.tell("USSD 5 password1 *100#") == []
    assert len(box.advance(10)) == 1
    assert len(box.records("ussd")) == 1


def test_newer_request_replaces_one_that_is_never_answered(box):
    assert ask(box, 5, "*199#") == []
    assert ask(box, 6, "*100#") == ["USSD 6 Balance 4.20 EUR, valid until 31.12."]


def test_wrong_password_and_logged_out_line_reach_no_network(box):
    assert box.tell("USSD 5 wrong *100#") == ["USSDERROR 5 PASSWORD"]
    box.line.logout(box.now)
    assert box.tell("USSD 6 password1 *100#") == ["USSDERROR 6 GSM_LOGOUT"]
    assert box.records("ussd") == []


# --- calls ---


def test_incoming_call_that_is_answered(box):
    assert box.line.calls.incoming("+4420", box.now, seconds=90)
    assert box.events(0) == ["STATE:gsm_remain_state:INCOMING:+4420", "RECORD:dir:1;num:+4420"]
    assert box.events(2) == ["STATE:gsm_remain_state:CONNECTED:+4420"]
    assert box.events(90) == [
        "EXPIRY:exp:90",
        "STATE:gsm_remain_state:IDLE",
        "HANGUP:num:,cause:Normal call clearing",
    ]
    [end] = box.records("call_end")
    assert (end["seconds"], end["cause"]) == (90.0, "Normal call clearing")


def test_missed_call_has_no_expiry(box):
    box.line.calls.incoming("+4420", box.now, answered=False, seconds=20)
    assert box.events(20)[2:] == ["STATE:gsm_remain_state:IDLE", "HANGUP:num:,cause:User busy"]


def test_outgoing_call(box):
    assert box.line.calls.outgoing("10086", box.now, seconds=10)
    assert box.events(0) == ["STATE:gsm_remain_state:DIALING:10086", "RECORD:dir:2;num:10086"]
    assert box.events(1) == ["STATE:gsm_remain_state:ALERTING:10086"]
    assert box.events(2) == ["STATE:gsm_remain_state:CONNECTED:10086"]
    assert box.events(10) == [
        "EXPIRY:exp:10",
        "STATE:gsm_remain_state:IDLE",
        "HANGUP:num:,cause:Normal call clearing",
        "REMAIN:gsm_remain_time:-1",
    ]
    assert [(record["direction"], record["number"]) for record in box.records("call")] == [("outgoing", "10086")]


def test_outgoing_call_that_nobody_answers_has_an_expiry_of_0(box):
    assert box.line.calls.outgoing("10086", box.now, answered=False, seconds=20)
    assert box.events(30)[3:] == [
        "EXPIRY:exp:0",
        "STATE:gsm_remain_state:IDLE",
        "HANGUP:num:,cause:User busy",
        "REMAIN:gsm_remain_time:-1",
    ]


def test_state_shows_in_keepalive_and_answer_and_call_can_be_dropped(box):
    box.line.calls.incoming("+4420", box.now, seconds=300)
    box.advance(2)
    assert box.tell("get_gsm_state 1 password1") == ["get_gsm_state 1 CONNECTED:+4420"]
    assert any(";voip_state:CONNECTED:+4420;" in text for text in box.advance(30))
    box.tell("svr_drop_call 2 password1")
    assert box.tell("get_gsm_state 3 password1") == ["get_gsm_state 3 IDLE"]
    box.advance(400)
    assert len(box.records("call_end")) == 1


def test_one_call_at_a_time_and_none_without_network(box):
    assert box.line.calls.incoming("+4420", box.now)
    assert not box.line.calls.outgoing("+4421", box.now)
    box.line.logout(box.now)
    assert box.line.calls.state == "IDLE"
    assert not box.line.calls.incoming("+4420", box.now)


def test_unset_clock_announces_an_answered_call_twice(bench):
    box = bench(profile="flaky_ntp", ring=(2, 2))
    box.line.calls.incoming("+4420", box.now)
    assert box.events(5).count("RECORD:dir:1;num:+4420") == 2
