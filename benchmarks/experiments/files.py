"""How much larger is an adapter's file than its tensors? A model with BERT-base's layers and width."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.models import WIDE_12
from benchmarks.results import Result, Run

METHODS = ("lora", "seq_bn", "double_seq_bn", "ia3", "prefix", "dora", "compacter", "loreft")


def ours(run: Run) -> Iterator[Result]:
    from benchmarks.ours import adapted, tensor_bytes

    for method in METHODS:
        model = adapted(WIDE_12.model(), method)
        with tempfile.TemporaryDirectory() as folder:
            model.save_adapter(folder, "main")
            yield _result(method, "ours", folder, tensor_bytes(model, "main"))


def peft(run: Run) -> Iterator[Result]:
    from peft import get_peft_model_state_dict

    from benchmarks import peer

    for method in peer.METHODS:
        model = peer.adapted(WIDE_12.model(), method, WIDE_12)
        tensors = get_peft_model_state_dict(model, adapter_name="main").values()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            yield _result(
                method, "PEFT", str(Path(folder) / "main"), sum(t.numel() * t.element_size() for t in tensors)
            )


def _result(method: str, library: str, folder: str, tensors: int) -> Result:
    files = {path.name: path.stat().st_size for path in Path(folder).iterdir() if path.is_file()}
    weights = sum(size for name, size in files.items() if name.endswith((".safetensors", ".bin")))
    facts = {**WIDE_12.describe(), "files": files, "tensor bytes": tensors}
    return Result(f"file bytes / tensor bytes, {method}", [weights / tensors], library, facts=facts)
