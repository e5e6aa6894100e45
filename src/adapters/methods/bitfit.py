"""BitFit: trained additions to the bias terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.methods.base import AffineAdapter
from adapters.methods.config import AdapterConfig, PlacedConfig
from adapters.methods.places import Chosen, count, output_columns
from adapters.sites.site import AffineSite, LinearSite


@dataclass(eq=False)
class BitFitConfig(PlacedConfig):
    """Trains the bias terms of linear layers and norms, as additions to those of the base model.

        y = W x + b + d                                 norms: y = w * n(x) + b + d

    By default all bias terms of the layers. "bitfit_subset" is the paper's choice of two: those of the queries and of
    the first linear map of the feed-forward block, the widest one.

    Only bias terms that the base model has are trained. A model without any (Llama, T5) is refused, as are `places` of
    which an entry names none.

    Paper: Ben Zaken et al. 2022, arXiv:2106.10199. Fields as in `PlacedConfig`; d starts at 0, whatever the seed.
    """

    architecture: str | None = "bitfit"


class BitFit(AffineAdapter):
    """Addition to the bias of a linear map or of a norm.

        y = W x + b + d                                 norms: y = w * n(x) + b + d

    d is [O] and starts at 0. At a fused projection it holds the adapted parts only. In a `Stack` additions add up.

    Paper: Ben Zaken et al. 2022, arXiv:2106.10199.
    """

    paper = "arXiv:2106.10199"
    config_class = BitFitConfig
    titles: ClassVar[Mapping[str, str]] = {"bitfit": "BitFit", "bitfit_subset": "BitFit (subset)"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {
        "bitfit": BitFitConfig(),
        "bitfit_subset": BitFitConfig(places=["attn.q", "ffn.up"]),
    }

    def __init__(self, config: BitFitConfig, site: AffineSite, name: str) -> None:
        super().__init__(config, site, name)
        self.columns: tuple[Chosen, ...] = (slice(0, site.out_features),)
        if isinstance(site, LinearSite):
            self.columns = output_columns(config, site)
        self.widths = [count(columns) for columns in self.columns]
        self.bias = nn.Parameter(torch.zeros(sum(self.widths)))

    @classmethod
    def lacks(cls, site: AffineSite) -> str | None:
        return "bias" if site.bias is None else None

    def addition(self) -> Tensor:
        """d for all columns, [O]."""
        bias = self.tensor("bias")
        if len(bias) == self.site.out_features:
            return bias
        whole = bias.new_zeros(self.site.out_features)
        for columns, part in zip(self.columns, bias.split(self.widths)):
            whole[..., columns] = part
        return whole

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (y + self.addition()).to(y.dtype)

    def merged_bias(self, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias + self.addition()
