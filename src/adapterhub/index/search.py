"""Finding adapters: filters, facets, full text, pages; and the tree of tasks and languages.

Full text is kept by the database: an FTS5 table of trigrams in SQLite, a trigram index in PostgreSQL.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.operators import custom_op

from .. import names
from ..accounts import Principal
from ..db import schema
from ..db.counts import Counts
from ..errors import BadRequest

__all__ = [
    "FACETS",
    "SORTS",
    "Page",
    "Query",
    "holds",
    "matches",
    "prepare",
    "put",
    "query",
    "remove",
    "sorting",
    "tree",
    "visible_to",
]

FACETS = (
    "type",
    "task",
    "subtask",
    "base_model",
    "model_type",
    "method",
    "config_name",
    "library",
    "head_type",
    "license",
)
SORTS = ("downloads", "updated", "created", "parameters")
_FACET_VALUES = 60
_MAX_WORDS, _MAX_GRAMS = 12, 60
_COMMON = 2000
_UNKNOWN = 2**62  # parameters of adapters that do not tell: they come last

_adapter = schema.adapter.c
_fts = sa.table("adapter_fts", sa.column("rowid"), sa.column("text"), sa.column("adapter_fts"))


# ---- full text ------------------------------------------------------------------------------------------------------


async def prepare(conn: AsyncConnection) -> None:
    """Makes what full-text search needs and migrations do not know: it depends on the kind of database."""
    if conn.dialect.name == "sqlite":
        await conn.exec_driver_sql(
            "CREATE VIRTUAL TABLE IF NOT EXISTS adapter_fts USING fts5(text, tokenize='trigram', detail='none')"
        )
        return
    try:
        async with conn.begin_nested():
            await conn.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            await conn.exec_driver_sql(
                "CREATE INDEX IF NOT EXISTS ix_adapter_search ON adapter USING gin (search gin_trgm_ops)"
            )
    except DBAPIError:
        pass  # Without the right to add extensions, search reads every row: slower, but right.


async def put(conn: AsyncConnection, repo_id: int, text: str) -> None:
    """Makes a text the one that is found for a repository."""
    if conn.dialect.name == "sqlite":
        await conn.execute(sa.insert(_fts).values(rowid=repo_id, text=text))


async def remove(conn: AsyncConnection, repo_id: int) -> None:
    """Forgets the text of a repository."""
    if conn.dialect.name == "sqlite":
        await conn.execute(sa.delete(_fts).where(_fts.c.rowid == repo_id))


def matches(conn: AsyncConnection, words: str) -> sa.ColumnElement[bool]:
    """Whether the text of `adapter.repo_id` holds every word."""
    grams = _grams(_words(words))
    if not grams or conn.dialect.name != "sqlite":
        return _contains(words)
    # The index keeps no positions: it finds texts with all trigrams, of which those with all words are taken.
    return sa.and_(_adapter.repo_id.in_(sa.select(_fts.c.rowid).where(_has(grams))), _contains(words))


async def holds(conn: AsyncConnection, words: str) -> sa.ColumnElement[bool]:
    """As `matches`, for lists of which a page is shown: common words are looked for in the order of the list."""
    if await _is_common(conn, words):
        return _contains(words)
    return matches(conn, words)


def _contains(words: str) -> sa.ColumnElement[bool]:
    return sa.and_(sa.true(), *(_adapter.search.contains(word, autoescape=True) for word in _words(words)))


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.lower().replace("\0", " ").split()))[:_MAX_WORDS]


def _grams(words: Sequence[str]) -> str:
    """The query that finds all trigrams of some words; empty where the words are too short to have any."""
    grams = (word[i : i + 3] for word in words for i in range(len(word) - 2))
    quoted = ('"{}"'.format(gram.replace('"', '""')) for gram in list(dict.fromkeys(grams))[:_MAX_GRAMS])
    return " AND ".join(quoted)


def _has(grams: str) -> sa.ColumnElement[bool]:
    return sa.literal_column("adapter_fts").bool_op("MATCH")(grams)


async def _is_common(conn: AsyncConnection, words: str) -> bool:
    """Whether so many texts have some words that it is quicker to look for them in the order of the list."""
    if conn.dialect.name != "sqlite":
        return False
    grams = _grams(_words(words))
    if not grams:  # the shortest words are in most texts, and the index does not have them
        return True
    some = sa.select(_fts.c.rowid).where(_has(grams)).limit(_COMMON).subquery()
    return (await conn.execute(sa.select(sa.func.count()).select_from(some))).scalar_one() == _COMMON


# ---- lists ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """What is looked for. Filters left at None let everything pass.

    Attributes:
        q: words that must all be found, in names, titles, tags and the like.
        language: code of a language among the card's.
        head: whether it has a prediction head.
        parameters_max: largest number of parameters.
        ok: only adapters without failing checks.
        sort: one of `SORTS`, the largest or newest first, but the smallest first for `parameters`.
        cursor: of the page before.
    """

    q: str | None = None
    type: str | None = None
    task: str | None = None
    subtask: str | None = None
    base_model: str | None = None
    model_type: str | None = None
    method: str | None = None
    config_name: str | None = None
    library: str | None = None
    head_type: str | None = None
    license: str | None = None
    namespace: str | None = None
    language: str | None = None
    head: bool | None = None
    reduction_factor_min: float | None = None
    reduction_factor_max: float | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    parameters_max: int | None = None
    ok: bool = False
    sort: str = "downloads"
    cursor: str | None = None
    limit: int = 30


@dataclass(frozen=True)
class Page:
    """A page of adapters.

    Attributes:
        rows: columns of `adapter`, with `namespace`, `name`, `full_name`, `private`, `likes` and `created` of `repo`.
        total: how many there are on all pages.
        facets: facet to `[(value, count), …]`; each is counted as if its own filter were not set.
        cursor: for the next page; None on the last one.
    """

    rows: Sequence[Mapping[str, Any]]
    total: int
    facets: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    cursor: str | None = None


def visible_to(principal: Principal) -> sa.ColumnElement[bool]:
    """Whether a row of `adapter` may be listed: it is public, or in a namespace of the caller's; and not yanked."""
    return sa.or_(*_visible_parts(principal))


def _visible_parts(principal: Principal) -> list[sa.ColumnElement[bool]]:
    """The public adapters, and those only the caller's namespaces see; apart, each is found through an index."""
    own = _readable(principal)
    if not own:
        return [_adapter.visible]
    mine = sa.select(schema.repo.c.id).where(
        schema.repo.c.owner_id.in_(sa.select(schema.account.c.id).where(schema.account.c.name.in_(own))),
        schema.repo.c.private,
        schema.repo.c.yanked.is_(None),
    )
    withdrawn = sa.exists().where(schema.yank.c.repo_id == _adapter.repo_id, schema.yank.c.oid == _adapter.oid)
    hidden = sa.and_(
        sa.not_(_adapter.visible), _adapter.repo_id.in_(mine), _adapter.library != "other", sa.not_(withdrawn)
    )
    return [_adapter.visible, hidden]


def _readable(principal: Principal) -> tuple[str, ...]:
    """The namespaces whose private repositories the caller may list."""
    return tuple(sorted(name for name in principal.namespaces if principal.may_read(name, name)))


async def query(
    conn: AsyncConnection, asked: Query, principal: Principal, *, facets: bool = True, counts: Counts | None = None
) -> Page:
    """A page of adapters that the caller may see.

    Args:
        facets: whether they are counted too.
        counts: where the total and the facets are kept; without it they are counted.

    Raises:
        BadRequest: the sort or the cursor is not one of ours.
    """
    if asked.sort not in SORTS:
        raise BadRequest(f"sort={asked.sort!r} is not one of {', '.join(SORTS)}.")
    limit = min(max(asked.limit, 1), 100)
    filters, parts = _filters(conn, asked), _visible_parts(principal)
    passing, order = dict(filters), _order(asked.sort)
    if "q" in filters and await _is_common(conn, asked.q or ""):
        passing["q"] = _contains(asked.q or "")
    elif filters.keys() - {"q"}:
        order = order._replace(key=sorting(conn, order.key))
    if asked.cursor:
        passing["cursor"] = _after(asked.cursor, asked.sort, order)
    found = (await conn.execute(_page(parts, list(passing.values()), order, limit + 1))).all()
    # Keys first, from an index where there is one, then the wide rows of this page only.
    rows = await _rows(conn, [number for number, _ in found[:limit]])
    is_whole = len(found) <= limit and not asked.cursor
    if is_whole and not facets:
        return Page(rows, len(found))
    count = partial(_count, parts=parts, filters=filters, facets=facets)
    key = (facets, _readable(principal), replace(asked, sort="", cursor=None, limit=0))
    total, counted = await (counts.get(conn, key, count) if counts else count(conn))
    following = _encode(asked.sort, *found[limit - 1]) if len(found) > limit else None
    return Page(rows, len(found) if is_whole else total, counted, following)


def _page(
    parts: Sequence[sa.ColumnElement[bool]], where: Sequence[sa.ColumnElement[bool]], order: _Order, limit: int
) -> sa.CompoundSelect[Any]:
    """Ids and sort keys of the first `limit` adapters of all parts."""
    key, largest_first = order

    def ordered(*columns: sa.ColumnElement[Any]) -> list[sa.ColumnElement[Any]]:
        return [column.desc() if largest_first else column.asc() for column in columns]

    columns = (_adapter.repo_id.label("number"), key.label("sort_key"))
    firsts = [
        sa.select(*columns).where(part, *where).order_by(*ordered(key, _adapter.repo_id)).limit(limit).subquery()
        for part in parts
    ]
    merged = sa.union_all(*(sa.select(first.c.number, first.c.sort_key) for first in firsts))
    shown = merged.selected_columns
    return merged.order_by(*ordered(shown.sort_key, shown.number)).limit(limit)


class _Order(NamedTuple):
    """What a list is sorted by before the id, and whether the largest comes first."""

    key: sa.ColumnElement[Any]
    largest_first: bool


def _order(sort: str) -> _Order:
    if sort == "parameters":
        return _Order(sa.func.coalesce(_adapter.parameters, _UNKNOWN), False)
    # Ids are given in the order of creation.
    return _Order(_adapter["repo_id" if sort == "created" else sort], True)


def sorting(conn: AsyncConnection, key: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """A key such that what passes some filters is found first and then sorted.

    SQLite, which has no statistics here, would rather walk an index in the order of the key and look into every row,
    though few may pass. It uses no index for a key with a plus before it, which PostgreSQL does not need.
    """
    if conn.dialect.name != "sqlite":
        return key
    return sa.UnaryExpression(key, operator=custom_op("+"), type_=key.type)


async def _rows(conn: AsyncConnection, ids: Sequence[int]) -> list[Mapping[str, Any]]:
    """The rows of some adapters, in the order of their ids."""
    columns = [column for column in schema.adapter.c if column.name not in ("search", "card")]
    extra = [schema.repo.c[name] for name in ("namespace", "name", "private", "likes", "created")]
    statement = sa.select(*columns, *extra).join(schema.repo, schema.repo.c.id == _adapter.repo_id)
    found = (await conn.execute(statement.where(_adapter.repo_id.in_(ids)))).mappings()
    known = {row["repo_id"]: {**row, "full_name": f"{row['namespace']}/{row['name']}"} for row in found}
    return [known[number] for number in ids if number in known]


def _filters(conn: AsyncConnection, asked: Query) -> dict[str, sa.ColumnElement[bool]]:
    """Name of a filter to its condition."""
    given = {item.name: getattr(asked, item.name) for item in fields(asked) if getattr(asked, item.name) is not None}
    found = {name: _adapter[name] == given[name] for name in FACETS if given.get(name)}
    for name in ("reduction_factor", "rank", "parameters"):
        if f"{name}_min" in given:
            found[f"{name}_min"] = _adapter[name] >= given[f"{name}_min"]
        if f"{name}_max" in given:
            found[f"{name}_max"] = _adapter[name] <= given[f"{name}_max"]
    if asked.head is not None:
        found["head"] = _adapter.head_type.is_not(None) if asked.head else _adapter.head_type.is_(None)
    if asked.language:
        tagged = sa.select(schema.adapter_tag.c.repo_id).where(schema.adapter_tag.c.tag == asked.language)
        found["language"] = _adapter.repo_id.in_(tagged)
    if asked.namespace:
        owner = sa.select(schema.account.c.id).where(schema.account.c.name_key == names.key(asked.namespace))
        owned = sa.select(schema.repo.c.id).where(schema.repo.c.owner_id == owner.scalar_subquery())
        found["namespace"] = _adapter.repo_id.in_(owned)
    if asked.ok:
        found["ok"] = _adapter.errors == 0
    if asked.q and asked.q.strip():
        found["q"] = matches(conn, asked.q)
    return found


# A page begins after the last adapter of the one before, so that nothing is shown twice when others are added.


def _encode(sort: str, number: int, value: Any) -> str:
    shown = value.isoformat() if isinstance(value, datetime) else value
    return base64.urlsafe_b64encode(json.dumps([sort, shown, number]).encode()).decode().rstrip("=")


def _after(cursor: str, sort: str, order: _Order) -> sa.ColumnElement[bool]:
    try:
        its_sort, value, number = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        last = (datetime.fromisoformat(value) if sort == "updated" else _whole(value), _whole(number))
    except (ValueError, TypeError) as error:
        raise BadRequest(f"cursor={cursor!r} is none of this hub. Begin at the first page.") from error
    if its_sort != sort:
        raise BadRequest(f"cursor={cursor!r} is of a list in another order. Begin at the first page.")
    key, largest_first = order
    here = sa.tuple_(key, _adapter.repo_id)
    bound = sa.tuple_(*(sa.literal(item, column.type) for item, column in zip(last, (key, _adapter.repo_id))))
    return here < bound if largest_first else here > bound


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(value)
    return value


# ---- facets ---------------------------------------------------------------------------------------------------------

_Counted = tuple[int, dict[str, list[tuple[str, int]]]]


async def _count(
    conn: AsyncConnection,
    parts: Sequence[sa.ColumnElement[bool]],
    filters: Mapping[str, sa.ColumnElement[bool]],
    facets: bool,
) -> _Counted:
    if not facets:
        hit = _hits([sa.func.count().label("count")], parts, list(filters.values())).subquery()
        return int((await conn.execute(sa.select(sa.func.sum(hit.c.count)))).scalar_one()), {}
    free = [name for name in FACETS if name not in filters]
    hits = _hits([_adapter[name] for name in free], parts, list(filters.values())).cte("hits")
    hits = hits.prefix_with("MATERIALIZED")
    queries = [sa.select(sa.literal(""), sa.literal(None, sa.String), sa.func.count()).select_from(hits)]
    queries += [
        sa.select(sa.literal(name), hits.c[name], sa.func.count())
        .where(hits.c[name].is_not(None))
        .group_by(hits.c[name])
        for name in free
    ]
    rows = list(await conn.execute(sa.union_all(*queries)))
    for name in filters.keys() & set(FACETS):
        others = [condition for other, condition in filters.items() if other != name]
        hit = _hits([_adapter[name]], parts, [*others, _adapter[name].is_not(None)]).subquery()
        rows += await conn.execute(sa.select(sa.literal(name), hit.c[name], sa.func.count()).group_by(hit.c[name]))
    found: dict[str, list[tuple[str, int]]] = {name: [] for name in FACETS}
    total = 0
    for name, value, count in rows:
        if name:
            found[name].append((value, count))
        else:
            total = count
    best = {
        name: sorted(values, key=lambda item: (-item[1], item[0]))[:_FACET_VALUES] for name, values in found.items()
    }
    return total, best


def _hits(
    columns: Sequence[sa.ColumnElement[Any]],
    parts: Sequence[sa.ColumnElement[bool]],
    where: Sequence[sa.ColumnElement[bool]],
) -> sa.CompoundSelect[Any]:
    return sa.union_all(*(sa.select(*columns).select_from(schema.adapter).where(part, *where) for part in parts))


_Tree = dict[str, dict[str, dict[str, int]]]


async def tree(conn: AsyncConnection, counts: Counts | None = None) -> _Tree:
    """How many public adapters stand at each place: type -> task -> subtask (or "") -> count.

    Args:
        counts: where they are kept; without it they are counted.
    """
    return await (counts.get(conn, "tree", _tree) if counts else _tree(conn))


async def _tree(conn: AsyncConnection) -> _Tree:
    place = (_adapter.type, _adapter.task, _adapter.subtask)
    counts = sa.select(*place, sa.func.count()).where(_adapter.visible, _adapter.task.is_not(None)).group_by(*place)
    found: dict[str, dict[str, dict[str, int]]] = {"text_task": {}, "text_lang": {}}
    for kind, task, subtask, count in await conn.execute(counts):
        found.setdefault(kind or "text_task", {}).setdefault(task, {})[subtask or ""] = count
    return found
