"""What the portal asks the VM service before an operation on a VM is routed, beyond types and existence."""

from __future__ import annotations

from sqlalchemy import select

from caelum.cloud.image.messages import GetImage
from caelum.cloud.l3.messages import GetL3
from caelum.cloud.offering.messages import GetInstanceOffering
from caelum.cloud.vm import tags
from caelum.cloud.vm.api import (
    AttachL3NetworkToVm,
    CreateVmInstance,
    SetVmBootOrder,
    SetVmHostname,
    SetVmStaticIp,
)
from caelum.cloud.vm.model import VmNicModel
from caelum.cloud.vm.settings import MULTI_NIC
from caelum.cloud.vm.specs import volume_of
from caelum.cloud.volume.api import AttachDataVolumeToVm, DetachDataVolumeFromVm
from caelum.kernel.errors import INVALID_ARGUMENT, OPERATION_ERROR, CloudError, invalid
from caelum.kernel.node import Node
from caelum.kernel.service import intercepts

MIN_MEMORY = 1 << 20
MAX_CPU = 1024


class VmChecks:
    """The service's own API checks; each raises an error that names the field."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @intercepts(CreateVmInstance)
    async def check_create(self, msg: CreateVmInstance) -> None:
        await self._check_size(msg)
        await self._check_image(msg)
        await self._check_networks(msg)
        if msg.data_disk_sizes and any(size <= 0 for size in msg.data_disk_sizes):
            raise invalid("dataDiskSizes", f"every size must be positive, not {msg.data_disk_sizes}")
        _check_place_tags(msg)

    async def _check_size(self, msg: CreateVmInstance) -> None:
        if msg.instance_offering_uuid is not None:
            await self._node.bus.call(GetInstanceOffering(uuid=msg.instance_offering_uuid, enabled=True))
            return
        if not msg.cpu_num or not 1 <= msg.cpu_num <= MAX_CPU:
            raise invalid("cpuNum", f"without an instance offering it must be from 1 to {MAX_CPU}, not {msg.cpu_num}")
        if not msg.memory_size or msg.memory_size < MIN_MEMORY:
            raise invalid(
                "memorySize", f"without an instance offering it must be at least {MIN_MEMORY}, not {msg.memory_size}"
            )

    async def _check_image(self, msg: CreateVmInstance) -> None:
        if msg.image_uuid is None:
            raise invalid("imageUuid", "an image is needed")
        image = await self._node.bus.call(GetImage(image_uuid=msg.image_uuid, usable=True))
        if image.media_type == "ISO" and not (msg.root_disk_size or msg.root_disk_offering_uuid):
            raise invalid("rootDiskOfferingUuid", "an ISO has no root disk: give rootDiskOfferingUuid or rootDiskSize")
        if image.media_type not in ("RootVolumeTemplate", "ISO"):
            raise invalid("imageUuid", f"image[uuid:{image.uuid}] is a {image.media_type}; a VM cannot start from it")

    async def _check_networks(self, msg: CreateVmInstance) -> None:
        networks = msg.l3_network_uuids or []
        if len(set(networks)) < len(networks) and not self._node.settings.get(MULTI_NIC):
            raise invalid("l3NetworkUuids", f"the same network is given twice: {networks}; vm/multivNic.support is off")
        if msg.default_l3_network_uuid and msg.default_l3_network_uuid not in networks:
            raise invalid(
                "defaultL3NetworkUuid",
                f"[{msg.default_l3_network_uuid}] is not in l3NetworkUuids {networks}",
            )
        for one in (await self._node.bus.call(GetL3(l3_network_uuids=networks))).networks if networks else []:
            if one.state != "Enabled":
                raise invalid("l3NetworkUuids", f"l3Network[uuid:{one.uuid}] is {one.state}, it must be Enabled")

    @intercepts(AttachL3NetworkToVm)
    async def check_attach_nic(self, msg: AttachL3NetworkToVm) -> None:
        network = (await self._node.bus.call(GetL3(l3_network_uuids=[msg.l3_network_uuid]))).networks[0]
        if network.state != "Enabled":
            raise invalid("l3NetworkUuid", f"l3Network[uuid:{network.uuid}] is {network.state}, it must be Enabled")
        if msg.custom_mac:
            tags.check_mac({"customMac": msg.custom_mac})
        async with self._node.db.read() as session:
            taken = await session.scalar(
                select(VmNicModel.uuid).where(
                    VmNicModel.vm_instance_uuid == msg.vm_instance_uuid,
                    VmNicModel.l3_network_uuid == msg.l3_network_uuid,
                )
            )
        if taken and not self._node.settings.get(MULTI_NIC):
            raise CloudError(
                OPERATION_ERROR,
                f"unable to attach a L3 network. The L3 network[uuid:{msg.l3_network_uuid}] is already attached to the"
                f" vm[uuid: {msg.vm_instance_uuid}]",
            )

    @intercepts(AttachDataVolumeToVm)
    async def check_attach_volume(self, msg: AttachDataVolumeToVm) -> None:
        volume = await volume_of(self._node, msg.volume_uuid)
        if volume.type == "Root":
            raise invalid("volumeUuid", f"the volume[uuid:{volume.uuid}] is a root volume and cannot be attached")
        if volume.state != "Enabled":
            raise CloudError(OPERATION_ERROR, f"volume[uuid:{volume.uuid}] is {volume.state}, it must be Enabled")
        if volume.status not in ("Ready", "NotInstantiated"):
            raise CloudError(
                OPERATION_ERROR,
                f"volume[uuid:{volume.uuid}] is in status {volume.status}; it must be Ready or NotInstantiated",
            )
        if volume.vm_instance_uuid is not None:
            raise CloudError(
                OPERATION_ERROR,
                f"data volume[uuid:{volume.uuid}] has been attached to vm[uuid:{volume.vm_instance_uuid}], can't attach"
                " again",
            )

    @intercepts(DetachDataVolumeFromVm)
    async def check_detach_volume(self, msg: DetachDataVolumeFromVm) -> None:
        volume = await volume_of(self._node, msg.uuid)
        if volume.type == "Root":
            raise CloudError(OPERATION_ERROR, f"it's not allowed to detach root volume[uuid:{volume.uuid}]")
        if volume.vm_instance_uuid is None:
            raise CloudError(
                OPERATION_ERROR, f"data volume[uuid:{volume.uuid}] is not attached to any vm, can't detach"
            )
        if msg.vm_uuid is not None and msg.vm_uuid != volume.vm_instance_uuid:
            raise invalid("vmUuid", f"volume[uuid:{volume.uuid}] is attached to vm[uuid:{volume.vm_instance_uuid}]")

    @intercepts(SetVmHostname)
    async def check_hostname(self, msg: SetVmHostname) -> None:
        tags.check_hostname({"hostname": msg.hostname})

    @intercepts(SetVmBootOrder)
    async def check_boot_order(self, msg: SetVmBootOrder) -> None:
        if unknown := [one for one in msg.boot_order or [] if one not in tags.BOOT_DEVICES]:
            raise invalid("bootOrder", f"unknown devices {unknown}; known are {list(tags.BOOT_DEVICES)}")

    @intercepts(SetVmStaticIp)
    async def check_static_ip(self, msg: SetVmStaticIp) -> None:
        if msg.ip is None:
            raise invalid("ip", "an IPv4 address is needed")


def _check_place_tags(msg: CreateVmInstance) -> None:
    """A fixed address or MAC can only be asked for on a network that the VM gets."""
    networks = msg.l3_network_uuids or []
    wanted = tags.STATIC_IP.find_all(msg.system_tags) + tags.CUSTOM_MAC.find_all(msg.system_tags)
    for one in wanted:
        if one["l3NetworkUuid"] not in networks:
            raise CloudError(
                INVALID_ARGUMENT,
                f"systemTags name l3Network[uuid:{one['l3NetworkUuid']}], which is not in l3NetworkUuids {networks}",
                field="systemTags",
            )
