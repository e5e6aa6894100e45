"""Which attentions did a layer compute? Softmax over products of queries and keys, whoever wrote it and however."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from adapters.sites.discovery.graph import Call, Graph, Node, Value, is_linear_map

PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "mm", "einsum"})
SOFTMAX = "softmax"
WHOLE = "scaled_dot_product_attention"
OF_TORCH = "multi_head_attention_forward"


@dataclass(eq=False)
class Core:
    """One attention: the values of queries, keys and values that it reads, and what it gives.

    Attributes:
        call: The module that computes it, which is handed to the attention function where there is one.
    """

    query: Value
    key: Value
    value: Value
    output: Value
    call: Call

    def projections(self, graph: Graph, layer: Call) -> dict[str, list[Node]]:
        """The linear maps of the layer that make its queries, keys and values, by the letters q, k and v."""
        read = {"q": self.query, "k": self.key, "v": self.value}
        return {letter: graph.nearest(value, is_linear_map, layer) for letter, value in read.items()}


def _asks(call: Call) -> bool:
    code = getattr(inspect.unwrap(type(call.module).forward), "__code__", None)
    return code is not None and "get_interface" in code.co_names


def cores(graph: Graph, layer: Call) -> list[Core]:
    """The attentions that a call of a layer computed, in order."""
    found = []
    for node in graph.nodes[layer.start : layer.end]:
        if node.name == WHOLE:
            query, key, value = node.ins[:3]
            found.append(Core(query, key, value, node.outs[0], _owner(node, layer)))
        elif node.name == SOFTMAX:
            found.extend(_of_softmax(graph, node, layer))
    return found


def _of_softmax(graph: Graph, softmax: Node, layer: Call) -> Iterator[Core]:
    """The attention whose weights a softmax makes: nothing if it makes something else, such as routes to experts."""
    scores = [node for node in graph.nearest(softmax.ins[0], _is_product, layer) if _content(graph, node)]
    weighted = graph.readers(softmax.outs[0], lambda node: _is_product(node) or is_linear_map(node), layer)
    if not scores or not weighted or not _is_product(weighted[0]):
        return
    query, key = scores[0].ins[-2:]
    left, right = weighted[0].ins[-2:]
    of_weights = _reaches(graph, softmax.outs[0], left, layer)
    yield Core(query, key, right if of_weights else left, weighted[0].outs[0], _owner(softmax, layer))


def _is_product(node: Node) -> bool:
    return node.kind == "operation" and node.name in PRODUCTS and len(node.ins) >= 2


def _content(graph: Graph, node: Node) -> bool:
    """Whether both sides of a product depend on what the model was given: not so for scores of positions."""
    return all(value in graph.of_data for value in node.ins[-2:])


def _reaches(graph: Graph, start: Value, end: Value, layer: Call) -> bool:
    """Whether `end` was made of `start` without a product between them."""
    seen, todo = set[Value](), [start]
    while todo:
        value = todo.pop()
        if value == end:
            return True
        if value not in seen:
            seen.add(value)
            todo.extend(
                out
                for node in graph.users.get(value, ())
                if node.number in layer and not _is_product(node) and node.kind == "operation"
                for out in node.outs
            )
    return False


def _owner(node: Node, layer: Call) -> Call:
    """The module of an attention: the one that asks for its function, else the innermost with linear maps."""
    inside = []
    for call in node.call.around():
        if call.path == layer.path and call is not node.call:
            break
        inside.append(call)
    chosen = [call for call in inside if _asks(call)] or [call for call in inside if list(call.module.children())]
    return (chosen or inside or [layer])[0]
