"""How does the head of a plain transformers class become a flexible head? A table, and renames.

The position of a name in a row is its index in the flexible head; None stands for modules without weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from adapters.errors import CheckpointError, UnsupportedError, choices
from adapters.heads.language_modeling import scales_decoder
from adapters.heads.options import label_map

DEFAULT_HEAD = "default"
"""Name of the head of a plain class's checkpoint that is opened as a model with flexible heads."""


@dataclass(frozen=True)
class StaticHead:
    """Where one transformers class keeps its head, and which flexible head computes the same.

    Args:
        head_type: Type of the flexible head.
        modules: Name of the module at each index; None for those without weights.
        options: Arguments of the flexible head; those left out take the defaults of its class.
        base: Prefix of the base model's tensors, where it is not that of the model type.
    """

    head_type: str
    modules: tuple[str | None, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None


ONE_LAYER = {"layers": 1, "activation_function": None}
POOLED = {**ONE_LAYER, "use_pooler": True}
SCORE = {**ONE_LAYER, "bias": False}
DECODER_SCORE = {**SCORE, "dropout_prob": 0}
TANH = {"layers": 2, "activation_function": "tanh"}
RELU = {"layers": 2, "activation_function": "relu"}
GELU = {"layers": 2, "activation_function": "gelu"}
TOKENS = {"layers": 2, "activation_function": "gelu", "layer_norm": True, "bias": True}

CLASSIFIER = (None, "classifier")
ANSWER = (None, "qa_outputs")
SCORES = (None, "score")
TWO_LAYERS = (None, "classifier.dense", None, None, "classifier.out_proj")
SEQ2SEQ = (None, "classification_head.dense", None, None, "classification_head.out_proj")
DISTILBERT = (None, "pre_classifier", None, None, "classifier")
BERT_LM = (
    "cls.predictions.transform.dense",
    None,
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
)
ROBERTA_LM = ("lm_head.dense", None, "lm_head.layer_norm", "lm_head.decoder")
ELECTRA_LM = ("generator_predictions.dense", None, "generator_predictions.LayerNorm", "generator_lm_head")

STATIC_HEADS: dict[str, StaticHead] = {
    "BertForSequenceClassification": StaticHead("classification", CLASSIFIER, POOLED),
    "BertForMultipleChoice": StaticHead("multiple_choice", CLASSIFIER, POOLED),
    "BertForTokenClassification": StaticHead("tagging", CLASSIFIER, ONE_LAYER),
    "BertForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "BertForMaskedLM": StaticHead("masked_lm", BERT_LM, TOKENS),
    "BertLMHeadModel": StaticHead("causal_lm", BERT_LM, TOKENS),
    "RobertaForSequenceClassification": StaticHead("classification", TWO_LAYERS, {**TANH, "use_pooler": False}),
    "RobertaForMultipleChoice": StaticHead("multiple_choice", CLASSIFIER, POOLED),
    "RobertaForTokenClassification": StaticHead("tagging", CLASSIFIER, ONE_LAYER),
    "RobertaForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "RobertaForMaskedLM": StaticHead("masked_lm", ROBERTA_LM, TOKENS),
    "RobertaForCausalLM": StaticHead("causal_lm", ROBERTA_LM, TOKENS),
    "XLMRobertaForSequenceClassification": StaticHead("classification", TWO_LAYERS, {**TANH, "use_pooler": False}),
    "XLMRobertaForMultipleChoice": StaticHead("multiple_choice", CLASSIFIER, POOLED),
    "XLMRobertaForTokenClassification": StaticHead("tagging", CLASSIFIER, ONE_LAYER),
    "XLMRobertaForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "XLMRobertaForMaskedLM": StaticHead("masked_lm", ROBERTA_LM, TOKENS),
    "XLMRobertaForCausalLM": StaticHead("causal_lm", ROBERTA_LM, TOKENS),
    "DistilBertForSequenceClassification": StaticHead("classification", DISTILBERT, RELU),
    "DistilBertForMultipleChoice": StaticHead("multiple_choice", DISTILBERT, RELU),
    "DistilBertForTokenClassification": StaticHead("tagging", CLASSIFIER, ONE_LAYER),
    "DistilBertForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "DistilBertForMaskedLM": StaticHead(
        "masked_lm", ("vocab_transform", None, "vocab_layer_norm", "vocab_projector"), TOKENS
    ),
    "ElectraForSequenceClassification": StaticHead("classification", TWO_LAYERS, {**GELU, "bias": True}),
    "ElectraForMultipleChoice": StaticHead(
        "multiple_choice",
        (None, "sequence_summary.summary", None, None, "classifier"),
        {**GELU, "use_pooler": False},
    ),
    "ElectraForTokenClassification": StaticHead("tagging", CLASSIFIER, ONE_LAYER),
    "ElectraForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "ElectraForMaskedLM": StaticHead("masked_lm", ELECTRA_LM, TOKENS),
    "ElectraForCausalLM": StaticHead("causal_lm", ELECTRA_LM, TOKENS),
    "GPT2ForSequenceClassification": StaticHead("classification", SCORES, SCORE),
    "GPT2ForTokenClassification": StaticHead("tagging", CLASSIFIER, ONE_LAYER),
    "GPT2ForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "GPT2LMHeadModel": StaticHead("causal_lm", ("lm_head",)),
    "LlamaForSequenceClassification": StaticHead("classification", SCORES, DECODER_SCORE),
    "LlamaForTokenClassification": StaticHead("tagging", SCORES, ONE_LAYER),
    "LlamaForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER, base="transformer"),
    "LlamaForCausalLM": StaticHead("causal_lm", ("lm_head",)),
    "MistralForSequenceClassification": StaticHead("classification", SCORES, DECODER_SCORE),
    "MistralForTokenClassification": StaticHead("tagging", SCORES, ONE_LAYER),
    "MistralForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "MistralForCausalLM": StaticHead("causal_lm", ("lm_head",)),
    "Qwen2ForSequenceClassification": StaticHead("classification", SCORES, DECODER_SCORE),
    "Qwen2ForTokenClassification": StaticHead("tagging", SCORES, ONE_LAYER),
    "Qwen2ForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER, base="transformer"),
    "Qwen2ForCausalLM": StaticHead("causal_lm", ("lm_head",)),
    "Qwen3ForSequenceClassification": StaticHead("classification", SCORES, DECODER_SCORE),
    "Qwen3ForTokenClassification": StaticHead("tagging", SCORES, ONE_LAYER),
    "Qwen3ForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER, base="transformer"),
    "Qwen3ForCausalLM": StaticHead("causal_lm", ("lm_head",)),
    "T5ForSequenceClassification": StaticHead("classification", SEQ2SEQ, TANH),
    "T5ForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "T5ForConditionalGeneration": StaticHead("seq2seq_lm", ("lm_head",)),
    "MT5ForSequenceClassification": StaticHead("classification", SEQ2SEQ, TANH),
    "MT5ForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "MT5ForConditionalGeneration": StaticHead("seq2seq_lm", ("lm_head",)),
    "BartForSequenceClassification": StaticHead("classification", SEQ2SEQ, TANH),
    "BartForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "BartForConditionalGeneration": StaticHead("seq2seq_lm", ("lm_head",)),
    "MBartForSequenceClassification": StaticHead("classification", SEQ2SEQ, TANH),
    "MBartForQuestionAnswering": StaticHead("question_answering", ANSWER, ONE_LAYER),
    "MBartForConditionalGeneration": StaticHead("seq2seq_lm", ("lm_head",)),
    "ViTForImageClassification": StaticHead("image_classification", CLASSIFIER, ONE_LAYER),
}
"""Name of a transformers class -> its head."""

BASE_KEYS = ("bert.", "roberta.", "distilbert.", "electra.", "transformer.", "model.", "vit.")
ENCODER_DECODER_KEYS = ("encoder.", "decoder.", "shared.")
HEAD_MODULES = {path.partition(".")[0] for head in STATIC_HEADS.values() for path in head.modules if path}
"""What plain classes call the modules of their heads."""
IGNORED_KEYS = ("final_logits_bias", "lm_head.bias", "cls.predictions.bias")
"""Tensors that flexible heads do not have: the two biases repeat the one of the last layer."""


def find_static_head(class_name: str) -> StaticHead:
    """The row of the table for a class.

    Raises:
        UnsupportedError: the class is not in the table.
    """
    if class_name not in STATIC_HEADS:
        raise UnsupportedError(
            f"The head of {class_name!r} cannot be turned into a flexible head. {choices(class_name, STATIC_HEADS)}"
        )
    return STATIC_HEADS[class_name]


def static_head_config(
    class_name: str, label2id: Mapping[str, int] | None = None, num_labels: int | None = None
) -> dict[str, Any]:
    """Config of the flexible head that computes what the class's own head does.

    Args:
        class_name: Name of the transformers class.
        label2id: Names of the labels; by default, or if they are not as many as labels, LABEL_0, LABEL_1, ...
        num_labels: Labels or choices, a count; by default as many as there are names, else 2.
    Raises:
        UnsupportedError: the class is not in the table.
    """
    static = find_static_head(class_name)
    config: dict[str, Any] = {"head_type": static.head_type, **static.options}
    if static.head_type in ("masked_lm", "causal_lm", "seq2seq_lm"):
        return config
    count = num_labels or len(label2id or ()) or 2
    if static.head_type == "question_answering":
        count = 2
    names = label2id if label2id is not None and len(label2id) == count else None
    config["num_choices" if static.head_type == "multiple_choice" else "num_labels"] = count
    config["label2id"] = label_map(None, names, count)
    return config


def static_key_mapping(class_name: str, head_name: str) -> dict[str, str]:
    """Regular expression of a tensor's name in the class -> its name below a flexible head.

    The oldest checkpoints call weight and bias of a LayerNorm gamma and beta.

    Raises:
        UnsupportedError: the class is not in the table.
    """
    mapping: dict[str, str] = {}
    for i, name in enumerate(find_static_head(class_name).modules):
        if name is None:
            continue
        old, new = rf"^{re.escape(name)}\.", f"heads.{head_name}.{i}."
        mapping |= {f"{old}gamma$": f"{new}weight", f"{old}beta$": f"{new}bias", old: new}
    return mapping


def convert_static_head(
    class_name: str,
    state: Mapping[str, Tensor],
    model_config: PreTrainedConfig,
    head_name: str,
    *,
    id2label: Mapping[int, str] | None = None,
    label2id: Mapping[str, int] | None = None,
    num_labels: int | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turns a stored head of a plain class into a flexible head.

    Args:
        class_name: Name of the transformers class that was saved.
        state: Its tensors; those of the base model may be among them and are left out.
        model_config: Config of the model that gets the head.
        head_name: Name of the head there.
        id2label: Names of the labels, instead of `label2id`.
        label2id: Names of the labels as stored.
        num_labels: As stored.
    Returns:
        Config for `add_prediction_head_from_config`, and tensors named heads.<head_name>.<index>.<tensor>.
    Raises:
        UnsupportedError: the class is not in the table.
        CheckpointError: `state` holds tensors that belong neither to the head nor to the base model.
    """
    static = find_static_head(class_name)
    names = label_map(id2label, label2id, 2) if id2label is not None else label2id
    config = static_head_config(class_name, names, num_labels)
    renamed = _rename(state, static_key_mapping(class_name, head_name), class_name)
    factor = static_scale(static.head_type, model_config)
    last = f"heads.{head_name}.{len(static.modules) - 1}.weight"
    if factor != 1 and last in renamed:
        renamed[last] = renamed[last] * factor
    return config, renamed


def static_scale(head_type: str, model_config: PreTrainedConfig) -> float:
    """Factor for the last weight of a converted head, so that it computes what it did.

    T5's own question answering reads decoder states as they are, the flexible head scaled by d_model ** -0.5.
    """
    if head_type == "question_answering" and scales_decoder(model_config):
        return float(model_config.d_model**0.5)
    return 1.0


def _rename(state: Mapping[str, Tensor], mapping: Mapping[str, str], class_name: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        pattern = next((pattern for pattern in mapping if re.match(pattern, key)), None)
        if pattern is not None:
            renamed[re.sub(pattern, mapping[pattern], key)] = tensor
        elif not _belongs_to_base(key, class_name):
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"The head of {class_name} was stored with tensors that it should not have: "
            f"{', '.join(sorted(unknown))}. Allowed: those below {_names(find_static_head(class_name).modules)}."
        )
    return renamed


def _belongs_to_base(key: str, class_name: str) -> bool:
    encoder_decoder = ENCODER_DECODER_KEYS if "T5" in class_name else ()
    return key.startswith((*BASE_KEYS, *IGNORED_KEYS, *encoder_decoder))


def _names(modules: Iterable[str | None]) -> str:
    return ", ".join(name for name in modules if name is not None)
