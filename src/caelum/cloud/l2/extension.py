"""What L2 drivers implement, and where others may join in."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import ClassVar

from caelum.cloud.host.spec import HostOrder
from caelum.cloud.l2.api import L2NetworkInventory
from caelum.kernel.extension import ExtensionPoint

LONGEST_NAME = 15
"""Linux's limit for the name of an interface."""


def short_name(prefix: str, interface: str) -> str:
    """`prefix` + `interface`, the latter replaced by the start of its MD5 where that is too long for Linux."""
    if len(prefix) + len(interface) <= LONGEST_NAME:
        return prefix + interface
    digest = hashlib.md5(interface.encode(), usedforsecurity=False).hexdigest()
    return prefix + digest[: LONGEST_NAME - len(prefix)]


class L2Driver(ABC):
    """One type of L2 network, registered by that type ("L2NoVlanNetwork"). Methods on hosts are idempotent."""

    vswitch_types: ClassVar[tuple[str, ...]] = ("LinuxBridge",)

    @abstractmethod
    def check_new(self, physical_interface: str) -> None:
        """Refuse, with SYS.1007, an interface that no host could have."""

    @abstractmethod
    def bridge_name(self, physical_interface: str) -> str:
        """The bridge that a network on this interface would like to have on hosts, at most 15 characters.

        It may be taken: the service then chooses another name, and keeps what was chosen in the tag `kvm::bridge`.
        """

    @abstractmethod
    def private(self, l2: L2NetworkInventory) -> bool:
        """Whether the network has no uplink on hosts."""

    @abstractmethod
    def mtu(self, l2: L2NetworkInventory) -> int:
        """The MTU that guests are told by default."""

    @abstractmethod
    async def check(self, l2: L2NetworkInventory, host_uuid: str) -> None:
        """Whether the network can be realised on the host; raises when not."""

    @abstractmethod
    async def realise(self, l2: L2NetworkInventory, bridge: str, host_uuid: str) -> None:
        """Make the network on the host."""

    def orders(self, l2: L2NetworkInventory, bridge: str) -> list[HostOrder] | None:  # noqa: ARG002
        """What makes the network on a host in one go with the start of a machine; None: only `realise` does."""
        return None

    @abstractmethod
    async def remove(self, l2: L2NetworkInventory, bridge: str, host_uuid: str) -> None:
        """Take the network off the host; success if it is not there."""


class L2BeforeDetach(ExtensionPoint):
    """Before an L2 network leaves a cluster: detach what uses it there. An exception stops the detaching."""

    async def before_detach(self, l2: L2NetworkInventory, cluster_uuid: str) -> None:
        """`l2` is about to leave the cluster."""
