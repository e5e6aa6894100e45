"""Do all heads that predict tokens follow the vocabulary, and inverses the layers that are replaced?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.heads.models import VOCAB, add_head, inputs_for, tiny
from tests.tiny import LANGUAGE_MODELS, build, infer, inputs, perturb

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
