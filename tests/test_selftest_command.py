"""`goip-bridge selftest` and its command: the bridge, a broker and simulated boxes of several firmwares.

Everything is real but the time: a box here forgets a session after 4 s, and the bridge waits as much less.
"""

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from bridge.app import bridge as app
from bridge.app.bridge import Bridge
from bridge.config import settings as configuration
from bridge.goip.timing import Timing
from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.run import SimOptions, Simulator
from bridge.store.database import Store
from broker_fixture import Broker
from harness import LIMIT_S, RawLine, Seen, Watcher, bridge_config, raw_line, sweep, watching

SESSION_IDLE_S = 4.0
TIMING = Timing(
    resend=2.0, done=1.0, selftest_repeat=0.1, selftest_known=1.5, selftest_forgotten=5.5, selftest_watch=2.0
)
FIRMWARE = {"spec": "st-a", "no_sms_no": "st-b", "repeat_unsafe_wait": "st-c", "repeat_unsafe_always": "st-d"}
"The profiles, and how the ids of their two lines begin."
COUNTED = 6
"SMS that may be charged, as `goip-bridge selftest` says beforehand."


@contextlib.asynccontextmanager
async def serving(folder: Path, timing: Timing) -> AsyncIterator[Bridge]:
    """A bridge in this process, with the configuration in the folder and the times of this test."""
    settings = configuration.load(folder / "config.yaml", {})
    store = Store(settings.store.path)
    stop, listening = asyncio.Event(), asyncio.Event()
    assert settings.mqtt.address is not None
    with mock.patch.object(app, "_timing", return_value=timing):
        bridge = Bridge(settings, store, lambda: settings)
        task = asyncio.create_task(
            bridge.run(stop, settings.mqtt.address, serving=lambda _: listening.set()), name="bridge"
        )
        try:
            await asyncio.wait_for(listening.wait(), LIMIT_S)
            yield bridge
        finally:
            stop.set()
            await task
            store.close()


def box(profile: str, port: int) -> Simulator:
    """Two lines with a SIM each; one is known to the box with its number, as all of them are to the network."""
    line = LineOptions(
        id=f"{FIRMWARE[profile]}%d", password="password%d", profile=PROFILES[profile], phone="+4917000%02d",
        keepalive=0.5, session_idle=SESSION_IDLE_S, time_scale=20.0, wait=(10.0, 11.0),
    )  # fmt: skip
    return Simulator(SimOptions(server=("127.0.0.1", port), lines=2, line=line, seed=3))


@dataclass
class Outcome:
    """What is left of one run of self-tests, on every firmware at once."""

    folder: Path
    cli: tuple[int, str, str]
    "Exit code, stdout and stderr of the command line, which tested the profile `spec`."
    report: str
    results: dict[str, dict[str, Any]]
    "By profile."
    refusals: dict[str, str]
    "Code by what was wrong."
    seen: list[Seen]
    submitted: dict[str, int]
    "SMS that the modem sent."
    sms_in: dict[str, int]
    proofs: dict[str, Any]


async def command_line(folder: Path, *arguments: str) -> tuple[int, str, str]:
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "bridge", "selftest", *arguments], cwd=folder, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=LIMIT_S,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GOIP_")}


REFUSED = {  # those who are at it first: on a busy machine their tests may be over soon
    "the sender is at it": ("st-c1", {"to": "st-b2", "id": "again"}),
    "the receiver is at it": ("st-b2", {"to": "st-c2"}),
    "the same line": ("st-b1", {"to": "st-b1"}),
    "no such line": ("st-b1", {"to": "nobody"}),
    "the sender is offline": ("st-off", {"to": "st-b2"}),
    "the receiver is offline": ("st-b1", {"to": "st-off", "number": "+4911"}),
    "nobody knows the number": ("st-b1", {"to": "st-dumb"}),
}


async def refuse(watcher: Watcher, what: str) -> str:
    line, payload = REFUSED[what]
    payload = {"id": what} | payload
    await watcher.publish(f"goip/{line}/cmd/selftest", payload)
    found = await watcher.until(f"goip/{line}/result/selftest", lambda seen: seen.json["id"] == payload["id"])
    return str(found.json["code"])


async def examine(broker: Broker, folder: Path) -> Outcome:
    """Test every firmware at the same time."""
    lines = {f"{prefix}{n}": {"password": f"password{n}"} for prefix in FIRMWARE.values() for n in (1, 2)}
    lines |= {name: {"password": "password1"} for name in ("st-off", "st-dumb")}
    config = bridge_config(broker, "goip", lines, store={"path": str(folder / "bridge.db")}, instance="selftest")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    port = int(config["udp"]["listen"].rpartition(":")[2])
    async with (
        watching(broker, *[f"goip/{line}/#" for line in lines]) as watcher,
        serving(folder, TIMING) as bridge,
        contextlib.AsyncExitStack() as stack,
    ):
        boxes = {profile: await stack.enter_async_context(box(profile, port)) for profile in FIRMWARE}
        with raw_line(port, "st-dumb") as dumb:
            await dumb.register()
        for simulator in boxes.values():
            await simulator.wait_registered(20)
        cli = asyncio.create_task(
            command_line(folder, "--from", "st-a1", "--to", "st-a2", "--yes", "--report", "report.md")
        )
        for profile, prefix in FIRMWARE.items():
            if profile != "spec":
                number = {"number": "+491700002"} if profile == "no_sms_no" else {}
                await watcher.publish(f"goip/{prefix}1/cmd/selftest", {"id": profile, "to": f"{prefix}2"} | number)
        refusals = {what: await refuse(watcher, what) for what in REFUSED}
        step = await watcher.until("goip/st-a1/event", lambda seen: seen.json["event_type"] == "selftest")
        await watcher.publish(step.topic, step.payload)  # facts come at least once
        await watcher.publish(step.topic, step.json | {"id": "other", "cmd": "other", "text": "not ours"})
        await watcher.publish("goip/st-a1/cmd/sms", {"to": "+49151", "text": "waits"})
        ended = await cli
        results = {}
        for profile, prefix in FIRMWARE.items():
            seen = await watcher.until(f"goip/{prefix}1/result/selftest", lambda seen: "verdict" in seen.json["data"])
            results[profile] = seen.json
        await watcher.until("goip/st-a1/delivery", lambda seen: seen.json["event_type"] == "delivered")
        return Outcome(
            folder=folder,
            cli=ended,
            report=(folder / "report.md").read_text(),
            results=results,
            refusals=refusals,
            seen=watcher.seen,
            submitted={
                profile: sum(r["what"] == "submit" and "self-test" in str(r["text"]) for r in simulator.radio)
                for profile, simulator in boxes.items()
            },
            sms_in={profile: len(watcher.on(f"goip/{prefix}2/sms/in")) for profile, prefix in FIRMWARE.items()},
            proofs=dict(bridge.store.proofs()),
        )


@pytest.fixture(scope="module")
def tested(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    yield asyncio.run(examine(broker, tmp_path_factory.mktemp("selftest")))
    asyncio.run(sweep(broker))


@pytest.mark.parametrize(
    ("profile", "verdict", "dense"),
    [("spec", "safe", True), ("no_sms_no", "safe", None), ("repeat_unsafe_wait", "unsafe", None),
     ("repeat_unsafe_always", "unsafe", None)],
)  # fmt: skip
def test_verdict_is_that_of_the_firmware(tested, profile, verdict, dense):
    result = tested.results[profile]
    assert (result["code"], result["retryable"], result["data"]["verdict"]) == ("ok", False, verdict), result
    assert result["data"]["dense"] is dense
    proof = tested.proofs[f"{FIRMWARE[profile]}1"]
    assert (proof.safe, proof.dense, proof.identity) == (verdict == "safe", bool(dense), "86000002")


def test_it_costs_what_was_said(tested):
    assert (tested.submitted["spec"], tested.submitted["no_sms_no"]) == (2, 2)
    assert 1 < tested.submitted["repeat_unsafe_wait"] <= COUNTED
    assert 1 < tested.submitted["repeat_unsafe_always"] <= COUNTED
    assert tested.results["spec"]["data"]["copies"] == [1, 1]
    assert tested.sms_in["spec"] == 2, "its SMS are told like all others"


def test_what_can_not_be_done_is_refused(tested):
    assert tested.refusals == {
        "the same line": "invalid_payload",
        "no such line": "unknown_line",
        "the sender is offline": "line_offline",
        "the receiver is offline": "line_offline",
        "nobody knows the number": "invalid_payload",
        "the sender is at it": "busy",
        "the receiver is at it": "busy",
    }


def test_sms_of_the_line_waits_and_goes_on_after(tested):
    own = [seen for seen in tested.seen if seen.topic in ("goip/st-a1/delivery", "goip/st-a1/result/selftest")]
    assert [seen.json.get("event_type", "result") for seen in own] == [
        "queued", "result", "sending", "sent", "delivered",
    ]  # fmt: skip
    reported = [seen.json for seen in own if seen.json.get("evidence") == "report"]
    assert all(fact["msg"] is not None for fact in reported), "a report of the self-test's SMS is nobody's"


def test_steps_are_told_as_they_happen(tested):
    steps = [seen.json for seen in tested.seen if seen.topic == "goip/st-b1/event"]
    told = [step for step in steps if step["event_type"] == "selftest"]
    assert [step["step"] for step in told][:4] == ["open", "send", "answer", "repeat"]
    assert {step["cmd"] for step in told} == {"no_sms_no"}
    shown = [(one["step"], one["text"]) for one in tested.results["no_sms_no"]["data"]["steps"]]
    assert [(step["step"], step["text"]) for step in told] == shown


def test_command_line_shows_steps_and_verdict(tested):
    code, out, err = tested.cli
    assert (code, err) == (0, "")
    assert out.startswith("This sends 2 SMS from st-a1 to st-a2. Up to 6 are charged")
    assert len(re.findall(r"^ +0\.\d s  1/2  SMS 1: MSG$", out, re.MULTILINE)) == 1
    assert "not ours" not in out
    assert re.search(r"^ +\d+\.\d s  2/2  the gateway answers ERROR SENDID$", out, re.MULTILINE)
    assert "\nSafe: a repeated SEND is answered from memory" in out
    assert "The report is in report.md." in out


def test_report_says_all_and_names_nobody(tested):
    title, *_ = tested.report.splitlines()
    assert title == "# goip-bridge self-test: safe"
    assert "| 86000002 |" in tested.report
    block = re.search(r"```json\n(.*?)\n```", tested.report, re.DOTALL)
    assert block is not None
    data = json.loads(block[1])
    assert set(data) == {
        "format", "bridge", "gateway", "verdict", "reasons", "copies", "sms_nos", "dense", "took_s", "timing", "steps",
        "date",
    }  # fmt: skip
    assert data["gateway"]["keepalive_fields"][:3] == ["num", "signal", "gsm_status"]
    for private in ("491700", "password", "st-a", "860000020", "26006", "89480"):
        assert private not in tested.report, private


# -- what the proof is good for, over a restart of the bridge


async def send_and_wait(watcher: Watcher, line: RawLine, id: str) -> str:
    """An SMS that the box accepts, and says no more about: the verb that the bridge sends next."""
    await watcher.publish(f"goip/{line.id}/cmd/sms", {"id": id, "to": "+49151", "text": id})
    while not (message := await line.receive()).startswith(b"MSG "):
        pass
    sendid = message.split()[1].decode()
    assert (await line.ask(f"PASSWORD {sendid}\n")).startswith(b"PASSWORD ")
    assert (await line.ask(f"SEND {sendid}\n")).startswith(b"SEND ")
    verb = (await line.ask(f"WAIT {sendid} 1\n")).split()[0].decode()
    line.send(f"OK {sendid} 1\n")
    while not (await line.receive()).startswith(b"DONE "):
        pass
    line.send(f"DONE {sendid}\n")
    return verb


async def test_proof_survives_a_restart_and_is_of_no_use_for_another_module(tested: Outcome, broker: Broker) -> None:
    timing = Timing(resend=0.3, wait=1.5, done=1.0)
    async with watching(broker, "goip/st-a1/#") as watcher, serving(tested.folder, timing) as bridge:
        assert bridge.udp is not None
        with raw_line(bridge.udp.address[1], "st-a1") as line:
            line.count = 100_000
            await line.register(imei="860000021234567")
            assert await send_and_wait(watcher, line, "same") == "SEND", "asked again: it is proved"
            await line.register(imei="111111111234567")
            assert await send_and_wait(watcher, line, "other") == "DONE", "only listened to, until it was given up"


# -- the command line by itself


def config_only(folder: Path) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump({"mqtt": {"url": "mqtt://127.0.0.1:9"}}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--from", "a", "--to", "a", "--yes"], "--to: should be another line"),
        (["--from", "a", "--to", "b"], "nobody can be asked here: say --yes"),
        (["--from", "a", "--to", "b", "--yes", "--report", "no/such/file"], "no/such/file: cannot be written"),
        (["--from", "a", "--to", "b/c"], "'b/c' is not a line's id"),
    ],
)
async def test_wrong_usage_is_exit_code_2(tmp_path, arguments, fault):
    code, _, err = await command_line(config_only(tmp_path), *arguments)
    assert code == 2
    assert fault in err


@pytest.mark.parametrize(("answer", "code", "said"), [("n\n", 1, "nothing was sent"), ("y\n", 1, "cannot connect")])
def test_it_asks_before_it_costs_something(tmp_path, answer, code, said):
    terminal, own = pty.openpty()
    os.write(terminal, answer.encode())
    command = [sys.executable, "-m", "bridge", "selftest", "--from", "a", "--to", "b"]
    ended = subprocess.run(
        command, cwd=config_only(tmp_path), stdin=own, capture_output=True, text=True, timeout=LIMIT_S,
        env=environment(), check=False,
    )  # fmt: skip
    os.close(own)
    os.close(terminal)
    assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr
    assert "Go on? [y/N]" in ended.stdout
