"""The host itself: adopt it, ping it, say what it is and what is on it.

Invariant: what is answered about guests comes from libvirt at that moment. Without libvirt the answer is an error,
never an empty list: an absent guest is one that libvirt says is absent.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import caelum
from caelum.agent import facts
from caelum.agent.core import Agent
from caelum.agent.program import HOST_LOCK, proving
from caelum.agent.protocol import (
    OLDEST_PROTOCOL,
    PROTOCOL_VERSION,
    ConnectHost,
    ConnectHostAnswer,
    DumpHost,
    Echo,
    Empty,
    GetHostCapacity,
    HostCapacity,
    HostDump,
    Ping,
    PingAnswer,
)
from caelum.agent.registry import handler
from caelum.agent.vm.acceleration import Acceleration
from caelum.agent.vm.libvirtd import Libvirt
from caelum.agent.vm.watch import Watch

log = logging.getLogger(__name__)

HOST_FILE = "host.json"


def setup(agent: Agent) -> None:
    """Remember at the start who this host is."""
    agent.hooks.started.append(_recall)


@handler(Echo)
async def echo(_agent: Agent, _cmd: Echo) -> Empty:
    """Here I am."""
    return Empty()


@handler(ConnectHost, lock=HOST_LOCK)
async def connect_host(agent: Agent, cmd: ConnectHost) -> ConnectHostAnswer:
    """Adopt this host."""
    async with proving(agent):
        return await _adopt(agent, cmd)


async def _adopt(agent: Agent, cmd: ConnectHost) -> ConnectHostAnswer:
    kind = await agent.part(Acceleration).kind()
    shown = await agent.run(["ip", "-json", "address"], timeout=10)
    found = await agent.part(Libvirt).call(facts.collect, kind, facts.ip_addresses(shown.text))
    states, unknown = await agent.part(Watch).all_states()
    kept = {"hostUuid": cmd.host_uuid, "reportUrl": cmd.report_url, "settings": cmd.settings}
    await agent.run_blocking(_write, agent.state_dir / HOST_FILE, kept)
    agent.settings = dict(cmd.settings)
    agent.report_to(cmd.report_url, cmd.host_uuid)
    return ConnectHostAnswer(
        agent_uuid=agent.uuid,
        version=caelum.__version__,
        protocol=PROTOCOL_VERSION,
        oldest_protocol=OLDEST_PROTOCOL,
        facts=found,
        vm_states=states,
        unknown_domains=unknown,
    )


@handler(Ping)
async def ping(agent: Agent, _cmd: Ping) -> PingAnswer:
    """Who this is, and how its guests are."""
    states, _ = await agent.part(Watch).all_states()
    return PingAnswer(host_uuid=agent.host_uuid, agent_uuid=agent.uuid, version=caelum.__version__, vm_states=states)


@handler(GetHostCapacity)
async def get_host_capacity(agent: Agent, _cmd: GetHostCapacity) -> HostCapacity:
    """Processors and memory, all and used by running guests."""
    return await agent.part(Libvirt).call(facts.capacity)


@handler(DumpHost)
async def dump_host(agent: Agent, cmd: DumpHost) -> HostDump:
    """Everything of ours that is here, from every part of the agent."""
    states, unknown = await agent.part(Watch).all_states()
    parts: dict[str, Any] = {"taps": await agent.run_blocking(facts.taps)}
    for provider in agent.hooks.dump:
        parts |= await provider(agent, cmd.storage_paths)
    empty: dict[str, Any] = {"bridges": [], "dhcp": {}, "metadata": {}, "nat": [], "files": {}}
    # This command itself is one of those that run.
    running = agent.tasks_running() - 1
    return HostDump(vms=states, unknown_domains=unknown, tasks_running=running, **(empty | parts))


async def _recall(agent: Agent) -> None:
    kept = await agent.run_blocking(_read, agent.state_dir / HOST_FILE)
    if kept is not None:
        agent.settings = kept["settings"]
        agent.report_to(kept["reportUrl"], kept["hostUuid"])


def _write(path: Path, kept: dict[str, Any]) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(kept))
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s cannot be read; the next connect writes it anew: %s", path, error)
        return None
    return kept
