"""The journal of the durable workflows.

Invariant: a row is written only by the node that owns it in the attempt that it knows: whoever took a workflow over
raised the attempt, and from then on the former owner's writes fail with `StaleAttempt`, together with everything else
in their transaction. Who turns it back raises it too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import msgspec
from sqlalchemy import Index, Select, String, Table, Text, bindparam, delete, func, or_, select, update
from sqlalchemy import insert as insert_into
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import context
from caelum.kernel.database import Resource, on_sqlite, update_where
from caelum.kernel.errors import CANCELED, CloudError, ErrorCode, to_wire
from caelum.kernel.prepared import Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncSession

RUNNING, UNDOING, DONE, UNDONE = "Running", "Undoing", "Done", "Undone"
LIVE = (RUNNING, UNDOING)


class StaleAttempt(Exception):  # noqa: N818 - says what it is
    """Another node has taken this workflow over."""


class JournalModel(Resource):
    """A run of a workflow.

    `position` counts the steps that are done while Running, and those that are still to be undone while Undoing.
    `steps` are their names, in the version that wrote the row. `parent` is the key of the step in whose call chain this
    run was started, `identity` what the step asked for.
    """

    __tablename__ = "workflow_journal"
    __table_args__ = (
        Index("ix_workflow_journal_state", "state", "owner"),
        Index("ix_workflow_journal_parent", "parent"),
        Index("ix_workflow_journal_job", "job_uuid"),
    )

    name: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    queue: Mapped[str | None] = mapped_column(String(255))
    parent: Mapped[str | None] = mapped_column(String(512))
    identity: Mapped[str | None] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int] = mapped_column(default=1)
    state: Mapped[str] = mapped_column(String(16), default=RUNNING)
    steps: Mapped[str | None] = mapped_column(Text)
    position: Mapped[int] = mapped_column(default=0)
    skipped: Mapped[list[Any]] = mapped_column(default=list)
    ctx: Mapped[str] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    job_uuid: Mapped[str | None] = mapped_column(String(32))
    answers: Mapped[bool] = mapped_column(default=False)
    api: Mapped[str | None] = mapped_column(String(255))
    actor: Mapped[dict[str, Any]]
    trace: Mapped[str | None] = mapped_column(String(255))

    def cloud_error(self) -> CloudError | None:
        """Why it was undone."""
        return None if self.error is None else decode_error(self.error)

    def task_context(self) -> context.TaskContext:
        """The context in which the workflow goes on after a crash: the original caller's, without a deadline."""
        actor = msgspec.convert(self.actor, context.Actor)
        return context.TaskContext(actor=actor, job_uuid=self.job_uuid, api=self.api, trace=self.trace)


def encode_error(error: BaseException) -> str:
    """An error as it is kept."""
    return msgspec.json.encode(to_wire(error)).decode()


def decode_error(text: str) -> CloudError:
    """A kept error."""
    return CloudError.from_wire(msgspec.json.decode(text, type=ErrorCode))


async def insert(tx: AsyncSession, row: JournalModel) -> None:
    """Write a new run down. `row` stays a copy outside of the session."""
    await _INSERT.run(tx, **{name: getattr(row, name) for name in _BEGINNING})


async def advance(tx: AsyncSession, uuid: str, owner: str, attempt: int, /, **values: Any) -> None:
    """Write progress; `StaleAttempt` when the run is no longer this node's in this attempt, or has ended."""
    key = {"key_uuid": uuid, "key_owner": owner, "key_attempt": attempt}
    if not await _advancing(tuple(values)).run(tx, **values, **key):
        raise StaleAttempt(f"workflow {uuid} is no longer in attempt {attempt} of node {owner}")


def asking_run() -> str | None:
    """The run in whose step, or undo, this is called."""
    fence = context.current().fence
    return None if fence is None else fence.rpartition(":")[0]


async def attempt_of(session: AsyncSession, uuid: str) -> int | None:
    """The attempt that a run is in, or ended in; None when it is forgotten."""
    attempt: int | None = await session.scalar(select(JournalModel.attempt).where(JournalModel.uuid == uuid))
    return attempt


async def refuse_late(tx: AsyncSession) -> None:
    """Refuse, with CANCELED, what a step asked for whose run has turned back, ended or been taken over since.

    For handlers that take what the step's undo gives back, or give back what it takes again. A handler goes on after
    its caller has left, so it may come to its transaction when the undo has looked already, and what it takes then
    would be nobody's. Called in that transaction, it leaves two orders: the run turns back before, and nothing is done;
    or after the commit, and the undo finds what was done. Undos, and callers outside of a step, always may.
    """
    asking = context.current()
    if asking.step_key is None or asking.fence is None or not asking.step_key.endswith("/run"):
        return
    uuid, _, attempt = asking.fence.rpartition(":")
    if not await _GOING_FORWARD.rows(tx, uuid=uuid, attempt=int(attempt)):
        raise CloudError(CANCELED, f"step {asking.step_key} asked for this, and does not want it any more")


async def keep_result(tx: AsyncSession, uuid: str, result: str) -> None:
    """Keep what an ended run answered, as JSON text."""
    await _RESULT.run(tx, key_uuid=uuid, result=result)


_TABLE = cast("Table", JournalModel.__table__)
_HERE = _TABLE.c
_BEGINNING = tuple(one.key for one in _HERE if one.key not in ("create_date", "last_op_date"))
_INSERT = Prepared(insert_into(_TABLE), *_BEGINNING)
_RESULT = Prepared(update(_TABLE).where(_HERE.uuid == bindparam("key_uuid")).values(result=bindparam("result")))
_GOING_FORWARD = Prepared(
    select(_HERE.uuid)
    .where(_HERE.uuid == bindparam("uuid"), _HERE.attempt == bindparam("attempt"), _HERE.state == RUNNING)
    # Shared by all that the run asks for at the same time; who turns the run back waits until they have committed.
    .with_for_update(read=True)
)
_CHILDREN = Prepared(
    select(_HERE.uuid).order_by(_HERE.create_date).where(
        _HERE.parent == bindparam("parent"), _HERE.name == bindparam("name"), _HERE.identity == bindparam("identity")
    )
)  # fmt: skip

_LOCK = Prepared(select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("queue", type_=String), 0))))
_OTHERS_OF_QUEUE = select(_HERE.uuid).where(
    _HERE.queue == bindparam("queue"), _HERE.state.in_(LIVE), _HERE.owner != bindparam("owner")
)
_HOLDERS = Prepared(_OTHERS_OF_QUEUE)
_HOLDERS_BEFORE = Prepared(_OTHERS_OF_QUEUE.where(_HERE.create_date < bindparam("before")))


@lru_cache
def _advancing(columns: tuple[str, ...]) -> Prepared:
    """Made once per set of columns: this statement runs at every boundary of every workflow."""
    mine = (_HERE.uuid == bindparam("key_uuid"), _HERE.owner == bindparam("key_owner"))
    live = or_(*(_HERE.state == state for state in LIVE))
    statement = update(_TABLE).where(*mine, _HERE.attempt == bindparam("key_attempt"), live)
    return Prepared(statement.values({name: bindparam(name) for name in columns}))


async def claim(tx: AsyncSession, row: JournalModel, owner: str) -> bool:
    """Take an unfinished run over: from here on, only `owner` may write it. False when another node was first.

    `row` is a copy outside of the session; where it goes on by this version's steps is written too.
    """
    model, attempt = JournalModel, row.attempt + 1
    free = (model.uuid == row.uuid, model.attempt == row.attempt, model.state.in_(LIVE))
    place = {name: getattr(row, name) for name in ("steps", "position", "skipped", "state", "error")}
    if not await update_where(tx, model, {"owner": owner, "attempt": attempt, **place}, *free):
        return False
    row.owner, row.attempt = owner, attempt
    return True


async def unfinished(session: AsyncSession, owners: Sequence[str] | None) -> list[JournalModel]:
    """The unfinished runs of these nodes (None: of all), oldest first."""
    row = JournalModel
    query = select(row).where(row.state.in_(LIVE)).order_by(row.create_date, row.uuid)
    found = list(await session.scalars(query if owners is None else query.where(row.owner.in_(owners))))
    for one in found:
        session.expunge(one)  # copies: writing each must not make the session load all others again
    return found


async def lock_queue(tx: AsyncSession, queue: str) -> None:
    """Have other nodes that come here with this queue wait for the end of the transaction. SQLite has one node."""
    if not on_sqlite(tx):
        await _LOCK.rows(tx, queue=queue)


async def is_held_elsewhere(tx: AsyncSession, row: JournalModel, before: datetime | None = None) -> bool:
    """Whether a live run of another node has the queue of this one, not counting the runs that `row` is part of.

    Of nodes that ask at once, one is answered after the other's transaction. `before`: only runs begun until then.
    """
    if row.queue is None or on_sqlite(tx):
        return False
    await lock_queue(tx, row.queue)
    if before is None:
        found = await _HOLDERS.rows(tx, queue=row.queue, owner=row.owner)
    else:
        found = await _HOLDERS_BEFORE.rows(tx, queue=row.queue, owner=row.owner, before=before)
    holders, other, parent = {one[0] for one in found}, JournalModel, row.parent
    while holders and parent is not None:
        ancestor = parent.partition("/")[0]
        holders.discard(ancestor)
        parent = await tx.scalar(select(other.parent).where(other.uuid == ancestor))
    return bool(holders)


async def latest_child(session: AsyncSession, parent: str, name: str, identity: str) -> JournalModel | None:
    """The latest run of a workflow that a step has started for the same purpose, in all its repetitions."""
    found = await _CHILDREN.rows(session, parent=parent, name=name, identity=identity)
    return await session.get_one(JournalModel, found[-1][0]) if found else None


async def purge(tx: AsyncSession, until: datetime) -> None:
    """Forget runs that ended before `until`."""
    row = JournalModel
    await tx.execute(delete(row).where(row.state.in_((DONE, UNDONE)), row.last_op_date < until))


async def forget_answers(tx: AsyncSession, jobs: Select[str]) -> None:
    """Forget the ended runs that answered these jobs: who uses the UUID of one again asks for something new."""
    row = JournalModel
    ended = (row.answers.is_(True), row.state.in_((DONE, UNDONE)), row.job_uuid.in_(jobs))
    await tx.execute(delete(row).where(*ended))
