"""Prefix tuning against softmax(Q [P_k; K]^T) [P_v; V], computed from the projections of each model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import PrefixTuningConfig, Stack
from tests.methods.reference import adapted, close, gate_of, weights
from tests.tiny import HEADS, TINY_MODELS, WIDTH, adapter_parameters, build, infer, inputs

LENGTH = 3


def small(**options: Any) -> PrefixTuningConfig:
    return PrefixTuningConfig(**{"prefix_length": LENGTH, "bottleneck_size": 8, **options})


def key_values(w: dict[str, Tensor], location: str, slot: int, layers: int, heads: int, flat: bool) -> list[Tensor]:
    """Prefix keys and values of one layer, each [heads, P, head_dim]."""
    if flat:
        vector = w[f"{location}.control_trans"]
    else:
        inner = torch.tanh(
            w[f"{location}.wte.weight"] @ w[f"{location}.control_trans.0.weight"].T
            + w[f"{location}.control_trans.0.bias"]
        )
        vector = inner @ w[f"{location}.control_trans.2.weight"].T + w[f"{location}.control_trans.2.bias"]
    both = vector.view(LENGTH, 2 * layers, heads, -1).permute(1, 2, 0, 3)
    return [both[2 * slot], both[2 * slot + 1]]


def split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def attention(
    q: Tensor, k: Tensor, v: Tensor, prefix: list[Tensor], mask: Tensor, scale: float | None = None
) -> Tensor:
    """[B, S, H * head_dim]; mask [B, 1, Q or 1, K] is True where attended. Key heads may be fewer."""
    pk, pv = (p.expand(len(q), -1, -1, -1) if p.dim() == 3 else p for p in prefix)
    groups = q.shape[1] // k.shape[1]
    k, v = (torch.cat(pair, 2).repeat_interleave(groups, 1) for pair in ((pk, k), (pv, v)))
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    mask = torch.cat([torch.ones(*mask.shape[:3], pk.shape[2], dtype=torch.bool), mask], 3)
    out = scores.masked_fill(~mask, -1e9).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def seen(model: Any, path: str, given: Any) -> tuple[Any, Any]:
    """(arguments, result) of one module in a call of the model."""
    found: list[Any] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found.append(((args, kwargs), output[0] if isinstance(output, tuple) else output))

    handle = model.get_submodule(path).register_forward_hook(note, with_kwargs=True)
    infer(model, given)
    handle.remove()
    return found[0]


def hidden_of(call: Any) -> Tensor:
    args, kwargs = call
    return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_an_encoder(kind: str, layer: int, flat: bool) -> None:
    model, given = adapted("bert", small(flat=flat), attn_implementation=kind), inputs("bert")
    path = f"encoder.layer.{layer}.attention.self"
    call, found = seen(model, path, given)
    x, module = hidden_of(call), model.get_submodule(path)
    q, k, v = (split(getattr(module, name)(x), HEADS) for name in ("query", "key", "value"))
    prefix = key_values(weights(model, "prefix_tuning.prefix_tunings"), "self_prefix", layer, 2, HEADS, flat)
    mask = given["attention_mask"].bool()[:, None, None]
    close(found, attention(q, k, v, prefix, mask).detach())


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_a_causal_decoder_with_a_fused_projection(kind: str, padded: bool) -> None:
    """Every position sees the whole prefix, and of the others those before it."""
    model, given = adapted("gpt2", small(), attn_implementation=kind), inputs("gpt2", padded=padded)
    call, found = seen(model, "h.1.attn", given)
    module = model.h[1].attn
    q, k, v = (split(t, HEADS) for t in module.c_attn(hidden_of(call)).chunk(3, -1))
    prefix = key_values(weights(model, "prefix_tuning.prefix_tunings"), "self_prefix", 1, 2, HEADS, False)
    size = q.shape[2]
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None] & given["attention_mask"].bool()[:, None, None]
    keep = given["attention_mask"].bool()
    close(found[keep], module.c_proj(attention(q, k, v, prefix, mask)).detach()[keep])


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_grouped_queries_and_rotary_positions(name: str, kind: str) -> None:
    """The prefix has as many heads as the keys, and no positions: keys are rotated as without it."""
    model, given = adapted(name, small(), attn_implementation=kind), inputs(name, padded=False)
    call, found = seen(model, "layers.1.self_attn", given)
    module, x = model.layers[1].self_attn, hidden_of(call)
    q, k, v = (getattr(module, f"{p}_proj")(x) for p in "qkv")
    heads = module.head_dim
    q, k, v = (t.view(*t.shape[:2], -1, heads) for t in (q, k, v))
    if name == "qwen3":
        q, k = module.q_norm(q), module.k_norm(k)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    cos, sin = (t[:, None] for t in call[1]["position_embeddings"])

    def turned(t: Tensor) -> Tensor:
        half = t.shape[-1] // 2
        return t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin

    prefix = key_values(weights(model, "prefix_tuning.prefix_tunings"), "self_prefix", 1, 2, 2, False)
    mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()[None, None]
    close(found, module.o_proj(attention(turned(q), turned(k), v, prefix, mask)).detach())


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("location", "path", "slot"),
    [
        ("encoder_prefix", "encoder.layers.1.self_attn", 1),
        ("self_prefix", "decoder.layers.0.self_attn", 0),
        ("cross_prefix", "decoder.layers.1.encoder_attn", 1),
    ],
)
def test_an_encoder_decoder(location: str, path: str, slot: int, kind: str) -> None:
    model, given = adapted("bart", small(), attn_implementation=kind), inputs("bart")
    call, found = seen(model, path, given)
    module, x = model.get_submodule(path), hidden_of(call)
    source = x
    if location == "cross_prefix":
        source = call[1].get("key_value_states", call[0][1] if len(call[0]) > 1 else None)
    q, k, v = module.q_proj(x), module.k_proj(source), module.v_proj(source)
    prefix = key_values(weights(model, "prefix_tuning.prefix_tunings"), location, slot, 2, HEADS, False)
    mask = given["attention_mask"].bool()[:, None, None]
    if location == "self_prefix":
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[None, None]
    expected = attention(*(split(t, HEADS) for t in (q, k, v)), prefix, mask)
    close(found, module.out_proj(expected).detach())


def test_relative_positions_count_the_prefix() -> None:
    """In T5 a prefix takes the first positions: the bias of key j is that of a key P further."""
    model, given = adapted("t5", small()), inputs("t5")
    path = "encoder.block.0.layer.0.SelfAttention"
    call, found = seen(model, path, given)
    module, x = model.get_submodule(path), hidden_of(call)
    q, k, v = (split(getattr(module, name)(x), HEADS) for name in "qkv")
    pk, pv = key_values(weights(model, "prefix_tuning.prefix_tunings"), "encoder_prefix", 0, 2, HEADS, False)
    k, v = (torch.cat([p.expand(len(x), -1, -1, -1), t], 2) for p, t in ((pk, k), (pv, v)))
    bias = module.compute_bias(q.shape[2], k.shape[2])
    mask = torch.nn.functional.pad(given["attention_mask"].bool(), (LENGTH, 0), value=True)[:, None, None]
    scores = (q @ k.transpose(2, 3) + bias).masked_fill(~mask, -1e9)
    close(found, module.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)).detach())


@pytest.mark.parametrize("shared", [True, False])
def test_a_gate_scales_keys_and_values(shared: bool) -> None:
    model, given = adapted("bert", small(use_gating=True, shared_gating=shared)), inputs("bert")
    path = "encoder.layer.0.attention.self"
    call, found = seen(model, path, given)
    x, module = hidden_of(call), model.get_submodule(path)
    gates = gate_of(weights(model, f"{path}.prefix_tuning.prefix_gates"), x, "", given["attention_mask"])
    assert gates.shape[1] == (1 if shared else 2)
    keys, values = key_values(weights(model, "prefix_tuning.prefix_tunings"), "self_prefix", 0, 2, HEADS, False)
    prefix = [keys[None] * gates[:, :1, None, None], values[None] * gates[:, -1:, None, None]]
    q, k, v = (split(getattr(module, name)(x), HEADS) for name in ("query", "key", "value"))
    close(found, attention(q, k, v, prefix, given["attention_mask"].bool()[:, None, None]).detach())


def test_the_last_of_a_stack_stands_first() -> None:
    model, given = adapted("bert", small(), small(prefix_length=LENGTH)), inputs("bert")
    model.set_active_adapters(Stack("a", "b"))
    path = "encoder.layer.0.attention.self"
    call, found = seen(model, path, given)
    x, module = hidden_of(call), model.get_submodule(path)
    one, two = (
        key_values(weights(model, "prefix_tuning.prefix_tunings", n), "self_prefix", 0, 2, HEADS, False) for n in "ab"
    )
    prefix = [torch.cat(pair, 1) for pair in zip(two, one)]
    q, k, v = (split(getattr(module, name)(x), HEADS) for name in ("query", "key", "value"))
    close(found, attention(q, k, v, prefix, given["attention_mask"].bool()[:, None, None]).detach())


def test_layers_that_are_left_out_take_no_slot() -> None:
    model, given = adapted("bert", small(leave_out=[0])), inputs("bert")
    path = "encoder.layer.1.attention.self"
    call, found = seen(model, path, given)
    x, module = hidden_of(call), model.get_submodule(path)
    prefix = key_values(weights(model, "prefix_tuning.prefix_tunings"), "self_prefix", 0, 1, HEADS, False)
    q, k, v = (split(getattr(module, name)(x), HEADS) for name in ("query", "key", "value"))
    close(found, attention(q, k, v, prefix, given["attention_mask"].bool()[:, None, None]).detach())


@pytest.mark.parametrize("name", TINY_MODELS)
def test_eject_keeps_the_output_and_drops_the_network(name: str) -> None:
    model, given = adapted(name, small()), inputs(name)
    expected, before = infer(model, given), sum(p.numel() for p in adapter_parameters(model, "a").values())
    model.eject_prefix_tuning("a")
    close(infer(model, given), expected)
    parameters = adapter_parameters(model, "a")
    assert all(key.endswith("control_trans") for key in parameters)
    assert sum(p.numel() for p in parameters.values()) < before
    assert model.adapters_config.get("a").flat
    model.train_adapter("a")
    model(**given).last_hidden_state.sum().backward()
    assert all(p.grad is not None for p in parameters.values())
    model.eject_prefix_tuning("a")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"encoder_prefix", "self_prefix", "cross_prefix"}),
        ({"encoder_prefix": False}, {"self_prefix", "cross_prefix"}),
        ({"cross_prefix": False}, {"encoder_prefix", "self_prefix"}),
        ({"encoder_prefix": False, "cross_prefix": False}, {"self_prefix"}),
    ],
)
@pytest.mark.parametrize("name", ["t5", "bart", "mbart"])
def test_flags_choose_attentions(name: str, options: Any, expected: set[str]) -> None:
    model = adapted(name, small(**options))
    assert {key.split(".prefix_tunings.a.")[1].split(".")[0] for key in adapter_parameters(model, "a")} == expected


def test_dropout_is_for_training() -> None:
    model, given = adapted("bert", small(dropout=0.5)), inputs("bert")
    assert torch.equal(infer(model, given), infer(model, given))
    model.train()
    assert not torch.equal(infer(model, given), infer(model, given))


def test_a_new_prefix_is_random() -> None:
    model = build("bert")
    model.add_adapter("a", config=small(flat=True))
    vector = model.get_parameter("prefix_tuning.prefix_tunings.a.self_prefix.control_trans")
    assert vector.shape == (LENGTH * 2 * 2 * WIDTH,)
    assert 0.8 < vector.std() < 1.2
