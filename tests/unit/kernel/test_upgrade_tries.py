"""An upgrade that fails fills no disk: what is not whole goes, what is whole is used again, and tries are far apart."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections import namedtuple
from pathlib import Path

import pytest

from caelum.kernel import backup, migrate, upgrade
from caelum.kernel.config import Config
from caelum.kernel.database import Database
from caelum.kernel.schema import Revision

URL = "postgresql+asyncpg://me@127.0.0.1/x"
Usage = namedtuple("Usage", "total used free")


def _pg_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Have this in the place of `pg_dump`; `$out` is the file that it writes."""
    program = tmp_path / "programs" / "15" / "bin" / "pg_dump"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nfor one; do case $one in --file=*) out=${one#--file=};; esac; done\n" + body)
    program.chmod(0o755)
    monkeypatch.setattr(backup, "PROGRAMS", tmp_path / "programs")


def _names(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir())


async def test_a_dump_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pg_dump(tmp_path, monkeypatch, "echo half > $out; echo full disk >&2; exit 3\n")
    with pytest.raises(backup.BackupError, match="ended with 3: full disk"):
        await backup.dump(URL, tmp_path / "dumps", "abc")
    assert _names(tmp_path / "dumps") == []


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_dump_that_is_ended_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    _pg_dump(tmp_path, monkeypatch, "echo half > $out; touch $0.begun; exec sleep 60\n")
    begun = tmp_path / "programs" / "15" / "bin" / "pg_dump.begun"
    monkeypatch.setattr(backup, "_DUMP_SECONDS", 60.0 if cancelled else 1.0)
    dumping = asyncio.create_task(backup.dump(URL, tmp_path / "dumps", "abc"))
    async with asyncio.timeout(10):
        while cancelled and not begun.exists():  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.01)
    if cancelled:
        dumping.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else backup.BackupError):
        await dumping
    assert _names(tmp_path / "dumps") == []


async def test_what_a_killed_server_left_goes_with_the_next_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pg_dump(tmp_path, monkeypatch, "echo whole > $out\n")
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    (dumps / "caelum-before.part").write_text("half")
    kept = await backup.dump(URL, dumps, "abc")
    assert _names(dumps) == [kept.name] == ["caelum-abc.dump"]
    assert kept.stat().st_mode & 0o777 == 0o600


async def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pg_dump(tmp_path, monkeypatch, "exit 0\n")
    (tmp_path / "file").touch()
    with pytest.raises(backup.BackupError, match=r"was not: .*file"):
        await backup.dump(URL, tmp_path / "file", "abc")


def test_a_young_dump_of_the_same_revision_is_used_again(tmp_path: Path) -> None:
    assert backup.recent(tmp_path, ["abc"]) is None
    kept = tmp_path / "caelum-abc.dump"
    kept.touch()
    assert backup.recent(tmp_path, ["abc"]) == kept
    assert backup.recent(tmp_path, ["abd"]) is None
    assert backup.recent(tmp_path, ["abd", "abc"]) == kept, "only additions came between"
    for moment in (time.time() - backup.YOUNG_SECONDS - 1, time.time() + 60):
        os.utime(kept, (moment, moment))
        assert backup.recent(tmp_path, ["abc"]) is None


async def test_without_room_for_the_copy_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(tmp_path / "x.db") as raw:
        raw.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    db = Database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10, 10, 0))
    with pytest.raises(backup.BackupError, match=r"has 0 MiB free\. Nothing was changed\. Make room there"):
        await migrate._keep_copy(db, ["abc"], migrate.Rules())
    assert not (tmp_path / "x.db.abc").exists()
    await db.close()


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        migrate._copy_file(f"sqlite:///{tmp_path / 'x.db'}", tmp_path / "x.db.abc")
    assert _names(tmp_path) == ["x.db"]


async def test_the_end_of_an_upgrade_that_fails_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contraction = Revision("b", "a", "contract")
    waits = migrate.Plan(version="a", now=[], later=[contraction])
    may_run = migrate.Plan(version="a", now=[contraction])
    outcomes: list[migrate.Plan | Exception] = [*(OSError("in use") for _ in range(4)), may_run]
    slept: list[float] = []

    async def begin(*_: object) -> migrate.Plan:
        return waits

    async def look(*_: object, **__: object) -> migrate.Plan:
        return may_run

    async def finish(*_: object) -> migrate.Plan:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    config = Config(data_dir=tmp_path, upgrade_finish_seconds=0.0)
    db = Database(config.resolved_database_url())
    monkeypatch.setattr(migrate, "upgrade", begin)
    monkeypatch.setattr(migrate, "look", look)
    monkeypatch.setattr(upgrade, "finish", finish)
    one = upgrade.Upgrade(db, config)
    await one.begin()
    with monkeypatch.context() as quick:
        quick.setattr(asyncio, "sleep", sleep)
        await one._finish()
    assert [seconds for seconds in slept if seconds > 0] == [60.0, 300.0, 1800.0, 1800.0]
    assert outcomes == []
    await db.close()
