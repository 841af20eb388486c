"""One look at everything: rows of one moment, then what hosts and backup storages say.

Invariant: the rows are of one snapshot. Hosts and storages are asked after it, so a thing that is made or removed in
between can look wrong once; the service looks twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.audit.extension import AuditCheck
from caelum.cloud.backup_storage.messages import ListBackupFiles
from caelum.cloud.backup_storage.model import BackupStorageModel
from caelum.cloud.host.messages import DumpHost, HostContents
from caelum.cloud.host.model import HostModel
from caelum.cloud.primary_storage.model import LocalStorageHostRefModel, PrimaryStorageModel
from caelum.kernel import gc, jobs, resources
from caelum.kernel.database import Base
from caelum.kernel.errors import CloudError
from caelum.kernel.gc import GarbageCollectorModel
from caelum.kernel.jobs import JobModel
from caelum.kernel.journal import LIVE, JournalModel
from caelum.kernel.message import Message, camel
from caelum.kernel.node import Node

PARALLELISM = 20
"""Hosts that are asked at once."""
CONNECTED = "Connected"

_NEEDED = (HostModel, BackupStorageModel, LocalStorageHostRefModel, PrimaryStorageModel)


class Evidence(msgspec.Struct, kw_only=True):
    """What is known of the cloud in one pass."""

    tables: dict[type[Base], Sequence[Row[Any]]]
    known: dict[str, frozenset[str]]
    """The UUIDs of all resources by their root type."""
    workflows: Sequence[Row[Any]]
    """Unfinished ones."""
    jobs: Sequence[Row[Any]]
    """Unanswered ones."""
    clean_ups: Sequence[Row[Any]]
    """Open jobs of the garbage collector."""
    live_nodes: frozenset[str]
    me: str
    driven: frozenset[str]
    """The workflows that this node drives, or will when their turn comes, or drove to their end since the snapshot."""
    hosts: dict[str, HostContents] = {}
    silent: dict[str, str] = {}
    """Hosts and backup storages that could not be asked, and why."""
    backups: dict[str, list[str]] = {}
    """Files by backup storage."""
    _indices: dict[type[Base], dict[str, Any]] = {}
    _all: frozenset[str] | None = None

    def rows(self, model: type[Base]) -> Sequence[Any]:
        """The rows of a table that a check reads; columns are attributes."""
        return self.tables[model]

    def by_uuid(self, model: type[Base]) -> dict[str, Any]:
        """The rows of a table by their UUID."""
        if model not in self._indices:
            self._indices[model] = {cast(Any, row).uuid: row for row in self.tables[model]}
        return self._indices[model]

    def exists(self, uuid: str | None) -> bool:
        """Whether any resource has this UUID."""
        if self._all is None:
            self._all = frozenset[str]().union(*self.known.values())
        return uuid in self._all

    def is_driven(self, workflow: Row[Any]) -> bool:
        """Whether somebody drives an unfinished workflow."""
        if workflow.owner != self.me:
            return workflow.owner in self.live_nodes
        return workflow.uuid in self.driven or any(workflow.uuid in one.context for one in self.clean_ups)

    def is_busy(self, names: Iterable[str]) -> bool:
        """Whether running work is about one of these things: its subject, or a word of its context."""
        texts = [f'"{one.subject}" {one.ctx}' for one in self.workflows if self.is_driven(one)]
        texts += [one.context for one in self.clean_ups]
        # A clean-up of a failed undo has its workflow's context as text within its own.
        words = [quoted for name in names for quoted in (f'"{name}"', f'\\"{name}\\"')]
        return any(word in text for text in texts for word in words)

    def counts(self) -> dict[str, int]:
        """How much was looked at."""
        files = [file for contents in self.hosts.values() for listed in contents.files.values() for file in listed]
        return {
            **{camel(str(model.__tablename__)): len(rows) for model, rows in self.tables.items()},
            "hostsAsked": len(self.hosts),
            "hostFiles": len(files),
            "backupFiles": sum(len(listed) for listed in self.backups.values()),
            "unfinishedWorkflows": len(self.workflows),
            "openJobs": len(self.jobs),
            "openCleanUps": len(self.clean_ups),
        }


async def collect(node: Node, checks: Iterable[AuditCheck]) -> Evidence:
    """Look at everything that the checks want to know."""
    models: list[type[Base]] = list(dict.fromkeys([*_NEEDED, *(model for check in checks for model in check.reads)]))
    async with node.db.read() as session:
        seen = Evidence(
            tables={model: await _rows(session, model) for model in models},
            known=await _known(session),
            workflows=await _rows(session, JournalModel, JournalModel.state.in_(LIVE)),
            jobs=await _rows(session, JobModel, JobModel.state == jobs.PROCESSING),
            clean_ups=await _rows(session, GarbageCollectorModel, GarbageCollectorModel.status != gc.DONE),
            live_nodes=frozenset(node.ring.members),
            me=node.uuid,
            driven=frozenset(),
        )
    seen.driven = await _driven(node, seen)
    await _ask_hosts(node, seen)
    await _ask_backups(node, seen)
    return seen


async def _driven(node: Node, seen: Evidence) -> frozenset[str]:
    driven = {one["uuid"] for one in node.workflows.dump()}
    others = [one.uuid for one in seen.workflows if one.uuid not in driven]
    if others:
        row = JournalModel
        async with node.db.read() as session:
            ended = await session.scalars(select(row.uuid).where(row.uuid.in_(others), row.state.not_in(LIVE)))
            driven.update(ended)
    return frozenset(driven)


async def _rows(session: AsyncSession, model: type[Base], *where: Any) -> Sequence[Row[Any]]:
    return (await session.execute(select(model.__table__).where(*where))).all()


async def _known(session: AsyncSession) -> dict[str, frozenset[str]]:
    found = {}
    for vo, model in resources.types().items():
        if model.__mapper__.inherits is None and "uuid" in model.__table__.c:
            found[vo] = frozenset((await session.scalars(select(model.__table__.c.uuid))).all())
    return found


async def _ask_hosts(node: Node, seen: Evidence) -> None:
    urls = {one.uuid: one.url for one in seen.rows(PrimaryStorageModel)}
    paths: dict[str, list[str]] = {}
    for ref in seen.rows(LocalStorageHostRefModel):
        paths.setdefault(ref.host_uuid, []).append(urls[ref.primary_storage_uuid])
    requests: dict[str, Message[Any]] = {}
    for host in seen.rows(HostModel):
        if host.status == CONNECTED:
            requests[host.uuid] = DumpHost(host_uuid=host.uuid, storage_paths=sorted(paths.get(host.uuid, [])))
        else:
            seen.silent[host.uuid] = f"it is {host.status}"
    seen.hosts = await _answers(node, seen, requests)


async def _ask_backups(node: Node, seen: Evidence) -> None:
    requests: dict[str, Message[Any]] = {}
    for storage in seen.rows(BackupStorageModel):
        if storage.status == CONNECTED:
            requests[storage.uuid] = ListBackupFiles(storage.uuid)
        else:
            seen.silent[storage.uuid] = f"it is {storage.status}"
    seen.backups = {uuid: listed.files for uuid, listed in (await _answers(node, seen, requests)).items()}


async def _answers(node: Node, seen: Evidence, requests: dict[str, Message[Any]]) -> dict[str, Any]:
    """The answers by UUID; whoever gives none is silent."""
    answers = await node.bus.call_all(list(requests.values()), PARALLELISM)
    found = dict(zip(requests, answers, strict=True))
    seen.silent |= {uuid: one.details for uuid, one in found.items() if isinstance(one, CloudError)}
    return {uuid: one for uuid, one in found.items() if not isinstance(one, CloudError)}
