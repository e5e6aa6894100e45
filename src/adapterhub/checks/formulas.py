"""Sizes of tensors as formulas, such as `parts * r` or `max(1, D // reduction_factor)`, against the sizes in a file."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import cache

__all__ = ["Formula", "Sizes", "fit", "shown"]

Formula = str | None
"""Of fields of the config and of widths of the place; None for a size of which nothing is known."""
Sizes = dict[str, "int | float"]
"""What is known: fields, widths, and formulas that could not be computed but had a size before."""

# The most that a width can be. `parts` are those of a projection that makes queries, keys and values at once.
_MOST = {"parts": 3}
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_CALLS: dict[str, Callable[..., float]] = {"max": max, "min": min}


def fit(formula: Formula, size: int, sizes: Sizes) -> bool:
    """Whether a size is the one that a formula gives.

    What cannot be computed, because a width is not known, takes the size that it must have, and keeps it.
    """
    return formula is None or _fit(_parsed(formula), size, sizes)


def shown(formula: Formula, sizes: Sizes) -> str:
    """A formula in a message: its size, where that can be told."""
    if formula is None:
        return "any"
    value = _value(_parsed(formula), sizes)
    return formula if value is None else str(value)


def _fit(node: ast.expr, size: int, sizes: Sizes) -> bool:
    if (value := _value(node, sizes)) is not None:
        return value == size
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if (factor := _value(one, sizes)) is not None:
                return factor > 0 and size % factor == 0 and _fit(other, size // factor, sizes)
    text = ast.unparse(node)
    sizes[text] = size
    return size <= _MOST.get(text, size)


def _value(node: ast.expr, sizes: Sizes) -> int | None:
    try:
        value = _number(node, sizes)
        return None if value is None else int(value)
    except (ArithmeticError, ValueError):  # such as a reduction factor of 0, or one that leaves infinitely much
        return None


def _number(node: ast.expr, sizes: Sizes) -> float | None:
    if (known := sizes.get(ast.unparse(node))) is not None:
        return known
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp):
        value = _number(node.operand, sizes)
        return None if value is None else -value
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else node.args if isinstance(node, ast.Call) else []
    values = [_number(part, sizes) for part in parts]
    given = [value for value in values if value is not None]
    if not parts or len(given) < len(values):
        return None
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](*given)
    assert isinstance(node, ast.Call)
    return _CALLS[ast.unparse(node.func)](*given)


@cache
def _parsed(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body
