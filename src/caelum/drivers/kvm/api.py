"""Public operations on KVM hosts."""

from __future__ import annotations

from typing import Annotated

from caelum.cloud.host.api import HostInventory
from caelum.kernel.message import ApiMessage, CreateMessage, Param, inventory, rest

_PACKAGE = "org.zstack.kvm"


@inventory(_PACKAGE, vo="KVMHostVO", parent="HostInventory", type_value="KVM")
class KVMHostInventory(HostInventory, kw_only=True):
    """A machine that runs virtual machines by KVM."""

    username: str | None = None
    ssh_port: int | None = None
    os_distribution: str | None = None
    os_release: str | None = None
    os_version: str | None = None


@rest("POST /hosts/kvm", package=_PACKAGE, admin_only=True, tags_for="HostVO", timeout=10800)
class AddKVMHost(CreateMessage[HostInventory], kw_only=True):
    """Add a host on which the host agent runs.

    The agent must hold a certificate of this cloud. The host's UUID is the one in that certificate; a `resourceUuid`
    that is given must be the same.
    """

    username: Annotated[str, Param(max_length=255)]
    password: Annotated[str, Param(max_length=255, secret=True)]
    ssh_port: Annotated[int, Param(minimum=1, maximum=65535)] = 22
    name: Annotated[str, Param(max_length=255)]
    description: Annotated[str | None, Param(max_length=2048)] = None
    management_ip: Annotated[str, Param(empty_string=False)]
    cluster_uuid: Annotated[str, Param(resource="ClusterVO")]


@rest("PUT /hosts/kvm/{uuid}/actions", package=_PACKAGE, admin_only=True)
class UpdateKVMHost(ApiMessage[HostInventory], kw_only=True):
    """Change a KVM host's name, description, management address, or how it is logged in to."""

    username: Annotated[str | None, Param(max_length=255, empty_string=False)] = None
    password: Annotated[str | None, Param(max_length=255, secret=True)] = None
    ssh_port: Annotated[int | None, Param(minimum=1, maximum=65535)] = None
    uuid: Annotated[str, Param(resource="HostVO", target=True)]
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    management_ip: Annotated[str | None, Param(max_length=255, empty_string=False)] = None
