"""A small service with durable workflows on an oven that outlives the node, for the kernel's tests.

Baking a cake takes flour (a counted capacity), a tin in the oven (an effect outside of the database), icing (a nested
workflow, by a message to another queue), and heat.
"""

import asyncio
from typing import Any

import msgspec
from sqlalchemy import String, delete
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.database import Base, Resource, update_where
from caelum.kernel.errors import OPERATION_ERROR, CloudError, error_type
from caelum.kernel.message import Inventory, Message, message
from caelum.kernel.service import Service, handles
from caelum.kernel.views import view
from caelum.kernel.workflow import Retry, Run, Workflow, db_step, step

FLOUR = 10
SMOKE = error_type("TEST.1000", "The oven smokes", transient=True)


class CakeInventory(Inventory):
    uuid: str
    name: str
    state: str
    layers: int = 0


class CakeModel(Resource):
    __tablename__ = "test_cake"
    __vo__ = "TestCakeVO"
    __inventory__ = CakeInventory

    name: Mapped[str]
    state: Mapped[str]
    layers: Mapped[int] = mapped_column(default=0)


class FlourModel(Base):
    __tablename__ = "test_flour"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    used: Mapped[int] = mapped_column(default=0)


class Oven:
    """What is outside: it survives the node. `smoke` makes the next effects fail; `slow` makes them last."""

    def __init__(self) -> None:
        self.tins: dict[str, str] = {}
        self.icing: set[str] = set()
        self.begun: list[str] = []
        self.log: list[str] = []
        self.smoke: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.fences: list[str] = []

    async def work(self, what: str) -> None:
        self.begun.append(what)
        await asyncio.sleep(self.slow.get(what, 0))
        self.log.append(what)
        if self.smoke.get(what, 0) > 0:
            self.smoke[what] -= 1
            raise CloudError(SMOKE, f"smoke at {what}")

    async def dump(self) -> Any:
        return {"tins": sorted(self.tins.items()), "icing": sorted(self.icing)}


@message(service="bakery", route_by="uuid")
class BakeCake(Message[CakeInventory], kw_only=True):
    """Bake."""

    uuid: str
    name: str = "sacher"
    flour: int = 3
    ice: bool = True
    burn: bool = False


@message(service="bakery", route_by="uuid")
class IceCake(Message[int], kw_only=True):
    """Ice."""

    uuid: str


class BakeContext(msgspec.Struct, kw_only=True):
    uuid: str
    name: str
    flour: int
    ice: bool
    burn: bool
    tin: str | None = None


class IceContext(msgspec.Struct):
    uuid: str


class IceFlow(Workflow[IceContext, int]):
    """Put icing on a cake."""

    name = "cake.ice"
    rehearsal = "test_ice"

    def subject(self, ctx: IceContext) -> str:
        return ctx.uuid

    def queue(self, ctx: IceContext) -> str:
        return f"icing-{ctx.uuid}"

    async def complete(self, tx: AsyncSession, ctx: IceContext) -> None:
        await update_where(tx, CakeModel, {"layers": CakeModel.layers + 1}, CakeModel.uuid == ctx.uuid)

    async def result(self, ctx: IceContext) -> int:
        async with self.node.db.read() as session:
            return (await session.get_one(CakeModel, ctx.uuid)).layers

    @step()
    async def spread(self, run: Run[IceContext]) -> None:
        oven = oven_of(run.node)
        oven.icing.add(run.ctx.uuid)
        await oven.work("spread")

    @spread.undo
    async def scrape(self, run: Run[IceContext]) -> None:
        oven_of(run.node).icing.discard(run.ctx.uuid)


class BakeFlow(Workflow[BakeContext, CakeInventory]):
    """Bake a cake: nothing -> Baking -> Baked."""

    name = "cake.bake"
    rehearsal = "test_bake"

    def subject(self, ctx: BakeContext) -> str:
        return ctx.uuid

    def queue(self, ctx: BakeContext) -> str:
        return f"cake-{ctx.uuid}"

    async def begin(self, tx: AsyncSession, ctx: BakeContext) -> None:
        tx.add(CakeModel(uuid=ctx.uuid, name=ctx.name, state="Baking"))

    async def complete(self, tx: AsyncSession, ctx: BakeContext) -> None:
        await update_where(tx, CakeModel, {"state": "Baked"}, CakeModel.uuid == ctx.uuid)

    async def abort(self, tx: AsyncSession, ctx: BakeContext, error: CloudError) -> None:
        await tx.execute(delete(CakeModel).where(CakeModel.uuid == ctx.uuid))

    async def result(self, ctx: BakeContext) -> CakeInventory:
        async with self.node.db.read() as session:
            inventory: CakeInventory = view(await session.get_one(CakeModel, ctx.uuid))
            return inventory

    @db_step(progress=20)
    async def take_flour(self, tx: AsyncSession, run: Run[BakeContext]) -> None:
        used = FlourModel.used + run.ctx.flour
        if not await update_where(tx, FlourModel, {"used": used}, FlourModel.name == "wheat", used <= FLOUR):
            raise CloudError(OPERATION_ERROR, f"{run.ctx.flour} of {FLOUR} cups are too much")

    @take_flour.undo
    async def give_flour(self, tx: AsyncSession, run: Run[BakeContext]) -> None:
        await update_where(tx, FlourModel, {"used": FlourModel.used - run.ctx.flour}, FlourModel.name == "wheat")

    @step(progress=50, timeout=5, retry=Retry(times=1, delay=0.01))
    async def fill_tin(self, run: Run[BakeContext]) -> None:
        oven = oven_of(run.node)
        oven.fences.append(run.fence)
        run.ctx.tin = run.uuid_for("tin")
        oven.tins[run.ctx.tin] = run.ctx.uuid
        await oven.work("fill_tin")

    @fill_tin.undo
    async def empty_tin(self, run: Run[BakeContext]) -> None:
        oven = oven_of(run.node)
        await oven.work("empty_tin")
        oven.tins.pop(run.uuid_for("tin"), None)

    @step(skip=lambda ctx: not ctx.ice, timeout=5)
    async def ice(self, run: Run[BakeContext]) -> None:
        await run.bus.call(IceCake(uuid=run.ctx.uuid))

    @ice.undo
    async def unice(self, run: Run[BakeContext]) -> None:
        oven_of(run.node).icing.discard(run.ctx.uuid)

    @step(no_undo="heat does no harm")
    async def heat(self, run: Run[BakeContext]) -> None:
        await oven_of(run.node).work("heat")
        if run.ctx.burn:
            raise CloudError(OPERATION_ERROR, "burnt")


class BakeryService(Service):
    """Bakes."""

    name = "bakery"

    @handles(BakeCake, queue="cake-{uuid}")
    async def bake(self, msg: BakeCake) -> CakeInventory:
        ctx = BakeContext(uuid=msg.uuid, name=msg.name, flour=msg.flour, ice=msg.ice, burn=msg.burn)
        return await self.node.workflows.run(BakeFlow, ctx, answers=True)

    @handles(IceCake, queue="icing-{uuid}")
    async def ice(self, msg: IceCake) -> int:
        return await self.node.workflows.run(IceFlow, IceContext(msg.uuid))

    async def start(self) -> None:
        async with self.node.db.transaction() as tx:
            if await tx.get(FlourModel, "wheat") is None:
                tx.add(FlourModel(name="wheat", used=0))


_ovens: dict[str, Oven] = {}


def oven_of(node: Any) -> Oven:
    """The oven of a node, by its database: a node that restarts finds the same one, and so do all of a cluster."""
    return _ovens.setdefault(node.config.database_url or str(node.config.data_dir), Oven())
