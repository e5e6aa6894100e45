"""LoHa: an update that is the elementwise product of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.methods.config import AdapterConfig, Rule, integer, real
from adapters.methods.weight_update import DenseUpdate, WeightUpdateConfig


@dataclass(eq=False)
class LoHaConfig(WeightUpdateConfig):
    """Adds the elementwise product of two low-rank matrices to linear layers: rank r^2 for the price of 2 r.

        y = W x + b + (alpha / r) * ((B_1 A_1) * (B_2 A_2)) x

    Paper: Hyeon-Woo et al. 2022, arXiv:2108.06098 (FedPara). Other fields as in `WeightUpdateConfig`.

    Args:
        r: Rank of each of the two matrices, at least 1.
        alpha: Numerator of the scaling alpha / r.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "loha"
    r: int = 8
    alpha: float = 8

    rules: ClassVar[Mapping[str, Rule]] = {"r": integer(1), "alpha": real}


class HadamardProduct(nn.Module):
    """(B_1 A_1) * (B_2 A_2), [O, I], with B [O, r] and A [r, I]. B_2 starts at zero."""

    def __init__(self, rank: int, rows: int, columns: int) -> None:
        super().__init__()
        for i, std in ((1, 0.1), (2, 0.0)):
            self.register_parameter(f"B_{i}", nn.Parameter(std * torch.randn(rows, rank)))
            self.register_parameter(f"A_{i}", nn.Parameter(torch.randn(rank, columns)))

    def forward(self) -> Tensor:
        one: Tensor = self.B_1 @ self.A_1  # type: ignore[operator]
        return one * (self.B_2 @ self.A_2)  # type: ignore[operator]


class LoHa(DenseUpdate):
    """Update by the elementwise (Hadamard) product of two low-rank matrices.

        y = W x + b + (alpha / r) * ((B_1 A_1) * (B_2 A_2)) x            A [r, I], B [O, r]

    Paper: Hyeon-Woo et al. 2022, arXiv:2108.06098; for adapters: Yeh et al. 2023, arXiv:2309.14859.
    """

    paper = "arXiv:2108.06098"
    titles: ClassVar[Mapping[str, str]] = {"loha": "LoHa"}
    config_class = LoHaConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"loha": LoHaConfig()}

    def part(self, config: Any, rows: int, columns: int) -> nn.Module:
        return HadamardProduct(config.r, rows, columns)
