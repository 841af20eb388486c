"""A node's share in the upgrade of its cluster.

Invariant: a node starts with every addition that its version needs in the schema; what it takes away goes when no node
of a former version has been a member for a while, by whichever node sees that first. Until then the former version can
be started again: also when all nodes were away at once, and one of the newer version is back first.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from contextvars import Context

import msgspec

from caelum.kernel import migrate
from caelum.kernel.config import Config
from caelum.kernel.database import Database
from caelum.kernel.migrate import Finish
from caelum.kernel.schema import History

log = logging.getLogger(__name__)

BACKUPS = "backup"
"""The folder of the data directory for dumps."""
_LOOK_INTERVAL = 3.0
_RETRY_SECONDS = (60.0, 300.0, 1800.0)
"""How long the end of the upgrade is left alone after it has failed once, twice, and more often."""


def rules(config: Config) -> migrate.Rules:
    """How the configuration wants upgrades done."""
    finish = Finish.NONE
    if config.upgrade_finish == "automatic":
        # A single server has nobody to wait for.
        finish = Finish.ALL if config.resolved_database_url().startswith("sqlite") else Finish.NEEDED
    return migrate.Rules(
        finish=finish,
        dumps=config.data_dir / BACKUPS if config.upgrade_backup == "dump" else None,
        silence=config.node_lease_seconds + config.node_eviction_seconds,
    )


async def finish(db: Database, config: Config) -> migrate.Plan:
    """Run what may run, also what waits for the order. Raises what `migrate.upgrade` does."""
    return await migrate.upgrade(db, msgspec.structs.replace(rules(config), finish=Finish.ALL))


class Upgrade:
    """The upgrade of the database as one node does it."""

    def __init__(self, db: Database, config: Config) -> None:
        self._db = db
        self._config = config
        self._waiting = False
        self._failures = 0
        self._loop: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Bring the schema to what this version needs. Raises what `migrate.upgrade` does."""
        plan = await migrate.upgrade(self._db, rules(self._config))
        self._waiting = bool(plan.later)

    def start(self) -> None:
        """Finish as soon as that may be."""
        if self._waiting and self._config.upgrade_finish == "automatic":
            self._loop = asyncio.create_task(self._finish(), name="upgrade", context=Context())

    async def stop(self) -> None:
        """Leave it to others, or to the next start."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def _finish(self) -> None:
        # Loading Alembic would hold the event loop up.
        await asyncio.to_thread(importlib.import_module, "alembic.command")
        loop = asyncio.get_running_loop()
        alone_since: float | None = None
        while self._waiting:
            await asyncio.sleep(min(_LOOK_INTERVAL, self._config.upgrade_finish_seconds))
            try:
                plan = await migrate.look(self._db, History(), finish=Finish.ALL)
            except Exception:
                log.exception("what the upgrade of the database waits for cannot be seen; it is looked at again")
                continue
            alone_since = None if plan.blockers else alone_since or loop.time()
            if alone_since is not None and loop.time() >= alone_since + self._config.upgrade_finish_seconds:
                await self._try_to_finish()

    async def _try_to_finish(self) -> None:
        """Finish, or wait a while: the dump before each try is much work."""
        try:
            plan = await finish(self._db, self._config)
        except Exception:
            pause = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
            self._failures += 1
            log.exception("the upgrade of the database could not be finished; it is tried again in %.0f s", pause)
            await asyncio.sleep(pause)
        else:
            self._waiting = bool(plan.later)
