"""Settings of hosts of any hypervisor."""

from __future__ import annotations

from caelum.kernel.settings import setting

LOAD_ALL = setting("host", "load.all", True, bool, "Whether the management server connects its hosts when it starts.")
RECONNECT_ON_BOOT = setting(
    "host", "reconnectAllOnBoot", True, bool, "Whether to reconnect all hosts when the management node starts"
)
LOAD_PARALLELISM = setting(
    "host", "load.parallelismDegree", 100, int, "How many hosts are connected at the same time.", minimum=1
)
AUTO_RECONNECT = setting(
    "host", "connection.autoReconnectOnError", True, bool, "Whether a host that was lost is connected again by itself."
)
MAX_RECONNECTS = setting(
    "host",
    "connection.autoReconnectOnError.maxAttemptsNum",
    0,
    int,
    "After how many failed attempts in a row a lost host is not tried any more; 0 means never.",
    minimum=0,
)
PING_INTERVAL = setting("host", "ping.interval", 60, int, "Seconds between two pings of a host.", minimum=2)
PING_PARALLELISM = setting(
    "host", "ping.parallelismDegree", 100, int, "How many hosts are pinged at the same time.", minimum=1
)
PING_FAILURES = setting(
    "host", "ping.maxFailure", 3, int, "After how many failed pings in a row a host counts as lost.", minimum=1
)
PING_PAUSE = setting(
    "host", "ping.sleepPeriodAfterFailure", 1, int, "Seconds between a failed ping and the next.", minimum=0
)
PING_TIMEOUT = setting("host", "ping.timeout", 10, int, "Seconds that a ping may take.", minimum=2)
VM_SYNC_ON_PING = setting(
    "kvm", "vmSyncOnHostPing", True, bool, "Whether the states of virtual machines are compared at each ping."
)
SYNC_LEVEL = setting("kvm", "host.syncLevel", 10, int, "How many commands run on a host at the same time.", minimum=3)
IGNORE_MAINTENANCE_ERRORS = setting(
    "host",
    "maintenanceMode.ignoreError",
    False,
    bool,
    "Whether a host enters maintenance although some of its virtual machines could not be stopped.",
)
LOST_PATIENCE = setting(
    "host",
    "connection.patience",
    30,
    int,
    "Seconds, counted from the loss of a host, in which work on it waits for its return instead of failing: an agent"
    " that died is back within seconds. 0 lets it fail at once.",
    minimum=0,
)
