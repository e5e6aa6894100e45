"""Which blocks own weights? The registry that engine, files, verbs and tests iterate."""

from __future__ import annotations

from adapters.composition.blocks import AdapterCompositionBlock
from adapters.composition.fusion import AdapterFusion
from adapters.composition.owned import BlockModule
from adapters.composition.routing import AdapterRouting

BLOCK_MODULES: tuple[type[BlockModule], ...] = (AdapterFusion, AdapterRouting)

OWNERS: dict[type[AdapterCompositionBlock], type[BlockModule]] = {kind.block: kind for kind in BLOCK_MODULES}
"""Type of block -> class of what it owns."""
