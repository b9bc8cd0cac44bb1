"""The HTTP listener of a running bridge: what it tells, what it hides, whom it refuses, and what it withstands."""

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_disk import fill, small_disk
from test_supervisor import signal_and_wait

from bridge import __version__
from bridge.config.settings import Settings
from bridge.contract.payloads import KINDS, BridgeEvent, Result, SmsIn
from bridge.features.batch import Batch, Run
from bridge.http import listener as http
from bridge.http import metrics, status
from bridge.retained.recent import FACTS, MINUTES, Recent
from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator
from bridge.store.database import OutboxRow
from brokers import free_port
from harness import LIMIT_S, BridgeProcess, as_broker, bridge_config, own_broker, raw_line, running

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
needs_mosquitto = pytest.mark.broker("binary")
SECRET_TEXT = "the code is 4711"
NUMBER = "+4915112345678"
PHONE = "+491700000%d"
"Of the simulated lines."
NO_BROKER = {"url": "mqtt://127.0.0.1:1"}
Answer = tuple[int, bytes, dict[str, str]]


class Http:
    """A client of one bridge."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self.session = session
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str, **headers: str) -> Answer:
        async with self.session.get(self.url + path, headers=_names(headers)) as response:
            return response.status, await response.read(), dict(response.headers)

    async def json(self, path: str) -> dict[str, Any]:
        code, body, headers = await self.get(path)
        assert (code, headers["Content-Type"]) == (200, "application/json"), body
        found = json.loads(body)
        assert isinstance(found, dict)
        return found

    async def post(self, body: Any, path: str = "/send", **headers: str) -> tuple[int, dict[str, Any]]:
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | _names(headers)
        async with self.session.post(self.url + path, data=given, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else {}

    async def until(self, path: str, check: Callable[[Answer], bool]) -> Answer:
        """Ask until the answer passes the check."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    if check(answer := await self.get(path)):
                        return answer
                await asyncio.sleep(0.05)

    async def until_status(self, check: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (await self.until("/status.json", lambda answer: check(json.loads(answer[1]))))[1]
        )
        return found


def _names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextlib.asynccontextmanager
async def served(directory: Path, **more: Any) -> AsyncIterator[tuple[BridgeProcess, Http]]:
    """A bridge that serves HTTP; without a broker unless one is given."""
    port = free_port()
    http = {"listen": f"127.0.0.1:{port}"} | more.pop("http", {})
    config = bridge_config(None, "goip", **({"mqtt": NO_BROKER, "http": http} | more))
    async with aiohttp.ClientSession() as session, running(directory, config) as bridge:
        client = Http(session, port)
        await client.until("/livez", lambda answer: answer[0] == 200)
        yield bridge, client


@contextlib.asynccontextmanager
async def simulated(bridge: BridgeProcess, lines: int = 1) -> AsyncIterator[Simulator]:
    """Registered lines of a quick mobile network."""
    line = LineOptions(phone=PHONE, keepalive=1.0, time_scale=20.0)
    options = SimOptions(server=("127.0.0.1", bridge.udp_port), lines=lines, line=line, seed=7)
    async with Simulator(options) as simulator:
        await simulator.wait_registered(LIMIT_S)
        yield simulator


def sms(**more: Any) -> dict[str, Any]:
    return {"line": "goip1", "to": NUMBER, "text": "hello"} | more


# -- what it tells ------------------------------------------------------------------------------------------------


async def test_the_status_tells_what_the_lines_did_and_hides_numbers_and_texts(tmp_path: Path) -> None:
    lines = {"goip1": {"password": "password1", "name": "Gate SIM", "gateway": "rack1"}, "goip2": {"password": "x"}}
    async with served(tmp_path, lines=lines, http={"send": True}) as (bridge, client), simulated(bridge) as simulator:
        line = simulator.line("goip1")
        line.receive_sms(NUMBER, SECRET_TEXT)
        line.incoming_call(NUMBER, seconds=60.0)
        calling = await client.until_status(lambda found: found["lines"][0]["call"]["state"] in ("ringing", "active"))
        assert NUMBER[1:] not in json.dumps(calling)
        line.hang_up()
        line.ussd_push(f"your balance is 12.34, call {NUMBER}")
        line.event("STRANGE", f"number:{NUMBER};")
        code, result = await client.post(sms(text="another secret"))
        assert (code, result["code"]) == (200, "ok")

        def is_complete(found: dict[str, Any]) -> bool:
            kinds = {fact["kind"] for fact in found["facts"]}
            return found["lines"][0]["today"]["delivered"] == 1 and {"sms_in", "call", "ussd", "event"} <= kinds

        found = await client.until_status(is_complete)
        assert (found["v"], found["send"], found["base_topic"]) == (1, True, "goip")
        assert found["bridge"]["version"] == __version__
        assert found["bridge"]["lines"] == {"online": 1, "total": 2}
        first, second = found["lines"]
        assert [first[key] for key in ("id", "name", "gateway", "online")] == ["goip1", "Gate SIM", "rack1", True]
        assert [second[key] for key in ("id", "name", "gateway", "online")] == ["goip2", None, None, None]
        assert -113 <= first["signal"]["dbm"] <= -51
        assert first["gsm"]["registered"] is True
        assert first["today"] == {"sent": 1, "delivered": 1, "failed": 0, "unknown": 0, "received": 1}
        assert first["queue"] == {"queued": 0, "active": 0}
        assert first["last_sms"]["from"] == "***********678"
        assert first["last_sms"]["chars"] == len(SECRET_TEXT)
        assert second["last_sms"] is None
        minutes = found["traffic"]["minutes"]
        assert len(minutes) == 60
        assert {minute["at"] for minute in minutes} == {
            minute["at"] for minute in sorted(minutes, key=lambda m: m["at"])
        }
        counted = {
            what: sum(minute[what] for minute in minutes) for what in ("received", "sent", "delivered", "failed")
        }
        assert counted == {"received": 1, "sent": 1, "delivered": 1, "failed": 0}
        steps = [fact["event_type"] for fact in found["facts"] if fact["kind"] == "delivery"]
        assert steps == ["queued", "sending", "sent", "delivered"]
        received = next(fact for fact in found["facts"] if fact["kind"] == "sms_in")
        assert received["topic"] == "goip/goip1/sms/in"
        assert (received["line"], received["from"], received["chars"]) == ("goip1", "***********678", 16)
        # Nothing private, wherever it may come from: a stream from the beginning has every fact as well.
        everything = b"".join(
            [(await client.get(path))[1] for path in ("/status.json", "/metrics", "/readyz", "/livez")]
        )
        everything += await first_events(client, len(found["facts"]))
        for private in (SECRET_TEXT, "another secret", "balance", NUMBER[1:], PHONE[1:] % 1, "password1"):
            assert private.encode() not in everything, private


async def first_events(client: Http, count: int) -> bytes:
    """All facts that are kept, as a stream tells them."""
    got = b""
    async with client.session.get(f"{client.url}/events", headers={"Last-Event-ID": "none"}) as response:
        async with asyncio.timeout(LIMIT_S):
            while got.count(b"event: fact") < count:
                got += await response.content.readany()
    return got


def facts_in(stream: bytes) -> list[dict[str, Any]]:
    return [json.loads(data) for data in re.findall(rb"^data: (.*)$", stream, re.MULTILINE)]


async def test_a_stream_brings_each_new_fact_once_and_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    async with served(tmp_path) as (bridge, client), simulated(bridge) as simulator:
        line = simulator.line("goip1")
        line.receive_sms(NUMBER, "before")
        await client.until_status(lambda found: len(found["facts"]) > 0 and found["lines"][0]["last_sms"] is not None)

        async def read(count: int, **headers: str) -> list[dict[str, Any]]:
            got = b""
            async with client.session.get(f"{client.url}/events", headers=_names(headers)) as response:
                assert response.headers["Content-Type"].startswith("text/event-stream")
                async with asyncio.timeout(LIMIT_S):
                    got += await response.content.readany()  # it listens
                    for number in range(count):
                        line.receive_sms(NUMBER, "x" * (number + 1))
                        while len(of_sms(got)) <= number:
                            got += await response.content.readany()
            return of_sms(got)

        def of_sms(stream: bytes) -> list[dict[str, Any]]:
            return [fact for fact in facts_in(stream) if fact["kind"] == "sms_in"]

        assert [fact["chars"] for fact in await read(3)] == [1, 2, 3]
        status = await client.until_status(lambda found: sum(f["kind"] == "sms_in" for f in found["facts"]) == 4)
        kept = [fact for fact in status["facts"] if fact["kind"] == "sms_in"]
        again = await first_events(client, len(status["facts"]))
        assert of_sms(again) == kept
        resumed = await read(1, Last_Event_ID=kept[1]["id"])
        assert [fact["id"] for fact in resumed[:2]] == [fact["id"] for fact in kept[2:]]
        assert re.search(rb"^id: (.*)$", again, re.MULTILINE)[1].decode() == status["facts"][0]["id"]  # type: ignore[index]


async def test_only_what_is_known_becomes_a_metric(tmp_path: Path) -> None:
    lines = {"goip1": {"password": "password1", "gateway": "rack1"}, "goip2": {"password": "x"}}
    async with served(tmp_path, lines=lines, timing={"offline_s": 2}) as (bridge, client):
        async with simulated(bridge) as simulator:
            simulator.line("goip1").receive_sms(NUMBER, SECRET_TEXT)
            known = (b"goip_sms_received_total", b"goip_line_online")
            wanted = [b'%b{gateway="rack1",line="goip1"} 1.0' % name for name in known]
            _, text, headers = await client.until("/metrics", lambda answer: all(one in answer[1] for one in wanted))
        assert headers["Content-Type"].startswith("text/plain")
        samples = {name: (meaning.kind, meaning.labels) for name, meaning in metrics.METRICS.items()}
        found = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text.decode(), re.MULTILINE))
        assert {name: kind for name, (kind, _) in samples.items()} == {
            name: kind for name, kind in found.items() if name.startswith("goip_")
        }
        assert {name for name in found if name.startswith("process_")} == set(metrics.PROCESS)
        for name, labels in re.findall(r"^(goip_\w+)\{(.*)\} ", text.decode(), re.MULTILINE):
            assert set(re.findall(r"(\w+)=\"", labels)) == set(samples[name][1])
        assert b'goip_line_online{gateway="rack1",line="goip1"} 1.0' in text
        assert b'goip_lines{state="online"} 1.0' in text
        gone = (
            await client.until(
                "/metrics",
                lambda answer: b'line="goip1"} 0.0' in answer[1] and b'goip_lines{state="offline"} 2.0' in answer[1],
            )
        )[1]
        assert b'goip_line_online{gateway="rack1",line="goip1"} 0.0' in gone
        assert b'goip_line_online{gateway="",line="goip2"} 0.0' in gone
        assert b"\ngoip_line_signal_dbm{" in text
        assert b"\ngoip_line_signal_dbm{" not in gone
        assert b'goip_line_last_seen_timestamp_seconds{gateway="",line="goip2"}' not in gone


async def test_promtool_finds_nothing_wrong_with_the_metrics(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    async with served(tmp_path) as (bridge, client), simulated(bridge):
        _, text, _ = await client.get("/metrics")
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


# -- whether it works ---------------------------------------------------------------------------------------------


async def checks(client: Http, path: str, code: int) -> dict[str, Any]:
    """The checks, once the answer has this status."""
    _, body, _ = await client.until(path, lambda answer: answer[0] == code)
    found = json.loads(body)
    assert found["ok"] is (code == 200)
    return {name: (check["ok"], check["reason"]) for name, check in found["checks"].items()}


@needs_mosquitto
async def test_without_its_broker_the_bridge_is_alive_but_not_ready(tmp_path: Path) -> None:
    async with (
        own_broker(tmp_path / "broker") as broker,
        served(tmp_path, mqtt={"url": as_broker(broker).url}) as (bridge, client),
    ):
        ready = await checks(client, "/readyz", 200)
        assert ready == {
            "udp": (True, f"listening on 127.0.0.1:{bridge.udp_port}"),
            "store": (True, "writable"),
            "mqtt": (True, "connected, MQTT 5"),
        }
        broker.kill()
        ready = await checks(client, "/readyz", 503)
        assert {name for name, (ok, _) in ready.items() if not ok} == {"mqtt"}
        assert "not connected" in ready["mqtt"][1]
        alive = await checks(client, "/livez", 200)
        assert set(alive) == {"loop"}
        told = await client.until_status(lambda found: not found["bridge"]["ready"])
        assert told["bridge"]["checks"]["mqtt"]["ok"] is False
        broker.start()
        await checks(client, "/readyz", 200)
        assert b"\ngoip_mqtt_reconnects_total 1.0\n" in (await client.get("/metrics"))[1]


@pytest.mark.parametrize(("ago", "ok"), [(0.0, True), (2.5, True), (11.0, False)])
def test_a_bridge_without_its_regular_work_is_not_alive(ago: float, ok: bool) -> None:
    class Standing:
        class clock:  # noqa: N801
            monotonic = staticmethod(lambda: 100.0)

        ticked = 100.0 - ago

    found = status.alive(Standing())  # type: ignore[arg-type]
    assert found == {"loop": {"ok": ok, "reason": f"regular work was done {ago} s ago"}}


@contextlib.contextmanager
def unwritable(pid: int) -> Any:
    """No file of this process may grow, as on a disk that is full to the last byte."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def test_while_the_store_cannot_be_written_nothing_is_sent_and_it_is_said(tmp_path: Path) -> None:
    async with served(tmp_path, http={"send": True}) as (bridge, client), simulated(bridge) as simulator:
        await client.until_status(lambda found: found["lines"][0]["online"] is True)
        with unwritable(bridge.worker_pid):
            simulator.line("goip1").receive_sms(NUMBER, "x")  # a write, so that it is noticed now
            await client.until("/readyz", lambda answer: b"nothing is acknowledged" in answer[1] and answer[0] == 503)
            await checks(client, "/livez", 200)
            await client.until("/metrics", lambda answer: b"\ngoip_store_writable 0.0\n" in answer[1])
            code, result = await client.post(sms(text="too late"))
            assert (code, result["code"]) == (503, "storage")
            assert "not carried out" in result["message"]
        await client.until("/metrics", lambda answer: b"\ngoip_store_writable 1.0\n" in answer[1])
        code, result = await client.post(sms(text="in time"))
        assert (code, result["code"]) == (200, "ok")
        await client.until_status(lambda found: found["lines"][0]["today"]["sent"] == 1)
        assert [record["text"] for record in simulator.radio if record["what"] == "submit"] == ["in time"]


async def test_a_full_disk_is_said_and_sms_are_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path, "size=24m") as disk:
        config = {"store": {"path": str(disk / "bridge.db")}, "http": {"send": True}}
        async with served(tmp_path, **config) as (bridge, client), simulated(bridge) as simulator:
            await client.until_status(lambda found: found["lines"][0]["online"] is True)
            fill(disk)

            async def receive() -> bool:
                simulator.line("goip1").receive_sms(NUMBER, "x" * 160)
                text = (await client.get("/metrics"))[1]
                return b"\ngoip_store_low 1.0\n" in text and b"\ngoip_store_writable 1.0\n" in text

            await until(receive)
            ready = await checks(client, "/readyz", 503)  # for want of a broker
            assert ready["store"] == (True, "writable, but its disk is full: commands are refused until there is room")
            assert (await client.until_status(lambda found: found["bridge"]["store_low"]))["bridge"][
                "store_low"
            ] is True
            code, result = await client.post(sms())
            assert (code, result["code"]) == (503, "storage")


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await check():  # noqa: ASYNC110 - it is another process that changes
            await asyncio.sleep(0.05)


async def test_a_port_in_use_ends_the_start_with_one_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        config = bridge_config(None, "goip", mqtt=NO_BROKER, http={"listen": listen})
        async with running(tmp_path, config) as bridge:
            assert await bridge.ended() == 1
    errors = [line for line in bridge.log.splitlines() if "ERROR" in line]
    assert len(errors) == 1
    holder = rf"process {os.getpid()} \([^)]+\)"
    assert re.search(
        rf"cannot listen on tcp {listen}: Address already in use by {holder}; check http.listen", errors[0]
    )
    assert "Traceback" not in bridge.log


async def test_a_bridge_that_stops_does_not_wait_for_its_streams(tmp_path: Path) -> None:
    async with served(tmp_path) as (bridge, client), client.session.get(f"{client.url}/events") as stream:
        await stream.content.readany()
        assert await bridge.stop() == 0  # the supervisor kills after 9 s
        assert "Traceback" not in bridge.log


async def test_a_worker_that_is_killed_comes_back_with_its_listener(tmp_path: Path) -> None:
    async with served(tmp_path) as (bridge, client):
        before = (await client.json("/status.json"))["bridge"]["started_at"]
        bridge.kill_worker()
        await client.until_status(lambda found: found["bridge"]["started_at"] != before)


def test_nobody_imports_the_listener_who_does_without() -> None:
    code = "import sys, bridge.process.worker; print({'aiohttp', 'prometheus_client'} & set(sys.modules) or [])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_listener_that_others_can_reach_is_noted() -> None:
    def notes(**http: Any) -> str:
        return " ".join(note for note in Settings.model_validate({"http": http}).notes() if note.startswith("http"))

    for local in ("127.0.0.1:8080", "[::1]:8080", "localhost:8080", "[::ffff:127.0.0.1]:8080"):
        assert notes(listen=local, send=True) == ""
    assert "everybody who reaches 0.0.0.0:8080" in notes(listen="0.0.0.0:8080")
    assert "send SMS" not in notes(listen="0.0.0.0:8080")
    assert "send SMS" in notes(listen="pi.example:8080", send=True)
    assert notes(send=True) == "http.send: needs http.listen; there is no status page without it"


# -- sending ------------------------------------------------------------------------------------------------------


async def test_an_sms_is_sent_by_the_same_command_as_over_mqtt(tmp_path: Path) -> None:
    async with served(tmp_path, http={"send": True}) as (bridge, client), simulated(bridge) as simulator:
        await client.until_status(lambda found: found["lines"][0]["online"] is True)
        code, result = await client.post(sms(to="+49 151 / 12345678", text="Grüße 1"))
        assert (code, result["status"], result["command"], result["data"]["parts"]) == (200, "ok", "sms", 1)
        assert set(result) == set(Result.__dataclass_fields__) | {"ts"}
        [record] = await simulator.wait_radio("submit", within=LIMIT_S)
        assert (record["to"], record["text"]) == (NUMBER, "Grüße 1")
        await client.until_status(lambda found: found["lines"][0]["today"]["sent"] == 1)
        for expected in (False, True):  # as over MQTT, an id makes a repeat harmless
            code, result = await client.post(sms(text="once", id="click-1"))
            assert (code, result["id"], result["duplicate"]) == (200, "click-1", expected)
        await client.until_status(lambda found: found["lines"][0]["today"]["sent"] == 2)
        refused = {
            "invalid_payload": (400, sms(to="nobody")),
            "unknown_line": (404, sms(line="goip9")),
        }
        for word, (expected, body) in refused.items():
            code, result = await client.post(body)
            assert (code, result["code"]) == (expected, word), result
        assert [record["text"] for record in simulator.radio if record["what"] == "submit"] == ["Grüße 1", "once"]


async def test_what_is_sent_to_a_name_does_not_tell_its_number(tmp_path: Path) -> None:
    people = {"contacts": {"anna": NUMBER, "ben": NUMBER[:-1]}, "groups": {"family": ["anna", "ben"]}}
    async with served(tmp_path, http={"send": True}, **people) as (_, client):
        for name in ("@anna", "@family"):
            code, result = await client.post(sms(to=name))
            assert (code, result["code"]) == (200, "ok")
            assert result["data"]["msgs"]
            assert NUMBER[:-3] not in json.dumps(result)


async def test_strangers_lines_cost_nothing(tmp_path: Path) -> None:
    """Neither a result nor a topic is made of what somebody calls a line."""
    async with served(tmp_path, http={"send": True}) as (bridge, client):
        for line in ("goip9", "any", "bridge", "pool/a", "goip1/cmd", "+", None, ["goip1"], "x" * 50_000):
            code, answer = await client.post(sms(line=line))
            assert (code, answer["code"]) == (404, "unknown_line"), line
        status = await client.until_status(lambda found: True)
        assert status["bridge"]["outbox"]["count"] == 0
        assert "fault of the bridge" not in bridge.log


async def taken_port(port: int) -> socket.socket:
    """As soon as the last thread of whoever had it is gone."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return socket.create_server(("127.0.0.1", port))
            except OSError:
                await asyncio.sleep(0.01)


async def test_lines_are_served_when_the_port_is_gone_after_a_crash(tmp_path: Path) -> None:
    async with served(tmp_path) as (bridge, client):
        with raw_line(bridge.udp_port) as line:
            await line.register()
            assert bridge.process is not None
            signal_and_wait(bridge.process.pid, signal.SIGSTOP, "T")
            signal_and_wait(bridge.worker_pid, signal.SIGKILL, "Z")
            with await taken_port(client.port):
                bridge.process.send_signal(signal.SIGCONT)
                await line.register()
                await bridge.logged("going on without status page and metrics")
                assert "starting it again in" not in bridge.log


async def test_other_sites_and_odd_requests_send_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, http={"send": True}) as (bridge, client), simulated(bridge) as simulator:
        await client.until_status(lambda found: found["lines"][0]["online"] is True)
        ours = f"127.0.0.1:{client.port}"
        refused: list[tuple[int, dict[str, str]]] = [
            (403, {"Sec_Fetch_Site": "cross-site"}),
            (403, {"Sec_Fetch_Site": "same-site"}),
            (403, {"Sec_Fetch_Site": "cross-site", "Origin": f"http://{ours}"}),
            (403, {"Origin": "http://evil.example"}),
            (403, {"Origin": "null"}),
            (403, {"Origin": "http://127.0.0.1:1"}),
            (403, {"Origin": "http://["}),
            (403, {"Host": "[abc"}),
            (403, {"Host": "evil.example"}),
            (403, {"Host": f"evil.example:{client.port}", "Sec_Fetch_Site": "same-origin"}),
            (415, {"Content_Type": "text/plain"}),
            (415, {"Content_Type": "application/x-www-form-urlencoded"}),
            (415, {"Content_Type": "application/jsonp"}),
        ]
        for expected, headers in refused:
            code, answer = await client.post(sms(), **headers)
            assert (code, answer["status"]) == (expected, "error"), (headers, answer)
        bodies: list[Any] = [
            b"",
            b"{",
            [],
            sms(id="a b"),
            sms(id=7),
            sms(priority=9),
            {"line": "goip1"},
            b'{"line": "goip1", "text": "x", "to": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        ]
        for body in bodies:
            code, answer = await client.post(body)
            assert (code, answer["status"]) == (400, "error"), (body, answer)
        assert (await client.post(b" " * (http.MAX_BODY + 1)))[0] == 413
        assert (await client.get("/send"))[0] == 405
        allowed = [{"Sec_Fetch_Site": "same-origin"}, {"Sec_Fetch_Site": "none"}, {"Origin": f"http://{ours}"}, {}]
        for number, headers in enumerate(allowed):
            code, answer = await client.post(sms(text=f"allowed {number}"), **headers)
            assert (code, answer["code"]) == (200, "ok"), (headers, answer)
        await client.until_status(lambda found: found["lines"][0]["today"]["sent"] == len(allowed))
        assert all(
            str(record.get("text")).startswith("allowed") for record in simulator.radio if record["what"] == "submit"
        )


async def test_without_leave_nothing_can_be_sent(tmp_path: Path) -> None:
    async with served(tmp_path) as (_bridge, client):
        assert (await client.post(sms()))[0] == 404
        assert (await client.json("/status.json"))["send"] is False


@pytest.mark.parametrize(
    ("host", "familiar"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8080", True), ("[::1]:8080", True), ("192.168.1.7:80", True),
        ("localhost:8080", True), ("goip.localhost", True), ("pi.local:8080", True), ("bridge:8080", True),
        (f"{socket.gethostname()}:1", True), ("PI.LOCAL.", True), ("bridge.home.arpa", True),
        ("evil.example", False), ("evil.example:8080", False), ("local.evil.example", False), ("xlocal.example", False),
        ("127.0.0.1.evil.example", False), ("notlocal.com", False), ("", False), ("local.", True), (":8080", False),
        ("127.0.0.1@evil.example", False),
    ],
)  # fmt: skip
def test_only_names_that_nobody_can_register_are_ours(host: str, familiar: bool) -> None:
    assert http._is_familiar(host, []) is familiar


async def test_the_name_that_a_proxy_has_is_ours_when_it_is_configured(tmp_path: Path) -> None:
    async with served(tmp_path) as (_bridge, client):
        code, body, _ = await client.get("/status.json", Host="sms.example.org")
        assert code == 403
        assert json.loads(body)["message"].endswith("or add the name to http.hosts in the configuration")
    (tmp_path / "2").mkdir()
    hosts = {"send": True, "hosts": ["SMS.example.org"]}
    async with served(tmp_path / "2", http=hosts) as (bridge, client), simulated(bridge):
        await client.until_status(lambda found: found["lines"][0]["online"] is True)
        for host in ("sms.example.org", "sms.example.org:8443", "SMS.EXAMPLE.ORG."):
            assert (await client.get("/status.json", Host=host))[0] == 200
        for host in ("example.org", "x.sms.example.org", "sms.example.org.evil.example"):
            assert (await client.get("/status.json", Host=host))[0] == 403
        # A proxy that passes the name on, and one that writes our address into Host.
        ours = {"Origin": "https://sms.example.org"}
        assert (await client.post(sms(text="a"), Host="sms.example.org", **ours))[0] == 200
        assert (await client.post(sms(text="b"), **ours))[0] == 200
        assert (await client.post(sms(text="c"), Sec_Fetch_Site="cross-site", **ours))[0] == 403
        assert (await client.post(sms(text="d"), Origin="https://example.org"))[0] == 403


async def test_a_strangers_name_reads_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (_bridge, client):
        for path in ("/", "/status.json", "/events"):
            code, body, _ = await client.get(path, Host="evil.example")
            assert (code, b"evil.example is not a name" in body) == (403, True), path
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(b"GET /status.json HTTP/1.0\r\n\r\n")  # and one that gives no name
        assert (await reader.read()).split()[1] == b"403"
        writer.close()
        assert (await client.get("/livez", Host="bridge.cluster.example"))[0] == 200
        assert (await client.get("/metrics", Host="bridge.cluster.example"))[0] == 200


def test_the_page_may_run_what_is_in_it_and_nothing_else() -> None:
    policy = http._policy("<style>p {}</style><script type=module>1 < 2</script><script>3</script>")
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["connect-src"] == "'self'"
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", directives["script-src"])) == 2
    assert directives["style-src"].count("'sha256-") == 1
    assert "unsafe" not in policy
    assert http._policy("").split("; ")[1] == "script-src 'none'"


async def test_the_page_is_served_with_its_policy(tmp_path: Path) -> None:
    if not http.PAGE.exists():
        pytest.skip("there is no page")
    async with served(tmp_path) as (_bridge, client):
        code, body, headers = await client.get("/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Content-Security-Policy"] == http._policy(body.decode())
    assert headers["X-Content-Type-Options"] == "nosniff"


# -- what it withstands -------------------------------------------------------------------------------------------


async def test_streams_are_few_and_one_that_ends_makes_room(tmp_path: Path) -> None:
    async with served(tmp_path) as (_bridge, client), contextlib.AsyncExitStack() as stack:
        url = f"{client.url}/events"
        streams = [await stack.enter_async_context(client.session.get(url)) for _ in range(http.MAX_STREAMS)]
        assert {stream.status for stream in streams} == {200}
        code, body, _ = await client.get("/events")
        assert (code, json.loads(body)["message"]) == (503, "20 event streams are open already")
        streams[0].close()

        async def has_room() -> bool:
            async with client.session.get(url) as stream:
                return stream.status == 200

        await until(has_room)


async def test_many_connections_and_garbage_cost_the_lines_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (bridge, client), contextlib.AsyncExitStack() as stack:
        with raw_line(bridge.udp_port) as line:
            await line.register()
            files = len(os.listdir(f"/proc/{bridge.worker_pid}/fd"))
            readers = []
            for number in range(3 * http.MAX_CONNECTIONS):
                reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
                stack.callback(writer.close)
                readers.append(reader)
                writer.write(b"GET /status.json HTTP/1.1\r\nHost: x\r\nX: " if number % 2 else b"")  # never ends
            closed = [asyncio.create_task(reader.read()) for reader in readers[-http.MAX_CONNECTIONS :]]
            async with asyncio.timeout(http.IDLE_S - 3):  # not for being idle
                await asyncio.gather(*closed, return_exceptions=True)
            # Those beyond the limit were only let in as far as the door; the broker is tried again.
            assert len(os.listdir(f"/proc/{bridge.worker_pid}/fd")) <= files + http.MAX_CONNECTIONS + 2
            await line.register()
        await stack.aclose()
        await client.until("/livez", lambda answer: answer[0] == 200)
        written = len(bridge.log)
        for garbage in (b"\0\xff" * 500, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000, b"GET /" + b"a" * 100_000):
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
                writer.write(garbage + b"\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(LIMIT_S):
                        assert not (await reader.read()).startswith(b"HTTP/1.1 200")
                writer.close()
        assert len(bridge.log) - written < 1000, bridge.log[written:][:3000]


async def raw(port: int, request: bytes) -> bytes:
    """The answer, headers and all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(LIMIT_S):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("held", [http.MAX_CONNECTIONS, http.MAX_CONNECTIONS + http.MAX_AT_DOOR + 100])
async def test_connections_that_are_held_open_keep_no_health_check_out(tmp_path: Path, held: int) -> None:
    async with served(tmp_path) as (bridge, client), contextlib.AsyncExitStack() as stack:
        await client.session.close()  # its own connection would stay
        files = len(os.listdir(f"/proc/{bridge.worker_pid}/fd"))

        async def hold(number: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", client.port)
            stack.callback(writer.close)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " if number % 2 else b"")  # never ends

        for number in range(held):
            await hold(number)
        for number in range(40):
            await asyncio.gather(*(hold(number) for number in range(10)))  # and they go on coming
            for path, code in (("/livez", 200), ("/readyz", 503), ("/readyz?verbose=1", 503)):
                answer = await raw(client.port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert answer.startswith(f"HTTP/1.1 {code} ".encode()), (number, path, answer)
                head, _, body = answer.partition(b"\r\n\r\n")
                assert f"Content-Length: {len(body)}".encode() in head
                assert "checks" in json.loads(body)
        assert (await raw(client.port, b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")).endswith(b"\r\n\r\n")
        for request in (b"GET / HTTP/1.1", b"GET /status.json HTTP/1.1", b"POST /livez HTTP/1.1", b"\xff\0 junk"):
            refused = await raw(client.port, request + b"\r\nHost: x\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 503 "), refused
            assert b"only health checks" in refused
        assert len(os.listdir(f"/proc/{bridge.worker_pid}/fd")) <= files + http.MAX_CONNECTIONS + http.MAX_AT_DOOR + 2


async def test_what_waits_at_the_door_is_closed_and_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (_bridge, client), contextlib.AsyncExitStack() as stack:
        await client.session.close()
        for _ in range(http.MAX_CONNECTIONS):
            _, writer = await asyncio.open_connection("127.0.0.1", client.port)
            stack.callback(writer.close)
        assert await raw(client.port, b"GET /livez HTTP/1.1\r\n") == b""  # its time is over
        with contextlib.suppress(ConnectionError):
            answer = await raw(client.port, b"GET /livez HTTP/1.1\r\nX: " + b"x" * 2 * http.MAX_LINE)
            assert answer == b"" or b" 400 " in answer.splitlines()[0]  # the latter when there was room meanwhile
        await stack.aclose()
        async with aiohttp.ClientSession() as session:
            again = Http(session, client.port)
            assert (await again.until("/", lambda answer: answer[0] == 200))[0] == 200


async def test_a_stream_that_does_not_read_is_closed_and_costs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: with facts by the ten thousand, and less patience."""
    monkeypatch.setattr(http, "ANSWER_S", 0.5)
    monkeypatch.setattr(http, "POLL_S", 0.001)
    recent = Recent()
    listener = http.HttpListener(_Standing(), recent, socket.create_server(("127.0.0.1", 0)))  # type: ignore[arg-type]
    await listener.start()
    try:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(listener._socket.getsockname())
        slow.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")

        async def told() -> bool:
            for n in range(recent.count, recent.count + 100):
                recent.take(_batch(n))
            return recent.count > 200 and not listener._streams

        await until(told)
        assert len(recent.facts()) == FACTS
        slow.close()
    finally:
        await listener.close()


class _Standing:
    """As much of a bridge as a stream needs."""

    settings = Settings()


def _batch(n: int) -> Batch:
    batch = Batch(Run(0.0, 0.0), 60.0 * n, 60.0 * n)
    body = json.dumps({"id": f"f{n}", "at": "", "event_type": "received", "from": "1", "from_raw": "1", "chars": n})
    batch.rows = [OutboxRow(n, "goip/goip1/sms/in", "sms_in", 60, body.encode(), None, 0.0)]
    batch.traffic = {"goip1": {"received": 1, "unknown": 1}, "goip2": {"received": 2}}
    return batch


# -- what is kept -------------------------------------------------------------------------------------------------


def test_an_hour_of_traffic_is_kept_also_when_the_clock_is_set() -> None:
    recent = Recent()
    for n in range(200):
        recent.take(_batch(n))
        recent.take(_batch(n))
    assert len(recent._minutes) == MINUTES
    minutes = recent.minutes(199 * 60 + 59)
    assert [minute["received"] for minute in minutes] == [6] * 60
    assert [minute["received"] for minute in recent.minutes(230 * 60)] == [6] * 29 + [0] * 31
    assert minutes[0]["at"] == "1970-01-01T02:20:00.000Z"
    assert set(minutes[0]) == {"at", "received", "sent", "delivered", "failed"}
    recent.take(_batch(10))
    assert [minute["received"] for minute in recent.minutes(10 * 60)] == [0] * 59 + [3]
    assert len(recent._minutes) == 1


def test_the_last_hundred_facts_are_kept() -> None:
    recent = Recent()
    assert recent.facts() == []
    for n in range(250):
        recent.take(_batch(n))
    assert [row.n for row in recent.facts()] == list(range(150, 250))
    assert [row.n for row in recent.facts(247)] == [247, 248, 249]
    assert recent.facts(250) == []
    assert recent.position("f200") == 201
    assert recent.position("f1") == 0


def test_ids_and_words_that_strangers_choose_show_no_numbers() -> None:
    batch = Batch(Run(0.0, 0.0), 0.0, 0.0)
    told = {
        "event_type": "line_unknown",
        "message": f"Add {NUMBER} to lines.",
        "line": NUMBER,
        "topic": f"goip/x/cmd/sms/{NUMBER}",
    }
    batch.fact("goip/bridge/event", BridgeEvent, **told)  # type: ignore[arg-type]
    _, schema, _, body, _, _ = batch.outbox[0]
    fact = json.loads(status.public_fact("goip", "goip/bridge/event", schema, body))
    assert (fact["line"], fact["message"]) == ("***********678", "Add ***********678 to lines.")
    assert NUMBER[1:] not in json.dumps(fact)


@pytest.mark.parametrize("kind", [kind.schema for kind in KINDS.values() if kind.schema != "result"])
def test_no_kind_of_fact_shows_a_text_or_a_number(kind: str) -> None:
    examples = json.loads((SCHEMAS / f"{kind}.json").read_text())["examples"]
    assert examples
    for example in examples:
        fact = json.loads(status.public_fact("goip", f"goip/goip1/{kind}", kind, json.dumps(example).encode()))
        assert [fact[key] for key in ("id", "at", "kind", "event_type")] == [
            example["id"], example["at"], kind, example["event_type"],
        ]  # fmt: skip
        assert not {"text", "raw", "raw_hex", "fields", "from_raw"} & set(fact)
        assert not re.search(r"\+?[0-9]{7}", json.dumps({key: fact[key] for key in fact.keys() - {"id", "msg"}}))


def test_a_sender_that_is_a_name_is_masked_too() -> None:
    batch = Batch(Run(0.0, 0.0), 0.0, 0.0)
    fields = {"from_": None, "from_raw": "MyBank", "text": "x", "chars": 1, "recvid": 1, "smsc": None, "senttime": None}
    batch.fact("goip/goip1/sms/in", SmsIn, **fields)  # type: ignore[arg-type]
    _, schema, _, body, _, _ = batch.outbox[0]
    fact = json.loads(status.public_fact("goip", "goip/goip1/sms/in", schema, body))
    assert fact["from"] == "******"
