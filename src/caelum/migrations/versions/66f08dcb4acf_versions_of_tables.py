"""versions of tables."""

import sqlalchemy as sa
from alembic import op

revision = "66f08dcb4acf"
down_revision = "6d7f72b607ac"
branch_labels = None
depends_on = None
# "expand" only adds, so that the version before goes on working; "contract" takes away what only that needs.
phase = "expand"


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "table_change",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("shard", number, autoincrement=False, nullable=False),
        sa.Column("version", number, nullable=False),
        sa.PrimaryKeyConstraint("name", "shard", name=op.f("pk_table_change")),
    )
