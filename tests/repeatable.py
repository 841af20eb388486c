"""Holds every handler that says it is `repeatable` to its word, in all tests: before its workflow it only looks."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from caelum.kernel import context
from caelum.kernel.bus import BusBase
from caelum.kernel.database import Database

_promised: ContextVar[str | None] = ContextVar("promised", default=None)
"""The message whose handler is at work, where that is repeatable."""
_WORKFLOWS = ("caelum.kernel.workflow", "caelum.kernel.engine")


def watch() -> None:
    """From here on, a repeatable handler that opens a transaction of its own fails."""
    register, transaction = BusBase.register, Database.transaction

    @functools.wraps(register)
    def registering(self: BusBase, service: object) -> None:
        register(self, service)
        for endpoint in self.endpoints():
            if endpoint.owner is service and endpoint.repeatable:
                endpoint.handler = _watched(endpoint.name, endpoint.handler)

    @functools.wraps(transaction)
    @contextlib.asynccontextmanager
    async def opening(self: Database) -> AsyncIterator[AsyncSession]:
        promised = _promised.get()
        if promised is not None and context.current().step_key is None and not _in_workflow(sys._getframe(1)):
            raise AssertionError(
                f"the handler of {promised} is declared repeatable, but writes outside of its workflow"
            )
        async with transaction(self) as tx:
            yield tx

    BusBase.register = registering  # type: ignore[method-assign]
    Database.transaction = opening  # type: ignore[method-assign]


def _watched(name: str, handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def handling(msg: Any) -> Any:
        token = _promised.set(name)
        try:
            return await handler(msg)
        finally:
            _promised.reset(token)

    return handling


def _in_workflow(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") in _WORKFLOWS:
            return True
        frame = frame.f_back
    return False
