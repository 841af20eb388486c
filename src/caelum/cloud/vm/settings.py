"""Global settings of VMs."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, setting

DELETION_POLICY = setting(
    "vm",
    "deletionPolicy",
    "Delay",
    str,
    "what destroying a VM does: Direct deletes it, Delay lets it be recovered until it is expunged, Never keeps it",
    valid=("Direct", "Delay", "Never"),
    bindable=("VmInstanceVO",),
)
EXPUNGE_PERIOD = setting(
    "vm", "expungePeriod", "604800", Seconds, "the time, in seconds, after which a destroyed VM is expunged", minimum=1
)
EXPUNGE_INTERVAL = setting(
    "vm", "expungeInterval", "3600", Seconds, "the time, in seconds, between searches for VMs to expunge", minimum=2
)
DELETE_DATA_VOLUMES = setting(
    "vm", "dataVolume.deleteOnVmDestroy", False, bool, "whether destroying a VM deletes its data volumes too"
)
CLEAN_TRAFFIC = setting(
    "vm", "cleanTraffic", True, bool, "whether a NIC may send only from its own MAC and IP addresses"
)
MULTI_NIC = setting("vm", "multivNic.support", False, bool, "whether a VM may have several NICs on one L3 network")
DEFAULT_CDROMS = setting("vm", "vmDefaultCdRomNum", 1, int, "CD-ROM drives of a new VM", minimum=0, maximum=3)
