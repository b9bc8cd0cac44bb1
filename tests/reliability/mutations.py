"""`make mutations`: does the proof notice when the bridge is broken?

Each mutation changes the code of the bridge in a copy of the tree, as an exact replacement of text. Then the two proofs
run on the copy, and each must fail: the simulation (every crash point, then seeds), and short `chaos` runs with real
processes. A replacement that no longer matches is an error, so that this list is kept up when the code changes.

The proofs of several mutations run side by side: a simulation keeps one core busy, and a chaos run mostly waits. The
tree as it is goes first, through the same proofs beside the others: what they notice is not the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIMULATION_S = 120
"Seconds of a processor that the simulation may take to notice, however many others there are."
CHAOS_S = 240.0
"How long one chaos run may take."
CHAOS = ["--seconds", "12", "--inbound", "400", "--outbound", "100", "--lines", "6", "--kills", "10", "--drain", "30"]
CHAOS += ["--reboots", "0", "--blackouts", "0", "--first"]
CORES = len(os.sched_getaffinity(0))
CHAOS_AT_ONCE = 2 * CORES
"A run takes about a tenth of a core."
AT_ONCE = {"simulation": CORES, "chaos": CHAOS_AT_ONCE}
NICE = 10
"Of the simulations: their clock is their own, and the one of chaos is not."


@dataclass(frozen=True, slots=True)
class Mutation:
    """One way to break the bridge."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    "File, the text as it is, and what it becomes."
    chaos: tuple[str, ...] | None = ()
    """Options that make the chaos run look at what is broken. None where it can't see it: its disk does not stall,
    nobody sets its clock or reloads, and its gateways neither lie, nor move to another port, nor are full."""
    first: tuple[str, int] | None = None
    """Scenario and seed with which the simulation begins, since they notice it; all the others come behind. None where
    a crash point does."""


TWO_BRIDGES = "two bridges"
"In the place of a scenario: `reliability.two_bridges`."

_PUMP = "        self._take_events()\n        while self._has_work():\n"
_EARLY = """        self._take_events()
        early, self.server.datagrams = self.server.datagrams, []
        for datagram, address in early:
            if datagram.startswith({words}):
                self.udp.send(datagram, address)
            else:
                self.server.datagrams.append((datagram, address))
        while self._has_work():
"""

MUTATIONS = (
    Mutation(
        "an SMS is acknowledged to the box before the commit",
        (("bridge/app/bridge.py", _PUMP, _EARLY.format(words='(b"RECEIVE", b"DELIVER")')),),
        ("--moment", "acknowledged"),
    ),
    Mutation(
        "a sender's name ends at its first semicolon",
        (("bridge/goip/wire.py", '    "RECEIVE": ("srcnum", ("smscnum", "senttime")),\n', ""),),
    ),
    Mutation(
        "a command is acknowledged to the broker before the commit",
        (
            (
                "bridge/app/bridge.py",
                "            self._inbox.append(message)\n",
                "            self._inbox.append(message)\n            self.link.acknowledge(message)\n"
                # and at once: else it would leave with the next turn of the loop
                '            client = getattr(getattr(self.link, "_connection", None), "_client", None)\n'
                "            if client is not None:\n                client.loop_write()\n",
            ),
            (
                "bridge/app/bridge.py",
                "        if self.link is not None:\n            self.link.acknowledge(message)\n",
                "        pass\n",
            ),
        ),
        ("--broker-share", "0", "--moment", "raw", "--keyless", "0.7", "--kills", "20", "--seconds", "30"),
    ),
    Mutation(
        "SEND leaves before its journal entry is on disk",
        (("bridge/app/bridge.py", _PUMP, _EARLY.format(words='b"SEND "')),),
        ("--moment", "SEND"),
    ),
    Mutation(
        "outbox: rows are deleted when they are published, not at their PUBACK",
        (
            (
                "bridge/mqtt/publisher.py",
                "            self._in_flight[token] = item\n",
                "            self._in_flight[token] = item\n"
                "            if isinstance(item, OutboxRow):\n"
                "                self._finish(item)\n",
            ),
            (
                "bridge/mqtt/publisher.py",
                "                    self._finish(item)\n                if self._delays.pop(",
                "                if self._delays.pop(",
            ),
        ),
        ("--broker-share", "0.8"),
        ("boxes", 3),
    ),
    Mutation(
        "outbox: what an earlier run left is not published",
        (("bridge/mqtt/publisher.py", "        self._more = self._rows > 0\n", "        self._more = False\n"),),
    ),
    Mutation(
        "sendids are used again after a restart",
        (
            (
                "bridge/app/bridge.py",
                "    return max(int(reserved), wall)\n",
                "    return int(reserved) - SENDID_BLOCK\n",
            ),
        ),
    ),
    Mutation(
        "SEND is repeated after WAIT on firmware that sends again",
        (("bridge/goip/line.py", "            safe=self.repeat_safe,\n", "            safe=True,\n"),),
        first=("quiet_wait", 2),
    ),
    Mutation(
        "after a restart, SMS under way are queued again",
        (
            (
                "bridge/app/bridge.py",
                "        batch = self._batch()\n        self._alive_before",
                "        with self.store.transaction():\n"
                "            for row in self.store.sending():\n"
                '                self.store.update_sms(row.n, state="queued", changed=at)\n'
                "        batch = self._batch()\n        self._alive_before",
            ),
        ),
    ),
    Mutation(
        "repeated events of a box are taken as new ones",
        (
            (
                "bridge/goip/line.py",
                "        if now - seen.get(key, -1e9) < self.out.timing.repeats:\n            return False\n",
                "",
            ),
        ),
    ),
    Mutation(
        "repeated events are forgotten at a restart",
        (
            (
                "bridge/app/bridge.py",
                "                self.server.restore_repeat(name, key, now - max(0.0, at - seen) - off)\n",
                "                pass\n",
            ),
        ),
    ),
    Mutation(
        "a repeated command is a new one",
        (
            (
                "bridge/features/admission.py",
                "        if earlier := self._earlier(",
                "        if False and self._earlier(",
            ),
        ),
    ),
    Mutation(
        "doubt is told as a failure",
        (
            (
                "bridge/features/ledger.py",
                'self._move(batch, row, "unknown", {}, evidence="restart")',
                'self._move(batch, row, "failed", {}, evidence="restart")',
            ),
            (
                "bridge/goip/session.py",
                "events.SmsUnknown(self.line, self.outcomes.open[self._telid].msg, evidence)",
                'events.SmsFailed(self.line, self.outcomes.open[self._telid].msg, 1, "no answer")',
            ),
        ),
        ("--moment", "WAIT", "--reports", "0"),
        ("hours", 1),
    ),
    Mutation(
        "a SEND that waited for the disk is repeated at once",
        (
            (
                "bridge/app/bridge.py",
                "self.server.held_up({datagram for datagram, _ in self.server.datagrams}, self.clock.monotonic())\n",
                "pass\n",
            ),
        ),
        None,
        ("quiet_disk", 1),
    ),
    Mutation(
        "a reload does not wait until what happened before is written down",
        (("bridge/app/bridge.py", "        if not self._catch_up_with_core():\n", "        if False:\n"),),
        None,
        ("reloads", 1),
    ),
    Mutation(
        "regular work is done once, and never again",
        (
            (
                "bridge/app/bridge.py",
                "        self._to_do |= dict.fromkeys(self._every_second)\n",
                "        self._to_do |= dict.fromkeys(self._every_second)\n        self._every_second = []\n",
            ),
        ),
    ),
    Mutation(
        "the wall clock says what is too old",
        (
            (
                "bridge/system/clock.py",
                '        return self._state["offset"] + self._clock.boottime()\n',
                "        return self._clock.time()\n",
            ),
        ),
        None,
        ("clocks_ttl", 1),
    ),
    Mutation(
        "one answer that a SEND was not taken is believed at once",
        (
            (
                "bridge/goip/session.py",
                "Phase.DENIED, text, not_taken\n            self.deadline = now + self._timing.grace\n",
                "Phase.DENIED, text, not_taken\n            self.deadline = now\n",
            ),
        ),
        None,
        ("liar", 1),
    ),
    Mutation(
        "a line waits for an OK that was lost although the delivery report is there",
        (
            (
                "bridge/features/ledger.py",
                "        if self._settles_what_is_under_way(event, batch):\n            return\n",
                "",
            ),
            # Nor when the report was held for a while.
            (
                "bridge/features/ledger.py",
                '        if moved and row.state in ("sending", "queued"):\n',
                "        if False:\n",
            ),
        ),
        None,
        ("lost_oks", 1),
    ),
    Mutation(
        "an outcome from a new port of the line's host is thrown away",
        (
            (
                "bridge/goip/server.py",
                "        if address[0] not in [place[0] for place in known if place is not None]:\n",
                "        if True:\n",
            ),
        ),
        None,
        ("nat_sudden", 1),
    ),
    Mutation(
        "a line that a full box refuses pauses, each time twice as long",
        (("bridge/goip/session.py", "TOO_MANY: Refusal.FULL, ", ""),),
        None,
        ("full_box", 1),
    ),
    Mutation(
        "the next session of a full box is that of the longest wait, however urgent others are",
        (
            (
                "bridge/goip/box.py",
                "        return wait.held_until if now < wait.held_until else 0.0, -priority, wait.since\n",
                "        return 0.0, 0.0, wait.since\n",
            ),
        ),
        None,
        ("full_box", 1),
    ),
    Mutation(
        "two bridges: a connection that stood still is trusted",
        (
            (
                "bridge/app/election.py",
                "        return Authority.TAKE if now - self._proved <= AUTHORITY_S else Authority.PROBE\n",
                "        return Authority.TAKE\n",
            ),
            ("bridge/app/election.py", "        if self._stood_still:\n", "        if False:\n"),
        ),
        None,
        (TWO_BRIDGES, 6),
    ),
    Mutation(
        "two bridges: another one's question or claim stops no command",
        (
            (
                "bridge/app/election.py",
                "        if self._is_quiet(now):\n            return Authority.DROP",
                "        if False:\n            return Authority.DROP",
            ),
        ),
        None,
        (TWO_BRIDGES, 3),
    ),
    Mutation(
        "two bridges: a word that the broker may not have leaves no doubt",
        (("bridge/app/election.py", "unsaid = bool(self.rival) and (", "unsaid = False and ("),),
        None,
        (TWO_BRIDGES, 30082),
    ),
    Mutation(
        "two bridges: one that is in doubt is taken for one that never served",
        (("bridge/app/election.py", "            if since or kept:\n", "            if since:\n"),),
        None,
        (TWO_BRIDGES, 30193),
    ),
)
"What must be noticed; what is written here is part of what the proof promises."


# --- in the copy ---


def violations(first: list[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    """What the simulation of this tree finds: invariants, and where. `first` some scenarios with their seeds, then the
    crash points of a short run, then seeds of all scenarios.
    """
    from reliability import simulation

    for name, seed in first:
        if broken := _broken(name, seed):
            yield broken, f"{name}, seed {seed}"
    for qualified in (True, False):
        profile = "spec" if qualified else "repeat_unsafe_wait"
        scenario = simulation.replace(simulation.SHORT, qualified=qualified, profile=profile)
        for steps, report in simulation.every_crash(scenario, 1, arrives=not qualified):
            if report.violations:
                yield " ".join(report.broken), f"crash at step {steps}"
    for seed in range(1, 1000):
        for name in (*simulation.SCENARIOS, TWO_BRIDGES):
            if broken := _broken(name, seed):
                yield broken, f"{name}, seed {seed}"


def _broken(scenario: str, seed: int) -> str:
    """What one run violates."""
    from reliability import simulation, two_bridges

    if scenario == TWO_BRIDGES:
        return "I3" if any(two_bridges.simulate(seed, correlated=each).violations for each in (False, True)) else ""
    report, _ = simulation.simulate(simulation.SCENARIOS[scenario], seed)
    return " ".join(report.broken) if report.violations else ""


def _simulate(limit: int, first: str) -> int:
    """Until the first violation, or the limit in seconds of a processor; `first` is JSON."""
    import logging

    logging.disable(logging.CRITICAL)
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))  # SIGXCPU ends it
    try:
        found, where = next(violations(json.loads(first)))
    except Exception as error:  # it fails to go on: noticed as well
        found, where = type(error).__name__, str(error)[:60]
    print(json.dumps([found, where]))
    return 1


# --- outside ---


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a proof said."""

    caught: str
    "The invariants that fell; empty when it noticed nothing."
    where: str
    seconds: float


def copy_tree(to: Path, mutation: Mutation | None) -> None:
    """The tree with the mutation. ValueError when the text to replace is not there exactly once."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("bridge", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=ignore)
    for file, old, new in mutation.changes if mutation is not None else ():
        path = to / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{mutation.name if mutation else ''}: {text.count(old)} times in {file}:\n{old}")
        path.write_text(text.replace(old, new))


def by_simulation(tree: Path, first: list[tuple[str, int]], limit: int = SIMULATION_S) -> Verdict:
    """Run it until it notices, or the time is over; `first` are the scenarios and seeds to begin with."""
    start = time.monotonic()
    ended = _python(tree, ["-m", "reliability.mutations", "--simulate", str(limit), json.dumps(first)], None)
    if ended.returncode == -signal.SIGXCPU:
        return Verdict("", "", time.monotonic() - start)
    lines = ended.stdout.strip().splitlines()
    if not lines:
        raise RuntimeError(f"the simulation did not run:\n{ended.stderr[-3000:]}")
    found, where = json.loads(lines[-1])
    return Verdict(found, where, time.monotonic() - start)


def by_chaos(tree: Path, options: tuple[str, ...], tries: int) -> Verdict:
    """Short runs with different seeds, until one fails."""
    start = time.monotonic()
    for seed in range(1, tries + 1):
        try:
            ended = _python(tree, ["-m", "reliability.chaos", "--seed", str(seed), *CHAOS, *options], CHAOS_S)
        except subprocess.TimeoutExpired:
            return Verdict("no end", f"seed {seed}", time.monotonic() - start)
        if ended.returncode:
            found = {match[1] for match in re.finditer(r"^VIOLATION (I\d+):", ended.stdout, re.M)}
            stuck = [] if found else ["stuck"]
            invariants = sorted(found, key=lambda name: int(name[1:]))
            return Verdict(" ".join([*invariants, *stuck]), f"seed {seed}", time.monotonic() - start)
    return Verdict("", "", time.monotonic() - start)


def _python(tree: Path, arguments: list[str], limit: float | None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree), "TMPDIR": str(tree)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=tree / "tests", env=environment, capture_output=True, text=True, timeout=limit, check=False
    )


def main(arguments: list[str] | None = None) -> int:
    """0 when the bridge as it is passes, and every mutation is noticed by every proof that was asked."""
    parser = argparse.ArgumentParser(prog="make mutations ARGS=…", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="WORDS", default="", help="mutations with these words in their name")
    parser.add_argument("--proof", choices=("simulation", "chaos", "both"), default="both", help="which (both)")
    parser.add_argument("--tries", type=int, default=3, help="chaos runs with different seeds at most (default 3)")
    parser.add_argument("--simulate", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.simulate is not None:
        return _simulate(int(args.simulate[0]), args.simulate[1])
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation.name]
    if not chosen:
        parser.error(f"no mutation has {args.only!r} in its name")
    proofs = ("simulation", "chaos") if args.proof == "both" else (args.proof,)
    print(f"{'':72}" + "".join(f"{proof:>44}" for proof in proofs))
    start, missed = time.monotonic(), 0
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ThreadPoolExecutor(count)) for name, count in AT_ONCE.items()}
        every = [*([] if args.only else [None]), *chosen]
        runs = [(mutation, _begin(mutation, proofs, args.tries, pools, stack)) for mutation in every]
        for mutation, futures in runs:
            verdicts = [future.result() for future in futures]
            name = mutation.name if mutation is not None else "as it is"
            print(f"{name:72}" + "".join(f"{_cell(verdict):>44}" for verdict in verdicts), flush=True)
            missed += sum(bool(verdict.caught) == (mutation is None) for verdict in verdicts)
    print(f"{time.monotonic() - start:.0f} s")
    print("every mutation was noticed" if not missed else f"NOT as it should be: {missed}")
    return 1 if missed else 0


def _begin(
    mutation: Mutation | None,
    proofs: tuple[str, ...],
    tries: int,
    pools: dict[str, ThreadPoolExecutor],
    stack: ExitStack,
) -> list[Future[Verdict]]:
    """Have the proofs look at a mutation, or at the tree as it is."""
    tree = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutation-")))
    copy_tree(tree, mutation)
    futures = []
    if "simulation" in proofs:
        first = [each.first for each in ([mutation] if mutation is not None else MUTATIONS) if each.first is not None]
        limit = SIMULATION_S if mutation is not None else SIMULATION_S // 4
        futures.append(pools["simulation"].submit(by_simulation, tree, first, limit))
    options = mutation.chaos if mutation is not None else ()
    if "chaos" in proofs and options is not None:
        futures.append(pools["chaos"].submit(by_chaos, tree, options, tries if mutation is not None else 1))
    return futures


def _cell(verdict: Verdict) -> str:
    if not verdict.caught:
        return f"nothing in {verdict.seconds:.0f} s"
    return f"{verdict.caught} ({verdict.where}, {verdict.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
