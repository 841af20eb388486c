"""The public operation whose answer is virtual machines. Apart from `api.py`, which the VM service's own API needs."""

from __future__ import annotations

from typing import Annotated

from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.volume.api import PACKAGE, VOLUME
from caelum.kernel.message import ApiMessage, Param, rest


@rest("GET /volumes/{volumeUuid}/candidate-vm-instances", package=PACKAGE, route_by="volume_uuid")
class GetDataVolumeAttachableVm(ApiMessage[list[VmInstanceInventory]]):
    """The virtual machines that a data volume can be attached to."""

    volume_uuid: Annotated[str, Param(resource=VOLUME)]
