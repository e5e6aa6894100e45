"""Which set-up is active on this thread: the innermost `AdapterSetup`, else the one set on the model."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Any
from weakref import WeakSet

from adapters.composition.blocks import AdapterCompositionBlock, parse_composition, parse_heads_from_composition

Setup = AdapterCompositionBlock | str | None

STATIC = "static"
"""Key of the set-up that is set on the model itself."""


class _Active(threading.local):
    """The key of the set-up in force on this thread, and the contexts that led to it."""

    def __init__(self) -> None:
        self.key = STATIC
        self.contexts: list[AdapterSetup] = []


ACTIVE = _Active()

ENGINES: WeakSet[Any] = WeakSet()
"""Engines of all models that have adapters: told of a set-up before the first forward call that needs it."""


IN_USE: Counter[str] = Counter()
"""Keys of the contexts that any thread is in: hooks that these need stay where they are."""

_LOCK = threading.Lock()


def setup_key(setup: Setup) -> str:
    """A string that is equal for equal set-ups. Plans are found by it, also inside compiled code."""
    return "none" if setup is None else repr(setup.to_dict() if isinstance(setup, AdapterCompositionBlock) else setup)


class AdapterSetup:
    """Context in which another set-up is active, for this thread only.

        with AdapterSetup(Stack("language", "task")):
            model(**inputs)

    Contexts nest; leaving one brings the outer set-up back. Blocks are checked, names are not: a model in which a
    name does not exist skips that name.

    Args:
        adapter_setup: A block, an adapter name, or None for no adapters.
        head_setup: Head name, list of names or block; derived from `adapter_setup` when not given.
        ignore_empty: With an `adapter_setup` of None, leave what is active as it is.
    Raises:
        CompositionError: the block nests what cannot be nested.
    """

    def __init__(self, adapter_setup: Any, head_setup: Any = None, ignore_empty: bool = False) -> None:
        self.adapter_setup = parse_composition(adapter_setup)
        self.empty = adapter_setup is None and ignore_empty
        if head_setup is not None:
            self.head_setup = head_setup
        else:
            self.head_setup = parse_heads_from_composition(self.adapter_setup) if self.adapter_setup else None
        self.key = setup_key(self.adapter_setup)

    def __enter__(self) -> AdapterSetup:
        with _LOCK:
            IN_USE[self.key] += 1
        ACTIVE.contexts.append(self)
        self._apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ACTIVE.contexts.pop()
        with _LOCK:
            IN_USE[self.key] -= 1
            if not IN_USE[self.key]:
                del IN_USE[self.key]
        if ACTIVE.contexts:
            ACTIVE.contexts[-1]._apply()
        else:
            ACTIVE.key = STATIC

    def _apply(self) -> None:
        outer = [c for c in ACTIVE.contexts if not c.empty]
        if not outer:
            return
        ACTIVE.key = outer[-1].key
        for engine in list(ENGINES):
            engine.ensure(outer[-1].key, outer[-1].adapter_setup)

    @classmethod
    def get_contexts(cls) -> list[AdapterSetup]:
        """The contexts this thread is in, outermost first."""
        return ACTIVE.contexts

    @classmethod
    def get_context(cls) -> AdapterSetup | None:
        """The context in force, or None outside of all."""
        for context in reversed(ACTIVE.contexts):
            if not context.empty:
                return context
        return None

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


def active_setup(model: Any) -> Setup:
    """The set-up in force for `model` on this thread."""
    context = AdapterSetup.get_context()
    return context.adapter_setup if context else model.adapters_config.active_setup  # type: ignore[no-any-return]


def active_head_setup() -> Any:
    """The head set-up of the innermost context, or None."""
    return AdapterSetup.get_context_head_setup()
