"""What the HTTP listener tells: recent facts and counts, the lines, and whether the bridge can do its work.

`Recent` is fed with every committed batch and keeps what is not kept elsewhere; it is only there when `http.listen` is
set. Everything else is read from the bridge when somebody asks. The listener has no login, so nothing here has the
text of an SMS or a whole phone number.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from .. import __version__
from ..app.election import Role
from ..contract import payloads
from ..contract.numbers import mask, mask_all
from ..contract.payloads import timestamp
from ..features.batch import Batch
from ..goip.line import Line
from ..retained import line_state as states
from ..store.database import OutboxRow

if TYPE_CHECKING:
    from ..app.bridge import Bridge

FACTS = 100
"Facts that are kept."
MINUTES = 60
"Minutes whose traffic is kept."
COUNTED = ("received", "sent", "delivered", "failed")
STUCK_S = 10.0
"Regular work is done every second; without it for so long the process is not alive."
SLICE = 100
"Lines described at once; between slices datagrams get their turn."

Check = dict[str, Any]
"`ok` and `reason`."


class Recent:
    """Facts and counts of the last hour, in memory."""

    def __init__(self) -> None:
        self.count = 0
        "Facts that were ever taken."
        self.awaited: dict[tuple[str, str], asyncio.Future[bytes]] = {}
        "By the topic of a result and the id of its command: who waits for it."
        self._facts: deque[OutboxRow] = deque(maxlen=FACTS)
        self._minutes: dict[int, dict[str, int]] = {}
        self._last_sms: dict[str, tuple[float, str | None, int]] = {}

    def take(self, batch: Batch) -> None:
        """Keep what a batch brought. This is on the way of every datagram: nothing is decoded here."""
        for row in batch.rows:
            if row.schema != "result":
                self._facts.append(row)
                self.count += 1
            elif self.awaited:
                self._hand_over(row)
        if batch.traffic:
            self._add_traffic(batch)
        for line, (sender, text) in batch.sms_last.items():
            self._last_sms[line] = batch.wall, sender, len(text)

    def facts(self, after: int = 0) -> list[OutboxRow]:
        """Those that were taken after the first `after`, as far as they are kept; oldest first."""
        first = max(0, len(self._facts) - (self.count - after))
        return list(itertools.islice(self._facts, first, None))

    def position(self, fact_id: str) -> int:
        """How many facts were taken up to the one with this id; 0, so that all are new, if it is not kept."""
        for place, row in enumerate(self._facts):
            if orjson.loads(row.body)["id"] == fact_id:
                return self.count - len(self._facts) + place + 1
        return 0

    def minutes(self, wall: float) -> list[dict[str, Any]]:
        """Traffic of the last hour, minute by minute, oldest first."""
        last = int(wall // 60)
        return [
            {"at": timestamp(minute * 60.0)} | dict.fromkeys(COUNTED, 0) | self._minutes.get(minute, {})
            for minute in range(last - MINUTES + 1, last + 1)
        ]

    def last_sms(self, line: str) -> dict[str, Any] | None:
        """The last inbound SMS of this run, its sender masked."""
        if line not in self._last_sms:
            return None
        at, sender, chars = self._last_sms[line]
        return {"at": timestamp(at), "from": mask(sender) if sender else None, "chars": chars}

    def _add_traffic(self, batch: Batch) -> None:
        now = int(batch.wall // 60)
        minute = self._minutes.get(now)
        if minute is None:
            minute = self._minutes[now] = dict.fromkeys(COUNTED, 0)
            for old in [other for other in self._minutes if not now - MINUTES < other <= now]:
                del self._minutes[old]  # also those of a clock that was ahead
        for counts in batch.traffic.values():
            for what, count in counts.items():
                if what in minute:
                    minute[what] += count

    def _hand_over(self, row: OutboxRow) -> None:
        waiting = self.awaited.pop((row.topic, orjson.loads(row.body)["id"]), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(row.body)


# -- facts, without what is private ----------------------------------------------------------------------------------


@lru_cache(maxsize=2 * FACTS)
def public_fact(base: str, topic: str, kind: str, body: bytes) -> bytes:
    """A fact as everybody may see it: numbers masked, texts only counted."""
    said = orjson.loads(body)
    target = topic.removeprefix(f"{base}/").partition("/")[0]
    fact = {
        "id": said["id"],
        "at": said["at"],
        "topic": topic,
        "line": target if kind != "bridge_event" else _scrubbed(said.get("line")),
        "kind": kind,
        "event_type": _scrubbed(said["event_type"]),
    }
    return orjson.dumps(fact | _details(kind, said))


def _details(kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """What fits without private data. USSD codes and the fields of unknown events may have some."""
    match kind:
        case "sms_in":
            return {"from": _masked(said["from"] or said["from_raw"]), "chars": said["chars"]}
        case "delivery":
            error = said["error"] or {}
            told = {key: said[key] for key in ("msg", "sms_no", "attempt", "evidence")}
            return {
                "to": _masked(said["to"]),
                **told,
                "code": error.get("code"),
                "message": error.get("meaning") or _scrubbed(error.get("text")),
            }
        case "call":
            told = {key: said[key] for key in ("direction", "duration_s")}
            return {"number": _masked(said["number"]), **told, "cause": _scrubbed(said["cause"])}
        case "ussd":
            return {"chars": None if said["text"] is None else len(said["text"])}
        case "event":
            return {key: said[key] for key in ("remain_time_min", "round", "step", "cgatt") if key in said}
        case "bridge_event":
            told = {key: said[key] for key in ("gateway", "address", "count")}
            return told | {
                "code": said["reason_code"],
                "message": _scrubbed(said["message"]),
                "since": said["from"],
                "until": said["to"],
            }
    return {}


def _masked(number: str | None) -> str | None:
    return None if number is None else mask(number)


def _scrubbed(text: str | None) -> str | None:
    """Words of gateways, and ids that strangers claim, with whatever may be a phone number masked."""
    return None if text is None else mask_all(text)


# -- whether it works ------------------------------------------------------------------------------------------------


def alive(bridge: "Bridge") -> dict[str, Check]:
    """Whether the process does its regular work: if not, it should be started again."""
    ago = bridge.clock.monotonic() - bridge.ticked
    return {"loop": {"ok": ago < STUCK_S, "reason": f"regular work was done {ago:.1f} s ago"}}


def healthy(bridge: "Bridge") -> dict[str, Check]:
    """Whether all is well with this bridge: alive and ready, or standing by for another one."""
    checks = ready(bridge) | alive(bridge)
    role, rival = bridge.lease.role, bridge.lease.rival
    if role is Role.STANDING_BY or (role is Role.ASKING and bridge.fenced):
        other = f"another bridge, {rival!r}," if rival else "another bridge"  # a restart forgets which
        checks["serving"] = {"ok": True, "reason": f"on standby while {other} is active"}
    elif not bridge.publisher.said_online:
        checks["serving"] = {"ok": False, "reason": "connects, and has not said `online` yet"}
    return checks


def ready(bridge: "Bridge") -> dict[str, Check]:
    """Whether the bridge can do all of its work."""
    udp = bridge.udp
    checks: dict[str, Check] = {}
    if udp is None:
        checks["udp"] = {"ok": False, "reason": "no UDP socket is open"}
    else:
        host, port = udp.address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        checks["udp"] = {"ok": True, "reason": f"listening on {shown}"}
    if bridge.stalled:
        checks["store"] = {
            "ok": False,
            "reason": "the store cannot be written, so nothing is acknowledged: free space on its disk, or make it "
            "writable; it is tried again every second",
        }
    elif bridge.store.low:
        checks["store"] = {
            "ok": True,
            "reason": "writable, but its disk is full: commands are refused until there is room",
        }
    else:
        checks["store"] = {"ok": True, "reason": "writable"}
    checks["mqtt"] = _broker(bridge)
    if bridge.stopping:
        checks["running"] = {"ok": False, "reason": "the bridge stops"}
    if bridge.lease.role is Role.ASKING:
        reason = f"it is being asked whether another bridge is active on {bridge.topics.base}"
        checks["serving"] = {"ok": False, "reason": reason}
    elif bridge.lease.role is Role.STANDING_BY:
        reason = f"another bridge, {bridge.lease.rival!r}, is active on {bridge.topics.base}; this one is on standby"
        checks["serving"] = {"ok": False, "reason": reason}
    return checks


def _broker(bridge: "Bridge") -> Check:
    """Whether what is published is taken, and commands are heard."""
    link = bridge.link
    kept = "what gateways say is kept, and published when"
    if link is None or not link.connected:
        why = f" ({link.trouble})" if link is not None and link.trouble else ""
        return {"ok": False, "reason": f"not connected to the broker{why}: {kept} it is back"}
    if link.is_mute:
        reason = f"the broker has acknowledged nothing for {link.mute_s:.0f} s: {kept} it does; look into its log"
        return {"ok": False, "reason": reason}
    if bridge.deaf is not None:
        filter_ = bridge.topics.filters()[0]
        reason = (
            f"the broker refused the subscription to {filter_} ({bridge.deaf:#x}), so no command is heard: allow it"
        )
        return {"ok": False, "reason": f"{reason} in its ACL; it is tried again"}
    if bridge.lease.role is Role.SERVING and not bridge.publisher.said_online:
        return {"ok": False, "reason": "connected, and the broker has not acknowledged `online` yet"}
    return {"ok": True, "reason": f"connected, MQTT {link.version}"}


# -- the whole -------------------------------------------------------------------------------------------------------


async def document(bridge: "Bridge", recent: Recent) -> bytes:
    """What /status.json says."""
    wall, now = bridge.clock.time(), bridge.clock.monotonic()
    queues = bridge.store.queue_counts()
    lines = []
    for some in slices(list(bridge.server.lines)):
        lines += [_line(bridge, recent, line, queues.get(line.name, (0, 0)), wall - now) for line in some]
        await asyncio.sleep(0)
    base = bridge.settings.base_topic
    told = {
        "v": 1,
        "ts": timestamp(wall),
        "send": bridge.settings.http.send,
        "base_topic": base,
        "bridge": _bridge(bridge),
        "lines": lines,
        "traffic": {"minutes": recent.minutes(wall)},
        "facts": [orjson.Fragment(public_fact(base, row.topic, row.schema, row.body)) for row in recent.facts()],
    }
    return orjson.dumps(told)


def _bridge(bridge: "Bridge") -> dict[str, Any]:
    health, checks = bridge.health(), ready(bridge)
    return {
        "version": __version__,
        "instance": bridge.instance,
        "started_at": timestamp(bridge.run_info.started),
        "uptime_s": health.uptime_s,
        "ready": all(check["ok"] for check in checks.values()),
        "checks": checks,
        "mqtt": {
            "connected": health.mqtt.connected,
            "version": bridge.link.version if bridge.link is not None else None,
            "reconnects": health.mqtt.reconnects,
        },
        "outbox": health.outbox,
        "queue": health.queue,
        "lines": health.lines,
        "store_low": health.store_low,
    }


def _line(bridge: "Bridge", recent: Recent, line: Line, queue: tuple[int, int], offset: float) -> dict[str, Any]:
    """One line; `offset` turns the core's times into unix time."""
    state = states.line_state(line, lambda at: at + offset)
    settings = bridge.settings.lines.get(line.name)
    return {
        "id": line.name,
        "name": settings.name if settings else None,
        "gateway": settings.gateway if settings else None,
        "online": line.online,
        "address": state.address,
        "signal": state.signal,
        "gsm": state.gsm,
        "voip": state.voip,
        "call": {"state": state.call.state, "direction": state.call.direction, "since": state.call.since},
        "enabled": state.enabled,
        "problems": state.problems,
        "last_seen": state.last_seen,
        "queue": payloads.QueueCounts(queued=queue[0], active=queue[1]),
        "today": bridge.board.traffic.today(line.name),
        "last_sms": recent.last_sms(line.name),
    }


def slices(lines: list[Line]) -> Iterator[list[Line]]:
    """The lines, some at a time."""
    return (lines[first : first + SLICE] for first in range(0, len(lines), SLICE))
