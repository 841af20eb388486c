"""Every operation in every state: allowed, or refused with VM.1010 and nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.service.audit_clouds import AuditedCloud, audited_cloud

from caelum.cloud.vm.api import (
    NOT_IN_CORRECT_STATE,
    AttachL3NetworkToVm,
    ChangeInstanceOffering,
    DeleteVmStaticIp,
    DestroyVmInstance,
    DetachL3NetworkFromVm,
    ExpungeVmInstance,
    PauseVmInstance,
    RebootVmInstance,
    RecoverVmInstance,
    ResumeVmInstance,
    SetVmStaticIp,
    StartVmInstance,
    StopVmInstance,
    UpdateVmInstance,
)
from caelum.cloud.vm.model import VM_STATES, VmState
from caelum.cloud.volume.api import AttachDataVolumeToVm, CreateDataVolume, DetachDataVolumeFromVm
from caelum.kernel.errors import CloudError
from caelum.kernel.message import Message

DEVICES = frozenset({"Running", "Stopped", "Paused"})
ALLOWED: dict[str, frozenset[str]] = {
    "start": frozenset({"Created", "Running", "Stopped", "Crashed"}),
    "stop": frozenset({"Running", "Stopped", "Paused", "Unknown", "Crashed", "NoState"}),
    "reboot": frozenset({"Running", "Crashed", "NoState"}),
    "pause": frozenset({"Running"}),
    "resume": frozenset({"Paused"}),
    "destroy": frozenset(str(one) for one in VmState if VM_STATES.allows(one, "destroying")),
    "recover": frozenset({"Destroyed"}),
    "expunge": frozenset({"Destroyed"}),
    "attach volume": DEVICES,
    "detach volume": DEVICES,
    "attach nic": DEVICES,
    "detach nic": DEVICES,
    "set static ip": frozenset({"Stopped"}),
    "delete static ip": DEVICES,
    "change offering": frozenset({"Stopped"}),
    "change size": frozenset({"Stopped", "Created"}),
}
Operation = Callable[[], Message[Any]]


async def operations(cloud: AuditedCloud) -> dict[str, Operation]:
    """Every operation on the cloud's running VM, with what it needs."""
    world, uuid = cloud.made, cloud.vm.uuid
    second, address = await world.add_l3(2), await world.free_address()
    free = (await world.api(CreateDataVolume(name="free", disk_offering_uuid=world.disk_offering))).uuid
    return {
        "start": lambda: StartVmInstance(uuid=uuid),
        "stop": lambda: StopVmInstance(uuid=uuid, type="cold"),
        "reboot": lambda: RebootVmInstance(uuid=uuid),
        "pause": lambda: PauseVmInstance(uuid=uuid),
        "resume": lambda: ResumeVmInstance(uuid=uuid),
        "destroy": lambda: DestroyVmInstance(uuid=uuid),
        "recover": lambda: RecoverVmInstance(uuid=uuid),
        "expunge": lambda: ExpungeVmInstance(uuid=uuid),
        "attach volume": lambda: AttachDataVolumeToVm(vm_instance_uuid=uuid, volume_uuid=free),
        "detach volume": lambda: DetachDataVolumeFromVm(uuid=cloud.volume.uuid),
        "attach nic": lambda: AttachL3NetworkToVm(vm_instance_uuid=uuid, l3_network_uuid=second),
        "detach nic": lambda: DetachL3NetworkFromVm(vm_nic_uuid=cloud.vm.vm_nics[0].uuid),
        "set static ip": lambda: SetVmStaticIp(vm_instance_uuid=uuid, l3_network_uuid=world.l3, ip=address),
        "delete static ip": lambda: DeleteVmStaticIp(vm_instance_uuid=uuid, l3_network_uuid=world.l3),
        "change offering": lambda: ChangeInstanceOffering(vm_instance_uuid=uuid, instance_offering_uuid=world.offering),
        "change size": lambda: UpdateVmInstance(uuid=uuid, cpu_num=2),
    }


def codes(error: CloudError) -> Iterator[str]:
    """The codes of an error and of all causes below it."""
    one = error.to_wire()
    while one is not None:
        yield one.code
        one = one.cause  # type: ignore[assignment]


async def enter(cloud: AuditedCloud, state: str) -> None:
    """Put the VM into a state, on its host or off it, and its machine too where a test needs it."""
    away = state in ("Created", "Stopped", "Destroyed", "Expunging", "Error")
    place = "NULL, last_host_uuid = host_uuid" if away else "host_uuid"
    await cloud.sql(f"UPDATE vm_instance SET state = :state, host_uuid = {place} WHERE uuid = :vm",
                    state=state, vm=cloud.vm.uuid)  # fmt: skip
    if away:
        cloud.world.vms.pop(cloud.vm.uuid, None)
    elif state in ("Paused", "Crashed"):
        cloud.world.vms[cloud.vm.uuid].state = state
    if state == "Destroyed":
        await cloud.sql("UPDATE volume SET status = 'Deleted' WHERE uuid = :root", root=cloud.vm.root_volume_uuid)


async def state_of(cloud: AuditedCloud) -> str:
    return str(await cloud.one("SELECT state FROM vm_instance WHERE uuid = :vm", vm=cloud.vm.uuid))


@pytest.mark.timeout(300)
async def test_every_operation_in_every_state() -> None:
    async with audited_cloud() as cloud:
        wanted = await operations(cloud)
        assert wanted.keys() == ALLOWED.keys()
        await cloud.remember()
        for state in map(str, VmState):
            await enter(cloud, state)
            for name, operation in wanted.items():
                if state not in ALLOWED[name]:
                    await assert_refused(cloud, name, operation, state)
            for name, operation in wanted.items():
                if state in ALLOWED[name]:
                    await cloud.restore()
                    await enter(cloud, state)
                    await assert_allowed(cloud, name, operation, state)
            await cloud.restore()


async def assert_refused(cloud: AuditedCloud, name: str, operation: Operation, state: str) -> None:
    with pytest.raises(CloudError) as refused:
        await cloud.made.api(operation())
    wire = refused.value.to_wire()
    assert NOT_IN_CORRECT_STATE.code in list(codes(refused.value)), f"{name} in {state}: {wire}"
    assert wire.elaboration, f"{name} in {state} has no remedy"
    assert f"state[{state}]" in str(wire.details)
    assert await state_of(cloud) == state, f"{name} changed {state}"


async def assert_allowed(cloud: AuditedCloud, name: str, operation: Operation, state: str) -> None:
    try:
        await cloud.made.api(operation())
    except CloudError as error:
        pytest.fail(f"{name} in {state}: {error.to_wire()}")
