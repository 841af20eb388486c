"""Attaching and detaching network services: the record, and what the drivers do on hosts.

Invariant: a service is served on hosts only while it is recorded, so a host that connects meanwhile does what is right.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.api import L3NetworkInventory, NetworkServiceL3NetworkRefInventory
from caelum.cloud.l3.messages import ChangeL3Services, GetL3
from caelum.cloud.network_service.extension import NetworkServiceDriver
from caelum.cloud.network_service.model import NetworkServiceProviderL2RefModel
from caelum.kernel.bus import Bus
from caelum.kernel.workflow import Run, Workflow, step


class Chosen(msgspec.Struct, frozen=True):
    """Service types of one provider."""

    provider_uuid: str
    provider_type: str
    services: list[str]


class ServicesContext(msgspec.Struct):
    """An L3 network, and the services that come or go."""

    l3_network_uuid: str
    l2_network_uuid: str
    chosen: list[Chosen]


class _ServicesFlow(Workflow[ServicesContext, L3NetworkInventory], abstract=True):
    """What attaching and detaching share."""

    def subject(self, ctx: ServicesContext) -> str:
        return ctx.l3_network_uuid

    def queue(self, ctx: ServicesContext) -> str:
        return f"network-service-{ctx.l3_network_uuid}"

    async def result(self, ctx: ServicesContext) -> L3NetworkInventory:
        """The network with its services."""
        return await _l3(self.node.bus, ctx)

    def _driver(self, one: Chosen) -> NetworkServiceDriver:
        return self.node.drivers.get(NetworkServiceDriver, one.provider_type)


class AttachServicesFlow(_ServicesFlow):
    """Ask the drivers, record the services, let the drivers begin."""

    name = "network-service.attach"
    rehearsal = "network_service_attach"

    @step(timeout=60, no_undo="it only looks")
    async def check(self, run: Run[ServicesContext]) -> None:
        """What a driver cannot serve is refused before anything is recorded."""
        l3 = await _l3(run.bus, run.ctx)
        for one in run.ctx.chosen:
            await self._driver(one).check(l3, one.services)

    @step(timeout=60)
    async def record(self, run: Run[ServicesContext]) -> None:
        """A service type that another provider serves is refused here."""
        await run.bus.call(ChangeL3Services(l3_network_uuid=run.ctx.l3_network_uuid, attach=_refs(run.ctx)))

    @record.undo
    async def forget(self, run: Run[ServicesContext]) -> None:
        """The services are not recorded."""
        await run.bus.call(ChangeL3Services(l3_network_uuid=run.ctx.l3_network_uuid, detach=_refs(run.ctx)))

    @step(timeout=600, progress=90)
    async def provide(self, run: Run[ServicesContext]) -> None:
        """The drivers begin."""
        l3 = await _l3(run.bus, run.ctx)
        for one in run.ctx.chosen:
            await self._driver(one).attached(l3, one.services)

    @provide.undo
    async def withdraw(self, run: Run[ServicesContext]) -> None:
        """The drivers end."""
        l3 = await _l3(run.bus, run.ctx)
        for one in run.ctx.chosen:
            await self._driver(one).detached(l3, one.services)
            await self._driver(one).released(l3, one.services)

    async def complete(self, tx: AsyncSession, ctx: ServicesContext) -> None:
        """The providers are known to be on the L2 network."""
        row = NetworkServiceProviderL2RefModel
        for one in ctx.chosen:
            mine = (row.network_service_provider_uuid == one.provider_uuid, row.l2_network_uuid == ctx.l2_network_uuid)
            if await tx.scalar(select(row.id).where(*mine)) is None:
                tx.add(row(network_service_provider_uuid=one.provider_uuid, l2_network_uuid=ctx.l2_network_uuid))


class DetachServicesFlow(_ServicesFlow):
    """Forget the services, let the drivers end on hosts, give back what was kept for them."""

    name = "network-service.detach"
    rehearsal = "network_service_detach"
    pivot = "withdraw"

    @step(timeout=60)
    async def forget(self, run: Run[ServicesContext]) -> None:
        """A host that connects from here on does not serve them."""
        await run.bus.call(ChangeL3Services(l3_network_uuid=run.ctx.l3_network_uuid, detach=_refs(run.ctx)))

    @forget.undo
    async def record(self, run: Run[ServicesContext]) -> None:
        """The services are recorded as before."""
        await run.bus.call(ChangeL3Services(l3_network_uuid=run.ctx.l3_network_uuid, attach=_refs(run.ctx)))

    @step(timeout=600, progress=80)
    async def withdraw(self, run: Run[ServicesContext]) -> None:
        """Take them off the hosts."""
        l3 = await _l3(run.bus, run.ctx)
        for one in run.ctx.chosen:
            await self._driver(one).detached(l3, one.services)

    @withdraw.undo
    async def provide(self, run: Run[ServicesContext]) -> None:
        """Machines that use the network are served again."""
        l3 = await _l3(run.bus, run.ctx)
        for one in run.ctx.chosen:
            await self._driver(one).attached(l3, one.services)

    @step(timeout=60, no_undo="no host serves them any more")
    async def release(self, run: Run[ServicesContext]) -> None:
        """Addresses of servers go back."""
        l3 = await _l3(run.bus, run.ctx)
        for one in run.ctx.chosen:
            await self._driver(one).released(l3, one.services)


async def _l3(bus: Bus, ctx: ServicesContext) -> L3NetworkInventory:
    return (await bus.call(GetL3(l3_network_uuids=[ctx.l3_network_uuid]))).networks[0]


def _refs(ctx: ServicesContext) -> list[NetworkServiceL3NetworkRefInventory]:
    return [
        NetworkServiceL3NetworkRefInventory(
            l3_network_uuid=ctx.l3_network_uuid,
            network_service_provider_uuid=one.provider_uuid,
            network_service_type=kind,
        )
        for one in ctx.chosen
        for kind in one.services
    ]
