"""Furnish a cluster on simulated hosts, as `make up` furnishes a real one: everything from a zone to an image."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from caelum.cluster.layout import ClusterLayout
from caelum.onemachine.provision import Provisioner, Say
from caelum.sdk import Client
from caelum.simulator.image import empty_qcow2


class ClusterProvisioner(Provisioner):
    """The same resources on as many simulated hosts as the layout asks for."""

    def __init__(self, client: Client, layout: ClusterLayout, say: Say) -> None:
        super().__init__(client, layout, "", say)
        self._cluster_layout = layout

    def _host(self, cluster: dict[str, Any]) -> dict[str, Any]:
        self._setting("kvm", "reservedMemory", "1G")
        hosts = [self._simulated(number, cluster) for number in range(self._cluster_layout.hosts)]
        return hosts[0]

    def _simulated(self, number: int, cluster: dict[str, Any]) -> dict[str, Any]:
        return self._ensure(
            "Host",
            f"host{number + 1}",
            "AddKVMHost",
            managementIp=str(ip_address(self._cluster_layout.first_host) + number),
            username="root",
            password="unused",  # noqa: S106  nobody logs in to a simulated host
            clusterUuid=cluster["uuid"],
        )

    def _image(self, backup: dict[str, Any]) -> dict[str, Any]:
        if not self._layout.guest_image.exists():
            empty_qcow2(self._layout.guest_image)
        return super()._image(backup)
