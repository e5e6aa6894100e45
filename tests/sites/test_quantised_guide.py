"""The code of docs/quantised.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import build, inputs

GUIDE = Path(__file__).parents[2] / "docs" / "quantised.md"


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    monkeypatch.chdir(tmp_path)
    build("llama", "lm", adapted=False).save_pretrained("base")
    names: dict[str, Any] = {"batch": inputs("llama", "lm")}
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert float(capsys.readouterr().out.split()[-1]) > 0
    assert Path("trained/adapter_config.json").exists()
    assert names["model"].model.layers[0].self_attn.q_proj.weight.dtype.itemsize == 1, "it is quantised"
