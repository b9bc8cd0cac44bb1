"""What the HTTP listener tells: recent facts and counts, the lines, and whether the bridge can do its work.

All is read from the bridge when somebody asks. The listener has no login, so nothing here has the text of an SMS or a
whole phone number.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson

from .. import __version__
from ..app.bridge import Bridge
from ..app.election import Role
from ..contract import payloads
from ..contract.payloads import timestamp
from ..goip.line import Line
from ..retained import line_state
from ..retained.recent import Recent, public_fact

STUCK_S = 10.0
"Regular work is done every second; without it for so long the process is not alive."
SLICE = 100
"Lines described at once; between slices datagrams get their turn."

Check = dict[str, Any]
"`ok` and `reason`."


# -- whether it works ------------------------------------------------------------------------------------------------


def alive(bridge: "Bridge") -> dict[str, Check]:
    """Whether the process does its regular work: if not, it should be started again."""
    ago = bridge.clock.monotonic() - bridge.ticked
    return {"loop": {"ok": ago < STUCK_S, "reason": f"regular work was done {ago:.1f} s ago"}}


def healthy(bridge: "Bridge") -> dict[str, Check]:
    """Whether all is well with this bridge: alive and ready, or standing by for another one."""
    checks = ready(bridge) | alive(bridge)
    role, rival = bridge.election.role, bridge.election.rival
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
    if bridge.election.role is Role.ASKING:
        reason = f"it is being asked whether another bridge is active on {bridge.topics.base}"
        checks["serving"] = {"ok": False, "reason": reason}
    elif bridge.election.role is Role.STANDING_BY:
        reason = f"another bridge, {bridge.election.rival!r}, is active on {bridge.topics.base}; this one is on standby"
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
    if bridge.election.role is Role.SERVING and not bridge.publisher.said_online:
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
    state = line_state.line_state(line, lambda at: at + offset)
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
