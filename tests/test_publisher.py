"""The order and the patience of the publisher, on a real store; the link is a list that says yes or no."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bridge.mqtt import Publication
from bridge.publisher import DOCUMENTS_HELD_S, DOCUMENTS_IN_FLIGHT, IN_MEMORY, Publisher, RetainedState
from bridge.store import Store
from bridge.topics import Topics

REFUSED = 0x87


@dataclass
class RecordingLink:
    """Takes what it is given, up to its window."""

    connected: bool = True
    window: int = 100
    sent: list[Publication] = field(default_factory=list)
    open: int = 0

    @property
    def room(self) -> int:
        return self.window - self.open

    def publish(self, publication: Publication) -> int:
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

    def add(self, *topics: str, schema: str = "sms_in") -> None:
        rows = [(topic, schema, 60, b'{"n":1}', None, 1.0) for topic in topics]
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

    def settled_but_documents(self) -> list[str]:
        """As `settle`, but the broker acknowledges no document."""
        published: list[str] = []
        while new := self.drain():
            first = len(self.link.sent) - len(new) + 1
            published += new
            self.acknowledge(*(first + n for n, topic in enumerate(new) if "/device/" not in topic))
        return published


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
    assert desk.settle() == [BIRTH, "goip/a/1", "goip/a/3"]
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
    document = device(desk, "d")
    for connection, gives_up in ((1, False), (2, True)):
        desk.publisher.connected()
        assert document in desk.settled_but_documents(), connection
        assert desk.publisher.disconnected(desk.now) is gives_up
        desk.link.open = 0
    desk.publisher.connected()
    assert desk.settle() == [BIRTH]
    desk.now += DOCUMENTS_HELD_S[0] - 1
    assert desk.settle() == []
    desk.now += 1
    assert desk.settle() == [document]
    assert desk.publisher.disconnected(desk.now) is False, "it bears them now"


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
