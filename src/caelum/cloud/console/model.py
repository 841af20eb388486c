"""Console proxies, and the tokens that are not used up yet."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.console.api import ConsoleProxyAgentInventory
from caelum.kernel.database import Base, Resource, utcnow


class ConsoleProxyAgentModel(Resource):
    """A console proxy."""

    __tablename__ = "console_proxy_agent"
    __vo__ = "ConsoleProxyAgentVO"
    __inventory__ = ConsoleProxyAgentInventory

    description: Mapped[str | None] = mapped_column(String(2048))
    management_ip: Mapped[str] = mapped_column(String(255))
    console_proxy_overridden_ip: Mapped[str | None] = mapped_column(String(255))
    console_proxy_port: Mapped[int]
    """The port that clients are told."""
    listen_port: Mapped[int]
    scheme: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(32))


class ConsoleTokenModel(Base):
    """A token that can still be used. It is known by its SHA-256 alone; using it deletes the row."""

    __tablename__ = "console_token"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    line: Mapped[str] = mapped_column(String(16))
    """vnc, serial, or any: an access token, good for either and for an exchange."""
    vm_instance_uuid: Mapped[str] = mapped_column(String(32), index=True)
    host_uuid: Mapped[str] = mapped_column(String(32))
    """Where the VM was when access was requested."""
    account_uuid: Mapped[str] = mapped_column(String(32))
    by_admin: Mapped[bool]
    expire_date: Mapped[datetime] = mapped_column(index=True)
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
