"""Which adapter is meant by a name: one answer, or an error that lists what it can be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import names
from ..accounts import Principal
from ..db import schema
from ..errors import BadRequest, Conflict, HubError, NotFound, RepoNotFound
from ..facts import configs
from ..repos import refs, repos
from ..repos.repos import Repo
from . import base_models, leaderboard, search

__all__ = ["Hit", "default_of", "facts", "prefer", "resolve", "unprefer"]

_LISTED = 500  # candidates in an error
_POOL = 2000  # names that are looked through for near ones

_adapter, _repo = schema.adapter.c, schema.repo.c
_FACTS = ("task", "subtask", "base_model", "config_name", "config_id", "method", "legacy_id", "oid")
_COLUMNS = [_adapter.repo_id, *(_adapter[name] for name in _FACTS), _repo.namespace, _repo.name, _repo.created]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Hit:
    """What a name means.

    Attributes:
        id: the repository.
        revision: the commit.
        reason: why this one: `id`, `only` (nothing else fits), `preferred`, `score` or `newest`.
        facts: what it is: task, subtask, base model, config, organisation and so on.
        others: the facts of the adapters that fit as well.
    """

    id: str
    revision: str
    reason: str
    facts: Mapping[str, Any]
    others: Sequence[Mapping[str, Any]] = field(default_factory=list)


async def resolve(
    conn: AsyncConnection,
    principal: Principal,
    name: str,
    *,
    model: str | None = None,
    config: str | None = None,
    version: str | None = None,
) -> Hit:
    """The adapter that a name means.

    A name is read as `org/name[@revision]`, else as `@org/file` (its name on the old hub), `task/subtask[@org]`, or
    `place[@org]`, where the place is a task or a subtask. Everything is taken away that is of another base model,
    config or organisation, lacks the version, is yanked, or is hidden from the caller. None of these filters is ever
    given up for the sake of an answer.

    What a name has meant it does not come to mean something else without a word. A repository's id that was a task and
    a data set before the repository was made is an error that lists both; and a task that its author made up, and that
    is called like an account, leads nowhere.

    If several adapters are left, then

    1. one that the hub's administrators prefer for its task, subtask and base model is taken;
    2. else, where all of them stand at one such place and belong to one organisation, the one with the best score by
       the data set's metric, or where none has a score the one that was created last (a change of its card alone does
       not make it newer);
    3. else it is an error that lists them all.

    Scores are what their authors claim, and everyone may add an adapter. So neither may decide between organisations:
    what a name means to others would change with any upload.

    Args:
        model: name of the base model; `bert-base-uncased` and `google-bert/bert-base-uncased` are the same.
        config: a config's name (also an old one, such as `pfeiffer`) or its id of 16 hexadecimal digits.
        version: branch, tag or commit. Yanked ones are found by their full commit id only.

    Raises:
        NotFound: nothing fits; `details["near"]` lists what is near.
        Conflict: several adapters fit; `details["candidates"]` lists them.
        BadRequest: the name asks for another revision than `version`.
    """
    asked = _Asked(principal, name.strip(), model, config, version)
    found, problem = await _by_id(conn, asked)
    if found:
        await _require_first(conn, asked, found)
        return found
    for where in _readings(asked.name):
        rows = await _rows(conn, [*where, *asked.filters(), *asked.allowed()])
        revisions = await _revisions(conn, rows, version)
        rows = [row for row in rows if row["repo_id"] in revisions]
        if rows:
            return await _choose(conn, asked, _exactly(rows, config), revisions)
    raise problem or await _nothing(conn, asked)


async def prefer(conn: AsyncConnection, repo_id: int) -> Row:
    """Makes an adapter the one that is meant by its task, subtask and base model; returns its row.

    Raises:
        BadRequest: it has no task or no base model.
    """
    (row,) = await _rows(conn, [_adapter.repo_id == repo_id])
    if not row["task"] or not row["base_model"]:
        raise BadRequest(
            f"{_full_name(row)} names no task or no base model, so it cannot be preferred there. Add both to its card."
        )
    place = dict(zip(("base_model", "task", "subtask"), _place(row)))
    same = [schema.preferred.c[key] == value for key, value in place.items()]
    await conn.execute(sa.delete(schema.preferred).where(*same))
    await conn.execute(sa.insert(schema.preferred).values(**place, repo_id=repo_id))
    return row


async def unprefer(conn: AsyncConnection, repo_id: int) -> None:
    """Takes back that an adapter is preferred."""
    await conn.execute(sa.delete(schema.preferred).where(schema.preferred.c.repo_id == repo_id))


def facts(row: Row) -> dict[str, Any]:
    """What tells a candidate from others."""
    return {
        "id": _full_name(row),
        "org": row["namespace"],
        **{key: row[key] for key in ("task", "subtask", "base_model", "method", "config_id", "legacy_id")},
        "config": row["config_name"] or row["config_id"],
        "revision": row["oid"],
    }


# ---- readings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    principal: Principal
    name: str
    model: str | None
    config: str | None
    version: str | None

    def filters(self) -> list[sa.ColumnElement[bool]]:
        """What was asked for besides the name."""
        found = [base_models.same(self.model)] if self.model else []
        if self.config and re.fullmatch(r"[0-9a-f]{16}", self.config):
            found.append(_adapter.config_id == self.config)
        elif self.config:
            found.append(_adapter.config_name == configs.aliases().get(self.config, self.config))
        return found

    def allowed(self) -> list[sa.ColumnElement[bool]]:
        """What the caller may be led to."""
        return [search.visible_to(self.principal)]

    def __str__(self) -> str:
        given = {"model": self.model, "config": self.config, "version": self.version}
        rest = ", ".join(f"{key} {value!r}" for key, value in given.items() if value)
        return f"{self.name!r} ({rest})" if rest else repr(self.name)


def _readings(name: str) -> Iterable[list[sa.ColumnElement[bool]]]:
    """Conditions for each way to read a name, but for `org/name`."""
    if name.startswith("@"):
        # Everyone can write an old name into a card, so it counts in the namespace it names only.
        org = name[1:].partition("/")[0]
        yield [_adapter.legacy_id == name, _same(_repo.namespace, org)]
        return
    place, at, org = name.partition("@")
    task, slash, subtask = place.partition("/")
    of_org = [_same(_repo.namespace, org)] if at else []
    if slash:
        yield [_task(task), _named(_adapter.subtask, subtask), *of_org]
    elif place:
        yield [sa.or_(_task(place), _named(_adapter.subtask, place)), *of_org]


def _task(name: str) -> sa.ColumnElement[bool]:
    """Whether a task is called so; one that is not among those of the hub must not be called like an account."""
    account = sa.exists().where(schema.account.c.name_key == names.key(name))
    known = sa.exists().where(schema.task.c.id == _adapter.task)
    return sa.and_(_named(_adapter.task, name), sa.or_(known, ~account))


def _named(column: sa.ColumnElement[Any], text: str) -> sa.ColumnElement[bool]:
    """Whether a task or data set is called so, or so in lower case; an index can answer it."""
    return column.in_({text, text.lower()})


def _same(column: sa.ColumnElement[Any], text: str) -> sa.ColumnElement[bool]:
    return sa.func.lower(column) == text.lower()


async def _by_id(conn: AsyncConnection, asked: _Asked) -> tuple[Hit | None, HubError | None]:
    """The repository of that name, or why it does not fit."""
    full_name, at, revision = asked.name.partition("@")
    if full_name.count("/") != 1:
        return None, None
    try:
        repo = await repos.find(conn, asked.principal, full_name)
    except RepoNotFound:
        return None, None
    if at and asked.version and revision != asked.version:
        raise BadRequest(f"{asked.name!r} and version={asked.version!r} ask for two revisions. Leave one out.")
    rows = await _rows(conn, [_adapter.repo_id == repo.id, *asked.filters()])
    if not rows:
        return None, None
    version = revision if at else asked.version
    try:
        oid = await refs.oid_of(conn, repo, version or repo.default_branch)
        await _check_yanked(conn, repo, oid, version)
    except HubError as problem:
        return None, problem
    return Hit(repo.full_name, oid, "id", facts({**rows[0], "oid": oid})), None


async def _require_first(conn: AsyncConnection, asked: _Asked, found: Hit) -> None:
    """Refuses an id that was the name of a place before its repository was made.

    Raises:
        Conflict: it was; `details["candidates"]` lists the repository and the adapters at that place.
    """
    created = sa.select(_repo.created).where(_repo.key == found.id.lower()).scalar_subquery()
    for where in _readings(asked.name):
        older = await _rows(conn, [*where, *asked.filters(), *asked.allowed(), _repo.created < created])
        if rows := [row for row in older if _full_name(row) != found.id]:
            place = asked.name.partition("@")[0]
            raise Conflict(
                f"{asked} can mean {len(rows) + 1} adapters: {place!r} was the name of a task and a data set before "
                f"there was a repository of that id. Pass the id of another one, or '{found.id}@main' for this one.",
                details={"candidates": [found.facts, *map(facts, rows[:_LISTED])]},
            )


async def _check_yanked(conn: AsyncConnection, repo: Repo, oid: str, version: str | None) -> None:
    query = sa.select(schema.yank.c.reason).where(schema.yank.c.repo_id == repo.id, schema.yank.c.oid == oid)
    reason = repo.yanked if repo.yanked is not None else (await conn.execute(query)).scalar()
    if reason is not None and version != oid:
        what = repo.full_name if repo.yanked is not None else f"Revision {version or repo.default_branch!r} of it"
        raise NotFound(
            f"{repo.full_name} cannot be used as it is: {what} was yanked, because: {reason} Choose another revision "
            f"or adapter; who still needs exactly this one passes its commit: {repo.full_name}@{oid}",
            details={"near": []},
        )


# ---- rows and their revisions ---------------------------------------------------------------------------------------


async def _rows(conn: AsyncConnection, where: Iterable[sa.ColumnElement[bool]]) -> list[Row]:
    query = sa.select(*_COLUMNS).join(schema.repo, _repo.id == _adapter.repo_id).where(*where)
    return [*(await conn.execute(query.order_by(_repo.key))).mappings()]


async def _revisions(conn: AsyncConnection, rows: Sequence[Row], version: str | None) -> dict[int, str]:
    """The commit of a version in each repository that has it and has not yanked it."""
    if version is None:
        return {row["repo_id"]: row["oid"] for row in rows}
    found = {}
    for row in rows:
        repo = await repos.by_id(conn, row["repo_id"])
        try:
            oid = await refs.oid_of(conn, repo, version)
            await _check_yanked(conn, repo, oid, version)
        except HubError:
            continue
        found[repo.id] = oid
    return found


def _exactly(rows: list[Row], config: str | None) -> list[Row]:
    """Of adapters of a named config those with exactly its sizes, if there are any."""
    known = configs.named().get(configs.aliases().get(config or "", config or ""))
    exact = [row for row in rows if known is not None and row["config_id"] == configs.config_id(known)]
    return exact or rows


# ---- one of several -------------------------------------------------------------------------------------------------


async def _choose(conn: AsyncConnection, asked: _Asked, rows: list[Row], revisions: Mapping[int, str]) -> Hit:
    def hit(row: Row, reason: str) -> Hit:
        found, *others = (facts({**one, "oid": revisions[one["repo_id"]]}) for one in [row, *_without(rows, row)])
        return Hit(found["id"], found["revision"], reason, found, others[:_LISTED])

    if len(rows) == 1:
        return hit(rows[0], "only")
    if chosen := await default_of(conn, rows):
        return hit(*chosen)
    raise _ambiguous(asked, [facts({**row, "oid": revisions[row["repo_id"]]}) for row in rows])


async def default_of(conn: AsyncConnection, rows: Sequence[Row]) -> tuple[Row, str] | None:
    """The one of several adapters that is meant when nothing more is said, with the reason; see `resolve`.

    Args:
        rows: at least the columns `repo_id`, `namespace`, `created`, `base_model`, `task` and `subtask`.
    """
    if len({_place(row) for row in rows}) != 1:
        return None
    if preferred := await _preferred(conn, rows):
        return preferred, "preferred"
    return await _best(conn, rows) if len({row["namespace"] for row in rows}) == 1 else None


def _without(rows: Iterable[Row], one: Row) -> list[Row]:
    return [row for row in rows if row["repo_id"] != one["repo_id"]]


def _place(row: Row) -> tuple[str, str, str]:
    return base_models.canonical(row["base_model"] or ""), row["task"] or "", row["subtask"] or ""


async def _preferred(conn: AsyncConnection, rows: Sequence[Row]) -> Row | None:
    keys = ("base_model", "task", "subtask")
    same = [schema.preferred.c[key] == value for key, value in zip(keys, _place(rows[0]))]
    chosen = (await conn.execute(sa.select(schema.preferred.c.repo_id).where(*same))).scalar()
    return next((row for row in rows if row["repo_id"] == chosen), None)


async def _best(conn: AsyncConnection, rows: Sequence[Row]) -> tuple[Row, str]:
    """The one with the best score, else the newest; of equal ones the newest, then the last one added."""
    _, task, subtask = _place(rows[0])
    scores = await leaderboard.scores(conn, task, subtask, [row["repo_id"] for row in rows])
    rated = [row for row in rows if row["repo_id"] in scores] or rows
    best = max(rated, key=lambda row: (scores.get(row["repo_id"], 0.0), row["created"], row["repo_id"]))
    return best, "score" if scores else "newest"


# ---- no answer ------------------------------------------------------------------------------------------------------


def _ambiguous(asked: _Asked, candidates: Sequence[Mapping[str, Any]]) -> Conflict:
    differ = [
        text
        for key, text in (
            ("base_model", "name the base model"),
            ("task", "name the task as in 'task/subtask'"),
            ("subtask", "name the subtask as in 'task/subtask'"),
            ("config", "name the config"),
            ("org", "add '@org'"),
        )
        if len({candidate[key] for candidate in candidates}) > 1
    ]
    return Conflict(
        f"{asked} can mean {len(candidates)} adapters. Pass the id of one of them, or {' or '.join(differ)}.",
        details={"candidates": list(candidates[:_LISTED])},
    )


async def _nothing(conn: AsyncConnection, asked: _Asked) -> NotFound:
    """That nothing fits, and what is near: what the name means without the other filters, else like names."""
    for where in _loose_readings(asked.name):
        if rows := await _rows(conn, [*where, *asked.allowed()]):
            near = [{"name": _full_name(row), **facts(row)} for row in rows[:20]]
            return NotFound(f"There is no adapter {asked}. There are others of that name.", details={"near": near})
    names = difflib.get_close_matches(asked.name, await _known_names(conn, asked), n=5, cutoff=0.6)
    return NotFound(
        f"There is no adapter {asked}. Names have the forms 'org/name', '@org/file', 'task/subtask', 'task' and "
        "'subtask', the last three also with '@org'.",
        details={"near": [{"name": name} for name in names]},
    )


def _loose_readings(name: str) -> Iterable[list[sa.ColumnElement[bool]]]:
    """The readings of a name, with its organisation left out."""
    if name.startswith("@"):
        yield from _readings(name)
        return
    place = name.partition("@")[0]
    if place.count("/") == 1:
        yield [_repo.key == place.lower()]
    yield from _readings(place)


async def _known_names(conn: AsyncConnection, asked: _Asked) -> list[str]:
    """Names that a slip may have been meant for."""
    tasks = (await conn.execute(sa.select(schema.task.c.id))).scalars().all()
    subtasks = (await conn.execute(sa.select(schema.subtask.c.task, schema.subtask.c.id))).all()
    start = asked.name.lstrip("@")[:2].lower()
    query = (
        sa.select(_repo.namespace, _repo.name, _adapter.legacy_id)
        .join(schema.adapter, _adapter.repo_id == _repo.id)
        .where(*asked.allowed(), _repo.key.startswith(start, autoescape=True))
    )
    rows = (await conn.execute(query.limit(_POOL))).all()
    names = [*tasks, *(id for _, id in subtasks), *(f"{task}/{id}" for task, id in subtasks)]
    names += [f"{namespace}/{name}" for namespace, name, _ in rows]
    names += [legacy_id for _, _, legacy_id in rows if legacy_id]
    return sorted(set(names))


def _full_name(row: Row) -> str:
    return f"{row['namespace']}/{row['name']}"
