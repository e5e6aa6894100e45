"""The only interpreter of blocks, for every method: a block and the modules of one site become a program.

A program is built once, when a set-up is activated; running it looks up no names. A name without a module at the
site is "no adapter" and passes the state through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch

from adapters.call import CALL
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
    first_name,
    last_name,
)
from adapters.composition.fusion import AdapterFusion, FusionStep
from adapters.errors import CompositionError
from adapters.methods.base import AdapterModule
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.stacking import RowGroups
from adapters.methods.state import State

Modules = Mapping[str, AdapterModule[Any]]


class Program(Protocol):
    """Something that changes the state of one site."""

    def run(self, state: Any) -> Any: ...


@dataclass(frozen=True)
class Adapter:
    """One adapter. Inside a block `prepared` is set: the block has prepared the state already."""

    module: AdapterModule[Any]
    prepared: bool = False

    def run(self, state: Any) -> Any:
        return self.module.run(state if self.prepared else self.module.prepare(state))


@dataclass(frozen=True)
class Sequential:
    """Adapters one after the other."""

    steps: tuple[Program, ...]

    def run(self, state: Any) -> Any:
        for step in self.steps:
            state = step.run(state)
        return state


@dataclass(frozen=True)
class Branches:
    """Base of blocks whose children start from one state; `None` is a child that does nothing.

    `shared` tells which children start from what `first` has prepared. The others prepare in another way, or not at
    all, and start from the state as it came.
    """

    block: AdapterCompositionBlock
    children: tuple[Program | None, ...]
    shared: tuple[bool, ...]
    first: AdapterModule[Any]

    def run(self, state: Any) -> Any:
        raise NotImplementedError

    def starts(self, state: Any) -> list[Any]:
        """The state from which each child starts."""
        prepared = self.first.prepare(state)
        return [prepared if shared else state for shared in self.shared]

    def apply(self, states: Sequence[Any]) -> list[Any]:
        """Run each child from its state."""
        return [s if child is None else child.run(s) for child, s in zip(self.children, states)]


class Averaged(Branches):
    """Weighted mean of what the children compute."""

    def run(self, state: State) -> State:
        assert isinstance(self.block, Average)
        return type(state).mean(self.apply(self.starts(state)), self.block.weights)


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
        parts = self.apply([s.positions(part) for s, part in zip(self.starts(state), slices(sizes))])
        if any(part.span != size for part, size in zip(parts, sizes)):
            raise CompositionError(
                "Split cannot be used with prompt tuning: a prompt stands before the whole sequence. Use BatchSplit, "
                "Parallel or Average."
            )
        return state.join(parts, dim=1)


class RowSplit(Branches):
    """Each child gets some consecutive rows: BatchSplit by size, Parallel by equal share."""

    def run(self, state: State) -> State:
        sizes = row_sizes(self.block, state.carrier.shape[0])
        return state.join(self.apply([s.rows(part) for s, part in zip(self.starts(state), slices(sizes))]), dim=0)


class TaskSplit(Branches):
    """Each child gets the rows of its task."""

    def run(self, state: State) -> State:
        ids = task_ids(self.block, state.carrier.shape[0], state.carrier.device)
        rows = [(ids == i).nonzero().flatten() for i in range(len(self.children))]
        used = [i for i, index in enumerate(rows) if len(index)]
        order, starts = torch.cat([rows[i] for i in used]), self.starts(state)
        states = [starts[i].rows(rows[i]) for i in used]
        done = [s if (child := self.children[i]) is None else child.run(s) for i, s in zip(used, states)]
        return state.rows(order).join(done, dim=0).rows(order.argsort())


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


def task_ids(block: AdapterCompositionBlock, rows: int, device: torch.device) -> torch.Tensor:
    """Index of the child for every row, [B]."""
    ids = CALL.now.task_ids
    if ids is None:
        raise CompositionError(
            f"{block!r} needs to know the task of every row: pass task_ids, a LongTensor of child indices or a list "
            "of child names, to the model's forward."
        )
    if not isinstance(ids, torch.Tensor):
        names = [first_name(child) if not isinstance(child, str) else child for child in block]
        unknown = sorted({str(name) for name in ids if name not in names})
        if unknown:
            raise CompositionError(f"{block!r}: task_ids names {unknown}, which are no children of the block: {names}")
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


def build(block: Child, modules: Modules, fusions: Mapping[str, AdapterFusion], inner: bool = False) -> Program | None:
    """The program of `block` at a site with these modules; None if none of its adapters is there."""
    if block is None:
        return None
    if isinstance(block, str):
        return Adapter(modules[block], inner) if block in modules else None
    present = _present(block, modules)
    if not present:
        return None
    if isinstance(block, (Stack, Fuse)) and not present[0].stackable:
        return build(block[0], modules, fusions)
    if isinstance(block, Stack):
        steps = tuple(step for child in block if (step := build(child, modules, fusions)) is not None)
        return steps[0] if len(steps) == 1 else Sequential(steps)
    if isinstance(block, Fuse):
        return _fuse(block, present, modules, fusions)
    # MultiTask is a block to train with: its children prepare once more, as those that were trained in it did
    inner_children = not isinstance(block, MultiTask)
    firsts = [_present(child, modules)[:1] for child in block]
    shared = tuple(bool(first) and first[0].preparation == present[0].preparation for first in firsts)
    children = tuple(build(c, modules, fusions, inner=inner_children and alike) for c, alike in zip(block, shared))
    if isinstance(block, (BatchSplit, Parallel)) and (module := _stacked(block, children)) is not None:
        return Adapter(module)
    return BRANCHES[type(block)](block, children, shared, present[0])


def _stacked(block: AdapterCompositionBlock, children: tuple[Program | None, ...]) -> AdapterModule[Any] | None:
    """One module that runs all children at once, where they are adapters of equal shape."""
    members = [child.module for child in children if isinstance(child, Adapter)]
    if len(members) < len(children) or (signature := members[0].signature) is None:
        return None
    if any(member.signature != signature for member in members[1:]):
        return None
    return type(members[0]).stacked(members, RowGroups(len(members), partial(row_sizes, block)))


def _fuse(
    block: Fuse, present: list[AdapterModule[Any]], modules: Modules, fusions: Mapping[str, AdapterFusion]
) -> Program | None:
    if not isinstance(present[0], Bottleneck):
        raise CompositionError(
            f"{block!r}: AdapterFusion learns to combine bottleneck adapters, not {type(present[0]).__name__}. "
            "Use Stack, Average, Parallel or BatchSplit."
        )
    if block.name not in fusions:
        return None
    children = [(last_name(child), build(child, modules, fusions, inner=True)) for child in block]
    kept = tuple((name, child) for name, child in children if child is not None)
    return FusionStep(fusions[block.name], kept, present[-1])


def _present(child: Child, modules: Modules) -> list[AdapterModule[Any]]:
    """The modules of a child from left to right."""
    if isinstance(child, AdapterCompositionBlock):
        return [module for part in child for module in _present(part, modules)]
    return [modules[child]] if child is not None and child in modules else []
