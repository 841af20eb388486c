"""Which web pages may open a console.

Invariant: a browser always says whose page asks (`Origin`), so a page of a stranger is refused even when it got hold of
a token; whoever sends no origin is no browser, and has the token alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_allowed(origin: str | None, host: str, ports: Iterable[int], others: Iterable[str]) -> bool:
    """Whether the page of `origin` is our own: at the host (of the header `Host`) at its port or one of `ports`, or
    named in `others`.
    """
    if origin is None or origin.lower().rstrip("/") in {one.lower().rstrip("/") for one in others}:
        return True
    try:
        theirs, ours = urlsplit(origin), urlsplit(f"{urlsplit(origin).scheme}://{host}")
        their_port, our_port = theirs.port, ours.port
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(theirs.scheme)
    if default is None or theirs.hostname is None or theirs.hostname != ours.hostname:
        return False
    return (their_port or default) in {our_port or default, *ports}


def framers(host: str, ports: Iterable[int], others: Iterable[str]) -> str:
    """The same pages, as sources of a content security policy."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    name = f"[{name}]" if ":" in name else name
    ours = [f"{scheme}://{name}:{port}" for port in ports for scheme in _DEFAULT_PORTS] if name else []
    # What would end a source or the policy is no part of an origin.
    return " ".join(["'self'", *(one for one in (*ours, *others) if not set(one) & set(" ;,'"))])
