"""Adapters inside of experts whose weights are packed into parameters [E, O, I], in whatever way a model runs them.

While such a module runs with active adapters, and only then, `Multiplying` sees its calls of torch functions. Where a
weight is rearranged or taken apart (`W[e]`, `W[ids]`, `W.mT`), the factors of its update are treated alike, and where
something is multiplied by a weight, what comes out is changed in the same way:

    W' = diag(scale) W + F_2 F_1,       x W'^T = (x W^T) * scale + x F_1^T F_2^T

So the loop over experts, batched and grouped products give the same numbers, and W' is made only for functions that
are not known here. Experts are given the tokens of all rows in one list. Where a block gives rows different adapters,
the module runs once for each of them, with its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adapters.call import CALL
from adapters.composition.steps import (
    Adapter,
    Averaged,
    Branches,
    PositionSplit,
    RowChoice,
    RowSplit,
    Step,
    TaskSplit,
)
from adapters.errors import CompositionError, UnsupportedError
from adapters.methods.base import Effect
from adapters.methods.experts import PerExpert
from adapters.methods.parts import matched
from adapters.methods.state import HiddenState
from adapters.runtime.following import flat, named

_MARK = "_adapter_experts"

Acting = list[tuple[Any, Step]]
"""(hooked site, what acts there)."""
Pieces = list[tuple[Tensor | None, Acting]]
"""(numbers of tokens, None for all; what acts on them)."""


# ------------------------------------------------------------------------------------------------- which adapters


def divides(step: Step) -> bool:
    """Whether a step gives rows or positions different adapters.

    Raises:
        CompositionError: it does so inside of another block, or is of a kind that has no meaning inside of experts.
    """
    if isinstance(step, (RowSplit, TaskSplit, PositionSplit)):
        for child in step.children:
            if child is not None:
                divides(child)
        return True
    _check(step)
    return False


def _check(step: Step) -> None:
    if isinstance(step, Averaged):
        for child in step.children:
            if child is not None:
                _check(child)
    elif not isinstance(step, Adapter) or not isinstance(step.module, PerExpert):
        name = f"{step.block!r}" if isinstance(step, Branches) else type(step).__name__
        raise CompositionError(
            f"{name} cannot act at packed experts: their adapters add to the weights, and tokens of all rows are in "
            "one list. There, Parallel, BatchSplit, MultiTask and Split can stand around all others, and Average "
            "inside of them. Let the adapters leave out the experts (places), or use such a block."
        )


@dataclass
class Tokens(HiddenState):
    """Numbers of tokens, [B, S, 1], on their way through the blocks of a step; `found` is where they arrive."""

    found: list[tuple[Tensor, Step]] = field(default_factory=list)


@dataclass(frozen=True)
class Arriving:
    """Stands for a step that does not divide: notes which tokens it is for."""

    step: Step

    def run(self, state: Tokens) -> Tokens:
        state.found.append((state.h.flatten(), self.step))
        return state


def _arriving(step: Step) -> Any:
    if isinstance(step, RowChoice) and torch.compiler.is_compiling():
        raise UnsupportedError(
            "adapter_names cannot be compiled where adapters act inside of packed experts: which tokens they get "
            "depends on the names. Do not compile the model, or let the adapters leave out the experts (places)."
        )
    if isinstance(step, (RowSplit, TaskSplit, PositionSplit)):
        return replace(step, children=tuple(None if c is None else _arriving(c) for c in step.children))
    return Arriving(step)


def _pieces(acting: Acting, tokens: int, device: torch.device) -> Pieces:
    """Which tokens get which adapters."""
    if not any(divides(step) for _, step in acting):
        return [(None, acting)]
    extent, site = CALL.now.extent, acting[0][0].site
    if extent is None or extent[0] * extent[1] != tokens:
        raise UnsupportedError(
            f"The experts of {site.address} are given {tokens} tokens by a layer with (rows, positions) {extent}, so "
            "nothing tells which row each belongs to. Use one adapter for all rows."
        )
    numbers = torch.arange(tokens, device=device)
    pieces: list[tuple[Tensor, Acting]] = [(numbers, [])]
    for hooked, step in acting:
        state = Tokens(numbers.view(*extent, 1), found=[])
        _arriving(step).run(state)
        kinds = torch.zeros_like(numbers)
        for kind, (own, _) in enumerate(state.found, 1):
            kinds[own] = kind
        pieces = [
            (part, [*before, (hooked, state.found[kind - 1][1])] if kind else before)
            for own, before in pieces
            for kind in range(len(state.found) + 1)
            if len(part := own[kinds[own] == kind])
        ]
    return [*pieces]


# ------------------------------------------------------------------------------------------------------ the weights


@dataclass(frozen=True)
class Update:
    """F_n ... F_1, times `share`; in front of it x passes `dropout`."""

    factors: tuple[Tensor, ...]
    share: float
    dropout: nn.Module | None


@dataclass(frozen=True)
class Changed:
    """What is to take the place of a weight [..., O, I], or of [..., I, O] where `mirrored`.

    Attributes:
        updates: What is added: factors [..., ., .], as they are before `mirrored`.
        scale: [..., O, 1], by what the rows of the weight are multiplied; None for 1.
        mirrored: Whether the weight is [..., I, O] now.
    """

    updates: tuple[Update, ...]
    scale: Tensor | None
    mirrored: bool = False

    def each(self, function: Callable[[Tensor], Tensor]) -> Changed:
        """With other factors and scale."""
        updates = tuple(replace(one, factors=tuple(map(function, one.factors))) for one in self.updates)
        return replace(self, updates=updates, scale=None if self.scale is None else function(self.scale))

    def whole(self, weight: Tensor) -> Tensor:
        """W', from the weight as it is arranged now."""
        own = weight.mT if self.mirrored else weight
        changed = own if self.scale is None else own * self.scale
        for one in self.updates:
            if one.dropout is not None and one.dropout.training:
                raise UnsupportedError(
                    "The experts of this model multiply in a way that dropout cannot get into. Set dropout to 0."
                )
            changed = changed + one.share * reduce(lambda product, factor: factor @ product, one.factors)
        return (changed.mT if self.mirrored else changed).to(weight.dtype)

    def result(self, y: Tensor, x: Tensor, times: Callable[[Tensor, Tensor], Tensor], scale: Tensor | None) -> Tensor:
        """What comes out in place of y, the product of x and W: `times` multiplies by a factor, `scale` is for y."""
        changed = y if scale is None else y * scale
        for one in self.updates:
            through = x if one.dropout is None else one.dropout(x)
            for factor in one.factors:
                through = times(matched(through, factor), factor)
            changed = changed + (through if one.share == 1 else through * one.share)
        return changed.to(y.dtype)


def changed_by(step: Step) -> Changed:
    """What a step that does not divide does to a weight [E, O, I]."""
    if isinstance(step, Averaged):
        weights = step.block.weights  # type: ignore[attr-defined]
        parts = [Changed((), None) if child is None else changed_by(child) for child in step.children]
        updates = tuple(
            replace(one, share=one.share * weight) for part, weight in zip(parts, weights) for one in part.updates
        )
        if all(part.scale is None for part in parts) and math.isclose(sum(weights), 1):
            return Changed(updates, None)
        site: Any = next(step.leaves()).site
        one = site.weight.new_ones(site.experts, site.out_features, 1)
        scales = [weight * (one if part.scale is None else part.scale) for part, weight in zip(parts, weights)]
        return Changed(updates, torch.stack(scales).sum(0))
    assert isinstance(step, Adapter) and isinstance(step.module, PerExpert)
    module = step.module
    effect: Effect = module.effect()
    updates = (Update(tuple(effect.factors), 1.0, module.dropout),) if effect.factors else ()
    return Changed(updates, None if effect.scale is None else effect.scale[..., None])


class Multiplying(TorchFunctionMode):
    """Sees what a module of experts does with its parameters, and lets their updates take part.

    Args:
        changes: (parameter, what takes its place).
        replaced: (bias, what takes its place).
    """

    def __init__(self, changes: Iterable[tuple[Tensor, Changed]], replaced: Iterable[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.known = list(changes)
        self.replaced = list(replaced)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(self._is_known(value) for value in flat((*args, *kwargs.values()))):
            return func(*args, **kwargs)
        handler, name = _HANDLERS.get(func), getattr(func, "__name__", "")
        if handler is None and name in _FACTS:
            handler = Multiplying.fact
        elif handler is None and name in _GROUPED:
            handler = Multiplying.grouped
        result = None if handler is None else handler(self, func, args, kwargs)
        return self.otherwise(func, args, kwargs) if result is None else result

    def _is_known(self, value: Any) -> bool:
        if not isinstance(value, Tensor):
            return False
        return any(value is one for one, _ in self.known) or any(value is one for one, _ in self.replaced)

    def find(self, value: Any) -> Changed | None:
        """What is to take the place of a tensor, if it is such a weight."""
        return next((changed for one, changed in self.known if one is value), None)

    def note(self, weight: Tensor, changed: Changed) -> Tensor:
        """`weight`, of which this is known from now on."""
        self.known.append((weight, changed))
        return weight

    def otherwise(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function that is not known here gets the whole of what takes the place of a weight."""
        return func(*map(self._whole, args), **{name: self._whole(value) for name, value in kwargs.items()})

    def _whole(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._whole, value))
        if (changed := self.find(value)) is not None:
            return changed.whole(value)
        return next((other for one, other in self.replaced if one is value), value)

    def fact(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What is no tensor: sizes, dtype, device."""
        found = func(*args, **kwargs)
        return None if isinstance(found, Tensor) else found

    # ------------------------------------------------------------------------------------------------ arranging

    def take(self, func: Any, args: Any, kwargs: Any) -> Any:
        """W[e] and W[ids]."""
        weight, index = args
        changed = self.find(weight)
        if changed is None or isinstance(index, (tuple, list)) or weight.dim() < 3:
            return None
        if isinstance(index, Tensor) and (index.dtype is torch.bool or index.dim() > 1):
            return None
        return self.note(func(weight, index), changed.each(lambda tensor: tensor[index]))

    def mirror(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The last two dimensions change places."""
        weight, changed = args[0], self.find(args[0])
        dims = sorted(dim % weight.dim() for dim in (*args[1:], *kwargs.values()))
        if changed is None or dims not in ([], [weight.dim() - 2, weight.dim() - 1]):
            return None
        return self.note(func(*args, **kwargs), replace(changed, mirrored=not changed.mirrored))

    def carry(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Another memory, dtype or device."""
        if (changed := self.find(args[0])) is None:
            return None
        return self.note(func(*args, **kwargs), changed)

    # ---------------------------------------------------------------------------------------------- multiplying

    def linear(self, func: Any, args: Any, kwargs: Any) -> Any:
        """F.linear(x, W, b)."""
        given = {**dict(zip(("input", "weight", "bias"), args)), **kwargs}
        x, weight, bias = given["input"], given["weight"], self._whole(given.get("bias"))
        changed = self.find(weight)
        if changed is None or self._is_known(x) or changed.mirrored:
            return None
        y = changed.result(func(x, weight), x, F.linear, None if changed.scale is None else changed.scale.mT)
        return y if bias is None else y + bias

    def matmul(self, func: Any, args: Any, kwargs: Any) -> Any:
        """x @ W^T, or W @ x."""
        if len(args) != 2 or kwargs:
            return None
        left, right = args
        changed = self.find(right)
        if changed is not None and changed.mirrored and not self._is_known(left):
            scale = None if changed.scale is None else changed.scale.mT
            return changed.result(func(left, right), left, lambda x, factor: torch.matmul(x, factor.mT), scale)
        changed = self.find(left)
        if changed is not None and not changed.mirrored and not self._is_known(right) and right.dim() > 1:
            return changed.result(func(left, right), right, lambda x, factor: torch.matmul(factor, x), changed.scale)
        return None

    def grouped(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Tokens that are sorted by their experts, times W^T; `offs` is where those of each expert end."""
        given = {**dict(zip(("input", "weight"), args)), **kwargs}
        if "weight" not in given and "mat_a" in given:
            given["input"], given["weight"] = given.pop("mat_a"), given.pop("mat_b")
        if len(args) > 2 or "offs" not in given:
            return None
        x, weight, offs = given["input"], given["weight"], given["offs"]
        changed = self.find(weight)
        if changed is None or not changed.mirrored or self._is_known(x):
            return None
        scale = None
        if changed.scale is not None:
            scale = changed.scale[..., 0]
            if scale.dim() > 1:
                numbers = torch.arange(x.shape[0], device=x.device, dtype=offs.dtype)
                scale = scale[torch.searchsorted(offs, numbers, right=True).clamp(max=len(offs) - 1)]

        def times(x: Tensor, factor: Tensor) -> Tensor:
            out = factor.shape[-2]
            more = -factor.shape[-1] % ALIGNED
            factor = F.pad(factor, (0, more, 0, -out % ALIGNED))
            return func(F.pad(x, (0, more)), factor.mT, offs=offs)[..., :out]  # type: ignore[no-any-return]

        return changed.result(func(*args, **kwargs), x, times, scale)


_FACTS = frozenset(
    ("__get__", "__len__", "size", "stride", "dim", "numel", "data_ptr", "is_contiguous", "element_size")
)
_GROUPED = frozenset(("_grouped_mm", "grouped_mm", "grouped_mm_fallback"))
"""Names of functions: those that only tell something of a tensor, and products of tokens that are sorted."""
ALIGNED = 8
"""Kernels of grouped products want rows whose length is a multiple of 16 bytes."""

_HANDLERS: Mapping[Any, Callable[[Multiplying, Any, Any, Any], Any]] = {
    function: handler
    for handler, functions in (
        (Multiplying.take, named("__getitem__")),
        (Multiplying.mirror, named("transpose", "swapaxes", "t")),
        (Multiplying.mirror, [Tensor.mT.__get__, Tensor.T.__get__]),  # type: ignore[attr-defined]
        (Multiplying.carry, named("contiguous", "clone", "to", "type_as", "float", "half", "bfloat16", "double")),
        (Multiplying.linear, named("linear")),
        (Multiplying.matmul, named("matmul", "mm", "bmm", "__matmul__")),
    )
    for function in functions
}
"""Functions of torch -> what is done where they are called with a weight. All others get the whole of it."""


# ------------------------------------------------------------------------------------------------------ the module


class Serving:
    """Handle of one site at a module of experts: all that are there are served by one pair of hooks."""

    def __init__(self, hooked: Any) -> None:
        self.hooked = hooked
        module: nn.Module = hooked.site.module
        served = module.__dict__.get(_MARK)
        if served is None:
            served = module.__dict__[_MARK] = ServedExperts(module)
        served.hooked.append(hooked)

    def remove(self) -> None:
        """Serve the site no longer."""
        module = self.hooked.site.module
        served = module.__dict__[_MARK]
        served.hooked.remove(self.hooked)
        if not served.hooked:
            served.remove()
            del module.__dict__[_MARK]


@dataclass(eq=False)
class Run:
    """One call of a module of experts: what is active, and the pieces that are still to be computed."""

    module: nn.Module
    mode: Multiplying
    rest: Pieces
    own: Tensor | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tokens: int
    site: None = None


class ServedExperts:
    """Hooks of a module of experts.

    Attributes:
        hooked: The sites that are served.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.hooked = module, list[Any]()
        self.handles = (
            module.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True),
            module.register_forward_hook(self.leave, prepend=True, with_kwargs=True, always_call=True),
        )

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plans = [(hooked, hooked.now()) for hooked in self.hooked]
        acting = [(hooked, plan.step) for hooked, plan in plans if plan is not None]
        if not acting:
            return None
        states = args[0] if args else next(iter(kwargs.values()))
        (own, first), *rest = _pieces(acting, len(states), states.device)
        run = Run(module, _multiplying(first), rest, own, args, kwargs, len(states))
        CALL.now.watches.append(run)
        run.mode.__enter__()  # type: ignore[no-untyped-call]
        return None if own is None else _of_tokens(run, own)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        watches = CALL.now.watches
        if not watches or not isinstance(watches[-1], Run) or watches[-1].module is not module:
            return None
        run = watches.pop()
        run.mode.__exit__(None, None, None)
        if output is None or run.own is None:
            return None
        numbers, outputs = [run.own], [output]
        for own, acting in run.rest:
            assert own is not None
            own_args, own_kwargs = _of_tokens(run, own)
            with _multiplying(acting):
                outputs.append(module.forward(*own_args, **own_kwargs))
            numbers.append(own)
        order = torch.cat(numbers).argsort()
        if isinstance(output, Tensor):
            return torch.cat(outputs)[order]
        return type(output)(torch.cat(parts)[order] for parts in zip(*outputs))


def _multiplying(acting: Acting) -> Multiplying:
    changes, replaced = [], []
    for hooked, step in acting:
        site, changed = hooked.site, changed_by(step)
        stored, bias = site.stored, site.stored_bias
        if stored.dim() == 2:
            changed = changed.each(lambda tensor: tensor[0])
        changes.append((stored, replace(changed, mirrored=site.transposed)))
        if changed.scale is not None and bias is not None:
            replaced.append((bias, (bias * changed.scale[..., 0]).to(bias.dtype)))
    return Multiplying(changes, replaced)


def _of_tokens(run: Run, own: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the call for some tokens alone."""

    def some(value: Any) -> Any:
        is_of_tokens = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == run.tokens
        return value[own] if is_of_tokens else value

    return tuple(map(some, run.args)), {name: some(value) for name, value in run.kwargs.items()}
