"""How do tensors get as many rows as states that `Parallel` has copied? For code that calls layers by itself."""

from __future__ import annotations

from torch import Tensor

from adapters.errors import CompositionError


def adjust_tensors_for_parallel(hidden_states: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """`tensors`, each with its rows as often as it takes to have as many as `hidden_states`; None stays None.

        [B, ...] -> [n B, ...]                  all rows for the first child, then all for the second, ...

    Raises:
        CompositionError: the rows of `hidden_states` are no multiple of those of a tensor.
    """
    return tuple(None if tensor is None else _copied(hidden_states, tensor) for tensor in tensors)


def adjust_tensors_for_parallel_(hidden_states: Tensor, *tensors: Tensor | None) -> None:
    """As `adjust_tensors_for_parallel`, in place: the tensors get the rows."""
    for tensor in tensors:
        if tensor is not None:
            tensor.set_(_copied(hidden_states, tensor))  # type: ignore[call-overload]


def _copied(hidden_states: Tensor, tensor: Tensor) -> Tensor:
    rows, own = len(hidden_states), len(tensor)
    copies, rest = divmod(rows, own) if own else (1, rows)
    if rest or not copies:
        raise CompositionError(f"A tensor of {own} rows cannot be copied to {rows} rows, which is no multiple of it.")
    return tensor if copies == 1 else tensor.repeat(copies, *[1] * (tensor.dim() - 1))
