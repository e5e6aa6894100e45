"""Words of the names that this hub's users gave, found by those who mistype them.

A word stays known when the last adapter with it is renamed or deleted: who corrects words looks whether an adapter that
may be seen still has them.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..db import schema
from ..db.engine import insert_missing
from ..facts.lexicon import words_of
from ..facts.spelling import deletions, distance, most_typos

__all__ = ["fill", "learn", "near"]

_part = schema.name_part.c
_LONG = 15  # letters from which on one typo is found and no more: the parts grow with their square
_BATCH = 2000


async def learn(conn: AsyncConnection, full_names: Iterable[str]) -> None:
    """Makes the words of some repositories' names known."""
    words = {word for name in full_names for word in words_of(name).split() if most_typos(word) and not word.isdigit()}
    if not words:
        return
    known = sa.select(_part.word).where(_part.part.in_(words), _part.part == _part.word)
    new = sorted(words.difference((await conn.execute(known)).scalars()))
    rows = [{"part": part, "word": word} for word in new for part in sorted(deletions(word, _most(word)))]
    await insert_missing(conn, schema.name_part, rows)


def _most(word: str) -> int:
    return min(most_typos(word), 1 if len(word) > _LONG else 2)


async def fill(conn: AsyncConnection) -> None:
    """Makes all names known, where none is."""
    if (await conn.execute(sa.select(_part.part).limit(1))).first():
        return
    name = sa.select(schema.repo.c.namespace, schema.repo.c.name).order_by(schema.repo.c.id)
    names = (await conn.execute(name)).all()
    for start in range(0, len(names), _BATCH):
        await learn(conn, map("/".join, names[start : start + _BATCH]))


async def near(conn: AsyncConnection, words: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """Words to the known ones that are as few typos away as they may have, with that number, the nearest first.

    Numbers in words are never mistyped: `run12` is not `run13`.
    """
    of = {word: deletions(word, _most(word)) for word in words if most_typos(word)}
    parts = set().union(*of.values())
    if not parts:
        return {}
    query = sa.select(_part.part, _part.word).where(_part.part.in_(sorted(parts)))
    found = (await conn.execute(query)).all()
    return {word: _nearest(word, {known for part, known in found if part in of[word]}) for word in of}


def _nearest(word: str, candidates: Iterable[str]) -> list[tuple[int, str]]:
    most = most_typos(word)
    alike = (known for known in candidates if _digits(known) == _digits(word))
    return sorted(item for item in ((distance(word, known, most), known) for known in alike) if item[0] <= most)


def _digits(word: str) -> str:
    return "".join(filter(str.isdigit, word))
