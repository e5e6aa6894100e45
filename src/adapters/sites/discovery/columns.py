"""Which columns of a linear map's output reach a value? Asked of gradients, which cannot err about layouts."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch

from adapters.sites.discovery.graph import Graph, Node, Value
from adapters.sites.spec import Columns


def reaching(graph: Graph, linear: Node, value: Value) -> tuple[bool, ...]:
    """For every output column of a linear map, whether `value` depends on it. Empty if gradients cannot tell."""
    source, target = graph.sources.get(linear.outs[0]), graph.tensors[value]
    if source is None or not target.requires_grad:
        return ()
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(target.shape, generator=generator).to(target)
    try:
        (gradient,) = torch.autograd.grad(target, source, cotangent, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return ()
    if gradient is None:
        return (False,) * source.shape[-1]
    return tuple(gradient.detach().flatten(0, -2).ne(0).any(0).tolist())


def as_columns(mask: Sequence[bool]) -> Columns | None:
    """A mask as `Columns`: one run of columns in each of equally wide stretches. None if it has another form."""
    width = len(mask)
    for repeats in (number for number in range(1, width + 1) if width % number == 0):
        stretch = width // repeats
        first = list(mask[:stretch])
        if not any(first) or list(mask) != first * repeats:
            continue
        start, stop = first.index(True), stretch - first[::-1].index(True)
        if all(first[start:stop]):
            unit = gcd(start, stop, stretch)
            return Columns(start // unit, stop // unit, stretch // unit, repeats)
    return None
