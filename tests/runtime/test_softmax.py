"""Prefixes in models that compute attention themselves: equal to those in the attention function, and to formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

import adapters
from adapters import Average, BatchSplit, Parallel, PrefixTuningConfig, Stack
from adapters.errors import UnsupportedError
from adapters.runtime import attention, softmax
from adapters.runtime.hooks import Plan
from adapters.sites.site import AttentionSite
from adapters.sites.spec import Attention, Columns, LayerList, LayerSpec, Linear, ModelSpec, Place
from adapters.sites.specs import SPECS
from tests.tiny import (
    ENCODER,
    EOS,
    HEADS,
    PAD,
    TINY_MODELS,
    VOCAB,
    WIDTH,
    build,
    checkpoint,
    hooks,
    infer,
    inputs,
    output,
    perturb,
    randomised,
)

pytestmark = pytest.mark.versions

LENGTH = 3
CONFIG = PrefixTuningConfig(prefix_length=LENGTH, bottleneck_size=8)
SETUPS: tuple[Any, ...] = (
    "a",
    Stack("a", "b"),
    BatchSplit("a", "b", batch_sizes=[1, 3]),
    BatchSplit(Average("a", "b"), Stack("a", "b"), batch_sizes=[2, 2]),
    BatchSplit("a", None, batch_sizes=[1, 3]),
    Parallel("a", "b"),
)


def with_prefixes(model: Any, *configs: PrefixTuningConfig) -> Any:
    """`model` with prefixes "a" and "b", always the same."""
    torch.manual_seed(0)
    for name, config in zip("ab", configs or (CONFIG, CONFIG.replace(prefix_length=2))):
        model.add_adapter(name, config=config)
        perturb(model, name, seed=ord(name))
    return model


# ------------------------------------------------------------------------------ where a model has both ways

WITHOUT_OWN_BIAS = [name for name in TINY_MODELS if TINY_MODELS[name].model_type not in ("t5", "mt5")]
"""Prefixes of T5 have positions in its bias: there the two ways differ on purpose."""


@pytest.mark.parametrize("name", WITHOUT_OWN_BIAS)
def test_both_ways_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With padding, grouped queries and cross attention; outputs and gradients, for every kind of block."""
    given, gated = inputs(name), CONFIG.replace(use_gating=True, prefix_length=2)
    found: list[list[Tensor]] = []
    for here in (True, False):
        if not here:
            monkeypatch.setattr(attention, "asks_interface", lambda module: False)
        model = with_prefixes(build(name, attn_implementation="eager"), CONFIG, gated)
        results = []
        for setup in SETUPS:
            model.set_active_adapters(setup)
            model.zero_grad()
            out = output(model, given)
            out.square().mean().backward()
            results += [
                out.detach(),
                *(p.grad for n, p in model.named_parameters() if "prefix" in n and p.grad is not None),
            ]
        found.append(results)
    assert len(found[0]) == len(found[1]) > 5 * len(SETUPS)
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_dropout_of_probabilities_is_that_of_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for here in (True, False):
        if not here:
            monkeypatch.setattr(attention, "asks_interface", lambda module: False)
        model = with_prefixes(build("bert", attn_implementation="eager", attention_probs_dropout_prob=0.5)).train()
        model.set_active_adapters(Stack("a", "b"))
        torch.manual_seed(3)
        found.append(output(model, inputs("bert")).detach())
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------- ways to write attention

ROWS, QUERIES, KEYS, DIM = 2, 3, 5, 4
SCALE = DIM**-0.5
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1)


def by_methods(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    scores /= math.sqrt(DIM)
    return (scores + mask).softmax(dim=-1).matmul(v)


def by_functions(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.matmul(q, k.mT) * torch.tensor(SCALE)
    scores = torch.max(scores.masked_fill(mask < 0, torch.finfo(scores.dtype).min), torch.tensor(-1e30))
    return torch.matmul(F.dropout(F.softmax(scores, -1, dtype=torch.float32).type_as(v), 0.5, False), v)


def of_heads_in_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    bias = flat(mask.expand(ROWS, HEADS, QUERIES, KEYS))
    scores = bias.baddbmm(batch1=flat(q), batch2=flat(k).transpose(1, 2), beta=1.0, alpha=SCALE)
    probabilities = nn.Softmax(dim=-1)(scores.view(ROWS, HEADS, QUERIES, KEYS).float()).to(v.dtype)
    return torch.bmm(probabilities.view(ROWS * HEADS, QUERIES, -1), flat(v)).view(ROWS, HEADS, QUERIES, DIM)


def of_scaled_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(flat(q), flat(k).transpose(-1, -2) / torch.tensor(math.sqrt(DIM)))
    scores = torch.where(mask < 0, -torch.inf, scores.view(ROWS, HEADS, QUERIES, KEYS))
    return torch.softmax(scores, dim=3) @ v


def of_scaled_queries_and_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k = q * DIM**-0.25, (k * DIM**-0.25).contiguous()
    return torch.softmax(q.matmul(k.permute(0, 1, 3, 2)).add_(mask), -1) @ v


def by_letters(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) * SCALE + mask).softmax(-1), v)


def by_letters_along_the_sequence(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (t.permute(2, 0, 1, 3) for t in (q, k, v))
    scores = (torch.einsum("ibnd,jbnd->bnij", (q, k)) + 0) * SCALE + mask
    return torch.einsum("bnij,jbnd->ibnd", F.softmax(scores, dim=3), v).permute(1, 2, 0, 3)


def by_letters_in_another_order(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = torch.einsum("bshd,blhd->blhs", k, q) * SCALE + mask.expand(ROWS, HEADS, -1, -1).transpose(1, 2)
    return torch.einsum("bshd,blhs->bhld", v, scores.softmax(-1))


def without_largest(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.transpose(2, 3) * SCALE + mask
    return (scores - scores.max(dim=-1, keepdim=True).values).softmax(-1) @ v


def of_each_row(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([by_methods(*(t[i : i + 1] for t in (q, k, v)), mask) for i in range(ROWS)])


def of_blocks_of_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Values in pieces: the prefix is added once."""
    found = []
    for i in range(QUERIES):
        p = (q[:, :, i : i + 1] @ k.transpose(2, 3) * SCALE + mask[:, :, i : i + 1]).softmax(-1)
        found.append(p[..., :2] @ v[:, :, :2] + p[..., 2:] @ v[:, :, 2:])
    return torch.cat(found, 2)


def of_flattened_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Blocks of queries as one more dimension, which is flattened for the products."""
    scores = torch.bmm(q.reshape(-1, 1, DIM), k.repeat_interleave(QUERIES, 1).flatten(0, 1).transpose(1, 2)) * SCALE
    probabilities = (scores.view(ROWS, HEADS, QUERIES, 1, KEYS) + mask[:, :, :, None]).softmax(-1)
    found = torch.bmm(probabilities.reshape(-1, 1, KEYS), v.repeat_interleave(QUERIES, 1).flatten(0, 1))
    return found.view(ROWS, HEADS, QUERIES, DIM)


def by_the_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


WAYS: tuple[Way, ...] = (
    by_methods,
    by_functions,
    of_heads_in_rows,
    of_scaled_keys,
    of_scaled_queries_and_keys,
    by_letters,
    by_letters_along_the_sequence,
    by_letters_in_another_order,
    without_largest,
    of_each_row,
    of_blocks_of_queries,
    of_flattened_blocks,
    by_the_kernel,
)


def tensors(heads: int = HEADS) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """(q, k, v, causal mask), and a prefix of `heads` heads."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(ROWS, HEADS, n, DIM) for n in (QUERIES, KEYS, KEYS))
    mask = torch.zeros(QUERIES, KEYS).masked_fill(~torch.ones(QUERIES, KEYS).tril(1).bool(), -torch.inf)
    prefix = torch.randn(1, heads, LENGTH, DIM), torch.randn(1, heads, LENGTH, DIM)
    return [q, k, v, mask[None, None]], prefix


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, prefix: tuple[Tensor, Tensor], cap: Any = None) -> Tensor:
    repeats = HEADS // prefix[0].shape[1]
    keys, values = (
        torch.cat([p.repeat_interleave(repeats, 1).expand(ROWS, -1, -1, -1), t], 2) for p, t in zip(prefix, (k, v))
    )
    scores = q @ keys.transpose(2, 3) * SCALE
    scores = scores if cap is None else cap(scores)
    return (scores + F.pad(mask, (LENGTH, 0))).softmax(-1) @ values


def watched(way: Callable[..., Tensor], given: list[Tensor], prefix: tuple[Tensor, Tensor]) -> Tensor:
    """What `way` gives as the attention of a module whose prefix is active."""
    site = AttentionSite("attn.core", "self_prefix", 0, "layer.0.attention", nn.Identity())
    site.heads, site.query_width = (prefix[0].shape[1], DIM, DIM), HEADS * DIM
    runs = (partial(form.attend_prefix, lambda: prefix) for form in (softmax, attention))  # type: ignore[attr-defined]
    plan = Plan(("attention",), SimpleNamespace(), *runs)  # type: ignore[arg-type]
    watch = softmax.Watch(site, plan)
    failed = True
    watch.enter()
    try:
        out = way(*given)
        failed = False
    finally:
        watch.leave(failed)
    return out


@pytest.mark.parametrize("heads", [HEADS, 2, 1])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_ways_to_write_attention(way: Way, heads: int) -> None:
    given, prefix = tensors(heads)
    torch.testing.assert_close(watched(way, given, prefix), reference(*given, prefix), atol=1e-6, rtol=1e-5)


def test_what_is_done_to_all_scores_is_done_to_those_of_the_prefix() -> None:
    given, prefix = tensors()
    temperature = torch.rand(HEADS, 1, 1) + 0.5

    def cap(scores: Tensor) -> Tensor:
        return torch.tanh(scores / 2) * 2 * temperature

    def way(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = torch.tanh(q @ k.transpose(2, 3) * SCALE / 2.0) * 2
        return (temperature * scores + mask).softmax(-1) @ v

    torch.testing.assert_close(watched(way, given, prefix), reference(*given, prefix, cap), atol=1e-6, rtol=1e-5)


def test_what_is_done_to_probabilities_is_done_to_those_of_the_prefix() -> None:
    """A mask of heads counts for the prefix; a column that is no key (a sink) stays what it is."""
    given, prefix = tensors()
    heads, sink = torch.tensor([1.0, 0.0, 2.0, 1.0])[:, None, None], torch.randn(HEADS)

    def way(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = q @ k.transpose(2, 3) * SCALE + mask
        sinks = sink[None, :, None, None].expand(ROWS, -1, QUERIES, 1)
        return (torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] * heads) @ v

    q, k, v, mask = given
    keys, values = (torch.cat([p.expand(ROWS, -1, -1, -1), t], 2) for p, t in zip(prefix, (k, v)))
    scores = (q @ keys.transpose(2, 3) * SCALE + F.pad(mask, (LENGTH, 0))).exp()
    total = scores.sum(-1, keepdim=True) + sink.exp()[:, None, None]
    torch.testing.assert_close(watched(way, given, prefix), scores / total * heads @ values, atol=1e-6, rtol=1e-5)


# ----------------------------------------------------------------------------------------- what is refused


class OwnSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def by_exponentials(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    weights = (q @ k.transpose(2, 3) + mask).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def of_talking_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = F.linear((q @ k.transpose(2, 3)).permute(0, 2, 3, 1), torch.ones(HEADS, HEADS)).permute(0, 3, 1, 2)
    return scores.softmax(-1) @ v


def of_turned_probabilities(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (v.transpose(2, 3) @ (q @ k.transpose(2, 3)).softmax(-1).transpose(2, 3)).transpose(2, 3)


def with_its_own_function(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return OwnSoftmax.apply(q @ k.transpose(2, 3)) @ v  # type: ignore[no-untyped-call, no-any-return]


def by_landmarks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Nystrom's: as many landmarks as a head is wide, so that sizes do not tell."""
    some = torch.randn(ROWS, HEADS, DIM, DIM)
    near, among, far = ((a @ b.transpose(2, 3)).softmax(-1) for a, b in ((q, some), (some, some), (some, k)))
    return near @ torch.linalg.pinv(among) @ (far @ v)


def over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3)).softmax(2) @ v


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (by_exponentials, "calls neither transformers' AttentionInterface, nor a softmax"),
        (of_talking_heads, "changes its scores by 'permute'"),
        (of_turned_probabilities, "no product of its attention probabilities"),
        (with_its_own_function, "autograd function of its own"),
        (by_landmarks, "multiplies attention probabilities with others"),
        (over_queries, "of which it takes the softmax"),
    ],
)
def test_what_cannot_be_followed_is_refused(way: Way, reason: str) -> None:
    """With the name of the module; nothing is left behind."""
    given, prefix = tensors()
    with pytest.raises(UnsupportedError, match=reason) as error:
        watched(way, given, prefix)
    assert "layer.0.attention (Identity)" in str(error.value)
    assert torch._C._len_torch_function_stack() == 0


def test_a_prefix_of_another_width_is_refused() -> None:
    given, (keys, values) = tensors()
    with pytest.raises(UnsupportedError, match="heads are 4 wide, and those of the prefix 3"):
        watched(by_methods, given, (keys[..., :3], values))


# ------------------------------------------------------------------------- models that have this way only


def spec(
    path: str, core: str, qkv: tuple[str, str, str], columns: tuple[Columns | None, ...] = (None,) * 3, **places: str
) -> ModelSpec:
    """The attention of one list of layers; paths of projections are below `core`."""
    found: dict[str, Place] = {"attn.core": Attention(core), "ffn.down": Linear(places["down"])}
    for part, name, own in zip("qkv", qkv, columns):
        found[f"attn.{part}"] = Linear(f"{core}.{name}", own)
    return ModelSpec((LayerList(path, LayerSpec(found)),), causal=True)


def thirds(repeats: int | str = 1) -> tuple[Columns, ...]:
    return tuple(Columns(i, i + 1, of=3, repeats=repeats) for i in range(3))


DECODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "initializer_range": 0.2,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 48,
}
ROTARY: dict[str, Any] = {**DECODER, "rotary_dim": 4, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
RELATIVE: dict[str, Any] = {
    **ENCODER,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "max_relative_positions": 8,
    "type_vocab_size": 0,
}
OWN_ATTENTION: Mapping[str, tuple[ModelSpec, dict[str, Any]]] = {
    "deberta": (
        spec(
            "encoder.layer",
            "attention.self",
            ("in_proj",) * 3,
            thirds("attention.self.num_attention_heads"),
            down="output.dense",
        ),
        RELATIVE,
    ),
    "deberta-v2": (
        spec("encoder.layer", "attention.self", ("query_proj", "key_proj", "value_proj"), down="output.dense"),
        {**RELATIVE, "position_buckets": 4, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "mpnet": (
        spec("encoder.layer", "attention.attn", ("q", "k", "v"), down="output.dense"),
        {**ENCODER, "max_position_embeddings": 64},
    ),
    "gptj": (spec("h", "attn", ("q_proj", "k_proj", "v_proj"), down="mlp.fc_out"), ROTARY),
    "codegen": (
        spec(
            "h",
            "attn",
            ("qkv_proj",) * 3,
            tuple(Columns(i, i + 1, of=3, repeats=4) for i in (0, 2, 1)),
            down="mlp.fc_out",
        ),
        ROTARY,
    ),
    "falcon": (
        spec(
            "h",
            "self_attention",
            ("query_key_value",) * 3,
            (Columns(0, 4, of=6), Columns(4, 5, of=6), Columns(5, 6, of=6)),
            down="mlp.dense_4h_to_h",
        ),
        {**DECODER, "multi_query": True, "alibi": False},
    ),
    "bloom": (
        spec(
            "h",
            "self_attention",
            ("query_key_value",) * 3,
            thirds("self_attention.num_heads"),
            down="mlp.dense_4h_to_h",
        ),
        DECODER,
    ),
    "mpt": (
        spec("blocks", "attn", ("Wqkv",) * 3, thirds(), down="ffn.down_proj"),
        {**DECODER, "max_seq_len": 48, "expansion_ratio": 1},
    ),
    "gpt_neo": (
        spec("h", "attn.attention", ("q_proj", "k_proj", "v_proj"), down="mlp.c_proj"),
        {
            **{key: value for key, value in DECODER.items() if key != "num_hidden_layers"},
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 3,
        },
    ),
}
"""Model type -> (spec, config)."""

DECODERS = [
    name
    for name in OWN_ATTENTION
    if "max_position_embeddings" in OWN_ATTENTION[name][1] and name not in ("deberta", "deberta-v2", "mpnet")
]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a tiny model of a type in `OWN_ATTENTION`, with prefixes."""

    def made(name: str, kind: str = "AutoModel", attn_implementation: str = "eager", **changes: Any) -> Any:
        described, options = OWN_ATTENTION[name]
        monkeypatch.setitem(SPECS, name, described)  # type: ignore[arg-type]
        config = AutoConfig.for_model(name, **{**options, **changes})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, kind).from_config(config, attn_implementation=attn_implementation)
            return with_prefixes(adapters.init(randomised(model)))

    return made


def given_for(name: str, padded: bool = True) -> dict[str, Tensor]:
    return inputs("gpt2" if name in DECODERS else "bert", padded=padded)


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_every_position_sees_its_own_prefix(name: str, make: Callable[..., Any]) -> None:
    """All layers and positions change, each row has its own prefix, and what trains is the prefix."""
    model, given = make(name), given_for(name)
    keep = given["attention_mask"].bool()
    plain = infer(model, given)
    alone = {}
    for setup in ("a", "b", Stack("a", "b")):
        model.set_active_adapters(setup)
        alone[str(setup)] = infer(model, given)
    assert ((alone["a"] - plain).abs().amax(-1)[keep] > 1e-3).all()
    model.set_active_adapters(BatchSplit("a", Stack("a", "b"), batch_sizes=[1, 3]))
    expected = torch.cat([alone["a"][:1], alone[str(Stack("a", "b"))][1:]])
    torch.testing.assert_close(infer(model, given)[keep], expected[keep], atol=1e-6, rtol=1e-5)
    model.set_active_adapters(Parallel("a", "b"))
    torch.testing.assert_close(infer(model, given), torch.cat([alone["a"], alone["b"]]), atol=1e-6, rtol=1e-5)
    model.set_active_adapters(Average("a", "a"))
    torch.testing.assert_close(infer(model, given), alone["a"], atol=1e-6, rtol=1e-5)
    model.train_adapter("a")
    output(model, given)[keep].square().mean().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    assert moved and all(".a." in n for n in moved)
    model.delete_adapter("a")
    model.delete_adapter("b")
    assert torch.equal(infer(model, given), plain) and not hooks(model)


@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_a_cache_is_generation_without(name: str, make: Callable[..., Any]) -> None:
    """The prefix is not kept in the cache, and single queries see it too."""
    model, given = make(name, "AutoModelForCausalLM"), given_for(name)
    plain = model.generate(**given, max_new_tokens=6, do_sample=False)
    model.set_active_adapters(Stack("a", "b"))
    found = [model.generate(**given, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*found) and not torch.equal(found[0], plain)


@pytest.mark.parametrize("padded", [True, False])
def test_the_kernel_and_the_softmax_agree(padded: bool, make: Callable[..., Any]) -> None:
    given = given_for("falcon", padded)
    keep = given["attention_mask"].bool()
    for setup in SETUPS[:-1]:
        found = []
        for implementation in ("eager", "sdpa"):
            model = make("falcon", attn_implementation=implementation)
            model.set_active_adapters(setup)
            found.append(infer(model, given)[keep])
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*use_cache:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, make: Callable[..., Any]) -> None:
    found = []
    for on in (False, True):
        model, given = make("gptj"), given_for("gptj")
        model.train_adapter("a")
        if on:
            checkpoint(model, reentrant=reentrant)
            model.enable_input_require_grads()
        output(model, given, use_cache=False).square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(grad is not None and grad.abs().sum() > 0 for grad in found[0].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gptj", "deberta-v2"])
def test_compiled(name: str, make: Callable[..., Any]) -> None:
    """In one graph, which serves other adapters too."""
    torch._dynamo.reset()
    model, given = make(name), given_for(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for setup in ("a", Stack("a", "b"), "b"):
        model.set_active_adapters(setup)
        torch.testing.assert_close(infer(compiled, given), infer(model, given), atol=1e-6, rtol=1e-5)


def test_an_error_in_the_attention_leaves_nothing_behind(make: Callable[..., Any]) -> None:
    model, given = make("gptj"), given_for("gptj")
    model.set_active_adapters("a")
    expected = infer(model, given)

    def fail(*args: Any) -> None:
        raise RuntimeError("out of luck")

    handle = model.h[1].attn.v_proj.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        infer(model, given)
    handle.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(infer(model, given), expected)
