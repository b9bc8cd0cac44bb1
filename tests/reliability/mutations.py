"""`make mutations`: does the proof notice when the bridge is broken?

Each mutation changes the code of the bridge in a copy of the tree, as an exact replacement of text. Then the two proofs
run on the copy, and each must fail: the simulation (every crash point, then seeds), and short `chaos` runs with real
processes. A replacement that no longer matches is an error, so that this list is kept up when the code changes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIMULATION_S = 120.0
"How long the simulation may take to notice."
CHAOS_S = 240.0
"How long one chaos run may take."
CHAOS = ["--seconds", "12", "--inbound", "400", "--outbound", "100", "--lines", "6", "--kills", "10", "--drain", "30"]
CHAOS += ["--reboots", "0", "--blackouts", "0"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One way to break the bridge."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    "File, the text as it is, and what it becomes."
    chaos: tuple[str, ...] | None = ()
    """Options that make the chaos run look at what is broken. None where it can't see it: its disk does not stall, and
    nobody sets its clock."""


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
        (("bridge/app.py", _PUMP, _EARLY.format(words='(b"RECEIVE", b"DELIVER")')),),
        ("--moment", "acknowledged"),
    ),
    Mutation(
        "a command is acknowledged to the broker before the commit",
        (
            (
                "bridge/app.py",
                "            self._inbox.append(message)\n",
                "            self._inbox.append(message)\n            self.link.acknowledge(message)\n"
                # and at once: else it would leave with the next turn of the loop
                '            client = getattr(getattr(self.link, "_connection", None), "_client", None)\n'
                "            if client is not None:\n                client.loop_write()\n",
            ),
            (
                "bridge/app.py",
                "        if self.link is not None:\n            self.link.acknowledge(message)\n",
                "        pass\n",
            ),
        ),
        ("--broker-share", "0", "--moment", "raw", "--keyless", "0.7", "--kills", "20", "--seconds", "30"),
    ),
    Mutation(
        "SEND leaves before its journal entry is on disk",
        (("bridge/app.py", _PUMP, _EARLY.format(words='b"SEND "')),),
        ("--moment", "SEND"),
    ),
    Mutation(
        "outbox: rows are deleted when they are published, not at their PUBACK",
        (
            (
                "bridge/publisher.py",
                "            self._in_flight[token] = item\n",
                "            self._in_flight[token] = item\n"
                "            if isinstance(item, OutboxRow):\n"
                "                self._done.append(item.n)\n",
            ),
            (
                "bridge/publisher.py",
                "                self._done.append(item.n)\n                if self._delays.pop(",
                "                if self._delays.pop(",
            ),
        ),
        ("--broker-share", "0.8"),
    ),
    Mutation(
        "outbox: what an earlier run left is not published",
        (("bridge/publisher.py", "        self._more = self.waiting > 0\n", "        self._more = False\n"),),
    ),
    Mutation(
        "sendids are used again after a restart",
        (
            (
                "bridge/app.py",
                "    return max(int(reserved), wall)\n",
                "    return int(reserved) - SENDID_BLOCK\n",
            ),
        ),
    ),
    Mutation(
        "SEND is repeated after WAIT on firmware that sends again",
        (("bridge/goip/line.py", "            safe=self.repeat_safe,\n", "            safe=True,\n"),),
    ),
    Mutation(
        "after a restart, SMS under way are queued again",
        (
            (
                "bridge/app.py",
                "        batch = self._batch()\n        self._alive_before",
                "        with self.store.transaction():\n"
                '            for row in self.store.in_state("sending"):\n'
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
                "bridge/app.py",
                "                self.server.restore_repeat(name, key, now - max(0.0, at - seen) - off)\n",
                "                pass\n",
            ),
        ),
    ),
    Mutation(
        "a repeated command is a new one",
        (("bridge/intake.py", "        if earlier := self._earlier(", "        if False and self._earlier("),),
    ),
    Mutation(
        "doubt is told as a failure",
        (
            (
                "bridge/ledger.py",
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
    ),
    Mutation(
        "a SEND that waited for the disk is repeated at once",
        (
            (
                "bridge/app.py",
                "self.server.held_up({datagram for datagram, _ in self.server.datagrams}, self.clock.monotonic())\n",
                "pass\n",
            ),
        ),
        None,
    ),
    Mutation(
        "regular work is done once, and never again",
        (
            (
                "bridge/app.py",
                "        self._to_do |= dict.fromkeys(self._every_second)\n",
                "        self._to_do |= dict.fromkeys(self._every_second)\n        self._every_second = []\n",
            ),
        ),
    ),
    Mutation(
        "the wall clock says what is too old",
        (
            (
                "bridge/clock.py",
                '        return self._state["offset"] + self._clock.boottime()\n',
                "        return self._clock.time()\n",
            ),
        ),
        None,
    ),
)
"What must be noticed; what is written here is part of what the proof promises."


# --- in the copy ---


def violations() -> Iterator[tuple[str, str]]:
    """What the simulation of this tree finds: invariants, and where. The crash points of a short run, then seeds."""
    from reliability import simulation

    for qualified in (True, False):
        profile = "spec" if qualified else "repeat_unsafe_wait"
        scenario = simulation.replace(simulation.SHORT, qualified=qualified, profile=profile)
        for steps, report in simulation.every_crash(scenario, 1, arrives=not qualified):
            if report.violations:
                yield " ".join(report.broken), f"crash at step {steps}"
    for seed in range(1, 1000):
        for name, scenario in simulation.SCENARIOS.items():
            report, _ = simulation.simulate(scenario, seed)
            if report.violations:
                yield " ".join(report.broken), f"{name}, seed {seed}"


def _simulate() -> int:
    """Until the first violation."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        found, where = next(violations())
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


def by_simulation(tree: Path, limit: float = SIMULATION_S) -> Verdict:
    """Run it until it notices, or the time is over."""
    start = time.monotonic()
    try:
        ended = _python(tree, ["-m", "reliability.mutations", "--simulate"], limit)
    except subprocess.TimeoutExpired:
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


def _python(tree: Path, arguments: list[str], limit: float) -> subprocess.CompletedProcess[str]:
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
    parser.add_argument("--simulate", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.simulate:
        return _simulate()
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation.name]
    if not chosen:
        parser.error(f"no mutation has {args.only!r} in its name")
    proofs = ("simulation", "chaos") if args.proof == "both" else (args.proof,)
    print(f"{'':72}" + "".join(f"{proof:>44}" for proof in proofs))
    missed = 0
    for mutation in [*([] if args.only else [None]), *chosen]:
        with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
            copy_tree(Path(folder), mutation)
            verdicts = []
            if args.proof != "chaos":
                verdicts.append(by_simulation(Path(folder), SIMULATION_S if mutation else SIMULATION_S / 4))
            options = mutation.chaos if mutation is not None else ()
            if args.proof != "simulation" and options is not None:
                verdicts.append(by_chaos(Path(folder), options, args.tries if mutation else 1))
        name = mutation.name if mutation is not None else "as it is"
        print(f"{name:72}" + "".join(f"{_cell(verdict):>44}" for verdict in verdicts), flush=True)
        missed += sum(bool(verdict.caught) == (mutation is None) for verdict in verdicts)
    print("every mutation was noticed" if not missed else f"NOT as it should be: {missed}")
    return 1 if missed else 0


def _cell(verdict: Verdict) -> str:
    if not verdict.caught:
        return f"nothing in {verdict.seconds:.0f} s"
    return f"{verdict.caught} ({verdict.where}, {verdict.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
