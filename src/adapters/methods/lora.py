"""LoRA and DoRA: low-rank updates of linear layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.methods.base import AdapterModule, LinearAdapter, gate, matched, new_gate
from adapters.methods.config import (
    AdapterConfig,
    Rule,
    decimal,
    dtype_name,
    flag,
    integer,
    layer_numbers,
    list_of,
    nothing,
    one_of,
    place_patterns,
    probability,
    real,
    seed,
    text,
)
from adapters.methods.derived import Derived
from adapters.methods.places import Chosen, count, output_columns, roles_of
from adapters.methods.stacking import RowGroups, select
from adapters.methods.state import LinearState
from adapters.sites.linear import weight_of
from adapters.sites.resolve import LinearSite


@dataclass(eq=False)
class LoRAConfig(AdapterConfig):
    """Adds a trained matrix of low rank to linear layers.

        y = W x + (alpha / r) * B A x

    Paper: Hu et al. 2021, arXiv:2106.09685. The config also covers IA3, VeRA and DoRA, which have classes of
    their own.

    Args:
        selfattn_lora: Adapt the projections of the attention that `attn_matrices` names.
        intermediate_lora: Adapt the first linear layer of the feed-forward block.
        output_lora: Adapt the second linear layer of the feed-forward block.
        leave_out: Layers without adapter, counted from 0.
        r: Rank of the update, at least 1.
        alpha: Numerator of the scaling alpha / r.
        dropout: Probability in [0, 1], applied to x before A.
        attn_matrices: Which of query "q", key "k" and value "v" are adapted.
        composition_mode: "add" the update, or "scale" the output by it (IA3; needs r 1 and dropout 0).
        init_weights: "lora" (B starts at zero), "bert" (normal, 0.02), "ia3" (ones) or "vera" (frozen, shared
            A and B).
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        use_gating: Multiply the update by a learned gate between 0 and 1 per sequence, instead of alpha / r.
        use_dora: Train direction and magnitude of the weights apart (DoRA).
        vera_d: Start of VeRA's inner vector, a float; None for no VeRA.
        vera_b: Start of VeRA's outer vector, a float; None for no VeRA.
        dtype: Name of the adapter's torch dtype, such as "bfloat16"; None for the default.
        places: Where to adapt, as roles, module paths or patterns (`methods/places.py`). None leaves it to the flags.
    Raises:
        ConfigError: a value is of another type or outside its range, or "scale" is asked with a rank or
            dropout.
    """

    architecture: str | None = "lora"
    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: list[int] = field(default_factory=list)
    r: int = 8
    alpha: float = 8
    dropout: float = 0.0
    attn_matrices: list[str] = field(default_factory=lambda: ["q", "v"])
    composition_mode: str = "add"
    init_weights: str = "lora"
    init_weights_seed: int | None = None
    use_gating: bool = False
    use_dora: bool = False
    vera_d: float | None = None
    vera_b: float | None = None
    dtype: str | None = None
    places: str | list[str] | None = None

    flags: ClassVar[tuple[str, ...]] = ("selfattn_lora", "intermediate_lora", "output_lora")
    rules: ClassVar[Mapping[str, Rule]] = {
        "selfattn_lora": flag,
        "intermediate_lora": flag,
        "output_lora": flag,
        "leave_out": layer_numbers,
        "r": integer(1),
        "alpha": real,
        "dropout": probability,
        "attn_matrices": list_of(text),
        "composition_mode": one_of("add", "scale"),
        "init_weights": one_of("lora", "bert", "ia3", "vera"),
        "init_weights_seed": seed,
        "use_gating": flag,
        "use_dora": flag,
        "vera_d": nothing | decimal,
        "vera_b": nothing | decimal,
        "dtype": dtype_name,
        "places": place_patterns,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.composition_mode == "scale" and self.r != 1:
            raise self._error("r", "With composition_mode 'scale' it can only be 1.")
        if self.composition_mode == "scale" and self.dropout:
            raise self._error("dropout", "With composition_mode 'scale' it can only be 0.")
        idle = [name for name in self.attn_matrices if name not in ("q", "k", "v")]
        if idle:
            warnings.warn(
                f"{type(self).__name__}: attn_matrices has {idle}, which adapt nothing. Allowed: 'q', 'k', 'v'.",
                stacklevel=4,
            )

    @property
    def scales(self) -> bool:
        """Whether this is IA3."""
        return self.composition_mode == "scale"

    def meets(self, other: AdapterConfig) -> bool:
        """Whether two configs adapt the same linear map."""
        both = [flag for flag in self.flags if self[flag] and other[flag]]
        return both not in ([], ["selfattn_lora"]) or bool(both and set(self.attn_matrices) & {*other["attn_matrices"]})


@dataclass(eq=False)
class DoRAConfig(LoRAConfig):
    """LoRA that trains the direction and the magnitude of the weights apart.

        y = m / ||W + B A|| * (W x + b + (alpha / r) * B A x)

    Paper: Liu et al. 2024, arXiv:2402.09353. Fields as in `LoRAConfig`.
    """

    use_dora: bool = True


class LoRA(LinearAdapter):
    """Low-rank update of a linear map.

        y = W x + b + (alpha / r) * B A x               gated: y = W x + b + g(x) * B A x

    A is [r, I], B is [O, r]. At a fused projection (GPT-2's `c_attn`) A and B hold one block per adapted part, and
    parts that are not adapted stay as they are. In a `Stack` the next adapter reads the update of the last one.

    Paper: Hu et al. 2021, arXiv:2106.09685. Gate: Mao et al. 2022, arXiv:2110.07577.
    """

    paper = "arXiv:2106.09685"
    config_class = LoRAConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"lora": LoRAConfig()}
    variant: ClassVar[str] = "lora"

    def __init__(self, config: LoRAConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name)
        self.columns = output_columns(config, site)
        self.scaling = config.alpha / config.r
        self.gate = new_gate(site.in_features, len(self.columns)) if config.use_gating else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self.whole = not site.parts
        adjacent = all(isinstance(columns, slice) for columns in self.columns)
        self.bare = adjacent and self.gate is None and self.dropout is None
        self.in_features, self.out_features = site.in_features, site.out_features
        self.width = sum(map(count, self.columns))
        self.make_matrices()

    def make_matrices(self) -> None:
        """Create the trained tensors."""
        config: LoRAConfig = self.config
        self.lora_A = nn.Parameter(torch.empty(config.r * len(self.columns), self.in_features))
        self.lora_B = nn.Parameter(torch.empty(self.width, config.r))
        init_matrices(self.lora_A, self.lora_B, config.init_weights)

    @classmethod
    def handles(cls, config: Any) -> bool:
        return isinstance(config, LoRAConfig) and linear_method(config) == cls.variant

    @classmethod
    def acts_at(cls, config: LoRAConfig, site: LinearSite) -> bool:
        return wants_site(config, site)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A and B, with the blocks of all adapted parts below each other."""
        return self._parameters["lora_A"], self._parameters["lora_B"]  # type: ignore[return-value]

    def pairs(self) -> Iterator[tuple[Chosen, Tensor, Tensor]]:
        """(columns, A, B) of every part of the projection that is adapted."""
        (a, b), parts = self.matrices(), len(self.columns)
        yield from zip(self.columns, a.chunk(parts), b.split([count(columns) for columns in self.columns]))

    def cannot_follow(self, before: AdapterModule[Any]) -> str | None:
        if not isinstance(before, LoRA) or self.site.in_features == self.site.out_features:
            return None
        return (
            f"the update of {before.name!r} has {self.site.out_features} columns, but {self.name!r} reads "
            f"{self.site.in_features} at {self.site.path}. Low-rank adapters of a stack are chained, which only square "
            "projections allow. Use Average, Parallel or BatchSplit instead."
        )

    def run(self, state: LinearState) -> LinearState:
        x = state.x if state.delta is None else state.delta
        return replace(state, delta=self.update(x, state.x), magnitude=None)

    def update(self, x: Tensor, gate_input: Tensor) -> Tensor:
        """(alpha / r) * B A x, or gated: g * B A x; [B, S, O]."""
        dropped = x if self.dropout is None else self.dropout(x)
        updates = [(columns, F.linear(F.linear(matched(dropped, a), a), b)) for columns, a, b in self.pairs()]
        if self.gate is None:
            updates = [(columns, update * self.scaling) for columns, update in updates]
        else:
            scores = gate(self.gate, gate_input)
            self.record_gate(scores)
            updates = [(c, update * scores[:, None, i : i + 1]) for i, (c, update) in enumerate(updates)]
        if self.whole:
            return updates[0][1]
        delta = updates[0][1].new_zeros(*x.shape[:-1], self.site.out_features)
        for columns, update in updates:
            delta[..., columns] = update
        return delta

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.matrices()
        if not (self.bare and x.dtype == y.dtype == a.dtype and y.is_contiguous()):
            return self.run(LinearState(x, y)).result()
        flat, out = x.reshape(-1, self.in_features), y.view(-1, self.out_features)
        if self.whole:
            out.addmm_(flat @ a.t(), b.t(), alpha=self.scaling)
        else:
            for columns, a_part, b_part in self.pairs():
                out[:, columns].addmm_(flat @ a_part.t(), b_part.t(), alpha=self.scaling)
        return y

    def delta_weight(self) -> Tensor:
        """B A without scaling, [O, I]."""
        a, b = self.wide_matrices()
        return b @ a

    def wide_matrices(self) -> tuple[Tensor, Tensor]:
        """A [n r, I] and B [O, n r] of n adapted parts: each part's columns of B, zeros elsewhere."""
        a, b = self.matrices()
        if self.whole:
            return a, b
        wide = b.new_zeros(self.out_features, len(a))
        for i, (columns, _, part) in enumerate(self.pairs()):
            rank = part.shape[1]
            wide[columns, i * rank : (i + 1) * rank] = part
        return a, wide

    @property
    def delta_w(self) -> Tensor:
        """The weight update without scaling, [O, I]."""
        return self.delta_weight()

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.gate is not None:
            return super().merged(weight, bias)
        return weight + self.scaling * self.delta_weight(), bias

    @property
    def signature(self) -> tuple[Any, ...] | None:
        if not self.bare or type(self) is not LoRA:
            return None
        return LoRA, self.lora_A.shape, self.lora_B.shape, self.scaling, self.columns

    @classmethod
    def stacked(cls, members: Sequence[LoRA], groups: RowGroups) -> LoRA:
        return StackedLoRA(members, groups)


class StackedLoRA(LoRA):
    """LoRA with other matrices for every row: A [N, r, I] and B [N, O, r] of N equally shaped adapters."""

    members: tuple[LoRA, ...]

    def __init__(self, members: Sequence[LoRA], groups: RowGroups) -> None:
        first = members[0]
        LinearAdapter.__init__(self, first.config, first.site, "+".join(m.name for m in members))
        self.columns, self.scaling, self.whole = first.columns, first.scaling, first.whole
        self.gate = self.dropout = None
        self.__dict__["members"], self.groups = tuple(members), groups
        self._matrices = Derived(self._stack, *members)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [N, r, I] and B [N, O, r]."""
        return self._matrices()  # type: ignore[no-any-return]

    def _stack(self) -> tuple[Tensor, Tensor]:
        return torch.stack([m.lora_A for m in self.members]), torch.stack([m.lora_B for m in self.members])

    def grouped(self, x: Tensor, a: Tensor, b: Tensor) -> Iterator[tuple[Chosen, Tensor, Tensor]]:
        """(columns, A x [G, M, r], B transposed [G, r, O]) of every part of the projection."""
        flat, index = self.groups.arrange(x)
        a, b = select(a, index), select(b, index)
        parts, widths = len(self.columns), [count(columns) for columns in self.columns]
        for columns, a_part, b_part in zip(self.columns, a.chunk(parts, 1), b.split(widths, 1)):
            yield columns, torch.bmm(flat, a_part.transpose(1, 2)), b_part.transpose(1, 2)

    def update(self, x: Tensor, gate_input: Tensor) -> Tensor:
        a, b = self.matrices()
        out = x.new_zeros(*x.shape[:-1], self.site.out_features)
        for columns, down, up in self.grouped(matched(x, a), a, b):
            out[..., columns] = torch.bmm(down, up).view(*x.shape[:-1], -1) * self.scaling
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.matrices()
        if not x.dtype == y.dtype == a.dtype or not y.is_contiguous():
            return self.run(LinearState(x, y)).result()
        for columns, down, up in self.grouped(x, a, b):
            out = y.view(down.shape[0], down.shape[1], -1)
            block = out if self.whole else out[..., columns]
            block.baddbmm_(down, up, alpha=self.scaling)
        return y


def linear_method(config: LoRAConfig) -> str:
    """Which method of the LoRA family a config describes."""
    if config.architecture != "lora":
        return str(config.architecture)
    if isinstance(config.vera_d, float) or isinstance(config.vera_b, float):
        return "dvora" if config.use_dora else "vera"
    if config.composition_mode == "scale":
        return "ia3"
    return "dora" if config.use_dora else "lora"


def wants_site(config: LoRAConfig, site: LinearSite) -> bool:
    """Whether the flags of `config` select `site`."""
    if site.location not in config.flags or not getattr(config, site.location):
        return False
    if site.location != "selfattn_lora":
        return True
    return any(role.rpartition(".")[2] in config.attn_matrices for role in roles_of(site))


def init_matrices(a: Tensor | None, b: Tensor, scheme: str) -> None:
    """Initial values of A (None for methods without) and B."""
    if scheme == "bert":
        for tensor in (a, b):
            if tensor is not None:
                nn.init.normal_(tensor, std=0.02)
    elif scheme == "ia3":
        for tensor in (a, b):
            if tensor is not None:
                nn.init.ones_(tensor)
    else:
        if a is not None:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        if scheme == "vera":
            nn.init.kaiming_uniform_(b, a=math.sqrt(5))
        else:
            nn.init.zeros_(b)


class DoRA(LoRA):
    """Weight-decomposed low-rank update: LoRA with a learned length for every row of the weight.

        y = m / ||W + B A|| * (W x + b + (alpha / r) * B A x)             norms over the rows of [O, I]

    Paper: Liu et al. 2024, arXiv:2402.09353. We differ: the norm is taken of the unscaled product B A, as in the
    adapters that were trained so far; with the default alpha = r there is no difference.
    """

    paper = "arXiv:2402.09353"
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"dora": DoRAConfig()}
    variant = "dora"

    def __init__(self, config: LoRAConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name)
        self.m = nn.Linear(1, site.out_features, bias=False)
        with torch.no_grad():
            self.m.weight.copy_(weight_of(site.module).float().norm(dim=1, keepdim=True))

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        sources = (self, self.site.module) if shared is None else (self, self.site.module, shared)
        self._folded = Derived(self._fold, *sources)

    def _fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """m / ||W + B A|| [O], A transposed [I, n r], and (alpha / r) * m / ||W + B A|| * B transposed [n r, O]."""
        a, b = self.wide_matrices()
        norm: Tensor = (weight_of(self.site.module) + b @ a).norm(dim=1)
        magnitude = self.m.weight.squeeze(1) / norm
        return magnitude, a.t(), b.t() * (self.scaling * magnitude)

    def magnitude(self) -> Tensor:
        """m / ||W + B A||, [O]."""
        return self._folded()[0]  # type: ignore[no-any-return]

    def run(self, state: LinearState) -> LinearState:
        return replace(super().run(state), magnitude=self.magnitude().view(1, 1, -1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not (self.bare and x.dtype is y.dtype is self.m.weight.dtype and y.is_contiguous()):
            return self.run(LinearState(x, y)).result()
        magnitude, down, up = self._folded()
        y = y * magnitude if torch.is_grad_enabled() else y.mul_(magnitude)
        y.view(-1, self.out_features).addmm_(x.reshape(-1, self.in_features) @ down, up)
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        magnitude = self.magnitude()
        merged, _ = super().merged(weight, bias)
        return magnitude[:, None] * merged, bias if bias is None else magnitude * bias
