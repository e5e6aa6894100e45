"""Facts of the forward call that runs on this thread: what it was asked to report, and how its rows came about."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

Scores = dict[str, dict[int, dict[str, Any]]]
Positions = tuple[Tensor | None, Tensor | None, int, int]
"""(first, end, offset, length) of a `HiddenState`."""


@dataclass
class Running:
    """A stack of layers that is running.

    Attributes:
        mask: The attention mask [B, S] it was given, if any.
        offset: Number of cached positions.
        positions: Rows and positions of hidden states -> what they attend to.
    """

    mask: Tensor | None = None
    offset: int = 0
    positions: dict[tuple[int, int], Positions] = field(default_factory=dict)


class Call:
    """The facts of one forward call, reset when the next one enters the model.

    Attributes:
        root: Module through which the call entered, None outside of calls.
        gating, fusion: Scores collected for the caller, None while nobody asked.
        task_ids: Row -> child of a `MultiTask` block: a LongTensor of indices or a list of names.
        replicated: Whether the inputs have one copy per child of `Parallel` already.
        generating: Whether `generate` runs: rows may then be multiples of the user's batch (beams).
        prompts: While generating, length of what each stack of layers saw first; None otherwise.
        prompt_mask: While generating, the attention mask [B, S] that was given, if there was one.
        gates: While generating, the gates that were computed so far; None otherwise.
        replaying: Whether a layer runs again only for its backward pass (gradient checkpointing).
        copies: (rows, copies) while the batch is to be replicated in front of a layer.
        given: Whether the caller (or `generate`) replicated the inputs.
        residual: x of the residual branch that is being computed.
        hidden: Input of the attention module that is being computed.
        override: What the next norm must return instead of its own output.
        stacks: The stacks of layers that are running, by id.
        windows: (first, end, numbers, masks) of the last edit of some positions: those of all layers are alike.
    """

    def __init__(self) -> None:
        self.root: nn.Module | None = None
        self.gating: Scores | None = None
        self.fusion: Scores | None = None
        self.task_ids: Tensor | list[str] | None = None
        self.replicated = False
        self.copies: tuple[int | None, int] | None = None
        self.given = False
        self.replaying = False
        self.generating = False
        self.prompts: dict[int, int] | None = None
        self.prompt_mask: Tensor | None = None
        self.gates: dict[int, Tensor] | None = None
        self.residual: Tensor | None = None
        self.hidden: Tensor | None = None
        self.override: Tensor | None = None
        self.stacks: dict[int, Running] = {}
        self.windows: tuple[Tensor, Tensor, Any, Any] | None = None


class _Calls(threading.local):
    """The call of every thread. An object of its own: what compiled code writes to a `threading.local` gets lost."""

    def __init__(self) -> None:
        self.now = Call()


CALL = _Calls()


def record(scores: Scores, name: str, layer: int, location: str, values: Tensor) -> None:
    """Add one array; several modules at one location (the q and v of LoRA) become columns in call order."""
    array = values.detach().float().cpu().numpy()
    locations = scores.setdefault(name, {}).setdefault(layer, {})
    if location in locations:
        array = np.column_stack([locations[location], array])
    locations[location] = array
