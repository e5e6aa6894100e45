"""VeRA and DVoRA: low-rank updates whose random matrices are shared by all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.methods.base import MethodModule
from adapters.methods.config import AdapterConfig
from adapters.methods.derived import Derived
from adapters.methods.lora import DoRA, LoRA, LoRAConfig
from adapters.methods.weight_update import Factors
from adapters.sites.site import LinearSite


@dataclass(eq=False)
class VeraConfig(LoRAConfig):
    """LoRA with frozen random A and B for the whole model; each site trains only what scales them.

        y = W x + (alpha / r) * L_b B L_d A x

    Paper: Kopiczko et al. 2024, arXiv:2310.11454. We differ: L_b and L_d are full matrices that start
    diagonal, as in the checkpoints of the AdapterHub ecosystem, unless vera_diagonal is set. Fields as in `LoRAConfig`.
    """

    vera_d: float | None = 0.1
    vera_b: float | None = 0.0
    init_weights: str = "vera"


@dataclass(eq=False)
class DvoRAConfig(LoRAConfig):
    """DoRA whose direction is updated by VeRA.

        y = m / ||W + L_b B L_d A|| * (W x + b + (alpha / r) * L_b B L_d A x)

    Paper: Liu et al. 2024, arXiv:2402.09353, section 5.2. Fields as in `LoRAConfig`.
    """

    vera_d: float | None = 0.1
    vera_b: float | None = 0.0
    init_weights: str = "vera"
    use_dora: bool = True


class SharedMatrices(MethodModule):
    """The frozen random matrices A [r, I] and B [O, r], as wide as the widest of the sites that share them."""

    fixed_parameters = ("lora_A", "lora_B")

    def __init__(self, config: LoRAConfig, sites: list[LinearSite]) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(config.r, max(site.in_features for site in sites)))
        self.lora_B = nn.Parameter(torch.empty(max(site.out_features for site in sites), config.r))
        for matrix in (self.lora_A, self.lora_B):
            nn.init.kaiming_uniform_(matrix, a=5**0.5)
        self.requires_grad_(False)


class VeRA(LoRA):
    """Low-rank update with frozen matrices that all sites share, and small trained ones between them.

        y = W x + b + (alpha / r) * V_B B V_D A x

    A [r, I] and B [O, r] are shared and frozen; V_D [r, r] starts as vera_d * identity, V_B [O, O] as vera_b *
    identity; with `vera_diagonal` they are their diagonals [r] and [O]. Narrower sites use the first rows and columns.

    Paper: Kopiczko et al. 2023, arXiv:2310.11454. We differ: V_D and V_B are full matrices, as in the adapters that
    were trained so far, unless `vera_diagonal` asks for the diagonal ones of the paper.
    """

    paper = "arXiv:2310.11454"
    titles: ClassVar[Mapping[str, str]] = {"vera": "VeRA"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"vera": VeraConfig()}
    variant = "vera"
    shared_container = "shared_parameters"

    def make_matrices(self) -> None:
        config: LoRAConfig = self.config
        start = torch.ones if config.vera_diagonal else torch.eye
        self.vera_D = nn.Parameter(start(config.r) * (config.vera_d or 0.0))
        self.vera_B = nn.Parameter(start(self.width) * (config.vera_b or 0.0))

    @classmethod
    def shared(cls, config: LoRAConfig, sites: list[LinearSite]) -> nn.Module:
        return SharedMatrices(config, sites)

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        self._products = Derived(self._multiply, *self.sources())

    def factors(self) -> Factors:
        return self._products()  # type: ignore[no-any-return]

    def _multiply(self) -> Factors:
        fixed: Any = self.common
        down = _scaled(self.tensor("vera_D"), fixed.lora_A[:, : self.in_features])
        return down.repeat(len(self.columns), 1), _scaled(self.tensor("vera_B"), fixed.lora_B[: self.width])


def _scaled(by: Tensor, matrix: Tensor) -> Tensor:
    """A matrix times another from the left, of which there may be the diagonal alone."""
    return by[:, None] * matrix if by.dim() == 1 else by @ matrix


class DVoRA(DoRA, VeRA):
    """VeRA with a learned length for every row of the weight, as in DoRA.

        y = m / ||W + V_B B V_D A|| * (W x + b + (alpha / r) * V_B B V_D A x)

    Paper: Liu et al. 2024, arXiv:2402.09353, section 5.
    """

    titles: ClassVar[Mapping[str, str]] = {"dvora": "DVoRA"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"dvora": DvoRAConfig()}
    variant = "dvora"
