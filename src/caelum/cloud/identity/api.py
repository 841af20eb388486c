"""Accounts, sessions, ownership and quotas, as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

import msgspec

from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Expand,
    Inventory,
    Param,
    Reply,
    inventory,
    rest,
)

_PACKAGE = "org.zstack.header.identity"
_KEY_PACKAGE = "org.zstack.accessKey"
_INT64_MAX = 2**63 - 1

SYSTEM_ADMIN = "SystemAdmin"
NORMAL = "Normal"


class SessionInventory(Inventory, kw_only=True):
    """A login that has not ended."""

    __java_class__: ClassVar[str] = f"{_PACKAGE}.SessionInventory"

    uuid: str
    account_uuid: str
    user_uuid: str
    user_type: str | None = None
    expired_date: datetime
    create_date: datetime


@inventory(
    _PACKAGE,
    vo="AccountVO",
    expands=(
        Expand(field="user", inventory="UserInventory", foreign_key="uuid", key="accountUuid"),
        Expand(field="group", inventory="UserGroupInventory", foreign_key="uuid", key="accountUuid"),
        Expand(field="policy", inventory="PolicyInventory", foreign_key="uuid", key="accountUuid"),
        Expand(field="quota", inventory="QuotaInventory", foreign_key="uuid", key="identityUuid"),
    ),
)
class AccountInventory(Inventory, kw_only=True):
    """Who owns resources and logs in."""

    uuid: str
    name: str
    description: str | None = None
    type: str
    create_date: datetime
    last_op_date: datetime


@inventory(_PACKAGE, vo="AccountResourceRefVO")
class AccountResourceRefInventory(Inventory, kw_only=True):
    """Which account owns a resource."""

    account_uuid: str
    resource_uuid: str
    resource_type: str
    concrete_resource_type: str | None = None
    create_date: datetime
    last_op_date: datetime


@inventory(_PACKAGE, vo="SharedResourceVO")
class SharedResourceInventory(Inventory, kw_only=True):
    """A resource that other accounts may use."""

    owner_account_uuid: str
    receiver_account_uuid: str | None = None
    to_public: bool
    resource_type: str
    resource_uuid: str
    last_op_date: datetime
    create_date: datetime


@inventory(
    _PACKAGE,
    vo="QuotaVO",
    expands=(Expand(field="account", inventory="AccountInventory", foreign_key="identityUuid"),),
)
class QuotaInventory(Inventory, kw_only=True):
    """How much of something an account may have."""

    uuid: str
    name: str
    identity_uuid: str
    identity_type: str
    value: int
    last_op_date: datetime
    create_date: datetime


@inventory(_KEY_PACKAGE, vo="AccessKeyVO")
class AccessKeyInventory(Inventory, kw_only=True):
    """A key with which an account signs requests instead of opening sessions.

    Its secret is told once, by the operation that makes it.
    """

    uuid: str
    description: str | None = None
    account_uuid: str
    user_uuid: str
    access_key_id: str = msgspec.field(name="AccessKeyID")
    access_key_secret: str | None = msgspec.field(name="AccessKeySecret", default=None)
    state: str
    create_date: datetime
    last_op_date: datetime


class QuotaUsage(msgspec.Struct, rename="camel", kw_only=True):
    """How much of a quota is used."""

    __java_class__: ClassVar[str] = f"{_PACKAGE}.Quota$QuotaUsage"

    name: str
    total: int
    used: int


class ValidateSessionReply(Reply, omit_defaults=False, kw_only=True):
    """Whether a session is valid."""

    valid: bool


class QuotaUsageReply(Reply, kw_only=True):
    """The usage of every quota of an account."""

    usages: list[QuotaUsage]


@rest("PUT /accounts/login", package=_PACKAGE, sync=True, login=False)
class LogInByAccount(ApiMessage[SessionInventory], kw_only=True):
    """Log in with an account's name and the lower-case hexadecimal SHA-512 of its password."""

    account_name: str
    password: Annotated[str, Param(secret=True)]
    account_type: str | None = None
    captcha_uuid: str | None = None
    verify_code: str | None = None
    client_info: dict[str, str] | None = None


@rest("DELETE /accounts/sessions/{sessionUuid}", package=_PACKAGE, sync=True, login=False)
class LogOut(ApiMessage[None], kw_only=True):
    """End a session; ending one that does not exist succeeds too."""

    session_uuid: str | None = None
    client_info: dict[str, str] | None = None


@rest("GET /accounts/sessions/{sessionUuid}/valid", package=_PACKAGE, login=False)
class ValidateSession(ApiMessage[ValidateSessionReply], kw_only=True):
    """Tell whether a session is valid. Asking does not extend it."""

    session_uuid: str


@rest("PUT /accounts/sessions/{sessionUuid}/renew", package=_PACKAGE, secret=True)
class RenewSession(ApiMessage[SessionInventory], kw_only=True):
    """Let a session end `duration` seconds from now, by default after the usual time."""

    session_uuid: str
    duration: Annotated[int | None, Param(minimum=60, maximum=31_536_000)] = None


@rest("POST /accounts", package=_PACKAGE, admin_only=True, tags_for="AccountVO")
class CreateAccount(CreateMessage[AccountInventory], kw_only=True):
    """Create an account. The password is the lower-case hexadecimal SHA-512 of what its user types."""

    name: Annotated[str, Param(max_length=255)]
    password: Annotated[str, Param(max_length=255, secret=True)]
    type: Annotated[str | None, Param(valid_values=(SYSTEM_ADMIN, NORMAL))] = None
    description: Annotated[str | None, Param(max_length=2048)] = None


@rest("PUT /accounts/{uuid}", package=_PACKAGE)
class UpdateAccount(ApiMessage[AccountInventory], kw_only=True):
    """Change an account's name, description or password. A new password ends the account's other sessions."""

    uuid: Annotated[str, Param(resource="AccountVO", check_account=True, target=True)]
    password: Annotated[str | None, Param(max_length=255, secret=True)] = None
    name: Annotated[str | None, Param(max_length=255)] = None
    description: Annotated[str | None, Param(max_length=2048)] = None
    old_password: Annotated[str | None, Param(max_length=255, secret=True)] = None


@rest("DELETE /accounts/{uuid}", package=_PACKAGE)
class DeleteAccount(DeleteMessage[None], kw_only=True):
    """Delete an account with what it owns. What no service deletes with it passes to the administrator."""

    uuid: Annotated[str, Param(resource="AccountVO", success_if_missing=True)]


@rest("GET /accounts", also=("/accounts/{uuid}",), package=_PACKAGE)
class QueryAccount(ApiQuery[AccountInventory]):
    """Query accounts."""


@rest("GET /accounts/resources/refs", package=_PACKAGE)
class QueryAccountResourceRef(ApiQuery[AccountResourceRefInventory]):
    """Query which account owns which resource."""


@rest("GET /accounts/resources", package=_PACKAGE, admin_only=True)
class QuerySharedResource(ApiQuery[SharedResourceInventory]):
    """Query what is shared with whom."""


@rest("PUT /accounts/resources/actions", package=_PACKAGE, admin_only=True)
class ShareResource(ApiMessage[None], kw_only=True):
    """Let accounts, or everybody, use resources."""

    resource_uuids: Annotated[list[str], Param(resource="ResourceVO", check_account=True, nonempty=True, target=True)]
    account_uuids: Annotated[list[str] | None, Param(resource="AccountVO")] = None
    to_public: bool = False


@rest("PUT /accounts/resources/actions", package=_PACKAGE, admin_only=True)
class RevokeResourceSharing(ApiMessage[None], kw_only=True):
    """Take back the sharing of resources: with these accounts, with everybody, or all of it."""

    resource_uuids: Annotated[list[str], Param(resource="ResourceVO", nonempty=True)]
    to_public: bool = False
    account_uuids: Annotated[list[str] | None, Param(resource="AccountVO")] = None
    all: bool = False


@rest("POST /account/{accountUuid}/resources", package=_PACKAGE, admin_only=True)
class ChangeResourceOwner(ApiMessage[AccountResourceRefInventory], kw_only=True):
    """Give a resource to another account."""

    account_uuid: Annotated[str, Param(resource="AccountVO")]
    resource_uuid: Annotated[str, Param(resource="ResourceVO", check_account=True, nonempty=True, target=True)]


@rest("GET /resources/accounts", package=_PACKAGE, reply_key="inventories")
class GetResourceAccount(ApiMessage[dict[str, AccountInventory]], kw_only=True):
    """Tell the owners of resources, by the resources' UUIDs."""

    resource_uuids: Annotated[list[str], Param(nonempty=True)]


@rest("GET /accounts/quota/{uuid}/usages", package=_PACKAGE)
class GetAccountQuotaUsage(ApiMessage[QuotaUsageReply], kw_only=True):
    """Tell how much of its quotas an account uses."""

    uuid: Annotated[str, Param(resource="AccountVO", check_account=True, target=True)]


@rest("PUT /accounts/quotas/actions", package=_PACKAGE, admin_only=True)
class UpdateQuota(ApiMessage[QuotaInventory], kw_only=True):
    """Change an account's quota."""

    identity_uuid: Annotated[str, Param(resource="AccountVO")]
    name: str
    value: Annotated[int, Param(minimum=0, maximum=_INT64_MAX)]


@rest("GET /accounts/quotas", package=_PACKAGE)
class QueryQuota(ApiQuery[QuotaInventory]):
    """Query quotas."""


@rest("POST /accesskeys", package=_KEY_PACKAGE, tags_for="AccessKeyVO", secret=True)
class CreateAccessKey(CreateMessage[AccessKeyInventory], kw_only=True):
    """Make an access key of an account. Its identifier and secret are made, or given to move a key from elsewhere."""

    account_uuid: Annotated[str, Param(resource="AccountVO")]
    user_uuid: str
    description: Annotated[str | None, Param(max_length=2048)] = None
    access_key_id: Annotated[str | None, Param(min_length=10, max_length=128, regex=r"[A-Za-z0-9]+")] = msgspec.field(
        name="AccessKeyID", default=None
    )
    access_key_secret: Annotated[str | None, Param(min_length=20, max_length=128, secret=True)] = msgspec.field(
        name="AccessKeySecret", default=None
    )


@rest("DELETE /accesskeys/{uuid}", package=_KEY_PACKAGE)
class DeleteAccessKey(DeleteMessage[None], kw_only=True):
    """Delete an access key; requests that are signed with it are refused from now on."""

    uuid: Annotated[str, Param(resource="AccessKeyVO", success_if_missing=True, check_account=True, target=True)]


@rest("PUT /accesskeys/{uuid}/actions", package=_KEY_PACKAGE)
class ChangeAccessKeyState(ApiMessage[AccessKeyInventory], kw_only=True):
    """Let an access key be used, or not."""

    uuid: Annotated[str, Param(resource="AccessKeyVO", check_account=True, target=True)]
    state_event: Annotated[str, Param(valid_values=("enable", "disable"))]


@rest("GET /accesskeys", also=("/accesskeys/{uuid}",), package=_KEY_PACKAGE)
class QueryAccessKey(ApiQuery[AccessKeyInventory]):
    """Query access keys; secrets are not told."""
