"""several management nodes."""

import sqlalchemy as sa
from alembic import op

revision = "eb3d1a14524f"
down_revision = "460d8b821f83"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("management_node", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.String(length=16), nullable=False))
