"""Tags, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from caelum.kernel.message import ApiMessage, ApiQuery, DeleteMessage, Expand, Inventory, Param, inventory, rest

_PACKAGE = "org.zstack.header.tag"

Resource = Annotated[str, Param(resource="ResourceVO", check_account=True)]
"""The resource, of any type, that carries a tag."""


@inventory(
    _PACKAGE,
    vo="UserTagVO",
    expands=(Expand(field="tagPattern", inventory="TagPatternInventory", foreign_key="tagPatternUuid"),),
)
class UserTagInventory(Inventory, kw_only=True):
    """A tag that users put on a resource; it means what they want it to mean."""

    uuid: str
    resource_uuid: str
    resource_type: str
    tag: str
    type: str
    tag_pattern_uuid: str | None = None
    create_date: datetime
    last_op_date: datetime


@inventory(_PACKAGE, vo="SystemTagVO")
class SystemTagInventory(Inventory, kw_only=True):
    """A tag that controls behaviour. Inherent ones belong to the system: they cannot be deleted."""

    uuid: str
    resource_uuid: str
    resource_type: str
    tag: str
    type: str
    inherent: bool
    create_date: datetime
    last_op_date: datetime


@rest("POST /user-tags", package=_PACKAGE, route_by="resource_uuid")
class CreateUserTag(ApiMessage[UserTagInventory], kw_only=True):
    """Put a user tag on a resource."""

    resource_type: str
    resource_uuid: Resource
    tag: Annotated[str, Param(max_length=2048)]


@rest("POST /system-tags", package=_PACKAGE, route_by="resource_uuid")
class CreateSystemTag(ApiMessage[SystemTagInventory], kw_only=True):
    """Put a system tag on a resource; the tag must be declared for the resource's type."""

    resource_type: str
    resource_uuid: Resource
    tag: Annotated[str, Param(max_length=2048)]


@rest("POST /system-tags/{resourceUuid}/tags", package=_PACKAGE, route_by="resource_uuid")
class CreateSystemTags(ApiMessage[list[SystemTagInventory]], kw_only=True):
    """Put several system tags on a resource: all of them or none."""

    resource_type: str
    resource_uuid: Resource
    tags: Annotated[list[str], Param(nonempty=True)]


@rest("PUT /system-tags/{uuid}/actions", package=_PACKAGE)
class UpdateSystemTag(ApiMessage[SystemTagInventory], kw_only=True):
    """Change the values in a system tag; it must stay a tag of the same declaration."""

    uuid: Annotated[str, Param(resource="SystemTagVO", check_account=True, target=True)]
    tag: Annotated[str, Param(max_length=2048)]


@rest("DELETE /tags/{uuid}", package=_PACKAGE)
class DeleteTag(DeleteMessage[None], kw_only=True):
    """Delete a user tag or a system tag. One that does not exist counts as deleted."""

    uuid: Annotated[str, Param(check_account=True, target=True)]


@rest("GET /system-tags", package=_PACKAGE, also=("/system-tags/{uuid}",))
class QuerySystemTag(ApiQuery[SystemTagInventory], kw_only=True):
    """Query system tags."""


@rest("GET /user-tags", package=_PACKAGE, also=("/user-tags/{uuid}",))
class QueryUserTag(ApiQuery[UserTagInventory], kw_only=True):
    """Query user tags."""
