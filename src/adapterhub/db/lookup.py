"""Finding rows by their key, as often as requests come.

SQLite answers such a question in some 20 µs. SQLAlchemy takes over 300 µs to put it, 80 of them on the way to the
connection's thread and back. So what nearly every request asks is compiled once, and asked in the thread of the event
loop. Only what an index finds at once may be asked here, because all other requests wait meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

__all__ = ["Lookup", "connect"]

_DIALECT = sqlite.dialect(paramstyle="named")


class Lookup:
    """A statement for few rows, found through indexes by texts and numbers that are bound by name."""

    def __init__(self, statement: sa.Select[Any]) -> None:
        self.statement = statement
        compiled = statement.compile(dialect=_DIALECT)
        self._sql, self._constants = str(compiled), compiled.params
        row: Any = namedtuple("Row", statement.selected_columns.keys(), rename=True)  # type: ignore[misc]
        self._row = row._make
        kinds = [column.type.dialect_impl(_DIALECT) for column in statement.selected_columns]
        readers = [kind.result_processor(_DIALECT, None) for kind in kinds]
        self._readers = [(number, read) for number, read in enumerate(readers) if read is not None]

    def run(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> list[Any]:
        """The rows, like those of SQLAlchemy."""
        return [self._read(row) for row in connection.execute(self._sql, {**self._constants, **values})]

    def _read(self, stored: Sequence[Any]) -> Any:
        values = list(stored)
        for number, read in self._readers:
            values[number] = read(values[number])
        return self._row(values)


def connect(database: str) -> sqlite3.Connection:
    """A connection for lookups. It cannot write, and waits for nobody: `sqlite3.OperationalError` where it had to."""
    address = f"{Path(database).absolute().as_uri()}?mode=ro"
    return sqlite3.connect(address, uri=True, timeout=0, isolation_level=None)
