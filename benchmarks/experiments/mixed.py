"""What does a batch cost in which rows belong to different adapters? 32 rows over N adapters, tiny model.

Measured against the bare model, and against one adapter for all rows, which should cost nearly the same for any N.
Then as servers meet them: one name per row (`adapter_names`), in a new order in every call, of 50 LoRAs of three ranks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import Timer, check_equal, divided, interleave, timer
from benchmarks.models import TINY, WIDE, Shape, fingerprint
from benchmarks.results import Result, Run

ROWS = 32
SIZES = (1, 2, 4, 8, 16, 32)
NAMES = [f"a{i}" for i in range(ROWS)]
POOL = [f"a{i}" for i in range(50)]
RANKS = (4, 8, 16)


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
    for shape in (TINY, replace(WIDE, tokens=16)):
        yield from _ours_by_name(run, shape)


def _ours_by_name(run: Run, shape: Shape) -> Iterator[Result]:
    from benchmarks.ours import adapted, randomise

    bare = shape.model()
    model = adapted(shape.sharing(bare), "lora", [])
    for i, name in enumerate(POOL):
        model.add_adapter(name, config=f"lora[r={RANKS[i % 3]},alpha={RANKS[i % 3]}]")
        randomise(model, name)
    yield from _by_name(run, "ours", shape, bare, model, model.set_active_adapters)


def _peft_by_name(run: Run, shape: Shape) -> Iterator[Result]:
    import peft

    from benchmarks import peer

    bare = shape.model()
    model: Any = None
    for i, name in enumerate(POOL):
        config = peer.config("lora", shape)
        config.r = config.lora_alpha = RANKS[i % 3]
        if model is None:
            model = peft.get_peft_model(shape.sharing(bare), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        peer.randomise(model, name)
    yield from _by_name(run, "PEFT", shape, bare, model.eval(), model.set_adapter)


@torch.no_grad()
def _by_name(
    run: Run, library: str, shape: Shape, bare: Any, model: Any, activate: Callable[[str], Any]
) -> Iterator[Result]:
    """Rows of 50 LoRAs in ever new orders, over the adapter of middle rank for all rows."""
    inputs, generator = shape.inputs(ROWS), random.Random(0)
    found = [model(**inputs, adapter_names=(POOL[start:] + POOL)[:ROWS])[0] for start in (0, 18)]
    expected: list[Any] = []
    for name in POOL[18:]:
        activate(name)
        expected.append(model(**inputs)[0][len(expected)])
    check_equal(f"{library}: rows of many adapters by name", found[1], torch.stack(expected))

    def mixed() -> Any:
        return model(**inputs, adapter_names=generator.sample(POOL, ROWS))

    timers = {
        "bare": timer(partial(bare, **inputs)),
        "one": timer(partial(model, **inputs), partial(activate, POOL[1])),
        "mixed": timer(mixed),
    }
    times = interleave(timers, run.rounds(25, 7))
    facts = {**shape.describe(), "rows": ROWS, "adapters": len(POOL), "ranks": RANKS}
    case = f"rows by name, {shape.name}, {ROWS} of {len(POOL)} LoRAs"
    for under in ("one adapter", "bare"):
        ratios = divided(times, "mixed", under.partition(" ")[0])
        yield Result(f"{case} / {under}", ratios, library, facts=facts, output=fingerprint(found[1]))


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
    for shape in (TINY, replace(WIDE, tokens=16)):
        yield from _peft_by_name(run, shape)


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
