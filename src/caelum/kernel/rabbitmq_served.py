"""What a node does, and lately did, for others: so that a request that arrives twice is done once.

Invariant: a request is known from its arrival until well after its answer, by its id; what is kept of answered ones is
bounded in number and bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

MOST_ANSWERED = 10_000
MOST_ANSWER_BYTES = 32 * 1024 * 1024
LARGEST_ANSWER = 1024 * 1024


class Served:
    """One request. `answer` is its encoded reply, when it was given and is kept."""

    __slots__ = ("answer", "done", "task")

    def __init__(self, task: asyncio.Task[None] | None = None) -> None:
        self.task = task
        self.done = task is None
        self.answer: bytes | None = None


class ServedRequests:
    """The requests of other nodes by id."""

    def __init__(self, most: int = MOST_ANSWERED, most_bytes: int = MOST_ANSWER_BYTES) -> None:
        self._running: dict[str, Served] = {}
        self._answered: OrderedDict[str, Served] = OrderedDict()
        self._with_answers: OrderedDict[str, Served] = OrderedDict()
        self._most, self._most_bytes = most, most_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._running)

    def find(self, request: str) -> Served | None:
        """What is known of a request, or None: it is new."""
        return self._running.get(request) or self._answered.get(request)

    def begin(self, request: str, task: asyncio.Task[None]) -> None:
        """A new request, and the task that sees to it."""
        self._running[request] = Served(task)

    def end(self, request: str, answer: bytes | None) -> None:
        """It has its answer; None: nobody wants one."""
        served = self._running.pop(request, None) or Served()
        served.task, served.done = None, True
        if (before := self._answered.pop(request, None)) is not None:
            self._forget_answer(request, before)
        if answer is not None and len(answer) <= LARGEST_ANSWER:
            served.answer = answer
            self._bytes += len(answer)
            self._with_answers[request] = served
        self._answered[request] = served
        while self._bytes > self._most_bytes:
            # That it was done is known for longer than what the answer was.
            self._forget_answer(*next(iter(self._with_answers.items())))
        while len(self._answered) > self._most:
            self._forget_answer(*self._answered.popitem(last=False))

    def _forget_answer(self, request: str, served: Served) -> None:
        if self._with_answers.pop(request, None) is not None:
            self._bytes -= len(served.answer or b"")
            served.answer = None

    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks of the requests under way."""
        return [one.task for one in self._running.values() if one.task is not None]
