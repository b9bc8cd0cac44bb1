"""`goip-bridge sim`: simulated GoIP boxes against any SMS server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import random
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ..system.terminal import LogFormatter, say
from .console import HELP, run_command
from .errors import SimulatorError
from .line import Registration
from .network import Faults
from .options import LineOptions, has_number
from .profiles import PROFILES
from .run import SimOptions, Simulator
from .traffic import TrafficOptions

PORT_BASE = 10990
"Of a real box with 4 or 8 channels (docs/protocol.md §1). A port that stays lets a server know the line again."
_PATIENCE = 5.0
"Seconds until a server that says nothing is mentioned."
_TEN_YEARS = 10 * 365 * 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `goip-bridge sim`."""
    profiles = "\n".join(f"  {profile.name:<22}{profile.summary}" for profile in PROFILES.values())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"profiles:\n{profiles}\n\ncommands on the terminal while it runs:\n{HELP}"
    _add_line_arguments(parser.add_argument_group("lines"))
    _add_radio_arguments(parser.add_argument_group("mobile network"))
    _add_fault_arguments(parser.add_argument_group("faults"))
    run = parser.add_argument_group("run")
    run.add_argument("--seconds", type=_positive, metavar="S", help="stop after S seconds (default: on Ctrl-C)")
    run.add_argument("--seed", type=int, metavar="N", help="repeat the dice of an earlier run")
    run.add_argument("--radio-log", type=Path, metavar="FILE", help="append what the modems really did, as JSON lines")
    run.add_argument(
        "-v", "--verbose", action="count", default=0, help="show what the modems do; -vv: datagrams as well"
    )


def _add_line_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--server",
        type=_server,
        default=("127.0.0.1", 44444),
        metavar="HOST:PORT",
        help="the SMS server (default 127.0.0.1:44444)",
    )
    group.add_argument(
        "--id", default="goip%d", metavar="PATTERN", help="line id; %%d is the line's number (default goip%%d)"
    )
    group.add_argument("--password", default="password%d", metavar="PATTERN", help="its password (default password%%d)")
    group.add_argument(
        "--phone", default="", metavar="PATTERN", help="phone number: SMS between simulated lines arrive (+4917000%%d)"
    )
    group.add_argument("--lines", type=_count, default=1, metavar="N", help="how many lines (default 1)")
    group.add_argument("--channels", type=_count, default=8, metavar="N", help="lines of one box (default 8)")
    group.add_argument("--profile", choices=PROFILES, default="spec", metavar="NAME", help="firmware, see below")
    group.add_argument(
        "--sessions-per",
        choices=("box", "line"),
        default="box",
        help="what may have five sessions at once (default box: the worse case)",
    )
    group.add_argument(
        "--keepalive", type=_positive, default=30.0, metavar="S", help="seconds between keepalives (default 30)"
    )
    group.add_argument(
        "--port-base",
        type=_port_base,
        metavar="P",
        help="line n sends from UDP port P+n, 0: from any free one (default: 10990+n as a real box; a free one where "
        "that is taken)",
    )


def _add_radio_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--wait", type=_range, metavar="MIN-MAX", help="seconds the network takes for an SMS (2-5)")
    group.add_argument("--time-scale", type=_positive, default=1.0, metavar="X", help="mobile network X times faster")
    group.add_argument(
        "--radio-errors",
        type=_radio_errors,
        default=(0.0, 1),
        metavar="RATE[:CODE]",
        help="share of SMS that fail, and their errorstatus (default 0:1)",
    )
    group.add_argument(
        "--reports", type=_share, default=1.0, metavar="RATE", help="share of SMS with delivery report (default 1)"
    )
    group.add_argument("--sms-every", type=_positive, default=0.0, metavar="S", help="an SMS to each line every S s")
    group.add_argument("--call-every", type=_positive, default=0.0, metavar="S", help="a call on each line every S s")
    group.add_argument("--chatter", action="store_true", help="cell events by themselves, as real boxes have them")
    group.add_argument("--newer-receive", action="store_true", help="inbound SMS with smscnum and senttime")
    group.add_argument("--split-long", action="store_true", help="long inbound SMS arrive in parts")


def _add_fault_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--loss", type=_share, default=0.0, metavar="RATE", help="share of datagrams lost")
    group.add_argument("--duplicate", type=_share, default=0.0, metavar="RATE", help="share of datagrams doubled")
    group.add_argument("--reorder", type=_share, default=0.0, metavar="RATE", help="share of datagrams overtaken")
    group.add_argument(
        "--delay", type=_range, default=(0.0, 0.0), metavar="MIN-MAX", help="seconds each datagram travels"
    )
    group.add_argument(
        "--reboot-every", type=_positive, default=0.0, metavar="S", help="power-cycle each box every S s"
    )
    group.add_argument(
        "--wrong-clock",
        type=_finite,
        nargs="?",
        const=-_TEN_YEARS,
        default=0.0,
        metavar="S",
        help="the boxes' clocks are off by S seconds (without S: ten years behind)",
    )


def main(args: argparse.Namespace) -> int:
    """Run; 0 when it ended as asked, 1 when it failed, 2 when the options make no sense together."""
    if args.lines > 1 and not has_number(args.id):
        return _fail(f"--lines {args.lines} needs %d in --id, {args.id!r} has none", 2)
    if args.lines > 1 and args.phone and not has_number(args.phone):
        return _fail(f"--lines {args.lines} needs %d in --phone, {args.phone!r} has none", 2)
    if re.fullmatch(r"(\+?[0-9]*(%(0[1-9])?d)?)?", args.phone) is None:
        return _fail(f"--phone {args.phone!r} is not a phone number", 2)
    if any(char in args.id for char in ";\r\n") or any(char in args.password for char in "; \r\n"):
        return _fail("--id must not contain ';' or newlines, --password neither those nor blanks", 2)
    if args.port_base and args.port_base + args.lines > 65535:
        return _fail(f"--port-base {args.port_base} leaves no ports for {args.lines} lines", 2)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LogFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("bridge.sim.radio").setLevel(logging.DEBUG if args.verbose else logging.WARNING)
    logging.getLogger("bridge.sim.udp").setLevel(logging.DEBUG if args.verbose > 1 else logging.WARNING)
    # A reader that goes away, as in `… | head`, ends the program quietly.
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        asyncio.run(_run(_options(args), args.seconds))
    except SimulatorError as error:
        return _fail(str(error), 1)
    finally:
        signal.signal(signal.SIGPIPE, before)
    return 0


def _options(args: argparse.Namespace) -> SimOptions:
    rate, code = args.radio_errors
    return SimOptions(
        server=args.server,
        lines=args.lines,
        channels=args.channels,
        line=LineOptions(
            id=args.id,
            password=args.password,
            phone=args.phone,
            profile=PROFILES[args.profile],
            sessions_per=args.sessions_per,
            keepalive=args.keepalive,
            time_scale=args.time_scale,
            wait=args.wait,
            reports=args.reports,
            radio_errors=rate,
            radio_error_code=code,
            newer_receive=args.newer_receive,
            split_long=args.split_long,
            chatter=args.chatter,
            clock_offset=args.wrong_clock,
        ),
        faults=Faults(loss=args.loss, duplicate=args.duplicate, reorder=args.reorder, delay=args.delay),
        traffic=TrafficOptions(sms_every=args.sms_every, call_every=args.call_every, reboot_every=args.reboot_every),
        port_base=PORT_BASE if args.port_base is None else args.port_base or None,
        port_required=args.port_base is not None,
        seed=random.randrange(2**32) if args.seed is None else args.seed,
        radio_log=args.radio_log,
        keep_radio=False,
    )


async def _run(options: SimOptions, seconds: float | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    simulator = Simulator(options)
    async with simulator:
        _say(_introduction(simulator))
        watcher = asyncio.create_task(_watch(simulator))
        with _typed_commands(simulator, stop), contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_until(simulator, stop), seconds)
        watcher.cancel()
        summary = _summary(simulator)
    _say(summary)


async def _until(simulator: Simulator, stop: asyncio.Event) -> None:
    """Until somebody stops it, or it fails."""
    stopping = asyncio.create_task(stop.wait())
    failing = asyncio.create_task(simulator.wait_for(lambda: False))
    try:
        done, _ = await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing in done:
            failing.result()
    finally:
        stopping.cancel()
        failing.cancel()


async def _watch(simulator: Simulator) -> None:
    """Say what the server makes of the lines, whenever that changes."""
    said = ""
    loop = asyncio.get_running_loop()
    patience = loop.time() + _PATIENCE
    while True:
        await asyncio.sleep(0.5)
        text = _registrations(simulator, patient=loop.time() < patience)
        if text and text != said:
            _say(text)
            said = text


def _registrations(simulator: Simulator, patient: bool) -> str:
    host, port = simulator.options.server
    total = len(simulator.line_ids)
    sentences = []
    for state, count in simulator.registrations().items():
        lines = f"{count} of {total} line{'s' if total > 1 else ''}"
        if state == Registration.ACCEPTED:
            sentences.append(f"registered: {lines}")
        elif state.startswith(Registration.REFUSED):
            hint = "does the server know this id and password?"
            sentences.append(f"{state}: {lines}; {hint}")
        elif state == Registration.WRONG_WORD:
            sentences.append(f"{state}: {lines}; SMS work, but a box shows itself as not logged in")
        elif state == Registration.OFF:
            sentences.append(f"{state}, starting again: {lines}")
        elif state == Registration.NO_ANSWER or not patient:
            sentences.append(f"no answer from {host}:{port}: {lines}; is an SMS server listening on this UDP port?")
    return "\n".join(sorted(sentences))


def _introduction(simulator: Simulator) -> str:
    options = simulator.options
    ids = simulator.line_ids
    names = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
    host, port = options.server
    ports = simulator.ports
    at = f"UDP port {ports[0]}" if len(ports) == 1 else f"UDP ports {min(ports)} to {max(ports)}"
    moved = [f"{id} ({taken} is taken)" for id, taken in simulator.moved.items()]
    others = f"{', '.join(moved[:3])}{' and others' if len(moved) > 3 else ''}"
    return (
        f"simulating {len(ids)} line{'s' if len(ids) > 1 else ''} ({names}) for the server {host}:{port}, from {at}, "
        f"profile {options.line.profile.name}, seed {options.seed}"
        + (f"\nanother port than that of a real box, and one that changes at each start: {others}" if moved else "")
    )


def _summary(simulator: Simulator) -> str:
    counts = simulator.counts
    rows = [
        f"registered          {len(simulator.world.registered)} of {len(simulator.line_ids)} lines",
        f"datagrams           {counts['out']} sent, {counts['in']} received",
        f"SMS submitted       {counts['submit']}, {counts['submit_error']} of them refused by the network",
        f"delivery reports    {counts['report']}, {counts['report_acked']} acknowledged",
        f"SMS received        {counts['received']}, {counts['received_acked']} acknowledged, "
        f"{counts['received_given_up']} given up, {counts['received_lost_by_restart']} lost by a restart",
        f"calls, USSD         {counts['call']}, {counts['ussd']}",
    ]
    if simulator.options.faults.any():
        rows.append(f"network faults      {simulator.network.lost} lost, {simulator.network.duplicated} doubled")
    return "\n".join(rows)


@contextlib.contextmanager
def _typed_commands(simulator: Simulator, stop: asyncio.Event) -> Iterator[None]:
    """Take commands from the terminal, if there is one."""
    if not sys.stdin.isatty():
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        text = sys.stdin.readline()
        if not text or text.strip() in ("quit", "exit"):
            loop.remove_reader(sys.stdin)
            stop.set()
        elif text.strip():
            _say(run_command(simulator, text))

    loop.add_reader(sys.stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)


def _say(text: str) -> None:
    say(text, lines=True)
    sys.stdout.flush()


def _fail(text: str, code: int) -> int:
    say(f"goip-bridge sim: {text}", error=True)
    return code


# --- values of options ---


def _server(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, "44444"
    if not host or re.fullmatch(r"[0-9]{1,5}", port) is None or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not more than 0")
    return value


def _share(text: str) -> float:
    value = _finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _count(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,6}", text) is None or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _port_base(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) is None or int(text) > 65534:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return int(text)


def _range(text: str) -> tuple[float, float]:
    low, dash, high = text.partition("-")
    values = (_finite(low), _finite(high if dash else low))
    if not 0 <= values[0] <= values[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN-MAX")
    return values


def _radio_errors(text: str) -> tuple[float, int]:
    rate, colon, code = text.partition(":")
    if colon and re.fullmatch(r"[0-9]{1,5}", code) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not RATE[:CODE]")
    return _share(rate), int(code) if colon else 1
