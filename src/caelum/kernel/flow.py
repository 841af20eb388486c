"""How a durable workflow is declared: a class with steps in order, each with its undo.

Invariant: a workflow that could leave something behind cannot be declared: every step has an undo or says why it needs
none, and every workflow names the rehearsal that the crash harness runs.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import msgspec

from caelum.kernel.errors import CloudError
from caelum.kernel.ids import derived_uuid, is_uuid

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from caelum.kernel.bus import Bus
    from caelum.kernel.database import Database
    from caelum.kernel.node import Node

C = TypeVar("C", bound=msgspec.Struct)
R = TypeVar("R")
Function = Callable[..., Awaitable[None]]

DEFAULT_STEP_TIMEOUT = 1800.0
BEGIN = "begin"
"""As a pivot: the workflow only goes forward."""


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the error's type says so, or the agent did."""
    if isinstance(error, TimeoutError):
        return True
    return isinstance(error, CloudError) and (error.kind.transient or error.facts.get("transient") is True)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Try a failed step again, up to `times` more, after `delay` seconds and then twice as long each time."""

    times: int = 3
    on: Callable[[BaseException], bool] = is_transient
    delay: float = 1.0


class Step:
    """One step of a workflow; made by `@step` and `@db_step`."""

    def __init__(
        self,
        function: Function,
        *,
        transactional: bool,
        timeout: float,
        retry: Retry | None,
        progress: int | None,
        skip: Callable[[Any], bool] | None,
        no_undo: str | None,
        idle: bool = False,
    ) -> None:
        self.function, self.transactional, self.timeout = function, transactional, timeout
        self.retry, self.progress, self.skip, self.no_undo, self.idle = retry, progress, skip, no_undo, idle
        self.name = function.__name__
        self.undo_function: Function | None = None

    def undo(self, function: Function) -> Function:
        """Decorator: what takes this step's effect back; it finds out by itself whether there is any."""
        if self.no_undo is not None:
            raise TypeError(f"step {self.name} has an undo and a reason to have none")
        self.undo_function = function
        return function

    def __get__(self, flow: object, _owner: type | None = None) -> Any:
        return self if flow is None else self.function.__get__(flow)


def step(
    *,
    timeout: float = DEFAULT_STEP_TIMEOUT,
    retry: Retry | None = None,
    progress: int | None = None,
    skip: Callable[[Any], bool] | None = None,
    no_undo: str | None = None,
    idle: bool = False,
) -> Callable[[Function], Step]:
    """Declare `async def name(self, run)` as the next step. It may run again when its effect is unknown.

    `progress` is how far the operation is, in percent, when the step is done; `skip(ctx)` leaves it (and its undo) out;
    `no_undo` says why nothing has to be undone. An `idle` step does nothing and is there for its undo alone: that it is
    done is noted with the next step, for a run that is resumed may as well begin with it.
    """
    return lambda function: Step(
        function, transactional=False, timeout=timeout, retry=retry, progress=progress, skip=skip, no_undo=no_undo,
        idle=idle,
    )  # fmt: skip


def db_step(
    function: Function | None = None,
    *,
    timeout: float = 60.0,
    retry: Retry | None = None,
    progress: int | None = None,
    skip: Callable[[Any], bool] | None = None,
    no_undo: str | None = None,
) -> Any:
    """Declare `async def name(self, tx, run)` as the next step: its change and the progress commit as one.

    So it happens exactly once, and is undone only when it happened; its undo takes `tx` too.
    """

    def declare(function: Function) -> Step:
        return Step(
            function, transactional=True, timeout=timeout, retry=retry, progress=progress, skip=skip, no_undo=no_undo
        )

    return declare if function is None else declare(function)


class Run(Generic[C]):
    """What a step knows of its workflow's run. `ctx` may be changed; it is saved when the step is done."""

    def __init__(self, node: Node, uuid: str, subject: str, attempt: int, ctx: C) -> None:
        self.node, self.uuid, self.subject, self.attempt, self.ctx = node, uuid, subject, attempt, ctx
        self.error: CloudError | None = None
        """While undoing: why."""

    @property
    def bus(self) -> Bus:
        return self.node.bus

    @property
    def db(self) -> Database:
        return self.node.db

    @property
    def fence(self) -> str:
        """What lets an agent refuse commands of an attempt that was taken over, or is undone."""
        return f"{self.uuid}:{self.attempt}"

    def uuid_for(self, purpose: str) -> str:
        """A UUID that is the same whenever this run asks for the same purpose, also after a crash."""
        return derived_uuid(self.uuid, purpose)


class Workflow(Generic[C, R]):
    """Base of all durable workflows. A base class without steps of its own says `abstract=True`."""

    name: ClassVar[str]
    rehearsal: ClassVar[str]
    resume: ClassVar[Literal["forward", "unwind"]] = "forward"
    """What to do after a crash while the steps were running."""
    pivot: ClassVar[str | None] = None
    """The step with which the operation has happened, for those that cannot be taken back (a guest is stopped, a disk
    is deleted); "begin" when that is so from the start. What fails after it is not undone but tried until it holds.
    When the pivot itself fails, its undo finds out what is true: the cloud is as it was, or as a success leaves it."""

    steps: ClassVar[tuple[Step, ...]] = ()
    context_type: ClassVar[Any]
    result_type: ClassVar[Any]

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.steps = _steps_of(cls)
        if not abstract:
            _check(cls)
            cls.context_type, cls.result_type = _arguments(cls)
            _declare(cls)

    def __init__(self, node: Node) -> None:
        self.node = node

    @classmethod
    def certain_from(cls) -> int:
        """The number of the first step that is tried until it holds; one past the last (the completion too) if none."""
        if cls.pivot is None:
            return len(cls.steps) + 1
        return 0 if cls.pivot == BEGIN else [one.name for one in cls.steps].index(cls.pivot) + 1

    @classmethod
    def step_names(cls) -> str:
        """Its steps in their order, as the journal notes them."""
        return ",".join(one.name for one in cls.steps)

    def subject(self, ctx: C) -> str:
        """The UUID of the resource that the workflow is about."""
        raise NotImplementedError

    def queue(self, ctx: C) -> str | None:  # noqa: ARG002 - for overriding
        """The work queue in which the workflow is resumed after a crash; None: none."""
        return None

    def identity(self, ctx: C) -> str:
        """What makes two runs that one step starts the same run, before `begin` has touched `ctx`.

        The subject, and every UUID that the context was required to be made with: attaching a network to two clusters
        is two runs.
        """
        required = (one.name for one in msgspec.structs.fields(ctx) if one.required)
        values = (getattr(ctx, name) for name in required)
        return derived_uuid(self.subject(ctx), *(one for one in values if isinstance(one, str) and is_uuid(one)))

    async def begin(self, tx: AsyncSession, ctx: C) -> None:
        """In the transaction that writes the workflow down: check, and put the resource into its transitional state."""

    async def complete(self, tx: AsyncSession, ctx: C) -> None:
        """In the transaction that ends the workflow: the resource's final state."""

    async def abort(self, tx: AsyncSession, ctx: C, error: CloudError) -> None:
        """In the transaction that ends the undoing: the resource's former state."""

    async def result(self, ctx: C) -> R:  # noqa: ARG002 - for overriding
        """The answer, after `complete`."""
        return typing.cast("R", None)

    def known_result(self) -> tuple[R] | None:
        """The answer in a tuple, where `complete` has left it known, so that the job it answers ends with the workflow,
        in one transaction; None where `result` must look for it."""
        return (typing.cast("R", None),) if type(self).result is Workflow.result else None


_flows: dict[str, type[Workflow[Any, Any]]] = {}


def flows() -> dict[str, type[Workflow[Any, Any]]]:
    """Every declared workflow by name."""
    return _flows


def _steps_of(cls: type) -> tuple[Step, ...]:
    found: dict[str, Step] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Step):
                found[name] = value
            elif name in found:
                del found[name]  # overridden by something that is no step: left out
    return tuple(found.values())


def _check(cls: type[Workflow[Any, Any]]) -> None:
    for attribute in ("name", "rehearsal"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise TypeError(f"workflow {cls.__name__} has no {attribute}")
    if not cls.steps:
        raise TypeError(f"workflow {cls.__name__} has no steps")
    if cls.pivot not in (None, BEGIN, *(one.name for one in cls.steps)):
        raise TypeError(f"the pivot {cls.pivot} of workflow {cls.__name__} is none of its steps")
    for one in cls.steps:
        if one.undo_function is None and not one.no_undo:
            raise TypeError(f"step {one.name} of workflow {cls.__name__} has neither an undo nor a no_undo reason")
        if one.idle and cls.resume != "forward":
            raise TypeError(f"step {one.name} of workflow {cls.__name__} is idle, and its undo could be left out")
        for function in filter(None, (one.function, one.undo_function)):
            _check_function(cls, one, function)


def _check_function(cls: type, one: Step, function: Function) -> None:
    wanted = 3 if one.transactional else 2
    if not inspect.iscoroutinefunction(function) or len(inspect.signature(function).parameters) != wanted:
        form = "(self, tx, run)" if one.transactional else "(self, run)"
        raise TypeError(f"{cls.__name__}.{function.__name__} must be declared as: async def {function.__name__}{form}")


def _arguments(cls: type) -> tuple[Any, ...]:
    """The context and result types that the class, or a base of it, gave to `Workflow[...]`."""
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = typing.get_origin(base) or base
        if origin is Workflow:
            return typing.get_args(base)
        if isinstance(origin, type) and issubclass(origin, Workflow):
            given = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(base), strict=False))
            return tuple(given.get(one, one) for one in _arguments(origin))
    raise TypeError(f"workflow {cls.__name__} does not name its context and result: Workflow[Context, Result]")


def _declare(cls: type[Workflow[Any, Any]]) -> None:
    known = _flows.setdefault(cls.name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(f"workflow {cls.name} is declared by {known.__qualname__} and {cls.__qualname__}")
    if not (isinstance(cls.context_type, type) and issubclass(cls.context_type, msgspec.Struct)):
        raise TypeError(f"the context of workflow {cls.name} is {cls.context_type}, which is no msgspec struct")
    _flows[cls.name] = cls
