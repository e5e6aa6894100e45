"""LoKr: an update that is the Kronecker product of two matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.methods.config import AdapterConfig, Rule, flag, integer, nothing, real
from adapters.methods.weight_update import DenseUpdate, WeightUpdateConfig


@dataclass(eq=False)
class LoKrConfig(WeightUpdateConfig):
    """Adds the Kronecker product of two matrices to linear layers.

        y = W x + b + (alpha / r) * (C (x) D) x,    (x) the Kronecker product, D = D_1 D_2 of rank r

    Paper: Yeh et al. 2023, arXiv:2309.14859 (LyCORIS). Other fields as in `WeightUpdateConfig`.

    Args:
        r: Rank of the factors of D, at least 1. A matrix for which that saves nothing is not factorised.
        alpha: Numerator of the scaling alpha / r.
        factor: Rows and columns of C, where it divides those of the layer; None for the divisor below the square root
            that is nearest to it.
        decompose_both: Factorise C too.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "lokr"
    r: int = 8
    alpha: float = 8
    factor: int | None = None
    decompose_both: bool = False

    rules: ClassVar[Mapping[str, Rule]] = {
        "r": integer(1),
        "alpha": real,
        "factor": nothing | integer(1),
        "decompose_both": flag,
    }


def divided(number: int, factor: int | None) -> tuple[int, int]:
    """(m, n) with m n = number and m <= n: m is `factor` if that divides, else the divisor nearest below it."""
    if factor is not None and number % factor == 0:
        return factor, number // factor
    most = min(math.isqrt(number), factor or number)
    first = next(m for m in range(most, 0, -1) if number % m == 0)
    return first, number // first


class KroneckerProduct(nn.Module):
    """C (x) D, [O, I]; each is whole, or the product of two matrices of inner width r. C, or its left factor, starts
    at zero.
    """

    def __init__(self, config: LoKrConfig, rows: int, columns: int) -> None:
        super().__init__()
        (few_rows, many_rows), (few_columns, many_columns) = (divided(n, config.factor) for n in (rows, columns))
        rank = config.r
        both = config.decompose_both and rank < max(few_rows, few_columns) / 2
        self._add("C", few_rows, few_columns, rank if both else None)
        self._add("D", many_rows, many_columns, rank if rank < max(many_rows, many_columns) / 2 else None)
        nn.init.zeros_(self.get_parameter("C_1" if both else "C"))

    def _add(self, name: str, rows: int, columns: int, rank: int | None) -> None:
        sizes = {name: (rows, columns)} if rank is None else {f"{name}_1": (rows, rank), f"{name}_2": (rank, columns)}
        for key, size in sizes.items():
            self.register_parameter(key, nn.Parameter(torch.empty(size)))
            nn.init.kaiming_uniform_(self.get_parameter(key), a=math.sqrt(5))

    def _matrix(self, name: str) -> Tensor:
        whole = getattr(self, name, None)
        return getattr(self, f"{name}_1") @ getattr(self, f"{name}_2") if whole is None else whole  # type: ignore[no-any-return]

    def forward(self) -> Tensor:
        return torch.kron(self._matrix("C"), self._matrix("D").contiguous())


class LoKr(DenseUpdate):
    """Update by a Kronecker product.

        y = W x + b + (alpha / r) * (C (x) D) x            C [o, i], D [O / o, I / i] = D_1 D_2 of rank r

    Paper: Yeh et al. 2023, arXiv:2309.14859.
    """

    paper = "arXiv:2309.14859"
    titles: ClassVar[Mapping[str, str]] = {"lokr": "LoKr"}
    config_class = LoKrConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"lokr": LoKrConfig()}

    def part(self, config: Any, rows: int, columns: int) -> nn.Module:
        return KroneckerProduct(config, rows, columns)
