"""The server's door: who is answered and believed, what is told once, and how orders are carried out."""

import ipaddress
from dataclasses import replace

import pytest
from goip_bench import ELSEWHERE, HOME, SENDID, START, Bench
from hypothesis import given
from hypothesis import strategies as st

from bridge.goip import events, server
from bridge.goip.control import Operation
from bridge.goip.line import Submitted
from bridge.goip.server import LineConfig, LineMemory, SmsServer
from bridge.goip.session import Phase, Recipient
from bridge.goip.timing import Timing
from bridge.retained import line_state as states

MOVED = ("192.0.2.10", 20000)
KEEPALIVE = "req:1;id:goip1;pass:pw1;"
RECEIVE = "RECEIVE:100;id:goip1;password:pw1;srcnum:+49;msg:hi"


def sms(text: str, recvid: int = 100, srcnum: str = "+49") -> events.SmsReceived:
    return events.SmsReceived("goip1", recvid, srcnum, text, None, None, None)


# -- registration


def test_keepalive_registers_the_line(fresh):
    assert fresh.tell("req:10;id:goip1;pass:pw1;gsm_status:LOGIN;") == ["reg:10;status:200;"]
    assert fresh.line.online
    assert fresh.events() == [
        events.LineMoved("goip1", HOME, 10, 0),
        events.LineOnline("goip1", HOME),
        events.LineReady("goip1"),
    ]


def test_every_keepalive_is_answered_and_only_news_are_told(bench):
    assert bench.keepalive() == ["reg:2;status:200;"]
    assert bench.events() == []


def test_fields_of_the_keepalive_are_kept(bench):
    bench.keepalive("signal:;pro:My Net;NEW:1;")
    assert bench.line.fields == {"signal": "", "pro": "My Net", "NEW": "1"}


def test_answer_goes_to_where_the_keepalive_came_from(fresh):
    fresh.tell(KEEPALIVE, source=MOVED)
    assert fresh.destinations == [MOVED]


# -- authentication

STRANGERS = [
    "req:1;id:goip1;pass:wrong;",
    "req:1;id:goip1;",
    "req:1;id:goip1;pass:pw11;",
    "req:1;id:goip1;pass:pw;",
    "req:1;id:GOIP1;pass:pw1;",
    "req:1;id:other;pass:pw1;",
    "req:1;id:;pass:;",
    "req:1;id:other;pass:\0;",
    "RECEIVE:1;id:goip1;password:wrong;srcnum:1;msg:x",
    "RECEIVE:1;id:goip1;srcnum:1;msg:;password:pw1",
    "RECEIVE:1;id:other;password:pw1;srcnum:1;msg:x",
    "NEW:1;id:goip1;password:wrong",
]


@pytest.mark.parametrize("datagram", STRANGERS)
def test_strangers_get_no_answer_and_change_nothing(fresh, datagram):
    assert fresh.tell(datagram) == []
    (told,) = fresh.events()
    assert isinstance(told, events.Unauthenticated)
    assert fresh.server.counters.unauthorized == 1
    assert (fresh.line.address, fresh.line.online) == (None, None)


@pytest.mark.parametrize(
    ("datagram", "reason", "line"),
    [
        ("req:1;id:goip1;pass:wrong;", "password", "goip1"),
        ("req:1;id:other;pass:pw1;", "unknown", None),
    ],
)
def test_stranger_is_told_with_the_reason(fresh, datagram, reason, line):
    fresh.tell(datagram, source=ELSEWHERE)
    (told,) = fresh.events()
    assert (told.reason, told.line, told.address) == (reason, line, ELSEWHERE)


def test_unknown_id_costs_a_comparison_too(monkeypatch, fresh):
    compared = []
    original = server.hmac.compare_digest
    monkeypatch.setattr(server.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b))
    fresh.tell("req:1;id:other;pass:pw1;", "req:1;id:goip1;pass:wrong;")
    assert [given for given, _ in compared] == [b"pw1", b"wrong"]


def test_password_outside_of_ascii_is_compared(monkeypatch):
    bench = Bench(online=False, password="pä55wörd")
    assert bench.tell("req:1;id:goip1;pass:pä55wörd;") == ["reg:1;status:200;"]
    assert bench.tell(b"req:1;id:goip1;pass:p\xe455w\xf6rd;") == []


@pytest.mark.parametrize(
    ("networks", "host", "allowed"),
    [
        (["192.0.2.0/24"], "192.0.2.10", True),
        (["192.0.2.0/24"], "192.0.3.10", False),
        (["10.0.0.0/8", "192.0.2.10/32"], "192.0.2.10", True),
        (["192.0.2.0/24"], "::ffff:192.0.2.10", True),
        (["192.0.2.0/24"], "2001:db8::1", False),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        ([], "203.0.113.1", True),
    ],
)
def test_line_may_come_from_its_networks_only(networks, host, allowed):
    bench = Bench(online=False, allow_from=tuple(ipaddress.ip_network(n) for n in networks))
    assert bool(bench.tell(KEEPALIVE, source=(host, 10991))) is allowed
    if not allowed:
        assert bench.told(events.Unauthenticated)[0].reason == "network"


def test_allowed_host_does_not_open_the_door_for_another():
    bench = Bench(allow_from=(ipaddress.ip_network("192.0.2.0/24"),))
    assert bench.keepalive(source=("203.0.113.1", 10991)) == []
    assert bench.keepalive() != []


KINDS = ("STATE", "RECORD", "REMAIN", "EXPIRY", "HANGUP", "CELLS", "CELLINFO", "BCCH", "CGATT", "USSN", "DELIVER",
         "RECEIVE", "AT", "GSM", "X", "A" * 31)  # fmt: skip


@given(
    st.sampled_from(KINDS) | st.sampled_from(("req", "PASSWORD", "OK", "USSD")),
    st.sampled_from((":", " ")),
    st.integers(-(10**17), 10**17),
    st.sampled_from(("", ";", ";id:goip1", ";id:goip1;pass:pw1", ";pass:pw1;id:goip1;msg:", ";id:goip1;pass:no")),
)
def test_no_reply_is_larger_than_its_request(kind, separator, number, rest):
    request = f"{kind}{separator}{number}{rest}".encode()
    for source in (HOME, ELSEWHERE):
        bench = Bench()
        sent = bench.tell(request, source=source)
        assert sum(len(reply.encode()) for reply in sent) <= len(request)
        assert len(sent) <= 1
        assert not sent or b"pw1" in request, "a stranger was answered"


@pytest.mark.parametrize(("request_", "answered"), [("req:1;id:a;pass:", False), ("req:1;id:a;pass:;x", True)])
def test_not_even_a_line_without_a_password_amplifies(request_, answered):
    bench = Bench(online=False, goip_id="a", password="")
    assert bool(bench.tell(request_)) is answered


@pytest.mark.parametrize(
    "datagram",
    [
        *(f"PASSWORD {SENDID}", f"SEND {SENDID}", f"WAIT {SENDID} 1", f"OK {SENDID} 1 1", f"ERROR {SENDID} SENDID"),
        *(f"DONE {SENDID}", f"ERROR {SENDID} 1 errorstatus:1", f"USSD {SENDID} x", f"GSM:{SENDID};imei:1"),
    ],
)
def test_answers_from_elsewhere_are_ignored(bench, datagram):
    bench.send_sms()
    assert bench.tell(datagram, source=ELSEWHERE) == []
    assert bench.tell(datagram, source=NEW_PORT) == []
    assert bench.events() == []
    assert bench.line.session.phase is Phase.OPENING
    assert bench.server.counters.unmatched == 2


NEW_PORT = (HOME[0], HOME[1] + 1)
"Where NAT may let the box appear from one moment to the next."


@pytest.mark.parametrize(
    "datagram", [f"PASSWORD {SENDID}", f"SEND {SENDID}", f"DONE {SENDID}", f"ERROR {SENDID} SENDID", f"OK {SENDID} 2 7"]
)
def test_from_a_new_port_only_outcomes_of_what_is_under_way_are_taken(bench, datagram):
    bench.submit("+491", "+492")
    assert bench.tell(datagram, source=NEW_PORT) == []
    assert (bench.events(), bench.server.counters.unmatched) == ([], 1)


@pytest.mark.parametrize(("waited", "late"), [(0, False), (91, True)])
def test_an_outcome_from_a_new_port_counts(bench, waited, late):
    bench.submit()
    bench.tell(f"WAIT {SENDID} 1")
    bench.keepalive()
    bench.advance(waited)
    assert bool(bench.told(events.SmsUnknown)) is late
    assert bench.tell(f"OK {SENDID} 1 7", source=ELSEWHERE) == []
    bench.tell(f"OK {SENDID} 1 7", source=NEW_PORT)
    assert bench.told(events.SmsSent) == [events.SmsSent("goip1", 1, 7)]
    assert NEW_PORT not in bench.destinations, "orders go where the last keepalive came from"


def test_after_an_answer_from_a_new_port_nothing_is_submitted_before_a_keepalive_tells_the_address(bench):
    bench.submit("+491", "+492")
    assert bench.tell(f"WAIT {SENDID} 1", f"OK {SENDID} 1 7", source=NEW_PORT) == [f"DONE {SENDID}\n"]
    bench.advance(5)
    assert not bench.line.ready
    assert not bench.told(events.LineReady)
    bench.keepalive(source=NEW_PORT)
    assert bench.line.ready
    assert bench.told(events.LineReady)
    bench.send_sms("+492")
    assert bench.destinations == [NEW_PORT]


def test_a_network_that_is_not_allowed_is_not_heard_from_a_new_port_either():
    bench = Bench(allow_from=(ipaddress.ip_network("192.0.2.0/24"),))
    bench.submit()
    bench.keepalive(source=("192.0.2.77", 1))
    other = replace(bench.config, allow_from=(ipaddress.ip_network("192.0.2.77/32"),))
    bench.server.configure([other], bench.now)
    assert bench.tell(f"OK {SENDID} 1 7", source=HOME) == []
    assert bench.tell(f"OK {SENDID} 1 7", source=NEW_PORT) == []
    assert not bench.told(events.SmsSent)
    bench.tell(f"OK {SENDID} 1 7", source=("192.0.2.77", 2))
    assert bench.told(events.SmsSent)


@pytest.mark.parametrize("begin", [lambda bench: bench.ussd("*100#"), lambda bench: bench.request("get_gsm_num")])
def test_the_answer_to_a_command_from_a_new_port_counts(bench, begin):
    verb = begin(bench)[0].split()[0]
    assert bench.tell(f"{verb} {SENDID} 42", source=ELSEWHERE) == []
    assert bench.events() == []
    bench.tell(f"{verb} {SENDID} 42", source=NEW_PORT)
    (event,) = bench.events()
    assert event.text == "42"
    bench.keepalive(source=NEW_PORT)


def test_answers_to_nothing_are_ignored(bench):
    assert bench.tell("PASSWORD 7", "OK 7 1 1", "USSD 7 x", "GSM:7;imei:1", "DONE 0") == []
    assert bench.server.counters.unmatched == 5


def test_answers_to_another_line_are_ignored():
    bench = Bench()
    other = LineConfig(name="goip2", goip_id="goip2", password="pw2")
    bench.server.configure([bench.config, other], bench.now)
    bench.tell("req:1;id:goip2;pass:pw2;", source=MOVED)
    bench.send_sms()
    assert bench.tell(f"PASSWORD {SENDID}", source=MOVED) == []


def test_malformed_datagrams_are_counted_and_dropped(bench):
    assert bench.tell(b"", b"\0" * 65507, b"RECEIVE:x;id:goip1", b"\xff") == []
    assert bench.server.counters.malformed == 4
    assert bench.events() == []


def test_reason_of_a_drop_is_returned(bench):
    receive = bench.server.receive_datagram
    assert receive(b"", HOME, bench.now) == "unknown verb"
    assert receive(b"req:1;id:goip1;pass:no;", HOME, bench.now) == "not authenticated"
    assert receive(KEEPALIVE.encode(), HOME, bench.now) is None


# -- where a line is


def test_orders_go_to_the_source_of_the_last_keepalive(bench):
    bench.keepalive(source=MOVED)
    bench.send_sms()
    assert bench.destinations == [MOVED]


def test_move_with_a_larger_count_is_followed_at_once(bench):
    bench.keepalive(source=MOVED)
    assert bench.line.address == MOVED
    assert bench.told(events.LineMoved) == [events.LineMoved("goip1", MOVED, 2, 0, previous=HOME)]


def test_answers_from_the_address_before_the_move_still_count(bench):
    bench.send_sms()
    bench.keepalive(source=MOVED)
    assert bench.tell(f"PASSWORD {SENDID}") == [f"PASSWORD {SENDID} pw1\n"]
    assert bench.destinations == [MOVED]


@pytest.mark.parametrize("count", [1, 2, 3, 49, 50])
def test_replay_from_elsewhere_is_acknowledged_and_changes_nothing(bench, count):
    bench.keepalive(count=50)
    assert bench.keepalive("gsm_status:LOGOUT;", count=count, source=ELSEWHERE) == [f"reg:{count};status:200;"]
    silence = bench.server.timing.offline
    assert bench.events() == [events.KeepaliveIgnored("goip1", ELSEWHERE, count, HOME, 50, silence, contested=False)]
    assert (bench.line.address, bench.line.count, bench.line.fields) == (HOME, 50, {"gsm_status": "LOGIN"})


def test_replay_from_elsewhere_does_not_keep_a_line_online(bench):
    bench.keepalive(count=50)
    for _ in range(9):
        bench.advance(10)
        bench.keepalive(count=49, source=ELSEWHERE)
    bench.advance(5)
    assert bench.told(events.LineOffline)


def test_move_with_a_smaller_count_is_followed_when_the_old_address_is_silent(bench):
    bench.keepalive(count=50)
    bench.advance(94)
    bench.keepalive(count=5, source=MOVED)
    assert bench.line.address == HOME
    bench.advance(1)
    bench.keepalive(count=6, source=MOVED)
    assert bench.line.address == MOVED


def test_events_from_the_old_address_show_that_it_is_not_silent(bench):
    bench.keepalive(count=50)
    bench.advance(60)
    bench.event("CGATT", "cgatt:1")
    bench.advance(60)
    bench.keepalive(count=5, source=MOVED)
    assert bench.line.address == HOME


@pytest.mark.parametrize("count", [2, 3, 4, 50])
def test_repeated_keepalive_is_a_copy(bench, count):
    bench.keepalive(count=count)
    for _ in range(3):
        bench.keepalive("gsm_status:LOGOUT;", count=count)
    assert bench.events() == []
    assert bench.line.fields == {"gsm_status": "LOGIN"}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_count_is_a_reboot_at_once(bench, count):
    bench.keepalive(count=50)
    bench.keepalive(count=count)
    up = max(0, count - 1) * 25.0
    assert bench.told(events.GatewayRebooted) == [events.GatewayRebooted("goip1", HOME, 1, up)]
    assert bench.line.count == count


def test_smaller_count_is_a_reboot_when_it_goes_on(bench):
    bench.keepalive(count=50)
    bench.keepalive(count=7)
    bench.keepalive(count=7)
    assert (bench.line.count, bench.events()) == (50, [])
    bench.keepalive(count=8)
    assert bench.line.count == 8
    assert bench.told(events.GatewayRebooted)


def test_two_copies_of_old_keepalives_with_a_good_one_between_are_no_reboot(bench):
    bench.keepalive(count=50)
    bench.keepalive(count=7)
    bench.keepalive(count=51)
    bench.keepalive(count=8)
    assert bench.events() == []


def test_reboot_ends_the_session_and_frees_the_line(bench):
    bench.keepalive(count=50)
    bench.submit()
    bench.keepalive(count=1)
    told = bench.events()
    assert events.SmsUnknown("goip1", 1, "session_lost") in told
    assert events.LineReady("goip1") in told
    assert bench.line.session is None


def test_reboot_and_move_are_told_with_the_new_address(bench):
    bench.keepalive(count=50)
    bench.advance(100)
    bench.keepalive(count=1, source=MOVED)
    told = bench.events()
    assert events.GatewayRebooted("goip1", MOVED, 1) in told
    assert events.LineMoved("goip1", MOVED, 1, 1, previous=HOME) in told


def test_stored_address_is_used_before_the_first_keepalive(fresh):
    fresh.server.restore_line("goip1", LineMemory(address=MOVED, count=50, reboots=3))
    assert fresh.line.ready
    assert fresh.send_sms() == [f"MSG {SENDID} 5 hello\n"]
    assert fresh.destinations == [MOVED]


def test_stored_address_is_not_given_up_for_a_replay(fresh):
    fresh.server.restore_line("goip1", LineMemory(address=MOVED, count=50, reboots=3))
    fresh.keepalive(count=49, source=ELSEWHERE)
    assert fresh.line.address == MOVED


def test_event_does_not_move_a_line(bench):
    assert bench.event("CGATT", "cgatt:1", source=MOVED) != []
    assert bench.destinations == [MOVED]
    assert bench.line.address == HOME


# -- online and offline


def test_line_is_offline_after_the_time_and_online_with_the_next_keepalive(bench):
    bench.advance(94.9)
    assert bench.events() == []
    bench.advance(0.2)
    assert bench.events() == [events.LineOffline("goip1", HOME)]
    bench.keepalive()
    assert bench.events() == [events.LineOnline("goip1", HOME), events.LineReady("goip1")]


def test_line_never_heard_is_offline_only_after_the_time(fresh):
    fresh.advance(94.9)
    assert fresh.events() == []
    assert fresh.line.online is None
    fresh.advance(0.2)
    assert fresh.events() == [events.LineOffline("goip1", None)]


def test_offline_is_told_once(bench):
    bench.advance(1000)
    assert bench.events() == [events.LineOffline("goip1", HOME)]


def test_offline_line_is_back_with_an_event_from_its_address(bench):
    bench.advance(100)
    bench.events()
    bench.event("STATE", "gsm_remain_state:IDLE")
    assert events.LineOnline("goip1", HOME) in bench.events()


def test_offline_line_stays_offline_with_an_event_from_elsewhere(bench):
    bench.advance(100)
    bench.events()
    bench.event("STATE", "gsm_remain_state:IDLE", source=ELSEWHERE)
    assert not bench.told(events.LineOnline)


def test_disabled_line_takes_no_session_until_it_is_enabled(bench):
    bench.keepalive("disable_status:1;")
    assert not bench.line.ready
    bench.events()
    bench.keepalive("disable_status:0;")
    assert events.LineReady("goip1") in bench.events()
    assert bench.line.ready


def test_offline_line_takes_no_session(bench):
    bench.advance(100)
    assert not bench.line.usable
    assert not bench.line.ready


@given(st.floats(0, 1e7), st.floats(5, 1e5))
def test_timer_that_is_due_does_not_stay_due(start, offline):
    timing = Timing(offline=offline)
    core = SmsServer([LineConfig(name="a", goip_id="a", password="p")], timing, next_sendid=1, now=start)
    deadline = core.deadline()
    core.handle_timer(deadline)
    assert core.deadline() is None
    assert core.take_events() == [events.LineOffline("a", None)]


# -- repeats (§6.3)


def test_receive_is_told_and_acknowledged(bench):
    assert bench.tell(RECEIVE) == ["RECEIVE 100 OK\n"]
    assert bench.events() == [sms("hi")]


def test_acknowledgement_comes_with_the_event_to_be_stored_before_it(bench):
    bench.server.receive_datagram(RECEIVE.encode(), HOME, bench.now)
    assert sms("hi") in bench.server.take_events()
    assert bench.server.take_datagrams() == [(b"RECEIVE 100 OK\n", HOME)]


def test_repeat_is_acknowledged_again_and_told_once(bench):
    for _ in range(4):
        assert bench.tell(RECEIVE) == ["RECEIVE 100 OK\n"]
        bench.advance(3)
    assert bench.told(events.SmsReceived) == [sms("hi")]


def test_repeat_from_another_address_is_acknowledged_there(bench):
    bench.tell(RECEIVE)
    bench.tell(RECEIVE, source=MOVED)
    assert bench.destinations == [MOVED]
    assert len(bench.told(events.SmsReceived)) == 1


def test_same_text_with_another_recvid_is_another_sms(bench):
    bench.tell(RECEIVE, RECEIVE.replace("100", "99"))
    assert bench.told(events.SmsReceived) == [sms("hi", 100), sms("hi", 99)]


def test_small_recvid_with_another_text_is_another_sms(bench):
    bench.tell(RECEIVE, RECEIVE.replace("hi", "ho"))
    assert bench.told(events.SmsReceived) == [sms("hi"), sms("ho")]


def test_same_recvid_of_another_kind_is_another_event(bench):
    bench.tell(RECEIVE)
    assert bench.tell("CGATT:100;id:goip1;password:pw1;cgatt:1") == ["CGATT 100 OK\n"]
    assert len(bench.events()) == 2


def test_repeat_is_forgotten_in_the_end(bench):
    bench.tell(RECEIVE)
    bench.advance(901)
    bench.keepalive()
    bench.tell(RECEIVE)
    assert len(bench.told(events.SmsReceived)) == 2


def test_same_datagram_after_a_reboot_is_new(bench):
    bench.keepalive(count=50)
    bench.tell(RECEIVE)
    bench.advance(40)
    bench.keepalive(count=1)
    assert bench.tell(RECEIVE) == ["RECEIVE 100 OK\n"]
    assert len(bench.told(events.SmsReceived)) == 2


def test_repeat_of_an_event_from_before_the_first_keepalive_of_a_boot_is_no_news(bench):
    bench.keepalive(count=50)
    bench.tell(RECEIVE)  # after the reboot already; the keepalive with count 1 was lost
    bench.advance(2)
    bench.keepalive(count=2)
    bench.advance(1)
    assert bench.tell(RECEIVE) == ["RECEIVE 100 OK\n"]
    assert len(bench.told(events.SmsReceived)) == 1


def test_repeat_is_known_after_a_restart(bench):
    bench.server.receive_datagram(RECEIVE.encode(), HOME, bench.now)
    (seen,) = [event for event in bench.server.take_events() if isinstance(event, events.Seen)]
    again = Bench()
    again.server.restore_repeat("goip1", seen.key, again.now - 5)
    assert again.tell(RECEIVE) == ["RECEIVE 100 OK\n"]
    assert again.events() == []


def test_memory_of_repeats_is_bounded(bench):
    for n in range(12_000):
        bench.event("CGATT", "cgatt:1", recvid=-n)
    assert len(bench.line._seen) <= 10_000
    bench.advance(901)
    bench.event("CGATT", "cgatt:1", recvid=1)
    assert len(bench.line._seen) == 1


def test_damaged_sms_is_told_with_its_bytes(bench):
    bench.tell(b"RECEIVE:100;id:goip1;password:pw1;srcnum:+49;msg:caf\xe9")
    (told,) = bench.told(events.SmsReceived)
    assert (told.text, told.raw) == ("caf\N{REPLACEMENT CHARACTER}", b"caf\xe9")


def test_largest_sms_is_told(bench):
    bench.tell(RECEIVE + "x" * 65_000)
    assert len(bench.told(events.SmsReceived)[0].text) == 65_002


# -- other events


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("DELIVER", "sms_no:0;state:0;num:+49", events.SmsReport("goip1", 0, 0, "+49")),
        ("DELIVER", "sms_no:;state:64;num:", events.SmsReport("goip1", None, 64, "")),
        ("CELLS", "lists:1,2,", events.LineEvent("goip1", "cells", {"cells": [1, 2]})),
        ("BCCH", "bcch:1,2,", events.LineEvent("goip1", "bcch", {"bcch": [1, 2]})),
        ("CELLINFO", 'info:"LAC:1"', events.LineEvent("goip1", "cellinfo", {"info": "LAC:1"})),
        ("CGATT", "cgatt:0", events.LineEvent("goip1", "cgatt", {"cgatt": False})),
        ("USSN", "msg:5; left", events.UssdEvent("goip1", "reply", None, None, "5; left")),
        ("USSN", "msg:004F004B", events.UssdEvent("goip1", "reply", None, None, "OK", text_raw="004F004B")),
        (
            "NEW_KIND",
            "a:1;b:2",
            events.LineEvent(
                "goip1",
                "new_kind",
                {"kind": "NEW_KIND", "fields": {"a": "1", "b": "2"}, "raw": "NEW_KIND:5;id:goip1;a:1;b:2"},
            ),
        ),
    ],
)
def test_event_is_told(bench, kind, fields, told):
    bench.event(kind, fields, recvid=5)
    assert bench.events() == [told]


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        *((kind, "\n") for kind in ("RECEIVE", "DELIVER", "HANGUP", "CELLS", "CELLINFO", "BCCH", "CGATT")),
        *((kind, "") for kind in ("STATE", "RECORD", "REMAIN", "EXPIRY", "USSN", "NEW_KIND", "need_recharge")),
    ],
)
def test_event_is_acknowledged_in_its_own_words(bench, kind, end):
    assert bench.event(kind, "x:1", recvid=-5) == [f"{kind} -5 OK{end}"]


def test_at_trace_is_not_acknowledged(bench):
    assert bench.tell("AT:20;count:1;id:goip1;password:pw1;receive:write:AT+CREG?") == []
    assert bench.events() == []


def test_gsm_reply_is_not_acknowledged(bench):
    bench.request("GSM")
    assert bench.tell(f"GSM:{SENDID};get_gsm_num:(null);get_exp_time:0;id:goip1;password:pw1") == []


# -- control commands (§8)

ANSWERS = [
    (("get_gsm_num",), "get_gsm_num {} 13800138001", True, "13800138001"),
    (("get_gsm_num",), "get_gsm_num {} (null)", True, "(null)"),
    (("set_gsm_num", "138"), "set_gsm_num {} 138 ok", True, "138 ok"),
    (("set_gsm_num", "138"), "set_gsm_num {} 138 $ok", True, "138 $ok"),
    (("set_gsm_num", "138"), "ERROR {} 138 bad value", False, "138 bad value"),
    (("set_gsm_num", "138"), "ERROR {} 138 errorstatus:1", False, "138 errorstatus:1"),
    (("get_exp_time",), "get_exp_time {} 0", True, "0"),
    (("set_exp_time", "120"), "set_exp_time {} 120 ok", True, "120 ok"),
    (("set_exp_time", "120"), "set_exp_time {} 120 failed", False, "120 failed"),
    (("get_remain_time",), "get_remain_time {} -1", True, "-1"),
    (("reset_remain_time",), "reset_remain_time {} OK", True, "OK"),
    (("get_gsm_state",), "get_gsm_state {} IDLE", True, "IDLE"),
    (("svr_drop_call",), "svr_drop_call {} ok", True, "ok"),
    (("svr_reboot_module",), "svr_reboot_module {} ok", True, "ok"),
    (("svr_reboot_dev",), "svr_reboot_dev {} ok", True, "ok"),
    (("get_imei",), "get_imei {} 860000023950001", True, "860000023950001"),
    (("set_imei", "1"), "set_imei {} 1 ok", True, "1 ok"),
    (("get_out_call_interval",), "get_out_call_interval {} 5", True, "5"),
    (("set_out_call_interval", "5"), "set_out_call_interval {} 5 ok", True, "5 ok"),
    (("module_ctl_i", "1"), "module_ctl_i {} ok", True, "ok"),
    (("module_ctl", "10120121"), "module_ctl {} ok", True, "ok"),
    (("set_base_cell", "689"), "set_base_cell {} 689 ok", True, "689 ok"),
    (("CURCELL",), "CURCELL {} 689", True, "689"),
    (("CF", "0", "2", "0", "0"), "CFSTATE {} 1 +49", True, "1 +49"),
    (("CF", "2", "2", "0", "0"), "CFSTATE {} 1 +49123 20", True, "1 +49123 20"),
    (("CF", "0", "2", "0", "0"), "CFSTATE {} 0 (null) 0\n", True, "0 (null) 0"),
    (("CF", "0", "4", "0", "0"), "CFOK {}", True, ""),
    (("CF", "0", "4", "0", "0"), "CFERROR {}", False, ""),
    (("CW", "2"), "CWSTATE {} 0", True, "0"),
    (("CW", "1"), "CWOK {}", True, ""),
    (("CW", "1"), "CWERROR {}", False, ""),
    (("USSDEXIT",), "USSDEXIT {}", True, ""),
    (("USSDEXIT",), "USSDERROR {} PASSWORD", False, "PASSWORD"),
    (("GSM",), "GSMERROR {} bad password", False, "bad password"),
    *(
        ((verb,), "ERROR {} password error", False, "password error")
        for verb in (
            "get_gsm_num",
            "svr_reboot_dev",
            "module_ctl",
            "get_cells_list",
            "CURCELL",
            "CF",
            "GSM",
            "USSDEXIT",
        )
    ),
]


@pytest.mark.parametrize(("words", "answer", "ok", "text"), ANSWERS, ids=[answer for _, answer, _, _ in ANSWERS])
def test_command_is_answered(bench, words, answer, ok, text):
    bench.request(*words)
    bench.events()
    bench.tell(answer.format(SENDID))
    assert bench.events() == [events.RequestAnswered("goip1", 1, ok, text)]
    assert bench.line.requests == 0


def test_all_values_at_once(bench):
    bench.request("GSM")
    bench.tell(f"GSM:{SENDID};get_gsm_num:(null);get_exp_time:60;get_remain_time:37")
    (told,) = bench.told(events.RequestAnswered)
    assert told.fields == {"get_gsm_num": "(null)", "get_exp_time": "60", "get_remain_time": "37"}
    assert (bench.line.exp_time, bench.line.remain_time) == (60, 37)


@pytest.mark.parametrize(
    "stray",
    ["get_imei {} 1", "CFOK {}", "PASSWORD {}", "SEND {}", "OK {} 1 1", "WAIT {} 1", "DONE {}", "USSD {} x"],
)
def test_answer_to_something_else_is_ignored(bench, stray):
    bench.request("get_gsm_num")
    bench.tell(stray.format(SENDID))
    assert bench.events() == []
    assert bench.line.requests == 1


def test_command_is_repeated_twice_and_then_given_up(bench):
    sent = bench.request("get_gsm_num")
    assert sent == [f"get_gsm_num {SENDID} pw1"]
    assert bench.advance(14.9) == sent * 2
    assert bench.events() == []
    assert bench.advance(0.2) == []
    assert bench.events() == [events.RequestTimedOut("goip1", 1)]


def test_command_that_must_not_run_twice_is_one_datagram(bench):
    bench.request("svr_reboot_dev", once=True)
    assert bench.advance(14.9) == []
    assert bench.events() == []
    bench.advance(0.2)
    assert bench.events() == [events.RequestTimedOut("goip1", 1)]


def test_answered_command_is_not_repeated(bench):
    bench.request("get_gsm_num")
    bench.tell(f"get_gsm_num {SENDID} 1", f"get_gsm_num {SENDID} 1")
    assert len(bench.told(events.RequestAnswered)) == 1
    assert bench.advance(30) == []


def test_answer_after_the_time_is_ignored(bench):
    bench.request("get_gsm_num")
    bench.advance(15)
    bench.events()
    assert bench.tell(f"get_gsm_num {SENDID} 1") == []
    assert bench.events() == []


@pytest.mark.parametrize("answer", ["CFOK", "CFERROR", "CFSTATE", "ERROR"])
def test_call_forwarding_is_ended_with_done(bench, answer):
    assert bench.request("CF", "0", "2", "0", "0", password_first=True, done=True) == [f"CF {SENDID} pw1 0 2 0 0"]
    assert bench.tell(f"{answer} {SENDID} 1") == [f"DONE {SENDID}\n"]


def test_cells_come_with_their_event(bench):
    bench.request("get_cells_list", cells=True)
    bench.tell(f"get_cells_list {SENDID} ok")
    assert bench.events() == []
    bench.event("CELLS", "lists:1,2,")
    assert bench.told(events.RequestAnswered) == [events.RequestAnswered("goip1", 1, True, "", cells=(1, 2))]


def test_cells_that_do_not_come_time_out(bench):
    bench.request("get_cells_list", cells=True)
    bench.tell(f"get_cells_list {SENDID} ok")
    assert bench.advance(29.9) == []
    assert bench.told(events.RequestTimedOut) == []
    bench.advance(0.2)
    assert bench.told(events.RequestTimedOut) == [events.RequestTimedOut("goip1", 1)]


def test_sendids_are_never_used_twice(bench):
    ids = [datagram.split()[1] for datagram in (*bench.request("get_imei"), *bench.ussd("*1#"), *bench.send_sms())]
    assert ids == [str(SENDID), str(SENDID + 1), str(SENDID + 2)]


# -- what a confirmed order says of the line (§8)

WHOLE = "gsm_status:LOGIN;num:;imei:356789012345678;remain_time:-1;disable_status:0;"


def confirmed(bench: Bench, verb: str, *arguments: str, says: str | None = None) -> None:
    sendid = bench.server.next_sendid
    bench.request(verb, *arguments)
    bench.tell(f"{verb} {sendid} {says or ' '.join((*arguments, 'ok'))}")
    assert bench.told(events.RequestAnswered)


@pytest.mark.parametrize("fields", ["gsm_status:LOGIN;", WHOLE])
def test_what_the_gateway_confirmed_is_known_until_it_says_otherwise(bench, fields):
    bench.keepalive(fields)
    confirmed(bench, "set_gsm_num", "+491511")
    confirmed(bench, "set_imei", "490154203237518")
    state = states.line_state(bench.line, float)
    assert (state.sim.number, state.module.imei) == ("+491511", "490154203237518")
    assert bench.line.number == "+491511"
    bench.keepalive(fields)
    again = states.line_state(bench.line, float)
    told = ("+491511", "490154203237518") if fields != WHOLE else (None, "356789012345678")
    assert (again.sim.number, again.module.imei) == told
    bench.keepalive("num:+492;imei:111111111111111;gsm_status:LOGIN;")
    bench.keepalive("gsm_status:LOGIN;")
    assert states.line_state(bench.line, float).sim.number is None, "what was confirmed before is not true again"


def test_an_order_that_is_not_confirmed_changes_nothing(bench):
    bench.keepalive(WHOLE)
    before = states.line_state(bench.line, float)
    sendid = bench.server.next_sendid
    orders = [("set_gsm_num", "+491"), ("set_imei", "490154203237518"), ("set_exp_time", "90"), ("module_ctl_i", "2")]
    for verb, value in orders:
        bench.request(verb, value)
    bench.request("reset_remain_time")
    bench.tell(f"ERROR {sendid} +491 bad value", f"set_imei {sendid + 1} 490154203237518 failed")
    bench.advance(20)
    assert states.line_state(bench.line, float) == before


def test_a_value_that_the_gateway_repeats_otherwise_is_unknown(bench):
    confirmed(bench, "set_exp_time", "90", says="60 ok")
    confirmed(bench, "set_gsm_num", "+491", says="ok")
    state = states.line_state(bench.line, float)
    assert (state.limits.exp_time_min, state.sim.number) == (None, "+491")


def test_minutes_after_a_new_limit_and_after_a_reset(bench):
    def limits() -> tuple[int | None, int | None, bool | None]:
        state = states.line_state(bench.line, float)
        return state.limits.exp_time_min, state.limits.remain_time_min, state.limits.unlimited

    bench.keepalive(WHOLE)
    assert limits() == (None, None, True)
    confirmed(bench, "set_exp_time", "90")
    assert limits() == (90, None, False), "how much of it is left only the gateway knows"
    confirmed(bench, "reset_remain_time")
    assert limits() == (90, 90, False)
    bench.keepalive(WHOLE.replace("-1", "89"))
    confirmed(bench, "set_exp_time", "0")
    assert limits() == (0, None, True)
    confirmed(bench, "set_exp_time", "120")
    bench.keepalive(WHOLE.replace("-1", "89"))
    assert limits() == (120, 89, False), "the keepalive says the same as before, and means it"


def test_a_reset_to_a_limit_that_nobody_knows_leaves_the_rest_unknown(bench):
    bench.keepalive(WHOLE.replace("-1", "7"))
    confirmed(bench, "reset_remain_time")
    assert states.line_state(bench.line, float).limits.remain_time_min is None
    bench.keepalive(WHOLE.replace("-1", "7"))
    assert states.line_state(bench.line, float).limits.remain_time_min == 7


def test_a_module_that_was_switched_shows_at_once_and_is_believed_in_keepalives(bench):
    bench.keepalive(WHOLE)
    confirmed(bench, "module_ctl_i", "2", says="ok")
    assert states.line_state(bench.line, float).enabled is False
    assert bench.line.disabled
    assert not bench.line.ready
    confirmed(bench, "module_ctl_i", "1", says="ok")
    assert states.line_state(bench.line, float).enabled is True
    assert bench.line.ready
    bench.keepalive(WHOLE.replace("disable_status:0", "disable_status:1"))
    assert states.line_state(bench.line, float).enabled is False


def test_a_module_whose_keepalives_never_say_that_it_is_on_holds_no_sms_back(bench):
    confirmed(bench, "module_ctl_i", "0", says="ok")
    assert states.line_state(bench.line, float).enabled is False
    assert bench.line.ready, "it may be switched on at the gateway, and nothing would ever say so"


@pytest.mark.parametrize(
    ("pro", "operator", "raw"),
    [
        ("POL", "POL", {}),
        ("26002", "26002", {}),
        ("004D0065006700610046006F006E", "MegaFon", {"pro": "004D0065006700610046006F006E"}),
        ("(null)", None, {}),
    ],
)
def test_the_operators_name_is_readable(bench, pro, operator, raw):
    bench.keepalive(f"gsm_status:LOGIN;pro:{pro};")
    state = states.line_state(bench.line, float)
    assert (state.gsm.operator, state.raw) == (operator, raw)


def test_values_that_were_asked_for_are_known_as_well(bench):
    confirmed(bench, "get_gsm_num", says="+4930")
    confirmed(bench, "get_imei", says="356789012345678")
    state = states.line_state(bench.line, float)
    assert (state.sim.number, state.module.imei) == ("+4930", "356789012345678")
    bench.keepalive(WHOLE)
    sendid = bench.server.next_sendid
    bench.request("GSM")
    bench.tell(f"GSM:{sendid};get_gsm_num:+4931;get_exp_time:60;get_remain_time:37;imei:356789012345679;module_down:1")
    state = states.line_state(bench.line, float)
    assert (state.sim.number, state.module.imei, state.limits.remain_time_min) == ("+4931", "356789012345679", 37)
    assert state.enabled is True


# -- disabling a module: 0 or 2 (§8)


def disable(bench: Bench, answer: str = "module_ctl_i {} ok") -> list[str]:
    bench.keepalive("disable_status:0;")
    bench.request("module_ctl_i", "0", disable=True)
    return bench.tell(answer.format(SENDID))


def test_disabled_module_is_left_alone(bench):
    disable(bench)
    assert bench.keepalive("disable_status:1;") == [f"reg:{bench.count};status:200;"]
    assert bench.line.disabled


def test_module_that_0_does_not_disable_is_told_2(bench):
    disable(bench)
    assert bench.keepalive("disable_status:0;")[1:] == [f"module_ctl_i {SENDID + 1} 2 pw1"]
    bench.tell(f"module_ctl_i {SENDID + 1} ok")
    assert bench.keepalive("disable_status:0;")[1:] == []


def test_module_that_refuses_0_is_told_2(bench):
    assert disable(bench, "ERROR {} bad value") == [f"module_ctl_i {SENDID + 1} 2 pw1"]
    bench.tell(f"module_ctl_i {SENDID + 1} ok")
    assert bench.told(events.RequestAnswered) == [events.RequestAnswered("goip1", 1, True, "ok")]


def test_module_that_refuses_both_is_an_error(bench):
    disable(bench, "ERROR {} bad value")
    bench.tell(f"ERROR {SENDID + 1} bad value")
    assert bench.told(events.RequestAnswered) == [events.RequestAnswered("goip1", 1, False, "bad value")]


def test_module_enabled_in_the_meantime_stays_enabled(bench):
    disable(bench)
    bench.request("module_ctl_i", "1")
    bench.tell(f"module_ctl_i {SENDID + 1} ok")
    assert bench.keepalive("disable_status:0;")[1:] == []


# -- USSD (§9)


def ussd(event_type: str, text: str | None, token: int | None = 1, code: str = "*100#", **more) -> events.UssdEvent:
    return events.UssdEvent("goip1", event_type, token, code, text, **more)


def test_ussd_is_one_datagram_without_a_newline(bench):
    assert bench.ussd("*100#") == [f"USSD {SENDID} pw1 *100#"]
    assert bench.advance(119) == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("USSD {} Balance 4.20\n1 Top up", ussd("reply", "Balance 4.20\n1 Top up")),
        ("USSD {}", ussd("reply", "")),
        ("USSDEXIT {}", ussd("reply", None, exit=True)),
        ("USSDERROR {} timeout", ussd("error", "timeout")),
        ("USSD {} USSD send failed!", ussd("error", "USSD send failed!")),
        ("ERROR {} GSM_LOGOUT", ussd("error", "GSM_LOGOUT")),
        ("USSD {} 0034002E00320030002020AC\n", ussd("reply", "4.20 €", text_raw="0034002E00320030002020AC")),
        ("USSDERROR {} 4E6F20637265646974", ussd("error", "No credit", text_raw="4E6F20637265646974")),
        ("USSD {} DEADBEEF", ussd("reply", "DEADBEEF")),
    ],
)
def test_ussd_is_answered(bench, answer, told):
    bench.ussd("*100#")
    bench.tell(answer.format(SENDID), answer.format(SENDID))
    assert bench.events() == [told]


def test_ussd_codes_wait_for_their_turn(bench):
    bench.ussd("*100#", token=1)
    assert bench.ussd("*101#", token=2) == []
    assert bench.line.ussd_dialogues == 2
    assert bench.tell(f"USSD {SENDID} x") == [f"USSD {SENDID + 1} pw1 *101#"]
    bench.tell(f"USSDERROR {SENDID + 1} no")
    assert bench.events() == [ussd("reply", "x"), ussd("error", "no", 2, "*101#")]
    assert bench.line.ussd_dialogues == 0


def test_ussd_without_a_reply_times_out_and_lets_the_next_one_go(bench):
    bench.ussd("*100#", timeout=60)
    bench.ussd("*101#", token=2)
    assert bench.advance(60) == [f"USSD {SENDID + 1} pw1 *101#"]
    assert bench.told(events.UssdEvent) == [ussd("timeout", None)]


def test_ussd_reply_that_comes_late_is_told_as_such(bench):
    bench.ussd("*100#", timeout=60)
    bench.advance(60)
    bench.events()
    bench.tell(f"USSD {SENDID} Balance", f"USSD {SENDID} Balance")
    assert bench.events() == [ussd("reply", "Balance", late=True)]


def test_ussd_reply_to_the_one_before_does_not_answer_the_next(bench):
    bench.ussd("*100#", timeout=60)
    bench.ussd("*101#", token=2)
    bench.advance(60)
    bench.tell(f"USSD {SENDID} Balance")
    assert bench.line.ussd_dialogues == 1


def test_ussd_reply_of_long_ago_is_ignored(bench):
    bench.ussd("*100#", timeout=60)
    bench.advance(1000)
    bench.events()
    bench.tell(f"USSD {SENDID} Balance")
    assert bench.events() == []


# -- reconfiguration


def reconfigure(bench: Bench, **changes) -> None:
    bench.server.configure([replace(bench.config, **changes)], bench.now)
    bench.log += bench.server.take_events()


def test_line_keeps_its_session_over_a_reload(bench):
    bench.submit()
    reconfigure(bench)
    bench.tell(f"OK {SENDID} 1 7")
    assert bench.told(events.SmsSent) == [events.SmsSent("goip1", 1, 7)]


def test_new_password_counts_from_the_next_datagram(bench):
    reconfigure(bench, password="pw2")
    assert bench.keepalive() == []
    assert bench.tell("req:9;id:goip1;pass:pw2;") == ["reg:9;status:200;"]
    assert bench.request("get_imei") == [f"get_imei {SENDID} pw2"]


def test_networks_change_with_a_reload(bench):
    reconfigure(bench, allow_from=(ipaddress.ip_network("203.0.113.0/24"),))
    assert bench.keepalive() == []


@pytest.mark.parametrize("changes", [None, {"goip_id": "other"}], ids=["removed", "another id"])
def test_line_that_goes_leaves_nothing_open(bench, changes):
    bench.submit()
    bench.request("get_imei", token=7)
    bench.ussd("*100#", token=8)
    bench.ussd("*101#", token=9)
    bench.events()
    bench.server.configure([replace(bench.config, **changes)] if changes else [], bench.now)
    assert f"DONE {SENDID}\n" in bench.sent()
    assert bench.events() == [
        events.SmsUnknown("goip1", 1, "session_lost"),
        events.RequestTimedOut("goip1", 7),
        ussd("timeout", None, 8),
        ussd("timeout", None, 9, "*101#"),
    ]


@pytest.mark.parametrize("changes", [None, {"goip_id": "other"}], ids=["removed", "another id"])
def test_line_that_is_gone_has_no_timers_and_no_answers(bench, changes):
    bench.submit()
    bench.server.configure([replace(bench.config, **changes)] if changes else [], bench.now)
    bench.events()
    assert bench.tell(f"OK {SENDID} 1 7", RECEIVE, KEEPALIVE) != ["reg:1;status:200;"]
    assert bench.told(events.SmsSent) == []
    bench.advance(200)
    assert bench.told(events.LineOffline) == ([events.LineOffline("goip1", None)] if changes else [])


def test_line_that_comes_with_a_reload_has_its_time_to_be_heard(bench):
    bench.advance(50)
    bench.server.configure([bench.config, LineConfig(name="new", goip_id="new", password="p")], bench.now)
    bench.keepalive()
    bench.advance(94)
    assert bench.events() == []
    bench.keepalive()
    bench.advance(2)
    assert bench.events() == [events.LineOffline("new", None)]


# -- memory


def test_memory_does_not_grow_with_traffic(bench):
    core = bench.server
    for _ in range(3000):
        bench.keepalive()
        bench.request("get_imei")
        bench.tell(f"get_imei {core.next_sendid - 1} 1")
        bench.ussd("*100#")
        bench.tell(f"USSD {core.next_sendid - 1} x")
        bench.submit(sendid=core.next_sendid)
        bench.tell(f"OK {core.next_sendid - 1} 1", f"DONE {core.next_sendid - 1}")
        bench.advance(1)
        bench.events()
    assert len(core._answers) <= 1100
    assert len(core._ended) == 0
    assert len(core._heap) < 200


def test_memory_does_not_grow_with_unanswered_orders(bench):
    core = bench.server
    for n in range(500):
        bench.ussd("*100#", timeout=10)
        bench.submit(sendid=core.next_sendid)
        bench.request("get_imei")
        for _ in range(4):
            bench.keepalive()
            bench.advance(30)
        bench.events()
        assert n < 20 or len(core._ended) <= 900 / 120 + 2
        assert len(bench.line._ussd_late) <= 900 / 120 + 2
    assert len(core._heap) < 50


def test_memory_does_not_grow_with_forged_datagrams(bench):
    core = bench.server
    for n in range(2000):
        bench.tell(f"OK {n} 1 1", f"USSD {SENDID + n} x", f"req:{n};id:x{n};pass:p", source=ELSEWHERE)
        bench.events()
    assert (len(core._answers), len(core._ended), len(core._heap), len(bench.line._seen)) == (0, 0, 1, 0)


def test_memory_does_not_grow_with_reloads(bench):
    for n in range(500):
        bench.server.configure([replace(bench.config, goip_id=f"id{n}")], bench.now)
        bench.advance(1)
    assert len(bench.server._heap) <= 100


# -- restoring


def test_things_of_a_line_that_is_gone_are_not_restored(fresh):
    core = fresh.server
    core.restore_line("gone", LineMemory(address=HOME, count=1, reboots=0))
    core.restore_repeat("gone", b"key", START)
    core.restore_session("gone", Submitted(5, 1, Recipient(1, "+49"), START, START), START)
    assert fresh.tell("OK 5 1 1") == []
    assert fresh.events() == []


def test_names_are_those_of_the_configuration():
    bench = Bench(online=False, name="front", goip_id="+380500000000")
    bench.server.receive_datagram(b"req:1;id:+380500000000;pass:pw1;", HOME, START)
    assert events.LineOnline("front", HOME) in bench.events()
    bench.server.request("front", 1, Operation(verb="get_imei"), START)
    assert bench.sent()[-1] == f"get_imei {SENDID} pw1"
