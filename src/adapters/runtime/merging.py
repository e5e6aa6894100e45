"""Fold what changes linear maps and norms into their weights, and bring the exact weights back.

What is merged stays merged until it is taken out again, whatever is activated or trained meanwhile: others act on top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapters.errors import CompositionError, MergeError
from adapters.methods import METHODS
from adapters.methods.base import AffineAdapter
from adapters.runtime.engine import Engine
from adapters.runtime.hooks import HookedSite


@torch.no_grad()
def merge(engine: Engine, name: str) -> None:
    """Put the adapter `name` into the weights of its linear maps and norms, where it acts from then on, active or not.

    Raises:
        MergeError: another adapter is merged, this one changes no such module, its update depends on the input, or it
            changes weights that are quantised; or the active set-up has others beside it and would compute otherwise.
    """
    engine.require(name)
    if name in engine.merged:
        return
    if engine.merged:
        raise MergeError(
            f"Adapter {next(iter(engine.merged))!r} is merged already, and only one can be. Call reset_adapter() first."
        )
    parts = [part for part in engine.parts[name] if isinstance(part.module, AffineAdapter)]
    if not parts:
        raise MergeError(
            f"Adapter {name!r} changes no linear map and no norm, so it cannot be merged into the base weights. Those "
            f"of {', '.join(method.__name__ for method in METHODS if issubclass(method, AffineAdapter))} can."
        )
    try:
        engine.check_merged(engine.config.active_setup, [name])
    except CompositionError as error:
        raise MergeError(f"Adapter {name!r} cannot be merged while this set-up is active. {error}") from None
    changes: list[Any] = []
    for part in parts:
        site: Any = part.hooked.site  # type: ignore[union-attr]
        if site.call is not None:
            raise MergeError(
                f"{site.path} is called {site.call[1]} times in a layer, and {name!r} acts in one call only."
            )
        bias = part.module.merged_bias(site.bias)
        changes.append((part.hooked, part.module.merged(site.weight, site.bias) if bias is None else (None, bias)))
    with engine.programs.quiet():
        backup: list[Any] = []
        engine.merged[name] = backup
        for hooked, (weight, bias) in changes:
            old_bias = None if hooked.site.bias is None else hooked.site.bias.detach().clone()
            backup.append((hooked, None if weight is None else hooked.site.weight.detach().clone(), old_bias))
            _write(hooked, weight, bias)
        engine.programs.changed([name])


def assume_merged(engine: Engine, name: str) -> None:
    """Take the base weights for ones that hold the adapter `name` already. Those from before are not known."""
    engine.merged[name] = None
    engine.programs.changed([name])


@torch.no_grad()
def unmerge(engine: Engine, name: str | None = None) -> None:
    """Take the merged adapter out of the base weights: the weights from before come back, bit for bit.

    Args:
        engine: Of the model.
        name: Only if it is this one that is merged.
    Raises:
        MergeError: they are not known, because the model was saved while the adapter was merged.
    """
    if not engine.merged or (name is not None and name not in engine.merged):
        return
    merged, backup = next(iter(engine.merged.items()))
    if backup is None:
        raise MergeError(
            f"Adapter {merged!r} was merged when this model was saved, and the base weights from before were not "
            "saved. Load the base model, and the adapter into it, to have them apart."
        )
    with engine.programs.quiet():
        del engine.merged[merged]
        for hooked, weight, bias in backup:
            _write(hooked, weight, bias)
        engine.programs.changed([merged])


def _write(hooked: HookedSite[Any], weight: Tensor | None, bias: Tensor | None) -> None:
    """Give a linear map or norm this weight, None for the one it has, and this bias."""
    if weight is not None:
        hooked.site.assign(weight, bias)
    elif bias is not None:
        hooked.site.bias.copy_(bias)
