"""RandLoRA: an update of full rank from scaled random matrices that all sites share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.methods.base import MethodModule
from adapters.methods.config import AdapterConfig, Rule, integer, real
from adapters.methods.weight_update import DenseUpdate, WeightUpdateConfig
from adapters.sites.site import LinearSite


@dataclass(eq=False)
class RandLoRAConfig(WeightUpdateConfig):
    """Adds a sum of scaled random matrices to linear layers; only what scales them is trained.

        y = W x + b + (alpha / r) * sum_j B_j L_j A G_j x,    j = 1 ... min(I, O) / r: of full rank

    Paper: Albert et al. 2025, arXiv:2502.00987. Other fields as in `WeightUpdateConfig`.

    Args:
        r: Rank of each term, at least 1. The fewer, the more terms and trained numbers.
        alpha: Numerator of the scaling alpha / r.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "randlora"
    r: int = 32
    alpha: float = 640

    rules: ClassVar[Mapping[str, Rule]] = {"r": integer(1), "alpha": real}


def terms(rank: int, *sizes: int) -> int:
    """Terms of rank `rank` that a matrix of these sizes needs to be of full rank."""
    return -(-min(sizes) // rank)


class RandomBases(MethodModule):
    """The frozen random matrices A [r, d] and B [n, D, r], for layers of at most D x d; each of unit variance."""

    fixed_parameters = ("A", "B")

    def __init__(self, config: RandLoRAConfig, sites: list[LinearSite]) -> None:
        super().__init__()
        shapes = [(site.out_features, site.in_features) for site in sites]
        width, length = max(map(min, shapes)), max(map(max, shapes))
        count = terms(config.r, width)
        for name, size in {"A": (config.r, width), "B": (count, length, config.r)}.items():
            matrix = torch.rand(size) * 2 - 1
            self.register_parameter(name, nn.Parameter(matrix / matrix.std(), requires_grad=False))


class Scalings(nn.Module):
    """The diagonals L [n, r] and G [n, d] of n terms for a matrix of D x d, of which D is the longer side."""

    def __init__(self, rank: int, rows: int, columns: int) -> None:
        super().__init__()
        self.size, count = (rows, columns), terms(rank, rows, columns)
        self.L = nn.Parameter(torch.zeros(count, rank))
        self.G = nn.Parameter(torch.full((count, min(self.size)), 1 / max(self.size)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """sum_j B_j L_j A G_j, or its transpose, for the shared A [r, d] and B [n, D, r]."""
        a, b = a[:, : min(self.size)], b[: len(self.L), : max(self.size)]
        weight = torch.einsum("ndr,nr,rw,nw->dw", b, self.L, a, self.G)
        return weight if self.size[0] >= self.size[1] else weight.t()


class RandLoRA(DenseUpdate):
    """Update of full rank by scaled random matrices.

        y = W x + b + (alpha / r) * sum_j B_j L_j A G_j x

    A [r, d] and B_j [D, r] are random, frozen and shared by all sites; the diagonals L_j [r] (0 at first) and G_j [d]
    are trained. D >= d are the sides of the layer: where it has more inputs than outputs, the sum is transposed.

    Paper: Albert et al. 2025, arXiv:2502.00987.
    """

    paper = "arXiv:2502.00987"
    titles: ClassVar[Mapping[str, str]] = {"randlora": "RandLoRA"}
    config_class = RandLoRAConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"randlora": RandLoRAConfig()}
    shared_container = "shared_parameters"

    @classmethod
    def shared(cls, config: Any, sites: list[LinearSite]) -> nn.Module:
        return RandomBases(config, sites)

    def part(self, config: Any, rows: int, columns: int) -> nn.Module:
        return Scalings(config.r, rows, columns)

    def make(self, update: nn.Module) -> Tensor:
        common: Any = self.common
        return update(common.A, common.B)  # type: ignore[no-any-return]
