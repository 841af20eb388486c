"""Tables of the offerings."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.offering.api import (
    DISK_OFFERING,
    INSTANCE_OFFERING,
    DiskOfferingInventory,
    InstanceOfferingInventory,
)
from caelum.cloud.switch import ENABLED, switch
from caelum.kernel.database import Resource

OFFERING_STATES = switch("Offering")


class InstanceOfferingModel(Resource):
    """CPU and memory of virtual machines."""

    __tablename__ = "instance_offering"
    __steady__ = True
    __vo__ = INSTANCE_OFFERING
    __inventory__ = InstanceOfferingInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    cpu_num: Mapped[int]
    cpu_speed: Mapped[int] = mapped_column(default=0)
    memory_size: Mapped[int]
    reserved_memory_size: Mapped[int] = mapped_column(default=0)
    type: Mapped[str] = mapped_column(String(255))
    allocator_strategy: Mapped[str] = mapped_column(String(64))
    sort_key: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(32), default=ENABLED)


class DiskOfferingModel(Resource):
    """The size of volumes."""

    __tablename__ = "disk_offering"
    __steady__ = True
    __vo__ = DISK_OFFERING
    __inventory__ = DiskOfferingInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    disk_size: Mapped[int]
    sort_key: Mapped[int] = mapped_column(default=0)
    type: Mapped[str] = mapped_column(String(255))
    allocator_strategy: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(32), default=ENABLED)
