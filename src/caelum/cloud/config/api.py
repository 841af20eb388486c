"""Settings, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    DeleteMessage,
    Inventory,
    Param,
    Reply,
    WholeReply,
    inventory,
    rest,
)

_PACKAGE = "org.zstack.core.config"
_RESOURCE_PACKAGE = "org.zstack.resourceconfig"


@inventory(_PACKAGE, vo="GlobalConfigVO")
class GlobalConfigInventory(Inventory, kw_only=True):
    """A setting with its value for the whole cloud."""

    id: int
    name: str
    category: str
    description: str
    default_value: str
    value: str


@inventory(_RESOURCE_PACKAGE, vo="ResourceConfigVO")
class ResourceConfigInventory(Inventory, kw_only=True):
    """A setting's value for one resource and what is below it."""

    uuid: str
    resource_uuid: str
    resource_type: str
    name: str
    description: str | None = None
    category: str
    value: str
    create_date: datetime
    last_op_date: datetime


class GlobalConfigOptions(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Which values a setting takes."""

    valid_value: list[str] | None = None
    number_greater_than: int | None = None
    number_less_than: int | None = None
    number_greater_than_or_equal: int | None = None
    number_less_than_or_equal: int | None = None


class GlobalConfigOptionsReply(Reply, kw_only=True):
    """Which values a setting takes."""

    options: GlobalConfigOptions


class ResourceConfigReply(WholeReply, kw_only=True):
    """The value that holds for a resource; where it comes from, nearest first."""

    value: str
    effective_configs: list[ResourceConfigInventory]


class ResourceConfigStruct(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The value of one setting that holds for a resource."""

    name: str
    value: str
    effective_configs: list[ResourceConfigInventory] | None = None


class ResourceConfigsReply(Reply, kw_only=True):
    """The values of several settings that hold for a resource."""

    configs: list[ResourceConfigStruct]


class ResourceBindableConfigStruct(msgspec.Struct, rename="camel", kw_only=True):
    """A setting that resources may override, and of which types."""

    name: str
    category: str
    description: str
    bind_resource_types: list[str]


class BindableConfigsReply(Reply, kw_only=True):
    """The settings that resources may override."""

    bindable_configs: list[ResourceBindableConfigStruct]


class ResourceConfigAO(msgspec.Struct, rename="camel", kw_only=True):
    """One setting's new value."""

    category: str
    name: str
    value: str


@rest("GET /global-configurations", package=_PACKAGE)
class QueryGlobalConfig(ApiQuery[GlobalConfigInventory], kw_only=True):
    """Query settings."""


@rest("PUT /global-configurations/{category}/{name}/actions", package=_PACKAGE, admin_only=True)
class UpdateGlobalConfig(ApiMessage[GlobalConfigInventory], kw_only=True):
    """Change a setting for the whole cloud; every node follows."""

    category: str
    name: str
    value: str | None = None


@rest("PUT /global-configurations/actions", package=_PACKAGE, admin_only=True)
class ResetGlobalConfig(ApiMessage[None], kw_only=True):
    """Put every setting back to its default."""


@rest("GET /global-configurations/{category}/{name}", package=_PACKAGE)
class GetGlobalConfigOptions(ApiMessage[GlobalConfigOptionsReply], kw_only=True):
    """Get which values a setting takes."""

    category: str
    name: str


@rest("PUT /resource-configurations/{category}/{name}/{resourceUuid}/actions", package=_RESOURCE_PACKAGE)
class UpdateResourceConfig(ApiMessage[ResourceConfigInventory], kw_only=True):
    """Override a setting for one resource."""

    category: str
    name: str
    resource_uuid: Annotated[str, Param(resource="ResourceVO", check_account=True, target=True)]
    value: str


@rest("POST /resource-configurations/{resourceUuid}/resource-configs/actions", package=_RESOURCE_PACKAGE)
class UpdateResourceConfigs(ApiMessage[list[ResourceConfigStruct]], kw_only=True):
    """Override several settings for one resource."""

    resource_uuid: Annotated[str, Param(resource="ResourceVO", check_account=True, target=True)]
    resource_configs: Annotated[list[ResourceConfigAO], Param(nonempty=True)]


@rest("DELETE /resource-configurations/{category}/{name}/{resourceUuid}", package=_RESOURCE_PACKAGE)
class DeleteResourceConfig(DeleteMessage[None], kw_only=True):
    """Drop a resource's override of a setting."""

    category: str
    name: str
    resource_uuid: Annotated[
        str, Param(resource="ResourceVO", check_account=True, success_if_missing=True, target=True)
    ]


@rest("GET /resource-configurations/{resourceUuid}/{category}/{name}", package=_RESOURCE_PACKAGE)
class GetResourceConfig(ApiMessage[ResourceConfigReply], kw_only=True):
    """Get the value of a setting that holds for a resource."""

    category: str
    name: str
    resource_uuid: Annotated[str, Param(resource="ResourceVO", check_account=True)]


@rest("GET /resource-configurations/{resourceUuid}/{category}", package=_RESOURCE_PACKAGE)
class GetResourceConfigs(ApiMessage[ResourceConfigsReply], kw_only=True):
    """Get the values of several settings of a category that hold for a resource."""

    category: str
    names: Annotated[list[str], Param(nonempty=True)]
    resource_uuid: Annotated[str, Param(resource="ResourceVO", check_account=True)]


@rest("GET /resource-configurations", package=_RESOURCE_PACKAGE)
class QueryResourceConfig(ApiQuery[ResourceConfigInventory], kw_only=True):
    """Query the overrides of resources."""


@rest(
    "GET /resource-configurations/bindable",
    package=_RESOURCE_PACKAGE,
    also=("/resource-configurations/bindable/{category}",),
)
class GetResourceBindableConfig(ApiMessage[BindableConfigsReply], kw_only=True):
    """Get the settings that resources may override."""

    category: str | None = None
