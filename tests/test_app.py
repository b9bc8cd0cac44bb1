"""The choke point from inside: what real processes reach only by chance."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.app.bridge import (
    BACKLOG,
    BACKLOG_BYTES,
    COMMANDS,
    HELD_DATAGRAMS,
    MAX_SENDID,
    MOST_COMMAND_BYTES,
    MOST_COMMANDS,
    SERVING_SINCE,
    Bridge,
)
from bridge.app.election import Role
from bridge.config.settings import Settings
from bridge.features.admission import MAX_REPEATS, MAX_REPEATS_BYTES
from bridge.features.limits import BURST_S, SOURCE_PER_S
from bridge.goip.server import LineMemory
from bridge.http.status import ready
from bridge.mqtt.link import Incoming, Publication
from bridge.store.database import OutboxRow, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "bridge.db")
    yield opened
    opened.close()


def settings(lines: int) -> Settings:
    return Settings(lines={f"l{n}": {"password": "p"} for n in range(lines)})


def make(store: Store, lines: int = 1) -> Bridge:
    return Bridge(settings(lines), store, lambda: settings(lines))


def command(topic: str, payload: bytes, mid: int = 1) -> Incoming:
    return Incoming(topic, payload, False, False, None, None, mid, 1)


def results(store: Store) -> list[dict[str, object]]:
    return [json.loads(row.body) for row in store.outbox(0, 1000) if row.schema == "result"]


async def test_no_sendid_leaves_that_a_restart_could_use_again(store: Store) -> None:
    lines = 1600
    with store.transaction():
        for n in range(lines):
            store.save_line(f"l{n}", LineMemory(address=("127.0.0.1", 40000 + n), count=1, reboots=0))
            store.add_sms(
                msg=f"m{n}", cmd="c", line=f"l{n}", number="1", text="x", priority=5, guarantee="at_most_once",
                created=time.time(), state="queued", changed=time.time(),
            )  # fmt: skip
    bridge = make(store, lines)
    bridge._go_on()
    while bridge._feed_hungry(lines):
        pass
    bridge.pump()
    assert len(bridge.server.take_datagrams()) == lines
    assert store.get("sendids_reserved") >= bridge.server.next_sendid


async def test_sendids_are_reserved_only_when_that_is_on_disk(store: Store) -> None:
    bridge = make(store)
    bridge.pump()
    on_disk = store.get("sendids_reserved")
    bridge.server.next_sendid = on_disk + 1
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    text = "x" * 3000  # the outbox is written last, and is what does not fit
    bridge.datagrams_received(
        [(f"RECEIVE:{n};id:l0;password:p;srcnum:1;msg:{text}".encode(), ("127.0.0.1", 4000)) for n in range(50)]
    )
    assert bridge._stalled
    assert bridge._sendids_reserved == store.get("sendids_reserved") == on_disk
    store._db.execute("PRAGMA max_page_count = 1000000")
    bridge._try_again()
    assert bridge._sendids_reserved == store.get("sendids_reserved") > bridge.server.next_sendid


async def test_sendids_go_on_where_the_last_run_ended_and_ignore_a_mad_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(store)
    first.pump()
    reserved = store.get("sendids_reserved")
    monkeypatch.setattr(time, "time", lambda: MAX_SENDID + 1e9)
    second = make(store)
    second.pump()
    assert reserved <= second.server.next_sendid < reserved + 10_000


async def test_a_command_that_makes_us_fail_is_answered_and_the_others_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = make(store)
    take = bridge.admission.take

    def fail(message: Incoming, batch: object) -> None:
        if message.payload == b"poison":
            raise ZeroDivisionError
        take(message, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(bridge.admission, "take", fail)
    bridge.received(
        [
            command("goip/l0/cmd/sms", b'{"id":"a","to":"1","text":"x"}'),
            command("goip/l0/cmd/sms", b"poison", 2),
            command("goip/l0/cmd/sms", b'{"id":"b","to":"2","text":"x"}', 3),
        ]
    )
    found = results(store)
    assert sorted((str(result["code"]), result["id"] in ("a", "b")) for result in found) == [
        ("internal", False),
        ("ok", True),
        ("ok", True),
    ]
    assert [row.number for row in store.queued("l0", 10)] == ["1", "2"]


async def test_a_failed_commit_is_tried_again_with_nothing_lost_or_doubled(store: Store) -> None:
    bridge = make(store)
    bridge.pump()
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    text = "x" * 3000
    bridge.datagrams_received([(b"req:1;id:l0;pass:p;signal:5;", ("127.0.0.1", 4000))])
    first = [(f"RECEIVE:{n};id:l0;password:p;srcnum:1;msg:{text}".encode(), ("127.0.0.1", 4000)) for n in range(50)]
    bridge.datagrams_received(first)
    assert bridge._stalled
    bridge.datagrams_received(first)  # the box repeats
    strangers = [(b"req:1;id:x%d;pass:p;" % n, ("127.0.0.1", 5000)) for n in range(1000)]
    bridge.datagrams_received(strangers)
    answers = [(b"OK %d 1" % n, ("127.0.0.1", 5000)) for n in range(HELD_DATAGRAMS)]
    bridge.datagrams_received(answers)  # nothing of ours: the room is for the lines
    assert len(bridge._held) == len(first)
    more = [
        (b"RECORD:%d;id:l0;password:p;dir:1;num:1" % n, ("127.0.0.1", 4000)) for n in range(100, HELD_DATAGRAMS + 200)
    ]
    bridge.datagrams_received(more)
    assert len(bridge._held) == HELD_DATAGRAMS
    assert len(bridge._events) < 300
    store._db.execute("PRAGMA max_page_count = 1000000")
    bridge._try_again()
    assert not bridge._stalled
    received = [json.loads(row.body)["recvid"] for row in store.outbox(0, 1000) if row.topic == "goip/l0/sms/in"]
    assert sorted(received) == list(range(50))


@pytest.mark.parametrize("stranger", [b"req:1;id:x;pass:p;", b"RECEIVE:1;id:x;password:p;msg:x", b"nonsense"])
async def test_a_flood_of_strangers_while_the_disk_fails_is_looked_at_no_longer_than_else(
    store: Store, stranger: bytes
) -> None:
    bridge = make(store)
    bridge.datagrams_received([(b"req:1;id:l0;pass:p;", ("127.0.0.1", 4000))])
    store._db.execute("PRAGMA query_only = ON")
    bridge.datagrams_received([(b"RECEIVE:1;id:l0;password:p;srcnum:1;msg:x", ("127.0.0.1", 4000))])
    assert bridge.stalled
    flood = [(stranger, ("192.0.2.1", 5000))] * int(5 * SOURCE_PER_S * BURST_S)
    bridge.datagrams_received(flood)
    assert bridge._gate.dropped > len(flood) / 2
    sent: list[bytes] = []
    bridge.udp = Recorder(sent)  # type: ignore[assignment]
    bridge.datagrams_received([*flood, (b"req:2;id:l0;pass:p;", ("127.0.0.1", 4000))])
    assert sent == [b"reg:2;status:200;"]


async def test_while_another_bridge_may_be_at_work_nothing_new_is_sent(store: Store) -> None:
    bridge = make(store)
    bridge._go_on()
    bridge.datagrams_received([(b"req:1;id:l0;pass:p;", ("127.0.0.1", 4000))])
    sent: list[bytes] = []
    bridge.udp = Recorder(sent)  # type: ignore[assignment]
    bridge.takeover()
    bridge.received([command("goip/l0/cmd/sms", b'{"to":"1","text":"x"}')])
    bridge.datagrams_received([(b"req:2;id:l0;pass:p;", ("127.0.0.1", 4000))])
    assert [data.split()[0] for data in sent] == [b"reg:1;status:200;", b"reg:2;status:200;"]
    bridge.link = bridge.publisher.link = link = Link()  # type: ignore[assignment]
    bridge.connected(session_present=True, version="5")
    assert link.published == [], "first it hears what others said"
    bridge.proved(time.monotonic())
    assert [publication.topic for publication in link.published if publication.retain] == ["goip/bridge/info"]
    assert len(sent) == 2
    question = len(link.published)
    bridge.published([(token, 0) for token in range(question)])
    assert [publication.topic for publication in link.published[question:]] == ["goip/bridge/info"]
    assert len(sent) == 2, "the broker does not have the claim yet"
    bridge.published([(question, 0)])
    assert [data.split()[0] for data in sent][2:] == [b"MSG"]


async def test_commands_that_wait_for_the_disk_are_forgotten_with_their_connection(store: Store) -> None:
    """Another bridge may have them by now; with QoS 1 they come again, with QoS 0 they are lost."""
    bridge = make(store)
    bridge.pump()
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    text = "x" * 3000
    fill = json.dumps({"to": [str(n) for n in range(100)], "text": text}).encode()
    bridge.received([command("goip/l0/cmd/sms", fill, 1), command("goip/l0/cmd/sms", fill, 0)])
    assert bridge._stalled
    bridge.received([command("goip/l0/cmd/sms", fill, 2)])
    assert [message.mid for message in bridge._backlog] == [1, 0, 2]
    bridge.disconnected("gone")
    store._db.execute("PRAGMA max_page_count = 1000000")
    bridge._try_again()
    assert not bridge._stalled
    assert store.queued("l0", 10) == []
    bridge.received([replace(command("goip/l0/cmd/sms", b'{"to":"1","text":"x"}'), dup=True, connection=2)])
    assert [row.number for row in store.queued("l0", 10)] == ["1"]


async def test_another_ones_question_is_answered_when_what_that_means_can_be_kept(store: Store) -> None:
    """A crash between the answer and what is kept of it would forget that another bridge may serve."""
    bridge = make(store)
    bridge._go_on()
    bridge.pump()
    bridge.link = bridge.publisher.link = link = Link()  # type: ignore[assignment]
    bridge.connected(session_present=False, version="5")
    bridge.proved(time.monotonic())
    for _ in range(2):  # the question, and the claim
        bridge.published([(token, 0) for token in range(len(link.published))])
    assert bridge.election.role is Role.SERVING
    store._db.execute("PRAGMA query_only = ON")
    link.published.clear()
    question = json.dumps({"instance": "other", "started_at": "2026-01-01T00:00:00Z", "serving_since": None}).encode()
    bridge._heard_of_ourselves(Incoming("goip/bridge/info", question, False, False, None, None, 0, 0))
    assert bridge.stalled
    bridge._second()
    bridge.proved(time.monotonic())
    bridge.published([])
    assert link.published == []
    store._db.execute("PRAGMA query_only = OFF")
    bridge._try_again()
    bridge._second()
    bridge.proved(time.monotonic())
    assert "goip/bridge/info" in link.topics
    assert store.get(SERVING_SINCE) == f"?{bridge.election.since}"


class Link:
    """An MQTT link's side of publishing: a token is the place in what was published."""

    connected, room = True, 100
    version, trouble, retains, is_mute, mute_s = "5", "", True, False, 0.0

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.unacknowledged: list[int] = []

    @property
    def topics(self) -> set[str]:
        return {publication.topic for publication in self.published}

    def last(self, topic: str) -> bytes:
        return [publication.payload for publication in self.published if publication.topic == topic][-1]

    def publish(self, publication: Publication) -> int:
        self.published.append(publication)
        self.unacknowledged.append(len(self.published) - 1)
        return len(self.published) - 1

    def acknowledge(self, _message: Incoming) -> None:
        pass

    def probe(self) -> None:
        pass

    def pause(self, *, on: bool) -> None:
        pass

    def listen(self, *, on: bool) -> None:
        pass


class Recorder:
    """A UDP socket's side of sending."""

    sent = send_failures = kernel_drops = 0

    def __init__(self, sent: list[bytes]) -> None:
        self._sent = sent

    def send(self, data: bytes, _address: object) -> None:
        self._sent.append(data)


async def test_sms_of_a_line_that_is_gone_are_failed_at_the_next_start(store: Store) -> None:
    bridge = make(store, lines=2)
    bridge.datagrams_received([(b"req:1;id:l1;pass:p;", ("127.0.0.1", 4000))])
    bridge.received([command("goip/l1/cmd/sms", b'{"to":["1","2"],"text":"x"}')])
    assert bridge.server.line("l1") is not None
    after = make(store, lines=1)
    after._second()
    told = [json.loads(row.body) for row in store.outbox(0, 1000) if row.topic == "goip/l1/delivery"]
    assert [fact["event_type"] for fact in told] == ["queued", "queued", "failed", "failed"]
    assert "removed" in told[-1]["error"]["text"]


async def test_commands_of_several_reads_come_one_lot_at_a_time(store: Store) -> None:
    bridge = make(store)
    bridge.pump()
    large = b'{"x":"' + b"x" * (300 << 10) + b'"}'
    for mid in range(0, 6, 2):
        bridge.received([command("goip/l0/cmd/sms", large, mid), command("goip/l0/cmd/sms", large, mid + 1)])
    for taken in range(1, 7):  # the first at once, then one in each turn of the event loop
        assert len(results(store)) == taken
        await asyncio.sleep(0)


async def test_a_bridge_that_stands_by_is_not_ready_and_says_why(store: Store) -> None:
    bridge = make(store)
    bridge.connected(session_present=False, version="5")
    info = b'{"instance":"other","started_at":"2020-01-01T00:00:00.000Z","serving_since":"2020-01-01T00:00:00.000Z"}'
    bridge.received([command("goip/bridge/info", info)])
    check = ready(bridge)["serving"]
    assert not check["ok"]
    assert "'other' is active on goip" in check["reason"].replace(",", "")
    bridge.received([command("goip/l0/cmd/sms", b'{"to":"1","text":"x"}')])
    assert results(store) == []


async def test_a_bridge_that_heard_of_the_other_before_it_could_ask_does_not_ask(store: Store) -> None:
    """Its question would overwrite what the other one says, and stop that one's commands for a while."""
    bridge, link = make(store), Link()
    bridge.link = bridge.publisher.link = link  # type: ignore[assignment]
    bridge.connected(session_present=False, version="5")
    info = b'{"instance":"other","started_at":"2020-01-01T00:00:00.000Z","serving_since":"2020-01-01T00:00:00.000Z"}'
    bridge.received([command("goip/bridge/info", info)])
    assert bridge.election.role is Role.STANDING_BY
    bridge.proved(time.monotonic())
    bridge._second()
    assert not [publication.topic for publication in link.published if publication.retain]


async def test_a_command_that_the_store_refuses_to_write_is_answered_and_the_others_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come again and again, and end each run."""
    bridge = make(store)
    bridge.received([command("goip/l0/cmd/sms", b'{"id":"a","to":"1","text":"x"}')])
    taken = store.queued("l0", 1)[0].msg
    monkeypatch.setattr(bridge.run_info, "new_id", lambda: taken)
    bridge.received(
        [
            command("goip/l0/cmd/sms", b'{"id":"b","to":"2","text":"x"}', 2),
            command("goip/bridge/cmd/ping", b'{"id":"c"}', 3),
        ]
    )
    assert [result["code"] for result in results(store)] == ["ok", "internal", "ok"]
    assert [row.number for row in store.queued("l0", 10)] == ["1"]


async def test_however_many_commands_make_us_fail_each_is_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = make(store)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    store._db.execute("PRAGMA synchronous = OFF")  # each has a commit of its own
    monkeypatch.setattr(bridge.admission, "take", fail)
    monkeypatch.setattr(logging.getLogger("bridge.app.bridge"), "disabled", True)  # a traceback for each
    bridge.received([command("goip/l0/cmd/sms", b"", mid) for mid in range(1200)])
    await idle(bridge)
    assert [result["code"] for result in results(store)] == ["internal"] * 1000
    assert store.outbox_size()[0] == 1200


async def test_the_same_repeat_over_and_over_takes_no_room_from_others(store: Store) -> None:
    """A producer repeats every few seconds what takes minutes."""
    bridge = make(store)
    bridge._go_on()
    bridge.datagrams_received([(b"req:1;id:l0;pass:p;", ("127.0.0.1", 4000))])
    asked = b'{"id":"a","code":"*1#"}'
    for mid in range(50):
        bridge.received([command("goip/l0/cmd/ussd", asked, mid)])
    other = Incoming("goip/l0/cmd/ussd", asked, False, False, "answers/other", b"data", 99, 1)
    bridge.received([other])
    sendid = bridge.server.next_sendid - 1
    bridge.datagrams_received([(b"USSD %d Balance" % sendid, ("127.0.0.1", 4000))])
    told = [(row.topic, json.loads(row.body)["duplicate"]) for row in store.outbox(0, 1000) if row.schema == "result"]
    assert told == [
        ("goip/l0/result/ussd", False),
        ("goip/l0/result/ussd", True),
        ("goip/l0/result/ussd", True),
        ("answers/other", True),
    ]


# -- too many commands ------------------------------------------------------------------------------------------------


class Pausable:
    """A link that notes whether it is to read."""

    connected, retains, mute_s = True, True, 0.0

    def __init__(self) -> None:
        self.paused: list[bool] = []
        self.acknowledged: list[Incoming] = []

    def pause(self, *, on: bool) -> None:
        self.paused.append(on)

    def probe(self) -> None:
        pass

    def acknowledge(self, message: Incoming) -> None:
        self.acknowledged.append(message)


def pausable(store: Store) -> tuple[Bridge, Pausable]:
    bridge, link = make(store), Pausable()
    bridge.link = link  # type: ignore[assignment]
    bridge.election.proved(time.monotonic(), time.monotonic())
    return bridge, link


async def idle(bridge: Bridge) -> None:
    """Until all commands had their turn."""
    while bridge._taking:  # noqa: ASYNC110 - each turn of the loop takes some
        await asyncio.sleep(0)


@pytest.mark.parametrize(("count", "size"), [(BACKLOG + COMMANDS + 1, 10), (2 + BACKLOG_BYTES // 100_000, 150_000)])
async def test_while_many_commands_wait_the_broker_is_not_read(store: Store, count: int, size: int) -> None:
    bridge, link = pausable(store)
    bridge.received([command("goip/l0/cmd/sms", b"x" * size, mid) for mid in range(1, count + 1)])
    assert link.paused == [True]
    await idle(bridge)
    assert link.paused == [True, False]
    assert len(link.acknowledged) == count
    assert bridge._load() == (0, 0)


async def test_no_turn_takes_more_than_some_commands(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, _ = pausable(store)
    taken: list[int] = []
    commit = bridge._commit

    def count(*arguments: object) -> bool:
        taken.append(len(bridge._inbox))
        return commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bridge, "_commit", count)
    bridge.received([command("goip/l0/cmd/sms", b"x", mid) for mid in range(1, 3 * COMMANDS)])
    await idle(bridge)
    assert max(taken) == COMMANDS


async def test_while_the_store_cannot_be_written_commands_in_memory_are_bounded(store: Store) -> None:
    bridge, link = pausable(store)
    bridge.pump()
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    text = b'{"to":"1","text":"%s"}' % (b"x" * 2000)
    for batch in range(100):
        bridge.received([command("goip/l0/cmd/sms", text, mid=0) for _ in range(COMMANDS)])
        if bridge._stalled and batch > 50:
            break
    assert bridge._stalled
    assert link.paused == [True]
    count, size = bridge._load()
    assert count <= MOST_COMMANDS
    assert size <= MOST_COMMAND_BYTES + len(text)
    assert len(bridge._inbox) <= COMMANDS
    assert bridge._overflow > 0
    bridge.received([command("goip/l0/cmd/refresh", b'{"id":"kept"}', mid=5)])  # of these the broker sends few ahead
    store._db.execute("PRAGMA max_page_count = 1000000")
    bridge._try_again()
    await idle(bridge)
    assert link.paused == [True, False]
    assert [message.mid for message in link.acknowledged if message.mid] == [5]
    answered = [json.loads(row.body)["id"] for row in store.outbox(0, 100_000) if row.schema == "result"]
    assert answered[-1] == "kept"


async def test_while_it_is_asked_who_serves_reading_goes_on_and_commands_are_bounded(store: Store) -> None:
    bridge, link = pausable(store)
    bridge.election.ask(0.0, resumed=False)
    for _ in range(2 * MOST_COMMANDS // COMMANDS):
        bridge.received([command("goip/l0/cmd/sms", b"x", mid=0) for _ in range(COMMANDS)])
    assert link.paused == [], "the answer may be behind them"
    assert len(bridge._backlog) == MOST_COMMANDS


async def test_commands_that_make_us_fail_are_bounded_and_all_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge, link = pausable(store)

    def fail(_message: Incoming, _batch: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bridge.admission, "take", fail)
    bridge.received([command("goip/l0/cmd/sms", b"poison", mid) for mid in range(1, COMMANDS + 3)])
    await idle(bridge)
    assert len(link.acknowledged) == COMMANDS + 2
    assert {result["code"] for result in results(store)} == {"internal"}


async def test_repeats_that_wait_for_their_result_are_bounded(store: Store) -> None:
    bridge, _ = pausable(store)
    answers = bridge.answers
    for n in range(200):
        batch = bridge._batch()
        batch.waiting += [(n, f"reply/{i}/" + "x" * 50_000, b"y" * 10_000) for i in range(MAX_REPEATS + 1)]
        answers.committed(batch)
    kept = [repeat for repeats in answers._waiting.values() for repeat in repeats]
    assert sum(len(topic or "") + len(correlation or b"") for topic, correlation in kept) <= MAX_REPEATS_BYTES
    assert max(map(len, answers._waiting.values())) == MAX_REPEATS
    batch = bridge._batch()
    batch.answered += list(answers._waiting)
    answers.committed(batch)
    assert (answers._waiting, answers._waiting_bytes) == ({}, 0)


# -- readiness --------------------------------------------------------------------------------------------------------


async def test_readiness_reads_the_answers_it_depends_on(store: Store) -> None:
    """The SUBACK for commands, the PUBACK of `online`, any PUBACK at all, and who serves."""
    bridge, link = make(store), Link()
    bridge.link = bridge.publisher.link = link  # type: ignore[assignment]

    def why() -> str:
        checks = ready(bridge)
        checks.pop("udp")
        return " ".join(str(check["reason"]) for check in checks.values() if not check["ok"])

    def acknowledge() -> None:
        while link.unacknowledged:
            bridge.published([(link.unacknowledged.pop(), 0)])

    commands, pools = bridge.topics.filters()
    bridge.connected(session_present=False, version="5")
    bridge.proved(time.monotonic())
    bridge.subscribed({commands: None, pools: 1})
    assert "asked whether another bridge is active" in why()
    acknowledge()
    assert "has not acknowledged `online`" in why()
    availability = bridge.topics.bridge("availability")
    assert availability not in link.topics, "it is not known yet whether commands are heard"
    bridge.subscribed({commands: 0x87, pools: 1})
    acknowledge()
    assert f"{commands} (0x87)" in why()
    assert link.last(availability) == b"offline"
    bridge.subscribed({commands: 1, pools: 0x87})
    assert "has not acknowledged `online`" in why()
    acknowledge()
    assert link.last(availability) == b"online"
    assert why() == ""
    link.is_mute, link.mute_s = True, 31.0
    assert "acknowledged nothing for 31 s" in why()
    link.connected, link.trouble = False, "no route"
    assert "not connected to the broker (no route)" in why()


async def test_a_farewell_that_is_refused_leaves_it_to_the_last_will(store: Store) -> None:
    bridge, link = make(store), Link()
    bridge.link = bridge.publisher.link = link  # type: ignore[assignment]
    bridge.connected(session_present=False, version="5")
    bridge.proved(time.monotonic())
    bridge.subscribed({})
    while link.unacknowledged:
        bridge.published([(link.unacknowledged.pop(), 0)])
    bridge.publisher.say_goodbye()
    bridge._drain(bridge.clock.monotonic())
    bridge.published([(link.unacknowledged.pop(), 0x87)])
    assert not bridge.publisher.said_goodbye


async def test_who_serves_again_says_all_again_as_another_one_said_it_meanwhile(store: Store) -> None:
    """Also where nothing of it has changed, and the connection is the same."""
    bridge, link = make(store), Link()
    bridge.link = bridge.publisher.link = link  # type: ignore[assignment]

    def acknowledge() -> None:
        while link.unacknowledged:
            bridge.published([(link.unacknowledged.pop(), 0)])
            bridge._serve_if_free()

    bridge.datagrams_received([(b"req:1;id:l0;pass:p;", ("127.0.0.1", 4000))])
    bridge.connected(session_present=False, version="5")
    bridge.proved(time.monotonic())
    bridge.subscribed({bridge.topics.filters()[0]: 1})
    acknowledge()
    bridge._save_announced()
    bridge._second()
    acknowledge()

    def retained(published: list[Publication]) -> set[str]:
        return {each.topic for each in published if each.retain and each.topic.startswith("goip/")}

    ours = retained(link.published)
    assert {"goip/bridge/availability", "goip/l0/availability"} <= ours
    earlier = "2020-01-01T00:00:00.000Z"
    info = {"instance": "other", "started_at": earlier, "serving_since": earlier}
    for role in (Role.SERVING, Role.STANDING_BY):  # it answers what we say to its first word
        bridge.received([command("goip/bridge/info", json.dumps(info).encode())])
        assert bridge.election.role is role
        acknowledge()
    before = len(link.published)
    bridge.received([command("goip/bridge/availability", b"offline")])
    acknowledge()
    bridge.election._until = 0.0  # the time for an answer is over
    bridge._serve_if_free()
    acknowledge()
    assert bridge.election.role is Role.SERVING
    bridge.subscribed({bridge.topics.filters()[0]: 1})
    acknowledge()
    assert retained(link.published[before:]) == ours


async def test_a_number_in_a_topic_that_the_broker_refuses_is_masked_in_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = make(store)
    for topic in ("goip/l0/cmd/sms/004915112345678", "reply/+49 151/12345678", "goip/l0/sms/in"):
        row = OutboxRow(n=1, topic=topic, schema="result", expiry_s=1, body=b"{}", correlation=None, at=0.0)
        bridge._tell_refused([(row, 0x87)], 0.0)
    assert bridge._notices[0]["topic"] == "goip/l0/cmd/sms/004915112345678"
    assert "12345678" not in caplog.text
    assert "goip/l0/sms/in: the broker refused this publish" in caplog.text
