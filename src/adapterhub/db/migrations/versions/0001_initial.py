"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

from adapterhub.db.schema import JSON, Utc

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates them."""
    op.create_table(
        "account",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("name_key", sa.String(length=96), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("fullname", sa.String(length=200), server_default="", nullable=False),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("about", sa.Text(), server_default="", nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=True),
        sa.Column("is_admin", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("quota", sa.BigInteger(), nullable=True),
        sa.Column("created", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("name_key", name=op.f("uq_account_name_key")),
    )
    op.create_table(
        "architecture",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("displayname", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("citation", sa.Text(), nullable=True),
        sa.Column("config", JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_architecture")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", Utc(), nullable=False),
        sa.Column("actor", sa.String(length=96), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("target", sa.String(length=220), nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_at"), "audit", ["at"], unique=False)
    op.create_table(
        "blob",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("git_oid", sa.String(length=40), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("header", JSON, nullable=True),
        sa.Column("created", Utc(), nullable=False),
        sa.Column("last_ref", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob")),
    )
    op.create_index(op.f("ix_blob_git_oid"), "blob", ["git_oid"], unique=False)
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("expires", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.create_table(
        "rate",
        sa.Column("key", sa.String(length=120), nullable=False),
        sa.Column("window", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", "window", name=op.f("pk_rate")),
    )
    op.create_table(
        "subtask",
        sa.Column("task", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("displayname", sa.String(length=200), server_default="", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("datasets_id", sa.String(length=200), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("citation", sa.Text(), nullable=True),
        sa.Column("language", sa.String(length=64), nullable=True),
        sa.Column("metric", sa.String(length=64), nullable=True),
        sa.Column("higher_is_better", sa.Boolean(), nullable=True),
        sa.PrimaryKeyConstraint("task", "id", name=op.f("pk_subtask")),
    )
    op.create_index(op.f("ix_subtask_datasets_id"), "subtask", ["datasets_id"], unique=False)
    op.create_table(
        "task",
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("displayname", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("type", "id", name=op.f("pk_task")),
    )
    op.create_table(
        "tombstone",
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("until", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_tombstone")),
    )
    op.create_table(
        "tree",
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.Column("manifest", JSON, nullable=False),
        sa.PrimaryKeyConstraint("oid", name=op.f("pk_tree")),
    )
    op.create_table(
        "xorb",
        sa.Column("scope", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("expires", Utc(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "hash", name=op.f("pk_xorb")),
    )
    op.create_index(op.f("ix_xorb_expires"), "xorb", ["expires"], unique=False)
    op.create_table(
        "membership",
        sa.Column("org_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.ForeignKeyConstraint(
            ["org_id"], ["account.id"], name=op.f("fk_membership_org_id_account"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["account.id"], name=op.f("fk_membership_user_id_account"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("org_id", "user_id", name=op.f("pk_membership")),
    )
    op.create_index(op.f("ix_membership_user_id"), "membership", ["user_id"], unique=False)
    op.create_table(
        "repo",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("uid", sa.String(length=24), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("name_key", sa.String(length=96), nullable=False),
        sa.Column("private", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("default_branch", sa.String(length=200), server_default="main", nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("downloads", sa.Integer(), server_default="0", nullable=False),
        sa.Column("downloads_all", sa.Integer(), server_default="0", nullable=False),
        sa.Column("likes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("yanked", sa.Text(), nullable=True),
        sa.Column("created", Utc(), nullable=False),
        sa.Column("updated", Utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["account.id"], name=op.f("fk_repo_owner_id_account"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repo")),
        sa.UniqueConstraint("key", name=op.f("uq_repo_key")),
        sa.UniqueConstraint("uid", name=op.f("uq_repo_uid")),
    )
    op.create_index("ix_repo_downloads", "repo", ["downloads"], unique=False)
    op.create_index(op.f("ix_repo_name_key"), "repo", ["name_key"], unique=False)
    op.create_index("ix_repo_owner_updated", "repo", ["owner_id", "updated"], unique=False)
    op.create_index("ix_repo_updated", "repo", ["updated"], unique=False)
    op.create_table(
        "session",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("csrf", sa.String(length=64), nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.Column("expires", Utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_session_account_id_account"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_session")),
    )
    op.create_index(op.f("ix_session_account_id"), "session", ["account_id"], unique=False)
    op.create_table(
        "token",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("scope", JSON, nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.Column("expires", Utc(), nullable=True),
        sa.Column("last_used", Utc(), nullable=True),
        sa.Column("revoked", Utc(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_token_account_id_account"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("digest", name=op.f("uq_token_digest")),
    )
    op.create_index(op.f("ix_token_account_id"), "token", ["account_id"], unique=False)
    op.create_table(
        "adapter",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=True),
        sa.Column("task", sa.String(length=64), nullable=True),
        sa.Column("subtask", sa.String(length=64), nullable=True),
        sa.Column("library", sa.String(length=16), nullable=False),
        sa.Column("library_name", sa.String(length=64), nullable=True),
        sa.Column("pipeline_tag", sa.String(length=64), nullable=True),
        sa.Column("model_config", JSON, nullable=False),
        sa.Column("method", sa.String(length=32), nullable=True),
        sa.Column("config_name", sa.String(length=32), nullable=True),
        sa.Column("config_id", sa.String(length=16), nullable=True),
        sa.Column("config", JSON, nullable=True),
        sa.Column("base_model", sa.String(length=200), nullable=True),
        sa.Column("model_type", sa.String(length=64), nullable=True),
        sa.Column("model_class", sa.String(length=96), nullable=True),
        sa.Column("hidden_size", sa.Integer(), nullable=True),
        sa.Column("layers", sa.Integer(), nullable=True),
        sa.Column("reduction_factor", sa.Float(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("non_linearity", sa.String(length=32), nullable=True),
        sa.Column("head_type", sa.String(length=40), nullable=True),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("license", sa.String(length=64), nullable=True),
        sa.Column("languages", JSON, nullable=False),
        sa.Column("datasets", JSON, nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("card", JSON, nullable=False),
        sa.Column("summary", sa.Text(), server_default="", nullable=False),
        sa.Column("title", sa.String(length=200), server_default="", nullable=False),
        sa.Column("checks", JSON, nullable=False),
        sa.Column("errors", sa.Integer(), server_default="0", nullable=False),
        sa.Column("legacy_id", sa.String(length=200), nullable=True),
        sa.Column("search", sa.Text(), server_default="", nullable=False),
        sa.Column("visible", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("updated", Utc(), nullable=False),
        sa.Column("downloads", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_adapter_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repo_id", name=op.f("pk_adapter")),
    )
    base = ["visible", "base_model", "task", "method", "downloads"]
    op.create_index("ix_adapter_base", "adapter", base, unique=False)
    op.create_index("ix_adapter_downloads", "adapter", ["visible", "downloads"], unique=False)
    op.create_index(
        "ix_adapter_facets",
        "adapter",
        [
            "visible",
            "method",
            "base_model",
            "model_type",
            "type",
            "task",
            "subtask",
            "config_name",
            "library",
            "head_type",
            "license",
            "downloads",
            "updated",
            "errors",
            "parameters",
            "reduction_factor",
            "rank",
        ],
        unique=False,
    )
    op.create_index(op.f("ix_adapter_legacy_id"), "adapter", ["legacy_id"], unique=False)
    place = ["visible", "task", "subtask", "type", "base_model", "downloads"]
    op.create_index("ix_adapter_place", "adapter", place, unique=False)
    op.create_index("ix_adapter_updated", "adapter", ["visible", "updated"], unique=False)
    op.create_table(
        "adapter_tag",
        sa.Column("tag", sa.String(length=200), nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_adapter_tag_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tag", "repo_id", name=op.f("pk_adapter_tag")),
    )
    op.create_index(op.f("ix_adapter_tag_repo_id"), "adapter_tag", ["repo_id"], unique=False)
    op.create_table(
        "blob_use",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_blob_use_repo_id_repo"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["sha256"], ["blob.sha256"], name=op.f("fk_blob_use_sha256_blob")),
        sa.PrimaryKeyConstraint("repo_id", "sha256", name=op.f("pk_blob_use")),
    )
    op.create_index(op.f("ix_blob_use_sha256"), "blob_use", ["sha256"], unique=False)
    op.create_table(
        "check_report",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.Column("checks", JSON, nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repo_id"], ["repo.id"], name=op.f("fk_check_report_repo_id_repo"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repo_id", "oid", name=op.f("pk_check_report")),
    )
    op.create_table(
        "commit",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.Column("parent", sa.String(length=40), nullable=True),
        sa.Column("tree", sa.String(length=40), nullable=False),
        sa.Column("author", sa.String(length=96), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("date", Utc(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_commit_repo_id_repo"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tree"], ["tree.oid"], name=op.f("fk_commit_tree_tree")),
        sa.PrimaryKeyConstraint("repo_id", "oid", name=op.f("pk_commit")),
    )
    op.create_index(op.f("ix_commit_tree"), "commit", ["tree"], unique=False)
    op.create_table(
        "dependency",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("note", sa.String(length=300), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_dependency_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repo_id", "target", name=op.f("pk_dependency")),
    )
    op.create_index(op.f("ix_dependency_target"), "dependency", ["target"], unique=False)
    op.create_table(
        "discussion",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("num", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("is_pull", sa.Boolean(), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("status", sa.String(length=8), nullable=False),
        sa.Column("author", sa.String(length=96), nullable=False),
        sa.Column("base", sa.String(length=260), server_default="refs/heads/main", nullable=False),
        sa.Column("merged", sa.String(length=40), nullable=True),
        sa.Column("created", Utc(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_discussion_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repo_id", "num", name=op.f("pk_discussion")),
    )
    op.create_table(
        "download_day",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repo_id"], ["repo.id"], name=op.f("fk_download_day_repo_id_repo"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repo_id", "day", name=op.f("pk_download_day")),
    )
    op.create_table(
        "evaluation",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(length=64), nullable=True),
        sa.Column("subtask", sa.String(length=64), nullable=True),
        sa.Column("dataset", sa.String(length=200), nullable=True),
        sa.Column("split", sa.String(length=64), nullable=True),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("source", sa.String(length=12), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_evaluation_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
    )
    op.create_index("ix_evaluation_place", "evaluation", ["task", "subtask", "metric"], unique=False)
    op.create_index(op.f("ix_evaluation_repo_id"), "evaluation", ["repo_id"], unique=False)
    op.create_table(
        "preferred",
        sa.Column("base_model", sa.String(length=200), nullable=False),
        sa.Column("task", sa.String(length=64), nullable=False),
        sa.Column("subtask", sa.String(length=64), nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_preferred_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("base_model", "task", "subtask", name=op.f("pk_preferred")),
    )
    op.create_table(
        "redirect",
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_redirect_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_redirect")),
    )
    op.create_index(op.f("ix_redirect_repo_id"), "redirect", ["repo_id"], unique=False)
    op.create_table(
        "ref",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=260), nullable=False),
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_ref_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repo_id", "name", name=op.f("pk_ref")),
    )
    op.create_table(
        "upload",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("oid", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("parts", JSON, nullable=False),
        sa.Column("expires", Utc(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_upload_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
    )
    op.create_index(op.f("ix_upload_expires"), "upload", ["expires"], unique=False)
    op.create_index(op.f("ix_upload_oid"), "upload", ["oid"], unique=False)
    op.create_table(
        "yank",
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=96), nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repo.id"], name=op.f("fk_yank_repo_id_repo"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repo_id", "oid", name=op.f("pk_yank")),
    )
    op.create_table(
        "comment",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("repo_id", sa.Integer(), nullable=False),
        sa.Column("num", sa.Integer(), nullable=False),
        sa.Column("author", sa.String(length=96), nullable=False),
        sa.Column("kind", sa.String(length=12), server_default="comment", nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created", Utc(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repo_id", "num"],
            ["discussion.repo_id", "discussion.num"],
            name=op.f("fk_comment_repo_id_discussion"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comment")),
    )
    op.create_index("ix_comment_repo_num", "comment", ["repo_id", "num"], unique=False)
