"""A simulated agent's journal: what was accepted and what came out. It outlives the agent, as the real one does.

Invariant: a task UUID is run at most once; a lower attempt of a workflow is refused once a higher one was seen.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from caelum.agent.protocol import INTERRUPTED, AgentError, TaskAnswer, TaskStatus

_KEPT = 2000


class Task:
    """A command that was accepted."""

    __slots__ = ("_listeners", "_over", "answer", "callback", "changed", "delivered", "path", "uuid")

    def __init__(self, uuid: str, path: str, callback: str | None) -> None:
        self.uuid = uuid
        self.path = path
        self.callback = callback
        self.answer: TaskAnswer | None = None
        self.changed: list[str] = []
        """The guests that it brought into another state."""
        self.delivered = False
        self._over = asyncio.Event()
        self._listeners = 0

    def end(self, answer: TaskAnswer) -> bool:
        """The command is done. Whether a request waits for the answer, so that it needs no callback."""
        self.answer = answer
        self._over.set()
        return self._listeners > 0

    async def over_within(self, seconds: float) -> bool:
        """Wait so long for the answer of the task; without waiting it is not asked for."""
        if self.answer is None and seconds > 0:
            self._listeners += 1
            try:
                async with asyncio.timeout(seconds):
                    await self._over.wait()
            except TimeoutError:
                pass
            finally:
                self._listeners -= 1
        return self.answer is not None and seconds > 0


class Journal:
    """The tasks and the highest attempts of one host."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._attempts: dict[str, int] = {}

    def accept(self, uuid: str, path: str, callback: str | None) -> tuple[Task, bool]:
        """The task of this UUID, and whether it is new."""
        known = self._tasks.get(uuid)
        if known is not None:
            known.callback = callback or known.callback
            return known, False
        task = self._tasks[uuid] = Task(uuid, path, callback)
        while len(self._tasks) > _KEPT and next(iter(self._tasks.values())).answer is not None:
            self._tasks.popitem(last=False)
        return task, True

    def overtaken(self, attempt: str | None) -> bool:
        """Remember an attempt ("<workflow>:<n>"); True when a higher one was seen."""
        if not attempt:
            return False
        workflow, _, number = attempt.rpartition(":")
        highest = self._attempts.setdefault(workflow, int(number))
        self._attempts[workflow] = max(highest, int(number))
        return int(number) < highest

    def status(self, uuid: str) -> TaskStatus:
        """What became of a task."""
        task = self._tasks.get(uuid)
        if task is None:
            return TaskStatus(state="Unknown")
        return TaskStatus(state="Running" if task.answer is None else "Done", answer=task.answer)

    def interrupt(self) -> list[Task]:
        """Answer what the former agent did not end; returns every task whose answer the server does not have."""
        for task in self._tasks.values():
            if task.answer is None:
                task.answer = TaskAnswer(
                    error=AgentError(code=INTERRUPTED, details=f"{task.path}: the agent died", transient=True)
                )
        return [task for task in self._tasks.values() if not task.delivered and task.callback]

    def under_way(self) -> list[Task]:
        """The tasks that have no answer yet."""
        return [task for task in self._tasks.values() if task.answer is None]

    def running(self) -> int:
        """How many tasks have no answer yet."""
        return len(self.under_way())
