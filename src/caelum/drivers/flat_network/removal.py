"""Taking services off hosts; what fails is done later.

Invariant: a removal that comes late takes nothing away that is needed again: it asks first whether the network is
served there, or whether the guest is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caelum.agent.protocol import Command, Empty, ReleaseDhcp, ReleaseMetadata
from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.cloud.host.events import HostStatusChanged
from caelum.cloud.l2.messages import GetL2
from caelum.cloud.l3.api import L3NetworkInventory
from caelum.cloud.vm.messages import GetVmSpecs
from caelum.drivers.flat_network.commands import Guest, guests_by_network, release, remove
from caelum.drivers.flat_network.networks import Networks
from caelum.drivers.kvm.remote import all_on_host
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.gc import gc_runner
from caelum.kernel.node import Node
from caelum.kernel.together import together

REMOVE = "flat.remove-services"
RELEASE = "flat.release-guests"
TIMEOUT = 120.0
PARALLELISM = 50
"""Hosts that are changed at once."""


async def send(node: Node, host_uuid: str, commands: Sequence[Command[Empty]]) -> None:
    """Run commands on a host, one after another."""
    await all_on_host(node.bus, host_uuid, commands, timeout=TIMEOUT)


async def remove_services(
    node: Node, l3: L3NetworkInventory, services: frozenset[str], host_uuids: Sequence[str]
) -> None:
    """Take services off hosts. One that is away does it later; one that refuses stops us, once all were asked."""
    bridge = (await node.bus.call(GetL2(l2_network_uuid=l3.l2_network_uuid))).bridge
    refusals = []
    for start in range(0, len(host_uuids), PARALLELISM):
        chunk = host_uuids[start : start + PARALLELISM]
        refusals += await together(*(_remove_on(node, host, l3.uuid, bridge, services) for host in chunk))
    errors = [one for one in refusals if one is not None]
    if errors:
        raise errors[0]


async def _remove_on(
    node: Node, host_uuid: str, l3_uuid: str, bridge: str, services: frozenset[str]
) -> CloudError | None:
    try:
        await send(node, host_uuid, remove(l3_uuid, bridge, services))
    except CloudError as error:
        if error.code != HOST_DISCONNECTED.code:
            return error
        context = {"host_uuid": host_uuid, "l3_uuid": l3_uuid, "bridge": bridge, "services": sorted(services)}
        await later(node, REMOVE, f"{l3_uuid}-{host_uuid}", context)
    return None


async def release_guests(node: Node, host_uuid: str, l3_uuid: str, guests: Sequence[Guest]) -> None:
    """Serve guests no longer. Never fails: a host that is away forgets them at its connect, one that refuses later."""
    try:
        await send(node, host_uuid, release(l3_uuid, guests))
    except CloudError as error:
        if error.code in (HOST_DISCONNECTED.code, RESOURCE_NOT_FOUND.code):
            return
        nics = {one.nic.nic_uuid: {"mac": one.nic.mac, "ip": one.ip} for one in guests}
        context = {"host_uuid": host_uuid, "l3_uuid": l3_uuid, "nics": nics}
        await later(node, RELEASE, f"{l3_uuid}-{host_uuid}-{'-'.join(sorted(nics))}"[:1000], context)


async def later(node: Node, runner: str, key: str, context: dict[str, Any]) -> None:
    """Leave it to the garbage collector, at the latest when the host connects."""
    match = {"host_uuid": context["host_uuid"], "new_status": "Connected"}
    async with node.db.transaction() as tx:
        await node.gc.submit(tx, f"{runner}-{key}", runner, context, on_event=HostStatusChanged, match=match)


@gc_runner(REMOVE)
async def run_remove(node: Node, context: dict[str, Any]) -> bool:
    """Remove services from a host that could not do it before, unless the network is served again."""
    networks = Networks(node)
    gone = set(context["services"])
    for l3 in await networks.served([context["l3_uuid"]]):
        gone -= await networks.services(l3)
    return await _done(node, context["host_uuid"], remove(context["l3_uuid"], context["bridge"], gone))


@gc_runner(RELEASE)
async def run_release(node: Node, context: dict[str, Any]) -> bool:
    """Forget guests that a host could not forget before, unless they are back."""
    specs = (await node.bus.call(GetVmSpecs(host_uuid=context["host_uuid"]))).specs
    back = {one.nic.nic_uuid for one in guests_by_network(specs).get(context["l3_uuid"], [])}
    gone = [nic for uuid, nic in context["nics"].items() if uuid not in back]
    commands: list[Command[Empty]] = [
        ReleaseDhcp(l3_uuid=context["l3_uuid"], macs=[one["mac"] for one in gone]),
        ReleaseMetadata(l3_uuid=context["l3_uuid"], ips=[one["ip"] for one in gone if one["ip"]]),
    ]
    return await _done(node, context["host_uuid"], commands if gone else [])


async def _done(node: Node, host_uuid: str, commands: Sequence[Command[Empty]]) -> bool:
    try:
        await send(node, host_uuid, commands)
    except CloudError as error:
        if error.code != RESOURCE_NOT_FOUND.code:
            raise
    return True
