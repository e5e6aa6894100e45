"""Can an adapter be loaded without some of its layers, and do the others act as before?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import ConfigUnion, LoReftConfig, PrefixTuningConfig
from adapters.checkpoint.layout import ADAPTER
from adapters.errors import CheckpointError, ConfigError
from tests.contract.cases import carrying, every_pair
from tests.tiny import build, infer, inputs, perturb

WITHOUT_LAYERS = ("prompt_tuning", "trainable_tokens", "vera", "dvora")
"""One prompt or table for the whole model; matrices whose shape depends on the first layer."""


def stored(name: str, method: str, folder: Path) -> Any:
    model = carrying(name, method)
    perturb(model, "a")
    model.set_active_adapters("a")
    model.save_adapter(folder, "a")
    return model


@every_pair(names=("bert", "llama", "bart"), where=lambda method, name: method not in WITHOUT_LAYERS)
def test_every_method(method: str, name: str, tmp_path: Path) -> None:
    whole = stored(name, method, tmp_path)
    model = build(name)
    model.load_adapter(tmp_path, leave_out=[0], set_active=True)
    layers = {part.layer for part in model._engine.parts["a"]}
    assert 0 not in layers and 1 in layers
    expected = {key: value for key, value in parameters(whole).items() if "prefix_tunings" not in key}
    found = {key: value for key, value in parameters(model).items() if "prefix_tunings" not in key}
    assert found.keys() <= expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    whole.set_active_adapters("a", skip_layers=[0])
    assert torch.allclose(infer(model, inputs(name)), infer(whole, inputs(name)), atol=1e-5)

    model.save_adapter(tmp_path / "again", "a")
    again = build(name)
    again.load_adapter(tmp_path / "again", set_active=True)
    assert torch.equal(infer(again, inputs(name)), infer(model, inputs(name)))


def parameters(model: Any) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if ".a." in key}


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("name", ["bert", "mistral", "bart"])
def test_prefixes_of_left_out_layers(name: str, flat: bool, tmp_path: Path) -> None:
    model = build(name)
    config = PrefixTuningConfig(prefix_length=3, bottleneck_size=8, flat=flat)
    model.add_adapter("a", config=config)
    perturb(model, "a")
    model.save_adapter(tmp_path, "a")
    for left_out in ([1], [0], [0, 1]) if name == "bart" else ([1], [0]):
        fresh = build(name)
        fresh.load_adapter(tmp_path, leave_out=left_out)
        assert fresh.adapters_config.get("a").leave_out == left_out
        kept = [part for part in fresh._engine.parts["a"] if part.hooked is not None]
        source = {(part.layer, part.location): part for part in model._engine.parts["a"]}
        assert len(kept) == len([p for p in source.values() if p.hooked and p.layer not in left_out])
        for part in kept:
            pairs = zip(part.module.key_values(), source[part.layer, part.location].module.key_values())
            assert all(torch.equal(one, other) for one, other in pairs)


def test_layers_that_were_left_out_already(tmp_path: Path) -> None:
    model = build("bert", num_hidden_layers=4)
    config = ConfigUnion(
        PrefixTuningConfig(prefix_length=2, bottleneck_size=4, leave_out=[1]),
        LoReftConfig(layers=[0, 2, 3]),
    )
    model.add_adapter("a", config=config)
    perturb(model, "a")
    model.save_adapter(tmp_path, "a")
    fresh = build("bert", num_hidden_layers=4)
    fresh.load_adapter(tmp_path, leave_out=[2, 1], set_active=True)
    found = fresh.adapters_config.get("a")
    assert found[0].leave_out == [1, 2]
    assert found[1].layers == [0, 3]
    model.set_active_adapters("a", skip_layers=[2])
    assert torch.allclose(infer(fresh, inputs("bert")), infer(model, inputs("bert")), atol=1e-6)


def test_layers_of_a_union_of_prefixes(tmp_path: Path) -> None:
    model, fresh = build("bert", num_hidden_layers=4), build("bert", num_hidden_layers=4)
    lengths = PrefixTuningConfig(prefix_length=2, bottleneck_size=4, leave_out=[0, 1])
    flat = PrefixTuningConfig(prefix_length=3, flat=True, leave_out=[2, 3])
    model.add_adapter("a", config=ConfigUnion(LoReftConfig(), lengths, flat))
    perturb(model, "a")
    model.save_adapter(tmp_path, "a")
    fresh.load_adapter(tmp_path, leave_out=[0, 3], set_active=True)
    model.set_active_adapters("a", skip_layers=[0, 3])
    assert torch.allclose(infer(model, inputs("bert")), infer(fresh, inputs("bert")), atol=1e-5)


def test_other_layers_must_be_complete(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored("bert", "lora", tmp_path)
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    save_file({key: t for key, t in tensors.items() if "layer.1" not in key}, tmp_path / ADAPTER.safetensors)
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layer\.1"):
        build("bert").load_adapter(tmp_path, leave_out=[0])


@pytest.mark.parametrize("left_out", [[99], [0, -1], ["0"], [True]])
def test_layers_that_are_not_there(left_out: list[Any], tmp_path: Path) -> None:
    stored("bert", "lora", tmp_path)
    model = build("bert")
    with pytest.raises(ConfigError, match=rf"leave_out has .*{left_out[-1]}.* layers of this model are 0-1"):
        model.load_adapter(tmp_path, leave_out=left_out)
    assert not list(model.adapters_config)
