"""Entries are dropped at random, and the others made larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.merging.algorithm import Random, Seeded, Weights
from adapters.merging.linear import weighted_sum
from adapters.merging.ties import Electing, elected_mean


def dropped(tensor: Tensor, kept: Tensor, random: Random) -> Tensor:
    """Every entry with the probability `kept` divided by it, else 0: the expectation stays what it is."""
    mask = torch.bernoulli(kept.to(random.device), generator=random)
    return tensor * mask.to(tensor) / kept


@dataclass(frozen=True)
class DareLinear(Seeded):
    """Drop and rescale, and sum.

        t = sum_i w_i m_i * t_i / density,    m_i ~ Bernoulli(density), entry by entry

    Paper: Yu et al. 2023, arXiv:2311.03099.

    Args:
        density: The part of the entries that is kept, in (0, 1].
        seed: Where random numbers start.
    """

    strategy = "dare_linear"
    paper = "arXiv:2311.03099"

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return weighted_sum(self.sparse(tensors, random), weights)

    def sparse(self, tensors: Sequence[Tensor], random: Random) -> list[Tensor]:
        """The tensors with entries dropped."""
        return [dropped(tensor, torch.full_like(tensor, self.density), random) for tensor in tensors]


@dataclass(frozen=True)
class DareTies(Electing, DareLinear):
    """Drop and rescale, elect a sign, and take the mean of what agrees.

        d_i = w_i m_i * t_i / density,    t = mean of the d_i != 0 with the elected sign, as of TIES

    Paper: Yu et al. 2023, arXiv:2311.03099; Yadav et al. 2023, arXiv:2306.01708.

    Args:
        density: The part of the entries that is kept, in (0, 1].
        seed: Where random numbers start.
        majority: "total", or "frequency": whether entries vote with their size, or one vote each.
    """

    strategy = "dare_ties"

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return elected_mean(self.sparse(tensors, random), weights, self.majority)
