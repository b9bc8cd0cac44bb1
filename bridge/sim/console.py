"""Commands for a running simulator, as typed by a person."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from .handle import LineHandle
from .run import Simulator

HELP = """\
sms LINE FROM TEXT        an SMS to this line          call LINE NUMBER [SECONDS]   somebody calls, and is answered
ussn LINE TEXT            a USSD text by itself        missed LINE NUMBER           somebody calls in vain
event LINE KIND FIELDS    any other event              dial LINE NUMBER [SECONDS]   a call through this line
fail LINE CODE            let the next SMS fail        hangup LINE                  end the call
logout LINE, login LINE   leave or find the network    reboot LINE                  power-cycle the line's box
status                    counts and registrations     quit"""


def run_command(simulator: Simulator, text: str) -> str:
    """Do what the typed line says; the answer for the person, also when it cannot be done."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        return f"not understood: {error}"
    if not words:
        return ""
    verb, *arguments = words
    if verb == "status":
        return status(simulator)
    if verb not in _COMMANDS or not arguments:
        return HELP
    line_id, *values = arguments
    if line_id not in simulator.line_ids:
        return f"there is no line {line_id!r}; the first is {simulator.line_ids[0]!r}"
    try:
        _COMMANDS[verb](simulator.line(line_id), values)
    except (IndexError, ValueError):
        return HELP
    return "done"


def status(simulator: Simulator) -> str:
    """One line for registrations, one for traffic."""
    states = ", ".join(f"{count} {state}" for state, count in simulator.registrations().items())
    counts = ", ".join(f"{what} {count}" for what, count in sorted(simulator.counts.items()))
    return f"lines: {states}\ncounts: {counts}"


def _seconds(values: list[str]) -> float:
    return float(values[1]) if len(values) > 1 else 30.0


_COMMANDS: dict[str, Callable[[LineHandle, list[str]], None]] = {
    "sms": lambda line, values: line.receive_sms(values[0], " ".join(values[1:])),
    "ussn": lambda line, values: line.ussd_push(" ".join(values)),
    "event": lambda line, values: line.event(values[0], " ".join(values[1:])),
    "call": lambda line, values: line.incoming_call(values[0], seconds=_seconds(values)),
    "missed": lambda line, values: line.incoming_call(values[0], answered=False, seconds=_seconds(values)),
    "dial": lambda line, values: line.outgoing_call(values[0], seconds=_seconds(values)),
    "hangup": lambda line, values: line.hang_up(),
    "fail": lambda line, values: line.fail_next(int(values[0])),
    "logout": lambda line, values: line.logout(),
    "login": lambda line, values: line.login(),
    "reboot": lambda line, values: line.reboot(),
}
