"""A job that was accepted and not begun when the process was killed is done by the next one, for whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select, update

from caelum.cloud.identity.api import DeleteAccount
from caelum.cloud.identity.model import AccountModel, SessionModel
from caelum.cloud.ownership import AccountResourceRefModel
from caelum.gateway.server import Gateway
from caelum.kernel.database import utcnow
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import JobModel
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.harness import kill
from gateway.conftest import SERVICES, Answer, Client
from gateway.lamps import LampModel, LampService
from gateway.test_access_keys import Signer, make

BUILT = "/zstack/v1/lamps/built"


class Life:
    """One process with its gateway, which listens before the node is ready, as the server's does."""

    def __init__(self, cloud: EmbeddedCloud, gateway: Gateway, client: Client) -> None:
        self.cloud, self.gateway, self.client = cloud, gateway, client
        self.killed = False

    @property
    def lamps(self) -> LampService:
        service = self.cloud.node.services["gateway"]
        assert isinstance(service, LampService)
        return service

    async def accept(self, client: Client, uuid: str, **more: Any) -> str:
        """Have a lamp's building accepted, which then waits before its workflow; the path of its job."""
        self.lamps.thinking.clear()
        self.lamps.asked.clear()
        params = {"name": "desk", "resourceUuid": uuid, "key": "hush-hush"}
        return await self._accepted(client.send("POST", BUILT, {"params": params}, **more))

    async def _accepted(self, sending: Any) -> str:
        answer: Answer = await sending
        assert answer.status == 202, answer.text
        await asyncio.wait_for(self.lamps.asked.wait(), 5)
        path: str = answer.json["location"].removeprefix(self.client.base)
        return path

    async def rows(self, model: Any) -> list[Any]:
        async with self.cloud.node.db.read() as session:
            return list(await session.scalars(select(model)))

    async def die(self) -> None:
        self.killed = True
        await self.gateway.stop(0)
        await kill(self.cloud.node)


@contextlib.asynccontextmanager
async def life(directory: Path) -> AsyncIterator[Life]:
    cloud = EmbeddedCloud(directory, SERVICES)
    gateway = Gateway(cloud.node)
    await gateway.start()
    async with aiohttp.ClientSession() as http:
        await cloud.__aenter__()
        one = Life(cloud, gateway, Client(cloud, gateway, http))
        try:
            yield one
        finally:
            if not one.killed:
                await gateway.stop(1)
                await cloud.__aexit__(None, None, None)


async def _accepted_then_killed(directory: Path, before: Callable[[Life], Any] | None = None) -> tuple[str, str]:
    """The lamp and the path of the job, which ordinary account "joe" had asked for."""
    uuid = new_uuid()
    async with life(directory) as first:
        joe = await (await first.client.log_in()).account("joe")
        path = await first.accept(joe, uuid)
        assert await first.rows(LampModel) == []
        if before is not None:
            await before(first)
        await first.die()
    return uuid, path


def _contents(directory: Path) -> list[bytes]:
    return [file.read_bytes() for file in directory.glob("caelum.db*")]


async def _make_older(life: Life, seconds: float) -> None:
    """As if all jobs had been accepted so long ago."""
    async with life.cloud.node.db.transaction() as tx:
        await tx.execute(update(JobModel).values(create_date=utcnow() - timedelta(seconds=seconds)))


async def test_it_is_done_after_the_restart_for_who_asked(tmp_path: Path) -> None:
    uuid, path = await _accepted_then_killed(tmp_path)
    assert not any(b"hush-hush" in one for one in await asyncio.to_thread(_contents, tmp_path))
    async with life(tmp_path) as second:
        answer = await second.client.poll(second.client.base + path)
        assert (answer.status, answer.json["inventory"]["uuid"]) == (200, uuid)
        assert [one.uuid for one in await second.rows(LampModel)] == [uuid]
        [joe] = [one.uuid for one in await second.rows(AccountModel) if one.name == "joe"]
        owners = {one.resource_uuid: one.account_uuid for one in await second.rows(AccountResourceRefModel)}
        assert owners[uuid] == joe
        assert [one.body for one in await second.rows(JobModel)] == [None] * len(await second.rows(JobModel))


async def test_what_had_begun_is_not_done_anew(tmp_path: Path) -> None:
    uuid = new_uuid()
    async with life(tmp_path) as first:
        await first.client.log_in()
        path = await first.accept(first.client, uuid)
        first.lamps.assembling.clear()
        first.lamps.thinking.set()
        await first.cloud.until(lambda: first.cloud.node.workflows.dump())
        await first.die()
    async with life(tmp_path) as second:
        assert (await second.client.poll(second.client.base + path)).status == 200
        assert not second.lamps.asked.is_set(), "the workflow went on, and nobody asked for another one"
        assert [one.uuid for one in await second.rows(LampModel)] == [uuid]


async def test_who_logged_out_meanwhile_gets_nothing_more_done(tmp_path: Path) -> None:
    async def log_out(life: Life) -> None:
        async with life.cloud.node.db.transaction() as tx:
            for row in await tx.scalars(select(SessionModel)):
                await tx.delete(row)

    _, path = await _accepted_then_killed(tmp_path, log_out)
    async with life(tmp_path) as second:
        answer = await second.client.poll(second.client.base + path)
        assert (answer.status, answer.json["error"]["code"]) == (503, "ID.1001")
        assert await second.rows(LampModel) == []


@pytest.mark.parametrize("gone", [False, True])
async def test_a_signed_request_counts_for_as_long_as_its_account_is_there(tmp_path: Path, gone: bool) -> None:
    uuid = new_uuid()
    async with life(tmp_path) as first:
        await (await first.client.log_in()).account("joe")
        [joe] = [one.uuid for one in await first.rows(AccountModel) if one.name == "joe"]
        signer = Signer(first.client, await make(first.client, joe))
        headers = signer.headers("POST", "/lamps/built")
        path = await first.accept(signer.client, uuid, headers=headers)
        if gone:
            await first.cloud.api(DeleteAccount(uuid=joe))
        await first.die()
    async with life(tmp_path) as second:
        answer = await second.client.poll(second.client.base + path)
        assert answer.status == (503 if gone else 200), answer.text
        assert len(await second.rows(LampModel)) == (0 if gone else 1)


async def test_after_its_deadline_it_is_not_done_any_more(tmp_path: Path) -> None:
    _, path = await _accepted_then_killed(tmp_path, lambda life: _make_older(life, 3600))
    async with life(tmp_path) as second:
        answer = await second.client.poll(second.client.base + path)
        assert (answer.status, answer.json["error"]["code"]) == (503, "SYS.1012")
        assert await second.rows(LampModel) == []


async def test_its_deadline_is_counted_from_its_creation(tmp_path: Path) -> None:
    uuid = new_uuid()
    async with life(tmp_path) as first:
        await first.client.log_in()
        path = await first.accept(first.client, uuid, headers={"X-API-Timeout": "100"})
        await _make_older(first, 98)
        await first.die()
    async with life(tmp_path) as second:
        second.lamps.thinking.clear()
        answer = await second.client.poll(second.client.base + path)
        assert answer.status == 503
        assert answer.json["error"]["code"] in ("SYS.1012", "SYS.1001"), answer.text


async def test_a_job_survives_several_deaths(tmp_path: Path) -> None:
    uuid, path = await _accepted_then_killed(tmp_path)
    for _ in range(2):
        cloud = EmbeddedCloud(tmp_path, SERVICES)
        Gateway(cloud.node)
        await cloud.__aenter__()
        assert cloud.node.jobs.is_open(path.rpartition("/")[2])
        await kill(cloud.node)
    async with life(tmp_path) as last:
        assert (await last.client.poll(last.client.base + path)).json["inventory"]["uuid"] == uuid


async def test_a_uuid_that_is_used_again_after_its_job_is_forgotten_is_a_new_job(admin: Client) -> None:
    node, header = admin.cloud.node, {"X-Job-UUID": new_uuid()}
    for name in ("one", "two"):
        answer = await admin.job("POST", BUILT, {"params": {"name": name}}, headers=header)
        assert answer.json["inventory"]["name"] == name
        async with node.db.transaction() as tx:
            await tx.execute(update(JobModel).values(finish_date=utcnow() - timedelta(hours=4)))
        await node.jobs.purge()
    async with node.db.read() as session:
        assert sorted(await session.scalars(select(LampModel.name))) == ["one", "two"]
