"""The API portal: every operation passes the same checks in the same order before its service sees it.

Syntax and resources exist (parameter by parameter), the new resource's UUID, session, permission, ownership, system
tags, the services' own checks; then a dry run ends, and anything else goes to the bus.

Invariant: a service's handler only ever sees a complete message, sent by somebody who may send it; nothing was changed
by the checks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from caelum.cloud.identity.errors import PERMISSION_DENIED
from caelum.cloud.identity.messages import CheckAccess, CheckActor, CheckSession
from caelum.gateway import syntax
from caelum.gateway.reading import api_parameters
from caelum.kernel import context, freshness, resources
from caelum.kernel.context import Actor
from caelum.kernel.errors import RESOURCE_NOT_FOUND, CloudError, error_type, invalid
from caelum.kernel.ids import is_uuid
from caelum.kernel.message import ApiMessage, ApiMeta, CreateMessage, ParamMeta
from caelum.kernel.patience import Patience
from caelum.kernel.postgresql import is_passing
from caelum.kernel.tag import check_tags

if TYPE_CHECKING:
    from caelum.kernel.node import Node

NO_SERVICE = error_type(
    "PORTAL.1000", "No service defines this API message", "The service that does this is not installed or is disabled."
)
VALIDATION_ONLY = "ephemeral::validationOnly"
"""The system tag that asks for the checks alone."""
ANY_RESOURCE = "ResourceVO"
NOBODY = Actor("", "")
"""Who calls the operations that need no login."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that a client asks for; `values` are arguments of the message class that it sent."""

    meta: ApiMeta
    values: dict[str, Any]
    session_uuid: str | None = None
    signer: Actor | None = None
    """Who signed it with an access key; it has no session then."""
    actor: Actor | None = None
    """Who had asked for a job that is taken over, in which case nobody has the session's own UUID any more."""
    job_uuid: str | None = None
    timeout: float | None = None

    @property
    def seconds(self) -> float:
        """How long it may take: what the client allows, at most what the operation does."""
        return min(self.timeout or self.meta.timeout, self.meta.timeout)


class Portal:
    """Checks and routes API messages on one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def actor(self, request: Request) -> Actor:
        """Who asks. INVALID_SESSION when the operation needs a session and this is none."""
        if not request.meta.login:
            return NOBODY
        if request.signer is not None:
            return request.signer
        if request.actor is not None:
            return await self._node.bus.call(CheckActor(actor=request.actor))
        return await self._node.bus.call(CheckSession(session_uuid=request.session_uuid))

    async def handle(self, request: Request) -> Any:
        """Check, route, and wait for the reply. Raises CloudError."""
        with freshness.begun():
            return await self._handle(request)

    async def _handle(self, request: Request) -> Any:
        meta = request.meta
        deadline = time.monotonic() + request.seconds
        task = context.TaskContext(actor=NOBODY, job_uuid=request.job_uuid, api=meta.name, deadline=deadline)
        msg, actor = await self._checked(request, task)
        if msg is None or VALIDATION_ONLY in (msg.system_tags or ()):
            return None
        with context.use(msgspec.structs.replace(task, actor=actor)):
            return await self._node.bus.call(msg)

    async def _checked(self, request: Request, task: context.TaskContext) -> tuple[ApiMessage[Any] | None, Actor]:
        """The message, once it has passed all checks, and who asks. A job is checked again while the database is away:
        its client waits anyway, and who calls at once rather asks another node."""
        away = Patience(is_passing)
        while True:
            try:
                return await self._checked_once(request, task)
            except CloudError as error:
                if request.job_uuid is None or not away.bears(error):
                    raise
            await away.pause()
            task.remaining()

    async def _checked_once(self, request: Request, task: context.TaskContext) -> tuple[ApiMessage[Any] | None, Actor]:
        with context.use(task):
            msg = await self._message(request)
            if msg is None:
                return None, NOBODY
            actor = await self.actor(request)
        with context.use(msgspec.structs.replace(task, actor=actor)):
            await self._authorise(request.meta, msg, actor)
            await self._check(request.meta, msg, actor)
        return msg, actor

    # --- the checks, in order -----------------------------------------------------------------------------------------

    async def _message(self, request: Request) -> ApiMessage[Any] | None:
        """The message, when it is complete and what it names exists; None when there is nothing left to do."""
        meta = request.meta
        if not self._node.bus.reaches(meta.cls):
            raise CloudError(NO_SERVICE, f"no service on this node handles {meta.name}", api=meta.name)
        values = syntax.trimmed(meta, request.values)
        for param in api_parameters(meta).values():
            value = values.get(param.name)
            syntax.check(meta, param, value)
            if missing := await self._missing(param, value):
                if param.param.success_if_missing:
                    return None
                raise _not_found(param, missing)
        msg = syntax.build(meta, values)
        if isinstance(msg, CreateMessage) and msg.resource_uuid is not None:
            await self._check_new(msg.resource_uuid)
        return msg

    async def _check_new(self, uuid: str) -> None:
        """A UUID that the client chose is one, and nobody's: else what is made would take that resource's owner."""
        if not is_uuid(uuid):
            raise invalid("resourceUuid", f"{uuid[:64]} is no UUID of version 1 to 5 without hyphens, in lower case")
        if (vo := await self._node.resources.type_of(uuid)) is not None:
            raise invalid("resourceUuid", f"{uuid} is that of a resource that exists, of type {vo}")

    async def _missing(self, param: ParamMeta, value: Any) -> list[str]:
        uuids = uuids_of(value)
        vo = param.param.resource
        if vo is None or not uuids:
            return []
        if vo == ANY_RESOURCE:
            return [one for one in dict.fromkeys(uuids) if await self._node.resources.type_of(one) is None]
        # Nothing exists of a type that nobody brings.
        return await self._node.resources.unknown(vo, uuids) if vo in resources.types() else uuids

    async def _authorise(self, meta: ApiMeta, msg: ApiMessage[Any], actor: Actor) -> None:
        if not meta.login or actor.is_admin:
            return
        if meta.admin_only:
            raise CloudError(PERMISSION_DENIED, f"operation[API:{meta.name}] is allowed to administrators only")
        for param in api_parameters(meta).values():
            if param.param.check_account:
                await self._check_owner(param, uuids_of(getattr(msg, param.name)), actor)

    async def _check_owner(self, param: ParamMeta, uuids: list[str], actor: Actor) -> None:
        if not uuids:
            return
        access = await self._node.bus.call(CheckAccess(account_uuid=actor.account_uuid, resource_uuids=uuids))
        if access.hidden:
            # The same answer as for what does not exist: nobody learns which UUIDs other accounts use.
            raise _not_found(param, access.hidden)
        if access.foreign and param.param.target and not param.param.no_owner_check:
            raise CloudError(
                PERMISSION_DENIED,
                f"resource[uuid:{access.foreign[0]}] is shared with you; only its owner may change it",
            )

    async def _check(self, meta: ApiMeta, msg: ApiMessage[Any], actor: Actor) -> None:
        check_tags(meta, msg.system_tags, actor.is_admin)
        for check in self._node.interceptors_of(type(msg)):
            await check(msg)


def uuids_of(value: Any) -> list[str]:
    """The UUIDs in a parameter's value, which may be one, several or none."""
    if isinstance(value, str):
        return [value]
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _not_found(param: ParamMeta, uuids: list[str]) -> CloudError:
    return CloudError(
        RESOURCE_NOT_FOUND,
        f"invalid field[{param.wire}], resource[uuid:{uuids[0][:64]}, type:{param.param.resource}] not found",
        field=param.wire,
        resourceType=param.param.resource,
        uuids=uuids[:100],
    )
