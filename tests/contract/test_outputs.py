"""What a call reports: hidden states and attentions with the edits in them, and scores on request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import Parallel, Stack
from tests.contract.cases import CONFIGS, ONE_OF_EACH, REPRESENTATIVE, carrying, every_pair, methods_of
from tests.tiny import LENGTH, ROWS, TINY_MODELS, build, infer, inputs, perturb


def states(result: Any) -> tuple[Tensor, ...]:
    """Hidden states of the stack that comes last."""
    return result["decoder_hidden_states"] if "decoder_hidden_states" in result else result["hidden_states"]


def attentions(result: Any) -> list[Tensor]:
    kinds = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
    return [one for kind in kinds for one in result.get(kind) or ()]


@every_pair(names=REPRESENTATIVE)
def test_hidden_states_show_the_edits(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    perturb(model, "a")
    plain = states(model(**given, output_hidden_states=True))
    model.set_active_adapters("a")
    with torch.no_grad():
        result = model(**given, output_hidden_states=True)
    found = states(result)
    assert len(found) == len(plain) == 3
    assert torch.equal(result.last_hidden_state, infer(model, given))
    last = found[-1] if name != "vit" else model.layernorm(found[-1])
    cut = 3 if method == "prompt_tuning" and TINY_MODELS[name].kind == "decoder" else 0
    torch.testing.assert_close(last[:, cut:], result.last_hidden_state)
    assert not torch.allclose(found[-1], plain[-1]) if found[-1].shape == plain[-1].shape else True
    if method.startswith(("loreft", "noreft", "direft")):
        for layer in (1, 2):
            assert not torch.allclose(found[layer], plain[layer], atol=1e-3)
    if "encoder_hidden_states" in result:
        assert torch.equal(result.encoder_hidden_states[-1], result.encoder_last_hidden_state)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_hidden_states_of_one_edited_layer(name: str) -> None:
    """An adapter in the upper layer leaves everything below as it is, and shows in the last state only."""
    model, given = build(name), inputs(name)
    layers = 4 if TINY_MODELS[name].kind == "encoder-decoder" else 2
    model.add_adapter("a", config=CONFIGS["seq_bn"].replace(leave_out=list(range(layers - 1))))
    perturb(model, "a")
    plain = states(model(**given, output_hidden_states=True))
    model.set_active_adapters("a")
    found = states(model(**given, output_hidden_states=True))
    assert torch.equal(found[0], plain[0]) and torch.equal(found[1], plain[1])
    assert not torch.allclose(found[2], plain[2], atol=1e-3)


@pytest.mark.versions
@every_pair(names=("bert", "llama", "t5", "vit"))
def test_attentions(method: str, name: str) -> None:
    """With a prefix, its share is part of the probabilities: columns in front of those of the sequence."""
    model, given = carrying(name, method, attn_implementation="eager"), inputs(name)
    perturb(model, "a")
    plain = attentions(model(**given, output_attentions=True))
    model.set_active_adapters("a")
    found = attentions(model(**given, output_attentions=True))
    assert len(found) == len(plain) > 0
    prefix = 3 if "AttentionSite" in {one.site_type.__name__ for one in methods_of(method)} else 0
    prompt = 3 if method == "prompt_tuning" else 0
    if name == "t5" and prompt:  # the decoder itself sees none
        found, plain = found[:2] + found[4:], plain[:2] + plain[4:]
    for one, other in zip(found, plain, strict=True):
        assert one.shape[-1] == other.shape[-1] + prefix + prompt
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one.sum(-1)), atol=1e-4, rtol=1e-4)
    if prefix:
        assert all(float(one[..., :prefix].detach().mean()) > 0 for one in found)


@every_pair(names=("bert", "t5"))
def test_tuples(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    perturb(model, "a")
    model.set_active_adapters("a")
    with torch.no_grad():
        assert torch.equal(model(**given, return_dict=False)[0], infer(model, given))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_gating_scores(name: str) -> None:
    model, given = carrying(name, "unipelt", "lora", task="classification"), inputs(name, "classification")
    perturb(model, "a")
    model.set_active_adapters("a")
    expected = infer(model, given)
    with torch.no_grad():
        result = model(**given, output_adapter_gating_scores=True)
    assert torch.equal(result.logits, expected)
    scores = result.adapter_gating_scores
    assert list(scores) == ["a"]
    assert sorted(scores["a"]) == list(range(4 if TINY_MODELS[name].kind == "encoder-decoder" else 2))
    for locations in scores["a"].values():
        assert {"output_adapter", "selfattn_lora"} <= set(locations)
        assert any(location.endswith("prefix") or location == "self" for location in locations)
        for location, array in locations.items():
            assert isinstance(array, np.ndarray) and array.dtype == np.float32
            assert array.shape[0] == ROWS
            assert (array > 0).all() and (array < 1).all(), location
    assert "adapter_gating_scores" not in model(**given)
    assert isinstance(model(**given, output_adapter_gating_scores=True, return_dict=False)[-1], dict)


def test_gating_scores_of_blocks() -> None:
    model, given = carrying("bert", "unipelt", "unipelt"), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    for adapter in "ab":
        model.set_active_adapters(adapter)
        assert list(model(**given, output_adapter_gating_scores=True).adapter_gating_scores) == [adapter]
    model.set_active_adapters(Parallel("a", "b"))
    both = model(**given, output_adapter_gating_scores=True).adapter_gating_scores
    assert set(both) == {"a", "b"}
    assert both["b"][0]["output_adapter"].shape == (ROWS,)
    model.set_active_adapters(Stack("a", "b"))
    assert set(model(**given, output_adapter_gating_scores=True).adapter_gating_scores) == {"a", "b"}
    model.set_active_adapters(None)
    assert model(**given, output_adapter_gating_scores=True).adapter_gating_scores == {}


@pytest.mark.parametrize("name", ["bert", "electra", "roberta", "distilbert", "vit"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_prompts_lengthen_the_output(name: str, attention: str) -> None:
    model, given = carrying(name, "prompt_tuning", attn_implementation=attention), inputs(name)
    plain = infer(model, given)
    model.set_active_adapters("a")
    found = infer(model, given)
    assert found.shape[1] == plain.shape[1] + 3
    if name == "vit":
        return
    shorter = {key: value[1:2, : LENGTH - 1] for key, value in given.items()}
    alone = infer(model, shorter)
    torch.testing.assert_close(found[1:2, : LENGTH + 2], alone, atol=1e-5, rtol=1e-4)


@every_pair(methods=ONE_OF_EACH, names=("bert", "roberta", "distilbert", "llama", "t5", "bart"))
def test_padding_does_not_matter(method: str, name: str) -> None:
    """A row that is padded on the right gives what it gives alone. Gates are means over all positions: not for them."""
    if method == "unipelt":
        return
    model, given = carrying(name, method), inputs(name, "base" if name != "llama" else "masked lm")
    if name == "llama":
        given = {key: value.flip(1) for key, value in given.items()}
    perturb(model, "a")
    model.set_active_adapters("a")
    together = infer(model, given)
    extra = 3 if method == "prompt_tuning" and name != "llama" else 0
    for row in range(ROWS):
        length = int(given["attention_mask"][row].sum())
        single = {key: v[row : row + 1] for key, v in given.items()}
        single = {k: v[:, :length] if "decoder" not in k else v for k, v in single.items()}
        alone = infer(model, single)
        part = together[row : row + 1, : length + extra] if name not in ("t5", "bart") else together[row : row + 1]
        torch.testing.assert_close(part, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.versions
@every_pair(methods=ONE_OF_EACH, names=("bert", "gpt2", "llama", "t5", "bart", "vit"))
def test_eager_and_sdpa_agree(method: str, name: str) -> None:
    results = []
    given = inputs(name)
    for attention in ("eager", "sdpa"):
        model = carrying(name, method, attn_implementation=attention)
        perturb(model, "a")
        model.set_active_adapters("a")
        results.append(infer(model, given))
        model.set_attn_implementation("eager" if attention == "sdpa" else "sdpa")
        results.append(infer(model, given))
    keep: Any = torch.ones(results[0].shape[:2], dtype=torch.bool)
    if TINY_MODELS[name].kind == "decoder":
        keep = given["attention_mask"].bool()
    for other in results[1:]:
        torch.testing.assert_close(other[keep], results[0][keep], atol=1e-4, rtol=1e-3)


@every_pair(methods=ONE_OF_EACH, names=("bert", "llama", "t5"))
def test_no_mask_means_all_ones(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name, padded=False)
    perturb(model, "a")
    model.set_active_adapters("a")
    expected = infer(model, given)
    del given["attention_mask"]
    torch.testing.assert_close(infer(model, given), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.versions
@every_pair(methods=ONE_OF_EACH, names=("bert", "llama"))
def test_inputs_as_embeddings(method: str, name: str) -> None:
    model, given = carrying(name, method), inputs(name)
    perturb(model, "a")
    model.set_active_adapters("a")
    expected = infer(model, given)
    ids = given.pop("input_ids")
    torch.testing.assert_close(infer(model, {"inputs_embeds": model.get_input_embeddings()(ids), **given}), expected)
