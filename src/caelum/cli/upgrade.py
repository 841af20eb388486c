"""`caelum admin upgrade`: look at a cloud before an upgrade, and finish one."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caelum.cli import output

if TYPE_CHECKING:
    from caelum.kernel.config import Config
    from caelum.kernel.migrate import Plan
    from caelum.kernel.preflight import Report


def add_to(commands: Any) -> None:
    """Add the command to `caelum admin`."""
    parser = commands.add_parser(
        "upgrade",
        help="check whether this version can take over, and finish an upgrade",
        description="Reads the server's configuration and its database; no server needs to run.",
    )
    kinds = parser.add_subparsers(metavar="COMMAND", required=True)
    check = kinds.add_parser("check", help="what stands in the way of this version; exit code 1 when something does")
    check.add_argument("--output", "-o", choices=("table", "json"), default="table")
    check.set_defaults(run=_check)
    finish = kinds.add_parser("finish", help="remove from the database what only former versions need")
    finish.set_defaults(run=_finish)
    for one in (check, finish):
        one.add_argument("--config", type=Path, help="the server's configuration file")
        one.add_argument("--data-dir", type=Path, help="the server's data directory")


def _configuration(options: argparse.Namespace) -> Config:
    from caelum.kernel.config import load

    config = load(options.config)
    if options.data_dir is not None:
        config.data_dir = options.data_dir
    return config


def _check(options: argparse.Namespace) -> int:
    # Only now: it brings all services with it.
    from caelum.kernel.preflight import inspect_cloud

    try:
        config = _configuration(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    report = asyncio.run(inspect_cloud(config))
    if options.output == "json":
        output.show(report.to_wire(), "json")
    else:
        _print(report)
    return 1 if report.blocked else 0


def _print(report: Report) -> None:
    for fact in report.facts:
        print(fact)
    for one in report.findings:
        print(f"{'BLOCKS' if one.blocks else 'note':6} {one.kind}: {one.details}\n       {one.remedy}")
    print(f"Version {report.version} {'must not be started yet' if report.blocked else 'can be started'}.")


def _finish(options: argparse.Namespace) -> int:
    from caelum.kernel.errors import CloudError
    from caelum.kernel.schema import UpgradeError

    try:
        plan = asyncio.run(_run_all(_configuration(options)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (UpgradeError, CloudError) as error:
        print(error, file=sys.stderr)
        return 1
    for one in plan.now:
        print(f"Revision {one} has been run.")
    if plan.later:
        waiting = ", ".join(map(str, plan.later))
        print(f"Not finished: {waiting} must wait for {plan.why()}.", file=sys.stderr)
        return 1
    print("The upgrade is finished: the database is this version's.")
    return 0


async def _run_all(config: Config) -> Plan:
    from caelum.kernel.database import Database
    from caelum.kernel.upgrade import finish

    db = Database(config.resolved_database_url())
    try:
        return await finish(db, config)
    finally:
        await db.close()
