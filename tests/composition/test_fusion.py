"""AdapterFusion against sum_i softmax_i((W_q q) . (W_k u_i)) W_v u_i + residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import AdapterFusionConfig, BnConfig, Fuse, IA3Config, LoRAConfig, Stack
from tests.methods.reference import adapted, close, states, weights
from tests.tiny import perturb

DYNAMIC = {
    "key": True,
    "query": True,
    "value": True,
    "query_before_ln": False,
    "regularization": True,
    "residual_before": False,
    "temperature": False,
    "value_before_softmax": True,
    "value_initialized": True,
}
CASES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"value": False},
    "no query": {"query": False},
    "no key": {"key": False},
    "values alone": {"key": False, "query": False},
    "nothing": {"key": False, "query": False, "value": False},
    "query before norm": {"query_before_ln": True},
    "residual before": {"residual_before": True, "value": False},
    "value after softmax": {"value_before_softmax": False},
}


def small(**options: Any) -> BnConfig:
    return BnConfig(
        mh_adapter=False, output_adapter=True, reduction_factor=4, non_linearity="relu", **{"scaling": 0.7, **options}
    )


def contribution(w: dict[str, Tensor], z: Tensor) -> Tensor:
    inner = torch.relu(z @ w["adapter_down.0.weight"].T + w["adapter_down.0.bias"])
    return (inner @ w["adapter_up.weight"].T + w["adapter_up.bias"]) * 0.7


def fused(
    c: AdapterFusionConfig, w: dict[str, Tensor], query: Tensor, updates: list[Tensor], residual: Tensor
) -> Tensor:
    values = [u @ w["value.weight"].T if c.value and c.value_before_softmax else u for u in updates]
    if c.residual_before:
        values = [value + residual for value in values]
    keys = [u @ w["key.weight"].T + w["key.bias"] if c.key else u for u in updates]
    q = query @ w["query.weight"].T + w["query.bias"] if c.query else query
    share = torch.stack([(q * key).sum(-1) for key in keys], -1).softmax(-1)
    out: Any = sum(share[..., i, None] * value for i, value in enumerate(values))
    if c.value and not c.value_before_softmax:
        out = out @ w["value.weight"].T
    return out if c.residual_before else out + residual


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_sequential_adapters(options: dict[str, Any], before: bool) -> None:
    config = AdapterFusionConfig(**{**DYNAMIC, **options})
    model = adapted("bert", small(original_ln_before=before), small(original_ln_before=before))
    model.add_adapter_fusion(["a", "b"], config, set_active=True)
    perturb(model, "a,b")
    layer = model.encoder.layer[0].output
    given, x = states(width=40), states(seed=1)
    norm = layer.LayerNorm.forward
    with torch.no_grad():
        found, h = layer(given, x), layer.dense.forward(given)
        z = norm(h + x) if before else h
        updates = [contribution(weights(model, "encoder.layer.0.output.adapters", n), z) for n in "ab"]
        query = h if config.query_before_ln else z
        w = weights(model, "encoder.layer.0.output.adapter_fusion_layer", "a,b")
        close(found, norm(fused(config, w, query, updates, h) + x))


def test_a_stack_contributes_what_its_last_adapter_adds() -> None:
    model = adapted("bert", small(), small(), small())
    model.add_adapter_fusion(["b", "c"])
    perturb(model, "b,c")
    model.set_active_adapters(Fuse(Stack("a", "b"), "c"))
    layer = model.encoder.layer[0].output
    given, x = states(width=40), states(seed=1)
    with torch.no_grad():
        found, h = layer(given, x), layer.dense.forward(given)
        one, two, three = (weights(model, "encoder.layer.0.output.adapters", n) for n in "abc")
        updates = [contribution(two, h + contribution(one, h)), contribution(three, h)]
        w = weights(model, "encoder.layer.0.output.adapter_fusion_layer", "b,c")
        config = AdapterFusionConfig(**DYNAMIC)
        close(found, layer.LayerNorm.forward(fused(config, w, h, updates, h) + x))


def test_initial_weights() -> None:
    model = adapted("bert", small(), small())
    model.add_adapter_fusion(["a", "b"])
    w = weights(model, "encoder.layer.0.output.adapter_fusion_layer", "a,b")
    close(w["value.weight"], torch.eye(32) + 1e-6 * (1 - torch.eye(32)))
    assert 0.015 < w["query.weight"].std() < 0.025 and w["key.bias"].abs().max() == 0
    assert "value.bias" not in w
    model.train_adapter_fusion(Fuse("a", "b"))
    loss = model.get_fusion_regularization_loss()
    assert 0 <= float(loss.detach()) < 1e-8
    perturb(model, "a,b")
    values = [p for key, p in model.named_parameters() if "fusion" in key and "value" in key]
    expected = sum(0.01 * (torch.eye(32) - p).pow(2).sum() for p in values)
    close(model.get_fusion_regularization_loss().detach(), expected.detach())  # type: ignore[union-attr]


def test_the_temperature_falls_in_training_only() -> None:
    model = adapted("bert", small(), small())
    model.add_adapter_fusion(["a", "b"], AdapterFusionConfig(**{**DYNAMIC, "temperature": True}), set_active=True)
    layer = model.encoder.layer[0].output
    fusion = layer.adapter_fusion_layer["a,b"]
    given, x = states(width=40), states(seed=1)
    for _ in range(3):
        layer(given, x)
    assert fusion.temperature == 50
    model.train()
    for _ in range(3):
        layer(given, x)
    assert fusion.temperature == pytest.approx(50 - 3 * 0.05)


CONFIGS = {
    "lora": (lambda: LoRAConfig(r=4, alpha=6), ["query", "value"], 32),
    "wide": (lambda: LoRAConfig(r=4, places=["ffn.up"]), ["dense"], 40),
    "ia3": (lambda: IA3Config(), ["key", "value"], 32),
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("method", CONFIGS)
def test_linear_maps(method: str, options: dict[str, Any]) -> None:
    """q = res = y and u_i = out_i - y, where y is the output of the map."""
    config, names, width = CONFIGS[method]
    model = adapted("bert", config(), config())
    model.add_adapter_fusion(["a", "b"], AdapterFusionConfig(**{**DYNAMIC, **options}))
    perturb(model, "a,b")
    layer = model.encoder.layer[0]
    owner = layer.intermediate if method == "wide" else layer.attention.self
    for name in names:
        linear, x = getattr(owner, name), states()
        results = {}
        for setup in (None, "a", "b", Fuse("a", "b")):
            model.set_active_adapters(setup)
            with torch.no_grad():
                results[str(setup)] = linear(x)
        y = results["None"]
        w = weights(linear, "adapter_fusion_layer", "a,b")
        assert w["key.weight" if "key.weight" in w else next(iter(w))].shape[-1] == width
        expected = fused(AdapterFusionConfig(**{**DYNAMIC, **options}), w, y, [results[n] - y for n in "ab"], y)
        with torch.no_grad():
            close(results["Fuse[a, b]"], expected)


def test_the_next_update_of_a_stack_reads_the_fused_update() -> None:
    model = adapted("bert", *(LoRAConfig(r=4, alpha=6) for _ in range(3)))
    model.add_adapter_fusion(["a", "b"])
    perturb(model, "a,b")
    linear, x = model.encoder.layer[0].attention.self.query, states()
    with torch.no_grad():
        model.set_active_adapters(None)
        y = linear(x)
        model.set_active_adapters(Fuse("a", "b"))
        update = linear(x) - y
        model.set_active_adapters("c")
        chained = linear(update) - linear.forward(update)
        model.set_active_adapters(Stack(Fuse("a", "b"), "c"))
        close(linear(x), y + chained)
