"""ReFT: edits of the hidden states at a few positions, inside a small subspace."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.call import CALL
from adapters.methods.base import AdapterModule, Direct, MethodModule
from adapters.methods.bottleneck import activation_module
from adapters.methods.carriers import ReftLayer as ReftLayer
from adapters.methods.config import (
    AdapterConfig,
    Rule,
    activation,
    dtype_name,
    flag,
    integer,
    layer_numbers,
    nothing,
    one_of,
    place_patterns,
    probability,
    seed,
)
from adapters.methods.derived import Derived
from adapters.methods.parts import Watching, call, matched
from adapters.methods.state import HiddenState
from adapters.sites.site import LayerSite


@dataclass(eq=False)
class ReftConfig(AdapterConfig):
    """Edits the output of layers at the first and last positions of the sequence.

        h' = h + R^T (act(W h + b) - R h)

    Paper: Wu et al. 2024, arXiv:2404.03592.

    Args:
        layers: Layers that are edited, counted from 0, or "all".
        prefix_positions: Edited positions at the start of the sequence, a count, at least 0.
        suffix_positions: Edited positions at the end of the sequence, a count, at least 0.
        r: Dimensions of the subspace, at least 1.
        orthogonality: Keep the rows of R orthonormal.
        tied_weights: Use the same edit for the start and the end.
        dropout: Probability in [0, 1], applied to the edited states.
        non_linearity: Activation, by its name in Transformers; None for none.
        dtype: Name of the adapter's torch dtype, such as "bfloat16"; None for the default.
        output_reft: Adapt at all; tells unions that this method acts on layer outputs.
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        subtract_projection: Subtract R h as in the formula. Written to files only if False.
        places: Where to adapt, as roles, module paths or patterns (`methods/places.py`). None leaves it to `layers`.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    layers: str | list[int]
    prefix_positions: int
    suffix_positions: int
    r: int
    orthogonality: bool
    tied_weights: bool = False
    dropout: float = 0.05
    non_linearity: str | None = None
    dtype: str | None = None
    architecture: str | None = "reft"
    output_reft: bool = True
    init_weights_seed: int | None = None
    subtract_projection: bool = True
    places: str | list[str] | None = None

    rules: ClassVar[Mapping[str, Rule]] = {
        "layers": one_of("all") | layer_numbers,
        "prefix_positions": integer(0),
        "suffix_positions": integer(0),
        "r": integer(1),
        "orthogonality": flag,
        "tied_weights": flag,
        "dropout": probability,
        "non_linearity": nothing | activation,
        "dtype": dtype_name,
        "output_reft": flag,
        "init_weights_seed": seed,
        "subtract_projection": flag,
        "places": place_patterns,
    }

    def _written(self) -> list[str]:
        return [name for name in super()._written() if name != "subtract_projection" or not self.subtract_projection]

    def without_layers(self, layers: Collection[int], all_layers: Sequence[int]) -> ReftConfig:
        own = all_layers if self.layers == "all" else self.layers
        return self.replace(layers=[layer for layer in own if layer not in layers])


@dataclass(eq=False)
class LoReftConfig(ReftConfig):
    """ReFT in a subspace with orthonormal basis.

        h' = h + R^T (W h + b - R h),   R R^T = I

    Paper: Wu et al. 2024, arXiv:2404.03592, equation 2. Fields as in `ReftConfig`.
    """

    layers: str | list[int] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = True


@dataclass(eq=False)
class NoReftConfig(ReftConfig):
    """ReFT in a subspace whose basis need not be orthonormal.

        h' = h + R^T (W h + b - R h)

    Paper: Wu et al. 2024, arXiv:2404.03592. Fields as in `ReftConfig`.
    """

    layers: str | list[int] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = False


@dataclass(eq=False)
class DiReftConfig(ReftConfig):
    """ReFT that only adds: LoRA on hidden states.

        h' = h + R^T (W h + b)

    Paper: Wu et al. 2024, arXiv:2404.03592, equation 3. Fields as in `ReftConfig`.
    """

    layers: str | list[int] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = False
    subtract_projection: bool = False


Windows = tuple[Tensor | None, Tensor | None]


class OrthogonalRows(nn.Module):
    """A matrix R [r, D] with orthonormal rows, parametrised by torch's `orthogonal`.

    Keeps the parametrisation as an ordinary child: unlike a parametrised module it can be pickled.
    """

    def __init__(self, rank: int, width: int) -> None:
        super().__init__()
        linear = nn.utils.parametrizations.orthogonal(nn.Linear(width, rank, bias=False))
        self.parametrizations = linear.parametrizations
        chain: Any = self.parametrizations["weight"]  # type: ignore[index]
        if chain.original.is_meta:  # without values torch could not decompose it to set this
            chain[0].base = torch.empty(width, width).t()  # the strides that it has there

    @property
    def weight(self) -> Tensor:
        """R, [r, D]."""
        return self._compute()

    def forward(self, s: Tensor) -> Tensor:
        """R s."""
        return F.linear(s, self.weight)

    def _compute(self) -> Tensor:
        """R, in single precision at least: the decomposition it needs has no other kernels."""
        chain: Any = self.parametrizations["weight"]  # type: ignore[index]
        original: Tensor = chain.original
        x = original if original.dtype == torch.float64 else original.float()
        # torch takes the diagonal for signs and cuts it to whole numbers: weight decay would make it, and R, zero
        signs = torch.where(x.diagonal() < 0, -1.0, 1.0).to(x.dtype)
        buffers = {name: buffer.to(x.dtype) for name, buffer in chain[0].named_buffers()}
        rows: Tensor = torch.func.functional_call(chain[0], buffers, (x.diagonal_scatter(signs),))
        return rows.to(original.dtype)


class ReFTUnit(MethodModule):
    """The edit of one state s [..., D]: s + (f(W s + b) - R s) R, without R s where it is not subtracted."""

    def __init__(self, config: ReftConfig, width: int) -> None:
        super().__init__()
        self.learned_source = nn.Linear(width, config.r)
        self.projection = (
            OrthogonalRows(config.r, width) if config.orthogonality else nn.Linear(width, config.r, bias=False)
        )
        self.activation = activation_module(config.non_linearity) if config.non_linearity else None
        self.subtract, self.dropout = config.subtract_projection, config.dropout
        self._folded, self._watching = Derived(self._fold, self), Watching(self)

    def _fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """R, W and b; W - R where no activation stands between the two maps of s."""
        rows, source = self.projection.weight, self.learned_source
        fold = self.subtract and self.activation is None
        return rows, source.weight - rows if fold else source.weight, source.bias

    def delta(self, s: Tensor) -> Tensor:
        """(f(W s + b) - R s) R."""
        if torch.compiler.is_compiling() or self._watching:
            target = call(self.learned_source, s)
            target = target if self.activation is None else call(self.activation, target)
            rows = self.projection.weight
            return ((target - call(self.projection, matched(s, rows)) if self.subtract else target) @ rows).to(s.dtype)
        folded: tuple[Tensor, Tensor, Tensor] = self._folded()
        rows, weight, bias = folded
        given = matched(s, weight)
        target = F.linear(given, weight, bias)
        if self.activation is not None:
            target = call(self.activation, target)
            target = target - F.linear(given, rows) if self.subtract else target
        return (target @ rows).to(s.dtype)

    def forward(self, s: Tensor) -> Tensor:
        edited = s + self.delta(s)
        return F.dropout(edited, self.dropout) if self.training and self.dropout else edited


class ReFT(AdapterModule[HiddenState]):
    """Edits of the hidden states at the first and last positions, inside a low-rank subspace.

        s <- s + (W s + b - R s) R                       DiReFT: s <- s + (W s + b) R

    R is [r, D] (orthonormal rows in LoReFT), W [r, D]. Positions are counted over attended tokens; those fed one by
    one from a cache keep their absolute position, and while generating the last positions are those of the prompt.

    Paper: Wu et al. 2024, arXiv:2404.03592.
    """

    paper = "arXiv:2404.03592"
    titles: ClassVar[Mapping[str, str]] = {"reft": "ReFT", "loreft": "LoReFT", "noreft": "NoReFT", "direft": "DiReFT"}
    config_class = ReftConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {
        "loreft": LoReftConfig(),
        "noreft": NoReftConfig(),
        "direft": DiReftConfig(),
    }
    site_type = LayerSite
    container = "reft_layer.refts"
    chained_before = False
    site: LayerSite

    def __init__(self, config: ReftConfig, site: LayerSite, name: str) -> None:
        super().__init__(config, site, name)
        self.units = nn.ModuleList(ReFTUnit(config, site.width) for _ in range(1 if config.tied_weights else 2))
        if not config.tied_weights:
            for unit, positions in zip(self.units, (config.prefix_positions, config.suffix_positions)):
                if not positions:
                    _keep_only(unit)

    @classmethod
    def acts_at(cls, config: ReftConfig, site: LayerSite) -> bool:
        return site.role == "layer" and (config.layers == "all" or site.layer in config.layers)

    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The edits of the first and of the last positions."""
        units: Any = list(self.units._modules.values())
        return units[0], units[-1]

    def run(self, state: HiddenState) -> HiddenState:
        h = state.h if torch.is_grad_enabled() else state.h.clone()
        return replace(state, h=self(h, state.first, state.end, state.offset, state.length))

    def direct(self) -> Direct | None:
        return "output", self

    def forward(self, h: Tensor, first: Tensor | None, end: Tensor | None, offset: int, length: int) -> Tensor:
        """Edit h [B, S, D], whose first position is number `offset`; see `HiddenState`. May reuse h."""
        prefix, suffix = self.config.prefix_positions, self.config.suffix_positions
        if first is None and isinstance(length, torch.SymInt):  # cutting would hold for some lengths only
            first = torch.zeros(1, 1, dtype=torch.long, device=h.device)
            end = first + length
        if first is not None and end is not None:
            return self._edit_masked(h, first, end, offset, length)
        start = length - min(suffix, length)
        early, late = self.ends()
        ranges = ((early, 0, prefix), (late, start, length))
        edits = []
        for unit, low, high in ranges:
            low, high = max(low - offset, 0), min(high - offset, h.shape[1])
            if low < high:
                edits.append((low, high, call(unit, h[:, low:high])))
        for low, high, edited in edits:
            if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
                h[:, low:high] = edited
                continue
            h = torch.cat([part for part in (h[:, :low], edited, h[:, high:]) if part.shape[1]], 1)
        return h

    def _edit_masked(self, h: Tensor, first: Tensor, end: Tensor, offset: int, length: int) -> Tensor:
        prefix, suffix = self._windows(first, end, offset, h.shape[1], length)
        early, late = self.ends()
        new = h
        if prefix is not None:
            new = torch.where(prefix, call(early, h), new)
        if suffix is not None:
            new = torch.where(suffix, call(late, h), new)
        return new

    def _windows(self, first: Tensor, end: Tensor, offset: int, span: int, length: int) -> Windows:
        """Which positions belong to the first and which to the last ones, [B, S, 1]; None where none is edited."""
        prefix, suffix = self.config.prefix_positions, self.config.suffix_positions
        now, numbers = CALL.now, (offset, span, length, prefix, suffix)
        kept = None if torch.compiler.is_compiling() else now.windows  # sizes may be symbols there
        if kept is not None and kept[0] is first and kept[1] is end and kept[2] == numbers:
            return kept[3]  # type: ignore[no-any-return]
        position = torch.arange(offset, offset + span, device=first.device)[None]
        attended = (position < end) | (position >= length)  # generated positions follow all given ones
        early = (position >= first) & (position < first + prefix) & attended
        late = (position >= torch.maximum(end - suffix, first)) & (position < end)
        windows = early[..., None] if prefix else None, late[..., None] if suffix else None
        if not torch.compiler.is_compiling():
            now.windows = first, end, numbers, windows
        return windows


def _keep_only(unit: nn.Module) -> None:
    """Make buffers of the parameters of an edit that has no positions: it is written to files, and nothing else."""
    for module in unit.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
