"""The Python client, generated from the message declarations.

What talks HTTP is loaded when it is first used: the command line's help needs the manifest alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caelum.sdk.client import ApiError, Client

__all__ = ["ApiError", "Client"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from caelum.sdk import client

    return getattr(client, name)
