"""Settings changed from outside: for the cloud, and for single resources."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.service.network_clouds import Site, site

from caelum.cloud.config.api import (
    DeleteResourceConfig,
    GetGlobalConfigOptions,
    GetResourceBindableConfig,
    GetResourceConfig,
    GetResourceConfigs,
    QueryGlobalConfig,
    QueryResourceConfig,
    ResetGlobalConfig,
    ResourceConfigAO,
    UpdateGlobalConfig,
    UpdateResourceConfig,
    UpdateResourceConfigs,
)
from caelum.cloud.zone.api import DeleteZone
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import QueryCondition
from caelum.kernel.settings import GlobalConfigUpdated, ResourceConfigUpdated, setting

LEVEL = setting("test", "level", 5, int, "a level", minimum=1, maximum=9, bindable=("ClusterVO", "ZoneVO"))
COLOUR = setting("test", "colour", "red", str, "a colour", valid=("red", "blue"), bindable=("ZoneVO",))
SWITCH = setting("test", "switch", True, bool, "a switch")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        yield found


async def override(here: Site, uuid: str, value: str, name: str = "level") -> str:
    request = UpdateResourceConfig(category="test", name=name, resource_uuid=uuid, value=value)
    return (await here.api(request)).value


async def effective(here: Site, uuid: str) -> tuple[str, list[str]]:
    found = await here.api(GetResourceConfig(category="test", name="level", resource_uuid=uuid))
    return found.value, [one.resource_uuid for one in found.effective_configs]


async def test_an_update_holds_for_the_cloud_and_is_told(here: Site) -> None:
    made = await here.api(UpdateGlobalConfig(category="test", name="level", value="7"))
    assert (made.value, made.default_value, made.category, made.name) == ("7", "5", "test", "level")
    assert here.node.settings.get(LEVEL) == 7
    told = (await here.cloud.seen(GlobalConfigUpdated))[-1]
    assert (told.path, told.old_value, told.new_value) == (
        f"/globalConfig/update/test/level/{here.node.uuid}", "5", "7",
    )  # fmt: skip
    which = [QueryCondition("category", "=", "test"), QueryCondition("name", "=", "level")]
    query = QueryGlobalConfig(conditions=which)
    assert [one.value for one in (await here.api(query)).inventories or []] == ["7"]


@pytest.mark.parametrize(("name", "value"), [("level", "0"), ("level", "x"), ("colour", "green"), ("switch", "maybe")])
async def test_a_value_that_is_not_allowed_is_refused(here: Site, name: str, value: str) -> None:
    with pytest.raises(CloudError) as caught:
        await here.api(UpdateGlobalConfig(category="test", name=name, value=value))
    assert caught.value.code == "SYS.1007"
    assert here.node.settings.get(LEVEL) == 5


async def test_an_unknown_setting_is_not_found(here: Site) -> None:
    with pytest.raises(CloudError, match="no setting"):
        await here.api(UpdateGlobalConfig(category="test", name="nothing", value="1"))


async def test_reset_puts_everything_back(here: Site) -> None:
    await here.api(UpdateGlobalConfig(category="test", name="level", value="7"))
    await here.api(UpdateGlobalConfig(category="test", name="switch", value="false"))
    await here.api(ResetGlobalConfig())
    assert (here.node.settings.get(LEVEL), here.node.settings.get(SWITCH)) == (5, True)


async def test_options_tell_what_is_allowed(here: Site) -> None:
    async def options(name: str) -> object:
        found = (await here.api(GetGlobalConfigOptions(category="test", name=name))).options
        return found.valid_value, found.number_greater_than_or_equal, found.number_less_than_or_equal

    assert await options("level") == (None, 1, 9)
    assert await options("colour") == (["red", "blue"], None, None)
    assert await options("switch") == (["true", "false"], None, None)


async def test_the_nearest_override_holds(here: Site) -> None:
    zone, cluster = here.zone.uuid, here.cluster.uuid
    assert await effective(here, cluster) == ("5", [])
    assert await override(here, zone, "6") == "6"
    assert await effective(here, cluster) == ("6", [zone])
    assert await override(here, cluster, "8") == "8"
    assert await effective(here, cluster) == ("8", [cluster, zone])
    assert await effective(here, zone) == ("6", [zone])
    await here.api(DeleteResourceConfig(category="test", name="level", resource_uuid=cluster))
    await here.api(DeleteResourceConfig(category="test", name="level", resource_uuid=cluster))
    assert await effective(here, cluster) == ("6", [zone])
    told = await here.cloud.seen(ResourceConfigUpdated)
    assert [(one.resource_uuid, one.new_value) for one in told] == [(zone, "6"), (cluster, "8"), (cluster, None)]


async def test_what_cannot_be_overridden_is_refused(here: Site) -> None:
    for uuid, name, value, named in (
        (here.zone.uuid, "switch", "false", "can not be overridden"),
        (here.cluster.uuid, "colour", "blue", "not to ClusterVO"),
        (here.zone.uuid, "level", "10", "the maximum is 9"), (new_uuid(), "level", "6", "no resource"),
    ):  # fmt: skip
        with pytest.raises(CloudError, match=named):
            await override(here, uuid, value, name)
    assert (await here.api(QueryResourceConfig())).inventories == []


async def test_several_overrides_are_checked_before_any_is_stored(here: Site) -> None:
    def request(level: str) -> UpdateResourceConfigs:
        return UpdateResourceConfigs(
            resource_uuid=here.zone.uuid,
            resource_configs=[
                ResourceConfigAO(category="test", name="colour", value="blue"),
                ResourceConfigAO(category="test", name="level", value=level),
            ],
        )

    with pytest.raises(CloudError):
        await here.api(request("10"))
    assert (await here.api(QueryResourceConfig())).inventories == []
    assert [(one.name, one.value) for one in await here.api(request("3"))] == [("colour", "blue"), ("level", "3")]
    found = await here.api(GetResourceConfigs(category="test", names=["level", "colour"], resource_uuid=here.zone.uuid))
    assert [(one.name, one.value) for one in found.configs] == [("level", "3"), ("colour", "blue")]


async def test_overrides_go_with_their_resource(here: Site) -> None:
    await override(here, here.zone.uuid, "6")
    await here.api(DeleteZone(uuid=here.zone.uuid))
    assert (await here.api(QueryResourceConfig())).inventories == []


async def test_bindable_settings_are_listed(here: Site) -> None:
    found = (await here.api(GetResourceBindableConfig(category="test"))).bindable_configs
    assert {(one.name, tuple(one.bind_resource_types)) for one in found} == {
        ("level", ("ClusterVO", "ZoneVO")), ("colour", ("ZoneVO",)),
    }  # fmt: skip
    everything = (await here.api(GetResourceBindableConfig())).bindable_configs
    assert {"test", "l3Network"} <= {one.category for one in everything}
