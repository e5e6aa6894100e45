"""What does LoRA cost in `generate`? 64 new tokens with cache, one row, small Llama, over the bare model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import ratios, timer
from benchmarks.models import LLAMA_PROMPT
from benchmarks.results import Result, Run

TOKENS = 64
CASE = f"generate {TOKENS} tokens, lora"


def ours(run: Run) -> Iterator[Result]:
    from benchmarks.by_hand import by_hand
    from benchmarks.ours import adapted

    bare = LLAMA_PROMPT.model()
    model = adapted(LLAMA_PROMPT.sharing(bare), "lora")
    model.set_active_adapters("main")
    yield from _measure(
        run, bare, {"ours": model, "by hand": by_hand(LLAMA_PROMPT.sharing(bare), model, "main", "lora")}
    )


def peft(run: Run) -> Iterator[Result]:
    from benchmarks import peer

    bare = LLAMA_PROMPT.model()
    yield from _measure(run, bare, {"PEFT": peer.adapted(LLAMA_PROMPT.sharing(bare), "lora", LLAMA_PROMPT)})


def _measure(run: Run, bare: Any, models: dict[str, Any]) -> Iterator[Result]:
    inputs = LLAMA_PROMPT.inputs()
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    timers = {"bare": timer(partial(bare.generate, **inputs, **options))}
    for library, model in models.items():
        tokens = model.generate(**inputs, **options)
        if not torch.equal(tokens, model.generate(**inputs, **options, use_cache=False)):
            raise RuntimeError(f"{CASE}: {library} generates other tokens with a cache than without.")
        timers[library] = timer(partial(model.generate, **inputs, **options))
    output = [float(token) for token in tokens[0, -16:]]
    for library, values in ratios(timers, "bare", run.rounds(45, 9)).items():
        yield Result(CASE, values, library, facts=LLAMA_PROMPT.describe(), output=output)
