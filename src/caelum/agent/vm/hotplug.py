"""Devices of running guests: disks and NICs come and go, CD-ROMs change.

Invariant: a command succeeds only when the device is really there, or really gone: QEMU has let go of it.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from typing import Any

import libvirt  # type: ignore[import-untyped]

from caelum.agent.core import Agent
from caelum.agent.protocol import (
    INVALID,
    LIBVIRT,
    NOT_FOUND,
    TIMED_OUT,
    AttachDisk,
    AttachNic,
    Cdrom,
    DetachDisk,
    DetachNic,
    Disk,
    Empty,
    Nic,
    SetCdrom,
)
from caelum.agent.registry import AgentFailure, handler
from caelum.agent.vm import domains
from caelum.agent.vm.commands import call_hooks, takes_direct_io
from caelum.agent.vm.libvirtd import Libvirt
from caelum.agent.vm.watch import Watch
from caelum.agent.vm.xml import cdrom_alias, disk_element, nic_alias, nic_element, volume_alias

DETACH_SECONDS = 60.0
"""A guest must cooperate to let go of a device; one that does not within this time keeps it."""
ASK_AGAIN_SECONDS = 6.0
"""A guest that is still booting does not hear the request: it is repeated, later than QEMU's own 5 s of patience."""
POLL_SECONDS = 1.0

_LOCK = "vm-{vm_uuid}"
_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE


@handler(AttachDisk, lock=_LOCK)
async def attach_disk(agent: Agent, cmd: AttachDisk) -> Empty:
    """Plug a disk into a running guest."""
    await agent.part(Libvirt).call(_attach_disk, cmd.vm_uuid, cmd.disk)
    return Empty()


@handler(DetachDisk, lock=_LOCK)
async def detach_disk(agent: Agent, cmd: DetachDisk) -> Empty:
    """Take a disk out of a guest; success when it is not there or the guest does not run."""
    await _detach(agent, cmd.vm_uuid, volume_alias(cmd.disk.volume_uuid))
    return Empty()


@handler(AttachNic, lock=_LOCK)
async def attach_nic(agent: Agent, cmd: AttachNic) -> Empty:
    """Plug a NIC into a running guest; one whose guards cannot be set is taken out again."""
    await agent.part(Libvirt).call(_attach_nic, cmd.vm_uuid, cmd.nic)
    try:
        await call_hooks(agent, agent.hooks.nic_plugged, [cmd.nic])
    except Exception:
        await _detach(agent, cmd.vm_uuid, nic_alias(cmd.nic.nic_uuid))
        await _forget_nic(agent, cmd.vm_uuid, cmd.nic)
        raise
    return Empty()


@handler(DetachNic, lock=_LOCK)
async def detach_nic(agent: Agent, cmd: DetachNic) -> Empty:
    """Take a NIC out of a guest; success when it is not there or the guest does not run."""
    await _detach(agent, cmd.vm_uuid, nic_alias(cmd.nic.nic_uuid))
    await _forget_nic(agent, cmd.vm_uuid, cmd.nic)
    return Empty()


@handler(SetCdrom, lock=_LOCK)
async def set_cdrom(agent: Agent, cmd: SetCdrom) -> Empty:
    """Change what is in a CD-ROM drive."""
    await agent.part(Libvirt).call(_set_cdrom, cmd.vm_uuid, cmd.cdrom)
    return Empty()


async def _forget_nic(agent: Agent, vm_uuid: str, nic: Nic) -> None:
    await call_hooks(agent, agent.hooks.nic_unplugged, [nic])
    await agent.part(Libvirt).call(_unmark_nic, vm_uuid, nic)


async def _detach(agent: Agent, vm_uuid: str, alias: str) -> None:
    """Ask until the device is gone. Only its absence from the running definition counts; events tell when to look."""
    end = time.monotonic() + DETACH_SECONDS
    next_question = 0.0
    while True:
        now = time.monotonic()
        ask = now >= next_question
        if not await agent.part(Libvirt).call(_still_there, vm_uuid, alias, ask):
            return
        if ask:
            next_question = now + ASK_AGAIN_SECONDS
        if now >= end:
            raise AgentFailure(
                TIMED_OUT, f"the guest did not let go of {alias} within {DETACH_SECONDS:g} s", transient=True
            )
        await agent.part(Watch).changed(vm_uuid, POLL_SECONDS)


def _attach_disk(connection: Any, vm_uuid: str, disk: Disk) -> None:
    if disk.bus == "sata":
        raise AgentFailure(
            INVALID, f"volume {disk.volume_uuid}: a running guest takes no SATA disk; use virtio or scsi"
        )
    domain = domains.running(connection, vm_uuid)
    if domains.device(domain, volume_alias(disk.volume_uuid)) is not None:
        return
    cache = "writeback" if disk.cache_mode == "none" and not takes_direct_io(disk.install_path) else None
    _attach(domain, disk_element(disk, cache=cache), volume_alias(disk.volume_uuid))


def _attach_nic(connection: Any, vm_uuid: str, nic: Nic) -> None:
    domain = domains.running(connection, vm_uuid)
    domains.remember_nic(domain, nic, present=True)
    if domains.device(domain, nic_alias(nic.nic_uuid)) is None:
        _attach(domain, nic_element(nic), nic_alias(nic.nic_uuid))


def _attach(domain: Any, element: ET.Element, alias: str) -> None:
    domain.attachDeviceFlags(ET.tostring(element, encoding="unicode"), _LIVE)
    if domains.device(domain, alias) is None:
        raise AgentFailure(LIBVIRT, f"libvirt attached {alias}, but the guest {domain.name()} does not have it")


def _still_there(connection: Any, vm_uuid: str, alias: str, ask: bool) -> bool:
    domain = domains.find(connection, vm_uuid)
    if domain is None or not domain.isActive() or domains.device(domain, alias) is None:
        return False
    if ask:
        try:
            domain.detachDeviceAlias(alias, _LIVE)
        except libvirt.libvirtError:
            # Being let go of already, or gone this moment; else it is still there when the time is over.
            return domain.isActive() and domains.device(domain, alias) is not None
    return True


def _unmark_nic(connection: Any, vm_uuid: str, nic: Nic) -> None:
    domain = domains.find(connection, vm_uuid)
    if domain is not None:
        domains.remember_nic(domain, nic, present=False)


def _set_cdrom(connection: Any, vm_uuid: str, cdrom: Cdrom) -> None:
    domain = domains.running(connection, vm_uuid)
    drive = domains.device(domain, cdrom_alias(cdrom.device_id))
    if drive is None:
        raise AgentFailure(NOT_FOUND, f"the guest {vm_uuid} has no CD-ROM drive {cdrom.device_id}")
    source = drive.find("source")
    if (None if source is None else source.get("file")) == cdrom.install_path:
        return
    if source is not None:
        drive.remove(source)
    if cdrom.install_path is not None:
        ET.SubElement(drive, "source", file=cdrom.install_path)
    flags = _LIVE | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE
    domain.updateDeviceFlags(ET.tostring(drive, encoding="unicode"), flags)
