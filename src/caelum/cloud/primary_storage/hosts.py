"""What primary storages do when hosts come and go."""

from __future__ import annotations

import logging

from sqlalchemy import delete, func, select

from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.extension import HostBeforeDelete, HostConnect, HostDisconnected
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.capacity import drop_hosts, release
from caelum.cloud.primary_storage.model import (
    ImageCacheModel,
    LocalStorageHostRefModel,
    PrimaryStorageModel,
    StorageReservationModel,
)
from caelum.cloud.primary_storage.storages import Storages
from caelum.kernel.cascade import DELETE_FAILED, CascadeExtension
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node

log = logging.getLogger(__name__)


class PrepareStorageOnConnect(HostConnect):
    """Prepares every storage of the host's cluster; a storage that cannot be had fails the host's connect."""

    order = 200

    def __init__(self, storages: Storages) -> None:
        self._storages = storages

    async def connect(self, host: HostInventory) -> None:
        for ps in await self._storages.of_cluster(host.cluster_uuid):
            await self._storages.connect(ps, host.uuid)


class NoteLostHost(HostDisconnected):
    """Marks storages that are not reached any more."""

    def __init__(self, storages: Storages) -> None:
        self._storages = storages

    async def disconnected(self, host: HostInventory, reason: CloudError) -> None:
        await self._storages.host_lost(host.uuid, reason.to_wire())


class HostShareCascade(CascadeExtension, HostBeforeDelete):
    """A host that is deleted takes its shares of host-bound storages along, with everything that was on them.

    Also one that is not added after all, and a share that a connect has entered during the deletion.
    """

    order = 900

    resource = "LocalStorageHostRefVO"
    parents = ("HostVO",)

    def __init__(self, node: Node, storages: Storages) -> None:
        self._node, self._storages = node, storages

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        ref = LocalStorageHostRefModel.host_uuid
        async with self._node.db.read() as session:
            return list((await session.scalars(select(ref).where(ref.in_(uuids)).distinct())).all())

    async def check(self, uuids: list[str]) -> None:
        """Object while a share has something on it that could not be cleaned: its host does not answer, or refuses."""
        row = StorageReservationModel
        for host_uuid in uuids:
            query = select(row.primary_storage_uuid, func.count()).where(row.host_uuid == host_uuid)
            async with self._node.db.read() as session:
                used = (await session.execute(query.group_by(row.primary_storage_uuid))).all()
            for ps_uuid, number in used:
                await self._check_answer(host_uuid, await self._storages.find(ps_uuid), number)

    async def _check_answer(self, host_uuid: str, ps: PrimaryStorageInventory, number: int) -> None:
        try:
            await self._storages.driver(ps).capacity(ps, host_uuid)
        except CloudError as error:
            why = (
                f"primary storage[uuid:{ps.uuid}, name:{ps.name}] does not answer on host[uuid:{host_uuid}], so"
                f" {number} things on it cannot be cleaned up"
            )
            raise CloudError(DELETE_FAILED, why, cause=error, hostUuid=host_uuid, primaryStorageUuid=ps.uuid) from error

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        for host_uuid in uuids:
            await self._forget(host_uuid)

    async def before_delete(self, host: HostInventory, force: bool) -> None:
        await self._forget(host.uuid)

    async def _forget(self, host_uuid: str) -> None:
        reservation, ref = StorageReservationModel, LocalStorageHostRefModel
        async with self._node.db.transaction() as tx:
            shares = (await tx.scalars(select(ref.primary_storage_uuid).where(ref.host_uuid == host_uuid))).all()
            # All of them are locked before anything changes, in the order of `capacity.py`.
            storages = [await tx.get_one(PrimaryStorageModel, ps_uuid) for ps_uuid in sorted(shares)]
            held = (
                select(reservation)
                .where(reservation.host_uuid == host_uuid)
                .order_by(reservation.primary_storage_uuid, reservation.key)
            )
            for one in (await tx.scalars(held)).all():
                await release(tx, one.key)
            await tx.execute(delete(ImageCacheModel).where(ImageCacheModel.host_uuid == host_uuid))
            for storage in storages:
                await drop_hosts(tx, storage.uuid, [host_uuid], self._storages.driver(storage).host_bound)
