"""Models whose weights lie elsewhere until they are needed (accelerate): offloaded to CPU or disk, loaded on `meta`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adapters
from adapters.errors import MergeError, ShardingError
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


@pytest.mark.parametrize(("method", "place"), [*zip(METHODS, cycle(DISPATCHED)), ("dora", "cpu")])
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
    """They are offloaded with it, and saved from where they are; what cannot be changed there says so."""
    one = adapted("lora_everywhere")
    given = inputs("llama", "lm")
    expected = infer(one, given)
    one.save_adapter(str(tmp_path / "one"), "a")
    model = DISPATCHED[place](one, tmp_path / "weights")
    assert any(p.is_meta for p in adapter_parameters(model, "a").values())
    assert torch.equal(infer(model, given), expected)
    model.save_adapter(str(tmp_path / "many"), "a")
    tensors = [load_file(tmp_path / folder / "adapter.safetensors") for folder in ("one", "many")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(values, tensors[1][name]) for name, values in tensors[0].items())
    with pytest.raises(ShardingError, match="into a new adapter"):
        model.load_adapter(str(tmp_path / "one"))
    with pytest.raises(MergeError, match="before the model is dispatched"):
        model.merge_adapter("a")
    assert torch.equal(infer(model, given), expected)
    model.load_adapter(str(tmp_path / "one"), load_as="b", set_active=True)
    assert torch.equal(infer(model, given), expected)


def test_a_base_model_on_meta_is_given_its_weights_afterwards(tmp_path: Path) -> None:
    """As large models are opened: empty, with adapters, and then the weights where they fit."""
    one = adapted("lora_everywhere")
    build("llama", "lm", adapted=False).save_pretrained(tmp_path / "base")
    one.save_adapter(str(tmp_path / "one"), "a")
    with accelerate.init_empty_weights():
        model = type(build("llama", "lm", adapted=False))(one.config)
    adapters.init(model)
    model.tie_weights()
    model = accelerate.load_checkpoint_and_dispatch(model, str(tmp_path / "base"), {"": "cpu"}).eval()
    model.load_adapter(str(tmp_path / "one"), set_active=True)
    assert torch.equal(infer(model, inputs("llama", "lm")), infer(one, inputs("llama", "lm")))
