"""BitFit against y + d at linear maps and norms, against training of the bias terms themselves, fused and stacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapters
from adapters import Average, Stack
from adapters.errors import ConfigError, MergeError, UnsupportedError
from adapters.methods.bitfit import BitFit, BitFitConfig
from tests.methods.reference import adapted, close, states, weights
from tests.methods.test_lora import called
from tests.tiny import build, infer, inputs, output, perturb

PLACES = [
    ("bert", "encoder.layer.1.output.dense"),
    ("bert", "encoder.layer.0.attention.output.LayerNorm"),
    ("gpt2", "h.1.attn.c_attn"),
    ("gpt2", "h.0.ln_2"),
    ("qwen2", "layers.0.self_attn.q_proj"),
]


def modules(model: Any, name: str = "a") -> list[BitFit]:
    return [m for m in model.modules() if isinstance(m, BitFit) and m.name == name]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_formula(name: str, place: str) -> None:
    model = build(name)
    module = model.get_submodule(place)
    x = states(width=getattr(module, "in_features", 40 if "output.dense" in place else 32))
    plain = module(x).detach()
    model = adapted(name, BitFitConfig())
    expected = plain + weights(model, f"{place}.loras")["bias"]
    close(called(model, place, x), expected)
    before = [model.get_submodule(place).get_parameter(part).clone() for part in ("weight", "bias")]
    model.merge_adapter("a")
    close(called(model, place, x), expected)
    model.reset_adapter()
    assert all(map(torch.equal, before, (model.get_submodule(place).get_parameter(p) for p in ("weight", "bias"))))


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart", "vit"])
def test_it_trains_what_the_paper_trains(name: str) -> None:
    """One step on d is one step on the bias terms of the layers themselves."""
    model, other, given = build(name), build(name, adapted=False), inputs(name)
    model.add_adapter("a", config="bitfit")
    model.train_adapter("a")
    own = {key: p for key, p in other.named_parameters() if key.endswith("bias") and any(c.isdigit() for c in key)}
    assert {f"{m.site.path}.bias" for m in modules(model)} == set(own)
    other.requires_grad_(False)
    for parameter in own.values():
        parameter.requires_grad_(True)
    for each in (model, other):
        optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.01)
        output(each, given).square().sum().backward()
        optimizer.step()
    close(infer(model, given), infer(other, given))
    assert not torch.allclose(infer(model, given), infer(build(name), given), atol=1e-3)


def test_the_subset_of_the_paper() -> None:
    model = adapted("bert", "bitfit_subset")
    assert {m.site.path.split(".", 3)[3] for m in modules(model)} == {"attention.self.query", "intermediate.dense"}


@pytest.mark.parametrize("matrices", ["q", "kv", "qkv"])
def test_a_fused_projection(matrices: str) -> None:
    x, place = states(), "h.1.attn.c_attn"
    plain = build("gpt2").get_submodule(place)(x).detach()
    model = adapted("gpt2", BitFitConfig(places=[f"attn.{part}" for part in matrices]))
    added: list[Tensor] = [torch.zeros(32)] * 3
    for part, own in zip(matrices, weights(model, f"{place}.loras")["bias"].split(32)):
        added["qkv".index(part)] = own
    close(called(model, place, x), plain + torch.cat(added))


def test_stacks_add_up_and_averages_average() -> None:
    x, place = states(), "encoder.layer.0.attention.output.LayerNorm"
    plain = build("bert").get_submodule(place)(x).detach()
    model = adapted("bert", BitFitConfig(), BitFitConfig(), "lora")
    one, two = (weights(model, f"{place}.loras", adapter)["bias"] for adapter in "ab")
    model.set_active_adapters(Stack("a", "b"))
    close(called(model, place, x), plain + one + two)
    model.set_active_adapters(Average("a", "b", weights=[1, 3]))
    close(called(model, place, x), plain + (one + 3 * two) / 4)


@pytest.mark.parametrize("order", ["ac", "ca"])
def test_with_lora_at_one_map(order: str) -> None:
    """LoRA reads x, and not what BitFit adds."""
    x, place = states(), "encoder.layer.0.attention.self.query"
    plain = build("bert").get_submodule(place)(x).detach()
    model = adapted("bert", BitFitConfig(), BitFitConfig(), "lora[r=2,alpha=2]")
    w = weights(model, f"{place}.loras", "c")
    model.set_active_adapters(Stack(*order))
    close(called(model, place, x), plain + weights(model, f"{place}.loras")["bias"] + x @ w["lora_A"].T @ w["lora_B"].T)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_model_without_bias_is_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(UnsupportedError, match=r"'a': BitFit cannot act in .* AffineSite with a bias"):
        model.add_adapter("a", config="bitfit")
    assert not model.has_adapters() and not model.supports_adapter("bitfit")


def test_places_without_bias_are_left_out_or_refused() -> None:
    model = build("qwen2")
    model.add_adapter("a", config="bitfit")
    assert {site.role for site in (m.site for m in modules(model))} == {"attn.q", "attn.k", "attn.v"}
    with pytest.raises(UnsupportedError, match=r"(?s)cannot act at 'ffn.up' in .* has no bias there.*attn.q"):
        model.add_adapter("b", config="bitfit_subset")
    with pytest.raises(ConfigError, match="no such place"):
        model.add_adapter("b", config=BitFitConfig(places=["attn.x"]))
    assert list(model.adapters_config) == ["a"]


def test_all_places_are_those_where_a_method_can_act() -> None:
    for config, kind in (("lora[places='all']", "LinearSite"), ("seq_bn[places='all']", "ResidualSite")):
        model = build("bert")
        model.add_adapter("a", config=config)
        sites = [hooked.site for hooked in model._engine.hooked if hooked.names]
        every = [
            hooked.site
            for hooked in model._engine.hooked
            if type(hooked.site).__name__ == kind and hooked.site.layer >= 0
        ]
        assert sites == every and len(sites) > 2


class Packed(nn.Module):
    """A linear map that nobody can read the weight of, as quantised ones."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter((100 * linear.weight).round().to(torch.int8).flatten(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.view(self.out_features, -1) / 100).T + self.bias


def quantised() -> Any:
    model = build("bert", adapted=False)
    for layer in model.encoder.layer:
        for owner, name in ((layer.attention.self, "query"), (layer.intermediate, "dense")):
            setattr(owner, name, Packed(getattr(owner, name)))
    return adapters.init(model)


def test_merging_leaves_quantised_weights_as_they_are() -> None:
    model, given = quantised(), inputs("bert")
    model.add_adapter("a", config="bitfit")
    plain, before = infer(model, given), {key: value.clone() for key, value in model.state_dict().items()}
    perturb(model, "a")
    model.set_active_adapters("a")
    expected = infer(model, given)
    assert not torch.allclose(expected, plain, atol=1e-2)
    model.merge_adapter("a")
    model.set_active_adapters(None)
    torch.testing.assert_close(infer(model, given), expected, atol=1e-5, rtol=1e-4)
    base = {key for key in before if ".a." not in key}
    changed = {key for key in base if not torch.equal(model.state_dict()[key], before[key])}
    assert changed and all(key.endswith("bias") for key in changed)
    model.reset_adapter()
    assert torch.equal(infer(model, given), plain)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in base)


def test_weights_that_are_quantised_cannot_change() -> None:
    model = quantised()
    model.add_adapter("a", config="lora")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(MergeError, match="packed"):
        model.merge_adapter("a")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model._engine.merged
