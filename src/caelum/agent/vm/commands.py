"""The life of a guest: start, stop, reboot, pause, resume, destroy, states.

Invariant: a guest starts paused and runs only when its network interfaces are guarded; a start that fails leaves
nothing. Every command names the state to reach: repeated, it succeeds.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from caelum.agent.core import Agent, NicHook
from caelum.agent.protocol import (
    INVALID,
    NOT_FOUND,
    STORAGE,
    ConsoleAddress,
    DestroyVm,
    Empty,
    GetConsole,
    GetVmStates,
    Nic,
    PauseVm,
    RebootVm,
    ResumeVm,
    StartVm,
    StartVmAnswer,
    StopVm,
    VmStates,
)
from caelum.agent.registry import AgentFailure, handler
from caelum.agent.vm import cidata, domains
from caelum.agent.vm.acceleration import Acceleration
from caelum.agent.vm.libvirtd import Libvirt
from caelum.agent.vm.watch import Watch
from caelum.agent.vm.xml import HostSide, build

ASK_AGAIN_SECONDS = 10.0
"""A guest that is still booting does not hear the power button: it is pressed again."""
POLL_SECONDS = 2.0
"""Longest time between two looks at a guest that is awaited; its events come first."""
KILL_SECONDS = 60.0
"""A guest whose disk hangs dies only when the kernel lets it."""

UUID = re.compile("[0-9a-f]{32}")
_LOCK = "vm-{vm_uuid}"


class Found(msgspec.Struct, frozen=True):
    """A domain of ours as it was seen."""

    state: str
    active: bool
    nics: list[Nic]


@handler(StartVm, lock=_LOCK)
async def start_vm(agent: Agent, cmd: StartVm) -> StartVmAnswer:
    """Start a guest, or complete the start that an earlier command began."""
    with agent.part(Watch).commanded(cmd.vm_uuid, "Paused" if cmd.paused else "Running"):
        return await _start(agent, cmd)


async def _start(agent: Agent, cmd: StartVm) -> StartVmAnswer:
    found = await look(agent, cmd.vm_uuid)
    if found is not None and found.state == "Crashed":
        await _kill(agent, cmd.vm_uuid)
        found = await look(agent, cmd.vm_uuid)
    if found is not None and not found.active:
        await _forget(agent, cmd.vm_uuid, found.nics)
        found = None
    if found is None:
        await _define(agent, cmd)
    try:
        await call_hooks(agent, agent.hooks.nic_plugged, cmd.nics)
        answer = await agent.part(Libvirt).call(_run_guest, cmd.vm_uuid, not cmd.paused)
    except (Exception, asyncio.CancelledError):
        if found is None:
            await asyncio.shield(_forget(agent, cmd.vm_uuid, cmd.nics))
        raise
    if cmd.paused:
        agent.part(Watch).started_paused(cmd.vm_uuid)
    return answer


@handler(StopVm, lock=_LOCK)
async def stop_vm(agent: Agent, cmd: StopVm) -> Empty:
    """Stop a guest and take its definition off this host. Absent: success."""
    with agent.part(Watch).commanded(cmd.vm_uuid, "Stopped"):
        await _stop(agent, cmd.vm_uuid, cmd.grace_seconds if cmd.kind == "grace" else 0)
    return Empty()


@handler(DestroyVm, lock=_LOCK)
async def destroy_vm(agent: Agent, cmd: DestroyVm) -> Empty:
    """Pull the plug and leave nothing of the guest here."""
    with agent.part(Watch).commanded(cmd.vm_uuid, "Stopped"):
        await _stop(agent, cmd.vm_uuid, 0)
    return Empty()


@handler(RebootVm, lock="vm-{definition.vm_uuid}")
async def reboot_vm(agent: Agent, cmd: RebootVm) -> StartVmAnswer:
    """Stop, then start with the given definition."""
    definition = cmd.definition
    with agent.part(Watch).commanded(definition.vm_uuid, "Paused" if definition.paused else "Running"):
        await _stop(agent, definition.vm_uuid, cmd.grace_seconds)
        return await _start(agent, definition)


@handler(PauseVm, lock=_LOCK)
async def pause_vm(agent: Agent, cmd: PauseVm) -> Empty:
    """Freeze a guest's processors."""
    with agent.part(Watch).commanded(cmd.vm_uuid, "Paused"):
        await agent.part(Libvirt).call(_switch, cmd.vm_uuid, "Running", lambda domain: domain.suspend())
    return Empty()


@handler(ResumeVm, lock=_LOCK)
async def resume_vm(agent: Agent, cmd: ResumeVm) -> Empty:
    """Let a guest's processors run again."""
    with agent.part(Watch).commanded(cmd.vm_uuid, "Running"):
        await agent.part(Libvirt).call(_switch, cmd.vm_uuid, "Paused", lambda domain: domain.resume())
    return Empty()


@handler(GetVmStates)
async def get_vm_states(agent: Agent, cmd: GetVmStates) -> VmStates:
    """The states of the named guests, or of all."""
    states, unknown = await agent.part(Watch).all_states()
    if cmd.vm_uuids is not None:
        states = {uuid: states[uuid] for uuid in cmd.vm_uuids if uuid in states}
    return VmStates(states=states, unknown_domains=unknown)


@handler(GetConsole)
async def get_console(agent: Agent, cmd: GetConsole) -> ConsoleAddress:
    """Where the guest's VNC server listens."""

    def port(connection: Any) -> int:
        return domains.vnc_port(domains.running(connection, cmd.vm_uuid))

    return ConsoleAddress(vnc_host="127.0.0.1", vnc_port=await agent.part(Libvirt).call(port))


def vm_directory(agent: Agent, vm_uuid: str) -> Path:
    """Where the files of a guest are that are not volumes. Refuses what is not a UUID: it would lead elsewhere."""
    if not UUID.fullmatch(vm_uuid):
        raise AgentFailure(INVALID, f"vmUuid[{vm_uuid}] is not 32 hexadecimal digits")
    return agent.state_dir / "vm" / vm_uuid


async def look(agent: Agent, vm_uuid: str) -> Found | None:
    """The domain of this VM as it is now, or None."""
    return await agent.part(Libvirt).call(_look, vm_uuid)


async def call_hooks(agent: Agent, hooks: list[NicHook], nics: list[Nic]) -> None:
    """Call every hook for every NIC, in order."""
    for nic in nics:
        for hook in hooks:
            await hook(agent, nic)


async def _define(agent: Agent, cmd: StartVm) -> None:
    """Define the guest and start it paused."""
    hypervisor = await agent.part(Acceleration).kind()
    directory = vm_directory(agent, cmd.vm_uuid)
    modes = await agent.run_blocking(_prepare_files, cmd, directory)
    image = directory / "cidata.iso" if cmd.cidata is not None else None
    host = HostSide(hypervisor=hypervisor, directory=directory, cidata=image, cache_modes=modes)
    agent.part(Watch).add(cmd.vm_uuid)
    try:
        await agent.part(Libvirt).call(domains.define_paused, build(cmd, host))
    except (Exception, asyncio.CancelledError):
        await asyncio.shield(_forget(agent, cmd.vm_uuid, []))
        raise


async def _stop(agent: Agent, vm_uuid: str, grace_seconds: float) -> None:
    found = await look(agent, vm_uuid)
    if found is not None and found.active:
        if grace_seconds > 0 and found.state != "Crashed":
            await _ask(agent, vm_uuid, grace_seconds)
        await _kill(agent, vm_uuid)
    await _forget(agent, vm_uuid, [] if found is None else found.nics)


async def _ask(agent: Agent, vm_uuid: str, grace_seconds: float) -> None:
    """Ask a guest to stop, again and again, until it does or the grace is over."""
    end = time.monotonic() + grace_seconds
    next_question, button = 0.0, False
    while (now := time.monotonic()) < end:
        if now >= next_question:
            await agent.part(Libvirt).call(_if_active, vm_uuid, partial(domains.ask_to_stop, button=button))
            next_question, button = now + ASK_AGAIN_SECONDS, not button
        if not await _is_active(agent, vm_uuid):
            return
        await agent.part(Watch).changed(vm_uuid, min(POLL_SECONDS, end - now))


async def _kill(agent: Agent, vm_uuid: str) -> None:
    """Pull the plug, and wait until the guest is gone."""
    end = time.monotonic() + KILL_SECONDS
    while await _is_active(agent, vm_uuid):
        try:
            await agent.part(Libvirt).call(_if_active, vm_uuid, domains.pull_plug)
        except AgentFailure:
            if time.monotonic() > end:
                raise
            await agent.part(Watch).changed(vm_uuid, POLL_SECONDS)


async def _forget(agent: Agent, vm_uuid: str, nics: list[Nic]) -> None:
    """End the guest if it still runs, then remove its definition, its files, and the guards of its NICs."""
    await agent.part(Libvirt).call(_remove, vm_uuid)
    await call_hooks(agent, agent.hooks.nic_unplugged, nics)
    await agent.run_blocking(_remove_directory, vm_directory(agent, vm_uuid))
    agent.part(Watch).forget(vm_uuid)


async def _is_active(agent: Agent, vm_uuid: str) -> bool:
    found = await look(agent, vm_uuid)
    return found is not None and found.active


# --- blocking, in threads ----------------------------------------------------------------------------------------


def _look(connection: Any, vm_uuid: str) -> Found | None:
    domain = domains.find(connection, vm_uuid)
    if domain is None:
        return None
    return Found(domains.state(domain), bool(domain.isActive()), domains.nics(domain))


def _run_guest(connection: Any, vm_uuid: str, resume: bool) -> StartVmAnswer:
    domain = domains.running(connection, vm_uuid)
    if resume and domains.state(domain) == "Paused":
        domain.resume()
    kind = domains.hypervisor(domain)
    return StartVmAnswer(vnc_port=domains.vnc_port(domain), hypervisor="kvm" if kind == "kvm" else "tcg")


def _switch(connection: Any, vm_uuid: str, when: str, action: Callable[[Any], Any]) -> None:
    domain = domains.running(connection, vm_uuid)
    if domains.state(domain) == when:
        action(domain)


def _if_active(connection: Any, vm_uuid: str, action: Callable[[Any], None]) -> None:
    domain = domains.find(connection, vm_uuid)
    if domain is not None and domain.isActive():
        action(domain)


def _remove(connection: Any, vm_uuid: str) -> None:
    domain = domains.find(connection, vm_uuid)
    if domain is not None:
        if domain.isActive():
            domains.pull_plug(domain)
        domains.undefine(domain)


def _prepare_files(cmd: StartVm, directory: Path) -> dict[str, str]:
    """Make the guest's directory with fresh files; returns the cache modes of disks that need another than asked."""
    modes = {}
    for disk in cmd.disks:
        if not os.path.exists(disk.install_path):
            raise AgentFailure(NOT_FOUND, f"volume {disk.volume_uuid}: no file {disk.install_path}")
        if disk.cache_mode in ("none", "directsync") and not takes_direct_io(disk.install_path):
            modes[disk.install_path] = "writeback" if disk.cache_mode == "none" else "writethrough"
    for cdrom in cmd.cdroms:
        if cdrom.install_path is not None and not os.path.exists(cdrom.install_path):
            raise AgentFailure(NOT_FOUND, f"CD-ROM {cdrom.device_id}: no file {cdrom.install_path}")
    _remove_directory(directory)
    directory.mkdir(parents=True)
    if cmd.cidata is not None:
        try:
            cidata.write(directory / "cidata.iso", cmd.cidata)
        except OSError as error:
            raise AgentFailure(STORAGE, f"cannot write the cidata disk: {error}") from error
    return modes


def takes_direct_io(path: str) -> bool:
    """Whether the file can be read past the page cache (tmpfs and some network file systems cannot)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _remove_directory(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
