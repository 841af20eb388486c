"""What the workflows of one VM share: its queue, its description, and looking at the host when in doubt."""

from __future__ import annotations

import logging
from typing import Generic, TypeVar

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.events import HostStatusChanged
from caelum.cloud.host.messages import (
    AwaitHost,
    DestroyAndReleaseVmOnHost,
    DestroyVmOnHost,
    GetVmStatesOnHost,
    PrepareAndStartVmOnHost,
    StartVmOnHost,
)
from caelum.cloud.host.spec import HostOrder, VmSpec
from caelum.cloud.primary_storage.messages import CacheImage
from caelum.cloud.vm.api import VmInstanceInventory
from caelum.cloud.vm.extension import VmResourceProvider
from caelum.cloud.vm.messages import DestroyLeftover
from caelum.cloud.vm.model import VmCdRomModel, VmInstanceModel, VmState
from caelum.cloud.vm.specs import VmRecords, describe, read_vm, records_of
from caelum.cloud.volume.messages import GetVolumes
from caelum.kernel import context, journal
from caelum.kernel.errors import UNDELIVERABLE, CloudError
from caelum.kernel.gc import gc_runner
from caelum.kernel.node import Node
from caelum.kernel.rows import read_rows, update_rows
from caelum.kernel.views import view
from caelum.kernel.workflow import Workflow

log = logging.getLogger(__name__)

DESTROY_LATER = "vm.destroy-on-host"
GC_INTERVAL = 10
IN_ONE_GO = 180.0
"""Seconds for a destruction with all that comes after it; then the parts are tried one by one, each with its own."""


class VmContext(msgspec.Struct, kw_only=True):
    """What every VM workflow carries. `seen` is the state that an undo found on the host."""

    vm_uuid: str
    host_uuid: str | None = None
    former_state: str = ""
    seen: str | None = None


C = TypeVar("C", bound=VmContext)
R = TypeVar("R")
LONG = 6 * 3600.0
"""Seconds for a step that copies data; the API's own time-out ends it earlier."""


class VmWork(Workflow[C, R], Generic[C, R], abstract=True):
    """A workflow about one VM, in that VM's queue."""

    def subject(self, ctx: C) -> str:
        return ctx.vm_uuid

    def queue(self, ctx: C) -> str:
        return queue_of(ctx.vm_uuid)


class VmFlow(VmWork[C, VmInstanceInventory], Generic[C], abstract=True):
    """Its result is the VM: as it was completed, where that is known, else as it is now."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.final: VmInstanceInventory | None = None
        """The VM as the completion left it."""

    async def result(self, ctx: C) -> VmInstanceInventory:
        return self.final or await inventory_of(self.node, ctx.vm_uuid)

    def known_result(self) -> tuple[VmInstanceInventory] | None:
        return None if self.final is None else (self.final,)


def queue_of(vm_uuid: str) -> str:
    """The work queue of a VM: one operation at a time."""
    return f"vm-{vm_uuid}"


async def inventory_of(node: Node, vm_uuid: str) -> VmInstanceInventory:
    """The VM as clients see it. Raises SYS.1003."""
    async with node.db.read() as session:
        answer: VmInstanceInventory = view(await read_vm(session, vm_uuid))
        return answer


async def prepare_on(node: Node, vm_uuid: str, host_uuid: str, records: VmRecords | None = None) -> VmSpec:
    """Have networks and services of a VM ready on a host. Returns the complete description, made from its `records`
    when they are at hand.
    """
    await node.bus.call(AwaitHost(host_uuid=host_uuid))
    spec = await describe(node, records or await records_of(node, vm_uuid), realise_on=host_uuid)
    await node.extensions.each(VmResourceProvider, "prepare", spec, host_uuid)
    return spec


async def plan_start(node: Node, vm_uuid: str, host_uuid: str, records: VmRecords | None = None) -> VmSpec:
    """The same for a VM that is started next: what its host can do in one go with that is left to `start_on`, and so
    are the services, which follow from what is true when the host's turn comes. A host that is being connected is
    waited for then.
    """
    orders: list[HostOrder] = []
    spec = await describe(node, records or await records_of(node, vm_uuid), realise_on=host_uuid, orders=orders)
    return msgspec.structs.replace(spec, before=orders)


async def start_on(node: Node, host_uuid: str, planned: VmSpec) -> None:
    """Start a VM as `plan_start` described it."""
    try:
        await node.bus.call(PrepareAndStartVmOnHost(host_uuid=host_uuid, spec=planned))
    except CloudError as error:
        if error.kind is not UNDELIVERABLE:
            raise
        # The host's owner is a server of the version before, during an upgrade.
        spec = await prepare_on(node, planned.vm_uuid, host_uuid)
        await node.bus.call(StartVmOnHost(host_uuid=host_uuid, spec=spec))


async def bring_isos(node: Node, vm_uuid: str, host_uuid: str) -> None:
    """Have the ISO of each of the VM's drives where its root disk is, and its place in the drive's record."""
    drives = await read_rows(node.db.once, VmCdRomModel, order=["device_id"], vm_instance_uuid=vm_uuid)
    drives = [one for one in drives if one.iso_uuid is not None]
    if not drives:
        return
    volumes = (await node.bus.call(GetVolumes(vm_instance_uuid=vm_uuid))).volumes
    storage = next(one.primary_storage_uuid or "" for one in volumes if one.type == "Root")
    for drive in drives:
        message = CacheImage(primary_storage_uuid=storage, host_uuid=host_uuid, image_uuid=drive.iso_uuid or "")
        cached = await node.bus.call(message, timeout=LONG)
        async with node.db.transaction() as tx:
            await update_rows(tx, VmCdRomModel, {"iso_install_path": cached.install_path}, uuid=drive.uuid)


async def release_from(node: Node, vm_uuid: str, host_uuid: str, records: VmRecords | None = None) -> None:
    """Take back what `prepare_on` made; nothing happens when it made nothing.

    For a VM whose records are gone nothing is left to do: a host that connects loses what is no VM's.
    """
    await node.bus.call(AwaitHost(host_uuid=host_uuid))
    if records is None:
        if not await node.resources.exists("VmInstanceVO", vm_uuid):
            return
        records = await records_of(node, vm_uuid)
    spec = await describe(node, records)
    await node.extensions.each(VmResourceProvider, "release", spec, host_uuid)


async def leave_host(node: Node, vm_uuid: str, host_uuid: str, records: VmRecords | None = None) -> None:
    """The VM is not on the host any more: first in the records, or else a host that connects meanwhile would be given
    again what is released.
    """
    async with node.db.transaction() as tx:
        await update_rows(tx, VmInstanceModel, {"host_uuid": None}, uuid=vm_uuid, host_uuid=host_uuid)
    await release_from(node, vm_uuid, host_uuid, records)


async def state_on_host(node: Node, vm_uuid: str, host_uuid: str) -> str:
    """The VM's true state: what its host says, Stopped when it is not there, Unknown when the host does not answer."""
    try:
        reply = await node.bus.call(GetVmStatesOnHost(host_uuid=host_uuid, vm_uuids=[vm_uuid]), timeout=30)
    except CloudError:
        return VmState.UNKNOWN
    return reply.states.get(vm_uuid, VmState.STOPPED)


async def destroy_on_host(node: Node, vm_uuid: str, host_uuid: str) -> None:
    """Remove the machine from its host, now or, when the host cannot be reached, as soon as it can."""
    try:
        await node.bus.call(DestroyVmOnHost(host_uuid=host_uuid, vm_uuid=vm_uuid))
    except CloudError:
        async with node.db.transaction() as tx:
            await destroy_later(node, tx, vm_uuid, host_uuid)


async def destroy_and_release(node: Node, vm_uuid: str, host_uuid: str, records: VmRecords) -> bool:
    """Remove the machine from its host and take back what `prepare_on` made, in one go. False when that did not
    succeed, or a provider has more to do: then `destroy_on_host` and `release_from` do it, which may be done twice.
    """
    try:
        spec = await describe(node, records)
        orders: list[HostOrder] = []
        for left in await node.extensions.each(VmResourceProvider, "release_orders", spec, host_uuid):
            if left is None:
                return False
            orders += left
        order = DestroyAndReleaseVmOnHost(host_uuid=host_uuid, vm_uuid=vm_uuid, orders=orders)
        await node.bus.call(order, timeout=IN_ONE_GO)
    except CloudError as error:
        log.info("VM %s does not leave host %s in one go: %s", vm_uuid, host_uuid, error)
        return False
    return True


async def destroy_later(node: Node, tx: AsyncSession, vm_uuid: str, host_uuid: str) -> None:
    """Leave the removal of a machine from its host to the garbage collector: soon, and when the host is back."""
    name = f"{DESTROY_LATER}-{vm_uuid}-{host_uuid}"
    job = {"vm_uuid": vm_uuid, "host_uuid": host_uuid, "run": journal.asking_run()}
    match = {"host_uuid": host_uuid, "new_status": "Connected"}
    await node.gc.submit(tx, name, DESTROY_LATER, job, interval=GC_INTERVAL, on_event=HostStatusChanged, match=match)


@gc_runner(DESTROY_LATER)
async def _destroy_on_host(node: Node, job: dict[str, str | None]) -> bool:
    """The host refuses what the run that could not destroy it asked for before, and may still be at."""
    run = job.get("run")
    async with node.db.read() as session:
        attempt = None if run is None else await journal.attempt_of(session, run)
    fence = None if attempt is None else f"{run}:{attempt}"
    with context.use(msgspec.structs.replace(context.current(), fence=fence)):
        # The job may be at another node than the VM, whose turns are those of its own node.
        return await node.bus.call(DestroyLeftover(vm_uuid=job["vm_uuid"] or "", host_uuid=job["host_uuid"] or ""))
