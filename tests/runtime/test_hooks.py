"""Hooks of single sites: which are there, when they act, and in which order with those of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import AdapterSetup, BatchSplit
from adapters.call import CALL
from adapters.runtime.hooks import OneCall
from adapters.sites.site import AffineSite
from tests.contract.cases import MERGEABLE, carrying
from tests.tiny import hooks, infer, inputs, perturb

QUERY = "encoder.layer.0.attention.self.query"


def active(*methods: str) -> tuple[Any, Any]:
    """A tiny BERT whose adapter "a" does something, and is active."""
    model = carrying("bert", *methods)
    perturb(model, "a")
    model.set_active_adapters("a")
    return model, model.get_submodule(QUERY)


def test_hooks_are_only_where_the_active_adapters_act() -> None:
    model = carrying("bert", "lora", "seq_bn")
    idle = set(hooks(model))
    assert all(trace.startswith(".") for trace in idle)  # of the model itself: where calls begin and end
    model.set_active_adapters("a")
    of_lora = set(hooks(model)) - idle
    model.set_active_adapters("b")
    of_bottleneck = set(hooks(model)) - idle
    assert of_lora and of_bottleneck and not of_lora & of_bottleneck
    assert any(QUERY in trace for trace in of_lora) and not any(QUERY in trace for trace in of_bottleneck)
    model.set_active_adapters("a")
    assert set(hooks(model)) == of_lora | idle
    model.set_active_adapters(None)
    model.delete_adapter(["a", "b"])
    assert not hooks(model)


def test_a_tap_is_served_by_one_hook_however_often_it_is_asked_for() -> None:
    model, query = active("lora")
    assert len(query._forward_hooks) == 1
    served = next(site for site in model._engine.sites.values() if site.site.module is query)
    served.hook("output")
    assert len(query._forward_hooks) == 1
    served.unhook("output")
    served.unhook("output")
    assert not query._forward_hooks and not served.handles


def test_a_module_that_is_called_by_itself_follows_what_is_in_force() -> None:
    model, query = active("lora")
    x = torch.randn(2, 3, query.in_features)
    plain = nn.functional.linear(x, query.weight, query.bias)
    lora = model._engine.parts["a"][0].module
    expected = plain + lora.scaling * x @ lora.lora_A.T @ lora.lora_B.T
    with torch.no_grad():
        torch.testing.assert_close(query(x), expected)
        with AdapterSetup(None):
            assert torch.equal(query(x), plain)
    assert not torch.allclose(plain, expected)


def test_hooks_of_users_see_what_adapters_have_made_of_an_output() -> None:
    model, query = active("lora")
    model.set_active_adapters(None)
    seen: list[Tensor] = []
    query.register_forward_hook(lambda module, args, output: seen.append(output))
    given = inputs("bert")
    infer(model, given)
    model.set_active_adapters("a")
    infer(model, given)
    x = torch.randn(1, 2, query.in_features)
    with torch.no_grad():
        made = query(x)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], made)


class AddsOne:
    def on_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + 1


@pytest.mark.parametrize(
    ("number", "calls", "expected"), [(0, 2, [1, 0, 1, 0]), (1, 2, [0, 1, 0, 1]), (2, 3, [0, 0, 1, 0])]
)
def test_one_of_several_calls(number: int, calls: int, expected: list[int]) -> None:
    module = nn.Identity()
    module.register_forward_hook(OneCall(AddsOne().on_output, number, calls))
    CALL.now.turns.clear()
    assert [int(module(torch.zeros(()))) for _ in expected] == expected
    CALL.now.turns.clear()


@pytest.mark.parametrize(
    "setup", ["a", BatchSplit("a", "b", batch_sizes=[1, 1]), BatchSplit("a", None, batch_sizes=[1, 1])]
)
@pytest.mark.parametrize("method", [name for name in MERGEABLE if name != "trainable_tokens"])  # tables read numbers
@torch.no_grad()
def test_linear_maps_are_given_any_number_of_dimensions(method: str, setup: Any) -> None:
    """Poolers give them [B, I], DeepSeek [B, 1, S, I]: as [B, 1, I] and [B, S, I]."""
    model = carrying("bert", method, method)
    perturb(model, "a", "b")
    model.set_active_adapters(setup)
    sites = [part.hooked.site for part in model._engine.parts["a"] if part.hooked is not None]
    modules = {id(site.module): site.module for site in sites if isinstance(site, AffineSite) and site.layer == 0}
    assert modules
    for module in modules.values():
        width = getattr(module, "in_features", 0) or module.weight.shape[-1]
        x = torch.randn(2, 6, width)
        torch.testing.assert_close(module(x.view(2, 2, 3, width)), module(x).view(2, 2, 3, -1))
        torch.testing.assert_close(module(x[:, 0]), module(x[:, :1])[:, 0])
