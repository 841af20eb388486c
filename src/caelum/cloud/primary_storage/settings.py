"""Settings of primary storages."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, Size, setting

RESERVED_CAPACITY = setting(
    "primaryStorage", "reservedCapacity", "1G", Size, "The reserved capacity on all primary storage", minimum=0
)
OVER_PROVISIONING = setting(
    "primaryStorage",
    "overProvisioning.ratio",
    1.0,
    float,
    "How many bytes of volumes are promised for each byte of a primary storage; counts for volumes made from now on,"
    " and for all at the next capacity sync",
    minimum=0.1,
    maximum=1000,
    bindable=("PrimaryStorageVO",),
)
CAPACITY_REFRESH = setting(
    "primaryStorage",
    "capacity.refreshInterval",
    600,
    Seconds,
    "The interval at which the physical capacity of primary storages is read again, in seconds",
    minimum=10,
)
CACHE_GC_INTERVAL = setting(
    "primaryStorage",
    "imageCache.garbageCollector.interval",
    86400,
    Seconds,
    "The interval primary storage scans orphan image cache, in seconds",
    minimum=1,
)
DELETE_BITS_INTERVAL = setting(
    "primaryStorage",
    "primarystorage.delete.bits.garbageCollector.interval",
    600,
    Seconds,
    "The interval primary storage delete bits which should be cleaned up, in seconds",
    minimum=1,
)
