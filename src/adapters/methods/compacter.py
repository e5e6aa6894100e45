"""Compacter: bottleneck adapters whose projections are sums of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from adapters.errors import ConfigError
from adapters.methods.base import MethodModule
from adapters.methods.bottleneck import BnConfig, Bottleneck, DoubleSeqBnConfig, SeqBnConfig, reduction_factor
from adapters.methods.config import AdapterConfig
from adapters.methods.derived import Derived
from adapters.methods.parts import matched
from adapters.sites.site import ResidualSite


@dataclass(eq=False)
class CompacterPlusPlusConfig(SeqBnConfig):
    """One Compacter adapter per layer, behind the feed-forward block.

        W = sum_{i < phm_dim} A_i (x) (s_i t_i),   A_i shared by all layers, (x) the Kronecker product

    Paper: Mahabadi et al. 2021, arXiv:2106.04647. Fields as in `BnConfig`.
    """

    phm_layer: bool = True
    reduction_factor: float | Mapping[str, float] = 32
    non_linearity: str = "gelu"


@dataclass(eq=False)
class CompacterConfig(DoubleSeqBnConfig):
    """Two Compacter adapters per layer, behind the attention and behind the feed-forward block.

        W = sum_{i < phm_dim} A_i (x) (s_i t_i),   A_i shared by all layers, (x) the Kronecker product

    Paper: Mahabadi et al. 2021, arXiv:2106.04647. Fields as in `BnConfig`.
    """

    phm_layer: bool = True
    reduction_factor: float | Mapping[str, float] = 32
    non_linearity: str = "gelu"


RULES = ("phm_rule", "phm_rule_left", "phm_rule_right")


class PHMRule(MethodModule):
    """The matrices A_i [n, n, n] of parameterised hypercomplex multiplication, whole or as products of vectors."""

    def __init__(self, config: BnConfig, shared: bool) -> None:
        super().__init__()
        n = config.phm_dim
        self.fixed_parameters = () if config.learn_phm else RULES
        if config.factorized_phm_rule:
            self.phm_rule_left = nn.Parameter(torch.empty(n, n, 1))
            self.phm_rule_right = nn.Parameter(torch.empty(n, 1, n))
        else:
            self.phm_rule = nn.Parameter(torch.empty(n, n, n))
        scale, bound = (config.phm_init_range, 1.0) if shared else (0.01, 0.01)
        for parameter in self.parameters():
            if config.phm_c_init == "uniform":
                nn.init.uniform_(parameter, -bound, bound)
            else:
                nn.init.normal_(parameter, std=scale)
            parameter.requires_grad_(config.learn_phm)


def rule_of(module: nn.Module) -> Tensor:
    """A_1 ... A_n, [n, n, n], from the module that holds them."""
    owner: Any = module
    if (whole := getattr(owner, "phm_rule", None)) is not None:
        return cast(Tensor, whole)
    return cast(Tensor, owner.phm_rule_left @ owner.phm_rule_right)


class SharedPHM(PHMRule):
    """What the sites of one compacter share: the rule, and with `shared_W_phm` the weights too."""

    def __init__(self, config: BnConfig, sites: list[ResidualSite]) -> None:
        if config.shared_phm_rule:
            super().__init__(config, shared=True)
        else:
            nn.Module.__init__(self)
        if config.shared_W_phm:
            width = sites[0].width
            hidden = max(1, int(width // reduction_factor(config, sites[0].layer)))
            for name, (rows, columns) in {"down": (width, hidden), "up": (hidden, width)}.items():
                add_weight(self, config, rows, columns, f"W_{name}")


def add_weight(module: nn.Module, config: BnConfig, in_features: int, out_features: int, prefix: str = "W") -> None:
    """Give `module` the weights W_i [n, I / n, O / n], whole or as products of rank `phm_rank`."""
    n = config.phm_dim
    shape = (n, in_features // n, out_features // n)
    if config.factorized_phm_W:
        parts = {
            f"{prefix}_left": (*shape[:2], config.phm_rank),
            f"{prefix}_right": (n, config.phm_rank, shape[2]),
        }
    else:
        parts = {prefix: shape}
    for name, size in parts.items():
        weight = nn.Parameter(torch.empty(size))
        for matrix in weight.data:
            nn.init.xavier_normal_(matrix)
        module.register_parameter(name, weight)


class PHMLinear(MethodModule):
    """y = x H + b with H = sum_i kron(A_i, W_i), H [I, O]."""

    def __init__(self, config: BnConfig, in_features: int, out_features: int, direction: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.direction = in_features, out_features, direction
        self.fixed_parameters = () if config.learn_phm else RULES
        for name, width in (("in", in_features), ("out", out_features)):
            if width % config.phm_dim:
                raise ConfigError(
                    f"phm_dim={config.phm_dim} does not divide the {name} width {width} of the bottleneck. Choose a "
                    "phm_dim and a reduction_factor that divide the hidden size."
                )
        self._rule, self._weight = [self], [self]
        if not config.shared_phm_rule:
            rule = PHMRule(config, shared=False)
            for name, parameter in rule.named_parameters():
                self.register_parameter(name, parameter)
        if not config.shared_W_phm:
            add_weight(self, config, in_features, out_features)
        self.register_parameter("b", nn.Parameter(torch.zeros(out_features)) if config.phm_bias else None)
        self.transposed = Derived(self.matrix, self)

    def bind(self, config: BnConfig, shared: nn.Module) -> None:
        """Read from `shared` what this config shares between sites."""
        self._rule = [shared if config.shared_phm_rule else self]  # type: ignore[list-item]
        self._weight = [shared if config.shared_W_phm else self]  # type: ignore[list-item]
        self.transposed = Derived(self.matrix, self, shared)

    def matrix(self) -> Tensor:
        """H transposed, [O, I]."""
        rule, owner = rule_of(self._rule[0]), self._weight[0]
        prefix = "W" if owner is self else f"W_{self.direction}"
        whole = getattr(owner, prefix, None)
        w = getattr(owner, f"{prefix}_left") @ getattr(owner, f"{prefix}_right") if whole is None else whole
        return torch.einsum("iab,ipq->bqap", rule, w).reshape(self.out_features, self.in_features)

    def plain_weights(self) -> tuple[Tensor, Tensor] | None:
        """H transposed, and b if there is one."""
        bias = self._parameters.get("b")
        return None if bias is None else (self.transposed(), bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.transposed()
        return nn.functional.linear(matched(x, weight), weight, self.tensor("b"))


class Compacter(Bottleneck):
    """A bottleneck whose two maps are sums of Kronecker products.

        y = x H + b,   H = sum_i kron(A_i, W_i),   W_i = L_i R_i

    A_i is [n, n] and shared by all sites, W_i [I / n, O / n] of rank `phm_rank`; n = phm_dim divides I and O.

    Paper: Karimi Mahabadi et al. 2021, arXiv:2106.04647. PHM layers: Zhang et al. 2021, arXiv:2102.08597.
    """

    paper = "arXiv:2106.04647"
    titles: ClassVar[Mapping[str, str]] = {"compacter": "Compacter", "compacter++": "Compacter++"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {
        "compacter++": CompacterPlusPlusConfig(),
        "compacter": CompacterConfig(),
    }
    shared_container = "shared_parameters"

    @classmethod
    def handles(cls, config: Any) -> bool:
        return isinstance(config, BnConfig) and config.phm_layer

    @classmethod
    def shared(cls, config: BnConfig, sites: list[ResidualSite]) -> nn.Module | None:
        return SharedPHM(config, sites) if config.shared_phm_rule or config.shared_W_phm else None

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        if shared is not None:
            for linear in (self.adapter_down[-2], self.adapter_up):
                linear.bind(self.config, shared)  # type: ignore[operator]

    def projection(self, in_features: int, out_features: int) -> nn.Module:
        direction = "down" if in_features == self.site.width else "up"
        return PHMLinear(self.config, in_features, out_features, direction)

    def reset_parameters(self) -> None:
        """Nothing to do: the maps initialise themselves."""

    @property
    def signature(self) -> tuple[Any, ...] | None:
        return None
