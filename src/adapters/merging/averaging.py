"""How do the tensors of several adapters become those of a new one? Place by place, by one of the `ALGORITHMS`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import AdapterNameError, MergeError
from adapters.merging import ALGORITHMS, algorithm_of
from adapters.merging.algorithm import Algorithm
from adapters.merging.search import LoraHub
from adapters.merging.shares import NO_LAYER, Shares, Weight
from adapters.merging.update import Update
from adapters.methods.base import fixed_parameters, resting_value
from adapters.methods.config import AdapterConfig, ConfigUnion, members_of
from adapters.methods.lora import LoRA
from adapters.runtime import merging
from adapters.runtime.active import AdapterSetup
from adapters.runtime.engine import Engine
from adapters.runtime.parts import Part

MEANINGLESS = ("dropout", "init_weights", "init_weights_seed", "stochastic_depth")
"""Fields in which averaged adapters may differ: they do not change what weights mean."""
SIZES = ("r", "alpha")
"""Fields in which LoRA adapters may differ whose products are combined."""


def average_adapter(
    engine: Engine,
    name: str,
    adapters: Sequence[str] | Mapping[str, Weight],
    weights: Sequence[Weight] | LoraHub | None = None,
    strategy: str = "linear",
    normalize: bool = True,
    overwrite_ok: bool = False,
    options: Mapping[str, Any] | None = None,
) -> dict[str, list[float]]:
    """Add an adapter made of others; `overwrite_ok` lets it take the place of an adapter of this name.

    Returns:
        The weight of each adapter, by layer.
    Raises:
        AdapterNameError: an adapter does not exist, or `name` is taken.
        MergeError: the adapters differ in their configs, or the algorithm does not suit them.
    """
    layers = 1 + max((hooked.site.layer for hooked in engine.hooked), default=-1)
    search = weights if isinstance(weights, LoraHub) else None
    shares = Shares.of(adapters, None if isinstance(weights, LoraHub) else weights, normalize, layers)
    for adapter in shares.names:
        engine.require(adapter)
    if name in engine.config and not overwrite_ok:
        raise AdapterNameError(f"There is an adapter {name!r} already. Choose another name, or pass overwrite_ok=True.")
    algorithm = algorithm_of(strategy, options or {})
    algorithm.check(shares.names, shares.normalize and search is None)
    recipe = Recipe(engine, shares.names, algorithm)
    if search is not None:
        shares = _found(engine, name, recipe, search, layers)
    parts = recipe.built(name)
    recipe.fill(parts, shares)
    if name in engine.merged:
        merging.unmerge(engine, name)
    engine.insert(name, recipe.config, parts, overwrite=True)
    total = algorithm.total(len(shares.names))
    by_layer = [shares.at(layer, total) for layer in sorted({part.layer for part in parts})]
    return {adapter: [own[i] for own in by_layer] for i, adapter in enumerate(shares.names)}


def _found(engine: Engine, name: str, recipe: Recipe, search: LoraHub, layers: int) -> Shares:
    """The weights that a search finds, with an adapter that is there only meanwhile."""
    names = recipe.names
    candidate = f"{name}_candidate"
    while candidate in engine.config:
        candidate += "_"
    parts = recipe.built(candidate)

    def shares_of(weights: Sequence[float]) -> Shares:
        return Shares.of(names, list(weights), False, layers)

    def loss(weights: Sequence[float]) -> float:
        recipe.fill(parts, shares_of(weights))
        found = search.loss(engine.root)
        try:
            return float(found)
        except (TypeError, ValueError):
            raise MergeError(f"LoraHub: the loss gave {found!r}. Return a number, the lower the better.") from None

    recipe.fill(parts, shares_of([1 / len(names)] * len(names)))
    engine.insert(candidate, recipe.config, parts)
    try:
        heads = getattr(engine.root, "active_head", None)
        with evaluating(engine.root), AdapterSetup(candidate, head_setup=heads):
            return shares_of(search.best(len(names), loss))
    finally:
        engine.delete(candidate)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; afterwards every module is in its mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Recipe:
    """The tensors of some adapters, and the algorithm by which they are combined.

    Attributes:
        config: The config of what they become.

    Raises:
        MergeError: the algorithm does not suit these adapters.
    """

    def __init__(self, engine: Engine, names: Sequence[str], algorithm: Algorithm) -> None:
        self.engine, self.names, self.algorithm = engine, names, algorithm
        self.parts = [{(p.path, id(p.hooked)): p.module for p in engine.parts[name]} for name in names]
        self._check()
        self.config = self._config()

    def _check(self) -> None:
        """Raise MergeError where the algorithm, or the rank it is told, does not suit what the adapters are."""
        strategy, rank, loras = self.algorithm.strategy, getattr(self.algorithm, "svd_rank", None), 0
        for part in self.engine.parts[self.names[0]]:
            if (lora := _lora(part.module)) is not None:
                loras += 1
                if rank is not None and rank > (most := min(lora.out_features, lora.in_features)):
                    raise MergeError(f"svd_rank={rank} is above {most}, the largest rank of an update at {part.path}.")
            elif self.algorithm.lora_only:
                others = ", ".join(kind.strategy for kind in ALGORITHMS if not kind.lora_only)
                gated = " with a gate" if type(part.module) is LoRA else ""
                raise MergeError(
                    f"combine_strategy={strategy!r} is for LoRA, but {self.names[0]!r} has "
                    f"{type(part.module).__name__}{gated} at {part.path}. For every method there are: {others}."
                )
        if rank is not None and not loras:
            raise MergeError(f"svd_rank={rank} is for LoRA without a gate, which {self.names[0]!r} is not.")

    def _config(self) -> AdapterConfig:
        """The config of the first adapter, if the others mean the same, with the rank that LoRA gets."""
        configs = [self.engine.config.get(name) for name in self.names]
        first, free = configs[0], SIZES if self.algorithm.of_updates and self.algorithm.scaled else ()
        assert first is not None
        for name, config in zip(self.names, configs):
            if config is None or _meaning(config, free) != _meaning(first, free):
                raise MergeError(
                    f"Adapters {self.names[0]!r} and {name!r} have different configs, so there is no average: "
                    f"{first!r} and {config!r}. They may differ only in {', '.join((*MEANINGLESS, *free))}."
                )
        if not self.algorithm.of_updates:
            return first
        members = [self._member(own) for own in zip(*(members_of(config) for config in configs if config is not None))]
        if all(new is old for new, old in zip(members, members_of(first))):
            return first
        return ConfigUnion(*members) if isinstance(first, ConfigUnion) else members[0]

    def _member(self, own: Sequence[AdapterConfig]) -> AdapterConfig:
        if not _has_products(own[0]):
            return own[0]
        rank = self.algorithm.rank([config["r"] for config in own])
        return own[0].replace(r=rank, alpha=rank) if self.algorithm.scaled else own[0].replace(r=rank)

    def built(self, name: str) -> list[Part]:
        """The modules of what they become, not yet in the model, and without its values."""
        with torch.random.fork_rng(devices=[]):
            return self.engine.build(name, self.config.without_start())

    @torch.no_grad()
    def fill(self, parts: Sequence[Part], shares: Shares) -> None:
        """Give `built` modules their values. The same arguments give the same values."""
        random = torch.Generator().manual_seed(getattr(self.algorithm, "seed", 0))
        total = self.algorithm.total(len(self.names))
        for part in parts:
            key = part.path, id(part.hooked)
            sources = [own[key] for own in self.parts if key in own]
            if len(sources) < len(self.names):
                raise MergeError(f"An adapter of {', '.join(map(repr, self.names))} has nothing at {part.path}.")
            weights = shares.at(part.layer if part.hooked is not None else NO_LAYER, total)
            done: set[str] = set()
            if self.algorithm.of_updates and (target := _lora(part.module)) is not None:
                self._fill_product(target, [_lora(source) for source in sources], weights, random)
                done = {"lora_A", "lora_B"}
            states = [source.state_dict() for source in sources]
            fixed = {id(parameter) for parameter in fixed_parameters(part.module)}
            for inner, tensor in part.module.state_dict(keep_vars=True).items():
                if inner not in done:
                    own = [state[inner] for state in states]
                    rest = resting_value(part.module, inner) if self.algorithm.relative else 0.0
                    options = (rest, id(tensor) in fixed, f"{part.path}.{inner}")
                    tensor.copy_(combined(self.algorithm, inner, own, weights, random, *options))

    def _fill_product(self, target: LoRA, sources: Sequence[Any], weights: Sequence[float], random: Any) -> None:
        own = [_updates(source, self.algorithm.scaled) for source in sources]
        rank: int = target.config.r
        found = [self._update(updates, weights, rank, random) for updates in zip(*own, strict=True)]
        target.lora_A.copy_(torch.cat([update.down for update in found], -2))
        target.lora_B.copy_(torch.cat([update.up for update in found], -2))

    def _update(self, updates: Sequence[Update], weights: Sequence[float], rank: int, random: Any) -> Update:
        """One update of several; at packed experts, [E, ., .], expert by expert."""
        if updates[0].down.dim() == 2:
            return self.algorithm.combine_updates(updates, weights, rank, random)
        experts = zip(*([Update(*own) for own in zip(*update)] for update in updates), strict=True)
        found = [self.algorithm.combine_updates(own, weights, rank, random) for own in experts]
        return Update(torch.stack([update.down for update in found]), torch.stack([update.up for update in found]))


def combined(
    algorithm: Algorithm,
    name: str,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    random: Any,
    rest: Tensor | float = 0.0,
    fixed: bool = False,
    where: str = "",
) -> Tensor:
    """One tensor of several.

    Args:
        algorithm: How.
        name: What the tensor is called in its module.
        tensors: The same tensor of each adapter.
        weights: One per adapter.
        random: Generator of random numbers.
        rest: The value with which it does nothing.
        fixed: Whether it never trains: others are relative to it, so it must be the same in all.
        where: What an error calls it.
    Raises:
        MergeError: it must be the same in all, and is not.
    """
    first = tensors[0]
    if (fixed and algorithm.relative) or not first.is_floating_point():
        if not all(torch.equal(first, other) for other in tensors):
            raise MergeError(
                f"{where} never trains, and the adapters have different values there, so what they learned on top of "
                "it cannot be combined. Train them from the same seed (init_weights_seed)."
            )
        return first
    wide = [_wide(tensor) for tensor in tensors]
    if not algorithm.relative:
        return algorithm.combine_named(name, wide, weights, random)
    return rest + algorithm.combine_named(name, [tensor - rest for tensor in wide], weights, random)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _lora(module: Any) -> Any:
    """The LoRA without gate that a module is, or that each of its experts has; None for others."""
    one = getattr(module, "one", module)
    return one if type(one) is LoRA and one.gate is None else None


def _has_products(config: AdapterConfig) -> bool:
    """Whether adapters of a config are such LoRA."""
    return LoRA.handles(config) and not config["use_gating"]


def _updates(lora: LoRA, scaled: bool) -> list[Update]:
    """What LoRA adds to the weight, for every adapted part of a fused projection."""
    scaling = lora.scaling if scaled else 1.0
    return [Update(_wide(down.detach()), scaling * _wide(up.detach())) for _, (down, up) in lora.parts(lora.factors())]


def _meaning(config: AdapterConfig, free: Sequence[str]) -> list[Any]:
    """What configs must have in common; `free` fields of LoRA may differ."""
    dropped = [(*MEANINGLESS, *(free if _has_products(member) else ())) for member in members_of(config)]
    return [_without(member.to_dict(), names) for member, names in zip(members_of(config), dropped)]


def _without(data: Any, names: Sequence[str]) -> Any:
    if isinstance(data, Mapping):
        return {key: _without(value, names) for key, value in data.items() if key not in names}
    return [_without(value, names) for value in data] if isinstance(data, list) else data
