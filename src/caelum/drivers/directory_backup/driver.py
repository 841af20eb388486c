"""The DirectoryBackupStorage driver: images in a directory of the server, handed to hosts over mutual TLS.

Invariant: hosts get complete, checked images only, and nothing else of the server's files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from caelum.cloud.backup_storage.api import BackupStorageInventory
from caelum.cloud.backup_storage.errors import CONNECT_ERROR, DOWNLOAD_ERROR
from caelum.cloud.backup_storage.extension import (
    BackupCapacity,
    BackupStorageDriver,
    ImageSource,
    Progress,
    StoredImage,
)
from caelum.cloud.backup_storage.messages import AddBackupStorage, GetBackupStorage
from caelum.drivers.directory_backup import store
from caelum.drivers.directory_backup.api import AddDirectoryBackupStorage
from caelum.drivers.directory_backup.settings import ALLOWED_NETWORKS, BLACKLIST, FILTER, IDLE_TIMEOUT, WHITELIST
from caelum.drivers.directory_backup.sources import Guard, Source, open_source
from caelum.drivers.kvm.extension import HOST_KEY, AgentRoutes
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.image_header import ImageRejected
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles

log = logging.getLogger(__name__)

TYPE = "DirectoryBackupStorage"
ROUTE = "/backup-storage/{uuid}/{path:.+}"

_FORBIDDEN = ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")


class DirectoryBackup:
    """Images in a directory."""

    type = TYPE

    def __init__(self, node: Node) -> None:
        self._node = node
        self.base_url = ""
        """Where hosts reach this node."""

    def check_url(self, url: str) -> None:
        path = Path(url)
        if not path.is_absolute() or ".." in path.parts:
            raise invalid("url", f"{url!r} is not an absolute path", value=url)
        if any(str(path) == one or (one != "/" and path.is_relative_to(one)) for one in _FORBIDDEN):
            raise invalid(
                "url", f"{url} belongs to the system; take a directory of its own", forbidden=list(_FORBIDDEN)
            )

    def check_source(self, url: str, is_admin: bool) -> None:
        self._guard().check_url(url, is_admin)

    def _guard(self) -> Guard:
        get = self._node.settings.get
        always = str((self._node.config.data_dir / "import").resolve())
        return Guard(get(ALLOWED_NETWORKS), get(WHITELIST), get(BLACKLIST), get(FILTER), get(IDLE_TIMEOUT), always)

    async def connect(self, bs: BackupStorageInventory, first: bool) -> BackupCapacity:
        root = Path(bs.url)
        try:
            await asyncio.to_thread(store.claim, root, bs.uuid, first)
            return await asyncio.to_thread(store.capacity, root)
        except (OSError, store.WrongDirectory) as error:
            raise CloudError(CONNECT_ERROR, f"backup storage[uuid:{bs.uuid}]: {error}", uuid=bs.uuid) from error

    async def remove(self, bs: BackupStorageInventory) -> None:
        try:
            await asyncio.to_thread(store.disclaim, Path(bs.url), bs.uuid)
        except OSError as error:
            log.warning("the mark of backup storage %s stays in %s: %s", bs.uuid, bs.url, error)

    async def capacity(self, bs: BackupStorageInventory) -> BackupCapacity:
        return await self.connect(bs, False)

    async def probe(self, bs: BackupStorageInventory, source: ImageSource) -> int | None:
        async with open_source(source.url, self._guard()) as opened:
            return opened.size

    async def add_image(self, bs: BackupStorageInventory, source: ImageSource, progress: Progress) -> StoredImage:
        root = Path(bs.url)
        folder = store.folder_of(root, source.media_type, source.account_uuid, source.image_uuid)
        known = await asyncio.to_thread(store.stored, folder)
        if known is not None:
            return known  # fetched before, by a run that a crash cut short
        try:
            return await self._fetch(folder, source, progress)
        except ImageRejected as error:
            await self.delete_image(bs, source.image_uuid, None)
            raise invalid("url", f"{source.url}: {error.reason}", **error.facts) from error
        except OSError as error:
            await self.delete_image(bs, source.image_uuid, None)
            raise CloudError(DOWNLOAD_ERROR, f"cannot keep the image in {root}: {error}", path=str(folder)) from error
        except BaseException:
            await asyncio.shield(self.delete_image(bs, source.image_uuid, None))
            raise

    async def _fetch(self, folder: Path, source: ImageSource, progress: Progress) -> StoredImage:
        declared = "iso" if source.media_type == "ISO" else source.format
        async with open_source(source.url, self._guard()) as opened:
            sink = await asyncio.to_thread(store.Sink, folder, source.image_uuid, declared, source.size_limit)
            try:
                await _pump(opened, sink, progress)
                if opened.size is not None and sink.written != opened.size:
                    raise CloudError(
                        DOWNLOAD_ERROR,
                        f"{source.url} ended after {sink.written} of {opened.size} bytes",
                        url=source.url,
                    )
                return await asyncio.to_thread(sink.finish)
            finally:
                sink.close()

    async def delete_image(self, bs: BackupStorageInventory, image_uuid: str, install_path: str | None) -> None:
        root = Path(bs.url)
        try:
            await asyncio.to_thread(store.claim, root, bs.uuid, False)
            await asyncio.to_thread(store.remove_image, root, image_uuid)
        except (OSError, store.WrongDirectory) as error:
            raise CloudError(CONNECT_ERROR, f"cannot delete image[uuid:{image_uuid}] from {root}: {error}") from error

    async def files(self, bs: BackupStorageInventory) -> list[str]:
        try:
            return await asyncio.to_thread(store.files, Path(bs.url))
        except OSError as error:
            raise CloudError(CONNECT_ERROR, f"cannot list {bs.url}: {error}", uuid=bs.uuid) from error

    async def image_size(self, bs: BackupStorageInventory, install_path: str) -> int:
        try:
            path = await asyncio.to_thread(store.inside, Path(bs.url), install_path)
            return (await asyncio.to_thread(path.stat)).st_size
        except (OSError, ValueError) as error:
            raise CloudError(CONNECT_ERROR, f"cannot look at {install_path}: {error}") from error

    async def url_for(self, bs: BackupStorageInventory, install_path: str) -> str:
        relative = Path(install_path).relative_to(bs.url)
        if not self.base_url:
            raise CloudError(CONNECT_ERROR, "this node does not serve hosts: its agent-facing listener is not loaded")
        return f"{self.base_url}/backup-storage/{bs.uuid}/{quote(str(relative))}"


async def _pump(source: Source, sink: store.Sink, progress: Progress) -> None:
    told = time.monotonic()
    async for chunk in source.chunks:
        await asyncio.to_thread(sink.write, chunk)
        if time.monotonic() - told > 1:
            told = time.monotonic()
            percent = 99 * sink.written // source.size if source.size else 0
            await progress(percent, f"{sink.written} of {source.size or 'unknown'} bytes")


class DirectoryBackupService(Service):
    """Adds directories as backup storages, and serves their images to hosts."""

    name = "directory_backup"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        driver = DirectoryBackup(node)
        node.drivers.add(BackupStorageDriver, TYPE, driver)
        node.extensions.add(ImageRoutes(node, driver))

    @handles(AddDirectoryBackupStorage, repeatable=True)
    async def add(self, msg: AddDirectoryBackupStorage) -> BackupStorageInventory:
        return await self.bus.call(
            AddBackupStorage(
                uuid=msg.resource_uuid or new_uuid(),
                type=TYPE,
                name=msg.name,
                url=str(Path(msg.url)),
                description=msg.description,
                system_tags=msg.system_tags,
                user_tags=msg.user_tags,
                tag_uuids=msg.tag_uuids,
            )
        )


class ImageRoutes(AgentRoutes):
    """`GET /backup-storage/<uuid>/<path>` on the agent-facing listener."""

    def __init__(self, node: Node, driver: DirectoryBackup) -> None:
        self._node, self._driver = node, driver

    def listening(self, base_url: str) -> None:
        self._driver.base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        return [web.get(ROUTE, self._serve)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            bs = await self._node.bus.call(GetBackupStorage(request.match_info["uuid"]))
        except CloudError as error:
            raise web.HTTPNotFound(text=error.details) from error
        if bs.type != TYPE:
            raise web.HTTPNotFound(text=f"backup storage[uuid:{bs.uuid}] is no directory")
        try:
            path = await asyncio.to_thread(store.inside, Path(bs.url), request.match_info["path"])
        except (OSError, ValueError) as error:
            raise web.HTTPForbidden(text="outside of the storage") from error
        if path.suffix == ".part" or path.name == store.NOTE or path.name.startswith("."):
            raise web.HTTPForbidden(text="not an image")
        if not await asyncio.to_thread(path.is_file):
            raise web.HTTPNotFound(text="no such image")
        log.info("host %s fetches %s", request[HOST_KEY], path)
        return web.FileResponse(path, chunk_size=1 << 20)
