"""The KVM hypervisor as the host service sees it: each operation is a command to the host's agent.

Invariant: an error says which operation failed on which host, with the agent's own words as its cause; a host that was
not reached is HOST.1010 and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from caelum.agent import protocol as p
from caelum.cloud.host.api import HostInventory
from caelum.cloud.host.errors import (
    FAILED_TO_DESTROY_VM,
    FAILED_TO_REBOOT_VM,
    FAILED_TO_START_VM,
    FAILED_TO_STOP_VM,
    HOST_DISCONNECTED,
)
from caelum.cloud.host.extension import HostConnection, HostDisconnected, HostPing, HypervisorDriver
from caelum.cloud.host.messages import HostContents
from caelum.cloud.host.spec import ConsoleTarget, HostOrder, NicSpec, VmSpec, VmStarted, VolumeSpec
from caelum.drivers.kvm import tags
from caelum.drivers.kvm.agents import Agents
from caelum.drivers.kvm.errors import wrap
from caelum.drivers.kvm.program import AgentProgram, check_protocol
from caelum.drivers.kvm.remote import order
from caelum.drivers.kvm.settings import CACHE_MODE, CPU_MODE
from caelum.drivers.kvm.translate import Choices, disk, nic, start_command
from caelum.kernel.errors import OPERATION_ERROR, CloudError, ErrorType
from caelum.kernel.node import Node

A = TypeVar("A")

_CONNECT_TIMEOUT = 120.0
_QUICK = 60.0
_DUMP_TIMEOUT = 110.0
_STOP_MARGIN = 60.0
"""Seconds beyond the guest's own time to stop."""
PREPARED_START = 300.0
"""Seconds for a start with all that comes before it: a service that hangs must not hold the whole operation."""


class KvmDriver(HypervisorDriver):
    """Hosts with the host agent."""

    def __init__(self, node: Node, agents: Agents, program: AgentProgram) -> None:
        self._node = node
        self._agents = agents
        self._program = program

    # --- the host ---------------------------------------------------------------------------------------------------

    async def connect(self, host: HostInventory) -> HostConnection:
        """Adopt the host; an agent that is older than this server is updated first."""
        command = p.ConnectHost(host_uuid=host.uuid, report_url=self._agents.report_url)
        address = self._agents.address(host.uuid, host.management_ip)
        answer = await self._agents.client.run(address, command, _CONNECT_TIMEOUT)
        check_protocol(answer, host.uuid, host.management_ip)
        if self._program.fits(answer) and await self._program.update(address, answer):
            answer = await self._agents.client.run(address, command, _CONNECT_TIMEOUT)
            check_protocol(answer, host.uuid, host.management_ip)
        return _connection(answer)

    async def ping(self, host: HostInventory, timeout: float) -> HostPing:
        """Ask the agent for itself and its guests' states."""
        answer = await self._agents.client.run(self._agents.address(host.uuid, host.management_ip), p.Ping(), timeout)
        return HostPing(agent_uuid=answer.agent_uuid, vm_states=answer.vm_states, adopted=answer.host_uuid == host.uuid)

    def watch(self, host_uuid: str, gone: Callable[[], None]) -> Callable[[], None]:
        """Notice when the connection to the agent breaks."""
        return self._agents.client.watch(host_uuid, gone)

    # --- virtual machines -------------------------------------------------------------------------------------------

    async def start_vm(self, host_uuid: str, spec: VmSpec) -> VmStarted:
        """Define and start, after what comes before."""
        command = start_command(spec, await self._choices(spec.vm_uuid))
        what = f"start vm[uuid:{spec.vm_uuid}]"
        if not spec.before:
            return _started(await self._run(host_uuid, command, FAILED_TO_START_VM, what))
        series = _series(*spec.before, order(command))
        done = await self._run(host_uuid, series, FAILED_TO_START_VM, what, PREPARED_START)
        return _started(msgspec.convert(done.results[-1], p.StartVmAnswer), done.results[:-1])

    async def stop_vm(self, host_uuid: str, vm_uuid: str, kind: str, grace_seconds: float) -> None:
        """Stop, with or without asking."""
        command = p.StopVm(vm_uuid=vm_uuid, kind="cold" if kind == "cold" else "grace", grace_seconds=grace_seconds)
        limit = grace_seconds + _STOP_MARGIN
        await self._run(host_uuid, command, FAILED_TO_STOP_VM, f"stop vm[uuid:{vm_uuid}]", limit)

    async def reboot_vm(self, host_uuid: str, spec: VmSpec) -> VmStarted:
        """Stop and start."""
        command = p.RebootVm(definition=start_command(spec, await self._choices(spec.vm_uuid)))
        return _started(await self._run(host_uuid, command, FAILED_TO_REBOOT_VM, f"reboot vm[uuid:{spec.vm_uuid}]"))

    async def pause_vm(self, host_uuid: str, vm_uuid: str) -> None:
        """Suspend the guest's CPUs."""
        await self._run(host_uuid, p.PauseVm(vm_uuid=vm_uuid), OPERATION_ERROR, f"pause vm[uuid:{vm_uuid}]", _QUICK)

    async def resume_vm(self, host_uuid: str, vm_uuid: str) -> None:
        """Let them run again."""
        await self._run(host_uuid, p.ResumeVm(vm_uuid=vm_uuid), OPERATION_ERROR, f"resume vm[uuid:{vm_uuid}]", _QUICK)

    async def destroy_vm(self, host_uuid: str, vm_uuid: str, after: Sequence[HostOrder] = ()) -> None:
        """Pull the plug and undefine; then what comes after."""
        command, what = p.DestroyVm(vm_uuid=vm_uuid), f"destroy vm[uuid:{vm_uuid}]"
        if after:
            await self._run(host_uuid, _series(order(command), *after), FAILED_TO_DESTROY_VM, what)
        else:
            await self._run(host_uuid, command, FAILED_TO_DESTROY_VM, what)

    async def vm_states(self, host_uuid: str, vm_uuids: list[str] | None) -> dict[str, str]:
        """Ask libvirt."""
        return (await self._agents.run_patiently(host_uuid, p.GetVmStates(vm_uuids=vm_uuids), _QUICK)).states

    async def dump(self, host_uuid: str, storage_paths: list[str]) -> HostContents:
        """Ask the agent for all that it finds."""
        found = await self._agents.run(host_uuid, p.DumpHost(storage_paths=storage_paths), _DUMP_TIMEOUT)
        return HostContents(
            vms=found.vms,
            strangers=found.unknown_domains,
            bridges=found.bridges,
            taps=found.taps,
            dhcp=found.dhcp,
            metadata=found.metadata,
            nat=found.nat,
            files=found.files,
        )

    async def attach_volume(self, host_uuid: str, vm_uuid: str, volume: VolumeSpec) -> None:
        """Hot-plug a disk."""
        command = p.AttachDisk(vm_uuid=vm_uuid, disk=disk(volume, await self._choices(vm_uuid, volume.volume_uuid)))
        what = f"attach volume[uuid:{volume.volume_uuid}] to vm[uuid:{vm_uuid}]"
        await self._run(host_uuid, command, OPERATION_ERROR, what)

    async def detach_volume(self, host_uuid: str, vm_uuid: str, volume: VolumeSpec) -> None:
        """Unplug a disk."""
        what = f"detach volume[uuid:{volume.volume_uuid}] from vm[uuid:{vm_uuid}]"
        command = p.DetachDisk(vm_uuid=vm_uuid, disk=disk(volume, Choices()))
        await self._run(host_uuid, command, OPERATION_ERROR, what)

    async def attach_nic(self, host_uuid: str, vm_uuid: str, nic_spec: NicSpec) -> None:
        """Hot-plug a NIC."""
        what = f"attach nic[uuid:{nic_spec.nic_uuid}] to vm[uuid:{vm_uuid}]"
        await self._run(host_uuid, p.AttachNic(vm_uuid=vm_uuid, nic=nic(nic_spec, 0)), OPERATION_ERROR, what)

    async def detach_nic(self, host_uuid: str, vm_uuid: str, nic_spec: NicSpec) -> None:
        """Unplug a NIC."""
        what = f"detach nic[uuid:{nic_spec.nic_uuid}] from vm[uuid:{vm_uuid}]"
        await self._run(host_uuid, p.DetachNic(vm_uuid=vm_uuid, nic=nic(nic_spec, 0)), OPERATION_ERROR, what)

    async def console(self, host_uuid: str, vm_uuid: str) -> ConsoleTarget:
        """The guest's screen, through the agent: VNC itself listens on the host's loopback only."""
        answer = await self._agents.run_patiently(host_uuid, p.GetConsole(vm_uuid=vm_uuid), _QUICK)
        address = await self._agents.address_of(host_uuid)
        return ConsoleTarget(
            host_uuid=host_uuid,
            scheme="vnc",
            hostname=address.ip,
            port=answer.vnc_port,
            url=address.url(f"/console/vnc/{vm_uuid}", "wss"),
            serial_url=address.url(f"/console/serial/{vm_uuid}", "wss"),
        )

    async def _run(
        self, host_uuid: str, command: p.Command[A], kind: ErrorType, what: str, limit: float | None = None
    ) -> A:
        try:
            return await self._agents.run_patiently(host_uuid, command, limit)
        except CloudError as error:
            if error.kind is HOST_DISCONNECTED:
                raise
            raise wrap(kind, error, f"unable to {what} on kvm host[uuid:{host_uuid}]") from error

    async def _choices(self, vm_uuid: str, *volume_uuids: str) -> Choices:
        settings = self._node.settings
        return Choices(
            cache_mode=await settings.get_for(CACHE_MODE, *volume_uuids, vm_uuid),
            cpu_mode=await settings.get_for(CPU_MODE, vm_uuid),
        )


class ForgetLostHosts(HostDisconnected):
    """Nobody waits for the answers of a host that is lost."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def disconnected(self, host: HostInventory, reason: CloudError) -> None:
        self._agents.client.host_lost(host.uuid, reason)


def _connection(answer: p.ConnectHostAnswer) -> HostConnection:
    facts = answer.facts
    return HostConnection(
        agent_uuid=answer.agent_uuid,
        version=answer.version,
        cpu_num=facts.cpu_num,
        cpu_sockets=facts.cpu_sockets,
        cpu_mhz=facts.cpu_mhz,
        total_memory=facts.total_memory,
        architecture=facts.architecture,
        os_distribution=facts.os_distribution,
        os_version=facts.os_version,
        vm_states=answer.vm_states,
        strangers=answer.unknown_domains,
        details={
            "os_distribution": facts.os_distribution,
            "os_release": facts.os_version,
            "os_version": facts.os_version,
            "agent_version": answer.version,
            "agent_protocol": answer.protocol,
        },
        tags=[
            (tags.QEMU_IMG_VERSION, {"version": facts.qemu_version}),
            (tags.LIBVIRT_VERSION, {"version": facts.libvirt_version}),
            (tags.CPU_MODEL_NAME, {"name": facts.cpu_model or "unknown"}),
            (tags.HVM_CPU_FLAG, {"flag": facts.hypervisor}),
        ],
    )


def _series(*orders: HostOrder) -> p.Series:
    return p.Series(orders=[p.Order(path=one.path, body=one.body) for one in orders])


def _started(answer: p.StartVmAnswer, before: Sequence[dict[str, Any]] = ()) -> VmStarted:
    return VmStarted(vnc_port=answer.vnc_port, accelerated=answer.hypervisor == "kvm", before=list(before))
