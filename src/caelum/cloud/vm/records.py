"""Changes of a VM's records that several workflows share. Each runs inside its caller's transaction."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud import quota
from caelum.cloud.ownership import disown, owner_of
from caelum.cloud.vm.api import NOT_IN_CORRECT_STATE, VmInstanceInventory, VmStateChanged
from caelum.cloud.vm.model import VM_STATES, VmInstanceModel, VmNicModel, VmSequenceModel, VmState
from caelum.cloud.vm.specs import read_vm
from caelum.cloud.volume import extension as volume
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.database import after_commit, conflict_insert
from caelum.kernel.errors import CloudError, not_found
from caelum.kernel.node import Node
from caelum.kernel.prepared import Prepared
from caelum.kernel.rows import delete_rows, read_rows, related, update_row
from caelum.kernel.tag import drop_tags
from caelum.kernel.views import view

TOTAL = "vm.totalNum"
NUMBER = "vm.num"
"""How many run; `TOTAL` counts them all."""
CPU = "vm.cpuNum"
MEMORY = "vm.memorySize"
NO_ADDRESS = dict.fromkeys(("used_ip_uuid", "ip", "netmask", "gateway"))
"""What a NIC's row says of its address when it has none."""


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
    node: Node,
    tx: AsyncSession,
    vm: VmInstanceModel | str,
    event: str,
    *,
    operation: str | None = None,
    **columns: Any,
) -> VmInstanceModel:
    """Take the VM, given by its UUID or as this transaction has read it, through `event` of its state machine and set
    columns; the VM as it is then. Raises VM.1010 when the state forbids it. The news goes out when the transaction is
    committed.
    """
    if isinstance(vm, str):
        vm = await read_vm(tx, vm, lock=True)
    if not VM_STATES.allows(vm.state, event):
        require_state(vm, operation or event, set(VM_STATES.states_for(event)))
    return await set_state(node, tx, vm, VM_STATES.next(vm.state, event), **columns)


async def move_unseen(
    tx: AsyncSession, vm_uuid: str, state: VmState, event: str, **columns: Any
) -> VmInstanceModel | None:
    """The same without a look, for a VM that should be in this state, which allows the event: its row alone, and the
    caller has the news to tell. None, and nothing is done, when it is in another state.
    """
    values = {"state": str(VM_STATES.next(state, event)), **columns}
    return await update_row(tx, VmInstanceModel, vm_uuid, values, state=str(state))


async def set_state(node: Node, tx: AsyncSession, vm: VmInstanceModel, state: str, **columns: Any) -> VmInstanceModel:
    """Put a VM, as this transaction has read it, into a state: an undo takes it back whence no event leads."""
    row = await update_row(tx, VmInstanceModel, vm.uuid, {"state": str(state), **columns})
    if row is None:
        raise not_found("VmInstanceVO", vm.uuid)
    now = with_related(row, vm)
    if vm.state != now.state:
        after_commit(tx, lambda: announce(node, view(now), vm.state))
    return now


def with_related(row: VmInstanceModel, vm: VmInstanceModel) -> VmInstanceModel:
    """A row of a VM with what is known of its NICs, drives and volumes."""
    known = {name: vm.__dict__[name] for name in ("vm_nics", "vm_cd_roms", "all_volumes") if name in vm.__dict__}
    return related(row, **known)


def announce(node: Node, vm: VmInstanceInventory, old: str) -> None:
    """Tell that a VM has left a state; to be called once that is committed."""
    node.bus.publish(VmStateChanged(vm_uuid=vm.uuid, old_state=old, new_state=vm.state, inventory=vm))


async def internal_id(tx: AsyncSession, vm_uuid: str) -> int:
    """The VM's small number; the same when asked again."""
    return int((await _numbering().rows(tx, vm_instance_uuid=vm_uuid))[0][0])


@lru_cache
def _numbering() -> Prepared:
    statement = conflict_insert(VmSequenceModel)
    known = {"vm_instance_uuid": statement.excluded.vm_instance_uuid}
    numbering = statement.on_conflict_do_update(index_elements=["vm_instance_uuid"], set_=known)
    return Prepared(numbering.returning(statement.table.c.id), "vm_instance_uuid")


def new_mac() -> str:
    """A random MAC address under fa: (locally administered, as the original's); the table refuses a double."""
    return "fa:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(5))


async def take_quota(
    tx: AsyncSession, vm: VmInstanceModel, account_uuid: str, disks: Mapping[str, Mapping[str, int]]
) -> None:
    """Count a VM and what it runs with for its account, and its disks, by their UUIDs."""
    await quota.take_under(tx, account_uuid, {vm.uuid: {TOTAL: 1, **_running(vm)}, **disks})


async def take_running_quota(tx: AsyncSession, vm: VmInstanceModel, *, freely: bool = False) -> None:
    """Count a VM that is about to run, with its CPUs and memory; `freely`, beyond any quota, when it runs already."""
    account = await owner_of(tx, vm.uuid) or ADMIN_ACCOUNT_UUID
    await quota.take_all(tx, account, _running(vm), key=vm.uuid, freely=freely)


def _running(vm: VmInstanceModel) -> dict[str, int]:
    return {NUMBER: 1, CPU: vm.cpu_num, MEMORY: vm.memory_size}


async def give_running_quota(tx: AsyncSession, vm_uuid: str) -> None:
    """Give back what a VM that does not run was counted for."""
    await quota.give_all(tx, [NUMBER, CPU, MEMORY], vm_uuid)


async def forget_vm(tx: AsyncSession, vm_uuid: str, *disks: str) -> None:
    """Delete the VM's row and everything of it in the database, with what these disks of it are counted for that have
    no record; repeated, nothing more happens.
    """
    nics = await read_rows(tx, VmNicModel, vm_instance_uuid=vm_uuid)
    if not await delete_rows(tx, VmInstanceModel, uuid=vm_uuid):
        return
    of_disks = [volume.NUMBER, volume.CAPACITY] if disks else []
    await quota.give_all(tx, [TOTAL, NUMBER, CPU, MEMORY, *of_disks], vm_uuid, *disks)
    await drop_tags(tx, vm_uuid)
    await disown(tx, vm_uuid, *(one.uuid for one in nics))
    await delete_rows(tx, VmSequenceModel, vm_instance_uuid=vm_uuid)
