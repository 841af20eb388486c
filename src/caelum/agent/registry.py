"""How commands find their handlers: one coroutine function per command class, registered by decorator.

Invariant: a command path has exactly one handler, and two commands with the same lock name never run at once.

    from caelum.agent import protocol
    from caelum.agent.core import Agent
    from caelum.agent.registry import AgentFailure, handler

    @handler(protocol.CreateBridge, lock="bridge-{bridge}")
    async def create_bridge(agent: Agent, cmd: protocol.CreateBridge) -> protocol.Empty:
        await agent.run(["ip", "link", "add", cmd.bridge, "type", "bridge"], timeout=10)
        return protocol.Empty()

`lock` is a format string over the command's fields. A handler raises `AgentFailure(code, details, **facts)`; any other
exception becomes INTERNAL. It must be idempotent, and may be cancelled at any `await`. What it may use:

    await agent.run(argv, timeout=30, input=None, check=True) -> Completed     its group is killed on cancel or time-out
    await agent.run_blocking(function, *args)      in a thread; a cancellation waits for the function
    agent.state_dir, agent.host_uuid, agent.settings, agent.http (client session with our certificate;
        to management nodes use `server_hostname=pki.SERVER_NAME`)
    agent.report(kind, body)                       numbered, kept until acknowledged
    agent.progress(percent, text)                  of the command that is being run
    async with agent.lock("name"):                 the same locks as `lock=`; never take one that you already hold
    agent.hooks                                    see `caelum.agent.core.Hooks`

A module takes part by being listed in `caelum.agent.core.MODULES`: it is imported at start, and when it has a function
`setup(agent: Agent) -> None`, this is called once before the first command, to add hooks and dump providers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from caelum.agent.protocol import INTERNAL, AgentError, Command

if TYPE_CHECKING:
    from caelum.agent.core import Agent

A = TypeVar("A")
C = TypeVar("C", bound=Command[Any])


class AgentFailure(Exception):  # noqa: N818 - "AgentError" is its form on the wire
    """Why a command failed: one of the protocol's codes, and details with numbers."""

    def __init__(self, code: str, details: str, *, transient: bool = False, **facts: Any) -> None:
        super().__init__(f"[{code}] {details}")
        self.code = code
        self.details = details
        self.transient = transient
        self.facts = facts

    def to_wire(self) -> AgentError:
        """The failure as the server sees it."""
        return AgentError(code=self.code, details=self.details, transient=self.transient, facts=self.facts)


def to_wire(error: BaseException) -> AgentError:
    """Any exception as the server sees it."""
    if isinstance(error, AgentFailure):
        return error.to_wire()
    return AgentError(code=INTERNAL, details=f"{type(error).__name__}: {error}")


class Handler(msgspec.Struct, frozen=True):
    """A registered handler."""

    command: type[Command[Any]]
    function: Callable[[Agent, Any], Awaitable[Any]]
    lock: str | None

    def lock_name(self, command: Command[Any]) -> str | None:
        """The name of the lock that this command takes, or None."""
        return (
            self.lock.format(**{name: getattr(command, name) for name in command.__struct_fields__})
            if self.lock
            else None
        )


async def perform(agent: Agent, found: Handler, command: Command[A]) -> A:
    """Run a command when it gets its lock, unless its workflow was taken over meanwhile. Raises AgentFailure."""
    name = found.lock_name(command)
    async with agent.lock(name) if name else contextlib.nullcontext():
        await agent.check_attempt()
        answer: A = await found.function(agent, command)
        return answer


_handlers: dict[str, Handler] = {}


def handler(
    command: type[C], lock: str | None = None
) -> Callable[[Callable[[Agent, C], Awaitable[A]]], Callable[[Agent, C], Awaitable[A]]]:
    """Register the decorated coroutine function as the handler of `command`."""

    def register(function: Callable[[Agent, C], Awaitable[A]]) -> Callable[[Agent, C], Awaitable[A]]:
        present = _handlers.setdefault(command.path, Handler(command, function, lock))
        if present.function is not function:
            raise ValueError(f"{command.path} has two handlers: {present.function} and {function}")
        return function

    return register


def handlers() -> Mapping[str, Handler]:
    """Every registered handler by path."""
    return _handlers
