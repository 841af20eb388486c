"""Changes of a VM's records that several workflows share. Each runs inside its caller's transaction."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud import quota
from caelum.cloud.ownership import disown, owner_of
from caelum.cloud.vm.api import NOT_IN_CORRECT_STATE, VmStateChanged
from caelum.cloud.vm.model import VM_STATES, VmInstanceModel, VmNicModel, VmSequenceModel
from caelum.cloud.vm.specs import load_vm
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.database import after_commit
from caelum.kernel.errors import CloudError
from caelum.kernel.node import Node
from caelum.kernel.tag import drop_tags
from caelum.kernel.views import view

TOTAL = "vm.totalNum"
NUMBER = "vm.num"
"""How many run; `TOTAL` counts them all."""
CPU = "vm.cpuNum"
MEMORY = "vm.memorySize"


def require_state(vm: VmInstanceModel, operation: str, allowed: frozenset[str] | set[str]) -> None:
    """Refuse an operation that the VM's state does not allow, naming the states that do."""
    if vm.state not in allowed:
        names = sorted(str(one) for one in allowed)
        raise CloudError(
            NOT_IN_CORRECT_STATE,
            f"current vm instance state[{vm.state}] doesn't allow to proceed message[{operation}], "
            f"allowed states are {names}",
            vmUuid=vm.uuid,
            state=vm.state,
            allowedStates=names,
        )


async def move(
    node: Node, tx: AsyncSession, vm_uuid: str, event: str, *, operation: str | None = None, **columns: Any
) -> VmInstanceModel:
    """Take the VM through `event` of its state machine and set columns. Raises VM.1010 when the state forbids it.

    The news goes out when the transaction is committed.
    """
    vm = await load_vm(tx, vm_uuid)
    if not VM_STATES.allows(vm.state, event):
        require_state(vm, operation or event, set(VM_STATES.states_for(event)))
    set_state(node, tx, vm, VM_STATES.next(vm.state, event), **columns)
    return vm


def set_state(node: Node, tx: AsyncSession, vm: VmInstanceModel, state: str, **columns: Any) -> None:
    """Put a VM into a state: an undo takes it back whence no event leads."""
    old = vm.state
    vm.state = str(state)
    for name, value in columns.items():
        setattr(vm, name, value)
    if old != vm.state:
        after_commit(tx, lambda: _announce(node, vm, old))


def _announce(node: Node, vm: VmInstanceModel, old: str) -> None:
    node.bus.publish(VmStateChanged(vm_uuid=vm.uuid, old_state=old, new_state=vm.state, inventory=view(vm)))


async def internal_id(tx: AsyncSession, vm_uuid: str) -> int:
    """The VM's small number; the same when asked again."""
    known = await tx.scalar(select(VmSequenceModel).where(VmSequenceModel.vm_instance_uuid == vm_uuid))
    if known is None:
        known = VmSequenceModel(vm_instance_uuid=vm_uuid)
        tx.add(known)
        await tx.flush()
    return known.id


def new_mac() -> str:
    """A random MAC address under fa: (locally administered, as the original's); the table refuses a double."""
    return "fa:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5))


async def take_quota(tx: AsyncSession, vm: VmInstanceModel, account_uuid: str) -> None:
    """Count a VM and what it runs with for its account."""
    await quota.take(tx, account_uuid, TOTAL, 1, key=vm.uuid)
    await take_running_quota(tx, vm, account_uuid)


async def take_running_quota(tx: AsyncSession, vm: VmInstanceModel, account_uuid: str | None = None) -> None:
    """Count a VM that is about to run, with its CPUs and memory."""
    account = account_uuid or await owner_of(tx, vm.uuid) or ADMIN_ACCOUNT_UUID
    await quota.take(tx, account, NUMBER, 1, key=vm.uuid)
    await quota.take(tx, account, CPU, vm.cpu_num, key=vm.uuid)
    await quota.take(tx, account, MEMORY, vm.memory_size, key=vm.uuid)


async def give_running_quota(tx: AsyncSession, vm: VmInstanceModel) -> None:
    """Give back what a VM that does not run was counted for."""
    account = await owner_of(tx, vm.uuid) or ADMIN_ACCOUNT_UUID
    await quota.give(tx, account, NUMBER, 1, key=vm.uuid)
    await quota.give(tx, account, CPU, vm.cpu_num, key=vm.uuid)
    await quota.give(tx, account, MEMORY, vm.memory_size, key=vm.uuid)


async def forget_vm(tx: AsyncSession, vm_uuid: str) -> None:
    """Delete the VM's row and everything of it in the database; repeated, nothing more happens."""
    vm = await tx.get(VmInstanceModel, vm_uuid)
    if vm is None:
        return
    account = await owner_of(tx, vm_uuid) or ADMIN_ACCOUNT_UUID
    await give_running_quota(tx, vm)
    await quota.give(tx, account, TOTAL, 1, key=vm_uuid)
    for nic in await tx.scalars(select(VmNicModel).where(VmNicModel.vm_instance_uuid == vm_uuid)):
        await disown(tx, nic.uuid)
    await drop_tags(tx, vm_uuid)
    await disown(tx, vm_uuid)
    await tx.execute(delete(VmSequenceModel).where(VmSequenceModel.vm_instance_uuid == vm_uuid))
    await tx.delete(vm)
