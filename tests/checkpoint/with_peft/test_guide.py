"""The code of docs/peft.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import peft
import pytest
import torch

from tests.checkpoint.with_peft.cases import theirs
from tests.tiny import build, infer, inputs

GUIDE = Path(__file__).parents[3] / "docs" / "peft.md"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = theirs("lora", "llama", "lm")
    other.save_pretrained("their_lora")
    scope = {"model": build("llama", "lm", adapted=False), "base": build("llama", "lm", adapted=False)}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, scope)
    given = inputs("llama", "lm")
    assert scope["name"] == "their_lora" and isinstance(scope["other"], peft.PeftModel)
    want = infer(other, given)
    assert torch.equal(infer(scope["model"], given), want) and torch.equal(infer(scope["other"].eval(), given), want)
