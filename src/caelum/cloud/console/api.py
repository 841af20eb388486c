"""Console access and console proxies, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar

from caelum.kernel.message import ApiMessage, ApiQuery, Inventory, Param, inventory, rest

_PACKAGE = "org.zstack.header.console"
_HOST = r"[A-Za-z0-9.:_-]+"


class ConsoleInventory(Inventory, kw_only=True):
    """A way to a VM's console: the page is at `<scheme>://<hostname>:<port>/?token=<token>`.

    The token works once: for that page, or for one WebSocket at `/vnc` or `/serial`.
    """

    __java_class__: ClassVar[str] = f"{_PACKAGE}.ConsoleInventory"

    scheme: str
    target_scheme: str | None = None
    hostname: str
    port: int
    token: str
    version: str | None = None
    expired_date: datetime


@inventory(_PACKAGE, vo="ConsoleProxyAgentVO")
class ConsoleProxyAgentInventory(Inventory, kw_only=True):
    """A console proxy; clients are told its overridden address when it has one."""

    uuid: str
    description: str | None = None
    management_ip: str
    console_proxy_overridden_ip: str | None = None
    console_proxy_port: int | None = None
    type: str
    status: str
    state: str
    create_date: datetime
    last_op_date: datetime


@rest("POST /consoles", package=_PACKAGE, secret=True)
class RequestConsoleAccess(ApiMessage[ConsoleInventory], kw_only=True):
    """Get a token for the console of a VM that runs or is paused."""

    vm_instance_uuid: Annotated[str, Param(resource="VmInstanceVO", check_account=True, target=True)]


@rest("GET /consoles/agents", also=("/consoles/agents/{uuid}",), package=_PACKAGE, admin_only=True)
class QueryConsoleProxyAgent(ApiQuery[ConsoleProxyAgentInventory]):
    """Query console proxies."""


@rest("PUT /consoles/agents", package=_PACKAGE, admin_only=True)
class ReconnectConsoleProxyAgent(ApiMessage[dict[str, Any]], kw_only=True):
    """Look at console proxies, all without UUIDs; the answer has true or an error for each."""

    agent_uuids: Annotated[list[str] | None, Param(nonempty=True)] = None


@rest("PUT /consoles/agents/{uuid}/actions", package=_PACKAGE, admin_only=True)
class UpdateConsoleProxyAgent(ApiMessage[ConsoleProxyAgentInventory], kw_only=True):
    """Change the address, and with a port other than 0 the port, that clients are told for a proxy."""

    uuid: Annotated[str, Param(resource="ConsoleProxyAgentVO", target=True)]
    console_proxy_overridden_ip: Annotated[str, Param(max_length=255, regex=_HOST)]
    console_proxy_port: Annotated[int, Param(minimum=0, maximum=65535)] = 0
