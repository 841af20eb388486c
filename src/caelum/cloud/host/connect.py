"""Connecting a host, and noticing that it is lost.

Invariant: a host is Connected only after a whole connect succeeded: the driver reached it, every extension (networks,
storage, DHCP) brought it to what the database says, and its capacity is in the books. Being pingable is not enough:
that is how machines land on hosts without bridges. Connects of one host never overlap; whoever asks joins. Work on a
host that was lost less than `host/connection.patience` ago waits for its return.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.messages import ReportHostCapacity
from caelum.cloud.host import records, tags
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.errors import CONNECTION_ERROR, HOST_DISCONNECTED
from caelum.cloud.host.events import HostLostSight
from caelum.cloud.host.extension import (
    HostAfterConnect,
    HostConnect,
    HostConnection,
    HostDisconnected,
    HypervisorDriver,
)
from caelum.cloud.host.settings import LOST_PATIENCE
from caelum.cloud.host.states import CONNECTED, CONNECTING, DISCONNECTED
from caelum.cloud.vm.messages import HostLost, HostVmsSeen
from caelum.kernel import context
from caelum.kernel.errors import CloudError, as_cloud_error, not_found
from caelum.kernel.message import Message
from caelum.kernel.node import Node
from caelum.kernel.tag import SystemTag, texts_of

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 1800.0
"""Seconds for a whole connect; its commands have limits of their own."""
_BEFORE_ANOTHER_TRY = 0.5


class _Lost:
    """A host that was Connected and is not any more."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.over = asyncio.Event()


class Connector:
    """Connects hosts, one connect per host at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._busy: set[str] = set()
        self._lost: dict[str, _Lost] = {}

    def connecting(self, host_uuid: str) -> bool:
        """Whether a connect of this host goes on here."""
        return host_uuid in self._busy

    async def connect(self, host_uuid: str) -> HostInventory:
        """Connect a host; on failure it is Disconnected. Raises HOST.1003 with the cause."""
        # The connect belongs to everyone who waits for it, so it must not end with the first one's deadline.
        with context.use(context.with_deadline(context.current(), time.monotonic() + CONNECT_TIMEOUT)):
            return await self._node.queues.run(
                f"host-connect-{host_uuid}", 1, self._connect, host_uuid, name="connect", single_flight="connect"
            )

    async def connected(self, host_uuid: str, *, patient: bool = True) -> HostInventory:
        """A host that can be worked with; one that is being connected is waited for, and one that was lost a moment
        ago unless told otherwise. Raises HOST.1010.
        """
        while True:
            host, failure = await records.get(self._node, host_uuid), None
            if host.status == CONNECTING:
                host, failure = await self._joined(host)
            if host.status == CONNECTED:
                return host
            if not patient or not await self._return_of(host_uuid):
                details = f"host[uuid:{host_uuid}, name:{host.name}] is {host.status}, not {CONNECTED}"
                error = failure or CloudError(HOST_DISCONNECTED, details, hostUuid=host_uuid, status=host.status)
                try:
                    raise error
                finally:
                    del error, failure  # a circle by way of its traceback, which the collector is slow to find

    async def worth_another_try(self, host_uuid: str, waited: float) -> bool:
        """Whether a host that could not be reached `waited` seconds ago may be reached now; waits for a lost one."""
        if waited >= self._node.settings.get(LOST_PATIENCE):
            return False
        # The tracker may not have noticed yet, or the host was reached again already.
        await asyncio.sleep(_BEFORE_ANOTHER_TRY)
        try:
            await self.connected(host_uuid)
        except CloudError:
            return False
        return True

    def forget(self, host_uuid: str) -> None:
        """The host is there again, or deleted; nobody waits for its return any more."""
        if lost := self._lost.pop(host_uuid, None):
            lost.over.set()

    async def _joined(self, host: HostInventory) -> tuple[HostInventory, CloudError | None]:
        """The host after the connect that is under way, and why that failed."""
        try:
            return await self.connect(host.uuid), None
        except CloudError as error:
            details = f"host[uuid:{host.uuid}, name:{host.name}] could not be connected"
            return host, CloudError(HOST_DISCONNECTED, details, cause=error, hostUuid=host.uuid)

    async def _return_of(self, host_uuid: str) -> bool:
        """Wait until a host that was lost a moment ago is Connected; False when that was not so or takes too long."""
        lost = self._lost.get(host_uuid)
        left = 0.0 if lost is None else lost.at + self._node.settings.get(LOST_PATIENCE) - time.monotonic()
        if lost is None or left <= 0:
            return False
        try:
            async with asyncio.timeout(left):
                await lost.over.wait()
        except TimeoutError:
            return False
        return True

    async def lost(self, host_uuid: str, error: BaseException) -> None:
        """The host cannot be reached: it becomes Disconnected, and whoever cares is told why.

        Nothing is said by a node that stops: it has closed its own connections. Who follows the host next finds out.
        """
        if self._node.stopping:
            return
        reason = as_cloud_error(error)
        moved = await records.move(self._node, host_uuid, DISCONNECTED, of=(CONNECTED, CONNECTING))
        if moved is None:
            return
        host = moved.inventory
        self._lost.setdefault(host_uuid, _Lost())
        log.warning("host %s at %s is lost: %s", host.name, host.management_ip, reason)
        self._node.bus.publish(HostLostSight(host_uuid=host_uuid, reason=reason.to_wire()))
        self.tell(HostLost(host_uuid=host_uuid))
        await self._node.extensions.notify(HostDisconnected, "disconnected", host, reason)

    def tell(self, msg: Message[None]) -> None:
        """Send a message to a service that may not be loaded."""
        if self._node.bus.serves(type(msg)):
            self._node.bus.send(msg)

    async def _connect(self, host_uuid: str) -> HostInventory:
        self._busy.add(host_uuid)
        try:
            return await self._all_steps(host_uuid)
        except asyncio.CancelledError as error:
            await self.lost(host_uuid, error)
            raise
        except Exception as error:
            await self.lost(host_uuid, error)
            raise self._failure(host_uuid, error) from error
        finally:
            self._busy.discard(host_uuid)

    async def _all_steps(self, host_uuid: str) -> HostInventory:
        moved = await records.move(self._node, host_uuid, CONNECTING)
        if moved is None:
            raise not_found("HostVO", host_uuid)
        host = moved.inventory
        driver = self._node.drivers.get(HypervisorDriver, host.hypervisor_type)
        connection = await driver.connect(host)
        if not await self._is_as_recorded(moved.row, connection):
            host = await self._learn(host, connection)
        await self._node.extensions.each(HostConnect, "connect", host)
        await self._node.bus.call(
            ReportHostCapacity(
                host_uuid=host_uuid,
                total_cpu=connection.cpu_num,
                total_memory=connection.total_memory,
                cpu_sockets=connection.cpu_sockets,
            )
        )
        ready = await records.move(
            self._node, host_uuid, CONNECTED, of=(CONNECTING,), also=_note_time, agent_uuid=connection.agent_uuid
        )
        if ready is None:
            raise CloudError(CONNECTION_ERROR, f"host {host_uuid} was deleted or given up while it was connected")
        self.forget(host_uuid)
        if connection.strangers:
            log.info(
                "host %s runs %d machines of others: %s", host.name, len(connection.strangers), connection.strangers
            )
        self.tell(HostVmsSeen(host_uuid=host_uuid, states=connection.vm_states))
        await self._node.extensions.notify(HostAfterConnect, "after_connect", ready.inventory)
        return ready.inventory

    async def _is_as_recorded(self, row: dict[str, Any], connection: HostConnection) -> bool:
        """Whether the host is just what its row, as it was when its connect began, and its tags say. After a start,
        nearly all of thousands are.
        """
        facts = {"architecture": connection.architecture, **connection.details}
        if any(row.get(name) != value for name, value in facts.items()):
            return False
        present = await texts_of(self._node.db.once, row["uuid"])
        return all(tag.text(**tokens) in present for tag, tokens in [*_common_tags(connection), *connection.tags])

    async def _learn(self, host: HostInventory, connection: HostConnection) -> HostInventory:
        """Write down what the host is. The row is locked first: nothing is written of a host that is being deleted."""
        values = {"architecture": connection.architecture, **connection.details}
        async with self._node.db.transaction() as tx:
            row = await records.load(tx, host.uuid, lock=True)
            for name, value in values.items():
                setattr(row, name, value)
            present = await texts_of(tx, host.uuid)
            for tag, tokens in [*_common_tags(connection), *connection.tags]:
                if tag.text(**tokens) not in present:
                    await tag.set(tx, host.uuid, **tokens)
        return await records.get(self._node, host.uuid)

    def _failure(self, host_uuid: str, error: Exception) -> CloudError:
        cause = as_cloud_error(error)
        details = f"unable to connect host[uuid:{host_uuid}]: {cause.details}"
        return CloudError(CONNECTION_ERROR, details, cause=cause, hostUuid=host_uuid)


async def _note_time(tx: AsyncSession, host_uuid: str) -> None:
    await tags.CONNECTED_TIME.rewrite(tx, host_uuid, hostConnectedTime=int(time.time()))


def _common_tags(connection: HostConnection) -> list[tuple[SystemTag, dict[str, Any]]]:
    found: list[tuple[SystemTag, dict[str, Any]]] = [
        (tags.CPU_PROCESSOR_NUM, {"cpuProcessorNum": connection.cpu_sockets}),
        (tags.CPU_GHZ, {"cpuGHz": f"{connection.cpu_mhz / 1000:.2f}"}),
    ]
    if connection.os_distribution:
        found.append((tags.OS_DISTRIBUTION, {"distribution": connection.os_distribution}))
    if connection.os_version:
        found.append((tags.OS_VERSION, {"version": connection.os_version}))
        found.append((tags.OS_RELEASE, {"release": connection.os_version}))
    return found
