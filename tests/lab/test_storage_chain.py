"""An image's whole way with the real agent: a file, the backup storage, HTTPS, the cache, a clone, and away again."""

# ruff: noqa: ASYNC240 - a test may wait for its own little files
from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.agent_vm_lab import PrivateLibvirt
from tests.lab.test_kvm_driver_agent import AgentProcess

from caelum.cloud.backup_storage.api import AttachBackupStorageToZone
from caelum.cloud.cluster.api import CreateCluster
from caelum.cloud.host.messages import GetHost
from caelum.cloud.image.api import AddImage, ImageInventory
from caelum.cloud.primary_storage.api import (
    AttachPrimaryStorageToCluster,
    DetachPrimaryStorageFromCluster,
    GetPrimaryStorageCapacity,
    QueryImageCache,
)
from caelum.cloud.primary_storage.messages import GetPrimaryStorage
from caelum.cloud.volume.messages import CreateVolume, DeleteVolume, InstantiateVolume
from caelum.cloud.zone.api import CreateZone
from caelum.drivers.directory_backup.api import AddDirectoryBackupStorage
from caelum.drivers.directory_backup.settings import WHITELIST
from caelum.drivers.kvm.api import AddKVMHost
from caelum.drivers.kvm.settings import AGENT_PORT
from caelum.drivers.local_storage.api import AddLocalPrimaryStorage
from caelum.kernel.context import ADMIN_ACCOUNT_UUID
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.testing.cloud import EmbeddedCloud

pytestmark = pytest.mark.timeout(180)

MIB = 1 << 20


def qemu_img(*words: str) -> str:
    return subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True, timeout=60).stdout


class Chain:
    """One real host with a local storage, and a directory of images."""

    def __init__(self, cloud: EmbeddedCloud, agent: AgentProcess, directory: Path) -> None:
        self.cloud, self.agent, self.directory = cloud, agent, directory
        self.zone = self.cluster = self.host = self.primary = self.backup = ""

    async def furnish(self) -> None:
        api = self.cloud.api
        await self.cloud.node.settings.set(AGENT_PORT, self.agent.port)
        await self.cloud.node.settings.set(WHITELIST, str(self.directory))
        self.zone = (await api(CreateZone(name="zone"))).uuid
        self.cluster = (await api(CreateCluster(name="c", zone_uuid=self.zone, hypervisor_type="KVM"))).uuid
        host = AddKVMHost(
            name="host", management_ip="127.0.0.1", cluster_uuid=self.cluster, username="root", password="unused"
        )
        self.host = (await api(host)).uuid
        url = str(self.directory / "ps")
        self.primary = (await api(AddLocalPrimaryStorage(name="ps", url=url, zone_uuid=self.zone))).uuid
        await api(AttachPrimaryStorageToCluster(cluster_uuid=self.cluster, primary_storage_uuid=self.primary))
        images = AddDirectoryBackupStorage(name="bs", url=str(self.directory / "images"))
        self.backup = (await api(images)).uuid
        await api(AttachBackupStorageToZone(zone_uuid=self.zone, backup_storage_uuid=self.backup))

    async def add_image(self) -> tuple[ImageInventory, Path]:
        """An image with 3 MiB of noise, and the noise."""
        raw, image = self.directory / "noise.raw", self.directory / "noise.qcow2"
        raw.write_bytes(random.Random(1).randbytes(3 * MIB))
        await asyncio.to_thread(qemu_img, "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
        msg = AddImage(name="noise", url=f"file://{image}", backup_storage_uuids=[self.backup])
        return await self.cloud.api(msg), raw

    async def clone(self, image_uuid: str) -> Any:
        uuid, bus = new_uuid(), self.cloud.node.bus
        await bus.call(CreateVolume(uuid, "root", "Root", 0, ADMIN_ACCOUNT_UUID, root_image_uuid=image_uuid))
        return await bus.call(InstantiateVolume(uuid, self.host, self.primary))

    async def free(self) -> int:
        return (await self.cloud.api(GetPrimaryStorageCapacity(all=True))).available_capacity

    def files(self) -> list[str]:
        root = self.directory / "ps"
        return sorted(str(one.relative_to(root)) for one in root.rglob("*") if not one.name.startswith("."))


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateLibvirt]:
    daemon = PrivateLibvirt()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
async def chain(tmp_path: Path, daemon: PrivateLibvirt) -> AsyncIterator[Chain]:
    agent = AgentProcess(tmp_path / "agent", tmp_path / "pki", daemon.uri)
    await asyncio.to_thread(agent.start)
    try:
        async with EmbeddedCloud(tmp_path) as cloud:
            made = Chain(cloud, agent, tmp_path)
            await made.furnish()
            yield made
    finally:
        agent.kill()


async def test_an_image_becomes_a_disk(chain: Chain) -> None:
    image, noise = await chain.add_image()
    assert (image.size, image.format) == (3 * MIB, "qcow2")
    before = await chain.free()
    volume = await chain.clone(image.uuid)
    layers = json.loads(await asyncio.to_thread(
        qemu_img, "info", "--backing-chain", "--output=json", volume.install_path
    ))  # fmt: skip
    assert [one["format"] for one in layers] == ["qcow2", "qcow2"]
    cached = layers[1]["filename"]
    assert cached == f"{chain.directory}/ps/imagecache/template/{image.uuid}/{image.uuid}.qcow2"
    assert hashlib.md5(Path(cached).read_bytes()).hexdigest() == image.md5_sum
    flat = chain.directory / "flat.raw"
    await asyncio.to_thread(qemu_img, "convert", "-O", "raw", volume.install_path, str(flat))
    assert flat.read_bytes() == noise.read_bytes()
    assert volume.actual_size < MIB
    assert await chain.free() == before - 3 * MIB - (image.actual_size or 0)
    await chain.cloud.node.bus.call(DeleteVolume(volume.uuid, "Direct"))
    assert not Path(volume.install_path).exists()
    assert [one for one in chain.files() if "Volumes" in one] == []
    assert len((await chain.cloud.api(QueryImageCache())).inventories) == 1


async def test_an_image_that_was_tampered_with_reaches_no_host(chain: Chain) -> None:
    image, _ = await chain.add_image()
    stored = Path(image.backup_storage_refs[0].install_path or "")
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    before = await chain.free()
    with pytest.raises(CloudError, match=r"(?i)sha-?256|digest"):
        await chain.clone(image.uuid)
    assert await chain.free() == before
    assert [one for one in chain.files() if one.endswith((".qcow2", ".part"))] == []


async def test_a_disk_on_a_host_that_is_away_goes_when_it_is_back(chain: Chain) -> None:
    image, _ = await chain.add_image()
    volume, node = await chain.clone(image.uuid), chain.cloud.node
    before = await chain.free()
    chain.agent.kill()

    async def status(wanted: str) -> bool:
        return (await node.bus.call(GetHost(host_uuid=chain.host))).status == wanted

    async def storage(wanted: str) -> bool:
        return (await node.bus.call(GetPrimaryStorage(chain.primary))).status == wanted

    await chain.cloud.until(lambda: status("Disconnected"), 30)
    await chain.cloud.until(lambda: storage("Disconnected"), 10)
    await node.bus.call(DeleteVolume(volume.uuid, "Direct"))
    assert Path(volume.install_path).exists()
    assert await chain.free() == before
    await asyncio.to_thread(chain.agent.start)
    await chain.cloud.until(lambda: status("Connected"), 30)
    await chain.cloud.until(lambda: not Path(volume.install_path).exists(), 30)

    async def given_back() -> bool:
        return await chain.free() == before + 3 * MIB

    await chain.cloud.until(given_back, 10)
    assert await storage("Connected")


async def test_a_storage_without_its_mark_keeps_the_host_away(chain: Chain) -> None:
    image, _ = await chain.add_image()
    await chain.clone(image.uuid)
    mark = chain.directory / "ps" / ".caelum-storage"
    mark.rename(mark.with_name(".away"))
    with pytest.raises(CloudError, match="not mounted"):
        await chain.cloud.node.services["primary_storage"].storages.refresh(  # type: ignore[attr-defined]
            await chain.cloud.node.bus.call(GetPrimaryStorage(chain.primary)), chain.host
        )
    mark.with_name(".away").rename(mark)


async def test_a_directory_can_become_another_storages(chain: Chain) -> None:
    detach = DetachPrimaryStorageFromCluster(cluster_uuid=chain.cluster, primary_storage_uuid=chain.primary)
    await chain.cloud.api(detach)
    assert not (chain.directory / "ps" / ".caelum-storage").exists()
    await chain.cloud.api(AttachPrimaryStorageToCluster(cluster_uuid=chain.cluster, primary_storage_uuid=chain.primary))
    assert chain.primary in (chain.directory / "ps" / ".caelum-storage").read_text()
