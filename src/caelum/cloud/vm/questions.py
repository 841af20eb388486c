"""What can be asked about virtual machines, by clients and by other services. Nothing here changes anything."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import Table, bindparam, or_, select

from caelum.cloud.allocator.messages import AllocateHost
from caelum.cloud.host.messages import ListHosts
from caelum.cloud.l3.api import L3NetworkInventory, QueryL3Network
from caelum.cloud.primary_storage.messages import GetVolumeHosts
from caelum.cloud.vm import tags
from caelum.cloud.vm.api import (
    BootOrderReply,
    Capabilities,
    GetVmAttachableDataVolume,
    GetVmAttachableL3Network,
    GetVmBootOrder,
    GetVmCapabilities,
    GetVmHostname,
    GetVmSshKey,
    GetVmStartingCandidateClustersHosts,
    HostnameReply,
    SshKeyReply,
    StartingCandidates,
)
from caelum.cloud.vm.flows.base import inventory_of
from caelum.cloud.vm.messages import GetVmSpecs, ListVms, VmSpecsReply, VmsReply
from caelum.cloud.vm.model import NEEDS_HOST, VmInstanceModel, VmNicModel
from caelum.cloud.vm.specs import build_spec, read_vm
from caelum.cloud.volume.api import QueryVolume, VolumeInventory
from caelum.kernel.message import ApiQuery, QueryCondition
from caelum.kernel.prepared import Prepared
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import SystemTag
from caelum.kernel.views import views

_VM = cast("Table", VmInstanceModel.__table__)
_NEEDING = Prepared(
    select(_VM.c.uuid).where(
        _VM.c.host_uuid == bindparam("key"), or_(*(_VM.c.state == state for state in sorted(NEEDS_HOST)))
    )
)


class VmQuestions(Service):
    """The part of the VM service that answers questions."""

    @handles(GetVmHostname)
    async def get_hostname(self, msg: GetVmHostname) -> HostnameReply:
        return HostnameReply(hostname=await self._token(tags.HOSTNAME, msg.uuid, "hostname"))

    @handles(GetVmSshKey)
    async def get_ssh_key(self, msg: GetVmSshKey) -> SshKeyReply:
        return SshKeyReply(ssh_key=await self._token(tags.SSHKEY, msg.uuid, "sshkey"))

    @handles(GetVmBootOrder)
    async def get_boot_order(self, msg: GetVmBootOrder) -> BootOrderReply:
        text = await self._token(tags.BOOT_ORDER, msg.uuid, "bootOrder")
        return BootOrderReply(orders=text.split(",") if text else list(tags.BOOT_DEVICES))

    @handles(GetVmCapabilities)
    async def capabilities(self, msg: GetVmCapabilities) -> Capabilities:
        await inventory_of(self.node, msg.uuid)
        return Capabilities(capabilities={"LiveMigration": False, "VolumeMigration": False, "Reimage": False})

    @handles(GetVmStartingCandidateClustersHosts)
    async def starting_candidates(self, msg: GetVmStartingCandidateClustersHosts) -> StartingCandidates:
        async with self.db.read() as session:
            vm = await read_vm(session, msg.uuid)
        place = await self.bus.call(
            AllocateHost(
                vm_uuid=vm.uuid,
                cpu_num=vm.cpu_num,
                memory=vm.memory_size,
                zone_uuid=vm.zone_uuid,
                l3_network_uuids=[one.l3_network_uuid for one in vm.vm_nics],
                dry_run=True,
            )
        )
        hosts = await self.bus.call(ListHosts(host_uuids=[one.host_uuid for one in place.candidates]))
        return StartingCandidates(hosts=hosts.hosts)

    @handles(GetVmAttachableDataVolume)
    async def attachable_volumes(self, msg: GetVmAttachableDataVolume) -> list[VolumeInventory]:
        vm = await inventory_of(self.node, msg.vm_instance_uuid)
        conditions = [
            QueryCondition("type", "=", "Data"),
            QueryCondition("state", "=", "Enabled"),
            QueryCondition("status", "in", "Ready,NotInstantiated"),
            QueryCondition("vmInstanceUuid", "is null"),
        ]
        found: list[VolumeInventory] = await self._query(QueryVolume(conditions=conditions))
        hosts = (await self.bus.call(GetVolumeHosts(volume_uuids=[one.uuid for one in found]))).hosts
        here = vm.host_uuid or vm.last_host_uuid
        return [one for one in found if hosts.get(one.uuid, here) == here]

    @handles(GetVmAttachableL3Network)
    async def attachable_networks(self, msg: GetVmAttachableL3Network) -> list[L3NetworkInventory]:
        vm = await inventory_of(self.node, msg.vm_instance_uuid)
        conditions = [
            QueryCondition("state", "=", "Enabled"),
            QueryCondition("system", "=", "false"),
            QueryCondition("zoneUuid", "=", vm.zone_uuid),
        ]
        if vm.cluster_uuid is not None:
            conditions.append(QueryCondition("l2Network.attachedClusterUuids", "=", vm.cluster_uuid))
        found: list[L3NetworkInventory] = await self._query(QueryL3Network(conditions=conditions))
        attached = {one.l3_network_uuid for one in vm.vm_nics}
        return [one for one in found if one.uuid not in attached]

    async def _query(self, query: ApiQuery[Any]) -> list[Any]:
        """What the asking account may see of it."""
        return (await self.bus.call(query)).inventories or []

    # --- for other services -------------------------------------------------------------------------------------------

    @handles(GetVmSpecs)
    async def specs_on_host(self, msg: GetVmSpecs) -> VmSpecsReply:
        async with self.db.read() as session:
            uuids = [uuid for (uuid,) in await _NEEDING.rows(session, key=msg.host_uuid)]
        return VmSpecsReply(specs=[await build_spec(self.node, one, with_leaving=False) for one in uuids])

    @handles(ListVms)
    async def list_vms(self, msg: ListVms) -> VmsReply:
        async with self.db.read() as session:
            query = select(VmInstanceModel).order_by(VmInstanceModel.create_date, VmInstanceModel.uuid)
            for field, value in (
                (VmInstanceModel.uuid, msg.vm_uuids),
                (VmInstanceModel.host_uuid, msg.host_uuids),
                (VmInstanceModel.zone_uuid, msg.zone_uuids),
                (VmInstanceModel.state, msg.states),
            ):
                if value is not None:
                    query = query.where(field.in_(value))
            if msg.l3_network_uuids is not None:
                query = query.where(VmInstanceModel.vm_nics.any(VmNicModel.l3_network_uuid.in_(msg.l3_network_uuids)))
            found = views(await session.scalars(query))
        wanted = set(msg.primary_storage_uuids or ())
        if wanted:
            found = [one for one in found if wanted & {disk.primary_storage_uuid for disk in one.all_volumes}]
        return VmsReply(vms=found)

    async def _token(self, tag: SystemTag, uuid: str, token: str) -> str | None:
        async with self.db.read() as session:
            await read_vm(session, uuid)
            found = await tag.get(session, uuid)
        return None if found is None else found[token]
