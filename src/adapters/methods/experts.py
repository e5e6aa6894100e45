"""One adapter for each of many experts whose linear maps are packed into one parameter [E, O, I].

Its tensors are those of the method at a linear map, with the expert as one more dimension in front: LoRA's `lora_A` is
[E, r, I]. So every method that says its `effect` acts per expert, and none of them knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import ConfigError
from adapters.methods.base import AdapterModule, AffineAdapter, Effect, LinearAdapter
from adapters.methods.derived import Derived
from adapters.methods.lora import LoRA
from adapters.sites.site import ExpertsSite, Site


def new_adapter(method: type[AdapterModule[Any]], config: Any, site: Site, name: str) -> AdapterModule[Any]:
    """A new adapter of a method: one for every expert where a site packs several. Raises as the method."""
    if isinstance(site, ExpertsSite):
        return PerExpert(method, config, site, name)
    return method(config, site, name)


class PerExpert(LinearAdapter):
    """An adapter of a method for linear maps at each of E experts.

        y_e = scale_e * (W_e x + b_e) + D_e x

    In a call, factors of D_e are multiplied as W_e is, whatever way the model does that; W_e + D_e is never made.

    Attributes:
        one: What one expert has: an adapter of the method, in which the parameters of all are stacked.
    """

    per_expert = True
    unmixable = "acts inside of experts, and what these give is mixed by the router, not by a block"
    site: ExpertsSite
    one: Any

    def __init__(self, method: type[Any], config: Any, site: ExpertsSite, name: str) -> None:
        if getattr(config, "use_gating", False):
            raise ConfigError(
                f"use_gating cannot act at the experts of {site.address}: a gate is a mean over the positions of a "
                "sequence, and experts are given single tokens. Leave it out there."
            )
        if getattr(config, "use_bias", False) or getattr(config, "dora_form", "output") == "weight":
            raise ConfigError(
                f"use_bias and dora_form='weight' cannot act at the experts of {site.address}: of an expert's map only "
                "the product and the output are known, not what its bias adds. Leave them out there."
            )
        super().__init__(config, site, name)
        one = method(config, site.of_one(site.weight[0]), name)
        made_of_numbers = not any(parameter.is_meta for parameter in one.parameters())
        all_of_them = [one] + [
            method(config, site.of_one(site.weight[expert]), name)
            for expert in range(1, site.experts if made_of_numbers else 1)
        ]
        for path, parameter in list(one.named_parameters()):
            owner, _, last = path.rpartition(".")
            own = [other.get_parameter(path).detach() for other in all_of_them]
            stacked = torch.stack(own) if made_of_numbers else own[0].new_empty(site.experts, *own[0].shape)
            one.get_submodule(owner)._parameters[last] = nn.Parameter(stacked, requires_grad=parameter.requires_grad)
        one.site = site.of_one(torch.empty(site.out_features, site.in_features, device="meta"))
        self.fixed_parameters = one.fixed_parameters
        self.__dict__.update(one=one, _parameters=one._parameters, _modules=one._modules)

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        self._effect = Derived(self._compute, *self.sources(), base=self.site.module)

    def effect(self) -> Effect:
        """As of one linear map, with tensors of all experts: factors [E, ., .], scale [E, O]."""
        return self._effect()  # type: ignore[no-any-return]

    @property
    def dropout(self) -> nn.Module | None:
        """What is done to x before the update."""
        found: nn.Module | None = getattr(self.one, "dropout", None)
        return found

    def _compute(self) -> Effect:
        if type(self.one) is LoRA:  # its factors are plain parameters, with any number of dimensions
            return self.one.effect()

        def of_one(tensors: dict[str, Tensor], weight: Tensor) -> dict[str, Any]:
            effect = self._expert(tensors, weight).effect()
            scale = {} if effect.scale is None else {"scale": effect.scale}
            return {"factors": effect.factors, **scale}

        return Effect(**torch.vmap(of_one)(dict(self.named_parameters()), self.site.weight))

    def _expert(self, tensors: Mapping[str, Tensor], weight: Tensor) -> Any:
        """The adapter of one expert, with these parameters, at this weight."""
        expert = _with(self.one, tensors)
        expert.site = self.site.of_one(weight)
        expert.bind(self.common)
        return expert

    def resting_value(self, name: str) -> Tensor | float:
        own = list(zip(*self.parameters()))  # per expert
        names = [path for path, _ in self.named_parameters()]
        values = [
            self._expert(dict(zip(names, tensors)), weight).resting_value(name)
            for tensors, weight in zip(own, self.site.weight)
        ]
        return torch.stack(values) if isinstance(values[0], Tensor) else values[0]

    def delta_weight(self) -> Tensor:
        """D_e of all experts, [E, O, I], with their scaling."""
        factors = self.effect().factors
        if not factors:
            return torch.zeros_like(self.site.weight)
        product = factors[0]
        for factor in factors[1:]:
            product = factor @ product
        return product

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weights [E, O, I] and biases [E, O] with which the experts alone compute what both do together."""
        scale = self.effect().scale
        scaled = weight if scale is None else scale[..., None] * weight
        return scaled + self.delta_weight(), bias if bias is None or scale is None else scale * bias

    def cannot_follow(self, before: AdapterModule[Any]) -> str | None:
        return (
            f"{self.name!r} and {before.name!r} both act at the experts of {self.site.address}, where each reads what "
            "the expert reads. Use Average, Parallel or BatchSplit instead, or give one of them other places."
        )

    def changed_by_merging(self, before: AffineAdapter) -> str | None:
        return f"{self.name!r} and {before.name!r} act at the same experts"


def _with(module: Any, tensors: Mapping[str, Tensor], path: str = "") -> Any:
    """A copy of a module that has other tensors for parameters; all else is the same objects."""
    copied = object.__new__(type(module))
    parameters = {name: tensors[f"{path}{name}"] for name, own in module._parameters.items() if own is not None}
    children = {name: _with(child, tensors, f"{path}{name}.") for name, child in module._modules.items()}
    copied.__dict__.update(module.__dict__, _parameters={**module._parameters, **parameters}, _modules=children)
    return copied
