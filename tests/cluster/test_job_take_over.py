"""What was accepted and not begun when nodes die: others do it, once, and the client hears nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.cluster.conftest import FAST
from tests.service.gateway.lamps import BuildLamp, LampModel, LampService

from caelum.cloud.identity.service import IdentityService
from caelum.gateway import runner
from caelum.gateway.portal import Request
from caelum.gateway.runner import Runner
from caelum.kernel.context import SYSTEM
from caelum.kernel.database import update_where
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import Job, JobModel
from caelum.kernel.journal import JournalModel
from caelum.kernel.membership import ManagementNodeModel
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.clusters import Cluster


class Lamps(Cluster):
    """Nodes that build lamps, and can all accept operations."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(directory, count, [IdentityService, LampService], **FAST)
        self.runners: dict[str, Runner] = {}

    def prepare(self) -> EmbeddedCloud:
        cloud = super().prepare()
        self.runners[cloud.node.uuid] = Runner(cloud.node)
        return cloud

    async def __aexit__(self, *error: object) -> None:
        for one in self.runners.values():
            await one.stop(0)
        await super().__aexit__(*error)

    async def accept(self, at: EmbeddedCloud, owner: EmbeddedCloud) -> tuple[str, str]:
        """Let a node accept the building of a lamp that another one owns; the job and the lamp."""
        job, lamp = new_uuid(), self.owned_by(owner, new_uuid)
        values = {"name": "desk", "resource_uuid": lamp}
        request = Request(meta=BuildLamp.__api__, values=values, signer=SYSTEM, job_uuid=job)
        assert await self.runners[at.node.uuid].submit(request) == job
        return job, lamp

    async def answered(self, job: str, seconds: float = 40) -> Job:
        async def done() -> Job | None:
            found = await self.nodes[0].jobs.get(job)
            return found if found is not None and found.done else None

        found: Job = await self.until(done, seconds)
        return found

    async def rows(self, model: Any, *where: Any) -> list[Any]:
        async with self.nodes[0].db.read() as session:
            return list(await session.scalars(select(model).where(*where)))

    async def built_once(self, job: str, lamp: str) -> None:
        """The job has succeeded, by one run, and what was asked for is there once."""
        answer = await self.answered(job)
        assert answer.error is None
        assert lamp in (answer.result or "")
        assert [one.uuid for one in await self.rows(LampModel)] == [lamp]
        assert len(await self.rows(JournalModel, JournalModel.job_uuid == job)) == 1
        assert [one.body for one in await self.rows(JobModel)] == [None]


def _service(cloud: EmbeddedCloud) -> LampService:
    service = cloud.node.services["gateway"]
    assert isinstance(service, LampService)
    return service


async def _asked(cluster: Lamps, cloud: EmbeddedCloud) -> None:
    await cluster.until(_service(cloud).asked.is_set)


async def test_the_node_dies_that_was_to_do_it(tmp_path: Path) -> None:
    async with Lamps(tmp_path, 2) as cluster:
        accepting, doing = cluster.clouds
        _service(doing).thinking.clear()
        job, lamp = await cluster.accept(accepting, doing)
        await _asked(cluster, doing)
        await cluster.kill(doing)
        await cluster.built_once(job, lamp)


async def test_the_node_is_dead_that_is_to_do_it(tmp_path: Path) -> None:
    async with Lamps(tmp_path, 2) as cluster:
        accepting, doing = cluster.clouds
        lamp = cluster.owned_by(doing, new_uuid)
        await cluster.kill(doing)
        job = new_uuid()
        values = {"name": "desk", "resource_uuid": lamp}
        request = Request(meta=BuildLamp.__api__, values=values, signer=SYSTEM, job_uuid=job)
        await cluster.runners[accepting.node.uuid].submit(request)
        await cluster.built_once(job, lamp)


async def test_the_node_dies_that_had_accepted_it(tmp_path: Path) -> None:
    """What it had asked another node for is begun there all the same, and whoever takes the job over joins that."""
    async with Lamps(tmp_path, 3) as cluster:
        accepting, doing, _ = cluster.clouds
        _service(doing).thinking.clear()
        job, lamp = await cluster.accept(accepting, doing)
        await _asked(cluster, doing)
        _service(doing).asked.clear()
        await cluster.kill(accepting)
        await _asked(cluster, doing)
        _service(doing).thinking.set()
        await cluster.built_once(job, lamp)


async def test_both_die(tmp_path: Path) -> None:
    async with Lamps(tmp_path, 3) as cluster:
        accepting, doing, _ = cluster.clouds
        _service(doing).thinking.clear()
        job, lamp = await cluster.accept(accepting, doing)
        await _asked(cluster, doing)
        await cluster.kill(accepting)
        await cluster.kill(doing)
        await cluster.built_once(job, lamp)


async def test_one_after_the_other_dies(tmp_path: Path) -> None:
    async with Lamps(tmp_path, 3) as cluster:
        for cloud in cluster.clouds[:2]:
            _service(cloud).thinking.clear()
        first = cluster.clouds[0]
        job, lamp = await cluster.accept(first, first)
        await _asked(cluster, first)
        await cluster.kill(first)
        await cluster.until(lambda: any(one.jobs.is_open(job) for one in cluster.nodes))
        heir = next(one for one in cluster.clouds if one.node.jobs.is_open(job))
        await cluster.kill(heir)
        _service(cluster.clouds[0]).thinking.set()
        await cluster.built_once(job, lamp)


async def test_what_has_begun_is_followed_and_not_done_anew(tmp_path: Path) -> None:
    async with Lamps(tmp_path, 3) as cluster:
        accepting, doing, _ = cluster.clouds
        _service(doing).assembling.clear()
        job, lamp = await cluster.accept(accepting, doing)
        await cluster.until(doing.node.workflows.dump)
        for cloud in cluster.clouds:
            _service(cloud).asked.clear()
        await cluster.kill(accepting)
        await cluster.until(lambda: accepting.node.uuid not in doing.node.ring.members)
        _service(doing).assembling.set()
        await cluster.built_once(job, lamp)
        assert not any(_service(cloud).asked.is_set() for cloud in cluster.clouds)


@pytest.mark.parametrize("asleep", ["accepting", "doing"])
async def test_a_node_that_was_slow_and_not_dead_does_not_do_it_again(tmp_path: Path, asleep: str) -> None:
    async with Lamps(tmp_path, 3) as cluster:
        slow, other, _ = cluster.clouds
        accepting = slow if asleep == "accepting" else other
        _service(slow).thinking.clear()
        job, lamp = await cluster.accept(accepting, slow)
        await _asked(cluster, slow)
        slow.node.membership.freeze()
        cluster.clouds.remove(slow)
        await cluster.until(lambda: slow.node.uuid not in other.node.ring.members)
        cluster.link.cut(slow.node.uuid)  # what the broker's bus does by itself
        await cluster.built_once(job, lamp)
        slow.node.membership.thaw()
        _service(slow).thinking.set()
        await cluster.until(lambda: cluster.lost)
        await cluster.until(lambda: not slow.node.bus.busy())
        await cluster.built_once(job, lamp)
        await slow.__aexit__(None, None, None)


async def test_what_begins_at_the_last_moment_is_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was found, and between that and the answer another node begins what a dead one had asked it for."""
    async with Lamps(tmp_path, 2) as cluster:
        accepting, doing = cluster.clouds
        _service(doing).thinking.clear()
        job, lamp = await cluster.accept(accepting, doing)
        await _asked(cluster, doing)
        workflows, finish = accepting.node.workflows, accepting.node.workflows.finish_job

        async def late(job_uuid: str, answer: str | Exception) -> None:
            _service(doing).thinking.set()
            await cluster.until(doing.node.workflows.dump)
            _service(doing).assembling.set()
            await finish(job_uuid, answer)

        _service(doing).assembling.clear()
        monkeypatch.setattr(workflows, "finish_job", late)
        accepting.node.bus.gone(doing.node.uuid)  # type: ignore[attr-defined]
        monkeypatch.setattr(runner, "_EVICTED_WITHIN", 0.1)  # it is not, and nothing is done anew
        await cluster.built_once(job, lamp)


async def test_the_node_that_was_to_do_it_cannot_reach_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so while it still is a member; nothing has begun, and the client hears nothing of it."""
    async with Lamps(tmp_path, 2) as cluster:
        accepting, doing = cluster.clouds
        run, failed = doing.node.workflows.run, 0

        async def refused(*args: Any, **options: Any) -> Any:
            nonlocal failed
            failed += 1
            if failed < 3:
                raise CloudError(DATABASE_UNAVAILABLE, "no connection to PostgreSQL")
            return await run(*args, **options)

        monkeypatch.setattr(doing.node.workflows, "run", refused)
        job, lamp = await cluster.accept(accepting, doing)
        await cluster.built_once(job, lamp)
        assert failed == 3


async def test_a_job_of_a_former_version_gets_an_error(tmp_path: Path) -> None:
    async with Lamps(tmp_path, 2) as cluster:
        accepting, _ = cluster.clouds
        _service(accepting).thinking.clear()
        job = new_uuid()
        await accepting.node.jobs.create(job, BuildLamp.__api__.name, SYSTEM)
        await cluster.kill(accepting)
        answer = await cluster.answered(job)
        assert answer.error is not None
        assert answer.error.code == "SYS.1012"


async def _turns_into(cloud: EmbeddedCloud, version: str, revision: str) -> None:
    """Have a member say that its program is of another version."""
    values = {"version": version, "revision": revision}
    async with cloud.node.db.transaction() as tx:
        await update_where(tx, ManagementNodeModel, values, ManagementNodeModel.uuid == cloud.node.uuid)


@pytest.mark.parametrize(
    ("version", "revision"), [("0.1.1", "17b06180959c"), ("99.0", "more99")], ids=["our schema", "a newer one"]
)
async def test_a_node_stops_for_an_upgrade(tmp_path: Path, version: str, revision: str) -> None:
    """It is the first of its version, or the last; what it does not begin any more others do, whatever they are."""
    async with Lamps(tmp_path, 3) as cluster:
        accepting, doing, other = cluster.clouds
        await _turns_into(other, version, revision)
        _service(doing).thinking.clear()
        job, lamp = await cluster.accept(accepting, doing)
        await _asked(cluster, doing)
        await doing.node.workflows.stop()
        _service(doing).thinking.set()
        await cluster.remove(doing)
        await cluster.built_once(job, lamp)


async def test_nothing_is_done_anew_while_a_node_is_a_member_that_might_do_it_too(tmp_path: Path) -> None:
    async with Lamps(tmp_path, 3) as cluster:
        accepting, doing, other = cluster.clouds
        _service(doing).thinking.clear()
        job, _ = await cluster.accept(accepting, doing)
        await _asked(cluster, doing)
        await _turns_into(other, "0.0.9", "66f08dcb4acf")
        await cluster.kill(doing)
        answer = await cluster.answered(job)
        assert answer.error is not None
        assert await cluster.rows(LampModel) == []
