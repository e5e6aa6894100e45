"""Bottleneck adapters against the steps of their definition, for every option and both kinds of norm."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from adapters import BnConfig, Stack
from tests.methods.reference import adapted, close, gate_of, states, weights
from tests.tiny import build, infer, inputs


def norm_of(module: nn.Module) -> Any:
    """A norm as a plain function, with no hook on it."""
    return module.forward


def reference(c: BnConfig, w: dict[str, Tensor], h: Tensor, x: Tensor, norm: Any) -> Tensor:
    """What the branch gives: h is its output before the sum, x the residual input, norm what follows the sum."""
    given, res = h, h
    if not c.is_parallel:
        if c.original_ln_before:
            h = h + x
            if c.residual_before_ln == "post_add":
                res = h
            h = norm(h) if norm else h
        if c.residual_before_ln is False:
            res = h
    z = x if c.is_parallel else h
    down = 0
    inner = z
    if c.ln_before:
        inner, down = F.layer_norm(z, z.shape[-1:], w["adapter_down.0.weight"], w["adapter_down.0.bias"]), 1
    inner = ACT2FN[c.non_linearity](inner @ w[f"adapter_down.{down}.weight"].T + w[f"adapter_down.{down}.bias"])
    u = inner @ w["adapter_up.weight"].T + w["adapter_up.bias"]
    u = u * (w["scaling"] if isinstance(c.scaling, str) else c.scaling)
    if c.use_gating:
        u = u * gate_of(w, z)[:, :, None]

    def after(t: Tensor) -> Tensor:
        if not c.ln_after:
            return t
        return F.layer_norm(t, t.shape[-1:], w["adapter_norm_after.weight"], w["adapter_norm_after.bias"])

    if c.is_parallel:
        out = after(u) + given
    elif c.adapter_residual_before_ln:
        out = after(u + res)
    else:
        out = after(u) + res
    if not c.original_ln_after:
        return out
    return norm(out + x) if norm else out + x


OPTIONS: dict[str, dict[str, Any]] = {
    "norm before": {"original_ln_before": True},
    "no norm after": {"original_ln_after": False},
    "norms before, none after": {"original_ln_before": True, "original_ln_after": False},
    "residual after norm": {"original_ln_before": True, "residual_before_ln": False},
    "residual after sum": {"original_ln_before": True, "residual_before_ln": "post_add"},
    "own norms": {"ln_before": True, "ln_after": True},
    "residual in own norm": {"ln_after": True, "adapter_residual_before_ln": True},
    "gate": {"use_gating": True},
    "gate, norm before": {"use_gating": True, "original_ln_before": True},
    "scaling 0.5": {"scaling": 0.5},
    "scaling learned": {"scaling": "learned"},
    "scaling channel": {"scaling": "channel", "original_ln_before": True},
    "parallel": {"is_parallel": True},
    "parallel, no norm after": {"is_parallel": True, "original_ln_after": False},
    "parallel, own norms, gate": {"is_parallel": True, "ln_before": True, "ln_after": True, "use_gating": True},
    "parallel ignores": {"is_parallel": True, "original_ln_before": True, "residual_before_ln": False},
    "nothing": {},
}
for before, after, residual in itertools.product([True, False], [True, False], [True, False, "post_add"]):
    OPTIONS[f"{before}-{after}-{residual}"] = {
        "original_ln_before": before,
        "original_ln_after": after,
        "residual_before_ln": residual,
    }
ACTIVATIONS = ("relu", "gelu", "swish", "tanh")


def config(number: int, **options: Any) -> BnConfig:
    return BnConfig(
        mh_adapter=False,
        output_adapter=True,
        reduction_factor=4,
        non_linearity=ACTIVATIONS[number % len(ACTIVATIONS)],
        **options,
    )


@pytest.mark.parametrize(("number", "options"), list(enumerate(OPTIONS.values())), ids=list(OPTIONS))
def test_behind_a_norm_that_follows_the_sum(number: int, options: dict[str, Any]) -> None:
    c = config(number, **options)
    model = adapted("bert", c)
    layer = model.encoder.layer[1].output
    given, x = states(width=40), states(seed=1)
    with torch.no_grad():
        found = layer(given, x)
        h = layer.dense.forward(given)
        expected = reference(c, weights(model, "encoder.layer.1.output.adapters"), h, x, norm_of(layer.LayerNorm))
    close(found, expected)


@pytest.mark.parametrize(("number", "options"), list(enumerate(OPTIONS.values())), ids=list(OPTIONS))
@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_behind_a_norm_that_comes_first(name: str, number: int, options: dict[str, Any]) -> None:
    """GPT-2 returns its hidden state, ViT too; h is the output of the feed-forward block, x what entered its norm."""
    c = config(number, **options)
    model = adapted(name, c)
    layer = (model.h if name == "gpt2" else model.layers)[1]
    norm, block = (layer.ln_2, layer.mlp) if name == "gpt2" else (layer.layernorm_after, layer.mlp)
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        result = layer(states())
        found = result[0] if isinstance(result, tuple) else result
        x = seen[0]
        model.set_active_adapters(None)
        h = block(norm.forward(x))
        place = "h.1.output_adapters.adapters" if name == "gpt2" else "layers.1.output.output_adapters.adapters"
        close(found, reference(c, weights(model, place), h, x, None))


@pytest.mark.parametrize(
    ("name", "layer", "module", "norm", "place"),
    [
        ("bert", "encoder.layer.0", "attention.output", "attention.output.LayerNorm", "attention.output.adapters"),
        ("electra", "encoder.layer.0", "attention.output", "attention.output.LayerNorm", "attention.output.adapters"),
    ],
)
def test_behind_the_attention(name: str, layer: str, module: str, norm: str, place: str) -> None:
    c = BnConfig(mh_adapter=True, output_adapter=False, reduction_factor=2, non_linearity="relu")
    model = adapted(name, c)
    owner = model.get_submodule(f"{layer}.{module}")
    given, x = states(), states(seed=1)
    with torch.no_grad():
        found, h = owner(given, x), owner.dense.forward(given)
        rule = norm_of(model.get_submodule(f"{layer}.{norm}"))
        close(found, reference(c, weights(model, f"{layer}.{place}"), h, x, rule))


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_behind_the_cross_attention(name: str) -> None:
    """In the decoder only, and only if asked for."""
    c = BnConfig(mh_adapter=False, output_adapter=False, cross_adapter=True, reduction_factor=4, non_linearity="relu")
    model = adapted(name, c)
    where, branch = {
        "bart": ("decoder.layers.0.cross_attention_adapters.adapters", "decoder.layers.0.encoder_attn.out_proj"),
        "t5": ("decoder.block.0.layer.1.adapters", "decoder.block.0.layer.1.dropout"),
    }[name]
    found = outputs_of(model, branch, inputs(name))
    model.set_active_adapters(None)
    h = outputs_of(model, branch, inputs(name))
    w = weights(model, where)
    up = torch.relu(h @ w["adapter_down.0.weight"].T + w["adapter_down.0.bias"])
    close(found, up @ w["adapter_up.weight"].T + w["adapter_up.bias"] + h)
    assert len([key for key in model.state_dict() if ".a." in key]) == 2 * len(w)


def outputs_of(model: Any, path: str, given: Any) -> Tensor:
    """What a module returns in a call of the model, after all edits."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = model.get_submodule(path).register_forward_hook(note)
    infer(model, given)
    handle.remove()
    return found[0]


def test_a_stack_prepares_every_adapter_from_the_original_input() -> None:
    c = config(0, original_ln_before=True)
    model = adapted("bert", c, c)
    model.set_active_adapters(Stack("a", "b"))
    layer = model.encoder.layer[0].output
    given, x = states(width=40), states(seed=1)
    norm = norm_of(layer.LayerNorm)
    with torch.no_grad():
        found, h = layer(given, x), layer.dense.forward(given)
        for adapter in "ab":
            w = weights(model, "encoder.layer.0.output.adapters", adapter)
            z = norm(h + x)
            up = torch.relu(z @ w["adapter_down.0.weight"].T + w["adapter_down.0.bias"])
            h = up @ w["adapter_up.weight"].T + w["adapter_up.bias"] + h
        close(found, norm(h + x))


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    for options in ({"dropout": 0.5}, {"stochastic_depth": 0.5}):
        model, given = adapted("bert", config(0, **options)), inputs("bert")
        plain = adapted("bert", config(0))
        close(infer(model, given), infer(plain, given))
        model.train()
        runs = [infer(model, given) for _ in range(3)]
        assert not torch.equal(runs[0], runs[1]) or not torch.equal(runs[1], runs[2])
        if "stochastic_depth" in options:
            model.add_adapter("p", config=config(0, is_parallel=True, **options), set_active=True)
            assert torch.equal(infer(model, given), infer(model, given))


def test_stochastic_depth_drops_rows_and_scales_the_rest() -> None:
    c = config(0, stochastic_depth=0.5)
    model = adapted("bert", c).train()
    module = model.get_adapter("a")[0]["output_adapter"]
    z = states(rows=64)
    with torch.no_grad():
        up = module.train()(z)
        full = module.eval()(z)
    kept = up.abs().sum((1, 2)) > 0
    assert 10 < kept.sum() < 54
    close(up[kept], 2 * full[kept])
    assert up[~kept].abs().max() == 0


@pytest.mark.parametrize("scheme", ["bert", "mam_adapter", "houlsby"])
def test_initial_weights(scheme: str) -> None:
    model = build("bert")
    model.add_adapter("a", config=config(0, init_weights=scheme, scaling="learned", use_gating=True, ln_after=True))
    w = weights(model, "encoder.layer.0.output.adapters")
    assert w["adapter_down.0.bias"].abs().max() == 0 and w["adapter_up.bias"].abs().max() == 0
    assert float(w["scaling"]) == 1 and w["adapter_norm_after.weight"].eq(1).all()
    assert 0.01 < w["gate.weight"].std() < 0.03
    if scheme == "mam_adapter":
        assert w["adapter_up.weight"].abs().max() == 0
        assert w["adapter_down.0.weight"].abs().max() <= 1 / 32**0.5
    elif scheme == "houlsby":
        assert w["adapter_down.0.weight"].abs().max() <= 0.02
        assert 0.005 < w["adapter_down.0.weight"].std() < 0.012
    else:
        assert 0.015 < w["adapter_up.weight"].std() < 0.025
