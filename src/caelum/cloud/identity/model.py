"""Tables of identity. Ownership and sharing are in `caelum.cloud.ownership`: they commit with the resource."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.identity.api import AccessKeyInventory, AccountInventory
from caelum.cloud.switch import ENABLED
from caelum.kernel.database import Resource


class AccountModel(Resource):
    """An account; `password` is a salted hash of the hash that clients send."""

    __tablename__ = "account"
    __vo__ = "AccountVO"
    __inventory__ = AccountInventory

    name: Mapped[str] = mapped_column(String(255), unique=True)
    description: Mapped[str | None] = mapped_column(Text)
    type: Mapped[str] = mapped_column(String(128))
    password: Mapped[str] = mapped_column(String(255))


class SessionModel(Resource):
    """A login; its `uuid` is a digest of the UUID that the client has."""

    __tablename__ = "session"
    __vo__ = "SessionVO"
    __table_args__ = (Index("ix_session_account", "account_uuid"), Index("ix_session_expired", "expired_date"))

    account_uuid: Mapped[str] = mapped_column(String(32))
    user_uuid: Mapped[str] = mapped_column(String(32))
    user_type: Mapped[str] = mapped_column(String(128), default="AccountVO")
    expired_date: Mapped[datetime]


class AccessKeyModel(Resource):
    """An access key. Its secret is sealed and not hashed: a signature can only be checked by signing again."""

    __tablename__ = "access_key"
    __vo__ = "AccessKeyVO"
    __inventory__ = AccessKeyInventory
    __table_args__ = (Index("ix_access_key_account", "account_uuid"),)

    description: Mapped[str | None] = mapped_column(Text)
    account_uuid: Mapped[str] = mapped_column(String(32))
    user_uuid: Mapped[str] = mapped_column(String(32))
    access_key_id: Mapped[str] = mapped_column(String(128), unique=True)
    sealed_secret: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(32), default=ENABLED)
