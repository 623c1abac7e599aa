"""Run by Alembic, on the connection that it is given."""

from alembic import context

from clew.history.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    # SQLite changes a table by making it anew
    render_as_batch=True,
    version_table="clew_alembic_version",
)
with context.begin_transaction():
    context.run_migrations()
