"""What the server and a host agent say to each other. Both sides, and the simulated agent, import only this and `news`.

A command is POSTed to `https://<host>:7070<path>` with mutual TLS and these headers:

    taskuuid      the command's id; a repeated id gets the recorded answer, never a second effect
    callbackurl   where the answer goes; absent for synchronous commands
    attempt       "<workflow uuid>:<n>" (optional); a command of a workflow's lower attempt is refused (STALE_ATTEMPT)
    deadline      seconds from now after which the server no longer waits (optional)
    wait          seconds that the answer may take to come in the response to this request (optional, may be ignored)

Asynchronous: the agent journals the command and works. If it is done within `wait` seconds, the response is 200 with a
`TaskAnswer`. Else it is 202 with `{}`, without `wait` at once, and the agent POSTs the `TaskAnswer` to `callbackurl`
(header `taskuuid`) until it is acknowledged with 200 or 404. A server that gets no response posts the command again
under the same id: the answer may have been in it. Synchronous: 200 with a `TaskAnswer`.
A command that is refused before it is journaled is answered at once with a `TaskAnswer` whose error says why: 400
(INVALID), 404 (no such path), 409 (STALE_ATTEMPT), 503 (BUSY); nothing was done and no callback follows.
`GET /task/<uuid>` tells `TaskStatus` of a task; `DELETE /task/<uuid>` cancels it. Reports, numbered per agent start,
are POSTed to the report URL given at connect; a report is repeated until acknowledged with 200 (400 and 404 drop it).
Beside it, at `certificate`, a host has its certificate renewed: PEM signing request in, PEM certificate out.
Commands are idempotent: the state that they name is reached or kept. Paths are absolute; sizes are bytes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Literal, TypeVar

import msgspec

A = TypeVar("A")

PROTOCOL_VERSION, OLDEST_PROTOCOL = 3, 1
"""Server and agent also speak the protocol of the version before: whichever is upgraded first works with the other."""


class _Struct(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """Base of everything that travels."""


class AgentError(_Struct):
    """Why a command failed. `code` is one of the AGENT_* codes below; `transient` means that a retry may help."""

    code: str
    details: str
    transient: bool = False
    facts: dict[str, Any] = {}


BUSY = "AGENT.1000"
INVALID = "AGENT.1001"
NOT_FOUND = "AGENT.1002"
STALE_ATTEMPT = "AGENT.1003"
NO_SPACE = "AGENT.1004"
LIBVIRT = "AGENT.1005"
STORAGE = "AGENT.1006"
NETWORK = "AGENT.1007"
DOWNLOAD = "AGENT.1008"
CANCELED = "AGENT.1009"
TIMED_OUT = "AGENT.1010"
INTERRUPTED = "AGENT.1011"
"""The agent died while it ran the command; the effect is unknown, repeating the command settles it."""
INTERNAL = "AGENT.1012"


class Empty(_Struct):
    """An answer without content."""


class Command(_Struct, Generic[A]):
    """A command; `A` is its answer. `sync` commands are answered in the HTTP response."""

    path: ClassVar[str]
    sync: ClassVar[bool] = False


class TaskAnswer(_Struct):
    """The envelope of every answer: exactly one of `result` and `error`."""

    result: dict[str, Any] | None = None
    error: AgentError | None = None


class TaskStatus(_Struct):
    """What the agent knows of a task: Running, Done (with its answer) or Unknown."""

    state: Literal["Running", "Done", "Unknown"]
    answer: TaskAnswer | None = None


class Order(_Struct):
    """One command of a series: its path and its fields."""

    path: str
    body: dict[str, Any] = {}


class SeriesAnswer(_Struct):
    """What the commands of a series answered, in their order."""

    results: list[dict[str, Any]]


class Series(Command[SeriesAnswer]):
    """Run commands in one go, one after another, each under its own lock. The first that fails ends the series, with
    its error; what was done before stays. One that the agent does not know is refused before anything is done.

    Since protocol 3. It saves requests where nothing is decided between commands; series and synchronous commands
    cannot be part of one.
    """

    path = "/series"
    orders: list[Order]


# --- host -------------------------------------------------------------------------------------------------------


class HostFacts(_Struct):
    """What a host is."""

    hostname: str
    os_distribution: str
    os_version: str
    kernel_version: str
    architecture: str
    cpu_model: str
    cpu_num: int
    cpu_sockets: int
    cpu_mhz: int
    total_memory: int
    libvirt_version: str
    qemu_version: str
    hypervisor: Literal["kvm", "tcg"]
    """Whether guests run with hardware acceleration that truly works."""
    ip_addresses: list[str]


class Echo(Command[Empty]):
    """Is anybody there?"""

    path = "/host/echo"
    sync = True


class ConnectHostAnswer(_Struct):
    agent_uuid: str
    """New at each start of the agent: a change means that the agent restarted."""
    version: str
    protocol: int
    facts: HostFacts
    vm_states: dict[str, str]
    unknown_domains: list[str]
    oldest_protocol: int = 1


class ConnectHost(Command[ConnectHostAnswer]):
    """Adopt this host: remember who it is and where reports go, and say what is here."""

    path = "/host/connect"
    host_uuid: str
    report_url: str
    settings: dict[str, str] = {}


class UpdateAgent(Command[Empty]):
    """Fetch the program of another version (HTTPS, mutual TLS) and try it: the agent starts anew after its answer."""

    path = "/host/update"
    version: str
    url: str
    sha256: str
    size: int


class PingAnswer(_Struct):
    host_uuid: str | None
    agent_uuid: str
    version: str
    vm_states: dict[str, str]


class Ping(Command[PingAnswer]):
    path = "/host/ping"
    sync = True


class HostCapacity(_Struct):
    cpu_num: int
    used_cpu: int
    total_memory: int
    used_memory: int


class GetHostCapacity(Command[HostCapacity]):
    path = "/host/capacity"


class HostDump(_Struct):
    """Everything of ours on this host, for the auditor: what is here, by kind."""

    vms: dict[str, str]
    unknown_domains: list[str]
    bridges: list[str]
    dhcp: dict[str, list[str]]
    """L3 UUID -> MAC addresses with a lease."""
    metadata: dict[str, list[str]]
    """L3 UUID -> addresses that are served."""
    nat: list[str]
    """L3 UUIDs with address translation."""
    taps: list[str]
    files: dict[str, list[str]]
    """Storage path -> every file of ours below it, absolute."""
    tasks_running: int


class DumpHost(Command[HostDump]):
    """Tell everything that is here; nothing is changed."""

    path = "/host/dump"
    storage_paths: list[str] = []


# --- virtual machines ----------------------------------------------------------------------------------------------


class Disk(_Struct):
    """A disk of a guest. `device_id` 0 is the root disk; the guest sees 20 digits of the volume's UUID as serial."""

    volume_uuid: str
    install_path: str
    format: Literal["qcow2", "raw"]
    device_id: int
    bus: Literal["virtio", "scsi", "sata"] = "virtio"
    cache_mode: str = "none"
    boot_order: int | None = None


class Cdrom(_Struct):
    """A CD-ROM drive, empty when `install_path` is None."""

    device_id: int
    install_path: str | None = None
    boot_order: int | None = None


class Nic(_Struct):
    """A network interface. The tap's name is `name` (at most 15 characters)."""

    nic_uuid: str
    device_id: int
    mac: str
    name: str
    bridge: str
    ips: list[str]
    model: str = "virtio"
    mtu: int = 1500
    boot_order: int | None = None
    anti_spoofing: bool = True
    extra_source_ips: list[str] = []


class StartVmAnswer(_Struct):
    vnc_port: int
    hypervisor: Literal["kvm", "tcg"]


class StartVm(Command[StartVmAnswer]):
    """Define and start a guest. Already running: success. Defined but not running: defined anew."""

    path = "/vm/start"
    vm_uuid: str
    name: str
    internal_id: int
    cpu_num: int
    memory: int
    disks: list[Disk]
    nics: list[Nic]
    cdroms: list[Cdrom] = []
    boot_order: tuple[str, ...] = ("HardDisk", "CdRom", "Network")
    boot_mode: Literal["Legacy", "UEFI"] = "Legacy"
    machine: str = "q35"
    cpu_mode: str = "host-model"
    clock: Literal["utc", "localtime"] = "utc"
    console_password: str | None = None
    nested: bool = False
    cpu_speed_quota: int | None = None
    """Percent of one physical core that each vCPU may use."""
    paused: bool = False
    cidata: dict[str, str] | None = None
    """NoCloud files (meta-data, user-data, network-config); given when no metadata service reaches the guest."""


class StopVm(Command[Empty]):
    """Stop a guest: grace asks by ACPI and guest agent and pulls the plug after `grace_seconds`; cold pulls at once."""

    path = "/vm/stop"
    vm_uuid: str
    kind: Literal["grace", "cold"] = "grace"
    grace_seconds: float = 60


class RebootVm(Command[StartVmAnswer]):
    """Stop and start with the given definition."""

    path = "/vm/reboot"
    definition: StartVm
    grace_seconds: float = 60


class PauseVm(Command[Empty]):
    path = "/vm/pause"
    vm_uuid: str


class ResumeVm(Command[Empty]):
    path = "/vm/resume"
    vm_uuid: str


class DestroyVm(Command[Empty]):
    """Pull the plug and undefine; success if there is no such guest."""

    path = "/vm/destroy"
    vm_uuid: str


class VmStates(_Struct):
    """State by VM UUID: Running, Paused, Stopped, Crashed, NoState. A guest that is not there is absent."""

    states: dict[str, str]
    unknown_domains: list[str] = []


class GetVmStates(Command[VmStates]):
    """The states of the named guests, or of all."""

    path = "/vm/states"
    vm_uuids: list[str] | None = None


class SetCdrom(Command[Empty]):
    """Put an image into a CD-ROM drive of a running guest, or take it out (`install_path` None)."""

    path = "/vm/cdrom/set"
    vm_uuid: str
    cdrom: Cdrom


class AttachDisk(Command[Empty]):
    path = "/vm/disk/attach"
    vm_uuid: str
    disk: Disk


class DetachDisk(Command[Empty]):
    path = "/vm/disk/detach"
    vm_uuid: str
    disk: Disk


class AttachNic(Command[Empty]):
    path = "/vm/nic/attach"
    vm_uuid: str
    nic: Nic


class DetachNic(Command[Empty]):
    path = "/vm/nic/detach"
    vm_uuid: str
    nic: Nic


class ConsoleAddress(_Struct):
    """Where the guest's VNC server listens, on the host's loopback."""

    vnc_host: str
    vnc_port: int


class GetConsole(Command[ConsoleAddress]):
    """VNC listens on loopback only; the agent offers WebSockets `/console/vnc/<vm>` and `/console/serial/<vm>`."""

    path = "/vm/console"
    sync = True
    vm_uuid: str


# --- local storage ---------------------------------------------------------------------------------------------------


class StorageCapacity(_Struct):
    total: int
    available: int


class InitStorage(Command[StorageCapacity]):
    """Make and mark a primary storage's directory; refuses when an earlier connect's mark is gone (not mounted)."""

    path = "/localstorage/init"
    storage_uuid: str
    storage_path: str
    first: bool = False


class LeaveStorage(Command[Empty]):
    """Take the mark of a primary storage away, so that the directory can become another's. What is in it stays.

    Success when there is no mark, or another storage's.
    """

    path = "/localstorage/leave"
    storage_uuid: str
    storage_path: str


class GetStorageCapacity(Command[StorageCapacity]):
    path = "/localstorage/capacity"
    storage_path: str


class FileInfo(_Struct):
    path: str
    virtual_size: int
    actual_size: int
    format: str


class DownloadToCache(Command[FileInfo]):
    """Fetch an image from a backup storage (HTTPS, mutual TLS) into the image cache, checked by its SHA-256."""

    path = "/localstorage/cache/download"
    storage_path: str
    url: str
    install_path: str
    sha256: str | None = None
    size: int | None = None
    format: str | None = None
    """What the image was declared as: qcow2, raw or iso. None takes qcow2 and ISO by signature, not raw."""


class CreateVolume(Command[FileInfo]):
    """Create an empty qcow2, or a linked clone of `backing` (a cached image), of at least `size` bytes."""

    path = "/localstorage/volume/create"
    storage_path: str
    volume_uuid: str
    install_path: str
    size: int
    backing: str | None = None
    backing_format: str = "qcow2"


class DeleteFile(Command[Empty]):
    """Delete a file and directories that it leaves empty; success if absent; refuses outside the storage."""

    path = "/localstorage/delete"
    storage_path: str
    install_path: str


class GetFileInfo(Command[FileInfo]):
    path = "/localstorage/info"
    storage_path: str
    install_path: str


class UploadFile(Command[FileInfo]):
    """Flatten a volume into one qcow2 and PUT it to a backup storage."""

    path = "/localstorage/upload"
    storage_path: str
    install_path: str
    url: str


# --- networks -------------------------------------------------------------------------------------------------------


class CheckInterface(Command[Empty]):
    path = "/network/interface/check"
    name: str


class CreateBridge(Command[Empty]):
    """Realise an L2 network. `interface` None makes a private bridge without uplink."""

    path = "/network/bridge/create"
    l2_uuid: str
    bridge: str
    interface: str | None
    mtu: int = 1500


class DeleteBridge(Command[Empty]):
    path = "/network/bridge/delete"
    l2_uuid: str
    bridge: str


class HostRoute(_Struct):
    prefix: str
    nexthop: str


class DhcpEntry(_Struct):
    """One guest's lease. On a network that is not its default one it gets neither router nor DNS."""

    mac: str
    ip: str
    hostname: str
    is_default: bool = True


class ApplyDhcp(Command[Empty], kw_only=True):
    """Serve DHCP, DNS and metadata for an L3 network in its own namespace; `rebuild` replaces all entries."""

    path = "/network/dhcp/apply"
    l3_uuid: str
    bridge: str
    server_ip: str
    netmask: str
    gateway: str
    dns: list[str]
    domain: str | None = None
    mtu: int = 1500
    host_routes: list[HostRoute] = []
    metadata: bool = True
    forward_dns: bool = False
    entries: list[DhcpEntry]
    rebuild: bool = False


class ReleaseDhcp(Command[Empty]):
    path = "/network/dhcp/release"
    l3_uuid: str
    macs: list[str]


class DeleteDhcp(Command[Empty]):
    path = "/network/dhcp/delete"
    l3_uuid: str
    bridge: str


class MetadataEntry(_Struct):
    """What 169.254.169.254 tells the guest with this address."""

    ip: str
    vm_uuid: str
    hostname: str
    ssh_keys: list[str] = []
    user_data: str | None = None


class ApplyMetadata(Command[Empty]):
    path = "/network/metadata/apply"
    l3_uuid: str
    entries: list[MetadataEntry]
    rebuild: bool = False


class ReleaseMetadata(Command[Empty]):
    path = "/network/metadata/release"
    l3_uuid: str
    ips: list[str]


class ApplyNat(Command[Empty]):
    """Give a private bridge its gateway address and translate the network's addresses to the host's."""

    path = "/network/nat/apply"
    l3_uuid: str
    bridge: str
    gateway: str
    cidr: str


class DeleteNat(Command[Empty]):
    path = "/network/nat/delete"
    l3_uuid: str
    bridge: str


def commands() -> dict[str, type[Command[Any]]]:
    """Every command class by path."""
    found, pending = {}, list(Command.__subclasses__())
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if "path" in vars(cls):
            found[cls.path] = cls
    return found


def answer_type(cls: type[Command[Any]]) -> type[Any]:
    """The answer that a command class was declared with."""
    arguments = [one for base in vars(cls)["__orig_bases__"] for one in getattr(base, "__args__", ())]
    if not arguments:
        raise TypeError(f"{cls.__name__} does not name its answer")
    return arguments[0]  # type: ignore[no-any-return]
