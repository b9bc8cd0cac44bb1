"""The simulator at an SMS server that is not ours: npm's `goip`, as it comes.

What it does is its own: it answers keepalives with the wrong word, lower-cases what it receives, and acknowledges five
kinds of events (docs/protocol.md §3 and §13). A box lives with all of that, so the simulated one has to.
"""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.sim.line import Registration
from bridge.sim.options import LineOptions
from bridge.sim.profiles import PROFILES
from bridge.sim.run import SimOptions, Simulator
from harness import LIMIT_S

SERVER = """
const {ServerFactory, SocketSms} = require("goip");
const server = ServerFactory.make(0, {address: "127.0.0.1"});
const say = (what) => console.log(JSON.stringify(what));
server.onAll((message) => say({fields: message.attributes(), port: message.request().port()}));
server.run();
require("readline").createInterface({input: process.stdin}).on("line", (line) => {
    const {port, password, to, text} = JSON.parse(line);
    new SocketSms("127.0.0.1", port, password).sendOne(to, text)
        .then((sent) => say({sent}), (error) => say({failed: error.message}));
});
"""
REPEATS = 3


class OtherServer:
    """The package's server in a process of its own, and its client, which sends SMS through a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._news = asyncio.Condition()
        self.port = 0
        self.said: list[dict[str, Any]] = []

    async def read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._news:
                if listening := re.match(rb"server listening 127\.0\.0\.1:(\d+)", line):
                    self.port = int(listening[1])
                else:
                    self.said.append(json.loads(line))
                self._news.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._news, asyncio.timeout(LIMIT_S):
            await self._news.wait_for(condition)

    def received(self, kind: str) -> list[dict[str, str]]:
        """Events of this kind, each with its fields; a repeat is there again."""
        return [said["fields"] for said in self.said if kind in said.get("fields", {})]

    async def first(self, kind: str) -> dict[str, str]:
        """The first event of this kind, which may be acknowledged before it is told."""
        await self.until(lambda: self.received(kind) != [])
        return self.received(kind)[0]

    async def send_sms(self, line: str, to: str, text: str) -> dict[str, str]:
        """What the client says of an SMS that it sent through a line."""
        await self.first("req")
        port = next(said["port"] for said in self.said if said.get("fields", {}).get("id") == line)
        order = {"port": port, "password": "password1", "to": to, "text": text}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.until(lambda: any("sent" in said or "failed" in said for said in self.said))
        (told,) = [said for said in self.said if "fields" not in said]
        sent: dict[str, str] = told["sent"]
        return sent


@pytest.fixture
async def server(node_modules: Path) -> AsyncIterator[OtherServer]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("node", "-e", SERVER, cwd=node_modules, stdin=pipe, stdout=pipe)
    other = OtherServer(process)
    reading = asyncio.create_task(other.read())
    try:
        await other.until(lambda: other.port != 0)
        yield other
    finally:
        process.kill()
        await process.wait()
        await reading


@contextlib.asynccontextmanager
async def registered(server: OtherServer, profile: str = "spec") -> AsyncIterator[Simulator]:
    """A line that has heard an answer to its keepalive."""
    line = LineOptions(profile=PROFILES[profile], keepalive=1.0, time_scale=50.0, resend=0.3, repeats=REPEATS)
    async with Simulator(SimOptions(server=("127.0.0.1", server.port), line=line, seed=7)) as simulator:
        answered = simulator.line("goip1")
        await simulator.wait_for(lambda: answered.registration is Registration.WRONG_WORD, LIMIT_S)
        yield simulator


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"slow"}))  # its client gives up after 8 s
async def test_sms_go_both_ways_with_any_firmware(server: OtherServer, profile: str) -> None:
    async with registered(server, profile) as simulator:
        simulator.line("goip1").receive_sms("+49123", "hello, you: there")
        await simulator.wait_radio("received_outcome", within=LIMIT_S, result="acked", tries=1)
        received = await server.first("receive")
        assert (received["id"], received["srcnum"], received["msg"]) == ("goip1", "+49123", "hello, you: there")

        sent = await server.send_sms("goip1", "+4915112345678", "Hello back; all of it")
        (submit,) = await simulator.wait_radio("submit", within=LIMIT_S, result="ok")
        assert (submit["to"], submit["text"]) == ("+4915112345678", "Hello back; all of it")
        number = str(submit["sms_no"]) if PROFILES[profile].answers_sms_no else None
        assert (sent["sendid"], sent["telid"], sent.get("sms_no")) == (str(submit["sendid"]), "1", number)

        await simulator.wait_radio("report_outcome", within=LIMIT_S, result="acked", tries=1)
        report = await server.first("deliver")
        assert (report["sms_no"], report["state"], report["num"]) == (str(submit["sms_no"]), "0", "+4915112345678")


async def test_events_that_the_server_does_not_know_are_given_up(server: OtherServer) -> None:
    async with registered(server) as simulator:
        simulator.line("goip1").outgoing_call("+49123", answered=False, seconds=5)
        tries = 1 + REPEATS
        await server.until(lambda: all(len(server.received(kind)) == tries for kind in ("expiry", "remain")))
        assert {fields["exp"] for fields in server.received("expiry")} == {"0"}
        # Acknowledged, so each was sent once: dialling, alerting and idle; the call's record, and its end.
        counts = Counter({kind: len(server.received(kind)) for kind in ("state", "record", "hangup")})
        assert counts == {"state": 3, "record": 1, "hangup": 1}
