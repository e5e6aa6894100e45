"""LoRA adapters stand side by side in one of a higher rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adapters.merging.algorithm import Algorithm, Random, Weights
from adapters.merging.linear import weighted_sum
from adapters.merging.update import Update


@dataclass(frozen=True)
class Concatenation(Algorithm):
    """The rows of A and the columns of B stand side by side: the exact sum of what the adapters do.

    A = [A_1; ...; A_n],    B = [w_1 s_1 B_1, ..., w_n s_n B_n],    r = sum_i r_i
    """

    strategy = "cat"
    lora_only = True

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return weighted_sum(tensors, weights)

    def combine_updates(self, updates: Sequence[Update], weights: Weights, rank: int, random: Random) -> Update:
        return Update.sum(updates, weights)

    def rank(self, ranks: Sequence[int]) -> int:
        return sum(ranks)
