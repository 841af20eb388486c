"""The console proxies that clients can be sent to."""

from __future__ import annotations

import asyncio

from sqlalchemy import select

from caelum.cloud.console.api import ConsoleProxyAgentInventory, UpdateConsoleProxyAgent
from caelum.cloud.console.errors import NO_PROXY, UNREACHABLE
from caelum.cloud.console.messages import AnnounceConsoleProxy
from caelum.cloud.console.model import ConsoleProxyAgentModel
from caelum.kernel.database import Database, update_where
from caelum.kernel.errors import CloudError, not_found
from caelum.kernel.ids import derived_uuid
from caelum.kernel.views import view

CONNECTED, DISCONNECTED, ENABLED = "Connected", "Disconnected", "Enabled"
PROXY_TYPE = "ManagementServerConsoleProxy"
_PING_TIMEOUT = 5.0


class Proxies:
    """The table of proxies. A proxy is Connected while its port takes connections."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def announce(self, msg: AnnounceConsoleProxy) -> str:
        """A proxy came or went; its overridden address outlives that."""
        uuid = derived_uuid("console proxy", msg.management_ip, str(msg.port))
        async with self._db.transaction() as tx:
            row = await tx.get(ConsoleProxyAgentModel, uuid)
            if row is None:
                row = ConsoleProxyAgentModel(
                    uuid=uuid, management_ip=msg.management_ip, listen_port=msg.port, console_proxy_port=msg.port,
                    type=PROXY_TYPE, state=ENABLED,
                )  # fmt: skip
                tx.add(row)
            row.scheme = msg.scheme
            row.status = CONNECTED if msg.connected else DISCONNECTED
        return uuid

    async def choose(self, preferred_ip: str) -> ConsoleProxyAgentModel:
        """A proxy that is connected, on this node when there is one. Raises CONSOLE.1000."""
        row = ConsoleProxyAgentModel
        usable = (row.status == CONNECTED, row.state == ENABLED)
        async with self._db.read() as session:
            found = list(await session.scalars(select(row).where(*usable).order_by(row.create_date)))
        if not found:
            raise CloudError(NO_PROXY, "0 console proxies are connected")
        return next((one for one in found if one.management_ip == preferred_ip), found[0])

    async def update(self, msg: UpdateConsoleProxyAgent) -> ConsoleProxyAgentInventory:
        """Change what clients are told."""
        async with self._db.transaction() as tx:
            row = await tx.get(ConsoleProxyAgentModel, msg.uuid)
            if row is None:
                raise not_found("ConsoleProxyAgentVO", msg.uuid)
            row.console_proxy_overridden_ip = msg.console_proxy_overridden_ip
            row.console_proxy_port = msg.console_proxy_port or row.console_proxy_port
            await tx.flush()
        return view(row)  # type: ignore[no-any-return]

    async def uuids(self) -> list[str]:
        """All proxies."""
        async with self._db.read() as session:
            return list(await session.scalars(select(ConsoleProxyAgentModel.uuid)))

    async def ping(self, uuid: str) -> None:
        """See whether a proxy takes connections, and note it. Raises CONSOLE.1004, or SYS.1003 for a stranger."""
        async with self._db.read() as session:
            row = await session.get(ConsoleProxyAgentModel, uuid)
        if row is None:
            raise not_found("ConsoleProxyAgentVO", uuid)
        failure = await _knock(row.management_ip, row.listen_port)
        status = CONNECTED if failure is None else DISCONNECTED
        if status != row.status:
            async with self._db.transaction() as tx:
                await update_where(tx, ConsoleProxyAgentModel, {"status": status}, ConsoleProxyAgentModel.uuid == uuid)
        if failure is not None:
            raise failure


async def _knock(host: str, port: int) -> CloudError | None:
    try:
        async with asyncio.timeout(_PING_TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
    except OSError as error:  # TimeoutError too
        why = f"the console proxy at {host}:{port} takes no connection: {type(error).__name__} {error}"
        return CloudError(UNREACHABLE, why, host=host, port=port)
    writer.transport.abort()
    return None
