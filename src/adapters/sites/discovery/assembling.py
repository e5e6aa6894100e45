"""From what was read and verified to the spec of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from adapters.sites.discovery.graph import Call, Graph, Value, is_linear_map
from adapters.sites.discovery.layers import Stack
from adapters.sites.discovery.reading import Reading
from adapters.sites.roles import ROLES
from adapters.sites.spec import At, Attention, LayerList, LayerSpec, Linear, ModelSpec, Norm, Place

NO_TOKENS = "there are no token embeddings in front of its layers"
NO_PROMPTS = (
    "prompts enter decoders, and encoders that a decoder reads, where these take embeddings in place of token ids"
)
NO_WIDTH = "no linear map and no norm of the layer has a role that would tell how wide its hidden states are"
NOT_CALLED = "this layer was not called in the forward pass by which the model was looked at"


def assemble(model: nn.Module, graph: Graph, stacks: list[Stack], readings: Mapping[str, Reading]) -> ModelSpec:
    """The spec of a model, from what was read of its layers, by their paths."""
    lists = tuple(_list(graph, stack, stacks, readings) for stack in stacks)
    embed = _embeddings(model, graph, stacks)
    refused = {"embed.prompt": NO_PROMPTS} | ({} if embed else {"embed": NO_TOKENS})
    return ModelSpec(lists, {"embed": embed} if embed else {}, refused, copies_inside=False)


def _list(graph: Graph, stack: Stack, stacks: list[Stack], readings: Mapping[str, Reading]) -> LayerList:
    owners = _bias_owners(graph, stack, readings)
    specs = []
    for number in range(stack.length):
        path = f"{stack.path}.{number}"
        reading = readings.get(path)
        if reading is None:
            specs.append(LayerSpec({}, {"layer": NOT_CALLED}))
        else:
            places = {role: _with_bias(path, role, place, owners) for role, place in reading.places.items()}
            specs.append(_of_known_width(places, reading.refused))
    layer = specs[0] if all(spec == specs[0] for spec in specs) else tuple(specs)
    return LayerList(stack.path, layer, stack=_masked(graph, stack, stacks))


def _bias_owners(graph: Graph, stack: Stack, readings: Mapping[str, Reading]) -> list[str]:
    """The attention modules of a stack that own a relative position bias which others may share, as in T5."""
    paths = (f"{stack.path}.{number}" for number in stack.calls)
    attentions = [
        f"{path}.{place.path}"
        for path in paths
        for role, place in readings[path].places.items()
        if role == "attn.core" and isinstance(place, Attention)
    ]
    modules = {call.path: call.module for call in graph.calls}
    return [path for path in attentions if "relative_attention_bias" in modules[path]._modules]


def _with_bias(layer: str, role: str, place: Place, owners: list[str]) -> Place:
    if not isinstance(place, Attention) or not owners or role != "attn.core":
        return place
    own = f"{layer}.{place.path}"
    return replace(place, position_bias=own if own in owners else owners[0])


def _of_known_width(places: Mapping[str, Place], refused: Mapping[str, str]) -> LayerSpec:
    """A layer; where none of its linear maps and norms has a role, nothing tells the width of its hidden states."""
    if any(isinstance(place, (Linear, Norm)) for place in places.values()):
        return LayerSpec(places, dict(refused))
    kept = {role: place for role, place in places.items() if ROLES[role].kind == "attention"}
    return LayerSpec(kept, {**refused, **{role: NO_WIDTH for role in (*places, "layer") if role not in kept}})


def _masked(graph: Graph, stack: Stack, stacks: list[Stack]) -> str:
    """The outermost module around a stack, and around no other, as its mask describes these layers alone.

    Where it hands its mask on as it is, the innermost that is given it: outer ones may be passed over (OPT).
    """
    others = [other.path for other in stacks if other is not stack]
    around = list(next(iter(stack.calls.values())).around())[1:]
    alone = [call for call in around if not any(_within(other, call.path) for other in others)]
    if not alone:
        return ""
    mask = alone[-1].inputs.get("attention_mask")
    return next((call.path for call in alone if mask is not None and mask in call.inputs.values()), alone[-1].path)


def _within(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")


def _embeddings(model: nn.Module, graph: Graph, stacks: list[Stack]) -> At | None:
    """Where token embeddings enter the first layers: as wide as the table, so before a map that widens them."""
    try:
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(table, nn.Embedding) or not stacks:
        return None
    firsts = [next(iter(stack.calls.values())) for stack in stacks]
    found = (at for layer in firsts for at in _entering(graph, table, layer))
    return next(found, None)


def _entering(graph: Graph, table: nn.Embedding, layer: Call) -> Iterator[At]:
    """Where embeddings of a table can be changed before they enter a layer."""
    tables = [call for call in graph.calls[: layer.order] if getattr(call.module, "weight", None) is table.weight]
    given, width = {value for call in tables for value in call.outputs.values()}, table.embedding_dim
    for key, value in layer.inputs.items():
        if given.isdisjoint(_behind(graph, value)):
            continue
        if graph.tensors[value].shape[-1] == width:
            yield _output(graph, value, layer) or At(layer.path, "in", key)
            continue
        maps = graph.nearest(value, is_linear_map, graph.calls[0])
        if len(maps) == 1 and graph.tensors[maps[0].ins[0]].shape[-1] == width:
            at = _output(graph, maps[0].ins[0], layer)
            yield from [at] if at else ()


def _behind(graph: Graph, value: Value) -> set[Value]:
    """All values of which `value` is made."""
    seen, todo = set[Value](), [value]
    while todo:
        value = todo.pop()
        if value not in seen:
            seen.add(value)
            node = graph.producer.get(value)
            todo.extend(node.ins if node else ())
    return seen


def _output(graph: Graph, value: Value, layer: Call) -> At | None:
    """The last module before a layer that gives `value` and is called once in the whole pass."""
    times = Counter(id(call.module) for call in graph.calls)
    before = [call for call in graph.calls[: layer.order] if call.path and times[id(call.module)] == 1]
    giving = [call for call in before if call.outputs.get(-1) == value]
    return At(max(giving, key=lambda call: call.closed).path) if giving else None
