"""Agents of other versions: what the server speaks with, whom it brings to its own, and what it offers them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select
from tests.service.host_clouds import HostCloud, host_cloud

import caelum
from caelum.agent import protocol as p
from caelum.cloud.host.api import ReconnectHost
from caelum.drivers.kvm import program
from caelum.drivers.kvm.model import KvmHostModel
from caelum.drivers.kvm.program import is_older, pack
from caelum.drivers.kvm.settings import AGENT_UPDATE
from caelum.kernel import pki
from caelum.kernel.errors import CloudError


async def _known(cloud: HostCloud) -> tuple[str | None, int | None]:
    async with cloud.node.db.read() as session:
        row = (await session.execute(select(KvmHostModel.agent_version, KvmHostModel.agent_protocol))).one()
    return row.agent_version, row.agent_protocol


async def test_an_older_agent_is_brought_to_the_servers_version(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        agent = cloud.sim[0]
        agent.version = "0.0.9"
        await cloud.node.settings.set(AGENT_UPDATE, False)
        host = await cloud.add_host()
        assert await _known(cloud) == ("0.0.9", p.PROTOCOL_VERSION)
        await cloud.node.settings.set(AGENT_UPDATE, True)
        await cloud.api(ReconnectHost(uuid=host.uuid))
        assert agent.done[p.UpdateAgent.path] == 1
        assert await _known(cloud) == (caelum.__version__, p.PROTOCOL_VERSION)
        await cloud.api(ReconnectHost(uuid=host.uuid))
        assert agent.done[p.UpdateAgent.path] == 1
        assert (await cloud.host(host.uuid)).status == "Connected"


@pytest.mark.parametrize(("version", "protocol"), [("0.0.9", p.OLDEST_PROTOCOL), ("99.0", p.PROTOCOL_VERSION + 1)])
async def test_agents_that_are_one_version_apart_keep_working(tmp_path: Path, version: str, protocol: int) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        agent = cloud.sim[0]
        agent.version, agent.protocol = version, protocol
        host = await cloud.add_host()
        assert host.status == "Connected"
        assert await _known(cloud) == (version, protocol)
        assert agent.done[p.UpdateAgent.path] == 0


async def test_an_agent_that_is_too_old_is_refused(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        cloud.sim[0].protocol = p.OLDEST_PROTOCOL - 1
        with pytest.raises(CloudError) as refused:
            await cloud.add_host()
        spoken = f"this server {p.OLDEST_PROTOCOL} to {p.PROTOCOL_VERSION}"
        advice = "the host must get the agent of a version that is at most one apart"
        assert f"{spoken}: {advice}" in str(refused.value.to_wire())


async def test_an_agent_that_cannot_be_updated_keeps_working(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        cloud.sim[0].version = "0.0.9"
        cloud.sim.fault("error", p.UpdateAgent.path, code=p.DOWNLOAD)
        assert (await cloud.add_host()).status == "Connected"
        assert await _known(cloud) == ("0.0.9", p.PROTOCOL_VERSION)


async def test_a_program_that_cannot_be_packed_keeps_no_host_away_and_is_packed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def broken(_package: Path) -> bytes:
        nonlocal tries
        tries += 1
        raise FileNotFoundError("replaced meanwhile")

    with monkeypatch.context() as patched:
        patched.setattr(program, "pack", broken)
        async with host_cloud(tmp_path, 1) as cloud:
            cloud.sim[0].version = "0.0.9"
            host = await cloud.add_host()
            assert host.status == "Connected"
            assert await _known(cloud) == ("0.0.9", p.PROTOCOL_VERSION)
            assert tries == 2, "at the start, and for the host"
            patched.undo()
            await cloud.api(ReconnectHost(uuid=host.uuid))
            assert await _known(cloud) == (caelum.__version__, p.PROTOCOL_VERSION)


async def test_what_is_offered_was_read_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        cloud.sim[0].version = "0.0.9"
        await cloud.node.services["kvm"]._program._archive()

        def replaced(_package: Path) -> bytes:
            raise AssertionError("packed anew")

        monkeypatch.setattr(program, "pack", replaced)
        await cloud.add_host()
        assert await _known(cloud) == (caelum.__version__, p.PROTOCOL_VERSION)


async def test_a_host_can_fetch_the_program_and_nobody_else(tmp_path: Path) -> None:
    async with host_cloud(tmp_path, 1) as cloud:
        await cloud.add_host()
        archive = pack(Path(caelum.__file__).parent)
        digest = hashlib.sha256(archive).hexdigest()
        base = f"{cloud.node.services['kvm'].agents.callback_base}/agent/program"
        options: dict[str, Any] = {"server_hostname": pki.SERVER_NAME, "ssl": cloud.sim[0].outgoing_tls()}
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{base}/{digest}", **options) as answer:
                assert (answer.status, await answer.read()) == (200, archive)
            async with http.get(f"{base}/{'0' * 64}", **options) as answer:
                assert answer.status == 404


def test_the_program_is_what_an_agent_needs() -> None:
    names = zipfile.ZipFile(io.BytesIO(pack(Path(caelum.__file__).parent))).namelist()
    assert {"caelum/__init__.py", "caelum/agent/main.py", "caelum/kernel/pki.py"} <= set(names)
    assert {name.split("/")[1] for name in names} == {"__init__.py", "py.typed", "agent", "kernel"}


def test_which_version_is_older() -> None:
    assert is_older("0.1.0", "0.2.0")
    assert is_older("0.9", "0.10")
    assert not is_older("0.2.0", "0.2.0")
    assert not is_older("1.0", "0.9")
    assert not is_older("simulated", "0.9")
