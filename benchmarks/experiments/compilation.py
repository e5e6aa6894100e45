"""Into how many graphs do 12 adapters of equal shape compile that are switched in turn, with `fullgraph=True`?

Counted by a backend that runs graphs as they are. One is best. Where the compiler gives up, the figure is the number
of adapters that ran before it did, written as a result that meets no goal, with the reason in its facts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.measuring import check_equal
from benchmarks.models import TWO_LAYERS
from benchmarks.results import Result, Run

COUNT = 12
NAMES = [f"a{i}" for i in range(COUNT)]
METHODS = ("lora", "seq_bn", "double_seq_bn", "ia3", "prefix", "dora", "compacter", "loreft")
FAILED = float("inf")


def ours(run: Run) -> Iterator[Result]:
    from benchmarks.ours import adapted

    for method in METHODS:
        model = adapted(TWO_LAYERS.model(), method, NAMES)
        yield _count(method, "ours", model, model.set_active_adapters)


def peft(run: Run) -> Iterator[Result]:
    from benchmarks import peer

    for method in ("lora", "ia3", "dora"):
        model = peer.adapted(TWO_LAYERS.model(), method, TWO_LAYERS, NAMES)
        yield _count(method, "PEFT", model, model.set_adapter)


@torch.no_grad()
def _count(method: str, library: str, model: Any, activate: Callable[[str], None]) -> Result:
    graphs = 0

    def backend(module: Any, examples: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    torch._dynamo.reset()
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    compiled: Any = torch.compile(model, fullgraph=True, backend=backend, dynamic=False)
    inputs, case = TWO_LAYERS.inputs(), f"graphs for {COUNT} switched adapters, {method}"
    facts = TWO_LAYERS.describe()
    for i, name in enumerate(NAMES):
        activate(name)
        expected = model(**inputs)[0]
        try:
            found = compiled(**inputs)[0]
        except Exception as error:
            reason = f"{type(error).__name__} at adapter {i + 1}: {str(error).strip().splitlines()[0]}"
            return Result(case, [FAILED], library, "graphs", {**facts, "graphs": graphs, "failed": reason})
        check_equal(f"{case}: compiled", found, expected)
    return Result(case, [float(graphs)], library, "graphs", facts)
