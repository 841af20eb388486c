"""indexes for long lists and many hosts."""

from alembic import op

revision = "0fdaaf2ad6c8"
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

    with op.batch_alter_table("host_capacity", schema=None) as batch_op:
        batch_op.create_index("ix_host_capacity_load", ["vm_count", "used_memory", "uuid"], unique=False)

    with op.batch_alter_table("shared_resource", schema=None) as batch_op:
        batch_op.create_index("ix_shared_resource_public", ["to_public"], unique=False)

    with op.batch_alter_table("vm_instance", schema=None) as batch_op:
        batch_op.create_index("ix_vm_instance_last_host", ["last_host_uuid", "state"], unique=False)

    with op.batch_alter_table("vm_nic", schema=None) as batch_op:
        batch_op.create_index("ix_vm_nic_ip", ["ip"], unique=False)
