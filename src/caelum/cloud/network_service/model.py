"""The tables of network service providers."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.cloud.network_service.api import NetworkServiceProviderInventory
from caelum.kernel.database import Base, Resource


class NetworkServiceProviderModel(Resource):
    """A provider of network services; one row per type of driver."""

    __tablename__ = "network_service_provider"
    __steady__ = True
    __vo__ = "NetworkServiceProviderVO"
    __inventory__ = NetworkServiceProviderInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    type: Mapped[str] = mapped_column(String(255), unique=True)

    type_rows: Mapped[list[NetworkServiceTypeModel]] = relationship(
        lazy="selectin", order_by="NetworkServiceTypeModel.id", cascade="all, delete-orphan"
    )
    l2_rows: Mapped[list[NetworkServiceProviderL2RefModel]] = relationship(
        lazy="selectin", order_by="NetworkServiceProviderL2RefModel.id", cascade="all, delete-orphan"
    )
    network_service_types: AssociationProxy[list[str]] = association_proxy("type_rows", "type")
    attached_l2_network_uuids: AssociationProxy[list[str]] = association_proxy("l2_rows", "l2_network_uuid")

    def extra_view(self) -> dict[str, list[str]]:
        """Its service types and L2 networks."""
        return {
            "network_service_types": list(self.network_service_types),
            "attached_l2_network_uuids": list(self.attached_l2_network_uuids),
        }


class NetworkServiceTypeModel(Base):
    """A service type that a provider offers."""

    __tablename__ = "network_service_type"
    __steady__ = True
    __table_args__ = (UniqueConstraint("network_service_provider_uuid", "type"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    network_service_provider_uuid: Mapped[str] = mapped_column(
        ForeignKey("network_service_provider.uuid", ondelete="CASCADE")
    )
    type: Mapped[str] = mapped_column(String(64))


class NetworkServiceProviderL2RefModel(Base):
    """An L2 network on which a provider serves some L3 network."""

    __tablename__ = "network_service_provider_l2_network_ref"
    __steady__ = True
    __table_args__ = (UniqueConstraint("network_service_provider_uuid", "l2_network_uuid"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    network_service_provider_uuid: Mapped[str] = mapped_column(
        ForeignKey("network_service_provider.uuid", ondelete="CASCADE")
    )
    l2_network_uuid: Mapped[str] = mapped_column(String(32), index=True)
