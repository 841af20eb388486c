"""The columns of KVM hosts, in the table of hosts."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from caelum.cloud.host.model import HostModel
from caelum.drivers.kvm.api import KVMHostInventory

KVM = "KVM"


class KvmHostModel(HostModel):
    """A host with the host agent. The password of the add is used once and not kept."""

    __vo__ = "KVMHostVO"
    __inventory__ = KVMHostInventory
    __mapper_args__ = {"polymorphic_identity": KVM}

    username: Mapped[str | None] = mapped_column(String(255), nullable=True)
    ssh_port: Mapped[int | None] = mapped_column(nullable=True)
    os_distribution: Mapped[str | None] = mapped_column(String(64), nullable=True)
    os_release: Mapped[str | None] = mapped_column(String(64), nullable=True)
    os_version: Mapped[str | None] = mapped_column(String(64), nullable=True)
    agent_version: Mapped[str | None] = mapped_column(String(64), nullable=True)
    agent_protocol: Mapped[int | None] = mapped_column(nullable=True)
