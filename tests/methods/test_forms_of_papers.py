"""What LoRA, DoRA, VeRA and places can do as PEFT does it: against the formulas, in plain torch."""

from __future__ import annotations

from typing import Any

import pytest

from adapters import LoRAConfig
from adapters.errors import ConfigError, MergeError
from adapters.methods.lora import DoRAConfig, LoRA
from adapters.methods.vera import VeraConfig
from tests.methods.reference import adapted, close, dense, states, weights
from tests.methods.test_lora import called
from tests.tiny import build

QUERY = "encoder.layer.1.attention.self.query"


def test_magnitudes_of_the_weight_alone() -> None:
    model = adapted("bert", DoRAConfig(r=3, alpha=7, dora_form="weight"))
    weight, bias = dense(model.get_submodule(QUERY))
    own, x = weights(model, f"{QUERY}.loras"), states(width=32)
    changed = weight + 7 / 3 * own["lora_B"] @ own["lora_A"]
    expected = x @ (own["m.weight"] * changed / changed.norm(dim=1, keepdim=True)).T + bias
    close(called(model, QUERY, x), expected)
    model.merge_adapter("a")
    close(called(model, QUERY, x), expected)


def test_an_addition_to_the_output() -> None:
    model = adapted("bert", LoRAConfig(r=3, alpha=7, use_bias=True))
    weight, bias = dense(model.get_submodule(QUERY))
    own, x = weights(model, f"{QUERY}.loras"), states(width=32)
    expected = x @ (weight + 7 / 3 * own["lora_B"] @ own["lora_A"]).T + bias + own["bias"]
    close(called(model, QUERY, x), expected)
    model.merge_adapter("a")
    close(called(model, QUERY, x), expected)
    without = adapted("llama", LoRAConfig(use_bias=True))
    with pytest.raises(MergeError, match="has no bias"):
        without.merge_adapter("a")
    for options in ({"use_dora": True}, {"use_gating": True}):
        with pytest.raises(ConfigError, match="Only LoRA without a gate"):
            LoRAConfig(use_bias=True, **options)


def test_diagonals_of_vera() -> None:
    model = adapted("bert", VeraConfig(r=3, alpha=7, vera_diagonal=True))
    weight, bias = dense(model.get_submodule(QUERY))
    own, x = weights(model, f"{QUERY}.loras"), states(width=32)
    shared: Any = model.shared_parameters["a"]
    assert own["vera_D"].shape == (3,) and own["vera_B"].shape == (32,)
    update = own["vera_B"].diag() @ shared.lora_B @ own["vera_D"].diag() @ shared.lora_A
    close(called(model, QUERY, x), x @ (weight + 7 / 3 * update).T + bias)


def test_a_fused_projection_as_one_map() -> None:
    place = "h.1.attn.c_attn"
    model = adapted("gpt2", LoRAConfig(r=3, alpha=7, places=["attn.q.whole"]))
    weight, bias = dense(model.get_submodule(place))
    own, x = weights(model, f"{place}.loras"), states(width=32)
    assert own["lora_A"].shape == (3, 32) and own["lora_B"].shape == (96, 3)
    close(called(model, place, x), x @ (weight + 7 / 3 * own["lora_B"] @ own["lora_A"]).T + bias)
    plain = build("gpt2")
    plain.add_adapter("a", config=LoRAConfig(r=3, places=["attn.q"]))
    assert next(m for m in plain.modules() if isinstance(m, LoRA)).lora_B.shape == (32, 3)


def test_fields_are_written_where_they_say_more() -> None:
    assert {"dora_form", "use_bias", "vera_diagonal"}.isdisjoint(LoRAConfig().to_dict())
    config = LoRAConfig(use_bias=True)
    assert LoRAConfig.from_dict(config.to_dict()) == config and config != LoRAConfig()
