"""Invertible adapters: a bijection of the token embeddings, undone before the output embedding.

Paper: Pfeiffer et al. 2020 (MAD-X), arXiv:2005.00052; coupling layers: Dinh et al. 2015 (NICE), arXiv:1410.8516.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import ConfigError
from adapters.methods.base import AdapterModule
from adapters.methods.bottleneck import BnConfig, activation_module
from adapters.methods.parts import call
from adapters.methods.state import HiddenState
from adapters.sites.site import EmbeddingSite


class NICE(AdapterModule[HiddenState]):
    """Additive coupling of the two halves of an embedding.

        y_1 = x_1 + F(x_2)   y_2 = x_2 + G(y_1)          inverse: x_2 = y_2 - G(y_1)   x_1 = y_1 - F(x_2)

    F and G are bottlenecks. In a `Stack` bijections are chained.

    Paper: Dinh et al. 2015, arXiv:1410.8516; for adapters: Pfeiffer et al. 2020, arXiv:2005.00052.
    """

    paper = "arXiv:1410.8516"
    config_class = BnConfig
    site_type = EmbeddingSite
    container = "invertible_adapters"
    chained_before = False
    unmixable = "is a bijection of the embeddings, and no mixture of bijections can be undone behind the layers"
    fuses_as_first = True
    placeable = False
    site: EmbeddingSite

    def __init__(self, config: BnConfig, site: EmbeddingSite, name: str) -> None:
        super().__init__(config, site, name)
        if config.inv_adapter != "nice":
            raise ConfigError(
                f"inv_adapter={config.inv_adapter!r} is not available: its published form does not invert sequences. "
                "Use inv_adapter='nice'."
            )
        self.middle = site.width // 2
        self.F = self._bottleneck(site.width - self.middle, self.middle)
        self.G = self._bottleneck(self.middle, site.width - self.middle)

    def _bottleneck(self, in_features: int, out_features: int) -> nn.Sequential:
        factor = self.config.inv_adapter_reduction_factor or 2
        hidden = max(1, int(in_features // factor))
        down, up = nn.Linear(in_features, hidden), nn.Linear(hidden, out_features)
        for linear in (down, up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        return nn.Sequential(down, activation_module(self.config.non_linearity), up)

    @classmethod
    def handles(cls, config: Any) -> bool:
        return isinstance(config, BnConfig) and bool(config.inv_adapter)

    @classmethod
    def acts_at(cls, config: BnConfig, site: EmbeddingSite) -> bool:
        return True

    def forward(self, x: Tensor, rev: bool = False) -> Tensor:
        """The bijection, or with `rev` its inverse; [..., E] to [..., E]."""
        first, second = x[..., : self.middle], x[..., self.middle :]
        if rev:
            second = second - call(self.G, first)
            first = first - call(self.F, second)
        else:
            first = first + call(self.F, second)
            second = second + call(self.G, first)
        return torch.cat([first, second], -1).to(x.dtype)

    def run(self, state: HiddenState) -> HiddenState:
        return replace(state, h=self(state.h))

    def invert(self, state: HiddenState) -> HiddenState:
        return replace(state, h=self(state.h, rev=True))
