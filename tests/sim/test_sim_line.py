"""Keepalives, registration, events and restarts of a simulated line, against docs/protocol.md §3, §6 and §7."""

import pytest

from bridge.sim.line import Registration


def fields(keepalive):
    return dict(part.split(":", 1) for part in keepalive.rstrip(";").split(";"))


def test_keepalive_every_30_seconds_with_rising_count(bench):
    box = bench()
    assert box.advance(29.9) == []
    sent = box.advance(60.2)
    assert [text.split(";")[0] for text in sent] == ["req:2", "req:3", "req:4"]


def test_keepalive_has_the_fields_of_the_captured_ones_in_their_order(bench):
    box = bench()
    [keepalive] = box.advance(30)
    assert " ".join(fields(keepalive)) == (
        "req id pass num signal gsm_status voip_status voip_state remain_time imei imsi iccid pro idle "
        "disable_status SMS_LOGIN SMB_LOGIN CELLINFO CGATT"
    )
    values = fields(keepalive)
    assert (len(values["imei"]), len(values["imsi"]), len(values["iccid"])) == (15, 15, 20)
    assert values["gsm_status"] == "LOGIN"
    assert 0 <= int(values["signal"]) <= 31


@pytest.mark.parametrize(
    ("profile", "answer", "registration", "sms_login"),
    [
        ("spec", "reg:1;status:200;", Registration.ACCEPTED, "Y"),
        ("spec", "reg:1;status:200;v:1;", Registration.ACCEPTED, "Y"),
        ("spec", "reg:1;status:0;", Registration.ACCEPTED, "Y"),
        ("spec", "reg:1;status:404;", Registration.REFUSED, "N"),
        ("spec", "reg:1;status:-1;", Registration.REFUSED, "N"),
        ("spec", "req:1;status:200;", Registration.WRONG_WORD, "N"),
        ("spec", "reg:9;status:200;", Registration.NO_ANSWER, "N"),
        ("status0", "reg:1;status:0;", Registration.ACCEPTED, "Y"),
        ("status0", "reg:1;status:200;", Registration.ACCEPTED, "Y"),
        ("status0", "reg:1;status:200;v:1;", Registration.ACCEPTED, "Y"),
        ("status0", "reg:1;status:404;", Registration.REFUSED, "N"),
        ("status200", "reg:1;status:200;", Registration.ACCEPTED, "Y"),
        ("status200", "reg:1;status:0;", Registration.REFUSED, "N"),
    ],
)
def test_registration_by_answer(bench, profile, answer, registration, sms_login):
    box = bench(profile=profile)
    assert box.line.registration is Registration.WAITING
    assert box.tell(answer) == []
    [keepalive] = box.advance(30)
    assert box.line.registration is registration
    assert fields(keepalive)["SMS_LOGIN"] == sms_login
    assert ("goip1" in box.world.registered) is (sms_login == "Y")


def test_silent_server_is_noticed_after_three_keepalives(bench):
    box = bench()
    box.tell("reg:1;status:200;")
    box.advance(95)
    assert box.line.registration is Registration.ACCEPTED
    box.advance(30)
    assert box.line.registration is Registration.NO_ANSWER


def test_event_is_sent_four_times_three_seconds_apart_then_given_up(bench):
    box = bench(keepalive=1000)
    box.line.receive_sms("+4420", "hi; there: you\nthere", box.now)
    [event] = box.sent()
    assert event == "RECEIVE:1700000000;id:goip1;password:password1;srcnum:+4420;msg:hi; there: you\nthere"
    assert box.advance(2.9) == []
    assert [box.advance(3) for _ in range(4)] == [[event], [event], [event], []]
    [outcome] = box.records("received_outcome")
    assert (outcome["result"], outcome["tries"]) == ("given_up", 4)


@pytest.mark.parametrize("ack", ["RECEIVE 1700000000 OK\n", "RECEIVE 1700000000 OK", "RECEIVE 1700000000 DISABLE"])
def test_acknowledged_event_is_not_repeated(bench, ack):
    box = bench(keepalive=1000)
    box.line.receive_sms("+4420", "hi", box.now)
    box.sent()
    box.advance(3)
    box.tell(ack)
    assert box.advance(60) == []
    [record] = box.records("received")
    assert (record["recvid"], record["from"], record["text"]) == (1700000000, "+4420", "hi")
    [outcome] = box.records("received_outcome")
    assert (outcome["result"], outcome["tries"], outcome["recvid"]) == ("acked", 2, 1700000000)


@pytest.mark.parametrize(
    "wrong",
    [
        "DELIVER 1700000000 OK\n",
        "RECEIVE 1699999999 OK\n",
        "RECEIVE 1700000000 ERROR busy\n",
        "RECEIVEOK:1700000000;id:goip1;status:0;",
        "RECEIVE OK\n",
    ],
)
def test_wrong_acknowledgement_does_not_stop_the_repeats(bench, wrong):
    box = bench(keepalive=1000)
    box.line.receive_sms("+4420", "hi", box.now)
    box.sent()
    box.tell(wrong)
    assert len(box.advance(60)) == 3


def test_recvid_counts_down_over_all_kinds(bench):
    box = bench()
    box.line.receive_sms("+4420", "hi", box.now)
    box.line.ussd_push("Balance 5", box.now)
    box.line.neighbours(box.now)
    assert [text.split(";")[0] for text in box.sent()] == ["RECEIVE:1700000000", "USSN:1699999999", "BCCH:1699999998"]


def test_unset_clock_counts_through_zero_and_again_after_reboot(bench):
    box = bench(profile="flaky_ntp", keepalive=1000, boot_time=5)
    seen = []
    for _ in range(2):
        for _ in range(15):
            box.line.receive_sms("+4420", "hi", box.now)
        seen.append([int(text.split(";")[0].split(":")[1]) for text in box.sent()])
        box.gateway.reboot(box.now)
        box.advance(5)
    assert seen == [list(range(12, -3, -1))] * 2


def test_wrong_clock_moves_recvid_and_senttime(bench):
    box = bench(clock_offset=-86400.0, newer_receive=True)
    box.line.receive_sms("MyBank", "hi", box.now, centre="+491")
    assert box.sent() == [
        "RECEIVE:1699913600;id:goip1;password:password1;srcnum:MyBank;smscnum:+491;senttime:2023-11-13 22:13:20;msg:hi"
    ]


def test_long_text_arrives_in_parts_where_asked_for(bench):
    text = "x" * 200
    whole, parts = bench(), bench(split_long=True)
    for box in (whole, parts):
        box.line.receive_sms("+4420", text, box.now)
    assert [len(sent.partition(";msg:")[2]) for sent in whole.sent()] == [200]
    assert [len(sent.partition(";msg:")[2]) for sent in parts.sent()] == [153, 47]


def test_reboot_starts_again_with_count_1_and_a_new_recvid(bench):
    box = bench(boot_time=20)
    box.tell("reg:1;status:200;")
    box.advance(60)
    box.line.receive_sms("+4420", "lost", box.now)
    box.sent()
    box.gateway.reboot(box.now)
    assert box.line.registration is Registration.OFF
    assert box.advance(19.9) == []
    [keepalive] = box.advance(0.2)
    assert keepalive.startswith("req:1;")
    box.line.receive_sms("+4420", "new", box.now)
    assert box.sent()[0].startswith("RECEIVE:1700000080;")
    assert [record["result"] for record in box.records("received_outcome")] == ["lost_by_restart"]


def test_reboot_during_boot_does_not_start_twice(bench):
    box = bench(boot_time=20)
    box.line.receive_sms("+4420", "lost", box.now)
    box.gateway.reboot(box.now)
    box.sent()
    box.advance(10)
    box.gateway.reboot(box.now)
    sent = box.advance(45)
    assert [text.split(";")[0] for text in sent] == ["req:1", "req:2"]
    assert len(box.records("received_outcome")) == 1


def test_switched_off_line_hears_nothing(bench):
    box = bench()
    box.line.power_off(box.now)
    assert box.tell("MSG 7 2 hi\n") == []


def test_sms_wait_in_the_network_while_the_line_is_logged_out(bench):
    box = bench()
    box.line.logout(box.now)
    box.line.receive_sms("+4420", "late", box.now)
    [keepalive] = box.advance(30)
    assert fields(keepalive)["gsm_status"] == "LOGOUT"
    assert fields(keepalive)["CGATT"] == "N"
    box.line.login(box.now)
    assert box.sent()[0].endswith(";msg:late")


def test_garbage_is_counted_and_answered_only_where_a_sendid_is_known(bench):
    box = bench()
    assert box.tell("\x00\x01", "RECEIVE", "nonsense 5") == []
    assert box.tell("SEND 42 1") == ["ERROR 42 fields missing\n"]
    assert box.line.undecodable == 4


def test_chatter_of_cells_only_where_asked_for(bench):
    assert [text for text in bench().advance(700) if not text.startswith("req:")] == []
    box = bench(chatter=True)
    assert {text.split(":")[0] for text in box.advance(700)} == {"req", "CELLINFO", "CGATT", "BCCH"}


def test_no_neighbours_are_reported_during_a_call_or_without_network(bench):
    box = bench(chatter=True)
    box.line.calls.incoming("+4420", box.now, seconds=400)
    assert not any(text.startswith("BCCH") for text in box.advance(310))
    box.line.logout(box.now)
    assert not any(text.startswith("BCCH") for text in box.advance(310))


def test_line_that_is_off_finds_no_network(bench):
    box = bench()
    box.line.power_off(box.now)
    box.line.receive_sms("+4420", "early", box.now)
    box.line.login(box.now)
    assert not box.line.logged_in
    assert box.sent() == []
    box.line.power_on(box.now)
    assert [text.rpartition(":")[2] for text in box.sent() if "early" in text] == ["early"]


def test_waiting_sms_arrives_once_although_login_is_repeated(bench):
    box = bench()
    box.line.logout(box.now)
    box.line.receive_sms("+4420", "late", box.now)
    box.line.login(box.now)
    box.line.login(box.now)
    assert len(box.records("received")) == 1


@pytest.mark.parametrize("end", ["refused", "off"])
def test_registration_can_be_lost(bench, end):
    box = bench()
    box.tell("reg:1;status:200;")
    assert box.world.registered == {"goip1"}
    if end == "refused":
        box.tell("reg:1;status:404;")
    else:
        box.line.power_off(box.now)
    assert box.world.registered == set()


def test_late_answer_from_before_a_restart_registers_nothing(bench):
    box = bench(boot_time=1)
    box.advance(60)
    box.gateway.reboot(box.now)
    box.advance(2)
    box.tell("reg:3;status:200;")
    assert box.line.registration is Registration.WAITING


def test_idle_minutes_count_from_the_last_call(bench):
    box = bench(ring=(0, 0))
    assert fields(box.advance(150)[-1])["idle"] == "2"
    box.line.calls.incoming("+4420", box.now, seconds=40)
    sent = [text for text in box.advance(90) if text.startswith("req:")]
    assert [fields(text)["idle"] for text in sent] == ["0", "0", "1"]
    assert len(box.records("call")) == 1


def test_pushed_ussd_is_on_record(bench):
    box = bench()
    box.line.ussd_push("Balance 5", box.now)
    assert [record["text"] for record in box.records("ussd_push")] == ["Balance 5"]
