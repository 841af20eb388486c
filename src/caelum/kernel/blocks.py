"""What surrounds work in the database: the block that it runs in, and what is to happen however the block ends.

Invariant: what a block began is ended exactly once, whatever is raised inside; a cancellation waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

if TYPE_CHECKING:
    from caelum.kernel.errors import CloudError
    from caelum.kernel.remembered import Changes

log = logging.getLogger(__name__)
T = TypeVar("T")

_AFTER_COMMIT = "after_commit"
_writing: ContextVar[asyncio.Task[Any] | None] = ContextVar("writing", default=None)
"""The task that holds a transaction open."""


class Begun(Protocol):
    """What a block has begun."""

    @property
    def session(self) -> AsyncSession:
        """What is used in it."""


B = TypeVar("B", bound=Begun)


class Block(Generic[B]):
    """An asynchronous context: a session that `begin` gives, until `end` is told of it and of what was raised.

    Written out because every operation passes through dozens of these: `contextlib` makes of each a generator, which
    the event loop keeps account of.
    """

    __slots__ = ("_begin", "_begun", "_end")

    def __init__(
        self, begin: Callable[[], Awaitable[B]], end: Callable[[B, BaseException | None], Awaitable[None]]
    ) -> None:
        self._begin, self._end = begin, end

    async def __aenter__(self) -> AsyncSession:
        self._begun = await self._begin()
        return self._begun.session

    async def __aexit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        await self._end(self._begun, error)


Holding = Token[asyncio.Task[Any] | None]


class BegunReading(NamedTuple):
    """A block that reads."""

    session: AsyncSession


class BegunWriting(NamedTuple):
    """A block that writes: what it changes, and that its task holds a transaction."""

    session: AsyncSession
    changes: Changes
    holding: Holding


class Fence(Protocol):
    """What keeps a node that is no longer a member of its cluster from writing."""

    async def admit(self) -> None:
        """Return once this node has its lease. Raises CloudError."""

    def guard(self) -> str:
        """A statement that makes sure that this node stays a member until the transaction ends. Where it is none any
        more, the statement fails with the state `postgresql_sessions.BROKEN`. Raises CloudError when that is known."""

    def broken(self) -> CloudError:
        """What to raise when the statement failed so."""


def enter_transaction() -> Holding:
    """The running task holds a transaction open until `leave_transaction`."""
    return _writing.set(asyncio.current_task())


def leave_transaction(holding: Holding) -> None:
    """It does no longer."""
    _writing.reset(holding)


def in_transaction() -> bool:
    """Whether the running task holds a transaction open."""
    holder = _writing.get()
    return holder is not None and holder is asyncio.current_task()


def refuse_in_transaction(what: str) -> None:
    """Fail when the running task holds a transaction: on SQLite, `what` could wait for the writer's turn for ever."""
    if in_transaction():
        raise RuntimeError(f"a transaction is open in this task: it must end before you {what}")


def after_commit(tx: AsyncSession, callback: Callable[[], object]) -> None:
    """Call `callback` once the transaction is committed, never if it is not: for news of what it changed."""
    tx.info.setdefault(_AFTER_COMMIT, []).append(callback)


def has_news(session: AsyncSession) -> bool:
    """Whether somebody waits for news of its commit."""
    return bool(session.info.get(_AFTER_COMMIT))


def call_back(session: AsyncSession) -> None:
    """It is committed: tell who waits for news."""
    for callback in session.info.pop(_AFTER_COMMIT, ()):
        try:
            callback()
        except Exception:
            log.exception("%r failed to take news of a commit", callback)


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
