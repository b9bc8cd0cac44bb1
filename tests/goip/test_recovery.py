"""After a restart: what is asked of the box, what never is, and what is learned of its firmware by the way."""

from dataclasses import replace

import pytest
from goip_bench import HOME, SENDID, Bench

from bridge.goip import events
from bridge.goip.line import Proof, Submitted
from bridge.goip.server import LineMemory
from bridge.goip.session import Recipient

OLD = SENDID - 1000
"The sendid of an earlier run."
SENT = events.SmsSent("goip1", 9, 160)
QUERY = f"SEND {OLD} 3 +499\n"


def restarted(*, fields: dict[str, str] | None = None, proof: Proof | None = None, **config: object) -> Bench:
    """A server that was just started and has heard nothing yet."""
    bench = Bench(online=False, **config)
    bench.server.restore_line("goip1", LineMemory(address=HOME, count=40, reboots=1, fields=fields or {}))
    if proof is not None:
        bench.server.restore_proof("goip1", proof)
    bench.count = 40
    return bench


def resume(bench: Bench, *, ago: float = 2.0, msg: int = 9, sendid: int = OLD) -> bool:
    submitted = Submitted(sendid, 3, Recipient(msg, "+499"), bench.now - ago, bench.now - ago)
    bench.server.restore_session("goip1", submitted, bench.now)
    return bench.server.resume_session("goip1", submitted, bench.now)


def test_safe_line_is_listened_to_and_then_asked():
    bench = restarted(repeat_safe=True)
    assert resume(bench)
    assert bench.advance(7.9) == []
    assert bench.advance(0.2) == [QUERY]
    assert bench.tell(f"WAIT {OLD} 3") == []
    assert bench.advance(5) == [QUERY]
    assert bench.tell(f"OK {OLD} 3 160") == [f"DONE {OLD}\n"]
    assert bench.events() == [SENT]


def test_answer_within_the_grace_needs_no_question():
    bench = restarted(repeat_safe=True)
    resume(bench)
    assert bench.tell(f"OK {OLD} 3 160") == [f"DONE {OLD}\n"]
    assert bench.events() == [SENT]
    bench.tell(f"DONE {OLD}")
    assert bench.advance(50) == []


def test_session_the_box_has_forgotten_is_doubt_and_nothing_is_opened_again():
    bench = restarted(repeat_safe=True)
    resume(bench, ago=30)
    assert bench.advance(0) == [QUERY]
    assert bench.tell(f"ERROR {OLD} SENDID") == []
    assert bench.advance(10) == [f"DONE {OLD}\n"]
    assert bench.events() == [events.SmsUnknown("goip1", 9, "session_lost")]
    assert not any("MSG" in datagram for datagram in bench.advance(200))


def test_late_refusal_of_an_earlier_phase_is_no_answer_to_the_question():
    bench = restarted(repeat_safe=True)
    resume(bench, ago=30)
    bench.advance(0)
    bench.tell(f"ERROR {OLD} too_many_sends_in_server", f"ERROR {OLD} GSM_LOGOUT", f"PASSWORD {OLD}", f"SEND {OLD}")
    assert bench.events() == []
    assert bench.advance(5) == [QUERY]


def test_box_that_rebooted_meanwhile_knows_nothing():
    bench = restarted(repeat_safe=True)
    resume(bench)
    bench.keepalive(count=1)
    assert events.SmsUnknown("goip1", 9, "session_lost") in bench.events()


@pytest.mark.parametrize("declared", [None, False])
def test_unproved_line_is_only_listened_to(declared):
    bench = restarted(repeat_safe=declared)
    assert not resume(bench)
    bench.keepalive()
    assert bench.line.ready
    assert bench.advance(90) == []
    # ... and the slot that the session takes is freed.
    assert bench.tell(f"OK {OLD} 3 160") == [f"DONE {OLD}\n"]
    assert bench.told(events.SmsSent) == [SENT]
    assert bench.tell(f"OK {OLD} 3 160") == []


def test_session_that_is_too_old_is_not_asked_about():
    assert resume(restarted(repeat_safe=True), ago=84)
    assert not resume(restarted(repeat_safe=True), ago=86)


def test_nothing_new_leaves_before_the_earlier_ones_are_settled():
    bench = restarted(repeat_safe=True)
    resume(bench)
    resume(bench, msg=10, sendid=OLD + 1)
    bench.keepalive()
    assert bench.line.asked == {9, 10}
    bench.tell(f"OK {OLD} 3 160", f"DONE {OLD}")
    assert not bench.line.ready
    bench.tell(f"OK {OLD + 1} 3 161", f"DONE {OLD + 1}")
    assert bench.line.ready
    assert bench.line.asked == set()
    assert bench.told(events.SmsSent) == [SENT, events.SmsSent("goip1", 10, 161)]


# -- what is known of the firmware


PROOF = Proof(safe=True, identity="35678901")
IMEI = {"imei": "356789012345678"}


def test_proof_holds_for_the_hardware_it_was_seen_on():
    assert restarted(proof=PROOF, fields=IMEI).line.repeat_safe
    assert not restarted(proof=PROOF, fields={"imei": "111111112345678"}).line.repeat_safe
    assert not restarted(proof=PROOF).line.repeat_safe
    assert not restarted().line.repeat_safe


def test_new_hardware_in_the_next_keepalive_ends_the_proof():
    bench = restarted(proof=PROOF, fields=IMEI)
    bench.keepalive("imei:111111112345678;gsm_status:LOGIN;")
    assert not bench.line.repeat_safe


def test_configuration_can_say_unsafe_and_proof_of_unsafe_wins():
    assert not restarted(proof=PROOF, fields=IMEI, repeat_safe=False).line.repeat_safe
    assert not restarted(proof=Proof(safe=False, identity=""), repeat_safe=True).line.repeat_safe


def test_sms_with_two_numbers_was_sent_twice():
    bench = Bench(repeat_safe=True)
    bench.submit("+491", "+492")
    bench.tell(f"WAIT {SENDID} 1", f"OK {SENDID} 1 7", f"OK {SENDID} 1 7", f"WAIT {SENDID} 2")
    assert bench.told(events.RepeatUnsafe) == []
    bench.tell(f"OK {SENDID} 1 8")
    assert bench.told(events.RepeatUnsafe) == [events.RepeatUnsafe("goip1", "")]
    assert not bench.line.repeat_safe
    # From here on the session itself only listens.
    assert bench.advance(80) == []
    bench.tell(f"OK {SENDID} 1 9")
    assert bench.told(events.RepeatUnsafe) == []


def test_sms_that_failed_and_was_sent_was_tried_twice():
    bench = Bench(repeat_safe=True)
    bench.submit("+491", "+492")
    bench.tell(f"ERROR {SENDID} 1 errorstatus:28", f"ERROR {SENDID} 1 errorstatus:28")
    assert bench.told(events.RepeatUnsafe) == []
    bench.tell(f"OK {SENDID} 1 8")
    assert bench.told(events.RepeatUnsafe) == [events.RepeatUnsafe("goip1", "")]


def test_second_number_after_the_session_counts_as_well():
    bench = Bench()
    bench.submit()
    assert bench.advance(5) == [f"SEND {SENDID} 1 +491\n"]
    bench.tell(f"OK {SENDID} 1 7", f"DONE {SENDID}")
    bench.events()
    bench.tell(f"OK {SENDID} 1 8")
    assert bench.told(events.RepeatUnsafe) == [events.RepeatUnsafe("goip1", "")]


# -- a restored store


def test_held_line_sends_nothing_until_its_time_has_come():
    bench = restarted()
    bench.server.hold(bench.now + 95)
    bench.keepalive("gsm_status:LOGOUT;")
    bench.keepalive("gsm_status:LOGIN;")
    assert not bench.line.ready
    for _ in range(4):
        bench.advance(23)
        bench.keepalive()
    assert not bench.line.ready
    bench.events()
    bench.advance(3)
    assert bench.line.ready
    assert bench.told(events.LineReady) == [events.LineReady("goip1")]


# -- recvids that begin again


@pytest.fixture
def clockless() -> Bench:
    """A box without a clock has just offered an SMS with a small recvid."""
    bench = Bench()
    bench.keepalive(count=100)
    assert sms(bench) == ["RECEIVE 11 OK\n"]
    assert len(bench.told(events.SmsReceived)) == 1
    return bench


def sms(bench: Bench) -> list[str]:
    return bench.event("RECEIVE", "srcnum:+491;msg:ON", recvid=11)


def test_repeats_of_a_box_are_acknowledged_and_taken_once(clockless):
    for _ in range(4):
        clockless.advance(3)
        assert sms(clockless) == ["RECEIVE 11 OK\n"]
    assert clockless.told(events.SmsReceived) == []


def test_same_recvid_and_text_after_a_reboot_is_another_sms(clockless):
    clockless.advance(40)
    # Its first keepalive after the reboot was lost: nobody knows yet.
    assert sms(clockless) == []
    assert clockless.told(events.SmsReceived) == []
    clockless.advance(3)
    assert sms(clockless) == []
    clockless.keepalive(count=2)
    assert len(clockless.told(events.SmsReceived)) == 1
    clockless.advance(3)
    assert sms(clockless) == ["RECEIVE 11 OK\n"]
    assert clockless.told(events.SmsReceived) == []


def test_what_waited_in_the_socket_is_no_suspect(clockless):
    clockless.advance(40)
    clockless.server.deaf = clockless.now - 35, clockless.now
    assert sms(clockless) == ["RECEIVE 11 OK\n"]
    clockless.keepalive(count=1)
    assert clockless.told(events.SmsReceived) == []


def test_without_a_reboot_it_was_a_replay(clockless):
    clockless.advance(29)
    assert sms(clockless) == []
    clockless.keepalive()
    assert clockless.told(events.SmsReceived) == []
    clockless.keepalive(count=1)
    assert clockless.told(events.SmsReceived) == []


def test_replay_from_elsewhere_is_no_sms_of_after_a_reboot(clockless):
    clockless.advance(29)
    assert clockless.event("RECEIVE", "srcnum:+491;msg:ON", recvid=11, source=("198.51.100.66", 4444)) == []
    clockless.keepalive(count=1)
    assert clockless.told(events.SmsReceived) == []


def test_box_that_comes_back_elsewhere_after_a_reboot_loses_no_sms(clockless):
    """Its keepalives from there are not believed before its old place has been silent for long enough."""
    elsewhere = ("10.0.0.77", 4444)
    clockless.advance(40)
    clockless.keepalive(count=1, source=elsewhere)
    assert clockless.event("RECEIVE", "srcnum:+491;msg:ON", recvid=11, source=elsewhere) == []
    assert clockless.told(events.SmsReceived) == []
    clockless.advance(60)
    clockless.keepalive(count=3, source=elsewhere)
    assert clockless.line.address == elsewhere
    assert len(clockless.told(events.SmsReceived)) == 1


def test_suspects_have_a_limit(clockless):
    clockless.advance(29)
    for _ in range(1000):
        sms(clockless)
    assert len(clockless.line._suspects) <= 100


# -- an error after a SEND that was repeated


@pytest.mark.parametrize(("safe", "doubtful"), [(False, True), (True, False)])
def test_error_after_a_repeated_send_may_be_that_of_a_second_sms(safe, doubtful):
    bench = Bench(repeat_safe=safe)
    bench.submit("+491", "+492")
    bench.advance(5)
    bench.tell(f"ERROR {SENDID} 1 errorstatus:28")
    assert [failed.repeated for failed in bench.told(events.SmsFailed)] == [doubtful]
    if not safe:
        bench.tell(f"ERROR {SENDID} 2 errorstatus:28")
        assert [failed.repeated for failed in bench.told(events.SmsFailed)] == [False]


def test_no_number_is_sent_while_a_question_about_the_last_one_may_be_on_its_way():
    """Firmware that remembers one number only would take the question for a new SMS."""
    bench = Bench(repeat_safe=True)
    bench.submit("+491", "+492")
    bench.tell(f"WAIT {SENDID} 1")
    assert bench.advance(5) == [f"SEND {SENDID} 1 +491\n"]
    assert bench.tell(f"OK {SENDID} 1 7") == [f"DONE {SENDID}\n"]
    assert bench.told(events.SmsSending) == []


def test_line_that_is_heard_and_does_not_answer_is_tried_again_at_the_same_pace():
    bench = Bench()
    for _ in range(5):
        bench.send_sms()
        assert len(bench.advance(20.1)) == 4  # three repeats of MSG, and DONE
        bench.keepalive()
        bench.advance(2.5)
        assert bench.line.blocked_until == pytest.approx(bench.now + 30, abs=0.2)
        bench.keepalive()
        bench.advance(30.1)
        bench.keepalive()


def test_repeat_of_an_sms_of_just_before_the_reboot_was_noticed_is_known_after_a_restart():
    first = Bench()
    first.keepalive(count=100)
    assert sms(first) == ["RECEIVE 11 OK\n"]
    keys = [event.key for event in first.server.take_events() + first.log if isinstance(event, events.Seen)]
    second = Bench(online=False)
    second.server.restore_line("goip1", LineMemory(address=HOME, count=1, reboots=1))
    for key in keys:
        second.server.restore_repeat("goip1", key, second.now - 20)
    second.server.deaf = second.now - 18, second.now
    assert sms(second) == ["RECEIVE 11 OK\n"]
    assert second.told(events.SmsReceived) == []
    second.advance(30)
    sms(second)
    assert len(second.told(events.SmsReceived)) == 1, "so late it is the SMS of after the reboot"


@pytest.mark.parametrize(("count", "lost"), [(1, True), (2, True), (3, False)])
def test_session_that_the_box_knew_after_the_reboot_is_not_lost_with_it(count, lost):
    bench = Bench()
    bench.keepalive(count=100)
    bench.advance(40)
    bench.submit()
    bench.advance(1)
    bench.tell(f"WAIT {SENDID} 1")
    bench.advance(35)
    bench.keepalive(count=count)  # the first keepalives after the reboot were lost on the way
    assert bool(bench.told(events.SmsUnknown)) is lost


def test_before_the_first_keepalive_a_late_event_is_a_new_one():
    bench = Bench(online=False)
    sms(bench)
    bench.advance(14)
    sms(bench)
    assert len(bench.told(events.SmsReceived)) == 1
    bench.advance(10)
    assert sms(bench) == ["RECEIVE 11 OK\n"]
    assert len(bench.told(events.SmsReceived)) == 1


# -- what ends a line's safety, and what does not


@pytest.mark.parametrize("unset", ["", "(null)", "<NULL>"])
def test_line_that_sent_twice_stays_unsafe_without_an_imei(unset):
    bench = Bench(repeat_safe=True)
    bench.keepalive("imei:356789012345678;")
    bench.server.restore_proof("goip1", Proof(safe=False, identity="35678901"))
    bench.keepalive(f"imei:{unset};")
    assert not bench.line.repeat_safe
    bench.line.proof = Proof(safe=False, identity="")
    bench.keepalive("imei:356789012345678;")
    assert not bench.line.repeat_safe
    bench.line.proof = Proof(safe=False, identity="35678901")
    bench.keepalive("imei:111111112345678;")
    assert bench.line.repeat_safe, "another module"


def test_reload_to_unsafe_stops_the_questions():
    bench = Bench(repeat_safe=True)
    bench.submit()
    bench.tell(f"WAIT {SENDID} 1")
    assert bench.advance(5) == [f"SEND {SENDID} 1 +491\n"]
    bench.server.configure([replace(bench.config, repeat_safe=False)], bench.now)
    assert bench.advance(60) == []
    bench.tell(f"OK {SENDID} 1 160")
    assert bench.told(events.SmsSent)


def test_reload_to_unsafe_only_listens_for_what_was_to_be_asked():
    bench = restarted(repeat_safe=True)
    resume(bench)
    resume(bench, msg=10, sendid=OLD + 1)
    bench.server.configure([replace(bench.config, repeat_safe=False)], bench.now)
    assert bench.advance(60) == []
    bench.tell(f"OK {OLD} 3 160", f"OK {OLD + 1} 3 161")
    assert [sent.msg for sent in bench.told(events.SmsSent)] == [9, 10]


def test_sms_that_expires_before_it_could_be_asked_about_is_only_listened_for():
    for expires, asked in ((7.0, False), (9.0, True)):
        bench = restarted(repeat_safe=True)
        recipient = Recipient(9, "+499", expires=bench.now + expires)
        submitted = Submitted(OLD, 3, recipient, bench.now - 2, bench.now - 2)
        assert bench.server.resume_session("goip1", submitted, bench.now) is asked


def test_line_that_comes_with_a_reload_is_held_as_well():
    bench = restarted()
    bench.server.hold(bench.now + 95)
    new = replace(bench.config, name="goip2", goip_id="goip2")
    bench.server.configure([bench.config, new], bench.now)
    bench.tell("req:1;id:goip2;pass:pw1;gsm_status:LOGIN;")
    line = bench.server.line("goip2")
    assert line is not None
    assert not line.ready
