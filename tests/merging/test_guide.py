"""The code of docs/merging.md runs, and its table has every algorithm with its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import adapters
from adapters.merging import ALGORITHMS
from tests.tiny import build, inputs, labels, perturb

GUIDE = Path(__file__).parents[2] / "docs" / "merging.md"


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    model = adapters.AutoAdapterModel.from_config(build("bert").config).eval()
    for i, name in enumerate(("news", "law")):
        model.add_adapter(name, config="lora[r=2]")
        model.add_classification_head(name, num_labels=3)
        perturb(model, name, seed=i)
    few_examples = {**inputs("bert"), "labels": labels("bert", "classification")}
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {"model": model, "adapters": adapters, "few_examples": few_examples}
    made: set[str] = set()
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
        made |= set(model.adapters_config)
    assert made == {"news", "law", "mean", "both", "without", "layers", "faded", "hub"}
    assert not model.has_adapters() and (tmp_path / "plain" / "model.safetensors").exists()
    assert "'news': [" in capsys.readouterr().out


def test_the_table_is_complete() -> None:
    lines = GUIDE.read_text(encoding="utf-8").replace("\\|", "").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| `\w+` \|.*\|$", line)]
    found = {row[0].strip("`"): (sorted(re.findall(r"`(\w+)`", row[2])), row[4]) for row in rows if len(row) == 5}
    del found["combine_strategy"]
    assert list(found) == [algorithm.strategy for algorithm in ALGORITHMS]
    for algorithm in ALGORITHMS:
        options, paper = found[algorithm.strategy]
        assert options == sorted(algorithm.options()), algorithm
        assert algorithm.paper.removeprefix("arXiv:") in paper or paper == "the same"
