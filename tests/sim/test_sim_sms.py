"""Sessions and the modem behind them, against docs/protocol.md §4."""

import pytest


def without_keepalives(sent):
    return [text for text in sent if not text.startswith("req:")]


def test_session_from_msg_to_done(bench):
    box = bench(wait=(2, 2))
    assert box.tell("MSG 11 5 hello\n") == ["PASSWORD 11\n"]
    assert box.tell("PASSWORD 11 password1\n") == ["SEND 11\n"]
    assert box.tell("SEND 11 1 +8613800138000\n") == ["WAIT 11 1\n"]
    assert box.advance(1.9) == []
    assert box.advance(0.2) == ["OK 11 1 0\n"]
    assert box.tell("SEND 11 2 +8613800138001\n") == ["WAIT 11 2\n"]
    assert box.advance(2) == ["OK 11 2 1\n"]
    assert box.tell("DONE 11\n") == ["DONE 11\n"]
    submitted = [(record["to"], record["text"], record["sms_no"]) for record in box.records("submit")]
    assert submitted == [("+8613800138000", "hello", 0), ("+8613800138001", "hello", 1)]


def test_submit_is_recorded_when_the_modem_begins_not_when_the_server_learns(bench):
    box = bench()
    box.open_session()
    box.tell("SEND 7 1 +4911\n")
    [record] = box.records("submit")
    assert record == {
        "at": box.now,
        "line": "goip1",
        "what": "submit",
        "to": "+4911",
        "text": "hello",
        "sendid": 7,
        "telid": 1,
        "sms_no": 0,
        "result": "ok",
        "code": None,
    }


def test_ok_is_pushed_after_two_to_five_seconds(bench):
    for seed in range(20):
        box = bench(seed=seed)
        box.open_session()
        box.tell("SEND 7 1 +4911\n")
        assert box.advance(1.99) == []
        assert box.advance(3.02) == ["OK 7 1 0\n"]


@pytest.mark.parametrize(
    ("profile", "repeats_in_wait", "repeats_after_ok"),
    [
        ("spec", 0, 0),
        ("repeat_unsafe_wait", 1, 0),
        ("repeat_unsafe_always", 1, 1),
        ("no_sms_no", 0, 0),
        ("small_memory", 0, 0),
    ],
)
def test_repeated_send_by_profile(bench, profile, repeats_in_wait, repeats_after_ok):
    box = bench(profile=profile)
    box.open_session()
    box.tell("SEND 7 1 +4911\n")
    assert box.tell("SEND 7 1 +4911\n") == ["WAIT 7 1\n"]
    box.advance(20)
    assert len(box.records("submit")) == 1 + repeats_in_wait
    box.tell("SEND 7 1 +4911\n")
    box.advance(20)
    assert len(box.records("submit")) == 1 + repeats_in_wait + repeats_after_ok


def test_repeat_after_ok_is_answered_with_the_stored_outcome(bench):
    box = bench()
    box.open_session()
    box.tell("SEND 7 1 +4911\n")
    box.advance(5)
    assert box.tell("SEND 7 1 +4911\n") == ["OK 7 1 0\n"]


@pytest.mark.parametrize(("profile", "remembered"), [("spec", 10), ("small_memory", 1)])
def test_only_the_last_telids_are_remembered(bench, profile, remembered):
    box = bench(profile=profile)
    box.open_session()
    for telid in range(1, remembered + 2):
        box.tell(f"SEND 7 {telid} +4911{telid}\n")
        box.advance(5)
    assert box.tell("SEND 7 2 +49112\n") == [f"OK 7 2 {1}\n"]
    assert box.tell("SEND 7 1 +49111\n") == ["WAIT 7 1\n"]
    assert len(box.records("submit")) == remembered + 2


def test_older_firmware_answers_ok_without_sms_no(bench):
    box = bench(profile="no_sms_no")
    box.open_session()
    box.tell("SEND 7 1 +4911\n")
    assert box.advance(5) == ["OK 7 1\n"]


def test_modem_sends_one_sms_at_a_time(bench):
    box = bench(wait=(4, 4))
    box.open_session(7)
    box.open_session(8, "other")
    assert box.tell("SEND 7 1 +4911\n", "SEND 8 1 +4922\n") == ["WAIT 7 1\n", "WAIT 8 1\n"]
    assert len(box.records("submit")) == 1
    assert box.advance(4) == ["OK 7 1 0\n"]
    assert len(box.records("submit")) == 2
    assert box.advance(4) == ["OK 8 1 1\n"]


def test_long_text_takes_longer(bench):
    box = bench(wait=(2, 2))
    box.open_session(text="x" * 161)
    box.tell("SEND 7 1 +4911\n")
    assert box.advance(3.9) == []
    assert box.advance(0.2) == ["OK 7 1 0\n"]


def test_sms_no_wraps_after_255(bench):
    box = bench(wait=(1, 1))
    box.open_session()
    for telid in range(257):
        box.tell(f"SEND 7 {telid} +4911\n")
        box.advance(1)
    assert [record["sms_no"] for record in box.records("submit")][254:] == [254, 255, 0]


def test_radio_error_is_reported_with_its_code(bench):
    box = bench(radio_errors=1.0, radio_error_code=38)
    box.open_session()
    assert box.tell("SEND 7 1 +4911\n") == ["WAIT 7 1\n"]
    assert box.advance(5) == ["ERROR 7 1 errorstatus:38\n"]
    [record] = box.records("submit")
    assert (record["result"], record["code"], record["sms_no"]) == ("error", 38, None)


def test_forced_error_hits_only_the_next_sms(bench):
    box = bench()
    box.open_session()
    box.line.sms.fail_next(500)
    box.tell("SEND 7 1 +4911\n")
    assert box.advance(5) == ["ERROR 7 1 errorstatus:500\n"]
    box.tell("SEND 7 2 +4911\n")
    assert box.advance(5) == ["OK 7 2 0\n"]


def test_too_short_number_gives_the_captured_error(bench):
    box = bench()
    box.open_session()
    box.tell("SEND 7 1 +11\n", "SEND 7 2 110\n")
    assert box.advance(10) == ["ERROR 7 1 errorstatus:38\n", "OK 7 2 0\n"]


def test_wrong_password_keeps_the_session_open_for_another(bench):
    box = bench()
    box.tell("MSG 7 2 hi\n")
    assert box.tell("PASSWORD 7 wrong\n") == ["ERROR 7 PASSWORD\n"]
    assert box.tell("SEND 7 1 +4911\n") == ["ERROR 7 PASSWORD\n"]
    assert box.tell("PASSWORD 7 password1\n") == ["SEND 7\n"]
    assert box.records("submit") == []


def test_repeated_msg_opens_no_second_session(bench):
    box = bench()
    for _ in range(8):
        assert box.tell("MSG 7 2 hi\n") == ["PASSWORD 7\n"]
    assert box.line.sms.open_sessions(box.now) == 1
    box.tell("PASSWORD 7 password1\n")
    assert box.tell("MSG 7 2 hi\n") == ["SEND 7\n"]


def test_sixth_session_is_refused_until_one_is_done(bench):
    box = bench()
    for sendid in range(1, 6):
        assert box.tell(f"MSG {sendid} 2 hi\n") == [f"PASSWORD {sendid}\n"]
    assert box.tell("MSG 6 2 hi\n") == ["ERROR 6 too_many_sends_in_server\n"]
    box.tell("DONE 3\n")
    assert box.tell("MSG 6 2 hi\n") == ["PASSWORD 6\n"]


def test_session_is_forgotten_after_90_seconds_of_silence(bench):
    box = bench()
    box.open_session()
    box.advance(80)
    assert box.tell("PASSWORD 7 password1\n") == ["SEND 7\n"]
    box.advance(89)
    assert box.tell("PASSWORD 7 password1\n") == ["SEND 7\n"]
    box.advance(90)
    assert box.tell("SEND 7 1 +4911\n") == ["ERROR 7 SENDID\n"]
    assert box.records("submit") == []


def test_unknown_session(bench):
    box = bench()
    assert box.tell("PASSWORD 7 password1\n") == ["ERROR 7 SENDID\n"]
    assert box.tell("SEND 7 1 +4911\n") == ["ERROR 7 SENDID\n"]
    assert box.tell("DONE 7\n") == ["DONE 7\n"]


def test_logged_out_line_refuses_sessions_and_numbers(bench):
    box = bench()
    box.open_session()
    box.line.logout(box.now)
    assert box.tell("MSG 8 2 hi\n") == ["ERROR 8 GSM_LOGOUT\n"]
    assert box.tell("SEND 7 1 +4911\n") == ["ERROR 7 GSM_LOGOUT\n"]
    box.line.login(box.now)
    assert box.tell("SEND 7 1 +4911\n") == ["WAIT 7 1\n"]


def test_logout_fails_what_waits_but_not_what_is_on_its_way(bench):
    box = bench()
    box.open_session()
    box.tell("SEND 7 1 +4911\n", "SEND 7 2 +4922\n")
    box.line.logout(box.now)
    assert box.sent() == ["ERROR 7 2 errorstatus:331\n"]
    assert box.advance(5) == ["OK 7 1 0\n"]
    assert len(box.records("submit")) == 1


def test_reboot_forgets_sessions_and_queue_and_pushes_nothing(bench):
    box = bench(boot_time=10)
    box.open_session()
    box.tell("SEND 7 1 +4911\n", "SEND 7 2 +4922\n")
    box.gateway.reboot(box.now)
    assert without_keepalives(box.advance(60)) == []
    assert [record["telid"] for record in box.records("submit")] == [1]
    assert box.tell("SEND 7 1 +4911\n") == ["ERROR 7 SENDID\n"]


def test_one_shot_sms(bench):
    box = bench()
    assert box.tell("SMS 8 15 password1 +4911 two words") == ["WAIT 8 15\n"]
    assert box.advance(5) == ["OK 8 15 0\n"]
    assert box.tell("SMS 8 15 password1 +4911 two words") == ["OK 8 15 0\n"]
    assert box.tell("SMS 9 15 password1 +4911 next") == ["WAIT 9 15\n"]
    assert [record["text"] for record in box.records("submit")] == ["two words", "next"]
    assert box.tell("SMS 9 16 wrong +4911 x") == ["ERROR 9 16 PASSWORD\n"]


def arrived(box, *, line: int = 1) -> list[tuple[object, object]]:
    return [(r["from"], r["text"]) for r in box.records("received") if r["line"] == f"goip{line + 1}"]


def test_sms_to_another_line_of_the_simulator_arrives_there(bench):
    box = bench(lines=2, phone="+4917000%02d", wait=(2, 2), sms_delay=(3, 3))
    assert "num:+491700001;" in box.gateway.lines[0].keepalive_text(box.now)
    box.open_session()
    box.tell("SEND 7 1 00491700002\n")
    box.advance(4.9)
    assert arrived(box) == []
    box.advance(0.2)
    assert arrived(box) == [("+491700001", "hello")]


def test_sms_that_failed_or_is_for_somebody_else_arrives_nowhere(bench):
    box = bench(lines=2, phone="+4917000%02d", wait=(2, 2), sms_delay=(0, 0))
    box.open_session()
    box.gateway.lines[0].sms.fail_next(38)
    box.tell("SEND 7 1 +491700002\n", "SEND 7 2 +491700003\n")
    box.advance(10)
    assert len(box.records("submit")) == 2
    assert arrived(box) == []


def test_number_that_the_box_was_told_is_the_lines_number_where_it_has_no_other(bench):
    box = bench(lines=2, wait=(0, 0), sms_delay=(0, 0))
    box.open_session()
    for telid, number in enumerate(("+491700002", "+491700003"), 1):
        box.tell(f"set_gsm_num {telid} {number} password2", line=1)
        box.tell(f"SEND 7 {telid} {number}\n")
        box.advance(1)
        assert arrived(box) == [("", "hello")] * telid
    box.tell("SEND 7 3 +491700002\n")  # the number before
    box.advance(1)
    assert len(arrived(box)) == 2


@pytest.mark.parametrize(("profile", "copies"), [("spec", 1), ("repeat_unsafe_wait", 2), ("repeat_unsafe_always", 2)])
def test_sms_that_is_sent_twice_arrives_twice(bench, profile, copies):
    box = bench(profile=profile, lines=2, phone="+4917000%02d", wait=(2, 2), sms_delay=(0, 1))
    box.open_session()
    box.tell("SEND 7 1 +491700002\n", "SEND 7 1 +491700002\n")
    box.advance(10)
    assert len(arrived(box)) == copies


def test_delivery_report_follows_and_is_repeated_until_acknowledged(bench):
    box = bench(reports=1.0, wait=(2, 2), report_delay=(4, 4))
    box.open_session()
    box.tell("SEND 7 1 +4911\n")
    box.advance(2)
    [report] = box.advance(4)
    assert report == "DELIVER:1700000000;id:goip1;password:password1;sms_no:0;state:0;num:+4911"
    assert box.advance(3) == [report]
    box.tell("DELIVER 1700000000 OK\n")
    assert without_keepalives(box.advance(30)) == []
    [outcome] = box.records("report_outcome")
    assert (outcome["result"], outcome["tries"], outcome["to"]) == ("acked", 2, "+4911")


def test_no_report_for_a_failed_sms(bench):
    box = bench(reports=1.0, radio_errors=1.0)
    box.open_session()
    box.tell("SEND 7 1 +4911\n")
    box.advance(60)
    assert box.records("report") == []


def test_share_of_reports(bench):
    box = bench(reports=0.5, wait=(0, 0))
    box.open_session()
    for telid in range(200):
        box.tell(f"SEND 7 {telid} +4911\n")
        box.advance(0.1)
    box.advance(60)
    assert 70 < len(box.records("report")) < 130


def test_slow_profile_answers_late_and_in_order(bench):
    box = bench(profile="slow")
    assert box.tell("MSG 7 2 hi\n") == []
    assert box.advance(2.4) == []
    assert box.advance(0.2) == ["PASSWORD 7\n"]


def test_time_scale_shortens_the_radio_only(bench):
    box = bench(time_scale=10, wait=(2, 2))
    box.open_session()
    box.tell("SEND 7 1 +4911\n")
    assert box.advance(0.2) == ["OK 7 1 0\n"]
    assert box.advance(29.7) == []
    assert box.advance(0.2)[0].startswith("req:2;")


def test_answers_go_to_where_the_request_came_from(bench):
    box = bench()
    other = ("192.0.2.9", 5555)
    box.line.receive_datagram(b"MSG 7 2 hi\n", other, box.now)
    box.line.receive_datagram(b"PASSWORD 7 password1\n", other, box.now)
    box.line.receive_datagram(b"SEND 7 1 +4911\n", other, box.now)
    box.world.run_due(box.now + 5)
    assert {datagram.to for datagram in box.world.take_datagrams()} == {other}
