"""Is this a GGUF or a SentencePiece model from the first byte to the last?"""

from __future__ import annotations

import re
import struct

from .reading import Buffer, Malformed, Reader

__all__ = ["gguf", "is_sentencepiece", "sentencepiece"]

# ---- GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md -------------------------------------------------

_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# Type of a tensor: how many elements a block of it has, and how many bytes.
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
_MOST_TENSORS, _MOST_DIMENSIONS, _DEEPEST = 100_000, 8, 4


def gguf(data: Buffer) -> None:
    """Settings, names and shapes of tensors, and the tensors, one behind the other, without a gap or a rest.

    Raises:
        Malformed: it is something else, too, or in parts.
    """
    reader = Reader(data, 4)
    width = 4 if reader.number(4) == 1 else 8  # of counts and lengths; the first version had shorter ones
    tensors, settings, alignment = reader.number(width), reader.number(width), 32
    if tensors > _MOST_TENSORS:
        raise Malformed(f"has {tensors} tensors; {_MOST_TENSORS} are allowed")
    for _ in range(settings):
        name, type = reader.take(_length(reader, width, 1 << 16)), reader.number(4)
        start = reader.position
        _skip_value(reader, type, width)
        if name == b"general.alignment":
            alignment = struct.unpack_from("<I", data, start)[0] if type == 4 else 0
            if not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
                raise Malformed("has a 'general.alignment' that is no power of two")
    spans = sorted(_tensor(reader, width) for _ in range(tensors))
    _skip_padding(reader, alignment)
    begin = reader.position
    for offset, length in spans:
        if begin + offset != reader.position:
            raise Malformed("has tensors with a gap between them, or one over the other")
        reader.skip(length)
        if reader.left:
            _skip_padding(reader, alignment)
    reader.end()


def _length(reader: Reader, width: int, most: int) -> int:
    length = reader.number(width)
    if length > most:
        raise Malformed("has a name that is too long")
    return length


def _skip_value(reader: Reader, type: int, width: int, depth: int = 0) -> None:
    if type == _STRING:
        reader.skip(reader.number(width))
    elif type == _ARRAY and depth < _DEEPEST:
        inner, count = reader.number(4), reader.number(width)
        if inner in _VALUE_BYTES:
            reader.skip(_VALUE_BYTES[inner] * count)
        else:
            for _ in range(count):
                _skip_value(reader, inner, width, depth + 1)
    elif type in _VALUE_BYTES:
        reader.skip(_VALUE_BYTES[type])
    else:
        raise Malformed(f"has a setting of the unknown type {type}")


def _tensor(reader: Reader, width: int) -> tuple[int, int]:
    """Where a tensor begins, and how many bytes it has."""
    reader.skip(_length(reader, width, 1 << 16))
    dimensions, elements, row = reader.number(4), 1, 1
    if dimensions > _MOST_DIMENSIONS:
        raise Malformed(f"has a tensor of {dimensions} dimensions")
    for i in range(dimensions):
        count = reader.number(width)
        elements, row = elements * count, row if i else count
    type, offset = reader.number(4), reader.number(8)
    if type not in _BLOCKS:
        raise Malformed(f"has a tensor of the unknown type {type}")
    size, length = _BLOCKS[type]
    if row % size:
        raise Malformed("has a tensor whose rows are no whole blocks")
    return offset, elements // size * length


def _skip_padding(reader: Reader, alignment: int) -> None:
    if any(reader.take(min(-reader.position % alignment, reader.left))):
        raise Malformed("has bytes between its tensors")


# ---- SentencePiece: its `ModelProto` ---------------------------------------------------------------------------------

_PIECES, _SECTIONS = 0x0A, frozenset((0x12, 0x1A, 0x22, 0x2A))  # length-delimited fields 1 and 2 to 5
_PIECE_END = re.compile(rb"\x15.{4}(?:\x18[\x01-\x06])?", re.DOTALL)  # its score and its type
_LONGEST_PIECE, _MOST_PIECES = 1 << 16, 1_200_000
_NUMBER, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # how fields are coded


def is_sentencepiece(head: bytes) -> bool:
    """Whether a file begins as a SentencePiece model: with a piece."""
    if head[:1] != b"\x0a":
        return False
    try:
        length, start = _varint(head, 1)
    except Malformed:
        return False
    return length <= _LONGEST_PIECE and _is_piece(head[start : start + length])


def sentencepiece(data: Buffer) -> None:
    """Pieces of text, score and type, then sections of settings.

    Raises:
        Malformed: it is something else, too, or in parts.
    """
    position, pieces, size = 0, 0, len(data)
    while position < size:
        field = data[position]
        length, start = _varint(data, position + 1)
        position = start + length
        if position > size:
            raise Malformed("is cut off")
        if field == _PIECES:
            pieces += 1
            if length > _LONGEST_PIECE or pieces > _MOST_PIECES or not _is_piece(data[start:position]):
                raise Malformed("has a piece that is none")
        elif field in _SECTIONS and pieces:
            _check_section(Reader(data, start), position)
        else:
            raise Malformed(f"has a field of the unknown kind {field:#x}")


def _is_piece(data: bytes) -> bool:
    if data[:1] != b"\x0a":
        return False
    try:
        length, start = _varint(data, 1)
        text = data[start : start + length]
        text.decode()
    except (Malformed, UnicodeDecodeError):
        return False
    return b"\0" not in text and _PIECE_END.fullmatch(data, start + length) is not None


def _check_section(reader: Reader, end: int) -> None:
    """Goes through the fields of a section, which must end where it does."""
    while reader.position < end:
        tag, reader.position = _varint(reader.data, reader.position)
        if tag & 7 in (_NUMBER, _BYTES):
            count, reader.position = _varint(reader.data, reader.position)
            reader.skip(count if tag & 7 == _BYTES else 0)
        elif tag & 7 in (_EIGHT, _FOUR):
            reader.skip(8 if tag & 7 == _EIGHT else 4)
        else:
            raise Malformed("has a section that is none")
    if reader.position != end:
        raise Malformed("has a section that is longer than it says")


def _varint(data: Buffer, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, at most ten of them, and the position behind it."""
    value = 0
    for i, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise Malformed("has a number that is cut off or too long")
