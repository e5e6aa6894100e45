"""What a set-up does at one site: steps from a state to a state, made once when it is activated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch

from adapters.call import CALL, selecting
from adapters.composition.blocks import AdapterCompositionBlock, Average, BatchSplit, Split, last_name
from adapters.errors import CompositionError, SizeError
from adapters.methods.base import AdapterModule, Direct
from adapters.methods.stacking import Table, assigned, assignment
from adapters.methods.state import State
from adapters.sites.site import AffineSite

Modules = Mapping[str, AdapterModule[Any]]


class Step(Protocol):
    """Something that changes the state of one site."""

    def run(self, state: Any) -> Any:
        """The changed state."""
        ...

    def inverse(self) -> Step:
        """The step that undoes this one."""
        ...

    def leaves(self) -> Iterator[AdapterModule[Any]]:
        """The adapters of this step, from left to right."""
        ...

    @property
    def extra_positions(self) -> int:
        """Positions by which this step lengthens the sequence."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Facts that it reads beside its tap: see `AdapterModule.needs`."""
        ...


@dataclass(frozen=True)
class Adapter:
    """One adapter. As a child of `Fuse` it is `prepared`: the block has prepared the state for all."""

    module: AdapterModule[Any]
    prepared: bool = False

    def run(self, state: Any) -> Any:
        return self.module.run(state if self.prepared else self.module.prepare(state))

    def direct(self) -> Direct | None:
        """See `AdapterModule.direct`."""
        return self.module.direct()

    def inverse(self) -> Step:
        return Inverse(self.module)

    def leaves(self) -> Iterator[AdapterModule[Any]]:
        yield self.module

    @property
    def extra_positions(self) -> int:
        return self.module.extra_positions

    @property
    def needs(self) -> frozenset[str]:
        return self.module.needs


class Inverse(Adapter):
    """One adapter, run backwards."""

    def run(self, state: Any) -> Any:
        return self.module.invert(state)

    def inverse(self) -> Step:
        return Adapter(self.module)


@dataclass(frozen=True)
class Sequential:
    """Adapters one after the other."""

    steps: tuple[Step, ...]

    def run(self, state: Any) -> Any:
        for step in self.steps:
            state = step.run(state)
        return state

    def inverse(self) -> Step:
        return Sequential(tuple(step.inverse() for step in reversed(self.steps)))

    def leaves(self) -> Iterator[AdapterModule[Any]]:
        for step in self.steps:
            yield from step.leaves()

    @property
    def extra_positions(self) -> int:
        return sum(step.extra_positions for step in self.steps)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(step.needs for step in self.steps))


@dataclass(frozen=True)
class Branches:
    """Base of blocks whose children start from one state, each as if it were alone; `None` is one that does nothing."""

    block: AdapterCompositionBlock
    children: tuple[Step | None, ...]
    masked: bool
    """Whether a child asks which positions are padding: then it must be known which part of the batch it got."""

    def run(self, state: Any) -> Any:
        raise NotImplementedError

    def inverse(self) -> Step:
        inverted = tuple(None if child is None else child.inverse() for child in self.children)
        return dataclasses.replace(self, children=inverted)

    def leaves(self) -> Iterator[AdapterModule[Any]]:
        for child in self.children:
            if child is not None:
                yield from child.leaves()

    @property
    def extra_positions(self) -> int:
        return max(0 if child is None else child.extra_positions for child in self.children)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(child.needs for child in self.children if child is not None))

    def apply(self, states: Sequence[Any]) -> list[Any]:
        """Run each child from its state."""
        return [s if child is None else child.run(s) for child, s in zip(self.children, states)]

    def apply_to_parts(self, state: State, parts: Sequence[Part], children: Sequence[Step | None]) -> list[Any]:
        """Run each child from its part of a state."""
        done = []
        for part, child in zip(parts, children):
            own = part(state)
            if child is not None and self.masked:
                with selecting(state.carrier.shape[0], state.extent, part):
                    own = child.run(own)
            elif child is not None:
                own = child.run(own)
            done.append(own)
        return done


class Mixed(Branches):
    """Base of blocks that give a weighted mean of what the children compute."""


class Averaged(Mixed):
    """The mean by weights that are fixed."""

    def run(self, state: State) -> State:
        assert isinstance(self.block, Average)
        return type(state).mean(self.apply([state] * len(self.children)), self.block.weights)


class PositionSplit(Branches):
    """Each child gets some consecutive positions."""

    def run(self, state: State) -> State:
        assert isinstance(self.block, Split)
        length, sizes = state.span, self.block.splits
        if sum(sizes) != length:
            raise SizeError(
                f"Split: splits={sizes} cover {sum(sizes)} positions, but the sequence has {length}. "
                "Give sizes that sum to the sequence length."
            )
        parts = [partial(positions_of, part) for part in slices(sizes)]
        return state.join(self.apply_to_parts(state, parts, self.children), dim=1)


class RowSplit(Branches):
    """Each child gets some consecutive rows: BatchSplit by size, Parallel by equal share."""

    def run(self, state: State) -> State:
        sizes = row_sizes(self.block, state.carrier.shape[0])
        parts = [partial(rows_of, part) for part in slices(sizes)]
        return state.join(self.apply_to_parts(state, parts, self.children), dim=0)


class TaskSplit(Branches):
    """Each child gets the rows of its task."""

    def run(self, state: State) -> State:
        ids = task_ids(self.block, state.carrier.shape[0], state.carrier.device)
        rows = [(ids == i).nonzero().flatten() for i in range(len(self.children))]
        used = [i for i, index in enumerate(rows) if len(index)]
        parts = [partial(rows_of, rows[i]) for i in used]
        done = self.apply_to_parts(state, parts, [self.children[i] for i in used])
        return state.join_rows(done, [rows[i] for i in used])


@dataclass(frozen=True)
class RowChoice(TaskSplit):
    """Each row gets the child that the call names for it. Children of one kind are one here, which `stacked` made.

    Attributes:
        table: Child of the block -> its place among `children`.
        spares: Place of the child that may run on all rows, since it leaves those of other children as they are; None
            where there is none.
    """

    table: Table
    spares: int | None

    def run(self, state: State) -> State:
        rows, device = state.carrier.shape[0], state.carrier.device
        if torch.compiler.is_compiling():
            return self._run_all(state, assignment().places(self.table, rows, device))
        parts = assignment().divided(self.table, rows, device)
        if len(parts) == 1:
            child = self.children[parts[0].place]
            return state if child is None else child.run(state)
        done = []
        for part in parts:
            with assigned(part.assignment):
                done += self.apply_to_parts(state, [partial(rows_of, part.rows)], [self.children[part.place]])
        return state.join_rows(done, [part.rows for part in parts])

    def _run_all(self, state: State, places: torch.Tensor) -> State:
        """As compiled code has it, where what runs cannot depend on the assignment: each child on all rows."""
        rows, count = places.shape[0], len(self.children)
        number = torch.arange(rows, device=places.device)
        return state.rows(number.repeat(count)).join(self.apply([state] * count), dim=0).rows(places * rows + number)

    def direct(self) -> Direct | None:
        """As of an adapter, where each child has such a function at one tap."""
        children = [child for child in self.children if child is not None]
        found = [child.module.direct() if isinstance(child, Adapter) else None for child in children]
        taps = {None if function is None else function[0] for function in found}
        if self.masked or len(taps) > 1 or taps & {None, "prefix"}:
            return None
        (tap,) = taps
        whole = 1 if tap == "output" and issubclass(children[0].module.site_type, AffineSite) else 0  # type: ignore[attr-defined]
        functions = iter(found)
        return str(tap), _RowFunctions(
            self.table,
            tuple(None if child is None else next(functions)[1] for child in self.children),  # type: ignore[index]
            self.spares,
            whole,
        )


@dataclass(frozen=True, eq=False)
class _RowFunctions:
    """Changes of one tensor, each for rows of its own. See `RowChoice.direct`.

    Attributes:
        whole: Which of the arguments is changed.
    """

    table: Table
    functions: tuple[Callable[..., Any] | None, ...]
    spares: int | None
    whole: int

    def __call__(self, *given: Any) -> Any:
        out = given[self.whole]
        rows, device = out.shape[0], out.device
        if torch.compiler.is_compiling():
            places = assignment().places(self.table, rows, device).view(-1, *[1] * (out.dim() - 1))
            for place in sorted(range(len(self.functions)), key=lambda place: place != self.spares):
                if (function := self.functions[place]) is not None:
                    new = function(*given)
                    out = new if place == self.spares else torch.where(places == place, new, out)
            return out
        parts = [part for part in assignment().divided(self.table, rows, device) if self.functions[part.place]]
        for part in sorted(parts, key=lambda part: part.place != self.spares):
            function = self.functions[part.place]
            assert function is not None
            used = len(part.assignment.numbers)
            if used == rows or (part.place == self.spares and 2 * used >= rows):
                out = function(*given)
                continue
            with assigned(part.assignment):
                new = function(*(_of_rows(value, part.rows, rows) for value in given))
            out = out.index_copy(0, part.rows, new)
        return out


def _of_rows(value: Any, index: torch.Tensor, rows: int) -> Any:
    """The rows `index` of what has `rows` rows; all else as it is."""
    has_rows = isinstance(value, torch.Tensor) and value.shape[0] == rows
    return value.index_select(0, index) if has_rows else value


Part = Callable[[Any], Any]
"""What takes some rows or positions of a state, or of a mask [B, S]."""


def rows_of(rows: slice | torch.Tensor, whole: Any) -> Any:
    """Some rows of a state, or of a mask [B, S]."""
    return whole.rows(rows) if isinstance(whole, State) else whole[rows]


def positions_of(positions: slice, whole: Any) -> Any:
    """Some positions of a state, or of a mask [B, S]."""
    return whole.positions(positions) if isinstance(whole, State) else whole[:, positions]


def slices(sizes: Sequence[int]) -> list[slice]:
    """Consecutive slices of the given sizes."""
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def row_sizes(block: AdapterCompositionBlock, rows: int) -> list[int]:
    """Rows of each child of a BatchSplit or Parallel block for a batch of `rows`."""
    if isinstance(block, BatchSplit):
        sizes, total = block.batch_sizes, sum(block.batch_sizes)
        if CALL.now.generating and total and rows % total == 0:
            return [size * (rows // total) for size in sizes]
        if total != rows:
            raise SizeError(
                f"BatchSplit: batch_sizes={sizes} cover {total} rows, but the batch has {rows}. "
                "Give sizes that sum to the batch size."
            )
        return list(sizes)
    share, rest = divmod(rows, len(block))
    if rest:
        raise CompositionError(
            f"Parallel: a batch of {rows} rows cannot be shared by {len(block)} adapters. Call the model through its "
            "own forward, which replicates the inputs, or replicate them yourself and pass "
            "adapter_input_parallelized=True."
        )
    return [share] * len(block)


def task_ids(
    block: AdapterCompositionBlock, rows: int, device: torch.device, ids: torch.Tensor | list[str] | None = None
) -> torch.Tensor:
    """Index of the child for every row, [B], from `ids` or what the call was given."""
    ids = CALL.now.task_ids if ids is None else ids
    if ids is None:
        raise CompositionError(
            f"{block!r} needs to know the task of every row: pass task_ids, a LongTensor of child indices or a list "
            "of child names, to the model's forward."
        )
    if not isinstance(ids, torch.Tensor):
        names = [last_name(child) for child in block]
        unknown = sorted({str(name) for name in ids if name not in names})
        if unknown:
            raise CompositionError(f"{block!r}: task_ids names {unknown}, which are no children of the block: {names}")
        if several := sorted({name for name in ids if names.count(name) > 1}):
            raise CompositionError(f"{block!r}: several children end in {several}. Give task_ids as indices.")
        ids = torch.tensor([names.index(name) for name in ids])
    if ids.shape != (rows,) and not (CALL.now.generating and rows % len(ids) == 0):
        raise CompositionError(
            f"task_ids has shape {tuple(ids.shape)}, but the batch has {rows} rows. Give one per row."
        )
    if not torch.compiler.is_compiling() and bool(((ids < 0) | (ids >= len(block))).any()):
        raise CompositionError(
            f"{block!r}: task_ids has the indices {ids.unique().tolist()}. Allowed: 0 to {len(block) - 1}, the "
            "positions of the children."
        )
    return ids.to(device).repeat_interleave(rows // len(ids))
