"""The libvirt definition of a guest, built from a StartVm command.

Invariant: the same command gives the same definition, and devices carry aliases derived from their UUIDs, so that a
device is found again without remembering anything: `ua-volume-<uuid>`, `ua-nic-<uuid>`, `ua-cdrom-<device id>`.
"""

from __future__ import annotations

import string
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from caelum.agent.protocol import INVALID, Cdrom, Disk, Nic, StartVm
from caelum.agent.registry import AgentFailure

NAMESPACE = "https://caelum.cloud/xml/domain/1"
"""Our namespace in a domain's metadata: a domain without it is not ours."""
PREFIX = "caelum"
SPARE_PORTS = 12
"""PCIe slots kept free for hot plug."""
MAX_PORTS = 28
COLD_PCI_DEVICES = 6
"""PCI devices besides disks and NICs: USB, SCSI, serial bus, balloon, random numbers, one for what libvirt adds."""
SATA_UNITS = 6
SERIAL_LENGTH = 20
"""Longest serial number of a virtio disk."""
TB_CACHE_MIB = 32
"""QEMU's cache of translated code: with the default, a guest's reset takes twice as long."""
VNC_PASSWORD_LENGTH = 8

ET.register_namespace(PREFIX, NAMESPACE)


class HostSide(msgspec.Struct, frozen=True, kw_only=True):
    """What the definition needs to know of this host."""

    hypervisor: Literal["kvm", "tcg"]
    directory: Path
    """The guest's own directory: serial log, NVRAM, cidata."""
    cidata: Path | None = None
    cache_modes: dict[str, str] = {}
    """Install path -> cache mode, where the asked one does not work."""


def build(cmd: StartVm, host: HostSide) -> str:
    """The definition as XML text."""
    root = ET.Element("domain", type="kvm" if host.hypervisor == "kvm" else "qemu")
    _text(root, "name", cmd.vm_uuid)
    _text(root, "uuid", str(uuid.UUID(cmd.vm_uuid)))
    _text(root, "title", cmd.name)
    _metadata(root, cmd)
    _text(root, "memory", str(cmd.memory), unit="b")
    _text(root, "vcpu", str(cmd.cpu_num), placement="static")
    _cpu_limit(root, cmd)
    _firmware(root, cmd, host)
    _features(root, host)
    _cpu(root, cmd, host)
    _clock(root, cmd)
    for name, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "preserve")):
        _text(root, name, action)
    power = ET.SubElement(root, "pm")
    ET.SubElement(power, "suspend-to-mem", enabled="no")
    ET.SubElement(power, "suspend-to-disk", enabled="no")
    _devices(root, cmd, host)
    # QEMU runs as root without relabelling: images are shared between guests, and their owner must not change.
    label = ET.SubElement(root, "seclabel", type="static", model="dac", relabel="no")
    _text(label, "label", "+0:+0")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")


def volume_alias(volume_uuid: str) -> str:
    """The alias of a volume's disk device."""
    return f"ua-volume-{volume_uuid}"


def nic_alias(nic_uuid: str) -> str:
    """The alias of a NIC."""
    return f"ua-nic-{nic_uuid}"


def cdrom_alias(device_id: int) -> str:
    """The alias of a CD-ROM drive."""
    return f"ua-cdrom-{device_id}"


def nic_mark(nic: Nic) -> ET.Element:
    """What our metadata remembers of a NIC."""
    attributes = {"uuid": nic.nic_uuid, "name": nic.name, "mac": nic.mac, "bridge": nic.bridge}
    return ET.Element(f"{{{NAMESPACE}}}nic", attributes)


def disk_element(disk: Disk, *, cache: str | None = None, boot: int | None = None) -> ET.Element:
    """A disk device."""
    element = ET.Element("disk", type="file", device="disk")
    driver = {"name": "qemu", "type": disk.format, "cache": cache or disk.cache_mode, "discard": "unmap"}
    ET.SubElement(element, "driver", driver)
    ET.SubElement(element, "source", file=disk.install_path)
    prefix = "vd" if disk.bus == "virtio" else "sd"
    ET.SubElement(element, "target", dev=device_name(prefix, disk.device_id), bus=disk.bus)
    _text(element, "serial", disk.volume_uuid[:SERIAL_LENGTH])
    if disk.bus == "sata":
        _sata_unit(element, disk.device_id)
    _boot(element, boot)
    ET.SubElement(element, "alias", name=volume_alias(disk.volume_uuid))
    return element


def cdrom_element(cdrom: Cdrom, unit: int, *, boot: int | None = None) -> ET.Element:
    """A CD-ROM drive, empty without an image."""
    element = _drive(cdrom.install_path, unit, "sata")
    _sata_unit(element, unit)
    _boot(element, boot)
    ET.SubElement(element, "alias", name=cdrom_alias(cdrom.device_id))
    return element


def cidata_element(path: Path) -> ET.Element:
    """The drive with the NoCloud disk: on SCSI, because kernels made for clouds have no SATA driver."""
    element = _drive(str(path), SATA_UNITS, "scsi")
    # Disks are on target 0.
    ET.SubElement(element, "address", type="drive", controller="0", bus="0", target="1", unit="0")
    ET.SubElement(element, "alias", name="ua-cidata")
    return element


def _drive(path: str | None, index: int, bus: str) -> ET.Element:
    element = ET.Element("disk", type="file", device="cdrom")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    if path is not None:
        ET.SubElement(element, "source", file=path)
    # The address says where the drive is; the name only has to differ from those of disks.
    ET.SubElement(element, "target", dev=device_name("sd", 26 + index), bus=bus)
    ET.SubElement(element, "readonly")
    return element


def nic_element(nic: Nic, *, boot: int | None = None) -> ET.Element:
    """A network interface on a bridge."""
    element = ET.Element("interface", type="bridge")
    ET.SubElement(element, "mac", address=nic.mac)
    ET.SubElement(element, "source", bridge=nic.bridge)
    ET.SubElement(element, "target", dev=nic.name)
    ET.SubElement(element, "model", type=nic.model)
    ET.SubElement(element, "mtu", size=str(nic.mtu))
    # The network boot program costs every start of a guest time; it is there only for who boots from the network.
    ET.SubElement(element, "rom", enabled="no" if boot is None else "yes")
    _boot(element, boot)
    ET.SubElement(element, "alias", name=nic_alias(nic.nic_uuid))
    return element


def device_name(prefix: str, index: int) -> str:
    """`vd`, 0 -> `vda`; 26 -> `vdaa`."""
    letters = ""
    index += 1
    while index > 0:
        index, rest = divmod(index - 1, 26)
        letters = string.ascii_lowercase[rest] + letters
    return prefix + letters


def boot_orders(cmd: StartVm) -> dict[str, int]:
    """Alias -> place in the boot order: what the devices say themselves, else the command's kinds in turn."""
    given = _given_orders(cmd)
    if given:
        return given
    kinds = {
        "HardDisk": [volume_alias(disk.volume_uuid) for disk in sorted(cmd.disks, key=lambda one: one.device_id)],
        "CdRom": [cdrom_alias(cdrom.device_id) for cdrom in cmd.cdroms],
        # A NIC that is not first in line would only cost time: its boot program is slow to give up.
        "Network": [nic_alias(nic.nic_uuid) for nic in cmd.nics] if cmd.boot_order[:1] == ("Network",) else [],
    }
    aliases = [alias for kind in cmd.boot_order for alias in kinds.get(kind, [])]
    return {alias: place for place, alias in enumerate(aliases, start=1)}


def _given_orders(cmd: StartVm) -> dict[str, int]:
    every = [(volume_alias(disk.volume_uuid), disk.boot_order) for disk in cmd.disks]
    every += [(cdrom_alias(cdrom.device_id), cdrom.boot_order) for cdrom in cmd.cdroms]
    every += [(nic_alias(nic.nic_uuid), nic.boot_order) for nic in cmd.nics]
    return {alias: order for alias, order in every if order is not None}


def _metadata(root: ET.Element, cmd: StartVm) -> None:
    attributes = {"internal-id": str(cmd.internal_id)}
    mark = ET.SubElement(ET.SubElement(root, "metadata"), f"{{{NAMESPACE}}}vm", attributes)
    mark.extend(nic_mark(nic) for nic in cmd.nics)


def _cpu_limit(root: ET.Element, cmd: StartVm) -> None:
    if cmd.cpu_speed_quota is not None:
        tune = ET.SubElement(root, "cputune")
        _text(tune, "period", "100000")
        _text(tune, "quota", str(max(cmd.cpu_speed_quota, 1) * 1000))


def _firmware(root: ET.Element, cmd: StartVm, host: HostSide) -> None:
    uefi = cmd.boot_mode == "UEFI"
    element = ET.SubElement(root, "os", {"firmware": "efi"} if uefi else {})
    _text(element, "type", "hvm", arch="x86_64", machine=cmd.machine)
    if uefi:
        features = ET.SubElement(element, "firmware")
        ET.SubElement(features, "feature", enabled="no", name="secure-boot")
        _text(element, "nvram", str(host.directory / "nvram.fd"))


def _features(root: ET.Element, host: HostSide) -> None:
    element = ET.SubElement(root, "features")
    ET.SubElement(element, "acpi")
    ET.SubElement(element, "apic")
    if host.hypervisor == "tcg":
        _text(ET.SubElement(element, "tcg"), "tb-cache", str(TB_CACHE_MIB), unit="MiB")


def _cpu(root: ET.Element, cmd: StartVm, host: HostSide) -> None:
    if host.hypervisor == "tcg":
        # Everything that the emulator can do; five-level paging only makes it slower.
        cpu = ET.SubElement(root, "cpu", mode="maximum")
        ET.SubElement(cpu, "feature", policy="disable", name="la57")
    elif cmd.cpu_mode in ("host-model", "host-passthrough"):
        cpu = ET.SubElement(root, "cpu", mode=cmd.cpu_mode)
        if not cmd.nested:
            for name in ("vmx", "svm"):
                ET.SubElement(cpu, "feature", policy="disable", name=name)
    elif cmd.cpu_mode != "none":
        cpu = ET.SubElement(root, "cpu", mode="custom", match="exact")
        _text(cpu, "model", cmd.cpu_mode, fallback="allow")


def _clock(root: ET.Element, cmd: StartVm) -> None:
    clock = ET.SubElement(root, "clock", offset=cmd.clock)
    ET.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    ET.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    ET.SubElement(clock, "timer", name="hpet", present="no")


def _devices(root: ET.Element, cmd: StartVm, host: HostSide) -> None:
    devices = ET.SubElement(root, "devices")
    devices.extend(_controllers(cmd))
    orders = boot_orders(cmd)
    for disk in cmd.disks:
        boot = orders.get(volume_alias(disk.volume_uuid))
        devices.append(disk_element(disk, cache=host.cache_modes.get(disk.install_path), boot=boot))
    devices.extend(_cdroms(cmd, orders))
    if host.cidata is not None:
        devices.append(cidata_element(host.cidata))
    devices.extend(nic_element(nic, boot=orders.get(nic_alias(nic.nic_uuid))) for nic in cmd.nics)
    devices.extend(_console_devices(cmd, host))
    devices.extend(_services())


def _controllers(cmd: StartVm) -> Iterator[ET.Element]:
    if cmd.machine.startswith(("q35", "pc-q35")):
        used = len(cmd.disks) + len(cmd.nics) + COLD_PCI_DEVICES
        yield ET.Element("controller", type="pci", model="pcie-root")
        for _ in range(min(used + SPARE_PORTS, MAX_PORTS)):
            yield ET.Element("controller", type="pci", model="pcie-root-port")
    yield ET.Element("controller", type="usb", model="qemu-xhci")
    yield ET.Element("controller", type="scsi", model="virtio-scsi")


def _cdroms(cmd: StartVm, orders: dict[str, int]) -> list[ET.Element]:
    taken = [disk.device_id for disk in cmd.disks if disk.bus == "sata"]
    free = [unit for unit in reversed(range(SATA_UNITS)) if unit not in taken]
    if len(cmd.cdroms) > len(free):
        raise AgentFailure(
            INVALID, f"{len(cmd.cdroms)} CD-ROM drives and {len(taken)} SATA disks; {SATA_UNITS} fit in all"
        )
    return [
        cdrom_element(drive, unit, boot=orders.get(cdrom_alias(drive.device_id)))
        for drive, unit in zip(cmd.cdroms, free, strict=False)
    ]


def _console_devices(cmd: StartVm, host: HostSide) -> Iterable[ET.Element]:
    serial = ET.Element("serial", type="pty")
    ET.SubElement(serial, "log", file=str(host.directory / "serial.log"), append="on")
    ET.SubElement(serial, "target", port="0")
    console = ET.Element("console", type="pty")
    ET.SubElement(console, "target", type="serial", port="0")
    vnc = ET.Element("graphics", type="vnc", port="-1", autoport="yes", listen="127.0.0.1")
    if cmd.console_password:
        vnc.set("passwd", cmd.console_password[:VNC_PASSWORD_LENGTH])
    video = ET.Element("video")
    ET.SubElement(video, "model", type="vga")
    return serial, console, ET.Element("input", type="tablet", bus="usb"), vnc, video


def _services() -> Iterable[ET.Element]:
    agent = ET.Element("channel", type="unix")
    ET.SubElement(agent, "target", type="virtio", name="org.qemu.guest_agent.0")
    balloon = ET.Element("memballoon", model="virtio")
    ET.SubElement(balloon, "stats", period="10")
    rng = ET.Element("rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    return agent, balloon, rng, ET.Element("panic", model="isa")


def _sata_unit(element: ET.Element, unit: int) -> None:
    ET.SubElement(element, "address", type="drive", controller="0", bus="0", target="0", unit=str(unit))


def _boot(element: ET.Element, order: int | None) -> None:
    if order is not None:
        ET.SubElement(element, "boot", order=str(order))


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
