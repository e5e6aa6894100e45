"""By which number are adapters of a place compared, and which way?"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..db import schema
from ..facts import taxonomy

__all__ = ["UNSCORED", "direction", "fraction", "score", "usual"]

_evaluation = schema.evaluation.c
UNSCORED = -1e300  # of adapters whose cards report nothing: they come last


async def usual(conn: AsyncConnection, task: str, subtask: str) -> tuple[str | None, bool | None]:
    """The metric of a place, and its direction."""
    same = (schema.subtask.c.task == task, schema.subtask.c.id == subtask)
    row = (
        await conn.execute(sa.select(schema.subtask.c.metric, schema.subtask.c.higher_is_better).where(*same))
    ).first()
    return (row[0], row[1]) if row else (None, None)


def direction(metric: str | None, usual: str | None, known: bool | None) -> bool:
    """Whether more of a metric is better.

    Args:
        usual, known: the metric of the place, and what is known of its direction.
    """
    if metric == usual and known is not None:
        return known
    return taxonomy.higher_is_better(metric or "")


def fraction(metric: str, value: float) -> float:
    """A percentage as a fraction: cards write 0.93 as well as 93."""
    return round(value / 100 if _is_percentage(metric) and abs(value) > 1 else value, 9)


def _is_percentage(metric: str) -> bool:
    _, _, (_, highest) = taxonomy.METRICS.get(metric, ((), True, (None, None)))
    return highest == 100


async def score(conn: AsyncConnection, task: str, subtask: str) -> tuple[sa.ColumnElement[float], int]:
    """What a row of `adapter` reports of its place's metric, larger for better ones, and the sign that makes it so."""
    metric, known = await usual(conn, task, subtask)
    sign = 1 if direction(metric, metric, known) else -1
    value: sa.ColumnElement[float] = _evaluation.value
    if metric and _is_percentage(metric):
        value = sa.case((sa.func.abs(value) > 1, value / 100), else_=value)
    here = (_evaluation.repo_id == schema.adapter.c.repo_id, _evaluation.task == task, _evaluation.subtask == subtask)
    best = sa.select(sa.func.max(sign * value)).where(*here, _evaluation.metric == metric)
    found = best.correlate(schema.adapter).scalar_subquery()
    return sa.func.coalesce(found, UNSCORED, type_=sa.Float), sign
