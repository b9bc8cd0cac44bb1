"""What the program writes to terminals, pipes and logs: every line of it passes `clean`.

Texts of SMS, names of senders, words of gateways and what others publish may hold escape sequences: those of a terminal
set its title, move its cursor, write its clipboard; a line separator forges a line of a log. Nobody who can send an SMS
shall write to an operator's terminal.
"""

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_REPLACED = "\N{REPLACEMENT CHARACTER}"
_UNSAFE = re.compile(
    "["
    "\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f"  # C0 but for tab, LF and CR, which are below; DEL; C1
    "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # bidirectional controls (Unicode UAX #9)
    "\\u2028\\u2029"  # line and paragraph separator
    "\\ud800-\\udfff"  # lone surrogates: no stream can encode them
    "]"
)
_ONE_LINE = str.maketrans("\t\n\r", "   ")
_LINES = str.maketrans("\r", _REPLACED)


def clean(text: str, *, lines: bool = False) -> str:
    """The text without anything that a terminal would obey or that would begin a new line: each such character is
    U+FFFD, and what separates words or lines is a blank. With `lines`, line feeds and tabs are the caller's own, and
    stay.
    """
    return _UNSAFE.sub(_REPLACED, text).translate(_LINES if lines else _ONE_LINE)


def cleaned(value: Any) -> Any:
    """A value of JSON with every text in it clean, keys included."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): cleaned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    return value


def prepare() -> None:
    """Make the standard streams fit for whatever is said: called once, before anything is opened.

    A stream that whoever started us has closed leads nowhere; left closed, its number would be that of our next file or
    socket. What a stream can't encode is escaped, and what cannot be decoded is U+FFFD, not an exception.
    """
    for fd, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            continue
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - for as long as we run
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def seconds(text: str) -> float:
    """The value of an option that is a time."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def takes_unicode() -> bool:
    """Whether stdout can encode every character, or escapes some, which changes what a program reads there."""
    try:
        "\N{COPYRIGHT SIGN}\N{CYRILLIC SMALL LETTER YI}\N{HOT BEVERAGE}".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def end_output() -> None:
    """Hand over all that was said to stdout. Raises OSError where that is impossible, and then gives it up: else the
    interpreter would try it again at its end, and complain in its own words.
    """
    try:
        sys.stderr.flush()
    except OSError:
        _give_up(sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _give_up(sys.stdout)
        raise


def _give_up(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str, *, lines: bool = False, error: bool = False) -> None:
    """One line to stdout, or to stderr; several where `lines` says that its line feeds are ours. Raises OSError when it
    can't be written to stdout; the exit code has to do where stderr takes nothing.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        stream.write(clean(text, lines=lines) + "\n")
    except OSError:
        if not error:
            raise
        _give_up(stream)


def complain(text: str) -> None:
    """One line to stderr that says who speaks."""
    say(f"goip-bridge: {text}", error=True)


def complain_of_fault() -> None:
    """The exception that is being handled is nobody's but ours: say so, with what those who mend it have to know."""
    complain("this is a fault of goip-bridge; please report it, with these lines:")
    say(_indented(traceback.format_exc().rstrip("\n")), lines=True, error=True)


def console() -> "Console":
    """rich, for stdout. What is printed is text: never markup, which could be a link."""
    from rich.console import Console  # here: the service does without
    from rich.segment import Segment

    class CleanConsole(Console):
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            """The one way from rich to the stream; what moves the cursor is a control segment, and rich's own."""
            return super()._render_buffer(
                segment if segment.control else segment._replace(text=clean(segment.text, lines=True))
                for segment in buffer
            )

    return CleanConsole(highlight=False, markup=False, emoji=False)


class ControllingTerminal:
    """The terminal that the program was started from. SIGHUP says that it was closed, or asks a service to reload.

    A program whose terminal is closed with a SIGHUP has to end: it would go on unseen, with its port and its store.
    When there is no SIGHUP, somebody let it go on purpose (`disown`). From then on, as for a program that never had a
    terminal or was started with `nohup`, SIGHUP only reloads.
    """

    LOOK_S = 5.0
    "How often to `look`."
    GRACE_S = 12.0
    "More than two looks: terminals and shells may send SIGHUP before they go."

    def __init__(self) -> None:
        self._file: int | None = None
        self._signalled = float("-inf")
        self._missed = 0
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            return  # nohup
        with contextlib.suppress(OSError):  # a service, or a container
            self._file = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)

    @property
    def watched(self) -> bool:
        """There is one, as far as was known at the last look."""
        return self._file is not None

    def hung_up(self) -> bool:
        """SIGHUP came: whether that is because the terminal was closed."""
        self._signalled = time.monotonic()
        return self._file is not None and self._is_gone(self._file)

    def look(self) -> bool:
        """Whether the terminal was closed soon after a SIGHUP."""
        if self._file is None or not self._is_gone(self._file):
            self._missed = 0
            return False
        if time.monotonic() - self._signalled <= self.GRACE_S:
            return True
        self._missed += 1
        if self._missed > 1:  # once may be just before the signal
            os.close(self._file)
            self._file = None
        return False

    @staticmethod
    def _is_gone(file: int) -> bool:
        try:
            os.tcgetpgrp(file)
        except OSError:  # EIO, or ENOTTY
            return True
        return False


class LogFormatter(logging.Formatter):
    """One line for each record; only tracebacks have more, indented so that none looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return clean(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {clean(line)}" for line in text.split("\n"))
