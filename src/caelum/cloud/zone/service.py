"""Zones: one row each. Deleting one deletes everything in it, leaves first.

Invariant: at most one zone is the default.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.switch import ENABLED, switch
from caelum.cloud.zone import tags as tags  # declares them
from caelum.cloud.zone.api import ChangeZoneState, CreateZone, DeleteZone, GetZone, UpdateZone, ZoneInventory
from caelum.cloud.zone.model import ZoneModel
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import Database, update_where
from caelum.kernel.errors import not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import drop_tags, save_tags
from caelum.kernel.views import view, views

ZONE_STATES = switch("Zone")


class ZoneCascade(CascadeExtension):
    """A zone is the root of what it holds."""

    resource = "ZoneVO"

    def __init__(self, db: Database) -> None:
        self._db = db

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:  # noqa: ARG002 - nothing is above a zone
        return []

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:  # noqa: ARG002 - the row is all there is
        async with self._db.transaction() as tx:
            await tx.execute(delete(ZoneModel).where(ZoneModel.uuid.in_(uuids)))
            for uuid in uuids:
                await drop_tags(tx, uuid)


class ZoneService(Service):
    """Owns zones."""

    name = "zone"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(ZoneCascade(node.db))

    @handles(CreateZone)
    async def create(self, msg: CreateZone) -> ZoneInventory:
        """Create a zone."""
        async with self.node.db.transaction() as tx:
            zone = ZoneModel(
                uuid=msg.resource_uuid or new_uuid(),
                name=msg.name,
                description=msg.description,
                state=ENABLED,
                type="zstack",
                is_default=bool(msg.is_default),
            )
            tx.add(zone)
            await tx.flush()
            await self._sole_default(tx, zone)
            await save_tags(tx, msg, zone.uuid)
        return view(zone)  # type: ignore[no-any-return]

    @handles(UpdateZone, queue="zone-{uuid}")
    async def update(self, msg: UpdateZone) -> ZoneInventory:
        """Change name, description, default."""
        async with self.node.db.transaction() as tx:
            zone = await _zone(tx, msg.uuid)
            zone.name = msg.name or zone.name
            zone.description = zone.description if msg.description is None else msg.description
            zone.is_default = zone.is_default if msg.is_default is None else msg.is_default
            await tx.flush()
            await self._sole_default(tx, zone)
        return view(zone)  # type: ignore[no-any-return]

    @handles(ChangeZoneState, queue="zone-{uuid}")
    async def change_state(self, msg: ChangeZoneState) -> ZoneInventory:
        """Enable or disable a zone."""
        async with self.node.db.transaction() as tx:
            zone = await _zone(tx, msg.uuid)
            zone.state = ZONE_STATES.next(zone.state, msg.state_event)
            await tx.flush()
        return view(zone)  # type: ignore[no-any-return]

    @handles(DeleteZone, queue="zone-{uuid}")
    async def delete(self, msg: DeleteZone) -> None:
        """Delete a zone and everything in it."""
        await self.node.cascade.delete("ZoneVO", [msg.uuid], mode=msg.delete_mode)

    @handles(GetZone)
    async def get(self, msg: GetZone) -> list[ZoneInventory]:
        """One zone, or all."""
        only: list[ColumnElement[bool]] = [] if msg.uuid is None else [ZoneModel.uuid == msg.uuid]
        async with self.node.db.read() as session:
            return views(await session.scalars(select(ZoneModel).where(*only).order_by(ZoneModel.create_date)))

    async def _sole_default(self, tx: AsyncSession, zone: ZoneModel) -> None:
        if zone.is_default:
            others = (ZoneModel.uuid != zone.uuid, ZoneModel.is_default.is_(True))
            await update_where(tx, ZoneModel, {"is_default": False}, *others)


async def _zone(tx: AsyncSession, uuid: str) -> ZoneModel:
    zone = await tx.get(ZoneModel, uuid)
    if zone is None:
        raise not_found("Zone", uuid)
    return zone
