"""several management nodes."""

import sqlalchemy as sa
from alembic import op

revision = "604b12e1ef21"
down_revision = "460d8b821f83"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "certificate_authority",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificate_authority")),
    )
    # Rows of former processes; those that start now write theirs.
    op.execute("DELETE FROM management_node")
    with op.batch_alter_table("management_node", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.String(length=16), nullable=False))
