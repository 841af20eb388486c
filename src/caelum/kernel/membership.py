"""Which management nodes are one cloud: the rows of a table, and what each node may do while its row is fresh.

Invariant: a node of a cluster commits only while its row exists, and a row that somebody else removed stays removed: so
once a node is evicted, nothing of it follows, whatever it believes. It holds for all clocks and all pauses, because
each transaction of a node shares a lock on its row until it has committed, and an eviction needs the row alone.

A node writes its heartbeat by the database's clock. One that could not do so for the length of its lease (by its own
clock, which runs while the process is stopped) does nothing until it can, and ends when its row is gone or the database
stays away. Nodes whose heartbeat is older than the eviction delay, and that a node saw unchanged for the length of a
lease, are evicted: one node removes the row, all see that, and each takes over what the ring gives it. Owners without a
row are dead, however they died; so whoever finds work of such an owner, now or at a later look, takes it over.

The ring has the nodes whose row says Running. News of changes only make a node look at the table sooner.

With SQLite there is one node: its row is for clients to see, and there is neither lease nor take-over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextvars import Context
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import msgspec
from sqlalchemy import CursorResult, DateTime, String, Table, delete, func, insert, select, text, union, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from caelum import __version__
from caelum.kernel import journal, postgresql, schema, work_queue
from caelum.kernel.bus import BUS_UNAVAILABLE
from caelum.kernel.database import Row, utcnow
from caelum.kernel.errors import UNDELIVERABLE, CloudError, ErrorCode, error_type
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.gc import DONE as GC_DONE
from caelum.kernel.gc import GarbageCollectorModel
from caelum.kernel.jobs import MANAGEMENT_NODE_UNAVAILABLE, PROCESSING, JobModel
from caelum.kernel.journal import JournalModel
from caelum.kernel.settings import Seconds, setting
from caelum.kernel.work_queue import WorkQueueEntryModel

if TYPE_CHECKING:
    from caelum.kernel.node import Node

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL = setting(
    "managementServer", "node.heartbeatInterval", "5", Seconds,
    "The interval management node writes heartbeat to database, in seconds", minimum=1,
)  # fmt: skip
JOIN_DELAY = setting(
    "managementServer", "node.joinDelay", "0", Seconds,
    "The delay management node reports its join event to other management nodes, in secs. If none zero, a random "
    "number will be picked up between 0 to this value and be used as join delay", minimum=0,
)  # fmt: skip

EVICTED = error_type(
    "CAELUM.NODE.1000", "This management node is no longer part of the cloud",
    "Ask another management node; this one starts anew.", transient=True,
)  # fmt: skip

_CLUSTER_CODES = frozenset({EVICTED.code, BUS_UNAVAILABLE.code, *(one.code for one in postgresql.PASSING)})
_DEPARTED_CODES = frozenset({EVICTED.code, MANAGEMENT_NODE_UNAVAILABLE.code})
JOINING, RUNNING, LEAVING = "Joining", "Running", "Leaving"
BEATS_PER_LEASE = 3
"""A node of a cluster writes its heartbeat at least so often in the time of its lease, whatever the setting says."""
LOST_AFTER = 12
"""Heartbeats that a row may be old before the only node of a cloud on SQLite forgets that former process."""
_LOOK_FOR_ORPHANS = 3.0
_ONE_RUN_PER_JOB = "17b06180959c"
"""The revision of the schema since which programs begin at most one run for a job, however often its work is begun."""
_EVICTION_LOCK_SECONDS = 1.0
_SHORTEST_WAIT = 0.05


@canonical("/managementnode/lifecycle")
class NodeLifecycle(CanonicalEvent):
    """A management node joined or left."""

    node_uuid: str
    life_cycle: str


class ManagementNodeModel(Row):
    """A management node and when it was last seen."""

    __tablename__ = "management_node"
    __vo__ = "ManagementNodeVO"

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    host_name: Mapped[str] = mapped_column(String(255))
    join_date: Mapped[datetime]
    heart_beat: Mapped[datetime]
    state: Mapped[str] = mapped_column(String(16), default=RUNNING)
    version: Mapped[str | None] = mapped_column(String(64))
    revision: Mapped[str | None] = mapped_column(String(32))
    """The newest revision of the schema that the node's program knows."""


_TABLE = cast("Table", ManagementNodeModel.__table__)


class Lease:
    """How long this node may act: until `seconds` after it last began to write a heartbeat that was taken.

    The clock runs while the process or the machine is stopped, so a paused node knows at once that it was.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = 0.0
        self._renewed = asyncio.Event()

    @staticmethod
    def now() -> float:
        """Seconds of a clock that nobody sets and that runs in a machine's sleep."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def renew(self, begun: float) -> None:
        """A heartbeat, whose writing began then, was taken."""
        self._until = begun + self.seconds
        self._renewed.set()
        self._renewed = asyncio.Event()

    @property
    def left(self) -> float:
        """Seconds until it ends; negative afterwards."""
        return self._until - self.now()

    async def valid(self, patience: float) -> bool:
        """Wait until the lease is valid, at most so long; whether it is."""
        end = self.now() + patience
        while self.left <= 0 and (rest := end - self.now()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._renewed.wait(), rest)
        return self.left > 0


class Sighting(msgspec.Struct):
    """A heartbeat of another node as this node saw it."""

    beat: datetime
    since: float


class Membership:
    """This node as a member, and what it sees of the others."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._joined = utcnow()
        self._history = schema.History()
        config = node.config
        self.clustered = not node.db.sqlite
        self.lease = Lease(config.node_lease_seconds)
        self._eviction = timedelta(seconds=config.node_eviction_seconds)
        self._patience = config.node_patience_seconds
        self._state = JOINING
        self._lost = False
        self._sightings: dict[str, Sighting] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._take_over: asyncio.Task[None] | None = None
        self._evictions: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()
        self._orphans_at = 0.0
        self._looked = 0.0
        self._entered = False
        if self.clustered:
            # Connections of its own: heartbeats must not wait behind the node's work.
            limits = postgresql.Limits(pool=2, extra=2, statement=self.lease.seconds, idle=self.lease.seconds)
            self._engine = postgresql.make_engine(node.db.url, limits)

    @property
    def serving(self) -> bool:
        """Whether this node may do what it is asked."""
        return not self.clustered or (self._state == RUNNING and not self._lost and self.lease.left > 0)

    @property
    def acts(self) -> bool:
        """Whether what this node has under way is its own to do, now; if not, see `admit`."""
        return not self.clustered or (not self._lost and self.lease.left > 0)

    # --- life -------------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Enter this node's row; in a cluster it is Joining, and does not serve yet."""
        self._entered = True
        if not self.clustered:
            await self._show()
            self._node.ring.join(self._node.uuid)
            return
        row = {
            "uuid": self._node.uuid, "host_name": self._node.config.resolved_host(), "state": JOINING,
            "version": __version__, "revision": self._history.newest,
        }  # fmt: skip
        async with self._engine.begin() as connection:
            await schema.admit(connection, self._history)
            begun = self.lease.now()
            await connection.execute(insert(_TABLE).values(**row, join_date=_clock(), heart_beat=_clock()))
        self.lease.renew(begun)
        self._node.db.fence = self
        self._node.bus.subscribe(NodeLifecycle, self._told)
        self._node.bus.on_reconnect(self._look_again)
        await self._beat()
        self._loop = asyncio.create_task(self._beat_on(), name="membership", context=Context())

    async def serve(self) -> None:
        """Enter the ring of every node, and take up what nobody does any more."""
        if not self.clustered:
            self._node.timers.every(HEARTBEAT_INTERVAL, self._show, name="managementNode.heartbeat")
        else:
            await asyncio.sleep(random.uniform(0, self._node.settings.get(JOIN_DELAY)))  # noqa: S311 - spreads joins
            await self._move(RUNNING)
            await self._beat()
            await self.take_over()
        # Last: whoever hears of it may give this node work at once.
        self._tell("NodeJoin")

    async def withdraw(self) -> None:
        """Stop being given work: the others drop this node from their rings, but leave alone what it still does."""
        if self._node.uuid not in self._node.ring.members:
            return
        if self.clustered and not self._lost:
            with contextlib.suppress(CloudError, SQLAlchemyError, TimeoutError):
                await self._move(LEAVING)
        self._tell("NodeLeft")

    async def leave(self) -> None:
        """Remove this node's row: from now on it commits nothing, and the others take over what it left."""
        tasks = [one for one in (self._loop, self._take_over, *self._evictions.values()) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        mine = delete(_TABLE).where(_TABLE.c.uuid == self._node.uuid)
        if not self._entered:
            return
        if not self.clustered:
            async with self._node.db.transaction() as tx:
                await tx.execute(mine)
            return
        self._lost = True
        try:
            async with asyncio.timeout(self.lease.seconds), self._engine.begin() as connection:
                await connection.execute(mine)
        finally:
            await self._engine.dispose()

    def freeze(self) -> None:
        """Write no heartbeat and look at nothing any more, as if the process were stopped (for tests)."""
        for task in (self._loop, self._take_over, *self._evictions.values()):
            if task is not None:
                task.cancel()

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._loop = asyncio.create_task(self._beat_on(), name="membership", context=Context())

    async def abandon(self) -> None:
        """Do nothing more, and leave the row to the others (for tests of deaths)."""
        self.freeze()
        if self.clustered:
            await self._engine.dispose()

    # --- the fence of the database ------------------------------------------------------------------------------------

    async def admit(self) -> None:
        """See `Fence`: a database that comes back soon costs its users only time."""
        if not self._lost and self.lease.left <= 0 and not await self.lease.valid(self._patience):
            raise self._lapsed()
        if self._lost:
            raise self._evicted()

    def guard(self) -> str:
        """See `Fence`. The lock keeps evictors waiting; who comes after them finds no row, and divides by nothing."""
        if self._lost:
            raise self._evicted()
        mine = self._node.uuid.replace("'", "''")
        row = f"SELECT FROM management_node WHERE uuid = '{mine}' FOR KEY SHARE"  # noqa: S608 - quoted, and our own
        return f"SELECT 1 / count(*) FROM ({row}) AS mine"  # noqa: S608

    def broken(self) -> CloudError:
        """See `Fence`."""
        self._lose("its row was removed")
        return self._evicted()

    def _evicted(self) -> CloudError:
        return CloudError(EVICTED, f"node[{self._node.uuid}] was evicted or has left", node=self._node.uuid)

    def _lapsed(self) -> CloudError:
        since = -self.lease.left
        details = f"node[{self._node.uuid}] could not renew its lease: it ended {since:.1f} s ago"
        return CloudError(postgresql.DATABASE_UNAVAILABLE, details, node=self._node.uuid)

    # --- heartbeats -------------------------------------------------------------------------------------------------

    async def _beat_on(self) -> None:
        while not self._lost:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(_SHORTEST_WAIT, self._interval()))
            try:
                async with asyncio.timeout(self.lease.seconds):
                    await self._beat()
            except Exception as error:
                log.warning("the heartbeat could not be written (lease: %.1f s left): %s", self.lease.left, error)
                if self.lease.left < -self._patience:
                    self._lose(f"the database could not be reached for {self.lease.seconds - self.lease.left:.1f} s")

    def _interval(self) -> float:
        return min(float(self._node.settings.get(HEARTBEAT_INTERVAL)), self.lease.seconds / BEATS_PER_LEASE)

    async def _beat(self) -> None:
        """Write the heartbeat, look at the others, and act on what is there."""
        begun, row = self.lease.now(), _TABLE.c
        old = (row.heart_beat < _clock() - self._eviction).label("old")
        async with self._engine.begin() as connection:
            beat = update(_TABLE).where(row.uuid == self._node.uuid).values(heart_beat=_clock())
            mine = cast("CursorResult[Any]", await connection.execute(beat))
            if not mine.rowcount:
                self._lose("its row was removed")
                return
            seen = (await connection.execute(select(row.uuid, row.state, row.heart_beat, old))).all()
        self.lease.renew(begun)
        self._repair({one.uuid for one in seen if one.state == RUNNING}, {one.uuid for one in seen})
        self._suspect([one for one in seen if one.uuid != self._node.uuid])
        if self._state == RUNNING and self.lease.now() >= self._orphans_at:
            self._begin_take_over()

    def _repair(self, running: set[str], present: set[str]) -> None:
        """Make the ring what the table says. One that is alone serves itself already while it joins.

        A node that leaves in order ends what it was asked, and its row is there until it has.
        """
        ring = self._node.ring
        members = running or {self._node.uuid}
        for node in members - ring.members:
            log.info("node %s is in the ring", node)
            ring.join(node)
        for node in ring.members - members:
            log.info("node %s is no longer in the ring", node)
            ring.leave(node, ends_work=node in present)
            self._orphans_at = 0.0
        for node in self._ending - present:
            ring.gone(node)
        self._ending = present - running - {self._node.uuid}

    def _suspect(self, seen: Sequence[Any]) -> None:
        """Evict who is silent: by the database's clock, and for a lease before our own eyes.

        Its second half is for the return of a database that was away, when every heartbeat is old: who could not keep
        its own lease has seen nothing. A busy node may look seldom, but whoever keeps its lease sees enough.
        """
        now = self.lease.now()
        if now - self._looked > self.lease.seconds:
            self._sightings.clear()
        self._looked = now
        self._sightings = {one.uuid: self._sighting(one, now) for one in seen}
        for one in seen:
            if (
                one.old
                and now - self._sightings[one.uuid].since >= self.lease.seconds
                and one.uuid not in self._evictions
            ):
                task = asyncio.create_task(self._evict(one.uuid, one.heart_beat), context=Context())
                self._evictions[one.uuid] = task

    def _sighting(self, one: Any, now: float) -> Sighting:
        known = self._sightings.get(one.uuid)
        return known if known is not None and known.beat == one.heart_beat else Sighting(one.heart_beat, now)

    async def _evict(self, uuid: str, beat: datetime) -> None:
        """Remove a silent node's row, unless it spoke again; of several evictors one does."""
        try:
            await self._remove(uuid, beat)
        except (CloudError, SQLAlchemyError, OSError) as error:
            # A transaction of it is still open; the server ends it soon.
            log.info("node %s cannot be evicted yet: %s", uuid, error)
        finally:
            self._evictions.pop(uuid, None)

    async def _remove(self, uuid: str, beat: datetime) -> None:
        gone = delete(_TABLE).where(_TABLE.c.uuid == uuid, _TABLE.c.heart_beat == beat)
        async with self._engine.begin() as connection:
            await _limit_lock_wait(connection)
            removed = cast("CursorResult[Any]", await connection.execute(gone)).rowcount
        if removed:
            log.warning("node %s was silent since %s and is evicted", uuid, beat)
            self._node.bus.publish(NodeLifecycle(node_uuid=uuid, life_cycle="NodeLeft"))
            self._wake.set()

    # --- take-over --------------------------------------------------------------------------------------------------

    def _begin_take_over(self) -> None:
        if self._take_over is None or self._take_over.done():
            self._orphans_at = self.lease.now() + _LOOK_FOR_ORPHANS
            self._take_over = asyncio.create_task(self._take_over_safely(), name="take-over", context=Context())

    async def _take_over_safely(self) -> None:
        try:
            await self.take_over()
        except Exception:
            log.exception("the work of dead nodes could not be taken over; it is tried again")

    async def take_over(self) -> None:
        """Take up what owners without a row left, as far as the ring gives it to this node."""
        dead = await self.dead_owners()
        if dead:
            taken = await self._node.workflows.recover(dead)
            log.info("took %d workflows over from nodes %s", taken, ", ".join(dead))

    async def is_member(self, session: AsyncSession, uuid: str) -> bool:
        """Whether a node has a row, so that what it owns is its own."""
        if not self.clustered:
            return uuid == self._node.uuid
        return await session.scalar(select(_TABLE.c.uuid).where(_TABLE.c.uuid == uuid)) is not None

    async def may_do_anew(self, session: AsyncSession) -> bool:
        """Whether what nobody is known to have begun may be done anew: all members begin at most one run for a job.

        Members of other versions do too, so nodes that stop for an upgrade let no operation fail.
        """
        if not self.clustered:
            return True
        revisions = await session.scalars(select(_TABLE.c.revision))
        return all(self._history.reaches(one, _ONE_RUN_PER_JOB) for one in revisions)

    async def dead_owners(self) -> list[str]:
        """The nodes that still own something and have no row."""
        owners = union(
            select(JournalModel.owner.label("owner")).where(JournalModel.state.in_(journal.LIVE)),
            select(JobModel.node_uuid).where((JobModel.state == PROCESSING) | JobModel.web_hook.is_not(None)),
            select(GarbageCollectorModel.management_node_uuid).where(GarbageCollectorModel.status != GC_DONE),
            select(WorkQueueEntryModel.node_uuid).where(WorkQueueEntryModel.state.in_(work_queue.OPEN)),
        ).subquery()
        alive = select(_TABLE.c.uuid).where(_TABLE.c.uuid == owners.c.owner).exists()
        async with self._node.db.read() as session:
            found = await session.scalars(select(owners.c.owner).where(owners.c.owner.is_not(None), ~alive))
            return sorted(found)

    # --- common -----------------------------------------------------------------------------------------------------

    async def _told(self, news: NodeLifecycle) -> None:
        if news.node_uuid != self._node.uuid or news.life_cycle == "NodeLeft":
            self._wake.set()

    async def _look_again(self) -> None:
        self._wake.set()

    def _tell(self, life_cycle: str) -> None:
        self._node.bus.publish(NodeLifecycle(node_uuid=self._node.uuid, life_cycle=life_cycle))

    async def _move(self, state: str) -> None:
        async with asyncio.timeout(self.lease.seconds), self._engine.begin() as connection:
            await connection.execute(update(_TABLE).where(_TABLE.c.uuid == self._node.uuid).values(state=state))
        self._state = state

    def _lose(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            self._node.lose(reason)

    async def _show(self) -> None:
        """Have a fresh row for clients to see, on SQLite."""
        now = utcnow()
        lost = now - timedelta(seconds=LOST_AFTER * self._node.settings.get(HEARTBEAT_INTERVAL))
        row = ManagementNodeModel(
            uuid=self._node.uuid, host_name=self._node.config.resolved_host(), join_date=self._joined, heart_beat=now,
            version=__version__, revision=self._history.newest,
        )  # fmt: skip
        async with self._node.db.transaction() as tx:
            await tx.merge(row)
            await tx.execute(delete(_TABLE).where(_TABLE.c.heart_beat < lost))


def is_of_cluster(error: BaseException) -> bool:
    """Whether it was the cluster that failed, and not what was asked: at the bottom of the error a node left or was
    evicted, or database or broker were away. Work that may be repeated after a crash may be repeated then."""
    return any(
        code in _CLUSTER_CODES or (code == UNDELIVERABLE.code and facts.get("left")) for code, facts in _chain(error)
    )


def is_database_away(error: BaseException) -> bool:
    """Whether the error at the bottom is that the database could not be reached; not that it had too much to do."""
    return any(code == postgresql.DATABASE_UNAVAILABLE.code and not facts.get("busy") for code, facts in _chain(error))


def departed(error: BaseException) -> str | None:
    """The node that went away, or is about to, before it had done what was asked: what the error at the bottom says."""
    for code, facts in _chain(error):
        went = code in _DEPARTED_CODES or facts.get("left") or facts.get("stopping")
        if went and isinstance(node := facts.get("node"), str):
            return node
    return None


def _chain(error: BaseException) -> Iterator[tuple[str, dict[str, Any]]]:
    """Code and facts of an error and of those below it."""
    below: BaseException | ErrorCode | None = error
    while isinstance(below, (CloudError, ErrorCode)):
        yield below.code, below.facts if isinstance(below, CloudError) else below.opaque or {}
        below = below.cause


def _clock() -> Any:
    """The time by the database's clock, as it stores times."""
    return func.timezone("UTC", func.clock_timestamp(), type_=DateTime())


async def _limit_lock_wait(connection: AsyncConnection) -> None:
    await connection.execute(text(f"SET LOCAL lock_timeout = {int(_EVICTION_LOCK_SECONDS * 1000)}"))
