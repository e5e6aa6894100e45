"""What is computed from parameters alone, kept while they do not change: constants of the forward calls.

A value is kept while no gradient is asked for, and computed anew when a tensor or a module below its sources is
replaced, moved or written to. Of writes through `.data`, which leave no trace, a few numbers of every tensor tell, on
the CPU. Who writes single numbers so, or on another device, calls `refresh` afterwards.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, is_grad_enabled, nn
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook

from adapters.call import CALL


def is_traced() -> bool:
    """Whether operations are written down, by `torch.compile`, `torch.export` or `torch.jit.trace`."""
    return is_compiling() or torch._C._is_tracing()


class Derived:
    """What `compute()` makes of the parameters and buffers of some modules, kept until one of them changes.

    Only kept while no gradient is asked for: in training it is computed anew, under `torch.compile` it is traced.
    What is kept has the dtype of its sources also when it was first asked for under autocast.

    Args:
        compute: Makes the value.
        sources: Modules from which it follows, with all below them.
        base: A module of the base model from which it follows; adapters may be stored below it.
    """

    def __init__(self, compute: Callable[[], Any], *sources: nn.Module, base: nn.Module | None = None) -> None:
        self.compute, self.sources = compute, Sources(sources, () if base is None else (base,))
        self._value: Any = None
        self._state: State | None = None
        self._seal: object = None

    def __call__(self) -> Any:
        if is_traced():
            return self.compute()
        watch = WATCHING.watch
        if watch is not None and self._seal is watch.seal and not is_grad_enabled():
            return self._value
        tensors = self.sources.tensors()
        if is_grad_enabled() and any(t.requires_grad for t in tensors):
            self._state = self._seal = None
            return self.compute()
        if CALL.now.moving:
            return self.compute()
        try:
            state = State.of(self.sources, self._state)
        except RuntimeError:  # made in inference mode: changes of such tensors cannot be noticed
            return self.compute()
        if state is not self._state:
            self._renew(tensors)
            self._state = state
        if watch is not None:
            watch.members[self] = None
            self._seal = watch.seal
        return self._value

    def _renew(self, tensors: list[Tensor]) -> None:
        # what inference mode makes is of no use to later calls that ask for gradients
        device = tensors[0].device.type if not tensors[0].is_meta else "cpu"  # "meta" has no autocast
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            self._value = self.compute()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_value": None, "_state": None, "_seal": None}


class Views:
    """Views of some tensors, kept while these are the same objects and lie where they lay.

    What is written to the tensors shows in their views, so only what takes their place must be noticed. Made anew where
    gradients may be asked for, and in compiled code.

    Args:
        make: Makes the views of the tensors that it is given.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self._kept: tuple[list[int], tuple[Tensor, ...], Any] | None = None

    def __call__(self, *tensors: Tensor) -> Any:
        if is_grad_enabled() or is_traced():
            return self.make(*tensors)
        seen = [*map(id, tensors), *map(Tensor.data_ptr, tensors)]
        kept = self._kept
        if kept is None or kept[0] != seen:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept = seen, tensors, self.make(*tensors)
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}


class Sources:
    """Some modules, and all below those of them that are `roots`: what is there now, however often it was replaced.

    Attributes:
        walks: How often what is there was not what had been there before.
    """

    def __init__(self, roots: Iterable[nn.Module], bases: Iterable[nn.Module] = ()) -> None:
        self.roots = tuple({id(root): root for root in roots}.values())
        self.bases = tuple({id(base): base for base in bases}.values())
        self.walks = 0
        self._inside: list[dict[str, Any]] = []
        self._own = [vars(base) for base in self.bases]
        self._ids: array[int] | None = None
        self._tensors: list[Tensor] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.roots, self.bases)  # the attributes of a copied module are in a dictionary of its own

    def tensors(self) -> list[Tensor]:
        """Their parameters and buffers."""
        if self._ids != array("Q", map(id, self._values())):
            self._walk()
        return self._tensors

    def _values(self) -> Iterator[Tensor | nn.Module]:
        """All that is found where something was found at the last walk."""
        inside, own = map(_INSIDE, self._inside), map(_OWN, self._own)
        return chain.from_iterable(map(dict.values, filter(None, chain.from_iterable(chain(inside, own)))))

    def _walk(self) -> None:
        computed = [base._modules.get("parametrizations") for base in self.bases]
        modules = [*self.roots, *(module for module in computed if module is not None)]
        for module in modules:  # grows while it is walked
            modules += [child for child in module._modules.values() if child is not None]
        self._inside = [vars(module) for module in modules]
        values = list(self._values())
        self._ids = array("Q", map(id, values))
        self._tensors = [value for value in values if isinstance(value, Tensor)]
        self.walks += 1


_OWN = itemgetter("_parameters", "_buffers")
_INSIDE = itemgetter("_parameters", "_buffers", "_modules")


class State(NamedTuple):
    """By what changes of some tensors are noticed.

    Attributes:
        key: Numbers of which one changes when a tensor or module is replaced, moved or written to. An array: of many
            tensors it is made and compared faster than a list.
        cells: A few numbers of each tensor on the CPU, as they are in memory: writes through `.data` leave the key as
            it is.
        shown: What these showed, in bits.
        held: The tensors, so that no others get their addresses.
    """

    key: array[int]
    cells: list[memoryview]
    shown: bytes
    held: list[Tensor]

    @classmethod
    def of(cls, sources: Sources, last: State | None) -> State:
        """The state of what is in `sources`; the object `last` itself if nothing has changed since.

        Raises:
            RuntimeError: a tensor was made in inference mode and keeps no count of its changes.
        """
        # fused optimizers change parameters without a trace, so every step of any optimizer counts
        tensors = sources.tensors()
        counts = _CHANGES.count, sources.walks
        key = array("Q", chain(counts, map(Tensor.data_ptr, tensors), map(_VERSION, tensors)))
        if last is None or key != last.key:
            with torch.inference_mode(False), torch.no_grad():
                cells = [cell for tensor in tensors for cell in _cells(tensor)]
                held = [tensor.detach() for tensor in tensors]
            return cls(key, cells, b"".join(cells), held)
        if (shown := b"".join(last.cells)) != last.shown:
            return last._replace(shown=shown)
        return last


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _cells(tensor: Tensor) -> Iterator[memoryview]:
    """The first, the middle and the largest number of `tensor`, in place."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu" or not tensor.is_floating_point():
        return
    if not tensor.data_ptr():
        return
    tensor = tensor.detach()
    bits: Any = tensor.view(_BITS[tensor.element_size()]).numpy()
    for number in {0, bits.size // 2, int(tensor.abs().argmax())}:
        index: Any = np.unravel_index(number, bits.shape)
        yield memoryview(bits[(*index, ...)])


class Watch:
    """Everything that is derived in the calls of one set-up, looked through at once when a call begins.

    To ask every tensor where it is used takes longer than the operations of a small model.

    Attributes:
        members: What was asked for so far (a dict in place of an ordered set).
        seal: Another object whenever something may have changed from which a member is derived.
    """

    def __init__(self) -> None:
        self.members: dict[Derived, None] = {}
        self.seal = object()
        self._states: dict[str, State | None] = {}
        self._sources: dict[str, Sources] = {}
        self._count = 0

    def look(self, names: Collection[str] | None = None) -> None:
        """Renew the seal unless nothing has changed since the last look.

        Args:
            names: The adapters that the call uses, where these are not all: of the others nothing is asked, so what is
                derived from all of them may not be what it should be in the parts that come from the others.
        """
        if is_grad_enabled() or not self.members or is_traced() or CALL.now.moving:
            self.seal, self._states = object(), {}
            return
        if self._count != len(self.members):
            self._sort()
        if not all([self._holds(name) for name in self._sources if not name or names is None or name in names]):  # noqa: C419  (each)
            self.seal = object()

    def _sort(self) -> None:
        """Note from what the members are derived: the modules of each adapter, and with "" all that has no name."""
        roots: dict[str, list[nn.Module]] = {"": []}
        for member in self.members:
            for root in member.sources.roots:
                name = getattr(root, "name", "")
                roots.setdefault(name if isinstance(name, str) else "", []).append(root)
        bases = [base for member in self.members for base in member.sources.bases]
        self._sources = {name: Sources(own, () if name else bases) for name, own in roots.items()}
        self._states, self._count = {}, len(self.members)

    def _holds(self, name: str) -> bool:
        """Whether nothing has changed in one adapter since the last look at it."""
        last = self._states.get(name)
        try:
            state = State.of(self._sources[name], last)
        except RuntimeError:
            self._states[name] = None
            return False
        # the values of a tensor on the device "meta" are elsewhere, where nothing can be told of them
        if state is not last and any(tensor.is_meta for tensor in state.held):
            self._states[name] = None
            return False
        self._states[name] = state
        return state is last


class _Watching(threading.local):
    """The watch of the forward call that runs on this thread, None outside of calls."""

    watch: Watch | None = None


WATCHING = _Watching()

_VERSION = attrgetter("_version")


class _Changes:
    """Counts what changes weights without a trace: the steps of all optimizers, and calls of `refresh`."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self.add)

    def add(self, *args: Any) -> None:
        self.count += 1


_CHANGES = _Changes()


def refresh() -> None:
    """Compute everything anew that was derived from weights, because they were written to without a trace.

    Optimizers, `load_state_dict` and all operations on parameters themselves are noticed without it.
    """
    _CHANGES.add()
