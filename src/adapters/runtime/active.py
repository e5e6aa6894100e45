"""Which set-up is active here: that of the innermost `AdapterSetup`, else the one set on the model.

What was entered belongs to whoever entered it: a thread, an asyncio task (a `ContextVar`), or a generator (while one
that has entered a set-up runs, those that suspended generators have entered do not count).
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import torch

from adapters.composition.blocks import AdapterCompositionBlock, parse_composition, parse_heads_from_composition

if TYPE_CHECKING:
    from adapters.runtime.programs import Program, Programs

Setup = AdapterCompositionBlock | None

SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""Flags of code whose frames can be left and entered again."""


class Entered(NamedTuple):
    """A set-up that was entered, and the id of the frame of the generator that did it, if one did."""

    setup: AdapterSetup
    generator: int | None


_ENTERED: ContextVar[tuple[Entered, ...]] = ContextVar("entered_adapter_setups", default=())


class _Innermost(threading.local):
    """A copy of what `innermost` says, for compiled code, which cannot read a ContextVar."""

    setup: AdapterSetup | None = None


INNERMOST = _Innermost()

REGISTRIES: WeakSet[Programs] = WeakSet()
"""The programs of all models that have adapters: they prepare for a set-up when it is entered."""

IN_USE: Counter[AdapterSetup] = Counter()
"""How often each set-up is entered at the moment, on any thread."""

LOCK = threading.RLock()
"""Guards the two collections above."""


class AdapterSetup:
    """Context in which another set-up is active, for this thread, asyncio task or generator only.

        with AdapterSetup(Stack("language", "task")):
            model(**inputs)

    Contexts nest; leaving one brings the outer set-up back. A call that is made inside fails with an
    AdapterNameError if its model lacks one of the adapters. A call follows the set-up that was in force when it began
    until it ends, also where gradient checkpointing computes a part of it again.

    Under `torch.compile(model)` the context is read from the thread: where asyncio tasks share a thread, use
    `model.compile()`, which reads it outside of the compiled code.

    Args:
        adapter_setup: A block, an adapter name, or None for no adapters.
        head_setup: Head name, list of names or block; derived from `adapter_setup` when not given.
        ignore_empty: With an `adapter_setup` of None, leave what is active as it is.
    Raises:
        CompositionError: the block nests what cannot be nested.
    """

    def __init__(self, adapter_setup: Any, head_setup: Any = None, ignore_empty: bool = False) -> None:
        self.adapter_setup: Setup = parse_composition(adapter_setup)
        self.empty = adapter_setup is None and ignore_empty
        if head_setup is not None:
            self.head_setup = head_setup
        else:
            self.head_setup = parse_heads_from_composition(self.adapter_setup) if self.adapter_setup else None
        self.programs: dict[int, Program] = {}
        """Number of a model's `Programs` -> what this set-up means there."""

    def __enter__(self) -> AdapterSetup:
        with LOCK:
            IN_USE[self] += 1
            registries = [] if self.empty else list(REGISTRIES)
        _ENTERED.set((*_ENTERED.get(), Entered(self, _generator(sys._getframe(1)))))
        INNERMOST.setup = innermost()
        for programs in registries:
            programs.prepare(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered = _ENTERED.get()
        own = max((i for i, entry in enumerate(entered) if entry.setup is self), default=len(entered))
        _ENTERED.set(entered[:own] + entered[own + 1 :])
        INNERMOST.setup = innermost()
        with LOCK:
            IN_USE[self] -= 1
            if not IN_USE[self]:
                del IN_USE[self]
                self.programs.clear()

    @classmethod
    def get_contexts(cls) -> list[AdapterSetup]:
        """The contexts this thread or task is in, outermost first."""
        return [entry.setup for entry in _ENTERED.get()]

    @classmethod
    def get_context(cls) -> AdapterSetup | None:
        """The context in force, or None outside of all."""
        return innermost()

    @classmethod
    def get_context_adapter_setup(cls) -> Setup:
        """The set-up of the context in force."""
        context = cls.get_context()
        return context.adapter_setup if context else None

    @classmethod
    def get_context_head_setup(cls) -> Any:
        """The head set-up of the context in force."""
        context = cls.get_context()
        return context.head_setup if context else None


def innermost() -> AdapterSetup | None:
    """The context in force: the one entered last, but for those of generators that are suspended."""
    entered = [entry for entry in _ENTERED.get() if not entry.setup.empty]
    if len(entered) > 1 and any(entry.generator is not None for entry in entered):
        running = {None, *(id(frame) for frame in _frames(sys._getframe(1)))}
        entered = [entry for entry in entered if entry.generator in running] or entered
    return entered[-1].setup if entered else None


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of generators and coroutines from `frame` on to the caller of all."""
    while frame is not None:
        if frame.f_code.co_flags & SUSPENDABLE:
            yield frame
        frame = frame.f_back


def _generator(frame: FrameType) -> int | None:
    """Id of the frame of the generator to which what is entered in `frame` belongs.

    A generator that serves as context manager (`contextlib.contextmanager`) enters for the one who uses it.
    """
    for found in _frames(frame):
        back = found.f_back
        if back is None or back.f_code.co_filename != contextlib.__file__:
            return id(found)
    return None


def _readable() -> AdapterSetup | None:
    """The context in force, also in compiled code."""
    return INNERMOST.setup if torch.compiler.is_compiling() else innermost()


def active_setup(model: Any) -> Setup:
    """The set-up in force for `model` here."""
    context = _readable()
    return context.adapter_setup if context else model.adapters_config.active_setup


def active_head_setup() -> Any:
    """The head set-up of the context in force, or None."""
    context = _readable()
    return context.head_setup if context else None
