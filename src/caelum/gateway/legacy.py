"""The message API of older clients: `POST /zstack/api/` with a message by its class name, then `GET /result/{uuid}`.

Invariant: it is another spelling of the same operations: the same portal, the same jobs. The HTTP status is 200 also
for failures; the result is JSON text with one key, the class of the answer.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from caelum.gateway.answer import error_body
from caelum.gateway.http import LARGE_BODY, SECURITY_HEADERS, client_of, json_answer, to_text
from caelum.gateway.portal import Request
from caelum.gateway.reading import read_json, typed
from caelum.gateway.refusal import Refusal
from caelum.kernel.database import utcnow
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import ApiMeta, api
from caelum.kernel.views import format_time, reply_value

if TYPE_CHECKING:
    from caelum.gateway.runner import Runner
    from caelum.kernel.jobs import Job
    from caelum.kernel.node import Node

Answer = dict[str, Any]


class Legacy:
    """The legacy side of the gateway."""

    def __init__(self, node: Node, runner: Runner) -> None:
        self._node = node
        self._runner = runner

    async def handle(self, request: web.BaseRequest, raw: bytes, segments: list[str]) -> web.StreamResponse:
        """Answer a request with this body; `segments` follow the prefix."""
        if segments[:1] == ["result"] and len(segments) == 2 and request.method == "GET":
            return json_answer(await self._result(segments[1]))
        if segments or request.method not in ("POST", "PUT"):
            raise Refusal(404, f"no api mapping to {request.method} /api/{'/'.join(segments)}")
        try:
            message = await asyncio.to_thread(read_message, raw) if len(raw) > LARGE_BODY else read_message(raw)
        except Refusal as refusal:
            # Clients of this endpoint read the text and do not look at the status.
            return web.Response(text=refusal.text, headers=SECURITY_HEADERS)
        return json_answer(await self._run(request, message))

    async def _run(self, http: web.BaseRequest, request: Request) -> Answer:
        started = format_time(utcnow())
        if request.meta.kind == "async":
            uuid = await self._runner.submit(request)
            return {"uuid": uuid, "state": "Processing", "createdDate": started}
        try:
            body = reply_value(request.meta, await self._runner.call(request, client_of(http)))
        except CloudError as error:
            body = error_body(error)
        text = to_text(envelope(request.meta, body))
        return {"state": "Done", "createdDate": started, "finishedDate": format_time(utcnow()), "result": text}

    async def _result(self, uuid: str) -> Answer:
        job = await self._node.jobs.get(uuid)
        if job is None:
            raise Refusal(404, "the job has been expired")
        answer = {"uuid": job.uuid, "state": job.state, "createdDate": format_time(job.create_date)}
        meta = api(job.api)
        if job.done and meta is not None:
            answer["finishedDate"] = format_time(job.finish_date or utcnow())
            answer["result"] = to_text(envelope(meta, body_of(job)))
        return answer


def read_message(raw: bytes, job_uuid: str | None = None) -> Request:
    """The operation that a message asks for, an object with one key: the class of the message. Raises Refusal."""
    body = read_json(raw)
    if len(body) != 1:
        raise Refusal(400, f"the body must have one key, the message's class; it has {len(body)}")
    name, fields = next(iter(body.items()))
    meta = api(name)
    if meta is None or not isinstance(fields, dict):
        raise Refusal(400, f"no message is called {name[:255]}")
    session = fields.get("session")
    session_uuid = session.get("uuid") if isinstance(session, dict) else None
    return Request(
        meta=meta,
        values=typed(meta, fields),
        session_uuid=session_uuid if isinstance(session_uuid, str) else None,
        job_uuid=job_uuid or new_uuid(),
    )


def body_of(job: Job) -> Answer:
    """The body of a finished job's answer."""
    if job.error is not None:
        return error_body(job.error)
    found: Answer = json.loads(job.result or "{}")
    return found


def envelope(meta: ApiMeta, body: Answer) -> Answer:
    """An answer as message: its class as the one key, and whether the operation succeeded."""
    kind = "Event" if meta.kind == "async" else "Reply"
    return {meta.java_class.removesuffix("Msg") + kind: {"success": "error" not in body, **body}}
