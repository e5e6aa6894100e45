"""`torch.nn.DataParallel`: its replicas, made here as torch makes them, but all on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapters.errors import ShardingError, UnsupportedError
from tests.contract.cases import carrying
from tests.tiny import inputs, labels, perturb

METHODS = ("lora_everywhere", "dora", "vera", "seq_bn", "compacter", "prefix_tuning", "unipelt", "ia3", "loreft_ends")


def replica(model: nn.Module) -> Any:
    """A copy of `model` whose tensors are differentiable copies of its own, as torch makes it."""
    modules = list(model.modules())
    copies = {id(module): module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        made = copies[id(module)]
        for name, child in module._modules.items():
            if child is not None:
                setattr(made, name, copies[id(child)])
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(made, name, parameter.clone() if parameter.requires_grad else parameter.detach().clone())
        for name, buffer in module._buffers.items():
            made._buffers[name] = None if buffer is None else buffer.clone()
    return copies[id(model)]


def gradients(model: Any, calls: list[Any], rows: list[slice]) -> dict[str, Any]:
    """Gradients of `model` after each of `calls` has computed its rows of a batch."""
    given = {**inputs("bert", "classification"), "labels": labels("bert", "classification")}
    parts = [call(**{name: values[part] for name, values in given.items()}).loss for call, part in zip(calls, rows)]
    (sum(parts) / len(parts)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_replicas_compute_what_the_model_does(method: str) -> None:
    model = carrying("bert", method, task="classification")
    perturb(model, "a")
    model.train_adapter("a")
    expected = gradients(model, [model], [slice(None)])
    model.zero_grad()
    found = gradients(model, [replica(model), replica(model)], [slice(0, 2), slice(2, 4)])
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_base_model_alone_is_refused() -> None:
    model = carrying("bert", "lora", task="classification")
    model.set_active_adapters("a")
    with pytest.raises(UnsupportedError, match="Put the whole model into DataParallel"):
        replica(model.base_model)(**inputs("bert"))


@pytest.mark.parametrize(("mark", "name"), [("_fsdp_flattened", "FSDP1"), ("ds_id", "ZeRO-3")])
def test_parameters_that_others_keep_are_refused_by_name(mark: str, name: str, tmp_path: Path) -> None:
    model = carrying("bert", "lora", task="classification")
    model.save_adapter(str(tmp_path / "whole"), "a")
    for parameter in model.parameters():
        setattr(parameter, mark, True)  # as they mark what they have sharded
    for verb in (
        lambda: model.save_adapter(str(tmp_path / "sharded"), "a"),
        lambda: model.load_adapter(str(tmp_path / "whole")),
        lambda: model.merge_adapter("a"),
    ):
        with pytest.raises(ShardingError, match=name):
            verb()
    assert not (tmp_path / "sharded").exists()
