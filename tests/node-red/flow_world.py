"""Everything around the flows, for real: a broker with users and rights, the bridge, simulated lines, Node-RED.

Node-RED is driven and watched through its own admin API: flows are deployed, inject nodes pressed, and what debug nodes
show in the sidebar is read from its websocket.
"""

import asyncio
import contextlib
import json
import os
import pty
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

import outputs
from broker_fixture import REPOSITORY, Broker
from brokers import Mosquitto, free_port
from harness import LIMIT_S, BridgeProcess, bridge_config, running, watching

FLOWS = sorted((REPOSITORY / "examples/node-red").glob("*.json"))
PAGE = REPOSITORY / "docs/node-red.md"
PASSWORDS = {"bridge": "bridge-1", "nodered": "nodered-1", "admin": "admin-1"}
SETTINGS = """
module.exports = {
    uiHost: "127.0.0.1", uiPort: %(port)d, flowFile: "flows.json", credentialSecret: false,
    mqttReconnectTime: 500, debugMaxLength: 100000,
    telemetry: {enabled: false, updateNotification: false},
    externalModules: {palette: {allowInstall: false}, modules: {allowInstall: false}},
    editorTheme: {tours: false, projects: {enabled: false}},
    logging: {console: {level: "info"}},
};
"""
"As it comes, but for: no network but the broker, faster reconnects, and debug messages in full."

Json = dict[str, Any]


def rights() -> str:
    """The broker's access rules: those of the repository, and the user that docs/node-red.md adds."""
    (user,) = re.findall(r"^```text\n(user nodered\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return (REPOSITORY / "mosquitto/acl").read_text() + "\n" + user


def all_flows() -> list[Json]:
    """All files as one, as if they were imported one after the other: what is the same in several is there once."""
    nodes: dict[str, Json] = {}
    for path in FLOWS:
        nodes |= {node["id"]: node for node in json.loads(path.read_text())}
    return list(nodes.values())


@dataclass(frozen=True)
class Shown:
    """What a debug node showed."""

    tab: str
    node: str
    value: Any


class NodeRed:
    """A headless Node-RED, and its admin API."""

    def __init__(self, directory: Path, node_modules: Path, broker_port: int) -> None:
        self.directory = directory
        self.port = free_port()
        self.shown: list[Shown] = []
        self.log = ""
        self._node_modules = node_modules
        self._broker_port = broker_port
        self._news = asyncio.Condition()
        self._flows: list[Json] = []
        (directory / "settings.js").write_text(SETTINGS % {"port": self.port})

    # -- the process

    async def start(self) -> None:
        self.log = ""
        program = str(self._node_modules / "node-red/red.js")
        arguments = ("--userDir", str(self.directory), "--settings", str(self.directory / "settings.js"))
        self._process = await asyncio.create_subprocess_exec(
            "node", program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        process = self._process
        outputs.show("Node-RED", lambda: process.returncode is None, lambda: self.log)
        self._reader = asyncio.create_task(self._read())
        await self.logged("Server now running")
        self._http = aiohttp.ClientSession(f"http://127.0.0.1:{self.port}")
        self._listener = asyncio.create_task(self._listen(await self._http.ws_connect("/comms")))

    async def stop(self) -> None:
        self._listener.cancel()
        await self._http.close()
        self._process.terminate()
        await asyncio.wait_for(self._process.wait(), LIMIT_S)
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._news:
                self.log += line.decode()
                self._news.notify_all()

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_json({"subscribe": "debug"})
        async for message in socket:
            found = json.loads(message.data)
            for one in found if isinstance(found, list) else [found]:
                if one.get("topic") == "debug":
                    async with self._news:
                        self.shown.append(self._debug(one["data"]))
                        self._news.notify_all()

    def _debug(self, data: Json) -> Shown:
        value = data.get("msg")
        if re.match(r"Object|array|error", data.get("format", "")) and isinstance(value, str):
            value = json.loads(value)
        labels = {node["id"]: node.get("label") for node in self._flows}
        return Shown(tab=str(labels.get(data.get("z"))), node=data.get("name", ""), value=value)

    async def logged(self, text: str, since: str = "") -> None:
        """Until the log has a text, behind the last time that it has another one."""
        async with self._news, asyncio.timeout(LIMIT_S):
            await self._news.wait_for(lambda: text in (self.log.rpartition(since)[2] if since else self.log))

    # -- the admin API

    async def deploy(self, nodes: list[Json], settings: dict[str, dict[str, str]] | None = None) -> None:
        """Deploy the flows with the broker's address and login, and with other values in tabs' properties."""
        self._flows = json.loads(json.dumps(nodes))
        for node in self._flows:
            if node["type"] == "mqtt-broker":
                node |= {"broker": "127.0.0.1", "port": str(self._broker_port)}
                node["credentials"] = {"user": "nodered", "password": PASSWORDS["nodered"]}
            for variable in node.get("env", []) if node["type"] == "tab" else []:
                variable["value"] = (settings or {}).get(node["label"], {}).get(variable["name"], variable["value"])
        before = self.log.count("Started flows")
        headers = {"Node-RED-API-Version": "v2", "Node-RED-Deployment-Type": "full"}
        async with self._http.post("/flows", json={"flows": self._flows}, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        async with self._news, asyncio.timeout(LIMIT_S):
            await self._news.wait_for(lambda: self.log.count("Started flows") > before)
        await self.logged("Connected to broker", since="Starting flows")

    async def press(self, tab: str, name: str) -> None:
        """The button of an inject node."""
        tabs = {node["id"]: node["label"] for node in self._flows if node["type"] == "tab"}
        (node,) = (n for n in self._flows if n["type"] == "inject" and n["name"] == name and tabs[n["z"]] == tab)
        async with self._http.post(f"/inject/{node['id']}") as answer:
            assert answer.status == 200

    def on(self, tab: str, node: str) -> list[Any]:
        """What this debug node has shown so far."""
        return [shown.value for shown in self.shown if (shown.tab, shown.node) == (tab, node)]

    async def until(self, tab: str, node: str, check: Callable[[Any], object] = lambda _: True, count: int = 1) -> Any:
        """The `count`-th that this debug node showed and that passes the check."""

        def found() -> list[Any]:
            return [value for value in self.on(tab, node) if check(value)]

        async with self._news:
            try:
                async with asyncio.timeout(LIMIT_S):
                    await self._news.wait_for(lambda: len(found()) >= count)
            except TimeoutError:
                raise AssertionError(f"{tab}: {node} did not show it; all: {self.shown[-30:]}\n{self.log}") from None
        return found()[count - 1]


class World:
    """Broker, bridge with the lines goip1 to goip3, a simulated box with the first two, and Node-RED."""

    def __init__(self, directory: Path, node_modules: Path) -> None:
        self.directory = directory
        self.mosquitto = Mosquitto(directory, "log_type all", passwords=PASSWORDS, acl=rights(), persistence=True)
        self.broker = Broker(kind="mosquitto", host="127.0.0.1", port=self.mosquitto.port, passwords=PASSWORDS)
        self.radio_log = directory / "radio.jsonl"
        (directory / "node-red").mkdir()
        self.red = NodeRed(directory / "node-red", node_modules, self.mosquitto.port)
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as exits:
            exits.enter_context(self.mosquitto)
            lines = {f"goip{number}": {"password": f"password{number}"} for number in (1, 2, 3)}
            config = bridge_config(self.broker, "goip", lines)
            self.bridge: BridgeProcess = await exits.enter_async_context(running(self.directory, config))
            await exits.enter_async_context(self._simulator(self.bridge.udp_port))
            await self.red.start()
            exits.push_async_callback(self.red.stop)
            await self.online("goip1", "goip2")
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def online(self, *lines: str) -> None:
        for line in lines:
            async with watching(self.broker, f"goip/{line}/availability") as watcher:
                await watcher.until(f"goip/{line}/availability", lambda seen: seen.payload == b"online")

    async def subscribed(self, topic: str) -> None:
        """Until the broker has a subscription of Node-RED, which says that it is connected a little earlier."""
        deadline = time.monotonic() + LIMIT_S
        while not re.search(rf"from node-red-goip\n.*\t{re.escape(topic)} \(QoS 1\)", self.mosquitto.log):
            assert time.monotonic() < deadline, self.mosquitto.log[-4000:]
            await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def _simulator(self, udp_port: int) -> AsyncIterator[None]:
        """`goip-bridge sim` on a terminal of its own, so that it takes commands."""
        terminal, its_end = pty.openpty()
        arguments = ("--server", f"127.0.0.1:{udp_port}", "--lines", "2", "--keepalive", "1")
        speed = ("--wait", "1-2", "--time-scale", "5", "--radio-log", str(self.radio_log))
        path = self.directory / "simulator.log"
        with path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bridge", "sim", "--port-base", "0", *arguments, *speed,
                cwd=self.directory, stdin=its_end, stdout=log, stderr=log,
            )  # fmt: skip
        outputs.show("simulator", lambda: process.returncode is None, path.read_text)
        os.close(its_end)
        self._terminal = terminal
        try:
            yield
        finally:
            process.terminate()
            await process.wait()
            os.close(terminal)

    def type(self, command: str) -> None:
        """A command for the simulator."""
        os.write(self._terminal, f"{command}\n".encode())

    def radio(self, what: str = "submit", **fields: object) -> list[Json]:
        """What the modems really did."""
        records = [json.loads(line) for line in self.radio_log.read_text().splitlines()]
        return [one for one in records if one["what"] == what and fields.items() <= one.items()]

    async def sent(self, text: str) -> list[tuple[str, str]]:
        """(line, number) of each SMS with this text, once there is one."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := [(one["line"], one["to"]) for one in self.radio(text=text)]):
            assert time.monotonic() < deadline, f"nobody sent {text!r}"
            await asyncio.sleep(0.05)
        return found
