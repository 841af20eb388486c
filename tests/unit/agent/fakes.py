"""An agent without network and libvirt: a command of the tests' own, and a server that takes or refuses posts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from caelum.agent.core import Agent, AgentConfig
from caelum.agent.journal import Journal
from caelum.agent.protocol import Command, Empty, TaskAnswer
from caelum.agent.registry import Handler
from caelum.agent.store import Store
from caelum.agent.tasks import Tasks


class Work(Command[Empty]):
    """A command of the tests."""

    path = "/test/work"
    name: str = "a"


class FakeHttp:
    """Takes posts, unless told to refuse or to be unreachable."""

    def __init__(self) -> None:
        self.status = 200
        self.unreachable = False
        self.posts: list[tuple[str, dict[str, str], Any]] = []

    @contextlib.asynccontextmanager
    async def post(self, url: str, *, data: bytes, headers: dict[str, str], **_: Any) -> AsyncIterator[Any]:
        if self.unreachable:
            raise aiohttp.ClientConnectionError("unreachable")
        self.posts.append((url, headers, msgspec.json.decode(data)))

        class Reply:
            status = self.status

        yield Reply()

    def bodies(self) -> list[Any]:
        return [body for _, _, body in self.posts]


class Sink:
    """Takes reports."""

    agent_uuid = "agent-1"

    def __init__(self) -> None:
        self.reports: list[tuple[str, dict[str, Any]]] = []

    def add(self, kind: str, body: dict[str, Any]) -> None:
        self.reports.append((kind, body))

    def send_to(self, url: str, host_uuid: str) -> None:
        return


class Bench:
    """Tasks over a journal in a directory; `reopen` is a new agent after the old one's death."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.http = FakeHttp()
        self.ran: list[str] = []
        self.gate = asyncio.Event()
        self.handler = Handler(Work, self._work, "work-{name}")

    async def _work(self, agent: Agent, cmd: Work) -> Empty:
        self.ran.append(cmd.name)
        agent.progress(50)
        await self.gate.wait()
        return Empty()

    async def open(self) -> None:
        config = AgentConfig(state_dir=self.directory, tls_dir=self.directory)
        self.store = Store(self.directory / "agent.db")
        self.sink = Sink()
        self.agent = Agent(config, self.http, self.sink)  # type: ignore[arg-type]
        self.journal = Journal(self.store)
        self.tasks = Tasks(self.agent, self.journal)
        await self.tasks.open()

    async def die(self) -> None:
        """End like a killed process: nothing more is written."""
        self.store.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)

    async def submit(
        self, task: str, name: str = "a", fence: Any = None, deadline: float | None = None, wait: float = 0
    ) -> TaskAnswer | None:
        return await self.tasks.submit(
            task, self.handler, Work(name=name), callback="https://server/cb", fence=fence, deadline=deadline, wait=wait
        )


async def eventually(condition: Callable[[], Any], timeout: float = 5) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
