"""The only interpreter of blocks, for every method: a block and the modules of one site become a step.

A step is made once, when a set-up is activated; running it looks up no names. A name without a module at the site is
"no adapter" and passes the state through unchanged. What cannot mean anything is refused here, not in the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any, Protocol

import torch

from adapters.call import CALL, selecting
from adapters.composition.blocks import (
    AdapterCompositionBlock,
    Average,
    BatchSplit,
    Child,
    Fuse,
    MultiTask,
    Parallel,
    Split,
    Stack,
    last_name,
)
from adapters.composition.fusion import FusionLayer, FusionStep
from adapters.errors import CompositionError
from adapters.methods.base import AdapterModule
from adapters.methods.stacking import RowGroups
from adapters.methods.state import State

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


@dataclass(frozen=True)
class Adapter:
    """One adapter. As a child of `Fuse` it is `prepared`: the block has prepared the state for all."""

    module: AdapterModule[Any]
    prepared: bool = False

    def run(self, state: Any) -> Any:
        return self.module.run(state if self.prepared else self.module.prepare(state))

    def inverse(self) -> Step:
        return Inverse(self.module)

    def leaves(self) -> Iterator[AdapterModule[Any]]:
        yield self.module

    @property
    def extra_positions(self) -> int:
        return self.module.extra_positions


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


@dataclass(frozen=True)
class Branches:
    """Base of blocks whose children start from one state, each as if it were alone; `None` is one that does nothing."""

    block: AdapterCompositionBlock
    children: tuple[Step | None, ...]
    masked: bool = False
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


class Averaged(Branches):
    """Weighted mean of what the children compute."""

    def run(self, state: State) -> State:
        assert isinstance(self.block, Average)
        return type(state).mean(self.apply([state] * len(self.children)), self.block.weights)


class PositionSplit(Branches):
    """Each child gets some consecutive positions."""

    def run(self, state: State) -> State:
        assert isinstance(self.block, Split)
        length, sizes = state.span, self.block.splits
        if sum(sizes) != length:
            raise CompositionError(
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
        order = torch.cat([rows[i] for i in used])
        parts = [partial(rows_of, rows[i]) for i in used]
        done = self.apply_to_parts(state, parts, [self.children[i] for i in used])
        return state.rows(order).join(done, dim=0).rows(order.argsort())


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
            raise CompositionError(
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


BRANCHES: dict[type[AdapterCompositionBlock], type[Branches]] = {
    Average: Averaged,
    Split: PositionSplit,
    BatchSplit: RowSplit,
    Parallel: RowSplit,
    MultiTask: TaskSplit,
}


def build(block: Child, modules: Modules, fusions: Mapping[str, FusionLayer], prepared: bool = False) -> Step | None:
    """The step of `block` at a site with these modules; None if none of its adapters is there.

    Args:
        block: A block, a name, or None for no adapter.
        modules: What the site has, by adapter name.
        fusions: Its fusion layers, by name.
        prepared: Whether the block around it has prepared the state (`Fuse`).
    Raises:
        CompositionError: the block cannot mean anything for these adapters at this site.
    """
    if block is None:
        return None
    if isinstance(block, str):
        return Adapter(modules[block], prepared) if block in modules else None
    if isinstance(block, Fuse):
        return _fuse(block, modules, fusions)
    children = tuple(build(child, modules, fusions) for child in block)
    kept = tuple(child for child in children if child is not None)
    if not kept:
        return None
    if isinstance(block, Stack):
        return _stack(block, children)
    if isinstance(block, Split):
        for module in (leaf for child in kept for leaf in child.leaves() if not leaf.splits):
            raise CompositionError(
                f"{block!r}: Split gives each adapter positions of its own, but {module.name!r} is of type "
                f"{type(module).__name__}, which acts on the sequence as a whole. Use BatchSplit, Parallel, Stack or "
                "Average."
            )
    lengths = {0 if child is None else child.extra_positions for child in children}
    if len(lengths) > 1:
        raise CompositionError(
            f"{block!r}: its children lengthen the sequence by different numbers of positions {sorted(lengths)}. "
            "Prompts that are used in one batch must be equally long."
        )
    if isinstance(block, (BatchSplit, Parallel)) and (stacked := _stacked(block, children)) is not None:
        return Adapter(stacked)
    masked = any("mask" in leaf.needs for child in kept for leaf in child.leaves())
    return BRANCHES[type(block)](block, children, masked)


def _stack(block: Stack, children: tuple[Step | None, ...]) -> Step | None:
    """Steps one after the other, if every adapter can follow those before it."""
    steps: list[Step] = []
    before: list[AdapterModule[Any]] = []
    for i, step in enumerate(children):
        if step is None or (i and not any(leaf.chains for leaf in step.leaves())):
            continue
        for earlier, module in product(before, step.leaves()):
            if reason := module.cannot_follow(earlier):
                raise CompositionError(f"{block!r}: {reason}")
        if before and not before[-1].averages and any(map(_averages, steps)):
            raise CompositionError(
                f"{block!r}: nothing can follow an Average of adapters of type {type(before[-1]).__name__}, since it "
                "averages what they finally give. Put the Average last."
            )
        steps.append(step)
        before += step.leaves()
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else Sequential(tuple(steps))


def _averages(step: Step) -> bool:
    """Whether there is an Average in a step."""
    if isinstance(step, Averaged):
        return True
    inner = step.children if isinstance(step, Branches) else step.steps if isinstance(step, Sequential) else ()
    return any(child is not None and _averages(child) for child in inner)


def _stacked(block: AdapterCompositionBlock, children: tuple[Step | None, ...]) -> AdapterModule[Any] | None:
    """One module that runs all children at once, where they are adapters of equal shape."""
    members = [child.module for child in children if isinstance(child, Adapter)]
    if len(members) < len(children) or (signature := members[0].signature) is None:
        return None
    if any(member.signature != signature for member in members[1:]):
        return None
    return type(members[0]).stacked(members, RowGroups(len(members), partial(row_sizes, block)))


def _fuse(block: Fuse, modules: Modules, fusions: Mapping[str, FusionLayer]) -> Step | None:
    children = [(last_name(child), build(child, modules, fusions, prepared=True)) for child in block]
    kept = tuple((name, child) for name, child in children if child is not None)
    if not kept:
        return None
    last = [leaf for _, child in kept for leaf in child.leaves()][-1]
    if last.fuses_as_first:
        return build(block[0], modules, fusions)
    if block.name not in fusions:
        raise CompositionError(
            f"{block!r}: there is no fusion layer {block.name!r} at {last.site.location} of layer {last.site.layer}, "
            f"where adapter {last.name!r} ({type(last).__name__}) acts. Add one with add_adapter_fusion, which "
            "combines bottleneck adapters at places that all of them adapt; or use Stack, Average, Parallel or "
            "BatchSplit."
        )
    return FusionStep(fusions[block.name], kept, last)
