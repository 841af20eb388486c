"""indexes of who sees what and of NICs by address."""

from alembic import op

revision = "3d965e7de973"
down_revision = "b41d7c03e9f6"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    with op.batch_alter_table("account_resource_ref", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_account_resource_ref_account"))
        batch_op.create_index(
            "ix_account_resource_ref_account", ["account_uuid", "resource_type", "resource_uuid"], unique=False
        )

    with op.batch_alter_table("shared_resource", schema=None) as batch_op:
        batch_op.create_index("ix_shared_resource_public", ["to_public"], unique=False)

    with op.batch_alter_table("vm_nic", schema=None) as batch_op:
        batch_op.create_index("ix_vm_nic_ip", ["ip"], unique=False)
