"""Several works at the same time, as one that has an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar, cast

T = TypeVar("T")


async def together(*works: Awaitable[T]) -> list[T]:
    """The answers of works that are done at the same time, in their order.

    Raises the first error in that order, but only once none of them is under way any more: what undoes them must not be
    overtaken by one of them.
    """
    if len(works) == 1:
        return [await works[0]]
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return cast("list[T]", outcomes)
