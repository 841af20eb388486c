"""The manifest: every public operation as plain data, so that client and command line need not load the services.

It is kept in `operations.json`, which `caelum.sdk.generate` makes of the message declarations. What plugins of a server
add, the server tells at `/operations.json`; `learn` enters it.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

FILE = "operations.json"


class Parameter(msgspec.Struct, omit_defaults=True):
    """A parameter: `kind` is string, integer, boolean, list, map or object; `location` url, query or body."""

    name: str
    kind: str
    location: str
    required: bool = False
    values: list[str] = []
    resource: str | None = None
    secret: bool = False


class Operation(msgspec.Struct, omit_defaults=True):
    """An operation as a client needs it.

    `reply_key` is where its result is in the answer's body; `job`: it is answered by a job that is polled.
    """

    name: str
    method: str
    path: str
    category: str
    doc: str
    parameters: list[Parameter]
    body_key: str | None = None
    reply_key: str | None = None
    query: bool = False
    login: bool = True
    job: bool = False


@cache
def load() -> dict[str, Operation]:
    """All operations by name (`CreateZone`)."""
    text = resources.files("caelum.sdk").joinpath(FILE).read_bytes()
    return {one.name: one for one in msgspec.json.decode(text, type=list[Operation])}


def learn(text: bytes) -> list[str]:
    """Enter the operations of a server's plugins; the names of those that were not known. Raises ValueError."""
    known = load()
    found = [one for one in msgspec.json.decode(text, type=list[Operation]) if one.name not in known]
    known.update({one.name: one for one in found})
    return [one.name for one in found]
