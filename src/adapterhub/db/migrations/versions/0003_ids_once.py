"""Ids of repositories are not given out again: on SQLite, the newest one's was, once it was deleted."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes SQLite's table anew; PostgreSQL's sequences never go back."""
    if op.get_bind().dialect.name == "sqlite":
        with op.batch_alter_table("repo", recreate="always", table_kwargs={"sqlite_autoincrement": True}):
            pass
