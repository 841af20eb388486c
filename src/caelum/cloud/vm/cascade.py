"""What happens to VMs and NICs when what they stand on is deleted."""

from __future__ import annotations

from sqlalchemy import select

from caelum.cloud.ownership import owned_by
from caelum.cloud.vm.messages import DestroyVm, DetachVmNic, ListVms, StopVm
from caelum.cloud.vm.model import VmInstanceModel, VmNicModel, VmState
from caelum.kernel.cascade import CascadeExtension
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


def _raise_first(answers: list[CloudError | None]) -> None:
    for answer in answers:
        if isinstance(answer, CloudError):
            raise answer
