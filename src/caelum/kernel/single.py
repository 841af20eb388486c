"""Single statements that read, without a session.

Invariant: each answer is what was committed last when it was given. Two of them may tell of different states: who needs
several statements to see the same one opens a session (`Database.read`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

from sqlalchemy import Dialect
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel import postgresql_sessions, sqlite

Answer = tuple[Sequence[Any], int]
"""The rows, and how many there are, as the driver gives them."""


class Single:
    """Runs statements one by one, as sessions of `dialect` do. `glance` answers at once, or not at all; then the
    statement runs in a session of its own, which `read` opens.
    """

    def __init__(
        self,
        dialect: Dialect,
        glance: Callable[[str, Sequence[Any]], Answer | None],
        read: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    ) -> None:
        self.dialect = dialect
        self._glance = glance
        self._read = read

    async def run(self, statement: str, values: Sequence[Any]) -> Answer:
        """What a statement answers, as the driver takes it."""
        answer = self._glance(statement, values)
        if answer is not None:
            await sqlite.breathe()
            return answer
        async with self._read() as session:
            return await cast("sqlite.KeptSession | postgresql_sessions.KeptSession", session).run(statement, values)
