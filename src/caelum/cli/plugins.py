"""Operations of the server's plugins, which the command line learns from the server and keeps for each server.

Invariant: help and commands that are known never wait for a server: what is kept is read, and a server is asked at
login and when a command is not known.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from caelum.cli import session
from caelum.sdk.manifest import learn

_PATIENCE = 5.0
"""Seconds that a server may take to tell its operations."""


def path() -> Path:
    """Where the operations of the server that commands go to are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    url = str(session.load().get("url", session.DEFAULT_URL))
    return Path(base) / "caelum" / f"operations-{re.sub(r'[^A-Za-z0-9.-]+', '_', url)[:200]}.json"


def recall() -> None:
    """Know what is kept of this server."""
    with contextlib.suppress(OSError, ValueError):
        learn(path().read_bytes())


def refresh() -> None:
    """Ask the server, and keep its answer; a server that has none, or is away, changes nothing."""
    from caelum.sdk.client import ApiError

    with contextlib.suppress(OSError, TimeoutError, ApiError):
        text = session.client().learn(_PATIENCE)
        file = path()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(text)
        part.replace(file)
