"""Many adapters of equal shape in one batch: which of them each row uses, and their weights as one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from adapters.methods.state import State

S = TypeVar("S", bound=State)


class Runs(Protocol):
    """An adapter, as far as it is needed here."""

    def run(self, state: Any) -> Any: ...


class RowGroups:
    """Assigns the rows of a batch to `count` adapters: consecutive groups, whose sizes `sizes(rows)` tells."""

    def __init__(self, count: int, sizes: Callable[[int], list[int]]) -> None:
        self.count, self.sizes = count, sizes

    def arrange(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [B, S, I] as [G, M, I], one group per adapter where all are equally large and else one per row.

        The second value says which adapter each group uses; None where group i uses adapter i.
        """
        sizes = self.sizes(x.shape[0])
        if sizes.count(sizes[0]) == len(sizes):
            return x.reshape(self.count, -1, x.shape[-1]), None
        return x.reshape(x.shape[0], -1, x.shape[-1]), row_index(tuple(sizes), x.device)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The rows of each adapter."""
        return torch.split(x, self.sizes(x.shape[0]))

    def apart(self, state: S, members: Sequence[Runs]) -> S:
        """What the members compute one by one, each for its own rows of `state`."""
        bounds = [0, *accumulate(self.sizes(state.carrier.shape[0]))]
        parts = [member.run(state.rows(slice(*own))) for member, own in zip(members, pairwise(bounds))]
        return state.join(parts, dim=0)

    def per_row(self, stacked: Tensor, rows: int) -> Tensor:
        """`stacked` [N, ...] as [B, ...]: for every row the entry of its adapter."""
        return stacked.index_select(0, row_index(tuple(self.sizes(rows)), stacked.device))


def row_index(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Index of the group for every row, [B]."""
    if torch.compiler.is_compiling():
        return _row_index(sizes, device)
    return _kept_row_index(sizes, device)


def _row_index(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([group for group, size in enumerate(sizes) for _ in range(size)], device=device)


@lru_cache(maxsize=256)
def _kept_row_index(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a later call may need it for its gradients
        return _row_index(sizes, device)


def select(stacked: Tensor, index: Tensor | None) -> Tensor:
    """Entries of `stacked` [N, ...] for every group."""
    return stacked if index is None else stacked.index_select(0, index)
