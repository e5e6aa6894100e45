"""How does a model become what it was before `adapters.init`, with its adapters in its weights?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from adapters.errors import MergeError
from adapters.methods.base import AffineAdapter
from adapters.runtime import merging
from adapters.runtime.engine import Engine

OURS = ("_engine", "model_frozen", "_disabled")
"""Attributes that `init` and the verbs give to a model."""


def unload(model: Any, names: Sequence[str] | None, weights: Sequence[float] | None) -> Any:
    """Merge some adapters, by default the active one, then remove all that is ours from the model, and return it.

    Raises:
        MergeError: they cannot be merged as a whole, or nobody says which. Nothing has changed.
    """
    engine: Engine = model._engine
    root: Any = engine.root
    names = _active(engine) if names is None else names
    for name in (*engine.merged, *names):
        engine.require(name)
        left = next((part for part in engine.parts[name] if not _in_weights(part.module)), None)
        if left is not None:
            raise MergeError(
                f"Adapter {name!r} has {type(left.module).__name__} at {left.path}, which is no change of weights, so "
                "no plain model computes the same. Save the model with its adapters (save_pretrained)."
            )
    before = engine.config.active_setup, engine.config.skip_layers
    engine.activate(None)
    try:
        if names:
            merging.merge_all(engine, names, weights, on_top=True)
    except BaseException:  # an interrupt too
        engine.activate(*before)
        raise
    engine.merged.clear()
    for name in list(engine.parts):
        root.delete_adapter(name)
    if getattr(type(root), "_adapted_class", None) is not None:
        _give_back(root)
    return root


def _active(engine: Engine) -> list[str]:
    """The adapter that is active; none where only merged ones are."""
    setup, skipped = engine.config.active_setup, engine.config.skip_layers
    names = sorted(setup.flatten() - set(engine.merged)) if setup is not None else []
    if len(names) > 1 or skipped or not (names or engine.merged):
        found = "none is active or merged" if setup is None else f"{setup!r} is active"
        left_out = f", but for layers {skipped}" if skipped else ""
        raise MergeError(
            f"Which adapters become part of the model? {found[0].upper()}{found[1:]}{left_out}. Name one or several, "
            "each merged on top of those before it: merge_and_unload([...])."
        )
    return names


def _in_weights(module: Any) -> bool:
    """Whether all that a module does can be in weights; also one that others of its adapter share."""
    return isinstance(module, AffineAdapter) or not hasattr(module, "run")


def _give_back(root: Any) -> None:
    """Let the model, and the base model in it, have their own classes, and no engine."""
    engine: Engine = root._engine
    for module in root.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(function, partial) and engine in function.args:
            module._gradient_checkpointing_func = function.args[-1]
    for part in (root, root.base_model, engine.base):
        plain: type[nn.Module] | None = getattr(type(part), "_adapted_class", None)
        for name in OURS:
            part.__dict__.pop(name, None)
        if plain is not None:
            part.__class__ = plain
