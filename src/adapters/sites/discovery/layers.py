"""Which modules are the layers? The innermost entries of lists in which an attention and further linear maps are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from adapters.sites.discovery.attentions import Core, cores
from adapters.sites.discovery.graph import Call, Graph, Region, is_linear_map
from adapters.sites.discovery.residual import follow
from adapters.sites.discovery.trace import opaque


@dataclass(eq=False)
class Stack:
    """A list of layers: its path, how many there are, and the first call of those that were called, by number."""

    path: str
    length: int
    calls: dict[int, Call] = field(default_factory=dict)


def stacks(graph: Graph, model: nn.Module) -> list[Stack]:
    """The lists of layers, in the order in which the pass reached them."""
    first: dict[str, Call] = {}
    for call in graph.calls:
        if call.end > call.start:
            first.setdefault(call.path, call)
    entries = [first[path] for path in _entries(model) if path in first]
    whole = [call for call in entries if _is_whole(graph, call)]
    layers = _innermost(
        [call for call in whole if not any(_inside(call, other) for other in whole) or _adds(graph, call)]
    )
    layers += _innermost([call for call in entries if _has_maps(graph, call) and not _overlaps(call, layers)])
    found: dict[str, Stack] = {}
    for call in sorted(layers, key=lambda call: call.order):
        path, _, number = call.path.rpartition(".")
        length = len(model.get_submodule(path))  # type: ignore[arg-type]
        found.setdefault(path, Stack(path, length)).calls[int(number)] = call
    return list(found.values())


def _entries(model: nn.Module) -> Iterable[str]:
    """Paths of what stands in lists and computes more than one operation."""
    for path, module in model.named_modules():
        if path and isinstance(module, (nn.ModuleList, nn.Sequential)):
            yield from (f"{path}.{name}" for name, child in module._modules.items() if child and not opaque(child))


def _maps(graph: Graph, call: Call) -> set[int]:
    return {node.number for node in graph.nodes[call.start : call.end] if is_linear_map(node)}


def _has_maps(graph: Graph, call: Call) -> bool:
    """Whether linear maps are in a call, and tensors of a sequence leave it."""
    return bool(_maps(graph, call)) and any(graph.tensors[value].dim() >= 3 for value in call.outputs.values())


def _is_whole(graph: Graph, call: Call) -> bool:
    """Whether a call computes an attention and more: linear maps, or experts, that are not its projections."""
    found = cores(graph, call)
    return bool(found) and not _of_attention(graph, call, found) >= _maps(graph, call)


def _adds(graph: Graph, call: Call) -> bool:
    """Whether a call adds to a stream: a layer may hold lists of attentions, none of which is a layer (LongCat)."""
    end = call.outputs.get(-1, call.outputs.get(0))
    return end is not None and bool(follow(Region(graph, call), end).sums)


def _of_attention(graph: Graph, call: Call, found: list[Core]) -> set[int]:
    """The projections of attentions, that of what they give included."""
    numbers = set[int]()
    for core in found:
        numbers |= {node.number for nodes in core.projections(graph, call).values() for node in nodes}
        numbers |= {node.number for node in graph.readers(core.output, is_linear_map, call)}
    return numbers


def _inside(one: Call, other: Call) -> bool:
    """Whether a call is a part of another."""
    return one is not other and one.path.startswith(f"{other.path}.")


def _innermost(calls: list[Call]) -> list[Call]:
    return [call for call in calls if not any(_inside(other, call) for other in calls)]


def _overlaps(call: Call, others: list[Call]) -> bool:
    return any(call is other or _inside(call, other) or _inside(other, call) for other in others)
