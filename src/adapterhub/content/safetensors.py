"""Headers of safetensors files: read without trust, and without the tensors."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NamedTuple

__all__ = ["InvalidSafetensors", "TensorInfo", "header_length", "parse_header", "MAX_HEADER", "MAX_TENSORS"]

MAX_HEADER = 8 << 20
MAX_TENSORS = 100_000

# Bits of one element.
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("C128",), 128),
}


class InvalidSafetensors(ValueError):
    """The file is not a safetensors file, or lies about what is in it."""


class TensorInfo(NamedTuple):
    """One tensor: its type, its shape, and where its bytes lie, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def header_length(first8: bytes) -> int:
    """How many bytes at the beginning of a file `parse_header` needs, told by the first eight.

    Raises:
        InvalidSafetensors: there are fewer than eight, or the header would be larger than `MAX_HEADER`.
    """
    if len(first8) < 8:
        raise InvalidSafetensors(f"The file is too short for a safetensors file: it has {len(first8)} bytes.")
    length = int.from_bytes(first8[:8], "little")
    if not 2 <= length <= MAX_HEADER:
        raise InvalidSafetensors(
            f"It does not begin like a safetensors file: its header would have {length} bytes, allowed are 2 to "
            f"{MAX_HEADER}."
        )
    return 8 + length


def parse_header(prefix: bytes, file_size: int) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, in the order of their bytes.

    Args:
        prefix: at least the first `header_length` bytes of the file.
        file_size: bytes of the whole file.

    Raises:
        InvalidSafetensors: the header is not JSON of the right form, or the tensors do not fill the file exactly.
    """
    begin = header_length(prefix[:8])
    if file_size < begin or len(prefix) < begin:
        raise InvalidSafetensors(f"The file ends within its header: {begin} bytes are announced, it has {file_size}.")
    header = _read_json(prefix[8:begin])
    _check_metadata(header.pop("__metadata__", {}))
    tensors = sorted(((name, _tensor(name, entry)) for name, entry in header.items()), key=lambda item: item[1][2:])
    position = 0
    for name, tensor in tensors:
        if tensor.start != position:
            fault = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise InvalidSafetensors(
                f"Tensor {name!r} {fault}: it begins at byte {tensor.start}, expected was {position}."
            )
        position = tensor.end
    if begin + position != file_size:
        raise InvalidSafetensors(
            f"The header describes a file of {begin + position} bytes, but it has {file_size}. Was it cut off?"
        )
    return dict(tensors)


def _read_json(header: bytes) -> dict[str, Any]:
    if header[:1] != b"{":
        raise InvalidSafetensors("Its header is not a JSON object: it does not begin with '{'.")
    if header.count(b"[") + header.count(b"{") > 3 * MAX_TENSORS:
        raise InvalidSafetensors(f"Its header describes more than {MAX_TENSORS} tensors.")
    try:
        found = json.loads(header.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except InvalidSafetensors:
        raise
    except RecursionError:
        raise InvalidSafetensors("Its header is nested too deeply.") from None
    except ValueError as error:
        raise InvalidSafetensors(f"Its header is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidSafetensors("Its header is not a JSON object.")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InvalidSafetensors(f"Its header names {twice!r} twice.")
    return found


def _refuse_constant(text: str) -> None:
    raise InvalidSafetensors(f"Its header holds {text}, which is not JSON.")


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidSafetensors("'__metadata__' of its header must map text to text.")


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidSafetensors(f"Tensor {name!r} must have exactly 'dtype', 'shape' and 'data_offsets'.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise InvalidSafetensors(f"Tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}.")
    if not _are_sizes(shape):
        raise InvalidSafetensors(f"The shape of tensor {name!r} must be a list of integers from 0 on.")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidSafetensors(f"'data_offsets' of tensor {name!r} must be where its bytes begin and end.")
    bits, span = math.prod(shape) * _BITS[dtype], offsets[1] - offsets[0]
    if bits != span * 8:
        raise InvalidSafetensors(
            f"Tensor {name!r} of {dtype} and shape {shape[:8]} needs {bits / 8:.16g} bytes, but has {span}."
        )
    return TensorInfo(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )
