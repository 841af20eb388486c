"""What guests learn at 169.254.169.254: one JSON file per guest address, served by a small process in the namespace.

Invariant: a guest's file is replaced atomically, and the process reads it at each request: there is nothing to reload.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from caelum.agent.core import Agent
from caelum.agent.network import metadata_server, names, namespaces, processes, state
from caelum.agent.network.state import Networks
from caelum.agent.protocol import NETWORK, ApplyMetadata, Empty, MetadataEntry, ReleaseMetadata
from caelum.agent.registry import handler


@handler(ApplyMetadata, lock="l3-{l3_uuid}")
async def apply_metadata(agent: Agent, cmd: ApplyMetadata) -> Empty:
    """Tell these guests; with `rebuild` no others."""
    folder = _folder(agent, cmd.l3_uuid)
    await agent.run_blocking(_write, folder, cmd)
    await ensure_server(agent, cmd.l3_uuid)
    return Empty()


@handler(ReleaseMetadata, lock="l3-{l3_uuid}")
async def release_metadata(agent: Agent, cmd: ReleaseMetadata) -> Empty:
    """Tell these guests nothing any more."""
    folder = _folder(agent, cmd.l3_uuid)
    for ip in cmd.ips:
        (folder / f"{names.address(ip)}.json").unlink(missing_ok=True)
    return Empty()


def _write(folder: Path, cmd: ApplyMetadata) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{names.address(entry.ip)}.json": entry for entry in cmd.entries}
    for file, entry in files.items():
        state.write(file, msgspec.json.encode(entry))
    if cmd.rebuild:
        for file in set(folder.glob("*.json")) - set(files):
            file.unlink(missing_ok=True)


async def ensure_server(agent: Agent, l3_uuid: str) -> None:
    """Have the server run, if the network's namespace is here; without it, `ApplyDhcp` starts the server later."""
    namespace = names.namespace(l3_uuid)
    if pid(agent, l3_uuid) is not None or not await agent.run_blocking(namespaces.exists, namespace):
        return
    service = await agent.run_blocking(Networks(agent.state_dir).dhcp, l3_uuid)
    if service is None or not service.command.metadata:
        return
    folder = _folder(agent, l3_uuid)
    folder.mkdir(parents=True, exist_ok=True)
    # Isolated and without site packages: the process needs the standard library only, and stays small.
    argv = [sys.executable, "-I", "-S", metadata_server.__file__, str(folder), str(_pid_file(agent, l3_uuid))]
    await agent.run(namespaces.command(namespace, argv), timeout=20, error_code=NETWORK)


def pid(agent: Agent, l3_uuid: str) -> int | None:
    """The pid of a network's server."""
    return processes.running(_pid_file(agent, l3_uuid), str(_folder(agent, l3_uuid)))


def served(networks: Networks, l3_uuid: str) -> list[str]:
    """The guests' addresses that have a file."""
    return sorted(file.stem for file in (networks.folder(l3_uuid) / "metadata").glob("*.json"))


def entry(networks: Networks, l3_uuid: str, ip: str) -> MetadataEntry | None:
    """What a guest is told."""
    return state.read(networks.folder(l3_uuid) / "metadata" / f"{names.address(ip)}.json", MetadataEntry)


def _folder(agent: Agent, l3_uuid: str) -> Path:
    return Networks(agent.state_dir).folder(l3_uuid) / "metadata"


def _pid_file(agent: Agent, l3_uuid: str) -> Path:
    return Networks(agent.state_dir).folder(l3_uuid) / "metadata.pid"
