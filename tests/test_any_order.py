"""Inputs in any order, from a seed: commands, datagrams, PUBACKs, reloads, a failing disk, crashes.

    python tests/test_any_order.py 100 200      seeds 100 to 199

The store is a real one; the broker, the gateways and the clock are here. When everything has come to an end, every
command that was acknowledged has its result, nothing waits for ever, and the store knew of every retained topic first.
"""

import asyncio
import json
import logging
import random
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.app.bridge import ANNOUNCED, NAMED_LINES, Bridge
from bridge.config.settings import Settings
from bridge.goip.events import Address
from bridge.mqtt.link import Incoming, Publication
from bridge.store.database import Store
from harness import StoppedClock

LINES = ("l0", "l1", "l2", "l3")
STEPS = 1200
WINDOW = 100


class Link:
    """A broker that takes everything, and acknowledges it when the world wants."""

    version, retains, mute_s = "5", True, 0.0

    def __init__(self, world: "World") -> None:
        self.world = world
        self.connected = False
        self.in_flight: dict[int, Publication] = {}

    @property
    def room(self) -> int:
        return WINDOW - len(self.in_flight)

    def publish(self, publication: Publication) -> int | None:
        if not self.room:
            return None
        self.world.see(publication)
        token = len(self.world.published)
        self.in_flight[token] = publication
        return token

    def acknowledge(self, message: Incoming) -> None:
        self.world.acknowledged.add(message.mid)

    def listen(self, *, on: bool) -> None:
        pass

    def probe(self) -> None:
        self.world.bridge.proved(self.world.bridge.clock.monotonic())

    def pause(self, *, on: bool) -> None:
        pass

    def subscribe_again(self) -> None:
        pass


class Udp:
    """The way to the gateways."""

    sent = send_failures = kernel_drops = 0
    identity, inherited, address = "the same", False, ("127.0.0.1", 1)

    def __init__(self, orders: list[tuple[bytes, Address]]) -> None:
        self._orders = orders

    def send(self, datagram: bytes, address: Address) -> None:
        self._orders.append((datagram, address))


class World:
    """All that happens around a bridge, and what is to be said of it in the end."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.clock = StoppedClock()
        self.path = folder / "bridge.db"
        self.config: dict[str, Any] = {"lines": {line: {"password": "p"} for line in LINES}}
        self.published: list[Publication] = []
        self.commands: list[tuple[Incoming, int]] = []
        "And in which life they came."
        self.acknowledged: set[int] = set()
        self.orders: list[tuple[bytes, Address]] = []
        "What the gateways have yet to answer."
        self.life = 0
        self.problems: list[str] = []
        self._recvid = 100_000
        self._counts = Counter[str]()

    def begin(self) -> None:
        """A new life, on the same store."""
        self.life += 1
        self.orders.clear()
        self.store = Store(self.path)
        self.bridge = Bridge(self._settings(), self.store, self._settings, self.clock)
        self.bridge.can_restart = True
        self.link = Link(self)
        self.bridge.link = self.bridge.publisher.link = self.link  # type: ignore[assignment]
        self.bridge.udp = Udp(self.orders)  # type: ignore[assignment]
        self.bridge._asked_to_stop = asyncio.Event()
        self.bridge._go_on()
        self.bridge._publish_bridge()
        self.bridge.pump()

    def _settings(self) -> Settings:
        return Settings(instance="home", **self.config)

    def see(self, publication: Publication) -> None:
        """Somebody subscribes to everything."""
        self.published.append(publication)
        topic = publication.topic
        if not publication.retain or not publication.payload or topic.startswith(("goip/bridge/", "goip/job/")):
            return
        if topic.startswith("homeassistant/"):
            known = topic in json.loads(self.store.get(ANNOUNCED) or "[]")
        else:
            known = topic.split("/")[1] in json.loads(self.store.get(NAMED_LINES) or "[]")
        if not known:
            self.problems.append(f"{topic} is retained, and the store does not know of it")

    # -- what happens

    def send_command(self) -> None:
        """A new one, or an earlier one once more."""
        rng, mid = self.rng, len(self.commands) + 1
        if self.commands and rng.random() < 0.3:
            earlier = rng.choice(self.commands)[0]
            topic, body = earlier.topic, earlier.payload
        else:
            paths = ("sms", "sms", "sms", "ussd", "number/get", "refresh", "selftest", "module/reboot")
            on_bridge = ("ping", "refresh", "lines", "reload", "restart")
            line, path = rng.choice((*LINES, "unknown")), rng.choice(paths)
            payload: dict[str, Any] = {"id": f"c{mid}"}
            match path:
                case "sms":
                    payload |= {"to": rng.choice(("1", ["1", "2", "3"])), "text": rng.choice(("x", "y"))}
                    payload |= rng.choice(({}, {}, {"ttl_s": 30}, {"guarantee": "at_least_once"}, {"priority": 9}))
                case "ussd":
                    payload["code"] = "*1#"
                case "selftest":
                    payload |= {"to": "l1", "number": "+491"}
            topic, body = f"goip/{line}/cmd/{path}", json.dumps(payload).encode()
            if rng.random() < 0.2:
                topic, body = f"goip/bridge/cmd/{rng.choice(on_bridge)}", json.dumps({"id": f"c{mid}"}).encode()
        where = rng.choice((None, None, "answers/1", "answers/2"))
        message = Incoming(topic, body, rng.random() < 0.03, False, where, b"%d" % mid, mid, 1)
        self.commands.append((message, self.life))
        self.bridge.received([message])

    def say_something(self) -> None:
        """A gateway registers, or brings an SMS or a report; some of it comes twice."""
        rng, line = self.rng, self.rng.choice(LINES)
        self._recvid -= rng.choice((0, 1, 1))
        self._counts[line] += 1
        datagrams = (
            b"req:%d;id:%b;pass:p;num:+491;imei:1234567812345%b;"
            % (self._counts[line], line.encode(), line[1:].encode()),
            b"RECEIVE:%d;id:%b;password:p;srcnum:1;msg:x" % (self._recvid, line.encode()),
            b"DELIVER:%d;id:%b;password:p;sms_no:%d;state:0;num:1" % (self._recvid, line.encode(), rng.randrange(5)),
        )
        self.bridge.datagrams_received([(rng.choice(datagrams), (f"10.0.0.{line[1:]}", 4000))])

    def answer_an_order(self) -> None:
        """Of a gateway; one in ten is lost."""
        if not self.orders:
            return
        order, address = self.orders.pop(0)
        verb, *rest = order.split()
        match verb:
            case b"MSG":
                answers = [b"PASSWORD " + rest[0]]
            case b"PASSWORD":
                answers = [b"SEND " + rest[0]]
            case b"SEND":
                about = b" ".join(rest[:2])
                answers = [b"OK %b %d" % (about, self.rng.randrange(5)), b"WAIT " + about]
                answers += [b"ERROR %b errorstatus:%d" % (about, code) for code in (28, 38)]
            case b"DONE":
                answers = [b"DONE " + rest[0]]
            case b"USSD" | b"get_gsm_num" | b"svr_reboot_module":
                answers = [b"%b %b ok" % (verb, rest[0])]
            case _:
                return
        if self.rng.random() < 0.9:
            self.bridge.datagrams_received([(self.rng.choice(answers), address)])

    def acknowledge_some(self) -> None:
        """The broker; a few are refused, but no devices: a refused one is forgotten, and may yet be taken later."""
        some = list(self.link.in_flight.items())[: self.rng.randrange(1, 40)]
        self._acknowledge(
            [
                (token, 0x87 if publication.topic.startswith("goip/") and self.rng.random() < 0.03 else 0)
                for token, publication in some
            ]
        )

    def _acknowledge(self, acks: list[tuple[int, int]]) -> None:
        for token, _ in acks:
            del self.link.in_flight[token]
        if acks:
            self.bridge.published(acks)

    def let_time_pass(self, seconds: float | None = None) -> None:
        self.clock.now += seconds or self.rng.choice((0.1, 1.0, 1.0, 3.0, 10.0))
        self.bridge._on_timer()
        self.bridge._second()
        if self.rng.random() < 0.1:
            self.bridge._minute()

    def connect_or_disconnect(self) -> None:
        self.link.connected = not self.link.connected
        if self.link.connected:
            self.bridge.connected(session_present=True, version="5")
        else:
            self.link.in_flight.clear()
            self.bridge.disconnected("the network")

    def break_or_mend_the_disk(self) -> None:
        broken = self.store._db.execute("PRAGMA query_only").fetchone()[0]
        self.store._db.execute(f"PRAGMA query_only = {'OFF' if broken else 'ON'}")
        if broken and self.bridge.stalled:
            self.bridge._try_again()

    def _mend_the_disk(self) -> None:
        if self.store._db.execute("PRAGMA query_only").fetchone()[0]:
            self.break_or_mend_the_disk()

    def reload(self) -> None:
        rng = self.rng
        lines: dict[str, dict[str, Any]] = {
            line: {"password": "p"} for line in rng.sample(LINES, rng.choice((2, 3, 4)))
        }
        for line in lines.values():
            line["repeat_safety"] = rng.choice(("safe", "auto"))
            line["allow_from"] = rng.choice(([], [], [], ["10.9.0.0/24"]))
        self.config = {"lines": lines, "homeassistant": {"overrides": rng.choice(({}, {"imei": None}))}}
        self.bridge.reload_on_signal()

    def crash(self) -> None:
        """All that was not written is gone; the next life begins on a disk that works."""
        self.link.connected = False
        self.store.close()  # what of the dead is still called finds it closed
        self.begin()

    async def run(self) -> None:
        """Everything, and then the time that it takes to end."""
        chances = {
            self.send_command: 8, self.say_something: 8, self.answer_an_order: 12, self.acknowledge_some: 8,
            self.let_time_pass: 6, self.connect_or_disconnect: 1, self.break_or_mend_the_disk: 1, self.reload: 1,
            self.crash: 0.3,
        }  # fmt: skip
        self.begin()
        for _ in range(STEPS):
            self.rng.choices(list(chances), list(chances.values()))[0]()
            await asyncio.sleep(0)
            self._look_for_a_fault()
        self._mend_the_disk()
        if not self.link.connected:
            self.connect_or_disconnect()
        for _ in range(400):
            self.let_time_pass(10.0)
            for _ in range(5):
                self.answer_an_order()
            while self.link.in_flight:
                self._acknowledge([(token, 0) for token in self.link.in_flight])
            await asyncio.sleep(0)
            self._look_for_a_fault()

    def _look_for_a_fault(self) -> None:
        if self.bridge._fault is not None:
            raise self.bridge._fault

    # -- what is to be true then

    def judge(self) -> list[str]:
        """What is wrong."""
        bridge, store = self.bridge, self.store
        self.problems += [f"{command.topic} {command.id} has no result" for command in store.open_commands()]
        self.problems += [f"an SMS of {row.line} is sending" for row in store._sms("state = 'sending'")]
        queued = {row.line for row in store._sms("state = 'queued'")}
        self.problems += [f"SMS of {line} are queued, and it is gone" for line in queued - set(bridge.settings.lines)]
        if store.outbox_size()[0]:
            self.problems.append("the outbox is not empty")
        tables = {
            "waiting": bridge.answers._waiting, "vanishing": bridge._vanishing, "emptied": bridge._emptied,
            "writes": bridge._writes, "notices": bridge._notices, "inbox": bridge._inbox, "poison": bridge._poison,
            "backlog": bridge._backlog, "parked": bridge.publisher._parked,
        }  # fmt: skip
        self.problems += [f"{name} is not empty" for name, table in tables.items() if table]
        self.problems += self._results()
        self.problems += self._sequences()
        return self.problems

    def _results(self) -> Iterator[str]:
        """Every command that was acknowledged has a result, and where it wanted one; but for repeats before a crash."""
        answered: set[tuple[str, str]] = set()
        wanted: set[tuple[str, bytes | None]] = set()
        for publication in self.published:
            if publication.schema == "result":
                answered.add((publication.topic, json.loads(publication.payload)["id"]))
                wanted.add((publication.topic, publication.correlation))
        seen: set[tuple[str, bytes]] = set()
        for message, life in self.commands:
            if message.mid not in self.acknowledged:
                continue  # the broker would bring it again
            if (message.topic.replace("/cmd/", "/result/"), json.loads(message.payload)["id"]) not in answered:
                yield f"{message.topic} {message.payload!r} was not answered"
            repeated = (message.topic, message.payload) in seen
            seen.add((message.topic, message.payload))
            where = message.response_topic
            if where is not None and (where, message.correlation) not in wanted and (life == self.life or not repeated):
                yield f"{message.topic} {message.payload!r} was not answered on {where}"

    def _sequences(self) -> Iterator[str]:
        """No gap in `seq`, and no two messages with the same."""
        by_topic: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
        for publication in self.published:
            if publication.retain:
                continue
            body = json.loads(publication.payload)
            del body["ts"]
            if by_topic[publication.topic, body["boot"]].setdefault(body["seq"], body) != body:
                yield f"{publication.topic}: two messages with seq {body['seq']}"
        for (topic, boot), bodies in by_topic.items():
            if sorted(bodies) != list(range(1, len(bodies) + 1)):
                yield f"{topic}, {boot}: a gap in seq"


def judge(seed: int, folder: Path) -> list[str]:
    """A run and what is wrong with it."""
    world = World(seed, folder)
    try:
        asyncio.run(world.run())
        return world.judge()
    finally:
        world.store.close()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(1, 5))
def test_whatever_comes_in_whatever_order_comes_to_an_end(seed: int, tmp_path: Path) -> None:
    assert judge(seed, tmp_path) == [], f"python tests/test_any_order.py {seed} {seed + 1}"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
            print(number, judge(number, Path(scratch)) or "well", flush=True)
