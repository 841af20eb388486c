"""System tags: matching, storing, checking, secrets; tags of create messages; ownership and quotas beside them."""

from typing import Annotated, Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel.database import Database, Resource
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.message import CreateMessage, Inventory, Param, inventory, rest
from caelum.kernel.settings import ResourceConfigModel, setting
from caelum.kernel.tag import (
    SystemTagModel,
    UserTagModel,
    check_tags,
    drop_tags,
    find_tag,
    save_tags,
    system_tag,
    texts_of,
)
from caelum.kernel.views import view


class PlaneModel(Resource):
    __tablename__ = "test_plane"
    __vo__ = "TestPlaneVO"


class JetModel(PlaneModel):
    __vo__ = "TestJetVO"


@inventory("test", vo="TestPlaneVO")
class PlaneInventory(Inventory):
    uuid: str


@inventory("test", vo="SystemTagVO")
class SystemTagInventory(Inventory):
    uuid: str
    tag: str
    inherent: bool = False


@rest("POST /test-planes", package="test", tags_for="TestPlaneVO")
class CreateTestPlane(CreateMessage[PlaneInventory], kw_only=True):
    """Create a plane."""

    name: Annotated[str, Param()] = "x"


@rest("POST /test-gliders", package="test")
class CreateTestGlider(CreateMessage[PlaneInventory], kw_only=True):
    """Create something that has no tags."""


def _no_spaces(tokens: dict[str, str]) -> None:
    if " " in tokens["hostname"]:
        raise invalid("systemTags", "no spaces in a host name")


ALTITUDE = setting("test", "altitude", 5, int, "how high", minimum=1, bindable=("TestPlaneVO",))
HOSTNAME = system_tag("hostname::{hostname}", "TestPlaneVO", validator=_no_spaces)
ROUTE = system_tag("route::{start}::to::{end}", "TestPlaneVO")
NUMA = system_tag("numa", "TestPlaneVO")
ADMIN = system_tag("admin::{x}", "TestPlaneVO", admin_only=True)
PASSWORD = system_tag("password::{who}::{password}", "TestPlaneVO", sensitive=("password",))
DRY_RUN = system_tag("dryRun", "TestPlaneVO", ephemeral=True)


def test_matching() -> None:
    assert HOSTNAME.match("hostname::web1") == {"hostname": "web1"}
    assert HOSTNAME.match("hostname::") is None
    assert HOSTNAME.match("xhostname::a") is None
    assert HOSTNAME.match("hostname::a::b\nc") == {"hostname": "a::b\nc"}
    assert ROUTE.match("route::a::to::b") == {"start": "a", "end": "b"}
    assert NUMA.match("numa") == {}
    assert NUMA.match("numa2") is None
    assert ROUTE.text(start="a", end=7) == "route::a::to::7"
    assert DRY_RUN.text() == "ephemeral::dryRun"
    assert DRY_RUN.find(["x", "ephemeral::dryRun"]) == {}
    assert DRY_RUN.find(None) is None
    with pytest.raises(ValueError, match="tokens"):
        ROUTE.text(start="a")


async def test_set_get_add_delete(db: Database) -> None:
    async with db.transaction() as tx:
        await HOSTNAME.set(tx, "p", hostname="a_b")
        await HOSTNAME.set(tx, "p", hostname="100%")
        await HOSTNAME.set(tx, "q", hostname="q")
        await ROUTE.add(tx, "p", start="a", end="b")
        await ROUTE.add(tx, "p", start="a", end="c")
        await ROUTE.add(tx, "p", start="a", end="c")
    async with db.read() as session:
        assert await HOSTNAME.get(session, "p") == {"hostname": "100%"}
        assert await HOSTNAME.get(session, "nobody") is None
        assert await ROUTE.get_all(session, "p") == [{"start": "a", "end": "b"}, {"start": "a", "end": "c"}]
        assert set(await HOSTNAME.get_many(session, ["p", "q", "r"])) == {"p", "q"}
    async with db.transaction() as tx:
        await ROUTE.delete(tx, "p", end="b")
        await HOSTNAME.delete(tx, "p")
    async with db.read() as session:
        assert await ROUTE.get_all(session, "p") == [{"start": "a", "end": "c"}]
        assert await HOSTNAME.get(session, "p") is None


async def test_a_set_keeps_one_tag_of_its_kind(db: Database) -> None:
    async with db.transaction() as tx:
        for end in "bcd":
            await ROUTE.add(tx, "p", start="a", end=end)
    async with db.transaction() as tx:
        await ROUTE.set(tx, "p", start="x", end="y")
    async with db.read() as session:
        assert await ROUTE.get_all(session, "p") == [{"start": "x", "end": "y"}]


async def test_a_tag_without_listeners_can_be_rewritten(db: Database) -> None:
    for end in "bc":
        async with db.transaction() as tx:
            await HOSTNAME.set(tx, "p", hostname="h")
            await ROUTE.rewrite(tx, "p", start="a", end=end)
    async with db.read() as session:
        assert await texts_of(session, "p") == {"route::a::to::c", "hostname::h"}
        assert await texts_of(session, "q") == set()
        rows = (await session.scalars(select(SystemTagModel).where(SystemTagModel.tag.like("route%")))).all()
    assert len(rows) == 1
    heard = system_tag("rewritten::{x}", "TestPlaneVO")
    heard.listen(_nothing)
    async with db.transaction() as tx:
        with pytest.raises(TypeError, match="listeners"):
            await heard.rewrite(tx, "p", x=1)


async def test_of_several_tags_of_a_kind_a_rewrite_leaves_one(db: Database) -> None:
    async with db.transaction() as tx:
        for end in "bcd":
            await ROUTE.add(tx, "p", start="a", end=end)
    async with db.transaction() as tx:
        await ROUTE.rewrite(tx, "p", start="x", end="y")
    async with db.read() as session:
        assert await ROUTE.get_all(session, "p") == [{"start": "x", "end": "y"}]


async def _nothing(tx: AsyncSession, uuid: str, old: Any, new: Any) -> None:
    """Listen, and do nothing."""


async def test_listeners_hear_each_change_and_may_refuse_it(db: Database) -> None:
    heard: list[Any] = []
    own = system_tag("seat::{number}", "TestPlaneVO")

    @own.listen
    async def changed(tx: AsyncSession, uuid: str, old: Any, new: Any) -> None:
        heard.append((uuid, old, new))
        if new == {"number": "13"}:
            raise invalid("systemTags", "no seat 13")

    async with db.transaction() as tx:
        await own.set(tx, "p", number=1)
        await own.set(tx, "p", number=2)
        await own.delete(tx, "p")
    assert heard == [
        ("p", None, {"number": "1"}),
        ("p", {"number": "1"}, {"number": "2"}),
        ("p", {"number": "2"}, None),
    ]

    async def refused() -> None:
        async with db.transaction() as tx:
            await own.set(tx, "p", number=13)

    with pytest.raises(CloudError, match="no seat 13"):
        await refused()
    async with db.read() as session:
        assert await own.get(session, "p") is None


async def test_tags_of_a_create_message(db: Database) -> None:
    msg = CreateTestPlane(
        system_tags=["hostname::h", "ephemeral::dryRun", "resourceConfig::test::altitude::7"],
        user_tags=["mine", "mine"],
    )
    for _ in range(2):
        async with db.transaction() as tx:
            await save_tags(tx, msg, "p")
    async with db.read() as session:
        assert list(await session.scalars(select(SystemTagModel.tag))) == ["hostname::h"]
        assert list(await session.scalars(select(UserTagModel.tag))) == ["mine"]
        assert list(await session.scalars(select(ResourceConfigModel.value))) == ["7"]
    async with db.transaction() as tx:
        await drop_tags(tx, "p")
    async with db.read() as session:
        for model in (SystemTagModel, UserTagModel, ResourceConfigModel):
            assert list(await session.scalars(select(model.uuid))) == []


def test_the_check_of_create_messages() -> None:
    plane, glider = CreateTestPlane.__api__, CreateTestGlider.__api__
    check_tags(plane, None, False)
    check_tags(plane, ["hostname::a", "numa", "ephemeral::dryRun", "resourceConfig::test::altitude::7"], False)
    check_tags(plane, ["ephemeral::anything"], False)
    check_tags(glider, ["ephemeral::anything"], False)
    check_tags(plane, ["admin::1"], True)
    for meta, tag, why in (
        (plane, "nonsense", "no system tag matches nonsense"),
        (plane, "hostname::a b", "no spaces"),
        (plane, "admin::1", "administrator"),
        (plane, "resourceConfig::test::altitude::0", "minimum"),
        (glider, "hostname::a", "no system tag matches hostname::a"),
    ):
        with pytest.raises(CloudError, match=why) as caught:
            check_tags(meta, [tag], False)
        assert caught.value.code == "SYS.1007"


def test_child_types_take_their_parents_tags() -> None:
    assert find_tag("TestJetVO", "hostname::a") is HOSTNAME
    assert find_tag("TestShipVO", "hostname::a") is None


def test_secrets_are_masked() -> None:
    row = SystemTagModel(
        uuid="t", resource_uuid="p", resource_type="TestPlaneVO", tag="password::joe::xyz", inherent=False
    )
    assert view(row).tag == "password::joe::*****"
    row.tag = "hostname::h"
    assert view(row).tag == "hostname::h"
