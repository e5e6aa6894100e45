"""At which module can a value be seen? Addresses of values inside of one call of a layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import takewhile

from adapters.sites.discovery.graph import SHAPED, Call, Graph, Node, Value
from adapters.sites.discovery.trace import opaque
from adapters.sites.spec import At, Turn


class Addresses:
    """The modules of one call of a layer, by the values that go into them and come out."""

    def __init__(self, graph: Graph, layer: Call) -> None:
        self.graph, self.layer = graph, layer
        later = graph.calls[layer.order + 1 :]
        self.calls = list(takewhile(lambda call: layer in call.around(), later))
        self.inside = [call for call in self.calls if self.is_inside(call)]
        self._turns: dict[int, Turn] = {}
        by_module: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            by_module[id(call.module)].append(call)
        for same in by_module.values():
            for number, call in enumerate(same):
                self._turns[call.order] = number, len(same)

    def path(self, call: Call) -> str:
        """The path of a module below the layer."""
        return call.path[len(self.layer.path) + 1 :]

    def turn(self, call: Call) -> Turn | None:
        """Which call of its module in the layer it is, if there are several."""
        found = self._turns.get(call.order)
        return None if found is None or found[1] == 1 else found

    def is_inside(self, call: Call) -> bool:
        """Whether a module is found below the layer's own path."""
        return call.path.startswith(f"{self.layer.path}.")

    def output(self, value: Value) -> tuple[At, Call] | None:
        """The last module that gives `value`: as all of its output if possible, and called once if possible."""
        for same in (self._is, self._looks_like):
            if giving := [call for call in self.inside if any(same(value, given) for given in _first(call))]:
                call = max(giving, key=lambda call: (self.turn(call) is None, -1 in call.outputs, call.closed))
                return At(self.path(call), call=self.turn(call)), call
        return None

    def residual(self, value: Value, before: Call, first: Node | None = None) -> At | None:
        """Where x can be read before a call ends: at the norm `first` that reads it, else at the last module that does.

        Linear maps come last, because adapters change what goes into them.
        """
        begun = [call for call in self.inside if call.order <= before.order]
        for same in (self._is, self._looks_like):
            reading = [(call, key) for call in begun for key, given in call.inputs.items() if same(value, given)]
            if reading:
                call, key = max(reading, key=lambda one: self._preference(one[0], first))
                return At(self.path(call), "in", key, self.turn(call))
        return None

    @staticmethod
    def _preference(call: Call, first: Node | None) -> tuple[bool, bool, int]:
        return first is not None and call is first.call, opaque(call.module) != "linear", call.order

    def anywhere(self, value: Value) -> At | None:
        """Where a value can be read at all, at the layer itself too."""
        for number, given in self.layer.outputs.items():
            if self._looks_like(value, given):
                return At("", "out", max(number, 0))
        for call in self.inside:
            for key, given in call.inputs.items():
                if self._looks_like(value, given):
                    return At(self.path(call), "in", key, self.turn(call))
            for number, given in call.outputs.items():
                if self._looks_like(value, given):
                    return At(self.path(call), "out", max(number, 0), self.turn(call))
        return None

    @staticmethod
    def _is(value: Value, other: Value) -> bool:
        return value == other

    def _looks_like(self, value: Value, other: Value) -> bool:
        """Whether two values are the same numbers in the same order, in whatever shape."""
        return self._unshaped(value) == self._unshaped(other)

    def _unshaped(self, value: Value) -> Value:
        while (node := self.graph.producer.get(value)) is not None and node.name in SHAPED and node.ins:
            value = node.ins[0]
        return value


def _first(call: Call) -> Iterator[Value]:
    """What a call gives alone, or as the first of several."""
    yield from (call.outputs[position] for position in (-1, 0) if position in call.outputs)
