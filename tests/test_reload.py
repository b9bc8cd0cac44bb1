"""Reloading the configuration: what was noted before it holds only as far as it is still true afterwards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import Bridge
from bridge.config.settings import Settings
from bridge.goip.line import Proof
from bridge.mqtt.link import Incoming
from bridge.store.database import Store

HOST = ("127.0.0.1", 4000)
TWO = {"l0": {"password": "p"}, "l1": {"password": "p"}}
ONE = {"l0": {"password": "p"}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "bridge.db")
    yield opened
    opened.close()


class World:
    """A bridge, and the configuration file that it reads again."""

    def __init__(self, store: Store, **settings: Any) -> None:
        self.store = store
        self.file: dict[str, Any] = {"lines": TWO} | settings
        self.bridge = Bridge(Settings(**self.file), store, lambda: Settings(**self.file))
        self.bridge._go_on()
        self.bridge.pump()
        self._mid = 0

    def reload(self, **changed: Any) -> None:
        """SIGHUP."""
        self.file |= changed
        self.bridge.reload_on_signal()

    def command(self, topic: str, payload: object, response_topic: str | None = None) -> None:
        self._mid += 1
        body = json.dumps(payload).encode()
        self.bridge.received([Incoming(f"goip/{topic}", body, False, False, response_topic, None, self._mid, 1)])

    def facts(self, schema: str) -> list[dict[str, Any]]:
        return [
            json.loads(row.body) for row in self.store.outbox(0, 10_000) if row.schema == schema and not row.copy_of
        ]

    def outcomes(self) -> list[str]:
        return [fact["event_type"] for fact in self.facts("delivery")]

    def results(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(row.body) for row in self.store.outbox(0, 10_000) if row.topic == topic]

    def break_the_disk(self) -> None:
        """Nothing can be written from now on, and the bridge has seen it."""
        self.store._db.execute("PRAGMA query_only = ON")
        self.bridge.datagrams_received([(b"RECEIVE:1;id:l0;password:p;srcnum:1;msg:x", HOST)])
        assert self.bridge.stalled

    def mend_the_disk(self) -> None:
        self.store._db.execute("PRAGMA query_only = OFF")
        self.bridge._try_again()
        assert not self.bridge.stalled


# -- lines


async def test_a_line_that_is_taken_out_and_put_back_before_a_commit_keeps_its_queue(store: Store) -> None:
    world = World(store)
    world.command("l1/cmd/sms", {"to": ["1", "2"], "text": "x"})
    world.break_the_disk()
    world.reload(lines=ONE)
    world.reload(lines=TWO)
    world.mend_the_disk()
    assert world.outcomes() == ["queued", "queued"]
    assert [row.number for row in store.queued("l1", 10)] == ["1", "2"]


async def test_an_sms_of_a_line_that_was_out_for_a_moment_is_sent(store: Store) -> None:
    """A session that began before the commit would ask for the journal entry of an SMS that has failed meanwhile."""
    world = World(store)
    world.bridge.datagrams_received([(b"req:1;id:l1;pass:p;", HOST)])
    world.command("l1/cmd/sms", {"to": "1", "text": "x"})
    world.break_the_disk()
    world.reload(lines=ONE)
    world.reload(lines=TWO)
    world.mend_the_disk()
    world.bridge.datagrams_received([(b"req:2;id:l1;pass:p;", HOST)])
    sendid = [data.split()[1] for data, _ in world.bridge.server.take_datagrams() if data.startswith(b"MSG ")][-1]
    for prompt in (b"PASSWORD ", b"SEND "):
        world.bridge.datagrams_received([(prompt + sendid, HOST)])
    assert world.outcomes() == ["queued", "sending"]


async def test_an_sms_whose_journal_entry_waits_for_the_disk_is_submitted_once(store: Store) -> None:
    """As long as the entry waits, the store says that the SMS is queued."""
    world = World(store)
    world.bridge.datagrams_received([(b"req:1;id:l1;pass:p;", HOST)])
    world.command("l1/cmd/sms", {"to": "1", "text": "x"})
    sendid = [data.split()[1] for data, _ in world.bridge.server.take_datagrams() if data.startswith(b"MSG ")][-1]
    world.bridge.datagrams_received([(b"PASSWORD " + sendid, HOST)])
    store._db.execute("PRAGMA query_only = ON")
    world.bridge.datagrams_received([(b"SEND " + sendid, HOST)])
    assert world.bridge.stalled
    world.reload(lines=ONE)
    world.reload(lines=TWO)
    world.mend_the_disk()
    world.bridge.datagrams_received([(b"req:2;id:l1;pass:p;", HOST)])
    sent = [data.split()[0] for data, _ in world.bridge.server.take_datagrams()]
    assert (sent.count(b"SEND"), sent.count(b"MSG")) == (1, 0)
    assert world.outcomes() == ["queued", "sending"]


async def test_an_outcome_that_comes_when_the_line_is_back_still_counts(store: Store) -> None:
    world = World(store)
    world.bridge.datagrams_received([(b"req:1;id:l1;pass:p;", HOST)])
    world.command("l1/cmd/sms", {"to": "1", "text": "x"})
    sendid = [data.split()[1] for data, _ in world.bridge.server.take_datagrams() if data.startswith(b"MSG ")][-1]
    for prompt in (b"PASSWORD ", b"SEND "):
        world.bridge.datagrams_received([(prompt + sendid, HOST)])
    telid = [data.split()[2] for data, _ in world.bridge.server.take_datagrams() if data.startswith(b"SEND ")][-1]
    world.reload(lines=ONE)
    world.reload(lines=TWO)
    world.bridge.datagrams_received([(b"OK %b %b 7" % (sendid, telid), HOST)])
    assert world.outcomes() == ["queued", "sending", "unknown", "sent"]


async def test_an_inbound_sms_that_waits_for_the_disk_is_published_once_though_its_line_is_reloaded(
    store: Store,
) -> None:
    world = World(store)
    sms = (b"RECEIVE:7;id:l1;password:p;srcnum:1;msg:once", HOST)
    store._db.execute("PRAGMA query_only = ON")
    world.bridge.datagrams_received([sms])
    assert world.bridge.stalled
    world.reload(lines=ONE)
    world.reload(lines=TWO)
    world.bridge.datagrams_received([sms])  # it was not acknowledged
    world.mend_the_disk()
    assert [fact["text"] for fact in world.facts("sms_in")] == ["once"]


async def test_a_reload_asked_for_while_the_disk_fails_is_done_when_it_works(store: Store) -> None:
    world = World(store)
    world.break_the_disk()
    world.reload(lines=ONE)
    assert set(world.bridge.settings.lines) == set(TWO)
    world.mend_the_disk()
    assert set(world.bridge.settings.lines) == set(ONE)


async def test_a_reload_whose_own_commit_fails_says_so_and_changes_nothing(store: Store) -> None:
    world = World(store)

    def load_and_break_the_disk() -> Settings:
        store._db.execute("PRAGMA query_only = ON")
        return Settings(lines=ONE)

    world.bridge._reload_settings = load_and_break_the_disk
    world.bridge.server.next_sendid += 10_000  # there is something to be written
    world.command("bridge/cmd/reload", {"id": "a"})
    world.mend_the_disk()
    assert [result["code"] for result in world.results("goip/bridge/result/reload")] == ["storage"]
    assert set(world.bridge.settings.lines) == set(TWO)


async def test_a_line_that_is_out_when_the_commit_comes_has_its_queue_failed(store: Store) -> None:
    world = World(store)
    world.command("l1/cmd/sms", {"to": "1", "text": "x"})
    world.break_the_disk()
    world.reload(lines=ONE)
    world.mend_the_disk()
    world.bridge._second()
    assert world.outcomes() == ["queued", "failed"]


async def test_a_line_that_comes_back_is_known_as_it_was(store: Store) -> None:
    """What is proved of its firmware: one that sends twice must not be asked again, whatever is configured."""
    world = World(store, lines=TWO | {"l1": {"password": "p", "repeat_safety": "safe"}})
    world.bridge.datagrams_received([(b"req:1;id:l1;pass:p;imei:12345678000;", HOST)])
    line = world.bridge.server.line("l1")
    assert line is not None
    line.learn_unsafe()
    world.bridge.pump()
    assert dict(store.proofs()) == {"l1": Proof(False, "12345678")}
    assert not line.repeat_safe
    safe = world.file["lines"]
    world.reload(lines=ONE)
    world.reload(lines=safe)
    again = world.bridge.server.line("l1")
    assert again is not None
    assert again is not line
    assert again.proof == Proof(False, "12345678")
    assert not again.repeat_safe


async def test_sms_of_a_line_that_was_never_heard_nor_named_are_failed_at_the_next_start(store: Store) -> None:
    world = World(store)
    world.command("l1/cmd/sms", {"to": "1", "text": "x"})  # and dies before it wrote down the names of its lines
    World(store, lines=ONE).bridge._second()
    assert world.outcomes() == ["queued", "failed"]


async def test_a_doubtful_sms_of_a_line_that_is_gone_waits_for_nobody(store: Store) -> None:
    """at_least_once would queue it again, for a line that sends nothing."""
    world = World(store)
    with store.transaction():
        store.add_sms(
            msg="m", cmd="c", line="l1", number="1", text="x", priority=5, guarantee="at_least_once", created=0.0,
            state="unknown", changed=0.0, sendid=1, telid=1,
        )  # fmt: skip
    world.reload(lines=ONE)
    world.bridge._second()
    assert world.outcomes() == []
    world.reload(lines=TWO)
    world.bridge._second()
    assert world.outcomes() == ["queued"]


# -- what is fixed while the bridge runs


async def test_another_prefix_waits_for_a_restart_and_overrides_do_not(store: Store) -> None:
    world = World(store, homeassistant={"prefix": "homeassistant", "overrides": {"imei": None}})
    overrides = {"signal_pct": {"enabled_by_default": True}}
    world.file["homeassistant"] = {"prefix": "ha", "discovery": False, "overrides": overrides}
    code, words = world.bridge.reload()
    assert code == "ok"
    assert words.endswith("take effect after a restart: homeassistant.discovery and prefix.")
    now = world.bridge.settings.homeassistant
    assert (now.prefix, now.discovery) == ("homeassistant", True)
    assert now.overrides == overrides
    world.bridge.discovery.tick()
    document = json.loads(
        world.bridge.discovery._wanted["homeassistant/device/goip_" + world.bridge.instance + "_l0/config"]
    )
    components = document["components"]
    assert components["signal_pct"]["enabled_by_default"] is True
    assert len(components["imei"]) > 1


# -- answers


@pytest.mark.parametrize("path", ["reload", "restart"])
async def test_many_that_come_at_once_read_the_file_once(store: Store, path: str) -> None:
    """With thousands of lines it takes a second: a hundred of them would look like a bridge that hangs."""
    world = World(store)
    world.bridge.can_restart = True
    reads: list[None] = []

    def load() -> Settings:
        reads.append(None)
        return Settings(**world.file)

    world.bridge._reload_settings = load
    world.bridge.received(
        [Incoming(f"goip/bridge/cmd/{path}", b"", False, False, None, None, mid, 1) for mid in range(100)]
    )
    assert len(reads) == 1
    assert [result["code"] for result in world.results(f"goip/bridge/result/{path}")] == ["ok"] * 100


@pytest.mark.parametrize("path", ["reload", "restart"])
async def test_a_repeat_that_comes_while_the_verdict_waits_for_the_disk_is_answered(store: Store, path: str) -> None:
    world = World(store)
    world.bridge.can_restart = True

    def load_and_break_the_disk() -> Settings:
        """Between the commit of the command and that of its verdict."""
        store._db.execute("PRAGMA query_only = ON")
        return Settings(**world.file)

    world.bridge._reload_settings = load_and_break_the_disk
    world.command(f"bridge/cmd/{path}", {"id": "a"})
    assert world.bridge.stalled
    world.command(f"bridge/cmd/{path}", {"id": "a"}, "my/answers")
    world.mend_the_disk()
    assert [result["duplicate"] for result in world.results(f"goip/bridge/result/{path}")] == [False, True]
    assert [result["duplicate"] for result in world.results("my/answers")] == [True]
