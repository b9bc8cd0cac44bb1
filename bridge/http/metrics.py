"""What /metrics says, for Prometheus: its names, help texts and labels in one table, and where the values come from.

No label has a phone number, a text or a secret. `line` is the id in the configuration. What is not known (the signal
of a line that is offline) is left out rather than told as a number. Counters are those that MQTT has too
(docs/contract.md §2): `goip_sms_…` go on over a restart, the others begin again at 0.
"""

import asyncio
import contextlib
import dataclasses
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from ..goip.line import Line
from ..retained import line_state
from . import status

if TYPE_CHECKING:
    from ..app.bridge import Bridge

__all__ = ["CONTENT_TYPE", "METRICS", "PROCESS", "render"]

LINE = ("line", "gateway")
"Labels of everything that is of one line; `gateway` as configured, empty where it is not."


@dataclass(frozen=True, slots=True)
class Meaning:
    """One metric."""

    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()


METRICS = {
    "goip_line_online": Meaning("gauge", "1 while keepalives come, else 0; absent until it is known.", LINE),
    "goip_line_registered": Meaning("gauge", "1 if the SIM is registered with its network; online lines only.", LINE),
    "goip_line_signal_dbm": Meaning("gauge", "Signal strength in dBm, -113 to -51; online lines only.", LINE),
    "goip_line_module_enabled": Meaning("gauge", "0 if the line's module is switched off; online lines only.", LINE),
    "goip_line_voip_registered": Meaning(
        "gauge", "1 if the line is registered with its SIP or H.323 server; online lines only.", LINE
    ),
    "goip_line_in_call": Meaning("gauge", "1 while there is a call, else 0; online lines only.", LINE),
    "goip_line_problem": Meaning("gauge", "1 for each problem that keeps a line from working.", (*LINE, "problem")),
    "goip_line_last_seen_timestamp_seconds": Meaning("gauge", "Unix time at which the line was heard last.", LINE),
    "goip_line_reboots_total": Meaning("counter", "Restarts of the gateway that the line noticed.", LINE),
    "goip_line_queue_messages": Meaning(
        "gauge", "SMS that are not finished: queued, or active (with the gateway).", (*LINE, "state")
    ),
    "goip_sms_received_total": Meaning("counter", "Inbound SMS since the store was made.", LINE),
    "goip_sms_outcomes_total": Meaning(
        "counter",
        "Outbound SMS since the store was made: sent (taken by the network), delivered (a report says so), failed, "
        "unknown. A delivered one was counted as sent before.",
        (*LINE, "outcome"),
    ),
    "goip_lines": Meaning("gauge", "Configured lines: online, offline, or unknown just after the start.", ("state",)),
    "goip_check_ok": Meaning("gauge", "The checks of /readyz: udp, store, mqtt; 1 is good.", ("check",)),
    "goip_mqtt_connected": Meaning("gauge", "1 while connected to the broker."),
    "goip_mqtt_reconnects_total": Meaning("counter", "Connections to the broker after the first."),
    "goip_mqtt_published_total": Meaning("counter", "Messages handed to the broker."),
    "goip_mqtt_acknowledged_total": Meaning("counter", "Messages that the broker took."),
    "goip_mqtt_refused_total": Meaning("counter", "Messages that the broker refused; they are tried again."),
    "goip_outbox_messages": Meaning("gauge", "Facts and results that the broker has not acknowledged."),
    "goip_outbox_oldest_age_seconds": Meaning("gauge", "How long the oldest of them waits; 0 when there is none."),
    "goip_udp_received_datagrams_total": Meaning("counter", "Datagrams read from the UDP socket."),
    "goip_udp_sent_datagrams_total": Meaning("counter", "Datagrams sent to gateways."),
    "goip_udp_malformed_datagrams_total": Meaning("counter", "Datagrams that are not of this protocol."),
    "goip_udp_unauthorized_datagrams_total": Meaning(
        "counter", "Datagrams with an unknown id, a wrong password or from a wrong address."
    ),
    "goip_udp_dropped_datagrams_total": Meaning(
        "counter", "Datagrams lost by the kernel, not sent, or dropped while the store could not be written."
    ),
    "goip_store_writable": Meaning("gauge", "0 while the store cannot be written: then nothing is acknowledged."),
    "goip_store_low": Meaning("gauge", "1 while the disk is full: commands are refused, what gateways say is kept."),
    "goip_store_size_bytes": Meaning("gauge", "Size of the store's files."),
    "goip_event_loop_lag_seconds": Meaning(
        "gauge", "The longest time in the last one or two minutes that the program could not react."
    ),
    "goip_build_info": Meaning("gauge", "Always 1; what is running.", ("version", "python")),
}
"""Every metric by name, but for those of the process."""
PROCESS = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"Of prometheus-client, where there is a /proc."

SLICE = 400
"Values written at once: a few milliseconds."
_OUTCOMES = ("sent", "delivered", "failed", "unknown")


class _Samples:
    """Values by metric: each with those of its labels."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[tuple[str, ...], float]]] = {name: [] for name in METRICS}

    def put(self, name: str, value: float | None, *labels: str) -> None:
        """Add a value, if it is known."""
        if value is not None:
            self._values[name].append((labels, value))

    def texts(self, name: str) -> Iterator[bytes]:
        """A metric with its values as Prometheus reads it, some at a time."""
        meaning, values = METRICS[name], self._values[name]
        kind = CounterMetricFamily if meaning.kind == "counter" else GaugeMetricFamily
        for first in range(0, max(1, len(values)), SLICE):
            family = kind(name, meaning.help, labels=meaning.labels)
            for labels, value in values[first : first + SLICE]:
                family.add_metric(labels, value)
            text = generate_latest(_Collected([family]))
            yield text if first == 0 else text.split(b"\n", 2)[2]  # HELP and TYPE stand there once


class _Collected(Collector):
    """What is written next."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def render(bridge: "Bridge") -> bytes:
    """The text that Prometheus reads. Written in slices: datagrams get their turn in between."""
    samples = _Samples()
    _read_bridge(bridge, samples)
    queues = bridge.store.queue_counts()
    for some in status.slices(list(bridge.server.lines)):
        for line in some:
            _read_line(bridge, line, queues.get(line.name, (0, 0)), samples)
        await asyncio.sleep(0)
    parts = [generate_latest(_Collected(ProcessCollector(registry=None).collect()))]
    for name in METRICS:
        for text in samples.texts(name):
            parts.append(text)
            await asyncio.sleep(0)
    return b"".join(parts)


def _read_line(bridge: "Bridge", line: Line, queue: tuple[int, int], samples: _Samples) -> None:
    settings = bridge.settings.lines.get(line.name)
    labels = (line.name, (settings.gateway if settings else None) or "")
    offset = bridge.clock.time() - bridge.clock.monotonic()
    samples.put("goip_line_online", line.online, *labels)
    if line.online:
        state = line_state.line_state(line, lambda at: at + offset)
        samples.put("goip_line_registered", state.gsm.registered, *labels)
        samples.put("goip_line_signal_dbm", state.signal.dbm, *labels)
        samples.put("goip_line_module_enabled", state.enabled, *labels)
        samples.put("goip_line_voip_registered", state.voip.registered, *labels)
        samples.put("goip_line_in_call", state.call.state not in (None, "idle"), *labels)
        for problem in state.problems:
            samples.put("goip_line_problem", 1, *labels, problem)
    if line.ever_heard:
        samples.put("goip_line_last_seen_timestamp_seconds", line.heard + offset, *labels)
    samples.put("goip_line_reboots_total", line.reboots, *labels)
    for state_word, count in zip(("queued", "active"), queue, strict=True):
        samples.put("goip_line_queue_messages", count, *labels, state_word)
    traffic = dataclasses.asdict(bridge.board.traffic.total(line.name))
    samples.put("goip_sms_received_total", traffic["received"], *labels)
    for outcome in _OUTCOMES:
        samples.put("goip_sms_outcomes_total", traffic[outcome], *labels, outcome)


def _read_bridge(bridge: "Bridge", samples: _Samples) -> None:
    put, health = samples.put, bridge.health()
    states_of_lines = {True: "online", False: "offline", None: "unknown"}
    online = [states_of_lines[line.online] for line in bridge.server.lines]
    for word in states_of_lines.values():
        put("goip_lines", online.count(word), word)
    for name, check in status.ready(bridge).items():
        put("goip_check_ok", check["ok"], name)
    put("goip_mqtt_connected", health.mqtt.connected)
    put("goip_mqtt_reconnects_total", health.mqtt.reconnects)
    put("goip_mqtt_published_total", health.mqtt.published)
    put("goip_mqtt_acknowledged_total", health.mqtt.acked)
    put("goip_mqtt_refused_total", health.mqtt.refused)
    put("goip_outbox_messages", health.outbox.count)
    put("goip_outbox_oldest_age_seconds", health.outbox.oldest_s or 0.0)
    for name in ("received", "sent", "malformed", "unauthorized", "dropped"):
        put(f"goip_udp_{name}_datagrams_total", getattr(health.udp, name))
    put("goip_store_writable", not bridge.stalled)
    put("goip_store_low", bridge.store.low)
    put("goip_store_size_bytes", _size(bridge.store.path))
    put("goip_event_loop_lag_seconds", bridge.lag)
    put("goip_build_info", 1, __version__, platform.python_version())


def _size(store: Path) -> int:
    total = 0
    for end in ("", "-wal"):
        with contextlib.suppress(OSError):
            total += store.with_name(store.name + end).stat().st_size
    return total
