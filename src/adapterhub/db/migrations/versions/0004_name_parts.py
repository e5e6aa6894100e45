"""Words of repositories' names are found although they are mistyped. The hub fills the table when it starts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the table."""
    op.create_table(
        "name_part",
        sa.Column("part", sa.String(length=32), nullable=False),
        sa.Column("word", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("part", "word", name=op.f("pk_name_part")),
    )
