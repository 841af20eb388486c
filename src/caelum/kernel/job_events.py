"""What nodes tell each other of their jobs."""

from __future__ import annotations

from caelum.kernel.events import CanonicalEvent, canonical


class JobNews(CanonicalEvent):
    """Something of a node's jobs: for the other nodes, whose clients may wait for it."""

    node_uuid: str

    @property
    def about(self) -> list[str]:
        """The UUIDs of these jobs."""
        return []


@canonical("/job/moved")
class JobMoved(JobNews):
    """A job is finished."""

    uuid: str

    @property
    def about(self) -> list[str]:
        """This job."""
        return [self.uuid]


@canonical("/job/progressed")
class JobsProgressed(JobNews):
    """Jobs are further on, some moments together."""

    uuids: list[str]

    @property
    def about(self) -> list[str]:
        """These jobs."""
        return self.uuids
