"""VB-LoRA: low-rank matrices that are put together from a bank of vectors, which the whole model shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.errors import ConfigError
from adapters.methods.config import AdapterConfig, Rule, integer, number
from adapters.methods.derived import Derived
from adapters.methods.places import output_columns
from adapters.methods.weight_update import Factors, WeightUpdate, WeightUpdateConfig, wants_site
from adapters.sites.site import LinearSite


@dataclass(eq=False)
class VBLoRAConfig(WeightUpdateConfig):
    """LoRA whose matrices are made of pieces, each a mixture of `topk` vectors of a bank that all layers share.

        y = W x + b + B A x,    piece = sum_{k in top} softmax(logits)_k v_k

    Paper: Li et al. 2024, arXiv:2405.15179. Other fields as in `WeightUpdateConfig`.

    Args:
        r: Rank of the update, at least 1.
        num_vectors: Vectors in the bank, at least 1.
        vector_length: Length of each; divides the widths of all adapted layers.
        topk: Vectors that are mixed for a piece, at least 1 and at most num_vectors.
        init_vector_bound: Vectors start uniformly within this bound, at least 0.
        init_logits_std: Standard deviation of the logits at first, at least 0.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "vblora"
    r: int = 4
    num_vectors: int = 256
    vector_length: int = 256
    topk: int = 2
    init_vector_bound: float = 0.02
    init_logits_std: float = 0.1

    rules: ClassVar[Mapping[str, Rule]] = {
        "r": integer(1),
        "num_vectors": integer(1),
        "vector_length": integer(1),
        "topk": integer(1),
        "init_vector_bound": number(0),
        "init_logits_std": number(0),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.topk > self.num_vectors:
            raise self._error("topk", f"It can be at most num_vectors={self.num_vectors}.")


class VectorBank(nn.Module):
    """The vectors [h, b] of all sites."""

    def __init__(self, config: VBLoRAConfig) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(config.num_vectors, config.vector_length))
        nn.init.uniform_(self.vectors, -config.init_vector_bound, config.init_vector_bound)

    def forward(self, logits: Tensor, topk: int) -> Tensor:
        """The mixtures [..., b] for logits [..., h]."""
        best, chosen = logits.topk(topk, dim=-1)
        return (best.softmax(-1)[..., None] * self.vectors[chosen]).sum(-2)


class VBLoRA(WeightUpdate):
    """Low-rank update whose matrices are mixtures of the vectors of one bank.

        y = W x + b + B A x,    every piece of b numbers of a row of A or a column of B = sum_{k in top} w_k v_k

    The bank [h, b] is shared by all sites and trained; logits_A is [r, I / b, h], logits_B [O / b, r, h].

    Paper: Li et al. 2024, arXiv:2405.15179.
    """

    paper = "arXiv:2405.15179"
    titles: ClassVar[Mapping[str, str]] = {"vblora": "VB-LoRA"}
    config_class = VBLoRAConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"vblora": VBLoRAConfig()}
    shared_container = "shared_parameters"

    def __init__(self, config: VBLoRAConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name, output_columns(config, site))
        length = config.vector_length
        for width in (self.in_features, *self.widths):
            if width % length:
                raise ConfigError(
                    f"vector_length={length} does not divide the width {width} of {site.path}. Choose one that divides "
                    "the widths of all adapted layers."
                )
        rank, vectors = config.r, config.num_vectors
        a = torch.randn(rank * len(self.columns), self.in_features // length, vectors)
        b = torch.randn(self.width // length, rank, vectors)
        self.logits_A = nn.Parameter(config.init_logits_std * a)
        self.logits_B = nn.Parameter(config.init_logits_std * b)

    @classmethod
    def acts_at(cls, config: VBLoRAConfig, site: LinearSite) -> bool:
        return wants_site(config, site)

    @classmethod
    def shared(cls, config: VBLoRAConfig, sites: list[LinearSite]) -> nn.Module:
        return VectorBank(config)

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        self._matrices = Derived(self._mix, *self.sources())

    def factors(self) -> Factors:
        return self._matrices()  # type: ignore[no-any-return]

    def _mix(self) -> Factors:
        bank: Any = self.common
        a = bank(self.tensor("logits_A"), self.config.topk)
        b = bank(self.tensor("logits_B"), self.config.topk)
        return a.flatten(1), b.transpose(1, 2).flatten(0, 1)
