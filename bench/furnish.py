"""Furnish an empty cloud on simulated hosts through the public API: everything that a VM needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api import Api
from load import closed

MIB = 1 << 20
_SERVICES = ["DHCP", "DNS", "Userdata", "HostRoute", "SNAT"]


class Furniture:
    """What was made; `vm` has the arguments of CreateVmInstance."""

    def __init__(self) -> None:
        self.zone = self.cluster = self.l3 = ""
        self.vm: dict[str, Any] = {}


async def furnish(api: Api, directory: Path, agent_port: int, ips: list[str]) -> Furniture:
    """Make zone, cluster, hosts at `ips`, local storage, an image, a flat network of a /16, and an offering."""
    made = Furniture()
    await _settings(api, directory, agent_port)
    made.zone = (await api.call("CreateZone", name="zone"))["uuid"]
    made.cluster = (await api.call("CreateCluster", name="cluster", zoneUuid=made.zone, hypervisorType="KVM"))["uuid"]
    image = await _storages(api, directory, made)
    made.l3 = await _network(api, made)
    await add_hosts(api, made, ips)
    offering = await api.call("CreateInstanceOffering", name="small", cpuNum=1, memorySize=128 * MIB)
    made.vm = {"imageUuid": image, "instanceOfferingUuid": offering["uuid"], "l3NetworkUuids": [made.l3]}
    return made


async def add_hosts(api: Api, made: Furniture, ips: list[str]) -> None:
    """Add hosts, some at a time."""

    async def add(number: int) -> None:
        await api.call(
            "AddKVMHost", name=f"host{number}", managementIp=ips[number], username="root", password="unused",
            clusterUuid=made.cluster,
        )  # fmt: skip

    (await closed(add, len(ips), 20)).require()


async def setting(api: Api, category: str, name: str, value: object) -> None:
    """Change a setting."""
    await api.call("UpdateGlobalConfig", category=category, name=name, value=str(value))


async def _settings(api: Api, directory: Path, agent_port: int) -> None:
    # One load generator stands for many clients, which the limits of one client must not hold back.
    for name in ("rateLimit.perSecond", "rateLimit.burst", "maxConcurrentRequests"):
        await setting(api, "rest", name, 1_000_000)
    await setting(api, "kvm", "agent.port", agent_port)
    await setting(api, "image", "download.localPath.whitelist", f"{directory}/**")
    for quota in ("vm.num", "vm.totalNum", "vm.cpuNum", "vm.memorySize", "volume.data.num", "volume.capacity"):
        if await api.call("QueryGlobalConfig", q=["category=quota", f"name={quota}"]):
            await setting(api, "quota", quota, 1 << 60)


async def _storages(api: Api, directory: Path, made: Furniture) -> str:
    from caelum.testing.simcloud import empty_qcow2

    primary = await api.call("AddLocalPrimaryStorage", name="local", url="/caelum_ps", zoneUuid=made.zone)
    await api.call("AttachPrimaryStorageToCluster", clusterUuid=made.cluster, primaryStorageUuid=primary["uuid"])
    backup = await api.call("AddDirectoryBackupStorage", name="images", url=str(directory / "backup"))
    await api.call("AttachBackupStorageToZone", zoneUuid=made.zone, backupStorageUuid=backup["uuid"])
    image = await api.call(
        "AddImage", name="image", url=f"file://{empty_qcow2(directory / 'image.qcow2')}", format="qcow2",
        backupStorageUuids=[backup["uuid"]], mediaType="RootVolumeTemplate", platform="Linux",
    )  # fmt: skip
    return str(image["uuid"])


async def _network(api: Api, made: Furniture) -> str:
    l2 = await api.call("CreateL2NoVlanNetwork", name="l2", zoneUuid=made.zone, physicalInterface="private0")
    await api.call("AttachL2NetworkToCluster", l2NetworkUuid=l2["uuid"], clusterUuid=made.cluster)
    l3 = await api.call("CreateL3Network", name="l3", l2NetworkUuid=l2["uuid"], type="L3BasicNetwork")
    await api.call(
        "AddIpRange", l3NetworkUuid=l3["uuid"], name="range", startIp="10.0.0.10", endIp="10.0.255.250",
        netmask="255.255.0.0", gateway="10.0.0.1",
    )  # fmt: skip
    provider = (await api.call("QueryNetworkServiceProvider", q=["type=Flat"]))[0]
    await api.call(
        "AttachNetworkServiceToL3Network", l3NetworkUuid=l3["uuid"], networkServices={provider["uuid"]: _SERVICES}
    )
    return str(l3["uuid"])
