"""When is sentence-transformers imported? From then on it can open models with adapters, which costs their import.

`import adapters` must stay cheap, so transformers learns of our type of model (`training/inner.py`) only then.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

LIBRARY = "sentence_transformers"


class _Notices(MetaPathFinder):
    """Finds nothing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == LIBRARY:
            _register()


def _register() -> None:
    importlib.import_module("adapters.training.inner")


def notice_sentence_transformers() -> None:
    """Register our type of model where sentence-transformers is imported, or as soon as it is."""
    if LIBRARY in sys.modules:
        _register()
    elif not any(isinstance(finder, _Notices) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Notices())
