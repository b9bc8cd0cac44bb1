"""The self-test of a line: its whole course on the bench, every verdict, and everything that can come in between."""

import pytest
from goip_bench import HOME, SENDID, Bench

from bridge.goip import events
from bridge.goip.line import Proof
from bridge.goip.server import LineConfig
from bridge.goip.timing import Timing

OTHER = ("192.0.2.10", 10992)
"Where the receiving line is."
NUMBER = "+492"
IMEI = "imei:356789012345678;gsm_status:LOGIN;"
FIRST, SECOND = SENDID, SENDID + 1
"The sendids of the two SMS."


class Lab(Bench):
    """A bench with a second line, `goip2`, that receives."""

    def __init__(self, *, repeat_safe: bool | None = None) -> None:
        super().__init__(online=False)
        lines = [
            LineConfig(name="goip1", goip_id="goip1", password="pw1", repeat_safe=repeat_safe),
            LineConfig(name="goip2", goip_id="goip2", password="pw2"),
        ]
        self.server.configure(lines, self.now)
        self.beats = 40
        self.beat()
        self.events()

    def beat(self, fields: str = IMEI, other: str = IMEI) -> None:
        """A keepalive of both lines."""
        self.beats += 1
        self.tell(f"req:{self.beats};id:goip1;pass:pw1;{fields}")
        self.tell(f"req:{self.beats};id:goip2;pass:pw2;{other}", source=OTHER)

    def advance(self, seconds: float) -> list[str]:
        """Time passes with keepalives; what the server sends besides its answers to them."""
        sent = []
        end = self.now + seconds
        while self.now + 25 < end:
            sent += super().advance(25)
            self.beat()
        return sent + super().advance(end - self.now)

    def receive(self, text: str, source: tuple[str, int] = OTHER) -> None:
        """The receiving line gets an SMS."""
        self.recvid -= 1
        self.tell(f"RECEIVE:{self.recvid};id:goip2;password:pw2;srcnum:+491;msg:{text}", source=source)

    def begin(self) -> list[str]:
        assert self.server.selftest("goip1", 7, "goip2", NUMBER, self.now)
        return self.sent()

    @property
    def report(self) -> dict[str, object]:
        """Of the self-test that has just ended."""
        (ended,) = self.told(events.SelfTestEnded)
        assert (ended.line, ended.token) == ("goip1", 7)
        assert ended.report["verdict"] == ended.verdict
        return dict(ended.report)

    def verdict(self) -> tuple[object, str]:
        report = self.report
        reasons = report["reasons"]
        assert isinstance(reasons, list)
        return report["verdict"], "; ".join(reasons)

    # -- the course of a self-test, step by step: what a box does that keeps to the document

    def submitted(self, sendid: int = FIRST) -> None:
        """Until WAIT, with everything that was repeated on it."""
        telid = sendid - SENDID + 1
        assert self.tell(f"PASSWORD {sendid}\n") == [f"PASSWORD {sendid} pw1\n"]
        assert self.tell(f"SEND {sendid}\n") == [send(sendid)]
        again = self.tell(f"WAIT {sendid} {telid}\n")
        assert again == ([send(sendid)] if sendid == FIRST else [])
        if again:
            self.tell(f"WAIT {sendid} {telid}\n")
            assert self.advance(2) == [send(sendid)]
            self.tell(f"WAIT {sendid} {telid}\n")
        assert self.advance(1) == []

    def first_sent(self, sms_no: str = " 40") -> None:
        """SMS 1 is sent; the box knows that when it is asked."""
        self.submitted()
        assert self.tell(f"OK {FIRST} 1{sms_no}\n") == [send(FIRST)]
        assert self.tell(f"OK {FIRST} 1{sms_no}\n") == []

    def first_round(self, sms_no: str = " 40") -> None:
        self.first_sent(sms_no)
        self.receive(text(FIRST))
        assert self.advance(59.9) == []
        assert self.advance(0.2) == [f"DONE {FIRST}\n"]
        assert self.tell(f"DONE {FIRST}\n") == [f"MSG {SECOND} {len(text(SECOND))} {text(SECOND)}\n"]

    def second_sent(self, sms_no: str = " 41") -> None:
        self.submitted(SECOND)
        assert self.tell(f"OK {SECOND} 2{sms_no}\n") == []
        self.receive(text(SECOND))

    def known(self, sms_no: str = " 41") -> None:
        """The box still knows the session."""
        assert self.advance(78.9) == []  # 1 s was over before
        assert self.advance(0.2) == [send(SECOND)]
        assert self.tell(f"OK {SECOND} 2{sms_no}\n") == []

    def forgotten(self) -> None:
        assert self.advance(99.8) == []
        assert self.advance(0.2) == [send(SECOND)]

    def whole_course(self, first: str = " 40", second: str = " 41") -> None:
        self.begin()
        self.first_round(first)
        self.second_sent(second)
        self.known(second)
        self.forgotten()
        assert self.tell(f"ERROR {SECOND} SENDID\n") == []
        assert self.advance(59.8) == []
        assert self.advance(0.2) == [f"DONE {SECOND}\n"]
        self.tell(f"ERROR {SECOND} SENDID\n")


def send(sendid: int) -> str:
    return f"SEND {sendid} {sendid - SENDID + 1} {NUMBER}\n"


def text(sendid: int) -> str:
    return f"goip-bridge self-test {sendid}"


@pytest.fixture
def lab() -> Lab:
    return Lab()


# -- the verdicts


def test_firmware_that_does_all_as_it_must_is_safe(lab):
    assert lab.begin() == [f"MSG {FIRST} {len(text(FIRST))} {text(FIRST)}\n"]
    lab = Lab()
    lab.whole_course()
    report = lab.report
    steps = report.pop("steps")
    assert report == {
        "verdict": "safe",
        "reasons": [],
        "copies": [1, 1],
        "sms_nos": [40, 41],
        "dense": True,
        "took_s": pytest.approx(303, abs=2),
        "timing": {"repeat_s": 2.0, "known_s": 80.0, "forgotten_s": 100.0, "watch_s": 60.0},
    }
    words = [(step["round"], step["step"]) for step in steps]
    assert words == [
        (1, "open"), (1, "send"), (1, "answer"), (1, "repeat"), (1, "answer"), (1, "repeat"), (1, "answer"),
        (1, "answer"), (1, "repeat"), (1, "answer"), (1, "watch"), (1, "copy"),
        (2, "open"), (2, "send"), (2, "answer"), (2, "answer"), (2, "pause"), (2, "copy"),
        (2, "repeat"), (2, "answer"), (2, "pause"), (2, "repeat"), (2, "answer"), (2, "watch"), (2, "answer"),
    ]  # fmt: skip
    answers = [step["text"] for step in steps if step["step"] == "answer"]
    assert answers == [*["WAIT"] * 3, "OK 40", "OK 40", "WAIT", "OK 41", "OK 41", "ERROR SENDID", "ERROR SENDID"]
    assert NUMBER not in str(report) + str(steps)
    assert lab.line.proof == Proof(safe=True, identity="35678901", dense=True)
    assert lab.line.repeat_safe
    assert lab.line.ready


def test_steps_are_told_as_they_happen(lab):
    lab.begin()
    assert lab.told(events.SelfTestStep) == [events.SelfTestStep("goip1", 7, 0.0, 1, "open", "SMS 1: MSG", None)]
    lab.first_sent()
    told = lab.told(events.SelfTestStep)
    assert [step.step for step in told][-3:] == ["repeat", "answer", "watch"]
    assert told[-1].within == 60.0
    assert told[-1].at == 3.0


def test_line_that_is_safe_is_asked_after_wait(lab):
    lab.whole_course()
    lab.send_sms()
    lab.tell(f"PASSWORD {SECOND + 1}\n", f"SEND {SECOND + 1}\n", f"WAIT {SECOND + 1} 1\n")
    assert lab.advance(5) == [f"SEND {SECOND + 1} 1 +491\n"]


@pytest.mark.parametrize(
    ("first", "second", "dense"),
    [(" 255", " 0", True), (" 40", " 42", False), ("", "", None), (" 40", "", None), (" 40", " 40", False)],
)
def test_sms_nos_of_the_two_sms_tell_how_they_count(lab, first, second, dense):
    lab.whole_course(first, second)
    report = lab.report
    assert (report["verdict"], report["dense"]) == ("safe", dense)
    assert lab.line.proof == Proof(safe=True, identity="35678901", dense=bool(dense))


def test_second_copy_is_unsafe_and_ends_it_at_once(lab):
    lab.begin()
    lab.first_sent()
    lab.receive(text(FIRST))
    assert lab.advance(20) == []
    lab.receive(text(FIRST))
    assert lab.advance(3) == [f"DONE {FIRST}\n"], "the second one: the first left at once"
    assert lab.verdict() == ("unsafe", "SMS 1 arrived more than once")
    assert lab.line.proof == Proof(safe=False, identity="35678901")
    assert lab.line.ready


def test_second_copy_is_unsafe_whenever_it_comes(lab):
    lab.begin()
    lab.first_round()
    lab.second_sent()
    lab.receive(text(FIRST))
    assert lab.advance(10) == [f"DONE {SECOND}\n"]
    assert lab.verdict() == ("unsafe", "SMS 1 arrived more than once")


def test_session_forgotten_and_sent_again_is_unsafe(lab):
    lab.begin()
    lab.first_round()
    lab.second_sent()
    lab.known()
    lab.forgotten()
    lab.tell(f"WAIT {SECOND} 2\n")
    lab.receive(text(SECOND))
    lab.advance(10)
    assert lab.verdict() == ("unsafe", "SMS 2 arrived more than once")


def test_repeated_datagram_of_one_copy_is_one_copy(lab):
    lab.begin()
    lab.first_sent()
    lab.receive(text(FIRST))
    lab.recvid += 1  # the acknowledgement was lost
    lab.receive(text(FIRST))
    assert lab.advance(61)[:1] == [f"DONE {FIRST}\n"]
    assert lab.tell(f"DONE {FIRST}\n")[0].startswith(f"MSG {SECOND}")


def test_two_sms_nos_are_unsafe_before_any_copy_arrives(lab):
    lab.begin()
    lab.submitted()
    lab.tell(f"OK {FIRST} 1 40\n")
    assert lab.tell(f"OK {FIRST} 1 41\n") == [f"DONE {FIRST}\n"]
    assert lab.told(events.RepeatUnsafe) == [events.RepeatUnsafe("goip1", "35678901")]
    lab.tell(f"DONE {FIRST}\n")
    assert lab.verdict() == ("unsafe", "SMS 1 had two sms_nos")


@pytest.mark.parametrize(
    "outcomes", [("OK {} 1", "ERROR {} 1 errorstatus:38"), ("ERROR {} 1 errorstatus:38", "OK {} 1")]
)
def test_two_outcomes_of_one_sms_are_unsafe(lab, outcomes):
    lab.begin()
    lab.submitted()
    for outcome in outcomes:
        sent = lab.tell(outcome.format(FIRST))
    assert sent == [f"DONE {FIRST}\n"]
    lab.advance(5)
    assert lab.verdict() == ("unsafe", "SMS 1 had two outcomes: OK and ERROR")


def test_second_outcome_after_the_end_still_counts(lab):
    lab.whole_course()
    lab.events()
    lab.tell(f"OK {FIRST} 1 42\n")
    assert lab.told(events.RepeatUnsafe) == [events.RepeatUnsafe("goip1", "35678901")]
    assert not lab.line.repeat_safe


def test_safe_again_after_an_earlier_unsafe(lab):
    lab.server.restore_proof("goip1", Proof(safe=False, identity="35678901"))
    lab.whole_course()
    assert lab.line.proof == Proof(safe=True, identity="35678901", dense=True)


# -- what makes it inconclusive


PROOF = Proof(safe=True, identity="35678901")


@pytest.fixture
def proved(lab) -> Lab:
    """A line of which something is known already: nothing inconclusive may change that."""
    lab.server.restore_proof("goip1", PROOF)
    return lab


def inconclusive(lab: Lab, reason: str) -> None:
    lab.advance(70)
    verdict, reasons = lab.verdict()
    assert (verdict, reasons.startswith(reason)) == ("inconclusive", True), reasons
    assert lab.line.proof == PROOF
    assert lab.server.line("goip2").tester is None


def test_no_copy_at_all(proved):
    proved.begin()
    proved.first_sent()
    assert proved.advance(60) == [f"DONE {FIRST}\n"]
    inconclusive(proved, "the SMS did not reach the receiving line")


def test_sms_of_others_are_no_copies(proved):
    proved.begin()
    proved.first_sent()
    proved.receive("goip-bridge self-test 1")
    proved.receive("hello")
    inconclusive(proved, "the SMS did not reach the receiving line")


def test_late_first_copy_gives_a_second_one_its_time(lab):
    lab.begin()
    lab.first_sent()
    lab.advance(58)
    lab.receive(text(FIRST))
    assert lab.advance(29.9) == []
    assert lab.advance(0.2) == [f"DONE {FIRST}\n"]


@pytest.mark.parametrize("answer", ["ERROR {} GSM_LOGOUT", "ERROR {} too_many_sends_in_server"])
def test_refused_session(proved, answer):
    proved.begin()
    assert proved.tell(answer.format(FIRST)) == [f"DONE {FIRST}\n"]
    inconclusive(proved, "the gateway refused the session")


def test_refused_password(proved):
    proved.begin()
    proved.tell(f"PASSWORD {FIRST}\n")
    proved.tell(f"ERROR {FIRST} PASSWORD\n")
    inconclusive(proved, "the gateway refused the session: PASSWORD")
    assert proved.line.password_refused


def test_box_that_says_nothing(proved):
    proved.begin()
    assert proved.advance(20).count(f"MSG {FIRST} {len(text(FIRST))} {text(FIRST)}\n") == 3
    inconclusive(proved, "no answer to MSG")


def test_send_without_an_answer(proved):
    proved.begin()
    proved.tell(f"PASSWORD {FIRST}\n")
    proved.tell(f"SEND {FIRST}\n")
    assert proved.advance(10) == [send(FIRST)]
    inconclusive(proved, "no answer to SEND")


def test_radio_error(proved):
    proved.begin()
    proved.submitted()
    proved.tell(f"ERROR {FIRST} 1 errorstatus:38\n")
    inconclusive(proved, "the SMS was not sent: errorstatus 38")


@pytest.mark.parametrize("error", ["SENDID", "GSM_LOGOUT", "1 no credit"])
def test_other_error_of_the_sms(proved, error):
    proved.begin()
    proved.submitted()
    proved.tell(f"ERROR {FIRST} {error}\n")
    inconclusive(proved, f"the SMS was not sent: {error}")


def test_late_error_of_the_handshake_is_passed_over(lab):
    lab.begin()
    lab.submitted()
    assert lab.tell(f"ERROR {FIRST} too_many_sends_in_server\n", f"PASSWORD {FIRST}\n", f"SEND {FIRST}\n") == []
    assert lab.tell(f"OK {FIRST} 1 40\n") == [send(FIRST)]


def test_no_outcome(proved):
    proved.begin()
    proved.submitted()
    proved.advance(90)
    inconclusive(proved, "no outcome within 90 s")


def test_sms_that_went_out_before_it_could_be_asked_about(proved):
    proved.begin()
    proved.tell(f"PASSWORD {FIRST}\n")
    proved.tell(f"SEND {FIRST}\n")
    assert proved.tell(f"OK {FIRST} 1 40\n") == []
    proved.receive(text(FIRST))
    inconclusive(proved, "no repeated SEND was answered with WAIT")


@pytest.mark.parametrize("answer", ["WAIT {} 1", "ERROR {} SENDID", "ERROR {} busy"])
def test_repeat_after_ok_that_is_not_answered_ok(proved, answer):
    proved.begin()
    proved.submitted()
    proved.tell(f"OK {FIRST} 1 40\n")
    proved.tell(answer.format(FIRST))
    proved.receive(text(FIRST))
    inconclusive(proved, "SEND repeated after it was sent: answered ")


def test_repeat_after_ok_that_is_not_answered(proved):
    proved.begin()
    proved.submitted()
    proved.tell(f"OK {FIRST} 1 40\n")
    proved.receive(text(FIRST))
    assert proved.advance(5) == [send(FIRST)]
    proved.advance(5)
    inconclusive(proved, "no answer to SEND")


def test_lost_query_is_repeated_once(lab):
    lab.begin()
    lab.submitted()
    lab.tell(f"OK {FIRST} 1 40\n")
    lab.receive(text(FIRST))
    assert lab.advance(5) == [send(FIRST)]
    lab.tell(f"OK {FIRST} 1 40\n")
    assert lab.advance(60) == [f"DONE {FIRST}\n"]
    assert lab.tell(f"DONE {FIRST}\n")[0].startswith(f"MSG {SECOND}")


def test_session_forgotten_too_soon(proved):
    proved.begin()
    proved.first_round()
    proved.second_sent()
    proved.advance(79)
    proved.tell(f"ERROR {SECOND} SENDID\n")
    inconclusive(proved, "SEND repeated after 80 s of silence: answered ERROR SENDID, not OK")


@pytest.mark.parametrize("answer", ["OK {} 2 41", "WAIT {} 2", "ERROR {} PASSWORD"])
def test_session_not_forgotten(proved, answer):
    proved.begin()
    proved.first_round()
    proved.second_sent()
    proved.known()
    proved.forgotten()
    proved.tell(answer.format(SECOND))
    inconclusive(proved, "SEND repeated after 100 s of silence: answered ")


def test_second_sms_lost(proved):
    proved.begin()
    proved.first_round()
    proved.submitted(SECOND)
    proved.tell(f"OK {SECOND} 2 41\n")
    proved.known()
    proved.forgotten()
    proved.tell(f"ERROR {SECOND} SENDID\n")
    inconclusive(proved, "the SMS did not reach the receiving line")


# -- what happens to the lines meanwhile


def test_sending_line_restarts(proved):
    proved.begin()
    proved.first_sent()
    proved.beats = 0
    proved.beat()
    verdict, reasons = proved.verdict()
    assert (verdict, reasons) == (
        "inconclusive",
        "cut off: the gateway or the bridge restarted, or the line was removed",
    )


@pytest.mark.parametrize("what", ["restarted", "lost its network", "went offline"])
def test_receiving_line_is_disturbed(proved, what):
    proved.begin()
    proved.first_sent()
    proved.receive(text(FIRST))
    if what == "restarted":
        proved.tell("req:1;id:goip2;pass:pw2;", source=OTHER)
    elif what == "lost its network":
        proved.tell("req:50;id:goip2;pass:pw2;gsm_status:LOGOUT;", source=OTHER)
    else:
        proved.tell("req:50;id:goip1;pass:pw1;" + IMEI)
        while proved.server.line("goip2").online:
            Bench.advance(proved, 20)
            proved.tell(f"req:{proved.beats + 50};id:goip1;pass:pw1;{IMEI}")
            proved.beats += 1
            if f"MSG {SECOND}" in str(proved.tell(f"DONE {FIRST}\n")):
                proved.submitted(SECOND)
                proved.tell(f"OK {SECOND} 2 41\n")
    inconclusive(proved, f"the receiving line {what}")


def test_sending_line_goes_offline(proved):
    proved.begin()
    proved.first_round()
    proved.second_sent()
    while proved.line.online:
        Bench.advance(proved, 10)
        proved.beats += 1
        proved.tell(f"req:{proved.beats};id:goip2;pass:pw2;{IMEI}", source=OTHER)
    inconclusive(proved, "the sending line went offline")


def test_other_module_in_the_sending_line(proved):
    proved.begin()
    proved.first_sent()
    proved.beat("imei:111111112345678;")
    inconclusive(proved, "the module of the sending line was changed")


@pytest.mark.parametrize("left", [[0], [1], []])
def test_line_is_removed_from_the_configuration(lab, left):
    lab.begin()
    lab.first_sent()
    every = [
        LineConfig(name="goip1", goip_id="goip1", password="pw1"),
        LineConfig(name="goip2", goip_id="goip2", password="pw2"),
    ]
    lab.server.configure([every[index] for index in left], lab.now)
    assert f"DONE {FIRST}\n" in lab.sent()
    lab.advance(5)
    verdict, reasons = lab.verdict()
    assert verdict == "inconclusive"
    assert ("the receiving line was removed" in reasons) == (left == [0])


def test_bridge_that_stops_frees_the_session(lab):
    lab.begin()
    lab.first_sent()
    lab.server.wind_down(lab.now)
    assert lab.sent() == [f"DONE {FIRST}\n"]
    assert lab.verdict()[0] == "inconclusive"


def test_proof_is_that_of_the_hardware(lab):
    lab.whole_course()
    lab.beat("imei:111111112345678;")
    assert lab.line.known is None
    assert not lab.line.repeat_safe
    lab.beat()
    assert lab.line.repeat_safe


# -- who may begin, and when


def test_line_is_occupied_and_free_again(lab):
    lab.begin()
    assert not lab.line.ready
    assert not lab.server.selftest("goip1", 8, "goip2", NUMBER, lab.now)
    lab.tell(f"ERROR {FIRST} GSM_LOGOUT\n", f"DONE {FIRST}\n")
    lab.advance(31)  # the pause after a refusal
    assert lab.line.ready
    assert lab.begin()[0].startswith("MSG")


def test_receiving_line_serves_one_self_test_and_may_begin_one(lab):
    lab.begin()
    lab.server.configure(
        [LineConfig(name=f"goip{n}", goip_id=f"goip{n}", password=f"pw{n}") for n in (1, 2, 3)], lab.now
    )
    lab.tell("req:1;id:goip3;pass:pw3;", source=("192.0.2.10", 10993))
    assert not lab.server.selftest("goip3", 8, "goip2", NUMBER, lab.now)
    assert lab.server.selftest("goip2", 9, "goip1", "+491", lab.now)


def test_lines_that_are_not_there_do_not_begin():
    lab = Lab()
    lab.line.online = False
    assert not lab.server.selftest("goip1", 7, "goip2", NUMBER, lab.now)
    lab = Lab()
    lab.server.line("goip2").online = False
    assert not lab.server.selftest("goip1", 7, "goip2", NUMBER, lab.now)
    assert lab.sent() == []


def test_times_come_from_timing():
    lab = Lab()
    lab.server.timing = Timing(selftest_repeat=0.5, selftest_known=8, selftest_forgotten=10, selftest_watch=6)
    lab.begin()
    lab.tell(f"PASSWORD {FIRST}\n", f"SEND {FIRST}\n", f"WAIT {FIRST} 1\n", f"WAIT {FIRST} 1\n")
    assert lab.advance(0.5) == [send(FIRST)]
    lab.tell(f"OK {FIRST} 1\n", f"OK {FIRST} 1\n")
    lab.receive(text(FIRST))
    assert lab.advance(6) == [f"DONE {FIRST}\n"]
    lab.tell(f"DONE {FIRST}\n", f"PASSWORD {SECOND}\n", f"SEND {SECOND}\n", f"WAIT {SECOND} 2\n", f"OK {SECOND} 2\n")
    lab.receive(text(SECOND))
    assert lab.advance(8) == [send(SECOND)]
    lab.tell(f"OK {SECOND} 2\n")
    assert lab.advance(10) == [send(SECOND)]
    lab.tell(f"ERROR {SECOND} SENDID\n")
    assert lab.advance(6) == [f"DONE {SECOND}\n"]
    lab.tell(f"DONE {SECOND}\n")
    assert lab.verdict() == ("safe", "")


def test_answers_from_elsewhere_and_of_other_sessions_change_nothing(lab):
    lab.begin()
    lab.submitted()
    assert lab.tell(f"OK {FIRST} 1 40\n", source=("203.0.113.1", 1)) == []
    assert lab.tell(f"OK {FIRST} 2 40\n", f"WAIT {FIRST} 2\n") == []
    assert lab.tell(f"OK {FIRST} 1 40\n") == [send(FIRST)]
    assert lab.line.address == HOME
