"""Trainers collect garbage at every start; without the libraries' own objects that takes a tenth of the time."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def quick_collection() -> Iterator[None]:
    """Keep what the libraries have made so far out of garbage collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
