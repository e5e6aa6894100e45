"""The smallest valid files of every format that may be kept, with a place for what a hostile author would put in."""

from __future__ import annotations

import json
import struct
import zlib


def safetensors(payload: bytes = b"weights!", *, note: str = "", before: int = 0) -> bytes:
    """One tensor.

    Args:
        payload: its bytes.
        note: text of the metadata, which comes first.
        before: where the tensor is to begin in the file.
    """
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    header = json.dumps({"__metadata__": {"n": note}, "a": tensor}, ensure_ascii=False, separators=(",", ":")).encode()
    header = header.ljust(before - 8)
    return len(header).to_bytes(8, "little") + header + payload


def png(payload: bytes = b"") -> bytes:
    """One pixel, and the payload in a text of the image."""

    def chunk(type: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + type + content + struct.pack(">I", zlib.crc32(type + content))

    text = chunk(b"tEXt", b"Comment\0" + payload) if payload else b""
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + text + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def jpeg(payload: bytes = b"") -> bytes:
    """One block, and the payload in comments."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content

    comments = b"".join(segment(0xFE, payload[i : i + 65_000]) for i in range(0, len(payload), 65_000))
    frame = segment(0xC0, struct.pack(">BHHB", 8, 1, 1, 1) + b"\1\x11\0")
    scan = segment(0xDA, b"\1\1\0\0\x3f\0")
    return b"\xff\xd8" + comments + segment(0xDB, bytes(65)) + frame + scan + b"\x12\xff\0\xff\xd0\x34" + b"\xff\xd9"


def gif(payload: bytes = b"") -> bytes:
    """One pixel, and the payload in a comment."""

    def blocks(content: bytes) -> bytes:
        parts = [content[i : i + 255] for i in range(0, len(content), 255)]
        return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"

    comment = b"\x21\xfe" + blocks(payload) if payload else b""
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2" + blocks(b"\x44\1")
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + comment + image + b"\x3b"


def webp(payload: bytes = b"") -> bytes:
    """One image, and the payload beside it as XMP."""

    def chunk(type: bytes, content: bytes) -> bytes:
        return type + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    extended = chunk(b"VP8X", b"\4" + bytes(9)) if payload else b""
    note = chunk(b"XMP ", payload) if payload else b""
    chunks = extended + note + chunk(b"VP8L", b"\x2f\0\0\0\0\x88\x88\x08")
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def pdf(payload: bytes = b"") -> bytes:
    """No page, and the payload in a stream."""
    head = b"%PDF-1.5\n%\xd0\xd4\xc5\xd8\n"
    head += b"1 0 obj\n<</Length %06d>>\nstream\n%b\nendstream\nendobj\n" % (len(payload), payload)
    table = b"xref\n0 1\n0000000000 65535 f \ntrailer\n<</Size 1>>\n"
    return head + table + b"startxref\n%d\n%%%%EOF\n" % len(head)


def gguf(payload: bytes = b"12345678", *, note: bytes = b"") -> bytes:
    """One tensor of bytes.

    Args:
        payload: its bytes.
        note: a setting, which comes first.
    """

    def text(content: bytes) -> bytes:
        return struct.pack("<Q", len(content)) + content

    settings = [
        text(b"note") + struct.pack("<I", 8) + text(note),
        text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b"),
        text(b"scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, 1.5),
        text(b"bias") + struct.pack("<I?", 7, True),
    ]
    tensors = [text(b"a") + struct.pack("<IQIQ", 1, len(payload), 24, 0)]
    tensors += [text(b"b") + struct.pack("<IQQIQ", 2, 32, 2, 8, len(payload) + -len(payload) % 32)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings)) + b"".join(settings) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + payload + bytes(-len(payload) % 32) + bytes(68) + bytes(28)


def sentencepiece(pieces: int = 300, payload: bytes = b"") -> bytes:
    """A `ModelProto`, as the protocol buffers library writes it, with the payload among the rules for characters."""

    def varint(number: int) -> bytes:
        return bytes((number,)) if number < 128 else bytes((number & 0x7F | 0x80,)) + varint(number >> 7)

    def field(number: int, content: bytes) -> bytes:
        return bytes((number << 3 | 2,)) + varint(len(content)) + content

    def piece(text: str, score: float, type: int = 0) -> bytes:
        kind = bytes((0x18, type)) * bool(type)
        return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + kind)

    vocabulary = [piece("<unk>", 0, 2), piece("<s>", 0, 3)] + [piece(f"▁wörd{i}", -i / 7) for i in range(pieces)]
    rules = field(1, b"identity") + (field(2, payload) if payload else b"")
    return b"".join(vocabulary) + field(2, b"\x0a\x05input\x20\x08") + field(3, rules)
