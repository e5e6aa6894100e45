"""The code of docs/engines.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import adapters
from tests.tiny import build, perturb

GUIDE = Path(__file__).parents[2] / "docs" / "engines.md"


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    model = build("llama", "lm")
    model.add_adapter("task", config=adapters.LoHaConfig(r=2))
    perturb(model, "task")
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), {"model": model})
    assert float(capsys.readouterr().out) < 1e-4, "LoHa of rank 2 is a LoRA of rank 4"
    assert Path("for_vllm/adapter_model.safetensors").exists()
