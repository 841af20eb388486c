"""What other services ask of offerings."""

from __future__ import annotations

from caelum.cloud.offering.api import DiskOfferingInventory, InstanceOfferingInventory
from caelum.kernel.message import Message, message


@message()
class GetInstanceOffering(Message[InstanceOfferingInventory]):
    """One instance offering; an error when it does not exist, or, with `enabled`, when it is disabled."""

    uuid: str
    enabled: bool = False


@message()
class GetDiskOffering(Message[DiskOfferingInventory]):
    """One disk offering; an error when it does not exist, or, with `enabled`, when it is disabled."""

    uuid: str
    enabled: bool = False
