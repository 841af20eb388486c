"""What an upgrade of the server means for the agents of the hosts."""

from __future__ import annotations

from collections import Counter

from caelum.agent.protocol import OLDEST_PROTOCOL, PROTOCOL_VERSION
from caelum.drivers.kvm.model import KVM, KvmHostModel
from caelum.kernel.preflight import Look, preflight_check


@preflight_check
async def agents(look: Look) -> None:
    """Whether this version can speak to the agents as they were when they last connected."""
    row = KvmHostModel
    columns = ("name", "agent_version", "agent_protocol")
    if not look.has(row, *columns):
        look.report.facts.append("agents: their versions are known once the upgraded servers have connected them")
        return
    found = await look.rows(row, *columns, where=row.hypervisor_type == KVM)
    for version, number in sorted(Counter(one.agent_version or "unknown" for one in found).items()):
        look.report.facts.append(f"agents of version {version}: {number}")
    old = [one.name for one in found if one.agent_protocol is not None and one.agent_protocol < OLDEST_PROTOCOL]
    if old:
        details = f"the agents of {len(old)} hosts are too old for protocol {PROTOCOL_VERSION}: {', '.join(old[:5])}"
        look.report.find("OldAgent", details, "Bring them to the version of the running servers first.")
