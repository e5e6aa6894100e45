"""How is this model laid out? Somebody wrote it down, or it is found by tracing the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adapters.sites.discovery import discover
from adapters.sites.spec import ModelSpec
from adapters.sites.specs import SPECS


def spec_for(
    model: nn.Module, example_inputs: Mapping[str, Any] | None = None, root: nn.Module | None = None
) -> ModelSpec:
    """The spec of a base model: the one written for its type, else the one that `discover` finds.

    Args:
        model: A base model.
        example_inputs, root: As for `discover`.
    Raises:
        UnsupportedError: nothing is known of models of its type, and no forward pass succeeds.
    """
    config: Any = getattr(model, "config", None)
    found = SPECS.get(getattr(config, "model_type", ""))
    if found is None:
        return discover(model, example_inputs, root)
    return found if isinstance(found, ModelSpec) else found(config)
