"""The bridge and the simulator, a core of its own: every command, and a hostile network."""

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.sim.network import Faults
from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.run import SimOptions, Simulator
from broker_fixture import Broker
from harness import BridgeProcess, Watcher, bridge_config, free_udp_port, running, sweep, watching

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
async def _swept(broker: Broker) -> AsyncIterator[None]:
    yield
    await sweep(broker)


@contextlib.asynccontextmanager
async def simulated(
    broker: Broker,
    directory: Path,
    *,
    lines: int = 1,
    faults: Faults | None = None,
    profile: str = "spec",
    port_base: int | None = None,
    **more: Any,
) -> AsyncIterator[tuple[BridgeProcess, Simulator, Watcher, list[str]]]:
    prefix = f"s{next(_numbers)}-"
    ids = [f"{prefix}{number}" for number in range(1, lines + 1)]
    config = bridge_config(broker, "goip", {id: {"password": f"password{n}"} for n, id in enumerate(ids, 1)}, **more)
    config["instance"] = f"sim-{os.getpid()}-{prefix}"
    line = LineOptions(
        id=f"{prefix}%d", password="password%d", profile=PROFILES[profile], keepalive=1.0, time_scale=20.0
    )
    options = SimOptions(
        port_base=port_base,
        server=("127.0.0.1", int(config["udp"]["listen"].rpartition(":")[2])),
        lines=lines,
        line=line,
        faults=faults or Faults(),
        seed=7,
    )
    async with (
        watching(broker, *[f"goip/{id}/#" for id in ids], "goip/job/#") as watcher,
        running(directory, config) as bridge,
        Simulator(options) as simulator,
    ):
        await simulator.wait_registered(20)
        for id in ids:
            await watcher.until(f"goip/{id}/availability", lambda seen: seen.payload == b"online")
        yield bridge, simulator, watcher, ids


COMMANDS: list[tuple[str, Any, dict[str, Any] | None]] = [
    ("number/set", {"value": "+49 151-7"}, {}),
    ("number/get", b"", {"value": "+491517"}),
    ("exp_time/set", {"value": 120}, {}),
    ("exp_time/get", b"{}", {"value": 120}),
    ("remain_time/reset", b"PRESS", {}),
    ("remain_time/get", b"", {"value": 120}),
    ("gsm_state/get", b"", {"value": "IDLE"}),
    ("call/drop", b"", {}),
    ("module/enable", b"", {}),
    ("modules/set", {"value": {"1": True, "3": True}}, {}),
    ("call_forward/set", {"reason": "no_reply", "enable": True, "number": "+49301", "timeout_s": 20}, {}),
    ("call_forward/get", {"reason": "no_reply"}, {"enable": True, "number": "+49301", "timeout_s": 20}),
    ("call_forward/set", {"reason": "no_reply", "enable": False}, {}),
    ("call_forward/get", {"reason": "no_reply"}, {"enable": False, "number": None, "timeout_s": None}),
    ("call_forward/set", {"reason": "busy", "enable": True, "number": "+49301"}, {}),
    ("call_forward/get", {"reason": "busy"}, {"enable": True, "number": "+49301", "timeout_s": None}),
    ("call_waiting/set", {"enable": True}, {}),
    ("call_waiting/get", b"", {"enable": True}),
    ("imei/set", {"value": "490154203237518"}, {}),
    ("imei/get", b"", {"value": "490154203237518"}),
    ("call_interval/set", {"value": 5}, {}),
    ("call_interval/get", b"", {"value": 5}),
    ("cell/set", {"value": "689"}, {}),
    ("cell/get", b"", None),
    ("cells/get", b"", None),
    ("info/get", b"", None),
    ("ussd", {"code": "*100#"}, None),
    (
        "ussd",
        {"code": "*102#"},
        {
            "text": "Balance 4.20 €",
            "exit": False,
            "text_raw": "00420061006C0061006E0063006500200034002E00320030002020AC",
        },
    ),
    ("ussd/exit", b"", {"text": None, "exit": True}),
]


async def test_every_control_command_reaches_the_gateway_and_comes_back(broker: Broker, tmp_path: Path) -> None:
    async with simulated(broker, tmp_path) as (_bridge, _simulator, watcher, [id]):
        counts: Counter[str] = Counter()
        for path, payload, data in COMMANDS:
            counts[path] += 1
            await watcher.publish(f"goip/{id}/cmd/{path}", payload)
            result = (await watcher.until(f"goip/{id}/result/{path}", count=counts[path])).json
            assert result["code"] == "ok", (path, result)
            if data is not None:
                assert result["data"] == data, path
        info = watcher.on(f"goip/{id}/result/info/get")[-1].json["data"]
        assert (info["number"], info["exp_time_min"], info["imei"]) == ("+491517", 120, "490154203237518")
        cells = watcher.on(f"goip/{id}/result/cells/get")[-1].json["data"]["cells"]
        assert cells
        assert all(isinstance(cell, int) for cell in cells)


@pytest.mark.parametrize("profile", ["spec", "status0", "status200"])
async def test_a_disabled_module_shows_in_the_state_whichever_digit_disables(
    broker: Broker, tmp_path: Path, profile: str
) -> None:
    async with simulated(broker, tmp_path, profile=profile) as (_bridge, _simulator, watcher, [id]):
        await watcher.publish(f"goip/{id}/cmd/module/disable")
        assert (await watcher.until(f"goip/{id}/result/module/disable")).json["code"] == "ok"
        state = await watcher.until(f"goip/{id}/state", lambda seen: seen.json["enabled"] is False)
        assert "module_disabled" in state.json["problems"]


async def test_values_that_a_gateway_has_not_are_null_in_every_place(broker: Broker, tmp_path: Path) -> None:
    async with simulated(broker, tmp_path, profile="unset_null") as (_bridge, _simulator, watcher, [id]):
        for path in ("number/get", "info/get", "call_forward/get"):
            await watcher.publish(f"goip/{id}/cmd/{path}")
            await watcher.until(f"goip/{id}/result/{path}")
        assert watcher.on(f"goip/{id}/result/number/get")[-1].json["data"] == {"value": None}
        assert watcher.on(f"goip/{id}/result/info/get")[-1].json["data"]["number"] is None
        forward = {"enable": False, "number": None, "timeout_s": None}
        assert watcher.on(f"goip/{id}/result/call_forward/get")[-1].json["data"] == forward


async def test_the_bridge_places_no_calls(broker: Broker, tmp_path: Path) -> None:
    async with simulated(broker, tmp_path) as (_bridge, simulator, watcher, [id]):
        await watcher.publish(f"goip/{id}/cmd/call/dial", {"number": "+49301", "duration_s": 30})
        result = (await watcher.until(f"goip/{id}/result/call/dial")).json
        assert result["code"] == "unknown_command"
        assert "places no calls" in result["message"]
        assert not simulator.counts["call"]


async def test_seconds_of_a_call_are_told(broker: Broker, tmp_path: Path) -> None:
    async with simulated(broker, tmp_path) as (_bridge, simulator, watcher, [id]):
        simulator.line(id).outgoing_call("+49301", answered=False, seconds=1)
        expiry = await watcher.until(f"goip/{id}/event", lambda seen: seen.json["event_type"] == "expiry")
        assert expiry.json["exp"] == 0
        await watcher.until(f"goip/{id}/call", lambda seen: seen.json["event_type"] == "ended")
        simulator.line(id).incoming_call("+49302", seconds=25)  # the network is twenty times faster
        expiry = await watcher.until(
            f"goip/{id}/event", lambda seen: seen.json["event_type"] == "expiry" and seen.json["exp"] != 0
        )
        assert expiry.json["exp"] == 1


async def test_reboots_leave_once_and_are_seen(broker: Broker, tmp_path: Path) -> None:
    async with (
        watching(broker, "goip/bridge/event") as events,
        simulated(broker, tmp_path) as (_bridge, _simulator, watcher, [id]),
    ):
        await watcher.until(f"goip/{id}/state")
        await watcher.publish(f"goip/{id}/cmd/gateway/reboot")
        assert (await watcher.until(f"goip/{id}/result/gateway/reboot")).json["code"] == "ok"
        await events.until(
            "goip/bridge/event",
            lambda seen: seen.json["event_type"] == "gateway_reboot" and seen.json["line"] == id,
        )


@pytest.mark.parametrize("profile", ["spec", "no_sms_no", "small_memory"])
async def test_bulk_over_a_hostile_network_sends_each_sms_once_and_tells_the_truth(
    broker: Broker, tmp_path: Path, profile: str
) -> None:
    faults = Faults(loss=0.08, duplicate=0.05, reorder=0.05, delay=(0.0, 0.02))
    if profile == "small_memory":  # a copy of a SEND that arrives after it was forgotten is sent: nobody can prevent it
        faults = Faults(loss=0.08)
    timing = {"timing": {"resend_s": 0.3, "wait_s": 1.5, "backoff_s": 0.3}}
    async with simulated(broker, tmp_path, lines=3, faults=faults, profile=profile, **timing) as (
        _bridge,
        simulator,
        watcher,
        ids,
    ):
        numbers = [f"+4915{index:06d}" for index in range(20)]
        for id in ids:
            await watcher.publish(
                f"goip/{id}/cmd/sms", {"id": f"bulk-{id}", "to": numbers, "text": f"to all from {id}"}
            )
        jobs = [
            (await watcher.until(f"goip/{id}/result/sms", lambda seen: seen.json["code"] == "ok")).json["data"]["job"]
            for id in ids
        ]
        for job in jobs:
            await watcher.until(f"goip/job/{job}", lambda seen: seen.json["state"] == "done")
        sent = Counter((record["line"], record["to"]) for record in simulator.radio if record["what"] == "submit")
        assert max(sent.values()) == 1, sent.most_common(3)
        final: dict[tuple[str, str], str] = {}
        for id in ids:
            for seen in watcher.on(f"goip/{id}/delivery"):
                fact = seen.json
                final[id, fact["to"]] = fact["event_type"]
        assert set(final) == {(id, number) for id in ids for number in numbers}
        for key, state in final.items():
            if state in ("sent", "delivered"):
                assert sent[key] == 1, (key, state)
            elif state in ("failed", "expired"):
                assert sent[key] == 0, (key, state)
        told = Counter(final.values())
        assert told["sent"] + told["delivered"] >= 40, told


async def test_inbound_over_a_hostile_network_is_published_once(broker: Broker, tmp_path: Path) -> None:
    faults = Faults(loss=0.2, duplicate=0.1, reorder=0.1, delay=(0.0, 0.05))
    async with simulated(broker, tmp_path, lines=2, faults=faults) as (_bridge, simulator, watcher, ids):
        for number in range(30):
            simulator.line(ids[number % 2]).receive_sms("+49151", f"text {number // 2}")  # the same text on both lines
        outcomes = await simulator.wait_radio("received_outcome", count=30, within=40)
        await_count = sum(record["result"] == "acked" for record in outcomes)
        assert await_count >= 25
        for record in outcomes:
            if record["result"] == "acked":
                await watcher.until(
                    f"goip/{record['line']}/sms/in", lambda seen, r=record: seen.json["recvid"] == r["recvid"]
                )
        for id in ids:
            recvids = Counter(seen.json["recvid"] for seen in watcher.on(f"goip/{id}/sms/in"))
            assert set(recvids.values()) == {1}


async def test_a_radio_error_is_failed_with_its_code(broker: Broker, tmp_path: Path) -> None:
    async with simulated(broker, tmp_path) as (_bridge, simulator, watcher, [id]):
        simulator.line(id).fail_next(38)
        await watcher.publish(f"goip/{id}/cmd/sms", {"to": "+491512", "text": "x"})
        fact = (await watcher.until(f"goip/{id}/delivery", lambda seen: seen.json["event_type"] == "failed")).json
        assert (fact["error"]["code"], fact["error"]["ambiguous"]) == (38, True)


async def test_a_line_that_is_logged_out_keeps_its_sms_until_it_is_back(broker: Broker, tmp_path: Path) -> None:
    async with simulated(broker, tmp_path, timing={"backoff_s": 60}) as (_bridge, simulator, watcher, [id]):
        simulator.line(id).logout()
        await watcher.until(f"goip/{id}/state", lambda seen: "gsm_logout" in seen.json["problems"])
        await watcher.publish(f"goip/{id}/cmd/sms", {"to": "+491512", "text": "x"})
        again = await watcher.until(
            f"goip/{id}/delivery", lambda seen: seen.json["event_type"] == "queued" and seen.json["error"]
        )
        assert again.json["error"]["text"] == "GSM_LOGOUT"
        simulator.line(id).login()
        await watcher.until(f"goip/{id}/delivery", lambda seen: seen.json["event_type"] == "sent")


async def test_a_call_is_told_step_by_step(broker: Broker, tmp_path: Path) -> None:
    async with simulated(broker, tmp_path) as (_bridge, simulator, watcher, [id]):
        simulator.line(id).incoming_call("+4420", seconds=10)
        await watcher.until(f"goip/{id}/call", lambda seen: seen.json["event_type"] == "ended")
        kinds = [seen.json["event_type"] for seen in watcher.on(f"goip/{id}/call")]
        assert kinds == ["ringing", "recorded", "answered", "ended"]
        assert all(seen.json["number"] == "+4420" for seen in watcher.on(f"goip/{id}/call"))
        await watcher.until(f"goip/{id}/state", lambda seen: seen.json["call"]["number"] is None, count=2)
        states = [seen.json["call"]["state"] for seen in watcher.on(f"goip/{id}/state")]
        assert [state for state, _ in itertools.groupby(states)][-3:] == ["ringing", "active", "idle"]


async def test_a_simulator_that_is_started_again_has_its_line_at_once(broker: Broker, tmp_path: Path) -> None:
    """From the same port it is a box that restarted; from another one the bridge could not tell it from a stranger."""
    async with simulated(broker, tmp_path, port_base=free_udp_port() - 1) as (bridge, simulator, watcher, [id]):
        await simulator.wait_for(lambda: simulator.counts["in"] > 5, 20)  # a count beyond the first ones
        await simulator.stop()
        async with Simulator(simulator.options) as again:
            await bridge.logged(f"line {id}: the gateway restarted")
            await watcher.publish(f"goip/{id}/cmd/sms", {"to": "+491511", "text": "still there?"})
            await again.wait_radio("submit", within=20)
        elsewhere = Simulator(replace(simulator.options, port_base=None))
        async with elsewhere:
            await bridge.logged(
                f"line {id}: a keepalive from 127.0.0.1:{elsewhere.ports[0]}, with its password, is not"
            )
