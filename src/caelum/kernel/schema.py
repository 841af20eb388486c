"""Which programs may use a database: the history of its schema, and who runs on it.

Invariant: a revision that expands only adds, so programs of the version before work with it in place as without; one
that contracts takes away what only they need. A program ships both, and works before its contract revisions and after
them. So a program may use each database whose last contract revision it knows (`schema_compatibility`), whatever has
been added since; and a contract revision waits until every member of the cluster knows it.

A node that joins and a contract revision under way exclude each other (`admit`, `exclude_joins`): no node of a former
version slips in between the look at the members and the change.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, String, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.database import Base

SCRIPTS = Path(__file__).parent.parent / "migrations"
EXPAND, CONTRACT = "expand", "contract"
_MEMBERS = "management_node"
_JOINING = 0x0CAE3
"""The key that joining nodes share, and that a contract revision has alone."""
_JOIN_PAUSE = 0.2


class UpgradeError(RuntimeError):
    """The program cannot use the database as it is; the text says why and what to do."""


class NewerDatabaseError(UpgradeError):
    """The database belongs to a newer version of the program."""


class CompatibilityModel(Base):
    """The one row says which revision a program must know to use this database."""

    __tablename__ = "schema_compatibility"

    revision: Mapped[str] = mapped_column(String(32), primary_key=True)


class Revision(msgspec.Struct, frozen=True):
    """A step of the schema's history, and the one before it."""

    name: str
    before: str | None
    phase: str

    @property
    def contracts(self) -> bool:
        return self.phase == CONTRACT

    def __str__(self) -> str:
        return f"{self.name} ({self.phase})"


class Member(msgspec.Struct, frozen=True):
    """A management node as its row tells: `version` and `revision` (the newest that its program knows) are None for
    programs that did not write them yet."""

    uuid: str
    host_name: str
    heart_beat: datetime
    version: str | None
    revision: str | None

    def __str__(self) -> str:
        return f"{self.host_name} (node {self.uuid}, version {self.version or 'unknown'})"


class History:
    """The revisions that this program knows, oldest first."""

    def __init__(self) -> None:
        found = [_read(path) for path in sorted((SCRIPTS / "versions").glob("*.py"))]
        after = {one.before: one for one in found if one is not None}
        self.revisions: list[Revision] = []
        while (following := after.get(self.newest)) is not None:
            self.revisions.append(following)

    @property
    def newest(self) -> str | None:
        """The revision that no other one follows, or None while there is none."""
        return self.revisions[-1].name if self.revisions else None

    def knows(self, revision: str | None) -> bool:
        """Whether this program knows a revision; everyone knows the beginning."""
        return revision is None or self._place(revision) is not None

    def pending(self, version: str | None) -> list[Revision]:
        """What is to come for a database at this revision; nothing for one that is beyond all that is known here."""
        place = -1 if version is None else self._place(version)
        return [] if place is None else self.revisions[place + 1 :]

    def needed(self, version: str | None) -> str | None:
        """The revision that a program must know for a database at `version`: the last one that took something away."""
        place = None if version is None else self._place(version)
        passed = [] if place is None else self.revisions[: place + 1]
        return next((one.name for one in reversed(passed) if one.contracts), passed[0].name if passed else None)

    def equals(self, version: str) -> list[str]:
        """The revision of a database, and those before it that only additions separate from it, newest first: a copy of
        any of them is as good, for the same programs can use it."""
        place = self._place(version)
        passed = [] if place is None else self.revisions[: place + 1]
        found = [version]
        while passed and not passed.pop().contracts and passed:
            found.append(passed[-1].name)
        return found

    def admits(self, member: Member, contraction: Revision) -> bool:
        """Whether a member's program knows a contract revision, which may then be run."""
        return self.reaches(member.revision, contraction.name)

    def reaches(self, newest: str | None, revision: str) -> bool:
        """Whether a program knows a revision of this history; `newest` is what it says of itself, None: nothing."""
        if newest is None:
            return False
        place = self._place(newest)
        # One that is not known here is of a newer program, which has the whole history of this one.
        return place is None or place >= [one.name for one in self.revisions].index(revision)

    def _place(self, revision: str) -> int | None:
        return next((place for place, one in enumerate(self.revisions) if one.name == revision), None)


def _read(path: Path) -> Revision | None:
    """What a file of the history declares; read as text, for loading Alembic takes longer than the rest of a start."""
    declared = dict(re.findall(r"^(revision|down_revision|phase) = [\"'](\w+)", path.read_text(), re.MULTILINE))
    if "revision" not in declared:
        return None
    phase = declared.get("phase", "")
    if phase not in (EXPAND, CONTRACT):
        raise ValueError(f"{path.name} must declare its phase, {EXPAND!r} or {CONTRACT!r}")
    return Revision(declared["revision"], declared.get("down_revision"), phase)


def version_of(connection: Connection) -> str | None:
    """The revision at which a database is; None for one without tables, or from before there were revisions."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def check_compatible(connection: Connection, history: History) -> None:
    """Raises NewerDatabaseError when this program must not use the database."""
    version = version_of(connection)
    if history.knows(version):
        return
    needed = None
    if inspect(connection).has_table(CompatibilityModel.__tablename__):
        needed = connection.scalar(select(CompatibilityModel.revision))
    if needed is None or not history.knows(needed):
        raise NewerDatabaseError(
            f"the database is at revision {version}, which this version of Caelum does not know, and what it needs was"
            f" removed by revision {needed or version}: a newer version has finished its upgrade. Install that again,"
            " or restore the copy of the database from before the upgrade"
        )


def members(connection: Connection) -> list[Member]:
    """The management nodes that have a row. SQLite has one node, whose former rows mean nothing: none."""
    look = inspect(connection)
    if connection.dialect.name == "sqlite" or not look.has_table(_MEMBERS):
        return []
    present = {one["name"] for one in look.get_columns(_MEMBERS)}
    columns = [name if name in present else f"NULL AS {name}" for name in Member.__struct_fields__]
    rows = connection.execute(text(f"SELECT {', '.join(columns)} FROM {_MEMBERS}"))  # noqa: S608 - names of our own
    return [Member(**row) for row in rows.mappings()]


def evict(connection: Connection, silent: Sequence[Member]) -> None:
    """Remove the rows of members that have not written a heartbeat since they were looked at."""
    gone = text(f"DELETE FROM {_MEMBERS} WHERE uuid = :uuid AND heart_beat = :heart_beat")  # noqa: S608 - as above
    for one in silent:
        connection.execute(gone, {"uuid": one.uuid, "heart_beat": one.heart_beat})


async def admit(connection: AsyncConnection, history: History) -> None:
    """Call in the transaction that enters a node's row: no contract revision runs until it ends.

    Raises NewerDatabaseError when one has run meanwhile that this program does not know.
    """
    await _wait_for(connection, "SELECT pg_try_advisory_xact_lock_shared(:key)")
    await connection.run_sync(check_compatible, history)


async def exclude_joins(connection: AsyncConnection) -> None:
    """Let no node join until this transaction ends."""
    await _wait_for(connection, "SELECT pg_try_advisory_xact_lock(:key)")


async def _wait_for(connection: AsyncConnection, lock: str) -> None:
    if connection.dialect.name == "sqlite":
        return
    statement: Any = text(lock)
    # Asked again and again: one long statement would run into limits of time.
    while not (await connection.execute(statement, {"key": _JOINING})).scalar():  # noqa: ASYNC110 - as above
        await asyncio.sleep(_JOIN_PAUSE)
