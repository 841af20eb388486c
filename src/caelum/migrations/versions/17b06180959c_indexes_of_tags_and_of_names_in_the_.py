"""indexes of tags and of names in the order of pages."""

from alembic import op

revision = "17b06180959c"
down_revision = "66f08dcb4acf"
branch_labels = None
depends_on = None
# "expand" only adds, so that the version before goes on working; "contract" takes away what only that needs.
phase = "expand"


def upgrade() -> None:
    with op.batch_alter_table("system_tag", schema=None) as batch_op:
        batch_op.create_index("ix_system_tag_tag", ["tag"], unique=False, postgresql_using="hash")

    with op.batch_alter_table("user_tag", schema=None) as batch_op:
        batch_op.create_index("ix_user_tag_tag", ["tag"], unique=False, postgresql_using="hash")

    with op.batch_alter_table("vm_instance", schema=None) as batch_op:
        batch_op.create_index("ix_vm_instance_name_uuid", ["name", "uuid"], unique=False)

    # Last: the lock that it takes also keeps readers out, until the revision is committed.
    with op.batch_alter_table("vm_instance", schema=None) as batch_op:
        batch_op.drop_index("ix_vm_instance_name")
