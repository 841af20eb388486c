"""Each revision of the schema says what it does to the version before, and does no more than that."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import AbstractOperations, Operations, ops
from sqlalchemy import Column
from sqlalchemy.dialects import postgresql

from caelum.kernel.schema import EXPAND, SCRIPTS, History, Revision

REVISIONS = sorted((SCRIPTS / "versions").glob("[0-9a-z]*.py"))


def operations(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ops.MigrateOperation]:
    """What a revision does, without doing it."""
    found: list[ops.MigrateOperation] = []
    monkeypatch.setattr(AbstractOperations, "invoke", lambda _self, operation: found.append(operation))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context = MigrationContext.configure(dialect=postgresql.dialect(), opts={"as_sql": True})  # type: ignore[no-untyped-call]
    with Operations.context(context):
        module.upgrade()
    return found


def excess(found: list[ops.MigrateOperation]) -> Iterator[str]:
    """What of it a program of the version before would notice."""
    new_tables = {one.table_name for one in found if isinstance(one, ops.CreateTableOp)}
    new_columns = {(one.table_name, one.column.name) for one in found if isinstance(one, ops.AddColumnOp)}
    new_indexes = [(one.table_name, str(one.index_name)) for one in found if isinstance(one, ops.CreateIndexOp)]
    for one in found:
        match one:
            case ops.CreateTableOp():
                pass
            case ops.AddColumnOp() if not _can_be_left_out(one.column):
                yield f"{one.table_name}.{one.column.name} must be given by who inserts"
            case ops.AddColumnOp():
                pass
            case ops.CreateIndexOp() if one.unique and one.table_name not in new_tables:
                yield f"index {one.index_name} refuses rows"
            case ops.CreateIndexOp():
                pass
            case ops.DropIndexOp() if _is_replaced(one, new_indexes):
                pass  # nobody but the planner knows what is in it
            case ops.AlterColumnOp() if _only_relaxes(one):
                pass
            case ops.ExecuteSQLOp() if _fills_new_column(str(one.sqltext), new_columns):
                pass
            case _:
                yield f"{type(one).__name__} is no addition"


def _can_be_left_out(column: Column[Any]) -> bool:
    return bool(column.nullable) or column.server_default is not None


def _is_replaced(dropped: ops.DropIndexOp, new_indexes: list[tuple[str, str]]) -> bool:
    """Whether another index of the table has its name, or a longer one for more columns."""
    return any(table == dropped.table_name and name.startswith(dropped.index_name) for table, name in new_indexes)


def _only_relaxes(one: ops.AlterColumnOp) -> bool:
    changed = (one.modify_type, one.modify_name, one.modify_server_default, one.modify_comment)
    return one.modify_nullable is True and changed == (None, None, False, False)


def _fills_new_column(statement: str, new_columns: set[tuple[str, str]]) -> bool:
    """Whether it only gives the rows that are there a value of a column that nobody reads yet."""
    filled = re.match(r"UPDATE (\w+) SET (\w+) = [^,]*$", statement)
    return filled is not None and (filled[1], filled[2]) in new_columns


def test_the_history_has_every_revision() -> None:
    assert len(History().revisions) == len(REVISIONS)


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_that_expands_only_adds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = next(one for one in History().revisions if path.name.startswith(one.name))
    found = operations(path, monkeypatch)
    assert found, "the operations are not seen"
    if revision.phase == EXPAND:
        assert list(excess(found)) == []
    else:
        assert list(excess(found)) != [], "it needs no stop, and should say so"


def test_what_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "def upgrade():\n"
        "    op.add_column('vm', sa.Column('a', sa.Text(), nullable=True))\n"
        "    op.execute('UPDATE vm SET a = name')\n"
        "    op.execute('UPDATE vm SET a = name, name = 3')\n"
        "    op.execute('UPDATE vm SET name = 3')\n"
        "    op.add_column('vm', sa.Column('b', sa.Text(), nullable=False))\n"
        "    op.alter_column('vm', 'c', nullable=True)\n"
        "    op.alter_column('vm', 'c', nullable=False)\n"
        "    op.alter_column('vm', 'c', new_column_name='d')\n"
        "    op.create_index('i', 'vm', ['a'])\n"
        "    op.create_index('u', 'vm', ['a'], unique=True)\n"
        "    op.drop_index('i', 'vm')\n"
        "    op.drop_index('k', 'vm')\n"
        "    op.drop_column('vm', 'e')\n"
        "    with op.batch_alter_table('vm') as batch:\n"
        "        batch.drop_column('f')\n"
        "        batch.create_check_constraint('c', 'a > 1')\n"
    )
    assert list(excess(operations(path, monkeypatch))) == [
        "ExecuteSQLOp is no addition", "ExecuteSQLOp is no addition", "vm.b must be given by who inserts",
        "AlterColumnOp is no addition", "AlterColumnOp is no addition", "index u refuses rows",
        "DropIndexOp is no addition",
        "DropColumnOp is no addition", "DropColumnOp is no addition", "CreateCheckConstraintOp is no addition",
    ]  # fmt: skip


def test_the_tools_template_declares_a_phase() -> None:
    written = (SCRIPTS / "script.py.mako").read_text()
    assert 'phase = "expand"' in written
    assert Revision("a", None, EXPAND).contracts is False
