"""Single statements that read: the latest committed state, asked at once where that is possible."""

import pytest
from sqlalchemy import bindparam, column, select, table, text, update
from sqlalchemy.exc import DBAPIError

from caelum.kernel import sqlite
from caelum.kernel.database import Database
from caelum.kernel.prepared import Prepared

_NOTE = table("note", column("x"))
_READ = Prepared(select(_NOTE.c.x).where(_NOTE.c.x >= bindparam("least")))
_WRITE = Prepared(update(_NOTE).values(x=bindparam("x")).returning(_NOTE.c.x))
_TEXT = "SELECT note.x \nFROM note \nWHERE note.x >= ?"


@pytest.fixture
async def noted(db: Database) -> Database:
    """A database with one note, the number 1, and a statement that is known as quick."""
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE note (x INTEGER)"))
        await tx.execute(text("INSERT INTO note VALUES (1)"))
    sqlite._pace.took(_TEXT, 0.0)
    sqlite._pace._average[_TEXT] = 0.0
    return db


async def ask(db: Database, least: int = 0) -> list[int]:
    return [one for (one,) in await _READ.rows(db.once, least=least)]


@pytest.fixture
def sessions(noted: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each session that was opened to read."""
    opened: list[str] = []
    read = noted.once._read
    monkeypatch.setattr(noted.once, "_read", lambda: (opened.append("read"), read())[1])
    return opened


async def test_a_quick_statement_needs_no_session(noted: Database, sessions: list[str]) -> None:
    counted = noted.statements
    assert (await ask(noted), await ask(noted, 2)) == ([1], [])
    assert (sessions, noted.statements - counted) == ([], 2)


async def test_what_is_not_committed_yet_is_not_seen(noted: Database, sessions: list[str]) -> None:
    async with noted.transaction() as tx:
        await tx.execute(text("UPDATE note SET x = 2"))
        assert await ask(noted) == [1]
    assert await ask(noted) == [2]
    assert sessions == ["read"]


async def test_a_statement_that_may_be_slow_runs_in_a_session(noted: Database, sessions: list[str]) -> None:
    for _ in range(10):
        sqlite._pace.took(_TEXT, 1.0)
    assert (await ask(noted), sessions) == ([1], ["read"])


async def test_it_cannot_write(noted: Database) -> None:
    with pytest.raises(DBAPIError, match="readonly"):
        await _WRITE.rows(noted.once, x=5)
    assert await ask(noted) == [1]


async def test_an_error_is_that_of_a_session(noted: Database) -> None:
    async with noted.transaction() as tx:
        await tx.execute(text("DROP TABLE note"))
    with pytest.raises(DBAPIError, match="no such table"):
        await ask(noted)
