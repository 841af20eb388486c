"""Virtual machines, their NICs and CD-ROM drives, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from caelum.cloud.host.api import HostInventory
from caelum.cloud.l3.api import L3NetworkInventory, UsedIpInventory
from caelum.cloud.volume.api import VolumeInventory
from caelum.kernel.errors import error_type
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    inventory,
    rest,
)

PACKAGE = "org.zstack.header.vm"
MAX_LONG = 2**63 - 1

CREATE_FAILED = error_type("VM.1000", "Unable to create a new vm", "Read the cause; nothing of the VM is left.")
START_FAILED = error_type("VM.1001", "Unable to start a vm", "Read the cause; the VM is stopped as before.")
STOP_FAILED = error_type("VM.1002", "Unable to stop a vm", "Read the cause; repeat with type cold.")
REBOOT_FAILED = error_type("VM.1003", "Unable to reboot a vm", "Read the cause, then start the VM.")
DESTROY_FAILED = error_type("VM.1004", "Unable to destroy a vm", "Read the cause, then repeat.")
ATTACH_VOLUME_FAILED = error_type(
    "VM.1005", "Unable to attach data volume to a vm", "Read the cause; nothing is attached."
)
DETACH_VOLUME_FAILED = error_type(
    "VM.1006", "Unable to detach data volume from a vm", "Read the cause; it is still attached."
)
ATTACH_NETWORK_FAILED = error_type(
    "VM.1007", "Unable to attach a network to vm", "Read the cause; nothing is attached."
)
NOT_IN_CORRECT_STATE = error_type(
    "VM.1010",
    "VM is not in state that allows required operation",
    "Bring the VM into one of the allowed states, then repeat.",
)
PAUSE_FAILED = error_type("VM.1012", "Unable to suspend a vm", "Read the cause; the VM still runs.")
RESUME_FAILED = error_type("VM.1013", "Unable to resume a vm", "Read the cause; the VM is still paused.")

Uuid = Annotated[str, Param(resource="VmInstanceVO", check_account=True, target=True)]
Description = Annotated[str | None, Param(max_length=2048)]
Platform = Annotated[
    str | None, Param(valid_values=("Linux", "Windows", "Other", "Paravirtualization", "WindowsVirtio"))
]


@inventory(
    PACKAGE,
    vo="VmNicVO",
    expands=(
        Expand(field="vmInstance", inventory="VmInstanceInventory", foreign_key="vmInstanceUuid"),
        Expand(field="l3Network", inventory="L3NetworkInventory", foreign_key="l3NetworkUuid"),
        Expand(field="usedIp", inventory="UsedIpInventory", foreign_key="uuid", key="vmNicUuid"),
    ),
)
class VmNicInventory(Inventory):
    """A network interface of a VM; `internal_name` is its name on the host."""

    uuid: str
    vm_instance_uuid: str
    l3_network_uuid: str
    mac: str
    device_id: int
    type: str
    state: str
    create_date: datetime
    last_op_date: datetime
    ip: str | None = None
    netmask: str | None = None
    gateway: str | None = None
    hypervisor_type: str | None = None
    meta_data: str | None = None
    ip_version: int | None = None
    driver_type: str | None = None
    used_ips: list[UsedIpInventory] | None = None
    internal_name: str | None = None


@inventory(
    "org.zstack.header.vm.cdrom",
    vo="VmCdRomVO",
    expands=(Expand(field="vmInstance", inventory="VmInstanceInventory", foreign_key="vmInstanceUuid"),),
)
class VmCdRomInventory(Inventory):
    """A CD-ROM drive; empty without `iso_uuid`."""

    uuid: str
    vm_instance_uuid: str
    device_id: int
    name: str
    create_date: datetime
    last_op_date: datetime
    iso_uuid: str | None = None
    iso_install_path: str | None = None
    description: str | None = None
    protocol: str | None = None


@inventory(
    PACKAGE,
    vo="VmInstanceVO",
    expands=(
        Expand(field="zone", inventory="ZoneInventory", foreign_key="zoneUuid"),
        Expand(field="cluster", inventory="ClusterInventory", foreign_key="clusterUuid"),
        Expand(field="host", inventory="HostInventory", foreign_key="hostUuid"),
        Expand(field="image", inventory="ImageInventory", foreign_key="imageUuid"),
        Expand(field="instanceOffering", inventory="InstanceOfferingInventory", foreign_key="instanceOfferingUuid"),
        Expand(field="rootVolume", inventory="VolumeInventory", foreign_key="rootVolumeUuid"),
        Expand(field="vmNics", inventory="VmNicInventory", foreign_key="uuid", key="vmInstanceUuid"),
        Expand(field="allVolumes", inventory="VolumeInventory", foreign_key="uuid", key="vmInstanceUuid"),
        Expand(field="vmCdRoms", inventory="VmCdRomInventory", foreign_key="uuid", key="vmInstanceUuid"),
    ),
)
class VmInstanceInventory(Inventory, kw_only=True):
    """A virtual machine. Memory is in bytes; `cpu_speed` in MHz, 0 when it does not matter."""

    uuid: str
    name: str
    zone_uuid: str
    type: str
    hypervisor_type: str
    memory_size: int
    reserved_memory_size: int
    cpu_num: int
    cpu_speed: int
    state: str
    create_date: datetime
    last_op_date: datetime
    vm_nics: list[VmNicInventory]
    all_volumes: list[VolumeInventory] = []
    vm_cd_roms: list[VmCdRomInventory]
    description: str | None = None
    cluster_uuid: str | None = None
    image_uuid: str | None = None
    host_uuid: str | None = None
    last_host_uuid: str | None = None
    instance_offering_uuid: str | None = None
    root_volume_uuid: str | None = None
    platform: str | None = None
    architecture: str | None = None
    default_l3_network_uuid: str | None = None
    allocator_strategy: str | None = None
    guest_os_type: str | None = None


@canonical("/vm/state/change")
class VmStateChanged(CanonicalEvent):
    """A VM went from one state to another."""

    vm_uuid: str
    old_state: str
    new_state: str
    inventory: VmInstanceInventory


@canonical("/vmTracer/strangerVmFound")
class StrangerVmFound(CanonicalEvent):
    """A host runs a machine that the cloud does not know. It is told, never touched."""

    vm_identity: str
    host_uuid: str
    vm_state: str


@canonical("/vmTracer/vmStateChanged")
class VmStateChangedOnHost(CanonicalEvent):
    """A VM changed its state by itself, or against the records."""

    vm_uuid: str
    from_state: str = msgspec.field(name="from")
    to_state: str = msgspec.field(name="to")
    original_host_uuid: str | None = None
    current_host_uuid: str | None = None


@rest("POST /vm-instances", package=PACKAGE, tags_for="VmInstanceVO")
class CreateVmInstance(CreateMessage[VmInstanceInventory]):
    """Create a VM from an image: size by offering or by numbers, disks, networks, and a place that may be left open."""

    name: Annotated[str, Param(max_length=255)]
    instance_offering_uuid: Annotated[str | None, Param(resource="InstanceOfferingVO", check_account=True)] = None
    cpu_num: Annotated[int | None, Param()] = None
    memory_size: Annotated[int | None, Param()] = None
    reserved_memory_size: Annotated[int | None, Param(minimum=0, maximum=MAX_LONG)] = None
    image_uuid: Annotated[str | None, Param(resource="ImageVO", check_account=True, empty_string=False)] = None
    l3_network_uuids: Annotated[list[str] | None, Param(resource="L3NetworkVO", check_account=True)] = None
    vm_nic_params: Annotated[str | None, Param()] = None
    type: Annotated[str | None, Param(valid_values=("UserVm", "ApplianceVm"))] = None
    root_disk_offering_uuid: Annotated[str | None, Param(resource="DiskOfferingVO", check_account=True)] = None
    root_disk_size: Annotated[int | None, Param()] = None
    data_disk_sizes: Annotated[list[int] | None, Param()] = None
    data_disk_offering_uuids: Annotated[list[str] | None, Param(resource="DiskOfferingVO", check_account=True)] = None
    zone_uuid: Annotated[str | None, Param(resource="ZoneVO")] = None
    cluster_uuid: Annotated[str | None, Param(resource="ClusterVO")] = None
    host_uuid: Annotated[str | None, Param(resource="HostVO")] = None
    primary_storage_uuid_for_root_volume: Annotated[str | None, Param(resource="PrimaryStorageVO")] = None
    description: Description = None
    default_l3_network_uuid: Annotated[str | None, Param()] = None
    strategy: Annotated[str | None, Param(valid_values=("InstantStart", "JustCreate", "CreateStopped"))] = (
        "InstantStart"
    )
    root_volume_system_tags: Annotated[list[str] | None, Param()] = None
    data_volume_system_tags: Annotated[list[str] | None, Param()] = None
    data_volume_system_tags_on_index: Annotated[dict[str, list[str]] | None, Param()] = None
    ssh_key_pair_uuids: Annotated[list[str] | None, Param()] = None
    platform: Platform = None
    guest_os_type: Annotated[str | None, Param(max_length=255)] = None
    architecture: Annotated[
        str | None, Param(max_length=32, valid_values=("x86_64", "aarch64", "mips64el", "loongarch64"))
    ] = None
    virtio: Annotated[bool | None, Param()] = None


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class StartVmInstance(ApiMessage[VmInstanceInventory]):
    """Start a stopped VM, on a given host or cluster or where there is room."""

    uuid: Uuid
    cluster_uuid: Annotated[str | None, Param(resource="ClusterVO")] = None
    host_uuid: Annotated[str | None, Param(resource="HostVO")] = None


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class StopVmInstance(ApiMessage[VmInstanceInventory]):
    """Stop a VM: grace asks the guest to shut down first, cold pulls the plug."""

    uuid: Uuid
    type: Annotated[str | None, Param(valid_values=("grace", "cold"))] = "grace"
    stop_ha: Annotated[str | None, Param(valid_values=("true",))] = msgspec.field(default=None, name="stopHA")


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class RebootVmInstance(ApiMessage[VmInstanceInventory]):
    """Stop a VM and start it again where it is."""

    uuid: Uuid


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class PauseVmInstance(ApiMessage[VmInstanceInventory]):
    """Freeze a running VM in its host's memory."""

    uuid: Uuid


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class ResumeVmInstance(ApiMessage[VmInstanceInventory]):
    """Let a paused VM go on."""

    uuid: Uuid


@rest("DELETE /vm-instances/{uuid}", package=PACKAGE)
class DestroyVmInstance(DeleteMessage[None]):
    """Destroy a VM; by the deletion policy it can be recovered until it is expunged."""

    uuid: Annotated[str, Param(resource="VmInstanceVO", check_account=True, target=True, success_if_missing=True)]


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class RecoverVmInstance(ApiMessage[VmInstanceInventory]):
    """Bring a destroyed VM back as a stopped one."""

    uuid: Uuid


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class ExpungeVmInstance(ApiMessage[None]):
    """Delete a destroyed VM and its root disk for good."""

    uuid: Annotated[str, Param(resource="VmInstanceVO")]


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class UpdateVmInstance(ApiMessage[VmInstanceInventory]):
    """Change a VM's description; CPU and memory of a stopped VM too."""

    uuid: Uuid
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Description = None
    state: Annotated[str | None, Param(valid_values=("Stopped", "Running"))] = None
    default_l3_network_uuid: Annotated[str | None, Param(resource="L3NetworkVO")] = None
    platform: Platform = None
    cpu_num: Annotated[int | None, Param(minimum=1, maximum=1024)] = None
    memory_size: Annotated[int | None, Param(minimum=1, maximum=MAX_LONG)] = None
    reserved_memory_size: Annotated[int | None, Param(minimum=0, maximum=MAX_LONG)] = None
    guest_os_type: Annotated[str | None, Param(max_length=255)] = None


@rest("PUT /vm-instances/{vmInstanceUuid}/actions", package=PACKAGE)
class ChangeInstanceOffering(ApiMessage[VmInstanceInventory]):
    """Give a stopped VM the size of another offering."""

    vm_instance_uuid: Uuid
    instance_offering_uuid: Annotated[str, Param(resource="InstanceOfferingVO", check_account=True)]


@rest("POST /vm-instances/{vmInstanceUuid}/l3-networks/{l3NetworkUuid}", package=PACKAGE)
class AttachL3NetworkToVm(ApiMessage[VmInstanceInventory]):
    """Give a VM a NIC on a network; a running VM sees it at once."""

    vm_instance_uuid: Uuid
    l3_network_uuid: Annotated[str, Param(resource="L3NetworkVO", check_account=True)]
    static_ip: Annotated[str | None, Param()] = None
    driver_type: Annotated[str | None, Param()] = None
    custom_mac: Annotated[str | None, Param()] = None
    vm_nic_params: Annotated[str | None, Param()] = None


@rest("DELETE /vm-instances/nics/{vmNicUuid}", package=PACKAGE)
class DetachL3NetworkFromVm(ApiMessage[VmInstanceInventory]):
    """Take a NIC from its VM and give its address back."""

    vm_nic_uuid: Annotated[str, Param(resource="VmNicVO", check_account=True, target=True)]


@rest("GET /vm-instances", also=("/vm-instances/{uuid}",), package=PACKAGE)
class QueryVmInstance(ApiQuery[VmInstanceInventory]):
    """Query VMs."""


@rest("GET /vm-instances/nics", also=("/vm-instances/nics/{uuid}",), package=PACKAGE)
class QueryVmNic(ApiQuery[VmNicInventory]):
    """Query NICs of VMs."""


@rest("GET /vm-instances/cdroms", also=("/vm-instances/cdroms/{uuid}",), package="org.zstack.header.vm.cdrom")
class QueryVmCdRom(ApiQuery[VmCdRomInventory]):
    """Query CD-ROM drives of VMs."""


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class SetVmHostname(ApiMessage[None]):
    """Set the host name that DHCP and the metadata service tell the guest."""

    uuid: Uuid
    hostname: Annotated[str, Param()]


@rest("DELETE /vm-instances/{uuid}/hostnames", package=PACKAGE)
class DeleteVmHostname(DeleteMessage[None]):
    """Forget a VM's host name; one is made of its address then."""

    uuid: Uuid


class HostnameReply(Reply):
    """A VM's host name, if it has one of its own."""

    hostname: str | None = None


@rest("GET /vm-instances/{uuid}/hostnames", package=PACKAGE)
class GetVmHostname(ApiMessage[HostnameReply]):
    """Get a VM's host name."""

    uuid: Uuid


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class SetVmSshKey(ApiMessage[VmInstanceInventory]):
    """Set the SSH public key that the guest takes from the metadata service."""

    uuid: Uuid
    ssh_key: Annotated[str, Param(no_trim=True)] = msgspec.field(name="SshKey")


@rest("DELETE /vm-instances/{uuid}/ssh-keys", package=PACKAGE)
class DeleteVmSshKey(ApiMessage[None]):
    """Forget a VM's SSH public key."""

    uuid: Annotated[str | None, Param(resource="VmInstanceVO", check_account=True, target=True)] = None


class SshKeyReply(Reply):
    """A VM's SSH public key, if it has one."""

    ssh_key: str | None = None


@rest("GET /vm-instances/{uuid}/ssh-keys", package=PACKAGE)
class GetVmSshKey(ApiMessage[SshKeyReply]):
    """Get a VM's SSH public key."""

    uuid: Annotated[str, Param(resource="VmInstanceVO", check_account=True)]


@rest("PUT /vm-instances/{vmInstanceUuid}/actions", package=PACKAGE)
class SetVmStaticIp(ApiMessage[None]):
    """Give a stopped VM's NIC on a network a fixed address."""

    vm_instance_uuid: Uuid
    l3_network_uuid: Annotated[str, Param(resource="L3NetworkVO")]
    ip: Annotated[str | None, Param()] = None
    ip6: Annotated[str | None, Param()] = None
    netmask: Annotated[str | None, Param()] = None
    gateway: Annotated[str | None, Param()] = None
    ipv6_gateway: Annotated[str | None, Param()] = None
    ipv6_prefix: Annotated[str | None, Param()] = None


@rest("DELETE /vm-instances/{vmInstanceUuid}/static-ips", package=PACKAGE)
class DeleteVmStaticIp(DeleteMessage[None]):
    """Let a network choose the VM's address again, from the next NIC on."""

    vm_instance_uuid: Uuid
    l3_network_uuid: Annotated[str, Param()]
    static_ip: Annotated[str | None, Param()] = None


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class SetVmConsolePassword(ApiMessage[VmInstanceInventory]):
    """Set the password of the VM's screen, from its next start on."""

    uuid: Uuid
    console_password: Annotated[str, Param(secret=True)]


@rest("DELETE /vm-instances/{uuid}/console-password", package=PACKAGE)
class DeleteVmConsolePassword(ApiMessage[None]):
    """Remove the password of the VM's screen, from its next start on."""

    uuid: Uuid


@rest("PUT /vm-instances/{uuid}/actions", package=PACKAGE)
class SetVmBootOrder(ApiMessage[VmInstanceInventory]):
    """Set the devices that a VM tries to boot from, in order: HardDisk, CdRom, Network."""

    uuid: Uuid
    boot_order: Annotated[list[str] | None, Param()] = None


class BootOrderReply(Reply):
    """The order of boot devices."""

    orders: list[str]


@rest("GET /vm-instances/{uuid}/boot-orders", package=PACKAGE)
class GetVmBootOrder(ApiMessage[BootOrderReply]):
    """Get the devices that a VM tries to boot from."""

    uuid: Annotated[str, Param(resource="VmInstanceVO", check_account=True)]


@rest("GET /vm-instances/{vmInstanceUuid}/data-volume-candidates", package=PACKAGE)
class GetVmAttachableDataVolume(ApiMessage[list[VolumeInventory]]):
    """Get the data volumes that could be attached to a VM."""

    vm_instance_uuid: Annotated[str, Param(resource="VmInstanceVO", check_account=True)]


@rest("GET /vm-instances/{vmInstanceUuid}/l3-networks-candidates", package=PACKAGE)
class GetVmAttachableL3Network(ApiMessage[list[L3NetworkInventory]]):
    """Get the networks that a VM could have a NIC on."""

    vm_instance_uuid: Annotated[str, Param(resource="VmInstanceVO", check_account=True)]


class StartingCandidates(Reply):
    """Where a VM could start now."""

    hosts: list[HostInventory]


@rest("GET /vm-instances/{uuid}/starting-target-hosts", package=PACKAGE)
class GetVmStartingCandidateClustersHosts(ApiMessage[StartingCandidates]):
    """Get the hosts where a stopped VM could start, best first."""

    uuid: Uuid


class Capabilities(Reply):
    """What a VM can do where it is."""

    capabilities: dict[str, bool]


@rest("GET /vm-instances/{uuid}/capabilities", package=PACKAGE)
class GetVmCapabilities(ApiMessage[Capabilities]):
    """Get what a VM can do on its host and storage."""

    uuid: Uuid
