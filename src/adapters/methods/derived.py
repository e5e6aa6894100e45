"""What is computed from parameters alone, kept while they do not change: constants of the forward calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

Tensors = Mapping[str, Tensor | None]


class Derived:
    """What `compute()` makes of the parameters and buffers of some modules, kept until one of them changes.

    Only kept while no gradient is asked for: in training it is computed anew, under `torch.compile` it is traced.
    What is kept has the dtype of its sources also when it was first asked for under autocast.
    """

    def __init__(self, compute: Callable[[], Any], *modules: nn.Module) -> None:
        self.compute = compute
        self.sources: list[Tensors] = [
            d for module in modules for m in module.modules() for d in (m._parameters, m._buffers) if d
        ]
        self._value: Any = None
        self._key: list[int] | None = None
        self._seal: object = None
        self._held: list[Tensor] = []

    def __call__(self) -> Any:
        if torch.compiler.is_compiling():
            return self.compute()
        watch = WATCHING.watch
        if watch is not None and self._seal is watch.seal and not torch.is_grad_enabled():
            return self._value
        tensors = tensors_of(self.sources)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            self._key = self._seal = None
            return self.compute()
        try:
            key = state_of(tensors)
        except RuntimeError:  # made in inference mode: changes of such tensors cannot be noticed
            return self.compute()
        if key != self._key:
            self._renew(tensors)
            self._key = key
        if watch is not None:
            watch.members[self] = None
            self._seal = watch.seal
        return self._value

    def _renew(self, tensors: list[Tensor]) -> None:
        # what inference mode makes is of no use to later calls that ask for gradients
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
            self._value = self.compute()
            self._held = [t.detach() for t in tensors]  # so that no other tensor gets these addresses

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_value": None, "_key": None, "_seal": None, "_held": []}


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
        self._key: list[int] | None = None
        self._sources: tuple[int, list[Tensors]] = 0, []

    def look(self) -> None:
        """Renew the seal unless nothing has changed since the last look."""
        key = None
        if not torch.is_grad_enabled():
            tensors = tensors_of(self._all_sources())
            try:
                key = state_of(tensors)
            except RuntimeError:
                key = None
            # the values of a tensor on the device "meta" are elsewhere, where nothing can be told of them
            if key is not None and 0 in key[1 : len(tensors) + 1]:
                key = None
        if key is None or key != self._key:
            self.seal = object()
        self._key = key

    def _all_sources(self) -> list[Tensors]:
        count, sources = self._sources
        if count != len(self.members):
            members = list(self.members)
            sources = list({id(source): source for member in members for source in member.sources}.values())
            self._sources = len(members), sources
        return sources


class _Watching(threading.local):
    """The watch of the forward call that runs on this thread, None outside of calls."""

    watch: Watch | None = None


WATCHING = _Watching()


def tensors_of(sources: Iterable[Tensors]) -> list[Tensor]:
    """The tensors that are in some dictionaries now."""
    return [t for source in sources for t in source.values() if t is not None]


def state_of(tensors: list[Tensor]) -> list[int]:
    """Numbers of which one changes when a tensor is replaced, moved or written to; addresses first, after a count.

    Fused optimizers change parameters without a trace, so every step of any optimizer counts.

    Raises:
        RuntimeError: a tensor was made in inference mode and keeps no count of its changes.
    """
    return [_STEPS.count, *map(Tensor.data_ptr, tensors), *map(_VERSION, tensors)]


_VERSION = attrgetter("_version")


class _Steps:
    """Counts the steps of all optimizers."""

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._add)

    def _add(self, *args: Any) -> None:
        self.count += 1


_STEPS = _Steps()
