"""`adapters.inspect`: what it says is what `add_adapter` and set-ups do, and it changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

import adapters
from adapters.errors import AdapterError
from adapters.inspection import BLOCKS, Inspection
from adapters.methods.presets import ADAPTER_CONFIG_MAP
from tests.tiny import adapter_parameters, build, hooks


def look(model: Any, **options: Any) -> Inspection:
    return adapters.inspect(model, verbose=False, **options)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_presets_add_what_was_said(name: str) -> None:
    found = look(build(name, adapted=False))
    assert [preset.name for preset in found.presets] == list(ADAPTER_CONFIG_MAP) and not found.problem
    for preset in found.presets:
        model = build(name)
        if preset.reason:
            with pytest.raises(AdapterError):
                model.add_adapter("a", config=preset.name)
            continue
        model.add_adapter("a", config=preset.name)
        assert sum(p.numel() for p in adapter_parameters(model, "a").values()) == preset.parameters, preset.name
        assert set(preset.blocks) | set(preset.refused) == set(BLOCKS) and all(preset.refused.values())


def test_blocks_are_those_that_can_be_set() -> None:
    model = build("llama")
    for name in "ab":
        model.add_adapter(name, config="lora")
    lora = next(preset for preset in look(model).presets if preset.name == "lora")
    assert "Stack" in lora.refused and "which only square" in lora.refused["Stack"]
    for block, setup in BLOCKS.items():
        if block == "Fuse":
            continue
        if block in lora.blocks:
            model.set_active_adapters(setup)
        else:
            with pytest.raises(AdapterError):
                model.set_active_adapters(setup)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_nothing_is_changed(name: str) -> None:
    for adapted in (False, True):
        model = build(name, adapted=adapted)
        kind, before, random = type(model), list(model.state_dict()), torch.random.get_rng_state()
        found = look(model)
        assert type(model) is kind and list(model.state_dict()) == before and not hooks(model)
        assert torch.equal(torch.random.get_rng_state(), random)
        assert json.loads(json.dumps(found.to_dict()))["layers"] == found.layers
        for place in found.places:
            assert place.role in str(found) and (
                not place.path or place.path.split(".")[0] in dict(model.named_children())
            )
    assert look(build(name)).places == look(build(name, adapted=False)).places


def test_added_adapters_are_not_the_models() -> None:
    model = build("bert")
    plain = look(model)
    model.add_adapter("a", config="lora")
    assert look(model) == plain


def test_drawn_with_what_is_there() -> None:
    bert, llama = look(build("bert", adapted=False)), look(build("llama", adapted=False))
    assert "ffn.gate" not in bert.drawing and "ffn.gate" in llama.drawing and "cross" not in llama.drawing
    assert "cross.core" in look(build("bart", adapted=False)).drawing
    assert bert._repr_svg_().startswith("<svg") and ">attn.q</tspan>" in bert._repr_svg_()
    assert "&lt;" not in bert._repr_svg_() or "<pre>" in bert._repr_html_()


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("llama", num_hidden_layers=2))
    found = look(model)
    assert found.layers == "0-1" and not found.problem
    assert next(preset for preset in found.presets if preset.name == "lora").parameters == 2 * 2 * 8 * (4096 + 4096)


class Strange(nn.Module):
    """Nobody can guess what its forward takes."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, strange: torch.Tensor) -> torch.Tensor:
        return self.map(strange)  # type: ignore[no-any-return]


def test_why_a_model_cannot_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    found = adapters.inspect(Strange())
    assert "example_inputs" in found.problem and found.places == () and found.parameters == 20
    assert found.problem in capsys.readouterr().out
    model = Strange()
    found = look(model, example_inputs={"strange": torch.ones(2, 3, 4)})
    assert type(model) is Strange and not hasattr(model, "config") and not hooks(model)
    assert found.model == "Strange" and not (found.problem and found.places)
