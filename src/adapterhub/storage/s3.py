"""Blobs as objects of an S3 bucket: `prefix/ab/cd/abcd…`. Credentials and endpoint come from `AWS_*` variables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import StorageUnavailable
from ..settings import MiB

try:
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store as Bucket
except ImportError as error:
    raise ValueError('Blobs on S3 need the package obstore: pip install "adapterhub[s3]"') from error

__all__ = ["S3Store"]

# Read by requests of this size: each can be tried again, and none lasts as long as a slow client.
_READ = 8 * MiB
_PART = 16 * MiB
# Whether the endpoint is http:// or https:// is for its administrator to say.
_CLIENT = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60), "allow_http": True}
_RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}
# Objects are fetched from the bucket's own address too: there, as here, they are never shown in place.
_ATTRIBUTES = {"Content-Type": "application/octet-stream", "Content-Disposition": "attachment"}


class S3Store:
    """A bucket of blobs.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`.

    Raises:
        ValueError: it names no bucket.
    """

    def __init__(self, url: str) -> None:
        bucket, prefix = urlsplit(url).netloc, urlsplit(url).path.strip("/")
        if not bucket:
            raise ValueError(f"blobs={url!r} names no bucket. Give s3://bucket or s3://bucket/prefix.")
        self.address = url
        self._bucket = Bucket(bucket, prefix=prefix or None, client_options=_CLIENT, retry_config=_RETRY)  # type: ignore[arg-type]

    async def size(self, sha256: str) -> int | None:
        """See `BlobStore`."""
        with _unavailable():
            try:
                return int((await obstore.head_async(self._bucket, _key(sha256)))["size"])
            except FileNotFoundError:
                return None

    async def open(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See `BlobStore`."""
        if end is None:
            end = await self.size(sha256)
            if end is None:
                raise StorageUnavailable(f"The bytes {sha256[:12]}… cannot be read: they are not in the bucket.")
        while start < end:
            stop = min(start + _READ, end)
            with _unavailable():
                data = bytes(await obstore.get_range_async(self._bucket, _key(sha256), start=start, end=stop))
            if len(data) != stop - start:
                raise StorageUnavailable(f"The bytes {sha256[:12]}… cannot be read: the bucket holds fewer of them.")
            start = stop
            yield data

    async def put_file(self, sha256: str, path: Path) -> None:
        """See `BlobStore`."""
        with _unavailable():
            await obstore.put_async(
                self._bucket, _key(sha256), path, attributes=_ATTRIBUTES, chunk_size=_PART, max_concurrency=4
            )
        path.unlink()

    async def delete(self, sha256: str) -> None:
        """See `BlobStore`."""
        with _unavailable():
            await obstore.delete_async(self._bucket, _key(sha256))

    async def names(self) -> AsyncIterator[str]:
        """See `BlobStore`."""
        with _unavailable():
            async for page in obstore.list(self._bucket):
                for item in page:
                    name = item["path"].rsplit("/", 1)[-1]
                    if len(name) == 64:
                        yield name

    def local_path(self, sha256: str) -> Path | None:
        """None: the files are elsewhere."""
        return None

    async def url(self, sha256: str, *, filename: str, lifetime: int = 600) -> str | None:
        """See `BlobStore`."""
        with _unavailable():
            return await obstore.sign_async(self._bucket, "GET", _key(sha256), timedelta(seconds=lifetime))

    async def check(self) -> None:
        """See `BlobStore`."""
        with _unavailable():
            async for _ in obstore.list(self._bucket, prefix="00/00"):
                return


def _key(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


@contextmanager
def _unavailable() -> Iterator[None]:
    """Tells that the bucket does not answer. What obstore says has many lines, and addresses: it is for the log."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise StorageUnavailable(
            f"The blob storage does not answer ({type(error).__name__}). Try again later."
        ) from error
