"""detaching storages."""

import sqlalchemy as sa
from alembic import op

revision = "7c1e5a90d2b4"
down_revision = "460d8b821f83"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    with op.batch_alter_table("primary_storage_cluster_ref", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.String(length=16), nullable=False, server_default="Attached"))
