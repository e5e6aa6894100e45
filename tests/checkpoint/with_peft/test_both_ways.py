"""Adapters of PEFT load and compute the same, and ours are saved for PEFT and compute the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from adapters.checkpoint.tensors import read_safetensors
from tests.checkpoint.with_peft.cases import EXACT, PAIRS, theirs
from tests.tiny import build, infer, inputs

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning")]


def same(case: str, got: Any, want: Any) -> None:
    if case in EXACT:
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=lambda value: value)
def test_in_and_out(case: str, name: str, tmp_path: Path) -> None:
    other, model, given = theirs(case, name), build(name), inputs(name)
    want, base = infer(other, given), infer(model, given)
    other.save_pretrained(tmp_path / "in")
    assert model.load_adapter(tmp_path / "in", set_active=True) == "in"
    got = infer(model, given)
    same(case, got, want)
    assert not torch.allclose(got, base, atol=1e-3)

    model.save_adapter(tmp_path / "out", "in", format="peft")
    again = peft.PeftModel.from_pretrained(build(name, adapted=False), tmp_path / "out").eval()
    same(case, infer(again, given), got)
    if case in EXACT and case != "rslora":
        first, second = (read_safetensors(tmp_path / f / "adapter_model.safetensors") for f in ("in", "out"))
        first = {key: tensor for key, tensor in first.items() if "base_layer" not in key}  # PEFT adds whole embeddings
        assert first.keys() == second.keys() and all(torch.equal(t, second[key]) for key, t in first.items())
