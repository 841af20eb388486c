"""The table of zones."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.zone.api import ZoneInventory
from caelum.kernel.database import Resource


class ZoneModel(Resource):
    """A zone."""

    __tablename__ = "zone"
    __steady__ = True
    __vo__ = "ZoneVO"
    __inventory__ = ZoneInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    state: Mapped[str] = mapped_column(String(32))
    type: Mapped[str] = mapped_column(String(255))
    is_default: Mapped[bool]
