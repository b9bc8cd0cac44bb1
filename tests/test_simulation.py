"""A little of the whole bridge in a virtual world; `make simulate` runs more (docs/reliability.md)."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reliability.mutations import MUTATIONS, Mutation, copy_tree
from reliability.simulation import SCENARIOS, SHORT, every_crash, simulate

REGRESSIONS: list[tuple[str, int]] = [
    ("flaky_ntp", 17),  # an SMS with the recvid of one from before a reboot that nobody knew of yet
    ("flaky_ntp", 21),
    ("storm", 1071),  # a repeat that waited for the disk, taken for an SMS of after a reboot
    ("storm", 200165),  # the repeat of an SMS that came just before a reboot was noticed, after a crash
    ("flaky_ntp", 300462),  # the same, before the first keepalive
    ("quiet_rough", 20),  # the error of a second submission, told as if the first had failed
    ("clocks", 7000090),  # a clock set while the bridge was dead made an SMS look too old to be asked about
    ("clocks_ttl", 403),  # sent after its time, by a clock that was set back
    ("clocks_ttl", 404),  # expired before its time, by one that was set forward
    ("power_ttl", 40),  # numbers of one session, of which the last was too old when its turn came
    ("nat", 17),  # an SMS with the recvid of one from before a reboot, with which the line moved to another port
    ("again", 18),  # an absence that was not told, as the first start after it failed
    ("small_memory", 8),  # a question overtaken by the next number, of firmware that remembers only one
    ("one_number", 3),  # "delivered" for an SMS that never left: the report was of another one's second copy
    ("storm", 900026),  # the failure of a second submission, told as if the first could not have gone out
    ("power", 5),  # an SMS taken for a repeat of one from just before a power failure, since steady time fell behind it
    ("power", 41),  # an SMS taken for a repeat that had waited in a socket, and the socket was new
]
"Scenarios and seeds that once failed."


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_invariant_holds(name: str) -> None:
    report, simulation = simulate(SCENARIOS[name], 1)
    assert not report.violations, f"python -m reliability.simulation --scenario {name} --seed 1"
    some_are_not_sent = SCENARIOS[name].ttl is not None or SCENARIOS[name].reloads
    least = 0.1 if some_are_not_sent else 0.9
    assert simulation.sends >= SCENARIOS[name].sms * least, "the run did not do what it is for"


@pytest.mark.parametrize(("name", "seed"), REGRESSIONS)
def test_what_once_failed_does_not_fail_again(name: str, seed: int) -> None:
    assert not simulate(SCENARIOS[name], seed)[0].violations


@pytest.mark.parametrize("qualified", [True, False])
def test_a_crash_at_every_step_loses_nothing_and_doubles_nothing(qualified: bool) -> None:
    scenario = replace(SHORT, qualified=qualified, profile="spec" if qualified else "repeat_unsafe_wait")
    runs = 0
    for steps, report in every_crash(scenario, seed=1, arrives=not qualified):
        assert not report.violations, steps
        assert report.counts.unknown == 0 or not qualified, steps
        runs += 1
    assert runs > 100, "that is not every step"


def test_two_crashes_in_a_row() -> None:
    """The second hits the recovery from the first."""
    for first in range(10, 190, 9):
        for second in (1, 2, 4, 8, 16):
            report, simulation = simulate(SHORT, 1, (first, second))
            assert not report.violations, (first, second)
            assert len(simulation.lives) >= 3


def test_a_thousand_lies_block_no_line_for_longer_than_wait_s() -> None:
    """The scenario ends them in the middle of each run; no line with a backlog stands still for long after that."""
    lies, seed = 0, 0
    while lies < 1000:
        seed += 1
        report, simulation = simulate(SCENARIOS["liar"], seed)
        assert not report.violations, seed
        lies += simulation.lies


def test_a_seed_replays() -> None:
    """Also in another process, where hashes of strings differ."""
    code = (
        "from reliability.simulation import SCENARIOS, simulate; "
        "print(simulate(SCENARIOS['storm'], 3)[1].fingerprint())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env=os.environ | {"PYTHONHASHSEED": number},
            capture_output=True,
            check=True,
        ).stdout
        for number in ("1", "2")
    }
    assert len(prints) == 1


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_still_breaks_the_code_there_is(mutation: Mutation, tmp_path: Path) -> None:
    """That it is noticed, `make mutations` shows."""
    copy_tree(tmp_path, mutation)
    for file in {file for file, _, _ in mutation.changes}:
        compile((tmp_path / file).read_text(), file, "exec")
