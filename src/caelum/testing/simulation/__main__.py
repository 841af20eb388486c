"""`python -m caelum.testing.simulation`: run seeds and say which failed, and how to see why.

SEED=17           one seed, with its history
SEEDS=1000        so many, from FIRST (1) on
NODES=3           with so many management nodes, instead of 1 to 3 by the seed
WORKERS=2         so many at a time
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

from caelum.testing.simulation import template
from caelum.testing.simulation.pool import run_all
from caelum.testing.simulation.run import Outcome, run

HOSTS, MOST_NODES = 2, 3
_REPLAY_LINES = 1_000_000
_STORY = 60


def main() -> None:
    """Run what the environment asks for; exit status 1 when a run failed."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of texts must be the same in every process.
        os.execve(
            sys.executable, [sys.executable, "-m", __package__, *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
        )  # noqa: S606
    one = os.environ.get("SEED")
    first, count = _number("FIRST", 1), _number("SEEDS", 50)
    seeds = [int(one)] if one else range(first, first + count)
    lines, workers = _REPLAY_LINES if one else _STORY, _number("WORKERS", os.cpu_count() or 1)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="caelum-template-") as directory:
        gc.disable()
        made = template.make(Path(directory), HOSTS)
        gc.collect()
        gc.freeze()
        for outcome in run_all(lambda seed: run(made, seed, nodes=_nodes(seed), lines=lines), seeds, workers):
            failed += bool(outcome.problems)
            _say(outcome, bool(one))
    print(f"{len(seeds)} seeds, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


def _nodes(seed: int) -> int:
    return _number("NODES", 0) or 1 + seed % MOST_NODES


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _say(outcome: Outcome, replayed: bool) -> None:
    if outcome.problems or replayed:
        print("\n".join(outcome.lines))
    print(
        f"seed {outcome.seed}: {'FAILED' if outcome.problems else 'good'}, history {outcome.digest[:16]},"
        f" {outcome.succeeded} of {outcome.calls} calls succeeded, {outcome.kills} restarts,"
        f" {outcome.virtual_seconds:.0f} virtual s, {outcome.steps} steps, {outcome.real_seconds:.1f} s",
        flush=True,
    )
    for problem in outcome.problems:
        print(f"  {problem}", flush=True)
    if outcome.problems and not replayed:
        print(f"  replay: SEED={outcome.seed} python -m caelum.testing.simulation", flush=True)


if __name__ == "__main__":
    main()
