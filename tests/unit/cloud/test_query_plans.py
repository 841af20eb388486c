"""How SQLite goes about a page, without ever having counted what is in its tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import cast

import pytest
from sqlalchemy import Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from caelum import builtin
from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel
from caelum.cloud.query.compile import Found, compile_query
from caelum.cloud.vm.api import QueryVmInstance
from caelum.cloud.vm.model import VmInstanceModel, VmNicModel
from caelum.kernel.context import SYSTEM, Actor
from caelum.kernel.message import QueryCondition

_TENANT = Actor("a" * 32, "u" * 32)
_OF_NETWORK = QueryCondition("vmNics.l3NetworkUuid", "=", "n" * 32)
_STOPPED = QueryCondition("state", "=", "Stopped")
_MANY, _RARE = Found(few=False, rare=False), Found(few=False, rare=True)


@pytest.fixture(scope="module")
def tables() -> Iterator[sqlite3.Connection]:
    builtin.import_declarations()
    connection = sqlite3.connect(":memory:")
    for model in (VmInstanceModel, VmNicModel, AccountResourceRefModel, SharedResourceModel):
        table = cast("Table", model.__table__)
        connection.execute(str(CreateTable(table).compile(dialect=sqlite.dialect())))
        for index in table.indexes:
            connection.execute(str(CreateIndex(index).compile(dialect=sqlite.dialect())))
    yield connection
    connection.close()


def _plan(tables: sqlite3.Connection, found: Found, *conditions: QueryCondition, actor: Actor = _TENANT) -> list[str]:
    query = compile_query(QueryVmInstance(conditions=list(conditions), sort_by="name"), actor)
    compiled = query.plan.page(found).compile(dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True})
    values = [None] * len(compiled.positiontup or ())
    return [row[3] for row in tables.execute(f"EXPLAIN QUERY PLAN {compiled}", values)]


def test_what_is_joined_is_found_by_what_it_belongs_to(tables: sqlite3.Connection) -> None:
    """A network has as many NICs as there are machines; a machine has few."""
    plan = _plan(tables, _MANY, _OF_NETWORK)
    assert any("vm_nic" in step and "(vm_instance_uuid=?)" in step for step in plan), plan
    assert not any("ix_vm_nic_l3_network" in step for step in plan), plan


def test_a_state_of_nearly_all_is_checked_in_the_wanted_order(tables: sqlite3.Connection) -> None:
    plan = _plan(tables, _MANY, _OF_NETWORK, _STOPPED)
    assert plan[0] == "SCAN vm_instance USING INDEX ix_vm_instance_name", plan


def test_a_state_of_few_is_looked_up(tables: sqlite3.Connection) -> None:
    plan = _plan(tables, _RARE, _STOPPED)
    assert plan[0] == "SEARCH vm_instance USING INDEX ix_vm_instance_state (state=?)", plan


def test_whoever_names_one_row_is_asked_nothing(tables: sqlite3.Connection) -> None:
    conditions = [QueryCondition("uuid", "=", "b" * 32), _STOPPED]
    assert compile_query(QueryVmInstance(conditions=conditions), SYSTEM).plan.ask is None
    assert "uuid=?" in _plan(tables, _RARE, *conditions)[0]
