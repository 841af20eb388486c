"""`make bench`: run the scenarios, keep the results, compare them with the last ones, and write docs/performance.md.

    python bench/run.py [--full] [--scale 1.0] [--limit SECONDS] [--only NAME ...] [--profile DIRECTORY] [--no-keep]

Each scenario has a time limit; one that runs out of it is given up, and leaves a row that says so. `--scale 0.1` makes
what takes long a tenth as large. Exit code 1: a scenario failed. A goal that is missed is shown, and fails nothing: the
machine may be busy.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
import traceback
from pathlib import Path

import results
import uvloop
from scenarios import SCENARIOS, Mode, Scenario


def main() -> int:
    """Run what was asked for."""
    options = _options()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen = [one for one in SCENARIOS if one.name in options.only] if options.only else None
    wanted = chosen or [one for one in SCENARIOS if options.full or one.quick]
    run, before = results.begin("full" if options.full else "quick"), results.last()
    mode = Mode(options.full, options.profile, options.scale)
    failed = uvloop.run(_all(wanted, mode, run, options.limit, keep=not options.no_keep))
    print(f"\n{run.processors} processors ({run.processor}), load {run.load_before}\n")
    print(results.table(run.rows, before))
    if not options.no_keep and run.rows:
        print(f"\nkept in {results.keep(run)}")
        results.write_page()
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="everything, with the numbers of the goals; up to an hour")
    parser.add_argument("--scale", type=float, default=1.0, help="large numbers times this, for slow machines")
    parser.add_argument("--limit", type=float, help="seconds that each scenario may take, instead of its own limit")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in SCENARIOS], help="these scenarios")
    parser.add_argument("--profile", type=Path, help="write py-spy profiles of the server here (speedscope)")
    parser.add_argument("--no-keep", action="store_true", help="do not write results")
    return parser.parse_args()


async def _all(wanted: list[Scenario], mode: Mode, run: results.Run, limit: float | None, *, keep: bool) -> list[str]:
    failed = []
    for one in wanted:
        begun = time.perf_counter()
        print(f"{one.name} ...", end=" ", flush=True)
        clock = asyncio.timeout(limit or one.limit)
        try:
            async with clock:
                rows = await one.measure(mode)
        except Exception:
            if not clock.expired():
                traceback.print_exc()
                failed.append(one.name)
                continue
            rows = [one.given_up(limit or one.limit)]
        run.rows += rows
        if keep:
            results.keep(run)  # after each, so that a run that is cut off was not in vain
        print(f"{time.perf_counter() - begun:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
