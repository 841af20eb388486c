"""A furnished cloud on two simulated hosts that is damaged by hand, audited, and put back as it was."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Table, bindparam, delete, insert, select, text

from caelum.cloud.audit.api import INFO, AuditFinding, AuditReply, RunAudit
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.volume.api import AttachDataVolumeToVm, CreateDataVolume, VolumeInventory
from caelum.kernel.database import Base
from caelum.simulator.world import World
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud


class AuditedCloud:
    """A running VM with a data volume, a stopped VM, and means to break things."""

    vm: VmInstanceInventory
    idle: VmInstanceInventory
    volume: VolumeInventory

    def __init__(self, made: SimulatedCloud) -> None:
        self.made = made
        self._rows: dict[Table, list[dict[str, Any]]] = {}
        self._worlds: dict[str, dict[str, Any]] = {}
        self._images: dict[Path, bytes] = {}

    async def furnish(self) -> None:
        """Make the machines."""
        made = self.made
        await made.api(UpdateGlobalConfig(category="audit", name="recheck.after", value="0"))
        self.vm = await made.create_vm("runs")
        self.idle = await made.create_vm("idle", host_uuid=self.vm.host_uuid, strategy="CreateStopped")
        self.volume = await made.api(CreateDataVolume(name="data", disk_offering_uuid=made.disk_offering))
        await made.api(AttachDataVolumeToVm(vm_instance_uuid=self.vm.uuid, volume_uuid=self.volume.uuid))

    # --- auditing -----------------------------------------------------------------------------------------------------

    async def audit(self) -> AuditReply:
        """Run the operation."""
        reply: AuditReply = await self.made.api(RunAudit())
        return reply

    async def wrong(self) -> list[AuditFinding]:
        """Everything that is wrong."""
        reply = await self.audit()
        found = [one for one in reply.findings if one.severity != INFO]
        assert reply.clean is not bool(found)
        return found

    # --- damaging -----------------------------------------------------------------------------------------------------

    async def sql(self, statement: str, **values: Any) -> None:
        """Change the database behind everybody's back; something must have changed."""
        async with self.made.cloud.node.db.transaction() as tx:
            times = [bindparam(name, type_=DateTime) for name, value in values.items() if isinstance(value, datetime)]
            result = await tx.execute(text(statement).bindparams(*times), values)
            assert result.rowcount > 0, statement  # type: ignore[attr-defined]

    async def one(self, query: str, **values: Any) -> Any:
        """A single value of the database."""
        async with self.made.cloud.node.db.read() as session:
            return (await session.execute(text(query), values)).scalar_one()

    @property
    def backup(self) -> Path:
        """The backup storage's directory."""
        return self.made.directory / "backup"

    def make_file(self, path: str) -> None:
        """Put a file on the backup storage."""
        file = self.backup / path
        file.parent.mkdir(parents=True)
        file.write_bytes(b"half")

    def drop_file(self, path: str) -> None:
        """Lose a file."""
        Path(path).unlink()

    @property
    def world(self) -> World:
        """What the VM's host holds."""
        return self.made.hosts.by_uuid(self.vm.host_uuid or "").world

    @property
    def other(self) -> World:
        """What the other host holds."""
        return next(one.world for one in self.made.hosts.hosts if one.uuid != self.vm.host_uuid)

    # --- and back -----------------------------------------------------------------------------------------------------

    async def remember(self) -> None:
        """This is how it should be."""
        async with self.made.cloud.node.db.read() as session:
            # A node's own row belongs to the node: without it, the node is evicted.
            for table in (one for one in Base.metadata.sorted_tables if one.name != "management_node"):
                self._rows[table] = [dict(row) for row in (await session.execute(select(table))).mappings()]
        self._worlds = {one.uuid: copy.deepcopy(vars(one.world)) for one in self.made.hosts.hosts}
        self._images = {file: file.read_bytes() for file in self.backup.rglob("*") if file.is_file()}

    async def restore(self) -> None:
        """Put everything back."""
        async with self.made.cloud.node.db.transaction() as tx:
            sqlite = self.made.cloud.node.db.sqlite
            later = "PRAGMA defer_foreign_keys = ON" if sqlite else "SET LOCAL session_replication_role = replica"
            await tx.execute(text(later))
            for table in reversed(self._rows):
                await tx.execute(delete(table))
            for table, rows in self._rows.items():
                if rows:
                    await tx.execute(insert(table), rows)
        for file in self.backup.rglob("*"):
            if file.is_file() and file not in self._images:
                file.unlink()
        for file, content in self._images.items():
            file.write_bytes(content)
        for uuid, values in self._worlds.items():
            vars(self.made.hosts.by_uuid(uuid).world).update(copy.deepcopy(values))


@asynccontextmanager
async def audited_cloud() -> AsyncIterator[AuditedCloud]:
    """A furnished cloud whose auditor does not pause between its two looks."""
    async with simulated_cloud(hosts=2) as made:
        cloud = AuditedCloud(made)
        await cloud.furnish()
        await cloud.remember()
        yield cloud
