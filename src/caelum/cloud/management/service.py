"""The management service: what this node is.

Invariant: it keeps nothing; which nodes are up is the kernel's to know (`caelum.kernel.membership`).
"""

from __future__ import annotations

import functools
import platform
import time
from datetime import datetime

from caelum import __version__
from caelum.cloud.management.api import (
    ArchReply,
    CurrentTimeReply,
    GetCurrentTime,
    GetManagementNodeArch,
    GetManagementNodeOS,
    GetPlatformTimeZone,
    GetSupportAPIs,
    GetVersion,
    IsOpensourceVersion,
    IsReadyToGo,
    OpensourceReply,
    OsReply,
    ReadyReply,
    SupportApisReply,
    TimeZoneReply,
    VersionReply,
)
from caelum.cloud.management.errors import NOT_READY
from caelum.kernel.errors import CloudError
from caelum.kernel.message import apis
from caelum.kernel.service import Service, handles


class ManagementService(Service):
    """Tells what the management node is."""

    name = "management"

    @handles(GetVersion)
    async def get_version(self, _msg: GetVersion) -> VersionReply:
        """The version."""
        return VersionReply(version=__version__)

    @handles(GetCurrentTime)
    async def get_current_time(self, _msg: GetCurrentTime) -> CurrentTimeReply:
        """The time."""
        now = time.time()
        return CurrentTimeReply(current_time={"MillionSeconds": int(now * 1000), "Seconds": int(now)})

    @handles(GetManagementNodeArch)
    async def get_arch(self, _msg: GetManagementNodeArch) -> ArchReply:
        """The processor architecture."""
        return ArchReply(architecture=platform.machine())

    @handles(GetManagementNodeOS)
    async def get_os(self, _msg: GetManagementNodeOS) -> OsReply:
        """The operating system."""
        name, version = _os_release()
        return OsReply(name=name, version=version)

    @handles(GetSupportAPIs)
    async def get_support_apis(self, _msg: GetSupportAPIs) -> SupportApisReply:
        """All operations."""
        return SupportApisReply(support_apis=sorted(meta.java_class for meta in apis()))

    @handles(GetPlatformTimeZone)
    async def get_time_zone(self, _msg: GetPlatformTimeZone) -> TimeZoneReply:
        """The time zone."""
        here = datetime.now().astimezone()
        offset = here.strftime("%z")
        return TimeZoneReply(timezone=here.tzname() or "UTC", offset=f"{offset[:3]}:{offset[3:]}")

    @handles(IsReadyToGo)
    async def is_ready(self, msg: IsReadyToGo) -> ReadyReply:
        """Whether this node, or the named one, serves requests."""
        wanted = msg.management_node_id or self.node.uuid
        if not self.node.serves or wanted not in self.node.ring.members:
            raise CloudError(NOT_READY, f"management node[{wanted}] is not ready")
        return ReadyReply()

    @handles(IsOpensourceVersion)
    async def is_opensource(self, _msg: IsOpensourceVersion) -> OpensourceReply:
        """It is."""
        return OpensourceReply(opensource=True)


@functools.cache
def _os_release() -> tuple[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system(), platform.release()
    return release.get("NAME", platform.system()), release.get("VERSION_ID", platform.release())
