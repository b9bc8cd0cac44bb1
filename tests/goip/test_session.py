"""One bulk session: the table of docs/protocol.md §4.4 row by row, its timers, and the promise never to lie."""

import pytest
from goip_bench import SENDID, Bench
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from bridge.goip import events, wire
from bridge.goip.line import Submitted
from bridge.goip.session import BulkSession, Phase, Recipient, Refusal
from bridge.goip.timing import Timing

TIMING = Timing()
ID = 42


class Session:
    """A session on its own: what the box says in, datagrams and events out."""

    def __init__(self, *numbers: str, text: str = "hello", safe: bool = False, **recipient: object) -> None:
        self.events: list[events.Event] = []
        self.datagrams: list[bytes] = []
        self.now = 100.0
        self.session = BulkSession(
            line="goip1",
            sendid=ID,
            password="pw1",
            safe=safe,
            timing=TIMING,
            events=self.events,
            datagrams=self.datagrams,
        )
        recipients = [Recipient(n, number, **recipient) for n, number in enumerate(numbers or ("+491",), 1)]
        self.session.open(text, recipients, self.now)

    @property
    def phase(self) -> Phase:
        return self.session.phase

    def tell(self, *messages: str) -> list[str]:
        """The box says this; what the session answers."""
        for message in messages:
            self.session.receive(wire.decode(message.encode()), self.now)
        return self.sent()

    def advance(self, seconds: float) -> list[str]:
        end = self.now + seconds
        while self.session.deadline is not None and self.session.deadline <= end:
            self.now = self.session.deadline
            self.session.handle_timer(self.now)
        self.now = end
        return self.sent()

    def sent(self) -> list[str]:
        sent = [datagram.decode() for datagram in self.datagrams]
        self.datagrams.clear()
        return sent

    def told(self) -> list[events.Event]:
        told = self.events[:]
        self.events.clear()
        return told


@pytest.fixture
def opening() -> Session:
    """MSG was sent."""
    session = Session()
    assert session.sent() == ["MSG 42 5 hello\n"]
    return session


@pytest.fixture
def auth(opening: Session) -> Session:
    """PASSWORD was sent."""
    assert opening.tell("PASSWORD 42\n") == ["PASSWORD 42 pw1\n"]
    return opening


@pytest.fixture
def submitted(auth: Session) -> Session:
    """SEND was sent."""
    assert auth.tell("SEND 42\n") == ["SEND 42 1 +491\n"]
    assert auth.told() == [events.SmsSending("goip1", 1, ID, 1)]
    return auth


@pytest.fixture
def waiting(submitted: Session) -> Session:
    """The box said WAIT."""
    assert submitted.tell("WAIT 42 1\n") == []
    return submitted


@pytest.fixture
def closing(waiting: Session) -> Session:
    """DONE was sent."""
    assert waiting.tell("OK 42 1 160\n") == ["DONE 42\n"]
    waiting.told()
    return waiting


SENT = events.SmsSent("goip1", 1, 160)
REPEATS = ["SEND 42 1 +491\n"] * 3


# -- firmware that is known to be safe (§4.3)


@pytest.fixture
def safe() -> Session:
    """WAIT came from firmware that answers a repeated SEND with the outcome."""
    session = Session(safe=True)
    session.tell("PASSWORD 42", "SEND 42", "WAIT 42 1")
    session.told()
    return session


def test_safe_silence_after_wait_is_broken_by_a_query(safe):
    assert safe.advance(5) == ["SEND 42 1 +491\n"]
    assert safe.tell("WAIT 42 1") == []
    assert safe.advance(4.9) == []
    assert safe.advance(0.2) == ["SEND 42 1 +491\n"]
    assert safe.tell("OK 42 1 160") == ["DONE 42\n"]
    assert safe.told() == [SENT]


def test_safe_silence_of_90_s_is_unknown(safe):
    assert safe.advance(89.9) == ["SEND 42 1 +491\n"] * 17
    assert safe.told() == []
    safe.advance(5.2)
    assert safe.told() == [events.SmsUnknown("goip1", 1, "silence")]


def test_safe_session_that_is_lost_is_unknown(safe):
    safe.advance(5)
    safe.tell("ERROR 42 SENDID")
    assert safe.advance(9.9) == []
    safe.advance(0.2)
    assert safe.told() == [events.SmsUnknown("goip1", 1, "session_lost")]


def test_waiting_is_not_for_ever(waiting):
    for _ in range(20):
        waiting.advance(60)
        waiting.tell("WAIT 42 1")
    assert waiting.told() == [events.SmsUnknown("goip1", 1, "silence")]


# -- OPENING


def test_opening_counts_bytes_of_the_text():
    assert Session(text="hello мир").sent() == ["MSG 42 12 hello мир\n"]


def test_opening_password_prompt_is_answered_with_the_password(opening):
    assert opening.tell("PASSWORD 42\n") == ["PASSWORD 42 pw1\n"]
    assert opening.phase is Phase.AUTHENTICATING


@pytest.mark.parametrize(
    ("reason", "refusal"),
    [("GSM_LOGOUT", Refusal.REFUSED), ("SENDID", Refusal.STRANGE), ("something else", Refusal.REFUSED)],
)
def test_opening_refused_gives_the_sms_back_and_needs_no_done(opening, reason, refusal):
    assert opening.tell(f"ERROR 42 {reason}\n") == []
    assert opening.told() == [events.SmsRequeued("goip1", 1, reason)]
    assert (opening.phase, opening.session.refusal) == (Phase.CLOSED, refusal)


def test_opening_on_a_full_box_leaves_the_sms_as_it_was(opening):
    assert opening.tell("ERROR 42 too_many_sends_in_server\n") == []
    assert opening.told() == []
    assert (opening.phase, opening.session.refusal) == (Phase.CLOSED, Refusal.FULL)
    assert opening.session.pending == set()


def test_opening_refused_after_a_repeat_is_ended_as_one_of_the_two_may_be_open(opening):
    opening.advance(5)
    assert opening.tell("ERROR 42 too_many_sends_in_server\n") == ["DONE 42\n"]


def test_opening_is_repeated_every_5_s_and_given_up_after_four(opening):
    assert opening.advance(4.9) == []
    assert opening.advance(0.2) == ["MSG 42 5 hello\n"]
    assert opening.advance(10) == ["MSG 42 5 hello\n"] * 2
    assert opening.told() == []
    assert opening.advance(5) == ["DONE 42\n"]
    assert opening.told() == [events.SmsRequeued("goip1", 1, "no answer to MSG")]
    assert opening.session.refusal is Refusal.SILENT


@pytest.mark.parametrize(
    "message",
    ["SEND 42\n", "WAIT 42 1\n", "OK 42 1 7\n", "ERROR 42 1 errorstatus:1\n", "DONE 42\n", "ERROR 42 PASSWORD\n"],
)
def test_opening_ignores_what_answers_nothing(opening, message):
    assert opening.tell(message) == []
    assert (opening.phase, opening.told()) == (Phase.OPENING, [])


# -- AUTH


def test_auth_send_prompt_submits_the_first_number(auth):
    assert auth.tell("SEND 42\n") == ["SEND 42 1 +491\n"]
    assert auth.phase is Phase.SUBMITTED


def test_auth_journal_entry_comes_with_the_first_send(auth):
    auth.tell("SEND 42\n")
    assert auth.told() == [events.SmsSending("goip1", 1, ID, 1)]


def test_auth_another_password_prompt_is_answered_again(auth):
    assert auth.tell("PASSWORD 42\n") == ["PASSWORD 42 pw1\n"]


def test_auth_password_is_sent_four_times_at_most(auth):
    assert auth.tell(*["PASSWORD 42\n"] * 20) == ["PASSWORD 42 pw1\n"] * 3


def test_auth_refused_password_fails_all_numbers_and_ends_the_session():
    session = Session("+491", "+492")
    session.tell("PASSWORD 42\n")
    assert session.tell("ERROR 42 PASSWORD\n") == ["DONE 42\n"]
    assert session.told() == [events.SmsFailed("goip1", n, None, "password refused", submitted=False) for n in (1, 2)]
    assert session.session.refusal is Refusal.PASSWORD


def test_auth_on_a_full_box_leaves_the_sms_as_it_was(auth):
    assert auth.tell("ERROR 42 too_many_sends_in_server\n") == ["DONE 42\n"]
    assert (auth.told(), auth.session.refusal) == ([], Refusal.FULL)


@pytest.mark.parametrize("reason", ["GSM_LOGOUT", "SENDID"])
def test_auth_refused_gives_the_sms_back(auth, reason):
    assert auth.tell(f"ERROR 42 {reason}\n") == ["DONE 42\n"]
    assert auth.told() == [events.SmsRequeued("goip1", 1, reason)]


def test_auth_is_repeated_every_5_s_and_given_up_after_four(auth):
    assert auth.advance(19.9) == ["PASSWORD 42 pw1\n"] * 3
    assert auth.advance(0.2) == ["DONE 42\n"]
    assert auth.told() == [events.SmsRequeued("goip1", 1, "no answer to PASSWORD")]


# -- SUBMITTED


def test_submitted_wait_stops_the_repeats(submitted):
    assert submitted.tell("WAIT 42 1\n") == []
    assert submitted.phase is Phase.WAITING
    assert submitted.advance(89) == []


def test_submitted_another_send_prompt_is_ignored(submitted):
    assert submitted.tell("SEND 42\n") == []
    assert submitted.phase is Phase.SUBMITTED


def test_submitted_late_password_prompt_is_ignored(submitted):
    assert submitted.tell("PASSWORD 42\n") == []


def test_submitted_ok_without_wait_is_an_outcome(submitted):
    assert submitted.tell("OK 42 1 160\n") == ["DONE 42\n"]
    assert submitted.told() == [SENT]


def test_submitted_is_repeated_with_the_same_telid_at_most_three_times(submitted):
    assert submitted.advance(4.9) == []
    assert submitted.advance(85) == REPEATS


def test_submitted_and_never_answered_is_unknown_after_90_s(submitted):
    submitted.advance(89.9)
    assert submitted.told() == []
    assert submitted.advance(0.2) == ["DONE 42\n"]
    assert submitted.told() == [events.SmsUnknown("goip1", 1, "silence")]


def test_submitted_at_most_once_is_not_repeated():
    session = Session(repeat=False)
    session.tell("PASSWORD 42\n", "SEND 42\n")
    assert session.advance(89.9) == []
    assert session.advance(0.2) == ["DONE 42\n"]
    assert session.told()[-1] == events.SmsUnknown("goip1", 1, "silence")


@pytest.mark.parametrize("reason", ["SENDID", "GSM_LOGOUT"])
def test_submitted_once_and_refused_was_not_sent(submitted, reason):
    submitted.tell(f"ERROR 42 {reason}\n", f"ERROR 42 {reason}\n")
    assert (submitted.advance(9.9), submitted.told()) == ([], [])
    assert submitted.advance(0.2) == ["DONE 42\n"]
    assert submitted.told() == [events.SmsRequeued("goip1", 1, reason)]
    assert submitted.session.refusal is (Refusal.STRANGE if reason == "SENDID" else Refusal.REFUSED)


def test_submitted_twice_and_then_unknown_to_the_box_is_unknown(submitted):
    submitted.advance(5)
    submitted.tell("ERROR 42 SENDID\n")
    assert submitted.advance(10) == ["DONE 42\n"]
    assert submitted.told() == [events.SmsUnknown("goip1", 1, "session_lost")]
    assert submitted.session.refusal is Refusal.LOST


def test_submitted_after_a_repeated_opening_does_not_believe_a_refusal(opening):
    opening.advance(5)  # the refusal may answer the repeated MSG
    opening.tell("PASSWORD 42\n", "SEND 42\n")
    opening.told()
    assert opening.tell("ERROR 42 GSM_LOGOUT\n", "ERROR 42 too_many_sends_in_server\n") == []
    assert (opening.phase, opening.told()) == (Phase.SUBMITTED, [])


@pytest.mark.parametrize("reason", ["too_many_sends_in_server", "PASSWORD", "", "something else"])
def test_submitted_late_errors_of_earlier_phases_change_nothing(submitted, reason):
    assert submitted.tell(f"ERROR 42 {reason}\n") == []
    assert (submitted.phase, submitted.told()) == (Phase.SUBMITTED, [])


# -- SUBMITTED and WAITING


@pytest.mark.parametrize(("answer", "sms_no"), [("OK 42 1 160\n", 160), ("OK 42 1\n", None), ("OK 42 1 0\n", 0)])
def test_ok_records_the_sms_no(waiting, answer, sms_no):
    waiting.tell(answer)
    assert waiting.told() == [events.SmsSent("goip1", 1, sms_no)]


def test_errorstatus_is_a_failure_of_this_number(waiting):
    assert waiting.tell("ERROR 42 1 errorstatus:38\n") == ["DONE 42\n"]
    assert waiting.told() == [events.SmsFailed("goip1", 1, 38, "errorstatus:38", of=(ID, 1))]


def test_error_in_words_with_a_telid_is_a_failure_of_this_number(waiting):
    waiting.tell("ERROR 42 1 no credit\n")
    assert waiting.told() == [events.SmsFailed("goip1", 1, None, "no credit", of=(ID, 1))]


@pytest.mark.parametrize(
    "answer", ["OK 42 2 160\n", "ERROR 42 2 errorstatus:1\n", "ERROR 42 12 no credit\n", "OK 42 0 1"]
)
def test_outcome_of_a_number_never_submitted_is_ignored(waiting, answer):
    assert waiting.tell(answer) == []
    assert (waiting.phase, waiting.told()) == (Phase.WAITING, [])


def test_send_is_never_repeated_after_wait(waiting):
    assert waiting.advance(89) == []


def test_another_wait_prolongs_the_time_but_not_for_another_number(waiting):
    waiting.advance(80)
    waiting.tell("WAIT 42 2\n")
    assert waiting.session.deadline == 190.0
    waiting.tell("WAIT 42 1\n")
    assert waiting.advance(89) == []


def test_waiting_too_long_is_unknown_and_ends_the_session(waiting):
    assert waiting.advance(91) == ["DONE 42\n"]
    assert waiting.told() == [events.SmsUnknown("goip1", 1, "silence")]


@pytest.mark.parametrize("reason", ["GSM_LOGOUT", "too_many_sends_in_server", "PASSWORD"])
def test_waiting_errors_of_earlier_phases_change_nothing(waiting, reason):
    assert waiting.tell(f"ERROR 42 {reason}\n") == []
    assert (waiting.phase, waiting.told()) == (Phase.WAITING, [])


def test_waiting_and_then_unknown_to_the_box_is_unknown(waiting):
    waiting.tell("ERROR 42 SENDID\n")
    assert waiting.told() == []
    waiting.advance(10)
    assert waiting.told() == [events.SmsUnknown("goip1", 1, "session_lost")]


@pytest.mark.parametrize("phase", ["submitted", "waiting"])
def test_reboot_makes_the_submitted_number_unknown(phase, request):
    session = request.getfixturevalue(phase)
    session.session.abandon(session.now)
    assert session.told() == [events.SmsUnknown("goip1", 1, "session_lost")]
    assert (session.phase, session.session.deadline) == (Phase.CLOSED, None)


@pytest.mark.parametrize("phase", ["opening", "auth"])
def test_reboot_before_a_send_leaves_the_sms_in_the_queue(phase, request):
    session = request.getfixturevalue(phase)
    session.session.abandon(session.now)
    assert (session.told(), session.phase) == ([], Phase.CLOSED)


# -- READY: several numbers


def test_next_number_is_submitted_only_after_the_outcome_of_the_previous():
    session = Session("+491", "+492", "+493")
    session.tell("PASSWORD 42\n")
    assert session.tell("SEND 42\n") == ["SEND 42 1 +491\n"]
    assert session.tell("WAIT 42 1\n") == []
    assert session.tell("OK 42 1 7\n") == ["SEND 42 2 +492\n"]
    assert session.tell("ERROR 42 2 errorstatus:1\n") == ["SEND 42 3 +493\n"]
    assert session.tell("OK 42 3 8\n") == ["DONE 42\n"]
    assert [type(event) for event in session.told()] == [
        *(events.SmsSending, events.SmsSent),
        *(events.SmsSending, events.SmsFailed),
        *(events.SmsSending, events.SmsSent),
    ]


def test_repeated_outcome_of_an_earlier_number_changes_nothing():
    session = Session("+491", "+492")
    session.tell("PASSWORD 42\n", "SEND 42\n", "OK 42 1 7\n")
    session.told()
    assert session.tell("OK 42 1 7\n", "WAIT 42 1\n", "ERROR 42 1 errorstatus:1\n") == []
    assert (session.phase, session.told()) == (Phase.SUBMITTED, [])


def test_numbers_after_an_unknown_one_stay_in_the_queue():
    session = Session("+491", "+492")
    session.tell("PASSWORD 42\n", "SEND 42\n")
    session.told()
    assert session.advance(90)[-1] == "DONE 42\n"
    assert session.told() == [events.SmsUnknown("goip1", 1, "silence")]


def test_numbers_after_a_refused_one_are_given_back_with_it():
    session = Session("+491", "+492")
    session.tell("PASSWORD 42\n", "SEND 42\n")
    session.told()
    session.tell("ERROR 42 GSM_LOGOUT\n")
    session.advance(10)
    assert session.told() == [events.SmsRequeued("goip1", n, "GSM_LOGOUT") for n in (1, 2)]


# -- DENIED: the box says that it did not take the SEND, and may say otherwise


@pytest.mark.parametrize("reason", ["SENDID", "GSM_LOGOUT"])
@pytest.mark.parametrize("contradiction", [("WAIT 42 1\n", "OK 42 1 160\n"), ("OK 42 1 160\n",)])
def test_denied_and_then_sent_is_sent(submitted, reason, contradiction):
    submitted.tell(f"ERROR 42 {reason}\n")
    submitted.advance(0.4)
    assert submitted.tell(*contradiction) == ["DONE 42\n"]
    assert submitted.told() == [SENT]
    assert submitted.session.refusal is Refusal.NONE


def test_denied_and_then_failed_is_failed(submitted):
    submitted.tell("ERROR 42 SENDID\n", "ERROR 42 1 errorstatus:38\n")
    assert submitted.told() == [events.SmsFailed("goip1", 1, 38, "errorstatus:38", of=(ID, 1))]


def test_denied_and_then_accepted_is_waited_for_as_any_other(submitted):
    submitted.tell("ERROR 42 SENDID\n", "WAIT 42 1\n")
    assert (submitted.advance(89), submitted.told()) == ([], [])
    submitted.advance(2)
    assert submitted.told() == [events.SmsUnknown("goip1", 1, "silence")]


def test_denied_after_wait_and_then_sent_is_never_unknown(waiting):
    waiting.tell("ERROR 42 SENDID\n", "OK 42 1 160\n")
    assert waiting.told() == [SENT]


def test_denied_and_the_box_reboots_was_not_sent(submitted):
    submitted.tell("ERROR 42 SENDID\n")
    submitted.session.abandon(submitted.now)
    assert submitted.told() == [events.SmsRequeued("goip1", 1, "SENDID")]


def test_denied_and_given_back_its_late_ok_still_counts(submitted):
    submitted.tell("ERROR 42 SENDID\n")
    submitted.advance(10)
    submitted.told()
    submitted.tell("OK 42 1 160\n")
    assert submitted.told() == [SENT]


# -- a delivery report tells the outcome


@pytest.mark.parametrize("phase", ["submitted", "waiting"])
def test_what_a_report_has_settled_is_not_waited_for(phase, request):
    session = request.getfixturevalue(phase)
    session.session.release_sms(1, session.now)
    assert session.sent() == ["DONE 42\n"]
    assert session.tell("OK 42 1 160\n", "DONE 42\n") == []
    assert (session.told(), session.phase) == ([], Phase.CLOSED)


def test_a_report_lets_the_next_number_go():
    session = Session("+491", "+492")
    session.tell("PASSWORD 42\n", "SEND 42\n", "WAIT 42 1\n")
    session.session.release_sms(1, session.now)
    assert session.sent() == ["SEND 42 2 +492\n"]


@pytest.mark.parametrize("prompts", [(), ("PASSWORD 42\n",)])
def test_what_is_settled_before_its_turn_is_never_submitted(prompts):
    session = Session("+491", "+492")
    session.tell(*prompts)
    session.session.release_sms(2, session.now)
    assert session.session.pending == {1}
    session.session.release_sms(1, session.now)
    assert session.sent() == ["DONE 42\n"]
    session.tell("PASSWORD 42\n", "SEND 42\n")
    assert (session.sent(), session.told()) == ([], [])


def test_repeats_are_counted_anew_for_each_number():
    session = Session("+491", "+492")
    session.tell("PASSWORD 42\n", "SEND 42\n")
    assert session.advance(16) == REPEATS
    session.tell("OK 42 1\n")
    assert session.advance(16) == ["SEND 42 2 +492\n"] * 3


def test_expired_numbers_are_never_submitted():
    session = Session("+491", "+492", expires=100.5)
    session.now = 100.5
    session.tell("PASSWORD 42\n")
    assert session.tell("SEND 42\n") == ["DONE 42\n"]
    assert session.told() == [events.SmsExpired("goip1", n) for n in (1, 2)]


def test_number_that_expires_after_its_send_is_followed_to_its_end():
    session = Session(expires=101.0)
    session.tell("PASSWORD 42\n", "SEND 42\n")
    session.advance(10)
    session.tell("OK 42 1 160\n")
    assert session.told()[-1] == SENT


# -- CLOSING


def test_closing_ends_with_the_confirmation(closing):
    assert closing.tell("DONE 42\n") == []
    assert (closing.phase, closing.session.deadline) == (Phase.CLOSED, None)


def test_closing_repeats_done_once(closing):
    assert closing.advance(2.4) == []
    assert closing.advance(0.2) == ["DONE 42\n"]
    assert closing.phase is Phase.CLOSED
    assert closing.advance(1000) == []


def test_closing_session_that_the_box_has_forgotten_is_closed(closing):
    assert closing.tell("ERROR 42 SENDID\n") == []
    assert closing.phase is Phase.CLOSED


@pytest.mark.parametrize("late", ["PASSWORD 42", "SEND 42", "WAIT 42 1", "OK 42 1 160", "ERROR 42 1 errorstatus:1"])
def test_closing_late_answers_change_nothing(closing, late):
    assert closing.tell(late) == []
    assert (closing.phase, closing.told()) == (Phase.CLOSING, [])


@pytest.mark.parametrize(
    ("late", "outcome"),
    [("OK 42 1 160", SENT), ("ERROR 42 1 errorstatus:1", events.SmsFailed("goip1", 1, 1, "errorstatus:1", of=(ID, 1)))],
)
def test_closing_late_outcome_settles_an_unknown_number(waiting, late, outcome):
    waiting.advance(90)
    waiting.told()
    waiting.tell(late, late)
    assert waiting.told() == [outcome]
    assert waiting.phase is Phase.CLOSING


@pytest.mark.parametrize("phase", ["opening", "auth", "submitted", "waiting", "closing"])
def test_timer_that_comes_early_does_nothing(phase, request):
    session = request.getfixturevalue(phase)
    session.session.handle_timer(session.now + 0.1)
    assert (session.sent(), session.told()) == ([], [])


# -- on a line


def test_late_outcome_settles_an_sms_after_its_session(bench):
    bench.submit()
    bench.advance(100)
    assert bench.told(events.SmsUnknown)
    bench.advance(800)
    bench.tell(f"OK {SENDID} 1 160\n", f"OK {SENDID} 1 160\n")
    assert bench.told(events.SmsSent) == [events.SmsSent("goip1", 1, 160)]


def test_late_outcome_settles_an_sms_of_before_a_restart(bench):
    bench.server.restore_session("goip1", Submitted(77, 3, Recipient(9, "+499"), bench.now, bench.now), bench.now)
    bench.tell("ERROR 77 3 errorstatus:38\n", "ERROR 77 3 errorstatus:38\n", "OK 77 4 1\n")
    # Nobody knows whether its SEND was repeated: another copy of it may have gone out.
    assert bench.events() == [events.SmsFailed("goip1", 9, 38, "errorstatus:38", repeated=True, of=(77, 3))]


def test_late_outcome_stops_the_next_attempt_of_an_sms_that_was_given_back(bench):
    bench.submit()
    bench.tell(f"ERROR {SENDID} SENDID\n")
    bench.advance(10)
    bench.tell(f"DONE {SENDID}\n")
    bench.advance(30)
    assert bench.told(events.SmsRequeued)
    bench.send_sms()
    assert bench.tell(f"OK {SENDID} 1 160\n") == [f"DONE {SENDID + 1}\n"]
    assert bench.told(events.SmsSent) == [SENT]
    bench.tell(f"PASSWORD {SENDID + 1}\n", f"SEND {SENDID + 1}\n")
    assert not bench.told(events.SmsSending), "it was sent already"


def test_late_outcome_of_an_earlier_attempt_does_not_end_the_next_one(bench):
    bench.submit()
    bench.tell(f"ERROR {SENDID} SENDID\n")
    bench.advance(10)
    bench.tell(f"DONE {SENDID}\n")
    bench.advance(30)
    bench.submit(sendid=SENDID + 1)
    bench.tell(f"ERROR {SENDID} 1 errorstatus:1\n")
    assert bench.line.session.awaits_outcome
    assert bench.events() == [events.SmsFailed("goip1", 1, 1, "errorstatus:1", of=(SENDID, 1))]


def test_line_is_ready_again_after_a_session(bench):
    bench.submit()
    bench.tell(f"OK {SENDID} 1 160\n", f"DONE {SENDID}\n")
    assert bench.told(events.LineReady)
    assert bench.line.ready


def test_second_session_has_an_id_of_its_own(bench):
    bench.submit()
    bench.tell(f"OK {SENDID} 1 160\n", f"DONE {SENDID}\n")
    assert bench.send_sms() == [f"MSG {SENDID + 1} 5 hello\n"]


def refuse(bench: Bench, sendid: int, reason: str = "GSM_LOGOUT") -> float:
    """A session is refused; how long the line pauses."""
    bench.send_sms()
    bench.tell(f"ERROR {sendid} {reason}\n")
    assert not bench.line.ready
    return bench.line.blocked_until - bench.now


@pytest.mark.parametrize(("reason", "expected"), [("GSM_LOGOUT", [30, 60, 120, 240, 300, 300]), ("SENDID", [30] * 6)])
def test_line_pauses_longer_after_each_refusal(bench, reason, expected):
    pauses = []
    for n in range(6):
        pauses.append(refuse(bench, SENDID + n, reason))
        bench.keepalive()
        bench.advance(pauses[-1] - 1)
        bench.keepalive()
        bench.advance(1)
    assert pauses == expected


def test_pause_is_short_again_after_a_good_session(bench):
    refuse(bench, SENDID)
    bench.advance(30)
    bench.submit(sendid=SENDID + 1)
    bench.tell(f"OK {SENDID + 1} 1\n", f"DONE {SENDID + 1}\n")
    assert refuse(bench, SENDID + 2) == 30


def test_pause_grows_when_the_line_refuses_only_after_the_password(bench):
    pauses = []
    for n in range(3):
        bench.submit(sendid=SENDID + n)
        bench.tell(f"ERROR {SENDID + n} GSM_LOGOUT\n")
        bench.advance(10)
        bench.tell(f"DONE {SENDID + n}\n")
        pauses.append(bench.line.blocked_until - bench.now)
        bench.keepalive()
        bench.advance(60)
        bench.keepalive()
        bench.advance(60)
    assert pauses == [30, 60, 120]


def test_pause_ends_when_the_line_finds_its_network(bench):
    bench.keepalive("gsm_status:LOGOUT;")
    refuse(bench, SENDID)
    bench.events()
    bench.keepalive("gsm_status:LOGIN;")
    bench.advance(0)
    assert bench.told(events.LineReady)


def test_refused_password_is_a_problem_until_the_next_good_session(bench):
    bench.send_sms()
    bench.tell(f"PASSWORD {SENDID}\n", f"ERROR {SENDID} PASSWORD\n", f"DONE {SENDID}\n")
    assert bench.line.password_refused
    bench.advance(30)
    bench.submit(sendid=SENDID + 1)
    assert not bench.line.password_refused


def test_repeats_follow_the_line_to_its_new_address(bench):
    bench.submit()
    bench.keepalive(source=("192.0.2.10", 20000))
    assert bench.advance(5) == [f"SEND {SENDID} 1 +491\n"]
    assert bench.destinations == [] or bench.destinations[-1] == ("192.0.2.10", 20000)


# -- the outcome never lies


class HostileNetwork(RuleBasedStateMachine):
    """A model box that records what it really submits, behind a network that loses, repeats, delays and reorders.

    The box follows the vendor's document: a repeated SEND is a question. It may forget its sessions at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.to_box: list[str] = []
        self.to_server: list[str] = []
        self.sessions: dict[int, bool] = {}
        "Open sessions of the box, and whether they are authenticated."
        self.ever: set[int] = set()
        self.queue: list[tuple[int, int]] = []
        self.answers: dict[tuple[int, int], str] = {}
        self.submitted: set[tuple[int, int]] = set()
        "What the modem really sent: (sendid, telid)."
        self.refused: set[tuple[int, int]] = set()
        self.waited: set[tuple[int, int]] = set()
        "Numbers whose WAIT reached the server."
        self.copies: dict[str, int] = {}
        self.journal: dict[int, tuple[int, int]] = {}
        self.outcome: dict[int, str] = {}
        self.next_msg = 0
        self.newest = 0
        "The session begun last."

    def pump(self, sent: list[str]) -> None:
        for event in self.bench.events():
            self.take(event)
        for datagram in sent:
            verb, sendid, *rest = datagram.split()
            if verb == "SEND":
                key = int(sendid), int(rest[0])
                assert key in self.journal.values(), "SEND left before its journal entry"
                assert key not in self.waited, "SEND repeated after WAIT"
            assert int(sendid) >= self.newest, "two sessions at once"
            self.newest = int(sendid)
            self.copies[datagram] = self.copies.get(datagram, 0) + 1
            assert self.copies[datagram] <= 4
            self.to_box.append(datagram)

    def take(self, event: events.Event) -> None:
        match event:
            case events.SmsSending(msg=msg, sendid=sendid, telid=telid):
                assert self.outcome.get(msg, "queued") == "queued"
                self.journal[msg] = (sendid, telid)
                self.outcome[msg] = "sending"
            case events.SmsSent(msg=msg):
                assert self.outcome[msg] in ("sending", "unknown")
                assert self.journal[msg] in self.submitted, "sent, says the server; the modem never did"
                self.outcome[msg] = "sent"
            case events.SmsFailed(msg=msg, code=code):
                assert code is not None
                assert self.outcome[msg] in ("sending", "unknown")
                assert self.journal[msg] in self.refused, "failed, says the server; the box never said so"
                assert self.journal[msg] not in self.submitted
                self.outcome[msg] = "failed"
            case events.SmsUnknown(msg=msg):
                assert self.outcome[msg] == "sending"
                self.outcome[msg] = "unknown"
            case events.SmsRequeued(msg=msg):
                if msg in self.journal:
                    assert self.journal[msg] not in self.submitted, "given back, and the modem sent it"
                    assert self.journal[msg] not in self.queue
                self.outcome[msg] = "queued"

    # -- the server's side

    @precondition(lambda self: self.bench.line.ready)
    @rule(count=st.integers(1, 3), repeat=st.booleans())
    def begin(self, count: int, repeat: bool) -> None:
        recipients = [Recipient(self.next_msg + n, f"+49{self.next_msg + n}", repeat) for n in range(count)]
        self.next_msg += count
        self.bench.server.send_sms("goip1", "hello", recipients, self.bench.now)
        self.pump(self.bench.sent())

    @rule(seconds=st.sampled_from((1.0, 2.5, 5.0, 20.0, 95.0)))
    def time_passes(self, seconds: float) -> None:
        self.bench.keepalive()
        self.pump(self.bench.advance(seconds))

    # -- the network: most datagrams arrive in order, the others are lost, copied or overtaken

    @rule(steps=st.integers(1, 6))
    def all_is_well(self, steps: int) -> None:
        for _ in range(steps):
            if self.to_box:
                self.box(self.to_box.pop(0))
            if self.to_server:
                self.server(self.to_server.pop(0))

    @precondition(lambda self: self.to_box)
    @rule(data=st.data(), copy=st.sampled_from((False, False, False, True)))
    def deliver_to_box(self, data: st.DataObject, copy: bool) -> None:
        at = data.draw(st.integers(0, len(self.to_box) - 1))
        # The network may copy questions and openings, but no SEND that is still news: nobody could prevent that.
        datagram = self.to_box[at] if copy and not self.to_box[at].startswith("SEND") else self.to_box.pop(at)
        self.box(datagram)

    @precondition(lambda self: self.to_box)
    @rule(data=st.data())
    def lose_to_box(self, data: st.DataObject) -> None:
        self.to_box.pop(data.draw(st.integers(0, len(self.to_box) - 1)))

    @precondition(lambda self: self.to_server)
    @rule(data=st.data(), copy=st.booleans())
    def deliver_to_server(self, data: st.DataObject, copy: bool) -> None:
        at = data.draw(st.integers(0, len(self.to_server) - 1))
        datagram = self.to_server[at] if copy else self.to_server.pop(at)
        self.server(datagram)

    def server(self, datagram: str) -> None:
        words = datagram.split()
        sent = self.bench.tell(datagram)
        if words[0] == "WAIT" and (key := (int(words[1]), int(words[2]))) in self.journal.values():
            self.waited.add(key)
        self.pump(sent)

    @precondition(lambda self: self.to_server)
    @rule(data=st.data())
    def lose_to_server(self, data: st.DataObject) -> None:
        self.to_server.pop(data.draw(st.integers(0, len(self.to_server) - 1)))

    # -- the box

    def box(self, datagram: str) -> None:
        verb, sendid, *rest = datagram.split()
        session = int(sendid)
        answer = self.to_server.append
        match verb:
            case "MSG":
                if session in self.ever and session not in self.sessions:
                    return  # a copy that came after the end: a session nobody uses
                self.ever.add(session)
                self.sessions.setdefault(session, False)
                answer(f"PASSWORD {session}\n")
            case "PASSWORD" if session in self.sessions:
                self.sessions[session] = True
                answer(f"SEND {session}\n")
            case "SEND" if self.sessions.get(session):
                key = session, int(rest[0])
                if key not in self.answers and key not in self.queue:
                    self.queue.append(key)
                answer(self.answers.get(key) or f"WAIT {session} {key[1]}\n")
            case "DONE":
                self.sessions.pop(session, None)
                answer(f"DONE {session}\n")
            case _:
                answer(f"ERROR {session} SENDID\n")

    @precondition(lambda self: self.queue)
    @rule(code=st.sampled_from((None, None, None, 38)))
    def modem_sends(self, code: int | None) -> None:
        key = self.queue.pop(0)
        if code is None:
            self.submitted.add(key)
            self.answers[key] = f"OK {key[0]} {key[1]} {len(self.submitted)}\n"
        else:
            self.refused.add(key)
            self.answers[key] = f"ERROR {key[0]} {key[1]} errorstatus:{code}\n"
        self.to_server.append(self.answers[key])

    @precondition(lambda self: self.bench.line.session is not None)
    @rule(reason=st.sampled_from(("too_many_sends_in_server", "PASSWORD", "GSM_LOGOUT")))
    def box_refuses_late(self, reason: str) -> None:
        """The answer to an older copy of MSG or PASSWORD arrives when a number has been submitted."""
        session = self.bench.line.session
        if session.phase in (Phase.SUBMITTED, Phase.WAITING) and (reason != "GSM_LOGOUT" or self.repeated(session)):
            self.to_server.append(f"ERROR {session.sendid} {reason}\n")

    @precondition(lambda self: self.bench.line.session is not None)
    @rule()
    def box_says_that_it_forgot(self) -> None:
        """It was asked a second time, by a copy of the server's or of the network's making."""
        session = self.bench.line.session
        forgotten = session.sendid in self.ever and session.sendid not in self.sessions
        if forgotten and (session.phase is Phase.WAITING or self.repeated(session)):
            self.to_server.append(f"ERROR {session.sendid} SENDID\n")

    def repeated(self, session: BulkSession) -> bool:
        return any(n > 1 for datagram, n in self.copies.items() if datagram.split()[1] == str(session.sendid))

    @precondition(lambda self: self.sessions)
    @rule(lucky=st.integers(0, 3))
    def box_forgets_its_sessions(self, lucky: int) -> None:
        if lucky:
            return
        self.to_box.clear()  # nothing on its way survives the minute that a box takes to start
        self.sessions.clear()

    @rule(lucky=st.integers(0, 5), told=st.booleans())
    def box_reboots(self, lucky: int, told: bool) -> None:
        if lucky:
            return
        self.sessions.clear()
        self.queue.clear()
        self.to_server.clear()
        self.to_box.clear()
        if told:
            self.bench.keepalive(count=1)
            self.pump(self.bench.sent())


HostileNetwork.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestOutcomeNeverLies = HostileNetwork.TestCase
