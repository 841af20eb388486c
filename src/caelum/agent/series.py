"""Several commands in one request."""

from __future__ import annotations

from typing import Any

import msgspec

from caelum.agent.core import Agent
from caelum.agent.protocol import INVALID, Command, Order, Series, SeriesAnswer
from caelum.agent.registry import AgentFailure, Handler, handler, handlers, perform


@handler(Series)
async def run_series(agent: Agent, cmd: Series) -> SeriesAnswer:
    """Run the commands one after another; nothing is done when one of them is not understood."""
    return SeriesAnswer(results=[await _run(agent, *one) for one in [_understood(order) for order in cmd.orders]])


def _understood(order: Order) -> tuple[Handler, Command[Any]]:
    found = handlers().get(order.path)
    if found is None or found.command.sync or found.command is Series:
        raise AgentFailure(INVALID, f"no command {order.path} for a series", order=order.path)
    try:
        return found, msgspec.convert(order.body, found.command)
    except msgspec.ValidationError as error:
        raise AgentFailure(INVALID, f"{order.path}: {error}", order=order.path) from error


async def _run(agent: Agent, found: Handler, command: Command[Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = msgspec.to_builtins(await perform(agent, found, command))
    except AgentFailure as error:
        error.facts.setdefault("order", command.path)
        raise
    return answer
