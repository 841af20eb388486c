"""References between services' tables, which no foreign key guards: each names a resource that exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from caelum.cloud.allocator.model import HostCapacityModel, HostReservationModel
from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.backup_storage.model import BackupStorageZoneRefModel
from caelum.cloud.cluster.model import ClusterModel
from caelum.cloud.host.model import HostModel
from caelum.cloud.identity.model import AccessKeyModel, SessionModel
from caelum.cloud.image.model import ImageBackupStorageRefModel
from caelum.cloud.l2.model import L2NetworkClusterRefModel, L2NetworkModel
from caelum.cloud.l3.model import L3NetworkModel, NetworkServiceL3NetworkRefModel
from caelum.cloud.network_service.model import NetworkServiceProviderL2RefModel
from caelum.cloud.primary_storage.model import (
    ImageCacheModel,
    LocalStorageHostRefModel,
    LocalStorageResourceRefModel,
    PrimaryStorageClusterRefModel,
    PrimaryStorageModel,
)
from caelum.cloud.quota import QuotaModel
from caelum.cloud.vm.model import VmInstanceModel, VmNicModel, VmSequenceModel
from caelum.cloud.volume.model import VolumeModel
from caelum.kernel.database import Base

REFERENCES: tuple[tuple[type[Base], str, str], ...] = (
    (ClusterModel, "zone_uuid", "ZoneVO"),
    (HostModel, "zone_uuid", "ZoneVO"),
    (HostModel, "cluster_uuid", "ClusterVO"),
    (HostCapacityModel, "uuid", "HostVO"),
    (HostReservationModel, "host_uuid", "HostVO"),
    (PrimaryStorageModel, "zone_uuid", "ZoneVO"),
    (PrimaryStorageClusterRefModel, "cluster_uuid", "ClusterVO"),
    (LocalStorageHostRefModel, "host_uuid", "HostVO"),
    (LocalStorageResourceRefModel, "host_uuid", "HostVO"),
    (LocalStorageResourceRefModel, "resource_uuid", "VolumeVO"),
    (ImageCacheModel, "host_uuid", "HostVO"),
    (BackupStorageZoneRefModel, "zone_uuid", "ZoneVO"),
    (ImageBackupStorageRefModel, "backup_storage_uuid", "BackupStorageVO"),
    (L2NetworkModel, "zone_uuid", "ZoneVO"),
    (L2NetworkClusterRefModel, "cluster_uuid", "ClusterVO"),
    (L3NetworkModel, "zone_uuid", "ZoneVO"),
    (L3NetworkModel, "l2_network_uuid", "L2NetworkVO"),
    (NetworkServiceL3NetworkRefModel, "network_service_provider_uuid", "NetworkServiceProviderVO"),
    (NetworkServiceProviderL2RefModel, "l2_network_uuid", "L2NetworkVO"),
    (VmInstanceModel, "zone_uuid", "ZoneVO"),
    (VmInstanceModel, "cluster_uuid", "ClusterVO"),
    (VmInstanceModel, "host_uuid", "HostVO"),
    (VmNicModel, "l3_network_uuid", "L3NetworkVO"),
    (VmSequenceModel, "vm_instance_uuid", "VmInstanceVO"),
    (VolumeModel, "vm_instance_uuid", "VmInstanceVO"),
    (VolumeModel, "primary_storage_uuid", "PrimaryStorageVO"),
    (SessionModel, "account_uuid", "AccountVO"),
    (AccessKeyModel, "account_uuid", "AccountVO"),
    (QuotaModel, "identity_uuid", "AccountVO"),
)


class ReferenceCheck(AuditCheck):
    """Finds references to nothing. An empty one refers to nothing on purpose."""

    reads = tuple(dict.fromkeys(row[0] for row in REFERENCES))

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Table by table."""
        for model, column, vo in REFERENCES:
            known, name = seen.known.get(vo, frozenset()), str(model.__tablename__)
            for row in seen.rows(model):
                target = getattr(row, column)
                if target and target not in known:
                    key = _key(row)
                    details = f"{name}[{key}] names {vo}[uuid:{target}] as its {column}, which does not exist"
                    about = (target, key)
                    yield finding("DanglingReference", vo, target, details, about=about, table=name, row=key)


def _key(row: Any) -> str:
    """What tells a row from the others."""
    fields = row._mapping
    return str(next((fields[one] for one in ("uuid", "id", "resource_uuid", "vm_uuid") if one in fields), ""))
