"""Views of rows, and the JSON that clients read."""

import enum
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from caelum.kernel.database import Database, Resource
from caelum.kernel.message import Inventory, QueryReply, inventory
from caelum.kernel.settings import GlobalConfigModel
from caelum.kernel.views import encode, format_time, parse_time, to_builtins, view, views

MOMENT = datetime(2026, 11, 2, 19, 5, 6)


class PetInventory(Inventory):
    uuid: str
    owner_uuid: str


class OwnerInventory(Inventory):
    uuid: str
    name: str
    description: str | None = None
    create_date: datetime | None = None
    pets: list[PetInventory] = []
    age: int = 0
    initial: str | None = None


class OwnerModel(Resource):
    __tablename__ = "test_owner"
    __vo__ = "TestOwnerVO"
    __inventory__ = OwnerInventory

    name: Mapped[str]
    description: Mapped[str | None]
    age: Mapped[int] = mapped_column(default=0)
    secret: Mapped[str] = mapped_column(default="x")
    pets: Mapped[list["PetModel"]] = relationship()

    def extra_view(self) -> dict[str, Any]:
        return {"initial": self.name[:1]}


class PetModel(Resource):
    __tablename__ = "test_pet"
    __vo__ = "TestPetVO"
    __inventory__ = PetInventory

    owner_uuid: Mapped[str] = mapped_column(String(32), ForeignKey("test_owner.uuid"))


def _owner(**more: Any) -> OwnerModel:
    return OwnerModel(uuid="o", name="Ann", create_date=MOMENT, age=0, **more)


def test_a_view_has_columns_relations_and_derived_fields() -> None:
    found = view(_owner(pets=[PetModel(uuid="p", owner_uuid="o")]))
    assert found == OwnerInventory(
        uuid="o", name="Ann", create_date=MOMENT, pets=[PetInventory(uuid="p", owner_uuid="o")], initial="A"
    )
    assert isinstance(found.create_date, datetime)


async def test_what_was_not_loaded_stays_at_its_default(db: Database) -> None:
    async with db.transaction() as tx:
        tx.add(_owner())
    async with db.read() as session:
        row = await session.get_one(OwnerModel, "o")
    assert view(row).pets == []
    assert len(views([row, row])) == 2


def test_the_wire_keeps_empty_lists_zero_and_false_and_leaves_none_out() -> None:
    assert json.loads(encode(view(_owner()))) == {
        "uuid": "o", "name": "Ann", "createDate": "Nov 2, 2026 7:05:06 PM", "pets": [], "age": 0, "initial": "A",
    }  # fmt: skip


def test_a_row_is_encoded_as_its_view() -> None:
    assert encode(_owner()) == encode(view(_owner()))


def test_inventories_that_are_declared_elsewhere_are_found() -> None:
    @inventory("test", vo="GlobalConfigVO")
    class GlobalConfigInventory(Inventory):
        name: str
        value: str

    row = GlobalConfigModel(category="c", name="n", value="v", default_value="v")
    assert view(row).value == "v"


class Colour(enum.Enum):
    RED = "Red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": None, "b": [None, 1], 3: MOMENT}, {"b": [None, 1], "3": "Nov 2, 2026 7:05:06 PM"}),
        ((1, Colour.RED), [1, "Red"]),
        ({"x"}, ["x"]),
        (QueryReply(inventories=[{"z": None}], total=0), {"inventories": [{}], "total": 0}),
        (None, None),
    ],
)
def test_to_builtins(value: Any, expected: Any) -> None:
    assert to_builtins(value) == expected


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 11, 22, 19, 15, 56), "Nov 22, 2026 7:15:56 PM"),
        (datetime(2026, 1, 1, 0, 0, 0), "Jan 1, 2026 12:00:00 AM"),
        (datetime(2026, 12, 31, 12, 30, 9), "Dec 31, 2026 12:30:09 PM"),
        (datetime(2026, 11, 22, 19, 15, 56, tzinfo=UTC), "Nov 22, 2026 7:15:56 PM"),
        (datetime(2026, 11, 22, 20, 15, 56, tzinfo=timezone(timedelta(hours=1))), "Nov 22, 2026 7:15:56 PM"),
    ],
)
def test_times_read_as_the_original_writes_them(moment: datetime, text: str) -> None:
    assert format_time(moment) == text
    assert format_time(parse_time(text)) == text


def test_times_that_clients_write() -> None:
    assert parse_time("2026-11-22 19:15:56") == datetime(2026, 11, 22, 19, 15, 56)
    with pytest.raises(ValueError, match="yesterday"):
        parse_time("yesterday")
