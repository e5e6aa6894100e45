"""The S3 store against an S3 of moto's."""

import asyncio
import hashlib
import os

import httpx
import pytest

from adapterhub.errors import StorageUnavailable
from adapterhub.storage.stores import open_store

pytest.importorskip("obstore")


@pytest.fixture
def store(s3, tmp_path):
    return asyncio.run(open_store(s3(), tmp_path))


def put(store, tmp_path, data):
    sha256 = hashlib.sha256(data).hexdigest()
    path = tmp_path / "upload"
    path.write_bytes(data)
    asyncio.run(store.put_file(sha256, path))
    assert not path.exists()
    return sha256


async def read(store, *arguments):
    return b"".join([chunk async for chunk in store.open(*arguments)])


def test_bytes_come_back_whole_and_in_ranges(store, tmp_path):
    data = os.urandom(100_000)
    sha256 = put(store, tmp_path, data)
    assert asyncio.run(store.size(sha256)) == len(data)
    assert asyncio.run(read(store, sha256)) == data
    assert asyncio.run(read(store, sha256, 10, 20)) == data[10:20]
    assert asyncio.run(read(store, sha256, 99_990)) == data[99_990:]
    assert store.local_path(sha256) is None


def test_large_files_go_in_parts_and_are_read_by_several_requests(store, tmp_path, monkeypatch):
    from adapterhub.storage import s3

    monkeypatch.setattr(s3, "_PART", 5 << 20)
    monkeypatch.setattr(s3, "_READ", 4 << 20)
    data = os.urandom(1 << 20) * 11 + b"end"
    sha256 = put(store, tmp_path, data)
    assert hashlib.sha256(asyncio.run(read(store, sha256))).hexdigest() == sha256


def test_an_empty_file_is_kept(store, tmp_path):
    sha256 = put(store, tmp_path, b"")
    assert asyncio.run(store.size(sha256)) == 0
    assert asyncio.run(read(store, sha256)) == b""


def test_names_and_delete(store, tmp_path):
    async def names():
        return {name async for name in store.names()}

    first, second = put(store, tmp_path, b"one"), put(store, tmp_path, b"two")
    assert asyncio.run(names()) == {first, second}
    asyncio.run(store.delete(first))
    asyncio.run(store.delete(first))  # nothing to delete is no error
    assert asyncio.run(names()) == {second}
    assert asyncio.run(store.size(first)) is None


def test_a_signed_address_serves_the_bytes_as_a_download(store, tmp_path):
    sha256 = put(store, tmp_path, b"weights")
    address = asyncio.run(store.url(sha256, filename="a.safetensors"))
    answer = httpx.get(address, trust_env=False)
    assert answer.content == b"weights"
    assert answer.headers["content-disposition"] == "attachment"
    assert "Signature" in address


def test_missing_bytes_are_said_to_be_unavailable(store):
    with pytest.raises(StorageUnavailable):
        asyncio.run(read(store, "ab" * 32))
    with pytest.raises(StorageUnavailable):
        asyncio.run(read(store, "ab" * 32, 0, 5))


def test_a_store_that_does_not_answer_is_unavailable(s3, tmp_path, monkeypatch):
    from adapterhub.storage import s3 as module

    asyncio.run(module.S3Store(s3()).check())  # one that answers is fine
    monkeypatch.setitem(module._RETRY, "max_retries", 0)
    with pytest.raises(StorageUnavailable):
        asyncio.run(module.S3Store("s3://no-such-bucket").check())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = module.S3Store("s3://hub-test")
    for work in (store.check(), store.size("ab" * 32), read(store, "ab" * 32), store.delete("ab" * 32)):
        with pytest.raises(StorageUnavailable):
            asyncio.run(work)


@pytest.mark.parametrize("address", ["s3://", "s3:///prefix", "ftp://bucket"])
def test_an_address_without_a_bucket_is_refused(address, tmp_path):
    with pytest.raises(ValueError, match="blobs="):
        asyncio.run(open_store(address, tmp_path))
