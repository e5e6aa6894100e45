"""Base models whose weights are quantised: read, adapted, merged, and as they were again."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapters
from adapters.errors import MergeError
from adapters.sites.linear import features, is_linear, weight_of
from tests.contract.cases import CONFIGS, MERGEABLE, ONE_OF_EACH, refusal
from tests.quantised import FORMATS, packed, quantise
from tests.tiny import adapter_parameters, build, infer, inputs, output, perturb

MERGING = [name for name, form in FORMATS.items() if form.merges]


def product(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)  # type: ignore[no-any-return]


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", FORMATS)
def test_the_weight_that_is_read_is_the_one_it_multiplies_by(name: str) -> None:
    linear = nn.Linear(64, 48)
    original, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    module, x = packed(name, linear), torch.randn(5, 64)
    assert is_linear(module) and features(module) == (64, 48)
    for _ in range(2):  # some move what they hold in their first call
        weight = weight_of(module)
        assert 0 < off(weight, original) < 0.3, "it is rounded, but not lost"
        assert off(product(module, x), x @ weight.float().T + bias) < FORMATS[name].tolerance


def carrying(name: str, architecture: str, config: str) -> tuple[Any, Any, list[str]]:
    """A quantised model with an adapter, the same with the rounded weights in plain linear maps, and their paths."""
    model, plain = (build(architecture, adapted=False).requires_grad_(False) for _ in range(2))
    paths = quantise(model, name)
    for path in paths:
        plain.get_submodule(path).weight.data = weight_of(model.get_submodule(path)).float()
    for one in (model, plain):
        adapters.init(one)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            one.add_adapter("a", config=copy.deepcopy(CONFIGS[config]), set_active=True)
        perturb(one, "a", scale=0.1)
    return model, plain, paths


@pytest.mark.parametrize("config", ONE_OF_EACH)
@pytest.mark.parametrize(
    ("name", "architecture"), [*((name, "bert") for name in FORMATS), ("bitsandbytes nf4", "llama")]
)
def test_every_method_computes_and_learns_as_on_the_rounded_weights(name: str, config: str, architecture: str) -> None:
    if (why := refusal(config, architecture)) is not None:
        pytest.skip(why)
    model, plain, _ = carrying(name, architecture, config)
    given = inputs(architecture)
    tolerance = 10 * FORMATS[name].tolerance
    for training in (False, True):
        model.train(training)
        model.train_adapter("a")
        model.train(training)
        result = output(model, given)
        assert off(result.detach(), infer(plain, given)) < tolerance
        result.square().mean().backward()
        for key, parameter in adapter_parameters(model, "a").items():
            assert not parameter.requires_grad or parameter.grad is not None, key
        model.zero_grad()


def products(model: Any, paths: list[str]) -> dict[str, Tensor]:
    """What quantised maps make of every input alone, without adapters."""
    with adapters.AdapterSetup(None):
        maps = {path: model.get_submodule(path) for path in paths}
        return {path: product(module, torch.eye(features(module)[0])) for path, module in maps.items()}


@pytest.mark.parametrize("config", MERGEABLE)
@pytest.mark.parametrize("name", MERGING)
def test_merging_packs_again_says_what_is_lost_and_can_be_undone(
    name: str, config: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain, paths = carrying(name, "bert", config)
    given = inputs("bert")
    stored = products(model, paths)
    expected = infer(model, given)
    before = {path: weight_of(model.get_submodule(path)).clone() for path in paths}
    plain.merge_adapter("a")  # what the weights would be if they were not rounded
    wanted = {path: plain.get_submodule(path).weight.detach() for path in paths}
    changed = {path for path in paths if not torch.equal(wanted[path], before[path].float())}

    lost = model.merge_adapter("a")
    assert set(lost) == changed
    said = [one.getMessage() for one in caplog.records if "quantised again" in one.getMessage()]
    assert [f"{max(lost.values()):.2g}" in one for one in said] == [True] * bool(lost)
    for path, share in lost.items():
        change = (wanted[path] - before[path]).norm()
        error = (weight_of(model.get_submodule(path)) - wanted[path]).norm() / change
        assert share == pytest.approx(float(error), rel=1e-2, abs=1e-5) and share < 1.5

    model.reset_adapter()
    for path, found in products(model, paths).items():
        assert torch.equal(found, stored[path]), path
    assert torch.equal(infer(model, given), expected)


def test_a_weight_that_cannot_be_packed_is_not_merged() -> None:
    model, _, _ = carrying("any module with dequantize()", "bert", "lora")
    expected = infer(model, inputs("bert"))
    with pytest.raises(MergeError, match=r"cannot be packed as Readable .*16 or 32 bit"):
        model.merge_adapter("a")
    assert torch.equal(infer(model, inputs("bert")), expected) and not model._engine.merged


def test_four_bits_are_read_in_the_order_of_processors_too() -> None:
    module: Any = packed("bitsandbytes nf4", nn.Linear(64, 64))
    functional: Any = importlib.import_module("bitsandbytes.functional")
    if not hasattr(functional, "_convert_weight_packed_for_cpu"):
        pytest.skip("this bitsandbytes has one order only")
    expected = weight_of(module)
    module.weight.data, module.weight.quant_state = functional._convert_weight_packed_for_cpu(
        module.weight.data, module.weight.quant_state
    )
    torch.testing.assert_close(weight_of(module), expected, atol=1e-2, rtol=1e-2)
