"""LN tuning against the norm with other weights, against PEFT's numbers, stacked and on top of a merged adapter."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from adapters import Average, BatchSplit, Stack
from adapters.errors import UnsupportedError
from adapters.methods.ln_tuning import LNTuning, LNTuningConfig
from tests.methods.reference import adapted, close, states, weights
from tests.methods.test_lora import called
from tests.tiny import build, infer, inputs, output

PLACES = [
    ("bert", "encoder.layer.1.output.LayerNorm"),
    ("gpt2", "h.0.ln_1"),
    ("llama", "layers.1.post_attention_layernorm"),
    ("t5", "decoder.block.0.layer.1.layer_norm"),
]


def modules(model: Any, name: str = "a") -> list[LNTuning]:
    return [m for m in model.modules() if isinstance(m, LNTuning) and m.name == name]


def normed(norm: Any, x: Tensor, *changes: dict[str, Tensor]) -> Tensor:
    """The norm of x with weight and bias changed, in plain torch."""
    if isinstance(norm, nn.LayerNorm):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    else:
        x = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    weight = norm.weight.detach() + sum(change["norm.weight"] for change in changes)
    bias = getattr(norm, "bias", None)
    return x * weight + (0 if bias is None else bias.detach() + sum(change["norm.bias"] for change in changes))


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_formula(name: str, place: str) -> None:
    model, x = adapted(name, "ln_tuning"), states()
    norm = model.get_submodule(place)
    own = weights(model, f"{place}.loras")
    assert ("norm.bias" in own) == isinstance(norm, nn.LayerNorm)
    expected = normed(norm, x, own)
    close(called(model, place, x), expected)
    before = norm.weight.clone()
    model.merge_adapter("a")
    assert not torch.equal(norm.weight, before)
    close(called(model, place, x), expected)
    model.reset_adapter()
    assert torch.equal(norm.weight, before)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
def test_numbers_are_those_of_peft(name: str, merge: bool) -> None:
    targets = {"bert": r".*layer\.\d.*LayerNorm", "llama": r".*(input|post_attention)_layernorm"}[name]
    model, given = adapted(name, "ln_tuning"), inputs(name)
    other: Any = peft.get_peft_model(build(name, adapted=False), peft.LNTuningConfig(target_modules=targets)).eval()
    with torch.no_grad():
        for module in modules(model):
            layer = other.base_model.model.get_submodule(module.site.path).ln_tuning_layers["default"]
            for part, change in module.norm.named_parameters():
                layer.get_parameter(part).add_(change)
    assert len(modules(model)) == 4
    if merge:
        model.merge_adapter("a")
        other = other.merge_and_unload()
    torch.testing.assert_close(infer(model, given), infer(other, given), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(infer(model, given), infer(build(name), given), atol=1e-2)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_it_trains_as_the_norms_themselves_do(name: str) -> None:
    model, other, given = build(name), build(name, adapted=False), inputs(name)
    model.add_adapter("a", config="ln_tuning")
    model.train_adapter("a")
    assert torch.equal(infer(model, given), infer(other, given))
    other.requires_grad_(False)
    for module in modules(model):
        other.get_submodule(module.site.path).requires_grad_(True)
    for each in (model, other):
        optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.01)
        output(each, given).square().sum().backward()
        optimizer.step()
    close(infer(model, given), infer(other, given))
    assert not torch.allclose(infer(model, given), infer(build(name), given), atol=1e-3)


def test_stacks_add_up_and_averages_average() -> None:
    x, place = states(), "encoder.layer.0.attention.output.LayerNorm"
    model = adapted("bert", "ln_tuning", "ln_tuning", "bitfit")
    norm = model.get_submodule(place)
    one, two = (weights(model, f"{place}.loras", adapter) for adapter in "ab")
    both = normed(norm, x, one, two)
    model.set_active_adapters(Stack("a", "b"))
    close(called(model, place, x), both)
    model.set_active_adapters(Stack("a", "c", "b"))
    close(called(model, place, x), both + weights(model, f"{place}.loras", "c")["bias"])
    model.set_active_adapters(Average("a", "b", weights=[1, 3]))
    close(called(model, place, x), (normed(norm, x, one) + 3 * normed(norm, x, two)) / 4)
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[1, 2]))
    close(called(model, place, x), torch.cat([normed(norm, x[:1], one), normed(norm, x[1:], two)]))


def test_it_acts_on_top_of_a_merged_one() -> None:
    model, given = adapted("bert", "ln_tuning", "ln_tuning"), inputs("bert")
    model.set_active_adapters(Stack("a", "b"))
    expected = infer(model, given)
    model.merge_adapter("a")
    model.set_active_adapters("b")
    torch.testing.assert_close(infer(model, given), expected, atol=2e-5, rtol=1e-4)


def test_nothing_of_the_norm_is_held() -> None:
    model = adapted("bert", "ln_tuning", "ln_tuning")
    for module in modules(model):
        norm: Any = module.site.module
        assert type(module.norm) is type(norm) and module.norm.eps == norm.eps
        assert not module.norm._forward_hooks and norm._forward_hooks
        assert {id(p) for p in module.norm.parameters()}.isdisjoint(map(id, norm._parameters.values()))


class Shifted(nn.Module):
    """A norm as in Gemma, times 1 + w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + self.weight)


def test_norms_that_it_cannot_change_are_refused() -> None:
    plain, model = build("bert", adapted=False), build("bert")
    for hooked in model._engine.hooked:
        if hooked.site.role.endswith(".norm"):
            hooked.site.module = Shifted()
    with pytest.raises(
        UnsupportedError, match=r"LNTuning cannot act at '\*.norm' in .* no weight that is the only factor"
    ):
        model.add_adapter("a", config="ln_tuning")
    for hooked in model._engine.hooked:
        if hooked.site.role.endswith(".norm"):
            hooked.site.module = nn.LayerNorm(32, elementwise_affine=False)
    with pytest.raises(UnsupportedError, match=r"LNTuning cannot act at '\*.norm' in .* no weight there"):
        model.add_adapter("a", config="ln_tuning")
    assert model.supports_adapter(LNTuningConfig(places=["embeddings.LayerNorm"]))
    assert not model.has_adapters() and type(plain.embeddings.LayerNorm) is nn.LayerNorm
