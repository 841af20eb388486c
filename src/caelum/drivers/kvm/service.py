"""The KVM driver's service: its public operations, and commands for other drivers.

Invariant: other drivers' commands run in a queue of their own beside the host's operations, `kvm/host.syncLevel` at a
time: a row of image downloads must not keep a machine from being stopped.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from caelum.agent import protocol
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.cloud.host.events import HostStatusChanged
from caelum.cloud.host.extension import HypervisorDriver
from caelum.cloud.host.messages import AddHost, UpdateHostRecord
from caelum.cloud.host.settings import SYNC_LEVEL
from caelum.drivers.kvm import preflight  # noqa: F401 - declares a check
from caelum.drivers.kvm.agents import DISCONNECTED, Agents
from caelum.drivers.kvm.api import AddKVMHost, UpdateKVMHost
from caelum.drivers.kvm.driver import ForgetLostHosts, KvmDriver
from caelum.drivers.kvm.messages import CancelAgentCommand, RunAgentCommand
from caelum.drivers.kvm.model import KVM
from caelum.drivers.kvm.program import AgentProgram
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError, invalid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles

_COMMANDS = protocol.commands()


class KvmService(Service):
    """Owns the connections to host agents."""

    name = "kvm"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.agents = Agents(node)
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._program = AgentProgram(node, self.agents)
        node.drivers.add(HypervisorDriver, KVM, KvmDriver(node, self.agents, self._program))
        node.extensions.add(self._program)
        node.extensions.add(ForgetLostHosts(self.agents))

    async def start(self) -> None:
        await self.agents.start()
        self.node.bus.subscribe(HostStatusChanged, self._on_status)

    async def _on_status(self, event: HostStatusChanged) -> None:
        """Nobody waits for the answers of a host that another node has lost; of our own, `ForgetLostHosts` knows."""
        if event.new_status == DISCONNECTED and not self.node.ring.owns(event.host_uuid):
            reason = CloudError(HOST_DISCONNECTED, f"host {event.host_uuid} is Disconnected")
            self.agents.client.host_lost(event.host_uuid, reason)

    async def stop(self) -> None:
        await self.agents.stop()
        await self._program.stop()

    @handles(AddKVMHost, repeatable=True)
    async def add(self, msg: AddKVMHost) -> HostInventory:
        """Add a host; who it is says its certificate."""
        host_uuid = await self.agents.who_is_at(msg.management_ip)
        if msg.resource_uuid not in (None, host_uuid):
            why = f"the agent at {msg.management_ip} has the certificate of host {host_uuid}"
            raise invalid("resourceUuid", why, hostUuid=host_uuid)
        return await self.node.bus.call(
            AddHost(
                host_uuid=host_uuid,
                hypervisor_type=KVM,
                name=msg.name,
                description=msg.description,
                management_ip=msg.management_ip,
                cluster_uuid=msg.cluster_uuid,
                details={"username": msg.username, "ssh_port": msg.ssh_port},
                system_tags=msg.system_tags,
                user_tags=msg.user_tags,
                tag_uuids=msg.tag_uuids,
            )
        )

    @handles(UpdateKVMHost, queue="host-life-{uuid}")
    async def update(self, msg: UpdateKVMHost) -> HostInventory:
        """Change a host's columns; a password is not kept, so there is nothing to change for it."""
        names = ("username", "ssh_port", "name", "description", "management_ip")
        changes = {name: getattr(msg, name) for name in names if getattr(msg, name) is not None}
        return await self.node.bus.call(UpdateHostRecord(host_uuid=msg.uuid, changes=changes))

    @handles(RunAgentCommand, queue="kvm-agent-{host_uuid}", level=SYNC_LEVEL)
    async def run(self, msg: RunAgentCommand) -> dict[str, Any]:
        """Run a command for another driver."""
        cls = _COMMANDS.get(msg.path)
        if cls is None:
            raise CloudError(INVALID_ARGUMENT, f"agents have no command {msg.path}", path=msg.path)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers run in tasks
        self._running[msg.command_uuid] = task
        try:
            answer = await self.agents.run(msg.host_uuid, msgspec.convert(msg.body, cls))
        finally:
            del self._running[msg.command_uuid]
        return msgspec.to_builtins(answer)  # type: ignore[no-any-return]

    @handles(CancelAgentCommand)
    async def cancel(self, msg: CancelAgentCommand) -> None:
        """Stop a command that nobody wants any longer."""
        task = self._running.get(msg.command_uuid)
        if task is not None:
            task.cancel()
