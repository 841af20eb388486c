"""What a simulated host holds, and what each command does to it.

Invariant: every command is idempotent, as in the real agent, and refuses what the real agent refuses: a disk whose
file is not there, a NIC whose bridge is not there, more than fits. `dump()` holds no times, ports or orders, so two
runs that end in the same state dump the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from caelum.agent import protocol as p

F = TypeVar("F", bound=Callable[..., Any])
_Handler = Callable[["World", Any], Any]
_handlers: dict[str, _Handler] = {}

_OVERHEAD = 196_624
"""Bytes of a fresh qcow2 file."""


class CommandError(Exception):
    """A command that failed as a real one would."""

    def __init__(self, code: str, details: str, **facts: Any) -> None:
        super().__init__(details)
        self.error = p.AgentError(code=code, details=details, facts=facts)


class Vm(msgspec.Struct):
    """A guest: what it was started with, and how it is."""

    definition: p.StartVm
    state: str
    vnc_port: int


def _does(cls: type[p.Command[Any]]) -> Callable[[F], F]:
    def mark(function: F) -> F:
        _handlers[cls.path] = function
        return function

    return mark


class World:
    """The state of one simulated host."""

    def __init__(self, facts: p.HostFacts, disk_bytes: int) -> None:
        self.facts = facts
        self.disk_bytes = disk_bytes
        self.host_uuid: str | None = None
        self.report_url: str | None = None
        self.vms: dict[str, Vm] = {}
        self.storages: dict[str, str] = {}
        self.files: dict[str, p.FileInfo] = {}
        self.backing: dict[str, str] = {}
        self.bridges: dict[str, p.CreateBridge] = {}
        self.dhcp: dict[str, p.ApplyDhcp] = {}
        self.leases: dict[str, dict[str, p.DhcpEntry]] = {}
        self.metadata: dict[str, dict[str, p.MetadataEntry]] = {}
        self.nat: dict[str, p.ApplyNat] = {}
        self.interfaces = {"eth0", "eth1"}
        self.downloads: list[str] = []

    def apply(self, command: p.Command[Any]) -> dict[str, Any]:
        """Do a command; the answer's fields. Raises CommandError."""
        handler = _handlers.get(command.path)
        if handler is None:
            raise CommandError(p.INVALID, f"the simulator does not know {command.path}")
        answer = handler(self, command)
        return msgspec.to_builtins(answer if answer is not None else p.Empty())  # type: ignore[no-any-return]

    def states(self) -> dict[str, str]:
        """State by VM UUID."""
        return {uuid: vm.state for uuid, vm in self.vms.items()}

    def power_off(self) -> None:
        """The whole machine lost power: what is in memory is gone, what is on disks stays."""
        self.vms.clear()
        for volatile in (self.bridges, self.dhcp, self.leases, self.metadata, self.nat):
            volatile.clear()

    def dump(self) -> dict[str, Any]:
        """All of it, comparable between runs."""
        return {
            "vms": {uuid: {"state": vm.state, **_plain(vm.definition)} for uuid, vm in sorted(self.vms.items())},
            "storages": dict(sorted(self.storages.items())),
            "files": {path: _plain(info) for path, info in sorted(self.files.items())},
            "backing": dict(sorted(self.backing.items())),
            "bridges": {name: _plain(bridge) for name, bridge in sorted(self.bridges.items())},
            "dhcp": {l3: {**_plain(config), "entries": _leases(self, l3)} for l3, config in sorted(self.dhcp.items())},
            "metadata": {
                l3: {ip: _plain(entry) for ip, entry in sorted(entries.items())}
                for l3, entries in sorted(self.metadata.items())
                if entries
            },
            "nat": {l3: _plain(nat) for l3, nat in sorted(self.nat.items())},
        }


def _plain(struct: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(struct)
    found.pop("rebuild", None)
    found.pop("entries", None)
    return found


def _leases(world: World, l3_uuid: str) -> dict[str, Any]:
    return {mac: _plain(entry) for mac, entry in sorted(world.leases.get(l3_uuid, {}).items())}


# --- host -----------------------------------------------------------------------------------------------------------


@_does(p.GetHostCapacity)
def _capacity(world: World, _: p.GetHostCapacity) -> p.HostCapacity:
    return p.HostCapacity(
        cpu_num=world.facts.cpu_num,
        used_cpu=sum(vm.definition.cpu_num for vm in world.vms.values()),
        total_memory=world.facts.total_memory,
        used_memory=sum(vm.definition.memory for vm in world.vms.values()),
    )


@_does(p.DumpHost)
def _dump_host(world: World, cmd: p.DumpHost) -> p.HostDump:
    paths = cmd.storage_paths or list(world.storages)
    return p.HostDump(
        vms=world.states(),
        unknown_domains=[],
        bridges=sorted(world.bridges),
        dhcp={l3: sorted(entries) for l3, entries in world.leases.items() if l3 in world.dhcp},
        metadata={l3: sorted(entries) for l3, entries in world.metadata.items()},
        nat=sorted(world.nat),
        taps=sorted(nic.name for vm in world.vms.values() if vm.state != "Stopped" for nic in vm.definition.nics),
        files={path: sorted(file for file in world.files if file.startswith(f"{path}/")) for path in paths},
        tasks_running=0,
    )


# --- virtual machines -----------------------------------------------------------------------------------------------


@_does(p.StartVm)
def _start_vm(world: World, cmd: p.StartVm) -> p.StartVmAnswer:
    known = world.vms.get(cmd.vm_uuid)
    if known is None or known.state not in ("Running", "Paused"):
        _check_definition(world, cmd)
        known = Vm(cmd, "Paused" if cmd.paused else "Running", _free_port(world))
        world.vms[cmd.vm_uuid] = known
    return p.StartVmAnswer(vnc_port=known.vnc_port, hypervisor=world.facts.hypervisor)


def _check_definition(world: World, cmd: p.StartVm) -> None:
    used = sum(vm.definition.memory for vm in world.vms.values() if vm.definition.vm_uuid != cmd.vm_uuid)
    if used + cmd.memory > world.facts.total_memory:
        free = world.facts.total_memory - used
        raise CommandError(p.LIBVIRT, f"cannot allocate {cmd.memory} bytes of memory, {free} are free", free=free)
    for disk in cmd.disks:
        _check_disk(world, disk)
    for nic in cmd.nics:
        _check_nic(world, nic)


def _check_disk(world: World, disk: p.Disk) -> None:
    if disk.install_path not in world.files:
        raise CommandError(p.NOT_FOUND, f"disk {disk.volume_uuid}: there is no file {disk.install_path}")


def _check_nic(world: World, nic: p.Nic) -> None:
    if nic.bridge not in world.bridges:
        raise CommandError(p.NETWORK, f"NIC {nic.name}: there is no bridge {nic.bridge!r}")
    if len(nic.name) > 15:
        raise CommandError(p.INVALID, f"NIC name {nic.name!r} has more than 15 characters")


def _free_port(world: World) -> int:
    used = {vm.vnc_port for vm in world.vms.values()}
    return next(port for port in range(5900, 65536) if port not in used)


@_does(p.RebootVm)
def _reboot_vm(world: World, cmd: p.RebootVm) -> p.StartVmAnswer:
    world.vms.pop(cmd.definition.vm_uuid, None)
    return _start_vm(world, cmd.definition)


@_does(p.StopVm)
def _stop_vm(world: World, cmd: p.StopVm) -> None:
    world.vms.pop(cmd.vm_uuid, None)


@_does(p.DestroyVm)
def _destroy_vm(world: World, cmd: p.DestroyVm) -> None:
    world.vms.pop(cmd.vm_uuid, None)


def _vm(world: World, vm_uuid: str) -> Vm:
    vm = world.vms.get(vm_uuid)
    if vm is None:
        raise CommandError(p.NOT_FOUND, f"there is no guest {vm_uuid}")
    return vm


@_does(p.PauseVm)
def _pause_vm(world: World, cmd: p.PauseVm) -> None:
    _vm(world, cmd.vm_uuid).state = "Paused"


@_does(p.ResumeVm)
def _resume_vm(world: World, cmd: p.ResumeVm) -> None:
    _vm(world, cmd.vm_uuid).state = "Running"


@_does(p.GetVmStates)
def _vm_states(world: World, cmd: p.GetVmStates) -> p.VmStates:
    wanted = cmd.vm_uuids
    return p.VmStates(states={uuid: s for uuid, s in world.states().items() if wanted is None or uuid in wanted})


@_does(p.AttachDisk)
def _attach_disk(world: World, cmd: p.AttachDisk) -> None:
    vm = _vm(world, cmd.vm_uuid)
    _check_disk(world, cmd.disk)
    _detach_disk(world, p.DetachDisk(vm_uuid=cmd.vm_uuid, disk=cmd.disk))
    vm.definition.disks = [*vm.definition.disks, cmd.disk]


@_does(p.DetachDisk)
def _detach_disk(world: World, cmd: p.DetachDisk) -> None:
    if vm := world.vms.get(cmd.vm_uuid):  # a guest that is gone has no disk either, as for a real host
        vm.definition.disks = [disk for disk in vm.definition.disks if disk.volume_uuid != cmd.disk.volume_uuid]


@_does(p.SetCdrom)
def _set_cdrom(world: World, cmd: p.SetCdrom) -> None:
    vm = _vm(world, cmd.vm_uuid)
    if cmd.cdrom.install_path is not None and cmd.cdrom.install_path not in world.files:
        raise CommandError(p.NOT_FOUND, f"there is no image {cmd.cdrom.install_path}")
    others = [one for one in vm.definition.cdroms if one.device_id != cmd.cdrom.device_id]
    vm.definition.cdroms = sorted([*others, cmd.cdrom], key=lambda one: one.device_id)


@_does(p.AttachNic)
def _attach_nic(world: World, cmd: p.AttachNic) -> None:
    vm = _vm(world, cmd.vm_uuid)
    _check_nic(world, cmd.nic)
    _detach_nic(world, p.DetachNic(vm_uuid=cmd.vm_uuid, nic=cmd.nic))
    vm.definition.nics = [*vm.definition.nics, cmd.nic]


@_does(p.DetachNic)
def _detach_nic(world: World, cmd: p.DetachNic) -> None:
    if vm := world.vms.get(cmd.vm_uuid):
        vm.definition.nics = [nic for nic in vm.definition.nics if nic.nic_uuid != cmd.nic.nic_uuid]


@_does(p.GetConsole)
def _console(world: World, cmd: p.GetConsole) -> p.ConsoleAddress:
    return p.ConsoleAddress(vnc_host="127.0.0.1", vnc_port=_vm(world, cmd.vm_uuid).vnc_port)


# --- storage --------------------------------------------------------------------------------------------------------


def _used(world: World) -> int:
    return sum(info.actual_size for info in world.files.values())


@_does(p.InitStorage)
def _init_storage(world: World, cmd: p.InitStorage) -> p.StorageCapacity:
    marked = world.storages.get(cmd.storage_path)
    if marked is None and not cmd.first:
        raise CommandError(p.STORAGE, f"{cmd.storage_path} does not have the mark of storage {cmd.storage_uuid}")
    if marked not in (None, cmd.storage_uuid):
        raise CommandError(p.STORAGE, f"{cmd.storage_path} belongs to storage {marked}")
    world.storages[cmd.storage_path] = cmd.storage_uuid
    return _storage(world)


@_does(p.LeaveStorage)
def _leave_storage(world: World, cmd: p.LeaveStorage) -> None:
    if world.storages.get(cmd.storage_path) == cmd.storage_uuid:
        del world.storages[cmd.storage_path]


@_does(p.GetStorageCapacity)
def _storage_capacity(world: World, _: p.GetStorageCapacity) -> p.StorageCapacity:
    return _storage(world)


def _storage(world: World) -> p.StorageCapacity:
    return p.StorageCapacity(total=world.disk_bytes, available=max(0, world.disk_bytes - _used(world)))


def _put(world: World, path: str, virtual: int, actual: int, form: str = "qcow2") -> p.FileInfo:
    known = world.files.get(path)
    if known is not None:
        return known
    free = world.disk_bytes - _used(world)
    if actual > free:
        raise CommandError(p.NO_SPACE, f"{path} needs {actual} bytes, {free} are free", needed=actual, free=free)
    world.files[path] = p.FileInfo(path=path, virtual_size=virtual, actual_size=actual, format=form)
    return world.files[path]


@_does(p.DownloadToCache)
def _download(world: World, cmd: p.DownloadToCache) -> p.FileInfo:
    if cmd.install_path not in world.files:
        world.downloads.append(cmd.install_path)
    size = cmd.size or 1 << 20
    return _put(world, cmd.install_path, size, size)


@_does(p.CreateVolume)
def _create_volume(world: World, cmd: p.CreateVolume) -> p.FileInfo:
    virtual = cmd.size
    if cmd.backing is not None:
        image = world.files.get(cmd.backing)
        if image is None:
            raise CommandError(p.NOT_FOUND, f"there is no image {cmd.backing} to clone")
        virtual = max(virtual, image.virtual_size)
        world.backing[cmd.install_path] = cmd.backing
    return _put(world, cmd.install_path, virtual, _OVERHEAD)


@_does(p.DeleteFile)
def _delete_file(world: World, cmd: p.DeleteFile) -> None:
    if not cmd.install_path.startswith(f"{cmd.storage_path.rstrip('/')}/"):
        raise CommandError(p.INVALID, f"{cmd.install_path} is outside {cmd.storage_path}")
    if cmd.install_path in world.backing.values():
        raise CommandError(p.STORAGE, f"{cmd.install_path} is the base of a volume")
    world.files.pop(cmd.install_path, None)
    world.backing.pop(cmd.install_path, None)


@_does(p.GetFileInfo)
def _file_info(world: World, cmd: p.GetFileInfo) -> p.FileInfo:
    info = world.files.get(cmd.install_path)
    if info is None:
        raise CommandError(p.NOT_FOUND, f"there is no file {cmd.install_path}")
    return info


@_does(p.UploadFile)
def _upload(world: World, cmd: p.UploadFile) -> p.FileInfo:
    return _file_info(world, p.GetFileInfo(storage_path=cmd.storage_path, install_path=cmd.install_path))


# --- networks -------------------------------------------------------------------------------------------------------


@_does(p.CheckInterface)
def _check_interface(world: World, cmd: p.CheckInterface) -> None:
    if cmd.name not in world.interfaces:
        raise CommandError(p.NETWORK, f"there is no interface {cmd.name}; there are {sorted(world.interfaces)}")


@_does(p.CreateBridge)
def _create_bridge(world: World, cmd: p.CreateBridge) -> None:
    if cmd.interface is not None:
        _check_interface(world, p.CheckInterface(name=cmd.interface))
    if len(cmd.bridge) > 15:
        raise CommandError(p.INVALID, f"bridge name {cmd.bridge!r} has more than 15 characters")
    world.bridges[cmd.bridge] = cmd


@_does(p.DeleteBridge)
def _delete_bridge(world: World, cmd: p.DeleteBridge) -> None:
    users = [nic.name for vm in world.vms.values() for nic in vm.definition.nics if nic.bridge == cmd.bridge]
    if users:
        raise CommandError(p.NETWORK, f"bridge {cmd.bridge} is in use by {users}")
    world.bridges.pop(cmd.bridge, None)


@_does(p.ApplyDhcp)
def _apply_dhcp(world: World, cmd: p.ApplyDhcp) -> None:
    if cmd.bridge not in world.bridges:
        raise CommandError(p.NETWORK, f"there is no bridge {cmd.bridge!r} for DHCP of {cmd.l3_uuid}")
    known = {} if cmd.rebuild else world.leases.get(cmd.l3_uuid, {})
    world.dhcp[cmd.l3_uuid] = cmd
    world.leases[cmd.l3_uuid] = {**known, **{entry.mac: entry for entry in cmd.entries}}


@_does(p.ReleaseDhcp)
def _release_dhcp(world: World, cmd: p.ReleaseDhcp) -> None:
    for mac in cmd.macs:
        world.leases.get(cmd.l3_uuid, {}).pop(mac, None)


@_does(p.DeleteDhcp)
def _delete_dhcp(world: World, cmd: p.DeleteDhcp) -> None:
    for table in (world.dhcp, world.leases, world.metadata):
        table.pop(cmd.l3_uuid, None)


@_does(p.ApplyMetadata)
def _apply_metadata(world: World, cmd: p.ApplyMetadata) -> None:
    known = {} if cmd.rebuild else world.metadata.get(cmd.l3_uuid, {})
    world.metadata[cmd.l3_uuid] = {**known, **{entry.ip: entry for entry in cmd.entries}}


@_does(p.ReleaseMetadata)
def _release_metadata(world: World, cmd: p.ReleaseMetadata) -> None:
    for ip in cmd.ips:
        world.metadata.get(cmd.l3_uuid, {}).pop(ip, None)


@_does(p.ApplyNat)
def _apply_nat(world: World, cmd: p.ApplyNat) -> None:
    world.nat[cmd.l3_uuid] = cmd


@_does(p.DeleteNat)
def _delete_nat(world: World, cmd: p.DeleteNat) -> None:
    world.nat.pop(cmd.l3_uuid, None)


def known_paths() -> frozenset[str]:
    """The paths that the simulator can do."""
    return frozenset(_handlers) | {p.Echo.path, p.Ping.path, p.ConnectHost.path, p.UpdateAgent.path, p.Series.path}


def facts_of(index: int, ip: str, cpu_num: int, memory: int) -> p.HostFacts:
    """Facts of the n-th host; always the same."""
    return p.HostFacts(
        hostname=f"sim-{index}",
        os_distribution="Debian",
        os_version="12",
        kernel_version="6.1.0",
        architecture="x86_64",
        cpu_model="Simulated CPU",
        cpu_num=cpu_num,
        cpu_sockets=max(1, cpu_num // 16),
        cpu_mhz=2500,
        total_memory=memory,
        libvirt_version="9.0.0",
        qemu_version="7.2.0",
        hypervisor="kvm",
        ip_addresses=[ip],
    )
