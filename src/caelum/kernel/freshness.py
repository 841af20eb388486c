"""How fresh must be what a piece of work reads from the answers that its node keeps (`remembered.py`).

Invariant: nobody reads what is older than anything that it may know of. What a node knew of the database at a moment
serves a piece of work as long as the work has heard nothing since: neither from another node, nor that a transaction
of its own was committed, nor that this node changed a table whose answers are kept. And never for longer than
`MOST_SECONDS`: so long a change may also take to arrive by ways that nobody here knows of. Work of which nothing is
noted, as timers', reads what is true when it asks. Who waits for another node by looking into the database says
`heard()`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar

MOST_SECONDS = 0.05


class Work:
    """A piece of work with all that it calls on this node; `heard` is the moment of what it heard last."""

    __slots__ = ("heard",)

    def __init__(self) -> None:
        self.heard = now()


_moments = itertools.count(1)
_latest = 0
_all_heard = 0
_work: ContextVar[Work | None] = ContextVar("work", default=None)


def now() -> int:
    """A moment after all those before."""
    global _latest  # noqa: PLW0603 - one clock of the process
    _latest = next(_moments)
    return _latest


def latest() -> int:
    """The last moment that somebody noted."""
    return _latest


def since() -> int | None:
    """The moment after which the running work has heard nothing; None when nobody knows."""
    work = _work.get()
    return None if work is None else max(work.heard, _all_heard)


def heard() -> None:
    """The running work heard of a change: what it reads from now on is no older."""
    work = _work.get()
    if work is not None:
        work.heard = now()


def all_heard() -> None:
    """The same for all work of this process, since nobody knows whom it concerns."""
    global _all_heard  # noqa: PLW0603 - as `_latest`
    _all_heard = now()


@contextlib.contextmanager
def begun() -> Iterator[None]:
    """The block is a piece of work that begins now."""
    token = _work.set(Work())
    try:
        yield
    finally:
        _work.reset(token)


def current() -> Work | None:
    """The running work, for `enter`."""
    return _work.get()


def enter(work: Work | None) -> None:
    """The running asyncio task is a part of this work."""
    _work.set(work)
