"""The code of docs/training.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tiny import build
from tests.training.toy import any_examples, changed, marked_sentences, snapshot

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    build("bert", "classification", adapted=False).save_pretrained("base")
    build("llama", "lm", adapted=False).save_pretrained("llama")
    given = {"examples": marked_sentences(), "texts": any_examples("llama")}
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), given)
    model, fresh, again = given["model"], given["fresh"], given["again"]
    assert not changed(snapshot(model), fresh)
    assert not changed(snapshot(model), again)
    assert Path("full_too", "config.json").exists() and not Path("out", "checkpoint-4", "config.json").exists()
