"""What hosts have for guests' networks: bridges, taps, DHCP, metadata and translation, what is needed and nothing else.

Only guests that run need something; a network that hosts of the cluster may serve can stay when its last guest goes.
Bridges with an uplink may be the operator's own, of which hosts do not tell; only private ones are known to be missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from caelum.cloud.audit.checks.machines import IDLE
from caelum.cloud.audit.evidence import Evidence
from caelum.cloud.audit.extension import AuditCheck, Finding, finding
from caelum.cloud.host.messages import HostContents
from caelum.cloud.host.model import HostModel
from caelum.cloud.l2.extension import L2Driver
from caelum.cloud.l2.model import L2NetworkClusterRefModel, L2NetworkModel
from caelum.cloud.l2.settings import DELETE_BRIDGE
from caelum.cloud.l2.tags import BRIDGE_NAME
from caelum.cloud.l3.model import L3NetworkModel, NetworkServiceL3NetworkRefModel
from caelum.cloud.network_service.model import NetworkServiceProviderModel
from caelum.cloud.vm.model import ON_HOST, VmInstanceModel, VmNicModel
from caelum.kernel.tag import SystemTagModel

_FLAT = "Flat"
_DHCP, _METADATA, _NAT = "DHCP", "Userdata", "SNAT"
_LONGEST_TAP = 15


class Needed(msgspec.Struct):
    """What one host may have for the machines that are placed there, each with the NIC that needs it.

    It must have what the NICs in `running` need; of other machines, nobody knows whether they run.
    """

    running: set[str] = set()

    leases: dict[tuple[str, str], Any] = {}
    metadata: dict[tuple[str, str], Any] = {}
    nat: dict[str, Any] = {}
    taps: dict[str, Any] = {}


class Plan(msgspec.Struct):
    """What the records say of networks: services by L3 network, bridges by cluster, NICs."""

    services: dict[str, set[str]]
    bridges: dict[str, dict[str, Any]]
    """Cluster UUID to bridge name to L2 network."""
    l2_of: dict[str, str]
    by_mac: dict[str, Any]
    by_ip: dict[tuple[str, str], Any]
    by_tap: dict[str, Any]

    def may_be(self, l3_uuid: str, service: str, cluster_uuid: str) -> bool:
        """Whether hosts of the cluster may serve the network."""
        here = {one.uuid for one in self.bridges.get(cluster_uuid, {}).values()}
        return service in self.services.get(l3_uuid, ()) and self.l2_of.get(l3_uuid) in here


class LinkCheck(AuditCheck):
    """Compares networks on hosts both ways."""

    reads = (
        HostModel, VmInstanceModel, VmNicModel, L2NetworkModel, L2NetworkClusterRefModel, L3NetworkModel,
        NetworkServiceL3NetworkRefModel, NetworkServiceProviderModel, SystemTagModel,
    )  # fmt: skip

    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Host by host."""
        plan, hosts = self._plan(seen), seen.by_uuid(HostModel)
        needed = self._needed(seen, plan)
        for uuid, contents in seen.hosts.items():
            host = hosts[uuid]
            yield from self._missing(host, contents, needed[uuid], plan)
            yield from self._strays(host, contents, needed[uuid], plan)
            yield from self._bridges(host, contents, plan)

    # --- what should be -----------------------------------------------------------------------------------------------

    def _plan(self, seen: Evidence) -> Plan:
        flat = {one.uuid for one in seen.rows(NetworkServiceProviderModel) if one.type == _FLAT}
        services: dict[str, set[str]] = defaultdict(set)
        for ref in seen.rows(NetworkServiceL3NetworkRefModel):
            if ref.network_service_provider_uuid in flat:
                services[ref.l3_network_uuid].add(ref.network_service_type)
        nics = seen.rows(VmNicModel)
        return Plan(
            services=services,
            bridges=self._bridge_plan(seen),
            l2_of={one.uuid: one.l2_network_uuid for one in seen.rows(L3NetworkModel)},
            by_mac={nic.mac.lower(): nic for nic in nics},
            by_ip={(nic.l3_network_uuid, nic.ip): nic for nic in nics},
            by_tap={nic.internal_name[:_LONGEST_TAP]: nic for nic in nics},
        )

    def _bridge_plan(self, seen: Evidence) -> dict[str, dict[str, Any]]:
        networks = seen.by_uuid(L2NetworkModel)
        names = {}
        for tag in seen.rows(SystemTagModel):
            tokens = BRIDGE_NAME.match(tag.tag) if tag.resource_uuid in networks else None
            if tokens is not None:
                names[tag.resource_uuid] = tokens["name"]
        plan: dict[str, dict[str, Any]] = defaultdict(dict)
        for ref in seen.rows(L2NetworkClusterRefModel):
            if ref.l2_network_uuid in names:
                plan[ref.cluster_uuid][names[ref.l2_network_uuid]] = networks[ref.l2_network_uuid]
        return plan

    def _needed(self, seen: Evidence, plan: Plan) -> dict[str, Needed]:
        placed = {vm.uuid: vm for vm in seen.rows(VmInstanceModel) if vm.host_uuid and vm.state not in IDLE}
        needed: dict[str, Needed] = defaultdict(Needed)
        for nic in seen.rows(VmNicModel):
            vm = placed.get(nic.vm_instance_uuid)
            if vm is not None:
                _need(needed[vm.host_uuid], nic, plan.services.get(nic.l3_network_uuid, set()))
                needed[vm.host_uuid].running |= {nic.uuid} if vm.state in ON_HOST else set()
        return needed

    # --- what is missing ----------------------------------------------------------------------------------------------

    def _missing(self, host: Any, contents: HostContents, needed: Needed, plan: Plan) -> Iterator[Finding]:
        for nic, kind, what in self._absent(host, contents, needed, plan):
            if nic.uuid in needed.running:
                yield _lacks(kind, host, nic, what)

    def _absent(self, host: Any, contents: HostContents, needed: Needed, plan: Plan) -> Iterator[tuple[Any, str, str]]:
        there = {(l3, mac.lower()) for l3, macs in contents.dhcp.items() for mac in macs}
        for (l3, mac), nic in needed.leases.items():
            if (l3, mac) not in there:
                yield nic, "LeaseMissing", f"no DHCP lease for {mac} ({nic.ip})"
        served = {(l3, ip) for l3, ips in contents.metadata.items() for ip in ips}
        for (l3, ip), nic in needed.metadata.items():
            if (l3, ip) not in served:
                yield nic, "MetadataMissing", f"no metadata for {ip}"
        for l3, nic in needed.nat.items():
            if l3 not in contents.nat:
                yield nic, "TranslationMissing", f"no address translation for L3 network[uuid:{l3}]"
        known = {one.uuid for name, one in plan.bridges.get(host.cluster_uuid, {}).items() if name in contents.bridges}
        for tap, nic in needed.taps.items():
            if tap not in contents.taps and plan.l2_of.get(nic.l3_network_uuid) in known:
                yield nic, "TapMissing", f"no tap {tap}"

    # --- what is too much ---------------------------------------------------------------------------------------------

    def _strays(self, host: Any, contents: HostContents, needed: Needed, plan: Plan) -> Iterator[Finding]:
        for l3, macs in contents.dhcp.items():
            if not plan.may_be(l3, _DHCP, host.cluster_uuid):
                yield _stray("StrayDhcp", host, f"DHCP for L3 network[uuid:{l3}]", None, l3)
            for mac in macs:
                if (l3, mac.lower()) not in needed.leases:
                    yield _stray("StrayLease", host, f"a DHCP lease for {mac}", plan.by_mac.get(mac.lower()), mac)
        for l3, ips in contents.metadata.items():
            for ip in ips:
                if (l3, ip) not in needed.metadata:
                    what = f"metadata for {ip} of L3 network[uuid:{l3}]"
                    yield _stray("StrayMetadata", host, what, plan.by_ip.get((l3, ip)), ip)
        for l3 in contents.nat:
            if not plan.may_be(l3, _NAT, host.cluster_uuid):
                yield _stray("StrayTranslation", host, f"address translation for L3 network[uuid:{l3}]", None, l3)
        for tap in contents.taps:
            if tap not in needed.taps:
                yield _stray("StrayTap", host, f"the tap {tap}", plan.by_tap.get(tap), tap)

    def _bridges(self, host: Any, contents: HostContents, plan: Plan) -> Iterator[Finding]:
        wanted = plan.bridges.get(host.cluster_uuid, {})
        drivers = self.node.drivers.all(L2Driver)
        for name, l2 in wanted.items():
            driver = drivers.get(l2.type)
            if driver is not None and driver.private(l2) and name not in contents.bridges:
                details = f"host[uuid:{host.uuid}] has no bridge {name} for L2 network[uuid:{l2.uuid}]"
                about = (l2.uuid, name)
                yield finding("BridgeMissing", "L2NetworkVO", l2.uuid, details, about=about, hostUuid=host.uuid)
        if self.node.settings.get(DELETE_BRIDGE):
            for name in contents.bridges:
                if name not in wanted:
                    yield _stray("StrayBridge", host, f"the bridge {name}", None, name)


def _need(needed: Needed, nic: Any, services: set[str]) -> None:
    """Enter what a running guest's NIC needs on its host."""
    l3 = nic.l3_network_uuid
    needed.taps[nic.internal_name[:_LONGEST_TAP]] = nic
    if nic.ip is None or nic.ip_version != 4:
        return
    if _DHCP in services:
        needed.leases[l3, nic.mac.lower()] = nic
    if _METADATA in services:
        needed.metadata[l3, nic.ip] = nic
    if _NAT in services:
        needed.nat[l3] = nic


def _lacks(kind: str, host: Any, nic: Any, what: str) -> Finding:
    details = f"host[uuid:{host.uuid}] has {what}, which NIC[uuid:{nic.uuid}] of vm[uuid:{nic.vm_instance_uuid}] needs"
    about = (nic.uuid, nic.vm_instance_uuid)
    return finding(kind, "VmNicVO", nic.uuid, details, about=about, hostUuid=host.uuid)


def _stray(kind: str, host: Any, what: str, nic: Any, name: str) -> Finding:
    owner = () if nic is None else (nic.uuid, nic.vm_instance_uuid)
    whose = "which nothing needs" if nic is None else f"of NIC[uuid:{nic.uuid}], which does not run here"
    details = f"host[uuid:{host.uuid}] has {what}, {whose}"
    return finding(kind, "HostVO", host.uuid, details, about=(name, *owner), name=name)
