"""What is where in one layer? Roles and their addresses, read from what one call of it did. Nothing is believed yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from adapters.sites.discovery.attentions import Core, cores
from adapters.sites.discovery.columns import as_columns, reaching
from adapters.sites.discovery.experts import is_experts, places_in
from adapters.sites.discovery.graph import PASSED, SCALED, Call, Graph, Node, Region, Value, is_linear_map
from adapters.sites.discovery.places import Addresses
from adapters.sites.discovery.residual import ADD, Stream, Sum, follow, last_map, parts
from adapters.sites.linear import features
from adapters.sites.site import told_number, told_widths
from adapters.sites.spec import At, Attention, Branch, Linear, Norm, Place


@dataclass(eq=False)
class Added:
    """One sum of a layer, as it is verified: where it can be read, and the branches that it adds to x.

    Attributes:
        total, x: Where the sum and x can be read.
        roles: Those of what is added.
        scale: By what the sum is multiplied where it is read.
    """

    total: At
    x: At
    roles: tuple[str, ...]
    scale: Tensor | float = 1.0


@dataclass(eq=False)
class Reading:
    """What was read of one layer.

    Attributes:
        places, refused: As in `LayerSpec`.
        sums: Its sums, in order.
        widths: "layer" or role of a branch -> that of its hidden states.
        head_sizes: Role of an attention -> width of one of its keys, and of one of its values.
        closed: Whether the stream is x and these branches and nothing else, from end to end and without a norm.
    """

    places: dict[str, Place] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    sums: list[Added] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    head_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    closed: bool = False


def read(graph: Graph, layer: Call) -> Reading:
    """The places of a layer, from its first call."""
    return _Reader(graph, layer).read()


class _Reader:
    def __init__(self, graph: Graph, layer: Call) -> None:
        self.graph, self.layer = graph, layer
        self.region, self.addresses = Region(graph, layer), Addresses(graph, layer)
        self.cores = cores(graph, layer)
        self.found = Reading()

    def read(self) -> Reading:
        if (end := self._end()) is None:
            self.found.refused["layer"] = "it gives no hidden states"
            return self.found
        self.found.widths["layer"] = self.graph.tensors[end].shape[-1]
        stream = follow(self.region, end)
        self._attentions(stream)
        self._experts()
        self._branches(stream)
        return self.found

    def _end(self) -> Value | None:
        """The hidden states that leave the layer: what is first in its output."""
        value = self.layer.outputs.get(-1, self.layer.outputs.get(0))
        if value is None or self.graph.tensors[value].dim() < 2 or not self.graph.tensors[value].is_floating_point():
            return None
        return value

    def refuse(self, reason: str, *roles: str) -> None:
        for role in roles:
            if role not in self.found.places:
                self.found.refused.setdefault(role, reason)

    def path(self, node: Node) -> str | None:
        """The path of a module below the layer; None if it is not inside of it."""
        return self.addresses.path(node.call) if self.addresses.is_inside(node.call) else None

    # ---------------------------------------------------------------------------------------------- attention

    def _attentions(self, stream: Stream) -> None:
        """The first self attention and the first cross attention."""
        start = stream.start if not stream.problem else next(iter(self.layer.inputs.values()), stream.start)
        self.kinds: dict[Core, str] = {}
        for core in self.cores:
            role = "attn" if self.region.depends(core.key, start) else "cross"
            if role not in self.kinds.values():
                self.kinds[core] = role
                self._attention(role, core)

    def _attention(self, role: str, core: Core) -> None:
        for letter, nodes in core.projections(self.graph, self.layer).items():
            value = {"q": core.query, "k": core.key, "v": core.value}[letter]
            self._projection(f"{role}.{letter}", nodes, value)
        outputs = self.graph.readers(core.output, self._ends_attention, self.layer)
        path = self.path(outputs[0]) if outputs and is_linear_map(outputs[0]) else None
        if path is not None:
            self.found.places[f"{role}.o"] = Linear(path)
        else:
            self.refuse("no linear map of the layer reads what the attention gives", f"{role}.o")
        self._core(role, core)

    def _ends_attention(self, node: Node) -> bool:
        """Whether an operation is a linear map, or a sum with something else: behind that it is no attention's."""
        added = node.name == ADD and sum(value in self.graph.of_data for value in node.ins) > 1
        return is_linear_map(node) or added

    def _projection(self, role: str, nodes: list[Node], value: Value) -> None:
        if len(nodes) != 1:
            paths = " and ".join(self.addresses.path(node.call) for node in nodes)
            self.refuse(f"it is made of {paths or 'no linear map of the layer'}; name them by their paths", role)
            return
        path, mask = self.path(nodes[0]), reaching(self.graph, nodes[0], value)
        if path is None or not any(mask):
            self.refuse("no gradient tells which columns of the linear map before it reach the attention", role)
            return
        columns = None if all(mask) else as_columns(mask)
        if columns is None and not all(mask):
            self.refuse(f"its columns in {path} have no regular form", role)
            return
        self.found.places[role] = Linear(path, columns)

    def _core(self, role: str, core: Core) -> None:
        """The attention itself, for prefixes."""
        query, value, output = (self.graph.tensors[value].shape for value in (core.query, core.value, core.output))
        key_width = int(query[-1])
        value_width = int(value[-1]) if value[-1] == output[-1] else key_width  # others are arranged otherwise
        if not self.addresses.is_inside(core.call):
            self.refuse("the layer itself computes it", f"{role}.core")
            return
        heads = None
        if (unknown := f"{role}.k" not in self.found.places) or key_width != value_width:
            widths = told_widths(core.call.module, key_width, value_width)
            queries, keys = (query[1], self.graph.tensors[core.key].shape[1]) if len(query) == 4 else (0, 0)
            number = told_number(core.call.module, queries, keys) if unknown else None
            if widths is not None and (number or not unknown):
                heads = number, *widths
            elif unknown:
                self.refuse(f"it needs {role}.k: {self.found.refused[f'{role}.k']}", f"{role}.core")
                return
        self.found.places[f"{role}.core"] = Attention(self.addresses.path(core.call), heads=heads)
        self.found.head_sizes[role] = key_width, value_width

    # ------------------------------------------------------------------------------------------------ branches

    def _branches(self, stream: Stream) -> None:
        named: list[tuple[Sum, dict[str, Value]]] = []
        for one in stream.sums:
            values = [part for branch in one.branches for part in self._apart(branch, one.x)]
            named.append((one, {}))
            for value in values:
                role = self._role(value, one.x)
                if role != "ffn":
                    if any(role in roles for _, roles in named):
                        continue
                elif before := next((roles for _, roles in named if "ffn" in roles), None):
                    mixer = before.pop("ffn")  # the last is the feed-forward block, what is before it mixes positions
                    if not self.cores:
                        before["attn"] = mixer
                named[-1][1][role] = value
        whole = len([value for _, roles in named for value in roles]) == sum(
            len(self._apart(branch, one.x)) for one in stream.sums for branch in one.branches
        )
        self.found.closed = whole and not stream.problem and not any(one.norms for one in stream.sums)
        for one, roles in named:
            for role, value in roles.items():
                self._branch(role, value, one)
            self._sum(one, roles, stream.scaled if one is stream.sums[-1] else [])
        reason = f"the layer has no sum that adds it to its hidden states (it ends at {stream.problem})"
        missing = [*self.kinds.values(), "ffn"] if stream.problem else self.kinds.values()
        self.refuse(reason if stream.problem else "the layer does not add it to its hidden states", *missing)
        if "ffn" in self.found.refused and "ffn.down" not in self.found.places:
            self.refuse(self.found.refused["ffn"], "ffn.up", "ffn.down")

    def _apart(self, branch: Value, x: Value) -> list[Value]:
        """A branch, or the attention and the feed-forward block that it is the sum of."""
        both = parts(self.region, branch, x)
        return both if len({self._role(value, x) for value in both}) == len(both) > 1 else [branch]

    def _role(self, value: Value, x: Value) -> str:
        inside = [
            core
            for core in self.cores
            if self.region.depends(value, core.output) and not self.region.depends(x, core.output)
        ]
        roles = {self.kinds.get(core, "attn") for core in inside}
        return "ffn" if not roles else "cross" if roles == {"cross"} else "attn"

    def _branch(self, role: str, value: Value, one: Sum) -> None:
        if role == "ffn":
            self._feed_forward(value, one.x)
        before = self._norm_before(value, one.x)
        self._norm(role, before, value, one)
        seen, scale = self.addresses.output(value), 1.0
        if seen is None and (scaled := self._scaled(value)) is not None:
            seen, scale = self.addresses.output(scaled[0]), scaled[1]
        if seen is None:
            self.refuse(f"no module of the layer gives what is added ({self._origin(value)})", role)
            return
        h, call = seen
        x = self.addresses.residual(one.x, call, before)
        if x is None:
            self.refuse("no module of the layer reads the residual input before it", role)
            return
        after = self.path(one.norms[0]) if one.norms else None
        self.found.places[role] = Branch(h, x, after or "", scale=scale)
        self.found.widths[role] = self.graph.tensors[value].shape[-1]

    def _scaled(self, value: Value) -> tuple[Value, float] | None:
        """What is multiplied by a number to make a value, and the number."""
        node = self.region.made(value)
        if (
            node is None
            or node.name not in SCALED
            or len(node.ins) != 1
            or len(node.numbers) != 1
            or not node.numbers[0]
        ):
            return None
        number = node.numbers[0]
        return node.ins[0], 1 / number if "div" in node.name else number

    def _origin(self, value: Value) -> str:
        node = self.region.made(value)
        return f"it ends in {node.name!r}" if node else "it comes from outside"

    def _norm_before(self, value: Value, x: Value) -> Node | None:
        """The norm that reads x in a branch."""
        users = self.graph.readers(x, lambda node: node.kind == "norm" or node.name not in PASSED, self.layer)
        inside = [node for node in users if any(self.region.depends(value, out) for out in node.outs)]
        return next((node for node in inside if node.kind == "norm"), None)

    def _norm(self, role: str, before: Node | None, value: Value, one: Sum) -> None:
        """The norm in front of a branch, else behind its sum, else the last of the branch itself."""
        made = self.region.made(value)
        norm = before or (one.norms[0] if one.norms else made if made is not None and made.kind == "norm" else None)
        path = self.path(norm) if norm else None
        weight: Any = getattr(norm.call.module, "weight", None) if norm else None
        if path is not None and weight is not None and weight.dim() == 1:
            self.found.places[f"{role}.norm"] = Norm(path)

    def _sum(self, one: Sum, roles: dict[str, Value], scaled: list[Node]) -> None:
        branches = {role: place for role in roles if isinstance(place := self.found.places.get(role), Branch)}
        total = At("") if scaled else self.addresses.anywhere(one.total)
        complete = len(branches) == sum(len(self._apart(branch, one.x)) for branch in one.branches)
        if total is None or not complete:
            for role in branches:
                del self.found.places[role]
            self.refuse("no module shows the sum" if complete else "one part of its sum is at no module", *branches)
        elif branches:
            x = next(iter(branches.values())).x
            assert x is not None
            self.found.sums.append(Added(total, x, tuple(branches), self._factor(scaled)))

    def _factor(self, scaled: list[Node]) -> Tensor | float:
        """The product of the constants of products."""
        constants = [self.graph.tensors[v] for node in scaled for v in node.ins if v not in self.graph.of_data]
        return prod([*constants, *(number for node in scaled for number in node.numbers)])

    # -------------------------------------------------------------------------------------------- feed-forward

    def _experts(self) -> None:
        """The linear maps of packed experts: beside these, a router or an expert for all tokens has no role."""
        modules = {call.path: call for call in self.addresses.inside if is_experts(call.module)}
        if len(modules) == 1:
            (call,) = modules.values()
            self.found.places.update(places_in(call.module, self.addresses.path(call)))
            self.refuse("the activation of the experts does not tell which columns are which", "ffn.up")

    def _feed_forward(self, value: Value, x: Value) -> None:
        """The linear maps of the block, if they are two (up, down) or three (up, gate, down), and all that it has."""
        if "ffn.down" in self.found.places:
            return
        maps = self.region.linears(value, x)
        down = last_map(self.region, value, x)
        if not maps or down is None:
            self.refuse("the block does not end in one linear map, as where experts are chosen", "ffn.up", "ffn.down")
            return
        first = self.graph.nearest(down.ins[0], is_linear_map, self.layer, (x,))
        places = self._halves(first[0], down) if len(first) == 1 else self._two(first, down)
        if places is None or {node.number for node in maps} != {node.number for node in (*first, down)}:
            names = ", ".join(self.addresses.path(node.call) for node in maps)
            self.refuse(f"the block has other linear maps than up, gate and down: {names}", "ffn.up", "ffn.down")
            return
        path = self.path(down)
        assert path is not None
        self.found.places.update({**places, "ffn.down": Linear(path)})

    def _factors(self, down: Node) -> tuple[Value, Value] | None:
        """The two values whose product the last linear map reads, in gated blocks."""
        made = self.graph.nearest(down.ins[0], lambda node: node.name == "mul" or is_linear_map(node), self.layer)
        if len(made) != 1 or made[0].name != "mul" or len(made[0].ins) != 2:
            return None
        left, right = made[0].ins
        return left, right

    def _activated(self, value: Value) -> bool:
        """Whether a value comes out of something other than a linear map's output rearranged."""
        while (node := self.region.made(value)) is not None and node.name in PASSED and node.ins:
            value = node.ins[0]
        return node is not None and node.kind == "operation"

    def _two(self, first: list[Node], down: Node) -> dict[str, Place] | None:
        """up and gate, where two maps are multiplied: the gate is the one with the activation."""
        factors = self._factors(down)
        if len(first) != 2 or factors is None:
            return None
        gates = [value for value in factors if self._activated(value)]
        if len(gates) != 1:
            return None
        gate = self.graph.nearest(gates[0], is_linear_map, self.layer)
        up = [node for node in first if node not in gate]
        paths = [self.path(node) for node in (*up, *gate)]
        if len(gate) != 1 or len(up) != 1 or None in paths:
            return None
        return {"ffn.up": Linear(str(paths[0])), "ffn.gate": Linear(str(paths[1]))}

    def _halves(self, only: Node, down: Node) -> dict[str, Place] | None:
        """up alone, or up and gate as columns of one map."""
        path, factors = self.path(only), self._factors(down)
        if path is None:
            return None
        if factors is not None:
            masks = {self._activated(value): reaching(self.graph, only, value) for value in factors}
            if len(masks) == 2 and all(any(mask) and not all(mask) for mask in masks.values()):
                gate, up = as_columns(masks[True]), as_columns(masks[False])
                if gate is None or up is None:
                    return None
                return {"ffn.up": Linear(path, up), "ffn.gate": Linear(path, gate)}
        if features(only.call.module)[1] != features(down.call.module)[0]:
            return None
        return {"ffn.up": Linear(path)}
