"""Reading and moving hosts' rows. Every change of status goes through `move`, which tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, Table, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.events import HostStatusChanged
from caelum.cloud.host.model import HostModel, model_of, whole_row
from caelum.cloud.host.states import CONNECTING
from caelum.kernel.database import utcnow
from caelum.kernel.errors import not_found
from caelum.kernel.node import Node
from caelum.kernel.prepared import Prepared, Reading
from caelum.kernel.tag import drop_tags
from caelum.kernel.views import view_of, views

Also = Callable[[AsyncSession, str], Awaitable[None]]
"""What happens in a transaction that moves a host of this UUID."""

_HOST = cast("Table", HostModel.__table__)
_THIS = _HOST.c.uuid == bindparam("key")
_STANDING = Prepared(select(_HOST.c.status, _HOST.c.hypervisor_type).where(_THIS))
_PLACE = (_HOST.c.uuid, _HOST.c.cluster_uuid, _HOST.c.zone_uuid)
_CONNECTING = Prepared(select(*_PLACE).where(_HOST.c.status == CONNECTING))


@lru_cache
def _setting(columns: tuple[str, ...]) -> Prepared:
    return Prepared(update(_HOST).where(_THIS).values({name: bindparam(name) for name in columns}))


async def load(session: AsyncSession, host_uuid: str, *, lock: bool = False) -> HostModel:
    """A host's row, locked until the end of the transaction if asked for. Raises SYS.1003."""
    host = await session.get(HostModel, host_uuid, populate_existing=True, with_for_update=lock or None)
    if host is None:
        raise not_found("HostVO", host_uuid)
    return host


async def row_of(session: Reading, host_uuid: str) -> dict[str, Any]:
    """All that is known of a host, by the names of columns and of the inventory's capacities. Raises SYS.1003."""
    row = await _find_row(session, host_uuid)
    if row is None:
        raise not_found("HostVO", host_uuid)
    return row


async def _find_row(session: Reading, host_uuid: str, *, lock: bool = False) -> dict[str, Any] | None:
    names, statement = whole_row(lock=lock)
    found = await statement.rows(session, key=host_uuid)
    return dict(zip(names, found[0], strict=True)) if found else None


async def get(node: Node, host_uuid: str) -> HostInventory:
    """A host. Raises SYS.1003."""
    return (await known(node, host_uuid)).inventory


class Known(NamedTuple):
    """A host, and the agent of its last completed connect."""

    inventory: HostInventory
    agent_uuid: str | None


async def known(node: Node, host_uuid: str) -> Known:
    """A host and its agent. Raises SYS.1003."""

    async def load(session: Reading) -> Known:
        row = await row_of(session, host_uuid)
        return Known(_inventory(row), row["agent_uuid"])

    return await node.db.remember_one((HostModel, host_uuid), load)


def _inventory(row: dict[str, Any]) -> HostInventory:
    return view_of(model_of(row["hypervisor_type"]), row)  # type: ignore[no-any-return]


class Moved(NamedTuple):
    """A host whose status was set, and its whole row as `row_of` has it."""

    inventory: HostInventory
    row: dict[str, Any]


class Standing(NamedTuple):
    """Whether a host can be worked with, and by which driver."""

    status: str
    hypervisor_type: str


async def standing(node: Node, host_uuid: str) -> Standing | None:
    """The same without its capacity, which changes with every machine."""

    async def load(session: Reading) -> Standing | None:
        found = await _STANDING.rows(session, key=host_uuid)
        return Standing(*found[0]) if found else None

    return await node.db.remember_one((Standing, host_uuid), load)


async def find(node: Node, *conditions: ColumnElement[bool]) -> list[HostInventory]:
    """The hosts that meet all conditions, oldest first."""
    async with node.db.read() as session:
        rows = await session.scalars(select(HostModel).where(*conditions).order_by(HostModel.create_date))
        return views(rows)


class Place(NamedTuple):
    """Where hosts are: in a cluster, in a zone, or exactly one of them. None is any."""

    host_uuid: str | None = None
    cluster_uuid: str | None = None
    zone_uuid: str | None = None

    def has(self, host: Place) -> bool:
        """Whether a host, given by its own UUIDs, is there."""
        return all(wanted in (None, its) for wanted, its in zip(self, host, strict=True))


async def there(node: Node, host_uuids: set[str], place: Place) -> set[str]:
    """Those of the hosts that are in a place."""
    if not host_uuids or not any(place):
        return host_uuids
    conditions = [column == wanted for column, wanted in zip(_PLACE, place, strict=True) if wanted is not None]
    async with node.db.read() as session:
        return host_uuids & set(await session.scalars(select(_HOST.c.uuid).where(*conditions)))


async def connecting(node: Node, place: Place) -> set[str]:
    """The hosts in a place that are being connected by some node."""

    async def load(session: Reading) -> list[Place]:
        return [Place(*row) for row in await _CONNECTING.rows(session)]

    # Many look at once, again and again: what is read does not depend on who asks, so that they share it.
    found = await node.db.remember_one((Place, CONNECTING), load)
    return {host.host_uuid for host in found if host.host_uuid is not None and place.has(host)}


async def move(
    node: Node, host_uuid: str, status: str, *, of: Sequence[str] | None = None, also: Also | None = None, **values: Any
) -> Moved | None:
    """Set a host's status, when it is one `of` these now, and other columns with it; None when it was not.

    What is `also` to happen does so in the same transaction.
    The news goes out once the change is committed, and only when the status is another than before.
    """
    async with node.db.transaction() as tx:
        before = await _find_row(tx, host_uuid, lock=True)
        if before is None or (of is not None and before["status"] not in of):
            return None
        # The row is locked, so that what it is afterwards needs no reading.
        changes = {"status": status, "last_op_date": utcnow(), **values}
        await _setting(tuple(changes)).run(tx, key=host_uuid, **changes)
        if also is not None:
            await also(tx, host_uuid)
        row = before | changes
        host = _inventory(row)
    if before["status"] != status:
        event = HostStatusChanged(host_uuid=host_uuid, old_status=before["status"], new_status=status, inventory=host)
        node.bus.publish(event)
    return Moved(host, row)


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
