"""Bottleneck adapters whose projections are products of thin matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.methods.bottleneck import Bottleneck, DoubleSeqBnConfig
from adapters.methods.config import AdapterConfig, Rule, integer
from adapters.methods.parts import matched

NEVER = Rule("False", lambda value: value is False, {"enum": [False]})


@dataclass(eq=False)
class LowRankBnConfig(DoubleSeqBnConfig):
    """Two bottleneck adapters per layer whose projections are of low rank.

        out = h + U_2 V_2 f(U_1 V_1 h + b_1) + b_2

    Published with OpenDelta, and as a baseline of Compacter: Mahabadi et al. 2021, arXiv:2106.04647. Other fields as in
    `BnConfig`.

    Args:
        rank: Rank of both projections, at least 1.
        phm_layer: False: projections of sums of Kronecker products are those of Compacter.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "low_rank_bn"
    reduction_factor: float | Mapping[str, float] = 32
    non_linearity: str = "gelu_new"
    rank: int = 1

    rules: ClassVar[Mapping[str, Rule]] = {"rank": integer(1), "phm_layer": NEVER}


class LowRankLinear(nn.Module):
    """y = U V x + b with U [O, r] and V [r, I]."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.U, self.V = nn.Parameter(torch.empty(out_features, rank)), nn.Parameter(torch.empty(rank, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        for matrix in (self.U, self.V):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(matched(x, self.V), self.V), self.U, self.bias)


class LowRankBottleneck(Bottleneck):
    """A bottleneck whose two projections are products of thin matrices.

        h <- h + U_2 V_2 f(U_1 V_1 h + b_1) + b_2            U [O, r], V [r, I]

    Paper: Karimi Mahabadi et al. 2021, arXiv:2106.04647 ("low-rank adapter").
    """

    paper = "arXiv:2106.04647"
    titles: ClassVar[Mapping[str, str]] = {"low_rank_bn": "Low-rank bottleneck"}
    config_class = LowRankBnConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"low_rank_bn": LowRankBnConfig()}

    @classmethod
    def handles(cls, config: Any) -> bool:
        return isinstance(config, LowRankBnConfig)

    def projection(self, in_features: int, out_features: int) -> nn.Module:
        return LowRankLinear(in_features, out_features, self.config.rank)

    def reset_parameters(self) -> None:
        """Nothing to do: the maps initialise themselves."""
