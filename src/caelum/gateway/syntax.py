"""The portal's first check: each parameter against its declaration, in the original's order.

Invariant: whoever passes is a complete message of its class whose texts are trimmed; the first bad parameter is
named in the error by its wire name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from caelum.gateway.reading import api_parameters
from caelum.kernel.errors import CloudError, invalid
from caelum.kernel.message import ApiMessage, ApiMeta, CreateMessage, Param, ParamMeta

Values = dict[str, Any]


def trimmed(meta: ApiMeta, values: Values) -> Values:
    """The same values without blanks around texts, where the declaration does not keep them."""
    kept = {one.name for one in api_parameters(meta).values() if one.param.no_trim or one.param.secret}
    return {name: value if name in kept else _trim(value) for name, value in values.items()}


def _trim(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return [one.strip() for one in value]
    return value


def check(meta: ApiMeta, param: ParamMeta, value: Any) -> None:
    """Refuse a value (None: absent) that its declaration does not allow, with SYS.1007."""
    if value is None:
        if param.required:
            raise _refused(param, f"field[{param.wire}] of message[{meta.name}] is mandatory, can not be null")
        return
    for rule in _RULES:
        if text := rule(param.param, value):
            raise _refused(param, text.format(field=f"field[{param.wire}] of message[{meta.name}]"))


def _refused(param: ParamMeta, text: str) -> CloudError:
    error = invalid(param.wire, text)
    error.details = text
    return error


def build(meta: ApiMeta, values: Values) -> ApiMessage[Any]:
    """The message, after every parameter was checked."""
    return meta.cls(**values)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _max_length(param: Param, value: Any) -> str | None:
    if param.max_length is None or not isinstance(value, str) or len(value) <= param.max_length:
        return None
    return f"{{field}} exceeds max length of string. expected was <= {param.max_length}, actual was {len(value)}"


def _min_length(param: Param, value: Any) -> str | None:
    if param.min_length is None or not isinstance(value, str) or len(value) >= param.min_length:
        return None
    return f"{{field}} less than the min length of string. expected was >= {param.min_length}, actual was {len(value)}"


def _valid_values(param: Param, value: Any) -> str | None:
    if param.valid_values is None:
        return None
    # Like the original, which compares texts and ignores their case nowhere.
    bad = next((one for one in _texts(value) if one not in param.valid_values), None)
    if bad is None:
        return None
    return "valid value for {field} are " + _literal(f"[{', '.join(param.valid_values)}], but {bad[:255]} found")


def _regex(param: Param, value: Any) -> str | None:
    if param.regex is None:
        return None
    bad = next((one for one in _texts(value) if not re.fullmatch(param.regex, one)), None)
    return (
        None
        if bad is None
        else "valid regex value for {field} are " + _literal(f"{param.regex}, but {bad[:255]} found")
    )


def _nonempty(param: Param, value: Any) -> str | None:
    empty = param.nonempty and isinstance(value, list | dict) and not value
    return "{field} must be a nonempty list" if empty else None


def _null_elements(param: Param, value: Any) -> str | None:
    holds_null = not param.null_elements and isinstance(value, list) and any(one is None for one in value)
    return "{field} cannot contain any null element" if holds_null else None


def _empty_string(param: Param, value: Any) -> str | None:
    if param.empty_string or "" not in _texts(value):
        return None
    return "{field} cannot be an empty string"


def _number_range(param: Param, value: Any) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    low, high = param.minimum, param.maximum
    if (low is None or value >= low) and (high is None or value <= high):
        return None
    shown = f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"
    return "{field} must be in range of " + f"{shown}, but {value} found"


def _literal(text: str) -> str:
    """Text of a client's or a pattern's own, safe to pass through `format`."""
    return text.replace("{", "{{").replace("}", "}}")


_RULES: tuple[Callable[[Param, Any], str | None], ...] = (
    _max_length,
    _min_length,
    _valid_values,
    _regex,
    _nonempty,
    _null_elements,
    _empty_string,
    _number_range,
)


def is_create(meta: ApiMeta) -> bool:
    """Whether the operation makes a resource, whose UUID and tags the portal checks."""
    return issubclass(meta.cls, CreateMessage)
