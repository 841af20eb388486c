"""The table of hosts. Drivers add columns to it by deriving from `HostModel`; they have no table of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from sqlalchemy import BigInteger, ColumnElement, String, Table, bindparam, column, select, table
from sqlalchemy.orm import Mapped, column_property, mapped_column

from caelum.cloud.host.api import HostInventory
from caelum.kernel.database import Resource
from caelum.kernel.prepared import Prepared


class HostModel(Resource):
    """A host. `agent_uuid` is the agent of the last completed connect: another one means that it restarted since."""

    __tablename__ = "host"
    __steady__ = True
    __vo__ = "HostVO"
    __inventory__ = HostInventory
    # The columns of drivers' own host types are loaded with the rest: a view must not go to the database again.
    __mapper_args__ = {"polymorphic_on": "hypervisor_type", "with_polymorphic": "*"}

    zone_uuid: Mapped[str] = mapped_column(String(32), index=True)
    cluster_uuid: Mapped[str] = mapped_column(String(32), index=True)
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    management_ip: Mapped[str] = mapped_column(String(255), unique=True)
    hypervisor_type: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(32))
    architecture: Mapped[str | None] = mapped_column(String(32))
    agent_uuid: Mapped[str | None] = mapped_column(String(32))


# The allocator's table, by name only: what clients see of it is part of the host's view, and comparable in queries.
_CAPACITY = table(
    "host_capacity",
    column("uuid", String(32)),
    *(column(name, BigInteger()) for name in ("cpu_num", "cpu_sockets", "total_cpu", "used_cpu")),
    *(column(name, BigInteger()) for name in ("total_memory", "limit_memory", "used_memory")),
)


def _of_capacity(value: Any) -> Any:
    query = select(value).where(_CAPACITY.c.uuid == HostModel.uuid).correlate_except(_CAPACITY)
    return column_property(query.scalar_subquery())


_c = _CAPACITY.c
_SHOWN: dict[str, ColumnElement[Any]] = {
    "cpu_num": _c.cpu_num,
    "cpu_sockets": _c.cpu_sockets,
    "total_cpu_capacity": _c.total_cpu,
    "available_cpu_capacity": _c.total_cpu - _c.used_cpu,
    "total_memory_capacity": _c.total_memory,
    "available_memory_capacity": _c.limit_memory - _c.used_memory,
}
for _name, _value in _SHOWN.items():
    setattr(HostModel, _name, _of_capacity(_value))


@lru_cache
def whole_row(*, lock: bool) -> tuple[tuple[str, ...], Prepared]:
    """The names of all that is known of a host, whatever its type, and the statement that selects it by `key`.

    `lock` keeps others from changing the row until the transaction ends. To be asked for once every driver has added
    its columns.
    """
    host = cast("Table", HostModel.__table__)
    columns = {**{one.name: one for one in host.c}, **_SHOWN}
    joined = host.outerjoin(_CAPACITY, _c.uuid == host.c.uuid)
    query = select(*columns.values()).select_from(joined).where(host.c.uuid == bindparam("key"))
    return tuple(columns), Prepared(query.with_for_update(of=host, key_share=True) if lock else query)


def model_of(hypervisor_type: str) -> type[HostModel]:
    """The model of a hypervisor's hosts: the driver's own, or the common one."""
    found: type[HostModel] = HostModel.__mapper__.polymorphic_map[hypervisor_type].class_
    return found
