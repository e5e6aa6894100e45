"""Models with adapters are models: other dtypes, autocast, copies, pickles, state dicts."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from adapters import AdapterSetup, Fuse, Parallel
from tests.contract.cases import CONFIGS, ONE_OF_EACH, carrying, every_pair
from tests.tiny import adapter_parameters, build, hooks, infer, inputs, perturb


def moved(given: Any, dtype: torch.dtype) -> Any:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}


@every_pair(names=("bert", "llama", "t5"))
def test_bfloat16_whole_model(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    perturb(model, "a", scale=0.1)
    model.set_active_adapters("a")
    expected = infer(model, given)
    model.to(torch.bfloat16)
    assert {p.dtype for p in adapter_parameters(model, "a").values()} == {torch.bfloat16}
    result = infer(model, moved(given, torch.bfloat16))
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, atol=0.25, rtol=0.1)


@every_pair(names=("bert", "gpt2", "llama"))
def test_autocast(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    perturb(model, "a", scale=0.1)
    model.set_active_adapters("a")
    expected = infer(model, given)
    with torch.autocast("cpu", torch.bfloat16):
        result = infer(model, given)
    torch.testing.assert_close(result.float(), expected, atol=0.25, rtol=0.1)
    assert torch.equal(infer(model, given), expected)
    fresh = carrying(name, method)
    perturb(fresh, "a", scale=0.1)
    fresh.set_active_adapters("a")
    with torch.autocast("cpu", torch.bfloat16):
        infer(fresh, given)
    assert torch.equal(infer(fresh, given), expected)


@every_pair(names=("bert", "t5"))
def test_training_under_autocast(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    model.train_adapter("a")
    with torch.autocast("cpu", torch.bfloat16):
        model(**given).last_hidden_state.float().pow(2).mean().backward()
    gradients = [p.grad for p in adapter_parameters(model, "a").values() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_new_adapter_follows_the_models_dtype(method: str) -> None:
    model = build("bert").to(torch.bfloat16)
    model.add_adapter("a", config=CONFIGS[method], set_active=True)
    assert {p.dtype for p in adapter_parameters(model, "a").values()} == {torch.bfloat16}
    assert infer(model, inputs("bert")).isfinite().all()


@every_pair(names=("bert", "llama"))
def test_an_adapter_in_full_precision_in_a_half_precision_model(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    perturb(model, "a", scale=0.1)
    model.set_active_adapters("a")
    expected = infer(model, given)
    model.to(torch.bfloat16)
    model.adapter_to("a", dtype=torch.float32)
    assert {p.dtype for p in adapter_parameters(model, "a").values()} == {torch.float32}
    result = infer(model, given)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, atol=0.25, rtol=0.1)


@pytest.mark.parametrize("config", ["lora[dtype='bfloat16']", "loreft[dtype='bfloat16']"])
def test_the_dtype_of_a_config_is_used(config: str) -> None:
    model, given = build("bert"), inputs("bert")
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a", scale=0.1)
    assert {p.dtype for p in adapter_parameters(model, "a").values()} == {torch.bfloat16}
    result = infer(model, given)
    assert result.dtype == torch.float32
    assert not torch.equal(result, infer(build("bert"), given))


def duplicate(model: Any, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@every_pair(names=("bert", "gpt2", "t5"), where=lambda method, name: name == "bert" or method in ONE_OF_EACH)
def test_a_copy_is_equal_and_independent(method: str, name: str, how: str) -> None:
    model, given = carrying(name, method, "lora"), inputs(name)
    perturb(model, "a", "b")
    model.set_active_adapters("a")
    expected = infer(model, given)
    with AdapterSetup("b"):
        of_b = infer(model, given)
    twin = duplicate(model, how)
    assert type(twin) is type(model)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert torch.equal(infer(twin, given), expected)

    perturb(twin, "a", seed=3)
    changed = infer(twin, given)
    assert not torch.equal(changed, expected)
    assert torch.equal(infer(model, given), expected)
    with AdapterSetup("b"):
        assert torch.equal(infer(twin, given), of_b)
    model.delete_adapter("a")
    assert torch.equal(infer(twin, given), changed)
    twin.delete_adapter("a")
    twin.delete_adapter("b")
    assert torch.equal(infer(twin, given), infer(build(name), given))
    model.delete_adapter("b")
    assert hooks(twin) == hooks(model) == hooks(build(name))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_hears_of_contexts(how: str) -> None:
    model, given = carrying("bert", "seq_bn", "lora"), inputs("bert")
    perturb(model, "a", "b")
    twin = duplicate(model, how)
    del model
    for setup in ("a", Parallel("a", "b")):
        with AdapterSetup(setup):
            inside = infer(twin, given)
        twin.set_active_adapters(setup)
        assert torch.equal(infer(twin, given), inside)
        twin.set_active_adapters(None)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("task", ["classification", "masked lm"])
def test_a_copy_of_a_model_with_a_head_trains_on_its_own(task: str, how: str) -> None:
    model = carrying("bert", "unipelt", "compacter", task=task)
    model.add_adapter("c", config="seq_bn_inv[reduction_factor=4]")
    twin = duplicate(model, how)
    twin.train_adapter("c")
    assert str(twin.active_adapters) == "Stack[c]" and model.active_adapters is None
    twin(**inputs("bert")).logits.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert any(p.grad is not None for p in adapter_parameters(twin, "c").values())


def test_a_copy_keeps_fusions_and_merged_adapters() -> None:
    model, given = carrying("bert", "seq_bn", "seq_bn", "lora"), inputs("bert")
    perturb(model, "a", "b", "c")
    model.add_adapter_fusion(["a", "b"])
    model.set_active_adapters(Fuse("a", "b"))
    expected = infer(model, given)
    assert torch.equal(infer(copy.deepcopy(model), given), expected)
    model.set_active_adapters(None)
    plain = infer(model, given)
    model.merge_adapter("c")
    twin = copy.deepcopy(model)
    assert torch.equal(infer(twin, given), infer(model, given))
    twin.reset_adapter()
    assert torch.equal(infer(twin, given), plain)
    assert not torch.equal(infer(model, given), plain)


def test_a_copy_made_inside_a_context() -> None:
    model, given = carrying("bert", "seq_bn", "lora"), inputs("bert")
    perturb(model, "a", "b")
    model.set_active_adapters("a")
    expected = infer(model, given)
    with AdapterSetup(Parallel("a", "b")):
        inside = infer(model, given)
        twin = copy.deepcopy(model)
        assert torch.equal(infer(twin, given), inside)
    assert torch.equal(infer(twin, given), expected)


@every_pair(names=("bert",))
def test_weights_travel_by_state_dict(method: str, name: str) -> None:
    one, two, given = carrying(name, method), carrying(name, method), inputs(name)
    perturb(one, "a")
    one.set_active_adapters("a")
    two.set_active_adapters("a")
    infer(two, given)
    two.load_state_dict(one.state_dict())
    assert torch.equal(infer(two, given), infer(one, given))


@pytest.mark.parametrize("method", CONFIGS)
def test_weights_that_change_in_place_are_seen(method: str) -> None:
    """Caches of derived tensors must notice every way in which weights change."""
    model, given = carrying("bert", method), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    for change in ("data", "inference", "optimizer"):
        with torch.inference_mode():
            before = model(**given).last_hidden_state.clone()
        for parameter in adapter_parameters(model, "a").values():
            if change == "data":
                parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
            elif change == "inference":
                with torch.inference_mode():
                    parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                parameter.grad = torch.randn_like(parameter)
        if change == "optimizer":
            torch.optim.SGD(adapter_parameters(model, "a").values(), lr=0.1).step()
        after = infer(model, given)
        assert not torch.allclose(after, before)
        fresh = copy.deepcopy(model)
        torch.testing.assert_close(infer(fresh, given), after)


@pytest.mark.parametrize("method", ["dora", "vera", "compacter", "prefix_tuning", "loreft"])
def test_a_single_tensor_that_is_replaced_is_seen(method: str) -> None:
    model, given = carrying("bert", method), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    for parameter in adapter_parameters(model, "a").values():
        infer(model, given)
        parameter.data = parameter.data + 0.5 * torch.randn_like(parameter)
        parameter.data = parameter.data.clone()
        changed = infer(model, given)
        torch.testing.assert_close(infer(copy.deepcopy(model), given), changed)


@pytest.mark.parametrize("method", CONFIGS)
def test_inference_mode(method: str) -> None:
    model, given = carrying("bert", method), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    expected = infer(model, given)
    with torch.inference_mode():
        assert torch.equal(model(**given).last_hidden_state, expected)
    model.train_adapter("a")
    model(**given).last_hidden_state.sum().backward()
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(**given).last_hidden_state, expected)
    torch.testing.assert_close(infer(model, given), expected)
