"""Packaged data: the taxonomy of the old hub (Apache-2.0), the methods of the library, and papers to cite."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

__all__ = ["load"]


@functools.cache
def load(name: str) -> Any:
    """The JSON of a file in this folder."""
    return json.loads((resources.files(__package__) / name).read_text(encoding="utf-8"))
