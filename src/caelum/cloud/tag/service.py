"""Tags made, changed and deleted by themselves; those that come with a resource are saved by its own service.

Invariant: a tag's resource exists and is of the type that the tag names; a system tag matches a declaration of that
type; inherent tags stay.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.tag.api import (
    CreateSystemTag,
    CreateSystemTags,
    CreateUserTag,
    DeleteTag,
    SystemTagInventory,
    UpdateSystemTag,
    UserTagInventory,
)
from caelum.kernel import context, resources
from caelum.kernel.errors import INVALID_ARGUMENT, OPERATION_ERROR, CloudError, error_type, invalid, not_found
from caelum.kernel.ids import new_uuid
from caelum.kernel.service import Service, handles
from caelum.kernel.tag import EPHEMERAL_PREFIX, SystemTagModel, UserTagModel, check_tag, find_tag, save_system_tag
from caelum.kernel.views import view, views

DUPLICATED_TAG = error_type("TAG.1000", "Duplicated tag.", "The resource has this tag already.")


class TagService(Service):
    """Owns the tags' APIs."""

    name = "tag"

    @handles(CreateUserTag, queue="tag-{resource_uuid}")
    async def create_user_tag(self, msg: CreateUserTag) -> UserTagInventory:
        """Put a user's tag on a resource."""
        row = UserTagModel
        async with self.node.db.transaction() as tx:
            await _check_resource(tx, msg.resource_type, msg.resource_uuid)
            same = (row.resource_uuid == msg.resource_uuid, row.tag == msg.tag)
            if await tx.scalar(select(row.uuid).where(*same)) is not None:
                raise _duplicate(msg.tag, msg.resource_uuid)
            tag = row(uuid=new_uuid(), resource_uuid=msg.resource_uuid, resource_type=msg.resource_type, tag=msg.tag)
            tx.add(tag)
            await tx.flush()
        return view(tag)  # type: ignore[no-any-return]

    @handles(CreateSystemTag, queue="tag-{resource_uuid}")
    async def create_system_tag(self, msg: CreateSystemTag) -> SystemTagInventory:
        """Put a system tag on a resource."""
        return (await self._create(msg.resource_type, msg.resource_uuid, [msg.tag]))[0]

    @handles(CreateSystemTags, queue="tag-{resource_uuid}")
    async def create_system_tags(self, msg: CreateSystemTags) -> list[SystemTagInventory]:
        """Put several system tags on a resource, all or none."""
        return await self._create(msg.resource_type, msg.resource_uuid, msg.tags)

    async def _create(self, resource_type: str, resource_uuid: str, tags: list[str]) -> list[SystemTagInventory]:
        row = SystemTagModel
        async with self.node.db.transaction() as tx:
            await _check_resource(tx, resource_type, resource_uuid)
            known = set(await tx.scalars(select(row.tag).where(row.resource_uuid == resource_uuid)))
            for text in tags:
                _check_storable(resource_type, text)
                if text in known:
                    raise _duplicate(text, resource_uuid)
                known.add(text)
                await save_system_tag(tx, resource_uuid, resource_type, text)
            await tx.flush()
            rows = (await tx.scalars(select(row).where(row.resource_uuid == resource_uuid, row.tag.in_(tags)))).all()
        return views(sorted(rows, key=lambda one: tags.index(one.tag)))

    @handles(UpdateSystemTag, queue="tag-{uuid}")
    async def update(self, msg: UpdateSystemTag) -> SystemTagInventory:
        """Change the values in a tag."""
        async with self.node.db.transaction() as tx:
            row = await tx.get(SystemTagModel, msg.uuid)
            if row is None:
                raise not_found("SystemTag", msg.uuid)
            declared = find_tag(row.resource_type, row.tag)
            tokens = None if declared is None else declared.match(msg.tag)
            if declared is None or tokens is None:
                raise invalid(
                    "tag", f"the new tag[{msg.tag}] is not of the kind {declared and declared.format} of the old one"
                )
            declared.check(msg.tag, is_admin=context.current().actor.is_admin)
            await declared.replace(tx, row, msg.tag)
        return view(row)  # type: ignore[no-any-return]

    @handles(DeleteTag, queue="tag-{uuid}")
    async def delete(self, msg: DeleteTag) -> None:
        """Delete a tag of either kind."""
        async with self.node.db.transaction() as tx:
            system = await tx.get(SystemTagModel, msg.uuid)
            if system is not None:
                await _delete_system(tx, system)
            elif (user := await tx.get(UserTagModel, msg.uuid)) is not None:
                await tx.delete(user)


async def _check_resource(tx: AsyncSession, resource_type: str, uuid: str) -> None:
    """The resource exists, and is of the named type or of a child type of it."""
    if resource_type not in resources.types():
        raise invalid("resourceType", f"{resource_type} is no resource type")
    found = await resources.type_of(tx, uuid)
    if found is None:
        raise not_found("resource", uuid)
    if not resources.is_a(found, resource_type):
        raise invalid("resourceType", f"the resource[uuid:{uuid}] is a {found}, not a {resource_type}")


def _check_storable(resource_type: str, text: str) -> None:
    if text.startswith(EPHEMERAL_PREFIX):
        raise CloudError(INVALID_ARGUMENT, f"the tag {text} is ephemeral: it goes with a request, it is not stored")
    check_tag(resource_type, text, is_admin=context.current().actor.is_admin)


async def _delete_system(tx: AsyncSession, row: SystemTagModel) -> None:
    if row.inherent:
        raise CloudError(
            OPERATION_ERROR,
            f"the tag[uuid:{row.uuid}, tag:{row.tag}] is inherent to its resource; it can not be deleted",
        )
    declared = find_tag(row.resource_type, row.tag)
    if declared is None:
        await tx.delete(row)  # its driver is no longer installed
    else:
        await declared.delete(tx, row.resource_uuid, **(declared.match(row.tag) or {}))


def _duplicate(text: str, uuid: str) -> CloudError:
    return CloudError(DUPLICATED_TAG, f"the resource[uuid:{uuid}] has the tag {text} already", tag=text, uuid=uuid)
