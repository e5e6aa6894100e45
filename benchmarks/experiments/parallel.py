"""What does Parallel over 8 adapters cost against 8 calls with one adapter each? All layers, and upper half only.

With few tokens the base model gains much from a larger batch, with many it gains little, so both are measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.measuring import check_equal, divided, interleave, timer
from benchmarks.models import WIDE_4
from benchmarks.results import Result, Run

COUNT = 8
NAMES = [f"a{i}" for i in range(COUNT)]


@torch.no_grad()
def ours(run: Run) -> Iterator[Result]:
    import adapters
    from benchmarks.ours import adapted

    setup = adapters.Parallel(*NAMES)
    for tokens, methods in ((16, ("seq_bn", "lora")), (128, ("seq_bn",))):
        shape = replace(WIDE_4, rows=1, tokens=tokens)
        for method in () if run.quick and tokens > 16 else methods:
            for where, lower in (("all layers", []), ("upper half", [0, 1])):
                case = f"Parallel({COUNT}) / {COUNT} calls, {tokens} tokens, {method}, {where}"
                bare, inputs = shape.model(), shape.inputs()
                model = adapted(shape.sharing(bare), method, NAMES, leave_out=lower)
                outputs = []
                for name in NAMES:
                    model.set_active_adapters(name)
                    outputs.append(model(**inputs)[0])
                model.set_active_adapters(setup)
                check_equal(case, model(**inputs)[0], torch.cat(outputs))
                timers = {
                    "bare": timer(partial(bare, **inputs), calls=2),
                    "parallel": timer(partial(model, **inputs), partial(model.set_active_adapters, setup), calls=1),
                    "one": timer(partial(model, **inputs), partial(model.set_active_adapters, NAMES[0]), calls=COUNT),
                }
                times = interleave(timers, run.rounds(11, 3))
                values = [ratio / COUNT for ratio in divided(times, "parallel", "one")]
                facts = {**shape.describe(), "over bare calls": [r / COUNT for r in divided(times, "parallel", "bare")]}
                yield Result(case, values, facts=facts)
