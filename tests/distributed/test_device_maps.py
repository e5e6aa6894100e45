"""Models whose weights lie elsewhere until they are needed (accelerate): offloaded to CPU or disk, loaded on `meta`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import adapters
from tests.contract.cases import CONFIGS
from tests.tiny import adapter_parameters, build, infer, inputs, labels, perturb

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
METHODS = ("lora_everywhere", "dora", "seq_bn", "prefix_tuning", "vera", "ln_tuning", "loreft_ends", "prompt_tuning")


def partly(model: Any, folder: Path) -> Any:
    """The first layer stays, all the rest is on disk."""
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "disk"}
    places |= {"lm_head": "disk", "model.rotary_emb": "cpu"}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


DISPATCHED: dict[str, Callable[[Any, Path], Any]] = {
    "cpu": lambda model, folder: accelerate.cpu_offload(model, torch.device("cpu")),
    "disk": lambda model, folder: accelerate.disk_offload(model, str(folder), torch.device("cpu")),
    "device_map": partly,
}


def adapted(method: str, model: Any = None) -> Any:
    model = adapters.init(build("llama", "lm", adapted=False) if model is None else model)
    torch.manual_seed(1)
    model.add_adapter("a", config=CONFIGS[method])
    perturb(model, "a")
    model.train_adapter("a")
    return model.eval()


def gradients(model: Any) -> dict[str, torch.Tensor | None]:
    model(**inputs("llama", "lm"), labels=labels("llama", "lm")).loss.backward()
    return {name: p.grad for name, p in adapter_parameters(model, "a").items()}


@pytest.mark.parametrize("place", DISPATCHED)
@pytest.mark.parametrize("method", METHODS)
def test_adapters_added_to_an_offloaded_model(method: str, place: str, tmp_path: Path) -> None:
    """Made where the module computes, they compute, train and are saved as in a model that is all there."""
    one = adapted(method)
    away = DISPATCHED[place](build("llama", "lm", adapted=False), tmp_path / "weights")
    assert any(p.is_meta for p in away.parameters()), "nothing is offloaded"
    model = adapted(method, away)
    assert not any(p.is_meta for p in adapter_parameters(model, "a").values())
    given = inputs("llama", "lm")
    for _ in range(2):
        assert torch.equal(infer(model, given), infer(one, given))
    expected, found = gradients(one), gradients(model)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    one.save_adapter(str(tmp_path / "one"), "a")
    model.save_adapter(str(tmp_path / "many"), "a")
    assert (tmp_path / "one/adapter_config.json").read_bytes() == (tmp_path / "many/adapter_config.json").read_bytes()
    model.load_adapter(str(tmp_path / "one"), load_as="b", set_active=True)
    assert torch.equal(infer(model, given), infer(one, given))


@pytest.mark.parametrize("place", DISPATCHED)
def test_adapters_of_a_model_that_is_offloaded_afterwards(place: str, tmp_path: Path) -> None:
    one = adapted("lora_everywhere")
    expected = infer(one, inputs("llama", "lm"))
    model = DISPATCHED[place](copy.deepcopy(one), tmp_path / "weights")
    given = inputs("llama", "lm")
    assert torch.equal(infer(model, given), expected)
    model.save_adapter(str(tmp_path / "adapter"), "a")
