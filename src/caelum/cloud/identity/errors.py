"""What identity refuses, with the codes that clients know."""

from __future__ import annotations

from caelum.kernel.errors import CloudError, error_type

AUTHENTICATION_ERROR = error_type(
    "ID.1000", "Unable to authenticate a user", "Check the account's name and the password's SHA-512."
)
INVALID_SESSION = error_type(
    "ID.1001",
    "The session is invalid, either wrong session id or the session has been expired",
    "Log in again.",
)
PERMISSION_DENIED = error_type(
    "ID.1002",
    "The user doesn't have permission to perform the operation",
    "Ask an administrator, or use an account that may do this.",
)
MAX_SESSIONS_EXCEEDED = error_type(
    "ID.1006", "Max number of active sessions exceeded", "Log out of sessions that are no longer used."
)

ACCESS_KEY_REFUSED = error_type(
    "ID.2100",
    "The access key is not accepted",
    "Check identifier and secret, whether the key is enabled, and what is signed: method, date and path.",
)


def wrong_credentials() -> CloudError:
    """The one answer to a failed login, whether the account exists or not."""
    return CloudError(AUTHENTICATION_ERROR, "wrong account or password")


def invalid_session(session_uuid: str | None) -> CloudError:
    """The answer to a session that is unknown or over."""
    if session_uuid is None:
        return CloudError(INVALID_SESSION, "the request carries no session: log in first")
    return CloudError(INVALID_SESSION, "Session expired")
