"""The look every file gets before it is kept."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

from ..errors import Unprocessable
from .kinds import HEAD, kind, prove
from .reading import Buffer, opened

__all__ = ["find_secret", "inspect"]

_BLOCK = 1 << 20


def inspect(path: Path, name: str = "") -> tuple[dict[str, Any] | None, str | None]:
    """What is in a file, and why it must not be kept.

    Args:
        path: the bytes.
        name: their path in a repository; empty where it is not known yet: then `misnamed` must be asked when it is.

    Returns:
        The header `{tensor name: [dtype, shape]}` of a safetensors file, else None; and a sentence for the author where
        the file can run code, is malformed or of an unknown format, else None.

    Raises:
        Unprocessable: one of the hub's own tokens stands in it.
    """
    with opened(path) as data:
        danger, tensors = prove(name, data)
        if danger is None and kind(data[:HEAD], len(data)) == "text":
            _refuse_secrets(data, repr(name) if name else "This file")
    header = {key: [info.dtype, list(info.shape)] for key, info in tensors.items()} if tensors is not None else None
    return header, danger


def _refuse_secrets(data: Buffer, shown: str) -> None:
    for start in range(0, len(data), _BLOCK):
        if hint := find_secret(data[max(0, start - 64) : start + _BLOCK]):
            raise Unprocessable(
                f"{shown} holds an access token of this hub ({hint}). Take it out, and revoke the token in your "
                "settings if anyone else may have seen it."
            )


def find_secret(data: bytes) -> str | None:
    """The beginning of one of this hub's own tokens that stands in the data; None if there is none.

    Tokens end with a checksum, so that an example which only looks like one is not found.
    """
    for match in _TOKEN.finditer(data):
        if b"%08x" % zlib.crc32(match[1]) == match[2]:
            return f"{match[0][:8].decode()}…"
    return None


_TOKEN = re.compile(rb"ahb_([A-Za-z0-9]{43})([0-9a-f]{8})")
