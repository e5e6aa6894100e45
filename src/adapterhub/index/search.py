"""Finding adapters: filters, facets, full text, pages; and the tree of tasks and languages.

Full text is kept by the database: an FTS5 table of trigrams in SQLite, a trigram index in PostgreSQL.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.operators import custom_op

from .. import names
from ..accounts import ANONYMOUS, Principal
from ..db import schema
from ..db.counts import Counts
from ..errors import BadRequest
from ..facts.lexicon import Concept, Lexicon, stem, words_of
from . import compat, own_names, scoring
from .compat import Shape
from .visible import readable, visible_parts, visible_to

__all__ = [
    "FACETS",
    "RELEVANCE",
    "SCORE",
    "SORTS",
    "Page",
    "Query",
    "corrected",
    "holds",
    "matches",
    "prepare",
    "put",
    "places",
    "query",
    "remove",
    "rows_of",
    "sorting",
    "stack",
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
SORTS = ("downloads", "trending", "updated", "created", "parameters")
RELEVANCE = "relevance"  # and then downloads
SCORE = "score"  # of one data set
_FACET_VALUES = 60
_MAX_WORDS, _MAX_GRAMS = 12, 60
_COMMON = 2000
_TRIED = 5  # of the known words that are near a mistyped one
_JOINING = frozenset(("an", "and", "by", "for", "from", "in", "of", "on", "the", "to", "with"))
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


@dataclass(frozen=True)
class _Term:
    """A part of what is looked for: words that a text must hold, or else what an adapter must be of.

    Attributes:
        words: all of which the text must hold.
        tags: one of which it has, or
        methods: it is of one of them: the method and, where it is one of several, the named config.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] = ()
    methods: tuple[tuple[str, str | None], ...] = ()

    @property
    def means(self) -> bool:
        """Whether it means something that the lexicon knows."""
        return bool(self.tags or self.methods)


@lru_cache(maxsize=500)
def _phrases(text: str) -> tuple[tuple[str, tuple[Concept, ...]], ...]:
    return tuple(Lexicon.packaged().phrases(" ".join(_words(text))))


def _looked_for(text: str) -> list[tuple[str, tuple[Concept, ...]]]:
    """The phrases of a text without words that only join others, unless there are no others."""
    phrases = _phrases(text)
    return [(phrase, meant) for phrase, meant in phrases if meant or phrase not in _JOINING] or list(phrases)


def _terms(text: str) -> list[_Term]:
    """What each phrase of a text means; the words that mean nothing are one term."""
    found, plain = [], []
    for phrase, meant in _looked_for(text):
        words = list(map(stem, phrase.split()))
        tags = dict.fromkeys(tag for concept in meant for tag in concept.tags)
        methods = dict.fromkeys((concept.method, concept.config) for concept in meant if concept.method)
        if meant:
            found.append(_Term(tuple(words), tuple(tags), tuple(methods)))
        else:
            plain += words
    return [*found, *([_Term(tuple(plain))] if plain else [])]


@dataclass(frozen=True)
class _Search:
    """Words that are looked for, as conditions on `adapter`.

    Attributes:
        all: whether it fits, in whatever way.
        best: whether it fits what the words mean, wherever they mean something; None where none does.
    """

    all: sa.ColumnElement[bool]
    best: sa.ColumnElement[bool] | None


def matches(conn: AsyncConnection, text: str) -> sa.ColumnElement[bool]:
    """Whether an adapter fits each term of a text: its own words hold the term's, or it is of what they mean."""
    return _search(conn, _terms(text)).all


async def holds(conn: AsyncConnection, text: str) -> sa.ColumnElement[bool]:
    """As `matches`, for lists of which a page is shown: common words are looked for in the order of the list."""
    terms = _terms(text)
    return _search(conn, terms, await _common(conn, terms)).all


async def corrected(conn: AsyncConnection, text: str) -> str:
    """A text without its typos, where no public adapter fits it as it is."""
    right = await _corrected(conn, text, ANONYMOUS)
    if right == words_of(text):
        return text
    fitting = sa.select(_adapter.repo_id).where(_adapter.visible, matches(conn, text)).limit(1)
    return text if (await conn.execute(fitting)).first() else right


async def _corrected(conn: AsyncConnection, text: str, principal: Principal) -> str:
    """A text with each word that means nothing replaced by the nearest one that is known, or is in a name that the
    caller may see; a word that is in one stays."""
    lexicon, right = Lexicon.packaged(), words_of(text)
    for word, own in (await own_names.near(conn, lexicon.mistyped(text))).items():
        ranked = [(typos, True, near) for typos, near in own] + [
            (typos, False, near) for typos, near in lexicon.near_words(word)
        ]
        for _, is_own, near in sorted(ranked, key=lambda item: item[:2])[:_TRIED]:
            if not is_own or await _is_seen(conn, near, principal):
                right = " ".join(near if other == word else other for other in right.split())
                break
    return right


async def _is_seen(conn: AsyncConnection, word: str, principal: Principal) -> bool:
    """Whether an adapter that the caller may see has a word."""
    has = _holding(conn, (word,), True)
    if conn.dialect.name == "sqlite":
        some = sa.select(_fts.c.rowid).where(_has(_grams((word,)))).limit(_COMMON)
        has = sa.and_(_adapter.repo_id.in_(some), has)
    parts = visible_parts(principal, sorting(conn, _adapter.visible) == sa.true())
    return any([(await conn.execute(sa.select(_adapter.repo_id).where(part, has).limit(1))).first() for part in parts])


def _search(conn: AsyncConnection, terms: Sequence[_Term], common: Container[_Term] = ()) -> _Search:
    """Args:
    common: the terms for which each row is looked at; what fits the others is collected first.
    """
    best = [_of(term, term in common) if term.means else _holding(conn, term.words, term in common) for term in terms]
    either = [_either(conn, term, term in common) if term.means else fits for term, fits in zip(terms, best)]
    means = any(term.means for term in terms)
    return _Search(sa.and_(sa.true(), *either), sa.and_(*best) if means else None)


def _of(term: _Term, in_order: bool) -> sa.ColumnElement[bool]:
    """Whether an adapter is of what a term means."""
    if not term.tags:
        return _made_by(term)
    tagged = _tagged(term)
    if in_order:
        tags: sa.ColumnElement[bool] = tagged.where(schema.adapter_tag.c.repo_id == _adapter.repo_id).exists()
    else:
        tags = _adapter.repo_id.in_(tagged)
    return sa.or_(tags, _made_by(term)) if term.methods else tags


def _made_by(term: _Term, of: Any = _adapter) -> sa.ColumnElement[bool]:
    """Whether an adapter is of one of the methods of a term."""
    return sa.or_(
        *(
            sa.and_(of.method == method, *([of.config_name == config] if config else []))
            for method, config in term.methods
        )
    )


def _tagged(term: _Term) -> sa.Select[tuple[int]]:
    return sa.select(schema.adapter_tag.c.repo_id).where(schema.adapter_tag.c.tag.in_(term.tags))


def _either(conn: AsyncConnection, term: _Term, in_order: bool) -> sa.ColumnElement[bool]:
    """Whether an adapter is of what a term means, or holds its words."""
    if in_order:
        return sa.or_(_of(term, in_order), _holding(conn, term.words, in_order))
    other = schema.adapter.alias()
    parts: list[sa.Select[Any]] = [sa.select(other.c.repo_id).where(_holding(conn, term.words, False, other.c))]
    if term.tags:
        parts.append(_tagged(term))
    if term.methods:
        parts.append(sa.select(other.c.repo_id).where(_made_by(term, other.c)))
    return _adapter.repo_id.in_(sa.union_all(*parts))


def _holding(conn: AsyncConnection, words: Sequence[str], in_order: bool, of: Any = _adapter) -> sa.ColumnElement[bool]:
    """Whether the text of an adapter holds all words."""
    contains = sa.and_(sa.true(), *(of.search.contains(word, autoescape=True) for word in words))
    grams = _grams(words)
    if in_order or not grams or conn.dialect.name != "sqlite":
        return contains
    # The index keeps no positions: it finds texts with all trigrams, of which those with all words are taken.
    return sa.and_(of.repo_id.in_(sa.select(_fts.c.rowid).where(_has(grams))), contains)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.lower().replace("\0", " ").split()))[:_MAX_WORDS]


def _grams(words: Sequence[str]) -> str:
    """The query that finds all trigrams of some words; empty where the words are too short to have any."""
    grams = (word[i : i + 3] for word in words for i in range(len(word) - 2))
    quoted = ('"{}"'.format(gram.replace('"', '""')) for gram in list(dict.fromkeys(grams))[:_MAX_GRAMS])
    return " AND ".join(quoted)


def _has(grams: str) -> sa.ColumnElement[bool]:
    return sa.literal_column("adapter_fts").bool_op("MATCH")(grams)


async def _common(conn: AsyncConnection, terms: Sequence[_Term]) -> list[_Term]:
    """The terms that so many adapters fit that it is quicker to look at each row than to collect them first."""
    return [term for term in terms if await _is_common(conn, term)] if conn.dialect.name == "sqlite" else []


async def _is_common(conn: AsyncConnection, term: _Term) -> bool:
    if term.tags:
        return await _has_many(conn, _tagged(term))
    if term.methods:
        return await _has_many(conn, sa.select(_adapter.repo_id).where(_adapter.visible, _made_by(term)))
    # The shortest words are in most texts, and the index does not have them.
    grams = _grams(term.words)
    return not grams or await _has_many(conn, sa.select(_fts.c.rowid).where(_has(grams)))


async def _has_many(conn: AsyncConnection, rows: sa.Select[Any]) -> bool:
    some = rows.limit(_COMMON).subquery()
    return (await conn.execute(sa.select(sa.func.count()).select_from(some))).scalar_one() == _COMMON


def _reason(row: Mapping[str, Any], text: str) -> str:
    """Why a row of `adapter` fits a text: `matches the data set SST-2`; empty where nothing was looked for."""
    found = []
    values = (
        row[column] for column in ("task", "subtask", "method", "config_name", "base_model", "model_type", "license")
    )
    named = " ".join(
        [*row["tags"], *row["languages"], *row["datasets"], *filter(None, values), row["legacy_id"] or ""]
    ).lower()
    for phrase, meant in _looked_for(text):
        words = list(map(stem, phrase.split()))
        name = f"{row['full_name']} {row['title']}".lower()
        if of := next((concept for concept in meant if _is_of(row, concept)), None):
            found.append(f"the {of.title}")
        elif all(word in name for word in words):
            found.append("its name")
        elif all(word in row["summary"].lower() for word in words):
            found.append("its description")
        elif all(word in named for word in words):
            found.append("its tags")
        else:
            found.append("its card")
    return f"matches {' and '.join(dict.fromkeys(found))}" if found else ""


def _is_of(row: Mapping[str, Any], concept: Concept) -> bool:
    if concept.method:
        return row["method"] == concept.method and concept.config in (None, row["config_name"])
    return not set(concept.tags).isdisjoint(row["tags"])


# ---- lists ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """What is looked for. Filters left at None let everything pass.

    Attributes:
        q: words that must all be found, in names, titles, tags and the like, or what they mean: tasks, data sets,
            languages, models and methods by whatever name (`Lexicon`).
        language: code of a language among the card's.
        fits: name of a base model into which it loads, be it made for that one or for another of its type and sizes.
        shape: type and sizes of that model; by default as adapters for `fits` tell them.
        watched: tasks and owners, one of which it is of: `("task", "nli")`, `("owner", "acme")`.
        head: whether it has a prediction head.
        parameters_max: largest number of parameters.
        ok: only adapters without failing checks.
        sort: one of `SORTS`, the largest or newest first, but the smallest first for `parameters`; or `RELEVANCE`:
            first what fits the meaning of the words; or `SCORE`: the best first by what cards report for `task` and
            `subtask`. By default `RELEVANCE` where there are words, `SCORE` where `fits` or `shape` and a data set are
            given, else `downloads`.
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
    fits: str | None = None
    shape: Shape | None = None
    watched: tuple[tuple[str, str], ...] = ()
    head: bool | None = None
    reduction_factor_min: float | None = None
    reduction_factor_max: float | None = None
    rank_min: int | None = None
    rank_max: int | None = None
    parameters_max: int | None = None
    ok: bool = False
    sort: str | None = None
    cursor: str | None = None
    limit: int = 30


@dataclass(frozen=True)
class Page:
    """A page of adapters.

    Attributes:
        rows: columns of `adapter`, with `namespace`, `name`, `full_name`, `private`, `likes` and `created` of `repo`,
            the `reason` why it fits the words, and for `SCORE` the `score`, percentages as fractions, or None.
        total: how many there are on all pages.
        facets: facet to `[(value, count), …]`; each is counted as if its own filter were not set.
        cursor: for the next page; None on the last one.
        corrected: the words that were looked for instead, where those that were asked for are in no adapter.
        near: what else to look for, where nothing was found.
    """

    rows: Sequence[Mapping[str, Any]]
    total: int
    facets: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    cursor: str | None = None
    corrected: str | None = None
    near: Sequence[str] = ()


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
    if asked.fits and asked.shape is None:
        asked = replace(asked, shape=await compat.shape_of(conn, principal, asked.fits))
    found = await _query(conn, asked, principal, facets=facets, counts=counts)
    if found.rows or asked.cursor or not (asked.q and asked.q.strip()):
        return found
    right = await _corrected(conn, asked.q, principal)
    if right != words_of(asked.q):
        again = await _query(conn, replace(asked, q=right), principal, facets=facets, counts=counts)
        if again.rows:
            return replace(again, corrected=right)
    return replace(found, near=Lexicon.packaged().near(asked.q))


async def _query(
    conn: AsyncConnection, asked: Query, principal: Principal, *, facets: bool, counts: Counts | None
) -> Page:
    asks = bool(asked.q and asked.q.strip())
    sort = asked.sort or _usual_sort(asked)
    if sort not in (*SORTS, RELEVANCE, SCORE):
        raise BadRequest(f"sort={asked.sort!r} is not one of {', '.join((*SORTS, RELEVANCE, SCORE))}.")
    limit = min(max(asked.limit, 1), 100)
    filters, parts = _filters(conn, asked), visible_parts(principal)
    passing, order, sign = dict(filters), _order(sort), 1
    if sort == SCORE:
        if not (asked.task and asked.subtask):
            raise BadRequest("sort='score' needs 'task' and 'subtask': the data set whose scores are compared.")
        score, sign = await scoring.score(conn, asked.task, asked.subtask)
        order = _Order(score, True)
    tiers: dict[str, sa.ColumnElement[bool]] = {sort: sa.true()}
    if asks:
        terms = _terms(asked.q or "")
        common = await _common(conn, terms)
        wanted = _search(conn, terms, common)
        if len(common) < len(terms):
            # What fits the rarer words is collected first, by its ids.
            parts = visible_parts(principal, sorting(conn, _adapter.visible) == sa.true())
            order = order._replace(key=sorting(conn, order.key))
            filters["q"] = wanted.all
        tiers = {sort: wanted.all}
        if sort == RELEVANCE and wanted.best is not None:
            tiers = {sort: wanted.best, f"{sort}, others": sa.and_(wanted.all, sa.not_(wanted.best))}
        passing.pop("q")
    elif filters and sort != SCORE:
        order = order._replace(key=sorting(conn, order.key))
    begin, after = _after(asked.cursor, list(tiers), order) if asked.cursor else (sort, None)
    found: list[tuple[str, int, Any]] = []
    for tier in list(tiers)[list(tiers).index(begin) :]:
        where = [*passing.values(), tiers[tier], *([after] if after is not None and tier == begin else [])]
        rest = limit + 1 - len(found)
        found += [(tier, *row) for row in await conn.execute(_page(parts, where, order, rest))] if rest else []
    # Keys first, from an index where there is one, then the wide rows of this page only.
    rows = await rows_of(conn, [number for _, number, _ in found[:limit]])
    rows = [{**row, "reason": _reason(row, asked.q or "")} for row in rows]
    if sort == SCORE:
        scores = {number: value * sign if value > scoring.UNSCORED else None for _, number, value in found}
        rows = [{**row, "score": scores[row["repo_id"]]} for row in rows]
    is_whole = len(found) <= limit and not asked.cursor
    if is_whole and not facets:
        return Page(rows, len(found))
    if is_whole and not found and set(filters) == {"q"}:
        return Page([], 0, {name: [] for name in FACETS})
    count = partial(_count, parts=parts, filters=filters, facets=facets)
    key = (facets, readable(principal), replace(asked, sort=None, cursor=None, limit=0))
    total, counted = await (counts.get(conn, key, count) if counts else count(conn))
    following = _encode(*found[limit - 1]) if len(found) > limit else None
    return Page(rows, len(found) if is_whole else total, counted, following)


def _usual_sort(asked: Query) -> str:
    if asked.q and asked.q.strip():
        return RELEVANCE
    return SCORE if (asked.fits or asked.shape) and asked.task and asked.subtask else "downloads"


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
    column = {"created": "repo_id", RELEVANCE: "downloads", SCORE: "downloads"}.get(sort, sort)
    return _Order(_adapter[column], True)


def sorting(conn: AsyncConnection, key: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """A key such that what passes some filters is found first and then sorted.

    SQLite, which has no statistics here, would rather walk an index in the order of the key and look into every row,
    though few may pass. It uses no index for a key with a plus before it, which PostgreSQL does not need.
    """
    if conn.dialect.name != "sqlite":
        return key
    return sa.UnaryExpression(key, operator=custom_op("+"), type_=key.type)


async def rows_of(conn: AsyncConnection, ids: Sequence[int]) -> list[Mapping[str, Any]]:
    """The rows of some adapters, in the order of their ids."""
    columns = [column for column in schema.adapter.c if column.name not in ("search", "card")]
    extra = [schema.repo.c[name] for name in ("namespace", "name", "uid", "private", "likes", "created")]
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
    if asked.fits or asked.shape:
        found["fits"] = compat.loads_into(asked.fits, asked.shape or Shape())
    if asked.watched:
        tasks, owners = ([target for kind, target in asked.watched if kind == wanted] for wanted in ("task", "owner"))
        owner = sa.select(schema.account.c.id).where(schema.account.c.name.in_(owners))
        owned = sa.select(schema.repo.c.id).where(schema.repo.c.owner_id.in_(owner))
        spoken = sa.select(schema.adapter_tag.c.repo_id).where(schema.adapter_tag.c.tag.in_(tasks))
        of = (_adapter.task.in_(tasks), _adapter.repo_id.in_(owned), _adapter.repo_id.in_(spoken))
        found["watched"] = sa.or_(*of)
    if asked.ok:
        found["ok"] = _adapter.errors == 0
    if asked.q and asked.q.strip():
        found["q"] = matches(conn, asked.q)
    return found


# A page begins after the last adapter of the one before, so that nothing is shown twice when others are added.


def _encode(tier: str, number: int, value: Any) -> str:
    shown = value.isoformat() if isinstance(value, datetime) else value
    return base64.urlsafe_b64encode(json.dumps([tier, shown, number]).encode()).decode().rstrip("=")


def _after(cursor: str, tiers: Sequence[str], order: _Order) -> tuple[str, sa.ColumnElement[bool]]:
    """The tier that a page begins in, and what comes there after the page before."""
    try:
        tier, value, number = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        read: Callable[[Any], Any] = {"updated": datetime.fromisoformat, SCORE: _number}.get(tier, _whole)
        last = (read(value), _whole(number))
    except (ValueError, TypeError) as error:
        raise BadRequest(f"cursor={cursor!r} is none of this hub. Begin at the first page.") from error
    if tier not in tiers:
        raise BadRequest(f"cursor={cursor!r} is of a list in another order. Begin at the first page.")
    key, largest_first = order
    here = sa.tuple_(key, _adapter.repo_id)
    bound = sa.tuple_(*(sa.literal(item, column.type) for item, column in zip(last, (key, _adapter.repo_id))))
    return tier, here < bound if largest_first else here > bound


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


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


async def places(conn: AsyncConnection, asked: Query, principal: Principal) -> list[tuple[str, str, int]]:
    """Data sets at which adapters stand that pass all filters: task, subtask and number, those with most first."""
    place = (_adapter.task, _adapter.subtask)
    where = [*_filters(conn, asked).values(), _adapter.subtask.is_not(None)]
    hits = _hits(place, visible_parts(principal), where).subquery()
    count = sa.func.count()
    query = sa.select(hits.c.task, hits.c.subtask, count).group_by(hits.c.task, hits.c.subtask)
    rows = await conn.execute(query.order_by(count.desc(), hits.c.task, hits.c.subtask).limit(_FACET_VALUES))
    return [(task, subtask, number) for task, subtask, number in rows]


async def stack(
    conn: AsyncConnection,
    asked: Query,
    principal: Principal,
    *,
    language: str | None = None,
    task: str | None = None,
    subtask: str | None = None,
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """What may be stacked: adapters for languages, and those for tasks to stand on them, the most used first.

    Args:
        asked: which base model, and what else both must pass.
        language: what the first are for.
        task, subtask: what the second are for; of a data set, the best come first.
    """
    below = await query(conn, replace(asked, type="text_lang", task=language), principal, facets=False)
    above = await query(conn, replace(asked, type="text_task", task=task, subtask=subtask), principal, facets=False)
    return below.rows, above.rows


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
