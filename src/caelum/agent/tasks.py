"""Run commands: journaled, under their lock, until their deadline; deliver their answers until the server has them.

Invariant: whatever happens to a command (success, failure, cancellation, deadline, the agent's end), it gets exactly
one recorded answer, and that answer reaches whoever waits for it in the command's own request, else the callback, or
waits for `GET /task/<uuid>`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextvars import ContextVar
from typing import Any

import aiohttp
import msgspec

from caelum.agent.core import Agent, current_task
from caelum.agent.journal import Fence, Journal, Undelivered
from caelum.agent.listeners import Listeners
from caelum.agent.protocol import BUSY, CANCELED, INTERRUPTED, TIMED_OUT, AgentError, Command, TaskAnswer, TaskStatus
from caelum.agent.registry import AgentFailure, Handler, perform, to_wire
from caelum.kernel.pki import SERVER_NAME

log = logging.getLogger(__name__)

MAX_RUNNING = 1000
"""Commands in work beyond which new ones are refused: the server then retries, instead of piling up here."""
SYNC_TIMEOUT = 60.0
"""Longest time for a synchronous command without a deadline of its own."""
STOP_GRACE = 5.0
"""Seconds that running commands get to end by themselves when the agent stops."""
POST_TIMEOUT = 30.0
POSTS_AT_ONCE = 16
BACK_OFF = (0.5, 1, 2, 5, 10, 20, 30, 60)

_fence: ContextVar[Fence | None] = ContextVar("fence", default=None)
"""The workflow's attempt that the command in this context belongs to."""
_encode = msgspec.json.Encoder().encode


class Tasks:
    """The commands that run now, and the answers on their way."""

    def __init__(self, agent: Agent, journal: Journal) -> None:
        self._agent = agent
        self._journal = journal
        self._running: dict[str, asyncio.Task[None]] = {}
        self._delivering: dict[str, asyncio.Task[None]] = {}
        self._unrecorded: dict[str, TaskAnswer] = {}
        """Answers that the journal could not take yet: until it does, they are told from here."""
        self._recording: dict[str, asyncio.Task[None]] = {}
        self._listeners = Listeners()
        self._posts = asyncio.Semaphore(POSTS_AT_ONCE)
        self._stopping = False
        agent.check_attempt = lambda: journal.check(_fence.get())
        agent.tasks_running = lambda: len(self._running)
        agent.answers_waiting = lambda: len(self._delivering) + len(self._recording) + len(self._listeners)

    async def open(self) -> None:
        """Settle what the former agent left, and deliver what the server has not taken."""
        interrupted = await self._journal.open()
        await self._journal.prune()
        if interrupted:
            log.warning("%d commands were interrupted by the agent's end", interrupted)
        for waiting in await self._journal.undelivered():
            self._deliver(waiting)

    async def run_sync(self, handler: Handler, command: Command[Any], deadline: float | None) -> TaskAnswer:
        """Run a synchronous command; it is not journaled."""
        return await self._answer(handler, command, deadline or SYNC_TIMEOUT)

    async def submit(
        self,
        task_uuid: str,
        handler: Handler,
        command: Command[Any],
        *,
        callback: str | None,
        fence: Fence | None,
        deadline: float | None,
        wait: float = 0,
    ) -> TaskAnswer | None:
        """Take an asynchronous command on. A known task is not run again.

        Returns its answer if that is there within `wait` seconds: the caller must deliver it, and say by `delivered`
        or `call_back` what became of that. None: the answer goes to `callback`.
        """
        if self._stopping or len(self._running) >= MAX_RUNNING:
            why = "the agent is stopping" if self._stopping else f"{len(self._running)} commands are in work"
            raise AgentFailure(BUSY, why, transient=True, running=len(self._running))
        # A journal that could not take the answer cannot note the repetition either.
        kept = task_uuid in self._unrecorded
        verdict = "running" if kept else await self._journal.accept(task_uuid, command.path, callback, fence)
        if verdict == "new":
            self._running[task_uuid] = asyncio.create_task(
                self._run(task_uuid, handler, command, fence, deadline), name=f"{command.path} {task_uuid}"
            )
        elif verdict == "done":
            if wait > 0:
                return (await self._journal.status(task_uuid)).answer
            await self.call_back(task_uuid)
            return None
        elif wait > 0 and task_uuid in self._unrecorded:
            return self._unrecorded[task_uuid]
        return await self._listeners.hear(task_uuid, wait)

    def delivered(self, task_uuid: str) -> None:
        """The answer left in the response to the command. If it is lost, the server repeats the command or asks."""
        self._agent.withheld.heard(task_uuid)
        self._agent.spawn(self._journal.settle(task_uuid), f"settle {task_uuid}")

    async def call_back(self, task_uuid: str) -> None:
        """Deliver the answer of a task that is done to its callback, if it has one."""
        self._agent.withheld.unheard(task_uuid)
        for waiting in await self._journal.undelivered(task_uuid):
            self._deliver(waiting)

    async def status(self, task_uuid: str) -> TaskStatus:
        """What became of a task."""
        if task_uuid in self._unrecorded:
            return TaskStatus(state="Done", answer=self._unrecorded[task_uuid])
        return await self._journal.status(task_uuid)

    async def cancel(self, task_uuid: str) -> TaskStatus:
        """Cancel a task, wait until it has ended, and say how."""
        task = self._running.get(task_uuid)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        return await self.status(task_uuid)

    async def close(self) -> None:
        """Take no more, give running commands a moment, interrupt the rest; undelivered answers wait in the journal."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running.values(), timeout=STOP_GRACE)
        await _cancel_all(self._running)
        await _cancel_all(self._recording)
        await _cancel_all(self._delivering)

    async def _run(
        self, task_uuid: str, handler: Handler, command: Command[Any], fence: Fence | None, deadline: float | None
    ) -> None:
        current_task.set(task_uuid)
        _fence.set(fence)
        try:
            answer = await self._answer(handler, command, deadline)
        finally:
            self._running.pop(task_uuid, None)
        try:
            waiting = await self._journal.finish(task_uuid, answer)
        except sqlite3.Error:
            log.exception("the answer of task %s cannot be recorded; it is tried again", task_uuid)
            self._unrecorded[task_uuid] = answer
            self._recording[task_uuid] = asyncio.create_task(self._record(task_uuid, answer))
            waiting = None
        heard = self._listeners.tell(task_uuid, answer)
        if answer.error is not None or not heard:
            self._agent.withheld.unheard(task_uuid)
        if not heard and waiting is not None:
            self._deliver(waiting)

    async def _record(self, task_uuid: str, answer: TaskAnswer) -> None:
        """Try until the journal takes an answer, and deliver it then: who heard it meanwhile, hears it once more."""
        tries = 0
        try:
            while True:
                await asyncio.sleep(_pause(tries))
                tries += 1
                try:
                    waiting = await self._journal.finish(task_uuid, answer)
                    break
                except sqlite3.Error as error:
                    log.warning("the answer of task %s can still not be recorded: %s", task_uuid, error)
        finally:
            del self._unrecorded[task_uuid], self._recording[task_uuid]
        if waiting is not None:
            self._deliver(waiting)

    async def _answer(self, handler: Handler, command: Command[Any], deadline: float | None) -> TaskAnswer:
        try:
            async with asyncio.timeout(deadline) as limit:
                result = await perform(self._agent, handler, command)
            return TaskAnswer(result=msgspec.to_builtins(result))
        except TimeoutError as error:
            why = f"not done after {deadline:g} s" if deadline and limit.expired() else str(error) or "timed out"
            return TaskAnswer(error=AgentError(code=TIMED_OUT, details=f"{command.path}: {why}", transient=True))
        except asyncio.CancelledError:
            return TaskAnswer(error=self._cancelled(command))
        except AgentFailure as error:
            log.info("%s failed: %s", command.path, error)
            return TaskAnswer(error=to_wire(error))
        except Exception as error:
            log.exception("%s failed", command.path)
            return TaskAnswer(error=to_wire(error))

    def _cancelled(self, command: Command[Any]) -> AgentError:
        if self._stopping:
            return AgentError(code=INTERRUPTED, details=f"{command.path}: the agent was stopped", transient=True)
        return AgentError(code=CANCELED, details=f"{command.path} was canceled")

    def _deliver(self, waiting: Undelivered) -> None:
        previous = self._delivering.pop(waiting.task_uuid, None)
        if previous is not None:
            previous.cancel()
        task = asyncio.create_task(self._deliver_until_taken(waiting))
        self._delivering[waiting.task_uuid] = task
        task.add_done_callback(lambda _: self._delivered(waiting.task_uuid, task))

    def _delivered(self, task_uuid: str, task: asyncio.Task[None]) -> None:
        if self._delivering.get(task_uuid) is task:
            del self._delivering[task_uuid]

    async def _deliver_until_taken(self, waiting: Undelivered) -> None:
        tries = 0
        while not await self._post(waiting):
            await asyncio.sleep(_pause(tries))
            tries += 1
            if not await self._journal.undelivered(waiting.task_uuid):
                return  # given up by age, or another delivery got through
        await self._journal.settle(waiting.task_uuid)

    async def _post(self, waiting: Undelivered) -> bool:
        headers = {"taskuuid": waiting.task_uuid, "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT)
        try:
            async with (
                self._posts,
                self._agent.http.post(
                    waiting.callback,
                    data=_encode(waiting.answer),
                    headers=headers,
                    timeout=timeout,
                    server_hostname=SERVER_NAME,
                ) as reply,
            ):
                return reply.status in (200, 404)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.info("the answer of task %s is not delivered: %s", waiting.task_uuid, error)
            return False


def _pause(tries: int) -> float:
    return BACK_OFF[min(tries, len(BACK_OFF) - 1)]


async def _cancel_all(tasks: dict[str, asyncio.Task[None]]) -> None:
    left = list(tasks.values())
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
