"""Folding a linear method into the base weights, and taking it out again without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters import (
    Average,
    BitFitConfig,
    ConfigUnion,
    DoRAConfig,
    IA3Config,
    LoHaConfig,
    LoRAConfig,
    OFTConfig,
    Parallel,
    Stack,
)
from adapters.errors import CompositionError, MergeError
from adapters.methods.base import AffineAdapter
from tests.contract.cases import CONFIGS, MERGEABLE, carrying, every_pair
from tests.tiny import build, hooks, infer, inputs, owner, perturb


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if owner(key) is None}


def assert_base_weights(model: Any, expected: dict[str, torch.Tensor]) -> None:
    for key, value in expected.items():
        assert torch.equal(model.state_dict()[key], value), key


@every_pair(methods=MERGEABLE)
def test_merged_equals_unmerged_and_reset_is_exact(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    perturb(model, "a")
    plain, weights = infer(model, given), base_weights(model)
    model.set_active_adapters("a")
    expected = infer(model, given)
    assert not torch.allclose(expected, plain, atol=1e-2)

    model.merge_adapter("a")
    torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)
    changed = {key for key, value in base_weights(model).items() if not torch.equal(value, weights[key])}
    assert changed
    assert not [
        entry for entry in hooks(model) if entry.split("._forward")[0] in {c.rpartition(".")[0] for c in changed}
    ]
    model.merge_adapter("a")
    torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)

    model.reset_adapter()
    assert_base_weights(model, weights)
    assert torch.equal(infer(model, given), expected)
    model.reset_adapter()
    assert torch.equal(infer(model, given), expected)


@every_pair(methods=("lora_everywhere", "dora", "ia3"), names=("bert", "gpt2"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_reset_is_exact_in_other_dtypes(method: str, name: str, dtype: torch.dtype) -> None:
    model = carrying(name, method).to(dtype)
    perturb(model, "a")
    weights = base_weights(model)
    model.merge_adapter("a")
    model.reset_adapter()
    assert_base_weights(model, weights)


@pytest.mark.parametrize("leave", ["delete_adapter", "overwrite", "train_adapter"])
def test_what_changes_the_adapters_resets_first(leave: str) -> None:
    model, given = carrying("bert", "lora", "seq_bn"), inputs("bert")
    perturb(model, "a", "b")
    weights, plain = base_weights(model), infer(model, given)
    model.merge_adapter("a")
    if leave == "delete_adapter":
        model.delete_adapter("a")
        assert torch.equal(infer(model, given), plain)
    elif leave == "overwrite":
        model.add_adapter("a", config="ia3", overwrite_ok=True)
    else:
        model.train_adapter("a")
    assert_base_weights(model, weights)


def test_what_is_merged_stays_merged() -> None:
    """Others act on top of it."""
    model, given = carrying("bert", "lora", "seq_bn"), inputs("bert")
    perturb(model, "a", "b")
    model.set_active_adapters("a")
    expected = infer(model, given)
    model.merge_adapter("a")
    merged = base_weights(model)
    model.train_adapter("b")
    model.set_active_adapters(None)
    assert_base_weights(model, merged)
    torch.testing.assert_close(infer(model, given), expected, atol=2e-5, rtol=1e-4)


def test_a_merged_adapter_acts_although_nothing_is_active() -> None:
    model, given = carrying("bert", "lora"), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    expected = infer(model, given)
    model.set_active_adapters(None)
    model.merge_adapter("a")
    torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)


def test_only_the_linear_part_of_a_union_is_folded() -> None:
    model, given = build("bert"), inputs("bert")
    model.add_adapter("a", config=ConfigUnion(LoRAConfig(), CONFIGS["seq_bn"]), set_active=True)
    perturb(model, "a")
    expected = infer(model, given)
    model.merge_adapter("a")
    torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)
    model.reset_adapter("a")
    assert torch.equal(infer(model, given), expected)


@pytest.mark.parametrize("method", [method for method in CONFIGS if method not in MERGEABLE])
def test_what_cannot_be_folded_is_refused(method: str) -> None:
    model, given = carrying("bert", method), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    weights, expected = base_weights(model), infer(model, given)
    with pytest.raises(MergeError, match="'a'"):
        model.merge_adapter("a")
    assert_base_weights(model, weights)
    assert torch.equal(infer(model, given), expected)


@pytest.mark.parametrize("method", ["lora", "ia3", "dora"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_gated_adapter_is_not_folded(method: str, name: str) -> None:
    model, given = build(name), inputs(name)
    model.add_adapter("a", config=CONFIGS[method].replace(use_gating=True), set_active=True)
    perturb(model, "a")
    weights, expected = base_weights(model), infer(model, given)
    with pytest.raises(MergeError, match="depends on the input"):
        model.merge_adapter("a")
    assert_base_weights(model, weights)
    assert torch.equal(infer(model, given), expected)


def test_a_second_adapter_is_not_folded_on_top() -> None:
    model = carrying("bert", "lora", "lora")
    model.merge_adapter("a")
    with pytest.raises(MergeError, match="'a' is merged already"):
        model.merge_adapter("b")
    model.reset_adapter()
    model.merge_adapter("b")


def test_merging_leaves_other_modules_of_a_stack_alone() -> None:
    model, given = carrying("bert", "lora", "seq_bn"), inputs("bert")
    perturb(model, "a", "b")
    model.set_active_adapters(Stack("a", "b"))
    expected = infer(model, given)
    model.merge_adapter("a")
    torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)


def test_all_that_can_be_folded_are_covered() -> None:
    from adapters.methods import METHODS

    folded = [method for method in METHODS if issubclass(method, AffineAdapter)]
    assert all(any(method.handles(CONFIGS[name]) for name in MERGEABLE) for method in folded)


AT_ONE_MAP: dict[str, Any] = {
    "lora": LoRAConfig(r=4, places=["attn.q"]),
    "dora": DoRAConfig(r=4, places=["attn.q"]),
    "loha": LoHaConfig(r=4, places=["attn.q"]),
    "ia3": IA3Config(places=["attn.q"]),
    "gated ia3": IA3Config(places=["attn.q"], use_gating=True),
    "ia3 of the input": IA3Config(places=["attn.q.in"]),
    "oft": OFTConfig(block_size=8, places=["attn.q"]),
    "bitfit": BitFitConfig(places=["attn.q"]),
}


UPDATES, INPUTS = ("lora", "dora", "loha"), ("ia3 of the input", "oft")


def is_exact(merged: str, other: str, after: bool) -> bool:
    """Whether a stack computes the same with `merged` in the weights, where `other` comes after or before it."""
    if merged in INPUTS:
        return not after if other in INPUTS else other in ("ia3", "bitfit")
    if other in INPUTS:
        return True
    return after and not (merged in UPDATES and other in UPDATES) and (merged, other) != ("ia3", "dora")


@pytest.mark.parametrize("block", [Stack("a", "b"), Stack("b", "a"), Parallel("a", "b"), Average("a", "b")], ids=str)
@pytest.mark.parametrize("other", AT_ONE_MAP)
@pytest.mark.parametrize("merged", [name for name in AT_ONE_MAP if name != "gated ia3"])
def test_merging_in_a_set_up_is_exact_or_refused(merged: str, other: str, block: Any) -> None:
    model, given = build("bert", num_hidden_layers=1), inputs("bert")
    model.add_adapter("a", config=AT_ONE_MAP[merged])
    model.add_adapter("b", config=AT_ONE_MAP[other])
    perturb(model, "a")
    perturb(model, "b", seed=1)
    model.set_active_adapters(block)
    weights, expected = base_weights(model), infer(model, given)
    if isinstance(block, Stack) and is_exact(merged, other, block == Stack("a", "b")):
        model.merge_adapter("a")
        torch.testing.assert_close(infer(model, given), expected, atol=1e-4, rtol=1e-4)
        return
    with pytest.raises(MergeError, match="'a' cannot be merged while"):
        model.merge_adapter("a")
    assert_base_weights(model, weights)
    assert torch.equal(infer(model, given), expected)
    model.set_active_adapters("b")
    model.merge_adapter("a")
    on_top = infer(model, given)
    with pytest.raises(CompositionError, match="while 'a' is merged"):
        model.set_active_adapters(block)
    assert torch.equal(infer(model, given), on_top)
