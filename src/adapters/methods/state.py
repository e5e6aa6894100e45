"""What flows through the adapters of one site: small bundles of tensors that blocks can slice, join and average.

Shapes: B batch rows, S positions, I / O input and output width, D hidden width, P prefix length, H heads.
Every row-wise field declares its neutral element, so that "this part has none" can be joined with "that part has one".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from adapters.errors import CompositionError, UnsupportedError

Rows = slice | Tensor
Weights = Sequence[Any]
"""Of the parts of a mean: numbers, or tensors [B or 1, S or 1, 1]."""
S = TypeVar("S", bound="State")


def given(**kwargs: Any) -> Any:
    """A field [B, S, ...] that is sliced by rows and positions, and that no adapter changes."""
    return field(metadata={"row_wise": (True, None)}, **kwargs)


def computed(neutral: float | None = None, **kwargs: Any) -> Any:
    """A field that adapters change. Where one part has none, `neutral` stands in for it."""
    return field(metadata={"row_wise": (False, neutral)}, **kwargs)


@dataclass(frozen=True)
class RowWise:
    """What `given` or `computed` said of one field."""

    name: str
    given: bool
    neutral: float | None


@dataclass
class State:
    """Base: the operations that composition blocks need, written once over the row-wise fields."""

    row_wise: ClassVar[tuple[RowWise, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the row-wise fields once: compiled code cannot ask a dataclass for them."""
        super().__init_subclass__(**kwargs)
        fields = [(name, value) for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)]
        own = [RowWise(name, *f.metadata["row_wise"]) for name, f in fields if "row_wise" in f.metadata]
        cls.row_wise = (*cls.row_wise, *own)

    @property
    def carrier(self) -> Tensor:
        """The tensor that tells batch size, number of positions, dtype and device."""
        raise NotImplementedError

    @property
    def span(self) -> int:
        """Number of positions."""
        return self.carrier.shape[1]

    @property
    def extent(self) -> int:
        """Number of positions that are computed, also where they cannot be split."""
        return self.carrier.shape[1]

    @property
    def entrance(self) -> Tensor:
        """What adapters read here, [B, S, D]: gates of blocks read it too."""
        raise NotImplementedError

    @property
    def output(self) -> Tensor:
        """What leaves the place as things stand, [B, S, D]."""
        raise NotImplementedError

    def with_output(self: S, out: Tensor, parts: Sequence[S]) -> S:
        """The state whose output is `out`, which was made of the outputs of `parts`."""
        raise NotImplementedError

    def _map(self: S, function: Callable[[Tensor], Tensor]) -> S:
        changes = {f.name: function(v) for f in self.row_wise if (v := getattr(self, f.name)) is not None}
        return dataclasses.replace(self, **changes)

    def rows(self: S, rows: Rows) -> S:
        """The state of some rows: a slice, or the indices of the rows."""
        if isinstance(rows, Tensor):
            return self._map(lambda t: t if t.shape[0] == 1 else t.index_select(0, rows))
        return self._map(lambda t: t if t.shape[0] == 1 else t[rows])

    def positions(self: S, positions: slice) -> S:
        """The state of some positions of the sequence."""
        return self._map(lambda t: t if t.shape[1] == 1 else t[:, positions])

    def join_rows(self: S, parts: Sequence[S], rows: Sequence[Tensor]) -> S:
        """Put parts of this state together again in the order of the batch; `rows` has the indices of each part."""
        order = torch.cat([*rows])
        return self.rows(order).join(parts, dim=0).rows(order.argsort())

    def join(self: S, parts: Sequence[S], dim: int) -> S:
        """Put parts of this state together again, along rows (dim 0) or positions (dim 1)."""
        changes = {}
        for f in self.row_wise:
            values = [getattr(part, f.name) for part in parts]
            if f.given:
                changes[f.name] = getattr(self, f.name)
            elif any(v is not None for v in values):
                changes[f.name] = torch.cat([part._expanded(v, f, values) for part, v in zip(parts, values)], dim)
        return dataclasses.replace(parts[-1], **changes)

    def _expanded(self, value: Tensor | None, f: RowWise, others: Sequence[Tensor | None]) -> Tensor:
        batch, length = self.carrier.shape[:2]
        if value is None:
            like = next(v for v in others if v is not None)
            assert f.neutral is not None
            value = like.new_full((1, 1, *like.shape[2:]), f.neutral)
        return value.expand(batch, length, *value.shape[2:])

    @classmethod
    def mean(cls: type[S], parts: Sequence[S], weights: Weights) -> S:
        """Weighted sum of what the parts computed, from one common input."""
        changes = {}
        for f in cls.row_wise:
            values = [getattr(part, f.name) for part in parts]
            if f.neutral is None or all(v is None for v in values):
                continue
            total: Tensor | float = 0.0
            for value, weight in zip(values, weights):
                total = total + weight * (f.neutral if value is None else value)
            changes[f.name] = total
        return dataclasses.replace(parts[-1], **changes)


@dataclass
class LinearState(State):
    """At a linear map: the adapted output is `magnitude * (scale * y + delta)`.

    Keeping the three apart is what makes stacks mean what they were trained to mean: the low-rank maps of a stack
    are chained (the next one reads the delta of the last), scalings multiply, and the last magnitude counts. `out`
    stands for y where a method has computed its output as a whole.
    """

    x: Tensor = given()
    y: Tensor = given()
    scale: Tensor | None = computed(1.0, default=None)
    delta: Tensor | None = computed(0.0, default=None)
    magnitude: Tensor | None = computed(1.0, default=None)
    out: Tensor | None = computed(default=None)

    @property
    def carrier(self) -> Tensor:
        return self.y

    @property
    def entrance(self) -> Tensor:
        return self.x

    @property
    def output(self) -> Tensor:
        return self.result()

    def with_output(self, out: Tensor, parts: Sequence[LinearState]) -> LinearState:
        """As a delta where all parts have one, for the next update of a stack to read."""
        if any(part.delta is None or part.out is not None for part in parts):
            return self.replaced(out)
        return dataclasses.replace(self, scale=None, delta=out - self.y, magnitude=None)

    def join(self, parts: Sequence[LinearState], dim: int) -> LinearState:
        if any(part.out is not None for part in parts):
            parts = [part if part.out is not None else dataclasses.replace(part, out=part.y) for part in parts]
        return super().join(parts, dim)

    @classmethod
    def mean(cls, parts: Sequence[LinearState], weights: Weights) -> LinearState:
        if any(part.out is not None for part in parts):
            total: Any = sum(weight * part.result() for part, weight in zip(parts, weights))
            return parts[0].replaced(total)
        return super().mean([part._without_magnitude() for part in parts], weights)

    def _without_magnitude(self) -> LinearState:
        if (m := self.magnitude) is None:
            return self
        scale, delta = (
            m if self.scale is None else m * self.scale,
            None if self.delta is None else m * self.delta,
        )
        return dataclasses.replace(self, scale=scale, delta=delta, magnitude=None)

    def result(self) -> Tensor:
        """The adapted output, [B, S, O]."""
        y = self.y if self.out is None else self.out
        y = y if self.scale is None else y * self.scale
        y = y if self.delta is None else y + self.delta
        y = y if self.magnitude is None else y * self.magnitude
        return y.to(self.y.dtype)

    def replaced(self, out: Tensor) -> LinearState:
        """The state whose result is `out`."""
        return dataclasses.replace(self, out=out, scale=None, delta=None, magnitude=None)


@dataclass
class ResidualState(State):
    """At a residual branch. `h` is the running output, `x` the residual input, `norm` what follows the sum.

    `res` is what the adapter adds back to its own output; `up` the last adapter's contribution before it was added
    (what AdapterFusion attends to); `query` what AdapterFusion asks with. `aside` is what a parallel adapter ran
    beside: it is added at the end, unless a sequential adapter follows. `last` is the module that ran last: its
    `norm_after` decides what happens after the adapters.
    """

    h: Tensor = computed(0.0)
    x: Tensor = given()
    norm: Callable[[Tensor], Tensor] | None = None
    res: Tensor | None = computed(default=None)
    up: Tensor | None = computed(0.0, default=None)
    query: Tensor | None = computed(default=None)
    aside: Tensor | None = computed(0.0, default=None)
    last: Any = None

    @property
    def carrier(self) -> Tensor:
        return self.h

    @property
    def entrance(self) -> Tensor:
        return self.x

    @property
    def final(self) -> bool:
        """Whether h is what leaves the branch: nothing is added to it and no norm follows."""
        return self.last is not None and not self.last.norm_after

    @classmethod
    def _alike(cls, parts: Sequence[ResidualState]) -> list[ResidualState]:
        """`parts`, all of them final if one of them is."""
        last = next((part.last for part in parts if part.final), None)
        if last is not None:
            parts = [part if part.final else part._finished(last) for part in parts]
        return [dataclasses.replace(part, res=None, query=None) for part in parts]

    def _finished(self, last: Any) -> ResidualState:
        total = self.x + (self.h if self.aside is None else self.h + self.aside)
        return dataclasses.replace(self, h=total if self.norm is None else self.norm(total), aside=None, last=last)

    def join(self, parts: Sequence[ResidualState], dim: int) -> ResidualState:
        return super().join(self._alike(parts), dim)

    @classmethod
    def mean(cls, parts: Sequence[ResidualState], weights: Weights) -> ResidualState:
        return super().mean(cls._alike(parts), weights)


@dataclass
class HiddenState(State):
    """At the output of a layer or of the embeddings.

    `offset` is the absolute position of h[:, 0] (positions before it are cached); [first, end) is the range of
    absolute positions that a row attends to: tensors [B, 1], or None for 0 and the given length.
    """

    h: Tensor = computed(0.0)
    first: Tensor | None = given(default=None)
    end: Tensor | None = given(default=None)
    offset: int = 0
    length: int = 0

    @property
    def carrier(self) -> Tensor:
        return self.h

    @property
    def entrance(self) -> Tensor:
        return self.h

    @property
    def output(self) -> Tensor:
        return self.h

    def with_output(self, out: Tensor, parts: Sequence[HiddenState]) -> HiddenState:
        return dataclasses.replace(self, h=out)

    def positions(self, positions: slice) -> HiddenState:
        part = super().positions(positions)
        return dataclasses.replace(part, offset=self.offset + (positions.start or 0))

    def join(self, parts: Sequence[HiddenState], dim: int) -> HiddenState:
        if dim == 0:
            self._equally_long(parts)
        return dataclasses.replace(self, h=torch.cat([part.h for part in parts], dim))

    @classmethod
    def mean(cls, parts: Sequence[HiddenState], weights: Weights) -> HiddenState:
        cls._equally_long(parts)
        return super().mean(parts, weights)

    @staticmethod
    def _equally_long(parts: Sequence[HiddenState]) -> None:
        lengths = [part.span for part in parts]
        if len(set(lengths)) > 1:
            raise CompositionError(
                f"The adapters of one batch give sequences of different lengths {lengths}. Prompts that are used in "
                "one batch must be equally long."
            )


@dataclass
class AttentionState(State):
    """In an attention, before its function is called: queries, keys, values [B, H, S, head_dim] and what is prepended.

    `prefix_keys`, `prefix_values` are [B or 1, H, P, head_dim]; `attended` [B or 1, P] is False for padding between
    prefixes of different length. `attend` calls the attention function with all that; `out` [B, S, H, head_dim] holds
    its result once several of them have been averaged. `hidden` is the input of the attention module.
    """

    query: Tensor = given()
    key: Tensor = given()
    value: Tensor = given()
    mask: Tensor | None = given(default=None)
    hidden: Tensor | None = given(default=None)
    prefix_keys: Tensor | None = computed(default=None)
    prefix_values: Tensor | None = computed(default=None)
    attended: Tensor | None = computed(default=None)
    out: Tensor | None = computed(default=None)
    attend: Callable[[AttentionState], tuple[Tensor, Tensor | None]] = field(kw_only=True)

    @property
    def carrier(self) -> Tensor:
        return self.query

    @property
    def entrance(self) -> Tensor:
        assert self.hidden is not None
        return self.hidden

    @property
    def extent(self) -> int:
        return self.query.shape[2]

    @property
    def span(self) -> int:
        raise CompositionError(
            "Split cannot be used with prefix tuning: a prefix is seen by all positions of the sequence. Use "
            "BatchSplit, Parallel, Stack or Average."
        )

    def prepend(self, keys: Tensor, values: Tensor) -> AttentionState:
        """Put a prefix before everything that is there."""
        if self.out is not None:
            raise CompositionError("Stack: nothing can follow an Average of prefixes. Put the Average last.")
        if self.prefix_keys is None or self.prefix_values is None:
            return dataclasses.replace(self, prefix_keys=keys, prefix_values=values)
        batch = max(keys.shape[0], self.prefix_keys.shape[0])
        pairs = ((keys, self.prefix_keys), (values, self.prefix_values))
        both = [torch.cat([t.expand(batch, -1, -1, -1) for t in pair], 2) for pair in pairs]
        attended = self.attended
        if attended is not None:
            attended = torch.nn.functional.pad(attended, (keys.shape[2], 0), value=True)
        return dataclasses.replace(self, prefix_keys=both[0], prefix_values=both[1], attended=attended)

    @classmethod
    def mean(cls, parts: Sequence[AttentionState], weights: Weights) -> AttentionState:
        outs = [_by_head(weight) * part._finished() for part, weight in zip(parts, weights)]
        return dataclasses.replace(parts[0], out=torch.stack(outs).sum(0))

    def _finished(self) -> Tensor:
        return self.attend(self)[0] if self.out is None else self.out

    def join(self, parts: Sequence[AttentionState], dim: int) -> AttentionState:
        if any(part.out is not None for part in parts):
            return dataclasses.replace(self, out=torch.cat([part._finished() for part in parts]))
        lengths = [0 if part.prefix_keys is None else part.prefix_keys.shape[2] for part in parts]
        longest = max(lengths)
        if not longest:
            return self
        keys, values, attended = zip(*(part._padded(longest) for part in parts))
        even = min(lengths) == longest and all(part.attended is None for part in parts)
        return dataclasses.replace(
            self,
            prefix_keys=torch.cat(keys),
            prefix_values=torch.cat(values),
            attended=None if even else torch.cat(attended),
        )

    def _padded(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads = self.key.shape[:2]
        keys, values = self.prefix_keys, self.prefix_values
        if keys is None or values is None:
            keys = self.key.new_zeros(batch, heads, 0, self.key.shape[-1])
            values = self.value.new_zeros(batch, heads, 0, self.value.shape[-1])
        pad = length - keys.shape[2]
        attended = self.attended
        if attended is None:
            attended = torch.ones(batch, keys.shape[2], dtype=torch.bool, device=keys.device)
        expanded = [torch.nn.functional.pad(t.expand(batch, -1, -1, -1), (0, 0, pad, 0)) for t in (keys, values)]
        return (
            expanded[0],
            expanded[1],
            torch.nn.functional.pad(attended.expand(batch, -1), (pad, 0), value=False),
        )


def per_head(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values [B, H, P, head_dim] for `heads` heads, a multiple of H: neighbours share one (grouped queries).

    Raises:
        UnsupportedError: these are fewer than H.
    """
    repeats = heads // tensor.shape[1]
    if not repeats:
        raise UnsupportedError(
            f"Prefix tuning has keys of {tensor.shape[1]} heads, as the attention module tells, but it computes "
            f"{heads} that all queries share. Choose another method for this model."
        )
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, 1)


def _by_head(weight: float | Tensor) -> float | Tensor:
    """A weight for outputs [B, S, H, head_dim]."""
    return weight[..., None] if isinstance(weight, Tensor) else weight
