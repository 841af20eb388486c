"""versions of management nodes and agents."""

import sqlalchemy as sa
from alembic import op

revision = "b41d7c03e9f6"
down_revision = "833d5a75e452"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.create_table(
        "schema_compatibility",
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_schema_compatibility")),
    )
    with op.batch_alter_table("management_node", schema=None) as batch_op:
        batch_op.add_column(sa.Column("version", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("revision", sa.String(length=32), nullable=True))

    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.add_column(sa.Column("agent_version", sa.String(length=64), nullable=True))
        batch_op.add_column(
            sa.Column("agent_protocol", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True)
        )
