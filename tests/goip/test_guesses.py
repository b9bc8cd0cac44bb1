"""Passwords can't be guessed by trying fast, and nobody who tries takes the line from its gateway."""

import pytest

from bridge.goip import events, guesses
from bridge.goip.guesses import LINE_BURST, LINE_PER_S, MAX_SOURCES, SOURCE_BURST, SOURCE_PER_S
from bridge.goip.server import LineConfig, SmsServer
from bridge.goip.timing import Timing

HOST, OTHER = "198.51.100.7", "192.0.2.10"
LINES = 8


class World:
    """A server whose lines have six digits for a password."""

    def __init__(self) -> None:
        configs = [LineConfig(name=f"l{n}", goip_id=f"l{n}", password=f"99{n:04}") for n in range(LINES)]
        self.server = SmsServer(configs, Timing(), next_sendid=1, now=0.0)
        self.now = 100.0
        self.count = 0

    def keepalive(self, line: str, password: str, host: str = HOST, port: int = 5000) -> bool:
        """Whether it is answered."""
        self.count += 1
        self.server.receive_datagram(f"req:{self.count};id:{line};pass:{password};".encode(), (host, port), self.now)
        return bool(self.server.take_datagrams())

    def sms(self, line: str, password: str, host: str = HOST, port: int = 5000) -> bool:
        self.count += 1
        data = f"RECEIVE:{self.count};id:{line};password:{password};srcnum:1;msg:x"
        self.server.receive_datagram(data.encode(), (host, port), self.now)
        return bool(self.server.take_datagrams())

    def guess(self, line: str, times: int, per_s: float, host: str = HOST) -> int:
        """Tries passwords that are all wrong; how many were looked at."""
        before = len(self.told("password", "guessing"))
        for n in range(times):
            self.now += 1 / per_s
            assert not self.sms(line, f"{n:06}", host)
        return len(self.told("password", "guessing")) - before

    def told(self, *reasons: str) -> list[events.Unauthenticated]:
        self.log = getattr(self, "log", []) + self.server.take_events()
        return [event for event in self.log if isinstance(event, events.Unauthenticated) and event.reason in reasons]


@pytest.fixture
def world() -> World:
    return World()


def test_a_six_digit_password_is_not_found_in_a_minute_by_trying(world: World) -> None:
    """The whole space was tried in 51 s, and the right one was published as an SMS."""
    looked_at = world.guess("l0", 100_000, per_s=19_600)
    assert looked_at <= SOURCE_BURST + SOURCE_PER_S * 100_000 / 19_600 + 1
    assert not world.sms("l0", "990000")
    assert world.told("guessing")
    counted = sum(event.count for event in world.told("password", "guessing"))
    assert 100_000 - 19_600 / SOURCE_PER_S <= counted <= 100_000  # the last ones are counted with the next one told


def test_from_many_hosts_it_takes_long_as_well_and_memory_stays(world: World) -> None:
    before = world.now
    looked_at = sum(world.guess("l0", 1, per_s=10_000, host=f"203.0.{n >> 8}.{n & 255}") for n in range(50_000))
    assert looked_at <= LINE_BURST + LINE_PER_S * (world.now - before) + 1
    assert not world.sms("l0", "990000", "203.0.113.250")
    registered = world.server._by_name["l0"]
    assert len(registered.guesses._sources) <= MAX_SOURCES


def test_a_source_that_others_push_out_of_memory_gains_nothing(world: World) -> None:
    before, looked_at = world.now, 0
    for round in range(300):
        looked_at += world.guess("l0", 20, per_s=10_000)
        for n in range(MAX_SOURCES + 1):
            looked_at += world.guess("l0", 1, per_s=10_000, host=f"203.{round % 256}.0.{n}")
    assert looked_at <= LINE_BURST + LINE_PER_S * (world.now - before) + 1


def test_the_line_at_its_own_address_never_suffers(world: World) -> None:
    assert world.keepalive("l0", "990000", HOST, 10991)
    world.guess("l0", 1000, per_s=1000)  # behind the same NAT
    for n in range(5000):  # and as if from the address itself
        world.sms("l0", f"{n:06}", HOST, 10991)
    assert world.keepalive("l0", "990000", HOST, 10991)
    assert world.sms("l0", "990000", HOST, 10991)
    assert world.server.is_from_a_line(b"STATE:1;id:l0;password:990000", (HOST, 10991), world.now)


def test_a_line_that_moved_is_heard_where_it_was_and_where_it_is(world: World) -> None:
    assert world.keepalive("l0", "990000", HOST, 10991)
    assert world.keepalive("l0", "990000", HOST, 10992)
    world.guess("l0", 1000, per_s=1000)
    assert world.keepalive("l0", "990000", HOST, 10992)
    assert world.sms("l0", "990000", HOST, 10991)


def test_a_misconfigured_line_costs_those_behind_the_same_host_nothing(world: World) -> None:
    """Eight lines in one box behind NAT; one has a wrong password and repeats everything four times a second."""
    assert all(world.keepalive(f"l{n}", f"99{n:04}", HOST, 10990 + n) for n in range(1, 5))
    world.guess("l0", 200, per_s=4)
    assert all(world.keepalive(f"l{n}", f"99{n:04}", HOST, 10990 + n) for n in range(1, 5))
    # Those that newly register from there get in.
    assert all(world.keepalive(f"l{n}", f"99{n:04}", HOST, 10990 + n) for n in range(5, LINES))


def test_a_box_whose_password_is_put_right_gets_in_at_once(world: World) -> None:
    for _ in range(100):  # a keepalive every 30 s, and an event with its repeats
        world.now += 30
        for _ in range(5):
            assert not world.keepalive("l0", "123456")
    assert world.keepalive("l0", "990000")


def test_a_host_that_stops_guessing_is_heard_again(world: World) -> None:
    world.guess("l0", 1000, per_s=1000)
    assert not world.keepalive("l0", "990000")
    assert world.keepalive("l0", "990000", OTHER)
    world.now += SOURCE_BURST / SOURCE_PER_S
    assert world.keepalive("l0", "990000")


def test_a_reload_gives_nobody_new_guesses(world: World) -> None:
    world.guess("l0", 1000, per_s=1000)
    world.server.configure([LineConfig(name="l0", goip_id="l0", password="990000")], world.now)
    assert not world.keepalive("l0", "990000")


def test_while_the_store_is_stuck_nobody_guesses_either(world: World) -> None:
    """What they send meanwhile is kept, and taken when the store can be written: it is chosen by the same limits."""
    right = b"STATE:1;id:l0;password:990000"
    assert world.server.is_from_a_line(right, (HOST, 5000), world.now)
    for n in range(1000):
        assert not world.server.is_from_a_line(b"STATE:1;id:l0;password:%06d" % n, (HOST, 5000), world.now)
    assert not world.server.is_from_a_line(right, (HOST, 5000), world.now)
    assert not world.told("password", "guessing")


def test_the_limits_make_a_million_passwords_take_hours() -> None:
    assert 10**6 / guesses.LINE_PER_S > 12 * 3600
