"""Running operations: at once for synchronous ones, as jobs for the others.

Invariant: a job that this node accepted is answered by this node as long as it lives, also when the node that did the
work died and another one finished it. When this node stops meanwhile the job stays open, so that a resumed workflow or
the next start answers it truly.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from caelum.cloud.identity.errors import AUTHENTICATION_ERROR
from caelum.gateway.limits import LoginLimit
from caelum.gateway.portal import NOBODY, Portal, Request
from caelum.gateway.refusal import Refusal
from caelum.kernel.context import Actor
from caelum.kernel.errors import CANCELED, INVALID_ARGUMENT, CloudError, as_cloud_error
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE, reply_body
from caelum.kernel.membership import is_of_cluster

if TYPE_CHECKING:
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

_REROUTES = (0.5, 1.0, 2.0, 4.0)
"""Seconds until the others see that a node has gone; together longer than an eviction takes."""


class Runner:
    """Runs what clients ask for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._portal = Portal(node)
        self._logins = LoginLimit()
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, request: Request, client: str) -> Any:
        """The reply of a synchronous operation; `client` is who may log in wrongly so often. Raises CloudError."""
        if not request.meta.login:
            self._logins.check(client)
        try:
            reply = await self._portal.handle(request)
        except CloudError as error:
            if error.kind is AUTHENTICATION_ERROR:
                self._logins.failed(client)
            raise
        except Exception as error:
            log.exception("the operation %s failed in the portal", request.meta.name)
            raise as_cloud_error(error) from None
        return reply

    async def submit(self, request: Request, web_hook: str | None = None) -> str:
        """Record the job of an asynchronous operation and begin to work on it."""
        uuid = request.job_uuid or ""
        try:
            await self._node.jobs.create(uuid, request.meta.name, await self._claimed(request), web_hook=web_hook)
        except CloudError as error:
            if error.kind is INVALID_ARGUMENT:
                raise Refusal(400, error.details) from None
            raise
        task = asyncio.create_task(self._run(uuid, request), name=f"job:{uuid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return uuid

    async def stop(self, seconds: float) -> None:
        """Let the running jobs end for a while, then leave them open."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=seconds)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _claimed(self, request: Request) -> Actor:
        """Whose job it is; a bad session is reported by the job, so here it is only nobody's."""
        try:
            return await self._portal.actor(request)
        except CloudError:
            return NOBODY

    async def _run(self, uuid: str, request: Request) -> None:
        try:
            answer: str | Exception = reply_body(request.meta.name, await self._handled(request))
        except CloudError as error:
            answer = await self._truth(uuid, error)
        except Exception as error:
            log.exception("the operation %s failed in the portal", request.meta.name)
            answer = as_cloud_error(error)
        if isinstance(answer, CloudError) and not self._node.ready:
            # What fails because the node stops is not the outcome: after the restart it is known.
            return
        try:
            await self._node.jobs.finish(uuid, answer)
        except Exception:
            # It stays open until this node starts anew, or others take it for dead.
            log.exception("the answer of job %s (%s) could not be written", uuid, request.meta.name)

    async def _handled(self, request: Request) -> Any:
        """The reply. What certainly did not arrive, because its node has just left, is sent anew to the next owner."""
        for pause in _REROUTES:
            try:
                return await self._portal.handle(request)
            except CloudError as error:
                if not (error.facts.get("undelivered") and error.facts.get("message") == request.meta.name):
                    raise
                await asyncio.sleep(pause)
        return await self._portal.handle(request)

    async def _truth(self, uuid: str, error: CloudError) -> str | Exception:
        """The job's answer after an error: a node that went away says nothing of what becomes of its work."""
        if error.kind not in (MANAGEMENT_NODE_UNAVAILABLE, CANCELED) and not is_of_cluster(error):
            return error
        try:
            return await self._node.workflows.answer_of_job(uuid) or error
        except CloudError as unknown:
            log.warning("what became of job %s cannot be found out: %s", uuid, unknown)
            return error
