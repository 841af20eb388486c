"""Sessions: who a session UUID stands for, remembered so that most calls need no database.

Whoever has a session's UUID is its account, so only its client has it: tables, events and contexts know the session by
a digest of it (`digest_of`).

Invariant: a session is valid until its time, which each use extends. A node trusts its memory for at most
`SAVE_INTERVAL` seconds; then it writes the extended time and learns whether another node ended the session.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import delete, func, select

from caelum.cloud.identity.api import SYSTEM_ADMIN, SessionInventory
from caelum.cloud.identity.errors import MAX_SESSIONS_EXCEEDED, invalid_session, wrong_credentials
from caelum.cloud.identity.events import SessionEnded
from caelum.cloud.identity.model import AccountModel, SessionModel
from caelum.cloud.identity.settings import MAX_CONCURRENT_SESSIONS, SESSION_TIMEOUT
from caelum.kernel.context import Actor
from caelum.kernel.database import update_where, utcnow
from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid

if TYPE_CHECKING:
    from caelum.kernel.node import Node

SAVE_INTERVAL = 60.0
"""Longest time in seconds that a use of a session stays unwritten."""


class _Known(msgspec.Struct):
    """A session as this node remembers it."""

    actor: Actor
    expires: datetime
    saved: datetime


class Sessions:
    """The sessions of the cloud, seen from one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: dict[str, _Known] = {}

    def start(self) -> None:
        """Forget the sessions that other nodes end."""
        self._node.bus.subscribe(SessionEnded, self._ended)
        self._node.bus.on_reconnect(self._forget_all)

    async def open(self, account: AccountModel) -> SessionInventory:
        """A new session of an account."""
        now, session_uuid = utcnow(), new_uuid()
        row = SessionModel(
            uuid=digest_of(session_uuid),
            account_uuid=account.uuid,
            user_uuid=account.uuid,
            user_type="AccountVO",
            create_date=now,
            expired_date=now + self._lifetime(),
        )
        limit = self._node.settings.get(MAX_CONCURRENT_SESSIONS)
        async with self._node.db.transaction() as tx:
            active = select(func.count()).where(
                SessionModel.account_uuid == account.uuid, SessionModel.expired_date > now
            )
            # Loaded and so locked: logins at several nodes are counted one after another.
            now_row = await tx.get_one(AccountModel, account.uuid)
            if now_row.password != account.password:
                raise wrong_credentials()  # it was changed while this one was checked
            count = await tx.scalar(active) or 0
            if count >= limit:
                raise CloudError(
                    MAX_SESSIONS_EXCEEDED,
                    f"account[{account.name}] has {count} active sessions, at most {limit} are allowed",
                    active=count,
                    limit=limit,
                )
            tx.add(row)
        self._remember(row, account.type)
        return inventory(row, session_uuid)

    async def check(self, session_uuid: str | None) -> Actor:
        """Who the session belongs to; extends it. INVALID_SESSION when it is unknown or over."""
        if session_uuid is None:
            raise invalid_session(None)
        digest = digest_of(session_uuid)
        known = await self._find(digest)
        now = utcnow()
        if known.expires <= now:
            self._known.pop(digest, None)
            raise invalid_session(session_uuid)
        known.expires = max(known.expires, now + self._lifetime())
        if (now - known.saved).total_seconds() >= self._save_interval():
            await self._save(digest, known, now)
        return known.actor

    async def check_actor(self, actor: Actor) -> Actor:
        """See `CheckActor`."""
        if actor.session_uuid is not None:
            known = await self._find(actor.session_uuid)
            if known.expires <= utcnow():
                raise invalid_session(actor.session_uuid)
            return known.actor
        async with self._node.db.read() as session:
            account = await session.get(AccountModel, actor.account_uuid)
        if account is None:
            raise invalid_session(None)
        return Actor(account.uuid, actor.user_uuid, None, account.type == SYSTEM_ADMIN)

    async def is_valid(self, session_uuid: str) -> bool:
        """Whether the session is valid, without extending it."""
        try:
            return (await self._find(digest_of(session_uuid))).expires > utcnow()
        except CloudError:
            return False

    async def renew(self, session_uuid: str, seconds: int | None) -> SessionInventory:
        """Let the session end so many seconds from now."""
        lifetime = self._lifetime() if seconds is None else timedelta(seconds=seconds)
        digest = digest_of(session_uuid)
        async with self._node.db.transaction() as tx:
            row = await tx.get(SessionModel, digest)
            if row is None or row.expired_date <= utcnow():
                raise invalid_session(session_uuid)
            row.expired_date = utcnow() + lifetime
        if known := self._known.get(digest):
            known.expires = row.expired_date
        return inventory(row, session_uuid)

    async def close(self, session_uuid: str) -> None:
        """End a session, on every node."""
        async with self._node.db.transaction() as tx:
            row = await tx.get(SessionModel, digest_of(session_uuid))
            if row is not None:
                await tx.delete(row)
        if row is not None:
            self._forget(row)

    async def close_of(self, account_uuid: str, *, but: str | None = None) -> None:
        """End all sessions of an account, but the one of this digest."""
        async with self._node.db.transaction() as tx:
            query = select(SessionModel).where(
                SessionModel.account_uuid == account_uuid, SessionModel.uuid != (but or "")
            )
            rows = list(await tx.scalars(query))
            for row in rows:
                await tx.delete(row)
        for row in rows:
            self._forget(row)

    async def purge(self) -> None:
        """Remove what is over, from the database and from memory."""
        now = utcnow()
        for uuid in [uuid for uuid, one in self._known.items() if one.expires <= now]:
            del self._known[uuid]
        # Other nodes may hold uses that they have not written yet.
        until = now - timedelta(seconds=SAVE_INTERVAL)
        async with self._node.db.transaction() as tx:
            await tx.execute(delete(SessionModel).where(SessionModel.expired_date <= until))

    def _lifetime(self) -> timedelta:
        return timedelta(seconds=self._node.settings.get(SESSION_TIMEOUT))

    def _save_interval(self) -> float:
        # A short lifetime must not run out in the database while it is extended in memory.
        return min(SAVE_INTERVAL, self._lifetime().total_seconds() / 4)

    async def _find(self, digest: str) -> _Known:
        known = self._known.get(digest)
        return await self._load(digest) if known is None else known

    async def _load(self, digest: str) -> _Known:
        async with self._node.db.read() as session:
            query = select(SessionModel, AccountModel.type).join(
                AccountModel, AccountModel.uuid == SessionModel.account_uuid
            )
            found = (await session.execute(query.where(SessionModel.uuid == digest))).first()
        if found is None:
            raise invalid_session(digest)
        return self._remember(*found)

    def _remember(self, row: SessionModel, account_type: str) -> _Known:
        actor = Actor(row.account_uuid, row.user_uuid, row.uuid, account_type == SYSTEM_ADMIN)
        self._known[row.uuid] = known = _Known(actor, row.expired_date, utcnow())
        return known

    async def _save(self, digest: str, known: _Known, now: datetime) -> None:
        # Before the write, so that calls which come meanwhile do not write too.
        known.saved = now
        async with self._node.db.transaction() as tx:
            changed = await update_where(tx, SessionModel, {"expired_date": known.expires}, SessionModel.uuid == digest)
        if not changed:
            self._known.pop(digest, None)
            raise invalid_session(digest)

    def _forget(self, row: SessionModel) -> None:
        self._known.pop(row.uuid, None)
        self._node.bus.publish(
            SessionEnded(session_uuid=row.uuid, account_uuid=row.account_uuid, user_uuid=row.user_uuid, date=utcnow())
        )

    async def _forget_all(self) -> None:
        """The news of ended sessions may be lost."""
        self._known.clear()

    async def _ended(self, event: SessionEnded) -> None:
        self._known.pop(event.session_uuid, None)


def digest_of(session_uuid: str) -> str:
    """What a session is known by to all but its client; a UUID is random enough that its hash needs no salt."""
    return hashlib.sha256(session_uuid.encode()).hexdigest()[:32]


def inventory(row: SessionModel, session_uuid: str) -> SessionInventory:
    """A session as its client sees it."""
    return SessionInventory(
        uuid=session_uuid,
        account_uuid=row.account_uuid,
        user_uuid=row.user_uuid,
        user_type=row.user_type,
        expired_date=row.expired_date,
        create_date=row.create_date,
    )
