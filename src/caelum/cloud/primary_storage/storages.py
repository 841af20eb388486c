"""A node's handle on its primary storages: rows, drivers, the rules of each, and their status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from sqlalchemy import Table, column, select, table
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.capacity import Place, Terms, has_share, is_recorded, record
from caelum.cloud.primary_storage.errors import DISCONNECTED as STORAGE_DISCONNECTED
from caelum.cloud.primary_storage.events import (
    PrimaryStorageDisconnected,
    PrimaryStorageHostStatusChanged,
    PrimaryStorageStatusChanged,
)
from caelum.cloud.primary_storage.extension import PhysicalCapacity, PrimaryStorageDriver
from caelum.cloud.primary_storage.model import (
    ATTACHED,
    CONNECTED,
    DISCONNECTED,
    LocalStorageHostRefModel,
    PrimaryStorageClusterRefModel,
    PrimaryStorageModel,
    StorageReservationModel,
)
from caelum.cloud.primary_storage.settings import OVER_PROVISIONING, RESERVED_CAPACITY
from caelum.kernel.database import after_commit, update_where
from caelum.kernel.errors import CloudError, ErrorCode, not_found
from caelum.kernel.node import Node
from caelum.kernel.views import view

HostRef = LocalStorageHostRefModel
_HOST = table("host", column("uuid"))
_STORAGE = cast("Table", PrimaryStorageModel.__table__)


class KnownStorage(NamedTuple):
    """What a search must know of a storage but for its capacity."""

    uuid: str
    type: str
    state: str
    status: str
    cluster_uuids: frozenset[str]


class Storages:
    """Primary storages and their drivers."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def find(self, uuid: str) -> PrimaryStorageInventory:
        """One storage as it is now."""

        async def load(session: AsyncSession) -> PrimaryStorageInventory:
            inventory: PrimaryStorageInventory = view(await get(session, uuid))
            return inventory

        return await self.node.db.remember((PrimaryStorageModel, uuid), load)

    async def known(self, uuid: str) -> PrimaryStorageInventory:
        """One storage without its capacity and its clusters: what does not change with every volume."""

        async def load(session: AsyncSession) -> PrimaryStorageInventory:
            row = (await session.execute(select(_STORAGE).where(_STORAGE.c.uuid == uuid))).mappings().one_or_none()
            if row is None:
                raise not_found("PrimaryStorageVO", uuid)
            return _without_capacity(cast("Mapping[str, Any]", row))

        return await self.node.db.remember((Storages.known, uuid), load)

    async def all_known(self) -> list[KnownStorage]:
        """All storages, without what changes with every volume."""
        row, ref = PrimaryStorageModel, PrimaryStorageClusterRefModel

        async def load(session: AsyncSession) -> list[KnownStorage]:
            clusters: dict[str, set[str]] = {}
            for one in await session.execute(select(ref.primary_storage_uuid, ref.cluster_uuid)):
                clusters.setdefault(one.primary_storage_uuid, set()).add(one.cluster_uuid)
            found = await session.execute(select(row.uuid, row.type, row.state, row.status))
            return [KnownStorage(*one, frozenset(clusters.get(one.uuid, ()))) for one in found]

        return await self.node.db.remember(Storages.all_known, load)

    def driver(self, ps: PrimaryStorageInventory | PrimaryStorageModel) -> PrimaryStorageDriver:
        """The driver of the storage's type."""
        return self.node.drivers.get(PrimaryStorageDriver, ps.type)

    async def terms(self, ps_uuid: str) -> Terms:
        """The storage's ratio, and what must stay free."""
        ratio = await self.node.settings.get_for(OVER_PROVISIONING, ps_uuid)
        return Terms(ratio, int(self.node.settings.get(RESERVED_CAPACITY)))

    def place(self, ps: PrimaryStorageInventory, host_uuid: str | None) -> Place:
        """Where on the storage a host's space is taken."""
        return Place(ps.uuid, host_uuid, self.driver(ps).host_bound)

    async def worker(self, ps: PrimaryStorageInventory, host_uuid: str | None) -> str:
        """The host that does the work: the named one; on a shared storage without a name any connected one."""
        if host_uuid is not None:
            return host_uuid
        query = select(HostRef.host_uuid).where(HostRef.primary_storage_uuid == ps.uuid, HostRef.status == CONNECTED)
        async with self.node.db.read() as session:
            found: str | None = await session.scalar(query.order_by(HostRef.host_uuid).limit(1))
        if found is None or self.driver(ps).host_bound:
            raise CloudError(
                STORAGE_DISCONNECTED, f"no connected host for primary storage[uuid:{ps.uuid}]", uuid=ps.uuid
            )
        return found

    async def of_cluster(self, cluster_uuid: str) -> list[PrimaryStorageInventory]:
        """The storages that serve a cluster, but for those that are leaving it; as `known` has them."""

        async def load(session: AsyncSession) -> list[PrimaryStorageInventory]:
            ref = PrimaryStorageClusterRefModel
            serving = select(ref.primary_storage_uuid).where(ref.cluster_uuid == cluster_uuid, ref.state == ATTACHED)
            found = await session.execute(select(_STORAGE).where(_STORAGE.c.uuid.in_(serving)))
            return [_without_capacity(cast("Mapping[str, Any]", row)) for row in found.mappings()]

        return await self.node.db.remember((Storages.of_cluster, cluster_uuid), load)

    async def hosts_of(self, ps_uuid: str, status: str | None = None) -> list[str]:
        """The hosts that have the storage, or those with this status."""
        query = select(HostRef.host_uuid).where(HostRef.primary_storage_uuid == ps_uuid)
        if status is not None:
            query = query.where(HostRef.status == status)
        async with self.node.db.read() as session:
            return list(await session.scalars(query.order_by(HostRef.host_uuid)))

    async def connect(self, ps: PrimaryStorageInventory, host_uuid: str) -> None:
        """Prepare the storage on a host and enter its capacity."""
        known = await self._has(ps, host_uuid) or await self._has_contents(ps, host_uuid)
        physical = await self.driver(ps).connect(ps, host_uuid, first=not known)
        await self.record(ps, host_uuid, physical)

    async def disconnect(self, ps: PrimaryStorageInventory, host_uuid: str) -> None:
        """Let a host forget a storage, unless it holds something of it that must be found again."""
        if not await self._has_contents(ps, host_uuid):
            await self.driver(ps).disconnect(ps, host_uuid)

    async def _has(self, ps: PrimaryStorageInventory, host_uuid: str) -> bool:
        return await has_share(self.node.db.once, ps.uuid, host_uuid)

    async def _has_contents(self, ps: PrimaryStorageInventory, host_uuid: str) -> bool:
        query = select(StorageReservationModel.key).where(
            StorageReservationModel.primary_storage_uuid == ps.uuid, StorageReservationModel.host_uuid == host_uuid
        )
        async with self.node.db.read() as session:
            return await session.scalar(query.limit(1)) is not None

    async def refresh(self, ps: PrimaryStorageInventory, host_uuid: str) -> None:
        """Read the capacity on a host again. A host that lost the storage meanwhile stays without it."""
        await self.record(ps, host_uuid, await self.driver(ps).capacity(ps, host_uuid), only_known=True)

    async def record(
        self, ps: PrimaryStorageInventory, host_uuid: str, physical: PhysicalCapacity, *, only_known: bool = False
    ) -> None:
        """Enter what a host says; the host then counts as connected to the storage, and so does the storage."""
        terms = await self.terms(ps.uuid)
        if await self._is_recorded(ps, host_uuid, physical, terms):
            return
        async with self.node.db.transaction() as tx:
            # Locked: nothing is written of a host that is being deleted.
            known = select(_HOST.c.uuid).where(_HOST.c.uuid == host_uuid).with_for_update(read=True)
            if await tx.scalar(known) is None:
                raise not_found("HostVO", host_uuid)
            row = await get(tx, ps.uuid)
            ref = await tx.get(HostRef, (ps.uuid, host_uuid))
            if ref is None and only_known:
                return
            old = None if ref is None else ref.status
            await record(tx, ps.uuid, host_uuid, physical, terms, self.driver(ps).host_bound)
            if old != CONNECTED:
                self._tell_host(tx, ps.uuid, host_uuid, old, CONNECTED)
            await self.set_status(tx, row, CONNECTED)

    async def _is_recorded(
        self, ps: PrimaryStorageInventory, host_uuid: str, physical: PhysicalCapacity, terms: Terms
    ) -> bool:
        """Whether there is nothing to enter, as for nearly all of the hosts that connect after a start."""
        if not self.driver(ps).host_bound or (await self.known(ps.uuid)).status != CONNECTED:
            return False
        async with self.node.db.read() as session:
            return await is_recorded(session, ps.uuid, host_uuid, physical, terms)

    async def host_lost(self, host_uuid: str, reason: ErrorCode) -> None:
        """A host is gone: note it, and the storages that nobody reaches any more."""
        here = (HostRef.host_uuid == host_uuid, HostRef.status == CONNECTED)
        async with self.node.db.transaction() as tx:
            # Each storage is locked before its host, as whoever connects does it; and two hosts see each other go.
            storages = select(HostRef.primary_storage_uuid).where(*here).order_by(HostRef.primary_storage_uuid)
            for ps_uuid in (await tx.scalars(storages)).all():
                row = await get(tx, ps_uuid)
                if await update_where(
                    tx, HostRef, {"status": DISCONNECTED}, *here, HostRef.primary_storage_uuid == ps_uuid
                ):
                    self._tell_host(tx, ps_uuid, host_uuid, CONNECTED, DISCONNECTED, reason)
                    await self._lost_if_alone(tx, row, reason)

    async def _lost_if_alone(self, tx: AsyncSession, row: PrimaryStorageModel, reason: ErrorCode) -> None:
        query = select(HostRef.host_uuid).where(HostRef.primary_storage_uuid == row.uuid, HostRef.status == CONNECTED)
        if await tx.scalar(query.limit(1)) is None:
            await self.set_status(tx, row, DISCONNECTED, reason)

    async def set_status(
        self, tx: AsyncSession, row: PrimaryStorageModel, status: str, reason: ErrorCode | None = None
    ) -> None:
        """Enter a status; its news goes out with the commit."""
        old, row.status = row.status, status
        if old == status:
            return
        await tx.flush()
        await tx.refresh(row)
        inventory, publish = view(row), self.node.bus.publish
        changed = PrimaryStorageStatusChanged(
            primary_storage_uuid=row.uuid, old_status=old, new_status=status, inventory=inventory
        )
        after_commit(tx, lambda: publish(changed))
        if status == DISCONNECTED:
            lost = PrimaryStorageDisconnected(primary_storage_uuid=row.uuid, reason=reason)
            after_commit(tx, lambda: publish(lost))

    def _tell_host(
        self, tx: AsyncSession, ps_uuid: str, host_uuid: str, old: str | None, new: str, reason: ErrorCode | None = None
    ) -> None:
        news = PrimaryStorageHostStatusChanged(
            primary_storage_uuid=ps_uuid, host_uuid=host_uuid, old_status=old, new_status=new, reason=reason
        )
        after_commit(tx, lambda: self.node.bus.publish(news))


async def get(session: AsyncSession, uuid: str) -> PrimaryStorageModel:
    """The row of a storage."""
    row = await session.get(PrimaryStorageModel, uuid)
    if row is None:
        raise not_found("PrimaryStorageVO", uuid)
    return row


def _without_capacity(row: Mapping[str, Any]) -> PrimaryStorageInventory:
    fields = PrimaryStorageInventory.__struct_fields__
    return PrimaryStorageInventory(**{name: value for name, value in row.items() if name in fields})
