"""Which class opens a checkpoint as a model with flexible heads? One class per model type, and AutoAdapterModel."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import transformers
from transformers import GenerationMixin
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

from adapters.checkpoint.atomic import finish
from adapters.heads.kinds import BASES, MODEL_KINDS, stem
from adapters.heads.model import (
    EncoderDecoderHeadModel,
    HeadModel,
    OwnPositionsGenerationMixin,
    UncachedGenerationMixin,
    argument_names,
    make_signature,
)
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

ADAPTER_MODEL_MAPPING_NAMES = {kind: f"{stem(base)}AdapterModel" for kind, base in BASES.items()}


def make_adapter_model_class(model_type: str) -> type[Any]:
    """Builds the class of a model type: its base model under the usual attribute, adapters and flexible heads.

    Args:
        model_type: A key of `MODEL_KINDS`.
    """
    kind = MODEL_KINDS[model_type]
    base = getattr(transformers, kind.base)
    family = next(parent for parent in base.__mro__ if parent.__name__.endswith("PreTrainedModel"))
    heads = HeadModel if kind.shift is None else EncoderDecoderHeadModel
    parents = (heads, AdapterModelMixin, family)
    generation = GenerationMixin if "past_key_values" in argument_names(base) else UncachedGenerationMixin
    generation = OwnPositionsGenerationMixin if hasattr(base, "get_rope_index") else generation

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return HeadModel.forward(self, *args, **kwargs)

    forward.__doc__ = HeadModel.forward.__doc__
    forward.__qualname__ = f"{kind.name}AdapterModel.forward"
    forward.__signature__ = make_signature(base)  # type: ignore[attr-defined]
    content = {
        "__module__": __name__,
        "__doc__": f"{kind.base} with adapters and flexible prediction heads. See `HeadModel`.",
        "base_model_class": base,
        "base_model_prefix": base.base_model_prefix or "model",
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
