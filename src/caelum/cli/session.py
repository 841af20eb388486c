"""Where the command line keeps its session: `~/.config/caelum/session.json`, readable by its owner alone.

`CAELUM_URL` (one or several addresses, comma separated) and `CAELUM_SESSION` override the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caelum.sdk.client import Client

DEFAULT_URL = "http://127.0.0.1:8080"


def path() -> Path:
    """The session file."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "caelum" / "session.json"


def load() -> dict[str, Any]:
    """What is kept, with the environment's overrides."""
    try:
        kept: dict[str, Any] = json.loads(path().read_text())
    except (OSError, ValueError):
        kept = {}
    if url := os.environ.get("CAELUM_URL"):
        kept["url"] = url
    if session := os.environ.get("CAELUM_SESSION"):
        kept["session"] = session
    return kept


def save(url: str, session: str | None) -> None:
    """Keep a session, or forget it."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump({"url": url, "session": session}, out)


def client() -> Client:
    """A client for the kept address and session."""
    from caelum.sdk.client import Client  # only here: help must not load HTTP

    kept = load()
    return Client(*str(kept.get("url", DEFAULT_URL)).split(","), session=kept.get("session"))
