"""access keys, waiting web hooks."""

import sqlalchemy as sa
from alembic import op

revision = "906eceb988e3"
down_revision = "7c1e5a90d2b4"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.create_table(
        "access_key",
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("account_uuid", sa.String(length=32), nullable=False),
        sa.Column("user_uuid", sa.String(length=32), nullable=False),
        sa.Column("access_key_id", sa.String(length=128), nullable=False),
        sa.Column("sealed_secret", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_access_key")),
        sa.UniqueConstraint("access_key_id", name=op.f("uq_access_key_access_key_id")),
    )
    with op.batch_alter_table("access_key", schema=None) as batch_op:
        batch_op.create_index("ix_access_key_account", ["account_uuid"], unique=False)

    with op.batch_alter_table("api_job", schema=None) as batch_op:
        batch_op.create_index(
            "ix_api_job_web_hook",
            ["node_uuid"],
            unique=False,
            sqlite_where=sa.text("web_hook IS NOT NULL"),
            postgresql_where=sa.text("web_hook IS NOT NULL"),
        )
