"""Settings of KVM hosts."""

from __future__ import annotations

from caelum.kernel.settings import setting

AGENT_PORT = setting("kvm", "agent.port", 7070, int, "The port at which host agents listen.", minimum=1, maximum=65535)
AGENT_UPDATE = setting(
    "kvm", "agent.update", True, bool, "Whether a host's agent that is older than the server is updated as it connects."
)
CACHE_MODE = setting(
    "kvm",
    "vm.cacheMode",
    "none",
    str,
    "How the host caches the disks of virtual machines.",
    valid=("none", "writethrough", "writeback"),
    bindable=("VolumeVO", "VmInstanceVO"),
)
CPU_MODES = (
    "none", "host-model", "host-passthrough", "Dhyana", "EPYC", "EPYC-IBPB", "Haswell", "Haswell-noTSX", "Broadwell",
    "Broadwell-noTSX", "SandyBridge", "IvyBridge", "Conroe", "Penryn", "Nehalem", "Westmere", "Opteron_G1",
    "Opteron_G2", "Opteron_G3", "Opteron_G4", "pentium", "pentium2", "pentium3", "Kunpeng-920", "FT-2000+",
    "Tengyun-S2500", "Loongson-3A5000", "Loongson-3A4000-COMP",
)  # fmt: skip
CPU_MODE = setting(
    "kvm",
    "vm.cpuMode",
    "none",
    str,
    "The CPU that virtual machines see; none is the hypervisor's own choice.",
    valid=CPU_MODES,
    bindable=("VmInstanceVO", "ClusterVO"),
)
MAX_DATA_VOLUMES = setting(
    "kvm", "dataVolume.maxNum", 24, int, "How many data volumes a virtual machine may have.", minimum=0, maximum=24
)
