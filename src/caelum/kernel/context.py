"""The task context: who asked, for which job, until when. It follows every call and every log line.

It lives in a context variable, so that tasks started by a handler inherit it; the bus carries it across
processes. Deadlines are on the loop's monotonic clock, so a clock jump cannot expire anything.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

import msgspec

from caelum.kernel.errors import TIMEOUT, CloudError

ADMIN_ACCOUNT_UUID = "36c27e8ff05c4780bf6d2fa65700f22e"
"""The built-in administrator's account, as clients know it."""


class Actor(msgspec.Struct, frozen=True, rename="camel"):
    """On whose behalf a task runs."""

    account_uuid: str
    user_uuid: str
    session_uuid: str | None = None
    """The session by its digest: contexts are written down, and the session's own UUID is a secret."""
    is_admin: bool = False


SYSTEM = Actor(ADMIN_ACCOUNT_UUID, ADMIN_ACCOUNT_UUID, None, True)
"""The actor of work that no client asked for: periodic tasks, recovery."""


class TaskContext(msgspec.Struct, frozen=True, rename="camel"):
    """What a task knows of its origin.

    `deadline` is in seconds of `time.monotonic()`. `step_key` and `fence` are set while a workflow step runs: the
    first makes the UUIDs of nested workflows repeatable, so that a repeated step finds the work of its first run; the
    second ("<workflow uuid>:<attempt>") lets agents refuse commands of an attempt that was taken over.
    """

    actor: Actor = SYSTEM
    job_uuid: str | None = None
    api: str | None = None
    deadline: float | None = None
    trace: str | None = None
    step_key: str | None = None
    fence: str | None = None

    def remaining(self) -> float | None:
        """Seconds left, or None without a deadline. Raises TIMEOUT when there are none."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise CloudError(TIMEOUT, f"the deadline of {self.api or 'this task'} passed {-left:.1f} s ago")
        return left


_current: ContextVar[TaskContext] = ContextVar("task_context", default=TaskContext())  # noqa: B039 - it is frozen


def current() -> TaskContext:
    """The context of the running task."""
    return _current.get()


class use:  # noqa: N801 - as what `contextlib` makes of functions, which takes three times as long
    """Run a block in `context`."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: TaskContext) -> None:
        self._context = context

    def __enter__(self) -> TaskContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *_failure: object) -> None:
        _current.reset(self._token)


def enter(context: TaskContext) -> None:
    """Run the rest of the running asyncio task in `context`."""
    _current.set(context)


def with_deadline(context: TaskContext, deadline: float | None) -> TaskContext:
    """The same context with another deadline, in seconds of `time.monotonic()`."""
    # Spelled out, because every bus call does it and `structs.replace` takes three times as long.
    return TaskContext(
        context.actor, context.job_uuid, context.api, deadline, context.trace, context.step_key, context.fence
    )


def in_step(context: TaskContext, step_key: str, fence: str) -> TaskContext:
    """The same context inside a workflow's step."""
    return TaskContext(context.actor, context.job_uuid, context.api, context.deadline, context.trace, step_key, fence)
