"""Running operations: at once for synchronous ones, as jobs for the others.

Invariant: a job that this node accepted is answered by this node as long as it lives, also when the node that did the
work died and another one finished it. When this node stops meanwhile the job stays open, so that a resumed workflow,
or whoever takes the job over, answers it truly. What is declared to be repeatable is done anew only when it is certain
that it was not begun: no run answers the job, and whoever might begin one is evicted or finds the job taken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from caelum.cloud.identity.errors import AUTHENTICATION_ERROR
from caelum.gateway.keeping import keep, restored
from caelum.gateway.limits import LoginLimit
from caelum.gateway.portal import NOBODY, Portal, Request
from caelum.gateway.refusal import Refusal
from caelum.kernel.context import Actor
from caelum.kernel.errors import CANCELED, INVALID_ARGUMENT, CloudError, as_cloud_error
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE
from caelum.kernel.membership import departed, is_database_away, is_of_cluster
from caelum.kernel.message import api
from caelum.kernel.views import reply_body

if TYPE_CHECKING:
    from caelum.kernel.jobs import Begin, Job
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

_REROUTES = (0.5, 1.0, 2.0, 4.0)
"""Seconds until the others see that a node has gone; together longer than an eviction takes."""
_EVICTED_WITHIN = 30.0
"""Seconds within which a node that is said to be gone has no row any more, also one that ends its work in order."""
_EVICTION_PAUSE = 0.2
_ANEW = (0.2, 0.5, 1.0, *[2.0] * 7)
"""Seconds before an operation is done anew: others may learn a little later that a node is gone, and a node that is cut
off from the database is not gone at once."""
_START_PAUSE = 0.1
_LEAST_SECONDS = 0.001


class Runner:
    """Runs what clients ask for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._portal = Portal(node)
        self._logins = LoginLimit()
        self._tasks: set[asyncio.Task[None]] = set()
        node.jobs.on_orphan(self._take_over)

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
        uuid, meta = request.job_uuid or "", request.meta
        kept = keep(request) if self._node.bus.is_repeatable(meta.cls) else None
        try:
            await self._node.jobs.create(uuid, meta.name, await self._claimed(request), kept, web_hook=web_hook)
        except CloudError as error:
            if error.kind is INVALID_ARGUMENT:
                raise Refusal(400, error.details) from None
            raise
        self._begin(uuid, request)
        return uuid

    def _begin(self, uuid: str, request: Request, *, taken_over: bool = False) -> None:
        task = asyncio.create_task(self._run(uuid, request, taken_over), name=f"job:{uuid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take_over(self, job: Job, kept: str) -> Begin | None:
        """See `Jobs.on_orphan`: what this node knows how to do, and may do anew, for as long as the job has time."""
        meta = api(job.api)
        if meta is None or not self._node.bus.is_repeatable(meta.cls):
            return None
        try:
            request = restored(meta, job, kept)
        except (msgspec.MsgspecError, Refusal) as error:
            log.warning("what job %s was to do cannot be read: %s", job.uuid, error)
            return None
        return None if request is None else partial(self._begin, job.uuid, request, taken_over=True)

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

    async def _run(self, uuid: str, request: Request, taken_over: bool) -> None:
        until = time.monotonic() + request.seconds
        while taken_over and not self._node.serves:  # it is taken over while the node still starts
            if self._node.stopping:
                return
            await asyncio.sleep(_START_PAUSE)
        answer, certain = await self._answer(uuid, request, until, again=taken_over)
        if answer is None:
            return
        if isinstance(answer, CloudError) and not self._node.ready:
            # What fails because the node stops is not the outcome: after the restart it is known.
            return
        try:
            await (self._node.jobs.finish(uuid, answer) if certain else self._node.workflows.finish_job(uuid, answer))
        except Exception:
            # It stays open until this node starts anew, or others take it for dead.
            log.exception("the answer of job %s (%s) could not be written", uuid, request.meta.name)

    async def _answer(
        self, uuid: str, request: Request, until: float, *, again: bool
    ) -> tuple[str | Exception | None, bool]:
        """The job's answer (None: it was given), and whether it is true whatever else begins. What a node did not begin
        before it was evicted, or because it did not reach the database, is done anew, by whoever has it now.

        `again` says that somebody else may have begun; then only what became of a run is true, where there is one.
        """
        pauses = iter(_ANEW)
        while True:
            answer = await self._tried(uuid, request, until)
            if answer is None:
                return None, True
            try:
                undone = self._node.ready and await self._is_left_undone(request, answer, until)
                if again or undone or _says_nothing(answer):
                    truth = await self._node.workflows.answer_of_job(uuid)
                    if truth is not None:
                        return truth, True
            except Exception as unknown:
                log.warning("what became of job %s cannot be found out: %s", uuid, unknown)
                return answer, False
            pause = next(pauses, None)
            if not undone or pause is None or time.monotonic() + pause > until:
                return answer, not (again or _says_nothing(answer))
            log.info("job %s (%s) is done anew, for nothing was done before: %s", uuid, request.meta.name, answer)
            await asyncio.sleep(pause)
            again = True

    async def _tried(self, uuid: str, request: Request, until: float) -> str | Exception | None:
        """The answer; None when the workflow has given it with its end."""
        try:
            reply = await self._handled(request, until)
            return None if self._node.jobs.take_ended(uuid) else reply_body(request.meta.name, reply)
        except CloudError as error:
            return error
        except Exception as error:
            log.exception("the operation %s failed in the portal", request.meta.name)
            return as_cloud_error(error)

    async def _handled(self, request: Request, until: float) -> Any:
        """The reply. What certainly did not arrive, because its node has just left, is sent anew to the next owner."""
        for pause in _REROUTES:
            try:
                return await self._portal.handle(_within(request, until))
            except CloudError as error:
                if not (error.facts.get("undelivered") and error.facts.get("message") == request.meta.name):
                    raise
                await asyncio.sleep(pause)
        return await self._portal.handle(_within(request, until))

    async def _is_left_undone(self, request: Request, answer: str | Exception, until: float) -> bool:
        """Whether the answer is that a node went away or was without database, nothing more is to come from there, and
        nothing is lost if it is done anew unless it has begun: then there is a run."""
        if not isinstance(answer, CloudError) or not self._node.bus.is_repeatable(request.meta.cls):
            return False
        if is_database_away(answer):  # whoever says so has ended with it
            return await self._node.db.read_surely(self._node.membership.may_do_anew)
        node = departed(answer)
        if node is None or node == self._node.uuid:
            return False
        until = min(until, time.monotonic() + _EVICTED_WITHIN)
        while time.monotonic() < until:
            if not await self._node.db.read_surely(partial(self._node.membership.is_member, uuid=node)):
                return await self._node.db.read_surely(self._node.membership.may_do_anew)
            await asyncio.sleep(_EVICTION_PAUSE)
        return False


def _says_nothing(answer: str | Exception) -> bool:
    """Whether it is an error that does not say what becomes of the work: a node that did it went away."""
    if not isinstance(answer, CloudError):
        return False
    return answer.kind in (MANAGEMENT_NODE_UNAVAILABLE, CANCELED) or is_of_cluster(answer)


def _within(request: Request, until: float) -> Request:
    return msgspec.structs.replace(request, timeout=max(_LEAST_SECONDS, until - time.monotonic()))
