"""The management nodes that are up."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.management.api import ManagementNodeInventory
from caelum.kernel.database import Row


class ManagementNodeModel(Row):
    """A management node and when it was last seen."""

    __tablename__ = "management_node"
    __vo__ = "ManagementNodeVO"
    __inventory__ = ManagementNodeInventory

    uuid: Mapped[str] = mapped_column(String(32), primary_key=True)
    host_name: Mapped[str] = mapped_column(String(255))
    join_date: Mapped[datetime]
    heart_beat: Mapped[datetime]
