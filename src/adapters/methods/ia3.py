"""IA3: a trained factor for each output of a linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.errors import ConfigError
from adapters.methods.base import AffineAdapter, Effect, InputAdapter, LinearAdapter, gate, new_gate
from adapters.methods.config import AdapterConfig
from adapters.methods.derived import Derived, Views
from adapters.methods.lora import LoRAConfig, init_matrices
from adapters.methods.parts import Watching, watched
from adapters.methods.places import Chosen, count, output_columns, patterns
from adapters.methods.stacking import RowGroups
from adapters.methods.state import LinearState
from adapters.methods.weight_update import wants_site
from adapters.sites.site import LinearSite


@dataclass(eq=False)
class IA3Config(LoRAConfig):
    """Scales keys, values and the feed-forward block's inner activations by trained vectors.

        y = (W x + b) * s

    Paper: Liu et al. 2022, arXiv:2205.05638. Fields as in `LoRAConfig`; r stays 1; a dropout does nothing.
    """

    intermediate_lora: bool = True
    r: int = 1
    alpha: float = 1
    attn_matrices: list[str] = field(default_factory=lambda: ["k", "v"])
    composition_mode: str = "scale"
    init_weights: str = "ia3"


class IA3(LinearAdapter):
    """Rescaling of the output of a linear map by a learned vector.

        y = alpha * l * (W x + b)                       gated: y = g(x) * l * (W x + b)

    l is [O] and starts at 1. At a fused projection l holds the adapted parts only; the others are multiplied by alpha.

    Paper: Liu et al. 2022, arXiv:2205.05638.
    """

    paper = "arXiv:2205.05638"
    titles: ClassVar[Mapping[str, str]] = {"ia3": "(IA)³"}
    config_class = LoRAConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"ia3": IA3Config()}
    per_expert = True
    looks_up = True

    def __init__(self, config: LoRAConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name)
        if config.r != 1:
            raise ConfigError(f"composition_mode='scale' has one scaling vector, got r={config.r}. Set r=1.")
        (self.columns, self.out_features), self.alpha = self.scaled_columns(config, site), config.alpha
        self.lora_B = nn.Parameter(torch.empty(sum(map(count, self.columns)), 1))
        self.gate = new_gate(site.in_features, len(self.columns)) if config.use_gating else None
        init_matrices(None, self.lora_B, config.init_weights)
        self._scale = Derived(self.plain_scale, self)
        self._views = Views(_row)
        self._is_view = self.alpha == 1 and len(self.lora_B) == self.out_features

    @staticmethod
    def scaled_columns(config: LoRAConfig, site: LinearSite) -> tuple[tuple[Chosen, ...], int]:
        """The columns that l has entries for, and how many columns there are."""
        return output_columns(config, site), site.out_features

    @classmethod
    def handles(cls, config: Any) -> bool:
        if not isinstance(config, LoRAConfig) or config.kind != "ia3":
            return False
        return config.places is None or bool(patterns(config, cls.inward))

    @classmethod
    def acts_at(cls, config: LoRAConfig, site: LinearSite) -> bool:
        return wants_site(config, site)

    def scale(self, x: Tensor) -> Tensor:
        """The scaling vector, [1, 1, O], or with a gate [B, 1, O]."""
        if self.gate is None:
            return self._views(self.tensor("lora_B")) if self._is_view else self._scale()  # type: ignore[no-any-return]
        vector = _row(self.tensor("lora_B"))
        scores = gate(self.gate, x, self.config.gate_attended)
        self.record_gate(scores)
        if len(self.columns) == 1:
            return self._whole(vector * scores)
        wide = [score.expand(-1, -1, count(columns)) for score, columns in zip(scores.split(1, -1), self.columns)]
        return self._whole(vector * torch.cat(wide, -1))

    def plain_scale(self) -> Tensor:
        """The scaling vector without gate, [1, 1, O]."""
        vector = self._whole(_row(self.tensor("lora_B")))
        return vector if self.alpha == 1 else vector * self.alpha

    def effect(self) -> Effect:
        return Effect(scale=self.plain_scale().view(-1))

    def resting_value(self, name: str) -> Tensor | float:
        return 1 / self.alpha if name == "lora_B" and self.alpha else super().resting_value(name)

    def _whole(self, vector: Tensor) -> Tensor:
        if vector.shape[-1] == self.out_features:
            return vector
        whole = vector.new_ones(*vector.shape[:-1], self.out_features)
        for columns, part in zip(self.columns, vector.split([count(columns) for columns in self.columns], -1)):
            whole[..., columns] = part
        return whole

    def run(self, state: LinearState) -> LinearState:
        if watched(self) and not torch.compiler.is_compiling():
            scale = self(state.x, torch.ones_like(state.y))
        else:
            scale = self.scale(state.x)
        return replace(
            state,
            scale=scale if state.scale is None else state.scale * scale,
            delta=None if state.delta is None else state.delta * scale,
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self.scale(x)
        if y.dtype is not scale.dtype:
            return (y * scale).to(y.dtype)
        return y * scale if torch.is_grad_enabled() or not self.may_write(y) else y.mul_(scale)

    def changed_by_merging(self, before: AffineAdapter) -> str | None:
        if self.gate is not None and self.tap == "output" and before.tap == "input":
            return f"the gate of {self.name!r} would read what {before.name!r} reads, no more what it makes of it"
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.gate is not None:
            return super().merged(weight, bias)
        scale = self.scale(weight).view(-1)
        return scale[:, None] * weight, bias if bias is None else scale * bias

    @property
    def signature(self) -> tuple[Any, ...] | None:
        if self.gate is not None:
            return None
        return IA3, self.tensor("lora_B").shape, self.tensor("lora_B").dtype, self.alpha, str(self.columns)

    @classmethod
    def stacked(cls, members: Sequence[IA3], groups: RowGroups) -> IA3:
        return StackedIA3(members, groups)


class InwardIA3(InputAdapter, IA3):  # type: ignore[misc]
    """Rescaling of the input of a linear map, as the paper has it in the feed-forward block.

        y = W (alpha * l * x) + b                       gated: y = W (g(x) * l * x) + b

    l is [I] and starts at 1. Chosen by places that end in ".in": the paper has ["attn.k", "attn.v", "ffn.down.in"].

    Paper: Liu et al. 2022, arXiv:2205.05638.
    """

    inward = True
    per_expert = False
    looks_up = False
    presets: ClassVar[Mapping[str, AdapterConfig]] = {}

    @staticmethod
    def scaled_columns(config: LoRAConfig, site: LinearSite) -> tuple[tuple[Chosen, ...], int]:
        """All columns of what the map reads."""
        return (slice(0, site.in_features),), site.in_features

    @classmethod
    def handles(cls, config: Any) -> bool:
        return super().handles(config) and config.places is not None

    @classmethod
    def acts_at(cls, config: LoRAConfig, site: LinearSite) -> bool:
        return False  # flags mean outputs

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """alpha * l * x, for x [B, S, I]."""
        return (x * self.scale(x)).to(x.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.gate is not None:
            return LinearAdapter.merged(self, weight, bias)
        return weight * self.scale(weight).view(-1), bias

    @property
    def signature(self) -> tuple[Any, ...] | None:
        return None


class StackedIA3(IA3):
    """(IA)^3 with another vector for every row."""

    members: tuple[IA3, ...]

    def __init__(self, members: Sequence[IA3], groups: RowGroups) -> None:
        LinearAdapter.__init__(self, members[0].config, members[0].site, "+".join(m.name for m in members))
        self.columns, self.gate = members[0].columns, None
        self.__dict__["members"], self.groups = tuple(members), groups
        self.vectors, self.watching = Derived(self._stack, *members), Watching(*members)

    @property
    def spares(self) -> bool:
        return True

    def _stack(self) -> Tensor:
        """The scaling vectors of all members, [N, 1, O]."""
        vectors = [m.plain_scale() for m in self.members]
        return torch.cat([*vectors, torch.ones_like(vectors[0])] if self.groups.spare else vectors)

    def scale(self, x: Tensor) -> Tensor:
        """The scaling vectors, [B, 1, O]."""
        return self.groups.per_row(self.vectors(), x.shape[0])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.watching and not torch.compiler.is_compiling():
            return self.run(LinearState(x, y)).result()
        return super().forward(x, y)

    def run(self, state: LinearState) -> LinearState:
        if self.watching and not torch.compiler.is_compiling():
            return self.groups.apart(state, self.members)
        return super().run(state)


def _row(vector: Tensor) -> Tensor:
    """A column [O, 1] as it scales outputs, [1, 1, O]."""
    return vector.view(1, 1, -1)
