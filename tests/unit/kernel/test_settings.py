"""Settings: typed values, validation, overrides, changes that reach everybody."""

import asyncio

import pytest
from sqlalchemy import select

from caelum.kernel.database import Database, update_where
from caelum.kernel.errors import CloudError
from caelum.kernel.events import EventHub
from caelum.kernel.node import Node
from caelum.kernel.settings import (
    GlobalConfigModel,
    GlobalConfigUpdated,
    ResourceConfigModel,
    Seconds,
    Setting,
    Settings,
    Size,
    drop_overrides,
    find_setting,
    setting,
)  # fmt: skip

POLICY = setting(
    "test", "policy", "Delay", str, "what to do", valid=("Delay", "Direct"), bindable=("TestVmVO",)
)  # fmt: skip
LIMIT = setting("test", "limit", 5, int, "how many", minimum=1, maximum=10)
RESERVED = setting("test", "reserved", "1G", Size, "how much")
PERIOD = setting("test", "period", "14d", Seconds, "how long")
SWITCH = setting("test", "switch", True, bool, "on or off")


async def test_declared_settings_have_rows_and_typed_values(node: Node) -> None:
    async with node.db.read() as session:
        row = await session.scalar(select(GlobalConfigModel).where(GlobalConfigModel.name == "switch"))
    assert row is not None
    assert (row.category, row.value, row.default_value, row.description) == ("test", "true", "true", "on or off")
    values = [node.settings.get(one) for one in (POLICY, LIMIT, RESERVED, PERIOD, SWITCH)]
    assert values == ["Delay", 5, 1 << 30, 14 * 86400, True]


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (POLICY, "Never"), (LIMIT, "0"), (LIMIT, "11"), (LIMIT, "many"), (RESERVED, "1X"), (PERIOD, "1y"),
        (SWITCH, "yes"),
    ],
)  # fmt: skip
async def test_bad_values_are_refused_and_nothing_changes(node: Node, one: Setting[object], text: str) -> None:
    before = node.settings.get(one)
    with pytest.raises(CloudError, match=one.name) as caught:
        await node.settings.set(one, text)
    assert caught.value.code == "SYS.1007"
    assert node.settings.get(one) == before


async def test_a_change_is_kept_and_told(node: Node) -> None:
    seen: list[object] = []

    async def later(value: int) -> None:
        seen.append(value)

    node.settings.on_change(LIMIT, seen.append)
    node.settings.on_change(LIMIT, later)
    await node.settings.set(LIMIT, 7)
    await node.events.idle()
    assert seen == [7, 7]
    again = Settings(node.db, node.bus, "another")
    await again.start()
    assert again.get(LIMIT) == 7


async def test_a_change_reaches_the_other_node(node: Node) -> None:
    other = Settings(node.db, node.bus, "another")
    await other.start()
    await other.set(RESERVED, "2G")
    await node.events.idle()
    assert node.settings.get(RESERVED) == 2 << 30


async def test_changes_that_no_event_told_are_found_by_a_reload(node: Node) -> None:
    seen: list[object] = []

    def broken(value: int) -> None:
        raise ValueError(value)

    node.settings.on_change(PERIOD, broken)
    node.settings.on_change(LIMIT, seen.append)
    async with node.db.transaction() as tx:
        for name, value in (("period", "3d"), ("limit", "9")):
            await update_where(tx, GlobalConfigModel, {"value": value}, GlobalConfigModel.name == name)
    assert node.settings.get(LIMIT) == 5
    await node.bus.reconnected()
    assert (node.settings.get(LIMIT), node.settings.get(PERIOD)) == (9, 3 * 86400)
    await node.bus.reconnected()
    assert seen == [9], "only what differs is told, and one that fails keeps nobody else from hearing"


async def test_news_that_arrive_in_the_wrong_order_change_nothing(node: Node) -> None:
    """Two nodes change a setting at once; the news of the first change are the last to arrive."""
    seen: list[int] = []
    node.settings.on_change(LIMIT, seen.append)
    await node.settings.set(LIMIT, 8)
    node.bus.publish(
        GlobalConfigUpdated(category="test", name="limit", node_uuid="another", old_value="5", new_value="6")
    )
    await node.events.idle()
    assert (node.settings.get(LIMIT), seen) == (8, [8])


async def test_a_slow_follower_hears_the_newest_value_last(node: Node) -> None:
    heard: list[int] = []

    async def slow(value: int) -> None:
        await asyncio.sleep(0.02 if value == 6 else 0)
        heard.append(value)

    node.settings.on_change(LIMIT, slow)
    await asyncio.gather(*[node.settings.set(LIMIT, value) for value in (6, 7, 8)])
    await node.events.idle()
    async with node.db.read() as session:
        stored = await session.scalar(select(GlobalConfigModel.value).where(GlobalConfigModel.name == "limit"))
    assert str(node.settings.get(LIMIT)) == stored == str(heard[-1])


async def test_a_change_that_fails_to_be_taken_here_is_told_to_others_all_the_same(node: Node) -> None:
    def broken(value: int) -> None:
        raise ValueError(value)

    node.settings.on_change(LIMIT, broken)
    other = Settings(node.db, node.bus, "another")
    await other.start()
    await node.settings.set(LIMIT, 4)
    await node.events.idle()
    assert other.get(LIMIT) == node.settings.get(LIMIT) == 4


async def test_a_change_of_a_node_that_died_before_it_told_is_found(node: Node) -> None:
    async with node.db.transaction() as tx:
        await update_where(tx, GlobalConfigModel, {"value": "9"}, GlobalConfigModel.name == "limit")
    node.ring.join("f" * 32)
    node.ring.leave("f" * 32)
    async with asyncio.timeout(5):
        while node.settings.get(LIMIT) != 9:  # noqa: ASYNC110 - a reading in the background tells nobody
            await asyncio.sleep(0.01)


async def test_a_node_that_dies_during_the_reading_for_another_is_not_forgotten(node: Node) -> None:
    read, go = asyncio.Event(), asyncio.Event()

    async def slow(_value: int) -> None:
        read.set()
        await go.wait()

    async def store(value: str) -> None:
        async with node.db.transaction() as tx:
            await update_where(tx, GlobalConfigModel, {"value": value}, GlobalConfigModel.name == "limit")

    node.settings.on_change(LIMIT, slow)
    await store("9")
    node.settings.look_again()
    await read.wait()
    await store("8")
    node.settings.look_again()
    go.set()
    async with asyncio.timeout(5):
        while node.settings.get(LIMIT) != 8:  # noqa: ASYNC110 - a reading in the background tells nobody
            await asyncio.sleep(0.01)


async def test_overrides_by_resource(node: Node) -> None:
    settings = node.settings
    await settings.set_for(POLICY, "cluster", "TestVmVO", "Direct")
    assert await settings.get_for(POLICY, "vm", "cluster") == "Direct"
    assert await settings.get_for(POLICY, "vm") == "Delay"
    await settings.set_for(POLICY, "vm", "TestVmVO", "Delay")
    await settings.set_for(POLICY, "vm", "TestVmVO", "Delay")
    assert await settings.get_for(POLICY, "vm", "cluster") == "Delay"
    await settings.set_for(POLICY, "vm", "TestVmVO", None)
    assert await settings.get_for(POLICY, "vm", "cluster") == "Direct"
    async with node.db.transaction() as tx:
        await drop_overrides(tx, "cluster")
    async with node.db.read() as session:
        assert list(await session.scalars(select(ResourceConfigModel))) == []


async def test_only_bindable_types_may_override(node: Node) -> None:
    with pytest.raises(CloudError, match="can be bound to TestVmVO, not to TestHostVO"):
        await node.settings.set_for(POLICY, "host", "TestHostVO", "Direct")


async def test_a_new_default_replaces_what_nobody_chose(db: Database, node: Node) -> None:
    async with db.transaction() as tx:
        tx.add(GlobalConfigModel(category="test", name="limit", default_value="3", value="3"))
        tx.add(GlobalConfigModel(category="test", name="policy", default_value="Direct", value="Direct"))
        tx.add(GlobalConfigModel(category="test", name="reserved", default_value="3G", value="4G"))
        tx.add(GlobalConfigModel(category="test", name="period", default_value="1d", value="nonsense"))
    settings = Settings(db, node.bus, "n")
    await settings.start()
    assert settings.get(LIMIT) == 5
    assert settings.get(RESERVED) == 4 << 30
    assert settings.get(PERIOD) == 14 * 86400
    assert isinstance(node.events, EventHub)


def test_declarations_are_checked() -> None:
    assert find_setting("test", "limit") is LIMIT
    with pytest.raises(CloudError, match="no setting"):
        find_setting("test", "limitless")
    with pytest.raises(ValueError, match="declared twice"):
        setting("test", "limit", 6, int, "how many")
    with pytest.raises(CloudError, match="the minimum is 1"):
        setting("test", "wrong", 0, int, "a default that is not allowed", minimum=1)
