"""LN tuning: trained changes of the weights and biases of norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.methods.base import AffineAdapter
from adapters.methods.config import AdapterConfig, PlacedConfig
from adapters.methods.parts import call
from adapters.sites.site import NormSite


@dataclass(eq=False)
class LNTuningConfig(PlacedConfig):
    """Trains weight and bias of the norms (LayerNorm, RMSNorm) in front of or behind attention and feed-forward block.

        y = (w + u) * n(x) + b + d

    Paper: Zhao et al. 2024, arXiv:2312.11420. Fields as in `PlacedConfig`; u and d start at 0, whatever the seed.
    """

    architecture: str | None = "ln_tuning"
    places: str | list[str] = field(default_factory=lambda: ["*.norm"])


class LNTuning(AffineAdapter):
    """Changes of the weight w [D] and the bias b [D] of a norm.

        y = (w + u) * n(x) + b + d

    The paper trains copies w + u and b + d. u and d [D] start at 0; norms without bias (RMSNorm) have no d. As changes
    they add up in a `Stack` and on top of a merged adapter, where a copy would undo what came before it, and they lose
    nothing in 16 bit, where w, near 1, has steps of 2^-8.

    Paper: Zhao et al. 2024, arXiv:2312.11420.
    """

    paper = "arXiv:2312.11420"
    config_class = LNTuningConfig
    titles: ClassVar[Mapping[str, str]] = {"ln_tuning": "LN tuning"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"ln_tuning": LNTuningConfig()}
    site_type = NormSite

    def __init__(self, config: LNTuningConfig, site: NormSite, name: str) -> None:
        super().__init__(config, site, name)
        self.norm = without_weights(site.module)

    @classmethod
    def lacks(cls, site: NormSite) -> str | None:
        weight = site.module._parameters.get("weight")
        if weight is None:
            return "weight"
        x = torch.ones_like(weight).cumsum(0) / len(weight)
        if not weight.is_meta and bool(without_weights(site.module, torch.zeros_like)(x).any()):
            return "weight that is the only factor"  # Gemma multiplies by 1 + w
        return None

    def resting_value(self, name: str) -> float:
        return 0.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (y + call(self.norm, x)).to(y.dtype)  # a norm with u and d in place of w and b gives what they add

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = self.norm._parameters
        change, shift = own["weight"], own.get("bias")
        assert change is not None
        return weight + change, bias if bias is None or shift is None else bias + shift


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.shape)


def without_weights(norm: nn.Module, zeros: Callable[[Tensor], Tensor] = _zeros) -> nn.Module:
    """A norm like `norm`, with zeros in place of its parameters: both have numbers such as eps in common, no tensor."""
    new: nn.Module = type(norm).__new__(type(norm))
    nn.Module.__init__(new)
    plain = {name: value for name, value in vars(norm).items() if isinstance(value, (int, float, str, tuple))}
    new.__dict__.update({name: value for name, value in plain.items() if name not in vars(new)})
    for name, parameter in norm._parameters.items():
        new.register_parameter(name, None if parameter is None else nn.Parameter(zeros(parameter)))
    return new
