"""Small entries are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.merging.algorithm import Random, Sparse, Weights
from adapters.merging.linear import weighted_sum


def trimmed(tensor: Tensor, density: float) -> Tensor:
    """The `density` largest entries by their absolute value, 0 elsewhere."""
    flat = tensor.flatten()
    kept = flat.abs().topk(round(density * len(flat))).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(tensor)


@dataclass(frozen=True)
class MagnitudePrune(Sparse):
    """The largest entries of every adapter are kept, and summed.

    t = sum_i w_i trim(t_i)
    """

    strategy = "magnitude_prune"

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return weighted_sum([trimmed(tensor, self.density) for tensor in tensors], weights)
