"""Console access: tokens for those who may see a VM's console, and the proxies that honour them.

Invariant: a token opens one console of one VM, once, within its time, and only while that VM runs or is paused and its
holder's account may use the VM. Where the VM's console is now is found out when the token is used, not before.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from caelum import __version__
from caelum.cloud.console import tokens
from caelum.cloud.console.api import (
    ConsoleInventory,
    ConsoleProxyAgentInventory,
    ReconnectConsoleProxyAgent,
    RequestConsoleAccess,
    UpdateConsoleProxyAgent,
)
from caelum.cloud.console.messages import (
    ENDED,
    AnnounceConsoleProxy,
    ConsoleGrant,
    ExchangeConsoleToken,
    LookUpConsole,
    TakeConsole,
    digest_of,
    new_token,
)
from caelum.cloud.console.model import ConsoleTokenModel
from caelum.cloud.console.proxies import Proxies
from caelum.cloud.console.settings import PING_INTERVAL, TOKEN_TIMEOUT
from caelum.cloud.host.messages import GetConsoleOnHost
from caelum.cloud.host.spec import ConsoleTarget
from caelum.cloud.identity.messages import CheckAccess
from caelum.cloud.vm.api import NOT_IN_CORRECT_STATE, VmInstanceInventory, VmStateChanged
from caelum.cloud.vm.messages import ListVms
from caelum.kernel import context
from caelum.kernel.database import utcnow
from caelum.kernel.errors import CloudError, not_found, to_wire
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles
from caelum.kernel.views import to_builtins

VIEWABLE = ("Running", "Paused")
_PURGE_INTERVAL = 600.0


class ConsoleService(Service):
    """Owns console tokens and the list of proxies."""

    name = "console"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._proxies = Proxies(node.db)

    async def start(self) -> None:
        self.node.bus.subscribe(VmStateChanged, self._vm_ended, lambda event: event.new_state in ENDED)
        self.node.timers.every(_PURGE_INTERVAL, self._purge, name="console.tokens")
        self.node.timers.every(PING_INTERVAL, self._ping_all, name="console.proxies")

    # --- access -------------------------------------------------------------------------------------------------------

    @handles(RequestConsoleAccess)
    async def request(self, msg: RequestConsoleAccess) -> ConsoleInventory:
        """A token for a console that can be reached right now."""
        vm = await self._viewable(msg.vm_instance_uuid)
        target = await self._target(vm)
        proxy = await self._proxies.choose(self.node.config.resolved_host())
        token, actor = new_token(), context.current().actor
        expires = utcnow() + timedelta(seconds=self.node.settings.get(TOKEN_TIMEOUT))
        async with self.node.db.transaction() as tx:
            tx.add(
                ConsoleTokenModel(
                    digest=digest_of(token), line=tokens.ANY, vm_instance_uuid=vm.uuid,
                    host_uuid=target.host_uuid, account_uuid=actor.account_uuid, by_admin=actor.is_admin,
                    expire_date=expires,
                )
            )  # fmt: skip
        return ConsoleInventory(
            scheme=proxy.scheme,
            target_scheme=target.scheme,
            hostname=proxy.console_proxy_overridden_ip or proxy.management_ip,
            port=proxy.console_proxy_port,
            token=token,
            version=__version__,
            expired_date=expires,
        )

    @handles(LookUpConsole)
    async def look_up(self, msg: LookUpConsole) -> ConsoleGrant:
        """What a token is good for now."""
        async with self.node.db.read() as session:
            row = await tokens.find(session, msg.digest, msg.line, tokens.ANY)
        return await self._grant(row)

    @handles(TakeConsole)
    async def take(self, msg: TakeConsole) -> None:
        """Use a token up."""
        async with self.node.db.transaction() as tx:
            await tokens.take(tx, msg.digest, msg.line, tokens.ANY)

    @handles(ExchangeConsoleToken)
    async def exchange(self, msg: ExchangeConsoleToken) -> ConsoleGrant:
        """One access token for a token of a line and the next access token."""
        async with self.node.db.read() as session:
            row = await tokens.find(session, msg.digest, tokens.ANY)
        grant = await self._grant(row)
        async with self.node.db.transaction() as tx:
            await tokens.take(tx, msg.digest, tokens.ANY)
            for digest, line in ((msg.line_digest, msg.line), (msg.access_digest, tokens.ANY)):
                tx.add(
                    ConsoleTokenModel(
                        digest=digest, line=line, vm_instance_uuid=row.vm_instance_uuid, host_uuid=row.host_uuid,
                        account_uuid=row.account_uuid, by_admin=row.by_admin, expire_date=row.expire_date,
                    )
                )  # fmt: skip
        return grant

    async def _grant(self, row: ConsoleTokenModel) -> ConsoleGrant:
        vm = await self._viewable(row.vm_instance_uuid)
        if not row.by_admin:
            await self._check_access(row.account_uuid, vm.uuid)
        return ConsoleGrant(
            vm_uuid=vm.uuid,
            vm_name=vm.name,
            account_uuid=row.account_uuid,
            expire_date=row.expire_date,
            target=await self._target(vm),
        )

    async def _check_access(self, account_uuid: str, vm_uuid: str) -> None:
        access = await self.bus.call(CheckAccess(account_uuid=account_uuid, resource_uuids=[vm_uuid]))
        if access.hidden:  # the VM went to another account meanwhile
            raise tokens.refused()

    async def _viewable(self, vm_uuid: str) -> VmInstanceInventory:
        vms = (await self.bus.call(ListVms(vm_uuids=[vm_uuid]))).vms
        if not vms:
            raise not_found("VmInstanceVO", vm_uuid)
        vm = vms[0]
        if vm.state not in VIEWABLE or vm.host_uuid is None:
            why = f"vm[uuid:{vm_uuid}] is {vm.state}; its console is there when it is {' or '.join(VIEWABLE)}"
            raise CloudError(NOT_IN_CORRECT_STATE, why, state=vm.state)
        return vm

    async def _target(self, vm: VmInstanceInventory) -> ConsoleTarget:
        return await self.bus.call(GetConsoleOnHost(host_uuid=vm.host_uuid or "", vm_uuid=vm.uuid))

    async def _vm_ended(self, event: VmStateChanged) -> None:
        if event.vm_uuid in await self.node.db.remember(tokens.holders, tokens.holders):
            async with self.node.db.transaction() as tx:
                await tokens.revoke(tx, event.vm_uuid)

    async def _purge(self) -> None:
        async with self.node.db.transaction() as tx:
            await tokens.purge(tx)

    # --- proxies ------------------------------------------------------------------------------------------------------

    @handles(AnnounceConsoleProxy)
    async def announce(self, msg: AnnounceConsoleProxy) -> str:
        """A proxy came or went."""
        return await self._proxies.announce(msg)

    @handles(ReconnectConsoleProxyAgent)
    async def reconnect(self, msg: ReconnectConsoleProxyAgent) -> dict[str, Any]:
        """Ping proxies now."""
        return await self._ping(msg.agent_uuids or await self._proxies.uuids())

    @handles(UpdateConsoleProxyAgent)
    async def update(self, msg: UpdateConsoleProxyAgent) -> ConsoleProxyAgentInventory:
        """Change where clients are sent."""
        return await self._proxies.update(msg)

    async def _ping_all(self) -> None:
        await self._ping([one for one in await self._proxies.uuids() if self.node.ring.owns(one)])

    async def _ping(self, uuids: list[str]) -> dict[str, Any]:
        outcomes = await asyncio.gather(*map(self._proxies.ping, uuids), return_exceptions=True)
        return {
            uuid: to_builtins(to_wire(outcome)) if isinstance(outcome, BaseException) else True
            for uuid, outcome in zip(uuids, outcomes, strict=True)
        }
