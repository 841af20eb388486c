"""News of jobs between the nodes of a cluster: a client of one node's live feed sees the jobs that the others work on.

A node with clients says so to all nodes, again and again; the others tell their jobs' progress and outcome only while
somebody has said so lately. Nodes without clients cost nothing.

Invariant: news are told once to each client: a node's own jobs locally, the others' by an event that it ignores when
it comes from itself. They may be lost, with the node that would have told them; the job itself never is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from caelum.kernel.errors import ErrorCode
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.membership import NodeLifecycle

if TYPE_CHECKING:
    from caelum.kernel.jobs import Job
    from caelum.kernel.node import Node

REPEAT_SECONDS = 15.0
INTEREST_SECONDS = 60.0
"""How long a node is told, once it has said that it has clients."""


class InternalEvent(CanonicalEvent, kw_only=True):
    """What only nodes tell each other; no client sees it."""

    node_uuid: str


@canonical("/internal/feed/interest")
class FeedInterest(InternalEvent):
    """This node has clients that want news of jobs."""


@canonical("/internal/job/news")
class JobNews(InternalEvent, kw_only=True):
    """A job went on, or ended, on this node."""

    uuid: str
    api: str
    account_uuid: str | None = None
    state: str
    percent: int = 0
    text: str | None = None
    error: ErrorCode | None = None

    @property
    def done(self) -> bool:
        """Whether it is the outcome."""
        return self.state == "Done"


class News:
    """Tells jobs to `show`, wherever they happen, as long as `wanted()` says that somebody looks."""

    def __init__(self, node: Node, show: Callable[[JobNews], None], wanted: Callable[[], bool]) -> None:
        self._node, self._show, self._wanted = node, show, wanted
        self._interested: dict[str, float] = {}
        self._said = 0.0
        node.jobs.on_finish(self._own)
        node.jobs.on_progress(self._own)
        node.bus.subscribe(JobNews, self._others)
        node.bus.subscribe(FeedInterest, self._note)
        node.bus.subscribe(NodeLifecycle, self._joined)

    def want(self, *, now: bool = False) -> None:
        """Say, if that was some time ago or `now`, that this node has clients."""
        if not self._node.ring.alone and (now or time.monotonic() > self._said + REPEAT_SECONDS):
            self._said = time.monotonic()
            self._node.bus.publish(FeedInterest(node_uuid=self._node.uuid))

    def _own(self, job: Job) -> None:
        elsewhere = any(until > time.monotonic() for until in self._interested.values())
        if not elsewhere and not self._wanted():
            return
        news = _news(job, self._node.uuid)
        self._show(news)
        if elsewhere:
            self._node.bus.publish(news)

    async def _others(self, news: JobNews) -> None:
        if news.node_uuid != self._node.uuid:
            self._show(news)

    async def _note(self, interest: FeedInterest) -> None:
        if interest.node_uuid != self._node.uuid:
            self._interested[interest.node_uuid] = time.monotonic() + INTEREST_SECONDS

    async def _joined(self, event: Any) -> None:
        """Others' jobs may run on a node that has just come, and cannot know who looks."""
        if event.life_cycle == "NodeJoin" and event.node_uuid != self._node.uuid and self._wanted():
            self.want(now=True)


def _news(job: Job, node_uuid: str) -> JobNews:
    return JobNews(
        node_uuid=node_uuid, uuid=job.uuid, api=job.api, account_uuid=job.actor.account_uuid, state=job.state,
        percent=job.percent, text=job.text, error=job.error,
    )  # fmt: skip
