"""Do files and numbers agree with those recorded from the library whose files we read?

The recordings are not part of the project. They are looked for beside the checkout (../shared/conformance) or where
the environment variable ADAPTERS_CONFORMANCE says; every case is skipped where they are absent.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers

from adapters.sites.specs import SPECS

FOLDER = Path(os.environ.get("ADAPTERS_CONFORMANCE") or Path(__file__).parents[3] / "shared" / "conformance")
pytestmark = pytest.mark.conformance
ABSENT = f"there are no recordings at {FOLDER}"
VARIANTS = {"bert_h128", "t5_gated", "beit_relpos", "encoder_decoder"}
"""Names of architectures in the recordings that are not types of models, or types of models made of others."""
FOUND: set[str] = {"plbart", "bert_generation"}
"""Types that nobody described and that are replayed as tracing finds them."""

OTHERWISE: dict[str, tuple[str, str]] = {
    r"__(ia3|ia3_alpha2|dora)$": (r"(\[\w+\] )?(merged/|grads)", "merging changes nothing, with biases and alpha too"),
    r"__comp_bottleneck__(average_(split|stack|batchsplit)|batchsplit_(average|split|stack)|(stack_)?multitask(_names)?"
    r"|parallel_(batchsplit|stack)|split_(average|batchsplit|split|stack))$": (
        "main/",
        "a child of a block prepares its input once, as it does alone",
    ),
    r"__comp_dora_": ("main/", "every row has the magnitudes of its own adapter"),
    r"__comp_prefix_tuning__.*(uneven|batchsplit_stack)": (
        r"(\[\w+\] )?main/",
        "padding of shorter prefixes is masked",
    ),
    r"^vit__comp_ia3__.*parallel": ("main/", "every row of Parallel is that of its own adapter"),
    r"svd": (r"(\[\w+\] )?main/", "SVD averaging averages what adapters do, alpha and r included"),
    r"__average_linear__.*_inv$": ("main/", "bijections are averaged with the rest"),
    r"__phm_dim2_learn_false$": (
        r"grads\.(grad_norms\[.*phm_rule\]|trainable_numel)",
        "learn_phm=False holds in training",
    ),
    r"__(default_|hf_\w+__|introspect__)?(loreft|noreft|direft|reft_\w+)$": (
        r"grads\.(trainable_numel|grad_norms\[.*units\.[01])|summary",
        "the edit of positions that do not exist (no suffix) does not train",
    ),
    r"__err_(lora_fuse|prefix_fuse|prefix_split|merged_lora_stack)$": (
        "CompositionError",
        "refused when it is set, not in the forward pass",
    ),
    r"__full_static_(Albert|Roberta)ForMaskedLM$": ("main/", "the bias of the last layer is that of the checkpoint"),
    r"^llama__generate__": ("gen/", "a generated token sees all tokens before it"),
    r"__err_parallel$": (r"error\.", "Parallel acts in every model"),
    r"^llama__err_unsupported$": (r"error\.0", "prompts stand in front of decoders too"),
    r"^deberta(_v2)?__prompt_tuning$": (
        r"main/|grads\.(grad_norms\[|loss)",
        "prompts do not attend to padding: every row is what it is alone",
    ),
    r"^encoder_decoder__seq_bn_inv$": (
        r"grads\.grad_norms: keys differ, missing .* extra \[\]",
        "what both halves have in common is in the file once",
    ),
}
"""Pattern of case -> where we differ from the recordings on purpose, and what we do there."""


def cases() -> list[str]:
    """Recorded cases of the architectures that we have."""
    if not (FOLDER / "manifest.json").is_file():
        return []
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    known = {f"arch:{kind.replace('-', '_')}" for kind in SPECS} | {f"arch:{name}" for name in VARIANTS | FOUND}
    rows = manifest.get("cases", manifest)
    tags = (
        {row["id"]: row["tags"] for row in rows} if isinstance(rows, list) else {k: v["tags"] for k, v in rows.items()}
    )
    chosen = [case for case, own in tags.items() if known & set(own) and "known_wrong" not in own]
    return sorted(case for case in chosen if (FOLDER / "goldens" / "public" / f"{case}.zip").is_file())


@cache
def checker() -> Any:
    """The program that replays a case through the public interface."""
    spec = importlib.util.spec_from_file_location("check_goldens", FOLDER / "check_goldens.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quiet() -> Any:
    """The checker runs without log messages, as from the command line."""
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", cases() or [pytest.param("", marks=pytest.mark.skip(reason=ABSENT))])
def test_recorded_case(case: str, quiet: None) -> None:
    goldens = FOLDER / "goldens"
    options = argparse.Namespace(
        goldens=str(goldens), rtol=1e-4, atol=1e-4, reference=False, strict_upstream=False, v=False
    )
    with checker().extracted(str(goldens / "public" / f"{case}.zip")) as folder:
        described = json.loads(Path(folder, "case.json").read_text(encoding="utf-8"))
        status, _, problems, _ = checker().check_case(options, folder, described)
    differs = [allowed for pattern, (allowed, _) in OTHERWISE.items() if re.search(pattern, case)]
    unexpected = [problem for problem in problems if not any(re.match(allowed, problem) for allowed in differs)]
    assert not unexpected and (status != "error" or differs), "; ".join(problems)


def test_differences_are_still_there() -> None:
    found = cases()
    if not found:
        pytest.skip(ABSENT)
    assert all(any(re.search(pattern, case) for case in found) for pattern in OTHERWISE)
