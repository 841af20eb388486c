"""Reading and moving hosts' rows. Every change of status goes through `move`, which tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.events import HostStatusChanged
from caelum.cloud.host.model import HostModel
from caelum.kernel.database import update_where
from caelum.kernel.errors import not_found
from caelum.kernel.node import Node
from caelum.kernel.tag import drop_tags
from caelum.kernel.views import view, views


async def load(session: AsyncSession, host_uuid: str, *, lock: bool = False) -> HostModel:
    """A host's row, locked until the end of the transaction if asked for. Raises SYS.1003."""
    host = await session.get(HostModel, host_uuid, populate_existing=True, with_for_update=lock or None)
    if host is None:
        raise not_found("HostVO", host_uuid)
    return host


async def get(node: Node, host_uuid: str) -> HostInventory:
    """A host. Raises SYS.1003."""

    async def inventory(session: AsyncSession) -> HostInventory:
        return view(await load(session, host_uuid))  # type: ignore[no-any-return]

    return await node.db.remember((HostModel, host_uuid), inventory)


class Standing(NamedTuple):
    """Whether a host can be worked with, and by which driver."""

    status: str
    hypervisor_type: str


async def standing(node: Node, host_uuid: str) -> Standing | None:
    """The same without its capacity, which changes with every machine."""
    query = select(HostModel.status, HostModel.hypervisor_type).where(HostModel.uuid == host_uuid)

    async def load(session: AsyncSession) -> Standing | None:
        found = (await session.execute(query)).one_or_none()
        return None if found is None else Standing(*found)

    return await node.db.remember((Standing, host_uuid), load)


async def find(node: Node, *conditions: ColumnElement[bool]) -> list[HostInventory]:
    """The hosts that meet all conditions, oldest first."""
    async with node.db.read() as session:
        rows = await session.scalars(select(HostModel).where(*conditions).order_by(HostModel.create_date))
        return views(rows)


async def move(
    node: Node, host_uuid: str, status: str, *, of: Sequence[str] | None = None, **values: Any
) -> HostInventory | None:
    """Set a host's status, when it is one `of` these now, and other columns with it; None when it was not.

    The news goes out once the change is committed, and only when the status is another than before.
    """
    async with node.db.transaction() as tx:
        old = await tx.scalar(
            select(HostModel.status).where(HostModel.uuid == host_uuid).with_for_update(key_share=True)
        )
        allowed = [HostModel.status.in_(of)] if of is not None else []
        if not await update_where(tx, HostModel, {"status": status, **values}, HostModel.uuid == host_uuid, *allowed):
            return None
    host = await get(node, host_uuid)
    if old is not None and old != status:
        event = HostStatusChanged(host_uuid=host_uuid, old_status=old, new_status=status, inventory=host)
        node.bus.publish(event)
    return host


async def change(node: Node, host_uuid: str, **values: Any) -> HostInventory:
    """Set columns of a host's row, also a driver's own. Raises SYS.1003."""
    async with node.db.transaction() as tx:
        host = await load(tx, host_uuid, lock=True)
        for name, value in values.items():
            setattr(host, name, value)
    return await get(node, host_uuid)


async def remove(tx: AsyncSession, host_uuid: str) -> bool:
    """Delete a host's row with its tags; False when it is gone already.

    What others keep about the host goes after the row: with it, nobody can write such things any more.
    """
    row = await tx.get(HostModel, host_uuid, with_for_update=True)
    if row is not None:
        await tx.delete(row)
        await tx.flush()
    await drop_tags(tx, host_uuid)
    return row is not None
