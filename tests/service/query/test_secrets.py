"""Secret parts of tags are not only masked in answers: an ordinary account cannot search or sort by them either."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from caelum.cloud.identity.api import CreateAccount, ShareResource
from caelum.cloud.query.api import ZQLQuery
from caelum.cloud.tag.api import QuerySystemTag
from caelum.cloud.vm.api import QueryVmInstance
from caelum.kernel.context import SYSTEM, Actor
from caelum.kernel.message import ApiQuery, QueryCondition
from caelum.testing.simcloud import SimulatedCloud, simulated_cloud

SHOWN = "consolePassword::*****"
FIRST, SECOND = "consolePassword::alpha", "consolePassword::omega"


class Shared:
    """Two VMs with console passwords, and a tenant that both are shared with."""

    def __init__(self, world: SimulatedCloud) -> None:
        self.world = world
        self.vms: list[str] = []
        self.tenant = SYSTEM

    async def fill(self) -> None:
        account = await self.world.api(CreateAccount(name="dev", password="x" * 128))
        self.tenant = Actor(account.uuid, account.uuid)
        for name, password in (("web", FIRST), ("db", SECOND)):
            vm = await self.world.create_vm(name, system_tags=[password, f"hostname::{name}"])
            self.vms.append(vm.uuid)
        await self.world.api(ShareResource(resource_uuids=self.vms, account_uuids=[account.uuid]))

    async def found(self, query: type[ApiQuery[Any]], *condition: str, actor: Actor, **more: Any) -> list[Any]:
        conditions = [QueryCondition(*condition)] if condition else []
        reply = await self.world.cloud.api(query(conditions=conditions, **more), actor)
        return list(reply.inventories or [])

    async def zql(self, text: str, actor: Actor) -> list[dict[str, Any]]:
        (result,) = await self.world.cloud.api(ZQLQuery(zql=text), actor)
        return list(result.inventories or [])


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Shared]:
    async with simulated_cloud(tmp_path, hosts=1) as world:
        made = Shared(world)
        await made.fill()
        yield made


@pytest.mark.parametrize(
    ("op", "value"),
    [("like", "consolePassword::a%"), ("=", FIRST), ("in", f"{FIRST},x"), (">=", FIRST), ("not like", "%::o%")],
)
async def test_a_condition_cannot_find_a_secret(shared: Shared, op: str, value: str) -> None:
    """Whatever is asked, both VMs answer alike, though one password is what is asked for."""
    web, db = shared.vms

    async def tags(actor: Actor) -> set[str]:
        found = await shared.found(QuerySystemTag, "tag", op, value, actor=actor)
        zql = await shared.zql(f"query systemtag where tag {op} {_zql_value(op, value)}", actor)
        assert {one.uuid for one in found} == {one["uuid"] for one in zql}
        return {one.resource_uuid for one in found if one.tag.startswith("consolePassword")}

    async def vms(actor: Actor) -> set[str]:
        found = {one.uuid for one in await shared.found(QueryVmInstance, "__systemTag__", op, value, actor=actor)}
        zql = await shared.zql(f"query vminstance where __systemTag__ {op} {_zql_value(op, value)}", actor)
        assert found == {one["uuid"] for one in zql}
        return found

    # The administrator first: what is kept of how a query is answered must not be the tenant's.
    assert await tags(SYSTEM) != await tags(shared.tenant)
    assert await tags(shared.tenant) in (set(), {web, db})
    assert await vms(SYSTEM) in ({web}, {web, db})
    assert await vms(shared.tenant) in (set(), {web, db})


async def test_what_is_shown_is_found(shared: Shared) -> None:
    for query, name in ((QuerySystemTag, "tag"), (QueryVmInstance, "__systemTag__")):
        assert len(await shared.found(query, name, "=", SHOWN, actor=shared.tenant)) == 2
        assert len(await shared.found(query, name, "=", "hostname::web", actor=shared.tenant)) == 1
        assert len(await shared.found(query, name, "=", FIRST, actor=SYSTEM)) == 1


@pytest.mark.parametrize("by_zql", [False, True])
async def test_the_order_tells_nothing(shared: Shared, by_zql: bool) -> None:
    """Secrets sort as if they were one, whichever way: then by UUID."""

    async def order(actor: Actor, direction: str) -> list[str]:
        if by_zql:
            text = f"query systemtag where tag like 'consolePassword%' order by tag {direction}"
            return [one["resourceUuid"] for one in await shared.zql(text, actor)]
        asked = {"sort_by": "tag", "sort_direction": direction}
        found = await shared.found(QuerySystemTag, "tag", "like", "consolePassword%", actor=actor, **asked)
        return [one.resource_uuid for one in found]

    assert await order(SYSTEM, "asc") == shared.vms
    assert await order(SYSTEM, "desc") == shared.vms[::-1]
    up, down = [await order(shared.tenant, one) for one in ("asc", "desc")]
    assert sorted(up) == sorted(shared.vms)
    assert up == down


async def test_who_sorts_by_something_else_is_not_told_more(shared: Shared) -> None:
    found = await shared.found(QuerySystemTag, actor=shared.tenant, sort_by="resourceUuid")
    secret = [one.tag for one in found if one.tag.startswith("consolePassword")]
    assert secret == [SHOWN, SHOWN]
    fields = await shared.found(QuerySystemTag, actor=shared.tenant, fields=["tag"])
    assert {one["tag"] for one in fields if one["tag"].startswith("consolePassword")} == {SHOWN}


def _zql_value(op: str, value: str) -> str:
    quoted = [f"'{one}'" for one in value.split(",")]
    return f"({', '.join(quoted)})" if op == "in" else quoted[0]
