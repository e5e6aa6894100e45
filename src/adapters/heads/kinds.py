"""What distinguishes the model with flexible heads of one model type from those of others?

It follows from the tasks that transformers has classes for.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
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

from adapters.heads.pooling import Pooling, last_eos, last_token, mean
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
        return self.base.removesuffix("Model").removesuffix("Encoder")


SHIFTS: dict[str, Shift] = {"mbart": last_token_first, "plbart": last_token_first}
"""Encoder-decoders whose decoder does not start with a token of its own."""


SPEECH = ("moonshine", "speech_to_text", "whisper")
"""Encoder-decoders that hear: their base model is called like that of text, with sounds instead of token ids."""


def _kind(model_type: str, base: str) -> ModelKind | None:
    """The kind of a model type, by the tasks that transformers has classes for; None if it has no such."""
    if model_type in DUAL_ENCODERS:
        return ModelKind(base, (), generates=False)
    if model_type in SPEECH:
        return ModelKind(base, ("seq2seq_lm",), shift=start_token_first)
    if model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return None
    if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return ModelKind(base, ENCODER_DECODER_HEADS, last_eos, SHIFTS.get(model_type, start_token_first))
    if any(model_type in names for names in VIEWERS):
        return ModelKind(base, IMAGE_HEADS, generates=False)
    if model_type in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES:
        return ModelKind(base, AUDIO_HEADS, None if model_type in POOLED_AUDIO else mean, generates=False)
    if model_type in UNPOOLED:
        return ModelKind(base, UNPOOLED[model_type])
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return ModelKind(base, ENCODER_HEADS)
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return ModelKind(base, DECODER_HEADS, last_token)
    if any(model_type in names for names in READERS):
        return ModelKind(base, TEXT_HEADS, generates=False)
    return None


def _kinds() -> dict[str, ModelKind]:
    kinds = {}
    for model_type, names in MODEL_MAPPING_NAMES.items():
        base = names if isinstance(names, str) else names[0]
        named = base.endswith("Model") or model_type in UNPOOLED
        if named and (kind := _kind(model_type, base)) is not None:
            kinds[model_type] = kind
    return kinds


MODEL_KINDS = _kinds()
"""Model type of a config -> its kind. Not there: what has none of the tasks of `_kind`."""
