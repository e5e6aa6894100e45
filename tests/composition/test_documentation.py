"""Do the examples of docs/composition.md run, and does its table say what nests?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from adapters.composition.blocks import BLOCK_TYPES

TEXT = (Path(__file__).parents[2] / "docs" / "composition.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, names)
    assert names["scores"].shape == (2, 7, 3) and names["loss"].requires_grad
    assert all(p.grad is not None for key, p in names["model"].named_parameters() if "routing" in key)
    assert torch.is_grad_enabled()
    assert names["logits"].shape == (4, 7, 50) and names["texts"].shape[0] == 4


def test_the_table_has_every_block() -> None:
    rows = re.findall(r"^\| `(\w+)\(.*\| ([^|]*) \|$", TEXT, re.MULTILINE)
    assert {name for name, _ in rows} == set(BLOCK_TYPES)
    for name, nests in rows:
        holders = {kind for kind, block in BLOCK_TYPES.items() if name in block.allowed}
        named = set(re.findall(r"`(\w+)`", nests))
        if "as `Average`" in nests or "the same" in nests:
            named |= {kind for kind, block in BLOCK_TYPES.items() if "Average" in block.allowed}
        if "as `Average`" in nests:
            named.discard("Average")
        assert named == holders or (nests == "all others" and holders == set(BLOCK_TYPES) - {name})
