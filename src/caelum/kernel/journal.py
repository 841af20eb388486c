"""The journal of the durable workflows.

Invariant: a row is written only by the node that owns it in the attempt that it knows: whoever took a workflow over
raised the attempt, and from then on the former owner's writes fail with `StaleAttempt`, together with everything else
in their transaction.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import msgspec
from sqlalchemy import CursorResult, Index, String, Table, Text, Update, bindparam, delete, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import context
from caelum.kernel.database import Resource, update_where
from caelum.kernel.errors import CloudError, ErrorCode, to_wire

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
    `parent` is the key of the step in whose call chain this run was started, `identity` what the step asked for.
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


async def advance(tx: AsyncSession, uuid: str, owner: str, attempt: int, **values: Any) -> None:
    """Write progress; `StaleAttempt` when the run is no longer this node's in this attempt, or has ended."""
    key = {"key_uuid": uuid, "key_owner": owner, "key_attempt": attempt}
    result = await tx.execute(_statement(tuple(values)), {**values, **key})
    if not cast("CursorResult[Any]", result).rowcount:
        raise StaleAttempt(f"workflow {uuid} is no longer in attempt {attempt} of node {owner}")


@lru_cache
def _statement(columns: tuple[str, ...]) -> Update:
    """Made once per set of columns: this statement runs at every boundary of every workflow."""
    table = cast("Table", JournalModel.__table__)
    here = table.c
    return (
        update(table)
        .where(here.uuid == bindparam("key_uuid"), here.owner == bindparam("key_owner"))
        .where(here.attempt == bindparam("key_attempt"), here.state.in_(LIVE))
        .values({name: bindparam(name) for name in columns})
    )


async def claim(tx: AsyncSession, row: JournalModel, owner: str) -> bool:
    """Take an unfinished run over: from here on, only `owner` may write it. False when another node was first.

    `row` is a copy outside of the session.
    """
    model, attempt = JournalModel, row.attempt + 1
    free = (model.uuid == row.uuid, model.attempt == row.attempt, model.state.in_(LIVE))
    if not await update_where(tx, model, {"owner": owner, "attempt": attempt}, *free):
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


async def is_held_elsewhere(tx: AsyncSession, row: JournalModel, before: datetime | None = None) -> bool:
    """Whether a live run of another node has the queue of this one, not counting the runs that `row` is part of.

    Of nodes that ask at once, one is answered after the other's transaction. `before`: only runs begun until then.
    """
    if row.queue is None or tx.get_bind().dialect.name == "sqlite":
        return False
    await tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(row.queue, 0))))
    other = JournalModel
    query = select(other.uuid).where(other.queue == row.queue, other.state.in_(LIVE), other.owner != row.owner)
    if before is not None:
        query = query.where(other.create_date < before)
    holders = set(await tx.scalars(query))
    parent = row.parent
    while holders and parent is not None:
        ancestor = parent.partition("/")[0]
        holders.discard(ancestor)
        parent = await tx.scalar(select(other.parent).where(other.uuid == ancestor))
    return bool(holders)


async def children(session: AsyncSession, parent: str, name: str, identity: str) -> list[JournalModel]:
    """The runs of a workflow that a step has started for the same purpose, in all its repetitions."""
    row = JournalModel
    query = select(row).where(row.parent == parent, row.name == name, row.identity == identity)
    return list(await session.scalars(query.order_by(row.create_date)))


async def purge(tx: AsyncSession, until: datetime) -> None:
    """Forget runs that ended before `until`."""
    row = JournalModel
    await tx.execute(delete(row).where(row.state.in_((DONE, UNDONE)), row.last_op_date < until))
