"""Quotas: what an account is counted for is what it has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from caelum.cloud.audit.checks.machines import IDLE
from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.image.model import ImageModel
from caelum.cloud.ownership import AccountResourceRefModel
from caelum.cloud.quota import QuotaModel, QuotaUsageModel
from caelum.cloud.vm.model import TRANSITIONAL, VmInstanceModel
from caelum.cloud.volume.model import DATA, VolumeModel


class QuotaCheck(AuditCheck):
    """Compares quotas, what was taken, and resources."""

    reads = (QuotaModel, QuotaUsageModel, AccountResourceRefModel, VmInstanceModel, VolumeModel, ImageModel)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Sums, then each usage, then each resource."""
        taken = {(row.name, row.key): row for row in seen.rows(QuotaUsageModel)}
        yield from self._sums(seen)
        yield from self._usages(seen, taken)
        for kind, uuid, wanted in self._wanted(seen):
            row = taken.get((kind, uuid))
            if row is None or wanted not in (None, row.amount):
                counted = 0 if row is None else row.amount
                details = f"{kind} counts {counted} for resource[uuid:{uuid}]; it is {wanted or 'more'}"
                yield finding("QuotaUsageWrong", "QuotaVO", uuid, details, name=kind, counted=counted)

    def _sums(self, seen: Evidence) -> Iterator[Finding]:
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for row in seen.rows(QuotaUsageModel):
            sums[row.account_uuid, row.name] += row.amount
        quotas = {(row.identity_uuid, row.name): row for row in seen.rows(QuotaModel)}
        for key in quotas.keys() | sums.keys():
            used = quotas[key].used if key in quotas else 0
            if used != sums[key]:
                account, name = key
                details = f"account[uuid:{account}] counts {used} of {name}; it has taken {sums[key]}"
                facts: dict[str, Any] = {"name": name, "counted": used, "taken": sums[key]}
                yield finding("QuotaWrong", "AccountVO", account, details, about=(name,), **facts)

    def _usages(self, seen: Evidence, taken: dict[tuple[str, str], Any]) -> Iterator[Finding]:
        owners = {row.resource_uuid: row.account_uuid for row in seen.rows(AccountResourceRefModel)}
        for (name, key), row in taken.items():
            if not seen.exists(key):
                details = f"{name} counts {row.amount} for resource[uuid:{key}], which does not exist"
                yield finding("StrayQuotaUsage", "QuotaVO", key, details, name=name, account=row.account_uuid)
            elif owners.get(key, row.account_uuid) != row.account_uuid:
                details = (
                    f"{name} counts resource[uuid:{key}] for account[uuid:{row.account_uuid}]; it belongs to"
                    f" account[uuid:{owners[key]}]"
                )
                yield finding("QuotaOfWrongAccount", "QuotaVO", key, details, name=name, account=row.account_uuid)

    def _wanted(self, seen: Evidence) -> Iterator[tuple[str, str, int | None]]:
        """What must be counted: its name, for which resource, and how much where that does not change."""
        for vm in seen.rows(VmInstanceModel):
            yield "vm.totalNum", vm.uuid, 1
            if vm.state not in IDLE | TRANSITIONAL:
                yield "vm.num", vm.uuid, 1
                yield "vm.cpuNum", vm.uuid, vm.cpu_num
                yield "vm.memorySize", vm.uuid, vm.memory_size
        for volume in seen.rows(VolumeModel):
            yield "volume.capacity", volume.uuid, None
            if volume.type == DATA:
                yield "volume.data.num", volume.uuid, 1
        for image in seen.rows(ImageModel):
            yield "image.num", image.uuid, 1
