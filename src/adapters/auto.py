"""Which class opens a checkpoint as a model with flexible heads? One class per model type, and AutoAdapterModel."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers
from transformers import GenerationMixin
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as DUAL_ENCODERS,
)

from adapters.checkpoint.atomic import finish
from adapters.heads.model import (
    EncoderDecoderHeadModel,
    HeadModel,
    UncachedGenerationMixin,
    argument_names,
    make_signature,
)
from adapters.heads.pooling import Pooling, last_eos, last_token
from adapters.heads.shifting import Shift, last_token_first, start_token_first
from adapters.model import AdapterModelMixin

if TYPE_CHECKING:
    BertAdapterModel: type[Any]
    RobertaAdapterModel: type[Any]
    XLMRobertaAdapterModel: type[Any]
    DistilBertAdapterModel: type[Any]
    ElectraAdapterModel: type[Any]
    GPT2AdapterModel: type[Any]
    LlamaAdapterModel: type[Any]
    MistralAdapterModel: type[Any]
    Qwen2AdapterModel: type[Any]
    Qwen3AdapterModel: type[Any]
    T5AdapterModel: type[Any]
    MT5AdapterModel: type[Any]
    BartAdapterModel: type[Any]
    MBartAdapterModel: type[Any]
    ViTAdapterModel: type[Any]

CLASSIFICATION = ("classification", "multilabel_classification")
ENCODER_HEADS = (
    *CLASSIFICATION,
    "tagging",
    "multiple_choice",
    "question_answering",
    "dependency_parsing",
    "masked_lm",
    "causal_lm",
)
DECODER_HEADS = (*CLASSIFICATION, "tagging", "question_answering", "causal_lm")
ENCODER_DECODER_HEADS = (*CLASSIFICATION, "question_answering", "seq2seq_lm")
IMAGE_HEADS = ("image_classification",)


@dataclass(frozen=True)
class ModelKind:
    """What distinguishes the model with flexible heads of one model type from those of others.

    Args:
        name: Stem of its classes in transformers: `<name>Model`, `<name>PreTrainedModel`.
        head_types: Heads it supports.
        pooling: Vector per row for classification; None: position 0 or the pooler.
        shift: Default decoder inputs of encoder-decoder models.
        generates: Whether it has `generate`.
        base: What its base model is called, if not `<name>Model`.
    """

    name: str
    head_types: tuple[str, ...]
    pooling: Pooling | None = None
    shift: Shift | None = None
    generates: bool = True
    base: str = ""

    @property
    def base_name(self) -> str:
        """Name of the class of its base model."""
        return self.base or f"{self.name}Model"


SHIFTS: dict[str, Shift] = {"mbart": last_token_first, "plbart": last_token_first}
"""Encoder-decoders whose decoder does not start with a token of its own."""


def _kind(model_type: str, name: str) -> ModelKind | None:
    """The kind of a model type, by the tasks that transformers has classes for; None for those of none of them."""
    if model_type in DUAL_ENCODERS:
        return ModelKind(name, (), generates=False)
    if model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return ModelKind(name, ("seq2seq_lm",), shift=start_token_first)
    if model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return ModelKind(name, ENCODER_DECODER_HEADS, last_eos, SHIFTS.get(model_type, start_token_first))
    if model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return ModelKind(name, IMAGE_HEADS, generates=False)
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return ModelKind(name, ENCODER_HEADS)
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return ModelKind(name, DECODER_HEADS, last_token)
    return None


def _kinds() -> dict[str, ModelKind]:
    kinds = {}
    for model_type, names in MODEL_MAPPING_NAMES.items():
        name = names if isinstance(names, str) else names[0]
        if name.endswith("Model") and (kind := _kind(model_type, name.removesuffix("Model"))) is not None:
            kinds[model_type] = kind
    generation = ModelKind("BertGeneration", ("masked_lm", "causal_lm"), base="BertGenerationEncoder")
    return {**kinds, "bert-generation": generation}


MODEL_KINDS = _kinds()
"""Model type of a config -> its kind. Not there: what has none of the tasks of `_kind`."""

ADAPTER_MODEL_MAPPING_NAMES = {kind: f"{row.name}AdapterModel" for kind, row in MODEL_KINDS.items()}


def make_adapter_model_class(model_type: str) -> type[Any]:
    """Builds the class of a model type: its base model under the usual attribute, adapters and flexible heads.

    Args:
        model_type: A key of `MODEL_KINDS`.
    """
    kind = MODEL_KINDS[model_type]
    base = getattr(transformers, kind.base_name)
    family = next(parent for parent in base.__mro__ if parent.__name__.endswith("PreTrainedModel"))
    heads = HeadModel if kind.shift is None else EncoderDecoderHeadModel
    parents = (heads, AdapterModelMixin, family)
    generation = GenerationMixin if "past_key_values" in argument_names(base) else UncachedGenerationMixin

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return HeadModel.forward(self, *args, **kwargs)

    forward.__doc__ = HeadModel.forward.__doc__
    forward.__qualname__ = f"{kind.name}AdapterModel.forward"
    forward.__signature__ = make_signature(base)  # type: ignore[attr-defined]
    content = {
        "__module__": __name__,
        "__doc__": f"{kind.name}Model with adapters and flexible prediction heads. See `HeadModel`.",
        "base_model_class": base,
        "head_types": kind.head_types,
        "pooling": None if kind.pooling is None else staticmethod(kind.pooling),
        "shift": None if kind.shift is None else staticmethod(kind.shift),
        "base_arguments": argument_names(base),
        "forward": forward,
    }
    return type(f"{kind.name}AdapterModel", (*parents, generation) if kind.generates else parents, content)


class _AdapterModelMapping(_LazyAutoMapping):
    """Config class -> class with flexible heads; classes are built when they are asked for."""

    def _load_attr_from_module(self, model_type: str, attr: str) -> Any:
        if attr in ADAPTER_MODEL_MAPPING_NAMES.values():
            return __getattr__(attr)
        return super()._load_attr_from_module(model_type, attr)  # type: ignore[no-untyped-call]


ADAPTER_MODEL_MAPPING = _AdapterModelMapping(CONFIG_MAPPING_NAMES, OrderedDict(ADAPTER_MODEL_MAPPING_NAMES))
"""Config class -> class with flexible heads, like the mappings of transformers' Auto classes."""


class AutoAdapterModel(_BaseAutoModelClass):
    """Opens any supported checkpoint as a model with adapters and flexible heads.

    `from_pretrained` and `from_config` work like those of transformers' Auto classes. Checkpoints of plain classes
    (`BertForSequenceClassification`, ...) keep their head, as a flexible head called "default".
    """

    _model_mapping = ADAPTER_MODEL_MAPPING  # type: ignore[assignment]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; a save into the folder that was interrupted is finished first."""
        finish(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def __getattr__(name: str) -> Any:
    for model_type, class_name in ADAPTER_MODEL_MAPPING_NAMES.items():
        if name == class_name:
            built = globals().get(name) or make_adapter_model_class(model_type)
            globals()[name] = built
            return built
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *ADAPTER_MODEL_MAPPING_NAMES.values()])
