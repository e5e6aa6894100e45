"""`torch.export` of every method, ONNX and traces: they compute the same, and so does the model afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import ConfigUnion, DoRAConfig, IA3Config, LoHaConfig, TrainableTokensConfig
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


class Masked(nn.Module):
    """A model as a function of ids and mask, without a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if model.config.model_type == "llama" else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return output(self.model, {"input_ids": input_ids, "attention_mask": attention_mask}, **self.options)


FAMILIES = {
    "bert": ConfigUnion(CONFIGS["lora"], CONFIGS["seq_bn"], CONFIGS["prefix_tuning"], CONFIGS["ln_tuning"]),
    "llama": ConfigUnion(
        DoRAConfig(r=2, places=["attn.q"]),
        IA3Config(places=["attn.v", "ffn.down.in"]),
        LoHaConfig(r=2, places=["ffn.gate"]),
        TrainableTokensConfig(token_indices=[*range(2, 40)]),
        CONFIGS["par_bn"],
    ),
}
"""One adapter with several methods, since an export takes long."""


def everything(name: str) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A model with its adapter, and inputs of two sizes."""
    model = build(name)
    model.add_adapter("a", config=FAMILIES[name])
    perturb(model, "a")
    model.set_active_adapters("a")
    given = [inputs(name), inputs(name, rows=3, length=11)]
    first, second = ({key: one[key] for key in ("input_ids", "attention_mask")} for one in given)
    return model, first, second


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own, of torch and onnxscript
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_computes_the_same_for_any_batch_and_length(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, given, other = everything(name)
    before = infer(model, given)
    sizes = {0: torch.export.Dim("rows", min=2, max=20), 1: torch.export.Dim("length", min=4, max=20)}
    shapes = dict.fromkeys(given, sizes)
    with torch.no_grad():
        program = torch.onnx.export(
            Masked(model), (), kwargs=given, dynamo=True, dynamic_shapes=shapes, optimize=False, verbose=False
        )
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for one in (given, other):
        (found,) = session.run(None, {key: tensor.numpy() for key, tensor in one.items()})
        attended = one["attention_mask"].bool()  # what padding gives means nothing, and softmax of nothing differs
        torch.testing.assert_close(torch.tensor(found)[attended], infer(model, one)[attended], atol=1e-4, rtol=1e-3)
    assert torch.equal(infer(model, given), before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_computes_the_same(name: str) -> None:
    model, given, _ = everything(name)
    before, slopes = infer(model, given), gradients(model, given["input_ids"])
    with torch.no_grad():
        traced = torch.jit.trace(Masked(model), tuple(given.values()), check_trace=False)
        found = traced(*given.values())
    torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-4)
    assert torch.equal(infer(model, given), before)
    after = gradients(model, given["input_ids"])
    assert after.keys() == slopes.keys() and all(torch.equal(after[key], slopes[key]) for key in slopes)
