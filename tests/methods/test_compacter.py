"""Compacter against y = x H + b, H a sum of Kronecker products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import CompacterConfig, CompacterPlusPlusConfig
from tests.methods.reference import adapted, close, states, weights
from tests.tiny import adapter_parameters, build

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "whole W": {"factorized_phm_W": False},
    "rank 2": {"phm_rank": 2},
    "own rules": {"shared_phm_rule": False},
    "factorised rules": {"factorized_phm_rule": True},
    "own factorised rules": {"shared_phm_rule": False, "factorized_phm_rule": True},
    "shared W": {"shared_W_phm": True},
    "shared whole W": {"shared_W_phm": True, "factorized_phm_W": False},
    "no bias": {"phm_bias": False},
    "two factors": {"phm_dim": 2},
}


def matrix(c: Any, own: dict[str, Tensor], shared: dict[str, Tensor], part: str, direction: str) -> Tensor:
    """sum_i kron(A_i, W_i), [I, O]."""
    rules = shared if c.shared_phm_rule else {k.removeprefix(part): v for k, v in own.items() if k.startswith(part)}
    rule = rules["phm_rule_left"] @ rules["phm_rule_right"] if c.factorized_phm_rule else rules["phm_rule"]
    owner, name = (shared, f"W_{direction}") if c.shared_W_phm else (own, f"{part}W")
    w = owner[f"{name}_left"] @ owner[f"{name}_right"] if c.factorized_phm_W else owner[name]
    return sum(torch.kron(rule[i], w[i]) for i in range(c.phm_dim))  # type: ignore[return-value]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kind", [CompacterConfig, CompacterPlusPlusConfig])
def test_one_place(kind: Any, options: dict[str, Any]) -> None:
    c = kind(reduction_factor=4, non_linearity="tanh", **options)
    model = adapted("bert", c)
    layer = model.encoder.layer[1].output
    own = weights(model, "encoder.layer.1.output.adapters")
    parts = c.shared_phm_rule or c.shared_W_phm
    shared = weights(model, "shared_parameters") if parts else {}
    given, x = states(width=40), states(seed=1)
    norm = layer.LayerNorm.forward
    with torch.no_grad():
        found, h = layer(given, x), layer.dense.forward(given)
        z = norm(h + x) if c.original_ln_before else h
        inner = torch.tanh(z @ matrix(c, own, shared, "adapter_down.0.", "down") + own.get("adapter_down.0.b", 0))
        update = inner @ matrix(c, own, shared, "adapter_up.", "up") + own.get("adapter_up.b", 0)
        close(found, norm(update + h + x))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_what_is_shared_is_stored_and_trained_once(options: dict[str, Any]) -> None:
    c = CompacterConfig(reduction_factor=4, **options)
    model = build("bert")
    model.add_adapter("a", config=c)
    keys = list(adapter_parameters(model, "a"))
    rules = [key for key in keys if "phm_rule" in key and not key.endswith("_right")]
    assert len(rules) == (1 if c.shared_phm_rule else 8)
    assert any("shared_parameters" in key for key in keys) == (c.shared_phm_rule or c.shared_W_phm)
    model.train_adapter("a")
    model(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.sum().backward()
    assert all(p.grad is not None for p in adapter_parameters(model, "a").values())


@pytest.mark.parametrize("scheme", ["normal", "uniform"])
def test_initial_weights(scheme: str) -> None:
    model = build("bert")
    model.add_adapter("a", config=CompacterConfig(reduction_factor=4, phm_c_init=scheme, phm_init_range=0.01))
    rule = weights(model, "shared_parameters")["phm_rule"]
    assert rule.shape == (4, 4, 4)
    if scheme == "normal":
        assert 0.005 < rule.std() < 0.015
    else:
        assert 0.5 < rule.abs().max() <= 1
    own = weights(model, "encoder.layer.0.output.adapters")
    assert own["adapter_up.b"].abs().max() == 0
    assert own["adapter_down.0.W_left"].shape == (4, 8, 1)
