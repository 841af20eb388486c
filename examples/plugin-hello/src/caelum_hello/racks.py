"""Racks: a VM with the tag `hello::rack::<name>` only runs on hosts that have the same tag.

An extension of the allocator: it hears of every allocation and says, in words, which hosts will not do.
"""

from __future__ import annotations

from caelum.cloud.allocator.extension import HostFilter
from caelum.cloud.allocator.messages import AllocateHost, Candidate
from caelum.kernel.node import Node
from caelum.kernel.tag import system_tag

HOST_RACK = system_tag("hello::rack::{rack}", resource="HostVO")
VM_RACK = system_tag("hello::rack::{rack}", resource="VmInstanceVO")


class RackFilter(HostFilter):
    """Refuses hosts in other racks, or in none."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def refuse(self, ask: AllocateHost, candidates: list[Candidate]) -> dict[str, str]:
        uuids = [one.host_uuid for one in candidates]
        async with self._node.db.read() as session:
            wanted = VM_RACK.find(ask.system_tags) or await VM_RACK.get(session, ask.vm_uuid)
            racks = await HOST_RACK.get_many(session, uuids)
        if wanted is None:
            return {}
        return {
            uuid: f"it is in rack[{rack}], not in rack[{wanted['rack']}]"
            for uuid in uuids
            if (rack := racks.get(uuid, {}).get("rack")) != wanted["rack"]
        }
