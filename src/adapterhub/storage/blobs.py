"""What a blob store can do. Blobs are named by their SHA-256 alone: no name a user chose ever reaches a file system."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

__all__ = ["CHUNK", "BlobStore"]

CHUNK = 1 << 20


class BlobStore(Protocol):
    """Keeps blobs. All methods raise `StorageUnavailable` when the store does not answer."""

    async def size(self, sha256: str) -> int | None:
        """Its size in bytes; None where there is no such blob."""

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes `start` up to, and without, `end`."""

    async def put_file(self, sha256: str, path: Path) -> None:
        """Takes over a finished file: afterwards it is in the store for good, and `path` is gone."""

    async def delete(self, sha256: str) -> None:
        """Removes a blob; one that is not there is no error."""

    def names(self) -> AsyncIterator[str]:
        """The SHA-256 of every blob."""

    def local_path(self, sha256: str) -> Path | None:
        """The file of a blob, where the store keeps files on this machine."""

    async def url(self, sha256: str, *, filename: str, lifetime: int = 600) -> str | None:
        """A signed address to download from, where the store gives some."""

    async def check(self) -> None:
        """Raises `StorageUnavailable` unless the store answers."""
