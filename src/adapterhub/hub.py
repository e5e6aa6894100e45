"""Everything a request needs: the settings, the database, the blobs and the secret."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .db.counts import Counts
from .db.engine import Database
from .settings import Settings, unshared
from .signing import Signer, load_secret
from .storage.blobs import BlobStore
from .storage.stores import open_store
from .upstream import Upstream

__all__ = ["Hub"]


@dataclass(frozen=True)
class Hub:
    """An open hub.

    Attributes:
        settings: how it is set up.
        db: its database.
        blobs: where it keeps bytes.
        signer: signs addresses of uploads and downloads.
        counts: of the database's rows, as far as they are kept.
        upstream: the hub from which unknown repositories come; None where there is none.
    """

    settings: Settings
    db: Database
    blobs: BlobStore
    signer: Signer
    counts: Counts
    upstream: Upstream | None

    @classmethod
    async def open(cls, settings: Settings) -> Hub:
        """Opens the hub of `settings`; its folders are made, its database must exist (see `db.migrations`)."""
        settings.scratch.mkdir(parents=True, exist_ok=True)
        signer = Signer(load_secret(settings.data / "secret"))
        blobs = await open_store(settings.blobs, settings.data / "blobs")
        for folder in (settings.data, getattr(blobs, "root", settings.data)):
            _shut(folder, unshared(settings))
        db = Database(settings.database_url)
        upstream = Upstream(settings) if settings.upstream else None
        return cls(settings, db, blobs, signer, Counts(db), upstream)

    async def close(self) -> None:
        """Closes the database, and ends what is on its way here."""
        if self.upstream is not None:
            await self.upstream.close()
        await self.counts.close()
        await self.db.close()

    @property
    def scratch(self) -> Path:
        """Folder of unfinished uploads."""
        return self.settings.scratch

    def url(self, path: str) -> str:
        """The public address of a path of this hub."""
        return f"{self.settings.public_url}/{path.lstrip('/')}"


def _shut(folder: Path, bits: int) -> None:
    """Takes bits from a folder's mode, so that others get to nothing in it, not even to what is there already."""
    with suppress(PermissionError):  # of another user, who has decided
        folder.chmod(folder.stat().st_mode & 0o7777 & ~bits)
