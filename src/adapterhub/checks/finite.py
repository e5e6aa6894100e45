"""Whether the numbers in a safetensors file are numbers."""

from __future__ import annotations

from ..content.safetensors import header_length, parse_header

__all__ = ["not_finite"]

# A number is NaN or infinite where the bits of its exponent are all one: dtype to (bytes of one number, these bits).
# E4M3 has no infinity, and one NaN: all bits but the sign.
_EXPONENTS = {
    "F64": (8, 0x7FF0 << 48),
    "F32": (4, 0x7F80_0000),
    "C64": (4, 0x7F80_0000),
    "C128": (8, 0x7FF0 << 48),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
    "F8_E5M2": (1, 0x7C),
    "F8_E4M3": (1, 0x7F),
}
_BLOCK = 1 << 20  # numbers looked at together


def not_finite(data: bytes) -> list[str]:
    """Names of the tensors that hold NaN or infinity.

    Args:
        data: a valid safetensors file.
    """
    import numpy as np

    begin, bad = header_length(data[:8]), []
    for name, tensor in parse_header(data, len(data)).items():
        if tensor.dtype not in _EXPONENTS:
            continue
        width, bits = _EXPONENTS[tensor.dtype]
        numbers = np.frombuffer(data, f"<u{width}", (tensor.end - tensor.start) // width, begin + tensor.start)
        mask = numbers.dtype.type(bits)
        if any(((numbers[at : at + _BLOCK] & mask) == mask).any() for at in range(0, len(numbers), _BLOCK)):
            bad.append(name)
    return bad
