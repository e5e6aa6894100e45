"""LN_TUNING: norms with weights and biases of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from adapters.checkpoint.peft.modules import Found
from adapters.checkpoint.peft.options import Options
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.errors import CheckpointError
from adapters.methods.ln_tuning import LNTuning, LNTuningConfig
from adapters.sites.site import AffineSite, NormSite


class LNTuningTranslator(Translator):
    """PEFT has w' = w + u and b' = b + d, where our adapters have u and d."""

    peft_type = "LN_TUNING"
    methods = (LNTuning,)
    site_type = NormSite
    parts: ClassVar[Mapping[str, str]] = {"ln_tuning_layers.weight": "weight", "ln_tuning_layers.bias": "bias"}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        tensors: dict[AffineSite, dict[str, Tensor]] = {}
        for module in found:
            if not isinstance(module.site, NormSite):
                raise CheckpointError(f"{options.what} has a copy of {module.name}, which is no norm.")
            base = _base(module.site)
            tensors[module.site] = {
                f"norm.{name}": self.part(module, name, options, *value.shape).to(value.device, value.dtype) - value
                for name, value in base.items()
            }
        return [Member(LNTuningConfig(), tensors)]

    def write(self, modules: Sequence[Any]) -> Written:
        return Written(
            {},
            {
                module.site: {
                    f"ln_tuning_layers.{name}": value + module.norm.get_parameter(name).to(value.dtype)
                    for name, value in _base(module.site).items()
                }
                for module in modules
            },
        )


def _base(site: AffineSite) -> dict[str, Tensor]:
    """The base model's own tensors at a norm."""
    return {name: value.detach() for name, value in site.module._parameters.items() if value is not None}
