"""Blobs as files: `ab/cd/abcd…`, written elsewhere, flushed to the disk and then renamed."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from ..errors import DiskFull, StorageUnavailable
from .blobs import CHUNK

__all__ = ["DiskStore", "fsync_directory"]


class DiskStore:
    """A folder of blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def _path(self, sha256: str) -> Path:
        return self.root / sha256[:2] / sha256[2:4] / sha256

    async def size(self, sha256: str) -> int | None:
        """See `BlobStore`."""
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    async def open(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See `BlobStore`."""
        try:
            file = await asyncio.to_thread(open, self._path(sha256), "rb")
        except OSError as error:
            raise StorageUnavailable(f"The bytes {sha256[:12]}… cannot be read: {error.strerror}.") from error
        with file:
            file.seek(start)
            left = None if end is None else end - start
            while left is None or left > 0:
                chunk = await asyncio.to_thread(file.read, CHUNK if left is None else min(CHUNK, left))
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk

    async def put_file(self, sha256: str, path: Path) -> None:
        """See `BlobStore`."""
        await asyncio.to_thread(self._take, sha256, path)

    def _take(self, sha256: str, path: Path) -> None:
        target = self._path(sha256)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                near = target.with_name(f".{path.name}")
                shutil.copyfile(path, near)
                fsync_file(near)
                os.replace(near, target)
                path.unlink()
            for folder in (target.parent, target.parent.parent, self.root):
                fsync_directory(folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("The hub's disk is full. Nothing was stored; tell its administrator.") from error
            raise StorageUnavailable(f"The bytes cannot be stored: {error.strerror}.") from error

    async def delete(self, sha256: str) -> None:
        """See `BlobStore`."""
        self._path(sha256).unlink(missing_ok=True)

    async def names(self) -> AsyncIterator[str]:
        """See `BlobStore`."""
        for path in self.root.glob("??/??/*"):
            if len(path.name) == 64:
                yield path.name

    def local_path(self, sha256: str) -> Path | None:
        """See `BlobStore`."""
        return self._path(sha256)

    async def url(self, sha256: str, *, filename: str, lifetime: int = 600) -> str | None:
        """None: files are sent by the hub."""
        return None

    async def check(self) -> None:
        """See `BlobStore`."""
        if not os.access(self.root, os.R_OK | os.W_OK):
            raise StorageUnavailable(f"The folder of blobs {self.root} cannot be read and written.")


def fsync_file(path: Path) -> None:
    """Waits until a file's bytes are on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    """Waits until a folder's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
