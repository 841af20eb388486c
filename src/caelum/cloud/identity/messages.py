"""What other parts ask of identity."""

from __future__ import annotations

import msgspec

from caelum.kernel.context import Actor
from caelum.kernel.message import Message, message


@message(timeout=30)
class CheckSession(Message[Actor], kw_only=True):
    """Who a session belongs to; extends the session. INVALID_SESSION when it is unknown or expired."""

    session_uuid: str | None = None


@message(timeout=30)
class CheckActor(Message[Actor], kw_only=True):
    """Who asked for something before, as they are now; extends no session. INVALID_SESSION when the session is over by
    which they asked, or else when the account is gone whose access key signed.
    """

    actor: Actor


@message(timeout=30)
class CheckSignature(Message[Actor], kw_only=True):
    """Whose access key signed one of these texts. ACCESS_KEY_REFUSED when it is unknown, disabled, or did not."""

    access_key_id: str
    signature: str
    texts: list[str]


class Access(msgspec.Struct, frozen=True, rename="camel"):
    """Which resources an account may not use: `hidden` ones it may not even know of, `foreign` ones are only shared."""

    hidden: list[str]
    foreign: list[str]


@message(timeout=30)
class CheckAccess(Message[Access], kw_only=True):
    """Which of these resources the account neither owns nor has shared with it, and which it does not own."""

    account_uuid: str
    resource_uuids: list[str]
    unowned_too: bool = False
    """Hide also what nobody owns."""


@message()
class RecordOwner(Message[None], kw_only=True):
    """Make the account the owner of a resource."""

    account_uuid: str
    resource_uuid: str
    resource_type: str


@message()
class DropOwner(Message[None], kw_only=True):
    """Forget the owner of a resource."""

    resource_uuid: str
