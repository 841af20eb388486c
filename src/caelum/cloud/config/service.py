"""Settings, changed from outside. The kernel keeps the values; this checks and shows them.

Invariant: a value that a setting does not allow is never stored, for the cloud or for a resource.
"""

from __future__ import annotations

from sqlalchemy import select

from caelum.cloud.config.api import (
    BindableConfigsReply,
    DeleteResourceConfig,
    GetGlobalConfigOptions,
    GetResourceBindableConfig,
    GetResourceConfig,
    GetResourceConfigs,
    GlobalConfigInventory,
    GlobalConfigOptions,
    GlobalConfigOptionsReply,
    ResetGlobalConfig,
    ResourceBindableConfigStruct,
    ResourceConfigInventory,
    ResourceConfigReply,
    ResourceConfigsReply,
    ResourceConfigStruct,
    UpdateGlobalConfig,
    UpdateResourceConfig,
    UpdateResourceConfigs,
)
from caelum.cloud.config.lineage import lineage
from caelum.kernel.errors import invalid, not_found
from caelum.kernel.service import Service, handles
from caelum.kernel.settings import GlobalConfigModel, ResourceConfigModel, Setting, declared_settings, find_setting
from caelum.kernel.views import view


class ConfigService(Service):
    """Owns the settings' APIs."""

    name = "config"

    @handles(UpdateGlobalConfig, queue="config-{category}-{name}")
    async def update(self, msg: UpdateGlobalConfig) -> GlobalConfigInventory:
        """Change a setting; without a value it goes back to its default."""
        setting = find_setting(msg.category, msg.name)
        await self.node.settings.set(setting, setting.default_text if msg.value is None else msg.value)
        return await self._global(setting)

    @handles(ResetGlobalConfig)
    async def reset(self, msg: ResetGlobalConfig) -> None:  # noqa: ARG002 - there is nothing to choose
        """Put every setting that differs back to its default."""
        async with self.node.db.read() as session:
            row = GlobalConfigModel
            changed = await session.execute(select(row.category, row.name).where(row.value != row.default_value))
            names = {(category, name) for category, name in changed}
        for setting in list(declared_settings()):
            if (setting.category, setting.name) in names:
                await self.node.settings.set(setting, setting.default_text)

    @handles(GetGlobalConfigOptions)
    async def options(self, msg: GetGlobalConfigOptions) -> GlobalConfigOptionsReply:
        """Which values a setting takes."""
        setting = find_setting(msg.category, msg.name)
        valid = list(setting.valid) if setting.valid else ["true", "false"] if setting.type is bool else None
        return GlobalConfigOptionsReply(
            options=GlobalConfigOptions(
                valid_value=valid,
                number_greater_than_or_equal=None if setting.minimum is None else int(setting.minimum),
                number_less_than_or_equal=None if setting.maximum is None else int(setting.maximum),
            )
        )

    async def _global(self, setting: Setting[object]) -> GlobalConfigInventory:
        row = GlobalConfigModel
        async with self.node.db.read() as session:
            query = select(row).where(row.category == setting.category, row.name == setting.name)
            return view((await session.scalars(query)).one())  # type: ignore[no-any-return]

    # --- overrides ----------------------------------------------------------------------------------------------------

    @handles(UpdateResourceConfig, queue="config-{resource_uuid}")
    async def override(self, msg: UpdateResourceConfig) -> ResourceConfigInventory:
        """Override a setting for a resource."""
        setting = find_setting(msg.category, msg.name)
        await self._override(setting, msg.resource_uuid, msg.value)
        return (await self._overrides(setting, [msg.resource_uuid]))[0]

    @handles(UpdateResourceConfigs, queue="config-{resource_uuid}")
    async def override_several(self, msg: UpdateResourceConfigs) -> list[ResourceConfigStruct]:
        """Override several settings for a resource; all values are checked before any is stored."""
        wanted = [(find_setting(one.category, one.name), one.value) for one in msg.resource_configs]
        for setting, value in wanted:
            setting.parse(value)
        for setting, value in wanted:
            await self._override(setting, msg.resource_uuid, value)
        return [await self._effective(setting, msg.resource_uuid) for setting, _ in wanted]

    @handles(DeleteResourceConfig, queue="config-{resource_uuid}")
    async def drop(self, msg: DeleteResourceConfig) -> None:
        """Drop an override."""
        setting = find_setting(msg.category, msg.name)
        if await self._overrides(setting, [msg.resource_uuid]):
            await self.node.settings.set_for(setting, msg.resource_uuid, "", None)

    @handles(GetResourceConfig)
    async def get(self, msg: GetResourceConfig) -> ResourceConfigReply:
        """The value that holds for a resource."""
        found = await self._effective(find_setting(msg.category, msg.name), msg.resource_uuid)
        return ResourceConfigReply(value=found.value, effective_configs=found.effective_configs or [])

    @handles(GetResourceConfigs)
    async def get_several(self, msg: GetResourceConfigs) -> ResourceConfigsReply:
        """The values that hold for a resource."""
        settings = [find_setting(msg.category, name) for name in msg.names]
        return ResourceConfigsReply(configs=[await self._effective(one, msg.resource_uuid) for one in settings])

    @handles(GetResourceBindableConfig)
    async def bindable(self, msg: GetResourceBindableConfig) -> BindableConfigsReply:
        """The settings that resources may override."""
        return BindableConfigsReply(
            bindable_configs=[
                ResourceBindableConfigStruct(
                    name=one.name,
                    category=one.category,
                    description=one.description,
                    bind_resource_types=list(one.bindable),
                )
                for one in declared_settings()
                if one.bindable and msg.category in (None, one.category)
            ]
        )

    async def _override(self, setting: Setting[object], resource_uuid: str, value: str) -> None:
        resource_type = await self.node.resources.type_of(resource_uuid)
        if resource_type is None:
            raise not_found("resource", resource_uuid)
        if not setting.bindable:
            raise invalid("name", f"setting {setting!r} can not be overridden for a resource")
        await self.node.settings.set_for(setting, resource_uuid, resource_type, value)

    async def _effective(self, setting: Setting[object], resource_uuid: str) -> ResourceConfigStruct:
        """The value that holds: the nearest override in the resource's lineage, else the cloud's."""
        async with self.node.db.read() as session:
            above = await lineage(session, resource_uuid)
        found = {one.resource_uuid: one for one in await self._overrides(setting, above)}
        effective = [found[uuid] for uuid in above if uuid in found]
        value = effective[0].value if effective else setting.text(self.node.settings.get(setting))
        return ResourceConfigStruct(name=setting.name, value=value, effective_configs=effective)

    async def _overrides(self, setting: Setting[object], uuids: list[str]) -> list[ResourceConfigInventory]:
        row = ResourceConfigModel
        query = select(row).where(
            row.resource_uuid.in_(uuids), row.category == setting.category, row.name == setting.name
        )
        async with self.node.db.read() as session:
            return [view(one) for one in await session.scalars(query)]
