"""Averages of the tensors themselves, as version 1 of the library has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.merging.algorithm import Algorithm, Random, Weights


def weighted_sum(tensors: Sequence[Tensor], weights: Weights) -> Tensor:
    """sum_i w_i t_i."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor
    return total


@dataclass(frozen=True)
class Linear(Algorithm):
    """Every tensor is the weighted mean.

        t = sum_i w_i t_i

    Of LoRA A and B are averaged apart, which is no average of the products: names and numbers of version 1.

    Paper: Chronopoulou et al. 2023, arXiv:2311.09344.
    """

    strategy = "linear"
    paper = "arXiv:2311.09344"
    relative = of_updates = False

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        return weighted_sum(tensors, weights)


@dataclass(frozen=True)
class NegateB(Linear):
    """Weights may be negative: they negate B alone, since negating A and B changes nothing.

        A = sum_i |w_i| A_i,    B = sum_i w_i B_i

    Paper: Zhang et al. 2023, arXiv:2306.14870.
    """

    strategy = "lora_linear_only_negate_b"
    paper = "arXiv:2306.14870"
    lora_only = True

    def combine_named(self, name: str, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        signed = name != "lora_A"
        return weighted_sum(tensors, weights if signed else [abs(weight) for weight in weights])
