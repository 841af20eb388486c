"""Where files of a storage may be.

Invariant: no path that comes over the wire is used before it has been through `Storage.file`: absolute, plain, without
"..", and still below the storage after every symbolic link in it has been followed. A storage without its marker is not
used at all: its disk is not mounted, or it never was a storage.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from caelum.agent.protocol import INVALID, NOT_FOUND, STORAGE
from caelum.agent.registry import AgentFailure

MARKER = ".caelum-storage"
PART, NEW = ".part", ".new"
"""Endings of files that are still being downloaded, and still being made."""

_PATH = re.compile(r"(/[A-Za-z0-9._+=@:-]+)+")
"""What the server's install paths are made of. It leaves out what any program would take for more than a name."""


class Marker(msgspec.Struct, frozen=True):
    """The content of the marker file."""

    storage_uuid: str


class Storage:
    """The directory of a primary storage."""

    def __init__(self, path: str) -> None:
        self.root = _plain(path)

    @property
    def marker(self) -> Path:
        """The file that tells that this is a storage and whose."""
        return self.root / MARKER

    def read_marker(self) -> Marker | None:
        """Who this storage belongs to; None when it is unmarked."""
        try:
            return msgspec.json.decode(self.marker.read_bytes(), type=Marker)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.DecodeError as error:
            raise AgentFailure(STORAGE, f"{self.marker} is damaged: {error}", path=str(self.marker)) from error

    def require_mark(self) -> None:
        """Fail unless the storage is here."""
        if self.read_marker() is None:
            raise AgentFailure(
                STORAGE,
                f"{self.root} has no {MARKER}: its disk is not mounted, or the storage was not initialised here",
                path=str(self.root),
            )

    def file(self, install_path: str) -> Path:
        """The file at `install_path`; fails unless it is below this (mounted) storage."""
        self.require_mark()
        path = _plain(install_path)
        if self.root not in path.parents or path == self.marker:
            raise self._outside(path)
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(self.root))
        if root not in real.parents or path.is_symlink():
            raise self._outside(path)
        return path

    def existing(self, install_path: str) -> Path:
        """The same, for a file that must be there."""
        path = self.file(install_path)
        if not path.is_file():
            raise AgentFailure(NOT_FOUND, f"there is no file {path}", path=str(path))
        return path

    def files(self) -> Iterator[Path]:
        """Every file of the storage but its marker."""
        for folder, _, names in os.walk(self.root):
            yield from (Path(folder) / name for name in names if Path(folder) / name != self.marker)

    def remove_empty_parents(self, path: Path) -> None:
        """Remove the directories that a deletion left empty, up to the storage's own."""
        for parent in path.parents:
            if parent == self.root:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # not empty
                return

    def _outside(self, path: Path) -> AgentFailure:
        return AgentFailure(
            INVALID, f"{path} is not a file of the storage {self.root}", path=str(path), storage=str(self.root)
        )


def _plain(text: str) -> Path:
    if not _PATH.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise AgentFailure(INVALID, f"{text!r} is not a plain absolute path", path=text)
    return Path(text)
