"""What does a model do to its attention scores? Follows tensors through the torch functions that it calls.

A product of queries and keys is the beginning (`Scores`), a softmax turns it into probabilities (`Columns`). What is
done to all scores alike is done to those of a prefix too; what has a number for every key is the model's own keys'
affair. Any function that is not known here loses the trace, and what follows from it is `Lost`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adapters.sites.site import AttentionSite

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """How a model arranges [B, H, Q, ...]: `lead` are its dimensions but the last, `order` where they come from."""

    rows: int
    heads: int
    queries: int
    lead: tuple[int, ...]
    order: tuple[int, ...] = ()

    def canonical(self, tensor: Tensor) -> Tensor:
        """[..., X] of the model as [B, H, Q, X]."""
        if self.order:
            tensor = tensor.reshape(*self.lead, tensor.shape[-1])
            tensor = tensor.permute(*map(self.order.index, range(len(self.order))), -1)
        return tensor.reshape(self.rows, self.heads, self.queries, tensor.shape[-1])

    def restored(self, tensor: Tensor) -> Tensor:
        """[B, H, Q, X] as the model arranges it, [*lead, X]."""
        if self.order:
            lead = [self.lead[self.order.index(i)] for i in range(len(self.order))]
            tensor = tensor.reshape(*lead, tensor.shape[-1]).permute(*self.order, -1)
        return tensor.reshape(*self.lead, tensor.shape[-1])


@dataclass(frozen=True, eq=False)
class Scores:
    """A tensor [..., Q, K] that follows from a product of queries and keys.

    Attributes:
        query: Left factor of the product, [*, Q, D], leading dimensions as in `lead`.
        lead: Sizes of the product's leading dimensions, as they are in `query`: batch and heads, in that order.
        factor: By what the model had multiplied the keys.
        arranged: Sizes of all dimensions of the product but the last.
        order: Where these come from in (*lead, Q), if the product has another order.
        steps: What the model then did to all scores alike.
    """

    query: Tensor
    lead: tuple[int, ...]
    factor: Any
    arranged: tuple[int, ...]
    order: tuple[int, ...] = ()
    steps: tuple[Apply, ...] = ()

    def carried(self, step: Apply) -> Scores:
        """After `step` was done to all scores."""
        return replace(self, steps=(*self.steps, step))

    def layout(self, site: AttentionSite, shape: tuple[int, ...]) -> Layout | None:
        """The layout in an attention with these heads, of which scores now have `shape`; None if it cannot be."""
        lead, heads = self.lead, site.query_heads
        if len(lead) == 1 and len(shape) > 3:  # flattened for the product only
            lead = shape[:-2]
        if len(lead) == 1:
            rows = lead[0] // heads
        elif len(lead) == 3 and lead[2] == heads and lead[1] not in (heads, site.num_heads):  # windows of each row
            rows = lead[0] * lead[1]
        else:
            rows, heads = lead[0], math.prod(lead[1:])
        if rows * heads != math.prod(self.lead) or heads % site.query_heads:
            return None
        return Layout(rows, heads, self.query.shape[-2], self.arranged, self.order)


@dataclass(eq=False)
class Prefix:
    """The values [B or 1, H, P, head_dim] that prefix columns belong to; None if the columns are weighted already."""

    values: Tensor | None
    used: bool = False


@dataclass(frozen=True, eq=False)
class Columns:
    """Probabilities [..., Q, K] and those of the prefix, `columns` [..., Q, P], arranged alike."""

    columns: Tensor
    prefix: Prefix
    layout: Layout

    def carried(self, step: Apply) -> Columns:
        """After `step` was done to all probabilities."""
        return replace(self, columns=step(self.columns))


@dataclass(frozen=True, eq=False)
class Lost:
    """Something that follows from scores in a way that nobody can follow, since `function` was called.

    `probable` where it follows from probabilities.
    """

    function: str
    probable: bool = False


@dataclass(frozen=True, eq=False)
class Statistic:
    """A number per query that follows from its scores, such as their maximum."""


Node = Scores | Columns | Lost | Statistic


class Notes:
    """What is known of some tensors, by their identity. They are kept alive, so that no other takes their place."""

    def __init__(self) -> None:
        self.entries: list[tuple[Tensor, Any]] = []
        self._numbers: dict[int, int] = {}
        self._traced = torch.compiler.is_compiling()  # then tensors have no id

    def find(self, value: Any) -> int:
        """Number of the note on a tensor; -1 if there is none."""
        if not self._traced:
            return self._numbers.get(id(value), -1)
        for number, (tensor, _) in enumerate(self.entries):
            if tensor is value:
                return number
        return -1

    def get(self, value: Any) -> Any:
        """What is known of a tensor, or None."""
        number = self.find(value)
        return None if number < 0 else self.entries[number][1]

    def put(self, tensor: Tensor, known: Any) -> None:
        """Note something; what was known of the tensor is forgotten."""
        number = self.find(tensor)
        if number >= 0:
            self.entries[number] = tensor, known
        else:
            if not self._traced:
                self._numbers[id(tensor)] = len(self.entries)
            self.entries.append((tensor, known))


class Following(TorchFunctionMode):
    """Follows scores and probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes, self._factors = Notes(), Notes()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = self.handlers.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs)
        out = func(*args, **kwargs)
        return self.lose(func, args, kwargs, out) if self._nodes.entries else out

    @property
    def handlers(self) -> Mapping[Any, Handler]:
        """What is done where a function is called."""
        return FOLLOWED

    def node(self, value: Any) -> Node | None:
        """What is known of a tensor."""
        return self._nodes.get(value)  # type: ignore[no-any-return]

    def note(self, tensor: Tensor, node: Node) -> Tensor:
        """`tensor`, of which this is known from now on."""
        self._nodes.put(tensor, node)
        return tensor

    def lose(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Any:
        """`out`, noted as lost if it follows from scores."""
        for value in flat((*args, *kwargs.values())):
            if (node := self.node(value)) is not None:
                if not isinstance(node, Lost):
                    node = Lost(getattr(func, "__name__", str(func)), isinstance(node, Columns))
                for result in flat((out,)):
                    if isinstance(result, Tensor):
                        self.note(result, node)
                break
        return out

    def factor(self, key: Tensor) -> Any:
        """By what a tensor has been multiplied."""
        factor = self._factors.get(key)
        return 1.0 if factor is None else factor

    def elementwise(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function of every element, and of tensors that are broadcast to all."""
        at, node = self._first(args)
        own = args[at] if node is not None else None
        out = func(*args, **kwargs)
        if node is None or own is None:
            self._scale(func, args, out)
            return self.lose(func, args, kwargs, out) if self._nodes.entries else out
        others = [value for value in (*args[:at], *args[at + 1 :], *kwargs.values()) if isinstance(value, Tensor)]
        per_key = any(self._per_key(func, own, other) for other in others)
        reversed_ = at > 0 and (func in DIVIDING or func in SUBTRACTING)
        if not isinstance(out, Tensor) or out.shape[:-1] != own.shape[:-1] or (per_key and reversed_):
            return self.lose(func, args, kwargs, out)
        if per_key:  # masks and biases are for the model's own keys
            return self.note(out, node)
        in_place = func in IN_PLACE

        def step(columns: Tensor) -> Tensor:
            columns = columns.clone() if in_place else columns
            return func(*args[:at], columns, *args[at + 1 :], **kwargs)  # type: ignore[no-any-return]

        return self.note(out, node.carried(step))

    def _per_key(self, func: Any, own: Tensor, other: Tensor) -> bool:
        """Whether `other` has a number for every key of the scores `own`."""
        if not other.dim() or isinstance(self.node(other), Statistic):
            return False
        if own.shape[-1] == 1:
            return func not in SCALING
        return other.shape[-1] != 1

    def _first(self, args: Sequence[Any]) -> tuple[int, Scores | Columns | None]:
        """The argument that holds scores or probabilities: of several, those that were computed first."""
        at, first, found = 0, None, len(self._nodes.entries)
        for i, value in enumerate(args):
            number = self._nodes.find(value)
            if 0 <= number < found and isinstance(node := self._nodes.entries[number][1], (Scores, Columns)):
                at, first, found = i, node, number
        return at, first

    def _scale(self, func: Any, args: Sequence[Any], out: Any) -> None:
        """Note by what keys have been multiplied before their product with queries."""
        if func in SCALING and len(args) == 2:
            divides = func in DIVIDING
            for tensor, number in (args, args[::-1]) if not divides else (args,):
                if isinstance(tensor, Tensor) and (not isinstance(number, Tensor) or not number.dim()):
                    old = self.factor(tensor)
                    self._factors.put(out, old / number if divides else old * number)
                    return

    def arrange(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Another shape, dtype or device."""
        out = func(*args, **kwargs)
        own, node = args[0], self.node(args[0])
        if isinstance(node, (Scores, Columns)):
            if out.shape[-1] != own.shape[-1] or out.numel() != own.numel():
                return self.lose(func, args, kwargs, out)
            lead, dtype, device = tuple(out.shape[:-1]), out.dtype, out.device
            return self.note(out, node.carried(lambda c: c.reshape(*lead, c.shape[-1]).to(dtype=dtype, device=device)))
        if isinstance(node, Statistic):
            return self.note(out, node)
        if (factor := self._factors.get(own)) is not None:
            self._factors.put(out, factor)
        return self.lose(func, args, kwargs, out) if self._nodes.entries else out

    def reorder(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Another order of dimensions: keys may be arranged for their product so, scores may not."""
        out = func(*args, **kwargs)
        if (factor := self._factors.get(args[0])) is not None:
            self._factors.put(out, factor)
        return self.lose(func, args, kwargs, out) if self._nodes.entries else out

    def pick(self, func: Any, args: Any, kwargs: Any) -> Any:
        """More or fewer keys (a slice, a concatenation); the prefix stays what it is."""
        out = func(*args, **kwargs)
        for value in flat(args[:1]):
            node = self.node(value)
            if isinstance(node, (Scores, Columns)) and isinstance(out, Tensor) and out.shape[:-1] == value.shape[:-1]:
                return self.note(out, node)
        return self.lose(func, args, kwargs, out) if self._nodes.entries else out

    def statistic(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The largest score of every query; of two tensors the larger elements."""
        if len(args) > 1 and isinstance(args[1], Tensor):
            return self.elementwise(func, args, kwargs)
        out = func(*args, **kwargs)
        if isinstance(self.node(args[0]), Scores):
            for result in flat((out,)):
                if isinstance(result, Tensor):
                    self.note(result, Statistic())
            return out
        return self.lose(func, args, kwargs, out) if self._nodes.entries else out

    def dropout(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Dropout of probabilities, of all columns together as where the prefix is a part of the keys."""
        node = self.node(args[0]) if args else None
        if not isinstance(node, Columns):
            return self.elementwise(func, args, kwargs)
        if node.prefix.values is None:
            return self.note(func(*args, **kwargs), node)
        length = node.columns.shape[-1]
        both = func(torch.cat([node.columns, args[0]], -1), *args[1:], **kwargs)
        return self.note(both[..., length:], replace(node, columns=both[..., :length]))


def flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


Handler = Callable[[Any, Any, Any, Any], Any]


def named(*names: str) -> list[Callable[..., Any]]:
    """The functions of torch that have these names."""
    owners = (torch, torch.Tensor, F, torch.special)
    return [function for name in names for owner in owners if (function := getattr(owner, name, None)) is not None]


DIVIDING = frozenset(named("div", "divide", "true_divide", "div_", "__truediv__", "__itruediv__"))
SCALING = DIVIDING.union(named("mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__"))
SUBTRACTING = frozenset(named("sub", "subtract", "sub_", "__sub__", "__isub__"))
ADDING = frozenset(named("add", "add_", "__add__", "__radd__", "__iadd__"))
IN_PLACE = frozenset(
    named(
        *("div_", "__itruediv__", "mul_", "__imul__", "sub_", "__isub__", "add_", "__iadd__"),
        *("masked_fill_", "clamp_", "tanh_", "dropout_"),
    )
)
FOLLOWED: Mapping[Any, Handler] = {
    function: handler
    for handler, functions in (
        (Following.dropout, named("dropout", "dropout_")),
        (Following.statistic, named("max", "amax")),
        (Following.pick, named("cat", "concat", "concatenate", "narrow", "__getitem__")),
        (Following.reorder, named("transpose", "permute", "swapaxes", "expand", "repeat", "repeat_interleave")),
        (
            Following.arrange,
            named(
                *("view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone"),
                *("to", "type", "type_as", "float", "half", "bfloat16", "double"),
            ),
        ),
        (
            Following.elementwise,
            [
                *SCALING,
                *SUBTRACTING,
                *ADDING,
                *named("where", "masked_fill", "masked_fill_", "maximum", "minimum", "clamp", "clamp_", "clamp_min"),
                *named("clamp_max", "tanh", "tanh_", "neg", "__neg__", "nan_to_num"),
            ],
        ),
    )
    for function in functions
}
"""Functions of torch -> what the watch does where they are called. All others lose the trace."""
