"""several management nodes."""

import sqlalchemy as sa
from alembic import op

revision = "833d5a75e452"
down_revision = "906eceb988e3"
branch_labels = None
depends_on = None
# Nodes of the version before do not write the column `state`, which has no default, and lose their rows.
phase = "contract"


def upgrade() -> None:
    op.create_table(
        "certificate_authority",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificate_authority")),
    )
    op.create_table(
        "work_queue_entry",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("running", sa.String(length=255), nullable=True),
        sa.Column("runner", sa.String(length=255), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("node_uuid", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("taken_date", sa.DateTime(), nullable=True),
        sa.Column("done_date", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_work_queue_entry")),
        sa.UniqueConstraint("running", name=op.f("uq_work_queue_entry_running")),
        sa.UniqueConstraint("uuid", name=op.f("uq_work_queue_entry_uuid")),
    )
    with op.batch_alter_table("work_queue_entry", schema=None) as batch_op:
        batch_op.create_index("ix_work_queue_entry_queue", ["queue", "state"], unique=False)

    # Rows of former processes; those that start now write theirs.
    op.execute("DELETE FROM management_node")
    with op.batch_alter_table("management_node", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.String(length=16), nullable=False))
