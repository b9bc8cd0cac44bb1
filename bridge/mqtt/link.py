"""The link to the MQTT broker: paho-mqtt driven from asyncio, MQTT 5 with 3.1.1 as the fallback.

The only module that knows paho. It keeps nothing: a publication is handed to one connection, and when that ends before
the PUBACK it is forgotten here, for the outbox to send again. Hence every connection has a new paho client, which would
otherwise send its old messages a second time. A command is acknowledged only when the caller says so.
Called by the application, on the event loop's thread; only connecting (DNS, TCP, TLS) runs in a thread of its own.
"""

import asyncio
import contextlib
import functools
import logging
import math
import os
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Literal, NamedTuple, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

log = logging.getLogger(__name__)

V5, V311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
VERSIONS = {V5: "5", V311: "3.1.1"}
PORTS = {"mqtt": 1883, "mqtts": 8883, "unix": 1883, "ws": 80, "wss": 443}
MAX_PACKET = 268_435_460  # what MQTT can express
BATCH = 256  # packets read before other tasks get a turn
BATCH_BYTES = 1 << 20  # and their payloads
EARLY, EARLY_BYTES = 1000, 4 << 20  # messages with QoS 0, and bytes, kept until the subscriptions are answered
WINDOW = 100  # publications in flight: with fewer we wake up more often, with more nothing is gained
REPEAT_WARNING_S = 300.0
"A trouble that lasts is logged again this often."
MOST_WARNED = 100
QUICK_CLOSES = 3  # docs/contract.md §5: so many in a row are a takeover
REFUSED = 0x80
"Reason codes from here on are refusals."
MUTE_S = 30.0
"A broker that has acknowledged nothing for so long, although something waits for it, is mute."

UNSUPPORTED_VERSION = 0x84
TAKEN_OVER = 0x8E
NO_RETAIN = 0x9A
NO_QOS = 0x9B
UNKNOWN = -1  # not the broker's doing
UNEXPLAINED = {0x00, 0x80}  # closed without a DISCONNECT, or without a reason in it
UNRELATED = {0x00, 0x89, 0x8B, 0x8D, TAKEN_OVER, 0x98, 0x9C, 0x9D, 0x9F, 0xA0}
"Reasons of a DISCONNECT that have nothing to do with what was published."
ADVICE = {
    0x84: "set mqtt.version to auto or 3.1.1",
    0x85: "set another instance, or another mqtt.client_id where that is set",
    0x86: "check mqtt.username and mqtt.password",
    0x87: "check mqtt.username and mqtt.password, and that the broker lets this user and client id connect",
    0x88: "the broker is starting, stopping or overloaded: look into its log",
    0x89: "the broker is overloaded: look into its log",
    0x8A: "the broker has banned this client: look into its configuration",
    0x97: "raise the broker's quota",
    NO_RETAIN: "allow retained messages in its configuration (mosquitto: retain_available true)",
    NO_QOS: "allow QoS 1 in its configuration (mosquitto: max_qos 1 or 2): with QoS 0 messages would be lost",
    0x9C: "the broker has moved: change mqtt.url",
    0x9D: "the broker has moved: change mqtt.url",
    0x9F: "the broker limits the rate of connections",
}


TWIN_ADVICE = "stop one of the two, or give each an instance of its own (or mqtt.client_id, where that is set)"
"For two clients with one client id."


class Publication(NamedTuple):
    """A message to publish; always QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None
    "MQTT 5 message expiry interval."
    schema: str | None = None
    "MQTT 5 user property `schema`."
    content_type: str = "application/json"
    correlation: bytes | None = None
    "MQTT 5 correlation data."


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message from a subscription; the broker keeps it until `MqttLink.acknowledge`."""

    topic: str
    payload: bytes
    retain: bool
    dup: bool
    response_topic: str | None
    correlation: bytes | None
    mid: int
    connection: int
    "Number of the connection it came on: a later connection can't acknowledge it. Negative for what came otherwise."

    @property
    def is_local(self) -> bool:
        """It did not come from the broker."""
        return self.connection < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """Where the broker is, who we are, and how patient."""

    host: str
    "Name or address; for `unix`, the path of the socket."
    client_id: str
    scheme: Literal["mqtt", "mqtts", "unix", "ws", "wss"] = "mqtt"
    port: int | None = None
    path: str = "/mqtt"
    "Of the websocket."
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    version: Literal["auto", "5", "3.1.1"] = "auto"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    "The name in the broker's certificate, where it isn't the host's."
    will: Publication | None = None
    subscriptions: tuple[str, ...] = ()
    replayed: tuple[str, ...] = ()
    """More of them: what others publish, of which only the present counts. With QoS 0 none of it waits in the session,
    where it would take the room of commands. Retained messages come at every connection; only they are marked so."""
    session_expiry_s: int = 3600
    will_delay_s: int = 10
    keepalive_s: int = 30
    receive_maximum: int = 100
    "Commands the broker may send ahead of our acknowledgements."
    window: int = WINDOW
    "Publications sent ahead of the broker's acknowledgements."
    max_incoming_bytes: int = 1 << 20
    connect_timeout_s: float = 10.0
    "For each of: connecting, and then being told that we are connected and subscribed."
    backoff_s: tuple[float, float] = (1.0, 60.0)
    "The longest wait after the first failure, and after many."
    takeover_s: tuple[float, float] = (60.0, 600.0)
    "The wait after the first takeover, and the longest."
    stable_s: float = 10.0
    "A connection that ends sooner is suspected to be taken over."
    mute_s: float = MUTE_S
    resubscribe_s: tuple[float, float] = (60.0, 3600.0)
    "A refused subscription is tried again after the first, doubling to the second."

    @property
    def address(self) -> str:
        """For logs: without credentials."""
        if self.scheme == "unix":
            return f"unix://{self.host}"
        return f"{self.scheme}://{self.host}:{self.port or PORTS[self.scheme]}"


class Handler(Protocol):
    """What the application does with what happens; an exception ends `MqttLink.run`."""

    def connected(self, *, session_present: bool, version: str) -> None:
        """Connected and subscribed; always the first call of a connection."""

    def subscribed(self, codes: Mapping[str, int | None]) -> None:
        """What the broker answered to each subscription that is wanted: the QoS it granted; its reason code, 0x80 or
        above, where it refused; None while the answer is awaited. Follows `connected`, and comes with every change.
        """

    def disconnected(self, reason: str, *, closed: bool = True) -> bool:
        """Follows every `connected`; what was not acknowledged is forgotten here. `closed`: the broker ended it, and
        did not say that this has nothing to do with what was published. True when the connection brought something
        through that the next one need not repeat: that one may follow soon.
        """

    def received(self, messages: list[Incoming]) -> None:
        """Never before `connected`. All that one wake-up brought, so that the caller can commit once."""

    def published(self, acks: list[tuple[int, int]]) -> None:
        """Tokens and reason codes of PUBACKs (0 on MQTT 3.1.1), batched like `received`; there is room again."""

    def proved(self, sent_at: float) -> None:
        """The broker answered a packet that left at `sent_at` (monotonic): the connection stands, and what the broker
        had for us before that has been handed over.
        """

    def takeover(self) -> None:
        """Another client uses our client id (docs/contract.md §5); we wait before connecting again."""


class UnsendableError(Exception):
    """This broker can never take this publication: too large, or an impossible topic."""


class MqttLink:
    """Keeps us connected, and publishes and acknowledges while we are."""

    def __init__(self, config: LinkConfig, handler: Handler) -> None:
        self._config = config
        self._handler = handler
        self._connection: _Connection | None = None
        self._number = 0
        self._stopping = asyncio.Event()
        self._versions = _Versions(config.version)
        self._attempts = 0  # since the last connection that lasted
        self._quick_closes = 0
        self._told = False  # the broker said that we were taken over; we did not just guess it
        self._takeovers = 0
        self._warned: dict[str, float] = {}
        self._away_since: float | None = None
        "When the broker was lost, or not reached for the first time."
        self._mute_before = 0.0  # on the connections since the last PUBACK
        self._retained_will = True
        self.trouble = ""
        "Why the last connection ended, or was not made; empty when that was our wish."

    @property
    def connected(self) -> bool:
        """Connected and subscribed."""
        return self._connection is not None and self._connection.alive

    @property
    def version(self) -> str | None:
        """The MQTT version of this connection."""
        return VERSIONS[self._connection.protocol] if self._connection is not None and self.connected else None

    @property
    def room(self) -> int:
        """How many more publications can be sent ahead of their acknowledgements."""
        return self._connection.room if self._connection is not None else 0

    @property
    def mute_s(self) -> float:
        """For how long the broker has acknowledged no publication, while connected and while one waited for it; over
        reconnections, until a PUBACK comes.
        """
        connection = self._connection
        if connection is None:
            return self._mute_before
        return connection.mute_s + (0.0 if connection.acked else self._mute_before)

    @property
    def is_mute(self) -> bool:
        """The broker has acknowledged nothing for too long."""
        return self.mute_s >= self._config.mute_s

    @property
    def retains(self) -> bool:
        """The broker keeps retained messages, as far as it has said."""
        return self._connection is None or self._connection.retains

    async def run(self) -> None:
        """Connect, and again whenever that ends, until `disconnect`. When cancelled, the will goes out."""
        while not self._stopping.is_set():
            self._number += 1
            config = self._config if self._retained_will else _without_retained_will(self._config)
            connection = _Connection(config, self._handler, self._number, self._versions)
            self._connection = connection
            try:
                await connection.run()
            finally:
                self._connection = None
                connection.close()
            delay = self._after(connection)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    def publish(self, publication: Publication) -> int | None:
        """A token for `published`, unique among all connections; None when not connected or no room (wait for
        `connected` or `published`). UnsendableError when waiting wouldn't help.
        """
        return self._connection.publish(publication) if self._connection is not None else None

    @property
    def max_packet(self) -> int:
        """The largest packet that the broker takes, in bytes."""
        return self._connection.max_packet if self._connection is not None else MAX_PACKET

    def acknowledge(self, message: Incoming) -> None:
        """PUBACK, in the order received; nothing happens when the message came on an earlier connection."""
        if self._connection is not None and self._connection.number == message.connection:
            self._connection.acknowledge(message)

    def probe(self) -> None:
        """Send a PINGREQ, unless one is on its way; its answer is told as `proved`."""
        if self._connection is not None and self._connection.alive:
            self._connection.probe()

    def listen(self, *, on: bool) -> None:
        """Subscribe to commands, or no more; a connection begins with it. What is subscribed to as `replayed` stays."""
        if self._connection is not None and self._connection.alive:
            self._connection.listen(on=on)

    def subscribe_again(self) -> None:
        """Try now what the broker refused to subscribe us to; it is tried again from time to time anyway."""
        if self._connection is not None and self._connection.alive:
            self._connection.subscribe_again()

    def pause(self, *, on: bool) -> None:
        """Read little from the broker, until that is taken back: what was read waits to be worked off. A new connection
        begins without. A little is read all the same, so that PUBACKs and PINGRESPs behind commands arrive.
        """
        if self._connection is not None and self._connection.paused != on:
            self._connection.pause(on=on)

    async def disconnect(self, *, clean: bool = True) -> None:
        """Send what was published and a DISCONNECT, so that no will is published; then `run` returns.

        Not `clean`: drop the connection, so that the will is published.
        """
        self._stopping.set()
        if self._connection is not None:
            if clean:
                await self._connection.disconnect()
            else:
                self._connection.close()

    def _after(self, connection: "_Connection") -> float:
        """Tell what ended, and how long to wait before the next connection."""
        self.trouble = "" if self._stopping.is_set() else connection.reason
        self._mute_before = connection.mute_s + (0.0 if connection.acked else self._mute_before)
        if self._stopping.is_set():
            log.info("disconnected from %s", self._config.address)
            if connection.ready:
                self._handler.disconnected("by us", closed=False)
            return 0.0
        if self._versions.ended(connection):
            return 0.0  # try the other version at once
        if connection.code == NO_RETAIN and connection.age is None and self._retained_will:
            self._retained_will = False
            return 0.0
        if connection.age is not None:
            self._retained_will = connection.retains
        reason = connection.reason
        if connection.unanswered and self._versions.will_refused:
            reason += (
                ", at a CONNECT with our will, and accepts one without: it must allow retained messages (mosquitto: "
                "retain_available true) and QoS 1 (max_qos 1 or 2)"
            )
            self.trouble = reason
        self._warn(f"{self._config.address}: {reason}", connection)
        progress = connection.ready and self._handler.disconnected(connection.reason, closed=connection.closed)
        if self._taken_over(connection, progress):
            return self._takeover_wait()
        low, high = self._config.backoff_s
        ceiling = min(high, low * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        return random.uniform(0, ceiling)  # full jitter: bridges must not come back in step

    def _taken_over(self, connection: "_Connection", progress: bool) -> bool:
        """Brokers don't always say it: some close the connection soon after CONNACK, each time. What ends otherwise,
        or over something that was not answered, is no sign of another client, and none of its absence.
        """
        if connection.age is None:
            self._quick_closes = 0
            return False
        lasted = connection.age >= self._config.stable_s
        if progress or (lasted and not connection.mute):
            self._attempts = 0
        if lasted:
            self._quick_closes = 0
        elif connection.hung_up:
            self._quick_closes += 1
        if connection.age > self._config.takeover_s[1]:
            self._takeovers = 0  # it outlived the other's longest wait: the duel is over
        self._told = connection.code == TAKEN_OVER
        return self._told or self._quick_closes >= QUICK_CLOSES

    def _takeover_wait(self) -> float:
        first, longest = self._config.takeover_s
        delay = min(longest, first * 2.0 ** min(self._takeovers, 30))
        self._takeovers += 1
        log.error(
            f"another client %s with client id %s: {TWIN_ADVICE}; trying again in %.0f s",
            "connects" if self._told else "seems to connect",
            self._config.client_id,
            delay,
        )
        self._handler.takeover()
        return delay

    def _warn(self, text: str, connection: "_Connection") -> None:
        now = asyncio.get_running_loop().time()
        if self._away_since is None or connection.age is not None:
            self._away_since = now
        repeated = now - self._warned.get(text, -REPEAT_WARNING_S) < REPEAT_WARNING_S
        if not repeated:
            if len(self._warned) >= MOST_WARNED:
                self._warned.clear()
            self._warned[text] = now
        away = now - self._away_since
        since = f"; without a broker for {away / 60:.0f} min, facts wait in the store" if away >= 60 else ""
        log.log(logging.DEBUG if repeated else logging.WARNING, "%s%s", text, since)


class _Versions:
    """Which MQTT version to try.

    A broker without MQTT 5 may refuse it, or close or say nothing; but so does a proxy whose broker is still starting.
    Only when 3.1.1 is then accepted, and 5 once more unanswered, do we fall back, for as long as this process runs.
    """

    def __init__(self, configured: str) -> None:
        self.protocol = V311 if configured == "3.1.1" else V5
        self.probing = False
        "The next connection only asks whether 3.1.1 is accepted."
        self.will_refused = False
        "3.1.1 can't say it: a connection with our will is closed without a word, and one without is accepted."
        self._will_accepted = False
        self._auto = configured == "auto"
        self._five_accepted = False
        self._older_accepted = False

    def ended(self, connection: "_Connection") -> bool:
        """Learn from a connection; True when the next should follow at once."""
        if not self._auto:
            return self.protocol == V311 and self._older_ended(connection)
        if self.probing:
            self.probing, self.protocol = False, V5
            self._older_accepted = connection.age is not None
            return self._older_accepted
        if connection.age is not None:
            self._five_accepted = self._five_accepted or self.protocol == V5
            return False
        if connection.code == UNSUPPORTED_VERSION or (connection.unanswered and self._older_accepted):
            return self._fall_back()
        if connection.unanswered and not self._five_accepted:
            self.probing, self.protocol = True, V311
        return False

    def _older_ended(self, connection: "_Connection") -> bool:
        """Is it the will that a broker with 3.1.1 does not answer? Asked once; the next with our will says so."""
        if self.probing:
            self.probing, self._older_accepted = False, connection.age is not None
            return self._older_accepted
        if connection.age is not None:
            self._will_accepted, self.will_refused = True, False
        elif connection.unanswered and self._older_accepted:
            self.will_refused, self._older_accepted = True, False
        elif connection.unanswered and not self._will_accepted and not self.will_refused:
            self.probing = True
        return False

    def _fall_back(self) -> bool:
        log.warning("the broker does not speak MQTT 5: using 3.1.1, so no reason codes, expiry or correlation data")
        self.protocol, self._auto = V311, False
        return True


class _Connection:
    """One paho client, from connecting to its end.

    paho's callbacks only note what happened; the handler is called after paho has returned, so that its exceptions are
    never taken for paho's, and several messages make one call.
    """

    def __init__(self, config: LinkConfig, handler: Handler, number: int, versions: _Versions) -> None:
        self.number = number
        self.protocol = versions.protocol
        self.ready = False
        self.reason = ""
        self.code = UNKNOWN
        "Reason code of the refusal or the end."
        self.unanswered = False
        "Connected, but no CONNACK came, not even a refusal."
        self.closed = False
        "The broker ended it, perhaps over something that was published."
        self.closed_cleanly = False
        "The broker ended it without a reason, and the network had no part in it."
        self.acked = 0
        "PUBACKs."
        self.mute = False
        "We ended it, since the broker acknowledged nothing."
        self.retains = True
        self.paused = False
        self._config = config
        self._handler = handler
        self._probe = versions.probing
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._accepted_at: float | None = None
        self._ended_at: float | None = None
        self._session_present = False
        self._codes: dict[str, int | None] = {}
        "What the broker answered to each subscription that is wanted."
        self._asked: dict[int, tuple[str, ...]] = {}
        "Subscriptions without an answer, by packet id."
        self._asked_at = 0.0
        self._subacked = False
        self._subscribe_at = math.inf
        "When what was refused is tried again."
        self._subscribe_delay = config.resubscribe_s[0]
        self._awaiting_since: float | None = None
        "Of the PUBACKs that are awaited, the last before them, or the first PUBLISH."
        self._bytes_in = 0
        self._early_drops = 0
        self._window = config.window
        self._in_flight = 0
        self.max_packet = MAX_PACKET
        self._acks: list[tuple[int, int]] = []
        self._received: list[Incoming] = []
        self._tracked: tuple[int, float] | None = None
        "Packet id of one publication on its way, and when it left: its PUBACK proves that the connection stands."
        self._proved: float | None = None
        "When what the broker answered last had left; to be told."
        self._fd = -1
        self._pending: Callable[[], int] = int
        self._client = self._new_client()

    @property
    def age(self) -> float | None:
        """Seconds from CONNACK to the end; None when never accepted."""
        if self._accepted_at is None:
            return None
        return (self._ended_at or self._loop.time()) - self._accepted_at

    @property
    def alive(self) -> bool:
        return self.ready and self._ended_at is None

    @property
    def room(self) -> int:
        return self._window - self._in_flight if self.alive else 0

    @property
    def mute_s(self) -> float:
        """For how long no PUBACK came while one was awaited."""
        since = self._awaiting_since
        return 0.0 if since is None else max(0.0, (self._ended_at or self._loop.time()) - since)

    @property
    def hung_up(self) -> bool:
        """The broker closed it without a reason, and owed us no answer: so it was not over something that we sent, and
        no network had failed before.
        """
        owed = self._in_flight or self._asked or self._client._ping_t
        return self.closed_cleanly and not owed

    async def run(self) -> None:
        """Connect and live until the end; raises only what the handler raised."""
        try:
            await self._open()
        except (OSError, ValueError) as error:  # ValueError: a host that can't be one
            self._finish(f"cannot connect: {_explain(error)}")
        deadline = self._loop.time() + self._config.connect_timeout_s
        while not self._ended.done():
            await asyncio.wait((self._ended,), timeout=1.0)
            if self._fd >= 0:
                self._step(self._read)  # what waits in the socket counts, however late we are; also while paused
            self._step(self._client.loop_misc)  # pings, and finds a dead connection
            if not self.ready and self._loop.time() >= deadline:
                self._finish(f"no {'CONNACK' if self.age is None else 'SUBACK'} from the broker")
            elif self.alive:
                self._mind_the_broker()
        self._ended.result()

    def _mind_the_broker(self) -> None:
        """Regularly: is what we wait for still to come?"""
        now = self._loop.time()
        if self.paused:  # its answers may be behind what we don't read
            self._awaiting_since = None if self._awaiting_since is None else now
            self._asked_at = now
            self._client._ping_t = 0
        elif self.mute_s >= self._config.mute_s:
            self.mute = True
            self._finish(
                f"the broker has acknowledged nothing for {self._config.mute_s:.0f} s, while publications wait for it; "
                "look into its log"
            )
        elif self._asked and now - self._asked_at >= self._config.mute_s:
            self._finish("no SUBACK from the broker")
        elif now >= self._subscribe_at:
            self.subscribe_again()

    def publish(self, publication: Publication) -> int | None:
        if not self.room:
            return None
        properties = _publish_properties(publication) if self.protocol == V5 else None
        try:
            size = 9 + len(publication.topic.encode()) + len(publication.payload)
            size += len(properties.packed) if properties else 0
            if size > self.max_packet:
                raise UnsendableError(f"{size} bytes, and the broker takes {self.max_packet}")
            retain = publication.retain and self.retains
            info = self._client.publish(publication.topic, publication.payload, 1, retain, properties)
        except ValueError as error:
            raise UnsendableError(str(error)) from None
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None  # this packet id is still in flight after 65,535 others; the next one is free
        self._in_flight += 1
        if self._tracked is None:
            self._tracked = info.mid, self._loop.time()
        if self._awaiting_since is None:
            self._awaiting_since = self._loop.time()
        log.debug("> %s (%d bytes)", publication.topic, len(publication.payload))
        return self.number << 16 | info.mid

    def acknowledge(self, message: Incoming) -> None:
        if message.mid and self._ended_at is None:  # QoS 0 has no packet id
            self._client.ack(message.mid, 1)

    def probe(self) -> None:
        if not self._client.pings:
            self._client.ping()

    def listen(self, *, on: bool) -> None:
        if on:
            self._subscribe(self._config.subscriptions)
        else:
            self._client.unsubscribe(list(self._config.subscriptions))
            for topic_filter in self._config.subscriptions:
                self._codes.pop(topic_filter, None)
        self._handler.subscribed(dict(self._codes))

    def subscribe_again(self) -> None:
        self._subscribe_at = math.inf
        if refused := [each for each, code in self._codes.items() if code is not None and code >= REFUSED]:
            self._subscribe(refused)
            self._handler.subscribed(dict(self._codes))

    def pause(self, *, on: bool) -> None:
        self.paused = on
        if self._fd >= 0 and on:
            self._loop.remove_reader(self._fd)
        elif self._fd >= 0:
            self._loop.add_reader(self._fd, self._on_readable)
            self._loop.call_soon(self._on_readable)  # the selector doesn't see what was read in part

    async def disconnect(self) -> None:
        """Returns when the broker has closed its side too, or after a while."""
        if not self.alive:
            self._finish("stopped")
            return
        # paho closes right after writing. Unread bytes would make that a reset, which can overtake the DISCONNECT, and
        # the will goes out: so a second descriptor keeps the connection open until the broker has closed it.
        with socket.socket(fileno=os.dup(self._fd)) as linger, contextlib.suppress(OSError, TimeoutError):
            linger.setblocking(False)
            async with asyncio.timeout(self._config.connect_timeout_s / 2):
                self._client.disconnect()
                await asyncio.wait((self._ended,))
                linger.shutdown(socket.SHUT_WR)
                while await self._loop.sock_recv(linger, 65536):
                    pass
        self._finish("disconnect was not sent in time")

    def close(self) -> None:
        """Drop the connection without a DISCONNECT, where it is still open."""
        self._end("dropped")
        self._detach()
        if (open_socket := self._client.socket()) is not None:
            open_socket.close()

    # -- setting up

    def _new_client(self) -> "_Client":
        config = self._config
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            clean_session=None if self.protocol == V5 else False,
            protocol=self.protocol,
            transport={"unix": "unix", "ws": "websockets", "wss": "websockets"}.get(config.scheme, "tcp"),
            reconnect_on_failure=False,  # or paho connects again by itself, blocking, when 3.1.1 is refused
            manual_ack=True,
        )
        client.connect_timeout = config.connect_timeout_s
        client.max_inflight_messages_set(0)  # the window is ours: paho's walks its table at every PUBACK
        client.username_pw_set(config.username, config.password)
        client.ws_set_options(config.path)
        if config.will is not None and not self._probe:
            will_properties = None
            if self.protocol == V5:
                delay = config.will_delay_s
                will_properties = _properties(PacketTypes.WILLMESSAGE, config.will, WillDelayInterval=delay)
            client.will_set(config.will.topic, config.will.payload, 1, config.will.retain, will_properties)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        client.on_pong = self._on_pong
        return client

    async def _open(self) -> None:
        connecting = _in_thread(self._connect, abandoned=self.close)
        try:
            await asyncio.wait((connecting, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                return
            connecting.result()
        finally:
            connecting.cancel()
            del connecting  # else its exception holds this frame, and this frame it: and the failed socket stays open
        if (opened := self._client.socket()) is None:
            raise ConnectionError(self.reason or "closed by the broker")
        self.unanswered = True
        self._fd = opened.fileno()
        self._pending = getattr(opened, "pending", int)
        self._client.on_socket_close = lambda *_: self._detach()
        self._client.on_socket_register_write = self._want_write
        self._client.on_socket_unregister_write = self._written
        self._loop.add_reader(self._fd, self._on_readable)
        self._on_writable()

    def _connect(self) -> None:
        """Blocks; in a thread."""
        config = self._config
        if config.scheme in ("mqtts", "wss"):
            self._client.tls_set_context(tls_context(config))
        port = config.port or PORTS[config.scheme]
        if self.protocol == V311:
            self._client.connect(config.host, port, config.keepalive_s)
            return
        properties = _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=config.session_expiry_s,
            ReceiveMaximum=config.receive_maximum,
            MaximumPacketSize=config.max_incoming_bytes,
        )
        self._client.connect(config.host, port, config.keepalive_s, clean_start=False, properties=properties)

    def _detach(self) -> None:
        """Before the descriptor is closed: its number will be used again."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1

    # -- the event loop's side

    def _on_readable(self) -> None:
        if not self.paused:
            self._step(self._read)

    def _on_writable(self) -> None:
        self._step(self._write)
        if self._fd >= 0 and self._client.want_write():
            self._loop.add_writer(self._fd, self._on_writable)

    def _write(self) -> None:
        self._client.join_packets()
        self._client.loop_write()
        if self._client.broken and self._fd >= 0:
            self._read()  # what the broker said before it closed
            if self._fd >= 0:
                self.closed = True
                self._end(f"connection ended: {self._client.broken}", REFUSED)

    def _read(self) -> None:
        """Read until nothing comes: one call of loop_read may read only one packet."""
        enough, full = len(self._received) + len(self._acks) + BATCH, self._bytes_in + BATCH_BYTES
        while len(self._received) + len(self._acks) < enough and self._bytes_in < full:
            before = len(self._received) + len(self._acks)
            self._client.loop_read()
            progress = len(self._received) + len(self._acks) > before
            if self._fd < 0 or not (progress or self._client.unread or self._pending()):
                return
        self._loop.call_soon(self._on_readable)  # the selector doesn't see what TLS has decrypted already

    def _step(self, work: Callable[[], object]) -> None:
        """Let paho work, then tell the handler. An exception of the handler's ends `run`."""
        if self._ended.done():
            return
        try:
            work()
        except Exception as error:  # paho 2.1 raises what it can't parse
            log.debug("paho failed", exc_info=True)
            self._end(f"cannot read the broker's packet: {error!r}")
        try:
            self._deliver()
        except Exception as error:
            if not self._ended.done():
                self._ended.set_exception(error)

    def _deliver(self) -> None:
        if self._ended_at is not None:
            self._received.clear()  # whoever is connected now, or serves instead of us, has them again
        if self._subacked:
            self._subacked = False
            self._tell_subscriptions()
        if self._received and self.ready:  # before the PUBACKs: what the broker had before ours came before them
            messages, self._received = self._received, []
            self._handler.received(messages)
        if self._acks:
            acks, self._acks = self._acks, []
            self._handler.published(acks)
        if self._proved is not None and self.alive:
            proved, self._proved = self._proved, None
            self._handler.proved(proved)
        if self._ended_at is not None and not self._ended.done():
            self._ended.set_result(None)

    @property
    def _filters(self) -> tuple[str, ...]:
        return (*self._config.subscriptions, *self._config.replayed)

    def _become_ready(self) -> None:
        self.ready = True
        version, session = VERSIONS[self.protocol], "resumed" if self._session_present else "new"
        log.info("connected to %s (MQTT %s, %s session)", self._config.address, version, session)
        if not self.retains:
            log.warning(
                "%s keeps no retained messages: states reach only those who are subscribed when they change, and who "
                "comes later sees none; %s",
                self._config.address,
                ADVICE[NO_RETAIN],
            )
        if self._early_drops:
            log.warning("%d messages with QoS 0 came before there was room for them; dropped", self._early_drops)
        self._handler.connected(session_present=self._session_present, version=version)

    def _tell_subscriptions(self) -> None:
        """All at once with the first SUBACK; later ones are answers to what was refused, or given up meanwhile."""
        if not self.ready:
            self._become_ready()
        self._handler.subscribed(dict(self._codes))

    def _finish(self, reason: str) -> None:
        self._end(reason)
        self._deliver()

    def _end(self, reason: str, code: int = UNKNOWN) -> None:
        """Note the end; the first reason is the cause."""
        if self._ended_at is None:
            self._ended_at = self._loop.time()
            self.reason, self.code = reason, code

    # -- paho's callbacks

    def _on_connect(self, _c: Any, _u: Any, flags: Any, reason: ReasonCode, properties: Properties | None) -> None:
        self.unanswered = False
        if reason.is_failure:
            advice = ADVICE.get(reason.value, "look into the broker's log")
            self._end(f"the broker refused the connection: {reason}; {advice}", reason.value)
            return
        self._accepted_at = self._loop.time()
        self._session_present = flags.session_present
        self._window = min(self._window, getattr(properties, "ReceiveMaximum", 65535))
        self.max_packet = getattr(properties, "MaximumPacketSize", MAX_PACKET)
        # paho 2.1 ignores the server's keepalive; 2.2 takes it even when it is none, and would never find a dead link.
        ours = self._config.keepalive_s
        self._client._keepalive = min(ours, getattr(properties, "ServerKeepAlive", ours) or ours)
        self.retains = bool(getattr(properties, "RetainAvailable", 1))
        if self._probe:
            self._client.disconnect()
        elif getattr(properties, "MaximumQoS", 2) == 0:
            self._end(f"the broker takes only QoS 0: {ADVICE[NO_QOS]}", NO_QOS)
        elif not self._filters:
            self._subacked = True
        else:
            self._subscribe(self._filters)

    def _subscribe(self, filters: Iterable[str]) -> None:
        wanted = tuple(filters)
        commands = set(self._config.subscriptions)
        if self.protocol == V5:
            always = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True, retainHandling=1)
            present = SubscribeOptions(qos=0, noLocal=True, retainAsPublished=False, retainHandling=0)
            _, mid = self._client.subscribe([(each, always if each in commands else present) for each in wanted])
        else:
            _, mid = self._client.subscribe([(each, int(each in commands)) for each in wanted])
        if mid is None:
            return  # the connection has just ended
        self._asked[mid], self._asked_at = wanted, self._loop.time()
        self._codes |= dict.fromkeys(wanted)

    def _on_subscribe(self, _c: Any, _u: Any, mid: int, reasons: list[ReasonCode], _p: Any) -> None:
        asked = self._asked.pop(mid, ())
        for topic_filter, reason in zip_longest(asked, reasons[: len(asked)]):
            if topic_filter in self._codes:  # else it was given up meanwhile
                self._codes[topic_filter] = REFUSED if reason is None else reason.value
        refused = {each: code for each, code in self._codes.items() if code is not None and code >= REFUSED}
        for topic_filter in set(asked) & set(refused):
            log.error(
                "the broker refused the subscription to %s (%#x): allow it in its ACL",
                topic_filter,
                refused[topic_filter],
            )
        if any(self._codes.get(each) == 0 for each in self._config.subscriptions if each in asked):
            log.warning("the broker grants only QoS 0 for commands: what is published while we are away is lost")
        first, longest = self._config.resubscribe_s
        if not refused:
            self._subscribe_at, self._subscribe_delay = math.inf, first
        elif not self._asked:
            self._subscribe_at = self._loop.time() + self._subscribe_delay
            self._subscribe_delay = min(2 * self._subscribe_delay, longest)
        self._subacked = True

    def _on_unsubscribe(self, _c: Any, _u: Any, _mid: int, reasons: list[ReasonCode], _p: Any) -> None:
        if refused := [reason for reason in reasons if reason.is_failure]:
            log.warning("the broker refuses to end the subscription to commands: %s", refused[0])

    def _on_publish(self, _c: Any, _u: Any, mid: int, reason: ReasonCode, _p: Any) -> None:
        self._in_flight -= 1
        if self._tracked is not None and self._tracked[0] == mid:
            self._note_proof(self._tracked[1])
            self._tracked = None
        self.acked += 1
        self._awaiting_since = self._loop.time() if self._in_flight else None
        self._acks.append((self.number << 16 | mid, reason.value))

    def _on_pong(self, sent_at: float) -> None:
        self._note_proof(sent_at)

    def _note_proof(self, sent_at: float) -> None:
        self._proved = sent_at if self._proved is None else max(self._proved, sent_at)

    def _on_message(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            log.warning("ignored a message whose topic is not UTF-8")
            self._client.ack(message.mid, message.qos)
            return
        log.debug("< %s (%d bytes)", topic, len(message.payload))
        full = len(self._received) >= EARLY or self._bytes_in >= EARLY_BYTES
        if full and not self.ready and not message.qos:
            self._early_drops += 1
            return
        self._bytes_in += len(message.payload)
        self._received.append(
            Incoming(
                topic=topic,
                payload=bytes(message.payload),
                retain=message.retain,
                dup=message.dup,
                response_topic=getattr(message.properties, "ResponseTopic", None),
                correlation=getattr(message.properties, "CorrelationData", None),
                mid=message.mid,
                connection=self.number,
            )
        )

    def _want_write(self, _c: Any, _u: Any, _socket: Any) -> None:
        self._loop.call_soon(self._on_writable)  # a socket is nearly always writable: no need to ask the selector

    def _written(self, _c: Any, _u: Any, _socket: Any) -> None:
        if self._fd >= 0:  # paho asks once more when it is collected
            self._loop.remove_writer(self._fd)

    def _on_disconnect(self, _c: Any, _u: Any, flags: Any, reason: ReasonCode, _p: Any) -> None:
        detail = str(reason)
        if flags.is_disconnect_packet_from_server:
            if packet := self._client._in_packet["packet"]:  # paho 2.1 overlooks a reason without properties
                reason = ReasonCode(PacketTypes.DISCONNECT, identifier=packet[0])
            detail = f"{reason}, says the broker"
            self.closed = reason.value not in UNRELATED
            self.closed_cleanly = reason.value in UNEXPLAINED
        elif reason.value == 0x80:
            detail = self._client.broken or self._client.last_error or "closed by the broker"
            self.closed = bool(self._client.hung_up or self._client.broken)
            self.closed_cleanly = self._client.hung_up and not self._client.broken
        self._end(f"connection ended: {detail}", reason.value)


class _Client(paho.Client):
    """paho, without its loss of a packet that a websocket took only in part, and without much of its cost for each
    packet: it reads byte by byte, writes packet by packet, and makes objects of every empty PUBACK.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.last_error = ""
        self.pings: deque[float] = deque()
        "When the PINGREQs left that are not answered."
        self.on_pong: Callable[[float], None] = lambda _: None
        self.broken = ""
        "How the other side broke the connection: what it said before may still be read."
        self.hung_up = False
        "The end of what it said was read."
        self._unread = b""
        self._at = 0

    @property
    def unread(self) -> int:
        return len(self._unread) - self._at

    def join_packets(self) -> None:
        """Make one write of all that waits, where paho does nothing after writing it: PUBLISH and PUBACK."""
        queue = self._out_packet
        if len(queue) > 1 and self._transport != "websockets" and all(packet["qos"] == 1 for packet in queue):
            joined = b"".join(packet["packet"][packet["pos"] :] for packet in queue)
            first = queue[0]
            queue.clear()
            first["packet"], first["pos"], first["to_process"] = joined, 0, len(joined)
            queue.append(first)

    def _sock_recv(self, bufsize: int) -> bytes:
        at = self._at
        if at == len(self._unread):
            try:
                self._unread = super()._sock_recv(65536)
            except (ConnectionResetError, BrokenPipeError) as error:
                self.broken = str(error)
                raise
            self.hung_up = not self._unread
            at = 0
        self._at = at + bufsize
        taken = self._unread[at : self._at]
        self._at = at + len(taken)
        return taken

    def _sock_send(self, buf: bytes | bytearray) -> int:
        if self.broken:
            raise BlockingIOError
        try:
            sent = super()._sock_send(buf)
        except (ConnectionResetError, BrokenPipeError) as error:
            self.broken = str(error)
            raise BlockingIOError from None
        if not sent and buf:  # the websocket keeps the rest, and wants the same packet again
            raise BlockingIOError
        return sent

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        if len(packet) == 2 and cmd == "PUBACK":
            mid = packet[0] << 8 | packet[1]
            if mid in self._out_messages:
                return self._do_on_publish(mid, _SUCCESS, _NONE)
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._handle_pubackcomp(cmd)

    def ping(self) -> None:
        """Send a PINGREQ."""
        self._send_pingreq()

    def _send_pingreq(self) -> MQTTErrorCode:
        self.pings.append(time.monotonic())
        return super()._send_pingreq()

    def _handle_pingresp(self) -> MQTTErrorCode:
        code = super()._handle_pingresp()
        if self.pings:
            self.on_pong(self.pings.popleft())
        return code

    def _easy_log(self, level: Any, fmt: str, *args: Any) -> None:
        if level == paho.MQTT_LOG_ERR:
            self.last_error = fmt % args


_SUCCESS = ReasonCode(PacketTypes.PUBACK)
_NONE = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


class _TlsContext(ssl.SSLContext):
    """Verifies the broker by `server_name`; paho only knows the host it connects to."""

    server_name: str | None = None

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        if self.server_name is not None:
            options["server_hostname"] = self.server_name
        return super().wrap_socket(*args, **options)


class _Packed(Properties):
    """Packed once: paho's own walks all known properties at every publish."""

    packed: bytes

    def __init__(self, properties: Properties) -> None:
        object.__setattr__(self, "packed", properties.pack())  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        return self.packed


def _properties(packet_type: int, publication: Publication | None = None, **values: object) -> Properties:
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    if publication is not None:
        values |= {"PayloadFormatIndicator": 1, "ContentType": publication.content_type}
        if publication.expiry_s is not None:
            values["MessageExpiryInterval"] = publication.expiry_s
        if publication.schema is not None:
            values["UserProperty"] = ("schema", publication.schema)
        if publication.correlation is not None:
            values["CorrelationData"] = publication.correlation
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def _publish_properties(publication: Publication) -> _Packed:
    if publication.correlation is not None:
        return _Packed(_properties(PacketTypes.PUBLISH, publication))
    return _common_properties(publication.expiry_s, publication.schema, publication.content_type)


@functools.lru_cache(maxsize=256)
def _common_properties(expiry_s: int | None, schema: str | None, content_type: str) -> _Packed:
    common = Publication("", b"", expiry_s=expiry_s, schema=schema, content_type=content_type)
    return _Packed(_properties(PacketTypes.PUBLISH, common))


def _without_retained_will(config: LinkConfig) -> LinkConfig:
    return config if config.will is None else replace(config, will=config.will._replace(retain=False))


def tls_context(config: LinkConfig) -> ssl.SSLContext:
    """What the configuration says of certificates. Raises OSError that names the file."""
    context = _TlsContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = config.server_name
    try:
        if config.ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(config.ca_file)
    except OSError as error:  # which doesn't say what file
        raise OSError(f"mqtt.ca_file {config.ca_file}: {error}") from None
    try:
        if config.cert_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file, password="")  # or it asks on the terminal
    except OSError as error:
        raise OSError(f"mqtt.cert_file {config.cert_file}, mqtt.key_file {config.key_file}: {error}") from None
    return context


def _explain(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message}; check mqtt.ca_file and mqtt.server_name"
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLError):
        return f"{text}; does the broker speak TLS on this port? check mqtt.url"
    if isinstance(error, socket.gaierror):
        return f"{text}; check the host in mqtt.url, and the name server"
    if isinstance(error, TimeoutError):
        return f"{text}; check mqtt.url, the network and the firewall between"
    if isinstance(error, OSError):
        return f"{text}; is a broker running there? check mqtt.url"
    return text


def _in_thread(work: Callable[[], None], abandoned: Callable[[], None]) -> asyncio.Future[None]:
    """Run `work` in a daemon thread, so that a name server without answer doesn't hold up our exit as an executor's
    thread would. When it ends after its future was cancelled, `abandoned` is called.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if done.done():
            abandoned()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def report(error: Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, error)

    def run() -> None:
        try:
            work()
        except Exception as error:  # for whoever awaits
            report(error)
        else:
            report(None)

    threading.Thread(target=run, name="mqtt-connect", daemon=True).start()
    return done
