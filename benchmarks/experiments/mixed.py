"""What does a batch cost in which rows belong to different adapters? 32 rows over N adapters, tiny model.

Measured against the bare model, and against one adapter for all rows, which should cost nearly the same for any N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import Timer, check_equal, divided, interleave, timer
from benchmarks.models import TINY, fingerprint
from benchmarks.results import Result, Run

ROWS = 32
SIZES = (1, 2, 4, 8, 16, 32)
NAMES = [f"a{i}" for i in range(ROWS)]


def ours(run: Run) -> Iterator[Result]:
    import adapters
    from benchmarks.ours import adapted

    inputs = TINY.inputs(ROWS)
    for method in ("lora", "seq_bn"):
        bare = TINY.model()
        model = adapted(TINY.sharing(bare), method, NAMES)
        timers = {"bare": timer(partial(bare, **inputs))}
        timers["one"] = timer(partial(model, **inputs), partial(model.set_active_adapters, NAMES[0]))
        for n in _sizes(run):
            setup = adapters.BatchSplit(*NAMES[:n], batch_sizes=[ROWS // n] * n)
            timers[f"{n}"] = timer(partial(model, **inputs), partial(model.set_active_adapters, setup))

        def alone(i: int, model: Any = model) -> torch.Tensor:
            model.set_active_adapters(NAMES[i])
            return model(**inputs)[0]  # type: ignore[no-any-return]

        yield from _measure(run, "ours", method, timers, alone)


def peft(run: Run) -> Iterator[Result]:
    from benchmarks import peer

    inputs = TINY.inputs(ROWS)
    bare = TINY.model()
    model = peer.adapted(TINY.sharing(bare), "lora", TINY, NAMES)
    timers = {"bare": timer(partial(bare, **inputs))}
    timers["one"] = timer(partial(model, **inputs), partial(model.set_adapter, NAMES[0]))
    for n in _sizes(run):
        names = [NAMES[row * n // ROWS] for row in range(ROWS)]
        timers[f"{n}"] = timer(partial(model, **inputs, adapter_names=names))

    def alone(i: int) -> torch.Tensor:
        model.set_adapter(NAMES[i])
        return model(**inputs)[0]  # type: ignore[no-any-return]

    yield from _measure(run, "PEFT", "lora", timers, alone)


def _sizes(run: Run) -> tuple[int, ...]:
    return (1, 8, 32) if run.quick else SIZES


@torch.no_grad()
def _measure(
    run: Run, library: str, method: str, timers: dict[str, Timer], alone: Callable[[int], torch.Tensor]
) -> Iterator[Result]:
    sizes = _sizes(run)
    for n in sizes:
        expected = torch.cat([alone(i)[i * ROWS // n : (i + 1) * ROWS // n] for i in range(n)])
        mixed = timers[f"{n}"]
        if mixed.before is not None:
            mixed.before()
        found = mixed.stages[0]()[0]
        check_equal(f"{library}: {n} {method} adapters in one batch", found, expected)
    output = fingerprint(found)
    times = interleave(timers, run.rounds(25, 7))
    facts = {**TINY.describe(), "rows": ROWS}
    yield Result(f"mixed batch, {method}, one adapter", divided(times, "one", "bare"), library, facts=facts)
    for n in sizes:
        case = f"mixed batch, {method}, {n} adapter{'s' if n > 1 else ''}"
        yield Result(case, divided(times, f"{n}", "bare"), library, facts=facts, output=output if n == 32 else None)
    worst = max((divided(times, f"{n}", "one") for n in sizes), key=lambda values: sorted(values)[len(values) // 2])
    yield Result(f"mixed batch, {method}, worst N / one adapter", worst, library, facts=facts)
