"""The Xet format, as far as an upload needs it: chunks inside xorbs, the hashes that name both, and shards.

All functions are pure, trust nothing, and raise `MalformedXet` alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import lz4.frame  # type: ignore[import-untyped]
from blake3 import blake3

__all__ = [
    "MAX_CHUNK",
    "MAX_XORB",
    "MAX_XORB_CHUNKS",
    "MalformedXet",
    "Node",
    "Segment",
    "ShardFile",
    "check_rest",
    "chunk_hash",
    "file_hash",
    "hash_from_hex",
    "hash_to_hex",
    "read_chunks",
    "read_shard",
    "root",
]

MAX_CHUNK = 128 << 10  # bytes of a chunk, decoded
MAX_XORB = 67 << 20  # bytes of a xorb, encoded or decoded: 64 MiB and room for what each chunk costs
MAX_XORB_CHUNKS = 16_384

# Keys of BLAKE3, fixed by the format.
_CHUNK_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_FILE_KEY = bytes(32)

Node = tuple[bytes, int]  # the hash of a chunk, and its length


class MalformedXet(ValueError):
    """The bytes are not what the format says."""


# ---- hashes ---------------------------------------------------------------------------------------------------------


def hash_to_hex(digest: bytes) -> str:
    """How Xet writes 32 bytes: as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def hash_from_hex(text: str) -> bytes:
    """The inverse of `hash_to_hex`.

    Raises:
        MalformedXet: there are not 64 hexadecimal digits.
    """
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise MalformedXet(f"{text[:80]!r} is no Xet hash: expected are 64 hexadecimal digits.")
    return struct.pack("<4Q", *(int(text[i : i + 16], 16) for i in range(0, 64, 16)))


def chunk_hash(data: bytes) -> bytes:
    """The hash of a chunk's decoded bytes."""
    return blake3(data, key=_CHUNK_KEY).digest()


def root(nodes: Iterable[Node]) -> bytes:
    """The hash of a sequence of chunks, which is the name of a xorb: the root of a tree over them."""
    level = list(nodes)
    if not level:
        return bytes(32)
    while len(level) > 1:
        level = [_parent(group) for group in _groups(level)]
    return level[0][0]


def file_hash(nodes: Sequence[Node]) -> bytes:
    """The hash of a file that consists of chunks."""
    return blake3(root(nodes), key=_FILE_KEY).digest() if nodes else bytes(32)


def _groups(level: list[Node]) -> Iterator[list[Node]]:
    """Two to nine nodes each; from the third on, a hash whose last number is divisible by four ends a group."""
    start = 0
    while start < len(level):
        end = min(start + 9, len(level))
        for i in range(start + 2, end):
            if level[i][0][24] % 4 == 0:
                end = i + 1
                break
        yield level[start:end]
        start = end


def _parent(group: list[Node]) -> Node:
    text = "".join(f"{hash_to_hex(digest)} : {length}\n" for digest, length in group)
    return blake3(text.encode(), key=_NODE_KEY).digest(), sum(length for _, length in group)


# ---- xorbs ----------------------------------------------------------------------------------------------------------

_FOOTER = b"XETBLOB"
_MAX_FOOTER = 2 << 20


def read_chunks(buffer: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes]]:
    """The decoded chunks that are whole, each with the position after it.

    It ends before a chunk that is cut off, so that bytes can be decoded as they come, and before the footer that some
    clients send.

    Raises:
        MalformedXet: a chunk is not what its header says.
    """
    view, position = memoryview(buffer), 0
    while position + 8 <= len(view) and view[position : position + 7] != _FOOTER:
        version, scheme = view[position], view[position + 4]
        size = int.from_bytes(view[position + 1 : position + 4], "little")
        length = int.from_bytes(view[position + 5 : position + 8], "little")
        if version != 0 or scheme not in (0, 1, 2) or not 0 < length <= MAX_CHUNK or size > 2 * MAX_CHUNK:
            raise MalformedXet(
                f"A chunk's header is not valid: version {version}, scheme {scheme}, {size} bytes for {length}."
            )
        end = position + 8 + size
        if end > len(view):
            return
        yield end, _decode(view[position + 8 : end], scheme, length)
        position = end


def check_rest(rest: bytes | bytearray | memoryview) -> None:
    """Checks what is left of a xorb after its chunks: nothing, or a footer.

    Raises:
        MalformedXet: it is neither.
    """
    if len(rest) and (bytes(rest[:7]) != _FOOTER or len(rest) > _MAX_FOOTER):
        raise MalformedXet(f"The last {len(rest)} bytes of the xorb are neither a whole chunk nor a footer.")


def _decode(data: memoryview, scheme: int, length: int) -> bytes:
    if scheme == 0:
        decoded = bytes(data)
    else:
        decoder = lz4.frame.LZ4FrameDecompressor()
        try:
            decoded = decoder.decompress(data, max_length=length + 1)  # never more than announced
        except RuntimeError as error:
            raise MalformedXet(f"A chunk is not valid LZ4: {error}") from None
        if scheme == 2:
            decoded = _ungroup(decoded)
    if len(decoded) != length:
        raise MalformedXet(f"A chunk of {length} bytes was announced, but it has {len(decoded)}.")
    return decoded


def _ungroup(data: bytes) -> bytes:
    """Bytes 0, 4, 8, …, then 1, 5, 9, … and so on, back in their order."""
    result, start = bytearray(len(data)), 0
    for offset in range(4):
        size = (len(data) - offset + 3) // 4
        result[offset::4] = data[start : start + size]
        start += size
    return bytes(result)


# ---- shards ---------------------------------------------------------------------------------------------------------

_TAG = b"HFRepoMetaData\0\x55\x69\x67\x45\x6a\x7b\x81\x57\x83\xa5\xbd\xd9\x5c\xcd\xd1\x4a\xa9"
_ENTRY = 48  # bytes of everything in a shard
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30
_BOOKEND = b"\xff" * 32


class Segment(NamedTuple):
    """A part of a file: chunks `start` up to, and without, `end` of a xorb."""

    xorb: bytes
    length: int  # in bytes
    start: int
    end: int


class ShardFile(NamedTuple):
    """How to rebuild a file."""

    hash: bytes
    segments: list[Segment]
    sha256: str | None

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(segment.length for segment in self.segments)


def read_shard(data: bytes | bytearray | memoryview) -> list[ShardFile]:
    """The files of a shard.

    Raises:
        MalformedXet: it is cut off, or of another version.
    """
    view = memoryview(data)
    if len(view) < _ENTRY or view[:32] != _TAG or int.from_bytes(view[32:40], "little") != 2:
        raise MalformedXet("This is not a Xet shard of version 2.")
    files: list[ShardFile] = []
    position = _ENTRY
    while True:
        digest, flags, count, _ = struct.unpack("<32sIIQ", _entries(view, position, 1))
        position += _ENTRY
        if digest == _BOOKEND:
            return files
        segments = [
            Segment(xorb, length, start, end)
            for xorb, _, length, start, end in struct.iter_unpack("<32sIIII", _entries(view, position, count))
        ]
        position += _ENTRY * count * (2 if flags & _WITH_VERIFICATION else 1)
        sha256 = None
        if flags & _WITH_METADATA:
            sha256 = hash_to_hex(bytes(_entries(view, position, 1)[:32]))
            position += _ENTRY
        files.append(ShardFile(digest, segments, sha256))


def _entries(view: memoryview, position: int, count: int) -> memoryview:
    found = view[position : position + count * _ENTRY]
    if len(found) < count * _ENTRY:
        raise MalformedXet("The shard is cut off.")
    return found
