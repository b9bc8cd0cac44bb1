"""What the tests promise of themselves: which touch a broker, why some are skipped, and what a failure shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def report(folder: Path, tests: str, *arguments: str) -> str:
    """What pytest prints of these tests, with the conftest of the real ones, on a machine without mosquitto."""
    (folder / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -rfE --strict-markers -p no:cacheprovider\n")
    (folder / "test_some.py").write_text(f"import subprocess, sys, time, pytest, outputs, brokers\n{tests}")
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "GOIP_TEST_BROKER": "embedded",
        "COLUMNS": "100",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder, env=environment, timeout=60, capture_output=True, text=True,
    ).stdout  # fmt: skip


PROCESS = """
def start(path, words):
    with path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", f"for n in range(99): print('{words}', n)"], stdout=log)
    outputs.show(words, lambda: process.returncode is None, path.read_text)
    return process
"""


def test_a_fixture_that_gives_up_shows_the_last_lines_of_what_it_started(tmp_path: Path) -> None:
    text = report(
        tmp_path,
        PROCESS
        + """
def test_before(tmp_path):
    start(tmp_path / "log", "one before").wait()

@pytest.fixture
def world(tmp_path):
    start(tmp_path / "early", "ended early").wait()
    late = start(tmp_path / "late", "still there")
    while "98" not in (tmp_path / "late").read_text():
        time.sleep(0.01)
    pytest.fail("nothing came")

def test_it(world):
    pass
""",
    )
    assert "1 passed, 1 error" in text
    assert "ended early 98" in text
    assert "still there 98" in text
    assert "still there 9\n" not in text, "the last lines only"
    assert "one before" not in text


def test_a_command_that_takes_too_long_shows_what_it_said(tmp_path: Path) -> None:
    text = report(
        tmp_path,
        """
def test_it():
    code = "import time; print('thinking', 6 * 7, flush=True); time.sleep(60)"
    subprocess.run([sys.executable, "-c", code], timeout=2, capture_output=True)
""",
    )
    assert "thinking 42" in text


def test_skipped_tests_are_a_line_for_each_reason(tmp_path: Path) -> None:
    text = report(
        tmp_path,
        """
@pytest.mark.broker("binary")
@pytest.mark.parametrize("n", range(20))
def test_one(n): pass

@pytest.mark.broker("binary")
def test_two(): pass

def test_three(): pytest.skip("it is Tuesday")
""",
    )
    (section,) = re.findall(r"= skipped =+\n(.*?)\n=", text, re.DOTALL)
    assert section.splitlines() == ["   21  the broker (embedded) lacks binary", "    1  it is Tuesday"]
    assert text.count("binary") == 1


def test_every_test_that_takes_a_broker_from_a_fixture_is_chosen_by_the_mark(tmp_path: Path) -> None:
    text = report(
        tmp_path,
        """
@pytest.fixture
def world(start_broker): pass

def test_direct(broker): pass
def test_indirect(world): pass
@pytest.mark.broker
def test_its_own(): pass
def test_without(): pass
""",
        *("-m", "broker", "--collect-only", "-q"),
    )
    assert re.findall(r"::(\w+)", text) == ["test_direct", "test_indirect", "test_its_own"]


def test_a_test_that_starts_a_mosquitto_without_saying_so_fails_everywhere(tmp_path: Path) -> None:
    text = report(
        tmp_path,
        """
def test_it(tmp_path):
    with brokers.Mosquitto(tmp_path): pass
""",
    )
    assert "a test that starts a mosquitto says so" in text
