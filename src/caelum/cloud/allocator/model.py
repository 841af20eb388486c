"""What hosts have and what is taken of it.

Invariant: a host's `used_*` and `vm_count` are the sums over its reservations, and change only in the transaction that
adds or removes one. The host service reads this table for the host's public view.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, String, column, table
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.database import Base, utcnow


class HostCapacityModel(Base):
    """The capacity of one host. `total_cpu` and `limit_memory` are what may be given away, after ratio and reserve."""

    __tablename__ = "host_capacity"
    # The order of the strategies that prefer hosts with few machines.
    __table_args__ = (Index("ix_host_capacity_load", "vm_count", "used_memory", "uuid"),)

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    cpu_num: Mapped[int]
    cpu_sockets: Mapped[int] = mapped_column(default=1)
    total_cpu: Mapped[int]
    used_cpu: Mapped[int] = mapped_column(default=0)
    total_memory: Mapped[int]
    limit_memory: Mapped[int]
    used_memory: Mapped[int] = mapped_column(default=0)
    vm_count: Mapped[int] = mapped_column(default=0)


class HostReservationModel(Base):
    """CPU and memory that a machine takes on a host. `disks` is the answer of an allocation; without one it is None."""

    __tablename__ = "host_reservation"

    vm_uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    host_uuid: Mapped[str] = mapped_column(String(32), index=True)
    cpu_num: Mapped[int]
    memory: Mapped[int]
    disks: Mapped[str | None]
    create_date: Mapped[datetime] = mapped_column(default=utcnow)


# Other services' tables, read by name in the one query that finds candidates.
HOST = table(
    "host",
    *map(column, ("uuid", "name", "cluster_uuid", "zone_uuid", "hypervisor_type", "architecture", "state", "status")),
)
CONNECTED, CONNECTING = "Connected", "Connecting"
"""The status of a host that can be used, and of one that may be in a moment."""
CLUSTER = table("cluster", column("uuid"), column("state"))
ZONE = table("zone", column("uuid"), column("state"))
VM = table("vm_instance", column("uuid"), column("last_host_uuid"), column("state"))
