"""The database's migrations: package data of Alembic, run in this process. Alembic is loaded only when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from .engine import Database
from .schema import metadata

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["HEAD", "current", "is_ours", "upgrade"]

_FOLDER = Path(__file__).parent / "migrations"
HEAD = max(path.name[:4] for path in (_FOLDER / "versions").glob("[0-9]*.py"))
# Any number does, as long as all hubs that share a database take the same.
_LOCK = 0x6164_6170


async def upgrade(db: Database, target: str = HEAD) -> str | None:
    """Brings the database to a revision, in one transaction; others who try the same wait.

    Returns:
        The revision it had before; None for an empty database.

    Raises:
        ValueError: the database is newer than this program.
    """
    before = await current(db)
    if before == target:
        return before
    if before is not None and before > HEAD:
        raise ValueError(
            f"The database has revision {before}, but this adapterhub knows {HEAD} at most. Install a newer one."
        )
    async with db.write(foreign_keys=False) as conn:
        if not db.is_sqlite:
            await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        await conn.run_sync(_upgrade, target)
    return before


async def current(db: Database) -> str | None:
    """The revision of a database; None for an empty one."""
    async with db.read() as conn:
        if not await conn.run_sync(lambda plain: sa.inspect(plain).has_table("alembic_version")):
            return None
        revision: str | None = (await conn.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar()
        return revision


def _upgrade(connection: sa.Connection, target: str) -> None:
    from alembic import command

    command.upgrade(config(connection), target)


def config(connection: sa.Connection) -> Config:
    """Alembic's configuration for a connection."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def is_ours(name: str | None, kind: str, parents: Any) -> Literal[True] | bool:
    """Whether migrations look after a table: not those of full-text search, which are made from the others."""
    return kind != "table" or name in metadata.tables
