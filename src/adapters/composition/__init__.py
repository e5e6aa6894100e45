"""How several adapters work together in one forward pass: the blocks that users write down."""

from __future__ import annotations

from adapters.composition.blocks import (
    AdapterCompositionBlock,
    Average,
    BatchSplit,
    Fuse,
    MultiTask,
    Parallel,
    Route,
    Split,
    Stack,
    parse_composition,
    parse_heads_from_composition,
    validate_composition,
)
from adapters.composition.copies import adjust_tensors_for_parallel, adjust_tensors_for_parallel_

__all__ = [
    "AdapterCompositionBlock",
    "Average",
    "BatchSplit",
    "Fuse",
    "MultiTask",
    "Parallel",
    "Route",
    "Split",
    "Stack",
    "adjust_tensors_for_parallel",
    "adjust_tensors_for_parallel_",
    "parse_composition",
    "parse_heads_from_composition",
    "validate_composition",
]
