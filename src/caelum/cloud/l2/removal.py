"""Taking L2 networks off hosts, now or later.

Invariant: a bridge that a network which should be on the host uses is not removed, however late a removal comes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.cloud.host.events import HostStatusChanged
from caelum.cloud.host.messages import GetHost
from caelum.cloud.l2.api import L2NetworkInventory
from caelum.cloud.l2.extension import L2Driver
from caelum.cloud.l2.rows import bridge_of, uuids_in_cluster
from caelum.cloud.l2.settings import DELETE_BRIDGE
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.gc import gc_runner
from caelum.kernel.node import Node
from caelum.kernel.views import to_builtins

RUNNER = "l2.remove-from-host"


async def remove(node: Node, l2: L2NetworkInventory, bridge: str, host_uuid: str, *, force: bool) -> None:
    """Take the network off the host; leave it to the garbage collector when the host is away, or refuses by force."""
    if not node.settings.get(DELETE_BRIDGE):
        return
    try:
        await _remove(node, l2, bridge, host_uuid)
    except CloudError as error:
        if error.code == RESOURCE_NOT_FOUND.code:
            return
        if not force and error.code != HOST_DISCONNECTED.code:
            raise
        async with node.db.transaction() as tx:
            # By its words: the network's row may be gone when the host comes back.
            context = {"l2": _frozen(l2), "bridge": bridge, "host_uuid": host_uuid}
            await node.gc.submit(
                tx,
                f"{RUNNER}-{l2.uuid}-{host_uuid}",
                RUNNER,
                context,
                on_event=HostStatusChanged,
                match={"host_uuid": host_uuid, "new_status": "Connected"},
            )


@gc_runner(RUNNER)
async def run(node: Node, context: dict[str, Any]) -> bool:
    """Remove a network from a host that could not do it before."""
    l2 = msgspec.convert(context["l2"], L2NetworkInventory)
    try:
        await _remove(node, l2, context["bridge"], context["host_uuid"])
    except CloudError as error:
        if error.code != RESOURCE_NOT_FOUND.code:
            raise
    return True


async def _remove(node: Node, l2: L2NetworkInventory, bridge: str, host_uuid: str) -> None:
    host = await node.bus.call(GetHost(host_uuid=host_uuid))
    async with node.db.read() as session:
        wanted = [await bridge_of(session, one) for one in await uuids_in_cluster(session, host.cluster_uuid)]
    if bridge not in wanted:
        await node.drivers.get(L2Driver, l2.type).remove(l2, bridge, host_uuid)


def _frozen(l2: L2NetworkInventory) -> dict[str, Any]:
    return {**to_builtins(l2), "createDate": l2.create_date.isoformat(), "lastOpDate": l2.last_op_date.isoformat()}
