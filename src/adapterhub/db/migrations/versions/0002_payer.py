"""Who pays for a blob that others have brought to a repository."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column; what is there is paid for by the repositories' owners."""
    with op.batch_alter_table("blob_use") as table:
        table.add_column(sa.Column("payer_id", sa.Integer(), nullable=True))
        table.create_foreign_key(
            op.f("fk_blob_use_payer_id_account"), "account", ["payer_id"], ["id"], ondelete="SET NULL"
        )
    named = sa.text("payer_id IS NOT NULL")
    op.create_index("ix_blob_use_payer_id", "blob_use", ["payer_id"], sqlite_where=named, postgresql_where=named)
