"""The versions of tables that PostgreSQL keeps (`changes.py`), as a node asks for them.

Invariant: who asks gets versions that were read after it asked, or, as a part of a piece of work, after all that the
work has heard (`freshness.py`). However many ask at a time, one statement answers them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import lru_cache
from typing import NamedTuple

from caelum.kernel import freshness
from caelum.kernel.errors import CANCELED, CloudError

VERSIONS = (
    "SELECT string_agg(name || ' ' || version, ' ' ORDER BY name) "
    "FROM (SELECT name, sum(version) AS version FROM table_change GROUP BY name) AS tables"
)
"""All versions as one text: it is asked far more often than it changes."""


class _Answer(NamedTuple):
    """Versions, with the moment and the loop's time before they were asked for."""

    versions: Mapping[str, int]
    moment: int
    time: float


class Versions:
    """The versions of the steady tables, asked by `ask()` for `VERSIONS`: once for all who want them at a time."""

    def __init__(self, ask: Callable[[], Awaitable[str | None]]) -> None:
        self._ask = ask
        self._waiting: asyncio.Future[Mapping[str, int]] | None = None
        """For those whom the question under way answers."""
        self._next: asyncio.Future[Mapping[str, int]] | None = None
        """For those who came after it was asked."""
        self._asking: asyncio.Task[None] | None = None
        self._last: _Answer | None = None

    async def current(self) -> Mapping[str, int]:
        """Versions as fresh as the running work needs them. Raises CloudError."""
        last, since = self._last, freshness.since()
        if last is not None and since is not None and since <= last.moment:
            age = asyncio.get_running_loop().time() - last.time
            if 0 <= age < freshness.MOST_SECONDS:
                return last.versions
        return await self.now()

    async def now(self) -> Mapping[str, int]:
        """The versions as they are after this was called. Raises CloudError."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            if self._asking is None:
                self._asking = loop.create_task(self._ask_on(), name="versions", context=Context())
        try:
            return await asyncio.shield(self._next)
        except CloudError as error:
            # Each who asked has one of its own, to which it may add what it knows.
            raise CloudError(
                error.kind, error.details, cause=error.cause, causes=error.causes, **error.facts
            ) from error

    async def _ask_on(self) -> None:
        """Ask as long as somebody wants to know; who comes while a question is under way waits for the one after it."""
        try:
            while (waiting := self._next) is not None:
                self._waiting, self._next = waiting, None
                moment, time = freshness.latest(), asyncio.get_running_loop().time()
                try:
                    self._last = _Answer(_parsed(await self._ask() or ""), moment, time)
                    waiting.set_result(self._last.versions)
                except Exception as error:
                    waiting.set_exception(error)
                    waiting.exception()  # whoever asked may have left
        finally:
            self._asking = None

    async def stop(self) -> None:
        """Ask no more; whoever waits is told so."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        left, self._waiting, self._next, self._asking = (self._waiting, self._next), None, None, None
        for one in left:
            if one is not None and not one.done():
                one.set_exception(CloudError(CANCELED, "the database is not asked any more: this node stops"))
                one.exception()  # whoever asked may have left


@lru_cache(maxsize=4)
def _parsed(versions: str) -> Mapping[str, int]:
    words = versions.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))
