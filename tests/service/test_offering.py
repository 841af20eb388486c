"""Instance offerings and disk offerings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from caelum.cloud.identity.service import IdentityService
from caelum.cloud.offering.api import (
    ChangeDiskOfferingState,
    ChangeInstanceOfferingState,
    CreateDiskOffering,
    CreateInstanceOffering,
    DeleteDiskOffering,
    DeleteInstanceOffering,
    QueryDiskOffering,
    QueryInstanceOffering,
    UpdateDiskOffering,
    UpdateInstanceOffering,
)
from caelum.cloud.offering.messages import GetDiskOffering, GetInstanceOffering
from caelum.cloud.offering.service import OfferingService
from caelum.cloud.query.service import QueryService
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition
from caelum.testing.cloud import EmbeddedCloud

GIB = 1 << 30


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    async with EmbeddedCloud(tmp_path, services=[IdentityService, QueryService, OfferingService]) as running:
        yield running


async def found(cloud: EmbeddedCloud, query: type[Any], *conditions: QueryCondition) -> list[Any]:
    return (await cloud.api(query(conditions=list(conditions)))).inventories or []


async def test_an_instance_offering_lives(cloud: EmbeddedCloud) -> None:
    uuid = new_uuid()
    made = await cloud.api(
        CreateInstanceOffering(name="small", cpu_num=2, memory_size=GIB, resource_uuid=uuid, user_tags=["cheap"])
    )
    assert (made.uuid, made.cpu_num, made.memory_size, made.state, made.type) == (uuid, 2, GIB, "Enabled", "UserVm")
    assert made.allocator_strategy == "LeastVmPreferredHostAllocatorStrategy"
    changed = await cloud.api(UpdateInstanceOffering(uuid=uuid, name="tiny"))
    assert (changed.name, changed.cpu_num) == ("tiny", 2)
    assert (await cloud.api(ChangeInstanceOfferingState(uuid=uuid, state_event="disable"))).state == "Disabled"
    assert [
        one.uuid for one in await found(cloud, QueryInstanceOffering, QueryCondition("__userTag__", "=", "cheap"))
    ] == [uuid]
    await cloud.api(DeleteInstanceOffering(uuid=uuid))
    assert await found(cloud, QueryInstanceOffering) == []
    with pytest.raises(CloudError) as gone:
        await cloud.node.bus.call(GetInstanceOffering(uuid))
    assert gone.value.kind is RESOURCE_NOT_FOUND


async def test_a_disk_offering_lives(cloud: EmbeddedCloud) -> None:
    made = await cloud.api(CreateDiskOffering(name="disk", disk_size=GIB, sort_key=3))
    assert (made.disk_size, made.sort_key, made.state) == (GIB, 3, "Enabled")
    assert (await cloud.api(UpdateDiskOffering(uuid=made.uuid, description="for data"))).description == "for data"
    query = QueryCondition("diskSize", ">", "1000")
    assert [one.uuid for one in await found(cloud, QueryDiskOffering, query)] == [made.uuid]
    await cloud.api(DeleteDiskOffering(uuid=made.uuid))
    assert await found(cloud, QueryDiskOffering) == []


async def test_a_disabled_offering_cannot_be_used(cloud: EmbeddedCloud) -> None:
    made = await cloud.api(CreateDiskOffering(name="disk", disk_size=GIB))
    await cloud.api(ChangeDiskOfferingState(uuid=made.uuid, state_event="disable"))
    assert (await cloud.node.bus.call(GetDiskOffering(made.uuid))).state == "Disabled"
    with pytest.raises(CloudError, match="Disabled"):
        await cloud.node.bus.call(GetDiskOffering(made.uuid, enabled=True))
    await cloud.api(ChangeDiskOfferingState(uuid=made.uuid, state_event="enable"))
    assert (await cloud.node.bus.call(GetDiskOffering(made.uuid, enabled=True))).disk_size == GIB
