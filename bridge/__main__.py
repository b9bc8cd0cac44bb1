"""The command line: `goip-bridge <command>`."""

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from . import __version__
from .system import terminal

COMMANDS = {
    "run": (".process.supervisor", "run the bridge"),
    "demo": (".cli.demo", "see it work: a broker, the bridge and a simulated gateway, no hardware needed"),
    "send": (".cli.send", "send an SMS over MQTT and follow it to the end"),
    "selftest": (
        ".cli.selftest",
        "find out whether a line's firmware sends an SMS again when it is asked about it",
    ),
    "monitor": (".cli.monitor", "watch the lines, their queues and their traffic"),
    "doctor": (".cli.doctor", "find what is wrong, and say what to do"),
    "health": (".process.health", "exit 0 when the bridge works; for containers"),
    "config": (".cli.config", "check, show or describe the configuration"),
    "schema": (".schema.generator", "write the JSON Schemas of all payloads"),
    "sim": (".sim.cli", "run simulated GoIP lines against an SMS server"),
}
"Module and summary; a module has `add_arguments(parser)` and `main(args) -> int`, and is imported when chosen."
INTERRUPTED = 130
"128 + SIGINT, as shells have it."
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"A file or a device takes no more."


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to the command; returns its exit code: 0 done, 1 runtime failure, 2 wrong usage or configuration."""
    argv = sys.argv[1:] if argv is None else argv
    terminal.prepare()
    try:
        try:
            return _run(argv)
        finally:
            terminal.end_output()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader went away, as in `… | head`
        return 1
    except Exception as error:
        if isinstance(error, OSError) and (why := _why(error)):
            terminal.complain(why)
            return 1
        terminal.complain_of_fault()
        return 1


def _why(error: OSError) -> str | None:
    """What to tell of a file, a folder or a disk; None for what only a fault of ours explains."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno in FULL:
        return f"cannot write the output: {error.strerror}"
    try:
        os.getcwd()
    except OSError:
        return "the working directory does not exist any more: change to another one"
    return None


def _run(argv: Sequence[str]) -> int:
    try:
        args = _parser(_chosen(argv)).parse_args(argv)
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        return 2  # older versions of argparse let it through that their complaint finds no room
    code: int = args.main(args)
    return code


def _chosen(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if not word.startswith("-")), None)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser with the options of the chosen command only: importing the others takes time."""
    parser = argparse.ArgumentParser(prog="goip-bridge", description="GoIP GSM gateways to MQTT and back.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    if chosen is not None and chosen not in COMMANDS:
        parser.error(_unknown(chosen))
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(module_name, __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(main=module.main)
    return parser


class _Version(argparse.Action):
    """argparse's own wants the version beforehand, which takes longer to find out than the rest of the start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        terminal.say(f"goip-bridge {__version__}")
        parser.exit()


def _unknown(word: str) -> str:
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"there is no command {word!r}" + (
        f"; did you mean {close[0]}?" if close else f"; known are {', '.join(COMMANDS)}"
    )


if __name__ == "__main__":
    sys.exit(main())
