"""What distinguishes the model with flexible heads of one model type from those of others?

It follows from the tasks that transformers has classes for; else from what the base model takes and returns.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as DUAL_ENCODERS,
)

from adapters.heads.pooling import Pooling, last_eos, last_token, mean, summary
from adapters.heads.shifting import Shift, last_token_first, start_token_first

CLASSIFICATION = ("classification", "multilabel_classification")
TEXT_HEADS = (*CLASSIFICATION, "tagging", "multiple_choice", "question_answering", "dependency_parsing")
ENCODER_HEADS = (*TEXT_HEADS, "masked_lm", "causal_lm")
DECODER_HEADS = (*CLASSIFICATION, "tagging", "question_answering", "causal_lm")
ENCODER_DECODER_HEADS = (*CLASSIFICATION, "question_answering", "seq2seq_lm")
IMAGE_HEADS = ("image_classification",)
AUDIO_HEADS = (*CLASSIFICATION, "tagging")
UNPOOLED = {"bert-generation": ("masked_lm", "causal_lm")}
"""Types that are for tokens alone."""
VIEWERS = (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES)
"""Tasks of types that see."""
READERS = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
)
"""Tasks of types that read text without predicting it."""
SENSING = (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
"""Tasks of types that write about what they see or hear; whether by an encoder-decoder is told by the base model."""
READ: Mapping[str, tuple[str, ...]] = {
    "input_ids": TEXT_HEADS,
    "pixel_values": IMAGE_HEADS,
    "pixel_values_videos": IMAGE_HEADS,
    "input_features": AUDIO_HEADS,
    "input_values": AUDIO_HEADS,
}
"""First argument of a base model -> heads that can stand on it."""
POOLED_AUDIO = ("audio-spectrogram-transformer",)
"""Types that read sounds as images and have a position for the whole; of others the frames' mean is taken."""


@dataclass(frozen=True)
class ModelKind:
    """What distinguishes the model with flexible heads of one model type from those of others.

    Args:
        base: Its base model's class in transformers.
        head_types: Heads it supports.
        pooling: Vector per row for classification; None: position 0 or the pooler.
        shift: Default decoder inputs of encoder-decoder models.
        generates: Whether it has `generate`.
    """

    base: str
    head_types: tuple[str, ...]
    pooling: Pooling | None = None
    shift: Shift | None = None
    generates: bool = True

    @property
    def name(self) -> str:
        """Stem of the classes of its type: `<name>AdapterModel`, `<name>PreTrainedModel`."""
        return stem(self.base)


SHIFTS: dict[str, Shift] = {"mbart": last_token_first, "plbart": last_token_first}
"""Encoder-decoders whose decoder does not start with a token of its own."""


SPEECH = ("moonshine", "speech_to_text", "whisper")
"""Encoder-decoders that hear: their base model is called like that of text, with sounds instead of token ids."""


def stem(base: str) -> str:
    """What the classes of a type begin with, from the name of its base model's class."""
    return base.removesuffix("Encoder" if base in STEMS else "Model")


STEMS = ("BertGenerationEncoder",)
"""Base models named after what they are, not after their type."""


def _kind(model_type: str, base: str) -> ModelKind:
    """The kind of a model type, by the tasks that transformers has classes for, else by its base model."""
    if model_type in DUAL_ENCODERS:
        return ModelKind(base, (), generates=False)
    if model_type in SPEECH:
        return ModelKind(base, ("seq2seq_lm",), shift=start_token_first)
    if not base.endswith("Model") and model_type not in UNPOOLED:
        return _kind_of(model_type, base)
    if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and "decoder_input_ids" in _takes(base):
        return ModelKind(base, ENCODER_DECODER_HEADS, last_eos, SHIFTS.get(model_type, start_token_first))
    if any(model_type in names for names in VIEWERS):
        return ModelKind(base, IMAGE_HEADS, generates=False)
    if model_type in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES:
        recognises = ("ctc",) if model_type in MODEL_FOR_CTC_MAPPING_NAMES else ()
        pooling = None if model_type in POOLED_AUDIO else mean
        return ModelKind(base, (*AUDIO_HEADS, *recognises), pooling, generates=False)
    if model_type in UNPOOLED:
        return ModelKind(base, UNPOOLED[model_type])
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return ModelKind(base, ENCODER_HEADS)
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return ModelKind(base, DECODER_HEADS, last_token)
    if any(model_type in names for names in READERS) and not _senses(model_type):
        return ModelKind(base, TEXT_HEADS, generates=False)
    return _kind_of(model_type, base)


def _kind_of(model_type: str, base: str) -> ModelKind:
    """The kind of a model type, by what its base model takes and returns."""
    takes = _takes(base)
    if not takes or re.search("For[A-Z]", base) or "last_hidden_state" not in _returns(base):
        return ModelKind(base, (), generates=False)
    if "decoder_input_ids" in takes:
        heads: tuple[str, ...] = ENCODER_DECODER_HEADS if takes[0] == "input_ids" else ("seq2seq_lm",)
        return ModelKind(base, heads, last_eos, shift=start_token_first)
    if "input_ids" in takes and ("past_key_values" in takes or _senses(model_type)):
        return ModelKind(base, DECODER_HEADS, last_token)
    heads = next((heads for name, heads in READ.items() if takes[0] == name), ())
    return ModelKind(base, heads, summary, generates=False)


def _senses(model_type: str) -> bool:
    return any(model_type in names for names in SENSING)


def _takes(base: str) -> list[str]:
    """Names of the arguments of a base model."""
    return [name for name in inspect.signature(getattr(transformers, base).forward).parameters if name != "self"]


def _returns(base: str) -> list[str]:
    """Names of the fields of what a base model returns, as its annotation says."""
    said = inspect.get_annotations(getattr(transformers, base).forward).get("return")
    found = [part for part in (said, *typing.get_args(said)) if isinstance(part, type) and is_dataclass(part)]
    return [field.name for part in found for field in fields(part)]


BASES = {kind: names if isinstance(names, str) else names[0] for kind, names in MODEL_MAPPING_NAMES.items()}
"""Model type of a config -> its base model's class in transformers."""


class _Kinds(Mapping[str, ModelKind]):
    """The kinds of all types; each is made when it is asked for, as that may import the code of its model."""

    def __init__(self) -> None:
        self._made: dict[str, ModelKind] = {}

    def __getitem__(self, model_type: str) -> ModelKind:
        if model_type not in self._made:
            self._made[model_type] = _kind(model_type, BASES[model_type])
        return self._made[model_type]

    def __contains__(self, model_type: object) -> bool:
        return model_type in BASES

    def __iter__(self) -> Iterator[str]:
        return iter(BASES)

    def __len__(self) -> int:
        return len(BASES)


MODEL_KINDS: Mapping[str, ModelKind] = _Kinds()
"""Model type of a config -> its kind: all types that `AutoModel` of transformers knows."""
