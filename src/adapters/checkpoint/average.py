"""How is an adapter made out of others? By averaging their weights, or what their weights do.

    linear                        every tensor: sum_i w_i t_i
    lora_linear_only_negate_b     A = sum_i |w_i| A_i,  B = sum_i w_i B_i
    lora_delta_w_svd              B A = best approximation of rank `svd_rank` to sum_i w_i (alpha_i / r_i) B_i A_i
    lora_delta_w_svd_unscaled     B A = the same to sum_i w_i B_i A_i, with alpha as it was: what older versions made

Papers: Chronopoulou et al. 2023, arXiv:2311.09344 (linear); Zhang et al. 2023, arXiv:2306.14870 (negate_b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adapters.checkpoint.names import tensors_of
from adapters.errors import AdapterNameError, MergeError, choices
from adapters.methods.config import AdapterConfig
from adapters.methods.lora import LoRAConfig
from adapters.runtime import merging
from adapters.runtime.engine import Engine

MEANINGLESS = ("dropout", "init_weights", "init_weights_seed", "stochastic_depth")
"""Fields in which averaged adapters may differ: they do not change what weights mean."""
SVD, OLD_SVD = "lora_delta_w_svd", "lora_delta_w_svd_unscaled"
STRATEGIES = ("linear", "lora_linear_only_negate_b", SVD, OLD_SVD)

State = dict[str, Tensor]


def average_adapter(
    engine: Engine,
    name: str,
    adapters: Sequence[str] | Mapping[str, float],
    weights: Sequence[float] | None = None,
    strategy: str = "linear",
    normalize: bool = True,
    svd_rank: int | None = None,
    overwrite_ok: bool = False,
) -> None:
    """Add the average of some adapters; `overwrite_ok` lets it take the place of an adapter of this name.

    Raises:
        AdapterNameError: an adapter does not exist, or `name` is taken.
        MergeError: the adapters differ in their configs, or the strategy does not suit them.
    """
    shares = _shares(adapters, weights, normalize)
    for adapter in shares:
        engine.require(adapter)
    if name in engine.config and not overwrite_ok:
        raise AdapterNameError(f"There is an adapter {name!r} already. Choose another name, or pass overwrite_ok=True.")
    if strategy not in STRATEGIES:
        raise MergeError(f"There is no combine_strategy {strategy!r}. {choices(strategy, STRATEGIES)}")
    config = _common_config(engine, list(shares), ("r", "alpha") if strategy == SVD else ())
    if strategy != "linear" and not isinstance(config, LoRAConfig):
        raise MergeError(f"combine_strategy={strategy!r} is for LoRA, but the adapters are {type(config).__name__}.")
    states = [tensors_of(engine, engine.parts[adapter], name) for adapter in shares]
    factors = list(shares.values())
    with torch.no_grad():
        if strategy == "linear":
            result = _linear(states, factors)
        elif strategy == "lora_linear_only_negate_b":
            result = _negate_b(states, factors)
        elif strategy == OLD_SVD:
            result = _svd(states, factors, svd_rank, strategy)
            config = config.replace(r=svd_rank)
        else:
            scalings = [own["alpha"] / own["r"] for own in map(engine.config.get, shares) if own is not None]
            effects = [factor * scaling for factor, scaling in zip(factors, scalings, strict=True)]
            result = _svd(states, effects, svd_rank, strategy)
            config = config.replace(r=svd_rank, alpha=svd_rank)
    with torch.random.fork_rng(devices=[]):
        parts = engine.build(name, config.without_start())
    with torch.no_grad():
        for key, target in tensors_of(engine, parts, name).items():
            target.copy_(result[key])
    if name in engine.merged:
        merging.unmerge(engine)
    engine.insert(name, config, parts, overwrite=True)


def _shares(
    adapters: Sequence[str] | Mapping[str, float], weights: Sequence[float] | None, normalize: bool
) -> dict[str, float]:
    names = list(adapters)
    if weights is None and isinstance(adapters, Mapping):
        weights = list(adapters.values())
    if not names:
        raise MergeError("There are no adapters to average. Name at least one.")
    if weights is None:
        weights, normalize = [1.0] * len(names), True
    if len(weights) != len(names):
        raise MergeError(f"There are {len(weights)} weights for {len(names)} adapters. Give one per adapter.")
    if odd := [w for w in weights if not isinstance(w, Real) or isinstance(w, bool) or not math.isfinite(w)]:
        raise MergeError(f"The weight {odd[0]!r} is no finite number. Give one number per adapter.")
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise MergeError(f"Weights {list(weights)} sum to zero. Pass normalize_weights=False to use them as they are.")
    shares: dict[str, float] = dict.fromkeys(names, 0.0)
    for name, weight in zip(names, weights):
        shares[name] += weight / total
    return shares


def _common_config(engine: Engine, names: list[str], free: Sequence[str] = ()) -> AdapterConfig:
    """The config of the first adapter, if the others mean the same; fields in `free` may differ."""
    configs = [engine.config.get(name) for name in names]
    first = configs[0]
    assert first is not None
    for name, config in zip(names, configs):
        if config is None or _meaning(config.to_dict(), free) != _meaning(first.to_dict(), free):
            raise MergeError(
                f"Adapters {names[0]!r} and {name!r} have different configs, so there is no average: {first!r} and "
                f"{config!r}. They may differ only in {', '.join((*MEANINGLESS, *free))}."
            )
    return first


def _meaning(data: Any, free: Sequence[str]) -> Any:
    if isinstance(data, Mapping):
        return {key: _meaning(value, free) for key, value in data.items() if key not in (*MEANINGLESS, *free)}
    return [_meaning(value, free) for value in data] if isinstance(data, list) else data


def _sum(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor, factor in zip(tensors, factors):
        total += factor * tensor
    return total


def _linear(states: list[State], factors: list[float]) -> State:
    return {key: _sum([state[key] for state in states], factors) for key in states[0]}


def _negate_b(states: list[State], factors: list[float]) -> State:
    result: State = {}
    for key in states[0]:
        kind = _kind(key, "lora_linear_only_negate_b")
        own = factors if kind == "lora_B" else [abs(factor) for factor in factors]
        result[key] = _sum([state[key] for state in states], own)
    return result


def _kind(key: str, strategy: str) -> str:
    inner = key.rpartition(".")[2]
    if inner not in ("lora_A", "lora_B"):
        raise MergeError(
            f"combine_strategy={strategy!r} knows only lora_A and lora_B, but there is {key}. Use 'linear'."
        )
    return inner


def _svd(states: list[State], factors: list[float], rank: int | None, strategy: str) -> State:
    """A [rank, I] and B [O, rank] of all places: the best approximation to sum_i f_i B_i A_i.

    At a fused projection every adapted part has blocks of its own, A [n r, I] and B [n O', r], and its own
    approximation.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise MergeError(f"combine_strategy={strategy!r} needs svd_rank, an integer of at least 1; it is {rank!r}.")
    result: State = {}
    for key in states[0]:
        if _kind(key, strategy) == "lora_B":
            continue
        other = f"{key.removesuffix('lora_A')}lora_B"
        if other not in states[0]:
            raise MergeError(f"combine_strategy={strategy!r} is for LoRA, but there is no {other}.")
        parts = states[0][key].shape[0] // states[0][other].shape[1]
        downs, ups = [], []
        for part in range(parts):
            blocks = [(own[other].chunk(parts)[part], own[key].chunk(parts)[part]) for own in states]
            u, s, v = torch.linalg.svd(_sum([b.float() @ a.float() for b, a in blocks], factors), full_matrices=False)
            if rank > len(s):
                raise MergeError(f"svd_rank={rank} is above {len(s)}, the largest rank that {key} can have.")
            downs.append(v[:rank])
            ups.append(u[:, :rank] * s[:rank])
        result[key], result[other] = torch.cat(downs), torch.cat(ups)
    if set(result) != set(states[0]):
        raise MergeError(f"combine_strategy={strategy!r} is for LoRA, which these adapters are not. Use 'linear'.")
    return result
