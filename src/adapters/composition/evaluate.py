"""The only interpreter of blocks, for every method: a block and the modules of one site become a step.

A step is made once, when a set-up is activated; running it looks up no names. A name without a module at the site is
"no adapter" and passes the state through unchanged. What cannot mean anything is refused here, not in the forward pass.
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import product
from typing import Any

from adapters.composition.blocks import (
    AdapterCompositionBlock,
    Average,
    BatchSplit,
    Child,
    MultiTask,
    Parallel,
    PerRow,
    Split,
    Stack,
)
from adapters.composition.owned import Layers
from adapters.composition.registry import OWNERS
from adapters.composition.steps import (
    Adapter,
    Averaged,
    Branches,
    Mixed,
    Modules,
    PositionSplit,
    RowChoice,
    RowSplit,
    Sequential,
    Step,
    TaskSplit,
    row_sizes,
)
from adapters.errors import CompositionError
from adapters.methods.base import AdapterModule
from adapters.methods.stacking import ChosenRows, RowGroups, Table

BRANCHES: dict[type[AdapterCompositionBlock], type[Branches]] = {
    Average: Averaged,
    Split: PositionSplit,
    BatchSplit: RowSplit,
    Parallel: RowSplit,
    MultiTask: TaskSplit,
}


def build(block: Child, modules: Modules, layers: Layers, prepared: bool = False) -> Step | None:
    """The step of `block` at a site with these modules; None if none of its adapters is there.

    Args:
        block: A block, a name, or None for no adapter.
        modules: What the site has, by adapter name.
        layers: What blocks own there.
        prepared: Whether the block around it has prepared the state (`BlockModule.prepares`).
    Raises:
        CompositionError: the block cannot mean anything for these adapters at this site.
    """
    if block is None:
        return None
    if isinstance(block, str):
        return Adapter(modules[block], prepared) if block in modules else None
    owner = OWNERS.get(type(block))
    inside = owner is not None and owner.prepares
    children = tuple(build(child, modules, layers, inside) for child in block)
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
    masked = any("mask" in child.needs for child in kept)
    if isinstance(block, PerRow):
        return _row_choice(block, children, masked)
    if owner is not None:
        return owner.step(block, children, layers.get((owner.noun, str(block.owned_name))), masked)
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
    """Whether there is an Average in a step, or another mean."""
    if isinstance(step, Mixed):
        return True
    inner = step.children if isinstance(step, Branches) else step.steps if isinstance(step, Sequential) else ()
    return any(child is not None and _averages(child) for child in inner)


def _row_choice(block: PerRow, children: tuple[Step | None, ...], masked: bool) -> Step:
    """The children by kind, each kind as one module: batches of any assignment then run the same."""
    kinds: dict[Any, list[int]] = {}
    for number, child in enumerate(children):
        signature = child.module.signature if isinstance(child, Adapter) else None
        kinds.setdefault(None if child is None else number if signature is None else signature, []).append(number)
    places, steps, spares = [0] * len(children), [], None
    for place, (kind, numbers) in enumerate(kinds.items()):
        for number in numbers:
            places[number] = place
        step = children[numbers[0]]
        if isinstance(step, Adapter) and not isinstance(kind, int):
            slots = tuple(numbers.index(n) if n in numbers else len(numbers) for n in range(len(children)))
            module = step.module.stacked([children[n].module for n in numbers], ChosenRows(len(numbers), _table(slots)))  # type: ignore[union-attr]
            step = Adapter(module)
            if spares is None and module.spares:
                spares = place
        steps.append(step)
    return RowChoice(block, tuple(steps), masked, _table(tuple(places)), spares)


@lru_cache(maxsize=256)
def _table(places: tuple[int, ...]) -> Table:
    """One object for all sites: what a call has found for it is found once."""
    return Table(places)


def _stacked(block: AdapterCompositionBlock, children: tuple[Step | None, ...]) -> AdapterModule[Any] | None:
    """One module that runs all children at once, where they are adapters of equal shape."""
    members = [child.module for child in children if isinstance(child, Adapter)]
    if len(members) < len(children) or (signature := members[0].signature) is None:
        return None
    if any(member.signature != signature for member in members[1:]):
        return None
    return type(members[0]).stacked(members, RowGroups(len(members), partial(row_sizes, block)))
