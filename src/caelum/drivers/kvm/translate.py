"""From the cloud's description of a virtual machine to the agent's command.

Invariant: pure; settings come in as values.
"""

from __future__ import annotations

import msgspec

from caelum.agent import protocol as p
from caelum.cloud.host.spec import CdromSpec, NicSpec, VmSpec, VolumeSpec, nic_name


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that matter for a machine."""

    cache_mode: str = "none"
    cpu_mode: str = "none"


def start_command(spec: VmSpec, choices: Choices) -> p.StartVm:
    """The command that starts this machine."""
    return p.StartVm(
        vm_uuid=spec.vm_uuid,
        name=spec.name,
        internal_id=spec.internal_id,
        cpu_num=spec.cpu_num,
        memory=spec.memory,
        disks=[disk(one, choices) for one in sorted(spec.volumes, key=lambda volume: volume.device_id)],
        nics=[nic(one, spec.internal_id) for one in sorted(spec.nics, key=lambda nic: nic.device_id)],
        cdroms=[cdrom(one) for one in spec.cdroms],
        boot_order=spec.boot_order,
        boot_mode=spec.boot_mode,
        machine="virt" if spec.architecture == "aarch64" else "q35",
        cpu_mode=choices.cpu_mode if choices.cpu_mode != "none" else "host-model",
        clock=spec.clock,
        console_password=spec.console_password,
        cpu_speed_quota=spec.cpu_speed_quota,
        paused=spec.paused,
        cidata=spec.cidata,
    )


def disk(volume: VolumeSpec, choices: Choices) -> p.Disk:
    """A volume as a disk."""
    return p.Disk(
        volume_uuid=volume.volume_uuid,
        install_path=volume.install_path,
        format=volume.format,
        device_id=volume.device_id,
        bus=volume.bus,
        cache_mode=volume.cache_mode or choices.cache_mode,
    )


def nic(spec: NicSpec, internal_id: int) -> p.Nic:
    """A network interface; its name is the tap's on the host."""
    return p.Nic(
        nic_uuid=spec.nic_uuid,
        device_id=spec.device_id,
        mac=spec.mac,
        name=(spec.internal_name or nic_name(internal_id, spec.device_id))[:15],
        bridge=spec.bridge,
        ips=[one.ip for one in spec.ips],
        model=spec.driver_type,
        mtu=spec.mtu,
        anti_spoofing=spec.anti_spoofing,
        extra_source_ips=spec.extra_source_ips,
    )


def cdrom(spec: CdromSpec) -> p.Cdrom:
    """A CD-ROM drive."""
    return p.Cdrom(device_id=spec.device_id, install_path=spec.install_path)
