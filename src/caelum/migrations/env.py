"""Alembic's entry: runs on the connection that the caller opened (`caelum.kernel.migrate`)."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=context.config.attributes["metadata"],
    include_name=context.config.attributes["include_name"],
    render_as_batch=True,
    compare_type=True,
    transaction_per_migration=False,
)
context.run_migrations()
