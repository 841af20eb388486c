"""What is read as plain rows is what objects would show, also in its wire form."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from caelum.cloud.query.rows import sheet
from caelum.kernel import resources
from caelum.kernel.prepared import Prepared
from caelum.kernel.views import to_builtins, views
from caelum.testing.simcloud import simulated_cloud


async def test_rows_and_objects_show_the_same(tmp_path: Path) -> None:
    async with simulated_cloud(tmp_path) as world:
        await world.create_vm("vm", data_disk_sizes=[1 << 20])
        seen = set()
        for model in resources.types().values():
            as_rows = sheet(model)
            if as_rows is None:
                continue
            async with world.cloud.node.db.read() as session:
                objects = views(await session.scalars(select(model).order_by(*model.__mapper__.primary_key)))
                ordered = Prepared(select(*as_rows.columns).order_by(*model.__mapper__.primary_key))
                found = await as_rows.read(session, ordered, {})
                assert found == objects, model
                assert to_builtins(found) == to_builtins(objects), model
            seen |= {model.__vo__} if objects else set()
    assert {"VmInstanceVO", "VmNicVO", "VolumeVO", "ImageVO", "ZoneVO", "UsedIpVO"} <= seen
