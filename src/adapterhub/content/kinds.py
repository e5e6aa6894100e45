"""Which files may be kept: an allow-list, because loaders of everything else run code that is in the file.

A file is believed only what is proven: its ending names a format, and a parser of that format must accept all of its
bytes. A file of any other ending must be text. Whatever it is, no loader may find a pickle or an archive in it. Names
that loaders open with pickle are refused, whatever is inside.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from . import images, models, texts
from .archives import disguise
from .reading import Buffer, Malformed
from .safetensors import InvalidSafetensors, TensorInfo, header_length, parse_header

__all__ = ["ALLOWED", "HEAD", "judge", "kind", "kind_of", "misnamed", "prove", "refused_name"]

HEAD = 1 << 20  # how many of a file's first bytes `kind` wants to see


def safetensors(data: Buffer) -> Mapping[str, TensorInfo]:
    """A header, and tensors that fill the rest without a gap; returns the tensors.

    Raises:
        InvalidSafetensors: it is something else.
    """
    return parse_header(data[: header_length(data[:8])], len(data))


# What may be in a file: how such files must end, and the parser that accepts such bytes and no others.
ALLOWED: dict[str, tuple[tuple[str, ...], Callable[[Buffer], Mapping[str, TensorInfo] | None]]] = {
    "safetensors": ((".safetensors",), safetensors),
    "gguf": ((".gguf",), models.gguf),
    "sentencepiece": ((".model", ".spm"), models.sentencepiece),
    "json": ((".json",), texts.json),
    "png": ((".png",), images.png),
    "jpeg": ((".jpg", ".jpeg"), images.jpeg),
    "gif": ((".gif",), images.gif),
    "webp": ((".webp",), images.webp),
    "pdf": ((".pdf",), texts.pdf),
    "text": ((), texts.text),  # and every other ending that is not refused
}
_ENDINGS = {ending: format for format, (endings, _) in ALLOWED.items() for ending in endings}
_PICKLE = re.compile(rb"\x80[\0-\5]")  # how most pickles begin; only for the message
_TEXT_TOO = ("sentencepiece", "json")  # some tokenizers are text, and JSON always is

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

_ADVICE = "Save weights as safetensors; other files may be text in UTF-8, images, PDF, GGUF or SentencePiece models."


def judge(name: str, data: Buffer) -> str | None:
    """Why a file must not be kept, in a sentence for its author; None where it may be. See `prove`."""
    return prove(name, data)[0]


def prove(name: str, data: Buffer) -> tuple[str | None, Mapping[str, TensorInfo] | None]:
    """Why a file must not be kept, in a sentence for its author, or None; and the tensors of a safetensors file.

    Args:
        name: its path; empty where it is not known yet: then it must be of any of the formats, and `misnamed` must be
            asked when the name is known.
        data: all of its bytes.
    """
    if name and (refused := refused_name(name)):
        return refused, None
    head, tensors = data[:HEAD], None
    found = kind(head, len(data))
    expected = _expected(name, found) if name else found
    reason = _misnamed(expected, found) if expected and found else None
    if not found and _PICKLE.match(head):
        reason = "is a pickle, which can run any code"
    reason = reason or disguise(data)
    if not reason and expected is None:
        reason = "is neither text in UTF-8 nor of a format that the hub allows"
    if not reason and expected is not None:
        reason, tensors = _proven(expected, data)
    return (f"{repr(name) if name else 'This file'} {reason}. {_ADVICE}" if reason else None), tensors


def misnamed(name: str, data: Buffer, size: int) -> str | None:
    """Why bytes that `judge` took without a name must not have this one, in a sentence; None where they may.

    Args:
        name: their path.
        data: the first `HEAD` of them; all of them where `kind_of(name)` is JSON and there are not too many.
        size: how many there are.
    """
    found = kind(data[:HEAD], size)
    expected = _expected(name, found)
    reason = _misnamed(expected, found)
    if not reason and expected == "json":
        reason = _proven(expected, data)[0] if size == len(data) else f"should be JSON, but has {size} bytes"
    return f"{name!r} {reason}. {_ADVICE}" if reason else None


def kind_of(name: str) -> str:
    """Which format a file of this name must have."""
    return _ENDINGS.get(_ending(name), "text")


def refused_name(name: str) -> str | None:
    """Why no file may have this name, in a sentence for its author; None where one may."""
    ending = _ending(name)
    return (
        f"{name!r} is refused: such a file {_REFUSED_ENDINGS[ending]}. {_ADVICE}"
        if ending in _REFUSED_ENDINGS
        else None
    )


def kind(head: bytes, size: int) -> str | None:
    """Which allowed format the bytes seem to have, told by the first `HEAD` of them; None for no such format."""
    if head.startswith(b"%PDF-"):
        return "pdf"
    if texts.begins_as_text(head, size):
        return "text"
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
    return "sentencepiece" if models.is_sentencepiece(head) else None


def _ending(name: str) -> str:
    """What systems take for the ending of a name: some drop points and spaces at its end, or what follows a colon."""
    plain = unicodedata.normalize("NFKC", name).lower().rsplit("/", 1)[-1].split(":")[0]
    return PurePosixPath(plain.rstrip(". ")).suffix


def _expected(name: str, found: str | None) -> str:
    expected = kind_of(name)
    return "text" if expected == "sentencepiece" and found == "text" else expected


def _misnamed(expected: str, found: str | None) -> str | None:
    if found == expected or (found == "text" and expected in _TEXT_TOO):
        return None
    endings = ALLOWED[found][0] if found else ()
    wanted = f"; such a file must end with {' or '.join(endings)}" if endings else ""
    is_found = _called(found) if found else "of no format that the hub allows"
    return f"should be {_called(expected)}, but is {is_found}{wanted}"


def _proven(expected: str, data: Buffer) -> tuple[str | None, Mapping[str, TensorInfo] | None]:
    """Why bytes are not of a format, or None; and what its parser found."""
    try:
        return None, ALLOWED[expected][1](data)
    except InvalidSafetensors as error:
        return f"is not a valid safetensors file. {str(error).rstrip('.')}", None
    except Malformed as error:
        return f"should be {_called(expected)}, but it {error}", None


_CALLED = {"text": "text", "json": "JSON", "safetensors": "a safetensors file"}


def _called(format: str) -> str:
    return _CALLED.get(format, f"of format {format}")
