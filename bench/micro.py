"""Small parts alone, in one process: the bus, the ring, a queue, a durable workflow, the codec, the query compiler."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
from results import Row
from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.query.compile import Found, compile_query
from caelum.cloud.vm.api import CreateVmInstance, QueryVmInstance
from caelum.gateway.reading import from_body
from caelum.kernel.context import Actor
from caelum.kernel.database import Database
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import JobModel
from caelum.kernel.message import Message, QueryCondition, message
from caelum.kernel.prepared import Prepared
from caelum.kernel.ring import Ring
from caelum.kernel.service import Service, handles
from caelum.kernel.workflow import Run, Workflow, db_step
from caelum.testing.cloud import EmbeddedCloud

_SCENARIO = "Parts alone"


@message()
class Ping(Message[int]):
    """Asks for its own number."""

    number: int


class EchoService(Service):
    """Answers at once."""

    name = "echo"

    @handles(Ping)
    async def ping(self, msg: Ping) -> int:
        return msg.number


class Context(msgspec.Struct):
    """A workflow without a subject of its own."""

    uuid: str
    done: int = 0


class FiveSteps(Workflow[Context, None]):
    """Five steps that only the journal keeps."""

    name = "bench.five"
    rehearsal = "none"

    def subject(self, ctx: Context) -> str:
        return ctx.uuid

    async def _count(self, run: Run[Context]) -> None:
        run.ctx.done += 1

    @db_step(no_undo="nothing happens")  # type: ignore[untyped-decorator]
    async def one(self, _tx: AsyncSession, run: Run[Context]) -> None:
        await self._count(run)

    @db_step(no_undo="nothing happens")  # type: ignore[untyped-decorator]
    async def two(self, _tx: AsyncSession, run: Run[Context]) -> None:
        await self._count(run)

    @db_step(no_undo="nothing happens")  # type: ignore[untyped-decorator]
    async def three(self, _tx: AsyncSession, run: Run[Context]) -> None:
        await self._count(run)

    @db_step(no_undo="nothing happens")  # type: ignore[untyped-decorator]
    async def four(self, _tx: AsyncSession, run: Run[Context]) -> None:
        await self._count(run)

    @db_step(no_undo="nothing happens")  # type: ignore[untyped-decorator]
    async def five(self, _tx: AsyncSession, run: Run[Context]) -> None:
        await self._count(run)


_JOB = cast("Table", JobModel.__table__)
_READ = Prepared(select(_JOB.c.state).where(_JOB.c.uuid == bindparam("key")))
_WRITE = Prepared(update(_JOB).where(_JOB.c.uuid == bindparam("key")).values(percent=bindparam("percent")))


class Speed(NamedTuple):
    """How often a second, and what of the processor each took, in seconds."""

    rate: float
    processor: float


async def measure() -> list[Row]:
    """All of them."""
    with tempfile.TemporaryDirectory(prefix="caelum-bench-") as directory:
        async with EmbeddedCloud(Path(directory), services=[EchoService]) as cloud:
            node, db = cloud.node, cloud.node.db
            calls = await _rate(lambda: node.bus.call(Ping(1)), 20_000)
            queued = await _rate(lambda: node.queues.run("bench", 1, _nothing), 20_000)
            runs = await _rate(lambda: node.workflows.run(FiveSteps, Context(new_uuid())), 2_000, clients=100)
            reads = await _rate(lambda: _prepared_read(db), 2_000)
            writes = await _rate(lambda: _prepared_write(db), 2_000)
            rows = await _rate(lambda: _object_read(db), 2_000)
    return [
        *_rows("bus-call", calls, 50_000),
        *_rows("queue-task", queued),
        *_rows("workflow-5-steps", runs, 1_000),
        *_rows("database-read-prepared", reads),
        *_rows("database-write-prepared", writes),
        *_rows("database-read-object", rows),
        _row("ring-owner", _ring(), "/s"),
        _row("codec-vm", _codec(), "/s"),
        _row("query-compile", _compiler(), "/s"),
    ]


def _rows(name: str, speed: Speed, goal: float | None = None) -> list[Row]:
    cost = _row(f"{name}-cpu", speed.processor * 1e6, "µs/op")
    return [_row(name, speed.rate, "/s", goal), msgspec.structs.replace(cost, at_least=False)]


def _row(name: str, value: float, unit: str, goal: float | None = None) -> Row:
    return Row(
        id=f"micro/{name}", scenario=_SCENARIO, value=value, unit=unit, goal=goal, at_least=True, simulated=False
    )


async def _rate(call: Callable[[], Awaitable[Any]], count: int, clients: int = 1) -> Speed:
    async def client(times: int) -> None:
        for _ in range(times):
            await call()

    await client(min(100, count // 10))
    begun, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client(count // clients) for _ in range(clients)))
    return Speed(count / (time.perf_counter() - begun), (time.process_time() - used) / count)


async def _prepared_read(db: Database) -> None:
    async with db.read() as session:
        await _READ.rows(session, key="none")


async def _prepared_write(db: Database) -> None:
    async with db.transaction() as tx:
        await _WRITE.run(tx, key="none", percent=1)


async def _object_read(db: Database) -> None:
    async with db.read() as session:
        await session.get(JobModel, "none")


async def _nothing() -> None:
    pass


def _timed(call: Callable[[], Any], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return count / (time.perf_counter() - begun)


def _ring() -> float:
    ring = Ring("a" * 32)
    for number in range(8):
        ring.join(f"{number:032x}")
    uuid = new_uuid()
    return _timed(lambda: ring.owner(uuid), 20_000)


def _codec() -> float:
    meta = CreateVmInstance.__api__
    body = {"params": {"name": "vm", "imageUuid": "a" * 32, "l3NetworkUuids": ["b" * 32]}}
    text = msgspec.json.encode(body)
    return _timed(lambda: from_body(meta, msgspec.json.decode(text)), 5_000)


def _compiler() -> float:
    query = QueryVmInstance(
        conditions=[QueryCondition("vmNics.l3NetworkUuid", "=", "b" * 32), QueryCondition("state", "=", "Running")],
        sort_by="name", limit=100,
    )  # fmt: skip
    found = Found(few=False, rare=None)
    return _timed(lambda: compile_query(query, Actor("c" * 32, "d" * 32)).plan.page(found), 300)
