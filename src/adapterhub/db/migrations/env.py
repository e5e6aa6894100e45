"""Where Alembic begins: runs the migrations on the connection that `db.migrate` hands over."""

from alembic import context

from adapterhub.db.migrate import is_ours
from adapterhub.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=is_ours,
    render_as_batch=True,  # SQLite changes a table by making a new one
)
context.run_migrations()
