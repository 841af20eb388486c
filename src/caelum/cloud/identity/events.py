"""News of accounts and sessions."""

from __future__ import annotations

from datetime import datetime

from caelum.kernel.events import CanonicalEvent, canonical


@canonical("/account/login")
class AccountLoggedIn(CanonicalEvent):
    """An account logged in."""

    account_uuid: str
    user_uuid: str
    name: str | None = None


@canonical("/account/delete")
class AccountDeleted(CanonicalEvent):
    """An account is gone."""

    account_uuid: str


@canonical("/session/logout")
class SessionEnded(CanonicalEvent):
    """A session, named by its digest, ended before its time; every node forgets it."""

    session_uuid: str
    account_uuid: str
    user_uuid: str
    date: datetime
