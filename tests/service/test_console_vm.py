"""Consoles with the real services: whose VM it is, and what its life does to tokens."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from console_lab import free_port
from sqlalchemy import func, select

from caelum.cloud.console.model import ConsoleTokenModel
from caelum.cloud.vm.api import PauseVmInstance, RebootVmInstance, StartVmInstance, StopVmInstance
from caelum.gateway.server import Gateway
from caelum.kernel.jobs import JobModel
from caelum.sdk.client import ApiError, Client
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud


async def tokens(made: SimulatedCloud) -> int:
    await made.cloud.node.events.idle()
    async with made.cloud.node.db.read() as session:
        return await session.scalar(select(func.count()).select_from(ConsoleTokenModel)) or 0


async def test_the_owner_gets_in_while_the_vm_runs_and_nobody_else(tmp_path: Path) -> None:
    async with simulated_cloud(tmp_path, console_port=free_port()) as made:
        gateway = Gateway(made.cloud.node)
        await gateway.start()
        try:
            await scenario(made, f"http://127.0.0.1:{gateway.port}")
        finally:
            await gateway.stop()


async def scenario(made: SimulatedCloud, url: str) -> None:
    vm = (await made.create_vm()).uuid
    admin, stranger = Client(url), Client(url)

    async def request(client: Client) -> dict[str, object]:
        return await asyncio.to_thread(client.call, "RequestConsoleAccess", vmInstanceUuid=vm)

    await asyncio.to_thread(admin.login, "admin", "password")
    secret = hashlib.sha512(b"secret").hexdigest()
    await asyncio.to_thread(admin.call, "CreateAccount", name="stranger", password=secret)
    await asyncio.to_thread(stranger.login, "stranger", "secret")

    access = await request(admin)
    async with made.cloud.node.db.read() as session:
        rows = list(await session.scalars(select(JobModel).where(JobModel.api == "APIRequestConsoleAccessMsg")))
    assert len(rows) == 1
    assert str(access["token"]) not in f"{rows[0].result} {rows[0].body} {rows[0].actor}"
    assert access["port"] == made.cloud.node.config.console_port
    assert set(access) == {"scheme", "targetScheme", "hostname", "port", "token", "version", "expiredDate"}
    with pytest.raises(ApiError) as refused:
        await request(stranger)
    assert refused.value.code != "SYS.1000"
    with pytest.raises(ApiError):
        await asyncio.to_thread(stranger.call, "QueryConsoleProxyAgent")
    assert await tokens(made) == 1

    await made.api(RebootVmInstance(uuid=vm))
    await made.api(PauseVmInstance(uuid=vm))
    await request(admin)
    assert await tokens(made) == 2
    await made.api(StopVmInstance(uuid=vm))
    assert await tokens(made) == 0
    with pytest.raises(ApiError, match="is Stopped") as refused:
        await request(admin)
    assert refused.value.code == "VM.1010"
    await made.api(StartVmInstance(uuid=vm))
    await request(admin)
