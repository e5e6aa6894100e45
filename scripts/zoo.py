"""Which model types of transformers can carry adapters, and where? Tries all of them, in small, and keeps a table.

    python scripts/zoo.py [TYPE ...] [--out results/zoo.json] [--seconds 120]

Each type is tried in a process of its own. For every one: the roles that were found and at how many layers, those that
are refused and why, and whether adapters there act, train, merge and go (`tests/zoo.py`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ADAPTERS_SPEC_CACHE"] = ""


def tried(model_type: str) -> dict[str, Any]:
    """The record of one type."""
    from tests.zoo import inputs_of, probe, small_model

    try:
        model = small_model(model_type)
    except Exception as error:
        return {"outcome": "not built", "why": f"{type(error).__name__}: {error}"[:300]}
    try:
        inputs = inputs_of(model)
    except RuntimeError as error:
        return {"outcome": "no forward pass", "why": str(error)[:300]}
    try:
        found = probe(model, inputs)
    except Exception as error:
        return {"outcome": "failed", "why": f"{type(error).__name__}: {error}"[:600]}
    roles = dict(found.roles)
    record = {"roles": roles, "refused": found.refused, "unnamed": len(found.unnamed), "failures": found.failures}
    if found.failures:
        return {"outcome": "failed", "why": str(found.failures)[:600], **record}
    linear = [role for role in roles if role.count(".") == 1 and not role.endswith((".core", ".norm"))]
    outcome = "all verified" if linear and not _lacks(found.refused) else "in part" if linear else "by path only"
    return {"outcome": outcome, **record}


def _lacks(refused: dict[str, str]) -> list[str]:
    """The roles of layers that are refused; a prefix needs the attention interface, which is no fault of a search."""
    return [role for role in refused if not role.startswith("embed") and not role.endswith(".core")]


def _work(model_type: str, path: str) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    record = tried(model_type)
    Path(path).write_text(json.dumps(record), encoding="utf-8")


def in_process(model_type: str, seconds: float) -> dict[str, Any]:
    """The record of one type, tried where nothing else is disturbed."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "record")
        process = context.Process(target=_work, args=(model_type, path))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return {"outcome": "took too long", "why": f"more than {seconds:.0f} s"}
        if not Path(path).exists():
            return {"outcome": "process died", "why": f"exit code {process.exitcode}"}
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def main() -> None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("types", nargs="*", help="model types; by default all")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "zoo.json")
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    import tests.zoo  # noqa: F401  # once, before the processes start

    records: dict[str, Any] = {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for model_type in arguments.types or MODEL_MAPPING_NAMES:
        record = records[model_type] = in_process(model_type, arguments.seconds)
        refused = {role: why for role, why in record.get("refused", {}).items() if not role.startswith("embed")}
        print(f"{model_type:34} {record['outcome']:16} {' '.join(record.get('roles', {}))}")
        for role, why in {**refused, **({"": record["why"]} if "why" in record else {})}.items():
            print(f"    {role:10} {why}")
        sys.stdout.flush()
        arguments.out.write_text(json.dumps(records, indent=1), encoding="utf-8")
    print()
    for outcome, count in Counter(record["outcome"] for record in records.values()).most_common():
        print(f"{count:5}  {outcome}")


if __name__ == "__main__":
    main()
