"""The filters that the database applies, each with the words for what it refuses.

Invariant: a rule is written once, as SQL; the explanation of a refusal asks the database which hosts pass all rules
before it and not this one, so it can never disagree with the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, join, not_, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.books import fits
from caelum.cloud.allocator.errors import NO_AVAILABLE_HOST
from caelum.cloud.allocator.messages import AllocateHost
from caelum.cloud.allocator.model import CLUSTER, HOST, ZONE, HostCapacityModel
from caelum.kernel.errors import CloudError

Capacity = HostCapacityModel
Words = Callable[[Row[Any]], str]

_EXAMPLES = 3

_CLUSTER_STATE = select(CLUSTER.c.state).where(CLUSTER.c.uuid == HOST.c.cluster_uuid).correlate(HOST).scalar_subquery()
_ZONE_STATE = select(ZONE.c.state).where(ZONE.c.uuid == HOST.c.zone_uuid).correlate(HOST).scalar_subquery()
COLUMNS = (
    HOST.c.uuid,
    HOST.c.name,
    HOST.c.cluster_uuid,
    HOST.c.zone_uuid,
    HOST.c.hypervisor_type,
    HOST.c.architecture,
    HOST.c.state,
    HOST.c.status,
    _CLUSTER_STATE.label("cluster_state"),
    _ZONE_STATE.label("zone_state"),
    (Capacity.total_cpu - Capacity.used_cpu).label("free_cpu"),
    Capacity.total_cpu,
    (Capacity.limit_memory - Capacity.used_memory).label("free_memory"),
    Capacity.total_memory,
    Capacity.vm_count,
)


class Rule(msgspec.Struct, frozen=True):
    """A filter: its name, the condition that hosts must meet, and what to say of one that does not."""

    name: str
    condition: ColumnElement[bool]
    words: Words


def hosts() -> Select[Any]:
    """All hosts with their capacity."""
    # The concatenation changes nothing but that capacities are gone through first, in the order of their index: the few
    # candidates that are wanted cost no more among 10,000 hosts than among ten.
    whose = HOST.c.uuid == Capacity.uuid.concat("")
    return select(*COLUMNS).select_from(join(Capacity, HOST, whose))


def rules(ask: AllocateHost, clusters: list[str] | None, *, physically: bool) -> list[Rule]:
    """The rules of a request; `clusters` are those that have all its networks, None when it has no networks."""
    found = []
    if clusters is not None:
        condition = HOST.c.cluster_uuid.in_(clusters)
        found.append(Rule("AttachedL2Network", condition, lambda _: "its cluster lacks a network"))
    found += _designated(ask)
    found.append(Rule("HostStateAndHypervisor", _usable(ask), _usability(ask)))
    needs = and_(*fits(ask.cpu_num, ask.memory, physically=physically))
    found.append(Rule("HostCapacity", needs, _shortage(ask)))
    if ask.avoid_host_uuids:
        condition = HOST.c.uuid.not_in(ask.avoid_host_uuids)
        found.append(Rule("AvoidHost", condition, lambda _: "it is to be avoided"))
    return found


def _designated(ask: AllocateHost) -> list[Rule]:
    wanted = {"zone_uuid": ask.zone_uuid, "cluster_uuid": ask.cluster_uuid, "uuid": ask.host_uuid}
    conditions = [HOST.c[name] == value for name, value in wanted.items() if value is not None]
    if not conditions:
        return []
    text = ", ".join(f"{name}[{value}]" for name, value in wanted.items() if value is not None)
    return [Rule("DesignatedHost", and_(*conditions), lambda _: f"it is not in or not the one asked for: {text}")]


def _usable(ask: AllocateHost) -> ColumnElement[bool]:
    conditions = [
        HOST.c.state == "Enabled",
        HOST.c.status == "Connected",
        _CLUSTER_STATE == "Enabled",
        _ZONE_STATE == "Enabled",
    ]
    if ask.hypervisor_type is not None:
        conditions.append(HOST.c.hypervisor_type == ask.hypervisor_type)
    if ask.architecture is not None:
        conditions.append(HOST.c.architecture == ask.architecture)
    return and_(*conditions)


def _usability(ask: AllocateHost) -> Words:
    def words(row: Row[Any]) -> str:
        where = f"{row.state} and {row.status}, its cluster {row.cluster_state}, its zone {row.zone_state}"
        wanted = "".join(f", {one} is asked for" for one in (ask.hypervisor_type, ask.architecture) if one)
        return f"it is {where}, {row.hypervisor_type} on {row.architecture}{wanted}"

    return words


def _shortage(ask: AllocateHost) -> Words:
    def words(row: Row[Any]) -> str:
        return (
            f"it has {max(0, row.free_cpu)} of {row.total_cpu} CPUs and {max(0, row.free_memory)} bytes of memory free"
            f" (physically {row.total_memory}), needed are {ask.cpu_num} CPUs and {ask.memory} bytes"
        )

    return words


async def explain(session: AsyncSession, all_rules: list[Rule]) -> list[CloudError]:
    """One error for each rule that refused hosts."""
    causes: list[CloudError] = []
    passed: list[ColumnElement[bool]] = []
    for rule in all_rules:
        refused = (await session.execute(hosts().where(*passed, not_(rule.condition)))).all()
        if refused:
            causes.append(refusal(rule.name, {row.uuid: f"host[{row.name}]: {rule.words(row)}" for row in refused}))
        passed.append(rule.condition)
    return causes


def refusal(name: str, reasons: dict[str, str]) -> CloudError:
    """The error of one filter: how many hosts it refused, and why some of them."""
    examples = "; ".join(list(reasons.values())[:_EXAMPLES])
    more = f"; and {len(reasons) - _EXAMPLES} more" if len(reasons) > _EXAMPLES else ""
    details = f"filter {name} refused {len(reasons)} hosts: {examples}{more}"
    return CloudError(NO_AVAILABLE_HOST, details, filter=name, refused=len(reasons))
