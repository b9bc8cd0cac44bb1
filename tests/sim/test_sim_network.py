"""The bad network and its dice."""

import ast
import random
from pathlib import Path

import pytest

import bridge.sim
from bridge.sim.network import Faults, Network
from bridge.sim.text import split_text

SOURCES = sorted(Path(bridge.sim.__file__).parent.glob("*.py"))
SHELL = {"run.py", "sockets.py", "cli.py", "console.py", "handle.py"}
"The modules that may wait, read clocks and open sockets."


def carry(faults, count=4000, seed=3):
    network = Network(faults, random.Random(seed))
    return [network.carry(b"x") for _ in range(count)]


def test_without_faults_everything_arrives_at_once():
    assert carry(Faults(), 10) == [[(0.0, b"x")]] * 10
    assert not Faults().any()


def test_shares_of_loss_and_duplication():
    lost = sum(not copies for copies in carry(Faults(loss=0.3)))
    doubled = sum(len(copies) == 2 for copies in carry(Faults(duplicate=0.1)))
    assert 1100 < lost < 1300
    assert 330 < doubled < 470


def test_delay_stays_in_its_range():
    delays = [delay for copies in carry(Faults(delay=(0.1, 0.4))) for delay, _ in copies]
    assert 0.1 <= min(delays) < 0.12
    assert 0.38 < max(delays) <= 0.4


def test_reordered_datagrams_are_held_back():
    delays = [delay for copies in carry(Faults(reorder=0.25)) for delay, _ in copies]
    assert 900 < sum(delay > 0 for delay in delays) < 1100


def test_same_seed_same_fate():
    faults = Faults(loss=0.2, duplicate=0.2, reorder=0.2, delay=(0, 1))
    assert carry(faults, 100, seed=5) == carry(faults, 100, seed=5)
    assert carry(faults, 100, seed=5) != carry(faults, 100, seed=6)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("", [0]),
        ("x" * 160, [160]),
        ("x" * 161, [153, 8]),
        ("€" * 80, [80]),
        ("€" * 81, [76, 5]),
        ("я" * 70, [70]),
        ("я" * 71, [67, 4]),
        ("😀" * 36, [33, 3]),
    ],
)
def test_text_is_cut_as_the_network_cuts_it(text, lengths):
    parts = split_text(text)
    assert [len(part) for part in parts] == lengths
    assert "".join(parts) == text


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name not in SHELL], ids=lambda path: path.name)
def test_core_does_not_wait_or_read_clocks(path):
    assert {"asyncio", "socket", "time", "logging", "threading"}.isdisjoint(imports(path))


def test_core_throws_only_the_dice_it_is_given():
    for path in SOURCES:
        text = path.read_text()
        if path.name not in SHELL:
            assert "random." not in text.replace("random.Random", "").replace("rng.random", ""), path.name
