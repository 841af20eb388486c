"""The filters that the database applies, each with the words for what it refuses.

Invariant: a rule is written once, as SQL; the explanation of a refusal asks the database which hosts pass all rules
before it and not this one, so it can never disagree with the decision. Statements hold no values of a request, and are
made once for all requests of a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import msgspec
from sqlalchemy import ColumnElement, Select, Table, and_, bindparam, join, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from caelum.cloud.allocator.books import CPU, MEMORY, fits
from caelum.cloud.allocator.errors import NO_AVAILABLE_HOST
from caelum.cloud.allocator.messages import AllocateHost
from caelum.cloud.allocator.model import CLUSTER, CONNECTED, HOST, ZONE, HostCapacityModel
from caelum.kernel.errors import CloudError
from caelum.kernel.prepared import Prepared

_EXAMPLES = 3
_CAPACITY = cast("Table", HostCapacityModel.__table__)
_DESIGNATED = {"zone_uuid": "zone_uuid", "cluster_uuid": "cluster_uuid", "host_uuid": "uuid"}
"""What a request may designate, and the host's column for it."""
_KINDS = ("hypervisor_type", "architecture")

_CLUSTER_STATE = select(CLUSTER.c.state).where(CLUSTER.c.uuid == HOST.c.cluster_uuid).correlate(HOST).scalar_subquery()
_ZONE_STATE = select(ZONE.c.state).where(ZONE.c.uuid == HOST.c.zone_uuid).correlate(HOST).scalar_subquery()


class HostRow(NamedTuple):
    """A host with its capacity, in the order of `hosts()`."""

    uuid: str
    name: str
    cluster_uuid: str
    zone_uuid: str
    hypervisor_type: str
    architecture: str
    state: str
    status: str
    cluster_state: str | None
    zone_state: str | None
    free_cpu: int
    total_cpu: int
    free_memory: int
    total_memory: int
    vm_count: int
    used_memory: int


Words = Callable[[HostRow, AllocateHost], str]


class Rule(msgspec.Struct, frozen=True):
    """A filter: its name, the condition that hosts must meet, and what to say of one that does not."""

    name: str
    condition: ColumnElement[bool]
    words: Words


class Shape(NamedTuple):
    """What of a request decides which rules there are."""

    networks: bool
    given: tuple[str, ...]
    """What it designates, and which kinds of host it asks for."""
    avoids: bool
    physically: bool


class Request(NamedTuple):
    """A request as statements take it."""

    ask: AllocateHost
    shape: Shape
    values: dict[str, Any]


def request(ask: AllocateHost, clusters: list[str] | None, *, physically: bool) -> Request:
    """Prepare a request; `clusters` are those that have all its networks, None when it has no networks."""
    names = (*_DESIGNATED, *_KINDS)
    given = {name: getattr(ask, name) for name in names if getattr(ask, name) is not None}
    shape = Shape(clusters is not None, tuple(given), bool(ask.avoid_host_uuids), physically)
    values = {**given, CPU: ask.cpu_num, MEMORY: ask.memory}
    if clusters is not None:
        values["clusters"] = clusters
    if ask.avoid_host_uuids:
        values["avoid"] = ask.avoid_host_uuids
    return Request(ask, shape, values)


def hosts() -> Select[Any]:
    """All hosts with their capacity."""
    # The concatenation changes nothing but that capacities are gone through first, in the order of their index: the few
    # candidates that are wanted cost no more among 10,000 hosts than among ten.
    whose, capacity = HOST.c.uuid == _CAPACITY.c.uuid.concat(""), _CAPACITY.c
    columns = (
        *(HOST.c[name] for name in HostRow._fields[:8]),
        _CLUSTER_STATE,
        _ZONE_STATE,
        capacity.total_cpu - capacity.used_cpu,
        capacity.total_cpu,
        capacity.limit_memory - capacity.used_memory,
        capacity.total_memory,
        capacity.vm_count,
        capacity.used_memory,
    )
    return select(*columns).select_from(join(_CAPACITY, HOST, whose))


@lru_cache(maxsize=256)
def rules(shape: Shape, statuses: tuple[str, ...] = (CONNECTED,)) -> list[Rule]:
    """The rules of all requests of a shape, for hosts that have one of these statuses."""
    found = []
    if shape.networks:
        condition = HOST.c.cluster_uuid.in_(bindparam("clusters", expanding=True))
        found.append(Rule("AttachedL2Network", condition, lambda _row, _ask: "its cluster lacks a network"))
    if designated := [HOST.c[column] == bindparam(name) for name, column in _DESIGNATED.items() if name in shape.given]:
        found.append(Rule("DesignatedHost", and_(*designated), _elsewhere))
    found.append(Rule("HostStateAndHypervisor", _usable(shape, statuses), _unusable))
    found.append(Rule("HostCapacity", and_(*fits(physically=shape.physically)), _shortage))
    if shape.avoids:
        condition = HOST.c.uuid.not_in(bindparam("avoid", expanding=True))
        found.append(Rule("AvoidHost", condition, lambda _row, _ask: "it is to be avoided"))
    return found


def _usable(shape: Shape, statuses: tuple[str, ...]) -> ColumnElement[bool]:
    return and_(
        HOST.c.state == "Enabled",
        or_(*(HOST.c.status == one for one in statuses)),
        _CLUSTER_STATE == "Enabled",
        _ZONE_STATE == "Enabled",
        *(HOST.c[name] == bindparam(name) for name in _KINDS if name in shape.given),
    )


def _elsewhere(_row: HostRow, ask: AllocateHost) -> str:
    wanted = {column: getattr(ask, name) for name, column in _DESIGNATED.items()}
    text = ", ".join(f"{name}[{value}]" for name, value in wanted.items() if value is not None)
    return f"it is not in or not the one asked for: {text}"


def _unusable(row: HostRow, ask: AllocateHost) -> str:
    where = f"{row.state} and {row.status}, its cluster {row.cluster_state}, its zone {row.zone_state}"
    wanted = "".join(f", {one} is asked for" for one in (ask.hypervisor_type, ask.architecture) if one)
    return f"it is {where}, {row.hypervisor_type} on {row.architecture}{wanted}"


def _shortage(row: HostRow, ask: AllocateHost) -> str:
    return (
        f"it has {max(0, row.free_cpu)} of {row.total_cpu} CPUs and {max(0, row.free_memory)} bytes of memory free"
        f" (physically {row.total_memory}), needed are {ask.cpu_num} CPUs and {ask.memory} bytes"
    )


async def explain(session: AsyncSession, asked: Request) -> list[CloudError]:
    """One error for each rule that refused hosts."""
    causes: list[CloudError] = []
    for number, rule in enumerate(rules(asked.shape)):
        found = await _refused(asked.shape, number).rows(session, **asked.values)
        rows = [HostRow(*row) for row in found]
        if rows:
            reasons = {row.uuid: f"host[{row.name}]: {rule.words(row, asked.ask)}" for row in rows}
            causes.append(refusal(rule.name, reasons))
    return causes


@lru_cache(maxsize=256)
def _refused(shape: Shape, number: int) -> Prepared:
    """Selects what passes all rules before this one, but not it."""
    passed = [rule.condition for rule in rules(shape)]
    return Prepared(hosts().where(*passed[:number], not_(passed[number])))


def refusal(name: str, reasons: dict[str, str]) -> CloudError:
    """The error of one filter: how many hosts it refused, and why some of them."""
    examples = "; ".join(list(reasons.values())[:_EXAMPLES])
    more = f"; and {len(reasons) - _EXAMPLES} more" if len(reasons) > _EXAMPLES else ""
    details = f"filter {name} refused {len(reasons)} hosts: {examples}{more}"
    return CloudError(NO_AVAILABLE_HOST, details, filter=name, refused=len(reasons))
