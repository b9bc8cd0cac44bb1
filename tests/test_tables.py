"""Tables whose keys outsiders choose: they stay small, whatever is asked for."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.features.admission import MAX_EMPTIED
from bridge.features.batch import MAX_FOREIGN
from bridge.features.limits import MAX_KEYS, Limiter
from bridge.mqtt.link import Incoming, Publication
from bridge.store.database import Store

SETTINGS = Settings(lines={"l0": {"password": "p"}})


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    store = Store(tmp_path / "bridge.db")
    yield Bridge(SETTINGS, store, lambda: SETTINGS)
    store.close()


_mids = itertools.count(1)


def ask(topic: str, response_topic: str | None = None, payload: bytes = b"", *, retain: bool = False) -> Incoming:
    return Incoming(f"goip/{topic}", payload, retain, False, response_topic, None, next(_mids), 1)


async def take(bridge: Bridge, messages: list[Incoming]) -> None:
    """Until all of them had their turn."""
    bridge.received(messages)
    while bridge._taking:  # noqa: ASYNC110 - each turn of the loop takes some
        await asyncio.sleep(0)


def told(bridge: Bridge, topic: str) -> list[int]:
    return [json.loads(row.body)["seq"] for row in bridge.store.outbox(0, 1_000_000) if row.topic == topic]


async def test_sequence_numbers_of_topics_that_others_choose_take_bounded_room(bridge: Bridge) -> None:
    for n in range(0, MAX_FOREIGN + 500, 100):
        asked = []
        for m in range(n, n + 100):
            asked += [
                ask("bridge/cmd/ping", f"answers/{m}"),
                ask(f"nobody{m}/cmd/ping"),
                ask(f"l0/cmd/no/such/command{m}"),
                ask(f"bridge/cmd/no/such/command{m}"),
                ask(f"pool/no-such{m}/cmd/sms", payload=b'{"to":"1","text":"x"}'),
            ]
        await take(bridge, asked)
    run = bridge.run_info
    assert len(run._foreign) <= MAX_FOREIGN
    assert set(run.seq) == {"goip/bridge/result/ping"}
    assert len(told(bridge, "goip/bridge/result/ping")) == MAX_FOREIGN + 500


async def test_sequence_numbers_have_no_gap_as_long_as_a_topic_is_remembered(bridge: Bridge) -> None:
    callers = [f"answers/{n}" for n in range(MAX_FOREIGN - 1)]
    for _ in range(3):
        await take(bridge, [*(ask("bridge/cmd/ping", caller) for caller in callers), ask("nobody/cmd/ping")])
    for topic in ("goip/nobody/result/ping", callers[0], callers[-1]):
        assert told(bridge, topic) == [1, 2, 3]


async def test_a_sequence_number_never_comes_again_on_its_topic(bridge: Bridge) -> None:
    """Not even on a topic that was forgotten: consumers tell repetitions by `boot` and `seq`."""
    await take(bridge, [ask("bridge/cmd/ping", "answers/mine") for _ in range(3)])
    await take(bridge, [ask("bridge/cmd/ping", f"answers/{n}") for n in range(MAX_FOREIGN)])
    await take(bridge, [ask("bridge/cmd/ping", "answers/mine")])
    assert told(bridge, "answers/mine") == [1, 2, 3, 4]


async def test_results_of_a_line_that_is_there_later_go_on_counting(bridge: Bridge) -> None:
    both = Settings(lines={"l0": {"password": "p"}, "l1": {"password": "p"}})
    await take(bridge, [ask("l1/cmd/refresh") for _ in range(3)])
    for settings in (both, SETTINGS):
        bridge._reload_settings = lambda settings=settings: settings
        bridge.reload()
        await take(bridge, [ask("l1/cmd/refresh")])
    assert told(bridge, "goip/l1/result/refresh") == [1, 2, 3, 4, 5]
    assert bridge.run_info.seq["goip/l1/result/refresh"] == 5
    assert not bridge.run_info._foreign


async def test_a_number_that_was_not_committed_is_used_again(bridge: Bridge) -> None:
    bridge.pump()
    bridge.store._db.execute("PRAGMA query_only = ON")
    await take(bridge, [ask("nobody/cmd/ping")])
    assert bridge.stalled
    bridge.store._db.execute("PRAGMA query_only = OFF")
    bridge._try_again()
    await take(bridge, [ask("nobody/cmd/ping")])
    assert told(bridge, "goip/nobody/result/ping") == [1, 2]


async def test_retained_commands_that_were_emptied_take_bounded_room(bridge: Bridge) -> None:
    await take(bridge, [ask(f"nobody{n}/cmd/sms", payload=b"x", retain=True) for n in range(MAX_EMPTIED + 500)])
    assert len(bridge.admission._emptied) <= MAX_EMPTIED


def test_a_limiter_remembers_a_bounded_number_of_keys() -> None:
    """One new key at a time, each told: as an id that nobody knows every half minute, for a week."""
    limiter = Limiter(total=30, period=600.0)
    for n in range(20_000):
        assert limiter.admit(n, n * 30.0) == 1
    assert len(limiter._keys) <= MAX_KEYS


class Refusing:
    """A link whose broker lets nobody write to command topics."""

    connected, room, retains, mute_s = True, 1000, True, 0.0

    def __init__(self) -> None:
        self.published: list[Publication] = []

    def publish(self, publication: Publication) -> int:
        self.published.append(publication)
        return len(self.published) - 1

    def acknowledge(self, _message: Incoming) -> None:
        pass

    def probe(self) -> None:
        pass

    def pause(self, *, on: bool) -> None:
        pass

    def codes(self, first: int) -> list[tuple[int, int]]:
        topics = [publication.topic for publication in self.published]
        return [(n, 0x87 if "/cmd/" in topics[n] else 0) for n in range(first, len(topics))]


async def test_retained_commands_that_cannot_be_emptied_take_bounded_room(bridge: Bridge) -> None:
    """The broker refuses it: trying again for ever would help nobody, and anybody can retain commands."""
    bridge._go_on()
    bridge.link = bridge.publisher.link = link = Refusing()  # type: ignore[assignment]
    bridge.connected(session_present=False, version="5")
    bridge.proved(time.monotonic())
    answered = 0
    for first in range(-100, 2000, 100):  # in the first turn it is only asked who serves
        commands = range(first, first + 100) if first >= 0 else ()
        await take(bridge, [ask(f"nobody{n}/cmd/sms", payload=b"x", retain=True) for n in commands])
        while answered < len(link.published):
            codes = link.codes(answered)
            answered = len(link.published)
            bridge.published(codes)
    publisher = bridge.publisher
    assert sum("/cmd/" in publication.topic for publication in link.published) == 2000, "each is tried once"
    for table in (publisher._states, publisher._parked, publisher._delays, publisher._to_send):
        assert not [key for key in table if "/cmd/" in str(key)]


async def test_long_topics_take_no_room_in_a_limiter(bridge: Bridge) -> None:
    """A publish that the broker refuses is told once for each topic, which others may choose."""
    bridge._limiter.admit(("publish_refused", "x" * 60_000), 0.0)
    assert "xxx" not in repr(bridge._limiter.__dict__)
