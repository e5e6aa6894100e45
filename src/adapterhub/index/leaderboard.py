"""Adapters of a place, ordered by what their cards report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..accounts import Principal
from ..db import schema
from ..facts import taxonomy
from . import base_models, scoring
from .search import sorting
from .visible import visible_to

__all__ = ["Board", "Line", "board", "scores"]

_adapter, _evaluation = schema.adapter.c, schema.evaluation.c
_MISSING = 100
_SHOWN = ("base_model", "model_type", "method", "config_name", "reduction_factor", "rank", "parameters", "bytes")


@dataclass(frozen=True)
class Line:
    """An adapter on the board.

    Attributes:
        rank: 1 for the best; adapters with equal values share one.
        full_name: its repository.
        value: what is compared: percentages as fractions.
        reported: the number as the card has it.
        split: of the data set, if the card says it.
        adapter: columns of the index, such as `base_model`, `method` and `parameters`.
    """

    rank: int
    full_name: str
    value: float
    reported: float
    split: str | None
    adapter: Mapping[str, Any]


@dataclass(frozen=True)
class Board:
    """The adapters of a place.

    Attributes:
        metric: what they are ordered by; None where none of them reports a number.
        higher_is_better: its direction.
        metrics: all metrics that are reported, with how many adapters report each.
        lines: adapters with a number, the best first.
        missing: names of the most used adapters that report none, in alphabetical order.
        unranked: how many report none.
    """

    task: str
    subtask: str
    metric: str | None
    higher_is_better: bool
    metrics: Mapping[str, int]
    lines: Sequence[Line]
    missing: Sequence[str]
    unranked: int


async def board(
    conn: AsyncConnection,
    principal: Principal,
    task: str,
    subtask: str,
    *,
    metric: str | None = None,
    base_model: str | None = None,
    unranked: bool = True,
) -> Board:
    """The leaderboard of a data set.

    Args:
        metric: by default the place's own, else the one that most adapters report.
        base_model: only adapters for this model.
        unranked: whether adapters without a number are looked for, of which there may be many.
    """
    at_place = _at_place(principal, task, subtask, base_model)
    adapters = await _reporting(conn, at_place, task, subtask)
    values = await _values(conn, task, subtask, adapters)
    metrics = {name: len(found) for name, found in sorted(values.items(), key=lambda item: (-len(item[1]), item[0]))}
    usual, known = await scoring.usual(conn, task, subtask)
    chosen = taxonomy.canonical_metric(metric) if metric else usual if usual in values else next(iter(metrics), None)
    higher = scoring.direction(chosen, usual, known)
    found = values.get(chosen or "", {})
    best = {repo_id: _best(rows, chosen or "", higher) for repo_id, rows in found.items()}
    order = sorted(best, key=lambda repo_id: (-best[repo_id][0] if higher else best[repo_id][0], repo_id))
    lines: list[Line] = []
    for position, repo_id in enumerate(order, 1):
        value, reported, split = best[repo_id]
        rank = lines[-1].rank if lines and lines[-1].value == value else position
        row = adapters[repo_id]
        shown = {key: row[key] for key in _SHOWN}
        lines.append(Line(rank, row["full_name"], value, reported, split, shown))
    missing, others = await _missing(conn, at_place, task, subtask, chosen) if unranked else ([], 0)
    return Board(task, subtask, chosen, higher, metrics, lines, missing, others)


async def scores(
    conn: AsyncConnection, task: str | None, subtask: str | None, repo_ids: Iterable[int]
) -> dict[int, float]:
    """How good adapters are by their place's metric: repository to a number that is larger for better ones."""
    usual, known = await scoring.usual(conn, task or "", subtask or "")
    if usual is None:
        return {}
    higher = scoring.direction(usual, usual, known)
    found = (await _values(conn, task or "", subtask or "", repo_ids)).get(usual, {})
    sign = 1 if higher else -1
    return {repo_id: sign * _best(rows, usual, higher)[0] for repo_id, rows in found.items()}


_full_name = (schema.repo.c.namespace + "/" + schema.repo.c.name).label("full_name")


def _at_place(principal: Principal, task: str, subtask: str, base_model: str | None) -> list[sa.ColumnElement[bool]]:
    """Which adapters a board is about."""
    where = [visible_to(principal), _adapter.task == task, _adapter.subtask == subtask]
    return [*where, base_models.same(base_model)] if base_model else where


def _reports(task: str, subtask: str, *more: sa.ColumnElement[bool]) -> sa.Select[tuple[int]]:
    """Repositories that report a value for a place."""
    return sa.select(_evaluation.repo_id).where(_evaluation.task == task, _evaluation.subtask == subtask, *more)


async def _reporting(
    conn: AsyncConnection, at_place: Sequence[sa.ColumnElement[bool]], task: str, subtask: str
) -> dict[int, Mapping[str, Any]]:
    statement = (
        sa.select(_adapter.repo_id, _full_name, *(_adapter[key] for key in _SHOWN))
        .join(schema.repo, schema.repo.c.id == _adapter.repo_id)
        .where(*at_place, _adapter.repo_id.in_(_reports(task, subtask)))
    )
    return {row["repo_id"]: dict(row) for row in (await conn.execute(statement)).mappings()}


async def _missing(
    conn: AsyncConnection, at_place: Sequence[sa.ColumnElement[bool]], task: str, subtask: str, metric: str | None
) -> tuple[list[str], int]:
    """Names of the most used adapters without a value, and how many have none."""
    without = [*at_place, _adapter.repo_id.not_in(_reports(task, subtask, _evaluation.metric == metric))]
    count = (await conn.execute(sa.select(sa.func.count(_adapter.repo_id)).where(*without))).scalar_one()
    order = (sorting(conn, _adapter.downloads).desc(), _adapter.repo_id.desc())
    chosen = sa.select(_adapter.repo_id).where(*without).order_by(*order).limit(_MISSING)
    names = sa.select(_full_name).where(schema.repo.c.id.in_(chosen))
    return sorted((await conn.execute(names)).scalars()), count


_Values = dict[str, dict[int, list[tuple[float, str | None]]]]


async def _values(conn: AsyncConnection, task: str, subtask: str, repo_ids: Iterable[int]) -> _Values:
    """Metric to repository to the values reported for this place, each with its split."""
    statement = sa.select(_evaluation.repo_id, _evaluation.metric, _evaluation.value, _evaluation.split).where(
        _evaluation.task == task, _evaluation.subtask == subtask
    )
    wanted = set(repo_ids)
    found: _Values = defaultdict(lambda: defaultdict(list))
    for repo_id, metric, value, split in await conn.execute(statement):
        if repo_id in wanted:
            found[metric][repo_id].append((value, split))
    return found


def _best(rows: Sequence[tuple[float, str | None]], metric: str, higher: bool) -> tuple[float, float, str | None]:
    """The best of an adapter's numbers: as a fraction, as reported, and its split."""
    ordered = [(scoring.fraction(metric, value), value, split) for value, split in rows]
    return (max if higher else min)(ordered, key=lambda item: item[0])
