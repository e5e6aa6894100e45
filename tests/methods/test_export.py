"""`torch.export` of every method: the program computes the same, and so does the model afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.cases import CONFIGS, every_pair
from tests.tiny import build, infer, inputs, output, perturb

METHODS = tuple(name for name in CONFIGS if not name.startswith("double") and name not in ("scaled_par_bn", "mam"))


class Exported(nn.Module):
    """A model as a function of ids."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if model.config.model_type == "llama" else {}

    def forward(self, ids: Tensor) -> Tensor:
        return output(self.model, {"input_ids": ids}, **self.options)


def gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output(model, {"input_ids": ids}).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@every_pair(methods=METHODS, names=("bert", "llama"))
def test_export_leaves_the_model_as_it_was(method: str, name: str) -> None:
    model = build(name)
    model.add_adapter("a", config=CONFIGS[method])
    perturb(model, "a")
    model.train_adapter("a")
    model.eval()
    ids = inputs(name, padded=False)["input_ids"]
    before, slopes = infer(model, {"input_ids": ids}), gradients(model, ids)
    program = torch.export.export(Exported(model), (ids,), strict=False)
    torch.testing.assert_close(program.module()(ids), before, atol=1e-4, rtol=1e-3)
    assert torch.equal(infer(model, {"input_ids": ids}), before)
    after = gradients(model, ids)
    assert after.keys() == slopes.keys()
    assert all(torch.equal(after[key], slopes[key]) for key in slopes)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "seq_bn", "prefix_tuning", "loreft_ends"])
def test_export_for_any_length(method: str) -> None:
    model = build("bert")
    model.add_adapter("a", config=CONFIGS[method])
    perturb(model, "a")
    model.set_active_adapters("a")
    shapes = {"ids": {1: torch.export.Dim("length", min=4, max=20)}}
    ids, longer = (inputs("bert", padded=False, length=length)["input_ids"] for length in (7, 11))
    program = torch.export.export(Exported(model), (ids,), dynamic_shapes=shapes, strict=False)
    torch.testing.assert_close(program.module()(longer), infer(model, {"input_ids": longer}), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["loreft", "unipelt"])
def test_export_for_any_batch(method: str) -> None:
    model = build("bert")
    model.add_adapter("a", config=CONFIGS[method])
    perturb(model, "a")
    model.set_active_adapters("a")
    given, other = inputs("bert"), inputs("bert", rows=3, length=9)
    sizes = {0: torch.export.Dim("rows", min=2, max=20), 1: torch.export.Dim("length", min=4, max=20)}
    program = torch.export.export(model, (), given, dynamic_shapes=dict.fromkeys(given, sizes), strict=False)
    found = program.module()(**other)["last_hidden_state"]
    torch.testing.assert_close(found, infer(model, other), atol=1e-5, rtol=1e-4)
