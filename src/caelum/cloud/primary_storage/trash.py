"""Bits that must go: now when their host is there, by the garbage collector when it is away.

Invariant: the space of bits is given back when they are gone, not before. Until then the reservation is kept under a
name of its own, so the volume's UUID is free and the books are true. New bits never get the path of bits that wait for
their deletion, so a late deletion hits nothing that lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.cloud.host.events import HostStatusChanged
from caelum.cloud.primary_storage.api import PrimaryStorageInventory
from caelum.cloud.primary_storage.capacity import TRASH_PREFIX, Place, move, release
from caelum.cloud.primary_storage.extension import PrimaryStorageDriver
from caelum.cloud.primary_storage.model import CONNECTED, StorageReservationModel
from caelum.cloud.primary_storage.settings import DELETE_BITS_INTERVAL
from caelum.cloud.primary_storage.storages import Storages
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.gc import GarbageCollectorModel, gc_runner
from caelum.kernel.ids import derived_uuid, new_uuid
from caelum.kernel.node import Node

log = logging.getLogger(__name__)

RUNNER = "primary-storage.delete-bits"
_PAUSES = (1.0, 2.0, 5.0, 10.0)
"""Seconds between the tries of one run: a guest that goes at the same time lets go of its disk within them."""


class Trash:
    """Deletes bits, at once or later."""

    def __init__(self, node: Node, storages: Storages) -> None:
        self._node, self._storages = node, storages

    async def delete(
        self, ps: PrimaryStorageInventory, place: Place, host_uuid: str, path: str, key: str | None
    ) -> None:
        """Delete bits and give back what `key` reserved for them."""
        try:
            await self._storages.driver(ps).delete_bits(ps, host_uuid, path)
        except CloudError as error:
            # Whatever the reason is: whoever deletes has no use for the bits, and need not wait.
            log.warning("%s on %s is deleted later: %s", path, place, error.details)
            await self._later(ps, place, host_uuid, path, key)
            return
        if key is not None:
            async with self._node.db.transaction() as tx:
                await release(tx, key)

    async def _later(
        self, ps: PrimaryStorageInventory, place: Place, host_uuid: str, path: str, key: str | None
    ) -> None:
        trash_key = f"{TRASH_PREFIX}-{derived_uuid(ps.uuid, place.host_uuid, path)}"
        job = {"primary_storage_uuid": ps.uuid, "host_uuid": host_uuid, "install_path": path, "key": trash_key}
        async with self._node.db.transaction() as tx:
            if key is not None and await tx.get(StorageReservationModel, key) is not None:
                await release(tx, trash_key)
                await move(tx, key, trash_key)
            await self._node.gc.submit(
                tx,
                job_name(ps.uuid, place.host_uuid, path),
                RUNNER,
                job,
                interval=self._node.settings.get(DELETE_BITS_INTERVAL),
                on_event=HostStatusChanged,
                match={"host_uuid": host_uuid, "new_status": CONNECTED},
            )


async def free_path(tx: AsyncSession, ps_uuid: str, host_uuid: str, name: str, path_of: Callable[[str], str]) -> str:
    """The path for bits called `name`, or for a new name while old bits of that name still wait for their deletion."""
    path = path_of(name)
    waiting = select(GarbageCollectorModel.uuid).where(
        GarbageCollectorModel.open_name == job_name(ps_uuid, host_uuid, path)
    )
    return path if await tx.scalar(waiting) is None else path_of(new_uuid())


def job_name(ps_uuid: str, host_uuid: str, path: str) -> str:
    """What the garbage collector calls the deletion of these bits."""
    return f"delete {path} of primary storage {ps_uuid} on host {host_uuid}"


async def _delete_soon(driver: PrimaryStorageDriver, ps: PrimaryStorageInventory, host_uuid: str, path: str) -> None:
    """Delete bits, also those whose guest is being taken off the same host at this moment."""
    for pause in _PAUSES:
        try:
            await driver.delete_bits(ps, host_uuid, path)
            return
        except CloudError as error:
            if error.code == HOST_DISCONNECTED.code or not error.kind.transient:
                raise  # a host that is away says when it is back
            log.info("%s on host %s is tried again in %.0f s: %s", path, host_uuid, pause, error.details)
        await asyncio.sleep(pause)
    await driver.delete_bits(ps, host_uuid, path)


@gc_runner(RUNNER)
async def delete_later(node: Node, job: dict[str, Any]) -> bool:
    """Delete bits whose host was away; done also when the storage or the host is gone for good."""
    storages = Storages(node)
    try:
        ps = await storages.find(job["primary_storage_uuid"])
        driver: PrimaryStorageDriver = storages.driver(ps)
        await _delete_soon(driver, ps, job["host_uuid"], job["install_path"])
    except CloudError as error:
        if error.code != RESOURCE_NOT_FOUND.code:
            raise
    async with node.db.transaction() as tx:
        await release(tx, job["key"])
    return True
