"""Management nodes, as clients see them."""

from __future__ import annotations

from datetime import datetime

from caelum.kernel.message import ApiMessage, ApiQuery, Inventory, Reply, WholeReply, inventory, rest

_PACKAGE = "org.zstack.header.managementnode"


@inventory(_PACKAGE, vo="ManagementNodeVO")
class ManagementNodeInventory(Inventory, kw_only=True):
    """One process that manages the cloud."""

    uuid: str
    host_name: str
    join_date: datetime
    heart_beat: datetime


class VersionReply(WholeReply, kw_only=True):
    """The version of the management node."""

    version: str


class CurrentTimeReply(WholeReply, kw_only=True):
    """The time on the management node, in milliseconds and in seconds."""

    current_time: dict[str, int]


class ArchReply(WholeReply, kw_only=True):
    """The processor architecture of the management node."""

    architecture: str


class OsReply(WholeReply, kw_only=True):
    """The operating system of the management node."""

    name: str
    version: str


class TimeZoneReply(WholeReply, kw_only=True):
    """The time zone of the management node."""

    timezone: str
    offset: str


class SupportApisReply(WholeReply, kw_only=True):
    """The class names of all operations."""

    support_apis: list[str]


class OpensourceReply(WholeReply, kw_only=True):
    """Whether this is the open-source version."""

    opensource: bool


class ReadyReply(Reply, kw_only=True):
    """The management node is ready."""


@rest("PUT /management-nodes/actions", package=_PACKAGE, sync=True, login=False, admin_only=True)
class GetVersion(ApiMessage[VersionReply], kw_only=True):
    """Tell the version."""


@rest("PUT /management-nodes/actions", package=_PACKAGE, sync=True, login=False, admin_only=True)
class GetCurrentTime(ApiMessage[CurrentTimeReply], kw_only=True):
    """Tell the time."""


@rest("PUT /management-nodes/actions", package=_PACKAGE, sync=True, login=False, admin_only=True)
class GetManagementNodeArch(ApiMessage[ArchReply], kw_only=True):
    """Tell the processor architecture."""


@rest("PUT /management/actions", package=_PACKAGE, sync=True, login=False, admin_only=True)
class GetManagementNodeOS(ApiMessage[OsReply], kw_only=True):
    """Tell the operating system."""


@rest("PUT /management-nodes/actions", package=_PACKAGE, sync=True, login=False, admin_only=True)
class GetSupportAPIs(ApiMessage[SupportApisReply], kw_only=True):
    """List all operations by their class names."""


@rest("GET /management-nodes/platform-timezone", package=_PACKAGE, admin_only=True)
class GetPlatformTimeZone(ApiMessage[TimeZoneReply], kw_only=True):
    """Tell the time zone."""


@rest("GET /management-nodes/ready", package="org.zstack.header.apimediator", login=False)
class IsReadyToGo(ApiMessage[ReadyReply], kw_only=True):
    """Succeed when the management node serves requests."""

    management_node_id: str | None = None


@rest("GET /meta-data/opensource", package="org.zstack.header", login=False)
class IsOpensourceVersion(ApiMessage[OpensourceReply], kw_only=True):
    """Tell whether this is the open-source version."""


@rest("GET /management-nodes", also=("/management-nodes/{uuid}",), package=_PACKAGE, admin_only=True)
class QueryManagementNode(ApiQuery[ManagementNodeInventory]):
    """Query management nodes."""
