"""The allocator: which host a virtual machine gets, and the books of what every host has left.

Invariant: no host is given more than it has, however many allocations run on however many nodes. Repeating a request
gives the same answer; a return gives back exactly what was taken. For a workflow that has turned back while it waited
nothing is taken any more, for nobody would return it.
"""

from __future__ import annotations

from typing import cast

import msgspec
from sqlalchemy import ColumnElement, Table, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator import books
from caelum.cloud.allocator import messages as m
from caelum.cloud.allocator.api import (
    CpuMemoryCapacity,
    CpuMemoryCapacityData,
    GetCpuMemoryCapacity,
    GetHostAllocatorStrategies,
    StrategiesReply,
)
from caelum.cloud.allocator.choose import MISSED, Chooser
from caelum.cloud.allocator.errors import NO_AVAILABLE_HOST
from caelum.cloud.allocator.extension import HostAllocatorStrategy, RoomRecords
from caelum.cloud.allocator.limits import Limits
from caelum.cloud.allocator.model import HOST, HostCapacityModel, HostReservationModel
from caelum.cloud.allocator.settings import CONCURRENT, CONCURRENT_LEVEL
from caelum.cloud.allocator.strategies import STRATEGIES
from caelum.cloud.host.messages import AwaitHosts
from caelum.kernel.errors import CANCELED, CloudError
from caelum.kernel.journal import refuse_late
from caelum.kernel.node import Node
from caelum.kernel.prepared import Prepared
from caelum.kernel.service import Service, handles

Capacity = HostCapacityModel
Reservation = HostReservationModel
_HELD = cast("Table", Reservation.__table__).c
_RESERVED = Prepared(
    select(
        _HELD.host_uuid, _HELD.cpu_num, _HELD.memory, _HELD.disks, HOST.c.cluster_uuid, HOST.c.zone_uuid,
        HOST.c.hypervisor_type,
    )
    .where(_HELD.vm_uuid == bindparam("of_vm"), HOST.c.uuid == _HELD.host_uuid)
)  # fmt: skip


class AllocatorService(Service):
    """Owns the capacity of hosts."""

    name = "allocator"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._limits = Limits(node)
        node.extensions.add(RecordsOfRoom())
        for name, strategy in STRATEGIES.items():
            node.drivers.add(HostAllocatorStrategy, name, strategy)

    async def start(self) -> None:
        self._limits.follow()

    async def stop(self) -> None:
        self._limits.stop()

    @handles(m.AllocateHost)
    async def allocate(self, msg: m.AllocateHost) -> m.HostAllocation:
        """Choose and reserve."""
        if msg.dry_run:
            return await Chooser(self.node, msg).choose()
        # A request that is repeated while the first one still runs must not take another host for the same machine.
        async with self.node.queues.turn(f"host-of-{msg.vm_uuid}", name="AllocateHost"):
            try:
                return await self._in_turn(msg)
            except CloudError as error:
                # Hosts that are being connected, or are still to be after a restart, may take what these could not;
                # so may one that became Connected between the choice and this question.
                if error.kind is CANCELED:
                    raise
                waited = await self.node.bus.call(_those_awaited(msg))
                if not waited and MISSED not in error.facts:
                    raise
                return await self._in_turn(msg)

    async def _in_turn(self, msg: m.AllocateHost) -> m.HostAllocation:
        """One at a time unless set otherwise, so that the load spreads evenly."""
        settings = self.node.settings
        level = settings.get(CONCURRENT_LEVEL) if settings.get(CONCURRENT) else 1
        return await self.node.queues.run("host-allocator", level, self._allocate, msg, name="AllocateHost")

    async def _allocate(self, msg: m.AllocateHost) -> m.HostAllocation:
        known = None if msg.is_new else await self._repeated(msg)
        return known or await Chooser(self.node, msg).choose()

    async def _repeated(self, msg: m.AllocateHost) -> m.HostAllocation | None:
        """The answer that this request had before, when its reservation is still what it asks for."""
        found = await _RESERVED.rows(self.node.db.once, of_vm=msg.vm_uuid)
        if not found:
            return None
        host_uuid, cpu_num, memory, kept, cluster_uuid, zone_uuid, hypervisor_type = found[0]
        if kept is None or (cpu_num, memory) != (msg.cpu_num, msg.memory) or host_uuid in msg.avoid_host_uuids:
            return None
        disks: dict[str, str] = msgspec.json.decode(kept)
        if disks.keys() != {one.key for one in msg.disks} or msg.host_uuid not in (None, host_uuid):
            return None
        return m.HostAllocation(
            host_uuid=host_uuid, cluster_uuid=cluster_uuid, zone_uuid=zone_uuid, hypervisor_type=hypervisor_type,
            disks=disks,
        )  # fmt: skip

    @handles(m.ReturnHost)
    async def give_back(self, msg: m.ReturnHost) -> None:
        """Give back what a machine took."""
        async with self.node.db.transaction() as tx:
            await refuse_late(tx)
            await books.give_back(tx, msg.vm_uuid, msg.host_uuid)

    @handles(m.ReserveHost)
    async def reserve(self, msg: m.ReserveHost) -> None:
        """Reserve on a given host, in place of any other reservation of the machine."""
        wanted = Reservation(vm_uuid=msg.vm_uuid, host_uuid=msg.host_uuid, cpu_num=msg.cpu_num, memory=msg.memory)
        async with self.node.db.transaction() as tx:
            known = await tx.get(Reservation, msg.vm_uuid)
            if known is not None and (known.host_uuid, known.cpu_num, known.memory) == (
                msg.host_uuid, msg.cpu_num, msg.memory,
            ):  # fmt: skip
                return
            await books.give_back(tx, msg.vm_uuid)
            if not await books.take(tx, wanted, force=msg.force):
                raise await _too_little(tx, msg)

    @handles(m.ReportHostCapacity, queue="host-capacity-{host_uuid}")
    async def report(self, msg: m.ReportHostCapacity) -> None:
        """Note what a host has."""
        await self._limits.record(msg.host_uuid, msg.total_cpu, msg.cpu_sockets, msg.total_memory)

    @handles(m.RefreshLimits, queue="host-limits")
    async def refresh(self, msg: m.RefreshLimits) -> None:
        """Compute limits again."""
        await self._limits.apply(msg.resource_uuid)

    @handles(m.DropHost)
    async def drop(self, msg: m.DropHost) -> None:
        """Forget a host."""
        async with self.node.db.transaction() as tx:
            await books.drop(tx, msg.host_uuid)

    # --- public operations ------------------------------------------------------------------------------------------

    @handles(GetHostAllocatorStrategies)
    async def strategies(self, msg: GetHostAllocatorStrategies) -> StrategiesReply:  # noqa: ARG002
        """The names of all strategies."""
        return StrategiesReply(strategies=self.node.drivers.types(HostAllocatorStrategy))

    @handles(GetCpuMemoryCapacity)
    async def capacity(self, msg: GetCpuMemoryCapacity) -> CpuMemoryCapacity:
        """Sums over the hosts that can be used, by the kind of resource that was asked for."""
        kind, by, uuids = _scope(msg)
        conditions: list[ColumnElement[bool]] = [HOST.c.state == "Enabled", HOST.c.status == "Connected"]
        if uuids is not None:
            conditions.append(by.in_(uuids))
        if msg.hypervisor_type is not None:
            conditions.append(HOST.c.hypervisor_type == msg.hypervisor_type)
        async with self.node.db.read() as session:
            found = {one.resource_uuid: one for one in await _sums(session, by, conditions)}
        for uuid in uuids or ():
            found.setdefault(uuid, CpuMemoryCapacityData(resource_uuid=uuid))
        data = list(found.values())
        return CpuMemoryCapacity(
            total_cpu=sum(one.total_cpu for one in data),
            available_cpu=sum(one.available_cpu for one in data),
            total_memory=sum(one.total_memory for one in data),
            available_memory=sum(one.available_memory for one in data),
            managed_cpu_num=sum(one.managed_cpu_num for one in data),
            capacity_data=data,
            resource_type=kind,
        )


class RecordsOfRoom(RoomRecords):
    """What others give back in their transactions."""

    async def give_back(self, tx: AsyncSession, vm_uuid: str) -> None:
        """Give back what a machine took."""
        await books.give_back(tx, vm_uuid)


def _those_awaited(msg: m.AllocateHost) -> AwaitHosts:
    return AwaitHosts(host_uuid=msg.host_uuid, cluster_uuid=msg.cluster_uuid, zone_uuid=msg.zone_uuid)


def _scope(msg: GetCpuMemoryCapacity) -> tuple[str, ColumnElement[str], list[str] | None]:
    if msg.host_uuids:
        return "HostVO", HOST.c.uuid, msg.host_uuids
    if msg.cluster_uuids:
        return "ClusterVO", HOST.c.cluster_uuid, msg.cluster_uuids
    return "ZoneVO", HOST.c.zone_uuid, msg.zone_uuids or None


async def _sums(
    session: AsyncSession, by: ColumnElement[str], conditions: list[ColumnElement[bool]]
) -> list[CpuMemoryCapacityData]:
    query = (
        select(
            by,
            func.sum(Capacity.total_cpu),
            func.sum(Capacity.total_cpu - Capacity.used_cpu),
            func.sum(Capacity.total_memory),
            func.sum(Capacity.limit_memory - Capacity.used_memory),
            func.sum(Capacity.cpu_num),
        )
        .select_from(HOST.join(Capacity, Capacity.uuid == HOST.c.uuid))
        .where(*conditions)
        .group_by(by)
    )
    # Sums of big integers are decimals in PostgreSQL.
    found = (await session.execute(query)).all()
    return [_data(uuid, *map(int, sums)) for uuid, *sums in found]


def _data(uuid: str, total_cpu: int, free_cpu: int, memory: int, free_memory: int, cores: int) -> CpuMemoryCapacityData:
    return CpuMemoryCapacityData(
        resource_uuid=uuid,
        total_cpu=total_cpu,
        available_cpu=free_cpu,
        total_memory=memory,
        available_memory=free_memory,
        managed_cpu_num=cores,
    )


async def _too_little(tx: AsyncSession, msg: m.ReserveHost) -> CloudError:
    row = await tx.get(Capacity, msg.host_uuid)
    if row is None:
        details = f"the capacity of host[uuid:{msg.host_uuid}] is not known"
    else:
        details = (
            f"host[uuid:{msg.host_uuid}] has {row.total_cpu - row.used_cpu} CPUs and"
            f" {row.limit_memory - row.used_memory} bytes of memory free; vm[uuid:{msg.vm_uuid}] needs {msg.cpu_num}"
            f" and {msg.memory}"
        )
    return CloudError(NO_AVAILABLE_HOST, details, hostUuid=msg.host_uuid)
