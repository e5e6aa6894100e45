"""DoRA against m / ||W + B A|| * (W x + b + (alpha / r) B A x)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import DoRAConfig, Stack
from adapters.errors import MergeError
from tests.methods.reference import adapted, close, dense, gate_of, states, weights
from tests.methods.test_lora import SITES, called
from tests.tiny import build, infer, inputs


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("name", "place"), SITES)
def test_one_projection(name: str, place: str, gated: bool) -> None:
    config = DoRAConfig(r=3, alpha=5, intermediate_lora=True, output_lora=True, use_gating=gated)
    model = adapted(name, config)
    weight, bias = dense(model.get_submodule(place))
    x, w = states(width=weight.shape[1]), weights(model, f"{place}.loras")
    length = w["m.weight"].squeeze(1) / torch.linalg.vector_norm(weight + w["lora_B"] @ w["lora_A"], dim=1)
    update = x @ w["lora_A"].T @ w["lora_B"].T
    update = update * gate_of(w, x)[:, :, None] if gated else update * 5 / 3
    close(called(model, place, x), length * (x @ weight.T + bias + update))


def test_starts_with_the_lengths_of_the_base_weight() -> None:
    model, given = build("bert"), inputs("bert")
    plain = infer(model, given)
    model.add_adapter("a", config="dora", set_active=True)
    place = "encoder.layer.1.attention.self.value"
    lengths = torch.linalg.vector_norm(model.get_submodule(place).weight, dim=1)
    close(weights(model, f"{place}.loras")["m.weight"].squeeze(1), lengths.detach())
    close(infer(model, given), plain)


@pytest.mark.parametrize("method", ["dora", "dvora"])
def test_loading_reads_no_lengths_of_the_base_weight(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = adapted("bert", method), inputs("bert")
    model.save_adapter(tmp_path, "a")
    fresh, measured = build("bert"), []
    norm = torch.Tensor.norm
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "norm", lambda self, *args, **kw: (measured.append(1), norm(self, *args, **kw))[1])
        fresh.load_adapter(tmp_path, set_active=True)
        assert not measured
        fresh.add_adapter("b", config=method)
        assert len(measured) == 4
    assert torch.equal(infer(fresh, given), infer(model, given))


@pytest.mark.parametrize("method", ["dora", "dvora"])
def test_packed_weights_are_refused_when_a_file_is_loaded(method: str, tmp_path: Path) -> None:
    adapted("bert", method).save_adapter(tmp_path, "a")
    model = build("bert")
    query = model.encoder.layer[0].attention.self.query
    query.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(MergeError, match="packed"):
        model.load_adapter(tmp_path)
    assert not model.has_adapters()


def test_the_last_of_a_stack_sets_the_length() -> None:
    model, place, x = (
        adapted("bert", DoRAConfig(r=3), DoRAConfig(r=3)),
        "encoder.layer.0.attention.self.query",
        states(),
    )
    model.set_active_adapters(Stack("a", "b"))
    weight, bias = dense(model.get_submodule(place))
    one, two = (weights(model, f"{place}.loras", adapter) for adapter in "ab")
    first = x @ one["lora_A"].T @ one["lora_B"].T * 8 / 3
    y = x @ weight.T + bias + first @ two["lora_A"].T @ two["lora_B"].T * 8 / 3
    norm = torch.linalg.vector_norm(weight + two["lora_B"] @ two["lora_A"], dim=1)
    close(called(model, place, x), y * two["m.weight"].squeeze(1) / norm)


def test_the_norm_follows_the_weights() -> None:
    model, place, x = adapted("bert", DoRAConfig(r=3)), "encoder.layer.0.attention.self.query", states()
    first = called(model, place, x)
    with torch.no_grad():
        model.get_submodule(place).weight.mul_(2.0)
        model.get_submodule(place).bias.zero_()
    weight, _ = dense(model.get_submodule(place))
    w = weights(model, f"{place}.loras")
    norm = torch.linalg.vector_norm(weight + w["lora_B"] @ w["lora_A"], dim=1)
    second = called(model, place, x)
    assert not torch.allclose(first, second)
    close(second, (x @ (weight + w["lora_B"] @ w["lora_A"] * 8 / 3).T) * w["m.weight"].squeeze(1) / norm)


def test_gradients_of_the_norm_are_used() -> None:
    """The norm is part of the graph: a finite difference agrees with the gradient of A."""
    model = adapted("bert", DoRAConfig(r=2)).double()
    place = "encoder.layer.0.attention.self.query"
    linear, a = model.get_submodule(place), model.get_parameter(f"{place}.loras.a.lora_A")
    x = states().double()
    linear(x).pow(2).sum().backward()
    step = 1e-6
    with torch.no_grad():
        a[0, 0] += step
        above = linear(x).pow(2).sum()
        a[0, 0] -= 2 * step
        below = linear(x).pow(2).sum()
    torch.testing.assert_close((above - below) / (2 * step), a.grad[0, 0], rtol=1e-5, atol=1e-6)
