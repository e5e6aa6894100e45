"""Fold a linear method into the base weights, and bring the exact weights back."""

from __future__ import annotations

from typing import Any

import torch

from adapters.errors import MergeError
from adapters.methods.base import LinearAdapter
from adapters.runtime.engine import Engine
from adapters.sites.linear import assign, weight_of
from adapters.sites.resolve import LinearSite


@torch.no_grad()
def merge(engine: Engine, name: str) -> None:
    """Put the adapter `name` into the weights of its linear maps; other adapters are skipped there meanwhile.

    Raises:
        MergeError: another adapter is merged, the adapter has no linear part, or its update depends on the input.
    """
    engine.require(name)
    if name in engine.merged:
        return
    if engine.merged:
        raise MergeError(
            f"Adapter {next(iter(engine.merged))!r} is merged already, and only one can be. Call reset_adapter() first."
        )
    parts = [(p, p.module) for p in engine.parts[name] if isinstance(p.module, LinearAdapter)]
    if not parts:
        raise MergeError(
            f"Adapter {name!r} changes no linear map, so it cannot be merged into the base weights. "
            "LoRA, DoRA and IA3 can."
        )
    changes = []
    for part, module in parts:
        linear: Any = module.site.module
        changes.append((part, module, module.merged(weight_of(linear), linear.bias)))
    backup = engine.merged[name] = []
    for part, module, (weight, bias) in changes:
        linear = module.site.module
        assert part.live is not None
        old_bias = None if linear.bias is None else linear.bias.detach().clone()
        backup.append((part.live, weight_of(linear).detach().clone(), old_bias))
        assign(linear, weight, bias)
        part.live.suspended = True
        part.live.unhook()


def assume_merged(engine: Engine, name: str) -> None:
    """Take the base weights for ones that hold the adapter `name` already. Those from before are not known."""
    engine.merged[name] = None
    for part in engine.parts[name]:
        if isinstance(part.module, LinearAdapter) and part.live is not None:
            part.live.suspended = True
            part.live.unhook()


@torch.no_grad()
def unmerge(engine: Engine) -> None:
    """Take merged adapters out of the base weights: the weights from before come back, bit for bit.

    Raises:
        MergeError: they are not known, because the model was saved while the adapter was merged.
    """
    while engine.merged:
        name, backup = next(iter(engine.merged.items()))
        if backup is None:
            raise MergeError(
                f"Adapter {name!r} was merged when this model was saved, and the base weights from before were not "
                "saved. Load the base model, and the adapter into it, to have them apart."
            )
        del engine.merged[name]
        for live, weight, bias in backup:
            assert isinstance(live.site, LinearSite)
            assign(live.site.module, weight, bias)
            live.suspended = False
            engine.refresh_hooks(live)
