"""An encoder of Xet's formats, written apart from the hub's decoder and as simple as can be."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Sequence

import lz4.frame
from blake3 import blake3

DATA_KEY = bytes(
    [102, 151, 245, 119, 91, 149, 80, 222, 49, 53, 203, 172, 165, 151, 24, 28]
    + [157, 228, 33, 16, 155, 235, 43, 88, 180, 208, 176, 75, 147, 173, 242, 41]
)
NODE_KEY = bytes(
    [1, 126, 197, 199, 165, 71, 41, 150, 253, 148, 102, 102, 180, 138, 2, 230]
    + [93, 221, 83, 111, 55, 199, 109, 210, 248, 99, 82, 230, 74, 83, 113, 63]
)
TAG = b"HFRepoMetaData\0" + bytes([85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169])


def hexadecimal(digest: bytes) -> str:
    """Each group of eight bytes backwards."""
    return "".join(digest[i : i + 8][::-1].hex() for i in range(0, 32, 8))


def chunk(data: bytes, scheme: int) -> bytes:
    """A chunk: its header and its bytes."""
    if scheme == 2:
        coded = lz4.frame.compress(data[0::4] + data[1::4] + data[2::4] + data[3::4])
    elif scheme == 1:
        coded = lz4.frame.compress(data)
    else:
        coded = data
    return b"\0" + len(coded).to_bytes(3, "little") + bytes([scheme]) + len(data).to_bytes(3, "little") + coded


def leaf(data: bytes) -> tuple[bytes, int]:
    return blake3(data, key=DATA_KEY).digest(), len(data)


def merge(nodes: Sequence[tuple[bytes, int]]) -> tuple[bytes, int]:
    """One node for all: groups of at most nine; a hash divisible by four closes one that then has at least three."""
    if len(nodes) == 1:
        return nodes[0]
    above, group = [], []
    for node in nodes:
        group.append(node)
        divisible = int.from_bytes(node[0][24:], "little") % 4 == 0
        if len(group) == 9 or (divisible and len(group) >= 3):
            above.append(group)
            group = []
    above += [group] if group else []
    texts = ["".join(f"{hexadecimal(h)} : {n}\n" for h, n in group).encode() for group in above]
    return merge([(blake3(t, key=NODE_KEY).digest(), sum(n for _, n in g)) for t, g in zip(texts, above)])


class Upload:
    """A file as a client sends it: cut into chunks, put into xorbs, described by a shard."""

    def __init__(
        self, data: bytes, *, schemes: Sequence[int] = (0, 1, 2), footer: bool = False, per_xorb: int = 5, seed: int = 0
    ) -> None:
        cut = random.Random(seed)
        chunks, position = [], 0
        while position < len(data):
            size = cut.choice((1, 3, 500, 20_000, 65_537, 128 * 1024))
            chunks.append(data[position : position + size])
            position += size
        self.data = data
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.xorbs: dict[str, bytes] = {}
        self.segments: list[tuple[bytes, int, int, int]] = []
        for start in range(0, len(chunks), per_xorb):
            part = chunks[start : start + per_xorb]
            name = merge([leaf(c) for c in part])[0]
            body = b"".join(chunk(c, schemes[i % len(schemes)]) for i, c in enumerate(part))
            self.xorbs[hexadecimal(name)] = body + (b"XETBLOB\x01" + bytes(40)) * footer
            self.segments.append((name, sum(map(len, part)), 0, len(part)))
        self.hash = blake3(merge([leaf(c) for c in chunks])[0], key=bytes(32)).digest() if chunks else bytes(32)

    def shard(self, *others: Upload, verification: bool = True, sha256: bool = True, footer: bool = True) -> bytes:
        parts = [TAG, struct.pack("<QQ", 2, 200)]
        for upload in (self, *others):
            flags = verification << 31 | sha256 << 30
            parts.append(struct.pack("<32sIIQ", upload.hash, flags, len(upload.segments), 0))
            parts += [struct.pack("<32sIIII", x, 0, n, a, b) for x, n, a, b in upload.segments]
            parts += [bytes(48)] * len(upload.segments) * verification
            if sha256:
                digest = bytes.fromhex(upload.sha256)
                parts.append(b"".join(digest[i : i + 8][::-1] for i in range(0, 32, 8)) + bytes(16))
        parts.append(b"\xff" * 32 + bytes(16))
        return b"".join(parts) + (b"\xff" * 32 + bytes(16 + 200)) * footer
