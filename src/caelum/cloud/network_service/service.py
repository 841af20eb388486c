"""Which provider serves what on which L3 network.

Invariant: what is recorded as attached is offered by the provider's driver; a driver that refuses leaves nothing
recorded. The L3 service keeps the records, and that a service type has one provider per network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.api import L3NetworkInventory
from caelum.cloud.l3.messages import GetL3
from caelum.cloud.network_service.api import (
    AttachNetworkServiceToL3Network,
    DetachNetworkServiceFromL3Network,
    GetNetworkServiceTypes,
    NetworkServiceProviderInventory,
    NetworkServiceTypesReply,
)
from caelum.cloud.network_service.cascade import ProviderL2RefCascade
from caelum.cloud.network_service.extension import NetworkServiceDriver
from caelum.cloud.network_service.flows import AttachServicesFlow, Chosen, DetachServicesFlow, ServicesContext
from caelum.cloud.network_service.messages import GetProvider
from caelum.cloud.network_service.model import (
    NetworkServiceProviderModel,
    NetworkServiceTypeModel,
)
from caelum.kernel.database import unique
from caelum.kernel.errors import OPERATION_ERROR, CloudError, invalid, not_found
from caelum.kernel.ids import derived_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.kernel.views import view, views


class NetworkServiceService(Service):
    """Owns providers, and attaches them to L3 networks."""

    name = "network_service"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(ProviderL2RefCascade(node))

    async def start(self) -> None:
        """Make the rows of new drivers, and bring the service types of known ones up to date."""
        async with self.node.db.transaction() as tx:
            for kind, driver in self.node.drivers.all(NetworkServiceDriver).items():
                await _ensure_provider(tx, kind, driver)

    @handles(AttachNetworkServiceToL3Network, queue="network-service-{l3_network_uuid}", repeatable=True)
    async def attach(self, msg: AttachNetworkServiceToL3Network) -> L3NetworkInventory:
        """Let providers serve; what they serve already stays as it is."""
        l3 = await self._l3(msg.l3_network_uuid)
        known = {(one.network_service_provider_uuid, one.network_service_type) for one in l3.network_services}
        fresh = []
        for one in await self._resolve(msg.network_services, l3):
            services = [kind for kind in one.services if (one.provider_uuid, kind) not in known]
            if services:
                fresh.append(msgspec.structs.replace(one, services=services))
        return await self._run(AttachServicesFlow, l3, fresh)

    @handles(DetachNetworkServiceFromL3Network, queue="network-service-{l3_network_uuid}", repeatable=True)
    async def detach(self, msg: DetachNetworkServiceFromL3Network) -> L3NetworkInventory:
        """Let providers end; what they do not serve counts as detached."""
        l3 = await self._l3(msg.l3_network_uuid)
        if msg.network_services is not None:
            gone = await self._resolve(msg.network_services, l3)
        else:
            gone = await self._attached(l3, msg.service)
        return await self._run(DetachServicesFlow, l3, gone)

    async def _run(
        self, flow: type[AttachServicesFlow | DetachServicesFlow], l3: L3NetworkInventory, chosen: list[Chosen]
    ) -> L3NetworkInventory:
        if not chosen:
            return l3
        ctx = ServicesContext(l3_network_uuid=l3.uuid, l2_network_uuid=l3.l2_network_uuid, chosen=chosen)
        return await self.node.workflows.run(flow, ctx, answers=True)

    async def _attached(self, l3: L3NetworkInventory, service: str | None) -> list[Chosen]:
        by_provider: dict[str, list[str]] = {}
        for one in l3.network_services:
            if service in (None, one.network_service_type):
                by_provider.setdefault(one.network_service_provider_uuid, []).append(one.network_service_type)
        if service is not None and not by_provider:
            raise CloudError(
                OPERATION_ERROR,
                f"L3 network[uuid:{l3.uuid}, name:{l3.name}] has no service[{service}]",
                service=service,
            )
        return await self._resolve(by_provider, l3)

    async def _resolve(self, named: Mapping[str, Iterable[str]], l3: L3NetworkInventory) -> list[Chosen]:
        """The providers behind UUIDs or types, each with service types that it offers."""
        async with self.db.read() as session:
            rows = views(await session.scalars(select(NetworkServiceProviderModel)))
        known = {key: row for row in rows for key in (row.uuid, row.type)}
        found = []
        for key, types in named.items():
            provider: NetworkServiceProviderInventory | None = known.get(key)
            if provider is None:
                raise not_found("NetworkServiceProvider", key)
            wanted = list(dict.fromkeys(types))
            foreign = [one for one in wanted if one not in provider.network_service_types]
            if foreign or not wanted:
                raise invalid(
                    "networkServices",
                    f"provider[uuid:{provider.uuid}, type:{provider.type}] offers {provider.network_service_types},"
                    f" not {foreign or 'nothing'}, to L3 network[uuid:{l3.uuid}]",
                )
            found.append(Chosen(provider.uuid, provider.type, wanted))
        return found

    @handles(GetNetworkServiceTypes)
    async def types(self, msg: GetNetworkServiceTypes) -> NetworkServiceTypesReply:  # noqa: ARG002 - nothing to choose
        """Who provides what."""
        offered: dict[str, list[str]] = {}
        for kind, driver in self.node.drivers.all(NetworkServiceDriver).items():
            for service in driver.services:
                offered.setdefault(service, []).append(kind)
        return NetworkServiceTypesReply(types=offered)

    @handles(GetProvider)
    async def provider(self, msg: GetProvider) -> NetworkServiceProviderInventory:
        """A provider by type."""
        row = NetworkServiceProviderModel
        async with self.node.db.read() as session:
            found = await session.scalar(select(row).where(row.type == msg.type))
            if found is None:
                raise not_found("NetworkServiceProvider", msg.type)
            return view(found)  # type: ignore[no-any-return]

    async def _l3(self, uuid: str) -> L3NetworkInventory:
        return (await self.bus.call(GetL3(l3_network_uuids=[uuid]))).networks[0]


async def _ensure_provider(tx: AsyncSession, kind: str, driver: NetworkServiceDriver) -> None:
    uuid = derived_uuid("network-service-provider", kind)
    row = await tx.get(NetworkServiceProviderModel, uuid)
    if row is None:
        async with unique(tx, OPERATION_ERROR, f"another node makes provider {kind} now"):
            tx.add(
                NetworkServiceProviderModel(
                    uuid=uuid, name=driver.display_name, description=driver.description, type=kind
                )
            )
    types = NetworkServiceTypeModel
    mine = types.network_service_provider_uuid == uuid
    known = set(await tx.scalars(select(types.type).where(mine)))
    for service in driver.services:
        if service not in known:
            tx.add(types(network_service_provider_uuid=uuid, type=service))
    await tx.execute(delete(types).where(mine, types.type.not_in(driver.services)))
