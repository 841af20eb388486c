"""What the clients of a run ask for: VMs, volumes and NICs that come, change and go, in an order of the seed.

Invariant: a client only asks for what exists as far as anybody was told; whether it is possible in the state of the
moment is the cloud's to say.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from caelum.testing.simulation.client import Call, Client

Operation = Callable[["Workload", Client], Awaitable[Call | None]]


class Workload:
    """The clients' common knowledge, and the calls that they made."""

    def __init__(self, chance: random.Random, names: dict[str, str]) -> None:
        self.chance, self.names = chance, names
        self.calls: list[Call] = []
        self.vms: list[str] = []
        self.volumes: list[str] = []

    async def play(self, client: Client, count: int) -> None:
        """Let a client ask for `count` things, one after another."""
        await client.open()
        operations, weights = zip(*_OPERATIONS, strict=True)
        for _ in range(count):
            await asyncio.sleep(self.chance.expovariate(1 / 2))
            [operation] = self.chance.choices(operations, weights)
            call = await operation(self, client)
            if call is not None:
                self.calls.append(call)
        await client.close()

    def a_vm(self) -> str | None:
        """Some VM; mostly a young one, so that clients get into each other's way."""
        return self.chance.choice(self.vms[-4:]) if self.vms else None

    def a_volume(self) -> str | None:
        """Some data volume."""
        return self.chance.choice(self.volumes[-3:]) if self.volumes else None


async def create_vm(world: Workload, client: Client) -> Call | None:
    """A new VM, sometimes with a data volume."""
    names = world.names
    more = {"dataDiskOfferingUuids": [names["disk_offering"]]} if world.chance.random() < 0.3 else {}
    call = await client.call(
        "CreateVmInstance", name=f"vm{len(world.calls)}", imageUuid=names["image"],
        instanceOfferingUuid=names["offering"], l3NetworkUuids=[names["l3"]], **more,
    )  # fmt: skip
    if call.succeeded:
        call.about = str(call.inventory()["uuid"])
        world.vms.append(call.about)
    return call


def on_vm(name: str, **parameters: str) -> Operation:
    """An operation on some VM."""

    async def ask(world: Workload, client: Client) -> Call | None:
        vm = world.a_vm()
        return None if vm is None else await client.call(name, vm, uuid=vm, **parameters)

    return ask


async def create_volume(world: Workload, client: Client) -> Call | None:
    """A new data volume."""
    offering = world.names["disk_offering"]
    call = await client.call("CreateDataVolume", name=f"disk{len(world.calls)}", diskOfferingUuid=offering)
    if call.succeeded:
        call.about = str(call.inventory()["uuid"])
        world.volumes.append(call.about)
    return call


async def attach_volume(world: Workload, client: Client) -> Call | None:
    """Some volume to some VM."""
    vm, volume = world.a_vm(), world.a_volume()
    if vm is None or volume is None:
        return None
    return await client.call("AttachDataVolumeToVm", volume, vmInstanceUuid=vm, volumeUuid=volume)


def on_volume(name: str) -> Operation:
    """An operation on some volume."""

    async def ask(world: Workload, client: Client) -> Call | None:
        volume = world.a_volume()
        return None if volume is None else await client.call(name, volume, uuid=volume)

    return ask


async def attach_nic(world: Workload, client: Client) -> Call | None:
    """A NIC on the second network to some VM."""
    vm = world.a_vm()
    if vm is None:
        return None
    return await client.call("AttachL3NetworkToVm", vm, vmInstanceUuid=vm, l3NetworkUuid=world.names["other_l3"])


async def detach_nic(world: Workload, client: Client) -> Call | None:
    """Some NIC of some VM."""
    vm = world.a_vm()
    found = [] if vm is None else await client.query("QueryVmNic", f"vmInstanceUuid={vm}")
    if not found:
        return None
    nic = world.chance.choice(sorted(str(one["uuid"]) for one in found))
    return await client.call("DetachL3NetworkFromVm", vm, vmNicUuid=nic)


_OPERATIONS: list[tuple[Operation, float]] = [
    (create_vm, 5),
    (on_vm("StartVmInstance"), 4),
    (on_vm("StopVmInstance"), 3),
    (on_vm("StopVmInstance", type="cold"), 2),
    (on_vm("RebootVmInstance"), 3),
    (on_vm("PauseVmInstance"), 1),
    (on_vm("ResumeVmInstance"), 1),
    (on_vm("DestroyVmInstance"), 2),
    (on_vm("RecoverVmInstance"), 1),
    (on_vm("ExpungeVmInstance"), 1.5),
    (create_volume, 2),
    (attach_volume, 3),
    (on_volume("DetachDataVolumeFromVm"), 2),
    (on_volume("DeleteDataVolume"), 0.7),
    (on_volume("ExpungeDataVolume"), 0.7),
    (attach_nic, 2),
    (detach_nic, 2),
]
