"""Many adapters of one kind in one batch: which of them each row uses, and their weights as one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.call import CALL
from adapters.errors import SizeError
from adapters.methods.state import State

S = TypeVar("S", bound=State)


class Runs(Protocol):
    """An adapter, as far as it is needed here."""

    def run(self, state: Any) -> Any: ...


class RowGroups:
    """Assigns the rows of a batch to `count` adapters: consecutive groups, whose sizes `sizes(rows)` tells.

    Attributes:
        spare: Whether rows may have none of them: then there is one entry more in what is stacked, which changes
            nothing.
    """

    spare = False

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

    def each(self, x: Tensor, functions: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """What the functions of the adapters make of x [B, ...], each of its own rows; 0 for rows that have none."""
        return torch.cat([function(part) for function, part in zip(functions, x.split(self.sizes(x.shape[0])))])

    def apart(self, state: S, members: Sequence[Runs]) -> S:
        """What the members compute one by one, each for its own rows of `state`."""
        bounds = [0, *accumulate(self.sizes(state.carrier.shape[0]))]
        parts = [member.run(state.rows(slice(*own))) for member, own in zip(members, pairwise(bounds))]
        return state.join(parts, dim=0)

    def per_row(self, stacked: Tensor, rows: int) -> Tensor:
        """`stacked` [N, ...] as [B, ...]: for every row the entry of its adapter."""
        return stacked.index_select(0, row_index(tuple(self.sizes(rows)), stacked.device))


class ChosenRows(RowGroups):
    """Assigns to each row of a batch the adapter that the call names for it.

    Args:
        count: Number of adapters.
        table: Where the adapter stands that a row is assigned to; `count` for rows that have none of them.
    """

    def __init__(self, count: int, table: Table) -> None:
        self.count, self.table = count, table
        self.spare = count in table.places

    def arrange(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [B, S, I] as [B, M, I], and the adapter of each row."""
        return x.reshape(x.shape[0], -1, x.shape[-1]), self._index(x)

    def each(self, x: Tensor, functions: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        done = torch.zeros_like(x)
        for place, rows, part in self._parts(x):
            with assigned(part):
                done = done.index_copy(0, rows, functions[place](x.index_select(0, rows)).to(x.dtype))
        return done

    def apart(self, state: S, members: Sequence[Runs]) -> S:
        parts = self._parts(state.carrier, with_spare=True)
        done = []
        for place, rows, part in parts:
            with assigned(part):
                own = state.rows(rows)
                done.append(members[place].run(own) if place < self.count else own)
        return state.join_rows(done, [rows for _, rows, _ in parts])

    def per_row(self, stacked: Tensor, rows: int) -> Tensor:
        return stacked.index_select(0, assignment().places(self.table, rows, stacked.device))

    def _index(self, x: Tensor) -> Tensor:
        return assignment().places(self.table, x.shape[0], x.device)

    def _parts(self, x: Tensor, with_spare: bool = False) -> list[Division]:
        divided = assignment().divided(self.table, x.shape[0], x.device)
        return [part for part in divided if with_spare or part.place < self.count]


@dataclass(frozen=True, eq=False)
class Table:
    """Where adapters stand in a list: number of the adapter -> place. One object a list, so that its hash is its id."""

    places: tuple[int, ...]

    def tensor(self, device: torch.device) -> Tensor:
        """The places, [N]."""
        return torch.tensor(self.places, device=device)


class Division(NamedTuple):
    """The rows of a batch whose adapters stand at one place, in order, and their assignment."""

    place: int
    rows: Tensor
    assignment: Assignment


class Assignment:
    """Which of some adapters each row of one call has.

    Rows that a model or `generate` has copied have the adapter of their original: copies stand next to each other.

    Args:
        numbers: Of the adapters, for each row.
        device: Where the rows are.
    Attributes:
        index: The numbers as a tensor, [B].
    """

    def __init__(self, numbers: Sequence[int], device: torch.device) -> None:
        self.numbers = tuple(numbers)
        with torch.inference_mode(False):  # a later call may need it for its gradients
            self.index = torch.tensor(self.numbers, dtype=torch.long, device=device)
        self._places: dict[Any, Tensor] = {}
        self._divided: dict[Any, list[Division]] = {}

    def places(self, table: Table, rows: int, device: torch.device) -> Tensor:
        """Place of each row's adapter, [B]."""
        if torch.compiler.is_compiling():
            return self._find(table, rows, device)
        key = table, rows, device
        if (found := self._places.get(key)) is None:
            with torch.inference_mode(False):
                found = self._places[key] = self._find(table, rows, device)
        return found

    def _find(self, table: Table, rows: int, device: torch.device) -> Tensor:
        index = self.index.to(device).repeat_interleave(self._copies(rows))
        return table.tensor(device).index_select(0, index)

    def _copies(self, rows: int) -> int:
        known = self.index.shape[0]
        if not known or rows % known:
            raise SizeError(
                f"adapter_names has {known} entries, but an adapted module of the model was given {rows} rows, which "
                "is no multiple of it: this model computes other rows than it is given. Call it once for each adapter."
            )
        return rows // known

    def divided(self, table: Table, rows: int, device: torch.device) -> list[Division]:
        """The rows by place. Not for compiled code: how many places are used depends on the assignment."""
        key = table, rows, device
        if (found := self._divided.get(key)) is None:
            copies = self._copies(rows)
            own: dict[int, list[int]] = {}
            for row, number in enumerate(number for number in self.numbers for _ in range(copies)):
                own.setdefault(table.places[number], []).append(row)
            found = []
            for place, numbers in own.items():
                part = Assignment([self.numbers[row // copies] for row in numbers], device)
                with torch.inference_mode(False):
                    found.append(Division(place, torch.tensor(numbers, device=device), part))
            self._divided[key] = found
        return found


def assignment() -> Assignment:
    """The assignment of the rows that are computed now."""
    found: Assignment = CALL.now.assignment
    return found


@contextmanager
def assigned(part: Assignment) -> Iterator[None]:
    """While some rows of the batch alone are computed."""
    call = CALL.now
    whole, call.assignment = call.assignment, part
    try:
        yield
    finally:
        call.assignment = whole


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


def alike(tensors: Sequence[Tensor], spare: float | None = None) -> Tensor:
    """`tensors` as one, [N, ...]; smaller ones have zeros where they end, which add nothing to products of matrices.

    Args:
        tensors: Of one number of dimensions.
        spare: Value of one more entry, for rows that have none of them.
    """
    if len({tensor.shape for tensor in tensors}) > 1:
        sizes = [max(own) for own in zip(*(tensor.shape for tensor in tensors))]
        tensors = [F.pad(t, [n for s, o in zip(sizes[::-1], t.shape[::-1]) for n in (0, s - o)]) for t in tensors]
    if spare is not None:
        tensors = [*tensors, torch.full_like(tensors[0], spare)]
    return torch.stack([*tensors])
