"""From what a client asked for to what a creation will do: sizes, disks, NICs and drives, all with their UUIDs.

The UUIDs are chosen before the workflow starts, so that every step of it may be repeated.
"""

from __future__ import annotations

from caelum.cloud.image.api import ImageInventory
from caelum.cloud.image.messages import GetImage
from caelum.cloud.l3.messages import GetL3
from caelum.cloud.offering.messages import GetDiskOffering, GetInstanceOffering
from caelum.cloud.vm import tags
from caelum.cloud.vm.api import CreateVmInstance
from caelum.cloud.vm.flows.create import DEFAULT_STRATEGY, CreateVmContext, DiskPlan, plan_nics
from caelum.cloud.vm.settings import DEFAULT_CDROMS
from caelum.kernel import context
from caelum.kernel.errors import invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node

MAX_CDROMS = 3


async def plan_create(node: Node, msg: CreateVmInstance) -> CreateVmContext:
    """Everything that `CreateVmFlow` needs to know, decided."""
    image = await node.bus.call(GetImage(image_uuid=msg.image_uuid or "", usable=True))
    cpu_num, memory, speed, strategy = await _size(node, msg)
    networks = msg.l3_network_uuids or []
    static = {one["l3NetworkUuid"]: one["staticIp"] for one in tags.STATIC_IP.find_all(msg.system_tags)}
    macs = {one["l3NetworkUuid"]: one["customMac"] for one in tags.CUSTOM_MAC.find_all(msg.system_tags)}
    return CreateVmContext(
        vm_uuid=msg.resource_uuid or new_uuid(),
        msg=msg,
        account_uuid=context.current().actor.account_uuid,
        zone_uuid=msg.zone_uuid or await _zone_of(node, networks),
        cpu_num=cpu_num,
        memory=memory,
        cpu_speed=speed,
        platform=msg.platform or image.platform or "Linux",
        architecture=msg.architecture or image.architecture or "x86_64",
        guest_os_type=msg.guest_os_type or image.guest_os_type,
        allocator_strategy=strategy,
        disks=await _disks(node, msg, image),
        nics=plan_nics(node, networks, static, macs),
        isos=_drives(node, msg, image),
        default_l3_uuid=msg.default_l3_network_uuid or next(iter(networks), None),
        starts=(msg.strategy or "InstantStart") == "InstantStart",
    )


async def _size(node: Node, msg: CreateVmInstance) -> tuple[int, int, int, str]:
    """CPUs, memory, CPU speed and allocator strategy. An offering wins over numbers: Go clients send zeros along."""
    if msg.instance_offering_uuid is None:
        return msg.cpu_num or 1, msg.memory_size or 0, 0, DEFAULT_STRATEGY
    offering = await node.bus.call(GetInstanceOffering(uuid=msg.instance_offering_uuid, enabled=True))
    return (
        offering.cpu_num,
        offering.memory_size,
        offering.cpu_speed or 0,
        offering.allocator_strategy or DEFAULT_STRATEGY,
    )


async def _zone_of(node: Node, networks: list[str]) -> str:
    """The zone of the first network; empty until the allocator has chosen when there is none."""
    if not networks:
        return ""
    return (await node.bus.call(GetL3(l3_network_uuids=networks[:1]))).networks[0].zone_uuid


async def _disks(node: Node, msg: CreateVmInstance, image: ImageInventory) -> list[DiskPlan]:
    """The root disk, device 0, then the data disks in the order of the offerings and sizes."""
    sizes = [(await _offered(node, uuid), uuid) for uuid in msg.data_disk_offering_uuids or []]
    wanted: list[tuple[int, str | None]] = [*sizes, *((size, None) for size in msg.data_disk_sizes or [])]
    storage = (tags.STORAGE_FOR_DATA.find(msg.system_tags) or {}).get("primaryStorageUuidForDataVolume")
    data = [
        DiskPlan(
            volume_uuid=node.ring.new_uuid(),
            name=f"DATA-for-{msg.name}-{number}",
            type="Data",
            size=size,
            device_id=number,
            disk_offering_uuid=offering,
            primary_storage_uuid=storage,
            system_tags=_data_tags(msg, number - 1),
        )
        for number, (size, offering) in enumerate(wanted, 1)
    ]
    return [await _root(node, msg, image), *data]


def _data_tags(msg: CreateVmInstance, index: int) -> list[str]:
    return [*(msg.data_volume_system_tags or []), *(msg.data_volume_system_tags_on_index or {}).get(str(index), [])]


async def _root(node: Node, msg: CreateVmInstance, image: ImageInventory) -> DiskPlan:
    size = msg.root_disk_size or 0
    if msg.root_disk_offering_uuid is not None:
        size = await _offered(node, msg.root_disk_offering_uuid)
    from_image = image.media_type != "ISO"
    if from_image and size and size < (image.size or 0):
        raise invalid("rootDiskSize", f"{size} bytes are less than the image's {image.size}", imageSize=image.size)
    return DiskPlan(
        volume_uuid=node.ring.new_uuid(),
        name=f"ROOT-for-{msg.name}",
        type="Root",
        size=size or image.size or 0,
        device_id=0,
        image_uuid=msg.image_uuid if from_image else None,
        disk_offering_uuid=msg.root_disk_offering_uuid,
        primary_storage_uuid=msg.primary_storage_uuid_for_root_volume,
        system_tags=msg.root_volume_system_tags or [],
    )


async def _offered(node: Node, offering_uuid: str) -> int:
    return (await node.bus.call(GetDiskOffering(uuid=offering_uuid, enabled=True))).disk_size


def _drives(node: Node, msg: CreateVmInstance, image: ImageInventory) -> list[str | None]:
    """The ISO of each CD-ROM drive, None for an empty one."""
    listed = tags.CDROM_LIST.find(msg.system_tags)
    if listed is not None:
        chosen = [listed[f"cdrom{number}"] for number in range(MAX_CDROMS)]
        return [None if one == "empty" else one for one in chosen if one != "none"]
    if (tags.WITHOUT_CDROM.find(msg.system_tags) or {}).get("createWithoutCdRom") == "true":
        return []
    drives: list[str | None] = [None] * node.settings.get(DEFAULT_CDROMS)
    if image.media_type == "ISO":
        drives = [msg.image_uuid, *drives[1:]]
    return drives
