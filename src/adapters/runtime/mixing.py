"""What does `adapter_names=[...]` of one call mean? A program for all kinds of rows, and which row is of which.

Programs are made for pools: all names and blocks that rows of the model were given lately. So batches of the same
adapters in ever new orders follow one program, and only the assignment of the rows is new in each call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapters.call import CALL
from adapters.composition.blocks import AdapterCompositionBlock, Child, PerRow, last_name, parse_row
from adapters.errors import AdapterError, AdapterNameError, CompositionError, SizeError, choices
from adapters.methods.stacking import Assignment
from adapters.runtime.active import INNERMOST, AdapterSetup, innermost
from adapters.runtime.arguments import BASE
from adapters.runtime.replication import batch_size

if TYPE_CHECKING:
    from adapters.runtime.programs import Program, Programs

MOST_POOLS, MOST_CHILDREN = 4, 256
"""Pools that a model keeps, and names and blocks in each, if one batch has no more: it has a copy of their weights."""


@dataclass(eq=False)
class Pool:
    """Names and blocks that may be mixed in one batch.

    Attributes:
        recent: The names and blocks, those that were asked for last at the end.
        numbers: Their places in the block of the program.
        program: What a batch of them follows; None where it has to be made anew.
        served: Whether its hooks stay between calls: until another set-up is activated.
    """

    recent: OrderedDict[Child, None]
    numbers: Mapping[Child, int]
    program: Program | None
    served: bool = True


class Pools:
    """The pools of one model, the one that was asked for last at the end. Only under the lock of `programs`."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self._pools: list[Pool] = []

    def holding(self, rows: Iterable[Child]) -> Pool:
        """A pool that has all of `rows`, and a program.

        Raises:
            AdapterError: rows of these cannot be mixed in one batch of this model, or one cannot run at all.
        """
        wanted = dict.fromkeys(rows)
        pool = self._current(wanted) or self._made(wanted)
        for child in wanted:
            pool.recent.move_to_end(child)
        pool.served = True
        return pool

    def _current(self, wanted: Mapping[Child, None]) -> Pool | None:
        for pool in reversed(self._pools):
            program = pool.program
            if program is not None and not program.stale and all(child in pool.numbers for child in wanted):
                if pool is not self._pools[-1]:
                    self._pools.remove(pool)
                    self._pools.append(pool)
                return pool
        return None

    def _made(self, wanted: Mapping[Child, None]) -> Pool:
        """A pool that is extended by what is wanted; a new one where what it has cannot be mixed with that."""
        known = self.programs.engine.parts.keys()
        for pool in reversed(self._pools):
            kept = [child for child in pool.recent if child not in wanted and _names(child) <= known]
            room = max(0, MOST_CHILDREN - len(wanted))
            try:
                made = self._of([*kept[max(0, len(kept) - room) :], *wanted])
            except AdapterError:
                continue
            self._pools.remove(pool)
            break
        else:
            made = self._of([*wanted])
        self._pools = [*self._pools[-(MOST_POOLS - 1) :], made]
        return made

    def _of(self, children: list[Child]) -> Pool:
        numbers = {child: number for number, child in enumerate(children)}
        return Pool(OrderedDict.fromkeys(children), numbers, self.programs.made(PerRow(*children)))

    def serving(self) -> Iterator[Program]:
        """The programs whose hooks stay between calls."""
        yield from (pool.program for pool in self._pools if pool.served and pool.program is not None)

    def rest(self) -> None:
        """Let the hooks go that only mixed batches need, until the next one comes."""
        for pool in self._pools:
            pool.served = False

    def drop_stale(self) -> None:
        """Give up programs that no call must begin with any more, and the weights that they hold."""
        for pool in self._pools:
            if pool.program is not None and pool.program.stale:
                pool.program = None


class Mixture:
    """The adapters of the rows of one call.

    Args:
        programs: Programs of the model.
        children: A name, a block or None for each row.
    Attributes:
        program: What the call follows.
        assignment: Row -> child of the block of the program.
        names: The adapters that the call uses.
        around: The `AdapterSetup` that was in force where the names were given. One that is entered inside counts more.
    """

    def __init__(self, programs: Programs, children: Sequence[Child]) -> None:
        self.programs, self.children = programs, tuple(children)
        self.names = frozenset[str]().union(*map(_names, dict.fromkeys(children)))
        self.around: AdapterSetup | None = innermost()
        self.renew()

    def renew(self) -> None:
        """Find a program, also after adapters have changed while `generate` ran."""
        with self.programs.lock:
            pool = self.programs.pools.holding(self.children)
            assert pool.program is not None
            self.program: Program = pool.program
            numbers = [pool.numbers[child] for child in self.children]
            self.programs.serve(self.program)
        root: Any = self.programs.engine.root
        self.assignment = Assignment(numbers, root.device)

    def holds(self, programs: Programs) -> bool:
        """Whether it is what calls of a model follow here."""
        if self.programs is not programs:
            return False
        return self.around is (INNERMOST.setup if torch.compiler.is_compiling() else innermost())

    def heads(self, known: Container[str]) -> list[str | None]:
        """The head of each row: the one named like its last adapter; None for rows without such a head."""
        return [name if (name := last_name(child)) in known else None for child in self.children]


@contextmanager
def mixing(programs: Programs, names: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """While a call runs, or a `generate`, whose rows were given names.

    Args:
        programs: Programs of the model.
        names: `adapter_names` of the call.
        args: What tells the number of rows, beside `kwargs`.
        kwargs: The named arguments of the call.
    Raises:
        CompositionError: an entry means no adapter or block, or they cannot be mixed.
        AdapterNameError: the model lacks some of them.
        SizeError: there are more or fewer of them than rows.
    """
    children = read_names(programs, names, _rows(programs, args, kwargs))
    programs.engine.follow_edits()
    mixture = Mixture(programs, children)
    call = CALL.now
    before = call.assignment, call.mixture, call.next_mixture
    call.assignment, call.mixture, call.next_mixture = mixture.assignment, mixture, mixture
    try:
        yield
    finally:
        call.assignment, call.mixture, call.next_mixture = before


def read_names(programs: Programs, names: Any, rows: int | None) -> list[Child]:
    """A name, a block or None for each row, as `mixing`."""
    if isinstance(names, str | AdapterCompositionBlock):
        names = [names] * (1 if rows is None else rows)
    if not isinstance(names, Sequence) or not names:
        raise CompositionError(
            f"adapter_names={names!r} is no list. Give one entry for each row: an adapter name, a block, or None for "
            "no adapter."
        )
    known = programs.engine.parts.keys()
    children = [None if name == BASE and BASE not in known else parse_row(name) for name in names]
    missing = sorted(set().union(*map(_names, dict.fromkeys(children))) - known)
    if missing:
        raise AdapterNameError(
            f"adapter_names has {missing}, which are no adapters of this {type(programs.engine.root).__name__}. "
            f"{choices(missing[0], known)}"
        )
    if rows is not None and rows != len(children):
        raise SizeError(
            f"adapter_names has {len(children)} entries, but the batch has {rows} rows. Give one entry for each row: "
            "an adapter name, a block, or None for no adapter."
        )
    return children


def _names(child: Child) -> set[str]:
    """All adapters that a row needs."""
    return child.flatten() if isinstance(child, AdapterCompositionBlock) else set() if child is None else {child}


def _rows(programs: Programs, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Rows of the batch, if an argument tells."""
    main = kwargs.get(getattr(programs.engine.root, "main_input_name", "input_ids"))
    return main.shape[0] if isinstance(main, Tensor) and main.dim() else batch_size(args, dict(kwargs))
