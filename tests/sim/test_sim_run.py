"""The simulator on real sockets, with a tiny server that knows a dozen lines of the protocol."""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import sys

import pytest

from bridge.sim import cli
from bridge.sim.console import run_command
from bridge.sim.errors import SimulatorError
from bridge.sim.line import Registration
from bridge.sim.network import Faults
from bridge.sim.options import LineOptions
from bridge.sim.run import SimOptions, Simulator, run_simulator
from bridge.sim.traffic import TrafficOptions


class TinyServer(asyncio.DatagramProtocol):
    """Accepts every line, sends one SMS through each, acknowledges every event."""

    status = 200

    def connection_made(self, transport):
        self.transport = transport
        self.lines = {}
        self.events = []

    @property
    def address(self):
        return self.transport.get_extra_info("sockname")

    def datagram_received(self, data, source):
        text = data.decode()
        for pattern, answer in (
            (r"req:(\d+);id:([^;]+)", f"reg:{{0}};status:{self.status};"),
            (r"PASSWORD (\d+)", "PASSWORD {0} secret"),
            (r"SEND (\d+)\n", "SEND {0} 1 +4911\n"),
            (r"OK (\d+) 1", "DONE {0}\n"),
            (r"([A-Z]+):(-?\d+);", "{0} {1} OK"),
        ):
            match = re.match(pattern, text)
            if match is None:
                continue
            if text.startswith("req:"):
                self.lines[match[2]] = source
            elif match.re.groups == 2:
                self.events.append(text)
            self.transport.sendto(answer.format(*match.groups()).encode(), source)
            return

    def send_sms(self, line, sendid):
        self.transport.sendto(f"MSG {sendid} 5 hello\n".encode(), self.lines[line])


@pytest.fixture
async def server():
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(TinyServer, local_addr=("127.0.0.1", 0))
    yield protocol
    transport.close()


def options(server, **other):
    line = LineOptions(password="secret", time_scale=100, keepalive=0.5)
    return SimOptions(**{"server": server.address, "line": line, "seed": 1, **other})


async def test_lines_register_send_receive_and_report(server, tmp_path):
    log = tmp_path / "radio.jsonl"
    async with Simulator(options(server, lines=3, radio_log=log)) as sim:
        await sim.wait_registered()
        assert set(server.lines) == {"goip1", "goip2", "goip3"}
        assert len(set(server.lines.values())) == 3
        server.send_sms("goip2", 42)
        [submit] = await sim.wait_radio("submit")
        assert (submit["line"], submit["to"], submit["text"], submit["sendid"]) == ("goip2", "+4911", "hello", 42)
        await sim.wait_radio("report_outcome", result="acked")
        sim.line("goip3").receive_sms("+4420", "hi; there")
        [outcome] = await sim.wait_radio("received_outcome", line="goip3")
        assert outcome["result"] == "acked"
        assert server.events[-1].endswith(";srcnum:+4420;msg:hi; there")
        radio = list(sim.radio)
    assert [json.loads(text) for text in log.read_text().splitlines()] == radio
    assert abs(submit["at"] - log.stat().st_mtime) < 60


async def test_radio_log_is_complete_at_every_moment(server, tmp_path):
    log = tmp_path / "radio.jsonl"
    async with Simulator(options(server, radio_log=log)) as sim:
        sim.line("goip1").receive_sms("+4420", "hi")
        assert json.loads(log.read_text())["what"] == "received"


async def test_refusal_is_told_apart_from_silence(server):
    server.status = 404
    async with Simulator(options(server)) as sim:
        with pytest.raises(TimeoutError, match="1 refused with status 404"):
            await sim.wait_registered(0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with Simulator(SimOptions(server=nobody.getsockname())) as sim:
            with pytest.raises(TimeoutError, match="1 not answered yet"):
                await sim.wait_registered(0.1)


async def test_everything_can_be_injected(server):
    async with Simulator(options(server)) as sim:
        await sim.wait_registered()
        line = sim.line("goip1")
        line.incoming_call("+4420", seconds=1)
        await sim.wait_radio("call_end")
        line.outgoing_call("+4420", seconds=3000)
        assert line.call_state == "DIALING:+4420"
        line.hang_up("Out of service")
        line.ussd_push("Balance")
        line.event("NUM_ICCID", "iccid:8949")
        line.raw(b"WHATEVER:1;id:goip1")
        line.fail_next(41)
        server.send_sms("goip1", 9)
        await sim.wait_radio("submit", code=41)
        line.logout()
        line.login()
        line.reboot()
        assert line.registration is Registration.OFF
        await sim.wait_registered()
        line.power_off()
        line.power_on()
        await sim.wait_registered()
    kinds = {text.split(":")[0] for text in server.events}
    assert {"USSN", "STATE", "RECORD", "HANGUP", "REMAIN", "WHATEVER"} <= kinds


async def test_sms_get_through_a_bad_network(server):
    faults = Faults(loss=0.2, duplicate=0.2, reorder=0.2, delay=(0.0, 0.02))
    line = LineOptions(password="secret", keepalive=0.1, resend=0.05, repeats=30)
    async with Simulator(options(server, faults=faults, line=line)) as sim:
        await sim.wait_registered()
        for number in range(20):
            sim.line("goip1").receive_sms("+4420", f"text {number}")
        await sim.wait_radio("received_outcome", count=20, result="acked")
    assert sim.network.lost > 0
    assert sim.network.duplicated > 0


async def test_traffic_by_itself(server):
    traffic = TrafficOptions(sms_every=0.05, call_every=0.05)
    async with Simulator(options(server, lines=2, traffic=traffic)) as sim:
        await sim.wait_radio("received_outcome", count=5, result="acked")
        await sim.wait_radio("call_end", count=2)


async def test_run_for_some_seconds_and_until_stopped(server):
    sim = await run_simulator(options(server), seconds=0.3)
    assert sim.counts["in"] >= 1
    stop = asyncio.Event()
    stop.set()
    await run_simulator(options(server), stop=stop)


async def test_port_in_use_is_one_message():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(SimulatorError, match=f"cannot use UDP port {port} for goip1: Address already in use"):
            await Simulator(SimOptions(port_base=port - 1)).start()


async def test_a_port_that_is_taken_is_replaced_where_it_need_not_be_that_one(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with Simulator(options(server, port_base=port - 1, port_required=False)) as sim:
            await sim.wait_registered()
            assert sim.moved == {"goip1": port}
            assert sim.ports[0] != port
            assert f"goip1 ({port} is taken)" in cli._introduction(sim)


async def test_a_port_beyond_the_last_one_is_replaced_as_well(server):
    async with Simulator(options(server, port_base=65535, port_required=False)) as sim:
        await sim.wait_registered()
        assert sim.moved == {"goip1": 65536}


def test_the_command_line_has_the_ports_of_a_real_box_unless_others_are_asked_for():
    def ports(*words):
        made = cli._options(parse(*words))
        return made.port_base, made.port_required

    assert ports() == (10990, False)
    assert ports("--port-base", "20000") == (20000, True)
    assert ports("--port-base", "0") == (None, True)


def test_many_lines_need_a_number_in_their_id():
    with pytest.raises(SimulatorError, match="need %d"):
        Simulator(SimOptions(lines=2, line=LineOptions(id="box")))


def test_a_hundred_ids_by_pattern():
    sim = Simulator(SimOptions(lines=100, channels=32, line=LineOptions(id="g%03d", password="50%off%d")))
    assert sim.line_ids[0] == "g001"
    assert sim.line_ids[-1] == "g100"
    assert sim.gateways[0].lines[7].options.password == "50%off8"
    assert [len(gateway.lines) for gateway in sim.gateways] == [32, 32, 32, 4]


async def test_a_fault_in_the_simulation_is_raised_to_whoever_waits(server):
    async with Simulator(options(server)) as sim:
        await sim.wait_registered()
        sim.world.at(sim.now(), lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await sim.wait_radio("submit")


async def test_typed_commands(server):
    async with Simulator(options(server)) as sim:
        await sim.wait_registered()
        assert run_command(sim, 'sms goip1 +4420 "two  words" more') == "done"
        assert sim.radio[-1]["text"] == "two  words more"
        assert run_command(sim, "call goip1 +4420 5") == "done"
        assert run_command(sim, "status").startswith("lines: 1 accepted")
        assert "no line 'goip9'" in run_command(sim, "sms goip9 +4420 hi")
        assert run_command(sim, "sms goip1").startswith("sms LINE")
        assert run_command(sim, "dance").startswith("sms LINE")
        assert run_command(sim, 'sms "').startswith("not understood")


# --- command line ---


def parse(*words):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--loss", "2"],
        ["--loss", "nan"],
        ["--delay", "5-2"],
        ["--lines", "0"],
        ["--profile", "none"],
        ["--server", "host:99999"],
        ["--radio-errors", "0.5:x"],
        ["--keepalive", "0"],
        ["--seconds", "-1"],
    ],
)
def test_bad_option_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--lines", "2", "--id", "box"], 2, "needs %d in --id"),
        (["--id", "a;b"], 2, "--id must not contain"),
        (["--lines", "2", "--phone", "+49"], 2, "needs %d in --phone"),
        (["--phone", "anna"], 2, "is not a phone number"),
        (["--port-base", "65000", "--lines", "600"], 2, "leaves no ports"),
        (["--server", "no-such-host.invalid:1"], 1, "cannot find the server 'no-such-host.invalid'"),
        (["--radio-log", "/nonexistent/radio.jsonl"], 1, "cannot write the radio log"),
    ],
)
def test_failure_is_one_line(words, code, message, capsys):
    assert cli.main(parse(*words)) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_ends_the_run_with_one_line(capsys):
    words = ["--radio-log", "/dev/full", "--sms-every", "0.1", "--seconds", "20", "--server", "127.0.0.1:9"]
    assert cli.main(parse(*words)) == 1
    error = capsys.readouterr().err
    assert error == "goip-bridge sim: cannot write the radio log: No space left on device\n"


def test_options_reach_the_simulator():
    words = "--server gw.example:4000 --id g%d --password p%d --lines 3 --profile slow --wait 1-2 --radio-errors 0.1:38"
    made = cli._options(parse(*words.split(), "--delay", "0.1", "--wrong-clock", "--seed", "9"))
    assert made.server == ("gw.example", 4000)
    assert (made.lines, made.seed, made.faults.delay) == (3, 9, (0.1, 0.1))
    line = made.line
    assert (line.id, line.password, line.profile.name, line.wait) == ("g%d", "p%d", "slow", (1.0, 2.0))
    assert (line.radio_errors, line.radio_error_code) == (0.1, 38)
    assert line.clock_offset < -300_000_000


async def start_command(server, *words):
    host, port = server.address
    code = (
        "import argparse, sys; from bridge.sim import cli; parser = argparse.ArgumentParser();"
        "cli.add_arguments(parser); sys.exit(cli.main(parser.parse_args()))"
    )
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "--server", f"{host}:{port}", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_reader_that_goes_away_ends_the_command_without_noise(server):
    process = await start_command(server, "-vv", "--keepalive", "0.05", "--seconds", "20")
    await asyncio.wait_for(process.stdout.readline(), 20)
    process._transport.get_pipe_transport(1).close()
    assert await asyncio.wait_for(process.stderr.read(), 10) == b""
    assert await process.wait() == -signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_the_command_with_a_summary(server, number):
    process = await start_command(server, "--lines", "2")
    assert process.stdout is not None
    said = ""
    while "registered: 2 of 2 lines" not in said:
        text = await asyncio.wait_for(process.stdout.readline(), 20)
        assert text, said
        said += text.decode()
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert err == b""
    assert "registered          2 of 2 lines" in out.decode()
