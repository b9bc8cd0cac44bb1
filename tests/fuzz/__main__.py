"""`python -m fuzz`: fuzz for some time, print what was reached, and stop at the first fault."""

import argparse
import hashlib
import random
import sys
import tempfile
import traceback
from pathlib import Path

from fuzz import engine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--target", choices=[*engine.TARGETS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="default: another one at each run")
    parser.add_argument("--save", action="store_true", help="add what went a new way to the corpus")
    parser.add_argument("--crashes", type=Path, default=Path(tempfile.gettempdir()), metavar="FOLDER")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input and nothing else")
    args = parser.parse_args()
    names = list(engine.TARGETS) if args.target == "all" else [args.target]
    if args.replay is not None:
        return replay(names, args.replay)
    seed = args.seed if args.seed is not None else random.randrange(2**31)
    return max(fuzz(name, args.seconds, seed, args.crashes, keep=args.save) for name in names)


def fuzz(name: str, seconds: float, seed: int, crashes: Path, *, keep: bool) -> int:
    run = engine.Run(engine.TARGETS[name], seed, engine.load(name))
    run.go(seconds, lambda text: print(text, flush=True))
    if keep:
        print(f"{engine.save(name, run.found)} inputs added to {engine.corpus_folder(name)}")
    if run.crash is None:
        return 0
    data, error = run.crash
    path = crashes / f"crash-{name}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    traceback.print_exception(error)
    print(f"found after {run.executions} executions (seed {seed}): {data[:200]!r}")
    print(f"again: cd {Path(__file__).parent.parent} && {sys.executable} -m fuzz --target {name} --replay {path}")
    return 1


def replay(names: list[str], path: Path) -> int:
    data = path.read_bytes()
    for name in names:
        engine.check(engine.TARGETS[name], data)
        print(f"{name}: {path} is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
