"""Who likes which repositories, who watches what, and what is used and liked most just now."""

import sqlalchemy as sa
from alembic import op

from adapterhub.db.schema import Utc

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds tables, columns and indexes."""
    op.create_table(
        "liking",
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_liking_account_id_account"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_liking_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account_id", "repo_id", name=op.f("pk_liking")),
    )
    op.create_index(op.f("ix_liking_repo_id"), "liking", ["repo_id"])
    op.create_table(
        "watch",
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("target", sa.String(length=96), nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_watch_account_id_account"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("account_id", "kind", "target", name=op.f("pk_watch")),
    )
    for table in ("repo", "adapter"):
        op.add_column(table, sa.Column("trending", sa.Integer(), server_default="0", nullable=False))
    op.create_index("ix_repo_trending", "repo", ["trending"])
    op.create_index("ix_adapter_trending", "adapter", ["visible", "trending"])
