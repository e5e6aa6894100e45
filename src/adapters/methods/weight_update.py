"""Methods that add a matrix to the weight of a linear map. Give its factors; everything else follows.

Forward, gate, dropout, fused projections, rows of different adapters, merging: written once, for LoRA as for any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import frexp
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.call import CALL
from adapters.methods.base import AdapterModule, AffineAdapter, Effect, LinearAdapter, gate, new_gate
from adapters.methods.config import (
    AdapterConfig,
    Rule,
    attention_letters,
    dtype_name,
    flag,
    layer_numbers,
    place_patterns,
    probability,
    seed,
)
from adapters.methods.derived import Derived, Views
from adapters.methods.parts import Watching, as_one, matched, watched
from adapters.methods.places import Chosen, count, output_columns, roles_of
from adapters.methods.stacking import RowGroups, alike, select
from adapters.methods.state import LinearState
from adapters.sites.site import LinearSite, TableSite

Factors = tuple[Tensor, ...]
Maps = list[tuple[Chosen, Factors]]


@dataclass(eq=False)
class WeightUpdateConfig(AdapterConfig):
    """What configs of such methods have in common.

    Args:
        selfattn_lora: Adapt the projections of the attention that `attn_matrices` names.
        intermediate_lora: Adapt the first linear layer of the feed-forward block.
        output_lora: Adapt the second linear layer of the feed-forward block.
        leave_out: Layers without adapter, counted from 0.
        attn_matrices: Which of query "q", key "k" and value "v" are adapted.
        dropout: Probability in [0, 1], applied to x before the update.
        use_gating: Multiply the update by a learned gate between 0 and 1 per sequence, instead of its scaling.
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        dtype: Name of the adapter's torch dtype, such as "bfloat16"; None for the default.
        places: Where to adapt, as roles, module paths or patterns (`methods/places.py`). None leaves it to the flags.
        gate_attended: Leave padding out of the gate's mean over positions.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: list[int] = field(default_factory=list)
    attn_matrices: list[str] = field(default_factory=lambda: ["q", "v"])
    dropout: float = 0.0
    use_gating: bool = False
    init_weights_seed: int | None = None
    dtype: str | None = None
    places: str | list[str] | None = None
    gate_attended: bool = True

    flags: ClassVar[tuple[str, ...]] = ("selfattn_lora", "intermediate_lora", "output_lora")
    rules: ClassVar[Mapping[str, Rule]] = {
        "selfattn_lora": flag,
        "intermediate_lora": flag,
        "output_lora": flag,
        "leave_out": layer_numbers,
        "attn_matrices": attention_letters,
        "dropout": probability,
        "use_gating": flag,
        "gate_attended": flag,
        "init_weights_seed": seed,
        "dtype": dtype_name,
        "places": place_patterns,
    }

    def meets(self, other: AdapterConfig) -> bool:
        """Whether two configs adapt the same linear map."""
        return meet(self, other)


def meet(one: AdapterConfig, other: AdapterConfig) -> bool:
    """Whether the flags of two configs may choose one linear map."""
    both = [flag for flag in one.flags if one[flag] and other[flag]]
    return both not in ([], ["selfattn_lora"]) or bool(both and {*one["attn_matrices"]} & {*other["attn_matrices"]})


class WeightUpdate(LinearAdapter):
    """A method that adds a matrix to the weight.

        y = W x + b + s * D x                           gated: y = W x + b + g(x) * D x

    D [O, I] is the product of `factors`. At a fused projection (GPT-2's `c_attn`) every adapted part has its own D, and
    parts that are not adapted stay as they are. In a `Stack` the next adapter reads the update of the last one.
    At a table of embeddings D x is D[:, x], times what the table multiplies by; dropout does nothing there.

    Attributes:
        columns: The output columns of every adapted part of the projection.
        width: Their number.
        scaling: s.
    """

    directed = True
    per_expert = True
    looks_up = True
    scaling: float = 1.0

    def __init__(self, config: Any, site: LinearSite, name: str, columns: tuple[Chosen, ...]) -> None:
        super().__init__(config, site, name)
        self.columns, self.widths = columns, [count(chosen) for chosen in columns]
        self.width = sum(self.widths)
        self.in_features, self.out_features = site.in_features, site.out_features
        self.whole = columns == (slice(0, site.out_features),)
        self.adjacent = all(isinstance(chosen, slice) for chosen in columns)
        self.gate = new_gate(site.in_features, len(columns)) if config.use_gating else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self._views = Views(self._multiplied)

    def factors(self) -> Factors:
        """The matrices whose product is D, the first one to be applied first: (D,), or (A, B) for D = B A.

        Each has the blocks of all adapted parts of the projection below each other.
        """
        raise NotImplementedError

    def parts(self, factors: Factors) -> Iterator[tuple[Chosen, Factors]]:
        """(columns, factors) of every adapted part of the projection."""
        if len(self.columns) == 1:
            yield self.columns[0], factors
            return
        *first, last = factors
        own = [*(factor.chunk(len(self.columns), -2) for factor in first), last.split(self.widths, -2)]
        yield from zip(self.columns, zip(*own))

    def wide(self) -> Factors:
        """`factors` as those of one map for all outputs: each part's columns of the last one, zeros elsewhere."""
        factors = self.factors()
        if self.whole:
            return factors
        *first, last = factors
        lead, count = last.shape[:-2], len(self.columns) if first else 1
        wide = last.new_zeros(*lead, self.out_features, last.shape[-1] * count)
        for i, (columns, own) in enumerate(self.parts(factors)):
            start = i * last.shape[-1] if first else 0
            wide[..., columns, start : start + last.shape[-1]] = own[-1]
        return (*first, wide)

    def effect(self) -> Effect:
        first, *rest = self.wide()
        return Effect((first * self.scaling if self.scaling != 1 else first, *rest))

    def bare(self) -> bool:
        """Whether the update is linear in x: no gate, no dropout, no trained bias."""
        return self.gate is None and self.dropout is None

    def maps(self) -> Maps:
        """(columns, factors as they are multiplied from the right, [1, I, r] and [1, r, O]) of every adapted part."""
        factors = self.factors()
        return self._views(*factors) if CALL.now.unwatched else self._multiplied(*factors)

    def _multiplied(self, *factors: Tensor) -> Maps:
        return [(columns, tuple(f.mT.unsqueeze(0) for f in own)) for columns, own in self.parts(factors)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        maps = self.maps()
        kept = maps[0][1][0]
        if not (self.bare() and self.adjacent and x.dtype is y.dtype is kept.dtype and self.may_write(y)):
            return (y + self.update(x, x)).to(y.dtype)
        x, out = as_one(x), as_one(y)
        for columns, own in maps:
            add_product(out if self.whole else out[..., columns], x, own, self.scaling)
        return y

    def update(self, x: Tensor, gate_input: Tensor) -> Tensor:
        """s * D x, or gated: g * D x; [B, S, O]."""
        factors = self.factors()
        if isinstance(self.site, TableSite):
            first, *rest = factors
            scaled: Tensor = reduce(F.linear, rest, F.embedding(x[..., 0], first.t())) * self.scaling * self.site.factor
            return scaled
        x = matched(x if self.dropout is None else self.dropout(x), factors[0])
        if self.gate is None:
            updates = [(columns, _apply(x, own) * self.scaling) for columns, own in self.parts(factors)]
        else:
            scores = gate(self.gate, gate_input, self.config.gate_attended)
            self.record_gate(scores)
            opened = [scores] if len(self.columns) == 1 else scores.split(1, -1)
            updates = [(columns, _apply(x, own, by)) for by, (columns, own) in zip(opened, self.parts(factors))]
        if self.whole:
            return updates[0][1]
        delta = updates[0][1].new_zeros(*x.shape[:-1], self.out_features)
        for columns, update in updates:
            delta[..., columns] = update
        return delta

    def cannot_follow(self, before: AdapterModule[Any]) -> str | None:
        if not isinstance(before, WeightUpdate) or self.in_features == self.out_features:
            return None
        return (
            f"the update of {before.name!r} has {self.out_features} columns, but {self.name!r} reads "
            f"{self.in_features} at {self.site.path}. Low-rank adapters of a stack are chained, which only square "
            "projections allow. Use Average, Parallel or BatchSplit instead."
        )

    def run(self, state: LinearState) -> LinearState:
        x = state.x if state.delta is None else state.delta
        return replace(state, delta=self.delta(x, state), magnitude=None)

    def delta(self, x: Tensor, state: LinearState) -> Tensor:
        """The update of x; through a call of this module where somebody watches it."""
        if watched(self) and not torch.compiler.is_compiling():
            return self(x, torch.zeros_like(state.y))  # type: ignore[no-any-return]
        return self.update(x, state.x)

    def delta_weight(self) -> Tensor:
        """D, without scaling, [O, I]; zero in the rows of parts that are not adapted."""
        factors = self.factors()
        if self.whole:
            return _product(factors)
        weight = factors[0].new_zeros(self.out_features, self.in_features)
        for columns, own in self.parts(factors):
            weight[columns, :] = _product(own)
        return weight

    @torch.no_grad()
    def direction(self) -> Tensor:
        """The first right singular vector of D."""
        factors = self.factors()
        first, *rest = (factor.double() for factor in factors)
        if self.whole and rest:  # D = M Q^T for orthonormal Q [I, r]: so only M, which is narrow, is decomposed
            inputs, outer = torch.linalg.qr(first.t())
            vector = inputs @ _first_right_vector(_product((outer.t(), *rest)))
        else:
            vector = _first_right_vector(self.delta_weight().double())
        direction: Tensor = vector.to(factors[0].dtype)
        return direction

    @property
    def delta_w(self) -> Tensor:
        """`delta_weight()`, by its older name."""
        return self.delta_weight()

    def changed_by_merging(self, before: AffineAdapter) -> str | None:
        if before.tap == "input":
            return f"{self.name!r} would read what {before.name!r} reads, no more what it makes of it"
        if isinstance(before, WeightUpdate):
            return f"{self.name!r} acts on the update of {before.name!r}, which would be part of the weights"
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.gate is not None:
            return super().merged(weight, bias)
        return weight + self.scaling * self.delta_weight(), bias

    @property
    def signature(self) -> tuple[Any, ...] | None:
        if not self.bare() or isinstance(self.site, TableSite):
            return None
        with torch.no_grad():
            factors = self.factors()
        dtypes = tuple(factor.dtype for factor in factors)
        return WeightUpdate, dtypes, factors[0].shape[-1], factors[-1].shape[-2], str(self.columns)

    @classmethod
    def stacked(cls, members: Sequence[WeightUpdate], groups: RowGroups) -> WeightUpdate:
        return StackedUpdates(members, groups)


class StackedUpdates(WeightUpdate):
    """Updates with other matrices for every row: each factor [N, ...] of N adapters. Smaller ranks end in zeros."""

    members: tuple[WeightUpdate, ...]

    def __init__(self, members: Sequence[WeightUpdate], groups: RowGroups) -> None:
        first = members[0]
        LinearAdapter.__init__(self, first.config, first.site, "+".join(m.name for m in members))
        self.columns, self.widths, self.whole = first.columns, first.widths, first.whole
        self.adjacent = first.adjacent
        self.in_features, self.out_features = first.in_features, first.out_features
        self.gate = self.dropout = None
        self.__dict__["members"], self.groups = tuple(members), groups
        self._stacked = Derived(self._stack, *(source for m in members for source in m.sources()))
        self.watching = Watching(*members)

    def _stack(self) -> tuple[float, Maps] | None:
        """s where all have the same, and (columns, factors [N, r, I] and [N, O, r]) of every adapted part.

        None where the members are no longer alike.
        """
        if any(m.signature != self.members[0].signature for m in self.members[1:]):
            return None
        own = [list(member.parts(member.factors())) for member in self.members]
        scaling = self.members[0].scaling
        if any(m.scaling != scaling for m in self.members):
            scaling = 1.0
            own = [
                [(columns, (*first, last * member.scaling)) for columns, (*first, last) in parts]
                for member, parts in zip(self.members, own)
            ]
        spare = 0.0 if self.groups.spare else None
        return scaling, [
            (columns, tuple(alike(same, spare) for same in zip(*(parts[i][1] for parts in own))))
            for i, columns in enumerate(self.columns)
        ]

    def update(self, x: Tensor, gate_input: Tensor) -> Tensor:
        scaling, maps = self._stacked()
        x = matched(x, maps[0][1][0])
        out = x.new_zeros(*x.shape[:-1], self.out_features)
        return self._add_to(out, x, scaling, maps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        stacked: tuple[float, Maps] | None = None if self.alone() else self._stacked()
        if stacked is None:
            return self.run(LinearState(x, y)).result()
        scaling, maps = stacked
        if not (self.adjacent and x.dtype is y.dtype is maps[0][1][0].dtype and self.may_write(y)):
            return (y + self.update(x, x)).to(y.dtype)
        return self._add_to(y, x, scaling, maps)

    def _add_to(self, y: Tensor, x: Tensor, scaling: float, maps: Maps) -> Tensor:
        flat, index = self.groups.arrange(x)
        out = y.view(flat.shape[0], flat.shape[1], -1)
        for columns, own in maps:
            chosen = tuple(select(factor, index).mT for factor in own)
            if self.whole or isinstance(columns, slice):
                add_product(out if self.whole else out[..., columns], flat, chosen, scaling)
            else:
                out[..., columns] += reduce(torch.bmm, chosen, flat) * scaling
        return y

    def run(self, state: LinearState) -> LinearState:
        if not self.alone() and self._stacked() is not None:
            return super().run(state)
        return self.groups.apart(state, self.members)

    @property
    def spares(self) -> bool:
        return True

    def alone(self) -> bool:
        """Whether every member has to run by itself, because somebody watches one."""
        return not torch.compiler.is_compiling() and bool(self.watching)


def wants_site(config: Any, site: LinearSite) -> bool:
    """Whether the flags of `config` select `site`."""
    if site.location not in config.flags or not getattr(config, site.location):
        return False
    if site.location != "selfattn_lora":
        return True
    return any(role.rpartition(".")[2] in config.attn_matrices for role in roles_of(site))


def _first_right_vector(matrix: Tensor) -> Tensor:
    right: Tensor = torch.linalg.svd(matrix, full_matrices=False)[2]
    return right[0]


def _apply(x: Tensor, factors: Factors, by: Tensor | None = None) -> Tensor:
    """D x, times `by` [B, 1, 1]: where it meets the fewest numbers, in front of the last factor."""
    *first, last = factors
    x = reduce(F.linear, first, x)
    return F.linear(x if by is None else x * by, last)


def _product(factors: Factors) -> Tensor:
    return reduce(lambda product, factor: factor @ product, factors)


def add_product(out: Tensor, x: Tensor, factors: Factors, scaling: float = 1.0) -> None:
    """In place, out [G, M, O] += scaling * x [G, M, I] times all factors [G, I, r], ..., [G, r, O]."""
    *first, last = factors
    for factor in first:
        x = torch.bmm(x, factor)
    if scaling == 1:
        out.baddbmm_(x, last)
    elif frexp(scaling)[0] == 0.5:  # a power of two: nothing is rounded by it, wherever it comes in
        out.baddbmm_(x, last, alpha=scaling)
    else:
        out.add_(torch.bmm(x, last).mul_(scaling))


class DenseUpdate(WeightUpdate):
    """A weight update that is computed as a whole: every adapted part of the projection has a module that makes its D.

    Implement `part`. The products are kept between weight updates.
    """

    def __init__(self, config: Any, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name, output_columns(config, site))
        self.scaling = config.alpha / config.r
        self.updates = nn.ModuleList(self.part(config, width, site.in_features) for width in self.widths)
        self._watching = Watching(self.updates)

    @classmethod
    def acts_at(cls, config: Any, site: LinearSite) -> bool:
        return wants_site(config, site)

    def part(self, config: Any, rows: int, columns: int) -> nn.Module:
        """A module whose call gives D [rows, columns]."""
        raise NotImplementedError

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        self._weight = Derived(self._compute, *self.sources())

    def factors(self) -> Factors:
        if not torch.compiler.is_compiling() and self._watching:
            return self._compute()
        return self._weight()  # type: ignore[no-any-return]

    def _compute(self) -> Factors:
        return (torch.cat([self.make(update) for update in self.updates]),)

    def make(self, update: nn.Module) -> Tensor:
        """D of one part."""
        return update()  # type: ignore[no-any-return]
