"""The table of clusters."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.cluster.api import ClusterInventory
from caelum.kernel.database import Resource


class ClusterModel(Resource):
    """A cluster."""

    __tablename__ = "cluster"
    __steady__ = True
    __vo__ = "ClusterVO"
    __inventory__ = ClusterInventory

    zone_uuid: Mapped[str] = mapped_column(String(32), index=True)
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    state: Mapped[str] = mapped_column(String(32))
    hypervisor_type: Mapped[str] = mapped_column(String(32))
    type: Mapped[str] = mapped_column(String(255))
    architecture: Mapped[str | None] = mapped_column(String(32))
