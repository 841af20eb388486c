"""`make cluster-down`: stop every part of the cluster on this machine and delete its data."""

from __future__ import annotations

import argparse
import shutil
import sys

from caelum.cluster.layout import ClusterLayout
from caelum.cluster.parts import parts
from caelum.onemachine import processes
from caelum.onemachine.progress import Progress
from caelum.onemachine.start import only_one

STOP_TIMEOUT = 120.0


def main() -> None:
    """Stop and delete the cluster."""
    argparse.ArgumentParser(prog="caelum.cluster.down", description="Stop and delete the cluster.").parse_args()
    layout, progress = ClusterLayout.from_environment(), Progress()
    if not layout.home.exists():
        print(f"There is no cluster in {layout.home}.")
        return
    with only_one(layout, progress):
        take_down(layout, progress)
    sys.exit(0 if not layout.home.exists() else 1)


def take_down(layout: ClusterLayout, progress: Progress) -> None:
    """Stop the parts, whether or not their supervisor lives, and delete everything."""
    progress.say("stopping the nodes, RabbitMQ and PostgreSQL")
    processes.terminate(layout.run / "supervisor.pid", STOP_TIMEOUT)
    for one in reversed(parts(layout)):
        processes.terminate(layout.run / f"{one['name']}.pid", 30.0)
    shutil.rmtree(layout.home)
    progress.say(f"the cluster is down, and {layout.home} is deleted")


if __name__ == "__main__":
    main()
