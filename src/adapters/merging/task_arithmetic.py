"""Tasks are added and taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters.merging.algorithm import Random, Ranked, Weights
from adapters.merging.linear import weighted_sum
from adapters.merging.update import Update


@dataclass(frozen=True)
class TaskArithmetic(Ranked):
    """What adapters add is added, with a weight of any sign: below zero it is taken away, at zero nothing is left.

        D = sum_i w_i D_i                    t = t_0 + sum_i w_i (t_i - t_0)

    D_i = (alpha_i / r_i) B_i A_i of LoRA; t_0 is the value with which a tensor does nothing. By default the ranks of
    LoRA add up, so that nothing is lost.

    Paper: Ilharco et al. 2022, arXiv:2212.04089; for adapters Zhang et al. 2023, arXiv:2306.14870.
    """

    strategy = "task_arithmetic"
    paper = "arXiv:2212.04089"

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return weighted_sum(tensors, weights)

    def combine_updates(self, updates: Sequence[Update], weights: Weights, rank: int, random: Random) -> Update:
        whole = Update.sum(updates, weights)
        return whole.filled(rank) if len(whole.down) <= rank else whole.cut(rank)

    def rank(self, ranks: Sequence[int]) -> int:
        return sum(ranks) if self.svd_rank is None else self.svd_rank
