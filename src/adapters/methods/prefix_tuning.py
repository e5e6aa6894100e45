"""Prefix tuning: trained keys and values in front of those of the sequence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.methods.base import AdapterModule, Direct, MethodModule, gate, new_gate
from adapters.methods.bottleneck import activation_module
from adapters.methods.carriers import PrefixTuningLayer as PrefixTuningLayer
from adapters.methods.config import (
    AdapterConfig,
    Rule,
    activation,
    flag,
    integer,
    layer_numbers,
    place_patterns,
    probability,
    seed,
)
from adapters.methods.derived import Derived
from adapters.methods.parts import Watching, call
from adapters.methods.state import AttentionState, per_head
from adapters.sharding import own_heads
from adapters.sites.site import AttentionSite


@dataclass(eq=False)
class PrefixTuningConfig(AdapterConfig):
    """Prepends trained vectors to the keys and values of each attention.

        out = Attention(q, [P_k; k], [P_v; v]),    P = W_up act(W_down e + b_down) + b_up, or P itself if flat

    Paper: Li and Liang 2021, arXiv:2101.00190.

    Args:
        encoder_prefix: Adapt the attention of an encoder.
        cross_prefix: Adapt the cross-attention.
        leave_out: Layers without prefix, counted from 0.
        flat: Train the vectors themselves instead of computing them from an embedding.
        prefix_length: Vectors per layer, at least 1.
        bottleneck_size: Width of the network that computes the vectors, at least 1.
        non_linearity: Activation in this network, by its name in Transformers.
        dropout: Probability in [0, 1], applied to the vectors.
        use_gating: Multiply the vectors by a learned gate between 0 and 1 per sequence.
        shared_gating: Use one gate for keys and values.
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        places: Where to adapt, as roles, module paths or patterns (`methods/places.py`). None leaves it to the flags.
        gate_attended: Leave padding out of the gate's mean over positions. Files without this field were trained
            with padding in the mean.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "prefix_tuning"
    encoder_prefix: bool = True
    cross_prefix: bool = True
    leave_out: list[int] = field(default_factory=list)
    flat: bool = False
    prefix_length: int = 30
    bottleneck_size: int = 512
    non_linearity: str = "tanh"
    dropout: float = 0.0
    use_gating: bool = False
    shared_gating: bool = True
    init_weights_seed: int | None = None
    places: str | list[str] | None = None
    gate_attended: bool = True

    flags: ClassVar[tuple[str, ...]] = ("encoder_prefix", "cross_prefix")
    rules: ClassVar[Mapping[str, Rule]] = {
        "encoder_prefix": flag,
        "cross_prefix": flag,
        "leave_out": layer_numbers,
        "flat": flag,
        "prefix_length": integer(1),
        "bottleneck_size": integer(1),
        "non_linearity": activation,
        "dropout": probability,
        "use_gating": flag,
        "shared_gating": flag,
        "init_weights_seed": seed,
        "places": place_patterns,
        "gate_attended": flag,
    }

    def as_stored(self, names: Collection[str]) -> PrefixTuningConfig:
        own = [name for name in names if ".prefix_tunings." in f".{name}"]
        mixed = any(name.endswith(".wte.weight") for name in own)  # in a union of both kinds, whose configs tell
        is_flat = not mixed and any(name.endswith(".control_trans") for name in own)
        return self.replace(flat=True) if is_flat and not self.flat else self


class PrefixEmbedding(MethodModule):
    """Prefix keys and values of all layers of one kind of attention.

        reparametrised: [K_j; V_j] = W_2 f(W_1 E)        flat: the numbers themselves

    E is [P, D]; W_2 has 2 * L blocks of H * head_dim rows: block 2j makes the keys of layer j, 2j + 1 its values.
    Layers may differ in their heads, and keys in width from values.
    """

    def __init__(self, config: PrefixTuningConfig, sites: list[AttentionSite]) -> None:
        super().__init__()
        self.config = config
        self.layers = [site.layer for site in sites]
        self.heads = [(site.num_heads, site.head_dim, site.value_dim) for site in sites]
        ends = list(accumulate(heads * (key + value) for heads, key, value in self.heads))
        self.rows = [slice(start, end) for start, end in zip([0, *ends], ends)]
        self._watching = Watching(self)
        width = ends[-1]
        if config.flat:
            self.control_trans: nn.Module | nn.Parameter = nn.Parameter(torch.randn(config.prefix_length * width))
            return
        self.wte = nn.Embedding(config.prefix_length, sites[0].hidden_size)
        self.control_trans = nn.Sequential(
            nn.Linear(sites[0].hidden_size, config.bottleneck_size),
            activation_module(config.non_linearity),
            nn.Linear(config.bottleneck_size, width),
        )

    def key_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Prefix keys and values of one layer, each [1, H, P, head_dim]."""
        slot = self.layers.index(layer)
        if isinstance(self.control_trans, nn.Module):
            both = self._made(slot)
        else:
            both = self.tensor("control_trans").view(self.config.prefix_length, -1)[:, self.rows[slot]]
        if self.training and self.config.dropout:
            both = F.dropout(both, self.config.dropout)
        heads, key, value = self.heads[slot]
        keys, values = both.split((heads * key, heads * value), 1)
        return _by_head(keys, heads), _by_head(values, heads)

    def _made(self, slot: int) -> Tensor:
        """The numbers [P, H * (key + value width)] of one layer; only its rows of W_2 are used if nobody watches."""
        network: Any = self.control_trans
        rows = self.rows[slot]
        if torch.compiler.is_compiling() or self.watched() or type(network[-1]) is not nn.Linear:
            numbers = torch.arange(self.config.prefix_length, device=self.wte.weight.device)
            return network(self.wte(numbers))[:, rows]  # type: ignore[no-any-return]
        *first, last = network
        hidden = reduce(lambda x, part: call(part, x), first, self.wte.weight)
        return F.linear(hidden, last.weight[rows], last.bias[rows])

    def watched(self) -> bool:
        """Whether somebody wants to see every call of a part of it."""
        return bool(self._watching)

    @torch.no_grad()
    def eject(self) -> None:
        """Replace the reparametrisation by the numbers it makes."""
        if isinstance(self.control_trans, nn.Parameter):
            return
        flat = self.control_trans(self.wte.weight).reshape(-1)
        del self.wte, self.control_trans
        self.control_trans = nn.Parameter(flat)
        self.config = self.config.replace(flat=True)


def _by_head(numbers: Tensor, heads: int) -> Tensor:
    """[P, H * head_dim] as [1, H, P, head_dim]."""
    return numbers.view(len(numbers), heads, -1).transpose(0, 1)[None]


class PrefixTuning(AdapterModule[AttentionState]):
    """Trained keys and values, prepended to those of an attention.

        attention(Q, [K_prefix; K], [V_prefix; V])       gated: K_prefix * g(h), V_prefix * g(h)

    Position encodings and caches never see the prefix. In `Stack(a, b)` the keys are [b, a, K].

    Paper: Li and Liang 2021, arXiv:2101.00190. Gate: Mao et al. 2022, arXiv:2110.07577.
    """

    paper = "arXiv:2101.00190"
    titles: ClassVar[Mapping[str, str]] = {"prefix_tuning": "Prefix tuning", "prefix_tuning_flat": "Flat prefix tuning"}
    config_class = PrefixTuningConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {
        "prefix_tuning": PrefixTuningConfig(),
        "prefix_tuning_flat": PrefixTuningConfig(flat=True),
    }
    site_type = AttentionSite
    unmixable = "puts keys and values in front of others, and has no output there that could be mixed"
    container = "prefix_tuning.prefix_gates"
    shared_container = "prefix_tuning.prefix_tunings"
    splits = averages = False
    shared_location = ""
    site: AttentionSite

    def __init__(self, config: PrefixTuningConfig, site: AttentionSite, name: str) -> None:
        super().__init__(config, site, name)
        if config.use_gating:
            linear = new_gate(site.hidden_size, 1 if config.shared_gating else 2)
            self.weight, self.bias = linear.weight, linear.bias

    @classmethod
    def acts_at(cls, config: PrefixTuningConfig, site: AttentionSite) -> bool:
        if site.location.startswith("encoder"):
            return config.encoder_prefix
        return config.cross_prefix if site.location.startswith("cross") else True

    @classmethod
    def shared(cls, config: PrefixTuningConfig, sites: list[AttentionSite]) -> nn.Module:
        groups: dict[str, list[AttentionSite]] = {}
        for site in sites:
            groups.setdefault(site.pool, []).append(site)
        return nn.ModuleDict({pool: PrefixEmbedding(config, group) for pool, group in groups.items()})

    @classmethod
    def kept_slots(cls, config: PrefixTuningConfig, inner: str, tensor: Tensor, count: int, kept: list[int]) -> Tensor:
        if inner == "control_trans" and tensor.numel() % (config.prefix_length * count) == 0:
            return tensor.view(config.prefix_length, count, -1)[:, kept].reshape(-1)
        if inner.startswith("control_trans.2.") and tensor.dim() and tensor.shape[0] % count == 0:
            return tensor.view(count, -1, *tensor.shape[1:])[kept].flatten(0, 1)
        return tensor

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        self._key_values = Derived(self._compute, *self.sources())

    @property
    def embedding(self) -> PrefixEmbedding:
        """What makes the prefixes of all layers of this kind of attention."""
        assert self.common is not None
        return self.common._modules[self.site.pool]  # type: ignore[return-value]

    def direct(self) -> Direct | None:
        return None if self.config.use_gating else ("prefix", self)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(["hidden", "mask"]) if self.config.use_gating else frozenset()

    def eject(self) -> bool:
        self.embedding.eject()
        return True

    @classmethod
    def ejected(cls, config: PrefixTuningConfig) -> PrefixTuningConfig:
        return config.replace(flat=True)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Prefix keys and values before gating, each [1, H, P, head_dim]."""
        embedding = self.embedding
        if self.config.dropout and embedding.training:
            return self._compute()
        if not torch.compiler.is_compiling() and embedding.watched():
            return self._compute()
        return self._key_values()  # type: ignore[no-any-return]

    def key_values(self) -> tuple[Tensor, Tensor]:
        """Prefix keys and values, by the older name."""
        return self()  # type: ignore[no-any-return]

    def _compute(self) -> tuple[Tensor, Tensor]:
        return self.embedding.key_values(self.site.layer)

    def run(self, state: AttentionState) -> AttentionState:
        keys, values = self()
        keys, values = keys.to(state.key.dtype), values.to(state.value.dtype)
        if self.config.use_gating:
            assert state.hidden is not None
            weights = self.tensor("weight"), self.tensor("bias")
            scores = gate(weights, state.hidden, self.config.gate_attended)
            self.record_gate(scores)
            of_keys, of_values = (scores, scores) if scores.shape[-1] == 1 else scores.split(1, -1)
            keys, values = keys * of_keys[..., None], values * of_values[..., None]
        keys, values = (per_head(own_heads(tensor, self.site.module), state.key.shape[1]) for tensor in (keys, values))
        return state.prepend(keys, values)
