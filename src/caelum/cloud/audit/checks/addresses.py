"""Addresses: each one in use has its holder, and each NIC holds the address that it has."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.l3.model import IpRangeModel, NetworkServiceL3NetworkRefModel, UsedIpModel
from caelum.cloud.vm.model import VmInstanceModel, VmNicModel, VmState

DHCP_SERVER = "DhcpServer"
"""What the address of a network's DHCP server is used for."""


class AddressCheck(AuditCheck):
    """Compares addresses both ways."""

    reads = (UsedIpModel, IpRangeModel, VmNicModel, VmInstanceModel, NetworkServiceL3NetworkRefModel)

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """From the addresses to their holders, and back."""
        nics = seen.by_uuid(VmNicModel)
        for row in seen.rows(UsedIpModel):
            yield from self._address(seen, row, nics)
        used, vms = seen.by_uuid(UsedIpModel), seen.by_uuid(VmInstanceModel)
        for nic in nics.values():
            yield from self._nic(nic, used.get(nic.used_ip_uuid), vms.get(nic.vm_instance_uuid))

    def _address(self, seen: Evidence, row: Any, nics: dict[str, Any]) -> Iterator[Finding]:
        what = f"address {row.ip}[uuid:{row.uuid}] of L3 network[uuid:{row.l3_network_uuid}]"
        facts = {"ip": row.ip, "holder": row.holder}
        if row.vm_nic_uuid is not None:
            nic = nics.get(row.vm_nic_uuid)
            if nic is None:
                details = f"{what} is held by NIC[uuid:{row.vm_nic_uuid}], which does not exist"
                yield finding("AddressWithoutHolder", "UsedIpVO", row.uuid, details, about=(row.vm_nic_uuid,), **facts)
            elif nic.ip != row.ip:
                details = f"{what} is held by NIC[uuid:{nic.uuid}], which has {nic.ip or 'none'}"
                yield finding("AddressNotOnNic", "UsedIpVO", row.uuid, details, about=(nic.uuid,), **facts)
        elif not self._is_held(seen, row):
            details = f"{what} is held by {row.holder}, which does not exist"
            yield finding("AddressWithoutHolder", "UsedIpVO", row.uuid, details, about=(row.holder[-32:],), **facts)
        yield from self._in_range(seen, row, what)

    def _is_held(self, seen: Evidence, row: Any) -> bool:
        """A holder other than a NIC is named by words that end in a resource's UUID."""
        if row.used_for == DHCP_SERVER:
            services = seen.rows(NetworkServiceL3NetworkRefModel)
            kind = "DHCP"
            return any(
                (one.l3_network_uuid, one.network_service_type) == (row.l3_network_uuid, kind) for one in services
            )
        return seen.exists(row.holder[-32:])

    def _in_range(self, seen: Evidence, row: Any, what: str) -> Iterator[Finding]:
        if row.ip_range_uuid is None:
            return
        span = seen.by_uuid(IpRangeModel).get(row.ip_range_uuid)
        if span is None:
            return  # a dangling reference is another check's
        distance = int(ip_address(row.ip)) - int(ip_address(span.start_ip))
        if row.ip_offset != distance or int(ip_address(row.ip)) > int(ip_address(span.end_ip)):
            details = (
                f"{what} is counted as number {row.ip_offset} of the range {span.start_ip}-{span.end_ip}; it would be"
                f" number {distance}"
            )
            yield finding("AddressMiscounted", "UsedIpVO", row.uuid, details, about=(row.holder[-32:],), ip=row.ip)

    def _nic(self, nic: Any, used: Any, vm: Any) -> Iterator[Finding]:
        what, about = f"NIC[uuid:{nic.uuid}] of vm[uuid:{nic.vm_instance_uuid}]", (nic.uuid, nic.vm_instance_uuid)
        if nic.ip is not None:
            held = used is not None and (used.ip, used.l3_network_uuid, used.vm_nic_uuid)
            if held != (nic.ip, nic.l3_network_uuid, nic.uuid):
                details = f"{what} has {nic.ip} of L3 network[uuid:{nic.l3_network_uuid}] without holding it"
                yield finding("NicAddressNotHeld", "VmNicVO", nic.uuid, details, about=about, ip=nic.ip)
            if vm is not None and vm.state == VmState.DESTROYED:
                details = f"{what}, which is {vm.state}, still has {nic.ip}"
                yield finding("DestroyedVmHasAddress", "VmNicVO", nic.uuid, details, about=about, ip=nic.ip)
