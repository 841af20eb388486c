"""The table of greetings. It is made at the first start with the plugin."""

from __future__ import annotations

from sqlalchemy import String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.database import Resource
from caelum_hello.api import GREETING, GreetingInventory


class GreetingModel(Resource):
    """A greeting; a host has one of each name."""

    __tablename__ = "hello_greeting"
    __vo__ = GREETING
    __inventory__ = GreetingInventory
    __table_args__ = (UniqueConstraint("host_uuid", "name"),)

    name: Mapped[str] = mapped_column(String(255))
    host_uuid: Mapped[str] = mapped_column(String(32), index=True)
    text: Mapped[str] = mapped_column(String(1024))
