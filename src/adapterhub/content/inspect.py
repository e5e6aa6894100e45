"""The look every file gets before it is kept."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

from ..errors import Unprocessable
from .pickles import HEAD, TAIL, find_secret, kind, sniff
from .safetensors import InvalidSafetensors, header_length, parse_header

__all__ = ["inspect"]


def inspect(path: Path, name: str = "") -> tuple[dict[str, Any] | None, str | None]:
    """What is in a file, and why it must not be kept.

    Args:
        path: the bytes.
        name: their path in a repository; empty where it is not known yet: then `sniff` or `refused_name` must be asked
            again when it is.

    Returns:
        The header `{tensor name: [dtype, shape]}` of a safetensors file, else None; and a sentence for the author where
        the file can run code, is malformed or of an unknown format, else None.

    Raises:
        Unprocessable: one of the hub's own tokens stands in it.
    """
    size, shown = path.stat().st_size, repr(name) if name else "This file"
    with open(path, "rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - TAIL))
        tail = file.read(TAIL)
    found, header, invalid = kind(head, size), None, ""
    if found == "safetensors":
        try:
            header = _read_header(path, size)
        except InvalidSafetensors as error:
            invalid = f"{shown} is not a valid safetensors file. {error}"
    if danger := sniff(name, head, tail=tail, size=size, safetensors=header is not None) or invalid:
        return None, danger
    if found == "text" and not _is_text(path, shown):
        return None, f"{shown} begins as text, but is not text in UTF-8 up to its end."
    return header, None


def _read_header(path: Path, size: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        first = file.read(8)
        prefix = first + file.read(header_length(first) - 8)
    return {key: [info.dtype, list(info.shape)] for key, info in parse_header(prefix, size).items()}


def _is_text(path: Path, shown: str) -> bool:
    """Reads a text to its end, which must be UTF-8 and must not hold one of our tokens."""
    decoder, last = codecs.getincrementaldecoder("utf-8")(), b""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if hint := find_secret(last + block):
                raise Unprocessable(
                    f"{shown} holds an access token of this hub ({hint}). Take it out, and revoke the token in your "
                    "settings if anyone else may have seen it."
                )
            last = block[-64:]
            if b"\0" in block or not _decodes(decoder, block):
                return False
    return _decodes(decoder, b"", final=True)


def _decodes(decoder: codecs.IncrementalDecoder, block: bytes, final: bool = False) -> bool:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError:
        return False
    return True
