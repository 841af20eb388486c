"""Local storage on a host: image cache and volumes as files below one directory.

Invariant: nothing outside that directory is read, written or deleted, and nothing in it is trusted to name other files.
"""

from __future__ import annotations

from caelum.agent.core import Agent
from caelum.agent.storage import directory, download, upload, volume

__all__ = ["directory", "download", "setup", "upload", "volume"]


def setup(agent: Agent) -> None:
    """Take part in the agent: tell what files are here."""
    agent.hooks.dump.append(directory.dump)
