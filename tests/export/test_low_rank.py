"""Adapters as LoRA: exact where that is possible, as near as can be elsewhere, refused where it means nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import adapters
from adapters.errors import AdapterNameError, ConfigError, MergeError, UnsupportedError
from adapters.methods.weight_update import WeightUpdate
from tests.contract.cases import CONFIGS, MERGEABLE, carrying, made_of, refusal
from tests.tiny import build, infer, inputs, perturb

PRODUCTS = [name for name in made_of(WeightUpdate) if name not in ("dora", "dvora", "loha", "lokr", "randlora")]
"""Methods whose update is a product of narrow matrices."""


def adapted(architecture: str, method: str, scale: float = 0.3) -> tuple[Any, Any]:
    model = carrying(architecture, method)
    perturb(model, "a", scale=scale)
    model.set_active_adapters("a")
    return model, inputs(architecture)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("method", PRODUCTS)
def test_a_product_stays_exact(method: str, architecture: str) -> None:
    model, given = adapted(architecture, method)
    expected = infer(model, given)
    errors = model.to_lora("a", "b")
    assert errors and max(errors.values()) < 1e-5
    torch.testing.assert_close(infer(model, given), expected)  # nothing has changed yet
    model.set_active_adapters("b")
    torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)
    assert all(type(part.module).__name__ == "LoRA" for part in model._engine.parts["b"])
    model.set_active_adapters(adapters.Parallel("a", "b"))
    both = infer(model, given)
    torch.testing.assert_close(both[: len(both) // 2], both[len(both) // 2 :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 32])
@pytest.mark.parametrize("method", [name for name in MERGEABLE if not name.startswith(("bitfit", "ln_", "trainable_"))])
def test_errors_are_those_of_the_best_approximation(method: str, rank: int) -> None:
    model, given = adapted("bert", method)
    expected = infer(model, given)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("weight")}
    model.merge_adapter("a")
    after = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("weight")}
    model.reset_adapter()
    errors = model.to_lora("a", "b", rank)
    for path, error in errors.items():
        change = after[f"{path}.weight"].double() - before[f"{path}.weight"].double()
        values = torch.linalg.svdvals(change)
        best = values[rank:].norm() / values.norm()  # Eckart and Young
        assert error == pytest.approx(float(best), abs=2e-3)
    model.set_active_adapters("b")
    if rank == 32:  # the whole width
        torch.testing.assert_close(infer(model, given), expected, atol=1e-3, rtol=1e-3)


def test_without_a_rank_it_is_the_lowest_that_is_exact() -> None:
    for config, rank in ((adapters.LoRAConfig(r=3), 3), (adapters.LoHaConfig(r=2), 4)):
        model = build("bert")
        model.add_adapter("a", config=config)
        perturb(model, "a")
        assert max(model.to_lora("a", "b").values()) < 1e-4
        assert {part.module.lora_A.shape[0] for part in model._engine.parts["b"]} == {rank}


def test_unions_get_one_rank_and_keep_what_they_add_to_biases() -> None:
    model, given = build("bert"), inputs("bert")
    one = adapters.LoRAConfig(r=2, alpha=7, places=["attn.q"], use_bias=True)
    two = adapters.LoRAConfig(r=5, alpha=3, places=["ffn.up"])
    model.add_adapter("a", config=adapters.ConfigUnion(one, two), set_active=True)
    perturb(model, "a")
    expected = infer(model, given)
    model.to_lora("a", "b")
    model.set_active_adapters("b")
    torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)
    assert {part.module.config.r for part in model._engine.parts["b"]} == {5}


NO_UPDATES = [name for name in CONFIGS if name not in MERGEABLE and refusal(name, "bert") is None]


@pytest.mark.parametrize("method", [*NO_UPDATES, "ln_tuning", "bitfit"])
def test_what_is_no_change_of_linear_maps_is_refused(method: str) -> None:
    model, given = adapted("bert", method)
    expected = infer(model, given)
    with pytest.raises((UnsupportedError, MergeError)):
        model.to_lora("a", "b", 4)
    assert list(model.adapters_config.adapters) == ["a"] and torch.equal(infer(model, given), expected)


def test_bad_input() -> None:
    model, given = adapted("bert", "oft")
    expected = infer(model, given)
    with pytest.raises(AdapterNameError, match="no adapter 'c'"):
        model.to_lora("c", "b")
    with pytest.raises(ConfigError, match="which is not low"):
        model.to_lora("a", "b")
    for rank in (0, -1, 2.5, True, "4"):
        with pytest.raises(ConfigError, match="is no rank"):
            model.to_lora("a", "b", copy.copy(rank))
    assert torch.equal(infer(model, given), expected)
    model.merge_adapter("a")
    with pytest.raises(MergeError, match="reset_adapter"):
        model.to_lora("a", "b", 4)
