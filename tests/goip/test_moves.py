"""Where a line is when somebody else speaks in its name, with its password: who is believed, how long, and what of it
remains.

A sniffer knows the password and the count. What he can't do is to make the gateway fall silent.
"""

import ipaddress
from dataclasses import replace

import pytest
from goip_bench import ELSEWHERE, HOME, SENDID, START, Bench
from hypothesis import given
from hypothesis import strategies as st

from bridge.goip import events
from bridge.goip.line import CONTESTED
from bridge.goip.server import LineMemory

THIRD = ("203.0.113.9", 5060)
NEW_PORT = (HOME[0], 20_000)
LARGEST = 10**18 - 1
"More digits are no count."


def moves(bench: Bench) -> list[tuple[tuple[str, int], tuple[str, int] | None, bool]]:
    return [(moved.address, moved.previous, moved.contested) for moved in bench.told(events.LineMoved)]


def taken_over(*, count: int = 51) -> Bench:
    """A line whose gateway has counted to 50, and that a sniffer has just moved."""
    bench = Bench()
    bench.keepalive(count=50)
    bench.events()
    bench.advance(1)
    bench.keepalive(count=count, source=ELSEWHERE)
    assert moves(bench) == [(ELSEWHERE, HOME, False)]
    return bench


# -- told


def test_a_move_is_told_with_the_address_before(bench):
    bench.keepalive(source=NEW_PORT)
    bench.keepalive(source=ELSEWHERE)
    assert moves(bench) == [(NEW_PORT, HOME, False), (ELSEWHERE, NEW_PORT, False)]


def test_the_first_registration_is_no_move(fresh):
    fresh.keepalive()
    assert moves(fresh) == [(HOME, None, False)]


def test_a_line_that_was_elsewhere_before_the_restart_has_moved(fresh):
    fresh.server.restore_line("goip1", LineMemory(address=HOME, count=50, reboots=0))
    fresh.keepalive(count=70, source=ELSEWHERE)
    assert moves(fresh) == [(ELSEWHERE, HOME, False)]


def test_a_restart_at_the_same_address_is_no_move(bench):
    bench.keepalive(count=50)
    bench.keepalive(count=1)
    assert moves(bench) == [(HOME, None, False)]


# -- the gateway against a sniffer


@pytest.mark.parametrize("count", [51, 52, 1000, 2**31, LARGEST])
def test_the_gateway_takes_its_line_back_with_its_next_keepalive(count):
    """However far the other one has counted."""
    bench = taken_over(count=count)
    bench.advance(29)
    assert bench.keepalive(count=51) == ["reg:51;status:200;"]
    assert (bench.line.address, bench.line.count) == (HOME, 51)
    assert moves(bench) == [(HOME, ELSEWHERE, True)]
    assert not bench.told(events.GatewayRebooted)


def test_a_sniffer_who_goes_on_is_not_followed_again():
    bench = taken_over()
    for n in range(100):
        bench.advance(15)
        bench.keepalive(count=51 + n)
        bench.advance(15)
        bench.keepalive(count=1000 + n, source=ELSEWHERE)
        bench.keepalive(count=2000 + n, source=THIRD)
        assert bench.line.address == HOME
    assert len(bench.told(events.LineMoved)) == 1


def test_nor_with_events():
    bench = taken_over(count=1000)
    bench.keepalive(count=51)
    for _ in range(10):
        bench.advance(20)
        bench.event("CGATT", "cgatt:1", source=ELSEWHERE)
        bench.keepalive(count=1001, source=ELSEWHERE)
    assert bench.told(events.LineOffline)  # the gateway itself fell silent
    bench.keepalive(count=1002, source=ELSEWHERE)
    assert bench.line.address == ELSEWHERE


def test_a_sniffer_does_not_become_the_one_who_lives_there_by_hopping():
    bench = taken_over()
    for n in range(10):
        bench.keepalive(count=60 + n, source=(f"203.0.113.{n}", 7))
    assert bench.line.previous_address == HOME
    bench.keepalive(count=51)
    assert bench.line.address == HOME


def test_a_sniffer_does_not_become_it_when_a_keepalive_of_the_gateway_is_lost():
    bench = taken_over(count=51)
    bench.advance(59)  # 51 of the gateway was lost
    bench.keepalive(count=52)
    assert moves(bench) == [(HOME, ELSEWHERE, False)]
    bench.keepalive(count=52, source=ELSEWHERE)
    bench.keepalive(count=53, source=ELSEWHERE)
    bench.advance(30)
    bench.keepalive(count=53)
    assert bench.line.address == HOME
    assert moves(bench) == [(ELSEWHERE, HOME, False), (HOME, ELSEWHERE, True)]


@pytest.mark.parametrize("count", [1, 49, 50])
def test_replayed_keepalives_of_the_old_address_are_no_sign_of_life(bench, count):
    bench.keepalive(count=50)
    bench.keepalive(source=ELSEWHERE)
    bench.keepalive(count=count)
    assert bench.line.address == ELSEWHERE


def test_a_gateway_that_is_kept_silent_for_long_has_to_wait_until_the_other_is_silent():
    """The limit of what can be done in clear text; `allow_from` does more."""
    bench = taken_over(count=LARGEST)
    bench.advance(60)
    bench.event("CGATT", "cgatt:1", source=ELSEWHERE)
    bench.advance(60)
    bench.keepalive(count=54)
    assert bench.line.address == ELSEWHERE
    bench.advance(35)
    bench.keepalive(count=55)
    assert bench.line.address == HOME
    assert moves(bench) == [(HOME, ELSEWHERE, False)]


def test_a_stored_count_that_is_absurd_costs_offline_s_and_no_more(fresh):
    fresh.server.restore_line("goip1", LineMemory(address=ELSEWHERE, count=LARGEST, reboots=0))
    fresh.advance(30)
    fresh.keepalive(count=54)
    fresh.advance(30)
    fresh.keepalive(count=55)
    assert fresh.line.address == ELSEWHERE
    fresh.advance(35)
    fresh.keepalive(count=56)
    assert (fresh.line.address, fresh.line.count) == (HOME, 56)


def test_a_stored_count_that_is_absurd_costs_one_keepalive_at_the_same_address(fresh):
    fresh.server.restore_line("goip1", LineMemory(address=HOME, count=LARGEST, reboots=0))
    fresh.keepalive(count=54)
    assert fresh.line.count == LARGEST
    fresh.keepalive(count=55)
    assert fresh.line.count == 55


# -- a gateway that really moves


def test_after_a_quarrel_a_gateway_that_moves_is_followed_when_it_is_silent_at_home():
    bench = taken_over()
    bench.keepalive(count=51)
    bench.events()
    bench.advance(60)
    bench.keepalive(count=53, source=NEW_PORT)
    assert bench.line.address == HOME
    bench.advance(35)
    bench.keepalive(count=54, source=NEW_PORT)
    assert moves(bench) == [(NEW_PORT, HOME, False)]
    bench.keepalive(count=55, source=THIRD)  # and then it is as before
    assert bench.line.address == THIRD


def test_a_quarrel_is_forgotten():
    bench = taken_over()
    for n in range(51, 51 + int(CONTESTED / 30) + 1):
        bench.keepalive(count=n)
        bench.advance(30)
    bench.keepalive(source=NEW_PORT)
    assert bench.line.address == NEW_PORT


def test_a_gateway_with_two_uplinks_is_followed_each_time(bench):
    for n in range(100):
        bench.advance(30)
        bench.keepalive(source=ELSEWHERE if n % 2 else HOME)
        assert bench.line.address == (ELSEWHERE if n % 2 else HOME)
    assert not any(contested for _, _, contested in moves(bench))


def test_each_keepalive_twice_over_two_uplinks_leaves_the_line_at_the_first_one(bench):
    for n in range(2, 50):
        first, second = (HOME, ELSEWHERE) if n % 5 else (ELSEWHERE, HOME)
        bench.keepalive(count=n, source=first)
        bench.keepalive(count=n, source=second)
        bench.advance(30)
        assert bench.line.address == HOME
    assert len(moves(bench)) == 2


def test_of_two_gateways_with_one_id_the_first_one_keeps_the_line(bench):
    for n in range(2, 50):
        bench.keepalive(count=n)
        bench.keepalive(count=1000 + n, source=ELSEWHERE)
        bench.advance(30)
    bench.keepalive(count=50)
    assert bench.line.address == HOME
    assert len(moves(bench)) == 2


# -- what is under way


def test_answers_count_from_where_the_line_is_and_was_and_from_no_third_address(bench):
    bench.submit()
    bench.keepalive(source=ELSEWHERE)
    assert bench.tell(f"OK {SENDID} 1 7\n", source=THIRD) == []
    assert not bench.told(events.SmsSent)
    bench.tell(f"OK {SENDID} 1 5\n", source=HOME)
    assert bench.told(events.SmsSent) == [events.SmsSent("goip1", 1, 5)]


def test_answers_from_a_rival_do_not_count():
    bench = taken_over()
    bench.submit()
    bench.keepalive(count=51)
    bench.events()
    bench.tell(f"OK {SENDID} 1 7\n", source=ELSEWHERE)
    assert bench.events() == []


def test_answers_from_an_earlier_address_count_for_a_while_only(bench):
    bench.keepalive(source=ELSEWHERE)
    for _ in range(4):
        bench.advance(30)
        bench.keepalive(source=ELSEWHERE)
    bench.submit()
    bench.tell(f"OK {SENDID} 1 7\n", source=HOME)
    assert bench.events() == []


def test_answers_from_an_address_that_was_silent_do_not_count(bench):
    bench.keepalive(count=50)
    bench.advance(100)
    bench.keepalive(count=7, source=ELSEWHERE)
    bench.submit()
    bench.tell(f"OK {SENDID} 1 7\n", source=HOME)
    assert bench.events() == []


@pytest.mark.parametrize("safe", [True, False])
def test_an_sms_under_way_is_not_sent_again_by_a_move_and_back(safe):
    bench = Bench(repeat_safe=safe)
    bench.keepalive(count=50)
    sends = sum(text.startswith("SEND ") for text in bench.submit())
    bench.keepalive(count=1000, source=ELSEWHERE)
    bench.advance(2)
    bench.keepalive(count=51)
    bench.tell(f"WAIT {SENDID} 1\n")
    sends += sum(text.startswith("SEND ") for text in bench.advance(4))
    assert sends == 1
    bench.tell(f"OK {SENDID} 1 5\n")
    told = bench.events()
    assert [event for event in told if isinstance(event, events.SmsSent | events.SmsUnknown | events.SmsRequeued)] == [
        events.SmsSent("goip1", 1, 5)
    ]


# -- the pin


def pinned(bench: Bench, network: str) -> None:
    config = replace(bench.config, allow_from=(ipaddress.ip_network(network),))
    bench.server.configure([config], bench.now)


def test_a_reload_that_pins_the_network_gives_the_line_back_at_once():
    bench = taken_over(count=LARGEST)
    bench.submit()
    pinned(bench, f"{HOME[0]}/32")
    assert events.SmsUnknown("goip1", 1, "session_lost") in bench.events()
    assert (bench.line.address, bench.line.ready) == (None, False)
    bench.sent()
    assert bench.advance(60) == []  # no byte more for the other one
    assert bench.keepalive(count=LARGEST, source=ELSEWHERE) == []
    bench.keepalive(count=53)
    assert (bench.line.address, bench.line.count, bench.line.ready) == (HOME, 53, True)
    told = bench.events()
    assert events.LineMoved("goip1", HOME, 53, 0) in told
    assert told[-2:] == [events.LineOnline("goip1", HOME), events.LineReady("goip1")]  # so that the queue goes on


def test_a_reload_that_permits_where_the_line_is_changes_nothing(bench):
    bench.submit()
    pinned(bench, f"{HOME[0]}/32")
    assert bench.events() == []
    assert bench.line.address == HOME


def test_a_stored_address_that_is_not_permitted_is_not_used():
    bench = Bench(online=False, allow_from=(ipaddress.ip_network(f"{HOME[0]}/32"),))
    bench.server.restore_line("goip1", LineMemory(address=ELSEWHERE, count=LARGEST, reboots=3))
    assert (bench.line.address, bench.line.ready, bench.line.reboots) == (None, False, 3)
    bench.keepalive()
    assert bench.line.address == HOME


# -- whatever he does


@given(
    st.lists(
        st.tuples(st.sampled_from([ELSEWHERE, THIRD, NEW_PORT]), st.integers(-3, 10), st.floats(0.1, 20.0)),
        max_size=40,
    )
)
def test_a_gateway_that_is_heard_every_30_s_has_its_line_with_each_keepalive(sequence):
    """A sniffer sends keepalives with any count, larger or smaller than the last, from several addresses."""
    bench = Bench()
    bench.keepalive(count=50)
    due, count = START + 30, 50
    for source, ahead, pause in sequence:
        bench.keepalive(count=max(0, (bench.line.count or 0) + ahead), source=source)
        bench.now += pause
        if bench.now >= due:
            due, count = bench.now + 30, count + 1
            bench.server.handle_timer(bench.now)
            bench.keepalive(count=count)
            assert bench.line.address == HOME
