"""REST: requests under /zstack/v1 and /v1 as API messages, and their answers; polling of jobs.

Invariant: an asynchronous operation is accepted (202) only after its job is in the database; every accepted job gets an
answer, on this node or on the one that takes over. HTTP-layer errors are plain text, operations' errors 503 with JSON.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from caelum.cloud.identity.errors import ACCESS_KEY_REFUSED
from caelum.gateway.answer import error_body, with_schema
from caelum.gateway.http import LARGE_BODY, base_url, client_of, json_answer, oauth_session, raw_json
from caelum.gateway.portal import Request
from caelum.gateway.querying import from_query_string
from caelum.gateway.reading import from_body, from_query, read_json, read_query, typed
from caelum.gateway.refusal import Refusal
from caelum.gateway.routes import Entry, RouteTable
from caelum.gateway.signature import signed
from caelum.gateway.webhook import check_url
from caelum.kernel.context import Actor
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.message import ApiMeta, api
from caelum.kernel.views import reply_value

if TYPE_CHECKING:
    from caelum.gateway.limits import Concurrency
    from caelum.gateway.runner import Runner
    from caelum.kernel.jobs import Job
    from caelum.kernel.node import Node

JOBS = "api-jobs"
LONGEST_WAIT = 30.0
"""How long a poll may wait for its job, in seconds (header `Prefer: wait=<seconds>`)."""
_JOB_UUID = re.compile(r"[0-9A-Za-z]{32}")
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})(?:$|[,;\s])")


class Rest:
    """The REST side of the gateway."""

    def __init__(self, node: Node, runner: Runner, routes: RouteTable, places: Concurrency) -> None:
        self._node = node
        self._runner = runner
        self._routes = routes
        self._places = places

    async def handle(self, request: web.BaseRequest, raw: bytes, prefix: str, path: str) -> web.StreamResponse:
        """Answer a request with this body; `path` is what follows `prefix`, still percent-encoded."""
        segments = [one for one in path.split("/") if one]
        if segments[:1] == [JOBS] and len(segments) == 2:
            return await self._poll(request, segments[1])
        entry, values = self._routes.find(path)
        entry.check_method(request.method)
        if len(raw) <= LARGE_BODY:
            asked = self._read(request, entry, values, raw)
        else:  # long work in one piece would hold up every other client
            asked = await asyncio.to_thread(self._read, request, entry, values, raw)
        if asked.meta.login and asked.session_uuid is None:
            asked = msgspec.structs.replace(asked, signer=await self._signer(request, path))
        return await self._call(request, prefix, asked)

    async def _signer(self, request: web.BaseRequest, path: str) -> Actor | None:
        """Who signed a request; refused before anything is made of it, as the original does."""
        claim = signed(request)
        if claim is None:
            return None
        try:
            return await self._node.bus.call(claim.check(request.method, path))
        except CloudError as error:
            if error.code != ACCESS_KEY_REFUSED.code:
                raise
            raise Refusal(403, error.details) from None

    def _read(self, request: web.BaseRequest, entry: Entry, values: list[str], raw: bytes) -> Request:
        query, body = read_query(request.rel_url.raw_query_string), read_json(raw)
        target = entry.pick(request.method, body)
        meta, variables = target.meta, dict(zip(target.variables, values, strict=True))
        session = oauth_session(request) if meta.login and signed(request) is None else None
        if meta.kind == "query":
            arguments = from_query_string(variables, query)
        else:
            found = from_query(meta, query) if meta.method in ("GET", "DELETE") else from_body(meta, body)
            arguments = typed(meta, {**found, **variables})
        return Request(
            meta=meta,
            values=arguments,
            session_uuid=session,
            job_uuid=_job_uuid(request),
            timeout=_timeout(request),
        )

    async def _call(self, http: web.BaseRequest, prefix: str, request: Request) -> web.Response:
        if request.meta.kind == "async":
            return await self._accept(http, prefix, request)
        try:
            reply = await self._runner.call(request, client_of(http))
        except CloudError as error:
            return json_answer(error_body(error), 503)
        body = reply_value(request.meta, reply)
        return json_answer(with_schema(request.meta, body) if _wants_schema(http, request.meta) else body)

    async def _accept(self, http: web.BaseRequest, prefix: str, request: Request) -> web.Response:
        hook = http.headers.get("X-Web-Hook")
        if hook is not None:
            check_url(hook)
        base = base_url(http)
        accepted = await self._runner.submit(request, hook)
        location = f"{base}{prefix}/{JOBS}/{accepted}"
        return json_answer(
            {"location": location, "apiTimeout": int(request.seconds * 1000)}, 202, {"Location": location}
        )

    # --- polling ------------------------------------------------------------------------------------------------------

    async def _poll(self, request: web.BaseRequest, uuid: str) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, f"the method {request.method} is not allowed for jobs", {"Allow": "GET"})
        seconds = _wait_seconds(request) if self._places.may_idle else 0.0
        if not seconds and self._node.jobs.is_open(uuid):
            return json_answer({}, 202)
        job = await self._job(uuid, seconds)
        if job is None:
            raise Refusal(404, "the job has been expired")
        if not job.done:
            return json_answer({}, 202)
        if job.error is not None:
            return json_answer(error_body(job.error), 503)
        return raw_json(result_bytes(job, schema="X-JSON-Schema" in request.headers))

    async def _job(self, uuid: str, seconds: float) -> Job | None:
        if not seconds:
            return await self._node.jobs.get(uuid)
        try:
            with self._places.aside():
                async with asyncio.timeout(seconds):
                    return await self._node.jobs.wait(uuid)
        except TimeoutError:
            return await self._node.jobs.get(uuid)


def result_bytes(job: Job, *, schema: bool) -> bytes:
    """The body of a job that succeeded."""
    text = job.result or "{}"
    meta = api(job.api)
    if schema and meta is not None:
        return msgspec.json.encode(with_schema(meta, msgspec.json.decode(text)))
    return text.encode()


def _wants_schema(request: web.BaseRequest, meta: ApiMeta) -> bool:
    return meta.kind == "query" or "X-JSON-Schema" in request.headers


def _job_uuid(request: web.BaseRequest) -> str:
    given = request.headers.get("X-Job-UUID")
    if given is None:
        return new_uuid()
    if not _JOB_UUID.fullmatch(given):
        raise Refusal(400, "X-Job-UUID must be 32 letters and digits")
    return given


def _timeout(request: web.BaseRequest) -> float | None:
    given = request.headers.get("X-API-Timeout")
    if given is None:
        return None
    try:
        seconds = int(given)
    except ValueError:
        raise Refusal(400, f"X-API-Timeout is not a number of seconds: {given[:64]}") from None
    if seconds <= 0:
        raise Refusal(400, f"X-API-Timeout must be positive: {seconds}")
    return float(seconds)


def _wait_seconds(request: web.BaseRequest) -> float:
    found = _WAIT.search(request.headers.get("Prefer", ""))
    return min(float(found[1]), LONGEST_WAIT) if found else 0.0
