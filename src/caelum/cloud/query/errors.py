"""What a query may be refused for, with what would be right."""

from __future__ import annotations

from collections.abc import Iterable

from caelum.kernel.errors import CloudError, invalid


def unknown_field(inventory: str, name: str, known: Iterable[str]) -> CloudError:
    """A name that the inventory does not have; lists those that it has."""
    listed = sorted(known)
    return invalid(name, f"{inventory} has no queryable field[{name}]; it has {', '.join(listed)}", known=listed)


def bad_value(name: str, value: str | None, wanted: str) -> CloudError:
    """A value that cannot be compared with the field."""
    return invalid(name, f"the value[{value if value is None else value[:255]}] is not {wanted}")
