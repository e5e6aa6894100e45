"""Fold what changes linear maps and norms into their weights, and bring the exact weights back.

What is merged stays merged until it is taken out again, whatever is activated or trained meanwhile: others act on top.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adapters.errors import CompositionError, MergeError
from adapters.methods import METHODS
from adapters.methods.base import AffineAdapter
from adapters.runtime.engine import Engine
from adapters.runtime.hooks import HookedSite
from adapters.sharding import assign, gathered, is_spread
from adapters.sites.site import ExpertsSite, TableSite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """What is known of an adapter in the base weights.

    Attributes:
        weight: How much of it is there: w of W + w (M - W), for M what it makes of the weight W.
        before: (site, weight, bias) of the modules it was folded into, as they were before; None for the whole if they
            are not known, and in place of weights that it did not change.
    """

    weight: float = 1.0
    before: list[tuple[HookedSite[Any], Any, Tensor | None]] | None = None


def merge_all(
    engine: Engine, names: Sequence[str], weights: Sequence[float] | None = None, on_top: bool = False
) -> dict[str, float]:
    """Let these adapters be merged, each on top of those before it; all of them or none.

    Args:
        engine: Of the model.
        names: What is to be in the weights, in this order: first what is there already.
        weights: How much of each; by default 1.
        on_top: Whether they come on top of what is there, without naming it.
    Returns:
        As `merge`, of each module the worst.
    Raises:
        MergeError: one cannot be merged, others are merged already, or the weights do not fit.
    """
    if not names:
        raise MergeError("There are no adapters to merge. Name at least one.")
    if len(set(names)) < len(names):
        raise MergeError(f"Adapters {list(names)!r} are to be merged, and one more than once. Name each once.")
    weights = [1.0] * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise MergeError(f"There are {len(weights)} weights for {len(names)} adapters. Give one per adapter.")
    for weight in weights:
        if not isinstance(weight, Real) or isinstance(weight, bool) or not math.isfinite(weight):
            raise MergeError(f"The weight {weight!r} is no finite number. Give one number per adapter.")
    there = list(engine.merged)
    for name, weight in zip(names, weights):
        engine.require(name)
        if name in engine.merged and (on_top or engine.merged[name].weight != weight):
            raise MergeError(
                f"Adapter {name!r} is merged already, with weight {engine.merged[name].weight:g}. Call "
                f"reset_adapter({name!r}) first."
            )
    new = [name for name in names if name not in engine.merged]
    if new and not on_top and list(names[: len(there)]) != there:
        raise MergeError(
            f"Adapter {there[0]!r} is merged already. Call reset_adapter() first; or, to have others on top, name "
            f"all in order: merge_adapter({[*there, *new]!r})."
        )
    lost: dict[str, float] = {}
    done: list[str] = []
    try:
        for name, weight in zip(names, weights):
            if name not in new:
                continue
            for path, part in merge(engine, name, weight).items():
                lost[path] = max(part, lost.get(path, 0.0))
            done.append(name)
    except BaseException:  # an interrupt too
        for name in reversed(done):
            unmerge(engine, name)
        raise
    return lost


@torch.no_grad()
def merge(engine: Engine, name: str, weight: float = 1.0) -> dict[str, float]:
    """Put the adapter `name` into the weights of its linear maps and norms, where it acts from then on, active or not.

        W <- W + weight * (M - W),    M what the adapter makes of W

    Args:
        engine: Of the model.
        name: The adapter. Others that are merged already stay below it.
        weight: How much of it.
    Returns:
        For quantised linear maps, by path, how much of the update is lost where the merged weights are rounded:
        ||Q(W + D) - (W + D)|| / ||D||. Empty where nothing is quantised.
    Raises:
        MergeError: this one changes no such module, its update depends on the input, or it changes weights that cannot
            be unpacked and packed again; or the active set-up has others beside it and would compute otherwise.
    """
    engine.require(name)
    if name in engine.merged:
        return {}
    parts = [part for part in engine.parts[name] if isinstance(part.module, AffineAdapter)]
    if not parts:
        raise MergeError(
            f"Adapter {name!r} changes no linear map and no norm, so it cannot be merged into the base weights. Those "
            f"of {', '.join(method.__name__ for method in METHODS if issubclass(method, AffineAdapter))} can."
        )
    try:
        engine.check_merged(engine.config.active_setup, [*engine.merged, name])
    except CompositionError as error:
        raise MergeError(f"Adapter {name!r} cannot be merged while this set-up is active. {error}") from None
    changes = [_change(name, part.hooked, part.module, weight) for part in parts]
    lost: dict[str, float] = {}
    with engine.programs.quiet():
        before: list[tuple[HookedSite[Any], Any, Tensor | None]] = []
        engine.merged[name] = Merged(weight, before)
        for change in changes:
            site = change.hooked.site
            old_bias = None if site.bias is None else site.bias.detach().clone()
            before.append((change.hooked, None if change.weight is None else site.stored_weight, old_bias))
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


def _change(name: str, hooked: Any, module: AffineAdapter, weight: float) -> _Change:
    """What `weight` of the adapter makes of one module. Raises MergeError where it cannot be written there."""
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
    check_readers(name, hooked, module)
    with gathered(module.sources()):
        bias = module.merged_bias(site.bias)
    if bias is not None:
        return _Change(hooked, None, _between(site.bias, bias, weight))
    before = site.weight
    with gathered(module.sources()):
        merged, bias = module.merged(before, site.bias)
    merged, bias = _between(before, merged, weight), None if bias is None else _between(site.bias, bias, weight)
    return _Change(hooked, site.as_stored(merged), bias, (before, merged) if site.packed else None)


def _between(one: Tensor | None, other: Tensor, weight: float) -> Tensor:
    """one + weight * (other - one); exactly `other` for 1."""
    return other if weight == 1 or one is None else one + weight * (other - one)


def check_readers(name: str, hooked: HookedSite[Any], module: AffineAdapter) -> None:
    """Raise MergeError if an adapter acts at a table of embeddings alone whose weights others have too."""
    table, root = hooked.site.module, hooked.programs.engine.root
    if not isinstance(hooked.site, TableSite) or module.acts_tied:
        return
    for path, other in root.named_modules():
        if other is not table and getattr(other, "weight", None) is table.weight:
            raise MergeError(
                f"{name!r} changes the table of embeddings {hooked.site.path}, and {path} has the same weights "
                "(tie_word_embeddings), which it does not change. Keep it as an adapter, or open the model with "
                "tie_word_embeddings=False."
            )


def _lost(before: Tensor, wanted: Tensor, found: Tensor) -> float:
    """||found - wanted|| / ||wanted - before||, 0 for an update of 0."""
    change = (wanted - before).float().norm()
    return float((found - wanted).float().norm() / change) if change else 0.0


def assume_merged(engine: Engine, name: str) -> None:
    """Take the base weights for ones that hold the adapter `name` already. Those from before are not known."""
    engine.merged[name] = Merged()
    engine.programs.changed([name])


@torch.no_grad()
def unmerge(engine: Engine, name: str | None = None) -> None:
    """Take merged adapters out of the base weights: the weights from before come back, bit for bit.

    Adapters that were merged on top of one that is taken out are merged again without it.

    Args:
        engine: Of the model.
        name: Only this one, if it is merged; by default all.
    Raises:
        MergeError: the weights are not known, because the model was saved while an adapter was merged.
    """
    if not engine.merged or (name is not None and name not in engine.merged):
        return
    order = list(engine.merged)
    above = order[0 if name is None else order.index(name) :]
    unknown = [adapter for adapter in above if engine.merged[adapter].before is None]
    if unknown:
        raise MergeError(
            f"Adapter {unknown[-1]!r} was merged when this model was saved, and the base weights from before were not "
            "saved. Load the base model, and the adapter into it, to have them apart."
        )
    again = {adapter: engine.merged[adapter].weight for adapter in above[1:]} if name is not None else {}
    with engine.programs.quiet():
        for adapter in reversed(above):
            # Backwards, because tables that share their weights were written one after the other.
            for hooked, weight, bias in reversed(engine.merged.pop(adapter).before or ()):
                _write(hooked, weight, bias)
        engine.programs.changed(above)
    for adapter, share in again.items():
        merge(engine, adapter, share)


def _write(hooked: HookedSite[Any], weight: Any, bias: Tensor | None) -> None:
    """Give a linear map or norm this weight, as it is stored, None for the one it has, and this bias."""
    if weight is not None:
        hooked.site.assign(weight, bias)
    elif bias is not None:
        assign(hooked.site.module.bias, bias)
