"""LoRA and DoRA: low-rank updates of linear layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.errors import MergeError
from adapters.methods.base import AffineAdapter, Effect
from adapters.methods.carriers import LoRALayer as LoRALayer
from adapters.methods.carriers import LoRALinear as LoRALinear
from adapters.methods.carriers import LoRAMergedLinear as LoRAMergedLinear
from adapters.methods.config import (
    AdapterConfig,
    Rule,
    decimal,
    flag,
    integer,
    nothing,
    one_of,
    real,
)
from adapters.methods.derived import Derived
from adapters.methods.parts import as_one, watched
from adapters.methods.places import output_columns
from adapters.methods.state import LinearState
from adapters.methods.weight_update import Factors, WeightUpdate, WeightUpdateConfig, add_product, meet, wants_site
from adapters.sites.linear import weight_of
from adapters.sites.site import LinearSite


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
        composition_mode: "add" the update, or "scale" the output by it (IA3; needs r 1, and has no dropout).
        init_weights: "lora" (B starts at zero), "bert" (normal, 0.02), "ia3" (ones) or "vera" (frozen, shared
            A and B).
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        use_gating: Multiply the update by a learned gate between 0 and 1 per sequence, instead of alpha / r.
        use_dora: Train direction and magnitude of the weights apart (DoRA).
        dora_form: What DoRA's magnitude multiplies, with s = alpha / r: the "output" and its bias,
            m / ||W + B A|| * (W x + b + s B A x), or as in the paper the "weight" alone,
            m / ||W + s B A|| * (W x + s B A x) + b.
        use_bias: Train an addition d to the output too, y = W x + b + (alpha / r) * B A x + d; for LoRA alone.
        vera_diagonal: Let VeRA's two trained matrices be diagonal, as in the paper.
        vera_d: Start of VeRA's inner vector, a float; None for no VeRA.
        vera_b: Start of VeRA's outer vector, a float; None for no VeRA.
        dtype: Name of the adapter's torch dtype, such as "bfloat16"; None for the default.
        places: Where to adapt, as roles, module paths or patterns (`methods/places.py`). None leaves it to the flags.
        gate_attended: Leave padding out of the gate's mean over positions. Files without this field were trained
            with padding in the mean.
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
    gate_attended: bool = True
    dora_form: str = "output"
    use_bias: bool = False
    vera_diagonal: bool = False

    newer: ClassVar[tuple[str, ...]] = ("dora_form", "use_bias", "vera_diagonal")
    flags: ClassVar[tuple[str, ...]] = WeightUpdateConfig.flags
    rules: ClassVar[Mapping[str, Rule]] = {  # the fields themselves are not inherited, because files keep their order
        **WeightUpdateConfig.rules,
        "r": integer(1),
        "alpha": real,
        "composition_mode": one_of("add", "scale"),
        "init_weights": one_of("lora", "bert", "ia3", "vera"),
        "use_dora": flag,
        "vera_d": nothing | decimal,
        "vera_b": nothing | decimal,
        "dora_form": one_of("output", "weight"),
        "use_bias": flag,
        "vera_diagonal": flag,
    }

    @property
    def kind(self) -> str:
        """Short name of what the fields describe: "lora", "dora", "vera", "dvora", "ia3", or an `architecture`."""
        if self.architecture != "lora":
            return str(self.architecture)
        if isinstance(self.vera_d, float) or isinstance(self.vera_b, float):
            return "dvora" if self.use_dora else "vera"
        if self.composition_mode == "scale":
            return "ia3"
        return "dora" if self.use_dora else "lora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.composition_mode == "scale" and self.r != 1:
            raise self._error("r", "With composition_mode 'scale' it can only be 1.")
        if self.use_bias and (self.kind != "lora" or self.use_gating):
            raise self._error("use_bias", "Only LoRA without a gate trains an addition to the output.")
        if self.composition_mode == "scale" and self.dropout:
            warnings.warn(f"{type(self).__name__}: dropout does nothing with composition_mode 'scale'.", stacklevel=4)
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
        return meet(self, other)


@dataclass(eq=False)
class DoRAConfig(LoRAConfig):
    """LoRA that trains the direction and the magnitude of the weights apart.

        y = m / ||W + B A|| * (W x + b + (alpha / r) * B A x)

    Paper: Liu et al. 2024, arXiv:2402.09353. Fields as in `LoRAConfig`.
    """

    use_dora: bool = True


class LoRA(WeightUpdate):
    """Low-rank update of a linear map.

        y = W x + b + (alpha / r) * B A x               gated: y = W x + b + g(x) * B A x

    A is [r, I], B is [O, r]. At a fused projection (GPT-2's `c_attn`) A and B hold one block per adapted part, and
    parts that are not adapted stay as they are. In a `Stack` the next adapter reads the update of the last one. With
    `use_bias` the update has one more term, d [O].

    Paper: Hu et al. 2021, arXiv:2106.09685. Gate: Mao et al. 2022, arXiv:2110.07577.
    """

    paper = "arXiv:2106.09685"
    titles: ClassVar[Mapping[str, str]] = {"lora": "LoRA"}
    config_class = LoRAConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"lora": LoRAConfig()}
    variant: ClassVar[str] = "lora"

    def __init__(self, config: LoRAConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name, output_columns(config, site))
        self.scaling = config.alpha / config.r
        self.make_matrices()
        self.bias = nn.Parameter(torch.zeros(site.out_features)) if config.use_bias else None

    def make_matrices(self) -> None:
        """Create the trained tensors."""
        config: LoRAConfig = self.config
        self.lora_A = nn.Parameter(torch.empty(config.r * len(self.columns), self.in_features))
        self.lora_B = nn.Parameter(torch.empty(self.width, config.r))
        init_matrices(self.lora_A, self.lora_B, config.init_weights)

    @property
    def delta_w(self) -> Tensor:
        """B A, without alpha / r."""
        return self.delta_weight() / self.scaling

    @classmethod
    def handles(cls, config: Any) -> bool:
        return isinstance(config, LoRAConfig) and config.kind == cls.variant

    @classmethod
    def acts_at(cls, config: LoRAConfig, site: LinearSite) -> bool:
        return wants_site(config, site)

    def factors(self) -> Factors:
        return self.tensor("lora_A"), self.tensor("lora_B")

    def bare(self) -> bool:
        return super().bare() and self.bias is None

    def update(self, x: Tensor, gate_input: Tensor) -> Tensor:
        update = super().update(x, gate_input)
        return update if self.bias is None else update + self.tensor("bias")

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().merged(weight, bias)
        if self.bias is None:
            return weight, bias
        if bias is None:
            raise MergeError(
                f"Adapter {self.name!r} adds to the output of {self.site.path} (use_bias), which has no bias that "
                "this could go into. Keep it as an adapter."
            )
        return weight, bias + self.tensor("bias")


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

    Paper: Liu et al. 2024, arXiv:2402.09353. We differ: the norm is taken of the unscaled product B A, and m multiplies
    the bias too, as in the adapters that were trained so far. With `dora_form="weight"` it is the paper's

        y = m / ||W + (alpha / r) * B A|| * (W x + (alpha / r) * B A x) + b
    """

    paper = "arXiv:2402.09353"
    titles: ClassVar[Mapping[str, str]] = {"dora": "DoRA"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"dora": DoRAConfig()}
    variant = "dora"

    def __init__(self, config: LoRAConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name)
        self.m = nn.Linear(1, site.out_features, bias=False)
        weight = weight_of(site.module)  # also where a file has the lengths: packed weights are refused at once
        if not self.m.weight.is_meta:
            with torch.no_grad():
                self.m.weight.copy_(weight.float().norm(dim=1, keepdim=True))

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        self._folded = Derived(self._fold, *self.sources(), base=self.site.module)

    def _fold(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """M = m / ||W + B A|| [O], A transposed [1, I, n r], (alpha / r) * M * B transposed [1, n r, O],
        and (1 - M) * b [O], which brings the bias back where M does not multiply it.
        """
        a, b = self.wide()
        update = b @ a if self.config.dora_form == "output" else self.scaling * (b @ a)
        norm: Tensor = (weight_of(self.site.module) + update).norm(dim=1)
        magnitude = self.m.weight.squeeze(1) / norm
        bias = self.site.bias if self.config.dora_form == "weight" else None
        rest = None if bias is None else (1 - magnitude) * bias
        return magnitude, a.mT.unsqueeze(0), (b.mT * (self.scaling * magnitude)).unsqueeze(0), rest

    def effect(self) -> Effect:
        magnitude, down, up, _ = self._fold()
        return Effect((down[0].mT, up[0].mT), magnitude)

    def resting_value(self, name: str) -> Tensor | float:
        if name != "m.weight":
            return super().resting_value(name)
        lengths: Tensor = weight_of(self.site.module).float().norm(dim=1, keepdim=True)
        return lengths

    def magnitude(self) -> Tensor:
        """m / ||W + B A||, [O]."""
        return self._folded()[0]  # type: ignore[no-any-return]

    def run(self, state: LinearState) -> LinearState:
        if self.config.dora_form == "weight":
            return AffineAdapter.run(self, state)
        return replace(super().run(state), magnitude=self.magnitude().view(1, 1, -1))

    def delta(self, x: Tensor, state: LinearState) -> Tensor:
        if watched(self) and not torch.compiler.is_compiling():
            return self(x, torch.zeros_like(state.y)) / self.magnitude()  # type: ignore[no-any-return]
        return self.update(x, state.x)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not (self.bare() and x.dtype is y.dtype is self.m.weight.dtype and y.is_contiguous()):
            magnitude, _, _, rest = self._folded()
            y, dtype = (y + self.update(x, x)) * magnitude, y.dtype
            return (y if rest is None else y + rest).to(dtype)
        folded: tuple[Tensor, Tensor, Tensor, Tensor | None] = self._folded()
        magnitude, down, up, rest = folded
        y = y.mul_(magnitude) if self.may_write(y) and not torch.is_grad_enabled() else y * magnitude
        if rest is not None:
            y = y + rest
        if torch.compiler.is_compiling():
            return y + x @ down @ up
        add_product(as_one(y), as_one(x), (down, up))
        return y

    def changed_by_merging(self, before: AffineAdapter) -> str | None:
        if before.merged_bias(before.site.bias) is None:
            return f"{self.name!r} measures the weights, which {before.name!r} would change"
        return super().changed_by_merging(before)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        magnitude = self.magnitude()
        merged, _ = super().merged(weight, bias)
        if self.config.dora_form == "weight":
            return magnitude[:, None] * merged, bias
        return magnitude[:, None] * merged, bias if bias is None else magnitude * bias

    @property
    def signature(self) -> tuple[Any, ...] | None:
        return None
