"""How does a layer add to its residual stream? From what leaves the layer back to what enters it, sum by sum."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapters.sites.discovery.graph import PASSED, SCALED, Node, Region, Value

ADD = "add"


@dataclass(eq=False)
class Sum:
    """One sum of the stream x with what branches add.

    Attributes:
        total, x: The values of the sum and of the stream before it.
        branches: What is added: one value, or two where attention and feed-forward block stand side by side.
        norms: Norms that the stream passes after this sum.
    """

    total: Value
    x: Value
    branches: list[Value]
    norms: list[Node] = field(default_factory=list)


@dataclass(eq=False)
class Stream:
    """The residual stream of one call of a layer.

    Attributes:
        start, end: The values that enter and leave.
        sums: In the order in which they are computed.
        problem: Where it could not be followed further back, in words; empty if it was.
        scaled: The products with constants that it passes after its last sum.
    """

    start: Value
    end: Value
    sums: list[Sum]
    problem: str = ""
    scaled: list[Node] = field(default_factory=list)


def follow(region: Region, end: Value) -> Stream:
    """The residual stream that ends in `end`."""
    sums: list[Sum] = []
    norms: list[Node] = []
    scaled: list[Node] = []
    value = end
    while (node := region.made(value)) is not None:
        if node.kind == "norm" and node.ins:
            norms.insert(0, node)
            value = node.ins[0]
        elif node.name == ADD and len(node.ins) == 2:
            if (found := _split(region, node)) is None:
                return Stream(value, end, sums[::-1], "a sum of which no part is the stream", scaled)
            x, branches = found
            sums.append(Sum(value, x, branches, norms))
            norms, value = [], x
        elif node.name in PASSED and node.ins:
            value = node.ins[0]
        elif not sums and not norms and (whole := _scaled(region, node)) is not None:
            scaled.append(node)
            value = whole
        else:
            what = f"the linear map {node.path}" if node.kind == "linear" else f"{node.name!r} in {node.path}"
            return Stream(value, end, sums[::-1], f"{what}, through which the stream passes", scaled)
    return Stream(value, end, sums[::-1], scaled=scaled)


def _scaled(region: Region, node: Node) -> Value | None:
    """What a product multiplies by a constant, such as the scalar of a layer; None if it is none."""
    made = [value for value in node.ins if value in region.graph.of_data]
    return made[0] if node.name == "mul" and len(made) == 1 and len(node.ins) + len(node.numbers) == 2 else None


def _split(region: Region, node: Node) -> tuple[Value, list[Value]] | None:
    """A sum as (x, what is added): x is the part of which all others are made. Sums of sums are taken apart for it."""
    terms = list(node.ins)
    for _ in range(8):
        for term in terms:
            others = [other for other in terms if other is not term]
            x = through(region, term)
            if others and all(other != term and region.depends(other, x) for other in others):
                return term, others
        inner = next((term for term in terms if _is_sum(region, through(region, term))), None)
        if inner is None:
            return None
        place = terms.index(inner)
        made = region.made(through(region, inner))
        assert made is not None
        terms[place : place + 1] = made.ins
    return None


def through(region: Region, value: Value) -> Value:
    """The value from which `value` differs in form only."""
    while (node := region.made(value)) is not None and node.kind == "operation" and node.name in PASSED and node.ins:
        value = node.ins[0]
    return value


def _is_sum(region: Region, value: Value) -> bool:
    node = region.made(value)
    return node is not None and node.name == ADD and len(node.ins) == 2


def parts(region: Region, branch: Value, x: Value) -> list[Value]:
    """The two values that a branch is the sum of, if both are made of x; else itself."""
    node = region.made(through(region, branch))
    if node is None or node.name != ADD or len(node.ins) != 2:
        return [branch]
    both = all(region.depends(value, x) for value in node.ins)
    return list(node.ins) if both else [branch]


def last_map(region: Region, value: Value, x: Value) -> Node | None:
    """The linear map whose output `value` is, but for form, scale, a constant and norms. None if it is none's."""
    while (node := region.made(value)) is not None:
        if node.kind == "linear":
            return node
        if node.kind == "norm" or (node.name in PASSED and node.ins):
            value = node.ins[0]
            continue
        made = [given for given in node.ins if region.depends(given, x)]
        if node.name not in (*SCALED, ADD) or len(made) != 1:
            return None
        value = made[0]
    return None
