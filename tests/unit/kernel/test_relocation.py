"""Runs that a version with other steps began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from caelum.kernel import context
from caelum.kernel.ids import new_uuid
from caelum.kernel.journal import RUNNING, UNDOING, JournalModel
from caelum.kernel.node import Node
from caelum.kernel.relocation import relocate
from caelum.kernel.workflow import BEGIN, Run, Workflow, db_step, step
from caelum.testing.cloud import EmbeddedCloud

DONE: list[str] = []


class MoveContext(msgspec.Struct, kw_only=True):
    """Nothing but what it is about."""

    uuid: str = "m"


class MoveFlow(Workflow[MoveContext, None]):
    """Four steps; of the first and the second there is something to take back."""

    name = "test.move"
    rehearsal = "test_move"

    def subject(self, ctx: MoveContext) -> str:
        return ctx.uuid

    @step()
    async def pack(self, run: Run[MoveContext]) -> None:
        DONE.append("pack")

    @pack.undo
    async def unpack(self, run: Run[MoveContext]) -> None:
        DONE.append("unpack")

    @db_step
    async def note(self, tx: Any, run: Run[MoveContext]) -> None:
        DONE.append("note")

    @note.undo
    async def strike(self, tx: Any, run: Run[MoveContext]) -> None:
        DONE.append("strike")

    @step()
    async def carry(self, run: Run[MoveContext]) -> None:
        DONE.append("carry")

    @carry.undo
    async def carry_back(self, run: Run[MoveContext]) -> None:
        DONE.append("carry_back")

    @step(no_undo="it may stay open")
    async def open(self, run: Run[MoveContext]) -> None:
        DONE.append("open")


class CertainFlow(MoveFlow):
    """The same, but nothing is taken back."""

    name = "test.move-for-good"
    pivot = BEGIN


def a_run(steps: str | None, position: int, state: str = RUNNING, skipped: tuple[int, ...] = ()) -> JournalModel:
    """A run as another version left it."""
    return JournalModel(
        uuid=new_uuid(), name="test.move", subject="m", owner="dead", attempt=1, state=state, steps=steps,
        position=position, skipped=list(skipped), ctx="{}", actor=msgspec.to_builtins(context.SYSTEM),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "position", "state"),
    [
        (None, 2, RUNNING),
        ("pack,note,carry,open", 2, RUNNING),
        ("pack,note,carry", 2, RUNNING),
        ("pack,note,carry,close", 2, RUNNING),
        ("pack,note,carry", 3, RUNNING),
        ("pack,note,lift", 2, UNDOING),
    ],
)
def test_what_agrees_so_far_goes_on(steps: str | None, position: int, state: str) -> None:
    row = a_run(steps, position, state)
    relocate(MoveFlow, row)
    assert (row.position, row.state, row.skipped, row.error) == (position, state, [], None)
    assert row.steps == "pack,note,carry,open"


@pytest.mark.parametrize(
    ("steps", "position", "skipped", "undone"),
    [
        ("pack,note,lift", 2, (), ["note", "pack"]),  # what may have begun is not known here
        ("pack,carry,note", 1, (), ["carry", "pack"]),  # carry may have begun
        ("carry,note", 1, (), ["carry"]),  # note had not: it commits with its progress
        ("carry,note,pack,shut", 3, (1,), ["carry", "pack"]),
        ("wrap", 0, (), []),
    ],
)
def test_what_differs_is_undone_by_its_names(
    steps: str, position: int, skipped: tuple[int, ...], undone: list[str]
) -> None:
    row = a_run(steps, position, skipped=skipped)
    relocate(MoveFlow, row)
    names = [one.name for one in MoveFlow.steps]
    assert row.state == UNDOING
    assert row.position == len(names)
    assert sorted(name for index, name in enumerate(names) if index not in row.skipped) == sorted(undone)
    error = row.cloud_error()
    assert error is not None
    assert error.code == "SYS.1012"


def test_an_undoing_goes_on_with_what_is_left_of_it() -> None:
    row = a_run("carry,pack", 1, UNDOING)
    relocate(MoveFlow, row)
    assert (row.state, row.position, row.skipped, row.error) == (UNDOING, 4, [0, 1, 3], None)


def test_what_cannot_be_taken_back_is_done_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    row = a_run("wrap,pack,carry", 2)
    relocate(CertainFlow, row)
    assert (row.state, row.position, row.skipped) == (RUNNING, 1, [])
    assert "of its steps wrap nothing is known here" in caplog.text


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    DONE.clear()
    async with EmbeddedCloud(tmp_path, []) as cloud:
        yield cloud.node


@pytest.mark.parametrize(
    ("name", "steps", "position", "done", "state"),
    [
        ("test.move", "pack,carry,note", 1, ["carry_back", "unpack"], "Undone"),
        ("test.move", "pack,note,carry", 1, ["note", "carry", "open"], "Done"),
        ("test.move-for-good", "wrap,pack", 1, ["pack", "note", "carry", "open"], "Done"),
    ],
)
async def test_it_ends_whatever_its_steps_were(
    node: Node, name: str, steps: str, position: int, done: list[str], state: str
) -> None:
    row = a_run(steps, position)
    row.name = name
    async with node.db.transaction() as tx:
        tx.add(row)
    assert await node.workflows.recover() == 1
    for _ in range(100):
        async with node.db.read() as session:
            found = (await session.scalars(select(JournalModel).where(JournalModel.name == name))).one()
        if found.state not in (RUNNING, UNDOING):
            break
        await asyncio.sleep(0.02)
    assert (found.state, DONE) == (state, done)
    assert found.steps == "pack,note,carry,open"
