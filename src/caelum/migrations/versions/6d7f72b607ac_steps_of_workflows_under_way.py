"""steps of workflows under way."""

import sqlalchemy as sa
from alembic import op

revision = "6d7f72b607ac"
down_revision = "3ae43a3741df"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    with op.batch_alter_table("workflow_journal", schema=None) as batch_op:
        batch_op.add_column(sa.Column("steps", sa.Text(), nullable=True))
