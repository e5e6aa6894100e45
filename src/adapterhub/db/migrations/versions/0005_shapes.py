"""Adapters are found by the shape of the models into which they load."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the index."""
    columns = ["visible", "model_type", "hidden_size", "layers", "task", "subtask", "downloads"]
    op.create_index("ix_adapter_shape", "adapter", columns)
