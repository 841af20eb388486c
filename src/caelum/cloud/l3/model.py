"""The tables of L3 networks, IP ranges, addresses, DNS servers, routes and services.

Invariants, kept by unique keys: an address of an L3 network is in use at most once; a holder has at most one address
per L3 network and IP version; a service type has at most one provider per L3 network.
"""

from __future__ import annotations

from array import array
from datetime import datetime
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.cloud.l3.api import (
    AddressPoolInventory,
    IpRangeInventory,
    L3NetworkHostRouteInventory,
    L3NetworkInventory,
    NetworkServiceL3NetworkRefInventory,
    ReservedIpRangeInventory,
    UsedIpInventory,
)
from caelum.kernel.database import Base, Resource, Row, utcnow

_L3_KEY = "l3_network.uuid"


class L3NetworkModel(Resource):
    """An L3 network."""

    __tablename__ = "l3_network"
    __steady__ = True
    __vo__ = "L3NetworkVO"
    __inventory__ = L3NetworkInventory

    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    type: Mapped[str] = mapped_column(String(128))
    zone_uuid: Mapped[str] = mapped_column(String(32), index=True)
    l2_network_uuid: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[str] = mapped_column(String(32))
    dns_domain: Mapped[str | None] = mapped_column(String(255))
    system: Mapped[bool] = mapped_column(default=False)
    category: Mapped[str] = mapped_column(String(32))
    ip_version: Mapped[int] = mapped_column(default=4)
    enable_ipam: Mapped[bool] = mapped_column(default=True)
    isolated: Mapped[bool] = mapped_column(default=False)

    ip_ranges: Mapped[list[IpRangeModel]] = relationship(
        lazy="selectin", order_by="IpRangeModel.create_date, IpRangeModel.uuid", passive_deletes=True
    )
    network_services: Mapped[list[NetworkServiceL3NetworkRefModel]] = relationship(
        lazy="selectin", order_by="NetworkServiceL3NetworkRefModel.id", passive_deletes=True
    )
    host_route: Mapped[list[L3NetworkHostRouteModel]] = relationship(
        lazy="selectin", order_by="L3NetworkHostRouteModel.id", passive_deletes=True
    )
    reserved_ip_ranges: Mapped[list[ReservedIpRangeModel]] = relationship(
        lazy="selectin", order_by="ReservedIpRangeModel.create_date", passive_deletes=True
    )
    dns_rows: Mapped[list[L3NetworkDnsModel]] = relationship(
        lazy="selectin", order_by="L3NetworkDnsModel.id", passive_deletes=True
    )
    dns: AssociationProxy[list[str]] = association_proxy("dns_rows", "dns")

    def extra_view(self) -> dict[str, Any]:
        """The DNS servers' addresses."""
        return {"dns": list(self.dns)}


class IpRangeModel(Resource):
    """A range of addresses, both ends included."""

    __tablename__ = "ip_range"
    __steady__ = True
    __vo__ = "IpRangeVO"
    __inventory__ = IpRangeInventory
    __mapper_args__ = {"polymorphic_on": "ip_range_type", "polymorphic_identity": "Normal"}  # noqa: RUF012

    l3_network_uuid: Mapped[str] = mapped_column(ForeignKey(_L3_KEY, ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    start_ip: Mapped[str] = mapped_column(String(64))
    end_ip: Mapped[str] = mapped_column(String(64))
    netmask: Mapped[str | None] = mapped_column(String(64))
    gateway: Mapped[str | None] = mapped_column(String(64))
    network_cidr: Mapped[str | None] = mapped_column(String(64))
    ip_version: Mapped[int] = mapped_column(default=4)
    address_mode: Mapped[str | None] = mapped_column(String(64))
    prefix_len: Mapped[int | None]
    ip_range_type: Mapped[str] = mapped_column(String(32), default="Normal")


class AddressPoolModel(IpRangeModel):
    """A range for virtual IPs only."""

    __vo__ = "AddressPoolVO"
    __inventory__ = AddressPoolInventory
    __mapper_args__ = {"polymorphic_identity": "AddressPool"}  # noqa: RUF012


class ReservedIpRangeModel(Resource):
    """Addresses that are never chosen automatically."""

    __tablename__ = "reserved_ip_range"
    __steady__ = True
    __vo__ = "ReservedIpRangeVO"
    __inventory__ = ReservedIpRangeInventory

    l3_network_uuid: Mapped[str] = mapped_column(ForeignKey(_L3_KEY, ondelete="CASCADE"), index=True)
    name: Mapped[str | None] = mapped_column(String(255))
    description: Mapped[str | None] = mapped_column(String(2048))
    start_ip: Mapped[str] = mapped_column(String(64))
    end_ip: Mapped[str] = mapped_column(String(64))
    ip_version: Mapped[int] = mapped_column(default=4)


class UsedIpModel(Resource):
    """An address in use by `holder`. `ip_offset` is its distance from the start of its range, of any IP version."""

    __tablename__ = "used_ip"
    __vo__ = "UsedIpVO"
    __inventory__ = UsedIpInventory
    __table_args__ = (
        UniqueConstraint("l3_network_uuid", "ip"),
        UniqueConstraint("l3_network_uuid", "holder", "ip_version"),
        Index("ix_used_ip_offset", "ip_range_uuid", "ip_offset"),
        Index("ix_used_ip_holder", "holder"),
    )

    l3_network_uuid: Mapped[str] = mapped_column(ForeignKey(_L3_KEY, ondelete="CASCADE"))
    ip_range_uuid: Mapped[str | None] = mapped_column(ForeignKey("ip_range.uuid", ondelete="CASCADE"))
    ip_offset: Mapped[int | None] = mapped_column(BigInteger)
    holder: Mapped[str] = mapped_column(String(64))
    ip_version: Mapped[int] = mapped_column(default=4)
    ip: Mapped[str] = mapped_column(String(64))
    netmask: Mapped[str | None] = mapped_column(String(64))
    gateway: Mapped[str | None] = mapped_column(String(64))
    used_for: Mapped[str | None] = mapped_column(String(128))
    ip_in_long: Mapped[int | None] = mapped_column(BigInteger)
    vm_nic_uuid: Mapped[str | None] = mapped_column(String(32), index=True)

    def extra_view(self) -> dict[str, Any]:
        """The bytes of the address, as Java has them: with a sign."""
        packed = inet_pton(AF_INET6 if ":" in self.ip else AF_INET, self.ip)
        return {"ip_in_binary": array("b", packed).tolist()}


class L3NetworkDnsModel(Base):
    """A DNS server that guests are told."""

    __tablename__ = "l3_network_dns"
    __steady__ = True
    __table_args__ = (UniqueConstraint("l3_network_uuid", "dns"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    l3_network_uuid: Mapped[str] = mapped_column(ForeignKey(_L3_KEY, ondelete="CASCADE"))
    dns: Mapped[str] = mapped_column(String(255))
    create_date: Mapped[datetime] = mapped_column(default=utcnow)


class L3NetworkHostRouteModel(Row):
    """A route that guests are told."""

    __tablename__ = "l3_network_host_route"
    __steady__ = True
    __vo__ = "L3NetworkHostRouteVO"
    __inventory__ = L3NetworkHostRouteInventory
    __table_args__ = (UniqueConstraint("l3_network_uuid", "prefix"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    l3_network_uuid: Mapped[str] = mapped_column(ForeignKey(_L3_KEY, ondelete="CASCADE"))
    prefix: Mapped[str] = mapped_column(String(255))
    nexthop: Mapped[str] = mapped_column(String(255))
    create_date: Mapped[datetime] = mapped_column(default=utcnow)
    last_op_date: Mapped[datetime] = mapped_column(default=utcnow, onupdate=utcnow)


class NetworkServiceL3NetworkRefModel(Row):
    """Which provider serves a service type on an L3 network."""

    __tablename__ = "network_service_l3_network_ref"
    __steady__ = True
    __vo__ = "NetworkServiceL3NetworkRefVO"
    __inventory__ = NetworkServiceL3NetworkRefInventory
    __table_args__ = (UniqueConstraint("l3_network_uuid", "network_service_type"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    l3_network_uuid: Mapped[str] = mapped_column(ForeignKey(_L3_KEY, ondelete="CASCADE"))
    network_service_provider_uuid: Mapped[str] = mapped_column(String(32), index=True)
    network_service_type: Mapped[str] = mapped_column(String(64))
