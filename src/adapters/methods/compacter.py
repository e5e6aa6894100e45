"""Compacter: bottleneck adapters whose projections are sums of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.methods.bottleneck import DoubleSeqBnConfig, SeqBnConfig


@dataclass(eq=False)
class CompacterPlusPlusConfig(SeqBnConfig):
    """One Compacter adapter per layer, behind the feed-forward block.

        W = sum_{i < phm_dim} A_i (x) (s_i t_i),   A_i shared by all layers, (x) the Kronecker product

    Paper: Mahabadi et al. 2021, arXiv:2106.04647. Fields as in `BnConfig`.
    """

    phm_layer: bool = True
    reduction_factor: float | Mapping[str, float] = 32
    non_linearity: str = "gelu"


@dataclass(eq=False)
class CompacterConfig(DoubleSeqBnConfig):
    """Two Compacter adapters per layer, behind the attention and behind the feed-forward block.

        W = sum_{i < phm_dim} A_i (x) (s_i t_i),   A_i shared by all layers, (x) the Kronecker product

    Paper: Mahabadi et al. 2021, arXiv:2106.04647. Fields as in `BnConfig`.
    """

    phm_layer: bool = True
    reduction_factor: float | Mapping[str, float] = 32
    non_linearity: str = "gelu"
