"""The output of the processes that tests start: where a test fails, the report shows the last lines of each.

Whoever starts a process says once where its output can be read: `show("bridge", lambda: process.returncode is None,
lambda: log.read_text())`. The report has a section for each process that ran at any time since the test began.
"""

import subprocess
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import pytest

LINES, CHARACTERS = 25, 6000
"The most that is shown of one process."


@dataclass(frozen=True)
class Output:
    """Of one process, over all its starts."""

    name: str
    runs: Callable[[], bool]
    "False when whoever started it has ended it, or knows that it has ended."
    read: Callable[[], str]


_outputs: list[Output] = []


def show(name: str, runs: Callable[[], bool], read: Callable[[], str]) -> None:
    """Show the end of this output where a test fails, until the first test that begins when it no longer runs."""
    _outputs.append(Output(name, runs, read))


def last_lines() -> Iterator[tuple[str, str]]:
    """Name and last lines of every output."""
    for output in _outputs:
        try:
            text = output.read()
        except OSError as error:
            text = f"(cannot be read: {error})"
        yield output.name, _end(text) or "(nothing)"


def _end(text: str) -> str:
    return "\n".join(text[-CHARACTERS:].rstrip().splitlines()[-LINES:])


def pytest_runtest_logstart() -> None:
    """A test begins: forget what ended before it."""
    _outputs[:] = [output for output in _outputs if output.runs()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"last lines of {name}", text) for name, text in last_lines()]
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, subprocess.TimeoutExpired):  # of one that was only started to be waited for
            for text in filter(None, (error.output, error.stderr)):
                said = text.decode(errors="replace") if isinstance(text, bytes) else text
                report.sections.append((f"last lines of {error.cmd}", _end(said)))
    return report
