"""A session whose part of SQLAlchemy is made with the first use of it: most transactions need none."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session


class LazySession(AsyncSession):
    """Makes SQLAlchemy's session, of class `kind` and with this one as `kept`, when something needs it."""

    def __init__(self, engine: AsyncEngine, kind: type[Session]) -> None:
        self._engine, self._kind = engine, kind
        self._info: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """What only SQLAlchemy's session has, which is made now."""
        if self._made:
            raise AttributeError(name)
        super().__init__(self._engine, expire_on_commit=False, sync_session_class=self._kind, kept=self)
        return getattr(self, name)

    @property
    def _made(self) -> bool:
        return "sync_session" in self.__dict__

    @property
    def info(self) -> dict[Any, Any]:
        """What callers note of the session."""
        return self._info
