"""The offering service.

Invariant: an offering's numbers never change after its creation; what was made from one keeps its own copy of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.offering import (
    tags,  # noqa: F401 - declares the tags
)
from caelum.cloud.offering.api import (
    DISK_OFFERING,
    INSTANCE_OFFERING,
    ChangeDiskOfferingState,
    ChangeInstanceOfferingState,
    CreateDiskOffering,
    CreateInstanceOffering,
    DeleteDiskOffering,
    DeleteInstanceOffering,
    DiskOfferingInventory,
    InstanceOfferingInventory,
    UpdateDiskOffering,
    UpdateInstanceOffering,
)
from caelum.cloud.offering.extension import OfferingAfterDelete
from caelum.cloud.offering.messages import GetDiskOffering, GetInstanceOffering
from caelum.cloud.offering.model import OFFERING_STATES, DiskOfferingModel, InstanceOfferingModel
from caelum.cloud.ownership import disown, own
from caelum.cloud.switch import ENABLED
from caelum.kernel import context
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import Resource
from caelum.kernel.errors import OPERATION_ERROR, CloudError, not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import CreateMessage, Message
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import drop_tags, save_tags
from caelum.kernel.views import view

R = TypeVar("R")

DEFAULT_HOST_STRATEGY = "LeastVmPreferredHostAllocatorStrategy"
DEFAULT_DISK_STRATEGY = "DefaultPrimaryStorageAllocationStrategy"


class OfferingService(Service):
    """Owns instance offerings and disk offerings."""

    name = "offering"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(InstanceOfferingCascade(node))
        node.extensions.add(DiskOfferingCascade(node))

    @handles(CreateInstanceOffering)
    async def create_instance_offering(self, msg: CreateInstanceOffering) -> InstanceOfferingInventory:
        row = InstanceOfferingModel(
            uuid=msg.resource_uuid or new_uuid(),
            name=msg.name,
            description=msg.description,
            cpu_num=msg.cpu_num,
            memory_size=msg.memory_size,
            reserved_memory_size=msg.reserved_memory_size,
            type=msg.type or "UserVm",
            allocator_strategy=msg.allocator_strategy or DEFAULT_HOST_STRATEGY,
            sort_key=msg.sort_key,
            state=ENABLED,
        )
        return await self._create(msg, row, INSTANCE_OFFERING)

    @handles(CreateDiskOffering)
    async def create_disk_offering(self, msg: CreateDiskOffering) -> DiskOfferingInventory:
        row = DiskOfferingModel(
            uuid=msg.resource_uuid or new_uuid(),
            name=msg.name,
            description=msg.description,
            disk_size=msg.disk_size,
            type=msg.type or "DefaultDiskOfferingType",
            allocator_strategy=msg.allocation_strategy or DEFAULT_DISK_STRATEGY,
            sort_key=msg.sort_key,
            state=ENABLED,
        )
        return await self._create(msg, row, DISK_OFFERING)

    async def _create(self, msg: CreateMessage[R], row: Resource, vo: str) -> R:
        async with self.db.transaction() as tx:
            tx.add(row)
            await own(tx, context.current().actor.account_uuid, row.uuid, vo)
            await save_tags(tx, msg, row.uuid, vo)
        inventory: R = view(row)
        return inventory

    @handles(UpdateInstanceOffering, queue="instance-offering-{uuid}")
    async def update_instance_offering(self, msg: UpdateInstanceOffering) -> InstanceOfferingInventory:
        return await self._change(InstanceOfferingModel, msg, msg.uuid, ("name", "description", "allocator_strategy"))

    @handles(UpdateDiskOffering, queue="disk-offering-{uuid}")
    async def update_disk_offering(self, msg: UpdateDiskOffering) -> DiskOfferingInventory:
        return await self._change(DiskOfferingModel, msg, msg.uuid, ("name", "description"))

    @handles(ChangeInstanceOfferingState, queue="instance-offering-{uuid}")
    async def change_instance_offering_state(self, msg: ChangeInstanceOfferingState) -> InstanceOfferingInventory:
        return await self._switch(InstanceOfferingModel, msg, msg.uuid, msg.state_event)

    @handles(ChangeDiskOfferingState, queue="disk-offering-{uuid}")
    async def change_disk_offering_state(self, msg: ChangeDiskOfferingState) -> DiskOfferingInventory:
        return await self._switch(DiskOfferingModel, msg, msg.uuid, msg.state_event)

    async def _change(self, model: type[Any], msg: Message[R], uuid: str, names: tuple[str, ...]) -> R:
        """Take over the named fields that the message gives."""
        async with self.db.transaction() as tx:
            row = await _get(tx, model, uuid)
            for name in names:
                if getattr(msg, name) is not None:
                    setattr(row, name, getattr(msg, name))
        inventory: R = view(row)
        return inventory

    async def _switch(self, model: type[Any], _msg: Message[R], uuid: str, event: str) -> R:
        async with self.db.transaction() as tx:
            row = await _get(tx, model, uuid)
            row.state = OFFERING_STATES.next(row.state, event)
        inventory: R = view(row)
        return inventory

    @handles(DeleteInstanceOffering, queue="instance-offering-{uuid}")
    async def delete_instance_offering(self, msg: DeleteInstanceOffering) -> None:
        await self.node.cascade.delete(INSTANCE_OFFERING, [msg.uuid], msg.delete_mode)

    @handles(DeleteDiskOffering, queue="disk-offering-{uuid}")
    async def delete_disk_offering(self, msg: DeleteDiskOffering) -> None:
        await self.node.cascade.delete(DISK_OFFERING, [msg.uuid], msg.delete_mode)

    @handles(GetInstanceOffering, reads=True)
    async def get_instance_offering(self, msg: GetInstanceOffering) -> InstanceOfferingInventory:
        return await self._find(InstanceOfferingModel, msg, msg.uuid, msg.enabled)

    @handles(GetDiskOffering, reads=True)
    async def get_disk_offering(self, msg: GetDiskOffering) -> DiskOfferingInventory:
        return await self._find(DiskOfferingModel, msg, msg.uuid, msg.enabled)

    async def _find(self, model: type[Any], _msg: Message[R], uuid: str, enabled: bool) -> R:
        async def load(session: AsyncSession) -> R:
            inventory: R = view(await _get(session, model, uuid))
            return inventory

        row: Any = await self.db.remember((model, uuid), load)
        if enabled and row.state != ENABLED:
            raise CloudError(
                OPERATION_ERROR, f"offering[uuid:{uuid}, name:{row.name}] is {row.state}, cannot be used", uuid=uuid
            )
        found: R = row
        return found


async def _get(session: AsyncSession, model: type[Any], uuid: str) -> Any:
    row = await session.get(model, uuid)
    if row is None:
        raise not_found(model.__vo__, uuid)
    return row


class _OfferingCascade(CascadeExtension):
    model: type[Any]

    def __init__(self, node: Node) -> None:
        self.node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        return []

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        async with self.node.db.transaction() as tx:
            rows: Sequence[Any] = (await tx.scalars(select(self.model).where(self.model.uuid.in_(uuids)))).all()
            for row in rows:
                await drop_tags(tx, row.uuid)
                await disown(tx, row.uuid)
                await tx.delete(row)

    async def cleanup(self, uuids: list[str]) -> None:
        await self.node.extensions.notify(OfferingAfterDelete, "after_delete", self.resource, uuids)


class InstanceOfferingCascade(_OfferingCascade):
    """Deletes instance offerings."""

    resource = INSTANCE_OFFERING
    model = InstanceOfferingModel


class DiskOfferingCascade(_OfferingCascade):
    """Deletes disk offerings."""

    resource = DISK_OFFERING
    model = DiskOfferingModel
