"""Which store an address means."""

from __future__ import annotations

from pathlib import Path

from .blobs import BlobStore
from .disk import DiskStore

__all__ = ["open_store"]


async def open_store(url: str, default: Path) -> BlobStore:
    """The store of `settings.blobs`.

    Raises:
        ValueError: the address is of no known kind.
    """
    if not url or "://" not in url:
        return DiskStore(Path(url) if url else default)
    if url.startswith("s3://"):
        from .s3 import S3Store

        return S3Store(url)
    raise ValueError(f"blobs={url!r} is no store: give a folder or s3://bucket/prefix.")
