"""Every declared query runs, for everybody, with every field, sort and join that its error message offers."""

from __future__ import annotations

from pathlib import Path

from caelum.cloud.query.schema import target
from caelum.kernel.context import SYSTEM, Actor
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition, apis, inventory_class, reply_type
from caelum.testing.cloud import EmbeddedCloud


async def test_every_query_of_every_service(tmp_path: Path) -> None:
    account = new_uuid()
    problems = []
    async with EmbeddedCloud(tmp_path) as cloud:
        assert cloud.node.broken == []
        queries = [meta for meta in apis() if meta.kind == "query" and meta.cls.__module__.startswith("caelum.")]
        assert len(queries) > 20
        for meta in queries:
            found = target(reply_type(meta.cls))
            asked = [meta.cls(reply_with_count=True)]
            asked += [
                meta.cls(conditions=[QueryCondition(name, "is not null")]) for name in (*found.columns, *found.lists)
            ]
            asked += [meta.cls(sort_by=name, sort_direction="desc") for name in found.columns]
            asked += [meta.cls(conditions=[QueryCondition(f"{name}.uuid", "=", "x")]) for name in _joins(found)]
            if "uuid" in found.columns:
                asked += [meta.cls(conditions=[QueryCondition("__systemTag__", "!~=", "a%")])]
            for msg in asked:
                for actor in (SYSTEM, Actor(account, account)):
                    try:
                        await cloud.api(msg, actor)
                    except CloudError as error:
                        problems.append(f"{meta.name} {msg.conditions} {msg.sort_by}: {error}")
    structured = [one for one in problems if "holds a structure" not in one]
    assert structured == []


def _joins(found: object) -> list[str]:
    from caelum.cloud.query.schema import Target, _is_loaded

    assert isinstance(found, Target)
    return [
        name
        for name, one in found.expands.items()
        if _is_loaded(one.inventory) and "uuid" in target(inventory_class(one.inventory)).columns
    ]
