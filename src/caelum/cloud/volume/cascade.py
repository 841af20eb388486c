"""What the deletion of hosts, primary storages, accounts and offerings means for volumes."""

from __future__ import annotations

from sqlalchemy import select

from caelum.cloud.offering.api import DISK_OFFERING
from caelum.cloud.offering.extension import OfferingAfterDelete
from caelum.cloud.ownership import owned_by
from caelum.cloud.primary_storage.messages import GetVolumesOnHost
from caelum.cloud.vm.messages import DestroyVm, StopVm
from caelum.cloud.volume.api import VOLUME
from caelum.cloud.volume.messages import DeleteVolume
from caelum.cloud.volume.model import DATA, VolumeModel
from caelum.cloud.volume.records import remove_volume
from caelum.cloud.volume.settings import NULL_DELETED_OFFERING
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import update_where
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node

ACCOUNT = "AccountVO"
HOST_SHARE = "LocalStorageHostRefVO"
"""A host's share of a host-bound storage; it goes with the host."""
_STOPS = frozenset({"HostVO", "ClusterVO"})
"""Deleting these stops machines first; deleting anything else above a volume destroys them."""
AT_ONCE = 10


class VolumeCascade(CascadeExtension):
    """With an account its data volumes are deleted as usual; with a host or a storage what was on it is lost.

    A root disk takes its virtual machine along; those of a storage or an account go with the machines themselves.
    """

    resource = VOLUME
    parents = (HOST_SHARE, "PrimaryStorageVO", ACCOUNT)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        if parent_type == HOST_SHARE:
            answers = await self._node.bus.call_all([GetVolumesOnHost(uuid) for uuid in uuids])
            return [uuid for one in answers if not isinstance(one, CloudError) for uuid in one.uuids]
        row = VolumeModel
        query = select(row.uuid).where(row.type == DATA)
        if parent_type == ACCOUNT:
            query = query.where(row.uuid.in_(owned_by(uuids, VOLUME)))
        else:
            query = query.where(row.primary_storage_uuid.in_(uuids))
        async with self._node.db.read() as session:
            return list((await session.scalars(query)).all())

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        if issuer in (ACCOUNT, VOLUME):
            self._raise_first(await self._node.bus.call_all([DeleteVolume(uuid) for uuid in uuids], AT_ONCE))
            return
        query = select(VolumeModel).where(VolumeModel.uuid.in_(uuids))
        async with self._node.db.read() as session:
            rows = (await session.scalars(query)).all()
        lost = [one.vm_instance_uuid for one in rows if one.type != DATA and one.vm_instance_uuid is not None]
        if not force and issuer in _STOPS:
            # A host that refuses is heard here, and nothing is lost yet: a destruction would not be stopped by it.
            self._raise_first(await self._node.bus.call_all([StopVm(vm_uuid=uuid) for uuid in lost], AT_ONCE))
        messages = [DestroyVm(vm_uuid=uuid, policy="Direct", force=True) for uuid in lost]
        self._raise_first(await self._node.bus.call_all(messages, AT_ONCE))
        async with self._node.db.transaction() as tx:
            for uuid in uuids:
                await remove_volume(tx, uuid)

    def _raise_first(self, answers: list[CloudError | None]) -> None:
        for answer in answers:
            if isinstance(answer, CloudError):
                raise answer


class ForgetDeletedOffering(OfferingAfterDelete):
    """Volumes do not name disk offerings that are gone."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def after_delete(self, vo: str, uuids: list[str]) -> None:
        if vo == DISK_OFFERING and self._node.settings.get(NULL_DELETED_OFFERING):
            async with self._node.db.transaction() as tx:
                offering = VolumeModel.disk_offering_uuid
                await update_where(tx, VolumeModel, {"disk_offering_uuid": None}, offering.in_(uuids))
