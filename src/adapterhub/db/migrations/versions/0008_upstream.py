"""Namespaces of which something has come from the hub behind this one: no account may take their names."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds the table."""
    op.create_table(
        "upstream_namespace",
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("name_key", sa.String(length=96), nullable=False),
        sa.Column("repo", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_upstream_namespace")),
    )
    op.create_index(op.f("ix_upstream_namespace_name_key"), "upstream_namespace", ["name_key"])
