"""The retained topics: what is true now, of the lines, the jobs and the bridge itself.

Made from the core's lines and the store whenever something changed, and handed to the publisher, which sends what is
new. Nothing here is durable: after a restart it is all made anew.
"""

import dataclasses
import heapq
import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from .. import __version__
from ..config.settings import Settings
from ..contract import payloads
from ..contract.numbers import mask
from ..contract.topics import Topics
from ..features.batch import Batch, Run
from ..goip.line import Line
from ..goip.server import SmsServer
from ..mqtt.publisher import Publisher
from ..store.database import Store
from ..system.clock import Clock, SteadyTime
from . import line_state

log = logging.getLogger(__name__)

API = 1
FEATURES = ["sms", "delivery", "ussd", "calls", "control", "jobs", "contacts"]
LINE_STATES = ("availability", "state", "stats", "sms/last")
"The retained topics of a line."
LAST_SEEN_S = 300.0
"A line's state is published this often although only `last_seen` changed (docs/contract.md §2)."
STATS_S = 5.0
"Statistics that changed are published this often at most."
STATES_AT_ONCE = 100
"States of lines, or jobs, that are made in one turn."
LINES_PER_SECOND = 500
"The list of all lines is published less often the longer it is."


class Board:
    """Keeps the retained topics true."""

    def __init__(
        self,
        run: Run,
        instance: str,
        settings: Settings,
        store: Store,
        server: SmsServer,
        topics: Topics,
        publisher: Publisher,
        clock: Clock,
        steady: SteadyTime,
    ) -> None:
        self.settings = settings
        self._run = run
        self._instance = instance
        self._store = store
        self._server = server
        self._topics = topics
        self._publisher = publisher
        self._clock = clock
        self._steady = steady
        self.traffic = Traffic(store, clock)
        self.named: Collection[str] = ()
        """The lines that the store knows by name. Statistics of others wait: after a crash nobody would know that these
        are to be removed."""
        self._changed: set[str] = set()
        self._published: dict[str, tuple[payloads.LineState, float]] = {}
        "By line: what its state meant when it was published last, and when."
        self._lines_stale = False
        self._lines_due = 0.0
        self._stats: set[str] = set()
        "Lines whose statistics may have changed."
        self._stats_due = 0.0
        self._jobs: set[str] = set()
        "Jobs that changed."
        self._jobs_before: str | None = ""
        "Jobs of earlier runs behind this name are still to be published; None when all are."

    def take(self, batch: Batch) -> bool:
        """Note what a batch changed; true when there are line states to be published soon."""
        self.traffic.add(batch)
        for line, online in batch.availability.items():
            if line not in self.settings.lines:
                continue  # removed a moment ago
            if online:
                log.info("line %s is online", line)
            else:
                log.warning(
                    "line %s is offline: nothing heard of it for %.0f s; check the gateway's power, network and SMS "
                    "settings",
                    line,
                    self.settings.timing.offline_s,
                )
            self._publisher.set_availability(self._topics.line(line, "availability"), online)
        for line, (sender, text) in batch.sms_last.items():
            self._publish_sms_last(line, sender, text, batch.wall)
        self._lines_stale = self._lines_stale or batch.lines_changed
        self._stats |= batch.traffic.keys()
        below = f"{self._topics.base}/"
        for row in batch.rows:
            if row.schema == "delivery":  # and with it the queue changed
                self._stats.add(row.topic.removeprefix(below).partition("/")[0])
        self._jobs |= batch.jobs
        self._changed |= batch.changed
        return bool(self._changed)

    def all_lines_changed(self) -> None:
        """Every line may say something else than before."""
        self._changed.update(line.name for line in self._server.lines)

    def publish_states(self, limit: int = STATES_AT_ONCE) -> bool:
        """The states of the lines that changed, or of some of them; true when there are more."""
        now = self._clock.monotonic()
        offset = self._clock.time() - now
        for name in heapq.nsmallest(limit, self._changed):
            self._changed.remove(name)
            line = self._server.line(name)
            if line is not None:
                self._publish_state(line, now, offset)
        return bool(self._changed)

    def publish_last_seen(self, limit: int = STATES_AT_ONCE) -> bool:
        """The states of lines of which nothing changed for long but that they were heard; true when there are more."""
        now = self._clock.monotonic()
        for line in self._server.lines:
            known = self._published.get(line.name)
            if line.online and (known is None or now - known[1] >= LAST_SEEN_S):
                self._changed.add(line.name)
        return self.publish_states(min(limit, STATES_AT_ONCE))

    def publish_info(self, mqtt: payloads.MqttInfo, serving_since: str | None, served_since: str | None) -> None:
        """What this bridge is."""
        info = payloads.BridgeInfo(
            version=__version__,
            api=API,
            instance=self._instance,
            started_at=payloads.timestamp(self._run.started),
            serving_since=serving_since,
            served_since=served_since,
            lines=len(self.settings.lines),
            mqtt=mqtt,
            features=[*FEATURES, *(["homeassistant"] if self.settings.homeassistant.discovery else [])],
            config=self.settings.public_dict(),
        )
        self._publisher.set_payload(self._topics.bridge("info"), info)

    def publish_lines(self) -> None:
        """The list of all lines."""
        self._lines_stale = False
        self._lines_due = self._clock.monotonic() + len(self.settings.lines) / LINES_PER_SECOND
        self._publisher.set_payload(self._topics.bridge("lines"), payloads.BridgeLines(lines=self.summaries()))

    def publish_changed_lines(self) -> None:
        """The list of all lines, if it changed and is not published too often."""
        if self._lines_stale and self._clock.monotonic() >= self._lines_due:
            self.publish_lines()

    def health(self, udp: payloads.UdpHealth, mqtt: payloads.MqttHealth, lag: float) -> payloads.BridgeHealth:
        """How the bridge is; `lag` in seconds."""
        oldest = self._publisher.oldest
        counts = self._store.queue_counts().values()
        return payloads.BridgeHealth(
            uptime_s=int(self._steady.time() - self._run.since),
            rss_mb=_rss_mb(),
            loop_lag_ms=round(lag * 1000, 1),
            udp=udp,
            mqtt=mqtt,
            outbox=payloads.OutboxHealth(
                count=self._publisher.waiting,
                oldest_s=None if oldest is None else round(self._steady.time() - oldest, 1),
            ),
            queue=payloads.QueueCounts(
                queued=sum(queued for queued, _ in counts), active=sum(active for _, active in counts)
            ),
            lines=payloads.LineCounts(
                online=sum(bool(line.online) for line in self._server.lines), total=len(self.settings.lines)
            ),
            store_low=self._store.low,
        )

    def publish_health(self, health: payloads.BridgeHealth) -> None:
        """How the bridge is."""
        self._publisher.set_payload(self._topics.bridge("health"), health)

    def publish_stats(self) -> None:
        """Queue and traffic of all lines, where they changed."""
        self._publish_stats(self.settings.lines)

    def publish_changed_stats(self) -> None:
        """Queue and traffic of the lines where something happened, unless that was done a moment ago."""
        now = self._clock.monotonic()
        if self._stats and now >= self._stats_due:
            self._publish_stats(self._stats & self.settings.lines.keys())

    def _publish_stats(self, lines: Iterable[str]) -> None:
        wanted = [line for line in lines if line in self.named]
        for line, stats in self.traffic.stats(self._store, wanted):
            self._publisher.set_payload(self._topics.line(line, "stats"), stats)
        self._stats.clear()
        self._stats_due = self._clock.monotonic() + STATS_S

    def publish_jobs(self, limit: int) -> list[str]:
        """Some of the jobs that changed; returns those that ended just now."""
        limit = min(limit, STATES_AT_ONCE)
        if self._jobs_before is not None and len(self._jobs) < limit:
            page = self._store.jobs(self._jobs_before, limit)
            self._jobs_before = page[-1] if page else None
            self._jobs.update(page)
        chosen = heapq.nsmallest(limit, self._jobs)
        self._jobs.difference_update(chosen)
        now = self._clock.time()
        return [job for job in chosen if self._publish_job(job, now)]

    @property
    def has_jobs(self) -> bool:
        """Jobs wait to be published."""
        return bool(self._jobs) or self._jobs_before is not None

    def jobs_changed(self, jobs: Iterable[str]) -> None:
        """These jobs are to be published again."""
        self._jobs.update(jobs)

    def remove_line(self, line: str) -> None:
        """A line is no longer configured: nothing retained shall speak of it."""
        for path in LINE_STATES:
            self._publisher.remove(self._topics.line(line, path))
        self._published.pop(line, None)
        self.traffic.forget(line)

    def still_says(self, line: str) -> bool:
        """Something retained speaks of a line, or its removal is not acknowledged yet."""
        return any(self._publisher.said(self._topics.line(line, path)) is not None for path in LINE_STATES)

    def summaries(self) -> list[payloads.LineSummary]:
        """All lines, as `bridge/lines` has them."""
        return [line_state.summary(line, self.settings.lines.get(line.name)) for line in self._server.lines]

    def _publish_state(self, line: Line, now: float, offset: float) -> None:
        state = line_state.line_state(line, lambda at: at + offset)
        raw = {key: value for key, value in state.raw.items() if key not in line_state.VOLATILE}
        meaning = dataclasses.replace(state, last_seen=None, raw=raw)
        known = self._published.get(line.name)
        if known is None or known[0] != meaning or now - known[1] >= LAST_SEEN_S:
            self._published[line.name] = (meaning, now)
            self._publisher.set_payload(self._topics.line(line.name, "state"), state)

    def _publish_sms_last(self, line: str, sender: str | None, text: str, at: float) -> None:
        last = payloads.SmsLast(
            at=payloads.timestamp(at),
            from_=mask(sender) if sender else None,
            chars=len(text),
            text=text if self.settings.retain_text else None,
        )
        self._publisher.set_payload(self._topics.line(line, "sms/last"), last)

    def _publish_job(self, name: str, now: float) -> bool:
        """True when nothing of the job waits any more, and did before."""
        found = self._store.job(name)
        if found is None:
            return False
        cmd, line, total, started, ended = found
        counts = payloads.JobCounts(**self._store.job_counts(name))
        left = counts.queued + counts.sending
        end = None if left else now if ended is None else ended
        minutes = max((end or now) - started, 1.0) / 60
        rate = (total - left) / minutes
        job = payloads.Job(
            job=name,
            cmd=cmd,
            line=line,
            state="running" if left else "done",
            total=total,
            counts=counts,
            rate_per_min=round(rate, 2),
            eta_s=round(left / rate * 60) if left and rate else (0 if not left else None),
            started_at=payloads.timestamp(started),
            ended_at=None if end is None else payloads.timestamp(end),
        )
        self._publisher.set_payload(self._topics.job(name), job)
        return end is not None and ended is None


class Traffic:
    """Counted SMS by line, in memory; the store has the same numbers."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._clock = clock
        self._day = payloads.timestamp(clock.time())[:10]
        self._total = store.traffic()
        self._today = store.traffic(self._day)
        self._told: dict[str, tuple[int, ...]] = {}

    def add(self, batch: Batch) -> None:
        """Count what a batch counted."""
        day = payloads.timestamp(batch.wall)[:10]
        if day != self._day:
            self._day, self._today = day, {}
        for line, counts in batch.traffic.items():
            for counters in (self._total.setdefault(line, {}), self._today.setdefault(line, {})):
                for name, count in counts.items():
                    counters[name] = counters.get(name, 0) + count

    def stats(self, store: Store, lines: Iterable[str]) -> list[tuple[str, payloads.LineStats]]:
        """The numbers of the lines whose numbers are new."""
        queues = store.queue_counts()
        found = []
        for line in lines:
            queued, active = queues.get(line, (0, 0))
            total, today = self.total(line), self.today(line)
            numbers = (queued, active, *dataclasses.astuple(total), *dataclasses.astuple(today))
            if self._told.get(line) == numbers:
                continue
            self._told[line] = numbers
            queue = payloads.QueueCounts(queued=queued, active=active)
            found.append((line, payloads.LineStats(queue=queue, total=total, today=today)))
        return found

    def total(self, line: str) -> payloads.Traffic:
        """Since the store was made."""
        return payloads.Traffic(**self._total.get(line, {}))

    def today(self, line: str) -> payloads.Traffic:
        """Since midnight UTC."""
        is_today = self._day == payloads.timestamp(self._clock.time())[:10]
        return payloads.Traffic(**self._today.get(line, {})) if is_today else payloads.Traffic()

    def forget(self, line: str) -> None:
        """The line's topic was removed: should it come back, its numbers are new."""
        self._told.pop(line, None)


def _rss_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
