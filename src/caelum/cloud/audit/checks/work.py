"""Work that nobody does: unfinished workflows, unanswered jobs, resources that are left in between."""

from __future__ import annotations

from collections.abc import Iterator

from caelum.cloud.audit.api import INFO
from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.backup_storage.model import CONNECTING as BACKUP_CONNECTING
from caelum.cloud.backup_storage.model import BackupStorageModel
from caelum.cloud.image.model import DOWNLOADING, ImageBackupStorageRefModel, ImageModel
from caelum.cloud.l2.model import ATTACHING, DETACHING, L2NetworkClusterRefModel
from caelum.cloud.primary_storage.model import CONNECTING, PrimaryStorageClusterRefModel, PrimaryStorageModel
from caelum.cloud.primary_storage.model import DETACHING as STORAGE_DETACHING
from caelum.cloud.vm.model import TRANSITIONAL, VmInstanceModel
from caelum.cloud.volume.model import CREATING, VolumeModel
from caelum.kernel.database import Base
from caelum.kernel.gc import PROCESSING

_IN_BETWEEN: tuple[tuple[type[Base], str, frozenset[str], str, str], ...] = (
    (VmInstanceModel, "state", frozenset(TRANSITIONAL), "VmInstanceVO", "uuid"),
    (VolumeModel, "status", frozenset({CREATING}), "VolumeVO", "uuid"),
    (ImageModel, "status", frozenset({DOWNLOADING}), "ImageVO", "uuid"),
    (ImageBackupStorageRefModel, "status", frozenset({DOWNLOADING}), "ImageVO", "image_uuid"),
    (L2NetworkClusterRefModel, "state", frozenset({ATTACHING, DETACHING}), "L2NetworkVO", "l2_network_uuid"),
    (
        PrimaryStorageClusterRefModel,
        "state",
        frozenset({STORAGE_DETACHING}),
        "PrimaryStorageVO",
        "primary_storage_uuid",
    ),
    (PrimaryStorageModel, "status", frozenset({CONNECTING}), "PrimaryStorageVO", "uuid"),
    (BackupStorageModel, "status", frozenset({BACKUP_CONNECTING}), "BackupStorageVO", "uuid"),
)
"""Table, column, the values that only a running workflow may leave there, and whose they are."""


class WorkCheck(AuditCheck):
    """Everything that was begun is somebody's."""

    reads = tuple(row[0] for row in _IN_BETWEEN)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Resources, workflows, jobs and clean-ups."""
        yield from self._in_between(seen)
        yield from self._workflows(seen)
        yield from self._jobs(seen)
        yield from self._clean_ups(seen)

    def _in_between(self, seen: Evidence) -> Iterator[Finding]:
        for model, column, values, vo, key in _IN_BETWEEN:
            for row in seen.rows(model):
                value, uuid = getattr(row, column), getattr(row, key)
                if value in values:
                    details = f"{vo}[uuid:{uuid}] is {value}, and no workflow is about it"
                    yield finding("StuckInTransition", vo, uuid, details, state=value)

    def _workflows(self, seen: Evidence) -> Iterator[Finding]:
        for row in seen.workflows:
            if not seen.is_driven(row):
                details = (
                    f"workflow {row.name}[uuid:{row.uuid}] about {row.subject} is {row.state} at step {row.position} in"
                    f" attempt {row.attempt}, and node {row.owner} does not drive it"
                )
                yield finding(
                    "UnfinishedWorkflow", "WorkflowVO", row.uuid, details, name=row.name, subject=row.subject,
                    state=row.state, owner=row.owner,
                )  # fmt: skip

    def _jobs(self, seen: Evidence) -> Iterator[Finding]:
        for row in seen.jobs:
            if row.node_uuid not in seen.live_nodes:
                details = f"job[uuid:{row.uuid}] {row.api} waits for node {row.node_uuid}, which is gone"
                yield finding("OrphanedJob", "ApiJobVO", row.uuid, details, about=(), api=row.api, node=row.node_uuid)

    def _clean_ups(self, seen: Evidence) -> Iterator[Finding]:
        for row in seen.clean_ups:
            facts = {"name": row.name, "attempts": row.attempts, "lastError": row.last_error or ""}
            details = f"clean-up[uuid:{row.uuid}] {row.name} is still to be done after {row.attempts} attempts"
            yield finding("OpenCleanUp", "GarbageCollectorVO", row.uuid, details, severity=INFO, **facts)
            owner = row.management_node_uuid
            if row.status == PROCESSING and owner not in seen.live_nodes:
                details = f"clean-up[uuid:{row.uuid}] {row.name} is Processing on node {owner}, which is gone"
                yield finding("OrphanedCleanUp", "GarbageCollectorVO", row.uuid, details, about=(), name=row.name)
