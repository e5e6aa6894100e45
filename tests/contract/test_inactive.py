"""What a model is while no adapter acts: the original, bit for bit, without a hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.errors import AdapterError, UnsupportedError
from tests.contract.cases import CONFIGS, every_pair, pairs
from tests.tiny import TINY_MODELS, build, hooks, infer, inputs, owner, perturb


def shape(model: Any) -> dict[str, list[str]]:
    """Every attribute of every module: what a forgotten hook, mark or container would change."""
    found = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return {**found, "hooks": hooks(model)}


def weights(model: Any) -> dict[str, Any]:
    return {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.state_dict(keep_vars=True).items()}


def assert_same_weights(model: Any, before: dict[str, Any]) -> None:
    now = model.state_dict(keep_vars=True)
    assert list(now) == list(before)
    for name, (tensor, trains) in before.items():
        assert torch.equal(now[name], tensor), name
        assert now[name].requires_grad == trains, name


@pytest.mark.parametrize("task", ["base", "classification"])
@pytest.mark.parametrize("name", TINY_MODELS)
def test_init_changes_nothing(name: str, task: str) -> None:
    plain, adapted, given = build(name, task, adapted=False), build(name, task), inputs(name, task)
    assert hooks(adapted) == hooks(plain)
    assert list(adapted.state_dict()) == list(plain.state_dict())
    assert torch.equal(infer(adapted, given), infer(plain, given))
    assert type(adapted).__name__ == type(plain).__name__
    assert isinstance(adapted, type(plain))


@every_pair()
def test_an_idle_adapter_changes_nothing(method: str, name: str) -> None:
    plain, model, given = build(name, adapted=False), build(name), inputs(name)
    expected, untouched, before = infer(plain, given), shape(model), weights(model)

    model.add_adapter("idle", config=CONFIGS[method])
    perturb(model, "idle")
    assert [key for key in model.state_dict() if owner(key) is None] == list(before)
    assert torch.equal(infer(model, given), expected)

    model.set_active_adapters("idle")
    changed = infer(model, given)
    assert changed.shape != expected.shape or not torch.allclose(changed, expected)

    model.set_active_adapters(None)
    assert torch.equal(infer(model, given), expected)

    model.set_active_adapters("idle")
    model.delete_adapter("idle")
    assert torch.equal(infer(model, given), expected)
    assert model.active_adapters is None
    assert shape(model) == untouched
    assert_same_weights(model, before)


@pytest.mark.parametrize(("method", "name"), pairs(carried=False))
def test_a_method_that_does_not_fit_is_refused(method: str, name: str) -> None:
    model, given = build(name), inputs(name)
    expected, untouched, before = infer(model, given), shape(model), weights(model)
    assert not model.supports_adapter(CONFIGS[method])
    with pytest.raises(UnsupportedError, match=r"'new'.*cannot.*'" + TINY_MODELS[name].model_type) as caught:
        model.add_adapter("new", config=CONFIGS[method])
    assert isinstance(caught.value, AdapterError) and isinstance(caught.value, ValueError)
    assert not model.has_adapters()
    assert shape(model) == untouched
    assert_same_weights(model, before)
    assert torch.equal(infer(model, given), expected)


@every_pair(names=("bert", "t5"))
def test_supports_adapter_tells_before(method: str, name: str) -> None:
    assert build(name).supports_adapter(CONFIGS[method])


@pytest.mark.parametrize("name", TINY_MODELS)
def test_deleting_one_of_two_keeps_the_other(name: str) -> None:
    model, given = build(name), inputs(name)
    model.add_adapter("kept", config="lora", set_active=True)
    perturb(model, "kept")
    expected, attributes, keys = infer(model, given), shape(model), list(model.state_dict())
    model.add_adapter("gone", config="mam[prefix_length=3,bottleneck_size=8]")
    model.delete_adapter("gone")
    assert str(model.active_adapters) == "Stack[kept]"
    assert shape(model) == attributes
    assert list(model.state_dict()) == keys
    assert torch.equal(infer(model, given), expected)


def test_deleting_what_is_not_there_does_nothing() -> None:
    model = build("bert")
    model.delete_adapter("nobody")
    assert not model.has_adapters()


@pytest.mark.parametrize("method", CONFIGS)
def test_overwriting_leaves_nothing_of_the_old_adapter(method: str) -> None:
    once, twice = build("bert"), build("bert")
    once.add_adapter("a", config="lora[r=2]")
    twice.add_adapter("a", config=CONFIGS[method])
    twice.add_adapter("a", config="lora[r=2]", overwrite_ok=True)
    assert list(twice.state_dict()) == list(once.state_dict())


def test_skipped_layers_run_without_adapters() -> None:
    model, given = build("bert"), inputs("bert")
    model.add_adapter("both", config="seq_bn[reduction_factor=4]")
    model.add_adapter("upper", config="seq_bn[reduction_factor=4,leave_out=[0]]")
    perturb(model, "both", "upper")
    upper = {key.replace(".both.", ".upper."): value for key, value in model.state_dict().items() if ".both." in key}
    model.load_state_dict({key: value for key, value in upper.items() if "layer.1." in key}, strict=False)
    model.set_active_adapters("upper")
    expected = infer(model, given)
    model.set_active_adapters("both", skip_layers=[0])
    assert torch.equal(infer(model, given), expected)
    model.set_active_adapters("both", skip_layers=[0, 1])
    assert torch.equal(infer(model, given), infer(build("bert"), given))
    model.set_active_adapters("both")
    assert not torch.allclose(infer(model, given), expected)
