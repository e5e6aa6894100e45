"""One forward pass as plain data: values, the operations that make them, and the modules between which they go.

A value is a number. Linear maps and norms are one operation each, whatever they do inside; all else is what torch was
asked for, by its plain name ("add", "softmax", "matmul").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from torch import Tensor, nn

Value = int

ARRANGED = frozenset({"permute", "transpose", "swapaxes", "movedim", "t", "T", "mT", "roll", "pad", "constant_pad_nd"})
SHAPED = frozenset({"view", "reshape", "view_as", "reshape_as", "contiguous", "clone", "flatten", "unflatten", "alias"})
"""Operations that change no more of a tensor than its shape."""
PASSED = frozenset(
    {
        *("dropout", "feature_dropout", "detach", "to", "type_as", "float", "half", "bfloat16", "double"),
        *("squeeze", "unsqueeze", "getitem", "narrow", "select", "expand", "expand_as", "repeat", "repeat_interleave"),
        *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", *ARRANGED, *SHAPED),
    }
)
"""Operations that leave the numbers of a tensor as they are, and only arrange or choose them."""

SCALED = frozenset(["mul", "div", "true_divide", "multiply", "neg"])
"""Operations that multiply by something."""


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module, path: Which one; the path counts from the traced model, and is empty for that itself.
        parent: The call inside of which it is.
        inputs: Position or name of an argument -> the tensor that it is.
        outputs: Position in what comes out -> the tensor that it is; -1 for a tensor that comes out alone.
        start, end: The operations inside: numbers from `start` up to `end`.
        order, closed: Calls are numbered as they begin, and as they end.
    """

    module: nn.Module
    path: str
    parent: Call | None
    order: int
    start: int
    end: int = -1
    closed: int = -1
    inputs: dict[int | str, Value] = field(default_factory=dict)
    outputs: dict[int, Value] = field(default_factory=dict)

    def __contains__(self, number: int) -> bool:
        return self.start <= number < self.end

    def around(self) -> Iterator[Call]:
        """Itself and the calls inside of which it is, from the inside."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        call: The linear map or norm that it is, else the innermost module that asked for it.
        numbers: Those that it was given beside tensors.
    """

    number: int
    kind: Literal["linear", "norm", "operation"]
    name: str
    ins: tuple[Value, ...]
    outs: tuple[Value, ...]
    call: Call
    numbers: tuple[float, ...] = ()

    @property
    def path(self) -> str:
        """Path of the module."""
        return self.call.path


@dataclass(eq=False)
class Graph:
    """Everything that one forward pass did.

    Attributes:
        nodes: The operations, in order.
        calls: The calls of modules, in the order in which they began.
        tensors: The tensor of every value.
        given: The values that the model was given.
        sources: Output of a linear map -> the leaf tensor of which gradients are asked.
        uncalled: Paths of linear maps whose weights were read though they were not called.
    """

    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    given: set[Value] = field(default_factory=set)
    sources: dict[Value, Tensor] = field(default_factory=dict)
    uncalled: tuple[str, ...] = ()

    @cached_property
    def producer(self) -> dict[Value, Node]:
        """Value -> the operation that made it; none for parameters, constants and what the model was given."""
        return {value: node for node in self.nodes for value in node.outs}

    @cached_property
    def users(self) -> dict[Value, list[Node]]:
        """Value -> the operations that read it."""
        found: dict[Value, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in dict.fromkeys(node.ins):
                found[value].append(node)
        return found

    @cached_property
    def of_data(self) -> set[Value]:
        """The values that depend on what the model was given."""
        found = set(self.given)
        for node in self.nodes:
            if not found.isdisjoint(node.ins):
                found.update(node.outs)
        return found

    def nearest(
        self, value: Value, wanted: Callable[[Node], bool], within: Call, stop: Iterable[Value] = ()
    ) -> list[Node]:
        """The operations of a call behind `value` that are wanted, without looking behind those or behind `stop`."""
        found: list[Node] = []
        seen, todo = set(stop), [value]
        while todo:
            value = todo.pop()
            node = self.producer.get(value)
            if value in seen or node is None or node.number not in within:
                continue
            seen.add(value)
            if wanted(node):
                found.append(node)
            else:
                todo.extend(node.ins)
        return sorted(set(found), key=lambda node: node.number)

    def readers(self, value: Value, wanted: Callable[[Node], bool], within: Call) -> list[Node]:
        """The operations of a call that read `value` and are wanted, without looking through those."""
        found: list[Node] = []
        seen, todo = set[Value](), [value]
        while todo:
            value = todo.pop()
            if value in seen:
                continue
            seen.add(value)
            for node in self.users.get(value, ()):
                if node.number not in within:
                    continue
                if wanted(node):
                    found.append(node)
                else:
                    todo.extend(node.outs)
        return sorted(set(found), key=lambda node: node.number)


def is_linear_map(node: Node) -> bool:
    """Whether an operation is a call of a linear map."""
    return node.kind == "linear"


class Region:
    """What one call did: which of its values depend on which."""

    def __init__(self, graph: Graph, call: Call) -> None:
        self.graph, self.call = graph, call
        self._behind: dict[Value, int] = {}
        self._bit: dict[Value, int] = {}
        for node in graph.nodes[call.start : call.end]:
            behind = 0
            for value in node.ins:
                behind |= self._known(value)
            for value in node.outs:
                self._behind[value] = behind | self._new_bit(value)

    def _new_bit(self, value: Value) -> int:
        return 1 << self._bit.setdefault(value, len(self._bit))

    def _known(self, value: Value) -> int:
        if value not in self._behind:
            self._behind[value] = self._new_bit(value)
        return self._behind[value]

    def depends(self, value: Value, on: Value) -> bool:
        """Whether `value` is `on`, or was made of it inside of this call."""
        return value == on or (on in self._bit and bool(self._known(value) >> self._bit[on] & 1))

    def made(self, value: Value) -> Node | None:
        """The operation of this call that made `value`; None if it came from outside."""
        node = self.graph.producer.get(value)
        return node if node is not None and node.number in self.call else None

    def linears(self, value: Value, after: Value) -> list[Node]:
        """The linear maps that `value` depends on and that depend on `after`."""
        nodes = self.graph.nodes[self.call.start : self.call.end]
        return [
            node
            for node in nodes
            if is_linear_map(node)
            and any(self.depends(value, out) for out in node.outs)
            and any(self.depends(given, after) for given in node.ins)
            and not any(self.depends(after, out) for out in node.outs)
        ]
