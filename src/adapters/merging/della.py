"""Entries are dropped at random, small ones more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters.merging.algorithm import Random
from adapters.merging.dare import DareTies, dropped


@dataclass(frozen=True)
class Della(DareTies):
    """Drop by the rank of magnitudes in every row, rescale, elect a sign, and take the mean of what agrees.

        p_k = (1 - density) - epsilon / 2 + epsilon k / n,    for the k-th largest (k = 0, 1, ...) of n entries of a row
        d_i = w_i m_i * t_i / (1 - p),    m_i ~ Bernoulli(1 - p);    t as of TIES

    Paper: Deep et al. 2024, arXiv:2406.11617.

    Args:
        density: The part of the entries that is kept in the mean, in (0, 1).
        seed: Where random numbers start.
        majority: "total", or "frequency": whether entries vote with their size, or one vote each.
        epsilon: How far the probabilities of the largest and the smallest entry are apart, at most twice the smaller of
            density and 1 - density.
    """

    strategy = "della"
    paper = "arXiv:2406.11617"
    epsilon: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        most = 2 * min(self.density, 1 - self.density)
        if not isinstance(self.epsilon, int | float) or not 0 <= self.epsilon <= most:
            raise self.wrong("epsilon", f"a number from 0 to {most:g}, so that probabilities stay between 0 and 1")

    def sparse(self, tensors: Sequence[Tensor], random: Random) -> list[Tensor]:
        return [dropped(tensor, self.kept(tensor), random) for tensor in tensors]

    def kept(self, tensor: Tensor) -> Tensor:
        """1 - p of every entry."""
        order = tensor.abs().argsort(-1, descending=True).argsort(-1)
        return self.density + self.epsilon / 2 - self.epsilon * order / max(1, tensor.shape[-1] if tensor.dim() else 1)
