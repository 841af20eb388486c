"""Devices of virtual machines: no two are the same device, no two NICs have one MAC address."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.vm.model import VmCdRomModel, VmInstanceModel, VmNicModel
from caelum.cloud.volume.model import ROOT, VolumeModel

_VM = "VmInstanceVO"


class DeviceCheck(AuditCheck):
    """The tables' unique keys guard most of this; the auditor does not trust them."""

    reads = (VmInstanceModel, VmNicModel, VmCdRomModel, VolumeModel)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Doubles, and root volumes."""
        attached = [one for one in seen.rows(VolumeModel) if one.vm_instance_uuid is not None]
        for kind, rows in (
            ("volumes", attached),
            ("NICs", seen.rows(VmNicModel)),
            ("CD-ROM drives", seen.rows(VmCdRomModel)),
        ):
            yield from self._doubles(kind, rows)
        yield from self._macs(seen.rows(VmNicModel))
        yield from self._roots(seen, attached)

    def _doubles(self, kind: str, rows: Iterable[Any]) -> Iterator[Finding]:
        places = defaultdict(list)
        for row in rows:
            if row.device_id is None:
                details = f"one of the {kind} of vm[uuid:{row.vm_instance_uuid}], uuid {row.uuid}, has no device id"
                yield finding("DeviceIdMissing", _VM, row.vm_instance_uuid, details, device=row.uuid)
            else:
                places[row.vm_instance_uuid, row.device_id].append(row.uuid)
        for (vm_uuid, device_id), uuids in places.items():
            if len(uuids) > 1:
                details = f"{len(uuids)} {kind} of vm[uuid:{vm_uuid}] are device {device_id}: {', '.join(uuids)}"
                yield finding("DeviceIdDoubled", _VM, vm_uuid, details, deviceId=device_id, devices=uuids)

    def _macs(self, nics: Iterable[Any]) -> Iterator[Finding]:
        owners = defaultdict(list)
        for nic in nics:
            owners[nic.mac.lower()].append(nic.uuid)
        for mac, uuids in owners.items():
            if len(uuids) > 1:
                details = f"{len(uuids)} NICs have the MAC address {mac}: {', '.join(uuids)}"
                yield finding("MacDoubled", "VmNicVO", uuids[0], details, about=(mac,), mac=mac, nics=uuids)

    def _roots(self, seen: Evidence, attached: Iterable[Any]) -> Iterator[Finding]:
        roots = {(one.vm_instance_uuid, one.uuid) for one in attached if one.type == ROOT}
        for vm in seen.rows(VmInstanceModel):
            if vm.root_volume_uuid is not None and (vm.uuid, vm.root_volume_uuid) not in roots:
                details = (
                    f"vm[uuid:{vm.uuid}, name:{vm.name}] does not have its root volume[uuid:{vm.root_volume_uuid}]"
                )
                yield finding("RootVolumeMissing", _VM, vm.uuid, details, volumeUuid=vm.root_volume_uuid)
