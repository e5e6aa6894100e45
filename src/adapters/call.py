"""Facts of the forward call that runs on this thread: the program it follows, what it was asked to report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Scores = dict[str, dict[int, dict[str, Any]]]
GATING = "adapter_gating_scores"
"""Entry of the output that holds the gates of adapters."""
Positions = tuple[Tensor | None, Tensor | None, int, int]
"""(first, end, offset, length) of a `HiddenState`."""


@dataclass
class Running:
    """A stack of layers that is running.

    Attributes:
        mask: The attention mask [B, S] it was given, if any.
        offset: Number of cached positions.
        span: Number of positions that it computes, None if its inputs do not tell.
        positions: What hidden states attend to, with their rows and positions. No dictionary: under `torch.export`
            sizes are symbols, which have no hash.
    """

    mask: Tensor | None = None
    offset: int = 0
    span: int | None = None
    positions: list[tuple[int, int, Positions]] = field(default_factory=list)


@dataclass
class Generation:
    """A call of `generate`, which makes many forward calls.

    Attributes:
        replicated: Whether the inputs have one copy per child of `Parallel` already.
        prompts: Stack of layers, by id -> number of positions it was given to begin with.
        mask: The attention mask [B, S] that was given, if there was one.
        gates: The gates that were computed so far, by the id of their weight.
        computed: Stack of layers, by id -> number of positions it has computed, where its cache does not tell.
    """

    replicated: bool = False
    prompts: dict[int, int] = field(default_factory=dict)
    mask: Tensor | None = None
    gates: dict[int, Tensor] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)


class Call:
    """The facts of one forward call.

    Attributes:
        root: Module through which the call entered, None outside of calls.
        program: What the call follows from its beginning to its end, whatever others activate meanwhile.
        outer: The call around it, or the facts outside of calls; None for these, and for compiled calls.
        generation: The `generate` that the call is a part of, None outside of one.
        reports: Scores collected for the caller, by the entry of the output that was asked for (`GATING`, and those of
            blocks).
        losses: (module, loss) of what blocks own and that trains by more than the task's loss; of a call that is
            over, those of the calls of each model that ended last.
        task_ids: Row -> child of a `MultiTask` block: a LongTensor of indices or a list of names.
        assignment: Row -> child of a `PerRow` block (`methods/stacking.py`), None where the program has none.
        mixture: What the `adapter_names` of the call mean (`runtime/mixing.py`), None where it has none.
        next_mixture: The same for calls that begin inside of this one, and for those of a `generate`.
        replicated: Whether the inputs have one copy per child of `Parallel` already.
        replaying: Whether a layer runs again only for its backward pass (gradient checkpointing).
        moving: Whether parameters get other memory in the course of the call (`sharding.may_move`).
        unwatched: Whether nobody watches the modules of the program's adapters (`methods/parts.py`).
        copies: (rows, copies) while the batch is to be replicated in front of a layer.
        residual: x of the residual branch that is being computed.
        hidden: Input of the attention module that is being computed.
        watches: What sees the functions that attention modules call which are being computed.
        extent: (rows, positions) of the layer that is being computed, where modules in it do not know them.
        override: What the next norm must return instead of its own output.
        stacks: The stacks of layers that are running, by id.
        turns: How often hooks were called that act in some calls of their module only, by id.
        selected: (rows, positions, function) of the blocks whose children run: which part of a mask they see.
        windows: (first, end, numbers, masks) of the last edit of some positions: those of all layers are alike.
        shares: (rows, positions, dtype, weights) of the means that were taken over the attended positions.
    """

    def __init__(self, generation: Generation | None = None) -> None:
        self.generation = generation
        self.root: nn.Module | None = None
        self.program: Any = None
        self.outer: Call | None = None
        self.assignment: Any = None
        self.mixture: Any = None
        self.next_mixture: Any = None
        self.reset()

    def reset(self) -> None:
        """Forget everything that the caller did not ask for."""
        self.reports: dict[str, Scores] = {}
        self.losses: list[tuple[nn.Module, Tensor]] = []
        self.task_ids: Tensor | list[str] | None = None
        self.replicated = self.replaying = self.unwatched = self.moving = False
        self.copies: tuple[int | None, int] | None = None
        self.residual: Tensor | None = None
        self.hidden: Tensor | None = None
        self.watches: list[Any] = []
        self.extent: tuple[int, int] | None = None
        self.override: Tensor | None = None
        self.stacks: dict[int, Running] = {}
        self.turns: dict[int, int] = {}
        self.selected: list[tuple[int, int, Callable[[Tensor], Tensor]]] = []
        self.windows: tuple[Tensor, Tensor, Any, Any] | None = None
        self.shares: list[tuple[int, int, torch.dtype, Tensor | None]] = []

    @property
    def generating(self) -> bool:
        """Whether `generate` runs: rows may then be multiples of the user's batch (beams)."""
        return self.generation is not None

    @property
    def gates(self) -> dict[int, Tensor] | None:
        """While generating, the gates that were computed so far; None otherwise."""
        return None if self.generation is None else self.generation.gates


class _Calls(threading.local):
    """The call of every thread. An object of its own: what compiled code writes to a `threading.local` gets lost."""

    def __init__(self) -> None:
        self.now = Call()


CALL = _Calls()


def attended(rows: int, positions: int) -> Tensor | None:
    """Which positions are no padding, [B, S] of bools, of states [B, S, D] that are computed now; None where all are.

    Inside of a decoder states may be those of its encoder: of the stacks that ran, the last one with a mask of this
    length counts.
    """
    call = CALL.now
    if call.selected:
        rows, positions, _ = call.selected[0]
    if (part := _attended(rows, positions)) is not None:
        for _, _, select in call.selected:
            part = select(part)
    return part


def _attended(rows: int, positions: int) -> Tensor | None:
    call = CALL.now
    for running in reversed(call.stacks.values()):
        mask, start = running.mask, running.offset
        if call.generation is not None and (mask is None or mask.dim() != 2):  # a static cache has other masks
            mask = call.generation.mask
        if mask is None or mask.dim() != 2:
            continue
        end = start + positions
        if mask.shape[1] == end or (call.generation is not None and mask.shape[1] > end):
            part = mask[:, start:end].bool()
            copies = rows // part.shape[0]  # len(part) would be a number under torch.export
            if copies > 1:
                part = part.repeat(copies, 1) if call.copies else part.repeat_interleave(copies, 0)
            return part
    return None


def attended_mean(values: Tensor) -> Tensor:
    """Mean of values [B, S, ..., n] over the positions that are no padding, [B, 1, ..., n]."""
    rows, positions, dtype, known = values.shape[0], values.shape[1], values.dtype, CALL.now.shares
    for entry in () if CALL.now.selected else known:
        if entry[0] == rows and entry[1] == positions and entry[2] is dtype:
            weights = entry[3]
            break
    else:
        weights = _shares(rows, positions, dtype)
        if not CALL.now.selected:
            known.append((rows, positions, dtype, weights))
    if weights is None:
        return values.mean(1, keepdim=True)
    return torch.bmm(weights, values.flatten(2)).view(rows, 1, *values.shape[2:])


def _shares(rows: int, positions: int, dtype: torch.dtype) -> Tensor | None:
    """What every position counts in a mean, [B, 1, S]; None where all count alike."""
    mask = attended(rows, positions)
    if mask is None or (mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all())):
        return None  # elsewhere it would take longer to look than to go on
    counted = mask.to(dtype)
    return (counted / counted.sum(1, keepdim=True).clamp(min=1))[:, None]


@contextmanager
def selecting(rows: int, positions: int, select: Callable[[Any], Any]) -> Iterator[None]:
    """While a child of a block runs with a part of states that have these rows and positions."""
    selected = CALL.now.selected
    selected.append((rows, positions, select))
    try:
        yield
    finally:
        selected.pop()


def prompted(positions: int) -> int:
    """How many of the positions that are computed now belong to what `generate` was given; outside of it all."""
    call = CALL.now
    if call.generation is None or not call.stacks:
        return positions
    key, running = next(reversed(call.stacks.items()))
    if running.span is not None and running.span != positions:  # states of the encoder, in a decoder
        return positions
    return min(positions, call.generation.prompts.get(key, positions))


def record(scores: Scores, name: str, layer: int, location: str, values: Tensor) -> None:
    """Add one array; several modules at one location (the q and v of LoRA) become columns in call order."""
    array = values.detach().float().cpu().numpy()
    locations = scores.setdefault(name, {}).setdefault(layer, {})
    if location in locations:
        array = np.column_stack([locations[location], array])
    locations[location] = array
