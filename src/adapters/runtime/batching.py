"""Many adapters of equal shape in one batch, as one batched operation instead of a loop."""

from __future__ import annotations

from typing import Any


def batched(program: Any) -> Any:
    return None
