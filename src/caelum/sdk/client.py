"""The Python client: any public operation by its name, jobs polled to their end, errors as exceptions.

    client = Client("http://127.0.0.1:8080")
    client.login("admin", "password")
    zone = client.call("CreateZone", name="zone1")
    vms = client.query("VmInstance", "state=Running")

Operations of the server's plugins are asked for when one is first called. Standard library only. Several addresses may
be given: the next is tried when one does not answer, and a job that was begun at one is polled at any (`transport.py`
says what is repeated and what is not).
"""

from __future__ import annotations

import hashlib
import json
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from caelum.sdk.errors import ApiError as ApiError
from caelum.sdk.manifest import Operation, learn, load
from caelum.sdk.transport import HTTP_TIMEOUT, NOT_READY, Ask, Transport

FIRST_POLL = 0.05
LONGEST_POLL = 1.0
"""Seconds between polls of a job: they grow from the first to the longest. A server that can, answers at the end."""
POLL_PATIENCE = 120.0
"""Seconds for which a job is still polled while nobody answers: it outlives the node that began it."""


class Client:
    """A session with the cloud at one or several addresses (`http://host:port`)."""

    def __init__(self, *addresses: str, session: str | None = None) -> None:
        self._transport = Transport([one.rstrip("/") for one in addresses] or ["http://127.0.0.1:8080"])
        self.session = session

    def login(self, account: str, password: str) -> str:
        """Open a session as `account` and return its UUID."""
        hashed = hashlib.sha512(password.encode()).hexdigest()
        self.session = str(self.call("LogInByAccount", accountName=account, password=hashed)["uuid"])
        return self.session

    def query(self, resource: str, *conditions: str, **options: Any) -> list[dict[str, Any]]:
        """The inventories of `resource` ("VmInstance") that meet all conditions ("state=Running")."""
        return list(self.call(f"Query{resource}", q=list(conditions), **options) or [])

    def call(
        self,
        name: str,
        /,
        *,
        timeout: float = 1800.0,
        progress: Callable[[float], None] | None = None,
        **parameters: Any,
    ) -> Any:
        """Run an operation and return its result. Raises ApiError, TimeoutError, OSError, KeyError for an unknown name.

        `progress` is called at each poll with the seconds that the job has run.
        """
        operation = self._operation(name)
        status, answer = self._request(operation, parameters)
        if status == 202 and "location" in answer:
            answer = self._wait(answer["location"], timeout, progress)
        return answer.get(operation.reply_key) if operation.reply_key else answer

    def submit(self, name: str, /, **parameters: Any) -> str:
        """Begin an operation and return where its job can be polled."""
        _, answer = self._request(self._operation(name), parameters)
        return str(answer.get("location", ""))

    def count(self, name: str, *conditions: str) -> int:
        """How many resources a query finds."""
        _, answer = self._request(self._operation(name), {"q": list(conditions), "count": True})
        return int(answer["total"])

    def learn(self, timeout: float = HTTP_TIMEOUT) -> bytes:
        """Learn the operations of the server's plugins, and return them as text. Raises ApiError or OSError."""
        ask = Ask("GET", "/operations.json", safe=True, patience=timeout)
        text = json.dumps(self._transport.send(ask)[1]).encode()
        try:
            learn(text)
        except ValueError as error:
            raise OSError(f"the server's list of operations cannot be read: {error}") from error
        return text

    def _operation(self, name: str) -> Operation:
        if name not in load():
            self.learn()
        return load()[name]

    def _request(self, operation: Operation, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        path, body, query = request_parts(operation, parameters)
        # The job's UUID is ours, so that a request that was repeated because its answer got lost is recognised.
        job = uuid.uuid4().hex if operation.job else None
        # What needs no session changes nothing but sessions: one too many harms nobody.
        safe = operation.method == "GET" or not operation.login
        tail = f"/zstack/v1{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        return self._transport.send(Ask(operation.method, tail, data, self._headers(), job=job, safe=safe))

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"OAuth {self.session}"} if self.session else {}

    def _wait(self, location: str, timeout: float, progress: Callable[[float], None] | None) -> dict[str, Any]:
        started, pause = time.monotonic(), FIRST_POLL
        heard = started
        while True:
            asked = time.monotonic()
            try:
                status, answer = self._poll(location)
                heard = time.monotonic()
            except OSError:
                status = 202
                if time.monotonic() - heard > POLL_PATIENCE:
                    raise
            if status != 202:
                return answer
            elapsed = time.monotonic() - started
            if elapsed > timeout:
                raise TimeoutError(f"the job at {location} still runs after {timeout:.0f} s; poll it later")
            if progress:
                progress(elapsed)
            time.sleep(max(0.0, asked + pause - time.monotonic()))
            pause = min(pause * 1.5, LONGEST_POLL)

    def _poll(self, location: str) -> tuple[int, dict[str, Any]]:
        path = f"/zstack{location[location.index('/v1/') :]}"
        headers = {**self._headers(), "Prefer": f"wait={LONGEST_POLL:.0f}"}
        try:
            return self._transport.send(Ask("GET", path, headers=headers, safe=True, poll=True))
        except ApiError as error:
            if error.code == NOT_READY:
                raise ConnectionError(f"no node is ready: {error}") from error
            raise


def request_parts(operation: Operation, parameters: dict[str, Any]) -> tuple[str, Any, list[tuple[str, str]]]:
    """Path, body and query string of a request. Raises TypeError for an unknown or missing parameter."""
    given = {name: value for name, value in parameters.items() if value is not None}
    path = operation.path
    if operation.query and "uuid" in given:
        path += f"/{urllib.parse.quote(str(given.pop('uuid')))}"
    known = {one.name: one for one in operation.parameters}
    missing = [one.name for one in operation.parameters if one.required and one.name not in given]
    unknown = [] if operation.query else [name for name in given if name not in known]
    if missing or unknown:
        raise TypeError(f"{operation.name}: missing {missing}, unknown {unknown}")
    body: dict[str, Any] = {}
    query: list[tuple[str, str]] = []
    for name, value in given.items():
        where = known[name].location if name in known else "query"
        if where == "url":
            path = path.replace("{" + name + "}", urllib.parse.quote(str(value), safe=""))
        elif where == "query":
            query.extend(_query_items(name, value))
        else:
            body[name] = value
    if operation.body_key is None:
        return path, None, query
    tags = {name: body.pop(name) for name in ("systemTags", "userTags") if name in body}
    return path, {operation.body_key: body, **tags}, query


def _query_items(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        return [(f"{name}.{key}", str(one)) for key, one in value.items()]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [(name, str(one).lower() if isinstance(one, bool) else str(one)) for one in values]
