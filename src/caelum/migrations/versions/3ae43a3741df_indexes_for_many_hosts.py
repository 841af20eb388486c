"""indexes for many hosts."""

from alembic import op

revision = "3ae43a3741df"
down_revision = "3d965e7de973"
branch_labels = None
depends_on = None
# "expand" only adds, so that the version before goes on working; "contract" takes away what only that needs.
phase = "expand"


def upgrade() -> None:
    with op.batch_alter_table("host_capacity", schema=None) as batch_op:
        batch_op.create_index("ix_host_capacity_load", ["vm_count", "used_memory", "uuid"], unique=False)

    with op.batch_alter_table("vm_instance", schema=None) as batch_op:
        batch_op.create_index("ix_vm_instance_last_host", ["last_host_uuid", "state"], unique=False)
