"""From core events to rows and facts, on a real store: the life of an SMS and its delivery reports."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.config.settings import Settings
from bridge.contract import causes
from bridge.contract.topics import Topics
from bridge.features.admission import Answers
from bridge.features.batch import Batch, Run
from bridge.features.chores import ROWS
from bridge.features.ledger import REPORT_HOLD_S, REPORT_WINDOW_S, Ledger, same_number
from bridge.features.unauthorized import Strangers
from bridge.goip import events
from bridge.goip.line import Proof
from bridge.goip.server import LineConfig, LineMemory, SmsServer
from bridge.goip.session import Recipient
from bridge.goip.timing import Timing
from bridge.store.database import Store

START = 1_800_000_000.0
FIRST_SENDID = 1000


class Book:
    """A ledger whose time is set by the test."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path / "bridge.db")
        self.settings = Settings(lines={"goip1": {"password": "p", "country": "DE"}})
        topics = Topics("goip")
        self.server = SmsServer(
            [LineConfig(name="goip1", goip_id="goip1", password="p")], Timing(), next_sendid=FIRST_SENDID, now=START
        )
        self.answers = Answers(self.store, topics, self.server)
        self.ledger = Ledger(self.store, self.settings, topics, self.answers, self.server, START)
        self.run = Run(START, START)
        self.at = START

    def record(self, *happened: events.Event) -> list[dict[str, Any]]:
        """The facts that these events bring about."""
        batch = Batch(self.run, self.at, self.at)
        with self.store.transaction():
            self.ledger.record(happened, batch, self.at)
        batch.committed()
        return facts(batch)

    def settle(self, seconds: float) -> list[dict[str, Any]]:
        """The facts that time alone brings about."""
        self.at += seconds
        due = any(chore.find(self.at, self.at, ROWS) for chore in self.ledger.chores)
        told = self.settle_quietly()
        assert due == bool(told)
        return told

    def settle_quietly(self) -> list[dict[str, Any]]:
        """The same, where it may be that nothing comes of it."""
        batch = Batch(self.run, self.at, self.at)
        for chore in self.ledger.chores:
            while found := chore.find(self.at, self.at, ROWS):
                with self.store.transaction():
                    for thing in found:
                        chore.do(batch, thing)
        batch.committed()
        return facts(batch)

    def remove_line(self) -> None:
        """The configuration has no lines any more."""
        self.ledger.settings = Settings(lines={})
        self.ledger.lines_changed()

    def restart(self) -> None:
        """The next run of the program."""
        self.ledger = Ledger(self.store, self.settings, Topics("goip"), self.answers, self.server, START)

    def doubt(self) -> list[dict[str, Any]]:
        """The store was put back."""
        batch = Batch(self.run, self.at, self.at)
        while True:
            with self.store.transaction():
                if self.ledger.doubt(batch, 1) == 0:
                    self.ledger.doubted(batch)
                    return facts(batch)

    def queue(self, number: str = "+4915112345678", **columns: Any) -> int:
        defaults = {
            "msg": f"m{self.run.new_id()}", "cmd": "c", "job": None, "line": "goip1", "number": number, "text": "x",
            "priority": 5, "guarantee": "effectively_once", "src": None, "created": self.at, "expires": None,
            "state": "queued", "changed": self.at,
        }  # fmt: skip
        with self.store.transaction():
            return self.store.add_sms(**(defaults | columns))

    def sent(self, number: str = "+4915112345678", sms_no: int | None = 7, **columns: Any) -> int:
        n = self.queue(number, **columns)
        self.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsSent("goip1", n, sms_no))
        return n


def facts(batch: Batch) -> list[dict[str, Any]]:
    return [json.loads(body) for _topic, _schema, _expiry, body, _correlation, _at in batch.outbox]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.store.close()


def report(sms_no: int | None, state: int = 0, number: str = "015112345678") -> events.SmsReport:
    return events.SmsReport("goip1", sms_no, state, number)


def kinds(published: list[dict[str, Any]]) -> list[str]:
    return [fact["event_type"] for fact in published]


def test_a_report_settles_the_sms_of_its_number(book: Book) -> None:
    n = book.sent(sms_no=0)
    [fact] = book.record(report(0))
    assert (fact["event_type"], fact["evidence"], fact["sms_no"]) == ("delivered", "report", 0)
    row = book.store.sms(n)
    assert row is not None
    assert fact["msg"] == row.msg


def test_a_report_before_its_ok_waits_for_it(book: Book) -> None:
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID, 1))
    assert book.record(report(9)) == []
    assert kinds(book.record(events.SmsSent("goip1", n, 9))) == ["sent", "delivered"]
    assert book.settle(REPORT_HOLD_S + 1) == []


def test_a_report_that_matches_nothing_is_published_after_ten_seconds(book: Book) -> None:
    book.sent(sms_no=7)
    assert book.record(report(8)) == []
    assert book.settle(REPORT_HOLD_S - 1) == []
    [fact] = book.settle(1.5)
    assert fact["event_type"] == "delivered"
    assert (fact["msg"], fact["cmd"], fact["job"]) == (None, None, None)
    assert (fact["to"], fact["sms_no"]) == ("015112345678", 8)


def test_the_report_of_a_second_copy_is_not_that_of_the_next_sms(book: Book) -> None:
    book.sent(sms_no=7)  # the box sent it again, as 8: this firmware may
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1))  # its SEND never left
    book.record(report(8))
    [fact] = book.settle(REPORT_HOLD_S + 0.5)
    assert (fact["event_type"], fact["msg"]) == ("delivered", None)


def test_a_report_whose_sms_no_came_again_does_not_disappear(book: Book) -> None:
    book.sent(sms_no=7)
    book.record(report(7))
    book.sent(sms_no=None)  # firmware that does not tell it; it was 7 again, after a restart
    assert book.record(report(7)) == []
    [fact] = book.settle(REPORT_HOLD_S + 0.5)
    assert (fact["event_type"], fact["msg"], fact["sms_no"]) == ("delivered", None, 7)


def test_a_report_for_another_number_does_not_match(book: Book) -> None:
    book.sent(sms_no=7)
    assert book.record(report(7, number="015100000000")) == []


def test_a_report_matches_the_newest_sms_with_its_number(book: Book) -> None:
    book.sent(sms_no=7)
    book.at += 100
    newer = book.sent(sms_no=7)
    book.record(report(7))
    assert [book.store.sms(n).state for n in (newer - 1, newer)] == ["sent", "delivered"]  # type: ignore[union-attr]


def test_a_report_does_not_match_an_sms_of_long_ago(book: Book) -> None:
    book.sent(sms_no=7)
    book.at += REPORT_WINDOW_S + 1
    assert book.record(report(7)) == []


@pytest.mark.parametrize("state", [1, 2, 31, 32, 48, 63])
def test_a_report_that_is_not_final_says_nothing(book: Book, state: int) -> None:
    book.sent()
    assert book.record(report(7, state)) == []
    assert book.settle(REPORT_HOLD_S + 1) == []


@pytest.mark.parametrize(("state", "retryable"), [(64, False), (70, False), (96, True), (127, True)])
def test_a_permanent_failure_is_undelivered(book: Book, state: int, retryable: bool) -> None:
    book.sent()
    [fact] = book.record(report(7, state))
    assert fact["event_type"] == "undelivered"
    word, meaning = causes.of_report(state)[:2]
    assert fact["error"] == {
        "code": state,
        "text": f"TP-Status {state}",
        "cause": word,
        "meaning": meaning,
        "retryable": retryable,
        "ambiguous": False,
    }


def test_nothing_follows_a_final_state(book: Book) -> None:
    n = book.sent()
    book.record(report(7, 70))
    assert book.record(report(7, 0)) == []
    assert book.record(events.SmsFailed("goip1", n, 38, "errorstatus:38"), events.SmsSent("goip1", n, 8)) == []


@pytest.mark.parametrize(
    ("code", "ambiguous", "retryable"),
    [(38, True, True), (332, True, True), (500, True, True), (1, False, False), (28, False, False), (331, False, True)],
)
def test_an_errorstatus_is_failed_and_says_whether_it_may_have_gone_out(
    book: Book, code: int, ambiguous: bool, retryable: bool
) -> None:
    n = book.queue()
    _, fact = book.record(
        events.SmsSending("goip1", n, FIRST_SENDID, 1), events.SmsFailed("goip1", n, code, f"errorstatus:{code}")
    )
    assert (fact["event_type"], fact["evidence"]) == ("failed", "errorstatus")
    assert (fact["error"]["code"], fact["error"]["ambiguous"], fact["error"]["retryable"]) == (
        code,
        ambiguous,
        retryable,
    )


def test_an_unknown_outcome_may_still_become_known(book: Book) -> None:
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID, 1))
    [unknown] = book.record(events.SmsUnknown("goip1", n, "silence"))
    assert unknown["evidence"] == "silence"
    assert kinds(book.record(events.SmsSent("goip1", n, 3))) == ["sent"]


def test_a_report_alone_settles_the_only_unknown_sms_of_its_number(book: Book) -> None:
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID, 1), events.SmsUnknown("goip1", n, "silence"))
    assert book.record(report(4)) == []
    [fact] = book.settle(REPORT_HOLD_S + 1)
    row = book.store.sms(n)
    assert row is not None
    assert (fact["event_type"], fact["msg"], fact["sms_no"]) == ("delivered", row.msg, 4)


def test_a_report_does_not_choose_between_two_unknown_sms(book: Book) -> None:
    for _ in range(2):
        n = book.queue()
        book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsUnknown("goip1", n, "silence"))
    book.record(report(4))
    [fact] = book.settle(REPORT_HOLD_S + 1)
    assert fact["msg"] is None


def test_an_sms_of_an_earlier_run_becomes_unknown_when_its_box_has_forgotten_it(book: Book) -> None:
    # The clock may have been set back meanwhile: it has no say in this.
    before = book.queue(state="sending", changed=START + 3600, sendid=FIRST_SENDID - 1)
    mine = book.queue(state="sending", changed=START - 3600, sendid=FIRST_SENDID)
    book.restart()
    assert book.settle(89) == []
    [fact] = book.settle(2)
    assert (fact["event_type"], fact["evidence"]) == ("unknown", "restart")
    assert [row.state for n in (before, mine) if (row := book.store.sms(n))] == ["unknown", "sending"]


def test_a_reboot_makes_an_sms_of_an_earlier_run_unknown_at_once(book: Book) -> None:
    book.queue(state="sending", sendid=FIRST_SENDID - 1)
    book.restart()
    rebooted, unknown = book.record(events.GatewayRebooted("goip1", ("10.0.0.1", 10991), 1))
    assert (rebooted["event_type"], unknown["event_type"]) == ("gateway_reboot", "unknown")
    assert unknown["evidence"] == "session_lost"


def test_a_queued_sms_expires(book: Book) -> None:
    book.queue(expires=START + 5)
    assert book.settle(4) == []
    assert kinds(book.settle(1)) == ["expired"]
    assert book.settle(1) == []


def test_an_unknown_sms_is_sent_again_only_if_asked_to_and_not_for_ever(book: Book) -> None:
    quiet = book.queue()
    insisting = book.queue(guarantee="at_least_once")
    for n in (quiet, insisting):
        book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsUnknown("goip1", n, "silence"))
    for attempt in range(2, 6):
        [fact] = book.settle(901)
        assert (fact["event_type"], fact["error"]["ambiguous"]) == ("queued", True)
        sending, _ = book.record(
            events.SmsSending("goip1", insisting, FIRST_SENDID + 200 + attempt, 1),
            events.SmsUnknown("goip1", insisting, "silence"),
        )
        assert sending["attempt"] == attempt
    assert book.settle(901) == []
    row = book.store.sms(quiet)
    assert row is not None
    assert (row.state, row.attempt) == ("unknown", 1)


def test_an_sms_refused_for_now_is_queued_again(book: Book) -> None:
    n = book.queue()
    [fact] = book.record(events.SmsRequeued("goip1", n, "GSM_LOGOUT"))
    assert fact["event_type"] == "queued"
    assert fact["error"] == {
        "code": None,
        "text": "GSM_LOGOUT",
        "cause": None,
        "meaning": None,
        "retryable": True,
        "ambiguous": False,
    }


def test_national_senders_become_e164_and_names_stay(book: Book) -> None:
    def received(srcnum: str) -> events.SmsReceived:
        return events.SmsReceived("goip1", 1, srcnum, "x", None, None, None)

    facts = book.record(received("0151 12345678"), received("MyBank"), received(""), received("333"))
    assert [(fact["from"], fact["from_raw"]) for fact in facts] == [
        ("+4915112345678", "0151 12345678"),
        ("MyBank", "MyBank"),
        (None, None),
        ("333", "333"),
    ]


def test_a_queued_sms_in_an_open_session_is_left_to_the_session(book: Book) -> None:
    n = book.queue(expires=START + 5)
    book.server.receive_datagram(b"req:1;id:goip1;pass:p;", ("10.0.0.1", 10991), START)
    book.server.send_sms("goip1", "x", [Recipient(n, "1", expires=START + 5)], START)
    assert book.settle(60) == []
    line = book.server.line("goip1")
    assert line is not None
    assert line.session is not None
    line.session.abandon(START + 60)
    assert kinds(book.settle(1)) == ["expired"]


def test_a_send_without_its_journal_entry_is_a_fault(book: Book) -> None:
    n = book.queue(state="expired")
    with pytest.raises(AssertionError, match="journal"):
        book.record(events.SmsSending("goip1", n, FIRST_SENDID, 1))


def test_sms_of_a_removed_line_are_failed(book: Book) -> None:
    for _ in range(3):
        book.queue()
    book.remove_line()
    assert kinds(book.settle(0)) == ["failed"] * 3


def test_a_report_for_an_sms_that_is_on_its_way_is_not_taken_for_an_older_one(book: Book) -> None:
    book.sent(sms_no=7)
    book.record(report(7))
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + 5, 1))
    assert book.record(report(7)) == []
    assert kinds(book.record(events.SmsSent("goip1", n, 7))) == ["sent", "delivered"]


def test_strangers_are_told_once_in_ten_minutes_with_their_count(book: Book) -> None:
    strangers = Strangers()
    stranger = events.Unauthenticated("new", None, ("10.0.0.9", 10991), "unknown")
    told = [strangers.notice(stranger, book.settings, START) for _ in range(5)]
    assert told[0] is not None
    assert (told[0]["event_type"], told[0]["line"], told[0]["address"], told[0]["count"]) == (
        "line_unknown", "new", "10.0.0.9:10991", 1,
    )  # fmt: skip
    assert told[1:] == [None] * 4
    again = strangers.notice(stranger, book.settings, START + 601)
    assert again is not None
    assert again["count"] == 5


def test_a_flood_of_strangers_is_told_thirty_times(book: Book) -> None:
    strangers = Strangers()
    flood = [events.Unauthenticated(f"s{n}", None, ("10.0.0.9", 1), "unknown") for n in range(5000)]
    told = [notice for event in flood if (notice := strangers.notice(event, book.settings, START))]
    assert len(told) == 30


def test_sequence_numbers_count_by_topic_and_are_not_lost_with_a_failed_batch(book: Book) -> None:
    book.queue()
    batch = Batch(book.run, book.at, book.at)
    book.ledger.record([events.LineOffline("goip1", None)], batch, 0)  # thrown away
    first = book.record(events.LineOffline("goip1", None))
    second = book.record(events.LineOffline("goip1", None))
    assert [first[0]["seq"], second[0]["seq"]] == [1, 2]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("+8613800138000", "13800138000", True),
        ("+8613800138000", "13800138001", False),
        ("10086", "10086", True),
        ("10086", "4910086", False),
        ("+4915112345678", "", True),
    ],
)
def test_numbers_are_compared_by_their_last_digits(one: str, other: str, same: bool) -> None:
    assert same_number(one, other) is same


# -- the odometer


@pytest.fixture
def dense(book: Book) -> Book:
    """A line whose firmware gives each SMS the next sms_no."""
    book.server.restore_line("goip1", LineMemory(address=("192.0.2.1", 1), count=1, reboots=2))
    book.server.restore_proof("goip1", Proof(safe=False, identity="", dense=True))
    book.server.receive_datagram(b"req:2;id:goip1;pass:p;", ("192.0.2.1", 1), START)
    return book


def lost(book: Book, **columns: Any) -> int:
    """An SMS whose outcome never came."""
    n = book.queue(**columns)
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsUnknown("goip1", n, "silence"))
    return n


def state(book: Book, n: int) -> str:
    row = book.store.sms(n)
    assert row is not None
    return row.state


def test_the_next_sms_no_but_one_shows_that_a_doubtful_sms_was_sent(dense: Book) -> None:
    dense.sent(sms_no=255)
    n = lost(dense)
    dense.sent(sms_no=1)
    assert dense.settle(64) == []
    [fact] = dense.settle(2)
    assert (fact["event_type"], fact["evidence"]) == ("sent", "odometer")
    assert state(dense, n) == "sent"


@pytest.mark.parametrize(
    ("guarantee", "becomes"),
    [("effectively_once", "queued"), ("at_least_once", "queued"), ("at_most_once", "failed")],
)
def test_the_very_next_sms_no_shows_that_it_was_not_sent(dense: Book, guarantee: str, becomes: str) -> None:
    dense.sent(sms_no=7)
    n = lost(dense, guarantee=guarantee)
    dense.sent(sms_no=8)
    [fact] = dense.settle(66)
    assert (fact["event_type"], fact["evidence"], fact["error"]["ambiguous"]) == (becomes, "odometer", False)
    assert state(dense, n) == becomes


def test_two_doubtful_sms_are_settled_together_or_not_at_all(dense: Book) -> None:
    dense.sent(sms_no=7)
    both = [lost(dense), lost(dense)]
    dense.sent(sms_no=9)
    dense.at += 66
    dense.settle_quietly()
    assert [state(dense, n) for n in both] == ["unknown", "unknown"]
    dense.sent(sms_no=12)  # only tells of what is between it and the one before
    dense.at += 66
    dense.settle_quietly()
    assert [state(dense, n) for n in both] == ["unknown", "unknown"]
    dense.sent(sms_no=13)
    again = [lost(dense), lost(dense)]
    dense.sent(sms_no=16)
    dense.settle(66)
    assert [state(dense, n) for n in again] == ["sent", "sent"]


@pytest.mark.parametrize(
    "disturbance", ["reboot before", "reboot after", "long text", "not dense", "no sms_no", "error"]
)
def test_the_odometer_is_not_read_where_it_could_lie(dense: Book, disturbance: str) -> None:
    line = dense.server.line("goip1")
    assert line is not None
    dense.sent(sms_no=7)
    if disturbance == "error":
        failed = dense.queue()
        dense.record(
            events.SmsSending("goip1", failed, FIRST_SENDID + failed, 1), events.SmsFailed("goip1", failed, 1, "x")
        )
    n = lost(dense, text="x" * 161 if disturbance == "long text" else "x")
    if disturbance == "reboot before":
        line.reboots += 1
    if disturbance == "not dense":
        dense.server.restore_proof("goip1", Proof(safe=True, identity=""))
    dense.sent(sms_no=None if disturbance == "no sms_no" else 8)
    if disturbance == "reboot after":
        line.reboots += 1
    dense.at += 66
    assert not [fact for fact in dense.settle_quietly() if fact["evidence"] == "odometer"]
    assert state(dense, n) == "unknown"


# -- a restored store, and firmware that sends twice


def test_what_waits_in_a_restored_store_is_doubted_and_not_sent(book: Book) -> None:
    queued = book.queue()
    sending = book.queue()
    book.record(events.SmsSending("goip1", sending, FIRST_SENDID, 1))
    sent = book.sent()
    told = book.doubt()
    assert kinds(told) == ["unknown", "unknown", "store_restored"]
    assert {fact["evidence"] for fact in told[:2]} == {"restored"}
    assert "2 SMS" in told[2]["message"]
    assert [state(book, n) for n in (queued, sending, sent)] == ["unknown", "unknown", "sent"]


def test_the_odometer_is_not_read_across_a_restoration(dense: Book) -> None:
    dense.sent(sms_no=5)
    doubtful = lost(dense)  # it failed …
    dense.doubt()
    dense.sent(sms_no=7)  # … and 6 was another one, of which the copy does not know
    dense.at += 66
    dense.settle_quietly()
    assert state(dense, doubtful) == "unknown"


def test_firmware_that_sent_twice_is_told_and_remembered(book: Book) -> None:
    [fact] = book.record(events.RepeatUnsafe("goip1", "35678901"))
    assert (fact["event_type"], fact["line"]) == ("repeat_unsafe", "goip1")
    assert dict(book.store.proofs()) == {"goip1": Proof(safe=False, identity="35678901")}


@pytest.mark.parametrize(("host", "becomes"), [("192.0.2.1", "unknown"), ("192.0.2.99", "sent")])
def test_the_sms_of_another_line_of_the_box_may_have_moved_its_count(dense: Book, host: str, becomes: str) -> None:
    here = LineConfig(name="goip1", goip_id="goip1", password="p")
    dense.server.configure([here, LineConfig(name="goip2", goip_id="goip2", password="p")], START)
    dense.server.restore_line("goip2", LineMemory(address=(host, 2), count=1, reboots=0))
    dense.sent(sms_no=7)
    n = lost(dense)
    other = dense.queue(line="goip2")
    dense.record(events.SmsSending("goip2", other, FIRST_SENDID + other, 1), events.SmsSent("goip2", other, 8))
    dense.sent(sms_no=9)
    dense.at += 66
    dense.settle_quietly()
    assert state(dense, n) == becomes


# -- reports whose sms_no is nobody's


def test_a_report_settles_the_only_sms_it_can_belong_to_although_the_ok_was_lost(book: Book) -> None:
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID, 1), report(9))
    [fact] = book.settle(REPORT_HOLD_S + 1)
    assert (fact["event_type"], fact["sms_no"], fact["evidence"]) == ("delivered", 9, "report")
    assert book.record(events.SmsUnknown("goip1", n, "silence")) == []


def test_firmware_without_sms_no_has_its_reports_matched_by_number(book: Book) -> None:
    n = book.sent(sms_no=None)
    book.record(report(9))
    book.settle(REPORT_HOLD_S + 1)
    assert state(book, n) == "delivered"


def test_a_second_report_of_an_earlier_sms_says_nothing_of_the_one_that_is_sending(book: Book) -> None:
    book.sent(sms_no=7)
    book.record(report(7))
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + 9, 1), report(7))
    [fact] = book.settle(REPORT_HOLD_S + 1)
    assert fact["msg"] is None
    assert state(book, n) == "sending"


def test_a_report_that_could_belong_to_two_sms_settles_neither(book: Book) -> None:
    first = book.sent(sms_no=None)
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + 9, 1), report(9))
    [fact] = book.settle(REPORT_HOLD_S + 1)
    assert fact["msg"] is None
    assert [state(book, first), state(book, n)] == ["sent", "sending"]


# -- a report for the SMS that the line waits for

HOME = ("10.0.0.1", 10991)


def under_way(book: Book, **columns: Any) -> int:
    """An SMS in a session, whose SEND has left."""
    n = book.queue(**columns)
    server, sendid = book.server, book.server.next_sendid
    server.receive_datagram(b"req:1;id:goip1;pass:p;", HOME, book.at)
    server.send_sms("goip1", "x", [Recipient(n, "+4915112345678")], book.at)
    for prompt in (f"PASSWORD {sendid}", f"SEND {sendid}"):
        server.receive_datagram(prompt.encode(), HOME, book.at)
    book.record(*server.take_events())
    assert state(book, n) == "sending"
    return n


def test_a_report_that_can_only_be_of_the_sms_under_way_settles_it_at_once(book: Book) -> None:
    n = under_way(book)
    batch = Batch(book.run, book.at, book.at)
    with book.store.transaction():
        book.ledger.record([report(0)], batch, book.at)
    told = [(fact["event_type"], fact["sms_no"], fact["evidence"]) for fact in facts(batch)]
    assert told == [("sent", 0, "report"), ("delivered", 0, "report")]
    assert batch.settled == [("goip1", n)], "the line need not wait for its OK"
    assert book.record(events.SmsSent("goip1", n, 0)) == []


@pytest.mark.parametrize(
    "of", ["one sent before", "an unknown one", "a failed one", "a part", "a self-test", "another"]
)
def test_a_report_that_may_not_be_of_the_sms_under_way_waits(book: Book, of: str) -> None:
    if of == "one sent before":  # the firmware may have sent it twice
        book.sent(sms_no=6)
        book.record(report(6))
    elif of == "an unknown one":
        n = book.queue()
        book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsUnknown("goip1", n, "silence"))
    elif of == "a failed one":
        n = book.queue()
        book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsFailed("goip1", n, 38, "x"))
    elif of == "a self-test":
        with book.store.transaction():
            book.store.put("selftest goip1", f"1 {book.at} +4915112345678")
    n = under_way(book, text="x" * 300 if of == "a part" else "x")
    assert book.record(report(7, number="+4915187654321" if of == "another" else "+4915112345678")) == []
    assert state(book, n) == "sending"


def test_on_a_line_that_never_sends_twice_an_earlier_sms_to_the_number_is_no_other_possibility(book: Book) -> None:
    line = book.server.line("goip1")
    assert line is not None
    line.declared_safe = True
    book.sent(sms_no=6)
    book.record(report(6))
    under_way(book)
    assert kinds(book.record(report(7))) == ["sent", "delivered"]


# -- what was given back, and went out all the same


def given_back(book: Book) -> int:
    n = book.queue()
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsRequeued("goip1", n, "SENDID"))
    return n


def test_a_late_ok_stops_an_sms_from_being_sent_again(book: Book) -> None:
    n = given_back(book)
    assert kinds(book.record(events.SmsSent("goip1", n, 7))) == ["sent"]
    assert kinds(book.record(report(7))) == ["delivered"]


def test_a_late_failure_is_that_of_its_own_submission(book: Book) -> None:
    n = given_back(book)
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + 100, 1))
    assert book.record(events.SmsFailed("goip1", n, 1, "errorstatus:1", of=(FIRST_SENDID + n, 1))) == []
    assert state(book, n) == "sending"
    assert kinds(book.record(events.SmsFailed("goip1", n, 1, "x", of=(FIRST_SENDID + 100, 1)))) == ["failed"]


def test_a_late_failure_of_what_is_queued_again_is_its_outcome(book: Book) -> None:
    n = given_back(book)
    assert kinds(book.record(events.SmsFailed("goip1", n, 1, "x", of=(FIRST_SENDID + n, 1)))) == ["failed"]


def test_a_report_stops_an_sms_from_being_sent_again(book: Book) -> None:
    n = given_back(book)
    book.record(report(7))
    assert kinds(book.settle(REPORT_HOLD_S + 1)) == ["delivered"]
    assert state(book, n) == "delivered"


# -- where the odometer, or a report, would be that of another SMS


def test_the_sms_of_a_selftest_are_no_evidence(dense: Book) -> None:
    dense.sent(sms_no=5)
    both = [lost(dense), lost(dense)]
    with dense.store.transaction():  # two SMS of a self-test, which have no rows, take 6 and 7
        dense.store.put("selftest goip1", f"{FIRST_SENDID + both[-1] + 1} {dense.at} +4915112345678")
    dense.sent(sms_no=8)
    dense.at += 66
    dense.settle_quietly()
    assert [state(dense, n) for n in both] == ["unknown", "unknown"]


def test_an_sms_that_was_submitted_twice_is_no_evidence(dense: Book) -> None:
    dense.sent(sms_no=5)
    again = lost(dense, guarantee="at_least_once")  # it was sent, and took 6
    dense.at += 880
    n = lost(dense)
    dense.sent(sms_no=7)
    dense.at += 30
    dense.settle_quietly()
    assert state(dense, again) == "queued"
    dense.record(events.SmsSending("goip1", again, FIRST_SENDID + 500, 1))
    dense.at += 40
    dense.settle_quietly()
    assert state(dense, n) == "unknown"


def test_a_whole_turn_of_the_counter_is_no_evidence(dense: Book) -> None:
    dense.sent(sms_no=5)
    doubtful = [lost(dense) for _ in range(256)]
    dense.sent(sms_no=(5 + 257) % 256)
    dense.at += 66
    dense.settle_quietly()
    assert {state(dense, n) for n in doubtful} == {"unknown"}


@pytest.mark.parametrize("of", ["a failed one", "another part", "one of yesterday", "a self-test"])
def test_a_report_that_may_be_of_another_sms_settles_nothing(book: Book, of: str) -> None:
    if of == "a failed one":  # with a cause after which it may have gone out
        failed = book.queue()
        book.record(
            events.SmsSending("goip1", failed, FIRST_SENDID + failed, 1), events.SmsFailed("goip1", failed, 38, "x")
        )
    elif of == "another part":
        book.sent(sms_no=5, text="x" * 300)
        book.record(report(5))
    elif of == "one of yesterday":
        book.sent(sms_no=6)
        book.at += 9 * 3600
    else:
        with book.store.transaction():
            book.store.put("selftest goip1", f"1 {book.at} +4915112345678")
    n = lost(book)
    book.record(report(6))
    book.at += REPORT_HOLD_S + 1
    book.settle_quietly()
    assert state(book, n) == "unknown"


# -- at_least_once: what becomes of one submission does not undo the doubt about another


def insisted(book: Book, **columns: Any) -> int:
    """An SMS whose first submission is unknown, queued again."""
    n = book.queue(guarantee="at_least_once", **columns)
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + n, 1), events.SmsUnknown("goip1", n, "silence"))
    [fact] = book.settle(book.settings.timing.evidence_s + 1)
    assert (fact["event_type"], fact["error"]["ambiguous"]) == ("queued", True)
    return n


def test_a_failure_after_a_doubtful_submission_is_ambiguous(book: Book) -> None:
    n = insisted(book)
    book.record(events.SmsSending("goip1", n, FIRST_SENDID + n + 1, 1))
    [fact] = book.record(events.SmsFailed("goip1", n, 28, "errorstatus:28"))
    assert (fact["event_type"], fact["error"]["ambiguous"]) == ("failed", True)


def test_a_doubtful_sms_whose_time_is_over_stays_unknown(book: Book) -> None:
    n = insisted(book, expires=START + 1000)
    [fact] = book.settle(200)
    assert (fact["event_type"], fact["evidence"]) == ("unknown", "silence")
    book.at += 2 * book.settings.timing.evidence_s
    assert book.settle_quietly() == [], "it is too old to be sent again"
    assert state(book, n) == "unknown"


def test_a_doubtful_sms_of_a_line_that_is_removed_stays_unknown(book: Book) -> None:
    n = insisted(book)
    book.remove_line()
    assert kinds(book.settle(0)) == ["unknown"]
    assert state(book, n) == "unknown"
