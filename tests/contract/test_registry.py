"""The contract tests cover what is registered, and a new method needs a class and one line."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from adapters import AdapterConfig, AdapterSetup, Average, BatchSplit, ConfigUnion, LoRAConfig, Parallel, Stack
from adapters.errors import UnsupportedError
from adapters.methods import METHODS
from adapters.methods.base import LinearAdapter
from adapters.methods.config import flag, layer_numbers
from adapters.sites.linear import weight_of
from tests.contract import cases
from tests.contract.cases import CONFIGS, PRESETS, handled, methods_of
from tests.tiny import adapter_parameters, build, hooks, infer, inputs, perturb


def test_every_method_is_covered() -> None:
    used = {method for name in CONFIGS for method in methods_of(name)}
    assert set(METHODS) <= used
    assert {method for name in cases.ONE_OF_EACH for method in methods_of(name)} >= used - {
        METHODS_OF_VARIANTS["dvora"]
    }


METHODS_OF_VARIANTS = {name: methods_of(name)[0] for name in ("dvora",) if name in CONFIGS}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_tells_what_it_is(method: type[Any]) -> None:
    """Its paper, a formula with the shapes, where it acts and where it is stored: tables and docs are made of it."""
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", method.paper)
    doc = inspect.getdoc(method) or ""
    assert re.search(r"^Papers?: .*arXiv:", doc, re.MULTILINE)
    assert re.search(r"^    \S.*[=(<\[]", doc, re.MULTILINE), "no formula"
    assert method.site_type and method.container
    assert not hasattr(method, "model_type")


def test_presets_without_a_method_are_refused() -> None:
    for config in [config for config in PRESETS.values() if not handled(config)]:
        model = build("bert")
        with pytest.raises(UnsupportedError, match="'new'"):
            model.add_adapter("new", config=config)
        assert not model.has_adapters() and not model.supports_adapter(config)


@dataclass(eq=False)
class ShiftConfig(AdapterConfig):
    """Adds a trained vector to the output of linear layers."""

    architecture: str | None = "shift"
    output_lora: bool = True
    leave_out: list[int] = field(default_factory=list)

    rules: ClassVar[Any] = {"output_lora": flag, "leave_out": layer_numbers}


class Shift(LinearAdapter):
    """y = W x + b + v."""

    paper = "arXiv:0000.00000"
    config_class = ShiftConfig

    def __init__(self, config: ShiftConfig, site: Any, name: str) -> None:
        super().__init__(config, site, name)
        self.v = nn.Parameter(torch.zeros(site.out_features))

    @classmethod
    def acts_at(cls, config: ShiftConfig, site: Any) -> bool:
        return config.output_lora and site.location == "output_lora"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y.add_(self.v)  # the contract lets a method reuse y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, None if bias is None else bias + self.v


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.runtime.building.METHODS", (*METHODS, Shift))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit"])
def test_a_new_linear_method_can_do_what_all_can(name: str) -> None:
    """Twenty lines give it architectures, training, blocks, contexts, unions, merging, copies, and a clean end."""
    model, given = build(name), inputs(name)
    plain = infer(model, given)
    for i, adapter in enumerate("ab"):
        model.add_adapter(adapter, config=ShiftConfig(), set_active=True)
        assert torch.equal(infer(model, given), plain)
        perturb(model, adapter, seed=i)
    results = {}
    for adapter in "ab":
        model.set_active_adapters(adapter)
        results[adapter] = infer(model, given)
    model.set_active_adapters(Parallel("a", "b"))
    torch.testing.assert_close(infer(model, given), torch.cat([results["a"], results["b"]]))
    with AdapterSetup(BatchSplit("b", None, batch_sizes=[1, 3])):
        torch.testing.assert_close(infer(model, given), torch.cat([results["b"][:1], plain[1:]]))
    model.add_adapter("sum", config=ShiftConfig())
    for setup, shares in ((Stack("a", "b"), (1, 1)), (Average("a", "b", None, weights=[1, 2, 1]), (0.25, 0.5))):
        with torch.no_grad():
            vectors = zip(*(adapter_parameters(model, adapter).values() for adapter in ("sum", "a", "b")))
            for total, one, two in vectors:
                total.copy_(shares[0] * one + shares[1] * two)
        model.set_active_adapters("sum")
        expected = infer(model, given)
        model.set_active_adapters(setup)
        torch.testing.assert_close(infer(model, given), expected, atol=1e-5, rtol=1e-4)
    model.delete_adapter("sum")
    model.train_adapter("a")
    model(**given).last_hidden_state.pow(2).sum().backward()
    assert all(p.grad is not None for p in adapter_parameters(model, "a").values())
    model.eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(infer(twin, given), infer(model, given))
    if name != "t5":  # its linear maps have no bias that could hold the vector
        model.merge_adapter("a")
        torch.testing.assert_close(infer(model, given), results["a"], atol=1e-5, rtol=1e-4)
        model.reset_adapter()
    model.add_adapter("u", config=ConfigUnion(ShiftConfig(), LoRAConfig()), set_active=True)
    assert model.adapter_summary(as_dict=True)[0]["#param"] == sum(
        weight_of(part).shape[0] for part in outputs_of(model)
    )
    for adapter in "abu":
        model.delete_adapter(adapter)
    assert torch.equal(infer(model, given), plain)
    assert hooks(model) == hooks(build(name))


def outputs_of(model: Any) -> list[nn.Module]:
    return [hooked.site.module for hooked in model._engine.hooked if hooked.site.location == "output_lora"]
