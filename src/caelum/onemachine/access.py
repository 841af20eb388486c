"""How this machine's owner gets into the cloud on it: as its built-in administrator."""

from __future__ import annotations

import getpass
import os
import sys

from caelum.sdk import ApiError, Client

ACCOUNT = "admin"
FIRST_PASSWORD = "password"  # noqa: S105  to be changed by its owner
VARIABLE = "CAELUM_PASSWORD"
WRONG_PASSWORD = "ID.1000"  # noqa: S105


class NoAccessError(Exception):
    """The administrator's password is not the first one any more, and nobody told the new one."""


def log_in(*apis: str) -> Client:
    """A client with a session: by the password in the environment, by the first one, or by the one that is typed."""
    client = Client(*apis)
    try:
        client.login(ACCOUNT, os.environ.get(VARIABLE, FIRST_PASSWORD))
    except ApiError as error:
        if error.code != WRONG_PASSWORD:
            raise
        if not sys.stdin.isatty():
            raise NoAccessError(f"{ACCOUNT} has another password; tell it in {VARIABLE}") from None
        client.login(ACCOUNT, getpass.getpass(f"Password of {ACCOUNT}: "))
    return client
