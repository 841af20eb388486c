"""What happens to VMs and NICs when what they stand on is deleted."""

from __future__ import annotations

from sqlalchemy import select

from caelum.cloud.l2.api import L2NetworkInventory
from caelum.cloud.l2.extension import L2BeforeDetach
from caelum.cloud.l3.messages import ListL3s
from caelum.cloud.ownership import owned_by
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.extension import PrimaryStorageBeforeDetach
from caelum.cloud.vm.messages import DestroyVm, DetachVmNic, ListVms, StopVm
from caelum.cloud.vm.model import NEEDS_HOST, VmInstanceModel, VmNicModel, VmState
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import update_where
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node

AT_ONCE = 10
"""VMs that one deletion stops or destroys at a time."""
_STOPS = frozenset({"HostVO", "ClusterVO"})
"""Deleting these stops VMs; deleting anything else above a VM destroys it."""


class VmCascade(CascadeExtension):
    """Host, cluster: the VM is stopped. Zone, primary storage, account: it is destroyed."""

    resource = "VmInstanceVO"
    parents = ("HostVO", "PrimaryStorageVO", "AccountVO", "ZoneVO")

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        if parent_type == "AccountVO":
            async with self._node.db.read() as session:
                return list(await session.scalars(owned_by(uuids, self.resource)))
        conditions = {
            "HostVO": ListVms(host_uuids=uuids),
            "ZoneVO": ListVms(zone_uuids=uuids),
            "PrimaryStorageVO": ListVms(primary_storage_uuids=uuids),
        }
        return [one.uuid for one in (await self._node.bus.call(conditions[parent_type])).vms]

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        if issuer in _STOPS:
            await self._stop(uuids, force)
        else:
            messages = [DestroyVm(vm_uuid=one, policy="Direct", force=force) for one in uuids]
            _raise_first(await self._node.bus.call_all(messages, AT_ONCE))

    async def _stop(self, uuids: list[str], force: bool) -> None:
        answers = await self._node.bus.call_all([StopVm(vm_uuid=one) for one in uuids], AT_ONCE)
        if not force:
            _raise_first(answers)


class VmNicCascade(CascadeExtension):
    """An L3 network goes: its NICs leave their VMs, which stay."""

    resource = "VmNicVO"
    parents = ("L3NetworkVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        async with self._node.db.read() as session:
            query = (
                select(VmNicModel.uuid)
                .join(VmInstanceModel, VmInstanceModel.uuid == VmNicModel.vm_instance_uuid)
                .where(VmNicModel.l3_network_uuid.in_(uuids), VmInstanceModel.state != VmState.EXPUNGING)
            )
            return list(await session.scalars(query))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        async with self._node.db.read() as session:
            nics = list(await session.scalars(select(VmNicModel).where(VmNicModel.uuid.in_(uuids))))
        messages = [DetachVmNic(vm_uuid=one.vm_instance_uuid, vm_nic_uuid=one.uuid) for one in nics]
        answers = await self._node.bus.call_all(messages, AT_ONCE)
        if not force:
            _raise_first(answers)


class VmWithoutOffering(CascadeExtension):
    """An instance offering goes: its VMs keep their size and forget where they have it from."""

    resource = "VmInstanceOfferingRef"
    parents = ("InstanceOfferingVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        row = VmInstanceModel
        async with self._node.db.read() as session:
            return list(await session.scalars(select(row.uuid).where(row.instance_offering_uuid.in_(uuids))))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        row = VmInstanceModel
        async with self._node.db.transaction() as tx:
            await update_where(tx, row, {"instance_offering_uuid": None}, row.uuid.in_(uuids))


class VmsLeaveStorage(PrimaryStorageBeforeDetach):
    """A primary storage leaves a cluster: the VMs that have disks on it are stopped."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def before_detach(self, ps: PrimaryStorageInventory, cluster_uuid: str) -> None:
        found = await self._node.bus.call(ListVms(primary_storage_uuids=[ps.uuid], states=sorted(NEEDS_HOST)))
        messages = [StopVm(vm_uuid=one.uuid) for one in found.vms if one.cluster_uuid == cluster_uuid]
        _raise_first(await self._node.bus.call_all(messages, AT_ONCE))


class NicsLeaveCluster(L2BeforeDetach):
    """An L2 network leaves a cluster: so do the NICs on its L3 networks."""

    order = -100

    def __init__(self, node: Node) -> None:
        self._node = node

    async def before_detach(self, l2: L2NetworkInventory, cluster_uuid: str) -> None:
        networks = await self._node.bus.call(ListL3s(l2_network_uuids=[l2.uuid]))
        uuids = {one.uuid for one in networks.networks}
        found = await self._node.bus.call(ListVms(l3_network_uuids=sorted(uuids)))
        messages = [
            DetachVmNic(vm_uuid=vm.uuid, vm_nic_uuid=nic.uuid)
            for vm in found.vms
            if vm.cluster_uuid == cluster_uuid
            for nic in vm.vm_nics
            if nic.l3_network_uuid in uuids
        ]
        _raise_first(await self._node.bus.call_all(messages, AT_ONCE))


def _raise_first(answers: list[CloudError | None]) -> None:
    for answer in answers:
        if isinstance(answer, CloudError):
            raise answer
