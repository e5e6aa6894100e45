"""What do heads give back? Outputs of one or several heads, and the parts of base outputs they see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.utils.generic import ModelOutput

from adapters.errors import HeadError

Rows = slice | Tensor
"""Some rows of a batch: consecutive ones, or a LongTensor of their numbers."""

NOT_CARRIED = ("last_hidden_state", "pooler_output")
"""Fields of base outputs that a head replaces."""


class NoCommonLogits(HeadError, AttributeError):
    """The heads of a `MultiHeadOutput` have no logits, or logits of different shape."""


@dataclass
class MultiHeadOutput(ModelOutput):
    """Outputs of several heads of one forward pass: `out[i]` and iteration give those of single heads.

    Args:
        loss: Sum of the heads' losses, where each head has one and each saw other rows.
        head_outputs: One output per head, in order.
        past_key_values: Cache of the base model, for generation.
        rows: With `MultiTask` and `adapter_names`, the numbers of the rows in the batch that each head saw, in order;
            else None.
    """

    loss: Tensor | None = None
    head_outputs: list[ModelOutput] | None = None
    past_key_values: Cache | None = None
    rows: list[Tensor] | None = None

    @property
    def logits(self) -> Tensor:
        """Logits of all heads: in the order of the batch's rows if `rows` is known, else one head's after the other's.

        Raises:
            NoCommonLogits: a head has none, or they differ in shape (an AttributeError, so that `hasattr` is False).
        """
        outputs = self.head_outputs or []
        found = [output["logits"] for output in outputs if "logits" in output]
        if len(found) < len(outputs) or len({logits.shape[1:] for logits in found}) > 1:
            kinds = [tuple(o["logits"].shape) if "logits" in o else type(o).__name__ for o in outputs]
            raise NoCommonLogits(f"These heads have no logits in common, but {kinds}. Take those of each head: out[i].")
        return torch.cat(found) if self.rows is None else _in_order(found, self.rows)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)  # type: ignore[no-untyped-call]
        return (self.head_outputs or [])[key]

    def __iter__(self) -> Iterator[ModelOutput]:
        return iter(self.head_outputs or ())

    def __len__(self) -> int:
        return len(self.head_outputs or ())

    def to_tuple(self) -> tuple[Any, ...]:
        """(loss if there is one, tuple of the heads' outputs as tuples)."""
        outputs = tuple(output.to_tuple() for output in self.head_outputs or ())
        return (outputs,) if self.loss is None else (self.loss, outputs)


def as_one_output(output: MultiHeadOutput, base: ModelOutput) -> ModelOutput:
    """What one head for all rows would give, in their order; `output` itself where its heads give unlike things.

    Args:
        output: Of heads that each saw some rows, which `output.rows` tells.
        base: The base model's output.
    """
    parts, rows = output.head_outputs or [], output.rows or []
    keys = [key for key in parts[0] if key != "loss" and base.get(key) is None]
    found: list[list[Any]] = [[part.get(key) for part in parts] for key in keys]
    whole = all(isinstance(value, Tensor) for values in found for value in values)
    if len({type(part) for part in parts}) > 1 or any({*part} != {*parts[0]} for part in parts) or not whole:
        return output
    if any(len({value.shape[1:] for value in values}) > 1 for values in found):
        return output
    joined = type(parts[0])(**{key: _in_order(values, rows) for key, values in zip(keys, found)})
    if output.loss is not None:
        joined["loss"] = output.loss
        joined.move_to_end("loss", last=False)
    carry_over(base, joined)
    return joined


def _in_order(parts: list[Tensor], rows: list[Tensor]) -> Tensor:
    """Tensors of some rows each, as one in the order of the rows."""
    return torch.cat(parts)[torch.cat([_groups(r, len(own)) for r, own in zip(rows, parts, strict=True)]).argsort()]


def returned(output: ModelOutput, return_dict: bool) -> Any:
    """The output as asked for: an object with named fields, or a tuple."""
    return output if return_dict else output.to_tuple()


def carry_over(base: ModelOutput, output: ModelOutput) -> None:
    """Copies hidden states, attentions, caches and recorded scores of the base model onto a head's output."""
    for key, value in base.items():
        if key not in NOT_CARRIED and value is not None and output.get(key) is None:
            output[key] = value
    for key, value in vars(base).items():
        if key not in base and value is not None and not hasattr(output, key):
            setattr(output, key, value)


def take_rows(output: ModelOutput, rows: Rows, total: int) -> ModelOutput:
    """Some rows of every tensor in a base output of `total` rows. Caches are left out."""
    part = ModelOutput()
    for key, value in output.items():
        taken = _taken(value, rows, total)
        if taken is not None:
            part[key] = taken
    return part


def _taken(value: Any, rows: Rows, total: int) -> Any:
    if isinstance(value, Tensor):
        return cut(value, rows, total)
    if isinstance(value, tuple | list):
        return tuple(_taken(item, rows, total) for item in value)
    return value if isinstance(value, dict) else None


def cut(tensor: Tensor, rows: Rows, total: int) -> Tensor:
    """Rows of a tensor that has `total` rows, or one per group of them, as labels of multiple choice do."""
    if tensor.dim() == 0 or not tensor.size(0) or total % tensor.size(0):
        return tensor
    group = total // tensor.size(0)
    if isinstance(rows, slice):
        return tensor[rows.start // group : rows.stop // group]
    return tensor[(rows[::group] // group).to(tensor.device)]


def _groups(rows: Tensor, count: int) -> Tensor:
    """Numbers of the `count` groups of consecutive rows of the batch that `rows` form."""
    size = len(rows) // max(count, 1) or 1
    return rows[::size] // size


def tile(tensor: Tensor, rows: int, channels: int | None = None) -> Tensor:
    """Repeats a tensor of fewer rows, to match an output that Parallel made larger.

    Args:
        tensor: Any, with rows first.
        rows: Of the output.
        channels: Copies of the batch in the output; by default as many as there is room for.
    """
    room = rows // max(tensor.size(0), 1)
    copies = room if channels is None else channels
    if copies < 2 or room % copies:
        return tensor
    return tensor.repeat(copies, *(1,) * (tensor.dim() - 1))
