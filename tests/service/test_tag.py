"""Tags made, changed and deleted by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.service.network_clouds import Site, site

from caelum.cloud.tag.api import (
    CreateSystemTag,
    CreateSystemTags,
    CreateUserTag,
    DeleteTag,
    QuerySystemTag,
    QueryUserTag,
    UpdateSystemTag,
)
from caelum.cloud.zone.api import CreateZone, DeleteZone, QueryZone
from caelum.kernel import context
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition
from caelum.kernel.tag import Tokens, system_tag


def _only_digits(tokens: Tokens) -> None:
    if not tokens["n"].isdigit():
        raise CloudError(INVALID_ARGUMENT, f"{tokens['n']} is no number")


NUMBER = system_tag("test::number::{n}", resource="ZoneVO", validator=_only_digits)
ADMIN = system_tag("test::admin", resource="ZoneVO", admin_only=True)
INHERENT = system_tag("test::inherent::{x}", resource="ZoneVO", inherent=True)
SECRET = system_tag("test::secret::{word}", resource="ZoneVO", sensitive=True)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        yield found


async def system(here: Site, tag: str, **fields: str) -> str:
    values = {"resource_type": "ZoneVO", "resource_uuid": here.zone.uuid, "tag": tag, **fields}
    return (await here.api(CreateSystemTag(**values))).uuid


async def texts(here: Site) -> list[str]:
    query = QuerySystemTag(conditions=[QueryCondition("resourceUuid", "=", here.zone.uuid)])
    return sorted(one.tag for one in (await here.api(query)).inventories or [])


async def test_a_user_tag_has_its_fields_and_is_there_once(here: Site) -> None:
    request = CreateUserTag(resource_type="ZoneVO", resource_uuid=here.zone.uuid, tag="web")
    made = await here.api(request)
    assert (made.resource_uuid, made.resource_type, made.tag, made.type) == (here.zone.uuid, "ZoneVO", "web", "User")
    with pytest.raises(CloudError) as caught:
        await here.api(request)
    assert caught.value.code == "TAG.1000"
    for _ in range(2):
        await here.api(DeleteTag(uuid=made.uuid))
    assert (await here.api(QueryUserTag())).inventories == []


async def test_a_system_tag_must_be_declared_and_valid(here: Site) -> None:
    await system(here, "test::number::7")
    for tag, named in (
        ("nonsense", "no system tag matches"), ("test::number::x", "is no number"),
        ("test::number::7", "has the tag"), ("ephemeral::validationOnly", "is ephemeral"),
    ):  # fmt: skip
        with pytest.raises(CloudError, match=named):
            await system(here, tag)
    with pytest.raises(CloudError, match="no system tag matches"):
        await system(here, "test::number::8", resource_type="ClusterVO", resource_uuid=here.cluster.uuid)
    assert await texts(here) == ["test::number::7"]


async def test_the_resource_must_exist_and_be_of_the_type(here: Site) -> None:
    for fields, named in (
        ({"resource_uuid": new_uuid()}, "no resource"), ({"resource_uuid": here.cluster.uuid}, "is a ClusterVO"),
        ({"resource_type": "NoVO"}, "is no resource type"),
    ):  # fmt: skip
        with pytest.raises(CloudError, match=named):
            await system(here, "test::number::7", **fields)


async def test_several_tags_are_made_all_or_none(here: Site) -> None:
    several = CreateSystemTags(resource_type="ZoneVO", resource_uuid=here.zone.uuid, tags=["test::number::1", "x"])
    with pytest.raises(CloudError):
        await here.api(several)
    assert await texts(here) == []
    several.tags = ["test::number::2", "test::admin"]
    assert [one.tag for one in await here.api(several)] == ["test::number::2", "test::admin"]


async def test_an_update_keeps_the_kind(here: Site) -> None:
    uuid = await system(here, "test::number::1")
    assert (await here.api(UpdateSystemTag(uuid=uuid, tag="test::number::2"))).tag == "test::number::2"
    for tag, named in (("test::admin", "is not of the kind"), ("test::number::x", "is no number")):
        with pytest.raises(CloudError, match=named):
            await here.api(UpdateSystemTag(uuid=uuid, tag=tag))
    assert await texts(here) == ["test::number::2"]


async def test_an_inherent_tag_stays(here: Site) -> None:
    async with here.node.db.transaction() as tx:
        await INHERENT.set(tx, here.zone.uuid, x="1")
    found = ((await here.api(QuerySystemTag())).inventories or [])[0]
    assert found.inherent
    with pytest.raises(CloudError, match="is inherent"):
        await here.api(DeleteTag(uuid=found.uuid))
    assert await texts(here) == ["test::inherent::1"]


async def test_an_administrators_tag_is_refused_to_others(here: Site) -> None:
    user = context.Actor(new_uuid(), new_uuid())
    request = CreateSystemTag(resource_type="ZoneVO", resource_uuid=here.zone.uuid, tag="test::admin")
    with pytest.raises(CloudError, match="administrator"):
        await here.api(request, actor=user)
    await here.api(request)


async def test_a_secret_is_never_shown(here: Site) -> None:
    await system(here, "test::secret::xyzzy")
    assert "xyzzy" not in "".join(await texts(here))


async def test_listeners_hear_of_changes_and_may_refuse_them(here: Site) -> None:
    heard: list[tuple[Tokens | None, Tokens | None]] = []

    async def listener(_tx: object, _uuid: str, old: Tokens | None, new: Tokens | None) -> None:
        heard.append((old, new))

    NUMBER.listen(listener)
    try:
        uuid = await system(here, "test::number::1")
        await here.api(UpdateSystemTag(uuid=uuid, tag="test::number::2"))
        await here.api(DeleteTag(uuid=uuid))
    finally:
        NUMBER._listeners.remove(listener)
    assert heard == [(None, {"n": "1"}), ({"n": "1"}, {"n": "2"}), ({"n": "2"}, None)]


async def test_tags_come_with_a_resource_and_go_with_it(here: Site) -> None:
    zone = await here.api(CreateZone(name="z", system_tags=["test::number::9"], user_tags=["web"]))
    found = await here.api(QueryZone(conditions=[QueryCondition("__userTag__", "=", "web")]))
    assert [one.uuid for one in found.inventories or []] == [zone.uuid]
    await here.api(DeleteZone(uuid=zone.uuid))
    assert (await here.api(QuerySystemTag())).inventories == []
    assert (await here.api(QueryUserTag())).inventories == []
