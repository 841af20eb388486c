"""From a VM's records to the complete description that a host is given."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.messages import AwaitHost
from caelum.cloud.host.spec import MTU, CdromSpec, HostOrder, NicIp, NicSpec, VmSpec, VolumeSpec
from caelum.cloud.l2.messages import GetL2, RealiseL2
from caelum.cloud.l3.api import L3NetworkInventory
from caelum.cloud.l3.messages import GetL3, GetMtu
from caelum.cloud.ownership import owner_of
from caelum.cloud.vm import tags
from caelum.cloud.vm.model import NIC_LEAVING, VmInstanceModel, VmNicModel
from caelum.cloud.vm.settings import CLEAN_TRAFFIC
from caelum.cloud.volume.api import VolumeInventory
from caelum.cloud.volume.messages import GetVolumes
from caelum.kernel.errors import CloudError, not_found
from caelum.kernel.node import Node
from caelum.kernel.prepared import Reading
from caelum.kernel.rows import read_whole
from caelum.kernel.tag import tags_of
from caelum.kernel.views import views


async def load_vm(session: AsyncSession, vm_uuid: str) -> VmInstanceModel:
    """The VM's row with its NICs, drives and volumes. Raises SYS.1003."""
    vm = await session.get(VmInstanceModel, vm_uuid, populate_existing=True)
    if vm is None:
        raise not_found("VmInstanceVO", vm_uuid)
    return vm


async def read_vm(session: AsyncSession, vm_uuid: str, *, lock: bool = False) -> VmInstanceModel:
    """The same, quickly, and not to be changed (`kernel/rows.py`); `lock` keeps it as it is. Raises SYS.1003."""
    vm = await read_whole(session, VmInstanceModel, vm_uuid, lock=lock)
    if vm is None:
        raise not_found("VmInstanceVO", vm_uuid)
    return vm


async def volume_of(node: Node, volume_uuid: str) -> VolumeInventory:
    """A volume as it is now. Raises SYS.1003."""
    volumes = (await node.bus.call(GetVolumes(uuids=[volume_uuid]))).volumes
    if not volumes:
        raise not_found("VolumeVO", volume_uuid)
    return volumes[0]


class VmRecords(NamedTuple):
    """What a VM's description is made of. `texts` are the values of its system tags, by token."""

    vm: VmInstanceModel
    volumes: list[VolumeInventory]
    texts: dict[str, str]
    account_uuid: str | None


async def records_of(node: Node, vm: VmInstanceModel | str) -> VmRecords:
    """The records as they are now of a VM, given by its UUID or as `read_vm` has read it. Raises SYS.1003."""
    async with node.db.read() as session:
        if isinstance(vm, str):
            vm = await read_vm(session, vm)
        texts = await tag_texts(session, vm.uuid)
        account = await owner_of(session, vm.uuid)
    return VmRecords(vm, volumes_of(vm), texts, account)


def records_to_leave(vm: VmInstanceModel) -> VmRecords:
    """The records of a VM, as `read_vm` has read it, that its host needs to lose it: without what only its guest is
    told."""
    return VmRecords(vm, volumes_of(vm), {}, None)


def volumes_of(vm: VmInstanceModel) -> list[VolumeInventory]:
    """The volumes, but for deleted ones, of a VM as `read_vm` has read it."""
    volumes: list[VolumeInventory] = views(vm.__dict__.get("all_volumes", ()))
    return [one for one in volumes if one.status != "Deleted"]


async def build_spec(node: Node, vm_uuid: str, *, realise_on: str | None = None, with_leaving: bool = True) -> VmSpec:
    """The VM as a host needs it; with `realise_on`, its L2 networks are made on that host and bridges filled in.

    Without `with_leaving`, NICs are left out that an operation is taking away.
    """
    records = await records_of(node, vm_uuid)
    return await describe(node, records, realise_on=realise_on, with_leaving=with_leaving)


async def describe(
    node: Node,
    records: VmRecords,
    *,
    realise_on: str | None = None,
    with_leaving: bool = True,
    orders: list[HostOrder] | None = None,
) -> VmSpec:
    """The same from records that are at hand. With `orders`, for a VM that is started next, it gets what makes the
    networks on the host.
    """
    vm, volumes, texts, account = records
    clean = texts.get("cleanTraffic", str(node.settings.get(CLEAN_TRAFFIC))).lower() == "true"
    there = [one for one in vm.vm_nics if with_leaving or one.state != NIC_LEAVING]
    nics = await nic_specs(node, vm, there, anti_spoofing=clean, realise_on=realise_on, orders=orders)
    return VmSpec(
        vm_uuid=vm.uuid,
        name=vm.name,
        internal_id=vm.internal_id,
        cpu_num=vm.cpu_num,
        memory=vm.memory_size,
        volumes=[volume_spec(one) for one in volumes if one.install_path],
        nics=nics,
        cdroms=[
            CdromSpec(device_id=one.device_id, iso_uuid=one.iso_uuid, install_path=one.iso_install_path)
            for one in vm.vm_cd_roms
        ],
        boot_order=tuple(texts["bootOrder"].split(",")) if "bootOrder" in texts else tags.BOOT_DEVICES,
        boot_mode="UEFI" if texts.get("bootMode") == "UEFI" else "Legacy",
        platform=vm.platform,
        architecture=vm.architecture,
        clock="localtime" if vm.platform.startswith("Windows") else "utc",
        console_password=texts.get("consolePassword"),
        hostname=texts.get("hostname"),
        ssh_keys=[one for one in texts.get("sshkey", "").splitlines() if one.strip()],
        user_data=_decoded(texts.get("userdata")),
        account_uuid=account,
    )


async def tag_texts(session: Reading, vm_uuid: str) -> dict[str, str]:
    """The single values of the VM's system tags that a description needs, by token name."""
    texts = await tags_of(session, vm_uuid)
    found: dict[str, str] = {}
    for tag in (
        tags.HOSTNAME,
        tags.SSHKEY,
        tags.USERDATA,
        tags.BOOT_ORDER,
        tags.BOOT_MODE,
        tags.CONSOLE_PASSWORD,
        tags.CLEAN_TRAFFIC_TAG,
    ):
        found.update(tag.find(texts) or {})
    return found


def _decoded(text: str | None) -> str | None:
    return None if text is None else base64.b64decode(text).decode(errors="replace")


async def nic_specs(
    node: Node,
    vm: VmInstanceModel,
    nics: Sequence[VmNicModel],
    *,
    anti_spoofing: bool,
    realise_on: str | None,
    orders: list[HostOrder] | None = None,
) -> list[NicSpec]:
    """Descriptions of some of a VM's NICs."""
    if not nics:
        return []
    uuids = list(dict.fromkeys(one.l3_network_uuid for one in nics))
    networks = {one.uuid: one for one in (await node.bus.call(GetL3(l3_network_uuids=uuids))).networks}
    mtus = {one: await node.bus.call(GetMtu(l3_network_uuid=one)) for one in uuids if realise_on is not None}
    bridges = await _bridges(node, list(networks.values()), realise_on, orders)
    default = vm.default_l3_network_uuid or nics[0].l3_network_uuid
    return [
        NicSpec(
            nic_uuid=one.uuid,
            l3_network_uuid=one.l3_network_uuid,
            l2_network_uuid=networks[one.l3_network_uuid].l2_network_uuid,
            device_id=one.device_id,
            mac=one.mac,
            internal_name=one.internal_name,
            ips=_addresses(one),
            bridge=bridges.get(networks[one.l3_network_uuid].l2_network_uuid, ""),
            mtu=mtus.get(one.l3_network_uuid, MTU),
            driver_type=one.driver_type,
            is_default=one.l3_network_uuid == default,
            anti_spoofing=anti_spoofing,
        )
        for one in nics
    ]


async def _bridges(
    node: Node, networks: list[L3NetworkInventory], host_uuid: str | None, orders: list[HostOrder] | None
) -> dict[str, str]:
    """Bridge by L2 network, made on the host, or by the `orders`."""
    if host_uuid is None:
        return {}
    found, left = {}, list(dict.fromkeys(one.l2_network_uuid for one in networks))
    if orders is not None:
        for uuid in left:
            facts = await node.bus.call(GetL2(l2_network_uuid=uuid, with_orders=True))
            if facts.orders is not None:
                found[uuid] = facts.bridge
                orders += facts.orders
        left = [one for one in left if one not in found]
        if not left:
            return found
        await node.bus.call(AwaitHost(host_uuid=host_uuid))
    answers = await node.bus.call_all([RealiseL2(l2_network_uuid=one, host_uuid=host_uuid) for one in left])
    for uuid, answer in zip(left, answers, strict=True):
        if isinstance(answer, CloudError):
            raise answer
        found[uuid] = answer.bridge
    return found


def _addresses(nic: VmNicModel) -> list[NicIp]:
    if nic.ip is None:
        return []
    return [NicIp(ip=nic.ip, netmask=nic.netmask or "", gateway=nic.gateway or "", ip_version=nic.ip_version)]


def volume_spec(volume: VolumeInventory) -> VolumeSpec:
    """A volume as a disk."""
    return VolumeSpec(
        volume_uuid=volume.uuid,
        install_path=volume.install_path or "",
        device_id=volume.device_id or 0,
        format="raw" if volume.format == "raw" else "qcow2",
        type="Root" if volume.type == "Root" else "Data",
        size=volume.size,
        primary_storage_uuid=volume.primary_storage_uuid,
    )
