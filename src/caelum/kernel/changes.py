"""Which tables changed, as PostgreSQL itself notes it: what lets the nodes of a cluster keep answers.

Invariant: the version of a table in `table_change` grows in every transaction that changes the table, whoever writes
it: a node, one of a former version, an administrator. So an answer that was read when the versions were these is still
the database's answer as long as they are, and a node that asks for the versions after it was asked misses nothing that
was committed before. Only tables of models that are `__steady__` have a version: it is written at the commit, one
transaction after the other, which tables that change with every operation could not bear.

It is a deferred trigger, so nothing is locked before the commit; an upgrade alone has it run at once, since it alters
tables whose rows it has just changed. A version is spread over several rows, one for connections of some numbers each,
so that few commits meet; each row is written under a lock of its own, taken before all of them, so that none waits in a
circle.
"""

from __future__ import annotations

from typing import cast

from sqlalchemy import Connection, String, Table, inspect, text
from sqlalchemy.orm import Mapped, mapped_column

from caelum.kernel.database import Base

_SHARDS = 8
_LOCK = 0x0CAE2
_TRIGGER = "caelum_note_change"


class TableChangeModel(Base):
    """A part of a table's version."""

    __tablename__ = "table_change"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]


_FUNCTION = f"""
CREATE OR REPLACE FUNCTION {_TRIGGER}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    here integer := pg_backend_pid() % {_SHARDS};
    noted text := 'caelum.changed_' || TG_TABLE_NAME;
BEGIN
    IF current_setting(noted, true) IS DISTINCT FROM 'yes' THEN
        PERFORM pg_advisory_xact_lock({_LOCK}, here);
        UPDATE table_change SET version = version + 1 WHERE name = TG_TABLE_NAME AND shard = here;
        PERFORM set_config(noted, 'yes', true);
    END IF;
    RETURN NULL;
END $$
"""  # noqa: S608 - names and numbers of our own
_ROWS = text(
    "INSERT INTO table_change (name, shard, version) SELECT :name, shard, 0 "
    "FROM generate_series(0, :last) AS shard ON CONFLICT DO NOTHING"
)
_WATCHED = text("SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE t.tgname = :name")


def unwatched(connection: Connection) -> list[str]:
    """The steady tables that exist, and whose changes are not noted yet, where they can be noted."""
    watched = {row[0] for row in connection.execute(_WATCHED, {"name": _TRIGGER})}
    present = set(inspect(connection).get_table_names())
    return sorted((_steady() & present) - watched) if TableChangeModel.__tablename__ in present else []


def _steady() -> set[str]:
    return {cast("Table", one.local_table).name for one in Base.registry.mappers if one.class_.__steady__}


def watch(connection: Connection) -> None:
    """Have the changes of every steady table noted from now on."""
    missing = unwatched(connection)
    if missing:
        connection.execute(text(_FUNCTION))
    for name in missing:
        connection.execute(
            text(
                f"CREATE CONSTRAINT TRIGGER {_TRIGGER} AFTER INSERT OR UPDATE OR DELETE ON {name} "
                f"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {_TRIGGER}()"
            )
        )
        connection.execute(_ROWS, {"name": name, "last": _SHARDS - 1})
