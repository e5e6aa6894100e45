"""Entries vote on their sign, and only those that agree count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.merging.algorithm import Random, Sparse, Weights
from adapters.merging.magnitude_prune import trimmed

MAJORITIES = ("total", "frequency")


def elected_mean(tensors: Sequence[Tensor], weights: Weights, majority: str) -> Tensor:
    """Of every entry the mean of those w_i t_i that are not 0 and have the elected sign.

    Elected is the sign of their sum ("total"), or the one that more of them have ("frequency"); plus, if none is.
    """
    weighted = torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)])
    signs = weighted.sign()
    votes = (weighted if majority == "total" else signs).sum(0)
    agree = signs == torch.where(votes >= 0, 1.0, -1.0)
    return (weighted * agree).sum(0) / agree.sum(0).clamp(min=1)


@dataclass(frozen=True)
class Electing(Sparse):
    """An algorithm whose entries are an `elected_mean`: normalised weights sum to the number of adapters.

    Args:
        majority: "total", or "frequency": whether entries vote with their size, or one vote each.
    """

    majority: str = "total"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.majority not in MAJORITIES:
            raise self.wrong("majority", " or ".join(map(repr, MAJORITIES)))

    def total(self, count: int) -> float:
        return float(count)


@dataclass(frozen=True)
class Ties(Electing):
    """Trim, elect a sign, and take the mean of what agrees, entry by entry.

        d_i = w_i trim(t_i),    g = sign(sum_i d_i),    t = mean of the d_i != 0 with sign(d_i) = g

    Since that is a mean, normalised weights sum to n here: equal ones are 1, as in the paper.

    Paper: Yadav et al. 2023, arXiv:2306.01708.

    Args:
        density: The part of the entries of each adapter that is kept, in (0, 1]; in the paper 0.2.
        majority: "total", or "frequency": whether entries vote with their size, or one vote each.
    """

    strategy = "ties"
    paper = "arXiv:2306.01708"
    density: float = 0.2

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return elected_mean([trimmed(tensor, self.density) for tensor in tensors], weights, self.majority)
