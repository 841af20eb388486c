"""Which provider serves what on which L3 network.

Invariant: what is recorded as attached is offered by the provider's driver; a driver that refuses leaves nothing
recorded. The L3 service keeps the records, and that a service type has one provider per network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.l3.api import L3NetworkInventory, NetworkServiceL3NetworkRefInventory
from caelum.cloud.l3.messages import ChangeL3Services, GetL3
from caelum.cloud.network_service.api import (
    AttachNetworkServiceToL3Network,
    DetachNetworkServiceFromL3Network,
    GetNetworkServiceTypes,
    NetworkServiceProviderInventory,
    NetworkServiceTypesReply,
)
from caelum.cloud.network_service.extension import NetworkServiceDriver
from caelum.cloud.network_service.messages import GetProvider
from caelum.cloud.network_service.model import (
    NetworkServiceProviderL2RefModel,
    NetworkServiceProviderModel,
    NetworkServiceTypeModel,
)
from caelum.kernel.database import unique
from caelum.kernel.errors import OPERATION_ERROR, CloudError, invalid, not_found
from caelum.kernel.ids import derived_uuid
from caelum.kernel.service import Service, handles
from caelum.kernel.views import view, views

Refs = list[NetworkServiceL3NetworkRefInventory]


class NetworkServiceService(Service):
    """Owns providers, and attaches them to L3 networks."""

    name = "network_service"

    async def start(self) -> None:
        """Make the rows of new drivers, and bring the service types of known ones up to date."""
        async with self.node.db.transaction() as tx:
            for kind, driver in self.node.drivers.all(NetworkServiceDriver).items():
                await _ensure_provider(tx, kind, driver)

    @handles(AttachNetworkServiceToL3Network, queue="network-service-{l3_network_uuid}")
    async def attach(self, msg: AttachNetworkServiceToL3Network) -> L3NetworkInventory:
        """Record the services and let the drivers begin; what a driver refuses is taken back."""
        l3 = await self._l3(msg.l3_network_uuid)
        wanted = await self._resolve(msg.network_services, l3)
        known = {(one.network_service_provider_uuid, one.network_service_type) for one in l3.network_services}
        fresh = [(provider, [one for one in types if (provider.uuid, one) not in known]) for provider, types in wanted]
        for provider, types in fresh:
            await self._driver(provider).check(l3, types)
        refs = _refs(l3, fresh)
        l3 = await self.node.bus.call(ChangeL3Services(l3_network_uuid=l3.uuid, attach=refs))
        try:
            for provider, types in fresh:
                await self._driver(provider).attached(l3, types)
        except Exception:
            await self._undo(l3, fresh, refs)
            raise
        await self._remember_l2(l3, [provider for provider, _ in fresh])
        return l3

    async def _undo(
        self, l3: L3NetworkInventory, fresh: list[tuple[NetworkServiceProviderInventory, list[str]]], refs: Refs
    ) -> None:
        for provider, types in fresh:
            await self._driver(provider).detached(l3, types)
        await self.node.bus.call(ChangeL3Services(l3_network_uuid=l3.uuid, detach=refs))

    @handles(DetachNetworkServiceFromL3Network, queue="network-service-{l3_network_uuid}")
    async def detach(self, msg: DetachNetworkServiceFromL3Network) -> L3NetworkInventory:
        """Let the drivers end, then forget the services; repeated after a failure it goes on."""
        l3 = await self._l3(msg.l3_network_uuid)
        if msg.network_services is not None:
            gone = await self._resolve(msg.network_services, l3)
        else:
            gone = await self._attached(l3, msg.service)
        remaining = await self.node.bus.call(ChangeL3Services(l3_network_uuid=l3.uuid, detach=_refs(l3, gone)))
        for provider, types in gone:
            await self._driver(provider).detached(remaining, types)
        return remaining

    async def _attached(
        self, l3: L3NetworkInventory, service: str | None
    ) -> list[tuple[NetworkServiceProviderInventory, list[str]]]:
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

    async def _resolve(
        self, named: Mapping[str, Iterable[str]], l3: L3NetworkInventory
    ) -> list[tuple[NetworkServiceProviderInventory, list[str]]]:
        """The providers behind UUIDs or types, each with service types that it offers."""
        async with self.node.db.read() as session:
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
            found.append((provider, wanted))
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

    def _driver(self, provider: NetworkServiceProviderInventory) -> NetworkServiceDriver:
        return self.node.drivers.get(NetworkServiceDriver, provider.type)

    async def _l3(self, uuid: str) -> L3NetworkInventory:
        return (await self.node.bus.call(GetL3(l3_network_uuids=[uuid]))).networks[0]

    async def _remember_l2(self, l3: L3NetworkInventory, providers: list[NetworkServiceProviderInventory]) -> None:
        row = NetworkServiceProviderL2RefModel
        async with self.node.db.transaction() as tx:
            for one in providers:
                key = {"network_service_provider_uuid": one.uuid, "l2_network_uuid": l3.l2_network_uuid}
                if await tx.scalar(select(row.id).filter_by(**key)) is None:
                    tx.add(row(**key))


def _refs(l3: L3NetworkInventory, chosen: list[tuple[NetworkServiceProviderInventory, list[str]]]) -> Refs:
    return [
        NetworkServiceL3NetworkRefInventory(
            l3_network_uuid=l3.uuid, network_service_provider_uuid=provider.uuid, network_service_type=one
        )
        for provider, types in chosen
        for one in types
    ]


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
