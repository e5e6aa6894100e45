"""What does a model do in one forward pass? Runs it once, and writes every operation down."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adapters.errors import UnsupportedError
from adapters.sharding import class_of
from adapters.sites.discovery.graph import Call, Graph, Node, Value
from adapters.sites.linear import is_linear

IN_PLACE = re.compile(r"[^_].*[^_]_|__i(add|sub|mul|truediv)__|__setitem__")
"""Names of functions that change their first argument."""
PLAIN = {"iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul", "itruediv": "div", "truediv": "div"}


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: by its name, and because no linear map is inside of it."""
    named = isinstance(module, (nn.LayerNorm, nn.GroupNorm)) or "norm" in type(module).__name__.lower()
    return named and not any(is_linear(inner) or isinstance(inner, nn.ModuleList) for inner in module.modules())


def opaque(module: nn.Module) -> Literal["linear", "norm"] | None:
    """As which operation a module counts, if its inside is not looked at."""
    if is_linear(module):
        return "linear"
    return "norm" if is_norm(module) else None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested tuples, lists and mappings (so of a model's output)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from tensors_in(entry)


class Recorder(TorchFunctionMode):
    """Writes a graph while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = Graph()
        self.modules = list(model.modules())
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.open: list[Call] = []
        self.ended = 0
        self.inside: nn.Module | None = None
        self._values: dict[int, Value] = {}
        self._storages: dict[int, set[int]] = {}

    # ------------------------------------------------------------------------------------------------- values

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor is now."""
        found = self._values.get(id(tensor))
        return self.fresh(tensor) if found is None else found

    def fresh(self, tensor: Tensor) -> Value:
        """A new value, which a tensor is from now on."""
        self.graph.tensors.append(tensor)
        self._values[id(tensor)] = value = len(self.graph.tensors) - 1
        self._storages.setdefault(_storage(tensor), set()).add(id(tensor))
        return value

    def changed(self, tensor: Tensor) -> Value:
        """A new value for a tensor that was changed in place, and for all that share its memory."""
        value = self.fresh(tensor)
        for other in self._storages[_storage(tensor)]:
            self._values[other] = value
        return value

    def uncalled(self) -> Iterator[str]:
        """Paths of linear maps whose weights were read though they were not called."""
        called = {id(call.module) for call in self.graph.calls}
        for module in self.modules:
            if is_linear(module) and id(module) not in called:
                value = self._values.get(id(getattr(module, "weight", None)))
                if value is not None and value in self.graph.users:
                    yield self.paths[id(module)]

    # --------------------------------------------------------------------------------------------- operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside is not None or not self.open:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        read = list(tensors_in((args, kwargs)))
        before = tuple(map(self.value, read))
        result = func(*args, **kwargs)
        if IN_PLACE.fullmatch(name) and isinstance(args[0] if args else None, Tensor):
            outs: tuple[Value, ...] = (self.changed(args[0]),)
        else:
            given = set(map(id, read))
            outs = tuple(self.fresh(tensor) for tensor in tensors_in(result) if id(tensor) not in given)
        if outs:
            numbers = tuple(given for given in args if isinstance(given, (int, float)))
            self._note("operation", _plain(name, func, kwargs), before, outs, numbers)
        return result

    def _note(
        self,
        kind: Literal["linear", "norm", "operation"],
        name: str,
        ins: tuple[Value, ...],
        outs: tuple[Value, ...],
        numbers: tuple[float, ...] = (),
    ) -> None:
        nodes = self.graph.nodes
        nodes.append(Node(len(nodes), kind, name, ins, outs, self.open[-1], numbers))

    # ------------------------------------------------------------------------------------------------ modules

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.inside is not None:
            return
        graph, parent = self.graph, self.open[-1] if self.open else None
        call = Call(module, self.paths[id(module)], parent, len(graph.calls), len(graph.nodes))
        named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        call.inputs = {key: self.value(given) for key, given in named if isinstance(given, Tensor)}
        if parent is None:
            graph.given.update(map(self.value, tensors_in((args, kwargs))))
        graph.calls.append(call)
        self.open.append(call)
        if opaque(module):
            self.inside = module

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.inside is not None and self.inside is not module:
            return None
        call, replaced = self.open[-1], None
        if self.inside is module:
            self.inside = None
            kind = opaque(module)
            assert kind is not None
            if kind == "linear" and isinstance(output, Tensor):
                replaced = output = self._cut(output)
            given = {id(tensor) for tensor in tensors_in((args, kwargs))}
            outs = tuple(self.fresh(tensor) for tensor in tensors_in(output) if id(tensor) not in given)
            self._note(kind, kind, tuple(call.inputs.values()), outs)
            if replaced is not None:
                self.graph.sources[outs[0]] = self._leaf
        self.open.pop()
        several = enumerate(output) if isinstance(output, (tuple, list)) else [(-1, output)]
        call.outputs = {number: self.value(found) for number, found in several if isinstance(found, Tensor)}
        call.end, call.closed = len(self.graph.nodes), self.ended
        self.ended += 1
        return replaced

    def _cut(self, output: Tensor) -> Tensor:
        """What a linear map gave, as the start of a graph of gradients that ends at the next linear maps."""
        if not output.is_floating_point():
            return output
        with torch.enable_grad(), torch._C.DisableTorchFunction():
            self._leaf = output.detach().requires_grad_()
            return self._leaf.clone()


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _plain(name: str, func: Any, kwargs: dict[str, Any]) -> str:
    """The name of a function without what says how it was written: x + y, x += y, torch.add(x, y)."""
    if name == "__get__":  # an attribute of tensors that is a tensor, such as T
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    plain = name.strip("_")
    plain = PLAIN.get(plain, plain)
    return "scaled_add" if plain == "add" and kwargs.get("alpha", 1) != 1 else plain


def plain_class(model: nn.Module) -> type[Any]:
    """The class of a model without the verbs that it may have been given."""
    kind = class_of(model)
    return getattr(kind, "_adapted_class", kind)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run a model as its class wrote it, in evaluation mode; its modes and all random numbers stay as they were."""
    kind = type(model)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        model.__class__ = plain_class(model)
        model.eval()
        try:
            yield
        finally:
            model.__class__ = kind
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy)


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Graph:
    """The graph of one forward pass of `model(**inputs)`.

    Raises:
        UnsupportedError: the pass fails; it names the module, and has the model's own error as its cause.
    """
    recorder = Recorder(model)
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        for module in model.modules():
            for handle in (
                module.register_forward_pre_hook(recorder.enter, with_kwargs=True, prepend=True),
                module.register_forward_hook(recorder.leave, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            with recorder:
                model(**inputs)
        except Exception as error:
            where = recorder.open[-1] if recorder.open else None
            path = (where.path or "its own forward") if where else "its own forward"
            raise UnsupportedError(
                f"A forward pass of {type(model).__name__} with {described(inputs)} fails in {path}"
                f" ({type(where.module if where else model).__name__}): {type(error).__name__}: {error}"
            ) from error
    recorder.graph.uncalled = tuple(recorder.uncalled())
    return recorder.graph


def given_to(part: nn.Module, whole: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, by their names, that a part of a model is called with in one forward pass of the whole.

    Raises:
        UnsupportedError: the pass fails before it comes to the part, or does not.
    """
    seen: dict[str, Any] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not seen:
            seen.update(zip(inspect.signature(module.forward).parameters, args), **kwargs)

    handle, reason = part.register_forward_pre_hook(keep, with_kwargs=True, prepend=True), "it does not call it"
    try:
        with untouched(whole), torch.no_grad():
            whole(**inputs)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    finally:
        handle.remove()
    seen.pop("past_key_values", None)  # what this pass put into a cache is not to be there in the next
    if not seen:
        names = f"{type(part).__name__} in a forward pass of {type(whole).__name__} with {described(inputs)}"
        raise UnsupportedError(f"Nothing is given to {names}: {reason}")
    return seen


def described(inputs: Mapping[str, Any]) -> str:
    """Names and shapes of inputs, for people."""
    parts = (f"{name} {list(value.shape)}" if isinstance(value, Tensor) else name for name, value in inputs.items())
    return ", ".join(parts) or "no input"
