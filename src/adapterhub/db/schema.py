"""The tables. Rows of `adapter*`, `evaluation` and `dependency` are derived from files: `reindex` rebuilds them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Utc(sa.TypeDecorator[datetime]):
    """A moment, always aware and in UTC; SQLite has no time zones, so there they are dropped and put back."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(timezone.utc)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.replace(tzinfo=timezone.utc) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    """This moment in UTC."""
    return datetime.now(timezone.utc)


JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True, autoincrement=True)


def _where(condition: str) -> dict[str, Any]:
    """Options of an index that holds only the rows of which a condition is true."""
    return {f"{dialect}_where": sa.text(condition) for dialect in ("sqlite", "postgresql")}


def _to(name: str, target: str, **options: Any) -> sa.Column[Any]:
    """A foreign key whose rows go with their target."""
    return sa.Column(name, sa.ForeignKey(target, ondelete="CASCADE"), **{"nullable": False, **options})


# ---- people ---------------------------------------------------------------------------------------------------------

account = sa.Table(
    "account",
    metadata,
    _id(),
    sa.Column("name", sa.String(96), nullable=False),
    sa.Column("name_key", sa.String(96), nullable=False, unique=True),  # names.key(name): no two look alike
    sa.Column("kind", sa.String(8), nullable=False),  # user | org
    sa.Column("fullname", sa.String(200), nullable=False, server_default=""),
    sa.Column("email", sa.String(254)),
    sa.Column("about", sa.Text, nullable=False, server_default=""),
    sa.Column("password_hash", sa.String(200)),
    sa.Column("is_admin", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("disabled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("quota", sa.BigInteger),  # bytes; None: the hub's default
    sa.Column("created", Utc, nullable=False, default=now),
)
membership = sa.Table(
    "membership",
    metadata,
    _to("org_id", "account.id", primary_key=True),
    _to("user_id", "account.id", primary_key=True, index=True),
    sa.Column("role", sa.String(8), nullable=False),  # read | write | admin
)
token = sa.Table(
    "token",
    metadata,
    _id(),
    _to("account_id", "account.id", index=True),
    sa.Column("name", sa.String(96), nullable=False),
    sa.Column(
        "digest", sa.String(64), nullable=False, unique=True
    ),  # sha256 of the token: it is shown once, never stored
    sa.Column("hint", sa.String(16), nullable=False),  # its first characters, to tell tokens apart
    sa.Column("role", sa.String(8), nullable=False),  # read | write
    sa.Column("scope", JSON, nullable=False, default=list),  # namespaces or repos it is limited to; empty: all
    sa.Column("created", Utc, nullable=False, default=now),
    sa.Column("expires", Utc),
    sa.Column("last_used", Utc),
    sa.Column("revoked", Utc),
)
session = sa.Table(
    "session",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    _to("account_id", "account.id", index=True),
    sa.Column("csrf", sa.String(64), nullable=False),
    sa.Column("created", Utc, nullable=False, default=now),
    sa.Column("expires", Utc, nullable=False),
)
audit = sa.Table(
    "audit",
    metadata,
    _id(),
    sa.Column("at", Utc, nullable=False, default=now, index=True),
    sa.Column("actor", sa.String(96), nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("target", sa.String(220), nullable=False),
    sa.Column("detail", JSON, nullable=False, default=dict),
)

# ---- repositories ---------------------------------------------------------------------------------------------------

repo = sa.Table(
    "repo",
    metadata,
    _id(),
    sa.Column("uid", sa.String(24), nullable=False, unique=True),
    _to("owner_id", "account.id"),
    sa.Column("namespace", sa.String(96), nullable=False),
    sa.Column("name", sa.String(96), nullable=False),
    sa.Column("key", sa.String(200), nullable=False, unique=True),  # "namespace/name" in lower case
    sa.Column("name_key", sa.String(96), nullable=False, index=True),  # names.key(name)
    sa.Column("private", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("default_branch", sa.String(200), nullable=False, server_default="main"),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),  # of all blobs that its commits name
    sa.Column("downloads", sa.Integer, nullable=False, server_default="0"),  # last 30 days
    sa.Column("downloads_all", sa.Integer, nullable=False, server_default="0"),
    sa.Column("likes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("trending", sa.Integer, nullable=False, server_default="0"),  # of the last week, see interest.trend
    sa.Column("yanked", sa.Text),  # why the whole repository was yanked
    sa.Column("created", Utc, nullable=False, default=now),
    sa.Column("updated", Utc, nullable=False, default=now),
    sa.Index("ix_repo_owner_updated", "owner_id", "updated"),
    sa.Index("ix_repo_updated", "updated"),
    sa.Index("ix_repo_downloads", "downloads"),
    sa.Index("ix_repo_trending", "trending"),
    # A request that began with a repository that was deleted meanwhile must not go on with another one.
    sqlite_autoincrement=True,
)
redirect = sa.Table(  # old names of moved repositories
    "redirect", metadata, sa.Column("key", sa.String(200), primary_key=True), _to("repo_id", "repo.id", index=True)
)
tombstone = sa.Table(  # names of deleted repositories, which nobody else may take for a while
    "tombstone",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("owner_id", sa.Integer, nullable=False),
    sa.Column("until", Utc, nullable=False),
)
ref = sa.Table(
    "ref",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("name", sa.String(260), primary_key=True),  # refs/heads/… | refs/tags/… | refs/pr/…
    sa.Column("oid", sa.String(40), nullable=False),
    sa.Column("message", sa.Text, nullable=False, server_default=""),
    sa.Column("created", Utc, nullable=False, default=now),
)
commit = sa.Table(
    "commit",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("oid", sa.String(40), primary_key=True),
    sa.Column("parent", sa.String(40)),
    sa.Column("tree", sa.ForeignKey("tree.oid"), nullable=False, index=True),
    sa.Column("author", sa.String(96), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False, server_default=""),
    sa.Column("date", Utc, nullable=False),
)
tree = sa.Table(  # a whole tree in one row: {path: [sha256, git oid, size, 1 if LFS else 0]}
    "tree", metadata, sa.Column("oid", sa.String(40), primary_key=True), sa.Column("manifest", JSON, nullable=False)
)
blob = sa.Table(
    "blob",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("git_oid", sa.String(40), nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),  # pending | ok | quarantined | missing
    sa.Column("header", JSON),  # of a safetensors file: {tensor name: [dtype, shape]}
    sa.Column("created", Utc, nullable=False, default=now),
    sa.Column("last_ref", Utc, nullable=False, default=now),  # when an upload or a commit last named it
)
blob_use = sa.Table(  # which repositories name which blobs: quotas, access checks and look-up by hash
    "blob_use",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("sha256", sa.ForeignKey("blob.sha256"), primary_key=True, index=True),
    # Whose quota it counts for; None: the repository's owner's.
    sa.Column("payer_id", sa.ForeignKey("account.id", ondelete="SET NULL")),
    # Without the rows that name none, which are nearly all.
    sa.Index("ix_blob_use_payer_id", "payer_id", **_where("payer_id IS NOT NULL")),
)
upload = sa.Table(  # open multipart uploads
    "upload",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    _to("repo_id", "repo.id"),
    sa.Column("oid", sa.String(64), nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("parts", JSON, nullable=False, default=dict),
    sa.Column("expires", Utc, nullable=False, index=True),
)
xorb = sa.Table(
    "xorb",
    metadata,
    sa.Column("scope", sa.String(64), primary_key=True),
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("expires", Utc, nullable=False, index=True),
)
yank = sa.Table(
    "yank",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("oid", sa.String(40), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.String(96), nullable=False),
    sa.Column("created", Utc, nullable=False, default=now),
)
discussion = sa.Table(
    "discussion",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("num", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("is_pull", sa.Boolean, nullable=False),
    sa.Column("title", sa.String(300), nullable=False),
    sa.Column("status", sa.String(8), nullable=False),  # draft | open | closed | merged
    sa.Column("author", sa.String(96), nullable=False),
    sa.Column("base", sa.String(260), nullable=False, server_default="refs/heads/main"),
    sa.Column("merged", sa.String(40)),  # the commit that merged it
    sa.Column("created", Utc, nullable=False, default=now),
)
comment = sa.Table(
    "comment",
    metadata,
    _id(),
    sa.Column("repo_id", sa.Integer, nullable=False),
    sa.Column("num", sa.Integer, nullable=False),
    sa.Column("author", sa.String(96), nullable=False),
    sa.Column("kind", sa.String(12), nullable=False, server_default="comment"),  # comment | status | commit
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created", Utc, nullable=False, default=now),
    sa.ForeignKeyConstraint(["repo_id", "num"], ["discussion.repo_id", "discussion.num"], ondelete="CASCADE"),
    sa.Index("ix_comment_repo_num", "repo_id", "num"),
)
liking = sa.Table(
    "liking",
    metadata,
    _to("account_id", "account.id", primary_key=True),
    _to("repo_id", "repo.id", primary_key=True, index=True),
    sa.Column("created", Utc, nullable=False, default=now),
)
watch = sa.Table(  # of what somebody wants to see news
    "watch",
    metadata,
    _to("account_id", "account.id", primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),  # task | owner
    sa.Column("target", sa.String(96), primary_key=True),
    sa.Column("created", Utc, nullable=False, default=now),
)
collection = sa.Table(
    "collection",
    metadata,
    _id(),
    _to("owner_id", "account.id"),
    sa.Column("name", sa.String(96), nullable=False),
    sa.Column("key", sa.String(96), nullable=False),  # the name in lower case
    sa.Column("title", sa.String(200), nullable=False),
    sa.Column("note", sa.Text, nullable=False, server_default=""),
    sa.Column("setup", sa.String(16), nullable=False, server_default=""),
    sa.Column("updated", Utc, nullable=False, default=now, index=True),
    sa.UniqueConstraint("owner_id", "key"),
)
collected = sa.Table(
    "collected",
    metadata,
    _to("collection_id", "collection.id", primary_key=True),
    _to("repo_id", "repo.id", primary_key=True, index=True),
    sa.Column("position", sa.Integer, nullable=False),
)
download_day = sa.Table(
    "download_day",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)

# ---- what adapters are: derived from the files of the default branch ------------------------------------------------

adapter = sa.Table(
    "adapter",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("oid", sa.String(40), nullable=False),  # the commit it was derived from
    sa.Column("type", sa.String(16)),  # text_task | text_lang
    sa.Column("task", sa.String(64)),
    sa.Column("subtask", sa.String(64)),
    sa.Column("library", sa.String(16), nullable=False),  # adapters | peft | other
    sa.Column("library_name", sa.String(64)),  # these three as the protocol's model object shows them
    sa.Column("pipeline_tag", sa.String(64)),
    sa.Column("model_config", JSON, nullable=False, default=dict),
    sa.Column("method", sa.String(32)),  # bottleneck, lora, ia3, prefix_tuning, …, union
    sa.Column("config_name", sa.String(32)),  # seq_bn, double_seq_bn, lora, …, where it is one of the named ones
    sa.Column("config_id", sa.String(16)),  # SPEC.md 1.6
    sa.Column("config", JSON),
    sa.Column("base_model", sa.String(200)),
    sa.Column("model_type", sa.String(64)),
    sa.Column("model_class", sa.String(96)),
    sa.Column("hidden_size", sa.Integer),
    sa.Column("layers", sa.Integer),
    sa.Column("reduction_factor", sa.Float),
    sa.Column("rank", sa.Integer),
    sa.Column("non_linearity", sa.String(32)),
    sa.Column("head_type", sa.String(40)),  # None: no prediction head
    sa.Column("parameters", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("license", sa.String(64)),
    sa.Column("languages", JSON, nullable=False, default=list),
    sa.Column("datasets", JSON, nullable=False, default=list),
    sa.Column("tags", JSON, nullable=False, default=list),  # as the model object of the protocol shows them
    sa.Column("card", JSON, nullable=False, default=dict),  # the front matter
    sa.Column("summary", sa.Text, nullable=False, server_default=""),  # first sentence of the card
    sa.Column("title", sa.String(200), nullable=False, server_default=""),
    sa.Column("checks", JSON, nullable=False, default=list),
    sa.Column("errors", sa.Integer, nullable=False, server_default="0"),  # how many checks failed
    sa.Column("legacy_id", sa.String(200), index=True),  # "@org/file" of the old hub
    sa.Column("search", sa.Text, nullable=False, server_default=""),  # what full-text search reads, in lower case
    # Copied from repo, so that a list needs one table: kept by repos.py and the indexer.
    sa.Column("visible", sa.Boolean, nullable=False, server_default=sa.true()),  # an adapter, public, not yanked
    sa.Column("updated", Utc, nullable=False),
    sa.Column("downloads", sa.Integer, nullable=False, server_default="0"),
    sa.Column("trending", sa.Integer, nullable=False, server_default="0"),
    # These also hold what lists are sorted by most, so that a page's rows alone are read.
    sa.Index("ix_adapter_place", "visible", "task", "subtask", "type", "base_model", "downloads"),
    sa.Index("ix_adapter_base", "visible", "base_model", "task", "method", "downloads"),
    # Counts of facets are read from this index alone; rows are some kilobytes each.
    sa.Index(
        "ix_adapter_facets",
        *("visible", "method", "base_model", "model_type", "type", "task", "subtask"),
        *("config_name", "library", "head_type", "license", "downloads", "updated"),
        *("errors", "parameters", "reduction_factor", "rank"),
    ),
    sa.Index("ix_adapter_shape", "visible", "model_type", "hidden_size", "layers", "task", "subtask", "downloads"),
    sa.Index("ix_adapter_updated", "visible", "updated"),
    sa.Index("ix_adapter_downloads", "visible", "downloads"),
    sa.Index("ix_adapter_trending", "visible", "trending"),
)
adapter_tag = sa.Table(
    "adapter_tag",
    metadata,
    sa.Column("tag", sa.String(200), primary_key=True),
    _to("repo_id", "repo.id", primary_key=True, index=True),
)
name_part = sa.Table(  # words of repositories' names, and what is left of them without a letter or two
    "name_part",
    metadata,
    sa.Column("part", sa.String(32), primary_key=True),
    sa.Column("word", sa.String(32), primary_key=True),
)
dependency = sa.Table(
    "dependency",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("target", sa.String(200), primary_key=True, index=True),
    sa.Column("note", sa.String(300), nullable=False, server_default=""),
)
evaluation = sa.Table(
    "evaluation",
    metadata,
    _id(),
    _to("repo_id", "repo.id", index=True),
    sa.Column("task", sa.String(64)),
    sa.Column("subtask", sa.String(64)),
    sa.Column("dataset", sa.String(200)),
    sa.Column("split", sa.String(64)),
    sa.Column("metric", sa.String(64), nullable=False),  # as the taxonomy spells it, else in lower case
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("source", sa.String(12), nullable=False),  # card | legacy
    sa.Index("ix_evaluation_place", "task", "subtask", "metric"),
)
check_report = sa.Table(  # of commits on pull requests and other branches
    "check_report",
    metadata,
    _to("repo_id", "repo.id", primary_key=True),
    sa.Column("oid", sa.String(40), primary_key=True),
    sa.Column("checks", JSON, nullable=False),
    sa.Column("created", Utc, nullable=False, default=now),
)
preferred = sa.Table(  # the explicit default of a place
    "preferred",
    metadata,
    sa.Column("base_model", sa.String(200), primary_key=True),
    sa.Column("task", sa.String(64), primary_key=True),
    sa.Column("subtask", sa.String(64), primary_key=True),
    _to("repo_id", "repo.id"),
)

upstream_namespace = sa.Table(  # whose repositories have come from the hub behind this one
    "upstream_namespace",
    metadata,
    sa.Column("name", sa.String(96), primary_key=True),
    sa.Column("name_key", sa.String(96), nullable=False, index=True),
    sa.Column("repo", sa.String(200), nullable=False),  # the first of them
)

# ---- the taxonomy ---------------------------------------------------------------------------------------------------

task = sa.Table(
    "task",
    metadata,
    sa.Column("type", sa.String(16), primary_key=True),  # text_task | text_lang
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("displayname", sa.String(200), nullable=False),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
)
subtask = sa.Table(
    "subtask",
    metadata,
    sa.Column("task", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("displayname", sa.String(200), nullable=False, server_default=""),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("datasets_id", sa.String(200), index=True),  # on the Hugging Face hub
    sa.Column("url", sa.Text),
    sa.Column("citation", sa.Text),
    sa.Column("language", sa.String(64)),
    sa.Column("metric", sa.String(64)),
    sa.Column("higher_is_better", sa.Boolean),
)
architecture = sa.Table(
    "architecture",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("displayname", sa.String(200), nullable=False),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("citation", sa.Text),
    sa.Column("config", JSON, nullable=False),
)

# ---- running a hub --------------------------------------------------------------------------------------------------

lease = sa.Table(  # so that of several workers one runs a job
    "lease",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("expires", Utc, nullable=False),
)
rate = sa.Table(  # requests per window, where several workers must count together
    "rate",
    metadata,
    sa.Column("key", sa.String(120), primary_key=True),
    sa.Column("window", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("count", sa.Integer, nullable=False),
)
