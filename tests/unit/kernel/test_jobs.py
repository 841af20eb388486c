"""API jobs: one answer each, progress, waiting, and what happens to them when a node dies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel import jobs
from caelum.kernel.context import Actor
from caelum.kernel.database import update_where, utcnow
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import EXPIRED_PERIOD, LAST_WORDS, Job, JobModel
from caelum.kernel.message import ApiMessage as Api
from caelum.kernel.message import Inventory, Reply, rest
from caelum.kernel.node import Node
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE
from caelum.kernel.views import reply_body

ACTOR = Actor("acc", "usr", "ses")


class NoteInventory(Inventory):
    uuid: str
    text: str | None = None


class NoteReply(Reply):
    count: int = 0


@rest("POST /test-notes", package="test")
class CreateTestNote(Api[NoteInventory]):
    """Write a note."""


@rest("GET /test-notes/count", package="test")
class CountTestNotes(Api[NoteReply]):
    """Count notes."""


async def _job(node: Node, uuid: str) -> Job:
    job = await node.jobs.get(uuid)
    assert job is not None
    return job


@rest("POST /test-notes/keys", package="test", secret=True)
class CreateTestKey(Api[NoteInventory]):
    """Make a key."""


async def _row(node: Node, uuid: str) -> JobModel:
    async with node.db.read() as session:
        return await session.get_one(JobModel, uuid)


async def test_a_secret_answer_is_read_by_pollers_only(node: Node) -> None:
    one, other = new_uuid(), new_uuid()
    for uuid in (one, other):
        await node.jobs.create(uuid, "APICreateTestKeyMsg")
    await node.jobs.finish(one, '{"inventory":{"text":"hush"}}')
    stored = (await _row(node, one)).result or ""
    assert "hush" not in stored
    assert (await _job(node, one)).result == '{"inventory":{"text":"hush"}}'
    async with node.db.transaction() as tx:  # somebody who may write copies it into a job of their own
        await tx.execute(update(JobModel).where(JobModel.uuid == other).values(result=stored, state="Done"))
    job = await _job(node, other)
    assert job.result is None
    assert job.error is not None
    assert "hush" not in job.error.details


async def test_the_life_of_a_job(node: Node) -> None:
    uuid = new_uuid()
    await node.jobs.create(uuid, "APICreateTestNoteMsg", ACTOR, '{"a":1}', web_hook="http://x/")
    job = await _job(node, uuid)
    assert (job.state, job.actor, job.web_hook, job.done) == ("Processing", ACTOR, "http://x/", False)
    assert await node.jobs.finish(uuid, '{"inventory":{}}')
    assert not await node.jobs.finish(uuid, CloudError(INVALID_ARGUMENT, "late"))
    job = await _job(node, uuid)
    assert (job.done, job.result, job.error, job.percent) == (True, '{"inventory":{}}', None, 100)
    assert await node.jobs.get("nothing") is None
    assert not await node.jobs.finish("nothing", "{}")


async def test_what_this_node_works_on_is_known_to_be_open_until_its_answer_is_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = new_uuid()
    assert not node.jobs.is_open(uuid)
    await node.jobs.create(uuid, "x")
    assert node.jobs.is_open(uuid)
    read, asked = node.db.read, []
    monkeypatch.setattr(node.db, "read", lambda: asked.append(asyncio.current_task()) or read())
    waiting = asyncio.create_task(node.jobs.wait(uuid))
    await asyncio.sleep(0)
    assert waiting not in asked, "the database was asked"
    with monkeypatch.context() as patch:
        patch.setattr(node.db, "_commit", _refuse)
        finishing = asyncio.create_task(node.jobs.finish(uuid, "{}"))
        await asyncio.sleep(0.1)
        assert not node.jobs.is_open(uuid), "whether it was written, only the database knows"
    assert not (await _job(node, uuid)).done
    assert await asyncio.wait_for(finishing, 5)
    assert not node.jobs.is_open(uuid)
    job = await asyncio.wait_for(waiting, 5)
    assert job is not None
    assert job.done


async def _refuse(_session: AsyncSession) -> None:
    raise CloudError(DATABASE_UNAVAILABLE, "away")


@pytest.mark.parametrize("times", [2, 100])
async def test_an_answer_that_an_error_of_the_database_kept_out_is_written_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    uuid, tries, commit = new_uuid(), 0, node.db._commit

    async def breaks(session: AsyncSession) -> None:
        nonlocal tries
        tries += 1
        if tries <= times:
            raise DBAPIError("COMMIT", None, Exception("cannot be"))
        await commit(session)

    await node.jobs.create(uuid, "x")
    monkeypatch.setattr(jobs, "_FINISH_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(node.db, "_commit", breaks)
    if times == 2:
        assert await node.jobs.finish(uuid, "{}")
        assert (await _job(node, uuid)).done
    else:
        with pytest.raises(DBAPIError):
            await node.jobs.finish(uuid, "{}")
        assert tries == 4
        monkeypatch.undo()
    assert not node.jobs.is_open(uuid)


async def test_an_error_keeps_its_cause_chain(node: Node) -> None:
    uuid = new_uuid()
    await node.jobs.create(uuid, "x")
    await node.jobs.finish(uuid, CloudError(INVALID_ARGUMENT, "outer", cause=CloudError(INVALID_ARGUMENT, "inner")))
    error = (await _job(node, uuid)).error
    assert error is not None
    assert error.cause is not None
    assert (error.details, error.cause.details) == ("outer", "inner")


async def test_a_uuid_is_used_once(node: Node) -> None:
    uuid = new_uuid()
    await node.jobs.create(uuid, "x")
    with pytest.raises(CloudError, match=f"Duplicate job uuid\\[{uuid}\\]"):
        await node.jobs.create(uuid, "x")


async def test_the_first_answer_counts(node: Node) -> None:
    uuid = new_uuid()
    await node.jobs.create(uuid, "x")
    won = await asyncio.gather(*(node.jobs.finish(uuid, f'"{number}"') for number in range(10)))
    assert sum(won) == 1
    assert (await _job(node, uuid)).result == f'"{won.index(True)}"'


async def test_what_a_node_finished_last_is_told_when_it_dies(node: Node) -> None:
    """It may have died between the commit and the news; what it finished long ago it has told."""
    told: list[str] = []
    last, old, others = new_uuid(), new_uuid(), new_uuid()
    for uuid in (last, old, others):
        await node.jobs.create(uuid, "x")
        await node.jobs.finish(uuid, "{}")
    async with node.db.transaction() as tx:
        await update_where(tx, JobModel, {"node_uuid": "dead"}, JobModel.uuid.in_([last, old]))
        long_ago = {"finish_date": utcnow() - 2 * LAST_WORDS}
        await update_where(tx, JobModel, long_ago, JobModel.uuid == old)
    node.jobs.on_news(lambda job: told.append(job.uuid))
    node.ring.join("dead")
    node.ring.leave("dead")
    async with asyncio.timeout(5):
        while not told:  # noqa: ASYNC110 - listeners are plain functions
            await asyncio.sleep(0.01)
    assert told == [last]


async def test_waiting_and_listening(node: Node) -> None:
    uuid, told = new_uuid(), []
    node.jobs.on_finish(lambda job: told.append(("finish", job.uuid)))
    node.jobs.on_finish(_fails)
    node.jobs.on_news(lambda job: told.append((job.percent, job.text)))
    await node.jobs.create(uuid, "x")
    waiters = [asyncio.create_task(node.jobs.wait(uuid)) for _ in range(3)]
    await asyncio.sleep(0.02)
    waiters[0].cancel()
    await node.jobs.progress(uuid, 40, "half")
    await node.jobs.progress(uuid, 30, "back")
    await node.jobs.finish(uuid, "{}")
    jobs = await asyncio.wait_for(asyncio.gather(*waiters[1:]), 5)
    assert [job is not None and job.done for job in jobs] == [True, True]
    assert told == [(40, "half"), ("finish", uuid), (100, "half")]
    later = await node.jobs.wait(uuid)
    assert later is not None
    assert later.done
    assert await node.jobs.wait("nothing") is None


def _fails(_job: Job) -> None:
    raise ValueError("a listener that fails")


async def test_jobs_of_dead_nodes_are_answered_unless_a_workflow_does(node: Node) -> None:
    mine, orphan, alive = new_uuid(), new_uuid(), new_uuid()
    for uuid in (mine, orphan, alive):
        await node.jobs.create(uuid, "x")
    async with node.db.transaction() as tx:
        await tx.execute(update(JobModel).where(JobModel.uuid != mine).values(node_uuid="dead"))

    async def answered(_tx: Any, uuid: str) -> bool:
        return uuid == alive

    assert await node.jobs.settle_orphans(["dead"], answered) == [orphan]
    error = (await _job(node, orphan)).error
    assert error is not None
    assert error.code == "SYS.1012"
    assert [(await _job(node, uuid)).done for uuid in (mine, alive)] == [False, False]


async def _nobody(_tx: Any, _uuid: str) -> bool:
    return False


class Heir:
    """Takes jobs over, and tells which, with what was asked."""

    def __init__(self, node: Node, *, willing: bool = True) -> None:
        self.began: list[tuple[str, str]] = []
        self._willing = willing
        node.jobs.on_orphan(self.asked)

    def asked(self, job: Job, request: str) -> Callable[[], None] | None:
        return (lambda: self.began.append((job.uuid, request))) if self._willing else None


async def _orphan(node: Node, request: str | None = '{"a":1}', owner: str = "dead") -> str:
    uuid = new_uuid()
    await node.jobs.create(uuid, "x", ACTOR, request)
    node.jobs._open.clear()
    async with node.db.transaction() as tx:
        await update_where(tx, JobModel, {"node_uuid": owner}, JobModel.uuid == uuid)
    return uuid


async def test_what_was_asked_is_kept_sealed_and_only_while_the_job_is_open(node: Node) -> None:
    one, other = new_uuid(), new_uuid()
    for uuid in (one, other):
        await node.jobs.create(uuid, "x", ACTOR, '{"password":"hush"}')
    kept = (await _row(node, one)).body or ""
    assert kept
    assert "hush" not in kept
    with pytest.raises(CloudError):  # nobody reads it as the answer of a job
        node.vault.open(kept, one)
    await node.jobs.finish(one, "{}")
    assert (await _row(node, one)).body is None
    await node.jobs.finish(other, CloudError(INVALID_ARGUMENT, "no"))
    assert (await _row(node, other)).body is None


async def test_a_job_of_a_dead_node_is_taken_over_once(node: Node) -> None:
    uuid, heir = await _orphan(node), Heir(node)
    passes = [node.jobs.settle_orphans(["dead"], _nobody) for _ in range(3)]
    assert await asyncio.gather(*passes) == [[], [], []]
    assert heir.began == [(uuid, '{"a":1}')]
    row = await _row(node, uuid)
    assert (row.node_uuid, row.state) == (node.uuid, "Processing")
    assert row.body, "this node may die too"
    assert node.jobs.is_open(uuid)
    assert (await _job(node, uuid)).actor == ACTOR


@pytest.mark.parametrize("meanwhile", ["taken over", "answered"])
async def test_a_job_that_others_have_settled_meanwhile_is_left_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    uuid, heir = await _orphan(node, owner="alive" if meanwhile == "taken over" else "dead"), Heir(node)

    async def seen_before(_dead: object) -> list[str]:
        return [uuid]

    if meanwhile == "answered":
        await node.jobs.finish(uuid, "{}")
    monkeypatch.setattr(node.jobs, "orphans", seen_before)
    assert await node.jobs.settle_orphans(["dead"], _nobody) == []
    job, row = await _job(node, uuid), await _row(node, uuid)
    assert (heir.began, job.error) == ([], None)
    assert (row.state, row.node_uuid) == (("Processing", "alive") if meanwhile == "taken over" else ("Done", node.uuid))


async def test_a_job_that_a_workflow_answers_is_not_taken_over(node: Node) -> None:
    uuid, heir = await _orphan(node), Heir(node)

    async def answered(_tx: Any, _uuid: str) -> bool:
        return True

    assert await node.jobs.settle_orphans(["dead"], answered) == []
    row = await _row(node, uuid)
    assert (row.node_uuid, row.state, heir.began) == ("dead", "Processing", [])


@pytest.mark.parametrize("why", ["of a former version", "of another key", "not any more", "nobody here"])
async def test_what_cannot_be_taken_over_is_answered_with_an_error(node: Node, why: str) -> None:
    uuid = await _orphan(node, None if why == "of a former version" else "{}")
    heir = None if why == "nobody here" else Heir(node, willing=why != "not any more")
    if why == "of another key":
        async with node.db.transaction() as tx:
            foreign = {"body": node.vault.seal("{}", "another job")}
            await update_where(tx, JobModel, foreign, JobModel.uuid == uuid)
    assert await node.jobs.settle_orphans(["dead"], _nobody) == [uuid]
    job = await _job(node, uuid)
    assert job.error is not None
    assert job.error.code == "SYS.1012"
    assert heir is None or heir.began == []
    assert (await _row(node, uuid)).body is None


@pytest.mark.parametrize("outcome", ["committed", "not committed", "not committed, and another node did it"])
async def test_a_take_over_whose_commit_is_unknown_is_one(
    node: Node, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    uuid, heir, tries = await _orphan(node), Heir(node), 0
    transaction = node.db.transaction
    done = {"state": "Done", "result": "{}", "node_uuid": "alive"}

    @contextlib.asynccontextmanager
    async def lost_at_commit() -> AsyncIterator[AsyncSession]:
        nonlocal tries
        tries += 1
        async with transaction() as tx:
            yield tx
            if tries == 1 and outcome != "committed":
                await tx.rollback()
        if tries == 1:
            if outcome.endswith("did it"):
                async with transaction() as tx:
                    await update_where(tx, JobModel, done, JobModel.uuid == uuid)
            raise CloudError(DATABASE_UNAVAILABLE, "connection lost", ambiguous=True)

    monkeypatch.setattr(node.db, "transaction", lost_at_commit)
    assert await node.jobs.settle_orphans(["dead"], _nobody) == []
    ours = not outcome.endswith("did it")
    assert [one for one, _ in heir.began] == [uuid] * ours
    assert (await _row(node, uuid)).node_uuid == (node.uuid if ours else "alive")


async def test_old_jobs_are_forgotten(node: Node) -> None:
    old, open_one = new_uuid(), new_uuid()
    await node.jobs.create(old, "x")
    await node.jobs.create(open_one, "x")
    await node.jobs.finish(old, "{}")
    await node.jobs.purge()
    assert await node.jobs.get(old) is not None
    await node.settings.set(EXPIRED_PERIOD, "1")
    await asyncio.sleep(1.1)
    await node.jobs.purge()
    assert await node.jobs.get(old) is None
    assert await node.jobs.get(open_one) is not None


@pytest.mark.parametrize(
    ("api", "reply", "body"),
    [
        ("APICreateTestNoteMsg", NoteInventory(uuid="u"), {"inventory": {"uuid": "u"}}),
        ("APICountTestNotesMsg", NoteReply(), {"count": 0}),
        ("APICreateTestNoteMsg", None, {}),
    ],
)
def test_bodies(api: str, reply: Any, body: dict[str, Any]) -> None:
    assert msgspec.json.decode(reply_body(api, reply)) == body


@pytest.mark.parametrize("committed", [True, False])
async def test_a_job_whose_commit_is_unknown_is_looked_up(
    node: Node, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """A connection lost at the commit: what was recorded is accepted, so that somebody works on it."""
    transaction = node.db.transaction

    @contextlib.asynccontextmanager
    async def lost_at_commit() -> AsyncIterator[AsyncSession]:
        async with transaction() as tx:
            yield tx
            if not committed:
                await tx.rollback()
        raise CloudError(DATABASE_UNAVAILABLE, "connection lost", ambiguous=True)

    uuid = new_uuid()
    monkeypatch.setattr(node.db, "transaction", lost_at_commit)
    if committed:
        await node.jobs.create(uuid, "CreateTestNote", ACTOR)
        assert (await _job(node, uuid)).state == "Processing"
    else:
        with pytest.raises(CloudError, match="connection lost"):
            await node.jobs.create(uuid, "CreateTestNote", ACTOR)
        assert await node.jobs.get(uuid) is None
