"""Toy resources: owners with pets of two kinds, and the toys of the pets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.kernel.database import Resource
from caelum.kernel.message import ApiQuery, Expand, Inventory, inventory, rest
from caelum.kernel.service import Service

_PACKAGE = "org.zstack.header.toys"


@inventory(
    _PACKAGE,
    vo="ToyVO",
    expands=(Expand(field="pet", inventory="PetInventory", foreign_key="petUuid"),),
)
class ToyInventory(Inventory, kw_only=True):
    """A toy."""

    uuid: str
    name: str
    pet_uuid: str
    create_date: datetime
    last_op_date: datetime


@inventory(
    _PACKAGE,
    vo="PetVO",
    expands=(
        Expand(field="toys", inventory="ToyInventory", foreign_key="uuid", key="petUuid"),
        Expand(field="keeper", inventory="KeeperInventory", foreign_key="keeperUuid"),
    ),
)
class PetInventory(Inventory, kw_only=True):
    """A pet."""

    uuid: str
    name: str
    kind: str
    age: int | None = None
    weight: int | None = None
    tame: bool
    keeper_uuid: str | None = None
    born: datetime | None = None
    toys: list[ToyInventory] | None = None
    secret_free: str | None = None
    create_date: datetime
    last_op_date: datetime


@inventory(_PACKAGE, vo="DogVO", parent="PetInventory", type_value="dog")
class DogInventory(PetInventory, kw_only=True):
    """A dog."""

    barks: int | None = None


@inventory(
    _PACKAGE,
    vo="KeeperVO",
    expands=(
        Expand(field="pets", inventory="PetInventory", foreign_key="uuid", key="keeperUuid"),
        Expand(field="lost", inventory="NowhereInventory", foreign_key="uuid", key="keeperUuid"),
    ),
    aliases=(("toy", "pets.toys"),),
)
class KeeperInventory(Inventory, kw_only=True):
    """Who keeps pets."""

    uuid: str
    name: str
    create_date: datetime
    last_op_date: datetime


class KeeperModel(Resource):
    __tablename__ = "toy_keeper"
    __vo__ = "KeeperVO"
    __inventory__ = KeeperInventory

    name: Mapped[str] = mapped_column(String(255))
    password: Mapped[str] = mapped_column(String(255), default="hidden")


class ToyModel(Resource):
    __tablename__ = "toy_toy"
    __vo__ = "ToyVO"
    __inventory__ = ToyInventory

    name: Mapped[str] = mapped_column(String(255))
    pet_uuid: Mapped[str] = mapped_column(ForeignKey("toy_pet.uuid"))


class PetModel(Resource):
    __tablename__ = "toy_pet"
    __vo__ = "PetVO"
    __inventory__ = PetInventory
    __mapper_args__: Any = {"polymorphic_on": "kind", "polymorphic_identity": "pet"}

    name: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(32))
    age: Mapped[int | None]
    weight: Mapped[int | None]
    tame: Mapped[bool] = mapped_column(default=False)
    keeper_uuid: Mapped[str | None] = mapped_column(String(32))
    born: Mapped[datetime | None]
    toys: Mapped[list[ToyModel]] = relationship(order_by=ToyModel.uuid)

    def extra_view(self) -> dict[str, Any]:
        return {"secret_free": f"{self.name}!"}


class DogModel(PetModel):
    __vo__ = "DogVO"
    __inventory__ = DogInventory
    __mapper_args__: Any = {"polymorphic_identity": "dog"}

    barks: Mapped[int | None]


@rest("GET /pets", also=("/pets/{uuid}",), package=_PACKAGE)
class QueryPet(ApiQuery[PetInventory]):
    """Query pets."""


@rest("GET /keepers", also=("/keepers/{uuid}",), package=_PACKAGE)
class QueryKeeper(ApiQuery[KeeperInventory]):
    """Query keepers."""


@rest("GET /toys", also=("/toys/{uuid}",), package=_PACKAGE)
class QueryToy(ApiQuery[ToyInventory]):
    """Query toys."""


class ToyService(Service):
    """Only brings the models."""

    name = "toys"
