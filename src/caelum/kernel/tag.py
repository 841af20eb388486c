"""Tags: text on resources that users (user tags) or drivers (system tags) understand.

Invariant: a system tag that is stored matches a declared one; declared ephemeral tags are never stored; tags are
written and removed in the transaction that makes or deletes their resource. Secret parts never leave the server.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import ColumnElement, Index, String, Table, Text, bindparam, case, delete, select, update
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel import resources
from caelum.kernel.database import Resource
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import ApiMessage, CreateMessage
from caelum.kernel.prepared import Prepared, Reading
from caelum.kernel.settings import drop_overrides, find_setting, override

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.message import ApiMeta

EPHEMERAL_PREFIX = "ephemeral::"
RESOURCE_CONFIG = re.compile(r"resourceConfig::([^:]+)::([^:]+)::(.*)", re.DOTALL)
MASK = "*****"

Tokens = dict[str, str]
Listener = Callable[["AsyncSession", str, Tokens | None, Tokens | None], Awaitable[None]]
Validator = Callable[[Tokens], None]


class SystemTagModel(Resource):
    """A system tag on a resource. `inherent` ones belong to the resource itself and cannot be removed by users."""

    __tablename__ = "system_tag"
    __steady__ = True
    __vo__ = "SystemTagVO"
    # By hash on PostgreSQL, whose other indexes refuse long texts.
    __table_args__ = (
        Index("ix_system_tag_resource", "resource_uuid"),
        Index("ix_system_tag_tag", "tag", postgresql_using="hash"),
    )

    resource_uuid: Mapped[str] = mapped_column(String(32))
    resource_type: Mapped[str] = mapped_column(String(64))
    tag: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(String(32), default="System")
    inherent: Mapped[bool] = mapped_column(default=False)

    def extra_view(self) -> dict[str, Any]:
        """The tag with its secret parts masked."""
        return {"tag": masked(self.resource_type, self.tag)}

    @classmethod
    def masked_columns(cls) -> dict[str, ColumnElement[Any]]:
        """The tag as those may compare and sort it from whom its secret parts are hidden."""
        return {"tag": _masked_column(cls.tag)}


class UserTagModel(Resource):
    """A user's tag on a resource."""

    __tablename__ = "user_tag"
    __vo__ = "UserTagVO"
    __table_args__ = (
        Index("ix_user_tag_resource", "resource_uuid"),
        Index("ix_user_tag_pattern", "tag_pattern_uuid"),
        Index("ix_user_tag_tag", "tag", postgresql_using="hash"),
    )

    resource_uuid: Mapped[str] = mapped_column(String(32))
    resource_type: Mapped[str] = mapped_column(String(64))
    tag: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(String(32), default="User")
    tag_pattern_uuid: Mapped[str | None] = mapped_column(String(32))


class SystemTag:
    """A declared system tag: plain text, or a pattern with `{token}` parts."""

    def __init__(
        self,
        format: str,  # noqa: A002 - the original's name for it
        resource: str,
        *,
        validator: Validator | None = None,
        admin_only: bool = False,
        ephemeral: bool = False,
        sensitive: tuple[str, ...] = (),
        inherent: bool = False,
    ) -> None:
        self.format, self.resource, self.validator = format, resource, validator
        self.admin_only, self.ephemeral, self.sensitive, self.inherent = admin_only, ephemeral, sensitive, inherent
        self.tokens = tuple(re.findall(r"\{(\w+)\}", format))
        self._listeners: list[Listener] = []
        prefix = EPHEMERAL_PREFIX if ephemeral else ""
        parts = re.split(r"(\{\w+\})", prefix + format)
        pattern = (f"(?P<{part[1:-1]}>.+?)" if part.startswith("{") else re.escape(part) for part in parts)
        self._pattern = re.compile("".join(pattern), re.DOTALL)
        self._like = "".join("%" if part.startswith("{") else _escape_like(part) for part in parts)

    def __repr__(self) -> str:
        return f"{self.resource}:{self.format}"

    def match(self, text: str) -> Tokens | None:
        """The tokens of a tag of this kind (empty for a plain one), or None when `text` is another tag."""
        found = self._pattern.fullmatch(text)
        return None if found is None else found.groupdict()

    def find(self, tags: Iterable[str] | None) -> Tokens | None:
        """The tokens of the first tag of this kind among `tags`, for example a message's `system_tags`."""
        return next(iter(self.find_all(tags)), None)

    def find_all(self, tags: Iterable[str] | None) -> list[Tokens]:
        """The tokens of every tag of this kind among `tags`."""
        return [found for found in map(self.match, tags or ()) if found is not None]

    def text(self, **tokens: Any) -> str:
        """The tag with these tokens."""
        if set(tokens) != set(self.tokens):
            raise ValueError(f"tag {self!r} has the tokens {self.tokens}, not {tuple(tokens)}")
        return (EPHEMERAL_PREFIX if self.ephemeral else "") + re.sub(
            r"\{(\w+)\}", lambda found: str(tokens[found[1]]), self.format
        )

    def check(self, text: str, *, is_admin: bool) -> None:
        """Refuse a tag that its declaration does not allow."""
        if self.admin_only and not is_admin:
            raise CloudError(INVALID_ARGUMENT, f"system tag {self.format} can be given by an administrator only")
        if self.validator is not None:
            self.validator(self.match(text) or {})

    def resembles(self, column: Any) -> ColumnElement[bool]:
        """Whether a column holds a tag of this kind, as SQL can tell: it finds all of them, and may find others."""
        found: ColumnElement[bool] = column.like(self._like, escape="\\")
        return found

    async def get(self, session: AsyncSession, uuid: str) -> Tokens | None:
        """The tokens of the resource's tag of this kind, or None."""
        return next(iter(await self.get_all(session, uuid)), None)

    async def get_all(self, session: AsyncSession, uuid: str) -> list[Tokens]:
        """The tokens of every tag of this kind on the resource, oldest first."""
        return self.find_all([row.tag for row in await self._rows(session, uuid)])

    async def get_many(self, session: AsyncSession, uuids: Sequence[str]) -> dict[str, Tokens]:
        """The tokens by resource, for those that have a tag of this kind."""
        query = self._query().where(SystemTagModel.resource_uuid.in_(uuids))
        found = {row.resource_uuid: self.match(row.tag) for row in await session.scalars(query)}
        return {uuid: tokens for uuid, tokens in found.items() if tokens is not None}

    async def set(self, tx: AsyncSession, uuid: str, **tokens: Any) -> None:
        """Give the resource this tag, in place of any tag of this kind that it has."""
        text = self.text(**tokens)
        rows = await self._rows(tx, uuid)
        if not rows:
            await self.add(tx, uuid, **tokens)
            return
        old, rows[0].tag = rows[0].tag, text
        for extra in rows[1:]:
            await tx.delete(extra)
        await self._tell(tx, uuid, old, text)

    async def rewrite(self, tx: AsyncSession, uuid: str, **tokens: Any) -> None:
        """`set` in one statement, for a tag that changes time and again; only for one that nobody listens to."""
        if self._listeners:
            raise TypeError(f"tag {self!r} has listeners, who would not be told")
        if await _REWRITE.run(tx, key=uuid, pattern=self._like, text=self.text(**tokens)) != 1:
            await self.set(tx, uuid, **tokens)

    async def add(self, tx: AsyncSession, uuid: str, **tokens: Any) -> None:
        """Give the resource this tag beside others of its kind; nothing happens when it has exactly this one."""
        await self._store(tx, uuid, self.resource, self.text(**tokens))

    async def replace(self, tx: AsyncSession, row: SystemTagModel, text: str) -> None:
        """Change one stored tag of this kind into another one of this kind."""
        old, row.tag = row.tag, text
        await self._tell(tx, row.resource_uuid, old, text)

    async def delete(self, tx: AsyncSession, uuid: str, **tokens: Any) -> None:
        """Remove the resource's tags of this kind, or only those with the given tokens."""
        for row in await self._rows(tx, uuid):
            found = self.match(row.tag) or {}
            if all(found.get(name) == str(value) for name, value in tokens.items()):
                await tx.delete(row)
                await self._tell(tx, uuid, row.tag, None)

    def listen(self, listener: Listener) -> Listener:
        """Decorator: call `async listener(tx, resource_uuid, old, new)` with each change, inside its transaction.

        `old` and `new` are tokens, or None for "no tag"; an exception refuses the change.
        """
        self._listeners.append(listener)
        return listener

    async def _store(self, tx: AsyncSession, uuid: str, resource_type: str, text: str) -> None:
        row = SystemTagModel
        if await tx.scalar(select(row.uuid).where(row.resource_uuid == uuid, row.tag == text)) is None:
            tx.add(_system_row(uuid, resource_type, text, self.inherent))
            await self._tell(tx, uuid, None, text)

    async def _rows(self, session: AsyncSession, uuid: str) -> list[SystemTagModel]:
        found = await session.scalars(self._query().where(SystemTagModel.resource_uuid == uuid))
        return [row for row in found if self.match(row.tag) is not None]

    def _query(self) -> Any:
        order = (SystemTagModel.create_date, SystemTagModel.uuid)
        return select(SystemTagModel).where(self.resembles(SystemTagModel.tag)).order_by(*order)

    async def _tell(self, tx: AsyncSession, uuid: str, old: str | None, new: str | None) -> None:
        for listener in self._listeners:
            await listener(tx, uuid, old and self.match(old), new and self.match(new))  # type: ignore[arg-type]


_HERE = cast("Table", SystemTagModel.__table__).c
_THIS = _HERE.resource_uuid == bindparam("key")
_TEXTS = Prepared(select(_HERE.tag).where(_THIS))
_ORDERED = Prepared(select(_HERE.tag).where(_THIS).order_by(_HERE.create_date, _HERE.uuid))
_REWRITE = Prepared(
    update(cast("Table", SystemTagModel.__table__))
    .where(_THIS, _HERE.tag.like(bindparam("pattern"), escape="\\"))
    .values(tag=bindparam("text"))
)


async def texts_of(session: Reading, uuid: str) -> set[str]:
    """The stored system tags of a resource as text, quickly; what waits in the session is not among them."""
    return {text for (text,) in await _TEXTS.rows(session, key=uuid)}


async def tags_of(session: Reading, uuid: str) -> list[str]:
    """The system tags of a resource as text, oldest first: for who wants several kinds of them."""
    return [text for (text,) in await _ORDERED.rows(session, key=uuid)]


_declared: dict[tuple[str, str, bool], SystemTag] = {}


def system_tag(
    format: str,  # noqa: A002 - as in SystemTag
    resource: str,
    *,
    validator: Validator | None = None,
    admin_only: bool = False,
    ephemeral: bool = False,
    sensitive: tuple[str, ...] | bool = (),
    inherent: bool = False,
) -> SystemTag:
    """Declare a system tag of a resource type.

    `validator(tokens)` raises `CloudError` for bad content; `sensitive` names the tokens that no answer shows (True:
    all of them); `inherent` tags belong to the resource and cannot be removed by users.
    """
    made = SystemTag(
        format, resource, validator=validator, admin_only=admin_only, ephemeral=ephemeral, inherent=inherent,
        sensitive=tuple(re.findall(r"\{(\w+)\}", format)) if sensitive is True else sensitive or (),
    )  # fmt: skip
    return _declared.setdefault((resource, format, ephemeral), made)


def declared_tags(resource_type: str | None = None) -> list[SystemTag]:
    """The declared system tags, all or those that fit a resource type (also its parents')."""
    if resource_type is None:
        return list(_declared.values())
    return [one for one in _declared.values() if resources.is_a(resource_type, one.resource)]


def find_tag(resource_type: str, text: str) -> SystemTag | None:
    """The declaration that a tag of this resource type matches; a plain one before a pattern."""
    found = [one for one in declared_tags(resource_type) if one.match(text) is not None]
    return min(found, key=lambda one: len(one.tokens), default=None)


def masked(resource_type: str, text: str) -> str:
    """The tag as clients may see it."""
    for one in _declared.values():
        if one.sensitive and resources.is_a(resource_type, one.resource) and (tokens := one.match(text)) is not None:
            return one.text(**{**tokens, **dict.fromkeys(one.sensitive, MASK)})
    return text


def _masked_column(tag: Any) -> ColumnElement[Any]:
    """`masked` in SQL, with all parts of a tag hidden that has a secret one."""
    secret = [one for one in _declared.values() if one.sensitive]
    whens = [(one.resembles(tag), one.text(**dict.fromkeys(one.tokens, MASK))) for one in secret]
    return case(*whens, else_=tag) if whens else tag


def check_tag(resource_type: str | None, text: str, *, is_admin: bool) -> None:
    """Refuse a system tag that no declaration of the resource type allows (`SYS.1007`)."""
    config = RESOURCE_CONFIG.fullmatch(text)
    if config is not None:
        find_setting(config[1], config[2]).parse(config[3])
        return
    found = None if resource_type is None else find_tag(resource_type, text)
    if found is None:
        raise CloudError(INVALID_ARGUMENT, f"no system tag matches {text}", tag=text, resourceType=resource_type)
    found.check(text, is_admin=is_admin)


def check_tags(meta: ApiMeta, tags: Sequence[str] | None, is_admin: bool) -> None:
    """The portal's check of a message's system tags: those of create messages must match declared ones.

    As in the original, a list of nothing but ephemeral tags is not checked, nor are the tags of other messages.
    """
    if not tags or not issubclass(meta.cls, CreateMessage):
        return
    if all(one.startswith(EPHEMERAL_PREFIX) for one in tags):
        return
    for one in tags:
        if not one.startswith(EPHEMERAL_PREFIX):
            check_tag(meta.tags_for, one, is_admin=is_admin)


async def save_tags(tx: AsyncSession, msg: ApiMessage[Any], uuid: str, vo: str | None = None) -> None:
    """Store the tags that came with the message that makes the resource; repeated, nothing more happens.

    `vo` is the resource's type, by default the one that the message declares as `tags_for`.
    """
    resource_type = vo or msg.__api__.tags_for
    if resource_type is None:
        return
    await save_system_tags(tx, msg.system_tags, uuid, resource_type)
    pattern_uuids = msg.tag_uuids if isinstance(msg, CreateMessage) else None
    await save_user_tags(tx, msg.user_tags, uuid, resource_type, pattern_uuids)


async def save_user_tags(
    tx: AsyncSession,
    tags: Sequence[str] | None,
    uuid: str,
    resource_type: str,
    pattern_uuids: Sequence[str] | None = None,
) -> None:
    """Store user tags, and those of the named tag patterns."""
    for text in tags or ():
        await _save_user_tag(tx, uuid, resource_type, text, None)
    if pattern_uuids:
        pattern: Any = resources.model("TagPatternVO")
        for row in await tx.scalars(select(pattern).where(pattern.uuid.in_(pattern_uuids))):
            await _save_user_tag(tx, uuid, resource_type, row.value, row.uuid)


async def save_system_tags(tx: AsyncSession, tags: Sequence[str] | None, uuid: str, resource_type: str) -> None:
    """Store system tags (and `resourceConfig::` ones as overrides of settings); ephemeral ones are left out."""
    for text in tags or ():
        config = RESOURCE_CONFIG.fullmatch(text)
        if config is not None:
            await override(tx, find_setting(config[1], config[2]), uuid, resource_type, config[3])
        elif not text.startswith(EPHEMERAL_PREFIX):
            await save_system_tag(tx, uuid, resource_type, text)


async def save_system_tag(tx: AsyncSession, uuid: str, resource_type: str, text: str) -> None:
    """Store one system tag and tell its declaration's listeners."""
    declared = find_tag(resource_type, text)
    if declared is None:
        raise CloudError(INVALID_ARGUMENT, f"no system tag matches {text}", tag=text, resourceType=resource_type)
    await declared._store(tx, uuid, resource_type, text)


async def drop_tags(tx: AsyncSession, uuid: str) -> None:
    """Remove everything that hangs on a resource which is deleted: tags and overrides of settings."""
    for row in await tx.scalars(select(SystemTagModel).where(SystemTagModel.resource_uuid == uuid)):
        declared = find_tag(row.resource_type, row.tag)
        if declared is not None:
            await declared._tell(tx, uuid, row.tag, None)
        await tx.delete(row)
    await tx.execute(delete(UserTagModel).where(UserTagModel.resource_uuid == uuid))
    await drop_overrides(tx, uuid)


async def _save_user_tag(tx: AsyncSession, uuid: str, resource_type: str, text: str, pattern: str | None) -> None:
    row = UserTagModel
    known = select(row.uuid).where(row.resource_uuid == uuid, row.tag == text)
    if await tx.scalar(known) is None:
        tx.add(
            row(uuid=new_uuid(), resource_uuid=uuid, resource_type=resource_type, tag=text, tag_pattern_uuid=pattern)
        )


def _system_row(uuid: str, resource_type: str, text: str, inherent: bool) -> SystemTagModel:
    return SystemTagModel(
        uuid=new_uuid(), resource_uuid=uuid, resource_type=resource_type, tag=text, inherent=inherent
    )  # fmt: skip


def _escape_like(text: str) -> str:
    return re.sub(r"([%_\\])", r"\\\1", text)
