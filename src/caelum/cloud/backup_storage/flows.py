"""Workflows of backup storages."""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.backup_storage.api import BACKUP_STORAGE, BackupStorageInventory
from caelum.cloud.backup_storage.capacity import record
from caelum.cloud.backup_storage.events import BackupStorageDisconnected, BackupStorageStatusChanged
from caelum.cloud.backup_storage.extension import BackupCapacity, BackupStorageDriver
from caelum.cloud.backup_storage.model import CONNECTED, CONNECTING, DISCONNECTED, BackupStorageModel
from caelum.cloud.switch import ENABLED
from caelum.kernel.database import after_commit
from caelum.kernel.errors import CloudError, ErrorCode, not_found
from caelum.kernel.node import Node
from caelum.kernel.tag import drop_tags, save_system_tags, save_user_tags
from caelum.kernel.views import view
from caelum.kernel.workflow import Run, Workflow, step


class BackupStorages:
    """Backup storages and their drivers, on one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def find(self, uuid: str) -> BackupStorageInventory:
        """One storage as it is now."""

        async def load(session: AsyncSession) -> BackupStorageInventory:
            inventory: BackupStorageInventory = view(await get(session, uuid))
            return inventory

        return await self.node.db.remember((BackupStorageModel, uuid), load)

    async def all(self) -> list[BackupStorageInventory]:
        """Every storage."""

        async def load(session: AsyncSession) -> list[BackupStorageInventory]:
            return [view(row) for row in await session.scalars(select(BackupStorageModel))]

        return await self.node.db.remember(BackupStorageModel, load)

    def driver(self, bs: BackupStorageInventory | BackupStorageModel) -> BackupStorageDriver:
        """The driver of the storage's type."""
        return self.node.drivers.get(BackupStorageDriver, bs.type)

    async def connect(self, uuid: str) -> BackupStorageInventory:
        """Connect a storage and enter its capacity; it is Disconnected when that fails."""
        bs = await self.find(uuid)
        try:
            seen = await self.driver(bs).connect(bs, first=False)
        except CloudError as error:
            async with self.node.db.transaction() as tx:
                await self.set_status(tx, await get(tx, uuid), DISCONNECTED, error.to_wire())
            raise
        await self.record(uuid, seen)
        return await self.find(uuid)

    async def record(self, uuid: str, seen: BackupCapacity) -> None:
        """Enter what the storage says; it is connected then."""
        async with self.node.db.transaction() as tx:
            row = await get(tx, uuid)
            await record(tx, row, seen)
            await self.set_status(tx, row, CONNECTED)

    async def set_status(
        self, tx: AsyncSession, row: BackupStorageModel, status: str, reason: ErrorCode | None = None
    ) -> None:
        """Enter a status; its news goes out with the commit."""
        old, row.status = row.status, status
        if old == status:
            return
        publish = self.node.bus.publish
        changed = BackupStorageStatusChanged(
            backup_storage_uuid=row.uuid, old_status=old, new_status=status, inventory=view(row)
        )
        after_commit(tx, lambda: publish(changed))
        if status == DISCONNECTED:
            lost = BackupStorageDisconnected(backup_storage_uuid=row.uuid, reason=reason)
            after_commit(tx, lambda: publish(lost))


async def get(session: AsyncSession, uuid: str) -> BackupStorageModel:
    """The row of a storage."""
    row = await session.get(BackupStorageModel, uuid)
    if row is None:
        raise not_found(BACKUP_STORAGE, uuid)
    return row


class AddBackupContext(msgspec.Struct):
    """What is added, and what it said when it was connected."""

    uuid: str
    type: str
    name: str
    url: str
    description: str | None = None
    system_tags: list[str] | None = None
    user_tags: list[str] | None = None
    tag_uuids: list[str] | None = None
    total: int = 0
    available: int = 0


class AddBackupStorageFlow(Workflow[AddBackupContext, BackupStorageInventory]):
    """Connecting -> Connected. A storage that cannot be connected is not added."""

    name = "backup-storage.add"
    rehearsal = "backup_storage_add"

    def subject(self, ctx: AddBackupContext) -> str:
        return ctx.uuid

    def queue(self, ctx: AddBackupContext) -> str | None:
        return f"backup-storage-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: AddBackupContext) -> None:
        tx.add(
            BackupStorageModel(
                uuid=ctx.uuid,
                name=ctx.name,
                description=ctx.description,
                url=ctx.url,
                type=ctx.type,
                status=CONNECTING,
            )
        )
        await tx.flush()
        await save_system_tags(tx, ctx.system_tags, ctx.uuid, BACKUP_STORAGE)
        await save_user_tags(tx, ctx.user_tags, ctx.uuid, BACKUP_STORAGE, ctx.tag_uuids)

    async def complete(self, tx: AsyncSession, ctx: AddBackupContext) -> None:
        row = await tx.get_one(BackupStorageModel, ctx.uuid)
        await tx.refresh(row, ["zone_refs"])
        await record(tx, row, BackupCapacity(ctx.total, ctx.available))
        await BackupStorages(self.node).set_status(tx, row, CONNECTED)

    async def abort(self, tx: AsyncSession, ctx: AddBackupContext, error: CloudError) -> None:
        await remove_storage(tx, ctx.uuid)

    async def result(self, ctx: AddBackupContext) -> BackupStorageInventory:
        return await BackupStorages(self.node).find(ctx.uuid)

    @step(timeout=300)
    async def connect(self, run: Run[AddBackupContext]) -> None:
        bs = _described(run.ctx)
        seen = await BackupStorages(self.node).driver(bs).connect(bs, first=True)
        run.ctx.total, run.ctx.available = seen.total, seen.available

    @connect.undo
    async def leave(self, run: Run[AddBackupContext]) -> None:
        bs = _described(run.ctx)
        await BackupStorages(self.node).driver(bs).remove(bs)


def _described(ctx: AddBackupContext) -> BackupStorageInventory:
    """The storage as it is added: an undo may run when its row is gone."""
    return BackupStorageInventory(
        uuid=ctx.uuid, name=ctx.name, url=ctx.url, type=ctx.type, state=ENABLED, status=CONNECTING
    )


async def remove_storage(tx: AsyncSession, uuid: str) -> None:
    """Delete a storage's rows, its tags among them."""
    await drop_tags(tx, uuid)
    await tx.execute(delete(BackupStorageModel).where(BackupStorageModel.uuid == uuid))
