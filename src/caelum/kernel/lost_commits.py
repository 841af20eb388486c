"""Commits whose connection was lost before PostgreSQL's answer: whether they happened, which it tells by their number.

Invariant: news of a commit that happened reach those who wait for them, unless the database stays away for longer than
`NEWS_SECONDS`, or this node ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context

from sqlalchemy.ext.asyncio import AsyncEngine

from caelum.kernel import postgresql
from caelum.kernel.errors import CloudError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""How long the one who committed waits to hear whether it happened."""
NEWS_SECONDS = 60.0
"""How long that is asked for the sake of the news."""


class LostCommits:
    """Those of one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._unsettled: set[asyncio.Task[None]] = set()

    async def settle(self, number: int, lost: CloudError, news: Callable[[], None]) -> None:
        """Return when the transaction of this number was committed; `lost` says how its connection was.

        Raises CloudError when it was not, or when that is not known now; `news` are told later in that case.
        """
        happened = await postgresql.happened(self._engine, number, ANSWER_SECONDS)
        if happened is None:
            self._tell_later(number, news)
            raise lost
        if not happened:
            raise CloudError(lost.kind, f"the transaction was not committed: {lost.details}")
        log.info("a transaction was committed, though its connection was lost: %s", lost.details)

    def _tell_later(self, number: int, news: Callable[[], None]) -> None:
        async def tell() -> None:
            if await postgresql.happened(self._engine, number, NEWS_SECONDS):
                news()

        task = asyncio.create_task(tell(), name="settle-commit", context=Context())
        self._unsettled.add(task)
        task.add_done_callback(self._unsettled.discard)

    async def stop(self) -> None:
        """Ask no more."""
        for task in self._unsettled:
            task.cancel()
        await asyncio.gather(*self._unsettled, return_exceptions=True)
