"""The turns of those who want one of a few connections to the database."""

from __future__ import annotations

import asyncio

from caelum.kernel.errors import CloudError
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE


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
