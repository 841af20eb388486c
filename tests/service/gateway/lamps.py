"""Toy operations that have everything an operation can have: lamps that are made, switched and asked for."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

import msgspec
from sqlalchemy import String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.ownership import disown, own
from caelum.kernel import context
from caelum.kernel.database import Resource
from caelum.kernel.errors import CloudError, invalid, not_found
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import (
    ApiMessage,
    ApiQuery,
    CreateMessage,
    DeleteMessage,
    Inventory,
    Param,
    Reply,
    inventory,
    rest,
)
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles, intercepts
from caelum.kernel.tag import save_tags, system_tag
from caelum.kernel.views import view
from caelum.kernel.workflow import Run, Workflow, step

_PACKAGE = "org.zstack.header.lamp"
system_tag("glow::{colour}", "LampVO")
system_tag("vault::{door}", "LampVO", admin_only=True)


@inventory(_PACKAGE, vo="LampVO")
class LampInventory(Inventory, kw_only=True):
    """A lamp."""

    uuid: str
    name: str
    lit: bool
    watts: int | None = None
    create_date: datetime
    last_op_date: datetime


class LampModel(Resource):
    __tablename__ = "toy_lamp"
    __vo__ = "LampVO"
    __inventory__ = LampInventory

    name: Mapped[str] = mapped_column(String(255))
    lit: Mapped[bool] = mapped_column(default=False)
    watts: Mapped[int | None]


class Bulb(msgspec.Struct, rename="camel"):
    """A part of a lamp."""

    socket: str
    max_watts: int = 40


@canonical("/lamp/lit")
class LampLit(CanonicalEvent):
    """A lamp was switched on."""

    lamp_uuid: str


class EchoReply(Reply, kw_only=True):
    """What was sent."""

    heard: dict[str, Any]


@rest("POST /lamps", package=_PACKAGE, tags_for="LampVO")
class CreateLamp(CreateMessage[LampInventory], kw_only=True):
    """Make a lamp."""

    name: Annotated[str, Param(max_length=20, min_length=2, empty_string=False)]
    watts: Annotated[int | None, Param(minimum=1, maximum=100)] = None
    colour: Annotated[str | None, Param(valid_values=("red", "green"))] = None
    serial: Annotated[str | None, Param(regex=r"[A-Z]{2}\d+")] = None
    labels: Annotated[list[str] | None, Param(nonempty=True)] = None
    bulbs: list[Bulb] | None = None
    key: Annotated[str | None, Param(secret=True)] = None


@rest("POST /lamps/built", package=_PACKAGE, route_by="resource_uuid")
class BuildLamp(CreateMessage[LampInventory], kw_only=True):
    """Make a lamp by a workflow, after a while."""

    name: str
    seconds: float = 0
    key: Annotated[str | None, Param(secret=True)] = None


@rest("PUT /lamps/{uuid}/actions", package=_PACKAGE)
class SwitchLamp(ApiMessage[LampInventory], kw_only=True):
    """Switch a lamp on or off."""

    uuid: Annotated[str, Param(resource="LampVO", check_account=True, target=True)]
    lit: bool = True


@rest("PUT /lamps/{uuid}/actions", package=_PACKAGE)
class LookAtLamp(ApiMessage[LampInventory], kw_only=True):
    """Look at a lamp, one's own or a shared one."""

    uuid: Annotated[str, Param(resource="LampVO", check_account=True)]


@rest("PUT /lamps/{uuid}/breaking/actions", package=_PACKAGE)
class BreakLamp(ApiMessage[None], kw_only=True):
    """Fail with something that nobody expected."""

    uuid: str
    seconds: float = 0


@rest("PUT /lamps/{uuid}/waiting/actions", package=_PACKAGE)
class WaitForLamp(ApiMessage[None], kw_only=True):
    """Take a while."""

    uuid: str
    seconds: float = 0


@rest("DELETE /lamps/{uuid}", package=_PACKAGE)
class DeleteLamp(DeleteMessage[None], kw_only=True):
    """Delete a lamp."""

    uuid: Annotated[str, Param(resource="LampVO", success_if_missing=True, check_account=True)]


@rest("GET /lamps/echo", package=_PACKAGE)
class EchoLamp(ApiMessage[EchoReply], kw_only=True):
    """Tell what was sent."""

    names: list[str] | None = None
    options: dict[str, str] | None = None
    watts: Annotated[int | None, Param(maximum=10)] = None
    lit: bool | None = None
    text: str | None = None


@rest("POST /lamps/echo", package=_PACKAGE, sync=True, admin_only=True)
class SayLamp(ApiMessage[EchoReply], kw_only=True):
    """Tell what was sent, to administrators."""

    text: str | None = None
    bulbs: list[Bulb] | None = None


@rest("GET /lamps", also=("/lamps/{uuid}",), package=_PACKAGE)
class QueryLamp(ApiQuery[LampInventory]):
    """Query lamps."""


class BuildContext(msgspec.Struct, kw_only=True):
    uuid: str
    name: str
    account_uuid: str


class BuildLampFlow(Workflow[BuildContext, LampInventory]):
    """Build a lamp."""

    name = "lamp.build"
    rehearsal = "test_lamp"

    def subject(self, ctx: BuildContext) -> str:
        return ctx.uuid

    async def begin(self, tx: AsyncSession, ctx: BuildContext) -> None:
        tx.add(LampModel(uuid=ctx.uuid, name=ctx.name))
        await own(tx, ctx.account_uuid, ctx.uuid, "LampVO")

    async def result(self, ctx: BuildContext) -> LampInventory:
        async with self.node.db.read() as session:
            return view(await session.get(LampModel, ctx.uuid))

    @step(no_undo="nothing is glued")
    async def assemble(self, run: Run[BuildContext]) -> None:
        await run.node.services["gateway"].assembling.wait()  # type: ignore[attr-defined]


class LampService(Service):
    """Owns lamps. While `thinking` or `assembling` is cleared, what builds one waits before or in its workflow."""

    name = "gateway"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.thinking, self.assembling, self.asked = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.thinking.set()
        self.assembling.set()

    @handles(BuildLamp, repeatable=True)
    async def build(self, msg: BuildLamp) -> LampInventory:
        self.asked.set()
        await self.thinking.wait()
        await asyncio.sleep(msg.seconds)
        ctx = BuildContext(
            uuid=msg.resource_uuid or new_uuid(), name=msg.name, account_uuid=context.current().actor.account_uuid
        )
        return await self.node.workflows.run(BuildLampFlow, ctx, answers=True)

    @intercepts(CreateLamp)
    async def no_bombs(self, msg: CreateLamp) -> None:
        if msg.name == "bomb":
            raise invalid("name", "no bombs")

    @handles(CreateLamp)
    async def create(self, msg: CreateLamp) -> LampInventory:
        row = LampModel(uuid=msg.resource_uuid or new_uuid(), name=msg.name, watts=msg.watts)
        async with self.node.db.transaction() as tx:
            tx.add(row)
            await own(tx, context.current().actor.account_uuid, row.uuid, "LampVO")
            await save_tags(tx, msg, row.uuid)
        return view(row)

    @handles(SwitchLamp, queue="lamp-{uuid}")
    async def switch(self, msg: SwitchLamp) -> LampInventory:
        async with self.node.db.transaction() as tx:
            row = await tx.get(LampModel, msg.uuid)
            if row is None:
                raise not_found("LampVO", msg.uuid)
            row.lit = msg.lit
        job = context.current().job_uuid
        if job is not None:
            await self.node.jobs.progress(job, 50, "warming up")
        self.node.bus.publish(LampLit(lamp_uuid=msg.uuid))
        return view(row)

    @handles(LookAtLamp)
    async def look(self, msg: LookAtLamp) -> LampInventory:
        async with self.node.db.read() as session:
            return view(await session.get(LampModel, msg.uuid))

    @handles(BreakLamp)
    async def break_it(self, msg: BreakLamp) -> None:
        raise ValueError("SELECT secret\n[parameters: ('hunter2',)]")

    @handles(WaitForLamp)
    async def wait(self, msg: WaitForLamp) -> None:
        await asyncio.sleep(msg.seconds)

    @handles(DeleteLamp)
    async def delete(self, msg: DeleteLamp) -> None:
        async with self.node.db.transaction() as tx:
            row = await tx.get(LampModel, msg.uuid)
            if row is not None:
                await tx.delete(row)
            await disown(tx, msg.uuid)

    @handles(EchoLamp)
    async def echo(self, msg: EchoLamp) -> EchoReply:
        sent = {"names": msg.names, "options": msg.options, "watts": msg.watts, "lit": msg.lit, "text": msg.text}
        return EchoReply(heard=sent)

    @handles(SayLamp)
    async def say(self, msg: SayLamp) -> EchoReply:
        if msg.text == "fail":
            raise CloudError(invalid("text", "x").kind, "")
        return EchoReply(heard={"text": msg.text, "bulbs": [one.max_watts for one in msg.bulbs or []]})
