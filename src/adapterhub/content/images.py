"""Is this an image from the first byte to the last? Pixels are not unpacked: only what holds them is read."""

from __future__ import annotations

import re
import zlib

from .reading import Buffer, Malformed, Reader

__all__ = ["gif", "jpeg", "png", "webp"]

_CRC_BLOCK = 1 << 20
_PNG_TYPE = re.compile(rb"[A-Za-z]{2}[A-Z][A-Za-z]")
_JPEG_MARKER = re.compile(rb"\xff+[^\0\xff\xd0-\xd7]")  # behind entropy-coded data
_JPEG_SEGMENTS = frozenset((*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, *range(0xE0, 0xF0), 0xFE)) - {0xC8}
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WEBP_CHUNKS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "))


def png(data: Buffer) -> None:
    """Chunks with their checksums, from IHDR over IDAT to IEND.

    Raises:
        Malformed: it is something else, too, or in parts.
    """
    reader, seen = Reader(data, 8, big=True), [b""]
    while seen[-1] != b"IEND":
        length, type = reader.number(4), reader.take(4)
        if not _PNG_TYPE.fullmatch(type) or (type[0] < 97 and type not in (b"IHDR", b"PLTE", b"IDAT", b"IEND")):
            raise Malformed(f"has a chunk of the unknown type {type!r}")
        if (type == b"IHDR") != (len(seen) == 1) or (type == b"IHDR" and length != 13):
            raise Malformed("does not begin with one IHDR")
        if type == b"IEND" and (length or b"IDAT" not in seen):
            raise Malformed("ends without an image")
        crc, end = zlib.crc32(type), reader.position + length
        while reader.position < end:
            crc = zlib.crc32(reader.take(min(_CRC_BLOCK, end - reader.position)), crc)
        if reader.number(4) != crc:
            raise Malformed(f"has a chunk {type.decode()} with a wrong checksum")
        if type != seen[-1]:
            seen.append(type)
        if len(seen) > 1000:
            raise Malformed("has too many chunks")
    reader.end()


def jpeg(data: Buffer) -> None:
    """Segments up to the end of the image. A second image behind it, as some cameras append one, is none of it.

    Raises:
        Malformed: it is something else, too, or in parts.
    """
    reader, framed, scanned = Reader(data, 2, big=True), False, False
    while True:
        if reader.take(1) != b"\xff":
            raise Malformed("has bytes between its segments")
        marker = 0xFF
        while marker == 0xFF:
            marker = reader.number(1)
        if marker == 0xD9:
            break
        if marker not in _JPEG_SEGMENTS:
            raise Malformed(f"has the unknown marker {marker:#x}")
        length = reader.number(2)
        if length < 2:
            raise Malformed("has a segment without a length")
        reader.skip(length - 2)
        framed = framed or marker in _START_OF_FRAME
        if marker == 0xDA:
            found = _JPEG_MARKER.search(data, reader.position)
            if found is None or not framed:
                raise Malformed("is cut off")
            reader.skip(found.start() - reader.position)
            scanned = True
    if not scanned:
        raise Malformed("holds no image")
    reader.end()


def gif(data: Buffer) -> None:
    """Blocks up to the trailer.

    Raises:
        Malformed: it is something else, too, or in parts.
    """
    reader, images = Reader(data, 6), 0
    reader.skip(4)
    flags = reader.number(1)
    reader.skip(2)
    _skip_colours(reader, flags)
    while (block := reader.number(1)) != 0x3B:
        if block == 0x21:
            reader.skip(1)
        elif block == 0x2C:
            images += 1
            reader.skip(8)
            _skip_colours(reader, reader.number(1))
            reader.skip(1)
        else:
            raise Malformed(f"has a block of the unknown kind {block:#x}")
        while count := reader.number(1):
            reader.skip(count)
    if not images:
        raise Malformed("holds no image")
    reader.end()


def _skip_colours(reader: Reader, flags: int) -> None:
    if flags & 0x80:
        reader.skip(3 << (flags & 7) + 1)


def webp(data: Buffer) -> None:
    """One RIFF of known chunks.

    Raises:
        Malformed: it is something else, too, or in parts.
    """
    reader = Reader(data, 4)
    if reader.number(4) + 8 != len(data):
        raise Malformed("does not have the length that it names")
    reader.skip(4)
    seen: list[bytes] = []
    while reader.left:
        type = reader.take(4)
        if type not in _WEBP_CHUNKS:
            raise Malformed(f"has a chunk of the unknown type {type!r}")
        length = reader.number(4)
        reader.skip(length)
        if length % 2 and reader.take(1) != b"\0":
            raise Malformed("has bytes between its chunks")
        seen = seen if len(seen) > 1 else [*seen, type]
        if type in (b"VP8 ", b"VP8L", b"ANMF"):
            seen = [seen[0], b"image"]
    if not seen or seen[0] not in (b"VP8 ", b"VP8L", b"VP8X") or not {b"VP8 ", b"VP8L", b"image"} & set(seen):
        raise Malformed("holds no image")
