"""Does the head of every plain transformers class compute the same as a flexible head?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from adapters.auto import AutoAdapterModel
from adapters.errors import UnsupportedError
from adapters.heads.static import CLASSES, convert_static_head, static_head_config
from tests.heads.everything import try_class
from tests.heads.models import VOCAB, WIDTH, inputs_for, tiny_config

MODEL_TYPES = {
    transformers.AutoConfig.for_model(kind).__class__: kind
    for kind in ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "gpt2", "llama", "mistral")
    + ("qwen2", "qwen3", "t5", "mt5", "bart", "mbart", "vit")
}


SELDOM = {"causal_lm": ("bart", "mbart"), "tagging": ("t5", "mt5")}
"""Heads that stand on a part of an encoder-decoder."""
DESCRIBED = [
    name
    for name, (head_type, kind) in CLASSES.items()
    if kind in MODEL_TYPES.values() and kind not in SELDOM.get(head_type, ())
]


def plain_model(class_name: str) -> Any:
    """A static model with random heads."""
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    config = tiny_config(MODEL_TYPES[cls.config_class])
    if CLASSES[class_name][0] not in ("multiple_choice", "question_answering"):
        config.num_labels = 3
    model = cls(config).eval()
    for name, parameter in model.named_parameters():
        in_head = not name.startswith(f"{model.base_model_prefix}.")
        if in_head and parameter.shape != (VOCAB, WIDTH):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def run(model: Any, class_name: str) -> tuple[torch.Tensor, ...]:
    inputs = inputs_for(model, CLASSES[class_name][0])
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"].roll(1, dims=-1)
    with torch.no_grad():
        out = model(**inputs)
    return (out.logits,) if "logits" in out else (out.start_logits, out.end_logits)


@pytest.mark.versions
@pytest.mark.parametrize("class_name", DESCRIBED)
def test_whole_checkpoint(class_name: str, tmp_path: Any) -> None:
    plain = plain_model(class_name)
    plain.save_pretrained(tmp_path / "plain")
    model = AutoAdapterModel.from_pretrained(tmp_path / "plain").eval()
    assert model.active_head == "default"
    if class_name == "MT5ForConditionalGeneration":
        pytest.skip("transformers 5 ties its output to the embeddings, flexible heads do not: SPEC section 10")
    for one, other in zip(run(plain, class_name), run(model, class_name), strict=True):
        torch.testing.assert_close(one, other)
    model.save_pretrained(tmp_path / "flex")
    again = AutoAdapterModel.from_pretrained(tmp_path / "flex").eval()
    for one, other in zip(run(model, class_name), run(again, class_name), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("class_name", DESCRIBED)
def test_head_alone(class_name: str) -> None:
    plain = plain_model(class_name)
    prefix = f"{plain.base_model_prefix}."
    keep = "T5" in class_name or "lm" in CLASSES[class_name][0]
    state = {k: v for k, v in plain.state_dict().items() if keep or not k.startswith(prefix)}
    config, tensors = convert_static_head(
        class_name, state, plain.config, "h", label2id=plain.config.label2id, num_labels=plain.config.num_labels
    )
    model = AutoAdapterModel.from_config(plain.config).eval()
    model.base_model.load_state_dict(plain.base_model.state_dict(), strict=False)
    model.add_prediction_head_from_config("h", config)
    model.eval()
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if key.startswith("heads.")]
    for one, other in zip(run(plain, class_name), run(model, class_name), strict=True):
        torch.testing.assert_close(one, other)


FOUND = [
    "AlbertForMaskedLM",
    "AlbertForSequenceClassification",
    "BeitForImageClassification",
    "BigBirdForMaskedLM",
    "CohereForCausalLM",
    "ConvNextForImageClassification",
    "DebertaForSequenceClassification",
    "DebertaV2ForMultipleChoice",
    "Dinov2ForImageClassification",
    "GPTJForCausalLM",
    "GPTJForQuestionAnswering",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "HubertForSequenceClassification",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForSequenceClassification",
    "WhisperForConditionalGeneration",
    "BertGenerationDecoder",
    "GraniteForCausalLM",
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "ModernBertForTokenClassification",
    "PLBartForConditionalGeneration",
    "PhiForCausalLM",
    "ReformerForSequenceClassification",
    "RemBertForMaskedLM",
    "ResNetForImageClassification",
    "UMT5ForConditionalGeneration",
    "XLNetForSequenceClassification",
    "XmodForSequenceClassification",
    "ApertusForCausalLM",
    "AudioFlamingo3ForConditionalGeneration",
    "BailingHybridForCausalLM",
    "HubertForCTC",
    "LlavaForConditionalGeneration",
    "MixtralForCausalLM",
]
"""Heads of all shapes, of types that nobody described."""


@pytest.mark.parametrize("class_name", FOUND)
def test_heads_of_types_that_nobody_described(class_name: str, tmp_path: Any) -> None:
    assert try_class(class_name, tmp_path).startswith("logits")


REFUSED = {
    "BartForCausalLM": "no heads of type 'causal_lm'",
    "BertForPreTraining": "no flexible head",
    "BigBirdForQuestionAnswering": "inputs of its own",
    "FunnelForSequenceClassification": "FunnelBaseModel",
    "MobileBertForMaskedLM": "its logits are computed further",
    "SplinterForQuestionAnswering": "reads something else",
    "T5ForTokenClassification": "no heads of type 'tagging'",
}


@pytest.mark.parametrize("class_name", REFUSED)
def test_what_no_flexible_head_computes_is_refused(class_name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"(?s){class_name}.*{REFUSED[class_name]}"):
        static_head_config(class_name)


def test_labels_come_along() -> None:
    names = {"no": 0, "yes": 1, "maybe": 2}
    assert static_head_config("BertForSequenceClassification", names, 3)["label2id"] == names
    config = static_head_config("BertForSequenceClassification", names, 2)
    assert config["label2id"] == {"LABEL_0": 0, "LABEL_1": 1}
    assert static_head_config("BertForMaskedLM", names, 3).get("label2id") is None
    state = {"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)}
    config, _ = convert_static_head(
        "BertForSequenceClassification", state, None, "h", id2label={0: "a", 1: "b"}, label2id=names
    )
    assert config["label2id"] == {"a": 0, "b": 1}


def test_foreign_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="somewhere"):
        convert_static_head("BertForMaskedLM", {"somewhere.weight": torch.zeros(1)}, None, "h")
    with pytest.raises(ValueError, match="Did you mean 'BertForMaskedLM'"):
        static_head_config("BertForMaskdLM")


def test_old_names_of_norms() -> None:
    state = {f"cls.predictions.transform.LayerNorm.{key}": torch.zeros(1) for key in ("gamma", "beta")}
    _, tensors = convert_static_head("BertForMaskedLM", state, None, "h")
    assert set(tensors) == {"heads.h.2.weight", "heads.h.2.bias"}
