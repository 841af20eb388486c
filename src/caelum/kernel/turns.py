"""The turns of those who want one of a few connections to the database."""

from __future__ import annotations

import asyncio
from typing import Literal, Protocol

from caelum.kernel.errors import CloudError
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE


class Turns(Protocol):
    """What those who come to the database wait for: on SQLite to write, on PostgreSQL a connection."""

    @property
    def waiting(self) -> int:
        """How many do."""


class WriterTurn(asyncio.Lock):
    """The turn of the only one who writes; `waiting` are those who want it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0

    async def acquire(self) -> Literal[True]:
        """Wait for it, behind those who came before."""
        self.waiting += 1
        try:
            return await super().acquire()
        finally:
            self.waiting -= 1


class ConnectionTurns(asyncio.Semaphore):
    """The turns of as many as there are connections; `waiting` are those who want one."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.waiting = 0

    async def acquire(self) -> Literal[True]:
        """Wait for one, behind those who came before."""
        self.waiting += 1
        try:
            return await super().acquire()
        finally:
            self.waiting -= 1


async def take_turn(turns: asyncio.Semaphore, seconds: float) -> None:
    """Acquire a turn. Raises DATABASE_UNAVAILABLE when none becomes free in so many seconds."""
    if not turns.locked():
        await turns.acquire()
        return
    try:
        async with asyncio.timeout(seconds):
            await turns.acquire()
    except TimeoutError as error:
        details = f"all connections to the database were in use for {seconds:g} s"
        raise CloudError(DATABASE_UNAVAILABLE, details, busy=True) from error
