"""`make cluster`: several management nodes, PostgreSQL, RabbitMQ and simulated hosts on this machine.

A second run finds all there.

Invariant: it may be interrupted anywhere, with everything that it has started, and run again. It says that the cluster
runs only when every node is ready and knows all the others.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import urllib.request

from caelum.cluster.layout import ClusterLayout
from caelum.cluster.parts import parts, share_authority
from caelum.cluster.postgres import binaries
from caelum.cluster.provision import ClusterProvisioner
from caelum.cluster.rabbitmq import RabbitMq
from caelum.onemachine import processes
from caelum.onemachine.access import ACCOUNT, FIRST_PASSWORD, VARIABLE, log_in
from caelum.onemachine.progress import Progress
from caelum.onemachine.start import (
    RefusedError,
    answers_ready,
    check_ports,
    explained,
    only_one,
    start_parts,
    wait_ready,
)
from caelum.sdk import ApiError, Client

MEET_TIMEOUT = 60.0


def main() -> None:
    """Bring the cluster up and say what runs."""
    argparse.ArgumentParser(prog="caelum.cluster.up", description="Start a cluster on this machine.").parse_args()
    layout, progress = ClusterLayout.from_environment(), Progress()
    with explained("cluster", "make cluster", "`make cluster-down` removes what there is", layout.logs):
        check()
        with only_one(layout, progress):
            bring_up(layout, progress)
    progress.say(f"up after {progress.seconds:.1f} s: {progress.times()}")
    _summary(layout)


def check() -> None:
    """Refuse what cannot work, before anything is started."""
    if binaries() is None or not RabbitMq.available():
        raise RefusedError("PostgreSQL or RabbitMQ is missing: run `make cluster`, or `tools/install cluster` first.")


def bring_up(layout: ClusterLayout, progress: Progress) -> Client:
    """Start what does not run, make what is absent. Returns a client with a session."""
    with progress.phase("programs", f"PostgreSQL, RabbitMQ, {layout.nodes} nodes, {layout.hosts} simulated hosts"):
        start(layout)
        wait_ready(
            layout,
            {name: _ready(layout.api_of(index)) for index, name in enumerate(layout.names)}
            | ({"hosts": _hosts_answer(layout)} if layout.hosts else {}),
            {name: layout.data_of(index) / "log" / "server.log" for index, name in enumerate(layout.names)},
        )
    client = log_in(*layout.apis)
    with progress.phase("membership", "waiting until every node knows all others"):
        wait_met(layout, client)
    if layout.hosts:
        with progress.phase("resources", "furnishing the cloud"):
            ClusterProvisioner(client, layout, progress.say).resources()
    return client


def start(layout: ClusterLayout) -> None:
    """Start the supervisor with all parts, unless it runs."""
    if processes.alive(layout.run / "supervisor.pid"):
        return
    for directory in (layout.logs, layout.run, layout.backup_storage, layout.guest_image.parent):
        directory.mkdir(parents=True, exist_ok=True)
    programs = parts(layout)
    for one in reversed(programs):
        processes.terminate(layout.run / f"{one['name']}.pid", 30.0)
    check_ports(layout.ports, "make cluster")
    share_authority(layout)
    start_parts(layout, programs)


def wait_met(layout: ClusterLayout, client: Client) -> None:
    """Wait until each node has every other in its ring."""
    deadline = time.monotonic() + MEET_TIMEOUT
    while missing := _strangers(layout, client):
        if time.monotonic() > deadline:
            raise RefusedError(f"Not every node knows all others after {MEET_TIMEOUT:.0f} s: {'; '.join(missing)}.")
        time.sleep(0.2)


def _strangers(layout: ClusterLayout, client: Client) -> list[str]:
    uuids = {name: _uuid(layout.api_of(index)) for index, name in enumerate(layout.names)}
    found = []
    for index, name in enumerate(layout.names):
        one = Client(layout.api_of(index), session=client.session)
        for other, uuid in uuids.items():
            try:
                one.call("IsReadyToGo", managementNodeId=uuid)
            except (ApiError, OSError):
                found.append(f"{name} does not know {other}")
    return found


def _uuid(api: str) -> str:
    with urllib.request.urlopen(f"{api}/healthz", timeout=5) as answer:
        return str(json.load(answer)["node"])


def _ready(api: str) -> processes.Condition:
    return lambda: answers_ready(f"{api}/readyz")


def _hosts_answer(layout: ClusterLayout) -> processes.Condition:
    return lambda: processes.answers((layout.address, layout.control_port))


def _summary(layout: ClusterLayout) -> None:
    password = "..." if VARIABLE in os.environ else FIRST_PASSWORD
    hosts = f"{layout.hosts} simulated, controlled at {layout.control}" if layout.hosts else "none"
    first = layout.run / f"{layout.names[0]}.pid"
    print(f"""
Your cluster is running.

  APIs         {"  ".join(layout.apis)}   (each serves everything; /docs is the reference)
  Login        {ACCOUNT} / {password}
  Hosts        {hosts}
  PostgreSQL   {layout.database_url.replace("+asyncpg", "")}
  RabbitMQ     {layout.bus_url}
  Data, logs   {layout.home}

Try next:
  . .venv/bin/activate
  caelum login --account {ACCOUNT} --password {password} --url {",".join(layout.apis)}
  caelum admin nodes
  caelum vm create --name web1 --image tiny --instance-offering small --l3-networks guests
  kill -9 $(cat {first})     # its work goes on at the others; it is back in a few seconds
  caelum admin audit

`make cluster-down` stops everything and deletes it.""")


if __name__ == "__main__":
    main()
