"""What does an adapter cost in a forward pass? Time with it over that of the bare model, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.measuring import check_equal, ratios, timer
from benchmarks.models import LLAMA, TINY, WIDE, Shape, fingerprint
from benchmarks.results import Result, Run

METHODS = (
    "lora",
    "seq_bn",
    "double_seq_bn",
    "ia3",
    "dora",
    "compacter",
    "loreft",
    "vera",
    "par_bn",
    "prefix",
    "unipelt",
)
"""Prefixes last: they put a step before every attention call of the process, also of the bare model."""
WITHOUT_HAND = ("vera", "par_bn", "unipelt")
"""Measured in the tiny model alone, with nothing written by hand beside them."""
BY_HAND_EVERYWHERE = ("lora", "ia3", "dora", "loreft")
LLAMA_METHODS = ("lora", "seq_bn", "ia3", "dora", "loreft", "prefix")


def ours(run: Run) -> Iterator[Result]:
    from benchmarks.by_hand import by_hand
    from benchmarks.ours import adapted

    with torch.no_grad():
        yield from _idle(run)
        for method in METHODS:
            for shape in (TINY, WIDE, LLAMA):
                if method in WITHOUT_HAND and shape is not TINY:
                    continue
                if shape is LLAMA and method not in (LLAMA_METHODS[:1] if run.quick else LLAMA_METHODS):
                    continue
                bare, inputs = shape.model(), shape.inputs()
                model = adapted(shape.sharing(bare), method)
                model.set_active_adapters("main")
                case = f"{shape.name} forward, {method}"
                timers = {"bare": _call(bare, inputs), "ours": _call(model, inputs)}
                if method not in WITHOUT_HAND and (shape is not LLAMA or method in BY_HAND_EVERYWHERE):
                    hand = by_hand(shape.sharing(bare), model, "main", method)
                    check_equal(case, _output(model, inputs), _output(hand, inputs))
                    timers["by hand"] = _call(hand, inputs)
                output = fingerprint(_output(model, inputs))
                for library, values in ratios(timers, "bare", run.rounds()).items():
                    yield Result(case, values, library, facts=shape.describe(), output=output)


def _idle(run: Run) -> Iterator[Result]:
    """Models in which no adapter acts, and as the floor of all figures the bare model against itself."""
    import adapters
    from benchmarks.ours import adapted

    for shape in (TINY, WIDE, LLAMA):
        bare, inputs = shape.model(), shape.inputs()
        sides = {
            "the bare model twice": shape.sharing(bare),
            "initialised, no adapter": adapters.init(shape.sharing(bare)),
            "adapters added, none active": adapted(shape.sharing(bare), "lora", ("first", "second", "third")),
        }
        for name, model in sides.items():
            case = f"{shape.name} forward, {name}"
            check_equal(case, _output(model, inputs), _output(bare, inputs), tolerance=0.0)
            timers = {"bare": _call(bare, inputs), "ours": _call(model, inputs)}
            yield Result(case, ratios(timers, "bare", run.rounds())["ours"], facts=shape.describe())


def peft(run: Run) -> Iterator[Result]:
    from benchmarks import peer

    with torch.no_grad():
        for method in peer.METHODS:
            for shape in (TINY, WIDE, LLAMA):
                bare, inputs = shape.model(), shape.inputs()
                model = peer.adapted(shape.sharing(bare), method, shape)
                if method == "lora":
                    yield _disabled(run, shape, model)
                timers = {"bare": _call(bare, inputs), "peft": _call(model, inputs)}
                output = fingerprint(_output(model, inputs)) if method in peer.SAME_OUTPUT else None
                values = ratios(timers, "bare", run.rounds())["peft"]
                yield Result(f"{shape.name} forward, {method}", values, "PEFT", facts=shape.describe(), output=output)


def _disabled(run: Run, shape: Shape, model: Any) -> Result:
    bare, inputs = shape.model(), shape.inputs()
    case = f"{shape.name} forward, adapters added, none active"
    with model.disable_adapter():
        check_equal(case, _output(model, inputs), _output(bare, inputs))
        timers = {"bare": _call(bare, inputs), "peft": _call(model, inputs)}
        return Result(case, ratios(timers, "bare", run.rounds())["peft"], "PEFT", facts=shape.describe())


def _call(model: Any, inputs: Any) -> Any:
    return timer(lambda: model(**inputs))


def _output(model: Any, inputs: Any) -> torch.Tensor:
    output: torch.Tensor = model(**inputs)[0]
    return output
