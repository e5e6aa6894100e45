"""Several adapters in the base weights: one on top of another, with weights, out again, and for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import adapters
from adapters import Average, Stack
from adapters.errors import AdapterNameError, MergeError
from tests.contract.cases import CONFIGS, MERGEABLE
from tests.tiny import build, checkpoint, hooks, infer, inputs, owner, perturb

KINDS = ("lora_everywhere", "ia3", "dora", "bitfit")


def merging(name: str = "bert", *methods: str, task: str = "base") -> Any:
    model = build(name, task)
    for i, (adapter, method) in enumerate(zip("abc", methods)):
        model.add_adapter(adapter, config=CONFIGS[method])
        perturb(model, adapter, seed=i)
    return model


def weights_of(model: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if owner(key) is None}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_one_on_top_of_another(first: str, second: str) -> None:
    """What is on top computes as it does active; either can be taken out, and the weights are those from before."""
    model, given = merging("bert", first, second), inputs("bert")
    states = [weights_of(model)]
    model.set_active_adapters("b")
    alone = infer(model, given)
    model.merge_adapter("a")
    states.append(weights_of(model))
    on_top = infer(model, given)
    model.merge_adapter(["a", "b"])
    states.append(weights_of(model))
    torch.testing.assert_close(infer(model, given), on_top, atol=1e-4, rtol=1e-4)
    model.reset_adapter("b")
    assert equal(weights_of(model), states[1])
    model.merge_adapter(["a", "b"])
    assert equal(weights_of(model), states[2])

    model.reset_adapter("a")
    assert list(model._engine.merged) == ["b"]
    torch.testing.assert_close(infer(model, given), alone, atol=1e-4, rtol=1e-4)
    model.merge_adapter(["b", "a"])
    model.reset_adapter()
    assert equal(weights_of(model), states[0])
    model.merge_adapter(["a", "b"])
    assert equal(weights_of(model), states[2])
    model.reset_adapter()
    assert equal(weights_of(model), states[0])
    assert torch.equal(infer(model, given), alone)


def test_sums_with_weights() -> None:
    model, given = merging("gpt2", "lora", "lora", "lora"), inputs("gpt2")
    before = weights_of(model)
    model.set_active_adapters(Average("a", "b", weights=[0.7, -0.4], normalize_weights=False))
    want = infer(model, given)
    model.set_active_adapters("c")
    with_c = infer(model, given)
    model.set_active_adapters(None)
    model.merge_adapter(["a", "b"], [0.7, -0.4])
    torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
    model.reset_adapter("a")
    model.merge_adapter(["b", "a"], [-0.4, 0.7])
    torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
    model.reset_adapter()
    assert equal(weights_of(model), before)
    model.merge_adapter("c", weights=0.0)
    assert equal(weights_of(model), before)
    model.reset_adapter()
    model.set_active_adapters("c")
    assert torch.equal(infer(model, given), with_c)


def test_what_is_trained_on_top_is_merged_on_top() -> None:
    model, given = merging("bert", "lora", "lora"), inputs("bert")
    before = weights_of(model)
    model.merge_adapter("a")
    merged = weights_of(model)
    model.train_adapter("b")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**given).last_hidden_state.square().mean().backward()
    optimizer.step()
    assert equal(weights_of(model), merged)
    model.eval()
    want = infer(model, given)
    model.merge_adapter(["a", "b"])
    model.set_active_adapters(None)
    torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
    model.train_adapter("a")
    assert list(model._engine.merged) == ["b"], "what trains is not in the weights, and the other one is not lost"
    model.delete_adapter("b")
    assert equal(weights_of(model), before)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], None, "no adapters to merge"),
        (["a", "a"], None, "more than once"),
        (["a", "b"], [1], "1 weights for 2"),
        (["a"], ["much"], "no finite number"),
        (["a"], [float("inf")], "no finite number"),
        (["merged", "a", "c"], [0.5, 1, 1], "'c' changes no linear map"),
        (["a", "b"], None, r"'merged' is merged already.*merge_adapter\(\['merged', 'a', 'b'\]\)"),
        (["a", "x"], None, "There is no adapter 'x'"),
        (["b", "merged"], None, "'merged' is merged already, with weight 0.5"),
        ("merged", None, "'merged' is merged already, with weight 0.5"),
    ],
)
def test_all_or_none(names: Any, weights: Any, message: str) -> None:
    model = merging("bert", "lora", "lora", "seq_bn")
    model.add_adapter("merged", config="ia3")
    perturb(model, "merged")
    model.merge_adapter("merged", 0.5)
    before = weights_of(model)
    with pytest.raises((MergeError, AdapterNameError), match=message):
        model.merge_adapter(names, weights)
    assert equal(weights_of(model), before) and list(model._engine.merged) == ["merged"]
    model.merge_adapter("merged", 0.5)
    assert equal(weights_of(model), before)


@pytest.mark.parametrize("block", [Stack("a", "b"), Stack("b", "a")], ids=str)
def test_a_stack_in_the_weights(block: Stack) -> None:
    """(IA)^3 scales what LoRA gave only where it comes behind it, and merging keeps that or refuses."""
    model, given = merging("bert", "ia3", "lora"), inputs("bert")
    model.set_active_adapters(block)
    want, before = infer(model, given), weights_of(model)
    model.merge_adapter([str(name) for name in block])
    torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
    model.reset_adapter()
    with pytest.raises(MergeError, match="cannot be merged while"):
        model.merge_adapter([str(name) for name in reversed(list(block))])
    assert equal(weights_of(model), before)
    assert torch.equal(infer(model, given), want)


class TestUnloading:
    @pytest.mark.parametrize("method", MERGEABLE)
    def test_a_plain_model_computes_the_same(self, method: str, tmp_path: Path) -> None:
        name = "bert" if method.startswith("bitfit") else "llama"
        model, plain = merging(name, method, "seq_bn", task="lm"), build(name, "lm", adapted=False)
        given = inputs(name, "lm")
        model.set_active_adapters("a")
        want = infer(model, given)
        assert model.merge_and_unload() is model
        assert type(model) is type(plain) and type(model.base_model) is type(plain.base_model)
        assert hooks(model) == hooks(plain) and set(vars(model)) == set(vars(plain))
        assert [*model.state_dict()] == [*plain.state_dict()]
        torch.testing.assert_close(infer(model, given), want, atol=2e-4, rtol=1e-3)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(infer(loaded, given), infer(model, given))
        assert not hasattr(loaded.config, "adapters")

    def test_several_on_top_of_what_is_merged_and_again(self) -> None:
        model, given = merging("gpt2", "lora", "lora", "lora"), inputs("gpt2")
        model.set_active_adapters(Average("a", "b", "c", weights=[1, 0.5, 2], normalize_weights=False))
        want = infer(model, given)
        model.set_active_adapters("a")
        model.merge_adapter("a")
        checkpoint(model)
        model.merge_and_unload(["b", "c"], [0.5, 2])
        torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
        adapters.init(model)
        model.add_adapter("a", config="lora", set_active=True)
        torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
        assert model.merge_and_unload().training is False

    def test_flexible_models_and_modules_of_ones_own(self) -> None:
        model = adapters.AutoAdapterModel.from_config(build("bert").config).eval()
        model.add_adapter("a", config="lora")
        model.add_classification_head("a", num_labels=3)
        perturb(model, "a")
        model.set_active_adapters("a")
        given = inputs("bert")
        want = infer(model, given)
        assert type(model.bert.merge_and_unload()).__name__ == "BertAdapterModel"
        torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
        assert not model.has_adapters() and model.active_head == "a"

        torch.manual_seed(0)
        own = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        x = torch.randn(2, 4)
        adapters.init(own, example_inputs={"input": x})
        own.add_adapter("a", config="lora[places='0']", set_active=True)  # type: ignore[operator]
        perturb(own, "a")
        with torch.no_grad():
            want = own(x)
            assert type(own.merge_and_unload()) is nn.Sequential  # type: ignore[operator]
            torch.testing.assert_close(own(x), want)

    def test_what_no_plain_model_computes(self) -> None:
        model, given = merging("bert", "lora", "seq_bn"), inputs("bert")
        model.add_adapter("both", config=adapters.ConfigUnion(CONFIGS["lora"], CONFIGS["seq_bn"]))
        before = weights_of(model)
        for setup, names, message in (
            (None, None, "None is active or merged"),
            (Stack("a", "b"), None, r"Stack\[a, b\] is active"),
            ("b", None, "'b' has Bottleneck"),
            (None, ["a", "both"], "'both' has Bottleneck"),
            ("a", ["a", "x"], "no adapter 'x'"),
            ("a", ["a", "a"], "more than once"),
        ):
            model.set_active_adapters(setup)
            want = infer(model, given)
            with pytest.raises((MergeError, AdapterNameError), match=message):
                model.merge_and_unload(names)
            assert equal(weights_of(model), before) and model._engine.config.active_setup == (
                Stack(setup) if isinstance(setup, str) else setup
            )
            assert torch.equal(infer(model, given), want)
        model.set_active_adapters("a", skip_layers=[0])
        with pytest.raises(MergeError, match=r"but for layers \[0\]"):
            model.merge_and_unload()


def test_a_merged_adapter_is_never_applied_twice(tmp_path: Path) -> None:
    model, given = merging("llama", "lora", "lora", task="lm"), inputs("llama", "lm")
    model.set_active_adapters("a")
    model.save_adapter(tmp_path / "a", "a")
    model.merge_adapter(["a", "b"])
    want = infer(model, given)
    model.load_adapter(tmp_path / "a", set_active=True)
    assert list(model._engine.merged) == ["b"], "what is loaded anew acts as an adapter"
    torch.testing.assert_close(infer(model, given), want, atol=1e-4, rtol=1e-4)
    model.merge_adapter(["b", "a"])
    model.save_pretrained(tmp_path / "whole")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(infer(plain, given), want, atol=1e-4, rtol=1e-4)
    loaded = adapters.load_model(tmp_path / "whole", type(plain)).eval()
    for setup in (None, "a", "b"):
        loaded.set_active_adapters(setup)
        torch.testing.assert_close(infer(loaded, given), want, atol=1e-4, rtol=1e-4)
    for change in (
        lambda: loaded.load_adapter(tmp_path / "a"),
        loaded.reset_adapter,
        lambda: loaded.train_adapter("a"),
    ):
        with pytest.raises(MergeError, match="was merged when this model was saved"):
            change()
        assert torch.equal(infer(loaded, given), infer(plain, given))
    assert type(loaded.merge_and_unload()) is type(plain)
    assert torch.equal(infer(loaded, given), infer(plain, given))


@pytest.mark.parametrize(("name", "task"), [("llama", "lm"), ("gpt2", "lm"), ("t5", "lm"), ("bart", "lm")])
def test_files_of_a_language_model_have_no_output_embedding(name: str, task: str, tmp_path: Path) -> None:
    model, given = merging(name, "lora", task=task), inputs(name, task)
    files = {"adapter.safetensors", "adapter_config.json"}
    model.save_adapter(tmp_path / "untrained", "a")
    model.train_adapter("a")
    model.save_adapter(tmp_path / "trained", "a")
    model.save_all_adapters(tmp_path / "all")
    for folder in ("untrained", "trained", "all/a"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == files
    want = infer(model.eval(), given)
    fresh = build(name, task)
    fresh.load_adapter(tmp_path / "trained", set_active=True)
    assert torch.equal(infer(fresh, given), want)

    model.get_output_embeddings().weight = nn.Parameter(model.get_output_embeddings().weight.detach() + 1)
    model.save_adapter(tmp_path / "head trains", "a")
    assert (tmp_path / "head trains" / "model_head.safetensors").exists()
    model.save_adapter(tmp_path / "old", "a", with_head=False)
    model.save_head(tmp_path / "old")
    want = infer(model, given)
    fresh = build(name, task)
    fresh.get_output_embeddings().weight = nn.Parameter(fresh.get_output_embeddings().weight.detach().clone())
    fresh.load_adapter(tmp_path / "old", set_active=True)
    torch.testing.assert_close(infer(fresh, given), want, atol=1e-5, rtol=1e-5)
