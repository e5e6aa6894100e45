"""What do LoRA and a prefix cost in `generate`? 64 new tokens with cache, small Llama, over the bare model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import ratios, timer
from benchmarks.models import LLAMA_PROMPT
from benchmarks.results import Result, Run

TOKENS = 64
CASES = (("lora", 1), ("prefix", 1), ("prefix", 8))
"""Methods, and rows of the batch. Prefixes last: see `forward.METHODS`."""


def ours(run: Run) -> Iterator[Result]:
    from benchmarks.by_hand import by_hand
    from benchmarks.ours import adapted

    for method, rows in CASES:
        bare = LLAMA_PROMPT.model()
        model = adapted(LLAMA_PROMPT.sharing(bare), method)
        model.set_active_adapters("main")
        models = {"ours": model}
        if method == "lora":
            models["by hand"] = by_hand(LLAMA_PROMPT.sharing(bare), model, "main", method)
        yield from _measure(run, bare, models, method, rows)


def peft(run: Run) -> Iterator[Result]:
    from benchmarks import peer

    for method, rows in CASES:
        bare = LLAMA_PROMPT.model()
        model = peer.adapted(LLAMA_PROMPT.sharing(bare), method, LLAMA_PROMPT)
        yield from _measure(run, bare, {"PEFT": model}, method, rows)


def _measure(run: Run, bare: Any, models: dict[str, Any], method: str, rows: int) -> Iterator[Result]:
    inputs = LLAMA_PROMPT.inputs(rows)
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    case = f"generate {TOKENS} tokens, {method}" + (f", {rows} rows" if rows > 1 else "")
    timers = {"bare": timer(partial(bare.generate, **inputs, **options))}
    for library, model in models.items():
        tokens = model.generate(**inputs, **options)
        alike = library != "PEFT" or method == "lora"  # PEFT's prefix lies in the cache
        if alike and not torch.equal(tokens, model.generate(**inputs, **options, use_cache=False)):
            raise RuntimeError(f"{case}: {library} generates other tokens with a cache than without.")
        timers[library] = timer(partial(model.generate, **inputs, **options))
    output = [float(token) for token in tokens[0, -16:]] if method == "lora" else None
    for library, values in ratios(timers, "bare", run.rounds(45, 9)).items():
        yield Result(case, values, library, facts=LLAMA_PROMPT.describe(), output=output)
