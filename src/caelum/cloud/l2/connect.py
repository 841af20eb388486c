"""A host that connects gets the L2 networks of its cluster before it counts as Connected."""

from __future__ import annotations

from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.extension import HostConnect
from caelum.cloud.l2.messages import RealiseL2
from caelum.cloud.l2.rows import uuids_in_cluster
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node

PARALLELISM = 8
"""Networks that are realised on one host at once."""


class L2AtHostConnect(HostConnect):
    """Realises every network of the cluster, whatever its type."""

    order = 100

    def __init__(self, node: Node) -> None:
        self._node = node

    async def connect(self, host: HostInventory) -> None:
        """Make what is missing; the first failure fails the connect, once all were tried."""
        wanted = await self._node.db.remember(
            (L2AtHostConnect, host.cluster_uuid), lambda session: uuids_in_cluster(session, host.cluster_uuid)
        )
        requests = [RealiseL2(l2_network_uuid=uuid, host_uuid=host.uuid) for uuid in wanted]
        answers = await self._node.bus.call_all(requests, parallelism=PARALLELISM)
        errors = [one for one in answers if isinstance(one, CloudError)]
        if errors:
            raise errors[0]
