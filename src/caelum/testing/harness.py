"""The crash harness: every durable workflow fails, repeats itself and dies at each of its points, and must still end
with the cloud either as it was or as a success leaves it.

Invariant: a case passes only when no workflow is left unfinished, nothing is in a transitional state, the garbage
collector has nothing left to do, and database and hosts are equal, row by row, to what the outcome promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import delete, select

from caelum.kernel.crashpoints import Plan, ProcessDied
from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.journal import DONE, UNDONE, JournalModel
from caelum.kernel.membership import ManagementNodeModel
from caelum.kernel.memory_bus import MemoryBus
from caelum.kernel.node import Node
from caelum.kernel.postgresql import Limits, make_engine
from caelum.kernel.workflow import Workflow
from caelum.testing.databases import on_postgresql
from caelum.testing.dump import (
    Dump,
    canonical,
    closed_up,
    differences,
    dump_database,
    masked,
    structural_differences,
    transitional,
    unfinished,
    uuids,
)  # fmt: skip
from caelum.testing.rehearsals import Factory, Rehearsal, rehearsals

PATIENCE = 30.0
"""Seconds until an ended trigger must have left everything in order."""
_KILL = 5.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong. Points are named without the workflow's name."""

    name: str
    outcome: str
    errors: tuple[str, ...] = ()
    times: int = 1
    death: str | None = None
    twice: bool = False

    def __str__(self) -> str:
        return self.name


class Failure(AssertionError):  # noqa: N818 - a verdict, not an error of the program
    """A case did not end as promised."""


def cases(cls: type[Workflow[Any, Any]]) -> list[Case]:
    """Everything that the harness does to a workflow."""
    resumed = DONE if cls.resume == "forward" else UNDONE
    certain = cls.certain_from()
    found = [Case(name="success", outcome=DONE), Case(name="each step twice", outcome=DONE, twice=True)]
    for number, step in enumerate(cls.steps):
        outcome = UNDONE if number < certain else DONE
        found += [Case(name=f"{step.name} fails {when} its effect", outcome=outcome, errors=(f"{step.name}/{when}",))
                  for when in ("before", "after")]  # fmt: skip
    if certain > 0:
        found.append(Case(name="each undo twice", outcome=UNDONE, errors=(_last_chance(cls),), twice=True))
    points = ["begin", *(f"{step.name}/{at}" for step in cls.steps for at in ("before", "after", "saved")), "complete"]
    found += [Case(name=f"death at {point}", outcome=resumed, death=point) for point in points]
    found.append(Case(name="death at end", outcome=DONE, death="end"))
    return found + list(_undo_cases(cls))


def _undo_cases(cls: type[Workflow[Any, Any]]) -> Iterable[Case]:
    if cls.certain_from() == 0:
        return
    last = _last_chance(cls)
    undone = [step.name for step in cls.steps[: cls.certain_from()] if step.undo_function is not None]
    points = ["undoing", *(f"{name}/undo-{at}" for name in undone for at in ("before", "after", "saved")), "abort"]
    for point in points:
        yield Case(name=f"undone, death at {point}", outcome=UNDONE, errors=(last,), death=point)
    for name in undone:
        yield Case(name=f"undo of {name} fails once", outcome=UNDONE, errors=(last, f"{name}/undo-after"))
        yield Case(
            name=f"undo of {name} is left to the gc", outcome=UNDONE, errors=(last, f"{name}/undo-after"), times=3
        )


def _last_chance(cls: type[Workflow[Any, Any]]) -> str:
    """The last point at which a failure is still undone."""
    return "complete" if cls.pivot is None else f"{cls.pivot}/after"


class Harness:
    """Rehearses one workflow. A cloud that a case has changed is put back as it was, or else built anew."""

    def __init__(self, cls: type[Workflow[Any, Any]], factory: Factory | None = None) -> None:
        self.flow = cls
        self._factory = factory or rehearsals()[cls.rehearsal]
        self._scene: Rehearsal | None = None
        self._stack = contextlib.AsyncExitStack()
        self._before: Dump = {}
        self._known: frozenset[str] = frozenset()
        self._success: list[str] | None = None
        self._changed = False

    async def __aenter__(self) -> Harness:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._close()

    async def rehearse(self, chosen: Iterable[Case] | None = None) -> int:
        """Run the cases (all by default) and give their number. Raises `Failure` at the first that fails."""
        done = 0
        for case in cases(self.flow) if chosen is None else chosen:
            await self.run(case)
            done += 1
        return done

    async def run(self, case: Case) -> None:
        """Run one case."""
        if self._success is None and case.name != "success":
            await self.run(Case(name="success", outcome=DONE))
        scene = await self._open()
        reached = await self._play(scene, case)
        try:
            if reached:
                await self._judge(scene, case)
        except BaseException:
            await self._close()
            raise
        if case.outcome == DONE or not reached or self._changed:
            self._changed = False
            await self._reset(scene)

    async def _play(self, scene: Rehearsal, case: Case) -> bool:
        """Trigger the operation under the case's plan; False when its point does not exist (a skipped step)."""
        node, prefix = scene.cloud.node, f"{self.flow.name}/"
        error = CloudError(OPERATION_ERROR, f"rehearsed failure: {case.name}")
        plan = Plan(
            errors={prefix + point: error for point in case.errors}, times=case.times, twice=case.twice,
            death=case.death and prefix + case.death, on_death=lambda: node.db.sever(ProcessDied(case.name)),
        )  # fmt: skip
        node.workflows.crashpoints.plan = plan
        await self._trigger(scene, case, plan)
        if plan.dead:
            await kill(node)
            await scene.cloud.reboot()
        else:
            node.workflows.crashpoints.plan = None
        planned = {prefix + point for point in (*case.errors, case.death) if point is not None}
        return planned <= set(plan.visited)

    async def _trigger(self, scene: Rehearsal, case: Case, plan: Plan) -> None:
        # In its own task: a caller that the dead node will never answer must not keep the harness waiting.
        task = asyncio.ensure_future(_call(scene))
        deadline = time.monotonic() + PATIENCE
        while not task.done() and not plan.dead:
            if time.monotonic() > deadline:
                task.cancel()
                raise Failure(f"{self.flow.name}, {case}: the trigger does not end within {PATIENCE:.0f} s")
            await asyncio.wait([task], timeout=0.02)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if not plan.dead and error is not None and not (case.errors and isinstance(error, CloudError)):
            raise Failure(f"{self.flow.name}, {case}: the trigger failed with {error!r}") from error

    async def _judge(self, scene: Rehearsal, case: Case) -> None:
        await self._settle(scene.cloud.node, case)
        after = await self._steady_dump(scene)
        state = await self._last_state(scene.cloud.node)
        if state != case.outcome:
            raise Failure(f"{self.flow.name}, {case}: the workflow is {state}, not {case.outcome}")
        if bad := transitional(after):
            raise Failure(f"{self.flow.name}, {case}: " + "; ".join(bad))
        if case.outcome == UNDONE:
            found = differences(self._before, after)
            if found and self.flow.pivot is not None and self._success == self._canonical(after):
                found = []  # the pivot had happened, and its undo found that out
                self._changed = True
        elif self._success is None:
            self._success, found = self._canonical(after), []
        else:
            lines = self._canonical(after)
            found = [] if self._success == lines else structural_differences(self._success, lines)
        if found:
            raise Failure(f"{self.flow.name}, {case}: not as it should be\n" + "\n".join(found))

    def _canonical(self, found: Dump) -> list[str]:
        return canonical(found, self._known)

    async def _steady_dump(self, scene: Rehearsal) -> Dump:
        """A dump in which nothing is under way, or the last one before patience ends: hosts are connected anew after
        a death, which is no workflow.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            found = await _dump(scene)
            if not transitional(found) or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)

    async def _settle(self, node: Node, case: Case) -> None:
        """Wait until every workflow has ended and the garbage collector has done everything."""
        deadline = time.monotonic() + PATIENCE
        while True:
            left = [*await unfinished(node.db), *await node.gc.open_jobs()]
            if not left:
                return
            if time.monotonic() > deadline:
                raise Failure(f"{self.flow.name}, {case}: after {PATIENCE:.0f} s there is still " + "; ".join(left))
            await node.gc.trigger_all()
            await asyncio.sleep(0.02)

    async def _last_state(self, node: Node) -> str | None:
        row = JournalModel
        query = select(row.state).where(row.name == self.flow.name).order_by(row.create_date.desc()).limit(1)
        async with node.db.read() as session:
            return await session.scalar(query)

    async def _open(self) -> Rehearsal:
        if self._scene is None:
            self._scene = await self._stack.enter_async_context(self._factory())
            self._before = await self._steady_dump(self._scene)
            if await self._scene.cloud.save():
                self._known = uuids(self._before)
        return self._scene

    async def _reset(self, scene: Rehearsal) -> None:
        """Have the cloud as it was before the case. Its UUIDs are the same then, and can be compared as they are."""
        if not await scene.cloud.restore():
            await self._close()
            return
        if found := differences(self._before, await self._steady_dump(scene)):
            raise Failure(f"{self.flow.name}: a restart changes the cloud\n" + "\n".join(found))

    async def _close(self) -> None:
        self._scene = None
        await self._stack.aclose()


async def kill(node: Node) -> None:
    """Let nothing of a node go on, as when its process is killed: nothing is written, undone or answered.

    One that is alone is also evicted: the others of its cluster would do it, after a while.
    """
    node.db.sever(ProcessDied("killed"))
    node.workflows.crashpoints.plan = node.workflows.crashpoints.plan or Plan()
    node.workflows.crashpoints.plan.dead = True
    node.ready = False
    endings = (
        node.membership.abandon, node.timers.stop, node.workflows.stop, node.gc.stop, node.workqueue.stop,
        lambda: node.bus.drain(0), node.bus.stop, node.events.close, node.metrics.loop.stop, node.db.close,
    )  # fmt: skip
    for end in endings:
        with contextlib.suppress(Exception, ProcessDied):
            await asyncio.wait_for(end(), _KILL)
    if node.membership.clustered and isinstance(node.bus, MemoryBus):
        await asyncio.wait_for(_evict(node), PATIENCE)


async def _evict(node: Node) -> None:
    """Remove a dead node's row: as long as the next one sees it, some messages belong to the dead, and none comes."""
    engine = make_engine(node.db.url, Limits(pool=1, extra=0))
    try:
        async with engine.begin() as connection:
            await connection.execute(delete(ManagementNodeModel).where(ManagementNodeModel.uuid == node.uuid))
    finally:
        await engine.dispose()


async def _call(scene: Rehearsal) -> Any:
    return await scene.trigger()


async def _dump(scene: Rehearsal) -> Dump:
    tables = await dump_database(scene.cloud.node.db, scene.ignore)
    found: Dump = masked({**tables, "hosts": await scene.dump_hosts()}, scene.masks)
    return closed_up(found) if on_postgresql() else found
