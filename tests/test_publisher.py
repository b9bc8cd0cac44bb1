"""The order and the patience of the publisher, on a real store; the link is a list that says yes or no."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bridge.contract.topics import Topics
from bridge.mqtt.link import Publication, UnsendableError
from bridge.mqtt.publisher import (
    ALONE_S,
    DOCUMENTS_IN_FLIGHT,
    HELD_S,
    IN_MEMORY,
    LASTING_S,
    MOST_COPIES,
    PARK_S,
    Item,
    Publisher,
    RetainedState,
)
from bridge.store.database import Store

REFUSED = 0x87


@dataclass
class RecordingLink:
    """Takes what it is given, up to its window."""

    connected: bool = True
    window: int = 100
    most: int = 1 << 28
    "Bytes of a payload."
    sent: list[Publication] = field(default_factory=list)
    open: int = 0

    @property
    def room(self) -> int:
        return self.window - self.open

    def publish(self, publication: Publication) -> int:
        if len(publication.payload) > self.most:
            raise UnsendableError
        self.open += 1
        self.sent.append(publication)
        return len(self.sent)


class Desk:
    """A publisher that is connected."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "bridge.db")
        self.link = RecordingLink()
        self.publisher = Publisher(self.store, lambda: 1_800_000_000.0, Topics("goip"))
        self.publisher.link = self.link  # type: ignore[assignment]
        self.now = 0.0
        self.lasted = True
        "The last connection did not end."

    def add(self, *topics: str, schema: str = "sms_in", body: bytes = b'{"n":1}') -> None:
        rows = [(topic, schema, 60, body, None, 1.0) for topic in topics]
        with self.store.transaction():
            first = self.store.add_outbox(rows)
        self.publisher.add(self.store.outbox(first - 1, len(rows)))

    def state(self, topic: str, body: bytes) -> None:
        self.publisher.set_state(RetainedState(topic, body, "state", None))

    def drain(self) -> list[str]:
        """What was published now, by topic."""
        before = len(self.link.sent)
        self.publisher.drain(self.now)
        return [publication.topic for publication in self.link.sent[before:]]

    def acknowledge(self, *tokens: int, code: int = 0) -> None:
        self.link.open -= len(tokens)
        self.publisher.acknowledged([(token, code) for token in tokens], self.now)

    def settle(self) -> list[str]:
        """Publish and acknowledge until nothing is left to send."""
        published: list[str] = []
        while new := self.drain():
            published += new
            self.acknowledge(*range(len(self.link.sent) - len(new) + 1, len(self.link.sent) + 1))
        return published

    def meet(self, bears: Callable[[Publication], bool]) -> tuple[list[str], Item | None]:
        """A connection to a broker that closes it at what it does not bear, and acknowledges what came before; what was
        published, and what is held since. It lasts when there is nothing of that kind.
        """
        self.publisher.connected()
        return self.go_on(bears)

    def go_on(self, bears: Callable[[Publication], bool]) -> tuple[list[str], Item | None]:
        published: list[str] = []
        while new := self.drain():
            published += new
            for token in range(len(self.link.sent) - len(new) + 1, len(self.link.sent) + 1):
                if not bears(self.link.sent[token - 1]):
                    self.lasted = False
                    return published, self.end()
                self.acknowledge(token)
        self.lasted = True
        return published, None

    def find(self, bears: Callable[[Publication], bool], at_most: int = 4) -> list[str | None]:
        """Connections until one lasts; what was convicted on each before that one."""
        convicted: list[str | None] = []
        while True:
            _, held = self.meet(bears)
            if self.lasted:
                return convicted
            convicted.append(topic_of(held))
            assert len(convicted) < at_most, convicted

    def store_done(self) -> None:
        with self.store.transaction():
            self.store.delete_outbox(self.publisher.take_done())

    def end(self, *, closed: bool = True) -> Item | None:
        """The connection ends, closed by the broker or cut by the network; what is held since."""
        self.link.open = 0
        return self.publisher.disconnected(self.now, closed=closed)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


BIRTH = "goip/bridge/availability"


def test_states_come_first_then_the_birth_then_facts(desk: Desk) -> None:
    desk.add("goip/a/sms/in")
    desk.state("goip/a/state", b'{"a":1}')
    desk.publisher.connected()
    assert desk.drain() == ["goip/a/state"]
    assert desk.drain() == []  # not before the state's PUBACK
    desk.acknowledge(1)
    assert desk.drain() == [BIRTH, "goip/a/sms/in"]


def test_a_state_that_changes_before_its_turn_is_sent_once(desk: Desk) -> None:
    desk.publisher.connected()
    for n in range(5):
        desk.state("goip/a/state", b'{"n":%d}' % n)
    assert desk.settle() == ["goip/a/state", BIRTH]
    assert desk.link.sent[0].payload.startswith(b'{"n":4,')


def test_a_state_that_says_nothing_new_is_not_sent(desk: Desk) -> None:
    desk.publisher.connected()
    desk.state("goip/a/state", b'{"n":1}')
    desk.settle()
    desk.state("goip/a/state", b'{"n":1}')
    assert desk.settle() == []


def test_what_was_in_flight_is_sent_again_in_order(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    desk.add("goip/a/1", "goip/a/2", "goip/a/3")
    assert desk.drain() == ["goip/a/1", "goip/a/2", "goip/a/3"]
    desk.acknowledge(3)
    desk.publisher.disconnected(0.0)
    desk.link.open = 0
    desk.publisher.connected()
    assert desk.settle() == ["goip/a/1", BIRTH, "goip/a/3"], "the first of them before all else: it may be to blame"
    assert sorted(desk.publisher.take_done()) == [1, 2, 3]


def test_a_long_outbox_is_read_in_pages_and_nothing_is_skipped_or_doubled(desk: Desk) -> None:
    topics = [f"goip/a/{n}" for n in range(2 * IN_MEMORY + 7)]
    for start in range(0, len(topics), 500):
        desk.add(*topics[start : start + 500])
    desk.publisher.connected()
    assert desk.settle() == [BIRTH, *topics]


def test_a_refused_fact_waits_and_others_do_not(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    desk.add("goip/a/refused", "goip/a/other")
    assert desk.drain() == ["goip/a/refused", "goip/a/other"]
    desk.acknowledge(2, code=REFUSED)
    desk.acknowledge(3)
    desk.now = 59
    desk.publisher.retry_parked(desk.now)
    assert desk.drain() == []
    desk.now = 60
    desk.publisher.retry_parked(desk.now)
    assert desk.drain() == ["goip/a/refused"]
    desk.acknowledge(4, code=REFUSED)
    desk.now = 179
    desk.publisher.retry_parked(desk.now)
    assert desk.drain() == []  # doubled
    desk.add("goip/a/later")
    desk.publisher.disconnected(0.0)
    desk.publisher.connected()
    assert desk.settle() == [BIRTH, "goip/a/refused", "goip/a/later"]


def test_a_refused_birth_message_is_tried_again(desk: Desk) -> None:
    desk.publisher.connected()
    assert desk.drain() == [BIRTH]
    desk.acknowledge(1, code=REFUSED)
    desk.now = 61
    desk.publisher.retry_parked(desk.now)
    assert desk.settle() == [BIRTH]


def test_a_removal_that_is_refreshed_while_it_is_in_flight_ends_well(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    desk.publisher.remove("goip/a/cmd/x")
    assert desk.drain() == ["goip/a/cmd/x"]
    desk.publisher.refresh("")
    desk.acknowledge(2)
    assert desk.settle() == ["goip/a/cmd/x"]
    desk.publisher.refresh("")
    assert desk.settle() == []


def test_a_state_is_not_held_back_by_an_older_value_that_was_refused(desk: Desk) -> None:
    desk.publisher.connected()
    desk.state("goip/a/state", b'{"n":1}')
    assert desk.drain() == ["goip/a/state"]
    desk.acknowledge(1)
    desk.settle()
    desk.state("goip/a/state", b'{"n":2}')
    desk.drain()
    desk.state("goip/a/state", b'{"n":3}')
    desk.drain()
    desk.acknowledge(3, code=REFUSED)
    desk.acknowledge(4)
    desk.state("goip/a/state", b'{"n":4}')
    assert desk.settle() == ["goip/a/state"]


def test_a_refused_result_on_a_callers_topic_is_dropped_and_on_ours_kept(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    desk.add("reply/x", "goip/a/result/sms", schema="result")
    desk.drain()
    desk.acknowledge(2, 3, code=REFUSED)
    assert desk.publisher.take_done() == [1]
    desk.publisher.disconnected(0.0)
    desk.publisher.connected()
    assert desk.settle() == [BIRTH, "goip/a/result/sms"]


@pytest.mark.parametrize("born", [True, False])
def test_the_last_word_is_offline(desk: Desk, born: bool) -> None:
    desk.state("goip/a/state", b'{"n":1}')
    desk.publisher.connected()
    if born:
        desk.settle()
    desk.publisher.say_goodbye()
    desk.settle()
    said = [publication.payload for publication in desk.link.sent if publication.topic == BIRTH]
    assert said[-1] == b"offline"
    assert desk.publisher.idle


def test_a_fact_nobody_hears_and_a_refusal_are_to_be_told(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    desk.add("goip/a/1", "goip/a/2", "goip/a/3")
    desk.drain()
    notable = desk.publisher.acknowledged([(2, 0x10), (3, 0), (4, REFUSED)], 0.0)
    assert [(item.topic, code) for item, code in notable] == [("goip/a/1", 0x10), ("goip/a/3", REFUSED)]


# -- a broker that refuses by closing the connection ----------------------------------------------------------------

LARGE = b'{"text":"%s"}' % (b"x" * 5000)
ORDINARY = [f"goip/a/{n}" for n in range(200)]


def topic_of(item: Item | None) -> str | None:
    return item.topic if item is not None else None


def at_most(limit: int) -> Callable[[Publication], bool]:
    return lambda publication: len(publication.payload) <= limit


def all_but(*topics: str) -> Callable[[Publication], bool]:
    return lambda publication: publication.topic not in topics


def test_what_closes_every_connection_is_held_and_everything_else_flows(desk: Desk) -> None:
    desk.add(*ORDINARY[:50])
    desk.add("goip/a/large", body=LARGE)
    desk.add(*ORDINARY[50:])
    first, held = desk.meet(at_most(1000))
    assert held is None
    second, held = desk.meet(at_most(1000))
    assert (second, held) == (["goip/a/large"], None), "first in flight, so it is sent first, and alone"
    assert not desk.publisher.is_refused("goip/a/large"), "this broker may take nothing now"
    third, held = desk.meet(at_most(1000))
    assert [topic for topic in third if topic != BIRTH] == [*ORDINARY[50:], "goip/a/large"], "after everything else"
    assert topic_of(held) == "goip/a/large"
    assert desk.meet(at_most(1000)) == ([BIRTH], None)
    assert [topic for topic in first[1:] if topic in ORDINARY[:50]] == ORDINARY[:50]
    assert sorted(desk.publisher.take_done()) == [n for n in range(1, 202) if n != 51]
    assert desk.publisher.idle
    assert desk.publisher.waiting == 1, "it stays in the outbox"
    assert desk.publisher.is_refused("goip/a/large")


def test_what_is_held_is_tried_alone_and_ever_more_seldom(desk: Desk) -> None:
    desk.add("goip/a/large", body=LARGE)
    assert desk.find(at_most(1000)) == [None, None, "goip/a/large"]
    for wait in (60, 120, 240):
        desk.now += wait - 1
        assert desk.settle() == []
        desk.now += 1
        published, held = desk.go_on(at_most(1000))
        assert (published, topic_of(held)) == (["goip/a/large"], "goip/a/large"), "one connection each"
        assert desk.meet(at_most(1000)) == ([BIRTH], None), "not on the next one"
    desk.now += 480
    assert desk.go_on(at_most(10_000)) == (["goip/a/large"], None)
    assert desk.publisher.take_done() == [1]
    assert not desk.publisher.is_refused("goip/a/large")
    desk.add("goip/a/large", body=LARGE)
    assert desk.settle() == ["goip/a/large"]


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_after_a_restart_of_the_broker_and_a_reload_what_is_held_is_tried_at_once(desk: Desk, how: str) -> None:
    desk.add("goip/a/large", "goip/b/large", body=LARGE)
    convicted = desk.find(at_most(1000), at_most=7)
    assert [topic for topic in convicted if topic] == ["goip/a/large", "goip/b/large"]
    assert desk.meet(at_most(1000)) == ([BIRTH], None)
    if how == "restart":
        assert desk.end() is None
        assert desk.meet(at_most(9000)) == ([BIRTH, "goip/b/large", "goip/a/large"], None)
    else:
        desk.publisher.retry_parked()
        assert desk.settle() == ["goip/b/large", "goip/a/large"]


def test_of_what_is_like_it_none_is_tried_and_none_forgotten(desk: Desk) -> None:
    forbidden = all_but("goip/a/call")
    desk.add("goip/a/call", "goip/b/call")
    assert [desk.meet(forbidden)[1] for _ in range(2)] == [None, None]
    for _ in range(IN_MEMORY // 500 + 1):
        desk.add(*["goip/a/call"] * 500)
        desk.add("goip/a/other")
    published, held = desk.meet(forbidden)
    assert [topic for topic in published if topic != BIRTH] == ["goip/b/call", *["goip/a/other"] * 5, "goip/a/call"]
    assert topic_of(held) == "goip/a/call"
    assert desk.meet(forbidden) == ([BIRTH], None)
    assert desk.publisher.oldest == 1.0
    desk.store_done()
    assert desk.publisher.waiting == desk.store.outbox_size()[0] == 2501
    desk.publisher.retry_parked()
    assert desk.settle() == ["goip/a/call"] * 2501
    desk.store_done()
    assert desk.store.outbox_size()[0] == 0


def test_a_small_one_on_the_topic_of_a_large_one_is_not_held(desk: Desk) -> None:
    desk.add("goip/a/sms/in", body=LARGE)
    desk.find(at_most(1000))
    desk.add("goip/a/sms/in")
    desk.add("goip/a/sms/in", body=LARGE)
    desk.add("goip/a/sms/in")
    assert desk.meet(at_most(1000)) == ([BIRTH, "goip/a/sms/in", "goip/a/sms/in"], None)
    desk.publisher.retry_parked()
    assert desk.settle() == ["goip/a/sms/in"] * 2
    assert sorted(desk.publisher.take_done()) == [1, 2, 3, 4]


def test_a_broker_that_is_killed_at_any_moment_makes_nothing_wait(desk: Desk) -> None:
    """Whatever was in flight, and however much of it was acknowledged."""
    desk.add(*ORDINARY)
    for many in (1, 3, 9, 60):
        taken = 0

        def bears(_: Publication, many: int = many) -> bool:
            nonlocal taken
            taken += 1
            return taken <= many

        assert desk.meet(bears)[1] is None
        assert not desk.publisher._held
    desk.publisher.connected()
    rest = desk.settle()
    facts = [topic for topic in rest if topic != BIRTH]
    assert facts == ORDINARY[-len(facts) :], "in order"
    assert sorted(desk.publisher.take_done()) == list(range(1, 201))


@pytest.mark.parametrize("every", [2, 3, 10, 17])
def test_a_broker_that_closes_at_every_nth_publish_convicts_nothing_and_gets_everything(desk: Desk, every: int) -> None:
    states = [f"goip/a/state/{n}" for n in range(12)]
    for topic in states:
        desk.state(topic, b"{}")
    desk.add(*ORDINARY)
    facts: list[str] = []
    connections = 0
    desk.lasted = False
    while not desk.lasted:
        taken = 0

        def bears(_: Publication) -> bool:
            nonlocal taken
            taken += 1
            return taken < every

        before = len(desk.link.sent)
        _, held = desk.meet(bears)
        assert held is None
        got = desk.link.sent[before : before + taken - (not desk.lasted)]
        facts += [publication.topic for publication in got if publication.topic in ORDINARY]
        connections += 1
        assert connections < 1000
    assert facts == ORDINARY, "each once, in order"
    assert not desk.publisher._held
    assert connections <= 20 + 400 / (every - 1), "what the broker allows, but for half of it: states and births"
    assert sorted(desk.publisher.take_done()) == list(range(1, 201))


def test_states_that_were_taken_on_connections_cut_short_are_said_again_when_one_lasts(desk: Desk) -> None:
    for n in range(6):
        desk.state(f"goip/a/state/{n}", b"{}")
    desk.add(*ORDINARY[:3])
    for _ in range(2):
        taken = 0

        def bears(_: Publication) -> bool:
            nonlocal taken
            taken += 1
            return taken < 4

        desk.meet(bears)
    published, _ = desk.meet(lambda _: True)
    states = [f"goip/a/state/{n}" for n in range(6)]
    assert set(states) - set(published), "some were not said again"
    assert published[-1] == BIRTH
    desk.now += LASTING_S - 1
    assert desk.settle() == []
    desk.now += 1
    assert set(desk.settle()) | set(published) >= set(states)


@pytest.mark.parametrize(("often", "seed"), [(0.05, 1), (0.1, 5), (0.3, 26), (0.3, 29)])
def test_a_broker_that_closes_at_random_convicts_nothing(desk: Desk, often: float, seed: int) -> None:
    chance = random.Random(seed)
    for n in range(8):
        desk.state(f"goip/a/state/{n}", b"{}")
    desk.add(*ORDINARY)
    desk.lasted = False
    connections = 0
    while not desk.lasted:
        _, held = desk.meet(lambda _: chance.random() > often)
        assert held is None
        connections += 1
        assert connections < 1000
    assert sorted(desk.publisher.take_done()) == list(range(1, 201))


def test_what_the_network_cuts_convicts_nothing(desk: Desk) -> None:
    desk.add("goip/a/1")
    for _ in range(10):
        desk.publisher.connected()
        for publications in (1, 2):  # the birth message, and the fact alone in flight
            desk.drain()
            if publications == 1:
                desk.acknowledge(len(desk.link.sent))
        assert desk.end(closed=False) is None
        assert not desk.publisher._held


def test_a_guilty_one_is_found_at_a_broker_that_also_closes_for_reasons_of_its_own(desk: Desk) -> None:
    desk.add(*ORDINARY[:100])
    desk.add("goip/a/large", body=LARGE)
    desk.add(*ORDINARY[100:])
    convicted: list[str | None] = []
    desk.lasted = False
    while not desk.lasted:
        taken = 0

        def bears(publication: Publication) -> bool:
            nonlocal taken
            taken += 1
            return taken < 10 and len(publication.payload) <= 1000

        convicted.append(topic_of(desk.meet(bears)[1]))
        assert len(convicted) < 200
    assert [topic for topic in convicted if topic] == ["goip/a/large"]
    assert sorted(desk.publisher.take_done()) == [n for n in range(1, 202) if n != 101]


def test_after_one_lost_connection_only_the_first_goes_alone_and_after_two_all_do(desk: Desk) -> None:
    desk.add(*ORDINARY[:10])
    desk.publisher.connected()
    desk.drain()
    desk.acknowledge(1)
    desk.end()
    desk.publisher.connected()
    assert desk.drain() == ORDINARY[:1], "it was the first"
    desk.acknowledge(len(desk.link.sent))
    assert desk.drain() == [BIRTH, *ORDINARY[1:10]]
    desk.end()
    desk.publisher.connected()
    sent = [desk.drain()]
    while sent[-1]:
        desk.acknowledge(len(desk.link.sent))
        sent.append(desk.drain())
    assert sent == [[BIRTH], *([topic] for topic in ORDINARY[1:10]), []]
    desk.add(*ORDINARY)
    assert len(desk.drain()) == desk.link.window


def test_acknowledgements_that_are_lost_at_the_end_hide_nothing(desk: Desk) -> None:
    """The broker closes at the large one, but what it acknowledged just before does not reach us."""
    desk.add(*ORDINARY[:10])
    desk.add("goip/a/large", body=LARGE)
    for _ in range(2):
        desk.publisher.connected()
        while "goip/a/large" not in (new := desk.drain()):
            desk.acknowledge(*range(len(desk.link.sent) - len(new) + 1, len(desk.link.sent) + 1))
        assert desk.end() is None
    assert [topic for topic in desk.find(at_most(1000), at_most=7) if topic] == ["goip/a/large"]


def test_a_broker_that_dies_of_every_first_publication_convicts_nothing(desk: Desk) -> None:
    """It accepts connections, and takes no publication, whatever it is; until it is mended."""
    desk.state("goip/a/state", b'{"n":1}')
    desk.add(*ORDINARY[:3])
    for _ in range(20):
        assert desk.meet(lambda _: False)[1] is None
    published, held = desk.meet(lambda _: True)
    assert held is None
    assert sorted(published) == sorted([BIRTH, "goip/a/state", *ORDINARY[:3]]), "at once"
    assert not desk.publisher._held


def test_a_state_that_closes_the_connection_does_not_keep_us_from_being_online(desk: Desk) -> None:
    desk.state("goip/a/state", LARGE)
    desk.state("goip/b/state", b"{}")
    desk.add("goip/a/call")
    assert desk.meet(at_most(1000))[1] is None
    assert desk.meet(at_most(1000)) == (["goip/a/state"], None)
    published, held = desk.meet(at_most(1000))
    assert sorted(published[:3]) == sorted(["goip/a/call", "goip/b/state", BIRTH])
    assert (published[3:], topic_of(held)) == (["goip/a/state"], "goip/a/state")
    assert desk.meet(at_most(1000)) == ([BIRTH], None), "it has just taken the other one"
    desk.state("goip/a/state", LARGE + b" ")
    assert desk.settle() == [], "the next value is like it"
    desk.state("goip/a/state", b"{}")
    assert desk.settle() == ["goip/a/state"], "this one is not"
    desk.state("goip/a/state", LARGE)
    desk.now += HELD_S[0]
    assert desk.go_on(at_most(9000)) == (["goip/b/state", "goip/a/state"], None)
    assert desk.link.sent[-1].payload[:9] == LARGE[:9]
    desk.state("goip/a/state", LARGE + b" ")
    assert desk.settle() == ["goip/a/state"]


def test_a_birth_message_that_closes_the_connection_is_held_too(desk: Desk) -> None:
    desk.add("goip/a/1", "goip/a/2")
    assert desk.find(all_but(BIRTH)) == [None, None, BIRTH]
    assert sorted(desk.publisher.take_done()) == [1, 2]
    desk.now += HELD_S[0]
    assert desk.settle() == [BIRTH]


def test_a_farewell_is_said_although_the_birth_message_closed_the_connection(desk: Desk) -> None:
    desk.add("goip/a/1")
    desk.find(all_but(BIRTH))
    desk.publisher.connected()
    desk.publisher.say_goodbye()
    assert desk.settle() == [BIRTH]
    assert desk.publisher.said_goodbye


def test_a_smaller_one_that_closes_the_connection_too_takes_the_place_of_the_larger(desk: Desk) -> None:
    desk.add("goip/a/sms/in", body=LARGE)
    desk.add("goip/a/sms/in", body=LARGE[:2000] + b'"}')
    desk.find(at_most(1000), at_most=7)
    assert desk.meet(at_most(1000)) == ([BIRTH], None)
    desk.publisher.retry_parked()
    assert desk.settle() == ["goip/a/sms/in"] * 2
    assert sorted(desk.publisher.take_done()) == [1, 2]


def test_a_state_that_changes_while_it_is_tried_again_is_sent_in_its_last_value(desk: Desk) -> None:
    desk.state("goip/a/state", LARGE)
    desk.find(at_most(1000))
    desk.publisher.retry_parked()
    assert desk.drain() == ["goip/a/state"]
    desk.now += ALONE_S
    desk.state("goip/a/state", LARGE[:-2] + b'y"}')
    assert desk.drain() == []
    desk.acknowledge(len(desk.link.sent))
    assert desk.settle() == ["goip/a/state"]
    assert b'xy"' in desk.link.sent[-1].payload


def test_what_is_held_and_then_found_to_exceed_what_the_broker_says_is_parked(desk: Desk) -> None:
    desk.add("goip/a/sms/in", body=LARGE)
    desk.find(at_most(1000))
    desk.link.most = 1000
    desk.publisher.retry_parked()
    assert desk.settle() == []
    assert not desk.publisher._held
    desk.link.most = 10_000
    desk.now += PARK_S[0]
    desk.publisher.retry_parked(desk.now)
    assert desk.settle() == ["goip/a/sms/in"]


def test_of_what_is_held_only_facts_are_tried_where_states_are_not_to_be_said(desk: Desk) -> None:
    desk.state("goip/a/state", LARGE)
    desk.add("goip/a/sms/in", body=LARGE)
    desk.find(at_most(1000), at_most=7)
    desk.publisher.say_only(())
    desk.publisher.connected()
    desk.publisher.retry_parked()
    assert desk.settle() == ["goip/a/sms/in"]
    desk.publisher.say_only(None)
    assert desk.settle() == [BIRTH, "goip/a/state"]


def test_a_reply_on_a_callers_topic_that_closes_the_connection_is_dropped(desk: Desk) -> None:
    desk.add("reply/x", "goip/a/result/sms", schema="result")
    desk.find(all_but("reply/x"))
    assert sorted(desk.publisher.take_done()) == [1, 2]


def test_others_do_not_wait_for_ever_for_an_acknowledgement_that_never_comes(desk: Desk) -> None:
    desk.add(*ORDINARY[:10])
    desk.publisher.connected()
    desk.drain()
    desk.end()
    desk.publisher.connected()
    while ORDINARY[9] not in desk.drain():
        desk.acknowledge(len(desk.link.sent))
    desk.end()
    desk.publisher.connected()
    while (new := desk.drain()) != ORDINARY[1:2]:
        assert len(new) == 1, "all are to be sent alone"
        desk.acknowledge(len(desk.link.sent))
    desk.now += ALONE_S - 1
    assert desk.drain() == []
    desk.now += 1
    assert [topic for topic in desk.drain() if topic != BIRTH] == ORDINARY[2:10]


def test_a_farewell_is_said_while_somebody_is_suspected_and_nothing_held_is_tried(desk: Desk) -> None:
    desk.add("goip/a/large", body=LARGE)
    desk.find(at_most(1000))
    desk.add(*ORDINARY[:3])
    desk.publisher.connected()
    new = desk.drain()
    desk.acknowledge(len(desk.link.sent) - len(new) + 1)
    desk.end()
    desk.now += HELD_S[0]
    desk.publisher.connected()
    desk.publisher.say_goodbye()
    assert not desk.publisher.idle
    assert desk.go_on(at_most(1000)) == ([ORDINARY[0], BIRTH, *ORDINARY[1:3]], None)
    assert desk.link.sent[-3].payload == b"offline"
    assert desk.publisher.said_goodbye
    assert desk.publisher.idle


# -- a broker that says what it can take -----------------------------------------------------------------------------


def test_what_exceeds_the_brokers_maximum_packet_size_is_parked_without_being_sent(desk: Desk) -> None:
    desk.link.most = 1000
    desk.publisher.connected()
    desk.settle()
    desk.add(*["goip/a/large"] * 150, body=LARGE)
    desk.add("goip/a/small")
    unsendable = desk.publisher.drain(desk.now)
    assert [(item.topic, code) for item, code in unsendable] == [("goip/a/large", 0x95)] * 150
    assert [publication.topic for publication in desk.link.sent] == [BIRTH, "goip/a/small"]
    desk.acknowledge(2)
    assert desk.publisher.idle
    desk.end()
    desk.link.most = 10_000
    desk.publisher.connected()
    assert desk.settle() == [BIRTH, *["goip/a/large"] * 150]


def test_a_window_of_one_is_enough(desk: Desk) -> None:
    desk.link.window = 1
    desk.state("goip/a/state", b"{}")
    desk.add("goip/a/large", body=LARGE)
    desk.add(*ORDINARY[:9])
    device(desk, "d")
    assert desk.find(at_most(1000)) == [None, None, "goip/a/large"]
    rest = [publication.topic for publication in desk.link.sent]
    assert [topic for topic in rest if topic in ORDINARY] == ORDINARY[:9]
    assert "homeassistant/device/d/config" in rest


# -- documents ------------------------------------------------------------------------------------------------------


def device(desk: Desk, name: str, body: bytes = b'{"device":{}}') -> str:
    topic = f"homeassistant/device/{name}/config"
    desk.publisher.set_state(RetainedState(topic, body, None, None, document=True))
    return topic


def test_documents_come_after_everything_else_and_few_at_a_time(desk: Desk) -> None:
    documents = [device(desk, f"d{n}") for n in range(10)]
    desk.add(*(f"goip/a/sms/{n}" for n in range(5)))
    desk.state("goip/a/state", b'{"a":1}')
    desk.publisher.connected()
    assert desk.drain() == ["goip/a/state"]
    desk.acknowledge(1)
    assert desk.drain() == [BIRTH, *(f"goip/a/sms/{n}" for n in range(5)), *documents[:DOCUMENTS_IN_FLIGHT]]
    assert desk.drain() == []
    desk.add("goip/a/call")
    assert desk.drain() == ["goip/a/call"]
    desk.acknowledge(*range(2, 14))
    assert desk.settle() == documents[DOCUMENTS_IN_FLIGHT:]
    assert desk.link.sent[-1].payload == b'{"device":{}}', "nothing is put on"


def test_documents_have_a_turn_among_facts_that_never_end(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    document = device(desk, "d")
    for _ in range(100):
        desk.add("goip/a/call")
        if document in desk.settle():
            return
    raise AssertionError("the document was never sent")


def test_a_farewell_does_not_wait_for_documents(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    for n in range(20):
        device(desk, f"d{n}")
    desk.publisher.say_goodbye()
    assert not desk.publisher.said_goodbye
    assert desk.drain() == [BIRTH]
    assert not desk.publisher.said_goodbye
    desk.acknowledge(2)
    assert desk.publisher.said_goodbye
    assert desk.drain() == []


def test_a_broker_that_closes_over_documents_gets_none_for_a_while(desk: Desk) -> None:
    documents = [device(desk, f"d{n}") for n in range(10)]

    def no_documents(publication: Publication) -> bool:
        return "/device/" not in publication.topic

    assert desk.find(no_documents) == [None, None, documents[0]]
    assert desk.meet(no_documents) == ([BIRTH], None)
    assert desk.publisher.has_documents
    desk.now += HELD_S[0] - 1
    assert desk.settle() == []
    desk.now += 1
    assert desk.settle() == documents, "it bears them now"


def test_refused_documents_do_not_hold_up_the_outbox(desk: Desk) -> None:
    desk.add(*(f"goip/a/sms/{n}" for n in range(IN_MEMORY + 10)))
    again = Publisher(desk.store, lambda: 1_800_000_000.0, Topics("goip"))  # as after a restart
    again.link, desk.publisher = desk.publisher.link, again
    for n in range(IN_MEMORY):
        device(desk, f"d{n}")
        again._park(again._states[f"homeassistant/device/d{n}/config"], 0.0)
    again.connected()
    again._to_send.clear()
    again._documents.clear()
    assert len([topic for topic in desk.settle() if topic.startswith("goip/a/sms/")]) == IN_MEMORY + 10


def test_however_many_facts_are_refused_others_flow_and_none_is_forgotten(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    permitted: set[str] = set()
    for _ in range(5):  # more than are held in memory
        desk.add(*["goip/a/event"] * IN_MEMORY, "goip/a/sms/in")
    desk.add("goip/a/sms/in")

    def settle() -> list[str]:
        taken = []
        while new := desk.drain():
            for token in range(len(desk.link.sent) - len(new) + 1, len(desk.link.sent) + 1):
                refused = desk.link.sent[token - 1].topic == "goip/a/event" and not permitted
                taken += [] if refused else [desk.link.sent[token - 1].topic]
                desk.acknowledge(token, code=REFUSED if refused else 0)
        desk.store_done()
        return taken

    assert settle() == ["goip/a/sms/in"] * 6
    desk.add("goip/a/sms/in")
    assert settle() == ["goip/a/sms/in"]
    desk.now += PARK_S[1]
    desk.publisher.retry_parked(desk.now)
    assert settle() == []
    permitted.add("goip/a/event")
    desk.now += PARK_S[1]
    desk.publisher.retry_parked(desk.now)
    assert len(settle()) == 5 * IN_MEMORY
    assert desk.publisher.waiting == 0


def test_removals_that_are_refused_are_kept_in_a_bounded_number(desk: Desk) -> None:
    """Of retained commands, where the broker does not let us empty their topics."""
    desk.publisher.connected()
    desk.settle()
    for n in range(IN_MEMORY + 500):
        desk.publisher.remove(f"goip/a/cmd/{n}")
    while new := desk.drain():
        desk.acknowledge(*range(len(desk.link.sent) - len(new) + 1, len(desk.link.sent) + 1), code=REFUSED)
    assert len(desk.publisher._states) == len(desk.publisher._parked) == len(desk.publisher._delays) == IN_MEMORY


# -- copies for Home Assistant ---------------------------------------------------------------------------------------

NOBODY = 0x10


def add_with_copy(desk: Desk, *names: str, schema: str = "sms_in", at: float = 1.0, expiry_s: int = 86400) -> None:
    """Facts, and their copies behind them."""
    rows = [(f"goip/a/{name}", schema, expiry_s, b'{"n":1}', None, at) for name in names]
    with desk.store.transaction():
        first = desk.store.add_outbox(rows)
        copies = [("goip/a/homeassistant/" + row[0][7:], *row[1:], first + i) for i, row in enumerate(rows)]
        desk.store.add_outbox(copies)
    desk.publisher.add(desk.store.outbox(first - 1, 2 * len(rows)))


def home(desk: Desk, there: bool) -> None:
    desk.publisher.set_at_home(there)


def restart(desk: Desk) -> None:
    """As after kill -9: what was not committed is forgotten."""
    again = Publisher(desk.store, lambda: 1_800_000_000.0, Topics("goip"))
    again.link, desk.publisher = desk.publisher.link, again
    desk.link.open = 0
    again.connected()
    assert BIRTH in desk.drain()
    desk.acknowledge(len(desk.link.sent))


def test_copies_wait_until_home_assistant_is_there_and_nothing_else_does(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    add_with_copy(desk, "1", "2")
    assert desk.settle() == ["goip/a/1", "goip/a/2"]
    desk.store_done()
    assert desk.publisher.waiting == 0
    assert desk.publisher.oldest is None, "the broker has all that is for it"
    assert desk.publisher.idle
    add_with_copy(desk, "3")
    home(desk, True)
    assert desk.settle() == ["goip/a/homeassistant/1", "goip/a/homeassistant/2", "goip/a/3", "goip/a/homeassistant/3"]
    add_with_copy(desk, "4")
    assert desk.settle() == ["goip/a/4", "goip/a/homeassistant/4"], "at once"
    desk.store_done()
    home(desk, False)
    home(desk, True)
    assert desk.settle() == [], "once"
    assert desk.store.outbox_size()[0] == desk.publisher.waiting == 0


def test_copies_wait_over_a_restart_and_are_published_once(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    add_with_copy(desk, "1")
    desk.settle()
    desk.store_done()
    restart(desk)
    assert (desk.settle(), desk.publisher.waiting, desk.publisher.oldest) == ([], 0, None)
    home(desk, True)
    assert desk.settle() == ["goip/a/homeassistant/1"]
    desk.store_done()
    restart(desk)
    home(desk, True)
    assert desk.settle() == []


def test_a_copy_on_its_way_when_the_connection_ends_waits_for_home_assistant_again(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    home(desk, True)
    add_with_copy(desk, "1")
    assert desk.drain() == ["goip/a/1", "goip/a/homeassistant/1"]
    desk.end(closed=False)
    home(desk, False)
    desk.publisher.connected()
    assert desk.settle() == [BIRTH, "goip/a/1"]
    home(desk, True)
    assert desk.settle() == ["goip/a/homeassistant/1"]


def test_a_copy_that_nobody_was_there_for_waits(desk: Desk) -> None:
    """A Home Assistant that reloads its integration says nothing before."""
    desk.publisher.connected()
    desk.settle()
    home(desk, True)
    add_with_copy(desk, "1")
    assert desk.drain() == ["goip/a/1", "goip/a/homeassistant/1"]
    desk.acknowledge(2)
    desk.acknowledge(3, code=NOBODY)
    assert desk.drain() == []
    home(desk, False)
    home(desk, True)
    assert desk.settle() == ["goip/a/homeassistant/1"]
    desk.store_done()
    assert desk.store.outbox_size()[0] == 0


def told(desk: Desk, *answers: tuple[int, int]) -> list[str]:
    desk.link.open -= len(answers)
    return [item.topic for item, _ in desk.publisher.acknowledged(list(answers), desk.now)]


def test_that_nobody_heard_a_fact_is_told_only_when_home_assistant_did_not_either(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    add_with_copy(desk, "1")
    desk.drain()
    assert told(desk, (2, NOBODY)) == ["goip/a/1"], "it is away"
    home(desk, True)
    add_with_copy(desk, "2", "3")
    desk.drain()
    assert [publication.topic for publication in desk.link.sent[2:]] == [
        "goip/a/homeassistant/1", "goip/a/2", "goip/a/3", "goip/a/homeassistant/2", "goip/a/homeassistant/3",
    ]  # fmt: skip
    assert told(desk, (3, 0), (4, NOBODY), (5, NOBODY), (6, 0)) == []
    assert told(desk, (7, NOBODY)) == ["goip/a/3"]
    assert not desk.publisher._unheard


def test_copies_are_dropped_after_an_hour_or_when_the_fact_expires(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    add_with_copy(desk, "sms/in", at=1000.0)
    add_with_copy(desk, "call", schema="call", at=1000.0, expiry_s=600)
    desk.settle()
    desk.store_done()
    assert [desk.publisher.drop_copies(at) for at in (1600.0, 1600.1, 4600.0)] == [0, 1, 0]
    restart(desk)
    assert [desk.publisher.drop_copies(at) for at in (4600.0, 4600.1)] == [1, 1], "the first was not committed"
    home(desk, True)
    desk.store_done()
    assert desk.settle() == []
    assert desk.store.outbox_size()[0] == desk.publisher.waiting == 0


def test_a_copy_that_is_dropped_while_it_is_on_its_way_is_deleted_once(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    home(desk, True)
    add_with_copy(desk, "1", at=1000.0)
    add_with_copy(desk, "2", at=1000.0)
    assert len(desk.drain()) == 4
    assert desk.publisher.drop_copies(5000.0) == 2
    desk.acknowledge(2, 3, 4)
    desk.store_done()
    assert desk.store.outbox_size()[0] == 0
    desk.end(closed=False)  # the last was not acknowledged
    desk.publisher.connected()
    assert "goip/a/homeassistant/2" not in desk.settle()
    assert desk.publisher.waiting == 0
    assert desk.publisher.take_done() == []


def test_however_many_copies_wait_the_newest_of_each_kind_are_kept(desk: Desk) -> None:
    desk.publisher.connected()
    desk.settle()
    add_with_copy(desk, "sms/in")
    for start in range(0, MOST_COPIES + 300, 100):
        add_with_copy(desk, *(f"delivery/{n}" for n in range(start, start + 100)), schema="delivery")
    desk.settle()
    desk.store_done()
    assert desk.publisher.drop_copies(2.0) == 300
    desk.store_done()
    home(desk, True)
    published = desk.settle()
    assert published[0] == "goip/a/homeassistant/sms/in", "a flood of others takes no room from an SMS"
    assert published[1:] == [f"goip/a/homeassistant/delivery/{n}" for n in range(300, MOST_COPIES + 300)]


def test_a_topic_of_copies_for_which_the_broker_closes_holds_up_nothing_else(desk: Desk) -> None:
    def bears(publication: Publication) -> bool:
        return "homeassistant" not in publication.topic

    desk.publisher.connected()
    desk.settle()
    home(desk, True)
    add_with_copy(desk, "sms/in")
    desk.end(closed=False)
    convicted = desk.find(bears, at_most=10)
    assert convicted[-1] == "goip/a/homeassistant/sms/in"
    add_with_copy(desk, "sms/in")
    assert desk.go_on(bears)[0] == ["goip/a/sms/in"]
    home(desk, False)
    desk.now += HELD_S[0] + 1
    assert desk.go_on(bears)[0] == [], "it is not tried while nobody would hear it"
    home(desk, True)
    assert desk.settle() == ["goip/a/homeassistant/sms/in"] * 2, "it bears them now"
