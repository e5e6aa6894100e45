"""How is this model laid out? Somebody wrote it down, or it is found by tracing the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adapters.sites.discovery import discover
from adapters.sites.pairs import halves, joined
from adapters.sites.spec import ModelSpec
from adapters.sites.specs import SPECS


def spec_for(
    model: nn.Module, example_inputs: Mapping[str, Any] | None = None, root: nn.Module | None = None
) -> ModelSpec:
    """The spec of a base model: the one written for its type or for those of its halves, else what `discover` finds.

    Args:
        model: A base model.
        example_inputs, root: As for `discover`.
    Raises:
        UnsupportedError: nothing is known of models of its type, and no forward pass succeeds.
    """
    if (found := written(model)) is not None:
        return found
    parts = halves(model)
    specs = {path: spec for path, half in parts.items() if (spec := written(half)) is not None}
    if parts and len(specs) == len(parts) and (both := joined(parts, specs)) is not None:
        return both
    return discover(model, example_inputs, root)


def written(model: nn.Module) -> ModelSpec | None:
    """The spec that somebody wrote for models of the type of a base model, None if nobody did."""
    config: Any = getattr(model, "config", None)
    found = SPECS.get(getattr(config, "model_type", ""))
    return found(config) if callable(found) else found
