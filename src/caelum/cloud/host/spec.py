"""What a host is told of a virtual machine, in no vendor's words. Anyone may import this.

A `VmSpec` is complete: a driver needs no database to start the machine that it describes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MTU = 1500
"""Of a NIC, where nobody has said another one."""


class _Spec(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """Base of the parts of a description."""


def nic_name(internal_id: int, device_id: int) -> str:
    """The name of a NIC on its host, `vnic12.0`; Linux allows 15 characters."""
    return f"vnic{internal_id}.{device_id}"[:15]


class NicIp(_Spec):
    """An address of a NIC, with what DHCP needs to tell about its network."""

    ip: str
    netmask: str
    gateway: str = ""
    ip_version: int = 4
    ip_range_uuid: str | None = None


class NicSpec(_Spec):
    """A network interface. Whoever realises the L2 network, before the machine starts, fills in `bridge` and `mtu`."""

    nic_uuid: str
    l3_network_uuid: str
    device_id: int
    mac: str
    internal_name: str = ""
    """Name on the host; empty: `nic_name` of the machine's internal id."""
    l2_network_uuid: str = ""
    ips: list[NicIp] = []
    bridge: str = ""
    mtu: int = MTU
    driver_type: str = "virtio"
    is_default: bool = False
    """Whether the guest's default route and DNS come from this NIC's network."""
    anti_spoofing: bool = True
    extra_source_ips: list[str] = []
    """Addresses besides its own that the guest may send from, for example floating ones."""


class VolumeSpec(_Spec):
    """A disk. Device 0 is the root volume."""

    volume_uuid: str
    install_path: str
    device_id: int
    format: Literal["qcow2", "raw"] = "qcow2"
    type: Literal["Root", "Data"] = "Data"
    size: int = 0
    primary_storage_uuid: str | None = None
    primary_storage_type: str | None = None
    bus: Literal["virtio", "scsi", "sata"] = "virtio"
    cache_mode: str | None = None
    """None: the driver's setting."""


class CdromSpec(_Spec):
    """A CD-ROM drive; empty without `install_path`."""

    device_id: int
    iso_uuid: str | None = None
    install_path: str | None = None


class HostOrder(_Spec):
    """A command for a host in the protocol of its hypervisor's driver, made by a driver that speaks it too."""

    path: str
    body: dict[str, Any] = {}


class VmSpec(_Spec):
    """A virtual machine to start."""

    vm_uuid: str
    name: str
    internal_id: int
    cpu_num: int
    memory: int
    volumes: list[VolumeSpec] = []
    nics: list[NicSpec] = []
    cdroms: list[CdromSpec] = []
    boot_order: tuple[str, ...] = ("HardDisk", "CdRom", "Network")
    boot_mode: Literal["Legacy", "UEFI"] = "Legacy"
    platform: str = "Linux"
    architecture: str = "x86_64"
    clock: Literal["utc", "localtime"] = "utc"
    console_password: str | None = None
    cpu_speed_quota: int | None = None
    paused: bool = False
    hostname: str | None = None
    ssh_keys: list[str] = []
    user_data: str | None = None
    account_uuid: str | None = None
    cidata: dict[str, str] | None = None
    """NoCloud files, set when no metadata service reaches the guest."""
    before: list[HostOrder] = []
    """What the host does right before the start, in this order; the first that fails fails the start."""

    def nic_name(self, nic: NicSpec) -> str:
        """The name of one of its NICs on the host."""
        return nic.internal_name or nic_name(self.internal_id, nic.device_id)


class VmStarted(_Spec):
    """How a machine runs after its start."""

    vnc_port: int
    accelerated: bool = True
    """False: the host emulates the CPU in software, because hardware acceleration does not work there."""
    before: list[dict[str, Any]] = []
    """What the orders before the start were answered, in their order."""


class ConsoleTarget(_Spec):
    """Where the console proxy finds a screen: a port, and a WebSocket for who holds the server's certificate."""

    host_uuid: str
    scheme: str
    hostname: str
    port: int
    url: str | None = None
    serial_url: str | None = None
