"""What an adapter does to weights, as one LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from adapters.errors import ConfigError, MergeError, UnsupportedError
from adapters.methods.base import AffineAdapter
from adapters.runtime.engine import Engine
from adapters.sites.site import ExpertsSite, LinearSite

EXACT = 1e-5
"""Relative error up to which an update counts as the same: what 32 bit round."""


@dataclass(frozen=True)
class Factors:
    """A [r, I] and B [O, r] of W + B A, and what is added to the bias, [O], None for nothing."""

    a: Tensor
    b: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class LowRank:
    """An adapter as LoRA with scaling 1.

    Attributes:
        rank: r of all linear maps; factors of a lower rank are filled with zeros.
        maps: The linear maps that it changes.
        errors: By path, ||D - B A|| / ||D|| in the Frobenius norm, for D what the adapter adds to the weight.
    """

    rank: int
    maps: Mapping[LinearSite, Factors]
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether nothing is lost but what rounding takes."""
        return all(error <= EXACT for error in self.errors.values())


@torch.no_grad()
def low_rank(engine: Engine, name: str, rank: int | None = None) -> LowRank:
    """The adapter `name` as one LoRA.

    Updates that are a product of matrices already, as those of LoRA, VeRA and VB-LoRA, stay exact if `rank` allows it;
    what is left out, and all of other updates (LoHa, LoKr, DoRA, IA3, OFT), is the best approximation there is: the
    largest singular values (Eckart and Young 1936).

    Args:
        engine: Of the model.
        name: The adapter.
        rank: r; by default the lowest with which nothing is lost.
    Raises:
        AdapterNameError: there is no adapter of this name.
        UnsupportedError: it does something else than to change weights and biases of linear maps.
        ConfigError: no rank is given, and no low one is exact; or it is not a positive number.
        MergeError: it is merged, or its update depends on the input.
    """
    engine.require(name)
    if name in engine.merged:
        raise MergeError(f"Adapter {name!r} is merged into the base model. Call reset_adapter first.")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ConfigError(f"rank={rank!r} is no rank. Give a positive number, or None for the lowest that is exact.")
    updates = {site: _Update.of(module) for site, module in _linear(engine, name).items()}
    if rank is None:
        rank = _lowest(name, updates)
    factors = {site: update.factors(rank) for site, update in updates.items()}
    errors = {site.path: update.error(factors[site]) for site, update in updates.items()}
    return LowRank(rank, factors, errors)


def _linear(engine: Engine, name: str) -> dict[LinearSite, AffineAdapter]:
    """The modules of an adapter by the linear map that each changes."""
    found: dict[LinearSite, AffineAdapter] = {}
    for part in engine.parts[name]:
        if part.hooked is None:
            continue
        site: Any = part.hooked.site
        kind, why = type(part.module).__name__, None
        if not isinstance(part.module, AffineAdapter):
            why = "is no change of weights, so no LoRA computes the same"
        elif isinstance(site, ExpertsSite):
            why = "changes experts that are packed into one parameter, which LoRA files have no names for"
        elif not isinstance(site, LinearSite):
            why = "changes a norm, which is no linear map"
        elif part.module.acts_tied:
            why = "changes the output embedding too, which has the same weights"
        elif site.call is not None:
            why = f"acts in one of the {site.call[1]} calls of its module"
        elif site in found:
            why = f"acts where {type(found[site]).__name__} of the same adapter does"
        if why is not None:
            raise UnsupportedError(
                f"Adapter {name!r} cannot become LoRA: {kind} at {site.path} {why}. Methods that change linear maps "
                "can, such as LoRA, DoRA, VeRA, LoHa, LoKr, OFT and IA3. Others run in this library alone."
            )
        found[site] = part.module
    return found


@dataclass(frozen=True)
class _Update:
    """D of one linear map: as a product B A if it is one, else as the matrix [O, I]; and the change of the bias."""

    product: tuple[Tensor, Tensor] | None
    dense: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, module: Any) -> _Update:
        site = module.site
        weight = site.weight.detach()
        before = weight.new_zeros(weight.shape[0]) if site.bias is None else site.bias.detach()
        changed, after = module.merged(weight, before)
        bias = None if after is None or torch.equal(after, before) else (after - before).float()
        try:
            effect = module.effect()
        except NotImplementedError:
            effect = None
        if effect is not None and effect.scale is None and len(effect.factors) > 1:
            first, *rest = (factor.detach().float() for factor in effect.factors)
            return cls((first, reduce(lambda inner, outer: outer @ inner, rest)), None, bias)
        return cls(None, changed.float() - weight.float(), bias)

    def matrix(self) -> Tensor:
        if self.dense is not None:
            return self.dense
        assert self.product is not None
        return self.product[1] @ self.product[0]

    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S, V^T of D; of a product by way of its narrow factors."""
        if self.product is None:
            assert self.dense is not None
            found: tuple[Tensor, Tensor, Tensor] = torch.linalg.svd(self.dense.double(), full_matrices=False)
            return found
        a, b = (factor.double() for factor in self.product)
        (left, inner), (right, outer) = torch.linalg.qr(b), torch.linalg.qr(a.T)
        u, s, vt = torch.linalg.svd(inner @ outer.T, full_matrices=False)
        return left @ u, s, vt @ right.T

    def lowest(self) -> int:
        """The lowest rank that loses nothing."""
        if self.product is not None:
            return self.product[0].shape[0]
        values = torch.linalg.svdvals(self.matrix().double())
        return max(1, int((values > EXACT * values[0]).sum()))

    def factors(self, rank: int) -> Factors:
        if self.product is not None and self.product[0].shape[0] <= rank:
            a, b = self.product
        else:
            u, s, vt = self.spectrum()
            root = s[:rank].sqrt()
            a, b = (root[:, None] * vt[:rank]).float(), (u[:, :rank] * root).float()
        missing = rank - a.shape[0]
        a = torch.cat([a, a.new_zeros(missing, a.shape[1])])
        return Factors(a.contiguous(), torch.cat([b, b.new_zeros(len(b), missing)], 1).contiguous(), self.bias)

    def error(self, found: Factors) -> float:
        wanted = self.matrix()
        size = wanted.norm()
        return float((wanted - found.b @ found.a).norm() / size) if size else 0.0


def _lowest(name: str, updates: Mapping[LinearSite, _Update]) -> int:
    """The lowest rank with which all updates are exact. Raises ConfigError where that is no low one."""
    ranks = {site: update.lowest() for site, update in updates.items()}
    site = max(ranks, key=ranks.__getitem__)
    if updates[site].product is None and 2 * ranks[site] > min(site.in_features, site.out_features):
        raise ConfigError(
            f"Adapter {name!r} changes {site.path} [{site.out_features}, {site.in_features}] by a matrix of rank "
            f"{ranks[site]}, which is not low. Give the rank of the LoRA that comes close: rank=16."
        )
    return ranks[site]
