"""What can be asked of an inventory: its queryable fields, its joins, and the model behind them.

Invariant: only declared inventory fields that the model stores can be compared or sorted by; nothing else of a table
can be reached through a query, whatever its name. Nor can an ordinary account compare what is hidden from it: a class
method `masked_columns() -> dict[str, ColumnElement]` of a model says what stands for which attribute.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, inspect
from sqlalchemy.ext.associationproxy import AssociationProxyExtensionType
from sqlalchemy.ext.hybrid import HybridExtensionType
from sqlalchemy.orm import QueryableAttribute

from caelum.cloud.query.errors import unknown_field
from caelum.kernel import resources
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError
from caelum.kernel.message import Expand, Inventory, InventoryMeta, inventories, inventory_class, inventory_meta

SPECIAL = ("__systemTag__", "__userTag__", "__tagUuid__")


def snake(wire: str) -> str:
    """`vmInstanceUuid` -> `vm_instance_uuid`; a name that is snake_case stays."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", wire).lower()


class Target(msgspec.Struct, frozen=True):
    """An inventory, its model, and what may be asked of both."""

    inventory: type[Inventory]
    model: type[Any]
    columns: dict[str, str]
    """Queryable wire names with the attribute of the model behind each."""
    lists: dict[str, str]
    """Wire names of lists of plain values from another table: a condition holds when one of the values meets it."""
    relations: dict[str, str]
    """Wire names of fields that are loaded relationships."""
    expands: dict[str, Expand]
    aliases: dict[str, str]

    @property
    def name(self) -> str:
        return self.inventory.__name__

    def column(self, wire: str, *, restricted: bool) -> Any:
        """The column behind a field, or what an ordinary account sees of it. Raises SYS.1007 with the known names."""
        if wire not in self.columns:
            raise unknown_field(self.name, wire, (*self.columns, *self.lists, *self.joins()))
        return comparable(self.model, self.columns[wire], restricted=restricted)

    def some_of(self, wire: str, meets: Callable[[Any], ColumnElement[bool]]) -> ColumnElement[bool]:
        """Whether one of a list's values meets a condition."""
        proxy: Any = getattr(self.model, self.lists[wire])
        found: ColumnElement[bool] = proxy.local_attr.any(meets(proxy.remote_attr))
        return found

    def attribute(self, name: str) -> QueryableAttribute[Any]:
        found: QueryableAttribute[Any] = getattr(self.model, name)
        return found

    def joins(self) -> list[str]:
        """The joins that lead somewhere, as they are shown to people."""
        open_ones = {name for name, one in self.expands.items() if not one.hidden and _is_loaded(one.inventory)}
        return [f"{name}.*" for name in (*open_ones, *self.aliases)]

    def follow(self, name: str) -> tuple[Expand, Target]:
        """The join of that name and where it leads."""
        expand = self.expands.get(name)
        if expand is None:
            raise unknown_field(self.name, name, (*self.columns, *self.lists, *self.joins()))
        try:
            return expand, target(inventory_class(expand.inventory))
        except KeyError:
            raise CloudError(
                INVALID_ARGUMENT, f"the join[{name}] of {self.name} leads to {expand.inventory}, which is not loaded"
            ) from None


def comparable(model: Any, attribute: str, *, restricted: bool) -> Any:
    """What queries compare and sort by for a model's attribute; `restricted` to what an ordinary account sees."""
    masks: Callable[[], dict[str, ColumnElement[Any]]] | None = getattr(model, "masked_columns", None)
    column = getattr(model, attribute)
    return masks().get(attribute, column) if restricted and masks is not None else column


def _is_loaded(inventory: str) -> bool:
    try:
        return inventory_meta(inventory_class(inventory)).vo in resources.types()
    except KeyError:
        return False


@functools.cache
def target(cls: type[Inventory]) -> Target:
    """What may be asked of this inventory class. Raises KeyError when its model is not loaded."""
    meta = inventory_meta(cls)
    model = resources.model(meta.vo)
    mapper = inspect(model)
    kinds = {name: one.extension_type for name, one in mapper.all_orm_descriptors.items()}
    hybrids = {name for name, kind in kinds.items() if kind is HybridExtensionType.HYBRID_PROPERTY}
    stored = hybrids | set(mapper.column_attrs.keys())
    fields = [(one.encode_name, one.name) for one in msgspec.structs.fields(cls)]
    return Target(
        inventory=cls,
        model=model,
        columns={wire: name for wire, name in fields if name in stored},
        lists={
            wire: name for wire, name in fields if kinds.get(name) is AssociationProxyExtensionType.ASSOCIATION_PROXY
        },
        relations={wire: name for wire, name in fields if name in mapper.relationships},
        expands={one.field: one for meta in _lineage(meta) for one in meta.expands},
        aliases={name: path for meta in _lineage(meta) for name, path in meta.aliases},
    )


def _lineage(meta: InventoryMeta) -> list[InventoryMeta]:
    """The declarations of an inventory and its parents, parents first."""
    found = [meta]
    while found[0].parent is not None:
        found.insert(0, inventory_meta(inventory_class(found[0].parent)))
    return found


def type_field(found: Target) -> str | None:
    """The wire name of the field that tells a resource's child type."""
    column = inspect(found.model).polymorphic_on
    if column is None:
        return None
    return next((wire for wire, name in found.columns.items() if name == column.key), None)


def child(found: Target, type_value: str) -> Target | None:
    """The child inventory for a value of the type field, when it is declared and loaded."""
    for cls in inventories():
        meta = inventory_meta(cls)
        if meta.parent == found.name and meta.type_value == type_value and meta.vo in resources.types():
            return target(cls)
    return None
