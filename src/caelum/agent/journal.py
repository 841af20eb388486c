"""The journal of commands: what was accepted, what came out, and whether the server knows.

Invariant: a task UUID is run at most once, ever. A repeated one finds its first run; one that the agent's death cut
short is answered INTERRUPTED. A workflow's attempt that was overtaken by a higher one gets nothing done here any more.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import Literal

import msgspec

from caelum.agent.protocol import INTERRUPTED, INVALID, STALE_ATTEMPT, AgentError, TaskAnswer, TaskStatus
from caelum.agent.registry import AgentFailure
from caelum.agent.store import Store

log = logging.getLogger(__name__)

MAX_TASKS = 20_000
"""Settled tasks that are kept to recognise duplicates."""
MAX_FENCES = 20_000
"""Workflows whose highest attempt is remembered."""
DELIVERY_HOURS = 24
"""After this long an answer that nobody took is given up."""
PRUNE_EVERY = 500
"""Finished tasks between two prunings."""

_encode = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(TaskAnswer).decode


class Fence(msgspec.Struct, frozen=True):
    """Which attempt of which workflow a command belongs to."""

    workflow: str
    attempt: int

    @classmethod
    def parse(cls, header: str | None) -> Fence | None:
        """From the header `attempt`: "<workflow uuid>:<n>"."""
        if not header:
            return None
        workflow, _, number = header.rpartition(":")
        if not workflow or not number.isdecimal():
            raise AgentFailure(INVALID, f"header attempt[{header}] is not <workflow uuid>:<number>")
        return cls(workflow, int(number))


class Undelivered(msgspec.Struct, frozen=True):
    """An answer that the server has not acknowledged."""

    task_uuid: str
    callback: str
    answer: TaskAnswer


Verdict = Literal["new", "running", "done"]


class Journal:
    """Tasks in the agent's store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._finished = 0

    async def open(self) -> int:
        """Answer INTERRUPTED for every task that the former agent did not end; returns how many."""
        return await self._store.call(_interrupt)

    async def accept(self, task_uuid: str, path: str, callback: str | None, fence: Fence | None) -> Verdict:
        """Take a task on, or say what became of it. Raises STALE_ATTEMPT."""
        return await self._store.call(lambda db: _accept(db, task_uuid, path, callback, fence))

    async def check(self, fence: Fence | None) -> None:
        """Raise STALE_ATTEMPT when a higher attempt was seen: asked again when a task gets its lock."""
        if fence is not None:
            await self._store.call(lambda db: _check(db, fence))

    async def finish(self, task_uuid: str, answer: TaskAnswer) -> Undelivered | None:
        """Record an answer; returns what is to be delivered, or None without a callback. Raises sqlite3.Error."""
        waiting = await self._store.call(lambda db: _finish(db, task_uuid, answer))
        self._finished += 1
        if self._finished % PRUNE_EVERY == 0:
            try:
                await self.prune()
            except sqlite3.Error:
                log.exception("the journal cannot be pruned")
        return waiting

    async def settle(self, task_uuid: str) -> None:
        """The server knows the answer."""
        await self._store.call(lambda db: db.execute("UPDATE task SET settled = 1 WHERE uuid = ?", (task_uuid,)))

    async def status(self, task_uuid: str) -> TaskStatus:
        """What is known of a task."""
        return await self._store.call(lambda db: _status(db, task_uuid))

    async def undelivered(self, task_uuid: str | None = None) -> list[Undelivered]:
        """Answers to deliver: of one task, or all of them at start."""
        return await self._store.call(lambda db: _undelivered(db, task_uuid))

    async def prune(self) -> None:
        """Keep the journal bounded."""
        await self._store.call(_prune)


def _interrupt(db: sqlite3.Connection) -> int:
    error = AgentError(
        code=INTERRUPTED,
        details="the agent ended while it ran this command; repeat it under a new task UUID to settle it",
        transient=True,
    )
    return db.execute(
        "UPDATE task SET done = ?, answer = ?, settled = callback IS NULL WHERE done IS NULL",
        (time.time(), _encode(TaskAnswer(error=error))),
    ).rowcount


def _accept(db: sqlite3.Connection, task: str, path: str, callback: str | None, fence: Fence | None) -> Verdict:
    row = db.execute("SELECT path, done FROM task WHERE uuid = ?", (task,)).fetchone()
    if row is None:
        if fence is not None:
            _check(db, fence)
            _remember(db, fence)
        db.execute(
            "INSERT INTO task (uuid, path, callback, accepted) VALUES (?, ?, ?, ?)", (task, path, callback, time.time())
        )
        return "new"
    if row[0] != path:
        raise AgentFailure(INVALID, f"task {task} was {row[0]} before, now it is {path}")
    if callback:
        db.execute("UPDATE task SET callback = ?, settled = 0 WHERE uuid = ?", (callback, task))
    return "running" if row[1] is None else "done"


def _check(db: sqlite3.Connection, fence: Fence) -> None:
    row = db.execute("SELECT attempt FROM fence WHERE workflow = ?", (fence.workflow,)).fetchone()
    if row is not None and row[0] > fence.attempt:
        raise AgentFailure(
            STALE_ATTEMPT,
            f"attempt {fence.attempt} of workflow {fence.workflow} was overtaken by attempt {row[0]}",
            attempt=fence.attempt,
            newest=row[0],
        )


def _remember(db: sqlite3.Connection, fence: Fence) -> None:
    db.execute(
        "INSERT INTO fence (workflow, attempt, seen) VALUES (?, ?, ?) "
        "ON CONFLICT (workflow) DO UPDATE SET attempt = excluded.attempt, seen = excluded.seen",
        (fence.workflow, fence.attempt, time.time()),
    )


def _finish(db: sqlite3.Connection, task: str, answer: TaskAnswer) -> Undelivered | None:
    db.execute(
        "UPDATE task SET done = ?, answer = ?, settled = callback IS NULL WHERE uuid = ? AND done IS NULL",
        (time.time(), _encode(answer), task),
    )
    row = db.execute("SELECT callback FROM task WHERE uuid = ?", (task,)).fetchone()
    return Undelivered(task, row[0], answer) if row and row[0] else None


def _status(db: sqlite3.Connection, task: str) -> TaskStatus:
    row = db.execute("SELECT done, answer FROM task WHERE uuid = ?", (task,)).fetchone()
    if row is None:
        return TaskStatus(state="Unknown")
    if row[0] is None:
        return TaskStatus(state="Running")
    return TaskStatus(state="Done", answer=_decode_answer(row[1]))


def _undelivered(db: sqlite3.Connection, task: str | None) -> list[Undelivered]:
    rows = db.execute(
        "SELECT uuid, callback, answer FROM task WHERE settled = 0 AND done IS NOT NULL AND callback IS NOT NULL "
        "AND (? IS NULL OR uuid = ?) ORDER BY done",
        (task, task),
    )
    return [Undelivered(uuid, callback, _decode_answer(answer)) for uuid, callback, answer in rows]


def _prune(db: sqlite3.Connection) -> None:
    oldest = time.time() - DELIVERY_HOURS * 3600
    db.execute("UPDATE task SET settled = 1 WHERE settled = 0 AND done < ?", (oldest,))
    db.execute(
        "DELETE FROM task WHERE uuid IN "
        "(SELECT uuid FROM task WHERE settled = 1 AND done IS NOT NULL ORDER BY done DESC LIMIT -1 OFFSET ?)",
        (MAX_TASKS,),
    )
    db.execute(
        "DELETE FROM fence WHERE workflow IN (SELECT workflow FROM fence ORDER BY seen DESC LIMIT -1 OFFSET ?)",
        (MAX_FENCES,),
    )
