"""The tables of L2 networks and of their attachments to clusters.

Invariant: an attachment is `Attaching` or `Detaching` only while a workflow changes hosts for it. A host that connects
realises Attaching and Attached networks; only Attached ones are shown and count for placement.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.cloud.l2.api import L2NetworkClusterRefInventory, L2NetworkInventory
from caelum.kernel.database import Resource, Row, utcnow

ATTACHING, ATTACHED, DETACHING = "Attaching", "Attached", "Detaching"


class L2NetworkModel(Resource):
    """An L2 network; `type` says which driver knows it. Child types share the table."""

    __tablename__ = "l2_network"
    __steady__ = True
    __vo__ = "L2NetworkVO"
    __inventory__ = L2NetworkInventory
    __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "L2NoVlanNetwork"}  # noqa: RUF012

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    zone_uuid: Mapped[str] = mapped_column(String(32), index=True)
    physical_interface: Mapped[str | None] = mapped_column(String(1024))
    type: Mapped[str] = mapped_column(String(128))
    v_switch_type: Mapped[str] = mapped_column(String(128))
    virtual_network_id: Mapped[int | None]
    isolated: Mapped[bool] = mapped_column(default=False)
    pvlan: Mapped[str | None] = mapped_column(String(255))

    attached_refs: Mapped[list[L2NetworkClusterRefModel]] = relationship(
        lazy="selectin",
        viewonly=True,
        order_by="L2NetworkClusterRefModel.id",
        primaryjoin=(
            "and_(L2NetworkModel.uuid == L2NetworkClusterRefModel.l2_network_uuid,"
            f" L2NetworkClusterRefModel.state == '{ATTACHED}')"
        ),
    )
    attached_cluster_uuids: AssociationProxy[list[str]] = association_proxy("attached_refs", "cluster_uuid")

    def extra_view(self) -> dict[str, Any]:
        """The clusters that it is attached to."""
        return {"attached_cluster_uuids": list(self.attached_cluster_uuids)}


class L2NetworkClusterRefModel(Row):
    """An attachment of an L2 network to a cluster."""

    __tablename__ = "l2_network_cluster_ref"
    __steady__ = True
    __vo__ = "L2NetworkClusterRefVO"
    __inventory__ = L2NetworkClusterRefInventory
    __table_args__ = (UniqueConstraint("l2_network_uuid", "cluster_uuid"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    l2_network_uuid: Mapped[str] = mapped_column(ForeignKey("l2_network.uuid", ondelete="CASCADE"))
    cluster_uuid: Mapped[str] = mapped_column(String(32), index=True)
    l2_provider_type: Mapped[str | None] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(32))
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)
