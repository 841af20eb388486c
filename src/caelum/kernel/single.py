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


class Single:
    """Runs statements one by one, as sessions of `dialect` do.

    While it `is_quiet`, SQLite's connection that writes, the one of `writing`, is asked: it has in memory what it
    wrote, and the others must read from the files again whatever was written since they read. Else the statement runs
    in a session of its own, which `read` opens.
    """

    def __init__(
        self,
        dialect: Dialect,
        writing: sqlite.Connections | postgresql_sessions.Connections,
        is_quiet: Callable[[], bool],
        read: Callable[[], AbstractAsyncContextManager[AsyncSession]],
    ) -> None:
        self.dialect = dialect
        self._writing = writing if isinstance(writing, sqlite.Connections) else None
        self._is_quiet = is_quiet
        self._read = read

    async def run(self, statement: str, values: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """The rows, and how many there are, of a statement as the driver takes it."""
        if self._writing is not None and self._is_quiet():
            answer = self._writing.glance(statement, values)
            if answer is not None:
                await sqlite.breathe()
                return answer
        async with self._read() as session:
            return await cast("sqlite.KeptSession | postgresql_sessions.KeptSession", session).run(statement, values)
