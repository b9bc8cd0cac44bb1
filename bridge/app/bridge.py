"""The service: one event loop, one choke point.

Every input (datagrams, commands, PUBACKs, time) ends in `Bridge.pump`, and its order is the reliability argument:
commit first, then answer the gateways and the broker, then publish.
"""

import asyncio
import contextlib
import dataclasses
import errno
import itertools
import logging
import math
import os
import random
import re
import secrets
import socket
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from ..config.settings import BrokerUrl, HomeAssistantSettings, Settings
from ..contract import commands, payloads
from ..contract.commands import Code
from ..contract.numbers import mask_all
from ..contract.topics import Topics
from ..features.admission import SELFTEST_BUSY, Admission, Answers, receiver_number
from ..features.batch import Batch, Order, Run
from ..features.chores import PAUSE_S, PIECE_S, Chore, Deaths, Left
from ..features.ledger import Ledger, address_text
from ..features.limits import Gate, Limiter, Tokens
from ..features.line_moves import Moves
from ..features.operations import operation
from ..features.pruning import Pruning
from ..features.unauthorized import Strangers
from ..goip import events, wire
from ..goip.box import MOST_NUMBERS
from ..goip.events import Address
from ..goip.line import Line, Submitted
from ..goip.server import NOT_AUTHENTICATED, LineConfig, LineMemory, SmsServer
from ..goip.session import Recipient
from ..goip.timing import Timing
from ..homeassistant.documents import Hardware
from ..mqtt.link import REFUSED, TWIN_ADVICE, Incoming, LinkConfig, MqttLink, Publication
from ..mqtt.publisher import NO_SUBSCRIBER, PACKET_TOO_LARGE, Item, Publisher
from ..retained.discovery import APART_S, Discovery
from ..retained.recent import Recent
from ..retained.topics import Board
from ..store.database import OutboxRow, SmsRow, Store, StoreError
from ..system import holders
from ..system.clock import Clock, SteadyTime
from ..system.udp import UdpSocket, plain
from .election import ANSWER_S, Authority, Election, Role

log = logging.getLogger(__name__)

_OUTLINE = re.compile(rb"(?:[A-Za-z][A-Za-z0-9_]{0,31}:|[A-Za-z_]{2,32} )-?[0-9]{1,19}(?![^; \r\n])")
"How datagrams of the protocol begin."
MAX_SENDID = 2**31 - 1
SENDID_BLOCK = 1000
HELD_DATAGRAMS = 10_000
HELD_BYTES = 32 << 20
"Datagrams, and their bytes, kept in memory while the store can't be written."
STATE_DELAY_S = 0.1
"Changes of a line's state within this time are published once."
ANNOUNCED = "announced"
"In the store: the topics of discovery documents that the broker may have."
NAMED_LINES = "lines"
"In the store: the lines of which something retained may speak."
SAVE_LINES_S = 600.0
"Within this time the last keepalive of every line is written down."
COMMANDS, COMMAND_BYTES = 256, 256 << 10
"Commands, and their payloads, that are taken at once."
BACKLOG, BACKLOG_BYTES = 1000, 2 << 20
"With so many commands in memory, or so much of them, little is read from the broker until half of it is worked off."
MOST_COMMANDS, MOST_COMMAND_BYTES = 4 * BACKLOG, 4 * BACKLOG_BYTES
"With so many, further ones with QoS 0 are dropped; of the others brokers send few ahead of their acknowledgement."
DROPS_LOGGED = 30
"Dropped datagrams that are logged in a minute: one for each host and reason, and no more in all."
DROPS_DEBUGGED_PER_S = 20.0
LOGGED_A_MINUTE = 60
"Of what may happen again and again, such as refused commands: each once, and no more in all."
SERVING_SINCE = "serving_since"
"In the store: since when this bridge serves its base topic, as `bridge.app.election.Election.kept` says it."
RIVAL = "rival"
"In the store: the other bridge that was heard of last."
STEADY = "steady"
"In the store: what `bridge.system.clock.SteadyTime` goes on from."
WAITING_S = 2.0
"A bridge that is connected for so long, and not active, says why."
ALIVE_S = 10.0
"How often the store is told that we are alive."
GIVES_UP_S = 12.0
"A gateway offers an SMS for 9 to 12 s (docs/protocol.md §6): a longer absence may have lost some."
FED_AT_ONCE = 50
"Lines that are given their next SMS in one turn."
LATE_OUTCOMES = 1000
"SMS of a line that became unknown lately, and for which answers are still taken after a restart."
DOUBTED_AT_ONCE = 500
"SMS of a restored store in one transaction."
HASTENED_AT_ONCE = 2000
"Numbers of SMS that are looked at in one transaction when time has passed uncounted."
HASTENING = "hastening"
"In the store, while that is going on: by how many seconds, after which number, up to which."
STALL_RETRY_S = 1.0
LATE_S = 1.0
"A commit that takes longer counts for what waits for answers."
ASLEEP_S = 3.0
"Without regular work for so long, nobody read the socket either."
MOST_WAITING = 100_000
"Datagrams taken at once from an inherited socket: its buffer has room for fewer, but more may come meanwhile."
SHUTDOWN_S = 8.0
"For everything at the end but the embedded broker: after 9 s the supervisor kills us (bridge/process/supervisor.py)."
DRAIN_S = 5.0
"Of these, for gateways to tell what became of the SMS they have: one takes 2 to 5 s (docs/protocol.md §4.2)."
HAND_OVER_S = 5.0
"And for the broker to acknowledge what is ready."


class Listener(Protocol):
    """What shows the bridge to people and to Prometheus. It is told nothing: it looks."""

    async def start(self) -> None:
        """Begin to serve."""

    async def close(self) -> None:
        """End every connection."""


class Bridge:
    """One instance of the bridge. Implements `bridge.mqtt.link.Handler`."""

    def __init__(
        self, settings: Settings, store: Store, reload: Callable[[], Settings], clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        self.settings = settings
        self.store = store
        self.steady = SteadyTime(self.clock, store.get(STEADY), store.last_sms())
        self.run_info = Run(self.clock.time(), self.steady.time())
        self.topics = Topics(settings.base_topic)
        self.instance = settings.instance or _kept_instance(store)
        self._reload_settings = reload
        now = self.clock.monotonic()
        first = _first_sendid(store, self.clock)
        self.server = SmsServer(_line_configs(settings), _timing(settings), next_sendid=first, now=now)
        self.publisher = Publisher(store, self.clock.time, self.topics)
        self.board = Board(
            self.run_info,
            self.instance,
            settings,
            store,
            self.server,
            self.topics,
            self.publisher,
            self.clock,
            self.steady,
        )
        announced = orjson.loads(store.get(ANNOUNCED) or "[]")
        self.discovery = Discovery(
            self.instance, settings, self.topics, self.publisher, self.clock, announced, self._hardware
        )
        self.answers = Answers(store, self.topics, self.server)
        self.admission = Admission(store, settings, self.topics, self.server, self.answers, self.board.summaries)
        self.ledger = Ledger(store, settings, self.topics, self.answers, self.server, now)
        self.mqtt_version = settings.mqtt.version
        "For a broker that knows only one, whatever is configured."
        self.link: MqttLink | None = None
        self.udp: UdpSocket | None = None
        self.http_address: Address | None = None
        "Where browsers find the status page."
        self.recent = Recent() if settings.http.listen is not None else None
        "What only the HTTP listener tells."
        self._backlog: deque[Incoming] = deque()
        "Commands that came and have not had their turn; `bridge.app.election` says whether they may have it."
        self._dropped = 0
        "Commands that another bridge may have carried out, and that are not carried out here; to be told."
        self._listening = True
        "Commands are subscribed to."
        self._looking = False
        "Connected, and what the broker has on our own topics is not heard yet; or it could not be kept."
        self._taking = False
        "The rest of the backlog has its turn in the event loop: more commands wait behind it."
        self._overflow = 0
        "Commands with QoS 0 for which there was no room; to be logged."
        self._paused = False
        "Little is read from the broker."
        self._inbox: list[Incoming] = []
        self._poison: list[Incoming] = []
        "Commands that made us fail."
        self._events: list[events.Event] = []
        self._notices: list[dict[str, object]] = []
        self._writes: list[Callable[[Batch], None]] = []
        """What else is to be written with the next commit. Each runs inside the transaction, and may run twice, as a
        transaction that failed is thrown away."""
        self._held: dict[tuple[bytes, Address], None] = {}
        self._held_bytes = 0
        self._held_back: list[tuple[bytes, Address]] = []
        self._stalled = False
        self._stalled_at = now
        self._reload_asked = False
        "By SIGHUP."
        self._going_on = False
        "The gateways were asked about what was under way before the restart; until then nothing new is sent."
        self.can_restart = False
        self.make_listener: MakeListener | None = None
        "Makes the HTTP listener, where `http.listen` asks for one."
        "Something starts the process again when it ends."
        self.restart_asked = False
        "The process is to be started again."
        self._asked_to_stop: asyncio.Event | None = None
        self._stopping = False
        self._handed_over: asyncio.Event | None = None
        "While stopping: set when the broker has everything it can have."
        self._fault: Exception | None = None
        "What ends the service: the first exception that nobody caught."
        self._faulty = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._states_timer: asyncio.TimerHandle | None = None
        self._save_from = 0
        self._sendids_reserved = 0
        self._alive = math.inf
        "When the store was told last that we are alive."
        self._gate = Gate(lambda: (line.address for line in self.server.lines))
        self._drops = Limiter(total=DROPS_LOGGED, period=60.0)
        self._drops_debugged = Tokens(DROPS_DEBUGGED_PER_S)
        self._limiter = Limiter()
        self._said_often = Limiter(total=LOGGED_A_MINUTE, period=60.0)
        self._mqtt = payloads.MqttInfo(version=None, session_present=False)
        self._connections = 0
        self._subscriptions: dict[str, int | None] = {}
        "What the broker answered to each."
        self._own_topics = tuple(self.topics.bridge(name) for name in ("availability", "info", "health"))
        since = store.get(SERVING_SINCE)
        rival = store.get(RIVAL) or ""
        self.election = Election(self.instance, payloads.timestamp(self.run_info.started), since, rival)
        self._saved_role = since, rival
        self._waits_since: float | None = None
        "Connected, and not active yet: since when."
        self._fenced = self.election.yielded
        "Another bridge may be at work in our place: nothing new is sent."
        self._stall_drops = 0
        self._ticked = now
        "When the regular work was done last."
        self._asleep = self.clock.boottime() - now
        "How long the machine slept since its start."
        self._lag = 0.0
        self._lag_before = 0.0
        "The longest time that the program could not react: in this minute, and in the one before."
        self._vanishing: dict[str, float] = {}
        "Lines that are no longer configured: when their retained topics are to go."
        self._emptied: set[str] = set()
        "Those whose topics are on their way out."
        self._saved: tuple[list[str], list[str]] = [], []
        "What the store knows of the retained topics: discovery documents, and lines."
        self._strangers = Strangers()
        self._moves = Moves()
        self._retry: asyncio.TimerHandle | None = None
        self._deaths = Deaths(store.path.with_name(f"{store.path.name}-work"), self.clock, self.steady.time())
        every_second = {
            "SMS that get older": self._hasten,
            **{chore.name: self._doing(chore) for chore in self.ledger.chores},
            "progress of jobs": self._publish_jobs,
            "Home Assistant's devices": self._announce,
            "lines that have something to send": self._feed_hungry,
        }
        every_minute = {
            **{chore.name: self._doing(chore) for chore in Pruning(store, self.topics, self.clock).chores},
            "states of lines": self.board.publish_last_seen,
        }
        self._work_of = every_second | every_minute
        "By name: regular work. Each does a piece of so many rows, and returns whether there is more."
        self._every_second, self._every_minute = list(every_second), list(every_minute)
        self._to_do: dict[str, None] = {}
        "What of it may have something to do, the next first."
        self._work_timer: asyncio.TimerHandle | None = None
        self._hungry: dict[str, None] = {}
        "Lines that may have something to send, and were not looked at yet."
        self._hastening: list[Any] = orjson.loads(store.get(HASTENING) or "[]")
        "Seconds, after which number, up to which: SMS are getting older by a step of the clock."
        self._restore(now)

    def _hardware(self, line: str) -> Hardware:
        """What is known of a line's gateway and module."""
        known = self.server.line(line)
        if known is None:
            return Hardware(None, None)
        imei = wire.value(known.fields.get("imei") or known.told.get("imei"))
        return Hardware(known.address[0] if known.address else None, imei)

    # -- life

    async def run(
        self,
        stop: asyncio.Event,
        broker: BrokerUrl,
        inherited: socket.socket | None = None,
        serving: Callable[[UdpSocket], None] = lambda _: None,
    ) -> None:
        """Serve until `stop` is set, on an inherited UDP socket if there is one; `serving` is told which.

        Raises PortUnusable, and whatever is a bug.
        """
        self._asked_to_stop = stop
        async with contextlib.AsyncExitStack() as opened:
            self.udp = self._open_udp(inherited)
            opened.callback(self.udp.close)
            web = self._open_http()
            if web is not None:
                opened.callback(web.close)
            try:
                await self._serve(self.udp, web, broker, serving, opened)
            except Exception as error:
                self._fail(error)
        if self._fault is not None:
            raise self._fault

    async def _serve(
        self,
        udp: UdpSocket,
        web: socket.socket | None,
        broker: BrokerUrl,
        serving: Callable[[UdpSocket], None],
        opened: contextlib.AsyncExitStack,
    ) -> None:
        """From the first datagram to the farewell; what is begun here ends with `opened`."""
        assert self._asked_to_stop is not None
        if udp.inherited:
            self._take_what_waits(udp)
        else:
            self.server.deaf = (self.clock.monotonic(),) * 2  # nothing waited in it
        self._go_on()
        udp.start()
        where, count = address_text(udp.address), len(self.settings.lines)
        log.info("listening for gateways on udp %s, %d lines configured", where, count)
        self.link = self.publisher.link = self._open_link(broker)
        tasks = [
            asyncio.create_task(self.link.run(), name="mqtt"),
            asyncio.create_task(self._every(1.0, self._second), name="second"),
            asyncio.create_task(self._every(60.0, self._minute), name="minute"),
            asyncio.create_task(self._asked_to_stop.wait(), name="stop"),
            asyncio.create_task(self._faulty.wait(), name="fault"),
        ]
        opened.push_async_callback(self._end, tasks)
        self._publish_bridge()
        self._work_soon(*self._every_minute)  # also where no run lasts for a minute
        self.pump()
        if web is not None:
            assert self.recent is not None
            assert self.make_listener is not None, "whoever makes a bridge with `http.listen` says how it is shown"
            http = self.make_listener(self, self.recent, web)
            opened.push_async_callback(http.close)
            await http.start()
            self.http_address = web.getsockname()[:2]
        serving(udp)
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._fault is None and not any(task.exception() for task in ended):
            await self._shut_down()

    async def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        """End them, and the timers; an exception in a task, also at the very end, is a fault of the service."""
        for task in tasks:
            task.cancel()
        for timer in (self._timer, self._states_timer, self._work_timer, self._retry):
            if timer is not None:
                timer.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                self._fail(ended)

    def _open_udp(self, inherited: socket.socket | None) -> UdpSocket:
        wanted, received = self.settings.udp, self._guarded(self.datagrams_received)
        if inherited is None:
            try:
                return UdpSocket.bind(wanted.host, wanted.port, received)
            except OSError as error:
                holder = _holder(error, "udp", wanted.host, wanted.port)
                message = f"cannot listen on udp {wanted.listen}: {error.strerror}{holder}"
                raise PortUnusable(message, "udp.listen") from None
        udp = UdpSocket(inherited, received, inherited=True)
        if not udp.listens_on(wanted.host, wanted.port):
            log.warning(
                "udp.listen is %s, but the UDP socket that is kept for us listens on %s; to change that, restart "
                "what keeps it: the whole of goip-bridge, or its .socket unit of systemd",
                wanted.listen,
                address_text(udp.address),
            )
        return udp

    def _open_http(self) -> socket.socket | None:
        """Only the port: whether it can be had is known before anything begins."""
        wanted = self.settings.http
        if wanted.host is None or wanted.port is None:
            return None
        try:
            family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
            dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
            return socket.create_server((wanted.host, wanted.port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            what = error.strerror
            if error.errno is not None and error.errno > 0:  # else the name is not known
                what = os.strerror(error.errno)  # `strerror` names the port again
            message = f"cannot listen on tcp {wanted.listen}: {what}{_holder(error, 'tcp', wanted.host, wanted.port)}"
            if self.udp is None or not self.udp.inherited:
                raise PortUnusable(message, "http.listen") from None
            log.error("%s; going on without status page and metrics, since there are lines to be served", message)
            return None

    def _take_what_waits(self, udp: UdpSocket) -> None:
        """All that gateways sent while nobody listened, at once: nothing leaves that it would have changed."""
        waiting: list[tuple[bytes, Address]] = []
        while len(waiting) < MOST_WAITING and (batch := udp.drain()):
            waiting += batch
        if waiting:
            log.info("%d datagrams waited in the UDP socket", len(waiting))
            self.datagrams_received(waiting)

    def _open_link(self, broker: BrokerUrl) -> MqttLink:
        return MqttLink(_link_config(self, broker), self)

    async def _shut_down(self) -> None:
        """Take nothing more, hear of the last SMS, hand over what is ready, say goodbye."""
        assert self.link is not None
        loop = asyncio.get_running_loop()
        end = loop.time() + SHUTDOWN_S
        self._stopping = True
        log.info("stopping")
        if self.server.awaits_outcomes:
            log.info("gateways have SMS whose outcome is not known yet: waiting for it for up to %.0f s", DRAIN_S)
        if self._timer is not None:
            self._timer.cancel()
        await self._hear_outcomes()
        self._save_lines(self.server.lines)
        self._empty_topics(math.inf)
        if self.election.role is Role.SERVING:
            self.publisher.say_goodbye()
        self.publisher.drain(self.clock.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                if self.link.connected and not self.publisher.idle:
                    self._handed_over = asyncio.Event()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._handed_over.wait(), min(HAND_OVER_S, end - loop.time() - 1.0))
                # Whoever did not hear our farewell shall hear the last will.
                standing_by = self.election.role is Role.STANDING_BY
                await self.link.disconnect(clean=self.publisher.said_goodbye or standing_by)
        self._empty_topics(math.inf)
        if self._stalled:
            self._try_again()
        self.pump()
        self._commit([], None)  # what the broker acknowledged last
        self._save_announced()

    async def _hear_outcomes(self) -> None:
        """Begin and submit nothing more; wait for what became of the numbers that gateways have."""
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_S
        self.server.wind_down(self.clock.monotonic())
        self.pump()
        while self.server.awaits_outcomes and not self._stalled and loop.time() < end:
            await asyncio.sleep(0.02)
            self._on_timer()

    def _guarded(self, callback: Callable[..., object]) -> Callable[..., None]:
        """asyncio only logs what a callback raises; here it ends the service, also one that has yet to begin."""

        def call(*arguments: object) -> None:
            try:
                callback(*arguments)
            except Exception as error:
                self._fail(error)

        return call

    def _fail(self, error: Exception) -> None:
        """End the service with this exception, or log it when another one does already."""
        if self._fault is None:
            self._fault = error
            self._faulty.set()
        else:
            log.error("another fault while the bridge ends with %r", self._fault, exc_info=error)

    def _restore(self, now: float) -> None:
        """Go on where the last run ended."""
        at = self.steady.time()
        self._remember_lines(set(self.settings.lines), math.inf)
        heard = dict(self.store.lines())
        named = orjson.loads(self.store.get(NAMED_LINES) or "[]")
        for name in {*heard, *named, *self.store.queued_lines()} - set(self.settings.lines):
            self._take_away(name)
        self._writes.append(self._write_announced)  # with the first fact that brings about a retained topic
        batch = self._batch()
        self._alive_before = self.store.get("alive") or 0.0
        self.server.deaf = now - max(0.0, at - self._alive_before) - self.steady.off, now
        self._drops_before = self.store.get("drops") or 0
        self._socket_before = self.store.get("socket")
        hold_until = self.store.get("hold_until") or 0.0
        if self.store.restored:
            hold_until = at + self.settings.timing.restored_hold_s
        if at < hold_until <= at + self.settings.timing.restored_hold_s:  # else it is of another machine
            self.server.hold(now + hold_until - at)
        if self.store.restored:
            self._doubt()

        def answer_open_commands(batch: Batch) -> None:
            for command in self.store.open_commands():
                message = "The bridge was restarted before the gateway answered. It may have done it all the same."
                self.answers.give(batch, command, "gateway_timeout", message, {})

        try:
            with self.store.transaction():
                if self.store.restored:
                    self.store.put("hold_until", hold_until)
                    self.ledger.doubted(batch)
                    self.store.advance_epoch()
                answer_open_commands(batch)
                self._write(batch, [])
        except StoreError as error:
            if self.store.restored:
                raise  # what waits in it must be known to be doubtful before anything else
            self._writes.append(answer_open_commands)
            self._stall(error)
        else:
            if self.store.restored:
                self.store.witness_epoch()
            self._take_effect(batch)
        self.discovery.look_at(heard)
        self._remember_sessions(set(self.settings.lines))
        for left in self._deaths.left(at):
            self._tell_left(left, at)

    def _doubt(self) -> None:
        """What waits in a store that was put back may have been sent since. It is restored until all of that is
        written: should we be killed, the next run goes on.
        """
        while True:
            batch = self._batch()
            with self.store.transaction():
                count = self.ledger.doubt(batch, DOUBTED_AT_ONCE)
                self._write(batch, [])
            self._take_effect(batch)
            if count == 0:
                return

    def _tell_left(self, left: Left, at: float) -> None:
        until = payloads.timestamp(self.clock.time() + left.until - at)
        message = (
            f"The bridge was killed or failed {left.deaths} times in a row while it handled {left.name}. That is left "
            f"until {until}, and then done in the smallest pieces; everything else goes on. Please report it, with the "
            "log."
        )
        log.error("%s", message)
        self._notices.append({"event_type": "work_left", "message": message, "count": left.deaths, "to": until})

    def _remember_lines(self, names: set[str], began: float) -> None:
        """Where these lines were, what is proved of their firmware, and which of their events are known: they may have
        been configured before.

        What was seen before this run `began` is older by the time that the machine was off. At the start that is
        everything: after a power failure steady time goes on from its last sign of life, up to 10 s before that.
        """
        now, at = self.clock.monotonic(), self.steady.time()
        if not names:
            return  # there may be many events, and most reloads bring no line
        for name, proof in self.store.proofs():
            if name in names:
                self.server.restore_proof(name, proof)
        for name, memory in self.store.lines():
            if name in names:  # an older version kept addresses as an IPv6 socket has them
                self.server.restore_line(name, dataclasses.replace(memory, address=plain(memory.address)))
        for key, name, seen in self.store.repeats(at - self.server.timing.repeats):
            if name in names:
                off = self.steady.off if seen < began else 0.0
                self.server.restore_repeat(name, key, now - max(0.0, at - seen) - off)

    def _remember_sessions(self, names: set[str]) -> None:
        """Outcomes of what these lines were given to send may still come."""
        now, at = self.clock.monotonic(), self.steady.time()
        since = at - self.server.timing.evidence
        pages = [
            page(line, since, LATE_OUTCOMES) for line in names for page in (self.store.unknown, self.store.given_back)
        ]
        for row in itertools.chain(self.store.sending(), *pages):
            if row.line in names and (submitted := self._submitted(row, now, at)):
                self.server.restore_session(row.line, submitted, now)

    def _submitted(self, row: SmsRow, now: float, at: float) -> Submitted | None:
        if row.sendid is None or row.telid is None:
            return None
        began = now - max(0.0, at - row.changed) - self.steady.off
        heard = now - max(0.0, at - max(row.changed, self._alive_before)) - self.steady.off
        expires = None if row.expires is None else now + row.expires - at - self.steady.off
        recipient = Recipient(row.n, row.number, row.guarantee != "at_most_once", expires)
        return Submitted(row.sendid, row.telid, recipient, began, heard)

    def _go_on(self) -> None:
        """Once everything that waited in the socket was read: ask what became of the SMS that were under way."""
        self._tell_gap()
        self._alive = -math.inf  # not before: should we die now, the next run must know since when nobody listened
        if not self._stalled:  # else once the store can be written (`_try_again`)
            self._ask_gateways()

    def _ask_gateways(self) -> None:
        """What became of the SMS that were under way; from here on new ones are sent."""
        self._going_on = True
        now, at = self.clock.monotonic(), self.steady.time()
        for row in self.store.sending():
            later = self.store.has_submitted(row.line, row.sendid or 0)
            if not later and (submitted := self._submitted(row, now, at)):  # else it would be sent out of its turn
                self.server.resume_session(row.line, submitted, now)
        self._feed_all()

    def _tell_gap(self) -> None:
        """Say when nobody listened: what gateways offered in that time may be lost."""
        gap = self.steady.time() - self._alive_before + self.steady.off
        if not self._alive_before or (gap < GIVES_UP_S and not self.steady.restarted):
            return
        wall = self.clock.time()
        held = self.udp is not None and self.udp.inherited and self.udp.identity == self._socket_before
        dropped = self.udp.kernel_drops - self._drops_before if held and self.udp is not None else None
        if dropped == 0:
            return  # all that gateways sent waited in the socket
        kept = "" if dropped is None else f" The UDP socket was held, but {dropped} datagrams found no room in it."
        self._notices.append(
            {
                "event_type": "outage_gap",
                "message": f"The bridge was not running.{kept} A gateway offers an SMS for about 12 s: what came in "
                "this time may be found only on the gateways' own inbox pages.",
                "from_": payloads.timestamp(wall - gap),
                "to": payloads.timestamp(wall),
            }
        )

    # -- input

    def datagrams_received(self, batch: list[tuple[bytes, Address]]) -> None:
        """Take a batch of datagrams."""
        if self._stalled:
            self._stalled_datagrams(batch)
            return
        now = self.clock.monotonic()
        if now - self._ticked > ASLEEP_S:
            self.server.deaf = self._ticked, now
        receive, gate = self.server.receive_datagram, self._gate
        debug = log.isEnabledFor(logging.DEBUG)
        for data, address in batch:
            if not gate.admits(address, now):
                continue
            dropped = receive(data, address, now)
            if dropped is not None:
                gate.refused(address, len(data), now)
                self._log_drop(data, address, dropped, now)
            elif debug:
                log.debug("< %s:%d %s", *address, _outline(data))
        self.pump()

    def _log_drop(self, data: bytes, address: Address, reason: str, now: float) -> None:
        """Strangers send as much as they like: few of their datagrams are logged, and none with its contents."""
        told = reason == NOT_AUTHENTICATED  # by `Strangers`, in better words
        if not told and (count := self._drops.admit((address[0], reason), now)) is not None:
            since = f" ({count - 1} more since this was logged last)" if count > 1 else ""
            log.warning("dropped %d bytes from %s:%d: %s%s", len(data), *address, reason, since)
        if log.isEnabledFor(logging.DEBUG) and self._drops_debugged.left(now):
            self._drops_debugged.spend(1)
            log.debug("< %s:%d %s: dropped, %s", *address, _outline(data), reason)

    def received(self, messages: list[Incoming]) -> None:
        """Take commands from the broker; one that is not committed is not acknowledged and comes again."""
        count, size = self._load()
        for message in messages:
            if self.discovery.takes(message.topic):
                self.discovery.heard(message.topic, message.payload, retain=message.retain)
                self._acknowledge(message)
            elif message.topic in self._own_topics:
                self._heard_of_ourselves(message)
                self._acknowledge(message)
            elif (count >= MOST_COMMANDS or size >= MOST_COMMAND_BYTES) and _may_be_lost(message):
                self._overflow += 1
            else:
                self._backlog.append(message)
                count, size = count + 1, size + len(message.payload)
        if not self._taking:
            self._take_commands()
        self._mind_the_load()

    def _load(self) -> tuple[int, int]:
        """Commands in memory that are not committed, and their bytes."""
        waiting = [*self._backlog, *self._inbox, *self._poison]
        return len(waiting), sum(len(message.payload) for message in waiting)

    def _mind_the_load(self) -> None:
        """Leave further commands in the broker's socket while there are many. Not while something has to be heard
        before they may be taken: it may be behind them.
        """
        count, size = self._load()
        full = count >= BACKLOG or size >= BACKLOG_BYTES
        empty = count <= BACKLOG // 2 and size <= BACKLOG_BYTES // 2
        takes = self.election.authority(self.clock.monotonic()) is Authority.TAKE
        pause = takes and (full or (self._paused and not empty))
        if pause != self._paused and self.link is not None:
            log.debug("reading from the broker %s, with %d commands", "pauses" if pause else "goes on", count)
            self._paused = pause
            self.link.pause(on=pause)

    def _tell_overflow(self) -> None:
        if self._overflow:
            log.warning(
                "%d commands that were published with QoS 0 found no room and were dropped: publish commands with "
                "QoS 1; the broker keeps these until they are taken",
                self._overflow,
            )
            self._overflow = 0

    def _heard_of_ourselves(self, message: Incoming) -> None:
        """What the broker has of us is not what we said: an old last will, or another bridge at our topics."""
        availability, info, _health = self._own_topics
        if message.topic == info:
            self._heard_of_others(message)
        elif message.topic != availability:
            if not message.retain:
                self.election.heard_of_other(self.clock.monotonic())
        elif message.payload == b"offline" and not self._stopping:
            if self.election.role is not Role.STANDING_BY:
                self.publisher.say_online_again()
            else:
                self._ask(resumed=False)

    def _heard_of_others(self, message: Incoming) -> None:
        if self._stopping:
            return  # no command is taken any more: whoever asks may serve
        before = self.election.role
        if self.election.hear(message.payload, self.clock.monotonic(), retain=message.retain):
            self._say_again()
            self._tell_rival("That one is on standby as long as this one is active")
        elif self.election.role is not before:
            self._stand_by()

    def _say_again(self) -> None:
        self._save_role()
        if self._stalled:
            self._looking = True  # when the disk is back
        else:
            self.publisher.say_again(self._own_topics[1])

    def _ask(self, *, resumed: bool) -> None:
        """Whether another bridge serves our base topic."""
        self._waits_since = self.clock.monotonic()
        self.election.ask(self.clock.monotonic(), resumed=resumed)
        self._doubt_a_broker_that_forgets()
        self._question()

    def _doubt_a_broker_that_forgets(self) -> None:
        """One that retains nothing can't tell of another bridge."""
        if self.link is not None and not self.link.retains:
            self.election.doubt()

    def _question(self) -> None:
        """Until it is answered no command is taken, and of the retained topics only the one that says who we are says
        something. It overwrites what another bridge said there, so that is kept first.
        """
        self._save_role()
        if self._stalled:
            self._looking = True  # later, then
            return
        self._looking = False
        self.publisher.say_only(self._own_topics[1:2])
        self._publish_bridge()
        self.publisher.say_again(self._own_topics[1])
        self._drain(self.clock.monotonic())

    def _serve_if_free(self) -> None:
        """Begin to serve, once nobody else claims to."""
        election, now = self.election, self.clock.monotonic()
        if self._stopping or self.link is None or not self.link.connected:
            return  # there is nobody to ask
        if self._looking:
            self.link.probe()
            return
        election.settle(now)
        if election.is_to_ask(now):
            self._ask(resumed=False)
        if election.awaits_broker and not self.publisher.waits(self._own_topics[1]):
            self._said(now)
        if election.look(now, payloads.timestamp(self.clock.time())):
            self._save_role()
            self._publish_bridge()  # the claim: nothing else is said or done before the broker has it
            self._drain(now)
        if self._backlog and not self._taking:
            self._take_commands()

    def _said(self, now: float) -> None:
        """The broker has what we said last on `bridge/info`."""
        begins = self.election.acknowledged(now)
        if not self._listening and self.link is not None:
            self._listening = True
            self.link.listen(on=True)  # not earlier: what was published before the question is the other one's
        if not begins:
            return
        if self._fenced or self._waits_since is not None:
            level = logging.WARNING if self._fenced else logging.INFO
            log.log(level, "this bridge serves %s now", self.topics.base)
        self._waits_since = None
        self.election.vouch(now)
        self._save_role()
        if self._fenced or self.election.may_have_missed:
            # The other one served, and said its own on the same topics, but for this one: the broker has the claim.
            self.publisher.say_all_again(but=self._own_topics[1])
        self._fenced = False
        self.publisher.say_only(None)
        self._publish_bridge()
        self._feed_all()
        self.pump()

    def _tell_waiting(self, now: float) -> None:
        if self._waits_since is None or now < self._waits_since + WAITING_S or self._stopping or self._stalled:
            return
        if self._looking:
            why = "the broker has not said yet what other bridges published there"
        elif self.election.awaits_broker:
            why = f"the broker has not acknowledged {self._own_topics[1]} yet"
        else:
            why = f"another bridge was there before, and has {ANSWER_S:.0f} s to answer"
        if self._said_often.admit(("waiting", why), now) is not None:
            log.info("waiting to become active on %s: %s. Commands wait; gateways are served", self.topics.base, why)

    def _stand_by(self) -> None:
        self._waits_since = None
        self._fenced = True
        self._looking = False  # what was to be asked is answered
        self._save_role()
        if self.link is not None:
            self.link.listen(on=False)
            self._listening = False
        self._drop_backlog()
        self.publisher.say_only(())
        self._tell_rival(
            "This one is on standby: it carries out no command, sends no SMS, and only publishes what gateways report"
        )
        self.pump()

    def _tell_rival(self, what: str) -> None:
        count = self._limiter.admit(("rival", self.election.rival), self.clock.monotonic())
        if count is not None:
            text = (
                f"Another bridge, with instance {self.election.rival!r}, uses the same base topic. {what}. Stop one of "
                "them, or give each its own base_topic:."
            )
            log.error("%s", text)
            self._notices.append({"event_type": "takeover", "message": text, "count": count})

    def _tell_dropped(self) -> None:
        """Those that were published while nobody served are lost, and nobody can tell which these are."""
        if self._dropped and self.election.role is not Role.ASKING:
            named = f", with instance {self.election.rival!r}," if self.election.rival else ""  # a restart forgets it
            message = (
                f"{self._dropped} commands waited here while another bridge{named} was active. It has carried them "
                "out, but for those that came while none of the two was active: repeat what had no result, with the "
                "same id."
            )
            self._dropped = 0
            self._notices.append({"event_type": "takeover", "message": message})

    def _save_role(self) -> None:
        since, rival = role = self.election.kept, self.election.rival
        if self._stalled or since is None or role == self._saved_role:
            return

        def keep(_batch: Batch) -> None:
            self.store.put(SERVING_SINCE, since)
            self.store.put(RIVAL, rival)

        if self._commit([], keep):
            self._saved_role = role

    def _drop_backlog(self) -> None:
        """What waits is for another bridge."""
        dropped = [message for message in self._backlog if not message.is_local]
        for message in dropped:
            self._acknowledge(message)
        if dropped:
            log.warning(
                "%d commands are for the active bridge, or may have been carried out by it: they are not carried "
                "out here",
                len(dropped),
            )
            self._dropped += len(dropped) if self.election.may_have_missed else 0
        self._forget_backlog()

    def _forget_backlog(self) -> None:
        """Of what waits, only what the broker has nothing to do with can still be taken."""
        self._backlog = deque(message for message in self._backlog if message.is_local)

    def hand_in(self, message: Incoming) -> None:
        """Take a command from the HTTP listener, before those from the broker: its caller waits."""
        self._backlog.appendleft(message)
        if not self._taking:
            self._guarded(self._take_commands)()

    def withdraw(self, message: Incoming) -> None:
        """Forget a command that is not committed."""
        for waiting in (self._backlog, self._inbox, self._poison):
            with contextlib.suppress(ValueError):
                waiting.remove(message)

    def _take_commands(self) -> None:
        """Some at a time: a large one may take half a second, and the lines want their answers in between."""
        self._taking = False
        if self._stopping or self._stalled:
            return
        size = sum(len(message.payload) for message in self._inbox)
        full = False
        while self._backlog and not full and self._may_take(self._backlog[0]):
            message = self._backlog.popleft()
            size += len(message.payload)
            self._inbox.append(message)
            full = size >= COMMAND_BYTES or len(self._inbox) >= COMMANDS
        if self._backlog and full:
            self._taking = True
            asyncio.get_running_loop().call_soon(self._guarded(self._take_commands))
        self.pump()
        self._mind_the_load()

    def _may_take(self, message: Incoming) -> bool:
        """Whether it is ours to carry out, as far as is known now; if not, sees to it that it will be known."""
        if message.is_local:
            return True
        match self.election.authority(self.clock.monotonic()):
            case Authority.TAKE:
                return True
            case Authority.PROBE:
                if self.link is None:
                    return True
                self.link.probe()
            case Authority.ASK:
                log.info(
                    "the connection to the broker stood still: asking whether another bridge became active meanwhile"
                )
                self._ask(resumed=True)
            case Authority.DROP:
                self._drop_backlog()
            case Authority.WAIT:
                pass
        return False

    def proved(self, sent_at: float) -> None:
        """The broker answered what was sent then: commands may have waited for that."""
        self.election.proved(sent_at, self.clock.monotonic())
        if self._looking:
            self._question()
        if self._backlog and not self._taking:
            self._take_commands()

    def published(self, acks: list[tuple[int, int]]) -> None:
        """Take PUBACKs."""
        now = self.clock.monotonic()
        self._tell_refused(self.publisher.acknowledged(acks, now), now)
        self._drain(now)
        if self.election.awaits_broker:
            self._serve_if_free()
        if self._handed_over is not None and self.publisher.idle:
            self._handed_over.set()

    def connected(self, *, session_present: bool, version: str) -> None:
        """The broker is there."""
        self._connections += 1
        self._paused = False
        self._mqtt = payloads.MqttInfo(version=version, session_present=session_present)
        self._save_announced()
        self.discovery.connected()
        self._listening = True
        self.publisher.connected()
        self.publisher.say_only(())
        self._waits_since = self.clock.monotonic()
        self.election.ask(self._waits_since, resumed=session_present)
        self._doubt_a_broker_that_forgets()
        self._looking = True
        if self.link is not None:
            self.link.probe()

    def subscribed(self, codes: Mapping[str, int | None]) -> None:
        """What the broker answered to our subscriptions. Without that to commands the bridge is not online."""
        now = self.clock.monotonic()
        self._subscriptions = dict(codes)
        code = codes.get(self.topics.filters()[0], 0)  # it is not there while another bridge serves
        self.publisher.set_hearing(None if code is None else code < REFUSED)
        for topic_filter, code in codes.items():
            if code is not None and code >= REFUSED:
                self._tell_subscription(topic_filter, code, now)
        self._drain(now)

    def disconnected(self, reason: str, *, closed: bool = True) -> bool:
        """The broker is gone; true when it has taken something that need not be sent again."""
        log.debug("the broker is gone: %s", reason)
        self._waits_since = None
        now = self.clock.monotonic()
        closer = self.publisher.disconnected(now, closed=closed)
        if closer is not None and self.publisher.is_refused(closer.topic) and not self._stopping:
            self._tell_refused([(closer, None)], now)
        self._forget_backlog()  # those with QoS 1 come again
        if self._handed_over is not None:
            self._handed_over.set()
        return self.publisher.progressed

    def takeover(self) -> None:
        """Another client has our client id: it may be another bridge, that sends what we would send."""
        self._fenced = True
        self._notices.append(
            {
                "event_type": "takeover",
                "message": f"Another client seems to connect as {self._client_id()}: {TWIN_ADVICE}.",
            }
        )
        self.pump()

    # -- the choke point

    def pump(self) -> None:
        """Commit what happened, then let it be seen: by the gateways, by the broker, by the subscribers."""
        if self._stalled:
            return
        self._take_events()
        while self._has_work():
            happened, self._events = self._events, []
            began = self.clock.monotonic()
            if not self._commit(happened, None):
                self._events = happened + self._events
                return
            if self.clock.monotonic() - began > LATE_S:
                self._catch_up()
            self._take_events()
        self._send()
        self._rearm()
        self._drain(self.clock.monotonic())

    def _has_work(self) -> bool:
        """Something is to be written before anything may leave; sendids as well (`_reserve_sendids`)."""
        waiting = self._events or self._inbox or self._notices or self._writes
        return bool(waiting) or min(self.server.next_sendid, MAX_SENDID) > self._sendids_reserved

    def _take_events(self) -> None:
        """What happened in the core; of those who are not let in only a few are told."""
        now = self.clock.monotonic()
        for event in self.server.take_events():
            if isinstance(event, events.KeepaliveIgnored):
                self._moves.log_ignored(event, now)
            elif not isinstance(event, events.Unauthenticated):
                self._events.append(event)
                if isinstance(event, events.LineMoved) and (moved := self._moves.notice(event, self.settings, now)):
                    self._notices.append(moved)
            elif notice := self._strangers.notice(event, self.settings, now):
                self._notices.append(notice)

    def _commit(
        self, happened: list[events.Event], also: Callable[[Batch], None] | None, upto: int | None = None
    ) -> bool:
        """One transaction for all that happened, with the commands of the inbox: the first `upto`, or all. False when
        the store can't be written, and everything is kept.
        """
        batch = self._batch()
        done = self.publisher.take_done()
        try:
            with self.store.transaction():
                self.ledger.record(happened, batch, self.clock.monotonic())
                for write in self._writes:  # before the inbox: a repeat in it finds the result of its command
                    write(batch)
                for place, message in enumerate(self._inbox[:upto]):
                    self._take(message, batch, place)
                for message in self._poison:
                    self.admission.give_up(message, batch)
                for notice in self._notices:
                    batch.fact(self.topics.bridge("event"), payloads.BridgeEvent, **notice)
                if also is not None:
                    also(batch)
                self._write(batch, done)
        except StoreError as error:
            self.publisher.not_deleted(done)
            self._stall(error)
            return False
        except _PoisonError as error:
            log.exception("a command could not be handled; this is a fault of the bridge, please report it")
            self.publisher.not_deleted(done)
            self._poison.append(self._inbox.pop(error.place))
            return self._commit(happened, also, error.place)  # what is behind it is for the next one
        del self._inbox[:upto]
        self._poison.clear()
        self._notices.clear()
        self._writes.clear()
        self._take_effect(batch)
        return True

    def _batch(self) -> Batch:
        return Batch(self.run_info, self.steady.time(), self.clock.time())

    def _take(self, message: Incoming, batch: Batch, place: int) -> None:
        """A fault of ours must not become a command that comes again and again: it is answered, the rest goes on."""
        try:
            self.admission.take(message, batch)
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError) as error:
            raise _PoisonError(place) from error  # it asks for a row that can't be
        except sqlite3.Error:
            raise  # the disk, or the file
        except Exception as error:
            raise _PoisonError(place) from error

    def _write(self, batch: Batch, done: list[int]) -> None:
        """The rows that every batch has."""
        if batch.repeats:
            self.store.add_repeats(batch.repeats)
        day = payloads.timestamp(batch.wall)[:10]
        for line, counts in batch.traffic.items():
            self.store.count(line, day, counts)
        if done:
            self.store.delete_outbox(done)
        self._reserve_sendids(batch)
        now = self.clock.monotonic()
        if now - self._alive >= ALIVE_S:
            batch.alive = now
            self.store.put("alive", batch.at)
            self.store.put(STEADY, self.steady.saved())
            if self.udp is not None:
                self.store.put("drops", self.udp.kernel_drops)
                self.store.put("socket", self.udp.identity)
            self.store.advance_epoch()
        if batch.outbox:
            first = self.store.add_outbox(batch.outbox)
            batch.rows = [OutboxRow(first + i, *entry) for i, entry in enumerate(batch.outbox)]
            if copies := self.discovery.copies(batch.rows):
                first = self.store.add_outbox(copies)
                batch.copies = [OutboxRow(first + i, *copy) for i, copy in enumerate(copies)]

    def _take_effect(self, batch: Batch) -> None:
        """The batch is on disk."""
        batch.committed()
        self._log(batch)
        self._sendids_reserved = batch.sendids_reserved or self._sendids_reserved
        if batch.alive is not None:
            self._alive = batch.alive
            self.store.witness_epoch()
        if batch.rows:
            self.publisher.add(batch.rows + batch.copies)
        self.answers.committed(batch)
        if self.board.take(batch):
            self._publish_states_soon()
        if self.recent is not None:
            self.recent.take(batch)
        self.discovery.look_at(batch.changed)
        for line, n in batch.settled:
            self.server.release_sms(line, n, self.clock.monotonic())
        for topic in batch.emptied:
            self.publisher.remove(topic)
        for what in batch.refresh:
            self.discovery.refresh(None if what == "*" else what)
            self._work_soon("Home Assistant's devices")
            self.publisher.refresh(self.topics.line(what, "") if what != "*" else f"{self.topics.base}/")
        for message in batch.acknowledge:
            self._acknowledge(message)
        for order in batch.orders:
            self._carry_out(order)
        # Behind the others, as it may take away a line that one of them is for; and once, as it takes its time.
        if reloads := [order for order in batch.orders if isinstance(order.command, commands.BridgeReload)]:
            verdict = self.reload()
            for order in reloads:
                self._answer(order.n, *verdict)
        for name in sorted(batch.feed):
            self._feed(name)

    def _log(self, batch: Batch) -> None:
        now = self.clock.monotonic()
        for level, text, key in batch.log:
            count = 1 if key is None else self._said_often.admit(key, now)
            if count is not None:
                log.log(level, "%s%s", text, f" ({count} times since this was logged last)" if count > 1 else "")

    def _save_announced(self) -> None:
        """Write down which retained topics there are, before they are: whoever takes one away later has to know."""
        if self._stalled:
            return
        announced, lines = self._announced()
        if (announced, lines) == self._saved or not self._commit([], self._write_announced):
            return
        self._saved = announced, lines
        self.discovery.known = set(announced)
        self.board.named = set(lines)
        self.board.publish_stats()

    def _announced(self) -> tuple[list[str], list[str]]:
        """Where something retained of ours may be: topics of discovery, and names of lines."""
        return self.discovery.announced(), sorted({*self.settings.lines, *self._vanishing, *self._emptied})

    def _write_announced(self, _batch: Batch) -> None:
        announced, lines = self._announced()
        self.store.put(ANNOUNCED, orjson.dumps(announced).decode())
        self.store.put(NAMED_LINES, orjson.dumps(lines).decode())

    def _acknowledge(self, message: Incoming) -> None:
        if self.link is not None:
            self.link.acknowledge(message)

    def _carry_out(self, order: Order) -> None:
        now = self.clock.monotonic()
        match order.command:
            case commands.Ussd(code=code, timeout_s=timeout) as ussd:
                wait = timeout if "timeout_s" in ussd.model_fields_set else self.settings.timing.ussd_s
                self.server.ussd(order.target, order.n, code, wait, now)
            case commands.SelfTest() as selftest:
                if not self._begin_selftest(order, selftest):
                    self._answer(order.n, "busy", SELFTEST_BUSY)
            case commands.BridgeReload():
                pass  # `_take_effect` does it
            case commands.BridgeRestart():
                self._answer(order.n, *self._restart())
            case command:
                self.server.request(order.target, order.n, operation(command), now)

    def _answer(self, n: int, code: Code, message: str) -> None:
        """Give an accepted command its result with the next commit."""

        def give(batch: Batch) -> None:
            if command := self.store.command(n):
                self.answers.give(batch, command, code, message, {})

        self._writes.append(give)

    def _restart(self) -> tuple[Code, str]:
        if not self.can_restart:
            return "not_supported", "Nothing would start the bridge again: it runs without a supervisor."
        if self.restart_asked:
            return "ok", "The bridge restarts."
        try:
            self._reload_settings()
        except Exception as error:  # it would not start again
            log.error("not restarted, because of the configuration: %s", error)
            return "invalid_payload", f"Not restarted, because of the configuration: {error}"
        self.restart_asked = True
        if self._asked_to_stop is not None:
            self._asked_to_stop.set()
        return "ok", "The bridge restarts."

    def _begin_selftest(self, order: Order, selftest: commands.SelfTest) -> bool:
        receiver = self.server.line(selftest.to)
        number = receiver_number(selftest, receiver) if receiver is not None else None
        if number is None or self._stopping or self._fenced:
            return False
        log.info("line %s: a self-test begins; other SMS of the line wait for it", order.target)
        return self.server.selftest(order.target, order.n, selftest.to, number, self.clock.monotonic())

    def _feed_all(self) -> None:
        """Give every line that is free something to send: some at once, the others in their turn."""
        self._hungry = dict.fromkeys(self.store.queued_lines())
        if self._feed_hungry(FED_AT_ONCE):
            self._work_soon("lines that have something to send")

    def _feed_hungry(self, limit: int) -> bool:
        for name in list(itertools.islice(self._hungry, min(limit, FED_AT_ONCE))):
            del self._hungry[name]
            self._feed(name)
        return bool(self._hungry)

    def _feed(self, name: str) -> None:
        """Give a line that is free, and whose turn it is, the next SMS: those with the same text make one session."""
        line = self.server.line(name)
        if line is None or not line.usable or self._stopping or self._fenced or not self._going_on:
            return
        now, at, steady = self.clock.monotonic(), self.steady.time(), self.steady
        older, upto = steady.pending, steady.upto
        if self._hastening:
            older, upto = older + self._hastening[0], max(upto, self._hastening[2])
        # A session doesn't know what may be too old by the clock; and of a busy line only the most urgent SMS counts.
        most = MOST_NUMBERS if line.ready and not older else 1
        rows = self.store.queued(name, most, (at + older, upto))
        if not rows:
            self.server.leave(name, now)
            return
        most = self.server.turn(name, rows[0].priority, now)
        if not most:
            return
        recipients = []
        for row in rows[:most]:
            if (row.text, row.priority) != (rows[0].text, rows[0].priority):
                break
            expires = None if row.expires is None else now + row.expires - at
            recipients.append(Recipient(row.n, row.number, row.guarantee != "at_most_once", expires))
        self.server.send_sms(name, rows[0].text, recipients, now, rows[0].priority)

    def _send(self) -> None:
        if self.udp is None:
            return
        debug = log.isEnabledFor(logging.DEBUG)
        for datagram, address in self.server.take_datagrams():
            self.udp.send(datagram, address)
            if debug:
                log.debug("> %s:%d %s", *address, _outline(datagram))

    def _drain(self, now: float) -> None:
        self._tell_refused(self.publisher.drain(now), now)
        if self._notices and not self._stalled:
            asyncio.get_running_loop().call_soon(self._guarded(self.pump))

    def _rearm(self) -> None:
        deadline = self.server.deadline()
        if self._timer is not None:
            if self._timer.when() == deadline and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None and not self._stopping:
            loop = asyncio.get_running_loop()  # its clock is time.monotonic
            self._timer = loop.call_at(deadline, self._guarded(self._on_timer))

    def _on_timer(self) -> None:
        self._timer = None
        if not self._stalled:
            self.server.handle_timer(self.clock.monotonic())
            self.pump()

    # -- a store that can't be written

    def _stall(self, error: StoreError) -> None:
        """Acknowledge nothing to either side until the store can be written again."""
        self._backlog.extendleft(reversed(self._inbox))  # by then they may be another bridge's to carry out
        self._inbox.clear()
        if not self._stalled:
            self._stalled = True
            self._stalled_at = self.clock.monotonic()
            log.error(
                "cannot write %s: %s. Nothing is acknowledged until it can be written: free space on its disk, or "
                "make it writable. Trying again every second.",
                self.store.path,
                error,
            )
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(STALL_RETRY_S, self._guarded(self._try_again))

    def _stalled_datagrams(self, batch: list[tuple[bytes, Address]]) -> None:
        """Keepalives are answered, so that the gateways stay; everything else is kept, unanswered."""
        now = self.clock.monotonic()
        self._held_back.extend(self.server.take_datagrams())  # they wait for the commit
        for data, address in batch:
            if not self._gate.admits(address, now):
                continue
            if data.startswith(b"req:"):
                if self.server.receive_datagram(data, address, now) is not None:
                    self._gate.refused(address, len(data), now)
            elif not self.server.is_from_a_line(data, address, now):
                self._gate.refused(address, len(data), now)  # a stranger must not use up the room of the lines
            elif len(self._held) < HELD_DATAGRAMS and self._held_bytes + len(data) <= HELD_BYTES:
                self._held_bytes += 0 if (data, address) in self._held else len(data)
                self._held[data, address] = None  # a box repeats what is not acknowledged: once is enough
            else:
                self._stall_drops += 1
        for event in self.server.take_events():
            if isinstance(event, events.KeepaliveIgnored):
                self._moves.log_ignored(event, now)
            elif not isinstance(event, events.Unauthenticated | events.LineChanged):  # too many, for too long
                self._events.append(event)
        self._send()

    def _try_again(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        happened, self._events = self._events, []
        if not self._commit(happened, None):
            self._events = happened + self._events
            return
        self._stalled = False
        self.board.all_lines_changed()  # what their keepalives said meanwhile
        log.warning("%s can be written again: going on", self.store.path)
        self.server.datagrams[:0] = self._held_back
        self._held_back = []
        self._catch_up()
        held, self._held, self._held_bytes = list(self._held), {}, 0
        self.server.deaf = self._stalled_at, self.clock.monotonic()
        self.datagrams_received(held)
        self.server.handle_timer(self.clock.monotonic())
        if not self._going_on and not self._stopping and not self._stalled:
            self._ask_gateways()  # the disk was full at the start
        self.pump()
        if not self._taking:
            self._take_commands()
        if not self._stalled and not self._stopping:
            self._reload_if_asked()

    def _catch_up(self) -> None:
        """The disk took its time: what waits for answers waits from now on, else it would be sent again at once."""
        self.server.held_up({datagram for datagram, _ in self.server.datagrams}, self.clock.monotonic())

    # -- regular work

    async def _every(self, period: float, work: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + period
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._lag = max(self._lag, loop.time() - due)
            work()
            due = max(due + period, loop.time())

    def _second(self) -> None:
        now = self.clock.monotonic()
        self._ticked = now
        self._mind_the_clock()
        self._serve_if_free()
        self._save_role()
        self._tell_waiting(now)
        self._tell_dropped()
        self._tell_overflow()
        self._mind_the_load()
        self.publisher.retry_parked(now)
        if dropped := self.publisher.drop_copies(self.steady.time()):
            level = logging.INFO if self.discovery.met else logging.DEBUG
            log.log(level, "%d facts are no longer kept for Home Assistant, which did not come for them", dropped)
        self._empty_topics(now)
        self._save_announced()
        if not self._stalled:
            if now - self._alive >= ALIVE_S:
                self._save_some_lines()
            if self.publisher.done_count:
                self._commit([], None)
        self._to_do |= dict.fromkeys(self._every_second)
        self._work()
        self.board.publish_changed_lines()
        self.board.publish_changed_stats()
        self.pump()

    def _work_soon(self, *names: str) -> None:
        """This regular work may have something to do."""
        self._to_do |= dict.fromkeys(names)
        if self._work_timer is None and self._asked_to_stop is not None:
            loop = asyncio.get_running_loop()
            self._work_timer = loop.call_later(PAUSE_S, self._guarded(self._work_on))

    def _work_on(self) -> None:
        self._work_timer = None
        self._work()
        self.pump()

    def _work(self) -> None:
        """Look at all regular work that may have something to do, and do one piece of it."""
        while self._to_do and not self._stalled and not self._stopping:
            name, at = next(iter(self._to_do)), self.steady.time()
            del self._to_do[name]
            if (rows := self._deaths.rows(name, at)) == 0:
                continue
            with self._deaths.doing(name):
                more = self._work_of[name](rows)
            if more:
                self._work_soon(name)
                return
            if not self._stalled:
                self._deaths.done(name)

    def _doing(self, chore: Chore) -> Callable[[int], bool]:
        """A chore as regular work: look, and do in one transaction what was found, or some of it."""

        def do(batch: Batch, rows: int) -> None:
            began = self.clock.monotonic()
            for thing in chore.find(batch.at, began, rows):
                chore.do(batch, thing)
                if self.clock.monotonic() - began > PIECE_S:
                    break

        def work(rows: int) -> bool:
            if not chore.find(self.steady.time(), self.clock.monotonic(), rows):
                return False
            return self._commit([], lambda batch: do(batch, rows))

        return work

    def _publish_jobs(self, limit: int) -> bool:
        ended = self.board.publish_jobs(limit)
        if ended and not self._commit([], lambda _batch: self.store.end_jobs(ended, self.clock.time())):
            self.board.jobs_changed(ended)
        return self.board.has_jobs

    def _announce(self, limit: int) -> bool:
        if self.discovery.tick(limit):
            self.publisher.refresh(f"{self.topics.base}/")
        self._save_announced()  # before they leave
        return self.discovery.is_due

    def _mind_the_clock(self) -> None:
        """What a wall clock that was set, or a machine that slept, means for SMS with a time to live."""
        slept = self.clock.boottime() - self.clock.monotonic() - self._asleep
        if slept > 1.0:
            self._asleep += slept
            self.server.slept(slept)
        steady = self.steady
        changed = steady.look()
        if changed and steady.pending:
            log.warning("the clock was set forward by %.0f s: SMS that are too old by it wait", steady.pending)
        if steady.believed and not self._stalled:
            passed, upto = steady.believed, steady.upto

            last = self.store.last_sms()
            task = [passed, (self.store.first_sms() or last + 1) - 1, min(upto, last)]

            def begin(_batch: Batch) -> None:
                self.store.put(HASTENING, orjson.dumps(task).decode())
                self.store.put(STEADY, steady.saved())  # or it is done once more after a crash

            if not self._hastening and self._commit([], begin):
                self._hastening = task
                steady.believed = 0.0
                log.warning("the clock is believed: %.0f s more have passed", passed)
        if changed and not steady.believed and not self._hastening:
            self._feed_all()

    def _hasten(self, limit: int) -> bool:
        """SMS that are not sent yet expire earlier, since time has passed uncounted: some of them."""
        if not self._hastening:
            return False
        seconds, after, upto = self._hastening
        until = min(upto, after + min(HASTENED_AT_ONCE, 10 * limit))
        rest = [seconds, until, upto] if until < upto else []

        def hasten(_batch: Batch) -> None:
            self.store.hasten(seconds, after, until)
            self.store.put(HASTENING, orjson.dumps(rest).decode())

        if self._commit([], hasten):
            self._hastening = rest
            if not rest:
                self._feed_all()
        return bool(self._hastening)

    def _minute(self) -> None:
        self._publish_health()
        self.board.publish_stats()
        self._work_soon(*self._every_minute)
        self.pump()

    def _save_some_lines(self) -> None:
        """A sign of life, and the last keepalive of some lines: in turn, all within `SAVE_LINES_S`."""
        lines = list(self.server.lines)
        count = math.ceil(len(lines) * ALIVE_S / SAVE_LINES_S)
        self._save_from = self._save_from if self._save_from < len(lines) else 0
        self._save_lines(lines[self._save_from : self._save_from + count])
        self._save_from += count

    def _save_lines(self, lines: Iterable[Line]) -> None:
        def save(_batch: Batch) -> None:
            for line in lines:
                if line.address is not None and line.count is not None and line.ever_heard:
                    memory = LineMemory(
                        address=line.address,
                        count=line.count,
                        reboots=line.reboots,
                        online=bool(line.online),
                        fields=line.fields,
                    )
                    self.store.save_line(line.name, memory)

        if not self._stalled:
            self._commit([], save)

    def _reserve_sendids(self, batch: Batch) -> None:
        """Part of the transaction: no sendid leaves that a restart could use again (docs/contract.md §5)."""
        server = self.server
        server.next_sendid = max(server.next_sendid, _smallest_sendid(batch.wall))
        if server.next_sendid + SENDID_BLOCK // 2 >= self._sendids_reserved:
            batch.sendids_reserved = min(server.next_sendid + SENDID_BLOCK, MAX_SENDID)
            self.store.put("sendids_reserved", batch.sendids_reserved)

    def reload_on_signal(self) -> None:
        """SIGHUP: what `bridge/cmd/reload` does, once the store can be written."""
        if self._stopping:
            return
        self._reload_asked = True
        self._guarded(self._reload_if_asked)()

    def _reload_if_asked(self) -> None:
        if not self._reload_asked:
            return
        code, _ = self.reload()
        self._reload_asked = code == "storage"
        self.pump()

    def reload(self) -> tuple[Code, str]:
        """Read the configuration again and apply what can change while running."""
        try:
            settings = self._reload_settings()
        except Exception as error:  # whatever is wrong with the file, the running configuration stays
            log.error("the configuration was not reloaded: %s", error)
            return "invalid_payload", f"The configuration was not reloaded: {error}"
        fixed = [
            name
            for name in ("base_topic", "instance", "mqtt", "udp", "store", "homeassistant", "http")
            if _without_overrides(getattr(settings, name)) != _without_overrides(getattr(self.settings, name))
        ]
        kept: dict[str, object] = {name: getattr(self.settings, name) for name in fixed}
        if "homeassistant" in kept:
            overrides = {"overrides": settings.homeassistant.overrides}
            kept["homeassistant"] = self.settings.homeassistant.model_copy(update=overrides)
        settings = settings.model_copy(update=kept)
        for _, fault in settings.homeassistant_faults():  # with the discovery that is in force
            log.error("the configuration was not reloaded: %s", fault)
            return "invalid_payload", f"The configuration was not reloaded: {fault}"
        if not self._catch_up_with_core():
            log.error("the configuration is not reloaded as long as %s cannot be written", self.store.path)
            return "storage", "The configuration was not reloaded, because the store could not be written."
        before = set(self.settings.lines)
        gone = before - set(settings.lines)
        self.settings = settings
        self.ledger.settings = self.admission.settings = self.board.settings = self.settings
        self.server.timing = _timing(self.settings)
        self.server.configure(_line_configs(self.settings), self.clock.monotonic())
        self._remember_lines(set(settings.lines) - before, self.run_info.since)
        self._remember_sessions(set(settings.lines) - before)
        for line in gone:
            self._take_away(line)
        for line in self.settings.lines:
            self._vanishing.pop(line, None)
            self._emptied.discard(line)
        self.discovery.configure(self.settings)
        self._writes.append(self._write_announced)
        self.ledger.lines_changed()
        self.publisher.retry_parked()
        if self.link is not None:
            self.link.subscribe_again()
        if self.link is not None and self.link.connected and self.election.say_again():
            self._say_again()
        self._publish_bridge()
        self._feed_all()
        words = [f"{name}.discovery and prefix" if name == "homeassistant" else name for name in fixed]
        later = f" These take effect after a restart: {', '.join(words)}." if words else ""
        log.log(
            logging.WARNING if fixed else logging.INFO,
            "configuration reloaded: %d lines.%s",
            len(self.settings.lines),
            later,
        )
        return "ok", f"Reloaded: {len(self.settings.lines)} lines.{later}"

    def _catch_up_with_core(self) -> bool:
        """Write down what happened so far. A line that is put back is made anew from the store, so what that does not
        know would happen twice; and what waits to be written is about the lines as they are now. False when the store
        can't be written.
        """
        self._take_events()
        happened, self._events = self._events, []
        if self._stalled or not self._commit(happened, None):
            self._events = happened + self._events
            return False
        return True

    def _take_away(self, line: str) -> None:
        """A line is no longer configured. Home Assistant first forgets its device, then its topics are emptied: an
        entity that is there would make a warning of each.
        """
        self._vanishing[line] = self.clock.monotonic() + (2 * APART_S if self.discovery.on else 0.0)

    def _empty_topics(self, now: float) -> None:
        for line in [line for line, due in self._vanishing.items() if due <= now]:
            del self._vanishing[line]
            self.board.remove_line(line)
            self._emptied.add(line)
        done = {line for line in self._emptied if not self.board.still_says(line)}
        self._emptied -= done
        if done:
            self._writes.append(lambda _batch: self.store.delete_lines(done))

    # -- retained state

    def _publish_states_soon(self) -> None:
        if self._states_timer is None and self._asked_to_stop is not None:
            loop = asyncio.get_running_loop()
            self._states_timer = loop.call_later(STATE_DELAY_S, self._guarded(self._publish_states))

    def _publish_states(self) -> None:
        self._states_timer = None
        if self.board.publish_states():
            self._publish_states_soon()
        self._drain(self.clock.monotonic())

    def _publish_bridge(self) -> None:
        """The bridge's own retained topics."""
        self.board.publish_info(self._mqtt, self.election.serving_since, self.election.served_since)
        self._publish_health()
        self.board.publish_lines()
        self.board.publish_stats()

    def _publish_health(self) -> None:
        health = self.health()
        self._lag, self._lag_before = 0.0, self._lag
        self.board.publish_health(health)

    def health(self) -> payloads.BridgeHealth:
        """How the bridge is."""
        counters, udp, publisher = self.server.counters, self.udp, self.publisher
        return self.board.health(
            payloads.UdpHealth(
                received=counters.received,
                sent=udp.sent if udp else 0,
                malformed=counters.malformed,
                unauthorized=counters.unauthorized,
                dropped=(udp.kernel_drops + udp.send_failures if udp else 0) + self._stall_drops + self._gate.dropped,
            ),
            payloads.MqttHealth(
                connected=self.link is not None and self.link.connected,
                published=publisher.published,
                acked=publisher.acked,
                refused=publisher.refused,
                reconnects=max(0, self._connections - 1),
                mute_s=round(self.link.mute_s, 1) if self.link is not None else 0.0,
            ),
            self._lag,
        )

    @property
    def lag(self) -> float:
        """Seconds: the longest time that the program could not react, in the last one or two minutes."""
        return max(self._lag, self._lag_before)

    @property
    def ticked(self) -> float:
        """Monotonic time at which the regular work was done last."""
        return self._ticked

    @property
    def stalled(self) -> bool:
        """The store can't be written: nothing is acknowledged to anybody."""
        return self._stalled

    @property
    def deaf(self) -> int | None:
        """The reason code with which the broker refused the subscription to commands; None when it did not."""
        code = self._subscriptions.get(self.topics.filters()[0])
        return code if code is not None and code >= REFUSED else None

    @property
    def stopping(self) -> bool:
        """Nothing new is taken any more."""
        return self._stopping

    @property
    def fenced(self) -> bool:
        """Another bridge may be at work in our place: nothing new is sent."""
        return bool(self._fenced)

    # -- small things

    def _tell_refused(self, refused: Iterable[tuple[Item, int | None]], now: float) -> None:
        """Without a reason code the broker closed the connection over it."""
        for item, code in refused:
            if not item.body and self.topics.parse_command(item.topic) is not None:
                self.publisher.forget(
                    item.topic
                )  # a retained command that can't be removed: it was refused all the same
            event_type = "no_subscriber" if code == NO_SUBSCRIBER else "publish_refused"
            of_discovery = self.discovery.takes(item.topic)
            count = self._limiter.admit((event_type, "discovery" if of_discovery else item.topic), now)
            if count is None:
                continue
            did, advice = "refused this publish", "check its ACL and quota"
            if code is None:
                did = "closes the connection when this is published"
                advice = f"allow the topic in its ACL, and packets of more than {len(item.body)} bytes"
            elif code == PACKET_TOO_LARGE and self.link is not None:
                did = f"takes packets of up to {self.link.max_packet} bytes, and this has {len(item.body)} and a topic"
                advice = "raise its limit (mosquitto: max_packet_size)"
            if of_discovery:
                advice += "; or remove entities (homeassistant.overrides; each contact and group has one), or set "
                advice += "homeassistant.discovery: false"
            if event_type == "publish_refused":
                said = "" if code is None else f" ({code:#x})"
                log.warning("%s: the broker %s%s: %s", mask_all(item.topic), did, said, advice)
            if isinstance(item, OutboxRow) and item.schema == "bridge_event":
                continue  # telling it would be refused as well
            message = (
                "Nobody is subscribed to this topic: what was published there reached no one."
                if code == NO_SUBSCRIBER
                else f"The broker {did}. It is kept and tried again; {advice}."
            )
            about = {"topic": item.topic, "reason_code": code, "count": count}
            self._notices.append({"event_type": event_type, "message": message, **about})

    def _tell_subscription(self, topic_filter: str, code: int, now: float) -> None:
        count = self._limiter.admit(("subscription_refused", topic_filter), now)
        if count is not None:
            what = "What is published there is missed"
            if topic_filter == self.topics.filters()[0]:
                what = "No command reaches the bridge, so it is not online"
            elif topic_filter in self._own_topics:
                what = "Another bridge on this base topic may go unnoticed, and both would send"
            message = f"The broker refused this subscription. {what}; allow it in its ACL. It is tried again."
            about = {"topic": topic_filter, "reason_code": code, "count": count}
            self._notices.append({"event_type": "subscription_refused", "message": message, **about})

    def _client_id(self) -> str:
        return self.settings.mqtt.client_id or f"goip-bridge-{self.instance}"


MakeListener = Callable[[Bridge, Recent, socket.socket], Listener]
"With the socket that is bound."


class PortUnusable(Exception):  # noqa: N818 - told to the user, not caught to go on
    """A port can't be bound. `args[0]` says which and why."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key
        "Of the configuration."


def _holder(error: OSError, protocol: str, host: str, port: int) -> str:
    holder = holders.of_port(protocol, host, port) if error.errno == errno.EADDRINUSE else ""
    return f" by {holder}" if holder else ""


class _PoisonError(Exception):
    """Handling the command at this place of the inbox failed."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


def _timing(settings: Settings) -> Timing:
    timing = settings.timing
    return Timing(
        offline=timing.offline_s,
        resend=timing.resend_s,
        wait=timing.wait_s,
        grace=2 * timing.resend_s,
        ussd=timing.ussd_s,
        evidence=timing.evidence_s,
        backoff=timing.backoff_s,
    )


def _line_configs(settings: Settings) -> list[LineConfig]:
    return [
        LineConfig(
            name=name,
            goip_id=line.goip_id or name,
            password=line.password.get_secret_value(),
            allow_from=tuple(line.allow_from),
            gateway=line.gateway,
            repeat_safe={"safe": True, "unsafe": False, "auto": None}[line.repeat_safety],
        )
        for name, line in settings.lines.items()
    ]


def _without_overrides(section: object) -> object:
    """What of a section is fixed while the bridge runs."""
    return section.model_copy(update={"overrides": {}}) if isinstance(section, HomeAssistantSettings) else section


def _link_config(bridge: Bridge, broker: BrokerUrl) -> LinkConfig:
    mqtt = bridge.settings.mqtt
    topics = bridge.topics
    will = Publication(topics.bridge("availability"), b"offline", retain=True, content_type="text/plain")
    return LinkConfig(
        scheme=broker.scheme,  # type: ignore[arg-type]  # the settings checked it
        host=broker.path if broker.scheme == "unix" else broker.host,
        port=broker.port or None,
        path=broker.path or "/mqtt",
        client_id=bridge._client_id(),
        username=mqtt.username,
        password=mqtt.password.get_secret_value() if mqtt.password else None,
        version=bridge.mqtt_version,
        ca_file=_text(mqtt.ca_file),
        cert_file=_text(mqtt.cert_file),
        key_file=_text(mqtt.key_file),
        server_name=mqtt.server_name,
        will=will,
        subscriptions=topics.filters(),
        replayed=(*bridge._own_topics, *bridge.discovery.filters()),
        max_incoming_bytes=2 * commands.MAX_PAYLOAD_BYTES,  # a broker drops what is larger without a word
    )


def _may_be_lost(message: Incoming) -> bool:
    """It was published with QoS 0, and not by the HTTP listener."""
    return not message.mid and message.connection >= 0


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _kept_instance(store: Store) -> str:
    instance = store.get("instance")
    if instance is None:
        instance = secrets.token_hex(4)
        with store.transaction():
            store.put("instance", instance)
    return str(instance)


def _smallest_sendid(wall: float) -> int:
    """Unix time, but of a clock that is not wrong: following one that is would use up all numbers."""
    return int(wall) if wall < MAX_SENDID - 2**24 else 1


def _first_sendid(store: Store, clock: Clock) -> int:
    """Never behind unix time and never one that was used before (docs/contract.md §5)."""
    wall = _smallest_sendid(clock.time())
    reserved = store.get("sendids_reserved")
    if reserved is None or store.restored:  # far beyond what may have been used meanwhile
        return max(int(reserved or 0), wall) + 2**20 + random.randrange(2**16)
    return max(int(reserved), wall)


def _outline(datagram: bytes) -> str:
    """The verb and its number: never the password, which may follow anywhere."""
    match = _OUTLINE.match(datagram)
    return f"{match.group().decode() if match else 'something else'} ({len(datagram)} bytes)"
