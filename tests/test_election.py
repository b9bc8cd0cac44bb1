"""Who serves when several bridges are on one base topic: the rule alone, and real bridges on a real broker."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bridge.app.election import AGAIN_S, ANSWER_S, AUTHORITY_S, Authority, Election, Role
from harness import RawLine, as_broker, bridge_config, own_broker, running, watching
from reliability import two_bridges


class Topic:
    """`bridge/info` on a broker that delivers at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.retained: bytes | None = None
        self.connected: list[Bridge] = []

    def publish(self, sender: "Bridge", body: bytes) -> None:
        self.retained = body
        for bridge in [bridge for bridge in self.connected if bridge is not sender]:
            bridge.hear(body, retain=False)

    def serving(self) -> list[str]:
        return [bridge.instance for bridge in self.connected if bridge.election.role is Role.SERVING]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for bridge in self.connected:
            if bridge.election.is_to_ask(self.now):
                bridge.ask_again()
            if bridge.election.look(self.now, bridge.stamp()):
                bridge.say()


class Bridge:
    """As much of one as the rule needs."""

    def __init__(self, topic: Topic, instance: str, since: str | None = None) -> None:
        self.topic, self.instance = topic, instance
        self.started = self.stamp()
        self.election = Election(instance, self.started, since)

    def stamp(self) -> str:
        return f"2026-01-01T00:{self.topic.now / 60:09.4f}Z"

    def say(self) -> None:
        said = {"instance": self.instance, "started_at": self.started, "serving_since": self.election.serving_since}
        said["served_since"] = self.election.served_since
        self.topic.publish(self, json.dumps(said).encode())
        self.election.acknowledged(self.topic.now)

    def hear(self, body: bytes, *, retain: bool) -> None:
        if self.election.hear(body, self.topic.now, retain=retain):
            self.say()

    def connect(self, *, resumed: bool = False) -> "Bridge":
        self.election.ask(self.topic.now, resumed=resumed)
        if self.topic.retained is not None:
            self.hear(self.topic.retained, retain=True)
        self.topic.connected.append(self)
        self.say()
        self.topic.wait(0.0)
        return self

    def ask_again(self) -> None:
        self.election.ask(self.topic.now, resumed=False)
        self.say()

    def leave(self) -> None:
        """Whoever served says `offline`."""
        self.topic.connected.remove(self)
        if self.election.role is Role.SERVING:
            for other in self.topic.connected:
                if other.election.role is Role.STANDING_BY:
                    other.ask_again()

    def restart(self) -> "Bridge":
        self.leave()
        return Bridge(self.topic, self.instance, self.election.since or "")


@pytest.fixture
def topic() -> Topic:
    return Topic()


def test_one_that_is_alone_serves_at_once_also_after_a_restart(topic: Topic) -> None:
    bridge = Bridge(topic, "home").connect()
    assert bridge.election.role is Role.SERVING
    since = bridge.election.since
    topic.wait(100.0)
    again = bridge.restart().connect(resumed=True)
    assert (again.election.role, again.election.since, again.election.succeeds) == (Role.SERVING, since, False)


def test_a_newcomer_stands_by_until_the_other_is_gone(topic: Topic) -> None:
    first = Bridge(topic, "first").connect()
    topic.wait(10.0)
    second = Bridge(topic, "second").connect()
    assert (second.election.role, second.election.rival) == (Role.STANDING_BY, "first")
    topic.wait(1000.0)
    assert topic.serving() == ["first"]
    first.leave()
    assert topic.serving() == [], "it may be back at once"
    topic.wait(ANSWER_S)
    assert topic.serving() == ["second"]


def test_one_that_stands_by_for_somebody_who_went_silently_asks_again(topic: Topic) -> None:
    first = Bridge(topic, "first").connect()
    topic.wait(10.0)
    second = Bridge(topic, "second").connect()
    topic.connected.remove(first)
    topic.wait(AGAIN_S)
    topic.wait(ANSWER_S)
    assert second.election.role is Role.SERVING


def test_the_successor_of_a_dead_one_waits_for_its_answer_first(topic: Topic) -> None:
    Bridge(topic, "first").connect().leave()
    second = Bridge(topic, "second").connect(resumed=True)
    topic.wait(ANSWER_S - 0.1)
    assert second.election.role is Role.ASKING
    topic.wait(0.2)
    assert second.election.role is Role.SERVING
    assert second.election.succeeds, "what waited for it may have been carried out by the other one"


def test_nothing_can_wait_for_one_that_was_never_there(topic: Topic) -> None:
    Bridge(topic, "first").connect().leave()
    assert not Bridge(topic, "second").connect(resumed=False).election.succeeds


def test_who_serves_goes_on_when_the_other_is_back(topic: Topic) -> None:
    first = Bridge(topic, "first").connect()
    topic.wait(10.0)
    second = Bridge(topic, "second").connect()
    first.leave()
    topic.wait(10.0)
    assert topic.serving() == ["second"]
    back = Bridge(topic, "first", first.election.since).connect(resumed=True)
    assert back.election.succeeds, "what waited for it the other one has carried out"
    assert (back.election.role, second.election.role) == (Role.STANDING_BY, Role.SERVING)


def test_who_is_back_soon_enough_serves_again(topic: Topic) -> None:
    first = Bridge(topic, "first").connect()
    topic.wait(10.0)
    Bridge(topic, "second").connect()
    first.leave()  # the second one asks
    topic.wait(ANSWER_S / 2)
    back = Bridge(topic, "first", first.election.since).connect(resumed=True)
    topic.wait(ANSWER_S)
    assert topic.serving() == ["first"]
    assert not back.election.succeeds


def test_a_restart_of_the_one_that_stood_by_does_not_make_it_older(topic: Topic) -> None:
    Bridge(topic, "first").connect()
    topic.wait(10.0)
    second = Bridge(topic, "second").connect()
    again = second.restart().connect(resumed=True)
    topic.wait(100.0)
    assert topic.serving() == ["first"]
    assert again.election.since is None


def test_two_that_begin_at_once_agree(topic: Topic) -> None:
    one, two = Bridge(topic, "one"), Bridge(topic, "two")
    two.connect()
    one.connect()
    topic.wait(ANSWER_S)
    assert topic.serving() == ["two"]


def test_two_with_the_same_instance_are_told_apart(topic: Topic) -> None:
    Bridge(topic, "home").connect()
    topic.wait(10.0)
    other = Bridge(topic, "home").connect()
    assert other.election.role is Role.STANDING_BY


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b'{"instance":1}', b"\xff", b'{"instance":"x","started_at":[]}']
)
def test_nonsense_frightens_nobody(topic: Topic, body: bytes) -> None:
    bridge = Bridge(topic, "home").connect()
    bridge.hear(body, retain=False)
    assert bridge.election.role is Role.SERVING


@pytest.mark.parametrize("seed", range(200))
def test_never_do_two_serve_and_in_the_end_one_does(seed: int) -> None:
    rng = random.Random(seed)
    topic = Topic()
    kept: dict[str, str] = {}
    for _ in range(60):
        name = rng.choice("abcd")
        there = next((bridge for bridge in topic.connected if bridge.instance == name), None)
        if there is None:
            Bridge(topic, name, kept.get(name)).connect(resumed=rng.random() < 0.5)
        elif rng.random() < 0.5:
            there.leave()
            kept[name] = there.election.since or ""
        assert len(topic.serving()) <= 1
        topic.wait(rng.choice((0.0, 1.0, 4.0, 20.0)))
        assert len(topic.serving()) <= 1
    topic.wait(AGAIN_S)
    topic.wait(ANSWER_S)
    assert len(topic.serving()) == min(1, len(topic.connected))


# -- what may be carried out

NOW = 1000.0
STARTED = "2026-01-01T00:00:00.000Z"
EARLIEST, EARLIER = "2026-01-01T00:00:00.500Z", "2026-01-01T00:00:01.000Z"
LATER = "2026-01-01T00:09:00.000Z"


def word(since: str | None, served: str | None = None) -> bytes:
    """What another bridge says."""
    return json.dumps(
        {"instance": "other", "started_at": LATER, "serving_since": since, "served_since": served}
    ).encode()


@pytest.fixture
def election() -> Election:
    """One that serves, and whose connection was proved just now."""
    one = Election("home", STARTED, EARLIER)
    one.ask(NOW, resumed=True)
    one.acknowledged(NOW)
    assert one.look(NOW, EARLIER)
    assert one.authority(NOW) is Authority.WAIT, "the broker does not have the claim yet"
    assert one.acknowledged(NOW)
    one.proved(NOW, NOW)
    return one


def test_nothing_is_carried_out_before_the_broker_has_the_claim() -> None:
    one = Election("home", STARTED, None)
    one.ask(NOW, resumed=False)
    assert one.authority(NOW) is Authority.WAIT
    one.acknowledged(NOW)
    assert one.look(NOW, EARLIER)
    assert one.authority(NOW) is Authority.WAIT
    assert one.acknowledged(NOW)
    one.vouch(NOW)
    assert one.authority(NOW) is Authority.TAKE


def test_a_connection_that_proved_nothing_lately_is_probed_first(election: Election) -> None:
    assert election.authority(NOW + AUTHORITY_S) is Authority.TAKE
    assert election.authority(NOW + AUTHORITY_S + 0.1) is Authority.PROBE
    election.proved(NOW + 100.0, NOW + 100.1)
    assert election.authority(NOW + 100.1) is Authority.TAKE, "an idle link is not asked about"


def test_after_a_connection_stood_still_the_others_are_asked_first(election: Election) -> None:
    election.proved(NOW + 1.0, NOW + 10.0)
    assert election.authority(NOW + 10.0) is Authority.ASK
    election.ask(NOW + 10.0, resumed=True)
    election.acknowledged(NOW + 10.1)
    assert election.look(NOW + 10.1, LATER)
    election.acknowledged(NOW + 10.2)
    election.vouch(NOW + 10.2)
    assert (election.since, election.authority(NOW + 10.2)) == (EARLIER, Authority.TAKE)


def test_a_question_stops_commands_until_it_is_answered_and_nobody_objects(election: Election) -> None:
    assert election.hear(word(None), NOW, retain=False)
    assert election.authority(NOW) is Authority.WAIT
    assert election.acknowledged(NOW + 1.0)
    election.proved(NOW + ANSWER_S, NOW + ANSWER_S)
    assert election.authority(NOW + ANSWER_S) is Authority.WAIT
    assert election.authority(NOW + 1.0 + ANSWER_S) is Authority.TAKE


def test_a_claim_that_was_answered_before_it_came_costs_no_command(election: Election) -> None:
    election.hear(word(None), NOW, retain=False)
    election.acknowledged(NOW)
    assert election.hear(word(LATER), NOW + ANSWER_S, retain=False)
    assert election.authority(NOW + ANSWER_S) is Authority.WAIT, "it takes the claim back when it hears the answer"


def test_what_came_before_an_unanswered_claim_was_answered_is_the_other_ones(election: Election) -> None:
    election.hear(word(None), NOW, retain=False)
    assert election.hear(word(LATER), NOW, retain=False), "this one is older, and goes on"
    assert election.authority(NOW) is Authority.DROP
    assert election.may_have_missed
    election.acknowledged(NOW)
    assert election.authority(NOW + ANSWER_S - 0.1) is Authority.DROP, "the broker may have more of them"
    election.proved(NOW + ANSWER_S, NOW + ANSWER_S)
    assert election.authority(NOW + ANSWER_S) is Authority.TAKE
    election.hear(word(None), NOW + 100.0, retain=False)
    assert election.authority(NOW + 100.0) is Authority.WAIT, "that is over"


def test_who_hears_an_older_one_gives_way_and_carries_out_nothing_more() -> None:
    one = Election("home", STARTED, LATER)
    one.ask(NOW, resumed=False)
    one.acknowledged(NOW)
    one.look(NOW, LATER)
    assert one.hear(word(EARLIER), NOW, retain=False), "what a dead one said may have been on its way for long"
    assert one.authority(NOW) is Authority.DROP
    assert one.acknowledged(NOW)
    assert not one.hear(word(EARLIER), NOW, retain=False), "this answers ours"
    assert (one.role, one.authority(NOW)) == (Role.STANDING_BY, Authority.DROP)


def test_words_of_a_dead_one_that_arrive_late_end_nothing(election: Election) -> None:
    assert election.hear(word("2025-12-31T00:00:00.000Z"), NOW, retain=False)
    assert not election.hear(word("2025-12-31T00:00:00.000Z"), NOW, retain=False), "or two could talk for ever"
    assert election.authority(NOW) is Authority.DROP, "if it is alive it may have carried out what waits"
    election.acknowledged(NOW)
    election.proved(NOW + ANSWER_S, NOW + ANSWER_S)
    assert election.authority(NOW + ANSWER_S) is Authority.TAKE


def test_one_that_takes_over_leaves_what_came_before_its_question_to_the_other() -> None:
    one = Election("home", STARTED, None)
    one.ask(NOW, resumed=False)
    one.hear(word(EARLIER), NOW, retain=True)
    assert one.authority(NOW) is Authority.DROP
    assert one.may_have_missed, "the other one may be dead"
    one.acknowledged(NOW)
    assert one.authority(NOW) is Authority.WAIT


def test_what_waits_is_left_to_nobody_where_nobody_is_known_to_have_served() -> None:
    """On a broker that keeps nothing; and where another one asked, and died before it served."""
    blind, alone = Election("home", STARTED, EARLIER), Election("home", STARTED, EARLIER)
    blind.ask(NOW, resumed=True)
    blind.doubt()
    alone.ask(NOW, resumed=True)
    alone.hear(word(None), NOW, retain=True)
    for one in (blind, alone):
        assert one.authority(NOW) is Authority.WAIT
        one.acknowledged(NOW)
        assert not one.look(NOW, LATER), "there is time for an answer"
        assert one.look(NOW + ANSWER_S, LATER)


def test_one_that_stands_by_does_not_ask_while_it_hears_of_the_other(election: Election) -> None:
    election.ask(NOW, resumed=False)
    election.hear(word("2025-12-31T00:00:00.000Z"), NOW, retain=False)
    for minute in range(1, 10):
        assert not election.is_to_ask(NOW + 60.0 * minute)
        election.heard_of_other(NOW + 60.0 * minute)
    assert election.is_to_ask(NOW + 540.0 + AGAIN_S)


def test_who_gave_way_remembers_it_over_a_crash_that_overwrote_the_others_word() -> None:
    one = Election("home", STARTED, EARLIER)
    one.ask(NOW, resumed=True)
    one.hear(word(LATER), NOW, retain=True)
    assert one.kept == "", "in the store before its question is at the broker"
    after = Election("home", STARTED, one.kept)
    after.ask(NOW, resumed=True)
    assert after.succeeds
    assert after.authority(NOW) is Authority.DROP
    after.acknowledged(NOW)
    assert not after.look(NOW, LATER), "the other one has its time to answer"
    assert after.look(NOW + ANSWER_S, LATER)
    assert after.kept == f"?{LATER}"
    after.acknowledged(NOW + ANSWER_S)
    assert after.kept == LATER


def test_a_question_is_remembered_over_a_crash_until_nobody_objects_to_the_answer(election: Election) -> None:
    election.hear(word(None), NOW, retain=False)
    assert election.kept == f"?{EARLIER}", "before the answer leaves, which may arrive when another one serves"
    election.acknowledged(NOW)
    election.settle(NOW + ANSWER_S - 0.1)
    assert election.kept == f"?{EARLIER}"
    election.settle(NOW + ANSWER_S)
    assert election.kept == EARLIER


def test_one_that_ever_heard_of_another_keeps_its_word_in_doubt_until_the_broker_has_it() -> None:
    """It may be on its way for as long as another one takes over, be the broker's last word then, and hide that one's
    from the next run, or connection.
    """
    one = Election("home", STARTED, EARLIER, "other")
    assert one.kept == EARLIER
    one.ask(NOW, resumed=True)
    assert one.kept == f"?{EARLIER}", "in the store before its question leaves"
    one.acknowledged(NOW)
    assert one.look(NOW, LATER)
    assert one.kept == f"?{EARLIER}"
    one.acknowledged(NOW)
    assert (one.kept, one.authority(NOW)) == (EARLIER, Authority.PROBE)
    assert one.say_again()
    assert (one.kept, one.authority(NOW)) == (f"?{EARLIER}", Authority.WAIT)
    one.ask(NOW + 60.0, resumed=True)
    assert (one.kept, one.authority(NOW + 60.0), one.may_have_missed) == (f"?{EARLIER}", Authority.DROP, True)
    one.acknowledged(NOW + 60.0)
    assert not one.look(NOW + 60.0, LATER)
    assert one.look(NOW + 60.0 + ANSWER_S, LATER)
    one.acknowledged(NOW + 60.0 + ANSWER_S)
    assert one.kept == LATER


def test_one_in_doubt_says_that_it_served_so_that_another_one_leaves_what_waits() -> None:
    one = Election("home", STARTED, f"?{EARLIER}", "other")
    one.ask(NOW, resumed=True)
    assert (one.serving_since, one.served_since, one.authority(NOW)) == (None, EARLIER, Authority.DROP)
    back = Election("other", STARTED, EARLIEST, "home")
    back.ask(NOW, resumed=True)
    said = {"instance": "home", "started_at": STARTED, "serving_since": None, "served_since": one.served_since}
    back.hear(json.dumps(said).encode(), NOW, retain=True)
    back.acknowledged(NOW)
    assert back.authority(NOW) is Authority.DROP, "also what the broker delivers behind the question"
    assert back.look(NOW + ANSWER_S, LATER)
    back.acknowledged(NOW + ANSWER_S)
    assert back.since == EARLIEST


def test_one_that_never_heard_of_another_doubts_nothing() -> None:
    """Or a crash between a question and its PUBACK would cost it the commands that wait."""
    one = Election("home", STARTED, EARLIER)
    one.ask(NOW, resumed=True)
    assert (one.kept, one.authority(NOW)) == (EARLIER, Authority.WAIT)
    one.ask(NOW, resumed=True)
    one.acknowledged(NOW)
    assert one.look(NOW, LATER)
    assert one.kept == EARLIER
    assert not one.say_again()


def test_a_question_is_remembered_over_a_new_connection_as_over_a_crash(election: Election) -> None:
    """The answer may have been too late, and the other one's claim was lost with the connection, or was heard."""
    election.hear(word(None), NOW, retain=False)
    election.hear(word(LATER), NOW + ANSWER_S, retain=False)
    election.ask(NOW + 30.0, resumed=True)
    assert (election.kept, election.authority(NOW + 30.0), election.may_have_missed) == (
        f"?{EARLIER}",
        Authority.DROP,
        True,
    )
    election.acknowledged(NOW + 30.0)
    assert not election.look(NOW + 30.0, LATER), "the other one has its time to answer"
    assert election.authority(NOW + 30.0) is Authority.DROP


# -- whole bridges in a virtual world


@pytest.mark.parametrize("seed", [14, 20, 27, 10529, 20371, 20096, 20348, 30082, 30193, *range(1, 6)])
def test_two_bridges_carry_out_nothing_twice_whatever_freezes_pauses_or_dies(seed: int) -> None:
    """The first seeds are those that once failed. More: python -m reliability.two_bridges."""
    run = two_bridges.simulate(seed)
    assert run.violations == []
    assert two_bridges.simulate(seed, correlated=True).violations == []
    assert run.counts["on air"] > run.counts["commands"] / 2


# -- for real


def of(role: str, watcher: Any) -> Any:
    return watcher.until("goip/bridge/info", lambda seen: seen.json["instance"] == role and seen.json["serving_since"])


async def sms(line: RawLine) -> None:
    """Be the gateway for one SMS, from MSG to DONE; fails when it is not asked to."""
    for answer in ("PASSWORD {}\n", "SEND {}\n", "OK {} 1 7\n", "DONE {}\n"):
        sendid = (await line.receive()).split()[1].decode()
        line.send(answer.format(sendid))


@pytest.mark.broker("binary")
async def test_of_two_bridges_one_carries_out_commands_and_the_other_takes_its_place(tmp_path: Path) -> None:
    """The same lines in both, and a gateway that registers with both."""
    folders = [tmp_path / name for name in ("broker", "first", "second")]
    folders[1].mkdir()
    folders[2].mkdir()
    lines = {"goip1": {"password": "password1"}, "spare": {"password": "p"}}
    async with own_broker(folders[0]) as mosquitto:
        broker = as_broker(mosquitto)
        configs = [bridge_config(broker, "goip", lines) | {"instance": name} for name in ("first", "second")]
        async with watching(broker, "goip/#") as watcher, running(folders[1], configs[0]) as first:
            await of("first", watcher)
            async with running(folders[2], configs[1]) as second:
                await second.logged("This one is on standby")
                one, two = RawLine(first.udp_port), RawLine(second.udp_port)
                await one.register()
                await two.register()
                await watcher.publish("goip/goip1/cmd/sms/4911", "the first serves")
                await sms(one)
                await watcher.until("goip/goip1/delivery", lambda seen: seen.json["event_type"] == "sent")
                assert two.nothing_waits()
                # What gateways tell the other one is told all the same.
                assert (await two.ask(two.event("RECEIVE", "srcnum:1;msg:to the second"))).startswith(b"RECEIVE")
                await watcher.until("goip/goip1/sms/in", lambda seen: seen.json["text"] == "to the second")

                await first.stop()
                await of("second", watcher)
                # These wait for the first one, too: its session is still there. More than the broker sends at once.
                for n in range(MANY):
                    await watcher.publish(f"goip/spare/cmd/sms/49{n:03}", "the second serves")
                await watcher.until("goip/spare/result/sms", count=MANY)

                await first.start()
                await first.logged("This one is on standby")
                told = await watcher.until(
                    "goip/bridge/event", lambda seen: "waited here while another" in seen.json["message"]
                )
                assert told.json["message"].startswith(f"{MANY} commands")
                await watcher.publish("goip/goip1/cmd/sms/4912", "the second still serves")
                await sms(two)
                await watcher.until("goip/goip1/delivery", lambda seen: seen.json["to"] == "4912", count=3)
                await one.register()
                assert one.nothing_waits()

                await second.kill()  # its last will comes 10 s later
                await first.logged("WARNING this bridge serves goip now")
                await watcher.publish("goip/goip1/cmd/sms/4913", "the first again")
                await sms(one)
                await watcher.until("goip/goip1/delivery", lambda seen: seen.json["to"] == "4913", count=3)
                sent = [
                    seen.json["to"] for seen in watcher.on("goip/goip1/delivery") if seen.json["event_type"] == "sent"
                ]
                assert sent == ["4911", "4912", "4913"]
                assert len(watcher.on("goip/goip1/result/sms")) == 3
                assert len(watcher.on("goip/spare/result/sms")) == MANY
                facts = [seen.json["message"] for seen in watcher.on("goip/bridge/event")]
                assert any("instance 'first', uses the same base topic" in message for message in facts)
                assert any("instance 'second', uses the same base topic" in message for message in facts)
                one.close()
                two.close()


MANY = 60
"More commands than a broker sends ahead of their acknowledgements."
