"""A short `make chaos`: real processes, kill -9 of bridge and broker, and the independent checker."""

import asyncio
import random
from pathlib import Path

import pytest

from reliability import chaos_two_bridges
from reliability.chaos import Chaos, Options, _kinds, _survivors, table
from reliability.proxy import Seen


@pytest.mark.broker("binary")
async def test_nothing_is_lost_or_doubled_while_bridge_and_broker_are_killed(tmp_path: Path) -> None:
    """Qualified lines behind a bad network, others on a clean one; brokers that keep their state, and that do not."""
    runs = []
    for persistence in (True, False):
        directory = tmp_path / f"persistence-{persistence}"
        directory.mkdir()
        options = Options(
            seed=11, seconds=8.0, inbound=160, outbound=50, kills=5, lines=6, persistence=persistence, drain_s=60.0
        )
        runs.append(Chaos(options, directory))
    outcomes = await asyncio.gather(*(chaos.run() for chaos in runs))
    print(table(list(outcomes)))
    for outcome in outcomes:
        counts = outcome.report.counts
        assert not outcome.report.violations, (outcome.directory, list(map(str, outcome.report.violations)))
        assert outcome.kills["worker_kill"] + outcome.kills["host_kill"] >= 3
        assert outcome.kills["broker_kill"] + outcome.kills["broker_kill_lossy"] == 2
        assert outcome.network["lost"] > 20
        # Things did happen, and almost all of them well.
        assert counts.inbound_offered == 160
        assert counts.inbound_published > 140
        assert counts.accepted >= 46
        assert counts.submitted > 40


@pytest.mark.broker("binary")
def test_two_real_bridges_carry_out_nothing_twice() -> None:
    """One broker, frozen connections, paused and killed bridges. More: python -m reliability.chaos_two_bridges."""
    violations, pair = chaos_two_bridges.run(5, faults=5, pace=2.0, longest=12.0)
    assert violations == []
    assert pair.counts["on air"] > pair.counts["commands"] / 4


def test_the_same_seed_kills_the_same() -> None:
    options = Options(seed=1, kills=40)
    kinds = _kinds(random.Random(1), options)
    assert kinds == _kinds(random.Random(1), options)
    assert kinds != _kinds(random.Random(2), options)
    assert (kinds.count("broker"), kinds.count("worker"), kinds.count("host")) == (14, 13, 13)
    said = " ".join(kinds[:-3])  # at the end there may be nothing left to put in between
    assert "broker broker broker" not in said


def test_a_datagram_survived_when_the_bridge_lived_on_after_it() -> None:
    """Read is what was there half a second before a sign of life, which came before the next kill."""
    reached = [Seen(at, "goip1", b"") for at in (1.0, 9.7, 10.1, 20.0)]
    left = [1.2, 1.6, 9.9, 12.0, 19.0]
    assert list(_survivors(reached, left, deaths=[10.0, 10.2, 15.0])) == [True, False, False, False]
    # The second is read by nobody for sure, the third died in between, and nothing was heard after the fourth.
    assert list(_survivors([Seen(10.3, "goip1", b"")], left, deaths=[10.0, 10.2, 15.0])) == [True]
