"""Register this machine as a cloud, through the public API alone: zone to first VM.

Each resource is looked up by name and made only if absent, so a second run finds all there, and what an operator
changed stays changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from caelum.onemachine.layout import Layout
from caelum.sdk import Client

FLAT_SERVICES = ["DHCP", "DNS", "Userdata", "HostRoute", "SNAT"]
MEBI = 1 << 20
RESOLVER_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The second has the servers behind the local one that systemd's resolver puts into the first."""
Say = Callable[[str], None]


class Provisioner:
    """Makes the one-machine cloud's resources; every method returns the resource, made or found."""

    def __init__(self, client: Client, layout: Layout, host_uuid: str, say: Say) -> None:
        self._client = client
        self._layout = layout
        self._host_uuid = host_uuid
        self._say = say
        self.choices: dict[str, Any] = {}
        """What a VM is made of, as parameters of CreateVmInstance; known once the resources are made."""

    def resources(self) -> None:
        """Make everything that a VM needs."""
        zone = self._ensure("Zone", "zone1", "CreateZone")
        cluster = self._ensure("Cluster", "cluster1", "CreateCluster", zoneUuid=zone["uuid"], hypervisorType="KVM")
        self._setting("kvm", "agent.port", str(self._layout.agent_port))
        host = self._host(cluster)
        primary = self._primary_storage(zone, cluster)
        backup = self._backup_storage(zone)
        image = self._image(backup)
        network = self._network(zone, cluster)
        offering = self._ensure("InstanceOffering", "small", "CreateInstanceOffering", cpuNum=1, memorySize=128 * MEBI)
        self._ensure("DiskOffering", "1G", "CreateDiskOffering", diskSize=1 << 30)
        self.choices = {
            "imageUuid": image["uuid"],
            "instanceOfferingUuid": offering["uuid"],
            "l3NetworkUuids": [network["uuid"]],
            "defaultL3NetworkUuid": network["uuid"],
        }
        self._say(f"host {host['name']} is {host['status']}, storage {primary['name']} is {primary['status']}")

    def vm(self) -> dict[str, Any]:
        """The first VM, running; a new one where its owner has destroyed it."""
        vm = self._ensure(
            "VmInstance", "first", "CreateVmInstance", "state!=Destroyed",
            systemTags=["hostname::first"], **self.choices,
        )  # fmt: skip
        operation = {"Stopped": "StartVmInstance", "Paused": "ResumeVmInstance"}.get(vm["state"])
        if operation is not None:
            self._say(f"the VM first is {vm['state']}: starting it")
            vm = self._client.call(operation, uuid=vm["uuid"])
        return vm

    def _ensure(self, resource: str, name: str, operation: str, *conditions: str, **parameters: Any) -> dict[str, Any]:
        found = self._client.query(resource, f"name={name}", *conditions)
        if found:
            return found[0]
        self._say(f"creating {resource} {name}")
        made: dict[str, Any] = self._client.call(operation, name=name, **parameters)
        return made

    def _setting(self, category: str, name: str, value: str) -> None:
        found = self._client.query("GlobalConfig", f"category={category}", f"name={name}")
        if found[0]["value"] != value:
            self._client.call("UpdateGlobalConfig", category=category, name=name, value=value)

    def _host(self, cluster: dict[str, Any]) -> dict[str, Any]:
        found = self._client.query("Host", f"uuid={self._host_uuid}")
        if not found:
            self._say("adding this machine as a host")
            # A small machine cannot set aside what a rack server does.
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            self._setting("kvm", "reservedMemory", f"{min(1024, total // 8 // MEBI)}M")
            return dict(
                self._client.call(
                    "AddKVMHost",
                    name="this-machine",
                    managementIp=self._layout.address,
                    username="root",
                    password="unused",  # noqa: S106  the agent is already here: nobody logs in
                    clusterUuid=cluster["uuid"],
                    resourceUuid=self._host_uuid,
                )
            )
        if found[0]["status"] != "Connected":
            return dict(self._client.call("ReconnectHost", uuid=self._host_uuid))
        return found[0]

    def _primary_storage(self, zone: dict[str, Any], cluster: dict[str, Any]) -> dict[str, Any]:
        storage = self._ensure(
            "PrimaryStorage",
            "local",
            "AddLocalPrimaryStorage",
            url=str(self._layout.primary_storage),
            zoneUuid=zone["uuid"],
        )
        if cluster["uuid"] not in storage.get("attachedClusterUuids", []):
            storage = self._client.call(
                "AttachPrimaryStorageToCluster", primaryStorageUuid=storage["uuid"], clusterUuid=cluster["uuid"]
            )
        return storage

    def _backup_storage(self, zone: dict[str, Any]) -> dict[str, Any]:
        storage = self._ensure(
            "BackupStorage", "images", "AddDirectoryBackupStorage", url=str(self._layout.backup_storage)
        )
        if zone["uuid"] not in storage.get("attachedZoneUuids", []):
            storage = self._client.call(
                "AttachBackupStorageToZone", backupStorageUuid=storage["uuid"], zoneUuid=zone["uuid"]
            )
        return storage

    def _image(self, backup: dict[str, Any]) -> dict[str, Any]:
        if not self._client.query("Image", "name=tiny", "status=Ready"):
            self._setting("image", "download.localPath.whitelist", f"{self._layout.guest_image.parent}/**")
        return self._ensure(
            "Image",
            "tiny",
            "AddImage",
            "status=Ready",
            url=f"file://{self._layout.guest_image}",
            mediaType="RootVolumeTemplate",
            format="qcow2",
            platform="Linux",
            backupStorageUuids=[backup["uuid"]],
        )

    def _network(self, zone: dict[str, Any], cluster: dict[str, Any]) -> dict[str, Any]:
        l2 = self._ensure(
            "L2Network", "private", "CreateL2NoVlanNetwork", zoneUuid=zone["uuid"], physicalInterface="private0"
        )
        if cluster["uuid"] not in l2.get("attachedClusterUuids", []):
            self._client.call("AttachL2NetworkToCluster", l2NetworkUuid=l2["uuid"], clusterUuid=cluster["uuid"])
        if not self._client.query("L3Network", "name=guests"):
            # Guests are told a name server that knows the other guests.
            self._setting("flatNetworkProvider", "allow.default.dns", "true")
        l3 = self._ensure("L3Network", "guests", "CreateL3Network", l2NetworkUuid=l2["uuid"], type="L3BasicNetwork")
        if not l3.get("ipRanges"):
            self._client.call(
                "AddIpRange",
                l3NetworkUuid=l3["uuid"],
                name="guests",
                startIp=self._layout.guest_address(10),
                endIp=self._layout.guest_address(250),
                gateway=self._layout.guest_address(1),
                netmask=str(IPv4Network(self._layout.guest_cidr).netmask),
            )
        for server in _resolvers():
            if server not in l3.get("dns", []):
                self._client.call("AddDnsToL3Network", l3NetworkUuid=l3["uuid"], dns=server)
        if not l3.get("networkServices"):
            provider = self._client.query("NetworkServiceProvider", "type=Flat")[0]
            self._client.call(
                "AttachNetworkServiceToL3Network",
                l3NetworkUuid=l3["uuid"],
                networkServices={provider["uuid"]: FLAT_SERVICES},
            )
        return self._client.query("L3Network", f"uuid={l3['uuid']}")[0]


def _resolvers() -> list[str]:
    """The machine's own DNS servers that a guest can reach, that is, not its loopback."""
    for file in RESOLVER_FILES:
        with suppress(OSError):
            words = [line.split() for line in file.read_text().splitlines()]
            servers = [one[1] for one in words if len(one) > 1 and one[0] == "nameserver"]
            usable = [one for one in servers if ":" not in one and not one.startswith("127.")]
            if usable:
                return usable[:2]
    return []
