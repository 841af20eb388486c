"""Which errors of PostgreSQL say nothing of what was asked, so that the same may be tried again."""

from __future__ import annotations

import pytest
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError

from caelum.kernel.errors import ErrorType
from caelum.kernel.postgresql import CONFLICT, DATABASE_UNAVAILABLE, passing


class DriverError(Exception):
    """An error as the driver raises it."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("what the server said\nand more")
        self.sqlstate = sqlstate


def error(sqlstate: str | None, *, lost: bool = False) -> DBAPIError:
    return DBAPIError("SELECT 1", None, DriverError(sqlstate), connection_invalidated=lost)


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("08006", DATABASE_UNAVAILABLE),  # the connection was lost
        ("57P01", DATABASE_UNAVAILABLE),  # the server stops
        ("53100", DATABASE_UNAVAILABLE),  # its disk is full
        ("40P01", CONFLICT),  # two waited for each other
        ("23505", None),  # a key is there already
        ("42P01", None),  # no such table
    ],
)
def test_errors_that_pass(sqlstate: str, kind: ErrorType | None) -> None:
    found = passing(error(sqlstate))
    assert (None if found is None else found.kind) == kind
    assert found is None or "and more" not in found.details


def test_a_statement_whose_table_was_altered_is_prepared_anew_and_may_be_tried_again() -> None:
    altered = AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError("cached plan must not change result type")
    altered.sqlstate = "0A000"
    found = passing(DBAPIError("SELECT 1", None, altered))
    assert found is not None
    assert found.kind is CONFLICT
    assert passing(error("0A000")) is None, "what the server cannot do at all"


def test_only_a_commit_that_is_lost_is_ambiguous() -> None:
    lost = error(None, lost=True)
    assert [passing(lost, committing=one).facts for one in (True, False)] == [{"ambiguous": True}, {}]  # type: ignore[union-attr]
    assert passing(error("40001"), committing=True).facts == {}  # type: ignore[union-attr]
