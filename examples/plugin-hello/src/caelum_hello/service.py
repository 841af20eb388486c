"""Greetings: one row each, gone with their host.

Invariant: a host has at most one greeting of each name.
"""

from __future__ import annotations

from sqlalchemy import delete, select

from caelum.cloud.ownership import disown, own
from caelum.kernel import context
from caelum.kernel.cascade import CascadeExtension
from caelum.kernel.database import unique
from caelum.kernel.errors import error_type, invalid
from caelum.kernel.ids import new_uuid
from caelum.kernel.node import Node
from caelum.kernel.service import Service, handles, intercepts
from caelum.kernel.settings import setting
from caelum.kernel.tag import drop_tags, save_tags
from caelum.kernel.views import view
from caelum_hello.api import GREETING, CreateGreeting, DeleteGreeting, GreetingInventory
from caelum_hello.model import GreetingModel

WORDS = setting("hello", "words", "Hello, {name}!", str, "what a greeting says; {name} is its name")
GREETED_ALREADY = error_type("HELLO.1000", "The host is greeted already", "Choose another name.")


class GreetingCascade(CascadeExtension):
    """Greetings go with their host."""

    resource = GREETING
    parents = ("HostVO",)

    def __init__(self, node: Node) -> None:
        self._node = node

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        query = select(GreetingModel.uuid).where(GreetingModel.host_uuid.in_(uuids))
        async with self._node.db.read() as session:
            return list(await session.scalars(query))

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(GreetingModel).where(GreetingModel.uuid.in_(uuids)))
            for uuid in uuids:
                await drop_tags(tx, uuid)
                await disown(tx, uuid)


class HelloService(Service):
    """Owns greetings."""

    name = "caelum_hello"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.extensions.add(GreetingCascade(node))

    @intercepts(CreateGreeting)
    async def check(self, msg: CreateGreeting) -> None:
        """Runs before the message is routed, and refuses what makes no sense."""
        if not msg.name.strip():
            raise invalid("name", "a greeting needs a name")

    @handles(CreateGreeting)
    async def create(self, msg: CreateGreeting) -> GreetingInventory:
        """Greet a host."""
        text = self.node.settings.get(WORDS).format(name=msg.name)
        row = GreetingModel(uuid=msg.resource_uuid or new_uuid(), name=msg.name, host_uuid=msg.host_uuid, text=text)
        async with self.db.transaction() as tx:
            async with unique(tx, GREETED_ALREADY, f"host[uuid:{msg.host_uuid}] has a greeting[name:{msg.name}]"):
                tx.add(row)
            await own(tx, context.current().actor.account_uuid, row.uuid, GREETING)
            await save_tags(tx, msg, row.uuid)
        made: GreetingInventory = view(row)
        return made

    @handles(DeleteGreeting, queue="greeting-{uuid}")
    async def delete(self, msg: DeleteGreeting) -> None:
        """Take a greeting back, and everything that plugins may hang below it."""
        await self.node.cascade.delete(GREETING, [msg.uuid], mode=msg.delete_mode)
