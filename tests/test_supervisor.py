"""The supervisor: with the bridge as its worker, and with small workers that do what a test needs."""

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import outputs
from bridge.app.bridge import Bridge
from bridge.config.settings import BrokerUrl, Settings
from bridge.goip.server import LineMemory
from bridge.process.keeper import Systemd
from bridge.process.supervisor import _pauses
from bridge.store.database import Store
from bridge.system.udp import BATCH, UdpSocket
from broker_fixture import Broker
from harness import LIMIT_S, BridgeProcess, RawLine, Watcher, bridge_config, children, raw_line, running, watching
from harness import sweep as sweep_broker

_numbers = itertools.count(1)


@pytest.fixture
async def sweep(broker: Broker) -> AsyncIterator[None]:
    yield
    await sweep_broker(broker)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what shows only outside of the bridge, in /proc."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def state(pid: int) -> str:
    """R, S, T for stopped, Z for a zombie…; Z as well when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def signal_and_wait(pid: int, number: signal.Signals, wanted: str) -> None:
    """Until it had its effect: a busy machine takes a while, and later signals may overtake it."""
    os.kill(pid, number)
    deadline = time.monotonic() + LIMIT_S
    while state(pid) != wanted:
        assert time.monotonic() < deadline


def udp_inode(port: int) -> str:
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[1].endswith(f":{port:04X}"):
            return columns[9]
    raise AssertionError(f"nobody has udp port {port}")


@contextlib.contextmanager
def gap(bridge: BridgeProcess) -> Iterator[None]:
    """The worker is dead, and no other one starts before the end of the block."""
    assert bridge.process is not None
    signal_and_wait(bridge.process.pid, signal.SIGSTOP, "T")
    try:
        signal_and_wait(bridge.worker_pid, signal.SIGKILL, "Z")
        yield
    finally:
        bridge.process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def bridged(
    broker: Broker,
    directory: Path,
    line: dict[str, str] | None = None,
    command: tuple[str, ...] = BridgeProcess.command,
    **more: Any,
) -> AsyncIterator[tuple[BridgeProcess, RawLine, Watcher, str]]:
    """A bridge, a registered line, what MQTT says, and the line's topics."""
    id = f"sup{next(_numbers)}"
    config = bridge_config(broker, "goip", {id: {"password": "password1"} | (line or {})}, **more)
    config["instance"] = f"i-{os.getpid()}-{id}"
    async with watching(broker, "goip/#") as watcher, running(directory, config, command=command) as bridge:
        with raw_line(bridge.udp_port, id) as box:
            await box.register()
            await watcher.until(f"goip/{id}/availability", lambda seen: seen.payload == b"online")
            await watcher.until("goip/bridge/availability", lambda seen: seen.payload == b"online")
            yield bridge, box, watcher, f"goip/{id}"


async def submit(line: RawLine, watcher: Watcher, topic: str, to: str = "49151") -> bytes:
    """Have an SMS submitted, up to its SEND; the sendid."""
    await watcher.publish(f"{topic}/cmd/sms", {"to": to.split(","), "text": "x"})
    sendid = (await line.receive()).split(b" ")[1]
    await line.ask(b"PASSWORD %b" % sendid)
    number = to.split(",")[0].encode()
    assert await line.ask(b"SEND %b" % sendid) == b"SEND %b 1 %b\n" % (sendid, number)
    return sendid


# -- the held socket ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sweep")
async def test_what_comes_while_no_worker_runs_is_read_by_the_next_one(broker: Broker, tmp_path: Path) -> None:
    async with bridged(broker, tmp_path) as (bridge, line, watcher, topic):
        inode = udp_inode(bridge.udp_port)
        with gap(bridge):
            for text in "abc":
                line.send(line.event("RECEIVE", f"srcnum:1;msg:{text}"))
        answers = [await line.receive() for _ in "abc"]
        recvids = range(line.recvid + 2, line.recvid - 1, -1)
        assert answers == [f"RECEIVE {recvid} OK\n".encode() for recvid in recvids]
        await watcher.until(f"{topic}/sms/in", count=3)
        assert [seen.json["text"] for seen in watcher.on(f"{topic}/sms/in")] == ["a", "b", "c"]
        assert udp_inode(bridge.udp_port) == inode
        assert "ended with signal 9 (SIGKILL); starting it again now" in bridge.log
        with gap(bridge):  # the socket is kept once more, though this worker did not bind it
            line.send(line.event("RECEIVE", "srcnum:1;msg:d"))
        assert await line.receive() == f"RECEIVE {line.recvid} OK\n".encode()
        assert await bridge.stop() == 0


@pytest.mark.usefixtures("sweep")
async def test_a_restart_that_is_asked_for_loses_nothing_and_is_done_once(broker: Broker, tmp_path: Path) -> None:
    async with bridged(broker, tmp_path) as (bridge, line, watcher, topic):
        base = topic.rpartition("/")[0]
        worker, inode = bridge.worker_pid, udp_inode(bridge.udp_port)
        await watcher.publish(f"{base}/bridge/cmd/restart", {"id": "once"})
        assert (await watcher.until(f"{base}/bridge/result/restart")).json["code"] == "ok"
        line.send(line.event("RECEIVE", "srcnum:1;msg:meanwhile"))
        assert (await watcher.until(f"{topic}/sms/in")).json["text"] == "meanwhile"
        await watcher.until(f"{base}/bridge/availability", lambda seen: seen.payload == b"online", count=2)
        assert bridge.worker_pid != worker
        assert udp_inode(bridge.udp_port) == inode
        await watcher.publish(f"{base}/bridge/cmd/restart", {"id": "once"})
        repeated = await watcher.until(f"{base}/bridge/result/restart", lambda seen: seen.json["duplicate"])
        assert repeated.json["code"] == "ok"
        await watcher.publish(f"{base}/bridge/cmd/ping")
        await watcher.until(f"{base}/bridge/result/ping")
        assert bridge.log.count("starting the bridge again, as asked") == 1
        assert "ended with" not in bridge.log
        assert await bridge.stop() == 0


@pytest.mark.usefixtures("sweep")
async def test_where_nothing_would_start_it_again_a_restart_is_refused(broker: Broker, tmp_path: Path) -> None:
    command = (*BridgeProcess.command, "--no-supervisor")
    async with bridged(broker, tmp_path, command=command) as (bridge, _line, watcher, _topic):
        await watcher.publish("goip/bridge/cmd/restart")
        result = (await watcher.until("goip/bridge/result/restart")).json
        assert (result["code"], result["retryable"]) == ("not_supported", False)
        assert bridge.process is not None
        assert bridge.process.returncode is None


@pytest.mark.usefixtures("sweep")
async def test_an_outcome_that_waited_is_known_before_the_next_worker_asks_for_it(
    broker: Broker, tmp_path: Path
) -> None:
    async with bridged(broker, tmp_path, line={"repeat_safety": "safe"}) as (bridge, line, watcher, topic):
        sendid = await submit(line, watcher, topic)
        with gap(bridge):
            line.send(b"OK %b 1 7" % sendid)
        assert await line.receive() == b"DONE %b\n" % sendid
        await watcher.until(f"{topic}/delivery", lambda seen: seen.json["event_type"] == "sent")
        told = {seen.json["id"]: seen.json["event_type"] for seen in watcher.on(f"{topic}/delivery")}
        assert list(told.values()) == ["queued", "sending", "sent"]


async def test_everything_that_waits_is_read_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SMS is queued, and the last of many datagrams says that its line is switched off."""
    unread: list[bool] = []
    send = UdpSocket.send

    def look_and_send(self: UdpSocket, datagram: bytes, address: tuple[str, int]) -> None:
        unread.append(bool(select.select([self.socket], [], [], 0)[0]))
        send(self, datagram, address)

    monkeypatch.setattr(UdpSocket, "send", look_and_send)
    store, settings = Store(tmp_path / "bridge.db"), Settings(lines={"l": {"password": "p"}})
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(store), socket.socket(*kind) as held, socket.socket(*kind) as box:
        for sock in (held, box):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.bind(("127.0.0.1", 0))
        box.setblocking(False)
        with store.transaction():
            store.save_line("l", LineMemory(address=box.getsockname(), count=1, reboots=0))
            store.add_sms(
                msg="m", cmd="c", line="l", number="1", text="x", priority=5, guarantee="at_most_once",
                created=time.time(), state="queued", changed=time.time(),
            )  # fmt: skip
        for n in range(BATCH):
            box.sendto(f"RECEIVE:{n};id:l;password:p;srcnum:1;msg:x".encode(), held.getsockname())
        box.sendto(b"req:2;id:l;pass:p;disable_status:1;", held.getsockname())
        bridge = Bridge(settings, store, lambda: settings)
        stop, served = asyncio.Event(), []
        nobody = BrokerUrl.parse("mqtt://127.0.0.1:9")
        task = asyncio.create_task(bridge.run(stop, nobody, held.dup(), served.append))
        await asyncio.wait([task], timeout=0)
        expected = [b"RECEIVE %d OK\n" % n for n in range(BATCH)] + [b"reg:2;status:200;"]
        assert [box.recv(100) for _ in expected] == expected
        with pytest.raises(BlockingIOError):
            box.recv(100)
        assert not any(unread)
        assert [udp.address for udp in served] == [held.getsockname()]
        stop.set()
        await task


@pytest.mark.usefixtures("sweep")
async def test_a_changed_address_waits_for_a_restart_of_the_whole(broker: Broker, tmp_path: Path) -> None:
    async with bridged(broker, tmp_path) as (bridge, line, _watcher, _topic):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(bridge.config | {"udp": {"listen": "127.0.0.2:1"}}))
        bridge.kill_worker()
        await bridge.logged("udp.listen is 127.0.0.2:1, but the UDP socket that is kept for us listens on")
        await line.register()


async def test_drops_of_the_kernel_are_counted_from_the_making_of_the_socket() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as box,
    ):
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        held.bind(("127.0.0.1", 0))
        for _ in range(100):
            box.sendto(bytes(500), held.getsockname())
        udp = UdpSocket(held, lambda _: None, inherited=True)
        assert udp.kernel_drops == 100 - len(udp.drain()) > 0


# -- nobody outlives the supervisor --------------------------------------------------------------------------------


@pytest.mark.broker("binary")
async def test_a_killed_supervisor_takes_the_worker_and_its_broker_along(tmp_path: Path) -> None:
    async with running(tmp_path, bridge_config(None, "goip")) as bridge:
        await bridge.logged("listening for gateways")
        worker = bridge.worker_pid
        (mosquitto,) = children(worker)
        await bridge.kill()
        await until(lambda: (state(worker), state(mosquitto)) == ("Z", "Z"))


async def test_a_worker_that_is_busy_dies_with_the_supervisor_as_well(tmp_path: Path) -> None:
    async with supervising(tmp_path, "above.serving(udp); say('up'); time.sleep(600)") as supervisor:
        await supervisor.logged("up")
        worker = supervisor.worker_pid
        await supervisor.kill()
        await until(lambda: state(worker) == "Z")


@pytest.mark.parametrize("word", [b"", b"."])
def test_a_worker_whose_supervisor_is_gone_already_does_not_begin(tmp_path: Path, word: bytes) -> None:
    above, below = socket.socketpair()
    with below:
        above.send(word)
        above.close()
        command = [sys.executable, "-c", WORKER + "say('begun')", str(below.fileno())]
        worker = subprocess.run(command, pass_fds=[below.fileno()], cwd=tmp_path, capture_output=True, check=False)
    assert (worker.returncode, worker.stdout) == (1, b"")


async def test_where_the_kernel_does_not_do_it_the_worker_sees_that_the_supervisor_is_gone(tmp_path: Path) -> None:
    program = """
import sys
from bridge import __main__
from bridge.process import keeper, supervisor
keeper._die_with_parent = lambda: None
sys.exit(__main__.main())
"""
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"})
    command = (sys.executable, "-c", program, "run", "--config", "config.yaml")
    async with running(tmp_path, config, command=command) as bridge:
        await bridge.logged("listening for gateways")
        worker = bridge.worker_pid
        await bridge.kill()
        await until(lambda: state(worker) == "Z")


# -- starts that fail, and back-off --------------------------------------------------------------------------------


async def test_a_first_start_that_fails_is_one_message_and_its_exit_code(tmp_path: Path) -> None:
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"})
    async with running(tmp_path, config | {"timing": {"wait_s": "soon"}}) as bad:
        assert await bad.ended() == 2
        assert len(bad.log.splitlines()) == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", bad.udp_port))
        async with running(tmp_path, config) as taken:
            assert await taken.ended() == 1
    assert [line.split()[2] for line in taken.log.splitlines()].count("ERROR") == 1


@pytest.mark.usefixtures("sweep")
async def test_once_it_has_served_a_start_that_fails_is_tried_again(broker: Broker, tmp_path: Path) -> None:
    async with bridged(broker, tmp_path) as (bridge, line, watcher, topic):
        config = tmp_path / "config.yaml"
        good = config.read_text()
        config.write_text("lines: {x: {}}")
        bridge.kill_worker()
        await bridge.logged("ended with exit code 2; starting it again in 1 s")
        line.send(line.event("RECEIVE", "srcnum:1;msg:while it was broken"))
        config.write_text(good)
        assert bridge.process is not None
        bridge.process.send_signal(signal.SIGHUP)  # no need to wait for the end of the pause
        assert await line.receive() == f"RECEIVE {line.recvid} OK\n".encode()
        await watcher.until(f"{topic}/sms/in")


def test_pauses_double_to_the_longest() -> None:
    assert list(itertools.islice(_pauses(60), 9)) == [0, 1, 2, 4, 8, 16, 32, 60, 60]


SUPERVISE = """
import sys
from bridge.process.supervisor import Supervisor, set_up_logging
set_up_logging()
sys.exit(Supervisor([sys.executable, "-c", sys.argv[1]], **eval(sys.argv[2])).run())
"""
WORKER = """
import os, select, signal, socket, sys, time
from bridge.process.keeper import Supervised
above = Supervised(int(sys.argv[-1]))
udp = above.held or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # print() fails in a handler that is in it
"""


@contextlib.asynccontextmanager
async def supervising(directory: Path, worker: str, **options: Any) -> AsyncIterator[BridgeProcess]:
    """The supervisor with a worker of a few lines."""
    command = (sys.executable, "-c", SUPERVISE, WORKER + worker, repr(options))
    async with running(directory, {}, command=command) as supervisor:
        yield supervisor


async def test_restarts_come_at_once_then_after_pauses(tmp_path: Path) -> None:
    async with supervising(tmp_path, "above.serving(udp); os._exit(3)", longest_pause_s=0.1) as supervisor:
        await supervisor.logged("in 0.1 s. The UDP socket is held")
        assert supervisor.log.count("ended with exit code 3; starting it again now") == 1


async def test_after_a_steady_while_restarts_come_at_once_again(tmp_path: Path) -> None:
    worker = "above.serving(udp); time.sleep(0.3); os._exit(3)"
    async with supervising(tmp_path, worker, longest_pause_s=60, steady_s=0.25) as supervisor:
        await until(lambda: supervisor.log.count("starting it again now") == 3)
        assert "again in" not in supervisor.log


async def test_an_end_that_nobody_asked_for_is_no_clean_end(tmp_path: Path) -> None:
    async with supervising(tmp_path, "above.serving(udp); os._exit(0)") as supervisor:
        await supervisor.logged("the bridge ended with exit code 0; starting it again now")


async def test_a_worker_that_crashes_before_it_served_ends_the_supervisor(tmp_path: Path) -> None:
    async with supervising(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)") as supervisor:
        assert await supervisor.ended() == 1
        assert supervisor.log.count("\n") == 1
        assert "the bridge ended with signal 11 (SIGSEGV)" in supervisor.log


async def test_a_program_that_is_gone_is_said(tmp_path: Path) -> None:
    command = (sys.executable, "-c", SUPERVISE.replace("sys.executable", "'/nonexistent'"), "", "{}")
    async with running(tmp_path, {}, command=command) as supervisor:
        assert await supervisor.ended() == 1
        assert "cannot start /nonexistent: No such file or directory" in supervisor.log


# -- workers that hang ---------------------------------------------------------------------------------------------

HASTY = """
import sys
from bridge import __main__
from bridge.process import keeper, supervisor
keeper.Supervised.alive_s = 0.1
if "--worker-fd" in sys.argv:
    sys.exit(__main__.main())
supervisor.set_up_logging()
sys.exit(supervisor.Supervisor([sys.executable, *sys.orig_argv[1:]], hang_s=5).run())
"""
"The bridge, with less patience."
HANGS = "the bridge hangs: it gave no sign of life for"


@pytest.mark.usefixtures("sweep")
async def test_a_bridge_that_hangs_is_replaced_and_the_next_one_reads_what_came_meanwhile(
    broker: Broker, tmp_path: Path
) -> None:
    command = (sys.executable, "-c", HASTY, *BridgeProcess.command[3:])
    async with bridged(broker, tmp_path, command=command) as (bridge, line, watcher, topic):
        worker = bridge.worker_pid
        signal_and_wait(worker, signal.SIGSTOP, "T")
        line.send(line.event("RECEIVE", "srcnum:1;msg:while it hung"))
        assert await line.receive() == f"RECEIVE {line.recvid} OK\n".encode()
        assert (await watcher.until(f"{topic}/sms/in")).json["text"] == "while it hung"
        assert bridge.worker_pid != worker
        assert bridge.log.count(f"{HANGS} 5 s. Killing it") == 1
        assert bridge.log.count("ended with signal 9 (SIGKILL); starting it again now") == 1


def test_the_bridge_speaks_again_and_again_from_within_its_loop(tmp_path: Path) -> None:
    """We are the supervisor. A signal has the main thread sleep, and no other."""
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"}))
    )
    program = (
        "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: (print(flush=True), time.sleep(600)))" + HASTY
    )
    above, below = socket.socketpair()
    with above, below:
        above.settimeout(LIMIT_S)
        above.send(b".")
        command = [sys.executable, "-c", program, *BridgeProcess.command[3:], "--worker-fd", str(below.fileno())]
        with subprocess.Popen(command, cwd=tmp_path, pass_fds=[below.fileno()], stdout=subprocess.PIPE) as worker:
            try:
                word, descriptors, _, _ = socket.recv_fds(above, 1, 1)
                with socket.socket(fileno=descriptors[0]) as bound:
                    assert bound.type == socket.SOCK_DGRAM
                began = time.monotonic()
                assert word + b"".join(above.recv(1) for _ in range(10)) == b"." * 11
                assert time.monotonic() - began > 0.3  # a second, and no flood
                worker.send_signal(signal.SIGUSR1)
                assert worker.stdout is not None
                worker.stdout.readline()
                above.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    above.recv(1000)
                assert not select.select([above], [], [], 0.5)[0]
            finally:
                worker.kill()


async def test_a_loop_that_never_ends_is_broken(tmp_path: Path) -> None:
    worker = "above.serving(udp)\nwhile True: pass"
    async with supervising(tmp_path, worker, hang_s=0.5, steady_s=0.1) as supervisor:
        await until(lambda: supervisor.log.count("ended with signal 9 (SIGKILL); starting it again now") == 2)
        assert supervisor.log.count(HANGS) == 2


async def test_a_worker_that_is_busy_but_speaks_now_and_then_is_left_alone(tmp_path: Path) -> None:
    worker = """
above.serving(udp)
began = time.monotonic()
while time.monotonic() < began + 4:
    time.sleep(0.4)
    above.alive()
say("still here")
time.sleep(600)
"""
    async with supervising(tmp_path, worker, hang_s=3) as supervisor:
        await supervisor.logged("still here")
        assert HANGS not in supervisor.log


async def test_before_it_serves_a_worker_has_all_the_time_it_needs(tmp_path: Path) -> None:
    worker = "time.sleep(1); say('serves'); above.serving(udp); time.sleep(600)"
    async with supervising(tmp_path, worker, hang_s=0.5) as supervisor:
        await supervisor.logged(HANGS)
        assert "serves" in supervisor.log.partition(HANGS)[0]


SPEAKING = """
above.serving(udp)
say("up")
while True:
    above.alive()
    time.sleep(0.01)
    if os.path.exists("said"): os.remove("said")
"""
"Removes the file once it has spoken after the file was made."


async def test_a_supervisor_that_was_stopped_listens_before_it_judges(tmp_path: Path) -> None:
    async with supervising(tmp_path, SPEAKING, hang_s=3) as supervisor:
        await supervisor.logged("up")
        assert supervisor.process is not None
        keeper, worker = supervisor.process.pid, supervisor.worker_pid
        signal_and_wait(keeper, signal.SIGSTOP, "T")
        await asyncio.sleep(3.5)
        signal_and_wait(keeper, signal.SIGCONT, "S")
        await listens(supervisor, worker)


async def test_when_all_was_stopped_the_worker_gets_its_time_to_speak(tmp_path: Path) -> None:
    """As a frozen virtual machine, or a container that was paused."""
    async with supervising(tmp_path, SPEAKING, hang_s=3) as supervisor:
        await supervisor.logged("up")
        assert supervisor.process is not None
        keeper, worker = supervisor.process.pid, supervisor.worker_pid
        signal_and_wait(worker, signal.SIGSTOP, "T")
        await until(lambda: asleep(keeper))  # it has read everything
        signal_and_wait(keeper, signal.SIGSTOP, "T")
        await asyncio.sleep(3.5)
        signal_and_wait(keeper, signal.SIGCONT, "S")  # it has looked, and waits again
        assert state(worker) == "T"
        os.kill(worker, signal.SIGCONT)
        await listens(supervisor, worker)


def asleep(pid: int) -> bool:
    return state(pid) == "S"


async def listens(supervisor: BridgeProcess, worker: int) -> None:
    """The worker speaks, the supervisor hears it, and nobody was killed."""
    said = supervisor.directory / "said"
    for _ in range(3):
        said.touch()
        await until(lambda: not said.exists())
    assert supervisor.worker_pid == worker
    assert HANGS not in supervisor.log


async def test_a_worker_never_waits_for_a_supervisor_that_does_not_listen(tmp_path: Path) -> None:
    worker = """
above.serving(udp)
say("up")
while not os.path.exists("go"): time.sleep(0.01)
for _ in range(100_000): above.alive()
say("all said")
time.sleep(600)
"""
    async with supervising(tmp_path, worker) as supervisor:
        await supervisor.logged("up")
        assert supervisor.process is not None
        signal_and_wait(supervisor.process.pid, signal.SIGSTOP, "T")
        (tmp_path / "go").touch()
        await supervisor.logged("all said")
        supervisor.process.send_signal(signal.SIGCONT)
        supervisor.kill_worker()
        await until(lambda: supervisor.log.count("up\n") == 2)  # what it said is no hindrance to what follows


async def test_a_worker_that_hangs_when_all_shall_stop_is_killed_after_the_time_to_stop(tmp_path: Path) -> None:
    worker = """
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
above.serving(udp)
say("up")
while not told:
    above.alive()
    time.sleep(0.01)
while True: pass
"""
    async with supervising(tmp_path, worker, stop_s=2.5, hang_s=1.5) as supervisor:
        await supervisor.logged("up")
        assert await supervisor.stop() == 1
        assert "the bridge did not stop within 2.5 s; killing it" in supervisor.log
        assert HANGS not in supervisor.log


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sweep")
async def test_sigterm_waits_for_the_outcome_of_a_submitted_sms_and_submits_no_other(
    broker: Broker, tmp_path: Path
) -> None:
    async with bridged(broker, tmp_path) as (bridge, line, watcher, topic):
        sendid = await submit(line, watcher, topic, "49151,49152")
        line.send(b"WAIT %b 1\n" % sendid)
        assert bridge.process is not None
        bridge.process.send_signal(signal.SIGTERM)
        await bridge.logged("INFO    stopping")
        await asyncio.sleep(1)  # the gateway takes its time
        assert await line.ask(b"OK %b 1 7\n" % sendid) == b"DONE %b\n" % sendid
        sent = await watcher.until(f"{topic}/delivery", lambda seen: seen.json["event_type"] == "sent")
        assert sent.json["sms_no"] == 7
        assert await bridge.ended() == 0
        await bridge.start()
        assert (await line.receive()).startswith(b"MSG ")  # the other number is still queued


@pytest.mark.usefixtures("sweep")
async def test_sigterm_ends_a_session_that_has_submitted_nothing(broker: Broker, tmp_path: Path) -> None:
    async with bridged(broker, tmp_path) as (bridge, line, watcher, topic):
        await watcher.publish(f"{topic}/cmd/sms", {"to": "49151", "text": "x"})
        sendid = (await line.receive()).split(b" ")[1]
        assert bridge.process is not None
        began = time.monotonic()
        bridge.process.send_signal(signal.SIGTERM)
        assert await line.receive() == b"DONE %b\n" % sendid
        assert await bridge.ended() == 0
        assert time.monotonic() - began < 4  # less than an outcome is waited for


async def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    async with supervising(tmp_path, "above.serving(udp); say('up'); time.sleep(600)", stop_s=0.3) as supervisor:
        await supervisor.logged("up")
        signal_and_wait(supervisor.worker_pid, signal.SIGSTOP, "T")
        assert await supervisor.stop() == 1
        assert "the bridge did not stop within 0.3 s; killing it" in supervisor.log


async def test_sigterm_and_sigint_are_one_sigterm_for_the_worker(tmp_path: Path) -> None:
    worker = """
signal.signal(signal.SIGTERM, lambda *_: say("terminate"))
signal.signal(signal.SIGINT, lambda *_: say("interrupt"))
above.serving(udp)
say("up")
time.sleep(0.5)
"""
    async with supervising(tmp_path, worker) as supervisor:
        await supervisor.logged("up")
        assert supervisor.process is not None
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            supervisor.process.send_signal(number)
        assert await supervisor.ended() == 0
        assert "terminate" in supervisor.log
        assert supervisor.log.count("terminate") == 1
        assert "interrupt" not in supervisor.log
        assert "ERROR" not in supervisor.log


async def test_ctrl_c_at_a_terminal_is_heard_by_the_supervisor_alone(tmp_path: Path) -> None:
    async with supervising(tmp_path, "above.serving(udp); say('up'); time.sleep(600)") as supervisor:
        await supervisor.logged("up")
        assert supervisor.process is not None
        assert os.getpgid(supervisor.worker_pid) != os.getpgid(supervisor.process.pid)


async def test_sighup_and_sigterm_end_a_pause(tmp_path: Path) -> None:
    async with supervising(tmp_path, "say('begun'); above.serving(udp); os._exit(3)") as supervisor:
        await supervisor.logged("again in 2 s")
        began = time.monotonic()
        assert supervisor.process is not None
        supervisor.process.send_signal(signal.SIGHUP)
        await supervisor.logged("again in 4 s")
        assert await supervisor.stop() == 0
        assert time.monotonic() - began < 1.9
        assert supervisor.log.count("begun") == 4


# -- SIGHUP --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sweep")
async def test_sighup_reloads(broker: Broker, tmp_path: Path) -> None:
    async with bridged(broker, tmp_path) as (bridge, line, _watcher, _topic):
        more = f"{line.id}-more"
        lines = bridge.config["lines"] | {more: {"password": "password1"}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(bridge.config | {"lines": lines}))
        assert bridge.process is not None
        bridge.process.send_signal(signal.SIGHUP)
        with raw_line(bridge.udp_port, more) as added:
            await added.register()


async def test_a_sighup_that_comes_too_early_is_passed_on_when_the_worker_serves(tmp_path: Path) -> None:
    worker = """
say("begun")
while not os.path.exists("go"): time.sleep(0.01)
signal.signal(signal.SIGHUP, lambda *_: say("reloaded"))
above.serving(udp)
time.sleep(600)
"""
    async with supervising(tmp_path, worker) as supervisor:
        await supervisor.logged("begun")
        assert supervisor.process is not None
        supervisor.process.send_signal(signal.SIGHUP)
        await until(lambda: not pending(supervisor.process.pid, signal.SIGHUP))
        (tmp_path / "go").touch()
        await supervisor.logged("reloaded")


def pending(pid: int, number: signal.Signals) -> bool:
    masks = [line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Pnd:" in line]
    return any(int(mask, 16) & 1 << number - 1 for mask in masks)


# -- systemd -------------------------------------------------------------------------------------------------------

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
own = str(os.getpid())
os.environ |= {"LISTEN_PID": own, "LISTEN_FDS": sys.argv[2], "LISTEN_FDNAMES": "x", "WATCHDOG_PID": own}
os.execv(sys.executable, [sys.executable, "-m", "bridge", "run", "--config", "config.yaml"])
"""


@contextlib.contextmanager
def activated(
    directory: Path, sock: socket.socket, count: int = 1, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The bridge as systemd starts it for a socket unit."""
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, str(sock.fileno()), str(count)],
            cwd=directory, pass_fds=[sock.fileno()], stdout=log, stderr=log, env=os.environ | environment,
        )  # fmt: skip
    outputs.show("bridge", lambda: process.returncode is None, (directory / "log").read_text)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_under_socket_activation_the_bridge_is_one_process_and_the_socket_stays(tmp_path: Path) -> None:
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept, notified(tmp_path / "notify") as notices:
        kept.bind(("127.0.0.1", 0))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with raw_line(kept.getsockname()[1]) as line:
            with activated(tmp_path, kept, **environment) as process:
                await line.register()
                assert await notices.receive() == b"READY=1"
                assert children(process.pid) == []
                process.kill()
                process.wait()
            line.send(line.event("RECEIVE", "srcnum:1;msg:in between"))
            with activated(tmp_path, kept, **environment) as process:
                answer = await line.receive()
                while answer.startswith(b"reg:"):  # of a keepalive that was repeated at the start
                    answer = await line.receive()
                assert answer == f"RECEIVE {line.recvid} OK\n".encode()
                process.terminate()
                assert process.wait(LIMIT_S) == 0
    assert f"udp.listen is {config['udp']['listen']}, but the UDP socket" in (tmp_path / "log").read_text()


class Notices:
    """What a service manager would be told."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def receive(self) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 100), LIMIT_S)

    async def others_before(self, wanted: bytes) -> list[bytes]:
        """What comes until the one that is wanted does."""
        others = []
        while (notice := await self.receive()) != wanted:
            others.append(notice)
        return others


@contextlib.contextmanager
def notified(path: Path) -> Iterator[Notices]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        yield Notices(sock)


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


async def test_the_supervisor_tells_systemd_when_the_worker_serves_and_stops(tmp_path: Path) -> None:
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"})
    with notified(tmp_path / "notify") as notices:
        async with running(tmp_path, config, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as bridge:
            assert await notices.receive() == b"READY=1"
            assert "NOTIFY_SOCKET" not in environment(bridge.worker_pid)
            assert await bridge.stop() == 0
            assert await notices.receive() == b"STOPPING=1"


async def test_the_bridge_says_that_it_is_well_as_often_as_systemd_asks(tmp_path: Path) -> None:
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kept, notified(tmp_path / "notify") as notices:
        kept.bind(("127.0.0.1", 0))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "500000"}
        with activated(tmp_path, kept, **environment):
            assert await notices.receive() == b"READY=1"
            assert await notices.receive() == b"WATCHDOG=1"
            began = time.monotonic()
            assert [await notices.receive() for _ in range(6)] == [b"WATCHDOG=1"] * 6
            assert time.monotonic() - began > 0.5  # a second and a half, and no flood


async def test_the_supervisor_says_for_itself_that_it_is_well(tmp_path: Path) -> None:
    """While no worker runs as well."""
    with notified(tmp_path / "notify") as notices:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        command = (sys.executable, "-c", ASKED, WORKER + "above.serving(udp); os._exit(3)")
        async with running(tmp_path, {}, command=command, environment=environment):
            for _ in range(3):
                await notices.others_before(b"READY=1")
            # Then comes a pause of 2 s.
            assert set(others := await notices.others_before(b"READY=1")) == {b"WATCHDOG=1"}
            assert len(others) >= 5


ASKED = """
import os, sys
from bridge.process.keeper import Systemd
from bridge.process.supervisor import Supervisor, set_up_logging
set_up_logging()
systemd = Systemd(os.environ)
assert "WATCHDOG_USEC" not in os.environ  # or the worker would take it for a question to itself
sys.exit(Supervisor([sys.executable, "-c", sys.argv[1]], systemd).run())
"""


OURS, OTHERS = str(os.getpid()), "1"


@pytest.mark.parametrize(
    ("environment", "alive_s"),
    [
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": OURS}, 30),
        ({"WATCHDOG_USEC": "60000000"}, 30),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": OTHERS}, None),
        ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": OURS}, None),
        ({"WATCHDOG_USEC": "soon", "WATCHDOG_PID": OURS}, None),
        ({}, None),
    ],
)
def test_how_often_systemd_wants_a_sign_of_life(environment: dict[str, str], alive_s: float | None) -> None:
    assert Systemd(dict(environment)).alive_s is None  # there is nobody to tell
    environment["NOTIFY_SOCKET"] = "/nonexistent"
    assert Systemd(environment).alive_s == alive_s
    assert environment == {}


def test_nobody_waits_for_a_systemd_that_does_not_listen(tmp_path: Path) -> None:
    with notified(tmp_path / "notify"):
        program = """
import os
from bridge.process.keeper import Systemd
systemd = Systemd(os.environ)
for _ in range(2000): systemd.alive()
"""
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        subprocess.run([sys.executable, "-c", program], env=os.environ | environment, timeout=LIMIT_S, check=True)


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        (socket.SOCK_STREAM, 1, "not a UDP socket: write ListenDatagram="),
        (socket.SOCK_DGRAM, 2, "systemd passes 2 sockets"),
    ],
)
def test_what_systemd_passes_is_looked_at(tmp_path: Path, kind: int, count: int, message: str) -> None:
    with socket.socket(socket.AF_INET, kind) as sock, activated(tmp_path, sock, count) as process:
        assert process.wait(LIMIT_S) == 2
    assert message in (tmp_path / "log").read_text()


async def test_sockets_for_another_process_are_not_ours(tmp_path: Path) -> None:
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"})
    async with running(tmp_path, config, environment={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) as bridge:
        await bridge.logged("listening for gateways on udp {}".format(config["udp"]["listen"]))
        assert bridge.worker_pid


async def test_without_a_supervisor_it_is_one_process(tmp_path: Path) -> None:
    config = bridge_config(None, "goip", mqtt={"url": "mqtt://127.0.0.1:9"})
    command = (*BridgeProcess.command, "--no-supervisor")
    async with running(tmp_path, config, command=command) as bridge:
        await bridge.logged("listening for gateways")
        assert bridge.process is not None
        assert children(bridge.process.pid) == []
        assert await bridge.stop() == 0


# -- as process 1 --------------------------------------------------------------------------------------------------

NEW_NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")


def no_namespaces() -> str | None:
    """Why not."""
    try:
        subprocess.run([*NEW_NAMESPACE, "true"], check=True, capture_output=True)
    except OSError as error:
        return str(error)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    return None


async def test_as_process_1_it_takes_signals_and_reaps_orphans(tmp_path: Path) -> None:
    if (reason := no_namespaces()) is not None:
        pytest.skip(f"no PID namespace can be made here: {reason}")
    worker = """
above.serving(udp)
say("serves as", os.getpid(), "below", os.getppid())
if os.fork() == 0:
    if os.fork() == 0:
        while os.getppid() != 1: time.sleep(0.01)
        say("orphan")
        os._exit(0)
    os._exit(0)
os.wait()
time.sleep(600)
"""
    command = (*NEW_NAMESPACE, sys.executable, "-c", SUPERVISE, WORKER + worker, "{}")
    async with running(tmp_path, {}, command=command) as unshare:
        await unshare.logged("below 1")
        await unshare.logged("orphan")
        assert unshare.process is not None
        (first,) = children(unshare.process.pid)
        await until(lambda: len(all_children(first)) == 1)
        os.kill(first, signal.SIGTERM)
        assert await unshare.ended() == 0


def all_children(pid: int) -> list[str]:
    """Those that are zombies as well."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats.append(path.read_text())
    return [stat for stat in stats if stat.rpartition(")")[2].split()[1] == str(pid)]
