"""Fold what changes linear maps and norms into their weights, and bring the exact weights back.

What is merged stays merged until it is taken out again, whatever is activated or trained meanwhile: others act on top.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.errors import CompositionError, MergeError
from adapters.methods import METHODS
from adapters.methods.base import AffineAdapter
from adapters.runtime.engine import Engine
from adapters.runtime.hooks import HookedSite
from adapters.sharding import assign, gathered, is_spread
from adapters.sites.resolve import ExpertsSite

logger = logging.getLogger(__name__)


@torch.no_grad()
def merge(engine: Engine, name: str) -> dict[str, float]:
    """Put the adapter `name` into the weights of its linear maps and norms, where it acts from then on, active or not.

    Returns:
        For quantised linear maps, by path, how much of the update is lost where the merged weights are rounded:
        ||Q(W + D) - (W + D)|| / ||D||. Empty where nothing is quantised.
    Raises:
        MergeError: another adapter is merged, this one changes no such module, its update depends on the input, or it
            changes weights that cannot be unpacked and packed again; or the active set-up has others beside it and
            would compute otherwise.
    """
    engine.require(name)
    if name in engine.merged:
        return {}
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
    changes = [_change(name, part.hooked, part.module) for part in parts]
    lost: dict[str, float] = {}
    with engine.programs.quiet():
        backup: list[Any] = []
        engine.merged[name] = backup
        for change in changes:
            site = change.hooked.site
            old_bias = None if site.bias is None else site.bias.detach().clone()
            backup.append((change.hooked, None if change.weight is None else site.stored_weight, old_bias))
            _write(change.hooked, change.weight, change.bias)
            if change.rounded is not None:
                lost[site.path] = _lost(*change.rounded, site.weight)
        engine.programs.changed([name])
    if lost:
        worst = max(lost, key=lost.__getitem__)
        logger.warning(
            "The merged weights of %r were quantised again: at %s, the worst of %d linear maps, rounding changes them "
            "by %.2g of what the adapter changes. Compare the outputs, or do not merge it (reset_adapter).",
            *(name, worst, len(lost), lost[worst]),
        )
    return lost


@dataclass(frozen=True)
class _Change:
    """What is to be written to one module: the weight as it is stored, None for no change, and the bias.

    `rounded` has the weights [O, I] before and with the adapter, of a module that quantises.
    """

    hooked: Any
    weight: Any
    bias: Tensor | None
    rounded: tuple[Tensor, Tensor] | None = None


def _change(name: str, hooked: Any, module: AffineAdapter) -> _Change:
    """What the adapter `name` makes of one module. Raises MergeError where it cannot be written there."""
    site = hooked.site
    if isinstance(site, ExpertsSite) and is_spread(site.stored):
        raise MergeError(
            f"{site.address} is spread over processes, and adapters of experts cannot be merged there. Save the "
            "adapter, and merge it in one process."
        )
    if any(parameter.is_meta for parameter in site.module.parameters(recurse=False)):
        raise MergeError(
            f"The weights of {site.path} are elsewhere (offloaded, or on 'meta'), where they cannot be changed. Merge "
            "before the model is dispatched."
        )
    if site.call is not None:
        raise MergeError(f"{site.path} is called {site.call[1]} times in a layer, and {name!r} acts in one call only.")
    with gathered(module.sources()):
        bias = module.merged_bias(site.bias)
    if bias is not None:
        return _Change(hooked, None, bias)
    before = site.weight
    with gathered(module.sources()):
        weight, bias = module.merged(before, site.bias)
    return _Change(hooked, site.as_stored(weight), bias, (before, weight) if site.packed else None)


def _lost(before: Tensor, wanted: Tensor, found: Tensor) -> float:
    """||found - wanted|| / ||wanted - before||, 0 for an update of 0."""
    change = (wanted - before).float().norm()
    return float((found - wanted).float().norm() / change) if change else 0.0


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


def _write(hooked: HookedSite[Any], weight: Any, bias: Tensor | None) -> None:
    """Give a linear map or norm this weight, as it is stored, None for the one it has, and this bias."""
    if weight is not None:
        hooked.site.assign(weight, bias)
    elif bias is not None:
        assign(hooked.site.module.bias, bias)
