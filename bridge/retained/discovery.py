"""Keeps Home Assistant's discovery topics as `bridge/homeassistant/documents.py` makes them.

Home Assistant drops most of a device that is published twice within a moment, so each is published at most once in
`APART_S`. What a user deletes there stays away until it is asked for, or until the next start.

It also knows whether Home Assistant is there. Its session with the broker is a clean one, so what is published while it
is away never reaches it: the facts of its event entities and triggers are copied to topics of their own, and the
publisher keeps these copies until Home Assistant is there.
"""

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable

import orjson

from ..config.settings import Settings
from ..contract.topics import Topics
from ..homeassistant import documents as homeassistant
from ..homeassistant.documents import Hardware, is_ours, maker, prefix_of
from ..mqtt.publisher import Publisher, RetainedState
from ..store.database import OutboxCopy, OutboxRow
from ..system.clock import Clock

log = logging.getLogger(__name__)

APART_S = 5.0
"Between two publications of one device."
BIRTH_S = (1.0, 5.0)
"After Home Assistant's birth: not at once, as everybody else does."
MENDED_S = 10.0
"After this long a device that somebody else overwrote is published again; doubling while they go on."
HOME_S = 60.0
"""After a new connection Home Assistant is away until its birth, or until so much time has passed: it may have been
there all the time, and after a restart of the broker it takes longer to connect than we do."""
SETTLE_S = 2.0
"Once its birth is answered it needs so long for entities that are new to it."
OLD_WILL_S = 100.0
"""A will that comes so soon after a birth may be that of an earlier run: a broker misses a machine that lost its power
after 90 s."""
COPIED = frozenset(("sms_in", "delivery", "call", "ussd", "bridge_event"))
"Schemas of the facts that have an event entity or a trigger."
MAX_ORPHANS = 1000
"Documents of devices that nobody knows of, which are removed at a time. Others come again with the next connection."
MAX_TOPIC = 1000
"No topic of a device of ours is nearly as long."
DEVICES_AT_ONCE = 50
"Devices that are published in one turn."
ASKED_S = 10.0
"After a refresh this long an empty topic is no deletion: Home Assistant empties one many times, for seconds."


class Discovery:
    """One bridge's devices. Does nothing but clean up when discovery is off."""

    def __init__(
        self,
        instance: str,
        settings: Settings,
        topics: Topics,
        publisher: Publisher,
        clock: Clock,
        announced: Iterable[str],
        hardware: Callable[[str], Hardware],
    ) -> None:
        self._instance = instance
        self._topics = topics
        self._publisher = publisher
        self._clock = clock
        self._look = hardware
        self._hardware: dict[str, Hardware] = {}
        "By line: what its documents say of it."
        self._prefix = settings.homeassistant.prefix
        self.on = settings.homeassistant.discovery
        self._birth_topic = f"{self._prefix}/status"
        self._names = f"{self._prefix}/device/{prefix_of(instance)}"
        "How the topics of this instance begin."
        self._wanted: dict[str, bytes] = {}
        "By topic: every device that is to be there, those included that the user deleted."
        self._of_line: dict[str, list[str]] = {}
        "By line: its own topic and its gateway's."
        self._stands_for: dict[str, tuple[str, str]] = {}
        "By topic: what each device stands for."
        self._unmade: dict[str, tuple[str, str]] = {}
        "By topic: what devices stand for whose documents are to be made, since the configuration changed."
        self._due: dict[str, float] = {}
        "When to publish, by topic."
        self._last: dict[str, float] = {}
        "When it was published last."
        self._leaving: dict[str, dict[str, dict[str, str]]] = {}
        "By topic: the components that are to be removed, with nothing but their platform, as Home Assistant wants it."
        self._overwritten: dict[str, int] = {}
        "How often somebody else published to a topic of ours."
        self._asked: dict[str, float] = {}
        "When somebody asked for it last."
        self._deleted: set[str] = set()
        "By a user, in Home Assistant."
        self._born_at: float | None = None
        "When Home Assistant's birth is to be answered."
        self.met = False
        "Home Assistant was heard in this run."
        self._home_at: float | None = None
        "When it is taken to be there; None when it is, or is away until its birth."
        self._birth_at = -math.inf
        "When its last birth came."
        self._more = False
        "Not all that was due had its turn."
        self._states_next = False
        "Once all devices are published, Home Assistant is to hear the states."
        self._announced = set(announced)
        "The topics where the broker may have something of ours."
        self.known = set(announced)
        """Those of them that the store knows. Nothing is published elsewhere: after a crash nobody would know that it
        is to be removed."""
        self._had = set(announced)
        "Those where earlier runs had something."
        self.configure(settings)
        self._make(len(self._unmade))

    def filters(self) -> tuple[str, ...]:
        """What the bridge subscribes to for this."""
        return (self._birth_topic, f"{self._prefix}/device/+/config") if self.on else ()

    def configure(self, settings: Settings) -> None:
        """Remove what is no longer there, and announce what is new or changed: `tick` makes the documents, since those
        of thousands of lines take a second.
        """
        topic_of = {what: self._topic(id) for id, what in homeassistant.object_ids(self._instance, settings)}
        self._document = maker(self._instance, settings, self._topics, self._hardware)
        self._stands_for = {topic: what for what, topic in topic_of.items()} if self.on else {}
        self._unmade = dict(self._stands_for)
        gone = self._wanted.keys() - self._unmade.keys() | self._announced - self._unmade.keys()
        self._wanted = {topic: document for topic, document in self._wanted.items() if topic not in gone}
        self._of_line = {
            line: [topic_of[what] for what in (("line", line), ("gateway", of_line.gateway)) if what in topic_of]
            for line, of_line in settings.lines.items()
        }
        for topic in gone:
            self._leaving.pop(topic, None)
            self._deleted.discard(topic)
            self._overwritten.pop(topic, None)
            self._asked.pop(topic, None)
        self._publish_soon(list(gone))

    def look_at(self, lines: Iterable[str]) -> None:
        """These lines may have told of another address or module. What is known stays known."""
        for line in lines if self.on else ():
            before = self._hardware.get(line, Hardware(None, None))
            host, imei = self._look(line)
            found = Hardware(host or before.host, imei or before.imei)
            if found != before:
                self._hardware[line] = found
                self._unmade |= {topic: self._stands_for[topic] for topic in self._of_line.get(line, ())}

    def _make(self, limit: int) -> None:
        """Make some of the documents of another configuration."""
        for topic in list(itertools.islice(self._unmade, limit)):
            self._make_one(topic)

    def _make_one(self, topic: str) -> None:
        document, before = self._document(*self._unmade.pop(topic)), self._wanted.get(topic)
        if document != before:
            self._let_go(topic, before, document)
            self._wanted[topic] = document
            self._publish_soon([topic])

    def connected(self) -> None:
        """A broker that was away may have lost everything."""
        self._go_away(self._clock.monotonic() + HOME_S)
        self._publish_soon(self._wanted)
        self.tick()

    def refresh(self, line: str | None = None) -> None:
        """Announce a line and its gateway, or everything, also what the user deleted."""
        topics = (
            [topic for topic in self._of_line.get(line, []) if topic in self._wanted] if line else list(self._wanted)
        )
        self._deleted.difference_update(topics)
        for topic in topics:
            self._overwritten.pop(topic, None)
            self._asked[topic] = self._clock.monotonic()
        self._publish_soon(topics)

    def takes(self, topic: str) -> bool:
        """Whether a message is for us."""
        return not topic.startswith(f"{self._topics.base}/")

    def heard(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Home Assistant's birth, or anybody's device. `retain`: it is from before."""
        if topic in self._unmade:
            self._make_one(topic)
        if topic == self._birth_topic:
            self._heard_home(payload, retain=retain)
        elif topic in self._wanted:
            self._ours_changed(topic, payload)
        elif payload and topic.startswith(self._names) and self._publisher.said(topic) is None:
            self._maybe_orphan(topic, payload)

    def _heard_home(self, word: bytes, *, retain: bool) -> None:
        """Its birth or its will. A birth that was retained is from before."""
        now = self._clock.monotonic()
        if word == b"online" and not retain:
            self.met, self._birth_at = True, now
            if self._born_at is None:
                self._born_at = now + random.uniform(*BIRTH_S)
            if not self._publisher.at_home:
                self._home_at = now + HOME_S  # at the latest: `tick` answers it first
        elif word == b"offline":
            self.met = True
            log.info("Home Assistant is away: facts wait for it")
            self._go_away(now + HOME_S if now - self._birth_at < OLD_WILL_S else None)

    def _go_away(self, until: float | None) -> None:
        """Home Assistant is away: until its birth, or until then at the latest."""
        self._publisher.set_at_home(False)
        self._born_at, self._states_next = None, False  # a birth that is still to be answered is of an earlier time
        self._home_at = until

    def _come_home(self) -> None:
        """Home Assistant is there. What nobody was subscribed to is published once more."""
        self._home_at = None
        self._publisher.set_at_home(False)
        waited = self._publisher.set_at_home(True)
        log.log(logging.INFO if self.met else logging.DEBUG, "Home Assistant is there: %d facts waited for it", waited)

    def copies(self, rows: Iterable[OutboxRow]) -> list[OutboxCopy]:
        """For Home Assistant, of the facts among these; none when discovery is off."""
        if not self.on:
            return []
        to = self._topics.for_home_assistant
        return [
            (to(row.topic), row.schema, row.expiry_s, row.body, row.correlation, row.at, row.n)
            for row in rows
            if row.schema in COPIED
        ]

    @property
    def is_due(self) -> bool:
        """More is to be published at once."""
        now = self._clock.monotonic()
        return bool(self._unmade) or (self._more and any(due <= now for due in self._due.values()))

    def tick(self, limit: int = DEVICES_AT_ONCE) -> bool:
        """Publish what is due, or some of it; true when Home Assistant is to hear all retained states again."""
        limit = min(limit, DEVICES_AT_ONCE)
        self._make(limit)
        link, now = self._publisher.link, self._clock.monotonic()
        if link is None or not link.connected:
            self._more = False  # until `connected`
            return False  # or Home Assistant would get only the last of several steps
        if self._born_at is not None and now >= self._born_at:
            self._born_at, self._states_next = None, True
            self._publish_soon(self._wanted)
        ready = [topic for topic, due in self._due.items() if due <= now and self._may_be_published(topic)]
        self._more = len(ready) > limit
        for topic in ready[:limit]:
            if topic in self._unmade:
                self._make_one(topic)
            del self._due[topic]
            if topic in self._wanted:
                self._last[topic] = now
                self._publish(topic)
            elif topic in self._announced:
                self._last[topic] = now
                self._publisher.remove(topic)
        waits = bool(self._due or self._unmade) or self._publisher.has_documents
        states, self._states_next = self._states_next and not waits, self._states_next and waits
        if states:
            self._home_at = now + SETTLE_S
        if self._home_at is not None and now >= self._home_at and self.on:
            self._come_home()
        return states

    def _may_be_published(self, topic: str) -> bool:
        return topic in self.known or not (topic in self._wanted or topic in self._unmade)

    def _publish(self, topic: str) -> None:
        document = self._wanted[topic]
        if leaving := self._leaving.pop(topic, None):
            device = orjson.loads(document)
            document = orjson.dumps(device | {"components": device["components"] | leaving})
            self._publish_soon([topic])  # and then without them
        self._announced.add(topic)
        self._publisher.forget(topic)  # it is published although it may say what it said
        self._publisher.set_state(RetainedState(topic, document, None, None, document=True))

    def announced(self) -> list[str]:
        """All topics where the broker may have something of ours: for another configuration to remove."""
        topics = self._announced | self._wanted.keys() | self._unmade.keys()
        self._announced = {topic for topic in topics if self._may_be_there(topic)}
        since = self._clock.monotonic() - APART_S
        self._last = {topic: at for topic, at in self._last.items() if topic in self._wanted or at > since}
        return sorted(self._announced)

    def _may_be_there(self, topic: str) -> bool:
        """The broker may have something of ours there."""
        if topic in self._deleted:
            return False
        if self._publisher.is_refused(topic) and topic not in self._had | self._publisher.accepted:
            return False
        wanted = topic in self._wanted or topic in self._unmade
        return wanted or topic in self._due or self._publisher.said(topic) is not None

    def _ours_changed(self, topic: str, payload: bytes) -> None:
        """Somebody else published to a topic of ours, or the broker told us what it had."""
        now = self._clock.monotonic()
        if payload in (self._wanted[topic], self._publisher.said(topic)):
            return
        if not payload and now - self._asked.get(topic, -ASKED_S) < ASKED_S:
            self._publish_soon([topic])
        elif not payload:
            if topic not in self._deleted:
                log.info("%s was deleted, as Home Assistant does: cmd/refresh or a restart brings it back", topic)
            self._deleted.add(topic)
            self._due.pop(topic, None)
            self._publisher.forget(topic)
        elif topic in self._deleted:
            return
        elif is_ours(payload, self._topics) and self._let_go(topic, payload, self._wanted[topic]):
            self._publish_soon([topic])  # what an earlier run announced, and more than now
        else:
            count = self._overwritten[topic] = self._overwritten.get(topic, 0) + 1
            if count == 2:
                log.warning("another program publishes to %s as well: two bridges with one instance?", topic)
            self._due[topic] = max(now, self._last.get(topic, 0.0) + MENDED_S * 2.0 ** min(count - 1, 12))

    def _let_go(self, topic: str, before: bytes | None, document: bytes) -> bool:
        """Home Assistant keeps an entity that is merely left out: note what to remove; true if there is any."""
        if before is None:
            return False
        stay = orjson.loads(document)["components"]
        try:
            there = orjson.loads(before)["components"]
            gone = {
                key: {"platform": str(had["platform"])}
                for key, had in there.items()
                if key not in stay and len(had) > 1
            }
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
        self._leaving[topic] = {key: had for key, had in self._leaving.get(topic, {}).items() if key not in stay} | gone
        if not self._leaving[topic]:
            del self._leaving[topic]
        return bool(gone)

    def _maybe_orphan(self, topic: str, payload: bytes) -> None:
        if len(topic) > MAX_TOPIC or len(self._announced) >= len(self._wanted) + MAX_ORPHANS:
            return
        if is_ours(payload, self._topics) and topic not in self._due:
            log.info("removing %s, of a line or gateway that is no longer configured", topic)
            self._announced.add(topic)
            self._publish_soon([topic])

    def _publish_soon(self, topics: list[str] | dict[str, bytes]) -> None:
        now = self._clock.monotonic()
        for topic in topics:
            if topic not in self._deleted:
                self._due[topic] = max(now, self._last.get(topic, -APART_S) + APART_S)

    def _topic(self, object_id: str) -> str:
        return f"{self._prefix}/device/{object_id}/config"
