"""Collections: named lists of adapters with a note."""

import sqlalchemy as sa
from alembic import op

from adapterhub.db.schema import Utc

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds the tables."""
    op.create_table(
        "collection",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("key", sa.String(length=96), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("note", sa.Text(), nullable=False, server_default=""),
        sa.Column("setup", sa.String(length=16), nullable=False, server_default=""),
        sa.Column("updated", Utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["account.id"], name=op.f("fk_collection_owner_id_account"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_collection")),
        sa.UniqueConstraint("owner_id", "key", name=op.f("uq_collection_owner_id_key")),
    )
    op.create_index(op.f("ix_collection_updated"), "collection", ["updated"])
    op.create_table(
        "collected",
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_collected_collection_id_collection"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_collected_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("collection_id", "repo_id", name=op.f("pk_collected")),
    )
    op.create_index(op.f("ix_collected_repo_id"), "collected", ["repo_id"])
