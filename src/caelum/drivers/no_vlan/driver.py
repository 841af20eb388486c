"""L2NoVlanNetwork on KVM hosts: a Linux bridge with the physical interface as its uplink.

A physical interface whose name starts with `private` (`private0`) is none: the network is then a bridge without uplink,
for itself on each host. That is how a one-machine cloud has networks without touching the machine's own.
"""

from __future__ import annotations

import re

from caelum.agent.protocol import CheckInterface, CreateBridge, DeleteBridge
from caelum.cloud.host.spec import HostOrder
from caelum.cloud.l2.api import L2NetworkInventory
from caelum.cloud.l2.extension import L2Driver, short_name
from caelum.drivers.kvm.remote import on_host, order
from caelum.drivers.no_vlan.settings import DEFAULT_MTU
from caelum.kernel.errors import invalid
from caelum.kernel.node import Node

PRIVATE = "private"
TIMEOUT = 60.0
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,14}")


class NoVlanDriver(L2Driver):
    """The driver of L2NoVlanNetwork."""

    def __init__(self, node: Node) -> None:
        self._node = node
        node.drivers.add(L2Driver, "L2NoVlanNetwork", self)

    def check_new(self, physical_interface: str) -> None:
        """Linux's rules for names of interfaces."""
        if _INTERFACE.fullmatch(physical_interface) is None:
            raise invalid(
                "physicalInterface",
                f"{physical_interface[:255]} is no name of an interface: 1 to 15 letters, digits, _.-",
            )

    def bridge_name(self, physical_interface: str) -> str:
        return short_name("br_", physical_interface)

    def private(self, l2: L2NetworkInventory) -> bool:
        return (l2.physical_interface or "").startswith(PRIVATE)

    def mtu(self, l2: L2NetworkInventory) -> int:  # noqa: ARG002 - the same for all
        return self._node.settings.get(DEFAULT_MTU)

    async def check(self, l2: L2NetworkInventory, host_uuid: str) -> None:
        """The host must have the interface."""
        if l2.physical_interface is not None and not self.private(l2):
            await on_host(self._node.bus, host_uuid, CheckInterface(name=l2.physical_interface), timeout=TIMEOUT)

    async def realise(self, l2: L2NetworkInventory, bridge: str, host_uuid: str) -> None:
        await on_host(self._node.bus, host_uuid, self._create(l2, bridge), timeout=TIMEOUT)

    def orders(self, l2: L2NetworkInventory, bridge: str) -> list[HostOrder]:
        return [order(self._create(l2, bridge))]

    def _create(self, l2: L2NetworkInventory, bridge: str) -> CreateBridge:
        uplink = None if self.private(l2) else l2.physical_interface
        return CreateBridge(l2_uuid=l2.uuid, bridge=bridge, interface=uplink, mtu=self.mtu(l2))

    async def remove(self, l2: L2NetworkInventory, bridge: str, host_uuid: str) -> None:
        await on_host(self._node.bus, host_uuid, DeleteBridge(l2_uuid=l2.uuid, bridge=bridge), timeout=TIMEOUT)
