"""How many parameters an adapter has: the formulas of the docs, and the summary table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapters import CompacterConfig, LoRAConfig, LoReftConfig, PrefixTuningConfig, SeqBnConfig
from adapters.composition.registry import BLOCK_MODULES
from tests.contract.cases import CONFIGS, carrying, every_pair
from tests.tiny import HEADS, TINY_MODELS, WIDTH, adapter_parameters, build

D, INNER, HEAD = WIDTH, 40, WIDTH // HEADS


def layers_of(name: str) -> int:
    return 4 if TINY_MODELS[name].kind == "encoder-decoder" else 2


def attentions_of(name: str) -> int:
    return 6 if TINY_MODELS[name].kind == "encoder-decoder" else 2


def count(name: str, config: Any) -> int:
    model = build(name)
    model.add_adapter("a", config=config)
    return sum(parameter.numel() for parameter in adapter_parameters(model, "a").values())


@pytest.mark.parametrize("name", TINY_MODELS)
def test_bottleneck(name: str) -> None:
    assert count(name, "seq_bn[reduction_factor=4]") == layers_of(name) * (2 * D * (D // 4) + D // 4 + D)
    assert count(name, "double_seq_bn[reduction_factor=4]") == 2 * layers_of(name) * (2 * D * (D // 4) + D // 4 + D)


@pytest.mark.parametrize("name", [name for name in TINY_MODELS if name not in ("gpt2", "llama", "mistral")])
def test_lora(name: str) -> None:
    widths = {"qwen2": (D, D // 2), "qwen3": (2 * D, D)}.get(name, (D, D))
    expected = attentions_of(name) * sum(3 * (D + out) for out in widths)
    assert count(name, "lora[r=3]") == expected


def test_lora_on_fused_and_grouped_projections() -> None:
    assert count("gpt2", "lora[r=3]") == 2 * 2 * 3 * (D + D)
    assert count("gpt2", "lora[r=3,attn_matrices=['q','k','v']]") == 2 * 3 * 3 * (D + D)
    assert count("llama", "lora[r=3]") == 2 * 3 * ((D + D) + (D + D // 2))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart", "vit"])
def test_ia3(name: str) -> None:
    assert count(name, "ia3") == attentions_of(name) * 2 * D + layers_of(name) * INNER


def test_dora_has_a_length_for_every_row() -> None:
    assert count("bert", "dora[r=3]") == count("bert", "lora[r=3]") + 2 * 2 * D


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "vit"])
def test_prefix_tuning(name: str) -> None:
    length, inner = 3, 8
    expected = length * D + D * inner + inner + (inner + 1) * 2 * 2 * D
    assert count(name, PrefixTuningConfig(prefix_length=length, bottleneck_size=inner)) == expected
    assert count(name, PrefixTuningConfig(prefix_length=length, flat=True)) == length * 2 * 2 * D


def test_prefix_tuning_with_fewer_key_heads() -> None:
    assert count("llama", PrefixTuningConfig(prefix_length=3, flat=True)) == 3 * 2 * 2 * D // 2
    assert count("qwen3", PrefixTuningConfig(prefix_length=3, flat=True)) == 3 * 2 * 2 * 2 * 16


def test_prompt_tuning() -> None:
    assert count("bert", "prompt_tuning[prompt_length=5]") == 5 * D
    assert count("electra", "prompt_tuning[prompt_length=5]") == 5 * 16


def test_compacter() -> None:
    n, d = 4, D // 4
    per_place = n * (D // n + d // n) * 2 + d + D
    assert count("bert", CompacterConfig(reduction_factor=4)) == 4 * per_place + n**3


def test_invertible() -> None:
    half, inner = D // 2, D // 4
    block = half * inner + inner + inner * half + half
    assert count("bert", "seq_bn_inv[reduction_factor=4]") == count("bert", "seq_bn[reduction_factor=4]") + 2 * block


def test_reft() -> None:
    one = 2 * (2 * D * 2 + 2)
    assert count("bert", LoReftConfig(r=2)) == one  # the edit of the last positions, of which there are none, has none
    assert count("bert", LoReftConfig(r=2, suffix_positions=1)) == 2 * one
    assert count("bert", LoReftConfig(r=2, suffix_positions=1, tied_weights=True)) == one
    assert count("bert", LoReftConfig(r=2, suffix_positions=1, layers=[1])) == one


@pytest.mark.parametrize("make", [lambda: SeqBnConfig(leave_out=[1]), lambda: LoRAConfig(leave_out=[1])])
def test_layers_that_are_left_out_have_no_parameters(make: Callable[[], Any]) -> None:
    config = make()
    assert 2 * count("bert", config) == count("bert", config.replace(leave_out=[]))


def test_reduction_factors_per_layer() -> None:
    config = SeqBnConfig(reduction_factor={"0": 4, "default": 0.5})
    model = build("bert")
    model.add_adapter("a", config=config)
    first, second = (model.encoder.layer[i].output.adapters["a"].adapter_up.in_features for i in (0, 1))
    assert (first, second) == (8, 64)
    assert count("bert", SeqBnConfig(reduction_factor=D)) == 2 * (2 * D + 1 + D)


@every_pair(names=("bert", "t5"))
def test_summary(method: str, name: str) -> None:
    model = carrying(name, method, method, task="classification")
    base = sum(p.numel() for p in build(name, "classification").base_model.parameters())
    model.train_adapter("b")
    one, two, full = model.adapter_summary(as_dict=True)
    assert (one["name"], two["name"], full["name"]) == ("a", "b", "Full model")
    assert one["#param"] == two["#param"] == count(name, CONFIGS[method])
    assert full["#param"] == base
    assert one["%param"] == pytest.approx(100 * one["#param"] / base)
    assert (one["active"], two["active"]) == (False, True)
    assert (one["train"], two["train"], full["train"]) == (False, True, False)
    table = model.adapter_summary()
    assert len(table.splitlines()) == 6
    assert len({len(line) for line in table.splitlines()}) == 1
    assert f"{one['#param']:,}" in table


@pytest.mark.parametrize("kind", BLOCK_MODULES, ids=lambda kind: kind.noun)
def test_summary_of_what_blocks_own(kind: Any) -> None:
    model = carrying("bert", "seq_bn", "seq_bn")
    getattr(model, f"add_{kind.stem}")(["a", "b"], name="a")  # of an adapter's name, too
    getattr(model, f"train_{kind.stem}")(kind.block("a", "b", name="a"))
    *of_adapters, owned, full = model.adapter_summary(as_dict=True)
    assert [row["name"] for row in of_adapters] == ["a", "b"] and not any(row["train"] for row in of_adapters)
    sizes = {id(p): p.numel() for name, p in model.named_parameters() if kind.container() in name.split(".")}
    assert owned == {**owned, "name": "a", "architecture": kind.noun, "active": True, "train": True}
    assert owned["#param"] == sum(sizes.values()) > 0
    assert full["#param"] == sum(p.numel() for p in build("bert").parameters())
    assert f"{owned['#param']:,}" in model.adapter_summary()
    model.set_active_adapters("a")
    *_, owned, full = model.adapter_summary(as_dict=True)
    assert owned["active"] is False


@every_pair(names=("bert", "t5"))
def test_get_adapter_lists_modules_by_layer(method: str, name: str) -> None:
    model = carrying(name, method)
    modules = model.get_adapter("a")
    assert set(modules) <= {-1, *range(layers_of(name))}
    owned = {id(p) for locations in modules.values() for module in locations.values() for p in module.parameters()}
    assert owned <= {id(p) for p in adapter_parameters(model, "a").values()}
    assert owned or "prefix" in method


@every_pair(names=("bert",))
def test_a_seed_makes_weights_repeatable(method: str, name: str) -> None:
    config = CONFIGS[method]
    seeded = config.replace(init_weights_seed=42)
    one, two = build(name), build(name)
    one.add_adapter("a", config=seeded)
    two.add_adapter("other", config=config)
    two.add_adapter("a", config=seeded)
    for p, q in zip(adapter_parameters(one, "a").values(), adapter_parameters(two, "a").values(), strict=True):
        assert p.equal(q)
