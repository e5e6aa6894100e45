"""Does the decoder of Xet agree with an encoder written apart from it, and does it survive anything else?"""

from __future__ import annotations

import contextlib
import resource
import struct
import time

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.xet import codec
from adapterhub.xet.codec import MalformedXet
from tests.adapterhub.xet import encoder
from tests.adapterhub.xet.encoder import Upload


def decode(xorb: bytes) -> list[bytes]:
    end, chunks = 0, []
    for position, data in codec.read_chunks(xorb):
        end = position
        chunks.append(data)
    codec.check_rest(xorb[end:])
    return chunks


@settings(max_examples=40)
@given(st.binary(max_size=50), st.integers(0, 40_000), st.booleans(), st.integers(1, 30), st.integers(0, 99))
def test_round_trip(piece: bytes, repeat: int, footer: bool, per_xorb: int, seed: int):
    upload = Upload(piece * repeat, footer=footer, per_xorb=per_xorb, seed=seed)
    (file,) = codec.read_shard(upload.shard(footer=footer))
    nodes, rebuilt = [], []
    for segment in file.segments:
        chunks = decode(upload.xorbs[codec.hash_to_hex(segment.xorb)])
        rebuilt += chunks
        nodes += [(codec.chunk_hash(data), len(data)) for data in chunks]
        assert codec.root(nodes[-len(chunks) :]) == segment.xorb
    assert b"".join(rebuilt) == upload.data
    assert codec.file_hash(nodes) == file.hash
    assert file.sha256 == upload.sha256
    assert file.size == len(upload.data)


@pytest.mark.parametrize("scheme", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 1000, 128 * 1024])
def test_schemes(scheme: int, size: int):
    data = bytes(i * i % 251 for i in range(size))
    assert decode(encoder.chunk(data, scheme)) == [data]


@pytest.mark.parametrize("verification", [True, False])
@pytest.mark.parametrize("sha256", [True, False])
def test_shards(verification: bool, sha256: bool):
    first, second = Upload(b"one" * 1000), Upload(b"two" * 100_000, per_xorb=1)
    files = codec.read_shard(first.shard(second, Upload(b""), verification=verification, sha256=sha256))
    assert [file.hash for file in files] == [first.hash, second.hash, bytes(32)]
    assert [len(file.segments) for file in files] == [1, len(second.segments), 0]
    assert [file.sha256 for file in files][:2] == ([first.sha256, second.sha256] if sha256 else [None, None])


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=60))
def test_roots(hashes: list[bytes]):
    nodes = [(digest, i) for i, digest in enumerate(hashes)]
    assert codec.root(nodes) == (encoder.merge(nodes)[0] if nodes else bytes(32))


def test_hashes_that_the_client_prints():
    """`hf_xet.hash_files`, version 1.8.0, gave these for a file of that text, and for an empty one."""
    node = (codec.chunk_hash(b"Hello World!"), 12)
    assert codec.hash_to_hex(codec.file_hash([node])) == (
        "a9dae0ad88b060bdd7e7c87abdcf95b132c95a0414b06d4f6beb68d287b87165"
    )
    assert codec.hash_to_hex(codec.file_hash([])) == "0" * 64


@given(st.binary(min_size=32, max_size=32))
def test_hexadecimal(digest: bytes):
    assert codec.hash_to_hex(digest) == encoder.hexadecimal(digest)
    assert codec.hash_from_hex(codec.hash_to_hex(digest)) == digest


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "../" + "0" * 61, "٣" * 64])
def test_what_is_no_hash(text: str):
    with pytest.raises(MalformedXet):
        codec.hash_from_hex(text)


def test_chunks_come_as_soon_as_they_are_whole():
    xorb = encoder.chunk(b"first" * 100, 1) + encoder.chunk(b"second" * 100, 2) + b"XETBLOB" + bytes(20)
    seen = [[data for _, data in codec.read_chunks(xorb[:cut])] for cut in range(len(xorb) + 1)]
    assert [len(chunks) for chunks in seen] == sorted(len(chunks) for chunks in seen)
    assert seen[-1] == [b"first" * 100, b"second" * 100]
    assert seen[0] == seen[7] == []


HEADER = struct.Struct("<B3sB3s")


def chunk(content: bytes, length: int, *, version: int = 0, scheme: int = 0, size: int | None = None) -> bytes:
    size = len(content) if size is None else size
    return HEADER.pack(version, size.to_bytes(3, "little"), scheme, length.to_bytes(3, "little")) + content


MALFORMED = {
    "version": chunk(b"abc", 3, version=1),
    "scheme": chunk(b"abc", 3, scheme=3),
    "too long": chunk(bytes(200_000), 200_000),
    "too many coded bytes": chunk(bytes(300_000), 3),
    "no bytes": chunk(b"", 0),
    "other length": chunk(b"abcd", 3),
    "not LZ4": chunk(b"abcdefghijkl", 3, scheme=1),
    "no LZ4 at all": chunk(b"", 3, scheme=1),
    "LZ4 of fewer bytes": chunk(lz4.frame.compress(b"ab"), 3, scheme=1),
    "LZ4 of more bytes": chunk(lz4.frame.compress(b"abcd"), 3, scheme=1),
    "LZ4 bomb": chunk(lz4.frame.compress(bytes(40 << 20)), 128 << 10, scheme=1),
    "LZ4 bomb, grouped": chunk(lz4.frame.compress(bytes(40 << 20), store_size=False), 128 << 10, scheme=2),
    "cut off": encoder.chunk(b"abc" * 100, 1)[:-1],
    "rest": encoder.chunk(b"abc", 0) + b"abc",
    "endless footer": encoder.chunk(b"abc", 0) + b"XETBLOB" + bytes(3 << 20),
}


@pytest.mark.parametrize("xorb", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_xorbs(xorb: bytes):
    start, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MalformedXet):
        decode(xorb)
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 20_000


@settings(max_examples=300)
@given(st.data())
def test_random_bytes_are_malformed_or_read(data: st.DataObject):
    upload = Upload(b"some bytes " * 200, footer=data.draw(st.booleans()))
    whole = data.draw(st.sampled_from([*upload.xorbs.values(), upload.shard(), b""]))
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))] + data.draw(st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 4)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    for read in (decode, codec.read_shard):
        with contextlib.suppress(MalformedXet):
            read(bytes(broken))


def test_shards_are_read_to_their_end():
    shard = Upload(b"x" * 200_000, per_xorb=1).shard(footer=False)
    for cut in range(len(shard) - 16):
        with pytest.raises(MalformedXet):
            codec.read_shard(shard[:cut])
    with pytest.raises(MalformedXet):
        codec.read_shard(shard[:32] + struct.pack("<Q", 1) + shard[40:])
    huge = shard[:48] + struct.pack("<32sIIQ", bytes(32), 0, 0xFFFFFFFF, 0)
    with pytest.raises(MalformedXet):
        codec.read_shard(huge)
