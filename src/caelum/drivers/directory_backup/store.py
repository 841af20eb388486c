"""The directory itself: one sub-directory per image, with the file and a note on it.

Invariant: a file without `.part` is complete and was checked; it got its name in one step, after its note (sizes and
digests) was on the disk. Only plain paths below the directory are ever touched. Everything here blocks: run it in
threads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from caelum.cloud.backup_storage.extension import BackupCapacity, StoredImage
from caelum.kernel import image_header
from caelum.kernel.image_header import HEAD_SIZE, ImageHeader, ImageRejected

MARK = ".caelum-backup-storage"
NOTE = "image.json"
_FOLDERS = {"ISO": "isos", "DataVolumeTemplate": "dataVolumeTemplates"}


class WrongDirectory(Exception):  # noqa: N818 - it is about the directory
    """The directory is another storage's, or what was there is gone (a disk that is not mounted)."""


def claim(root: Path, uuid: str, first: bool) -> None:
    """Make the directory ours. Raises WrongDirectory, or OSError when it cannot be written."""
    mark = root / MARK
    if first:
        root.mkdir(parents=True, exist_ok=True)
    if mark.exists():
        owner = mark.read_text().strip()
        if owner != uuid:
            raise WrongDirectory(f"{root} belongs to backup storage {owner}")
    elif first:
        mark.write_text(uuid + "\n")
    else:
        raise WrongDirectory(f"{mark} is missing: the directory of this storage is not mounted, or was emptied")
    probe = root / f".{uuid}.probe"
    probe.write_bytes(b"")
    probe.unlink()


def disclaim(root: Path, uuid: str) -> None:
    """Take our mark away; what else is there stays."""
    mark = root / MARK
    if mark.exists() and mark.read_text().strip() == uuid:
        mark.unlink()


def capacity(root: Path) -> BackupCapacity:
    """The file system's size and what is free of it."""
    status = os.statvfs(root)
    return BackupCapacity(status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail)


def folder_of(root: Path, media_type: str, account_uuid: str, image_uuid: str) -> Path:
    """Where an image's files are."""
    return root / _FOLDERS.get(media_type, "rootVolumeTemplates") / f"acct-{account_uuid}" / image_uuid


def inside(root: Path, path: str | Path) -> Path:
    """The real path, when it is below the directory. Raises ValueError."""
    found = (root / path).resolve()
    if not found.is_relative_to(root.resolve()) or found == root.resolve():
        raise ValueError(f"{path} is not inside {root}")
    return found


def stored(folder: Path) -> StoredImage | None:
    """What the note of a complete image says."""
    try:
        note = msgspec.json.decode((folder / NOTE).read_bytes(), type=StoredImage)
    except (OSError, msgspec.DecodeError):
        return None
    return note if Path(note.install_path).is_file() else None


def files(root: Path) -> list[str]:
    """Every file below the directory but the mark, and the notes of images that are there."""
    found = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return sorted(str(one) for one in found if one != root / MARK and not _is_note(one))


def _is_note(path: Path) -> bool:
    return path.name == NOTE and stored(path.parent) is not None


def remove_image(root: Path, image_uuid: str) -> None:
    """Delete an image's directory wherever it is, half-fetched files too."""
    for folder in root.glob(f"*/acct-*/{image_uuid}"):
        shutil.rmtree(inside(root, folder), ignore_errors=False)


class Sink:
    """An image on its way into the directory."""

    def __init__(self, folder: Path, image_uuid: str, declared: str | None, limit: int) -> None:
        self.written = 0
        self._folder, self._image_uuid, self._declared, self._limit = folder, image_uuid, declared, limit
        self._head = b""
        self._digests = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._part = folder / f"{image_uuid}.part"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb")

    def write(self, chunk: bytes) -> None:
        """Take a piece. ImageRejected as soon as it is clear that the image is not acceptable, or too big."""
        self.written += len(chunk)
        if self.written > self._limit:
            raise ImageRejected(
                f"the image has more than the {self._limit} bytes that fit", limit=self._limit, seen=self.written
            )
        if len(self._head) < HEAD_SIZE:
            self._head += chunk[: HEAD_SIZE - len(self._head)]
            if len(self._head) == HEAD_SIZE:
                unknown = 1 << 62  # the size, until the end is seen
                self._check(image_header.parse(self._head, unknown), unknown)
        for digest in self._digests:
            digest.update(chunk)
        self._file.write(chunk)

    def finish(self) -> StoredImage:
        """Check the whole and give it its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        header = image_header.inspect(self._part)
        self._check(header, image_header.MAX_VIRTUAL_SIZE)
        kind = self._declared or header.format
        final = self._folder / f"{self._image_uuid}.{kind}"
        sha256, md5 = (digest.hexdigest() for digest in self._digests)
        image = StoredImage(str(final), header.virtual_size, self.written, md5, sha256, kind)
        note = self._folder / (NOTE + ".part")
        note.write_bytes(msgspec.json.encode(image))
        note.replace(self._folder / NOTE)
        self._part.replace(final)
        return image

    def _check(self, header: ImageHeader, max_virtual_size: int) -> None:
        image_header.check(header, declared=self._declared, max_virtual_size=max_virtual_size)
        if self._declared == "iso" and header.format != "iso":
            raise ImageRejected(f"the image is {header.format}, not iso", found=header.format, declared="iso")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
