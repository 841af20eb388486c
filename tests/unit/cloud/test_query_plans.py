"""How SQLite goes about a page, without ever having counted what is in its tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from sqlalchemy import Connection, Row, Select, Table, create_engine
from sqlalchemy.orm import Session

from caelum import builtin
from caelum.cloud.ownership import AccountResourceRefModel, SharedResourceModel
from caelum.cloud.query import compile as query_compile
from caelum.cloud.query import visibility
from caelum.cloud.query.compile import Found, Junction, Query, compile_query, compile_tree
from caelum.cloud.tag.api import QueryUserTag
from caelum.cloud.vm.api import QueryVmInstance, QueryVmNic, VmInstanceInventory
from caelum.cloud.vm.model import VmInstanceModel, VmNicModel
from caelum.cloud.volume.api import QueryVolume
from caelum.cloud.volume.model import VolumeModel
from caelum.kernel.context import SYSTEM, Actor
from caelum.kernel.database import Base, Resource
from caelum.kernel.errors import CloudError
from caelum.kernel.message import ApiQuery, QueryCondition
from caelum.kernel.tag import MASK, SystemTagModel, UserTagModel

_TENANT = Actor("a" * 32, "u" * 32)
_OF_NETWORK = QueryCondition("vmNics.l3NetworkUuid", "=", "n" * 32)
_STOPPED = QueryCondition("state", "=", "Stopped")
_RUNNING = QueryCondition("state", "=", "Running")
_ON_HOST = QueryCondition("hostUuid", "=", "h1")
_OF_ADDRESS = QueryCondition("vmNics.ip", "=", "10.0.0.1")
_OF_ADDRESSES = QueryCondition("vmNics.ip", "in", "10.0.0.1,10.0.0.2")
_OF_VM = QueryCondition("vmInstance.uuid", "=", "vm1")
_OF_NIC = QueryCondition("vmInstance.vmNics.ip", "=", "10.0.0.1")
_TAGGED = QueryCondition("__systemTag__", "=", "tag::1")
_MANY, _RARE = Found(few=False, rare=None), Found(few=False, rare=0)


@pytest.fixture(scope="module")
def tables() -> Iterator[Connection]:
    """Six machines, of which five run, on two hosts, with a NIC, two volumes and two tags each, all owned by one
    account."""
    builtin.import_declarations()
    models = (
        VmInstanceModel, VmNicModel, VolumeModel, SystemTagModel, UserTagModel, AccountResourceRefModel,
        SharedResourceModel,
    )  # fmt: skip
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        Base.metadata.create_all(connection, [cast("Table", model.__table__) for model in models])
        with Session(connection) as session:
            session.add_all([one for number in range(6) for one in _machine(number)])
            session.flush()
            yield connection
    engine.dispose()


def _machine(number: int) -> list[Resource | AccountResourceRefModel]:
    name = f"vm{number}"
    vm = VmInstanceModel(uuid=name, name=name, zone_uuid="z", internal_id=number, cpu_num=1, memory_size=1)
    vm.state, vm.host_uuid = "Running" if number else "Stopped", f"h{number % 2}"
    nic = VmNicModel(uuid=f"nic{number}", vm_instance_uuid=name, device_id=0, internal_name=name, mac=f"mac{number}")
    nic.l3_network_uuid, nic.ip = "n" * 32, f"10.0.0.{number}"
    volumes = [VolumeModel(uuid=f"volume{number}-{n}", name=name, type="Data", size=1) for n in range(2)]
    for volume in volumes:
        volume.vm_instance_uuid = name
    tags = [
        SystemTagModel(uuid=f"tag{number}", resource_uuid=name, resource_type="VmInstanceVO", tag=f"tag::{number}"),
        UserTagModel(uuid=f"mark{number}", resource_uuid=name, resource_type="VmInstanceVO", tag="marked"),
    ]
    parts = [vm, nic, *volumes]
    return [*parts, *tags, *(_owned(part) for part in parts)]


def _owned(part: Resource) -> AccountResourceRefModel:
    account, vo = _TENANT.account_uuid, part.__vo__
    made = AccountResourceRefModel(account_uuid=account, owner_account_uuid=account, resource_uuid=part.uuid)
    made.resource_type = made.concrete_resource_type = vo
    return made


@pytest.fixture
def few_is_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "FEW", 2)
    monkeypatch.setattr(query_compile, "_plans", {})


def _query(*conditions: QueryCondition, of: type[ApiQuery[Any]] = QueryVmInstance, actor: Actor = _TENANT) -> Query:
    return compile_query(of(conditions=list(conditions), sort_by="uuid" if of is QueryVmNic else "name"), actor)


def _plan(tables: Connection, found: Found, query: Query) -> list[str]:
    statement = query.plan.page(found).params(**query.values, start=0, limit=20)
    compiled = statement.compile(tables, compile_kwargs={"render_postcompile": True})
    values = (None,) * len(compiled.positiontup or ())
    return [row[3] for row in tables.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)]


def _rows(tables: Connection, statement: Select[Any], query: Query) -> list[Row[Any]]:
    return list(tables.execute(statement, {**query.values, "start": 0, "limit": 20}))


def _asked(tables: Connection, *conditions: QueryCondition, of: type[ApiQuery[Any]] = QueryVmInstance) -> int | None:
    """Which condition is found to be rare."""
    query = _query(*conditions, of=of, actor=SYSTEM)
    assert query.plan.ask is not None
    (answer,) = _rows(tables, query.plan.ask, query)
    rare: int | None = answer.rare
    return rare


def test_what_is_joined_is_found_by_what_it_belongs_to(tables: Connection) -> None:
    """A network has as many NICs as there are machines; a machine has few."""
    plan = _plan(tables, _MANY, _query(_OF_NETWORK))
    assert any("vm_nic" in step and "(vm_instance_uuid=?)" in step for step in plan), plan
    assert not any("ix_vm_nic_l3_network" in step for step in plan), plan


def test_a_state_of_nearly_all_is_checked_in_the_wanted_order(tables: Connection) -> None:
    plan = _plan(tables, _MANY, _query(_OF_NETWORK, _STOPPED))
    assert plan[0] == "SCAN vm_instance USING INDEX ix_vm_instance_name_uuid", plan


def test_a_page_in_the_order_of_names_is_not_sorted(tables: Connection) -> None:
    assert _plan(tables, _MANY, _query(actor=SYSTEM)) == ["SCAN vm_instance USING INDEX ix_vm_instance_name_uuid"]


def test_the_index_of_who_owns_what_tells_whose_a_row_is(tables: Connection) -> None:
    plan = _plan(tables, _MANY, _query(_OF_NETWORK))
    owners = [step for step in plan if "account_resource_ref" in step]
    assert len(owners) == 2, plan
    assert all("COVERING INDEX ix_account_resource_ref_account (account_uuid=? AND resource_type=? AND" in step
               for step in owners), owners  # fmt: skip


@pytest.mark.parametrize(("field", "nulls"), [("name", ""), ("hostUuid", " NULLS FIRST")])
def test_only_what_may_be_null_is_told_where_to_have_it(field: str, nulls: str) -> None:
    query = compile_query(QueryVmInstance(sort_by=field), SYSTEM)
    assert f" ASC{nulls}, vm_instance.uuid" in str(query.plan.page(_MANY))


def test_a_state_of_few_is_looked_up(tables: Connection) -> None:
    plan = _plan(tables, _RARE, _query(_STOPPED))
    assert plan[0] == "SEARCH vm_instance USING INDEX ix_vm_instance_state (state=?)", plan


@pytest.mark.parametrize("actor", [SYSTEM, _TENANT])
@pytest.mark.parametrize("conditions", [(_ON_HOST, _RUNNING), (_RUNNING, _ON_HOST)])
def test_only_the_index_of_the_rare_condition_is_used(
    tables: Connection, conditions: tuple[QueryCondition, ...], actor: Actor
) -> None:
    of_host = "SEARCH vm_instance USING INDEX ix_vm_instance_host (host_uuid=?)"
    of_state = "SEARCH vm_instance USING INDEX ix_vm_instance_state (state=?)"
    query = _query(*conditions, actor=actor)
    assert _plan(tables, Found(few=False, rare=conditions.index(_ON_HOST)), query)[0] == of_host
    assert _plan(tables, Found(few=False, rare=conditions.index(_RUNNING)), query)[0] == of_state
    assert _plan(tables, _MANY, query)[0] == "SCAN vm_instance USING INDEX ix_vm_instance_name_uuid"


@pytest.mark.parametrize("actor", [SYSTEM, _TENANT])
@pytest.mark.parametrize(
    ("of", "condition", "joined", "own"),
    [
        (QueryVmInstance, _OF_ADDRESS, "ix_vm_nic_ip (ip=?)", "vm_instance USING INDEX sqlite_autoindex_vm_instance_1"),
        (QueryVmInstance, _OF_ADDRESSES, "ix_vm_nic_ip (ip=?)", "vm_instance USING INDEX sqlite_autoindex_vm_instance"),
        (QueryVmInstance, QueryCondition("allVolumes.uuid", "=", "volume1-0"), "volume_1 USING INDEX", "vm_instance"),
        (QueryVmNic, _OF_VM, "(uuid=?)", "vm_nic USING INDEX sqlite_autoindex_vm_nic_2 (vm_instance_uuid=?)"),
        (QueryVolume, _OF_VM, "(uuid=?)", "volume USING INDEX ix_volume_vm_instance_uuid (vm_instance_uuid=?)"),
        (QueryVolume, _OF_NIC, "ix_vm_nic_ip (ip=?)", "volume USING INDEX ix_volume_vm_instance_uuid"),
        (QueryVmInstance, _TAGGED, "ix_system_tag_tag (tag=?)", "vm_instance USING INDEX sqlite_autoindex_vm_instance"),
    ],
)
def test_what_rare_joined_rows_belong_to_is_looked_up(
    tables: Connection, of: type[ApiQuery[Any]], condition: QueryCondition, joined: str, own: str, actor: Actor
) -> None:
    plan = _plan(tables, _RARE, _query(condition, of=of, actor=actor))
    assert plan[0].startswith(f"SEARCH {own}"), plan
    assert any(step.startswith("SEARCH") and joined in step for step in plan[1:]), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


@pytest.mark.parametrize("actor", [SYSTEM, _TENANT])
@pytest.mark.parametrize(
    ("of", "conditions", "count"),
    [
        (QueryVmInstance, (_RUNNING, _ON_HOST, _OF_ADDRESSES), 1),
        (QueryVmInstance, (_OF_ADDRESSES, _RUNNING), 2),
        (QueryVmInstance, (_OF_NETWORK,), 6),
        (QueryVmInstance, (QueryCondition("allVolumes.uuid", "in", "volume1-0,volume1-1,volume2-0"),), 2),
        (QueryVmInstance, (QueryCondition("vmNics.ip", "=", "10.9.9.9"),), 0),
        (QueryVmNic, (_OF_VM,), 1),
        (QueryVolume, (_OF_VM,), 2),
        (QueryVolume, (_OF_NIC,), 2),
        (QueryVolume, (QueryCondition("vmInstance.name", "like", "VM%"),), 12),
        (QueryVmInstance, (_TAGGED, _RUNNING), 1),
        (QueryVmInstance, (QueryCondition("__systemTag__", "in", "tag::1,tag::2,tag::9"),), 2),
        (QueryVmInstance, (QueryCondition("__systemTag__", "!=", "tag::1"),), 5),
        (QueryVmInstance, (QueryCondition("__userTag__", "=", "marked"), _OF_ADDRESS), 1),
    ],
)
def test_all_ways_lead_to_the_same(
    tables: Connection, of: type[ApiQuery[Any]], conditions: tuple[QueryCondition, ...], count: int, actor: Actor
) -> None:
    query = _query(*conditions, of=of, actor=actor)
    ways = [Found(few, rare) for few in (False, True) for rare in (None, *range(len(conditions)))]
    wanted = _rows(tables, query.plan.page(_MANY), query)
    assert len(wanted) == count
    for way in ways:
        assert _rows(tables, query.plan.page(way), query) == wanted, way
        assert _rows(tables, query.plan.total(way), query) == [(count,)], way


@pytest.mark.usefixtures("few_is_two")
def test_the_first_rare_condition_is_found(tables: Connection) -> None:
    stopped_on = [QueryCondition("hostUuid", "=", "h0"), _STOPPED]
    assert _asked(tables, *stopped_on) == 1
    assert _asked(tables, *reversed(stopped_on)) == 0
    assert _asked(tables, _RUNNING, _OF_ADDRESS) == 1
    assert _asked(tables, _RUNNING) is None
    assert _asked(tables, _OF_VM, of=QueryVolume) == 0


@pytest.mark.usefixtures("few_is_two")
def test_joined_rows_are_not_rare_when_they_or_what_they_belong_to_are_many(tables: Connection) -> None:
    assert _asked(tables, _OF_NETWORK) is None
    assert _asked(tables, QueryCondition("allVolumes.vmInstanceUuid", "in", "vm1,vm2")) is None
    two_machines = QueryCondition("vmInstance.uuid", "in", "vm1,vm2")
    assert _asked(tables, two_machines, of=QueryVmNic) == 0
    assert _asked(tables, two_machines, of=QueryVolume) is None


@pytest.mark.usefixtures("few_is_two")
def test_a_tag_is_rare_when_few_have_it(tables: Connection) -> None:
    marked = QueryCondition("__userTag__", "=", "marked")
    assert _asked(tables, marked) is None
    assert _asked(tables, marked, _TAGGED) == 1
    assert _asked(tables, _OF_NIC, of=QueryVolume) == 0
    assert _asked(tables, QueryCondition("vmInstance.vmNics.l3NetworkUuid", "=", "n" * 32), of=QueryVolume) is None


def test_what_may_be_a_masked_tag_is_looked_up_for_administrators_only() -> None:
    masked = QueryCondition("__systemTag__", "=", f"password::{MASK}")
    assert _query(masked, actor=SYSTEM).plan.ask is not None
    assert "system_tag" not in str(_query(masked).plan.ask)
    assert "system_tag" in str(_query(_TAGGED).plan.ask)


def test_a_tag_is_found_by_what_it_is_on(tables: Connection) -> None:
    plan = _plan(tables, _MANY, _query(_TAGGED))
    assert any("ix_system_tag_resource (resource_uuid=?)" in step for step in plan), plan


def test_what_not_every_match_meets_is_not_asked(tables: Connection) -> None:
    either = Junction("or", (_OF_ADDRESS, _STOPPED))
    query = compile_tree(VmInstanceInventory, either, [("name", "asc")], (), SYSTEM)
    assert query.plan.ask is None
    assert len(_rows(tables, query.plan.page(_MANY), query)) == 2


def test_whoever_names_one_row_is_asked_nothing(tables: Connection) -> None:
    query = _query(QueryCondition("uuid", "=", "vm0"), _STOPPED, _OF_ADDRESS, actor=SYSTEM)
    assert query.plan.ask is None
    assert "uuid=?" in _plan(tables, _MANY, query)[0]


def test_how_much_conditions_leave_is_remembered_by_their_values_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(query_compile, "_MOST_KNOWN", 2)
    monkeypatch.setattr(query_compile, "_plans", {})
    running, stopped, addresses = _query(_RUNNING), _query(_STOPPED), _query(_OF_ADDRESSES)
    assert running.plan is stopped.plan
    running.plan.learn(running.values, _MANY)
    assert running.plan.known(running.values) == _MANY
    assert running.plan.known(stopped.values) is None
    addresses.plan.learn(addresses.values, _RARE)
    assert addresses.plan.known(addresses.values) == _RARE
    now = 31.0
    assert running.plan.known(running.values) is None
    for number in range(3):
        running.plan.learn({"value0": number}, _RARE)
    assert [running.plan.known({"value0": number}) for number in range(3)] == [None, _RARE, _RARE]


def test_large_values_are_remembered_by_their_digest() -> None:
    query = _query(QueryCondition("vmNics.ip", "in", ",".join(f"10.0.{n // 250}.{n % 250}" for n in range(1000))))
    query.plan.learn(query.values, _RARE)
    assert query.plan.known(query.values) == _RARE
    assert {len(one) for one in query.plan._known} == {16}


@pytest.mark.parametrize("found", [_MANY, _RARE])
def test_tags_of_tags_are_told_from_the_tags_themselves(tables: Connection, found: Found) -> None:
    with tables.begin_nested() as inner:
        mark = {"uuid": "of-tag", "resource_uuid": "mark1", "resource_type": "UserTagVO", "tag": "mine"}
        with Session(tables, join_transaction_mode="create_savepoint") as session:
            session.add(UserTagModel(**mark))
            session.commit()
        query = compile_query(QueryUserTag(conditions=[QueryCondition("__userTag__", "=", "mine")]), SYSTEM)
        assert [row.uuid for row in _rows(tables, query.plan.page(found), query)] == ["mark1"]
        assert _rows(tables, query.plan.total(found), query) == [(1,)]
        inner.rollback()


@pytest.mark.parametrize("field", ["host.totalCpuCapacity", "zone.host.availableMemoryCapacity"])
def test_the_capacity_of_a_joined_host_is_a_number(field: str) -> None:
    assert _query(QueryCondition(field, ">=", "4")).values["value0"] == 4
    with pytest.raises(CloudError, match="whole number"):
        _query(QueryCondition(field, "=", "four"))
