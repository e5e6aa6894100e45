"""Does every head on every model compute what a few independent lines compute?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    layer_norm,
    linear,
    mse_loss,
)
from transformers.activations import ACT2FN

from adapters.heads import HEADS
from adapters.heads.language_modeling import scales_decoder
from tests.heads.models import ADD, EOS, OF_TYPE, PAIRS, WIDTH, add_head, inputs_for, labels_for, tiny


def base_states(model: Any, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    """Last states of the plain base model."""
    inputs = {k: v.flatten(0, -2) if k != "pixel_values" else v for k, v in inputs.items() if k != "word_starts"}
    return model.base_model(**inputs, **kwargs).last_hidden_state


def row_vectors(model: Any, inputs: dict[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """Position 0, the last token that is not padding, or the last <eos>."""
    ids = inputs.get("input_ids")
    if type(model).pooling is None or ids is None:
        return states[:, 0]
    if model.config.is_encoder_decoder:
        where = [row.tolist()[::-1].index(EOS) for row in ids]
        return torch.stack([states[i, 6 - position] for i, position in enumerate(where)])
    return torch.stack([states[0, 6], states[1, 4]])


def dense(head: Any, x: torch.Tensor, *steps: Any) -> torch.Tensor:
    """Runs linear layers (by index) and functions."""
    for step in steps:
        x = linear(x, head[step].weight, head[step].bias) if isinstance(step, int) else step(x)
    return x


def reference(head_type: str, head: Any, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    if head_type in ("classification", "multilabel_classification"):
        return dense(head, rows, 1, torch.tanh, 4)
    if head_type == "multiple_choice":
        return dense(head, rows, 1, torch.tanh, 4).reshape(-1, 2)
    if head_type == "image_classification":
        return dense(head, rows, 1)
    if head_type in ("tagging", "question_answering"):
        return dense(head, states, 1)
    if head_type == "seq2seq_lm":
        return dense(head, states, 0)
    norm = head[2]
    return dense(
        head,
        states,
        0,
        ACT2FN["gelu"],
        lambda x: layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps),
        3,
    )


def reference_loss(head_type: str, logits: torch.Tensor, labels: torch.Tensor, mask: Any) -> torch.Tensor:
    if head_type == "multilabel_classification":
        return binary_cross_entropy_with_logits(logits, labels.float())
    if head_type == "tagging":
        return cross_entropy(logits[mask == 1], labels[mask == 1])
    if head_type == "causal_lm":
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return cross_entropy(logits.flatten(0, -2), labels.flatten())


@pytest.mark.versions
@pytest.mark.parametrize(("model_type", "head_type"), PAIRS)
def test_head_equals_reference(model_type: str, head_type: str) -> None:
    model = tiny(model_type)
    head = add_head(model, head_type)
    if head_type == "dependency_parsing":
        pytest.skip("has a test of its own")
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs, labels = inputs_for(model, head_type), labels_for(head_type)
    more = {}
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = inputs["input_ids"].roll(1, dims=-1)
    with torch.no_grad():
        raw = base_states(model, inputs, **more)
        states = raw * WIDTH**-0.5 if scales_decoder(model.config) else raw
        want = reference(head_type, head, states, row_vectors(model, inputs, raw))
        got = model(**inputs, **labels, **more)
        if head_type == "question_answering":
            torch.testing.assert_close(torch.stack([got.start_logits, got.end_logits], -1), want)
            start = cross_entropy(want[..., 0], labels["start_positions"])
            want_loss = (start + cross_entropy(want[:1, :, 1], labels["end_positions"][:1])) / 2
        else:
            torch.testing.assert_close(got.logits, want)
            mask = inputs.get("attention_mask")
            want_loss = reference_loss(head_type, want, labels["labels"], mask)
        torch.testing.assert_close(got.loss, want_loss)


@pytest.mark.parametrize("model_type", [kind for kind, head in PAIRS if head == "dependency_parsing"])
def test_dependency_parser_equals_reference(model_type: str) -> None:
    model = tiny(model_type)
    head = add_head(model, "dependency_parsing")
    inputs, labels = inputs_for(model, "dependency_parsing"), labels_for("dependency_parsing")
    with torch.no_grad():
        states = base_states(model, inputs)
        out = model(**inputs, **labels)
        words = torch.zeros_like(states)
        words[0, 0], words[0, 1] = states[0, 1], states[0, 2:4].mean(0)
        words[1, 0] = states[1, 1:3].mean(0)
        x = torch.cat([words, torch.ones(2, 7, 1)], -1)
        y = torch.cat([states[:, :1], words], 1)
        arcs = x @ head.biaffine_arcs.weight[0] @ y.mT
        y = torch.cat([y, torch.ones(2, 8, 1)], -1)
        rels = torch.stack([x @ w @ y.mT for w in head.biaffine_rels.weight], -1)
        gold = torch.tensor([0, 1, 0])
        loss = cross_entropy(torch.stack([arcs[0, 0], arcs[0, 1], arcs[1, 0]]), gold)
        loss += cross_entropy(torch.stack([rels[0, 0, 0], rels[0, 1, 1], rels[1, 0, 0]]), gold + 1)
    torch.testing.assert_close(out.arc_preds, arcs)
    torch.testing.assert_close(out.rel_preds, rels)
    torch.testing.assert_close(out.loss, loss)


@pytest.mark.versions
@pytest.mark.parametrize(("model_type", "head_type"), PAIRS)
def test_saving_a_model_keeps_its_head(model_type: str, head_type: str, tmp_path: Any) -> None:
    model = tiny(model_type)
    add_head(model, head_type)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert again.get_prediction_heads_config() == model.get_prediction_heads_config()
    assert again.active_head == "h"
    inputs = inputs_for(model, head_type)
    with torch.no_grad():
        for one, other in zip(model(**inputs).to_tuple(), again(**inputs).to_tuple(), strict=True):
            if isinstance(one, torch.Tensor):
                assert torch.equal(one, other)


@pytest.mark.parametrize(("model_type", "head_type"), PAIRS)
def test_tuples_hold_the_same(model_type: str, head_type: str) -> None:
    model = tiny(model_type)
    add_head(model, head_type)
    inputs, labels = inputs_for(model, head_type), labels_for(head_type)
    out = model(**inputs, **labels)
    as_tuple = model(**inputs, **labels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(out.to_tuple())
    assert torch.equal(as_tuple[0], out.loss)


@pytest.mark.parametrize("head_type", HEADS)
def test_training_reaches_head_and_base(head_type: str) -> None:
    model = tiny(OF_TYPE[head_type]).train()
    add_head(model, head_type)
    model.train()
    model(**inputs_for(model, head_type), **labels_for(head_type)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.heads.parameters())


@pytest.mark.parametrize(
    ("layers", "activation", "indices"),
    [(1, "tanh", [1]), (2, "tanh", [1, 4]), (2, None, [1, 3]), (3, "relu", [1, 4, 7])],
)
def test_indices_of_layers(layers: int, activation: str | None, indices: list[int]) -> None:
    head = add_head(tiny("bert"), "classification", layers=layers, activation_function=activation)
    assert sorted({int(key.split(".")[0]) for key in head.state_dict()}) == indices


def test_regression_is_squared_error() -> None:
    model = tiny("bert")
    add_head(model, "classification", num_labels=1)
    out = model(**inputs_for(model), labels=torch.tensor([1, 3]))
    torch.testing.assert_close(out.loss, mse_loss(out.logits.view(-1), torch.tensor([1.0, 3.0])))


def test_pooler() -> None:
    model = tiny("bert")
    head = add_head(model, "classification", use_pooler=True)
    inputs = inputs_for(model)
    pooled = model.base_model(**inputs).pooler_output
    torch.testing.assert_close(model(**inputs).logits, dense(head, pooled, 1, torch.tanh, 4))
    without = tiny("electra")
    add_head(without, "classification", use_pooler=True)
    with pytest.raises(ValueError, match="no pooler"):
        without(**inputs)


def test_dropout_follows_head_then_model() -> None:
    model = tiny("bert", classifier_dropout=0.3)
    assert add_head(model, "classification", "a")[0].p == 0.3
    assert add_head(model, "classification", "b", dropout_prob=0.0)[0].p == 0.0
    assert add_head(tiny("bert"), "classification", "a")[0].p == 0.1
    assert add_head(tiny("distilbert"), "classification", "a")[0].p == 0.2
    assert add_head(tiny("llama"), "classification", "a")[0].p == 0.0


def test_every_type_has_an_add_method() -> None:
    assert set(ADD) == set(HEADS)


def test_word_starts_may_be_padded_with_anything() -> None:
    model = tiny("roberta")
    add_head(model, "dependency_parsing")
    inputs = inputs_for(model, "dependency_parsing")
    want = model(**inputs).arc_preds
    for pad in (1, -1, -100):
        starts = torch.tensor([[1, 2, 4, pad, pad], [1, 3, pad, pad, pad]])
        assert torch.equal(model(**{**inputs, "word_starts": starts}).arc_preds, want)


def test_labels_of_a_lengthened_sequence_are_padded() -> None:
    """Prompt tuning makes outputs longer than inputs; heads see that only by the lengths."""
    model = tiny("bert")
    states = torch.randn(2, 10, WIDTH)
    labels = labels_for("tagging")["labels"]
    from transformers.modeling_outputs import BaseModelOutput

    for head_type in ("tagging", "masked_lm", "causal_lm"):
        head = add_head(model, head_type, head_type)
        outputs = BaseModelOutput(last_hidden_state=states)
        mask = torch.ones(2, 7, dtype=torch.long)
        out = head(outputs, attention_mask=mask, labels=labels, return_dict=True)
        padded = torch.cat([torch.full((2, 3), -100), labels], 1)
        shift = int(head_type == "causal_lm")
        want = cross_entropy(out.logits[:, : 10 - shift].flatten(0, 1), padded[:, shift:].flatten())
        torch.testing.assert_close(out.loss, want)
    with pytest.raises(ValueError, match="positions"):
        head(BaseModelOutput(last_hidden_state=states[:, :5]), labels=labels)
