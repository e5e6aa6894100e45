"""Invertible adapters against y1 = x1 + F(x2), y2 = x2 + G(y1), and its inverse in front of the output embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import AutoAdapterModel, BatchSplit, Parallel, SeqBnInvConfig, Stack
from adapters.methods.invertible import NICE
from tests.methods.reference import adapted, close, states, weights
from tests.tiny import LANGUAGE_MODELS, TINY_MODELS, build, config, infer, inputs, perturb, randomised

PLACES = {
    "bert": "embeddings",
    "roberta": "embeddings",
    "distilbert": "embeddings",
    "electra": "embeddings",
    "gpt2": "drop",
    "llama": "embed_tokens",
    "qwen3": "embed_tokens",
    "t5": "encoder.block.0",
    "bart": "encoder.layernorm_embedding",
    "mbart": "encoder.layernorm_embedding",
}


def small(**options: Any) -> SeqBnInvConfig:
    return SeqBnInvConfig(**{"reduction_factor": 4, "output_adapter": False, "mh_adapter": False, **options})


def inverse_only(name: str, **options: Any) -> Any:
    """A model whose adapter is the bijection and an untouched bottleneck in the last layer."""
    layers = 4 if TINY_MODELS[name].kind == "encoder-decoder" else 2
    upper = list(range(layers - 1))
    return adapted(name, SeqBnInvConfig(reduction_factor=4, non_linearity="tanh", leave_out=upper, **options))


def halves(w: dict[str, Tensor], part: str, x: Tensor) -> Tensor:
    inner = torch.tanh(x @ w[f"{part}.0.weight"].T + w[f"{part}.0.bias"])
    return inner @ w[f"{part}.2.weight"].T + w[f"{part}.2.bias"]


def forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    one = one + halves(w, "F", two)
    return torch.cat([one, two + halves(w, "G", one)], -1)


def backward(w: dict[str, Tensor], y: Tensor) -> Tensor:
    one, two = y.chunk(2, -1)
    two = two - halves(w, "G", one)
    return torch.cat([one - halves(w, "F", two), two], -1)


def first_states(model: Any, given: Any) -> Tensor:
    """The states that enter the first layer."""
    result = model(**given, output_hidden_states=True)
    return (result.get("hidden_states") or result["encoder_hidden_states"])[0].detach()  # type: ignore[no-any-return]


def embedded(model: Any, path: str, given: Any) -> Tensor:
    """What enters the layers: the output of a module, or the input of T5's first block."""
    found: list[Tensor] = []

    def note(module: Any, args: Any, output: Any = None) -> None:
        found.append(args[0] if output is None else output)

    module = model.get_submodule(path)
    block = path.endswith("block.0")
    handle = module.register_forward_pre_hook(note) if block else module.register_forward_hook(note)
    infer(model, given)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", PLACES)
def test_token_embeddings_are_changed(name: str) -> None:
    model, given, path = inverse_only(name), inputs(name), PLACES[name]
    changed = embedded(model, path, given)
    model.set_active_adapters(None)
    close(changed, forward(inverse_weights(model), embedded(model, path, given)))


def entering(model: Any, given: Any) -> Tensor:
    """What enters the output embedding, after all edits."""
    found: list[Tensor] = []

    def note(module: Any, args: Any) -> None:
        found.append(args[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(note)
    infer(model, given)
    handle.remove()
    return found[0]


HEADS = {
    "bert": "add_masked_lm_head",
    "electra": "add_masked_lm_head",
    "gpt2": "add_causal_lm_head",
    "llama": "add_causal_lm_head",
    "t5": "add_seq2seq_lm_head",
    "bart": "add_seq2seq_lm_head",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_flexible_head_sees_the_inverse(name: str) -> None:
    model = randomised(AutoAdapterModel.from_config(config(name)))
    getattr(model, HEADS[name])("lm")
    model.add_adapter("a", config=SeqBnInvConfig(reduction_factor=4, non_linearity="tanh"))
    perturb(model, "a")
    model.set_active_adapters("a")
    model.active_head = "lm"
    given, w = inputs(name), inverse_weights(model)
    found = entering(model, given)
    model._engine.set_output_embeddings([])
    close(found, backward(w, entering(model, given)))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_static_head_sees_the_inverse_where_adapters_were_trained_with_it(name: str) -> None:
    model, given = build(name, "lm"), inputs(name, "lm")
    model.add_adapter("a", config=SeqBnInvConfig(reduction_factor=4, non_linearity="tanh"), set_active=True)
    perturb(model, "a")
    found, w = entering(model, given), inverse_weights(model)
    model._engine.set_output_embeddings([])
    plain = entering(model, given)
    close(found, backward(w, plain) if name in ("qwen2", "qwen3") else plain)


def inverse_weights(model: Any) -> dict[str, Tensor]:
    place = next(key.split(".a.")[0] for key in model.state_dict() if "invertible_adapters.a." in key)
    return weights(model, place)


def test_the_inverse_undoes_it() -> None:
    model = inverse_only("bert")
    module = model.get_invertible_adapter()
    assert isinstance(module, NICE)
    x = states()
    close(module(module(x), rev=True), x)
    close(module(module(x, rev=True)), x)
    w = weights(model, "invertible_adapters")
    close(module(x).detach(), forward(w, x))
    close(module(x, rev=True).detach(), backward(w, x))


def test_a_masked_language_model_uses_it_too() -> None:
    model, given = build("roberta", "masked lm"), inputs("roberta")
    plain = infer(model, given)
    model.add_adapter("a", config=small(output_adapter=True), set_active=True)
    perturb(model, "a")
    assert not torch.allclose(infer(model, given), plain)
    model.set_active_adapters(None)
    assert torch.equal(infer(model, given), plain)


def test_the_language_adapter_of_a_stack() -> None:
    model, given = build("bert"), inputs("bert")
    model.add_adapter("language", config="seq_bn_inv[reduction_factor=4]")
    model.add_adapter("task", config="seq_bn_inv[reduction_factor=4]")
    perturb(model, "language", "task")
    model.set_active_adapters(Stack("language", "task"))
    assert model.get_invertible_adapter() is model.get_adapter("language")[-1]["invertible"]
    stacked = first_states(model, given)
    model.set_active_adapters(None)
    plain = first_states(model, given)
    language, task = (model.get_adapter(name)[-1]["invertible"] for name in ("language", "task"))
    close(stacked, task(language(plain)).detach())
    model.set_active_adapters(Stack("task", "language"))
    assert not torch.allclose(first_states(model, given), stacked)
    model.set_active_adapters(None)
    assert model.get_invertible_adapter() is None


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_rows_have_their_own_bijection_in_and_out(name: str) -> None:
    model, given = build(name, "lm"), inputs(name, "lm")
    results = []
    for i, adapter in enumerate("ab"):
        model.add_adapter(adapter, config="seq_bn_inv[reduction_factor=4]", set_active=True)
        perturb(model, adapter, seed=i)
        results.append(infer(model, given))
    model.set_active_adapters(Parallel("a", "b"))
    close(infer(model, given), torch.cat(results))
    model.set_active_adapters(BatchSplit("b", "a", batch_sizes=[1, 3]))
    close(infer(model, given), torch.cat([results[1][:1], results[0][1:]]))
