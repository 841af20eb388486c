"""Settings of volumes."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, setting

DELETION_POLICY = setting(
    "volume",
    "deletionPolicy",
    "Delay",
    str,
    "the behavior of deleting a data volume, options are [Direct, Delay, Never]. Direct: delete the volume from"
    " database and primary storage; Delay: change the volume's state to Deleted in database, and do that after the"
    " period controlled by 'expungePeriod'; Never: delete the volume from database but not from the primary storage",
    valid=("Direct", "Delay", "Never"),
    bindable=("VolumeVO",),
)
EXPUNGE_PERIOD = setting(
    "volume",
    "expungePeriod",
    259200,
    Seconds,
    "the period before a deleted data volume being deleted from database and primary storage, in seconds",
    minimum=1,
)
EXPUNGE_INTERVAL = setting(
    "volume",
    "expungeInterval",
    3600,
    Seconds,
    "the interval the expunging data volume task runs, in seconds",
    minimum=1,
)
REFRESH_SIZE_INTERVAL = setting(
    "volume",
    "refreshVolumeSizeInterval",
    3600,
    Seconds,
    "the interval the task to scan the volumes which need refresh size periodical, in seconds",
    minimum=1,
)
NULL_DELETED_OFFERING = setting(
    "volume",
    "diskOffering.setNullWhenDeleting",
    True,
    bool,
    "whether update disk offering column of volume inventory to NULL when the disk offering is deleted",
)
