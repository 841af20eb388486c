"""Errors are data: a code, what went wrong with numbers, the cause below it, and what to do.

Every error that can reach a client is a `CloudError` of a declared `ErrorType`. Codes that the original
system has keep their number and text (`SYS.1007`); the wire form is the original's `ErrorCode` object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

MAX_DETAILS = 4096
"""Longest `details` text on the wire, in characters, as in the original."""


class ErrorType(msgspec.Struct, frozen=True):
    """A kind of error: its code, fixed description, and advice for whoever reads it."""

    code: str
    description: str
    remedy: str = ""
    transient: bool = False


_catalogue: dict[str, ErrorType] = {}


def error_type(code: str, description: str, remedy: str = "", *, transient: bool = False) -> ErrorType:
    """Declare an error type once; a second, different declaration of the code is a programming error."""
    declared = ErrorType(code, description, remedy, transient)
    if _catalogue.setdefault(code, declared) != declared:
        raise ValueError(f"error code {code} is declared twice, differently")
    return declared


def catalogue() -> Mapping[str, ErrorType]:
    """All declared error types by code."""
    return _catalogue


INTERNAL = error_type(
    "SYS.1000", "An internal error happened in system", "Report it with the job's UUID; the server's log has the trace."
)
TIMEOUT = error_type(
    "SYS.1001",
    "A message or a operation timeout",
    "Try again, or raise the time-out (header X-API-Timeout, in seconds).",
    transient=True,
)
INVALID_ARGUMENT = error_type("SYS.1007", "One or more API argument is invalid", "Correct the named field and repeat.")
OPERATION_ERROR = error_type("SYS.1006", "An operation failed", "Read the cause for the reason.")
RESOURCE_NOT_FOUND = error_type(
    "SYS.1003", "A resource can not be found", "Check the UUID; the resource may be deleted."
)
UNDELIVERABLE = error_type(
    "SYS.1011",
    "The message can not be delivered",
    "The service is not loaded or its node is leaving; retry.",
    transient=True,
)
CANCELED = error_type(
    "SYS.1017", "A message or a operation cancelled", "Nothing is left to do: what was done has been undone."
)


class ErrorCode(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """The wire form of an error: the original's object, with the remedy as `elaboration`."""

    code: str
    description: str
    details: str
    elaboration: str | None = None
    location: str | None = None
    cause: ErrorCode | None = None
    causes: list[ErrorCode] | None = None
    opaque: dict[str, Any] | None = None


class CloudError(Exception):
    """An error with a declared type, details for a human, and facts (numbers, names) for a program.

    `facts` go to the wire as `opaque`. `cause` is the error below this one; it ends in the wire's cause chain.
    """

    def __init__(
        self,
        kind: ErrorType,
        details: str,
        *,
        cause: BaseException | ErrorCode | None = None,
        causes: list[BaseException] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(f"[{kind.code}] {details}")
        self.kind = kind
        self.details = details
        self.cause = cause
        self.causes = causes or []
        self.facts = facts

    @property
    def code(self) -> str:
        return self.kind.code

    def to_wire(self) -> ErrorCode:
        """The error as clients see it."""
        return ErrorCode(
            code=self.kind.code,
            description=self.kind.description,
            details=(self.details or self.kind.description)[:MAX_DETAILS],
            elaboration=self.kind.remedy or None,
            cause=None if self.cause is None else to_wire(self.cause),
            causes=[to_wire(one) for one in self.causes] or None,
            opaque={name: _plain(value) for name, value in self.facts.items()} or None,
        )

    @classmethod
    def from_wire(cls, wire: ErrorCode) -> CloudError:
        """Rebuild an error that crossed a process boundary (bus, journal, agent)."""
        kind = _catalogue.get(wire.code) or ErrorType(wire.code, wire.description, wire.elaboration or "")
        return cls(
            kind,
            wire.details,
            cause=wire.cause,
            causes=[cls.from_wire(one) for one in wire.causes or []],
            # A foreign service may call a fact what we call a part of the error.
            **{name: value for name, value in (wire.opaque or {}).items() if name not in _PARTS},
        )


_PARTS = frozenset({"self", "kind", "details", "cause", "causes"})


def _plain(value: Any) -> Any:
    """A number of a kind of its own (a setting's `Size`) as the plain number that an encoder knows."""
    return int(value) if isinstance(value, int) and type(value) not in (int, bool) else value


def to_wire(error: BaseException | ErrorCode) -> ErrorCode:
    """Any exception as a wire error; one that is not a `CloudError` becomes `SYS.1000` without its trace."""
    if isinstance(error, ErrorCode):
        return error
    if isinstance(error, CloudError):
        return error.to_wire()
    if isinstance(error, TimeoutError):
        return CloudError(TIMEOUT, str(error) or "the time for this operation is over").to_wire()
    # The first line only: below it, a database error shows its statement and the values.
    return CloudError(INTERNAL, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}").to_wire()


def as_cloud_error(error: BaseException) -> CloudError:
    """Any exception as a `CloudError`, keeping one that already is."""
    return error if isinstance(error, CloudError) else CloudError.from_wire(to_wire(error))


def invalid(field: str, message: str, **facts: Any) -> CloudError:
    """The error for a bad parameter; `field` is its wire name."""
    return CloudError(INVALID_ARGUMENT, f"field[{field}]: {message}", field=field, **facts)


def not_found(kind: str, uuid: str) -> CloudError:
    """The error for a resource that does not exist (or that the caller may not know of)."""
    return CloudError(RESOURCE_NOT_FOUND, f"no {kind} with uuid[{uuid}]", resourceType=kind, uuid=uuid)
