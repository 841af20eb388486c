"""Settings of images."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, setting

DELETION_POLICY = setting(
    "image",
    "deletionPolicy",
    "Delay",
    str,
    "the behavior of deleting a image, options are [Direct, Delay, Never]. Direct: delete the image from database and"
    " its file from the backup storages; Delay: mark it as deleted, and do that after the period controlled by"
    " 'expungePeriod'; Never: delete the image from database but never its file",
    valid=("Direct", "Delay", "Never"),
    bindable=("ImageVO",),
)
EXPUNGE_PERIOD = setting(
    "image",
    "expungePeriod",
    259200,
    Seconds,
    "the period before a destroyed image being deleted from database and from backup storage, in seconds",
    minimum=1,
)
EXPUNGE_INTERVAL = setting(
    "image", "expungeInterval", 3600, Seconds, "the interval the expunging image task runs, in seconds", minimum=1
)
