"""What does a training step cost? Time and peak memory over those of full fine-tuning, all layers and upper half.

Two times per step: forward and backward alone, which is what theory speaks of (4 N against 6 N operations per token
for N weights), and with AdamW over what trains. The vocabulary is small (1000), which favours full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.measuring import Timer, check_equal, divided, interleave, peak_bytes
from benchmarks.models import LLAMA, TINY, WIDE_4, Shape, fingerprint
from benchmarks.results import Result, Run

MEBIBYTE = 2**20
CASES = ((WIDE_4, ("lora", "seq_bn"), True), (TINY, ("lora", "seq_bn"), False), (LLAMA, ("lora",), True))
"""Shape, methods, and whether the upper half is measured too."""


def ours(run: Run) -> Iterator[Result]:
    import adapters
    from benchmarks.by_hand import by_hand
    from benchmarks.ours import config, randomise

    def make(shape: Shape, method: str, lower: list[int]) -> dict[str, Step]:
        bare = shape.model().requires_grad_(False)
        model = adapters.init(shape.sharing(bare))
        model.add_adapter("main", config=config(method, leave_out=lower))
        randomise(model, "main")
        model.train_adapter("main")
        hand = by_hand(shape.sharing(bare), model, "main", method)
        trained = [p for p in model.parameters() if p.requires_grad]
        return {"ours": Step(model, shape), "by hand": Step(hand, shape, trained)}

    yield from _measure(run, make, ("lora", "seq_bn"))


def peft(run: Run) -> Iterator[Result]:
    from benchmarks import peer

    def make(shape: Shape, method: str, lower: list[int]) -> dict[str, Step]:
        model = shape.model()
        layers = [i for i in range(model.config.num_hidden_layers) if i not in lower]
        return {"PEFT": Step(peer.adapted(model, method, shape, layers=layers if lower else None).train(), shape)}

    yield from _measure(run, make, ("lora",))


def _measure(run: Run, make: Callable[..., dict[str, Step]], known: tuple[str, ...]) -> Iterator[Result]:
    for shape, methods, halves in CASES:
        full = Step(shape.model().train(), shape)
        half = full.model.config.num_hidden_layers // 2
        for method in methods:
            if method not in known:
                continue
            for where, lower in (("", []), (", upper half", list(range(half)))):
                if lower and not halves:
                    continue
                case = f"{shape.name} training, {method}{where}"
                steps = make(shape, method, lower)
                first = next(iter(steps.values()))
                for library, step in steps.items():
                    check_equal(f"{case}, {library}", step.output(), first.output())
                output = fingerprint(first.output())
                timers = {"full": full.timer(), **{library: step.timer() for library, step in steps.items()}}
                times = interleave(timers, run.rounds(45, 9) if shape is TINY else run.rounds(15, 3))
                facts = {**shape.describe(), "trained": first.trained, "trained in full": full.trained}
                for library, step in steps.items():
                    yield Result(case, divided(times, library, "full", 0), library, facts=facts, output=output)
                    yield Result(f"{case}, with AdamW", divided(times, library, "full", 1), library, facts=facts)
                    yield _memory(case, library, facts, step, full)


def _memory(case: str, library: str, facts: dict[str, Any], step: Step, full: Step) -> Result:
    """Peak memory beyond weights and optimiser state, which both have before the step begins."""
    used, whole = peak_bytes(step.run), peak_bytes(full.run)
    facts = {**facts, "bytes": used, "bytes in full": whole}
    return Result(f"{case}, peak memory", [used / whole], library, facts=facts)


class Step:
    """A model, a batch and an optimiser, ready for a step in two stages."""

    def __init__(self, model: Any, shape: Shape, trained: list[Any] | None = None) -> None:
        self.model, self.inputs = model.train(), shape.inputs()
        parameters = trained or [p for p in model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in parameters)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def output(self) -> torch.Tensor:
        output: torch.Tensor = self.model(**self.inputs)[0]
        return output

    def differentiate(self) -> None:
        self.output().square().mean().backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self) -> None:
        self.differentiate()
        self.update()

    def timer(self) -> Timer:
        return Timer((self.differentiate, self.update))
