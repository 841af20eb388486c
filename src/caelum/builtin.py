"""What ships with Caelum: services and drivers as "module:Class" strings, loaded lazily in this order.

Separate packages register by the entry points `caelum.services`, `caelum.drivers` and `caelum.plugins` instead. A
module that is missing or broken is reported at start and skipped; the rest starts.
"""

from __future__ import annotations

import importlib

SERVICES: list[str] = [
    "caelum.cloud.management.service:ManagementService",
    "caelum.cloud.identity.service:IdentityService",
    "caelum.cloud.query.service:QueryService",
    "caelum.cloud.tag.service:TagService",
    "caelum.cloud.config.service:ConfigService",
    "caelum.cloud.zone.service:ZoneService",
    "caelum.cloud.cluster.service:ClusterService",
    "caelum.cloud.host.service:HostService",
    "caelum.cloud.allocator.service:AllocatorService",
    "caelum.cloud.l2.service:L2Service",
    "caelum.cloud.l3.service:L3Service",
    "caelum.cloud.network_service.service:NetworkServiceService",
    "caelum.cloud.offering.service:OfferingService",
    "caelum.cloud.primary_storage.service:PrimaryStorageService",
    "caelum.cloud.backup_storage.service:BackupStorageService",
    "caelum.cloud.image.service:ImageService",
    "caelum.cloud.volume.service:VolumeService",
    "caelum.cloud.vm.checks:VmChecks",
    "caelum.cloud.vm.service:VmService",
    "caelum.cloud.vm.tracer:VmTracer",
    "caelum.cloud.vm.cascade:VmCascade",
    "caelum.cloud.vm.cascade:VmNicCascade",
    "caelum.cloud.vm.cascade:VmWithoutOffering",
    "caelum.cloud.vm.cascade:VmsLeaveStorage",
    "caelum.cloud.vm.cascade:NicsLeaveCluster",
    "caelum.cloud.console.service:ConsoleService",
    "caelum.console.embedded:EmbeddedProxy",
    "caelum.cloud.audit.service:AuditService",
]
"""Services, each `"caelum.cloud.<name>.service:<Class>"`; the class takes the node."""

DRIVERS: list[str] = [
    "caelum.drivers.kvm.service:KvmService",
    "caelum.drivers.local_storage.driver:LocalStorageService",
    "caelum.drivers.directory_backup.driver:DirectoryBackupService",
    "caelum.drivers.no_vlan.driver:NoVlanDriver",
    "caelum.drivers.flat_network.driver:FlatNetworkDriver",
]
"""Drivers and plugins, each `"caelum.drivers.<name>.driver:<Class>"`; the class takes the node and adds itself."""


def import_declarations() -> None:
    """Load every built-in module, so that its messages, settings, tags and workflows are declared."""
    for target in (*SERVICES, *DRIVERS):
        importlib.import_module(target.partition(":")[0])
