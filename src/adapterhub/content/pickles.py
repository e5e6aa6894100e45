"""Which bytes may be kept: an allow-list, because loaders of everything else run code that is in the file.

What is not text, a valid safetensors file, an image or one of a few formats that hold nothing but data is refused,
whatever its name; and names that loaders open with pickle are refused, whatever is inside.
"""

from __future__ import annotations

import pickletools
import re
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

__all__ = ["HEAD", "TAIL", "find_secret", "kind", "refused_name", "sniff"]

HEAD = 1 << 20  # how many of a file's first bytes `sniff` wants to see
TAIL = (1 << 16) + 22  # and of its last ones: a zip archive's directory lies there

# What may be in a file, and how files that hold it must end.
ALLOWED = {
    "safetensors": (".safetensors",),
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "gif": (".gif",),
    "webp": (".webp",),
    "pdf": (".pdf",),
    "gguf": (".gguf",),
    "sentencepiece": (".model", ".spm"),
}
_ENDINGS = {ending: format for format, endings in ALLOWED.items() for ending in endings}
_TEXT_TOO = (".model", ".spm")  # some tokenizers are text

_REFUSED_ENDINGS = {
    ending: what
    for what, endings in {
        "is opened with pickle, which can run any code": (
            ".bin .pt .pth .pt2 .ckpt .ptl .pkl .pickle .pck .pcl .pk .p .dill .dat .cloudpickle .joblib .data .mar "
            ".nemo .npy .npz .th .tar .tgz .ot .distcp .model_state .optim_states"
        ),
        "is opened by Keras or TensorFlow, where a model can hold code": ".h5 .hdf5 .keras .pb .pbtxt .tflite",
        "is opened by a runtime that can load code with it": (
            ".onnx .ort .mlmodel .mlpackage .engine .plan .trt .torchscript"
        ),
        "has a format the hub does not check": (
            ".msgpack .zip .gz .bz2 .xz .zst .lz4 .7z .rar .lzma .z .rds .rda .rdata .mat .parquet .arrow .feather .db "
            ".sqlite .sqlite3 .marshal .shelve .llamafile"
        ),
        "is a program": ".exe .dll .so .dylib .pyc .pyo .pyd .pyz .whl .egg .jar .class .wasm .msi .com .scr",
    }.items()
    for ending in endings.split()
}

# (offset, first bytes, what it is); only for messages: what is not on the allow-list is refused anyway.
_MAGIC = (
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "a PyTorch checkpoint of the old format, which is a pickle"),
    *((0, bytes((0x80, protocol)), "a pickle") for protocol in range(6)),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "a zip archive"),
    (0, b"PK\x07\x08", "a zip archive"),
    (0, b"\x93NUMPY", "a NumPy file, which can hold pickled objects"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"BZh", "compressed with bzip2"),
    (0, b"\xfd7zXZ\0", "compressed with xz"),
    (0, b"\x5d\0\0", "compressed with LZMA"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (0, b"\x04\x22\x4d\x18", "compressed with LZ4"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"\xca\xfe\xba\xbe", "a program"),
    (0, b"\xcf\xfa\xed\xfe", "a program"),
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ADVICE = "Save weights as safetensors; other files may be text in UTF-8, images, PDF, GGUF or SentencePiece models."


def sniff(
    name: str, head: bytes, *, tail: bytes = b"", size: int | None = None, safetensors: bool = False
) -> str | None:
    """Why a file must not be kept, in a sentence for its author; None where it may be.

    Args:
        name: its path; empty where it is not known yet: then only the bytes are judged.
        head: its first `HEAD` bytes.
        tail: its last `TAIL` bytes, where they are not in `head`.
        size: bytes of the whole file, where `head` is not all of it.
        safetensors: whether they are a valid safetensors file. Its first bytes, the length of its header, may look like
            the beginning of almost anything; so it is refused only if an unpickler or an archive reader would get
            somewhere with it.
    """
    size = len(head) if size is None else size
    if refused := refused_name(name):
        return refused
    tail = tail or head[-TAIL:]
    reason = _refused_safetensors(head, tail) if safetensors else _refused_bytes(head, tail, size)
    reason = reason or _misnamed(name, head, size)
    return f"{repr(name) if name else 'This file'} {reason}. {_ADVICE}" if reason else None


def refused_name(name: str) -> str | None:
    """Why no file may have this name, in a sentence for its author; None where one may."""
    ending = PurePosixPath(name.lower()).suffix
    return (
        f"{name!r} is refused: such a file {_REFUSED_ENDINGS[ending]}. {_ADVICE}"
        if ending in _REFUSED_ENDINGS
        else None
    )


def kind(head: bytes, size: int) -> str | None:
    """Which allowed format the bytes have: a key of `ALLOWED`, `text`, or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"GGUF") and head[4:8] in (b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"):
        return "gguf"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if _is_sentencepiece(head, size):
        return "sentencepiece"
    if _is_text(head, size):
        return "pdf" if head.startswith(b"%PDF-") else "text"
    return "pdf" if head.startswith(b"%PDF-") else None


def find_secret(data: bytes) -> str | None:
    """The beginning of one of this hub's own tokens that stands in the data; None if there is none.

    Tokens end with a checksum, so that an example which only looks like one is not found.
    """
    for match in _TOKEN.finditer(data):
        if b"%08x" % zlib.crc32(match[1]) == match[2]:
            return f"{match[0][:8].decode()}…"
    return None


_TOKEN = re.compile(rb"ahb_([A-Za-z0-9]{43})([0-9a-f]{8})")


def _refused_bytes(head: bytes, tail: bytes, size: int) -> str | None:
    for offset, magic, what in _MAGIC:
        if head.startswith(magic, offset) and not (magic in (b"MZ", b"BZh") and _is_text(head, size)):
            return f"is {_archive(head) if what == 'a zip archive' else what}"
    if _ends_as_zip(tail):
        return "has a zip archive at its end, which loaders would open"
    if any(head.startswith(_HDF5, offset) for offset in (0, *(512 << i for i in range(12)))):
        return "is an HDF5 file, where a Keras model can hold code"
    if _is_pickle(head, len(head) == size):
        return "can be read as a pickle, which can run any code"
    if _is_zlib(head):
        return "is compressed with zlib, as joblib writes pickles"
    if kind(head, size) is None:
        return "is neither text in UTF-8 nor of a format that the hub allows"
    return None


def _refused_safetensors(head: bytes, tail: bytes) -> str | None:
    if _ends_as_zip(tail):
        return "has a zip archive at its end, which loaders would open"
    if _is_pickle(head, complete=True):
        return "can be read as a pickle, which can run any code"
    return None


def _misnamed(name: str, head: bytes, size: int) -> str | None:
    if not name:
        return None
    ending, found = PurePosixPath(name.lower()).suffix, kind(head, size)
    expected = _ENDINGS.get(ending, "text")
    if found == expected or (found == "text" and ending in _TEXT_TOO):
        return None
    wanted = f"; such a file must end with {' or '.join(ALLOWED[found])}" if found in ALLOWED else ""
    return f"should be {_called(expected)}, but is {_called(found)}{wanted}"


def _called(format: str | None) -> str:
    return {"text": "text", "safetensors": "a safetensors file"}.get(str(format), f"of format {format}")


# ---- text -----------------------------------------------------------------------------------------------------------


def _is_text(head: bytes, size: int) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        cut_off = len(head) < size and error.end == len(head) and len(head) - error.start < 4
        return cut_off and error.reason == "unexpected end of data"
    return True


# ---- archives -------------------------------------------------------------------------------------------------------


def _archive(head: bytes) -> str:
    if b".pkl" in head:
        return "a PyTorch checkpoint: a zip archive that holds a pickle"
    if b".npy" in head:
        return "a NumPy archive, which can hold pickled objects"
    if b"config.json" in head and b".h5" in head:
        return "a Keras model, which can hold code"
    return "a zip archive"


def _ends_as_zip(tail: bytes) -> bool:
    position = tail.rfind(b"PK\x05\x06")
    while position >= 0:
        comment = int.from_bytes(tail[position + 20 : position + 22], "little")
        if position + 22 + comment == len(tail):
            return True
        position = tail.rfind(b"PK\x05\x06", 0, position)
    return False


def _is_zlib(head: bytes) -> bool:
    if head[:1] != b"x" or int.from_bytes(head[:2], "big") % 31:
        return False
    stream = zlib.decompressobj()
    try:
        return len(stream.decompress(head, 4096)) == 4096 or stream.eof
    except zlib.error:
        return False


# ---- SentencePiece --------------------------------------------------------------------------------------------------

_PIECES, _SECTIONS = 0x0A, frozenset((0x12, 0x1A, 0x22, 0x2A))  # length-delimited fields 1 and 2 to 5
_PIECE_END = re.compile(rb"\x15.{4}(?:\x18[\x01-\x06])?", re.DOTALL)  # its score and its type


def _is_sentencepiece(head: bytes, size: int) -> bool:
    """Whether the bytes are a SentencePiece `ModelProto`: pieces of text, score and type, then its settings."""
    position, pieces = 0, 0
    while position < min(len(head), 1 << 16):
        field = head[position]
        length, begin = _varint(head, position + 1)
        position = begin + length
        if position > size or not (field == _PIECES or (field in _SECTIONS and pieces)):
            return False
        if field == _PIECES and position <= len(head):
            if not _is_piece(head[begin:position]):
                return False
            pieces += 1
    return pieces > 0


def _is_piece(data: bytes) -> bool:
    if data[:1] != b"\x0a":
        return False
    length, begin = _varint(data, 1)
    text, rest = data[begin : begin + length], data[begin + length :]
    return _is_text(text, len(text)) and _PIECE_END.fullmatch(rest) is not None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, and the position after it; at most five bytes are read."""
    value = 0
    for i, byte in enumerate(data[position : position + 5]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    return 1 << 40, position


# ---- pickles --------------------------------------------------------------------------------------------------------
#
# Protocol 0 is text, and harmless formats can begin with bytes that are opcodes too. So the opcodes are followed, with
# the height of the stack alone, until one would run code or cannot be executed.

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
# Not persistent ids and extensions: they name what the reading program has registered, which is nothing by default.
_NAMES_CODE = frozenset(("GLOBAL", "INST", "STACK_GLOBAL"))
_RUNS_CODE = frozenset(("REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX"))
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_MOST_OPCODES = 50_000
_GLOBAL_NAME = re.compile(rb"[A-Za-z_][\w.]*")
_Opcode = pickletools.OpcodeInfo


class _NotPickle(Exception):
    """The next byte cannot be executed."""


class _Unfinished(Exception):
    """The data end within an opcode that may go on behind them."""


def _is_pickle(data: bytes, complete: bool) -> bool:
    """Whether an unpickler would run code, or read all of the data; with `complete=False` more bytes follow them."""
    stack: list[bool] = []  # True for a mark
    named, count = False, 0
    try:
        for opcode, end in _opcodes(data):
            count += 1
            named = named or opcode.name in _NAMES_CODE
            _execute(opcode, stack)
            if count > _MOST_OPCODES or (named and opcode.name in _RUNS_CODE):
                return True
            if opcode.name == "STOP":
                if count > 1 and complete and end >= 4 and not data[end:].strip():
                    return True
                stack = []
    except _NotPickle:
        return False
    except _Unfinished:
        return not complete
    return not complete and count > 0


def _opcodes(data: bytes) -> Iterator[tuple[_Opcode, int]]:
    """The opcodes of a pickle, each with the position after its argument."""
    position = 0
    while position < len(data):
        opcode = _OPCODES.get(data[position])
        if opcode is None:
            raise _NotPickle
        position = _skip_argument(data, position + 1, opcode)
        yield opcode, position


def _skip_argument(data: bytes, position: int, opcode: _Opcode) -> int:
    size = opcode.arg.n if opcode.arg else 0
    if size == pickletools.UP_TO_NEWLINE:
        for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1):
            end = data.find(b"\n", position)
            if end < 0:
                raise _Unfinished
            _check_line(opcode.name, data[position:end])
            position = end + 1
        return position
    if size in _LENGTH_BYTES:
        width = _LENGTH_BYTES[size]
        size = int.from_bytes(data[position : position + width], "little")
        position += width
        if size >= 1 << 31:
            raise _NotPickle
    if position + size > len(data):
        raise _Unfinished
    return position + size


def _check_line(name: str, line: bytes) -> None:
    if name in ("GLOBAL", "INST"):
        valid = _GLOBAL_NAME.fullmatch(line) is not None
    elif name in ("GET", "PUT"):
        valid = line.strip().isdigit()
    elif name == "STRING":
        text = line.strip()
        valid = len(text) > 1 and text[:1] == text[-1:] and text[:1] in (b"'", b'"')
    elif name in ("INT", "LONG", "FLOAT"):
        valid = _is_number(line.strip().rstrip(b"L"))
    else:
        valid = True
    if not valid:
        raise _NotPickle


def _is_number(text: bytes) -> bool:
    for read in (float, lambda value: int(value, 0)):
        try:
            read(text.decode("latin-1"))
            return True
        except ValueError:
            continue
    return False


def _execute(opcode: _Opcode, stack: list[bool]) -> None:
    """What an opcode does to the marks and the height of the stack."""
    before, after = opcode.stack_before, opcode.stack_after
    needed = len(before)
    to_mark = pickletools.markobject in before
    if to_mark or (opcode.name == "POP" and stack and stack[-1]):
        try:
            while not stack.pop():
                pass
        except IndexError:
            raise _NotPickle from None
        needed = before.index(pickletools.markobject) if to_mark else 0
    if len(stack) < needed or any(stack[len(stack) - needed :]):
        raise _NotPickle
    del stack[len(stack) - needed :]
    stack.extend(item is pickletools.markobject for item in after)
