"""Reports: what the agent tells the server unasked, numbered and in order, kept until acknowledged.

Invariant: reports leave in the order of their numbers, one at a time; one that the server has not taken holds back the
next. Progress is worth nothing tomorrow: it is not kept on disk, and a newer one replaces one that has not left yet.
Nor is the agent's farewell: told by the next agent, it would be a lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import deque
from concurrent.futures import Future
from typing import Any

import aiohttp
import msgspec

from caelum.agent.store import Store
from caelum.kernel.ids import new_uuid
from caelum.kernel.pki import SERVER_NAME

log = logging.getLogger(__name__)

MAX_PENDING = 10_000
"""Undelivered reports beyond which the oldest are dropped: the server compares everything when it connects again."""
POST_TIMEOUT = 15.0
VOLATILE = ("progress", "agent-stopping")
"""Kinds that are not kept on disk."""
BACK_OFF = (0.5, 1, 2, 5, 10, 30)
"""Seconds between two tries; the last one for ever."""
ACKNOWLEDGED = (200, 400, 404)
"""400, 404: the server cannot read the report or does not know this host; repeating it only holds back others."""

_encode = msgspec.json.Encoder().encode


class Pending(msgspec.Struct):
    """A report on its way."""

    agent: str
    number: int
    kind: str
    body: dict[str, Any]
    row: Future[int] | None = None


class Reports:
    """The queue of reports and the task that delivers it."""

    def __init__(self, store: Store, agent_uuid: str | None = None) -> None:
        self.agent_uuid = agent_uuid or new_uuid()
        self._store = store
        self._number = 0
        self._queue: deque[Pending] = deque()
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._empty = asyncio.Event()
        self._target: tuple[str, str] | None = None
        self._sending: Pending | None = None

    async def open(self) -> None:
        """Load what the former agent could not deliver."""
        rows = await self._store.call(lambda db: db.execute(_SELECT).fetchall())
        for row_id, agent, number, kind, body in rows:
            known: Future[int] = Future()
            known.set_result(row_id)
            self._queue.append(Pending(agent, number, kind, msgspec.json.decode(body), known))

    def send_to(self, url: str, host_uuid: str) -> None:
        """Where reports go from now on."""
        self._target = (url, host_uuid)
        self._moved.set()
        self._wake.set()

    def add(self, kind: str, body: dict[str, Any]) -> None:
        """Number a report and queue it. Loop thread only."""
        if kind == "progress" and self._replace_progress(body):
            return
        self._number += 1
        report = Pending(self.agent_uuid, self._number, kind, body)
        if kind not in VOLATILE:
            report.row = self._store.submit(lambda db: _insert(db, report))
        self._queue.append(report)
        self._empty.clear()
        while len(self._queue) > MAX_PENDING:
            self._forget(self._queue.popleft())
        self._wake.set()

    def _replace_progress(self, body: dict[str, Any]) -> bool:
        for waiting in self._queue:
            same = waiting.kind == "progress" and waiting.body["taskUuid"] == body["taskUuid"]
            if same and waiting is not self._sending:
                waiting.body = body
                return True
        return False

    async def flush(self, at_most: float) -> None:
        """Wait until everything is delivered, `at_most` so many seconds."""
        if self._target is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most):
                await self._empty.wait()

    async def deliver(self, http: aiohttp.ClientSession) -> None:
        """Deliver for ever."""
        tries = 0
        while True:
            if not self._queue or self._target is None:
                if not self._queue:
                    self._empty.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            if await self._post(http, self._queue[0], *self._target):
                tries = 0
                continue
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), BACK_OFF[min(tries, len(BACK_OFF) - 1)])
            tries += 1

    async def _post(self, http: aiohttp.ClientSession, report: Pending, url: str, host_uuid: str) -> bool:
        wire = {
            "agentUuid": report.agent,
            "hostUuid": host_uuid,
            "number": report.number,
            "kind": report.kind,
            "body": report.body,
        }
        self._sending = report
        try:
            timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT)
            headers = {"Content-Type": "application/json"}
            async with http.post(
                url, data=_encode(wire), headers=headers, timeout=timeout, server_hostname=SERVER_NAME
            ) as answer:
                taken = answer.status in ACKNOWLEDGED
                if answer.status != 200:
                    log.warning("report %d (%s): the server answered %d", report.number, report.kind, answer.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.info("report %d (%s) not delivered: %s", report.number, report.kind, error)
            taken = False
        finally:
            self._sending = None
        if taken:
            if self._queue and self._queue[0] is report:
                self._queue.popleft()
            self._forget(report)
        return taken

    def _forget(self, report: Pending) -> None:
        row = report.row
        if row is not None:
            self._store.submit(lambda db: db.execute("DELETE FROM report WHERE id = ?", (row.result(),)))


_SELECT = "SELECT id, agent, number, kind, body FROM report ORDER BY id"


def _insert(db: sqlite3.Connection, report: Pending) -> int:
    cursor = db.execute(
        "INSERT INTO report (agent, number, kind, body) VALUES (?, ?, ?, ?)",
        (report.agent, report.number, report.kind, _encode(report.body)),
    )
    return cursor.lastrowid or 0
