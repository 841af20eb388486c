"""The look before an upgrade: each thing that stands in the way is found, and nothing is where nothing does."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from caelum import builtin
from caelum.cli import admin
from caelum.drivers.kvm.model import KvmHostModel
from caelum.kernel import migrate, schema
from caelum.kernel.config import Config
from caelum.kernel.database import Base, Database, utcnow
from caelum.kernel.engine import UNDO_RUNNER
from caelum.kernel.gc import GarbageCollectorModel
from caelum.kernel.ids import new_uuid
from caelum.kernel.journal import JournalModel
from caelum.kernel.preflight import Report, inspect_cloud
from caelum.kernel.work_queue import WorkQueueEntryModel
from caelum.kernel.workflow import flows

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
async def config(tmp_path: Path) -> Config:
    """A cloud's configuration; its database has all tables."""
    builtin.import_declarations()
    config = Config(data_dir=tmp_path)
    db = Database(config.resolved_database_url())
    await db.migrate()
    await db.close()
    return config


async def _add(config: Config, model: type[Base], **values: Any) -> None:
    db = Database(config.resolved_database_url())
    async with db.transaction() as tx:
        await tx.execute(insert(model).values(uuid=new_uuid(), **values))
    await db.close()


async def _workflow(config: Config, name: str, **values: Any) -> None:
    given = {"subject": "s", "owner": "o", "state": "Running", "ctx": "{}", "actor": {}, **values}
    await _add(config, JournalModel, name=name, **given)


def _kinds(report: Report) -> list[str]:
    assert all(one.details and one.remedy for one in report.findings)
    return [one.kind for one in report.findings]


async def test_nothing_stands_in_the_way(config: Config) -> None:
    report = await inspect_cloud(config)
    assert (_kinds(report), report.blocked) == ([], False)
    assert "workflows under way: 0" in report.facts


async def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    report = await inspect_cloud(Config(data_dir=tmp_path))
    assert _kinds(report) == ["NoDatabase"]
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - looks at nothing
    away = await inspect_cloud(Config(data_dir=tmp_path, database_url="postgresql+asyncpg://a:hidden@127.0.0.1:1/x"))
    assert _kinds(away) == ["DatabaseUnreachable"]
    assert "hidden" not in json.dumps(away.to_wire())


async def test_workflows_that_this_version_cannot_take_up(config: Config) -> None:
    name = next(name for name in sorted(flows()) if name.startswith("vm."))
    await _workflow(config, "vm.teleport")
    await _workflow(config, "vm.teleport", state="Done")
    await _workflow(config, name, ctx="{}", position=0)
    await _workflow(config, name, ctx="{}", steps="beam")
    report = await inspect_cloud(config)
    assert _kinds(report) == ["StrangeWorkflow"]
    details = report.findings[0].details
    assert details.startswith("3 workflows cannot be taken up by this version")
    for part in ("vm.teleport", "is not known", "cannot read", "has other steps here"):
        assert part in details
    assert report.blocked


async def test_jobs_and_queue_entries_of_unknown_runners(config: Config) -> None:
    undo = {"name": "vm.teleport", "step": "beam", "ctx": "{}"}
    job = {"type": "TimeBased", "interval_seconds": 1.0, "next_run": utcnow(), "status": "Idle"}
    await _add(config, GarbageCollectorModel, name="x", runner_class="org.gone", context="{}", **job)
    await _add(config, GarbageCollectorModel, name="y", runner_class=UNDO_RUNNER, context=json.dumps(undo), **job)
    await _add(config, WorkQueueEntryModel, queue="q", runner="gone", context="{}", state="Pending", node_uuid="n")
    report = await inspect_cloud(config)
    assert _kinds(report) == ["StrangeJob", "StrangeQueueEntry"]
    assert "2 jobs cannot be taken up by this version: x, y" in report.findings[0].details


async def test_a_broken_part_is_told_but_does_not_block_unless_it_is_disabled(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "DRIVERS", (*builtin.DRIVERS, "caelum.drivers.gone:Gone"))
    report = await inspect_cloud(config)
    assert (_kinds(report), report.blocked) == (["BrokenPart"], False)
    assert "caelum.drivers.gone:Gone cannot be loaded" in report.findings[0].details
    config.disabled_services = ["caelum.drivers.gone:Gone"]
    assert _kinds(await inspect_cloud(config)) == []


async def test_agents_that_are_too_old(config: Config) -> None:
    host = {
        "zone_uuid": "z", "cluster_uuid": "c", "hypervisor_type": "KVM", "state": "Enabled", "status": "Connected",
    }  # fmt: skip
    for number, protocol in enumerate((0, 1, None)):
        await _add(
            config, KvmHostModel, name=f"host{number}", management_ip=f"10.0.0.{number}", agent_protocol=protocol,
            agent_version="0.0.1" if protocol == 0 else None, **host,
        )  # fmt: skip
    report = await inspect_cloud(config)
    assert _kinds(report) == ["OldAgent"]
    assert "1 hosts" in report.findings[0].details
    assert "host0" in report.findings[0].details
    assert {"agents of version 0.0.1: 1", "agents of version unknown: 2"} <= set(report.facts)


async def test_revisions_to_run_and_room_for_the_copy(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "migrations"
    shutil.copytree(schema.SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "SCRIPTS", copy)
    newest = schema.History().newest
    for name, before, phase in (("more", newest, "expand"), ("less", "more", "contract")):
        (copy / "versions" / f"{name}.py").write_text(
            f"revision = {name!r}\ndown_revision = {before!r}\nphase = {phase!r}\ndef upgrade():\n    pass\n"
        )
    config.upgrade_finish = "manual"
    report = await inspect_cloud(config)
    assert not report.blocked
    assert any("start of the first server: more (expand)" in one for one in report.facts)
    assert any(
        "waits for the end of the upgrade (`caelum admin upgrade finish`): less (contract)" in one
        for one in report.facts
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10, 10, 0))
    assert _kinds(await inspect_cloud(config)) == ["NoSpace"]


@pytest.mark.parametrize("revision", ["460d8b821f83", "833d5a75e452"])
async def test_a_database_of_a_former_version_is_read_as_it_is(tmp_path: Path, revision: str) -> None:
    builtin.import_declarations()
    config = Config(data_dir=tmp_path)
    db = Database(config.resolved_database_url())
    async with db.engine.begin() as connection:
        await connection.run_sync(migrate.run_revisions, revision)
    await db.close()
    report = await inspect_cloud(config)
    assert _kinds(report) == []
    newest = schema.History().newest
    assert f"revision that runs at the start of the first server: {newest} (expand)" in report.facts
    assert any(one.startswith("agents: their versions are known once") for one in report.facts)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["upgrade", "check", "--data-dir", str(tmp_path)]) == 1
    assert "BLOCKS NoDatabase" in capsys.readouterr().out
    assert admin.main(["upgrade", "finish", "--data-dir", str(tmp_path)]) == 0
    assert "The upgrade is finished" in capsys.readouterr().out
    assert admin.main(["upgrade", "check", "--data-dir", str(tmp_path), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocked"] is False
    with contextlib.closing(sqlite3.connect(tmp_path / "caelum.db")) as raw, raw:
        raw.execute("UPDATE alembic_version SET version_num = 'future'")
        raw.execute("UPDATE schema_compatibility SET revision = 'future'")
    for command, told in (("check", "BLOCKS NewerDatabase"), ("finish", "Install that again")):
        assert admin.main(["upgrade", command, "--data-dir", str(tmp_path)]) == 1
        assert told in "".join(capsys.readouterr())
    (tmp_path / "server.toml").write_text("nonsense = 1\n")
    assert admin.main(["upgrade", "check", "--config", str(tmp_path / "server.toml")]) == 2
