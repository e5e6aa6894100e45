"""Bottleneck adapters: a small feed-forward block behind a sub-block of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from adapters.call import CALL
from adapters.errors import ConfigError
from adapters.methods.base import AdapterModule, Direct, gate, new_gate
from adapters.methods.carriers import BottleneckLayer as BottleneckLayer
from adapters.methods.config import (
    AdapterConfig,
    ConfigT,
    Rule,
    activation,
    decimal,
    flag,
    integer,
    layer_numbers,
    nothing,
    number,
    one_of,
    per_layer,
    place_patterns,
    probability,
    seed,
)
from adapters.methods.derived import Derived, Views
from adapters.methods.parts import Watching, as_one, call, forward, matched, weights_of
from adapters.methods.stacking import RowGroups, alike, select
from adapters.methods.state import ResidualState
from adapters.sites.site import ResidualSite


@dataclass(eq=False)
class BnConfig(AdapterConfig):
    """A bottleneck adapter with every choice open. The subclasses are the designs from papers.

        out = h + scaling * W_up act(W_down h + b_down) + b_up

    Papers: Houlsby et al. 2019, arXiv:1902.00751 (two per layer); Pfeiffer et al. 2020, arXiv:2005.00052 (one
    per layer, invertible adapters); He et al. 2022, arXiv:2110.04366 (parallel); Mahabadi et al. 2021,
    arXiv:2106.04647 (phm fields).

    Args:
        mh_adapter: Adapt behind the attention.
        output_adapter: Adapt behind the feed-forward block.
        reduction_factor: hidden_size / bottleneck width, a number above 0; below 1 the adapter is wider than
            the model. A mapping from layer number to factor sets layers apart, its key "default" the others.
        non_linearity: Activation in the bottleneck, by its name in Transformers.
        original_ln_before: Apply the layer's own residual and norm before the adapter.
        original_ln_after: Apply the layer's own residual and norm after the adapter.
        ln_before: Start the adapter with a norm of its own.
        ln_after: End the adapter with a norm of its own.
        init_weights: "bert" (normal, 0.02), "mam_adapter" (output starts at zero) or "houlsby" (truncated
            normal, 0.01).
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        is_parallel: Read the sub-block's input instead of its output, and add to its output.
        scaling: Factor of the adapter's output: a float, "learned" (one parameter) or "channel" (one per
            hidden unit).
        use_gating: Multiply the output by a learned gate between 0 and 1 per sequence.
        residual_before_ln: Take the adapter's residual before (True) or after (False) the layer's norm;
            "post_add" takes it after the layer's residual and before its norm. Acts with original_ln_before.
        adapter_residual_before_ln: Add the adapter's residual before its ln_after.
        inv_adapter: Invertible adapter behind the embeddings: "nice", "glow" or None.
        inv_adapter_reduction_factor: Half the embedding size / width of the invertible bottleneck, above 0.
        cross_adapter: Adapt behind the cross-attention.
        leave_out: Layers without adapter, counted from 0.
        dropout: Probability in [0, 1], applied to the adapter's output.
        phm_layer: Make both projections sums of Kronecker products (Compacter).
        phm_dim: Number of Kronecker products; must divide hidden size and bottleneck width.
        factorized_phm_W: Store the second factors as products of two thin matrices.
        shared_W_phm: Share the second factors between all layers.
        shared_phm_rule: Share the first factors ("rules") between all layers.
        factorized_phm_rule: Store the rules as products of two thin matrices.
        phm_c_init: Distribution from which rules start, "normal" or "uniform".
        phm_init_range: Standard deviation of normally distributed shared rules, above 0.
        learn_phm: Train the rules.
        hypercomplex_nonlinearity: Distribution from which the second factors start.
        phm_rank: Inner width of factorised matrices, at least 1.
        phm_bias: Add biases in phm layers.
        stochastic_depth: Probability in [0, 1) of leaving out the adapter for a row while training.
        places: Where to adapt, as roles, module paths or patterns (`methods/places.py`). None leaves it to mh_adapter,
            output_adapter and cross_adapter.
        gate_attended: Leave padding out of the gate's mean over positions. Files without this field were trained
            with padding in the mean.
    Raises:
        ConfigError: a value is of another type or outside its range. `scaling` must be a float, not an int.
    """

    mh_adapter: bool
    output_adapter: bool
    reduction_factor: float | Mapping[str, float]
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    init_weights: str = "bert"
    init_weights_seed: int | None = None
    is_parallel: bool = False
    scaling: float | str = 1.0
    use_gating: bool = False
    residual_before_ln: bool | str = True
    adapter_residual_before_ln: bool = False
    inv_adapter: str | None = None
    inv_adapter_reduction_factor: float | None = None
    cross_adapter: bool = False
    leave_out: list[int] = field(default_factory=list)
    dropout: float = 0.0
    phm_layer: bool = False
    phm_dim: int = 4
    factorized_phm_W: bool = True
    shared_W_phm: bool = False
    shared_phm_rule: bool = True
    factorized_phm_rule: bool = False
    phm_c_init: str = "normal"
    phm_init_range: float = 0.0001
    learn_phm: bool = True
    hypercomplex_nonlinearity: str = "glorot-uniform"
    phm_rank: int = 1
    phm_bias: bool = True
    stochastic_depth: float = 0.0
    places: str | list[str] | None = None
    gate_attended: bool = True

    flags: ClassVar[tuple[str, ...]] = ("mh_adapter", "output_adapter", "cross_adapter")
    rules: ClassVar[Mapping[str, Rule]] = {
        "mh_adapter": flag,
        "output_adapter": flag,
        "reduction_factor": number(0, above=True) | per_layer(number(0, above=True)),
        "non_linearity": activation,
        "original_ln_before": flag,
        "original_ln_after": flag,
        "ln_before": flag,
        "ln_after": flag,
        "init_weights": one_of("bert", "mam_adapter", "houlsby"),
        "init_weights_seed": seed,
        "is_parallel": flag,
        "scaling": decimal | one_of("learned", "channel"),
        "use_gating": flag,
        "residual_before_ln": flag | one_of("post_add"),
        "adapter_residual_before_ln": flag,
        "inv_adapter": nothing | one_of("nice", "glow"),
        "inv_adapter_reduction_factor": nothing | number(0, above=True),
        "cross_adapter": flag,
        "leave_out": layer_numbers,
        "dropout": probability,
        "phm_layer": flag,
        "phm_dim": integer(1),
        "factorized_phm_W": flag,
        "shared_W_phm": flag,
        "shared_phm_rule": flag,
        "factorized_phm_rule": flag,
        "phm_c_init": one_of("normal", "uniform"),
        "phm_init_range": number(0, above=True),
        "learn_phm": flag,
        "hypercomplex_nonlinearity": one_of("phm", "glorot-normal", "glorot-uniform", "normal"),
        "phm_rank": integer(1),
        "phm_bias": flag,
        "stochastic_depth": number(0, 1, below=True),
        "places": place_patterns,
        "gate_attended": flag,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inv_adapter is not None and self.inv_adapter_reduction_factor is None:
            raise self._error("inv_adapter_reduction_factor", "With inv_adapter a number above 0 is needed, such as 2.")

    @property
    def kind(self) -> str:
        """Short name of what the fields describe: "bottleneck", "parallel", "compacter", or an `architecture`."""
        if self.architecture is not None:
            return self.architecture
        if self.phm_layer:
            return "compacter"
        return "parallel" if self.is_parallel else "bottleneck"

    def meets(self, other: AdapterConfig) -> bool:
        """Whether two bottlenecks stand behind the same branch, or both have an invertible adapter."""
        return any(self[flag] and other[flag] for flag in (*self.flags, "inv_adapter"))

    @classmethod
    def from_dict(cls: type[ConfigT], config: Mapping[str, Any]) -> ConfigT:
        """Reads a config dict, also from before invertible adapters had fields of their own."""
        old = config.get("invertible_adapter")
        config = {name: value for name, value in config.items() if name != "invertible_adapter"}
        if isinstance(old, Mapping):
            config["inv_adapter"] = old.get("block_type")
            config["inv_adapter_reduction_factor"] = old.get("reduction_factor")
        return super().from_dict(config)

    def without_invertible(self) -> BnConfig:
        return self if self.inv_adapter is None else self.replace(inv_adapter=None, inv_adapter_reduction_factor=None)


@dataclass(eq=False)
class SeqBnConfig(BnConfig):
    """One adapter per layer, behind the feed-forward block.

        h = norm(h + x);  out = norm(W_up relu(W_down h + b_down) + b_up + h_before_norm + x)

    Paper: Pfeiffer et al. 2021, arXiv:2005.00247. Fields as in `BnConfig`.
    """

    original_ln_before: bool = True
    mh_adapter: bool = False
    output_adapter: bool = True
    non_linearity: str = "relu"
    reduction_factor: float | Mapping[str, float] = 16


@dataclass(eq=False)
class SeqBnInvConfig(SeqBnConfig):
    """One adapter per layer and an invertible one behind the embeddings, for languages.

        y1 = x1 + F(x2);  y2 = x2 + G(y1)

    Paper: Pfeiffer et al. 2020, arXiv:2005.00052, section 4.1.2. Fields as in `BnConfig`.
    """

    inv_adapter: str | None = "nice"
    inv_adapter_reduction_factor: float | None = 2


@dataclass(eq=False)
class DoubleSeqBnConfig(BnConfig):
    """Two adapters per layer, behind the attention and behind the feed-forward block.

        out = norm(W_up swish(W_down h + b_down) + b_up + h + x)

    Paper: Houlsby et al. 2019, arXiv:1902.00751. Fields as in `BnConfig`.
    """

    original_ln_before: bool = False
    mh_adapter: bool = True
    output_adapter: bool = True
    non_linearity: str = "swish"
    reduction_factor: float | Mapping[str, float] = 16


@dataclass(eq=False)
class DoubleSeqBnInvConfig(DoubleSeqBnConfig):
    """Two adapters per layer and an invertible one behind the embeddings, for languages.

        y1 = x1 + F(x2);  y2 = x2 + G(y1)

    Paper: Pfeiffer et al. 2020, arXiv:2005.00052, section 4.1.2. Fields as in `BnConfig`.
    """

    inv_adapter: str | None = "nice"
    inv_adapter_reduction_factor: float | None = 2


@dataclass(eq=False)
class ParBnConfig(BnConfig):
    """One adapter per layer, beside the feed-forward block.

        out = norm(FFN(x) + x + scaling * (W_up relu(W_down x + b_down) + b_up))

    Paper: He et al. 2022, arXiv:2110.04366. Fields as in `BnConfig`.
    """

    init_weights: str = "mam_adapter"
    is_parallel: bool = True
    scaling: float | str = 4.0
    mh_adapter: bool = False
    output_adapter: bool = True
    non_linearity: str = "relu"
    reduction_factor: float | Mapping[str, float] = 2


@dataclass(eq=False)
class AdapterPlusConfig(BnConfig):
    """One adapter per layer of a vision transformer, behind the feed-forward block, scaled per channel.

        out = h + x + s * (W_up gelu(W_down (h + x) + b_down) + b_up)

    Paper: Steitz and Roth 2024, arXiv:2406.06820. Fields as in `BnConfig`.
    """

    original_ln_before: bool = True
    original_ln_after: bool = False
    residual_before_ln: bool | str = False
    stochastic_depth: float = 0.1
    init_weights: str = "houlsby"
    scaling: float | str = "channel"
    mh_adapter: bool = False
    output_adapter: bool = True
    non_linearity: str = "gelu"
    reduction_factor: float | Mapping[str, float] = 96


class Bottleneck(AdapterModule[ResidualState]):
    """Down-projection, activation, up-projection and a residual, behind a sub-layer of the transformer.

        sequential: h <- h + s * W_up f(W_down h)        parallel: h <- h + s * W_up f(W_down x)

    W_down is [d, D], W_up [D, d] with d = max(1, D // reduction_factor); x is the residual input of the sub-layer, h
    its output. Which norms and residuals surround it is set by `BnConfig`.

    Papers: Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247 (`seq_bn`); He et al. 2022,
    arXiv:2110.04366 (parallel). Gate: Mao et al. 2022, arXiv:2110.07577.
    """

    paper = "arXiv:1902.00751"
    titles: ClassVar[Mapping[str, str]] = {
        "bottleneck": "Bottleneck adapter",
        "parallel": "Parallel adapter",
        "seq_bn": "Sequential bottleneck",
        "double_seq_bn": "Double sequential bottleneck",
        "par_bn": "Parallel bottleneck",
        "scaled_par_bn": "Scaled parallel bottleneck",
        "seq_bn_inv": "Bottleneck with invertible block",
        "double_seq_bn_inv": "Double bottleneck with invertible block",
    }
    config_class = BnConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {
        "seq_bn": SeqBnConfig(),
        "double_seq_bn": DoubleSeqBnConfig(),
        "par_bn": ParBnConfig(),
        "scaled_par_bn": ParBnConfig(scaling="learned"),
        "seq_bn_inv": SeqBnInvConfig(),
        "double_seq_bn_inv": DoubleSeqBnInvConfig(),
    }
    site_type = ResidualSite
    container = "adapters"
    fused_before = True
    site: ResidualSite

    def __init__(self, config: BnConfig, site: ResidualSite, name: str) -> None:
        if not (site.exact or config.original_ln_after):
            raise ConfigError(
                f"original_ln_after=False is not possible at {site.path}: what an adapter gives there passes a norm "
                "before it is added, or x is read behind one. Leave original_ln_after=True."
            )
        super().__init__(config, site, name)
        width = site.width
        hidden = max(1, int(width // reduction_factor(config, site.layer)))
        layers: list[nn.Module] = [self.projection(width, hidden), activation_module(config.non_linearity)]
        if config.ln_before:
            self.adapter_norm_before = nn.LayerNorm(width)
            layers.insert(0, self.adapter_norm_before)
        self.adapter_down = nn.Sequential(*layers)
        self.adapter_up = self.projection(hidden, width)
        self.adapter_norm_after = nn.LayerNorm(width) if config.ln_after else None
        self.gate = new_gate(width) if config.use_gating else None
        if config.scaling == "learned":
            self.scaling: Any = nn.Parameter(torch.ones(1))
        elif config.scaling == "channel":
            self.scaling = nn.Parameter(torch.ones(width))
        else:
            self.scaling = None if config.scaling == 1.0 else float(config.scaling)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self._views = Views(_multiplied)
        self.reset_parameters()

    @classmethod
    def handles(cls, config: Any) -> bool:
        return isinstance(config, BnConfig) and config.architecture is None and not config.phm_layer

    @classmethod
    def acts_at(cls, config: BnConfig, site: ResidualSite) -> bool:
        return site.location in config.flags and bool(getattr(config, site.location))

    @classmethod
    def check_new(cls, config: BnConfig, site: ResidualSite) -> None:
        factor = reduction_factor(config, site.layer)
        if site.width // factor < 1:
            raise ConfigError(
                f"reduction_factor {factor:g} leaves nothing of the width {site.width} of layer {site.layer}. Give at "
                f"most {site.width}."
            )

    def projection(self, in_features: int, out_features: int) -> nn.Module:
        """One of the two linear maps."""
        return nn.Linear(in_features, out_features)

    def reset_parameters(self) -> None:
        """Set initial weights by the scheme `config.init_weights`."""
        down, up = self.adapter_down[-2], self.adapter_up
        scheme = self.config.init_weights
        for linear in (down, up):
            if scheme == "bert":
                nn.init.normal_(linear.weight, std=0.02)  # type: ignore[arg-type]
            elif scheme == "houlsby":
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        if scheme == "mam_adapter":
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))  # type: ignore[arg-type]
            nn.init.zeros_(up.weight)  # type: ignore[arg-type]

    def prepare(self, state: ResidualState) -> ResidualState:
        config: BnConfig = self.config
        if config.is_parallel:
            return replace(state, query=state.x, res=state.h + state.x)
        h = res = state.h
        if config.original_ln_before:
            h = h if self.site.alone else h + state.x
            if config.residual_before_ln == "post_add":
                res = h
            if state.norm is not None:
                h = state.norm(h)
        if config.residual_before_ln is False:
            res = h
        return replace(state, h=h, res=res, query=state.h, aside=None)

    @property
    def preparation(self) -> tuple[Any, ...]:
        config: BnConfig = self.config
        return config.is_parallel, not config.is_parallel and (config.original_ln_before, config.residual_before_ln)

    def run(self, state: ResidualState) -> ResidualState:
        config: BnConfig = self.config
        z = state.x if config.is_parallel else state.h
        up = self(z)
        update = self.added(z, up)
        if config.is_parallel:
            return replace(state, h=self._normed(update), up=up, aside=state.h, last=self)
        assert state.res is not None
        if config.adapter_residual_before_ln:
            h = self._normed(update + state.res)
        else:
            h = self._normed(update) + state.res
        return replace(state, h=h, up=up, last=self)

    def _plain(self) -> tuple[Maps, nn.Module] | None:
        """The two maps as they are multiplied, and the activation; None where there is more to it."""
        modules = self._modules
        chain, up = modules["adapter_down"], modules["adapter_up"]
        if len(parts := chain.__dict__["_modules"]) != 2:
            return None
        down, activation = parts.values()
        first, last = weights_of(down), weights_of(up)  # type: ignore[arg-type]
        return None if first is None or last is None else (self._views(*first, *last), activation)

    def forward(self, z: Tensor) -> Tensor:
        """s * W_up f(W_down z), before dropout, gate and residual; with stochastic depth in training."""
        plain = self._plain() if CALL.now.unwatched and not torch.is_grad_enabled() else None
        if plain is not None and z.dtype is plain[0][0].dtype:
            up = through(as_one(z), *plain)
            up = up if up.shape == z.shape else up.view(z.shape)
        else:
            modules = self._modules
            up = call(modules["adapter_up"], call(modules["adapter_down"], z))  # type: ignore[arg-type]
        if self.training and self.config.stochastic_depth and not self.config.is_parallel:
            keep = 1.0 - self.config.stochastic_depth
            rows = torch.rand(up.shape[0], *[1] * (up.dim() - 1), device=up.device, dtype=up.dtype) < keep
            up = up * rows / keep
        up = up if self.scaling is None else up * self.scaling
        return up if up.dtype is z.dtype else up.to(z.dtype)

    def added(self, z: Tensor, up: Tensor) -> Tensor:
        """What is added to the branch: `up`, made from z by `forward`, behind dropout and gate."""
        if self.dropout is not None:
            up = self.dropout(up)
        if self.gate is not None:
            scores = gate(self.gate, z, self.config.gate_attended)
            self.record_gate(scores)
            up = up * scores
        return up

    def _normed(self, update: Tensor) -> Tensor:
        norm = self.adapter_norm_after
        return update if norm is None else call(norm, update).to(update.dtype)

    @property
    def norm_after(self) -> bool:
        return bool(self.config.original_ln_after)

    @property
    def plain(self) -> bool:
        """Whether the adapter is `h <- h' + contribution(z)` with nothing around it."""
        config: BnConfig = self.config
        return self.adapter_norm_after is None and config.residual_before_ln is True and config.original_ln_after

    def direct(self) -> Direct | None:
        config: BnConfig = self.config
        if not self.plain:
            return None
        if config.is_parallel:
            return "branch", self.beside
        if not config.original_ln_before:
            return "h", self.at_output
        return ("sum", self.at_sum) if self.site.norm is not None and self.site.norm_after else None

    def beside(self, h: Tensor, x: Tensor) -> Tensor:
        """New h from the old one and the residual input. Only for plain parallel adapters."""
        return h + self.added(x, self(x))

    def at_sum(self, total: Tensor) -> Tensor:
        """New input of the norm, from its old input h + x. Only for plain sequential adapters with original_ln_before.

        They compute norm(h + x + u(norm(h + x))), which needs neither h nor x alone.
        """
        assert self.site.norm is not None
        z = forward(self.site.norm, total)
        return total + self.added(z, self(z))

    def at_output(self, h: Tensor) -> Tensor:
        """New h from the old one. Only for plain sequential adapters without original_ln_before."""
        return h + self.added(h, self(h))

    @property
    def signature(self) -> tuple[Any, ...] | None:
        config: BnConfig = self.config
        bare = self.gate is None and self.adapter_norm_after is None and self.dropout is None
        if type(self) is not Bottleneck or not bare or config.ln_before or config.stochastic_depth:
            return None
        down, up = self.adapter_down[0], self.adapter_up
        if not (len(self.adapter_down) == 2 and type(down) is nn.Linear and type(up) is nn.Linear):
            return None
        scaling = self.scaling.shape if isinstance(self.scaling, Tensor) else None
        flags = (config.original_ln_before, config.original_ln_after, config.residual_before_ln, config.is_parallel)
        activation = type(self.adapter_down[1]), config.non_linearity.lower()
        return Bottleneck, down.weight.shape[1], up.weight.shape[0], up.weight.dtype, scaling, activation, flags

    @classmethod
    def stacked(cls, members: Sequence[Bottleneck], groups: RowGroups) -> Bottleneck:
        return StackedBottleneck(members, groups)


class StackedBottleneck(Bottleneck):
    """Bottlenecks with other weights for every row: W_down [N, d, D], W_up [N, D, d] of N adapters.

    Narrower ones end in zeros: whatever the activation makes of them, W_up multiplies it by 0.
    """

    members: tuple[Bottleneck, ...]

    def __init__(self, members: Sequence[Bottleneck], groups: RowGroups) -> None:
        first = members[0]
        AdapterModule.__init__(self, first.config, first.site, "+".join(m.name for m in members))
        self.gate = self.adapter_norm_after = self.dropout = None
        self.__dict__["members"], self.groups = tuple(members), groups
        self._maps, self.watching = Derived(self._stack, *members), Watching(*members)

    def _stack(self) -> Any:
        """The weights and biases of all members, and their scaling [N, 1, D or 1]; None if they are not alike.

        Of the scaling a number where all have the same, and None where it is 1.
        """
        first, spare = self.members[0], 0.0 if self.groups.spare else None
        if any(m.signature is None or m.signature != first.signature for m in self.members):
            return None
        tensors = [
            (d.weight, d.bias, u.weight, u.bias) for d, u in ((m.adapter_down[0], m.adapter_up) for m in self.members)
        ]
        maps = tuple(alike(same, spare) for same in zip(*tensors))
        if not isinstance(first.scaling, Tensor) and all(m.scaling == first.scaling for m in self.members):
            return maps, first.scaling
        like: Any = first.adapter_up.bias
        scalings = [1.0 if m.scaling is None else m.scaling for m in self.members]
        return maps, alike([s if isinstance(s, Tensor) else like.new_tensor([s]) for s in scalings], spare)[:, None]

    def forward(self, z: Tensor) -> Tensor:
        watching = not torch.compiler.is_compiling() and bool(self.watching)
        kept = None if watching else self._maps()
        if kept is None:
            return self.groups.each(z, self.members)
        maps, scaling = kept
        flat, index = self.groups.arrange(matched(z, maps[0]))
        chosen = _multiplied(*(select(tensor, index) for tensor in maps))
        up = through(flat, chosen, self.members[0].adapter_down[1])
        if scaling is not None:
            up = up * (select(scaling, index) if isinstance(scaling, Tensor) else scaling)
        return up.view(z.shape).to(z.dtype)

    @property
    def spares(self) -> bool:
        return self.direct() is not None


Maps = tuple[Tensor, ...]
"""W_down [N, D, d], b_down [N, 1, d], W_up [N, d, D] and b_up [N, 1, D] of N equally shaped bottlenecks."""


def _multiplied(w_down: Tensor, b_down: Tensor, w_up: Tensor, b_up: Tensor) -> Maps:
    """Weights [N, O, I] or [O, I] and biases [N, O] or [O] as they are in products from the right."""
    maps = w_down.mT, b_down.unsqueeze(-2), w_up.mT, b_up.unsqueeze(-2)
    return maps if w_down.dim() == 3 else tuple(tensor.unsqueeze(0) for tensor in maps)


def through(z: Tensor, maps: Maps, activation: nn.Module) -> Tensor:
    """W_up f(W_down z + b_down) + b_up for z [N, M, D]."""
    w_down, b_down, w_up, b_up = maps
    return torch.baddbmm(b_up, call(activation, torch.baddbmm(b_down, z, w_down)), w_up)


class NoFactorError(ConfigError, KeyError):
    """A mapping of reduction factors has neither the layer nor a default."""

    def __str__(self) -> str:
        return str(self.args[0])


def reduction_factor(config: BnConfig, layer: int) -> float:
    """The factor for one layer: a number, or the entry of a mapping from layer to number."""
    factor = config.reduction_factor
    if not isinstance(factor, Mapping):
        return factor
    for key in (str(layer), "default"):
        if key in factor:
            return float(factor[key])
    raise NoFactorError(
        f"reduction_factor has no entry for layer {layer}, only {dict(factor)!r}. Add that layer or a 'default', or "
        "name the layer in leave_out."
    )


def activation_module(name: str) -> nn.Module:
    """The activation function called `name`: `leakyrelu` or any name that transformers knows, in any case."""
    name = name.lower()
    return nn.LeakyReLU() if name == "leakyrelu" else ACT2FN[name]
