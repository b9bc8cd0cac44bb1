"""Who has the port or the file that a bridge wants: named in its message."""

import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.system import holders
from broker_fixture import free_port
from harness import BridgeProcess, bridge_config, free_udp_port, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@pytest.mark.parametrize("option", [(), ("--no-supervisor",)])
async def test_a_second_bridge_names_the_first(tmp_path: Path, option: tuple[str, ...]) -> None:
    nobody = {"url": f"mqtt://127.0.0.1:{free_port()}"}
    config = bridge_config(None, "goip", mqtt=nobody)
    async with running(tmp_path, config, command=(*BridgeProcess.command, *option)) as first:
        await first.logged("listening")
        assert first.process is not None
        named = f"process {first.process.pid} (goip-bridge run)"
        (tmp_path / "second").mkdir()
        other = config | {"store": {"path": "other.db"}}
        async with running(tmp_path / "second", other) as second:
            assert await second.ended() == 1
        assert f"cannot listen on udp {config['udp']['listen']}: Address already in use by {named}; " in second.log
        (tmp_path / "third").mkdir()
        same = config | {"store": {"path": str(tmp_path / "bridge.db")}}
        same["udp"] = {"listen": f"127.0.0.1:{free_udp_port()}"}
        async with running(tmp_path / "third", same) as third:
            assert await third.ended() == 1
        assert f"bridge.db: database is locked; {named} uses it: stop that one, or give this one" in third.log


@pytest.mark.parametrize(
    ("bound", "wanted", "found"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("::1", "::1", True),
        ("::1", "::", True),
    ],
)
def test_a_port_is_held_where_it_is_in_the_way(bound: str, wanted: str, found: bool) -> None:
    for protocol, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
        with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET, kind) as sock:
            sock.bind((bound, 0))
            if protocol == "tcp":
                sock.listen()
            holder = holders.of_port(protocol, wanted, sock.getsockname()[1])
        assert bool(re.fullmatch(rf"process {os.getpid()} \(.+\)", holder)) is found


def test_nobody_is_named_where_nobody_is_known(tmp_path: Path) -> None:
    assert holders.of_port("udp", "127.0.0.1", free_udp_port()) == ""
    assert holders.of_lock(tmp_path / "missing.db") == ""
    store = tmp_path / "free.db"
    sqlite3.connect(store).close()
    assert holders.of_lock(store) == ""


def test_a_command_line_is_shown_without_its_values(tmp_path: Path) -> None:
    """Passwords may be among them."""
    port = free_udp_port()
    code = f"import socket; s = socket.socket(2, 2); s.bind(('127.0.0.1', {port})); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "--password", "Xsecret"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        holder = holders.of_port("udp", "127.0.0.1", port)
        other.communicate(b"\n")
    assert holder == f"process {other.pid} ({Path(sys.executable).name})"
