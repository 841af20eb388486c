"""What the tests of virtual machines share: looking at them from every side."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from caelum.cloud.allocator.api import GetCpuMemoryCapacity
from caelum.cloud.audit.api import INFO, RunAudit
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.ownership import AccountResourceRefModel
from caelum.cloud.primary_storage.api import GetPrimaryStorageCapacity
from caelum.cloud.quota import usage
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.vm.flows.base import inventory_of
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.errors import CloudError, ErrorCode
from caelum.testing.simcloud import SimulatedCloud

VM_QUOTAS = ("vm.totalNum", "vm.num", "vm.cpuNum", "vm.memorySize")


async def vm_of(world: SimulatedCloud, uuid: str) -> VmInstanceInventory:
    """The VM as it is now."""
    return await inventory_of(world.cloud.node, uuid)


async def until_state(world: SimulatedCloud, uuid: str, state: str, seconds: float = 15) -> VmInstanceInventory:
    """Wait until the VM is in a state."""

    async def there() -> VmInstanceInventory | None:
        found = await vm_of(world, uuid)
        return found if found.state == state else None

    found: VmInstanceInventory = await world.cloud.until(there, seconds)
    return found


async def used(world: SimulatedCloud, account: str = ADMIN_ACCOUNT_UUID) -> dict[str, int]:
    """What an account uses of its quota of VMs."""
    async with world.cloud.node.db.read() as session:
        return {name: taken for name, taken, _ in await usage(session, account) if name in VM_QUOTAS}


async def room(world: SimulatedCloud) -> tuple[int, int, int]:
    """Free CPUs, memory and disk space of the whole cloud."""
    hosts = await world.api(GetCpuMemoryCapacity(all=True))
    storage = await world.api(GetPrimaryStorageCapacity(all=True))
    return hosts.available_cpu, hosts.available_memory, storage.available_capacity


async def owned(world: SimulatedCloud) -> list[tuple[str, str]]:
    """All recorded ownership."""
    row = AccountResourceRefModel
    async with world.cloud.node.db.read() as session:
        return sorted(tuple(one) for one in await session.execute(select(row.resource_type, row.resource_uuid)))


def guests(world: SimulatedCloud) -> dict[str, str]:
    """State by UUID of all machines on all hosts."""
    return {uuid: state for host in world.hosts.hosts for uuid, state in host.world.states().items()}


def chain(error: CloudError) -> list[ErrorCode]:
    """An error as clients get it, and all causes below it."""
    found: list[ErrorCode] = []
    todo: list[Any] = [error.to_wire()]
    while todo:
        one = todo.pop(0)
        found.append(one)
        todo += [below for below in (one.cause, *(one.causes or ())) if below is not None]
    return found


async def assert_nothing_wrong(world: SimulatedCloud) -> None:
    """The auditor finds database, hosts and capacities in agreement."""
    await world.api(UpdateGlobalConfig(category="audit", name="recheck.after", value="0"))
    findings = (await world.api(RunAudit())).findings
    wrong = [one for one in findings if one.severity != INFO]
    assert not wrong, wrong
