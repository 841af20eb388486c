"""Operations by AMQP: messages of the queue that all nodes share, answered to the queue that the client names.

Invariant: it is another spelling of the same operations: the same portal, the same jobs. A message is acknowledged
when the broker has its answer (synchronous operations) or its job is recorded (others), so a node that dies before
leaves it to another; the answer of a job is sent by whichever node finishes it, and again by another one if the broker
did not confirm it. So an answer may come twice after a failure, but it comes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from caelum.gateway.answer import error_body
from caelum.gateway.http import LARGE_BODY, to_text
from caelum.gateway.legacy import body_of, envelope, read_message
from caelum.gateway.portal import Request
from caelum.gateway.refusal import Refusal
from caelum.kernel.bus import ApiCall
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.ids import derived_uuid
from caelum.kernel.membership import NodeLifecycle
from caelum.kernel.message import api
from caelum.kernel.views import reply_value

if TYPE_CHECKING:
    from caelum.gateway.runner import Runner
    from caelum.kernel.jobs import Job
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

_HOOK = "amqp:"
_LEASE_PAUSE = 0.2
_MOST_PENDING = 10_000
_STOP_SECONDS = 2.0
"""How long a node that stops waits for the broker to take answers of jobs; others send what is left."""
_UNREADABLE = "org.zstack.header.message.APIReply"


class _ReplyTo(msgspec.Struct, frozen=True):
    """Where a job's answer goes; as text it takes the place of the job's web hook."""

    queue: str
    correlation: str

    def hook(self) -> str:
        return _HOOK + msgspec.json.encode(self).decode()


class AmqpPortal:
    """The AMQP side of the gateway."""

    def __init__(self, node: Node, runner: Runner) -> None:
        self._node = node
        self._runner = runner
        self._settling: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Take operations from the moment on at which the node is ready."""
        self._node.bus.subscribe(NodeLifecycle, self._on_lifecycle)
        self._node.jobs.on_finish(self._finished)

    async def close(self) -> None:
        """Take no more operations."""
        await self._node.bus.close_api()

    async def stop(self) -> None:
        """Send the answers that are there; called when no more jobs end."""
        tasks = list(self._settling.values())
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _on_lifecycle(self, event: NodeLifecycle) -> None:
        if event.node_uuid == self._node.uuid and event.life_cycle == "NodeJoin":
            await self._node.bus.open_api(self.handle)

    async def handle(self, call: ApiCall) -> bytes | None:
        """Answer an operation; None: its job's answer follows."""
        while self._node.ready and not self._node.serves:  # noqa: ASYNC110 - the lease has no event
            # Without its lease this node could only refuse; when it loses more than that, another gets the message.
            await asyncio.sleep(_LEASE_PAUSE)
        try:
            request = await self._read(call)
        except Refusal as refusal:
            return _failed(_UNREADABLE, CloudError(INVALID_ARGUMENT, refusal.text))
        try:
            if request.meta.kind == "async":
                return await self._submit(call, request)
            return _text(request, reply_value(request.meta, await self._runner.call(request, "amqp")))
        except CloudError as error:
            return _text(request, error_body(error))
        except Refusal as refusal:
            return _text(request, error_body(CloudError(INVALID_ARGUMENT, refusal.text)))
        except Exception as error:
            log.exception("the operation %s, which came by AMQP, failed", request.meta.name)
            return _text(request, error_body(error))

    async def _read(self, call: ApiCall) -> Request:
        # The same for the same message, so that one that is delivered twice is one job.
        job = derived_uuid("amqp-job", call.id)
        if len(call.body) > LARGE_BODY:
            request = await asyncio.to_thread(read_message, call.body, job)
        else:
            request = read_message(call.body, job)
        return msgspec.structs.replace(request, timeout=call.timeout)

    async def _submit(self, call: ApiCall, request: Request) -> bytes | None:
        uuid = request.job_uuid or ""
        hook = _ReplyTo(call.reply_to, call.correlation).hook() if call.reply_to else None
        try:
            await self._runner.submit(request, hook)
        except Refusal:
            job = await self._node.jobs.get(uuid)
            if job is None or job.web_hook not in (None, hook):
                raise
            log.info("the operation %s of job %s was delivered again", request.meta.name, uuid)
            # An answer that is not settled is on its way already.
            return _answer_of(job) if job.done and job.web_hook is None else None
        return None

    def _finished(self, job: Job) -> None:
        if job.web_hook is None or not job.web_hook.startswith(_HOOK):
            return
        if job.uuid in self._settling or len(self._settling) >= _MOST_PENDING:
            return  # what finds no room is told again
        to = msgspec.json.decode(job.web_hook.removeprefix(_HOOK), type=_ReplyTo)
        task = asyncio.get_running_loop().create_task(self._settle(job, to), name=f"amqp:{job.uuid}")
        self._settling[job.uuid] = task
        task.add_done_callback(lambda _task: self._settling.pop(job.uuid, None))

    async def _settle(self, job: Job, to: _ReplyTo) -> None:
        try:
            if await self._node.bus.answer(to.queue, to.correlation, _answer_of(job)):
                await self._node.jobs.hook_settled(job.uuid)
        except CloudError as error:
            log.info("the answer of job %s is sent, which could not be noted; it will be again: %s", job.uuid, error)


def _answer_of(job: Job) -> bytes:
    meta = api(job.api)
    if meta is None:
        return _failed(_UNREADABLE, CloudError(INVALID_ARGUMENT, f"operation[{job.api}] is not known any more"))
    return to_text(envelope(meta, body_of(job))).encode()


def _text(request: Request, body: dict[str, object]) -> bytes:
    return to_text(envelope(request.meta, body)).encode()


def _failed(name: str, error: CloudError) -> bytes:
    return to_text({name: {"success": False, **error_body(error)}}).encode()
