"""The largest entries are left out, and the smallest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.merging.algorithm import Random, Sparse, Weights
from adapters.merging.linear import weighted_sum


@dataclass(frozen=True)
class Breadcrumbs(Sparse):
    """The tails of the magnitudes are cut off: outliers above, noise below.

        t = sum_i w_i m_i * t_i,    m_i = 0 at the `gamma` largest |t_i|, 1 at the next `density`, 0 below

    Paper: Davari and Belilovsky 2023, arXiv:2312.06795.

    Args:
        density: The part of the entries that is kept, in (0, 1].
        gamma: The part of the largest entries that is left out, in [0, 1 - density].
    """

    strategy = "breadcrumbs"
    paper = "arXiv:2312.06795"
    density: float = 0.9
    gamma: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.gamma, int | float) or not 0 <= self.gamma <= 1 - self.density + 1e-9:
            raise self.wrong("gamma", f"a number from 0 to 1 - density = {1 - self.density:g}")

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return weighted_sum([self.middle(tensor) for tensor in tensors], weights)

    def middle(self, tensor: Tensor) -> Tensor:
        """The entries between both tails, 0 elsewhere."""
        flat = tensor.flatten()
        above = round(self.gamma * len(flat))
        kept = flat.abs().argsort(descending=True)[above : above + round(self.density * len(flat))]
        return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(tensor)
