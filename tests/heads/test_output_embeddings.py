"""Do all heads that predict tokens follow the vocabulary, and inverses the layers that are replaced?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adapters.errors import HeadError
from tests.heads.models import VOCAB, add_head, inputs_for, tiny
from tests.tiny import LANGUAGE_MODELS, build, hooks, infer, inputs, perturb

TOKEN_HEADS = [("bert", "masked_lm"), ("electra", "masked_lm"), ("gpt2", "causal_lm"), ("t5", "seq2seq_lm")]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("active", ["b", ["a", "b"], None, "c"], ids=str)
@pytest.mark.parametrize(("model_type", "head_type"), TOKEN_HEADS)
def test_resizing_embeddings_resizes_all_token_heads(
    model_type: str, head_type: str, active: Any, tied: bool, tmp_path: Any
) -> None:
    model = tiny(model_type, tie_word_embeddings=tied)
    for name in "ab":
        add_head(model, head_type, name)
    add_head(model, "classification", "c")
    model.active_head = active
    inputs = inputs_for(model)
    before = {name: model(**inputs, head=name).logits for name in "abc"}
    model.resize_token_embeddings(VOCAB + 6, mean_resizing=False)
    assert model.active_head == active
    for name in "ab":
        assert model.heads[name].config["vocab_size"] == VOCAB + 6
        logits = model(**inputs, head=name).logits
        assert logits.size(-1) == VOCAB + 6
        torch.testing.assert_close(logits[..., :VOCAB], before[name])
        model.save_head(str(tmp_path / name), name)
        model.load_head(str(tmp_path / name))
        torch.testing.assert_close(model(**inputs, head=name).logits, logits)
    torch.testing.assert_close(model(**inputs, head="c").logits, before["c"])


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5"])
def test_a_head_under_the_name_of_a_plain_class_is_refused(model_type: str) -> None:
    """It would take part in nothing."""
    model = tiny(model_type)
    modules, before = dict(model.named_modules()), dict(vars(model))
    for name in ("lm_head", "cls", "classifier", "score", "qa_outputs"):
        with pytest.raises(HeadError, match=rf"{name} would do nothing.*set_output_embeddings"):
            setattr(model, name, nn.Linear(4, VOCAB))
    assert dict(model.named_modules()) == modules and dict(vars(model)) == before
    model.lm_head = None


@pytest.mark.parametrize("what", ["layer", "head"])
def test_the_inverse_follows_layers_and_heads_that_are_assigned(what: str) -> None:
    model = tiny("gpt2", tie_word_embeddings=False)
    add_head(model, "causal_lm", "h")
    model.add_adapter("a", config="seq_bn_inv")
    perturb(model, "a")
    model.set_active_adapters("a")
    model.active_head = "h"
    inputs = inputs_for(model)
    expected = model(**inputs).logits
    if what == "layer":
        model.heads["h"][-1] = twin(model.heads["h"][-1])
    else:
        other = add_head(tiny("gpt2", tie_word_embeddings=False), "causal_lm", "h")
        other.load_state_dict(model.heads["h"].state_dict())
        model.heads["h"] = other
    torch.testing.assert_close(model(**inputs).logits, expected)
    model.set_active_adapters(None)
    plain = model(**inputs).logits
    assert not torch.allclose(plain, expected, atol=1e-3)
    model.delete_adapter("a")
    assert torch.equal(model(**inputs).logits, plain) and hooks(model) == []


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_the_inverse_follows_an_assigned_layer_of_a_plain_class(name: str) -> None:
    model, given = build(name, "lm"), inputs(name, "lm")
    model.add_adapter("a", config="seq_bn_inv", set_active=True)
    perturb(model, "a")
    expected = infer(model, given)
    model.lm_head = twin(model.lm_head)
    torch.testing.assert_close(infer(model, given), expected)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_the_inverse_follows_a_resized_layer(model_type: str) -> None:
    head_type = dict(TOKEN_HEADS)[model_type]
    model = tiny(model_type, tie_word_embeddings=False)
    for name in "ab":
        add_head(model, head_type, name)
    model.add_adapter("a", config="seq_bn_inv")
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "invertible" in name:
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(index))
    model.set_active_adapters("a")
    inputs = inputs_for(model)
    before = {name: model(**inputs, head=name).logits for name in "ab"}
    model.resize_token_embeddings(VOCAB + 6, mean_resizing=False)
    for name in "ab":
        torch.testing.assert_close(model(**inputs, head=name).logits[..., :VOCAB], before[name])
    model.active_head = "a"
    model.set_output_embeddings(twin(model.get_output_embeddings()))
    torch.testing.assert_close(model(**inputs, head="a").logits[..., :VOCAB], before["a"])


def twin(layer: nn.Linear) -> nn.Linear:
    """Another layer of the same weights, without what has been hooked onto this one."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.load_state_dict(layer.state_dict())
    return made


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_inverse_follows_the_layer_of_a_plain_class(name: str) -> None:
    model, given = build(name, "lm"), inputs(name, "lm")
    model.add_adapter("a", config="seq_bn_inv")
    perturb(model, "a")
    model.set_active_adapters("a")
    before = infer(model, given)
    model.resize_token_embeddings(VOCAB + 6, mean_resizing=False)
    torch.testing.assert_close(infer(model, given)[..., :VOCAB], before)
    model.set_output_embeddings(twin(model.get_output_embeddings()))
    torch.testing.assert_close(infer(model, given)[..., :VOCAB], before)
