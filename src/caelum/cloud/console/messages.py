"""What console proxies ask, and how tokens are made. No token crosses the bus: proxies send its SHA-256 only."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from typing import Literal

import msgspec

from caelum.cloud.host.spec import ConsoleTarget
from caelum.kernel.message import Message, message

Line = Literal["vnc", "serial"]
ENDED = frozenset({"Stopped", "Crashed", "Destroying", "Destroyed", "Expunging"})
"""States that end a VM's consoles and make its tokens useless. A reboot does not."""
_BYTES = 32


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(_BYTES)


def digest_of(token: str) -> str:
    """What is kept of a token. It has 256 random bits, so a fast hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


class ConsoleGrant(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a token leads to, as things are now."""

    vm_uuid: str
    vm_name: str
    account_uuid: str
    expire_date: datetime
    target: ConsoleTarget


@message(timeout=60)
class LookUpConsole(Message[ConsoleGrant], kw_only=True):
    """What an unused token leads to; it stays unused. CONSOLE.1001 when it is not good for this line."""

    digest: str
    line: Line


@message(timeout=30)
class TakeConsole(Message[None], kw_only=True):
    """Use a token up. Of all that try, one succeeds; the others get CONSOLE.1001."""

    digest: str
    line: Line


@message(timeout=30)
class ExchangeConsoleToken(Message[ConsoleGrant], kw_only=True):
    """Use an access token up for one of this line and another access token, which expire when it would have."""

    digest: str
    line: Line
    line_digest: str
    access_digest: str


@message(timeout=30)
class AnnounceConsoleProxy(Message[str], kw_only=True):
    """A proxy serves at this address, or no longer does. The answer is its UUID, the same for the same address."""

    management_ip: str
    port: int
    scheme: Literal["http", "https"] = "http"
    connected: bool = True
