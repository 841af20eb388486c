"""first tables."""

import sqlalchemy as sa
from alembic import op

revision = "460d8b821f83"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("type", sa.String(length=128), nullable=False),
        sa.Column("password", sa.String(length=255), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_account")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "account_resource_ref",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("account_uuid", sa.String(length=32), nullable=False),
        sa.Column("owner_account_uuid", sa.String(length=32), nullable=False),
        sa.Column("resource_uuid", sa.String(length=32), nullable=False),
        sa.Column("resource_type", sa.String(length=255), nullable=False),
        sa.Column("concrete_resource_type", sa.String(length=512), nullable=False),
        sa.Column("permission", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("is_shared", sa.Boolean(), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_resource_ref")),
        sa.UniqueConstraint("resource_uuid", name=op.f("uq_account_resource_ref_resource_uuid")),
    )
    with op.batch_alter_table("account_resource_ref", schema=None) as batch_op:
        batch_op.create_index("ix_account_resource_ref_account", ["account_uuid", "resource_type"], unique=False)

    op.create_table(
        "api_job",
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("api", sa.String(length=255), nullable=False),
        sa.Column("actor", sa.JSON(), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("web_hook", sa.Text(), nullable=True),
        sa.Column("node_uuid", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("percent", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("finish_date", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_api_job")),
    )
    with op.batch_alter_table("api_job", schema=None) as batch_op:
        batch_op.create_index("ix_api_job_finish", ["finish_date"], unique=False)
        batch_op.create_index("ix_api_job_state", ["state", "node_uuid"], unique=False)

    op.create_table(
        "backup_storage",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("total_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("available_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_backup_storage")),
    )
    op.create_table(
        "cluster",
        sa.Column("zone_uuid", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("hypervisor_type", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("architecture", sa.String(length=32), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_cluster")),
    )
    with op.batch_alter_table("cluster", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_cluster_zone_uuid"), ["zone_uuid"], unique=False)

    op.create_table(
        "console_proxy_agent",
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("management_ip", sa.String(length=255), nullable=False),
        sa.Column("console_proxy_overridden_ip", sa.String(length=255), nullable=True),
        sa.Column("console_proxy_port", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("listen_port", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("scheme", sa.String(length=8), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_console_proxy_agent")),
    )
    op.create_table(
        "console_token",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("line", sa.String(length=16), nullable=False),
        sa.Column("vm_instance_uuid", sa.String(length=32), nullable=False),
        sa.Column("host_uuid", sa.String(length=32), nullable=False),
        sa.Column("account_uuid", sa.String(length=32), nullable=False),
        sa.Column("by_admin", sa.Boolean(), nullable=False),
        sa.Column("expire_date", sa.DateTime(), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_console_token")),
    )
    with op.batch_alter_table("console_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_console_token_expire_date"), ["expire_date"], unique=False)
        batch_op.create_index(batch_op.f("ix_console_token_vm_instance_uuid"), ["vm_instance_uuid"], unique=False)

    op.create_table(
        "disk_offering",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("disk_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sort_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("allocator_strategy", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_disk_offering")),
    )
    op.create_table(
        "garbage_collector",
        sa.Column("name", sa.String(length=1024), nullable=False),
        sa.Column("open_name", sa.String(length=1024), nullable=True),
        sa.Column("runner_class", sa.String(length=512), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=64), nullable=False),
        sa.Column("management_node_uuid", sa.String(length=32), nullable=True),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("interval_seconds", sa.Double(), nullable=False),
        sa.Column("event_path", sa.String(length=255), nullable=True),
        sa.Column("event_match", sa.JSON(), nullable=True),
        sa.Column("attempts", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("next_run", sa.DateTime(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_garbage_collector")),
        sa.UniqueConstraint("open_name", name=op.f("uq_garbage_collector_open_name")),
    )
    with op.batch_alter_table("garbage_collector", schema=None) as batch_op:
        batch_op.create_index("ix_garbage_collector_due", ["management_node_uuid", "status", "next_run"], unique=False)
        batch_op.create_index(batch_op.f("ix_garbage_collector_event_path"), ["event_path"], unique=False)

    op.create_table(
        "global_config",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("category", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("default_value", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_global_config")),
        sa.UniqueConstraint("category", "name", name=op.f("uq_global_config_category_name")),
    )
    op.create_table(
        "host",
        sa.Column("zone_uuid", sa.String(length=32), nullable=False),
        sa.Column("cluster_uuid", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("management_ip", sa.String(length=255), nullable=False),
        sa.Column("hypervisor_type", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("architecture", sa.String(length=32), nullable=True),
        sa.Column("agent_uuid", sa.String(length=32), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=True),
        sa.Column("ssh_port", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("os_distribution", sa.String(length=64), nullable=True),
        sa.Column("os_release", sa.String(length=64), nullable=True),
        sa.Column("os_version", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_host")),
        sa.UniqueConstraint("management_ip", name=op.f("uq_host_management_ip")),
    )
    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_host_cluster_uuid"), ["cluster_uuid"], unique=False)
        batch_op.create_index(batch_op.f("ix_host_zone_uuid"), ["zone_uuid"], unique=False)

    op.create_table(
        "host_capacity",
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("cpu_num", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("cpu_sockets", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("total_cpu", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("used_cpu", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("total_memory", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("limit_memory", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("used_memory", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("vm_count", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_host_capacity")),
    )
    op.create_table(
        "host_reservation",
        sa.Column("vm_uuid", sa.String(length=32), nullable=False),
        sa.Column("host_uuid", sa.String(length=32), nullable=False),
        sa.Column("cpu_num", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("memory", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("disks", sa.String(), nullable=True),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("vm_uuid", name=op.f("pk_host_reservation")),
    )
    with op.batch_alter_table("host_reservation", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_host_reservation_host_uuid"), ["host_uuid"], unique=False)

    op.create_table(
        "image",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("actual_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("md5_sum", sa.String(length=255), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("url", sa.String(length=1024), nullable=False),
        sa.Column("media_type", sa.String(length=64), nullable=False),
        sa.Column("guest_os_type", sa.String(length=255), nullable=True),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("platform", sa.String(length=64), nullable=True),
        sa.Column("architecture", sa.String(length=32), nullable=True),
        sa.Column("format", sa.String(length=64), nullable=True),
        sa.Column("system", sa.Boolean(), nullable=False),
        sa.Column("virtio", sa.Boolean(), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_image")),
    )
    op.create_table(
        "instance_offering",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("cpu_num", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("cpu_speed", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("memory_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("reserved_memory_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("allocator_strategy", sa.String(length=64), nullable=False),
        sa.Column("sort_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_instance_offering")),
    )
    op.create_table(
        "l2_network",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("zone_uuid", sa.String(length=32), nullable=False),
        sa.Column("physical_interface", sa.String(length=1024), nullable=True),
        sa.Column("type", sa.String(length=128), nullable=False),
        sa.Column("v_switch_type", sa.String(length=128), nullable=False),
        sa.Column("virtual_network_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("isolated", sa.Boolean(), nullable=False),
        sa.Column("pvlan", sa.String(length=255), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_l2_network")),
    )
    with op.batch_alter_table("l2_network", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_l2_network_zone_uuid"), ["zone_uuid"], unique=False)

    op.create_table(
        "l3_network",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("type", sa.String(length=128), nullable=False),
        sa.Column("zone_uuid", sa.String(length=32), nullable=False),
        sa.Column("l2_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("dns_domain", sa.String(length=255), nullable=True),
        sa.Column("system", sa.Boolean(), nullable=False),
        sa.Column("category", sa.String(length=32), nullable=False),
        sa.Column("ip_version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("enable_ipam", sa.Boolean(), nullable=False),
        sa.Column("isolated", sa.Boolean(), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_l3_network")),
    )
    with op.batch_alter_table("l3_network", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_l3_network_l2_network_uuid"), ["l2_network_uuid"], unique=False)
        batch_op.create_index(batch_op.f("ix_l3_network_zone_uuid"), ["zone_uuid"], unique=False)

    op.create_table(
        "management_node",
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("host_name", sa.String(length=255), nullable=False),
        sa.Column("join_date", sa.DateTime(), nullable=False),
        sa.Column("heart_beat", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_management_node")),
    )
    op.create_table(
        "network_service_provider",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_network_service_provider")),
        sa.UniqueConstraint("type", name=op.f("uq_network_service_provider_type")),
    )
    op.create_table(
        "primary_storage",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("zone_uuid", sa.String(length=32), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("mount_path", sa.String(length=2048), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_primary_storage")),
    )
    with op.batch_alter_table("primary_storage", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_primary_storage_zone_uuid"), ["zone_uuid"], unique=False)

    op.create_table(
        "quota",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("identity_uuid", sa.String(length=32), nullable=False),
        sa.Column("identity_type", sa.String(length=255), nullable=False),
        sa.Column("value", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("used", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_quota")),
        sa.UniqueConstraint("identity_uuid", "name", name=op.f("uq_quota_identity_uuid_name")),
    )
    op.create_table(
        "quota_usage",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("account_uuid", sa.String(length=32), nullable=False),
        sa.Column("amount", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("name", "key", name=op.f("pk_quota_usage")),
    )
    with op.batch_alter_table("quota_usage", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_quota_usage_account_uuid"), ["account_uuid"], unique=False)

    op.create_table(
        "resource_config",
        sa.Column("resource_uuid", sa.String(length=32), nullable=False),
        sa.Column("resource_type", sa.String(length=255), nullable=False),
        sa.Column("category", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_resource_config")),
        sa.UniqueConstraint(
            "resource_uuid", "category", "name", name=op.f("uq_resource_config_resource_uuid_category_name")
        ),
    )
    op.create_table(
        "session",
        sa.Column("account_uuid", sa.String(length=32), nullable=False),
        sa.Column("user_uuid", sa.String(length=32), nullable=False),
        sa.Column("user_type", sa.String(length=128), nullable=False),
        sa.Column("expired_date", sa.DateTime(), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_session")),
    )
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.create_index("ix_session_account", ["account_uuid"], unique=False)
        batch_op.create_index("ix_session_expired", ["expired_date"], unique=False)

    op.create_table(
        "shared_resource",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("owner_account_uuid", sa.String(length=32), nullable=False),
        sa.Column("receiver_account_uuid", sa.String(length=32), nullable=True),
        sa.Column("resource_type", sa.String(length=255), nullable=False),
        sa.Column("resource_uuid", sa.String(length=32), nullable=False),
        sa.Column("permission", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("to_public", sa.Boolean(), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shared_resource")),
    )
    with op.batch_alter_table("shared_resource", schema=None) as batch_op:
        batch_op.create_index("ix_shared_resource_receiver", ["receiver_account_uuid"], unique=False)
        batch_op.create_index(batch_op.f("ix_shared_resource_resource_uuid"), ["resource_uuid"], unique=False)

    op.create_table(
        "system_tag",
        sa.Column("resource_uuid", sa.String(length=32), nullable=False),
        sa.Column("resource_type", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("inherent", sa.Boolean(), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_system_tag")),
    )
    with op.batch_alter_table("system_tag", schema=None) as batch_op:
        batch_op.create_index("ix_system_tag_resource", ["resource_uuid"], unique=False)

    op.create_table(
        "user_tag",
        sa.Column("resource_uuid", sa.String(length=32), nullable=False),
        sa.Column("resource_type", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("tag_pattern_uuid", sa.String(length=32), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_user_tag")),
    )
    with op.batch_alter_table("user_tag", schema=None) as batch_op:
        batch_op.create_index("ix_user_tag_pattern", ["tag_pattern_uuid"], unique=False)
        batch_op.create_index("ix_user_tag_resource", ["resource_uuid"], unique=False)

    op.create_table(
        "vm_instance",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("zone_uuid", sa.String(length=32), nullable=False),
        sa.Column("cluster_uuid", sa.String(length=32), nullable=True),
        sa.Column("host_uuid", sa.String(length=32), nullable=True),
        sa.Column("last_host_uuid", sa.String(length=32), nullable=True),
        sa.Column("image_uuid", sa.String(length=32), nullable=True),
        sa.Column("instance_offering_uuid", sa.String(length=32), nullable=True),
        sa.Column("root_volume_uuid", sa.String(length=32), nullable=True),
        sa.Column("default_l3_network_uuid", sa.String(length=32), nullable=True),
        sa.Column("platform", sa.String(length=255), nullable=False),
        sa.Column("architecture", sa.String(length=32), nullable=False),
        sa.Column("guest_os_type", sa.String(length=255), nullable=True),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("hypervisor_type", sa.String(length=64), nullable=False),
        sa.Column("cpu_num", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("cpu_speed", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("memory_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("reserved_memory_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("allocator_strategy", sa.String(length=64), nullable=True),
        sa.Column("internal_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.String(length=64), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_vm_instance")),
    )
    with op.batch_alter_table("vm_instance", schema=None) as batch_op:
        batch_op.create_index("ix_vm_instance_host", ["host_uuid"], unique=False)
        batch_op.create_index("ix_vm_instance_name", ["name"], unique=False)
        batch_op.create_index("ix_vm_instance_state", ["state"], unique=False)

    op.create_table(
        "vm_sequence",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("vm_instance_uuid", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vm_sequence")),
        sa.UniqueConstraint("vm_instance_uuid", name=op.f("uq_vm_sequence_vm_instance_uuid")),
    )
    op.create_table(
        "volume",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("primary_storage_uuid", sa.String(length=32), nullable=True),
        sa.Column("vm_instance_uuid", sa.String(length=32), nullable=True),
        sa.Column("device_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("disk_offering_uuid", sa.String(length=32), nullable=True),
        sa.Column("root_image_uuid", sa.String(length=32), nullable=True),
        sa.Column("install_path", sa.String(length=2048), nullable=True),
        sa.Column("format", sa.String(length=64), nullable=True),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("actual_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("is_shareable", sa.Boolean(), nullable=False),
        sa.Column("volume_qos", sa.String(length=2048), nullable=True),
        sa.Column("protocol", sa.String(length=32), nullable=True),
        sa.Column("last_vm_instance_uuid", sa.String(length=32), nullable=True),
        sa.Column("last_attach_date", sa.DateTime(), nullable=True),
        sa.Column("last_detach_date", sa.DateTime(), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_volume")),
        sa.UniqueConstraint("vm_instance_uuid", "device_id", name=op.f("uq_volume_vm_instance_uuid_device_id")),
    )
    with op.batch_alter_table("volume", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_volume_disk_offering_uuid"), ["disk_offering_uuid"], unique=False)
        batch_op.create_index(batch_op.f("ix_volume_primary_storage_uuid"), ["primary_storage_uuid"], unique=False)
        batch_op.create_index(batch_op.f("ix_volume_root_image_uuid"), ["root_image_uuid"], unique=False)
        batch_op.create_index(batch_op.f("ix_volume_vm_instance_uuid"), ["vm_instance_uuid"], unique=False)

    op.create_table(
        "workflow_journal",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=True),
        sa.Column("parent", sa.String(length=512), nullable=True),
        sa.Column("identity", sa.String(length=64), nullable=True),
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("skipped", sa.JSON(), nullable=False),
        sa.Column("ctx", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("job_uuid", sa.String(length=32), nullable=True),
        sa.Column("answers", sa.Boolean(), nullable=False),
        sa.Column("api", sa.String(length=255), nullable=True),
        sa.Column("actor", sa.JSON(), nullable=False),
        sa.Column("trace", sa.String(length=255), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_workflow_journal")),
    )
    with op.batch_alter_table("workflow_journal", schema=None) as batch_op:
        batch_op.create_index("ix_workflow_journal_job", ["job_uuid"], unique=False)
        batch_op.create_index("ix_workflow_journal_parent", ["parent"], unique=False)
        batch_op.create_index("ix_workflow_journal_state", ["state", "owner"], unique=False)

    op.create_table(
        "zone",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_zone")),
    )
    op.create_table(
        "backup_storage_reservation",
        sa.Column("backup_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("image_uuid", sa.String(length=32), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("written", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backup_storage_uuid"],
            ["backup_storage.uuid"],
            name=op.f("fk_backup_storage_reservation_backup_storage_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("backup_storage_uuid", "image_uuid", name=op.f("pk_backup_storage_reservation")),
    )
    op.create_table(
        "backup_storage_zone_ref",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("backup_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("zone_uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backup_storage_uuid"],
            ["backup_storage.uuid"],
            name=op.f("fk_backup_storage_zone_ref_backup_storage_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backup_storage_zone_ref")),
        sa.UniqueConstraint(
            "backup_storage_uuid", "zone_uuid", name=op.f("uq_backup_storage_zone_ref_backup_storage_uuid_zone_uuid")
        ),
    )
    with op.batch_alter_table("backup_storage_zone_ref", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_backup_storage_zone_ref_zone_uuid"), ["zone_uuid"], unique=False)

    op.create_table(
        "image_backup_storage_ref",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("image_uuid", sa.String(length=32), nullable=False),
        sa.Column("backup_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("install_path", sa.String(length=2048), nullable=True),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("export_md5_sum", sa.String(length=255), nullable=True),
        sa.Column("export_url", sa.String(length=2048), nullable=True),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_uuid"], ["image.uuid"], name=op.f("fk_image_backup_storage_ref_image_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_backup_storage_ref")),
        sa.UniqueConstraint(
            "image_uuid", "backup_storage_uuid", name=op.f("uq_image_backup_storage_ref_image_uuid_backup_storage_uuid")
        ),
    )
    with op.batch_alter_table("image_backup_storage_ref", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_image_backup_storage_ref_backup_storage_uuid"), ["backup_storage_uuid"], unique=False
        )

    op.create_table(
        "image_cache",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("primary_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("image_uuid", sa.String(length=32), nullable=False),
        sa.Column("host_uuid", sa.String(length=32), nullable=False),
        sa.Column("install_path", sa.String(length=2048), nullable=False),
        sa.Column("install_url", sa.String(length=2200), nullable=False),
        sa.Column("media_type", sa.String(length=64), nullable=False),
        sa.Column("format", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("virtual_size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("md5sum", sa.String(length=255), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["primary_storage_uuid"],
            ["primary_storage.uuid"],
            name=op.f("fk_image_cache_primary_storage_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_cache")),
        sa.UniqueConstraint(
            "image_uuid",
            "primary_storage_uuid",
            "host_uuid",
            name=op.f("uq_image_cache_image_uuid_primary_storage_uuid_host_uuid"),
        ),
    )
    with op.batch_alter_table("image_cache", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_image_cache_primary_storage_uuid"), ["primary_storage_uuid"], unique=False)

    op.create_table(
        "ip_range",
        sa.Column("l3_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("start_ip", sa.String(length=64), nullable=False),
        sa.Column("end_ip", sa.String(length=64), nullable=False),
        sa.Column("netmask", sa.String(length=64), nullable=True),
        sa.Column("gateway", sa.String(length=64), nullable=True),
        sa.Column("network_cidr", sa.String(length=64), nullable=True),
        sa.Column("ip_version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("address_mode", sa.String(length=64), nullable=True),
        sa.Column("prefix_len", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("ip_range_type", sa.String(length=32), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["l3_network_uuid"], ["l3_network.uuid"], name=op.f("fk_ip_range_l3_network_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_ip_range")),
    )
    with op.batch_alter_table("ip_range", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ip_range_l3_network_uuid"), ["l3_network_uuid"], unique=False)

    op.create_table(
        "l2_network_cluster_ref",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("l2_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("cluster_uuid", sa.String(length=32), nullable=False),
        sa.Column("l2_provider_type", sa.String(length=32), nullable=True),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["l2_network_uuid"],
            ["l2_network.uuid"],
            name=op.f("fk_l2_network_cluster_ref_l2_network_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_l2_network_cluster_ref")),
        sa.UniqueConstraint(
            "l2_network_uuid", "cluster_uuid", name=op.f("uq_l2_network_cluster_ref_l2_network_uuid_cluster_uuid")
        ),
    )
    with op.batch_alter_table("l2_network_cluster_ref", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_l2_network_cluster_ref_cluster_uuid"), ["cluster_uuid"], unique=False)

    op.create_table(
        "l3_network_dns",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("l3_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("dns", sa.String(length=255), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["l3_network_uuid"], ["l3_network.uuid"], name=op.f("fk_l3_network_dns_l3_network_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_l3_network_dns")),
        sa.UniqueConstraint("l3_network_uuid", "dns", name=op.f("uq_l3_network_dns_l3_network_uuid_dns")),
    )
    op.create_table(
        "l3_network_host_route",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("l3_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("prefix", sa.String(length=255), nullable=False),
        sa.Column("nexthop", sa.String(length=255), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["l3_network_uuid"],
            ["l3_network.uuid"],
            name=op.f("fk_l3_network_host_route_l3_network_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_l3_network_host_route")),
        sa.UniqueConstraint("l3_network_uuid", "prefix", name=op.f("uq_l3_network_host_route_l3_network_uuid_prefix")),
    )
    op.create_table(
        "local_storage_host_ref",
        sa.Column("primary_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("host_uuid", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("total_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("available_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("total_physical_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("available_physical_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("system_used_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["primary_storage_uuid"],
            ["primary_storage.uuid"],
            name=op.f("fk_local_storage_host_ref_primary_storage_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("primary_storage_uuid", "host_uuid", name=op.f("pk_local_storage_host_ref")),
    )
    with op.batch_alter_table("local_storage_host_ref", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_local_storage_host_ref_host_uuid"), ["host_uuid"], unique=False)

    op.create_table(
        "local_storage_resource_ref",
        sa.Column("resource_uuid", sa.String(length=32), nullable=False),
        sa.Column("primary_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("host_uuid", sa.String(length=32), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("resource_type", sa.String(length=255), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["primary_storage_uuid"],
            ["primary_storage.uuid"],
            name=op.f("fk_local_storage_resource_ref_primary_storage_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("resource_uuid", name=op.f("pk_local_storage_resource_ref")),
    )
    with op.batch_alter_table("local_storage_resource_ref", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_local_storage_resource_ref_host_uuid"), ["host_uuid"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_local_storage_resource_ref_primary_storage_uuid"), ["primary_storage_uuid"], unique=False
        )

    op.create_table(
        "network_service_l3_network_ref",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("l3_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("network_service_provider_uuid", sa.String(length=32), nullable=False),
        sa.Column("network_service_type", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["l3_network_uuid"],
            ["l3_network.uuid"],
            name=op.f("fk_network_service_l3_network_ref_l3_network_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_network_service_l3_network_ref")),
        sa.UniqueConstraint(
            "l3_network_uuid",
            "network_service_type",
            name=op.f("uq_network_service_l3_network_ref_l3_network_uuid_network_service_type"),
        ),
    )
    with op.batch_alter_table("network_service_l3_network_ref", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_network_service_l3_network_ref_network_service_provider_uuid"),
            ["network_service_provider_uuid"],
            unique=False,
        )

    op.create_table(
        "network_service_provider_l2_network_ref",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("network_service_provider_uuid", sa.String(length=32), nullable=False),
        sa.Column("l2_network_uuid", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["network_service_provider_uuid"],
            ["network_service_provider.uuid"],
            name=op.f("fk_network_service_provider_l2_network_ref_network_service_provider_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_network_service_provider_l2_network_ref")),
        sa.UniqueConstraint(
            "network_service_provider_uuid",
            "l2_network_uuid",
            name=op.f("uq_network_service_provider_l2_network_ref_network_service_provider_uuid_l2_network_uuid"),
        ),
    )
    with op.batch_alter_table("network_service_provider_l2_network_ref", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_network_service_provider_l2_network_ref_l2_network_uuid"), ["l2_network_uuid"], unique=False
        )

    op.create_table(
        "network_service_type",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("network_service_provider_uuid", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["network_service_provider_uuid"],
            ["network_service_provider.uuid"],
            name=op.f("fk_network_service_type_network_service_provider_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_network_service_type")),
        sa.UniqueConstraint(
            "network_service_provider_uuid",
            "type",
            name=op.f("uq_network_service_type_network_service_provider_uuid_type"),
        ),
    )
    op.create_table(
        "primary_storage_capacity",
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("total_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("available_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("total_physical_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("available_physical_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("system_used_capacity", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["uuid"], ["primary_storage.uuid"], name=op.f("fk_primary_storage_capacity_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_primary_storage_capacity")),
    )
    op.create_table(
        "primary_storage_cluster_ref",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("primary_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("cluster_uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["primary_storage_uuid"],
            ["primary_storage.uuid"],
            name=op.f("fk_primary_storage_cluster_ref_primary_storage_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_primary_storage_cluster_ref")),
        sa.UniqueConstraint(
            "primary_storage_uuid",
            "cluster_uuid",
            name=op.f("uq_primary_storage_cluster_ref_primary_storage_uuid_cluster_uuid"),
        ),
    )
    with op.batch_alter_table("primary_storage_cluster_ref", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_primary_storage_cluster_ref_cluster_uuid"), ["cluster_uuid"], unique=False)

    op.create_table(
        "reserved_ip_range",
        sa.Column("l3_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("description", sa.String(length=2048), nullable=True),
        sa.Column("start_ip", sa.String(length=64), nullable=False),
        sa.Column("end_ip", sa.String(length=64), nullable=False),
        sa.Column("ip_version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["l3_network_uuid"],
            ["l3_network.uuid"],
            name=op.f("fk_reserved_ip_range_l3_network_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_reserved_ip_range")),
    )
    with op.batch_alter_table("reserved_ip_range", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_reserved_ip_range_l3_network_uuid"), ["l3_network_uuid"], unique=False)

    op.create_table(
        "storage_reservation",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("primary_storage_uuid", sa.String(length=32), nullable=False),
        sa.Column("host_uuid", sa.String(length=32), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("charged", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("scaled", sa.Boolean(), nullable=False),
        sa.Column("image_uuid", sa.String(length=32), nullable=True),
        sa.Column("install_path", sa.String(length=2048), nullable=True),
        sa.Column("maker", sa.String(length=32), nullable=True),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["primary_storage_uuid"],
            ["primary_storage.uuid"],
            name=op.f("fk_storage_reservation_primary_storage_uuid"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_storage_reservation")),
    )
    with op.batch_alter_table("storage_reservation", schema=None) as batch_op:
        batch_op.create_index("ix_storage_reservation_place", ["primary_storage_uuid", "host_uuid"], unique=False)

    op.create_table(
        "vm_cd_rom",
        sa.Column("vm_instance_uuid", sa.String(length=32), nullable=False),
        sa.Column("device_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("iso_uuid", sa.String(length=32), nullable=True),
        sa.Column("iso_install_path", sa.Text(), nullable=True),
        sa.Column("protocol", sa.String(length=32), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_instance_uuid"], ["vm_instance.uuid"], name=op.f("fk_vm_cd_rom_vm_instance_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_vm_cd_rom")),
        sa.UniqueConstraint("vm_instance_uuid", "device_id", name=op.f("uq_vm_cd_rom_vm_instance_uuid_device_id")),
    )
    op.create_table(
        "vm_nic",
        sa.Column("vm_instance_uuid", sa.String(length=32), nullable=False),
        sa.Column("l3_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("used_ip_uuid", sa.String(length=32), nullable=True),
        sa.Column("ip", sa.String(length=128), nullable=True),
        sa.Column("netmask", sa.String(length=32), nullable=True),
        sa.Column("gateway", sa.String(length=128), nullable=True),
        sa.Column("mac", sa.String(length=17), nullable=False),
        sa.Column("hypervisor_type", sa.String(length=64), nullable=True),
        sa.Column("meta_data", sa.Text(), nullable=True),
        sa.Column("ip_version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("driver_type", sa.String(length=64), nullable=False),
        sa.Column("internal_name", sa.String(length=128), nullable=False),
        sa.Column("device_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_instance_uuid"], ["vm_instance.uuid"], name=op.f("fk_vm_nic_vm_instance_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_vm_nic")),
        sa.UniqueConstraint("mac", name=op.f("uq_vm_nic_mac")),
        sa.UniqueConstraint("vm_instance_uuid", "device_id", name=op.f("uq_vm_nic_vm_instance_uuid_device_id")),
    )
    with op.batch_alter_table("vm_nic", schema=None) as batch_op:
        batch_op.create_index("ix_vm_nic_l3_network", ["l3_network_uuid"], unique=False)

    op.create_table(
        "used_ip",
        sa.Column("l3_network_uuid", sa.String(length=32), nullable=False),
        sa.Column("ip_range_uuid", sa.String(length=32), nullable=True),
        sa.Column("ip_offset", sa.BigInteger(), nullable=True),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("ip_version", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("ip", sa.String(length=64), nullable=False),
        sa.Column("netmask", sa.String(length=64), nullable=True),
        sa.Column("gateway", sa.String(length=64), nullable=True),
        sa.Column("used_for", sa.String(length=128), nullable=True),
        sa.Column("ip_in_long", sa.BigInteger(), nullable=True),
        sa.Column("vm_nic_uuid", sa.String(length=32), nullable=True),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("create_date", sa.DateTime(), nullable=False),
        sa.Column("last_op_date", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ip_range_uuid"], ["ip_range.uuid"], name=op.f("fk_used_ip_ip_range_uuid"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["l3_network_uuid"], ["l3_network.uuid"], name=op.f("fk_used_ip_l3_network_uuid"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_used_ip")),
        sa.UniqueConstraint(
            "l3_network_uuid", "holder", "ip_version", name=op.f("uq_used_ip_l3_network_uuid_holder_ip_version")
        ),
        sa.UniqueConstraint("l3_network_uuid", "ip", name=op.f("uq_used_ip_l3_network_uuid_ip")),
    )
    with op.batch_alter_table("used_ip", schema=None) as batch_op:
        batch_op.create_index("ix_used_ip_holder", ["holder"], unique=False)
        batch_op.create_index("ix_used_ip_offset", ["ip_range_uuid", "ip_offset"], unique=False)
        batch_op.create_index(batch_op.f("ix_used_ip_vm_nic_uuid"), ["vm_nic_uuid"], unique=False)
