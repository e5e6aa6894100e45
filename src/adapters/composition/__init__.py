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
    "parse_composition",
    "parse_heads_from_composition",
    "validate_composition",
]
